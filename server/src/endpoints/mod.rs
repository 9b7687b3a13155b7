//! The endpoints, one family per file.

mod analytics;
mod calls;
mod chat;
mod completions;
mod docs;
mod embeddings;
mod features;
mod generate;
mod invocations;
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
use crate::error::ApiError;

pub(crate) use probes::metrics;
pub(crate) use sampling::MAX_ANSWERS;
pub(crate) use structure::{AnswerGuide, too_complex};

/// All routes of the public listener.
pub(crate) fn routes(app: &App) -> Router<Arc<App>> {
    if app.config.is_invoked {
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
