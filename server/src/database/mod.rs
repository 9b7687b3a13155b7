//! What several replicas share: keys, allowances, budgets and usage, in one SQLite file or one PostgreSQL database.
//!
//! The statements are the same for both, by sqlx's `any` driver; where the two differ is [`dialect`]'s. SQLite has one writer at a time, so
//! writes go through one connection of their own: waiting for it in an async queue is cheaper than in its busy handler. In PostgreSQL
//! writers name what they write about, and wait only for those who write about the same. A store that is locked, full or gone is a
//! [`StoreError`], never a panic.

mod ask;
mod budget;
mod copy;
mod dialect;
mod keys;
mod migrate;
mod sites;
mod tickets;
mod usage;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Any, AnyPool, Transaction};

use dialect::{Dialect, Haste, Trust, Turns};

pub use ask::{Found, Obstacle, ask};
pub use budget::{BudgetRefusal, Reservation};
pub use copy::{Copied, check, copy};
pub use keys::{ApiKey, KeyPut};
pub use migrate::{Migrated, newest_schema};
pub use sites::UsageRow;
pub use tickets::{StreamTicket, TooManyTickets};
pub use usage::{Usage, UsageLog};

use crate::config;
use crate::retry::{Backoff, retry_within};

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds it; a moment later it may work.
    #[error("the database is busy")]
    Busy(#[source] sqlx::Error),
    /// It answers nobody, or only readers: it is starting, stopping or another one takes its place.
    #[error("the database is away")]
    Away(#[source] sqlx::Error),
    /// It went away while it was told to keep a change: nobody knows whether it has.
    #[error("the database went away, and may or may not have kept the change")]
    Unsure(#[source] sqlx::Error),
    /// No room on its disk.
    #[error("the database's disk is full")]
    Full(#[source] sqlx::Error),
    /// Anything else.
    #[error("the database failed")]
    Failed(#[from] sqlx::Error),
    /// Its schema is not one that this program works with.
    #[error("{0}")]
    Schema(String),
    /// It cannot be connected to as it is configured.
    #[error("{0}")]
    Address(String),
}

impl StoreError {
    /// Whether nothing was done, and the same call may work a moment later.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::Away(_))
    }

    /// The same of a call that may be made twice: what it does is done once.
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
}

/// How long a request waits for a connection before it is told that the store is busy.
const ACQUIRE: Duration = Duration::from_secs(5);

/// How long one statement may take, and the wait for its connection: a server that died with its machine says nothing, for hours.
const ANSWER: Duration = Duration::from_secs(18);

/// How long connections have to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long a request waits for a database that has just moved: every other server may have found it already.
const MOVES: Duration = Duration::from_secs(1);

/// How long a request tries to change something: longer than a change of others that stands still.
const CHANGES: Duration = Duration::from_secs(5);

impl Store {
    /// Opens the database; an SQLite file that is not there is made. The schema is left as it is.
    pub async fn open(database: &config::Database) -> Result<Self, StoreError> {
        dialect::open(database).await
    }

    /// A PostgreSQL that need not be there yet.
    pub(crate) fn open_later(server: &config::PostgresAt, most: u32) -> Result<Self, StoreError> {
        dialect::open_later(server, most)
    }

    /// Closes all connections; one that does not answer is left to itself.
    pub async fn close(&self) {
        let close = async { tokio::join!(self.reads.close(), self.writes.close()) };
        if tokio::time::timeout(GOODBYE, close).await.is_err() {
            tracing::warn!("connections to the database did not end in time");
        }
    }

    /// Whether it can be read now.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.ask(sqlx::query("SELECT 1").execute(&self.reads)).await.map(drop)
    }

    /// A durable change. In PostgreSQL it waits for others about the same thing.
    async fn write(&self, about: &str) -> Result<Transaction<'static, Any>, StoreError> {
        self.change(about, Haste::Durable).await
    }

    /// A change of counters: the last ones may be lost with the machine, and it does not wait for long.
    async fn count(&self, about: &str) -> Result<Transaction<'static, Any>, StoreError> {
        self.change(about, Haste::Counts).await
    }

    async fn change(&self, about: &str, haste: Haste) -> Result<Transaction<'static, Any>, StoreError> {
        let begin = self.dialect.begin(haste);
        let Some((lock, number)) = self.dialect.lock(about) else { return self.begin(&self.writes, begin).await };
        let turn = self.turns.take(number, haste).await?;
        let mut transaction = self.begin(&self.writes, begin).await?;
        self.ask(sqlx::query(lock).bind(number).execute(&mut *transaction)).await?;
        drop(turn);
        Ok(transaction)
    }

    /// Begins a transaction with a statement that does nothing else: what fails together with the beginning leaves a connection in a
    /// transaction that sqlx knows nothing of.
    async fn begin(&self, pool: &AnyPool, statement: &'static str) -> Result<Transaction<'static, Any>, StoreError> {
        self.ask(pool.begin_with(statement)).await
    }

    /// From here on a transaction sees one tenant's rows, where the database can hold it to that.
    async fn narrow(&self, transaction: &mut Transaction<'static, Any>, tenant: &str) -> Result<(), StoreError> {
        let Some(statement) = self.dialect.narrow() else { return Ok(()) };
        self.ask(sqlx::query(statement).bind(tenant).execute(&mut **transaction)).await.map(drop)
    }

    async fn commit(&self, transaction: Transaction<'static, Any>) -> Result<(), StoreError> {
        self.ask(transaction.commit()).await.map_err(|error| match error {
            StoreError::Away(error) => StoreError::Unsure(error),
            error => error,
        })
    }

    /// From here on a transaction's statements may take as long as they take; see [`Self::patiently`].
    async fn take_time(&self, transaction: &mut Transaction<'static, Any>) -> Result<(), StoreError> {
        let Some(statement) = self.dialect.take_time() else { return Ok(()) };
        self.ask(sqlx::query(statement).execute(&mut **transaction)).await.map(drop)
    }

    /// Waits for what whoever deploys bounds: migrations, counts of whole tables.
    async fn patiently<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        work.await.map_err(|error| self.dialect.sort(error))
    }

    /// Waits for the database's answer, for a bounded time. Where it is away, connections made before now are not used again.
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

/// For a request: reads again where the database has just moved.
pub(crate) async fn read<T, F>(work: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    retry_within(MOVES, Backoff::DATABASE, StoreError::passes, work).await
}

/// For a request: changes again what was not changed, and what may be changed twice (`again`).
pub(crate) async fn change<T, F>(again: fn(&StoreError) -> bool, work: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    retry_within(CHANGES, Backoff::DATABASE, again, work).await
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
pub(crate) mod tests;
