//! What several replicas share: keys, allowances, budgets and usage, in one SQLite file.
//!
//! Reads go through a pool, writes through one connection of their own: SQLite has one writer at a time, and waiting for it in
//! an async queue is cheaper than in its busy handler. A store that is locked, full or gone is a [`StoreError`], never a panic.

mod budget;
mod copy;
mod keys;
mod migrate;
mod sites;
mod tickets;
mod usage;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::Utf8Path;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

pub use budget::{BudgetRefusal, Reservation};
pub use copy::{Copied, check, copy};
pub use keys::{ApiKey, KeyPut};
pub use migrate::{Migrated, newest_schema};
pub use sites::UsageRow;
pub use tickets::{StreamTicket, TooManyTickets};
pub use usage::{Usage, UsageLog};

use crate::config;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds it; a moment later it may work.
    #[error("the database is busy")]
    Busy(#[source] sqlx::Error),
    /// No room on its disk.
    #[error("the database's disk is full")]
    Full(#[source] sqlx::Error),
    /// Anything else.
    #[error("the database failed")]
    Failed(#[from] sqlx::Error),
    /// Its schema is not one that this program works with.
    #[error("{0}")]
    Schema(String),
}

impl StoreError {
    /// Whether the same call may work a moment later.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Busy(_))
    }

    fn sort(error: sqlx::Error) -> Self {
        // Primary result codes of SQLite: 5 busy, 6 locked, 13 full. Extended codes hold them in the lowest byte.
        let code = match &error {
            sqlx::Error::Database(inner) => {
                inner.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff)
            }
            _ => None,
        };
        match code {
            Some(5 | 6) => Self::Busy(error),
            Some(13) => Self::Full(error),
            _ if matches!(error, sqlx::Error::PoolTimedOut) => Self::Busy(error),
            _ => Self::Failed(error),
        }
    }
}

/// The shared store.
#[derive(Debug, Clone)]
pub struct Store {
    reads: SqlitePool,
    writes: SqlitePool,
}

/// How long SQLite waits for another process's write.
const BUSY: Duration = Duration::from_millis(500);

/// How long a request waits for a connection before it is told that the store is busy.
const ACQUIRE: Duration = Duration::from_secs(5);

/// The most reading connections: each is a thread, and reads of SQLite do not get faster with more of them.
const MAX_READERS: u32 = 16;

impl Store {
    /// Opens the file, and makes it if it is not there. The schema is left as it is.
    pub async fn open(database: &config::Database) -> Result<Self, StoreError> {
        if let Some(folder) = database.file.parent().filter(|folder| !folder.as_str().is_empty()) {
            tokio::fs::create_dir_all(folder).await.map_err(|error| StoreError::Failed(sqlx::Error::Io(error)))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(&database.file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode this loses nothing but the last commits, and those only when the machine itself goes down.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY)
            .foreign_keys(true);
        let writes = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE)
            .connect_with(options.clone())
            .await
            .map_err(StoreError::sort)?;
        let reads = SqlitePoolOptions::new()
            .max_connections((database.pool_size + database.max_overflow).min(MAX_READERS))
            .min_connections(0)
            .idle_timeout(Duration::from_secs(60))
            .acquire_timeout(ACQUIRE)
            .connect_lazy_with(options);
        private(&database.file);
        Ok(Self { reads, writes })
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.reads.close().await;
        self.writes.close().await;
    }

    /// Whether it can be read now.
    pub async fn check(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.reads).await.map(drop).map_err(StoreError::sort)
    }

    async fn write(&self) -> Result<Transaction<'_, Sqlite>, StoreError> {
        // IMMEDIATE takes the write lock at once: a deferred transaction that read first cannot wait for it later.
        self.writes.begin_with("BEGIN IMMEDIATE").await.map_err(StoreError::sort)
    }
}

/// Key digests and usage are nobody else's business.
fn private(file: &Utf8Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(error) = std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)) {
        tracing::warn!(%file, %error, "the database's file mode could not be set");
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) async fn open(folder: &std::path::Path) -> Store {
        let file = camino::Utf8PathBuf::from_path_buf(folder.join("textnlp.db")).unwrap();
        Store::open(&config::Database { file, pool_size: 2, max_overflow: 2 }).await.unwrap()
    }

    pub(crate) async fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        (folder, store)
    }

    pub(crate) fn key(public_id: &str) -> ApiKey {
        ApiKey {
            public_id: public_id.into(),
            sha256: "0".repeat(64),
            tenant: "default".into(),
            name: "test".into(),
            scopes: vec!["*".into()],
            rate_limit: None,
            token_rate_limit: None,
            token_limit: None,
            created_at: 1,
            expires_at: None,
            revoked_at: None,
        }
    }

    #[tokio::test]
    async fn a_file_that_another_process_holds_is_busy_and_one_that_is_no_database_fails() {
        let (folder, store) = store().await;
        store.prepare().await.unwrap();
        let other = open(folder.path()).await;
        let held = other.write().await.unwrap();
        assert!(matches!(store.put_key(&key("a")).await, Err(StoreError::Busy(_))));
        assert_eq!(store.key("a").await.unwrap(), None, "readers go on");
        drop(held);
        let file = folder.path().join("broken.db");
        std::fs::write(&file, "this is no database, not even a small one ".repeat(100)).unwrap();
        let file = camino::Utf8PathBuf::from_path_buf(file).unwrap();
        assert!(Store::open(&config::Database { file, pool_size: 1, max_overflow: 0 }).await.is_err());
    }

    #[tokio::test]
    async fn a_full_disk_is_said_so() {
        let (_folder, store) = store().await;
        store.prepare().await.unwrap();
        // SQLite's own page limit gives the same result code as a disk without room.
        sqlx::query("PRAGMA max_page_count = 1").execute(&store.writes).await.unwrap();
        let mut failed = None;
        for n in 0..2000 {
            if let Err(error) = store.put_key(&ApiKey { name: "x".repeat(900), ..key(&format!("{n:016}")) }).await {
                failed = Some(error);
                break;
            }
        }
        assert!(matches!(failed, Some(StoreError::Full(_))), "{failed:?}");
    }
}
