//! One server replica: built from its configuration, run until it is stopped, drained on the way out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use textnlp_inference::engine::{Engine, EngineOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::allowance::LocalRates;
use crate::app::{App, TOKENIZING};
use crate::auth::jwt::{Signer, SignerError};
use crate::config::{Address, Config};
use crate::database::{Store, StoreError, UsageLog};
use crate::endpoints;
use crate::http::{self, Listener, Serving};
use crate::metrics::Metrics;
use crate::models::Models;
use crate::ready::Readiness;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Which address.
        address: Address,
        /// Why.
        source: std::io::Error,
    },
    /// The database cannot be used.
    #[error("open the database {at}")]
    Database {
        /// Which one.
        at: String,
        /// Why.
        source: StoreError,
    },
    /// The key that signs tokens cannot be used.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The engine's thread did not start.
    #[error("start the engine")]
    Engine(#[source] std::io::Error),
}

/// A running server.
pub struct Server {
    app: Arc<App>,
    engine: Engine,
    address: Address,
    metrics_address: Option<Address>,
    stop: CancellationToken,
    leave: CancellationToken,
    metrics_stop: CancellationToken,
    connections: TaskTracker,
    metrics_connections: TaskTracker,
    listener: JoinHandle<()>,
    metrics_listener: Option<JoinHandle<()>>,
    usage_writer: JoinHandle<()>,
}

/// Readers of metrics at once.
const MOST_METRICS: usize = 64;

/// What is left of the drain for the database and the usage log.
const LAST_WRITES: Duration = Duration::from_secs(5);

impl Server {
    /// Builds everything and begins to listen; models are loaded while `/health` answers already.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let database = |source| StartError::Database { at: config.database.at.to_string(), source };
        let store = Store::open(&config.database).await.map_err(database)?;
        store.prepare().await.map_err(database)?;
        let signer = Signer::new(&config.security)?;
        let metrics = Arc::new(Metrics::new(&config.environment, config.phase.name(), &config.region));
        let options = EngineOptions { queue: config.api.queue, ..EngineOptions::default() };
        let engine = Engine::start(options).map_err(StartError::Engine)?;
        let bind = async |address: &Address| {
            Listener::bind(address).await.map_err(|source| StartError::Listen { address: address.clone(), source })
        };
        let public = bind(&config.api.listen).await?;
        let operators = match &config.api.metrics_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let at = |listener: &Listener, wanted: &Address| {
            listener.address().map_err(|source| StartError::Listen { address: wanted.clone(), source })
        };
        let address = at(&public, &config.api.listen)?;
        let metrics_address = match (&operators, &config.api.metrics_listen) {
            (Some(listener), Some(wanted)) => Some(at(listener, wanted)?),
            _ => None,
        };
        let tasks = TaskTracker::new();
        let (usage, usage_writer) = UsageLog::start(store.clone());
        let app = Arc::new(App {
            models: Models::new(&config.models, engine.handle(), metrics.clone(), tasks.clone()),
            engine: engine.handle(),
            store,
            signer,
            metrics,
            usage,
            readiness: Readiness::default(),
            local_rates: LocalRates::default(),
            began: Instant::now(),
            tasks,
            tokenizing: Arc::new(tokio::sync::Semaphore::new(TOKENIZING)),
            leaving: Arc::default(),
            config,
        });
        let (stop, metrics_stop, leave) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (connections, metrics_connections) = (TaskTracker::new(), TaskTracker::new());
        let routes = http::surround(endpoints::routes(&app), &app);
        let serving = Serving {
            header_timeout: app.config.api.header_timeout,
            max_connections: app.config.api.max_connections,
            leaving: app.leaving.clone(),
            stop: stop.clone(),
            leave: leave.clone(),
            connections: connections.clone(),
        };
        let for_metrics = Serving {
            max_connections: MOST_METRICS,
            // Who reads metrics neither sends work nor is told to go elsewhere.
            leaving: Arc::default(),
            stop: metrics_stop.clone(),
            connections: metrics_connections.clone(),
            ..serving.clone()
        };
        let listener = tokio::spawn(public.serve(routes, serving));
        let metrics_listener = operators.map(|listener| {
            let routes = Router::new().route("/metrics", get(endpoints::metrics)).with_state(app.clone());
            tokio::spawn(listener.serve(routes, for_metrics))
        });
        let models = app.models.clone();
        app.tasks.spawn(async move { models.preload().await });
        tracing::info!(
            %address,
            metrics = metrics_address.as_ref().map(tracing::field::display),
            environment = %app.config.environment,
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        Ok(Self {
            app,
            engine,
            address,
            metrics_address,
            stop,
            leave,
            metrics_stop,
            connections,
            metrics_connections,
            listener,
            metrics_listener,
            usage_writer,
        })
    }

    /// Where requests come in, with the port that it got.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where metrics are read.
    pub fn metrics_address(&self) -> Option<&Address> {
        self.metrics_address.as_ref()
    }

    /// The store, for tests and for roles that share it.
    pub fn store(&self) -> &Store {
        &self.app.store
    }

    /// Says that it goes and serves on until those who send requests know, stops accepting, lets what is running finish up to the
    /// configured time, writes everything down and ends. Answers whether everything could finish.
    pub async fn drain(self) -> bool {
        let app = self.app;
        let deadline = Instant::now() + app.config.api.drain;
        tracing::info!(seconds = app.config.api.drain.as_secs(), "draining");
        app.leaving.go(app.config.api.lame_duck, app.config.api.drain).await;
        self.stop.cancel();
        let _ = self.listener.await;
        self.connections.close();
        app.tasks.close();
        let until = tokio::time::Instant::from_std(deadline);
        let mut clean = tokio::time::timeout_at(until, self.connections.wait()).await.is_ok();
        // Metrics are answered until here: an operator wants to see the drain.
        self.metrics_stop.cancel();
        if let Some(listener) = self.metrics_listener {
            let _ = listener.await;
        }
        self.leave.cancel();
        let handle = app.engine.clone();
        let emptied = tokio::task::spawn_blocking(move || {
            handle.drain(deadline.max(Instant::now() + Duration::from_millis(100)))
        })
        .await;
        clean &= emptied.unwrap_or(false);
        // Whatever was cut off is settled too.
        clean &= tokio::time::timeout(LAST_WRITES, app.tasks.wait()).await.is_ok();
        let _ = tokio::time::timeout(LAST_WRITES, self.connections.wait()).await;
        self.metrics_connections.close();
        let _ = tokio::time::timeout(LAST_WRITES, self.metrics_connections.wait()).await;
        app.usage.close();
        clean &= tokio::time::timeout(LAST_WRITES, self.usage_writer).await.is_ok();
        let _ = tokio::task::spawn_blocking(move || self.engine.shutdown()).await;
        app.store.close().await;
        tracing::info!(clean, "stopped");
        clean
    }
}
