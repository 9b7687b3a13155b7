//! Traces: the spans of requests at a collector on this machine, and requests while it refuses them or does not answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use textnlp_server::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Client, Setup, Site, config, create_database, path, start, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const NOT_SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// A collector, and what it answers.
#[derive(Clone, Default)]
struct Collector {
    messages: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    /// The statuses of its first answers, and their `Retry-After`; then it is 200.
    statuses: Arc<Mutex<Vec<u16>>>,
    retry_after: Option<&'static str>,
    /// What it answers besides.
    answer: String,
    delay: Duration,
}

impl Collector {
    async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(receive).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        format!("http://{address}/v1/traces")
    }

    fn spans(&self) -> Vec<Value> {
        let messages = self.messages.lock().unwrap();
        let scopes = messages.iter().flat_map(|(_, message)| message["resourceSpans"].as_array().unwrap().clone());
        scopes.flat_map(|of| of["scopeSpans"][0]["spans"].as_array().unwrap().clone()).collect()
    }
}

async fn receive(
    State(collector): State<Collector>,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, HeaderMap, String) {
    collector.messages.lock().unwrap().push((headers, serde_json::from_str(&body).unwrap()));
    tokio::time::sleep(collector.delay).await;
    let mut statuses = collector.statuses.lock().unwrap();
    let status = if statuses.is_empty() { 200 } else { statuses.remove(0) };
    let retry_after = collector.retry_after.map(|after| (header::RETRY_AFTER, HeaderValue::from_static(after)));
    (StatusCode::from_u16(status).unwrap(), retry_after.into_iter().collect(), collector.answer.clone())
}

fn export(endpoint: &str, ratio: f64) -> String {
    format!("{{ log_level: WARN, enable_tracing: true, traces: {{ endpoint: \"{endpoint}\", ratio: {ratio} }} }}")
}

async fn site(collector: &Collector, ratio: f64) -> Site {
    let monitoring = export(&collector.listen().await, ratio);
    start(Setup { monitoring: Some(&monitoring), ..Setup::default() }).await.ready().await
}

/// Generates with the key and these headers.
async fn generate(site: &Site, headers: &[(&str, &str)]) {
    let authorization = format!("Bearer {}", site.key);
    let headers = [&[("authorization", authorization.as_str())][..], headers].concat();
    let body = json!({ "model": "tiny", "prompt": "Once upon", "max_tokens": 3, "n": 2 }).to_string();
    let reply = site.client.send("POST", "/v1/completions", &headers, body.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

fn attribute(span: &Value, name: &str) -> Value {
    let attributes = span["attributes"].as_array().unwrap().iter();
    let found = attributes.filter(|attribute| attribute["key"] == name).map(|attribute| &attribute["value"]);
    let values: Vec<&Value> = found.flat_map(|value| value.as_object().unwrap().values()).collect();
    assert!(values.len() <= 1, "{name} is there once: {span}");
    values.first().map_or(Value::Null, |value| (*value).clone())
}

fn nanos(span: &Value, name: &str) -> u64 {
    span[name].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_has_a_span_below_its_callers_with_generations_and_their_parts() {
    let collector = Collector::default();
    let site = site(&collector, 0.0).await;
    generate(&site, &[("traceparent", PARENT), ("tracestate", "vendor=1")]).await;
    until("the collector has the spans", async || collector.spans().len() == 9).await;
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span["traceId"] == TRACE && span["traceState"] == "vendor=1"), "{spans:?}");
    let server = &spans[0];
    assert_eq!((&server["name"], &server["kind"]), (&json!("POST /v1/completions"), &json!(2)));
    assert_eq!((&server["parentSpanId"], &server["status"]), (&json!("00f067aa0ba902b7"), &json!({})));
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/completions")),
        ("url.path", json!("/v1/completions")),
        ("url.scheme", json!("http")),
        ("http.response.status_code", json!("200")),
        ("textnlp.tenant", json!("default")),
        ("client.address", Value::Null),
        ("error.type", Value::Null),
    ] {
        assert_eq!(attribute(server, name), value, "{name}");
    }
    let of = |parent: &Value| -> Vec<&Value> {
        spans.iter().filter(|span| span["parentSpanId"] == parent["spanId"]).collect()
    };
    let generations = of(server);
    assert_eq!(generations.len(), 2);
    for generation in generations {
        assert_eq!((&generation["name"], &generation["kind"]), (&json!("text_completion tiny"), &json!(1)));
        assert_eq!(attribute(generation, "gen_ai.operation.name"), "text_completion");
        assert_eq!(attribute(generation, "gen_ai.request.model"), "tiny");
        let reasons = attribute(generation, "gen_ai.response.finish_reasons")["values"].clone();
        assert_eq!(reasons.as_array().unwrap().len(), 1, "{reasons}");
        let tokens: u64 = attribute(generation, "gen_ai.usage.output_tokens").as_str().unwrap().parse().unwrap();
        assert!((1..=3).contains(&tokens), "{tokens}");
        let parts = of(generation);
        let names: Vec<&str> = parts.iter().map(|part| part["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["queue", "prefill", "decode"]);
        assert_eq!(nanos(parts[0], "startTimeUnixNano"), nanos(generation, "startTimeUnixNano"));
        for pair in parts.windows(2) {
            assert_eq!(nanos(pair[0], "endTimeUnixNano"), nanos(pair[1], "startTimeUnixNano"));
        }
        assert!(nanos(server, "startTimeUnixNano") <= nanos(generation, "startTimeUnixNano"));
    }
    let (headers, message) = collector.messages.lock().unwrap()[0].clone();
    assert_eq!(headers["content-type"], "application/json");
    assert!(!headers.contains_key("authorization"));
    let resource = &message["resourceSpans"][0]["resource"];
    assert_eq!(attribute(resource, "service.name"), "textnlp-server");
    assert_eq!(attribute(resource, "deployment.environment.name"), "test");
    let sent = message.to_string();
    assert!(!sent.contains("Once") && !sent.contains(&site.key) && !sent.contains("127.0.0.1"), "{sent}");
    until("they are counted", async || site.metric("textnlp_trace_spans_total{result=\"exported\"}").await == 9.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_decide_and_need_a_credential_and_probes_have_no_spans() {
    let collector = Collector::default();
    let site = site(&collector, 0.0).await;
    generate(&site, &[]).await;
    generate(&site, &[("traceparent", NOT_SAMPLED)]).await;
    generate(&site, &[("traceparent", PARENT), ("traceparent", PARENT)]).await;
    let refused = site.client.send("GET", "/v1/models", &[("traceparent", PARENT)], b"").await;
    assert_eq!(refused.status, 401);
    assert_eq!(site.client.send("GET", "/health", &[("traceparent", PARENT)], b"").await.status, 200);
    // What was queued before is sent before.
    let key = format!("Bearer {}", site.key);
    let headers = [("authorization", key.as_str()), ("traceparent", PARENT)];
    assert_eq!(site.client.send("GET", "/v1/models/tiny", &headers, b"").await.status, 200);
    until("the collector has a span", async || !collector.spans().is_empty()).await;
    let spans = collector.spans();
    assert_eq!((spans.len(), &spans[0]["name"]), (1, &json!("GET /v1/models/{*id}")));
    assert_eq!(attribute(&spans[0], "url.path"), Value::Null, "it has what the client wrote");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_requests_of_unknown_clients_are_drawn_by_the_ratio_and_begin_traces() {
    let collector = Collector::default();
    let site = site(&collector, 1.0).await;
    assert_eq!(site.client.send("GET", "/hunter2", &[("traceparent", "00-0-0-01")], b"").await.status, 404);
    until("the collector has a span", async || !collector.spans().is_empty()).await;
    let span = collector.spans().remove(0);
    assert_eq!((&span["name"], &span["parentSpanId"]), (&json!("GET"), &Value::Null));
    assert_eq!(attribute(&span, "http.response.status_code"), "404");
    assert!(!span.to_string().contains("hunter2") && span["traceId"].as_str().unwrap().len() == 32, "{span}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_message_is_sent_again_or_given_up_and_rejected_spans_are_counted() {
    let answer = json!({ "partialSuccess": { "rejectedSpans": "2" } }).to_string();
    let statuses = Arc::new(Mutex::new(vec![503, 200, 400]));
    let collector = Collector { answer, statuses, ..Collector::default() };
    let site = site(&collector, 0.0).await;
    let counted = async |result: &str| site.metric(&format!("textnlp_trace_spans_total{{result=\"{result}\"}}")).await;
    generate(&site, &[("traceparent", PARENT)]).await;
    until("the second attempt is accepted", async || counted("rejected").await == 2.0).await;
    assert_eq!((counted("exported").await, collector.spans().len()), (7.0, 18));
    generate(&site, &[("traceparent", PARENT)]).await;
    until("the next message is given up", async || counted("failed").await == 9.0).await;
    assert_eq!(collector.messages.lock().unwrap().len(), 3, "its status is that of a wrong message");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_collector_makes_no_stop_unclean() {
    let collector = Collector { delay: Duration::from_secs(600), ..Collector::default() };
    let mut site = site(&collector, 1.0).await;
    generate(&site, &[]).await;
    until("the collector has a message", async || !collector.messages.lock().unwrap().is_empty()).await;
    generate(&site, &[]).await;
    assert!(site.drain().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_spans_are_sent_when_the_server_stops() {
    let statuses = Arc::new(Mutex::new(vec![503]));
    let collector = Collector { statuses, retry_after: Some("30"), ..Collector::default() };
    let monitoring = export(&collector.listen().await, 0.0);
    let setup = Setup { api: "lame_duck: 1ms", monitoring: Some(&monitoring), ..Setup::default() };
    let mut site = start(setup).await.ready().await;
    generate(&site, &[("traceparent", PARENT)]).await;
    until("the collector has refused a message", async || collector.statuses.lock().unwrap().is_empty()).await;
    // It waits while the server pauses for half a minute.
    generate(&site, &[("traceparent", PARENT)]).await;
    assert!(site.drain().await);
    assert_eq!(collector.spans().len(), 27, "the first message twice, and the second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_clients_are_not_exported_by_their_own_decision() {
    let collector = Collector::default();
    let monitoring = export(&collector.listen().await, 0.0);
    let setup = Setup {
        phase: Some("development"),
        security: "api_keys_enabled: false",
        monitoring: Some(&monitoring),
        ..Setup::default()
    };
    let site = start(setup).await.ready().await;
    assert_eq!(site.client.send("GET", "/v1/models", &[("traceparent", PARENT)], b"").await.status, 200);
    // What was queued before is sent before.
    let key = [("x-api-key", site.key.as_str()), ("traceparent", PARENT)];
    assert_eq!(site.client.send("GET", "/v1/models/tiny", &key, b"").await.status, 200);
    until("the collector has a span", async || !collector.spans().is_empty()).await;
    let spans = collector.spans();
    assert_eq!((spans.len(), &spans[0]["name"]), (1, &json!("GET /v1/models/{*id}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embeddings_and_requests_of_batches_have_spans() {
    let collector = Collector::default();
    let monitoring = export(&collector.listen().await, 1.0);
    let setup = Setup { batch: Some("{}"), monitoring: Some(&monitoring), ..Setup::default() };
    let site = start(setup).await.ready().await;
    let reply = site.post("/v1/embeddings", json!({ "model": "encoder", "input": "Once" })).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = json!({ "model": "tiny", "prompt": "Once", "max_tokens": 2, "ignore_eos": true });
    let requests = json!([{ "custom_id": "a", "body": body }]);
    let reply = site.post("/v1/batches", json!({ "endpoint": "/v1/completions", "requests": requests })).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let named = |name: &str| collector.spans().into_iter().find(|span| span["name"] == name);
    until("the batch has a span", async || named("BATCH /v1/completions").is_some()).await;
    let batch = named("BATCH /v1/completions").unwrap();
    assert_eq!((&batch["kind"], &batch["parentSpanId"]), (&json!(1), &Value::Null));
    assert_eq!(attribute(&batch, "http.request.method"), Value::Null);
    assert_eq!(named("text_completion tiny").unwrap()["parentSpanId"], batch["spanId"]);
    let embeddings = named("embeddings encoder").unwrap();
    assert_eq!(embeddings["parentSpanId"], named("POST /v1/embeddings").unwrap()["spanId"]);
    assert_eq!(attribute(&embeddings, "gen_ai.usage.output_tokens"), Value::Null);
    let parts: Vec<Value> =
        collector.spans().into_iter().filter(|span| span["parentSpanId"] == embeddings["spanId"]).collect();
    assert_eq!(parts.iter().map(|part| part["name"].as_str().unwrap()).collect::<Vec<_>>(), ["queue", "encode"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_whose_client_left_has_the_status_that_was_sent() {
    let collector = Collector::default();
    let site = site(&collector, 0.0).await;
    let one = json!({ "model": "slow", "prompt": "x", "max_tokens": 1 });
    until("the model is loaded", async || site.post("/v1/generate", one.clone()).await.status == 200).await;
    let body = json!({ "model": "slow", "prompt": "x", "max_tokens": 4000, "ignore_end": true }).to_string();
    let key = [("x-api-key", site.key.as_str()), ("traceparent", PARENT)];
    let mut stream = site.client.connect().await;
    stream.write_all(Client::head("POST", "/v1/stream", &key, body.len()).as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    drop(stream);
    until("the collector has the request", async || !collector.spans().is_empty()).await;
    let span = collector.spans().remove(0);
    assert_eq!((&span["name"], &span["status"]), (&json!("POST /v1/stream"), &json!({})));
    assert_eq!(attribute(&span, "error.type"), "client_left");
    assert_eq!(attribute(&span, "http.response.status_code"), "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secret_is_sent_in_its_header_and_an_unusable_one_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let secret = path(&folder, "secret");
    let collector = Collector::default();
    let endpoint = collector.listen().await;
    let monitoring = format!(
        "{{ log_level: WARN, enable_tracing: true, traces: {{ endpoint: \"{endpoint}\", header: x-token, secret_file: {secret} }} }}"
    );
    std::fs::write(&secret, "hunter2\nhunter3\n").unwrap();
    let unusable = config(&folder, &Setup { monitoring: Some(&monitoring), ..Setup::default() });
    create_database(&unusable).await;
    let Err(error) = Server::start(unusable).await else { panic!("it started") };
    assert!(error.to_string().contains(secret.as_str()) && !error.to_string().contains("hunter"), "{error}");
    std::fs::write(&secret, "Bearer hunter2\n").unwrap();
    let site = start(Setup { monitoring: Some(&monitoring), ..Setup::default() }).await.ready().await;
    generate(&site, &[]).await;
    until("the collector has the spans", async || collector.spans().len() == 9).await;
    let (headers, message) = collector.messages.lock().unwrap()[0].clone();
    assert_eq!(headers["x-token"], "Bearer hunter2");
    assert!(!message.to_string().contains("hunter2"));
}
