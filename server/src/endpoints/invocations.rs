//! `/ping` and `/invocations`: the contract of SageMaker for containers, which have no other routes. Vertex AI and Azure
//! Machine Learning take any paths, and are told these.

use std::sync::Arc;

use axum::Router;
use axum::response::Response;
use axum::routing::{get, post};

use super::{chat, completions, probes};
use crate::app::App;
use crate::error::ApiError;
use crate::http::Call;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/ping", get(probes::ready)).route("/invocations", post(invoke))
}

/// The body of `/v1/chat/completions` if it has `messages`, else that of `/v1/completions`.
async fn invoke(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let fields = call.fields().await?;
    let is_chat = fields.get("messages").is_some();
    if is_chat { chat::answer(&call, &caller, fields).await } else { completions::answer(&call, &caller, fields).await }
}
