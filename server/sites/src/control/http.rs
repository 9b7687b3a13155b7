//! The HTTP APIs of a site agent and of the witness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_control::{Outcome, Position, Refused, Site, Write};
use textnlp_store::Store;

use super::actor::{Actor, Unanswered};
use super::config::AgentConfig;
use super::copies::{CopiesConfig, CopyStatus, offer};
use super::counters::{self, Counters};
use super::database::{self, DatabaseStatus, HandoverError};
use super::links::Envelope;
use super::status::Status;
use super::usage::{Shipment, Shipped};
use super::{client, exposition, witness};

/// State shared by the handlers of a site agent.
#[derive(Debug)]
pub(super) struct AgentState {
    pub(super) config: AgentConfig,
    pub(super) actor: Actor,
    pub(super) store: Store,
    pub(super) shipped: Shipped,
    pub(super) copied: CopyStatus,
    /// The incarnation of this site's disk.
    pub(super) life: u64,
    /// The shared PostgreSQL of all sites, where there is one.
    pub(super) beside: DatabaseStatus,
    pub(super) counters: Counters,
}

type Shared = State<Arc<AgentState>>;

/// Writes of one request, and their size together.
const MOST_WRITES: usize = 1000;
const MOST_WRITE_BYTES: usize = 1 << 20;
/// A key of the table is a short path.
const MOST_KEY: usize = 512;
/// The largest request for a lease, in bytes.
const MOST_LEASE: usize = 8 << 10;
/// The longest that a request waits.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The routes of a site agent.
pub(super) fn watch_routes(watch: Arc<AgentState>) -> Router {
    Router::new()
        .route("/ready", get(|| async { Json(json!({ "status": "ready" })) }))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/table", get(table))
        .route("/v1/applied", get(applied))
        .route("/v1/lead", get(lead))
        .route("/v1/messages", post(messages).layer(DefaultBodyLimit::max(client::MOST_BODY)))
        .route("/v1/write", post(write).layer(DefaultBodyLimit::max(2 * MOST_WRITE_BYTES)))
        .route("/v1/claim", post(claim))
        .route("/v1/handover", post(handover))
        .route("/v1/counters", get(counters::changes).post(counters::grant).layer(DefaultBodyLimit::max(MOST_LEASE)))
        .route("/v1/usage", post(usage).layer(DefaultBodyLimit::max(16 << 20)))
        .route("/v1/usage/ids", post(usage_ids))
        .route("/v1/copies", get(copies))
        .route("/v1/copies/model", get(copy_of_model))
        .route("/v1/copies/configuration", get(copy_of_configuration))
        .with_state(watch)
}

/// The routes of the witness.
pub(super) fn witness_routes(running: Arc<witness::Running>) -> Router {
    Router::new()
        .route("/ready", get(|| async { Json(json!({ "status": "ready" })) }))
        .route("/metrics", get(witness_metrics))
        .route("/v1/status", get(|State(running): State<Arc<witness::Running>>| async move { Json(running.status()) }))
        .route("/v1/messages", post(witness_messages).layer(DefaultBodyLimit::max(16 << 20)))
        .with_state(running)
}

pub(super) fn refused(status: StatusCode, code: &str, message: impl ToString, hint: &str) -> Response {
    let body = json!({ "error": { "code": code, "message": message.to_string(), "hint": hint } });
    (status, Json(body)).into_response()
}

fn unanswered(error: &Unanswered) -> Response {
    match error {
        Unanswered::Refused(why) => refused(StatusCode::SERVICE_UNAVAILABLE, "read_only", why, hint_of(why)),
        Unanswered::Busy => refused(StatusCode::SERVICE_UNAVAILABLE, "busy", error, "try again in a moment"),
        Unanswered::Silent(_) => {
            let hint = "check the cluster of this site and the route to it";
            refused(StatusCode::SERVICE_UNAVAILABLE, "service_silent", error, hint)
        }
    }
}

fn hint_of(why: &Refused) -> &'static str {
    match why {
        Refused::Alone => "start another site: `textnlp-deploy dr status` shows the status of each",
        Refused::NoLease { .. } | Refused::OldLease { .. } | Refused::HandingOver { .. } | Refused::Full(_) => {
            "try again in a moment"
        }
        Refused::NotPrimary { .. } => "try again in a moment; `textnlp-deploy dr status` shows the primary",
        Refused::NotFit { .. } => {
            "wait until its copy has caught up, or choose another site; `textnlp-deploy dr status` shows how far each is"
        }
        Refused::NotInSync { .. } => "wait until it has caught up; `textnlp-deploy dr status` shows how far it is",
        Refused::NoWitness => "start the witness again; `textnlp-deploy dr status` shows whether it answers",
        Refused::Already => "no action is required",
    }
}

async fn messages(State(watch): Shared, Json(envelope): Json<Envelope>) -> Response {
    match watch.actor.exchange(envelope.from, envelope.messages).await {
        Ok(messages) => {
            let from = textnlp_control::Peer::Site(watch.config.site.clone());
            Json(json!(Envelope { from, messages })).into_response()
        }
        Err(error) => unanswered(&error),
    }
}

async fn witness_messages(State(running): State<Arc<witness::Running>>, Json(envelope): Json<Envelope>) -> Response {
    match tokio::task::block_in_place(|| running.receive(envelope.messages)) {
        Ok(messages) => Json(json!(Envelope { from: textnlp_control::Peer::Witness, messages })).into_response(),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, "disk", error, "check the witness's disk"),
    }
}

async fn status(State(watch): Shared) -> Response {
    if let Err(error) = watch.actor.heard() {
        return unanswered(&error);
    }
    match watch.actor.look().await {
        Ok((overview, withdrawn)) => Json(json!(Status::of(&watch, overview, withdrawn))).into_response(),
        Err(error) => unanswered(&error),
    }
}

async fn metrics(State(watch): Shared) -> Response {
    match watch.actor.look().await {
        Ok((overview, withdrawn)) => {
            let text = exposition::of_watch(&watch.config.site, &Status::of(&watch, overview, withdrawn));
            ([(header::CONTENT_TYPE, textnlp_process::OPENMETRICS)], text).into_response()
        }
        Err(error) => unanswered(&error),
    }
}

async fn witness_metrics(State(running): State<Arc<witness::Running>>) -> Response {
    ([(header::CONTENT_TYPE, textnlp_process::OPENMETRICS)], exposition::of_witness(&running)).into_response()
}

async fn table(State(watch): Shared, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let prefix = query.get("prefix").map(String::as_str).unwrap_or_default();
    // Another site may learn of an acknowledged write slightly later.
    if query.contains_key("fresh")
        && let Ok((overview, _)) = watch.actor.look().await
        && let Some(address) = overview.primary.and_then(|primary| watch.config.peers.get(&primary))
        && let Ok((StatusCode::OK, answer)) =
            client::get(address, &format!("/v1/table?prefix={}", escaped(prefix)), Duration::from_secs(2)).await
    {
        return Json(answer).into_response();
    }
    match watch.actor.table(prefix).await {
        Ok((at, entries)) => Json(json!({ "epoch": at.epoch, "index": at.index, "entries": entries })).into_response(),
        Err(error) => unanswered(&error),
    }
}

/// Percent-encodes every byte that is special in a URL.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.');
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteRequest {
    writes: Vec<Write>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    /// Answer only once the other reachable sites show the write too.
    #[serde(default)]
    visible: bool,
    /// Forwarded by another site agent, so it is not forwarded again.
    #[serde(default)]
    forwarded: bool,
}

async fn write(State(watch): Shared, Json(writing): Json<WriteRequest>) -> Response {
    let bytes: usize =
        writing.writes.iter().map(|w| w.key.len() + w.value.as_ref().map_or(0, |v| v.to_string().len())).sum();
    let bad_key = |w: &&Write| w.key.is_empty() || w.key.len() > MOST_KEY || w.key.chars().any(char::is_control);
    if writing.writes.is_empty() || writing.writes.len() > MOST_WRITES || bytes > MOST_WRITE_BYTES {
        let hint = "send 1 to 1000 writes of at most 1 MiB together";
        return refused(StatusCode::BAD_REQUEST, "too_much", "the body has no valid writes, or too many", hint);
    }
    if writing.writes.iter().find(bad_key).is_some() {
        let hint = "a key has 1 to 512 bytes and no control characters";
        return refused(StatusCode::BAD_REQUEST, "bad_key", "a key of the table is invalid", hint);
    }
    let within = writing.timeout_ms.map_or(Duration::from_secs(10), Duration::from_millis).min(MAX_WAIT);
    let done = if writing.forwarded {
        once(&watch.actor, writing.writes, within).await
    } else {
        put(&watch.actor, &watch.config, writing.writes, within).await
    };
    match done {
        Ok(at) => {
            if writing.visible {
                until_shown(&watch, at.index).await;
            }
            Json(json!({ "epoch": at.epoch, "index": at.index })).into_response()
        }
        Err(WriteError::Refused(why)) => refused(StatusCode::SERVICE_UNAVAILABLE, "read_only", &why, hint_of(&why)),
        Err(WriteError::Elsewhere(status, body)) => (status, Json(body)).into_response(),
        Err(WriteError::Unknown) => {
            let message = "the outcome of this write is unknown";
            refused(StatusCode::GATEWAY_TIMEOUT, "unknown", message, "read the table, or repeat the write")
        }
    }
}

/// Waits until every site that answers shows an entry, this one too. One that does not answer shows it when it is back.
async fn until_shown(watch: &AgentState, index: u64) {
    let path = format!("/v1/applied?index={index}");
    let others = watch.config.peers.values().map(|peer| client::get(peer, &path, SHOWN_TIMEOUT));
    tokio::join!(shows(&watch.actor, index), futures::future::join_all(others));
}

/// How long to wait for another site to show a write.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(2);

async fn shows(actor: &Actor, index: u64) {
    let until = Instant::now() + SHOWN_TIMEOUT;
    while actor.applied() < index && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn applied(State(watch): Shared, Query(query): Query<BTreeMap<String, u64>>) -> Response {
    shows(&watch.actor, query.get("index").copied().unwrap_or(0)).await;
    Json(json!({ "applied": watch.actor.applied() })).into_response()
}

/// Why a write was not acknowledged.
#[derive(Debug)]
pub(super) enum WriteError {
    Refused(Refused),
    /// The primary's site agent refused.
    Elsewhere(StatusCode, Value),
    /// It may have happened.
    Unknown,
}

/// Writes here or at the primary, and retries while leadership moves.
pub(super) async fn put(
    actor: &Actor,
    config: &AgentConfig,
    writes: Vec<Write>,
    within: Duration,
) -> Result<Position, WriteError> {
    /// Long enough to be no burden, short enough that a failover costs no time here.
    const RETRY_INTERVAL: Duration = Duration::from_millis(100);
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let tried = match once(actor, writes.clone(), left).await {
            Err(WriteError::Refused(Refused::NotPrimary { primary: Some(primary) })) => {
                elsewhere(config, &primary, &writes, left).await
            }
            tried => tried,
        };
        match tried {
            // Nothing was written, so a retry is safe.
            Err(WriteError::Refused(_) | WriteError::Elsewhere(StatusCode::SERVICE_UNAVAILABLE, _))
                if left > RETRY_INTERVAL =>
            {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            tried => return tried,
        }
    }
}

async fn once(actor: &Actor, writes: Vec<Write>, within: Duration) -> Result<Position, WriteError> {
    match tokio::time::timeout(within, actor.write(writes)).await {
        Ok(Ok(Outcome::Acknowledged(at))) => Ok(at),
        Ok(Ok(Outcome::Unknown)) | Ok(Err(Unanswered::Busy)) | Err(_) => Err(WriteError::Unknown),
        Ok(Err(Unanswered::Refused(why))) => Err(WriteError::Refused(why)),
        Ok(Err(error @ Unanswered::Silent(_))) => {
            let body = json!({ "error": { "code": "service_silent", "message": error.to_string() } });
            Err(WriteError::Elsewhere(StatusCode::SERVICE_UNAVAILABLE, body))
        }
    }
}

async fn elsewhere(
    config: &AgentConfig,
    primary: &Site,
    writes: &[Write],
    within: Duration,
) -> Result<Position, WriteError> {
    let away = || WriteError::Refused(Refused::NotPrimary { primary: Some(primary.clone()) });
    let Some(address) = config.peers.get(primary) else { return Err(away()) };
    let body = json!({ "writes": writes, "timeout_ms": within.as_millis() as u64, "forwarded": true });
    match client::post(address, "/v1/write", &body, within).await {
        Ok((StatusCode::OK, answer)) => serde_json::from_value::<Position>(answer).map_err(|_| WriteError::Unknown),
        Ok((status, answer)) => Err(WriteError::Elsewhere(status, answer)),
        // The connection failed, so nothing can have happened.
        Err(why) if why.starts_with("connect") => Err(away()),
        Err(_) => Err(WriteError::Unknown),
    }
}

async fn claim(State(watch): Shared) -> Response {
    if let Err(error) = watch.actor.claim().await {
        return changed_or(&watch, &error);
    }
    let time_limit = Duration::from_millis(2 * watch.config.grace_ms() + 2000);
    let own = watch.config.site.clone();
    let answer = until_primary(&watch, &own, time_limit).await;
    watch.actor.give_up_claim().await;
    answer
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Handover {
    to: Site,
}

/// `GET /v1/lead` for the supervisor of the database: the primary and its lease.
async fn lead(State(watch): Shared) -> Response {
    match database::lead(&watch.actor, &watch.beside).await {
        Ok(lead) => Json(lead).into_response(),
        Err(error) => unanswered(&error),
    }
}

/// With `?hold=true` there is no failback without a command. It is not in the body, where an agent of an older release
/// refuses what it does not know.
async fn handover(
    State(watch): Shared,
    Query(query): Query<BTreeMap<String, String>>,
    Json(handover): Json<Handover>,
) -> Response {
    let hold = query.get("hold").is_some_and(|hold| hold == "true");
    if let Some(postgres) = watch.config.postgres.clone() {
        let (of, to) = (watch.clone(), handover.to.clone());
        let given = async move { database::hand_over(&of.config, &postgres, &of.actor, &of.beside, &to, hold).await };
        // Completes even if the client disconnects.
        match tokio::spawn(given).await {
            Ok(Ok(())) => {}
            Ok(Err(HandoverError::Unanswered(error))) => return changed_or(&watch, &error),
            Ok(Err(HandoverError::Refused(message, hint))) => {
                return refused(StatusCode::CONFLICT, "refused", message, &hint);
            }
            Err(error) => return refused(StatusCode::INTERNAL_SERVER_ERROR, "failed", error, "try again in a moment"),
        }
    } else if let Err(error) = watch.actor.hand_over(handover.to.clone(), hold).await {
        return changed_or(&watch, &error);
    }
    let time_limit = Duration::from_millis(watch.config.grace_ms() + 2000);
    until_primary(&watch, &handover.to, time_limit).await
}

fn changed_or(watch: &AgentState, error: &Unanswered) -> Response {
    match error {
        Unanswered::Refused(why) => {
            let message = format!("{}: {why}", watch.config.site);
            refused(StatusCode::CONFLICT, "refused", message, hint_of(why))
        }
        Unanswered::Busy | Unanswered::Silent(_) => unanswered(error),
    }
}

/// Waits until a site is primary and answers with the status, or with the reason why it is not.
async fn until_primary(watch: &AgentState, wanted: &Site, time_limit: Duration) -> Response {
    let until = Instant::now() + time_limit;
    loop {
        let (overview, withdrawn) = match watch.actor.look().await {
            Ok(seen) => seen,
            Err(error) => return unanswered(&error),
        };
        if overview.primary.as_ref() == Some(wanted) {
            return Json(json!(Status::of(watch, overview, withdrawn))).into_response();
        }
        if Instant::now() >= until {
            let why = match (&overview.refusal, &overview.why_not) {
                (Some(why), _) => why.to_string(),
                (None, Some(why)) => why.to_string(),
                (None, None) => "the witness has not granted it".to_owned(),
            };
            let message = format!("{wanted} is not primary after {} s: {why}", time_limit.as_secs());
            return refused(
                StatusCode::CONFLICT,
                "not_granted",
                message,
                "nothing has changed; see `textnlp-deploy dr status`",
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn usage(State(watch): Shared, Json(shipment): Json<Shipment>) -> Response {
    if !watch.config.peers.contains_key(&shipment.site) {
        return refused(
            StatusCode::FORBIDDEN,
            "stranger",
            "that is not a site of this environment",
            "only sites of this environment may send usage",
        );
    }
    match watch.store.merge_usage(watch.config.site.as_str(), shipment.site.as_str(), &shipment.rows).await {
        Ok(()) => Json(json!({ "rows": shipment.rows.len(), "life": watch.life })).into_response(),
        Err(error) => refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "database",
            textnlp_net::error_chain(&error),
            "the site sends it again",
        ),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    request_ids: Vec<String>,
}

async fn usage_ids(State(watch): Shared, Json(ids): Json<Ids>) -> Response {
    if ids.request_ids.len() > MOST_WRITES {
        return refused(StatusCode::BAD_REQUEST, "too_much", "too many ids", "request at most 1000 at once");
    }
    match watch.store.known_usage(&ids.request_ids).await {
        Ok(known) => Json(json!({ "known": known })).into_response(),
        Err(error) => refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "database",
            textnlp_net::error_chain(&error),
            "try again in a moment",
        ),
    }
}

/// The offer of this site.
async fn copies(State(watch): Shared) -> Response {
    read(&watch, |config, copies| Ok(Json(json!(offer::offer(config, copies)?)).into_response()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    digest: String,
    file: String,
    from: u64,
    deflate: u8,
}

async fn copy_of_model(State(watch): Shared, Query(piece): Query<Piece>) -> Response {
    let Ok(digest) = piece.digest.parse() else { return nothing() };
    read(&watch, |config, copies| {
        let bytes = offer::piece(config, copies, &digest, &piece.file, piece.from)?;
        let packed = bytes.map(|bytes| if piece.deflate == 1 { offer::deflated(&bytes) } else { Ok(bytes) });
        Ok(packed.transpose()?.map_or_else(nothing, IntoResponse::into_response))
    })
}

async fn copy_of_configuration(State(watch): Shared, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let name = query.get("file").map(String::as_str).unwrap_or_default();
    read(&watch, |_, copies| Ok(offer::file(copies, name)?.map_or_else(nothing, IntoResponse::into_response)))
}

/// Reads from the disk, with a timeout.
fn read(watch: &AgentState, from: impl FnOnce(&AgentConfig, &CopiesConfig) -> std::io::Result<Response>) -> Response {
    let Some(copies) = &watch.config.copies else { return nothing() };
    match tokio::task::block_in_place(|| from(&watch.config, copies)) {
        Ok(response) => response,
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, "disk", error, "check this site's disk"),
    }
}

fn nothing() -> Response {
    refused(StatusCode::NOT_FOUND, "not_found", "this item does not exist", "`GET /v1/copies` lists the items")
}
