//! Maintenance of a database while it serves: reclaims the space of deleted rows, and renews the planner's statistics.

use std::time::{Duration, Instant};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use sqlx::{Any, AnyConnection, AssertSqlSafe, Connection, Row};

use super::dialect::Dialect;
use super::{Store, StoreError};

/// The longest that one may take; less than the one-off job that runs it. PostgreSQL keeps the tables that are done,
/// SQLite reverts.
const LIMIT: Duration = Duration::from_secs(150);
/// The same in a session of PostgreSQL.
const SET_LIMIT: &str = "SET statement_timeout = '150s'";
/// The largest SQLite file that is vacuumed: changes wait until its end, and fail after five seconds.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// The free space that this needs, as a multiple of the file: the new file, and the log through which it is written.
const FREE_SPACE: u64 = 2;
/// Rows of an index that SQLite reads at most.
const ANALYZE_FILE: &str = "PRAGMA analysis_limit = 1000; ANALYZE";
/// Dumps of this database; base backups of the server.
const STATE: &str = "SELECT \
    (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pg_dump'), \
    (SELECT count(*) FROM pg_stat_progress_basebackup)";

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Maintenance {
    /// Reclaims the space of deleted rows.
    Vacuum,
    /// Renews the statistics.
    Analyze,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MaintenanceResult {
    /// `sqlite` or `postgresql`.
    pub database: &'static str,
    /// The size before, in bytes.
    pub bytes_before: u64,
    /// The size after.
    pub bytes_after: u64,
    /// The duration.
    pub milliseconds: u64,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// Not now, or not on this database.
    #[error("{0}")]
    Refused(String),
    /// A standby follows its primary, which is maintained instead.
    #[error("it is a standby")]
    Standby,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Does it, within 150 seconds. Refused while a migration or a backup works on the database.
    pub async fn maintain(&self, task: Maintenance) -> Result<MaintenanceResult, MaintenanceError> {
        let began = Instant::now();
        if self.is_standby().await? {
            return Err(MaintenanceError::Standby);
        }
        let bytes_before = self.size().await?;
        let work = async {
            match self.dialect {
                Dialect::Sqlite => self.maintain_file(task, bytes_before).await,
                Dialect::Postgres => self.maintain_server(task).await,
            }
        };
        let late = |_| MaintenanceError::Refused(format!("it did not end within {} s", LIMIT.as_secs()));
        tokio::time::timeout(LIMIT, work).await.map_err(late)??;
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(MaintenanceResult {
            database: self.dialect.name(),
            bytes_before,
            bytes_after: self.size().await?,
            milliseconds,
        })
    }

    /// Asks outside the pool, which refuses connections to a standby.
    pub(super) async fn is_standby(&self) -> Result<bool, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(false);
        }
        let options = self.writes.connect_options();
        let mut connection = self.ask(AnyConnection::connect_with(&options)).await?;
        let row = self.ask(sqlx::query("SELECT pg_is_in_recovery()").fetch_one(&mut connection)).await;
        let _ = self.ask(connection.close()).await;
        Ok(row?.try_get(0)?)
    }

    /// The size in bytes.
    async fn size(&self) -> Result<u64, StoreError> {
        let row = self
            .one(match self.dialect {
                Dialect::Sqlite => "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
                Dialect::Postgres => "SELECT pg_database_size(current_database())",
            })
            .await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }

    async fn maintain_file(&self, task: Maintenance, bytes: u64) -> Result<(), MaintenanceError> {
        if task == Maintenance::Analyze {
            self.patiently(sqlx::raw_sql(ANALYZE_FILE).execute(&self.writes)).await?;
            return Ok(());
        }
        if bytes > MAX_FILE_BYTES {
            let most = MAX_FILE_BYTES >> 20;
            let why = format!(
                "the file has {} MiB, and with more than {most} MiB requests would fail meanwhile",
                bytes >> 20
            );
            return Err(MaintenanceError::Refused(why));
        }
        let file: String = self
            .one("SELECT file FROM pragma_database_list WHERE name = 'main'")
            .await?
            .try_get(0)
            .map_err(StoreError::from)?;
        let folder = folder_of(Utf8Path::new(&file));
        let free = free_bytes(folder).map_err(super::copy::io)?;
        if free < bytes.saturating_mul(FREE_SPACE) {
            let needed = bytes.saturating_mul(FREE_SPACE) >> 20;
            let why = format!("it needs {needed} MiB of free disk space, and there are {} MiB", free >> 20);
            return Err(MaintenanceError::Refused(why));
        }
        self.patiently(sqlx::raw_sql(AssertSqlSafe(vacuum_within(folder))).execute(&self.writes)).await?;
        // The file shrinks when its log is written into it. Readers may delay that; then SQLite does it later.
        let shrunk = self.patiently(sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.writes)).await;
        if let Err(error) = shrunk {
            tracing::debug!(%error, "the log of the database was not written into its file yet");
        }
        Ok(())
    }

    async fn maintain_server(&self, task: Maintenance) -> Result<(), MaintenanceError> {
        let mut connection = self.ask(self.writes.acquire()).await?;
        let done = self.maintain_by(&mut connection, task).await;
        self.release(&mut connection).await;
        // Its settings end with it.
        let _ = self.ask(connection.close()).await;
        done
    }

    async fn maintain_by(
        &self,
        connection: &mut sqlx::pool::PoolConnection<Any>,
        task: Maintenance,
    ) -> Result<(), MaintenanceError> {
        // Migrations take the same lock.
        self.claim(connection, "schema", "a migration of its schema runs").await?;
        self.refuse_during_backup(connection).await?;
        self.ask(sqlx::raw_sql(SET_LIMIT).execute(&mut **connection)).await?;
        // Tables that another session has locked are left out.
        let statement = match task {
            Maintenance::Vacuum => "VACUUM (SKIP_LOCKED)",
            Maintenance::Analyze => "ANALYZE (SKIP_LOCKED)",
        };
        self.patiently(sqlx::raw_sql(statement).execute(&mut **connection)).await?;
        Ok(())
    }

    /// Takes a lock that ends with the session. Refused with `why` if another session has it.
    pub(super) async fn claim(
        &self,
        connection: &mut AnyConnection,
        about: &str,
        why: &str,
    ) -> Result<(), MaintenanceError> {
        let Some((_, number)) = self.lock(about) else { return Ok(()) };
        let lock = sqlx::query("SELECT pg_try_advisory_lock($1)").bind(number);
        let row = self.ask(lock.fetch_one(&mut *connection)).await?;
        match row.try_get::<bool, _>(0).map_err(StoreError::from)? {
            true => Ok(()),
            false => Err(MaintenanceError::Refused(why.to_owned())),
        }
    }

    /// Releases the locks of a session. PostgreSQL notices later that a session has ended, and until then its locks
    /// would refuse the next command.
    pub(super) async fn release(&self, connection: &mut AnyConnection) {
        let _ = self.ask(sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut *connection)).await;
    }

    /// Refused while a backup reads the database.
    pub(super) async fn refuse_during_backup(&self, connection: &mut AnyConnection) -> Result<(), MaintenanceError> {
        let row = self.ask(sqlx::query(STATE).fetch_one(&mut *connection)).await?;
        let number = |column: usize| row.try_get::<i64, _>(column).map_err(StoreError::from);
        if number(0)? > 0 || number(1)? > 0 {
            return Err(MaintenanceError::Refused("a backup runs".to_owned()));
        }
        Ok(())
    }
}

/// Without the folder, SQLite would write its copy of the file into the temporary folder of the machine: that may be too
/// small, and it is not private. The setting applies to this process.
fn vacuum_within(folder: &Utf8Path) -> String {
    format!("PRAGMA temp_store_directory = '{}'; VACUUM", folder.as_str().replace('\'', "''"))
}

/// The folder of a file.
pub(super) fn folder_of(file: &Utf8Path) -> &Utf8Path {
    file.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(Utf8Path::new("."))
}

pub(super) fn free_bytes(folder: &Utf8Path) -> std::io::Result<u64> {
    let about = rustix::fs::statvfs(folder.as_std_path())?;
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Bench, key, of_postgres, on_both};
    use crate::{DAY_MS, Database, DatabaseAt, PostgresAt, Usage};

    on_both!(maintenance_keeps_the_rows, maintenance_is_not_done_during_a_migration);

    async fn maintenance_keeps_the_rows(bench: Bench) {
        let store = bench.store().await;
        store.put_key(&key("a"), None).await.unwrap();
        let usage = |n: i64| Usage {
            id: uuid::Uuid::now_v7(),
            request_id: format!("{n}-{}", "x".repeat(200)),
            user: "key".into(),
            tenant: "default".into(),
            endpoint: "/v1/generate".into(),
            model: None,
            prompt_tokens: 1,
            generated_tokens: 1,
            charge: None,
            ms: 1,
            status: 200,
            at_ms: n,
        };
        let rows: Vec<Usage> = (0..2000).map(usage).collect();
        store.append_usage(&rows).await.unwrap();
        store.delete_usage(DAY_MS, 2000).await.unwrap();
        for task in [Maintenance::Vacuum, Maintenance::Analyze] {
            let done = store.maintain(task).await.unwrap();
            assert!(done.bytes_before > 0 && done.bytes_after > 0, "{done:?}");
            // A plain VACUUM of PostgreSQL keeps the space for new rows.
            if done.database == "sqlite" && task == Maintenance::Vacuum {
                assert!(done.bytes_after < done.bytes_before, "{done:?}");
                // Of this process: another test may have set its own.
                let folder = store.one("PRAGMA temp_store_directory").await.unwrap().try_get::<String, _>(0).unwrap();
                assert!(!folder.is_empty(), "the copy is not beside the database");
            }
        }
        assert!(store.key("a").await.unwrap().is_some());
        store.put_key(&key("b"), None).await.unwrap();
    }

    async fn maintenance_is_not_done_during_a_migration(bench: Bench) {
        let (store, other) = (bench.store().await, bench.open().await);
        let migration = other.write("schema").await.unwrap();
        match store.maintain(Maintenance::Vacuum).await.unwrap_err() {
            MaintenanceError::Refused(why) => assert!(why.contains("migration"), "{why}"),
            MaintenanceError::Store(error) => assert!(error.passes(), "{error}"),
            MaintenanceError::Standby => panic!("it is no standby"),
        }
        drop(migration);
    }

    #[test]
    fn folder_of_the_copy_is_quoted() {
        let expect = "PRAGMA temp_store_directory = '/srv/o''brien'; VACUUM";
        assert_eq!(vacuum_within(Utf8Path::new("/srv/o'brien")), expect);
    }

    #[tokio::test]
    async fn locks_are_free_before_their_session_ends() {
        let Some((_, _, store)) = of_postgres().await else { return };
        let options = store.writes.connect_options();
        let mut first = AnyConnection::connect_with(&options).await.unwrap();
        let mut next = AnyConnection::connect_with(&options).await.unwrap();
        store.claim(&mut first, "schema", "it is taken").await.unwrap();
        let refused = store.claim(&mut next, "schema", "it is taken").await.unwrap_err();
        assert_eq!(refused.to_string(), "it is taken");
        store.release(&mut first).await;
        store.claim(&mut next, "schema", "it is taken").await.unwrap();
        store.release(&mut next).await;
        for _ in 0..20 {
            store.maintain(Maintenance::Analyze).await.unwrap();
        }
    }

    #[tokio::test]
    async fn maintenance_is_refused_while_a_dump_runs() {
        let Some((cluster, name, store)) = of_postgres().await else { return };
        let url = cluster.url(&name);
        let named = format!("{url}{}application_name=pg_dump", if url.contains('?') { '&' } else { '?' });
        let at = DatabaseAt::Server(PostgresAt::new(&named).unwrap());
        let dump = Store::open(&Database { at, pool_size: 1, max_overflow: 0 }).await.unwrap();
        let session = dump.write("a dump").await.unwrap();
        let refused = store.maintain(Maintenance::Vacuum).await.unwrap_err();
        assert_eq!(refused.to_string(), "a backup runs");
        drop(session);
    }
}
