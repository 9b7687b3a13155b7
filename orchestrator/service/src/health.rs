//! The state of each component of a running environment: what `status`, `doctor`, `backup list` and `gate` know.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;
use textnlp_orchestrator::availability::{ProbeRecord, WindowSummary, combined, enough, over, percent};
use textnlp_orchestrator::gate::phases::{AVAILABILITY, PhaseDefinition};
use textnlp_orchestrator::gate::{Gate, waivers};
use textnlp_orchestrator::plan::Facts;
use textnlp_orchestrator::state::State;
use textnlp_orchestrator::status::{self, ResourceHealth, ResourceStatus};
use textnlp_provider::SiteName;
use textnlp_provider::units::Span;

use crate::backup::backup_status;
use crate::checks::{Checks, ENDS_SOON_DAYS};
use crate::client::{Client, Target};
use crate::{Deployment, Failure, Scope, gate, quoted, running};

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
    evidence_ends(&mut doctor, deployment, &state)?;
    availability(&mut doctor, deployment, &state);
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

/// What the gate will soon not count any more: waivers, drills and failover rehearsals.
fn evidence_ends(doctor: &mut Checks, deployment: &Deployment, state: &State) -> Result<(), Failure> {
    let (scope, phase) = (&deployment.chosen.scope, deployment.chosen.loaded.environment.phase);
    let now = Timestamp::now();
    for (check, until) in waivers(phase, &state.exemptions(), now) {
        let Some(when) = ends_soon(until, now) else { continue };
        let waive = scope.last(&format!("gate --waive {} --until DATE --reason TEXT", quoted(&check)));
        let fix = format!("measure it: {}\nor waive it again: {waive}", scope.last("gate --again"));
        doctor.warning("waiver", format!("that of check `{check}` ends {when}, on {until}"), fix);
    }
    for newest in gate::dated_evidence(&deployment.chosen, state)? {
        let until = newest.until();
        let Some(when) = ends_soon(until, now) else { continue };
        let says = format!(
            "the newest one is of {:.0}; the gate counts none older than 90 days, which end {when}, on {until}",
            newest.at
        );
        doctor.warning(newest.what, says, scope.command(newest.command));
    }
    Ok(())
}

/// When a last day is, if it is near; `None` also if it is over.
fn ends_soon(until: Date, now: Timestamp) -> Option<String> {
    let days = (until - now.to_zoned(TimeZone::UTC).date()).get_days();
    match i64::from(days) {
        0 => Some("today".to_owned()),
        1 => Some("tomorrow".to_owned()),
        2..=ENDS_SOON_DAYS => Some(format!("in {days} days")),
        _ => None,
    }
}

/// The share of time in which the service was available from outside, where the phase promises one.
fn availability(doctor: &mut Checks, deployment: &Deployment, state: &State) {
    const NAME: &str = "availability";
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let is_promised = PhaseDefinition::of(environment.phase).check(AVAILABILITY).is_some();
    // An inference endpoint is not probed.
    if !is_promised || gate::unmeasured(environment).is_some() {
        return;
    }
    let (window, limit, now) =
        (environment.gates.availability_window, environment.gates.availability, Timestamp::now());
    let record = ProbeRecord::at(&scope.folder, state.lineage());
    let summary = match record.read(window.0, now) {
        Ok(probes) => over(&probes, window.0, None),
        Err(error) => {
            let why = format!("the record in {} was not read: {error}", record.folder());
            return doctor.warning(NAME, why, scope.command("probe"));
        }
    };
    match promised(summary, window, limit, now) {
        Ok((true, says)) => doctor.well(NAME, says),
        // A past outage is not a problem of now.
        Ok((false, says)) => doctor.warning(NAME, says, scope.command("logs errors --since 1d")),
        Err(why) => doctor.warning(NAME, format!("not known: {why}"), scope.command("probe")),
    }
}

/// Whether the share of a window is that promised, and what is left of it; an error if too little is recorded.
fn promised(
    summary: Option<WindowSummary>,
    window: Span,
    limit: f64,
    now: Timestamp,
) -> Result<(bool, String), String> {
    let summary = enough(summary, window, now)?;
    let (share, note) = combined(&summary, None);
    let of_window = |share: f64| (window.0.as_secs_f64() * share).floor() as u64;
    let (allowed, used) = (of_window(1.0 - limit), of_window(1.0 - share));
    let is_kept = share >= limit;
    let left = match is_kept {
        true => format!("{} s of the error budget of {} s are left", allowed.saturating_sub(used), allowed),
        false => format!("outages of {used} s, the error budget is {allowed} s"),
    };
    Ok((is_kept, format!("{} of the last {window}, the target is {}; {left} ({note})", percent(share), percent(limit))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_days_are_named_two_weeks_before() {
        let now: Timestamp = "2026-12-01T23:59:59Z".parse().unwrap();
        let when = |day: &str| ends_soon(day.parse().unwrap(), now);
        assert_eq!(when("2026-12-01").as_deref(), Some("today"));
        assert_eq!(when("2026-12-02").as_deref(), Some("tomorrow"));
        assert_eq!(when("2026-12-15").as_deref(), Some("in 14 days"));
        assert_eq!(when("2026-12-16"), None);
        assert_eq!(when("2026-11-30"), None, "the gate says so itself");
    }

    #[test]
    fn availability_is_compared_with_what_the_phase_promises() {
        let now: Timestamp = "2026-12-01T12:00:00Z".parse().unwrap();
        let window: Span = "1d".parse().unwrap();
        let of = |available: f64, covered: f64| WindowSummary {
            from: now - jiff::SignedDuration::from_hours(24),
            until: now,
            probes: 8640,
            unavailable: 2,
            refused: 0,
            covered,
            available: Some(available),
        };
        let (is_kept, says) = promised(Some(of(0.9995, 1.0)), window, 0.999, now).unwrap();
        assert!(
            is_kept
                && says.starts_with(
                    "99.95 % of the last 1d, the target is 99.9 %; 43 s of the error budget of 86 s are left"
                ),
            "{says}"
        );
        let (is_kept, says) = promised(Some(of(0.99, 1.0)), window, 0.999, now).unwrap();
        assert!(!is_kept && says.contains("outages of 864 s, the error budget is 86 s (8640 probes"), "{says}");
        assert!(promised(None, window, 0.999, now).unwrap_err().contains("no probe"));
        assert!(promised(Some(of(1.0, 0.5)), window, 0.999, now).unwrap_err().contains("are needed"));
        let later = now + jiff::SignedDuration::from_hours(2);
        assert!(promised(Some(of(1.0, 1.0)), window, 0.999, later).unwrap_err().contains("more than an hour ago"));
    }
}
