//! What stands between sites, as far as this provider sees it: a socket that says that it runs.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) async fn serve(config: &Value) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let path = config["listen"].as_str().unwrap().strip_prefix("unix:").unwrap();
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            accepted = listener.accept() => {
                let (mut stream, _) = accepted.unwrap();
                tokio::spawn(async move {
                    let mut head = [0u8; 1024];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").await;
                });
            }
        }
    }
}
