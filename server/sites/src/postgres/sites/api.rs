//! The supervisor's control API: readiness, replication progress, and the release of leadership.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use textnlp_process::Listener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::super::config::Sites;
use super::super::setup::ServerObservation;
use super::super::{Config, Error, api};
use super::facts::ServerFacts;
use super::gate::Gate;
use super::{Refused, Release};
use crate::control::{ServerRole, ServerStatus};

/// The order is looked at several times a second, and a server that stops has this long.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(60);

struct State {
    site: String,
    gate: Arc<Gate>,
    known: Arc<ServerFacts>,
    release: mpsc::Sender<Release>,
}

pub(super) async fn serve(
    config: &Config,
    sites: &Sites,
    gate: &Arc<Gate>,
    known: &Arc<ServerFacts>,
    release: mpsc::Sender<Release>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let state = State { site: sites.site.clone(), gate: gate.clone(), known: known.clone(), release };
    let routes = Router::new()
        .route("/ready", get(ready))
        .route("/v1/status", get(status))
        .route("/v1/standing", get(standing))
        .route("/v1/release", post(release_leadership))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(state));
    // The listener ends with `stop`; open requests are not waited for.
    api::answer(Listener::bind(&config.listen).await?, routes, stop).map(drop)
}

impl State {
    /// The last observation, where the server is ready.
    fn ready(&self) -> Result<ServerObservation, String> {
        let (trouble, _) = self.known.trouble();
        let (now, _) = self.known.standing();
        let waits = |why: &str| Err(trouble.clone().unwrap_or_else(|| why.to_owned()));
        let Some(seen) = self.known.seen() else { return waits("it is starting") };
        let lead = self.gate.lead();
        match (now, lead.primary) {
            (_, None) => waits("no primary is known"),
            (ServerRole::Primary, Some(primary)) if primary == self.site => match self.gate.serves() {
                true => Ok(seen),
                false => waits("this site has no lease, or acknowledged data is not in the database yet"),
            },
            // One whose primary is away does all that it can.
            (ServerRole::Copy, Some(primary)) if primary != self.site => Ok(seen),
            (now, Some(primary)) => waits(&format!("{primary} is primary, but the local server is {}", word(now))),
        }
    }
}

fn word(now: ServerRole) -> &'static str {
    match now {
        ServerRole::NotRunning => "not running",
        ServerRole::Copy => "a copy",
        ServerRole::Primary => "a primary",
    }
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    match state.ready() {
        Ok(seen) => Json(json!({ "status": "ready", "role": seen.role })).into_response(),
        Err(why) => {
            let status = if state.known.trouble().1 { "failing" } else { "starting" };
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": status, "why": why }))).into_response()
        }
    }
}

async fn status(Shared(state): Shared<Arc<State>>) -> Response {
    let ready = state.ready();
    let seen = state.known.seen();
    Json(json!({ "ready": ready.is_ok(), "why": ready.err(), "database": seen, "copies": state.known.copies() }))
        .into_response()
}

/// The status for the site agent.
async fn standing(Shared(state): Shared<Arc<State>>) -> Response {
    let ready = state.ready();
    let ((role, fit), (rewound, copied)) = (state.known.standing(), state.known.taken_back());
    let copies = state.known.copies();
    Json(ServerStatus { role, ready: ready.is_ok(), why: ready.err(), fit, copies, rewound, copied }).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseRequest {
    to: String,
}

async fn release_leadership(
    Shared(state): Shared<Arc<State>>,
    Json(ReleaseRequest { to }): Json<ReleaseRequest>,
) -> Response {
    let (answer, answered) = oneshot::channel();
    let refused = |status: StatusCode, why: &str, hint: &str| {
        let body = json!({ "error": { "code": "refused", "message": why, "hint": hint } });
        (status, Json(body)).into_response()
    };
    let again = "try again in a moment";
    if state.release.try_send(Release { to, answer }).is_err() {
        return refused(StatusCode::CONFLICT, "this request is already in progress", again);
    }
    match tokio::time::timeout(RELEASE_TIMEOUT, answered).await {
        Ok(Ok(Ok(()))) => Json(json!({ "released": true })).into_response(),
        Ok(Ok(Err(Refused { why, hint }))) => refused(StatusCode::CONFLICT, &why, hint),
        _ => refused(StatusCode::SERVICE_UNAVAILABLE, "the supervisor is busy with its server", again),
    }
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Response {
    api::figures(&state.ready())
}
