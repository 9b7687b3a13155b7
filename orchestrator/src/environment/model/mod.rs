//! The environment file as types.
//!
//! These types are the only description of an environment file: the JSON Schema is generated from them, the strict reader
//! validates by that schema, and the defaults are defined here. `server` has the settings of `serve`, `parts` the
//! components of a service, `recovery` backups and disaster recovery, `phase` the defaults of each phase. Settings of
//! sites in clusters are in the contract ([`textnlp_provider::cluster`]), because every provider of clusters reads them.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use textnlp_provider::{EnvironmentName, Minimum, SiteName};

pub use self::parts::*;
pub use self::phase::Phase;
pub use self::recovery::*;
pub use self::server::*;
pub use textnlp_provider::cluster::{
    Analytics, ClusterAccess, ClusterIngress, ClusterModels, IngressKind, ModelVolume, PodResources, ResourceAmounts,
    TaintEffect, Toleration, TolerationOperator,
};
pub use textnlp_provider::component::{ClusterIdentity, MaintenanceWindow};
pub use textnlp_provider::settings::{
    CacheKind, DatabaseCopy, DatabaseKind, DnsAlgorithm, Failover, GpuSize, Hosting, ModelExecutor, ModelRole,
    NodeSize, NodeUpgrade, Quantize, Role, Runtime, Spot, Strategy, TlsMode, TrafficMode,
};
pub use textnlp_provider::units::{Bytes, Cores, Rate, SecretSource, Span, UrlSource};
pub(crate) use textnlp_provider::words;

mod parts;
mod phase;
mod recovery;
mod server;

/// Serde's derive for a section with optional keys only, in which unknown keys are errors.
macro_rules! section {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident : $type:ty = $default:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),* }
        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }
    };
}
pub(crate) use section;

/// One environment: all layers merged, all defaults set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "textnlp-deploy environment")]
pub struct Environment {
    /// The environment to inherit values from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// The name, as in `--env staging`.
    #[schemars(schema_with = "environment_name")]
    pub environment: EnvironmentName,
    /// A description, which `env list` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The phase, which sets defaults and a gate.
    #[serde(default = "default_phase")]
    pub phase: Phase,
    /// The location of the state.
    #[serde(default)]
    pub state: StateSettings,
    /// The sites where the service runs.
    #[schemars(length(min = 1))]
    pub sites: Vec<SiteSettings>,
    /// The models to serve.
    #[schemars(length(min = 1))]
    pub models: Vec<ModelSettings>,
    /// Settings of the inference server.
    #[serde(default)]
    pub server: Server,
    /// Whether `down` may delete the data of the service.
    #[serde(default = "protected")]
    pub data: DataProtection,
    /// The database of keys, quotas and usage.
    #[serde(default)]
    pub database: DatabaseSettings,
    /// The cache of vectors of texts that were embedded before.
    #[serde(default)]
    pub cache: CacheSettings,
    /// TLS between clients and the service.
    #[serde(default)]
    pub tls: Tls,
    /// The number of replicas and autoscaling.
    #[serde(default)]
    pub scaling: Scaling,
    /// GPU machines.
    #[serde(default)]
    pub gpu: Gpu,
    /// The cluster that runs the programs.
    #[serde(default)]
    pub cluster: ClusterSettings,
    /// The network of the deployment.
    #[serde(default)]
    pub network: NetworkSettings,
    /// Storage of models and files.
    #[serde(default)]
    pub storage: Storage,
    /// The registry of images.
    #[serde(default)]
    pub registry: RegistrySettings,
    /// Monitoring and alerts.
    #[serde(default)]
    pub monitoring: MonitoringSettings,
    /// Backups.
    #[serde(default)]
    pub backup: Backup,
    /// Traffic between clients and sites.
    #[serde(default)]
    pub traffic: TrafficSettings,
    /// A DNS zone with records that follow the sites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Replication between sites.
    #[serde(default)]
    pub replication: Replication,
    /// Disaster recovery after a site failure.
    #[serde(default)]
    pub dr: Dr,
    /// How a new release replaces the old one.
    #[serde(default)]
    pub rollout: Rollout,
    /// When the cloud may restart and upgrade managed databases and clusters; if unset, the cloud chooses a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceWindow>,
    /// Tags of every object, in addition to the built-in ones.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The cost budget.
    #[serde(default)]
    pub budget: Budget,
    /// The targets of the gate of this phase.
    #[serde(default)]
    pub gates: Gates,
    /// Rules of the cloud account, such as mandatory tags.
    #[serde(default)]
    pub account: Account,
    /// Requirements that are checked before the first `up`.
    #[serde(default)]
    pub prerequisites: Prerequisites,
    /// Feature flags by name.
    #[serde(default)]
    pub features: BTreeMap<String, Feature>,
}

fn default_phase() -> Phase {
    Phase::Development
}

fn protected() -> DataProtection {
    DataProtection::Protected
}

impl Environment {
    /// The site that is primary: the only one, or the one with that role.
    pub fn primary(&self) -> Option<&SiteSettings> {
        self.sites.iter().find(|site| site.role == Role::Primary)
    }

    /// The minimum hardware: that of the phase, and whether a smaller machine is refused.
    pub fn minimum(&self) -> Minimum {
        let minimum = self.phase.minimum();
        let blocks = match self.prerequisites.minimum {
            Some(wanted) => wanted == Enforcement::Block,
            None => minimum.blocks && !self.prerequisites.allow_below_minimum,
        };
        Minimum { blocks, ..minimum }
    }

    /// Whether network policies limit the connections of pods.
    pub fn has_network_policies(&self) -> bool {
        self.network.policies.unwrap_or(self.phase.is_production())
    }

    /// The sites that take part in a failover: those that run the API.
    pub fn members(&self) -> impl Iterator<Item = &SiteSettings> {
        self.sites.iter().filter(|site| site.serves())
    }

    /// Whether anything in it runs as a process of the server program.
    pub fn runs_here(&self) -> bool {
        self.sites.iter().any(SiteSettings::is_on_machine) || self.witness_place().is_some()
    }

    /// Whether the service is an inference endpoint that the cloud runs. Such a site is the only one of its environment.
    pub fn is_endpoint(&self) -> bool {
        self.sites.iter().any(SiteSettings::is_endpoint)
    }

    /// The location outside the sites where the witness and the global endpoint run. `None` with one site, without
    /// failover, or if traffic moves by DNS.
    pub fn witness_place(&self) -> Option<WitnessPlace<'_>> {
        if self.dr.mode == Failover::None || self.traffic.mode != TrafficMode::Gateway || self.sites.len() < 2 {
            return None;
        }
        let home = self.primary()?;
        let is_same_location = |provider: &str, region: &str| provider == home.provider && region == home.region;
        let witness = self.dr.witness.as_ref();
        let (provider, region) = witness.map_or((home.provider.as_str(), home.region.as_str()), |witness| {
            (witness.provider.as_str(), witness.region.as_str())
        });
        let account = home.account.as_deref().filter(|_| is_same_location(provider, region));
        // With another provider, the witness runs on a machine.
        let runtime = if provider == home.provider { home.runtime } else { Runtime::Process };
        Some(WitnessPlace { provider, region, runtime, account })
    }

    /// Whether records of an existing DNS zone send clients to several sites.
    pub fn has_site_records(&self) -> bool {
        let has_zone = self.primary().is_some_and(|home| home.zone(self).is_some());
        has_zone && self.witness_place().is_some() && self.members().count() > 1
    }

    /// The hosting of a database server: as configured, else external if an address is set, else on the platform of the
    /// service.
    pub fn database_hosting(&self) -> Option<Hosting> {
        let db = &self.database;
        let addressed = db.url.is_some() || db.host.is_some();
        let usual = if addressed { Hosting::External } else { Hosting::Cluster };
        (db.kind == DatabaseKind::Postgres).then(|| db.hosting.unwrap_or(usual))
    }

    /// Whether the servers run in a cluster and use an external database.
    pub fn has_cluster_with_external_database(&self) -> bool {
        self.database_hosting() == Some(Hosting::External) && self.primary().is_some_and(SiteSettings::is_in_cluster)
    }

    /// Whether a cluster dumps its database: one that it runs, or one that its cloud runs.
    pub fn dumps_in_cluster(&self) -> bool {
        self.backup.enabled
            && matches!(self.database_hosting(), Some(Hosting::Cluster | Hosting::Managed))
            && self.primary().is_some_and(SiteSettings::is_in_cluster)
    }

    /// The folder of the bucket that a cluster copies its dumps to.
    pub fn dump_copies(&self) -> Option<String> {
        let url = self.backup.destination.as_deref().filter(|url| url.contains("://") && self.dumps_in_cluster())?;
        Some(format!("{}/{}/{}", url.trim_end_matches('/'), self.environment, self.primary()?.name))
    }

    /// Whether sites that fail over to one another share one built-in PostgreSQL with a primary that moves between them.
    pub fn shares_database(&self) -> bool {
        self.witness_place().is_some() && self.database_hosting().is_some_and(|hosting| hosting != Hosting::External)
    }

    /// Whether all sites that fail over to one another use an external database.
    pub fn stores_outside(&self) -> bool {
        self.witness_place().is_some() && self.database_hosting() == Some(Hosting::External)
    }

    /// The model for requests without a model name; never one of a single tenant.
    pub fn default_model(&self) -> Option<&ModelSettings> {
        let mut shared = self.models.iter().filter(|model| model.tenant.is_none());
        let other = shared.clone().find(|model| model.role != Some(ModelRole::Embeddings));
        shared.clone().find(|model| model.role == Some(ModelRole::Default)).or(other).or_else(|| shared.next())
    }

    /// The model for requests for embeddings without a model name, if it is not the default model.
    pub fn embedding_model(&self) -> Option<&ModelSettings> {
        self.models.iter().find(|model| model.tenant.is_none() && model.role == Some(ModelRole::Embeddings))
    }
}

words! {
    /// Whether `down` may delete the data of the service.
    pub enum DataProtection {
        /// `down` deletes it.
        Disposable = "disposable",
        /// Only `--delete-data ENV` deletes it; `--delete-dumps ENV` only dumps in a cluster.
        Protected = "protected",
    }
}

section! {
    /// The location of the state.
    pub struct StateSettings {
        /// `local`, or an object store with conditional writes: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`,
        /// `az://CONTAINER/PREFIX`. Each environment has a folder of its name there.
        pub store: String = "local".to_owned(),
        /// The endpoint of a store other than the cloud's own, such as MinIO or an emulator.
        pub endpoint: Option<String> = None,
        /// The region of the bucket, if the store has regions.
        pub region: Option<String> = None,
        /// The key that encrypts the state, for the tool `age`.
        pub encryption_key: Option<SecretSource> = None,
    }
}

words! {
    /// A service that a site can run.
    pub enum Service {
        /// The API.
        Api = "api",
        /// The models.
        Models = "models",
        /// The writable database.
        DatabasePrimary = "database-primary",
        /// A replica of the database.
        DatabaseReplica = "database-replica",
    }
}

/// The name of the location of the witness and the global endpoint; no site may have it.
pub const WITNESS: &str = "witness";

/// See [`Environment::witness_place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WitnessPlace<'a> {
    /// The provider.
    pub provider: &'a str,
    /// The region.
    pub region: &'a str,
    /// How programs run there.
    pub runtime: Runtime,
    /// The account, if it is that of the home site.
    pub account: Option<&'a str>,
}

/// A site: one location where the service runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteSettings {
    /// Its name.
    #[schemars(schema_with = "label")]
    pub name: SiteName,
    /// Its role in disaster recovery.
    #[serde(default = "default_role")]
    pub role: Role,
    /// The provider; `auto` detects it.
    #[schemars(schema_with = "label")]
    pub provider: String,
    /// How programs run there.
    #[serde(default = "default_runtime")]
    pub runtime: Runtime,
    /// The provider's region, or `local` for your own machine.
    #[serde(default = "default_region")]
    pub region: String,
    /// The account, subscription, project or host; if unset, the one that is signed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The type of the instances of an inference endpoint, such as `ml.m5.xlarge`, or of the nodes without GPU of a cluster that is
    /// created, such as `m7i.2xlarge`; if unset, the provider's default, for nodes that of `cluster.node_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// The services of this site; if unset, those that its role needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// The listen address of this site; if unset, `server.api.host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port of this site; if unset, `server.api.port`. Sites on one machine need different ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The metrics port of this site; if unset, `server.monitoring.metrics_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub metrics_port: Option<u16>,
    /// Access to the cluster and its workloads, for `runtime: kubernetes`.
    #[serde(default, skip_serializing_if = "ClusterAccess::is_empty")]
    pub cluster: ClusterAccess,
    /// GPU machines of this site; if unset, those of `gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Existing objects of this site: read and checked, never changed.
    #[serde(default, skip_serializing_if = "Existing::is_empty")]
    pub existing: Existing,
    /// Tags of this site, in addition to those of the environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

fn default_role() -> Role {
    Role::Primary
}

fn default_runtime() -> Runtime {
    Runtime::Process
}

/// The region of your own machine.
pub const LOCAL: &str = "local";

fn default_region() -> String {
    LOCAL.to_owned()
}

impl SiteSettings {
    /// The id of the existing DNS zone for its records.
    pub fn zone<'a>(&'a self, e: &'a Environment) -> Option<&'a String> {
        self.existing.zone.as_ref().or(e.traffic.existing.as_ref())
    }

    /// Whether the writable database is here, or a replica of it, or none (`None`).
    pub fn database(&self) -> Option<Service> {
        let by_role = if self.role == Role::Primary { Service::DatabasePrimary } else { Service::DatabaseReplica };
        if self.services.is_empty() {
            return Some(by_role);
        }
        self.services.iter().copied().find(|s| matches!(s, Service::DatabasePrimary | Service::DatabaseReplica))
    }

    /// Whether its programs run as pods.
    pub fn is_in_cluster(&self) -> bool {
        self.runtime == Runtime::Kubernetes
    }

    /// Whether its programs run as processes of the server program.
    pub fn is_on_machine(&self) -> bool {
        self.runtime == Runtime::Process
    }

    /// Whether the cloud runs its servers as an inference endpoint, and authorizes their callers.
    pub fn is_endpoint(&self) -> bool {
        matches!(self.runtime, Runtime::Sagemaker | Runtime::CloudRun | Runtime::Vertex | Runtime::AzureMl)
    }

    /// Whether its servers are started from an image.
    pub fn runs_image(&self) -> bool {
        !self.is_on_machine()
    }

    /// Whether the API runs here.
    pub fn serves(&self) -> bool {
        self.services.is_empty() || self.services.contains(&Service::Api)
    }
}

/// Existing objects by component: ids in the provider's format.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Existing {
    /// A network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Subnets of the network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// A Kubernetes cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// A database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// A cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// A bucket or storage account for models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// A DNS zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// A key of a key management service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A role or service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// A TLS certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// A registry of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
}

impl Existing {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One model to serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// The name that requests use.
    #[schemars(length(min = 1, max = 100))]
    pub name: String,
    /// The tenant whose model it is: only its keys and tokens see it, as `TENANT/NAME`; if unset, it is a model of all tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// `bundled`, `file:…`, `https:…`, `hf:ORG/NAME@REVISION`, an object store's URL, or a name of the catalogue (the default: its own name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<ModelRole>,
    /// The number format of weights; if unset, that of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// The context length in tokens, prompt and answer together; if unset, the model's maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 1_048_576))]
    pub context: Option<u32>,
    /// What computes it; if unset, the own kernels where they have its family, else candle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<ModelExecutor>,
    /// Whether it is loaded before the server is ready.
    #[serde(default)]
    pub preload: bool,
    /// Whether vectors of an encoder may be shortened by `dimensions`: only if it was trained for that (Matryoshka).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub matryoshka: bool,
    /// Whether special tokens that clients write in messages are tokens: they can then open a message of another role.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parse_special_tokens: bool,
    /// A text whose perplexity the servers measure; if unset, none is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<ModelQuality>,
    /// The expected digest of its files, `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// How the quality of a served model is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelQuality {
    /// A text like those that the model is to continue, of some pages: at least 64 tokens, of which 8192 count. Servers measure it once after the model's first load.
    #[schemars(length(min = 64, max = 65_536))]
    pub text: String,
    /// The highest perplexity of the text that the gate accepts, from staging on. Not checked if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_perplexity: Option<f64>,
}

impl ModelSettings {
    /// What clients, prices, releases and sites call it: its name, of a tenant's model `TENANT/NAME`.
    pub fn id(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("{tenant}/{}", self.name),
            None => self.name.clone(),
        }
    }

    /// Its source: `source`, or its own name in the catalogue.
    pub fn source(&self) -> &str {
        self.source.as_deref().unwrap_or(&self.name)
    }
}

fn environment_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "textnlp-environment-name"})
}

/// The format of site and provider names.
pub(crate) fn label(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "textnlp-label"})
}

/// The JSON Schema of an environment file, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Environment).to_value()
}
