//! Spans of requests, sent to a collector by OTLP over HTTP in JSON (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).
//!
//! Names and attributes are those of OpenTelemetry's conventions for HTTP servers and generative AI; parts of a generation
//! have no convention. No span has a text, a key, an address of a client, or a path with what a client wrote into it.

use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_net::client::{Client, ClientOptions, ProxySettings, read_body, transient};
use textnlp_net::error_chain;
use textnlp_net::retry::{Backoff, Retry, RetryPolicy, Transient};
use textnlp_process::TraceContext;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, TraceExport, TraceHeader};

/// Spans that wait for the collector, with those of the message that is being sent. One has about 1 KiB, with a `tracestate` of 512 bytes.
const MAX_QUEUED_SPANS: usize = 4096;
/// A message with this many spans gets no further trace.
const MESSAGE_SPANS: usize = 512;
/// The pause between two messages, in which spans are collected.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest and the longest pause after a message that was given up.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Runs of models of a request that have spans: as many as a request may have answers.
pub(crate) const MOST_CALLS: usize = 16;
/// The longest `tracestate` that is kept, which every tracing system must pass on (W3C Trace Context, 3.3.1.5).
const MOST_STATE: usize = 512;
/// For one attempt, with its connection.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts for one message. Then its spans are given up.
const RETRIES: RetryPolicy = RetryPolicy {
    attempts: 4,
    attempts_total: 4,
    backoff: Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(5) },
    longest_retry_after: Duration::from_secs(30),
    timeout: Duration::from_secs(60),
};
/// The longest file of a secret, and the longest answer of a collector, in bytes.
const MAX_FILE: u64 = 4096;
const MAX_ANSWER: usize = 64 << 10;

/// Why no traces can be exported. No text quotes the secret.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The address of a proxy.
    #[error("set up the connection to the collector of traces: {0}")]
    Setup(String),
    /// The file of the secret.
    #[error("read the secret of the collector of traces, {path}")]
    Read {
        /// Which file.
        path: Utf8PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no value of a header.
    #[error("{path} is not the value of a header: one line of text, such as `Bearer TOKEN`")]
    Unusable {
        /// Which file.
        path: Utf8PathBuf,
    },
}

/// Counts what became of spans.
pub(crate) type Count = Arc<dyn Fn(&'static str, u64) + Send + Sync>;

/// The spans of a request, which a message has together, and their share of the queue.
type QueuedTrace = (OwnedSemaphorePermit, Vec<Span>);

/// Decides which requests are traced, and queues their spans.
pub(crate) struct Traces {
    queue: Mutex<Option<mpsc::Sender<QueuedTrace>>>,
    /// A permit for each span that may be queued.
    room: Arc<Semaphore>,
    ratio: f64,
    count: Count,
    stop: CancellationToken,
}

/// The trace of one request that may be exported.
pub(crate) struct Trace {
    id: [u8; 16],
    span: [u8; 8],
    context: Option<TraceContext>,
    /// Only its caller chose it. Callers without a credential do not fill the collector.
    needs_caller: bool,
    scheme: &'static str,
    began: Instant,
    began_at: SystemTime,
}

/// A request that has ended.
pub(crate) struct RequestOutcome<'a> {
    pub(crate) id: &'a str,
    /// `OTHER` for methods that no path has.
    pub(crate) method: &'a str,
    /// Whether it came by HTTP. Those of batches did not.
    pub(crate) is_http: bool,
    /// Absent for unknown paths.
    pub(crate) route: Option<&'a str>,
    /// Absent where the client left before the answer began.
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<&'static str>,
    /// The client left before the end of the answer.
    pub(crate) has_client_left: bool,
    pub(crate) tenant: Option<&'a str>,
    pub(crate) has_caller: bool,
    pub(crate) calls: &'a [ModelCall],
}

/// One run of a model for a request.
#[derive(Debug, Clone)]
pub(crate) struct ModelCall {
    pub(crate) model: String,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// What it did, one after the other from `began`.
    pub(crate) parts: Vec<(&'static str, Duration)>,
    pub(crate) input_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) finish: Option<&'static str>,
    pub(crate) error: Option<&'static str>,
}

/// A time of an engine, in milliseconds.
pub(crate) fn of_millis(millis: f64) -> Duration {
    Duration::from_secs_f64(millis.max(0.0) / 1000.0)
}

/// `opentelemetry.proto.trace.v1.Span`, in the JSON form of OTLP.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_state: Option<String>,
    flags: u32,
    name: String,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Attribute>,
    status: Status,
}

#[derive(Debug, Serialize)]
struct Attribute {
    key: &'static str,
    value: AttributeValue,
}

#[derive(Debug, Serialize)]
enum AttributeValue {
    #[serde(rename = "stringValue")]
    Text(String),
    /// 64-bit integers are texts in this form.
    #[serde(rename = "intValue")]
    Integer(String),
    #[serde(rename = "arrayValue")]
    List { values: Vec<AttributeValue> },
}

#[derive(Debug, Default, Serialize)]
struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
}

/// `SPAN_KIND_INTERNAL`, `SPAN_KIND_SERVER` and `STATUS_CODE_ERROR`.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const ERROR: u8 = 2;
/// W3C's flags of sampled spans and of traces whose last 7 bytes are random; `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK` and
/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`.
const SAMPLED: u32 = 0x01;
const RANDOM: u32 = 0x02;
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

fn text(key: &'static str, value: impl Into<String>) -> Attribute {
    Attribute { key, value: AttributeValue::Text(value.into()) }
}

fn integer(key: &'static str, value: impl ToString) -> Attribute {
    Attribute { key, value: AttributeValue::Integer(value.to_string()) }
}

/// The last eight bytes have no zeros only: they begin with the variant.
fn new_span() -> [u8; 8] {
    let mut span = [0; 8];
    span.copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[8..]);
    span
}

impl Traces {
    /// Starts the task that sends spans, which ends when the queue was closed and all are sent. Uses the proxies of this process.
    pub(crate) fn start(
        export: &TraceExport,
        config: &Config,
        count: Count,
    ) -> Result<(Self, JoinHandle<()>), TracesError> {
        let options = ClientOptions {
            proxy: ProxySettings::from_env(),
            timeout: Some(TIMEOUT),
            connect_timeout: TIMEOUT,
            ..ClientOptions::default()
        };
        let client = options.client().map_err(|error| TracesError::Setup(error.to_string()))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(TraceHeader { name, secret_file }) = &export.header {
            headers.insert(name.clone(), read_secret(secret_file)?);
        }
        let resource = vec![
            text("service.name", "textnlp-server"),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", uuid::Uuid::new_v4().to_string()),
            text("deployment.environment.name", config.environment.as_str()),
            text("textnlp.site", config.site.as_str()),
        ];
        let stop = CancellationToken::new();
        let collector =
            Collector { client, export: export.clone(), headers, resource, count: count.clone(), stop: stop.clone() };
        let (queue, inbox) = mpsc::channel(MAX_QUEUED_SPANS);
        let room = Arc::new(Semaphore::new(MAX_QUEUED_SPANS));
        let traces = Self { queue: Mutex::new(Some(queue)), room, ratio: export.ratio, count, stop };
        Ok((traces, tokio::spawn(collector.run(inbox))))
    }

    /// The trace of a request; `None` where it is not sampled. The caller's decision takes precedence over the ratio.
    pub(crate) fn begin(&self, headers: &HeaderMap, scheme: &'static str) -> Option<Trace> {
        let id = uuid::Uuid::new_v4().into_bytes();
        // The last seven bytes of such an id are random.
        let draw = id[9..].iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let is_drawn = (draw as f64) < self.ratio * (1_u64 << 56) as f64;
        let context = TraceContext::of(headers);
        if !context.as_ref().map_or(is_drawn, |context| context.sampled) {
            return None;
        }
        Some(Trace {
            id: context.as_ref().map_or(id, |context| context.trace_id),
            span: new_span(),
            context,
            needs_caller: !is_drawn,
            scheme,
            began: Instant::now(),
            began_at: SystemTime::now(),
        })
    }

    /// Queues the spans of a request that has ended. Where the queue does not have room for all, they are counted as dropped.
    pub(crate) fn push(&self, trace: &Trace, request: &RequestOutcome<'_>) {
        if trace.needs_caller && !request.has_caller {
            return;
        }
        let spans = trace.spans(request);
        let count = spans.len() as u32;
        let room = self.room.clone().try_acquire_many_owned(count).ok();
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let queued = queue.as_ref().zip(room).map(|(queue, room)| queue.try_send((room, spans)));
        if !matches!(queued, Some(Ok(()))) {
            (self.count)("dropped", count.into());
        }
    }

    /// Accepts no more spans, and ends the pauses before those that wait.
    pub(crate) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.stop.cancel();
    }
}

impl Trace {
    /// The trace's id, for the log.
    pub(crate) fn id(&self) -> String {
        hex::encode(self.id)
    }

    fn spans(&self, request: &RequestOutcome<'_>) -> Vec<Span> {
        let span = self.span(request.name(), (self.began, Instant::now()), self.request_attributes(request));
        let mut spans = vec![Span {
            span_id: hex::encode(self.span),
            parent_span_id: self.context.as_ref().map(|context| hex::encode(context.parent_id)),
            flags: span.flags | if self.context.is_some() { IS_REMOTE } else { 0 },
            kind: if request.is_http { SERVER } else { INTERNAL },
            status: error_status(request.is_failure()),
            ..span
        }];
        for call in request.calls {
            let span = self.call(request.route, call);
            let mut parts = Vec::new();
            let mut from = call.began;
            for (name, took) in &call.parts {
                let part = self.span((*name).to_owned(), (from, from + *took), Vec::new());
                parts.push(Span { parent_span_id: Some(span.span_id.clone()), ..part });
                from += *took;
            }
            spans.push(span);
            spans.append(&mut parts);
        }
        spans
    }

    fn request_attributes(&self, request: &RequestOutcome<'_>) -> Vec<Attribute> {
        let mut attributes = vec![text("textnlp.request.id", request.id)];
        if request.is_http {
            let method = if request.method == OTHER { "_OTHER" } else { request.method };
            attributes.push(text("http.request.method", method));
            attributes.push(text("url.scheme", self.scheme));
            if let Some(status) = request.status {
                attributes.push(integer("http.response.status_code", status));
            }
            if let Some(route) = request.route {
                attributes.push(text("http.route", route));
                // With a parameter, a path has what the client wrote.
                if !route.contains('{') {
                    attributes.push(text("url.path", route));
                }
            }
        }
        if let Some(tenant) = request.tenant {
            attributes.push(text("textnlp.tenant", tenant));
        }
        if let Some(error) = request.error_type() {
            attributes.push(text("error.type", error));
        }
        attributes
    }

    /// The span of one run of a model.
    fn call(&self, route: Option<&str>, call: &ModelCall) -> Span {
        let operation = match route {
            Some("/v1/chat/completions") => "chat",
            Some("/v1/embeddings") => "embeddings",
            _ => "text_completion",
        };
        let mut attributes = vec![
            text("gen_ai.operation.name", operation),
            text("gen_ai.provider.name", "textnlp"),
            text("gen_ai.request.model", call.model.as_str()),
            integer("gen_ai.usage.input_tokens", call.input_tokens),
        ];
        if operation != "embeddings" {
            attributes.push(integer("gen_ai.usage.cache_read.input_tokens", call.cached_tokens));
            attributes.push(integer("gen_ai.usage.output_tokens", call.output_tokens));
        }
        if let Some(finish) = call.finish {
            let value = AttributeValue::List { values: vec![AttributeValue::Text(finish.to_owned())] };
            attributes.push(Attribute { key: "gen_ai.response.finish_reasons", value });
        }
        if let Some(error) = call.error {
            attributes.push(text("error.type", error));
        }
        let span = self.span(format!("{operation} {}", call.model), (call.began, call.ended), attributes);
        Span { status: error_status(call.error.is_some()), ..span }
    }

    /// A span below that of the request.
    fn span(&self, name: String, (began, ended): (Instant, Instant), attributes: Vec<Attribute>) -> Span {
        let at = |instant: Instant| {
            let time = self.began_at + instant.saturating_duration_since(self.began);
            time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()).to_string()
        };
        let random = if self.context.as_ref().is_none_or(|context| context.random) { RANDOM } else { 0 };
        let state = self.context.as_ref().and_then(|context| context.state.clone());
        Span {
            trace_id: self.id(),
            span_id: hex::encode(new_span()),
            parent_span_id: Some(hex::encode(self.span)),
            trace_state: state.filter(|state| state.len() <= MOST_STATE),
            flags: SAMPLED | HAS_IS_REMOTE | random,
            name,
            kind: INTERNAL,
            start_time_unix_nano: at(began),
            end_time_unix_nano: at(ended),
            attributes,
            status: Status::default(),
        }
    }
}

/// The method of requests whose method no path has.
const OTHER: &str = "OTHER";

impl RequestOutcome<'_> {
    /// `{method} {route}`; unknown methods are `HTTP`, and unknown paths have no route.
    fn name(&self) -> String {
        let method = if self.method == OTHER { "HTTP" } else { self.method };
        self.route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"))
    }

    /// A client's mistake is no failure of the server; an error in a stream is, whose status was sent before.
    fn is_failure(&self) -> bool {
        self.status.is_some_and(|status| status >= 500 || (status < 400 && self.error.is_some()))
    }

    /// A client that left is no failure of the server either, but it did not get its answer.
    fn error_type(&self) -> Option<String> {
        if self.is_failure() {
            self.error.map(str::to_owned).or_else(|| self.status.map(|status| status.to_string()))
        } else {
            self.has_client_left.then(|| "client_left".to_owned())
        }
    }
}

fn error_status(is_error: bool) -> Status {
    Status { code: is_error.then_some(ERROR) }
}

fn read_secret(path: &Utf8Path) -> Result<HeaderValue, TracesError> {
    let failed = |source| TracesError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    let value = HeaderValue::from_str(text.trim()).ok().filter(|value| !value.is_empty());
    let mut value = value.ok_or_else(|| TracesError::Unusable { path: path.to_owned() })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The collector, and what is the same in each message to it.
struct Collector {
    client: Client,
    export: TraceExport,
    headers: HeaderMap,
    resource: Vec<Attribute>,
    count: Count,
    stop: CancellationToken,
}

/// Why an attempt failed.
enum AttemptError {
    Transient(Transient),
    Final(String),
}

/// Why a message was given up.
#[derive(Debug)]
struct ExportError {
    reason: String,
    retry_after: Option<Duration>,
}

impl ExportError {
    /// The pause before the next message: what the collector asks for, within bounds.
    fn pause(&self) -> Duration {
        self.retry_after.unwrap_or_default().clamp(PAUSE_AFTER_FAILURE, LONGEST_PAUSE)
    }
}

impl Collector {
    async fn run(self, mut inbox: mpsc::Receiver<QueuedTrace>) {
        let mut has_failed = false;
        while let Some((mut room, mut spans)) = inbox.recv().await {
            while spans.len() < MESSAGE_SPANS
                && let Ok((more_room, more_spans)) = inbox.try_recv()
            {
                room.merge(more_room);
                spans.extend(more_spans);
            }
            let count = spans.len() as u64;
            let pause = match self.send(&spans).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    (self.count)("exported", count - rejected);
                    (self.count)("rejected", rejected);
                    if std::mem::take(&mut has_failed) {
                        tracing::info!(host = self.host(), "the collector of traces accepts spans again");
                    }
                    if inbox.is_empty() { BATCH_INTERVAL } else { Duration::ZERO }
                }
                Err(error) => {
                    (self.count)("failed", count);
                    // Once, until it accepts spans again: it may be unreachable for days.
                    if !std::mem::replace(&mut has_failed, true) {
                        let reason = &error.reason;
                        tracing::warn!(host = self.host(), %reason, "the collector of traces does not accept spans");
                    }
                    error.pause()
                }
            };
            drop((room, spans));
            self.pause(pause).await;
        }
    }

    /// Waits, at most until the server stops.
    async fn pause(&self, time: Duration) {
        self.stop.run_until_cancelled(tokio::time::sleep(time)).await;
    }

    /// Its name in logs: the path may have a token.
    fn host(&self) -> &str {
        self.export.endpoint.host_str().unwrap_or_default()
    }

    /// The count of spans that the collector rejected of a message that it took.
    async fn send(&self, spans: &[Span]) -> Result<u64, ExportError> {
        let scope = json!({ "name": "textnlp-server", "version": env!("CARGO_PKG_VERSION") });
        let message = json!({ "resourceSpans": [{
            "resource": { "attributes": self.resource },
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }] });
        let body = Bytes::from(message.to_string());
        let mut retry = Retry::new(RETRIES);
        loop {
            let failure = match self.attempt(body.clone()).await {
                Ok(rejected) => return Ok(rejected),
                Err(AttemptError::Final(reason)) => return Err(ExportError { reason, retry_after: None }),
                Err(AttemptError::Transient(failure)) => failure,
            };
            let (reason, retry_after) = (failure.reason.clone(), failure.retry_after);
            match retry.failed(failure, false) {
                // A stop ends this pause, and begins none: the last attempt is made at once.
                Ok(pause) if !self.stop.is_cancelled() => self.pause(pause).await,
                Ok(_) | Err(_) => return Err(ExportError { reason, retry_after }),
            }
        }
    }

    async fn attempt(&self, body: Bytes) -> Result<u64, AttemptError> {
        let request = self.client.post(self.export.endpoint.clone()).headers(self.headers.clone()).body(body);
        let answer = request.send().await.map_err(|error| {
            let reason = error_chain(&error.without_url());
            AttemptError::Transient(Transient::connection(reason))
        })?;
        let status = answer.status().as_u16();
        if !answer.status().is_success() {
            // https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes. Redirects are not followed.
            let repeatable = transient(&answer).filter(|_| matches!(status, 429 | 502 | 503 | 504));
            return Err(
                repeatable.map_or_else(|| AttemptError::Final(format!("status {status}")), AttemptError::Transient)
            );
        }
        let body = read_body(answer, MAX_ANSWER).await.unwrap_or_default();
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let rejected = &answer["partialSuccess"]["rejectedSpans"];
        Ok(rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    /// With room for this many spans, and what receives them.
    fn queue(ratio: f64, room: usize, count: Count) -> (Traces, mpsc::Receiver<QueuedTrace>) {
        let (queue, inbox) = mpsc::channel(MAX_QUEUED_SPANS);
        let (queue, room) = (Mutex::new(Some(queue)), Arc::new(Semaphore::new(room)));
        (Traces { queue, room, ratio, count, stop: CancellationToken::new() }, inbox)
    }

    fn traces(ratio: f64) -> Traces {
        queue(ratio, 0, Arc::new(|_, _| {})).0
    }

    fn parent(flags: &str) -> HeaderMap {
        let value = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        HeaderMap::from_iter([(textnlp_process::TRACEPARENT, HeaderValue::from_str(&value).unwrap())])
    }

    fn request(calls: &[ModelCall]) -> RequestOutcome<'_> {
        RequestOutcome {
            id: "r1",
            method: "POST",
            is_http: true,
            route: Some("/v1/chat/completions"),
            status: Some(200),
            error: None,
            has_client_left: false,
            tenant: Some("acme"),
            has_caller: true,
            calls,
        }
    }

    fn call(error: Option<&'static str>) -> ModelCall {
        let began = Instant::now();
        ModelCall {
            model: "tiny".to_owned(),
            began,
            ended: began + Duration::from_millis(3),
            parts: vec![("queue", Duration::from_millis(1)), ("prefill", Duration::from_millis(2))],
            input_tokens: 5,
            cached_tokens: 4,
            output_tokens: 3,
            finish: None,
            error,
        }
    }

    fn value(span: &Span, key: &str) -> Option<Value> {
        let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
        Some(json!(found.value).as_object().unwrap().values().next().unwrap().clone())
    }

    /// The collector at this address, its counts, and the token that stops it.
    fn collector(endpoint: &str) -> (Collector, mpsc::UnboundedReceiver<(&'static str, u64)>, CancellationToken) {
        let (counts, counted) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let collector = Collector {
            client: ClientOptions::default().client().unwrap(),
            export: TraceExport { endpoint: endpoint.parse().unwrap(), ratio: 1.0, header: None },
            headers: HeaderMap::new(),
            resource: Vec::new(),
            count: Arc::new(move |result, count| counts.send((result, count)).unwrap()),
            stop: stop.clone(),
        };
        (collector, counted, stop)
    }

    /// Answers with the status of the path and a `Retry-After`; what it receives.
    async fn listen(retry_after: &'static str) -> (String, mpsc::UnboundedReceiver<String>) {
        let (messages, received) = mpsc::unbounded_channel();
        let answer = move |axum::extract::Path(status): axum::extract::Path<u16>, body: String| {
            messages.send(body).unwrap();
            let answer = (StatusCode::from_u16(status).unwrap(), [(header::RETRY_AFTER, retry_after)]);
            async move { answer }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().route("/{status}", axum::routing::post(answer));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (format!("http://{address}"), received)
    }

    #[tokio::test]
    async fn only_statuses_of_otlp_are_repeatable() {
        let (address, _received) = listen("600").await;
        for status in [429, 502, 503, 504, 400, 401, 408, 425, 500] {
            let attempt = collector(&format!("{address}/{status}")).0.attempt(Bytes::from("{}")).await;
            match attempt {
                Err(AttemptError::Transient(failure)) => {
                    assert!(matches!(status, 429 | 502 | 503 | 504), "{status}");
                    assert_eq!(failure.retry_after, Some(Duration::from_secs(600)));
                }
                Err(AttemptError::Final(reason)) => {
                    assert!(matches!(status, 400 | 401 | 408 | 425 | 500) && reason == format!("status {status}"));
                }
                Ok(_) => panic!("{status} is accepted"),
            }
        }
    }

    #[tokio::test]
    async fn stop_ends_a_pause_and_sends_the_spans_that_wait() {
        let (address, mut received) = listen("600").await;
        let (collector, mut counted, stop) = collector(&format!("{address}/429"));
        let (mut traces, inbox) = queue(1.0, 10, collector.count.clone());
        traces.stop = stop;
        let task = tokio::spawn(collector.run(inbox));
        let push = || {
            let trace = traces.begin(&HeaderMap::new(), "https").unwrap();
            traces.push(&trace, &request(&[]));
            trace.id()
        };
        push();
        // It is paused now: nothing waits between this count and the pause.
        assert_eq!(counted.recv().await, Some(("failed", 1)));
        let last = push();
        traces.close();
        // The pause has ten minutes.
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("the pause ends").unwrap();
        assert!(!received.recv().await.unwrap().contains(&last));
        assert!(received.recv().await.unwrap().contains(&last));
        assert_eq!(counted.recv().await, Some(("failed", 1)));
    }

    #[test]
    fn pause_after_a_message_that_was_given_up_is_that_of_the_collector_within_bounds() {
        for (asked, expected) in [(None, 5), (Some(0), 5), (Some(60), 60), (Some(3600), 600)] {
            let error = ExportError { reason: String::new(), retry_after: asked.map(Duration::from_secs) };
            assert_eq!(error.pause(), Duration::from_secs(expected), "{asked:?}");
        }
    }

    #[tokio::test]
    async fn queue_is_bounded_in_spans_and_drops_traces_whole() {
        let (counts, mut counted) = mpsc::unbounded_channel();
        let (traces, mut inbox) = queue(1.0, 8, Arc::new(move |result, count| counts.send((result, count)).unwrap()));
        let trace = traces.begin(&HeaderMap::new(), "https").unwrap();
        let calls = [call(None)];
        for _ in 0..3 {
            traces.push(&trace, &request(&calls));
        }
        assert_eq!(counted.try_recv(), Ok(("dropped", 4)), "there is room for two traces of four spans");
        let (room, spans) = inbox.recv().await.unwrap();
        assert_eq!((spans.len(), inbox.len()), (4, 1));
        drop(room);
        traces.push(&trace, &request(&calls));
        assert!(counted.try_recv().is_err(), "a sent trace makes room");
        drop(inbox.recv().await);
        traces.close();
        traces.push(&trace, &request(&[]));
        assert_eq!(counted.try_recv(), Ok(("dropped", 1)));
    }

    #[test]
    fn flags_have_those_of_the_trace_and_the_kind_of_parent() {
        for (headers, of_request, of_calls) in
            [(HeaderMap::new(), 0x103, 0x103), (parent("01"), 0x301, 0x101), (parent("03"), 0x303, 0x103)]
        {
            let calls = [call(None)];
            let spans = traces(1.0).begin(&headers, "https").unwrap().spans(&request(&calls));
            let flags: Vec<u32> = spans.iter().map(|span| span.flags).collect();
            assert_eq!(flags, [of_request, of_calls, of_calls, of_calls], "{headers:?}");
        }
    }

    #[test]
    fn only_failures_of_the_server_are_errors() {
        let trace = traces(1.0).begin(&HeaderMap::new(), "https").unwrap();
        for (status, error, has_client_left, expected) in [
            (Some(200), None, false, (None, None)),
            (Some(404), Some("not_found"), false, (None, None)),
            (Some(500), None, false, (Some(ERROR), Some("500"))),
            (Some(503), Some("overloaded"), false, (Some(ERROR), Some("overloaded"))),
            // A stream that failed after its head.
            (Some(200), Some("timeout"), false, (Some(ERROR), Some("timeout"))),
            (Some(200), None, true, (None, Some("client_left"))),
            (None, None, true, (None, Some("client_left"))),
        ] {
            let outcome = RequestOutcome { status, error, has_client_left, ..request(&[]) };
            let span = trace.spans(&outcome).remove(0);
            assert_eq!((span.status.code, value(&span, "error.type")), (expected.0, expected.1.map(Value::from)));
            let sent = status.map(|status| Value::from(status.to_string()));
            assert_eq!(value(&span, "http.response.status_code"), sent);
        }
        let calls = [ModelCall { parts: Vec::new(), ..call(Some("timeout")) }];
        let spans = trace.spans(&request(&calls));
        assert_eq!((spans.len(), spans[0].status.code, spans[1].status.code), (2, None, Some(ERROR)));
        assert_eq!(value(&spans[1], "error.type"), Some(json!("timeout")));
    }

    #[test]
    fn long_trace_states_are_not_exported() {
        for (length, expected) in [(MOST_STATE, true), (MOST_STATE + 1, false)] {
            let mut headers = parent("01");
            // Three members, of which the last has the rest.
            let value = format!("a={0},b={0},c={1}", "x".repeat(200), "x".repeat(length - 408));
            headers.insert(textnlp_process::TRACESTATE, HeaderValue::from_str(&value).unwrap());
            let span = traces(1.0).begin(&headers, "https").unwrap().spans(&request(&[])).remove(0);
            assert_eq!((value.len(), span.trace_state.is_some()), (length, expected));
        }
    }

    #[test]
    fn ratio_draws_requests_without_a_parent() {
        let none = HeaderMap::new();
        for (ratio, expected) in [(0.0, 0..=0), (0.25, 150..=350), (1.0, 1000..=1000)] {
            let traces = traces(ratio);
            let drawn = (0..1000).filter(|_| traces.begin(&none, "https").is_some()).count();
            assert!(expected.contains(&drawn), "{ratio}: {drawn}");
        }
        let trace = traces(1.0).begin(&none, "https").unwrap();
        assert!(!trace.needs_caller && trace.context.is_none() && trace.span != [0; 8]);
    }

    #[test]
    fn callers_decide_for_their_requests_and_need_a_credential_outside_of_the_ratio() {
        assert!(traces(1.0).begin(&parent("00"), "https").is_none());
        let trace = traces(0.0).begin(&parent("01"), "https").unwrap();
        assert_eq!((trace.id().as_str(), trace.needs_caller), ("4bf92f3577b34da6a3ce929d0e0e4736", true));
        assert!(!traces(1.0).begin(&parent("01"), "https").unwrap().needs_caller);
    }

    #[test]
    fn secret_is_one_line_and_is_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("secret")).unwrap();
        std::fs::write(&path, "Bearer hunter2\n").unwrap();
        let value = read_secret(&path).unwrap();
        assert!(value == "Bearer hunter2" && value.is_sensitive());
        for wrong in ["", "\n", "hunter2\nhunter3"] {
            std::fs::write(&path, wrong).unwrap();
            let error = read_secret(&path).unwrap_err().to_string();
            assert!(error.contains("is not the value of a header") && !error.contains("hunter"), "{error}");
        }
        assert!(read_secret(&path.with_extension("missing")).is_err());
    }
}
