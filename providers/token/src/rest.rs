//! An HTTP client for token services, with limits on time and size. Its errors contain no secrets.

use std::time::Duration;

use camino::Utf8Path;
use jiff::{SignedDuration, Timestamp};
use reqwest::{RequestBuilder, Url};
use serde_json::Value;
use textnlp_net::client::{BodyError, ClientOptions, ProxySettings, is_loopback, read_body};
use textnlp_net::error_chain;
use textnlp_net::retry::is_retryable;
use textnlp_net::trust::TrustRoots;
use textnlp_provider::{Error, ErrorKind, Result, Secret};

use super::{EACH, Token, Variables, shown};

/// The connection timeout.
const CONNECT: Duration = Duration::from_secs(5);
/// The connection timeout of metadata services, which are local or do not exist.
const CONNECT_NEARBY: Duration = Duration::from_secs(2);
/// The longest answer of a token service that is read, in bytes.
pub(super) const MAX_ANSWER_BYTES: usize = 256 << 10;
/// The pause before the one retry: <https://cloud.google.com/iam/docs/retry-strategy>,
/// <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#retry-guidance>.
const PAUSE: Duration = Duration::from_millis(500);
/// A file of certificate authorities that are trusted besides the public ones.
const CA_FILE: &str = "TEXTNLP_CA_FILE";

/// A client for token services.
pub(super) struct Rest {
    http: reqwest::Client,
}

impl Rest {
    /// A client for remote services, through the configured proxy.
    pub(super) fn far(variables: &Variables) -> Result<Self> {
        let proxy = ProxySettings::from_variables(|name| variables.get(name).map(str::to_owned));
        Self::build(variables, CONNECT, proxy)
    }

    /// A client for local metadata services, without a proxy.
    pub(super) fn nearby(variables: &Variables) -> Result<Self> {
        Self::build(variables, CONNECT_NEARBY, ProxySettings::default())
    }

    fn build(variables: &Variables, connect_timeout: Duration, proxy: ProxySettings) -> Result<Self> {
        let trust = TrustRoots::public_and(variables.get(CA_FILE).map(Utf8Path::new))
            .map_err(|error| Error::new(ErrorKind::Invalid, "use", CA_FILE).because(error))?;
        let options = ClientOptions { trust, proxy, connect_timeout, idle_timeout: None, timeout: Some(EACH) };
        let http = options
            .client()
            .map_err(|error| Error::new(ErrorKind::Invalid, "set up", "an HTTP client").because(error))?;
        Ok(Self { http })
    }

    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.http.get(url)
    }

    pub(super) fn post(&self, url: Url) -> RequestBuilder {
        self.http.post(url)
    }

    /// A POST of a form, as OAuth specifies it.
    pub(super) fn form(&self, url: Url, fields: &[(&str, &str)]) -> RequestBuilder {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.post(url).header("content-type", "application/x-www-form-urlencoded").body(body)
    }

    /// Sends a request, with one retry; the answer contains a secret. `action` describes the request in errors.
    pub(super) async fn ask(
        &self,
        action: (&str, &str),
        request: RequestBuilder,
        secrets: &[&Secret],
    ) -> Result<Secret> {
        let again = request.try_clone();
        let answer = self.once(action, request, secrets).await;
        match (answer, again) {
            (Err((error, Some(status))), Some(again)) if is_retryable(status) => {
                drop(error);
                tokio::time::sleep(PAUSE).await;
                self.once(action, again, secrets).await.map_err(|(error, _)| error)
            }
            (answer, _) => answer.map_err(|(error, _)| error),
        }
    }

    /// Sends a request once, and reads the answer of at most `limit` bytes: its status and its body.
    pub(super) async fn send(
        &self,
        action: (&str, &str),
        request: RequestBuilder,
        secrets: &[&Secret],
        limit: usize,
    ) -> Result<(u16, Secret)> {
        let failed = |sort, why: String| Error::new(sort, action.0, action.1).because(why);
        let lost = |source: reqwest::Error| {
            // The error chain names the cause: connection refused, unknown name, certificate. It contains no body.
            let is_silence = source.is_timeout() && !source.is_connect();
            let why = if is_silence {
                format!("no answer within {} s", EACH.as_secs())
            } else {
                shown(&error_chain(&source.without_url()), secrets)
            };
            failed(ErrorKind::Unavailable, why)
        };
        let response = request.send().await.map_err(lost)?;
        let status = response.status().as_u16();
        let body = read_body(response, limit).await.map_err(|error| match error {
            BodyError::Cut(error) => lost(error),
            error @ BodyError::TooLong(_) => failed(ErrorKind::Denied, error.to_string()),
        })?;
        Ok((status, Secret::new(body)))
    }

    async fn once(
        &self,
        action: (&str, &str),
        request: RequestBuilder,
        secrets: &[&Secret],
    ) -> Result<Secret, (Error, Option<u16>)> {
        let failed = |sort, why: String| Error::new(sort, action.0, action.1).because(why);
        let answer = self.send(action, request, secrets, MAX_ANSWER_BYTES).await;
        let (status, body) = answer.map_err(|error| (error, None))?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let sort = match status {
            429 => ErrorKind::Throttled { after: None },
            404 => ErrorKind::NotFound,
            408 | 500.. => ErrorKind::Unavailable,
            _ => ErrorKind::Denied,
        };
        let (code, said) = complaint(&body);
        let mut error =
            failed(sort, format!("status {status}: {}", shown(&said, secrets)).trim_end_matches([':', ' ']).to_owned());
        if let Some(code) = code {
            error = error.code(shown(&code, secrets));
        }
        Err((error, Some(status)))
    }
}

/// The service's error code and message: OAuth's `error` and `error_description`, or the `error` object of Google's
/// APIs.
fn complaint(body: &Secret) -> (Option<String>, String) {
    let text = || String::from_utf8_lossy(body.expose()).into_owned();
    let Ok(answer) = serde_json::from_slice::<Value>(body.expose()) else { return (None, text()) };
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let error = &answer["error"];
    let said =
        word(&answer["error_description"]).or_else(|| word(&error["message"])).or_else(|| word(&answer["message"]));
    (word(error).or_else(|| word(&error["status"])), said.unwrap_or_default())
}

/// Parses a URL to which a credential may be sent: HTTPS, or loopback.
pub(super) fn guarded(what: &str, address: &str) -> Result<Url> {
    let refused = |why: &str| Error::new(ErrorKind::Invalid, "use", what).because(why.to_owned());
    let url = Url::parse(address).map_err(|_| refused("it is not an address"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        _ => Err(refused("a credential is sent only over https")),
    }
}

/// The token of an OAuth answer: `access_token`, with its expiry as a timestamp (`expires_on`) or a duration
/// (`expires_in`), as numbers or strings.
pub(super) fn bearer(action: (&str, &str), answer: &Secret) -> Result<Token> {
    // The parser's error would quote its input.
    let answer: Value = serde_json::from_slice(answer.expose()).unwrap_or_default();
    let token = answer["access_token"].as_str().unwrap_or_default();
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    let now = Timestamp::now();
    let ends = match number(&answer["expires_on"]) {
        Some(moment) => Timestamp::from_second(moment).ok(),
        None => {
            number(&answer["expires_in"]).and_then(|seconds| now.checked_add(SignedDuration::from_secs(seconds)).ok())
        }
    };
    Token::new(action, Secret::new(token), ends, now)
}
