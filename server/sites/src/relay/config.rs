//! The configuration file of the inter-site relay: strict YAML; all errors are reported at once.

use std::fmt;

use camino::Utf8Path;
use serde::Deserialize;
use textnlp_gateway::SocketAddress;
use textnlp_process::{InvalidConfig, read_config};

use super::tls::Tls;

/// The configuration of the relay.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The control socket for status and faults: a Unix socket.
    pub listen: SocketAddress,
    /// The connections that it relays.
    pub links: Vec<Link>,
    /// Connections of one link at once; more wait in the system's queue.
    #[serde(default = "two_thousand")]
    pub max_connections: usize,
}

/// One relay.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its name in the status.
    pub name: String,
    /// The address it listens on.
    pub listen: SocketAddress,
    /// The address it forwards to.
    pub to: Target,
    /// Those at its two ends speak TLS with one another through it, so that neither end here has to.
    #[serde(default)]
    pub end_to_end_tls: bool,
    /// Mutual TLS for the listener: accepts only sites of this environment. Without it every client is accepted, which
    /// is allowed on this machine only.
    #[serde(default)]
    pub listen_tls: Option<Tls>,
    /// Mutual TLS towards the target.
    #[serde(default)]
    pub to_tls: Option<Tls>,
}

/// The target of a link.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Target {
    /// An address.
    At(SocketAddress),
    /// `HOST:PORT`. The name is resolved for each connection, because an address inside a cluster may change.
    Named(String, u16),
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = match text.parse() {
            Ok(address) => return Ok(Self::At(address)),
            Err(wrong) => wrong,
        };
        let is_name = |host: &str| {
            let label = |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            host.len() <= 253 && host.split('.').all(label)
        };
        match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) if port > 0 && is_name(host) => Ok(Self::Named(host.to_owned(), port)),
            _ => Err(format!("{wrong}, nor `NAME:PORT`")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Named(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    border: Config,
}

fn two_thousand() -> usize {
    2000
}

const MOST_LINKS: usize = 256;
const MOST_CONNECTIONS: usize = 100_000;
const MOST_FILE: u64 = 1 << 20;

/// Whether an address is reachable from other machines, or on another machine.
fn is_elsewhere(address: &SocketAddress) -> bool {
    matches!(address, SocketAddress::Tcp(address) if !address.ip().is_loopback())
}

impl Config {
    /// Reads and checks the file.
    pub fn read(file: &Utf8Path) -> Result<Config, InvalidConfig> {
        read_config("relay configuration", file, MOST_FILE, |document: Document| document.border, Config::problems)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (mut names, mut doors) =
            (std::collections::HashSet::new(), std::collections::HashSet::from([&self.listen]));
        for link in &self.links {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if link.name.is_empty() || link.name.len() > 80 || !link.name.chars().all(plain) {
                problems.push(format!("link `{}`: a name has 1 to 80 letters, digits, `-`, `_` or `.`", link.name));
            }
            if !names.insert(&link.name) {
                problems.push(format!("link `{}` is duplicated", link.name));
            }
            if !matches!(&link.listen, SocketAddress::Tcp(address) if address.port() == 0)
                && !doors.insert(&link.listen)
            {
                problems.push(format!("link `{}`: {} is already in use by another link", link.name, link.listen));
            }
            let leads_away = match &link.to {
                Target::At(address) => is_elsewhere(address),
                Target::Named(..) => true,
            };
            for (is_open, tls, end, connects) in [
                (is_elsewhere(&link.listen), &link.listen_tls, "listen", false),
                (leads_away && !link.end_to_end_tls, &link.to_tls, "to", true),
            ] {
                if is_open && tls.is_none() {
                    let why = "that connection leaves this machine, so it needs";
                    problems.push(format!("link `{}`: {end}: {why} `{end}_tls`", link.name));
                }
                if let Some(problem) = tls.as_ref().and_then(|tls| tls.problem(connects)) {
                    problems.push(format!("link `{}`: `{end}_tls`: {problem}", link.name));
                }
            }
            if link.end_to_end_tls && (link.listen_tls.is_some() || link.to_tls.is_some()) {
                let why = "`end_to_end_tls` excludes `listen_tls` and `to_tls`";
                problems.push(format!("link `{}`: {why}", link.name));
            }
            if matches!(&link.to, Target::At(address) if *address == link.listen) {
                problems.push(format!("link `{}`: its destination is its own listener", link.name));
            }
        }
        if matches!(self.listen, SocketAddress::Tcp(_)) {
            problems.push(format!("listen {}: it has no authentication, so it must be `unix:…`", self.listen));
        }
        if self.links.len() > MOST_LINKS {
            problems.push(format!("{} links exceed the maximum of {MOST_LINKS}", self.links.len()));
        }
        if !(1..=MOST_CONNECTIONS).contains(&self.max_connections) {
            problems.push(format!("max_connections {} is not between 1 and {MOST_CONNECTIONS}", self.max_connections));
        }
        problems
    }
}
