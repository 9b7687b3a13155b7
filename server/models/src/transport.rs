//! One request to a hub: which hosts receive the token, and what a refusal means.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use textnlp_net::client::{BodyError, RequestError, Routes, follow, is_loopback, read_body, transient};
use textnlp_net::retry::Transient;

pub(crate) use textnlp_net::client::shown;

use crate::attempts::Attempts;
use crate::error::{Error, Result};
use crate::options::{FetchOptions, Limits, Token};
use crate::progress::Progress;

/// Sends requests for one fetch.
pub(crate) struct Transport {
    routes: Routes,
    endpoint: Url,
    token: Option<Token>,
    pub(crate) limits: Limits,
}

/// An answer with status 2xx, 416 or 304.
pub(crate) struct Reply {
    pub(crate) response: Response,
    /// The headers of the first hop: a hub says there what the file behind the redirect will be.
    pub(crate) first: HeaderMap,
}

/// Why there was no answer.
pub(crate) enum Fault {
    /// It may work later.
    Again(Transient),
    /// The other side says no.
    Refused { status: StatusCode, code: Option<String>, message: Option<String> },
    /// It never works.
    Fatal(Error),
}

impl Transport {
    pub(crate) fn new(options: &FetchOptions) -> Result<Transport> {
        let setting = |why: String| Error::Setting { what: "HF_ENDPOINT".to_owned(), why };
        let endpoint: Url = options
            .endpoint
            .trim_end_matches('/')
            .parse()
            .map_err(|error| setting(format!("`{}` is not a URL ({error})", options.endpoint)))?;
        if endpoint.scheme() != "https" && !(endpoint.scheme() == "http" && is_loopback(&endpoint)) {
            let why = "it must be `https://…` (`http:` only for this machine); for a private CA set TEXTNLP_CA_FILE";
            return Err(setting(why.to_owned()));
        }
        let others = options.limits.client(&options.proxy, options.ca_file.as_deref())?.client()?;
        let authorized = match &options.token_route {
            Some((proxy, ca_file)) => options.limits.client(proxy, ca_file.as_deref())?.client()?,
            None => others.clone(),
        };
        Ok(Transport {
            routes: Routes { authorized, others },
            endpoint,
            token: options.token.clone(),
            limits: options.limits.clone(),
        })
    }

    pub(crate) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// One attempt, following redirects.
    pub(crate) async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Reply, Fault> {
        let token = self.token.as_ref().map(|token| HeaderValue::from_str(&format!("Bearer {}", token.reveal())));
        let token = token.transpose().map_err(|_| {
            let why = "it has characters that are not allowed in an HTTP header".to_owned();
            Fault::Fatal(Error::Setting { what: "HF_TOKEN".to_owned(), why })
        })?;
        // The token belongs to the hub alone. Its storage hosts get signed addresses instead, and a page that redirects elsewhere must
        // not collect it.
        let token = |at: &Url| token.clone().filter(|_| at.origin() == self.endpoint.origin());
        let followed = follow(&self.routes, url, headers, token, is_loopback).await?;
        let status = followed.response.status();
        if status.is_success() || matches!(status, StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_MODIFIED) {
            return Ok(Reply { response: followed.response, first: followed.first_headers });
        }
        Err(refusal(&followed.response))
    }

    /// A small body, with retries.
    pub(crate) async fn get_small(&self, url: &Url, most: usize, progress: &Progress<'_>) -> Result<Vec<u8>, Fault> {
        let mut attempts = Attempts::new(&self.limits);
        loop {
            let read = async {
                let reply = self.get(url, &HeaderMap::new()).await?;
                read_body(reply.response, most).await.map_err(|error| match error {
                    BodyError::Cut(error) => RequestError::of(url, error).into(),
                    BodyError::TooLong(_) => {
                        Fault::Fatal(Error::Network { what: shown(url), attempts: 1, why: error.to_string() })
                    }
                })
            };
            match read.await {
                Err(Fault::Again(failure)) => attempts
                    .pause(&shown(url), failure, false, progress)
                    .await
                    .map_err(|gave_up| Fault::Fatal(Error::gave_up(url, gave_up)))?,
                other => return other,
            }
        }
    }
}

impl From<RequestError> for Fault {
    fn from(error: RequestError) -> Fault {
        match error {
            RequestError::Transient(failure) => Fault::Again(failure),
            RequestError::Untrusted { url, reason } => {
                let hint =
                    "for a private CA or an inspecting proxy, put its certificate into a file and set TEXTNLP_CA_FILE";
                Fault::Fatal(Error::Denied { what: url, why: reason, hint: hint.to_owned() })
            }
            RequestError::Redirect { url, reason } => {
                Fault::Fatal(Error::Network { what: url, attempts: 1, why: reason })
            }
        }
    }
}

fn refusal(response: &Response) -> Fault {
    let headers = response.headers();
    if let Some(mut failure) = transient(response) {
        if let Some(reset) = hub_reset(headers).filter(|_| failure.retry_after.is_none()) {
            (failure.retry_after, failure.is_throttled) = (Some(reset), true);
        }
        return Fault::Again(failure);
    }
    let text = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(value.chars().take(300).filter(|c| !c.is_control()).collect::<String>())
    };
    Fault::Refused { status: response.status(), code: text("x-error-code"), message: text("x-error-message") }
}

/// The hub's own header: `RateLimit: "api";r=0;t=55` means that nothing is left for 55 seconds.
fn hub_reset(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("ratelimit")?.to_str().ok()?;
    let seconds = text.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
    Some(Duration::from_secs(seconds.parse::<u32>().ok()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_rate_limit_header_is_parsed() {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit", HeaderValue::from_static("\"api\";r=0;t=55"));
        assert_eq!(hub_reset(&headers), Some(Duration::from_secs(55)));
    }
}
