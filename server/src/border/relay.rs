//! One link: connections in, connections out, and the bytes between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::tls::Tls;
use super::{Listener, Shared, Stream, Target, connect};
use crate::gateway::Address;

/// On one machine a connection is made at once or never; elsewhere within a few journeys of a packet.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// What one direction of one connection may hold.
const BUFFER: usize = 16 << 10;
/// After an accept that failed, for want of files most likely.
const PAUSE: Duration = Duration::from_millis(50);

/// What is known of a link.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) name: String,
    pub(super) listen: Address,
    pub(super) to: Target,
    listen_tls: Option<Tls>,
    to_tls: Option<Tls>,
    room: Arc<Semaphore>,
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
            room: Arc::new(Semaphore::new(max_connections)),
            open: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

/// Takes connections until the border stops.
pub(super) async fn accept(shared: Arc<Shared>, at: usize, listener: Listener, tasks: TaskTracker) {
    let relay = &shared.relays[at];
    loop {
        let taken = async {
            let Ok(room) = relay.room.clone().acquire_owned().await else { return std::future::pending().await };
            (listener.accept().await, room)
        };
        let (accepted, room) = tokio::select! {
            () = shared.stop.accept.cancelled() => return,
            taken = taken => taken,
        };
        match accepted {
            Ok(stream) => {
                let shared = shared.clone();
                tasks.spawn(async move {
                    one(&shared, at, stream).await;
                    drop(room);
                });
            }
            Err(error) => {
                tracing::warn!(link = relay.name, %error, "a connection cannot be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Counts while it lives.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn begin(count: &'a AtomicU64) -> Counted<'a> {
        count.fetch_add(1, Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One connection, until one of its ends, a fault, or the border ends it.
async fn one(shared: &Shared, at: usize, here: Stream) {
    let relay = &shared.relays[at];
    let _open = Counted::begin(&relay.open);
    relay.connections.fetch_add(1, Relaxed);
    let mut fault = shared.faults.watch();
    // What has been opened is kept while it stalls: nobody at either end may notice more than silence.
    let mut there: Option<Stream> = None;
    // Kept outside of what a fault interrupts; only a handshake that it meets half-way ends.
    let (mut here, mut secured) = (Some(here), None);
    let relaying = async {
        let within = async |made: &mut (dyn Future<Output = std::io::Result<Stream>> + Send + Unpin)| {
            timeout(CONNECT_WITHIN, made).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        };
        let Some(arrived) = here.take() else { return };
        let here: &mut Stream = match &relay.listen_tls {
            None => secured.insert(arrived),
            Some(tls) => match within(&mut Box::pin(tls.accept(arrived))).await {
                Ok(stream) => secured.insert(stream),
                Err(error) => {
                    relay.failures.fetch_add(1, Relaxed);
                    // A stranger, or a site whose certificate is old: worth a look, and no reason to be loud about each.
                    tracing::info!(link = relay.name, %error, "somebody was not let in");
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
                tracing::debug!(link = relay.name, to = %relay.to, %error, "nobody answers behind a link");
                return;
            }
        };
        // An end that breaks off is told to the other by our closing; there is nobody else to tell.
        let _ = copy_bidirectional_with_sizes(here, stream, BUFFER, BUFFER).await;
    };
    tokio::select! {
        // Looked at first: with a fault that is there already, nothing is even connected to.
        biased;
        _ = fault.wait_for(Option::is_some) => {}
        () = shared.stop.leave.cancelled() => return,
        () = relaying => return,
    }
    let _stalled = Counted::begin(&relay.stalled);
    tokio::select! {
        _ = fault.wait_for(Option::is_none) => {}
        () = shared.stop.leave.cancelled() => {}
    }
}
