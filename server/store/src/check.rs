//! The status of a database, and the problems that prevent its use, for deployment tools.

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;
use textnlp_net::error_chain as chain;

use super::dialect::{self, Dialect};
use super::{Store, StoreError};
use crate::config::{Database, DatabaseAt};

/// The oldest PostgreSQL that we work with.
const OLDEST: i64 = 15;

/// The result of a check.
#[derive(Debug, Default, Serialize)]
pub struct CheckResult {
    /// The schema; 0 for an empty database.
    pub schema: u32,
    /// When the first migration was applied, in milliseconds since 1970. It identifies the database: another one has
    /// another time.
    pub made: Option<i64>,
    /// The server's `max_connections`; `None` for a file.
    pub connections: Option<i64>,
    /// The problems.
    pub problems: Vec<CheckFinding>,
    /// Whether the last problem may pass: the database is busy, starts, stops or moves.
    pub passes: bool,
    /// Notes for the operator.
    pub notes: Vec<CheckFinding>,
}

/// A problem or a note.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct CheckFinding {
    /// The cause.
    pub cause: String,
    /// The hint.
    pub fix: String,
}

fn obstacle(cause: impl Into<String>, fix: impl Into<String>) -> CheckFinding {
    CheckFinding { cause: cause.into(), fix: fix.into() }
}

/// Checks a database. A failed check is reported as a problem. Creates no database.
pub async fn check_database(database: &Database) -> CheckResult {
    let mut found = CheckResult::default();
    let checked = async {
        let store = dialect::open(database, false).await?;
        let checked = store.look(&mut found).await;
        store.close().await;
        checked
    };
    if let Err(error) = checked.await {
        let fix = hint(&error);
        found.passes = error.passes();
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
        StoreError::Missing(_) | StoreError::Empty(_) => {
            "check that its disk is mounted; if it is lost, restore a backup, or create an empty one: `textnlp-server admin migrate`"
        }
        StoreError::Address(_) => "correct the address, or the file that contains it",
        _ if has(&["UnknownIssuer", "not valid for name", "certificate", "TLS"]) => {
            "set the CA with `network.private_ca`, or set the TLS mode in the address: `?sslmode=…`"
        }
        _ if has(&["password authentication", "no password", "pg_hba"]) => {
            "correct the user or the password; see the server's pg_hba.conf"
        }
        _ if has(&["does not exist"]) => {
            "create the role and the database: CREATE ROLE textnlp LOGIN PASSWORD '…'; CREATE DATABASE textnlp OWNER textnlp"
        }
        _ if has(&["replica"]) => "give the address of the primary server",
        _ => "check that the server runs and that this machine can reach it",
    }
}

impl Store {
    /// See [`CheckResult::made`].
    pub async fn made(&self) -> Result<Option<i64>, StoreError> {
        let query = sqlx::query("SELECT applied_at FROM schema_version WHERE version = 1");
        Ok(self.ask(query.fetch_optional(&self.reads)).await?.map(|row| row.try_get(0)).transpose()?)
    }

    /// The role of the sessions if row-level security does not apply to it: a superuser, or one with BYPASSRLS.
    pub async fn role_above_row_security(&self) -> Result<Option<String>, StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(None);
        }
        let row = self
            .one("SELECT current_user::text, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
            .await?;
        Ok(if row.try_get(1)? { Some(row.try_get(0)?) } else { None })
    }

    async fn look(&self, found: &mut CheckResult) -> Result<(), StoreError> {
        found.schema = self.schema().await?;
        if found.schema > 0 {
            found.made = self.made().await?;
        }
        if self.dialect == Dialect::Postgres {
            self.check_server(found).await?;
            self.check_rights(found).await?;
        }
        Ok(())
    }

    async fn check_server(&self, found: &mut CheckResult) -> Result<(), StoreError> {
        let row = self
            .one(
                "SELECT current_setting('server_version_num')::bigint / 10000, current_setting('server_encoding'), \
                 current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint, \
                 coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false), \
                 inet_server_addr() IS NULL OR inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1'",
            )
            .await?;
        let version: i64 = row.try_get(0)?;
        if version < OLDEST {
            let cause = format!("the server is PostgreSQL {version}, but {OLDEST} or later is required");
            found.problems.push(obstacle(cause, "upgrade it, or use another server"));
        }
        let encoding: String = row.try_get(1)?;
        if encoding != "UTF8" {
            let cause = format!("the database's encoding is {encoding}");
            found
                .problems
                .push(obstacle(cause, "create one with: CREATE DATABASE textnlp ENCODING 'UTF8' TEMPLATE template0"));
        }
        found.connections = Some(row.try_get(2)?);
        if let Some(role) = self.role_above_row_security().await? {
            let cause = format!(
                "the role {role} is a superuser or bypasses row security, so tenants are isolated by the server program only"
            );
            found.notes.push(obstacle(cause, "use a separate role for the database: CREATE ROLE textnlp LOGIN"));
        }
        let role = self.tenant_role().await?;
        if !role.owns || !(role.is_member || role.may_create) {
            let user: String = self.one("SELECT session_user::text").await?.try_get(0)?;
            let cause = format!("statements of tenants have the rights of the role {user}, which sees all tenants");
            let fix = match role.owns {
                false => format!("make it the owner of the database: ALTER DATABASE … OWNER TO {user}"),
                true => format!("CREATE ROLE {user}_tenant NOLOGIN; GRANT {user}_tenant TO {user}"),
            };
            found.notes.push(obstacle(cause, fix));
        }
        if !row.try_get::<bool, _>(3)? && !row.try_get::<bool, _>(4)? {
            found
                .notes
                .push(obstacle("the connection to the database is not encrypted", "remove `sslmode` from the address"));
        }
        Ok(())
    }

    async fn check_rights(&self, found: &mut CheckResult) -> Result<(), StoreError> {
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
            let cause = format!("the table {table} belongs to {owner}, not to {user}");
            found.problems.push(obstacle(cause, format!("connect as {owner}, or ALTER TABLE {table} OWNER TO {user}")));
        }
        Ok(())
    }

    pub(super) async fn one(&self, text: &'static str) -> Result<AnyRow, StoreError> {
        self.ask(sqlx::query(text).fetch_one(&self.reads)).await
    }
}
