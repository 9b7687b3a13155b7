//! The endpoints, one family per file.

mod analytics;
mod batches;
mod calls;
mod chat;
mod completions;
mod docs;
mod embeddings;
mod features;
mod files;
mod generate;
mod invocations;
mod lines;
mod messages;
mod models;
mod probes;
mod sampling;
mod streaming;
mod structure;
mod tickets;
mod token;
mod tokenize;
mod tools;
mod usage;
mod validate;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};

use crate::app::App;
use crate::config::{ByteSize, Config, Container};
use crate::error::ApiError;
use crate::http;

pub(crate) use batches::{is_transient, pause, reason_message, run};
pub(crate) use files::UPLOAD_MEMORY;
pub(crate) use lines::BatchEndpoint;
pub(crate) use probes::metrics;
pub(crate) use sampling::MAX_ANSWERS;
pub(crate) use structure::{AnswerGuide, too_complex};

/// All routes of the public listener.
pub(crate) fn routes(app: &App) -> Router<Arc<App>> {
    if app.config.container.is_some_and(Container::is_invoked) {
        return invocations::routes();
    }
    let mut routes = Router::new()
        .route("/health", get(probes::health))
        // Is not ready while models are loaded, and when draining.
        .route("/ready", get(probes::ready))
        .route("/auth/token", post(token::issue))
        .route("/.well-known/jwks.json", get(token::jwks))
        .route("/v1/generate", post(generate::generate))
        .route("/v1/stream", post(generate::stream))
        // A HEAD request, as link previews send it, must not spend the ticket.
        .route("/v1/stream", get(tickets::stream).head(method_not_allowed))
        .route("/v1/stream/tickets", post(tickets::issue))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/tokenize", post(tokenize::tokenize))
        .route("/v1/validate", post(validate::validate))
        .route("/v1/usage", get(usage::usage))
        .route("/v1/analytics/insights", get(analytics::insights))
        .route("/v1/batches", post(batches::create))
        .route("/v1/batches", get(batches::list))
        // The same as `/v1/batches`.
        .route("/v1/batch", post(batches::create))
        .route("/v1/batches/{id}", get(batches::one))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/files", post(files::upload))
        .route("/v1/files", get(files::list))
        .route("/v1/files/{id}", get(files::one))
        .route("/v1/files/{id}", delete(files::remove))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/features", get(features::own))
        .route("/admin/features", get(features::list))
        .route("/admin/features", post(features::set))
        .route("/admin/features/{name}", delete(features::clear));
    if app.config.api.docs {
        routes = routes
            .route("/openapi.json", get(docs::openapi))
            .route("/docs", get(docs::page))
            .route("/docs/page.css", get(docs::style))
            .route("/docs/page.js", get(docs::script));
    }
    routes
}

/// The largest body of a route.
pub(crate) fn body_limit(config: &Config, route: &str) -> ByteSize {
    match route {
        "/v1/files" => files::upload_limit(config.batch.as_ref()),
        _ => ByteSize(http::body_limit(config.api.max_request_size, route) as u64),
    }
}

/// The routes of the address for probes, which knows no credentials.
pub(crate) fn probe_routes() -> Router<Arc<App>> {
    Router::new().route("/health", get(probes::liveness)).route("/ready", get(probes::ready))
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has no HEAD")
        .hint("send GET or POST")
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
