//! Gates: measures the running service from outside, stores the evidence and writes the report.

pub mod growth;
pub mod load;
mod sites;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_files::{Replace, sync_folder};
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::gate::{self, Check, GateInputs};
use textnlp_orchestrator::load::{HttpWire, Wire};
use textnlp_orchestrator::release::{History, Lock, digest};
use textnlp_orchestrator::report::Report;
use textnlp_provider::Lineage;
use tokio_util::sync::CancellationToken;

use crate::failure::{Exit, Failure};
use crate::platform::{ChosenEnvironment, Progress, Scope};
use crate::running::{self, RunningEnvironment};

/// The error for a phase whose gate cannot be measured.
pub fn unmeasured(phase: Phase) -> String {
    format!("this version does not measure the gate of phase {phase}")
}

/// Refuses a run that would end at a gate that cannot be measured, before it changes anything. `--no-gate` permits it,
/// except for a gate within the run, which decides what is deleted.
pub fn is_measured(scope: &Scope, phase: Phase, no_gate: bool, gated: bool) -> Result<(), Failure> {
    if phase.has_gate() || (no_gate && !gated) {
        return Ok(());
    }
    let error = anyhow::anyhow!("{}, so the gate cannot open; nothing was changed", unmeasured(phase));
    let hint = format!("deploy without the gate: {}", scope.same("up --no-gate"));
    Err(Failure::new(Exit::GateShut, "gate_not_measured", error).hint(hint))
}

/// Evidence is stored under the digests of the lock, so the lock must be what runs.
pub async fn runs_the_lock(chosen: &ChosenEnvironment) -> Result<(), Failure> {
    let ChosenEnvironment { scope, .. } = chosen;
    let (name, folder) = (&scope.name, &scope.folder);
    let Some(lock) = chosen.lock()? else {
        return Ok(());
    };
    let recorded = History::at(folder).read().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    let runs = match recorded.entries.last() {
        Some(newest) => newest.applied.lock.runs_the_same(&lock),
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
        scope.same("up"),
        scope.command("release diff")
    )))
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
    /// When the gate was measured.
    pub at: jiff::Timestamp,
    /// The phase of the environment.
    pub phase: String,
    /// Open, Wait or Shut, with the blockers.
    pub gate: gate::Gate,
    /// Every check.
    pub checks: Vec<Check>,
    /// The path of the HTML report.
    pub report: Utf8PathBuf,
    /// Whether the evidence is from an earlier run.
    #[serde(skip)]
    pub reused: bool,
}

impl StoredEvidence {
    /// Whether the evidence is for this release and the current environment.
    pub fn is_of(&self, lock: &Lock, environment: &Environment) -> bool {
        self.release == release_digest(Some(lock), environment)
    }

    /// Whether the gate was open for this release of this deployment.
    fn is_open_for(&self, release: &str, lineage: Lineage) -> bool {
        self.release == release && self.lineage == Some(lineage) && matches!(self.gate, gate::Gate::Open)
    }

    /// The blockers, empty if the gate is open.
    pub fn blockers(&self) -> Vec<String> {
        let say = |blocker: &String| format!("the {} gate {}: {blocker}", self.phase, self.gate.verdict());
        self.gate.blockers().iter().map(say).collect()
    }

    /// Ok if the gate is open, else a failure with every blocker. `again` is the command that measures again.
    pub fn verdict(&self, again: &str) -> Result<(), Failure> {
        if matches!(self.gate, gate::Gate::Open) {
            return Ok(());
        }
        let blockers = self.gate.blockers().join("\n");
        let error = anyhow::anyhow!("{blockers}").context(format!(
            "the {} gate {}; the service stays up",
            self.phase,
            self.gate.verdict()
        ));
        Err(Failure::new(Exit::GateShut, "gate_not_open", error)
            .hint(format!("see {}, then measure again: {again}", self.report)))
    }
}

/// Measures the gate. Reuses evidence of the same release if the gate was open. `recorded`: the checks of this program
/// or of an installed site's content, awaited only if the gate is measured.
pub async fn measure(
    chosen: &ChosenEnvironment,
    running: &RunningEnvironment,
    again: bool,
    recorded: impl Future<Output = Vec<Check>>,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<StoredEvidence, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let folder = &scope.folder;
    let release = release_of(chosen)?;
    let file = evidence(folder);
    // An air-gapped site's content and the replication lag change without a new release. Measuring them takes only
    // seconds.
    let again = again || matches!(environment.phase, Phase::AirGapped | Phase::MultiRegion);
    if !again && let Some(kept) = read(&file).filter(|k| k.is_open_for(&release, running.lineage)) {
        return Ok(StoredEvidence { reused: true, ..kept });
    }

    let trust = scope.platform.trust(running.ca_file.as_deref(), Some(environment))?;
    let service = HttpWire::new(&running.address, &trust)?;
    let metrics = running.metrics_address.as_deref().map(|address| HttpWire::new(address, &trust)).transpose()?;
    let keys = scope.platform.key_issuer(running, environment);
    let clock = SystemClock;
    progress.line(&format!("Measuring the {} gate from outside …", environment.phase));
    let mut recorded = recorded.await;
    if environment.phase == Phase::MultiRegion {
        recorded.extend(sites::checks(chosen).await?);
    }
    if environment.phase == Phase::ScaleUp {
        recorded.extend(load::checks(chosen, running).await?);
    }
    let evidence = gate::evaluate(
        environment,
        GateInputs {
            address: &running.address,
            service: &service,
            metrics: metrics.as_ref().map(|m| m as &dyn Wire),
            keys: &*keys,
            recorded,
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
                progress.doing(&format!(
                    "load test: second {}, {} users, {} requests/s, p95 {:.0} ms",
                    second.second, second.users, second.requests, second.p95_ms
                ));
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
        limit: None,
        held: None,
        gate: Some(evidence.clone()),
    };
    let written = report.write(&folder.join("reports"), "gate").context("write the report")?;
    let kept = StoredEvidence {
        format: 1,
        release,
        lineage: Some(running.lineage),
        at: evidence.at,
        phase: evidence.phase.to_string(),
        gate: evidence.gate,
        checks: evidence.checks,
        report: written.html,
        reused: false,
    };
    if stop.is_cancelled() {
        return Err(Failure::new(
            Exit::Stopped,
            "stopped",
            anyhow::anyhow!("stopped while the gate was measured; the service stays up"),
        )
        .hint(scope.command("gate")));
    }
    write_whole(&file, &kept)?;
    Ok(kept)
}

/// The facts about the measured deployment in the report.
fn facts(chosen: &ChosenEnvironment, running: &RunningEnvironment) -> Vec<(String, String)> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let models: Vec<_> = environment.models.iter().map(|m| m.name.clone()).collect();
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

/// The last evidence in this state folder.
pub fn kept(folder: &Utf8Path) -> Option<StoredEvidence> {
    read(&evidence(folder))
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
fn release_of(chosen: &ChosenEnvironment) -> Result<String, Failure> {
    Ok(release_digest(chosen.lock()?.as_ref(), &chosen.loaded.environment))
}

fn read(file: &Utf8PathBuf) -> Option<StoredEvidence> {
    // Unreadable evidence counts as none, and the gate is measured again.
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// Writes evidence durably, because `promote` relies on it even after a crash of the machine.
fn write_whole(file: &Utf8Path, kept: &impl Serialize) -> anyhow::Result<()> {
    let folder = file.parent().context("evidence is in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    let bytes = serde_json::to_vec_pretty(kept)?;
    Replace::umask().write(file, &bytes).with_context(|| format!("write {file}"))?;
    // The first evidence makes the folder.
    folder.parent().map_or(Ok(()), sync_folder).context("sync the state folder")
}
