//! The record of one request: handlers fill it in, and it is written when the last reference is dropped: the access
//! log, the metrics and the usage row. So long streams and requests of disconnected clients are recorded like any
//! other.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use textnlp_process::Peer;
use textnlp_store::rate::Left;
use textnlp_store::{Charge, Usage, now_ms};

use crate::app::App;
use crate::auth::{ANONYMOUS, Caller};
use crate::traces::{MOST_CALLS, ModelCall, RequestOutcome, Trace};

/// The fields known so far.
#[derive(Debug, Default, Clone)]
pub(crate) struct RecordFields {
    pub(crate) user: Option<String>,
    pub(crate) tenant: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) queued_ms: Option<f64>,
    pub(crate) first_token_ms: Option<f64>,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<&'static str>,
    pub(crate) rate: Option<Left>,
    /// It was within the scopes and the rate of its key: others leave no row in the database.
    pub(crate) admitted: bool,
    /// The answer's last byte was taken.
    pub(crate) finished: bool,
    /// Runs of models, where the request is traced.
    pub(crate) calls: Vec<ModelCall>,
}

/// The record of one request.
pub(crate) struct Record {
    app: Arc<App>,
    pub(crate) id: String,
    pub(crate) method: &'static str,
    pub(crate) route: String,
    pub(crate) client: Option<IpAddr>,
    pub(crate) began: Instant,
    /// The trace, where its spans may be exported.
    trace: Option<Trace>,
    known: Mutex<RecordFields>,
}

/// The route of unknown paths.
pub(crate) const NO_ROUTE: &str = "other";

/// The method of requests of batches.
pub(crate) const BATCH: &str = "BATCH";

/// The status of a request whose client left before it was answered, by nginx's custom.
const CLIENT_LEFT: u16 = 499;

impl Record {
    pub(crate) fn begin(
        app: Arc<App>,
        id: String,
        method: &'static str,
        route: String,
        client: Option<IpAddr>,
        trace: Option<Trace>,
    ) -> Arc<Self> {
        app.metrics.request_began();
        Arc::new(Self { app, id, method, route, client, began: Instant::now(), trace, known: Mutex::default() })
    }

    /// The id of its trace, for the log.
    pub(crate) fn trace_id(&self) -> Option<String> {
        self.trace.as_ref().map(Trace::id)
    }

    /// Notes a run of a model, where the request is traced.
    pub(crate) fn called(&self, call: impl FnOnce() -> ModelCall) {
        if self.trace.is_some() {
            self.note(|known| {
                if known.calls.len() < MOST_CALLS {
                    known.calls.push(call());
                }
            });
        }
    }

    /// Updates the record.
    pub(crate) fn note(&self, change: impl FnOnce(&mut RecordFields)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn caller(&self, caller: &Caller) {
        self.note(|known| {
            known.user = Some(caller.user.clone());
            known.tenant = Some(caller.tenant.clone());
        });
    }

    /// The tenant and the key of the request; empty until they are known.
    pub(crate) fn owner(&self) -> (String, String) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.tenant.clone().unwrap_or_default(), known.user.clone().unwrap_or_default())
    }

    /// What the request cost its tenant, by the prices of now; also counts it.
    fn charge(&self, known: &RecordFields) -> Option<Charge> {
        let prices = self.app.config.prices.as_ref()?;
        let model = known.model.as_deref();
        let cost = prices.cost(model, known.prompt_tokens, known.generated_tokens);
        self.app.metrics.record_cost(model, &prices.currency, [("prompt", cost.prompt), ("answer", cost.answer)]);
        Some(Charge { nanos: cost.nanos(), cents: 0, currency: prices.currency.clone() })
    }

    /// When the request must be answered.
    pub(crate) fn deadline(&self) -> Instant {
        self.began + self.app.config.api.timeout
    }
}

/// Whether the gateway may have sent the request: over a Unix socket or from inside the pod. The `X-Forwarded-…` headers
/// of any other peer are claims.
fn may_be_forwarded(request: &Request) -> bool {
    match request.extensions().get::<Peer>() {
        Some(Peer::Unix) => true,
        Some(Peer::Tcp(peer)) => peer.is_loopback(),
        None => false,
    }
}

/// The client's address: the one that the gateway names, else the peer.
pub(crate) fn client(request: &Request) -> Option<IpAddr> {
    let named = || request.headers().get("x-forwarded-for")?.to_str().ok()?.parse().ok();
    let peer = match request.extensions().get::<Peer>()? {
        Peer::Unix => None,
        Peer::Tcp(peer) => Some(*peer),
    };
    if may_be_forwarded(request) { named().or(peer) } else { peer }
}

/// Whether the client uses HTTPS, which the gateway reports.
pub(crate) fn uses_https(request: &Request) -> bool {
    may_be_forwarded(request) && request.headers().get("x-forwarded-proto").is_some_and(|proto| proto == "https")
}

/// Whether load balancers and SageMaker ask for it every few seconds.
pub(crate) fn is_probe(route: &str) -> bool {
    matches!(route, "/health" | "/ready" | "/ping")
}

impl Drop for Record {
    fn drop(&mut self) {
        let known = self.known.get_mut().unwrap_or_else(PoisonError::into_inner).clone();
        let took: Duration = self.began.elapsed();
        let status = match known.status {
            Some(status) if known.finished => status,
            _ => CLIENT_LEFT,
        };
        self.app.metrics.request_ended(self.method, &self.route, status, took);
        if let Some(code) = known.error {
            self.app.metrics.error(code);
        } else if status == CLIENT_LEFT {
            self.app.metrics.error("client_left");
        }
        // Probes run every second: they are logged only on failure, or at the debug level.
        let probe = is_probe(&self.route) && status < 400;
        // Requests with a key are bounded by its rate; others would replace the log within seconds.
        let is_limited = (400..500).contains(&status) || (known.user.is_none() && status < 500);
        let lines = if is_limited { self.app.refused_lines.next(self.client) } else { Some(0) };
        let suppressed = lines.filter(|count| *count > 0);
        let trace_id = self.trace_id();
        if let (Some(traces), Some(trace)) = (&self.app.traces, &self.trace) {
            let request = RequestOutcome {
                id: &self.id,
                method: self.method,
                is_http: self.method != BATCH,
                route: Some(self.route.as_str()).filter(|route| *route != NO_ROUTE),
                status: known.status,
                error: known.error,
                has_client_left: !known.finished,
                tenant: known.tenant.as_deref(),
                // Where no key is required, any client is the anonymous user.
                has_caller: known.user.as_deref().is_some_and(|user| user != ANONYMOUS),
                calls: &known.calls,
            };
            traces.push(trace, &request);
        }
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    request_id = %self.id,
                    // `templates/fail2ban/textnlp.conf` reads these fields, in this order.
                    client = self.client.map(tracing::field::display),
                    method = self.method,
                    route = %self.route,
                    status,
                    ms = took.as_millis() as u64,
                    key = known.user.as_deref(),
                    tenant = known.tenant.as_deref(),
                    model = known.model.as_deref(),
                    prompt_tokens = known.prompt_tokens,
                    generated_tokens = known.generated_tokens,
                    queued_ms = known.queued_ms,
                    first_token_ms = known.first_token_ms,
                    error = known.error,
                    trace_id = trace_id.as_deref(),
                    suppressed,
                )
            };
        }
        if probe {
            line!(debug)
        } else if lines.is_some() {
            line!(info)
        }
        // A request of a batch that runs again leaves a row only for its tokens, which the engine may report after the time limit.
        let admitted = known.admitted || (self.method == BATCH && known.prompt_tokens + known.generated_tokens > 0);
        let charge = if admitted { self.charge(&known) } else { None };
        if let (true, Some(user), Some(tenant)) = (admitted, known.user, known.tenant) {
            self.app.usage.push(Usage {
                id: uuid::Uuid::now_v7(),
                request_id: self.id.clone(),
                user,
                tenant,
                endpoint: self.route.clone(),
                model: known.model,
                prompt_tokens: known.prompt_tokens,
                generated_tokens: known.generated_tokens,
                charge,
                ms: took.as_millis() as u64,
                status,
                at_ms: now_ms(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_is_named_by_the_gateway_and_is_the_peer_otherwise() {
        let tcp = |peer: &str| Peer::Tcp(peer.parse::<IpAddr>().unwrap().to_canonical());
        for (named, peer, expected) in [
            (Some("192.0.2.7"), Peer::Unix, Some("192.0.2.7")),
            (Some("192.0.2.7"), tcp("127.0.0.1"), Some("192.0.2.7")),
            (Some("192.0.2.7"), tcp("198.51.100.1"), Some("198.51.100.1")),
            (Some("192.0.2.7"), tcp("::ffff:198.51.100.1"), Some("198.51.100.1")),
            (Some("nonsense"), Peer::Unix, None),
            (None, tcp("198.51.100.1"), Some("198.51.100.1")),
            (None, tcp("::1"), Some("::1")),
            (None, Peer::Unix, None),
        ] {
            let mut request = Request::new(axum::body::Body::empty());
            request.extensions_mut().insert(peer);
            if let Some(named) = named {
                request.headers_mut().insert("x-forwarded-for", named.parse().unwrap());
            }
            assert_eq!(client(&request).map(|client| client.to_string()).as_deref(), expected, "{named:?} {peer:?}");
        }
    }

    #[test]
    fn https_is_believed_only_from_the_gateway() {
        let tcp = |peer: &str| Some(Peer::Tcp(peer.parse::<IpAddr>().unwrap().to_canonical()));
        for (proto, peer, expected) in [
            (Some("https"), Some(Peer::Unix), true),
            (Some("https"), tcp("127.0.0.1"), true),
            (Some("https"), tcp("::1"), true),
            (Some("http"), tcp("127.0.0.1"), false),
            (None, Some(Peer::Unix), false),
            (Some("https"), tcp("10.244.1.7"), false),
            (Some("https"), tcp("::ffff:10.244.1.7"), false),
            (Some("https"), None, false),
        ] {
            let mut request = Request::new(axum::body::Body::empty());
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            if let Some(proto) = proto {
                request.headers_mut().insert("x-forwarded-proto", proto.parse().unwrap());
            }
            assert_eq!(uses_https(&request), expected, "{proto:?} {peer:?}");
        }
    }
}
