//! One small JSON request over a socket, on a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

use textnlp_gateway as gateway;
use textnlp_process::Address;

/// Maximum body size. Snapshots of control data are the largest and are far smaller.
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

/// The same for an answer that is not JSON, of at most `most` bytes.
pub(super) async fn bytes(
    address: &Address,
    path: &str,
    most: usize,
    within: Duration,
) -> Result<(StatusCode, Bytes), String> {
    exchange(address, Request::get(path), Bytes::new(), most, within).await
}

async fn ask(
    address: &Address,
    request: http::request::Builder,
    body: Bytes,
    within: Duration,
) -> Result<(StatusCode, Value), String> {
    let (status, body) = exchange(address, request, body, MOST_BODY, within).await?;
    let value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(|e| e.to_string())? };
    Ok((status, value))
}

async fn exchange(
    address: &Address,
    request: http::request::Builder,
    body: Bytes,
    most: usize,
    within: Duration,
) -> Result<(StatusCode, Bytes), String> {
    let request = request
        .header(header::HOST, "control")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let fail = |error: std::io::Error| format!("connect to {address}: {error}");
        match address {
            Address::Tcp(to) => gateway::exchange(TcpStream::connect(to).await.map_err(fail)?, request, most).await,
            Address::Unix(path) => {
                gateway::exchange(UnixStream::connect(path).await.map_err(fail)?, request, most).await
            }
        }
    };
    match tokio::time::timeout(within, exchange).await {
        Ok(answered) => answered.map(|(status, _, body)| (status, body)),
        Err(_) => Err(format!("no answer from {address} within {} ms", within.as_millis())),
    }
}
