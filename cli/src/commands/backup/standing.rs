//! How an environment stands with its copies: what the last run came to, and what an operator should hear about.

use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_orchestrator::backup::Dump;
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::{EnvironmentName, Lineage};

use super::{archive, keep, moment, shelf};
use crate::again::Again;
use crate::clouds;
use crate::report::Failure;

/// `STATE/backup.json`: also read by the supervisor, which runs the schedule by it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Standing {
    /// The last run, good or bad.
    #[serde(default)]
    pub last: Option<Last>,
    /// When the key was last shown to be carried away.
    #[serde(default)]
    pub key_shown: Option<Timestamp>,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Last {
    /// When it began.
    pub at: Timestamp,
    /// Whether a copy was made and, where that was asked for, proven.
    pub ok: bool,
    /// What came of it.
    pub says: String,
}

fn path(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("backup.json")
}

/// What is written there; a file that cannot be read says nothing.
pub fn read(folder: &Utf8Path) -> Standing {
    std::fs::read(path(folder)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn write(folder: &Utf8Path, standing: &Standing) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(standing).context("write how backups stand")?;
    Ok(keep::put(&path(folder), &text).with_context(|| format!("write {}", path(folder)))?)
}

/// Remembers how a run went.
pub fn ran(folder: &Utf8Path, last: Last) -> Result<(), Failure> {
    write(folder, &Standing { last: Some(last), ..read(folder) })
}

/// Remembers that somebody carried the key away.
pub fn key_was_shown(folder: &Utf8Path) -> Result<(), Failure> {
    write(folder, &Standing { key_shown: Some(Timestamp::now()), ..read(folder) })
}

/// What `up` and `status` say of the copies of an environment.
pub struct Warning {
    /// Lines for people; empty when all is well.
    pub lines: Vec<String>,
    /// The same for programs.
    pub document: Value,
}

/// Looks at the copies of an environment that has data.
pub async fn warning(
    again: &Again,
    name: &EnvironmentName,
    folder: &Utf8Path,
    lineage: Lineage,
    environment: &Environment,
) -> Warning {
    if clouds::dumps_itself(environment) {
        return in_cluster(folder, lineage, environment).await;
    }
    let keep::Settings { protected, backup: settings } = keep::settings(folder, environment);
    let destination = settings.destination.as_deref().filter(|place| !place.contains("://"));
    let standing = read(folder);
    let dumps = shelf(name, folder, destination).list().unwrap_or_default();
    let facts = Facts {
        protected,
        enabled: settings.enabled,
        every: settings.every.0,
        own_recipients: !settings.recipients.is_empty(),
        now: Timestamp::now(),
    };
    let ours: Vec<&Dump> =
        dumps.iter().filter(|dump| dump.facts.as_ref().is_some_and(|facts| facts.lineage == lineage)).collect();
    let mut lines = lines(again, name, &facts, &standing, &ours);
    let archived =
        settings.point_in_time.map(|behind| archived(again, name, folder, lineage, behind.0, &ours, destination));
    if let Some(archived) = &archived {
        lines.extend(archived.lines.iter().cloned());
    }
    let at = |dump: Option<&&Dump>| dump.and_then(|dump| dump.facts.as_ref()).map(|facts| facts.at);
    let document = json!({
        "enabled": settings.enabled,
        "last": standing.last,
        "newest": at(ours.first()),
        "newest_verified": at(ours.iter().find(|dump| dump.is_proven())),
        "key_shown": standing.key_shown,
        "archive": archived.map(|archived| archived.document),
        "warnings": lines,
    });
    Warning { lines, document }
}

/// How an environment stands whose cluster makes dumps of its database by itself.
async fn in_cluster(folder: &Utf8Path, lineage: Lineage, environment: &Environment) -> Warning {
    let every = environment.backup.every.0;
    let last = clouds::last_dump(folder, environment, lineage).await;
    let document = json!({ "enabled": true, "newest_verified": last.as_ref().ok().copied().flatten() });
    let late = |last: Timestamp| {
        let passed = Timestamp::now().duration_since(last).unsigned_abs();
        (passed > every.saturating_mul(2)).then(|| format!("the newest dump of its database is of {last:.0}"))
    };
    let lines = match last {
        Err(error) => vec![format!("nobody could say whether dumps of its database are made: {error:#}")],
        Ok(Some(last)) => late(last).into_iter().collect(),
        Ok(None) => vec![format!(
            "no dump of its database was made yet; make one: kubectl create job --namespace {} first-dump --from=cronjob/textnlp-backup",
            environment.cluster.namespace
        )],
    };
    Warning { lines, document }
}

/// How the archived log stands: how far it goes, and what is wrong with it.
fn archived(
    again: &Again,
    name: &EnvironmentName,
    folder: &Utf8Path,
    lineage: Lineage,
    behind: Duration,
    ours: &[&Dump],
    destination: Option<&str>,
) -> Warning {
    let mut lines = Vec::new();
    let logs = shelf(name, folder, destination).logs().unwrap_or_default();
    let logs = logs.into_iter().filter(|log| log.header().is_some_and(|header| header.lineage == lineage));
    let mut parts = moment::Parts::default();
    let until = logs.filter_map(|log| log.newest(parts.of(&log).ok()?)).max();
    let trouble = archive::trouble(folder);
    let up_to = until.map_or(String::new(), |until| format!(" after {}", moment::shown(until)));
    // Ended, handed over and sealed: each takes its time.
    let slack = behind.saturating_mul(2).saturating_add(Duration::from_secs(60));
    if let Some(trouble) = &trouble {
        lines.push(format!("the log of {name}'s database is NOT archived{up_to}: {}", trouble.says));
    } else if is_silent(until, put_up(folder), slack, Timestamp::now()) {
        let ever = if until.is_some() { "was" } else { "was ever" };
        lines.push(format!("nothing of the log of {name}'s database {ever} archived{up_to}: is it up?"));
    }
    let newest = moment::Range::newest(ours, &mut parts).ok().flatten();
    if let Some(missing) = newest.as_ref().and_then(|range| range.reach.missing.as_ref()) {
        let next = again.command("backup create", name);
        lines.push(format!(
            "the archived log of {name} has a gap: {missing} is missing; from a new backup on it is whole: {next}"
        ));
    }
    let document = json!({
        "until": until, "base": newest.as_ref().map(|range| range.base.from),
        "moments": newest.as_ref().map(moment::Range::document), "trouble": trouble,
    });
    Warning { lines, document }
}

/// Whether nothing was archived for too long: since the last part, or, where there never was one, since the environment was put up as it is.
fn is_silent(until: Option<Timestamp>, put_up: Option<Timestamp>, slack: Duration, now: Timestamp) -> bool {
    until.or(put_up).is_some_and(|since| now.duration_since(since).unsigned_abs() > slack)
}

/// When what the environment says now was put up: `up` writes that down at its end.
fn put_up(folder: &Utf8Path) -> Option<Timestamp> {
    let written = std::fs::metadata(keep::whole(folder)).and_then(|found| found.modified()).ok()?;
    Timestamp::try_from(written).ok()
}

struct Facts {
    protected: bool,
    enabled: bool,
    every: Duration,
    own_recipients: bool,
    now: Timestamp,
}

fn lines(again: &Again, name: &EnvironmentName, facts: &Facts, standing: &Standing, ours: &[&Dump]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(last) = standing.last.as_ref().filter(|last| !last.ok) {
        lines.push(format!("backup FAILED at {}: {}", last.at.strftime("%Y-%m-%d %H:%M UTC"), last.says));
    }
    if facts.protected {
        let young = facts.every.saturating_mul(2);
        let is_young = |dump: &&&Dump| {
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
            lines.push(format!("{name} {why}: {}", again.command(&format!("backup {next}"), name)));
        }
    }
    let sealed_for_us =
        |dump: &&&Dump| dump.facts.as_ref().is_some_and(|known| known.sealed == "keys" && known.recipients.len() < 2);
    let only_here = !facts.own_recipients && ours.iter().any(|dump| sealed_for_us(&dump));
    if standing.key_shown.is_none() && only_here && (facts.enabled || facts.protected) {
        lines.push(format!(
            "the key that opens {name}'s backups is only on this machine; carry it away: {}",
            again.command("backup key show", name)
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_orchestrator::backup::{Facts as Known, Proof};
    use uuid::Uuid;

    fn dump(hours: i64, proven: Option<bool>, now: Timestamp) -> Dump {
        let at = now - jiff::SignedDuration::from_hours(hours);
        let facts = Known {
            format: 1,
            environment: EnvironmentName::new("a").unwrap(),
            lineage: Lineage(Uuid::nil()),
            at,
            bytes: 1,
            sha256: "x".into(),
            sealed: "keys".into(),
            recipients: vec!["age1".into()],
            models: false,
            scheduled: true,
            tool: "t".into(),
            bases: Default::default(),
        };
        let proof = proven.map(|ok| Proof {
            format: 1,
            at,
            sha256: "x".into(),
            ok,
            level: "answered".into(),
            says: String::new(),
            tool: "t".into(),
            milliseconds: 1,
        });
        Dump { file: "f".into(), bytes: 1, facts: Some(facts), proof }
    }

    #[test]
    fn a_log_that_never_came_is_told_like_one_that_stopped() {
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
    fn an_operator_hears_of_what_is_missing_and_of_nothing_else() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let name = EnvironmentName::new("a").unwrap();
        let said = |protected: bool, standing: &Standing, dumps: &[Dump]| {
            let every = Duration::from_secs(86_400);
            let facts = Facts { protected, enabled: true, every, own_recipients: false, now };
            lines(&Again::default(), &name, &facts, standing, &dumps.iter().collect::<Vec<_>>()).join("\n")
        };
        let shown = Standing { last: None, key_shown: Some(now) };
        assert_eq!(said(false, &shown, &[]), "");
        assert!(said(true, &shown, &[]).contains("protected data and no backup: textnlp-deploy backup create"));
        assert!(said(true, &shown, &[dump(1, None, now)]).contains("no verified backup: textnlp-deploy backup verify"));
        assert!(said(true, &shown, &[dump(1, Some(false), now)]).contains("no verified backup"));
        assert!(said(true, &shown, &[dump(49, Some(true), now)]).contains("is old"));
        assert_eq!(said(true, &shown, &[dump(1, None, now), dump(47, Some(true), now)]), "");
        assert!(said(true, &Standing::default(), &[dump(1, Some(true), now)]).contains("backup key show"));
        let failed = Standing { last: Some(Last { at: now, ok: false, says: "no room".into() }), ..shown };
        assert!(said(false, &failed, &[]).contains("FAILED") && said(false, &failed, &[]).contains("no room"));
    }
}
