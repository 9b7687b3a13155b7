//! What protects a service: backups, copies in other places, failover, rollouts and gates.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::{
    AdvisoryPolicy, Bytes, DatabaseCopy, DnsAlgorithm, Failover, Framework, SecretSource, Span, Strategy, TrafficMode,
    section, words,
};

section! {
    /// Backups.
    pub struct Backup {
        /// Whether backups are taken.
        pub enabled: bool = false,
        /// The interval.
        pub every: Span = Span::seconds(86_400),
        /// The retention of backups.
        pub keep: Span = Span::seconds(30 * 86_400),
        /// The destination: a folder, or a bucket as `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`;
        /// if unset, a folder next to the state. A cluster stores dumps on a volume, and copies them to the bucket.
        pub destination: Option<String> = None,
        /// A file with the variables by which a bucket is opened, one `NAME=VALUE` in a line; if unset, those of a command,
        /// for scheduled backups the role of the machine, and in a cluster the service account `textnlp-backup`.
        pub credentials: Option<SecretSource> = None,
        /// Whether each backup is verified by a restore.
        pub verify: bool = true,
        /// Public keys (`age1…`) that can decrypt each backup, in addition to the environment's own, such as an offline recovery key.
        pub recipients: Vec<String> = Vec::new(),
        /// The size of the volume for backups, where one is created, as in a cluster; if unset, the size of the database.
        pub size: Option<Bytes> = None,
        /// The maximum lag of the log archive of a built-in PostgreSQL, for point-in-time recovery. If unset, no
        /// log is archived.
        pub point_in_time: Option<Span> = None,
    }
}

section! {
    /// Traffic between clients and sites.
    pub struct TrafficSettings {
        /// How clients are routed to a site.
        pub mode: TrafficMode = TrafficMode::Gateway,
        /// The port of the built-in global endpoint.
        #[schemars(range(min = 1, max = 65535))]
        pub port: u16 = 8440,
        /// The metrics port of the global endpoint.
        #[schemars(range(min = 1, max = 65535))]
        pub metrics_port: u16 = 9080,
        /// The domain that clients use.
        pub domain: Option<String> = None,
        /// An existing DNS zone, by its id.
        pub existing: Option<String> = None,
        /// Whether the provider of the DNS zone issues and renews a public certificate of the domain at its load balancer.
        pub managed_certificate: bool = false,
        /// Traffic weights by site; a standby has 0 until a failover.
        pub weights: BTreeMap<String, u32> = BTreeMap::new(),
        /// The TTL of DNS records.
        pub ttl: Span = Span::seconds(60),
    }
}

/// A DNS zone in which the records of `traffic.domain` follow the sites with traffic, by signed updates (RFC 2136).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// The IP address of the zone's primary name server, with an optional port. It is no DNS name, because updates must not depend on DNS.
    pub server: String,
    /// The name of the zone.
    pub zone: String,
    /// The TSIG key, which the name server has too.
    pub key: DnsKey,
    /// The addresses that clients use, by site.
    pub addresses: BTreeMap<String, Vec<String>>,
}

/// A TSIG key of a name server.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsKey {
    /// Its name at the name server.
    pub name: String,
    /// The algorithm.
    #[serde(default = "DnsKey::usual")]
    pub algorithm: DnsAlgorithm,
    /// A reference to its secret, in base64.
    pub secret: SecretSource,
}

impl Dns {
    /// The name server's address, with the default DNS port if none is set.
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
    /// Replication between sites.
    pub struct Replication {
        /// The database.
        pub database: DatabaseReplication = DatabaseReplication::default(),
        /// The models.
        pub models: ModelReplication = ModelReplication::default(),
        /// The configuration.
        pub configuration: ConfigurationReplication = ConfigurationReplication::default(),
    }
}

section! {
    /// Replication of the database.
    pub struct DatabaseReplication {
        /// The strategy.
        pub mode: DatabaseCopy = DatabaseCopy::None,
        /// The lag that causes an alert.
        pub max_lag: Span = Span::seconds(5),
    }
}

section! {
    /// Replication of models.
    pub struct ModelReplication {
        /// The interval.
        pub every: Span = Span::seconds(900),
        /// Whether models are compressed in transit.
        pub compress: bool = true,
    }
}

section! {
    /// Replication of the configuration.
    pub struct ConfigurationReplication {
        /// The interval.
        pub every: Span = Span::seconds(300),
    }
}

words! {
    /// The target of a drill.
    pub enum DrillTarget {
        /// A clone of the service.
        Clone = "clone",
        /// The running service.
        Live = "live",
    }
}

section! {
    /// Disaster recovery after a site failure.
    pub struct Dr {
        /// Whether failover is automatic or manual.
        pub mode: Failover = Failover::None,
        /// A location outside every site that grants promotions.
        pub witness: Option<Witness> = None,
        /// The recovery point objective: the acceptable data loss, as time.
        pub rpo: Span = Span::seconds(300),
        /// The recovery time objective: the time until the service answers again.
        pub rto: Span = Span::seconds(900),
        /// Whether failback is automatic or manual.
        pub failback: Failover = Failover::Manual,
        /// The target of a drill.
        pub drill: DrillTarget = DrillTarget::Clone,
        /// The poll interval of each site.
        pub watch_every: Span = Span::seconds(1),
        /// Consecutive failed polls after which a site counts as failed.
        #[schemars(range(min = 1, max = 100))]
        pub lost_after: u32 = 3,
    }
}

/// A location outside every site that grants promotions.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// The provider.
    #[schemars(schema_with = "super::label")]
    pub provider: String,
    /// The region.
    pub region: String,
}

section! {
    /// How a new release replaces the old one.
    pub struct Rollout {
        /// The strategy.
        pub strategy: Strategy = Strategy::Rolling,
        /// The first traffic weight of a canary, in percent.
        #[schemars(range(min = 1, max = 99))]
        pub first_share: u32 = 10,
        /// The time that the new release must be healthy before the old one is removed.
        pub bake: Span = Span::seconds(600),
        /// The deadline after which an unfinished rollout is reverted.
        pub deadline: Span = Span::seconds(3600),
        /// The Prometheus that evaluates `queries`.
        pub prometheus: Option<Prometheus> = None,
        /// Additional metrics that must be healthy, measured outside the pods.
        pub queries: Vec<Query> = Vec::new(),
    }
}

/// A Prometheus, or a compatible server.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prometheus {
    /// Its address inside the cluster, without `/api/v1/query`.
    pub url: String,
    /// The certificate authority to trust, as a PEM file; if unset, the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// A reference to its bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretSource>,
}

/// A query to a Prometheus with its healthy range.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Its name in messages.
    pub name: String,
    /// The query, in PromQL, with one number as its result; `{{namespace}}`, `{{new}}` and `{{old}}` are replaced by the namespace and by
    /// the label `pod-template-hash` of pods of the new and of the old release.
    pub query: String,
    /// The highest healthy value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// The lowest healthy value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Consecutive results, ten seconds apart, that decide whether it is healthy.
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
    /// The targets of the gate of this phase.
    pub struct Gates {
        /// p95 of the whole answer, in milliseconds.
        #[schemars(range(min = 1, max = 600_000))]
        pub p95_ms: u32 = 500,
        /// The highest error rate.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub error_rate: f64 = 0.01,
        /// Concurrent users.
        #[schemars(range(min = 1, max = 100_000))]
        pub users: u32 = 100,
        /// New users per second during the ramp.
        #[schemars(range(min = 1, max = 10_000))]
        pub ramp: u32 = 10,
        /// The shortest think time of a user between requests.
        pub think_min: Span = Span::seconds(1),
        /// The longest think time.
        pub think_max: Span = Span::seconds(3),
        /// The time at full load after the ramp.
        pub hold: Span = Span::seconds(30),
        /// The lowest number of tokens of a request.
        #[schemars(range(min = 1, max = 4096))]
        pub tokens_min: u32 = 50,
        /// The highest number of tokens of a request.
        #[schemars(range(min = 1, max = 4096))]
        pub tokens_max: u32 = 100,
        /// The availability target of pilot and optimized.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub availability: f64 = 0.999,
        /// The time over which availability is measured.
        pub availability_window: Span = Span::seconds(86_400),
        /// Sessions that must be open at once, from scale-up on.
        #[schemars(range(min = 1, max = 1_000_000))]
        pub sessions: u32 = 10_000,
        /// The time limit for additional pods under load, from scale-up on.
        pub scaling: Span = Span::seconds(120),
        /// The longest time to load a model, from staging on. Not checked if unset.
        pub model_load_time: Option<Span> = None,
        /// The most resident memory of a server, from staging on. Not checked if unset.
        pub server_memory: Option<Bytes> = None,
        /// The least rate of generated tokens, in staging and optimized. Not checked if unset.
        #[schemars(range(min = 1, max = 100_000_000))]
        pub tokens_per_second: Option<u32> = None,
        /// What missing or outdated security advisories do.
        pub advisories: AdvisoryPolicy = AdvisoryPolicy::Wait,
        /// The maximum age of advisories.
        pub advisories_max_age: Span = Span::seconds(30 * 86_400),
        /// The frameworks whose measured controls must be met in scale-up.
        pub compliance: Vec<Framework> = Framework::ALL.to_vec(),
        /// The client of the OpenID Connect provider that signs in for the gate of enterprise, by client credentials.
        pub sign_on_client: Option<String> = None,
        /// The scope that it asks for, where the provider needs one, such as `api://textnlp/.default`.
        pub sign_on_scope: Option<String> = None,
        /// The secret of this client.
        pub sign_on_secret: Option<SecretSource> = None,
    }
}
