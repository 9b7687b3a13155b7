//! The usage log: one row per answered request, written in batches so that no answer waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Store, StoreError};
use crate::retry::{Backoff, spread};

/// What one request used. No text of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// What makes it one row however often it is written.
    pub id: uuid::Uuid,
    /// The request's id.
    pub request_id: String,
    /// Public id of the key.
    pub user: String,
    /// Its tenant.
    pub tenant: String,
    /// The route.
    pub endpoint: String,
    /// The model, where one was asked.
    pub model: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// How long it took.
    pub ms: u64,
    /// The HTTP status.
    pub status: u16,
    /// When it ended, in milliseconds since 1970.
    pub at_ms: i64,
}

/// Takes rows in and writes them when there are some, or when a moment has passed.
#[derive(Debug, Clone)]
pub struct UsageLog {
    rows: Arc<Mutex<Option<mpsc::Sender<Usage>>>>,
    lost: Arc<AtomicU64>,
}

/// Rows that wait for the writer, also while the database is away or has no room: they are dropped when no more fit. At a thousand requests
/// per second this bridges eight seconds.
const WAITING: usize = 8192;

/// What is written one after the other: rows get their places in the order in which others see them.
pub(super) const ABOUT: &str = "usage";

/// Rows of one transaction.
const BATCH: usize = 256;

impl UsageLog {
    /// A log and the task that writes it; the task ends when the log was closed and everything is written.
    pub fn start(store: Store) -> (Self, tokio::task::JoinHandle<()>) {
        let (rows, inbox) = mpsc::channel(WAITING);
        let log = Self { rows: Arc::new(Mutex::new(Some(rows))), lost: Arc::default() };
        let lost = log.lost.clone();
        (log, tokio::spawn(write(store, inbox, lost)))
    }

    /// Takes a row; one that finds no room is counted as lost.
    pub fn push(&self, row: Usage) {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.as_ref().is_none_or(|rows| rows.try_send(row).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes no more rows.
    pub fn close(&self) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Rows that could not be written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

async fn write(store: Store, mut inbox: mpsc::Receiver<Usage>, lost: Arc<AtomicU64>) {
    let mut batch = Vec::with_capacity(BATCH);
    while inbox.recv_many(&mut batch, BATCH).await > 0 {
        let append = || store.append_usage(&batch);
        if let Err(error) = until_written(Backoff::DATABASE, append, || inbox.is_closed()).await {
            lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
            tracing::warn!(rows = batch.len(), error = %crate::error::chain(&error), "usage could not be written");
        }
        batch.clear();
        if !inbox.is_empty() {
            continue;
        }
        // A moment in which rows gather: one commit for many requests.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes rows however long the database is away or full: their requests were answered. Only who stops does not wait for long.
async fn until_written<F>(
    backoff: Backoff,
    mut append: impl FnMut() -> F,
    is_closed: impl Fn() -> bool,
) -> Result<(), StoreError>
where
    F: Future<Output = Result<(), StoreError>>,
{
    let (mut failures, mut since_closed) = (0u32, 0);
    loop {
        let Err(error) = append().await else { return Ok(()) };
        let passes = error.may_be_repeated() || matches!(error, StoreError::Full(_));
        since_closed += u32::from(is_closed());
        if !passes || since_closed >= backoff.tries {
            return Err(error);
        }
        failures = failures.saturating_add(1);
        if failures == backoff.tries {
            tracing::warn!(error = %crate::error::chain(&error), "usage waits for the database");
        }
        tokio::time::sleep(backoff.wait(failures, spread())).await;
    }
}

impl Store {
    /// Appends rows, all or none; those that are there already stay as they are.
    pub async fn append_usage(&self, rows: &[Usage]) -> Result<(), StoreError> {
        let mut transaction = self.write(ABOUT).await?;
        for row in rows {
            let query = sqlx::query(
                "INSERT INTO api_usage (id, request_id, user_id, tenant_id, endpoint, model, prompt_tokens, generated_tokens, \
                 tokens_used, generation_time_ms, status, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (id) DO NOTHING",
            )
            .bind(row.id.to_string())
            .bind(&row.request_id)
            .bind(&row.user)
            .bind(&row.tenant)
            .bind(&row.endpoint)
            .bind(&row.model)
            .bind(row.prompt_tokens as i64)
            .bind(row.generated_tokens as i64)
            .bind((row.prompt_tokens + row.generated_tokens) as i64)
            .bind(row.ms as i64)
            .bind(i64::from(row.status))
            .bind(row.at_ms);
            self.ask(query.execute(&mut *transaction)).await?;
        }
        self.commit(transaction).await
    }

    /// Requests and tokens of a tenant's key since a time.
    pub async fn usage_of(&self, tenant: &str, user: &str, since_ms: i64) -> Result<(u64, u64), StoreError> {
        use sqlx::Row;
        let mut transaction = self.begin(&self.reads, "BEGIN").await?;
        self.narrow(&mut transaction, tenant).await?;
        let query = sqlx::query(
            "SELECT count(*), CAST(coalesce(sum(tokens_used), 0) AS BIGINT) FROM api_usage WHERE tenant_id = $3 AND user_id = $1 AND created_at >= $2",
        )
        .bind(user)
        .bind(since_ms)
        .bind(tenant);
        let row = self.ask(query.fetch_one(&mut *transaction)).await?;
        Ok((row.get::<i64, _>(0) as u64, row.get::<i64, _>(1) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, on_both};
    use super::*;

    on_both!(everything_that_was_pushed_is_written_before_the_log_ends,);

    const QUICK: Backoff = Backoff { tries: 6, first: Duration::from_micros(1), most: Duration::from_micros(4) };

    /// How often it was tried, and what came of it, where so many tries fail.
    async fn tried(fails: u32, how: fn(sqlx::Error) -> StoreError, is_closed: bool) -> (u32, bool) {
        let mut tries = 0;
        let append = || {
            tries += 1;
            let failed = tries <= fails;
            async move { if failed { Err(how(sqlx::Error::PoolTimedOut)) } else { Ok(()) } }
        };
        let written = until_written(QUICK, append, || is_closed).await.is_ok();
        (tries, written)
    }

    #[tokio::test]
    async fn what_was_answered_waits_for_the_database_and_whoever_stops_does_not_wait_for_long() {
        for how in [StoreError::Away, StoreError::Full, StoreError::Busy, StoreError::Unsure] {
            assert_eq!(tried(100, how, false).await, (101, true));
            assert_eq!(tried(100, how, true).await, (QUICK.tries, false));
            assert_eq!(tried(2, how, true).await, (3, true));
        }
        assert_eq!(tried(100, StoreError::Failed, false).await, (1, false), "what will not pass is not waited for");
    }

    async fn everything_that_was_pushed_is_written_before_the_log_ends(bench: Bench) {
        let store = bench.store().await;
        let (log, task) = UsageLog::start(store.clone());
        for n in 0..1000u64 {
            log.push(Usage {
                id: uuid::Uuid::now_v7(),
                request_id: format!("r{n}"),
                user: "key".into(),
                tenant: "default".into(),
                endpoint: "/v1/generate".into(),
                model: None,
                prompt_tokens: 2,
                generated_tokens: 1,
                ms: 5,
                status: 200,
                at_ms: n as i64,
            });
        }
        assert_eq!(log.lost(), 0);
        log.close();
        task.await.unwrap();
        assert_eq!(store.usage_of("default", "key", 0).await.unwrap(), (1000, 3000));
        assert_eq!(store.usage_of("default", "key", 990).await.unwrap(), (10, 30));
        assert_eq!(store.usage_of("default", "other", 0).await.unwrap(), (0, 0));
    }
}
