//! What is known of the security of a running environment, with evidence and the command that fixes it.

mod probe;
mod records;
mod rules;
pub mod sarif;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_bundle::scan::Database;
use textnlp_orchestrator::backup::{EncryptionKind, StoredBackup};
use textnlp_orchestrator::environment::model::{SiteSettings, TlsMode};
use textnlp_orchestrator::environment::{
    ACCOUNT_KEY, API_KEY, CACHE_PASSWORD, DATABASE_PASSWORD, Library, REPLICATION_PASSWORD, SIGNING_KEY,
};
use textnlp_orchestrator::gate::{Check, Exemption};
use textnlp_orchestrator::plan::Facts;
use textnlp_orchestrator::state::State;
use textnlp_provider::{Lineage, Recorded};

use crate::backup::{failed, settings, shelf};
use crate::bundle::advisories::{AdvisorySources, RUSTSEC};
use crate::bundle::installed;
use crate::checks::{Checks, ENDS_SOON, ENDS_SOON_DAYS};
use crate::keys::{Admin, has_all_scopes};
use crate::sockets::listeners;
use crate::{ChosenEnvironment, Deployment, Failure, Progress, RunningEnvironment, Scope, audit, quoted};

pub use rules::{RULES, Rule, RuleDefinition};

/// The age from which a key that does not end is a warning. NIST SP 800-57 Part 1 (5.3.6) recommends at most one to three
/// years for signing keys, and at most two for authentication keys.
const KEY_AGE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// Items that one line names.
const NAMED: usize = 5;

/// Audits a running environment. `given`: the advisories that the operator gave. `is_full`: also sends requests to it.
pub async fn audit(
    deployment: &Deployment,
    running: &RunningEnvironment,
    library: &Library,
    (sources, given): (&AdvisorySources, Option<&Database>),
    is_full: bool,
    progress: &dyn Progress,
) -> Result<Checks, Failure> {
    let state = deployment.state().await?;
    progress.doing("reading the sites");
    let facts = deployment.facts(&state).await?;
    let mut report = Checks::default();
    permissions(&mut report, deployment);
    access(&mut report, deployment);
    if is_full {
        progress.doing("sending requests to the service");
        probe::probe(&mut report, deployment, running).await;
    }
    certificates(&mut report, deployment, &facts);
    generated_keys(&mut report, deployment, &facts);
    progress.doing("reading the API keys");
    api_keys(&mut report, deployment, running).await;
    exemptions(&mut report, deployment, &state);
    progress.doing("checking advisories");
    advisories(&mut report, (deployment, library), (sources, given)).await;
    progress.doing("reading the open ports");
    ports(&mut report, deployment, running).await;
    records::clusters(&mut report, deployment, state.lineage()).await;
    backups(&mut report, deployment, state.lineage());
    progress.doing("reading backups, audit log and usage records");
    records::backup_age(&mut report, deployment, state.lineage()).await;
    records::restore_test(&mut report, deployment, state.lineage()).await;
    records::audit_log(&mut report, deployment, running).await;
    records::retention(&mut report, deployment, running).await;
    records::alert_receivers(&mut report, deployment);
    records::changes(&mut report, deployment, &state);
    installed_bundle(&mut report, library, deployment);
    Ok(report)
}

/// The state itself is checked when the environment is loaded.
fn permissions(report: &mut Checks, deployment: &Deployment) {
    report.rule = Some(Rule::StateFiles);
    let folder = &deployment.chosen.scope.folder;
    report.well("state files", format!("{folder} belongs to you, and no other user can change it"));
    report.rule = Some(Rule::SecretFiles);
    report.secrets(&deployment.chosen.scope);
    report.rule = Some(Rule::ServiceUser);
    let before = report.lines.len();
    report.user(&deployment.chosen.loaded.environment);
    if report.lines.len() == before {
        let runs_here = deployment.chosen.loaded.environment.runs_here();
        let says =
            if runs_here { "the programs of this environment do not run as root" } else { "no program runs here" };
        report.well("user", says);
    }
}

/// TLS and API keys, which only development may turn off.
fn access(report: &mut Checks, deployment: &Deployment) {
    report.rule = Some(Rule::Tls);
    let environment = &deployment.chosen.loaded.environment;
    if environment.is_endpoint() {
        report.well("TLS", "the cloud accepts invocations of the inference endpoint over HTTPS only");
        report.rule = Some(Rule::ApiKeysRequired);
        return report.well("access", "the cloud authorizes every invocation of the inference endpoint");
    }
    let chosen = &deployment.chosen;
    match environment.tls.mode {
        TlsMode::Off => report.warning("TLS", "clients connect without TLS", set(chosen, "tls.mode: local-ca")),
        _ => report.well("TLS", "clients connect with TLS"),
    }
    report.rule = Some(Rule::ApiKeysRequired);
    match environment.server.security.api_keys_enabled {
        true => report.well("API keys required", "every request needs a valid key or token"),
        false => report.warning(
            "API keys required",
            "every client that reaches the port is accepted",
            set(chosen, "server.security.api_keys_enabled: true"),
        ),
    }
}

fn certificates(report: &mut Checks, deployment: &Deployment, facts: &Facts) {
    report.rule = Some(Rule::Certificates);
    let up = deployment.chosen.scope.last_up();
    for (site, seen) in &facts.sites {
        report.site = Some(site.clone());
        if !report.certificates(&seen.observed, &up) {
            let why = "no certificate of this site shows its end here: another issuer renews it, or there is none";
            report.unknown("certificates", why, format!("openssl s_client -connect HOST:PORT </dev/null # of {site}"));
        }
    }
    report.site = None;
}

/// The credentials that the environment generated, by the time of their last change.
fn generated_keys(report: &mut Checks, deployment: &Deployment, facts: &Facts) {
    report.rule = Some(Rule::Credentials);
    let before = report.lines.len();
    let scope = &deployment.chosen.scope;
    for (site, seen) in &facts.sites {
        report.site = Some(site.clone());
        for known in seen.holdings.values() {
            let rotation = known.current.as_ref().and_then(|recorded| rotation(scope, recorded));
            let Some((name, rotate)) = rotation else { continue };
            let age = Timestamp::now().duration_since(known.since);
            let evidence = format!("unchanged since {} ({} days)", day(known.since), age.as_hours() / 24);
            match age > KEY_AGE {
                true => report.warning(name, evidence, scope.command(&rotate)),
                false => report.well(name, evidence),
            }
        }
    }
    report.site = None;
    if report.lines.len() == before {
        report.well("credentials", "the environment generated none that is in use");
    }
}

/// Whether `secret rotate database` replaces this password. One that sites share has one version for ever. The supervisor of a
/// PostgreSQL, CloudNativePG, or the cloud that manages it, sets the passwords of its roles.
pub fn replaces_password(recorded: &Recorded) -> bool {
    recorded.spec.get("shared").is_none()
}

/// The name of a generated credential, and the command that replaces it, else the one that describes it. `None` for other
/// resources, and for the first API key, which is among the keys of the service.
fn rotation(scope: &Scope, recorded: &Recorded) -> Option<(String, String)> {
    if scope.platform.is_authority(recorded) {
        return Some(("certificate authority".to_owned(), "secret rotate ca".to_owned()));
    }
    let name = scope.platform.secret_name(recorded)?;
    let what = match name {
        API_KEY => return None,
        SIGNING_KEY => "secret rotate jwt".to_owned(),
        ACCOUNT_KEY => "secret rotate acme".to_owned(),
        CACHE_PASSWORD => "secret rotate cache".to_owned(),
        DATABASE_PASSWORD | REPLICATION_PASSWORD if replaces_password(recorded) => "secret rotate database".to_owned(),
        _ => format!("explain {}", recorded.id),
    };
    Some((format!("secret {name}"), what))
}

async fn api_keys(report: &mut Checks, deployment: &Deployment, running: &RunningEnvironment) {
    report.rule = Some(Rule::ApiKeys);
    const NAME: &str = "API keys";
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    if running.is_endpoint() {
        return report.well(NAME, "an inference endpoint has none");
    }
    let list = scope.command("key list");
    match (Admin { platform: scope.platform, running, environment }).ask(&json!({ "do": "list" })).await {
        Ok(listed) => {
            let keys = KeyAges::of(&listed, Timestamp::now());
            let mut evidence = format!("{} active, {} with all scopes", keys.active, keys.all_scopes);
            match keys.old.first() {
                None => report.well(NAME, evidence),
                Some((first, _)) => {
                    let named: Vec<String> =
                        keys.old.iter().take(NAMED).map(|(id, since)| format!("{id} of {}", day(*since))).collect();
                    let _ = write!(
                        evidence,
                        "; {} without an end and older than 365 days: {}",
                        keys.old.len(),
                        named.join(", ")
                    );
                    report.warning(NAME, evidence, scope.command(&format!("key rotate {first}")));
                }
            }
            report.rule = Some(Rule::KeyEnds);
            if !keys.ending.is_empty() {
                let named: Vec<String> =
                    keys.ending.iter().take(NAMED).map(|(id, end)| format!("{id} on {}", day(*end))).collect();
                let says = format!("{} end within {ENDS_SOON_DAYS} days: {}", keys.ending.len(), named.join(", "));
                let fix = format!("{} # and give it to the client", scope.command("key create NAME"));
                report.warning("ends of API keys", says, fix);
            }
        }
        Err(failure) => report.unknown(NAME, format!("{:#}", failure.error), list),
    }
}

/// The active keys of a list.
#[derive(Debug, Default, PartialEq)]
struct KeyAges {
    active: usize,
    all_scopes: usize,
    /// Those that are old and have no end, with the time of their creation; the oldest first.
    old: Vec<(String, Timestamp)>,
    /// Those that end soon and were not created for a short time, with their end; the first one first.
    ending: Vec<(String, Timestamp)>,
}

impl KeyAges {
    fn of(listed: &Value, now: Timestamp) -> Self {
        let mut ages = Self::default();
        for key in listed["keys"].as_array().into_iter().flatten() {
            let time = |field: &str| key[field].as_i64().and_then(|ms| Timestamp::from_millisecond(ms).ok());
            if time("revoked_at").is_some() || time("expires_at").is_some_and(|end| end <= now) {
                continue;
            }
            ages.active += 1;
            ages.all_scopes += usize::from(has_all_scopes(key));
            let Some(id) = key["public_id"].as_str() else { continue };
            let Some(created) = time("created_at") else { continue };
            match time("expires_at") {
                Some(end) => {
                    // Keys of gates and load tests, and those of `--expires-days 7`, end soon from the beginning.
                    let is_lasting = end.duration_since(created) > ENDS_SOON;
                    if is_lasting && end.duration_since(now) <= ENDS_SOON {
                        ages.ending.push((id.to_owned(), end));
                    }
                }
                None if now.duration_since(created) > KEY_AGE => ages.old.push((id.to_owned(), created)),
                None => {}
            }
        }
        ages.old.sort_by_key(|(_, at)| *at);
        ages.ending.sort_by_key(|(_, end)| *end);
        ages
    }
}

/// Waivers that count now, and phases that were entered without evidence.
fn exemptions(report: &mut Checks, deployment: &Deployment, state: &State) {
    report.rule = Some(Rule::Waivers);
    let (scope, now) = (&deployment.chosen.scope, Timestamp::now());
    let today = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let all = state.exemptions();
    let counts = |exemption: &Exemption| match exemption {
        Exemption::Waiver { until, .. } => *until >= today,
        Exemption::FromScratch { .. } => true,
    };
    let (open, ended): (Vec<_>, Vec<_>) = all.iter().partition(|recorded| counts(&recorded.exemption));
    for recorded in &open {
        report.warning("waiver", recorded.text(now), scope.last("gate --again"));
    }
    if open.is_empty() {
        report.well("waivers", format!("none counts now; {} ended", ended.len()));
    }
}

/// The advisories of the program, and of the installed content of an air-gapped site.
async fn advisories(
    report: &mut Checks,
    (deployment, library): (&Deployment, &Library),
    (sources, given): (&AdvisorySources, Option<&Database>),
) {
    report.rule = Some(Rule::Vulnerabilities);
    let refresh = deployment.chosen.scope.command(&format!("security audit --advisories {RUSTSEC}"));
    for check in audit::checks(deployment, library, sources, given, &refresh).await {
        of_check(report, &check, &refresh);
    }
}

/// A check of a gate as a line of the report.
fn of_check(report: &mut Checks, check: &Check, fix: &str) {
    let evidence = check.to_string();
    let evidence = evidence.strip_prefix(&format!("{}: ", check.name)).unwrap_or(&evidence);
    // The command is the fix, on a line of its own.
    let evidence = evidence.replace(&format!("; newer ones: {fix}"), "");
    match check {
        check if check.is_unknown() || check.waits => report.unknown(&check.name, evidence, fix),
        Check { ok: false, .. } => report.problem(&check.name, evidence, fix),
        Check { warning: true, .. } => report.warning(&check.name, evidence, fix),
        _ => report.well(&check.name, evidence),
    }
}

/// The ports of each site's processes that other machines may reach.
async fn ports(report: &mut Checks, deployment: &Deployment, running: &RunningEnvironment) {
    report.rule = Some(Rule::OpenPorts);
    const NAME: &str = "open ports";
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let mut clients: Vec<u16> = environment.sites.iter().filter_map(|site| site.port).collect();
    clients.extend([environment.server.api.port, environment.traffic.port]);
    clients.extend(running.address.rsplit(':').next().and_then(|port| port.trim_end_matches('/').parse::<u16>().ok()));
    for name in deployment.sites.keys() {
        report.site = Some(name.clone());
        // The witness of a failover is no site of the environment. It runs on this machine.
        let site = environment.sites.iter().find(|site| site.name == *name);
        if site.is_some_and(SiteSettings::is_in_cluster) {
            report.rule = Some(Rule::NetworkPolicies);
            match environment.has_network_policies() {
                true => report.well("network policies", "the pods accept only the connections that the service needs"),
                false => report.warning(
                    "network policies",
                    "every pod of the cluster may connect to the pods",
                    set(&deployment.chosen, "network.policies: true"),
                ),
            }
        }
        report.rule = Some(Rule::OpenPorts);
        // The ports of a cluster are those of its services.
        if !site.is_none_or(SiteSettings::is_on_machine) {
            if site.is_some_and(SiteSettings::is_endpoint) {
                report.well(NAME, "the cloud opens the endpoint for signed invocations only");
            }
            continue;
        }
        let pids = scope.platform.processes(&scope.folder, name);
        let pids = pids.map_err(|error| format!("find the processes of the service: {error}"));
        match pids.and_then(|pids| listeners(&pids)) {
            Err(why) => report.unknown(NAME, why, scope.command("status")),
            Ok(open) => {
                let (expected, others) = reachable(&open, &clients);
                match others.first() {
                    None if expected.is_empty() => report.well(NAME, "none is open to other machines"),
                    None => report.well(NAME, format!("only that of the clients: {}", expected.join(", "))),
                    Some(first) => {
                        let port = first.rsplit(':').next().unwrap_or_default();
                        let evidence = format!("beside that of the clients: {}", others.join(", "));
                        report.warning(
                            NAME,
                            evidence,
                            format!("ss -ltnp 'sport = :{port}' # then close it in the firewall"),
                        );
                    }
                }
            }
        }
    }
    report.site = None;
    if !environment.sites.iter().any(SiteSettings::is_in_cluster) {
        report.rule = Some(Rule::NetworkPolicies);
        report.well("network policies", "there is no cluster; the open ports are measured");
    }
}

/// Listeners that other machines may reach: those of the clients' ports, and others.
fn reachable(open: &[SocketAddr], clients: &[u16]) -> (Vec<String>, Vec<String>) {
    let mut found: BTreeMap<bool, Vec<String>> = BTreeMap::new();
    for address in open.iter().filter(|address| !address.ip().to_canonical().is_loopback()) {
        found.entry(clients.contains(&address.port())).or_default().push(address.to_string());
    }
    (found.remove(&true).unwrap_or_default(), found.remove(&false).unwrap_or_default())
}

/// Whether the stored backups of this deployment are encrypted.
fn backups(report: &mut Checks, deployment: &Deployment, lineage: Lineage) {
    report.rule = Some(Rule::BackupEncryption);
    const NAME: &str = "backup encryption";
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let list = scope.command("backup list");
    match scope.platform.site_backups(&scope.folder, environment) {
        Ok(None) => {}
        // The site makes them: its backup job was read.
        Ok(Some(_)) => return,
        Err(error) => return report.unknown(NAME, format!("{error:#}"), list),
    }
    let settings = settings::settings(&scope.folder, environment);
    let stored = shelf(scope.platform, &scope.name, &scope.folder, &settings);
    let stored = match stored.and_then(|shelf| shelf.list().map_err(failed)) {
        Ok(stored) => stored,
        Err(failure) => return report.unknown(NAME, format!("{:#}", failure.error), list),
    };
    let backup = settings.backup;
    let ours: Vec<_> =
        stored.iter().filter(|one| one.facts.as_ref().is_none_or(|facts| facts.lineage == lineage)).collect();
    let plain: Vec<&str> =
        ours.iter().filter(|one| sealed(one) == Some(EncryptionKind::Plain)).map(|one| one.file.as_str()).collect();
    let untold = ours.iter().filter(|one| sealed(one).is_none()).count();
    let create = scope.command("backup create");
    match (plain.first(), ours.len()) {
        (Some(first), _) => {
            let named = plain.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            let fix = match first.contains("://") {
                true => format!("{create}\n# then remove {first} from the bucket"),
                false => format!("{create}\nrm {}", quoted(first)),
            };
            report.problem(NAME, format!("{} not encrypted: {named}", plain.len()), fix);
        }
        (None, 0) if environment.is_endpoint() => report.well(NAME, "an inference endpoint has no data to back up"),
        // As of their age: what does not exist is no evidence of a control.
        (None, 0) if !backup.enabled => {
            report.warning(NAME, "no backups are taken", set(&deployment.chosen, "backup.enabled: true"));
        }
        (None, 0) => report.unknown(NAME, "there is no backup yet", create),
        (None, _) if untold > 0 => {
            report.unknown(NAME, format!("{untold} files have no metadata: they were copied here"), list);
        }
        (None, all) => report.well(NAME, format!("all {all} backups are encrypted")),
    }
}

fn sealed(backup: &StoredBackup) -> Option<EncryptionKind> {
    backup.facts.as_ref().map(|facts| facts.sealed)
}

fn installed_bundle(report: &mut Checks, library: &Library, deployment: &Deployment) {
    report.rule = Some(Rule::BundleSignature);
    const NAME: &str = "bundle signature";
    let fix = "textnlp-deploy bundle install FILE --root ROOT --trust KEY.pub";
    match installed::origin(library, deployment) {
        Ok(None) => report.well(NAME, "the release is not installed from a bundle"),
        Ok(Some((who, true))) => report.well(NAME, who),
        Ok(Some((who, false))) => report.warning(NAME, who, fix),
        Err(why) => report.unknown(NAME, why, fix),
    }
}

/// How a setting (`backup.enabled: true`) is changed for every later run.
fn set(chosen: &ChosenEnvironment, setting: &str) -> String {
    format!("write `{}` into {}\nthen: {}", nested(setting), chosen.loaded.own_file(), chosen.scope.last_up())
}

/// A setting as a file has it: `backup: { enabled: true }`.
fn nested(setting: &str) -> String {
    let (path, value) = setting.split_once(": ").unwrap_or((setting, ""));
    let mut keys = path.rsplit('.');
    let leaf = format!("{}: {value}", keys.next().unwrap_or_default());
    keys.fold(leaf, |inner, key| format!("{key}: {{ {inner} }}"))
}

fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::model::AdvisoryPolicy;

    use super::*;
    use crate::checks::CheckResult;

    #[test]
    fn setting_is_written_as_a_file_has_it() {
        assert_eq!(nested("data: protected"), "data: protected");
        let text = nested("server.security.api_keys_enabled: true");
        assert_eq!(text, "server: { security: { api_keys_enabled: true } }");
    }

    #[test]
    fn command_of_a_check_is_shown_once() {
        let fix = "textnlp-deploy security audit --advisories URL";
        let check = Check::new("known vulnerabilities", 0, 0, "found", true);
        let why = format!("the advisories are 31 days old; newer ones: {fix}; to accept it: --reason TEXT");
        let mut report = Checks::default();
        of_check(&mut report, &check.falls_short(why, AdvisoryPolicy::Warn), fix);
        let line = &report.lines[0];
        assert_eq!((line.mark, line.fix.as_deref()), (CheckResult::Warning, Some(fix)));
        assert!(line.says.contains("31 days old; to accept it") && !line.says.contains(fix), "{}", line.says);
    }

    #[test]
    fn old_keys_without_an_end_are_named() {
        let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let days = |days: i64| (now - SignedDuration::from_hours(24 * days)).as_millisecond();
        let key = |id: &str, age: i64, expires: Option<i64>, revoked: Option<i64>| {
            json!({
                "public_id": id, "scopes": ["*"], "created_at": days(age), "expires_at": expires, "revoked_at": revoked,
            })
        };
        let listed = json!({ "keys": [
            key("young", 364, None, None),
            key("old", 400, None, None),
            key("oldest", 500, None, None),
            key("ends later", 10, Some(days(-14)), None),
            key("ends", 400, Some(days(-1)), None),
            key("ends much later", 10, Some(days(-15)), None),
            key("temporary", 1, Some(days(-1)), None),
            key("ended", 400, Some(days(1)), None),
            key("revoked", 400, None, Some(days(1))),
        ] });
        let ages = KeyAges::of(&listed, now);
        assert_eq!((ages.active, ages.all_scopes), (7, 7));
        let ids = |of: &[(String, Timestamp)]| -> Vec<String> { of.iter().map(|(id, _)| id.clone()).collect() };
        assert_eq!(ids(&ages.old), ["oldest", "old"]);
        assert_eq!(ids(&ages.ending), ["ends", "ends later"]);
        assert_eq!(KeyAges::of(&json!({}), now), KeyAges::default());
    }

    #[test]
    fn only_ports_of_clients_are_expected_to_be_open() {
        let open: Vec<SocketAddr> =
            ["0.0.0.0:8443", "127.0.0.1:9090", "[::1]:5432", "[::ffff:127.0.0.1]:5433", "10.0.0.1:5432"]
                .map(|text| text.parse().unwrap())
                .to_vec();
        let (expected, others) = reachable(&open, &[8443]);
        assert_eq!((expected, others), (vec!["0.0.0.0:8443".to_owned()], vec!["10.0.0.1:5432".to_owned()]));
    }
}
