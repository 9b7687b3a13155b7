//! The state of each component of a running environment: what `status`, `doctor`, `backup list` and `gate` know.

use std::collections::BTreeMap;

use serde_json::Value;
use textnlp_orchestrator::gate::Gate;
use textnlp_orchestrator::plan::Facts;
use textnlp_orchestrator::state::State;
use textnlp_orchestrator::status::{self, ResourceHealth, ResourceStatus};
use textnlp_provider::SiteName;

use crate::backup::backup_status;
use crate::checks::Checks;
use crate::client::{Client, Target};
use crate::{Deployment, Failure, Scope, gate, running};

/// Checks each component of a running environment, and what a client of it sees.
pub async fn check(deployment: &Deployment, target: Target) -> Result<Checks, Failure> {
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let state = deployment.state().await?;
    let facts = deployment.facts(&state).await?;
    let mut doctor = Checks::default();
    components(&mut doctor, deployment, &state, &facts);
    service(&mut doctor, scope, target).await?;
    if let Some(failure) = running::unfinished(scope, &state).await? {
        doctor.failed("run", failure);
    }
    if environment.runs_here() {
        doctor.disk(&scope.folder);
    }
    let saved = backup_status::warning(scope, state.lineage(), environment).await;
    doctor.backups(&saved);
    last_gate(&mut doctor, deployment, &state);
    Ok(doctor)
}

/// A row for each component of each site, and its certificate that expires first.
fn components(doctor: &mut Checks, deployment: &Deployment, state: &State, facts: &Facts) {
    let scope = &deployment.chosen.scope;
    let up = scope.last_up();
    let now = status::status(facts, state.places(), Vec::new());
    let mut found: BTreeMap<(&SiteName, &str), Vec<&ResourceStatus>> = BTreeMap::new();
    for resource in &now.resources {
        found.entry((&resource.site, resource.resource.component())).or_default().push(resource);
    }
    for ((site, component), resources) in found {
        doctor.site = Some(site.clone());
        let lines: Vec<String> = resources
            .iter()
            .filter(|one| !is_ready(one))
            .map(|one| format!("{}: {}", one.resource, one.standing))
            .collect();
        match lines.first() {
            None => doctor.well(component, format!("{} of {} ready", resources.len(), resources.len())),
            Some(_) => {
                let explain =
                    resources.iter().find(|one| !is_ready(one)).map(|one| format!("explain {}", one.resource));
                let explain = explain.map(|explain| format!("\n{}", scope.command(&explain))).unwrap_or_default();
                doctor.problem(component, lines.join("\n"), format!("{up}{explain}"));
            }
        }
    }
    for (site, seen) in &facts.sites {
        doctor.site = Some(site.clone());
        doctor.certificates(&seen.observed, &up);
    }
    doctor.site = None;
    for open in &now.open {
        let text = format!("{} of {} is open since {:.0}", open.verb, open.resource, open.begun);
        doctor.warning("operation", text, format!("the next run finishes it: {up}"));
    }
}

fn is_ready(resource: &ResourceStatus) -> bool {
    resource.standing == ResourceHealth::Ready
}

/// What a client sees: the endpoint, its database and its models.
async fn service(doctor: &mut Checks, scope: &Scope, target: Target) -> Result<(), Failure> {
    let address = target.address.clone();
    let client = Client::new(target)?;
    // An inference endpoint answers invocations only; its state is that of its resource.
    if client.is_invoked() {
        return Ok(());
    }
    let logs = scope.command("logs");
    let reason = |failure: &Failure| format!("{:#}", failure.error);
    let ready = match client.get("/ready").await {
        Ok(ready) => {
            doctor.well("endpoint", format!("{address} is {}", ready["status"].as_str().unwrap_or("ready")));
            ready
        }
        Err(failure) => {
            doctor.problem("endpoint", format!("{address}: {}", reason(&failure)), logs);
            return Ok(());
        }
    };
    match ready["database"].as_str() {
        Some("ok") => doctor.well("database", "answers"),
        Some(other) => doctor.problem("database", other, logs.clone()),
        None => {}
    }
    match client.get("/v1/models").await {
        Ok(models) => {
            for model in models["data"].as_array().into_iter().flatten() {
                one_model(doctor, model, &logs);
            }
        }
        Err(failure) => doctor.problem("models", reason(&failure), scope.command("key list")),
    }
    Ok(())
}

/// A model is loaded by the first request for it, unless it is loaded at the start.
fn one_model(doctor: &mut Checks, model: &Value, logs: &str) {
    let name = format!("model {}", model["id"].as_str().unwrap_or("?"));
    match model["state"].as_str() {
        Some("failed") => {
            let why = model["reason"].as_str().unwrap_or("it gives no reason");
            doctor.problem(name, format!("it could not be loaded: {why}"), logs);
        }
        Some("ready") => doctor.well(name, "loaded"),
        Some(state) => doctor.well(name, state),
        None => doctor.well(name, "listed"),
    }
}

/// The result of the last measurement; it does not measure.
fn last_gate(doctor: &mut Checks, deployment: &Deployment, state: &State) {
    let Some(last) = gate::last(&deployment.chosen, state) else { return };
    let scope = &deployment.chosen.scope;
    let again = scope.last("gate --again");
    let text = last.text();
    let blocked = |gate: &Gate| format!("{text}: {}", gate.blockers().join("; "));
    match (&last.measured, &last.outdated) {
        (Some((gate @ Gate::Shut(_), _)), _) => doctor.problem("gate", blocked(gate), again),
        (Some((gate @ Gate::Wait(_), _)), _) => doctor.warning("gate", blocked(gate), again),
        (Some((Gate::Open, _)), None) => doctor.well("gate", text),
        (None, None) => doctor.warning("gate", text, scope.last("gate")),
        (Some((Gate::Open, _)) | None, Some(_)) => doctor.warning("gate", text, again),
    }
}
