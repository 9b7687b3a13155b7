//! Backups on a schedule: starts the backup command when one is due. When it fails, the units continue.
//!
//! The command writes the outcome to `STATE/backup.json`, in wall-clock time: a backup that was missed during a suspend
//! is made at once.

use std::process::ExitStatus;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use textnlp_keys::{SiteFolder, files};
use textnlp_provider::component::Backup;
use tokio::process::Child;

use super::background::{Complaint, own_program};
use super::output::{self, Notes};
use crate::names::BACKUP_FILE;

/// The longest pause after a failed backup.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Pause after a command that did not record its outcome.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// A backup that takes longer hangs.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// A clock that is behind the record by less than this was only corrected.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// The outcome of the last backup, as the command records it.
#[derive(Debug, Clone, Deserialize)]
struct BackupOutcome {
    #[serde(default)]
    last: Option<LastRun>,
}

#[derive(Debug, Clone, Deserialize)]
struct LastRun {
    at: Timestamp,
    ok: bool,
}

/// The schedule of a site and the running backup.
pub(super) struct Schedule {
    folder: SiteFolder,
    running: Option<(Child, Timestamp)>,
    tried: Option<Timestamp>,
    /// The last backup that was taken, which the command may have been unable to record: its disk may be full.
    taken: Option<Timestamp>,
    /// The last complaint about the order, so that it is logged once.
    complaint: Complaint,
}

impl Schedule {
    pub(super) fn new(folder: &SiteFolder) -> Self {
        Self { folder: folder.clone(), running: None, tried: None, taken: None, complaint: Complaint::about("backup") }
    }

    /// Checks whether a backup ended and whether one is due.
    pub(super) fn look(&mut self, now: Timestamp, notes: &mut Notes) {
        if self.is_running(now, notes) {
            return;
        }
        let order = match self.order() {
            Ok(Some(order)) => order,
            Ok(None) => return,
            Err(why) => return self.complaint.say(why, notes),
        };
        if !is_due(self.last().as_ref(), Duration::from_secs(order.every_seconds), now)
            || self.tried.is_some_and(|at| is_within(at, now, RETRY_INTERVAL))
        {
            return;
        }
        self.tried = Some(now);
        match self.start() {
            Ok(child) => {
                notes.say("backup started");
                self.running = Some((child, now));
                self.complaint.end();
            }
            Err(error) => self.complaint.say(format!("it cannot be started: {error}"), notes),
        }
    }

    /// The problem of the backups: the last one failed or was not verified, or none was made for two periods.
    pub(super) fn trouble(&self, now: Timestamp) -> Option<String> {
        let order = self.order().ok().flatten()?;
        let last = self.last()?;
        if !last.ok {
            return Some(format!("the backup of {:.0} failed or could not be verified, see `backup list`", last.at));
        }
        let twice = Duration::from_secs(order.every_seconds.saturating_mul(2));
        (!is_within(last.at, now, twice)).then(|| format!("the newest backup is from {:.0}", last.at))
    }

    fn is_running(&mut self, now: Timestamp, notes: &mut Notes) -> bool {
        let Some((child, since)) = &mut self.running else { return false };
        let log = self.folder.log(LOG);
        let ended = |status: ExitStatus| match status.success() {
            true => "backup created".to_owned(),
            false => format!("backup FAILED ({status}): {}", output::tail(&log, 3)),
        };
        let message = match child.try_wait() {
            Ok(None) if is_within(*since, now, BACKUP_TIMEOUT) => return true,
            Ok(None) => {
                format!("backup FAILED: it took longer than {} h and was stopped", BACKUP_TIMEOUT.as_secs() / 3600)
            }
            Ok(Some(status)) => {
                self.taken = Some(*since).filter(|_| status.success()).or(self.taken);
                ended(status)
            }
            Err(error) => format!("backup FAILED: {error}"),
        };
        // A child that still lives is killed when it is dropped.
        self.running = None;
        notes.say(&message);
        let _ = output::keep_bounded(&log);
        false
    }

    fn order(&self) -> Result<Option<Backup>, String> {
        match files::read_bounded(&self.folder.join(BACKUP_FILE), files::TEXT_MAX) {
            Ok(text) => {
                let order: Backup = serde_yaml::from_slice(&text).map_err(|error| format!("{BACKUP_FILE}: {error}"))?;
                Ok(Some(order))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{BACKUP_FILE}: {error}")),
        }
    }

    fn last(&self) -> Option<LastRun> {
        let text = files::read_bounded(&self.folder.state().join("backup.json"), files::TEXT_MAX).ok();
        let recorded = text.and_then(|text| serde_json::from_slice::<BackupOutcome>(&text).ok()?.last);
        let taken = self.taken.map(|at| LastRun { at, ok: true });
        // A recorded run began a moment after its command was started.
        recorded.into_iter().chain(taken).max_by_key(|run| run.at)
    }

    /// The command is this program itself, which can read the state.
    fn start(&self) -> std::io::Result<Child> {
        own_program(&self.folder, &self.folder.log(LOG))?
            .args(["backup", "run", "--folder", self.folder.state().as_str()])
            .args(["--order", self.folder.join(BACKUP_FILE).as_str()])
            .spawn()
    }
}

const LOG: &str = "backup";

/// Whether a backup is due: one period after the start of the last good one, sooner after a failure. Due at once when
/// there is none, or when the clock was set back before it.
fn is_due(last: Option<&LastRun>, every: Duration, now: Timestamp) -> bool {
    let Some(last) = last else { return true };
    let pause = if last.ok { every } else { every.min(RETRY_MAX) };
    !is_within(last.at, now, pause)
}

/// Whether `now` is in the period of length `long` from `since`. A clock before `since`, beyond [`CLOCK_SLACK`], is
/// outside.
fn is_within(since: Timestamp, now: Timestamp, long: Duration) -> bool {
    let passed = now.duration_since(since);
    if passed.is_negative() { passed.unsigned_abs() <= CLOCK_SLACK } else { passed.unsigned_abs() < long }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;
    use jiff::SignedDuration;

    #[test]
    fn backup_is_due_after_its_interval_sooner_after_a_failure() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let day = Duration::from_secs(86_400);
        let due =
            |hours: i64, ok: bool| is_due(Some(&LastRun { at: now - SignedDuration::from_mins(hours), ok }), day, now);
        assert!(is_due(None, day, now));
        assert!(!due(60, true) && !due(23 * 60, true) && due(24 * 60, true));
        assert!(due(24 * 60 * 9, true), "nine missed ones are one");
        assert!(!due(4, false) && due(5, false));
        assert!(due(-60, true), "a clock that was an hour ahead does not put copies off");
        let minute = Duration::from_secs(60);
        let at = now - SignedDuration::from_secs(61);
        assert!(is_due(Some(&LastRun { at, ok: false }), minute, now), "no longer than the period itself");
    }

    #[test]
    fn backup_that_was_taken_and_not_recorded_is_not_due_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        let mut schedule = Schedule::new(&SiteFolder::at(&state.join("sites/here")));
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let record = |ok: bool| {
            let text = format!(r#"{{"last":{{"at":"2026-11-20T12:00:00Z","ok":{ok},"says":""}}}}"#);
            std::fs::write(state.join("backup.json"), text).unwrap();
        };
        assert!(schedule.last().is_none());
        record(false);
        assert_eq!(schedule.last().map(|run| run.ok), Some(false));
        schedule.taken = Some(at("2026-11-20T13:00:00Z"));
        let last = schedule.last().unwrap();
        assert_eq!((last.at, last.ok), (at("2026-11-20T13:00:00Z"), true));
        assert!(!is_due(Some(&last), Duration::from_secs(3600), at("2026-11-20T13:10:00Z")));
        schedule.taken = Some(at("2026-11-20T11:59:59Z"));
        assert_eq!(schedule.last().map(|run| run.ok), Some(false), "its own record counts");
    }

    #[test]
    fn missing_schedule_runs_nothing_and_a_broken_one_is_logged_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(&Utf8PathBuf::from_path_buf(dir.path().join("sites/here")).unwrap());
        for name in ["log", "config"] {
            files::make_folder(&folder.join(name)).unwrap();
        }
        let mut notes = Notes::open(folder.log("supervisor"));
        let mut schedule = Schedule::new(&folder);
        schedule.look(Timestamp::now(), &mut notes);
        assert!(schedule.running.is_none());
        std::fs::write(folder.join(BACKUP_FILE), "every_seconds: often").unwrap();
        schedule.look(Timestamp::now(), &mut notes);
        schedule.look(Timestamp::now(), &mut notes);
        let log = std::fs::read_to_string(folder.log("supervisor")).unwrap();
        assert_eq!(log.matches("config/backup.yaml").count(), 1, "{log}");
    }
}
