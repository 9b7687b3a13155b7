//! Batches: files of requests and of their results, and the queue of requests without a result.
//!
//! A request runs at least once: a claimed row is due again when its lease ends. It has exactly one result: the result is stored in the
//! transaction that deletes the row, by the holder of the last claim.

use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::audit::AuditEvent;
use super::scope::Job;
use super::{Store, StoreError, TenantStore, now_ms};

/// Requests that end without running, such as those of a cancelled batch, in one claim.
pub const ENDING_CLAIM: u32 = 200;

/// Files that one run of the retention deletes in a transaction: each may have many lines.
const FILES_PER_TRANSACTION: u32 = 4;

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
    /// It is deleted.
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

impl TenantStore<'_> {
    /// Begins a file of requests, which is not visible before [`Self::complete_file`]. Refused if the files of the tenant have `most` bytes.
    pub async fn begin_file(self, file: &BatchFile, most: u64) -> Result<Result<(), BatchRefusal>, StoreError> {
        let mut transaction = self.write(&self.about()).await?;
        let stored = self.stored_bytes(&mut transaction).await?;
        if stored >= most {
            return Ok(Err(BatchRefusal::Full(stored)));
        }
        self.insert_file(&mut transaction, file).await?;
        self.store.commit(transaction).await?;
        Ok(Ok(()))
    }

    /// Adds lines to an incomplete file; `first` is the number of the first one.
    pub async fn add_lines(self, file: &str, first: i64, lines: &[String]) -> Result<(), StoreError> {
        let store = self.store;
        let mut transaction = self.write(&format!("batch file {file}")).await?;
        let query = sqlx::query(store.dialect.insert_lines())
            .bind(self.tenant)
            .bind(file)
            .bind(first)
            .bind(serde_json::Value::from(lines).to_string());
        store.ask(query.execute(&mut *transaction)).await?;
        let query = self
            .query("UPDATE batch_files SET bytes = bytes + $2, lines = lines + $3 WHERE tenant_id = $1 AND id = $4")
            .bind(bytes_of(lines.iter().map(String::as_str)))
            .bind(lines.len() as i64)
            .bind(file);
        store.ask(query.execute(&mut *transaction)).await?;
        store.commit(transaction).await
    }

    /// Makes a file of requests visible, unless the files of the tenant now have more than `most` bytes.
    pub async fn complete_file(
        self,
        file: &str,
        endpoint: &str,
        filename: &str,
        most: u64,
    ) -> Result<Result<(), BatchRefusal>, StoreError> {
        let mut transaction = self.write(&self.about()).await?;
        let stored = self.stored_bytes(&mut transaction).await?;
        if stored > most {
            return Ok(Err(BatchRefusal::Full(stored)));
        }
        let query = self
            .query(
                "UPDATE batch_files SET is_complete = 1, endpoint = $2, filename = $3 WHERE tenant_id = $1 AND id = $4",
            )
            .bind(endpoint)
            .bind(filename)
            .bind(file);
        let changed = self.store.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.store.commit(transaction).await?;
        Ok(if changed == 1 { Ok(()) } else { Err(BatchRefusal::NoFile) })
    }

    /// Deletes a file of requests that no batch ever read, with its lines.
    pub async fn abandon_file(self, file: &str) -> Result<(), StoreError> {
        let mut transaction = self.write(&self.about()).await?;
        let query = self
            .query(
                "DELETE FROM batch_files WHERE tenant_id = $1 AND id = $2 AND purpose = 'batch' \
                 AND NOT EXISTS (SELECT 1 FROM batches WHERE input_file = batch_files.id)",
            )
            .bind(file);
        if self.store.ask(query.execute(&mut *transaction)).await?.rows_affected() == 1 {
            self.delete_lines(&mut transaction, file).await?;
        }
        self.store.commit(transaction).await
    }

    /// One file.
    pub async fn file(self, id: &str) -> Result<Option<BatchFile>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self.query(select_files!("WHERE tenant_id = $1 AND id = $2 AND is_complete = 1")).bind(id);
        let row = self.store.ask(query.fetch_optional(&mut *transaction)).await?;
        row.as_ref().map(read_file).transpose()
    }

    /// Files, the newest first, after the one with an id; all for an empty id.
    pub async fn files(self, after: &str, limit: u32) -> Result<Vec<BatchFile>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self
            .query(select_files!(
                "WHERE tenant_id = $1 AND ($2 = '' OR id < $2) AND is_complete = 1 ORDER BY id DESC LIMIT $3"
            ))
            .bind(after)
            .bind(i64::from(limit));
        let rows = self.store.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().map(read_file).collect()
    }

    /// Lines of a file from a number on, with their numbers.
    pub async fn lines(self, file: &str, from: i64, limit: u32) -> Result<Vec<(i64, String)>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self
            .query(
                "SELECT number, content FROM batch_lines WHERE tenant_id = $1 AND file_id = $2 AND number >= $3 \
                 ORDER BY number LIMIT $4",
            )
            .bind(file)
            .bind(from)
            .bind(i64::from(limit));
        let rows = self.store.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Deletes a file that no unfinished batch reads.
    pub async fn delete_file(self, id: &str, event: &AuditEvent) -> Result<FileDeletion, StoreError> {
        let mut transaction = self.write(&self.about()).await?;
        let query = self
            .query(
                "SELECT id FROM batches WHERE tenant_id = $1 AND input_file = $2 \
                 AND state IN ('in_progress', 'finalizing', 'cancelling') LIMIT 1",
            )
            .bind(id);
        if let Some(row) = self.store.ask(query.fetch_optional(&mut *transaction)).await? {
            return Ok(FileDeletion::InUse(row.try_get(0)?));
        }
        let query = self.query("DELETE FROM batch_files WHERE tenant_id = $1 AND id = $2 AND is_complete = 1").bind(id);
        if self.store.ask(query.execute(&mut *transaction)).await?.rows_affected() == 0 {
            return Ok(FileDeletion::Missing);
        }
        self.delete_lines(&mut transaction, id).await?;
        self.store.record(&mut transaction, event).await?;
        self.store.commit(transaction).await?;
        Ok(FileDeletion::Deleted)
    }

    /// Creates a batch of the requests of its input file, unless the tenant has `most` unfinished ones. Its total becomes the number of them.
    pub async fn create_batch(
        self,
        batch: &Batch,
        most: u64,
        event: &AuditEvent,
    ) -> Result<Result<Batch, BatchRefusal>, StoreError> {
        let store = self.store;
        let mut transaction = self.write(&self.about()).await?;
        let query = self.query(
            "SELECT count(*) FROM batches WHERE tenant_id = $1 AND state IN ('in_progress', 'finalizing', 'cancelling')",
        );
        let pending = store.ask(query.fetch_one(&mut *transaction)).await?.try_get::<i64, _>(0)?.unsigned_abs();
        if pending >= most {
            return Ok(Err(BatchRefusal::Pending(pending)));
        }
        let query = self
            .query(select_files!("WHERE tenant_id = $1 AND id = $2 AND is_complete = 1 AND purpose = 'batch'"))
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

    /// The lock for changes that the bounds of the tenant limit.
    fn about(self) -> String {
        format!("batches of {}", self.tenant)
    }

    async fn stored_bytes(self, transaction: &mut Transaction<'static, Any>) -> Result<u64, StoreError> {
        let query = self.query("SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM batch_files WHERE tenant_id = $1");
        let row = self.store.ask(query.fetch_one(&mut **transaction)).await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }

    async fn insert_file(
        self,
        transaction: &mut Transaction<'static, Any>,
        file: &BatchFile,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO batch_files (id, tenant_id, purpose, filename, endpoint, bytes, lines, is_complete, created_at) \
             VALUES ($1, $2, $3, $4, $5, 0, 0, 0, $6)",
        )
        .bind(&file.id)
        .bind(self.tenant)
        .bind(file.purpose.name())
        .bind(&file.filename)
        .bind(&file.endpoint)
        .bind(file.created_at_ms);
        self.store.ask(query.execute(&mut **transaction)).await.map(drop)
    }

    async fn delete_lines(self, transaction: &mut Transaction<'static, Any>, file: &str) -> Result<(), StoreError> {
        let query = self.query("DELETE FROM batch_lines WHERE tenant_id = $1 AND file_id = $2").bind(file);
        self.store.ask(query.execute(&mut **transaction)).await.map(drop)
    }
}

/// Batches with work: those whose rest ends without running, and those of which up to `$2` requests may run. A batch of the tenant that
/// was served longest ago comes first.
const DUE: &str = select_batches!(
    "WHERE (state IN ('cancelling', 'finalizing') OR (state = 'in_progress' AND paused_until <= $1 AND $2 > 0)) \
     AND EXISTS (SELECT 1 FROM batch_requests WHERE batch_id = batches.id AND available_at <= $1) \
     ORDER BY CASE WHEN state = 'in_progress' THEN 1 ELSE 0 END, \
     (SELECT max(others.served_at) FROM batches AS others WHERE others.tenant_id = batches.tenant_id), served_at, id LIMIT 1"
);

impl Store {
    /// Claims requests of one batch for `lease_ms`: at most `most` of one that is in progress, or up to [`ENDING_CLAIM`] of one whose rest
    /// ends. Batches whose time is over expire.
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
        let query = sqlx::query(
            "UPDATE batch_requests SET claim = $1, available_at = $2, attempts = attempts + 1 WHERE batch_id = $3 AND number IN \
             (SELECT number FROM batch_requests WHERE batch_id = $3 AND available_at <= $4 ORDER BY available_at, number LIMIT $5)",
        )
        .bind(&claim)
        .bind(now_ms.saturating_add(lease_ms))
        .bind(&batch.id)
        .bind(now_ms)
        .bind(i64::from(limit));
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query("UPDATE batches SET served_at = $1 WHERE id = $2").bind(now_ms).bind(&batch.id);
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query(
            "SELECT batch_requests.number, batch_requests.attempts, batch_lines.content FROM batch_requests \
             JOIN batch_lines ON batch_lines.file_id = $1 AND batch_lines.number = batch_requests.number \
             WHERE batch_requests.batch_id = $2 AND batch_requests.claim = $3 ORDER BY batch_requests.number",
        )
        .bind(&batch.input_file)
        .bind(&batch.id)
        .bind(&claim);
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        self.commit(transaction).await?;
        let read = |row: &AnyRow| -> Result<ClaimedRequest, StoreError> {
            Ok(ClaimedRequest { number: row.try_get(0)?, attempts: row.try_get(1)?, content: row.try_get(2)? })
        };
        let requests = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Some(ClaimedBatch { batch, claim, requests }))
    }

    /// Stores results of claimed requests; returns how many. The result of a request that another server has claimed since is dropped. The
    /// last result ends the batch, and makes its files visible.
    pub async fn complete_requests(
        &self,
        batch: &Batch,
        claim: &str,
        results: &[RequestResult],
    ) -> Result<u64, StoreError> {
        let mut transaction = self.write_all(&about_batch(&batch.id), Job::Batches).await?;
        let mut stored = [(0_i64, 0_i64); 2];
        for result in results {
            let query = sqlx::query("DELETE FROM batch_requests WHERE batch_id = $1 AND number = $2 AND claim = $3")
                .bind(&batch.id)
                .bind(result.number)
                .bind(claim);
            if self.ask(query.execute(&mut *transaction)).await?.rows_affected() == 0 {
                continue;
            }
            let file = if result.is_success { &batch.output_file } else { &batch.error_file };
            let query =
                sqlx::query("INSERT INTO batch_lines (tenant_id, file_id, number, content) VALUES ($1, $2, $3, $4)")
                    .bind(&batch.tenant)
                    .bind(file)
                    .bind(result.number)
                    .bind(&result.content);
            self.ask(query.execute(&mut *transaction)).await?;
            let of_file = &mut stored[usize::from(!result.is_success)];
            of_file.0 += 1;
            of_file.1 += bytes_of([result.content.as_str()].into_iter());
        }
        let [completed, failed] = stored;
        for (file, (lines, bytes)) in [(&batch.output_file, completed), (&batch.error_file, failed)] {
            let query = sqlx::query("UPDATE batch_files SET lines = lines + $1, bytes = bytes + $2 WHERE id = $3")
                .bind(lines)
                .bind(bytes)
                .bind(file);
            self.ask(query.execute(&mut *transaction)).await?;
        }
        let query = sqlx::query("UPDATE batches SET completed = completed + $1, failed = failed + $2 WHERE id = $3")
            .bind(completed.0)
            .bind(failed.0)
            .bind(&batch.id);
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query("SELECT count(*) FROM batch_requests WHERE batch_id = $1").bind(&batch.id);
        let left: i64 = self.ask(query.fetch_one(&mut *transaction)).await?.try_get(0)?;
        if left == 0 {
            self.end_batch(&mut transaction, batch).await?;
        }
        self.commit(transaction).await?;
        Ok((completed.0 + failed.0).unsigned_abs())
    }

    async fn end_batch(&self, transaction: &mut Transaction<'static, Any>, batch: &Batch) -> Result<(), StoreError> {
        let query = sqlx::query(
            "UPDATE batches SET ended_at = $1, state = CASE WHEN state = 'cancelling' THEN 'cancelled' \
             WHEN state = 'finalizing' AND reason = $2 THEN 'expired' WHEN state = 'finalizing' THEN 'failed' \
             ELSE 'completed' END WHERE id = $3 AND ended_at IS NULL",
        )
        .bind(now_ms())
        .bind(EndReason::Expired.code())
        .bind(&batch.id);
        self.ask(query.execute(&mut **transaction)).await?;
        for statement in [
            "DELETE FROM batch_files WHERE id IN ($1, $2) AND lines = 0",
            "UPDATE batch_files SET is_complete = 1 WHERE id IN ($1, $2)",
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

    /// Deletes some files and batches from before a time, except those of unfinished batches, and some uploads that were given up. Returns
    /// the number of rows, without lines.
    pub async fn delete_batches(&self, before_ms: Option<i64>, now_ms: i64) -> Result<u64, StoreError> {
        let before = before_ms.unwrap_or(i64::MIN);
        let mut transaction = self.write_all("batch retention", Job::Retention).await?;
        let query = sqlx::query(
            "SELECT id FROM batch_files WHERE (created_at < $1 AND is_complete = 1 AND NOT EXISTS (SELECT 1 FROM batches \
             WHERE state IN ('in_progress', 'finalizing', 'cancelling') AND input_file = batch_files.id)) \
             OR (created_at < $2 AND is_complete = 0 AND purpose = 'batch') ORDER BY id LIMIT $3",
        )
        .bind(before)
        .bind(now_ms.saturating_sub(ABANDONED_MS))
        .bind(i64::from(FILES_PER_TRANSACTION));
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        for row in &rows {
            let id: String = row.try_get(0)?;
            for statement in ["DELETE FROM batch_lines WHERE file_id = $1", "DELETE FROM batch_files WHERE id = $1"] {
                self.ask(sqlx::query(statement).bind(&id).execute(&mut *transaction)).await?;
            }
        }
        let query = sqlx::query("DELETE FROM batches WHERE ended_at < $1").bind(before);
        let ended = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.commit(transaction).await?;
        Ok(rows.len() as u64 + ended)
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
mod tests;
