//! A whole server in this process, a tiny random model for it, and a client that sends exactly what it is told to.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod client;
pub(crate) mod model;

use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use textnlp_server::config::{Address, Config, Renderer};
use textnlp_server::{Server, keys};

pub(crate) use client::{Client, Reply};
pub(crate) use model::{Shape, write_model, write_script, write_template};

/// A server under test, its folder, and a key that may do everything.
pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) server: Option<Server>,
    pub(crate) client: Client,
    pub(crate) metrics: Client,
    pub(crate) key: String,
}

/// What differs from the usual test server.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// Lines under `api`.
    pub(crate) api: &'a str,
    /// Lines under `security`.
    pub(crate) security: &'a str,
    /// Lines under `models`, instead of the tiny model.
    pub(crate) models: Option<&'a str>,
    pub(crate) phase: Option<&'a str>,
    /// The address of a PostgreSQL, instead of a file.
    pub(crate) database: Option<&'a str>,
    /// What tokens cost, as a mapping on one line.
    pub(crate) prices: Option<&'a str>,
    /// Whether usage is analyzed.
    pub(crate) analytics: bool,
    /// The bounds of batches, as a mapping on one line.
    pub(crate) batch: Option<&'a str>,
    /// The section `cache`, as a mapping on one line.
    pub(crate) cache: Option<&'a str>,
    /// The section `monitoring`, as a mapping on one line.
    pub(crate) monitoring: Option<&'a str>,
    /// The search for personal data, as a mapping on one line.
    pub(crate) pii: Option<&'a str>,
    pub(crate) unix: bool,
}

pub(crate) fn path(folder: &tempfile::TempDir, name: &str) -> Utf8PathBuf {
    Utf8PathBuf::from_path_buf(folder.path().join(name)).unwrap()
}

/// The configuration of a test server whose models are in the folder: `tiny` (chats), `plain` (no template), `slow`, and
/// the encoders `encoder` (its vectors may be shortened) and `rigid`.
pub(crate) fn config(folder: &tempfile::TempDir, setup: &Setup<'_>) -> Config {
    let listen = if setup.unix { format!("unix:{}", path(folder, "s.sock")) } else { "127.0.0.1:0".into() };
    let models = setup.models.map_or_else(
        || "default: tiny\n    preload: [tiny]\n    serve: [ { name: tiny, path: tiny }, { name: plain, path: plain, quantize: q8_0 }, { name: slow, path: slow }, { name: encoder, path: encoder, matryoshka: true }, { name: rigid, path: rigid } ]".to_owned(),
        str::to_owned,
    );
    let text = format!(
        "textnlp:\n  environment: test\n  phase: {}\n  region: nowhere\n  api:\n    listen: \"{listen}\"\n    metrics_listen: \"127.0.0.1:0\"\n    workers: 2\n{}\n  \
         models:\n    cache_dir: {}\n    threads: 1\n    {models}\n  database: {{ url: \"{}\" }}\n  security:\n    issuer: test\n{}\n  monitoring: {}\n{}{}{}{}{}",
        setup.phase.unwrap_or("staging"),
        indent(setup.api),
        path(folder, ""),
        setup.database.map_or_else(|| format!("sqlite://{}", path(folder, "textnlp.db")), str::to_owned),
        indent(setup.security),
        setup.monitoring.unwrap_or("{ log_level: WARN }"),
        setup.prices.map_or_else(String::new, |prices| format!("  prices: {prices}\n")),
        if setup.analytics { "  analytics: {}\n" } else { "" },
        setup.batch.map_or_else(String::new, |batch| format!("  batch: {batch}\n")),
        setup.cache.map_or_else(String::new, |cache| format!("  cache: {cache}\n")),
        setup.pii.map_or_else(String::new, |pii| format!("  pii: {pii}\n")),
    );
    let config = Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"));
    // The program that runs is a test.
    let renderer = Renderer { program: env!("CARGO_BIN_EXE_textnlp-server").into(), ..Renderer::default() };
    Config { renderer, ..config }
}

fn indent(lines: &str) -> String {
    lines.lines().map(|line| format!("    {}\n", line.trim())).collect()
}

pub(crate) async fn start(setup: Setup<'_>) -> Site {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape { chat: true, ..Shape::default() });
    write_model(&path(&folder, "plain"), Shape { seed: 2, ..Shape::default() });
    for (name, golden) in [("encoder", "bert"), ("rigid", "roberta")] {
        let of_engine = concat!(env!("CARGO_MANIFEST_DIR"), "/inference/tests/golden");
        std::os::unix::fs::symlink(format!("{of_engine}/{golden}"), path(&folder, name)).unwrap();
    }
    write_model(&path(&folder, "slow"), Shape { seed: 3, width: 256, layers: 4, context: 8192, ..Shape::default() });
    let config = config(&folder, &setup);
    start_in(folder, config).await
}

pub(crate) async fn start_in(folder: tempfile::TempDir, config: Config) -> Site {
    let key = make_key(&config, json!({ "do": "create", "name": "test" })).await;
    let server = Server::start(config.clone()).await.unwrap();
    let client = Client::new(server.address());
    let metrics = Client::new(server.metrics_address().unwrap());
    Site { folder, config, server: Some(server), client, metrics, key }
}

/// As `up` does: neither commands nor servers create a database.
pub(crate) async fn create_database(config: &Config) {
    let store = textnlp_store::Store::open(&config.database).await.unwrap();
    store.prepare().await.unwrap();
    store.close().await;
}

pub(crate) async fn make_key(config: &Config, command: Value) -> String {
    create_database(config).await;
    let made = keys(config, &command.to_string()).await.unwrap();
    made["key"].as_str().unwrap().to_owned()
}

impl Site {
    /// Sends JSON with the key.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.post_as(&self.key, path, body).await
    }

    pub(crate) async fn post_as(&self, key: &str, path: &str, body: Value) -> Reply {
        self.client
            .send("POST", path, &[("authorization", &format!("Bearer {key}"))], body.to_string().as_bytes())
            .await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.client.send("GET", path, &[("authorization", &format!("Bearer {}", self.key))], b"").await
    }

    /// Sends JSON with a key; `Null` is no body.
    pub(crate) async fn send_as(&self, key: &str, method: &str, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.client.send(method, path, &[("authorization", &format!("Bearer {key}"))], body.as_bytes()).await
    }

    /// Waits until the server is ready.
    pub(crate) async fn ready(self) -> Self {
        until("the server is ready", async || self.client.send("GET", "/ready", &[], b"").await.status == 200).await;
        self
    }

    pub(crate) async fn drain(&mut self) -> bool {
        self.server.take().unwrap().drain().await
    }

    /// The sum of a metric's series whose text begins so.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.send("GET", "/metrics", &[], b"").await.text();
        text.lines()
            .filter(|line| line.starts_with(series))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// Polls until something is so.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so().await {
        assert!(Instant::now() < deadline, "waited a minute, and it is not so that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The routes of the public listener with their methods, as the source has them: the router itself cannot be listed.
pub(crate) fn routes() -> Vec<(String, String)> {
    let source = include_str!("../../../src/endpoints/mod.rs");
    let lines = source.lines().filter_map(|line| line.trim().strip_prefix(".route(\""));
    lines
        .map(|line| {
            let (path, handler) = line.split_once("\", ").unwrap();
            (path.replace("{*id}", "{id}"), handler.split('(').next().unwrap().to_owned())
        })
        .collect()
}

pub(crate) fn address(address: &Address) -> String {
    address.to_string()
}
