//! `/v1/files`: files of requests and of results of batches, as OpenAI has them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use textnlp_inference::engine::Failure;
use textnlp_store::batches::{BatchFile, FileDeletion, FilePurpose};
use textnlp_store::{Action, Actor, AuditEvent, DAY_MS, StoreError, is_plain};

use super::batches::{enabled, page, path_id};
use super::lines::{ERASE_TIMEOUT, LineWriter, MAX_LINE, too_large};
use crate::app::App;
use crate::auth::Caller;
use crate::config::{Batch, ByteSize};
use crate::error::{ApiError, chain};
use crate::http::{self, Call, HeldMemory};

/// Memory that an upload holds: a line, what arrives with it, and the lines that are not stored yet.
pub(crate) const UPLOAD_MEMORY: usize = 4 * MAX_LINE;

/// Bytes a second that an upload has at least: it holds memory.
const MIN_PACE: u32 = 64 << 10;

/// What a form has besides the file.
const FORM_OVERHEAD: u64 = 64 << 10;

/// The longest boundary of a form (RFC 2046).
const MAX_BOUNDARY: usize = 70;

/// Bytes that one page of a file's content has, about.
const CONTENT_PAGE: u32 = 256 << 10;

/// Copies of a page while it is read: those of the driver, of its lines and of the text.
const PAGE_COPIES: usize = 3;

/// How often a download waits for memory, which its client may hold by reading slowly.
const MEMORY_TRIES: u32 = 30;

/// Default and largest number of files in a list.
const LIST: (i64, i64) = (100, 1000);

pub(super) async fn upload(mut call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("generate").await?;
    let body = call.take_body();
    let app = call.app.clone();
    let limits = enabled(&app)?;
    let boundary = boundary(&call.headers)?;
    let most = limits.max_file_size.0 + FORM_OVERHEAD;
    let announced = call.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut reader = LineReader {
        body,
        buffer: BytesMut::new(),
        searched: 0,
        left: most,
        pause: app.config.api.body_timeout,
        credit: app.config.api.body_timeout,
        has_ended: false,
    };
    let stored = async {
        if announced.is_some_and(|announced| announced > most) {
            return Err(too_large(limits));
        }
        let memory = app.files.hold(&caller.tenant, &caller.user, UPLOAD_MEMORY).await;
        let _memory = memory.map_err(|_| Failure::Busy { retry_after_ms: 1000 })?;
        let mut writer = LineWriter::begin(&call, &caller.tenant, limits).await?;
        let stored = match read_form(&mut reader, &boundary, &mut writer, limits).await {
            Ok(filename) => writer.complete(&filename).await,
            Err(error) => Err(error),
        };
        if stored.is_ok() {
            writer.keep();
        } else {
            writer.abandon().await;
        }
        stored
    };
    let stored = stored.await;
    match stored {
        Ok(file) => Ok(Json(shown(&file, limits))),
        Err(error) => {
            http::discard(reader.body).await;
            Err(error)
        }
    }
}

pub(super) async fn list(call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("generate").await?;
    let limits = enabled(&call.app)?;
    let query = call.query()?;
    let purpose = query.text("purpose").and_then(|name| {
        let purpose = FilePurpose::named(name);
        if purpose.is_none() {
            query.wrong("purpose", "must be `batch` or `batch_output`", Some("files are for batches only"));
        }
        purpose
    });
    query.only("order", &[json!("desc")], "lists have the newest first");
    let (after, limit) = page(&query, "file-", LIST)?;
    let store = call.app.store.tenant(&caller.tenant);
    let found = textnlp_store::read(|| store.files(&after, purpose, limit + 1)).await?;
    Ok(Json(super::batches::listed(&found, limit, |file| shown(file, limits))))
}

pub(super) async fn one(id: Result<Path<String>, PathRejection>, call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("generate").await?;
    let limits = enabled(&call.app)?;
    Ok(Json(shown(&find(&call, &caller.tenant, &path_id(id, missing)?).await?, limits)))
}

/// The lines of a file, read as the client takes them.
pub(super) async fn content(id: Result<Path<String>, PathRejection>, call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    enabled(&call.app)?;
    let id = find(&call, &caller.tenant, &path_id(id, missing)?).await?.id;
    let (app, caller) = (call.app.clone(), Arc::new(caller));
    let pages = futures::stream::try_unfold(0_i64, move |from| {
        let (app, caller, id) = (app.clone(), caller.clone(), id.clone());
        async move { next_page(&app, &caller, &id, from).await.map_err(|error| std::io::Error::other(error.message)) }
    });
    let mut response = Response::new(Body::from_stream(pages));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    Ok(response)
}

/// Lines of a file, with the memory that they take until they are sent.
struct Page {
    text: String,
    _memory: HeldMemory,
}

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// The page of a file from a line on, and the number after its last line.
async fn next_page(app: &App, caller: &Caller, id: &str, from: i64) -> Result<Option<(Bytes, i64)>, ApiError> {
    let store = app.store.tenant(&caller.tenant);
    let page = textnlp_store::read(|| store.page(id, from, CONTENT_PAGE)).await?;
    let Some((last, bytes)) = page else { return Ok(None) };
    let wanted = (bytes as usize).saturating_mul(PAGE_COPIES).min(app.files.key_bytes());
    let mut tries = 1;
    let memory = loop {
        match app.files.hold(&caller.tenant, &caller.user, wanted).await {
            Ok(memory) => break memory,
            Err(_) if tries < MEMORY_TRIES => tries += 1,
            Err(whose) => return Err(http::exhausted(whose)),
        }
    };
    let lines = textnlp_store::read(|| store.lines(id, from, last)).await?;
    if lines.is_empty() {
        // It was deleted in between.
        return Err(missing());
    }
    let mut text = String::with_capacity(bytes as usize);
    for (_, line) in lines {
        text += &line;
        text.push('\n');
    }
    Ok(Some((Bytes::from_owner(Page { text, _memory: memory }), last + 1)))
}

pub(super) async fn remove(id: Result<Path<String>, PathRejection>, call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("generate").await?;
    enabled(&call.app)?;
    let id = path_id(id, missing)?;
    let event = AuditEvent::new(&Actor::Key(caller.user.clone()), Action::FileDelete)
        .object(&id)
        .tenant(&caller.tenant)
        .origin(call.origin());
    let store = call.app.store.tenant(&caller.tenant);
    match textnlp_store::change(StoreError::passes, || store.delete_file(&id, &event)).await? {
        FileDeletion::Deleted => {
            // A large file takes longer than its client waits.
            let (app, file) = (call.app.clone(), id.clone());
            let erasing = call.app.tasks.spawn(async move {
                if let Err(error) = app.store.erase(&file, || app.is_stopping()).await {
                    // The retention goes on.
                    tracing::warn!(%file, error = %chain(&error), "lines of a deleted file were not deleted");
                }
            });
            let _ = tokio::time::timeout(ERASE_TIMEOUT, erasing).await;
            Ok(Json(json!({ "id": id, "object": "file", "deleted": true })))
        }
        FileDeletion::Missing => Err(missing()),
        FileDeletion::InUse(batch) => {
            Err(ApiError::new(StatusCode::CONFLICT, "file_in_use", format!("batch `{batch}` still reads this file"))
                .hint("cancel the batch, or wait until it has ended"))
        }
    }
}

async fn find(call: &Call, tenant: &str, id: &str) -> Result<BatchFile, ApiError> {
    let store = call.app.store.tenant(tenant);
    textnlp_store::read(|| store.file(id)).await?.ok_or_else(missing)
}

fn missing() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "file_not_found", "there is no such file")
        .param("id")
        .hint("GET /v1/files lists the files")
}

fn shown(file: &BatchFile, limits: &Batch) -> Value {
    let days = i64::from(limits.retention_days);
    let expires_at = (days > 0).then(|| (file.created_at_ms + days * DAY_MS) / 1000);
    json!({
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at_ms / 1000,
        "expires_at": expires_at,
        "filename": file.filename,
        "purpose": file.purpose.name(),
        "status": "processed",
    })
}

/// The boundary of a form.
fn boundary(headers: &HeaderMap) -> Result<String, ApiError> {
    let wrong = || {
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "the body must be a form with a file",
        )
        .hint("Content-Type: multipart/form-data; boundary=…")
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).ok_or_else(wrong)?;
    let mut parts = kind.split(';').map(str::trim);
    if !parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/form-data")) {
        return Err(wrong());
    }
    let boundary = parts.find_map(|part| part.strip_prefix("boundary=")).map(|text| text.trim_matches('"'));
    let boundary = boundary.filter(|text| (1..=MAX_BOUNDARY).contains(&text.len())).ok_or_else(wrong)?;
    Ok(boundary.to_owned())
}

/// Where in a form a line is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Before the first part.
    Start,
    Headers,
    Purpose,
    File,
}

/// Reads a form, and passes the lines of its file on; the answer is the file's name. A line of a file of requests is an object, so that no
/// line of it is the boundary.
async fn read_form(
    reader: &mut LineReader,
    boundary: &str,
    writer: &mut LineWriter<'_>,
    limits: &Batch,
) -> Result<String, ApiError> {
    let (begin, end) = (format!("--{boundary}"), format!("--{boundary}--"));
    let (mut place, mut name, mut filename) = (Place::Start, None, None);
    let (mut purpose, mut has_file) = (None, false);
    loop {
        let line = match reader.next().await? {
            Next::Line(line) => line,
            Next::TooLong if place == Place::File => return Err(writer.too_long()),
            Next::TooLong => return Err(ApiError::invalid("a line of the form is too long")),
            Next::TooLarge => return Err(too_large(limits)),
            Next::End => return Err(ApiError::invalid("the form has no end").hint("end it with `--BOUNDARY--`")),
        };
        let ending = line.trim_ascii_end();
        if ending == end.as_bytes() {
            break;
        }
        if ending == begin.as_bytes() {
            (place, name) = (Place::Headers, None);
            continue;
        }
        match place {
            Place::Start => {}
            Place::Headers if !ending.is_empty() => {
                let text = String::from_utf8_lossy(&line);
                let Some((header, value)) = text.split_once(':') else { continue };
                if header.eq_ignore_ascii_case("content-disposition") {
                    name = parameter(value, "name=");
                    filename = parameter(value, "filename=").or(filename);
                }
            }
            Place::Headers => {
                place = match name.as_deref() {
                    Some("purpose") => Place::Purpose,
                    Some("file") if !has_file => {
                        has_file = true;
                        Place::File
                    }
                    Some("file") => return Err(ApiError::invalid("the form has two files").param("file")),
                    other => {
                        let shown: String = other.unwrap_or_default().chars().take(64).collect();
                        let message = format!("`{}` is not a known field", shown.escape_debug());
                        return Err(ApiError::invalid(message).hint("the fields are `purpose` and `file`"));
                    }
                };
            }
            Place::Purpose => purpose = purpose.or_else(|| Some(String::from_utf8_lossy(ending).into_owned())),
            Place::File => writer.push(ending).await?,
        }
    }
    if purpose.as_deref() != Some("batch") {
        return Err(ApiError::invalid("`purpose` must be `batch`")
            .param("purpose")
            .hint("this server has no other files"));
    }
    if !has_file {
        return Err(ApiError::invalid("`file` is missing").param("file"));
    }
    Ok(filename.filter(|name| is_plain(name)).unwrap_or_else(|| "requests.jsonl".to_owned()))
}

/// A parameter of a header.
fn parameter(value: &str, name: &str) -> Option<String> {
    value.split(';').find_map(|part| part.trim().strip_prefix(name)).map(|text| text.trim_matches('"').to_owned())
}

/// Reads a body line by line, in bounded memory.
struct LineReader {
    body: Body,
    buffer: BytesMut,
    /// Bytes of the buffer that have no end of a line.
    searched: usize,
    /// Bytes that may still come.
    left: u64,
    /// The longest time without a byte.
    pause: Duration,
    /// How long may still be waited in all; bytes that arrive add to it.
    credit: Duration,
    has_ended: bool,
}

enum Next {
    Line(Bytes),
    TooLong,
    TooLarge,
    End,
}

impl LineReader {
    async fn next(&mut self) -> Result<Next, ApiError> {
        loop {
            let found =
                self.buffer[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
            let length = found.unwrap_or(self.buffer.len());
            if length > MAX_LINE {
                return Ok(Next::TooLong);
            }
            if let Some(end) = found {
                let mut line = self.buffer.split_to(end + 1);
                line.truncate(end);
                self.searched = 0;
                return Ok(Next::Line(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.has_ended {
                let rest = self.buffer.split();
                self.searched = 0;
                return Ok(if rest.is_empty() { Next::End } else { Next::Line(rest.freeze()) });
            }
            let began = Instant::now();
            let frame = tokio::time::timeout(self.pause.min(self.credit), self.body.frame()).await.map_err(|_| {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body took too long to arrive")
            })?;
            self.credit = self.credit.saturating_sub(began.elapsed());
            let Some(frame) = frame else {
                self.has_ended = true;
                continue;
            };
            let frame = frame.map_err(|_| ApiError::invalid("the body was incomplete"))?;
            let Ok(data) = frame.into_data() else { continue };
            let Some(left) = self.left.checked_sub(data.len() as u64) else { return Ok(Next::TooLarge) };
            self.left = left;
            self.credit += Duration::from_secs_f64(data.len() as f64 / f64::from(MIN_PACE));
            self.buffer.extend_from_slice(&data);
        }
    }
}

/// The largest body of `POST /v1/files`.
pub(super) fn upload_limit(limits: Option<&Batch>) -> ByteSize {
    limits.map_or(ByteSize(0), |limits| limits.max_file_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(text: &'static [u8], left: u64) -> LineReader {
        LineReader {
            body: Body::from(text),
            buffer: BytesMut::new(),
            searched: 0,
            left,
            pause: Duration::from_secs(10),
            credit: Duration::from_secs(10),
            has_ended: false,
        }
    }

    #[tokio::test]
    async fn lines_are_read_within_their_bounds() {
        let mut whole = reader(b"a\r\n\nlast", 100);
        let mut lines = Vec::new();
        while let Next::Line(line) = whole.next().await.unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, [&b"a\r"[..], b"", b"last"]);
        assert!(matches!(reader(b"a\nb", 2).next().await.unwrap(), Next::TooLarge));
        let long: &'static [u8] = vec![b'x'; MAX_LINE + 1].leak();
        assert!(matches!(reader(long, u64::MAX).next().await.unwrap(), Next::TooLong));
    }

    #[tokio::test]
    async fn upload_that_is_slower_than_the_least_pace_ends() {
        let drops = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let pause = Duration::from_millis(200);
        let mut slow = LineReader { body: Body::from_stream(drops), pause, credit: pause, ..reader(b"", 100_000) };
        let ended = tokio::time::timeout(Duration::from_secs(30), slow.next()).await;
        assert_eq!(ended.expect("it ends").err().unwrap().code, "request_timeout");
    }

    #[test]
    fn boundary_is_that_of_a_form() {
        let of = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            boundary(&headers).ok()
        };
        assert_eq!(of("multipart/form-data; boundary=abc").as_deref(), Some("abc"));
        assert_eq!(of("Multipart/Form-Data; charset=utf-8; boundary=\"a b\"").as_deref(), Some("a b"));
        for wrong in ["application/json", "multipart/form-data", "multipart/form-data; boundary="] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
