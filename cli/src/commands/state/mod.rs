//! `state`: the recorded state of an environment.

mod change;
mod import;
mod show;

use textnlp_provider::ResourceId;

use crate::commands::prelude::*;
use crate::signals;
use crate::state_args::State;

pub use show::{declared, planned};

/// `state VERB`.
pub async fn state(session: &Session, command: &State, console: Console) -> Result<Success, Failure> {
    match command {
        State::List => show::list(session, console).await,
        State::Show { resource } => show::show(session, resource, console).await,
        State::History(args) => show::history(session, args, console).await,
        State::At { moment, resource } => show::at(session, moment, resource.as_deref(), console).await,
        State::Diff { from, to } => show::diff(session, from, to.as_deref(), console).await,
        State::Export { out } => show::export(session, out.as_deref(), console).await,
        State::Repair(args) => change::repair(session, args, console).await,
        State::Move(args) => change::move_state(session, args, console).await,
        State::Adopt => change::adopt(session, console).await,
        State::Remove { resources } => change::remove(session, resources, console).await,
        State::Import(args) => import::import(session, args, console).await,
    }
}

/// The whole state as a JSON document.
pub async fn exported(session: &Session, console: Console) -> Result<Success, Failure> {
    show::export(session, None, console).await
}

fn resource_id(session: &Session, text: &str) -> Result<ResourceId, Failure> {
    ResourceId::new(text).map_err(|error| {
        Failure::usage("invalid_name", error).hint(format!("to list the names: {}", session.again().bare("state list")))
    })
}

fn no_such(session: &Session, environment: &textnlp_provider::EnvironmentName, resource: &ResourceId) -> Failure {
    Failure::usage("no_such_resource", anyhow::anyhow!("no `{resource}` is recorded in {environment}"))
        .hint(session.again().command("state list", environment))
        .resource(resource.to_string())
}

/// Requires approval for the change that was just described: `--yes`, or a confirmation on the terminal.
fn agreed(session: &Session, console: Console, verb: &str) -> Result<(), Failure> {
    // The lock of the state is released in any case.
    signals::stop(console);
    if session.global.yes || console.confirm("Make this change?") {
        return Ok(());
    }
    if signals::is_stopped() {
        return Err(signals::stopped_at_question(verb.to_owned()));
    }
    Err(Failure::refused("not_approved", anyhow::anyhow!("not approved, so nothing was done"))
        .hint(format!("review the changes, then approve them with --yes: {verb} --yes")))
}
