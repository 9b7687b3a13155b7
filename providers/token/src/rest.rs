//! One question to a service that hands out tokens, bounded in time and bytes; what was confided to it is in no error.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use reqwest::{RequestBuilder, Url};
use serde_json::Value;
use textnlp_provider::{Error, Result, Secret, Sort};

use super::{EACH, Token, shown};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// A metadata service is on this machine or nowhere.
const CONNECT_NEARBY: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const LONGEST: usize = 256 << 10;
/// The time until a service that had a bad moment is asked once more.
const PAUSE: Duration = Duration::from_millis(500);
/// What may be gone after [`PAUSE`]: <https://cloud.google.com/iam/docs/retry-strategy>,
/// <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#retry-guidance>.
const PASSING: [u16; 6] = [408, 429, 500, 502, 503, 504];

/// Who is asked, and who is told of it when it fails.
pub(super) struct Rest {
    http: reqwest::Client,
}

impl Rest {
    /// For services in the network, by the proxy that the variables name.
    pub(super) fn far() -> Result<Self> {
        Self::build(reqwest::Client::builder().connect_timeout(CONNECT))
    }

    /// For services of this machine's own cloud: no proxy leads there.
    pub(super) fn nearby() -> Result<Self> {
        Self::build(reqwest::Client::builder().connect_timeout(CONNECT_NEARBY).no_proxy())
    }

    fn build(builder: reqwest::ClientBuilder) -> Result<Self> {
        let builder = builder.timeout(EACH).redirect(reqwest::redirect::Policy::none());
        let http = builder.user_agent(concat!("textnlp-deploy/", env!("CARGO_PKG_VERSION"))).build();
        http.map(|http| Self { http })
            .map_err(|source| Error::new(Sort::Unavailable, "prepare", "a client").because(source))
    }

    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.http.get(url)
    }

    pub(super) fn post(&self, url: Url) -> RequestBuilder {
        self.http.post(url)
    }

    /// A form, as OAuth asks for it.
    pub(super) fn form(&self, url: Url, fields: &[(&str, &str)]) -> RequestBuilder {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.post(url).header("content-type", "application/x-www-form-urlencoded").body(body)
    }

    /// Sends it; the answer is what `action` was about, and holds a secret.
    pub(super) async fn ask(
        &self,
        action: (&str, &str),
        request: RequestBuilder,
        secrets: &[&Secret],
    ) -> Result<Secret> {
        let again = request.try_clone();
        let answer = self.once(action, request, secrets).await;
        match (answer, again) {
            (Err((error, Some(status))), Some(again)) if PASSING.contains(&status) => {
                drop(error);
                tokio::time::sleep(PAUSE).await;
                self.once(action, again, secrets).await.map_err(|(error, _)| error)
            }
            (answer, _) => answer.map_err(|(error, _)| error),
        }
    }

    async fn once(
        &self,
        action: (&str, &str),
        request: RequestBuilder,
        secrets: &[&Secret],
    ) -> Result<Secret, (Error, Option<u16>)> {
        let failed = |sort, why: String| Error::new(sort, action.0, action.1).because(why);
        let lost = |source: reqwest::Error| {
            // The layers under it say what it was: refused, unknown name, certificate. None of them holds a body.
            let is_silence = source.is_timeout() && !source.is_connect();
            let why = if is_silence {
                format!("no answer within {} s", EACH.as_secs())
            } else {
                shown(&textnlp_provider::told(&source.without_url()), secrets)
            };
            (failed(Sort::Unavailable, why), None)
        };
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        let mut body = Vec::new();
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece.map_err(lost)?);
            if body.len() > LONGEST {
                return Err((failed(Sort::Denied, format!("the answer is longer than {LONGEST} bytes")), None));
            }
        }
        let body = Secret::new(body);
        if status.is_success() {
            return Ok(body);
        }
        let sort = match status.as_u16() {
            429 => Sort::Throttled { after: None },
            404 => Sort::NotFound,
            408 | 500.. => Sort::Unavailable,
            _ => Sort::Denied,
        };
        let (code, said) = complaint(&body);
        let mut error = failed(
            sort,
            format!("status {}: {}", status.as_u16(), shown(&said, secrets)).trim_end_matches([':', ' ']).to_owned(),
        );
        if let Some(code) = code {
            error = error.code(shown(&code, secrets));
        }
        Err((error, Some(status.as_u16())))
    }
}

/// The service's own code and words: OAuth's `error` and `error_description`, or an object under `error` as Google's APIs have it.
fn complaint(body: &Secret) -> (Option<String>, String) {
    let text = || String::from_utf8_lossy(body.expose()).into_owned();
    let Ok(answer) = serde_json::from_slice::<Value>(body.expose()) else { return (None, text()) };
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let error = &answer["error"];
    let said =
        word(&answer["error_description"]).or_else(|| word(&error["message"])).or_else(|| word(&answer["message"]));
    (word(error).or_else(|| word(&error["status"])), said.unwrap_or_default())
}

/// An address that a credential may be sent to: TLS, or this very machine.
pub(super) fn guarded(what: &str, address: &str) -> Result<Url> {
    let refused = |why: &str| Error::new(Sort::Invalid, "use", what).because(why.to_owned());
    let url = Url::parse(address).map_err(|_| refused("it is no address"))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_here => Ok(url),
        _ => Err(refused("a credential is sent by https alone")),
    }
}

/// The token in an answer of OAuth: `access_token`, and its end as a moment (`expires_on`) or from now on (`expires_in`), as numbers or texts.
pub(super) fn bearer(action: (&str, &str), answer: &Secret) -> Result<Token> {
    // The reader's own words would quote what it read.
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
