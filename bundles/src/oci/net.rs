//! Requests to a registry: credentials per host, and the meaning of refusals.

use std::fmt;

use camino::Utf8PathBuf;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Body, Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use textnlp_models::{Attempts, Event, Limits, Progress, ProxySettings};
use textnlp_net::client::{BodyError, Followed, RequestError, follow, is_loopback, read_body, transient};
use textnlp_net::retry::Transient;

pub(super) use textnlp_net::client::shown;

use super::error::{Error, Result};

/// How registries are talked to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Proxies.
    pub proxy: ProxySettings,
    /// Certificates of a private CA, trusted in addition to the public ones.
    pub ca_file: Option<Utf8PathBuf>,
    /// The hosts where `http:` is used instead of `https:`.
    pub plain_http: PlainHttp,
    /// The account, if the registry requires one.
    pub credentials: Option<Credentials>,
    /// Further hosts that may get the password in exchange for a token.
    pub token_hosts: Vec<String>,
    /// The largest image in bytes; 0: no limit but its declared size.
    pub most_bytes: u64,
    /// Timeouts and retries.
    pub limits: Limits,
}

/// The hosts without encryption. Contents are verified by their digests in any case; the resolution of tags and
/// passwords are not protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Only this machine, as container engines do.
    #[default]
    Loopback,
    /// No hosts.
    Never,
    /// All hosts.
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

/// Registries whose token host has another name of the same vendor.
const HOUSES: [(&str, &str); 2] = [("registry-1.docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")];
/// An error of a registry.
const MOST_ERROR: usize = 4 << 10;
/// A token's answer.
const MOST_TOKEN: usize = 256 << 10;

/// A client of one repository of a registry.
pub(super) struct RepositoryClient {
    client: Client,
    base: Url,
    repository: String,
    options: Options,
    /// The credentials that the registry requires; none before the first request.
    authorization: tokio::sync::Mutex<Option<Secret>>,
}

/// Why a request failed.
pub(super) enum Fault {
    /// A transient error.
    Again(Transient),
    /// A permanent error.
    Fatal(Error),
    /// A refusal by the registry.
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its own message; empty for reads.
        says: String,
    },
}

impl RepositoryClient {
    pub(super) fn new(host: &str, repository: &str, options: &Options) -> Result<RepositoryClient> {
        let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let bad = |error: &dyn fmt::Display| {
            Error::malformed(format!("the registry `{host}`"), format!("it is not a host ({error})"))
        };
        let https: Url = format!("https://{host}/").parse().map_err(|error| bad(&error))?;
        let plain = options.plain_http.allows(&https);
        let base = if plain { format!("http://{host}/").parse().map_err(|error| bad(&error))? } else { https };
        let client = options.limits.client(&options.proxy, options.ca_file.as_deref())?.client()?;
        let repository = repository.to_owned();
        Ok(RepositoryClient { client, base, repository, options: options.clone(), authorization: Default::default() })
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

    /// One attempt; follows redirects, and answers one authentication challenge.
    pub(super) async fn get(&self, url: &Url, headers: &HeaderMap, progress: &Progress<'_>) -> Result<Response, Fault> {
        let Followed { response, url: at, .. } = self.follow(url, headers).await?;
        let response = if response.status() == StatusCode::UNAUTHORIZED && self.is_ours(&at) {
            let secret = self.answer(challenge(response.headers()), "pull", progress).await?;
            *self.authorization.lock().await = Some(secret);
            self.follow(url, headers).await?.response
        } else {
            response
        };
        let status = response.status();
        if status.is_success() || matches!(status, StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_MODIFIED) {
            return Ok(response);
        }
        Err(refusal(&response))
    }

    /// One attempt at a request that changes something; follows no redirect, and answers one authentication challenge.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: impl Fn() -> Body + Send,
        progress: &Progress<'_>,
    ) -> Result<Response, Fault> {
        if !self.is_ours(url) {
            let why = format!("it wants the upload to go to {}", shown(url));
            let what = format!("{}/{}", self.base.host_str().unwrap_or_default(), self.repository);
            let hint = "push the image with another program".to_owned();
            return Err(Fault::Fatal(Error::Denied { what, why, hint }));
        }
        let mut response = self.send_once(&method, url, headers, body()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let secret = self.answer(challenge(response.headers()), "pull,push", progress).await?;
            *self.authorization.lock().await = Some(secret);
            response = self.send_once(&method, url, headers, body()).await?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        match transient(&response) {
            Some(failure) => Err(Fault::Again(failure)),
            None => {
                let status = response.status();
                let says = read_body(response, MOST_ERROR).await.unwrap_or_default();
                let says = String::from_utf8_lossy(&says).chars().filter(|c| !c.is_control()).collect();
                Err(Fault::Refused { status, says })
            }
        }
    }

    async fn send_once(&self, method: &Method, url: &Url, headers: &HeaderMap, body: Body) -> Result<Response, Fault> {
        let mut request = self.client.request(method.clone(), url.clone()).headers(headers.clone()).body(body);
        if let Some(secret) = self.authorization.lock().await.as_ref() {
            request = request.header(AUTHORIZATION, hidden(&secret.0)?);
        }
        Ok(request.send().await.map_err(|error| RequestError::of(url, error))?)
    }

    async fn follow(&self, url: &Url, headers: &HeaderMap) -> Result<Followed, Fault> {
        let authorization = match self.authorization.lock().await.as_ref() {
            Some(secret) => Some(hidden(&secret.0)?),
            None => None,
        };
        // Storage hosts get signed URLs; they must not get the registry's credentials.
        let authorization = |at: &Url| authorization.clone().filter(|_| self.is_ours(at));
        let allow_http = |at: &Url| self.options.plain_http.allows(at);
        Ok(follow(&self.client.clone().into(), url, headers, authorization, allow_http).await?)
    }

    fn is_ours(&self, at: &Url) -> bool {
        at.origin() == self.base.origin()
    }

    /// A small body with its headers, with retries.
    pub(super) async fn get_small(
        &self,
        url: &Url,
        headers: &HeaderMap,
        most: usize,
        progress: &Progress<'_>,
    ) -> Result<(HeaderMap, Vec<u8>), Fault> {
        let mut attempts = Attempts::new(self.limits());
        loop {
            let read = async {
                let response = self.get(url, headers, progress).await?;
                let headers = response.headers().clone();
                Ok::<_, Fault>((headers, body(response, most, url).await?))
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

    /// The answer to an authentication challenge. `actions` are what the token is for where the challenge does not say so.
    async fn answer(
        &self,
        challenge: Option<Challenge>,
        actions: &str,
        progress: &Progress<'_>,
    ) -> Result<Secret, Fault> {
        let denied = |why: String, hint: &str| {
            let what = format!("{}/{}", self.base.host_str().unwrap_or_default(), self.repository);
            Fault::Fatal(Error::Denied { what, why, hint: hint.to_owned() })
        };
        let log_in = "configure an account that may use it";
        match challenge {
            Some(Challenge::Basic) => match &self.options.credentials {
                Some(credentials) => Ok(basic(credentials)),
                None => Err(denied("it requires authentication".to_owned(), log_in)),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                let realm: Url =
                    realm.parse().map_err(|_| denied("its token service has no address".to_owned(), log_in))?;
                let open = realm.scheme() == "http" && self.options.plain_http.allows(&realm);
                if realm.scheme() != "https" && !(open && self.base.scheme() == "http") {
                    return Err(denied(format!("its token service {} does not use https", shown(&realm)), "use https"));
                }
                let mut url = realm.clone();
                let default = format!("repository:{}:{actions}", self.repository);
                let service = service.map(|service| ("service", service));
                let pairs = service.into_iter().chain([("scope", scope.unwrap_or(default))]);
                url.query_pairs_mut().extend_pairs(pairs);
                let mut request = self.client.get(url.clone());
                if let Some(credentials) = &self.options.credentials {
                    // The token host comes from the registry; the password is sent to allowed hosts only.
                    if !self.trusts(&realm) {
                        let host = realm.host_str().unwrap_or_default();
                        let hint =
                            format!("if {host} may receive the password, add it to the token hosts of this registry");
                        let why = format!("it asks to send the password to {host}");
                        let what = format!("{}/{}", self.base.host_str().unwrap_or_default(), self.repository);
                        return Err(Fault::Fatal(Error::Denied { what, why, hint }));
                    }
                    request = request.header(AUTHORIZATION, hidden(&basic(credentials).0)?);
                }
                progress(Event::Resolving { what: format!("a token from {}", shown(&realm)) });
                let response = request.send().await.map_err(|error| RequestError::of(&realm, error))?;
                let status = response.status();
                if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Err(denied(format!("its token service answered {status}"), log_in));
                }
                if !status.is_success() {
                    return Err(refusal(&response));
                }
                let text = body(response, MOST_TOKEN, &realm).await?;
                let answer: Token = serde_json::from_slice(&text)
                    .map_err(|_| denied("its token service gave no token".to_owned(), log_in))?;
                match answer.token.or(answer.access_token) {
                    Some(token) if !token.is_empty() => Ok(Secret(format!("Bearer {token}"))),
                    _ => Err(denied("its token service gave no token".to_owned(), log_in)),
                }
            }
            None => Err(denied("it requires authentication and names no supported scheme".to_owned(), log_in)),
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

/// `a="b",c=d`: commas may be inside of quotes, as in `scope="repository:x:pull,push"`.
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
    let why = "it has characters that are not allowed in an HTTP header".to_owned();
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Fault::Fatal(Error::Setting { what: "the registry's token or account".to_owned(), why }))?;
    value.set_sensitive(true);
    Ok(value)
}

impl From<RequestError> for Fault {
    fn from(error: RequestError) -> Fault {
        match error {
            RequestError::Transient(failure) => Fault::Again(failure),
            RequestError::Untrusted { url, reason } => {
                let hint = "for a private CA, put its certificate into a file and name it (TEXTNLP_CA_FILE)".to_owned();
                Fault::Fatal(Error::Denied { what: url, why: reason, hint })
            }
            RequestError::Redirect { url, reason } => {
                Fault::Fatal(Error::Network { what: url, attempts: 1, why: reason })
            }
        }
    }
}

async fn body(response: Response, most: usize, url: &Url) -> Result<Vec<u8>, Fault> {
    read_body(response, most).await.map_err(|error| match error {
        BodyError::Cut(error) => RequestError::of(url, error).into(),
        BodyError::TooLong(_) => {
            Fault::Fatal(Error::malformed(shown(url), format!("the answer has more than {most} bytes")))
        }
    })
}

fn refusal(response: &Response) -> Fault {
    match transient(response) {
        Some(failure) => Fault::Again(failure),
        None => Fault::Refused { status: response.status(), says: String::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auth_challenges_are_parsed_with_quoted_commas() {
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
    fn passwords_are_hidden_and_not_sent_to_other_hosts() {
        let credentials = Credentials { user: "me".to_owned(), password: Secret::new("hunter2") };
        let options = Options { credentials: Some(credentials), ..Options::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
        let line = |host: &str| RepositoryClient::new(host, "a/b", &options).unwrap();
        let trusts = |host: &str, realm: &str| line(host).trusts(&realm.parse().unwrap());
        assert!(trusts("docker.io", "https://auth.docker.io/token"));
        assert!(trusts("ghcr.io", "https://ghcr.io/token"));
        assert!(!trusts("ghcr.io", "https://ghcr.io.evil.example/token"));
        assert!(!trusts("127.0.0.1:5000", "http://127.0.0.1:5001/token"));
    }
}
