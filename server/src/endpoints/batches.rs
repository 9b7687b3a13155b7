//! `/v1/batches`, as OpenAI has it: requests that are answered later, from a file or from the body.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use textnlp_store::batches::{Batch, BatchRefusal, BatchState, EndReason};
use textnlp_store::{Action, Actor, AuditEvent, StoreError, now_ms};

use super::generate::{self, Form};
use super::lines::{BatchEndpoint, ENDPOINTS, LineWriter, refused};
use super::{chat, completions, embeddings};
use crate::app::App;
use crate::auth::{Caller, oidc};
use crate::config;
use crate::error::ApiError;
use crate::http::{Call, Fields};
use crate::record::{BATCH, Record};

/// Time until the rest of a batch expires: the only window of OpenAI's API.
const WINDOW: (&str, i64) = ("24h", 24 * 3_600_000);

/// The largest answer that is stored.
const MAX_ANSWER: usize = 16 << 20;

/// The most notes of a batch, and the longest name and text of one in bytes: OpenAI's limits.
const METADATA: (usize, usize, usize) = (16, 64, 512);

/// Default and largest number of batches in a list.
const LIST: (i64, i64) = (20, 100);

/// The answer to a request of a batch, as its client would get it. `id` is the id of the request in logs.
pub(crate) async fn run(
    app: &Arc<App>,
    endpoint: BatchEndpoint,
    caller: &Caller,
    id: &str,
    body: Value,
) -> Result<Value, ApiError> {
    // No HTTP request: it has neither a parent nor a scheme.
    let trace = app.traces.as_ref().and_then(|traces| traces.begin(&HeaderMap::new(), ""));
    let record = Record::begin(app.clone(), id.to_owned(), BATCH, endpoint.path().to_owned(), None, trace);
    record.caller(caller);
    let call = Call::internal(app.clone(), record.clone());
    let late = || ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the request exceeded its time limit");
    let answered = tokio::time::timeout(app.config.api.timeout, answer(call, endpoint, caller, body)).await;
    let answered = answered.unwrap_or_else(|_| Err(late()));
    record.note(|known| {
        let error = answered.as_ref().err();
        known.status = Some(error.map_or(200, |error| error.status.as_u16()));
        known.error = error.map(|error| error.code);
        known.finished = true;
        // One that runs again without tokens leaves no row in the usage.
        known.admitted = !error.is_some_and(is_transient);
    });
    answered
}

/// Whether the request may succeed later.
pub(crate) fn is_transient(error: &ApiError) -> bool {
    matches!(
        error.status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    ) || REFUSED_FOR_NOW.contains(&error.code)
}

/// The codes of errors that end when the operator or the client has made room.
const REFUSED_FOR_NOW: [&str; 2] = ["token_limit_exceeded", "file_storage_full"];

async fn answer(call: Call, endpoint: BatchEndpoint, caller: &Caller, body: Value) -> Result<Value, ApiError> {
    caller.allow(endpoint.scope())?;
    let limits = enabled(&call.app)?;
    let store = call.app.store.tenant(&caller.tenant);
    let stored = textnlp_store::read(|| store.stored_bytes()).await?;
    if stored >= limits.max_stored.0 {
        return Err(refused(BatchRefusal::Full(stored), limits));
    }
    let fields = Fields::new(body)?;
    let response = match endpoint {
        BatchEndpoint::Completions => completions::answer(&call, caller, fields).await?,
        BatchEndpoint::Chat => chat::answer(&call, caller, fields).await?,
        BatchEndpoint::Embeddings => embeddings::answer(&call, caller, fields).await?,
        BatchEndpoint::Generate => {
            let wanted = generate::read(&fields, &call.app, Form::Whole)?;
            let memory = fields.into_memory();
            generate::answer(call, caller.clone(), wanted, memory).await?
        }
    };
    let bytes = axum::body::to_bytes(response.into_body(), MAX_ANSWER).await.map_err(|_| {
        let message = format!("the answer is larger than {}", config::ByteSize(MAX_ANSWER as u64));
        ApiError::new(StatusCode::BAD_REQUEST, "answer_too_large", message).hint("ask for less in one request")
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        tracing::error!(%error, "an answer is not JSON");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal server error")
    })
}

pub(super) async fn create(mut call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("generate").await?;
    let app = call.app.clone();
    let limits = enabled(&app)?;
    let fields = call.fields().await?;
    let path = fields.needed("endpoint", fields.text("endpoint")).unwrap_or_default();
    let endpoint = BatchEndpoint::named(path);
    if endpoint.is_none() && !path.is_empty() {
        let known = ENDPOINTS.map(|(path, _)| path).join(", ");
        fields.wrong("endpoint", "is not a path of batches", Some(format!("one of {known}").as_str()));
    }
    fields.only("completion_window", &[json!(WINDOW.0)], "the window of every batch is 24h");
    let metadata = metadata(&fields);
    let input = fields.text("input_file_id").map(str::to_owned);
    let inline = fields.get("requests");
    match (&input, inline) {
        (Some(_), Some(_)) => fields.wrong("requests", "cannot be combined with `input_file_id`", None),
        (None, None) if fields.get("input_file_id").is_some() => {}
        (None, None) => fields.wrong("input_file_id", "is missing", Some("or send `requests`: a list of requests")),
        (None, Some(requests)) if !requests.is_array() => fields.wrong("requests", "must be a list", None),
        _ => {}
    }
    let requests = inline.and_then(Value::as_array).cloned();
    fields.finish()?;
    let _memory = fields.into_memory();
    let endpoint = endpoint.ok_or_else(|| ApiError::invalid("`endpoint` is missing").param("endpoint"))?;
    caller.allow(endpoint.scope())?;
    if caller.token.is_some() || oidc::is_user(&caller.user) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "api_key_required",
            "a batch needs an API key: it may run for 24 hours, longer than a token is valid",
        )
        .hint("send an API key instead of a token"));
    }
    let writer = match requests {
        Some(requests) => Some(store_requests(&call, &caller, limits, endpoint, requests).await?),
        None => None,
    };
    let input_file = writer.as_ref().map(|writer| writer.id().to_owned()).or(input).unwrap_or_default();
    if !is_id(&input_file) {
        return Err(refused(BatchRefusal::NoFile, limits));
    }
    let new_id = |prefix: &str| format!("{prefix}{}", uuid::Uuid::now_v7().simple());
    let now = now_ms();
    let batch = Batch {
        id: new_id("batch_"),
        tenant: caller.tenant.clone(),
        user: caller.user.clone(),
        endpoint: endpoint.path().to_owned(),
        input_file,
        output_file: new_id("file-"),
        error_file: new_id("file-"),
        state: BatchState::InProgress,
        reason: None,
        metadata,
        total: 0,
        completed: 0,
        failed: 0,
        created_at_ms: now,
        expires_at_ms: now + WINDOW.1,
        ending_at_ms: None,
        ended_at_ms: None,
    };
    let event = event(&call, &caller, Action::BatchCreate, &batch.id);
    let store = app.store.tenant(&caller.tenant);
    let (most, most_stored) = (limits.max_pending, limits.max_stored.0);
    let created =
        textnlp_store::change(StoreError::passes, || store.create_batch(&batch, most, most_stored, &event)).await;
    match writer {
        Some(writer) if matches!(created, Ok(Ok(_))) => writer.keep(),
        // The client has not seen the file.
        Some(writer) => writer.abandon().await,
        None => {}
    }
    let batch = created?.map_err(|refusal| refused(refusal, limits))?;
    Ok(Json(shown(&batch)))
}

/// Stores the requests of a body as a file of requests.
async fn store_requests<'c>(
    call: &'c Call,
    caller: &'c Caller,
    limits: &'c config::Batch,
    endpoint: BatchEndpoint,
    requests: Vec<Value>,
) -> Result<LineWriter<'c>, ApiError> {
    let mut writer = LineWriter::begin(call, &caller.tenant, limits).await?;
    let stored = async {
        for mut request in requests {
            if let Value::Object(fields) = &mut request {
                fields.entry("method").or_insert_with(|| json!("POST"));
                fields.entry("url").or_insert_with(|| json!(endpoint.path()));
            }
            writer.push(request.to_string().as_bytes()).await?;
        }
        writer.complete("requests.jsonl").await
    };
    let stored = stored.await;
    let Err(error) = stored else { return Ok(writer) };
    writer.abandon().await;
    // The problems are those of the list, not of a file.
    Err(if error.code == "invalid_file" { error.param("requests") } else { error })
}

pub(super) async fn list(call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("generate").await?;
    enabled(&call.app)?;
    let (after, limit) = page(&call.query()?, "batch_", LIST)?;
    let store = call.app.store.tenant(&caller.tenant);
    let found = textnlp_store::read(|| store.batches(&after, limit + 1)).await?;
    Ok(Json(listed(&found, limit, shown)))
}

pub(super) async fn one(id: Result<Path<String>, PathRejection>, call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("generate").await?;
    enabled(&call.app)?;
    Ok(Json(shown(&find(&call, &caller, &path_id(id, missing)?).await?)))
}

/// Cancels the rest. A batch that has ended stays as it is, and the answer shows it.
pub(super) async fn cancel(id: Result<Path<String>, PathRejection>, call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("generate").await?;
    enabled(&call.app)?;
    let id = path_id(id, missing)?;
    let event = event(&call, &caller, Action::BatchCancel, &id);
    let store = call.app.store.tenant(&caller.tenant);
    textnlp_store::change(StoreError::may_be_repeated, || store.cancel_batch(&id, &event)).await?;
    Ok(Json(shown(&find(&call, &caller, &id).await?)))
}

async fn find(call: &Call, caller: &Caller, id: &str) -> Result<Batch, ApiError> {
    let store = call.app.store.tenant(&caller.tenant);
    textnlp_store::read(|| store.batch(id)).await?.ok_or_else(missing)
}

fn missing() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "batch_not_found", "there is no such batch")
        .param("id")
        .hint("GET /v1/batches lists the batches")
}

fn event(call: &Call, caller: &Caller, action: Action, id: &str) -> AuditEvent {
    let actor = Actor::Key(caller.user.clone());
    AuditEvent::new(&actor, action).object(id).tenant(&caller.tenant).origin(call.origin())
}

/// The bounds of batches, where the operator turned them on.
pub(super) fn enabled(app: &App) -> Result<&config::Batch, ApiError> {
    app.config.batch.as_ref().ok_or_else(|| {
        ApiError::new(StatusCode::NOT_FOUND, "batches_disabled", "this server has no batches")
            .hint("operators: `server.batch.enabled: true` turns them on")
    })
}

/// The id in a path. `missing` is the error for a text that no id is.
pub(super) fn path_id(id: Result<Path<String>, PathRejection>, missing: fn() -> ApiError) -> Result<String, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::invalid("the path is not UTF-8").param("id"))?;
    if is_id(&id) { Ok(id) } else { Err(missing()) }
}

/// Whether a text may be the id of a batch or of a file. PostgreSQL has no texts with the character 0.
fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The page of a list that a query names: after which id, and how many. Ids order by their time: after a text of
/// another form, all or none would follow. The id itself may be deleted: clients delete what they page through.
pub(super) fn page(query: &Fields, prefix: &str, (usual, most): (i64, i64)) -> Result<(String, u32), ApiError> {
    let after = query.text("after").unwrap_or_default().to_owned();
    let is_hex = |id: &str| id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let is_of_list = after.strip_prefix(prefix).is_some_and(is_hex);
    if !after.is_empty() && !is_of_list {
        query.wrong(
            "after",
            format!("is not an id of this list, `{prefix}…`"),
            Some("send `last_id` of the page before"),
        );
    }
    let limit = query.integer("limit", 1..=most).unwrap_or(usual);
    query.finish()?;
    Ok((after, limit as u32))
}

/// A page of a list, of which one more was read to know whether there are more.
pub(super) fn listed<T>(found: &[T], limit: u32, shown: impl Fn(&T) -> Value) -> Value {
    let data: Vec<Value> = found.iter().take(limit as usize).map(shown).collect();
    let id = |one: Option<&Value>| one.map_or(Value::Null, |one| one["id"].clone());
    json!({
        "object": "list",
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": found.len() > data.len(),
        "data": data,
    })
}

/// The notes of a batch, as JSON.
fn metadata(fields: &Fields) -> String {
    let Some(value) = fields.get("metadata") else { return "{}".to_owned() };
    let (most, name_bytes, text_bytes) = METADATA;
    let is_plain = |map: &Map<String, Value>| {
        let is_note = |(name, text): (&String, &Value)| {
            name.len() <= name_bytes && text.as_str().is_some_and(|text| text.len() <= text_bytes)
        };
        map.len() <= most && map.iter().all(is_note)
    };
    if !value.as_object().is_some_and(is_plain) {
        let message = format!("must be an object of at most {most} texts with at most {text_bytes} bytes each");
        fields.wrong("metadata", message, Some(format!("names have at most {name_bytes} bytes").as_str()));
    }
    value.to_string()
}

/// Why the rest of a batch did not run.
pub(crate) fn reason_message(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Cancelled => "the batch was cancelled before this request ran",
        EndReason::Expired => "the completion window ended before this request ran",
        EndReason::KeyInvalid => "the API key that created the batch is revoked or expired",
    }
}

fn shown(batch: &Batch) -> Value {
    let at = |ms: i64| ms / 1000;
    let ended = |state: BatchState| batch.ended_at_ms.filter(|_| batch.state == state).map(at);
    let ending = |reason: EndReason| batch.ending_at_ms.filter(|_| batch.reason == Some(reason)).map(at);
    let finalizing = match batch.reason {
        Some(EndReason::Cancelled) => None,
        Some(EndReason::Expired | EndReason::KeyInvalid) => batch.ending_at_ms.map(at),
        None => batch.ended_at_ms.map(at),
    };
    let is_finished = batch.state.is_finished();
    let errors = batch.reason.filter(|reason| *reason == EndReason::KeyInvalid).map(|reason| {
        let error = json!({ "code": reason.code(), "message": reason_message(reason), "param": null, "line": null });
        json!({ "object": "list", "data": [error] })
    });
    json!({
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input_file,
        "completion_window": WINDOW.0,
        "status": batch.state.name(),
        "output_file_id": (is_finished && batch.completed > 0).then_some(&batch.output_file),
        "error_file_id": (is_finished && batch.failed > 0).then_some(&batch.error_file),
        "created_at": batch.created_at_ms / 1000,
        "in_progress_at": batch.created_at_ms / 1000,
        "expires_at": batch.expires_at_ms / 1000,
        "finalizing_at": finalizing,
        "completed_at": ended(BatchState::Completed),
        "failed_at": ended(BatchState::Failed),
        "expired_at": ended(BatchState::Expired),
        "cancelling_at": ending(EndReason::Cancelled),
        "cancelled_at": ended(BatchState::Cancelled),
        "request_counts": { "total": batch.total, "completed": batch.completed, "failed": batch.failed },
        "metadata": serde_json::from_str::<Value>(&batch.metadata).unwrap_or_default(),
    })
}

/// How long a request waits that may succeed later.
pub(crate) fn pause(error: &ApiError) -> Duration {
    match error.code {
        code if REFUSED_FOR_NOW.contains(&code) => Duration::from_secs(60),
        _ => error.retry_after.unwrap_or(Duration::from_secs(1)),
    }
}
