//! Certificates are renewed when two thirds of their lifetime are over; their programs are notified by SIGHUP.

use jiff::Timestamp;
use textnlp_keys::{
    FileSecretStore, Order, SiteFolder,
    files::{self, Stamp},
    reissue, renewal_order, trust,
};
use textnlp_provider::SecretStore;

use super::control::CertificateStatus;
use super::output::Notes;

/// Retry interval after a failure.
const RETRY_SECONDS: i64 = 60;

/// The last observation of the site's certificate.
pub(super) struct Renewal {
    folder: SiteFolder,
    secrets: FileSecretStore,
    observed: Option<(Option<Stamp>, Option<Stamp>)>,
    seen: Option<CertificateStatus>,
    /// The earliest time of the next attempt.
    not_before: Option<Timestamp>,
    /// The start of the certificate's validity.
    valid_from: Option<Timestamp>,
}

impl Renewal {
    pub(super) fn new(folder: &SiteFolder) -> Self {
        let secrets = FileSecretStore::new(folder.state().join("secrets"));
        Self { folder: folder.clone(), secrets, observed: None, seen: None, not_before: None, valid_from: None }
    }

    pub(super) fn status(&self) -> Vec<CertificateStatus> {
        self.seen.iter().cloned().collect()
    }

    /// Whether the last check found a problem.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.error.is_some())
    }

    /// Checks the certificate when its file changed, and renews it when that is due. After a clock was set back, it
    /// replaces a certificate of the future and retries without waiting for that time.
    pub(super) async fn look(&mut self, now: Timestamp, notes: &mut Notes) {
        let Ok(bytes) = files::read_bounded(&renewal_order(&self.folder), files::TEXT_MAX) else {
            // Without an order nothing is renewed: the certificate is user-provided, or not issued yet.
            self.seen = None;
            self.observed = None;
            self.valid_from = None;
            return;
        };
        let order: Order = match serde_json::from_slice(&bytes) {
            Ok(order) => order,
            Err(error) => return self.failed("certs/renewal.json", now, error.to_string(), notes),
        };
        let stamp = |path: &str| Stamp::of(&self.folder.join(path)).ok().flatten();
        let stamps = (stamp("certs/renewal.json"), stamp(&order.certificate_file));
        if self.observed != Some(stamps) {
            self.observed = Some(stamps);
            self.read(&order, now, notes);
        }
        let due = self.seen.as_ref().and_then(|seen| seen.renew_at).is_some_and(|at| now >= at)
            || self.valid_from.is_some_and(|at| now < at);
        let paused = |at: Timestamp| now < at && at.duration_since(now).as_secs() <= RETRY_SECONDS;
        if !due || self.not_before.is_some_and(paused) {
            return;
        }
        match self.renew(&order, now).await {
            Ok(()) => {
                notes.say(&format!("certificate {} renewed", order.certificate_file));
                self.read(&order, now, notes);
                self.observed = None;
            }
            Err(why) => self.failed(&order.certificate_file, now, why, notes),
        }
    }

    fn read(&mut self, order: &Order, now: Timestamp, notes: &mut Notes) {
        let read = files::read_bounded(&self.folder.join(&order.certificate_file), files::TEXT_MAX)
            .map_err(|error| error.to_string())
            .and_then(|pem| trust::inspect(&pem, None, None).map_err(|error| error.to_string()));
        match read {
            Ok(seen) => {
                self.not_before = None;
                self.valid_from = Some(seen.not_before);
                self.seen = Some(CertificateStatus {
                    file: order.certificate_file.clone(),
                    not_after: Some(seen.not_after),
                    renew_at: Some(seen.renew_at()),
                    error: None,
                });
            }
            // A missing or broken file is drift, which `up` repairs; renewal handles age only.
            Err(why) => self.failed(&order.certificate_file, now, why, notes),
        }
    }

    async fn renew(&self, order: &Order, now: Timestamp) -> Result<(), String> {
        let authority_key = self.secrets.get(&order.authority_key).await.map_err(|error| error.to_string())?;
        reissue(&self.folder, order, &authority_key, now)
    }

    fn failed(&mut self, file: &str, now: Timestamp, why: String, notes: &mut Notes) {
        let known = self.seen.take();
        if known.as_ref().and_then(|seen| seen.error.as_ref()) != Some(&why) {
            notes.say(&format!("certificate {file}: {why}"));
        }
        self.not_before = now.checked_add(jiff::SignedDuration::from_secs(RETRY_SECONDS)).ok();
        let (not_after, renew_at) = known.map_or((None, None), |seen| (seen.not_after, seen.renew_at));
        self.seen = Some(CertificateStatus { file: file.to_owned(), not_after, renew_at, error: Some(why) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use camino::Utf8Path;
    use jiff::SignedDuration;
    use textnlp_provider::{SecretName, SecretRef, SecretVersion};

    /// A site with an authority and a certificate of thirty days, issued at `now`.
    struct Site {
        _dir: tempfile::TempDir,
        folder: SiteFolder,
        ca: String,
    }

    impl Site {
        async fn new(now: Timestamp) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let state = Utf8Path::from_path(dir.path()).unwrap();
            let folder = SiteFolder::at(&state.join("sites/here"));
            for name in ["certs", "log"] {
                files::make_folder(&folder.join(name)).unwrap();
            }
            let authority_key = trust::new_key().unwrap();
            let secret =
                SecretRef { name: SecretName("here/ca-key".to_owned()), version: SecretVersion("1".to_owned()) };
            let store = FileSecretStore::new(state.join("secrets"));
            store.put(&secret.name, &secret.version, &authority_key).await.unwrap();
            let ca = trust::authority(&authority_key, "a", &[], 3650, now).unwrap();
            files::put(&folder.join("certs/ca.pem"), ca.as_bytes(), 0o644).unwrap();
            files::put(&folder.join("certs/key.pem"), trust::new_key().unwrap().expose(), 0o600).unwrap();
            let order = Order {
                names: vec!["localhost".to_owned()],
                days: 30,
                certificate_file: "certs/cert.pem".to_owned(),
                key_file: "certs/key.pem".to_owned(),
                ca_file: "certs/ca.pem".to_owned(),
                authority_key: secret,
            };
            files::put(&renewal_order(&folder), &serde_json::to_vec(&order).unwrap(), 0o600).unwrap();
            reissue(&folder, &order, &authority_key, now).unwrap();
            Self { _dir: dir, folder, ca }
        }

        fn certificate(&self) -> trust::CertificateInfo {
            let pem = std::fs::read(self.folder.join("certs/cert.pem")).unwrap();
            trust::inspect(&pem, Some(self.ca.as_bytes()), None).unwrap()
        }
    }

    #[tokio::test]
    async fn certificate_is_renewed_after_two_thirds_of_its_lifetime() {
        let now = Timestamp::now();
        let site = Site::new(now).await;
        let first = site.certificate();
        let mut notes = Notes::open(site.folder.log("supervisor"));
        let mut renewal = Renewal::new(&site.folder);
        renewal.look(now + SignedDuration::from_hours(19 * 24), &mut notes).await;
        assert_eq!(site.certificate(), first);
        renewal.look(now + SignedDuration::from_hours(21 * 24), &mut notes).await;
        let second = site.certificate();
        assert_ne!(second.sha256, first.sha256);
        assert_eq!(second.signed, Some(true));
        assert_eq!(renewal.status()[0].not_after, Some(second.not_after));
        assert_eq!(renewal.status()[0].error, None);

        std::fs::remove_dir_all(site.folder.state().join("secrets")).unwrap();
        renewal.look(now + SignedDuration::from_hours(90 * 24), &mut notes).await;
        assert!(renewal.status()[0].error.as_ref().unwrap().contains("ca-key"), "{:?}", renewal.status());
        assert_eq!(site.certificate(), second, "the old one stays when no new one can be had");
    }

    #[tokio::test]
    async fn clock_jump_keeps_a_valid_certificate() {
        let now = Timestamp::now();
        let site = Site::new(now).await;
        let first = site.certificate();
        let mut notes = Notes::open(site.folder.log("supervisor"));
        let mut renewal = Renewal::new(&site.folder);
        renewal.look(now, &mut notes).await;
        // Back a few minutes is what certificates are dated back for.
        renewal.look(now - SignedDuration::from_mins(1), &mut notes).await;
        assert_eq!(site.certificate(), first);
        let holds = |at: Timestamp| {
            let seen = site.certificate();
            seen.not_before <= at && at < seen.not_after
        };
        let year = SignedDuration::from_hours(365 * 24);
        for at in [now + year, now, now - SignedDuration::from_hours(24), now + year, now] {
            renewal.look(at, &mut notes).await;
            assert!(holds(at), "at {at}: {:?}", site.certificate());
        }
        // A try that failed in the future does not keep the next one waiting until then.
        let secrets = site.folder.state().join("secrets");
        std::fs::rename(&secrets, secrets.with_extension("away")).unwrap();
        renewal.look(now + year, &mut notes).await;
        std::fs::rename(secrets.with_extension("away"), &secrets).unwrap();
        renewal.look(now + year - SignedDuration::from_hours(24), &mut notes).await;
        assert!(holds(now + year - SignedDuration::from_hours(24)), "{:?}", renewal.status());
    }
}
