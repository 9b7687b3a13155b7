//! The schema and its versions. Migrations go only forward, and only add during a rollout. A server works with its own
//! schema and the next one, so that a rollback to an older server is possible.

use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::Row;

use super::audit::{Action, Actor, AuditEvent};
use super::dialect::Dialect;
use super::scope::Job;
use super::{Store, StoreError, now_ms};

/// A migration: its name, and its text for each database.
struct Migration {
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! migrations {
    ($($name:literal),*) => {
        &[$(Migration {
            name: $name,
            sqlite: include_str!(concat!("../migrations/sqlite/", $name, ".sql")),
            postgres: include_str!(concat!("../migrations/postgres/", $name, ".sql")),
        }),*]
    };
}

/// Numbered without gaps, in order, the same for both databases. One that was released is never changed.
const MIGRATIONS: &[Migration] = migrations![
    "001_initial_schema",
    "002_usage",
    "003_stream_tickets",
    "004_sites",
    "005_audit",
    "006_feature_flags",
    "007_audit_retention",
    "008_usage_cost",
    "009_insights",
    "010_batches",
    "011_webhooks",
    "012_data_insights"
];

/// The first schema with an audit log.
const AUDITED: u32 = 5;

impl Migration {
    fn text(&self, dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Sqlite => self.sqlite,
            Dialect::Postgres => self.postgres,
        }
    }
}

/// The newest schema version of this program.
pub fn newest_schema() -> u32 {
    MIGRATIONS.len() as u32
}

/// The result of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The version that was there.
    pub from: u32,
    /// The version that is there now.
    pub to: u32,
}

impl Store {
    /// The schema's version; 0 for an empty database.
    pub async fn schema(&self) -> Result<u32, StoreError> {
        let there = self.ask(sqlx::query(self.dialect.table()).bind("schema_version").fetch_one(&self.reads)).await?;
        if there.get::<i64, _>(0) == 0 {
            return Ok(0);
        }
        let query = sqlx::query("SELECT coalesce(max(version), 0) FROM schema_version");
        let version = self.ask(query.fetch_one(&self.reads)).await?;
        Ok(version.get::<i64, _>(0) as u32)
    }

    /// Migrates the schema to a version, atomically. `None` is the newest, and accepts a schema one version newer.
    /// Idempotent, and safe for concurrent processes.
    pub async fn migrate(&self, wanted: Option<u32>) -> Result<Migrated, StoreError> {
        let to = wanted.unwrap_or(newest_schema());
        if to > newest_schema() {
            return Err(StoreError::Schema(format!(
                "this program supports schemas up to {}, not {to}",
                newest_schema()
            )));
        }
        let mut transaction = self.write("schema").await?;
        self.take_time(&mut transaction).await?;
        let query = sqlx::query(
            "CREATE TABLE IF NOT EXISTS schema_version (
                version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at BIGINT NOT NULL)",
        );
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query("SELECT version, name, sha256 FROM schema_version ORDER BY version");
        let applied = self.ask(query.fetch_all(&mut *transaction)).await?;
        let from = applied.len() as u32;
        for (row, migration) in applied.iter().zip(MIGRATIONS) {
            if row.get::<String, _>("sha256") != digest(migration.text(self.dialect)) {
                let name = migration.name;
                return Err(StoreError::Schema(format!(
                    "migration {name} differs from the one that was applied to this database"
                )));
            }
        }
        // A schema of a newer server is used unchanged, which allows a rollback.
        if wanted.is_none() && from == to + 1 {
            return Ok(Migrated { from, to: from });
        }
        if to < from {
            return Err(StoreError::Schema(format!(
                "the schema is at {from} and cannot be downgraded; a server of schema {to} also supports schema {}",
                to + 1
            )));
        }
        for (number, migration) in MIGRATIONS.iter().enumerate().take(to as usize).skip(from as usize) {
            let text = migration.text(self.dialect);
            self.patiently(sqlx::raw_sql(text).execute(&mut *transaction)).await?;
            let query =
                sqlx::query("INSERT INTO schema_version (version, name, sha256, applied_at) VALUES ($1, $2, $3, $4)")
                    .bind(number as i64 + 1)
                    .bind(migration.name)
                    .bind(digest(text))
                    .bind(now_ms());
            self.ask(query.execute(&mut *transaction)).await?;
        }
        if to > from && to >= AUDITED {
            self.widen(&mut transaction, Job::Audit).await?;
            let event = AuditEvent::new(&Actor::of_process(), Action::DatabaseMigrate);
            self.record(&mut transaction, &event.detail(json!({ "from": from, "to": to }))).await?;
        }
        self.commit(transaction).await?;
        Ok(Migrated { from, to })
    }

    /// Prepares the database at startup: creates the schema in an empty database, rejects an older schema, and accepts
    /// one that is one version newer.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        let newest = newest_schema();
        match self.schema().await? {
            0 => {
                self.migrate(None).await?;
                self.separate_tenants().await
            }
            there if there == newest || there == newest + 1 => self.separate_tenants().await,
            there if there < newest => Err(StoreError::Schema(format!(
                "the database has schema {there}, this server needs {newest}: run `textnlp-server admin migrate` with the same configuration"
            ))),
            there => Err(StoreError::Schema(format!(
                "the database has schema {there}, but this server supports {newest} and {}: start a newer server",
                newest + 1
            ))),
        }
    }
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, on_both};
    use super::*;

    on_both!(
        brings_an_empty_database_to_any_version_and_then_only_forward,
        works_with_the_next_schema_but_not_with_one_further_on,
        refuses_a_database_that_another_migration_made,
    );

    async fn brings_an_empty_database_to_any_version_and_then_only_forward(bench: Bench) {
        let store = bench.open().await;
        assert_eq!(store.schema().await.unwrap(), 0);
        assert_eq!(store.migrate(Some(1)).await.unwrap(), Migrated { from: 0, to: 1 });
        assert!(store.prepare().await.unwrap_err().to_string().contains("admin migrate"));
        assert_eq!(store.migrate(None).await.unwrap(), Migrated { from: 1, to: newest_schema() });
        assert_eq!(store.migrate(None).await.unwrap(), Migrated { from: newest_schema(), to: newest_schema() });
        assert!(store.migrate(Some(1)).await.unwrap_err().to_string().contains("cannot be downgraded"));
        assert!(store.migrate(Some(999)).await.is_err());
        store.prepare().await.unwrap();
    }

    async fn works_with_the_next_schema_but_not_with_one_further_on(bench: Bench) {
        let store = bench.store().await;
        let ahead = |version: u32| {
            sqlx::query("INSERT INTO schema_version VALUES ($1, 'x', 'y', 0)")
                .bind(i64::from(version))
                .execute(&store.writes)
        };
        ahead(newest_schema() + 1).await.unwrap();
        store.prepare().await.unwrap();
        let next = newest_schema() + 1;
        assert_eq!(
            store.migrate(None).await.unwrap(),
            Migrated { from: next, to: next },
            "nothing to do, nothing undone"
        );
        assert!(store.migrate(Some(newest_schema())).await.unwrap_err().to_string().contains("cannot be downgraded"));
        ahead(newest_schema() + 2).await.unwrap();
        assert!(store.migrate(None).await.is_err());
        assert!(store.prepare().await.unwrap_err().to_string().contains("newer server"));
    }

    async fn refuses_a_database_that_another_migration_made(bench: Bench) {
        let store = bench.store().await;
        sqlx::query("UPDATE schema_version SET sha256 = 'other' WHERE version = 1")
            .execute(&store.writes)
            .await
            .unwrap();
        assert!(store.migrate(None).await.unwrap_err().to_string().contains("001_initial_schema"));
    }
}
