//! One link: connections in, connections out, and the bytes between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use textnlp_gateway::SocketAddress;
use textnlp_net::listen::{Limits, Listener};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::tls::Tls;
use super::{Shared, Stream, Target, connect};

/// Connect timeout. On one machine a connection succeeds at once or never; elsewhere it takes a few round trips.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Buffer size per direction of a connection, in bytes.
const BUFFER: usize = 16 << 10;

/// The state of a link.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) name: String,
    pub(super) listen: SocketAddress,
    pub(super) to: Target,
    listen_tls: Option<Tls>,
    to_tls: Option<Tls>,
    max_connections: usize,
    pub(super) open: AtomicU64,
    pub(super) stalled: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) failures: AtomicU64,
}

impl Relay {
    pub(super) fn new(link: &super::Link, max_connections: usize) -> Relay {
        Relay {
            name: link.name.clone(),
            listen: link.listen.clone(),
            to: link.to.clone(),
            listen_tls: link.listen_tls.clone(),
            to_tls: link.to_tls.clone(),
            max_connections,
            open: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

/// Accepts connections until the relay stops.
pub(super) async fn accept(shared: Arc<Shared>, at: usize, listener: Listener, tasks: TaskTracker) {
    let relay = &shared.relays[at];
    let limits = Limits { name: &relay.name, max_connections: relay.max_connections };
    let handle = |stream| {
        let shared = shared.clone();
        async move { one(&shared, at, Box::new(stream)).await }
    };
    listener.serve(limits, &shared.stop.accept, &tasks, handle).await;
}

/// Increments a counter for its lifetime.
struct ActiveCount<'a>(&'a AtomicU64);

impl<'a> ActiveCount<'a> {
    fn begin(count: &'a AtomicU64) -> ActiveCount<'a> {
        count.fetch_add(1, Relaxed);
        ActiveCount(count)
    }
}

impl Drop for ActiveCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Relays one connection until one of its ends, a fault, or the shutdown ends it.
async fn one(shared: &Shared, at: usize, here: Stream) {
    let relay = &shared.relays[at];
    let _open = ActiveCount::begin(&relay.open);
    relay.connections.fetch_add(1, Relaxed);
    let mut fault = shared.faults.watch();
    // An established connection stays open while a fault stalls it: both ends must see only silence.
    let mut there: Option<Stream> = None;
    // Declared outside of what a fault interrupts; only a handshake in progress is aborted.
    let (mut here, mut secured) = (Some(here), None);
    let relaying = async {
        let within = async |made: &mut (dyn Future<Output = std::io::Result<Stream>> + Send + Unpin)| {
            timeout(CONNECT_TIMEOUT, made).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        };
        let Some(arrived) = here.take() else { return };
        let here: &mut Stream = match &relay.listen_tls {
            None => secured.insert(arrived),
            Some(tls) => match within(&mut Box::pin(tls.accept(arrived))).await {
                Ok(stream) => secured.insert(stream),
                Err(error) => {
                    relay.failures.fetch_add(1, Relaxed);
                    // An unknown client, or a site with an expired certificate. It may be frequent, so it is not a
                    // warning.
                    tracing::info!(link = relay.name, %error, "a connection was refused");
                    return;
                }
            },
        };
        let made = async {
            let stream = connect(&relay.to).await?;
            match &relay.to_tls {
                None => Ok(stream),
                Some(tls) => tls.connect(stream).await,
            }
        };
        let stream = match within(&mut Box::pin(made)).await {
            Ok(stream) => there.insert(stream),
            Err(error) => {
                relay.failures.fetch_add(1, Relaxed);
                tracing::debug!(link = relay.name, to = %relay.to, %error, "the destination of a link does not answer");
                return;
            }
        };
        // If one end fails, closing the connection reports it to the other end.
        let _ = copy_bidirectional_with_sizes(here, stream, BUFFER, BUFFER).await;
    };
    tokio::select! {
        // Checked first: while a fault is active, no connection is opened.
        biased;
        _ = fault.wait_for(Option::is_some) => {}
        () = shared.stop.leave.cancelled() => return,
        () = relaying => return,
    }
    let _stalled = ActiveCount::begin(&relay.stalled);
    tokio::select! {
        _ = fault.wait_for(Option::is_none) => {}
        () = shared.stop.leave.cancelled() => {}
    }
}
