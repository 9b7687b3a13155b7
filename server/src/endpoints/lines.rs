//! The lines of a file of requests: checked one by one, and stored as they come.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::Value;
use sha2::{Digest, Sha256};
use textnlp_store::batches::{BatchFile, BatchRefusal, FilePurpose, MAX_FILES};
use textnlp_store::{StoreError, now_ms};
use tokio::task::JoinHandle;

use crate::app::App;
use crate::config::{Batch, ByteSize, PiiAction};
use crate::error::{ApiError, chain};
use crate::http::{Call, SMALL, parse_line};
use crate::pii::{Detector, Findings};

/// The longest line in bytes.
pub(super) const MAX_LINE: usize = 1 << 20;

/// Problems that are reported of one file.
const MAX_PROBLEMS: usize = 20;

/// The longest `custom_id` in bytes.
const MAX_CUSTOM_ID: usize = 512;

/// Lines are stored in parts of this many bytes: a change of the database delays other ones.
const PART: usize = 256 << 10;

/// How long an answer waits for the deletion of the lines of a file.
pub(super) const ERASE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a line may have.
const KEYS: [&str; 4] = ["custom_id", "method", "url", "body"];

/// What the requests of a batch are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchEndpoint {
    Completions,
    Chat,
    Embeddings,
    Generate,
}

pub(super) const ENDPOINTS: [(&str, BatchEndpoint); 4] = [
    ("/v1/completions", BatchEndpoint::Completions),
    ("/v1/chat/completions", BatchEndpoint::Chat),
    ("/v1/embeddings", BatchEndpoint::Embeddings),
    ("/v1/generate", BatchEndpoint::Generate),
];

impl BatchEndpoint {
    /// The one of a path.
    pub(crate) fn named(path: &str) -> Option<Self> {
        ENDPOINTS.iter().find(|(known, _)| *known == path).map(|(_, endpoint)| *endpoint)
    }

    /// Its path.
    pub(super) fn path(self) -> &'static str {
        ENDPOINTS.iter().find(|(_, endpoint)| *endpoint == self).map_or("", |(path, _)| path)
    }

    /// The scope that a key needs for it.
    pub(super) fn scope(self) -> &'static str {
        match self {
            Self::Embeddings => "embeddings",
            Self::Completions | Self::Chat | Self::Generate => "generate",
        }
    }
}

/// Checks the lines of one file.
#[derive(Default)]
struct LineChecker {
    /// That of the first request, which all others must have.
    endpoint: Option<BatchEndpoint>,
    /// Digests of the ids, because texts of all of them may be large.
    ids: HashSet<[u8; 16]>,
    problems: Vec<String>,
    /// Searches the requests for personal data.
    pii: Option<Arc<Detector>>,
    /// What it found in the last line.
    found: Findings,
}

impl LineChecker {
    /// The problems of a line, or its text.
    fn check(&mut self, line: &[u8]) -> Result<String, Vec<String>> {
        let text = std::str::from_utf8(line)
            .map_err(|error| vec![format!("is not UTF-8: byte {} is invalid", error.valid_up_to() + 1)])?;
        let value = parse_line(text).map_err(|problem| vec![problem])?;
        let Value::Object(mut map) = value else { return Err(vec!["is not a JSON object".to_owned()]) };
        let mut problems = Vec::new();
        match map.get("custom_id").and_then(Value::as_str) {
            None => problems.push("`custom_id` must be a text".to_owned()),
            Some(id) if !(1..=MAX_CUSTOM_ID).contains(&id.len()) => {
                problems.push(format!("`custom_id` must have 1 to {MAX_CUSTOM_ID} bytes"));
            }
            Some(id) => {
                let digest = Sha256::digest(id.as_bytes());
                let mut short = [0; 16];
                short.copy_from_slice(&digest[..16]);
                if !self.ids.insert(short) {
                    let shown: String = id.chars().take(64).collect();
                    problems.push(format!("`custom_id` is that of an earlier line: `{}`", shown.escape_debug()));
                }
            }
        }
        if map.get("method").and_then(Value::as_str) != Some("POST") {
            problems.push("`method` must be `POST`".to_owned());
        }
        match (map.get("url").and_then(Value::as_str).and_then(BatchEndpoint::named), self.endpoint) {
            (None, _) => {
                let known = ENDPOINTS.map(|(path, _)| path).join(", ");
                problems.push(format!("`url` must be one of {known}"));
            }
            (Some(endpoint), None) => self.endpoint = Some(endpoint),
            (Some(endpoint), Some(first)) if endpoint != first => {
                problems.push(format!("`url` must be `{}`, as in the lines before", first.path()));
            }
            (Some(_), Some(_)) => {}
        }
        match map.get("body") {
            Some(Value::Object(body)) => {
                if body.get("stream").is_some_and(|stream| !matches!(stream, Value::Null | Value::Bool(false))) {
                    problems.push("`body.stream` must be false: a batch stores whole answers".to_owned());
                }
            }
            _ => problems.push("`body` must be an object".to_owned()),
        }
        for key in map.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let shown: String = key.chars().take(64).collect();
            problems.push(format!("`{}` is not a known field", shown.escape_debug()));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let request = (&self.pii, self.endpoint, map.get_mut("body"));
        let (Some(pii), Some(endpoint), Some(Value::Object(body))) = request else { return Ok(text.to_owned()) };
        self.found = pii.search(endpoint.path(), body);
        match pii.problem(&self.found, "body.") {
            Some(problem) => Err(vec![problem.message]),
            None if self.found.has_values() && pii.action() == PiiAction::Mask => Ok(Value::Object(map).to_string()),
            None => Ok(text.to_owned()),
        }
    }
}

/// Stores the lines of one file of requests. Dropped before [`Self::keep`], as when the client leaves, it deletes the file.
pub(super) struct LineWriter<'c> {
    call: &'c Call,
    tenant: &'c str,
    limits: &'c Batch,
    file: BatchFile,
    checker: LineChecker,
    /// The last line, counted from 1.
    line: u64,
    /// Lines that are not stored yet, and their bytes.
    part: Vec<String>,
    part_bytes: usize,
    /// The number of the first one.
    first: i64,
    /// Whether the file stays, or its deletion has begun.
    is_settled: bool,
}

impl<'c> LineWriter<'c> {
    /// Begins a file.
    pub(super) async fn begin(call: &'c Call, tenant: &'c str, limits: &'c Batch) -> Result<Self, ApiError> {
        let file = BatchFile {
            id: format!("file-{}", uuid::Uuid::now_v7().simple()),
            purpose: FilePurpose::Input,
            filename: String::new(),
            endpoint: String::new(),
            bytes: 0,
            lines: 0,
            created_at_ms: now_ms(),
        };
        let store = call.app.store.tenant(tenant);
        let begun = textnlp_store::change(StoreError::passes, || store.begin_file(&file, limits.max_stored.0));
        begun.await?.map_err(|refusal| refused(refusal, limits))?;
        Ok(Self {
            call,
            tenant,
            limits,
            file,
            checker: LineChecker { pii: call.app.pii.clone(), ..LineChecker::default() },
            line: 0,
            part: Vec::new(),
            part_bytes: 0,
            first: 0,
            is_settled: false,
        })
    }

    /// The id of the file.
    pub(super) fn id(&self) -> &str {
        &self.file.id
    }

    /// Takes the next line. An error ends the file, whose rest is not read.
    pub(super) async fn push(&mut self, line: &[u8]) -> Result<(), ApiError> {
        self.line += 1;
        self.file.bytes += line.len() as u64 + 1;
        if self.file.bytes > self.limits.max_file_size.0 {
            return Err(too_large(self.limits));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        if self.file.lines >= self.limits.max_requests {
            let problem =
                format!("is request {} of a file: it may have {}", self.file.lines + 1, self.limits.max_requests);
            self.note([problem]);
            return Err(self.problems());
        }
        self.file.lines += 1;
        let checked = self.check(line).await?;
        self.call.app.count_pii(&std::mem::take(&mut self.checker.found));
        match checked {
            Ok(text) if self.checker.problems.is_empty() => {
                self.part_bytes += text.len();
                self.part.push(text);
            }
            // Nothing of this file will be stored.
            Ok(_) => {}
            Err(problems) => self.note(problems),
        }
        if self.checker.problems.len() >= MAX_PROBLEMS {
            return Err(self.problems());
        }
        if self.part_bytes >= PART { self.flush().await } else { Ok(()) }
    }

    /// The values of a long line may take a multiple of its bytes, and time.
    async fn check(&mut self, line: &[u8]) -> Result<Result<String, Vec<String>>, ApiError> {
        if line.len() <= SMALL {
            return Ok(self.checker.check(line));
        }
        let (mut checker, line) = (std::mem::take(&mut self.checker), line.to_vec());
        let work = move || {
            let checked = checker.check(&line);
            (checker, checked)
        };
        let (checker, checked) = self.call.app.parsers.run(&self.call.record, work).await?;
        self.checker = checker;
        Ok(checked)
    }

    /// The error for a line that is too long to be taken.
    pub(super) fn too_long(&mut self) -> ApiError {
        self.line += 1;
        self.note([format!("is longer than {MAX_LINE} bytes")]);
        self.problems()
    }

    /// Completes the file, which is visible from then on.
    pub(super) async fn complete(&mut self, filename: &str) -> Result<BatchFile, ApiError> {
        if self.file.lines == 0 {
            return Err(
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_file", "the file has no requests").param("file")
            );
        }
        if !self.checker.problems.is_empty() {
            return Err(self.problems());
        }
        self.flush().await?;
        let endpoint = self.checker.endpoint.map_or("", BatchEndpoint::path);
        let (store, limits) = (self.call.app.store.tenant(self.tenant), self.limits);
        let id = self.file.id.clone();
        let completed = textnlp_store::change(StoreError::may_be_repeated, || {
            store.complete_file(&id, endpoint, filename, limits.max_stored.0)
        });
        completed.await?.map_err(|refusal| refused(refusal, limits))?;
        let file = textnlp_store::read(|| store.file(&id)).await?;
        file.ok_or_else(|| refused(BatchRefusal::NoFile, limits))
    }

    /// Keeps the file.
    pub(super) fn keep(mut self) {
        self.is_settled = true;
    }

    /// Deletes what is stored of the file.
    pub(super) async fn abandon(mut self) {
        if let Some(deletion) = self.delete() {
            let _ = tokio::time::timeout(ERASE_TIMEOUT, deletion).await;
        }
    }

    /// Deletes the file in a task, which goes on when the client leaves.
    fn delete(&mut self) -> Option<JoinHandle<()>> {
        if std::mem::replace(&mut self.is_settled, true) {
            return None;
        }
        let (app, tenant, id) = (self.call.app.clone(), self.tenant.to_owned(), self.file.id.clone());
        Some(self.call.app.tasks.spawn(async move {
            if let Err(error) = delete(&app, &tenant, &id).await {
                // The retention deletes it.
                tracing::warn!(file = %id, error = %chain(&error), "an upload was not deleted");
            }
        }))
    }

    fn note(&mut self, problems: impl IntoIterator<Item = String>) {
        let line = self.line;
        self.checker.problems.extend(problems.into_iter().map(|problem| format!("line {line}: {problem}")));
    }

    async fn flush(&mut self) -> Result<(), ApiError> {
        if self.part.is_empty() {
            return Ok(());
        }
        let (store, part, first) = (self.call.app.store.tenant(self.tenant), &self.part, self.first);
        let id = &self.file.id;
        let added = textnlp_store::change(StoreError::passes, || store.add_lines(id, first, part)).await?;
        added.map_err(|refusal| refused(refusal, self.limits))?;
        self.first += self.part.len() as i64;
        self.part.clear();
        self.part_bytes = 0;
        Ok(())
    }

    /// One error for all problems.
    fn problems(&self) -> ApiError {
        let problems = &self.checker.problems;
        let shown = problems.iter().take(MAX_PROBLEMS).cloned().collect::<Vec<_>>().join("; ");
        let count = match problems.len() {
            1 => "1 problem".to_owned(),
            more if more >= MAX_PROBLEMS => format!("at least {more} problems"),
            more => format!("{more} problems"),
        };
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_file", format!("the file has {count}: {shown}"))
            .param("file")
            .hint("nothing of it is stored: correct these lines and send it again")
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        self.delete();
    }
}

/// Deletes a file of requests, unless a batch was created of it.
async fn delete(app: &App, tenant: &str, id: &str) -> Result<(), StoreError> {
    let store = app.store.tenant(tenant);
    textnlp_store::change(StoreError::may_be_repeated, || store.abandon_file(id)).await?;
    app.store.erase(id, || app.is_stopping()).await.map(drop)
}

/// The error for a file that is larger than this server takes.
pub(super) fn too_large(limits: &Batch) -> ApiError {
    let message = format!("the file is larger than {}, the limit of this server", limits.max_file_size);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
        .hint("send its requests in several files")
}

/// The error for a file or a batch that was not stored.
pub(super) fn refused(refusal: BatchRefusal, limits: &Batch) -> ApiError {
    match refusal {
        BatchRefusal::Full(stored) => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "file_storage_full",
            format!("the files of this tenant have {}; the limit is {}", ByteSize(stored), limits.max_stored),
        )
        .hint("DELETE /v1/files/{id} deletes files"),
        BatchRefusal::Files(files) => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "file_storage_full",
            format!("this tenant has {files} files; the limit is {MAX_FILES}"),
        )
        .hint("DELETE /v1/files/{id} deletes files"),
        BatchRefusal::Pending(pending) => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_batches",
            format!("this tenant has {pending} unfinished batches; the limit is {}", limits.max_pending),
        )
        .hint("wait until one has ended, or cancel one")
        .retry_after(Duration::from_secs(60)),
        BatchRefusal::NoFile => {
            ApiError::new(StatusCode::NOT_FOUND, "file_not_found", "there is no such file of requests")
                .param("input_file_id")
                .hint("GET /v1/files lists the files; their purpose must be `batch`")
        }
        BatchRefusal::Endpoint => ApiError::invalid("`endpoint` is not the `url` of the requests in the file")
            .param("endpoint")
            .hint("all requests of a batch are for one path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&[u8]]) -> Vec<String> {
        let mut checker = LineChecker::default();
        lines.iter().flat_map(|line| checker.check(line).err().unwrap_or_default()).collect()
    }

    const GOOD: &[u8] = br#"{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":"x"}}"#;

    #[test]
    fn every_problem_of_a_line_is_found() {
        assert_eq!(check(&[GOOD]), Vec::<String>::new());
        let cases: [(&[u8], &[&str]); 6] = [
            (b"\xff", &["is not UTF-8: byte 1 is invalid"]),
            (b"[]", &["is not a JSON object"]),
            (b"{", &["is not valid JSON at column 1"]),
            (
                br#"{"custom_id":1,"method":"GET","url":"/v1/models","body":[],"extra":1}"#,
                &["`custom_id`", "`method`", "`url` must be one of", "`body`", "`extra` is not a known field"],
            ),
            (
                br#"{"custom_id":"b","method":"POST","url":"/v1/completions","body":{"stream":true}}"#,
                &["`body.stream` must be false"],
            ),
            (br#"{"custom_id":"b","custom_id":"c"}"#, &["has `custom_id` twice"]),
        ];
        for (line, problems) in cases {
            let found = check(&[line]);
            assert_eq!(found.len(), problems.len(), "{found:?}");
            for (found, expected) in found.iter().zip(problems) {
                assert!(found.starts_with(expected), "{found}");
            }
        }
    }

    #[test]
    fn ids_are_unique_and_all_requests_have_one_path() {
        let other = br#"{"custom_id":"b","method":"POST","url":"/v1/embeddings","body":{}}"#;
        assert_eq!(check(&[GOOD, GOOD]), ["`custom_id` is that of an earlier line: `a`"]);
        assert_eq!(check(&[GOOD, other]), ["`url` must be `/v1/completions`, as in the lines before"]);
    }
}
