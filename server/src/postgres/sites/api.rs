//! What the keeper answers: whether its server does its work, how far it is, and the order to let go.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::super::config::Sites;
use super::super::make::Seen;
use super::super::{Config, Error, api};
use super::gate::Gate;
use super::known::{Known, Now};
use super::{Refused, Release};
use crate::http::Listener;

/// The order is looked at several times a second, and a server that stops has this long.
const RELEASE_WITHIN: Duration = Duration::from_secs(60);

struct State {
    site: String,
    gate: Arc<Gate>,
    known: Arc<Known>,
    release: mpsc::Sender<Release>,
}

pub(super) async fn serve(
    config: &Config,
    sites: &Sites,
    gate: &Arc<Gate>,
    known: &Arc<Known>,
    release: mpsc::Sender<Release>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let state = State { site: sites.site.clone(), gate: gate.clone(), known: known.clone(), release };
    let routes = Router::new()
        .route("/ready", get(ready))
        .route("/v1/status", get(status))
        .route("/v1/standing", get(standing))
        .route("/v1/release", post(let_go))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(state));
    // It ends by `stop`, and nobody is waited for who asks.
    api::answer(Listener::bind(&config.listen).await?, routes, stop).map(drop)
}

impl State {
    /// What the server is, where it does its work.
    fn ready(&self) -> Result<Seen, String> {
        let (trouble, _) = self.known.trouble();
        let (now, _) = self.known.standing();
        let waits = |why: &str| Err(trouble.clone().unwrap_or_else(|| why.to_owned()));
        let Some(seen) = self.known.seen() else { return waits("it starts") };
        let lead = self.gate.lead();
        match (now, lead.primary) {
            (_, None) => waits("nobody is known to be primary"),
            (Now::Primary, Some(primary)) if primary == self.site => match self.gate.serves() {
                true => Ok(seen),
                false => {
                    waits("this site has no lease, or not everything that was acknowledged is in the database yet")
                }
            },
            // One whose primary is away does all that it can.
            (Now::Copy, Some(primary)) if primary != self.site => Ok(seen),
            (now, Some(primary)) => waits(&format!("{primary} leads, and the server here is {}", word(now))),
        }
    }
}

fn word(now: Now) -> &'static str {
    match now {
        Now::Nothing => "not running",
        Now::Copy => "a copy",
        Now::Primary => "a primary",
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

/// For the site's watch.
async fn standing(Shared(state): Shared<Arc<State>>) -> Response {
    let ready = state.ready();
    let ((now, fit), (rewound, copied)) = (state.known.standing(), state.known.taken_back());
    let role = match now {
        Now::Nothing => "",
        Now::Copy => "copy",
        Now::Primary => "primary",
    };
    Json(json!({
        "role": role,
        "ready": ready.is_ok(),
        "why": ready.err(),
        "fit": fit,
        "copies": state.known.copies(),
        "rewound": rewound,
        "copied": copied,
    }))
    .into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    to: String,
}

async fn let_go(Shared(state): Shared<Arc<State>>, Json(To { to }): Json<To>) -> Response {
    let (answer, answered) = oneshot::channel();
    let refused = |status: StatusCode, why: &str, hint: &str| {
        let body = json!({ "error": { "code": "refused", "message": why, "hint": hint } });
        (status, Json(body)).into_response()
    };
    let again = "ask again in a moment";
    if state.release.try_send(Release { to, answer }).is_err() {
        return refused(StatusCode::CONFLICT, "it is being asked for already", again);
    }
    match tokio::time::timeout(RELEASE_WITHIN, answered).await {
        Ok(Ok(Ok(()))) => Json(json!({ "released": true })).into_response(),
        Ok(Ok(Err(Refused { why, hint }))) => refused(StatusCode::CONFLICT, &why, hint),
        _ => refused(StatusCode::SERVICE_UNAVAILABLE, "the keeper is busy with its server", again),
    }
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Response {
    api::figures(&state.ready())
}
