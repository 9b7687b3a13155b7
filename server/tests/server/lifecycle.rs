//! Starting, being ready, draining, and what happens when something underneath breaks.

use serde_json::json;
use textnlp_models::{WeightFormat, quality};
use textnlp_server::config::{Address, Config};
use textnlp_server::{Server, StartError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::client::read_reply;
use super::support::{Client, Setup, Shape, config, path, start, start_in, until, write_model};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_says_little_without_a_key_and_more_with_one() {
    let site = start(Setup::default()).await.ready().await;
    let health = async |headers: &[(&str, &str)]| {
        let reply = site.client.send("GET", "/health", headers, b"").await;
        assert_eq!(reply.status, 200, "{headers:?}");
        reply.json()
    };
    let public = json!({ "status": "ok", "region": "nowhere" });
    let wrong = format!("{}g", &site.key[..site.key.len() - 1]);
    for headers in [
        &[][..],
        &[("x-api-key", wrong.as_str())],
        &[("authorization", "Basic dTpw")],
        &[("x-api-key", site.key.as_str()), ("x-tenant-id", "globex")],
    ] {
        assert_eq!(health(headers).await, public, "{headers:?}");
    }
    let body = health(&[("x-api-key", site.key.as_str())]).await;
    assert_eq!(
        (&body["status"], &body["region"], &body["environment"]),
        (&json!("ok"), &json!("nowhere"), &json!("test"))
    );
    assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
    assert!(body["uptime_seconds"].is_u64() && body["memory_bytes"].as_u64().unwrap() > 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_serves_and_is_removed_on_exit() {
    let mut site = start(Setup { unix: true, ..Setup::default() }).await.ready().await;
    let socket = path(&site.folder, "s.sock");
    assert_eq!(site.client.send("GET", "/health", &[], b"").await.status, 200);
    let again = Server::start(site.config.clone()).await;
    assert!(matches!(again, Err(StartError::Listen { .. })), "a socket in use is not taken over");
    assert!(site.drain().await);
    assert!(!socket.exists());
    // One that a killed server left is.
    std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let server = Server::start(site.config.clone()).await.unwrap();
    assert_eq!(Client::new(server.address()).send("GET", "/health", &[], b"").await.status, 200);
    assert!(server.drain().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_in_use_is_reported() {
    let site = start(Setup::default()).await;
    let mut config = site.config.clone();
    config.api.listen = site.server.as_ref().unwrap().address().clone();
    let error = Server::start(config).await.err().unwrap();
    assert!(
        matches!(&error, StartError::Listen { address: Address::Tcp(_), source } if source.kind() == std::io::ErrorKind::AddrInUse),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_drain_finishes_running_responses_and_accepts_no_new_ones() {
    let mut site = start(Setup::default()).await.ready().await;
    site.post("/v1/generate", json!({ "model": "slow", "prompt": "x", "max_tokens": 1 })).await;
    let body = json!({ "model": "slow", "prompt": "x", "max_tokens": 200, "ignore_end": true }).to_string();
    let mut stream = site.client.connect().await;
    stream
        .write_all(Client::head("POST", "/v1/stream", &[("x-api-key", &site.key)], body.len()).as_bytes())
        .await
        .unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    until("it runs", async || site.metric("textnlp_running_requests").await == 1.0).await;
    let server = site.server.take().unwrap();
    let client = site.client.clone();
    let drain = tokio::spawn(server.drain());
    until("nobody is let in", async || client.try_connect().await.is_none()).await;
    let events = read_reply(&mut *stream).await.events();
    let (name, data) = events.last().unwrap();
    assert!(name == "done" && data.contains("\"completion_tokens\":200"), "{name} {data}");
    assert!(drain.await.unwrap(), "everything could finish");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lame_duck_server_keeps_serving_until_its_clients_disconnect() {
    let mut site = start(Setup { api: "lame_duck: 3600\ndrain_seconds: 3600", unix: true, ..Setup::default() })
        .await
        .ready()
        .await;
    let keep = Client::head("GET", "/health", &[], 0).replace("connection: close", "connection: keep-alive");
    let mut kept = site.client.connect().await;
    kept.write_all(keep.as_bytes()).await.unwrap();
    let mut byte = [0; 4096];
    assert!(kept.read(&mut byte).await.unwrap() > 0);
    let drain = tokio::spawn(site.server.take().unwrap().drain());
    let client = site.client.clone();
    until("it says that it goes", async || {
        let reply = client.send("GET", "/ready", &[], b"").await;
        reply.status == 503 && reply.json()["status"] == "draining"
    })
    .await;
    assert_eq!(site.post("/v1/generate", json!({ "prompt": "x", "max_tokens": 2 })).await.status, 200, "it serves on");
    kept.write_all(keep.as_bytes()).await.unwrap();
    let last = read_reply(&mut *kept).await;
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    drop(kept);
    let drained = tokio::time::timeout(std::time::Duration::from_secs(60), drain).await;
    assert!(drained.expect("nobody is connected: it need not wait for an hour").unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connection_is_closed_after_the_lame_duck_period() {
    let mut site = start(Setup { api: "lame_duck: 50ms", ..Setup::default() }).await.ready().await;
    let _kept = site.client.connect().await;
    assert!(site.drain().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_ends_at_its_timeout_with_a_response_in_progress() {
    let mut site = start(Setup { api: "drain_seconds: 0", ..Setup::default() }).await.ready().await;
    site.post("/v1/generate", json!({ "model": "slow", "prompt": "x", "max_tokens": 1 })).await;
    let body = json!({ "model": "slow", "prompt": "x", "max_tokens": 4096, "ignore_end": true }).to_string();
    let mut stream = site.client.connect().await;
    stream
        .write_all(Client::head("POST", "/v1/generate", &[("x-api-key", &site.key)], body.len()).as_bytes())
        .await
        .unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    until("it runs", async || site.metric("textnlp_running_requests").await == 1.0).await;
    assert!(!site.drain().await, "it was cut off, and that is said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_distinguishes_loading_failing_and_recovered() {
    let models = "preload: [later]\n    serve: [ { name: later, path: later } ]";
    let site = start(Setup { models: Some(models), ..Setup::default() }).await;
    // The next load may begin at any time.
    until("the load has failed", async || {
        let reply = site.client.send("GET", "/ready", &[], b"").await;
        let document = reply.json();
        assert_eq!(reply.status, 503);
        document["status"] == "failing" && document["reason"].as_str().is_some_and(|why| why.contains("later"))
    })
    .await;
    assert_eq!(site.client.send("GET", "/health", &[], b"").await.status, 200);
    let refused = site.post("/v1/generate", json!({ "prompt": "x" })).await;
    assert_eq!((refused.status, refused.error().0.as_str()), (503, "model_unavailable"));
    write_model(&path(&site.folder, "later"), Shape::default());
    until("it is ready", async || site.client.send("GET", "/ready", &[], b"").await.status == 200).await;
    assert_eq!(site.post("/v1/generate", json!({ "prompt": "x", "max_tokens": 2 })).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeatedly_failing_model_is_suspended_by_the_circuit_breaker() {
    let models =
        "preload: []\n    default: tiny\n    serve: [ { name: tiny, path: tiny }, { name: gone, path: gone } ]";
    let site = start(Setup { models: Some(models), ..Setup::default() }).await.ready().await;
    let ask = json!({ "model": "gone", "prompt": "x" });
    for _ in 0..5 {
        assert_eq!(site.post("/v1/generate", ask.clone()).await.error().0, "model_unavailable");
    }
    let reply = site.post("/v1/generate", ask).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (503, "circuit_open"));
    assert!((1..=60).contains(&reply.header("retry-after").unwrap().parse::<u64>().unwrap()));
    assert_eq!(site.metric("textnlp_breaker_open{model=\"gone\"}").await, 1.0);
    assert_eq!(site.post("/v1/generate", json!({ "prompt": "x", "max_tokens": 2 })).await.status, 200, "others go on");
    assert_eq!(site.get("/v1/models/gone").await.json()["state"], "failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn context_above_that_of_the_model_is_refused_when_it_is_loaded() {
    let models = "preload: []\n    default: tiny\n    serve: [ { name: tiny, path: tiny, context: 256 }, { name: long, path: tiny, context: 257 } ]";
    let site = start(Setup { models: Some(models), ..Setup::default() }).await.ready().await;
    let ask = |model: &str| json!({ "model": model, "prompt": "x", "max_tokens": 2 });
    assert_eq!(site.post("/v1/generate", ask("tiny")).await.status, 200);
    assert_eq!(site.post("/v1/generate", ask("long")).await.error().0, "model_unavailable");
    let reason = site.get("/v1/models/long").await.json()["reason"].to_string();
    assert!(reason.contains("257 tokens, and it supports 256"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_model_files_are_refused_and_a_nan_model_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape::default());
    write_model(&path(&folder, "nan"), Shape { broken: true, ..Shape::default() });
    write_model(&path(&folder, "cut"), Shape::default());
    write_model(&path(&folder, "lie"), Shape::default());
    write_model(&path(&folder, "text"), Shape::default());
    let weights = |name: &str| path(&folder, name).join("model.safetensors");
    let whole = std::fs::read(weights("cut")).unwrap();
    std::fs::write(weights("cut"), &whole[..whole.len() / 2]).unwrap();
    let mut lie = whole.clone();
    lie[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(weights("lie"), lie).unwrap();
    std::fs::write(path(&folder, "text").join("tokenizer.json"), "{").unwrap();
    let names = ["nan", "cut", "lie", "text"];
    let list: String = names.iter().map(|name| format!(", {{ name: {name}, path: {name} }}")).collect();
    let models = format!("preload: [tiny]\n    serve: [ {{ name: tiny, path: tiny }}{list} ]");
    let config = config(&folder, &Setup { models: Some(&models), ..Setup::default() });
    let site = start_in(folder, config).await.ready().await;
    for name in names {
        let reply = site.post("/v1/generate", json!({ "model": name, "prompt": "x", "max_tokens": 3 })).await;
        assert!(reply.status == 503 || reply.status == 500, "{name}: {} {}", reply.status, reply.text());
        assert!(matches!(reply.error().0.as_str(), "model_unavailable" | "model_failed"), "{name}: {}", reply.text());
        assert_eq!(
            site.post("/v1/generate", json!({ "prompt": "x", "max_tokens": 3 })).await.status,
            200,
            "after {name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_database_blocks_no_generation_and_budgeted_requests_get_503() {
    use sqlx::Connection as _;
    let site = start(Setup { security: "rate_limit: 1000/hour", ..Setup::default() }).await.ready().await;
    let issue = json!({ "api_key": site.key });
    let token = site.client.send("POST", "/auth/token", &[], issue.to_string().as_bytes()).await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut other = sqlx::SqliteConnection::connect(&format!("sqlite://{}", site.config.database.at)).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let ask = json!({ "prompt": "x", "max_tokens": 3 });
    assert_eq!(site.post("/v1/generate", ask.clone()).await.status, 200, "keys can be read, rates are counted alone");
    let reply = site.post_as(&token, "/v1/generate", ask.clone()).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (503, "storage_unavailable"));
    assert!(reply.header("retry-after").is_some());
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(site.post_as(&token, "/v1/generate", ask).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_the_names_used_by_dashboards() {
    let site = start(Setup::default()).await.ready().await;
    let public = site.key.split('_').nth(1).unwrap().to_owned();
    let ask = json!({ "prompt": "Once", "max_tokens": 10, "ignore_end": true });
    assert_eq!(site.post("/v1/generate", ask).await.status, 200);
    site.post("/v1/generate", json!({ "prompt": "x", "n": 2 })).await;
    assert_eq!(site.client.send("HEAD", "/health", &[], b"").await.status, 200);
    let reply = site.metrics.send("GET", "/metrics", &[], b"").await;
    assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let accept = [("accept", "text/plain;version=0.0.4")];
    let older = site.metrics.send("GET", "/metrics", &accept, b"").await;
    assert_eq!(older.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(older.text().contains("# TYPE http_requests_total counter\n") && !older.text().contains("# EOF"));
    let text = reply.text();
    assert!(text.contains(&format!("textnlp_tokens_generated_total{{model=\"tiny\",user=\"{public}\"}} 10")), "{text}");
    for name in [
        "textnlp_inference_duration_seconds_bucket{le=\"0.5\",model=\"tiny\"}",
        "http_requests_total{method=\"POST\",route=\"/v1/generate\",status=\"200\"} 1",
        "http_requests_total{method=\"POST\",route=\"/v1/generate\",status=\"400\"} 1",
        "http_requests_total{method=\"HEAD\",route=\"/health\",status=\"200\"} 1",
        "http_request_duration_seconds_count{method=\"POST\",route=\"/v1/generate\"} 2",
        "http_requests_per_second ",
        "textnlp_errors_total{type=\"invalid_request\"} 1",
        "textnlp_queue_length ",
        "textnlp_model_memory_bytes{model=\"tiny\",kind=\"weights\"}",
        "textnlp_model_load_seconds{model=\"tiny\"} ",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "textnlp_model_cache_hits_total ",
        "textnlp_ready 1",
    ] {
        assert!(text.contains(name), "{name} is missing in {text}");
    }
    assert_eq!(
        site.metrics.send("GET", "/v1/models", &[], b"").await.status,
        404,
        "the listener of metrics has nothing else"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_address_answers_probes_and_nothing_else() {
    let mut site = start(Setup { api: "health_listen: \"127.0.0.1:0\"", ..Setup::default() }).await.ready().await;
    let probes = Client::new(site.server.as_ref().unwrap().health_address().unwrap());
    for path in ["/health", "/ready"] {
        assert_eq!(probes.send("GET", path, &[], b"").await.status, 200, "{path}");
    }
    let key = site.key.clone();
    for (method, path) in [
        ("GET", "/v1/models"),
        ("POST", "/v1/generate"),
        ("POST", "/auth/token"),
        ("GET", "/.well-known/jwks.json"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
    ] {
        let reply = probes.send(method, path, &[("x-api-key", &key)], b"{}").await;
        assert_eq!(reply.status, 404, "{method} {path}");
    }
    assert!(site.drain().await, "the probes do not delay the shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_of_a_newer_server_is_refused() {
    use sqlx::Connection as _;
    let folder = tempfile::tempdir().unwrap();
    let config: Config = config(&folder, &Setup::default());
    let store = textnlp_store::Store::open(&config.database).await.unwrap();
    store.prepare().await.unwrap();
    store.close().await;
    let mut other = sqlx::SqliteConnection::connect(&format!("sqlite://{}", config.database.at)).await.unwrap();
    sqlx::raw_sql("INSERT INTO schema_version VALUES (99, 'later', '', 0)").execute(&mut other).await.unwrap();
    let error = Server::start(config).await.err().unwrap();
    assert!(
        matches!(&error, StartError::Database { source, .. } if source.to_string().contains("newer server")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn perplexity_of_the_text_of_a_model_is_measured_after_its_first_load() {
    let folder = tempfile::tempdir().unwrap();
    for (name, seed) in [("tiny", 1), ("plain", 2)] {
        write_model(&path(&folder, name), Shape { seed, ..Shape::default() });
    }
    // `${…}` in it is no variable.
    let text = "Once upon a time, ${NOBODY} lived by the river, and a small fox came by. ".repeat(12);
    let models = format!(
        "default: tiny\n    preload: [tiny]\n    \
         serve: [ {{ name: tiny, path: tiny, quality_text: \"{text}\" }}, {{ name: plain, path: plain, quality_text: short }} ]"
    );
    let config = config(&folder, &Setup { models: Some(&models), ..Setup::default() });
    let site = start_in(folder, config).await.ready().await;
    // Too short a text is no reason not to serve the model.
    assert_eq!(
        site.post("/v1/generate", json!({ "model": "plain", "prompt": "a", "max_tokens": 1 })).await.status,
        200
    );
    let score = async |model: &str| {
        let text = site.metrics.send("GET", "/metrics", &[], b"").await.text();
        let start = format!("textnlp_model_quality_score{{model=\"{model}\",metric_type=\"perplexity\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)?.parse::<f64>().ok())
    };
    until("the text is measured", async || score("tiny").await.is_some()).await;
    let measured = score("tiny").await.unwrap();
    let expected = quality(&path(&site.folder, "tiny"), WeightFormat::AsIs, &text, &|_| {}).unwrap().perplexity;
    assert!((measured / expected - 1.0).abs() < 1e-3, "{measured} instead of {expected}");
    until("the other one is given up", async || score("plain").await.is_some_and(f64::is_nan)).await;
    let tokens = async || site.get("/v1/usage").await.json()["total"]["prompt_tokens"].as_u64().unwrap_or(0);
    until("the request is recorded", async || tokens().await >= 1).await;
    assert!(tokens().await < 10, "measurements are no usage");
}
