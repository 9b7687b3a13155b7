//! The backup status of an environment: the result of the last run, and warnings for the operator.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_orchestrator::backup::{EncryptionKind, StoredBackup};
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::operations::SiteBackups;
use textnlp_provider::{EnvironmentName, Lineage};

use super::{archive, failed, local, point_in_time, settings, shelf};
use crate::{Failure, RerunFlags, Scope};

/// Time for the first backup to start after `up`. The supervisor looks at the schedule each second, and repeats a failed start
/// after a minute.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// Time for the first backup to be taken and verified, also while it waits for an `up` that still runs.
const RUN_TIMEOUT: Duration = Duration::from_secs(3600);

/// `STATE/backup.json`. The supervisor reads it for the schedule.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BackupStatus {
    /// The last run, successful or not.
    #[serde(default)]
    pub last: Option<LastRun>,
    /// When the run in progress started. One that was killed leaves it.
    #[serde(default)]
    pub started: Option<Timestamp>,
    /// When the key was last shown to the operator.
    #[serde(default)]
    pub key_shown: Option<Timestamp>,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastRun {
    /// When the run started.
    pub at: Timestamp,
    /// Whether a backup was taken and, if requested, verified.
    pub ok: bool,
    /// The result of the run.
    pub says: String,
}

fn path(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("backup.json")
}

/// Reads the status file. An unreadable one counts as empty.
pub fn read(folder: &Utf8Path) -> BackupStatus {
    std::fs::read(path(folder)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn write(folder: &Utf8Path, standing: &BackupStatus) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(standing).context("write the backup status")?;
    Ok(settings::put(&path(folder), &text).with_context(|| format!("write {}", path(folder)))?)
}

/// Records the result of a run.
pub fn ran(folder: &Utf8Path, last: LastRun) -> Result<(), Failure> {
    write(folder, &BackupStatus { last: Some(last), started: None, ..read(folder) })
}

/// Records that a run starts.
pub fn starts(folder: &Utf8Path, at: Timestamp) -> Result<(), Failure> {
    write(folder, &BackupStatus { started: Some(at), ..read(folder) })
}

/// Whether the first scheduled backup is about to be taken, or is being taken: nothing is wrong without one.
pub fn is_first_expected(folder: &Utf8Path) -> bool {
    is_first_due(&read(folder), provisioned_at(folder), Timestamp::now())
}

/// See [`is_first_expected`]. The supervisor starts the first backup when `up` has ended.
fn is_first_due(standing: &BackupStatus, provisioned: Option<Timestamp>, now: Timestamp) -> bool {
    let is_within = |since: Option<Timestamp>, most: Duration| {
        since.is_some_and(|since| now.duration_since(since).unsigned_abs() <= most)
    };
    standing.last.is_none() && (is_within(standing.started, RUN_TIMEOUT) || is_within(provisioned, START_TIMEOUT))
}

/// Records that the operator has displayed the key.
pub fn key_was_shown(folder: &Utf8Path) -> Result<(), Failure> {
    write(folder, &BackupStatus { key_shown: Some(Timestamp::now()), ..read(folder) })
}

/// Records that the key was replaced: the operator has not displayed the new one yet.
pub fn key_was_replaced(folder: &Utf8Path) -> Result<(), Failure> {
    write(folder, &BackupStatus { key_shown: None, ..read(folder) })
}

/// The backup warnings of `up` and `status`.
pub struct Warning {
    /// Empty without warnings.
    pub lines: Vec<BackupWarning>,
    /// The same as JSON, with the newest backup.
    pub document: Value,
}

/// One warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupWarning {
    /// What is wrong.
    pub cause: String,
    /// The command that helps.
    pub fix: String,
}

impl fmt::Display for BackupWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause, self.fix)
    }
}

impl Warning {
    /// When the newest backup was taken, if there is one.
    pub fn newest(&self) -> Option<&str> {
        ["newest", "newest_verified"].into_iter().find_map(|name| self.document[name].as_str())
    }

    /// Whether backups are taken on a schedule.
    pub fn is_enabled(&self) -> bool {
        self.document["enabled"] == true
    }
}

/// Checks the backups of an environment that stores data.
pub async fn warning(scope: &Scope, lineage: Lineage, environment: &Environment) -> Warning {
    let Scope { platform, again, name, folder } = scope;
    match platform.site_backups(folder, environment) {
        Ok(None) => {}
        Ok(Some(backups)) => return by_site(scope, &*backups, lineage, environment).await,
        Err(error) => return unknown(scope, &error),
    }
    let recorded = settings::settings(folder, environment);
    let stored = shelf(*platform, name, folder, &recorded).and_then(|shelf| shelf.list().map_err(failed));
    let settings::Settings { protected, backup: settings, .. } = recorded;
    let destination = settings.destination.as_deref().filter(|target| !target.contains("://"));
    let standing = read(folder);
    let (dumps, unread) = match stored {
        Ok(dumps) => (dumps, None),
        Err(failure) => (Vec::new(), Some(failure.error)),
    };
    let facts = BackupFacts {
        // Whether there are backups is unknown.
        protected: protected && unread.is_none(),
        enabled: settings.enabled,
        every: settings.every.0,
        own_recipients: !settings.recipients.is_empty(),
        first_is_due: settings.enabled && is_first_due(&standing, provisioned_at(folder), Timestamp::now()),
        now: Timestamp::now(),
    };
    let ours: Vec<&StoredBackup> =
        dumps.iter().filter(|dump| dump.facts.as_ref().is_some_and(|facts| facts.lineage == lineage)).collect();
    let mut lines = lines(again, name, &facts, &standing, &ours);
    lines.extend(unread.map(|error| {
        let cause = format!("the backups of {name} cannot be listed ({error:#})");
        BackupWarning { cause, fix: again.command("backup list", name) }
    }));
    let archived =
        settings.point_in_time.map(|behind| archived(again, name, folder, lineage, behind.0, &ours, destination));
    if let Some(archived) = &archived {
        lines.extend(archived.lines.iter().cloned());
    }
    let at = |dump: Option<&&StoredBackup>| dump.and_then(|dump| dump.facts.as_ref()).map(|facts| facts.at);
    let document = json!({
        "enabled": settings.enabled,
        "last": standing.last,
        "started": standing.started,
        "newest": at(ours.first()),
        "newest_verified": at(ours.iter().find(|dump| dump.is_proven())),
        "key_shown": standing.key_shown,
        "archive": archived.map(|archived| archived.document),
        "warnings": lines.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    Warning { lines, document }
}

/// The status of backups that a site takes itself.
async fn by_site(scope: &Scope, backups: &dyn SiteBackups, lineage: Lineage, environment: &Environment) -> Warning {
    let every = environment.backup.every.0;
    let last = match backups.last(lineage).await {
        Ok(last) => last,
        Err(error) => return unknown(scope, &error.into()),
    };
    let is_late = |last: Timestamp| Timestamp::now().duration_since(last).unsigned_abs() > every.saturating_mul(2);
    let cause = match last {
        Some(last) => is_late(last).then(|| format!("the newest dump of its database is of {last:.0}")),
        None => Some("its database has no dump yet".to_owned()),
    };
    let lines: Vec<_> = cause.into_iter().map(|cause| BackupWarning { cause, fix: backups.first_command() }).collect();
    Warning { lines, document: json!({ "enabled": true, "newest_verified": last }) }
}

/// The warning if the backup status of a site is unknown.
fn unknown(scope: &Scope, error: &anyhow::Error) -> Warning {
    let cause = format!("the backups of its database are unknown ({error:#})");
    let lines = vec![BackupWarning { cause, fix: scope.command("backup list") }];
    Warning { lines, document: json!({ "enabled": true, "newest_verified": null }) }
}

/// The status of the archived log: how far it reaches, and what is wrong.
fn archived(
    again: &RerunFlags,
    name: &EnvironmentName,
    folder: &Utf8Path,
    lineage: Lineage,
    behind: Duration,
    ours: &[&StoredBackup],
    destination: Option<&str>,
) -> Warning {
    let mut lines = Vec::new();
    let logs = local(name, folder, destination).logs().unwrap_or_default();
    let logs = logs.into_iter().filter(|log| log.header().is_some_and(|header| header.lineage == lineage));
    let mut parts = point_in_time::SegmentNames::default();
    let until = logs.filter_map(|log| log.newest(parts.of(&log).ok()?)).max();
    let trouble = archive::trouble(folder);
    let up_to = until.map_or(String::new(), |until| format!(" after {}", point_in_time::format_time(until)));
    // Allows for the time to finish, transfer and encrypt a log file.
    let slack = behind.saturating_mul(2).saturating_add(Duration::from_secs(60));
    if let Some(trouble) = &trouble {
        let cause = format!("the log of {name}'s database is NOT archived{up_to} ({})", trouble.says);
        lines.push(BackupWarning { cause, fix: again.command("logs", name) });
    } else if is_silent(until, provisioned_at(folder), slack, Timestamp::now()) {
        let ever = if until.is_some() { "was" } else { "was never" };
        let cause = format!("the log of {name}'s database {ever} archived{up_to}; check that the database runs");
        lines.push(BackupWarning { cause, fix: again.command("status", name) });
    }
    let newest = point_in_time::Range::newest(ours, &mut parts).ok().flatten();
    if let Some(missing) = newest.as_ref().and_then(|range| range.reach.missing.as_ref()) {
        let cause = format!(
            "the archived log of {name} has a gap, {missing} is missing; to start a complete log, create a backup"
        );
        lines.push(BackupWarning { cause, fix: again.command("backup create", name) });
    }
    let document = json!({
        "until": until, "base": newest.as_ref().map(|range| range.base.from),
        "moments": newest.as_ref().map(point_in_time::Range::document), "trouble": trouble,
    });
    Warning { lines, document }
}

/// Whether nothing was archived for too long: since the last log file, or since the environment was provisioned.
fn is_silent(until: Option<Timestamp>, put_up: Option<Timestamp>, slack: Duration, now: Timestamp) -> bool {
    until.or(put_up).is_some_and(|since| now.duration_since(since).unsigned_abs() > slack)
}

/// When the current settings were provisioned: `up` records them at its end.
fn provisioned_at(folder: &Utf8Path) -> Option<Timestamp> {
    let written = std::fs::metadata(settings::provisioned_file(folder)).and_then(|found| found.modified()).ok()?;
    Timestamp::try_from(written).ok()
}

struct BackupFacts {
    protected: bool,
    enabled: bool,
    every: Duration,
    own_recipients: bool,
    first_is_due: bool,
    now: Timestamp,
}

fn lines(
    again: &RerunFlags,
    name: &EnvironmentName,
    facts: &BackupFacts,
    standing: &BackupStatus,
    ours: &[&StoredBackup],
) -> Vec<BackupWarning> {
    let mut lines = Vec::new();
    if let Some(last) = standing.last.as_ref().filter(|last| !last.ok) {
        let cause = format!("backup FAILED at {} ({})", last.at.strftime("%Y-%m-%d %H:%M UTC"), last.says);
        lines.push(BackupWarning { cause, fix: again.command("backup create", name) });
    }
    let verified = ours.iter().filter_map(|dump| Some((dump, dump.proof.as_ref()?)));
    let last = verified.max_by_key(|(_, proof)| proof.at);
    // A run that failed is the warning above.
    if let Some((dump, proof)) = last.filter(|(_, proof)| !proof.ok && lines.is_empty()) {
        let (file, at) = (dump.file.file_name().unwrap_or_default(), proof.at.strftime("%Y-%m-%d %H:%M UTC"));
        let cause = format!("the verification of {name}'s backup {file} FAILED at {at} ({})", proof.says);
        lines.push(BackupWarning { cause, fix: again.command("backup create", name) });
    }
    if facts.protected && !facts.first_is_due {
        let young = facts.every.saturating_mul(2);
        let is_young = |dump: &&&StoredBackup| {
            let at = dump.facts.as_ref().map(|known| known.at);
            dump.is_proven() && at.is_some_and(|at| facts.now.duration_since(at).unsigned_abs() <= young)
        };
        if !ours.iter().any(|dump| is_young(&dump)) {
            let why = if ours.is_empty() {
                "has protected data and no backup"
            } else if ours.iter().any(|dump| dump.is_proven()) {
                "has protected data and its last verified backup is old"
            } else {
                "has protected data and no verified backup"
            };
            let next = if ours.is_empty() || ours.iter().any(|dump| dump.is_proven()) { "create" } else { "verify" };
            let fix = again.command(&format!("backup {next}"), name);
            lines.push(BackupWarning { cause: format!("{name} {why}"), fix });
        }
    }
    let encrypted_for_us = |dump: &&&StoredBackup| {
        dump.facts.as_ref().is_some_and(|known| known.sealed == EncryptionKind::Keys && known.recipients.len() < 2)
    };
    let only_here = !facts.own_recipients && ours.iter().any(|dump| encrypted_for_us(&dump));
    if standing.key_shown.is_none() && only_here && (facts.enabled || facts.protected) {
        let cause = format!("the key that decrypts {name}'s backups is only on this machine; export it");
        lines.push(BackupWarning { cause, fix: again.command("backup key show", name) });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_orchestrator::backup::{BackupFacts as Known, VerificationResult};
    use uuid::Uuid;

    fn dump(hours: i64, proven: Option<bool>, now: Timestamp) -> StoredBackup {
        let at = now - jiff::SignedDuration::from_hours(hours);
        let facts = Known {
            format: 1,
            environment: EnvironmentName::new("a").unwrap(),
            lineage: Lineage(Uuid::nil()),
            at,
            bytes: 1,
            sha256: "x".into(),
            sealed: EncryptionKind::Keys,
            recipients: vec!["age1".into()],
            models: false,
            scheduled: true,
            tool: "t".into(),
            bases: Default::default(),
        };
        let proof = proven.map(|ok| VerificationResult {
            format: 1,
            at,
            sha256: "x".into(),
            ok,
            level: "answered".into(),
            says: String::new(),
            tool: "t".into(),
            milliseconds: 1,
        });
        StoredBackup { file: "f".into(), bytes: 1, facts: Some(facts), proof }
    }

    #[test]
    fn wal_archive_that_never_started_is_reported_like_a_stopped_one() {
        let at = |text: &str| -> Timestamp { format!("2026-11-20T{text}Z").parse().unwrap() };
        let is_silent = |until: Option<&str>, put_up: Option<&str>| {
            super::is_silent(until.map(at), put_up.map(at), Duration::from_secs(120), at("12:00:00"))
        };
        assert!(is_silent(Some("11:50:00"), Some("10:00:00")) && !is_silent(Some("11:59:00"), Some("10:00:00")));
        assert!(is_silent(None, Some("11:50:00")), "point_in_time is on, and nothing ever came");
        assert!(!is_silent(None, Some("11:59:00")), "it was put up just now");
        assert!(!is_silent(None, None), "it was never put up");
    }

    #[test]
    fn backup_warnings_report_only_actual_problems() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let name = EnvironmentName::new("a").unwrap();
        let warnings_of = |protected: bool, standing: &BackupStatus, dumps: &[StoredBackup]| {
            let every = Duration::from_secs(86_400);
            let first_is_due = is_first_due(standing, None, now);
            let facts = BackupFacts { protected, enabled: true, every, own_recipients: false, first_is_due, now };
            let dumps: Vec<_> = dumps.iter().collect();
            let lines = lines(&RerunFlags::default(), &name, &facts, standing, &dumps);
            lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let shown = BackupStatus { key_shown: Some(now), ..BackupStatus::default() };
        assert_eq!(warnings_of(false, &shown, &[]), "");
        assert!(warnings_of(true, &shown, &[]).contains("protected data and no backup: textnlp-deploy backup create"));
        assert!(
            warnings_of(true, &shown, &[dump(1, None, now)])
                .contains("no verified backup: textnlp-deploy backup verify")
        );
        assert!(warnings_of(true, &shown, &[dump(1, Some(false), now)]).contains("no verified backup"));
        let rotten = warnings_of(false, &shown, &[dump(1, Some(false), now), dump(2, Some(true), now)]);
        assert!(rotten.contains("a's backup f FAILED at 2026-11-20 11:00 UTC"), "{rotten}");
        assert_eq!(warnings_of(false, &shown, &[dump(1, Some(true), now), dump(2, Some(false), now)]), "");
        assert!(warnings_of(true, &shown, &[dump(49, Some(true), now)]).contains("is old"));
        assert_eq!(warnings_of(true, &shown, &[dump(1, None, now), dump(47, Some(true), now)]), "");
        assert!(warnings_of(true, &BackupStatus::default(), &[dump(1, Some(true), now)]).contains("backup key show"));
        let hours = |hours| now - jiff::SignedDuration::from_hours(hours);
        let first = |started| BackupStatus { started: Some(started), ..shown.clone() };
        assert_eq!(warnings_of(true, &first(now), &[]), "", "the first one is being taken");
        assert_eq!(warnings_of(true, &first(now), &[dump(0, None, now)]), "", "it is being verified");
        assert!(warnings_of(true, &first(hours(2)), &[]).contains("protected data and no backup"), "it was killed");
        let second = BackupStatus { last: Some(LastRun { at: hours(72), ok: true, says: "ok".into() }), ..first(now) };
        assert!(warnings_of(true, &second, &[dump(72, Some(true), now)]).contains("is old"));
        assert!(is_first_due(&shown, Some(now), now) && !is_first_due(&shown, Some(hours(1)), now));
        let failed = BackupStatus { last: Some(LastRun { at: now, ok: false, says: "no room".into() }), ..shown };
        assert!(
            warnings_of(false, &failed, &[]).contains("FAILED") && warnings_of(false, &failed, &[]).contains("no room")
        );
    }
}
