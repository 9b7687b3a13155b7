//! A replica: answers on its socket, drains on SIGTERM.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

pub(crate) async fn serve(config: &Value) {
    let behaviour = config["api"]["stand_in"].clone();
    if behaviour["crash"] == true {
        eprintln!("it was told to crash");
        std::process::exit(3);
    }
    let socket = config["api"]["listen"].as_str().unwrap().strip_prefix("unix:").unwrap();
    let wait = Duration::from_millis(behaviour["answer_after_ms"].as_u64().unwrap_or(0));
    let ready_at =
        tokio::time::Instant::now() + Duration::from_millis(behaviour["ready_after_ms"].as_u64().unwrap_or(0));
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let colour = behaviour["colour"].as_str().unwrap_or("none").to_owned();
    let environment = std::env::vars().map(|(name, _)| name).collect::<Vec<_>>().join(",");
    println!("environment {environment}");
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                let ready = tokio::time::Instant::now() >= ready_at;
                answers.spawn(answer(stream, ready, wait, colour.clone()));
            }
            Some(_) = answers.join_next(), if !answers.is_empty() => {}
        }
    }
    // New connections are refused from here on; the old ones get their answers.
    std::fs::remove_file(socket).unwrap();
    drop(listener);
    while answers.join_next().await.is_some() {}
    println!("drained");
}

async fn answer(mut stream: UnixStream, ready: bool, wait: Duration, colour: String) {
    let mut head = [0u8; 4096];
    let Ok(n) = stream.read(&mut head).await else { return };
    let text = String::from_utf8_lossy(&head[..n]);
    let is_probe = text.starts_with("GET /ready ");
    let (status, body) = match (is_probe, ready) {
        (true, true) => ("200 OK", "ready".to_owned()),
        (true, false) => ("503 Service Unavailable", "loading".to_owned()),
        _ => {
            tokio::time::sleep(wait).await;
            ("200 OK", format!("pid {} {colour}", std::process::id()))
        }
    };
    let reply = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let _ = stream.write_all(reply.as_bytes()).await;
}
