//! The cloud-neutral parts of a service, as the orchestrator hands them to a provider.
//!
//! A provider lowers each component of a site by itself. Components name one another by [`ComponentName`]; the resources
//! of a component have ids `SITE/COMPONENT` or `SITE/COMPONENT/PART`, and the provider documents which parts it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Secret;
use crate::name::{CloudId, ComponentName, EnvironmentName, SiteName};

/// One place, as a provider sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The environment it belongs to.
    pub environment: EnvironmentName,
    /// Its name.
    pub name: SiteName,
    /// The account, subscription, project or host that the lineage is bound to.
    pub account: String,
    /// The provider's region, `local` for a machine of one's own.
    pub region: String,
    /// How programs run there: `process`, `kubernetes`, …
    pub runtime: String,
    /// The part in disaster recovery: `primary`, `secondary`, `standby`.
    pub role: String,
    /// Tags that every object carries besides our own.
    pub tags: BTreeMap<String, String>,
    /// Whether data kinds are protected here.
    pub protect_data: bool,
}

/// A part of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// Its name within the site.
    pub name: ComponentName,
    /// An object that exists already: read and checked, never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<CloudId>,
    /// What it is.
    pub part: Part,
}

/// What a component is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Where everything else lives: a VPC with subnets; folders on a machine.
    Network(Network),
    /// What runs programs and brings them back: a cluster; a supervisor.
    Cluster(Cluster),
    /// Generated secrets, durable before first use.
    Secrets(Secrets),
    /// A certificate and who signs it.
    Certificate(Certificate),
    /// Model files by digest.
    ModelStore(ModelStore),
    /// Keys, quotas, usage.
    Database(Database),
    /// A cache shared by replicas.
    Cache(Cache),
    /// The inference server's replicas.
    Workload(Workload),
    /// What clients talk to: TLS, weights, retries.
    Endpoint(Endpoint),
    /// Which site gets how much.
    Traffic(Traffic),
    /// Who watches.
    Monitoring(Monitoring),
    /// Where images are.
    Registry(Registry),
    /// What passes every byte between this site and the others.
    Border(Border),
    /// Keeps this site's copy of the control data and looks after the others.
    Watch(Watch),
    /// Grants who is primary, outside every site.
    Witness(Witness),
    /// What clients of several sites talk to.
    Front(Front),
    /// Copies on a schedule.
    Backup(Backup),
}

/// See [`Part::Network`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// The address range, where the provider has one.
    pub cidr: Option<String>,
    /// Whether programs may only talk to whom they need.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub policies: bool,
}

/// See [`Part::Cluster`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// The network it lives in.
    pub network: ComponentName,
    /// GPU machines, when asked for.
    pub gpu: Option<GpuPool>,
}

/// GPU machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuPool {
    /// `small`, `medium`, `large`, `xlarge`; each provider maps it to a machine type.
    pub size: String,
    /// How many.
    pub count: u32,
    /// `never`, `prefer`, `only`.
    pub spot: String,
}

/// See [`Part::Secrets`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Secrets {
    /// Which secrets, by name and how each is made.
    pub generate: BTreeMap<String, SecretRecipe>,
    /// Those of them that all sites have in common.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub shared: BTreeSet<String>,
    /// Those that a person keeps, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub given: BTreeMap<String, Given>,
}

/// How a secret is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRecipe {
    /// A public key prefix and 256 random bits: `tnlp_…`. Outputs `public_id` and `sha256`.
    ApiKey,
    /// A random password of this many characters.
    Password(u32),
    /// An RSA key pair for signing tokens, PKCS#8 PEM. Output `public_pem`.
    RsaSigningKey,
    /// Random bytes, hex.
    Random(u32),
}

/// See [`Part::Certificate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// `local-ca`, `acme`, `existing`.
    pub mode: String,
    /// DNS names and IP addresses.
    pub names: Vec<String>,
    /// Days of validity.
    pub days: u32,
}

/// See [`Part::ModelStore`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStore {
    /// The models, in the order of the file.
    pub models: Vec<Model>,
    /// Where downloads are kept, in bytes at most.
    pub max_cache_bytes: u64,
}

/// One model to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The name that requests use.
    pub name: String,
    /// Where it comes from: `bundled`, `file:…`, `hf:…`, `https:…`, or a catalogue name.
    pub source: String,
    /// The digest of the release lock, `sha256:…`; `None` before the first lock.
    pub digest: Option<String>,
    /// `default`, or empty.
    pub role: Option<String>,
    /// `f32`, `f16`, `q8_0`; `None` keeps the file's own.
    pub quantize: Option<String>,
    /// The longest prompt plus answer in tokens; `None` is the model's own.
    pub context: Option<u32>,
    /// Loaded before the server says that it is ready.
    pub preload: bool,
}

/// See [`Part::Database`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Database {
    /// `sqlite`, `postgres`.
    pub kind: String,
    /// For postgres: `managed`, `cluster`, `external`.
    pub hosting: Option<String>,
    /// The schema version of the release lock; `None` is the newest of the server.
    pub schema: Option<u32>,
    /// Where a PostgreSQL is, or what it is to be like.
    pub postgres: Option<Box<Postgres>>,
}

/// See [`Database::postgres`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postgres {
    /// The address of one that somebody else runs; `None` for one that is made.
    pub address: Option<DatabaseAddress>,
    /// The authority that it is trusted by, a file in PEM form; absolute.
    pub ca_file: Option<String>,
    /// The name of the database in it, for one that is made.
    pub name: String,
    /// The oldest version that is wanted, for one that is made.
    pub version: u32,
    /// The port on the machine's own address, for one that is made; `None` listens on a Unix socket alone.
    pub port: Option<u16>,
    /// Copies that follow the primary.
    pub replicas: u32,
    /// Connections that the service opens, all of its replicas together.
    pub connections: u32,
    /// Where its generated secrets are, for one that is made.
    pub secrets: ComponentName,
    /// Where it runs, for one that is made.
    pub cluster: ComponentName,
    /// The program that keeps it running: the server artifact in that role.
    pub program: Program,
    /// Seconds after which a part of its log is handed to whoever makes the copies, for one that is made; `None` hands nothing over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_seconds: Option<u64>,
    /// The sites that it is shared with: each has a server, and one of them is the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between: Option<Between>,
}

/// See [`Postgres::between`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Between {
    /// The site that is primary first.
    pub home: SiteName,
    /// The other sites.
    pub peers: Vec<SiteName>,
    /// Who says which site is primary.
    pub watch: ComponentName,
    /// A copy that lacks more than this is not given the primary's place by hand.
    pub max_lag_ms: u64,
}

/// Where somebody else runs a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseAddress {
    /// The whole address is a secret.
    Secret(Given),
    /// An address without a password, and the password where there is one.
    Url(String, Option<Given>),
}

/// A secret that a person keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Where it is read: `secret:env:NAME`, `secret:file:PATH`.
    pub source: String,
    /// What it was when the plan was made, in a form that tells a change and nothing else; empty when it could not be read.
    pub version: String,
}

impl Given {
    /// A mark by which a change of the secret is seen: too short to check a guess by.
    pub fn mark(&self, environment: &str, value: &[u8]) -> String {
        let mut hash = Sha256::new();
        for part in [environment.as_bytes(), self.source.as_bytes(), value] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hex::encode(&hash.finalize()[..3])
    }

    /// The secret, from where it is kept; `None` when it is not there. At most 64 KiB, without the line's end.
    pub fn read(&self) -> Option<Secret> {
        const MOST: u64 = 64 << 10;
        let text = match self.source.split_once(':')?.1.split_once(':')? {
            ("env", name) => std::env::var(name).ok()?,
            ("file", path) => {
                let mut text = String::new();
                std::fs::File::open(path).ok()?.take(MOST).read_to_string(&mut text).ok()?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
            _ => return None,
        };
        (!text.is_empty()).then(|| Secret::new(text))
    }
}

/// See [`Part::Cache`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// `memory`, `redis`.
    pub kind: String,
}

/// See [`Part::Workload`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// How many replicas to begin with.
    pub replicas: u32,
    /// When there are more; `None` keeps their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<Growth>,
    /// The program that runs: the server artifact.
    pub program: Program,
    /// The `server.yaml` tree, complete but for what only the provider knows: sockets, paths, secret files.
    pub config: Value,
    /// Where the programs run.
    pub cluster: ComponentName,
    /// Where the models are.
    pub models: ComponentName,
    /// Where keys and usage are.
    pub database: ComponentName,
    /// What that is.
    pub stored: Database,
    /// Where the secrets are.
    pub secrets: ComponentName,
    /// Whether the first API key is made and put here; sites that get it by replication make none.
    pub first_key: bool,
    /// Who replicates control data; `None` where there is one site.
    pub watch: Option<ComponentName>,
    /// How long a replica may take to finish what it answers before it is stopped, in seconds.
    pub drain_seconds: u32,
    /// How a new release first shows on a share of the replicas that it is well; `None` replaces one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Who else judges it, from outside of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
}

/// See [`Workload::canary`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// So many pods beside those that are there, in percent of them, rounded up; `None` for as many again, to which all clients are led
    /// at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u32>,
    /// How long they must be well, in seconds.
    pub bake_seconds: u64,
    /// After so many seconds without an end the old release is put back.
    pub deadline_seconds: u64,
    /// An answer that takes longer than this, in milliseconds, is a slow one; one in twenty may be.
    pub slow_ms: u32,
    /// The largest share of failed requests.
    pub error_rate: f64,
}

/// See [`Workload::outside`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outside {
    /// Where a Prometheus answers.
    pub url: String,
    /// Whether it is asked with a token: the secret `prometheus-token`.
    pub token: bool,
    /// What it is asked.
    pub queries: Vec<Query>,
}

/// A question to a Prometheus, and which answers are well: a number from `at_least` to `at_most`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Query {
    /// What people call it.
    pub name: String,
    /// The question, in PromQL, with placeholders (`{{new}}`).
    pub query: String,
    /// Nothing above it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// Nothing below it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// So many answers in a row say something.
    pub samples: u32,
}

/// See [`Workload::growth`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// The most replicas.
    pub max: u32,
    /// One more above this share of the processors that they asked for, in percent.
    pub cpu: Option<u32>,
    /// One more above this share of the memory that they asked for, in percent.
    pub memory: Option<u32>,
    /// One more above so many requests per second and replica.
    pub requests_per_second: Option<u32>,
}

/// A program by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Where the file is now.
    pub path: String,
    /// `sha256:…` of the file.
    pub digest: String,
}

/// See [`Part::Endpoint`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address to listen on.
    pub host: String,
    /// The port that clients use.
    pub port: u16,
    /// The port of `/metrics`.
    pub metrics_port: u16,
    /// Whether clients speak TLS.
    pub tls: bool,
    /// The certificate.
    pub certificate: ComponentName,
    /// Who answers.
    pub workload: ComponentName,
    /// Whose figures stand beside those of the replicas, where control data is replicated.
    pub watch: Option<ComponentName>,
    /// The program that runs: the server artifact in the gateway's role.
    pub program: Program,
    /// Request bounds that the gateway enforces too: largest body in bytes, longest answer in seconds.
    pub max_request_bytes: u64,
    /// See `max_request_bytes`.
    pub timeout_seconds: u32,
}

/// See [`Part::Traffic`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// The weight of each site.
    pub weights: BTreeMap<SiteName, u32>,
}

/// See [`Part::Monitoring`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Monitoring {
    /// Whether dashboards and alerts are installed.
    pub stack: bool,
    /// Who is told when something is wrong, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub receivers: BTreeMap<String, ReceiverAddress>,
    /// When somebody is told.
    #[serde(default)]
    pub limits: AlertLimits,
    /// When somebody is told of the service as its clients see it.
    #[serde(default)]
    pub service: ServiceLimits,
    /// Whether this site tells of what the environment has once: its gate.
    #[serde(default)]
    pub home: bool,
    /// An authority that receivers' certificates may come from besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
}

/// Where somebody is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiverAddress {
    /// The whole address is a secret.
    Secret(Given),
    /// An address without a secret.
    Plain(String),
}

/// When somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertLimits {
    /// Memory of the machine in use, in percent, for a quarter of an hour.
    pub memory: u32,
    /// The disk under the state in use, in percent.
    pub disk: u32,
    /// Restarts of one program within an hour.
    pub restarts: u32,
}

impl Default for AlertLimits {
    fn default() -> Self {
        Self { memory: 80, disk: 90, restarts: 5 }
    }
}

/// When somebody is told of the service as its clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ServiceLimits {
    /// What 95 of 100 answers take at most, for five minutes.
    pub latency_seconds: f64,
    /// The share of answers that are failures of ours, from 0 to 1, for ten minutes.
    pub error_rate: f64,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self { latency_seconds: 1.0, error_rate: 0.05 }
    }
}

/// See [`Part::Registry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registry {
    /// Where images are pulled from.
    pub url: String,
}

/// A component of another site or place: who is reached there, which no resource here waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Which site or place.
    pub site: SiteName,
    /// Which component there.
    pub component: ComponentName,
}

/// See [`Part::Border`]. Its counterparts at other sites have the same name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Border {
    /// Where it runs.
    pub cluster: ComponentName,
    /// This site's endpoint: its host and port.
    pub endpoint: (String, u16),
    /// Who replicates here.
    pub watch: ComponentName,
    /// The other sites.
    pub peers: Vec<SiteName>,
    /// Who grants promotions.
    pub witness: Elsewhere,
    /// The database that all sites share, where there is one: what follows it comes through here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<ComponentName>,
    /// The program that runs: the server artifact in the border's role.
    pub program: Program,
}

/// See [`Part::Watch`]. Its counterparts at other sites have the same name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Where it runs.
    pub cluster: ComponentName,
    /// What it reaches the others through.
    pub border: ComponentName,
    /// Whose database it fills and whose signing key it tells the others of.
    pub workload: ComponentName,
    /// The other sites.
    pub peers: Vec<SiteName>,
    /// All sites, those first that take the place of a lost primary first.
    pub order: Vec<SiteName>,
    /// The place of whoever grants promotions.
    pub witness: SiteName,
    /// The site that is primary when all are well.
    pub home: SiteName,
    /// Who decides, and when.
    pub rules: Rules,
    /// Whether a lost primary is replaced without being told.
    pub automatic: bool,
    /// Whether the home site gets its place back without being told.
    pub failback: bool,
    /// The lag that is worth a word.
    pub max_lag_ms: u64,
    /// How often models and configuration are compared with the primary's.
    pub copies: Copies,
    /// The database that all sites share, where there is one, and its name in its server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<(ComponentName, String)>,
    /// The database of somebody else's that all sites store in, where there is one: nothing of what is in it is replicated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<(ComponentName, Database)>,
    /// The program that runs: the server artifact in the watch's role.
    pub program: Program,
}

/// Models and configuration that are copied between sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// Between two comparisons of models; a change is seen sooner.
    pub models_every_ms: u64,
    /// The same for configuration.
    pub configuration_every_ms: u64,
    /// Whether models are compressed on the way.
    pub compress: bool,
}

/// When a site counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Between two looks.
    pub every_ms: u64,
    /// Looks in a row that must fail.
    pub lost_after: u32,
}

/// See [`Part::Witness`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Witness {
    /// Where it runs.
    pub cluster: ComponentName,
    /// All sites.
    pub sites: Vec<SiteName>,
    /// The site that is primary first.
    pub home: SiteName,
    /// When a site counts as lost.
    pub rules: Rules,
    /// Each site's share of the traffic when all are well.
    pub weights: BTreeMap<SiteName, u32>,
    /// Whom it tells the weights.
    pub front: ComponentName,
    /// The name whose addresses it keeps, if it keeps one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// The program that runs: the server artifact in the witness's role.
    pub program: Program,
}

/// A DNS name whose addresses follow the sites that may have traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// The zone's primary name server: address and port.
    pub server: String,
    /// The zone.
    pub zone: String,
    /// The name.
    pub name: String,
    /// How long resolvers may keep an answer.
    pub ttl_seconds: u32,
    /// What the name server calls the key that signs updates.
    pub key: String,
    /// What it signs with.
    pub algorithm: String,
    /// The key's secret.
    pub secret: Given,
    /// Where clients reach each site.
    pub addresses: BTreeMap<SiteName, Vec<String>>,
}

/// See [`Part::Front`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Front {
    /// The address to listen on.
    pub host: String,
    /// The port that clients use.
    pub port: u16,
    /// The port of `/metrics`.
    pub metrics_port: u16,
    /// Whether clients, and the front to the sites, speak TLS.
    pub tls: bool,
    /// The certificate that clients see.
    pub certificate: ComponentName,
    /// The sites with the share that each begins with.
    pub weights: BTreeMap<SiteName, u32>,
    /// Whether a site is elsewhere than on this machine, so that an answer takes a journey.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub far: bool,
    /// What lets the front into a site, by the name that it has there.
    pub border: ComponentName,
    /// Whose figures stand beside its own.
    pub witness: ComponentName,
    /// The program that runs: the server artifact in the gateway's role.
    pub program: Program,
    /// Request bounds, as in [`Endpoint`].
    pub max_request_bytes: u64,
    /// See `max_request_bytes`.
    pub timeout_seconds: u32,
}

/// See [`Part::Backup`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// Seconds between two copies.
    pub every_seconds: u64,
    /// Seconds for which a copy is kept.
    pub keep_seconds: u64,
    /// A folder or an object store's URL; `None` is beside the state.
    pub destination: Option<String>,
    /// Whether each copy is proven by restoring it.
    pub verify: bool,
    /// Public keys that copies are sealed for, besides the environment's own.
    pub recipients: Vec<String>,
    /// Seconds that the archived log of a PostgreSQL may be behind; `None` archives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point_in_time_seconds: Option<u64>,
}
