//! One attempt to get a certificate: account, order, challenges, certificate. It resumes the order of the attempt before.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use instant_acme::{
    Account, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeStatus, ChallengeType, Error, HttpClient,
    Identifier, Key, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use jiff::Timestamp;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use textnlp_net::retry::parse_retry_after;
use textnlp_provider::Secret;

use super::{AccountRecord, CHALLENGES, KEY_FILE, OrderRecord, PUBLIC_CERTIFICATE_FILE, PublicCertificate, put};
use crate::files;
use crate::trust;

/// How long the authority is polled for a validation, and for the certificate.
const POLL: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(90));

/// The prefix of the types of problems (RFC 8555, 6.7).
const PROBLEM: &str = "urn:ietf:params:acme:error:";

/// Why there is no certificate.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) says: String,
    pub(super) problem: Option<String>,
    /// The wait that the authority asks for.
    pub(super) retry_after: Option<Duration>,
}

impl From<String> for Refusal {
    fn from(says: String) -> Self {
        Self { says, problem: None, retry_after: None }
    }
}

impl From<trust::CertificateError> for Refusal {
    fn from(error: trust::CertificateError) -> Self {
        error.to_string().into()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => Self::from(&problem),
            other => textnlp_provider::error_chain(&other).into(),
        }
    }
}

impl From<&Problem> for Refusal {
    fn from(problem: &Problem) -> Self {
        let kind = problem.r#type.as_deref().map(|kind| kind.strip_prefix(PROBLEM).unwrap_or(kind).to_owned());
        let mut says = problem.detail.clone().unwrap_or_else(|| problem.to_string());
        for part in &problem.subproblems {
            says.push_str(&format!("; {part}"));
        }
        Self { says, problem: kind, retry_after: None }
    }
}

/// Obtains and installs a certificate; gives its fingerprint.
pub(super) async fn obtain(
    site: &mut PublicCertificate,
    account_key: &Secret,
    client: Box<dyn HttpClient>,
) -> Result<String, Refusal> {
    let retry_after: Arc<Mutex<Option<Duration>>> = Arc::default();
    let client = Box::new(WithRetryAfter { client, retry_after: Arc::clone(&retry_after) });
    let obtained = async {
        let account = account(site, account_key, client).await?;
        let (mut order, key) = match resumed(site, &account).await? {
            Some(resumed) => resumed,
            None => begun(site, &account).await?,
        };
        if order.state().status == OrderStatus::Pending {
            validate(site, &mut order).await?;
        }
        if order.state().status == OrderStatus::Ready {
            order.finalize_csr(&trust::request(&key, &site.order.names)?).await?;
        }
        let chain = order.poll_certificate(&POLL).await?;
        install(site, &key, &chain)
    };
    let obtained: Result<String, Refusal> = obtained.await;
    obtained.map_err(|refusal| {
        // A busy authority may ask for a wait with any problem.
        let retry_after = *retry_after.lock().unwrap_or_else(PoisonError::into_inner);
        if refusal.problem.as_deref() == Some("accountDoesNotExist") {
            site.record.account = None;
        }
        Refusal { retry_after, ..refusal }
    })
}

/// The account of the key. An existing one is found by its key, so this can be repeated.
async fn account(
    site: &mut PublicCertificate,
    account_key: &Secret,
    client: Box<dyn HttpClient>,
) -> Result<Account, Refusal> {
    let (order, builder) = (&site.order, Account::builder_with_http(client));
    let key = || trust::private_der(account_key).map(PrivatePkcs8KeyDer::from);
    let known = site
        .record
        .account
        .clone()
        .filter(|known| known.directory == order.directory && known.key == order.account_key);
    let (account, known_email) = match known {
        Some(known) => (builder.from_parts(known.url, key()?, order.directory.clone()).await?, known.email),
        None => {
            let signing = Key::from_pkcs8_der(key()?)?;
            let key = PrivateKeyDer::Pkcs8(key()?);
            let (account, _credentials) = builder.create_from_key((signing, key), order.directory.clone()).await?;
            (account, None)
        }
    };
    if known_email != order.email {
        let contact = order.email.as_ref().map(|email| format!("mailto:{email}"));
        let contacts: Vec<&str> = contact.iter().map(String::as_str).collect();
        account.update_contacts(&contacts).await?;
    }
    site.record.account = Some(AccountRecord {
        directory: order.directory.clone(),
        key: order.account_key.clone(),
        email: order.email.clone(),
        url: account.id().to_owned(),
    });
    site.write_record()?;
    Ok(account)
}

/// The order of an attempt that was interrupted, with its key. `None` when the authority has it no more.
async fn resumed(site: &PublicCertificate, account: &Account) -> Result<Option<(Order, Secret)>, Refusal> {
    let order = site.record.order.as_ref();
    let same = |order: &&OrderRecord| order.directory == site.order.directory && order.names == site.order.names;
    let Some(url) = order.filter(same).and_then(|order| order.url.clone()) else { return Ok(None) };
    let Ok(key) = files::read_bounded(&site.folder.join(KEY_FILE), files::TEXT_MAX) else { return Ok(None) };
    match account.order(url).await {
        Ok(mut order) => {
            let is_open = order.state().status != OrderStatus::Invalid;
            Ok(is_open.then(|| (order, Secret::new(key))))
        }
        Err(Error::Api(problem)) => {
            let refusal = Refusal::from(&problem);
            match (refusal.problem.as_deref(), problem.status) {
                // Expired, or of another account.
                (Some("malformed" | "unauthorized"), _) | (_, Some(404)) => Ok(None),
                _ => Err(refusal),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// A new order, recorded before and after the request. When the answer is lost, Let's Encrypt gives the same pending
/// order again (report letsencrypt/boulder#3290).
async fn begun(site: &mut PublicCertificate, account: &Account) -> Result<(Order, Secret), Refusal> {
    let key = trust::new_key()?;
    put(&site.folder, KEY_FILE, key.expose())?;
    let (directory, names) = (site.order.directory.clone(), site.order.names.clone());
    let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
    site.record.order = Some(OrderRecord { directory: directory.clone(), names: names.clone(), url: None });
    site.write_record()?;
    let order = account.new_order(&NewOrder::new(&identifiers)).await?;
    site.record.order = Some(OrderRecord { directory, names, url: Some(order.url().to_owned()) });
    site.write_record()?;
    Ok((order, key))
}

/// Answers the challenges of an order and waits until the authority has checked them.
async fn validate(site: &PublicCertificate, order: &mut Order) -> Result<(), Refusal> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        // A name that was validated before needs nothing; one that failed ends the order.
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let name = authorization.identifier().to_string();
        // It becomes the name of a file.
        if !site.order.names.contains(&name) {
            return Err(format!("the authority asks for a name that was not ordered: {name:?}").into());
        }
        let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
            return Err(format!("the authority does not offer the challenge TLS-ALPN-01 for {name}").into());
        };
        let answer = challenge.key_authorization();
        let certificate = trust::challenge(&name, answer.digest().as_ref())?;
        put(&site.folder, &format!("{CHALLENGES}/{name}.pem"), certificate.expose())?;
        if challenge.status == ChallengeStatus::Pending {
            challenge.set_ready().await?;
        }
    }
    let polled = order.poll_ready(&POLL).await;
    match polled {
        Ok(OrderStatus::Invalid) => Err(failed_challenges(order)
            .await
            .unwrap_or_else(|| Refusal::from("the authority ended the order and gave no reason".to_owned()))),
        Ok(_) => Ok(()),
        Err(Error::Api(problem)) => Err(failed_challenges(order).await.unwrap_or_else(|| Refusal::from(&problem))),
        Err(error) => Err(error.into()),
    }
}

/// What the authority says of the challenges that failed.
async fn failed_challenges(order: &mut Order) -> Option<Refusal> {
    let mut all: Option<Refusal> = None;
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let name = authorization.identifier().to_string();
        for problem in authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref()) {
            let one = Refusal::from(problem);
            let says = format!("{name}: {}", one.says);
            all = Some(match all {
                None => Refusal { says, ..one },
                Some(first) => Refusal { says: format!("{}; {says}", first.says), ..first },
            });
        }
    }
    all
}

/// Checks and installs a certificate; gives its fingerprint.
fn install(site: &mut PublicCertificate, key: &Secret, chain: &str) -> Result<String, Refusal> {
    let key_pem = key.expose_text().unwrap_or_default().trim_end();
    // The key first: it is read as the first block of the file.
    let text = Secret::new(format!("{key_pem}\n{}\n", chain.trim()));
    let checked = check(site, &text);
    if checked.is_err() {
        // Fetched again it would be the same.
        site.record.order = None;
    }
    let sha256 = checked?;
    put(&site.folder, PUBLIC_CERTIFICATE_FILE, text.expose())?;
    Ok(sha256)
}

/// Checks that key and chain are those of the order; gives the fingerprint.
fn check(site: &PublicCertificate, text: &Secret) -> Result<String, Refusal> {
    let seen = trust::inspect(text.expose(), None, Some(text))?;
    if seen.key_matches != Some(true) || seen.names != site.order.names {
        return Err(format!("the authority issued a certificate for {} instead", seen.names.join(", ")).into());
    }
    Ok(seen.sha256)
}

/// An HTTP client that keeps the `Retry-After` of the last response, which errors of `instant-acme` do not have.
struct WithRetryAfter {
    client: Box<dyn HttpClient>,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl HttpClient for WithRetryAfter {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (answered, retry_after) = (self.client.request(request), Arc::clone(&self.retry_after));
        Box::pin(async move {
            let response = answered.await?;
            let is_refused = response.parts.status.is_client_error() || response.parts.status.is_server_error();
            let text = response.parts.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let asked = text.filter(|_| is_refused).and_then(|text| parse_retry_after(text, Timestamp::now()));
            *retry_after.lock().unwrap_or_else(PoisonError::into_inner) = asked;
            let kind = response.parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            if is_refused && kind.is_none_or(|kind| !kind.contains("json")) {
                // A page of a proxy, which `instant-acme` would report as invalid JSON.
                return Err(Error::Other(format!("the answer is {}", response.parts.status).into()));
            }
            Ok(response)
        })
    }
}
