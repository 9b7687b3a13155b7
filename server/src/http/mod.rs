//! HTTP: listeners, what surrounds every request, and reading its body.

mod body;
mod fields;
mod guard;
mod listen;
mod strict;

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;
use hyper::body::{Frame, SizeHint};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument as _;

pub(crate) use fields::Fields;
pub(crate) use listen::{Listener, Serving, bind_unix};

use crate::allowance;
use crate::app::App;
use crate::auth::{self, Caller};
use crate::error::{ApiError, ErrorCode};
use crate::models::Ready;
use crate::rate::Left;
use crate::record::Record;

/// The header that carries a request's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One request, as handlers get it.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) record: Arc<Record>,
    pub(crate) headers: HeaderMap,
    uri: Uri,
    /// In a lock only because bodies cannot be shared between threads, and a call is.
    body: Mutex<Body>,
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let record = parts.extensions.get::<Arc<Record>>().cloned();
        let missing =
            || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the request has no record");
        Ok(Self {
            app: app.clone(),
            record: record.ok_or_else(missing)?,
            headers: parts.headers,
            uri: parts.uri,
            body: Mutex::new(body),
        })
    }
}

/// What a caller has left of its rate, for the response's headers.
#[derive(Clone, Copy)]
struct RateHeaders(Left);

impl Call {
    /// Lets in who may do it: credential, tenant, scope, rate.
    pub(crate) async fn enter(&self, scope: &str) -> Result<Caller, ApiError> {
        let caller = auth::authenticate(&self.app, &self.headers).await?;
        self.record.caller(&caller);
        caller.allow(scope)?;
        let (left, refused) = match allowance::take_request(&self.app, &caller).await {
            Ok(left) => (left, None),
            Err((error, left)) => (left, Some(error)),
        };
        self.record.note(|known| known.rate = left);
        refused.map_or(Ok(caller), Err)
    }

    /// The model that a request names, or the default one; loading it may take until the request's deadline.
    pub(crate) async fn model(&self, name: Option<&str>) -> Result<Arc<Ready>, ApiError> {
        let deadline = tokio::time::Instant::from_std(self.record.deadline());
        let late = || {
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the model is still being loaded")
                .hint("try again in a moment")
        };
        tokio::time::timeout_at(deadline, self.app.models.get(name)).await.map_err(|_| late())?
    }

    /// Reads the query's fields; they are read as strictly as a body's.
    pub(crate) fn query(&self) -> Result<Fields, ApiError> {
        Fields::of_query(&self.uri)
    }

    /// Whether a body comes with it.
    pub(crate) fn has_body(&self) -> bool {
        self.headers.contains_key(header::TRANSFER_ENCODING)
            || self.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
    }

    /// Reads the body's fields.
    pub(crate) async fn fields(&mut self) -> Result<Fields, ApiError> {
        let body = std::mem::take(self.body.get_mut().unwrap_or_else(PoisonError::into_inner));
        body::read_fields(&self.app, &self.headers, body).await
    }
}

/// Wraps the routes in what surrounds every request.
pub(crate) fn surround(routes: Router<Arc<App>>, app: &Arc<App>) -> Router {
    let mut router = routes
        .fallback(async || {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such path")
                .hint("GET /openapi.json lists what there is")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
        })
        .layer(axum::middleware::from_fn_with_state(app.clone(), around));
    if !app.config.api.cors_origins.is_empty() {
        router = router.layer(cors(&app.config.api.cors_origins));
    }
    router.with_state(app.clone())
}

fn cors(origins: &[String]) -> CorsLayer {
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            REQUEST_ID,
            HeaderName::from_static("x-api-key"),
            HeaderName::from_static(auth::tenant::HEADER),
        ])
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
}

async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| is_request_id(id))
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
    // Paths that are no routes are counted together: anybody can make them up.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    };
    let by_https = request.headers().get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    let probe = matches!(route.as_str(), "/health" | "/ready");
    let record = Record::begin(app.clone(), id.clone(), method, route);
    request.extensions_mut().insert(record.clone());
    let mut response = if app.config.api.require_https && !by_https && !probe {
        ApiError::new(StatusCode::FORBIDDEN, "https_required", "this server is only to be reached by HTTPS")
            .hint("use the gateway's https:// address")
            .into_response()
    } else {
        // What a handler promises must be kept even if it breaks: one answer, and the connection goes on.
        let span = tracing::info_span!("request", request_id = %id, method, route = %record.route);
        let answer = AssertUnwindSafe(next.run(request).instrument(span)).catch_unwind();
        // Streams begin within this time and have a deadline of their own.
        let limit = app.config.api.timeout + std::time::Duration::from_secs(1);
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => {
                tracing::error!(request_id = %id, "a handler broke");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the server made a mistake")
                    .hint("tell its operator the request id")
                    .into_response()
            }
            Err(_) => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the request took longer than it may")
                .into_response(),
        }
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    if by_https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    let (status, error) = (response.status(), response.extensions().get::<ErrorCode>().map(|code| code.0));
    let mut rate = None;
    record.note(|known| {
        known.status = Some(status.as_u16());
        known.error = error;
        rate = known.rate.map(RateHeaders);
    });
    if let Some(RateHeaders(left)) = rate {
        let reset = (left.reset_ms / 1000.0).ceil() as u64;
        for (name, value) in
            [("x-ratelimit-limit", left.limit), ("x-ratelimit-remaining", left.remaining), ("x-ratelimit-reset", reset)]
        {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
        }
    }
    if status == StatusCode::PAYLOAD_TOO_LARGE || status == StatusCode::REQUEST_TIMEOUT {
        // The rest of the body is on the wire: nothing after it can be understood.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(Recorded { body, record }))
}

/// Ids that others chose end up in logs: only harmless ones are taken over.
fn is_request_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

/// A body that holds the request's record until it has been taken.
struct Recorded {
    body: Body,
    record: Arc<Record>,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || (frame.is_ready() && self.body.is_end_stream()) {
            self.record.note(|known| known.finished = true);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.body.is_end_stream();
        if ended {
            self.record.note(|known| known.finished = true);
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
