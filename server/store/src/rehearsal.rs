//! A rehearsal of the failure of the primary: rows are written at a steady rate meanwhile, and counted afterwards.
//!
//! The rows are in a table of their own, which the end of the rehearsal removes. A write counts as acknowledged when
//! the server confirmed its commit.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Connection, Row};
use tokio::time::MissedTickBehavior;

use super::dialect::Dialect;
use super::{MaintenanceError, Store, StoreError, change};

const REMOVE: &str = "DROP TABLE IF EXISTS textnlp_failover_rehearsal";
const MAKE: &str = "CREATE TABLE textnlp_failover_rehearsal (n bigint PRIMARY KEY)";
const WRITE: &str = "INSERT INTO textnlp_failover_rehearsal VALUES ($1)";
const ROWS: &str = "SELECT n FROM textnlp_failover_rehearsal";
const SERVER: &str = "SELECT (SELECT system_identifier FROM pg_control_system())::text, \
    (extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint, \
    current_setting('server_version_num')::bigint / 10000";

/// The time between two writes.
const EVERY: Duration = Duration::from_millis(100);
/// The timeout of a write, with its connection: a lost machine does not close connections.
const ANSWER: Duration = Duration::from_secs(2);
/// The first write must fail within this time, and writes must succeed again within this time after that, unless the caller waits
/// longer.
const WAIT: Duration = Duration::from_secs(60);
/// The longest such time.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Writes go on for this long once they succeed again.
const HOLD: Duration = Duration::from_secs(3);

/// A running PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseServer {
    /// The system identifier, which a primary and its replicas share.
    pub system: String,
    /// When it started, in milliseconds since 1970: each instance has another time, and a new one after a restart.
    pub started_ms: i64,
    /// The major version.
    pub version: i64,
}

impl DatabaseServer {
    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self { system: row.try_get(0)?, started_ms: row.try_get(1)?, version: row.try_get(2)? })
    }
}

/// The result of a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RehearsalResult {
    /// Writes that the server acknowledged.
    pub acknowledged: u64,
    /// Writes that failed.
    pub failed: u64,
    /// The longest time between two acknowledged writes, in milliseconds. Without a recovery, up to the end.
    pub without_writes_ms: u64,
    /// Acknowledged writes that are missing afterwards. `None` if writes did not succeed again.
    pub lost: Option<u64>,
    /// The servers that acknowledged writes, in that order.
    pub servers: Vec<DatabaseServer>,
    /// The number of the last write that was tried before another server than the first of them acknowledged one.
    pub by_first: u64,
}

/// The writes of a rehearsal. Times are since its start.
#[derive(Debug, Default)]
struct Writes {
    acknowledged: BTreeSet<i64>,
    failed: u64,
    /// The first failure.
    failed_at: Option<Duration>,
    /// The first acknowledged write after the last failure.
    back_at: Option<Duration>,
    last: Duration,
    longest: Duration,
    servers: Vec<DatabaseServer>,
    by_first: u64,
}

impl Writes {
    /// Adds a write with the server that acknowledged it; `None` if it failed.
    fn add(&mut self, n: i64, at: Duration, by: Option<&DatabaseServer>) {
        let first = self.servers.first();
        if self.servers.len() <= 1 && (first.is_none() || by.is_none() || first == by) {
            self.by_first = n.unsigned_abs();
        }
        let Some(server) = by else {
            self.failed += 1;
            self.failed_at.get_or_insert(at);
            self.back_at = None;
            return;
        };
        if self.servers.last() != Some(server) {
            self.servers.push(server.clone());
        }
        self.acknowledged.insert(n);
        self.longest = self.longest.max(at.saturating_sub(self.last));
        self.last = at;
        if self.failed_at.is_some() {
            self.back_at.get_or_insert(at);
        }
    }

    /// Whether it ends, and then whether writes succeed again. `wait`: for the first failure, and then for a write that succeeds.
    fn ended(&self, now: Duration, wait: Duration) -> Option<bool> {
        match (self.failed_at, self.back_at) {
            (_, Some(back)) if now >= back + HOLD => Some(true),
            (Some(failed), None) if now >= failed + wait => Some(false),
            (None, _) if now >= wait => Some(true),
            _ => None,
        }
    }

    fn result(&self, now: Duration, present: Option<&BTreeSet<i64>>) -> RehearsalResult {
        let lost = present.map(|present| self.acknowledged.difference(present).count());
        // The time without a recovery has not ended.
        let open = if present.is_none() { now.saturating_sub(self.last) } else { Duration::ZERO };
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        RehearsalResult {
            acknowledged: count(self.acknowledged.len()),
            failed: self.failed,
            without_writes_ms: u64::try_from(self.longest.max(open).as_millis()).unwrap_or(u64::MAX),
            lost: lost.map(count),
            servers: self.servers.clone(),
            by_first: self.by_first,
        }
    }
}

impl Store {
    /// Writes rows until writes failed and succeed again, each within `wait` (a minute), which is at most ten minutes. Refused where there
    /// is no replica.
    pub async fn rehearse(&self, wait: Option<Duration>) -> Result<RehearsalResult, MaintenanceError> {
        let wait = wait.unwrap_or(WAIT).min(LONGEST_WAIT);
        if self.dialect == Dialect::Sqlite {
            return Err(MaintenanceError::Refused("SQLite has one instance, which cannot fail over".to_owned()));
        }
        self.end_rehearsal().await?;
        self.ask(sqlx::query(MAKE).execute(&self.writes)).await?;
        let (began, mut writes, mut held) = (Instant::now(), Writes::default(), None);
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut n = 0;
        let is_back = loop {
            ticks.tick().await;
            n += 1;
            let written = tokio::time::timeout(ANSWER, self.write_row(&mut held, n)).await;
            if !matches!(written, Ok(Ok(()))) {
                // What an abandoned statement left in it is unknown.
                held = None;
            }
            writes.add(n, began.elapsed(), held.as_ref().map(|(_, server)| server));
            if let Some(is_back) = writes.ended(began.elapsed(), wait) {
                break is_back;
            }
        };
        if let Some((connection, _)) = held {
            let _ = self.ask(connection.close()).await;
        }
        // Other connections of the pool may still lead to the old primary.
        let present = match is_back {
            true => Some(change(StoreError::may_be_repeated, || self.rehearsal_rows()).await?),
            false => None,
        };
        Ok(writes.result(began.elapsed(), present.as_ref()))
    }

    async fn write_row(&self, held: &mut Option<(AnyConnection, DatabaseServer)>, n: i64) -> Result<(), sqlx::Error> {
        // Outside the pool: it would hide when the connection was lost.
        let (connection, _) = match held {
            Some(held) => held,
            None => {
                let mut connection = AnyConnection::connect_with(&self.writes.connect_options()).await?;
                let server = DatabaseServer::read(&sqlx::query(SERVER).fetch_one(&mut connection).await?)?;
                held.insert((connection, server))
            }
        };
        sqlx::query(WRITE).bind(n).execute(connection).await.map(drop)
    }

    /// The server that answers. Refused for SQLite, which has none.
    pub async fn server(&self) -> Result<DatabaseServer, MaintenanceError> {
        if self.dialect == Dialect::Sqlite {
            return Err(MaintenanceError::Refused("SQLite has no server".to_owned()));
        }
        Ok(DatabaseServer::read(&self.one(SERVER).await?).map_err(StoreError::from)?)
    }

    /// The rows of a rehearsal; none without one.
    pub async fn rehearsal_rows(&self) -> Result<BTreeSet<i64>, StoreError> {
        let exists = sqlx::query(self.dialect.table()).bind("textnlp_failover_rehearsal");
        if self.ask(exists.fetch_one(&self.reads)).await?.try_get::<i64, _>(0)? == 0 {
            return Ok(BTreeSet::new());
        }
        let rows = self.ask(sqlx::query(ROWS).fetch_all(&self.reads)).await?;
        Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Removes the rows of a rehearsal. Repeating it succeeds.
    pub async fn end_rehearsal(&self) -> Result<(), StoreError> {
        self.ask(sqlx::query(REMOVE).execute(&self.writes)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::of_postgres;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn server(started_ms: i64) -> DatabaseServer {
        DatabaseServer { system: "7".to_owned(), started_ms, version: 16 }
    }

    #[test]
    fn outage_is_the_longest_time_between_acknowledged_writes() {
        let (mut writes, old, new) = (Writes::default(), server(1), server(2));
        (1..=10).for_each(|n| writes.add(n, at(100 * n as u64), Some(&old)));
        assert_eq!(writes.ended(at(1000), WAIT), None);
        (11..=15).for_each(|n| writes.add(n, at(100 * n as u64), None));
        writes.add(16, at(4000), Some(&new));
        // A primary that fails once more is not back.
        writes.add(17, at(4100), None);
        assert_eq!(writes.ended(at(7000), WAIT), None);
        writes.add(18, at(7100), Some(&new));
        assert_eq!((writes.ended(at(10_099), WAIT), writes.ended(at(10_100), WAIT)), (None, Some(true)));
        // The unacknowledged write 11 is there, the acknowledged one 10 is not.
        let present: BTreeSet<i64> = (1..=18).filter(|n| *n != 10).collect();
        let result = writes.result(at(10_100), Some(&present));
        let expect = RehearsalResult {
            acknowledged: 12,
            failed: 6,
            without_writes_ms: 3100,
            lost: Some(1),
            servers: vec![old, new],
            // What was tried may be there without an acknowledgement.
            by_first: 15,
        };
        assert_eq!(result, expect);
    }

    #[test]
    fn rehearsal_ends_without_a_failure_and_without_a_recovery() {
        let mut writes = Writes::default();
        writes.add(1, at(100), Some(&server(1)));
        assert_eq!((writes.ended(at(59_999), WAIT), writes.ended(at(60_000), WAIT)), (None, Some(true)));
        assert_eq!(writes.ended(at(60_000), LONGEST_WAIT), None);
        writes.add(2, at(1000), None);
        assert_eq!((writes.ended(at(60_999), WAIT), writes.ended(at(61_000), WAIT)), (None, Some(false)));
        let result = writes.result(at(61_000), None);
        assert_eq!((result.lost, result.without_writes_ms, result.failed), (None, 60_900, 1));
    }

    #[tokio::test]
    async fn killed_session_is_a_failed_write_and_the_rows_are_removed() {
        let Some((cluster, name, store)) = of_postgres().await else { return };
        let other = store.clone();
        let rehearsal = tokio::spawn(async move { other.rehearse(None).await });
        let began = Instant::now();
        while store.rehearsal_rows().await.unwrap().len() < 3 {
            assert!(began.elapsed() < WAIT, "nothing is written");
            tokio::time::sleep(EVERY).await;
        }
        let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                    WHERE pid <> pg_backend_pid() AND query LIKE 'INSERT INTO textnlp_failover_rehearsal%'";
        assert_eq!(cluster.sql(&name, kill), "1");
        let result = rehearsal.await.unwrap().unwrap();
        assert!(result.failed >= 1 && result.acknowledged >= 3, "{result:?}");
        // A lost connection is not another server.
        assert_eq!(result.servers, [store.server().await.unwrap()], "{result:?}");
        assert_eq!(result.by_first, result.acknowledged + result.failed);
        assert_eq!(result.lost, Some(0));
        assert!(!store.rehearsal_rows().await.unwrap().is_empty(), "they are there until the end");
        store.end_rehearsal().await.unwrap();
        store.end_rehearsal().await.unwrap();
        assert!(store.rehearsal_rows().await.unwrap().is_empty());
    }
}
