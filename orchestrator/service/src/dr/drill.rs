//! Drills: a fault in a site of the live service or of a clone, and the signed report of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use textnlp_orchestrator::dr::drill::{self, DrillError, DrillInputs, DrillOptions};
use textnlp_orchestrator::dr::fault::FaultKind;
use textnlp_orchestrator::dr::journal::{self, Action};
use textnlp_orchestrator::dr::report::{self, DrillFacts, Report, Targets};
use textnlp_orchestrator::environment::model::{DataProtection, DrillTarget, Failover, Span};
use textnlp_orchestrator::load::HttpWire;
use textnlp_orchestrator::release::digest;
use textnlp_orchestrator::state::Operator;
use tokio_util::sync::CancellationToken;

use super::{CloneRunner, Sites, clone};
use crate::keys::Admin;
use crate::{Exit, Failure, Progress, RunningEnvironment, running};

/// Allowed limits of a drill in seconds: enough for a kill, a promotion and the measurement. Anything longer is an
/// outage.
const TTL: std::ops::RangeInclusive<u64> = 10..=600;

/// How the operator wants a drill.
pub struct Request<'a> {
    /// The site that fails. `None`: the primary.
    pub site: Option<&'a str>,
    /// The fault.
    pub fault: FaultKind,
    /// Whether the site's data is lost too.
    pub lose_data: bool,
    /// The end of the fault, even if this process dies.
    pub ttl: Span,
    /// The name that was typed to allow a drill on the live service.
    pub live: Option<&'a str>,
    /// Who asks for it.
    pub operator: Operator,
    /// Deploys clones.
    pub clones: &'a dyn CloneRunner,
    /// The progress.
    pub progress: &'a dyn Progress,
    /// Stops the drill.
    pub stop: CancellationToken,
}

/// Ok if a drill met every target, else a failure with those that it missed.
pub fn verdict(report: &Report, page: &Utf8Path) -> Result<(), Failure> {
    if report.missed.is_empty() {
        return Ok(());
    }
    let error = anyhow::anyhow!("{}", report.missed.join("\n"))
        .context("the drill missed its targets; the service is restored");
    Err(Failure::new(Exit::GateShut, "target_missed", error).hint(format!("see {page}")))
}

/// Runs a drill, then writes and signs its report. Returns the report and the path of its page.
pub async fn drill(sites: &Sites, request: &Request<'_>) -> Result<(Report, Utf8PathBuf), Failure> {
    let is_live = sites.environment().dr.drill == DrillTarget::Live || request.live.is_some();
    allowed(sites, request, is_live)?;
    let service = running::running(sites.scope()).await?;
    let options = options(sites, request, is_live, &service)?;
    let (report, folder) = if is_live {
        measured(sites, &service, &options, request).await?
    } else {
        on_a_clone(sites, &service, &options, request).await?
    };
    let failed = |error: report::ReportError| {
        Failure::new(Exit::Failed, "report", error)
            .hint("the drill itself has ended; its measurements are in the ledger next to the report")
    };
    let key = report::signing_key(&sites.scope().folder).map_err(failed)?;
    let page = report.write(&folder, &key).map_err(failed)?;
    Ok((report, page))
}

/// Reverts and finishes drills that were interrupted, and removes the clones of killed ones in the folder of the states. Returns
/// the ids of the drills, and the folders of the clones.
pub async fn finish(sites: &Sites, request: &Request<'_>) -> Result<(Vec<String>, Vec<Utf8PathBuf>), Failure> {
    let scope = sites.scope();
    let records = journal::read(&scope.folder).map_err(|error| sites.journal_failed(error))?;
    let is_unfinished = journal::unfinished(&records).into_iter().any(|record| record.action == Action::Drill);
    let finished = match is_unfinished {
        true => finish_open(sites, request).await,
        // Then a clone may be left of a service that no longer runs.
        false => Ok(Vec::new()),
    };
    let clones = clone::left(scope.states());
    let removed = clone::remove_left(scope.states(), scope.platform, request.clones).await;
    let finished = finished?;
    removed?;
    Ok((finished, clones))
}

async fn finish_open(sites: &Sites, request: &Request<'_>) -> Result<Vec<String>, Failure> {
    let (service, by) = (running::running(sites.scope()).await?, &request.operator.by);
    with_inputs(sites, &service, request, async |inputs| drill::finish(inputs, by).await).await
}

/// Runs the drill on the environment or its clone. Returns the report and the path of its ledger.
async fn measured(
    sites: &Sites,
    service: &RunningEnvironment,
    options: &DrillOptions,
    request: &Request<'_>,
) -> Result<(Report, Utf8PathBuf), Failure> {
    with_inputs(sites, service, request, async |inputs| drill::run(inputs, options).await).await
}

/// Runs something with what drills need of an environment.
async fn with_inputs<T>(
    sites: &Sites,
    service: &RunningEnvironment,
    request: &Request<'_>,
    run: impl AsyncFnOnce(&DrillInputs<'_>) -> Result<T, DrillError>,
) -> Result<T, Failure> {
    let (scope, environment) = (sites.scope(), sites.environment());
    let trust = scope.platform.trust(service.ca_file.as_deref(), Some(environment))?;
    let front = Arc::new(HttpWire::new(&service.address, &trust)?);
    let keys = Admin { platform: scope.platform, running: service, environment };
    let faults = scope.platform.faults(&scope.folder, environment, service.lineage)?;
    let flags = scope.again.flags(&scope.name);
    let (began, progress) = (Instant::now(), request.progress);
    let tell = |phase: &str, says: &str| {
        progress.event(&json!({ "event": "drill", "phase": phase, "says": says }));
        progress.line(&format!("  {:>5.1} s  {phase:<10} {says}", began.elapsed().as_secs_f64()));
    };
    let inputs = DrillInputs {
        state: &scope.folder,
        flags: &flags,
        control_clients: &sites.control_clients,
        front,
        keys: &keys,
        faults: &*faults,
        stop: request.stop.clone(),
        tell: &tell,
    };
    run(&inputs).await.map_err(|error| failed(error, sites))
}

/// Runs the drill on a temporary clone. The report and the ledger are stored with the environment.
async fn on_a_clone(
    sites: &Sites,
    service: &RunningEnvironment,
    options: &DrillOptions,
    request: &Request<'_>,
) -> Result<(Report, Utf8PathBuf), Failure> {
    let scope = sites.scope();
    request.progress.line(&format!("Making a clone of {} with its data …", scope.name));
    let clone = clone::make(sites, service, &request.operator, request.clones).await?;
    let ended = async {
        let service = running::running(clone.scope()).await?;
        let (report, from) = measured(&clone, &service, options, request).await?;
        let folder = scope.folder.join("dr/drills").join(&report.id);
        std::fs::create_dir_all(&folder).with_context(|| format!("make {folder}"))?;
        std::fs::copy(from.join("ledger.jsonl"), folder.join("ledger.jsonl")).context("write the ledger")?;
        Ok::<_, Failure>((report, folder))
    }
    .await;
    request.progress.line("Removing the clone …");
    let left = clone::remove(&clone, request.clones).await;
    match ended {
        Ok((mut report, folder)) => {
            report.leftovers.extend(left);
            Ok((report, folder))
        }
        Err(failure) if left.is_empty() => Err(failure.hint(format!(
            "the clone is removed, and the service was not changed; to run the drill again: {}",
            scope.command("dr drill")
        ))),
        Err(failure) => Err(failure.hint(format!("left over: {}", left.join("; ")))),
    }
}

/// Rejects a drill that was not permitted, before any request.
fn allowed(sites: &Sites, request: &Request<'_>, is_live: bool) -> Result<(), Failure> {
    let (name, environment) = (&sites.scope().name, sites.environment());
    let Request { fault, lose_data, ttl, live, .. } = request;
    if environment.dr.mode == Failover::None {
        let error = anyhow::anyhow!("environment {name} has `dr.mode: none`: no site would take over");
        return Err(Failure::usage("no_failover", error)
            .hint(format!("set `dr: {{ mode: automatic }}` or `manual`, then: {}", sites.scope().last_up())));
    }
    if let Some(typed) = live.filter(|typed| *typed != name.as_str()) {
        let error = anyhow::anyhow!("--live names {typed}, but the environment is {name}");
        return Err(Failure::refused("other_environment", error)
            .hint(format!("to run the drill on the live service: --live {name}")));
    }
    if !is_live && environment.stores_outside() {
        let error = anyhow::anyhow!("a clone would write to the external database of the live service");
        return Err(Failure::refused("not_on_a_clone", error).hint(format!(
            "run the drill on the live service: {}",
            sites.scope().command(&format!("dr drill --live {name}"))
        )));
    }
    if !is_live && *fault == FaultKind::DiskFull {
        let error = anyhow::anyhow!("a clone has no filesystem of its own to fill");
        return Err(Failure::refused("not_on_a_clone", error).hint(format!(
            "mount a separate filesystem for a site's data, then: {}",
            sites.scope().command(&format!("dr drill --fault disk_full --live {name}"))
        )));
    }
    if *lose_data && *fault != FaultKind::Kill {
        return Err(
            Failure::usage("usage", anyhow::anyhow!("--lose-data requires --fault kill")).hint("omit one of them")
        );
    }
    if *lose_data && is_live && environment.data == DataProtection::Protected && live.is_none() {
        let error = anyhow::anyhow!("the data of {name} is protected, and --lose-data deletes a site's copy");
        return Err(Failure::refused("protected", error).hint(format!("to allow it: --live {name}")));
    }
    if !TTL.contains(&ttl.0.as_secs()) {
        let error = anyhow::anyhow!("--ttl {ttl} is out of range");
        return Err(Failure::usage("usage", error).hint(format!("from {} s to {} s", TTL.start(), TTL.end())));
    }
    Ok(())
}

fn options(
    sites: &Sites,
    request: &Request<'_>,
    is_live: bool,
    service: &RunningEnvironment,
) -> Result<DrillOptions, Failure> {
    let environment = sites.environment();
    let lock = sites.chosen.lock()?;
    let (dr, operator) = (&environment.dr, request.operator.clone());
    Ok(DrillOptions {
        site: request.site.map(str::to_owned),
        kind: request.fault,
        lose_data: request.lose_data,
        ttl: request.ttl.0,
        automatic: dr.mode == Failover::Automatic,
        automatic_failback: dr.failback == Failover::Automatic,
        stored_outside: environment.stores_outside(),
        max_lag_ms: sites.max_lag_ms,
        targets: Targets { rto_s: dr.rto.0.as_secs_f64(), rpo_s: dr.rpo.0.as_secs_f64() },
        baseline: Duration::from_secs(3),
        hold: Duration::from_secs(3),
        requests_per_second: 20,
        writes_per_second: 4,
        // Short texts, because only availability is measured.
        body: json!({ "prompt": "The bridge is closed, so", "max_tokens": 4, "temperature": 0.0 }),
        facts: DrillFacts {
            environment: sites.scope().name.to_string(),
            lineage: service.lineage.to_string(),
            release: lock.map(|lock| digest(&lock.to_bytes())).unwrap_or_default(),
            by: operator.by,
            reason: operator.reason,
            tool: operator.tool,
            host: operator.host,
            traffic: environment.traffic.mode.to_string(),
            database: environment.database.kind.to_string(),
            live: is_live,
        },
    })
}

fn failed(error: DrillError, sites: &Sites) -> Failure {
    let scope = sites.scope();
    match error {
        DrillError::NotReady(wrong) => {
            let error = anyhow::anyhow!("{}", wrong.join("\n"))
                .context(format!("environment {} is not ready for a drill; nothing was changed", scope.name));
            Failure::refused("not_ready", error).hint(scope.command("dr status"))
        }
        DrillError::Stopped(_) => Failure::new(Exit::Stopped, "stopped", error)
            .hint(format!("to revert what is left: {}", scope.command("dr drill --finish"))),
        DrillError::Broken { .. } => Failure::new(Exit::Failed, "drill", error).hint(scope.command("dr status")),
        DrillError::Journal(error) => sites.journal_failed(error),
    }
}
