//! Backup of the live database: a consistent, verified snapshot.

use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use camino::Utf8Path;
use serde::Serialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Any, ConnectOptions, Connection, Row, Transaction};

use super::dialect::Dialect;
use super::scope::Job;
use super::{Store, StoreError};
use crate::config::{Database, DatabaseAt, PostgresAt};
use crate::programs;

/// The contents of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// The schema; 0 for a database that was never used.
    pub schema: u64,
    /// API keys.
    pub keys: u64,
    /// Requests that are accounted for.
    pub usage: u64,
    /// The length of the file.
    pub bytes: u64,
}

/// Busy timeout: a backup is not urgent and may wait long for a writer.
const BUSY: Duration = Duration::from_secs(30);

/// Copies a database to a file that must not exist: SQLite as SQLite, PostgreSQL in the format of `pg_restore`.
pub async fn copy(database: &Database, to: &Utf8Path) -> Result<Copied, StoreError> {
    // Created here so that it is private from the start.
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(io)?;
    let copied = match &database.at {
        DatabaseAt::File(from) => copy_file(from, to).await?,
        DatabaseAt::Server(server) => dump(server, database, to).await?,
    };
    made.sync_all().map_err(io)?;
    Ok(copied)
}

pub(super) fn io(error: std::io::Error) -> StoreError {
    StoreError::Failed(sqlx::Error::Io(error))
}

/// A dump, and the row counts of the same snapshot.
async fn dump(server: &PostgresAt, database: &Database, to: &Utf8Path) -> Result<Copied, StoreError> {
    let store = Store::open(database).await?;
    let schema = u64::from(store.schema().await?);
    let row = store.one("SELECT current_setting('server_version_num')::bigint / 10000").await?;
    let version = u32::try_from(row.try_get::<i64, _>(0)?).unwrap_or(u32::MAX);
    let program = programs::find("pg_dump", version).ok_or_else(|| {
        StoreError::Address(format!(
            "pg_dump of PostgreSQL {version} is not installed: apt-get install postgresql-client-{version}"
        ))
    })?;
    // Other sessions can use the exported snapshot while this transaction is open.
    let mut moment = store.begin(&store.writes, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    store.widen(&mut moment, Job::Backup).await?;
    let number = async |moment: &mut Transaction<'static, Any>, text: &'static str| -> Result<u64, StoreError> {
        let row = store.patiently(sqlx::query(text).fetch_one(&mut **moment)).await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    };
    store.take_time(&mut moment).await?;
    // It waits for the program that dumps.
    let waits = sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0");
    store.ask(waits.execute(&mut *moment)).await?;
    let row = store.ask(sqlx::query("SELECT pg_export_snapshot()").fetch_one(&mut *moment)).await?;
    let snapshot = format!("--snapshot={}", row.try_get::<String, _>(0)?);
    let (mut keys, mut usage) = (0, 0);
    if schema > 0 {
        keys = number(&mut moment, "SELECT count(*) FROM api_keys").await?;
        usage = number(&mut moment, "SELECT count(*) FROM api_usage").await?;
    }
    let file = format!("--file={to}");
    // Rows of all tenants, also for a role that row security holds. A benchmark may drop its tables meanwhile.
    let arguments = [
        "--format=custom",
        "--no-owner",
        "--no-privileges",
        "--enable-row-security",
        "--exclude-schema=textnlp_benchmark",
        "--no-password",
        &snapshot,
        &file,
    ];
    let url = server.url().map_err(StoreError::Address)?;
    programs::run(&program, &url, &arguments).await.map_err(StoreError::Address)?;
    drop(moment);
    store.close().await;
    let bytes = std::fs::metadata(to).map_err(io)?.len();
    Ok(Copied { schema, keys, usage, bytes })
}

/// Copies `from` to `to`, an empty file, with SQLite's backup. Writers continue; later writes are not in the copy.
async fn copy_file(from: &Utf8Path, to: &Utf8Path) -> Result<Copied, StoreError> {
    let mut source = open(from).await?;
    let into = sqlx::query("VACUUM INTO ?").bind(to.as_str()).execute(&mut source);
    into.await.map_err(|error| Dialect::Sqlite.sort(error))?;
    source.close().await.map_err(|error| Dialect::Sqlite.sort(error))?;
    check(to).await
}

/// Verifies a whole database file and returns its contents.
pub async fn check(file: &Utf8Path) -> Result<Copied, StoreError> {
    let mut database = open(file).await?;
    let result = sqlx::query("PRAGMA integrity_check(1)")
        .fetch_one(&mut database)
        .await
        .map_err(|error| Dialect::Sqlite.sort(error))?;
    let result: String = result.get(0);
    if result != "ok" {
        return Err(StoreError::Schema(format!("{file} is damaged: {result}")));
    }
    let schema = count(&mut database, "schema_version").await?;
    let keys = count(&mut database, "api_keys").await?;
    let usage = count(&mut database, "api_usage").await?;
    database.close().await.map_err(|error| Dialect::Sqlite.sort(error))?;
    let bytes = std::fs::metadata(file).map_err(io)?.len();
    Ok(Copied { schema, keys, usage, bytes })
}

async fn open(file: &Utf8Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(false).busy_timeout(BUSY);
    options.connect().await.map_err(|error| Dialect::Sqlite.sort(error))
}

/// How many rows a table has; a table that is not there yet has none.
async fn count(database: &mut SqliteConnection, table: &'static str) -> Result<u64, StoreError> {
    let there = sqlx::query("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?");
    let there: i64 =
        there.bind(table).fetch_one(&mut *database).await.map_err(|error| Dialect::Sqlite.sort(error))?.get(0);
    if there == 0 {
        return Ok(0);
    }
    let query = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    let rows: i64 = sqlx::query(query).fetch_one(database).await.map_err(|error| Dialect::Sqlite.sort(error))?.get(0);
    Ok(rows.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, key};
    use super::*;

    fn path(folder: &tempfile::TempDir, name: &str) -> camino::Utf8PathBuf {
        camino::Utf8PathBuf::from_path_buf(folder.path().join(name)).unwrap()
    }

    fn file(path: camino::Utf8PathBuf) -> Database {
        Database { at: DatabaseAt::File(path), pool_size: 1, max_overflow: 0 }
    }

    #[tokio::test]
    async fn postgres_dump_contains_all_tenants_and_is_restorable() {
        let Some((cluster, name, store)) = super::super::tests::of_postgres().await else { return };
        for tenant in ["acme", "globex"] {
            store.put_key(&super::super::ApiKey { tenant: tenant.into(), ..key(tenant) }, None).await.unwrap();
        }
        cluster.sql(&name, "CREATE SCHEMA textnlp_benchmark AUTHORIZATION textnlp");
        let folder = tempfile::tempdir().unwrap();
        let to = path(&folder, "textnlp.dump");
        let at = |name: &str| {
            let at = DatabaseAt::Server(PostgresAt::new(&cluster.url(name)).unwrap());
            Database { at, pool_size: 1, max_overflow: 0 }
        };
        let copied = copy(&at(&name), &to).await.unwrap();
        assert_eq!((copied.keys, copied.usage, copied.schema), (2, 0, u64::from(super::super::newest_schema())));
        let other = cluster.database();
        let url = PostgresAt::new(&cluster.url(&other)).unwrap().url().unwrap();
        let program = programs::find("pg_restore", 15).unwrap();
        programs::run(&program, &url, &["--exit-on-error", "--no-owner", &format!("--dbname={other}"), to.as_str()])
            .await
            .unwrap();
        let back = Store::open(&at(&other)).await.unwrap();
        assert_eq!(back.keys().await.unwrap(), store.keys().await.unwrap());
        back.prepare().await.unwrap();
        let seen = cluster.sql(&other, "SET ROLE textnlp; SELECT count(*) FROM api_keys");
        assert_eq!(seen, "0", "row security came along");
        let left = cluster.sql(&other, "SELECT count(*) FROM pg_namespace WHERE nspname = 'textnlp_benchmark'");
        assert_eq!(left, "0", "tables of a benchmark are in the dump");
    }

    #[tokio::test]
    async fn restore_in_a_cluster_returns_the_rights_of_tenants_to_running_servers() {
        let Some((cluster, name, store)) = super::super::tests::of_postgres().await else { return };
        let folder = tempfile::tempdir().unwrap();
        let dump = path(&folder, "textnlp.dump");
        let at = PostgresAt::new(&cluster.url(&name)).unwrap();
        let url = at.url().unwrap();
        copy(&Database { at: DatabaseAt::Server(at), pool_size: 1, max_overflow: 0 }, &dump).await.unwrap();
        // As the job of the cluster restores it.
        let into = format!("--dbname={name}");
        let privileges = ["--no-owner", "--no-privileges"];
        let whole = ["--clean", "--if-exists", "--exit-on-error", "--single-transaction", &into, dump.as_str()];
        let program = programs::find("pg_restore", 15).unwrap();
        programs::run(&program, &url, &[&privileges[..], &whole[..]].concat()).await.unwrap();
        let counted = async || {
            let mut narrow = store.tenant("acme").read().await.unwrap();
            sqlx::query("SELECT count(*) FROM stream_tickets").fetch_one(&mut *narrow).await.map(drop)
        };
        let refused = counted().await.unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{refused}");
        let job = include_str!("../../../templates/kubernetes/backup.sh");
        let (statement, _) = job.split_once("<<'SQL'\n").unwrap().1.split_once("\nSQL\n").unwrap();
        cluster.sql(&name, &format!("SET SESSION AUTHORIZATION textnlp; {statement}"));
        counted().await.unwrap();
    }

    #[tokio::test]
    async fn backup_is_consistent_during_writes_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let bench = Bench::sqlite();
        let (store, folder) = (bench.store().await, &bench.folder);
        store.put_key(&key("before"), None).await.unwrap();
        let held = store.write("").await.unwrap();
        let to = path(folder, "copy.db");
        let copied = copy(&file(path(folder, "textnlp.db")), &to).await.unwrap();
        drop(held);
        assert_eq!((copied.keys, copied.usage), (1, 0));
        assert_eq!(copied.schema, u64::from(super::super::newest_schema()));
        assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!path(folder, "copy.db-wal").exists(), "a copy is one file");
        assert!(copy(&file(path(folder, "textnlp.db")), &to).await.is_err(), "nothing is written over");
    }

    #[tokio::test]
    async fn missing_or_damaged_database_cannot_be_backed_up() {
        let folder = tempfile::tempdir().unwrap();
        assert!(copy(&file(path(&folder, "none.db")), &path(&folder, "a")).await.is_err());
        assert!(!path(&folder, "none.db").exists());
        std::fs::write(path(&folder, "text.db"), "no database, but long enough to be one ".repeat(100)).unwrap();
        assert!(check(&path(&folder, "text.db")).await.is_err());
        std::fs::write(path(&folder, "empty.db"), "").unwrap();
        let empty = copy(&file(path(&folder, "empty.db")), &path(&folder, "b")).await.unwrap();
        assert_eq!((empty.schema, empty.keys, empty.usage), (0, 0, 0));
    }
}
