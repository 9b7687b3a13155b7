//! The supervisor's control socket: readiness and metrics.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use serde_json::json;
use textnlp_process::Address;
use textnlp_process::{Listener, Serving};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::setup::ServerObservation;
use super::{Config, Error};
use crate::control::ServerRole;

/// Poll interval for a running server.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// An older observation is ignored.
const MAX_OBSERVATION_AGE: Duration = Duration::from_secs(10);

/// The known state of the server.
pub(super) struct State {
    config: Arc<Config>,
    known: Mutex<LastObservation>,
}

#[derive(Default)]
struct LastObservation {
    seen: Option<(Instant, ServerObservation)>,
    trouble: Option<String>,
    /// Whether waiting does not help.
    hopeless: bool,
}

impl State {
    pub(super) fn new(config: Arc<Config>) -> Arc<Self> {
        Arc::new(Self { config, known: Mutex::default() })
    }

    pub(super) fn saw(&self, seen: ServerObservation) {
        *self.known() = LastObservation { seen: Some((Instant::now(), seen)), trouble: None, hopeless: false };
    }

    pub(super) fn missed(&self, error: &Error) {
        let mut known = self.known();
        known.trouble = Some(textnlp_net::error_chain(error));
        known.hopeless = matches!(error, Error::Restore(_));
    }

    fn known(&self) -> std::sync::MutexGuard<'_, LastObservation> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last observation, or why the server is not ready.
    fn ready(&self) -> Result<ServerObservation, String> {
        let known = self.known();
        let trouble = || known.trouble.clone().unwrap_or_else(|| "it is starting".to_owned());
        let seen = match &known.seen {
            Some((at, seen)) if at.elapsed() < MAX_OBSERVATION_AGE => seen,
            _ => return Err(trouble()),
        };
        match (seen.role, &self.config.primary) {
            (ServerRole::Primary, None) => Ok(seen.clone()),
            (ServerRole::Copy, Some(_)) if seen.follows => Ok(seen.clone()),
            (ServerRole::Copy, Some(_)) => Err("the copy is not connected to its primary".to_owned()),
            (ServerRole::Primary, Some(_)) => Err("its role is primary, which is not the configured one".to_owned()),
            (ServerRole::Copy, None) => Err("its role is copy, which is not the configured one".to_owned()),
            (ServerRole::NotRunning, _) => Err(trouble()),
        }
    }
}

/// Serves the control socket until shutdown.
pub(super) async fn serve(
    address: &Address,
    state: Arc<State>,
    stop: CancellationToken,
) -> Result<JoinHandle<()>, Error> {
    let listener = Listener::bind(address).await?;
    let routes = Router::new()
        .route("/ready", get(ready))
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(state);
    answer(listener, routes, stop)
}

/// Serves a socket until shutdown.
pub(super) fn answer(listener: Listener, routes: Router, stop: CancellationToken) -> Result<JoinHandle<()>, Error> {
    let serving = Serving {
        header_timeout: Duration::from_secs(5),
        max_connections: 64,
        leaving: Arc::default(),
        stop,
        leave: CancellationToken::new(),
        connections: TaskTracker::new(),
    };
    Ok(tokio::spawn(listener.serve(routes, serving)))
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    match state.ready() {
        Ok(seen) => axum::Json(json!({ "status": "ready", "role": seen.role })).into_response(),
        Err(why) => {
            let status = if state.known().hopeless { "failing" } else { "starting" };
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({ "status": status, "why": why }))).into_response()
        }
    }
}

async fn status(Shared(state): Shared<Arc<State>>) -> Response {
    let (ready, known) = (state.ready(), state.known());
    let seen = known.seen.as_ref().map(|(_, seen)| seen);
    axum::Json(json!({ "ready": ready.is_ok(), "why": ready.err(), "database": seen })).into_response()
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Response {
    figures(&state.ready())
}

/// The metrics of the server, ready or not.
pub(super) fn figures(ready: &Result<ServerObservation, String>) -> Response {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, rows: &[(String, String)]| {
        let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} gauge");
        for (labels, value) in rows {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let one = |value: i64| [(String::new(), value.to_string())];
    gauge("textnlp_database_up", "Whether the database is ready", &one(i64::from(ready.is_ok())));
    if let Ok(seen) = ready {
        gauge("textnlp_database_connections", "Connections of clients", &one(seen.connections));
        gauge("textnlp_database_bytes", "The database on disk", &one(seen.bytes));
        let rows = |value: fn(&super::setup::Follower) -> String| -> Vec<(String, String)> {
            seen.copies.iter().map(|copy| (format!("{{copy=\"{}\"}}", copy.name), value(copy))).collect()
        };
        gauge(
            "textnlp_database_copy_connected",
            "Whether a copy replicates",
            &rows(|copy| i64::from(copy.connected).to_string()),
        );
        gauge(
            "textnlp_database_copy_behind_bytes",
            "What a copy has not replayed yet",
            &rows(|copy| copy.behind_bytes.to_string()),
        );
        gauge(
            "textnlp_database_copy_behind_seconds",
            "How long ago that was written",
            &rows(|copy| {
                let behind = copy.behind_ms.max(0);
                format!("{}.{:03}", behind / 1_000, behind % 1_000)
            }),
        );
        if let Some(archive) = &seen.archive {
            if let Some(seconds) = archive.seconds_since {
                gauge("textnlp_database_archive_age_seconds", "Since a part of the log was archived", &one(seconds));
            }
            gauge(
                "textnlp_database_archive_waiting",
                "Parts of the log that wait for archiving",
                &one(archive.waiting),
            );
            gauge("textnlp_database_archive_failures", "Attempts that failed", &one(archive.failures));
            gauge("textnlp_database_archive_fails", "Whether the last attempt failed", &one(i64::from(archive.fails)));
        }
    }
    text.push_str("# EOF\n");
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}
