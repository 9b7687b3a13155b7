//! What happens to requests.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::Backend;
use crate::site::{SOON, Site, eventually};
use crate::tls::{certify, folder, secure, tls};

#[tokio::test]
async fn requests_are_balanced_across_tcp_and_unix_backends() {
    let folder = tempfile::tempdir().unwrap();
    let path = camino::Utf8Path::from_path(folder.path()).unwrap().join("b.sock");
    let (a, b) = (Backend::tcp("a").await, Backend::unix("b", &path));
    let site = Site::new(&[&a, &b]).await;
    for _ in 0..10 {
        assert_eq!(site.post("/v1/x?q=1", "hello").await.0, 200);
    }
    assert_eq!((a.requests(), b.requests()), (5, 5));
    assert_eq!(site.post("/v1/x", "hello").await.1.split_once(' ').unwrap().1, "POST /v1/x 5");
}

#[tokio::test]
async fn forwarding_headers_of_untrusted_clients_are_replaced() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let request = Request::get("/x")
        .header("x-forwarded-for", "1.2.3.4")
        .header("x-request-id", "mine-1")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("authorization", "Bearer k");
    let response = site.open(request, "").await;
    assert_eq!(response.headers()["x-request-id"], "mine-1");
    assert_eq!(response.headers()["x-kept"], "yes");
    assert!(!response.headers().contains_key("keep-alive"));
    let seen = a.state.last.lock().unwrap().clone();
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert_eq!((seen["x-request-id"].as_str(), seen["host"].as_str()), ("mine-1", "site.example"));
    assert_eq!(seen["authorization"], "Bearer k");
    assert!(!seen.contains_key("x-private"));
    let response = site.open(Request::get("/x").header("x-request-id", "bad id!"), "").await;
    assert_eq!(response.headers()["x-request-id"].len(), 36);
}

#[tokio::test]
async fn trace_context_is_forwarded_unchanged_and_two_parents_are_removed() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let traced = || Request::get("/x").header("traceparent", PARENT).header("tracestate", "vendor=1");
    site.open(traced(), "").await;
    let seen = a.state.last.lock().unwrap().clone();
    assert_eq!((seen["traceparent"].as_str(), seen["tracestate"].as_str()), (PARENT, "vendor=1"));
    site.open(traced().header("traceparent", PARENT), "").await;
    let seen = a.state.last.lock().unwrap().clone();
    assert!(!seen.contains_key("traceparent") && !seen.contains_key("tracestate"), "{seen:?}");
}

#[tokio::test]
async fn backend_connections_are_reused() {
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], "  health: { interval_ms: 3600000 }\n").await;
    let before = a.state.connections.load(SeqCst);
    for _ in 0..20 {
        site.post("/x", "hello").await;
    }
    assert_eq!(a.state.connections.load(SeqCst), before + 1);
}

#[tokio::test]
async fn killed_backend_fails_no_request_and_recovers() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    // No look will tell: requests must find out by themselves.
    let site = Site::with(&[&a, &b], "  health: { interval_ms: 500, unhealthy_after: 1000 }\n").await;
    let listen = a.listen.clone();
    a.kill().await;
    for _ in 0..10 {
        let (status, body) = site.post("/x", "hello").await;
        assert_eq!(status, 200, "{body}");
        assert!(body.starts_with("b "), "{body}");
    }
    assert!(site.metrics().await.contains("textnlp_gateway_retries_total 1\n"));
    site.until("a", "unhealthy").await;
    let again = Backend::tcp_at("a", &listen).await;
    site.until("a", "healthy").await;
    for _ in 0..2 {
        site.post("/x", "").await;
    }
    assert_eq!(again.requests(), 1);
}

#[tokio::test]
async fn non_idempotent_request_is_not_retried_after_it_was_sent() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    let (status, body) = site.post("/die", "hello").await;
    assert_eq!(status, 502);
    assert!(body.contains("\"backend_failed\"") && body.contains("\"hint\""), "{body}");
    assert_eq!(a.requests() + b.requests(), 1);
    // Reading twice does no harm, so a GET is tried on each of them, and on no third.
    assert_eq!(site.get("/die").await.0, 502);
    assert_eq!(a.requests() + b.requests(), 3);
}

#[tokio::test]
async fn request_the_backend_never_read_is_retried_on_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| camino::Utf8Path::from_path(folder.path()).unwrap().join(name);
    let (a, b) = (Backend::unix("a", &path("a.sock")), Backend::unix("b", &path("b.sock")));
    let site = Site::new(&[&a, &b]).await;
    let (status, body) = site.post("/reset", &"y".repeat(100_000)).await;
    assert_eq!((status, body.contains("no_backend")), (503, true), "{body}");
    assert_eq!((a.requests(), b.requests()), (1, 1));
}

#[tokio::test]
async fn request_refused_by_a_draining_backend_is_retried_and_a_busy_one_not() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::with(&[&a, &b], "  health: { interval_ms: 3600000 }\n").await;
    // Both drain: after the first, the second is asked, and its answer is the client's.
    assert_eq!(site.post("/draining", "hello").await, (503, "draining".to_owned()));
    assert_eq!((a.requests(), b.requests()), (1, 1));
    let (status, body) = site.post("/x", "hello").await;
    assert_eq!((status, body.contains("no_backend")), (503, true), "drained backends get nothing");

    let c = Backend::tcp("c").await;
    let site = Site::new(&[&c]).await;
    let response = site.open(Request::post("/busy"), "hello").await;
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (503, "7"));
    assert_eq!(site.get("/x").await.0, 200);
}

#[tokio::test]
async fn draining_backend_keeps_no_connection_and_is_the_last_choice() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    site.get("/x").await;
    site.get("/x").await;
    eventually(async || a.state.open.load(SeqCst) > 0).await;
    a.state.draining.store(true, SeqCst);
    site.until("a", "draining").await;
    // A look's own connection comes and goes.
    eventually(async || a.state.open.load(SeqCst) == 0).await;
    let before = a.requests();
    for _ in 0..6 {
        assert_eq!(site.post("/x", "").await.0, 200);
    }
    assert_eq!(a.requests(), before);
    b.kill().await;
    assert_eq!(site.post("/x", "").await.1, "a POST /x 0", "it serves until it is gone");
    eventually(async || a.state.open.load(SeqCst) == 0).await;
    a.state.draining.store(false, SeqCst);
    site.until("a", "healthy").await;
}

#[tokio::test]
async fn connection_close_response_marks_the_backend_as_draining() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::with(&[&a, &b], "  health: { interval_ms: 3600000 }\n").await;
    let (status, who) = site.post("/last", "").await;
    assert_eq!((status, who.as_str()), (200, "a"));
    for _ in 0..4 {
        assert_eq!(site.post("/x", "").await.1, "b POST /x 0");
    }
}

#[tokio::test]
async fn response_without_a_backend_has_retry_after() {
    let site = Site::new(&[]).await;
    let response = site.open(Request::post("/v1/generate"), "{}").await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "2");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (body["error"]["type"].as_str(), body["error"]["code"].as_str()),
        (Some("server_error"), Some("no_backend"))
    );
    assert!(body["error"]["message"].is_string() && body["error"]["hint"].is_string());
}

#[tokio::test]
async fn unhealthy_backend_gets_no_requests_until_it_is_healthy() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    a.state.sick.store(true, SeqCst);
    site.until("a", "unhealthy").await;
    for _ in 0..6 {
        site.get("/x").await;
    }
    assert_eq!((a.requests(), b.requests()), (0, 6));
    a.state.sick.store(false, SeqCst);
    site.until("a", "healthy").await;
    for _ in 0..6 {
        site.get("/x").await;
    }
    assert_eq!(a.requests(), 3);
}

#[tokio::test]
async fn truncated_backend_response_is_reported_as_truncated() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let response = site.open(Request::get("/lie"), "").await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err(), "a cut answer looked whole");
    let (_, status) = site.admin("GET", "/status", "").await;
    assert_eq!(status["backends"][0]["failures"], 1);
    assert_eq!(status["backends"][0]["in_flight"], 0);
    assert_eq!(site.get("/x").await.0, 200);
}

#[tokio::test]
async fn server_sent_events_are_forwarded_one_by_one() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let mut body = site.open(Request::post("/events"), "{}").await.into_body();
    for at in 0..3 {
        // The next event is not written before this one has arrived, so a buffer would wait for ever.
        a.state.events.add(1);
        let frame = tokio::time::timeout(SOON, body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {at}\n\n"));
    }
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn backend_killed_during_a_response_breaks_only_that_response() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    let response = site.open(Request::post("/events"), "{}").await;
    let (victim, other) = if a.requests() == 1 { (a, b) } else { (b, a) };
    let mut body = response.into_body();
    victim.state.events.add(1);
    body.frame().await.unwrap().unwrap();
    victim.kill().await;
    assert!(body.frame().await.unwrap().is_err());
    for _ in 0..4 {
        assert_eq!(site.post("/x", "hello").await.0, 200);
    }
    assert_eq!(other.requests(), 4);
}

#[tokio::test]
async fn client_disconnect_is_propagated_to_the_backend() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    // Before the answer…
    let mut client = TcpStream::connect(site.address()).await.unwrap();
    client.write_all(b"POST /hold HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    eventually(async || a.state.waiting.load(SeqCst) == 1).await;
    drop(client);
    eventually(async || a.state.left.load(SeqCst) == 1).await;
    // …and in the middle of it.
    let mut body = site.open(Request::post("/events"), "{}").await.into_body();
    a.state.events.add(1);
    body.frame().await.unwrap().unwrap();
    drop(body);
    eventually(async || a.state.left.load(SeqCst) == 2).await;
    eventually(async || site.admin("GET", "/status", "").await.1["backends"][0]["in_flight"] == 0).await;
}

#[tokio::test]
async fn oversized_bodies_are_refused_with_and_without_content_length() {
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], "  max_request_bytes: 1000000\n").await;
    assert_eq!(site.post("/x", &"y".repeat(1_000_000)).await.0, 200);
    let (status, body) = site.post("/x", &"y".repeat(1_000_001)).await;
    assert_eq!((status, body.contains("request_too_large")), (413, true), "{body}");
    assert!(body.contains("at most 1000000 bytes"), "{body}");
    let refused = site.open(Request::post("/x"), &"y".repeat(1_000_001)).await;
    assert_eq!(refused.headers()["x-content-type-options"], "nosniff");
    assert!(!refused.headers().contains_key("strict-transport-security"), "plain HTTP");
    assert_eq!(a.requests(), 1);

    // A liar's chunks are counted.
    let mut client = TcpStream::connect(site.address()).await.unwrap();
    client.write_all(b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let piece = format!("{:x}\r\n{}\r\n", 100_000, "z".repeat(100_000));
    for _ in 0..11 {
        if client.write_all(piece.as_bytes()).await.is_err() {
            break;
        }
    }
    let mut text = vec![0; 12];
    client.read_exact(&mut text).await.unwrap();
    assert_eq!(text, b"HTTP/1.1 413");
}

#[tokio::test]
async fn pages_of_allowed_origins_can_read_errors_of_the_gateway() {
    let site = Site::with(&[], "  cors_origins: [\"https://app.example.com\"]\n").await;
    for (origin, expect) in [("https://app.example.com", true), ("https://evil.example.com", false)] {
        let response = site.open(Request::post("/v1/generate").header("origin", origin), "{}").await;
        assert_eq!(response.status(), 503);
        let allowed = response.headers().get("access-control-allow-origin").is_some_and(|allowed| allowed == origin);
        assert_eq!(allowed, expect, "{origin}");
    }
    let site = Site::new(&[]).await;
    let response = site.open(Request::post("/x").header("origin", "https://app.example.com"), "{}").await;
    assert!(!response.headers().contains_key("access-control-allow-origin"));
}

/// Whether each backend is healthy, has no failure and answers.
async fn serves(site: &Site) {
    let (_, status) = site.admin("GET", "/status", "").await;
    assert_eq!((&status["backends"][0]["failures"], &status["backends"][0]["state"]), (&json!(0), &json!("healthy")));
    assert_eq!(site.post("/x", "hello").await.0, 200);
}

#[tokio::test]
async fn refusal_reaches_a_client_that_sends_everything_before_it_reads() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let mut refused = 0;
    for (path, size, expect) in [
        ("/refuse", 200_000, "HTTP/1.1 401"),
        ("/refuse", 300_000, "HTTP/1.1 401"),
        ("/refuse", 9_000_000, "HTTP/1.1 401"),
        // The gateway's own.
        ("/x", 18_000_000, "HTTP/1.1 413"),
    ] {
        for _ in 0..5 {
            let mut client = TcpStream::connect(site.address()).await.unwrap();
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..size / 100_000 {
                client.write_all(&[b'y'; 100_000]).await.unwrap();
            }
            let mut text = [0; b"HTTP/1.1 401".len()];
            tokio::time::timeout(SOON, client.read_exact(&mut text)).await.unwrap().unwrap();
            assert_eq!(String::from_utf8_lossy(&text), expect, "{path} {size}");
            refused += u64::from(path == "/refuse");
        }
    }
    serves(&site).await;
    let metrics = site.metrics().await;
    assert!(metrics.contains(&format!("textnlp_gateway_requests_total{{status=\"401\"}} {refused}\n")), "{metrics}");
    assert!(!metrics.contains("no_backend"), "{metrics}");
}

#[tokio::test]
async fn refusal_over_http2_leaves_the_connection_intact() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &tls(&path)).await;
    let stream = secure(TcpStream::connect(site.address()).await.unwrap(), &trusted, b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (path, size, expect) in [("/refuse", 300_000, 401), ("/refuse", 9_000_000, 401), ("/x", 18_000_000, 413)] {
        for _ in 0..5 {
            let request = Request::post(format!("https://site.example{path}"));
            let request = request.body(Full::new(Bytes::from(vec![b'y'; size]))).unwrap();
            let response = tokio::time::timeout(SOON, sender.send_request(request)).await.unwrap().unwrap();
            assert_eq!(response.status(), expect, "{path} {size}");
            let body = tokio::time::timeout(SOON, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
            assert!(!body.is_empty());
        }
    }
    let (_, status) = site.admin("GET", "/status", "").await;
    assert_eq!((&status["backends"][0]["failures"], &status["backends"][0]["state"]), (&json!(0), &json!("healthy")));
    let request = Request::post("https://site.example/x").body(Full::new(Bytes::from("hello"))).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn large_bodies_stream_in_both_directions_with_back_pressure() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let (status, body) = site.post("/x", &"y".repeat(9_000_000)).await;
    assert_eq!((status, body.as_str()), (200, "a POST /x 9000000"));

    let mut body = site.open(Request::get("/huge"), "").await.into_body();
    let mut received = 0;
    while received < 64 << 20 {
        received += body.frame().await.unwrap().unwrap().into_data().unwrap().len() as u64;
        let ahead = a.state.sent.load(SeqCst).saturating_sub(received);
        // What the sockets' buffers hold, and a little of ours.
        assert!(ahead < 32 << 20, "{ahead} bytes are somewhere in between");
    }
}

#[tokio::test]
async fn slow_backend_response_times_out() {
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], "  timeout_seconds: 1\n").await;
    let (status, body) = site.post("/hold", "{}").await;
    assert_eq!((status, body.contains("\"timeout\"")), (504, true), "{body}");
    eventually(async || a.state.left.load(SeqCst) == 1).await;
    // A stream that goes on for too long is cut, and the backend told.
    let response = site.open(Request::post("/events"), "{}").await;
    assert!(tokio::time::timeout(SOON, response.into_body().collect()).await.unwrap().is_err());
    eventually(async || a.state.left.load(SeqCst) == 2).await;
}

#[tokio::test]
async fn incomplete_request_header_times_out() {
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], "  header_timeout_seconds: 1\n").await;
    let mut client = TcpStream::connect(site.address()).await.unwrap();
    client.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    let mut text = Vec::new();
    let read = tokio::time::timeout(SOON, client.read_to_end(&mut text)).await;
    assert!(read.is_ok(), "the connection is still open");

    let mut client = TcpStream::connect(site.address()).await.unwrap();
    client.write_all(b"GET /x HTTP/1.1\r\n").await.unwrap();
    let mut refused = false;
    for _ in 0..100 {
        refused |= client.write_all(format!("x-{}: y\r\n", "z".repeat(2000)).as_bytes()).await.is_err();
    }
    text.clear();
    let _ = client.read_to_end(&mut text).await;
    assert!(refused || text.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&text));
    assert_eq!(a.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_that_replaces_every_backend_fails_no_request() {
    let (a, b, c) = (Backend::tcp("a").await, Backend::tcp("b").await, Backend::tcp("c").await);
    let site = Site::new(&[&a]).await;
    let begun = Instant::now();
    let load = async {
        let mut all = 0;
        // Until every generation of backends has had requests while the others came and went.
        while all < 100 || b.requests() < 20 || c.requests() < 20 {
            assert!(begun.elapsed() < Duration::from_secs(60));
            let answers = futures::future::join_all((0..20).map(|_| site.post("/x", "hello"))).await;
            assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
            all += answers.len();
        }
    };
    let changes = async {
        for backends in [&[&a, &b][..], &[&b], &[&c], &[&c, &b]] {
            let asked = a.requests() + b.requests() + c.requests();
            eventually(async || a.requests() + b.requests() + c.requests() > asked).await;
            site.write(backends, "");
            site.gateway.reload().await.unwrap();
        }
    };
    tokio::join!(load, changes);
}

#[tokio::test]
async fn removed_backend_finishes_its_requests() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a]).await;
    let held = async { site.post("/hold", "{}").await };
    let change = async {
        eventually(async || a.state.waiting.load(SeqCst) == 1).await;
        site.write(&[&b], "");
        let (status, reloaded) = site.admin("POST", "/reload", "").await;
        assert_eq!(status, 200, "{reloaded}");
        assert_eq!((reloaded["added"][0].as_str(), reloaded["removed"][0].as_str()), (Some("b"), Some("a")));
        assert!(site.get("/x").await.1.starts_with("b "));
        a.state.go.notify_one();
    };
    let (answer, ()) = tokio::join!(held, change);
    assert_eq!(answer, (200, "a".to_owned()));
}
