//! `server.yaml`: the configuration of one server replica. It is parsed and validated once, at startup.

mod batch;
mod cache;
mod database;
mod document;
mod features;
mod pii;
mod prices;
mod traces;
mod units;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

pub(crate) use document::nearest;
use document::{Document, Section};
use textnlp_net::client::{Url, is_protected_http};
use textnlp_store::MIN_AUDIT_DAYS;
use textnlp_store::analytics::BASELINE_DAYS;

use crate::auth::SCOPES;
use crate::auth::tenant::{DEFAULT, is_tenant_id};

pub use batch::{Batch, Webhook};
pub use cache::{Cache, RedisAt, RedisCache, RedisTrust};
pub use document::Problem;
pub use pii::{Pii, PiiAction, PiiKind};
pub use prices::{Price, Prices, TokenPrices};
pub use textnlp_process::Address;
pub use textnlp_store::{Database, DatabaseAt, FeatureValue, PostgresAt, Rate};
pub use traces::{TraceExport, TraceHeader};
pub use units::{ByteSize, Span};

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the environment.
    pub environment: String,
    /// Its degree of maturity.
    pub phase: Phase,
    /// Region, as `/health` shows it.
    pub region: String,
    /// Site, as `/health` shows it.
    pub site: String,
    /// Listeners and limits.
    pub api: Api,
    /// Which models are served.
    pub models: Models,
    /// Feature flags by name.
    pub features: BTreeMap<String, FeatureValue>,
    /// Where keys, budgets and usage are stored.
    pub database: Database,
    /// Retention of usage records.
    pub usage: Retention,
    /// Retention of audit events.
    pub audit: Retention,
    /// Retention of insights; without it, usage is not analyzed.
    pub analytics: Option<Retention>,
    /// Bounds of batches; there are none without them.
    pub batch: Option<Batch>,
    /// The cache of vectors; each text is computed without it.
    pub cache: Option<Cache>,
    /// Personal data in requests; they are not searched without it.
    pub pii: Option<Pii>,
    /// What tokens cost; nothing is recorded without them.
    pub prices: Option<Prices>,
    /// Authentication and limits.
    pub security: Security,
    /// Logs and metrics.
    pub monitoring: Monitoring,
    /// The control socket of the site agent, where control data is replicated between sites.
    pub watch: Option<Address>,
    /// The cloud that runs it as a container and authorizes its callers. No file sets it.
    pub container: Option<Container>,
    /// How chat templates are rendered and schemas are checked. No file sets it.
    pub renderer: Renderer,
}

/// A container that a cloud runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// Of SageMaker: there is `/invocations` instead of the API.
    Sagemaker,
    /// Of Cloud Run.
    CloudRun,
    /// Of Vertex AI: there is `/invocations` instead of the API.
    Vertex,
    /// Of Azure Machine Learning: there is `/invocations` instead of the API.
    AzureMl,
}

impl Container {
    /// Whether its cloud passes on requests to `/invocations` only, and asks `/ping` whether it is ready.
    pub(crate) fn is_invoked(self) -> bool {
        matches!(self, Self::Sagemaker | Self::Vertex | Self::AzureMl)
    }
}

/// The processes that render chat templates and check schemas.
#[derive(Debug, Clone)]
pub struct Renderer {
    /// The program with the commands `render-chat` and `check-schema`: by default the running one, also after its file
    /// was replaced.
    pub program: Utf8PathBuf,
    /// How long a rendering or a check may take, with the start of its process.
    pub timeout: Duration,
}

impl Default for Renderer {
    /// Ten seconds: a long conversation takes 20 ms.
    fn default() -> Self {
        Self { program: "/proc/self/exe".into(), timeout: Duration::from_secs(10) }
    }
}

/// A phase of maturity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Phase {
    Development,
    Staging,
    Pilot,
    ScaleUp,
    Enterprise,
    MultiRegion,
    AirGapped,
    Optimized,
}

const PHASES: &[(&str, Phase)] = &[
    ("development", Phase::Development),
    ("staging", Phase::Staging),
    ("pilot", Phase::Pilot),
    ("scale-up", Phase::ScaleUp),
    ("enterprise", Phase::Enterprise),
    ("multi-region", Phase::MultiRegion),
    ("air-gapped", Phase::AirGapped),
    ("optimized", Phase::Optimized),
];

impl Phase {
    /// Its name in files and answers.
    pub fn name(self) -> &'static str {
        PHASES.iter().find(|(_, phase)| *phase == self).map_or("", |(name, _)| name)
    }

    /// From pilot on, real users are served.
    pub fn is_production(self) -> bool {
        self >= Self::Pilot
    }
}

/// Listeners and limits.
#[derive(Debug, Clone)]
pub struct Api {
    /// The address for client requests.
    pub listen: Address,
    /// The address for metrics; no listener when absent.
    pub metrics_listen: Option<Address>,
    /// A further address for `/health` and `/ready` only, such as that of a pod whose requests come over loopback.
    pub health_listen: Option<Address>,
    /// Threads that serve HTTP; the engine has its own.
    pub workers: usize,
    /// Timeout of a request.
    pub timeout: Duration,
    /// Timeout for reading a request's headers.
    pub header_timeout: Duration,
    /// Timeout for reading a request's body.
    pub body_timeout: Duration,
    /// The largest request body in bytes.
    pub max_request_size: usize,
    /// The most requests waiting for the engine.
    pub queue: usize,
    /// The most connections open at once.
    pub max_connections: usize,
    /// The most tokens one request may generate.
    pub max_tokens: usize,
    /// Origins that browsers may call from; none by default.
    pub cors_origins: Vec<String>,
    /// Whether `/docs` and `/openapi.json` are served; from pilot on the description needs a key.
    pub docs: bool,
    /// How long it keeps serving after SIGTERM while `/ready` fails, so that load balancers stop sending requests.
    pub lame_duck: Duration,
    /// How long a stopping server waits for requests that are running.
    pub drain: Duration,
    /// Reject requests that did not arrive over HTTPS.
    pub require_https: bool,
    /// The domain whose subdomains are tenants.
    pub base_domain: Option<String>,
}

/// Which models are served.
#[derive(Debug, Clone)]
pub struct Models {
    /// The model of a request that names none.
    pub default: String,
    /// The same for requests for embeddings, where it is another one.
    pub embeddings: Option<String>,
    /// The folder that relative model paths start from.
    pub cache_dir: Option<Utf8PathBuf>,
    /// The most memory that loaded models may hold.
    pub max_cache_size: ByteSize,
    /// Loaded before the server is ready.
    pub preload: Vec<String>,
    /// The models to serve.
    pub serve: Vec<Model>,
    /// Compute threads; 0 uses all available cores.
    pub threads: usize,
    /// Where models compute.
    pub device: Device,
    /// Whether a request uses keys and values of earlier ones of its tenant that begin with the same tokens.
    pub prefix_cache: bool,
    /// The most tokens that are guessed from a text itself and verified in one step; 0 guesses none.
    pub draft_tokens: usize,
    /// The most requests of a model that are computed together; that of its executor if absent.
    pub max_batch_size: Option<usize>,
}

/// One model that can be served.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The name in requests; `TENANT/NAME` for a model of one tenant.
    pub name: String,
    /// The tenant whose model it is; absent for a model of all tenants.
    pub tenant: Option<String>,
    /// Its folder.
    pub path: Utf8PathBuf,
    /// Quantization of the weights in memory; unchanged when absent.
    pub quantize: Option<Weights>,
    /// A context shorter than the model's own.
    pub context: Option<usize>,
    /// What computes it; the own kernels where they have its family when absent.
    pub executor: Option<Executor>,
    /// An encoder whose vectors may be shortened: it was trained for that (Kusupati et al. 2022).
    pub matryoshka: bool,
    /// Whether special tokens that clients write in messages are tokens: they can then open a message of another role.
    pub parse_special_tokens: bool,
    /// The text whose perplexity is measured once after the first load of the model, at most [`MAX_QUALITY_TEXT`] bytes.
    pub quality_text: Option<Arc<str>>,
}

/// The longest [text](Model::quality_text) that measures a model, in bytes.
pub const MAX_QUALITY_TEXT: usize = 65_536;

/// Where models compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// On the first GPU, if this program was built for GPUs and one is here, those models that it can compute; else on the CPU.
    Auto,
    /// On the CPU.
    Cpu,
    /// On NVIDIA's GPU of this number, or not at all.
    Cuda(usize),
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .filter(|number| number.len() <= 3 && number.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{}` is not one of auto, cpu, cuda, cuda:N", text.escape_debug())),
        }
    }
}

/// What computes a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executor {
    /// The own kernels.
    Own,
    /// candle.
    Candle,
}

/// Format of weights in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Weights {
    F32,
    F16,
    Q8_0,
    Q4_0,
}

/// Retention of records.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Days that they are kept; 0 keeps them forever.
    pub retention_days: u32,
}

/// Authentication and limits.
#[derive(Debug, Clone)]
pub struct Security {
    /// How long a token of `/auth/token` is valid.
    pub jwt_expiry: Duration,
    /// The private key that signs tokens; when absent, one is generated that lives as long as the process.
    pub jwt_private_key_file: Option<Utf8PathBuf>,
    /// The default token budget of a token of `/auth/token`; a key may override it.
    pub jwt_token_limit: u64,
    /// Whether requests need a credential.
    pub api_keys_enabled: bool,
    /// The header that carries a key.
    pub api_key_header: String,
    /// Requests per key.
    pub rate_limit: Option<Rate>,
    /// Prompt and generated tokens per key.
    pub token_rate_limit: Option<Rate>,
    /// The `iss` of tokens.
    pub issuer: String,
    /// An OpenID Connect provider whose access tokens are accepted.
    pub oidc: Option<OidcSettings>,
}

/// An OpenID Connect provider, and what its access tokens allow here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OidcSettings {
    /// Its address, which is the `iss` of its tokens.
    pub issuer: String,
    /// The `aud` that a token must have.
    pub audience: String,
    /// The tenant of tokens whose claim names none.
    pub tenant: Option<String>,
    /// The claim that names the tenant.
    pub tenant_claim: Option<String>,
    /// The scopes of every token.
    pub scopes: Vec<String>,
    /// The claim that lists the roles of a person.
    pub roles_claim: Option<String>,
    /// What roles add to `scopes`.
    pub roles: Vec<RoleScopes>,
}

/// The scopes of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleScopes {
    /// Its name in the claim.
    pub role: String,
    /// What it may do.
    pub scopes: Vec<String>,
}

/// Logs and metrics.
#[derive(Debug, Clone)]
pub struct Monitoring {
    /// Whether a request's spans are logged with their times.
    pub enable_tracing: bool,
    /// Where spans are sent, too.
    pub traces: Option<TraceExport>,
    /// The least severe level that is logged.
    pub log_level: tracing::Level,
    /// The log file; standard output when absent.
    pub log_file: Option<Utf8PathBuf>,
}

impl Monitoring {
    /// The defaults for programs without such a section.
    pub(crate) fn standard() -> Self {
        Self { enable_tracing: false, traces: None, log_level: tracing::Level::INFO, log_file: None }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file is given, and no variables are set.
    #[error(
        "no configuration: write --config FILE; only containers of SageMaker, Cloud Run, Vertex AI and Azure Machine Learning have it in variables"
    )]
    Missing,
    /// A container has its configuration and not the list of its models.
    #[error("{0}_0 is not set: it is the first piece of the list of models")]
    NoModels(&'static str),
    /// It cannot be read.
    #[error("read configuration {path}")]
    Read {
        /// Which file.
        path: Utf8PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is wrong.
    #[error("configuration {path} has {} problem{}:{}", problems.len(), if problems.len() == 1 { "" } else { "s" },
        problems.iter().map(|p| format!("\n  {p}")).collect::<String>())]
    Invalid {
        /// Which file.
        path: Utf8PathBuf,
        /// Everything that is wrong with it.
        problems: Vec<Problem>,
    },
}

/// Longer than two health checks of the gateway, which run every 500 ms.
const LAME_DUCK: Duration = Duration::from_millis(1200);

/// The largest configuration file.
const MAX_FILE: u64 = 1 << 20;

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Utf8Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE {
            return Err(read(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text).map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }

    /// The same for a container: the cloud terminates TLS, authorizes callers, and reaches one port only.
    #[must_use]
    pub fn contained(mut self, container: Container) -> Self {
        self.container = Some(container);
        (self.api.metrics_listen, self.api.health_listen) = (None, None);
        self.api.cors_origins.clear();
        self.api.docs = false;
        self.api.require_https = false;
        self.batch = None;
        // Its cloud has no file for a secret, and may have no network. It measures an instance by the time of its answers.
        self.monitoring.traces = None;
        self.cache = None;
        self
    }

    /// Reads a text; the error is everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let document = Document::parse(text)?;
        let root = document.root();
        let textnlp = root.section("textnlp");
        if !root.has("textnlp") {
            root.wrong("textnlp", "is missing", Some("all settings are under the key `textnlp:`".to_owned()));
        }
        root.finish();
        let phase = textnlp.word("phase", PHASES).unwrap_or(Phase::Development);
        let (monitoring, metrics_port) = monitoring(textnlp.section("monitoring"));
        let security = security(textnlp.section("security"), phase);
        let models = models(textnlp.section("models"), security.api_keys_enabled);
        let config = Self {
            environment: textnlp.text("environment").unwrap_or_else(|| "development".into()),
            phase,
            region: textnlp.text("region").unwrap_or_else(|| "local".into()),
            site: textnlp.text("site").unwrap_or_else(|| "here".into()),
            api: api(textnlp.section("api"), metrics_port),
            features: features::features(&textnlp, &models.serve),
            prices: prices::prices(&textnlp, &models.serve),
            models,
            database: database::database(textnlp.section("database")),
            usage: retention(textnlp.section("usage"), (1, 400)),
            audit: retention(textnlp.section("audit"), (MIN_AUDIT_DAYS, 400)),
            analytics: textnlp
                .has("analytics")
                .then(|| retention(textnlp.section("analytics"), (BASELINE_DAYS as u32, 90))),
            batch: batch::batch(&textnlp),
            cache: cache::cache(textnlp.section("cache")),
            pii: pii::pii(&textnlp),
            security,
            monitoring,
            watch: watch(textnlp.section("replication")),
            container: None,
            renderer: Renderer::default(),
        };
        if textnlp.has("redis") {
            textnlp.wrong(
                "redis",
                "is not supported in this version",
                Some("write `cache: { kind: redis, url: redis://HOST:6379/0 }`".to_owned()),
            );
        }
        textnlp.finish();
        let problems = document.problems();
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }
}

/// `replication.watch`: the control socket of the site agent.
fn watch(section: Section<'_>) -> Option<Address> {
    let watch = section.parsed::<Address>("watch");
    section.finish();
    watch
}

fn api(section: Section<'_>, metrics_port: Option<u64>) -> Api {
    let host = section.text("host");
    let port = section.integer("port", 0..=65535);
    if section.has("listen") && (host.is_some() || port.is_some()) {
        section.wrong("listen", "cannot be combined with `host` or `port`", Some("use one or the other".to_owned()));
    }
    let host = host.unwrap_or_else(|| "0.0.0.0".into());
    let listen =
        section.parsed::<Address>("listen").unwrap_or_else(|| Address::Tcp(format!("{host}:{}", port.unwrap_or(8080))));
    let metrics_listen = section.parsed::<Address>("metrics_listen").or_else(|| match (&listen, metrics_port) {
        (_, Some(port)) => Some(Address::Tcp(format!("{host}:{port}"))),
        (Address::Tcp(_), None) => Some(Address::Tcp(format!("{host}:9090"))),
        (Address::Unix(_), None) => None,
    });
    if metrics_listen.as_ref() == Some(&listen) && !matches!(&listen, Address::Tcp(a) if a.ends_with(":0")) {
        section.wrong("metrics_listen", "is the same address as `listen`", None);
    }
    let health_listen = section.parsed::<Address>("health_listen");
    for (other, taken) in [("listen", Some(&listen)), ("metrics_listen", metrics_listen.as_ref())] {
        let is_free = matches!(&health_listen, Some(Address::Tcp(address)) if address.ends_with(":0"));
        if health_listen.is_some() && health_listen.as_ref() == taken && !is_free {
            section.wrong("health_listen", format!("is the same address as `{other}`"), None);
        }
    }
    let cors_origins = section.texts("cors_origins").unwrap_or_default();
    for origin in &cors_origins {
        let sane = origin == "*"
            || ((origin.starts_with("http://") || origin.starts_with("https://")) && !origin.ends_with('/'));
        if !sane || axum::http::HeaderValue::from_str(origin).is_err() {
            section.wrong(
                "cors_origins",
                format!("has `{origin}`, which is not an origin"),
                Some("like `https://app.example.com`".to_owned()),
            );
        }
    }
    let span = |key, default| section.parsed::<Span>(key).map_or(Duration::from_secs(default), |span| span.0);
    let api = Api {
        listen,
        metrics_listen,
        health_listen,
        workers: section.integer("workers", 1..=256).unwrap_or(4) as usize,
        timeout: span("timeout", 300),
        header_timeout: span("header_timeout", 10),
        body_timeout: span("body_timeout", 30),
        max_request_size: section.parsed::<ByteSize>("max_request_size").map_or(10_000_000, |size| size.0 as usize),
        queue: section.integer("queue", 1..=100_000).unwrap_or(256) as usize,
        max_connections: section.integer("max_connections", 1..=1_000_000).unwrap_or(20_000) as usize,
        max_tokens: section.integer("max_tokens", 1..=1_000_000).unwrap_or(4096) as usize,
        cors_origins,
        docs: section.flag("docs").unwrap_or(true),
        lame_duck: section.parsed::<Span>("lame_duck").map_or(LAME_DUCK, |span| span.0),
        drain: Duration::from_secs(section.integer("drain_seconds", 0..=3600).unwrap_or(30)),
        require_https: section.flag("require_https").unwrap_or(false),
        base_domain: section.text("base_domain").map(|domain| domain.to_ascii_lowercase()),
    };
    if !(1024..=1 << 30).contains(&api.max_request_size) {
        section.wrong("max_request_size", "must be from 1KiB to 1GiB", None);
    }
    section.finish();
    api
}

/// `has_keys`: whether requests need a credential, which has a tenant.
fn models(section: Section<'_>, has_keys: bool) -> Models {
    let cache_dir = section.text("cache_dir").map(Utf8PathBuf::from);
    let mut serve: Vec<Model> = Vec::new();
    for item in section.sections("serve") {
        let name = item.needed_text("name");
        let path = item.needed_text("path").map(Utf8PathBuf::from);
        let formats = [("f32", Weights::F32), ("f16", Weights::F16), ("q8_0", Weights::Q8_0), ("q4_0", Weights::Q4_0)];
        let quantize = item.word("quantize", &formats);
        let context = item.integer("context", 2..=1 << 24).map(|context| context as usize);
        let executor = item.word("executor", &[("own", Executor::Own), ("candle", Executor::Candle)]);
        let matryoshka = item.flag("matryoshka").unwrap_or(false);
        let parse_special_tokens = item.flag("parse_special_tokens").unwrap_or(false);
        let quality_text = item.literal_text("quality_text").map(Arc::from);
        if quality_text.as_ref().is_some_and(|text: &Arc<str>| text.len() > MAX_QUALITY_TEXT) {
            item.wrong("quality_text", format!("is longer than {MAX_QUALITY_TEXT} bytes"), None);
        }
        let tenant = item.text("tenant");
        if let Some(tenant) = &tenant {
            let is_prefix = |name: &str| name.strip_prefix(tenant.as_str()).is_some_and(|rest| rest.starts_with('/'));
            if !is_tenant_id(tenant) {
                item.wrong("tenant", format!("cannot be `{tenant}`"), "1 to 40 of a-z, 0-9, - and _".to_owned());
            } else if tenant == DEFAULT {
                item.wrong("tenant", format!("`{DEFAULT}` is the tenant of all keys that name none"), None);
            } else if name.as_deref().is_some_and(|name| !is_prefix(name)) {
                item.wrong("name", format!("does not begin with `{tenant}/`, its tenant"), None);
            } else if !has_keys {
                let hint = "without API keys, clients choose their tenant themselves".to_owned();
                item.wrong("tenant", "needs `security.api_keys_enabled: true`", hint);
            }
        }
        if let Some(name) = &name {
            let sane = |c: char| c.is_ascii_alphanumeric() || "._:/@-".contains(c);
            if name.is_empty() || name.len() > 128 || !name.chars().all(sane) {
                item.wrong(
                    "name",
                    format!("`{name}` is not a valid model name"),
                    Some("letters, digits and . _ : / @ - (at most 128)".to_owned()),
                );
            } else if serve.iter().any(|model| model.name == *name) {
                item.wrong("name", format!("`{name}` is duplicated"), None);
            }
        }
        if let (Some(name), Some(path)) = (name, path) {
            let path = cache_dir.as_ref().map_or(path.clone(), |dir| dir.join(&path));
            serve.push(Model {
                name,
                tenant,
                path,
                quantize,
                context,
                executor,
                matryoshka,
                parse_special_tokens,
                quality_text,
            });
        }
        item.finish();
    }
    for model in serve.iter().filter(|model| model.tenant.is_none()) {
        let first = model.name.split_once('/').map(|(first, _)| first);
        if first.is_some_and(|first| serve.iter().any(|other| other.tenant.as_deref() == Some(first))) {
            let message = format!("has `{}` without a tenant, in the form of a model of one", model.name);
            section.wrong("serve", message, "add `tenant`, or choose another name".to_owned());
        }
    }
    let names: Vec<&str> = serve.iter().map(|model| model.name.as_str()).collect();
    let served = |key: &str, name: &str| {
        if !names.contains(&name) {
            let hint = match nearest(name, &names) {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("`serve` lists: {}", names.join(", ")),
            };
            section.wrong(key, format!("names `{name}`, which is not in `serve`"), hint);
        }
    };
    if serve.is_empty() {
        section.wrong(
            "serve",
            "has no model",
            Some("serve: [ { name: textnlp-tiny, path: /models/textnlp-tiny } ]".to_owned()),
        );
    }
    let shared = serve.iter().find(|model| model.tenant.is_none()).map(|model| model.name.clone());
    let has_shared = shared.is_some();
    let default = section.text("default").or(shared).unwrap_or_default();
    let embeddings = section.text("embeddings");
    let preload = section.texts("preload").unwrap_or_else(|| vec![default.clone()]);
    if !serve.is_empty() && !has_shared {
        let hint = "requests that name no model need one without `tenant`".to_owned();
        section.wrong("serve", "has only models of tenants", hint);
    } else if !serve.is_empty() {
        for (key, name) in [("default", Some(&default)), ("embeddings", embeddings.as_ref())] {
            let Some(name) = name else { continue };
            served(key, name);
            if serve.iter().any(|model| model.name == *name && model.tenant.is_some()) {
                let hint = "name a model without `tenant`".to_owned();
                section.wrong(key, format!("names `{name}`, which belongs to one tenant"), hint);
            }
        }
        for name in &preload {
            served("preload", name);
        }
    }
    let models = Models {
        default,
        embeddings,
        preload,
        max_cache_size: section.parsed("max_cache_size").unwrap_or(ByteSize(50_000_000_000)),
        threads: section.integer("threads", 0..=1024).unwrap_or(0) as usize,
        device: section.parsed("device").unwrap_or(Device::Auto),
        prefix_cache: section.flag("prefix_cache").unwrap_or(true),
        draft_tokens: section.integer("draft_tokens", 0..=16).unwrap_or(8) as usize,
        max_batch_size: section.integer("max_batch_size", 1..=256).map(|size| size as usize),
        cache_dir,
        serve,
    };
    section.finish();
    models
}

/// `least`: the fewest days that are not 0; `usual`: those of a section that names none.
fn retention(section: Section<'_>, (least, usual): (u32, u32)) -> Retention {
    let retention_days = section.integer("retention_days", 0..=36_500).map_or(usual, |days| days as u32);
    if (1..least).contains(&retention_days) {
        let hint = "0 keeps the records forever".to_owned();
        section.wrong("retention_days", format!("is {retention_days}; it must be 0 or at least {least}"), hint);
    }
    section.finish();
    Retention { retention_days }
}

fn security(section: Section<'_>, phase: Phase) -> Security {
    section.word("jwt_algorithm", &[("RS256", ())]);
    let header = section.text("api_key_header").unwrap_or_else(|| "X-API-Key".into());
    if axum::http::HeaderName::from_bytes(header.as_bytes()).is_err() || header.eq_ignore_ascii_case("authorization") {
        section.wrong(
            "api_key_header",
            format!("cannot be `{header}`"),
            Some("choose a header name that is not in use, like `X-API-Key`".to_owned()),
        );
    }
    let security = Security {
        jwt_expiry: section.parsed::<Span>("jwt_expiry").map_or(Duration::from_secs(3600), |span| span.0),
        jwt_private_key_file: section.text("jwt_private_key_file").map(Utf8PathBuf::from),
        jwt_token_limit: section.integer("jwt_token_limit", 1..=1 << 50).unwrap_or(1_000_000),
        api_keys_enabled: section.flag("api_keys_enabled").unwrap_or(true),
        api_key_header: header,
        rate_limit: section.parsed("rate_limit"),
        token_rate_limit: section.parsed("token_rate_limit"),
        issuer: section.text("issuer").unwrap_or_else(|| "textnlp".into()),
        oidc: section.has("oidc").then(|| oidc(section.section("oidc"))),
    };
    if security.oidc.as_ref().is_some_and(|oidc| oidc.issuer == security.issuer) {
        let hint = "tokens of `/auth/token` and of the provider are told apart by their issuer";
        section.wrong("issuer", "is the issuer of the OpenID Connect provider too", hint.to_owned());
    }
    if !security.api_keys_enabled && phase != Phase::Development {
        section.wrong(
            "api_keys_enabled",
            "is false outside development",
            Some("only `phase: development` may serve without keys".to_owned()),
        );
    }
    if security.jwt_private_key_file.is_none() && phase.is_production() {
        section.wrong(
            "jwt_private_key_file",
            "is missing",
            Some("from phase pilot on, all replicas sign with one permanent key".to_owned()),
        );
    }
    section.finish();
    security
}

fn oidc(section: Section<'_>) -> OidcSettings {
    let scopes = |section: &Section<'_>, key| {
        let scopes = section.texts(key).unwrap_or_default();
        for unknown in scopes.iter().filter(|scope| *scope != "*" && !SCOPES.contains(&scope.as_str())) {
            section.wrong(
                key,
                format!("has `{unknown}`, which is no scope"),
                format!("one of *, {}", SCOPES.join(", ")),
            );
        }
        scopes
    };
    let issuer = section.needed_text("issuer").unwrap_or_default();
    let is_address = Url::parse(&issuer).is_ok_and(|url| is_protected_http(&url) && url.query().is_none());
    if !issuer.is_empty() && !is_address {
        let hint = "the address that the provider's metadata has, such as `https://login.example.com/realms/acme`";
        section.wrong("issuer", format!("cannot be `{issuer}`"), hint.to_owned());
    }
    let tenant = section.text("tenant");
    if let Some(tenant) = tenant.as_ref().filter(|tenant| !is_tenant_id(tenant)) {
        section.wrong("tenant", format!("cannot be `{tenant}`"), "1 to 40 of a-z, 0-9, - and _".to_owned());
    }
    let roles = section.sections("roles").into_iter().map(|role| {
        let read = RoleScopes { role: role.needed_text("role").unwrap_or_default(), scopes: scopes(&role, "scopes") };
        role.finish();
        read
    });
    let roles: Vec<RoleScopes> = roles.collect();
    let settings = OidcSettings {
        issuer,
        audience: section.needed_text("audience").unwrap_or_default(),
        tenant,
        tenant_claim: section.text("tenant_claim"),
        scopes: scopes(&section, "scopes"),
        roles_claim: section.text("roles_claim"),
        roles,
    };
    if settings.roles_claim.is_none() && !settings.roles.is_empty() {
        section.wrong("roles", "needs `roles_claim`", "the claim that lists the roles of a person".to_owned());
    }
    section.finish();
    settings
}

fn monitoring(section: Section<'_>) -> (Monitoring, Option<u64>) {
    let levels = [
        ("TRACE", tracing::Level::TRACE),
        ("DEBUG", tracing::Level::DEBUG),
        ("INFO", tracing::Level::INFO),
        ("WARNING", tracing::Level::WARN),
        ("WARN", tracing::Level::WARN),
        ("ERROR", tracing::Level::ERROR),
    ];
    let enable_tracing = section.flag("enable_tracing").unwrap_or(false);
    let monitoring = Monitoring {
        enable_tracing,
        traces: traces::traces(&section, enable_tracing),
        log_level: section.word("log_level", &levels).unwrap_or(tracing::Level::INFO),
        log_file: section.text("log_file").map(Utf8PathBuf::from),
    };
    let metrics_port = section.integer("metrics_port", 0..=65535);
    section.finish();
    (monitoring, metrics_port)
}
