//! The inter-site relay: every byte between this site and the others passes through it.
//!
//! It forwards connections from one address to another and does not interpret their content. Between machines both ends
//! authenticate by mutual TLS. Because all traffic passes here, a drill can simulate a network failure of the site
//! without any privilege: see `fault.rs`. A fault ends after its duration, so a drill that was interrupted leaves
//! nothing behind.

mod config;

mod api;
mod fault;
mod link;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use textnlp_net::listen::{BoxStream as Stream, Listener};
use textnlp_process::InvalidConfig;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, Link, Target};
pub use tls::{Tls, identity};

use fault::Faults;
use link::Relay;
use textnlp_gateway::SocketAddress;

/// Grace period for data in flight at shutdown. The sites exchange heartbeats all the time: a relay that is away for
/// longer looks like a failed site.
const GRACE_PERIOD: Duration = Duration::from_millis(300);

/// Why the relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// An address is in use or cannot be bound.
    #[error("listen on {address} ({what})")]
    Listen {
        /// What was to listen there.
        what: String,
        /// The address.
        address: SocketAddress,
        /// The system's reason.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("wait for signals")]
    Signals(#[source] io::Error),
}

/// A running relay. Dropping it stops it at once.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    addresses: Vec<(String, SocketAddress)>,
}

/// State that the tasks share.
#[derive(Debug)]
struct Shared {
    relays: Vec<Relay>,
    faults: Faults,
    stop: Stop,
}

/// How tasks learn that it is over.
#[derive(Debug, Clone, Default)]
struct Stop {
    /// Cancelled when no new connections are accepted.
    accept: CancellationToken,
    /// Leave now.
    leave: CancellationToken,
}

/// Runs the relay of this file until SIGTERM or SIGINT.
pub async fn run(file: &Utf8Path) -> Result<(), Error> {
    // Before the first socket: a signal during startup must not kill a relay that already has connections.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let running = start(Config::read(file)?).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.leave().await;
    Ok(())
}

/// Starts the relay. An address that cannot be listened on is an error.
pub async fn start(config: Config) -> Result<Running, Error> {
    let stop = Stop::default();
    let mut listeners = Vec::new();
    let mut relays = Vec::new();
    for link in &config.links {
        listeners.push(bind(&format!("link {}", link.name), &link.listen).await?);
        relays.push(Relay::new(link, config.max_connections));
    }
    let api = bind("its own status", &config.listen).await?;
    let mut addresses = vec![("border".to_owned(), address_of(&api))];
    addresses
        .extend(config.links.iter().zip(&listeners).map(|(link, listener)| (link.name.clone(), address_of(listener))));

    let shared = Arc::new(Shared { relays, faults: Faults::default(), stop });
    let tasks = TaskTracker::new();
    for (at, listener) in listeners.into_iter().enumerate() {
        tasks.spawn(link::accept(shared.clone(), at, listener, tasks.clone()));
    }
    tasks.spawn(fault::end_in_time(shared.clone()));
    tasks.spawn(api::serve(shared.clone(), api, tasks.clone()));
    tracing::info!(links = config.links.len(), listen = %addresses[0].1, "the relay is running");
    Ok(Running { shared, tasks, addresses })
}

impl Running {
    /// The address of a link's listener, or of the status socket under the name `border`. A port 0 is replaced by the
    /// assigned one.
    pub fn address(&self, name: &str) -> Option<&SocketAddress> {
        self.addresses.iter().find(|(known, _)| known == name).map(|(_, address)| address)
    }

    /// Accepts no new connections, waits the grace period for data in flight, and stops.
    pub async fn leave(self) {
        self.shared.stop.accept.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE_PERIOD, self.tasks.wait()).await.is_err() {
            self.shared.stop.leave.cancel();
            self.tasks.wait().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.accept.cancel();
        self.shared.stop.leave.cancel();
    }
}

fn address_of(listener: &Listener) -> SocketAddress {
    match listener {
        Listener::Unix(_, path) => SocketAddress::Unix(path.clone()),
        Listener::Tcp(socket) => SocketAddress::Tcp(socket.local_addr().unwrap_or(([0, 0, 0, 0], 0).into())),
    }
}

/// Disables Nagle's algorithm: tokens are small and must not wait for each other.
fn quick(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

async fn connect(to: &Target) -> io::Result<Stream> {
    match to {
        Target::At(SocketAddress::Tcp(address)) => quick(TcpStream::connect(address).await?),
        Target::At(SocketAddress::Unix(path)) => Ok(Box::new(UnixStream::connect(path).await?)),
        Target::Named(host, port) => quick(TcpStream::connect((host.as_str(), *port)).await?),
    }
}

async fn bind(what: &str, address: &SocketAddress) -> Result<Listener, Error> {
    let fail = |source: io::Error| Error::Listen { what: what.to_owned(), address: address.clone(), source };
    match address {
        SocketAddress::Tcp(wanted) => Ok(Listener::Tcp(TcpListener::bind(wanted).await.map_err(fail)?)),
        SocketAddress::Unix(path) => Listener::unix(path).await.map_err(fail),
    }
}
