//! The border of a site: every byte between this site and the others passes through it.
//!
//! It relays connections from one address to another and knows nothing of what is in them; between machines both ends prove who they
//! are. Because nothing goes around it, the loss
//! of a site's network can be rehearsed here, without any privilege: see [`Fault`]. A fault ends by itself, so a rehearsal whose
//! leader died leaves nothing behind.

mod config;

mod api;
mod fault;
mod relay;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, InvalidConfig, Link, Target};
pub use tls::Tls;
pub(crate) use tls::identity;

use crate::gateway::Address;
use fault::Faults;
use relay::Relay;

/// Whatever is on its way when the border is told to stop has this long to arrive. The sites look after one another all the
/// time, and a border that is away for longer would look like a site that is lost.
const LEAVES_WITHIN: Duration = Duration::from_millis(300);

/// Why the border does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// An address is taken or not ours.
    #[error("listen on {address} ({what})")]
    Listen {
        /// What was to listen there.
        what: String,
        /// The address.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("wait for signals")]
    Signals(#[source] io::Error),
}

/// A border that runs. Dropping it stops it at once.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    addresses: Vec<(String, Address)>,
}

/// What the tasks share.
#[derive(Debug)]
struct Shared {
    relays: Vec<Relay>,
    faults: Faults,
    stop: Stop,
}

/// How tasks learn that it is over.
#[derive(Debug, Clone, Default)]
struct Stop {
    /// Nothing new.
    accept: CancellationToken,
    /// Leave now.
    leave: CancellationToken,
}

/// Runs the border of this file until SIGTERM or SIGINT.
pub async fn run(file: &Utf8Path) -> Result<(), Error> {
    // Before the first socket: a signal during the start must not kill a border that already has connections.
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

/// Starts the border: every address that cannot be listened on is an error here.
pub async fn start(config: Config) -> Result<Running, Error> {
    let stop = Stop::default();
    let mut listeners = Vec::new();
    let mut relays = Vec::new();
    for link in &config.links {
        listeners.push(bind(&format!("link {}", link.name), &link.listen).await?);
        relays.push(Relay::new(link, config.max_connections));
    }
    let api = bind("its own status", &config.listen).await?;
    let mut addresses = vec![("border".to_owned(), api.address())];
    addresses
        .extend(config.links.iter().zip(&listeners).map(|(link, listener)| (link.name.clone(), listener.address())));

    let shared = Arc::new(Shared { relays, faults: Faults::default(), stop });
    let tasks = TaskTracker::new();
    for (at, listener) in listeners.into_iter().enumerate() {
        tasks.spawn(relay::accept(shared.clone(), at, listener, tasks.clone()));
    }
    tasks.spawn(fault::end_in_time(shared.clone()));
    tasks.spawn(api::serve(shared.clone(), api, tasks.clone()));
    tracing::info!(links = config.links.len(), listen = %addresses[0].1, "the border relays");
    Ok(Running { shared, tasks, addresses })
}

impl Running {
    /// Where a link listens, or, under the name `border`, its status: with the port that was got.
    pub fn address(&self, name: &str) -> Option<&Address> {
        self.addresses.iter().find(|(known, _)| known == name).map(|(_, address)| address)
    }

    /// Takes nothing new, gives what is on its way a moment, and stops.
    pub async fn leave(self) {
        self.shared.stop.accept.cancel();
        self.tasks.close();
        if tokio::time::timeout(LEAVES_WITHIN, self.tasks.wait()).await.is_err() {
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

/// An open socket of either kind.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Address),
}

/// A connection of either kind.
trait Both: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Both for T {}
type Stream = Box<dyn Both>;

impl Listener {
    fn address(&self) -> Address {
        match self {
            Listener::Unix(_, address) => address.clone(),
            Listener::Tcp(socket) => Address::Tcp(socket.local_addr().unwrap_or(([0, 0, 0, 0], 0).into())),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Listener::Tcp(socket) => quick(socket.accept().await?.0)?,
            Listener::Unix(socket, _) => Box::new(socket.accept().await?.0),
        })
    }
}

/// Tokens are small and must not wait for each other.
fn quick(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

async fn connect(to: &Target) -> io::Result<Stream> {
    match to {
        Target::At(Address::Tcp(address)) => quick(TcpStream::connect(address).await?),
        Target::At(Address::Unix(path)) => Ok(Box::new(UnixStream::connect(path).await?)),
        Target::Named(host, port) => quick(TcpStream::connect((host.as_str(), *port)).await?),
    }
}

async fn bind(what: &str, address: &Address) -> Result<Listener, Error> {
    let fail = |source: io::Error| Error::Listen { what: what.to_owned(), address: address.clone(), source };
    match address {
        Address::Tcp(wanted) => Ok(Listener::Tcp(TcpListener::bind(wanted).await.map_err(fail)?)),
        Address::Unix(path) => {
            let socket = crate::http::bind_unix(path).await.map_err(fail)?;
            Ok(Listener::Unix(socket, address.clone()))
        }
    }
}
