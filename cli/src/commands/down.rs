//! `down`: deletes everything without data, and lists what is retained.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;
use textnlp_orchestrator::plan::{Plan, Purpose};
use textnlp_orchestrator::release::History;
use textnlp_orchestrator::run::RunOptions;
use textnlp_orchestrator::state::{Folder, State};
use textnlp_provider::EnvironmentName;
use textnlp_service::Scope;
use textnlp_service::up::incomplete;

use super::up::{document, go};
use crate::args::Down;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::{clouds, deployment};

/// `down [--delete-data ENV]`.
pub async fn down(session: &Session, args: &Down, console: Console) -> Result<Success, Failure> {
    let global = &session.global;
    if global.yes && global.env.is_none() && global.file.is_none() {
        let error = anyhow::anyhow!("`down --yes` removes without asking, so it needs the name of the environment");
        return Err(Failure::usage("no_environment", error).hint("textnlp-deploy down --yes --env NAME"));
    }
    run(session, args.delete_data.as_deref(), None, console).await
}

/// `down`, with a saved plan that was approved, if there is one.
pub async fn run(
    session: &Session,
    typed: Option<&str>,
    saved: Option<&Plan>,
    console: Console,
) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load_to_remove(console)?;
    let name = chosen.scope.name.clone();
    let delete_data = delete_data(typed, &name)?;
    let lost = clouds::open_outages(&chosen.scope.folder).context("look for leftovers of drills")?;
    if !lost.is_empty() {
        let error =
            anyhow::anyhow!("{}: it still needs the witness, which `down` removes, to be reverted", lost.join("; "));
        let hint = "wait until it expires, or run `dr drill`, which reverts it; if its cluster no longer exists, remove its file in `sites/witness/faults` of the state folder";
        return Err(Failure::refused("fault_open", error).hint(hint));
    }
    let deployment = deployment::recorded(session, chosen).await?;
    let scope = &deployment.chosen.scope;
    let state = deployment.state().await?;
    if let Some(lost) = lost_state(&state, scope) {
        return Err(lost);
    }
    let local = Folder::at(scope.folder.clone());
    local.free_reserve();
    let ask = RunOptions { purpose: Purpose::Down, delete_data, ..RunOptions::UP };
    let outcome = go(session, &deployment, ask, None, saved, console).await?;
    let mut document = document(&deployment, &outcome);
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    if !outcome.is_complete() {
        return Err(incomplete(&outcome, "down", scope).document(document));
    }
    // A rollback would need the deleted data. With `--site`, the other sites keep theirs.
    if delete_data && session.global.site.is_none() {
        History::at(&scope.folder).remove().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    }
    if session.global.site.is_none() {
        local.remove_reserve();
    }
    let plan = outcome.plan.as_ref();
    let removed = plan.map_or(0, |p| p.summary.delete);
    let mut text = format!("{name} is down: {removed} resources removed");
    for kept in plan.iter().flat_map(|p| &p.retained) {
        let _ = write!(text, "\n  kept {}: {}", kept.resource, kept.because);
    }
    if plan.is_some_and(|p| !p.retained.is_empty()) {
        let _ = write!(text, "\nTo remove the data too: {} --delete-data {name}", scope.command("down"));
    }
    Ok(Success::new(text, document))
}

/// The refusal if nothing is recorded and objects of another lineage exist here: they would be left as they are.
pub fn lost_state(state: &State, scope: &Scope) -> Option<Failure> {
    let other = (!state.has_records()).then(|| clouds::other_lineage(&scope.folder, state.lineage())).flatten()?;
    let error = anyhow::anyhow!(
        "objects of deployment {other} exist in {}, and the state does not record them: it was lost",
        scope.folder.join("sites")
    );
    let import = scope.same(&format!("state import --lineage {other}"));
    Some(Failure::refused("lost_state", error).hint(format!("record them again: {import}")))
}

/// Whether the environment's name was typed to confirm the deletion of its data.
pub fn delete_data(typed: Option<&str>, name: &EnvironmentName) -> Result<bool, Failure> {
    match typed {
        None => Ok(false),
        Some(typed) if typed == name.as_str() => Ok(true),
        Some(typed) => {
            let error = anyhow::anyhow!("--delete-data names `{typed}`, the environment is `{name}`");
            Err(Failure::refused("wrong_name", error).hint(format!("type its name: --delete-data {name}")))
        }
    }
}
