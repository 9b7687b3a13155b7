//! Listeners and connections: TCP or a Unix socket, bounded in number, drained on the way out.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, header};
use camino::{Utf8Path, Utf8PathBuf};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::guard::Guarded;
use crate::config::Address;
use crate::leaving::Leaving;

/// An open listener.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Utf8PathBuf),
}

/// How connections are treated.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) header_timeout: Duration,
    pub(crate) max_connections: usize,
    pub(crate) leaving: Arc<Leaving>,
    /// No new connections; those that are open end after the request that they are in.
    pub(crate) stop: CancellationToken,
    /// Those that are open end now.
    pub(crate) leave: CancellationToken,
    pub(crate) connections: TaskTracker,
}

/// The longest request head.
const MAX_HEAD: usize = 64 * 1024;

impl Listener {
    pub(crate) async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Address::Unix(path) => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                Ok(Self::Unix(bind_unix(path).await?, path.clone()))
            }
        }
    }

    /// Where it listens, with the port that it got.
    pub(crate) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => Ok(Address::Tcp(listener.local_addr()?.to_string())),
            Self::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    /// Serves until it is stopped.
    pub(crate) async fn serve(self, router: Router, serving: Serving) {
        let slots = Arc::new(Semaphore::new(serving.max_connections));
        let at_once = matches!(self, Self::Unix(..));
        loop {
            let accepted = tokio::select! {
                () = serving.stop.cancelled() => break,
                accepted = accept(&self, &slots) => accepted,
            };
            let (stream, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    // Out of file descriptors, as a rule: trying again at once would only burn a core.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (router, serving) = (router.clone(), serving.clone());
            let held = (permit, serving.leaving.connected());
            serving.connections.clone().spawn(async move {
                let _held = held;
                tokio::select! {
                    () = connection(stream, at_once, router, &serving) => {}
                    () = serving.leave.cancelled() => {}
                }
            });
        }
        if let Self::Unix(listener, path) = self {
            drop(listener);
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(%path, %error, "the socket's file could not be removed");
            }
        }
    }
}

/// A socket at a path, for this user alone. What a killed process left there goes; what answers is somebody's.
pub(crate) async fn bind_unix(path: &Utf8Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on this socket"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Who may open it is who may ask.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(
    listener: &Listener,
    slots: &Arc<Semaphore>,
) -> io::Result<(Box<dyn Stream>, tokio::sync::OwnedSemaphorePermit)> {
    // With all slots taken, further clients wait in the kernel's backlog.
    let permit = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let stream: Box<dyn Stream> = match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Listener::Unix(listener, _) => Box::new(listener.accept().await?.0),
    };
    Ok((stream, permit))
}

async fn connection(stream: Box<dyn Stream>, at_once: bool, router: Router, serving: &Serving) {
    let busy = Arc::new(AtomicBool::new(false));
    let io = TokioIo::new(Guarded::new(stream, busy.clone(), serving.header_timeout, at_once));
    let leaving = serving.leaving.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        busy.store(true, Ordering::Relaxed);
        // Those who only look do not keep a replica that goes.
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
            Ok::<_, Infallible>(response.map(|body| Held { body, _busy: busy }))
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
        tracing::debug!(error = %crate::error::chain(&error), "a connection broke off");
    }
}

/// Clears the connection's flag when the answer has been sent or dropped.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct Held {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Held {
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
