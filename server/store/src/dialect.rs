//! The differences between SQLite and PostgreSQL: connections, transactions, and the meaning of errors.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use sha2::{Digest, Sha256};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, Connection, Executor, Row};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use url::Url;

use super::{ACQUIRE, Store, StoreError};
use crate::config::{Database, DatabaseAt, PostgresAt};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// The urgency of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    /// Be lost with the machine, once it was acknowledged.
    Durable,
    /// Keep a client waiting: the last counts may be lost with the machine.
    Counts,
}

impl Haste {
    /// The lock timeout, as set in PostgreSQL sessions.
    fn waits(self) -> Duration {
        match self {
            Self::Durable => Duration::from_secs(5),
            Self::Counts => Duration::from_secs(1),
        }
    }
}

/// A change of the requests of batch `$1` whose numbers are in the JSON list `$2`, which answers with the numbers of those that there
/// were. PostgreSQL reads the list once: without statistics, a join reads it for each row.
macro_rules! change_requests {
    ($dialect:expr, $change:literal, $which:literal) => {
        match $dialect {
            Dialect::Sqlite => concat!(
                $change,
                " WHERE batch_id = $1 AND ",
                $which,
                "number IN (SELECT CAST(value AS INTEGER) FROM json_each($2)) RETURNING number"
            ),
            Dialect::Postgres => concat!(
                $change,
                " WHERE batch_id = $1 AND ",
                $which,
                "number = ANY (ARRAY(SELECT CAST(one.number AS BIGINT) FROM json_array_elements_text(CAST($2 AS JSON)) AS one(number))) \
                 RETURNING number"
            ),
        }
    };
}

/// The most reading connections of SQLite: each is a thread, and reads do not get faster with more of them.
const MAX_READERS: u32 = 16;

/// Busy timeout and journal mode. WAL with `NORMAL` loses at most the last commits, and only when the machine itself
/// crashes.
const SQLITE_BEGIN: &str = "PRAGMA busy_timeout = 500; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; \
                            PRAGMA foreign_keys = ON";

/// Timeouts of a session. It starts without a tenant, whatever the role or the URL sets: see [`scope`](super::scope). A
/// suspended replica in the middle of a change holds its locks and blocks other replicas. Our code never pauses between
/// two statements, so the idle timeout can end such a change quickly.
const POSTGRES_BEGIN: &str = "SELECT set_config('textnlp.tenant', '', false), set_config('lock_timeout', '5s', false), \
                              set_config('statement_timeout', '12s', false), \
                              set_config('idle_in_transaction_session_timeout', '3s', false), pg_is_in_recovery()";

/// A connection that was idle for this long is pinged before use.
const IDLE: Duration = Duration::from_secs(5);

/// Timeout of that ping.
const PING: Duration = Duration::from_secs(1);

/// How long an abandoned connection may take to finish its last statement: longer than any lock timeout.
const SETTLES: Duration = Duration::from_secs(6);

/// Changes of different things that one process waits for at once, about.
const TURNS: usize = 256;

impl Dialect {
    /// Its name in results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgresql",
        }
    }

    /// The statement that starts a change.
    pub(super) fn begin(self, haste: Haste) -> &'static str {
        match (self, haste) {
            // IMMEDIATE takes the write lock at once: a deferred transaction that has read cannot wait for it.
            (Self::Sqlite, _) => "BEGIN IMMEDIATE",
            (Self::Postgres, Haste::Durable) => "BEGIN",
            (Self::Postgres, Haste::Counts) => {
                "BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = '1s'"
            }
        }
    }

    /// Serializes changes with the same `about`, by a lock that is held until the transaction ends.
    pub(super) fn lock(self, about: &str) -> Option<(&'static str, i64)> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => {
                let digest = Sha256::digest(about.as_bytes());
                let number = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte)) as i64;
                Some(("SELECT pg_advisory_xact_lock($1)", number))
            }
        }
    }

    /// The statement that starts a transaction with read access to all tenants.
    pub(super) fn begin_read_all(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN",
            Self::Postgres => "BEGIN READ ONLY; SET LOCAL textnlp.tenant = '*'",
        }
    }

    /// The statement that sets the tenant of a transaction. `narrows`: until its end, the transaction has the rights of
    /// the tenants' role only.
    pub(super) fn set_tenant(self, narrows: bool) -> Option<&'static str> {
        match (self, narrows) {
            (Self::Sqlite, _) => None,
            (Self::Postgres, false) => Some("SELECT set_config('textnlp.tenant', $1, true)"),
            (Self::Postgres, true) => Some(
                "SELECT set_config('textnlp.tenant', $1, true), set_config('role', session_user || '_tenant', true)",
            ),
        }
    }

    /// Inserts lines of a file of a batch: the tenant, the file, and a list in JSON of the numbers of the lines with their texts. One
    /// statement, because each takes a round trip.
    pub(super) fn insert_lines(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "INSERT INTO batch_lines (tenant_id, file_id, number, content) \
                 SELECT $1, $2, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each($3)"
            }
            Self::Postgres => {
                "INSERT INTO batch_lines (tenant_id, file_id, number, content) \
                 SELECT $1, $2, CAST(pair->>0 AS BIGINT), pair->>1 FROM json_array_elements(CAST($3 AS JSON)) AS one(pair)"
            }
        }
    }

    /// Claims requests of a batch, and answers with the numbers of those that there were: the batch, a list of numbers in JSON, the claim, and
    /// when it ends.
    pub(super) fn claim_requests(self) -> &'static str {
        change_requests!(self, "UPDATE batch_requests SET claim = $3, available_at = $4, attempts = attempts + 1", "")
    }

    /// Deletes claimed requests of a batch, and answers with the numbers of those that there were: the batch, a list of numbers in JSON, and
    /// the claim.
    pub(super) fn delete_requests(self) -> &'static str {
        change_requests!(self, "DELETE FROM batch_requests", "claim = $3 AND ")
    }

    /// The statement that removes the timeout within a transaction.
    pub(super) fn take_time(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some("SET LOCAL statement_timeout = 0"),
        }
    }

    /// Counts the tables of a name.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = $1",
            Self::Postgres => {
                "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = $1"
            }
        }
    }

    /// Classifies an error.
    pub(super) fn sort(self, error: sqlx::Error) -> StoreError {
        let code = error.as_database_error().and_then(|inner| inner.code()).unwrap_or_default().into_owned();
        match (self, &error) {
            (_, sqlx::Error::PoolTimedOut) => StoreError::Busy(error),
            // Primary result codes: 5 busy, 6 locked, 13 full. Extended codes hold them in the lowest byte.
            (Self::Sqlite, _) => match code.parse::<u32>().map(|code| code & 0xff) {
                Ok(5 | 6) => StoreError::Busy(error),
                Ok(13) => StoreError::Full(error),
                _ => StoreError::Failed(error),
            },
            // An untrusted certificate is reported as invalid data.
            (Self::Postgres, sqlx::Error::Io(io)) if io.kind() == std::io::ErrorKind::InvalidData => {
                StoreError::Failed(error)
            }
            (Self::Postgres, sqlx::Error::Io(_) | sqlx::Error::BeginFailed) => StoreError::Away(error),
            (Self::Postgres, _) => match code.as_str() {
                // Serialization, deadlock, a lock or a statement that took too long, too many connections.
                "40001" | "40P01" | "55P03" | "57014" | "53300" => StoreError::Busy(error),
                // It is shutting down, crashed, starting, now a replica, or it ended our session.
                "57P01" | "57P02" | "57P03" | "57P05" | "25006" | "25P03" => StoreError::Away(error),
                code if code.starts_with("08") => StoreError::Away(error),
                "53100" => StoreError::Full(error),
                _ => StoreError::Failed(error),
            },
        }
    }
}

/// Within one process only one task per lock waits in the database; the others wait here. So most connections stay
/// available for other work.
#[derive(Debug)]
pub(super) struct Turns([Mutex<()>; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Turns {
    pub(super) async fn take(&self, number: i64, haste: Haste) -> Result<MutexGuard<'_, ()>, StoreError> {
        let late = |_| {
            let why = "other requests of this process change the same data";
            StoreError::Busy(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, why)))
        };
        let turn = &self.0[number.unsigned_abs() as usize % TURNS];
        timeout(haste.waits(), turn.lock()).await.map_err(late)
    }
}

/// Since when connections are trusted: older ones predate an outage.
#[derive(Debug, Default)]
pub(super) struct Trust(std::sync::Mutex<Option<Instant>>);

impl Trust {
    pub(super) fn is_lost(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection of this age was opened since then.
    fn covers(&self, age: Duration) -> bool {
        let lost = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lost.is_none_or(|lost| age < lost.elapsed())
    }
}

/// `creates`: a SQLite file that is missing, and its folder.
pub(super) async fn open(database: &Database, creates: bool) -> Result<Store, StoreError> {
    sqlx::any::install_default_drivers();
    match &database.at {
        DatabaseAt::File(file) => open_sqlite(file, database, creates).await,
        DatabaseAt::Server(server) => open_postgres(server, database).await,
    }
}

async fn open_sqlite(file: &Utf8Path, database: &Database, creates: bool) -> Result<Store, StoreError> {
    let io = |error| StoreError::Failed(sqlx::Error::Io(error));
    if !creates && !tokio::fs::try_exists(file).await.map_err(io)? {
        return Err(StoreError::Missing(file.to_owned()));
    }
    if let Some(folder) = file.parent().filter(|folder| creates && !folder.as_str().is_empty()) {
        tokio::fs::create_dir_all(folder).await.map_err(io)?;
    }
    let path = std::path::absolute(file).map_err(io)?;
    let encoded = Url::from_file_path(&path).map_err(|()| StoreError::Address(format!("{file} is not a path")))?;
    let in_mode = |mode: &str| options(&format!("sqlite://{}?mode={mode}", encoded.path()));
    // Only the first connection creates the file: a later one would replace a lost database by an empty one.
    let created = in_mode(if creates { "rwc" } else { "rw" })?;
    let options = in_mode("rw")?;
    let sort = |error| Dialect::Sqlite.sort(error);
    let pool = || {
        AnyPoolOptions::new()
            .acquire_timeout(ACQUIRE)
            .after_connect(|connection, _| Box::pin(async move { connection.execute(SQLITE_BEGIN).await.map(drop) }))
    };
    first(&created, SQLITE_BEGIN).await.map_err(sort)?;
    let writes = pool().max_connections(1).connect_with(options.clone()).await.map_err(sort)?;
    let reads = pool()
        .max_connections((database.pool_size + database.max_overflow).min(MAX_READERS))
        .min_connections(0)
        .idle_timeout(Duration::from_secs(60))
        .connect_lazy_with(options);
    private(file);
    Ok(Store {
        dialect: Dialect::Sqlite,
        reads,
        writes,
        trust: Default::default(),
        turns: Default::default(),
        locks: "",
        narrows: Default::default(),
    })
}

/// Makes the file private: it contains key digests and usage.
fn private(file: &Utf8Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(error) = std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)) {
        tracing::warn!(%file, %error, "the database's file mode could not be set");
    }
}

async fn open_postgres(server: &PostgresAt, database: &Database) -> Result<Store, StoreError> {
    let options = with_own_password(server.url().map_err(StoreError::Address)?)?;
    first(&options, POSTGRES_BEGIN).await.map_err(|error| Dialect::Postgres.sort(error))?;
    Ok(postgres(options, database.pool_size + database.max_overflow, None))
}

/// A PostgreSQL that may be unavailable yet: queries fail until it is reachable.
pub(super) fn open_later(server: &PostgresAt, most: u32) -> Result<Store, StoreError> {
    sqlx::any::install_default_drivers();
    Ok(postgres(with_own_password(server.url().map_err(StoreError::Address)?)?, most, None))
}

/// The same with this schema instead of the usual ones.
pub(super) fn open_schema(server: &PostgresAt, schema: &'static str, most: u32) -> Result<Store, StoreError> {
    Ok(postgres(with_own_password(server.url().map_err(StoreError::Address)?)?, most, Some(schema)))
}

fn postgres(options: AnyConnectOptions, most: u32, schema: Option<&'static str>) -> Store {
    let trust = Arc::new(Trust::default());
    let of_pool = trust.clone();
    let pool = AnyPoolOptions::new()
        .acquire_timeout(ACQUIRE)
        .max_connections(most)
        .min_connections(0)
        .idle_timeout(Duration::from_secs(600))
        // An hour: a server that is found by name may have moved.
        .max_lifetime(Duration::from_secs(3600))
        .test_before_acquire(false)
        .before_acquire(move |connection, about| {
            let trust = of_pool.clone();
            Box::pin(async move {
                if !trust.covers(about.age) {
                    return Ok(false);
                }
                Ok(about.idle_for < IDLE || matches!(timeout(PING, connection.ping()).await, Ok(Ok(()))))
            })
        })
        .after_release(|connection, _| Box::pin(is_settled(connection)))
        .after_connect(move |connection, _| Box::pin(greet(connection, schema)))
        .connect_lazy_with(options);
    Store {
        dialect: Dialect::Postgres,
        reads: pool.clone(),
        writes: pool,
        trust,
        turns: Default::default(),
        locks: "",
        narrows: Default::default(),
    }
}

/// Whether a returned connection has no open transaction. If a task is dropped while its transaction starts, sqlx does
/// not know about that transaction. And an unresponsive server would keep the connection until the TCP timeout.
async fn is_settled(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    let query = connection.fetch_one("SELECT now() = statement_timestamp()");
    match timeout(SETTLES, query).await {
        Ok(row) => row?.try_get(0),
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Sets up a session. A replica is rejected, because it cannot be written to.
async fn greet(connection: &mut AnyConnection, schema: Option<&'static str>) -> Result<(), sqlx::Error> {
    let row = connection.fetch_one(POSTGRES_BEGIN).await?;
    if row.try_get::<bool, _>(4)? {
        return Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::ConnectionRefused,
            "it is a read-only replica",
        )));
    }
    let Some(schema) = schema else { return Ok(()) };
    // Not an option of the connection: PgBouncer refuses those.
    let set = sqlx::query("SELECT set_config('search_path', $1, false)").bind(schema);
    set.execute(&mut *connection).await?;
    let current = sqlx::query("SELECT coalesce(current_schema()::text, '')").fetch_one(&mut *connection).await?;
    let current: String = current.try_get(0)?;
    if current != schema {
        let why = format!("the session uses the schema `{current}` and not {schema}");
        return Err(sqlx::Error::Io(std::io::Error::other(why)));
    }
    Ok(())
}

/// Opens one connection outside of the pool, which would retry and report only a timeout.
async fn first(options: &AnyConnectOptions, begin: &'static str) -> Result<(), sqlx::Error> {
    let timed_out = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    let connect = timeout(ACQUIRE, AnyConnection::connect_with(options));
    let mut connection = connect.await.map_err(timed_out)??;
    connection.execute(begin).await?;
    connection.close().await
}

/// Whether the error says that only this session was terminated.
pub(super) fn is_about_one_session(error: &sqlx::Error) -> bool {
    // It was idle in a transaction for longer than it may.
    error.as_database_error().and_then(|inner| inner.code()).is_some_and(|code| code == "25P03")
}

/// The options of a server. Without a password in the address, the driver would send that of the caller's `~/.pgpass`.
fn with_own_password(mut url: Url) -> Result<AnyConnectOptions, StoreError> {
    if url.password().is_none() && !url.query_pairs().any(|(name, _)| name == "password") {
        url.query_pairs_mut().append_pair("password", "");
    }
    options(url.as_str())
}

fn options(url: &str) -> Result<AnyConnectOptions, StoreError> {
    // The driver's own message would repeat the address, and with it a password.
    url.parse().map_err(|_| StoreError::Address("the database's address is not a URL".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_file_of_the_caller_is_not_used() {
        let query = |url: &str| {
            let options = with_own_password(url.parse().unwrap()).unwrap();
            options.database_url.query().unwrap_or_default().to_owned()
        };
        assert_eq!(query("postgresql://u@db/x?sslmode=require"), "sslmode=require&password=");
        assert_eq!(query("postgresql://u:own@db/x"), "");
        assert_eq!(query("postgresql://u@db/x?password=own"), "password=own");
    }
}
