//! The certificate of a public authority, ordered by ACME (RFC 8555) with the challenge TLS-ALPN-01 (RFC 8737).
//!
//! `up` writes the order. The supervisor starts [`renew`] in a process of its own when [`PublicCertificate::is_due`]. The
//! record of each attempt is durable before its first request.

mod attempt;
mod transport;

use std::collections::BTreeMap;
use std::time::Duration;

use camino::Utf8PathBuf;
use instant_acme::HttpClient;
use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use textnlp_provider::{Secret, SecretRef, SecretStore};

use crate::files;
use crate::layout::SiteFolder;
use crate::secret_store::FileSecretStore;
use crate::trust::{self, CertificateInfo};

/// Private key and chain in one file, so that a reader never sees a certificate with another key.
pub const PUBLIC_CERTIFICATE_FILE: &str = "certs/public.pem";
/// The folder of the certificates that answer open challenges, `NAME.pem`.
pub const CHALLENGES: &str = "certs/challenges";
const ORDER_FILE: &str = "certs/acme.json";
const RECORD_FILE: &str = "certs/acme-record.json";
/// The private key of the order in progress.
const KEY_FILE: &str = "certs/acme-key.pem";

/// The pause after the first attempt; it doubles up to [`PAUSE_MAX`]. Let's Encrypt allows five failed validations of a
/// name per account and hour (<https://letsencrypt.org/docs/rate-limits/>); these pauses make four.
const PAUSE: SignedDuration = SignedDuration::from_mins(5);
const PAUSE_MAX: SignedDuration = SignedDuration::from_hours(6);
/// The longest `Retry-After` that is waited for. The longest limits of Let's Encrypt are per week.
const RETRY_AFTER_MAX: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Timeout of one attempt. The pauses of [`attempt`] are shorter.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(240);

/// The fixes for what an authority refuses, by the type of the problem (RFC 8555, 6.7).
const FIXES: [(&str, &str); 11] = [
    ("caa", "allow the authority in the CAA record of the name, or remove that record"),
    ("connection", "let port 443 of every address of the name reach the port of the gateway, from the whole internet"),
    ("dns", "create an A or AAAA record of the name with the address of this machine"),
    ("externalAccountRequired", "choose another `tls.directory`: external account binding is not supported"),
    ("invalidContact", "correct `tls.email`, or remove it"),
    ("rateLimited", "wait: the supervisor orders again when the authority allows it"),
    ("rejectedIdentifier", "remove the name from `tls.names`: the authority does not certify it"),
    ("tls", "let port 443 of the name reach the gateway itself: a proxy that ends TLS cannot pass the challenge on"),
    ("unauthorized", "let the name point to this machine only, and port 443 reach the gateway itself"),
    ("unsupportedContact", "correct `tls.email`, or remove it"),
    ("userActionRequired", "accept the new terms of service of the authority as its answer says"),
];

/// The input of a public certificate: the spec of its resource, and the file that the supervisor reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcmeOrder {
    /// The URL of the authority's directory.
    pub directory: String,
    /// DNS names, sorted.
    pub names: Vec<String>,
    /// The contact address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// A certificate authority to trust for the directory, besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<Utf8PathBuf>,
    /// The environment's proxies, as `HTTPS_PROXY` and `NO_PROXY`. They override the process's variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proxy: BTreeMap<String, ProxyAddress>,
    /// The private key of the account.
    pub account_key: SecretRef,
}

/// The address of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProxyAddress {
    /// The whole address is a secret.
    Secret(SecretRef),
    /// An address without a secret.
    Plain(String),
}

/// What is known of account, order and certificate between two attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Record {
    account: Option<AccountRecord>,
    /// The order in progress.
    order: Option<OrderRecord>,
    issued: Option<IssuedRecord>,
    /// Attempts since the last certificate.
    attempts: u32,
    /// The earliest time of the next attempt.
    not_before: Option<Timestamp>,
    failure: Option<AcmeFailure>,
}

/// An account. Another directory or another key has another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct AccountRecord {
    directory: String,
    key: SecretRef,
    email: Option<String>,
    url: String,
}

/// An order in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OrderRecord {
    directory: String,
    names: Vec<String>,
    /// `None` until the authority answered.
    url: Option<String>,
}

/// The installed certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct IssuedRecord {
    directory: String,
    sha256: String,
}

/// Why the last attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeFailure {
    /// When it failed.
    pub at: Timestamp,
    /// The reason, in the words of the authority if it answered.
    pub says: String,
    /// The type of the authority's problem, such as `rateLimited`.
    problem: Option<String>,
    /// Whether the authority named the time of the next attempt.
    is_throttled: bool,
    /// The directory and the names of the order that failed.
    directory: String,
    names: Vec<String>,
}

impl AcmeFailure {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        let known = FIXES.iter().find(|(problem, _)| self.problem.as_deref() == Some(*problem));
        let other = match self.problem {
            Some(_) => "do what the answer of the authority says, then run `up` again",
            None => "check that this machine reaches `tls.directory`, then run `up` again",
        };
        known.map_or(other, |(_, fix)| *fix)
    }
}

/// The public certificate of a site, with its order and its record.
#[derive(Debug)]
pub struct PublicCertificate {
    folder: SiteFolder,
    order: AcmeOrder,
    record: Record,
    /// The installed certificate, if it is that of the order and not expired.
    info: Option<CertificateInfo>,
}

impl AcmeOrder {
    /// Writes the order, which the supervisor then carries out.
    pub fn write(&self, folder: &SiteFolder) -> Result<(), String> {
        write(folder, ORDER_FILE, self)
    }
}

impl PublicCertificate {
    /// Reads a site's order, record and certificate; `None` without an order.
    pub fn read(folder: &SiteFolder, now: Timestamp) -> Result<Option<Self>, String> {
        let Some(order) = read::<AcmeOrder>(folder, ORDER_FILE)? else { return Ok(None) };
        let record = read(folder, RECORD_FILE)?.unwrap_or_default();
        let mut found = Self { folder: folder.clone(), order, record, info: None };
        found.info = found.installed(now);
        Ok(Some(found))
    }

    fn installed(&self, now: Timestamp) -> Option<CertificateInfo> {
        let issued = self.record.issued.as_ref().filter(|issued| issued.directory == self.order.directory)?;
        let pem = files::read_bounded(&self.folder.join(PUBLIC_CERTIFICATE_FILE), files::TEXT_MAX).ok()?;
        let key = Secret::new(pem.clone());
        let info = trust::inspect(&pem, None, Some(&key)).ok()?;
        let is_good = info.sha256 == issued.sha256
            && info.key_matches == Some(true)
            && info.names == self.order.names
            && info.not_after > now;
        is_good.then_some(info)
    }

    /// The order.
    pub fn order(&self) -> &AcmeOrder {
        &self.order
    }

    /// The installed certificate; `None` if it is missing, expired, or of another order.
    pub fn info(&self) -> Option<&CertificateInfo> {
        self.info.as_ref()
    }

    /// Why the last attempt failed, if it did.
    pub fn failure(&self) -> Option<&AcmeFailure> {
        self.record.failure.as_ref()
    }

    /// When it is renewed: at two thirds of its lifetime, less up to a day in 24. The fingerprint decides how much, so
    /// that sites that were certified together are not renewed together.
    pub fn renew_at(&self) -> Option<Timestamp> {
        let info = self.info.as_ref()?;
        let share = u8::from_str_radix(info.sha256.get(..2)?, 16).ok()?;
        let earlier = info.not_after.duration_since(info.not_before) / 24 / 256 * i32::from(share);
        info.renew_at().checked_sub(earlier).ok()
    }

    /// Whether an attempt is due. After a clock was set back, it does not wait for a time of the future.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let is_paused = |at: Timestamp| now < at && at.duration_since(now) <= RETRY_AFTER_MAX;
        let is_wanted = match &self.info {
            None => true,
            Some(info) => now < info.not_before || self.renew_at().is_none_or(|at| now >= at),
        };
        is_wanted && !self.record.not_before.is_some_and(is_paused)
    }

    /// Ends the pause after a failure, for an operator who fixed its cause. A wait that the authority named stays while
    /// the same is ordered.
    pub fn retry_now(&mut self) -> Result<(), String> {
        let is_same =
            |failure: &AcmeFailure| failure.directory == self.order.directory && failure.names == self.order.names;
        if self.record.failure.as_ref().is_some_and(|failure| failure.is_throttled && is_same(failure)) {
            return Ok(());
        }
        (self.record.not_before, self.record.failure) = (None, None);
        self.write_record()
    }

    fn write_record(&self) -> Result<(), String> {
        write(&self.folder, RECORD_FILE, &self.record)
    }

    /// Counts an attempt, with the pause before the next one.
    fn count_attempt(&mut self, now: Timestamp) {
        self.record.attempts = self.record.attempts.saturating_add(1);
        self.record.not_before = now.checked_add(pause(self.record.attempts)).ok();
    }

    /// Orders and installs a certificate. The old one stays in use until then, and after a failure.
    async fn renew(
        &mut self,
        account_key: &Secret,
        client: Box<dyn HttpClient>,
        now: Timestamp,
    ) -> Result<(), AcmeFailure> {
        // Before the first request: a process that dies meanwhile has made an attempt, and the next one waits.
        self.count_attempt(now);
        let attempted: Result<String, attempt::Refusal> = match self.write_record() {
            Err(why) => Err(why.into()),
            Ok(()) => match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt::obtain(self, account_key, client)).await {
                Ok(attempted) => attempted,
                Err(_) => Err(format!("there was no certificate within {} s", ATTEMPT_TIMEOUT.as_secs()).into()),
            },
        };
        // Nothing answers when no challenge is open. A folder that stays is removed by the next attempt.
        let _ = files::remove_tree(&self.folder.join(CHALLENGES));
        let refusal = match attempted {
            Ok(sha256) => {
                let issued = Some(IssuedRecord { directory: self.order.directory.clone(), sha256 });
                self.record = Record { account: self.record.account.take(), issued, ..Record::default() };
                match self.write_record() {
                    Ok(()) => {
                        // Last: until the record is durable, the same order can be fetched again with it.
                        let _ = files::remove_file(&self.folder.join(KEY_FILE));
                        return Ok(());
                    }
                    Err(why) => why.into(),
                }
            }
            Err(refusal) => refusal,
        };
        Err(self.failed(refusal, now))
    }

    /// Records why there is no certificate, and how long the authority asks to wait.
    fn failed(&mut self, refusal: attempt::Refusal, now: Timestamp) -> AcmeFailure {
        let asked = refusal
            .retry_after
            .map(|after| SignedDuration::try_from(after).map_or(RETRY_AFTER_MAX, |after| after.min(RETRY_AFTER_MAX)));
        // The attempt took a while.
        let asked = asked.and_then(|after| now.max(Timestamp::now()).checked_add(after).ok());
        self.record.not_before = self.record.not_before.max(asked);
        let failure = AcmeFailure {
            at: Timestamp::now(),
            says: refusal.says,
            problem: refusal.problem,
            is_throttled: asked.is_some(),
            directory: self.order.directory.clone(),
            names: self.order.names.clone(),
        };
        self.record.failure = Some(failure.clone());
        // The reason of the attempt matters more than that of its record.
        let _ = self.write_record();
        failure
    }
}

/// Orders or renews the public certificate of a site if that is due. One process at a time.
pub async fn renew(folder: &SiteFolder) -> Result<(), String> {
    let now = Timestamp::now();
    let Some(mut certificate) = PublicCertificate::read(folder, now)?.filter(|found| found.is_due(now)) else {
        return Ok(());
    };
    let secrets = FileSecretStore::new(folder.state().join("secrets"));
    let order = certificate.order.clone();
    let account_key = secrets.get(&order.account_key).await.map_err(|error| textnlp_provider::error_chain(&error));
    let client = transport::Client::new(&order, &secrets).await;
    let renewed = match (account_key, client) {
        (Ok(account_key), Ok(client)) => certificate.renew(&account_key, Box::new(client), now).await,
        (Err(why), _) | (_, Err(why)) => {
            certificate.count_attempt(now);
            Err(certificate.failed(why.into(), now))
        }
    };
    renewed.map_err(|failure| failure.says)
}

/// Removes everything that belongs to a site's public certificate. The order first: without it nothing is renewed.
pub fn remove(folder: &SiteFolder) -> std::io::Result<()> {
    for file in [ORDER_FILE, RECORD_FILE, KEY_FILE, PUBLIC_CERTIFICATE_FILE] {
        files::remove_file(&folder.join(file))?;
    }
    files::remove_tree(&folder.join(CHALLENGES))
}

/// The files of a backup: with them another machine goes on with the same certificate.
pub fn backed_up(folder: &SiteFolder) -> [Utf8PathBuf; 2] {
    [PUBLIC_CERTIFICATE_FILE, RECORD_FILE].map(|file| folder.join(file))
}

fn pause(attempts: u32) -> SignedDuration {
    let factor = 1i32.checked_shl(attempts.saturating_sub(1).min(16)).unwrap_or(i32::MAX);
    PAUSE.checked_mul(factor).unwrap_or(PAUSE_MAX).min(PAUSE_MAX)
}

fn read<T: DeserializeOwned>(folder: &SiteFolder, file: &str) -> Result<Option<T>, String> {
    match files::read_bounded(&folder.join(file), files::TEXT_MAX) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| format!("read {file}: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("read {file}: {error}")),
    }
}

fn write(folder: &SiteFolder, file: &str, value: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| format!("write {file}: {error}"))?;
    put(folder, file, &text)
}

/// Writes a file that only the owner reads.
fn put(folder: &SiteFolder, file: &str, bytes: &[u8]) -> Result<(), String> {
    let path = folder.join(file);
    let parent = path.parent().unwrap_or(folder.root());
    let written = files::make_folder(parent).and_then(|()| files::put(&path, bytes, 0o600));
    written.map_err(|error| format!("write {file}: {error}"))
}

#[cfg(test)]
mod tests;
