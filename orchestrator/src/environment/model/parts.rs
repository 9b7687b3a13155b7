//! The parts of a service besides its server.

use std::collections::BTreeMap;

use textnlp_net::redis::redis_url;

use super::{
    Bytes, CacheKind, ClusterIdentity, DatabaseKind, GpuSize, Hosting, NodeSize, NodeUpgrade, SecretSource, Span, Spot,
    TlsMode, UrlSource, section, words,
};

words! {
    /// What a failed check does.
    pub enum Enforcement {
        /// It is reported as a warning.
        Warn = "warn",
        /// The command fails, or the gate stays shut.
        Block = "block",
    }
}

words! {
    /// What missing or outdated security advisories do to a gate.
    pub enum AdvisoryPolicy {
        /// They are reported as a warning: the operator accepts them.
        Warn = "warn",
        /// The gate waits until newer ones were matched.
        Wait = "wait",
        /// The gate stays shut.
        Block = "block",
    }
}

words! {
    /// A framework of compliance requirements.
    pub enum Framework {
        /// General Data Protection Regulation of the European Union.
        Gdpr = "gdpr",
        /// Security Rule of the Health Insurance Portability and Accountability Act of the United States.
        Hipaa = "hipaa",
        /// Trust Services Criteria of the AICPA.
        Soc2 = "soc2",
    }
}

impl Framework {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gdpr, Self::Hipaa, Self::Soc2];

    /// Its name in reports.
    pub fn title(self) -> &'static str {
        match self {
            Self::Gdpr => "GDPR",
            Self::Hipaa => "HIPAA",
            Self::Soc2 => "SOC 2",
        }
    }
}

/// The default certificate authority: <https://letsencrypt.org/getting-started/>.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

section! {
    /// The database of keys, quotas and usage.
    pub struct DatabaseSettings {
        /// The kind of cache.
        pub kind: DatabaseKind = DatabaseKind::Sqlite,
        /// The hosting of a PostgreSQL.
        pub hosting: Option<Hosting> = None,
        /// The URL of an external database, in place of `host`, `port`, `name`, `user` and `password`.
        pub url: Option<UrlSource> = None,
        /// The host of an external cache.
        pub host: Option<String> = None,
        /// The port.
        #[schemars(range(min = 1, max = 65535))]
        pub port: Option<u16> = None,
        /// The database name.
        pub name: String = "textnlp".to_owned(),
        /// The user name.
        pub user: Option<String> = None,
        /// The password.
        pub password: Option<SecretSource> = None,
        /// The PostgreSQL version, for a database that `up` creates.
        #[schemars(range(min = 15))]
        pub version: u32 = 15,
        /// Replicas of the primary within one site.
        #[schemars(range(max = 15))]
        pub replicas: u32 = 0,
        /// Another region with a replica of a managed database.
        pub replica_region: Option<String> = None,
        /// The disk size of a database that `up` creates.
        pub size: Bytes = Bytes(100 << 30),
        /// Connections in the pool.
        #[schemars(range(min = 1, max = 1000))]
        pub pool_size: u32 = 20,
        /// Additional connections under load.
        #[schemars(range(max = 1000))]
        pub max_overflow: u32 = 40,
        /// An existing database, by its id.
        pub existing: Option<String> = None,
    }
}

section! {
    /// The cache of vectors of texts that were embedded before.
    pub struct CacheSettings {
        /// The kind of cache.
        pub kind: CacheKind = CacheKind::None,
        /// The most memory of vectors in each server, from 1 MiB to 1 TiB.
        pub size: Bytes = Bytes(64 << 20),
        /// The hosting of a Redis.
        pub hosting: Option<Hosting> = None,
        /// The URL of a Redis that the servers share, only with `kind: redis`: `redis://HOST:PORT/NUMBER`, or `rediss://…` with TLS. With a password, the whole URL is a secret.
        pub url: Option<UrlSource> = None,
        /// How long a Redis keeps a vector, from one second to 365 days.
        pub ttl: Span = Span::seconds(86_400),
        /// The maximum number of connections of each server to a Redis.
        #[schemars(range(min = 1, max = 1000))]
        pub max_connections: u32 = 8,
        /// The least memory for values of a Redis that a cloud runs, from 1 MiB to 1 TiB; if unset, `1GB`. Only with `hosting: managed`.
        pub memory: Option<Bytes> = None,
        /// Replicas of a Redis that a cloud runs, in other zones; one of them takes over. Only with `hosting: managed`.
        #[schemars(range(max = 5))]
        pub replicas: u32 = 0,
        /// An existing cache, by its id.
        pub existing: Option<String> = None,
    }
}

impl CacheSettings {
    /// Whether its Redis is one that the operator runs.
    pub fn is_external(&self) -> bool {
        let usual = self.url.as_ref().map(|_| Hosting::External);
        self.kind == CacheKind::Redis && self.hosting.or(usual) == Some(Hosting::External)
    }

    /// Whether the servers may verify the certificate of an external Redis: a secret address may be one with TLS.
    pub fn may_have_tls(&self) -> bool {
        self.is_external()
            && self.url.as_ref().is_some_and(|url| match url {
                UrlSource::Secret(_) => true,
                UrlSource::Url(url) => redis_url(url).is_ok_and(|url| url.scheme() == "rediss"),
            })
    }

    /// Whether its Redis is one that a cloud runs.
    pub fn is_managed(&self) -> bool {
        self.kind == CacheKind::Redis && self.hosting == Some(Hosting::Managed)
    }
}

section! {
    /// TLS between clients and the service.
    pub struct Tls {
        /// The source of certificates.
        pub mode: TlsMode = TlsMode::LocalCa,
        /// DNS names and addresses of the certificate, in addition to those of the environment.
        pub names: Vec<String> = Vec::new(),
        /// Days of validity; a public certificate authority decides itself.
        #[schemars(range(min = 1, max = 825))]
        pub days: u32 = 90,
        /// The contact address for the public certificate authority; only with `mode: acme`.
        pub email: Option<String> = None,
        /// The URL of the directory of a certificate authority that supports ACME; only with `mode: acme`. If unset, Let's Encrypt.
        pub directory: Option<String> = None,
        /// An existing certificate: its id at the provider, or the absolute path of its file, with the key next to it, ending in `.key`.
        pub existing: Option<String> = None,
    }
}

impl Tls {
    /// The directory of the public certificate authority.
    pub fn acme_directory(&self) -> &str {
        self.directory.as_deref().unwrap_or(LETS_ENCRYPT)
    }
}

section! {
    /// The number of replicas and autoscaling.
    pub struct Scaling {
        /// The minimum number of replicas.
        #[schemars(range(min = 1, max = 1000))]
        pub min: u32 = 1,
        /// The maximum number of replicas; if unset, always `min`.
        #[schemars(range(min = 1, max = 1000))]
        pub max: Option<u32> = None,
        /// Add a replica above this share of CPU, in percent.
        #[schemars(range(min = 1, max = 100))]
        pub cpu: Option<u32> = None,
        /// Add a replica above this share of memory, in percent.
        #[schemars(range(min = 1, max = 100))]
        pub memory: Option<u32> = None,
        /// Add a replica above this number of requests per second and replica.
        #[schemars(range(min = 1, max = 1_000_000))]
        pub requests_per_second: Option<u32> = None,
        /// Whether the built-in metrics adapter gives `requests_per_second` to the cluster's autoscaler; if not, the cluster needs another adapter.
        pub adapter: bool = false,
    }
}

section! {
    /// GPU machines.
    pub struct Gpu {
        /// Their size class.
        pub size: GpuSize = GpuSize::None,
        /// The provider's machine types, best first, in place of those that `size` stands for: `[g6.2xlarge, g5.2xlarge]`. Google Cloud
        /// and Azure take one.
        pub machines: Vec<String> = Vec::new(),
        /// The GPUs of each machine; if unset, those of `size`.
        #[schemars(range(min = 1, max = 16))]
        pub per_machine: Option<u32> = None,
        /// The number of machines.
        #[schemars(range(min = 1, max = 1000))]
        pub count: u32 = 1,
        /// The most machines, up to which the autoscaler of the cluster's nodes adds them for pods that wait; if unset, always
        /// `count`.
        #[schemars(range(min = 1, max = 1000))]
        pub max: Option<u32> = None,
        /// Whether cheaper spot capacity is used, which the provider can reclaim.
        pub spot: Spot = Spot::Never,
        /// How machines are replaced when Google Cloud upgrades them; if unset, `minimal`. Other providers have ways of their own.
        pub upgrade: Option<NodeUpgrade> = None,
    }
}

impl Gpu {
    /// The GPUs of each machine.
    pub fn gpus(&self) -> u32 {
        self.per_machine.unwrap_or_else(|| self.size.gpus())
    }
}

section! {
    /// The cluster that runs the programs.
    pub struct ClusterSettings {
        /// An existing cluster, by its id.
        pub existing: Option<String> = None,
        /// Its version; left out, the provider's default.
        pub version: Option<String> = None,
        /// The networks that reach the API server of a cluster that is created, besides the cluster's own: `[203.0.113.0/24]`. If
        /// unset, every network; `[]` is none.
        pub allow_from: Option<Vec<String>> = None,
        /// Identities of the provider that reach a cluster that is created, besides the one that deploys.
        pub access: Vec<ClusterIdentity> = Vec::new(),
        /// The namespace of the deployment.
        pub namespace: String = "textnlp".to_owned(),
        /// The minimum number of nodes.
        #[schemars(range(min = 1, max = 1000))]
        pub min_nodes: u32 = 1,
        /// The maximum number of nodes; if unset, always `min_nodes`.
        #[schemars(range(min = 1, max = 1000))]
        pub max_nodes: Option<u32> = None,
        /// The size of the nodes without GPU of a cluster that is created; if unset, `small`, or the smallest one with room for a pod of
        /// the servers if it cannot run there. `sites[].instance_type` names a machine type instead.
        pub node_size: Option<NodeSize> = None,
    }
}

section! {
    /// The network of the deployment.
    pub struct NetworkSettings {
        /// The address range, if the provider has one.
        pub cidr: Option<String> = None,
        /// An existing network, by its id.
        pub existing: Option<String> = None,
        /// Existing subnets, by their ids.
        pub subnets: Vec<String> = Vec::new(),
        /// Whether a web application firewall protects the API.
        pub waf: bool = false,
        /// Whether network policies limit the connections of pods. If unset: from phase pilot on.
        pub policies: Option<bool> = None,
        /// The proxy for outgoing connections.
        pub proxy: Proxy = Proxy::default(),
        /// A file with trusted certificate authorities, in addition to the public ones.
        pub private_ca: Option<String> = None,
    }
}

section! {
    /// The proxy for outgoing connections.
    pub struct Proxy {
        /// The proxy for HTTP.
        pub http: Option<UrlSource> = None,
        /// The proxy for HTTPS.
        pub https: Option<UrlSource> = None,
        /// Hosts that are reached without a proxy.
        pub no_proxy: Vec<String> = Vec::new(),
    }
}

section! {
    /// Storage of models and files.
    pub struct Storage {
        /// The disk space for downloaded models.
        pub model_cache: Bytes = Bytes(50_000_000_000),
        /// Your own folder for models; if unset, the site's.
        pub model_folder: Option<String> = None,
        /// An existing bucket.
        pub existing: Option<String> = None,
        /// The age in whole days, such as `30d`, at which unused files move to a cheaper storage class.
        #[schemars(extend("examples" = ["30d"]))]
        pub archive_after: Option<Span> = None,
        /// Another region that new files are copied to.
        pub replicate_to: Option<String> = None,
        /// Your own encryption key, by its id.
        pub existing_key: Option<String> = None,
    }
}

section! {
    /// The registry of images.
    pub struct RegistrySettings {
        /// Its address. Without a password, a registry of the site's cloud: `up` pushes the image of this program there
        /// unless `sites[].cluster.image` names one. With a password, your own.
        pub url: Option<String> = None,
        /// An existing registry, by its id.
        pub existing: Option<String> = None,
        /// The user of the account at your registry that nodes of a cluster pull images with.
        pub user: Option<String> = None,
        /// The password of that account.
        pub password: Option<SecretSource> = None,
    }
}

impl RegistrySettings {
    /// The address of a registry of the site's cloud. One with an account is yours: nothing is created in it or pushed to it.
    pub fn of_cloud(&self) -> Option<&str> {
        self.url.as_deref().filter(|_| self.password.is_none())
    }

    /// The registry as images name it: `registry.example.com/team`.
    pub fn address(&self) -> Option<&str> {
        let url = self.url.as_deref()?;
        let address = url.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        // The address of `docker login`. Images name that registry `docker.io`, and kubelets match by their names.
        Some(if matches!(address, "index.docker.io" | "index.docker.io/v1") { "docker.io" } else { address })
    }
}

section! {
    /// Monitoring and alerts.
    pub struct MonitoringSettings {
        /// Whether scrape targets, alert rules and a dashboard are created, for a cluster's Prometheus operator or a cloud's own monitoring.
        pub stack: bool = false,
        /// Alert receivers, by name.
        pub receivers: BTreeMap<String, UrlSource> = BTreeMap::new(),
        /// Alert thresholds.
        pub alerts: Alerts = Alerts::default(),
    }
}

section! {
    /// Alert thresholds.
    pub struct Alerts {
        /// Alert if p95 latency is above this for `latency_for`.
        pub latency: Span = Span::seconds(1),
        /// The time that p95 latency must be above `latency`.
        pub latency_for: Span = Span::seconds(300),
        /// Alert if the error rate is above this for `error_rate_for`.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub error_rate: f64 = 0.05,
        /// The time that the error rate must be above `error_rate`.
        pub error_rate_for: Span = Span::seconds(600),
        /// Alert if memory usage is above this percentage for 15 minutes.
        #[schemars(range(min = 1, max = 100))]
        pub memory: u32 = 80,
        /// Alert if disk usage is above this percentage.
        #[schemars(range(min = 1, max = 100))]
        pub disk: u32 = 90,
        /// Alert after more restarts than this within an hour.
        #[schemars(range(min = 1))]
        pub restarts: u32 = 5,
    }
}

section! {
    /// Rules of the cloud account, such as mandatory tags.
    pub struct Account {
        /// The permissions boundary of every role that this program creates, by its id.
        pub permission_boundary: Option<String> = None,
        /// An existing role to assume, by its id.
        pub existing_role: Option<String> = None,
        /// The external id that the trust policy of `existing_role` asks for.
        pub external_id: Option<String> = None,
        /// The MFA device whose code `existing_role` asks for, by its ARN or serial number. You are asked for the code.
        pub mfa_serial: Option<String> = None,
        /// How long a session of `existing_role` lasts: 15 minutes to 12 hours; if unset, an hour.
        pub session_duration: Option<Span> = None,
        /// Tags that the account requires; `tags` must have them.
        pub mandatory_tags: Vec<String> = Vec::new(),
    }
}

section! {
    /// Requirements that are checked before the first `up`.
    pub struct Prerequisites {
        /// Keys of external services, by the name of the service.
        pub external_keys: BTreeMap<String, SecretSource> = BTreeMap::new(),
        /// The repository of this environment; the preflight then requires `git` on this machine.
        pub git: Option<String> = None,
        /// On-call contacts: `devops`, `security`, `database`, `network`.
        pub people: BTreeMap<String, String> = BTreeMap::new(),
        /// What preflight does on a machine below the minimum hardware of the phase. If unset: `block` from phase pilot on; `warn` in
        /// earlier phases and in phase air-gapped.
        pub minimum: Option<Enforcement> = None,
        /// The old form of `minimum: warn`.
        pub allow_below_minimum: bool = false,
        /// The user of the host that runs this environment. Commands of root change to it, unless it is `root`.
        pub user: Option<String> = None,
    }
}

section! {
    /// The cost budget.
    pub struct Budget {
        /// The maximum cost per month; `up` is refused if the known cost is above it. Resources with unknown prices cause a warning.
        #[schemars(range(min = 0.0))]
        pub monthly: Option<f64> = None,
        /// The currency.
        #[schemars(length(min = 3, max = 3))]
        pub currency: String = "USD".to_owned(),
        /// The share of `monthly` from which a plan warns.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub warn_at: f64 = 0.8,
        /// What your own machines cost, by site: those that run the site, or the nodes of its cluster. The resources of other sites on
        /// own machines have no known cost.
        pub machines: BTreeMap<String, MachineCost> = BTreeMap::new(),
        /// The BigQuery table to which Cloud Billing exports the costs of Google Cloud, as `PROJECT.DATASET.TABLE`, for `cost report
        /// --billed`.
        pub billing_export: Option<String> = None,
    }
}

/// What the own machines of a site cost, in `budget.currency`. All of them have the same values.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineCost {
    /// The number of machines.
    #[serde(default = "MachineCost::one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub count: u32,
    /// The average power of one machine at the socket, in watts.
    #[schemars(range(min = 0.0, max = 100_000.0))]
    pub watts: f64,
    /// The price of a kilowatt-hour.
    #[schemars(range(min = 0.0, max = 1_000.0))]
    pub price_per_kwh: f64,
    /// The purchase price of one machine; 0 once it is paid off.
    #[schemars(range(min = 0.0, max = 100_000_000.0))]
    pub purchase_price: f64,
    /// The months over which the purchase price is spread evenly.
    #[schemars(range(min = 1, max = 240))]
    pub depreciation_months: u32,
}

impl MachineCost {
    fn one() -> u32 {
        1
    }

    /// The amount for a month of all of its machines, in millionths.
    pub fn monthly_micros(&self) -> u64 {
        let hours = textnlp_provider::HOURS_PER_MONTH as f64;
        let power = self.watts / 1000.0 * hours * self.price_per_kwh;
        let depreciation = self.purchase_price / f64::from(self.depreciation_months.max(1));
        // The schema bounds every value, far below what the integer holds.
        ((power + depreciation) * f64::from(self.count) * 1e6).round() as u64
    }
}
