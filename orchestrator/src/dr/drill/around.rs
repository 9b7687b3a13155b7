//! Before and after a drill: revert the leftovers of earlier drills, check the preconditions, clean up.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::error_chain;
use tokio::time::Instant;

use super::super::control_client::MemberRole;
use super::super::control_status::ControlStatus;
use super::super::failover;
use super::super::fault::Fault;
use super::super::journal::{Action, Journal, StepStatus, WHOLE, begin_record, unfinished};
use super::super::ledger::prefix;
use super::{DrillError, DrillInputs, DrillOptions, POLL_INTERVAL, RECOVERY_TIMEOUT, pause, until};

/// The state before anything was changed.
pub(super) struct InitialState {
    pub(super) fault: Fault,
    pub(super) epoch: u64,
    pub(super) units: BTreeMap<String, Vec<String>>,
}

/// Reverts and finishes earlier drills: their faults, their keys and the failback. Returns their ids.
pub(super) async fn finish_old(stage: &DrillInputs<'_>, journal: &mut Journal) -> Result<Vec<String>, DrillError> {
    let old: Vec<(String, Value)> = unfinished(journal.records())
        .into_iter()
        .filter(|record| record.action == Action::Drill)
        .map(|record| (record.id.clone(), record.data.clone()))
        .collect();
    let mut finished = Vec::new();
    for (id, data) in old {
        (stage.tell)("finish", &format!("drill {id} did not finish: its fault is reverted first"));
        let fails = |why: String| DrillError::Broken { phase: "finish an earlier drill", why };
        stage.faults.revert(&id).await.map_err(fails)?;
        if let Some(site) = data["fault"]["site"].as_str() {
            let began = Instant::now();
            while !is_back(&ControlStatus::take(stage.control_clients).await, site) {
                if began.elapsed() > RECOVERY_TIMEOUT {
                    return Err(fails(format!(
                        "{site} has not rejoined as a member after {} s",
                        RECOVERY_TIMEOUT.as_secs()
                    )));
                }
                pause(stage, POLL_INTERVAL).await?;
            }
        }
        let tell = |says: &str| (stage.tell)("finish", says);
        let home = failover::failback(stage.control_clients, journal, RECOVERY_TIMEOUT, &tell).await;
        home.map_err(|refusal| fails(error_chain(&refusal)))?;
        clear_keys(stage, &id).await.map_err(fails)?;
        revoke(stage, journal, &id).await.map_err(fails)?;
        journal.end(Action::Drill, &id, WHOLE, json!({ "aborted": true }))?;
        finished.push(id);
    }
    Ok(finished)
}

/// Checks every precondition and reports all problems at once. Builds the fault but does not inject it.
pub(super) async fn preflight(
    stage: &DrillInputs<'_>,
    order: &DrillOptions,
    id: &str,
) -> Result<InitialState, DrillError> {
    (stage.tell)("preflight", "polling every site");
    let control_status = ControlStatus::take(stage.control_clients).await;
    let mut wrong = Vec::new();
    let primary = match &control_status.witness {
        Ok(witness) => Some(witness.primary.clone()),
        Err(error) => {
            wrong.push(error.to_string());
            None
        }
    };
    let site = order.site.clone().or(primary.clone()).unwrap_or_else(|| stage.control_clients.home.clone());
    let is_known = stage.control_clients.watch(&site).is_some();
    if !is_known {
        wrong.push(format!("there is no site `{site}`; the sites are {}", stage.control_clients.names().join(", ")));
    }
    if primary.as_ref().is_some_and(|primary| *primary != stage.control_clients.home) {
        wrong.push(format!(
            "the primary is {}, not {}: run `dr failback` first",
            primary.unwrap_or_default(),
            stage.control_clients.home
        ));
    }
    for line in control_status.lines(order.max_lag_ms) {
        if line.role == MemberRole::Unreachable {
            wrong.push(line.why.unwrap_or_default());
        } else if !line.in_sync {
            let behind = line.behind_entries.unwrap_or_default();
            let lag = line.lag_ms.unwrap_or_default();
            wrong.push(format!(
                "{} is not in sync: {}, {behind} entries and {lag} ms behind (at most {} ms are allowed)",
                line.site, line.role, order.max_lag_ms
            ));
        }
    }
    let fault =
        Fault { id: id.to_owned(), site, kind: order.kind, until: until(order.ttl), lose_data: order.lose_data };
    match stage.faults.open().await {
        Ok(open) if open.is_empty() && is_known => wrong.extend(stage.faults.check(&fault).await.err()),
        Ok(open) => wrong.extend(open.iter().map(|fault| {
            format!(
                "fault {} ({}) of {} has not been reverted; it ends at {}",
                fault.id,
                fault.kind.word(),
                fault.site,
                fault.until
            )
        })),
        Err(why) => wrong.push(why),
    }
    if !wrong.is_empty() {
        return Err(DrillError::NotReady(wrong));
    }
    let mut units = BTreeMap::new();
    for site in stage.control_clients.names() {
        units.insert(site.clone(), stage.faults.ready_units(&site).await);
    }
    Ok(InitialState { fault, epoch: control_status.epoch(), units })
}

/// Whether a site answers and is a member of the present configuration.
pub(super) fn is_back(control_status: &ControlStatus, site: &str) -> bool {
    let Ok(witness) = &control_status.witness else { return false };
    (witness.members.iter().any(|name| name == site) || witness.primary == site)
        && control_status.site(site).is_some_and(|status| status.epoch == witness.epoch)
}

/// Removes the drill's keys from control data through a site that accepts writes, and checks that they are gone.
pub(super) async fn clear_keys(stage: &DrillInputs<'_>, id: &str) -> Result<(), String> {
    let mut why = "no site answers".to_owned();
    for watch in &stage.control_clients.watches {
        match watch.clear(&prefix(id)).await {
            // Keys that were written during the removal.
            Ok(_) => match watch.keys(&prefix(id)).await {
                Ok(keys) if keys.is_empty() => return Ok(()),
                Ok(keys) => why = format!("{} are still at {}", keys.len(), watch.site),
                Err(error) => why = error.to_string(),
            },
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// Revokes the temporary API key, if it was created and not revoked yet.
pub(super) async fn revoke(stage: &DrillInputs<'_>, journal: &mut Journal, id: &str) -> Result<(), String> {
    let revoked = journal.records().iter().any(|r| r.id == id && r.step == "key" && r.is == StepStatus::Ended);
    let public_id =
        begin_record(journal.records(), id, "key").and_then(|r| r.data["public_id"].as_str().map(str::to_owned));
    let Some(public_id) = public_id.filter(|_| !revoked) else { return Ok(()) };
    stage.keys.revoke(&public_id).await?;
    journal.end(Action::Drill, id, "key", Value::Null).map_err(|error| error_chain(&error))
}
