//! One backend: its health and its connections.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use camino::Utf8Path;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::ShutdownSignals;
use super::body::Upload;
use super::config::{Health, SocketAddress, WantedBackend};
use super::early::EarlyAnswer;
use super::plain::connect_unix;
use super::trust::Trust;

/// Maximum idle connections; about a replica's batch size.
const MOST_IDLE: usize = 64;
/// Idle timeout, shorter than the server's, so that the gateway closes first.
const IDLE_FOR: Duration = Duration::from_secs(15);
/// The longest head of an answer, and the most bytes of a request that a backend has not read.
pub(super) const BACKEND_BUFFER: usize = 64 << 10;
/// Why a request that waited gets no answer.
const GIVEN_UP: &str = "it no longer answers";
/// Timeout of connecting, with the handshake. A wait for room in the queue of a Unix socket is not part of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Poll interval of the backend's state while a request waits for room in the queue of a Unix socket.
const STATE_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) address: SocketAddress,
    pub(super) metrics_address: Option<SocketAddress>,
    pub(super) ready_address: Option<SocketAddress>,
    pub(super) trust: Option<Trust>,
    /// One request at a time connects to a Unix socket.
    connecting: Semaphore,
    weight: AtomicU32,
    known: Mutex<HealthResults>,
    idle: Mutex<Vec<Lease>>,
    pub(super) in_flight: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) failures: AtomicU64,
    /// See [`Backend::incarnation`].
    incarnation: AtomicU32,
    /// See [`Backend::fails`].
    fails: AtomicBool,
    /// How often health checks gave it up.
    given_up: watch::Sender<u64>,
    /// Cancelled when a reload has removed it.
    pub(super) retired: CancellationToken,
}

/// The results of health checks.
#[derive(Debug, Default)]
struct HealthResults {
    state: State,
    good_in_a_row: u32,
    bad_in_a_row: u32,
    last_error: Option<String>,
}

/// Whether it gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// Not checked yet; used only without a healthy backend.
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
    /// Draining: used only if no other backend is left, and its connections are not reused.
    Draining,
}

/// A connection in use by one request. Dropping it closes it, which tells the backend that the client is gone.
#[derive(Debug)]
pub(super) struct Lease {
    sender: http1::SendRequest<Upload>,
    /// When the request on it must be over; `None` between requests.
    deadline: watch::Sender<Option<Instant>>,
    idle_since: Instant,
    /// Whether the backend accepts no more on it.
    is_broken: Arc<AtomicBool>,
    pub(super) reused: bool,
}

/// Why there is no response.
pub(super) enum Failed {
    /// No byte of the request was sent; it is returned.
    NotSent { request: Box<Request<Upload>>, why: String, connect: bool },
    /// This process can open no more files, which says nothing of the backend.
    NoFiles,
    /// Some of it has left. `unread`: the backend closed the connection without having read all of it.
    Sent { why: String, unread: bool },
}

impl Backend {
    pub(super) fn new(wanted: &WantedBackend) -> Backend {
        Backend {
            name: wanted.name.clone(),
            address: wanted.listen.clone(),
            metrics_address: wanted.metrics_listen.clone(),
            ready_address: wanted.ready_listen.clone(),
            trust: wanted.tls.as_ref().map(Trust::new),
            connecting: Semaphore::new(1),
            weight: AtomicU32::new(wanted.weight),
            known: Mutex::default(),
            idle: Mutex::default(),
            in_flight: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            incarnation: AtomicU32::new(next_incarnation()),
            fails: AtomicBool::new(false),
            given_up: watch::channel(0).0,
            retired: CancellationToken::new(),
        }
    }

    /// Whether the configuration has this backend, apart from its weight.
    pub(super) fn is(&self, wanted: &WantedBackend) -> bool {
        let trusts = match (&self.trust, &wanted.tls) {
            (Some(trust), Some(tls)) => trust.is(tls),
            (None, None) => true,
            _ => false,
        };
        let (name, address) = (self.name == wanted.name, self.address == wanted.listen);
        let others = self.metrics_address == wanted.metrics_listen && self.ready_address == wanted.ready_listen;
        name && address && others && trusts
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Whether the weight was another before.
    pub(super) fn set_weight(&self, weight: u32) -> bool {
        self.weight.swap(weight, Relaxed) != weight
    }

    pub(super) fn state(&self) -> State {
        self.known().state
    }

    /// A number above 0 that no other backend has, and that changes when it comes back into the rotation: it may be another
    /// process, with an empty prefix cache.
    pub(super) fn incarnation(&self) -> u32 {
        self.incarnation.load(Relaxed)
    }

    /// Whether the last prompt failed there.
    pub(super) fn fails(&self) -> bool {
        self.fails.load(Relaxed)
    }

    /// Records how a prompt ended.
    pub(super) fn answered_prompt(&self, well: bool) {
        self.fails.store(!well, Relaxed);
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.known().last_error.clone()
    }

    /// Records the result of a health check.
    pub(super) fn looked(&self, result: Result<(), String>, health: &Health) {
        let mut known = self.known();
        let before = known.state;
        match result {
            Ok(()) => {
                known.bad_in_a_row = 0;
                known.good_in_a_row = known.good_in_a_row.saturating_add(1);
                if known.good_in_a_row >= health.healthy_after {
                    known.state = State::Healthy;
                }
            }
            Err(why) => {
                known.good_in_a_row = 0;
                known.bad_in_a_row = known.bad_in_a_row.saturating_add(1);
                known.last_error = Some(why);
                // One failure is enough for a backend that was never healthy, or is draining.
                if known.bad_in_a_row >= health.unhealthy_after || matches!(before, State::Unknown | State::Draining) {
                    known.state = State::Unhealthy;
                }
            }
        }
        let (now, why) = (known.state, known.last_error.clone().unwrap_or_default());
        if now == State::Healthy && before != State::Healthy {
            self.incarnation.store(next_incarnation(), Relaxed);
        }
        // Not by a change of the state: a request may have found it unhealthy before. One signal reaches all that wait.
        let given_up = health.gives_up && known.bad_in_a_row == health.unhealthy_after;
        drop(known);
        if given_up {
            self.given_up.send_modify(|times| *times += 1);
        }
        match (before, now) {
            (State::Healthy, State::Unhealthy) => {
                tracing::warn!(backend = %self.name, %why, "backend removed from rotation")
            }
            (State::Unknown | State::Unhealthy | State::Draining, State::Healthy) => {
                tracing::info!(backend = %self.name, "backend added to rotation")
            }
            _ => {}
        }
        if now == State::Unhealthy {
            // The server may close them at any time, also during the next request.
            self.idle().clear();
        }
    }

    /// Completes when a later health check gives the backend up; never where that is not configured.
    pub(super) fn given_up(&self) -> impl Future<Output = ()> + use<> {
        let mut given_up = self.given_up.subscribe();
        async move {
            // The sender is dropped only together with the request that holds it.
            if given_up.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// The backend reports draining, in a health check or any other response. The gateway closes the connections, so
    /// that none is closed during a request. It gets requests again after the next successful health check.
    pub(super) fn drains(&self) {
        let mut known = self.known();
        if known.state != State::Draining {
            tracing::info!(backend = %self.name, "backend is draining");
        }
        known.state = State::Draining;
        known.good_in_a_row = 0;
        drop(known);
        self.idle().clear();
    }

    /// A request found it unavailable: the connection failed, or it is draining. It gets requests again after the next
    /// successful health check.
    pub(super) fn takes_no_requests(&self, why: String) {
        self.failures.fetch_add(1, Relaxed);
        let mut known = self.known();
        if known.state == State::Healthy {
            tracing::warn!(backend = %self.name, %why, "backend removed from rotation");
        }
        known.state = State::Unhealthy;
        known.good_in_a_row = 0;
        known.last_error = Some(why);
        drop(known);
        self.idle().clear();
    }

    /// A request failed in a way that does not affect the next one.
    pub(super) fn failed_once(&self, why: String) {
        self.failures.fetch_add(1, Relaxed);
        self.fails.store(true, Relaxed);
        self.known().last_error = Some(why);
    }

    pub(super) fn retire(&self) {
        self.retired.cancel();
        self.idle().clear();
    }

    /// Sends a request on a connection that is there, or on a new one. `fresh`: on a new one.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: Request<Upload>,
        deadline: Instant,
        fresh: bool,
        stops: &ShutdownSignals,
    ) -> Result<(Response<Incoming>, Lease), Failed> {
        let mut given_up = std::pin::pin!(self.given_up());
        let mut lease = match if fresh { None } else { self.take_idle().await } {
            Some(lease) => lease,
            // Nothing was sent before there is a connection, so another backend can be tried.
            None => match tokio::select! {
                connected = self.connect(stops) => connected,
                () = &mut given_up => Err(io::Error::other(GIVEN_UP)),
            } {
                Ok(lease) => lease,
                Err(error) if is_out_of_files(&error) => return Err(Failed::NoFiles),
                Err(error) => {
                    return Err(Failed::NotSent {
                        request: Box::new(request),
                        why: format!("connect: {error}"),
                        connect: true,
                    });
                }
            },
        };
        lease.deadline.send_replace(Some(deadline));
        let sent = tokio::select! {
            sent = lease.sender.try_send_request(request) => sent,
            () = &mut given_up => return Err(Failed::Sent { why: GIVEN_UP.to_owned(), unread: false }),
        };
        match sent {
            Ok(response) => Ok((response, lease)),
            Err(mut error) => {
                let request = error.take_message();
                let error = error.into_error();
                let (why, unread) = (super::answer::chain(&error), was_not_read(&error));
                Err(match request {
                    Some(request) => Failed::NotSent { request: Box::new(request), why, connect: false },
                    None => Failed::Sent { why, unread },
                })
            }
        }
    }

    /// Returns a connection after its response ended.
    pub(super) fn give_back(&self, mut lease: Lease) {
        if lease.is_broken.load(Relaxed) {
            return;
        }
        lease.deadline.send_replace(None);
        lease.idle_since = Instant::now();
        lease.reused = true;
        let leaves = matches!(self.state(), State::Unhealthy | State::Draining);
        let mut idle = self.idle();
        idle.retain(|lease| lease.idle_since.elapsed() < IDLE_FOR && !lease.sender.is_closed());
        if idle.len() < MOST_IDLE && !lease.sender.is_closed() && !self.retired.is_cancelled() && !leaves {
            idle.push(lease);
        }
    }

    /// Closes connections that were idle for too long.
    pub(super) fn close_idle(&self) {
        self.idle().retain(|lease| lease.idle_since.elapsed() < IDLE_FOR && !lease.sender.is_closed());
    }

    async fn take_idle(&self) -> Option<Lease> {
        loop {
            // The most recently used first, so that those that are not needed reach the idle timeout.
            let mut lease = self.idle().pop()?;
            if lease.idle_since.elapsed() >= IDLE_FOR || lease.sender.is_closed() {
                continue;
            }
            // Ready at once unless the last answer's end is still being handled.
            if matches!(timeout(Duration::from_millis(100), lease.sender.ready()).await, Ok(Ok(()))) {
                return Some(lease);
            }
        }
    }

    async fn connect(&self, stops: &ShutdownSignals) -> io::Result<Lease> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        // With the handshake: behind a local socket may be a relay whose other end does not answer.
        match &self.address {
            SocketAddress::Tcp(address) => {
                let connecting = async {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    self.secured(stream, stops).await
                };
                timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?
            }
            SocketAddress::Unix(path) => {
                let stream = self.connect_unix(path).await?;
                timeout(CONNECT_TIMEOUT, self.secured(stream, stops)).await.map_err(late)?
            }
        }
    }

    /// Requests take turns, so that none overtakes where the backend's queue is full, and only one tries. The request's
    /// deadline and the health checks bound the wait.
    async fn connect_unix(&self, path: &Utf8Path) -> io::Result<UnixStream> {
        let connecting = async {
            let _turn = self.connecting.acquire().await.map_err(io::Error::other)?;
            connect_unix(path).await
        };
        let unhealthy = async {
            loop {
                tokio::time::sleep(STATE_POLL_INTERVAL).await;
                if self.state() == State::Unhealthy {
                    break;
                }
            }
        };
        tokio::select! {
            connected = connecting => connected,
            () = unhealthy => Err(io::Error::other("its queue is full, and it is unhealthy")),
        }
    }

    async fn secured(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        stops: &ShutdownSignals,
    ) -> io::Result<Lease> {
        match &self.trust {
            Some(trust) => shake(trust.secure(stream).await?, stops).await,
            None => shake(stream, stops).await,
        }
    }

    fn known(&self) -> MutexGuard<'_, HealthResults> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Lease>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_incarnation() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Relaxed)
}

fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.raw_os_error().is_some_and(|code| [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error).contains(&code))
}

/// Closing a socket with unread bytes resets the connection, and writing to a closed one fails with a broken pipe. If
/// all bytes were read, the connection ends cleanly. So these two errors mean that the backend never read the whole
/// request.
fn was_not_read(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        }
        cause = error.source();
    }
    false
}

async fn shake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    stops: &ShutdownSignals,
) -> io::Result<Lease> {
    let stream = EarlyAnswer::new(stream);
    let is_broken = stream.is_broken();
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BACKEND_BUFFER)
        .handshake::<_, Upload>(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let (deadline, mut wanted) = watch::channel(None);
    let leave = stops.leave.clone();
    stops.upstream.spawn(async move {
        let mut connection = std::pin::pin!(connection);
        loop {
            let until = *wanted.borrow_and_update();
            let over = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // A failed request is reported to its sender.
                _ = &mut connection => return,
                () = over => return,
                () = leave.cancelled() => return,
                // An error means that the lease was dropped: the response is not needed.
                changed = wanted.changed() => if changed.is_err() { return },
            }
        }
    });
    Ok(Lease { sender, deadline, idle_since: Instant::now(), is_broken, reused: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_is_not_to_blame_for_the_limit_of_open_files() {
        for (code, expect) in [(rustix::io::Errno::MFILE, true), (rustix::io::Errno::CONNREFUSED, false)] {
            assert_eq!(is_out_of_files(&io::Error::from_raw_os_error(code.raw_os_error())), expect, "{code}");
        }
        assert!(!is_out_of_files(&io::Error::other("none of the system")));
    }
}
