//! How fetching behaves: network settings, credentials, bounds.

use std::fmt;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_buckets::Variables;
use textnlp_net::client::ClientOptions;
use textnlp_net::retry::{Backoff, RetryPolicy};
use textnlp_net::trust::{TrustError, TrustRoots};

use crate::digest::Digest;

pub use textnlp_net::client::ProxySettings;

/// How a fetch behaves. [`FetchOptions::default`] reads no environment; [`FetchOptions::from_env`] does.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// Use the store alone.
    pub offline: bool,
    /// Ask the source again although the store has the model (a branch may have moved).
    pub refresh: bool,
    /// Protect the model from eviction.
    pub pin: bool,
    /// Read every byte of a model that the store already has before handing it out, and fetch it again if it is damaged.
    pub verify: bool,
    /// The most bytes that the store may hold.
    pub max_cache_bytes: Option<u64>,
    /// The hub's address.
    pub endpoint: String,
    /// The hub's token.
    pub token: Option<Token>,
    /// Proxies.
    pub proxy: ProxySettings,
    /// Certificates of a private CA, trusted beside the public ones.
    pub ca_file: Option<Utf8PathBuf>,
    /// The proxies and the private CA for requests with the token, if others than `proxy` and `ca_file`: those of the token's owner.
    pub token_route: Option<(ProxySettings, Option<Utf8PathBuf>)>,
    /// The variables with the credentials for buckets.
    pub variables: Variables,
    /// The digest that the whole model must have (from a lock file).
    pub expect: Option<Digest>,
    /// Bounds of waiting and retrying.
    pub limits: Limits,
}

/// A credential; shows itself as `***`.
#[derive(Clone)]
pub struct Token(String);

/// Bounds of waiting and retrying. The defaults suit people and pipelines; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// To make a connection.
    pub connect: Duration,
    /// Without a byte from the other side.
    pub idle: Duration,
    /// A transfer slower than `slow_bytes` in this time is cut and continued on a new connection.
    pub slow_window: Duration,
    /// See `slow_window`.
    pub slow_bytes: u64,
    /// Attempts in a row that gained nothing.
    pub attempts: u32,
    /// Attempts in all for one file; a line that cuts every few bytes must end some time.
    pub attempts_in_all: u32,
    /// The first pause between attempts; it doubles up to 32 times this.
    pub pause: Duration,
    /// The longest wait that the other side may ask of us.
    pub wait_at_most: Duration,
    /// How long to wait for another process that fetches the same.
    pub lock_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            slow_window: Duration::from_secs(60),
            slow_bytes: 64 << 10,
            attempts: 6,
            attempts_in_all: 200,
            pause: Duration::from_millis(250),
            wait_at_most: Duration::from_secs(120),
            lock_wait: Duration::from_secs(3600),
        }
    }
}

impl Limits {
    /// How transfers within these bounds are retried.
    pub(crate) fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: self.attempts,
            attempts_total: self.attempts_in_all,
            backoff: Backoff { first: self.pause, longest: self.pause * 32 },
            longest_retry_after: self.wait_at_most,
            timeout: WITHOUT_PROGRESS,
        }
    }

    /// How clients within these bounds are made.
    pub fn client(&self, proxy: &ProxySettings, ca_file: Option<&Utf8Path>) -> Result<ClientOptions, TrustError> {
        let trust = TrustRoots::public_and(ca_file)?;
        let (connect_timeout, idle_timeout) = (self.connect, Some(self.idle));
        Ok(ClientOptions { trust, proxy: proxy.clone(), connect_timeout, idle_timeout, timeout: None })
    }
}

/// A transfer that brought nothing for this long is not retried any more.
const WITHOUT_PROGRESS: Duration = Duration::from_secs(3600);

/// The public hub.
pub(crate) const PUBLIC_HUB: &str = "https://huggingface.co";

impl Default for FetchOptions {
    fn default() -> Self {
        FetchOptions {
            offline: false,
            refresh: false,
            pin: false,
            verify: true,
            max_cache_bytes: None,
            endpoint: PUBLIC_HUB.to_owned(),
            token: None,
            proxy: ProxySettings::default(),
            ca_file: None,
            token_route: None,
            variables: Variables::default(),
            expect: None,
            limits: Limits::default(),
        }
    }
}

impl FetchOptions {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` and
    /// `TEXTNLP_CA_FILE`, and the variables of clouds. Empty variables count as absent.
    pub fn from_env() -> FetchOptions {
        let variables = Variables::of_this_process();
        FetchOptions { variables, ..FetchOptions::from_variables(|name| std::env::var(name).ok()) }
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> FetchOptions {
        let get = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        FetchOptions {
            offline: get("HF_HUB_OFFLINE")
                .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")),
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.to_owned()),
            token: get("HF_TOKEN").map(Token::new),
            proxy: ProxySettings::from_variables(&variable),
            ca_file: get("TEXTNLP_CA_FILE").map(Utf8PathBuf::from),
            ..FetchOptions::default()
        }
    }
}

impl FetchOptions {
    /// Takes the proxies and the private CA of an environment file. The file may have another author: what they pass on or vouch for
    /// can be read by them, so requests with the token keep the routes of before.
    #[must_use]
    pub fn by_file(self, proxy: ProxySettings, ca_file: Option<Utf8PathBuf>) -> FetchOptions {
        let before = (self.proxy, self.ca_file);
        let ca_file = ca_file.or_else(|| before.1.clone());
        FetchOptions { proxy, ca_file, token_route: Some(self.token_route.unwrap_or(before)), ..self }
    }
}

impl Token {
    /// Takes the token in.
    pub fn new(text: impl Into<String>) -> Token {
        Token(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetch_options_come_from_the_environment_and_hide_secrets() {
        let options = FetchOptions::from_variables(|name| {
            let value = match name {
                "HF_TOKEN" => "hf_secret",
                "https_proxy" => "http://user:word@proxy:3128",
                "HTTPS_PROXY" => "http://other:1",
                "NO_PROXY" => "localhost",
                "HF_HUB_OFFLINE" => "1",
                "HF_ENDPOINT" => " ",
                _ => return None,
            };
            Some(value.to_owned())
        });
        assert_eq!(options.proxy.https.as_deref(), Some("http://user:word@proxy:3128"));
        assert_eq!(options.endpoint, PUBLIC_HUB);
        assert!(options.offline);
        let shown = format!("{options:?}");
        assert!(!shown.contains("hf_secret") && !shown.contains("word"), "{shown}");
    }
}
