//! Container probes: HTTP with and without TLS, TCP and commands.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::container_port;
use super::volumes::Places;
use crate::tls;

trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Both for S {}

/// Whether a probe succeeds within its timeout.
pub(super) async fn ask(probe: &Value, pod: &Value, places: &Places, within: Duration) -> bool {
    let asked = async {
        if let Some(http) = probe.get("httpGet") {
            let port = container_port(pod, &http["port"], 0)?;
            let stream = TcpStream::connect((places.address(), port)).await.ok()?;
            let mut stream: Box<dyn Both> = match http["scheme"] == "HTTPS" {
                true => Box::new(tls::connect_to_anybody(stream).await?),
                false => Box::new(stream),
            };
            let path = http["path"].as_str().unwrap_or("/");
            let host = places.address();
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: kube-probe/stand-in\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.ok()?;
            let status: u16 = std::str::from_utf8(&head[9..]).ok()?.parse().ok()?;
            return (200..400).contains(&status).then_some(());
        }
        if let Some(tcp) = probe.get("tcpSocket") {
            let port = container_port(pod, &tcp["port"], 0)?;
            return TcpStream::connect((places.address(), port)).await.ok().map(drop);
        }
        let words: Vec<&str> = probe["exec"]["command"].as_array()?.iter().filter_map(Value::as_str).collect();
        let (program, rest) = words.split_first()?;
        let mut command = tokio::process::Command::new(program);
        let said = command.args(rest).current_dir(places.folder()).kill_on_drop(true).output().await.ok()?;
        said.status.success().then_some(())
    };
    tokio::time::timeout(within, asked).await.ok().flatten().is_some()
}
