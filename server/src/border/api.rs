//! The border's own socket: how it is, and faults.

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
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::fault::{Kind, MOST};
use super::relay::Relay;
use super::{Listener, Shared};
use crate::metrics::{OPENMETRICS, encoded};

/// Connections at once; who asks is a supervisor, a gateway and a drill.
const MOST_CONNECTIONS: usize = 64;
const MOST_BODY: usize = 4 << 10;
/// A request must be there after this, and an idle connection is closed after it.
const WITHIN: Duration = Duration::from_secs(10);

/// Answers until the border stops.
pub(super) async fn serve(shared: Arc<Shared>, listener: Listener, tasks: TaskTracker) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let taken = async {
            let Ok(room) = room.clone().acquire_owned().await else { return std::future::pending().await };
            (listener.accept().await, room)
        };
        let (accepted, permit) = tokio::select! {
            () = shared.stop.accept.cancelled() => return,
            taken = taken => taken,
        };
        let Ok(stream) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let shared = shared.clone();
        tasks.spawn(async move {
            let service = service_fn(|request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(WITHIN)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A client that leaves in the middle is no matter of ours.
                _ = connection => {}
                () = shared.stop.accept.cancelled() => {}
            }
            drop(permit);
        });
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    kind: String,
    ttl_ms: u64,
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let hint = "PUT {\"kind\":\"blackhole\",\"ttl_ms\":20000}";
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/ready") => told(StatusCode::OK, &json!({ "status": "ready" })),
        (&Method::GET, "/metrics") => metrics(shared),
        (&Method::GET, "/v1/status") => told(StatusCode::OK, &status(shared)),
        (&Method::PUT, "/v1/fault") => {
            let body = tokio::time::timeout(WITHIN, Limited::new(request.into_body(), MOST_BODY).collect()).await;
            let Ok(Ok(body)) = body else {
                return refused("bad_body", "the body did not come, or is too large", hint);
            };
            let asked: Asked = match serde_json::from_slice(&body.to_bytes()) {
                Ok(asked) => asked,
                Err(problem) => return refused("bad_body", &problem.to_string(), hint),
            };
            if asked.kind != "blackhole" {
                let message = format!("`{}` is not a fault that a border makes", asked.kind.escape_debug());
                return refused("bad_fault", &message, "the only kind is `blackhole`");
            }
            let lasts = Duration::from_millis(asked.ttl_ms);
            if lasts.is_zero() || lasts > MOST {
                let message = format!("a fault of {} ms is not to be had", asked.ttl_ms);
                return refused("bad_fault", &message, &format!("ask for 1 to {} ms", MOST.as_millis()));
            }
            shared.faults.begin(Kind::Blackhole, lasts);
            told(StatusCode::OK, &status(shared))
        }
        (&Method::DELETE, "/v1/fault") => {
            shared.faults.end();
            told(StatusCode::OK, &status(shared))
        }
        _ => problem(
            StatusCode::NOT_FOUND,
            "not_found",
            "there is no such path",
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
    counter(&mut registry, "textnlp_border_connections", "Connections that a link has taken", |relay| {
        &relay.connections
    });
    counter(&mut registry, "textnlp_border_failures", "Connections behind which nobody answered", |relay| {
        &relay.failures
    });
    let fault = Gauge::<i64>::default();
    fault.set(i64::from(shared.faults.now().is_some()));
    registry.register("textnlp_border_fault", "1 while a fault is made", fault);
    let mut response = Response::new(Full::new(Bytes::from(encoded(&registry))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
    response
}

fn refused(code: &str, message: &str, hint: &str) -> Response<Full<Bytes>> {
    problem(StatusCode::BAD_REQUEST, code, message, hint)
}

fn problem(status: StatusCode, code: &str, message: &str, hint: &str) -> Response<Full<Bytes>> {
    told(status, &json!({ "error": { "code": code, "message": message, "hint": hint } }))
}

fn told(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
