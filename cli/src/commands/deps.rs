//! `deps`: what an environment depends on outside of its own programs, and newer versions of what its release uses.

use std::collections::BTreeSet;

use textnlp_orchestrator::release::Lock;
use textnlp_orchestrator::report::table::{Table, TableReport};
use textnlp_service::checks::CheckLine;
use textnlp_service::dependencies::{Dependency, dependencies};
use textnlp_service::updates::{self, Advisories, Change, Security, UsedVersion};

use super::prelude::*;
use super::release::local_release;
use crate::deployment::selection;
use crate::gate_args::AuditArgs;
use crate::operations_args::{CheckUpdates, Deps, DepsCommand, DepsUpdate};
use crate::{check_view, clouds, table_view};

/// `deps …`.
pub async fn deps(session: &Session, args: &Deps, console: Console) -> Result<Success, Failure> {
    match &args.command {
        None => contacted(session, console).await,
        Some(DepsCommand::CheckUpdates(args)) => check_updates(session, args, console).await,
        Some(DepsCommand::Update(args)) => update(session, args, console).await,
    }
}

async fn contacted(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let name = chosen.scope.name.clone();
    let progress = Progress::new(console);
    let select = |chosen| selection(session, chosen);
    let found = dependencies(chosen, &select, async || session.target().await, &progress).await?;
    progress.finish();
    let lines: Vec<CheckLine> = found.iter().map(line).collect();
    let document = json!({ "environment": name, "dependencies": found });
    Ok(check_view::states(&lines, &format!("of {}", found.len()), document, console))
}

fn line(found: &Dependency) -> CheckLine {
    let Dependency { name, site, address, version, result, milliseconds, cause, fix, .. } = found;
    let version = version.as_ref().map_or(String::new(), |version| format!("  version {version}"));
    let took = milliseconds.map_or(String::new(), |took| format!("  {took} ms"));
    let cause = cause.as_ref().map_or(String::new(), |cause| format!("\n{cause}"));
    let says = format!("{address}{version}{took}{cause}");
    CheckLine { site: site.clone(), rule: None, name: (*name).to_owned(), mark: *result, says, fix: fix.clone() }
}

/// The local release, and the versions that the release of an environment uses.
async fn versions(
    session: &Session,
    chosen: &ChosenEnvironment,
    args: &AuditArgs,
    console: Console,
) -> Result<(Lock, Vec<UsedVersion>), Failure> {
    let here = local_release(session, chosen, chosen.lock()?.as_ref(), console)?;
    let progress = Progress::new(console);
    let sources = session.advisories();
    let given = match &args.advisories {
        Some(from) => Some(sources.given(from, &progress).await?.database),
        None => None,
    };
    let advisories = Advisories::of(&sources, given);
    let rows = progress.done(updates::used_versions(chosen, &here, &advisories, &progress).await)?;
    Ok((here, rows))
}

async fn check_updates(session: &Session, args: &CheckUpdates, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let (_, rows) = versions(session, &chosen, &args.audit, console).await?;
    let mut text = table(&rows);
    if rows.iter().any(|row| row.change(false).is_some()) {
        let update = chosen.scope.command("deps update");
        text.push_str(&format!(
            "\nTo take them: {update}\nOnly those with a fix of a known vulnerability: {update} --security-only"
        ));
    }
    let success = Success::new(text, document(&chosen, &rows));
    Ok(match exit(&rows).filter(|_| args.exit_code) {
        Some(exit) => success.exit(exit),
        None => success,
    })
}

/// The exit status of `--exit-code`, if it is not 0.
fn exit(rows: &[UsedVersion]) -> Option<Exit> {
    if rows.iter().any(|row| row.is_newer || row.is_affected()) {
        return Some(Exit::ChangesPlanned);
    }
    rows.iter().any(|row| row.is_unanswered).then_some(Exit::Failed)
}

async fn update(session: &Session, args: &DepsUpdate, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let (here, rows) = versions(session, &chosen, &args.audit, console).await?;
    let planned: Vec<(&UsedVersion, &Change)> =
        rows.iter().filter_map(|row| Some((row, row.change(args.security_only)?))).collect();
    let own: Vec<Change> = planned.iter().map(|(_, change)| (*change).clone()).filter(Change::is_own).collect();
    let stays = |row: &&UsedVersion| row.is_affected() && !row.change(args.security_only).is_some_and(Change::is_own);
    let affected = rows.iter().filter(stays).count();
    let mut document = document(&chosen, &rows);
    document["planned"] = json!(planned.iter().map(|(_, change)| change).collect::<Vec<_>>());
    document["security_only"] = json!(args.security_only);
    document["remaining"] = json!(affected);
    let end = |text: String, document: Value| match affected {
        0 => Success::new(text, document),
        _ => Success::new(format!("{text}\nVersions with a known vulnerability that remain: {affected}."), document)
            .exit(Exit::Failed),
    };
    let list = plan(&rows, &planned, args.security_only);
    if own.is_empty() {
        return Ok(end(format!("{list}\nNothing was written."), document));
    }
    console.say(&list);
    if !session.global.yes && !console.confirm("Write these changes?") {
        let error = anyhow::anyhow!("not approved, so nothing was written");
        let hint = format!("approve it with --yes, or only show it: {}", chosen.scope.command("deps check-updates"));
        return Err(Failure::refused("not_approved", error).hint(hint).document(document));
    }
    let progress = Progress::new(console);
    let (overrides, catalogue) = (session.overrides(), clouds::catalogue());
    let loading = (&session.library, &overrides, &catalogue);
    let changed = progress.done(updates::apply(&chosen, &own, &here, loading, &progress).await)?;
    let written = changed.file.iter().chain(&changed.lock).map(|file| format!("wrote {file}"));
    let (plan, up) = (chosen.scope.of_lock("plan"), chosen.scope.up_of_lock());
    let text = format!("{}\nTo see what changes: {plan}\nTo deploy it: {up}", written.collect::<Vec<_>>().join("\n"));
    (document["changed"], document["next"]) = (json!(changed), json!(up));
    Ok(end(text, document))
}

fn document(chosen: &ChosenEnvironment, rows: &[UsedVersion]) -> Value {
    let count = |is_one: &dyn Fn(&UsedVersion) -> bool| rows.iter().filter(|row| is_one(row)).count();
    json!({
        "environment": chosen.scope.name, "versions": rows, "newer": count(&|row| row.is_newer),
        "affected": count(&UsedVersion::is_affected), "unknown": count(&is_unknown),
    })
}

fn is_unknown(row: &UsedVersion) -> bool {
    row.unknown.is_some() || matches!(row.security, Security::Unknown { .. })
}

/// The table of all versions, with a note for each thing that is not known.
fn table(rows: &[UsedVersion]) -> String {
    let columns = ["KIND", "NAME", "USED", "NEWEST", "SECURITY", "SOURCE", "DATE"].map(str::to_owned).into();
    let cells = rows.iter().map(|row| {
        let newest = match (&row.newest, &row.unknown) {
            (Some(newest), None) if !row.is_newer => format!("{newest} (used)"),
            (Some(newest), _) => newest.clone(),
            (None, _) => "unknown".to_owned(),
        };
        let security = match &row.security {
            Security::Affected { advisories } => {
                advisories.iter().map(|advisory| advisory.id.as_str()).collect::<Vec<_>>().join("\n")
            }
            Security::Unaffected { .. } => "none known".to_owned(),
            Security::Unknown { .. } => "unknown".to_owned(),
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let setting = row.setting.as_ref().map_or(String::new(), |setting| format!("\n  {setting}"));
        let (kind, name, used) = (row.kind.as_str().to_owned(), format!("{}{setting}", row.name), row.used.clone());
        vec![kind, name, used, newest, security, text(&row.source), text(&row.date)]
    });
    let mut notes = Vec::new();
    for row in rows {
        let UsedVersion { kind, name, .. } = row;
        let kind = kind.as_str();
        if let Some(why) = &row.unknown {
            notes.push(format!("{kind} {name}: the newest version is unknown: {why}"));
        }
        match &row.security {
            Security::Affected { advisories } => notes.extend(advisories.iter().map(|advisory| {
                let fixed = advisory.fixed_in.as_deref().unwrap_or("no version");
                format!("{kind} {name}: {}: {}, fixed in {fixed}", advisory.id, advisory.title)
            })),
            Security::Unknown { reason } => {
                notes.push(format!("{kind} {name}: vulnerabilities are unknown: {reason}"));
            }
            Security::Unaffected { by } => notes.push(format!("{kind} {name}: no vulnerability is known by the {by}")),
        }
    }
    // Several settings may name one image.
    let mut shown = BTreeSet::new();
    notes.retain(|note| shown.insert(note.clone()));
    let (newer, affected) = (rows.iter().filter(|row| row.is_newer), rows.iter().filter(|row| row.is_affected()));
    let unknown = rows.iter().filter(|row| is_unknown(row));
    let report = TableReport {
        title: format!(
            "{} newer, {} with a known vulnerability, {} unknown, of {} versions",
            newer.count(),
            affected.count(),
            unknown.count(),
            rows.len()
        ),
        at: jiff::Timestamp::now(),
        facts: Vec::new(),
        tiles: Vec::new(),
        tables: vec![Table { title: "", columns, rows: cells.collect() }],
        notes,
        document: Value::Null,
        charts: Vec::new(),
    };
    table_view::text(&report)
}

/// The changes, and what is left to others.
fn plan(rows: &[UsedVersion], planned: &[(&UsedVersion, &Change)], security_only: bool) -> String {
    let unknown = rows.iter().filter(|row| is_unknown(row)).count();
    let mut lines = Vec::new();
    for (UsedVersion { kind, name, .. }, change) in planned {
        let title = format!("{} {name}", kind.as_str());
        lines.push(match change {
            Change::File { setting, file, line, from, to } => {
                format!("  ~ {title}: {from} → {to}\n      {setting} in {file}:{line}")
            }
            Change::Model { source, commit, .. } => {
                format!("  ~ {title}: commit {commit} of {source}\n      its digest in the release lock")
            }
            Change::Release { what } => {
                format!("  ~ {title}: {} of this machine, in the release lock", what.join(", "))
            }
            Change::Other { how } => format!("  ! {title}: not changed here: {how}"),
        });
    }
    let what = if security_only { "versions with a known vulnerability" } else { "newer versions" };
    let count = planned.iter().filter(|(_, change)| change.is_own()).count();
    lines.push(format!("{} for {what}; unknown versions or vulnerabilities: {unknown}", counted(count, "change")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use textnlp_service::updates::{DependencyKind, MatchedAdvisory};

    use super::*;

    fn row(security: Security) -> UsedVersion {
        UsedVersion {
            kind: DependencyKind::Image,
            name: "r.example/postgres".to_owned(),
            setting: None,
            used: "15.19".to_owned(),
            newest: Some("15.20".to_owned()),
            is_newer: true,
            source: Some("r.example".to_owned()),
            date: None,
            unknown: None,
            is_unanswered: false,
            security,
            update: None,
            fix: None,
        }
    }

    #[test]
    fn unknown_is_shown_with_its_reason_and_an_advisory_with_its_fix() {
        let advisory = MatchedAdvisory {
            id: "BIT-1".to_owned(),
            title: "A flaw".to_owned(),
            fixed_in: Some(">= 15.20.0".to_owned()),
        };
        let affected = row(Security::Affected { advisories: vec![advisory] });
        let unknown = UsedVersion {
            newest: None,
            is_newer: false,
            unknown: Some("no answer within 30 s".to_owned()),
            ..row(Security::Unknown { reason: "no advisories".to_owned() })
        };
        let text = table(&[affected, unknown.clone(), unknown]);
        for part in [
            "1 newer, 1 with a known vulnerability, 2 unknown, of 3 versions",
            "15.19  15.20",
            "BIT-1: A flaw, fixed in >= 15.20.0",
            "the newest version is unknown: no answer within 30 s",
            "vulnerabilities are unknown: no advisories",
        ] {
            assert_eq!(text.matches(part).count(), 1, "{part}: {text}");
        }
    }

    #[test]
    fn exit_status_names_what_was_found_before_what_was_not_answered() {
        let newer = row(Security::Unaffected { by: "OSV".to_owned() });
        let unanswered = UsedVersion { is_newer: false, is_unanswered: true, ..newer.clone() };
        let known = UsedVersion { is_newer: false, ..newer.clone() };
        assert_eq!(exit(&[unanswered.clone(), newer]), Some(Exit::ChangesPlanned));
        assert_eq!(exit(&[unanswered, known.clone()]), Some(Exit::Failed));
        assert_eq!(exit(&[known]), None);
    }

    #[test]
    fn plan_names_the_line_and_what_it_does_not_change() {
        let row = row(Security::Unaffected { by: "OSV".to_owned() });
        let line = Change::File {
            setting: "sites[0].cluster.database_image".to_owned(),
            file: "pilot.yaml".to_owned(),
            line: 7,
            from: "r/x:1".to_owned(),
            to: "r/x:2".to_owned(),
        };
        let other = Change::Other { how: "install a program".to_owned() };
        let text = plan(std::slice::from_ref(&row), &[(&row, &line), (&row, &other)], false);
        assert!(text.contains("r/x:1 → r/x:2") && text.contains("in pilot.yaml:7"), "{text}");
        assert!(text.contains("! image r.example/postgres: not changed here: install a program"), "{text}");
        assert!(text.ends_with("1 change for newer versions; unknown versions or vulnerabilities: 0"), "{text}");
    }
}
