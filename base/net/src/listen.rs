//! Listeners over TCP and Unix sockets, and one accept loop: bounded in connections, slower when the system has no resources, ended by
//! a token.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::retry::Backoff;

/// Pauses after an accept that failed because the system has no file descriptors or no memory left. Other connections have to end first.
const EXHAUSTED: Backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(1) };
/// Between two log lines about the limit of connections.
const FULL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A connection over any transport.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A connection of any kind.
pub type BoxStream = Box<dyn Duplex>;

/// An accepted connection.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP, from this address.
    Tcp(TcpStream, SocketAddr),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Tcp(stream, _) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Tcp(stream, _) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Tcp(stream, _) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Tcp(stream, _) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Tcp(stream, _) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// An open socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// Over TCP.
    Tcp(TcpListener),
    /// A Unix socket. The file is removed when its accept loop stops.
    Unix(UnixListener, Utf8PathBuf),
}

impl Listener {
    /// Listens on a Unix socket that only this user may open. See [`bind_unix`].
    pub async fn unix(path: &Utf8Path) -> io::Result<Self> {
        Ok(Self::Unix(bind_unix(path).await?, path.to_owned()))
    }

    /// The address that TCP got.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Some),
            Self::Unix(..) => Ok(None),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // What is written here is small and must not wait for an acknowledgement.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream, peer))
            }
            Self::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    /// Accepts connections until `stop`, at most `limits.max_connections` at once, and gives each to `handle` in a task of `tasks`.
    /// With every place taken, further clients wait in the system's queue. Connections that are open go on after `stop`.
    pub async fn serve<F>(
        self,
        limits: Limits<'_>,
        stop: &CancellationToken,
        tasks: &TaskTracker,
        mut handle: impl FnMut(Stream) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let Limits { name, max_connections } = limits;
        let permits = Arc::new(Semaphore::new(max_connections));
        let mut logged: Option<Instant> = None;
        let mut failures = 0;
        loop {
            if permits.available_permits() == 0 && logged.is_none_or(|logged| logged.elapsed() > FULL_LOG_INTERVAL) {
                logged = Some(Instant::now());
                tracing::warn!(listener = name, max_connections, "connection limit reached");
            }
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.next(&permits) => accepted,
            };
            match accepted {
                Ok((stream, place)) => {
                    failures = 0;
                    let served = handle(stream);
                    tasks.spawn(async move {
                        served.await;
                        drop(place);
                    });
                }
                // The client left before it was accepted.
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(listener = name, %error, "connection lost before accept");
                }
                Err(error) => {
                    failures += 1;
                    let pause = EXHAUSTED.pause(failures, 1.0);
                    tracing::warn!(listener = name, %error, pause_ms = pause.as_millis() as u64, "accept failed");
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
        // While it still listens no other process takes the path, so this removes no file of another.
        if let Self::Unix(_, path) = &self {
            let _ = std::fs::remove_file(path);
        }
    }

    /// A place first: a client without one waits in the system's queue and not in this process.
    async fn next(&self, permits: &Arc<Semaphore>) -> io::Result<(Stream, OwnedSemaphorePermit)> {
        let place = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok((self.accept().await?, place))
    }
}

/// The bounds of an accept loop.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// What the log calls this listener.
    pub name: &'a str,
    /// Connections at once.
    pub max_connections: usize,
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// A socket at a path, for this user alone. A file that a killed process left there is replaced; one on which a process answers is not.
pub async fn bind_unix(path: &Utf8Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on this socket"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LIMITS: Limits<'_> = Limits { name: "test", max_connections: 2 };

    /// Sends one byte and reads it back.
    async fn echo(stream: &mut (impl Duplex + ?Sized)) -> io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    async fn echo_all(mut stream: Stream) {
        while let Ok(byte) = stream.read_u8().await {
            let _ = stream.write_u8(byte).await;
        }
    }

    #[tokio::test]
    async fn connections_above_the_limit_wait_until_one_closes() {
        let listener = Listener::Tcp(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap().unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (stopped, spawned) = (stop.clone(), tasks.clone());
        let serving = tokio::spawn(async move { listener.serve(LIMITS, &stopped, &spawned, echo_all).await });
        let mut open = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        for stream in &mut open {
            echo(stream).await.unwrap();
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(b"y").await.unwrap();
        assert_eq!(tasks.len(), 2);
        let [first, mut second] = open;
        drop(first);
        assert_eq!(third.read_u8().await.unwrap(), b'y');
        // What is open goes on after the stop; what comes later is refused.
        stop.cancel();
        serving.await.unwrap();
        assert_eq!(echo(&mut second).await.unwrap(), b'x');
        assert!(TcpStream::connect(address).await.is_err());
        drop((second, third));
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn unix_socket_is_private_replaces_a_stale_file_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::unix(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Listener::unix(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (stopped, spawned) = (stop.clone(), tasks.clone());
        let serving = tokio::spawn(async move { listener.serve(LIMITS, &stopped, &spawned, echo_all).await });
        echo(&mut UnixStream::connect(&path).await.unwrap()).await.unwrap();
        stop.cancel();
        serving.await.unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn only_resource_exhaustion_slows_the_accept_loop() {
        let of = |errno| is_of_one_connection(&io::Error::from_raw_os_error(errno));
        // ECONNABORTED and ECONNRESET; EMFILE, ENFILE and ENOMEM.
        assert_eq!([103, 104, 24, 23, 12].map(of), [true, true, false, false, false]);
    }
}
