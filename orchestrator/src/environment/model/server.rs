//! What only `serve` reads.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Bytes, Rate, SecretSource, Span, section, words};

section! {
    /// The `server:` subtree.
    pub struct Server {
        /// The API.
        pub api: Api = Api::default(),
        /// Authentication and limits.
        pub security: Security = Security::default(),
        /// Retention of usage data.
        pub usage: Usage = Usage::default(),
        /// What you charge tenants for tokens.
        pub prices: TokenPrices = TokenPrices::default(),
        /// Retention of the audit log.
        pub audit: Audit = Audit::default(),
        /// Hourly analysis of usage.
        pub analytics: UsageAnalytics = UsageAnalytics::default(),
        /// Batches of requests.
        pub batch: BatchSettings = BatchSettings::default(),
        /// Personal data in requests.
        pub pii: PersonalData = PersonalData::default(),
        /// Metrics, traces and logs.
        pub monitoring: ServerMonitoring = ServerMonitoring::default(),
        /// Compute settings.
        pub inference: Inference = Inference::default(),
    }
}

section! {
    /// The API.
    pub struct Api {
        /// The address to listen on.
        pub host: String = "0.0.0.0".to_owned(),
        /// The port that clients use.
        #[schemars(range(min = 1, max = 65535))]
        pub port: u16 = 8443,
        /// Threads for HTTP.
        #[schemars(range(min = 1, max = 1024))]
        pub workers: u32 = 4,
        /// The time limit of an answer.
        pub timeout: Span = Span::seconds(300),
        /// The largest request body.
        pub max_request_size: Bytes = Bytes(10_000_000),
        /// Client connections of a gateway at once. For one more, the connection that has been idle longest is closed.
        #[schemars(range(min = 1, max = 1_000_000))]
        pub max_connections: u32 = 12_000,
        /// Connections of one client address at once, or of one /64 of IPv6; more are refused. If unset, 1000 on a host
        /// and an eighth of `max_connections` in a cluster.
        #[schemars(range(min = 1, max = 1_000_000))]
        pub max_connections_per_address: Option<u32> = None,
        /// Addresses and networks (`10.0.0.0/8`) of HTTP proxies and load balancers in front of the gateway. They are
        /// not limited as one client, and their `X-Forwarded-For` names the client.
        #[schemars(length(max = 32))]
        pub trusted_proxies: Vec<String> = Vec::new(),
        /// Requests in the queue; more are answered with 429.
        #[schemars(range(min = 1, max = 100_000))]
        pub queue: u32 = 256,
        /// The highest number of tokens of one request.
        #[schemars(range(min = 1, max = 1_048_576))]
        pub max_tokens: u32 = 4096,
        /// Origins that may call the API (CORS); none by default.
        pub cors_origins: Vec<String> = Vec::new(),
        /// Whether `/docs` and `/openapi.json` are served; from pilot on `/openapi.json` needs a key.
        pub docs: bool = true,
        /// The domain of tenants: with `example.com`, `acme.example.com` is the tenant `acme`.
        pub base_domain: Option<String> = None,
        /// The time that a replica has to finish its open requests when it stops.
        pub drain: Span = Span::seconds(30),
    }
}

words! {
    /// The signature algorithm of tokens.
    pub enum JwtAlgorithm {
        /// An RSA key pair.
        Rs256 = "RS256",
    }
}

section! {
    /// Authentication and limits.
    pub struct Security {
        /// The signature algorithm of tokens.
        pub jwt_algorithm: JwtAlgorithm = JwtAlgorithm::Rs256,
        /// The lifetime of a token.
        pub jwt_expiry: Span = Span::seconds(3600),
        /// The maximum number of prompt and generated tokens per access token, unless its key has another limit.
        #[schemars(range(min = 1, max = 1_125_899_906_842_624_u64))]
        pub jwt_token_limit: u64 = 1_000_000,
        /// Accepted for old files; RS256 signs with a key pair that `up` creates.
        pub jwt_secret: Option<SecretSource> = None,
        /// Whether clients need an API key; `false` only in development.
        pub api_keys_enabled: bool = true,
        /// The header of the API key.
        #[schemars(length(min = 1, max = 64))]
        pub api_key_header: String = "X-API-Key".to_owned(),
        /// Requests per key.
        pub rate_limit: Rate = Rate { count: 1000, per_seconds: 3600 },
        /// Generated tokens per key.
        pub token_rate_limit: Option<Rate> = None,
        /// The `iss` claim of tokens; if unset, the environment's name.
        pub issuer: Option<String> = None,
        /// Access tokens of an OpenID Connect provider, besides API keys.
        pub oidc: Oidc = Oidc::default(),
    }
}

section! {
    /// Access tokens of an OpenID Connect provider.
    pub struct Oidc {
        /// The issuer, as the provider's metadata has it: `https://login.example.com/realms/acme`. If unset, none is used.
        pub issuer: Option<String> = None,
        /// The audience that a token must have.
        pub audience: Option<String> = None,
        /// The tenant of tokens whose claim names none; without `tenant_claim`, if unset, `default`.
        pub tenant: Option<String> = None,
        /// The claim that names the tenant: `tenant`, or with dots between the names of nested claims.
        pub tenant_claim: Option<String> = None,
        /// The scopes of every token: `generate`, `embeddings`, `models`, `tokenize`, `validate`, `usage`, or `*` for these.
        pub scopes: Vec<String> = Vec::new(),
        /// The claim that lists the roles of a person: `realm_access.roles`.
        pub roles_claim: Option<String> = None,
        /// The scopes that each role adds; `admin` too.
        pub roles: BTreeMap<String, Vec<String>> = BTreeMap::new(),
    }
}

section! {
    /// Retention of usage data.
    pub struct Usage {
        /// Retention of usage rows, and of ended API keys of measurements, in days; 0 keeps them forever.
        #[schemars(range(max = 36_500))]
        pub retention_days: u32 = 400,
    }
}

section! {
    /// What you charge tenants for tokens. Without a price above 0 and without `models`, the servers record no cost.
    pub struct TokenPrices {
        /// The currency of the prices; if unset, `budget.currency`.
        #[schemars(length(min = 3, max = 3))]
        pub currency: Option<String> = None,
        /// The price of 1,000,000 tokens of prompts and of embedded texts.
        #[schemars(range(min = 0.0, max = 1_000_000.0))]
        pub prompt: f64 = 0.0,
        /// The price of 1,000,000 generated tokens.
        #[schemars(range(min = 0.0, max = 1_000_000.0))]
        pub answer: f64 = 0.0,
        /// Prices of single models, by their name.
        pub models: BTreeMap<String, ModelPrices> = BTreeMap::new(),
    }
}

section! {
    /// The prices of one model.
    pub struct ModelPrices {
        /// The price of 1,000,000 tokens of prompts and of embedded texts; if unset, that of all models.
        #[schemars(range(min = 0.0, max = 1_000_000.0))]
        pub prompt: Option<f64> = None,
        /// The price of 1,000,000 generated tokens; if unset, that of all models.
        #[schemars(range(min = 0.0, max = 1_000_000.0))]
        pub answer: Option<f64> = None,
    }
}

impl TokenPrices {
    /// Whether the servers record what requests cost.
    pub fn are_set(&self) -> bool {
        self.prompt > 0.0 || self.answer > 0.0 || !self.models.is_empty()
    }
}

section! {
    /// Retention of the audit log.
    pub struct Audit {
        /// Retention of audit events in days, at least 30; 0 keeps them forever.
        #[schemars(range(max = 36_500))]
        pub retention_days: u32 = 400,
    }
}

section! {
    /// Hourly analysis of usage: summaries, and findings against earlier hours. On machines the servers run it, in clusters
    /// the job of `sites[].cluster.analytics`.
    pub struct UsageAnalytics {
        /// Whether usage is analyzed.
        pub enabled: bool = false,
        /// Retention of insights in days, at least 28; 0 keeps them forever.
        #[schemars(range(max = 36_500))]
        pub retention_days: u32 = 90,
    }
}

section! {
    /// Batches of requests: clients send many at once, and read the answers later. The database stores the texts of requests and answers.
    pub struct BatchSettings {
        /// Whether there are batches.
        pub enabled: bool = false,
        /// The most requests of a batch.
        #[schemars(range(min = 1, max = 1_000_000))]
        pub max_requests: u32 = 50_000,
        /// The largest file of requests.
        pub max_file_size: Bytes = Bytes(100_000_000),
        /// The most unfinished batches of a tenant.
        #[schemars(range(min = 1, max = 10_000))]
        pub max_pending: u32 = 20,
        /// The most bytes of all files of a tenant.
        pub max_stored: Bytes = Bytes(1_000_000_000),
        /// Requests of batches that one server runs at once. It takes none while requests of clients wait.
        #[schemars(range(min = 1, max = 64))]
        pub concurrency: u32 = 2,
        /// Retention of files and of finished batches in days; 0 keeps them until they are deleted.
        #[schemars(range(max = 36_500))]
        pub retention_days: u32 = 30,
        /// Who is notified when a batch ends.
        #[schemars(length(max = 16))]
        pub webhooks: Vec<BatchWebhook> = Vec::new(),
    }
}

/// An address that gets a signed event when a batch ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchWebhook {
    /// The tenant whose batches it is notified of; if unset, those of all tenants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Its address: `https://…`, without a secret in it.
    pub url: String,
    /// A reference to the secret that signs its events: `whsec_` and 24 to 64 random bytes in base64.
    pub secret: SecretSource,
}

words! {
    /// What happens with personal data that is found in a request.
    pub enum PiiAction {
        /// It is counted in the metrics.
        Count = "count",
        /// Each value is replaced by a mark such as `[EMAIL]`.
        Mask = "mask",
        /// The request is refused with 400.
        Refuse = "refuse",
    }
}

words! {
    /// A kind of personal data.
    pub enum PiiKind {
        /// E-mail addresses.
        Email = "email",
        /// Telephone numbers in international form: `+1 202-555-0143`.
        Phone = "phone",
        /// Numbers of payment cards.
        Card = "card",
        /// International bank account numbers.
        Iban = "iban",
        /// Addresses of IPv4 and IPv6.
        Ip = "ip",
        /// Social security numbers of the United States.
        Ssn = "ssn",
    }
}

impl PiiKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Email, Self::Phone, Self::Card, Self::Iban, Self::Ip, Self::Ssn];
}

section! {
    /// Search for personal data in the texts of requests, before a model or a database gets them. Answers are not searched.
    pub struct PersonalData {
        /// What happens with what is found; if unset, requests are not searched.
        pub action: Option<PiiAction> = None,
        /// What is searched for.
        #[schemars(length(min = 1))]
        pub kinds: Vec<PiiKind> = PiiKind::ALL.to_vec(),
    }
}

words! {
    /// The log level.
    pub enum LogLevel {
        /// Every step of a request.
        Trace = "TRACE",
        /// Details for developers.
        Debug = "DEBUG",
        /// Changes.
        Info = "INFO",
        /// Problems that may need attention.
        Warning = "WARNING",
        /// Problems that need action.
        Error = "ERROR",
    }
}

section! {
    /// Metrics, traces and logs.
    pub struct ServerMonitoring {
        /// The port of `/metrics`.
        #[schemars(range(min = 1, max = 65535))]
        pub metrics_port: u16 = 9090,
        /// Whether requests are traced: their spans are logged, and sent to `traces.endpoint`.
        pub enable_tracing: bool = false,
        /// Export of spans.
        pub traces: TraceExport = TraceExport::default(),
        /// The log level.
        pub log_level: LogLevel = LogLevel::Info,
        /// Your own log file; if unset, the site's log folder.
        pub log_file: Option<String> = None,
    }
}

section! {
    /// Export of spans to an OpenTelemetry collector, by OTLP over HTTP. Spans have no texts, keys or client addresses.
    pub struct TraceExport {
        /// The collector's address with its path: `https://collector.example.com:4318/v1/traces`. If unset, nothing is sent.
        pub endpoint: Option<String> = None,
        /// The share of requests that are traced; a valid `traceparent` of the client takes precedence.
        #[schemars(range(min = 0.0, max = 1.0))]
        pub ratio: f64 = 1.0,
        /// The header that has the secret.
        #[schemars(length(min = 1, max = 64))]
        pub header: String = "authorization".to_owned(),
        /// A reference to the secret that the collector asks for: `Bearer TOKEN`. If unset, none is sent.
        pub secret: Option<SecretSource> = None,
    }
}

section! {
    /// Compute settings.
    pub struct Inference {
        /// Compute threads; 0 uses the limits of the machine.
        #[schemars(range(max = 1024))]
        pub threads: u32 = 0,
        /// Whether a request uses keys and values of earlier ones of its tenant that begin with the same tokens.
        pub prefix_cache: bool = true,
        /// The most tokens that are guessed from a text itself and verified in one step; 0 guesses none.
        #[schemars(range(max = 16))]
        pub draft_tokens: u32 = 8,
        /// Requests of a model that are computed together. If unset, 32 on the CPU and 256 on a GPU, where a lower number
        /// needs less memory.
        #[schemars(range(min = 1, max = 256))]
        pub max_batch_size: Option<u32> = None,
    }
}

section! {
    /// The value of a feature flag.
    pub struct FeatureSettings {
        /// Whether it is on for anyone.
        pub enabled: bool = true,
        /// The share of API keys that have it.
        #[schemars(range(max = 100))]
        pub percent: u8 = 100,
        /// The tenants that may have it; all if empty.
        pub tenants: Vec<String> = Vec::new(),
        /// The model of the flag `new_model`: requests of its share that name no model get it.
        pub model: Option<String> = None,
    }
}

/// A feature flag: `true`, `false`, or its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "FeatureForm", into = "FeatureSettings")]
pub struct Feature(pub FeatureSettings);

/// A feature flag as it is written.
#[derive(Deserialize)]
#[serde(untagged)]
enum FeatureForm {
    Switch(bool),
    Settings(FeatureSettings),
}

impl From<FeatureForm> for Feature {
    fn from(form: FeatureForm) -> Self {
        match form {
            FeatureForm::Switch(enabled) => Self(FeatureSettings { enabled, ..FeatureSettings::default() }),
            FeatureForm::Settings(settings) => Self(settings),
        }
    }
}

impl From<Feature> for FeatureSettings {
    fn from(feature: Feature) -> Self {
        feature.0
    }
}

impl JsonSchema for Feature {
    fn schema_name() -> Cow<'static, str> {
        "Feature".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = FeatureSettings::json_schema(generator);
        schema.insert("type".to_owned(), json!(["boolean", "object"]));
        schema.insert("description".to_owned(), json!("A feature flag: `true`, `false`, or its settings."));
        schema
    }
}
