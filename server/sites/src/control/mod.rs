//! The site agent and the witness: the processes that run the protocol of `textnlp-control`.
//!
//! The *site agent* replicates control data (keys, tenants, changed feature flags, the public halves of signing keys)
//! between sites. It writes what is acknowledged into the site's database, where the replicas read it, ships usage, and
//! copies the primary's models and configuration. The primary's agent counts rate limits and token budgets where each
//! site has a database. The agent monitors the primary and takes over when the witness grants it. The *witness* stores
//! who is primary, and updates the weights of the global endpoint and the addresses in DNS.

mod actor;
pub(crate) mod client;
mod clock;
mod config;
mod copies;
pub mod counters;
mod database;
mod disk;
mod dns;
mod exposition;
pub mod features;
mod http;
pub mod keys;
mod links;
pub(crate) mod rows;
mod service;
mod status;
mod usage;
mod view;
mod witness;

use std::sync::Arc;

use camino::Utf8PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use clock::now as boottime_ms;
pub use config::{AgentConfig, ServiceConfig, WitnessConfig};
pub use copies::CopiesConfig;
pub use database::PostgresConfig;
pub(crate) use database::{CopyAt, ServerRole, ServerStatus};
pub use dns::{DnsConfig, DnsKey};

use textnlp_process::{InvalidConfig, Leaving, Listener, Serving};
use textnlp_store::StoreError;

/// Why a site agent or a witness does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// Its folder.
    #[error("use the folder {folder}: {why}")]
    Folder {
        /// Which.
        folder: Utf8PathBuf,
        /// The problem.
        why: String,
    },
    /// The site's database.
    #[error("open the site's database")]
    Database(#[from] StoreError),
    /// Its socket.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Signals or threads.
    #[error("call the operating system")]
    System(#[from] std::io::Error),
}

/// Runs a site agent until SIGTERM or SIGINT.
pub async fn watch(file: &camino::Utf8Path) -> Result<(), Error> {
    let config = AgentConfig::read(file)?;
    let stop = CancellationToken::new();
    let view::Stores { all: store, own } = view::open(&config).await?;
    let (actor, life, running) = actor::start(&config, stop.clone())?;
    let shipped = usage::Shipped::default();
    let beside = database::DatabaseStatus::default();
    let tasks = TaskTracker::new();
    match &config.postgres {
        _ if config.outside.is_some() => {
            drop(tasks.spawn(view::publish_state(actor.clone(), own.clone(), config.clone(), stop.clone())));
        }
        None => drop(tasks.spawn(view::follow(actor.clone(), own.clone(), config.clone(), stop.clone()))),
        Some(postgres) => {
            tasks.spawn(database::follow(postgres.clone(), actor.clone(), beside.clone(), stop.clone()));
            tasks.spawn(view::lead(actor.clone(), own.clone(), config.clone(), beside.clone(), stop.clone()));
            let (of, with) = (config.clone(), postgres.clone());
            tasks.spawn(database::hand_over_when_dead(of, with, actor.clone(), beside.clone(), stop.clone()));
            if config.failback {
                let (config, postgres) = (config.clone(), postgres.clone());
                tasks.spawn(database::fail_back_home(config, postgres, actor.clone(), beside.clone(), stop.clone()));
            }
        }
    }
    // Data in one database for all sites is already there, or reaches the others through it.
    let has_own = config.postgres.is_none() && config.outside.is_none();
    for (peer, address) in config.peers.iter().filter(|_| has_own) {
        tasks.spawn(usage::ship(
            store.clone(),
            config.clone(),
            peer.clone(),
            address.clone(),
            shipped.clone(),
            stop.clone(),
        ));
    }
    tasks.spawn(service::follow(config.clone(), actor.service().clone(), stop.clone()));
    let copied = copies::CopyStatus::default();
    if let Some(of) = config.copies.clone() {
        tasks.spawn(copies::follow(actor.clone(), config.clone(), of, copied.clone(), stop.clone()));
    }
    let state = Arc::new(http::AgentState {
        config: config.clone(),
        actor,
        store: store.clone(),
        shipped,
        copied,
        life,
        beside,
        counters: counters::Counters::default(),
    });
    if has_own {
        tasks.spawn(counters::follow(state.clone(), stop.clone()));
    }
    let served = serve(&config.listen, http::watch_routes(state), stop.clone()).await?;
    until_told(&stop, running).await?;
    tasks.close();
    tasks.wait().await;
    // Open requests are aborted: clients retry.
    served.abort();
    store.close().await;
    own.close().await;
    Ok(())
}

/// Runs the witness until SIGTERM or SIGINT.
pub async fn witness(file: &camino::Utf8Path) -> Result<(), Error> {
    let config = WitnessConfig::read(file)?;
    let stop = CancellationToken::new();
    let state = Arc::new(witness::Running::open(config)?);
    let weights = tokio::spawn(witness::keep_weights(state.clone(), stop.clone()));
    let dns = tokio::spawn(dns::publish(state.clone(), stop.clone()));
    let served = serve(&state.config.listen, http::witness_routes(state.clone()), stop.clone()).await?;
    until_told(&stop, std::future::pending()).await?;
    weights.abort();
    dns.abort();
    served.abort();
    Ok(())
}

async fn until_told(stop: &CancellationToken, ended: impl Future<Output = ()>) -> Result<(), Error> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // SIGHUP does not reload: a changed configuration needs a restart.
    let _hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = ended => tracing::error!("the disk failed: this process exits, and the supervisor restarts it"),
    }
    stop.cancel();
    Ok(())
}

/// Connections at once: peers, replicas, gateways, and a person or two.
const MOST_CONNECTIONS: usize = 256;

async fn serve(
    address: &textnlp_process::Address,
    routes: axum::Router,
    stop: CancellationToken,
) -> Result<tokio::task::JoinHandle<()>, Error> {
    let listener =
        Listener::bind(address).await.map_err(|source| Error::Listen { address: address.to_string(), source })?;
    let serving = Serving {
        header_timeout: std::time::Duration::from_secs(10),
        max_connections: MOST_CONNECTIONS,
        leaving: Arc::new(Leaving::default()),
        stop,
        leave: CancellationToken::new(),
        connections: TaskTracker::new(),
    };
    Ok(tokio::spawn(listener.serve(routes, serving)))
}
