//! The two doors of a site's database: one for whoever at this site wants the primary, wherever that is, and one for other sites.
//!
//! Nothing goes around them, so a site that does not lead for sure answers nobody, and connections to a primary of before end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::Config;
use super::gate::{Gate, Way};
use super::startup::{self, Startup, Who};
use crate::config::Address;

/// So long somebody may wait for a primary: it spares clients most of a failover.
const WAITS: Duration = Duration::from_secs(4);
/// Between two looks for one.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A connection is made at once or never.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The first message comes at once too.
const STARTUP_WITHIN: Duration = Duration::from_secs(5);
/// Connections of one door at once; more wait in the system's queue.
const MOST: usize = 1000;
const BUFFER: usize = 16 << 10;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// For this site: to the primary.
    Out,
    /// For other sites: to the server here.
    In,
}

pub(super) struct Doors {
    pub(super) config: Arc<Config>,
    pub(super) gate: Arc<Gate>,
    pub(super) stop: CancellationToken,
}

type Stream = Box<dyn Both>;
trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

/// Listens where the server's user may connect.
pub(super) fn bind(path: &Utf8Path, user: Option<(u32, u32)>) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    if let Some((user, group)) = user {
        // Whoever owns the folder around it may have put a link there meanwhile, and we may be root.
        std::os::unix::fs::lchown(path, Some(user), Some(group))?;
    }
    Ok(listener)
}

/// Takes connections until the keeper stops.
pub(super) async fn serve(doors: Arc<Doors>, door: Door, listener: UnixListener) {
    let (room, tasks) = (Arc::new(Semaphore::new(MOST)), TaskTracker::new());
    loop {
        let taken = async {
            let Ok(room) = room.clone().acquire_owned().await else { return std::future::pending().await };
            (listener.accept().await, room)
        };
        let (accepted, room) = tokio::select! {
            () = doors.stop.cancelled() => break,
            taken = taken => taken,
        };
        match accepted {
            Ok((stream, _)) => {
                let doors = doors.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = doors.stop.cancelled() => {}
                        () = doors.one(door, stream) => {}
                    }
                    drop(room);
                });
            }
            Err(error) => {
                tracing::warn!(?door, %error, "a connection cannot be taken");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

impl Doors {
    async fn one(&self, door: Door, mut client: UnixStream) {
        let startup = match tokio::time::timeout(STARTUP_WITHIN, startup::read(&mut client)).await {
            Ok(Ok(startup)) => startup,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return,
            Ok(Err(error)) => {
                tracing::info!(?door, %error, "somebody was not let in");
                return refuse(client, "28000", &error.to_string()).await;
            }
            Err(_) => return,
        };
        match self.reach(door, startup.who).await {
            Ok((server, way, ends)) => self.relay(client, server, startup, way, ends).await,
            // Whoever is told so asks again.
            Err(why) => refuse(client, "57P03", why).await,
        }
    }

    /// Connects to where somebody wants to go, as soon as there is somebody.
    async fn reach(&self, door: Door, who: Who) -> Result<(Stream, Way, CancellationToken), &'static str> {
        let until = Instant::now() + WAITS;
        loop {
            let (way, ends) = match (door, who) {
                (Door::Out, Who::Service) => self.gate.way(),
                (Door::Out, Who::Copy) => match self.gate.way() {
                    (Way::To(site), ends) => (Way::To(site), ends),
                    (_, ends) => (Way::Nowhere("there is no other site to follow"), ends),
                },
                (Door::In, Who::Service) if self.gate.serves() => (Way::Here, self.gate.here()),
                (Door::In, Who::Copy) if self.gate.copies_may() => (Way::Here, CancellationToken::new()),
                (Door::In, _) => (Way::Nowhere("this site is not the primary"), CancellationToken::new()),
            };
            let connected = match &way {
                Way::Here => {
                    let socket = self.config.run().join(format!(".s.PGSQL.{}", self.config.port));
                    connect(&Address::Unix(socket)).await
                }
                Way::To(site) => match self.config.sites.as_ref().and_then(|sites| sites.peers.get(site)) {
                    Some(address) => connect(address).await,
                    None => None,
                },
                Way::Nowhere(_) => None,
            };
            if let Some(server) = connected.filter(|_| !ends.is_cancelled()) {
                return Ok((server, way, ends));
            }
            if Instant::now() >= until {
                return Err(match way {
                    Way::Nowhere(why) => why,
                    Way::Here => "the server here does not answer",
                    Way::To(_) => "the primary's site does not answer",
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Passes bytes on until an end, or what lets them pass, is gone.
    async fn relay(&self, client: UnixStream, mut server: Stream, startup: Startup, way: Way, ends: CancellationToken) {
        let is_served = way == Way::Here && startup.who == Who::Service;
        let may = || !is_served || self.gate.serves();
        if !may() || server.write_all(&startup.bytes).await.is_err() {
            return;
        }
        let follows = (startup.who == Who::Copy && way != Way::Here).then(|| Following::begin(&self.gate));
        let (client_reads, client_writes) = client.into_split();
        let (server_reads, server_writes) = tokio::io::split(server);
        tokio::select! {
            () = ends.cancelled() => {}
            // An end that breaks off is told to the other by our closing; there is nobody else to tell.
            _ = pump(client_reads, server_writes, may) => {}
            _ = pump(server_reads, client_writes, may) => {}
        }
        drop(follows);
    }
}

/// Counts a copy that follows, while it does.
struct Following(Arc<std::sync::atomic::AtomicUsize>);

impl Following {
    fn begin(gate: &Gate) -> Self {
        let count = gate.following();
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Following {
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
        // Looked at after the bytes have come: a process that stood still for an hour goes on here.
        if many == 0 || !may() {
            return Ok(());
        }
        to.write_all(&buffer[..many]).await?;
    }
}

async fn connect(address: &Address) -> Option<Stream> {
    let made = async {
        Some(match address {
            Address::Tcp(to) => Box::new(TcpStream::connect(to).await.ok()?) as Stream,
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.ok()?) as Stream,
        })
    };
    tokio::time::timeout(CONNECT_WITHIN, made).await.ok().flatten()
}

async fn refuse(mut client: UnixStream, code: &str, why: &str) {
    // Whoever has gone need not be told.
    let _ = client.write_all(&startup::refusal(code, why)).await;
    let _ = client.shutdown().await;
}
