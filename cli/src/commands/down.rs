//! `down`: removes everything that holds no data, and says what it kept.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;
use textnlp_orchestrator::plan::{Plan, Purpose};
use textnlp_orchestrator::release::History;
use textnlp_orchestrator::road::Ask;
use textnlp_provider::EnvironmentName;

use super::up::{document, go, incomplete};
use crate::args::Down;
use crate::deployment::Deployment;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// `down [--delete-data ENV]`.
pub async fn down(session: &Session, args: &Down, console: Console) -> Result<Success, Failure> {
    whole(session, args.delete_data.as_deref(), None, console).await
}

/// `down`, by a plan that somebody agreed to before, if there is one.
pub async fn whole(
    session: &Session,
    typed: Option<&str>,
    saved: Option<&Plan>,
    console: Console,
) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load_to_remove(console)?;
    let name = chosen.name.clone();
    let delete_data = delete_data(typed, &name)?;
    let lost = crate::clouds::lost_clusters(&chosen.folder).context("look for what drills left")?;
    if !lost.is_empty() {
        let error = anyhow::anyhow!("{}: whoever takes that back would go with the witness", lost.join("; "));
        let hint = "wait until then, or let `dr drill` finish it; where its cluster is gone for good, remove its file in `sites/witness/faults` of the state folder";
        return Err(Failure::refused("fault_open", error).hint(hint));
    }
    let deployment = Deployment::recorded(session, chosen)?;
    let arrival = go(&deployment, Ask { purpose: Purpose::Down, delete_data, ..Ask::UP }, None, saved, console).await?;
    let mut document = document(&deployment, &arrival);
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    if !arrival.is_complete() {
        return Err(incomplete(&arrival, "down", session, &name).document(document));
    }
    // The way back leads to data that is gone, and a part of the sites is not the whole.
    if delete_data && session.global.site.is_none() {
        History::at(&deployment.chosen.folder)
            .remove()
            .map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    }
    let plan = arrival.plan.as_ref();
    let removed = plan.map_or(0, |p| p.summary.delete);
    let mut text = format!("{name} is down: {removed} resources removed");
    for kept in plan.iter().flat_map(|p| &p.retained) {
        let _ = write!(text, "\n  kept {}: {}", kept.resource, kept.because);
    }
    if plan.is_some_and(|p| !p.retained.is_empty()) {
        let _ =
            write!(text, "\nTo remove the data too: {} --delete-data {name}", session.again().command("down", &name));
    }
    Ok(Success::new(text, document))
}

/// Whether the environment's name was typed to agree that its data goes.
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
