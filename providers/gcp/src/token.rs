//! The access token of all calls: renewed shortly before its end, of the credentials that were found or of a service account that
//! they impersonate.

use std::time::{Duration, SystemTime};

use base64::Engine;
use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};
use textnlp_net::client::read_body;
use textnlp_provider::connect::Bearer;
use textnlp_provider::{Error, ErrorKind, Result, Secret};
use textnlp_token::{SignIn, token};
use tokio::sync::Mutex;

use crate::access::Access;
use crate::answer::Failure;
use crate::service::{Endpoints, Service};

/// How long before its end a token is renewed.
const BEFORE_END: Duration = Duration::from_secs(60);
/// The lifetime of a token whose end is not known.
const USUAL: Duration = Duration::from_secs(600);
/// The lifetime that is asked for: the most without an organization policy.
const LIFETIME: &str = "3600s";
/// How old a refused token must be for another one to be worth a call.
const FRESH: Duration = Duration::from_secs(60);
/// The longest answer with a token, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Role bindings in a cluster use e-mail addresses, which a token contains only with the second scope.
const SCOPES: [&str; 2] =
    ["https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/userinfo.email"];

/// The tokens of one identity.
#[derive(Debug)]
pub(crate) struct Tokens {
    access: Access,
    http: Client,
    endpoints: Endpoints,
    cached: Mutex<Option<Cached>>,
}

#[derive(Debug, Clone)]
struct Cached {
    token: Secret,
    ends: SystemTime,
    fetched: SystemTime,
}

impl Tokens {
    pub(crate) fn new(access: Access, http: Client, endpoints: Endpoints) -> Self {
        Self { access, http, endpoints, cached: Mutex::new(None) }
    }

    /// A token that lasts for a while.
    pub(crate) async fn bearer(&self) -> Result<Bearer> {
        let mut cached = self.cached.lock().await;
        if let Some(found) = cached.as_ref().filter(|one| one.ends > SystemTime::now() + BEFORE_END) {
            return Ok(Bearer { token: found.token.clone(), ends: found.ends });
        }
        let found = token(&SignIn::Gcp, &self.access.all_variables()).await?;
        let ends = found.ends().map_or_else(|| SystemTime::now() + USUAL, SystemTime::from);
        let mut bearer = Bearer { token: found.secret().clone(), ends };
        if let Some(account) = &self.access.impersonate {
            bearer = self.impersonated(account, &bearer).await?;
        }
        *cached = Some(Cached { token: bearer.token.clone(), ends: bearer.ends, fetched: SystemTime::now() });
        Ok(bearer)
    }

    /// Takes note that a call was refused as unauthenticated: whether the next call gets another token.
    pub(crate) async fn refused(&self) -> bool {
        let mut cached = self.cached.lock().await;
        let age = cached.as_ref().and_then(|one| one.fetched.elapsed().ok()).unwrap_or_default();
        *cached = None;
        age > FRESH
    }

    /// An ID token of an account for the service at this address, which lasts for an hour
    /// (<https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateIdToken>).
    pub(crate) async fn identity(&self, account: &str, address: &str) -> Result<Secret> {
        let body = json!({ "audience": address, "includeEmail": true });
        let answer = self.generated(account, "generateIdToken", &body, &self.bearer().await?).await?;
        token_in(&answer["token"]).ok_or_else(|| without_token(account))
    }

    /// <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken>
    async fn impersonated(&self, account: &str, source: &Bearer) -> Result<Bearer> {
        let body = json!({ "scope": SCOPES, "lifetime": LIFETIME });
        let answer = self.generated(account, "generateAccessToken", &body, source).await?;
        let token = token_in(&answer["accessToken"]).ok_or_else(|| without_token(account))?;
        let ends = answer["expireTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        let ends = ends.map_or_else(|| SystemTime::now() + USUAL, SystemTime::from);
        Ok(Bearer { token, ends })
    }

    /// Credentials of a service account.
    async fn generated(&self, account: &str, method: &str, body: &Value, source: &Bearer) -> Result<Value> {
        let failed = |kind| Error::new(kind, "impersonate", account.to_owned());
        let hint = format!("grant your identity `roles/iam.serviceAccountTokenCreator` on {account}");
        if !is_account(account) {
            let why = "it is not the e-mail address of a service account";
            return Err(failed(ErrorKind::Invalid).because(why).hint("set `account.existing_role` to one"));
        }
        let path = format!("projects/-/serviceAccounts/{account}:{method}");
        let request = self
            .http
            .post(self.endpoints.url(Service::IamCredentials, &path)?)
            .bearer_auth(source.token.expose_text().unwrap_or_default())
            .json(body);
        let lost = |error: reqwest::Error| failed(ErrorKind::Unavailable).because(error.without_url());
        let response = request.send().await.map_err(lost)?;
        let status = response.status().as_u16();
        let body = read_body(response, MAX_ANSWER_BYTES).await;
        let body = Secret::new(body.map_err(|error| failed(ErrorKind::Unavailable).because(error))?);
        let answer: Value = serde_json::from_slice(body.expose()).unwrap_or_default();
        if status >= 400 {
            let error = Failure::of_answer(status, &answer).error(Service::IamCredentials, "impersonate", account);
            return Err(if error.kind == ErrorKind::Denied { error.hint(hint) } else { error });
        }
        Ok(answer)
    }
}

/// The token in a member of an answer.
fn token_in(member: &Value) -> Option<Secret> {
    let token = member.as_str().filter(|token| !token.is_empty())?;
    token.bytes().all(|byte| byte.is_ascii_graphic()).then(|| Secret::new(token))
}

fn without_token(account: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "impersonate", account.to_owned()).because("the answer has no token")
}

/// Whether a text is the e-mail address of a service account, which becomes a part of a path.
pub(crate) fn is_account(email: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    email.len() <= 200 && email.split('@').filter(|part| !part.is_empty()).count() == 2 && email.bytes().all(fits)
}

/// The PEM in a field of an answer, which has it in base64.
pub(crate) fn pem(encoded: &str) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    String::from_utf8(bytes).ok().filter(|text| text.contains("BEGIN CERTIFICATE"))
}
