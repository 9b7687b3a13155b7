//! `state import`: imports objects of this deployment that are not in the state.

use std::fmt::Write as _;
use std::io::Read as _;

use camino::Utf8Path;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::import::{
    MAX_FILE_BYTES, Matched, Proposal, SkippedObject, TerraformState, lineage_of, matched, named, propose,
    read_terraform, take,
};
use textnlp_orchestrator::plan::{Facts, Purpose};
use textnlp_orchestrator::run::{self, RunOptions};
use textnlp_orchestrator::state::State;
use textnlp_provider::{CloudId, Lineage, Problems};

use super::{agreed, resource_id};
use crate::commands::prelude::*;
use crate::deployment::{self, preflight_failure, run_failed};
use crate::rerun_flags::quoted;
use crate::state_args::Import;

/// `state import [RESOURCE=ID]… [--lineage UUID] [--from-tfstate FILE]`.
pub async fn import(session: &Session, args: &Import, console: Console) -> Result<Success, Failure> {
    // Checked before any request to a provider.
    let file = args.from_tfstate.as_deref().map(terraform_state).transpose()?;
    let chosen = session.load_to_run(console)?;
    let name = chosen.scope.name.clone();
    let deployment = deployment::wanted(session, chosen, console).await?;
    let failed = |error| deployment.failed(error);
    let mut road = deployment.run(&DiscardEvents);
    if let Some(lineage) = args.lineage {
        road.fresh = Lineage(lineage);
    }
    // A refused `up` of an earlier version left a lineage without records.
    let load =
        async || State::load(road.store.clone(), &name, road.fresh).await.map(|state| state.with_lineage(road.fresh));
    let state = load().await.map_err(failed)?;
    match args.lineage {
        Some(lineage) if state.lineage() != Lineage(lineage) => {
            let error =
                anyhow::anyhow!("{} holds the state of deployment {}, not {lineage}", state.place(), state.lineage());
            return Err(Failure::refused("other_deployment", error)
                .hint("rebuild a lost state in an empty folder: --state-dir DIR"));
        }
        None if !state.has_records() => {
            let error = anyhow::anyhow!("environment {name} has no state here");
            let again = deployment.chosen.scope.command("state import");
            let lineage = file.as_ref().and_then(lineage_of);
            return Err(Failure::usage("not_up", error).hint(match lineage.zip(args.from_tfstate.as_ref()) {
                Some((lineage, file)) => {
                    format!("the file is of deployment {lineage}: {again} --from-tfstate {file} --lineage {lineage}")
                }
                None => format!(
                    "to rebuild a lost state, give the lineage of its objects: {again} --lineage UUID (a refused `up` shows it)"
                ),
            }));
        }
        _ => {}
    }
    let options = RunOptions::UP;
    let facts =
        run::read(&road, &state, options).await.map_err(|e| run_failed(e, Purpose::Up, &deployment.chosen.scope))?;
    let Matched { proposals, left } = match &file {
        Some(file) => matched(&facts, file).await,
        None if args.objects.is_empty() => propose(&facts),
        None => Matched { proposals: by_name(session, &facts, &args.objects).await?, left: Vec::new() },
    };
    let mut document = json!({ "environment": name, "lineage": facts.lineage, "proposals": proposals, "imported": 0 });
    if let Some(file) = &file {
        let objects = file.objects.len();
        document["tfstate"] =
            json!({ "tool": file.tool, "lineage": file.lineage, "serial": file.serial, "objects": objects });
    }
    if file.is_some() || !left.is_empty() {
        document["left"] = json!(left);
    }
    let left_text = told_left(&left);
    // An unknown lineage would otherwise read as one whose objects are all recorded.
    if proposals.is_empty() && left.is_empty() && !state.has_records() {
        let places: Vec<String> = deployment.places().values().map(ToString::to_string).collect();
        let error = anyhow::anyhow!("no object of deployment {} was found at {}", facts.lineage, places.join("; "));
        let hint =
            format!("{} names the deployment of the objects that exist", deployment.chosen.scope.command("status"));
        return Err(Failure::refused("nothing_to_import", error).hint(hint).document(document));
    }
    if proposals.is_empty() {
        let text = match &file {
            Some(file) => {
                format!(
                    "{name}: none of {} in the file can be imported{left_text}",
                    counted(file.objects.len(), "object")
                )
            }
            None if left.is_empty() => format!("{name}: all objects at the providers are already recorded"),
            None => format!("{name}: nothing can be imported without being named{left_text}"),
        };
        return Ok(Success::new(text, document));
    }
    let again = deployment.chosen.scope.same(&verb(args));
    let mut text = format!("These objects of deployment {} exist and are not recorded:\n", facts.lineage);
    for Proposal { resource, recorded, wanted, .. } in &proposals {
        let mark =
            if *wanted { "" } else { "  (not in the environment: it is retained until `down` may delete its data)" };
        let _ = writeln!(text, "  + {:<36} {} `{}`{mark}", resource.as_str(), recorded.kind, recorded.cloud_id);
    }
    console.say(format!("{}{left_text}", text.trim_end()));
    agreed(session, console, &again).map_err(|failure| failure.document(document.clone()))?;
    let places = deployment.places();
    let locked = load().await.map_err(failed)?;
    let clock = std::sync::Arc::new(textnlp_orchestrator::clock::SystemClock);
    let mut locked = locked.lock(&road.operator, &places, clock).await.map_err(failed)?;
    // The plan is stale if another process has written to the state since it was made.
    if locked.heads() != state.heads() {
        locked.close().await.map_err(failed)?;
        let error = anyhow::anyhow!("another run wrote to the state at the same time");
        return Err(Failure::refused("stale", error).hint(again));
    }
    take(&mut locked, &proposals).await.map_err(failed)?;
    locked.close().await.map_err(failed)?;
    document["imported"] = json!(proposals.len());
    let text = format!(
        "{} recorded. To show differences from the environment: {}",
        proposals.len(),
        deployment.chosen.scope.last("plan")
    );
    Ok(Success::new(text, document))
}

/// The command for the same import.
fn verb(args: &Import) -> String {
    let mut verb = "state import".to_owned();
    for object in &args.objects {
        let _ = write!(verb, " {}", quoted(object));
    }
    if let Some(lineage) = args.lineage {
        let _ = write!(verb, " --lineage {lineage}");
    }
    if let Some(file) = &args.from_tfstate {
        let _ = write!(verb, " --from-tfstate {}", quoted(file.as_str()));
    }
    verb
}

/// Objects that were named on the command line.
async fn by_name(session: &Session, facts: &Facts, objects: &[String]) -> Result<Vec<Proposal>, Failure> {
    let mut proposals = Vec::new();
    for object in objects {
        let Some((resource, cloud_id)) = object.split_once('=') else {
            let error = anyhow::anyhow!("`{object}` is not of the form RESOURCE=ID");
            return Err(Failure::usage("invalid_name", error).hint("write RESOURCE=ID, with the provider's own id"));
        };
        let resource = resource_id(session, resource)?;
        let cloud_id = CloudId::new(cloud_id).map_err(|error| Failure::usage("invalid_name", error))?;
        let proposal = named(facts, &resource, &cloud_id, &proposals).await.map_err(|error| {
            Failure::refused("not_importable", error)
                .hint("to reference an external object, write `existing: ID` in the environment: it is read and checked, never changed")
                .resource(resource.to_string())
        })?;
        proposals.push(proposal);
    }
    Ok(proposals)
}

/// Parses a Terraform state. Reports all of its problems at once.
fn terraform_state(path: &Utf8Path) -> Result<TerraformState, Failure> {
    let unread = |error: std::io::Error| {
        let error = anyhow::Error::new(error).context(format!("read {path}"));
        Failure::usage("no_such_file", error).hint("create it: terraform state pull > state.json")
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)).map_err(unread)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let error = anyhow::anyhow!("{path} is longer than {MAX_FILE_BYTES} bytes: too large for a Terraform state");
        return Err(Failure::usage("invalid_tfstate", error));
    }
    read_terraform(&bytes).map_err(|Problems(found)| {
        preflight_failure(&format!("import of {path}"), "invalid_tfstate", Exit::Usage, &found)
    })
}

/// The objects that are not imported, with reasons, as text.
fn told_left(left: &[SkippedObject]) -> String {
    let mut text = String::new();
    if !left.is_empty() {
        text.push_str("\nNot imported:");
    }
    for SkippedObject { address, because, hint } in left {
        let hint = hint.as_deref().map(|hint| format!("\n      → {hint}")).unwrap_or_default();
        let _ = write!(text, "\n  · {address}: {because}{hint}");
    }
    text
}
