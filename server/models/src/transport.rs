//! One request: TLS roots, proxies, redirects that leak no credentials, and what a refusal means.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::{Error, Result};
use crate::fetch::{Event, Progress};
use crate::options::{FetchOptions, Limits, Token};
use crate::source::is_loopback;

/// A hub needs two hops (to its own host, then to its storage); more than this is a loop.
const MOST_REDIRECTS: usize = 10;

/// Sends requests for one fetch.
pub(crate) struct Transport {
    client: Client,
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
    Again { why: String, after: Option<Duration> },
    /// The other side says no.
    Refused { status: StatusCode, code: Option<String>, message: Option<String> },
    /// It never works.
    Fatal(Error),
}

impl Transport {
    pub(crate) fn new(options: &FetchOptions) -> Result<Transport> {
        let setting = |what: &str, why: String| Error::Setting { what: what.to_owned(), why };
        let endpoint: Url = options
            .endpoint
            .trim_end_matches('/')
            .parse()
            .map_err(|error| setting("HF_ENDPOINT", format!("`{}` is no address ({error})", options.endpoint)))?;
        if endpoint.scheme() != "https" && !(endpoint.scheme() == "http" && is_loopback(&endpoint)) {
            let why = "it must be `https://…` (`http:` only for this machine); for a private CA set TEXTNLP_CA_FILE";
            return Err(setting("HF_ENDPOINT", why.to_owned()));
        }

        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls(options)?)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(options.limits.connect)
            .read_timeout(options.limits.idle)
            .pool_max_idle_per_host(2)
            .user_agent(concat!("textnlp-deploy/", env!("CARGO_PKG_VERSION")))
            // The options say which proxy to use; the environment has been read into them, or not.
            .no_proxy();
        let bypass = options.proxy.no_proxy.as_deref().and_then(reqwest::NoProxy::from_string);
        // The proxy's address may hold a password, so the errors do not repeat it.
        if let Some(address) = &options.proxy.https {
            let proxy = reqwest::Proxy::https(address.as_str());
            let proxy = proxy.map_err(|_| setting("HTTPS_PROXY", "it is no address of a proxy".to_owned()))?;
            builder = builder.proxy(proxy.no_proxy(bypass.clone()));
        }
        if let Some(address) = &options.proxy.http {
            let proxy = reqwest::Proxy::http(address.as_str());
            let proxy = proxy.map_err(|_| setting("HTTP_PROXY", "it is no address of a proxy".to_owned()))?;
            builder = builder.proxy(proxy.no_proxy(bypass));
        }
        let client = builder.build().map_err(|error| setting("network settings", chain(&error.without_url())))?;
        Ok(Transport { client, endpoint, token: options.token.clone(), limits: options.limits.clone() })
    }

    pub(crate) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// One attempt, following redirects.
    pub(crate) async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Reply, Fault> {
        let mut at = url.clone();
        let mut first = None;
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.client.get(at.clone()).headers(headers.clone());
            // The token belongs to the hub alone. Its storage hosts get signed addresses instead, and a page that
            // redirects elsewhere must not collect it.
            if let Some(token) = &self.token
                && at.origin() == self.endpoint.origin()
            {
                let value = HeaderValue::from_str(&format!("Bearer {}", token.reveal())).map_err(|_| {
                    let why = "it holds characters that no header may have".to_owned();
                    Fault::Fatal(Error::Setting { what: "HF_TOKEN".to_owned(), why })
                })?;
                request = request.header(AUTHORIZATION, value);
            }
            let response = request.send().await.map_err(|error| classify(&at, error))?;
            let status = response.status();
            let first = first.get_or_insert_with(|| response.headers().clone()).clone();
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                at = next_hop(&at, response.headers())?;
                continue;
            }
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(Reply { response, first });
            }
            return Err(refusal(status, response.headers()));
        }
        Err(Fault::Fatal(Error::Network {
            what: shown(url),
            attempts: 1,
            why: format!("more than {MOST_REDIRECTS} redirects"),
        }))
    }

    /// A small body, with retries.
    pub(crate) async fn get_small(&self, url: &Url, most: usize, progress: &Progress<'_>) -> Result<Vec<u8>, Fault> {
        let mut patience = Patience::new(&self.limits);
        loop {
            let fault = match self.get(url, &HeaderMap::new()).await {
                Ok(reply) => match self.body(reply.response, most, url).await {
                    Ok(body) => return Ok(body),
                    Err(fault) => fault,
                },
                Err(fault) => fault,
            };
            match fault {
                Fault::Again { why, after } => {
                    patience.pause(url, why, after, false, progress).await.map_err(Fault::Fatal)?
                }
                other => return Err(other),
            }
        }
    }

    async fn body(&self, mut response: Response, most: usize, url: &Url) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| classify(url, error))? {
            if body.len() + chunk.len() > most {
                return Err(Fault::Fatal(Error::Network {
                    what: shown(url),
                    attempts: 1,
                    why: format!("the answer is larger than {most} bytes"),
                }));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Counts failures and waits between them, with bounds on both.
pub(crate) struct Patience {
    limits: Limits,
    in_a_row: u32,
    in_all: u32,
}

impl Patience {
    pub(crate) fn new(limits: &Limits) -> Patience {
        Patience { limits: limits.clone(), in_a_row: 0, in_all: 0 }
    }

    /// Waits before the next attempt, or gives up. `gained`: the failed attempt brought something.
    pub(crate) async fn pause(
        &mut self,
        url: &Url,
        why: String,
        after: Option<Duration>,
        gained: bool,
        progress: &Progress<'_>,
    ) -> Result<()> {
        self.in_all += 1;
        self.in_a_row = if gained { 1 } else { self.in_a_row + 1 };
        if let Some(after) = after.filter(|after| *after > self.limits.wait_at_most) {
            return Err(Error::Throttled { what: shown(url), after: Some(after.as_secs()) });
        }
        if self.in_a_row >= self.limits.attempts || self.in_all >= self.limits.attempts_in_all {
            return Err(match after {
                Some(after) => Error::Throttled { what: shown(url), after: Some(after.as_secs()) },
                None => Error::Network { what: shown(url), attempts: self.in_all, why },
            });
        }
        progress(Event::Retrying { attempt: self.in_all + 1, why });
        let wait = after.unwrap_or_else(|| self.limits.pause * (1 << (self.in_a_row - 1).min(5)));
        if wait >= Duration::from_secs(1) {
            progress(Event::Waiting { for_what: shown(url), seconds: wait.as_secs() });
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The address without its query: signed addresses carry credentials there.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn tls(options: &FetchOptions) -> Result<rustls::ClientConfig> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // Machines without a certificate folder (scratch images) have no native roots; the compiled-in ones are enough then.
    // Read once: on some machines that takes a tenth of a second.
    static NATIVE: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    let native = NATIVE.get_or_init(|| rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(native.iter().cloned());
    if let Some(path) = &options.ca_file {
        let no = |why: String| Error::Setting { what: format!("the CA file {path}"), why };
        let text = crate::local::read_bounded(path, 16 << 20)?.ok_or_else(|| no("it is not there".to_owned()))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| no(format!("it is not PEM ({error})")))?;
        if certificates.is_empty() {
            return Err(no("it holds no certificate".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| no(format!("a certificate in it cannot be used ({error})")))?;
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Setting { what: "TLS".to_owned(), why: error.to_string() })?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn next_hop(at: &Url, headers: &HeaderMap) -> Result<Url, Fault> {
    let fatal = |why: &str| Fault::Fatal(Error::Network { what: shown(at), attempts: 1, why: why.to_owned() });
    let location = headers.get(LOCATION).and_then(|v| v.to_str().ok());
    let location = location.ok_or_else(|| fatal("it redirects without saying where to"))?;
    let next = at.join(location).map_err(|_| fatal("it redirects to something that is no address"))?;
    match next.scheme() {
        "https" => Ok(next),
        "http" if is_loopback(&next) && at.scheme() == "http" => Ok(next),
        _ => Err(fatal("it redirects to an address that is not encrypted")),
    }
}

fn refusal(status: StatusCode, headers: &HeaderMap) -> Fault {
    let text = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(value.chars().take(300).filter(|c| !c.is_control()).collect::<String>())
    };
    let later = matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504);
    if later {
        let after = headers.get(RETRY_AFTER).and_then(retry_after).or_else(|| hub_reset(headers));
        return Fault::Again { why: format!("it answered {status}"), after };
    }
    Fault::Refused { status, code: text("x-error-code"), message: text("x-error-message") }
}

/// Seconds, or a date.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or(Duration::ZERO))
}

/// The hub's own way: `RateLimit: "api";r=0;t=55` — nothing left, again in 55 seconds.
fn hub_reset(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("ratelimit")?.to_str().ok()?;
    let seconds = text.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
    Some(Duration::from_secs(seconds.parse::<u32>().ok()?.into()))
}

fn classify(url: &Url, error: reqwest::Error) -> Fault {
    let error = error.without_url();
    let why = chain(&error);
    // A certificate that is not trusted will not be trusted in a second either.
    if why.contains("invalid peer certificate") {
        let hint = "for a private CA or an inspecting proxy, put its certificate into a file and set TEXTNLP_CA_FILE";
        return Fault::Fatal(Error::Denied { what: shown(url), why, hint: hint.to_owned() });
    }
    Fault::Again { why, after: None }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_in_every_form() {
        let after = |text: &str| retry_after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(after("Wed, 21 Oct 2099 07:28:00 GMT").unwrap() > Duration::from_secs(1000));
        assert_eq!(after("soon"), None);
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit", HeaderValue::from_static("\"api\";r=0;t=55"));
        assert_eq!(hub_reset(&headers), Some(Duration::from_secs(55)));
    }

    #[test]
    fn redirects_never_leave_encryption() {
        let hop = |from: &str, to: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_static(to));
            next_hop(&from.parse().unwrap(), &headers).ok().map(|url| url.to_string())
        };
        assert_eq!(hop("https://a/x", "/y"), Some("https://a/y".to_owned()));
        assert_eq!(hop("https://a/x", "http://a/y"), None);
        assert_eq!(hop("https://a/x", "http://127.0.0.1/y"), None);
        assert_eq!(hop("http://127.0.0.1/x", "http://127.0.0.1:9/y"), Some("http://127.0.0.1:9/y".to_owned()));
        assert_eq!(hop("https://a/x", "file:///etc/passwd"), None);
    }
}
