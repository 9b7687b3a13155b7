//! server.yaml: what is wrong with it is said all at once, with place and nearest right word.

use textnlp_server::config::{Address, Config, Device, Phase, Price, TokenPrices};

const GOOD: &str = "textnlp:
  environment: staging
  phase: staging
  region: local
  site: here
  api: { listen: \"unix:/tmp/s.sock\", metrics_listen: \"127.0.0.1:0\", workers: 4, timeout: 300, max_request_size: 10MB, queue: 256,
         max_tokens: 4096, cors_origins: [], docs: true, drain_seconds: 30, require_https: false }
  models: { default: textnlp-tiny, cache_dir: /models, max_cache_size: 50GB, preload: [textnlp-tiny],
            serve: [ { name: textnlp-tiny, path: textnlp-tiny, quantize: q8_0, context: 1024 } ], threads: 0 }
  database: { url: \"sqlite:///var/lib/textnlp.db\", pool_size: 20, max_overflow: 40 }
  security: { jwt_algorithm: RS256, jwt_expiry: 3600, jwt_private_key_file: /k.pem, api_keys_enabled: true, api_key_header: X-API-Key,
              rate_limit: 1000/hour, token_rate_limit: null, issuer: null }
  usage: { retention_days: 31 }
  audit: { retention_days: 30 }
  analytics: { retention_days: 28 }
  prices: { currency: EUR, prompt: 0.5, answer: \"1.5\", models: [ { answer: 2, name: textnlp-tiny } ] }
  monitoring: { metrics_port: 9090, enable_tracing: false, log_level: INFO, log_file: null }
";

fn problems(text: &str) -> Vec<String> {
    Config::parse(text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

/// Changes one thing of the good file and expects one problem that says all of these.
#[track_caller]
fn check(from: &str, to: &str, says: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    let found = problems(&GOOD.replacen(from, to, 1));
    assert_eq!(found.len(), 1, "{to}: {found:#?}");
    for word in says {
        assert!(found[0].contains(word), "{to}: {} does not say {word}", found[0]);
    }
}

#[test]
fn complete_server_configuration_is_parsed() {
    let config = Config::parse(GOOD).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(config.api.listen, Address::Unix("/tmp/s.sock".into()));
    assert_eq!(config.api.max_request_size, 10_000_000);
    assert_eq!(config.models.serve[0].path, "/models/textnlp-tiny");
    assert_eq!(config.database.at.to_string(), "/var/lib/textnlp.db");
    assert_eq!(config.security.rate_limit.unwrap().count, 1000);
    assert_eq!((config.phase, config.api.docs), (Phase::Staging, true));
    assert!(config.security.token_rate_limit.is_none());
    assert_eq!((config.usage.retention_days, config.audit.retention_days), (31, 30));
    assert_eq!(config.analytics.unwrap().retention_days, 28);
    let prices = config.prices.unwrap();
    let usual = TokenPrices { prompt: Price(500_000_000), answer: Price(1_500_000_000) };
    assert_eq!((prices.currency.as_str(), prices.usual), ("EUR", usual));
    assert_eq!(prices.models["textnlp-tiny"], TokenPrices { answer: Price(2_000_000_000), ..usual });
}

#[test]
fn documented_defaults_apply_to_omitted_settings() {
    let text = "textnlp: { models: { serve: [ { name: m, path: /m } ] }, database: { url: \"sqlite:t.db\" } }";
    let config = Config::parse(text).unwrap();
    assert_eq!(config.api.listen, Address::Tcp("0.0.0.0:8080".into()));
    assert_eq!(config.api.metrics_listen, Some(Address::Tcp("0.0.0.0:9090".into())));
    assert_eq!((config.api.workers, config.api.timeout.as_secs(), config.api.max_request_size), (4, 300, 10_000_000));
    assert_eq!((config.models.default.as_str(), config.models.preload.len()), ("m", 1));
    assert_eq!((config.database.pool_size, config.database.max_overflow), (20, 40));
    assert_eq!((config.usage.retention_days, config.audit.retention_days), (400, 400));
    assert!(config.analytics.is_none());
    let analytics = Config::parse(&text.replace("models:", "analytics: {}, models:")).unwrap().analytics;
    assert_eq!(analytics.unwrap().retention_days, 90);
    assert_eq!(config.prices, None);
    assert_eq!((config.models.prefix_cache, config.models.draft_tokens), (true, 8));
    assert_eq!(config.models.max_batch_size, None);
    let lower = Config::parse(&text.replace("serve:", "max_batch_size: 4, serve:")).unwrap();
    assert_eq!(lower.models.max_batch_size, Some(4));
    assert_eq!(config.models.device, Device::Auto);
    for (written, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("\"cuda:3\"", Device::Cuda(3))] {
        let text = text.replace("serve:", &format!("device: {written}, serve:"));
        assert_eq!(Config::parse(&text).unwrap().models.device, device);
    }
    assert_eq!((config.security.jwt_expiry.as_secs(), config.security.api_key_header.as_str()), (3600, "X-API-Key"));
}

#[test]
fn every_configuration_error_has_its_location_and_a_suggestion() {
    let same = "health_listen: \"unix:/tmp/s.sock\"";
    check("metrics_listen: \"127.0.0.1:0\"", same, &["textnlp.api.health_listen", "the same address as `listen`"]);
    check("workers: 4", "worker: 4", &["line 6", "textnlp.api.worker", "did you mean `workers`"]);
    check("workers: 4", "workers: four", &["textnlp.api.workers", "must be a whole number, not a text"]);
    check("workers: 4", "workers: -1", &["textnlp.api.workers", "from 1 to 256"]);
    check("workers: 4", "workers: 2.5", &["textnlp.api.workers", "from 1 to 256"]);
    check("timeout: 300", "timeout: 5 fortnights", &["textnlp.api.timeout", "`30s`"]);
    check("timeout: 300", "timeout: .nan", &["textnlp.api.timeout"]);
    check("10MB", "10 parsecs", &["line 6", "max_request_size", "`10MB`"]);
    check("10MB", "3", &["from 1KiB to 1GiB"]);
    check("1000/hour", "1000", &["security.rate_limit", "`1000/hour`"]);
    check("1000/hour", "0/hour", &["security.rate_limit"]);
    check("RS256", "HS256", &["jwt_algorithm", "RS256"]);
    check("log_level: INFO", "log_level: INFOO", &["log_level", "did you mean `INFO`"]);
    check("phase: staging", "phase: stagging", &["line 3", "did you mean `staging`"]);
    check("threads: 0", "device: gpu", &["textnlp.models.device", "not one of auto, cpu, cuda, cuda:N"]);
    check("threads: 0", "device: \"cuda:x\"", &["textnlp.models.device", "not one of auto, cpu, cuda, cuda:N"]);
    for size in [0, 257] {
        let written = format!("max_batch_size: {size}");
        check("threads: 0", &written, &["textnlp.models.max_batch_size", "from 1 to 256"]);
    }
    check("preload: [textnlp-tiny]", "preload: [textnlp-tinny]", &["models.preload", "did you mean `textnlp-tiny`"]);
    check("default: textnlp-tiny", "default: gpt2", &["models.default", "`gpt2`"]);
    check("default: textnlp-tiny", "default: textnlp-tiny, embeddings: bge", &["models.embeddings", "`bge`"]);
    check("q8_0", "q9", &["serve[0].quantize", "f32, f16, q8_0, q4_0"]);
    check("unix:/tmp/s.sock", "nowhere", &["api.listen", "unix:/path"]);
    check("docs: true", "docs: yes please", &["api.docs", "`true` or `false`"]);
    check("cors_origins: []", "cors_origins: [\"example.com\"]", &["cors_origins", "https://app.example.com"]);
    check("api_keys_enabled: true", "api_keys_enabled: false", &["api_keys_enabled", "development"]);
    check("retention_days: 31", "retention_days: 36501", &["usage.retention_days", "from 0 to 36500"]);
    check("retention_days: 30", "retention_days: 29", &["audit.retention_days", "is 29; it must be 0 or at least 30"]);
    check(
        "retention_days: 28",
        "retention_days: 27",
        &["analytics.retention_days", "is 27; it must be 0 or at least 28"],
    );
    for (traces, says) in [
        ("endpoint: collector", ["traces.endpoint", "is not an `https:` or `http:` address"]),
        ("endpoint: 'https://a:b@c.example.com/'", ["traces.endpoint", "is not an `https:` or `http:` address"]),
        ("ratio: 1", ["traces.endpoint", "is missing"]),
        ("endpoint: https://c/, ratio: 1.5", ["traces.ratio", "is not a number from 0 to 1: `1.5`"]),
        ("endpoint: https://c/, header: authorization", ["traces.header", "needs `secret_file`"]),
        (
            "endpoint: https://c/, header: 'a b', secret_file: /s",
            ["traces.header", "`a b` is not the name of a header"],
        ),
        (
            "endpoint: http://c/, header: a, secret_file: /s",
            ["traces.endpoint", "the secret would be sent without TLS"],
        ),
    ] {
        let enabled = format!("enable_tracing: true, traces: {{ {traces} }}");
        check("enable_tracing: false", &enabled, &says);
    }
    let disabled = "enable_tracing: false, traces: { endpoint: https://c/ }";
    check("enable_tracing: false", disabled, &["monitoring.traces", "needs `enable_tracing: true`"]);
    for (webhook, says) in [
        ("url: http://hooks.example.com/, secret_file: /s", ["batch.webhooks[0].url", "is not an `https:` address"]),
        ("url: 'https://a:b@hooks.example.com/', secret_file: /s", ["batch.webhooks[0].url", "without a password"]),
        ("url: https://hooks.example.com/", ["batch.webhooks[0].secret_file", "is missing"]),
        ("url: https://a/, secret_file: /s, tenant: A", ["batch.webhooks[0].tenant", "cannot be `A`"]),
        ("url: https://a/, secret_file: /s }, { url: https://a, secret_file: /t", ["webhooks[1].url", "is duplicated"]),
    ] {
        let batch = format!("  batch: {{ webhooks: [{{ {webhook} }}] }}\n  monitoring:");
        check("  monitoring:", &batch, &says);
    }
    let many = ["{ url: 'https://a/N', secret_file: /s }"; 17].join(", ");
    let many = (0..17).fold(many, |many, n| many.replacen("/N", &format!("/{n}"), 1));
    let batch = format!("  batch: {{ webhooks: [{many}] }}\n  monitoring:");
    check("  monitoring:", &batch, &["batch.webhooks", "at most 16"]);
    for (pii, says) in [
        ("kinds: [email]", ["pii.action", "is missing"]),
        ("action: hide", ["pii.action", "cannot be `hide`"]),
        ("action: mask, kinds: [mail]", ["pii.kinds", "did you mean `email`?"]),
        ("action: mask, kinds: [ip, ip]", ["pii.kinds", "has `ip` twice"]),
        ("action: mask, kinds: []", ["pii.kinds", "is empty"]),
    ] {
        check("  monitoring:", &format!("  pii: {{ {pii} }}\n  monitoring:"), &says);
    }
    check("currency: EUR, ", "", &["textnlp.prices.currency", "is missing"]);
    check("currency: EUR", "currency: euro", &["textnlp.prices.currency", "cannot be `euro`", "capital letters"]);
    check("prompt: 0.5", "prompt: .nan", &["textnlp.prices.prompt", "is not a price", "from 0 to 1000000"]);
    check("prompt: 0.5", "prompt: [1]", &["textnlp.prices.prompt", "must be a text, not a list"]);
    check("answer: 2,", "answer: -2,", &["textnlp.prices.models[0].answer", "is not a price: `-2`"]);
    check(
        "answer: 2, name: textnlp-tiny",
        "name: tinny",
        &["prices.models[0].name", "`tinny`, which is not in `serve`"],
    );
    check("issuer: null", "issuer: \"${TEXTNLP_TEST_UNSET}\"", &["security.issuer", "`TEXTNLP_TEST_UNSET`"]);
    check(
        "  monitoring:",
        "  redis: { url: \"redis://x\" }\n  monitoring:",
        &["textnlp.redis", "not supported in this version"],
    );
    for (cache, wanted) in [
        ("{ kind: redis }", ["textnlp.cache.url", "is missing"]),
        ("{ kind: redis, url: \"https://h\" }", ["textnlp.cache.url", "not the address of a Redis"]),
        ("{ kind: redis, url: \"redis://:hunter2@localhost\" }", ["textnlp.cache.url", "has a password"]),
        ("{ kind: redis, url: \"redis://h\", url_file: /f }", ["textnlp.cache.url_file", "cannot be combined"]),
        ("{ kind: memory, url_file: /f }", ["textnlp.cache.url_file", "has no effect"]),
        ("{ kind: memory, authority_file: /ca.pem }", ["textnlp.cache.authority_file", "has no effect"]),
        ("{ kind: memory, ca_file: /ca.pem }", ["textnlp.cache.ca_file", "has no effect"]),
        (
            "{ kind: redis, url: \"rediss://h\", authority_file: /a.pem, ca_file: /b.pem }",
            ["textnlp.cache.ca_file", "cannot be combined with `authority_file`"],
        ),
        ("{ kind: memory, size: 1kB }", ["textnlp.cache.size", "from 1MiB to 1TiB"]),
        ("{ kind: redis, url: \"redis://h\", ttl: 400d }", ["textnlp.cache.ttl", "from 1s to 365d"]),
        ("{ kind: memory, max_connections: 0 }", ["textnlp.cache.max_connections", "from 1 to 1000"]),
    ] {
        check("  monitoring:", &format!("  cache: {cache}\n  monitoring:"), &wanted);
    }
    check("sqlite:///var/lib/textnlp.db", "postgresql://u@a,b/d", &["database.url", "several hosts"]);
    check("pool_size: 20", "password_file: /p", &["database.password_file", "SQLite is a file"]);
    check("pool_size: 20", "url_file: /p", &["database.url_file", "cannot be combined with `url`"]);
    check("sqlite:///var/lib/textnlp.db", "redis://h", &["database.url", "Redis"]);
    check("sqlite:///var/lib/textnlp.db", "mysql://h", &["database.url", "not a database URL"]);
    check("sqlite:///var/lib/textnlp.db", "sqlite::memory:", &["has no file"]);
}

#[test]
fn invalid_and_duplicate_model_names_are_refused() {
    let odd = problems(&GOOD.replace("name: textnlp-tiny, ", "name: \"a b\", "));
    assert!(odd.iter().any(|p| p.contains("serve[0].name") && p.contains("not a valid model name")), "{odd:#?}");
    let twice = problems(&GOOD.replace("context: 1024 }", "context: 1024 }, { name: textnlp-tiny, path: other }"));
    assert!(twice.len() == 1 && twice[0].contains("is duplicated"), "{twice:#?}");
}

#[test]
fn all_configuration_errors_are_reported_in_line_order() {
    let text =
        GOOD.replace("workers: 4", "worker: 4").replace("1000/hour", "often").replace("phase: staging", "phase: no");
    let found = problems(&text);
    assert_eq!(found.len(), 3, "{found:#?}");
    for (problem, word) in found.iter().zip(["phase", "worker", "rate_limit"]) {
        assert!(problem.contains(word), "{found:#?}");
    }
}

#[test]
fn invalid_yaml_duplicate_keys_and_empty_files_are_refused() {
    assert!(problems("textnlp: { a: [ }")[0].contains("line 1"));
    let twice = problems("textnlp: { region: a }\ntextnlp: { region: b }");
    assert!(twice[0].contains("duplicate") && twice[0].contains("textnlp"), "{twice:?}");
    assert!(problems(&GOOD.replace("site: here", "region: there"))[0].contains("region"));
    for text in ["", "null", "[]", "just words", "textnlp: 5"] {
        assert!(!problems(text).is_empty(), "{text}");
    }
    assert!(problems("{}").iter().any(|p| p.contains("`textnlp` is missing")));
}

#[test]
fn variables_are_substituted_from_the_environment() {
    // PATH is set wherever a test runs; what is in it is not our business.
    let config = Config::parse(&GOOD.replace("region: local", "region: \"<${PATH}>\"")).unwrap();
    assert_eq!(config.region, format!("<{}>", std::env::var("PATH").unwrap()));
}

#[test]
fn production_phases_need_a_persistent_jwt_key() {
    let text = GOOD.replace("phase: staging", "phase: pilot").replace("jwt_private_key_file: /k.pem, ", "");
    assert!(problems(&text)[0].contains("jwt_private_key_file"));
}

#[test]
fn models_of_tenants_are_named_after_them_and_need_keys() {
    let text = |serve: &str, more: &str| {
        format!("textnlp:\n  models: {{ serve: [ {serve} ] }}\n  database: {{ url: \"sqlite:t.db\" }}\n{more}")
    };
    const SHARED: &str = "{ name: m, path: /m }";
    const OWN: &str = "{ name: acme/own, tenant: acme, path: /own }";
    let config = Config::parse(&text(&format!("{OWN}, {SHARED}"), "")).unwrap();
    assert_eq!((config.models.default.as_str(), &config.models.preload), ("m", &vec!["m".to_owned()]));
    assert_eq!(config.models.serve[0].tenant.as_deref(), Some("acme"));
    let without_keys = "  security: { api_keys_enabled: false }\n";
    let new_model = "  features: [ { name: new_model, model: acme/own } ]\n";
    for (own, more, says) in [
        (OWN.replace("tenant: acme", "tenant: Acme"), "", "cannot be `Acme`"),
        (OWN.replace("name: acme/own", "name: own"), "", "does not begin with `acme/`"),
        (OWN.replace("name: acme/own", "name: acme2/own"), "", "does not begin with `acme/`"),
        (OWN.replace("acme", "default"), "", "is the tenant of all keys that name none"),
        (format!("{OWN}, {{ name: acme/other, path: /o }}"), "", "has `acme/other` without a tenant"),
        (OWN.to_owned(), without_keys, "needs `security.api_keys_enabled: true`"),
        (OWN.to_owned(), new_model, "names `acme/own`"),
    ] {
        let found = problems(&text(&format!("{SHARED}, {own}"), more));
        assert!(found.len() == 1 && found[0].contains(says), "{says}: {found:#?}");
    }
    let default = text(&format!("{SHARED}, {OWN}"), "").replace("serve:", "default: acme/own, serve:");
    let found = problems(&default);
    assert!(found.len() == 1 && found[0].contains("which belongs to one tenant"), "{found:#?}");
    let found = problems(&text(OWN, ""));
    assert!(found.len() == 1 && found[0].contains("has only models of tenants"), "{found:#?}");
}
