//! Rehearses a failover of the database: its primary is killed, or its cloud fails it over, while rows are written.
//! Acknowledged rows that are missing afterwards are counted.
//!
//! The server program of the site writes the rows, beside the database. The signed record is in the state folder, where
//! the gate reads it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::run::Run;
use textnlp_orchestrator::standby::{self, Standby, StandbyError};
use textnlp_orchestrator::state::{Locked, Operator};
use textnlp_provider::Lineage;
use textnlp_provider::operations::{DatabaseInstances, DatabaseStatus};
use textnlp_provider::settings::Hosting;
use tokio_util::sync::CancellationToken;

use crate::gate::order::digest_of;
use crate::gate::{applied, read_signed, sha256, write_signed};
use crate::keys::{Admin, SiteJobs};
use crate::up::run_failed;
use crate::{ChosenEnvironment, Exit, Failure, Progress, RunningEnvironment, Scope};

/// The `admin` command of the server program.
const DATABASE: &str = "database";
/// Rows before the primary is killed.
const ROWS_BEFORE: u64 = 10;
/// How long the first rows may take: a job in a cluster is scheduled first.
const ROWS_TIMEOUT: Duration = Duration::from_secs(50);
/// How long all instances may take to be ready again.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// The same for the database of a cloud, which creates another standby, with the failover itself.
const MANAGED_READY_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long writes to the database of a cloud may go on before its failover, and how long they may fail then: one to two
/// minutes are usual
/// (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/Concepts.MultiAZ.Failover.html>).
const MANAGED_SECONDS: u64 = 300;
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The records that are kept.
const MAX_RECORDS: usize = 50;

/// The record of a rehearsal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailoverRecord {
    /// The deployment.
    pub lineage: Lineage,
    /// The digest of what the applied release runs.
    pub release: Option<String>,
    /// When it began.
    pub at: Timestamp,
    /// The operator.
    pub by: String,
    /// The reason that the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The program and its version.
    pub tool: String,
    /// The machine that it ran on.
    pub host: String,
    /// The count of instances.
    pub instances: u32,
    /// The primary that was killed or failed over.
    pub killed: String,
    /// The primary afterwards: the same one, where it was restarted.
    pub primary: String,
    /// Seconds until all instances were ready again. `None` if they were not in time.
    pub ready_s: Option<f64>,
    /// Why the writes were not measured, if so: the primary was killed all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmeasured: Option<String>,
    /// What the writes met.
    #[serde(flatten)]
    pub writes: WriteResult,
}

/// What the writes met, as the server program reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteResult {
    /// Writes that the database acknowledged.
    pub acknowledged: u64,
    /// Writes that failed.
    pub failed: u64,
    /// The longest time between two acknowledged writes, in milliseconds.
    pub without_writes_ms: u64,
    /// Acknowledged writes that are missing. `None` if writes did not succeed again.
    pub lost: Option<u64>,
    /// The servers that acknowledged writes, in that order. Earlier releases reported none.
    #[serde(default)]
    pub servers: Vec<DatabaseServer>,
    /// The number of the last write that was tried before another server than the first of them acknowledged one.
    #[serde(default)]
    pub by_first: u64,
}

/// A running PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseServer {
    /// The system identifier, which a primary and its replicas share.
    pub system: String,
    /// When it started, in milliseconds since 1970: each instance has another time, and a new one after a restart.
    pub started_ms: i64,
    /// The major version.
    pub version: i64,
}

/// What a rehearsal counts for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningDatabase {
    /// The digest of what the applied release runs.
    pub release: Option<String>,
    /// The count of instances that the environment asks for. The database's own count is not read: that needs the rights
    /// of a rehearsal.
    pub instances: u32,
    /// The server that answers.
    pub server: DatabaseServer,
}

impl RunningDatabase {
    /// Asks the running database.
    pub async fn of(chosen: &ChosenEnvironment, running: &RunningEnvironment) -> Result<Self, Failure> {
        let jobs = Admin::of(chosen, running).site(running.serving().await).await?;
        let answer = jobs.run(DATABASE, &json!({ "do": "server" })).await?;
        Ok(Self {
            release: applied_digest(&chosen.scope.folder)?,
            instances: match chosen.loaded.environment.database_hosting() {
                Some(Hosting::Managed) => standby::INSTANCES,
                _ => chosen.loaded.environment.database.replicas + 1,
            },
            server: serde_json::from_value(answer).context("read the server of the database")?,
        })
    }
}

fn applied_digest(folder: &Utf8Path) -> Result<Option<String>, Failure> {
    Ok(applied(folder)?.map(|applied| digest_of(&applied.lock)))
}

/// The records of a state folder, oldest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Records {
    rehearsals: Vec<FailoverRecord>,
}

/// Reads the records, if this environment signed them. Else why they are not used.
pub fn records(folder: &Utf8Path) -> Result<Vec<FailoverRecord>, String> {
    let records: Option<Records> = read_signed(folder, &file(folder), what)?;
    Ok(records.unwrap_or_default().rehearsals)
}

/// Adds a record. A file without a valid signature is replaced.
pub fn keep(folder: &Utf8Path, record: &FailoverRecord) -> anyhow::Result<Utf8PathBuf> {
    let mut rehearsals = records(folder).unwrap_or_default();
    rehearsals.push(record.clone());
    let old = rehearsals.len().saturating_sub(MAX_RECORDS);
    let bytes = serde_json::to_vec_pretty(&Records { rehearsals: rehearsals.split_off(old) })?;
    write_signed(folder, &file(folder), &bytes, &what(&bytes))?;
    Ok(file(folder))
}

fn file(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("evidence").join("failovers.json")
}

fn what(bytes: &[u8]) -> String {
    format!("textnlp database failovers, sha256 {}", sha256(bytes))
}

/// Why no failover of the environment's database can be rehearsed, if so.
pub fn unsupported(environment: &Environment) -> Option<String> {
    let replicas = environment.database.replicas;
    match environment.database_hosting() {
        None => Some("SQLite has one instance, which does not fail over".to_owned()),
        Some(Hosting::Cluster) if environment.shares_database() => {
            Some("the database moves between sites, which `dr drill` rehearses".to_owned())
        }
        Some(Hosting::Cluster | Hosting::Managed) if replicas == 0 => {
            Some("the database has one instance: `database.replicas` is 0".to_owned())
        }
        Some(Hosting::Cluster | Hosting::Managed) => None,
        Some(hosting) => Some(format!("the failover of a database with `hosting: {hosting}` is not rehearsed")),
    }
}

/// A database that is ready for a rehearsal.
pub struct Rehearsal<'a> {
    scope: &'a Scope,
    jobs: SiteJobs<'a>,
    instances: Instances<'a>,
    lineage: Lineage,
    release: Option<String>,
    /// The instances before it.
    pub before: DatabaseStatus,
}

/// Where the instances of the database are.
enum Instances<'a> {
    /// In the site, whose primary is killed.
    Own(Arc<dyn DatabaseInstances>),
    /// In a cloud, which fails over to the standby.
    Managed(&'a Run<'a>, Box<Standby>),
}

impl Instances<'_> {
    async fn status(&self, lineage: Lineage) -> anyhow::Result<DatabaseStatus> {
        Ok(match self {
            Self::Own(instances) => instances.status(lineage).await?,
            Self::Managed(run, standby) => standby.status(run).await?,
        })
    }

    async fn fail_over(&self, lineage: Lineage, primary: &str, locked: &mut Locked) -> anyhow::Result<()> {
        match self {
            Self::Own(instances) => instances.kill_primary(lineage, primary).await?,
            Self::Managed(run, standby) => standby::fail_over(run, standby, locked).await?,
        }
        Ok(())
    }
}

impl<'a> Rehearsal<'a> {
    /// Checks that the database can be rehearsed now. Changes nothing.
    pub async fn prepare(
        chosen: &'a ChosenEnvironment,
        running: &'a RunningEnvironment,
        run: &'a Run<'a>,
    ) -> Result<Self, Failure> {
        let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
        let refused = |why: String| {
            let error = anyhow::anyhow!(why).context("no failover can be rehearsed; nothing was changed");
            Failure::refused("not_rehearsed", error)
        };
        if let Some(why) = unsupported(environment) {
            let hint = "a PostgreSQL with `database.replicas`, and `database.hosting` `cluster` or `managed`, can be";
            return Err(refused(why).hint(hint));
        }
        let (instances, before) = if environment.database_hosting() == Some(Hosting::Managed) {
            let standby = standby::find(run).await.map_err(|error| not_found(error, scope))?;
            let before = standby.before();
            (Instances::Managed(run, Box::new(standby)), before)
        } else {
            let own = scope.platform.find(&scope.folder, environment, None, |site| site.database())?;
            let Some(own) = own else { return Err(refused("its site has no database of its own".to_owned())) };
            let before = own.status(running.lineage).await?;
            (Instances::Own(own), before)
        };
        let DatabaseStatus { wanted, ready, .. } = before;
        if wanted < 2 || ready < wanted {
            let why = format!("{ready} of {wanted} instances of the database are ready, and at least 2 are needed");
            return Err(refused(why).hint(scope.command("status")));
        }
        let admin = Admin::of(chosen, running);
        let jobs = admin.site(running.serving().await).await?;
        let release = applied_digest(&scope.folder).map_err(|failure| failure.hint(scope.last_up()))?;
        Ok(Self { scope, jobs, instances, lineage: running.lineage, release, before })
    }

    /// What is done to the primary: `killed`.
    pub fn action(&self) -> &'static str {
        match self.instances {
            Instances::Own(_) => "killed",
            Instances::Managed(..) => "failed over to its standby",
        }
    }

    /// Kills the primary while rows are written, or has its cloud fail it over, and waits until all instances are ready
    /// again. `locked` is the state. Before the kill, `stop` ends it.
    pub async fn run(
        &self,
        operator: Operator,
        locked: &mut Locked,
        clock: &dyn Clock,
        progress: &dyn Progress,
        stop: &CancellationToken,
    ) -> Result<FailoverRecord, Failure> {
        let at = clock.now();
        let result = self.measured((at, operator), locked, clock, progress, stop).await;
        // A writer that was abandoned ends by itself.
        if let Err(failure) = self.task("end_rehearsal").await {
            progress.warn(&format!(
                "the table textnlp_failover_rehearsal was not removed, which the next rehearsal does: {:#}",
                failure.error
            ));
        }
        result
    }

    async fn measured(
        &self,
        (at, operator): (Timestamp, Operator),
        locked: &mut Locked,
        clock: &dyn Clock,
        progress: &dyn Progress,
        stop: &CancellationToken,
    ) -> Result<FailoverRecord, Failure> {
        if let Instances::Managed(_, standby) = &self.instances {
            standby::permit(standby, locked).await.map_err(|error| not_found(error, self.scope))?;
        }
        progress.doing("writing rows");
        // Rows of a killed rehearsal would be taken for new ones.
        self.task("end_rehearsal").await?;
        let mut writer = std::pin::pin!(self.write());
        let rows = tokio::select! {
            ended = &mut writer => {
                let why = ended.map_or_else(|failure| failure.error, |_| anyhow::anyhow!("it ended"));
                return Err(self.failed(why.context(format!("write rows; the primary was not {}", self.action()))));
            }
            rows = self.rows(clock) => rows?,
            () = stop.cancelled() => {
                let error = anyhow::anyhow!("stopped before the primary was {}", self.action());
                return Err(Failure::new(Exit::Stopped, "stopped", error).hint(self.again()));
            }
        };
        let killed = &self.before.primary;
        progress.line(&format!("The primary {killed} is {} …", self.action()));
        let killed_at = clock.steady();
        // From here on there is a record: a failure may have come after the kill, and an older record must not stand for it.
        let measured = async {
            let mut failover = std::pin::pin!(self.instances.fail_over(self.lineage, killed, locked));
            progress.doing("waiting until writes succeed again");
            // The failover of a cloud goes on after writes succeed again. It is never dropped: its end is recorded.
            let writes = tokio::select! {
                done = &mut failover => {
                    done?;
                    writer.await
                }
                writes = &mut writer => {
                    match failover.await {
                        Err(error) if !is_not_made(&error) => progress.warn(&format!("{error:#}")),
                        ended => ended?,
                    }
                    writes
                }
            };
            let writes = writes.map_err(|failure| failure.error)?;
            let writes: WriteResult = serde_json::from_value(writes).context("read the result of the writes")?;
            through_killed(&writes, rows).map_err(|why| anyhow::anyhow!("{why}, so {killed} was not measured"))?;
            anyhow::Ok(writes)
        };
        let measured = match measured.await {
            Err(error) if is_not_made(&error) => return Err(self.failed(error)),
            measured => measured,
        };
        progress.doing("waiting until all instances are ready");
        let timeout = match self.instances {
            Instances::Own(_) => READY_TIMEOUT,
            Instances::Managed(..) => MANAGED_READY_TIMEOUT,
        };
        let after = self.ready_again(clock, killed_at + timeout).await;
        let passed = clock.steady().saturating_sub(killed_at);
        let Operator { by, reason, tool, host, .. } = operator;
        Ok(FailoverRecord {
            lineage: self.lineage,
            release: self.release.clone(),
            at,
            by,
            reason,
            tool,
            host,
            instances: self.before.wanted,
            killed: killed.clone(),
            primary: after.as_ref().map_or_else(|| "unknown".to_owned(), |after| after.primary.clone()),
            ready_s: after.map(|_| (passed.as_secs_f64() * 10.0).round() / 10.0),
            unmeasured: measured.as_ref().err().map(|error| format!("{error:#}")),
            writes: measured.unwrap_or_default(),
        })
    }

    /// Waits until rows are written, and returns their count.
    async fn rows(&self, clock: &dyn Clock) -> Result<u64, Failure> {
        let until = clock.steady() + ROWS_TIMEOUT;
        loop {
            let answer = self.task("rehearsal_rows").await?;
            let rows = answer["rows"].as_u64().unwrap_or_default();
            has_no_gap(rows, answer["last"].as_u64()).map_err(|why| self.failed(anyhow::anyhow!(why)))?;
            if rows >= ROWS_BEFORE {
                return Ok(rows);
            }
            if clock.steady() >= until {
                let seconds = ROWS_TIMEOUT.as_secs();
                let why = format!("no rows were written within {seconds} s; the primary was not {}", self.action());
                let why = anyhow::anyhow!(why);
                return Err(self.failed(why));
            }
            clock.sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until all instances are ready. `None` if they are not in time.
    async fn ready_again(&self, clock: &dyn Clock, until: Duration) -> Option<DatabaseStatus> {
        loop {
            match self.instances.status(self.lineage).await {
                Ok(status) if status.ready >= self.before.wanted => return Some(status),
                // A reading may fail while the database moves.
                _ if clock.steady() >= until => return None,
                _ => clock.sleep(POLL_INTERVAL).await,
            }
        }
    }

    async fn task(&self, task: &str) -> Result<Value, Failure> {
        self.perform(&json!({ "do": task }), Duration::ZERO).await
    }

    /// Writes rows until writes failed and succeed again.
    async fn write(&self) -> Result<Value, Failure> {
        match self.instances {
            Instances::Own(_) => self.task("rehearse").await,
            Instances::Managed(..) => {
                let input = json!({ "do": "rehearse", "seconds": MANAGED_SECONDS });
                self.perform(&input, Duration::from_secs(2 * MANAGED_SECONDS)).await
            }
        }
    }

    async fn perform(&self, input: &Value, takes: Duration) -> Result<Value, Failure> {
        let done = self.jobs.run_for(DATABASE, input, takes).await;
        done.map_err(|failure| {
            // The command line is right; the running server refuses it, or is of a release without this command.
            let exit = if failure.exit == Exit::Usage { Exit::Refused } else { failure.exit };
            let hint = is_unknown_command(&failure)
                .then(|| format!("deploy a release with this command first: {}", self.scope.last_up()));
            Failure { exit, code: "rehearsal", hint: hint.or(failure.hint), ..failure }
        })
    }

    fn failed(&self, error: anyhow::Error) -> Failure {
        Failure::new(Exit::Failed, "rehearsal", error).hint(self.scope.command("status"))
    }

    fn again(&self) -> String {
        self.scope.command("db failover")
    }
}

/// Whether the running release has no such command of `admin database`.
pub fn is_unknown_command(failure: &Failure) -> bool {
    failure.error.to_string().contains("unknown variant")
}

/// Why the database of a cloud cannot be failed over now.
fn not_found(error: StandbyError, scope: &Scope) -> Failure {
    let status = || scope.command("status");
    let hint = match error {
        StandbyError::Run(error) => return run_failed(error, Purpose::Up, scope),
        StandbyError::Unread { ref source, .. } => source.hint.clone().unwrap_or_else(status),
        StandbyError::SeveralSites => "choose one with --site SITE".to_owned(),
        StandbyError::Busy { .. } => format!("finish it first: {}", scope.last_up()),
        StandbyError::NotReady { .. } => {
            format!("its standby comes from `database.replicas`, and takes minutes: {}", status())
        }
        StandbyError::NotRecorded | StandbyError::NotMade { .. } | StandbyError::Incomplete { .. } => status(),
    };
    let error = anyhow::Error::from(error).context("no failover can be rehearsed; nothing was changed");
    Failure::refused("not_rehearsed", error).hint(hint)
}

/// Whether its cloud was not asked for a failover, or refused it: there is nothing to record.
fn is_not_made(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StandbyError::NotMade { .. }))
}

/// Ok if no write failed: they are numbered, and `last` is the number of the last row.
fn has_no_gap(rows: u64, last: Option<u64>) -> Result<(), String> {
    match last.filter(|last| *last > rows) {
        Some(last) => Err(format!("{rows} of {last} writes succeeded before the failover, which was not made")),
        None => Ok(()),
    }
}

/// Ok if the writes went through the server that was killed. `rows`: those that were there just before the kill.
fn through_killed(writes: &WriteResult, rows: u64) -> Result<(), String> {
    let WriteResult { servers, by_first, lost, .. } = writes;
    match (servers.as_slice(), lost) {
        ([], _) => Err("the running release does not report the server of the writes: run `up` first".to_owned()),
        _ if *by_first < rows => Err(format!("the server changed before the kill, after write {by_first} of {rows}")),
        // Writes never succeeded again.
        (_, None) => Ok(()),
        ([first, .., last], _) if first.system != last.system => Err("the writes went to two databases".to_owned()),
        ([first, .., last], _) if first != last => Ok(()),
        _ => Err("the same server acknowledged writes before and after the kill".to_owned()),
    }
}

/// Why a rehearsal says nothing about what runs now, if so.
pub fn outdated(record: &FailoverRecord, now: &RunningDatabase) -> Option<String> {
    let FailoverRecord { release, instances, writes, .. } = record;
    let Some(server) = writes.servers.last() else { return Some("it did not record the server".to_owned()) };
    if *release != now.release {
        return Some("another release ran then".to_owned());
    }
    if *instances != now.instances {
        return Some(format!("the database had {instances} instances then, and has {} now", now.instances));
    }
    if server.version != now.server.version {
        return Some(format!("PostgreSQL {} ran then, and {} runs now", server.version, now.server.version));
    }
    (server.system != now.server.system).then(|| "it was of another database".to_owned())
}

/// Ok if no acknowledged write is lost and the database is whole again.
pub fn verdict(record: &FailoverRecord) -> Result<(), String> {
    if let Some(why) = &record.unmeasured {
        return Err(format!("the writes were not measured: {why}"));
    }
    match (record.writes.lost, record.ready_s) {
        (None, _) => Err("writes did not succeed again in time".to_owned()),
        (Some(0), None) => Err("not all instances were ready again in time".to_owned()),
        (Some(0), Some(_)) => Ok(()),
        (Some(lost), _) => Err(format!("{lost} acknowledged writes are lost")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};
    use uuid::Uuid;

    use super::*;

    pub(crate) fn record(second: i64, lost: Option<u64>) -> FailoverRecord {
        FailoverRecord {
            lineage: Lineage(Uuid::nil()),
            release: None,
            at: Timestamp::from_second(second).unwrap(),
            by: "ada".to_owned(),
            reason: None,
            tool: "textnlp-deploy".to_owned(),
            host: "here".to_owned(),
            instances: 3,
            killed: "database-1".to_owned(),
            primary: "database-2".to_owned(),
            ready_s: Some(40.0),
            unmeasured: None,
            writes: WriteResult {
                acknowledged: 100,
                failed: 5,
                without_writes_ms: 2100,
                lost,
                servers: vec![server(1), server(2)],
                by_first: 40,
            },
        }
    }

    fn server(started_ms: i64) -> DatabaseServer {
        DatabaseServer { system: "7".to_owned(), started_ms, version: 16 }
    }

    /// What [`record`] is of.
    pub(crate) fn running() -> RunningDatabase {
        RunningDatabase { release: None, instances: 3, server: server(3) }
    }

    #[test]
    fn only_writes_through_the_killed_server_measure_it() {
        let good = record(0, Some(0)).writes;
        let refused = |writes: WriteResult| through_killed(&writes, 12).unwrap_err();
        assert_eq!(through_killed(&good, 12), Ok(()));
        assert_eq!(through_killed(&WriteResult { lost: None, servers: vec![server(1)], ..good.clone() }, 12), Ok(()));
        // Writes failed each time, but not because this server was killed.
        assert!(refused(WriteResult { servers: vec![server(1)], ..good.clone() }).contains("the same server"));
        let returned = vec![server(1), server(2), server(1)];
        assert!(refused(WriteResult { servers: returned, ..good.clone() }).contains("the same server"));
        assert!(refused(WriteResult { by_first: 11, ..good.clone() }).contains("before the kill"));
        // One of the rows was not acknowledged: it timed out just before the kill, and was committed.
        assert_eq!(through_killed(&WriteResult { by_first: 12, acknowledged: 11, ..good.clone() }, 12), Ok(()));
        assert_eq!((has_no_gap(12, Some(12)), has_no_gap(12, None)), (Ok(()), Ok(())));
        assert!(has_no_gap(12, Some(13)).unwrap_err().contains("12 of 13 writes"));
        let other = DatabaseServer { system: "8".to_owned(), ..server(2) };
        assert!(refused(WriteResult { servers: vec![server(1), other], ..good.clone() }).contains("two databases"));
        assert!(refused(WriteResult { servers: Vec::new(), ..good }).contains("`up`"));
    }

    #[test]
    fn rehearsal_counts_for_the_release_instances_and_database_of_its_time() {
        let (record, now) = (record(0, Some(0)), running());
        assert_eq!(outdated(&record, &now), None);
        let why = |now: RunningDatabase| outdated(&record, &now).unwrap_or_default();
        assert!(why(RunningDatabase { release: Some("sha256:1".to_owned()), ..now.clone() }).contains("release"));
        assert!(why(RunningDatabase { instances: 2, ..now.clone() }).contains("3 instances then, and has 2 now"));
        let of = |server| RunningDatabase { server, ..now.clone() };
        assert!(why(of(DatabaseServer { version: 17, ..server(3) })).contains("PostgreSQL 16 ran then, and 17"));
        assert!(why(of(DatabaseServer { system: "8".to_owned(), ..server(3) })).contains("another database"));
    }

    #[test]
    fn records_count_only_as_signed_and_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        assert_eq!(records(folder), Ok(Vec::new()));
        for second in 0..=MAX_RECORDS {
            keep(folder, &record(i64::try_from(second).unwrap(), Some(0))).unwrap();
        }
        let kept = records(folder).unwrap();
        assert_eq!((kept.len(), kept[0].at.as_second()), (MAX_RECORDS, 1));
        let written = std::fs::read_to_string(file(folder)).unwrap();
        let changed = written.replace("\"lost\": 0", "\"lost\": 1");
        crate::backup::put_file(&file(folder), changed.as_bytes()).unwrap();
        assert!(records(folder).unwrap_err().contains("failovers.json is not verified"));
    }

    #[test]
    fn only_a_replicated_database_of_one_site_is_rehearsed() {
        let why = |name: &str, sets: &[&str]| {
            let sets = sets.iter().map(|set| (*set).to_owned()).collect();
            let loaded =
                Library::built_in().load(name, &Overrides { sets, ..Overrides::default() }, &Catalogue::default());
            unsupported(&loaded.unwrap().environment).unwrap_or_default()
        };
        assert_eq!(why("pilot", &[]), "");
        assert!(why("staging", &[]).contains("SQLite"));
        assert!(why("staging", &["database.kind=postgres"]).contains("`database.replicas` is 0"));
        assert_eq!(why("staging", &["database.kind=postgres", "database.replicas=1"]), "");
        assert!(why("multi-region", &["database.kind=postgres"]).contains("`dr drill`"));
        assert_eq!(why("pilot", &["database.hosting=managed"]), "");
        assert!(
            why("pilot", &["database.hosting=managed", "database.replicas=0"]).contains("`database.replicas` is 0")
        );
    }

    #[test]
    fn verdict_names_what_was_missed() {
        assert_eq!(verdict(&record(0, Some(0))), Ok(()));
        assert!(verdict(&record(0, Some(2))).unwrap_err().contains("2 acknowledged writes"));
        assert!(verdict(&record(0, None)).unwrap_err().contains("did not succeed again"));
        let incomplete = FailoverRecord { ready_s: None, ..record(0, Some(0)) };
        assert!(verdict(&incomplete).unwrap_err().contains("ready again in time"));
    }
}
