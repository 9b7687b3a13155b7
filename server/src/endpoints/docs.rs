//! `/openapi.json` and `/docs`: the API description, and a page that renders it without external resources.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::http::Call;

const DOCUMENT: &str = include_str!("openapi.json");

/// The document, with this server's version and limits. In production phases it requires a valid key.
pub(super) async fn openapi(call: Call) -> Result<Response, ApiError> {
    let app = &call.app;
    if app.config.phase.is_production() {
        call.enter_any().await?;
    }
    let mut document: Value = serde_json::from_str(DOCUMENT).map_err(|error| {
        tracing::error!(%error, "the OpenAPI document is broken");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the document is broken")
    })?;
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    document["info"]["x-environment"] = json!(app.config.environment);
    for (route, methods) in document["paths"].as_object_mut().into_iter().flatten() {
        if let Some(body) = methods.pointer_mut("/post/requestBody") {
            let limit = super::body_limit(&app.config, route);
            body["description"] = json!(format!("At most {limit}."));
        }
    }
    document["components"]["securitySchemes"]["apiKey"]["name"] = json!(app.config.security.api_key_header);
    Ok(axum::Json(document).into_response())
}

pub(super) async fn page() -> Response {
    let mut response = text("text/html; charset=utf-8", include_str!("docs/page.html"));
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

pub(super) async fn style() -> Response {
    text("text/css; charset=utf-8", include_str!("docs/page.css"))
}

pub(super) async fn script() -> Response {
    text("text/javascript; charset=utf-8", include_str!("docs/page.js"))
}

fn text(kind: &'static str, body: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], body).into_response()
}
