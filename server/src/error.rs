//! API errors: OpenAI's format, plus a hint.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use textnlp_inference::engine::Failure;

use textnlp_sites::control::counters::LeaseError;
use textnlp_store::StoreError;

/// An answer that is a refusal or a failure.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The machine-readable code, such as `context_length_exceeded`; also a metric label.
    pub code: &'static str,
    /// The problem.
    pub message: String,
    /// Which field of the request.
    pub param: Option<String>,
    /// The hint.
    pub hint: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

/// Marks a response with the error's code, for the access log and the metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorCode(pub(crate) &'static str);

impl ApiError {
    /// An error without field and hint.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, hint: None, retry_after: None }
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// 401: no credential, or one that is not valid.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    /// Names the field.
    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Sets the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The body.
    pub fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({ "error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code, "hint": self.hint,
        } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(after) = self.retry_after {
            // Rounded up to at least one second: a retry after 0 would fail again.
            let seconds = after.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"textnlp\""));
        }
        response.extensions_mut().insert(ErrorCode(self.code));
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::warn!(error = %chain(&error), "the database query failed");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "storage_unavailable", "the server's database is not available")
            .hint("try again in a moment; operators: see the server's log")
            .retry_after(Duration::from_secs(2))
    }
}

impl From<LeaseError> for ApiError {
    fn from(error: LeaseError) -> Self {
        tracing::warn!(error = %chain(&error), "tokens could not be reserved");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "limits_unavailable", "the server cannot count this key's tokens")
            .hint("try again in a moment; operators: see the server's log")
            .retry_after(Duration::from_secs(2))
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::NoModel(name) => Self::new(StatusCode::NOT_FOUND, "model_not_found", message)
                .param("model")
                .hint(format!("GET /v1/models lists the models that can be used instead of `{name}`")),
            Failure::TooLong { context, .. } => Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
                .param("prompt")
                .hint(format!("shorten it to fewer than {context} tokens; POST /v1/tokenize counts them")),
            Failure::BadPrompt(_) => Self::invalid(message).param("prompt"),
            Failure::Busy { retry_after_ms } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", "the server's request queue is full")
                    .hint("try again after the time in Retry-After")
                    .retry_after(Duration::from_millis(retry_after_ms))
            }
            Failure::Draining => Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
                .hint("try again: another replica answers")
                .retry_after(Duration::from_secs(1)),
            Failure::Deadline => Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
                .hint("request fewer tokens; operators: `server.api.timeout` is the limit, also of a stream"),
            Failure::Guide(error) => crate::endpoints::too_complex(&error),
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", other.to_string())
                .hint("try again; if it happens again, the model's files may be damaged"),
        }
    }
}

pub(crate) use textnlp_net::error_chain as chain;
