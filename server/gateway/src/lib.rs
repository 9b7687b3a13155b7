//! The gateway of a site: the one address that clients see, in front of any number of server replicas.
//!
//! It terminates TLS, balances requests by weight among healthy replicas, retries what is safe to retry, streams both
//! ways with back-pressure, and merges the replicas' metrics. It has no models, keys or database. Its configuration can
//! be reloaded ([`Running::reload`], `POST /reload`, SIGHUP) without losing a request.
//!
//! The path of a request: [`listen`] → [`forward`] → [`backend`], chosen by [`balance`] from the results of [`health`] and,
//! for a prompt, from the answers before it ([`prefix`]).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod config;

mod listen;

mod forward;
mod handover;

mod backend;
mod balance;
mod health;
mod prefix;
mod trust;
mod turns;

mod admin;
mod admission;
mod answer;
mod body;
mod certificate;
mod early;
mod events;
mod exposition;
mod frames;
mod idle;
mod inspect;
mod lines;
mod memory;
mod metrics;
mod plain;
mod stall;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use textnlp_process::{Cors, InvalidConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{BackendTls, Config, SocketAddress};
pub use plain::{Probe, exchange};
pub use trust::Trust;

use admission::Admission;
use backend::Backend;
use balance::Backends;
use certificate::Certificate;
use events::Events;
use handover::{Inherited, Sockets};
use listen::Listener;
use metrics::Metrics;
use prefix::Prefixes;
use turns::Turns;

/// Why the gateway does not start, or rejects a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// An address is in use or cannot be bound.
    #[error("listen on {address} ({what}): {source}")]
    Listen {
        /// The purpose of the listener.
        what: &'static str,
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
        /// The hint.
        hint: String,
    },
    /// The certificate or its key cannot be used.
    #[error("certificate {path}: {why}")]
    Certificate {
        /// The file.
        path: Utf8PathBuf,
        /// The problem.
        why: String,
    },
    /// Signals cannot be received.
    #[error("wait for signals")]
    Signals(#[source] std::io::Error),
}

impl Error {
    /// The hint.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Listen { hint, .. } => Some(hint.clone()),
            Error::Certificate { .. } => Some("put a PEM chain and its PEM key at the configured paths".to_owned()),
            Error::Config(_) | Error::Signals(_) => None,
        }
    }
}

/// A running gateway. Dropping it stops it at once; [`Running::drain`] lets requests finish.
#[derive(Debug)]
pub struct Running {
    gateway: Arc<Gateway>,
    listen: SocketAddress,
    metrics: Option<SocketAddress>,
    health: Option<SocketAddress>,
    admin: Option<SocketAddress>,
}

/// The changes of a reload.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Backends that are new.
    pub added: Vec<String>,
    /// Backends that get no more requests.
    pub removed: Vec<String>,
    /// Backends whose weight changed.
    pub reweighted: Vec<String>,
    /// The certificate is another one.
    pub certificate: bool,
    /// Settings that differ but are taken over only by a restart.
    pub needs_restart: Vec<&'static str>,
}

/// State shared by the tasks.
#[derive(Debug)]
struct Gateway {
    file: Utf8PathBuf,
    /// Replaced as a whole by a reload; a request keeps the one it started with.
    live: RwLock<Arc<Live>>,
    certificate: Option<Arc<Certificate>>,
    metrics: Metrics,
    events: Events,
    admission: Arc<Admission>,
    handshakes: Turns,
    memory: Arc<memory::Memory>,
    prefixes: Prefixes,
    sockets: Sockets,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
    stops: ShutdownSignals,
}

#[derive(Debug)]
struct Live {
    config: Config,
    cors: Option<Cors>,
    backends: Backends,
}

impl Live {
    fn new(config: Config, backends: Vec<Arc<Backend>>) -> Arc<Live> {
        let cors = Cors::new(&config.cors_origins);
        Arc::new(Live { config, cors, backends: Backends::new(backends) })
    }
}

/// Shutdown signals and task trackers.
#[derive(Debug, Clone)]
struct ShutdownSignals {
    /// No new connections, and no new requests on open ones.
    drain: CancellationToken,
    /// Leave now.
    leave: CancellationToken,
    tasks: TaskTracker,
    /// The tasks that accept connections.
    accepting: TaskTracker,
    /// Connections to backends and health checks, until the last request.
    upstream: TaskTracker,
    /// Milliseconds; set before `drain`.
    lame_duck: Arc<AtomicU64>,
}

/// Idle connections are served for this long after SIGTERM, for requests in transit.
const LAME_DUCK: Duration = Duration::from_millis(500);
/// The same when a successor already runs and the shutdown is not urgent.
const LAME_DUCK_ASIDE: Duration = Duration::from_secs(5);

impl ShutdownSignals {
    fn new() -> ShutdownSignals {
        ShutdownSignals {
            drain: CancellationToken::new(),
            leave: CancellationToken::new(),
            tasks: TaskTracker::new(),
            accepting: TaskTracker::new(),
            upstream: TaskTracker::new(),
            lame_duck: Arc::default(),
        }
    }

    fn lame_duck(&self) -> Duration {
        Duration::from_millis(self.lame_duck.load(Relaxed))
    }
}

/// Runs the gateway of this configuration file until SIGTERM or SIGINT, then lets requests finish; a second signal ends
/// it at once. SIGHUP reloads. SIGUSR1 hands over to a successor, if one can be expected: see [`handover`].
pub async fn run(file: &Utf8Path) -> Result<(), Error> {
    // Before the first socket: a signal during the start must not kill a gateway that already has clients.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    let mut aside = signal(SignalKind::user_defined1()).map_err(Error::Signals)?;
    let mut inherited = Inherited::take();
    let mut lock = inherited.lock.take();
    let running = start_with(file, inherited, lock.is_some()).await?;
    let held = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = aside.recv() => match lock.take() {
                Some(lock) => break Some(lock),
                None => tracing::warn!("no new gateway process is waiting: SIGUSR1 is ignored"),
            },
            _ = hangup.recv() => match running.reload().await {
                Ok(reloaded) => tracing::info!(?reloaded, "reloaded"),
                Err(error) => tracing::error!(%error, "the new configuration was rejected"),
            },
        }
    };
    let left = async {
        match held {
            Some(lock) => running.step_aside(lock).await,
            None => running.drain().await,
        }
    };
    tokio::select! {
        () = left => {}
        _ = terminate.recv() => tracing::warn!("second stop signal: requests in flight are aborted"),
        _ = interrupt.recv() => tracing::warn!("second stop signal: requests in flight are aborted"),
    }
    Ok(())
}

/// Starts the gateway: everything that can be wrong with configuration, certificate and addresses is wrong here.
pub async fn start(file: &Utf8Path) -> Result<Running, Error> {
    start_with(file, Inherited::default(), false).await
}

async fn start_with(file: &Utf8Path, mut inherited: Inherited, steps_aside: bool) -> Result<Running, Error> {
    let config = Config::read(file)?;
    let certificate = config.tls.as_ref().map(Certificate::load).transpose()?.map(Arc::new);
    let front = Listener::bind("clients", &config.listen, &mut inherited).await?;
    let metrics = match &config.metrics_listen {
        Some(address) => Some(Listener::bind("metrics", address, &mut inherited).await?),
        None => None,
    };
    let admin = match &config.admin_listen {
        Some(address) => Some(Listener::bind("administration", address, &mut inherited).await?),
        None => None,
    };

    let checks = match &config.health_listen {
        Some(address) => Some(Listener::bind("health checks", address, &mut inherited).await?),
        None => None,
    };

    let ready = match &config.ready_listen {
        Some(address) => Some(Listener::bind("health checks of other sites", address, &mut inherited).await?),
        None => None,
    };

    inherited.drop_the_rest();
    let mut shared = Vec::new();
    for listener in [Some(&front), metrics.as_ref(), checks.as_ref(), ready.as_ref()].into_iter().flatten() {
        match listener.shared() {
            Ok(socket) => shared.extend(socket),
            Err(error) => tracing::warn!(address = %listener.address(), %error, "this socket cannot be handed over"),
        }
    }
    let backends = config.backends.iter().map(|wanted| Arc::new(Backend::new(wanted))).collect();
    let (listen, metrics_address) = (front.address(), metrics.as_ref().map(Listener::address));
    let health_address = checks.as_ref().map(Listener::address);
    let admin_address = admin.as_ref().map(Listener::address);
    let gateway = Arc::new(Gateway {
        file: file.to_owned(),
        live: RwLock::new(Live::new(config, backends)),
        certificate,
        metrics: Metrics::new(),
        events: Events::default(),
        admission: Arc::default(),
        handshakes: Turns::new(),
        memory: Arc::default(),
        prefixes: Prefixes::default(),
        sockets: Sockets::new(shared, steps_aside),
        reloading: tokio::sync::Mutex::new(()),
        stops: ShutdownSignals::new(),
    });
    for backend in gateway.live().backends.all() {
        gateway.watch(backend);
    }
    if gateway.certificate.is_some() {
        let task = certificate::watch(gateway.clone());
        gateway.stops.upstream.spawn(task);
    }
    gateway.stops.accepting.spawn(front.serve_clients(gateway.clone()));
    if let Some(listener) = metrics {
        gateway.stops.accepting.spawn(listener.serve_small(gateway.clone(), None, metrics::answer));
    }
    if let Some(listener) = checks {
        gateway.stops.accepting.spawn(listener.serve_small(gateway.clone(), None, admin::answer_checks));
    }
    if let Some(listener) = ready {
        let certificate = gateway.certificate.clone();
        gateway.stops.accepting.spawn(listener.serve_small(gateway.clone(), certificate, admin::answer_ready));
    }
    if let Some(listener) = admin {
        gateway.stops.accepting.spawn(listener.serve_small(gateway.clone(), None, admin::answer));
    }
    tracing::info!(%listen, tls = gateway.certificate.is_some(), "the gateway is listening");
    Ok(Running { gateway, listen, metrics: metrics_address, health: health_address, admin: admin_address })
}

impl Running {
    /// The address for clients, with the assigned port.
    pub fn address(&self) -> &SocketAddress {
        &self.listen
    }

    /// The address for metrics, with the assigned port.
    pub fn metrics_address(&self) -> Option<&SocketAddress> {
        self.metrics.as_ref()
    }

    /// The address for health checks, with the assigned port.
    pub fn health_address(&self) -> Option<&SocketAddress> {
        self.health.as_ref()
    }

    /// The address for administration, with the assigned port.
    pub fn admin_address(&self) -> Option<&SocketAddress> {
        self.admin.as_ref()
    }

    /// Reloads the file and the certificate. On any error nothing changes.
    pub async fn reload(&self) -> Result<Reloaded, Error> {
        self.gateway.reload().await
    }

    /// Accepts nothing new, waits until requests in flight have ended or the drain time is over, and stops.
    pub async fn drain(self) {
        self.leave(LAME_DUCK, None).await;
    }

    /// The same, but releases the lock as soon as nothing listens here, so that a successor may start.
    async fn step_aside(self, lock: OwnedFd) {
        self.leave(LAME_DUCK_ASIDE, Some(lock)).await;
    }

    async fn leave(self, lame_duck: Duration, lock: Option<OwnedFd>) {
        let stops = self.gateway.stops.clone();
        let most = Duration::from_secs(self.gateway.live().config.drain_seconds);
        tracing::info!(seconds = most.as_secs(), steps_aside = lock.is_some(), "draining");
        stops.lame_duck.store(lame_duck.min(most).as_millis() as u64, Relaxed);
        stops.drain.cancel();
        self.gateway.sockets.close();
        stops.accepting.close();
        stops.accepting.wait().await;
        drop(lock);
        stops.tasks.close();
        if tokio::time::timeout(most, stops.tasks.wait()).await.is_err() {
            tracing::warn!("requests are still in flight after the drain time and are aborted");
        }
        stops.leave.cancel();
        stops.upstream.close();
        stops.tasks.wait().await;
        stops.upstream.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gateway.stops.drain.cancel();
        self.gateway.stops.leave.cancel();
        self.gateway.sockets.close();
    }
}

impl Gateway {
    fn live(&self) -> Arc<Live> {
        self.live.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Monitors a backend until it is removed or the gateway stops.
    fn watch(self: &Arc<Self>, backend: &Arc<Backend>) {
        self.stops.upstream.spawn(health::watch(self.clone(), backend.clone()));
    }

    async fn reload(self: &Arc<Self>) -> Result<Reloaded, Error> {
        let _one = self.reloading.lock().await;
        let config = Config::read(&self.file)?;
        let old = self.live();
        let mut reloaded = Reloaded { needs_restart: config.needs_restart(&old.config), ..Reloaded::default() };
        if let (Some(certificate), Some(files)) = (&self.certificate, &config.tls) {
            reloaded.certificate = certificate.reload(files)?;
        }

        let mut backends = Vec::new();
        for wanted in &config.backends {
            match old.backends.find(wanted) {
                Some(kept) => {
                    if kept.set_weight(wanted.weight) {
                        reloaded.reweighted.push(wanted.name.clone());
                    }
                    backends.push(kept);
                }
                None => {
                    reloaded.added.push(wanted.name.clone());
                    backends.push(Arc::new(Backend::new(wanted)));
                }
            }
        }
        // New backends are checked before the old ones are removed, so that replacing all of them fails no request.
        let new: Vec<_> = backends.iter().filter(|b| reloaded.added.contains(&b.name)).cloned().collect();
        futures::future::join_all(new.iter().map(|backend| health::check_backend(self, &config.health, backend))).await;

        let gone: Vec<_> =
            old.backends.all().iter().filter(|b| !backends.iter().any(|kept| Arc::ptr_eq(b, kept))).cloned().collect();
        let live = Live::new(config, backends);
        *self.live.write().unwrap_or_else(std::sync::PoisonError::into_inner) = live;
        for backend in gone {
            // Requests in flight finish; no new ones start.
            backend.retire();
            self.metrics.forget(&backend.name);
            reloaded.removed.push(backend.name.clone());
        }
        for backend in &new {
            self.watch(backend);
        }
        Ok(reloaded)
    }
}
