//! Sockets and connections: bounded in number, TLS or plain, HTTP/1.1 and HTTP/2, drained on the way out.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::config::Address;
use super::forward::{self, Client};
use super::handover::{Inherited, Peer};
use super::quiet::{Activity, Answering};
use super::stall::Guarded;
use super::{Error, Gateway, answer};

/// The longest request head: as many of them as there may be connections have to fit into a gateway's memory.
const MOST_HEAD: usize = 32 << 10;
/// From the first byte to the end of the TLS handshake.
const SHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection at once.
const MOST_STREAMS: u32 = 128;
/// Between two words about having no place left.
const FULL_AGAIN: Duration = Duration::from_secs(60);
/// Connections to metrics and administration at once.
const MOST_PLAIN: usize = 64;

/// An open socket.
pub(super) struct Listener {
    socket: Socket,
    address: Address,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either kind.
enum Stream {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

impl Listener {
    /// Opens the socket, or takes over that of a predecessor. `what` says in errors what it is for.
    pub(super) async fn bind(
        what: &'static str,
        address: &Address,
        inherited: &mut Inherited,
    ) -> Result<Listener, Error> {
        let fail = |source: io::Error| Error::Listen {
            what,
            address: address.to_string(),
            hint: hint(address, &source),
            source,
        };
        match address {
            Address::Tcp(wanted) => {
                let socket = match inherited.socket(*wanted) {
                    Some(socket) => TcpListener::from_std(socket),
                    // The kernel's queue is 1024 long, in which clients wait while a gateway makes room for the next.
                    None => TcpListener::bind(wanted).await,
                };
                let socket = socket.map_err(fail)?;
                let address = Address::Tcp(socket.local_addr().map_err(fail)?);
                Ok(Listener { socket: Socket::Tcp(socket), address })
            }
            Address::Unix(path) => {
                let socket = crate::http::bind_unix(path).await.map_err(fail)?;
                Ok(Listener { socket: Socket::Unix(socket), address: address.clone() })
            }
        }
    }

    /// Where it listens, with the port that was got.
    pub(super) fn address(&self) -> Address {
        self.address.clone()
    }

    /// The socket once more, if others may have it: one of TCP.
    pub(super) fn shared(&self) -> io::Result<Option<(SocketAddr, OwnedFd)>> {
        match (&self.socket, &self.address) {
            (Socket::Tcp(socket), Address::Tcp(address)) => Ok(Some((*address, socket.as_fd().try_clone_to_owned()?))),
            _ => Ok(None),
        }
    }

    /// Serves clients until the gateway drains.
    pub(super) async fn serve_clients(self, gateway: Arc<Gateway>) {
        let most = gateway.live().config.max_connections;
        self.accept(gateway, most, |gateway, stream| async move {
            let (ip, stream): (_, Box<dyn Both>) = match stream {
                Stream::Tcp(stream, ip) => {
                    // Tokens are small and must not wait for each other.
                    let _ = stream.set_nodelay(true);
                    if gateway.certificate.is_some() {
                        return secure(gateway, stream, ip).await;
                    }
                    (Some(ip), Box::new(stream))
                }
                Stream::Unix(stream) => (None, Box::new(stream)),
            };
            http1(gateway, Client { ip, tls: false }, stream).await;
        })
        .await;
    }

    /// Serves metrics or administration: small answers without TLS.
    pub(super) async fn serve_plain<F>(self, gateway: Arc<Gateway>, answer: fn(Arc<Gateway>, Request<Incoming>) -> F)
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        self.accept(gateway, MOST_PLAIN, move |gateway, stream| async move {
            let (peer, stream): (_, Box<dyn Both>) = match stream {
                Stream::Tcp(stream, _) => (None, Box::new(stream)),
                Stream::Unix(stream) => (Peer::of(&stream).ok(), Box::new(stream)),
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

    async fn accept<F>(self, gateway: Arc<Gateway>, most: usize, serve: impl Fn(Arc<Gateway>, Stream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(most));
        let mut told: Option<Instant> = None;
        loop {
            if places.available_permits() == 0 && told.is_none_or(|told| told.elapsed() > FULL_AGAIN) {
                told = Some(Instant::now());
                tracing::warn!(address = %self.address, most, "every connection is taken: whoever comes waits until one ends");
            }
            // A place first: who finds none waits in the system's queue, not in our memory.
            let accepted = tokio::select! {
                accepted = self.next(&places) => accepted,
                () = gateway.stops.drain.cancelled() => break,
            };
            match accepted {
                Ok((stream, place)) => {
                    let served = serve(gateway.clone(), stream);
                    let count = gateway.metrics.connection();
                    gateway.stops.tasks.spawn(async move {
                        served.await;
                        drop((place, count));
                    });
                }
                Err(error) => {
                    // Out of file numbers, mostly: others must end first, and asking again at once would only burn.
                    tracing::warn!(address = %self.address, %error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(self.socket);
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }

    async fn next(&self, places: &Arc<Semaphore>) -> io::Result<(Stream, OwnedSemaphorePermit)> {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let stream = match &self.socket {
            Socket::Tcp(socket) => socket.accept().await.map(|(stream, peer)| Stream::Tcp(stream, peer.ip()))?,
            Socket::Unix(socket) => socket.accept().await.map(|(stream, _)| Stream::Unix(stream))?,
        };
        Ok((stream, place))
    }
}

trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Both for S {}

fn hint(address: &Address, error: &io::Error) -> String {
    match (address, error.kind()) {
        (Address::Tcp(address), io::ErrorKind::AddrInUse) => {
            let port = address.port();
            format!(
                "another program has port {port}: see `ss -ltnp 'sport = :{port}'`, stop it, or configure another port"
            )
        }
        (Address::Tcp(address), io::ErrorKind::PermissionDenied) => {
            format!(
                "port {} is for root alone (below `sysctl net.ipv4.ip_unprivileged_port_start`): configure a higher one",
                address.port()
            )
        }
        (Address::Tcp(address), io::ErrorKind::AddrNotAvailable) => {
            format!("this machine has no address {}: see `ip addr`, or configure 0.0.0.0", address.ip())
        }
        (Address::Unix(path), io::ErrorKind::AddrInUse) => format!("another process answers on {path}: stop it"),
        (Address::Unix(path), _) => format!("check that the folder of {path} is there and may be written"),
        _ => "configure another address".to_owned(),
    }
}

async fn secure(gateway: Arc<Gateway>, stream: TcpStream, ip: IpAddr) {
    let Some(certificate) = gateway.certificate.clone() else { return };
    let begun = AtomicBool::new(false);
    let shaken = timeout(SHAKE_WITHIN, async {
        // A TLS handshake begins with 22; a letter is the method of plain HTTP.
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
        // Scanners and health checks of others connect and leave: counted, not logged above debug.
        Ok(Err(error)) => {
            gateway.metrics.handshake_failed();
            tracing::debug!(%ip, %error, "TLS handshake");
        }
        Err(_) => gateway.metrics.handshake_failed(),
    }
}

/// Tells a client that it should have used TLS. What it sent is read first: closing over unread bytes would reset the
/// connection and take our answer with it.
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

async fn http1(gateway: Arc<Gateway>, client: Client, stream: Box<dyn Both>) {
    let activity = Arc::new(Activity::default());
    let service = {
        let (gateway, activity) = (gateway.clone(), activity.clone());
        service_fn(move |request| {
            let (gateway, asked) = (gateway.clone(), activity.asked());
            async move {
                let mut answer = forward::handle(gateway.clone(), client, request).await?;
                // The client closes: it alone knows that it has nothing more to say here.
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

async fn http2(gateway: Arc<Gateway>, client: Client, stream: Box<dyn Both>) {
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
        // Clients that have gone without a word are found by pings.
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(TokioIo::new(Guarded::new(stream)), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = &mut connection => return note(ended),
        // HTTP/2 has a word for it: what is on its way is still answered, and the client opens another connection.
        () = gateway.stops.drain.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = connection => note(ended),
        () = gateway.stops.leave.cancelled() => {}
        () = nothing_comes(&gateway, || activity.has_begun()) => {}
    }
}

/// A connection that is open and has never asked for anything is not worth a whole drain's time.
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
