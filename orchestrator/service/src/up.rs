//! Runs of `up` and `down`: their budget, what they record, and why one failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use textnlp_orchestrator::apply::{ApplyError, Outcome};
use textnlp_orchestrator::environment::names;
use textnlp_orchestrator::plan::{Cost, DeleteData, Plan, PlanRefusal, Purpose};
use textnlp_orchestrator::run::{RunError, RunOutcome};
use textnlp_orchestrator::state::{Hold, State, StateError, Store, held_in};
use textnlp_provider::{EnvironmentName, Problems, SiteName};

use crate::failure::{preflight_failure, state_failed};
use crate::{ChosenEnvironment, Deployment, Exit, Failure, Scope, backup, gate, release};

/// Timeout for the freeze in a store that may be lost with a site.
const HOLD_TIMEOUT: Duration = Duration::from_secs(5);

/// Refuses an `up` whose gate cannot be measured or that costs more than the budget, before anything is created. Keeps
/// the replaced server program. Returns warnings. `gated`: there is a gate within the run.
pub async fn prepare(deployment: &Deployment, no_gate: bool, gated: bool) -> Result<Vec<String>, Failure> {
    let Deployment { chosen, sites, release, .. } = deployment;
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    gate::is_measured(scope, environment, no_gate, gated)?;
    let budget = &environment.budget;
    let cost = Cost::wanted(sites.values(), budget);
    let over = cost.against(budget);
    if let Some(problem) = over.clone().filter(|problem| !problem.warning) {
        return Err(preflight_failure("up", "over_budget", Exit::Refused, &[problem]));
    }
    let warnings = over.into_iter().chain(cost.outdated(Timestamp::now())).map(|problem| problem.to_string());
    let kept = release::keep_replaced(scope, release.as_ref()).await?;
    Ok(warnings.chain(kept).collect())
}

/// Whether the environment's name was typed to confirm a deletion or loss of data by a flag.
pub fn confirmed(flag: &str, typed: Option<&str>, name: &EnvironmentName) -> Result<bool, Failure> {
    match typed {
        None => Ok(false),
        Some(typed) if typed == name.as_str() => Ok(true),
        Some(typed) => {
            let error = anyhow::anyhow!("{flag} names `{typed}`, the environment is `{name}`");
            Err(Failure::refused("wrong_name", error).hint(format!("type its name: {flag} {name}")))
        }
    }
}

/// Which protected data may be deleted, by the flags that name the environment.
pub fn data_to_delete(
    delete_data: Option<&str>,
    delete_dumps: Option<&str>,
    name: &EnvironmentName,
) -> Result<DeleteData, Failure> {
    let (all, dumps) =
        (confirmed("--delete-data", delete_data, name)?, confirmed("--delete-dumps", delete_dumps, name)?);
    Ok(match (all, dumps) {
        (true, _) => DeleteData::All,
        (false, true) => DeleteData::Dumps,
        (false, false) => DeleteData::Nothing,
    })
}

/// Whether the loss of a database that is gone was accepted, by the flag that names the environment.
pub fn accepted_loss(accept_data_loss: Option<&str>, name: &EnvironmentName) -> Result<DeleteData, Failure> {
    let is_accepted = confirmed("--accept-data-loss", accept_data_loss, name)?;
    Ok(if is_accepted { DeleteData::Lost } else { DeleteData::Nothing })
}

/// Records a completed `up`: what was applied, and the environment for later commands.
pub async fn record(deployment: &Deployment, ended: &RunOutcome) -> Result<(), Failure> {
    keep_release(deployment, ended).await?;
    let ChosenEnvironment { scope, loaded, lock_path } = &deployment.chosen;
    backup::settings::remember(&scope.folder, loaded, lock_path)
}

/// Records the applied release, and writes the release lock after the first `up`. Later runs use the lock. It has the
/// digests of the delivered models while their sources stay the same.
async fn keep_release(deployment: &Deployment, ended: &RunOutcome) -> Result<(), Failure> {
    let (Some(release), Some(_)) = (&deployment.release, &ended.plan) else { return Ok(()) };
    let there = deployment.chosen.lock()?;
    let mut lock = there.clone().unwrap_or_else(|| release.lock.clone());
    let models = &deployment.chosen.loaded.environment.models;
    let fresh: Vec<_> =
        models.iter().filter(|m| !lock.models.contains_key(&m.id()) || !lock.holds(&m.id(), m.source())).collect();
    let said = release.lock.image_sources.iter();
    let said = said.filter(|(site, _)| deployment.sites.keys().any(|applied| applied.as_str() == site.as_str()));
    let other: Vec<_> = said.filter(|(site, said)| lock.image(site, Some(said)).is_none()).collect();
    let is_new = there.is_none() || !fresh.is_empty() || !other.is_empty();
    for (site, said) in other {
        lock.images.extend(release.lock.images.get_key_value(site).map(|(site, image)| (site.clone(), image.clone())));
        lock.image_sources.insert(site.clone(), said.clone());
    }
    if is_new {
        let state = deployment.state().await?;
        for site in deployment.sites.keys() {
            for (id, holding) in state.holdings(site)? {
                let current = holding.current.as_ref();
                let digest = current.and_then(|r| r.outputs.get("digest")?.as_str().map(str::to_owned));
                // The id of a resource has a label where the name of its model is none.
                let name = current.and_then(|r| r.spec.get("name")?.as_str());
                let name = name.or_else(|| id.as_str().rsplit('/').next());
                let model = name.and_then(|name| fresh.iter().find(|m| m.id() == name));
                if let (names::MODELS, Some(digest), Some(model)) = (id.component(), digest, model) {
                    lock.models.insert(model.id(), digest);
                    lock.sources.insert(model.id(), model.source().to_owned());
                }
            }
        }
    }
    // Recorded first, so that the history contains every applied lock.
    let sites: Vec<&str> = deployment.sites.keys().map(SiteName::as_str).collect();
    release::keep_applied(&deployment.chosen, release, &lock, &sites, deployment.operator.clone()).await?;
    if is_new {
        lock.write(&deployment.chosen.lock_path)?;
    }
    Ok(())
}

/// The failure of a shut gate within a run: what remains, and how to continue.
pub fn shut(outcome: &Outcome, scope: &Scope) -> Failure {
    let name = &scope.name;
    let stays: Vec<_> = outcome.skipped.iter().map(|skipped| skipped.resource.to_string()).collect();
    let reasons =
        outcome.shut.iter().flat_map(|shut| shut.because.iter().map(move |why| format!("{}: {why}", shut.site)));
    let reasons: Vec<_> = reasons.collect();
    let error = anyhow::anyhow!("{}", reasons.join("\n")).context(format!(
        "up {name}: the gate is not open, so the previous version was not removed: {}",
        stays.join(", ")
    ));
    let (again, back) = (scope.last_up(), scope.command("rollback"));
    Failure::new(Exit::GateShut, "gate_not_open", error).hint(format!(
        "measure again, and continue if it passes: {again} --gated\nroll back to the previous release: {back}\nremove the previous version without the gate: {again}"
    ))
}

/// The failure of an incomplete run, and how to continue.
pub fn incomplete(ended: &RunOutcome, verb: &str, scope: &Scope) -> Failure {
    let Outcome { failed, open, stopped, .. } = &ended.outcome;
    let (name, again) = (&scope.name, scope.same(verb));
    if *stopped && failed.is_empty() {
        let error = anyhow::anyhow!("stopped; the next run resumes where this one stopped");
        return Failure::new(Exit::Stopped, "stopped", error).hint(again);
    }
    let Some(first) = failed.first() else {
        let waiting: Vec<_> = open.iter().map(|o| format!("{}: {}", o.resource, o.because)).collect();
        let blocked = ended.plan.iter().flat_map(|plan| blocked(plan, scope));
        let blocked = blocked.map(|(names, because)| format!("{names}: {because}"));
        let lines: Vec<_> = waiting.into_iter().chain(blocked).collect();
        let error =
            anyhow::anyhow!("{}", lines.join("\n")).context(format!("{verb} {name}: some changes could not be made"));
        let (away, works) = ended.plan.as_ref().map(away).unwrap_or_default();
        let hint = match works.first() {
            Some(site) if !away.is_empty() => {
                let away = away.into_iter().collect::<Vec<_>>().join(", ");
                format!("once {away} can be reached: {again}\nuntil then, one site at a time: {again} --site {site}")
            }
            _ => again,
        };
        return Failure::new(Exit::Failed, "incomplete", error).hint(hint);
    };
    let lines: Vec<_> = failed.iter().map(textnlp_orchestrator::apply::StepFailure::line).collect();
    let many = if failed.len() == 1 { "a step".to_owned() } else { format!("{} steps", failed.len()) };
    let error = anyhow::anyhow!("{}", lines.join("\n")).context(format!("{verb} {name}: {many} failed"));
    let hint = first.hint.as_deref().map(|hint| scope.complete(hint)).map_or_else(
        || format!("fix the cause and run again: {again}"),
        |hint| format!("{hint}\nthen run again: {again}"),
    );
    Failure::new(Exit::Failed, "apply_failed", error).hint(hint).resource(first.resource.to_string())
}

/// The blocked resources and the reasons. Many resources of one site with the same reason, such as an unreachable site,
/// are listed together. A reason may have a provider's hint.
pub fn blocked(plan: &Plan, scope: &Scope) -> Vec<(String, String)> {
    const TOGETHER: usize = 4;
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for blocked in &plan.blocked {
        let names = reasons.entry((blocked.resource.site(), blocked.because.as_str())).or_default();
        names.push(blocked.resource.as_str());
    }
    let mut lines = Vec::new();
    for ((site, because), names) in reasons {
        let because = scope.complete(because);
        match names.len() {
            count if count >= TOGETHER => lines.push((format!("{count} resources of site {site}"), because)),
            _ => lines.extend(names.into_iter().map(|name| (name.to_owned(), because.clone()))),
        }
    }
    lines
}

/// The sites that cannot be planned, and those that can.
fn away(plan: &Plan) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let steps = plan.steps.iter().map(|step| &step.resource);
    let works: BTreeSet<&str> = plan.unchanged.iter().chain(steps).map(|id| id.site()).collect();
    let away = plan.blocked.iter().map(|blocked| blocked.resource.site()).filter(|site| !works.contains(site));
    (away.collect(), works)
}

/// The refusal of a change to a frozen environment. `release`: the command that ends the freeze.
fn frozen(hold: Box<Hold>, release: &str) -> Failure {
    let document = json!({ "hold": hold });
    Failure::refused("frozen", RunError::Frozen(hold))
        .hint(format!("contact that operator; to allow changes again: {release}"))
        .document(document)
}

/// Refuses a change to a frozen environment before anything else.
pub async fn is_not_frozen(scope: &Scope, state: &State) -> Result<(), Failure> {
    let hold = state.held().await.map_err(|error| state_failed(error, &scope.again, &scope.name))?;
    hold.map_or(Ok(()), |hold| Err(frozen(Box::new(hold), &scope.command("hold --release"))))
}

/// The same for a change that reads nothing else of the state. One that cannot be reached does not prevent it: a failover
/// does not wait for the bucket of its state.
pub async fn is_store_not_frozen(store: Result<Arc<dyn Store>, Failure>, release: &str) -> Result<(), Failure> {
    let Ok(store) = store else { return Ok(()) };
    let Ok(held) = tokio::time::timeout(HOLD_TIMEOUT, held_in(&*store)).await else { return Ok(()) };
    match held {
        Ok(Some(hold)) => Err(frozen(Box::new(hold), release)),
        Err(error @ (StateError::Unreadable { .. } | StateError::Future { .. })) => {
            let hint = format!("it may be frozen: repair the state with `state repair`; to allow changes: {release}");
            Err(Failure::refused("frozen", error).hint(hint))
        }
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Converts an error of a run.
pub fn run_failed(error: RunError, purpose: Purpose, scope: &Scope) -> Failure {
    let plan = || scope.same(if purpose == Purpose::Down { "plan --down" } else { "plan" });
    match error {
        RunError::Preflight(Problems(mut problems)) => {
            problems.iter_mut().for_each(|problem| problem.fix = scope.complete(&problem.fix));
            preflight_failure("preflight", "preflight", Exit::Failed, &problems)
        }
        RunError::Wanted(Problems(problems)) => preflight_failure("plan", "plan", Exit::Failed, &problems),
        RunError::Refused(refused) => match refused {
            PlanRefusal::Undecided(Problems(problems)) => {
                preflight_failure("approval", "refused", Exit::Refused, &problems)
            }
            no @ PlanRefusal::NoConsent => {
                Failure::refused("not_approved", no).hint(format!("review it with `{}`, approve it with --yes", plan()))
            }
        },
        RunError::Frozen(hold) => frozen(hold, &scope.command("hold --release")),
        RunError::State(error) | RunError::Apply(ApplyError::State(error)) => {
            state_failed(error, &scope.again, &scope.name)
        }
        RunError::Apply(ApplyError::Journal { site, source }) => {
            let failure = state_failed(source, &scope.again, &scope.name);
            Failure { error: failure.error.context(format!("write the journal of `{site}`")), ..failure }
        }
        stale @ (RunError::Stale { .. } | RunError::OtherPlanner) => Failure::refused("stale_plan", stale)
            .hint(format!("nothing was changed; plan again: {} --out FILE", plan())),
        RunError::LostSite { site, place } => {
            let hint = format!(
                "write the site `{site}` into `sites` again, remove what it has with `{}`, and rename or remove it then",
                scope.same("down")
            );
            Failure::new(Exit::Failed, "lost_site", RunError::LostSite { site, place }).hint(hint)
        }
        other => Failure::new(Exit::Failed, "road", other),
    }
}
