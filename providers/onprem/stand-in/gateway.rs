//! The gateway without TLS: one request per connection, tried on the next replica when one does not answer.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

fn read(path: &Path) -> Value {
    let config: Value = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    config["gateway"].clone()
}

pub(crate) async fn serve(path: &Path) {
    let config = read(path);
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let mut reload = signal(SignalKind::hangup()).unwrap();
    let listener = TcpListener::bind(config["listen"].as_str().unwrap()).await.unwrap();
    let _metrics = TcpListener::bind(config["metrics_listen"].as_str().unwrap()).await.unwrap();
    let admin = UnixListener::bind(config["admin_listen"].as_str().unwrap().strip_prefix("unix:").unwrap()).unwrap();
    let shared = Arc::new(Mutex::new(config));
    let mut turn = 0usize;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = reload.recv() => {
                *shared.lock().unwrap() = read(path);
                println!("reloaded");
            }
            accepted = admin.accept() => {
                let (mut stream, _) = accepted.unwrap();
                tokio::spawn(async move {
                    let mut head = [0u8; 1024];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").await;
                });
            }
            accepted = listener.accept() => {
                let (mut client, _) = accepted.unwrap();
                let backends = shared.lock().unwrap()["backends"].clone();
                turn += 1;
                tokio::spawn(async move {
                    let mut head = vec![0u8; 4096];
                    let Ok(n) = client.read(&mut head).await else { return };
                    let reply = forward(&head[..n], &backends, turn).await;
                    let _ = client.write_all(&reply).await;
                });
            }
        }
    }
}

async fn forward(head: &[u8], backends: &Value, turn: usize) -> Vec<u8> {
    let backends = backends.as_array().unwrap();
    for attempt in 0..backends.len() * 3 {
        let backend = &backends[(turn + attempt) % backends.len()];
        let socket = backend["listen"].as_str().unwrap().strip_prefix("unix:").unwrap();
        if let Ok(mut stream) = UnixStream::connect(socket).await
            && stream.write_all(head).await.is_ok()
        {
            let mut reply = Vec::new();
            if stream.read_to_end(&mut reply).await.is_ok() && !reply.is_empty() {
                return reply;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec()
}
