//! Listeners and connections: TCP or a Unix socket, limited in number, drained at shutdown.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, header};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use textnlp_net::listen::{self, Limits, Stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::address::Address;
use crate::guard::Guarded;
use crate::leaving::Leaving;

/// An open listener.
pub struct Listener(listen::Listener);

/// How connections are treated.
#[derive(Clone)]
pub struct Serving {
    /// Timeout of a request's head.
    pub header_timeout: Duration,
    /// Connections at a time; more wait.
    pub max_connections: usize,
    /// The graceful shutdown.
    pub leaving: Arc<Leaving>,
    /// No new connections; those that are open end after the request that they are in.
    pub stop: CancellationToken,
    /// Those that are open end now.
    pub leave: CancellationToken,
    /// The open connections.
    pub connections: TaskTracker,
}

/// The other end of a request's connection, in its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A process of this user, over a Unix socket.
    Unix,
    /// A program at this address.
    Tcp(IpAddr),
}

/// The longest request head.
const MAX_HEAD: usize = 64 * 1024;

impl Listener {
    /// Listens; creates the folder of a socket.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(Self(listen::Listener::Tcp(TcpListener::bind(address).await?))),
            Address::Unix(path) => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                Ok(Self(listen::Listener::unix(path).await?))
            }
        }
    }

    /// The listening address, with the assigned port.
    pub fn address(&self) -> io::Result<Address> {
        match &self.0 {
            listen::Listener::Tcp(listener) => Ok(Address::Tcp(listener.local_addr()?.to_string())),
            listen::Listener::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    /// Serves until it is stopped. Each request has its [`Peer`] as an extension.
    pub async fn serve(self, router: Router, serving: Serving) {
        let at_once = matches!(self.0, listen::Listener::Unix(..));
        let name = self.address().map_or_else(|_| "http".to_owned(), |address| address.to_string());
        let limits = Limits { name: &name, max_connections: serving.max_connections };
        let (stop, connections) = (serving.stop.clone(), serving.connections.clone());
        let handle = move |stream| {
            let (router, serving) = (router.clone(), serving.clone());
            let connected = serving.leaving.connected();
            async move {
                let _connected = connected;
                tokio::select! {
                    () = connection(stream, at_once, router, &serving) => {}
                    () = serving.leave.cancelled() => {}
                }
            }
        };
        self.0.serve(limits, &stop, &connections, handle).await;
    }
}

async fn connection(stream: Stream, at_once: bool, router: Router, serving: &Serving) {
    let busy = Arc::new(AtomicBool::new(false));
    let peer = match &stream {
        Stream::Unix(_) => Peer::Unix,
        Stream::Tcp(_, address) => Peer::Tcp(address.ip().to_canonical()),
    };
    let io = TokioIo::new(Guarded::new(stream, busy.clone(), serving.header_timeout, at_once));
    let leaving = serving.leaving.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        busy.store(true, Ordering::Relaxed);
        // Probes do not delay the shutdown of a replica.
        if !matches!(request.uri().path(), "/health" | "/ready") {
            leaving.requested();
        }
        let leaving = leaving.clone();
        let busy = Busy(busy.clone());
        let answer = router.clone().oneshot(request.map(Body::new));
        async move {
            let mut response = answer.await.unwrap_or_else(|never| match never {});
            if leaving.is_going() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| BusyBody { body, _busy: busy }))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(true)
        .max_buf_size(MAX_HEAD)
        // Our own guard times headers: hyper's timer would also end connections that are merely idle.
        .header_read_timeout(None)
        .serve_connection(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = serving.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %textnlp_net::error_chain(&error), "a connection was interrupted");
    }
}

/// Clears the connection's flag when the answer has been sent or dropped.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
