//! `dr drill`: sets up and runs a drill, then writes and signs its report.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_orchestrator::dr::drill::{self, DrillError, DrillInputs, DrillOptions};
use textnlp_orchestrator::dr::fault::FaultKind;
use textnlp_orchestrator::dr::report::{self, DrillFacts, Report, Targets};
use textnlp_orchestrator::environment::model::{DataProtection, DrillTarget, Failover};
use textnlp_orchestrator::load::HttpWire;
use textnlp_orchestrator::release::{Lock, digest};
use textnlp_service::running::{self, RunningEnvironment};

use super::Sites;
use super::clone::ClonedEnvironment;
use crate::clouds;
use crate::commands::gate::Issuer;
use crate::deployment::operator;
use crate::dr_args::{Drill, FaultWord};
use crate::network;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::signals;

/// Allowed limits of a drill in seconds: enough for a kill, a promotion and the measurement. Anything longer is an
/// outage.
const TTL: std::ops::RangeInclusive<u64> = 10..=600;

/// `dr drill`.
pub async fn drill(session: &Session, args: &Drill, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    allowed(&sites, args)?;
    let running = running::running(&session.scope(&sites.chosen)).await?;
    let mut order = order(session, &sites, args, &running)?;
    let (report, folder) = if is_live(&sites, args) {
        rehearsed(&sites, running, &order, console).await?
    } else {
        order.facts.live = false;
        on_a_clone(session, &sites, &running, &order, console).await?
    };
    let key = report::signing_key(&sites.chosen.folder).map_err(reports_failed)?;
    let page = report.write(&folder, &key).map_err(reports_failed)?;
    let mut document = report.to_json();
    document["report"] = json!(page);
    let text = text(&report, page.as_str());
    if report.missed.is_empty() {
        return Ok(Success::new(text, document));
    }
    console.stream(&format!("{text}\n"));
    let error = anyhow::anyhow!("{}", report.missed.join("\n"))
        .context("the drill missed its targets; the service is restored");
    Err(Failure::new(Exit::GateShut, "target_missed", error).hint(format!("see {page}")).document(document))
}

/// Runs the drill on the environment or its clone. Returns the report and the path of its ledger.
async fn rehearsed(
    sites: &Sites,
    running: RunningEnvironment,
    order: &DrillOptions,
    console: Console,
) -> Result<(Report, Utf8PathBuf), Failure> {
    let trust = network::trust(running.ca_file.as_deref(), Some(sites.environment()))?;
    let front = Arc::new(HttpWire::new(&running.address, &trust)?);
    let header = sites.environment().server.security.api_key_header.clone();
    let issuer = Issuer { running, environment: sites.environment().clone(), header };
    let faults = clouds::faults(&sites.chosen.folder, sites.environment(), issuer.running.lineage)?;
    let flags = sites.again.flags(&sites.chosen.name);
    let progress = Progress::new(console);
    let began = std::time::Instant::now();
    let tell = |phase: &str, says: &str| {
        console.event(&json!({ "event": "drill", "phase": phase, "says": says }));
        progress.line(format!("  {:>5.1} s  {phase:<10} {says}", began.elapsed().as_secs_f64()));
    };
    let stage = DrillInputs {
        state: &sites.chosen.folder,
        flags: &flags,
        control_clients: &sites.control_clients,
        front,
        keys: &issuer,
        faults: &faults,
        stop: signals::stop(console),
        tell: &tell,
    };
    let ended = drill::run(&stage, order).await;
    progress.finish();
    ended.map_err(|error| failed(error, sites))
}

/// Runs the drill on a temporary clone. The report and the ledger are stored with the environment.
async fn on_a_clone(
    session: &Session,
    sites: &Sites,
    running: &RunningEnvironment,
    order: &DrillOptions,
    console: Console,
) -> Result<(Report, Utf8PathBuf), Failure> {
    console.say(format!("Making a clone of {} with its data …", sites.chosen.name));
    let clone = ClonedEnvironment::make(session, sites, running).await?;
    let ended = async {
        let of_clone = Sites::of(&clone.session)?;
        let running = running::running(&clone.session.scope(&of_clone.chosen)).await?;
        let (report, from) = rehearsed(&of_clone, running, order, console).await?;
        let folder = sites.chosen.folder.join("dr/drills").join(&report.id);
        std::fs::create_dir_all(&folder).with_context(|| format!("make {folder}"))?;
        std::fs::copy(from.join("ledger.jsonl"), folder.join("ledger.jsonl")).context("write the ledger")?;
        Ok::<_, Failure>((report, folder))
    }
    .await;
    console.say("Removing the clone …");
    let left = clone.remove().await;
    match ended {
        Ok((mut report, folder)) => {
            report.leftovers.extend(left);
            Ok((report, folder))
        }
        Err(failure) if left.is_empty() => {
            let look = sites.command("dr drill");
            Err(failure
                .hint(format!("the clone is removed, and the service was not changed; to run the drill again: {look}")))
        }
        Err(failure) => Err(failure.hint(format!("left over: {}", left.join("; ")))),
    }
}

/// Whether the drill runs on the live service.
fn is_live(sites: &Sites, args: &Drill) -> bool {
    sites.environment().dr.drill == DrillTarget::Live || args.live.is_some()
}

/// Rejects a drill that was not permitted, before any request.
fn allowed(sites: &Sites, args: &Drill) -> Result<(), Failure> {
    let (name, environment) = (&sites.chosen.name, sites.environment());
    if environment.dr.mode == Failover::None {
        let error = anyhow::anyhow!("environment {name} has `dr.mode: none`: no site would take over");
        return Err(Failure::usage("no_failover", error)
            .hint(format!("set `dr: {{ mode: automatic }}` or `manual`, then: {}", sites.command("up"))));
    }
    if let Some(typed) = args.live.as_deref().filter(|typed| *typed != name.as_str()) {
        let error = anyhow::anyhow!("--live names {typed}, but the environment is {name}");
        return Err(Failure::refused("other_environment", error)
            .hint(format!("to run the drill on the live service: --live {name}")));
    }
    if !is_live(sites, args) && environment.stores_outside() {
        let error = anyhow::anyhow!("a clone would write to the external database of the live service");
        return Err(Failure::refused("not_on_a_clone", error).hint(format!(
            "run the drill on the live service: {}",
            sites.command(&format!("dr drill --live {name}"))
        )));
    }
    if !is_live(sites, args) && args.fault == FaultWord::DiskFull {
        let error = anyhow::anyhow!("a clone has no filesystem of its own to fill");
        return Err(Failure::refused("not_on_a_clone", error).hint(format!(
            "mount a separate filesystem for a site's data, then: {}",
            sites.command(&format!("dr drill --fault disk_full --live {name}"))
        )));
    }
    if args.lose_data && args.fault != FaultWord::Kill {
        return Err(
            Failure::usage("usage", anyhow::anyhow!("--lose-data requires --fault kill")).hint("omit one of them")
        );
    }
    if args.lose_data && is_live(sites, args) && environment.data == DataProtection::Protected && args.live.is_none() {
        let error = anyhow::anyhow!("the data of {name} is protected, and --lose-data deletes a site's copy");
        return Err(Failure::refused("protected", error).hint(format!("to allow it: --live {name}")));
    }
    if !TTL.contains(&args.ttl.0.as_secs()) {
        let error = anyhow::anyhow!("--ttl {} is out of range", args.ttl);
        return Err(Failure::usage("usage", error).hint(format!("from {} s to {} s", TTL.start(), TTL.end())));
    }
    Ok(())
}

fn order(
    session: &Session,
    sites: &Sites,
    args: &Drill,
    running: &RunningEnvironment,
) -> Result<DrillOptions, Failure> {
    let environment = sites.environment();
    let lock = Lock::read(&sites.lock_path).map_err(|e| crate::deployment::broken_lock(e, &sites.scope()))?;
    let who = operator(session);
    let dr = &environment.dr;
    Ok(DrillOptions {
        site: session.global.site.clone(),
        kind: match args.fault {
            FaultWord::Kill => FaultKind::Kill,
            FaultWord::Freeze => FaultKind::Freeze,
            FaultWord::Blackhole => FaultKind::Blackhole,
            FaultWord::DiskFull => FaultKind::DiskFull,
        },
        lose_data: args.lose_data,
        ttl: args.ttl.0,
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
            environment: sites.chosen.name.to_string(),
            lineage: running.lineage.to_string(),
            release: lock.map(|lock| digest(&lock.to_bytes())).unwrap_or_default(),
            by: who.by,
            reason: who.reason,
            tool: who.tool,
            host: who.host,
            traffic: environment.traffic.mode.to_string(),
            database: environment.database.kind.to_string(),
            live: true,
        },
    })
}

fn text(report: &Report, page: &str) -> String {
    let found = &report.figures.findings;
    let seconds = |ms: Option<f64>| ms.map_or("not reached".to_owned(), |ms| format!("{:.2} s", ms / 1000.0));
    let mut text = format!(
        "Drill {}: {} of {}{} ({:.1} s)\n",
        report.id,
        report.fault.word(),
        report.site,
        on(report),
        report.seconds
    );
    text.push_str(&format!(
        "  service back after      {:<12} target {} s\n",
        seconds(found.service_rto_ms),
        report.targets.rto_s
    ));
    text.push_str(&format!(
        "  writes accepted after   {:<12} target {} s\n",
        report.control_rto(),
        report.targets.rto_s
    ));
    text.push_str(&format!(
        "  data loss window        {:<12} target {} s\n",
        format!("{:.2} s", found.rpo_ms / 1000.0),
        report.targets.rpo_s
    ));
    text.push_str(&format!("  acknowledged and lost   {:<12} of {} writes\n", found.lost, found.acknowledged));
    text.push_str(&format!("  without usage           {:<12} of {} requests\n", found.unaccounted, found.requests));
    if let Some(role) = &report.figures.database {
        text.push_str(&format!("  leader's database is    {role:<12} target primary\n"));
    }
    let failed = found.failed;
    text.push_str(&format!(
        "  requests failed         {} until the failover, {} after it, {} during failback\n",
        failed.before_fault + failed.during,
        failed.after_shift,
        failed.on_return
    ));
    if !found.reasons.is_empty() {
        text.push_str(&format!("  why they failed         {}\n", found.why()));
    }
    match report.leftovers.is_empty() {
        true => text.push_str("  left over               nothing\n"),
        false => text.push_str(&format!("  left over               {}\n", report.leftovers.join("; "))),
    }
    text.push_str(&format!("  report                  {page}"));
    text
}

/// The target of the drill, if it was not the live service.
fn on(report: &Report) -> &'static str {
    if report.facts.live { "" } else { " on a clone" }
}

fn failed(error: DrillError, sites: &Sites) -> Failure {
    let name = &sites.chosen.name;
    match error {
        DrillError::NotReady(wrong) => {
            let error = anyhow::anyhow!("{}", wrong.join("\n"))
                .context(format!("environment {name} is not ready for a drill; nothing was changed"));
            Failure::refused("not_ready", error).hint(sites.command("dr status"))
        }
        DrillError::Stopped(_) => Failure::new(Exit::Stopped, "stopped", error)
            .hint(format!("the next drill reverts what is left: {}", sites.command("dr drill"))),
        DrillError::Broken { .. } => Failure::new(Exit::Failed, "drill", error).hint(sites.command("dr status")),
        DrillError::Journal(error) => sites.journal_failed(error),
    }
}

fn reports_failed(error: report::ReportError) -> Failure {
    Failure::new(Exit::Failed, "report", error)
        .hint("the drill itself has ended; its measurements are in the ledger next to the report")
}
