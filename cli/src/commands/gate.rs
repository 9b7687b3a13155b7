//! `gate`: measures the running service from outside, keeps the evidence, writes the report.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_orchestrator::apply::{Answer, Gates};
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::gate::{self, Check, IssuedKey, KeyIssuer, KeyRequest, Outside};
use textnlp_orchestrator::load::{HttpWire, Key, Wire};
use textnlp_orchestrator::release::{History, Lock, digest};
use textnlp_orchestrator::report::Report;
use textnlp_provider::{Lineage, Secret, SiteName};
use tokio_util::sync::CancellationToken;

use super::running::{self, Running};
use super::{audit, bundle, dr, key, load};
use crate::args::Gate;
use crate::client;
use crate::deployment::{Deployment, broken_lock};
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::signals;

/// A temporary key that a killed gate leaves behind ends by itself.
const KEY_MINUTES: i64 = 60;

/// `gate [--again]`.
pub async fn gate(session: &Session, args: &Gate, console: Console) -> Result<Success, Failure> {
    let chosen = session.load_to_run(console)?;
    let deployment = Deployment::recorded(session, chosen)?;
    let running = running::running(session, &deployment.chosen.name, &deployment.chosen.folder).await?;
    runs_the_lock(&deployment).await?;
    let kept = measure(&deployment, &running, args.again, console).await?;
    let document =
        json!({ "environment": deployment.chosen.name, "gate": kept.document(), "report": kept.report_file() });
    match kept.verdict(&session.again().command("gate --again", &deployment.chosen.name)) {
        Ok(()) => Ok(Success::new(kept.text(), document)),
        Err(failure) => {
            console.stream(&format!("{}\n", kept.text()));
            Err(failure.document(document))
        }
    }
}

/// Evidence is kept under the digests of the lock: of anything else that runs nothing may be said under that name.
async fn runs_the_lock(deployment: &Deployment<'_>) -> Result<(), Failure> {
    let (session, name, folder) = (deployment.session, &deployment.chosen.name, &deployment.chosen.folder);
    let Some(lock) = Lock::read(&deployment.lock_path).map_err(|e| broken_lock(e, session, name))? else {
        return Ok(());
    };
    let recorded = History::at(folder).read().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    let runs = match recorded.entries.last() {
        Some(newest) => newest.applied.lock.runs_the_same(&lock),
        // What was put up before there was a history.
        None => running::program(session, name, folder).await?.is_none_or(|program| program.digest == lock.server),
    };
    if runs {
        return Ok(());
    }
    let error = anyhow::anyhow!("the lock of {name} names a release that `up` has not applied here")
        .context("what runs is not what the lock names, so there is nothing to measure under its name");
    Err(Failure::new(Exit::GateShut, "release_not_applied", error).hint(format!(
        "roll to it: {}\nor see what differs: {}",
        session.again().same("up", name),
        session.again().command("release diff", name)
    )))
}

/// What a gate found, as it is kept beside the state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// The version of this file.
    format: u32,
    /// The digest of the release lock that was measured.
    release: String,
    /// Which deployment; what was written before this was known is of none.
    #[serde(default)]
    lineage: Option<Lineage>,
    /// When.
    at: jiff::Timestamp,
    /// The phase.
    phase: String,
    /// Open, Wait or Shut, with the blockers.
    gate: gate::Gate,
    /// Every check.
    checks: Vec<Check>,
    /// The report for a browser.
    report: Utf8PathBuf,
    /// Whether this is the evidence of an earlier run.
    #[serde(skip)]
    reused: bool,
}

impl Kept {
    /// The `gate` member of documents.
    pub fn document(&self) -> Value {
        json!({ "state": self.gate.state(), "checks": self.checks, "blockers": self.gate.blockers(), "at": self.at, "reused": self.reused })
    }

    /// Whether this was measured of this release, as the environment is today.
    pub fn is_of(&self, lock: &Lock, environment: &Environment) -> bool {
        self.release == release_digest(Some(lock), environment)
    }

    /// Whether the gate was open for this release of this deployment.
    fn is_open_for(&self, release: &str, lineage: Lineage) -> bool {
        self.release == release && self.lineage == Some(lineage) && matches!(self.gate, gate::Gate::Open)
    }

    /// When it was measured.
    pub fn at(&self) -> jiff::Timestamp {
        self.at
    }

    /// What stands in the way of what comes after; empty when the gate is open.
    pub fn blockers(&self) -> Vec<String> {
        let say = |blocker: &String| format!("the {} gate is {}: {blocker}", self.phase, self.gate.state());
        self.gate.blockers().iter().map(say).collect()
    }

    /// The report for a browser.
    pub fn report_file(&self) -> &str {
        self.report.as_str()
    }

    /// The gate in lines.
    pub fn text(&self) -> String {
        let mut text = format!("The {} gate is {}", self.phase, self.gate.state());
        if self.reused {
            text.push_str(&format!(
                " (evidence of {}; the release is the same; `gate --again` measures again)",
                self.at.strftime("%Y-%m-%d %H:%M")
            ));
        }
        for check in &self.checks {
            let mark = if check.ok { "✓" } else { "✗" };
            let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let measured = if check.measured.is_null() {
                "not measured".to_owned()
            } else {
                format!("{} {}", plain(&check.measured), check.unit)
            };
            let note = check.note.as_ref().map_or(String::new(), |n| format!("  {n}"));
            text.push_str(&format!(
                "\n  {mark} {:<30} {:<24} wanted {}{note}",
                check.name,
                measured.trim_end(),
                plain(&check.limit)
            ));
        }
        text.push_str(&format!("\n  report {}", self.report));
        text
    }

    /// Ok when the gate is open; else the failure with every blocker. `again` is the command that measures once more.
    pub fn verdict(&self, again: &str) -> Result<(), Failure> {
        if matches!(self.gate, gate::Gate::Open) {
            return Ok(());
        }
        let blockers = self.gate.blockers().join("\n");
        let error = anyhow::anyhow!("{blockers}").context(format!(
            "the {} gate is {}; the service stays up",
            self.phase,
            self.gate.state()
        ));
        Err(Failure::new(Exit::GateShut, "gate_not_open", error)
            .hint(format!("look at {}, then measure again: {again}", self.report)))
    }
}

/// Measures the gate, or reuses its evidence when the release is the one that was measured and the gate was open.
pub async fn measure(
    deployment: &Deployment<'_>,
    running: &Running,
    again: bool,
    console: Console,
) -> Result<Kept, Failure> {
    let environment = &deployment.chosen.loaded.environment;
    let folder = &deployment.chosen.folder;
    let release = release_of(deployment)?;
    let file = evidence(folder);
    // What lies on an air-gapped site's disk, and how far sites are behind, changes without a new release; looking again takes seconds.
    let again = again || matches!(environment.phase, Phase::AirGapped | Phase::MultiRegion);
    if !again && let Some(kept) = read(&file).filter(|k| k.is_open_for(&release, running.lineage)) {
        return Ok(Kept { reused: true, ..kept });
    }

    let ca = running.ca_file.as_deref().map(client::read_ca).transpose()?;
    let service = HttpWire::new(&running.address, ca.as_deref())?;
    let metrics = running.metrics_address.as_deref().map(|address| HttpWire::new(address, None)).transpose()?;
    let clock = SystemClock;
    let stop = signals::stop(console);
    let header = environment.server.security.api_key_header.clone();
    let issuer = Issuer { running: running.clone(), environment: environment.clone(), header };
    let progress = Progress::new(console);
    progress.line(format!("Measuring the {} gate from outside …", environment.phase));
    let mut recorded = vec![audit::check()];
    if environment.phase == Phase::AirGapped {
        recorded.extend(bundle::gate::checks(deployment).await);
    }
    if environment.phase == Phase::MultiRegion {
        recorded.extend(dr::gate::checks(deployment).await?);
    }
    if environment.phase == Phase::ScaleUp {
        recorded.extend(load::evidence::checks(deployment, running).await?);
    }
    let evidence = gate::evaluate(
        environment,
        Outside {
            address: &running.address,
            service: &service,
            metrics: metrics.as_ref().map(|m| m as &dyn Wire),
            keys: &issuer,
            recorded,
            clock: &clock,
            stop: &stop,
        },
        &mut |happens| match happens {
            gate::Progress::Checked(check) => {
                console.event(&json!({ "event": "checked", "check": check }));
                progress.doing(&format!("{}: {}", check.name, if check.ok { "ok" } else { "not ok" }));
            }
            gate::Progress::Load(second) => {
                console.event(&json!({ "event": "load", "second": second }));
                progress.doing(&format!(
                    "load test: second {}, {} users, {} requests/s, p95 {:.0} ms",
                    second.second, second.users, second.requests, second.p95_ms
                ));
            }
        },
    )
    .await;
    progress.finish();
    let report = Report {
        title: format!("The {} gate of {}", evidence.phase, deployment.chosen.name),
        at: evidence.at,
        address: running.address.clone(),
        facts: facts(deployment, running),
        load: evidence.load.clone(),
        limit: None,
        held: None,
        gate: Some(evidence.clone()),
    };
    let written = report.write(&folder.join("reports"), "gate").context("write the report")?;
    let kept = Kept {
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
        .hint(deployment.session.again().command("gate", &deployment.chosen.name)));
    }
    write_whole(&file, &kept)?;
    Ok(kept)
}

/// The gate of a run that is under way: measured while the old is still there.
pub struct WithinRun<'a> {
    deployment: &'a Deployment<'a>,
    console: Console,
    measured: Mutex<Option<Kept>>,
}

impl<'a> WithinRun<'a> {
    /// For a deployment that is on its way.
    pub fn new(deployment: &'a Deployment<'a>, console: Console) -> Self {
        Self { deployment, console, measured: Mutex::default() }
    }

    /// What was measured last.
    pub fn evidence(self) -> Option<Kept> {
        self.measured.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    async fn measure(&self) -> Result<Kept, Failure> {
        let chosen = &self.deployment.chosen;
        let running = running::running(self.deployment.session, &chosen.name, &chosen.folder).await?;
        // Evidence of before says nothing of what was changed just now.
        measure(self.deployment, &running, true, self.console).await
    }
}

#[async_trait]
impl Gates for WithinRun<'_> {
    async fn ask(&self, _site: &SiteName) -> Answer {
        match self.measure().await {
            Ok(kept) => {
                let blockers = kept.blockers();
                *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
                if blockers.is_empty() { Answer::Open } else { Answer::Shut(blockers) }
            }
            Err(failure) => Answer::Shut(vec![format!("it could not be measured: {:#}", failure.error)]),
        }
    }
}

/// What a reader of the report wants to know of what was measured.
pub fn facts(deployment: &Deployment<'_>, running: &Running) -> Vec<(String, String)> {
    let environment = &deployment.chosen.loaded.environment;
    let models: Vec<_> = environment.models.iter().map(|m| m.name.clone()).collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("environment".into(), deployment.chosen.name.to_string()),
        ("phase".into(), environment.phase.to_string()),
        ("lineage".into(), running.lineage.to_string()),
        ("models".into(), models.join(", ")),
        ("replicas".into(), environment.scaling.min.to_string()),
        ("machine".into(), format!("{cores} cores, {}", crate::clouds::host_name())),
        ("program".into(), concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")).to_owned()),
    ]
}

/// Temporary keys, made by the server program where the database is.
pub struct Issuer {
    /// What runs.
    pub running: Running,
    /// What it was put up from.
    pub environment: Environment,
    /// The header that the server reads keys from.
    pub header: String,
}

#[async_trait]
impl KeyIssuer for Issuer {
    async fn create(&self, request: KeyRequest) -> Result<IssuedKey, String> {
        let until = SystemClock.now() + jiff::SignedDuration::from_mins(KEY_MINUTES);
        let rate = request.requests_per_hour.map_or("10000000/hour".to_owned(), |n| format!("{n}/hour"));
        let command =
            json!({ "do": "create", "name": request.name, "rate_limit": rate, "expires_at": until.as_millisecond() });
        let made = key::ask(&self.running, &self.environment, &command).await.map_err(|f| format!("{:#}", f.error))?;
        let text =
            |field: &str| made[field].as_str().map(str::to_owned).ok_or_else(|| format!("the server named no {field}"));
        let key = Key { header: self.header.clone(), value: Secret::new(text("key")?) };
        Ok(IssuedKey { public_id: text("public_id")?, key })
    }

    async fn revoke(&self, public_id: &str) -> Result<(), String> {
        key::ask(&self.running, &self.environment, &json!({ "do": "revoke", "public_id": public_id }))
            .await
            .map(|_| ())
            .map_err(|f| format!("{:#}", f.error))
    }
}

/// The evidence that was recorded last in this state folder.
pub fn kept(folder: &Utf8Path) -> Option<Kept> {
    read(&evidence(folder))
}

fn evidence(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("evidence").join("gate.json")
}

/// What a measurement is of. What the gate demands, and what the environment says today, are part of what was proven.
pub fn release_digest(lock: Option<&Lock>, environment: &Environment) -> String {
    let mut release = lock.map(Lock::to_bytes).unwrap_or_default();
    release.extend(textnlp_orchestrator::release::configuration_digest(environment).into_bytes());
    digest(&release)
}

/// See [`release_digest`].
pub fn release_of(deployment: &Deployment<'_>) -> Result<String, Failure> {
    let lock = Lock::read(&deployment.lock_path);
    let lock = lock.map_err(|error| broken_lock(error, deployment.session, &deployment.chosen.name))?;
    Ok(release_digest(lock.as_ref(), &deployment.chosen.loaded.environment))
}

fn read(file: &Utf8PathBuf) -> Option<Kept> {
    // Evidence that cannot be read is no evidence: the gate is measured again.
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// Writes evidence whole or not at all.
pub fn write_whole(file: &Utf8Path, kept: &impl Serialize) -> anyhow::Result<()> {
    let folder = file.parent().context("evidence lies in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    let beside = file.with_extension("json.new");
    std::fs::write(&beside, serde_json::to_vec_pretty(kept)?).with_context(|| format!("write {beside}"))?;
    std::fs::rename(&beside, file).with_context(|| format!("write {file}"))
}

/// A clock and a stop for commands that measure without an environment.
pub fn clock_and_stop(console: Console) -> (Arc<SystemClock>, CancellationToken) {
    (Arc::new(SystemClock), signals::stop(console))
}
