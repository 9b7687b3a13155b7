//! The lines of an audit that come from records and from the objects of a cluster.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_orchestrator::backup::StoredBackup;
use textnlp_orchestrator::dr::report;
use textnlp_orchestrator::environment::model::SiteSettings;
use textnlp_orchestrator::state::State;
use textnlp_provider::Lineage;
use textnlp_provider::operations::SecurityAspect;
use textnlp_provider::units::counted;

use super::{NAMED, Rule, day, set};
use crate::backup::backup_status::BackupWarning;
use crate::backup::{backup_status, failed, settings, shelf};
use crate::checks::Checks;
use crate::failure::hinted_chain;
use crate::keys::Admin;
use crate::{Deployment, RunningEnvironment};

/// The oldest restore that counts, as for drills.
const RESTORED_WITHIN: SignedDuration = SignedDuration::from_hours(24 * 90);
/// The period of the audit log that is read.
const AUDITED: SignedDuration = SignedDuration::from_hours(24 * 30);
/// Records that are counted at most.
const AUDIT_PAGE: u64 = 2000;
/// How late a record may be deleted: the servers delete old ones once an hour, and none while they are stopped.
const SWEEP: SignedDuration = SignedDuration::from_hours(48);

/// The objects of the sites in clusters, and that other sites have none.
pub(super) async fn clusters(report: &mut Checks, deployment: &Deployment, lineage: Lineage) {
    const ASPECTS: [(SecurityAspect, Rule, &str, &str); 5] = [
        (SecurityAspect::Images, Rule::Images, "images", "release set"),
        (SecurityAspect::Roles, Rule::Roles, "roles", "up"),
        (SecurityAspect::Pods, Rule::Pods, "pods", "up"),
        (SecurityAspect::Ports, Rule::OpenPorts, "open ports", "up"),
        (SecurityAspect::Backups, Rule::BackupEncryption, "backup encryption", "up"),
    ];
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let in_clusters: Vec<&SiteSettings> = environment.sites.iter().filter(|site| site.is_in_cluster()).collect();
    for site in &in_clusters {
        report.site = Some(site.name.clone());
        let operations = scope.platform.operations(&scope.folder, environment, site, None);
        let home = environment.primary().is_some_and(|home| home.name == site.name);
        let has_backups = environment.backup.enabled && home;
        for (aspect, rule, name, fix) in ASPECTS {
            if aspect == SecurityAspect::Backups && !has_backups {
                continue;
            }
            report.rule = Some(rule);
            let fix = scope.command(fix);
            let audited = match &operations {
                Ok(operations) => match operations.clone().security() {
                    Some(security) => security.audit(lineage, aspect).await.map_err(|error| hinted_chain(&error)),
                    None => Err("the provider of this site does not read them".to_owned()),
                },
                Err(error) => Err(format!("{error:#}")),
            };
            match audited {
                Err(why) => report.unknown(name, why, scope.command("status")),
                Ok(audited) if audited.findings.is_empty() => report.well(name, audited.read),
                Ok(audited) => {
                    let named: Vec<String> = audited.findings.iter().take(NAMED).cloned().collect();
                    let more = audited.findings.len() - named.len();
                    let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
                    report.warning(name, format!("{}{more}", named.join("\n")), fix);
                }
            }
        }
    }
    report.site = None;
    if in_clusters.is_empty() {
        for (rule, name) in [(Rule::Images, "images"), (Rule::Roles, "roles"), (Rule::Pods, "pods")] {
            report.rule = Some(rule);
            report.well(name, "there is no cluster");
        }
    }
}

/// The age of the newest backup.
pub(super) async fn backup_age(report: &mut Checks, deployment: &Deployment, lineage: Lineage) {
    const NAME: &str = "backup age";
    report.rule = Some(Rule::BackupAge);
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let status = backup_status::warning(scope, lineage, environment).await;
    for BackupWarning { cause, fix } in &status.lines {
        report.warning(NAME, cause, fix);
    }
    match status.newest() {
        _ if !status.lines.is_empty() => {}
        Some(newest) => report.well(NAME, format!("the newest is of {newest}")),
        None if status.is_enabled() => {
            report.unknown(NAME, "there is no backup yet", scope.command("backup create"));
        }
        None => report.warning(NAME, "no backups are taken", set(&deployment.chosen, "backup.enabled: true")),
    }
}

/// The newest backup that was restored and compared, or drill of a site failure.
pub(super) async fn restore_test(report: &mut Checks, deployment: &Deployment, lineage: Lineage) {
    const NAME: &str = "restore test";
    report.rule = Some(Rule::RestoreTest);
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let (now, mut tests) = (Timestamp::now(), Vec::new());
    let verify = match scope.platform.site_backups(&scope.folder, environment) {
        Ok(Some(backups)) => {
            if environment.backup.verify
                && let Ok(Some(at)) = backups.last(lineage).await
            {
                tests.push((at, "the backup job restored and compared its dump".to_owned()));
            }
            scope.command("backup create")
        }
        _ => {
            let settings = settings::settings(&scope.folder, environment);
            let stored = shelf(scope.platform, &scope.name, &scope.folder, &settings);
            let stored = match stored.and_then(|shelf| shelf.list().map_err(failed)) {
                Ok(stored) => stored,
                Err(failure) => {
                    return report.unknown(NAME, format!("{:#}", failure.error), scope.command("backup list"));
                }
            };
            let ours = |one: &&StoredBackup| one.facts.as_ref().is_some_and(|facts| facts.lineage == lineage);
            let verified = stored.iter().filter(ours).filter(|one| one.is_proven());
            let at = |one: &StoredBackup| one.proof.as_ref().map(|proof| proof.at);
            tests.extend(verified.filter_map(at).map(|at| (at, "a backup was restored and compared".to_owned())));
            scope.command("backup verify")
        }
    };
    tests.extend(report::history(&scope.folder).0.iter().map(|drill| (drill.began, format!("drill {}", drill.id))));
    tests.sort();
    match tests.last() {
        Some((at, what)) if now.duration_since(*at) <= RESTORED_WITHIN => {
            report.well(NAME, format!("{}: {what}", day(*at)));
        }
        Some((at, what)) => report.warning(NAME, format!("the last one is of {}: {what}", day(*at)), verify),
        None => report.warning(NAME, "no backup of this deployment was ever restored and compared", verify),
    }
}

/// The audit log of the service: it answers, and has records.
pub(super) async fn audit_log(report: &mut Checks, deployment: &Deployment, running: &RunningEnvironment) {
    const NAME: &str = "audit log";
    report.rule = Some(Rule::AuditLog);
    let scope = &deployment.chosen.scope;
    let export = scope.command("audit export");
    if running.is_endpoint() {
        return report.unknown(NAME, "an inference endpoint has none; the cloud records its invocations", export);
    }
    let admin = Admin::of(&deployment.chosen, running);
    let since = Timestamp::now() - AUDITED;
    let (mut count, mut more) = (0, false);
    for place in admin.places() {
        let request = json!({
            "after": 0, "since": since.as_millisecond(), "limit": AUDIT_PAGE, "operator": admin.operator(),
        });
        let page = match admin.site(place).await {
            Ok(site) => site.run("audit", &request).await,
            Err(failure) => Err(failure),
        };
        match page {
            Ok(page) => {
                count += page["events"].as_array().map_or(0, Vec::len);
                more |= page["next"].as_i64().is_some();
            }
            Err(failure) => return report.unknown(NAME, format!("{:#}", failure.error), export),
        }
    }
    let sign = if more { "at least " } else { "" };
    match count {
        // Reading it is recorded itself, so an empty one does not record.
        0 => report.problem(NAME, "it has no record of the last 30 days", export),
        count => report.well(NAME, format!("{sign}{} of the last 30 days", counted(count, "record"))),
    }
}

/// Records that the servers delete after a time.
struct Retained {
    name: &'static str,
    records: &'static str,
    setting: &'static str,
    days: u32,
    /// The command of the server that reads the oldest one, and where its answer has the time.
    command: &'static str,
    request: Value,
    oldest: &'static str,
}

/// The oldest usage record and the oldest audit event, beside the configured retention.
pub(super) async fn retention(report: &mut Checks, deployment: &Deployment, running: &RunningEnvironment) {
    report.rule = Some(Rule::Retention);
    let server = &deployment.chosen.loaded.environment.server;
    if running.is_endpoint() {
        return report.well("retention", "an inference endpoint has no usage records");
    }
    let admin = Admin::of(&deployment.chosen, running);
    let usage = Retained {
        name: "retention",
        records: "usage record",
        setting: "server.usage.retention_days",
        days: server.usage.retention_days,
        command: "usage",
        request: json!({ "from": 0, "until": 1 }),
        oldest: "/since_ms",
    };
    let audit = Retained {
        name: "audit log retention",
        records: "audit event",
        setting: "server.audit.retention_days",
        days: server.audit.retention_days,
        command: "audit",
        request: json!({ "after": 0, "since": 0, "limit": 1, "operator": admin.operator() }),
        oldest: "/events/0/until",
    };
    for retained in [usage, audit] {
        retained.check(report, deployment, running).await;
    }
}

impl Retained {
    async fn check(self, report: &mut Checks, deployment: &Deployment, running: &RunningEnvironment) {
        let Self { name, records, setting, days, .. } = self;
        let scope = &deployment.chosen.scope;
        if days == 0 {
            let fix = set(&deployment.chosen, &format!("{setting}: 400"));
            return report.warning(name, format!("{records}s are kept for ever"), fix);
        }
        let answer = match Admin::of(&deployment.chosen, running).site(running.serving().await).await {
            Ok(site) => site.run(self.command, &self.request).await,
            Err(failure) => Err(failure),
        };
        let oldest = match answer {
            Ok(answer) => answer.pointer(self.oldest).and_then(Value::as_i64),
            Err(failure) => return report.unknown(name, format!("{:#}", failure.error), scope.command("status")),
        };
        let most = SignedDuration::from_hours(24 * i64::from(days)) + SWEEP;
        match oldest.and_then(|ms| Timestamp::from_millisecond(ms).ok()) {
            None => report.well(name, format!("{days} days; there are no {records}s")),
            Some(since) if Timestamp::now().duration_since(since) <= most => {
                report.well(name, format!("{days} days; the oldest {records} is of {}", day(since)));
            }
            Some(since) => {
                let says = format!("{days} days are configured, and the oldest {records} is of {}", day(since));
                report.problem(name, says, scope.command("logs"));
            }
        }
    }
}

/// Where alerts are sent.
pub(super) fn alert_receivers(report: &mut Checks, deployment: &Deployment) {
    const NAME: &str = "alert receivers";
    report.rule = Some(Rule::AlertReceivers);
    let receivers = &deployment.chosen.loaded.environment.monitoring.receivers;
    let names: Vec<&str> = receivers.keys().map(String::as_str).collect();
    if names.is_empty() {
        let fix = "set `monitoring.receivers`: docs/guide/alerts.md";
        return report.warning(NAME, "no alert reaches a person", fix);
    }
    report.well(NAME, names.join(", "));
}

/// The journals, whose chain of digests was checked when they were read.
pub(super) fn changes(report: &mut Checks, deployment: &Deployment, state: &State) {
    report.rule = Some(Rule::ChangeRecord);
    let heads = state.heads();
    let records: u64 = heads.values().map(|head| head.n).sum();
    let torn = state.torn().count();
    let show = deployment.chosen.scope.command("state history");
    match torn {
        0 => report.well(
            "journal",
            format!("{} of {}, chained by digest", counted(records, "record"), counted(heads.len(), "site")),
        ),
        _ => report.warning("journal", format!("the last record of {} is incomplete", counted(torn, "site")), show),
    }
}
