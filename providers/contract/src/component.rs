//! The cloud-neutral parts of a service, as the orchestrator hands them to a provider.
//!
//! A provider expands each component of a site separately. Components refer to each other by [`ComponentName`]. The
//! resources of a component have ids `SITE/COMPONENT` or `SITE/COMPONENT/PART`; the provider documents the parts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use textnlp_net::network::is_loopback;

use crate::Secret;
use crate::cluster::{ClusterSite, ResourceAmounts};
use crate::name::{CloudId, ComponentName, EnvironmentName, SiteName};
use crate::settings::{
    AccessLevel, CacheKind, DatabaseKind, DnsAlgorithm, GpuSize, Hosting, ModelRole, NodeUpgrade, Quantize, Role,
    Runtime, Spot, TlsMode, Weekday,
};
use crate::units::TimeOfDay;

/// One location, as a provider sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The environment it belongs to.
    pub environment: EnvironmentName,
    /// Its name.
    pub name: SiteName,
    /// The account, subscription, project or host that the lineage is bound to.
    pub account: String,
    /// The provider's region, `local` for your own machine.
    pub region: String,
    /// How programs run there.
    pub runtime: Runtime,
    /// Its role in disaster recovery; the location of the witness has none.
    pub role: Option<Role>,
    /// Additional tags of every object.
    pub tags: BTreeMap<String, String>,
    /// Whether data kinds are protected here.
    pub protect_data: bool,
    /// Its cluster, if its programs run as pods.
    pub cluster: Option<Box<ClusterSite>>,
    /// The existing subnets that its objects are created in, with an existing network.
    pub subnets: Vec<CloudId>,
    /// When its cloud may restart and upgrade what it operates; `None` leaves that to the cloud.
    pub maintenance: Option<MaintenanceWindow>,
}

/// A weekly period in which a cloud may restart and upgrade what it operates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceWindow {
    /// The day on which it begins, in UTC.
    pub day: Weekday,
    /// The time at which it begins, in UTC.
    pub at: TimeOfDay,
    /// Its length in hours. Google Cloud needs 12 for a cluster.
    #[schemars(range(min = 4, max = 23))]
    pub hours: u32,
}

impl MaintenanceWindow {
    /// The minutes of a day.
    pub const DAY: u32 = 1_440;

    /// Its length in minutes.
    pub fn minutes(&self) -> u32 {
        self.hours * 60
    }

    /// The day and the time this number of minutes after its beginning.
    pub fn after(&self, minutes: u32) -> (Weekday, TimeOfDay) {
        let minute = self.day as u32 * Self::DAY + self.at.0 + minutes;
        let day = (minute / Self::DAY) as usize % Weekday::ALL.len();
        (Weekday::ALL[day], TimeOfDay(minute % Self::DAY))
    }

    /// The day and the hour of its first full hour.
    pub fn full_hour(&self) -> (Weekday, u32) {
        let (day, at) = self.after(self.at.0.next_multiple_of(60) - self.at.0);
        (day, at.0 / 60)
    }
}

/// The content of a file that a setting names, read before the plan; an error says why it is not available.
pub type FileText = Result<String, String>;

/// A part of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// Its name within the site.
    pub name: ComponentName,
    /// The id of an external object: read and checked, never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<CloudId>,
    /// What it is.
    pub part: ComponentSpec,
}

/// What a component is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentSpec {
    /// The network or folder of everything else: a VPC with subnets; folders on a machine.
    Network(Network),
    /// Runs and restarts programs: a cluster; a supervisor.
    Cluster(Cluster),
    /// Generated secrets, durable before first use.
    Secrets(Secrets),
    /// A certificate and its issuer.
    Certificate(Certificate),
    /// Model files by digest.
    ModelStore(ModelStore),
    /// The database of keys, quotas and usage.
    Database(Database),
    /// A cache shared by replicas.
    Cache(Cache),
    /// The inference server's replicas.
    Workload(Workload),
    /// The endpoint of clients: TLS, weights, retries.
    Endpoint(Endpoint),
    /// The traffic weights of sites.
    Traffic(Traffic),
    /// Dashboards and alerts.
    Monitoring(Monitoring),
    /// The registry of images.
    Registry(Registry),
    /// The inter-site relay: all traffic between this site and the others.
    #[serde(rename = "border")]
    Relay(Relay),
    /// The site agent: keeps this site's copy of the control data and monitors the others.
    #[serde(rename = "watch")]
    SiteAgent(SiteAgent),
    /// Grants leases to the primary, outside of every site.
    Witness(Witness),
    /// The global endpoint of several sites.
    #[serde(rename = "front")]
    GlobalEndpoint(GlobalEndpoint),
    /// Backups on a schedule.
    Backup(Backup),
    /// The inference server as an endpoint that the cloud runs: it starts the image, and authorizes callers.
    InferenceEndpoint(InferenceEndpoint),
}

/// See [`ComponentSpec::Network`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// The address range, if the provider has one.
    pub cidr: Option<String>,
    /// Whether programs may only connect to their dependencies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub policies: bool,
    /// The permissions boundary of the role that writes its logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_boundary: Option<String>,
}

/// See [`ComponentSpec::Cluster`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its network.
    pub network: ComponentName,
    /// GPU machines, if configured.
    pub gpu: Option<GpuPool>,
    /// Its version; `None` is the provider's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The networks that reach its API server from outside of its own network; `None` is every network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_from: Option<Vec<String>>,
    /// The permissions boundary of its roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_boundary: Option<String>,
    /// The identities of the provider that reach it, besides the one that deploys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<ClusterIdentity>,
}

/// An identity of the provider that reaches a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterIdentity {
    /// The identity, as the provider names it.
    pub identity: String,
    /// What it may do.
    pub level: AccessLevel,
}

impl Cluster {
    /// A cluster in a network, with nothing else set.
    pub fn of(network: ComponentName) -> Self {
        Self { network, gpu: None, version: None, allow_from: None, permission_boundary: None, access: Vec::new() }
    }
}

/// GPU machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuPool {
    /// Their class; each provider maps it to a machine type.
    pub size: GpuSize,
    /// Machine types of the provider, best first, in place of that of the class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<String>,
    /// The GPUs of each machine, if they are not those of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_machine: Option<u32>,
    /// The count.
    pub count: u32,
    /// The most machines, up to which an autoscaler of nodes adds them for pods that wait; if unset, always `count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Whether preemptible machines are used.
    pub spot: Spot,
    /// How machines are replaced when the provider upgrades them, if that is not its own way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<NodeUpgrade>,
}

impl GpuPool {
    /// Machines of a class, on demand.
    pub fn of(size: GpuSize, count: u32) -> Self {
        Self { size, machines: Vec::new(), per_machine: None, count, max: None, spot: Spot::Never, upgrade: None }
    }

    /// The GPUs of each machine.
    pub fn gpus(&self) -> u32 {
        self.per_machine.unwrap_or_else(|| self.size.gpus())
    }

    /// The most machines.
    pub fn most(&self) -> u32 {
        self.max.unwrap_or(self.count).max(self.count)
    }
}

/// See [`ComponentSpec::Secrets`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Secrets {
    /// The secrets by name, with their recipes.
    pub generate: BTreeMap<String, SecretRecipe>,
    /// The secrets that all sites share.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub shared: BTreeSet<String>,
    /// User-provided secrets, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub given: BTreeMap<String, ExternalSecret>,
}

/// How a secret is generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRecipe {
    /// A public key prefix and 256 random bits: `tnlp_…`. Outputs `public_id` and `sha256`.
    ApiKey,
    /// A random password of this many characters.
    Password(u32),
    /// An RSA key pair for signing tokens, PKCS#8 PEM. Output `public_pem`.
    RsaSigningKey,
    /// An ECDSA P-256 key for an account at a public certificate authority, PKCS#8 PEM.
    AccountKey,
    /// Random bytes, hex.
    Random(u32),
}

/// See [`ComponentSpec::Certificate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// How it is issued.
    pub mode: TlsMode,
    /// DNS names and IP addresses.
    pub names: Vec<String>,
    /// Days of validity.
    pub days: u32,
    /// The public authority that certifies the DNS names, with `mode: acme`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acme: Option<Box<AcmeAccount>>,
}

/// An account at a public certificate authority that supports ACME.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AcmeAccount {
    /// The URL of the authority's directory.
    pub directory: String,
    /// The contact address.
    pub email: Option<String>,
    /// The component with the key of the account.
    pub secrets: ComponentName,
    /// The name of this key.
    pub key: String,
    /// The gateway that answers the challenges of the authority.
    pub gateway: ComponentName,
    /// A certificate authority to trust for the directory, besides the public ones.
    pub ca_file: Option<String>,
    /// The environment's proxies, as `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
    pub proxy: BTreeMap<String, ReceiverAddress>,
}

/// See [`ComponentSpec::ModelStore`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStore {
    /// The models, in the order of the file.
    pub models: Vec<Model>,
    /// Size limit of the download cache, in bytes.
    pub max_cache_bytes: u64,
    /// The existing key that the data of the site is encrypted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<CloudId>,
    /// The age in days at which files move to a cheaper storage class; `None` is the provider's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_after_days: Option<u32>,
    /// The copies of its files in another region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ModelReplica>,
    /// The permissions boundary of the role that reads models of buckets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_boundary: Option<String>,
}

impl ModelStore {
    /// These models, with nothing else set.
    pub fn of(models: Vec<Model>) -> Self {
        let (key, archive_after_days, replica, permission_boundary) = (None, None, None, None);
        Self { models, max_cache_bytes: 0, key, archive_after_days, replica, permission_boundary }
    }
}

/// See [`ModelStore::replica`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelReplica {
    /// The region.
    pub region: String,
    /// The permissions boundary of the role that copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_boundary: Option<String>,
}

/// One model to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The name that requests use.
    pub name: String,
    /// Its source: `bundled`, `file:…`, `hf:…`, `https:…`, or a catalogue name.
    pub source: String,
    /// The digest of the release lock, `sha256:…`; `None` before the first lock.
    pub digest: Option<String>,
    /// Its role.
    pub role: Option<ModelRole>,
    /// The number format of weights in memory; `None` keeps the file's own.
    pub quantize: Option<Quantize>,
    /// The longest prompt plus answer in tokens; `None` is the model's own.
    pub context: Option<u32>,
    /// Whether it is loaded before the server is ready.
    pub preload: bool,
}

impl Model {
    /// A model that is loaded at once, with nothing else set.
    pub fn of(name: &str, source: &str) -> Self {
        let (digest, role, quantize, context) = (None, None, None, None);
        Self { name: name.to_owned(), source: source.to_owned(), digest, role, quantize, context, preload: true }
    }
}

/// See [`ComponentSpec::Database`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Database {
    /// The kind of database.
    pub kind: DatabaseKind,
    /// The hosting of a PostgreSQL.
    pub hosting: Option<Hosting>,
    /// The schema version of the release lock; `None` is the newest of the server.
    pub schema: Option<u32>,
    /// The address of an external PostgreSQL, or the settings of a managed one.
    pub postgres: Option<Box<Postgres>>,
}

/// See [`Database::postgres`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postgres {
    /// The address of an external server; `None` for a managed one.
    pub address: Option<DatabaseAddress>,
    /// Its certificate authority: an absolute path of a PEM file.
    pub ca_file: Option<String>,
    /// The name of the database, for a managed server.
    pub name: String,
    /// The oldest allowed version, for a managed server.
    pub version: u32,
    /// The port on the machine's own address, for a managed server; `None` listens on a Unix socket only.
    pub port: Option<u16>,
    /// Standbys of the primary.
    pub replicas: u32,
    /// Connections of the service, all of its replicas together.
    pub connections: u32,
    /// The component of its generated secrets, for a managed server.
    pub secrets: ComponentName,
    /// The component where it runs, for a managed server.
    pub cluster: ComponentName,
    /// The program that supervises it: the server artifact in that role.
    pub program: Program,
    /// Seconds after which a WAL segment is archived, for a managed server; `None` archives nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_seconds: Option<u64>,
    /// The sites that share it: each has a server, and one of them is the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between: Option<SitePostgres>,
    /// The server of a cloud's managed service; `None` for any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedPostgres>,
}

impl Postgres {
    /// The other region with a replica of a cloud's managed server.
    pub fn replica_region(&self) -> Option<&str> {
        self.managed.as_ref()?.replica_region.as_deref()
    }
}

/// See [`Postgres::managed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedPostgres {
    /// Its disk, in bytes.
    pub disk_bytes: u64,
    /// Seconds for which the service keeps its backups; 0 without backups.
    pub backup_seconds: u64,
    /// Another region with a replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_region: Option<String>,
}

/// See [`Postgres::between`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SitePostgres {
    /// The first primary site.
    pub home: SiteName,
    /// The other sites.
    pub peers: Vec<SiteName>,
    /// The site agent that names the primary.
    pub watch: ComponentName,
    /// A standby with more lag than this is not promoted manually.
    pub max_lag_ms: u64,
}

/// The address of an external database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseAddress {
    /// The whole address is a secret.
    Secret(ExternalSecret),
    /// An address without its password, and the password if there is one.
    Url(String, Option<ExternalSecret>),
}

/// A user-provided secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalSecret {
    /// Its source: `secret:env:NAME`, `secret:file:PATH`.
    pub source: String,
    /// A mark of its value when the plan was made, which shows changes only; empty when it could not be read.
    pub version: String,
}

impl ExternalSecret {
    /// A mark that shows a change of the secret: too short to verify a guess.
    pub fn mark(&self, environment: &str, value: &[u8]) -> String {
        let mut hash = Sha256::new();
        for part in [environment.as_bytes(), self.source.as_bytes(), value] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hex::encode(&hash.finalize()[..3])
    }

    /// Reads the secret from its source; `None` when it is missing. At most 64 KiB, without a trailing newline.
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

/// See [`ComponentSpec::Cache`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// The kind of cache.
    pub kind: CacheKind,
    /// The servers of a cloud's managed service; `None` for any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedCache>,
}

/// See [`Cache::managed`]. The provider of the cloud gives its part [`CACHE_PART`] the output `url`: the address without the
/// password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedCache {
    /// The least memory for values, in bytes.
    pub memory_bytes: u64,
    /// Replicas of the primary node.
    pub replicas: u32,
    /// The component with its password, [`CACHE_PASSWORD`].
    pub secrets: ComponentName,
    /// The component of the database that the cloud runs beside it; `None` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<ComponentName>,
}

/// See [`ComponentSpec::Workload`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// The initial count of replicas.
    pub replicas: u32,
    /// Autoscaling; `None` keeps the count fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// The program that runs: the server artifact.
    pub program: Program,
    /// The `server.yaml` tree, complete except for values of the provider: sockets, paths, secret files.
    pub config: Value,
    /// The component where the programs run.
    pub cluster: ComponentName,
    /// The component of the models.
    pub models: ComponentName,
    /// The component of keys and usage.
    pub database: ComponentName,
    /// The settings of that database.
    pub stored: Database,
    /// The component of a cache that a cloud runs; `None` for any other cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ComponentName>,
    /// The component of the secrets.
    pub secrets: ComponentName,
    /// Whether the first API key is created here; sites that get it by replication create none.
    pub first_key: bool,
    /// The site agent that replicates control data; `None` with one site.
    pub watch: Option<ComponentName>,
    /// The grace period of a replica for requests in flight, in seconds.
    pub drain_seconds: u32,
    /// The canary of a new release; `None` replaces replicas one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// External metrics for the analysis of the canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<PrometheusQueries>,
    /// The models that it serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub served: Vec<Model>,
    /// The access of its programs to the network outside of the site.
    #[serde(default, skip_serializing_if = "Egress::is_empty")]
    pub egress: Egress,
    /// The SAML settings of an authentication proxy in front of the service, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saml: Option<FileText>,
}

/// See [`ComponentSpec::InferenceEndpoint`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferenceEndpoint {
    /// The initial count of instances.
    pub replicas: u32,
    /// Autoscaling; `None` keeps the count fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// The GPUs of its instances; `None` without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSize>,
    /// The CPU and memory of an instance; what is not set is the provider's default.
    #[serde(default, skip_serializing_if = "ResourceAmounts::is_empty")]
    pub resources: ResourceAmounts,
    /// The type of its instances; `None` is the provider's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// The image by its digest; `None` if the environment names no registry.
    pub image: Option<String>,
    /// The component that the image is pushed to; `None` if `up` does not push it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<ComponentName>,
    /// The component of the registry on whose host the image is; `None` for an image on another host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_in: Option<ComponentName>,
    /// The `server.yaml` tree, complete except for values of the provider: sockets, paths.
    pub config: Value,
    /// The models that it serves.
    pub models: Vec<Model>,
    /// Size limit of the downloads of an instance, in bytes.
    pub max_cache_bytes: u64,
    /// The permissions boundary of its role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_boundary: Option<String>,
    /// The share of errors at which a new release is rolled back and the receivers get an alarm.
    pub limits: ServiceLimits,
    /// How a new release gets its requests; `None` leaves it to the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<TrafficShift>,
    /// The component of the alert receivers; `None` without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<ComponentName>,
}

/// How requests move to a new release of an [`InferenceEndpoint`]: in each step the alarm is observed, and returns them to the
/// old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficShift {
    /// The instances that get requests first, in percent; `None` if all get them at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u32>,
    /// How long each step is observed, in seconds.
    pub bake_seconds: u64,
    /// The old release is restored when the shift takes longer than this, in seconds.
    pub deadline_seconds: u64,
}

/// See [`Workload::egress`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// Certificate authorities trusted besides the public ones, as PEM.
    pub private_ca: Option<FileText>,
    /// The proxy variables: `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
    pub proxy: BTreeMap<String, String>,
    /// Whether network policies limit it to what the programs need.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub policies: bool,
}

impl Egress {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// See [`Workload::canary`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// New pods in percent of the existing ones, rounded up. `None` for a green deployment: the same count again, to
    /// which all clients are switched at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u32>,
    /// How long they must be healthy, in seconds.
    pub bake_seconds: u64,
    /// The old release is restored when the rollout takes longer than this, in seconds.
    pub deadline_seconds: u64,
    /// A response that takes longer than this, in milliseconds, counts as slow; one in twenty may be.
    pub slow_ms: u32,
    /// The highest error rate.
    pub error_rate: f64,
}

/// See [`Workload::outside`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrometheusQueries {
    /// The URL of a Prometheus.
    pub url: String,
    /// Whether it needs a token: the secret `prometheus-token`.
    pub token: bool,
    /// Its certificate authority, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<FileText>,
    /// The queries.
    pub queries: Vec<Query>,
}

/// A query of a Prometheus; its result must be a number from `at_least` to `at_most`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Query {
    /// Its display name.
    pub name: String,
    /// The PromQL text, with placeholders (`{{new}}`).
    pub query: String,
    /// The largest good result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// The smallest good result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// The count of consecutive results that decide.
    pub samples: u32,
}

/// See [`Workload::autoscaling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autoscaling {
    /// The maximum count of replicas.
    pub max: u32,
    /// Target utilisation of the requested CPU, in percent.
    pub cpu: Option<u32>,
    /// Target utilisation of the requested memory, in percent.
    pub memory: Option<u32>,
    /// Target rate in requests per second and replica.
    pub requests_per_second: Option<u32>,
}

/// A program by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The current path of the file.
    pub path: String,
    /// `sha256:…` of the file.
    pub digest: String,
}

/// See [`ComponentSpec::Endpoint`].
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
    /// Whether a public authority certifies the DNS names: the gateway then answers its challenges.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub acme: bool,
    /// The workload behind it.
    pub workload: ComponentName,
    /// The site agent whose metrics are served beside those of the replicas, where control data is replicated.
    pub watch: Option<ComponentName>,
    /// The program that runs: the server artifact in the role of the gateway.
    pub program: Program,
    /// The largest body in bytes.
    pub max_request_bytes: u64,
    /// The longest time of a request at the gateway, longer than at the server.
    pub timeout_seconds: u32,
    /// Bounds of client connections.
    #[serde(default, skip_serializing_if = "ConnectionLimits::is_default")]
    pub connections: ConnectionLimits,
    /// The DNS name of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Whether a web application firewall is in front of the service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waf: bool,
    /// The existing DNS zone that gets the records of `domain`, by the provider's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<CloudId>,
    /// How these records share the clients with those of other sites; `None` with one site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<TrafficShare>,
    /// Whether the provider of the zone issues a public certificate of `domain`, which clients get from its load balancer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub managed_certificate: bool,
    /// The domain whose subdomains are tenants; the zone gets a record for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_domain: Option<String>,
}

/// One of several sites behind one name, whose records point at the load balancer that the site's cluster creates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrafficShare {
    /// Its share of the clients, in proportion to the other sites; with 0 it has none unless all others fail.
    pub weight: u32,
    /// Whether the site is not at the provider of the zone. Its load balancer then has an IPv4 address.
    pub is_at_other_provider: bool,
    /// The host of the site's own address: a name, which gets a record too, or an IP address.
    pub host: String,
    /// The weight of each site behind the name, this one too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<SiteName, u32>,
}

/// What a gateway allows its clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionLimits {
    /// Connections at once.
    pub total: u32,
    /// Connections of one client address at once; `None` is the provider's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_address: Option<u32>,
    /// Addresses and networks of proxies in front, which name the client.
    pub trusted_proxies: Vec<String>,
    /// Origins whose pages may read the gateway's own answers (CORS).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cors_origins: Vec<String>,
}

impl ConnectionLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { total: 12_000, per_address: None, trusted_proxies: Vec::new(), cors_origins: Vec::new() }
    }
}

/// See [`ComponentSpec::Traffic`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// The weight of each site.
    pub weights: BTreeMap<SiteName, u32>,
}

/// See [`ComponentSpec::Monitoring`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Monitoring {
    /// Whether dashboards and alerts are installed.
    pub stack: bool,
    /// The alert receivers by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub receivers: BTreeMap<String, ReceiverAddress>,
    /// The component with the secret ones, each as [`receiver_secret`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<ComponentName>,
    /// Thresholds of alerts.
    #[serde(default)]
    pub limits: AlertLimits,
    /// Thresholds of alerts about the service, as clients see it.
    #[serde(default)]
    pub service: ServiceLimits,
    /// Whether this site also sends the alerts of the environment as a whole, such as its gate.
    #[serde(default)]
    pub home: bool,
    /// The on-call contacts by role, which alerts of a machine name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contacts: BTreeMap<String, String>,
    /// A certificate authority to trust for receivers, besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// The proxy variables for receivers: `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proxy: BTreeMap<String, ReceiverAddress>,
    /// What of the site the alarms of a cloud are about.
    #[serde(default, skip_serializing_if = "Monitored::is_empty")]
    pub monitored: Monitored,
    /// The cost budget of the environment, at the site that watches over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// The parts of a site that the environment creates, for alarms about them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Monitored {
    /// Whether the network is one of them.
    pub network: bool,
    /// Whether the cluster is one of them.
    pub cluster: bool,
    /// Whether the cluster has machines with GPUs.
    pub gpu: bool,
    /// The database, if it is one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<Database>,
    /// The cache, if a cloud runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<ManagedCache>,
    /// The public address of the service, if it has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceAddress>,
}

/// The name and the port at which clients on the internet reach the service of a site over HTTPS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAddress {
    /// The DNS name.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Monitored {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A cost budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// The most that a month may cost, in `currency`.
    pub monthly: f64,
    /// The currency: `USD`.
    pub currency: String,
    /// The share of `monthly` from which a warning is sent, from 0 to 1.
    pub warn_at: f64,
}

/// The address of a receiver or of its proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiverAddress {
    /// The whole address is a secret.
    Secret(ExternalSecret),
    /// An address without a secret.
    Plain(String),
}

/// What to write where the alerts of a cluster cannot be sent to a receiver.
pub const CLUSTER_RECEIVERS: &str = "write a webhook `https://…`, which may be a secret, or mail without a password: \
     `smtp://HOST[:PORT]?from=…&to=…` with STARTTLS, or `smtps://HOST?…` on port 465";

/// The name of a receiver's address among the secrets of a site in a cluster.
pub fn receiver_secret(receiver: &str) -> String {
    format!("receiver-{receiver}")
}

/// The name of the secret of a webhook of batches among the secrets of a site. Its place in the list may change.
pub fn webhook_secret(tenant: Option<&str>, url: &str) -> String {
    let digest = Sha256::digest(format!("{}\n{url}", tenant.unwrap_or_default()));
    format!("webhook-{}", hex::encode(&digest[..8]))
}

/// The name of the secret of the collector of traces among the secrets of a site.
pub const TRACES_SECRET: &str = "traces";

/// The name of the address of the cache's Redis among the secrets of a site.
pub const CACHE_SECRET: &str = "cache-url";
/// The name of the generated password of a cache that a cloud runs, among the secrets of a site.
pub const CACHE_PASSWORD: &str = "cache-password";
/// The part of a cache that a cloud runs.
pub const CACHE_PART: &str = "group";

/// Sets the files of the secrets of each webhook, of the collector of traces and of the cache in the tree of a server's configuration. `file`: the path of
/// the secret with this name. Returns the names.
pub fn set_secret_files(tree: &mut Map<String, Value>, file: impl Fn(&str) -> String) -> Vec<String> {
    let webhooks = tree.get_mut("batch").and_then(|batch| batch.get_mut("webhooks")).and_then(Value::as_array_mut);
    let mut names = Vec::new();
    for webhook in webhooks.into_iter().flatten() {
        let Some(url) = webhook["url"].as_str() else { continue };
        let name = webhook_secret(webhook["tenant"].as_str(), url);
        webhook["secret_file"] = Value::String(file(&name));
        names.push(name);
    }
    let traces = tree.get_mut("monitoring").and_then(|monitoring| monitoring.get_mut("traces"));
    if let Some(traces) = traces.and_then(Value::as_object_mut).filter(|traces| traces.contains_key("header")) {
        traces.insert("secret_file".to_owned(), Value::String(file(TRACES_SECRET)));
        names.push(TRACES_SECRET.to_owned());
    }
    let cache = tree.get_mut("cache").and_then(Value::as_object_mut);
    let is_secret = |cache: &Map<String, Value>| {
        cache.get("kind").and_then(Value::as_str) == Some("redis") && !cache.contains_key("url")
    };
    if let Some(cache) = cache.filter(|cache| is_secret(cache)) {
        cache.insert("url_file".to_owned(), Value::String(file(CACHE_SECRET)));
        names.push(CACHE_SECRET.to_owned());
    }
    names
}

/// Whether a webhook can be reached from another machine by HTTPS.
pub fn is_public_webhook(address: &str) -> bool {
    let Some(rest) = address.trim().strip_prefix("https://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    let host = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(host, _)| host);
    !host.is_empty() && !is_loopback(host) && !address.trim().contains(char::is_whitespace)
}

/// What an address of mail without a password says: `smtps://HOST?from=…&to=…,…` or `smtp://HOST[:587]?…`. TLS begins with
/// the connection on port 465 only, as Alertmanager has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailAddresses {
    /// The mail server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether the connection begins with TLS; else the server must offer STARTTLS.
    pub tls: bool,
    /// The sender.
    pub from: String,
    /// The recipients.
    pub to: Vec<String>,
}

impl MailAddresses {
    /// `None` where it is another address, or has a password, a server of this machine, another port of TLS or an encoding
    /// that mail addresses do not need.
    pub fn of(address: &str) -> Option<Self> {
        let (scheme, rest) = address.trim().split_once("://")?;
        let (tls, usual) = match scheme {
            "smtps" => (true, 465),
            "smtp" => (false, 587),
            _ => return None,
        };
        let (server, query) = rest.split_once('?')?;
        let server = server.trim_end_matches('/');
        if server.is_empty() || server.contains('@') {
            return None;
        }
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (server, usual),
        };
        if is_loopback(host) || tls != (port == 465) {
            return None;
        }
        let (mut from, mut to) = (None, Vec::new());
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = value.replace("%40", "@").replace("%2C", ",");
            let mut each = value.split(',').map(|one| one.trim().to_owned());
            match name {
                "from" => from = each.next(),
                "to" => to.extend(each),
                _ => return None,
            }
        }
        let is_address = |text: &String| text.contains('@') && !text.contains('%');
        let from = from.filter(is_address)?;
        (!to.is_empty() && to.iter().all(is_address)).then(|| Self { host: host.to_owned(), port, tls, from, to })
    }

    /// `HOST:PORT`.
    pub fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Thresholds of alerts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertLimits {
    /// Memory of the machine in use for 15 minutes, in percent.
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

/// Thresholds of alerts about the service, as clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceLimits {
    /// The largest latency at the 95th percentile, in seconds.
    pub latency_seconds: f64,
    /// How long the latency must be exceeded, in seconds.
    pub latency_for_seconds: u64,
    /// The largest share of server errors, from 0 to 1.
    pub error_rate: f64,
    /// How long that share must be exceeded, in seconds.
    pub error_rate_for_seconds: u64,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self { latency_seconds: 1.0, latency_for_seconds: 300, error_rate: 0.05, error_rate_for_seconds: 600 }
    }
}

/// See [`ComponentSpec::Registry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registry {
    /// Where images are pulled from.
    pub url: String,
    /// The image of the servers that is pushed to it: `REPOSITORY:TAG@sha256:…`; `None` if you push images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// A component of another site or location. No resource here depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteComponent {
    /// The site or location.
    pub site: SiteName,
    /// The component there.
    pub component: ComponentName,
}

/// See [`ComponentSpec::Relay`]. Its counterparts at other sites have the same name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    /// The component where it runs.
    pub cluster: ComponentName,
    /// This site's endpoint: its host and port.
    pub endpoint: (String, u16),
    /// The host and port that answer only health checks, where the endpoint runs elsewhere and has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<(String, u16)>,
    /// This site's agent.
    pub watch: ComponentName,
    /// The other sites.
    pub peers: Vec<SiteName>,
    /// The witness.
    pub witness: RemoteComponent,
    /// The database that all sites share, if any: its replication passes through the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<ComponentName>,
    /// The program that runs: the server artifact in the role of the relay.
    pub program: Program,
}

/// See [`ComponentSpec::SiteAgent`]. Its counterparts at other sites have the same name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteAgent {
    /// The component where it runs.
    pub cluster: ComponentName,
    /// The relay to the other sites.
    pub border: ComponentName,
    /// The workload whose database it fills and whose signing key it publishes.
    pub workload: ComponentName,
    /// The other sites.
    pub peers: Vec<SiteName>,
    /// All sites, in the order of promotion.
    pub order: Vec<SiteName>,
    /// The location of the witness.
    pub witness: SiteName,
    /// The primary site while all sites are healthy.
    pub home: SiteName,
    /// When a site counts as failed.
    pub rules: FailureDetection,
    /// Whether a failed primary is replaced automatically.
    pub automatic: bool,
    /// Whether failback to the home site is automatic.
    pub failback: bool,
    /// The lag that is reported as a problem.
    pub max_lag_ms: u64,
    /// Intervals of copying models and configuration from the primary.
    pub copies: Copies,
    /// The database that all sites share, if any, and its name in its server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<(ComponentName, String)>,
    /// The external database that all sites use, if any: its content is not replicated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<(ComponentName, Database)>,
    /// The program that runs: the server artifact in the role of the site agent.
    pub program: Program,
}

/// Models and configuration that are copied between sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// Interval between two comparisons of models; a change is noticed sooner.
    pub models_every_ms: u64,
    /// The same for configuration.
    pub configuration_every_ms: u64,
    /// Whether models are compressed in transit.
    pub compress: bool,
}

/// When a site counts as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureDetection {
    /// Poll interval.
    pub every_ms: u64,
    /// Consecutive failed polls after which the site counts as failed.
    pub lost_after: u32,
}

/// See [`ComponentSpec::Witness`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Witness {
    /// The component where it runs.
    pub cluster: ComponentName,
    /// All sites.
    pub sites: Vec<SiteName>,
    /// The first primary site.
    pub home: SiteName,
    /// When a site counts as failed.
    pub rules: FailureDetection,
    /// Each site's traffic weight while all sites are healthy.
    pub weights: BTreeMap<SiteName, u32>,
    /// The global endpoint that gets the weights.
    pub front: ComponentName,
    /// The DNS name whose addresses it updates, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// The program that runs: the server artifact in the role of the witness.
    pub program: Program,
}

/// A DNS name with the addresses of the sites that may get traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// The zone's primary name server: address and port.
    pub server: String,
    /// The name of the zone.
    pub zone: String,
    /// The name.
    pub name: String,
    /// Time to live of the records, in seconds.
    pub ttl_seconds: u32,
    /// The name of the TSIG key.
    pub key: String,
    /// The algorithm of the TSIG key.
    pub algorithm: DnsAlgorithm,
    /// The key's secret.
    pub secret: ExternalSecret,
    /// The client addresses of each site.
    pub addresses: BTreeMap<SiteName, Vec<String>>,
}

/// See [`ComponentSpec::GlobalEndpoint`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlobalEndpoint {
    /// The address to listen on.
    pub host: String,
    /// The port that clients use.
    pub port: u16,
    /// The port of `/metrics`.
    pub metrics_port: u16,
    /// Whether TLS is used by clients and between this endpoint and the sites.
    pub tls: bool,
    /// The certificate that clients see.
    pub certificate: ComponentName,
    /// The sites with their initial weights.
    pub weights: BTreeMap<SiteName, u32>,
    /// Whether a site is on another machine, so that network latency counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub far: bool,
    /// The relay that admits the global endpoint to a site, by its name there.
    pub border: ComponentName,
    /// The witness whose metrics are served beside its own.
    pub witness: ComponentName,
    /// The program that runs: the server artifact in the role of the gateway.
    pub program: Program,
    /// The largest body, as in [`Endpoint`].
    pub max_request_bytes: u64,
    /// The longest time of a request, longer than at the sites' gateways.
    pub timeout_seconds: u32,
    /// Bounds of client connections.
    #[serde(default, skip_serializing_if = "ConnectionLimits::is_default")]
    pub connections: ConnectionLimits,
}

/// See [`ComponentSpec::Backup`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// Seconds between two backups.
    pub every_seconds: u64,
    /// Seconds for which a backup is retained.
    pub keep_seconds: u64,
    /// A folder or an object store's URL; `None` is next to the state, or in a cluster only its volume.
    pub destination: Option<String>,
    /// Whether each backup is verified by restoring it.
    pub verify: bool,
    /// Public keys that backups are encrypted for. The environment's own is the first one for a cluster, and is not listed
    /// for a machine, which has the key.
    pub recipients: Vec<String>,
    /// The maximum age of the archived WAL of a PostgreSQL, in seconds; `None` archives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point_in_time_seconds: Option<u64>,
    /// The database that a cluster dumps although a cloud runs it; `None` for one that the cluster or a machine runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedDumps>,
    /// The bucket that a cluster copies its dumps to; `None` for a machine, which has its backups at the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<Box<DumpCopies>>,
}

/// See [`Backup::copies`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpCopies {
    /// The address of the folder with the copies.
    pub url: String,
    /// The component of the secret with the variables that sign in; `None` signs in as the account of the job.
    pub credentials: Option<ComponentName>,
    /// The address of the store, if it is not that of the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How the store is reached.
    pub egress: Egress,
}

/// See [`Backup::managed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedDumps {
    /// The major version of the server.
    pub version: u32,
    /// The disk of the server, in bytes.
    pub disk_bytes: u64,
    /// The disk for dumps, in bytes.
    pub backup_bytes: u64,
    /// The component of its generated password.
    pub secrets: ComponentName,
    /// The certificate authorities that its clients verify it by, as PEM, as in [`Egress`].
    pub private_ca: Option<FileText>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maintenance_window_goes_on_after_midnight_and_after_the_week() {
        let window = |day, at: &str, hours| MaintenanceWindow { day, at: at.parse().unwrap(), hours };
        let late = window(Weekday::Sunday, "22:30", 4);
        assert_eq!(late.after(late.minutes()), (Weekday::Monday, "02:30".parse().unwrap()));
        assert_eq!(late.full_hour(), (Weekday::Sunday, 23));
        assert_eq!(window(Weekday::Sunday, "23:30", 4).full_hour(), (Weekday::Monday, 0));
        let long = window(Weekday::Saturday, "03:00", 23);
        assert_eq!(long.after(long.minutes()), (Weekday::Sunday, "02:00".parse().unwrap()));
        assert_eq!(long.full_hour(), (Weekday::Saturday, 3));
    }

    #[test]
    fn mail_without_a_password_is_read_from_its_address() {
        let mail = MailAddresses::of("smtp://mail.example.com?from=a@b.c&to=d@e.f,g%40h.i&to=j@k.l").unwrap();
        assert_eq!((mail.server().as_str(), mail.tls, mail.from.as_str()), ("mail.example.com:587", false, "a@b.c"));
        assert_eq!(mail.to, ["d@e.f", "g@h.i", "j@k.l"]);
        let mail = MailAddresses::of(" smtps://[2001:db8::1]?from=a@b.c&to=d@e.f\n").unwrap();
        assert_eq!((mail.server().as_str(), mail.tls), ("[2001:db8::1]:465", true));
        assert_eq!(MailAddresses::of("smtp://mail.example.com:25/?from=a@b.c&to=d@e.f").unwrap().port, 25);
        for other in [
            "https://hooks.example.com/?from=a@b.c&to=d@e.f",
            "smtps://ada:hunter2@mail.example.com?from=a@b.c&to=d@e.f",
            "smtps://mail.example.com?to=d@e.f",
            "smtps://mail.example.com?from=a@b.c",
            "smtps://mail.example.com?from=a@b.c&to=d@e.f&auth=login",
            "smtps://mail.example.com?from=a@b.c&to=d%0a@e.f",
            "smtps://?from=a@b.c&to=d@e.f",
            "smtps://mail.example.com:587?from=a@b.c&to=d@e.f",
            "smtp://mail.example.com:465?from=a@b.c&to=d@e.f",
            "smtp://localhost?from=a@b.c&to=d@e.f",
            "smtp://127.0.0.1:2525?from=a@b.c&to=d@e.f",
        ] {
            assert_eq!(MailAddresses::of(other), None, "{other}");
        }
        for hook in
            ["https://hooks.example.com", "https://a:b@hooks.example.com:8443/x?y#z", "https://[2001:db8::1]/x\n"]
        {
            assert!(is_public_webhook(hook), "{hook}");
        }
        for other in [
            "http://hooks.example.com/x",
            "https://",
            "https:///x",
            "https://localhost:8443/x",
            "https://127.0.0.1/x",
            "https://[::1]:8443/x",
            "https://hooks.example.com/a b",
            "smtps://mail.example.com?from=a@b.c&to=d@e.f",
        ] {
            assert!(!is_public_webhook(other), "{other}");
        }
    }
}
