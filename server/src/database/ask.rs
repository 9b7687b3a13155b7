//! What a database is, and everything that stands in the way of using it, for whoever deploys.

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::dialect::Dialect;
use super::{Store, StoreError};
use crate::config::{Database, DatabaseAt};
use crate::error::chain;

/// The oldest PostgreSQL that we work with.
const OLDEST: i64 = 15;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// The schema; 0 for an empty database.
    pub schema: u32,
    /// When the first migration was applied, in milliseconds since 1970: another database in its place has another time.
    pub made: Option<i64>,
    /// Connections that the server gives to everybody together; `None` for a file.
    pub connections: Option<i64>,
    /// What stands in the way.
    pub problems: Vec<Obstacle>,
    /// What an operator should know.
    pub notes: Vec<Obstacle>,
}

/// Something that stands in the way.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// What.
    pub cause: String,
    /// What to do about it.
    pub fix: String,
}

fn obstacle(cause: impl Into<String>, fix: impl Into<String>) -> Obstacle {
    Obstacle { cause: cause.into(), fix: fix.into() }
}

/// Asks a database. What cannot be asked is among the problems; changes nothing, but an SQLite file that is not there is made.
pub async fn ask(database: &Database) -> Found {
    let mut found = Found::default();
    let looked = async {
        let store = Store::open(database).await?;
        let looked = store.look(&mut found).await;
        store.close().await;
        looked
    };
    if let Err(error) = looked.await {
        let fix = hint(&error);
        let at = match &database.at {
            DatabaseAt::Server(server) => server.shown(),
            DatabaseAt::File(file) => file.to_string(),
        };
        found.problems.push(obstacle(format!("{at}: {}", chain(&error)), fix));
    }
    found
}

fn hint(error: &StoreError) -> &'static str {
    let text = chain(error);
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match error {
        StoreError::Address(_) => "correct the address, or the file that it stands in",
        _ if has(&["UnknownIssuer", "not valid for name", "certificate", "TLS"]) => {
            "name the authority with `network.private_ca`, or say in the address how to trust it: `?sslmode=…`"
        }
        _ if has(&["password authentication", "no password", "pg_hba"]) => {
            "correct the user or the password; see the server's pg_hba.conf"
        }
        _ if has(&["does not exist"]) => {
            "create the role and the database: CREATE ROLE textnlp LOGIN PASSWORD '…'; CREATE DATABASE textnlp OWNER textnlp"
        }
        _ if has(&["replica"]) => "name the server that takes changes",
        _ => "look whether the server runs and is reached from here",
    }
}

impl Store {
    /// See [`Found::made`].
    pub async fn made(&self) -> Result<Option<i64>, StoreError> {
        let query = sqlx::query("SELECT applied_at FROM schema_version WHERE version = 1");
        Ok(self.ask(query.fetch_optional(&self.reads)).await?.map(|row| row.try_get(0)).transpose()?)
    }

    async fn look(&self, found: &mut Found) -> Result<(), StoreError> {
        found.schema = self.schema().await?;
        if found.schema > 0 {
            found.made = self.made().await?;
        }
        if self.dialect == Dialect::Postgres {
            self.look_at_server(found).await?;
            self.look_at_rights(found).await?;
        }
        Ok(())
    }

    async fn look_at_server(&self, found: &mut Found) -> Result<(), StoreError> {
        let row = self
            .one(
                "SELECT current_setting('server_version_num')::bigint / 10000, current_setting('server_encoding'), \
                 current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint, \
                 (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user), current_user::text, \
                 coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false), \
                 inet_server_addr() IS NULL OR inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1'",
            )
            .await?;
        let version: i64 = row.try_get(0)?;
        if version < OLDEST {
            let cause = format!("the server is PostgreSQL {version}, and {OLDEST} is the oldest that works");
            found.problems.push(obstacle(cause, "upgrade it, or name another one"));
        }
        let encoding: String = row.try_get(1)?;
        if encoding != "UTF8" {
            let cause = format!("the database's encoding is {encoding}");
            found
                .problems
                .push(obstacle(cause, "make one with: CREATE DATABASE textnlp ENCODING 'UTF8' TEMPLATE template0"));
        }
        found.connections = Some(row.try_get(2)?);
        let user: String = row.try_get(4)?;
        if row.try_get::<bool, _>(3)? {
            let cause = format!(
                "the role {user} is a superuser or bypasses row security, so that tenants are kept apart by the server alone"
            );
            found.notes.push(obstacle(cause, "give the database to a role of its own: CREATE ROLE textnlp LOGIN"));
        }
        if !row.try_get::<bool, _>(5)? && !row.try_get::<bool, _>(6)? {
            found
                .notes
                .push(obstacle("what is sent to the database is not encrypted", "leave `sslmode` out of the address"));
        }
        Ok(())
    }

    async fn look_at_rights(&self, found: &mut Found) -> Result<(), StoreError> {
        let row = self
            .one("SELECT current_schema()::text, coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), current_user::text, current_database()::text")
            .await?;
        let (user, database): (String, String) = (row.try_get(2)?, row.try_get(3)?);
        let Some(schema) = row.try_get::<Option<String>, _>(0)? else {
            let cause = format!("the role {user} has no schema to work in");
            found
                .problems
                .push(obstacle(cause, format!("ALTER ROLE {user} IN DATABASE {database} SET search_path = public")));
            return Ok(());
        };
        if !row.try_get::<bool, _>(1)? {
            let cause = format!("the role {user} may not create tables in schema {schema} of {database}");
            found.problems.push(obstacle(
                cause,
                format!("ALTER DATABASE {database} OWNER TO {user}, or GRANT CREATE ON SCHEMA {schema} TO {user}"),
            ));
        }
        let rows = self.ask(
            sqlx::query("SELECT tablename::text, tableowner::text FROM pg_tables WHERE schemaname = current_schema() AND tablename IN \
             ('schema_version', 'tenants', 'api_keys', 'api_usage') AND NOT pg_has_role(tableowner, 'USAGE') ORDER BY 1").fetch_all(&self.reads),
        );
        for row in rows.await? {
            let (table, owner): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let cause = format!("the table {table} is there and belongs to {owner}, not to {user}");
            found.problems.push(obstacle(cause, format!("connect as {owner}, or ALTER TABLE {table} OWNER TO {user}")));
        }
        Ok(())
    }

    pub(super) async fn one(&self, text: &'static str) -> Result<AnyRow, StoreError> {
        self.ask(sqlx::query(text).fetch_one(&self.reads)).await
    }
}
