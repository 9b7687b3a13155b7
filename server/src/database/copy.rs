//! A copy of the database while it is used: what a single reader sees at one moment, whole and checked.

use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use camino::Utf8Path;
use serde::Serialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Row};

use super::StoreError;

/// What a copy holds.
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

/// Nobody waits for a copy; a writer that holds the file for long is waited for.
const BUSY: Duration = Duration::from_secs(30);

/// Copies `from` to `to`, which must not be there. Writers go on meanwhile; what they write after the beginning is not in the copy.
pub async fn copy(from: &Utf8Path, to: &Utf8Path) -> Result<Copied, StoreError> {
    // Made here so that it is private from its first byte; SQLite fills an empty file.
    let io = |error| StoreError::Failed(sqlx::Error::Io(error));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(io)?;
    let mut source = open(from).await?;
    sqlx::query("VACUUM INTO ?").bind(to.as_str()).execute(&mut source).await.map_err(StoreError::sort)?;
    source.close().await.map_err(StoreError::sort)?;
    let copied = check(to).await?;
    made.sync_all().map_err(io)?;
    Ok(copied)
}

/// Reads a whole database file and says what is in it.
pub async fn check(file: &Utf8Path) -> Result<Copied, StoreError> {
    let mut database = open(file).await?;
    let said = sqlx::query("PRAGMA integrity_check(1)").fetch_one(&mut database).await.map_err(StoreError::sort)?;
    let said: String = said.get(0);
    if said != "ok" {
        return Err(StoreError::Schema(format!("{file} is damaged: {said}")));
    }
    let schema = count(&mut database, "schema_version").await?;
    let keys = count(&mut database, "api_keys").await?;
    let usage = count(&mut database, "api_usage").await?;
    database.close().await.map_err(StoreError::sort)?;
    let bytes = std::fs::metadata(file).map_err(|error| StoreError::Failed(sqlx::Error::Io(error)))?.len();
    Ok(Copied { schema, keys, usage, bytes })
}

async fn open(file: &Utf8Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(false).busy_timeout(BUSY);
    options.connect().await.map_err(StoreError::sort)
}

/// How many rows a table has; a table that is not there yet has none.
async fn count(database: &mut SqliteConnection, table: &'static str) -> Result<u64, StoreError> {
    let there = sqlx::query("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?");
    let there: i64 = there.bind(table).fetch_one(&mut *database).await.map_err(StoreError::sort)?.get(0);
    if there == 0 {
        return Ok(0);
    }
    let query = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    let rows: i64 = sqlx::query(query).fetch_one(database).await.map_err(StoreError::sort)?.get(0);
    Ok(rows.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{key, open as store_at};
    use super::*;

    fn path(folder: &tempfile::TempDir, name: &str) -> camino::Utf8PathBuf {
        camino::Utf8PathBuf::from_path_buf(folder.path().join(name)).unwrap()
    }

    #[tokio::test]
    async fn a_copy_is_taken_while_others_write_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let store = store_at(folder.path()).await;
        store.prepare().await.unwrap();
        store.put_key(&key("before")).await.unwrap();
        let held = store.write().await.unwrap();
        let to = path(&folder, "copy.db");
        let copied = copy(&path(&folder, "textnlp.db"), &to).await.unwrap();
        drop(held);
        assert_eq!((copied.keys, copied.usage), (1, 0));
        assert_eq!(copied.schema, u64::from(super::super::newest_schema()));
        assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!path(&folder, "copy.db-wal").exists(), "a copy is one file");
        assert!(copy(&path(&folder, "textnlp.db"), &to).await.is_err(), "nothing is written over");
    }

    #[tokio::test]
    async fn what_is_not_there_or_damaged_is_no_copy() {
        let folder = tempfile::tempdir().unwrap();
        assert!(copy(&path(&folder, "none.db"), &path(&folder, "a")).await.is_err());
        assert!(!path(&folder, "none.db").exists());
        std::fs::write(path(&folder, "text.db"), "no database, but long enough to be one ".repeat(100)).unwrap();
        assert!(check(&path(&folder, "text.db")).await.is_err());
        std::fs::write(path(&folder, "empty.db"), "").unwrap();
        let empty = copy(&path(&folder, "empty.db"), &path(&folder, "b")).await.unwrap();
        assert_eq!((empty.schema, empty.keys, empty.usage), (0, 0, 0));
    }
}
