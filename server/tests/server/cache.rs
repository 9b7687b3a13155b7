//! The cache of vectors: which texts are not computed again, and that nothing else changes. Redis is Debian's.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::ports::Ports;
use super::support::{Reply, Setup, Site, make_key, path, start, until};

const PASSWORD: &str = "hunter2-of-the-cache";
const MEMORY: &str = "textnlp_cache_hits_total{level=\"memory\"}";
const REDIS: &str = "textnlp_cache_hits_total{level=\"redis\"}";
const MISSES: &str = "textnlp_cache_misses_total";
const ERRORS: &str = "textnlp_cache_errors_total";
const DAMAGED: &str = "textnlp_cache_errors_total{kind=\"damaged\"}";
const REFUSED: &str = "textnlp_cache_errors_total{kind=\"refused\"}";
const CERTIFICATE: &str = "textnlp_cache_errors_total{kind=\"certificate\"}";

/// A Redis with a password that stops with the test.
struct RedisServer {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RedisServer {
    /// Starts one on a port that the caller holds, and waits until it answers. `None`: it is not installed.
    async fn start(port: u16) -> Option<Self> {
        Self::start_with(port, &[]).await
    }

    /// The same with further arguments.
    async fn start_with(port: u16, arguments: &[&str]) -> Option<Self> {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&paths).any(|path| path.join("redis-server").is_file()) {
            assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "redis-server is not installed");
            eprintln!("LEFT OUT: redis-server is not installed (Debian: apt-get install redis-server)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
        command.args(["--daemonize", "no", "--requirepass", PASSWORD, "--dir"]).arg(folder.path()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self { child: command.spawn().unwrap(), folder, port };
        until("Redis answers", async || server.asks("PING").is_some_and(|answer| answer.contains("PONG"))).await;
        Some(server)
    }

    /// The address for a server, in a file.
    fn url_file(&self, password: &str) -> String {
        let file = path(&self.folder, &format!("url-{password}"));
        std::fs::write(&file, format!("redis://:{password}@127.0.0.1:{}/0\n", self.port)).unwrap();
        file.into_string()
    }

    /// The answer to an inline command, whole as it was sent; `None` if there is none.
    fn asks(&self, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(format!("AUTH {PASSWORD}\r\n{command}\r\nQUIT\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The names of its keys.
    fn keys(&self) -> Vec<String> {
        let answer = self.asks("KEYS *").unwrap_or_default();
        answer.lines().filter(|line| line.starts_with("textnlp:")).map(str::to_owned).collect()
    }
}

async fn send(site: &Site, headers: &[(&str, &str)], input: &Value) -> Reply {
    let key = format!("Bearer {}", site.key);
    let mut all = vec![("authorization", key.as_str())];
    all.extend_from_slice(headers);
    let body = json!({ "model": "encoder", "input": input }).to_string();
    let reply = site.client.send("POST", "/v1/embeddings", &all, body.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

async fn embed(site: &Site, input: Value) -> Value {
    send(site, &[], &input).await.json()
}

async fn cached(cache: &str) -> Site {
    start(Setup { cache: Some(cache), ..Setup::default() }).await.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_in_memory_are_the_same_and_are_charged_as_computed_ones() {
    let plain = start(Setup::default()).await.ready().await;
    let site = cached("{ kind: memory, size: 1MiB }").await;
    let texts = json!(["the river", "the harbour", "the river"]);
    let wanted = embed(&plain, texts.clone()).await;
    let first = embed(&site, texts.clone()).await;
    assert_eq!(first, wanted);
    assert_eq!((site.metric(MEMORY).await, site.metric(MISSES).await), (0.0, 2.0));
    let tokens = site.metric("textnlp_prompt_tokens_total").await;
    assert_eq!(embed(&site, texts.clone()).await, wanted);
    assert_eq!((site.metric(MEMORY).await, site.metric(MISSES).await), (2.0, 2.0));
    assert_eq!(site.metric("textnlp_prompt_tokens_total").await, 2.0 * tokens);
    assert_eq!(site.metric("textnlp_embeddings_total").await, 6.0);
    // Nothing was measured of the model.
    assert_eq!(site.metric("textnlp_inference_duration_seconds_count").await, 1.0);
    // Of a text that is known and one that is not, in their order.
    let mixed = embed(&site, json!(["the mountain", "the harbour"])).await;
    assert_eq!(mixed["data"][1]["embedding"], wanted["data"][1]["embedding"]);
    assert_ne!(mixed["data"][0]["embedding"], wanted["data"][0]["embedding"]);
    assert_eq!((site.metric(MEMORY).await, site.metric(MISSES).await), (3.0, 3.0));
    assert_eq!(site.metric("textnlp_cache_entries").await, 3.0);
    // Shortened vectors are of the same entry.
    let body = json!({ "model": "encoder", "input": "the harbour", "dimensions": 8 });
    let short = site.post("/v1/embeddings", body.clone()).await.json();
    assert_eq!(short["data"], plain.post("/v1/embeddings", body).await.json()["data"]);
    assert_eq!(site.metric(MEMORY).await, 4.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_entry_is_shared_with_another_tenant_or_model_or_used_where_a_request_forbids_it() {
    let site = cached("{ kind: memory }").await;
    let text = json!(["the river"]);
    let wanted = embed(&site, text.clone()).await;
    for directive in ["no-store", "max-age=0, No-Cache"] {
        let computed = send(&site, &[("cache-control", directive)], &json!(["the river", "the sea"])).await.json();
        assert_eq!(computed["data"][0], wanted["data"][0]);
        assert_eq!((site.metric(MEMORY).await, site.metric(MISSES).await), (0.0, 1.0), "{directive}");
        assert_eq!(site.metric("textnlp_cache_entries").await, 1.0, "{directive}");
    }
    let theirs = make_key(&site.config, json!({ "do": "create", "name": "theirs", "tenant": "acme" })).await;
    let body = json!({ "model": "encoder", "input": text });
    let reply = site.post_as(&theirs, "/v1/embeddings", body).await;
    assert_eq!((reply.status, &reply.json()["data"]), (200, &wanted["data"]));
    assert_eq!((site.metric(MEMORY).await, site.metric(MISSES).await), (0.0, 2.0));
    let reply = site.post("/v1/embeddings", json!({ "model": "rigid", "input": text })).await;
    assert_ne!((reply.status, &reply.json()["data"]), (200, &wanted["data"]));
    assert_eq!((site.metric(MEMORY).await, site.metric(MISSES).await), (0.0, 3.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_vectors_by_redis_and_keep_those_that_they_found() {
    let ports = Ports::ask(1);
    let Some(redis) = RedisServer::start(ports.numbers()[0]).await else { return };
    let settings =
        format!("{{ kind: redis, url_file: \"{}\", ttl: 1h, max_connections: 2 }}", redis.url_file(PASSWORD));
    let texts = json!(["the river", "the harbour"]);
    let first = cached(&settings).await;
    let wanted = embed(&first, texts.clone()).await;
    assert_eq!((first.metric(REDIS).await, first.metric(MISSES).await), (0.0, 2.0));
    until("Redis has the vectors", async || redis.keys().len() == 2).await;
    let ttl = redis.asks(&format!("PTTL {}", redis.keys()[0])).unwrap();
    let ttl: i64 = ttl.lines().find_map(|line| line.strip_prefix(':')?.parse().ok()).unwrap();
    assert!((1..=3_600_000).contains(&ttl), "{ttl}");

    let second = cached(&settings).await;
    assert_eq!(embed(&second, texts.clone()).await, wanted);
    assert_eq!((second.metric(MEMORY).await, second.metric(REDIS).await), (0.0, 2.0));
    assert_eq!(embed(&second, texts.clone()).await, wanted);
    assert_eq!((second.metric(MEMORY).await, second.metric(REDIS).await), (2.0, 2.0));
    assert_eq!((second.metric(MISSES).await, second.metric(ERRORS).await), (0.0, 0.0));

    // A value that is damaged, and one that is too long.
    let keys = redis.keys();
    for command in [format!("SETRANGE {} 30 xyz", keys[0]), format!("APPEND {} xxxx", keys[1])] {
        assert!(redis.asks(&command).unwrap().contains(':'), "{command}");
    }
    let third = cached(&settings).await;
    assert_eq!(embed(&third, texts.clone()).await, wanted);
    assert_eq!((third.metric(REDIS).await, third.metric(MISSES).await), (0.0, 2.0));
    assert_eq!(third.metric(DAMAGED).await, 2.0);

    let wrong = format!("{{ kind: redis, url_file: \"{}\" }}", redis.url_file("wrong"));
    let refused = cached(&wrong).await;
    assert_eq!(embed(&refused, texts).await, wanted);
    until("a read and a write are refused", async || refused.metric(REFUSED).await == 2.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_with_tls_is_used_where_its_authority_is_trusted_and_left_alone_elsewhere() {
    let ports = Ports::ask(2);
    let folder = tempfile::tempdir().unwrap();
    let [authority, certificate, key] = ["ca.pem", "redis.pem", "redis.key"].map(|name| path(&folder, name));
    let issuer_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(&authority, params.self_signed(&issuer_key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, issuer_key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&certificate, leaf.signed_by(&leaf_key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(&key, leaf_key.serialize_pem()).unwrap();
    let (plain, tls) = (ports.numbers()[0], ports.numbers()[1].to_string());
    // The test reads it by the port without TLS.
    let files = ["--tls-cert-file", certificate.as_str(), "--tls-key-file", key.as_str(), "--tls-auth-clients", "no"];
    let arguments = [&["--tls-port", tls.as_str()][..], &files[..]].concat();
    let Some(redis) = RedisServer::start_with(plain, &arguments).await else { return };

    let address = path(&folder, "url");
    std::fs::write(&address, format!("rediss://:{PASSWORD}@127.0.0.1:{tls}/0\n")).unwrap();
    let settings = |further: &str| format!("{{ kind: redis, url_file: \"{address}\"{further} }}");
    let texts = json!(["the river", "the harbour"]);
    let stranger = cached(&settings("")).await;
    let wanted = embed(&stranger, texts.clone()).await;
    until("its certificate is refused to a read and a write", async || stranger.metric(CERTIFICATE).await == 2.0).await;
    assert_eq!((stranger.metric(ERRORS).await, redis.keys().len()), (2.0, 0));

    let trusting = settings(&format!(", ca_file: \"{authority}\""));
    let first = cached(&trusting).await;
    assert_eq!(embed(&first, texts.clone()).await, wanted);
    until("Redis has the vectors", async || redis.keys().len() == 2).await;
    let second = cached(&trusting).await;
    assert_eq!(embed(&second, texts).await, wanted);
    assert_eq!((second.metric(REDIS).await, second.metric(ERRORS).await), (2.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_is_full_is_still_read_and_a_bad_key_fails_no_others() {
    let ports = Ports::ask(1);
    let Some(redis) = RedisServer::start(ports.numbers()[0]).await else { return };
    let settings = format!("{{ kind: redis, url_file: \"{}\" }}", redis.url_file(PASSWORD));
    // More than one pipeline has.
    let texts: Vec<[u32; 2]> = (0..300).map(|number| [1 + number / 20, 1 + number % 20]).collect();
    let first = cached(&settings).await;
    let wanted = embed(&first, json!(texts)).await;
    until("Redis has the vectors", async || redis.keys().len() == texts.len()).await;
    let bad = redis.keys().remove(0);
    for command in [format!("DEL {bad}"), format!("LPUSH {bad} x"), "CONFIG SET maxmemory 1".to_owned()] {
        let answer = redis.asks(&command).unwrap();
        assert!(!answer.lines().any(|line| line.starts_with('-')), "{command}: {answer}");
    }

    let second = cached(&settings).await;
    embed(&second, json!("the sea")).await;
    until("a write is refused", async || second.metric(REFUSED).await == 1.0).await;
    assert_eq!(embed(&second, json!(texts)).await, wanted);
    assert_eq!((second.metric(REDIS).await, second.metric(MISSES).await), (299.0, 2.0));
    assert_eq!(second.metric(DAMAGED).await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_while_redis_is_lost_and_it_is_used_again_when_it_returns() {
    let ports = Ports::ask(1);
    let port = ports.numbers()[0];
    let Some(redis) = RedisServer::start(port).await else { return };
    let settings = format!("{{ kind: redis, url_file: \"{}\" }}", redis.url_file(PASSWORD));
    let site = cached(&settings).await;
    embed(&site, json!("the river")).await;
    until("Redis has the vector", async || redis.keys().len() == 1).await;
    drop(redis);
    for number in 0..5 {
        embed(&site, json!(format!("the river {number}"))).await;
    }
    assert!(site.metric(ERRORS).await >= 1.0);
    let Some(redis) = RedisServer::start(port).await else { return };
    let mut number = 0;
    until("Redis is used again", async || {
        number += 1;
        embed(&site, json!(format!("the harbour {number}"))).await;
        !redis.keys().is_empty()
    })
    .await;
}
