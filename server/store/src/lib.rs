//! State shared by replicas: keys, rate limits, budgets, usage, insights, batches, events for webhooks and feature flags, in
//! a SQLite file or a PostgreSQL database.
//!
//! Both use the same statements, by sqlx's `any` driver; [`dialect`] has the differences. SQLite has one writer at a
//! time, so writes use a separate connection: waiting for it in an async queue is cheaper than in the busy handler. In
//! PostgreSQL writers lock by subject, and wait only for writers of the same subject. A locked, full or missing store
//! is a [`StoreError`], never a panic.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod analytics;
mod audit;
pub mod batches;
mod benchmark;
mod budget;
mod charge;
mod check;
mod config;
mod copy;
mod dialect;
mod features;
mod keys;
pub mod lease;
mod maintenance;
mod migrate;
pub mod programs;
pub mod rate;
mod rehearsal;
mod report;
pub mod retention;
mod roles;
mod scope;
mod sites;
mod statistics;
mod tickets;
mod usage;
pub mod verifier;
pub mod webhooks;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Any, AnyPool, Transaction};
use textnlp_net::retry::{Backoff, RetryPolicy, retry};

use dialect::{Dialect, Haste, Trust, Turns};

pub use audit::{Action, Actor, AuditEvent, AuditLog, AuditPage, AuditRow, MIN_AUDIT_DAYS, Origin, Outcome, is_plain};
pub use benchmark::{BenchmarkLength, BenchmarkPlan, BenchmarkResult, Latency, StatementResult};
pub use budget::{BudgetOwner, BudgetRefusal, Counter, CounterName, Grant, Reservation, Unit};
pub use charge::{Charge, Charges};
pub use check::{CheckFinding, CheckResult, check_database};
pub use config::{Database, DatabaseAt, PostgresAt};
pub use copy::{Copied, check, copy};
pub use features::{
    FeatureChange, FeatureValue, MAX_FEATURE_TENANTS, MAX_FEATURES, NEW_MODEL, TooManyFeatures, check_feature_name,
};
pub use keys::{ApiKey, KeyPut, act};
pub use maintenance::{Maintenance, MaintenanceError, MaintenanceResult};
pub use migrate::{Migrated, newest_schema};
pub use rate::Rate;
pub use rehearsal::{DatabaseServer, RehearsalResult};
pub use report::{DaySum, GroupSum, MAX_REPORT_DAYS, RequestSum, UsageReport};
pub use scope::TenantStore;
pub use sites::UsageRow;
pub use tickets::{StreamTicket, Token, TooManyTickets};
pub use usage::{DAY_MS, DailyUsage, Usage, UsageLog, UsageSum};

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds a lock; a retry may work.
    #[error("the database is busy")]
    Busy(#[source] sqlx::Error),
    /// It is unreachable or read-only: starting, stopping, or failing over.
    #[error("the database is not reachable")]
    Away(#[source] sqlx::Error),
    /// The connection was lost during a commit: the outcome is unknown.
    #[error("the connection to the database was lost; the change may or may not be stored")]
    Unsure(#[source] sqlx::Error),
    /// No room on its disk.
    #[error("the database's disk is full")]
    Full(#[source] sqlx::Error),
    /// Any other error.
    #[error("the database failed")]
    Failed(#[from] sqlx::Error),
    /// Its schema is not one that this program works with.
    #[error("{0}")]
    Schema(String),
    /// The configured address cannot be used.
    #[error("{0}")]
    Address(String),
    /// Its SQLite file is missing, and the caller may not create one.
    #[error("the database {0} does not exist")]
    Missing(camino::Utf8PathBuf),
    /// Its SQLite file has no schema, and the caller may not create one.
    #[error("the database {0} is empty: it has no schema")]
    Empty(camino::Utf8PathBuf),
}

impl StoreError {
    /// Whether nothing was changed and a retry may work.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Away(_))
    }

    /// The same for idempotent calls.
    pub fn may_be_repeated(&self) -> bool {
        self.passes() || matches!(self, Self::Unsure(_))
    }
}

/// The shared store.
#[derive(Debug, Clone)]
pub struct Store {
    dialect: Dialect,
    reads: AnyPool,
    /// The same pool as `reads` in PostgreSQL.
    writes: AnyPool,
    trust: Arc<Trust>,
    turns: Arc<Turns>,
    /// Starts the names of its locks, which belong to the database and not to a schema.
    locks: &'static str,
    /// Whether statements of tenants have a role of their own: see [`roles`].
    narrows: Arc<AtomicBool>,
}

/// Timeout for a connection from the pool.
const ACQUIRE: Duration = Duration::from_secs(5);

/// Timeout of a statement and its connection: a crashed machine does not close connections.
const ANSWER: Duration = Duration::from_secs(18);

/// Timeout for closing connections.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long a read is retried during a failover: every other server may have reconnected already.
const MOVES: Duration = Duration::from_secs(1);

/// How long a change is retried: longer than a suspended replica can hold a lock.
const CHANGES: Duration = Duration::from_secs(5);

impl Store {
    /// Opens the database; a missing SQLite file is created. The schema is not changed. For migrations, and for
    /// databases that are filled again from elsewhere or end with their container.
    pub async fn open(database: &config::Database) -> Result<Self, StoreError> {
        dialect::open(database, true).await
    }

    /// The same for servers and for commands on a database: a SQLite file that is missing or has no schema is an error,
    /// because an empty database in its place would hide the loss.
    pub async fn open_existing(database: &config::Database) -> Result<Self, StoreError> {
        let store = dialect::open(database, false).await?;
        if let config::DatabaseAt::File(file) = &database.at {
            let schema = store.schema().await;
            if !matches!(schema, Ok(1..)) {
                store.close().await;
                return Err(schema.err().unwrap_or_else(|| StoreError::Empty(file.clone())));
            }
        }
        Ok(store)
    }

    /// A PostgreSQL that need not be there yet.
    pub fn open_later(server: &config::PostgresAt, most: u32) -> Result<Self, StoreError> {
        dialect::open_later(server, most)
    }

    /// Closes all connections; unresponsive ones are abandoned.
    pub async fn close(&self) {
        let close = async { tokio::join!(self.reads.close(), self.writes.close()) };
        if tokio::time::timeout(GOODBYE, close).await.is_err() {
            tracing::warn!("connections to the database did not close in time");
        }
    }

    /// Whether it can be read now.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.ask(sqlx::query("SELECT 1").execute(&self.reads)).await.map(drop)
    }

    /// A durable change. In PostgreSQL it waits for changes with the same `about`.
    async fn write(&self, about: &str) -> Result<Transaction<'static, Any>, StoreError> {
        self.change(about, Haste::Durable).await
    }

    /// A change of counters: the last ones may be lost with the machine, and it does not wait for long.
    async fn count(&self, about: &str) -> Result<Transaction<'static, Any>, StoreError> {
        self.change(about, Haste::Counts).await
    }

    async fn change(&self, about: &str, haste: Haste) -> Result<Transaction<'static, Any>, StoreError> {
        let begin = self.dialect.begin(haste);
        let Some((lock, number)) = self.lock(about) else { return self.begin(&self.writes, begin).await };
        let turn = self.turns.take(number, haste).await?;
        let mut transaction = self.begin(&self.writes, begin).await?;
        self.ask(sqlx::query(lock).bind(number).execute(&mut *transaction)).await?;
        drop(turn);
        Ok(transaction)
    }

    fn lock(&self, about: &str) -> Option<(&'static str, i64)> {
        self.dialect.lock(&format!("{}{about}", self.locks))
    }

    /// Starts a transaction with a statement that does nothing else. If more failed together with it, the connection
    /// would be in a transaction unknown to sqlx.
    async fn begin(&self, pool: &AnyPool, statement: &'static str) -> Result<Transaction<'static, Any>, StoreError> {
        self.ask(pool.begin_with(statement)).await
    }

    async fn commit(&self, transaction: Transaction<'static, Any>) -> Result<(), StoreError> {
        self.ask(transaction.commit()).await.map_err(|error| match error {
            StoreError::Away(error) => StoreError::Unsure(error),
            error => error,
        })
    }

    /// Removes the statement timeout of a transaction; see [`Self::patiently`].
    async fn take_time(&self, transaction: &mut Transaction<'static, Any>) -> Result<(), StoreError> {
        let Some(statement) = self.dialect.take_time() else { return Ok(()) };
        self.ask(sqlx::query(statement).execute(&mut **transaction)).await.map(drop)
    }

    /// Waits without a timeout, for work that the caller bounds: migrations, counts of whole tables.
    async fn patiently<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        work.await.map_err(|error| self.dialect.sort(error))
    }

    /// Waits for the database with a timeout. During an outage, connections opened before are no longer used.
    async fn ask<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        let answer = match tokio::time::timeout(ANSWER, work).await {
            Ok(answer) => answer.map_err(|error| self.dialect.sort(error)),
            Err(_) => Err(StoreError::Away(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
        };
        if let Err(StoreError::Away(error)) = &answer
            && !dialect::is_about_one_session(error)
        {
            self.trust.is_lost();
        }
        answer
    }
}

/// For a database that another process has locked: 0.3 to 0.6 seconds of pauses in all.
pub const RETRIES: RetryPolicy =
    RetryPolicy::new(6, Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(640) });

/// For requests: retries a read during a failover.
pub async fn read<T, F>(work: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    retry(RETRIES.within(MOVES), StoreError::passes, work).await
}

/// For requests: retries a change that was not made, or that is idempotent (`again`).
pub async fn change<T, F>(again: fn(&StoreError) -> bool, work: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    retry(RETRIES.within(CHANGES), again, work).await
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests;
