//! Orders at an authority in this process, which answers as RFC 8555 says. Pebble refuses nothing for its rate limits and
//! loses no connection; the whole run on Pebble is in `tests/tests/acme.rs`.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use instant_acme::{BodyWrapper, BytesResponse, Error};
use serde_json::{Value, json};
use textnlp_provider::{SecretName, SecretVersion};

use super::*;

const NAME: &str = "text.example.com";

/// What an authority answers in place of its usual answer.
#[derive(Clone)]
enum Fault {
    /// The connection is lost.
    Lost,
    /// A page of a proxy, with this status.
    Page(u16),
    /// A problem: status, type, detail.
    Problem(u16, &'static str, &'static str),
}

/// An authority that certifies what it is asked for, with an authority of its own.
#[derive(Default)]
struct State {
    asked: Vec<String>,
    faults: BTreeMap<&'static str, Fault>,
    status: &'static str,
    challenge: Value,
    /// The name that it validates, if it is not [`NAME`].
    validated: Option<&'static str>,
    /// The name that it certifies, if it is not [`NAME`].
    certified: Option<&'static str>,
}

#[derive(Clone)]
struct Authority {
    folder: SiteFolder,
    key: Secret,
    pem: String,
    state: Arc<Mutex<State>>,
}

impl Authority {
    fn new(folder: &SiteFolder, now: Timestamp) -> Self {
        let key = trust::new_key().unwrap();
        let pem = trust::authority(&key, "a", &[], 365, now).unwrap();
        Self { folder: folder.clone(), key, pem, state: Arc::default() }
    }

    fn fails(&self, path: &'static str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(path, fault);
    }

    fn recovers(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// How often a path was asked.
    fn count(&self, path: &str) -> usize {
        self.state.lock().unwrap().asked.iter().filter(|asked| *asked == path).count()
    }

    fn order(state: &State) -> Value {
        json!({
            "status": state.status, "authorizations": ["https://ca.test/authorization"],
            "finalize": "https://ca.test/finalize", "certificate": "https://ca.test/certificate",
        })
    }

    fn answer(&self, path: &str) -> Result<(u16, String), Error> {
        let mut state = self.state.lock().unwrap();
        state.asked.push(path.to_owned());
        match state.faults.get(path) {
            Some(Fault::Lost) => return Err(Error::Other("the connection was lost".into())),
            Some(Fault::Page(status)) => return Ok((*status, "<html>".to_owned())),
            Some(Fault::Problem(status, kind, detail)) => {
                let kind = format!("urn:ietf:params:acme:error:{kind}");
                return Ok((*status, json!({ "type": kind, "detail": detail, "status": status }).to_string()));
            }
            None => {}
        }
        let document = match path {
            "/directory" => json!({
                "newNonce": "https://ca.test/nonce", "newAccount": "https://ca.test/account",
                "newOrder": "https://ca.test/order",
            }),
            "/nonce" => json!({}),
            "/account" => json!({ "status": "valid" }),
            "/order" => {
                state.status = "pending";
                state.challenge = json!({
                    "type": "tls-alpn-01", "url": "https://ca.test/challenge", "token": "token", "status": "pending",
                });
                Self::order(&state)
            }
            "/order/1" => Self::order(&state),
            "/authorization" => json!({
                "identifier": { "type": "dns", "value": state.validated.unwrap_or(NAME) },
                "status": if state.status == "ready" { "valid" } else { state.status },
                "challenges": [state.challenge],
            }),
            "/challenge" => {
                let answer = std::fs::read(self.folder.join(&format!("{CHALLENGES}/{NAME}.pem"))).unwrap();
                let seen = trust::inspect(&answer, None, Some(&Secret::new(answer.clone()))).unwrap();
                assert_eq!((seen.names, seen.key_matches), (vec![NAME.to_owned()], Some(true)));
                if let Some(Fault::Problem(status, kind, detail)) = state.faults.get("validation").cloned() {
                    state.status = "invalid";
                    let kind = format!("urn:ietf:params:acme:error:{kind}");
                    state.challenge["status"] = json!("invalid");
                    state.challenge["error"] = json!({ "type": kind, "detail": detail, "status": status });
                } else {
                    state.status = "ready";
                    state.challenge["status"] = json!("valid");
                }
                let mut pending = state.challenge.clone();
                pending["error"] = Value::Null;
                pending
            }
            "/finalize" => {
                state.status = "valid";
                Self::order(&state)
            }
            "/certificate" => {
                let key = Secret::new(std::fs::read(self.folder.join(KEY_FILE)).unwrap());
                let names = [state.certified.unwrap_or(NAME).to_owned()];
                let pem = trust::issue(&self.pem, &self.key, &key, &names, 90, Timestamp::now()).unwrap();
                return Ok((200, pem + &self.pem));
            }
            other => panic!("nothing asks for {other}"),
        };
        Ok((200, document.to_string()))
    }
}

impl HttpClient for Authority {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let path = request.uri().path().to_owned();
        let answer = self.answer(&path);
        Box::pin(async move {
            let (status, body) = answer?;
            let mut response = Response::builder().status(status).header("replay-nonce", "nonce");
            if path == "/account" || path == "/order" {
                response = response.header("location", format!("https://ca.test{path}/1"));
            }
            if !body.starts_with('<') {
                response = response.header("content-type", "application/problem+json");
            }
            if status == 429 {
                response = response.header("retry-after", "7200");
            }
            let (parts, ()) = response.body(()).unwrap().into_parts();
            Ok(BytesResponse { parts, body: Box::new(Bytes::from(body)) })
        })
    }
}

struct Site {
    _dir: tempfile::TempDir,
    folder: SiteFolder,
    authority: Authority,
    account_key: Secret,
    now: Timestamp,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(&camino::Utf8Path::from_path(dir.path()).unwrap().join("sites/here"));
        let now = Timestamp::now();
        let authority = Authority::new(&folder, now);
        let site = Self { _dir: dir, folder, authority, account_key: trust::new_key().unwrap(), now };
        site.order("1").write(&site.folder).unwrap();
        site
    }

    fn order(&self, version: &str) -> AcmeOrder {
        let (name, version) = (SecretName("here/acme-account".to_owned()), SecretVersion(version.to_owned()));
        AcmeOrder {
            directory: "https://ca.test/directory".to_owned(),
            names: vec![NAME.to_owned()],
            email: None,
            ca_file: None,
            proxy: BTreeMap::new(),
            account_key: SecretRef { name, version },
        }
    }

    fn read(&self, now: Timestamp) -> PublicCertificate {
        PublicCertificate::read(&self.folder, now).unwrap().unwrap()
    }

    /// One attempt, by a process that has read the files again.
    async fn renew(&self, now: Timestamp) -> Result<(), AcmeFailure> {
        self.read(now).renew(&self.account_key, Box::new(self.authority.clone()), now).await
    }

    fn file(&self) -> Option<Vec<u8>> {
        std::fs::read(self.folder.join(PUBLIC_CERTIFICATE_FILE)).ok()
    }
}

#[tokio::test]
async fn certificate_is_ordered_once_and_renewed_at_two_thirds_of_its_lifetime() {
    let site = Site::new();
    assert!(site.read(site.now).is_due(site.now));
    site.renew(site.now).await.unwrap();
    let found = site.read(site.now);
    assert!(found.info().is_some() && found.failure().is_none() && !found.is_due(site.now));
    assert!(!site.folder.join(CHALLENGES).exists() && !site.folder.join(KEY_FILE).exists());
    let days = |at: Timestamp| at.duration_since(site.now).as_hours() / 24;
    assert!((55..=60).contains(&days(found.renew_at().unwrap())), "{:?}", found.renew_at());

    let first = site.file();
    let later = site.now + SignedDuration::from_hours(61 * 24);
    assert!(site.read(later).is_due(later));
    site.renew(later).await.unwrap();
    assert_ne!(site.file(), first);
    assert_eq!((site.authority.count("/account"), site.authority.count("/order")), (1, 2), "the account is kept");
    // Other names, or another authority, are another certificate.
    let order = AcmeOrder { names: vec!["other.example.com".to_owned()], ..site.order("1") };
    order.write(&site.folder).unwrap();
    assert!(site.read(site.now).is_due(site.now) && site.file().is_some(), "the old one stays until then");
}

#[tokio::test]
async fn interrupted_order_is_resumed() {
    let site = Site::new();
    site.authority.fails("/finalize", Fault::Lost);
    let failed = site.renew(site.now).await.unwrap_err();
    assert_eq!(failed.says, "the connection was lost");
    site.authority.recovers();
    let later = site.now + SignedDuration::from_mins(6);
    assert!(!site.read(site.now).is_due(site.now) && site.read(later).is_due(later));
    // A busy authority still has it.
    site.authority.fails("/order/1", Fault::Problem(503, "serverInternal", "busy"));
    assert_eq!(site.renew(later).await.unwrap_err().says, "busy");
    site.authority.recovers();
    site.renew(later).await.unwrap();
    assert_eq!((site.authority.count("/order"), site.authority.count("/challenge")), (1, 1));
    assert!(site.read(later).info().is_some());
}

#[tokio::test]
async fn order_that_the_authority_has_no_more_is_replaced() {
    let site = Site::new();
    site.authority.fails("/finalize", Fault::Lost);
    site.renew(site.now).await.unwrap_err();
    site.authority.recovers();
    site.authority.fails("/order/1", Fault::Problem(404, "malformed", "no such order"));
    site.renew(site.now).await.unwrap_err();
    assert_eq!(site.authority.count("/order"), 2);
}

#[tokio::test]
async fn process_that_dies_has_made_an_attempt() {
    let site = Site::new();
    site.authority.fails("/order", Fault::Lost);
    let mut died = site.read(site.now);
    drop(died.renew(&site.account_key, Box::new(site.authority.clone()), site.now).await);
    // Its failure was not recorded.
    died.record.failure = None;
    died.write_record().unwrap();
    assert!(!site.read(site.now).is_due(site.now));
}

#[tokio::test]
async fn rate_limit_is_waited_for_and_the_old_certificate_stays() {
    let site = Site::new();
    site.renew(site.now).await.unwrap();
    let first = site.file();
    let later = site.now + SignedDuration::from_hours(61 * 24);
    site.authority.fails("/order", Fault::Problem(429, "rateLimited", "too many certificates already issued"));
    let failed = site.renew(later).await.unwrap_err();
    assert_eq!(failed.says, "too many certificates already issued");
    assert!(failed.fix().starts_with("wait: "), "{}", failed.fix());
    assert_eq!(site.file(), first);
    let mut found = site.read(later);
    assert!(found.info().is_some(), "it is valid for a month");
    // An operator's `up` does not shorten the wait.
    found.retry_now().unwrap();
    let hour = SignedDuration::from_hours(1);
    assert!(!site.read(later + hour).is_due(later + hour) && site.read(later + hour * 3).is_due(later + hour * 3));
    // It begins with the answer, not with the attempt.
    let earlier = Timestamp::now() - hour;
    site.renew(earlier).await.unwrap_err();
    assert!(site.read(site.now).record.not_before.unwrap() >= site.now + hour * 2);
    // But it is no wait of another authority.
    let directory = "https://staging.test/directory".to_owned();
    AcmeOrder { directory, ..site.order("1") }.write(&site.folder).unwrap();
    assert!(!site.read(site.now).is_due(site.now));
    site.read(site.now).retry_now().unwrap();
    assert!(site.read(site.now).is_due(site.now) && site.read(site.now).failure().is_none());
}

#[tokio::test]
async fn failed_validation_is_reported_in_the_words_of_the_authority() {
    let site = Site::new();
    site.authority.fails("validation", Fault::Problem(400, "dns", "no valid A records found"));
    let failed = site.renew(site.now).await.unwrap_err();
    assert_eq!(failed.says, format!("{NAME}: no valid A records found"));
    assert!(failed.fix().contains("A or AAAA record"), "{}", failed.fix());
    assert!(site.file().is_none() && !site.folder.join(CHALLENGES).exists());
    assert_eq!(site.read(site.now).failure(), Some(&failed));
    // The operator creates the record and runs `up` again: the ended order is not resumed.
    site.authority.recovers();
    site.read(site.now).retry_now().unwrap();
    assert!(site.read(site.now).is_due(site.now));
    site.renew(site.now).await.unwrap();
    assert_eq!(site.authority.count("/order"), 2);
}

#[tokio::test]
async fn authority_does_not_choose_the_name_of_a_file() {
    let site = Site::new();
    for name in ["../ca", "other.example.com", "../../../ca"] {
        site.authority.state.lock().unwrap().validated = Some(name);
        let failed = site.renew(site.now).await.unwrap_err();
        assert!(failed.says.contains("was not ordered") && failed.says.contains(name), "{}", failed.says);
        assert!(!site.folder.join("certs/ca.pem").exists() && site.authority.count("/challenge") == 0);
    }
}

#[tokio::test]
async fn certificate_of_another_name_is_not_installed_and_ordered_again() {
    let site = Site::new();
    site.authority.state.lock().unwrap().certified = Some("other.example.com");
    let failed = site.renew(site.now).await.unwrap_err();
    assert!(failed.says.contains("for other.example.com instead"), "{}", failed.says);
    assert!(site.file().is_none());
    site.authority.state.lock().unwrap().certified = None;
    site.renew(site.now).await.unwrap();
    assert_eq!(site.authority.count("/order"), 2);
}

#[tokio::test]
async fn attempt_without_the_account_key_is_followed_by_a_pause() {
    let site = Site::new();
    renew(&site.folder).await.unwrap_err();
    let now = Timestamp::now();
    let found = site.read(now);
    assert!(found.failure().is_some() && !found.is_due(now));
    let later = now + SignedDuration::from_mins(6);
    assert!(site.read(later).is_due(later));
}

#[tokio::test]
async fn page_of_a_proxy_is_reported_by_its_status() {
    let site = Site::new();
    site.authority.fails("/order", Fault::Page(502));
    let failed = site.renew(site.now).await.unwrap_err();
    assert_eq!(failed.says, "the answer is 502 Bad Gateway");
}

#[tokio::test]
async fn fix_is_that_of_the_refusal() {
    let site = Site::new();
    let problem = |kind| Fault::Problem(400, kind, "no");
    for (fault, fix) in [
        (Fault::Lost, "reaches `tls.directory`"),
        (problem("invalidContact"), "`tls.email`"),
        (problem("unsupportedContact"), "`tls.email`"),
        (problem("badPublicKey"), "the answer of the authority"),
    ] {
        site.authority.fails("/account", fault);
        let failed = site.renew(site.now).await.unwrap_err();
        assert!(failed.fix().contains(fix), "{}", failed.fix());
    }
}

#[tokio::test]
async fn another_account_key_is_another_account_and_no_other_certificate() {
    let mut site = Site::new();
    site.renew(site.now).await.unwrap();
    (site.account_key, site.now) = (trust::new_key().unwrap(), Timestamp::now());
    site.order("2").write(&site.folder).unwrap();
    assert!(!site.read(site.now).is_due(site.now));
    site.renew(site.now).await.unwrap();
    assert_eq!(site.authority.count("/account"), 2);
}

#[test]
fn attempts_stay_below_the_limits_of_the_authority() {
    let mut at = SignedDuration::ZERO;
    let mut within_an_hour = 0;
    for attempt in 1..20 {
        within_an_hour += u32::from(at < SignedDuration::from_hours(1));
        at += pause(attempt);
    }
    assert!(within_an_hour <= 4, "{within_an_hour}");
    assert_eq!(pause(u32::MAX), PAUSE_MAX);
}
