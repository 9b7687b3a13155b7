//! The two proxy sockets of a site's database: one for local clients of the primary, wherever that is, and one for
//! other sites.
//!
//! All connections pass here. So a site that is not primary for certain serves no client, and connections to a former
//! primary end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use textnlp_net::listen::{BoxStream, Limits, Listener, Stream};
use textnlp_process::Address;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::Config;
use super::gate::{Gate, Route};
use super::startup::{self, ClientKind, Startup};

/// How long a client may wait for a primary: this hides most failovers.
const WAITS: Duration = Duration::from_secs(4);
/// Poll interval during that wait.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Connect timeout: a local connection succeeds at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for the first message of a client.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum connections of one socket; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 1000;
const BUFFER: usize = 16 << 10;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// For this site: to the primary.
    Out,
    /// For other sites: to the local server.
    In,
}

pub(super) struct Listeners {
    pub(super) config: Arc<Config>,
    pub(super) gate: Arc<Gate>,
    pub(super) stop: CancellationToken,
}

/// Listens on a socket that the server's user may connect to.
pub(super) fn bind(path: &Utf8Path, user: Option<(u32, u32)>) -> io::Result<Listener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    if let Some((user, group)) = user {
        // By `lchown`: the owner of the parent directory may have placed a link there, and we may be root.
        std::os::unix::fs::lchown(path, Some(user), Some(group))?;
    }
    Ok(Listener::Unix(listener, path.to_owned()))
}

/// Accepts connections until the supervisor stops.
pub(super) async fn serve(doors: Arc<Listeners>, door: Direction, listener: Listener) {
    let tasks = TaskTracker::new();
    let name = format!("database {door:?}");
    let limits = Limits { name: &name, max_connections: MAX_CONNECTIONS };
    let handle = |stream| {
        let doors = doors.clone();
        async move {
            tokio::select! {
                () = doors.stop.cancelled() => {}
                () = doors.one(door, stream) => {}
            }
        }
    };
    listener.serve(limits, &doors.stop, &tasks, handle).await;
    tasks.close();
    tasks.wait().await;
}

impl Listeners {
    async fn one(&self, door: Direction, mut client: Stream) {
        let startup = match tokio::time::timeout(STARTUP_TIMEOUT, startup::read(&mut client)).await {
            Ok(Ok(startup)) => startup,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return,
            Ok(Err(error)) => {
                tracing::info!(?door, %error, "a connection was refused");
                return refuse(client, "28000", &error.to_string()).await;
            }
            Err(_) => return,
        };
        match self.reach(door, startup.who).await {
            Ok((server, way, ends)) => self.relay(client, server, startup, way, ends).await,
            // Clients retry after this error.
            Err(why) => refuse(client, "57P03", why).await,
        }
    }

    /// Connects to the client's target as soon as there is a primary.
    async fn reach(
        &self,
        door: Direction,
        who: ClientKind,
    ) -> Result<(BoxStream, Route, CancellationToken), &'static str> {
        let until = Instant::now() + WAITS;
        loop {
            let (way, ends) = match (door, who) {
                (Direction::Out, ClientKind::Service) => self.gate.way(),
                (Direction::Out, ClientKind::Copy) => match self.gate.way() {
                    (Route::To(site), ends) => (Route::To(site), ends),
                    (_, ends) => (Route::Nowhere("there is no other site to follow"), ends),
                },
                (Direction::In, ClientKind::Service) if self.gate.serves() => (Route::Here, self.gate.here()),
                (Direction::In, ClientKind::Copy) if self.gate.copies_may() => (Route::Here, CancellationToken::new()),
                (Direction::In, _) => (Route::Nowhere("this site is not the primary"), CancellationToken::new()),
            };
            let connected = match &way {
                Route::Here => {
                    let socket = self.config.run().join(format!(".s.PGSQL.{}", self.config.port));
                    connect(&Address::Unix(socket)).await
                }
                Route::To(site) => match self.config.sites.as_ref().and_then(|sites| sites.peers.get(site)) {
                    Some(address) => connect(address).await,
                    None => None,
                },
                Route::Nowhere(_) => None,
            };
            if let Some(server) = connected.filter(|_| !ends.is_cancelled()) {
                return Ok((server, way, ends));
            }
            if Instant::now() >= until {
                return Err(match way {
                    Route::Nowhere(why) => why,
                    Route::Here => "the local server does not answer",
                    Route::To(_) => "the primary's site does not answer",
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Relays bytes until one end closes or the permission ends.
    async fn relay(
        &self,
        client: Stream,
        mut server: BoxStream,
        startup: Startup,
        way: Route,
        ends: CancellationToken,
    ) {
        let is_served = way == Route::Here && startup.who == ClientKind::Service;
        let may = || !is_served || self.gate.serves();
        if !may() || server.write_all(&startup.bytes).await.is_err() {
            return;
        }
        let follows =
            (startup.who == ClientKind::Copy && way != Route::Here).then(|| ConnectedReplica::begin(&self.gate));
        let (client_reads, client_writes) = tokio::io::split(client);
        let (server_reads, server_writes) = tokio::io::split(server);
        tokio::select! {
            () = ends.cancelled() => {}
            // If one end fails, closing the connection reports it to the other end.
            _ = pump(client_reads, server_writes, may) => {}
            _ = pump(server_reads, client_writes, may) => {}
        }
        drop(follows);
    }
}

/// Counts a connected replica for its lifetime.
struct ConnectedReplica(Arc<std::sync::atomic::AtomicUsize>);

impl ConnectedReplica {
    fn begin(gate: &Gate) -> Self {
        let count = gate.following();
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for ConnectedReplica {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    may: impl Fn() -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let many = from.read(&mut buffer).await?;
        // Checked after the read: a process that was suspended for an hour continues here.
        if many == 0 || !may() {
            return Ok(());
        }
        to.write_all(&buffer[..many]).await?;
    }
}

async fn connect(address: &Address) -> Option<BoxStream> {
    let made = async {
        Some(match address {
            Address::Tcp(to) => Box::new(TcpStream::connect(to).await.ok()?) as BoxStream,
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.ok()?) as BoxStream,
        })
    };
    tokio::time::timeout(CONNECT_TIMEOUT, made).await.ok().flatten()
}

async fn refuse(mut client: Stream, code: &str, why: &str) {
    // The client may be gone.
    let _ = client.write_all(&startup::refusal(code, why)).await;
    let _ = client.shutdown().await;
}
