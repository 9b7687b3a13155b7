//! What a person writes, as types.
//!
//! These types are the one description of an environment file: the JSON Schema is made from them, the strict reader checks
//! by that schema, and the defaults stand here. `server` holds what only `serve` reads, `parts` the components of a
//! service, `cluster` what a site in a cluster has besides, `recovery` what protects it, `phase` what each degree of maturity asks for.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use textnlp_provider::{EnvironmentName, SiteName};

pub use self::cluster::*;
pub use self::parts::*;
pub use self::phase::Phase;
pub use self::recovery::*;
pub use self::server::*;
pub use super::units::{Address, Bytes, Rate, SecretSource, Span};

mod cluster;
mod parts;
mod phase;
mod recovery;
mod server;

/// Serde's derive for a section in which every key may be left out and unknown keys are mistakes.
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

/// An enum that is written as one word.
macro_rules! words {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $word)] $variant),* }
        impl $name {
            /// The word that an environment file uses.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(crate) use words;

/// One environment, complete: every layer merged, every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "textnlp-deploy environment")]
pub struct Environment {
    /// Another environment whose values hold where this one is silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// The name, as in `--env staging`.
    #[schemars(schema_with = "environment_name")]
    pub environment: EnvironmentName,
    /// A sentence for whoever reads `env list`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The degree of maturity; it brings defaults and a gate.
    #[serde(default = "default_phase")]
    pub phase: Phase,
    /// Where we write down what we made.
    #[serde(default)]
    pub state: StateSettings,
    /// The places where the service runs.
    #[schemars(length(min = 1))]
    pub sites: Vec<SiteSettings>,
    /// The models to serve.
    #[schemars(length(min = 1))]
    pub models: Vec<ModelSettings>,
    /// What only the inference server reads.
    #[serde(default)]
    pub server: Server,
    /// Whether what the service stores may be deleted with it.
    #[serde(default = "protected")]
    pub data: DataProtection,
    /// Keys, quotas, usage.
    #[serde(default)]
    pub database: DatabaseSettings,
    /// The cache that replicas share.
    #[serde(default)]
    pub cache: CacheSettings,
    /// How clients trust us.
    #[serde(default)]
    pub tls: Tls,
    /// How many replicas.
    #[serde(default)]
    pub scaling: Scaling,
    /// GPU machines.
    #[serde(default)]
    pub gpu: Gpu,
    /// What runs the programs.
    #[serde(default)]
    pub cluster: ClusterSettings,
    /// Where everything lives.
    #[serde(default)]
    pub network: NetworkSettings,
    /// Where models and files are.
    #[serde(default)]
    pub storage: Storage,
    /// Where images come from.
    #[serde(default)]
    pub registry: RegistrySettings,
    /// Who watches.
    #[serde(default)]
    pub monitoring: MonitoringSettings,
    /// Copies that survive us.
    #[serde(default)]
    pub backup: Backup,
    /// Which site gets how much.
    #[serde(default)]
    pub traffic: TrafficSettings,
    /// A zone whose records follow the sites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// What is kept equal between sites.
    #[serde(default)]
    pub replication: Replication,
    /// What happens when a site is lost.
    #[serde(default)]
    pub dr: Dr,
    /// How a new release replaces the old one.
    #[serde(default)]
    pub rollout: Rollout,
    /// Tags that every object carries besides our own.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// What it may cost.
    #[serde(default)]
    pub budget: Budget,
    /// What the gate of this phase demands.
    #[serde(default)]
    pub gates: Gates,
    /// Corporate rules of the account that we work in.
    #[serde(default)]
    pub account: Account,
    /// What must be there before the first `up`.
    #[serde(default)]
    pub prerequisites: Prerequisites,
    /// Feature flags by name.
    #[serde(default)]
    pub features: BTreeMap<String, bool>,
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

    /// The sites that take part in a failover: those that run the API.
    pub fn members(&self) -> impl Iterator<Item = &SiteSettings> {
        self.sites.iter().filter(|site| site.serves())
    }

    /// Whether anything of it is a process of the server program, and not a pod of an image.
    pub fn runs_here(&self) -> bool {
        !self.sites.iter().all(SiteSettings::is_in_cluster) || self.witness_place().is_some()
    }

    /// The place beside the sites where the witness and the front are; `None` where one site is all there is, where nobody
    /// fails over, and where traffic moves by DNS.
    pub fn witness_place(&self) -> Option<WitnessPlace<'_>> {
        if self.dr.mode == Failover::None || self.traffic.mode != TrafficMode::Gateway || self.sites.len() < 2 {
            return None;
        }
        let home = self.primary()?;
        let beside = |provider: &str, region: &str| provider == home.provider && region == home.region;
        let witness = self.dr.witness.as_ref();
        let (provider, region) = witness.map_or((home.provider.as_str(), home.region.as_str()), |witness| {
            (witness.provider.as_str(), witness.region.as_str())
        });
        let account = home.account.as_deref().filter(|_| beside(provider, region));
        // Another's place is a machine.
        let runtime = if provider == home.provider { home.runtime.as_str() } else { PROCESS };
        Some(WitnessPlace { provider, region, runtime, account })
    }

    /// Who runs the database, where it is a server: whoever was named, else somebody else where there is an address, else we do, where
    /// the service runs.
    pub fn database_hosting(&self) -> Option<Hosting> {
        let db = &self.database;
        let addressed = db.url.is_some() || db.host.is_some();
        let usual = if addressed { Hosting::External } else { Hosting::Cluster };
        (db.kind == DatabaseKind::Postgres).then(|| db.hosting.unwrap_or(usual))
    }

    /// Whether sites that fail over to one another share one PostgreSQL of ours, which moves between them.
    pub fn shares_database(&self) -> bool {
        self.witness_place().is_some() && self.database_hosting().is_some_and(|hosting| hosting != Hosting::External)
    }

    /// Whether sites that fail over to one another all store in a database that somebody else runs.
    pub fn stores_outside(&self) -> bool {
        self.witness_place().is_some() && self.database_hosting() == Some(Hosting::External)
    }

    /// The model that answers when a request names none.
    pub fn default_model(&self) -> Option<&ModelSettings> {
        self.models.iter().find(|model| model.role == Some(ModelRole::Default)).or(self.models.first())
    }
}

words! {
    /// Whether what the service stores may be deleted with it.
    pub enum DataProtection {
        /// `down` removes it.
        Disposable = "disposable",
        /// Only `--delete-data ENV` removes it.
        Protected = "protected",
    }
}

section! {
    /// Where we write down what we made.
    pub struct StateSettings {
        /// `local`, or an object store with conditional writes: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`,
        /// `az://CONTAINER/PREFIX`. Each environment has a folder of its name there.
        pub store: String = "local".to_owned(),
        /// The address of a store that is not the cloud's own: MinIO's, an emulator's.
        pub endpoint: Option<String> = None,
        /// The region of the bucket, where the store has regions.
        pub region: Option<String> = None,
        /// Encrypts what is written there: a key of the tool `age`.
        pub encryption_key: Option<SecretSource> = None,
    }
}

words! {
    /// The part of a site in disaster recovery.
    pub enum Role {
        /// Accepts control writes.
        Primary = "primary",
        /// Serves, and can be promoted.
        Secondary = "secondary",
        /// Waits, and can be promoted.
        Standby = "standby",
    }
}

words! {
    /// What a site runs.
    pub enum Service {
        /// The API.
        Api = "api",
        /// The models.
        Models = "models",
        /// The database that is written.
        DatabasePrimary = "database-primary",
        /// A copy of the database that follows.
        DatabaseReplica = "database-replica",
    }
}

/// The name of the place that holds the witness and the front; no site may have it.
pub const WITNESS: &str = "witness";

/// See [`Environment::witness_place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WitnessPlace<'a> {
    /// Who provides it.
    pub provider: &'a str,
    /// Where.
    pub region: &'a str,
    /// How programs run there.
    pub runtime: &'a str,
    /// The account, where it is that of the home site.
    pub account: Option<&'a str>,
}

/// One place where the service runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteSettings {
    /// Its name.
    #[schemars(schema_with = "label")]
    pub name: SiteName,
    /// Its part in disaster recovery.
    #[serde(default = "default_role")]
    pub role: Role,
    /// Who provides it; `auto` takes what the surroundings show.
    #[schemars(schema_with = "label")]
    pub provider: String,
    /// How programs run there.
    #[serde(default = "default_runtime")]
    #[schemars(schema_with = "label")]
    pub runtime: String,
    /// The provider's region, `local` for a machine of one's own.
    #[serde(default = "default_region")]
    pub region: String,
    /// The account, subscription, project or host; left out, the one that is signed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// What runs here; left out, everything that the role needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// The address to listen on here, when it is not `server.api.host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port here, when it is not `server.api.port`: local sites share one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The metrics port here, when it is not `server.monitoring.metrics_port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub metrics_port: Option<u16>,
    /// How the cluster here is reached, and what runs in it, for `runtime: kubernetes`.
    #[serde(default, skip_serializing_if = "ClusterAccess::is_empty")]
    pub cluster: ClusterAccess,
    /// GPU machines here, when they are not those of `gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Objects of this site that exist already: read and checked, never changed.
    #[serde(default, skip_serializing_if = "Existing::is_empty")]
    pub existing: Existing,
    /// Tags of this site besides those of the environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

fn default_role() -> Role {
    Role::Primary
}

/// Programs run as processes of a machine.
pub(crate) const PROCESS: &str = "process";
/// Programs run as pods of a cluster.
const KUBERNETES: &str = "kubernetes";

fn default_runtime() -> String {
    PROCESS.to_owned()
}

fn default_region() -> String {
    "local".to_owned()
}

impl SiteSettings {
    /// Whether the database that is written lives here, or a copy of it, or none (`None`).
    pub fn database(&self) -> Option<Service> {
        let by_role = if self.role == Role::Primary { Service::DatabasePrimary } else { Service::DatabaseReplica };
        if self.services.is_empty() {
            return Some(by_role);
        }
        self.services.iter().copied().find(|s| matches!(s, Service::DatabasePrimary | Service::DatabaseReplica))
    }

    /// Whether its programs are pods of a cluster.
    pub fn is_in_cluster(&self) -> bool {
        self.runtime == KUBERNETES
    }

    /// Whether the API runs here.
    pub fn serves(&self) -> bool {
        self.services.is_empty() || self.services.contains(&Service::Api)
    }
}

/// How the cluster of a site is reached, and what runs in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterAccess {
    /// The kubeconfig file; left out, `KUBECONFIG`, else `~/.kube/config`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<String>,
    /// The context in it; left out, its current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The image of the server: this program, as `bundle create` packs it, in a registry that the cluster reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The image of PostgreSQL, where CloudNativePG is to take another than its own of `database.version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_image: Option<String>,
    /// Where clients reach the service, when that is not `traffic.domain`: what an ingress, a load balancer or a port-forward leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether the cluster's load balancer leads to that address, and not something of the operator's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub load_balancer: bool,
    /// Whether it is an OpenShift, which gives a namespace users of its own and takes pods of no other; a Route says so too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub openshift: bool,
    /// What leads clients of `traffic.domain` to the service, instead of a load balancer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<ClusterIngress>,
    /// A job that works on what the service stored, again and again; left out, there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub analytics: Option<Analytics>,
    /// The file with the settings of SAML, as python3-saml reads them, for whoever signs people in before the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saml: Option<String>,
    /// Where pods find their models.
    #[serde(skip_serializing_if = "ClusterModels::is_usual")]
    pub models: ClusterModels,
    /// The labels of the nodes that the servers and their jobs may run on; left out, every node.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The taints of nodes that the servers and their jobs bear.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// The RuntimeClass of the servers' pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_class: Option<String>,
    /// The PriorityClass of the servers' pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class: Option<String>,
}

/// What leads clients from outside of a cluster to the service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterIngress {
    /// How.
    pub kind: IngressKind,
    /// The class of an ingress-nginx controller, such as `nginx`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// The ClusterIssuer of cert-manager that signs the certificate which clients see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The Secret with that certificate, when it exists already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_secret: Option<String>,
    /// The Gateway that clients come by, as `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The one of its listeners that is meant; left out, each that takes `traffic.domain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
    /// The port of that listener, where clients come by another one than 443.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Which object leads clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IngressKind {
    /// An Ingress for ingress-nginx, which ends their TLS and speaks TLS with the pods.
    #[default]
    Ingress,
    /// A Route of OpenShift, which passes TLS through. Its pods run as the user that OpenShift gives them.
    Route,
    /// An HTTPRoute of the Gateway API: the Gateway ends their TLS, and speaks TLS with the pods, whose authority it knows.
    Gateway,
}

impl ClusterAccess {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The host of the address, if it has one.
    pub fn host(&self) -> Option<String> {
        let rest = self.address.as_deref()?.strip_prefix("https://")?;
        let authority = rest.split('/').next()?;
        let host = match authority.strip_prefix('[') {
            Some(v6) => v6.split(']').next()?,
            None => authority.split(':').next()?,
        };
        (!host.is_empty()).then(|| host.to_owned())
    }

    /// The port of the address, if there is one.
    pub fn port(&self) -> Option<u16> {
        let host = self.host()?;
        let rest = self.address.as_deref()?.strip_prefix("https://")?.trim_start_matches('[');
        match rest.strip_prefix(host.as_str())?.trim_start_matches(']').trim_end_matches('/').strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0),
            None => Some(443),
        }
    }
}

/// Objects that exist already, by component: ids as the provider writes them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)] // each field is the component of its name
pub struct Existing {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<String>,
}

impl Existing {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

words! {
    /// What a model is for.
    pub enum ModelRole {
        /// It answers when a request names no model.
        Default = "default",
        /// It makes embeddings.
        Embeddings = "embeddings",
    }
}

words! {
    /// How weights are held.
    pub enum Quantize {
        /// 32-bit floats.
        F32 = "f32",
        /// 16-bit floats.
        F16 = "f16",
        /// 8-bit integers in groups of 32.
        Q8 = "q8_0",
    }
}

/// One model to serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// The name that requests use.
    #[schemars(length(min = 1, max = 100))]
    pub name: String,
    /// `bundled`, `file:…`, `https:…`, `hf:ORG/NAME@REVISION`, an object store's URL, or a name of the catalogue (the default: its own name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<ModelRole>,
    /// How the weights are held; left out, as the file has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// The longest prompt plus answer in tokens; left out, what the model allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 1_048_576))]
    pub context: Option<u32>,
    /// Loaded before the server says that it is ready.
    #[serde(default)]
    pub preload: bool,
    /// The digest that the files must have, `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl ModelSettings {
    /// Where it comes from: the source, or its own name to be looked up in the catalogue.
    pub fn source(&self) -> &str {
        self.source.as_deref().unwrap_or(&self.name)
    }
}

fn environment_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "textnlp-environment-name"})
}

/// The form of site, provider and runtime names.
pub(crate) fn label(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "textnlp-label"})
}

/// The JSON Schema of an environment file, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Environment).to_value()
}
