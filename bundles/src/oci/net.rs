//! One request to a registry: TLS roots, proxies, credentials that stay with whom they are for, and what a refusal means.

use std::fmt;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use textnlp_models::{Event, Limits, Progress, ProxySettings};

use super::error::{Error, Result};

/// How registries are talked to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Proxies.
    pub proxy: ProxySettings,
    /// Certificates of a private CA, trusted beside the public ones.
    pub ca_file: Option<Utf8PathBuf>,
    /// With whom `http:` is spoken instead of `https:`.
    pub plain_http: PlainHttp,
    /// The account, if the registry wants one.
    pub credentials: Option<Credentials>,
    /// Hosts beside the registry's own that may see the password in exchange for a token.
    pub token_hosts: Vec<String>,
    /// The most bytes that one image may have; 0: as many as it says.
    pub most_bytes: u64,
    /// Bounds of waiting and retrying.
    pub limits: Limits,
}

/// With whom nothing is encrypted. Contents are checked against their digests in any case; a tag that is resolved, and a password, are not
/// protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// With this machine, as engines do it.
    #[default]
    Loopback,
    /// With nobody.
    Never,
    /// With everybody.
    Always,
}

impl PlainHttp {
    fn allows(self, url: &Url) -> bool {
        match self {
            PlainHttp::Loopback => is_loopback(url),
            PlainHttp::Never => false,
            PlainHttp::Always => true,
        }
    }
}

/// An account at a registry.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The password or access token.
    pub password: Secret,
}

/// A text that shows itself as `***`.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Takes the secret in.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Registries whose tokens come from another host of the same house.
const HOUSES: [(&str, &str); 2] = [("registry-1.docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")];
/// A registry needs one hop to its storage, sometimes two.
const MOST_REDIRECTS: usize = 5;
/// A token's answer.
const MOST_TOKEN: usize = 256 << 10;

/// Talks to one registry about one repository.
pub(super) struct Line {
    client: Client,
    base: Url,
    repository: String,
    options: Options,
    /// What the registry wants to see: none before it has asked.
    authorization: tokio::sync::Mutex<Option<Secret>>,
}

/// Why there was no answer.
pub(super) enum Fault {
    /// It may work later.
    Again { why: String, after: Option<Duration> },
    /// It never works.
    Fatal(Error),
    /// The other side says no.
    Refused { status: StatusCode },
}

impl Line {
    pub(super) fn new(host: &str, repository: &str, options: &Options) -> Result<Line> {
        let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let bad = |error: &dyn fmt::Display| {
            Error::malformed(format!("the registry `{host}`"), format!("it is no host ({error})"))
        };
        let https: Url = format!("https://{host}/").parse().map_err(|error| bad(&error))?;
        let plain = options.plain_http.allows(&https);
        let base = if plain { format!("http://{host}/").parse().map_err(|error| bad(&error))? } else { https };
        let client = client(options)?;
        let repository = repository.to_owned();
        Ok(Line { client, base, repository, options: options.clone(), authorization: Default::default() })
    }

    /// `https://HOST/v2/REPOSITORY/KIND/WHICH`.
    pub(super) fn address(&self, kind: &str, which: &str) -> Result<Url> {
        let path = format!("v2/{}/{kind}/{which}", self.repository);
        self.base.join(&path).map_err(|error| Error::malformed(path, error.to_string()))
    }

    pub(super) fn most_bytes(&self) -> u64 {
        self.options.most_bytes
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.options.limits
    }

    /// One attempt; follows redirects, and answers once when it is asked who we are.
    pub(super) async fn get(&self, url: &Url, headers: &HeaderMap, progress: &Progress<'_>) -> Result<Response, Fault> {
        let mut asked = false;
        let mut at = url.clone();
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.client.request(Method::GET, at.clone()).headers(headers.clone());
            // Storage hosts get signed addresses; a credential of the registry is none of theirs.
            let ours = at.origin() == self.base.origin();
            if ours && let Some(secret) = self.authorization.lock().await.clone() {
                request = request.header(AUTHORIZATION, hidden(&secret.0)?);
            }
            let response = request.send().await.map_err(|error| classify(&at, error))?;
            let status = response.status();
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                at = self.next_hop(&at, response.headers())?;
                continue;
            }
            if status == StatusCode::UNAUTHORIZED && ours && !asked {
                asked = true;
                let challenge = challenge(response.headers());
                let secret = self.answer(challenge, progress).await?;
                *self.authorization.lock().await = Some(secret);
                at = url.clone();
                continue;
            }
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(response);
            }
            return Err(refusal(status, response.headers()));
        }
        let why = format!("more than {MOST_REDIRECTS} redirects");
        Err(Fault::Fatal(Error::Network { what: shown(url), attempts: 1, why }))
    }

    /// A small body with its headers, with retries.
    pub(super) async fn get_small(
        &self,
        url: &Url,
        headers: &HeaderMap,
        most: usize,
        progress: &Progress<'_>,
    ) -> Result<(HeaderMap, Vec<u8>), Fault> {
        let mut patience = Patience::new(self.limits());
        loop {
            let fault = match self.get(url, headers, progress).await {
                Ok(response) => {
                    let headers = response.headers().clone();
                    match body(response, most, url).await {
                        Ok(text) => return Ok((headers, text)),
                        Err(fault) => fault,
                    }
                }
                Err(fault) => fault,
            };
            match fault {
                Fault::Again { why, after } => {
                    patience.pause(url, why, after, false, progress).await.map_err(Fault::Fatal)?;
                }
                other => return Err(other),
            }
        }
    }

    fn next_hop(&self, at: &Url, headers: &HeaderMap) -> Result<Url, Fault> {
        let fatal = |why: &str| Fault::Fatal(Error::Network { what: shown(at), attempts: 1, why: why.to_owned() });
        let location = headers.get(LOCATION).and_then(|v| v.to_str().ok());
        let location = location.ok_or_else(|| fatal("it redirects without saying where to"))?;
        let next = at.join(location).map_err(|_| fatal("it redirects to something that is no address"))?;
        match next.scheme() {
            "https" => Ok(next),
            "http" if at.scheme() == "http" && self.options.plain_http.allows(&next) => Ok(next),
            _ => Err(fatal("it redirects to an address that is not encrypted")),
        }
    }

    /// What to send to a registry that asks who we are.
    async fn answer(&self, challenge: Option<Challenge>, progress: &Progress<'_>) -> Result<Secret, Fault> {
        let denied = |why: String, hint: &str| {
            let what = format!("{}/{}", self.base.host_str().unwrap_or_default(), self.repository);
            Fault::Fatal(Error::Denied { what, why, hint: hint.to_owned() })
        };
        let log_in = "name an account that may pull from it";
        match challenge {
            Some(Challenge::Basic) => match &self.options.credentials {
                Some(credentials) => Ok(basic(credentials)),
                None => Err(denied("it wants an account".to_owned(), log_in)),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                let realm: Url =
                    realm.parse().map_err(|_| denied("its token service has no address".to_owned(), log_in))?;
                let open = realm.scheme() == "http" && self.options.plain_http.allows(&realm);
                if realm.scheme() != "https" && !(open && self.base.scheme() == "http") {
                    return Err(denied(format!("its token service {} is not encrypted", shown(&realm)), "use https"));
                }
                let mut url = realm.clone();
                let default = format!("repository:{}:pull", self.repository);
                let service = service.map(|service| ("service", service));
                let pairs = service.into_iter().chain([("scope", scope.unwrap_or(default))]);
                url.query_pairs_mut().extend_pairs(pairs);
                let mut request = self.client.get(url.clone());
                if let Some(credentials) = &self.options.credentials {
                    // A registry may send us anywhere for a token; the password goes only where it belongs.
                    if !self.trusts(&realm) {
                        let host = realm.host_str().unwrap_or_default();
                        let hint =
                            format!("if {host} may see the password, add it to the token hosts of this registry");
                        let why = format!("it asks for the password to be sent to {host}");
                        let what = format!("{}/{}", self.base.host_str().unwrap_or_default(), self.repository);
                        return Err(Fault::Fatal(Error::Denied { what, why, hint }));
                    }
                    request = request.header(AUTHORIZATION, hidden(&basic(credentials).0)?);
                }
                progress(Event::Resolving { what: format!("a token from {}", shown(&realm)) });
                let response = request.send().await.map_err(|error| classify(&realm, error))?;
                let status = response.status();
                if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Err(denied(format!("its token service answered {status}"), log_in));
                }
                if !status.is_success() {
                    return Err(refusal(status, response.headers()));
                }
                let text = body(response, MOST_TOKEN, &realm).await?;
                let answer: Token = serde_json::from_slice(&text)
                    .map_err(|_| denied("its token service gave no token".to_owned(), log_in))?;
                match answer.token.or(answer.access_token) {
                    Some(token) if !token.is_empty() => Ok(Secret(format!("Bearer {token}"))),
                    _ => Err(denied("its token service gave no token".to_owned(), log_in)),
                }
            }
            None => Err(denied("it wants an account, and does not say of which kind".to_owned(), log_in)),
        }
    }

    fn trusts(&self, realm: &Url) -> bool {
        let (own, other) = (self.base.host_str().unwrap_or_default(), realm.host_str().unwrap_or_default());
        realm.origin() == self.base.origin()
            || (own == other && realm.scheme() == "https")
            || HOUSES.contains(&(own, other))
            || self.options.token_hosts.iter().any(|host| host == other)
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Debug, PartialEq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let all = || headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let bearer = all().find_map(|text| {
        let (scheme, rest) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (key, value) in parameters(rest) {
            match key.as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Challenge::Bearer { realm: realm?, service, scope })
    });
    let basic = || all().any(|text| text.split(' ').next().is_some_and(|s| s.eq_ignore_ascii_case("basic")));
    bearer.or_else(|| basic().then_some(Challenge::Basic))
}

/// `a="b",c=d`: commas may stand inside of quotes, as in `scope="repository:x:pull,push"`.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').map_or((after, ""), |(value, _)| (value, &after[value.len()..])),
        };
        found.push((key.trim().to_ascii_lowercase(), value.to_owned()));
        rest = next.trim_start_matches([',', ' ']);
    }
    found
}

fn basic(credentials: &Credentials) -> Secret {
    use base64::Engine as _;
    let pair = format!("{}:{}", credentials.user, credentials.password.0);
    Secret(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

fn hidden(text: &str) -> Result<HeaderValue, Fault> {
    let why = "it holds characters that no header may have".to_owned();
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Fault::Fatal(Error::Setting { what: "the registry's token or account".to_owned(), why }))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Counts failures and waits between them, with bounds on both.
pub(super) struct Patience {
    limits: Limits,
    in_a_row: u32,
    in_all: u32,
}

impl Patience {
    pub(super) fn new(limits: &Limits) -> Patience {
        Patience { limits: limits.clone(), in_a_row: 0, in_all: 0 }
    }

    /// Waits before the next attempt, or gives up. `gained`: the failed attempt brought something.
    pub(super) async fn pause(
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
            return Err(Error::Throttled { what: shown(url), seconds: after.as_secs() });
        }
        if self.in_a_row >= self.limits.attempts || self.in_all >= self.limits.attempts_in_all {
            return Err(Error::Network { what: shown(url), attempts: self.in_all, why });
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
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

async fn body(mut response: Response, most: usize, url: &Url) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| classify(url, error))? {
        if body.len() + chunk.len() > most {
            return Err(Fault::Fatal(Error::malformed(shown(url), format!("the answer has more than {most} bytes"))));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn refusal(status: StatusCode, headers: &HeaderMap) -> Fault {
    if matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504) {
        let after = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
        return Fault::Again { why: format!("it answered {status}"), after };
    }
    Fault::Refused { status }
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or(Duration::ZERO))
}

fn classify(url: &Url, error: reqwest::Error) -> Fault {
    let why = chain(&error.without_url());
    // A certificate that is not trusted will not be trusted in a second either.
    if why.contains("invalid peer certificate") {
        let hint = "for a private CA, put its certificate into a file and name it (TEXTNLP_CA_FILE)".to_owned();
        return Fault::Fatal(Error::Denied { what: shown(url), why, hint });
    }
    Fault::Again { why, after: None }
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn client(options: &Options) -> Result<Client> {
    let setting = |what: &str, why: String| Error::Setting { what: what.to_owned(), why };
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls(options)?)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(options.limits.connect)
        .read_timeout(options.limits.idle)
        .pool_max_idle_per_host(2)
        .user_agent(concat!("textnlp-deploy/", env!("CARGO_PKG_VERSION")))
        // The options say which proxy to use.
        .no_proxy();
    let bypass = options.proxy.no_proxy.as_deref().and_then(reqwest::NoProxy::from_string);
    // The proxy's address may hold a password, so the errors do not repeat it.
    let proxies = [(&options.proxy.https, "HTTPS_PROXY", true), (&options.proxy.http, "HTTP_PROXY", false)];
    for (address, name, encrypted) in proxies {
        if let Some(address) = address.as_deref() {
            let proxy = if encrypted { reqwest::Proxy::https(address) } else { reqwest::Proxy::http(address) };
            let proxy = proxy.map_err(|_| setting(name, "it is no address of a proxy".to_owned()))?;
            builder = builder.proxy(proxy.no_proxy(bypass.clone()));
        }
    }
    builder.build().map_err(|error| setting("network settings", chain(&error.without_url())))
}

fn tls(options: &Options) -> Result<rustls::ClientConfig> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &options.ca_file {
        let no = |why: String| Error::Setting { what: format!("the CA file {path}"), why };
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
        file.take(16 << 20).read_to_end(&mut text).map_err(Error::io("read", path))?;
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
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Setting { what: "TLS".to_owned(), why: error.to_string() })?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_commas_in_quotes() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(text));
            challenge(&headers)
        };
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        let full = r#"Bearer realm="https://a/token",service="r",scope="repository:x:pull,push""#;
        assert_eq!(of(full), bearer("https://a/token", Some("r"), Some("repository:x:pull,push")));
        assert_eq!(of("bearer realm=https://a, service=b"), bearer("https://a", Some("b"), None));
        assert_eq!(of("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(of("Bearer service=\"x\""), None);
        assert_eq!(of("Negotiate"), None);
    }

    #[test]
    fn passwords_do_not_show_and_do_not_travel() {
        let credentials = Credentials { user: "me".to_owned(), password: Secret::new("hunter2") };
        let options = Options { credentials: Some(credentials), ..Options::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
        let line = |host: &str| Line::new(host, "a/b", &options).unwrap();
        let trusts = |host: &str, realm: &str| line(host).trusts(&realm.parse().unwrap());
        assert!(trusts("docker.io", "https://auth.docker.io/token"));
        assert!(trusts("ghcr.io", "https://ghcr.io/token"));
        assert!(!trusts("ghcr.io", "https://ghcr.io.evil.example/token"));
        assert!(!trusts("127.0.0.1:5000", "http://127.0.0.1:5001/token"));
    }
}
