//! Sockets and connections: limited in number, TLS or plain, HTTP/1.1 and HTTP/2, drained at shutdown.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use textnlp_net::listen::{self, BoxStream, Limits, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::config::SocketAddress;
use super::forward::{self, Client};
use super::handover::{Inherited, Peer};
use super::idle::{Activity, Answering};
use super::stall::Guarded;
use super::{Error, Gateway, answer};

/// The longest request head: as many of them as there may be connections have to fit into a gateway's memory.
const MOST_HEAD: usize = 32 << 10;
/// From the first byte to the end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection at once.
const MOST_STREAMS: u32 = 128;
/// Connections to metrics and administration at once.
const MOST_PLAIN: usize = 64;

/// An open socket.
pub(super) struct Listener {
    socket: listen::Listener,
    address: SocketAddress,
}

impl Listener {
    /// Opens the socket, or takes over a predecessor's. `what` names its purpose in errors.
    pub(super) async fn bind(
        what: &'static str,
        address: &SocketAddress,
        inherited: &mut Inherited,
    ) -> Result<Listener, Error> {
        let fail = |source: io::Error| Error::Listen {
            what,
            address: address.to_string(),
            hint: hint(address, &source),
            source,
        };
        match address {
            SocketAddress::Tcp(wanted) => {
                let socket = match inherited.socket(*wanted) {
                    Some(socket) => TcpListener::from_std(socket),
                    // The kernel's queue is 1024 long, in which clients wait while a gateway makes room for the next.
                    None => TcpListener::bind(wanted).await,
                };
                let socket = socket.map_err(fail)?;
                let address = SocketAddress::Tcp(socket.local_addr().map_err(fail)?);
                Ok(Listener { socket: listen::Listener::Tcp(socket), address })
            }
            SocketAddress::Unix(path) => {
                let socket = listen::Listener::unix(path).await.map_err(fail)?;
                Ok(Listener { socket, address: address.clone() })
            }
        }
    }

    /// The listening address, with the assigned port.
    pub(super) fn address(&self) -> SocketAddress {
        self.address.clone()
    }

    /// A duplicate of the socket, if it can be passed on (TCP only).
    pub(super) fn shared(&self) -> io::Result<Option<(SocketAddr, OwnedFd)>> {
        match (&self.socket, &self.address) {
            (listen::Listener::Tcp(socket), SocketAddress::Tcp(address)) => {
                Ok(Some((*address, socket.as_fd().try_clone_to_owned()?)))
            }
            _ => Ok(None),
        }
    }

    /// Serves clients until the gateway drains.
    pub(super) async fn serve_clients(self, gateway: Arc<Gateway>) {
        let most = gateway.live().config.max_connections;
        self.accept(gateway, most, |gateway, stream| async move {
            let ip = match stream {
                Stream::Tcp(stream, peer) if gateway.certificate.is_some() => {
                    return secure(gateway, stream, peer.ip()).await;
                }
                Stream::Tcp(_, peer) => Some(peer.ip()),
                Stream::Unix(_) => None,
            };
            http1(gateway, Client { ip, tls: false }, Box::new(stream)).await;
        })
        .await;
    }

    /// Serves metrics or administration: small answers without TLS.
    pub(super) async fn serve_plain<F>(self, gateway: Arc<Gateway>, answer: fn(Arc<Gateway>, Request<Incoming>) -> F)
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        self.accept(gateway, MOST_PLAIN, move |gateway, stream| async move {
            let peer = match &stream {
                Stream::Tcp(..) => None,
                Stream::Unix(stream) => Peer::of(stream).ok(),
            };
            let service = {
                let gateway = gateway.clone();
                service_fn(move |mut request: Request<Incoming>| {
                    if let Some(peer) = &peer {
                        request.extensions_mut().insert(peer.clone());
                    }
                    let answer = answer(gateway.clone(), request);
                    async move { Ok::<_, Infallible>(answer.await) }
                })
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .max_buf_size(MOST_HEAD)
                .serve_connection(TokioIo::new(Guarded::new(stream)), service)
                .with_upgrades();
            let mut connection = pin!(connection);
            tokio::select! {
                _ = &mut connection => return,
                () = gateway.stops.drain.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                _ = connection => {}
                () = gateway.stops.leave.cancelled() => {}
            }
        })
        .await;
    }

    async fn accept<F>(self, gateway: Arc<Gateway>, max_connections: usize, serve: impl Fn(Arc<Gateway>, Stream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let name = self.address.to_string();
        let limits = Limits { name: &name, max_connections };
        let handle = |stream| {
            let served = serve(gateway.clone(), stream);
            let count = gateway.metrics.connection();
            async move {
                served.await;
                drop(count);
            }
        };
        self.socket.serve(limits, &gateway.stops.drain, &gateway.stops.tasks, handle).await;
    }
}

fn hint(address: &SocketAddress, error: &io::Error) -> String {
    match (address, error.kind()) {
        (SocketAddress::Tcp(address), io::ErrorKind::AddrInUse) => {
            let port = address.port();
            format!(
                "another program uses port {port}: see `ss -ltnp 'sport = :{port}'`, stop it, or configure another port"
            )
        }
        (SocketAddress::Tcp(address), io::ErrorKind::PermissionDenied) => {
            format!(
                "port {} requires root (below `sysctl net.ipv4.ip_unprivileged_port_start`): configure a higher one",
                address.port()
            )
        }
        (SocketAddress::Tcp(address), io::ErrorKind::AddrNotAvailable) => {
            format!("this machine has no address {}: see `ip addr`, or configure 0.0.0.0", address.ip())
        }
        (SocketAddress::Unix(path), io::ErrorKind::AddrInUse) => format!("another process answers on {path}: stop it"),
        (SocketAddress::Unix(path), _) => format!("check that the folder of {path} exists and is writable"),
        _ => "configure another address".to_owned(),
    }
}

async fn secure(gateway: Arc<Gateway>, stream: TcpStream, ip: IpAddr) {
    let Some(certificate) = gateway.certificate.clone() else { return };
    let begun = AtomicBool::new(false);
    let shaken = timeout(HANDSHAKE_TIMEOUT, async {
        // The first byte of a TLS handshake is 22; a letter is a plain HTTP method.
        let mut first = [0u8];
        let came = stream.peek(&mut first).await? == 1;
        begun.store(true, Relaxed);
        if came && first[0].is_ascii_uppercase() {
            return Ok((Err(stream), false));
        }
        let shaken = certificate.acceptor().accept(stream).await?;
        let http2 = shaken.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok::<_, io::Error>((Ok(shaken), http2))
    });
    let shaken = tokio::select! {
        shaken = shaken => shaken,
        () = gateway.stops.leave.cancelled() => return,
        () = async { gateway.stops.drain.cancelled().await; nothing_comes(&gateway, || begun.load(Relaxed)).await } => return,
    };
    match shaken {
        Ok(Ok((Ok(stream), http2))) => {
            let client = Client { ip: Some(ip), tls: true };
            let stream = Box::new(stream);
            if http2 { self::http2(gateway, client, stream).await } else { http1(gateway, client, stream).await }
        }
        Ok(Ok((Err(stream), _))) => plain_on_tls(stream).await,
        // Port scanners and TCP health checks connect and close: counted, logged only at debug level.
        Ok(Err(error)) => {
            gateway.metrics.handshake_failed();
            tracing::debug!(%ip, %error, "TLS handshake");
        }
        Err(_) => gateway.metrics.handshake_failed(),
    }
}

/// Tells a client to use TLS. Its request is read first: closing with unread bytes would reset the connection and
/// discard our response.
async fn plain_on_tls(mut stream: TcpStream) {
    let polite = async {
        let mut buffer = vec![0u8; 16 << 10];
        let _ = stream.read(&mut buffer).await;
        stream.write_all(&answer::use_https()).await?;
        stream.shutdown().await?;
        while stream.read(&mut buffer).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(Duration::from_secs(2), polite).await;
}

async fn http1(gateway: Arc<Gateway>, client: Client, stream: BoxStream) {
    let activity = Arc::new(Activity::default());
    let service = {
        let (gateway, activity) = (gateway.clone(), activity.clone());
        service_fn(move |request| {
            let (gateway, asked) = (gateway.clone(), activity.asked());
            async move {
                let mut answer = forward::handle(gateway.clone(), client, request).await?;
                // The client must close: only it knows that no request is in transit.
                if gateway.stops.drain.is_cancelled() {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| Answering::new(body, asked)))
            }
        })
    };
    let within = Duration::from_secs(gateway.live().config.header_timeout_seconds);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(within)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(Guarded::new(stream)), service);
    let mut connection = pin!(connection);
    let quiet = async {
        gateway.stops.drain.cancelled().await;
        activity.is_quiet_for(gateway.stops.lame_duck()).await;
    };
    tokio::select! {
        ended = &mut connection => return note(ended),
        () = gateway.stops.leave.cancelled() => return,
        () = quiet => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = connection => note(ended),
        () = gateway.stops.leave.cancelled() => {}
        () = nothing_comes(&gateway, || activity.has_begun()) => {}
    }
}

async fn http2(gateway: Arc<Gateway>, client: Client, stream: BoxStream) {
    let activity = Arc::new(Activity::default());
    let service = {
        let (gateway, activity) = (gateway.clone(), activity.clone());
        service_fn(move |request| {
            let (gateway, asked) = (gateway.clone(), activity.asked());
            async move {
                let answer = forward::handle(gateway, client, request).await?;
                Ok::<_, Infallible>(answer.map(|body| Answering::new(body, asked)))
            }
        })
    };
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(MOST_HEAD as u32)
        // Pings detect clients that disappeared.
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(TokioIo::new(Guarded::new(stream)), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = &mut connection => return note(ended),
        // HTTP/2 has GOAWAY: requests in flight are answered, and the client opens another connection.
        () = gateway.stops.drain.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = connection => note(ended),
        () = gateway.stops.leave.cancelled() => {}
        () = nothing_comes(&gateway, || activity.has_begun()) => {}
    }
}

/// A connection that never sent a request does not get the whole drain time.
async fn nothing_comes(gateway: &Gateway, has_begun: impl Fn() -> bool) {
    tokio::time::sleep(gateway.stops.lame_duck().max(Duration::from_millis(500))).await;
    if has_begun() {
        std::future::pending::<()>().await;
    }
}

fn note(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(error = %answer::chain(&error), "a client's connection");
    }
}
