//! `/health`, `/ready` and, on its own listener, `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::app::App;
use crate::embed;
use crate::executors;
use crate::http::Call;
use crate::ready::{self, Verdict};
use crate::recent;

/// Timeout of the database check.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Liveness, without a look at credentials.
pub(super) async fn liveness(State(app): State<Arc<App>>) -> Response {
    Json(json!({ "status": "ok", "region": app.config.region })).into_response()
}

/// Liveness. Depends on nothing else, so it also answers under load. A valid credential gets details.
pub(super) async fn health(call: Call) -> Response {
    let app = &call.app;
    let config = &app.config;
    if !call.is_known(DATABASE_TIMEOUT).await {
        return liveness(State(app.clone())).await;
    }
    let process = crate::metrics::process();
    let stats = embed::stats(app);
    Json(json!({
        "status": "ok",
        "environment": config.environment,
        "phase": config.phase.name(),
        "region": config.region,
        "site": config.site,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.began.elapsed().as_secs(),
        "stopping": app.is_stopping(),
        "memory_bytes": process.resident_bytes,
        "cpu_seconds": process.cpu_seconds,
        "queued": stats.queued,
        "running": stats.running,
        "tokens_per_second": (stats.tokens_per_second * 10.0).round() / 10.0,
    }))
    .into_response()
}

/// Whether requests can be sent here.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    // Clients wait two or three seconds, and the verdict does not depend on the database.
    let check = async { matches!(tokio::time::timeout(DATABASE_TIMEOUT, app.store.check()).await, Ok(Ok(()))) };
    let database = if app.database_answers.get(recent::INTERVAL, check).await { "ok" } else { "unavailable" };
    let verdict = ready::verdict(&app).await;
    app.leaving.asked(verdict == Verdict::Draining);
    let (status, body) = match verdict {
        Verdict::Ready => (StatusCode::OK, json!({ "status": "ready", "database": database })),
        Verdict::Loading(progress) => {
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "loading", "progress": progress }))
        }
        Verdict::Draining => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "draining" })),
        Verdict::Failing(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "failing", "reason": why, "database": database }))
        }
    };
    (status, Json(body)).into_response()
}

/// Everything that is measured.
pub(crate) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    app.metrics.gpu_memory(executors::gpu_memory(app.models.place()).await);
    let text = app.metrics.text(&embed::stats(&app), app.usage.lost(), app.audit.lost());
    let (kind, text) = textnlp_process::negotiated(&headers, text);
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
