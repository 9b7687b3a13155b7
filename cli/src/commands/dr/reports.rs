//! `dr history`, `dr report`, `dr verify-report`: results of drills, and their signatures.

use std::fmt::Write as _;

use camino::Utf8Path;
use textnlp_bundle::PublicKey;
use textnlp_orchestrator::dr::report::{self, Report, ReportError};
use textnlp_orchestrator::state::audit::{self, CommandRecord};

use super::sites;
use crate::commands::audited::log_store;
use crate::commands::prelude::*;
use crate::dr_args::{Report as Wanted, VerifyReport};
use crate::report::in_line;

/// How long `dr history` waits for the audit log.
const AUDIT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// `dr history`.
pub async fn history(session: &Session) -> Result<Success, Failure> {
    let sites = sites(session)?;
    let (reports, mut unread) = report::history(&sites.chosen.scope.folder);
    let is_forged = !unread.is_empty();
    let log = match log_store(session, &sites.chosen) {
        // A store in a region that is lost must not keep the reports of this machine back.
        Ok(store) => match tokio::time::timeout(AUDIT_TIMEOUT, audit::read(&*store)).await {
            Ok(log) => log.map_err(|error| textnlp_provider::error_chain(&error)),
            Err(_) => Err(format!("no answer within {} s", AUDIT_TIMEOUT.as_secs())),
        },
        Err(failure) => Err(format!("{:#}", failure.error)),
    };
    let failovers = match log {
        Ok(log) => failovers(log.commands),
        Err(why) => {
            unread.push(format!("the audit log: {why}"));
            Vec::new()
        }
    };
    let name = &sites.chosen.scope.name;
    let mut text = match reports.len() {
        0 if is_forged => "no report of a drill is as this environment signed it".to_owned(),
        0 => format!("{name} has had no drill. To run one: {}", sites.chosen.scope.command("dr drill")),
        _ => format!(
            "{:<24} {:<10} {:<12} {:<6} {:>8} {:>8} {:>6} {:>11} {}\n",
            "DRILL", "FAULT", "SITE", "ON", "RTO", "RPO", "LOST", "NO USAGE", "TARGETS"
        ),
    };
    for report in &reports {
        let _ = writeln!(
            text,
            "{:<24} {:<10} {:<12} {:<6} {:>8} {:>8} {:>6} {:>11} {}",
            report.id,
            report.fault.word(),
            report.site,
            on(report),
            report.rto_s().map_or("-".to_owned(), |s| format!("{s:.2} s")),
            format!("{:.2} s", report.figures.findings.rpo_ms / 1000.0),
            report.figures.findings.lost,
            report.figures.findings.unaccounted,
            if report.missed.is_empty() { "met" } else { "missed" },
        );
    }
    let trend = trend(&reports);
    for one in &trend {
        let words = |field: &str| one[field].as_f64().map_or("-".to_owned(), |s| format!("{s:.2} s"));
        let _ = write!(
            text,
            "\n{} of {} ({}): RTO last {}, median {}, worst {}, of {}",
            one["fault"].as_str().unwrap_or_default(),
            one["site"].as_str().unwrap_or_default(),
            one["on"].as_str().unwrap_or_default(),
            words("last_rto_s"),
            words("median_rto_s"),
            words("worst_rto_s"),
            one["drills"],
        );
    }
    if !failovers.is_empty() {
        text.push_str("\n\nFAILOVERS BY COMMANDS");
        failovers.iter().for_each(|one| text.push_str(&format!("\n{}", failover_text(one))));
    }
    for why in &unread {
        let _ = write!(text, "\nnot read: {why}");
    }
    let document = json!({
        "environment": name, "drills": reports.iter().map(line).collect::<Vec<_>>(), "trend": trend, "failovers": failovers,
        "unread": unread,
    });
    Ok(Success::new(text, document))
}

/// The commands that fail over a site or a database. A drill has its report.
const FAILOVERS: [&str; 4] = ["dr failover", "dr failback", "db failover", "db promote"];

/// Those of the audit log that may have changed something.
fn failovers(mut commands: Vec<CommandRecord>) -> Vec<CommandRecord> {
    let is_refused = |one: &CommandRecord| {
        one.end.as_ref().is_some_and(|end| [Exit::Usage as i32, Exit::Refused as i32].contains(&end.exit))
    };
    commands.retain(|one| FAILOVERS.contains(&one.command.command.as_str()) && !is_refused(one));
    commands
}

fn failover_text(CommandRecord { time, command, end }: &CommandRecord) -> String {
    let words = [&[command.command.clone()][..], &command.arguments[..]].concat().join(" ");
    let outcome = end.as_ref().map_or("did not end", |end| end.outcome.word());
    let text = format!("{}  {words}, by {}: {outcome}", time.strftime("%Y-%m-%d %H:%M UTC"), command.actor);
    in_line(&text).into_owned()
}

/// `dr report [ID]`.
pub fn report(session: &Session, args: &Wanted, console: Console) -> Result<Success, Failure> {
    let sites = sites(session)?;
    let state = &sites.chosen.scope.folder;
    let none = || {
        let error = anyhow::anyhow!("{} has had no drill", sites.chosen.scope.name);
        Failure::usage("no_such_report", error).hint(sites.chosen.scope.command("dr drill"))
    };
    let failed = |error: ReportError| match error {
        ReportError::NoSuch(_) => {
            Failure::usage("no_such_report", error).hint(sites.chosen.scope.command("dr history"))
        }
        error => Failure::new(Exit::Failed, "report", error).hint(sites.chosen.scope.command("dr history")),
    };
    let id = match &args.id {
        Some(id) => id.clone(),
        None => {
            let (mut reports, unread) = report::history(state);
            if !unread.is_empty() {
                console.warn(format!("not shown: {}", unread.join("; ")));
            }
            reports.pop().ok_or_else(none)?.id
        }
    };
    let page = report::folder(state, &id).map_err(failed)?.join("report.html");
    let read = Report::read(state, &id).map_err(failed)?;
    report::verify_own(state, &page).map_err(failed)?;
    let mut document = read.to_json();
    document["report"] = json!(page);
    if args.open_path {
        return Ok(Success::new(page.as_str(), document));
    }
    let mut text = format!(
        "{id}: {} of {}, targets {}\n",
        read.fault.word(),
        read.site,
        if read.missed.is_empty() { "met" } else { "missed" }
    );
    for phase in &read.phases {
        let _ = writeln!(
            text,
            "  {:>7.2} s  {:<10} {:>7.2} s  {}",
            phase.from_s,
            phase.name,
            phase.to_s - phase.from_s,
            phase.says
        );
    }
    let _ = write!(text, "  {page}");
    Ok(Success::new(text, document))
}

/// `dr verify-report FILE`.
pub fn verify(session: &Session, args: &VerifyReport) -> Result<Success, Failure> {
    let wrong_key = |error: anyhow::Error| {
        Failure::usage("wrong_key", error).hint("give the public key with --key; it is STATE/dr/drill-report.pub")
    };
    let key = match &args.key {
        Some(text) if Utf8Path::new(text).is_file() => {
            PublicKey::read(Utf8Path::new(text)).map_err(|e| wrong_key(e.into()))?
        }
        Some(text) => PublicKey::parse(text).map_err(|e| wrong_key(e.into()))?,
        None => report::public_key(&sites(session)?.chosen.scope.folder).map_err(|e| wrong_key(e.into()))?,
    };
    let file = session.here.join(&args.report);
    let what = report::verify(&file, &key).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("{} does not match its signature", args.report));
        Failure::new(Exit::Failed, "not_as_signed", error)
            .hint("use the original report: `dr report --open-path` shows its path")
    })?;
    let text = format!("{} matches its signature: {what}, by key {}", args.report, key.id());
    Ok(Success::new(text, json!({ "file": file, "signed_as": what, "key": key.to_base64(), "key_id": key.id() })))
}

/// The target of the drill. Results from a clone say nothing about the other load on the live machines.
fn on(report: &Report) -> &'static str {
    if report.facts.live { "live" } else { "clone" }
}

fn line(report: &Report) -> Value {
    json!({
        "id": report.id, "began": report.began, "on": on(report), "site": report.site, "fault": report.fault, "lose_data": report.lose_data, "rto_s": report.rto_s(),
        "rpo_s": report.figures.findings.rpo_ms / 1000.0, "lost": report.figures.findings.lost, "unaccounted": report.figures.findings.unaccounted,
        "requests_failed": report.requests_failed(), "leftovers": report.leftovers, "missed": report.missed, "by": report.facts.by,
        "release": report.facts.release, "seconds": report.seconds,
    })
}

/// The median of sorted values; `None` without any.
fn median(sorted: &[f64]) -> Option<f64> {
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// The latest, median and worst RTO and RPO of each kind of failure. Drills on clones are listed separately.
fn trend(reports: &[Report]) -> Vec<Value> {
    let mut kinds: Vec<(&str, &str, &str)> = reports.iter().map(|r| (r.fault.word(), r.site.as_str(), on(r))).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let of = |(fault, site, place): (&str, &str, &str)| {
        let is_same = |r: &&Report| r.fault.word() == fault && r.site == site && on(r) == place;
        let same: Vec<&Report> = reports.iter().filter(is_same).collect();
        let sorted = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values
        };
        let rto = sorted(same.iter().filter_map(|r| r.rto_s()).collect());
        let rpo = sorted(same.iter().map(|r| r.figures.findings.rpo_ms / 1000.0).collect());
        json!({
            "fault": fault, "site": site, "on": place, "drills": same.len(), "missed": same.iter().filter(|r| !r.missed.is_empty()).count(),
            "last_rto_s": same.last().and_then(|r| r.rto_s()), "median_rto_s": median(&rto), "worst_rto_s": rto.last(),
            "last_rpo_s": same.last().map(|r| r.figures.findings.rpo_ms / 1000.0), "median_rpo_s": median(&rpo), "worst_rpo_s": rpo.last(),
            "lost": same.iter().map(|r| r.figures.findings.lost).sum::<u64>(),
        })
    };
    kinds.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use textnlp_orchestrator::state::audit::{AuditedCommand, CommandEnd, CommandOutcome};
    use textnlp_provider::EnvironmentName;

    fn ran(command: &str, exit: Option<Exit>) -> CommandRecord {
        let end = exit.map(|exit| CommandEnd {
            time: Timestamp::UNIX_EPOCH,
            outcome: if exit == Exit::Done { CommandOutcome::Succeeded } else { CommandOutcome::Failed },
            exit: exit as i32,
            code: None,
        });
        let command = AuditedCommand {
            id: uuid::Uuid::from_u128(1),
            environment: EnvironmentName::new("regions").unwrap(),
            command: command.to_owned(),
            arguments: vec!["--env=regions".to_owned()],
            actor: "ada".to_owned(),
            user: None,
            claimed_sudo_user: None,
            host: "machine".to_owned(),
            pid: 7,
            tool: "test".to_owned(),
            release: None,
            reason: None,
        };
        CommandRecord { time: Timestamp::UNIX_EPOCH, command, end }
    }

    #[test]
    fn failovers_by_commands_are_listed_unless_they_were_refused() {
        let log = vec![
            ran("up", Some(Exit::Done)),
            ran("dr failover", Some(Exit::Done)),
            ran("dr failback", Some(Exit::Refused)),
            ran("db promote", Some(Exit::Failed)),
            ran("dr failback", None),
        ];
        let listed: Vec<String> = failovers(log).iter().map(failover_text).collect();
        let at = "1970-01-01 00:00 UTC";
        let expect = ["dr failover --env=regions, by ada: succeeded", "db promote --env=regions, by ada: failed"];
        assert_eq!(listed[..2], expect.map(|line| format!("{at}  {line}")));
        assert_eq!(listed[2..], [format!("{at}  dr failback --env=regions, by ada: did not end")]);
    }

    #[test]
    fn median_of_two_values_is_between_them() {
        let of = |sorted: &[f64]| median(sorted);
        assert_eq!(
            [of(&[]), of(&[1.0]), of(&[1.0, 2.0]), of(&[1.0, 2.0, 9.0])],
            [None, Some(1.0), Some(1.5), Some(2.0)]
        );
    }
}
