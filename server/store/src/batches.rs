//! Batches: files of requests and of their results, and the queue of requests without a result.
//!
//! A request runs at least once: a claimed row is due again when its lease ends. It has exactly one result: the result is stored in the
//! transaction that deletes the row, by the holder of the last claim.
//!
//! A line has a file as long as it exists: lines are added to files in the state `open` only, and the row of a file in the state `deleting`
//! goes after its last line.

use std::collections::HashSet;

use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};
use textnlp_net::error_chain;
use tokio_util::sync::CancellationToken;

use super::audit::AuditEvent;
use super::retention::PAUSE;
use super::scope::Job;
use super::{Store, StoreError, TenantStore, now_ms};

/// The most files of a tenant: each new one counts them.
pub const MAX_FILES: u64 = 50_000;

/// Requests that end without running, such as those of a cancelled batch, in one claim.
pub const ENDING_CLAIM: u32 = 200;

/// Bytes of the lines of a claim, about: a transaction reads them.
const CLAIM_BYTES: i64 = 4 << 20;

/// Lines of one page of a file.
const PAGE_LINES: i64 = 1000;

/// Lines that one transaction deletes, and their bytes, about: other writers wait for it.
const ERASED: (i64, i64) = (500, 32 << 20);

/// Rows that one statement of the retention reads or deletes.
const RETENTION_ROWS: i64 = 500;

/// An upload that is incomplete for this long was given up.
const ABANDONED_MS: i64 = 3_600_000;

/// Who wrote a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePurpose {
    /// A client: requests.
    Input,
    /// A batch: results, or errors.
    Output,
}

impl FilePurpose {
    /// Its name in OpenAI's API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "batch",
            Self::Output => "batch_output",
        }
    }

    /// The purpose of a name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Input, Self::Output].into_iter().find(|purpose| purpose.name() == name)
    }
}

/// A file of lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchFile {
    /// Its id.
    pub id: String,
    /// Who wrote it.
    pub purpose: FilePurpose,
    /// Its name.
    pub filename: String,
    /// The path that its requests are for.
    pub endpoint: String,
    /// Its length with the ends of its lines.
    pub bytes: u64,
    /// Its lines.
    pub lines: u64,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
}

/// The state of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is its name
pub enum BatchState {
    InProgress,
    Finalizing,
    Cancelling,
    Completed,
    Failed,
    Expired,
    Cancelled,
}

const STATES: [(&str, BatchState); 7] = [
    ("in_progress", BatchState::InProgress),
    ("finalizing", BatchState::Finalizing),
    ("cancelling", BatchState::Cancelling),
    ("completed", BatchState::Completed),
    ("failed", BatchState::Failed),
    ("expired", BatchState::Expired),
    ("cancelled", BatchState::Cancelled),
];

/// The states of batches that have requests without a result.
pub const UNFINISHED: [BatchState; 3] = [BatchState::InProgress, BatchState::Finalizing, BatchState::Cancelling];

impl BatchState {
    /// Its name in OpenAI's API.
    pub fn name(self) -> &'static str {
        STATES.iter().find(|(_, state)| *state == self).map_or("", |(name, _)| name)
    }

    /// Whether all requests have a result.
    pub fn is_finished(self) -> bool {
        !UNFINISHED.contains(&self)
    }

    fn named(name: &str) -> Result<Self, StoreError> {
        let state = STATES.iter().find(|(known, _)| *known == name).map(|(_, state)| *state);
        state.ok_or_else(|| StoreError::Schema(format!("table batches: `{name}` is not a state")))
    }
}

/// Why the rest of a batch does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// A client cancelled it.
    Cancelled,
    /// Its time is over.
    Expired,
    /// The key that created it is not valid any more.
    KeyInvalid,
}

impl EndReason {
    /// The code of the error of each request that did not run.
    pub fn code(self) -> &'static str {
        match self {
            Self::Cancelled => "batch_cancelled",
            Self::Expired => "batch_expired",
            Self::KeyInvalid => "batch_key_invalid",
        }
    }

    fn coded(code: &str) -> Option<Self> {
        [Self::Cancelled, Self::Expired, Self::KeyInvalid].into_iter().find(|reason| reason.code() == code)
    }
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its id.
    pub id: String,
    /// Whose work it is.
    pub tenant: String,
    /// Public id of the key that created it.
    pub user: String,
    /// The path that its requests are for.
    pub endpoint: String,
    /// The file of its requests.
    pub input_file: String,
    /// The file of the answers of status 200.
    pub output_file: String,
    /// The file of all other results.
    pub error_file: String,
    /// Its state.
    pub state: BatchState,
    /// Why requests ended without running.
    pub reason: Option<EndReason>,
    /// The client's notes, as JSON.
    pub metadata: String,
    /// Its requests.
    pub total: u64,
    /// Requests with an answer of status 200.
    pub completed: u64,
    /// Requests with another result.
    pub failed: u64,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// When the rest expires.
    pub expires_at_ms: i64,
    /// When its rest was cancelled, expired or failed.
    pub ending_at_ms: Option<i64>,
    /// When the last request had its result.
    pub ended_at_ms: Option<i64>,
}

/// Why nothing was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchRefusal {
    /// The files of the tenant have this many bytes.
    Full(u64),
    /// The tenant has this many files.
    Files(u64),
    /// The tenant has this many unfinished batches.
    Pending(u64),
    /// There is no such file of requests.
    NoFile,
    /// The requests of the file are for another path.
    Endpoint,
}

/// What became of the deletion of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileDeletion {
    /// It does not exist any more; [`Store::erase`] deletes its lines.
    Deleted,
    /// This unfinished batch reads it.
    InUse(String),
    /// There is none.
    Missing,
}

/// Requests of one batch that are this server's until their lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedBatch {
    /// Their batch.
    pub batch: Batch,
    /// The claim's id.
    pub claim: String,
    /// The requests, in the order of the file.
    pub requests: Vec<ClaimedRequest>,
}

/// A request of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedRequest {
    /// Its place in the file.
    pub number: i64,
    /// How often it was claimed, with this time.
    pub attempts: i64,
    /// Its line.
    pub content: String,
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestResult {
    /// Its place in the file.
    pub number: i64,
    /// Whether it goes to the output file.
    pub is_success: bool,
    /// The line to write.
    pub content: String,
}

/// Unfinished batches of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchCount {
    /// The state.
    pub state: BatchState,
    /// How many.
    pub batches: i64,
    /// When the oldest was created.
    pub oldest_ms: i64,
}

macro_rules! select_batches {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant_id, user_id, endpoint, input_file, output_file, error_file, state, reason, metadata, total, completed, \
             failed, created_at, expires_at, ending_at, ended_at FROM batches ",
            $rest
        )
    };
}

macro_rules! select_files {
    ($rest:literal) => {
        concat!("SELECT id, purpose, filename, endpoint, bytes, lines, created_at FROM batch_files ", $rest)
    };
}

/// The first lines that a condition selects, with their bytes: up to `$2` lines, and one more than fits into `$3` bytes.
macro_rules! measured_lines {
    ($condition:literal) => {
        concat!(
            "SELECT number, bytes FROM (SELECT number, bytes, sum(bytes) OVER (ORDER BY number) - bytes AS earlier FROM \
             (SELECT number, octet_length(content) + 1 AS bytes FROM batch_lines WHERE ",
            $condition,
            " ORDER BY number LIMIT $2) AS first_lines) AS measured WHERE earlier < $3"
        )
    };
}

/// Files that are being deleted, those from before `$1` that no unfinished batch reads, and uploads from before `$2` that were given up.
macro_rules! old_files {
    () => {
        "(state = 'deleting' OR (state = 'open' AND purpose = 'batch' AND created_at < $2) \
         OR (state = 'complete' AND created_at < $1 AND NOT EXISTS (SELECT 1 FROM batches \
         WHERE batches.input_file = batch_files.id AND batches.state IN ('in_progress', 'finalizing', 'cancelling'))))"
    };
}

impl TenantStore<'_> {
    /// Begins a file of requests, which is not visible before [`Self::complete_file`]. Refused if the files of the tenant have `most` bytes.
    pub async fn begin_file(self, file: &BatchFile, most: u64) -> Result<Result<(), BatchRefusal>, StoreError> {
        let mut transaction = self.write(&about_tenant(self.tenant)).await?;
        if let Some(refusal) = self.refusal(&mut transaction, 1, most).await? {
            return Ok(Err(refusal));
        }
        self.insert_file(&mut transaction, file).await?;
        self.store.commit(transaction).await?;
        Ok(Ok(()))
    }

    /// Adds lines to an incomplete file; `first` is the number of the first one.
    pub async fn add_lines(
        self,
        file: &str,
        first: i64,
        lines: &[String],
    ) -> Result<Result<(), BatchRefusal>, StoreError> {
        let store = self.store;
        let mut transaction = self.write(&about_file(file)).await?;
        let query = self
            .query(
                "UPDATE batch_files SET bytes = bytes + $2, lines = lines + $3 WHERE tenant_id = $1 AND id = $4 AND state = 'open'",
            )
            .bind(bytes_of(lines.iter().map(String::as_str)))
            .bind(lines.len() as i64)
            .bind(file);
        if store.ask(query.execute(&mut *transaction)).await?.rows_affected() == 0 {
            return Ok(Err(BatchRefusal::NoFile));
        }
        let numbered: Vec<(i64, &str)> = (first..).zip(lines.iter().map(String::as_str)).collect();
        store.insert_lines(&mut transaction, self.tenant, file, &numbered).await?;
        store.commit(transaction).await?;
        Ok(Ok(()))
    }

    /// Makes a file of requests visible, unless the files of the tenant now have more than `most` bytes.
    pub async fn complete_file(
        self,
        file: &str,
        endpoint: &str,
        filename: &str,
        most: u64,
    ) -> Result<Result<(), BatchRefusal>, StoreError> {
        let mut transaction = self.write(&about_tenant(self.tenant)).await?;
        let (_, bytes) = self.stored(&mut transaction).await?;
        if bytes > most {
            return Ok(Err(BatchRefusal::Full(bytes)));
        }
        let query = self
            .query(
                "UPDATE batch_files SET state = 'complete', endpoint = $2, filename = $3 \
                 WHERE tenant_id = $1 AND id = $4 AND state IN ('open', 'complete')",
            )
            .bind(endpoint)
            .bind(filename)
            .bind(file);
        let changed = self.store.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.store.commit(transaction).await?;
        Ok(if changed == 1 { Ok(()) } else { Err(BatchRefusal::NoFile) })
    }

    /// Marks a file of requests as deleted, unless a batch was created of it; [`Store::erase`] deletes its lines.
    pub async fn abandon_file(self, file: &str) -> Result<(), StoreError> {
        let mut transaction = self.write(&about_tenant(self.tenant)).await?;
        let query = self
            .query(
                "UPDATE batch_files SET state = 'deleting' WHERE tenant_id = $1 AND id = $2 AND purpose = 'batch' \
                 AND NOT EXISTS (SELECT 1 FROM batches WHERE batches.input_file = batch_files.id)",
            )
            .bind(file);
        self.store.ask(query.execute(&mut *transaction)).await?;
        self.store.commit(transaction).await
    }

    /// One file.
    pub async fn file(self, id: &str) -> Result<Option<BatchFile>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self.query(select_files!("WHERE tenant_id = $1 AND id = $2 AND state = 'complete'")).bind(id);
        let row = self.store.ask(query.fetch_optional(&mut *transaction)).await?;
        row.as_ref().map(read_file).transpose()
    }

    /// Files, the newest first, after the one with an id; all for an empty id. `purpose`: only those.
    pub async fn files(
        self,
        after: &str,
        purpose: Option<FilePurpose>,
        limit: u32,
    ) -> Result<Vec<BatchFile>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self
            .query(select_files!(
                "WHERE tenant_id = $1 AND ($2 = '' OR id < $2) AND ($4 = '' OR purpose = $4) AND state = 'complete' \
                 ORDER BY id DESC LIMIT $3"
            ))
            .bind(after)
            .bind(i64::from(limit))
            .bind(purpose.map_or("", FilePurpose::name));
        let rows = self.store.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().map(read_file).collect()
    }

    /// The page of a file from a number on, of about `most` bytes and at least one line: the number of its last line, and its bytes.
    pub async fn page(self, file: &str, from: i64, most: u32) -> Result<Option<(i64, u64)>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self
            .query(concat!(
                "SELECT max(number), CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM (",
                measured_lines!("tenant_id = $1 AND file_id = $4 AND number >= $5"),
                ") AS page"
            ))
            .bind(PAGE_LINES)
            .bind(i64::from(most))
            .bind(file)
            .bind(from);
        let row = self.store.ask(query.fetch_one(&mut *transaction)).await?;
        let bytes = row.try_get::<i64, _>(1)?.unsigned_abs();
        Ok(row.try_get::<Option<i64>, _>(0)?.map(|last| (last, bytes)))
    }

    /// Lines of a file, from one number to another, with their numbers. [`Self::page`] bounds their bytes.
    pub async fn lines(self, file: &str, from: i64, to: i64) -> Result<Vec<(i64, String)>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self
            .query(
                "SELECT number, content FROM batch_lines WHERE tenant_id = $1 AND file_id = $2 AND number >= $3 AND number <= $4 \
                 ORDER BY number",
            )
            .bind(file)
            .bind(from)
            .bind(to);
        let rows = self.store.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// The bytes of all files of the tenant.
    pub async fn stored_bytes(self) -> Result<u64, StoreError> {
        let mut transaction = self.read().await?;
        Ok(self.stored(&mut transaction).await?.1)
    }

    /// Marks a file that no unfinished batch reads as deleted; [`Store::erase`] deletes its lines.
    pub async fn delete_file(self, id: &str, event: &AuditEvent) -> Result<FileDeletion, StoreError> {
        let mut transaction = self.write(&about_tenant(self.tenant)).await?;
        let query = self
            .query(
                "SELECT id FROM batches WHERE tenant_id = $1 AND input_file = $2 \
                 AND state IN ('in_progress', 'finalizing', 'cancelling') LIMIT 1",
            )
            .bind(id);
        if let Some(row) = self.store.ask(query.fetch_optional(&mut *transaction)).await? {
            return Ok(FileDeletion::InUse(row.try_get(0)?));
        }
        let query = self
            .query("UPDATE batch_files SET state = 'deleting' WHERE tenant_id = $1 AND id = $2 AND state = 'complete'")
            .bind(id);
        if self.store.ask(query.execute(&mut *transaction)).await?.rows_affected() == 0 {
            return Ok(FileDeletion::Missing);
        }
        self.store.record(&mut transaction, event).await?;
        self.store.commit(transaction).await?;
        Ok(FileDeletion::Deleted)
    }

    /// Creates a batch of the requests of its input file, unless the tenant has `most` unfinished ones or its files have `most_stored`
    /// bytes. Its total becomes the number of its requests.
    pub async fn create_batch(
        self,
        batch: &Batch,
        most: u64,
        most_stored: u64,
        event: &AuditEvent,
    ) -> Result<Result<Batch, BatchRefusal>, StoreError> {
        let store = self.store;
        let mut transaction = self.write(&about_tenant(self.tenant)).await?;
        let query = self.query(
            "SELECT count(*) FROM batches WHERE tenant_id = $1 AND state IN ('in_progress', 'finalizing', 'cancelling')",
        );
        let pending = store.ask(query.fetch_one(&mut *transaction)).await?.try_get::<i64, _>(0)?.unsigned_abs();
        if pending >= most {
            return Ok(Err(BatchRefusal::Pending(pending)));
        }
        if let Some(refusal) = self.refusal(&mut transaction, 2, most_stored).await? {
            return Ok(Err(refusal));
        }
        let query = self
            .query(select_files!("WHERE tenant_id = $1 AND id = $2 AND state = 'complete' AND purpose = 'batch'"))
            .bind(&batch.input_file);
        let Some(row) = store.ask(query.fetch_optional(&mut *transaction)).await? else {
            return Ok(Err(BatchRefusal::NoFile));
        };
        let file = read_file(&row)?;
        if file.endpoint != batch.endpoint {
            return Ok(Err(BatchRefusal::Endpoint));
        }
        let batch = Batch { total: file.lines, ..batch.clone() };
        for (id, name) in [(&batch.output_file, "output"), (&batch.error_file, "error")] {
            let file = BatchFile {
                id: id.clone(),
                purpose: FilePurpose::Output,
                filename: format!("{}_{name}.jsonl", batch.id),
                endpoint: batch.endpoint.clone(),
                bytes: 0,
                lines: 0,
                created_at_ms: batch.created_at_ms,
            };
            self.insert_file(&mut transaction, &file).await?;
        }
        let query = sqlx::query(
            "INSERT INTO batches (id, tenant_id, user_id, endpoint, input_file, output_file, error_file, state, metadata, total, \
             completed, failed, created_at, expires_at, paused_until, served_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'in_progress', $8, $9, 0, 0, $10, $11, 0, 0)",
        )
        .bind(&batch.id)
        .bind(self.tenant)
        .bind(&batch.user)
        .bind(&batch.endpoint)
        .bind(&batch.input_file)
        .bind(&batch.output_file)
        .bind(&batch.error_file)
        .bind(&batch.metadata)
        .bind(batch.total as i64)
        .bind(batch.created_at_ms)
        .bind(batch.expires_at_ms);
        store.ask(query.execute(&mut *transaction)).await?;
        let query = self
            .query(
                "INSERT INTO batch_requests (tenant_id, batch_id, number, available_at, claim, attempts) \
                 SELECT tenant_id, $2, number, 0, '', 0 FROM batch_lines WHERE tenant_id = $1 AND file_id = $3",
            )
            .bind(&batch.id)
            .bind(&batch.input_file);
        store.ask(query.execute(&mut *transaction)).await?;
        store.record(&mut transaction, event).await?;
        store.commit(transaction).await?;
        Ok(Ok(batch))
    }

    /// One batch.
    pub async fn batch(self, id: &str) -> Result<Option<Batch>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self.query(select_batches!("WHERE tenant_id = $1 AND id = $2")).bind(id);
        let row = self.store.ask(query.fetch_optional(&mut *transaction)).await?;
        row.as_ref().map(read_batch).transpose()
    }

    /// Batches, the newest first, after the one with an id; all for an empty id.
    pub async fn batches(self, after: &str, limit: u32) -> Result<Vec<Batch>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self
            .query(select_batches!("WHERE tenant_id = $1 AND ($2 = '' OR id < $2) ORDER BY id DESC LIMIT $3"))
            .bind(after)
            .bind(i64::from(limit));
        let rows = self.store.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().map(read_batch).collect()
    }

    /// Cancels the rest of a batch; returns whether it was in progress.
    pub async fn cancel_batch(self, id: &str, event: &AuditEvent) -> Result<bool, StoreError> {
        let mut transaction = self.write(&about_batch(id)).await?;
        let query = self
            .query(
                "UPDATE batches SET state = 'cancelling', reason = $2, ending_at = $3 \
                 WHERE tenant_id = $1 AND id = $4 AND state = 'in_progress'",
            )
            .bind(EndReason::Cancelled.code())
            .bind(now_ms())
            .bind(id);
        let changed = self.store.ask(query.execute(&mut *transaction)).await?.rows_affected() == 1;
        if changed {
            self.store.record(&mut transaction, event).await?;
        }
        self.store.commit(transaction).await?;
        Ok(changed)
    }

    /// The files of the tenant and their bytes, with those that are being deleted.
    async fn stored(self, transaction: &mut Transaction<'static, Any>) -> Result<(u64, u64), StoreError> {
        let query = self
            .query("SELECT count(*), CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM batch_files WHERE tenant_id = $1");
        let row = self.store.ask(query.fetch_one(&mut **transaction)).await?;
        Ok((row.try_get::<i64, _>(0)?.unsigned_abs(), row.try_get::<i64, _>(1)?.unsigned_abs()))
    }

    /// Why the tenant may not have more files now.
    async fn refusal(
        self,
        transaction: &mut Transaction<'static, Any>,
        more: u64,
        most_bytes: u64,
    ) -> Result<Option<BatchRefusal>, StoreError> {
        let (files, bytes) = self.stored(transaction).await?;
        Ok(match (bytes >= most_bytes, files + more > MAX_FILES) {
            (true, _) => Some(BatchRefusal::Full(bytes)),
            (false, true) => Some(BatchRefusal::Files(files)),
            (false, false) => None,
        })
    }

    async fn insert_file(
        self,
        transaction: &mut Transaction<'static, Any>,
        file: &BatchFile,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO batch_files (id, tenant_id, purpose, filename, endpoint, bytes, lines, state, created_at) \
             VALUES ($1, $2, $3, $4, $5, 0, 0, 'open', $6)",
        )
        .bind(&file.id)
        .bind(self.tenant)
        .bind(file.purpose.name())
        .bind(&file.filename)
        .bind(&file.endpoint)
        .bind(file.created_at_ms);
        self.store.ask(query.execute(&mut **transaction)).await.map(drop)
    }
}

/// Batches with work: those whose rest ends without running, and those of which up to `$2` requests may run. A batch of the tenant that
/// was served longest ago comes first, and of its batches one that ends.
const DUE: &str = select_batches!(
    "WHERE (state IN ('cancelling', 'finalizing') OR (state = 'in_progress' AND paused_until <= $1 AND $2 > 0)) \
     AND EXISTS (SELECT 1 FROM batch_requests WHERE batch_id = batches.id AND available_at <= $1) \
     ORDER BY (SELECT max(others.served_at) FROM batches AS others WHERE others.tenant_id = batches.tenant_id), \
     CASE WHEN state = 'in_progress' THEN 1 ELSE 0 END, served_at, id LIMIT 1"
);

/// Requests of the batch `$1` that are due, with their lines in the file `$4`: up to `$3`, and one more than fits into `$5` bytes. A request
/// without a line would be due for ever: the server gives it an error. Each line is a query of its own, because a join reads the whole file
/// for each request in a table without statistics.
const CLAIMABLE: &str = "SELECT number, attempts, content FROM (SELECT number, attempts, content, \
    sum(octet_length(content)) OVER (ORDER BY available_at, number) - octet_length(content) AS earlier FROM \
    (SELECT number, attempts, available_at, coalesce((SELECT content FROM batch_lines WHERE file_id = $4 \
    AND batch_lines.number = due.number), '') AS content FROM \
    (SELECT number, attempts, available_at FROM batch_requests WHERE batch_id = $1 AND available_at <= $2 \
    ORDER BY available_at, number LIMIT $3) AS due) AS with_lines) AS measured WHERE earlier < $5 ORDER BY number";

impl Store {
    /// Claims requests of one batch for `lease_ms`: at most `most` of one that is in progress, or up to [`ENDING_CLAIM`] of one whose rest
    /// ends; fewer if their lines are long. Batches whose time is over expire.
    pub async fn claim_requests(
        &self,
        now_ms: i64,
        lease_ms: i64,
        most: u32,
    ) -> Result<Option<ClaimedBatch>, StoreError> {
        if !self.has_due(now_ms, most).await? {
            return Ok(None);
        }
        let mut transaction = self.write_all("batch claims", Job::Batches).await?;
        let query = sqlx::query(
            "UPDATE batches SET state = 'finalizing', reason = $1, ending_at = $2 WHERE state = 'in_progress' AND expires_at <= $2",
        )
        .bind(EndReason::Expired.code())
        .bind(now_ms);
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query(DUE).bind(now_ms).bind(i64::from(most));
        let Some(row) = self.ask(query.fetch_optional(&mut *transaction)).await? else {
            self.commit(transaction).await?;
            return Ok(None);
        };
        let batch = read_batch(&row)?;
        let limit = if batch.state == BatchState::InProgress { most } else { ENDING_CLAIM };
        let claim = uuid::Uuid::now_v7().simple().to_string();
        let query = sqlx::query(CLAIMABLE)
            .bind(&batch.id)
            .bind(now_ms)
            .bind(i64::from(limit))
            .bind(&batch.input_file)
            .bind(CLAIM_BYTES);
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        let read = |row: &AnyRow| -> Result<ClaimedRequest, StoreError> {
            Ok(ClaimedRequest {
                number: row.try_get(0)?,
                attempts: row.try_get::<i64, _>(1)? + 1,
                content: row.try_get(2)?,
            })
        };
        let mut requests = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let numbers: Vec<i64> = requests.iter().map(|request| request.number).collect();
        let query = sqlx::query(self.dialect.claim_requests())
            .bind(&batch.id)
            .bind(serde_json::json!(numbers).to_string())
            .bind(&claim)
            .bind(now_ms.saturating_add(lease_ms));
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        let claimed = rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<i64>, sqlx::Error>>()?;
        requests.retain(|request| claimed.contains(&request.number));
        let query = sqlx::query("UPDATE batches SET served_at = $1 WHERE id = $2").bind(now_ms).bind(&batch.id);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await?;
        Ok(Some(ClaimedBatch { batch, claim, requests }))
    }

    /// Stores results of claimed requests; returns how many. The result of a request that another server has claimed since is dropped. The
    /// last result ends the batch, makes its files visible, and adds an event for each of these webhooks.
    pub async fn complete_requests(
        &self,
        batch: &Batch,
        claim: &str,
        results: &[RequestResult],
        webhooks: &[String],
    ) -> Result<u64, StoreError> {
        let mut transaction = self.write_all(&about_batch(&batch.id), Job::Batches).await?;
        let numbers: Vec<i64> = results.iter().map(|result| result.number).collect();
        let query = sqlx::query(self.dialect.delete_requests())
            .bind(&batch.id)
            .bind(serde_json::json!(numbers).to_string())
            .bind(claim);
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        let claimed = rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<i64>, sqlx::Error>>()?;
        if claimed.is_empty() {
            return Ok(0);
        }
        let (mut completed, mut failed) = (0_i64, 0_i64);
        for (is_success, file, count) in
            [(true, &batch.output_file, &mut completed), (false, &batch.error_file, &mut failed)]
        {
            let of_file = |result: &&RequestResult| result.is_success == is_success && claimed.contains(&result.number);
            let lines: Vec<(i64, &str)> =
                results.iter().filter(of_file).map(|result| (result.number, result.content.as_str())).collect();
            if lines.is_empty() {
                continue;
            }
            *count = lines.len() as i64;
            self.insert_lines(&mut transaction, &batch.tenant, file, &lines).await?;
            let query = sqlx::query("UPDATE batch_files SET lines = lines + $1, bytes = bytes + $2 WHERE id = $3")
                .bind(*count)
                .bind(bytes_of(lines.iter().map(|(_, line)| *line)))
                .bind(file);
            self.ask(query.execute(&mut *transaction)).await?;
        }
        let query = sqlx::query("UPDATE batches SET completed = completed + $1, failed = failed + $2 WHERE id = $3")
            .bind(completed)
            .bind(failed)
            .bind(&batch.id);
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query("SELECT 1 FROM batch_requests WHERE batch_id = $1 LIMIT 1").bind(&batch.id);
        if self.ask(query.fetch_optional(&mut *transaction)).await?.is_none() {
            self.end_batch(&mut transaction, batch, webhooks).await?;
        }
        self.commit(transaction).await?;
        Ok(claimed.len() as u64)
    }

    /// Inserts numbered lines of a file.
    async fn insert_lines(
        &self,
        transaction: &mut Transaction<'static, Any>,
        tenant: &str,
        file: &str,
        lines: &[(i64, &str)],
    ) -> Result<(), StoreError> {
        let query =
            sqlx::query(self.dialect.insert_lines()).bind(tenant).bind(file).bind(serde_json::json!(lines).to_string());
        self.ask(query.execute(&mut **transaction)).await.map(drop)
    }

    async fn end_batch(
        &self,
        transaction: &mut Transaction<'static, Any>,
        batch: &Batch,
        webhooks: &[String],
    ) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE batches SET ended_at = $1, state = CASE WHEN state = 'cancelling' THEN 'cancelled' \
             WHEN state = 'finalizing' AND reason = $2 THEN 'expired' WHEN state = 'finalizing' THEN 'failed' \
             ELSE 'completed' END WHERE id = $3 AND ended_at IS NULL",
        )
        .bind(now_ms())
        .bind(EndReason::Expired.code())
        .bind(&batch.id);
        if self.ask(query.execute(&mut **transaction)).await?.rows_affected() == 1 {
            self.insert_deliveries(transaction, &batch.id, webhooks).await?;
        }
        for statement in [
            "DELETE FROM batch_files WHERE id IN ($1, $2) AND lines = 0",
            "UPDATE batch_files SET state = 'complete' WHERE id IN ($1, $2) AND state = 'open'",
        ] {
            let query = sqlx::query(statement).bind(&batch.output_file).bind(&batch.error_file);
            self.ask(query.execute(&mut **transaction)).await?;
        }
        Ok(())
    }

    /// Gives a claimed request back, and pauses its batch until a time. Requests that were not claimed yet come first then. `is_attempt`:
    /// whether it has run.
    pub async fn release_request(
        &self,
        batch: &Batch,
        claim: &str,
        number: i64,
        paused_until_ms: i64,
        is_attempt: bool,
    ) -> Result<(), StoreError> {
        let mut transaction = self.write_all(&about_batch(&batch.id), Job::Batches).await?;
        let query = sqlx::query(
            "UPDATE batch_requests SET claim = '', available_at = $1, attempts = attempts - $2 \
             WHERE batch_id = $3 AND number = $4 AND claim = $5",
        )
        .bind(paused_until_ms)
        .bind(i64::from(!is_attempt))
        .bind(&batch.id)
        .bind(number)
        .bind(claim);
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query("UPDATE batches SET paused_until = $1 WHERE id = $2 AND paused_until < $1")
            .bind(paused_until_ms)
            .bind(&batch.id);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await
    }

    /// Ends the rest of a batch that is in progress: its requests get an error and do not run.
    pub async fn fail_batch(&self, id: &str, reason: EndReason) -> Result<(), StoreError> {
        let mut transaction = self.write_all(&about_batch(id), Job::Batches).await?;
        let query = sqlx::query(
            "UPDATE batches SET state = 'finalizing', reason = $1, ending_at = $2 WHERE id = $3 AND state = 'in_progress'",
        )
        .bind(reason.code())
        .bind(now_ms())
        .bind(id);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await
    }

    /// Unfinished batches of all tenants by state.
    pub async fn batch_counts(&self) -> Result<Vec<BatchCount>, StoreError> {
        let mut transaction = self.read_all(Job::Batches).await?;
        let query = sqlx::query(
            "SELECT state, count(*), min(created_at) FROM batches WHERE state IN ('in_progress', 'finalizing', 'cancelling') \
             GROUP BY state",
        );
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        let read = |row: &AnyRow| -> Result<BatchCount, StoreError> {
            Ok(BatchCount {
                state: BatchState::named(&row.try_get::<String, _>(0)?)?,
                batches: row.try_get(1)?,
                oldest_ms: row.try_get(2)?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Deletes the lines of a file that is being deleted, and then the file, in several transactions. Returns whether it is gone; otherwise
    /// `is_stopping` came first.
    pub async fn erase(&self, file: &str, is_stopping: impl Fn() -> bool) -> Result<bool, StoreError> {
        while !is_stopping() {
            if crate::change(StoreError::may_be_repeated, || self.erase_lines(file)).await? {
                return Ok(true);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(false)
    }

    /// Deletes some lines of a file that is being deleted; returns whether there is nothing left of it.
    async fn erase_lines(&self, file: &str) -> Result<bool, StoreError> {
        let mut transaction = self.write_all(&about_file(file), Job::Batches).await?;
        let (lines, bytes) = ERASED;
        let query = sqlx::query(concat!(
            "DELETE FROM batch_lines WHERE file_id = $1 \
             AND EXISTS (SELECT 1 FROM batch_files WHERE id = $1 AND state = 'deleting') AND number <= (SELECT max(number) FROM (",
            measured_lines!("file_id = $1"),
            ") AS page)"
        ))
        .bind(file)
        .bind(lines)
        .bind(bytes);
        let erased = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        let query = sqlx::query(
            "DELETE FROM batch_files WHERE id = $1 AND state = 'deleting' \
             AND NOT EXISTS (SELECT 1 FROM batch_lines WHERE file_id = $1)",
        )
        .bind(file);
        let files = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.commit(transaction).await?;
        // Without lines and without a file, another server was first.
        Ok(erased == 0 || files == 1)
    }

    /// Deletes files and batches from before a time, except those of unfinished batches, uploads that were given up, and what is left of
    /// deleted files. A file that cannot be deleted is left to the next run. Returns the number of files and batches.
    pub async fn delete_batches(
        &self,
        before_ms: Option<i64>,
        now_ms: i64,
        stop: &CancellationToken,
    ) -> Result<u64, StoreError> {
        let (before, given_up) = (before_ms.unwrap_or(i64::MIN), now_ms.saturating_sub(ABANDONED_MS));
        let (mut after, mut deleted) = (String::new(), 0);
        loop {
            let files = self.old_files(before, given_up, &after).await?;
            let Some((last, _)) = files.last() else { break };
            after.clone_from(last);
            for (file, tenant) in &files {
                if stop.is_cancelled() {
                    return Ok(deleted);
                }
                match self.delete_old_file(file, tenant, (before, given_up), stop).await {
                    Ok(is_gone) => deleted += u64::from(is_gone),
                    Err(error @ StoreError::Away(_)) => return Err(error),
                    Err(error) => {
                        tracing::warn!(%file, error = %error_chain(&error), "a file of batches could not be deleted");
                    }
                }
            }
        }
        while !stop.is_cancelled() {
            let mut transaction = self.write_all("batch retention", Job::Retention).await?;
            let query = sqlx::query(
                "DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE ended_at < $1 ORDER BY id LIMIT $2)",
            )
            .bind(before)
            .bind(RETENTION_ROWS);
            let batches = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
            self.commit(transaction).await?;
            deleted += batches;
            if batches < RETENTION_ROWS.unsigned_abs() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(deleted)
    }

    /// Some of the files to delete, after the one with an id, with their tenants.
    async fn old_files(&self, before: i64, given_up: i64, after: &str) -> Result<Vec<(String, String)>, StoreError> {
        let mut transaction = self.read_all(Job::Retention).await?;
        let query = sqlx::query(concat!(
            "SELECT id, tenant_id FROM batch_files WHERE id > $3 AND ",
            old_files!(),
            " ORDER BY id LIMIT $4"
        ))
        .bind(before)
        .bind(given_up)
        .bind(after)
        .bind(RETENTION_ROWS);
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Deletes one of them, unless a batch was created of it since; returns whether it is gone.
    async fn delete_old_file(
        &self,
        file: &str,
        tenant: &str,
        (before, given_up): (i64, i64),
        stop: &CancellationToken,
    ) -> Result<bool, StoreError> {
        // The lock of `create_batch`: a batch that is created of the file is seen here, or finds it deleted.
        let mut transaction = self.write_all(&about_tenant(tenant), Job::Retention).await?;
        let query = sqlx::query(concat!("UPDATE batch_files SET state = 'deleting' WHERE id = $3 AND ", old_files!()))
            .bind(before)
            .bind(given_up)
            .bind(file);
        let marked = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.commit(transaction).await?;
        if marked == 0 { Ok(false) } else { self.erase(file, || stop.is_cancelled()).await }
    }

    /// Whether there is something to claim, or a batch to expire: a read, because most servers find nothing most of the time.
    async fn has_due(&self, now_ms: i64, most: u32) -> Result<bool, StoreError> {
        let mut transaction = self.read_all(Job::Batches).await?;
        let query = sqlx::query("SELECT 1 FROM batches WHERE state = 'in_progress' AND expires_at <= $1 LIMIT 1");
        if self.ask(query.bind(now_ms).fetch_optional(&mut *transaction)).await?.is_some() {
            return Ok(true);
        }
        let query = sqlx::query(DUE).bind(now_ms).bind(i64::from(most));
        Ok(self.ask(query.fetch_optional(&mut *transaction)).await?.is_some())
    }
}

/// The lock for changes that the bounds of a tenant limit.
fn about_tenant(tenant: &str) -> String {
    format!("batches of {tenant}")
}

/// The lock for changes of the lines of one file.
fn about_file(file: &str) -> String {
    format!("batch file {file}")
}

/// The lock for changes of one batch.
fn about_batch(id: &str) -> String {
    format!("batch {id}")
}

/// Bytes of lines with their ends.
fn bytes_of<'l>(lines: impl Iterator<Item = &'l str>) -> i64 {
    lines.map(|line| line.len() as i64 + 1).sum()
}

fn read_file(row: &AnyRow) -> Result<BatchFile, StoreError> {
    let purpose: String = row.try_get(1)?;
    let purpose = [FilePurpose::Input, FilePurpose::Output].into_iter().find(|known| known.name() == purpose);
    Ok(BatchFile {
        id: row.try_get(0)?,
        purpose: purpose.ok_or_else(|| StoreError::Schema("table batch_files: a purpose is not known".to_owned()))?,
        filename: row.try_get(2)?,
        endpoint: row.try_get(3)?,
        bytes: row.try_get::<i64, _>(4)?.unsigned_abs(),
        lines: row.try_get::<i64, _>(5)?.unsigned_abs(),
        created_at_ms: row.try_get(6)?,
    })
}

fn read_batch(row: &AnyRow) -> Result<Batch, StoreError> {
    let reason: Option<String> = row.try_get(8)?;
    Ok(Batch {
        id: row.try_get(0)?,
        tenant: row.try_get(1)?,
        user: row.try_get(2)?,
        endpoint: row.try_get(3)?,
        input_file: row.try_get(4)?,
        output_file: row.try_get(5)?,
        error_file: row.try_get(6)?,
        state: BatchState::named(&row.try_get::<String, _>(7)?)?,
        reason: reason.as_deref().and_then(EndReason::coded),
        metadata: row.try_get(9)?,
        total: row.try_get::<i64, _>(10)?.unsigned_abs(),
        completed: row.try_get::<i64, _>(11)?.unsigned_abs(),
        failed: row.try_get::<i64, _>(12)?.unsigned_abs(),
        created_at_ms: row.try_get(13)?,
        expires_at_ms: row.try_get(14)?,
        ending_at_ms: row.try_get(15)?,
        ended_at_ms: row.try_get(16)?,
    })
}

#[cfg(test)]
pub(crate) mod tests;
