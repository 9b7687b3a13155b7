//! The gateway of a site: the one address that clients see, in front of any number of server replicas.
//!
//! It ends TLS, shares requests out by weight among the replicas that are healthy, repeats elsewhere what is safe to
//! repeat, streams both ways with back-pressure, and gathers everybody's metrics. It knows no models, no keys and no
//! database. What it serves may change while it runs ([`Running::reload`], `POST /reload`, SIGHUP) without losing a request.
//!
//! The road of a request: [`listen`] → [`forward`] → [`backend`], chosen by [`balance`] from what [`health`] found out.

mod config;

mod listen;

mod forward;
mod handover;

mod backend;
mod balance;
mod health;
mod trust;

mod admin;
mod answer;
mod body;
mod certificate;
mod exposition;
mod metrics;
mod plain;
mod quiet;
mod stall;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Address, BackendTls, Config, InvalidConfig};
pub(crate) use plain::{exchange, get};
pub(crate) use trust::Trust;

use backend::Backend;
use balance::Backends;
use certificate::Certificate;
use handover::{Inherited, Sockets};
use listen::Listener;
use metrics::Metrics;

/// Why the gateway does not start, or does not take a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// An address is taken or not ours.
    #[error("listen on {address} ({what}): {source}")]
    Listen {
        /// What was to listen there.
        what: &'static str,
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
        /// What to do.
        hint: String,
    },
    /// The certificate or its key cannot be used.
    #[error("certificate {path}: {why}")]
    Certificate {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Signals cannot be received.
    #[error("wait for signals")]
    Signals(#[source] std::io::Error),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Listen { hint, .. } => Some(hint.clone()),
            Error::Certificate { .. } => {
                Some("put a PEM chain and its PEM key where the configuration says".to_owned())
            }
            Error::Config(_) | Error::Signals(_) => None,
        }
    }
}

/// A gateway that runs. Dropping it stops it at once; [`Running::drain`] lets requests finish.
#[derive(Debug)]
pub struct Running {
    gateway: Arc<Gateway>,
    listen: Address,
    metrics: Option<Address>,
}

/// What a reload changed.
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

/// What the tasks share.
#[derive(Debug)]
struct Gateway {
    file: Utf8PathBuf,
    /// Replaced as a whole by a reload; a request keeps the one it began with.
    live: RwLock<Arc<Live>>,
    certificate: Option<Arc<Certificate>>,
    metrics: Metrics,
    sockets: Sockets,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
    stops: Stops,
}

#[derive(Debug)]
struct Live {
    config: Config,
    backends: Backends,
}

/// How tasks learn that it is over, and who waits for them.
#[derive(Debug, Clone)]
struct Stops {
    /// Nothing new: no connections, no requests on the ones there are.
    drain: CancellationToken,
    /// Leave now.
    leave: CancellationToken,
    tasks: TaskTracker,
    /// Who opens connections for clients.
    accepting: TaskTracker,
    /// Connections to backends and those who look after them, to the last request: nobody waits for them before they are told to leave.
    upstream: TaskTracker,
    /// Milliseconds; set before `drain`.
    lame_duck: Arc<AtomicU64>,
}

/// Idle connections are served for so long after SIGTERM: whoever has a request on its way must not find a closed door.
const LAME_DUCK: Duration = Duration::from_millis(500);
/// The same when a successor is at work already, and nobody waits.
const LAME_DUCK_ASIDE: Duration = Duration::from_secs(5);

impl Stops {
    fn new() -> Stops {
        Stops {
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
/// it at once. SIGHUP reloads. SIGUSR1 makes room for a successor, if there is one to expect: see [`handover`].
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
                None => tracing::warn!("nobody waits to take over: SIGUSR1 changes nothing"),
            },
            _ = hangup.recv() => match running.reload().await {
                Ok(reloaded) => tracing::info!(?reloaded, "reloaded"),
                Err(error) => tracing::error!(%error, "the new configuration is not taken over"),
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
        _ = terminate.recv() => tracing::warn!("asked twice to stop: requests in flight are cut"),
        _ = interrupt.recv() => tracing::warn!("asked twice to stop: requests in flight are cut"),
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

    inherited.drop_the_rest();
    let mut shared = Vec::new();
    for listener in [Some(&front), metrics.as_ref()].into_iter().flatten() {
        match listener.shared() {
            Ok(socket) => shared.extend(socket),
            Err(error) => tracing::warn!(address = %listener.address(), %error, "this socket cannot be handed over"),
        }
    }
    let backends = Backends::new(config.backends.iter().map(|wanted| Arc::new(Backend::new(wanted))).collect());
    let (listen, metrics_address) = (front.address(), metrics.as_ref().map(Listener::address));
    let gateway = Arc::new(Gateway {
        file: file.to_owned(),
        live: RwLock::new(Arc::new(Live { config, backends })),
        certificate,
        metrics: Metrics::new(),
        sockets: Sockets::new(shared, steps_aside),
        reloading: tokio::sync::Mutex::new(()),
        stops: Stops::new(),
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
        gateway.stops.accepting.spawn(listener.serve_plain(gateway.clone(), metrics::answer));
    }
    if let Some(listener) = admin {
        gateway.stops.accepting.spawn(listener.serve_plain(gateway.clone(), admin::answer));
    }
    tracing::info!(%listen, tls = gateway.certificate.is_some(), "the gateway listens");
    Ok(Running { gateway, listen, metrics: metrics_address })
}

impl Running {
    /// Where clients connect, with the port that was got.
    pub fn address(&self) -> &Address {
        &self.listen
    }

    /// Where metrics are, with the port that was got.
    pub fn metrics_address(&self) -> Option<&Address> {
        self.metrics.as_ref()
    }

    /// Reads the file and the certificate again. If anything is wrong, everything stays as it is.
    pub async fn reload(&self) -> Result<Reloaded, Error> {
        self.gateway.reload().await
    }

    /// Takes nothing new, waits until requests in flight have ended or the drain time is over, and stops.
    pub async fn drain(self) {
        self.leave(LAME_DUCK, None).await;
    }

    /// The same, and a successor may begin as soon as nobody listens here any more: that is what the lock says.
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
            tracing::warn!("requests are still in flight after the drain time and are cut");
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

    /// Looks after a backend until it is removed or the gateway leaves.
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
        // The new ones are looked at before the old ones go: when all are replaced, no request finds nobody.
        let new: Vec<_> = backends.iter().filter(|b| reloaded.added.contains(&b.name)).cloned().collect();
        futures::future::join_all(new.iter().map(|backend| health::look(self, &config.health, backend))).await;

        let gone: Vec<_> =
            old.backends.all().iter().filter(|b| !backends.iter().any(|kept| Arc::ptr_eq(b, kept))).cloned().collect();
        let live = Arc::new(Live { config, backends: Backends::new(backends) });
        *self.live.write().unwrap_or_else(std::sync::PoisonError::into_inner) = live;
        for backend in gone {
            // Requests that are on their way to it finish; nothing new begins.
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
