//! Three sites and a witness in a temporary folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde_json::{Value, json};

pub(crate) const NAMES: [&str; 3] = ["primary", "secondary", "tertiary"];
pub(crate) const LONG: Duration = Duration::from_secs(120);
const EVERY_MS: u64 = 200;
/// A busy machine can stop a process for longer than a second, and such a pause must not move the primary.
pub(crate) const GRACE_MS: u64 = 3000;
const PROGRAM: &str = env!("CARGO_BIN_EXE_textnlp-server");

#[track_caller]
pub(crate) fn until(patience: Duration, mut what: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < patience, "it has not come true");
        std::thread::sleep(Duration::from_millis(30));
    }
}

pub(crate) struct Sites {
    _folder: tempfile::TempDir,
    root: Utf8PathBuf,
    running: BTreeMap<String, Child>,
}

impl Sites {
    pub(crate) fn start() -> Self {
        Self::start_with("automatic: true, failback: true")
    }

    pub(crate) fn start_with(settings: &str) -> Self {
        Self::start_configured(settings, "")
    }

    /// With models and configuration that are copied.
    pub(crate) fn start_copying() -> Self {
        let copies = "copies: { models: ROOT/SITE/models, configuration: ROOT/SITE/config, models_every_ms: 1000, \
                      configuration_every_ms: 1000, compress: true }";
        // A primary that a busy machine keeps silent stays the source of its models.
        Self::configured(&format!("automatic: true, failback: false, {copies}"), "", 5000)
    }

    pub(crate) fn root(&self) -> &camino::Utf8Path {
        &self.root
    }

    /// With settings of each watch and of the witness. `ROOT` and `SITE` stand for what they say.
    pub(crate) fn start_configured(settings: &str, of_witness: &str) -> Self {
        Self::configured(settings, of_witness, GRACE_MS)
    }

    fn configured(settings: &str, of_witness: &str, grace_ms: u64) -> Self {
        let lost_after = grace_ms / EVERY_MS;
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        let socket = |site: &str| format!("unix:{root}/{site}.sock");
        let pem = textnlp_server::auth::jwt::generate_pem;
        for site in NAMES {
            let data = root.join(site).join("data");
            for folder in [&data, &root.join(site).join("models"), &root.join(site).join("config")] {
                std::fs::create_dir_all(folder).unwrap();
            }
            let settings = settings.replace("ROOT", root.as_str()).replace("SITE", site);
            std::fs::write(root.join(site).join("jwt.pem"), pem().unwrap()).unwrap();
            let peers: BTreeMap<_, _> = NAMES.iter().filter(|n| **n != site).map(|n| (*n, socket(n))).collect();
            let watch = format!(
                "watch: {{ site: {site}, folder: {data}/control, listen: \"{}\", peers: {}, witness: \"{}\", database: \"sqlite://{data}/t.db\", \
                 jwt_key_file: {root}/{site}/jwt.pem, every_ms: {EVERY_MS}, lost_after: {lost_after}, home: primary, max_lag_ms: 5000, {settings} }}",
                socket(site),
                json!(peers),
                socket("witness"),
            );
            std::fs::write(root.join(format!("{site}.yaml")), watch).unwrap();
            let server = format!(
                "textnlp: {{ api: {{ listen: \"unix:{root}/{site}-s.sock\" }}, database: {{ url: \"sqlite://{data}/t.db\" }}, \
                 models: {{ serve: [ {{ name: m, path: {root}/m }} ] }}, replication: {{ watch: \"{}\" }} }}",
                socket(site),
            );
            std::fs::write(root.join(format!("{site}-server.yaml")), server).unwrap();
        }
        let witness = format!(
            "witness: {{ folder: {root}/witness, listen: \"{}\", sites: [primary, secondary, tertiary], home: primary, every_ms: {EVERY_MS}, \
             lost_after: {lost_after}, weights: {{ primary: 100, secondary: 50, tertiary: 0 }}, {of_witness} }}",
            socket("witness")
        );
        std::fs::write(root.join("witness.yaml"), witness).unwrap();
        let mut sites = Self { _folder: folder, root, running: BTreeMap::new() };
        for name in NAMES.iter().chain(&["witness"]) {
            sites.run(name);
        }
        sites
    }

    pub(crate) fn run(&mut self, name: &str) {
        let program = if name == "witness" { "witness" } else { "agent" };
        let log =
            std::fs::File::options().create(true).append(true).open(self.root.join(format!("{name}.log"))).unwrap();
        let child = Command::new(PROGRAM)
            .args([program, "--config"])
            .arg(self.root.join(format!("{name}.yaml")))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running.insert(name.to_owned(), child);
        until(LONG, || self.try_get(name, "/ready").is_some_and(|(status, _)| status == 200));
    }

    pub(crate) fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn lose_disk(&self, site: &str) {
        std::fs::remove_dir_all(self.root.join(site).join("data")).unwrap();
        std::fs::create_dir_all(self.root.join(site).join("data")).unwrap();
    }

    pub(crate) fn signal(&self, name: &str, signal: &str) {
        let pid = self.running[name].id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn until_all_are_members(&self) {
        until(LONG, || {
            let status = self.status("primary");
            status["writable"] == true && status["members"].as_array().is_some_and(|members| members.len() == 3)
        });
    }

    pub(crate) fn write(&self, at: &str, writes: Value, timeout_ms: u64) -> (u16, Value) {
        self.post(at, "/v1/write", &json!({ "writes": writes, "timeout_ms": timeout_ms }).to_string())
    }

    pub(crate) fn post(&self, at: &str, path: &str, body: &str) -> (u16, Value) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, body) = self.exchange(at, &head).unwrap();
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    fn try_get(&self, at: &str, path: &str) -> Option<(u16, String)> {
        self.exchange(at, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }

    fn exchange(&self, at: &str, request: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(self.root.join(format!("{at}.sock"))).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            unchunked(body)
        } else {
            body.to_owned()
        };
        Some((status, body))
    }

    pub(crate) fn status(&self, site: &str) -> Value {
        self.try_get(site, "/v1/status")
            .map_or(Value::Null, |(_, body)| serde_json::from_str(&body).unwrap_or_default())
    }

    /// The site that took the role of the home site. Those earlier in the list ask earlier, but that is a preference: on a
    /// busy machine a later one may be first.
    pub(crate) fn next_primary(&self) -> &'static str {
        let mut next = None;
        until(LONG, || {
            next = NAMES.into_iter().skip(1).find(|site| self.status(site)["role"] == "primary");
            next.is_some()
        });
        next.unwrap()
    }

    pub(crate) fn witness_status(&self) -> Value {
        self.status("witness")
    }

    pub(crate) fn metrics(&self, site: &str) -> String {
        self.try_get(site, "/metrics").unwrap().1
    }

    pub(crate) fn table(&self, site: &str, prefix: &str) -> serde_json::Map<String, Value> {
        let (_, body) = self.try_get(site, &format!("/v1/table?prefix={prefix}")).unwrap();
        serde_json::from_str::<Value>(&body).unwrap()["entries"].as_object().unwrap().clone()
    }

    pub(crate) fn keys_role(&self, site: &str, command: &Value) -> (Option<i32>, Value) {
        self.role(site, "keys", command)
    }

    /// The exit status and the answer of a command of `admin` beside a site's database.
    pub(crate) fn role(&self, site: &str, name: &str, command: &Value) -> (Option<i32>, Value) {
        let mut child = Command::new(PROGRAM)
            .args(["admin", name, "--config"])
            .arg(self.root.join(format!("{site}-server.yaml")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(command.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    pub(crate) fn keys_in_database(&self, site: &str) -> BTreeSet<String> {
        let (_, keys) = self.keys_role(site, &json!({ "do": "list" }));
        let keys = keys["keys"].as_array().cloned().unwrap_or_default();
        keys.iter().map(|key| key["public_id"].as_str().unwrap().to_owned()).collect()
    }

    /// As a replica does.
    pub(crate) fn use_up(&self, site: &str, requests: &[&str]) {
        use textnlp_store::Usage;
        let rows: Vec<Usage> = requests
            .iter()
            .map(|request| Usage {
                id: uuid::Uuid::now_v7(),
                request_id: (*request).to_owned(),
                user: "k".to_owned(),
                tenant: "default".to_owned(),
                endpoint: "/v1/generate".to_owned(),
                model: None,
                prompt_tokens: 1,
                generated_tokens: 2,
                charge: None,
                ms: 3,
                status: 200,
                at_ms: 1_790_000_000_000,
            })
            .collect();
        self.with_store(site, async |store| store.append_usage(&rows).await.unwrap());
    }

    /// Rates and budgets that are in use.
    pub(crate) fn counters(&self, site: &str) -> Vec<textnlp_store::Counter> {
        self.with_store(site, async |store| store.counters(100, textnlp_store::now_ms()).await.unwrap())
    }

    fn with_store<T>(&self, site: &str, work: impl AsyncFnOnce(&textnlp_store::Store) -> T) -> T {
        let file = self.root.join(site).join("data/t.db");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let at = textnlp_server::config::DatabaseAt::File(file);
            let database = textnlp_server::config::Database { at, pool_size: 1, max_overflow: 0 };
            let store = textnlp_store::Store::open(&database).await.unwrap();
            let done = work(&store).await;
            store.close().await;
            done
        })
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for name in NAMES.iter().chain(&["witness"]) {
                let log = std::fs::read_to_string(self.root.join(format!("{name}.log"))).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("== {name}\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    whole
}
