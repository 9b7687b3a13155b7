//! The usage log: one row per answered request, written in batches so that no answer waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use sqlx::Row;
use sqlx::any::AnyRow;
use textnlp_net::retry::{RetryPolicy, jitter};
use tokio::sync::mpsc;

use super::audit::{Action, Actor, AuditEvent};
use super::charge::{Carried, Charge, Charges};
use super::scope::Job;
use super::{RETRIES, Store, StoreError, TenantStore};

/// The usage of one request, without any text.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// The row id, which makes repeated writes idempotent.
    pub id: uuid::Uuid,
    /// The request's id.
    pub request_id: String,
    /// Public id of the key.
    pub user: String,
    /// Its tenant.
    pub tenant: String,
    /// The route.
    pub endpoint: String,
    /// The model, where the request has one.
    pub model: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// What they cost; `None` where no prices are set.
    pub charge: Option<Charge>,
    /// How long it took.
    pub ms: u64,
    /// The HTTP status.
    pub status: u16,
    /// When it ended, in milliseconds since 1970.
    pub at_ms: i64,
}

/// Queues rows and writes them in batches.
#[derive(Debug, Clone)]
pub struct UsageLog {
    rows: Arc<Mutex<Option<mpsc::Sender<Usage>>>>,
    lost: Arc<AtomicU64>,
}

/// Rows that wait for the writer, also while the database is away or has no room: they are dropped when no more fit. At a thousand requests
/// per second this bridges eight seconds.
pub(super) const WAITING: usize = 8192;

/// The lock for writes: rows get their positions in the order in which they become visible.
pub(super) const WRITES: &str = "usage";

/// Rows of one transaction.
pub(super) const BATCH: usize = 256;

/// How long rows are collected, so that one commit serves many requests.
pub(super) const COLLECTS: Duration = Duration::from_millis(50);

impl UsageLog {
    /// A log and the task that writes it; the task ends when the log was closed and everything is written.
    pub fn start(store: Store) -> (Self, tokio::task::JoinHandle<()>) {
        let (rows, inbox) = mpsc::channel(WAITING);
        let log = Self { rows: Arc::new(Mutex::new(Some(rows))), lost: Arc::default() };
        let lost = log.lost.clone();
        (log, tokio::spawn(write(store, inbox, lost)))
    }

    /// Queues a row; with a full queue it is counted as lost.
    pub fn push(&self, row: Usage) {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.as_ref().is_none_or(|rows| rows.try_send(row).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Accepts no more rows.
    pub fn close(&self) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Rows that could not be written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

async fn write(store: Store, mut inbox: mpsc::Receiver<Usage>, lost: Arc<AtomicU64>) {
    let (mut batch, mut carried) = (Vec::with_capacity(BATCH), Carried::default());
    while inbox.recv_many(&mut batch, BATCH).await > 0 {
        let charges = batch.iter_mut().filter_map(|row| Some((row.tenant.as_str(), row.charge.as_mut()?)));
        let remainders = carried.set_cents(charges);
        let append = || store.append_usage(&batch);
        match until_written(RETRIES, append, || inbox.is_closed()).await {
            Ok(()) => carried.keep(remainders),
            Err(error) => {
                lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                let error = textnlp_net::error_chain(&error);
                tracing::warn!(rows = batch.len(), %error, "usage could not be written");
            }
        }
        batch.clear();
        if !inbox.is_empty() {
            continue;
        }
        tokio::time::sleep(COLLECTS).await;
    }
}

/// Retries however long the database is unavailable or full, because the requests were answered. Only the shutdown
/// limits this.
pub(super) async fn until_written<F>(
    policy: RetryPolicy,
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
        if !passes || since_closed >= policy.attempts {
            return Err(error);
        }
        failures = failures.saturating_add(1);
        if failures == policy.attempts {
            tracing::warn!(error = %textnlp_net::error_chain(&error), "usage is buffered until the database answers");
        }
        tokio::time::sleep(policy.backoff.pause(failures, jitter())).await;
    }
}

impl Store {
    /// Deletes rows that ended before a time, oldest first, at most `most`; returns how many. Recorded in the same
    /// transaction. The last row of the log stays: SQLite would reuse its position, and other sites read by position.
    pub async fn delete_usage(&self, before_ms: i64, most: u32) -> Result<u64, StoreError> {
        let mut transaction = self.write_all("usage retention", Job::Retention).await?;
        let query = sqlx::query(
            "DELETE FROM api_usage WHERE id IN (SELECT id FROM api_usage WHERE created_at < $1 AND \
             rowid < (SELECT max(rowid) FROM api_usage) ORDER BY created_at LIMIT $2)",
        )
        .bind(before_ms)
        .bind(i64::from(most));
        let deleted = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        if deleted > 0 {
            let event = AuditEvent::new(&Actor::Server, Action::UsageDelete);
            self.record(&mut transaction, &event.detail(json!({ "rows": deleted, "before": before_ms }))).await?;
        }
        self.commit(transaction).await?;
        Ok(deleted)
    }

    /// Inserts rows, atomically; existing ones stay unchanged.
    pub async fn append_usage(&self, rows: &[Usage]) -> Result<(), StoreError> {
        let mut transaction = self.write_all(WRITES, Job::UsageWriter).await?;
        for row in rows {
            let charge = row.charge.as_ref();
            let query = sqlx::query(
                "INSERT INTO api_usage (id, request_id, user_id, tenant_id, endpoint, model, prompt_tokens, generated_tokens, \
                 tokens_used, generation_time_ms, status, created_at, cost_nanos, cost_cents, currency) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT (id) DO NOTHING",
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
            .bind(row.at_ms)
            .bind(charge.map(|charge| charge.nanos))
            .bind(charge.map(|charge| charge.cents))
            .bind(charge.map(|charge| charge.currency.as_str()));
            self.ask(query.execute(&mut *transaction)).await?;
        }
        self.commit(transaction).await
    }
}

/// Summed usage of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UsageSum {
    /// Requests answered.
    pub requests: i64,
    /// Those of them that were answered with a status of 400 or above.
    pub errors: i64,
    /// Tokens of prompts.
    pub prompt_tokens: i64,
    /// Tokens generated.
    pub completion_tokens: i64,
    /// Both.
    pub total_tokens: i64,
    /// What those requests cost for which prices were set.
    #[serde(skip_serializing_if = "Charges::is_empty")]
    pub cost: Charges,
}

impl UsageSum {
    /// Adds another sum to this one.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.cost.add(&other.cost);
    }
}

/// Usage of one key on one day (UTC) with one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DailyUsage {
    /// Days since 1970.
    pub day: i64,
    /// The model; `None` for requests without one.
    pub model: Option<String>,
    /// How much.
    pub sum: UsageSum,
}

/// Milliseconds of a day.
pub const DAY_MS: i64 = 86_400_000;

impl TenantStore<'_> {
    /// What one key used from `from_ms` until just before `until_ms`, by day and model, oldest first.
    pub async fn usage_by_day(self, user: &str, from_ms: i64, until_ms: i64) -> Result<Vec<DailyUsage>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self
            .query(
                "SELECT created_at / 86400000 AS day, model, count(*), \
                 CAST(sum(CASE WHEN status >= 400 THEN 1 ELSE 0 END) AS BIGINT), CAST(sum(prompt_tokens) AS BIGINT), \
                 CAST(sum(generated_tokens) AS BIGINT), CAST(sum(tokens_used) AS BIGINT), currency, \
                 CAST(sum(cost_nanos / 1000000000) AS BIGINT), CAST(sum(cost_nanos % 1000000000) AS BIGINT) \
                 FROM api_usage WHERE tenant_id = $1 AND user_id = $2 AND created_at >= $3 AND created_at < $4 \
                 GROUP BY day, model, currency ORDER BY day, model, currency",
            )
            .bind(user)
            .bind(from_ms)
            .bind(until_ms);
        let rows = self.store.ask(query.fetch_all(&mut *transaction)).await?;
        let read = |row: &AnyRow| -> Result<DailyUsage, StoreError> {
            Ok(DailyUsage {
                day: row.try_get(0)?,
                model: row.try_get(1)?,
                sum: UsageSum {
                    requests: row.try_get(2)?,
                    errors: row.try_get(3)?,
                    prompt_tokens: row.try_get(4)?,
                    completion_tokens: row.try_get(5)?,
                    total_tokens: row.try_get(6)?,
                    cost: Charges::read(row, 7)?,
                },
            })
        };
        let mut days = Vec::<DailyUsage>::new();
        for row in &rows {
            let part = read(row)?;
            match days.last_mut() {
                // Requests in another currency, or of the time before prices were set.
                Some(last) if (last.day, &last.model) == (part.day, &part.model) => last.sum.add(&part.sum),
                _ => days.push(part),
            }
        }
        Ok(days)
    }

    /// Requests and tokens of a key since a time.
    pub async fn usage_of(self, user: &str, since_ms: i64) -> Result<(u64, u64), StoreError> {
        let mut sum = UsageSum::default();
        for part in self.usage_by_day(user, since_ms, i64::MAX).await? {
            sum.add(&part.sum);
        }
        Ok((sum.requests.unsigned_abs(), sum.total_tokens.unsigned_abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, on_both};
    use textnlp_net::retry::Backoff;

    use super::*;

    on_both!(
        everything_that_was_pushed_is_written_before_the_log_ends,
        usage_is_summed_by_day_and_model_for_one_key_of_one_tenant,
        cost_is_summed_exactly_by_currency_and_its_cents_are_carried,
    );

    const QUICK: RetryPolicy =
        RetryPolicy::new(6, Backoff { first: Duration::from_micros(1), longest: Duration::from_micros(4) });

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
    async fn usage_writes_are_retried_and_shutdown_bounds_the_wait() {
        for how in [StoreError::Away, StoreError::Full, StoreError::Busy, StoreError::Unsure] {
            assert_eq!(tried(100, how, false).await, (101, true));
            assert_eq!(tried(100, how, true).await, (QUICK.attempts, false));
            assert_eq!(tried(2, how, true).await, (3, true));
        }
        assert_eq!(tried(100, StoreError::Failed, false).await, (1, false), "what will not pass is not waited for");
    }

    async fn usage_is_summed_by_day_and_model_for_one_key_of_one_tenant(bench: Bench) {
        let store = bench.store().await;
        let row = |tenant: &str, user: &str, model: Option<&str>, status, at_ms| Usage {
            id: uuid::Uuid::now_v7(),
            request_id: "r".into(),
            user: user.into(),
            tenant: tenant.into(),
            endpoint: "/v1/generate".into(),
            model: model.map(str::to_owned),
            prompt_tokens: 2,
            generated_tokens: 3,
            charge: None,
            ms: 5,
            status,
            at_ms,
        };
        let rows = [
            row("acme", "key", Some("m"), 200, 5),
            row("acme", "key", Some("m"), 500, 6),
            row("acme", "key", None, 200, 7),
            row("acme", "key", Some("m"), 200, DAY_MS),
            row("acme", "key", Some("m"), 200, 2 * DAY_MS),
            row("acme", "other", Some("m"), 200, 8),
            // A key that moved to another tenant leaves what it used there.
            row("globex", "key", Some("m"), 200, 9),
        ];
        store.append_usage(&rows).await.unwrap();
        let mut found = store.tenant("acme").usage_by_day("key", 5, 2 * DAY_MS).await.unwrap();
        // The databases differ in where they sort what is null.
        found.sort_by_key(|daily| (daily.day, daily.model.clone()));
        let sum = |requests, errors| UsageSum {
            requests,
            errors,
            prompt_tokens: 2 * requests,
            completion_tokens: 3 * requests,
            total_tokens: 5 * requests,
            cost: Charges::default(),
        };
        let daily = |day, model: Option<&str>, sum| DailyUsage { day, model: model.map(str::to_owned), sum };
        assert_eq!(found, [daily(0, None, sum(1, 0)), daily(0, Some("m"), sum(2, 1)), daily(1, Some("m"), sum(1, 0))]);
        assert_eq!(store.tenant("globex").usage_of("key", 0).await.unwrap(), (1, 5));
        assert_eq!(store.tenant("nobody").usage_of("key", 0).await.unwrap(), (0, 0));
    }

    async fn cost_is_summed_exactly_by_currency_and_its_cents_are_carried(bench: Bench) {
        let store = bench.store().await;
        let row = |nanos: Option<i64>, currency: &str| Usage {
            id: uuid::Uuid::now_v7(),
            request_id: "r".into(),
            user: "key".into(),
            tenant: "acme".into(),
            endpoint: "/v1/generate".into(),
            model: Some("m".into()),
            prompt_tokens: 1,
            generated_tokens: 1,
            charge: nanos.map(|nanos| Charge { nanos, cents: 0, currency: currency.into() }),
            ms: 1,
            status: 200,
            at_ms: 1,
        };
        // Four thousandths of a cent each.
        let (log, task) = UsageLog::start(store.clone());
        for _ in 0..1000 {
            log.push(row(Some(40_001), "EUR"));
        }
        log.close();
        task.await.unwrap();
        let mut transaction = store.read_all(Job::Report).await.unwrap();
        let query = sqlx::query("SELECT CAST(sum(cost_cents) AS BIGINT) FROM api_usage");
        let cents: i64 = query.fetch_one(&mut *transaction).await.unwrap().get(0);
        drop(transaction);
        assert_eq!(cents, 4, "40,001,000 billionths are 4 cents");
        // Two sums that together do not fit into the integers of a database, another currency, and no price.
        let most = [row(Some(i64::MAX), "EUR"), row(Some(i64::MAX), "EUR"), row(Some(7), "USD"), row(None, "")];
        store.append_usage(&most).await.unwrap();
        let days = store.tenant("acme").usage_by_day("key", 0, 2).await.unwrap();
        let mut cost = Charges::of("EUR", 0, i64::MAX);
        for more in [Charges::of("EUR", 0, i64::MAX), Charges::of("EUR", 0, 40_001_000), Charges::of("USD", 0, 7)] {
            cost.add(&more);
        }
        assert_eq!(days.len(), 1, "currencies do not split a model: {days:?}");
        assert_eq!((days[0].sum.requests, &days[0].sum.cost), (1004, &cost));
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
                charge: None,
                ms: 5,
                status: 200,
                at_ms: n as i64,
            });
        }
        assert_eq!(log.lost(), 0);
        log.close();
        task.await.unwrap();
        assert_eq!(store.tenant("default").usage_of("key", 0).await.unwrap(), (1000, 3000));
        assert_eq!(store.tenant("default").usage_of("key", 990).await.unwrap(), (10, 30));
        assert_eq!(store.tenant("default").usage_of("other", 0).await.unwrap(), (0, 0));
    }
}
