//! The gateway's metrics, and the merged metrics of all processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::config::SocketAddress;
use super::exposition::Exposition;
use super::{Gateway, plain};

/// An unresponsive replica must not delay the others' metrics; scrapers time out after ten seconds.
const GATHER_TIMEOUT: Duration = Duration::from_secs(3);
const MOST_BYTES: usize = 8 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReplica {
    replica: String,
}

/// The gateway's own metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<ByStatus, Counter>,
    seconds: Histogram,
    retries: Counter,
    choices: Family<ByReason, Counter>,
    requests_refused: Family<ByReason, Counter>,
    handshakes_failed: Counter,
    connections: Gauge,
    connections_refused: Family<ByReason, Counter>,
    connections_closed: Family<ByReason, Counter>,
    healthy: Family<ByReplica, Gauge>,
    in_flight: Family<ByReplica, Gauge>,
    sent: Family<ByReplica, Counter<u64, AtomicU64>>,
    failures: Family<ByReplica, Counter<u64, AtomicU64>>,
    weight: Family<ByReplica, Gauge>,
    gathered: Family<ByReplica, Gauge>,
    not_after: Gauge<i64, AtomicI64>,
    certificates_refused: Counter,
}

/// Counts a connection for its lifetime.
pub(super) struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        let bounds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let mut metrics = Metrics {
            registry: Registry::with_prefix("textnlp_gateway"),
            requests: Family::default(),
            seconds: Histogram::new(bounds),
            retries: Counter::default(),
            choices: Family::default(),
            requests_refused: Family::default(),
            handshakes_failed: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Family::default(),
            connections_closed: Family::default(),
            healthy: Family::default(),
            in_flight: Family::default(),
            sent: Family::default(),
            failures: Family::default(),
            weight: Family::default(),
            gathered: Family::default(),
            not_after: Gauge::default(),
            certificates_refused: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Requests of clients by status", metrics.requests.clone());
        registry.register("answer_seconds", "Time until the head of the answer", metrics.seconds.clone());
        registry.register("retries", "Requests that were sent to another replica", metrics.retries.clone());
        registry.register(
            "choices",
            "Replicas chosen for prompts, by reason: prefix, load, new",
            metrics.choices.clone(),
        );
        registry.register("tls_handshake_errors", "TLS handshakes that failed", metrics.handshakes_failed.clone());
        registry.register(
            "requests_refused",
            "Requests that the gateway answered with an error, by reason",
            metrics.requests_refused.clone(),
        );
        registry.register("connections", "Open connections", metrics.connections.clone());
        registry.register(
            "connections_refused",
            "Connections refused by a limit: address_limit, full",
            metrics.connections_refused.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that the gateway closed: evicted, no_request, idle, frame_flood, overdue",
            metrics.connections_closed.clone(),
        );
        registry.register("backend_healthy", "1 if the replica gets requests", metrics.healthy.clone());
        registry.register("backend_requests_in_flight", "Requests on the replica", metrics.in_flight.clone());
        registry.register("backend_requests", "Requests sent to the replica", metrics.sent.clone());
        registry.register("backend_failures", "Requests that failed on the replica", metrics.failures.clone());
        registry.register("backend_weight", "The replica's traffic weight", metrics.weight.clone());
        registry.register(
            "backend_metrics_gathered",
            "1 if the replica's metrics are in this answer",
            metrics.gathered.clone(),
        );
        registry.register(
            "certificate_not_after_seconds",
            "When the certificate that expires first does, in Unix time; 0 without TLS",
            metrics.not_after.clone(),
        );
        registry.register(
            "certificates_refused",
            "Changed certificates that could not be used",
            metrics.certificates_refused.clone(),
        );
        metrics
    }

    pub(super) fn answered(&self, status: StatusCode, took: Duration) {
        self.requests.get_or_create(&ByStatus { status: status.as_u16() }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn retried(&self) {
        self.retries.inc();
    }

    pub(super) fn chosen(&self, reason: &'static str) {
        self.choices.get_or_create(&ByReason { reason }).inc();
    }

    pub(super) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    pub(super) fn request_refused(&self, reason: &'static str) {
        self.requests_refused.get_or_create(&ByReason { reason }).inc();
    }

    pub(super) fn connection_refused(&self, reason: &'static str) {
        self.connections_refused.get_or_create(&ByReason { reason }).inc();
    }

    pub(super) fn connection_closed(&self, reason: &'static str) {
        self.connections_closed.get_or_create(&ByReason { reason }).inc();
    }

    pub(super) fn certificate_refused(&self) {
        self.certificates_refused.inc();
    }

    pub(super) fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    pub(super) fn connections(&self) -> i64 {
        self.connections.get()
    }

    pub(super) fn healthy(&self, backend: &str, healthy: bool) {
        self.healthy.get_or_create(&ByReplica { replica: backend.to_owned() }).set(healthy.into());
    }

    /// Removes the metrics of a removed replica.
    pub(super) fn forget(&self, backend: &str) {
        let label = ByReplica { replica: backend.to_owned() };
        self.healthy.remove(&label);
        self.in_flight.remove(&label);
        self.sent.remove(&label);
        self.failures.remove(&label);
        self.weight.remove(&label);
        self.gathered.remove(&label);
    }
}

/// Answers on the metrics address.
pub(super) async fn answer(gateway: Arc<Gateway>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        let hint = "the only endpoint is GET /metrics";
        return super::answer::error(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "not_found",
            "this path does not exist",
            hint,
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let hint = "use GET or HEAD";
        return super::answer::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            "method_not_allowed",
            "it is read only",
            hint,
        );
    }
    let text = gather(&gateway).await;
    let (kind, text) = textnlp_process::negotiated(request.headers(), text);
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The metrics of the gateway and of every replica, merged.
async fn gather(gateway: &Gateway) -> String {
    let live = gateway.live();
    let metrics = &gateway.metrics;
    let texts = futures::future::join_all(live.backends.all().iter().map(|backend| async move {
        match &backend.metrics_address {
            Some(address) => (backend, exposed(address).await),
            None => (backend, None),
        }
    }));
    let others = futures::future::join_all(live.config.metrics_from.iter().map(exposed));
    let (texts, others) = futures::join!(texts, others);
    let mut merged = Exposition::default();
    let mut parts = Vec::new();
    for (backend, text) in texts {
        let label = ByReplica { replica: backend.name.clone() };
        metrics.in_flight.get_or_create(&label).set(i64::try_from(backend.in_flight.load(Relaxed)).unwrap_or(i64::MAX));
        metrics.weight.get_or_create(&label).set(backend.weight().into());
        set(&metrics.sent.get_or_create(&label), backend.requests.load(Relaxed));
        set(&metrics.failures.get_or_create(&label), backend.failures.load(Relaxed));
        metrics.gathered.get_or_create(&label).set(text.is_some().into());
        parts.extend(text.map(|text| (backend.name.clone(), text)));
    }
    for (address, text) in live.config.metrics_from.iter().zip(others) {
        let label = ByReplica { replica: address.called() };
        metrics.gathered.get_or_create(&label).set(text.is_some().into());
        parts.extend(text.map(|text| (label.replica, text)));
    }
    if let Some(certificate) = &gateway.certificate {
        metrics.not_after.set(certificate.shown().ends());
    }
    let mut own = String::new();
    // Writing into a string cannot fail.
    let _ = text::encode(&mut own, &metrics.registry);
    merged.add(&own, None);
    for (name, text) in parts {
        merged.add(&text, Some(&name));
    }
    merged.to_string()
}

/// The metrics of an address; `None` if they are unavailable.
async fn exposed(address: &SocketAddress) -> Option<String> {
    let (status, _, body) = plain::get(address, None, "/metrics", GATHER_TIMEOUT, MOST_BYTES).await.ok()?;
    status.is_success().then(|| String::from_utf8(body.to_vec()).ok())?
}

/// The backend owns the counts, because it outlives a reload.
fn set(counter: &Counter<u64, AtomicU64>, value: u64) {
    counter.inner().store(value, Relaxed);
}
