//! `status`, `drift`, `explain`: show the status, the drift, and the origin of resources.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use textnlp_orchestrator::state::Holder;
use textnlp_orchestrator::status::{self, Drift, ResourceHealth, Status, Unfinished};
use textnlp_provider::{FieldChange, ResourceId, SiteName};
use textnlp_service::Scope;
use textnlp_service::backup::backup_status;
use textnlp_service::dr::status::held_until;
use textnlp_service::gate::{self, LastGate};
use textnlp_service::running::{endpoints, for_clients, lost_state};

use super::prelude::*;
use crate::args::Explain;
use crate::deployment::{self, Deployment};

/// `status`: exits with 1 if something that is recorded is unhealthy.
pub async fn status(session: &Session, console: Console) -> Result<Success, Failure> {
    let deployment = deployment::recorded(session, session.load(console)?).await?;
    let state = deployment.state().await?;
    let facts = deployment.facts(&state).await?;
    let unfinished = status::unfinished(&state).await.map_err(|e| deployment.failed(e))?;
    let status = status::status(&facts, state.places(), unfinished);
    // Also where only kept data is left.
    let is_healthy = status.ready;
    let status = status.or_down(state.is_down());
    let name = &deployment.chosen.scope.name;
    if status.resources.is_empty() && status.open.is_empty() && status.unfinished.is_empty() {
        let lost = match lost_state(&state, &deployment.chosen.scope) {
            None => deployment::recorded_elsewhere(session, &deployment.chosen, &state, console).await,
            lost => lost,
        };
        if let Some(lost) = lost {
            return Err(lost.document(serde_json::to_value(&status)?));
        }
        let text = format!("{name} is not deployed. To deploy it: {}", deployment.chosen.scope.last_up());
        return Ok(Success::new(text, serde_json::to_value(&status)?));
    }
    let is_lost = status.down && status.resources.iter().any(|one| one.standing == ResourceHealth::Gone);
    let mut text = match &status {
        Status { down: true, .. } if is_lost => format!("{name}: down; data that was kept is gone\n"),
        Status { down: true, .. } => format!("{name}: down; its data is kept\n"),
        Status { ready: true, .. } => format!("{name}: ready\n"),
        _ => format!("{name}: not ready\n"),
    };
    let endpoints = endpoints(&deployment.chosen.scope, &state)?;
    let address = for_clients(&endpoints).map(|endpoint| endpoint.url.as_str());
    if let Some(address) = address {
        let _ = writeln!(text, "  address {address}");
    }
    let gate = gate::last(&deployment.chosen, &state);
    if let Some(last) = gate.as_ref().filter(|_| !status.down) {
        let _ = writeln!(text, "  gate    {}", gate_line(last, &deployment.chosen.scope));
    }
    let held_until = held_until(&deployment.chosen.scope, &deployment.chosen.loaded.environment).await;
    if let Some(failback) = &held_until {
        let _ = writeln!(text, "  a planned failover holds; to end it: {failback}");
    }
    let roles = deployment.roles();
    let role = |site: &SiteName| roles.get(site).copied().unwrap_or("no longer in the environment file");
    for site in status.sites.iter().filter(|_| status.sites.len() > 1) {
        let _ = writeln!(
            text,
            "  {:<20} {:<12} {} of {} ready{}",
            site.site.as_str(),
            role(&site.site),
            site.ready,
            site.resources,
            endpoints.get(&site.site).map_or(String::new(), |endpoint| format!("  {}", endpoint.url))
        );
    }
    for resource in &status.resources {
        let mark = match &resource.standing {
            ResourceHealth::Ready => console.paint("32", "✓"),
            ResourceHealth::Degraded(_) => console.paint("33", "!"),
            ResourceHealth::Unknown(_) => console.paint("33", "?"),
            ResourceHealth::Gone | ResourceHealth::Tainted => console.paint("31", "✗"),
        };
        let why = match &resource.standing {
            ResourceHealth::Ready => String::new(),
            standing => brief(&standing.to_string()),
        };
        let _ = writeln!(text, "  {mark} {:<34} {:<22} {why}", resource.resource.as_str(), resource.kind.as_str());
    }
    let mut controllers: BTreeMap<&str, usize> = BTreeMap::new();
    for controller in status.resources.iter().filter_map(|resource| resource.controller.as_deref()) {
        *controllers.entry(controller).or_default() += 1;
    }
    for (controller, count) in controllers {
        let mark = console.paint("33", "!");
        let says = "of these objects too, or did: unless it was removed, it reverts what `up` changes; see docs/guide/gitops.md";
        let _ = writeln!(text, "  {mark} {controller} applies {count} {says}");
    }
    for open in &status.open {
        let says = open.says.as_deref().unwrap_or("started");
        let _ = writeln!(text, "  ↻ {:<34} {} is open: {says}", open.resource.as_str(), open.verb);
    }
    // The lines above give the reasons of recorded resources.
    let has_line = |one: &Drift| status.resources.iter().any(|resource| resource.resource == one.resource);
    let drift = status.drift.iter().map(|one| match has_line(one) {
        true => Drift { why: None, ..one.clone() },
        false => one.clone(),
    });
    text.push_str(&drift_text(&drift.collect::<Vec<_>>()));
    let holder = holder(&deployment, &status.unfinished).await;
    text.push_str(&unfinished_text(&status.unfinished, holder.as_ref(), console));
    let (exemptions, now) = (state.exemptions(), jiff::Timestamp::now());
    for recorded in &exemptions {
        let _ = writeln!(text, "  ~ {}", recorded.text(now));
    }
    let held = state.held().await.map_err(|e| deployment.failed(e))?;
    if let Some(hold) = &held {
        let _ = writeln!(text, "  frozen by {} since {:.0}: {}", hold.by, hold.since, hold.why);
    }
    match to_finish(&status.unfinished, &deployment.chosen.scope, holder.as_ref()) {
        Some(command) => text.push_str(&format!("\nTo complete it: {command}")),
        None if is_lost => {
            let list = deployment.chosen.scope.command("backup list");
            let _ = write!(text, "\nIf it is on a disk that is not mounted, mount that; to list its backups: {list}");
        }
        None if status.down => {
            let _ = write!(text, "\nTo deploy it again: {}", deployment.chosen.scope.last_up());
        }
        None if !status.ready || !status.drift.is_empty() => {
            let _ = write!(text, "\nTo fix it: {}", deployment.chosen.scope.last_up());
        }
        None => {}
    }
    let saved =
        backup_status::warning(&deployment.chosen.scope, state.lineage(), &deployment.chosen.loaded.environment).await;
    for line in &saved.lines {
        let _ = write!(text, "\n  {} {line}", console.paint("33", "!"));
    }
    let mut document = serde_json::to_value(&status)?;
    for site in document["sites"].as_array_mut().into_iter().flatten() {
        let of = roles.iter().find(|(name, _)| site["site"] == name.as_str());
        site["role"] = json!(of.map(|(_, role)| role));
        let of = endpoints.iter().find(|(name, _)| site["site"] == name.as_str());
        site["address"] = json!(of.map(|(_, endpoint)| &endpoint.url));
    }
    document["address"] = json!(address);
    document["gate"] = json!(gate.as_ref().map(gate_document));
    document["backup"] = saved.document;
    document["hold"] = json!(held);
    document["failover_held"] = json!(held_until.is_some());
    document["exemptions"] = json!(exemptions);
    let success = Success::new(text, document);
    Ok(if is_healthy { success } else { success.exit(Exit::Failed) })
}

/// The line about the last measurement of the gate.
fn gate_line(last: &LastGate, scope: &Scope) -> String {
    let measure = match last.measured.is_none() && last.outdated.is_none() {
        true => format!("; to measure it: {}", scope.last("gate")),
        false => String::new(),
    };
    format!("{}: {}{measure}", last.phase, last.text())
}

/// The member `gate` of the document.
fn gate_document(LastGate { phase, measured, outdated }: &LastGate) -> Value {
    let (verdict, at) = measured.as_ref().map(|(gate, at)| (gate.state(), at)).unzip();
    json!({ "phase": phase, "state": verdict, "at": at, "outdated": outdated })
}

/// `drift [--exit-code]`: exits with 1 if a run did not complete, because then the record is not what was wanted.
pub async fn drift(session: &Session, exit_code: bool, console: Console) -> Result<Success, Failure> {
    let deployment = deployment::recorded(session, session.load(console)?).await?;
    let state = deployment.state().await?;
    if let Some(lost) = lost_state(&state, &deployment.chosen.scope) {
        return Err(lost);
    }
    if state.is_new() {
        let scope = &deployment.chosen.scope;
        let error = anyhow::anyhow!("environment {} has no state in {}", scope.name, state.place());
        return Err(Failure::usage("not_up", error).hint(scope.last_up()));
    }
    let facts = deployment.facts(&state).await?;
    let drift = status::drift(&facts);
    let unfinished = status::unfinished(&state).await.map_err(|e| deployment.failed(e))?;
    let holder = holder(&deployment, &unfinished).await;
    let scope = &deployment.chosen.scope;
    let name = &scope.name;
    let mut text = drift_text(&drift);
    if drift.is_empty() {
        let _ = match state.is_down() {
            true => writeln!(text, "{name}: nothing is deployed since `down`; what it kept is as recorded"),
            false => writeln!(text, "{name}: no drift: everything is as recorded"),
        };
    }
    text.push_str(&unfinished_text(&unfinished, holder.as_ref(), console));
    match to_finish(&unfinished, scope, holder.as_ref()) {
        Some(command) => text.push_str(&format!("To complete it: {command}")),
        None if !drift.is_empty() => text.push_str(&format!("To fix it: {}", scope.last_up())),
        None => {}
    }
    let document = json!({ "environment": name, "drift": drift, "unfinished": unfinished });
    let success = Success::new(text.trim_end(), document);
    Ok(match unfinished.is_empty() {
        false => success.exit(Exit::Failed),
        true if exit_code && !drift.is_empty() => success.exit(Exit::ChangesPlanned),
        true => success,
    })
}

/// The run in progress, if one may be.
async fn holder(deployment: &Deployment, unfinished: &[Unfinished]) -> Option<Holder> {
    if unfinished.is_empty() { None } else { deployment.store.holder().await.ok().flatten() }
}

/// The first and the last line of a reason: what happened, and the end of the log.
fn brief(why: &str) -> String {
    let mut lines = why.lines();
    let first = lines.next().unwrap_or_default();
    lines.next_back().map_or_else(|| first.to_owned(), |last| format!("{first} {last}"))
}

/// The runs that did not complete, or the one that is in progress.
fn unfinished_text(unfinished: &[Unfinished], holder: Option<&Holder>, console: Console) -> String {
    if let (Some(run), Some(Holder { by, pid, host, .. })) = (unfinished.first(), holder) {
        return format!("  ↻ `{}` is in progress: {by} with process {pid} on {host}\n", run.purpose);
    }
    unfinished.iter().map(|run| format!("  {} {run}\n", console.paint("31", "✗"))).collect()
}

/// The command that completes an interrupted run, unless one is in progress.
fn to_finish(unfinished: &[Unfinished], scope: &Scope, holder: Option<&Holder>) -> Option<String> {
    let run = unfinished.first().filter(|_| holder.is_none())?;
    Some(scope.completes(run.purpose))
}

/// `explain RESOURCE`.
pub async fn explain(session: &Session, args: &Explain, console: Console) -> Result<Success, Failure> {
    let deployment = deployment::recorded(session, session.load(console)?).await?;
    let resource = ResourceId::new(args.resource.clone()).map_err(|e| {
        Failure::usage("invalid_name", e)
            .hint(format!("to list the names: {}", deployment.chosen.scope.command("status")))
    })?;
    let state = deployment.state().await?;
    let facts = deployment.facts(&state).await?;
    let explanation = status::explain(&state, &facts, &resource).await?;
    if explanation.holding.is_none() && explanation.history.is_empty() {
        let error = anyhow::anyhow!("environment {} has no resource `{resource}`", deployment.chosen.scope.name);
        return Err(Failure::usage("no_such_resource", error).hint(deployment.chosen.scope.command("status")));
    }
    let mut text = format!("{resource}\n");
    if let Some(recorded) = explanation.holding.as_ref().and_then(|h| h.current.as_ref()) {
        let _ = writeln!(text, "  is         {} `{}`", recorded.kind, recorded.cloud_id);
        for (name, value) in &recorded.outputs {
            let _ = writeln!(text, "  {name:<10} {value}");
        }
    }
    if let Some(standing) = &explanation.standing {
        let _ = writeln!(text, "  status     {standing}");
    }
    if let Some(drift) = &explanation.drift {
        text.push_str(&drift_text(std::slice::from_ref(drift)));
    }
    for open in &explanation.open {
        let _ = writeln!(
            text,
            "  waits for  {} (operation {}, since {})",
            open.says.as_deref().unwrap_or("an answer"),
            open.operation,
            open.begun
        );
    }
    let _ = writeln!(text, "  history");
    for line in &explanation.history {
        let reason = line.reason.as_ref().map_or(String::new(), |r| format!("  ({r})"));
        let _ = writeln!(text, "    {}  {:<10} {}{reason}", line.at.strftime("%Y-%m-%d %H:%M:%S"), line.by, line.text);
    }
    Ok(Success::new(text, serde_json::to_value(&explanation)?))
}

fn drift_text(drift: &[Drift]) -> String {
    let mut text = String::new();
    for one in drift {
        // The reason of a changed object is often what its fields show below.
        let shown = |field: &FieldChange| Some(format!("{}: {}", field.field, field.before.as_ref()?.as_str()?));
        let fields: Vec<String> = one.fields.iter().filter_map(shown).collect();
        let is_shown = |why: &&String| why.split("; ").all(|part| fields.iter().any(|field| field == part));
        let why = one.why.as_ref().filter(|why| !is_shown(why)).map_or(String::new(), |why| format!(": {why}"));
        let _ = writeln!(text, "  drift {}: {}{why}", one.resource, one.what);
        for field in &one.fields {
            let shown = |v: &Option<serde_json::Value>| v.as_ref().map_or("(nothing)".to_owned(), ToString::to_string);
            let _ =
                writeln!(text, "        {}: {} instead of {}", field.field, shown(&field.before), shown(&field.after));
        }
    }
    text
}
