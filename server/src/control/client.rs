//! One small JSON request over a socket, on a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Address;
use crate::gateway;

/// Snapshots of control data are the largest; nothing of ours is near this.
pub(super) const MOST_BODY: usize = 256 << 20;

/// Posts a value and reads the answer's. The error is a sentence.
pub(crate) async fn post(
    address: &Address,
    path: &str,
    body: &Value,
    within: Duration,
) -> Result<(StatusCode, Value), String> {
    let bytes = serde_json::to_vec(body).map_err(|error| error.to_string())?;
    ask(address, Request::post(path), bytes.into(), within).await
}

/// The same without a body.
pub(crate) async fn get(address: &Address, path: &str, within: Duration) -> Result<(StatusCode, Value), String> {
    ask(address, Request::get(path), Bytes::new(), within).await
}

async fn ask(
    address: &Address,
    request: http::request::Builder,
    body: Bytes,
    within: Duration,
) -> Result<(StatusCode, Value), String> {
    let request = request
        .header(header::HOST, "control")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let road = async {
        let fail = |error: std::io::Error| format!("connect to {address}: {error}");
        match address {
            Address::Tcp(to) => exchange(TcpStream::connect(to).await.map_err(fail)?, request).await,
            Address::Unix(socket) => exchange(UnixStream::connect(socket).await.map_err(fail)?, request).await,
        }
    };
    match tokio::time::timeout(within, road).await {
        Ok(answered) => answered,
        Err(_) => Err(format!("no answer from {address} within {} ms", within.as_millis())),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Value), String> {
    let (status, _, body) = gateway::exchange(stream, request, MOST_BODY).await?;
    let value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(|e| e.to_string())? };
    Ok((status, value))
}
