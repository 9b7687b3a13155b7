//! The certificate of a public authority is ordered and renewed by a child process, so that a slow authority does not
//! block the supervisor. The gateway reads the new file by itself.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use textnlp_keys::SiteFolder;
use textnlp_keys::acme::{self, PUBLIC_CERTIFICATE_FILE, PublicCertificate};
use tokio::process::Child;

use super::background::{Complaint, own_program};
use super::control::CertificateStatus;
use super::output::{self, Notes};
use crate::lock;
use crate::names::ACME_LOCK;

/// An attempt that takes longer hangs. It has a shorter timeout of its own.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause between two processes. The record of an attempt asks for longer ones.
const RESTART_INTERVAL: Duration = Duration::from_secs(5);
const LOG: &str = "acme";

/// The public certificate and the running attempt.
pub(super) struct PublicRenewal {
    folder: SiteFolder,
    running: Option<(Child, Instant)>,
    again_at: Option<Instant>,
    /// Why the last process failed, if it did.
    failed: Option<String>,
    seen: Option<CertificateStatus>,
    complaint: Complaint,
}

impl PublicRenewal {
    pub(super) fn new(folder: &SiteFolder) -> Self {
        let complaint = Complaint::about("the public certificate");
        Self { folder: folder.clone(), running: None, again_at: None, failed: None, seen: None, complaint }
    }

    pub(super) fn status(&self) -> Vec<CertificateStatus> {
        self.seen.iter().cloned().collect()
    }

    /// Checks the certificate, and starts an attempt when one is due.
    pub(super) fn look(&mut self, now: Timestamp, notes: &mut Notes) {
        self.check_attempt();
        let (mut not_after, mut renew_at, mut is_due) = (None, None, false);
        let error = match PublicCertificate::read(&self.folder, now) {
            Ok(None) => {
                self.seen = None;
                return;
            }
            Ok(Some(found)) => {
                not_after = found.info().map(|info| info.not_after);
                renew_at = found.renew_at();
                is_due = found.is_due(now);
                found.failure().map(|failure| failure.says.clone()).or_else(|| self.failed.clone())
            }
            Err(why) => Some(why),
        };
        match &error {
            Some(why) => self.complaint.say(why.clone(), notes),
            None => self.complaint.end(),
        }
        if let Some(known) = &self.seen
            && not_after.is_some()
            && not_after != known.not_after
        {
            notes.say(&format!("certificate {PUBLIC_CERTIFICATE_FILE} renewed"));
        }
        self.seen = Some(CertificateStatus { file: PUBLIC_CERTIFICATE_FILE.to_owned(), not_after, renew_at, error });
        let is_paused = self.again_at.is_some_and(|at| Instant::now() < at);
        if is_due && !is_paused && self.running.is_none() {
            match self.start() {
                Ok(child) => self.running = Some((child, Instant::now())),
                Err(error) => self.complaint.say(format!("it cannot be ordered: {error}"), notes),
            }
            self.again_at = Some(Instant::now() + RESTART_INTERVAL);
        }
    }

    fn check_attempt(&mut self) {
        let Some((child, since)) = &mut self.running else { return };
        self.failed = match child.try_wait() {
            Ok(None) if since.elapsed() < ATTEMPT_TIMEOUT => return,
            Ok(Some(status)) if status.success() => None,
            Ok(Some(_)) => Some(output::tail(&self.folder.log(LOG), 1)),
            Ok(None) => Some(format!("it took longer than {} s and was stopped", ATTEMPT_TIMEOUT.as_secs())),
            Err(error) => Some(error.to_string()),
        };
        // A child that still lives is killed when it is dropped.
        self.running = None;
        let _ = output::keep_bounded(&self.folder.log(LOG));
    }

    /// The attempt is this program itself, which can open connections.
    fn start(&self) -> std::io::Result<Child> {
        own_program(&self.folder, &self.folder.log(LOG))?
            .args(["supervise", "--folder", self.folder.root().as_str(), "--certificate"])
            .spawn()
    }
}

/// Makes one attempt to order or renew the certificate of a site, if that is due and no other process does. Blocks.
pub fn renew_certificate(folder: &camino::Utf8Path) -> Result<(), String> {
    let folder = SiteFolder::at(folder);
    let _sole = match lock::take(&folder.lock(ACME_LOCK)) {
        Ok(held) => held,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(acme::renew(&folder))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use textnlp_keys::acme::AcmeOrder;
    use textnlp_keys::files;
    use textnlp_provider::{SecretName, SecretRef, SecretVersion};

    use super::*;

    #[tokio::test]
    async fn missing_certificate_is_ordered_and_a_failure_is_in_the_status() {
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(&camino::Utf8Path::from_path(dir.path()).unwrap().join("sites/here"));
        files::make_folder(&folder.join("log")).unwrap();
        let mut notes = Notes::open(folder.log("supervisor"));
        let mut renewal = PublicRenewal::new(&folder);
        renewal.look(Timestamp::now(), &mut notes);
        assert!(renewal.status().is_empty() && renewal.running.is_none(), "without an order there is nothing to do");

        let order = AcmeOrder {
            directory: "https://127.0.0.1:1/directory".to_owned(),
            names: vec!["text.example.com".to_owned()],
            email: None,
            ca_file: None,
            proxy: BTreeMap::new(),
            account_key: SecretRef {
                name: SecretName("here/acme-account".to_owned()),
                version: SecretVersion("1".to_owned()),
            },
        };
        order.write(&folder).unwrap();
        let failure = serde_json::json!({
            "at": Timestamp::now(), "says": "no valid A records", "problem": "dns", "is_throttled": false,
            "directory": order.directory, "names": order.names,
        });
        let later = Timestamp::now() + jiff::SignedDuration::from_mins(5);
        let record = serde_json::json!({ "attempts": 1, "not_before": later, "failure": failure });
        files::put(&folder.join("certs/acme-record.json"), record.to_string().as_bytes(), 0o600).unwrap();
        renewal.look(Timestamp::now(), &mut notes);
        assert_eq!(renewal.status()[0].error.as_deref(), Some("no valid A records"));
        assert!(renewal.running.is_none(), "it waits");
        renewal.look(later, &mut notes);
        assert!(renewal.running.is_some() && renewal.status()[0].not_after.is_none());
    }
}
