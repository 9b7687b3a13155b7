//! HTTP: the layers around every request, and reading its body.

mod body;
mod fields;
mod memory;
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
use textnlp_process::Cors;
use tracing::Instrument as _;

pub(crate) use body::{body_limit, discard, parse_line};
pub(crate) use fields::{Fields, is_absent, mistakes};
pub(crate) use memory::{AnswerMemory, HeldMemory, SMALL, SMALL_PART, SharedMemory, exhausted, json_response};

use textnlp_store::rate::Left;
use textnlp_store::{Action, Origin};

use crate::allowance;
use crate::app::App;
use crate::auth::{self, Caller};
use crate::error::{ApiError, ErrorCode};
use crate::models::{Kind, Ready};
use crate::record::{self, Record};

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

/// The remaining rate of a caller, for the response's headers.
#[derive(Clone, Copy)]
struct RateHeaders(Left);

impl Call {
    /// A request that did not come by HTTP.
    pub(crate) fn internal(app: Arc<App>, record: Arc<Record>) -> Self {
        Self { app, record, headers: HeaderMap::new(), uri: Uri::default(), body: Mutex::default() }
    }

    /// Authorizes the caller: credential, tenant, scope, rate.
    pub(crate) async fn enter(&self, scope: &str) -> Result<Caller, ApiError> {
        let caller = self.identify().await?;
        caller.allow(scope)?;
        self.take_request(caller).await
    }

    /// Authorizes any authenticated caller, whatever its scopes.
    pub(crate) async fn enter_any(&self) -> Result<Caller, ApiError> {
        let caller = self.identify().await?;
        self.take_request(caller).await
    }

    /// Whether the request has a valid credential, or needs none; false if the database does not answer in time.
    pub(crate) async fn is_known(&self, most: std::time::Duration) -> bool {
        auth::may_identify(&self.app, &self.headers)
            && matches!(tokio::time::timeout(most, self.identify()).await, Ok(Ok(_)))
    }

    async fn identify(&self) -> Result<Caller, ApiError> {
        let caller = auth::authenticate(&self.app, &self.headers)
            .await
            .map_err(|error| auth::refuse(&self.app, Action::Authenticate, error, self.origin()))?;
        self.record.caller(&caller);
        if caller.user != auth::ANONYMOUS {
            self.app.audit.key_used(&caller.user, &caller.tenant, self.origin());
        }
        Ok(caller)
    }

    /// Consumes one request of the caller's rate.
    async fn take_request(&self, caller: Caller) -> Result<Caller, ApiError> {
        let (left, refused) = match allowance::take_request(&self.app, &caller).await {
            Ok(left) => (left, None),
            Err((error, left)) => (left, Some(error)),
        };
        self.record.note(|known| {
            known.rate = left;
            known.admitted = refused.is_none();
        });
        refused.map_or(Ok(caller), Err)
    }

    /// The origin of the request, for the audit log.
    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { source: self.record.client, request_id: &self.record.id }
    }

    /// The name of the model of a caller's text: the one of the request, else that of the feature flag `new_model`;
    /// `None` is the default model.
    pub(crate) fn model_name(&self, caller: &Caller, requested: Option<String>) -> Option<String> {
        requested.or_else(|| {
            let flags = self.app.features.current();
            // While a release replaces another one, a server may not have the model.
            let served = |name: &&str| {
                let found = self.app.models.find(&caller.tenant, name);
                found.is_some_and(|(model, _)| model.tenant.is_none())
            };
            flags.new_model(caller).filter(served).map(str::to_owned)
        })
    }

    /// The requested or the default model; loading it may take until the request's deadline.
    pub(crate) async fn model(&self, caller: &Caller, name: Option<&str>) -> Result<Arc<Ready>, ApiError> {
        let deadline = tokio::time::Instant::from_std(self.record.deadline());
        let late = || {
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the model is still being loaded")
                .hint("try again in a moment")
        };
        let model = self.app.models.get(&caller.tenant, name);
        tokio::time::timeout_at(deadline, model).await.map_err(|_| late())?
    }

    /// The same, for a request that generates text or one that embeds it; a model of the other kind is refused unloaded.
    pub(crate) async fn model_of(
        &self,
        caller: &Caller,
        kind: Kind,
        name: Option<&str>,
    ) -> Result<Arc<Ready>, ApiError> {
        let models = &self.app.models;
        let named = name.unwrap_or(models.default_of(kind));
        if models.kind(&caller.tenant, named).is_some_and(|of_model| of_model != kind) {
            return Err(self.unsupported(caller, kind, named));
        }
        let ready = self.model(caller, Some(named)).await?;
        // Its files may have been exchanged before they were opened.
        if ready.kind() == kind { Ok(ready) } else { Err(self.unsupported(caller, kind, named)) }
    }

    /// The error for a model that cannot do what is requested.
    pub(crate) fn unsupported(&self, caller: &Caller, kind: Kind, named: &str) -> ApiError {
        let (does, other) = match kind {
            Kind::Generation => ("makes embeddings; it generates no text", "text generation"),
            Kind::Embedding => ("generates text; it makes no embeddings", "embeddings"),
        };
        let hint = match self.app.models.of_kind(&caller.tenant, kind).as_slice() {
            [] => format!("this server has no model for {other}"),
            names => format!("models for {other}: {}", names.join(", ")),
        };
        let message = format!("model `{named}` {does}");
        ApiError::new(StatusCode::BAD_REQUEST, "unsupported_model", message).param("model").hint(hint)
    }

    /// Reads the query's fields; they are read as strictly as a body's.
    pub(crate) fn query(&self) -> Result<Fields, ApiError> {
        Fields::of_query(&self.uri)
    }

    /// Searches the fields of a query for personal data. Those of a body are searched when they are read.
    pub(crate) fn search(&self, query: &mut Fields) -> Result<(), ApiError> {
        let Some(pii) = &self.app.pii else { return Ok(()) };
        self.app.settle_pii(&pii.search(&self.record.route, query.map_mut()))
    }

    /// Whether the request has a body.
    pub(crate) fn has_body(&self) -> bool {
        self.headers.contains_key(header::TRANSFER_ENCODING)
            || self.headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
    }

    /// The body as it arrives. It can be taken once.
    pub(crate) fn take_body(&mut self) -> Body {
        std::mem::take(self.body.get_mut().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the body's fields.
    pub(crate) async fn fields(&mut self) -> Result<Fields, ApiError> {
        let body = self.take_body();
        body::read_fields(&self.app, &self.record, &self.headers, body).await
    }
}

/// Adds the layers around every request.
pub(crate) fn surround(routes: Router<Arc<App>>, app: &Arc<App>) -> Router {
    let mut router = routes
        .fallback(async || {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "this path does not exist")
                .hint("GET /openapi.json lists the paths")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path does not support this method",
            )
        })
        .layer(axum::middleware::from_fn_with_state(app.clone(), around));
    if let Some(cors) = Cors::new(&app.config.api.cors_origins) {
        router = router.layer(axum::middleware::from_fn_with_state(Arc::new(cors), allow_origins));
    }
    router.with_state(app.clone())
}

async fn allow_origins(State(cors): State<Arc<Cors>>, request: Request, next: Next) -> Response {
    if let Some((status, headers)) = cors.preflight(request.method(), request.headers()) {
        return (status, headers).into_response();
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = next.run(request).await;
    cors.mark(origin.as_ref(), response.headers_mut());
    response
}

async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| is_request_id(id))
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
    // Unknown paths share one label: clients can invent any number of them.
    let route = request.extensions().get::<MatchedPath>().map_or(record::NO_ROUTE, MatchedPath::as_str).to_owned();
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    };
    let by_https = record::uses_https(&request);
    let probe = record::is_probe(&route);
    let scheme = if by_https { "https" } else { "http" };
    // Load balancers would fill the collector with probes.
    let traces = app.traces.as_ref().filter(|_| !probe);
    let trace = traces.and_then(|traces| traces.begin(request.headers(), scheme));
    let record = Record::begin(app.clone(), id.clone(), method, route, record::client(&request), trace);
    request.extensions_mut().insert(record.clone());
    let mut response = if app.config.api.require_https && !by_https && !probe {
        ApiError::new(StatusCode::FORBIDDEN, "https_required", "this server requires HTTPS")
            .hint("use the gateway's https:// address")
            .into_response()
    } else {
        // A panic in a handler becomes one error response, and the connection continues.
        let trace_id = record.trace_id();
        let trace_id = trace_id.as_deref();
        let span = tracing::info_span!("request", request_id = %id, trace_id, method, route = %record.route);
        let answer = AssertUnwindSafe(next.run(request).instrument(span)).catch_unwind();
        // Streams start within this time and have a deadline of their own.
        let limit = app.config.api.timeout + std::time::Duration::from_secs(1);
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => {
                tracing::error!(request_id = %id, "a request handler panicked");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal server error")
                    .hint("report the request id to the operator")
                    .into_response()
            }
            Err(_) => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the request exceeded its time limit")
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
        // The body of such an answer is dropped before anything polls it.
        known.finished = record.method == "HEAD";
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
        // The unread body makes the connection unusable.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(RecordedBody { body, record }))
}

/// Whether a client's id is safe to log.
fn is_request_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

/// A body that holds the request's record until it has been taken.
struct RecordedBody {
    body: Body,
    record: Arc<Record>,
}

impl HttpBody for RecordedBody {
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
