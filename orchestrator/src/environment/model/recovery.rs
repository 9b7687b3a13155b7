//! What protects a service: backups, copies in other places, failover, rollouts and gates.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::{Bytes, SecretSource, Span, section, words};

section! {
    /// Copies that survive us.
    pub struct Backup {
        /// Whether copies are made.
        pub enabled: bool = false,
        /// How often.
        pub every: Span = Span::seconds(86_400),
        /// How long they are kept.
        pub keep: Span = Span::seconds(30 * 86_400),
        /// Where: a folder or an object store's URL; left out, beside the state.
        pub destination: Option<String> = None,
        /// Whether each copy is proven by restoring it.
        pub verify: bool = true,
        /// Public keys (`age1…`) that open each copy, besides the environment's own: those of whoever restores after a fire.
        pub recipients: Vec<String> = Vec::new(),
        /// The disk that copies lie on, where one is made for them, as in a cluster; left out, as much as the database's.
        pub size: Option<Bytes> = None,
        /// How far the archived log of a PostgreSQL of our own may be behind: it can be restored to any moment up to then. Left out, no
        /// log is archived.
        pub point_in_time: Option<Span> = None,
    }
}

words! {
    /// How traffic finds a site.
    pub enum TrafficMode {
        /// Through our gateways.
        Gateway = "gateway",
        /// By DNS answers.
        Dns = "dns",
    }
}

section! {
    /// Which site gets how much.
    pub struct TrafficSettings {
        /// How traffic finds a site.
        pub mode: TrafficMode = TrafficMode::Gateway,
        /// The port of what clients of several sites talk to, where it is a gateway of ours.
        #[schemars(range(min = 1, max = 65535))]
        pub port: u16 = 8440,
        /// The port of its metrics.
        #[schemars(range(min = 1, max = 65535))]
        pub metrics_port: u16 = 9080,
        /// The name that clients use.
        pub domain: Option<String> = None,
        /// A DNS zone that exists already, by its id.
        pub existing: Option<String> = None,
        /// Shares by site; a standby has 0 until failover.
        pub weights: BTreeMap<String, u32> = BTreeMap::new(),
        /// What is asked to see whether a site is well.
        pub health_path: String = "/health".to_owned(),
        /// How long resolvers may keep an answer.
        pub ttl: Span = Span::seconds(60),
    }
}

words! {
    /// What signs updates of a zone.
    pub enum DnsAlgorithm {
        /// HMAC with SHA-256.
        Sha256 = "hmac-sha256",
        /// HMAC with SHA-512.
        Sha512 = "hmac-sha512",
    }
}

/// A zone in which the addresses of `traffic.domain` follow the sites that may have traffic, by signed updates (RFC 2136).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// The zone's primary name server, by its address, with or without a port: moving DNS needs no DNS.
    pub server: String,
    /// The zone.
    pub zone: String,
    /// What signs; the name server has it too.
    pub key: DnsKey,
    /// Where clients reach each site, by site.
    pub addresses: BTreeMap<String, Vec<String>>,
}

/// A key of a name server (TSIG).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsKey {
    /// What the name server calls it.
    pub name: String,
    /// What it signs with.
    #[serde(default = "DnsKey::usual")]
    pub algorithm: DnsAlgorithm,
    /// Where its secret is kept, in base64.
    pub secret: SecretSource,
}

impl Dns {
    /// The name server's address, with the port that name servers have where none is written.
    pub fn server_address(&self) -> Option<SocketAddr> {
        let alone = || self.server.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
        self.server.parse().ok().or_else(alone).filter(|address: &SocketAddr| address.port() != 0)
    }
}

impl DnsKey {
    fn usual() -> DnsAlgorithm {
        DnsAlgorithm::Sha256
    }
}

section! {
    /// What is kept equal between sites.
    pub struct Replication {
        /// The database.
        pub database: DatabaseReplication = DatabaseReplication::default(),
        /// The models.
        pub models: ModelReplication = ModelReplication::default(),
        /// The configuration.
        pub configuration: ConfigurationReplication = ConfigurationReplication::default(),
    }
}

words! {
    /// How a database is copied.
    pub enum DatabaseCopy {
        /// Not at all.
        None = "none",
        /// Every change as it happens.
        Streaming = "streaming",
    }
}

section! {
    /// Copying the database.
    pub struct DatabaseReplication {
        /// How.
        pub mode: DatabaseCopy = DatabaseCopy::None,
        /// The lag that is worth an alert.
        pub max_lag: Span = Span::seconds(5),
    }
}

section! {
    /// Copying models.
    pub struct ModelReplication {
        /// How often.
        pub every: Span = Span::seconds(900),
        /// Whether they are compressed on the way.
        pub compress: bool = true,
    }
}

section! {
    /// Copying configuration.
    pub struct ConfigurationReplication {
        /// How often.
        pub every: Span = Span::seconds(300),
    }
}

words! {
    /// Who decides about a failover or a failback.
    pub enum Failover {
        /// There is no second site.
        None = "none",
        /// A person.
        Manual = "manual",
        /// The watch, with the witness's grant.
        Automatic = "automatic",
    }
}

words! {
    /// On what a drill is done.
    pub enum DrillTarget {
        /// On copies.
        Clone = "clone",
        /// On the running service.
        Live = "live",
    }
}

section! {
    /// What happens when a site is lost.
    pub struct Dr {
        /// Who decides about failover.
        pub mode: Failover = Failover::None,
        /// A place outside every site that grants promotions.
        pub witness: Option<Witness> = None,
        /// Data that may be lost, as time.
        pub rpo: Span = Span::seconds(300),
        /// How long until the service answers again.
        pub rto: Span = Span::seconds(900),
        /// Who decides about failback.
        pub failback: Failover = Failover::Manual,
        /// On what a drill is done.
        pub drill: DrillTarget = DrillTarget::Clone,
        /// How often each site is looked at.
        pub watch_every: Span = Span::seconds(1),
        /// Looks in a row that must fail before a site counts as lost.
        #[schemars(range(min = 1, max = 100))]
        pub lost_after: u32 = 3,
        /// Whether secondary and standby sites run before they are needed.
        pub warm: bool = true,
    }
}

/// A place outside every site that grants promotions.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Who provides it.
    #[schemars(schema_with = "super::label")]
    pub provider: String,
    /// Where.
    pub region: String,
}

words! {
    /// How a new release replaces the old one.
    pub enum Strategy {
        /// One replica after the other.
        Rolling = "rolling",
        /// A second set beside the first, then all traffic at once.
        BlueGreen = "blue-green",
        /// A share of the traffic first.
        Canary = "canary",
    }
}

section! {
    /// How a new release replaces the old one.
    pub struct Rollout {
        /// How.
        pub strategy: Strategy = Strategy::Rolling,
        /// The first share of the traffic, in percent, for canary.
        #[schemars(range(min = 1, max = 99))]
        pub first_share: u32 = 10,
        /// How long the new release must be well before the old one goes.
        pub bake: Span = Span::seconds(600),
        /// After this long without an end it reverts.
        pub deadline: Span = Span::seconds(3600),
        /// Who is asked `queries`.
        pub prometheus: Option<Prometheus> = None,
        /// What has to be well too, as it is seen from outside of the pods.
        pub queries: Vec<Query> = Vec::new(),
    }
}

/// A Prometheus, or what answers like one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prometheus {
    /// Where it is reached from inside the cluster: what stands before `/api/v1/query`.
    pub url: String,
    /// The authority that it is trusted by, a file in PEM form; left out, those that everybody trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Where the token is kept that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretSource>,
}

/// A question to a Prometheus, and which answers are well.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// What it is called in what is said.
    pub name: String,
    /// The question, in PromQL, whose answer is one number; `{{namespace}}`, `{{new}}` and `{{old}}` stand for the namespace and for what
    /// the label `pod-template-hash` is on pods of the new and of the old release.
    pub query: String,
    /// Nothing above it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// Nothing below it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// So many answers in a row, ten seconds from one to the next, say that it is well, or that it is not.
    #[serde(default = "Query::usual", rename = "for")]
    #[schemars(range(min = 1, max = 60))]
    pub samples: u32,
}

impl Query {
    fn usual() -> u32 {
        3
    }
}

section! {
    /// What the gate of this phase demands.
    pub struct Gates {
        /// p95 of the whole answer, in milliseconds.
        #[schemars(range(min = 1, max = 600_000))]
        pub p95_ms: u32 = 500,
        /// The largest share of failed requests.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub error_rate: f64 = 0.01,
        /// Users at the same time.
        #[schemars(range(min = 1, max = 100_000))]
        pub users: u32 = 100,
        /// New users per second until all are there.
        #[schemars(range(min = 1, max = 10_000))]
        pub ramp: u32 = 10,
        /// The shortest time that a user thinks between requests.
        pub think_min: Span = Span::seconds(1),
        /// The longest.
        pub think_max: Span = Span::seconds(3),
        /// How long all users stay after the ramp.
        pub hold: Span = Span::seconds(30),
        /// The fewest tokens that a request asks for.
        #[schemars(range(min = 1, max = 4096))]
        pub tokens_min: u32 = 50,
        /// The most.
        #[schemars(range(min = 1, max = 4096))]
        pub tokens_max: u32 = 100,
        /// The share of time that the service must be there, from pilot on.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub availability: f64 = 0.999,
        /// Sessions that must be open at once, from scale-up on.
        #[schemars(range(min = 1, max = 1_000_000))]
        pub sessions: u32 = 10_000,
        /// How soon there must be more pods under load, from scale-up on.
        pub scaling: Span = Span::seconds(120),
    }
}
