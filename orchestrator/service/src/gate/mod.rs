//! Gates: measures the running service from outside, stores the evidence and writes the report.
//!
//! Evidence is a file that the environment's report key signs and whose digest is in the journal. It counts until the
//! resources may have changed. The verdict is never read from it but follows from its checks.

mod analytics;
mod availability;
mod backup;
mod failover;
pub mod growth;
pub mod hardened;
mod invoked;
pub mod load;
pub mod order;
pub(crate) mod sign_on;
mod sites;

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use textnlp_files::sync_folder;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::dr::report::{self as signed, ReportError};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::{AdvisoryPolicy, Gates, ModelSettings, Phase};
use textnlp_orchestrator::gate::phases::{self, PhaseDefinition};
use textnlp_orchestrator::gate::{self, ChangedLimit, Check, GateInputs, RecordedExemption, WaiverError};
use textnlp_orchestrator::load::{HttpWire, Load, Second, Wire};
use textnlp_orchestrator::release::{Applied, History, Lock, digest};
use textnlp_orchestrator::report::Report;
use textnlp_orchestrator::state::{Entry, Head, JournalWriter, State};
use textnlp_provider::operations::EndpointAccess;
use textnlp_provider::{Lineage, SiteName, error_chain};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Target};
use crate::keys::Admin;
use crate::metrics::SiteWire;
use crate::{ChosenEnvironment, Deployment, Exit, Failure, Progress, RunningEnvironment, Scope, baseline, running};
use invoked::InvocationWire;

/// Why the gate of an environment cannot be measured, if so. That of development needs texts, and no keys and metrics.
pub fn unmeasured(environment: &Environment) -> Option<String> {
    let phase = environment.phase;
    (environment.is_endpoint() && phase != Phase::Development).then(|| {
        format!(
            "the gate of phase {phase} cannot be measured: an inference endpoint has no API keys, limits and metrics of its own; \
             only the gate of development can be"
        )
    })
}

/// Refuses a run that would end at a gate that cannot be measured, before it changes anything. `--no-gate` permits it,
/// except for a gate within the run, which decides what is deleted.
pub fn is_measured(scope: &Scope, environment: &Environment, no_gate: bool, gated: bool) -> Result<(), Failure> {
    let Some(why) = unmeasured(environment).filter(|_| !no_gate || gated) else { return Ok(()) };
    let error = anyhow::anyhow!("{why}, so the gate cannot open; nothing was changed");
    let hint = format!("deploy without the gate: {}", scope.last("up --no-gate"));
    Err(Failure::new(Exit::GateShut, "gate_not_measured", error).hint(hint))
}

/// Evidence is stored under the digests of the lock, so the lock must be what runs.
pub async fn runs_the_lock(chosen: &ChosenEnvironment) -> Result<(), Failure> {
    let ChosenEnvironment { scope, .. } = chosen;
    let name = &scope.name;
    let Some(lock) = chosen.lock()? else {
        return Ok(());
    };
    let runs = match applied(&scope.folder).map_err(|failure| failure.hint(scope.last_up()))? {
        Some(newest) => newest.lock.runs_the_same(&lock),
        // Provisioned before releases had a history.
        None => running::program(scope).await?.is_none_or(|program| program.digest == lock.server),
    };
    if runs {
        return Ok(());
    }
    let error = anyhow::anyhow!("the lock of {name} names a release that `up` has not applied here")
        .context("the gate of the locked release cannot be measured, because another release is running");
    Err(Failure::new(Exit::GateShut, "release_not_applied", error).hint(format!(
        "deploy it: {}\nor show the differences: {}",
        scope.up_of_lock(),
        scope.command("release diff")
    )))
}

/// Evidence is stored under the digest of the configuration, so that must be what runs, too.
pub fn runs_the_configuration(chosen: &ChosenEnvironment) -> Result<(), Failure> {
    let ChosenEnvironment { scope, loaded, .. } = chosen;
    let newest = applied(&scope.folder).map_err(|failure| failure.hint(scope.last_up()))?;
    if newest.is_none_or(|newest| newest.is_configured_as(&loaded.environment)) {
        return Ok(());
    }
    let error = anyhow::anyhow!("{}; nothing was measured", not_applied(scope));
    Err(Failure::new(Exit::GateShut, "settings_not_applied", error).hint(format!(
        "apply them: {}; after `up --site`, run it once for all sites\nor show them: {}",
        scope.last_up(),
        scope.last("plan")
    )))
}

/// Why evidence of these settings cannot be of what runs.
pub(crate) fn not_applied(scope: &Scope) -> String {
    format!("the settings of {} have changes that `up` has not applied", scope.name)
}

/// The release that `up` applied last. `None` if it was before releases had a history. A failure if that entry cannot be
/// read, until the next `up`.
pub(crate) fn applied(folder: &Utf8Path) -> Result<Option<Applied>, Failure> {
    let recorded = History::at(folder).read().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    let newest = recorded.newest().map_err(|why| Failure::new(Exit::Failed, "history", anyhow::anyhow!(why)))?;
    Ok(newest.map(|newest| newest.applied.clone()))
}

/// The newest drill or rehearsal of its sort. The gate of the phase counts none that is older than 90 days.
pub(crate) struct DatedEvidence {
    /// What it was.
    pub(crate) what: &'static str,
    /// When it began.
    pub(crate) at: Timestamp,
    /// The command that repeats it.
    pub(crate) command: &'static str,
}

impl DatedEvidence {
    /// The last day (UTC) on which it may count.
    pub(crate) fn until(&self) -> Date {
        let ends = self.at.checked_add(sites::FRESH).unwrap_or(Timestamp::MAX);
        ends.to_zoned(TimeZone::UTC).date()
    }
}

/// The newest ones of those that the gate of this environment needs.
pub(crate) fn dated_evidence(chosen: &ChosenEnvironment, state: &State) -> Result<Vec<DatedEvidence>, Failure> {
    let definition = PhaseDefinition::of(chosen.loaded.environment.phase);
    let drill = definition.check(phases::RTO).map(|_| sites::newest(chosen)).transpose()?.flatten();
    let failover = definition.check(phases::FAILOVER).and_then(|_| failover::newest(chosen, state));
    let drill = drill.map(|at| DatedEvidence { what: "drill", at, command: "dr drill" });
    let failover = failover.map(|at| DatedEvidence { what: "failover rehearsal", at, command: "db failover" });
    Ok(drill.into_iter().chain(failover).collect())
}

/// When another release or other settings were last applied, also to some of the sites.
fn changed_at(folder: &Utf8Path) -> Result<Option<Timestamp>, Failure> {
    let at_a_site = History::at(folder).changed_at().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    Ok(applied(folder)?.map(|applied| applied.at).max(at_a_site))
}

/// The evidence of a gate, as stored beside the state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredEvidence {
    /// The version of this file format.
    format: u32,
    /// The digest of the release lock that was measured.
    release: String,
    /// The deployment. `None` in files from before this member existed.
    #[serde(default)]
    lineage: Option<Lineage>,
    /// The machine, if the service runs on the one that measures it.
    #[serde(default)]
    machine: Option<String>,
    /// When the gate was measured.
    pub at: jiff::Timestamp,
    /// The phase of the environment.
    pub phase: Phase,
    /// Every check.
    pub checks: Vec<Check>,
    /// Every exemption at that time, also those that had ended. Earlier versions had none.
    #[serde(default)]
    pub exemptions: Vec<RecordedExemption>,
    /// Settings that differed from those of the environment that ships for the phase. Earlier versions recorded none.
    #[serde(default)]
    pub changed_limits: Vec<ChangedLimit>,
    /// The path of the HTML report.
    pub report: Utf8PathBuf,
    /// Whether the evidence is from an earlier run.
    #[serde(skip)]
    pub reused: bool,
    /// Why it says nothing about what runs now.
    #[serde(skip)]
    outdated: Option<String>,
}

impl StoredEvidence {
    /// Whether the evidence is for this release and the current environment.
    pub fn is_of(&self, lock: &Lock, environment: &Environment) -> bool {
        self.release == release_digest(Some(lock), environment)
    }

    /// Open, Wait or Shut, with the blockers, as the checks say. A waiver that ended does not count.
    pub fn gate(&self) -> gate::Gate {
        gate::Gate::of(&self.checks, Timestamp::now())
    }

    /// Whether the gate was open for this release, and the resources are those that were measured.
    fn is_open_for(&self, release: &str) -> bool {
        self.release == release && self.outdated.is_none() && matches!(self.gate(), gate::Gate::Open)
    }

    /// Why it says nothing about what runs now, if so.
    pub fn outdated(&self) -> Option<&str> {
        self.outdated.as_deref()
    }

    /// The blockers, empty if the gate is open.
    pub fn blockers(&self) -> Vec<String> {
        let gate = self.gate();
        let say = |blocker: &String| format!("the {} gate {}: {blocker}", self.phase, gate.verdict());
        gate.blockers().iter().map(say).collect()
    }

    /// Ok if the gate is open, else a failure with every blocker. `again` is the command that measures again.
    pub fn verdict(&self, again: &str) -> Result<(), Failure> {
        let gate = self.gate();
        if matches!(gate, gate::Gate::Open) {
            return Ok(());
        }
        let blockers = gate.blockers().join("\n");
        let error = anyhow::anyhow!("{blockers}").context(format!(
            "the {} gate {}; the service stays up",
            self.phase,
            gate.verdict()
        ));
        Err(Failure::new(Exit::GateShut, "gate_not_open", error)
            .hint(format!("see {}, then measure again: {again}", self.report)))
    }
}

/// Records in the journal that checks which cannot be measured do not keep the gate shut, up to and including a day.
/// All are validated before any is recorded.
pub async fn waive(deployment: &Deployment, checks: &[String], until: Date) -> Result<(), Failure> {
    let phase = deployment.chosen.loaded.environment.phase;
    let (reason, now) = (deployment.operator.reason.as_deref(), Timestamp::now());
    let waivers = checks.iter().map(|check| gate::waiver(phase, check, until, reason, now));
    let waivers = waivers.collect::<Result<Vec<_>, _>>().map_err(not_waived)?;
    let mut locked = deployment.locked().await?;
    let sites: Vec<SiteName> = locked.sites().cloned().collect();
    for site in sites {
        let write = |writer: &mut JournalWriter<'_>| {
            for exemption in &waivers {
                writer.entry(Entry::Exempted { phase, exemption: exemption.clone() });
            }
        };
        locked.commit(&site, write).await.map_err(|error| deployment.failed(error))?;
    }
    locked.close().await.map(drop).map_err(|error| deployment.failed(error))
}

fn not_waived(error: WaiverError) -> Failure {
    let (code, hint) = match &error {
        WaiverError::Unknown { names, .. } if names.is_empty() => {
            ("unknown_check", "every check of this phase is measured".to_owned())
        }
        WaiverError::Unknown { names, .. } => {
            ("unknown_check", format!("the checks that can be waived: `{}`", names.join("`, `")))
        }
        WaiverError::NoReason => ("no_reason", "add --reason TEXT".to_owned()),
        WaiverError::Past { .. } | WaiverError::TooLong { .. } => {
            ("invalid_date", format!("--until takes a date from today to {} days later", gate::MAX_WAIVER_DAYS))
        }
    };
    Failure::usage(code, error).hint(hint)
}

/// When a gate is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Unless stored evidence shows that it is open.
    Unmeasured,
    /// In any case.
    Again,
    /// Within a run, which holds the lock and goes on to change resources. The evidence is not stored.
    WithinRun,
}

/// Measures the gate. `recorded`: the checks of this program or of an installed site's content, awaited only if the gate
/// is measured.
pub async fn measure(
    deployment: &Deployment,
    running: &RunningEnvironment,
    occasion: Occasion,
    recorded: impl Future<Output = Vec<Check>>,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<StoredEvidence, Failure> {
    let chosen = &deployment.chosen;
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let folder = &scope.folder;
    let release = release_of(chosen)?;
    let state = deployment.state().await?;
    // An air-gapped site's content and the replication lag change without a new release. Measuring them takes only
    // seconds.
    let always = matches!(environment.phase, Phase::AirGapped | Phase::MultiRegion);
    if occasion == Occasion::Unmeasured && !always {
        match stored(chosen, &state) {
            Ok(Some(kept)) if kept.is_open_for(&release) => return Ok(StoredEvidence { reused: true, ..kept }),
            Ok(Some(StoredEvidence { at, outdated: Some(why), .. })) => {
                progress.line(&format!("The gate was measured at {at:.0}, and {why}."));
            }
            Ok(_) => {}
            Err(why) => progress.warn(&format!("{why}; it is not used, and the gate is measured again")),
        }
    }

    let service = wire(scope, environment, running).await?;
    let keys = Admin { platform: scope.platform, running, environment };
    let clock = SystemClock;
    let load = Load::of(&environment.gates);
    let seconds = u64::from(load.users.div_ceil(load.ramp.max(1))).saturating_add(load.hold.as_secs());
    progress.line(&match environment.phase {
        Phase::Staging => format!(
            "Measuring the staging gate from outside: keys, limits and TLS, then {} users for about {seconds} s …",
            load.users
        ),
        phase => format!("Measuring the {phase} gate from outside …"),
    });
    let mut recorded = recorded.await;
    let definition = PhaseDefinition::of(environment.phase);
    let metrics = match definition.checks().any(|check| check.source.reads_metrics() && check.is_on(environment)) {
        true => SiteWire::of(chosen).await?,
        false => None,
    };
    if definition.check(phases::RTO).is_some() {
        recorded.extend(sites::checks(chosen).await?);
    }
    if definition.check(phases::SESSIONS).is_some() {
        recorded.extend(load::checks(chosen, running, &state).await?);
    }
    if definition.check(phases::SPEED_UP).is_some() {
        recorded.extend(baseline::checks(deployment, running, &state)?);
    }
    let changed_at = match occasion {
        // What is recorded was measured of the release before.
        Occasion::WithinRun if runs_the_lock(chosen).await.is_err() => {
            Err("this run applies another release, of which nothing is recorded yet".to_owned())
        }
        _ => changed_at(folder).map_err(|failure| format!("{:#}: {}", failure.error, scope.last_up())),
    };
    if let Some(check) = definition.check(phases::AVAILABILITY) {
        progress.doing("reads the record of availability");
        // `down` ends what was measured before it, and so does another release.
        recorded.push(match &changed_at {
            Ok(at) => availability::check(check, chosen, running, (*at).max(state.removal())).await,
            Err(why) => check.unknown(environment, why),
        });
    }
    if let Some(check) = definition.check(phases::ANALYTICS) {
        progress.doing("reads the insights of the last hour");
        recorded.push(analytics::check(check, chosen, running).await);
    }
    if let Some(check) = definition.check(phases::SIGN_ON) {
        recorded.push(sign_on::check(check, environment, &*service).await);
    }
    if let Some(check) = definition.check(phases::FAILOVER) {
        recorded.push(match &changed_at {
            Ok(_) => failover::check(check, chosen, running, &state).await,
            Err(why) => check.unknown(environment, why),
        });
    }
    if let Some(check) = definition.check(phases::RESTORED) {
        recorded.push(match &changed_at {
            Ok(at) => backup::check(check, chosen, (running.lineage, *at), progress, stop).await,
            Err(why) => check.unknown(environment, why),
        });
    }
    let evidence = gate::evaluate(
        environment,
        GateInputs {
            address: &running.address,
            lineage: running.lineage,
            service: &*service,
            metrics: metrics.as_ref().map(|wire| wire as &dyn Wire),
            keys: &keys,
            recorded,
            exemptions: &state.exemptions(),
            clock: &clock,
            stop,
        },
        &mut |happens| match happens {
            gate::Progress::Checked(check) => {
                progress.event(&json!({ "event": "checked", "check": check }));
                progress.doing(&format!("{}: {}", check.name, if check.ok { "ok" } else { "not ok" }));
            }
            gate::Progress::Load(second) => {
                progress.event(&json!({ "event": "load", "second": second }));
                let text = format!(
                    "load test: second {} of about {seconds}, {} users, {} requests/s, p95 {:.0} ms",
                    second.second, second.users, second.requests, second.p95_ms
                );
                if is_logged(second) {
                    progress.log(&format!("  {text}"));
                }
                progress.doing(&text);
            }
        },
    )
    .await;
    let report = Report {
        title: format!("The {} gate of {}", evidence.phase, scope.name),
        at: evidence.at,
        address: running.address.clone(),
        facts: facts(chosen, running),
        load: evidence.load.clone(),
        gate: Some(evidence.clone()),
        ..Report::default()
    };
    let written = report.write(&folder.join("reports"), "gate").context("write the report")?;
    let kept = StoredEvidence {
        format: 1,
        release,
        lineage: Some(running.lineage),
        machine: machine(chosen),
        at: evidence.at,
        phase: evidence.phase,
        checks: evidence.checks,
        exemptions: evidence.exemptions,
        changed_limits: evidence.changed_limits,
        report: written.html,
        reused: false,
        outdated: None,
    };
    if stop.is_cancelled() {
        let error = anyhow::anyhow!("stopped while the gate was measured; the service stays up");
        let again = if occasion == Occasion::Again { "gate --again" } else { "gate" };
        return Err(Failure::new(Exit::Stopped, "stopped", error).hint(scope.last(again)));
    }
    if occasion != Occasion::WithinRun {
        keep(deployment, &kept, &state.heads()).await?;
    }
    Ok(kept)
}

/// The service as its clients reach it.
async fn wire(
    scope: &Scope,
    environment: &Environment,
    running: &RunningEnvironment,
) -> Result<Box<dyn Wire>, Failure> {
    if running.access == EndpointAccess::Invocations {
        return Ok(Box::new(InvocationWire(Client::new(Target::of(scope, Some(environment)).await?)?)));
    }
    let trust = scope.platform.trust(running.ca_file.as_deref(), Some(environment))?;
    let service = HttpWire::new(&running.address, &trust)?;
    if running.access == EndpointAccess::Identities
        && let Some(caller) = Target::of(scope, Some(environment)).await?.caller
    {
        return Ok(Box::new(service.with_headers(caller.headers(&running.address).await?)));
    }
    Ok(Box::new(service))
}

/// The machine that a service runs on, if it is this one: on another machine it is measured again.
fn machine(chosen: &ChosenEnvironment) -> Option<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let here = || format!("{cores} cores, {}", chosen.scope.platform.host_name());
    chosen.loaded.environment.runs_here().then(here)
}

/// The seconds of a load test that are printed where no terminal shows each of them.
pub fn is_logged(second: &Second) -> bool {
    second.second > 0 && second.second.is_multiple_of(10)
}

/// The facts about the measured deployment in the report.
fn facts(chosen: &ChosenEnvironment, running: &RunningEnvironment) -> Vec<(String, String)> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let models: Vec<_> = environment.models.iter().map(ModelSettings::id).collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("environment".into(), scope.name.to_string()),
        ("phase".into(), environment.phase.to_string()),
        ("lineage".into(), running.lineage.to_string()),
        ("models".into(), models.join(", ")),
        ("replicas".into(), environment.scaling.min.to_string()),
        ("machine".into(), format!("{cores} cores, {}", scope.platform.host_name())),
        ("program".into(), concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")).to_owned()),
    ]
}

/// The last evidence, if the gate was ever measured and the file is what was measured. Else why it is not used.
pub fn stored(chosen: &ChosenEnvironment, state: &State) -> Result<Option<StoredEvidence>, String> {
    let folder = &chosen.scope.folder;
    let file = evidence(folder);
    let unverified = |why: String| format!("{file} is not verified: {why}");
    let Some(bytes) = read(&file).map_err(|error| unverified(error.to_string()))? else { return Ok(None) };
    signed::verify_own(folder, &file).map_err(|error| match error {
        ReportError::Replaced => unverified(format!("{error}; measure again: `{}`", chosen.scope.last("gate"))),
        error => unverified(error_chain(&error)),
    })?;
    let mut kept: StoredEvidence = serde_json::from_slice(&bytes).map_err(|error| unverified(error.to_string()))?;
    if kept.lineage != Some(state.lineage()) {
        return Err(unverified("it is of another deployment".to_owned()));
    }
    kept.outdated = match state.evidence() {
        Some(recorded) if recorded != sha256(&bytes) => {
            return Err(unverified("the journal names another file as the last evidence".to_owned()));
        }
        Some(_) if kept.machine != machine(chosen) => Some("it runs on another machine now".to_owned()),
        Some(_) if has_expired(kept.at, &chosen.loaded.environment.gates, jiff::Timestamp::now()) => {
            Some("that is longer ago than `gates.advisories_max_age`".to_owned())
        }
        Some(_) => None,
        None => Some("its resources may have changed since".to_owned()),
    };
    Ok(Some(kept))
}

/// The last measurement of the gate, as `status` and `health check` report it.
#[derive(Debug)]
pub struct LastGate {
    /// The phase of the gate.
    pub phase: Phase,
    /// The verdict and its time. `None` if it was never measured, or if its evidence is not used.
    pub measured: Option<(gate::Gate, Timestamp)>,
    /// Why there is no verdict, or why it says nothing about what runs now.
    pub outdated: Option<String>,
}

impl LastGate {
    /// As a part of a line: `open, measured at …`.
    pub fn text(&self) -> String {
        let text = match (&self.measured, &self.outdated) {
            (Some((verdict, at)), _) => format!("{}, measured at {at:.0}", verdict.state()),
            (None, Some(_)) => "not known".to_owned(),
            (None, None) => "never measured".to_owned(),
        };
        self.outdated.iter().fold(text, |text, why| format!("{text}; {why}"))
    }
}

/// The last measurement of the gate; it does not measure. `None` where the gate cannot be measured.
pub fn last(chosen: &ChosenEnvironment, state: &State) -> Option<LastGate> {
    let environment = &chosen.loaded.environment;
    if unmeasured(environment).is_some() {
        return None;
    }
    Some(match stored(chosen, state) {
        Ok(Some(kept)) => {
            // `promote` refuses it, and `gate` measures again.
            let is_other = release_of(chosen).is_ok_and(|release| release != kept.release);
            let other = || is_other.then(|| "it is of another release, configuration or gate than today's".to_owned());
            let measured = Some((kept.gate(), kept.at));
            LastGate { phase: kept.phase, measured, outdated: kept.outdated.or_else(other) }
        }
        Ok(None) => LastGate { phase: environment.phase, measured: None, outdated: None },
        Err(why) => LastGate { phase: environment.phase, measured: None, outdated: Some(why) },
    })
}

/// Whether the advisories of evidence are too old now: without a change, it would count permanently.
fn has_expired(at: jiff::Timestamp, gates: &Gates, now: jiff::Timestamp) -> bool {
    let most = i64::try_from(gates.advisories_max_age.0.as_secs()).unwrap_or(i64::MAX);
    gates.advisories != AdvisoryPolicy::Warn && now.duration_since(at).as_secs() > most
}

/// Writes evidence and its signature, and its digest into the journals. `before`: the journals when the measurement
/// began.
async fn keep(
    deployment: &Deployment,
    kept: &StoredEvidence,
    before: &BTreeMap<SiteName, Head>,
) -> Result<(), Failure> {
    let scope = &deployment.chosen.scope;
    let gate = kept.gate();
    let mut document = serde_json::to_value(kept)?;
    // For readers of the file, such as alerts. No gate opens because of it.
    document["gate"] = json!(gate);
    let bytes = serde_json::to_vec_pretty(&document)?;
    // A measurement says nothing about resources that another run changed meanwhile.
    let mut locked = deployment.locked().await?;
    if locked.heads() != *before {
        locked.close().await.map_err(|error| deployment.failed(error))?;
        let error = anyhow::anyhow!("another run changed {} while its gate was measured", scope.name);
        return Err(Failure::new(Exit::GateShut, "changed_meanwhile", error).hint(scope.last("gate --again")));
    }
    let what = format!("textnlp {} gate of {}, deployment {}, {}", kept.phase, scope.name, locked.lineage(), kept.at);
    write_signed(&scope.folder, &evidence(&scope.folder), &bytes, &what)?;
    let sites: Vec<SiteName> = locked.sites().cloned().collect();
    for site in sites {
        let (phase, gate, evidence) = (kept.phase, gate.state().to_owned(), sha256(&bytes));
        let entry = Entry::Measured { phase, gate, evidence };
        let written = locked.commit(&site, |writer| writer.entry(entry)).await;
        written.map_err(|error| deployment.failed(error))?;
    }
    locked.close().await.map(drop).map_err(|error| deployment.failed(error))
}

fn evidence(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("evidence").join("gate.json")
}

/// The digest that identifies what was measured. It covers the gate's requirements and the current environment.
pub fn release_digest(lock: Option<&Lock>, environment: &Environment) -> String {
    let mut release = lock.map(Lock::to_bytes).unwrap_or_default();
    release.extend(textnlp_orchestrator::release::configuration_digest(environment).into_bytes());
    digest(&release)
}

/// See [`release_digest`].
pub(crate) fn release_of(chosen: &ChosenEnvironment) -> Result<String, Failure> {
    Ok(release_digest(chosen.lock()?.as_ref(), &chosen.loaded.environment))
}

/// The content of a file, if there is one.
fn read(file: &Utf8Path) -> std::io::Result<Option<Vec<u8>>> {
    /// Far above the size of evidence.
    const MAX_BYTES: u64 = 16 << 20;
    let opened = match std::fs::File::open(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    opened.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The value in a file that this environment signed, `None` if there is no file. Else why it is not used.
pub(crate) fn read_signed<T: DeserializeOwned>(
    state: &Utf8Path,
    file: &Utf8Path,
    what: impl FnOnce(&[u8]) -> String,
) -> Result<Option<T>, String> {
    let unverified = |why: String| format!("{file} is not verified: {why}");
    let Some(bytes) = read(file).map_err(|error| unverified(error.to_string()))? else { return Ok(None) };
    // The signature covers the digest, so that a file that is replaced meanwhile is not taken for the signed one.
    let signed_as = signed::verify_own(state, file).map_err(|error| unverified(error_chain(&error)))?;
    if signed_as != what(&bytes) {
        return Err(unverified("it is signed as another file".to_owned()));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| unverified(error.to_string()))
}

/// Writes signed evidence durably, because `promote` relies on it even after a crash of the machine.
pub(crate) fn write_signed(state: &Utf8Path, file: &Utf8Path, bytes: &[u8], what: &str) -> anyhow::Result<()> {
    let folder = file.parent().context("evidence is in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    let key = signed::signing_key(state).context("sign the evidence")?;
    signed::write_signed(file, bytes, &key, what)?;
    // The first evidence makes the folder.
    sync_folder(state).context("sync the state folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_ends_with_its_advisories_unless_old_ones_are_accepted() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let expired = |policy: AdvisoryPolicy, days: i64| {
            let gates = Gates { advisories: policy, ..Gates::default() };
            has_expired(at, &gates, at + jiff::SignedDuration::from_hours(24 * days))
        };
        for policy in [AdvisoryPolicy::Wait, AdvisoryPolicy::Block] {
            assert_eq!((expired(policy, 30), expired(policy, 31)), (false, true), "{policy:?}");
        }
        assert!(!expired(AdvisoryPolicy::Warn, 3650));
    }
}
