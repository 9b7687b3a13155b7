//! A small request on its own connection: health checks, metrics, and messages of site agents and the witness.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use camino::Utf8Path;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::config::SocketAddress;
use super::trust::Trust;

/// Poll interval of a full queue.
const QUEUE_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Status, headers and body, all within `most_time` and `most_bytes`. The error is a sentence.
pub(super) async fn get(
    address: &SocketAddress,
    trust: Option<&Trust>,
    path: &str,
    most_time: Duration,
    most_bytes: usize,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let exchange = async {
        let fail = |error: io::Error| format!("connect: {error}");
        match address {
            SocketAddress::Tcp(address) => {
                secured(TcpStream::connect(address).await.map_err(fail)?, trust, path, most_bytes).await
            }
            SocketAddress::Unix(socket) => {
                secured(connect_unix(socket).await.map_err(fail)?, trust, path, most_bytes).await
            }
        }
    };
    match tokio::time::timeout(most_time, exchange).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer to {path} within {} ms", most_time.as_millis())),
    }
}

/// Connects to a local socket. Waits where its queue is full: the server is busy, not gone.
pub(super) async fn connect_unix(path: &Utf8Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(QUEUE_POLL_INTERVAL).await,
            connected => return connected,
        }
    }
}

/// A health check.
#[derive(Debug)]
pub struct Probe<'a> {
    /// The address for health checks alone, which clients cannot flood.
    pub own: Option<&'a SocketAddress>,
    /// The address that clients use, too.
    pub shared: &'a SocketAddress,
    /// TLS at both.
    pub trust: Option<&'a Trust>,
    /// The path.
    pub path: &'a str,
    /// The longest time, for both addresses together.
    pub most_time: Duration,
    /// The largest body.
    pub most_bytes: usize,
}

impl Probe<'_> {
    /// Status, headers and body; the error is a sentence. Asks at the own address. If that fails before the time is
    /// over, nothing listens there, as while a gateway is replaced or before it has such an address; then the shared
    /// one is asked.
    pub async fn send(&self) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let started = Instant::now();
        let (trust, path) = (self.trust, self.path);
        if let Some(own) = self.own {
            let answer = get(own, trust, path, self.most_time, self.most_bytes).await;
            if answer.is_ok() || started.elapsed() >= self.most_time {
                return answer;
            }
        }
        let left = self.most_time.saturating_sub(started.elapsed());
        get(self.shared, trust, path, left, self.most_bytes).await
    }
}

async fn secured(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    trust: Option<&Trust>,
    path: &str,
    most_bytes: usize,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    match trust {
        Some(trust) => {
            let stream = trust.secure(stream).await.map_err(|error| format!("speak TLS: {error}"))?;
            exchange(stream, looking(path)?, most_bytes).await
        }
        None => exchange(stream, looking(path)?, most_bytes).await,
    }
}

fn looking(path: &str) -> Result<Request<Full<Bytes>>, String> {
    let request = Request::get(path).header(http::header::HOST, "backend").header(http::header::CONNECTION, "close");
    request.body(Full::default()).map_err(|error| error.to_string())
}

/// One request and its whole answer on a connection that ends with it. The error is a sentence.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    most_bytes: usize,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let failed = |error: hyper::Error| super::answer::chain(&error);
    let path = request.uri().path().to_owned();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let answer = async {
        let (head, mut body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(failed)?.into_data() else { continue };
            if all.len() + data.len() > most_bytes {
                return Err(format!("the answer to {path} is larger than {most_bytes} bytes"));
            }
            all.extend_from_slice(&data);
        }
        Ok((head.status, head.headers, all.freeze()))
    };
    // The connection is driven here and ends with the future.
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The peer may close before this side says goodbye: what came before that counts.
        ended = connection => match (answer.await, ended) {
            (Err(_), Err(error)) => Err(failed(error)),
            (answer, _) => answer,
        },
    }
}
