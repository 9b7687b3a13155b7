//! `admin ready`: asks the server of a configuration whether it is ready. For health checks of containers, whose
//! images have no other HTTP client.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Address;

/// Request timeout: container engines check every few seconds.
const LIMIT: Duration = Duration::from_secs(4);

/// Succeeds if `/ready` answers 200.
pub(crate) async fn ask(listen: &Address) -> io::Result<()> {
    let asking = async {
        match listen {
            Address::Unix(path) => exchange(UnixStream::connect(path).await?).await,
            Address::Tcp(address) => exchange(TcpStream::connect(reachable(address)).await?).await,
        }
    };
    let head = tokio::time::timeout(LIMIT, asking).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let line = head.lines().next().unwrap_or_default().to_owned();
    if line.split(' ').nth(1) == Some("200") { Ok(()) } else { Err(io::Error::other(format!("it answered `{line}`"))) }
}

async fn exchange(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> io::Result<String> {
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut head = vec![0; 4096];
    let n = stream.read(&mut head).await?;
    Ok(String::from_utf8_lossy(&head[..n]).into_owned())
}

/// A server that listens on all interfaces is asked on loopback.
fn reachable(address: &str) -> String {
    address
        .strip_prefix("0.0.0.0:")
        .map(|port| format!("127.0.0.1:{port}"))
        .or_else(|| address.strip_prefix("[::]:").map(|port| format!("[::1]:{port}")))
        .unwrap_or_else(|| address.to_owned())
}
