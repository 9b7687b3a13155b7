//! `down`: deletes everything without data, and lists what is retained.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Context as _;
use textnlp_orchestrator::plan::{DeleteData, Plan, Purpose};
use textnlp_orchestrator::release::History;
use textnlp_orchestrator::run::RunOptions;
use textnlp_orchestrator::state::{Folder, State, StateError};
use textnlp_provider::{Error, Leftovers, Recorded, Sweep, error_chain};
use textnlp_service::running::lost_state;
use textnlp_service::up::{data_to_delete, incomplete};

use super::prelude::*;
use super::up::{document, go};
use crate::args::Down;
use crate::deployment::Deployment;
use crate::{clouds, deployment};

/// `down [--delete-data ENV | --delete-dumps ENV]`.
pub async fn down(session: &Session, args: &Down, console: Console) -> Result<Success, Failure> {
    let global = &session.global;
    if global.yes && global.env.is_none() && global.file.is_none() {
        let error = anyhow::anyhow!("`down --yes` removes without asking, so it needs the name of the environment");
        return Err(Failure::usage("no_environment", error).hint("textnlp-deploy down --yes --env NAME"));
    }
    run(session, args, None, console).await
}

/// `down`, with a saved plan that was approved, if there is one.
pub async fn run(session: &Session, args: &Down, saved: Option<&Plan>, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load_to_remove(console)?;
    let name = chosen.scope.name.clone();
    let delete_data = data_to_delete(args.delete_data.as_deref(), args.delete_dumps.as_deref(), &name)?;
    let lost = clouds::open_outages(&chosen.scope.folder).context("look for leftovers of drills")?;
    if !lost.is_empty() {
        let error =
            anyhow::anyhow!("{}: it still needs the witness, which `down` removes, to be reverted", lost.join("; "));
        let hint = "wait until it expires, or run `dr drill --finish`, which reverts it; if its cluster no longer exists, remove its file in `sites/witness/faults` of the state folder";
        return Err(Failure::refused("fault_open", error).hint(hint));
    }
    let deployment = deployment::recorded(session, chosen).await?;
    let scope = &deployment.chosen.scope;
    let state = deployment.state().await?;
    if let Some(lost) = lost_state(&state, scope) {
        return Err(lost);
    }
    if let Some(elsewhere) = deployment::recorded_elsewhere(session, &deployment.chosen, &state, console).await {
        return Err(elsewhere);
    }
    let local = Folder::at(scope.folder.clone());
    local.free_reserve();
    let ask = RunOptions { purpose: Purpose::Down, delete_data, ..RunOptions::UP };
    let before = recorded(&state).map_err(|error| deployment.failed(error))?;
    let outcome = go(session, &deployment, ask, None, saved, console).await?;
    let mut document = document(&deployment, &outcome);
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    if !outcome.is_complete() {
        return Err(incomplete(&outcome, "down", scope).document(document));
    }
    // A rollback would need the deleted data. With `--site`, the other sites keep theirs.
    if delete_data == DeleteData::All && session.global.site.is_none() {
        History::at(&scope.folder).remove().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    }
    if session.global.site.is_none() {
        local.remove_reserve();
    }
    let plan = outcome.plan.as_ref();
    let removed = plan.map_or(0, |p| p.summary.delete);
    let mut text = format!("{name} is down: {removed} resources removed");
    // The plan has the reason of each.
    if let Some(plan) = plan.filter(|plan| !plan.retained.is_empty()) {
        const NAMED: usize = 5;
        let names: Vec<&str> = plan.retained.iter().take(NAMED).map(|kept| kept.resource.as_str()).collect();
        let _ = write!(text, ", {} kept: {}", plan.retained.len(), names.join(", "));
        if plan.retained.len() > NAMED {
            text.push_str(", …");
        }
        let _ = write!(text, "\nTo remove the data too: {} --delete-data {name}", scope.command("down"));
    }
    let kept = recorded(&deployment.state().await?).map_err(|error| deployment.failed(error))?;
    if before.is_empty() && removed == 0 {
        let store = deployment.chosen.loaded.environment.state.store.as_str();
        let place = if store == "local" { scope.folder.as_str() } else { store };
        text = format!("nothing of {name} is deployed here (state: {place})");
    }
    let sweep = Sweep { lineage: state.lineage(), before: &before, kept: &kept };
    match leftovers(&deployment, &sweep).await {
        Ok(None) => {}
        Ok(Some(found)) => {
            text.push_str(&shown(&found));
            document["leftovers"] = json!(found);
        }
        // What was asked for is done; only the proof is missing.
        Err(error) => {
            console.warn(format!("whether anything is left could not be searched: {}", error_chain(&error)));
            document["leftovers"] = json!({ "error": error_chain(&error) });
        }
    }
    Ok(Success::new(text, document))
}

/// Everything that is recorded, at every site.
fn recorded(state: &State) -> Result<Vec<Recorded>, StateError> {
    let mut all = Vec::new();
    for site in state.sites() {
        all.extend(
            state.holdings(site)?.into_values().flat_map(|objects| objects.objects().cloned().collect::<Vec<_>>()),
        );
    }
    Ok(all)
}

/// What the providers of all sites find.
async fn leftovers(deployment: &Deployment, sweep: &Sweep<'_>) -> Result<Option<Leftovers>, Error> {
    let mut all: Option<Leftovers> = None;
    for site in deployment.sites.values() {
        if let Some(found) = site.provider.leftovers(sweep).await? {
            all.get_or_insert_default().join(found);
        }
    }
    Ok(all)
}

/// One line, and one for each place that was not searched and each object that is left or that the cloud removes later.
fn shown(found: &Leftovers) -> String {
    let places = found.searched.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut text = match found.left.len() {
        0 => format!("\nnothing else of it is left in {places}"),
        1 => format!("\n1 object of it is left in {places}; it is not removed"),
        count => format!("\n{count} objects of it are left in {places}; they are not removed"),
    };
    for (word, objects) in [("not searched", &found.unsearched), ("left", &found.left), ("expected", &found.expected)] {
        for one in objects {
            let _ = write!(text, "\n  {word} {}: {}", one.id, one.what);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use textnlp_provider::Leftover;

    use super::*;

    #[test]
    fn leftovers_are_listed_with_their_names() {
        let object = |id: &str, what: &str| Leftover { id: id.to_owned(), what: what.to_owned() };
        let mut found = Leftovers { searched: ["aws eu-west-1".to_owned()].into(), ..Leftovers::default() };
        assert_eq!(shown(&found), "\nnothing else of it is left in aws eu-west-1");
        found.expected.insert(object("arn:key", "KMS deletes it"));
        found.unsearched.insert(object("aws us-east-1", "denied"));
        found.left.insert(object("arn:vpc", "a virtual network"));
        assert_eq!(
            shown(&found),
            "\n1 object of it is left in aws eu-west-1; it is not removed\n  not searched aws us-east-1: denied\n  left arn:vpc: a virtual network\n  expected arn:key: KMS deletes it"
        );
    }
}
