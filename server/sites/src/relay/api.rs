//! The control socket of the inter-site relay: status and faults.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_net::listen::{Limits, Listener, Stream};
use textnlp_process::{OPENMETRICS, encoded};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::fault::{Kind, MAX_DURATION};
use super::link::Relay;

/// Maximum connections at once. The clients are a supervisor, a gateway and a drill.
const MOST_CONNECTIONS: usize = 64;
const MOST_BODY: usize = 4 << 10;
/// A request must be there after this, and an idle connection is closed after it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the relay stops.
pub(super) async fn serve(shared: Arc<Shared>, listener: Listener, tasks: TaskTracker) {
    let limits = Limits { name: "relay status", max_connections: MOST_CONNECTIONS };
    let handle = |stream| connection(shared.clone(), stream);
    listener.serve(limits, &shared.stop.accept, &tasks, handle).await;
}

async fn connection(shared: Arc<Shared>, stream: Stream) {
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // A client that closes the connection early needs no answer.
        _ = connection => {}
        () = shared.stop.accept.cancelled() => {}
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultRequest {
    kind: String,
    ttl_ms: u64,
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let hint = "PUT {\"kind\":\"blackhole\",\"ttl_ms\":20000}";
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/ready") => json_response(StatusCode::OK, &json!({ "status": "ready" })),
        (&Method::GET, "/metrics") => metrics(shared),
        (&Method::GET, "/v1/status") => json_response(StatusCode::OK, &status(shared)),
        (&Method::PUT, "/v1/fault") => {
            let body =
                tokio::time::timeout(REQUEST_TIMEOUT, Limited::new(request.into_body(), MOST_BODY).collect()).await;
            let Ok(Ok(body)) = body else {
                return refused("bad_body", "the body did not arrive, or is too large", hint);
            };
            let fault_request: FaultRequest = match serde_json::from_slice(&body.to_bytes()) {
                Ok(fault_request) => fault_request,
                Err(problem) => return refused("bad_body", &problem.to_string(), hint),
            };
            if fault_request.kind != "blackhole" {
                let message = format!("`{}` is not a fault that a relay can inject", fault_request.kind.escape_debug());
                return refused("bad_fault", &message, "the only kind is `blackhole`");
            }
            let lasts = Duration::from_millis(fault_request.ttl_ms);
            if lasts.is_zero() || lasts > MAX_DURATION {
                let message = format!("a fault of {} ms is not supported", fault_request.ttl_ms);
                return refused("bad_fault", &message, &format!("use 1 to {} ms", MAX_DURATION.as_millis()));
            }
            shared.faults.begin(Kind::Blackhole, lasts);
            json_response(StatusCode::OK, &status(shared))
        }
        (&Method::DELETE, "/v1/fault") => {
            shared.faults.end();
            json_response(StatusCode::OK, &status(shared))
        }
        _ => problem(
            StatusCode::NOT_FOUND,
            "not_found",
            "this path does not exist",
            "GET /ready, GET /metrics, GET /v1/status, PUT /v1/fault, DELETE /v1/fault",
        ),
    }
}

fn status(shared: &Shared) -> Value {
    let fault = shared.faults.now().map(|fault| {
        let left = fault.until.saturating_duration_since(Instant::now());
        json!({ "kind": fault.kind, "left_ms": u64::try_from(left.as_millis()).unwrap_or(u64::MAX) })
    });
    let links: Vec<Value> = shared
        .relays
        .iter()
        .map(|relay| {
            json!({
                "name": relay.name,
                "listen": relay.listen,
                "to": relay.to.to_string(),
                "open": relay.open.load(Relaxed),
                "stalled": relay.stalled.load(Relaxed),
                "connections": relay.connections.load(Relaxed),
                "failures": relay.failures.load(Relaxed),
            })
        })
        .collect();
    json!({ "fault": fault, "links": links })
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLink {
    link: String,
}

fn metrics(shared: &Shared) -> Response<Full<Bytes>> {
    let mut registry = Registry::default();
    let gauge = |registry: &mut Registry, name: &str, help: &str, figure: fn(&Relay) -> &AtomicU64| {
        let family = Family::<ByLink, Gauge>::default();
        for relay in &shared.relays {
            let value = figure(relay).load(Relaxed).cast_signed();
            family.get_or_create(&ByLink { link: relay.name.clone() }).set(value);
        }
        registry.register(name, help, family);
    };
    let counter = |registry: &mut Registry, name: &str, help: &str, figure: fn(&Relay) -> &AtomicU64| {
        let family = Family::<ByLink, Counter>::default();
        for relay in &shared.relays {
            family.get_or_create(&ByLink { link: relay.name.clone() }).inc_by(figure(relay).load(Relaxed));
        }
        registry.register(name, help, family);
    };
    gauge(&mut registry, "textnlp_border_open", "Connections of a link", |relay| &relay.open);
    gauge(&mut registry, "textnlp_border_stalled", "Connections of a link that a fault holds", |relay| &relay.stalled);
    counter(&mut registry, "textnlp_border_connections", "Connections that a link has accepted", |relay| {
        &relay.connections
    });
    counter(&mut registry, "textnlp_border_failures", "Connections whose destination did not answer", |relay| {
        &relay.failures
    });
    let fault = Gauge::<i64>::default();
    fault.set(i64::from(shared.faults.now().is_some()));
    registry.register("textnlp_border_fault", "1 while a fault is injected", fault);
    let mut response = Response::new(Full::new(Bytes::from(encoded(&registry))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
    response
}

fn refused(code: &str, message: &str, hint: &str) -> Response<Full<Bytes>> {
    problem(StatusCode::BAD_REQUEST, code, message, hint)
}

fn problem(status: StatusCode, code: &str, message: &str, hint: &str) -> Response<Full<Bytes>> {
    json_response(status, &json!({ "error": { "code": code, "message": message, "hint": hint } }))
}

fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
