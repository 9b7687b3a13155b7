//! Responses of the gateway itself, in OpenAI's error format.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use super::memory::Exceeded;

/// Why the gateway responds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    NoBackend,
    BackendFailed,
    TooLong,
    /// The limit in bytes.
    TooLarge(u64),
    SlowBody,
    AddressLimit,
    MemoryShare,
    Memory,
    OpenFiles,
    BadRequest(&'static str),
}

impl From<Exceeded> for Refusal {
    fn from(exceeded: Exceeded) -> Self {
        match exceeded {
            Exceeded::Share => Refusal::MemoryShare,
            Exceeded::Total => Refusal::Memory,
        }
    }
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Refusal::NoBackend | Refusal::Memory | Refusal::OpenFiles => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::BackendFailed => StatusCode::BAD_GATEWAY,
            Refusal::TooLong => StatusCode::GATEWAY_TIMEOUT,
            Refusal::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Refusal::AddressLimit | Refusal::MemoryShare => StatusCode::TOO_MANY_REQUESTS,
            Refusal::BadRequest(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// The error code in the answer, in metrics and in the log.
    pub(super) fn code(self) -> &'static str {
        self.words().0
    }

    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Refusal::NoBackend => (
                "no_backend",
                "no server is ready to answer",
                "try again in a moment; operators: `textnlp-deploy status` shows the cause",
            ),
            Refusal::BackendFailed => (
                "backend_failed",
                "the server closed the connection before it answered",
                "the request may have been started; retry it if that is safe",
            ),
            Refusal::TooLong => (
                "timeout",
                "the answer exceeded its time limit",
                "request fewer tokens; operators: `server.api.timeout` is the limit",
            ),
            Refusal::TooLarge(_) => (
                "request_too_large",
                "the body is larger than the gateway accepts",
                "send less; `server.api.max_request_size` is the limit",
            ),
            Refusal::SlowBody => ("timeout", "the body did not arrive in time", "send it without pauses"),
            Refusal::AddressLimit => (
                "address_limit",
                "this address has too many requests at once",
                "wait for answers; operators: `server.api.max_connections_per_address` is the limit",
            ),
            Refusal::MemoryShare => (
                "memory_limit",
                "this address has too many unfinished requests at once",
                "wait for answers, or send smaller requests",
            ),
            Refusal::Memory => {
                ("memory_limit", "the gateway has no room for this request at the moment", "try again in a moment")
            }
            Refusal::OpenFiles => (
                "open_files_limit",
                "the gateway cannot open another connection to a server",
                "try again in a moment; operators: raise the limit of open files of the gateway",
            ),
            Refusal::BadRequest(what) => ("bad_request", what, "see GET /openapi.json"),
        }
    }

    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let (code, message, hint) = self.words();
        let message = match self {
            Refusal::TooLarge(most) => format!("{message}: at most {most} bytes"),
            _ => message.to_owned(),
        };
        let kind = if self.status().is_client_error() { "invalid_request_error" } else { "server_error" };
        let mut response = error(self.status(), kind, code, &message, hint);
        let headers = response.headers_mut();
        if matches!(self.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        if matches!(self, Refusal::TooLarge(_) | Refusal::SlowBody) {
            // The unread body makes the connection unusable.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The headers of every answer of a server, for an answer of the gateway itself.
pub(super) fn secure(headers: &mut HeaderMap, by_https: bool) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if by_https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}

/// An error in OpenAI's shape, with a hint.
pub(super) fn error(status: StatusCode, kind: &str, code: &str, message: &str, hint: &str) -> Response<Full<Bytes>> {
    let body =
        serde_json::json!({"error": {"message": message, "type": kind, "param": null, "code": code, "hint": hint}});
    json(status, &body)
}

/// Any JSON answer.
pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The response to plain HTTP on the TLS port.
pub(super) fn use_https() -> Vec<u8> {
    let body = serde_json::json!({"error": {"message": "this port speaks HTTPS", "type": "invalid_request_error", "param": null,
        "code": "https_required", "hint": "use https:// in the address"}});
    let body = format!("{body}\n");
    format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Idle timeout of a request body.
pub(super) const BODY_PAUSE: Duration = Duration::from_secs(30);

pub(super) use textnlp_net::error_chain as chain;
