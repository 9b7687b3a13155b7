//! The parts of a service besides its server.

use std::collections::BTreeMap;

use super::{Address, Bytes, SecretSource, Span, section, words};

words! {
    /// What stores keys, quotas and usage.
    pub enum DatabaseKind {
        /// A file beside the server.
        Sqlite = "sqlite",
        /// A PostgreSQL server.
        Postgres = "postgres",
    }
}

words! {
    /// Who runs a database or a cache.
    pub enum Hosting {
        /// The cloud's own service.
        Managed = "managed",
        /// We do, in the cluster.
        Cluster = "cluster",
        /// Somebody else; we are told the address.
        External = "external",
    }
}

section! {
    /// Keys, quotas, usage.
    pub struct DatabaseSettings {
        /// What it is.
        pub kind: DatabaseKind = DatabaseKind::Sqlite,
        /// Who runs it; for PostgreSQL.
        pub hosting: Option<Hosting> = None,
        /// The address of an external one, or `host`, `port`, `name`, `user` and `password`.
        pub url: Option<Address> = None,
        /// The host of an external one.
        pub host: Option<String> = None,
        /// Its port.
        #[schemars(range(min = 1, max = 65535))]
        pub port: Option<u16> = None,
        /// The name of the database in it.
        pub name: String = "textnlp".to_owned(),
        /// Who we are there.
        pub user: Option<String> = None,
        /// The password.
        pub password: Option<SecretSource> = None,
        /// The server's version, for one that we make.
        #[schemars(range(min = 15))]
        pub version: u32 = 15,
        /// Copies that follow the primary within one site.
        #[schemars(range(max = 15))]
        pub replicas: u32 = 0,
        /// Disk of one that we make.
        pub size: Bytes = Bytes(100 << 30),
        /// Connections that are kept.
        #[schemars(range(min = 1, max = 1000))]
        pub pool_size: u32 = 20,
        /// Connections beyond them for a while.
        #[schemars(range(max = 1000))]
        pub max_overflow: u32 = 40,
        /// One that exists already, by its id.
        pub existing: Option<String> = None,
    }
}

words! {
    /// What replicas share.
    pub enum CacheKind {
        /// The server's own memory.
        Memory = "memory",
        /// A Redis server.
        Redis = "redis",
    }
}

section! {
    /// The cache that replicas share.
    pub struct CacheSettings {
        /// What it is.
        pub kind: CacheKind = CacheKind::Memory,
        /// Who runs it; for Redis.
        pub hosting: Option<Hosting> = None,
        /// The address of an external one, or `host`, `port` and `db`.
        pub url: Option<Address> = None,
        /// The host of an external one.
        pub host: Option<String> = None,
        /// Its port.
        #[schemars(range(min = 1, max = 65535))]
        pub port: Option<u16> = None,
        /// The number of the database in it.
        #[schemars(range(max = 15))]
        pub db: u32 = 0,
        /// Connections at most.
        #[schemars(range(min = 1, max = 10_000))]
        pub max_connections: u32 = 100,
        /// Memory at most, for the one in the server.
        pub max_size: Bytes = Bytes(64 << 20),
        /// One that exists already, by its id.
        pub existing: Option<String> = None,
    }
}

words! {
    /// Who signs our certificate.
    pub enum TlsMode {
        /// Plain HTTP; only in development.
        Off = "off",
        /// A certificate authority of our own.
        LocalCa = "local-ca",
        /// A public authority by the ACME protocol.
        Acme = "acme",
        /// A certificate that exists already.
        Existing = "existing",
    }
}

section! {
    /// How clients trust us.
    pub struct Tls {
        /// Who signs.
        pub mode: TlsMode = TlsMode::LocalCa,
        /// DNS names and addresses besides those that we know ourselves.
        pub names: Vec<String> = Vec::new(),
        /// Days of validity.
        #[schemars(range(min = 1, max = 825))]
        pub days: u32 = 90,
        /// Whom the public authority may write to.
        pub email: Option<String> = None,
        /// One that exists already: its id at the provider, or the whole path of its file with the key beside it, ending in `.key`.
        pub existing: Option<String> = None,
    }
}

section! {
    /// How many replicas.
    pub struct Scaling {
        /// At least.
        #[schemars(range(min = 1, max = 1000))]
        pub min: u32 = 1,
        /// At most; left out, always `min`.
        #[schemars(range(min = 1, max = 1000))]
        pub max: Option<u32> = None,
        /// Add a replica above this share of CPU, in percent.
        #[schemars(range(min = 1, max = 100))]
        pub cpu: Option<u32> = None,
        /// Add a replica above this share of memory, in percent.
        #[schemars(range(min = 1, max = 100))]
        pub memory: Option<u32> = None,
        /// Add a replica above this many requests per second and replica.
        #[schemars(range(min = 1, max = 1_000_000))]
        pub requests_per_second: Option<u32> = None,
        /// Whether the cluster's autoscaler is told `requests_per_second` by an adapter of ours; else somebody else's has to be there.
        pub adapter: bool = false,
    }
}

words! {
    /// The class of a GPU machine; each provider maps it to a machine type.
    pub enum GpuSize {
        /// No GPU.
        None = "none",
        /// One small GPU.
        Small = "small",
        /// One small GPU, more CPU.
        Medium = "medium",
        /// One large GPU.
        Large = "large",
        /// Eight large GPUs.
        Xlarge = "xlarge",
    }
}

words! {
    /// Whether cheaper capacity that can be taken back is used.
    pub enum Spot {
        /// Never.
        Never = "never",
        /// When there is some.
        Prefer = "prefer",
        /// Nothing else.
        Only = "only",
    }
}

section! {
    /// GPU machines.
    pub struct Gpu {
        /// Their class.
        pub size: GpuSize = GpuSize::None,
        /// How many.
        #[schemars(range(min = 1, max = 1000))]
        pub count: u32 = 1,
        /// Whether cheaper capacity that can be taken back is used.
        pub spot: Spot = Spot::Never,
    }
}

section! {
    /// What runs the programs.
    pub struct ClusterSettings {
        /// One that exists already, by its id.
        pub existing: Option<String> = None,
        /// Its version; left out, the provider's default.
        pub version: Option<String> = None,
        /// The namespace that is ours in it.
        pub namespace: String = "textnlp".to_owned(),
        /// Machines at least.
        #[schemars(range(min = 1, max = 1000))]
        pub min_nodes: u32 = 1,
        /// Machines at most; left out, always `min_nodes`.
        #[schemars(range(min = 1, max = 1000))]
        pub max_nodes: Option<u32> = None,
        /// Whether pods run under the restricted security profile.
        pub restricted: bool = true,
    }
}

section! {
    /// Where everything lives.
    pub struct NetworkSettings {
        /// The address range, where the provider has one.
        pub cidr: Option<String> = None,
        /// One that exists already, by its id.
        pub existing: Option<String> = None,
        /// Subnets that exist already, by their ids.
        pub subnets: Vec<String> = Vec::new(),
        /// Ports that the firewall lets in besides the API's.
        pub open_ports: Vec<u16> = Vec::new(),
        /// Whether a web application firewall stands before the API.
        pub waf: bool = false,
        /// Whether pods may only talk to whom they need.
        pub policies: bool = false,
        /// How programs reach the outside.
        pub proxy: Proxy = Proxy::default(),
        /// A file with certificate authorities that are trusted besides the public ones.
        pub private_ca: Option<String> = None,
    }
}

section! {
    /// How programs reach the outside.
    pub struct Proxy {
        /// For plain HTTP.
        pub http: Option<Address> = None,
        /// For HTTPS.
        pub https: Option<Address> = None,
        /// Hosts that are reached without it.
        pub no_proxy: Vec<String> = Vec::new(),
    }
}

section! {
    /// Where models and files are.
    pub struct Storage {
        /// Space for downloaded models.
        pub model_cache: Bytes = Bytes(50_000_000_000),
        /// A folder of one's own for models; left out, the site's.
        pub model_folder: Option<String> = None,
        /// A bucket that exists already.
        pub existing: Option<String> = None,
        /// When files that nobody reads move to a cheaper class.
        pub archive_after: Option<Span> = None,
        /// A key of one's own that encrypts them, by its id.
        pub existing_key: Option<String> = None,
    }
}

section! {
    /// Where images come from.
    pub struct RegistrySettings {
        /// Its address; left out, the images are carried along.
        pub url: Option<String> = None,
        /// One that exists already, by its id.
        pub existing: Option<String> = None,
        /// The password for it.
        pub password: Option<SecretSource> = None,
    }
}

section! {
    /// Who watches.
    pub struct MonitoringSettings {
        /// Whether Prometheus, Grafana, dashboards and alerts are installed.
        pub stack: bool = false,
        /// How long measurements are kept.
        pub retention: Span = Span::seconds(15 * 86_400),
        /// One that exists already, by its id.
        pub existing: Option<String> = None,
        /// Who is told, by name of the receiver.
        pub receivers: BTreeMap<String, Address> = BTreeMap::new(),
        /// When somebody is told.
        pub alerts: Alerts = Alerts::default(),
    }
}

section! {
    /// When somebody is told.
    pub struct Alerts {
        /// p95 above this for five minutes.
        pub latency: Span = Span::seconds(1),
        /// Share of errors above this for ten minutes.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub error_rate: f64 = 0.05,
        /// Memory above this share in percent for a quarter of an hour.
        #[schemars(range(min = 1, max = 100))]
        pub memory: u32 = 80,
        /// Disk above this share in percent.
        #[schemars(range(min = 1, max = 100))]
        pub disk: u32 = 90,
        /// More restarts than this within an hour.
        #[schemars(range(min = 1))]
        pub restarts: u32 = 5,
    }
}

section! {
    /// Corporate rules of the account that we work in.
    pub struct Account {
        /// The boundary that every role of ours must carry, by its id.
        pub permission_boundary: Option<String> = None,
        /// A role that exists already and that we take on, by its id.
        pub existing_role: Option<String> = None,
        /// Tags that the account demands; `tags` must have them.
        pub mandatory_tags: Vec<String> = Vec::new(),
    }
}

section! {
    /// What must be there before the first `up`.
    pub struct Prerequisites {
        /// Keys of services outside, by the name of the service.
        pub external_keys: BTreeMap<String, SecretSource> = BTreeMap::new(),
        /// Where the source of this environment is kept.
        pub git: Option<String> = None,
        /// Who is responsible: `devops`, `security`, `database`, `network`.
        pub people: BTreeMap<String, String> = BTreeMap::new(),
        /// Goes on with a warning on a machine below the minimum of the phase, which is refused from pilot on.
        pub allow_below_minimum: bool = false,
    }
}

section! {
    /// What it may cost.
    pub struct Budget {
        /// The most per month; a plan above it is refused.
        #[schemars(range(min = 0.0))]
        pub monthly: Option<f64> = None,
        /// In which currency.
        #[schemars(length(min = 3, max = 3))]
        pub currency: String = "USD".to_owned(),
        /// The share of it from which a plan warns.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub warn_at: f64 = 0.8,
    }
}
