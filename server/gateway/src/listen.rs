//! Sockets and connections: limited in number, TLS or plain, HTTP/1.1 and HTTP/2, drained at shutdown.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
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

use super::admission::{Admission, Bounds};
use super::certificate::{CHALLENGE_PROTOCOL, Certificate};
use super::config::{MOST_CONNECTIONS, SocketAddress};
use super::events::Closing;
use super::forward::{self, Client};
use super::frames::FrameLimit;
use super::handover::{Inherited, Peer};
use super::idle::{Activity, Answering};
use super::inspect::Inspected;
use super::lines::StrictLines;
use super::stall::Guarded;
use super::{Error, Gateway, answer};

/// The longest request head: as many of them as there may be connections have to fit into a gateway's memory.
pub(super) const MOST_HEAD: usize = 32 << 10;
/// From the first byte to the end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request's own timeout ends it before its connection is closed.
const OVERDUE_RESERVE: Duration = Duration::from_secs(2);
/// The most bytes of requests that an HTTP/2 connection sends before they are read: the least that the protocol allows
/// (<https://www.rfc-editor.org/rfc/rfc9113#section-6.9.2>). All connections of a gateway together stay below its memory in a cluster.
pub(super) const UNREAD_BYTES: u32 = 65_535;

/// The most bytes of an answer that an HTTP/2 stream keeps for its client.
const UNSENT_BYTES: usize = 64 << 10;

/// Streams of one HTTP/2 connection at once.
const MOST_STREAMS: u32 = 128;
/// Connections to metrics, administration or health checks at once.
const MOST_SMALL: usize = 64;

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
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let affordable = affordable_connections(open_files);
        let max_connections = gateway.live().config.max_connections;
        if let Some(open_files) = open_files.filter(|_| max_connections > affordable) {
            let needed = 2 * max_connections;
            tracing::warn!(
                max_connections,
                accepted = affordable,
                open_files,
                needed,
                "the limit of open files lowers the limit of connections"
            );
        }
        // Beyond what [`Admission`](super::admission::Admission) admits: it refuses the others without a wait.
        self.accept(gateway, 2 * MOST_CONNECTIONS, move |gateway, stream| async move {
            let live = gateway.live();
            let config = &live.config;
            let tls = gateway.certificate.is_some();
            let ip = match &stream {
                Stream::Tcp(_, peer) => Some(peer.ip()),
                Stream::Unix(_) => None,
            };
            let client = Client { ip, is_proxy: ip.is_some_and(|ip| config.trusts(ip)), tls };
            let bounds = Bounds {
                total: config.max_connections.min(affordable),
                per_address: config.max_connections_per_address,
            };
            let place = match gateway.admission.admit(ip.filter(|_| !client.is_proxy), bounds) {
                Ok(place) => place,
                Err(refused) => return gateway.events.connection_refused(&gateway.metrics, ip, refused),
            };
            drop(live);
            let session = Session { gateway, client, activity: Activity::new(place) };
            match stream {
                Stream::Tcp(stream, peer) if tls => session.secure(stream, peer.ip()).await,
                stream => {
                    let session = Session { client: Client { tls: false, ..client }, ..session };
                    Box::pin(session.http1(Box::new(stream))).await;
                }
            }
        })
        .await;
    }

    /// Serves metrics, administration or health checks: small answers, with TLS if there is a certificate. For one
    /// connection too many, the one that has been idle longest is closed: silent ones keep no health check out.
    pub(super) async fn serve_small<F>(
        self,
        gateway: Arc<Gateway>,
        certificate: Option<Arc<Certificate>>,
        answer: fn(Arc<Gateway>, Request<Incoming>) -> F,
    ) where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let admission = Arc::new(Admission::default());
        self.accept(gateway, 2 * MOST_SMALL, move |gateway, stream| {
            let (certificate, admission) = (certificate.clone(), admission.clone());
            async move {
                let bounds = Bounds { total: MOST_SMALL, per_address: usize::MAX };
                let ip = match &stream {
                    Stream::Tcp(_, peer) => Some(peer.ip()),
                    Stream::Unix(_) => None,
                };
                let Ok(place) = admission.admit(ip, bounds) else { return };
                let place = Arc::new(place);
                let peer = match &stream {
                    Stream::Tcp(..) => None,
                    Stream::Unix(stream) => Peer::of(stream).ok(),
                };
                let stream: BoxStream = match certificate {
                    None => Box::new(stream),
                    Some(certificate) => {
                        let shaken = tokio::select! {
                            shaken = timeout(HANDSHAKE_TIMEOUT, certificate.acceptor().accept(stream)) => shaken,
                            () = place.evicted() => return,
                        };
                        match shaken {
                            // Else the handshake was the answer.
                            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() != Some(CHALLENGE_PROTOCOL) => {
                                Box::new(stream)
                            }
                            _ => return,
                        }
                    }
                };
                let service = {
                    let (gateway, place) = (gateway.clone(), place.clone());
                    service_fn(move |mut request: Request<Incoming>| {
                        if let Some(peer) = &peer {
                            request.extensions_mut().insert(peer.clone());
                        }
                        let (answer, place) = (answer(gateway.clone(), request), place.clone());
                        async move {
                            place.set_idle(false);
                            let answered = answer.await;
                            place.set_idle(true);
                            Ok::<_, Infallible>(answered)
                        }
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
                    () = place.evicted() => return,
                    () = gateway.stops.drain.cancelled() => connection.as_mut().graceful_shutdown(),
                }
                tokio::select! {
                    _ = connection => {}
                    () = gateway.stops.leave.cancelled() => {}
                }
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

/// Connections that leave as many of the files that this process may open for the connections to backends: each may have
/// a request.
fn affordable_connections(open_files: Option<u64>) -> usize {
    open_files.map_or(usize::MAX, |files| usize::try_from(files / 2).unwrap_or(usize::MAX))
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

/// A client's connection.
struct Session {
    gateway: Arc<Gateway>,
    client: Client,
    activity: Arc<Activity>,
}

impl Session {
    async fn secure(self, stream: TcpStream, ip: IpAddr) {
        let Some(certificate) = self.gateway.certificate.clone() else { return };
        let started = AtomicBool::new(false);
        let shaken = timeout(HANDSHAKE_TIMEOUT, async {
            // The first byte of a TLS handshake is 22; a letter is a plain HTTP method.
            let mut first = [0u8];
            let came = stream.peek(&mut first).await? == 1;
            started.store(came, Relaxed);
            if came && first[0].is_ascii_uppercase() {
                return Ok((Some(Err(stream)), false));
            }
            let shaken = self.gateway.handshakes.run(certificate.acceptor().accept(stream)).await?;
            let protocol = shaken.get_ref().1.alpn_protocol();
            if protocol == Some(CHALLENGE_PROTOCOL) {
                // The handshake was the answer: <https://www.rfc-editor.org/rfc/rfc8737#section-3>.
                return Ok((None, false));
            }
            let http2 = protocol == Some(b"h2");
            Ok::<_, io::Error>((Some(Ok(shaken)), http2))
        });
        let stops = &self.gateway.stops;
        let shaken = tokio::select! {
            shaken = shaken => shaken,
            () = stops.leave.cancelled() => return,
            () = async { stops.drain.cancelled().await; nothing_comes(&self.gateway, || started.load(Relaxed)).await } => return,
            () = self.activity.evicted() => return self.closes(Closing::Evicted),
        };
        let failed = |error: &str| {
            self.gateway.events.handshake_failed(&self.gateway.metrics, ip, started.load(Relaxed), error);
        };
        match shaken {
            // Each kind of connection takes its own memory only, and a handshake takes neither's.
            Ok(Ok((Some(Ok(stream)), true))) => Box::pin(self.http2(Box::new(stream))).await,
            Ok(Ok((Some(Ok(stream)), false))) => Box::pin(self.http1(Box::new(stream))).await,
            Ok(Ok((Some(Err(stream)), _))) => plain_on_tls(stream).await,
            Ok(Ok((None, _))) => {}
            Ok(Err(error)) => failed(&error.to_string()),
            Err(_) => failed("timeout"),
        }
    }

    async fn http1(self, stream: BoxStream) {
        let service = {
            let (gateway, client, activity) = (self.gateway.clone(), self.client, self.activity.clone());
            service_fn(move |request| {
                let (gateway, mut asked) = (gateway.clone(), activity.asked());
                // A connection without a request does not have the memory of one.
                Box::pin(async move {
                    let mut answer = forward::handle(gateway.clone(), client, request, &mut asked).await?;
                    // The client must close: only it knows that no request is in transit.
                    if gateway.stops.drain.is_cancelled() {
                        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(answer.map(|body| Answering::new(body, asked)))
                })
            })
        };
        // Also ends an idle connection.
        let within = Duration::from_secs(self.gateway.live().config.header_timeout_seconds);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(within)
            .max_buf_size(MOST_HEAD)
            .serve_connection(TokioIo::new(Inspected::new(Guarded::new(stream), StrictLines::default())), service);
        let quiet = async {
            self.gateway.stops.drain.cancelled().await;
            self.activity.is_quiet_for(self.gateway.stops.lame_duck()).await;
        };
        let ended = self.drive(pin!(connection), |connection| connection.graceful_shutdown(), quiet, None).await;
        if let Err(error) = ended {
            let why = answer::chain(&error);
            tracing::debug!(error = why, "a client's connection");
            if error.is_parse() {
                self.gateway.events.malformed(&self.gateway.metrics, self.client.ip, &why);
            }
        }
    }

    async fn http2(self, stream: BoxStream) {
        let service = {
            let (gateway, client, activity) = (self.gateway.clone(), self.client, self.activity.clone());
            service_fn(move |request| {
                let (gateway, mut asked) = (gateway.clone(), activity.asked());
                async move {
                    let answer = forward::handle(gateway, client, request, &mut asked).await?;
                    Ok::<_, Infallible>(answer.map(|body| Answering::new(body, asked)))
                }
            })
        };
        let limit = FrameLimit::new();
        let flooded = limit.flooded();
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(MOST_HEAD as u32)
            // What a connection sends before it is read stays in memory.
            .initial_stream_window_size(UNREAD_BYTES)
            .initial_connection_window_size(UNREAD_BYTES)
            .max_send_buf_size(UNSENT_BYTES)
            // Pings detect clients that disappeared.
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .serve_connection(TokioIo::new(Inspected::new(Guarded::new(stream), limit)), service);
        let idle = Duration::from_secs(self.gateway.live().config.header_timeout_seconds);
        // HTTP/2 has GOAWAY: requests in flight are answered, and the client opens another connection.
        let drained = self.gateway.stops.drain.cancelled();
        let ended =
            self.drive(pin!(connection), |connection| connection.graceful_shutdown(), drained, Some(idle)).await;
        if flooded.load(Relaxed) {
            self.closes(Closing::FrameFlood);
        } else if let Err(error) = ended {
            tracing::debug!(error = %answer::chain(&error), "a client's connection");
        }
    }

    /// Drives a connection to its end: the client's, the gateway's shutdown, or a limit of the connection. `idle`: the
    /// idle timeout, if the connection has none of its own.
    async fn drive<C>(
        &self,
        mut connection: Pin<&mut C>,
        shut_down: impl FnOnce(Pin<&mut C>),
        drained: impl Future<Output = ()>,
        idle: Option<Duration>,
    ) -> Result<(), hyper::Error>
    where
        C: Future<Output = Result<(), hyper::Error>>,
    {
        let stops = &self.gateway.stops;
        let closing = tokio::select! {
            ended = connection.as_mut() => return ended,
            () = stops.leave.cancelled() => return Ok(()),
            () = drained => None,
            closing = self.exceeds(idle) => Some(closing),
        };
        shut_down(connection.as_mut());
        if let Some(closing) = closing {
            self.closes(closing);
        }
        let given_up = async {
            match closing {
                None => nothing_comes(&self.gateway, || self.activity.has_begun()).await,
                // What a client has not sent or taken for so long is not waited for.
                Some(Closing::Overdue) => tokio::time::sleep(Closing::Overdue.grace()).await,
                Some(Closing::Evicted) => {
                    tokio::time::sleep(Closing::Evicted.grace()).await;
                    while self.activity.is_waiting() {
                        tokio::time::sleep(Closing::Evicted.grace()).await;
                    }
                }
                Some(closing) => self.activity.is_quiet_for(closing.grace()).await,
            }
        };
        tokio::select! {
            ended = connection => ended,
            () = stops.leave.cancelled() => Ok(()),
            () = given_up => Ok(()),
        }
    }

    /// Waits until the connection has to close for others.
    async fn exceeds(&self, idle: Option<Duration>) -> Closing {
        let live = self.gateway.live();
        let first = Duration::from_secs(live.config.first_request_timeout_seconds);
        let request = Duration::from_secs(live.config.timeout_seconds);
        drop(live);
        let no_request = async {
            tokio::time::sleep(first).await;
            // Proxies open connections in advance.
            if self.client.is_proxy || self.activity.has_begun() {
                std::future::pending::<()>().await;
            }
        };
        let quiet = async {
            match idle {
                Some(idle) => self.activity.is_quiet_for(idle).await,
                None => std::future::pending().await,
            }
        };
        // An HTTP/2 client that opens no window for an answer keeps it here; a write timeout does not see that.
        let overdue = async {
            match self.client.is_proxy {
                // One client of a proxy must not close the connection of the others.
                true => std::future::pending().await,
                false => self.activity.is_overdue(request + OVERDUE_RESERVE).await,
            }
        };
        tokio::select! {
            () = self.activity.evicted() => Closing::Evicted,
            () = overdue => Closing::Overdue,
            () = no_request => Closing::NoRequest,
            () = quiet => Closing::Idle,
        }
    }

    fn closes(&self, closing: Closing) {
        self.gateway.events.connection_closed(&self.gateway.metrics, self.client.ip, closing);
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

/// A connection that never sent a request does not get the whole drain time.
async fn nothing_comes(gateway: &Gateway, has_begun: impl Fn() -> bool) {
    tokio::time::sleep(gateway.stops.lame_duck().max(Duration::from_millis(500))).await;
    if has_begun() {
        std::future::pending::<()>().await;
    }
}
