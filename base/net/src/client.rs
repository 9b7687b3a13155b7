//! HTTP clients: proxies, timeouts, redirects, credentials, and bodies of bounded size.

use std::fmt;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
pub use reqwest::{Client, Url};
use reqwest::{ClientBuilder, Response, StatusCode};

use crate::error_chain;
use crate::network;
use crate::retry::Transient;
use crate::trust::TrustRoots;

/// The hosts that no proxy reaches: this machine, addresses of its own link, and the metadata services of AWS (IPv6) and
/// Google Cloud. Metadata services give the credentials of this machine.
const NEVER_BY_PROXY: &str =
    "localhost,127.0.0.0/8,::1,169.254.0.0/16,fe80::/10,fd00:ec2::/32,metadata.google.internal";
/// What this program calls itself.
pub const USER_AGENT: &str = concat!("textnlp-deploy/", env!("CARGO_PKG_VERSION"));
/// A hub or registry needs two hops: to its own host, then to its storage. More than this is a loop.
pub const MAX_REDIRECTS: usize = 10;

/// Proxies. Their addresses may hold a password, so `Debug` shows those as `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// For `https:` addresses.
    pub https: Option<String>,
    /// For `http:` addresses.
    pub http: Option<String>,
    /// Hosts that are reached directly, separated by commas.
    pub no_proxy: Option<String>,
}

impl ProxySettings {
    /// Reads `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in small letters first. Empty variables count as absent.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        // Tools disagree about the case of these variables.
        let either = |name: &str| get(&name.to_ascii_lowercase()).or_else(|| get(name));
        Self {
            https: either("HTTPS_PROXY").or_else(|| either("ALL_PROXY")),
            http: either("HTTP_PROXY").or_else(|| either("ALL_PROXY")),
            no_proxy: either("NO_PROXY"),
        }
    }

    /// The same of this process.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// These settings, and for each that is absent the other's.
    pub fn or(self, other: Self) -> Self {
        Self {
            https: self.https.or(other.https),
            http: self.http.or(other.http),
            no_proxy: self.no_proxy.or(other.no_proxy),
        }
    }
}

impl fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show =
            |address: &Option<String>| address.as_ref().map(|a| if a.contains('@') { "***" } else { a }.to_owned());
        f.debug_struct("ProxySettings")
            .field("https", &show(&self.https))
            .field("http", &show(&self.http))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// How a client is made.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Which authorities it trusts.
    pub trust: TrustRoots,
    /// Which proxies it uses; the environment's variables are not read. None is used for this machine, link-local addresses
    /// and metadata services of clouds.
    pub proxy: ProxySettings,
    /// To make a connection, with its handshake.
    pub connect_timeout: Duration,
    /// Without a byte from the other side.
    pub idle_timeout: Option<Duration>,
    /// For a whole request with its answer.
    pub timeout: Option<Duration>,
}

impl Default for ClientOptions {
    /// The public authorities, no proxy, 10 s for a connection.
    fn default() -> Self {
        let (trust, proxy) = (TrustRoots::public(), ProxySettings::default());
        Self { trust, proxy, connect_timeout: Duration::from_secs(10), idle_timeout: None, timeout: None }
    }
}

/// A client that cannot be made.
#[derive(Debug)]
pub enum ClientError {
    /// The address of a proxy is not one.
    Proxy {
        /// The variable that usually holds it. The address itself may hold a password.
        variable: &'static str,
    },
    /// TLS or the resolver cannot be set up.
    Build(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Proxy { variable } => write!(f, "{variable}: not the URL of a proxy"),
            ClientError::Build(why) => write!(f, "set up the HTTP client: {why}"),
        }
    }
}

impl std::error::Error for ClientError {}

/// Converts what keeps a transfer from its start or its end into the variants `Setting { what, why }`,
/// `Throttled { what, seconds }` and `Network { what, attempts, why }` of a crate's own error.
#[macro_export]
macro_rules! transfer_errors {
    ($error:ty) => {
        impl From<$crate::trust::TrustError> for $error {
            fn from(error: $crate::trust::TrustError) -> Self {
                Self::Setting { what: format!("the CA file {}", error.source_name), why: error.problem.to_string() }
            }
        }

        impl From<$crate::client::ClientError> for $error {
            fn from(error: $crate::client::ClientError) -> Self {
                let (what, why) = match error {
                    $crate::client::ClientError::Proxy { variable } => (variable, "not the URL of a proxy".to_owned()),
                    $crate::client::ClientError::Build(why) => ("network settings", why),
                };
                Self::Setting { what: what.to_owned(), why }
            }
        }

        impl $error {
            /// The error of a transfer that is not retried any more.
            pub(crate) fn gave_up(url: &reqwest::Url, gave_up: $crate::retry::GaveUp) -> Self {
                let what = $crate::client::shown(url);
                match gave_up {
                    $crate::retry::GaveUp::Throttled { retry_after } => {
                        Self::Throttled { what, seconds: retry_after.map(|after| after.as_secs()) }
                    }
                    $crate::retry::GaveUp::Exhausted { attempts, reason } => {
                        Self::Network { what, attempts, why: reason }
                    }
                }
            }
        }
    };
}

impl ClientOptions {
    /// A client. It follows no redirect: [`follow`] does, by its rules.
    pub fn client(&self) -> Result<Client, ClientError> {
        build(self.builder()?)
    }

    /// The same, for further settings.
    pub fn builder(&self) -> Result<ClientBuilder, ClientError> {
        let mut builder = Client::builder()
            .tls_backend_preconfigured(self.trust.client_config())
            .redirect(Policy::none())
            .connect_timeout(self.connect_timeout)
            .pool_max_idle_per_host(2)
            .user_agent(USER_AGENT)
            .no_proxy();
        if let Some(timeout) = self.idle_timeout {
            builder = builder.read_timeout(timeout);
        }
        if let Some(timeout) = self.timeout {
            builder = builder.timeout(timeout);
        }
        let direct = self.proxy.no_proxy.iter().fold(NEVER_BY_PROXY.to_owned(), |all, more| all + "," + more);
        let bypass = reqwest::NoProxy::from_string(&direct);
        let proxies = [(&self.proxy.https, "HTTPS_PROXY", true), (&self.proxy.http, "HTTP_PROXY", false)];
        for (address, variable, is_tls) in proxies {
            if let Some(address) = address.as_deref() {
                let proxy = if is_tls { reqwest::Proxy::https(address) } else { reqwest::Proxy::http(address) };
                let proxy = proxy.map_err(|_| ClientError::Proxy { variable })?;
                builder = builder.proxy(proxy.no_proxy(bypass.clone()));
            }
        }
        Ok(builder)
    }
}

/// The clients of a transfer that may cross several hosts.
#[derive(Debug, Clone)]
pub struct Routes {
    /// For requests with a credential: its owner's proxies and authorities.
    pub authorized: Client,
    /// For all others.
    pub others: Client,
}

impl From<Client> for Routes {
    fn from(client: Client) -> Self {
        Self { authorized: client.clone(), others: client }
    }
}

/// Finishes a builder.
pub fn build(builder: ClientBuilder) -> Result<Client, ClientError> {
    builder.build().map_err(|error| ClientError::Build(error_chain(&error.without_url())))
}

/// Redirects for clients of one service: followed on the same host, and never from TLS to plain HTTP. Any other redirect is the answer.
pub fn same_host() -> Policy {
    Policy::custom(|attempt| {
        let Some(before) = attempt.previous().last() else { return attempt.stop() };
        let next = attempt.url();
        let is_same = next.host_str() == before.host_str() && (next.scheme() == "https" || before.scheme() == "http");
        if is_same && attempt.previous().len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.stop() }
    })
}

/// An answer that is not a redirect.
#[derive(Debug)]
pub struct Followed {
    /// The answer, whatever its status.
    pub response: Response,
    /// The headers of the first hop. A hub describes there the file that lies behind the redirect.
    pub first_headers: HeaderMap,
    /// Where the answer came from.
    pub url: Url,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum RequestError {
    /// Another attempt may work.
    Transient(Transient),
    /// The certificate at this address is not trusted.
    Untrusted {
        /// The address, without its query.
        url: String,
        /// What is wrong with the certificate.
        reason: String,
    },
    /// A redirect that must not be followed.
    Redirect {
        /// The address that sent it, without its query.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl RequestError {
    /// A request to `url` that brought no answer, or not all of it.
    pub fn of(url: &Url, error: reqwest::Error) -> Self {
        let error = error.without_url();
        let reason = error_chain(&error);
        // A certificate that is not trusted now will not be trusted by the next attempt.
        if is_untrusted(&error) {
            return RequestError::Untrusted { url: shown(url), reason };
        }
        RequestError::Transient(Transient::connection(reason))
    }
}

/// Sends a GET and follows redirects. `authorization` is asked for each hop: it returns the credential for that address, if it has
/// one, so a credential reaches only the addresses that it is meant for, and by its own route. A hop from `https:` to `http:` is refused, and one from `http:` to
/// `http:` is followed only where `allow_http` says so.
pub async fn follow(
    routes: &Routes,
    url: &Url,
    headers: &HeaderMap,
    authorization: impl Fn(&Url) -> Option<HeaderValue>,
    allow_http: impl Fn(&Url) -> bool,
) -> Result<Followed, RequestError> {
    let mut at = url.clone();
    let mut first_headers = None;
    for _ in 0..=MAX_REDIRECTS {
        let request = match authorization(&at) {
            Some(mut value) => {
                value.set_sensitive(true);
                routes.authorized.get(at.clone()).header(AUTHORIZATION, value)
            }
            None => routes.others.get(at.clone()),
        };
        let response = request.headers(headers.clone()).send().await.map_err(|error| RequestError::of(&at, error))?;
        let first_headers = first_headers.get_or_insert_with(|| response.headers().clone());
        if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Followed { first_headers: std::mem::take(first_headers), response, url: at });
        }
        at = next_hop(&at, response.headers(), &allow_http)
            .map_err(|reason| RequestError::Redirect { url: shown(&at), reason: reason.to_owned() })?;
    }
    Err(RequestError::Redirect { url: shown(url), reason: format!("more than {MAX_REDIRECTS} redirects") })
}

fn next_hop(at: &Url, headers: &HeaderMap, allow_http: impl Fn(&Url) -> bool) -> Result<Url, &'static str> {
    let location =
        headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or("a redirect without a location")?;
    let next = at.join(location).map_err(|_| "a redirect to something that is not a URL")?;
    match next.scheme() {
        "https" => Ok(next),
        "http" if at.scheme() == "http" && allow_http(&next) => Ok(next),
        _ => Err("a redirect to a URL that is not encrypted"),
    }
}

/// A status that another attempt may not meet, with what its `Retry-After` asks.
pub fn transient(response: &Response) -> Option<Transient> {
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    Transient::status(response.status().as_u16(), retry_after, jiff::Timestamp::now())
}

/// Why a body was not read.
#[derive(Debug)]
pub enum BodyError {
    /// It is longer than the caller allows, in bytes.
    TooLong(usize),
    /// The connection ended before the body did.
    Cut(reqwest::Error),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::TooLong(max) => write!(f, "the answer is longer than {max} bytes"),
            BodyError::Cut(error) => write!(f, "{}", error_chain(error)),
        }
    }
}

impl std::error::Error for BodyError {}

/// Reads a whole body of at most `max` bytes.
pub async fn read_body(mut response: Response, max: usize) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| BodyError::Cut(error.without_url()))? {
        if body.len() + chunk.len() > max {
            return Err(BodyError::TooLong(max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The address without its query: signed addresses carry credentials there.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// Whether this is the address of an HTTP server, with nothing in it that is secret or not sent: no user, password or fragment.
pub fn is_plain_http(url: &Url) -> bool {
    matches!(url.scheme(), "https" | "http")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
}

/// The same of a server that gets secrets: by TLS, or on this machine.
pub fn is_protected_http(url: &Url) -> bool {
    is_plain_http(url) && (url.scheme() == "https" || is_loopback(url))
}

/// Whether an address names this machine.
pub fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(network::is_loopback)
}

/// Whether an address may get a token for a domain, which begins with a dot: a name below it by TLS, or this machine.
pub fn is_below(url: &str, domain: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let is_known = url.host_str().is_some_and(|host| host.ends_with(domain));
    is_loopback(&url) || (url.scheme() == "https" && url.port().is_none() && is_known)
}

/// Whether an error is that the other side's certificate was refused.
pub fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// The TLS error among the causes of an error.
pub fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    std::iter::successors(Some(error), |error| cause(*error)).find_map(|error| error.downcast_ref())
}

/// The cause of an error. What an I/O error holds is its cause too, and its `source` passes over it.
fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_downgrade_from_https() {
        let hop = |from: &str, to: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_static(to));
            next_hop(&from.parse().unwrap(), &headers, is_loopback).ok().map(|url| url.to_string())
        };
        assert_eq!(hop("https://a/x", "/y"), Some("https://a/y".to_owned()));
        assert_eq!(hop("https://a/x", "http://a/y"), None);
        assert_eq!(hop("https://a/x", "http://127.0.0.1/y"), None);
        assert_eq!(hop("http://127.0.0.1/x", "http://127.0.0.1:9/y"), Some("http://127.0.0.1:9/y".to_owned()));
        assert_eq!(hop("http://127.0.0.1/x", "http://a/y"), None);
        assert_eq!(hop("https://a/x", "file:///etc/passwd"), None);
        assert!(next_hop(&"https://a".parse().unwrap(), &HeaderMap::new(), is_loopback).is_err());
    }

    #[test]
    fn proxy_settings_come_from_variables_and_hide_passwords() {
        let settings = ProxySettings::from_variables(|name| {
            let value = match name {
                "https_proxy" => "http://user:hunter2@proxy:3128",
                "HTTPS_PROXY" => "http://other:1",
                "HTTP_PROXY" => " ",
                "ALL_PROXY" => "http://all:1",
                "NO_PROXY" => "localhost",
                _ => return None,
            };
            Some(value.to_owned())
        });
        assert_eq!(settings.https.as_deref(), Some("http://user:hunter2@proxy:3128"));
        assert_eq!((settings.http.as_deref(), settings.no_proxy.as_deref()), (Some("http://all:1"), Some("localhost")));
        assert!(!format!("{settings:?}").contains("hunter2"));
        let proxy = ProxySettings { https: Some("http://user:hunter2@:/".to_owned()), ..ProxySettings::default() };
        let error = ClientOptions { proxy, ..ClientOptions::default() }.client().unwrap_err();
        assert_eq!(error.to_string(), "HTTPS_PROXY: not the URL of a proxy");
    }

    #[test]
    fn loopback_hosts_are_recognised_and_url_queries_are_hidden() {
        for (url, expected) in [
            ("http://localhost:1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:8", true),
            ("http://localhost.a", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
        assert_eq!(shown(&"https://a/b?signature=hunter2#c".parse().unwrap()), "https://a/b");
    }
}
