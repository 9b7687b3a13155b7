//! What only `serve` reads.

use super::{Bytes, Rate, SecretSource, Span, section, words};

section! {
    /// The `server:` subtree.
    pub struct Server {
        /// The API.
        pub api: Api = Api::default(),
        /// Who may call it.
        pub security: Security = Security::default(),
        /// What it tells about itself.
        pub monitoring: ServerMonitoring = ServerMonitoring::default(),
        /// How it computes.
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
        /// Threads that answer HTTP.
        #[schemars(range(min = 1, max = 1024))]
        pub workers: u32 = 4,
        /// The longest answer.
        pub timeout: Span = Span::seconds(300),
        /// The largest request body.
        pub max_request_size: Bytes = Bytes(10_000_000),
        /// Requests that may wait; more are answered 429.
        #[schemars(range(min = 1, max = 100_000))]
        pub queue: u32 = 256,
        /// The most tokens that one request may ask for.
        #[schemars(range(min = 1, max = 1_048_576))]
        pub max_tokens: u32 = 4096,
        /// Origins whose pages may call the API; none is the default.
        pub cors_origins: Vec<String> = Vec::new(),
        /// Whether `/docs` and `/openapi.json` are served.
        pub docs: bool = true,
        /// The domain whose subdomains are tenants: with `example.com`, `acme.example.com` is the tenant `acme`.
        pub base_domain: Option<String> = None,
        /// How long a replica may finish what it answers.
        pub drain: Span = Span::seconds(30),
    }
}

words! {
    /// How tokens are signed.
    pub enum JwtAlgorithm {
        /// An RSA key pair.
        Rs256 = "RS256",
    }
}

section! {
    /// Who may call the API.
    pub struct Security {
        /// How tokens are signed.
        pub jwt_algorithm: JwtAlgorithm = JwtAlgorithm::Rs256,
        /// How long a token is valid.
        pub jwt_expiry: Span = Span::seconds(3600),
        /// The most prompt and generated tokens under one token, unless its key says otherwise.
        #[schemars(range(min = 1, max = 1_125_899_906_842_624_u64))]
        pub jwt_token_limit: u64 = 1_000_000,
        /// Read for the sake of older files; RS256 signs with a key pair that `up` makes.
        pub jwt_secret: Option<SecretSource> = None,
        /// Whether callers must show a key; `false` only in development.
        pub api_keys_enabled: bool = true,
        /// The header that holds the key.
        #[schemars(length(min = 1, max = 64))]
        pub api_key_header: String = "X-API-Key".to_owned(),
        /// Requests per key.
        pub rate_limit: Rate = Rate { count: 1000, per_seconds: 3600 },
        /// Generated tokens per key.
        pub token_rate_limit: Option<Rate> = None,
        /// The `iss` of our tokens; left out, the environment's name.
        pub issuer: Option<String> = None,
    }
}

words! {
    /// How much is logged.
    pub enum LogLevel {
        /// Everything that a request does.
        Trace = "TRACE",
        /// For developers.
        Debug = "DEBUG",
        /// What changed.
        Info = "INFO",
        /// What to look at.
        Warning = "WARNING",
        /// What to do something about.
        Error = "ERROR",
    }
}

section! {
    /// What the server tells about itself.
    pub struct ServerMonitoring {
        /// The port of `/metrics`.
        #[schemars(range(min = 1, max = 65535))]
        pub metrics_port: u16 = 9090,
        /// Whether requests are traced across services.
        pub enable_tracing: bool = false,
        /// How much is logged.
        pub log_level: LogLevel = LogLevel::Info,
        /// A log file of one's own; left out, the site's log folder.
        pub log_file: Option<String> = None,
    }
}

section! {
    /// How the server computes.
    pub struct Inference {
        /// Compute threads; 0 takes what the machine and its limits give.
        #[schemars(range(max = 1024))]
        pub threads: u32 = 0,
    }
}
