//! One server replica: created from its configuration, run until shutdown, then drained.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use textnlp_inference::engine::{Engine, EngineOptions};
use textnlp_inference::guide;
use textnlp_process::{LineLimit, Listener, Serving};
use textnlp_store::retention::{self, Retention};
use textnlp_store::{Action, AuditLog, Store, StoreError, UsageLog, now_ms};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::allowance::LocalRates;
use crate::analytics;
use crate::app::{App, REFUSED_LINES, SCHEMAS_OF_TENANT, SUMS_OF_TENANT, WORKERS};
use crate::auth;
use crate::auth::jwt::{Signer, SignerError};
use crate::auth::oidc::{self, Oidc, OidcError};
use crate::auth::refusals::Refusals;
use crate::batches;
use crate::cache::{self, CacheError, VectorCache};
use crate::config::{Address, Config, DatabaseAt};
use crate::delivery::Delivery;
use crate::endpoints;
use crate::executors;
use crate::features::{self, Features};
use crate::http;
use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::pii::Detector;
use crate::ready::Readiness;
use crate::recent::Recent;
use crate::schemas::Schemas;
use crate::traces::{Count, Traces, TracesError};
use crate::webhooks::{WebhookError, Webhooks, deliveries};
use crate::workers::Workers;

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
    /// The OpenID Connect provider cannot be used.
    #[error(transparent)]
    Oidc(#[from] OidcError),
    /// A webhook cannot be used.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// Traces cannot be exported.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The cache of vectors cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The device that the configuration names cannot be used.
    #[error("{0}; `models.device: cpu` computes on the CPU")]
    Device(String),
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
    health_address: Option<Address>,
    stop: CancellationToken,
    leave: CancellationToken,
    metrics_stop: CancellationToken,
    connections: TaskTracker,
    metrics_connections: TaskTracker,
    listener: JoinHandle<()>,
    operator_listeners: Vec<JoinHandle<()>>,
    usage_writer: JoinHandle<()>,
    audit_writer: JoinHandle<()>,
    trace_writer: Option<JoinHandle<()>>,
}

/// Connections at once for metrics, and for probes.
const MOST_OPERATORS: usize = 64;

/// How long after a large request its freed memory is returned to the system: it holds some until it is answered.
const RELEASE_DELAY: Duration = Duration::from_secs(1);

/// Interval between two checks for leases that are over.
const LEASE_POLL: Duration = Duration::from_secs(1);

/// Interval between two checks for a device that failed for good.
const FAULT_POLL: Duration = Duration::from_secs(1);

/// Part of the drain timeout that is reserved for the database and the usage log.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Timeout for the last spans: no collector delays a stop.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Listens; returns the address with the assigned port.
async fn open(address: &Address) -> Result<(Listener, Address), StartError> {
    let failed = |source| StartError::Listen { address: address.clone(), source };
    let listener = Listener::bind(address).await.map_err(failed)?;
    let assigned = listener.address().map_err(failed)?;
    Ok((listener, assigned))
}

impl Server {
    /// Creates everything but the database and listens; `/health` already answers while models are loaded.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let place = executors::place(config.models.device).map_err(StartError::Device)?;
        let database = |source| StartError::Database { at: config.database.at.to_string(), source };
        let store = match config.container {
            // Its database ends with it.
            Some(_) => Store::open(&config.database).await,
            // `admin migrate` created it and its schema. An empty one in place of a lost one would hide the loss: no key
            // would be valid.
            None => Store::open_existing(&config.database).await,
        };
        let store = store.map_err(database)?;
        store.prepare().await.map_err(database)?;
        if let Some(role) = store.role_above_row_security().await.map_err(database)? {
            tracing::warn!(
                %role,
                "the database role bypasses row-level security: tenants are isolated by the server's statements only; use a role \
                 that is neither superuser nor BYPASSRLS"
            );
        }
        let features = Features::new(features::read(&config, &store).await.map_err(database)?);
        let signer = Signer::new(&config.security)?;
        let webhooks = Webhooks::new(config.batch.as_ref().map(|batch| batch.webhooks.as_slice()).unwrap_or_default())?;
        let oidc = config.security.oidc.clone().map(Oidc::new).transpose()?.map(Arc::new);
        let metrics = Arc::new(Metrics::new(&config.environment, config.phase.name(), &config.region));
        let of_cache = metrics.clone();
        let count_cached: cache::Count = Arc::new(move |event| of_cache.cache(event));
        let cache = config
            .cache
            .as_ref()
            .map(|cache| VectorCache::new(cache, &config.environment, count_cached))
            .transpose()?;
        let of_spans = metrics.clone();
        let count: Count = Arc::new(move |result, count| of_spans.trace_spans(result, count));
        let export = config.monitoring.traces.as_ref().map(|export| Traces::start(export, &config, count));
        let (traces, trace_writer) = export.transpose()?.unzip();
        let options = EngineOptions {
            queue: config.api.queue,
            prefix_cache: config.models.prefix_cache,
            draft_tokens: config.models.draft_tokens,
            max_batch_size: config.models.max_batch_size,
            threads: config.models.threads,
            ..EngineOptions::default()
        };
        let delivery = Arc::new(Delivery::default());
        let step_ended = delivery.clone();
        let engine = Engine::start_with(options, move || step_ended.end()).map_err(StartError::Engine)?;
        let delivering = delivery.clone();
        tokio::spawn(async move { delivering.run().await });
        let (public, address) = open(&config.api.listen).await?;
        let for_metrics = match &config.api.metrics_listen {
            Some(address) => Some(open(address).await?),
            None => None,
        };
        let for_probes = match &config.api.health_listen {
            Some(address) => Some(open(address).await?),
            None => None,
        };
        let assigned = |opened: Option<&(Listener, Address)>| opened.map(|(_, address)| address.clone());
        let (metrics_address, health_address) = (assigned(for_metrics.as_ref()), assigned(for_probes.as_ref()));
        let tasks = TaskTracker::new();
        let (usage, usage_writer) = UsageLog::start(store.clone());
        let (audit, audit_writer) = AuditLog::start(store.clone());
        let worked = Arc::new(Notify::new());
        let app = Arc::new(App {
            models: Models::new(&config, place, engine.handle(), metrics.clone(), tasks.clone()),
            features,
            cache,
            engine: engine.handle(),
            delivery,
            store,
            signer,
            oidc,
            metrics,
            traces,
            usage,
            audit,
            readiness: Readiness::default(),
            refusals: Refusals::default(),
            refused_lines: LineLimit::new(REFUSED_LINES.0, REFUSED_LINES.1),
            verifiers: Recent::default(),
            database_answers: Recent::default(),
            local_rates: LocalRates::default(),
            leases: match (&config.database.at, &config.watch) {
                // Sites with a database each.
                (DatabaseAt::File(_), Some(agent)) => Some(Leases::new(agent.clone())),
                _ => None,
            },
            began: Instant::now(),
            tasks,
            texts: Workers::new(WORKERS, &worked),
            slow_texts: config.models.serve.iter().map(|m| (m.name.clone(), Workers::new(1, &worked))).collect(),
            schemas: Schemas::new(Workers::new(WORKERS, &worked).with_most_running(SCHEMAS_OF_TENANT)),
            sums: Workers::new(WORKERS, &worked).with_most_running(SUMS_OF_TENANT),
            parsers: Workers::new(WORKERS, &worked),
            bodies: http::SharedMemory::new(config.api.max_request_size, http::SMALL_PART),
            answers: Arc::new(http::SharedMemory::new(0, http::SMALL_PART)),
            files: http::SharedMemory::new(0, endpoints::UPLOAD_MEMORY),
            guides: http::SharedMemory::new(endpoints::MAX_ANSWERS * guide::MAX_MEMORY, guide::MAX_MEMORY),
            webhooks,
            leaving: Arc::default(),
            pii: config.pii.as_ref().map(|settings| Arc::new(Detector::new(settings))),
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
        let for_operators = Serving {
            max_connections: MOST_OPERATORS,
            // Metrics and probes need no draining.
            leaving: Arc::default(),
            stop: metrics_stop.clone(),
            connections: metrics_connections.clone(),
            ..serving.clone()
        };
        let listener = tokio::spawn(public.serve(routes, serving));
        let metrics = Router::new().route("/metrics", get(endpoints::metrics));
        let operators = [(for_metrics, metrics), (for_probes, endpoints::probe_routes())];
        let operator_listeners = operators.into_iter().filter_map(|(opened, routes)| {
            let (listener, _) = opened?;
            Some(tokio::spawn(listener.serve(routes.with_state(app.clone()), for_operators.clone())))
        });
        let operator_listeners: Vec<_> = operator_listeners.collect();
        let models = app.models.clone();
        app.tasks.spawn(async move { models.preload().await });
        let (swept, stop_sweeping) = (app.clone(), stop.clone());
        app.tasks.spawn(async move {
            let Config { usage, audit, analytics, batch, watch, .. } = &swept.config;
            let keep = Retention {
                usage_days: usage.retention_days,
                audit_days: audit.retention_days,
                insight_days: analytics.as_ref().map_or(0, |analytics| analytics.retention_days),
                // Turned off, the texts that are stored go as before.
                batch_days: batch.clone().unwrap_or_default().retention_days,
                // Control data of several sites keeps its keys, and would put them again.
                key_days: if watch.is_some() { 0 } else { usage.retention_days },
            };
            let deleted = |rows| swept.metrics.usage_deleted(rows);
            retention::run(&swept.store, keep, now_ms, deleted, &stop_sweeping).await;
        });
        let (analyzing, stop_analyzing) = (app.clone(), stop.clone());
        app.tasks.spawn(async move { analytics::keep(&analyzing, &stop_analyzing).await });
        let (batching, stop_batching) = (app.clone(), stop.clone());
        app.tasks.spawn(async move { batches::keep(&batching, &stop_batching).await });
        let (notifying, stop_notifying) = (app.clone(), stop.clone());
        app.tasks.spawn(async move { deliveries::keep(&notifying, &stop_notifying).await });
        let (leasing, stop_returning) = (app.clone(), stop.clone());
        app.tasks.spawn(async move {
            let Some(leases) = &leasing.leases else { return };
            while stop_returning.run_until_cancelled(tokio::time::sleep(LEASE_POLL)).await.is_some() {
                leases.give_back(false).await;
            }
        });
        let (verifying, stop_verifying) = (app.clone(), stop.clone());
        app.tasks.spawn(async move { auth::keep_verifiers(&verifying, &stop_verifying).await });
        let (signing_in, stop_asking) = (app.clone(), stop.clone());
        app.tasks.spawn(async move { oidc::keep(&signing_in, &stop_asking).await });
        let (flagged, stop_reading) = (app.clone(), stop.clone());
        app.tasks.spawn(async move { features::keep(&flagged, &stop_reading).await });
        let stop_releasing = stop.clone();
        app.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop_releasing.cancelled() => return,
                    () = worked.notified() => {}
                }
                // The second time for what slow clients held.
                for delay in [RELEASE_DELAY, 10 * RELEASE_DELAY] {
                    if stop_releasing.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                        return;
                    }
                    let _ = tokio::task::spawn_blocking(textnlp_process::release_memory).await;
                }
            }
        });
        app.audit.push(app.event(Action::ServerStart));
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
            health_address,
            stop,
            leave,
            metrics_stop,
            connections,
            metrics_connections,
            listener,
            operator_listeners,
            usage_writer,
            audit_writer,
            trace_writer,
        })
    }

    /// The address for requests, with the assigned port.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The address for metrics.
    pub fn metrics_address(&self) -> Option<&Address> {
        self.metrics_address.as_ref()
    }

    /// The address for probes.
    pub fn health_address(&self) -> Option<&Address> {
        self.health_address.as_ref()
    }

    /// The store, for tests and for roles that share it.
    pub fn store(&self) -> &Store {
        &self.app.store
    }

    /// Waits until a model's device computes nothing more in this process, and returns why. Only another process can use it, which
    /// the supervisor or the kubelet starts when this one has ended.
    pub async fn fault(&self) -> String {
        loop {
            if let Some(why) = self.app.models.fault() {
                return why;
            }
            tokio::time::sleep(FAULT_POLL).await;
        }
    }

    /// Reports draining and serves until clients have noticed, stops accepting, waits for running requests up to the
    /// configured timeout, writes everything and ends. Returns whether everything could finish.
    pub async fn drain(self) -> bool {
        let app = self.app;
        let deadline = Instant::now() + app.config.api.drain;
        tracing::info!(seconds = app.config.api.drain.as_secs(), "draining");
        app.audit.push(app.event(Action::ServerDrain));
        app.models.stop_measuring();
        app.leaving.go(app.config.api.lame_duck, app.config.api.drain).await;
        self.stop.cancel();
        let _ = self.listener.await;
        self.connections.close();
        app.tasks.close();
        let until = tokio::time::Instant::from_std(deadline);
        let mut clean = tokio::time::timeout_at(until, self.connections.wait()).await.is_ok();
        // Metrics and probes are answered until here: an operator wants to see the drain.
        self.metrics_stop.cancel();
        for listener in self.operator_listeners {
            let _ = listener.await;
        }
        self.leave.cancel();
        let handle = app.engine.clone();
        let emptied = tokio::task::spawn_blocking(move || {
            handle.drain(deadline.max(Instant::now() + Duration::from_millis(100)))
        })
        .await;
        clean &= emptied.unwrap_or(false);
        app.models.encoders().iter().filter_map(|ready| ready.embedder.as_ref()).for_each(|one| one.handle.end());
        // Settle generations that were cut off, too.
        clean &= tokio::time::timeout(LAST_WRITES, app.tasks.wait()).await.is_ok();
        let _ = tokio::time::timeout(LAST_WRITES, self.connections.wait()).await;
        self.metrics_connections.close();
        let _ = tokio::time::timeout(LAST_WRITES, self.metrics_connections.wait()).await;
        if let Some(leases) = &app.leases {
            let _ = tokio::time::timeout(LAST_WRITES, leases.give_back(true)).await;
        }
        app.usage.close();
        app.audit.close();
        clean &= tokio::time::timeout(LAST_WRITES, self.usage_writer).await.is_ok();
        clean &= tokio::time::timeout(LAST_WRITES, self.audit_writer).await.is_ok();
        if let (Some(traces), Some(mut writer)) = (&app.traces, self.trace_writer) {
            traces.close();
            if tokio::time::timeout(LAST_SPANS, &mut writer).await.is_err() {
                writer.abort();
            }
        }
        let _ = tokio::task::spawn_blocking(move || self.engine.shutdown()).await;
        app.store.close().await;
        tracing::info!(clean, "stopped");
        clean
    }
}
