//! Which backend gets a prompt.

use std::sync::atomic::Ordering::SeqCst;

use hyper::Request;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::backend::Backend;
use crate::site::{Site, eventually};

const CHAT: &str = "/v1/chat/completions";

/// A conversation of this name, at its n-th question.
fn chat(name: &str, questions: usize) -> String {
    let message = |at: usize| {
        let role = if at.is_multiple_of(2) { "user" } else { "assistant" };
        json!({ "role": role, "content": format!("{name} {at}") })
    };
    let messages: Vec<_> = (0..2 * questions - 1).map(message).collect();
    json!({ "model": "m", "messages": messages }).to_string()
}

/// Sends it, and says which backend has answered.
async fn ask(site: &Site, body: &str) -> String {
    who(site, Request::post(CHAT).header("authorization", "Bearer k"), body).await
}

async fn who(site: &Site, request: http::request::Builder, body: &str) -> String {
    let (status, answer) = site.send(request, body).await;
    assert_eq!(status, 200, "{answer}");
    answer.split_once(' ').unwrap().0.to_owned()
}

/// The choices that the gateway counts: prefix, load, new.
async fn choices(site: &Site) -> [u64; 3] {
    let metrics = site.metrics().await;
    ["prefix", "load", "new"].map(|reason| {
        let name = format!("textnlp_gateway_choices_total{{reason=\"{reason}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
    })
}

#[tokio::test]
async fn next_message_reaches_the_backend_of_its_conversation() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    let (first, second) = (ask(&site, &chat("first", 1)).await, ask(&site, &chat("second", 1)).await);
    assert_ne!(first, second, "new conversations are balanced");
    for questions in 2..6 {
        assert_eq!(ask(&site, &chat("second", questions)).await, second);
        assert_eq!(ask(&site, &chat("first", questions)).await, first);
        assert_eq!(ask(&site, &chat("first", questions)).await, first);
    }
    assert_eq!(choices(&site).await, [12, 0, 2]);
}

#[tokio::test]
async fn text_of_another_tenant_is_balanced() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    let of = |name: &'static str, value: &'static str| Request::post(CHAT).header(name, value);
    for (name, value) in [("authorization", "Bearer other"), ("x-tenant-id", "other"), ("x-own-key", "tnlp_other")] {
        let holder = ask(&site, &chat(value, 1)).await;
        // It is the other's turn, who does not have it.
        assert_ne!(who(&site, of(name, value), &chat(value, 2)).await, holder, "{name}");
        assert_eq!(ask(&site, &chat(value, 2)).await, holder, "{name}");
        // The turns begin with the first again.
        ask(&site, &chat(value, 2)).await;
    }
    assert_eq!(choices(&site).await, [6, 0, 6]);
}

#[tokio::test]
async fn conversation_of_a_killed_backend_goes_on_at_another() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    assert_eq!(ask(&site, &chat("x", 1)).await, "a");
    let listen = a.listen.clone();
    a.kill().await;
    site.until("a", "unhealthy").await;
    assert_eq!(ask(&site, &chat("x", 2)).await, "b");
    let _again = Backend::tcp_at("a", &listen).await;
    site.until("a", "healthy").await;
    for questions in 3..6 {
        assert_eq!(ask(&site, &chat("x", questions)).await, "b");
    }
    assert_eq!(choices(&site).await, [3, 0, 2]);
}

#[tokio::test]
async fn conversation_leaves_a_draining_backend() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    assert_eq!(ask(&site, &chat("x", 1)).await, "a");
    a.state.draining.store(true, SeqCst);
    site.until("a", "draining").await;
    assert_eq!(ask(&site, &chat("x", 2)).await, "b");
}

#[tokio::test]
async fn busy_holder_leaves_prompts_to_the_least_loaded() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    assert_eq!(ask(&site, &chat("x", 1)).await, "a");
    let body = chat("x", 2);
    let mut held = Vec::new();
    for count in 1..=4 {
        let mut client = TcpStream::connect(site.address()).await.unwrap();
        let head = format!("POST {CHAT}?hold HTTP/1.1\r\nhost: site.example\r\nauthorization: Bearer k\r\n");
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        client.write_all(request.as_bytes()).await.unwrap();
        eventually(async || a.state.waiting.load(SeqCst) == count).await;
        held.push(client);
    }
    for questions in 2..5 {
        assert_eq!(ask(&site, &chat("x", questions)).await, "b");
    }
    assert_eq!(ask(&site, &chat("y", 1)).await, "b", "a new one goes to the least loaded");
    // The second time b has it, too.
    assert_eq!(choices(&site).await, [6, 1, 2]);
}

#[tokio::test]
async fn prompt_that_is_not_taken_in_is_balanced() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    let long = json!({ "prompt": "x".repeat(300 << 10) }).to_string();
    for _ in 0..4 {
        assert_eq!(site.post("/v1/completions", &long).await.0, 200);
    }
    assert_eq!((a.requests(), b.requests()), (2, 2));
    assert_eq!(choices(&site).await, [0, 0, 0]);
}

#[tokio::test]
async fn refused_prompt_is_not_followed() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    a.state.busy.store(true, SeqCst);
    let request = || Request::post(CHAT).header("authorization", "Bearer k");
    assert_eq!(site.send(request(), &chat("x", 1)).await.0, 429);
    a.state.busy.store(false, SeqCst);
    assert_eq!(ask(&site, &chat("x", 2)).await, "b");
    assert_eq!(choices(&site).await, [0, 0, 2]);
}

#[tokio::test]
async fn conversations_survive_a_reload() {
    let (a, b, c) = (Backend::tcp("a").await, Backend::tcp("b").await, Backend::tcp("c").await);
    let site = Site::new(&[&a, &b]).await;
    let (first, second) = (ask(&site, &chat("first", 1)).await, ask(&site, &chat("second", 1)).await);
    site.write(&[&c, &a, &b], "");
    assert_eq!(site.admin("POST", "/reload", "").await.0, 200);
    for questions in 2..5 {
        assert_eq!(ask(&site, &chat("first", questions)).await, first);
        assert_eq!(ask(&site, &chat("second", questions)).await, second);
    }
    assert_eq!(c.requests(), 0);
    // With one backend there is nothing to choose.
    site.write(&[&c], "");
    assert_eq!(site.admin("POST", "/reload", "").await.0, 200);
    assert_eq!(ask(&site, &chat("first", 5)).await, "c");
    assert_eq!(choices(&site).await, [6, 0, 2]);
}
