//! The settings of an environment that a provider supports. Anything not listed is refused.

use std::fmt;
use std::time::Duration;

use crate::settings::{
    CacheKind, DatabaseCopy, DatabaseKind, Failover, GpuSize, Hosting, Runtime, Strategy, TlsMode, TrafficMode,
};

/// What a provider supports. The default supports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Capabilities {
    /// How programs can run, the usual runtime first.
    pub runtimes: &'static [RuntimeSupport],
    /// The records of several sites in its DNS zones; `None` where it creates none.
    pub site_records: Option<SiteRecords>,
    /// Whether the load balancers of its clusters have names, and no fixed addresses.
    pub names_balancers: bool,
    /// The forms of its ids, by settings: `sites[].account`, `sites[].region`, `account.existing_role` (also of a site's own role) and
    /// `account.permission_boundary`. An id of a setting that is not listed has any form.
    pub forms: &'static [(&'static str, Form)],
}

/// What an id in an environment looks like. Whether the object exists is known only after a sign-in.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Whether an id has this form.
    pub fits: fn(&str) -> bool,
    /// What it is, with an example, for messages: `the 12 digits of an account, such as "123456789012"`.
    pub says: &'static str,
}

impl Form {
    /// The setting with a site's account.
    pub const ACCOUNT: &'static str = "sites[].account";
    /// The setting with a site's region.
    pub const REGION: &'static str = "sites[].region";
    /// The setting with the role that a sign-in assumes.
    pub const ROLE: &'static str = "account.existing_role";
    /// The setting with the permissions boundary of roles.
    pub const BOUNDARY: &'static str = "account.permission_boundary";
}

/// What records of several sites, each with a weight and a health check, are like.
#[derive(Debug, Clone, Copy)]
pub struct SiteRecords {
    /// How long a lost site is in answers at most, before resolvers ask again.
    pub notices_after: Duration,
    /// Whether a record can point at a load balancer that has a name and no fixed address.
    pub takes_names: bool,
}

impl Capabilities {
    /// What the provider supports with a runtime; `None` if programs cannot run so.
    pub fn of(&self, runtime: Runtime) -> Option<&'static RuntimeSupport> {
        self.runtimes.iter().find(|one| one.runtime == runtime)
    }

    /// The form of the ids of a setting.
    pub fn form(&self, setting: &str) -> Option<&'static Form> {
        self.forms.iter().find(|(of, _)| *of == setting).map(|(_, form)| form)
    }

    /// The names of the runtimes.
    pub fn names(&self) -> Vec<&'static str> {
        self.runtimes.iter().map(|one| one.runtime.as_str()).collect()
    }
}

/// What a provider supports with one of its runtimes.
#[derive(Debug, Clone, Copy)]
pub struct RuntimeSupport {
    /// How programs run.
    pub runtime: Runtime,
    /// The supported settings.
    pub supported: &'static [Capability],
    /// Why settings are refused, by their paths, where the contract's own reason does not hold.
    pub refused: &'static [(&'static str, &'static str)],
}

impl RuntimeSupport {
    /// Whether it is supported.
    pub fn supports(&self, capability: Capability) -> bool {
        self.supported.contains(&capability)
    }

    /// Why a setting is refused of which no value is supported.
    pub fn reason(&self, path: &str) -> Option<&'static str> {
        let of = |rows: &'static [(&'static str, &'static str)]| rows.iter().find(|row| row.0 == path).map(|row| row.1);
        of(self.refused).or_else(|| of(REASONS))
    }

    /// The supported values of the same setting, in the provider's order.
    pub fn alternatives(&self, capability: Capability) -> impl Iterator<Item = &'static Capability> {
        self.supported.iter().filter(move |other| other.path() == capability.path())
    }
}

/// One value of one setting that a provider must support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// `database.kind`, and its hosting.
    Database(DatabaseKind, Option<Hosting>),
    /// `cache.kind`, and its hosting.
    Cache(CacheKind, Option<Hosting>),
    /// `tls.mode`.
    Tls(TlsMode),
    /// `gpu.size`.
    Gpu(GpuSize),
    /// `dr.mode`.
    Failover(Failover),
    /// `traffic.mode`.
    Traffic(TrafficMode),
    /// `rollout.strategy`.
    Rollout(Strategy),
    /// `replication.database.mode`.
    Replication(DatabaseCopy),
    /// `state.store`.
    State(Store),
    /// `backup.destination`.
    Backup(Store),
    /// A setting that needs support only when it is written.
    Optional(Setting),
}

impl Capability {
    /// The setting in an environment file.
    pub fn path(self) -> &'static str {
        match self {
            Self::Database(..) => "database.kind",
            Self::Cache(..) => "cache.kind",
            Self::Tls(_) => "tls.mode",
            Self::Gpu(_) => "gpu.size",
            Self::Failover(_) => "dr.mode",
            Self::Traffic(_) => "traffic.mode",
            Self::Rollout(_) => "rollout.strategy",
            Self::Replication(_) => "replication.database.mode",
            Self::State(_) => "state.store",
            Self::Backup(_) => "backup.destination",
            Self::Optional(setting) => setting.path(),
        }
    }
}

impl Capability {
    /// How the value is written into an environment file, as a part of a hint: a file does not accept `postgres/cluster`.
    pub fn to_write(self) -> String {
        let bucket = |store: Store| match store {
            Store::Az => "`az://CONTAINER/PREFIX`".to_owned(),
            store => format!("`{}://BUCKET/PREFIX`", store.as_str()),
        };
        match self {
            Self::Database(kind, Some(hosting)) => format!("`kind: {}` with `hosting: {hosting}`", kind.as_str()),
            Self::Cache(kind, Some(hosting)) => format!("`kind: {}` with `hosting: {hosting}`", kind.as_str()),
            Self::Backup(Store::Folder) => "the absolute path of a folder".to_owned(),
            Self::State(store @ (Store::S3 | Store::Gs | Store::Az)) | Self::Backup(store) => bucket(store),
            value => format!("`{value}`"),
        }
    }
}

/// The value: `postgres/cluster`, `local-ca`; of an optional setting, its path.
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosted = |f: &mut fmt::Formatter<'_>, kind: &str, hosting: Option<Hosting>| match hosting {
            Some(hosting) => write!(f, "{kind}/{hosting}"),
            None => f.write_str(kind),
        };
        match self {
            Self::Database(kind, hosting) => hosted(f, kind.as_str(), *hosting),
            Self::Cache(kind, hosting) => hosted(f, kind.as_str(), *hosting),
            Self::Tls(mode) => mode.fmt(f),
            Self::Gpu(size) => size.fmt(f),
            Self::Failover(mode) => mode.fmt(f),
            Self::Traffic(mode) => mode.fmt(f),
            Self::Rollout(strategy) => strategy.fmt(f),
            Self::Replication(mode) => mode.fmt(f),
            Self::State(Store::Folder) => f.write_str("local"),
            Self::State(store) | Self::Backup(store) => f.write_str(store.as_str()),
            Self::Optional(setting) => f.write_str(setting.path()),
        }
    }
}

/// The store of state or backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A folder of this machine.
    Folder,
    /// An object store with the API of Amazon S3.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
    /// A scheme that no provider supports.
    Unknown,
}

impl Store {
    /// The store of a folder's path or an object store's URL.
    pub fn of(location: &str) -> Self {
        match location.split_once("://").map(|(scheme, _)| scheme) {
            None => Self::Folder,
            Some("s3") => Self::S3,
            Some("gs") => Self::Gs,
            Some("az") => Self::Az,
            Some(_) => Self::Unknown,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
            Self::Unknown => "unknown",
        }
    }
}

macro_rules! optional_settings {
    ($($variant:ident = $path:literal),* $(,)?) => {
        /// A setting that needs the provider's support only when it differs from its default.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs)] // each variant is the setting of its path
        pub enum Setting { $($variant),* }

        impl Setting {
            /// Every optional setting.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The setting in an environment file.
            pub fn path(self) -> &'static str {
                match self { $(Self::$variant => $path),* }
            }
        }
    };
}

optional_settings! {
    PermissionBoundary = "account.permission_boundary",
    ExistingRole = "account.existing_role",
    ExternalId = "account.external_id",
    MfaDevice = "account.mfa_serial",
    SessionDuration = "account.session_duration",
    Backup = "backup.enabled",
    BackupSize = "backup.size",
    PointInTimeRecovery = "backup.point_in_time",
    BillingExport = "budget.billing_export",
    ClusterAccess = "cluster.access",
    ClusterNetworks = "cluster.allow_from",
    ClusterNodes = "cluster.max_nodes",
    NodeSize = "cluster.node_size",
    ClusterVersion = "cluster.version",
    DatabaseReplica = "database.replica_region",
    Features = "features",
    GpuMachines = "gpu.machines",
    GpuAutoscaling = "gpu.max",
    GpuUpgrade = "gpu.upgrade",
    Maintenance = "maintenance",
    AlertLimits = "monitoring.alerts",
    AlertReceivers = "monitoring.receivers",
    MonitoringStack = "monitoring.stack",
    AddressRange = "network.cidr",
    NetworkPolicies = "network.policies",
    PrivateAuthority = "network.private_ca",
    Proxy = "network.proxy",
    Subnets = "network.subnets",
    WebApplicationFirewall = "network.waf",
    ExistingRegistry = "registry.existing",
    RegistryPassword = "registry.password",
    Registry = "registry.url",
    RolloutBake = "rollout.bake",
    RolloutDeadline = "rollout.deadline",
    Autoscaling = "scaling.max",
    ArchiveAfter = "storage.archive_after",
    EncryptionKey = "storage.existing_key",
    ModelFolder = "storage.model_folder",
    ModelReplica = "storage.replicate_to",
    Tags = "tags",
    ExistingZone = "traffic.existing",
    ManagedCertificate = "traffic.managed_certificate",
    DnsTtl = "traffic.ttl",
}

/// Why a setting is refused where no value of it is supported: what holds for every provider that does not support it.
const REASONS: &[(&str, &str)] = &[
    ("account.existing_role", "there is no account of a cloud whose role could be assumed"),
    ("account.external_id", "only roles of AWS ask for an external id"),
    ("account.mfa_serial", "only roles of AWS ask for the code of an MFA device"),
    ("account.permission_boundary", "only roles of AWS have permissions boundaries"),
    ("account.session_duration", "only sessions of AWS's roles get a duration"),
    ("backup.point_in_time", "the log is archived only where a PostgreSQL runs on a machine"),
    ("budget.billing_export", "only costs of Google Cloud are read from an export"),
    ("cache.kind", "no Redis is created here; `cache.url` names one that you run"),
    ("cluster.access", "only clusters of EKS get access entries"),
    ("cluster.allow_from", "no cluster is created here"),
    ("cluster.max_nodes", "there are no nodes of a cluster"),
    ("cluster.node_size", "no nodes are created here"),
    ("cluster.version", "no cluster is created here"),
    (
        "database.replica_region",
        "only managed databases of AWS, Google Cloud and Azure are replicated to another region",
    ),
    ("gpu.machines", "no machines with GPUs are created here"),
    ("gpu.max", "no machines with GPUs are created here"),
    ("gpu.size", "the GPUs of machines are no parts of an environment"),
    ("gpu.upgrade", "only node pools of GKE get an upgrade strategy"),
    ("maintenance", "no cloud operates a database or a cluster here"),
    ("monitoring.alerts", "without a receiver or `monitoring.stack` there is no alert"),
    ("network.cidr", "no network is created here"),
    ("network.policies", "network policies are for pods"),
    ("network.subnets", "only clusters that are created in a cloud get existing subnets"),
    ("network.waf", "the web application firewall is part of an ingress in a cluster"),
    ("rollout.bake", "only canary and blue-green releases wait"),
    ("rollout.deadline", "only canary and blue-green releases have a deadline"),
    ("scaling.max", "replicas on a machine are not scaled automatically"),
    ("storage.archive_after", "no bucket is created here"),
    ("storage.existing_key", "no key of a cloud is used here"),
    ("storage.model_folder", "pods and containers fetch models from their sources"),
    (
        "storage.replicate_to",
        "only buckets of S3 and Cloud Storage and containers of Azure are replicated to another region",
    ),
    ("traffic.existing", "no DNS zone of a cloud is used here"),
    ("traffic.managed_certificate", "public certificates are created for clusters on AWS only"),
    ("traffic.ttl", "only records of `dns` get another TTL"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlisted_capabilities_are_not_supported() {
        assert!(Capabilities::default().of(Runtime::Process).is_none());
        let nothing = RuntimeSupport { runtime: Runtime::Process, supported: &[], refused: &[] };
        for setting in Setting::ALL {
            assert!(!nothing.supports(Capability::Optional(*setting)), "{}", setting.path());
        }
        assert!(!nothing.supports(Capability::Database(DatabaseKind::Sqlite, None)));
        let some = RuntimeSupport {
            runtime: Runtime::Kubernetes,
            supported: &[
                Capability::Database(DatabaseKind::Sqlite, None),
                Capability::Database(DatabaseKind::Postgres, Some(Hosting::External)),
                Capability::Tls(TlsMode::Off),
            ],
            refused: &[],
        };
        let managed = Capability::Database(DatabaseKind::Postgres, Some(Hosting::Managed));
        assert!(!some.supports(managed));
        let instead: Vec<String> = some.alternatives(managed).map(ToString::to_string).collect();
        assert_eq!(instead, ["sqlite", "postgres/external"]);
        let written: Vec<String> = some.alternatives(managed).map(|other| other.to_write()).collect();
        assert_eq!(written, ["`sqlite`", "`kind: postgres` with `hosting: external`"]);
        let stores =
            [Capability::State(Store::Folder), Capability::State(Store::Az), Capability::Backup(Store::Folder)];
        let written = stores.map(Capability::to_write);
        assert_eq!(written, ["`local`", "`az://CONTAINER/PREFIX`", "the absolute path of a folder"]);
    }

    #[test]
    fn backup_stores_are_recognised_by_url_scheme() {
        let of = ["/backups", "s3://b/p", "gs://b", "az://c", "ftp://h"].map(Store::of);
        assert_eq!(of, [Store::Folder, Store::S3, Store::Gs, Store::Az, Store::Unknown]);
    }
}
