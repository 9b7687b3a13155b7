//! WAL archiving of a primary, segment by segment, and fetching segments for a restore.
//!
//! PostgreSQL runs our program for each segment ([`super::step`]). At a fixed interval the supervisor writes a mark
//! with the time into the WAL and switches to the next segment. So the archive knows how far it reaches, and the
//! archive of an idle database does not fall behind.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};

use super::{Config, Error, setup};

/// `postgres.archive:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// How far the archive may be behind.
    pub every_seconds: u64,
}

/// `postgres.recover:`. The folder holds a base and `recovery.signal`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recover {
    /// The recovery target time, inclusive; if absent, the end of the base backup.
    #[serde(default)]
    pub to: Option<Timestamp>,
}

/// The file that the archive commands read. They run as the server's user, which may read no other configuration file.
pub(super) const STEP_FILE: &str = "archive.yaml";
/// The prefix of marks, see `orchestrator/src/backup/log.rs`.
const MARK: &str = "textnlp-mark";
/// Timeout for writing a mark.
const MARK_TIMEOUT: Duration = Duration::from_secs(10);
/// Parts of 16 MB that may wait before they are no longer ended early.
const WAITING_MAX: i64 = 16;
/// Above the file descriptors that shells use.
const PROGRAM_MIN: i32 = 100;

/// The socket of the backup process: beside the data directory, where the server's user creates nothing.
pub(super) fn socket(folder: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{folder}.archive"))
}

/// The server's settings for archiving and recovery.
pub(super) fn settings(config: &Config) -> Result<Vec<(&'static str, String)>, Error> {
    let mut settings = Vec::new();
    if config.archive.is_none() && config.recover.is_none() {
        return Ok(settings);
    }
    let socket = socket(&config.folder);
    let step = serde_json::json!({ "archive": { "socket": socket, "system": system(config)?.to_string() } });
    config.put(STEP_FILE, &step.to_string())?;
    let program = program()?;
    // For the shell, and `%` for PostgreSQL.
    let file = config.folder.join(STEP_FILE).as_str().replace('\'', r"'\''").replace('%', "%%");
    let step =
        |command: &str, rest: &str| format!("exec /proc/self/fd/{program} admin {command} --config '{file}' {rest}");
    if let Some(archive) = &config.archive {
        settings.push(("archive_mode", "on".to_owned()));
        settings.push(("archive_command", step("archive-wal", r#"--segment "%p""#)));
        // The supervisor switches segments sooner; this limit holds while it cannot connect.
        settings.push(("archive_timeout", archive.every_seconds.saturating_mul(2).to_string()));
        settings.push(("wal_compression", "on".to_owned()));
    }
    if let Some(recover) = &config.recover {
        settings.push(("archive_mode", "off".to_owned()));
        settings.push(("restore_command", step("restore-wal", r#"--segment "%f" --out "%p""#)));
        // Early clients are rejected with an error. With hot standby, a server with fewer connections than its primary
        // had would pause the recovery.
        settings.push(("hot_standby", "off".to_owned()));
        settings.push(("recovery_target_timeline", "latest".to_owned()));
        settings.push(("recovery_target_action", "promote".to_owned()));
        settings.push(match recover.to {
            Some(to) => ("recovery_target_time", to.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()),
            None => ("recovery_target", "immediate".to_owned()),
        });
    }
    Ok(settings)
}

/// The system identifier of a data directory: `pg_control` starts with it.
pub(super) fn system(config: &Config) -> Result<u64, Error> {
    let read = config.read_data(&["global"], "pg_control", 8).and_then(|bytes| {
        let bytes = bytes.try_into().map_err(|_| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        Ok(u64::from_ne_bytes(bytes))
    });
    read.map_err(|source| Error::Folder { path: config.data().join("global/pg_control"), source })
}

/// This program, as an open file that children inherit: the server's user may run it, and may not enter the folder that it lies in.
fn program() -> Result<i32, Error> {
    static OPEN: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(open) = OPEN.get() {
        return Ok(open.as_raw_fd());
    }
    let file = std::fs::File::open("/proc/self/exe")?;
    let open = rustix::io::fcntl_dupfd_cloexec(&file, PROGRAM_MIN).map_err(std::io::Error::from)?;
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).map_err(std::io::Error::from)?;
    Ok(OPEN.get_or_init(|| open).as_raw_fd())
}

/// Writes a mark with the time into the WAL and switches to the next segment. With too many unarchived segments, no
/// switch is forced.
pub(super) async fn mark(config: &Config) -> Result<(), Error> {
    let marked = async {
        let mut server = setup::connect(config).await?;
        let now = Timestamp::now();
        // A commit later than the mark's time must precede the mark, so that recovery to that time finds where to stop.
        sqlx::query("SELECT pg_current_xact_id()").execute(&mut server).await?;
        let mark = sqlx::query("SELECT pg_logical_emit_message(false, $1, $2)").bind(MARK).bind(now.to_string());
        mark.execute(&mut server).await?;
        let archived = observe(&mut server).await?;
        // A new segment also wakes an archiver that has paused for a minute after failures.
        if !archived.fails || archived.waiting < WAITING_MAX {
            sqlx::query("SELECT pg_switch_wal()").execute(&mut server).await?;
        }
        server.close().await
    };
    let timed_out = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(MARK_TIMEOUT, marked).await.map_err(timed_out).flatten().map_err(Error::Archive)
}

/// The progress of archiving.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Archived {
    /// Seconds since a segment was archived, if one was since the server was created.
    pub(super) seconds_since: Option<i64>,
    /// Parts that wait.
    pub(super) waiting: i64,
    /// Tries that failed.
    pub(super) failures: i64,
    /// Whether the last try failed.
    pub(super) fails: bool,
}

const POLL_INTERVAL: &str = "SELECT extract(epoch FROM clock_timestamp() - last_archived_time)::bigint, \
     (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'), failed_count, \
     coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) FROM pg_stat_archiver";

pub(super) async fn observe(server: &mut PgConnection) -> Result<Archived, sqlx::Error> {
    let row = sqlx::query(POLL_INTERVAL).fetch_one(server).await?;
    Ok(Archived {
        seconds_since: row.try_get(0)?,
        waiting: row.try_get(1)?,
        failures: row.try_get(2)?,
        fails: row.try_get(3)?,
    })
}
