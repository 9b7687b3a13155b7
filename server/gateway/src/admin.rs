//! The administration socket: status, weights, and reload.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::json;

use super::answer::{Refusal, error, json};
use super::backend::State;
use super::forward::MOST_TRIES;
use super::{Gateway, Live, handover, plain};

const MOST_BODY: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Those that ask for a site's readiness wait for less.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// `GET /status`, `GET /ready`, `GET /sockets`, `POST /weights`, `POST /reload`.
pub(super) async fn answer(gateway: Arc<Gateway>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => json(StatusCode::OK, &status(&gateway)),
        (&Method::GET, "/ready") => ready(&gateway.live()),
        (&Method::GET, "/sockets") => handover::send_sockets(&gateway, request),
        (&Method::POST, "/weights") => weights(&gateway, request).await,
        (&Method::POST, "/reload") => match gateway.reload().await {
            Ok(reloaded) => json(StatusCode::OK, &json!(reloaded)),
            Err(problem) => bad(
                "reload_refused",
                &problem.to_string(),
                "the old configuration stays in use; fix it and reload again",
            ),
        },
        _ => not_found("GET /status, GET /ready, POST /weights, POST /reload"),
    }
}

/// `GET /health` and `GET /ready` alone, for callers that are not operators.
pub(super) async fn answer_checks(gateway: Arc<Gateway>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        // Does not depend on the backends: a restart of the gateway would not help them.
        (&Method::GET, "/health") => json(StatusCode::OK, &json!({ "status": "ok" })),
        (&Method::GET, "/ready") => ready(&gateway.live()),
        _ => not_found("GET /health, GET /ready"),
    }
}

/// `GET /ready` as a server answers it: the first one that is ready, else the last one asked.
pub(super) async fn answer_ready(gateway: Arc<Gateway>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if (request.method(), request.uri().path()) != (&Method::GET, "/ready") {
        return not_found("the only endpoint is GET /ready");
    }
    let (mut tried, mut last) = (Vec::new(), Refusal::NoBackend.response());
    while tried.len() < MOST_TRIES
        && let Some(backend) = gateway.live().backends.pick(&tried)
    {
        let trust = backend.trust.as_ref();
        if let Ok((status, _, body)) = plain::get(&backend.address, trust, "/ready", READY_TIMEOUT, MOST_BODY).await {
            last = Response::new(Full::new(body));
            *last.status_mut() = status;
            last.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if status.is_success() {
                break;
            }
        }
        tried.push(backend);
    }
    last
}

fn not_found(hint: &str) -> Response<Full<Bytes>> {
    error(StatusCode::NOT_FOUND, "invalid_request_error", "not_found", "this path does not exist", hint)
}

fn bad(code: &str, message: &str, hint: &str) -> Response<Full<Bytes>> {
    error(StatusCode::BAD_REQUEST, "invalid_request_error", code, message, hint)
}

fn status(gateway: &Gateway) -> serde_json::Value {
    let live = gateway.live();
    let backends: Vec<_> = live
        .backends
        .all()
        .iter()
        .map(|backend| {
            json!({
                "name": backend.name,
                "listen": backend.address.to_string(),
                "weight": backend.weight(),
                "state": backend.state(),
                "in_flight": backend.in_flight.load(Relaxed),
                "requests": backend.requests.load(Relaxed),
                "failures": backend.failures.load(Relaxed),
                "last_error": backend.last_error(),
            })
        })
        .collect();
    json!({
        "listen": live.config.listen.to_string(),
        "file": gateway.file,
        "draining": gateway.stops.drain.is_cancelled(),
        "connections": gateway.metrics.connections(),
        "certificate": gateway.certificate.as_ref().map(|certificate| certificate.shown()),
        "backends": backends,
    })
}

/// Ready if any healthy backend has a weight above 0.
fn ready(live: &Live) -> Response<Full<Bytes>> {
    let well =
        live.backends.all().iter().filter(|backend| backend.state() == State::Healthy && backend.weight() > 0).count();
    let status = if well > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(
        status,
        &json!({"status": if well > 0 { "ready" } else { "no_backend" }, "healthy": well, "backends": live.backends.all().len()}),
    )
}

/// `{"server-0": 50, …}`: applied atomically, until the next reload, which restores the file's weights.
async fn weights(gateway: &Gateway, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MOST_BODY).collect()).await;
    let Ok(Ok(body)) = body else {
        return bad("bad_body", "the body did not arrive, or is too large", "send a small JSON object");
    };
    let hint = "send {\"NAME\": WEIGHT, …} with weights from 0 to 10000";
    let wanted: BTreeMap<String, u32> = match serde_json::from_slice(&body.to_bytes()) {
        Ok(wanted) => wanted,
        Err(problem) => return bad("bad_body", &problem.to_string(), hint),
    };
    let live = gateway.live();
    let mut found = Vec::new();
    for (name, weight) in &wanted {
        match live.backends.all().iter().find(|backend| backend.name == *name) {
            Some(backend) if *weight <= 10_000 => found.push((backend, *weight)),
            Some(_) => return bad("bad_weight", &format!("{name}: {weight} is above 10000"), hint),
            None => return bad("no_such_backend", &format!("there is no backend `{name}`"), "GET /status lists them"),
        }
    }
    for (backend, weight) in found {
        if backend.set_weight(weight) {
            tracing::info!(backend = %backend.name, weight, "weight changed");
        }
    }
    json(StatusCode::OK, &status(gateway))
}
