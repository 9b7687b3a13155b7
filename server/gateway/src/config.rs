//! The gateway's file: strict YAML, every mistake at once.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use textnlp_net::network::Network;
use textnlp_process::{InvalidConfig, read_config};

/// The configuration of the gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address for clients.
    pub listen: SocketAddress,
    /// The address for metrics.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddress>,
    /// The administration address: a Unix socket or loopback.
    #[serde(default)]
    pub admin_listen: Option<SocketAddress>,
    /// The address of `GET /health` and `GET /ready` for health checks, in plain HTTP: clients cannot take its
    /// connections.
    #[serde(default)]
    pub health_listen: Option<SocketAddress>,
    /// The address of `GET /ready` for the site agent and the global endpoint, with TLS as for clients: the answer of a
    /// server. Clients cannot take its connections.
    #[serde(default)]
    pub ready_listen: Option<SocketAddress>,
    /// Certificate and key; without them it speaks plain HTTP.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// The backends.
    #[serde(default)]
    pub backends: Vec<WantedBackend>,
    /// Further addresses whose metrics are included.
    #[serde(default)]
    pub metrics_from: Vec<SocketAddress>,
    /// Health check settings.
    #[serde(default)]
    pub health: Health,
    /// Timeout of a request, from its first byte to the last byte of the response.
    #[serde(default = "three_hundred")]
    pub timeout_seconds: u64,
    /// The largest body that a client may send.
    #[serde(default = "ten_megabytes")]
    pub max_request_bytes: u64,
    /// Maximum client connections. For one more, the connection that has been idle longest is closed; if every
    /// connection has a request, the new one is refused. An idle one takes about 40 KB.
    #[serde(default = "twelve_thousand")]
    pub max_connections: usize,
    /// Maximum connections of one client address, or of one /64 of IPv6; more are refused. Clients behind one NAT
    /// share an address.
    #[serde(default = "thousand")]
    pub max_connections_per_address: usize,
    /// Proxies in front of the gateway. They are not limited as one client, and their `X-Forwarded-For` names the
    /// client.
    #[serde(default, deserialize_with = "networks")]
    pub trusted_proxies: Vec<Network>,
    /// Origins whose pages may read the gateway's own answers (CORS), as the backends allow them; `*` is every origin.
    #[serde(default)]
    pub cors_origins: Vec<String>,
    /// Timeout for the first request of a connection.
    #[serde(default = "ten")]
    pub first_request_timeout_seconds: u64,
    /// Timeout for request headers and for idle connections. A load balancer in front of the gateway needs a shorter
    /// idle timeout (most have 60 s): otherwise it may send a request on a connection that is just being closed.
    #[serde(default = "seventy_five")]
    pub header_timeout_seconds: u64,
    /// Grace period for requests in flight after SIGTERM.
    #[serde(default = "thirty")]
    pub drain_seconds: u64,
}

/// Files of the certificate, both PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The chain, the leaf first.
    pub certificate_file: Utf8PathBuf,
    /// The key.
    pub key_file: Utf8PathBuf,
    /// The certificate for the DNS names that a public authority certified; all other clients get the one above.
    #[serde(default)]
    pub public: Option<PublicTls>,
}

/// The certificate of a public authority, and the answers to its challenges.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicTls {
    /// Key and chain in one PEM file, so that both change at once. It may be created later.
    pub file: Utf8PathBuf,
    /// The folder of the certificates that answer challenges (TLS-ALPN-01), `NAME.pem`, each with its key.
    pub challenges: Utf8PathBuf,
}

/// One backend as the file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedBackend {
    /// Its name in metrics and in the status.
    pub name: String,
    /// The address for requests.
    pub listen: SocketAddress,
    /// The address of `/metrics`.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddress>,
    /// The address of health checks, if its clients do not share it.
    #[serde(default)]
    pub ready_listen: Option<SocketAddress>,
    /// TLS settings; plain HTTP when absent.
    #[serde(default)]
    pub tls: Option<BackendTls>,
    /// Its share of the requests; 0: none.
    #[serde(default = "hundred")]
    pub weight: u32,
}

/// How a backend is authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendTls {
    /// The CA of its certificate, PEM. The file may be created later.
    pub ca_file: Utf8PathBuf,
    /// The name in its certificate.
    pub name: String,
}

/// Health check settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// The path of the health check; 2xx is healthy.
    pub path: String,
    /// Interval between two health checks.
    pub interval_ms: u64,
    /// Timeout of a health check.
    pub timeout_ms: u64,
    /// Failures in a row until it gets no more requests.
    pub unhealthy_after: u32,
    /// Successes in a row until it gets requests again.
    pub healthy_after: u32,
    /// Whether requests in flight are aborted when health checks mark a backend as unhealthy. A replica may only be
    /// busy; a site that is unreachable would block them until the request timeout.
    pub gives_up: bool,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            path: "/ready".to_owned(),
            interval_ms: 500,
            timeout_ms: 2000,
            unhealthy_after: 2,
            healthy_after: 1,
            gives_up: false,
        }
    }
}

fn hundred() -> u32 {
    100
}
fn thirty() -> u64 {
    30
}
fn three_hundred() -> u64 {
    300
}
fn ten_megabytes() -> u64 {
    10_000_000
}
fn twelve_thousand() -> usize {
    12_000
}

fn thousand() -> usize {
    1000
}
fn ten() -> u64 {
    10
}
fn seventy_five() -> u64 {
    75
}

fn networks<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Network>, D::Error> {
    Vec::<String>::deserialize(from)?.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// An address to listen on or to connect to, which needs no DNS query.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum SocketAddress {
    /// `HOST:PORT`, the host as a number or `localhost`.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix(Utf8PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    gateway: Config,
}

/// The kernel's bound on a socket's path, with its closing zero.
const MOST_SOCKET_PATH: usize = 107;
const MOST_BACKENDS: usize = 256;
const MOST_PROXIES: usize = 64;
const MOST_ORIGINS: usize = 256;
/// The highest `max_connections`.
pub(super) const MOST_CONNECTIONS: usize = 1_000_000;
const MOST_FILE: u64 = 4 << 20;
/// Whose metrics are gathered besides those of backends.
const MOST_OTHERS: usize = 16;

impl Config {
    /// Reads and checks the file.
    pub fn read(file: &Utf8Path) -> Result<Config, InvalidConfig> {
        let section = |document: Document| document.gateway;
        read_config("gateway configuration", file, MOST_FILE, section, Config::problems)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut names = std::collections::HashSet::new();
        for backend in &self.backends {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if backend.name.is_empty() || backend.name.len() > 63 || !backend.name.chars().all(plain) {
                problems
                    .push(format!("backend `{}`: a name has 1 to 63 letters, digits, `-`, `_` or `.`", backend.name));
            }
            if !names.insert(&backend.name) {
                problems.push(format!("backend `{}` is duplicated", backend.name));
            }
            if let Some(tls) = &backend.tls {
                if !tls.ca_file.is_absolute() {
                    problems.push(format!(
                        "backend `{}`: tls.ca_file `{}` is not an absolute path",
                        backend.name, tls.ca_file
                    ));
                }
                if rustls::pki_types::ServerName::try_from(tls.name.as_str()).is_err() {
                    problems.push(format!(
                        "backend `{}`: tls.name `{}` is neither a DNS name nor an address",
                        backend.name, tls.name
                    ));
                }
            }
            if backend.weight > 10_000 {
                problems.push(format!("backend `{}`: weight {} is above 10000", backend.name, backend.weight));
            }
        }
        if self.backends.len() > MOST_BACKENDS {
            problems.push(format!("{} backends exceed the maximum of {MOST_BACKENDS}", self.backends.len()));
        }
        if self.trusted_proxies.len() > MOST_PROXIES {
            problems
                .push(format!("{} trusted_proxies exceed the maximum of {MOST_PROXIES}", self.trusted_proxies.len()));
        }
        if self.cors_origins.len() > MOST_ORIGINS {
            problems.push(format!("{} cors_origins exceed the maximum of {MOST_ORIGINS}", self.cors_origins.len()));
        }
        if self.metrics_from.len() > MOST_OTHERS {
            problems
                .push(format!("metrics_from: {} sources exceed the maximum of {MOST_OTHERS}", self.metrics_from.len()));
        }
        for (at, source) in self.metrics_from.iter().enumerate() {
            let called = source.called();
            if names.contains(&called) || self.metrics_from[..at].iter().any(|other| other.called() == called) {
                problems.push(format!("metrics_from {source}: `{called}` is duplicated"));
            }
        }
        if let Some(SocketAddress::Tcp(address)) = &self.admin_listen
            && !address.ip().is_loopback()
        {
            problems
                .push(format!("admin_listen {address}: it has no authentication, so it must be `unix:…` or loopback"));
        }
        if !self.health.path.starts_with('/') || self.health.path.parse::<http::uri::PathAndQuery>().is_err() {
            problems.push(format!("health.path `{}` is not a path", self.health.path));
        }
        let within = [
            ("timeout_seconds", self.timeout_seconds, 1, 90_000),
            ("max_request_bytes", self.max_request_bytes, 1, 1 << 40),
            ("max_connections", self.max_connections as u64, 1, MOST_CONNECTIONS as u64),
            ("max_connections_per_address", self.max_connections_per_address as u64, 1, MOST_CONNECTIONS as u64),
            ("first_request_timeout_seconds", self.first_request_timeout_seconds, 1, 3600),
            ("header_timeout_seconds", self.header_timeout_seconds, 1, 3600),
            ("drain_seconds", self.drain_seconds, 0, 3600),
            ("health.interval_ms", self.health.interval_ms, 10, 3_600_000),
            ("health.timeout_ms", self.health.timeout_ms, 10, 3_600_000),
            ("health.unhealthy_after", self.health.unhealthy_after.into(), 1, 1000),
            ("health.healthy_after", self.health.healthy_after.into(), 1, 1000),
        ];
        for (name, value, least, most) in within {
            if !(least..=most).contains(&value) {
                problems.push(format!("{name} {value} is not between {least} and {most}"));
            }
        }
        problems
    }

    /// Whether an address is a trusted proxy.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }

    /// Settings that differ from `old` and need new sockets.
    pub(super) fn needs_restart(&self, old: &Config) -> Vec<&'static str> {
        let mut names = Vec::new();
        for (name, same) in [
            ("listen", self.listen == old.listen),
            ("metrics_listen", self.metrics_listen == old.metrics_listen),
            ("admin_listen", self.admin_listen == old.admin_listen),
            ("health_listen", self.health_listen == old.health_listen),
            ("ready_listen", self.ready_listen == old.ready_listen),
            ("tls", self.tls.is_some() == old.tls.is_some()),
        ] {
            if !same {
                names.push(name);
            }
        }
        names
    }
}

impl SocketAddress {
    /// The name of the source in metrics: the socket's file name, or the address.
    pub(super) fn called(&self) -> String {
        let text = match self {
            SocketAddress::Tcp(address) => address.to_string(),
            SocketAddress::Unix(path) => path.file_stem().unwrap_or("socket").to_owned(),
        };
        // It becomes a label in a text that has quotes of its own.
        text.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.:[]".contains(c), "_")
    }
}

impl FromStr for SocketAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Utf8PathBuf::from(path);
            if !path.is_absolute() {
                return Err(format!("`{text}`: the path of a socket must be absolute"));
            }
            if path.as_str().len() > MOST_SOCKET_PATH {
                let long = path.as_str().len();
                return Err(format!(
                    "`{text}`: the path has {long} bytes, but the maximum is {MOST_SOCKET_PATH}; use a shorter path"
                ));
            }
            return Ok(SocketAddress::Unix(path));
        }
        let number = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        number.parse().map(SocketAddress::Tcp).map_err(|_| format!("`{text}` is neither `IP:PORT` nor `unix:/path`"))
    }
}

impl TryFrom<String> for SocketAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SocketAddress> for String {
    fn from(address: SocketAddress) -> String {
        address.to_string()
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketAddress::Tcp(address) => address.fmt(f),
            SocketAddress::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}
