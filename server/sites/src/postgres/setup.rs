//! Setup and observation of a running server, as its owner, over its Unix socket.

use std::time::Duration;

use camino::Utf8Path;
use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use textnlp_store::programs;

use super::config::{OWNER, REPLICATION, SERVICE};
use super::{Config, Error, Primary, archive};
use crate::control::ServerRole;

/// An observation of a server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ServerObservation {
    pub(super) role: ServerRole,
    /// Whether a replica is connected to its primary; always true for a primary.
    pub(super) follows: bool,
    /// The WAL position: written by a primary, replayed by a replica.
    pub(super) at: String,
    /// Age of the last replayed change of a replica that lags, in milliseconds.
    pub(super) behind_ms: i64,
    /// Bytes of WAL that a replica knows of and has not received.
    pub(super) missing_bytes: i64,
    /// Connections of clients.
    pub(super) connections: i64,
    /// The database on disk.
    pub(super) bytes: i64,
    /// The replicas of a primary.
    pub(super) copies: Vec<Follower>,
    /// The progress of WAL archiving, where configured.
    pub(super) archive: Option<archive::Archived>,
}

/// A replica as its primary sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Follower {
    pub(super) name: String,
    pub(super) connected: bool,
    /// Bytes of the log that it has not replayed.
    pub(super) behind_bytes: i64,
    pub(super) behind_ms: i64,
    /// The replayed position.
    #[serde(skip)]
    pub(super) replayed: String,
}

/// Timeout of a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Observes the server, and removes replication slots of a primary that belong to no replica.
pub(super) async fn observe(config: &Config, is_primary: bool) -> Result<ServerObservation, Error> {
    let asked = async {
        let mut server = connect(config).await?;
        let mut seen = seen(&mut server, &config.database).await?;
        let wanted = match (is_primary, seen.role) {
            // A removed replica releases its slot only when it ends, which is after our start.
            (true, _) => Some(config.slots()),
            // Slots of a former primary would retain WAL without a replica.
            (false, ServerRole::Copy) if config.sites.is_some() => Some(Vec::new()),
            // A primary that has just started retains WAL for its replicas before it accepts them.
            _ => None,
        };
        if let Some(wanted) = wanted {
            slots(&mut server, &wanted).await?;
        }
        if config.archive.is_some() && seen.role == ServerRole::Primary {
            seen.archive = Some(archive::observe(&mut server).await?);
        }
        server.close().await?;
        Ok(seen)
    };
    let timed_out = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(QUERY_TIMEOUT, asked).await.map_err(timed_out).flatten().map_err(Error::Make)
}

/// Applies the configuration to a primary. Creating a database from a dump takes long.
pub(super) async fn make(config: &Config) -> Result<(), Error> {
    if config.primary.is_some() {
        return Ok(());
    }
    let mut server = connect(config).await.map_err(Error::Make)?;
    let read = |file: &Utf8Path| {
        let path = file.to_owned();
        std::fs::read_to_string(file).map_err(|source| Error::Folder { path, source })
    };
    let password = read(&config.password_file)?;
    let replication = config.replication_password_file.as_deref().map(read).transpose()?;
    let (password, replication) = (password.trim(), replication.as_deref().map(str::trim));
    roles(&mut server, password, replication, config.sites.is_some()).await.map_err(Error::Make)?;
    database(&mut server, config, password).await?;
    limit_settings(config).await.map_err(Error::Make)?;
    server.close().await.map_err(Error::Make)
}

/// Promotes a replica. A primary stays one.
pub(super) async fn promote(config: &Config) -> Result<(), Error> {
    let mut server = connect(config).await.map_err(Error::Make)?;
    let is_copy: bool =
        sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut server).await.map_err(Error::Make)?;
    if is_copy {
        let done: bool =
            sqlx::query_scalar("SELECT pg_promote(true, 30)").fetch_one(&mut server).await.map_err(Error::Make)?;
        if !done {
            return Err(Error::Unfit("PostgreSQL did not become a primary within 30 s".to_owned()));
        }
    }
    server.close().await.map_err(Error::Make)
}

/// Forces a checkpoint, so that the files show the current timeline.
pub(super) async fn checkpoint(config: &Config) -> Result<(), Error> {
    let mut server = connect(config).await.map_err(Error::Make)?;
    sqlx::query("CHECKPOINT").execute(&mut server).await.map_err(Error::Make)?;
    server.close().await.map_err(Error::Make)
}

/// Whether a primary is reachable through the local proxy and accepts a replica.
pub(super) async fn reaches(config: &Config, primary: &Primary) -> bool {
    let asked = async {
        let file = config.replication_password_file.as_ref()?;
        let password = tokio::fs::read_to_string(file).await.ok()?;
        let mut server = PgConnectOptions::new_without_pgpass()
            .socket(&primary.socket_folder)
            .port(primary.port)
            .username(REPLICATION)
            .password(password.trim())
            .database("postgres")
            .ssl_mode(PgSslMode::Disable)
            .connect()
            .await
            .ok()?;
        let is_copy: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut server).await.ok()?;
        let _ = server.close().await;
        Some(!is_copy)
    };
    tokio::time::timeout(QUERY_TIMEOUT, asked).await.ok().flatten().unwrap_or(false)
}

/// Only the service's role may change settings by a function: a statement of a tenant, whatever it contains, keeps its
/// tenant and its role.
async fn limit_settings(config: &Config) -> Result<(), sqlx::Error> {
    let mut server = connect_to(config, &config.database).await?;
    let function = "FUNCTION pg_catalog.set_config(text, text, boolean)";
    for statement in
        [format!("REVOKE EXECUTE ON {function} FROM PUBLIC"), format!("GRANT EXECUTE ON {function} TO {SERVICE}")]
    {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut server).await?;
    }
    server.close().await
}

pub(super) async fn connect(config: &Config) -> Result<PgConnection, sqlx::Error> {
    connect_to(config, "postgres").await
}

async fn connect_to(config: &Config, database: &str) -> Result<PgConnection, sqlx::Error> {
    PgConnectOptions::new_without_pgpass()
        .socket(config.run())
        .port(config.port)
        .username(OWNER)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
        .application_name("textnlp-keeper")
        .connect()
        .await
}

async fn roles(
    server: &mut PgConnection,
    password: &str,
    replication: Option<&str>,
    rewinds: bool,
) -> Result<(), sqlx::Error> {
    // A statement that fails is logged with its text, and this one holds a password.
    sqlx::query("SET log_min_error_statement = panic").execute(&mut *server).await?;
    let wanted = [(SERVICE, "", Some(password)), (REPLICATION, " REPLICATION", replication)];
    for (role, rights, password) in wanted {
        let Some(password) = password else { continue };
        let there =
            sqlx::query("SELECT 1 FROM pg_roles WHERE rolname = $1").bind(role).fetch_optional(&mut *server).await?;
        if there.is_none() {
            sqlx::query(AssertSqlSafe(format!("CREATE ROLE {role} LOGIN{rights}"))).execute(&mut *server).await?;
        }
        let password = password.replace('\'', "''");
        sqlx::query(AssertSqlSafe(format!("ALTER ROLE {role} PASSWORD '{password}'"))).execute(&mut *server).await?;
    }
    // The role of tenants' statements: see `textnlp_store`.
    let tenant = format!("{SERVICE}_tenant");
    let there = sqlx::query("SELECT 1 FROM pg_roles WHERE rolname = $1").bind(&tenant);
    if there.fetch_optional(&mut *server).await?.is_none() {
        sqlx::query(AssertSqlSafe(format!("CREATE ROLE {tenant} NOLOGIN"))).execute(&mut *server).await?;
    }
    sqlx::query(AssertSqlSafe(format!("GRANT {tenant} TO {SERVICE}"))).execute(&mut *server).await?;
    if rewinds {
        // The functions that pg_rewind needs on a primary.
        for function in [
            "pg_ls_dir(text, boolean, boolean)",
            "pg_stat_file(text, boolean)",
            "pg_read_binary_file(text)",
            "pg_read_binary_file(text, bigint, bigint, boolean)",
        ] {
            let grant = format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {REPLICATION}");
            sqlx::query(AssertSqlSafe(grant)).execute(&mut *server).await?;
        }
    }
    Ok(())
}

async fn database(server: &mut PgConnection, config: &Config, password: &str) -> Result<(), Error> {
    let is_there = sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1").bind(&config.database);
    if is_there.fetch_optional(&mut *server).await.map_err(Error::Make)?.is_some() {
        return Ok(());
    }
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    // Under another name until it is whole.
    let half = config.half_database();
    let (name, half_name) = (quoted(&config.database), quoted(&half));
    let mut run =
        async |text: String| sqlx::query(AssertSqlSafe(text)).execute(&mut *server).await.map_err(Error::Make);
    run(format!("DROP DATABASE IF EXISTS {half_name}")).await?;
    run(format!("CREATE DATABASE {half_name} OWNER {SERVICE} ENCODING 'UTF8' TEMPLATE template0")).await?;
    let dump = config.dump.as_ref().filter(|dump| dump.is_file());
    if let Some(dump) = dump {
        let program = config.programs.join("pg_restore");
        let folder = config.run().as_str().replace('/', "%2F");
        let password: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let address = format!("postgresql://{SERVICE}:{password}@{folder}:{}/?sslmode=disable", config.port);
        let address = address.parse().map_err(|_| Error::Restore(format!("{folder} is not an address")))?;
        let into = format!("--dbname={half}");
        // A dump is a program. It runs with the rights that the service has on its database, not as a superuser.
        let arguments = ["--exit-on-error", "--no-owner", "--no-privileges", &into, dump.as_str()];
        tracing::info!(%dump, "the database is restored from a dump");
        programs::run(&program, &address, &arguments).await.map_err(Error::Restore)?;
    }
    run(format!("ALTER DATABASE {half_name} RENAME TO {name}")).await?;
    if let Some(dump) = dump {
        // It is not needed again, and contains the same data as the database.
        std::fs::remove_file(dump).map_err(|source| Error::Folder { path: dump.clone(), source })?;
    }
    Ok(())
}

/// Creates a replication slot for every replica, which retains WAL it has not received. A slot that exceeded its limit
/// is invalid and is recreated.
async fn slots(server: &mut PgConnection, copies: &[String]) -> Result<(), sqlx::Error> {
    let there = sqlx::query(
        "SELECT slot_name::text, active, wal_status = 'lost' FROM pg_replication_slots WHERE slot_type = 'physical'",
    )
    .fetch_all(&mut *server)
    .await?;
    let mut kept = Vec::new();
    for row in there {
        let (name, active, lost): (String, bool, Option<bool>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let wanted = copies.contains(&name);
        if active || (wanted && lost != Some(true)) {
            kept.push(name);
        } else {
            sqlx::query("SELECT pg_drop_replication_slot($1)").bind(name).execute(&mut *server).await?;
        }
    }
    for name in copies.iter().filter(|name| !kept.contains(name)) {
        sqlx::query("SELECT pg_create_physical_replication_slot($1, true)").bind(name).execute(&mut *server).await?;
    }
    Ok(())
}

const SEEN: &str = "SELECT pg_is_in_recovery(), \
     EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
     CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text, \
     CASE WHEN pg_is_in_recovery() AND pg_last_wal_replay_lsn() IS DISTINCT FROM pg_last_wal_receive_lsn() \
          THEN coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000, 0) ELSE 0 END::bigint, \
     coalesce((SELECT pg_wal_lsn_diff(latest_end_lsn, flushed_lsn) FROM pg_stat_wal_receiver), 0)::bigint, \
     (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), \
     coalesce((SELECT pg_database_size(oid) FROM pg_database WHERE datname = $1), 0)";

const FOLLOWERS: &str = "SELECT slot_name::text, coalesce(r.state = 'streaming', false), \
     coalesce(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), coalesce(r.replay_lsn, s.restart_lsn)), 0)::bigint, \
     coalesce(extract(epoch FROM r.replay_lag) * 1000, 0)::bigint, coalesce(r.replay_lsn::text, '') \
     FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE slot_type = 'physical' ORDER BY 1";

async fn seen(server: &mut PgConnection, database: &str) -> Result<ServerObservation, sqlx::Error> {
    let row = sqlx::query(SEEN).bind(database).fetch_one(&mut *server).await?;
    let is_copy: bool = row.try_get(0)?;
    let followers = if is_copy { Vec::new() } else { sqlx::query(FOLLOWERS).fetch_all(&mut *server).await? };
    let follower = |row: &sqlx::postgres::PgRow| -> Result<Follower, sqlx::Error> {
        Ok(Follower {
            name: row.try_get(0)?,
            connected: row.try_get(1)?,
            behind_bytes: row.try_get(2)?,
            behind_ms: row.try_get(3)?,
            replayed: row.try_get(4)?,
        })
    };
    Ok(ServerObservation {
        role: if is_copy { ServerRole::Copy } else { ServerRole::Primary },
        follows: !is_copy || row.try_get(1)?,
        at: row.try_get::<Option<String>, _>(2)?.unwrap_or_default(),
        behind_ms: row.try_get(3)?,
        missing_bytes: row.try_get(4)?,
        connections: row.try_get(5)?,
        bytes: row.try_get(6)?,
        copies: followers.iter().map(follower).collect::<Result<_, _>>()?,
        archive: None,
    })
}
