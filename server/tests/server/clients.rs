//! Clients that leave, read nothing, or come in crowds.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Client, Setup, Site, start, until};

/// A request that keeps the engine busy for a long time.
fn long() -> serde_json::Value {
    json!({ "model": "slow", "prompt": "x", "max_tokens": 4000, "ignore_end": true })
}

async fn send_only(site: &Site, path: &str, body: &serde_json::Value) -> Box<dyn super::support::client::Stream> {
    let body = body.to_string();
    let mut stream = site.client.connect().await;
    let head = Client::head("POST", path, &[("x-api-key", &site.key)], body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

/// Loads the model. On a busy machine that may take longer than a request's time limit, which the client is told; loading goes on.
async fn warm(site: &Site) {
    let one = json!({ "model": "slow", "prompt": "x", "max_tokens": 1 });
    until("the model is loaded", async || {
        let reply = site.post("/v1/generate", one.clone()).await;
        assert!(matches!(reply.status, 200 | 504), "{}", reply.text());
        reply.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnected_client_stops_its_generation_and_pays_for_used_tokens() {
    let site = start(Setup::default()).await.ready().await;
    warm(&site).await;
    let issue = json!({ "api_key": site.key, "token_limit": 4200 });
    for path in ["/v1/generate", "/v1/stream", "/v1/completions"] {
        let token = site.client.send("POST", "/auth/token", &[], issue.to_string().as_bytes()).await.json()["token"]
            .as_str()
            .unwrap()
            .to_owned();
        let mut body = long();
        if path == "/v1/completions" {
            body.as_object_mut().unwrap().remove("ignore_end");
            body["ignore_eos"] = json!(true);
        }
        let text = body.to_string();
        let mut stream = site.client.connect().await;
        let head = Client::head("POST", path, &[("authorization", &format!("Bearer {token}"))], text.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let running = async || site.metric("textnlp_running_requests").await;
        until("the engine works on it", async || running().await == 1.0).await;
        let steps = site.metric("textnlp_engine_steps_total").await;
        until("it has computed some", async || site.metric("textnlp_engine_steps_total").await > steps + 5.0).await;
        drop(stream);
        until("the engine has stopped", async || running().await == 0.0).await;
        let after = json!({ "model": "plain", "prompt": "x", "max_tokens": 200, "ignore_end": true });
        // With 4,001 of 4,200 tokens set aside, 201 are too many; far from all of them were used, and the rest is free again.
        until("it is settled", async || site.post_as(&token, "/v1/generate", after.clone()).await.status == 200).await;
        let spent = site.metric("textnlp_tokens_generated_total{model=\"slow\"").await;
        assert!(spent > 5.0, "{path}: what was generated counts: {spent}");
    }
    until("the left requests are counted", async || {
        site.metric("textnlp_errors_total{type=\"client_left\"}").await == 3.0
    })
    .await;
    assert_eq!(site.metric("http_requests_in_flight").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_disconnects_while_queued_frees_its_slot() {
    let site = start(Setup { api: "queue: 2", ..Setup::default() }).await.ready().await;
    warm(&site).await;
    let mut crowd = Vec::new();
    // More than run at once, so that some wait.
    while site.metric("textnlp_queue_length").await < 2.0 {
        assert!(crowd.len() < 400, "nothing ever waits");
        crowd.push(send_only(&site, "/v1/generate", &long()).await);
    }
    drop(crowd);
    until("nobody waits", async || {
        site.metric("textnlp_queue_length").await + site.metric("textnlp_running_requests").await == 0.0
    })
    .await;
    warm(&site).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_queue_returns_retry_after_and_the_server_stays_ready() {
    let site = start(Setup { api: "queue: 2", ..Setup::default() }).await.ready().await;
    warm(&site).await;
    // The queue is full for moments only while running requests end: whoever is refused is seen by the refusal itself.
    let mut crowd = FuturesUnordered::new();
    let refused = loop {
        assert!(crowd.len() < 400, "nobody was ever refused");
        crowd.push(site.post("/v1/generate", long()));
        if let Ok(Some(reply)) = tokio::time::timeout(Duration::from_millis(20), crowd.next()).await
            && reply.status != 200
        {
            break reply;
        }
    };
    assert_eq!((refused.status, refused.error().0.as_str()), (429, "queue_full"));
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(site.client.send("GET", "/ready", &[], b"").await.status, 200, "a full queue is ready");
    assert_eq!(site.client.send("GET", "/health", &[], b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_does_not_read_its_stream_delays_no_other_request() {
    let site = start(Setup::default()).await.ready().await;
    warm(&site).await;
    let mut ask = long();
    ask["max_tokens"] = json!(3000);
    ask["logprobs"] = json!(20);
    let stuck = send_only(&site, "/v1/stream", &ask).await;
    until("it runs", async || site.metric("textnlp_running_requests").await == 1.0).await;
    for _ in 0..5 {
        assert_eq!(site.post("/v1/generate", json!({ "prompt": "x", "max_tokens": 5 })).await.status, 200);
    }
    drop(stuck);
    until("its work has ended", async || site.metric("textnlp_running_requests").await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_past_its_timeout_is_ended() {
    let site = start(Setup { api: "timeout: 1", ..Setup::default() }).await.ready().await;
    warm(&site).await;
    // Together they take several seconds on a fast machine too.
    let whole = futures::future::join_all((0..8).map(|_| site.post("/v1/generate", long())));
    let streams = futures::future::join_all((0..8).map(|_| site.post("/v1/stream", long())));
    let mut ask = long();
    ask["stream"] = json!(true);
    let marked = futures::future::join_all((0..4).map(|_| site.post("/v1/completions", ask.clone())));
    let (whole, streams, marked) = tokio::join!(whole, streams, marked);
    for stream in marked.iter().filter(|stream| stream.status == 200) {
        let events = stream.events();
        let [.., (_, error), (_, end)] = events.as_slice() else { panic!("{}", stream.text()) };
        assert!(error.contains("\"timeout\"") && end == "[DONE]", "{error} {end}");
    }
    for reply in whole {
        assert_eq!((reply.status, reply.error().0.as_str()), (504, "timeout"));
    }
    for stream in streams {
        // On a busy machine the time may be over before the first event.
        if stream.status != 200 {
            assert_eq!((stream.status, stream.error().0.as_str()), (504, "timeout"));
            continue;
        }
        let events = stream.events();
        let (name, data) = events.last().unwrap();
        assert!(name == "error" && data.contains("timeout"), "{name} {data}: {}", stream.text());
    }
    until("nothing runs on", async || site.metric("textnlp_running_requests").await == 0.0).await;
    assert!(site.metric("textnlp_errors_total{type=\"timeout\"}").await >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_concurrent_requests_are_served_while_probes_answer() {
    let site = start(Setup::default()).await.ready().await;
    let ask = |n: u64| json!({ "prompt": format!("Number {n}"), "max_tokens": 24, "seed": n, "ignore_end": true });
    let crowd = futures::future::join_all((0..60).map(|n| site.post("/v1/generate", ask(n))));
    let probes = futures::future::join_all((0..30).map(|_| site.client.send("GET", "/health", &[], b"")));
    let (crowd, probes) = tokio::join!(crowd, probes);
    assert!(probes.iter().all(|reply| reply.status == 200));
    for (n, reply) in crowd.iter().enumerate() {
        assert_eq!((reply.status, &reply.json()["usage"]["completion_tokens"]), (200, &json!(24)), "{n}");
    }
    let ids: std::collections::HashSet<_> =
        crowd.iter().map(|reply| reply.header("x-request-id").unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_serves_multiple_requests() {
    let site = start(Setup::default()).await.ready().await;
    let mut stream = site.client.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
        while !seen.ends_with(b"}") {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the connection ended");
            seen.extend_from_slice(&buffer[..n]);
        }
        assert!(seen.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnect_or_one_refused_prompt_stops_all_prompts_of_a_request() {
    let site = start(Setup::default()).await.ready().await;
    warm(&site).await;
    let running = async || site.metric("textnlp_running_requests").await;
    for streamed in [false, true] {
        let body = json!({ "model": "slow", "prompt": ["x", "y", "z"], "max_tokens": 4000, "ignore_eos": true, "stream": streamed });
        let stream = send_only(&site, "/v1/completions", &body).await;
        until("the engine works on all", async || running().await == 3.0).await;
        drop(stream);
        until("the engine has stopped", async || running().await == 0.0).await;
    }
    let body = json!({ "model": "slow", "prompt": [[97], [99999]], "max_tokens": 4000, "ignore_eos": true });
    let reply = site.post("/v1/completions", body).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("prompt[1]")));
    until("the engine has stopped", async || running().await == 0.0).await;
}
