//! `state import`: objects of this deployment that no record mentions.

use std::fmt::Write as _;
use std::io::Read as _;

use camino::Utf8Path;
use serde_json::json;
use textnlp_orchestrator::event::Quiet;
use textnlp_orchestrator::import::{
    LONGEST, Left, Matched, Proposal, TerraformState, lineage_of, matched, named, propose, read_terraform, take,
};
use textnlp_orchestrator::plan::Facts;
use textnlp_orchestrator::road::{self, Ask};
use textnlp_provider::{CloudId, Lineage, Problems};

use super::{agreed, resource_id};
use crate::again::quoted;
use crate::deployment::{Deployment, road_failed, stands_in_the_way, state_failed};
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::state_args::Import;

/// `state import [RESOURCE=ID]… [--lineage UUID] [--from-tfstate FILE]`.
pub async fn import(session: &Session, args: &Import, console: Console) -> Result<Success, Failure> {
    // Before anything is asked of anybody.
    let file = args.from_tfstate.as_deref().map(terraform_state).transpose()?;
    let chosen = session.load_to_run(console)?;
    let name = chosen.name.clone();
    let deployment = Deployment::wanted(session, chosen, console).await?;
    let failed = |error| state_failed(error, &session.again(), &name);
    let mut road = deployment.road(&Quiet);
    if let Some(lineage) = args.lineage {
        road.fresh = Lineage(lineage);
    }
    let load = || textnlp_orchestrator::state::State::load(road.store.clone(), &name, road.fresh);
    let state = load().await.map_err(failed)?;
    match args.lineage {
        Some(lineage) if !state.is_new() && state.lineage() != Lineage(lineage) => {
            let error =
                anyhow::anyhow!("{} holds the state of deployment {}, not {lineage}", state.place(), state.lineage());
            return Err(Failure::refused("other_deployment", error)
                .hint("a lost state is made again in an empty place: --state-dir DIR"));
        }
        None if state.is_new() => {
            let error = anyhow::anyhow!("nothing was ever written down of environment {name} here");
            let again = session.again().command("state import", &name);
            let lineage = file.as_ref().and_then(lineage_of);
            return Err(Failure::usage("not_up", error).hint(match lineage.zip(args.from_tfstate.as_ref()) {
                Some((lineage, file)) => {
                    format!("the file tells of deployment {lineage}: {again} --from-tfstate {file} --lineage {lineage}")
                }
                None => format!(
                    "where a state was lost, say whose objects are meant: {again} --lineage UUID (a refused `up` names it)"
                ),
            }));
        }
        _ => {}
    }
    let ask = Ask::UP;
    let facts = road::read(&road, &state, ask).await.map_err(|e| road_failed(e, session, &name))?;
    let Matched { proposals, left } = match &file {
        Some(file) => matched(&facts, file).await,
        None if args.objects.is_empty() => Matched { proposals: propose(&facts), left: Vec::new() },
        None => Matched { proposals: by_name(session, &facts, &args.objects).await?, left: Vec::new() },
    };
    let mut document = json!({ "environment": name, "lineage": facts.lineage, "proposals": proposals, "imported": 0 });
    if let Some(file) = &file {
        let objects = file.objects.len();
        document["tfstate"] =
            json!({ "tool": file.tool, "lineage": file.lineage, "serial": file.serial, "objects": objects });
        document["left"] = json!(left);
    }
    let told = told_left(&left);
    if proposals.is_empty() {
        let text = match &file {
            Some(file) => {
                format!("{name}: of {} objects in the file, none is to be recorded{told}", file.objects.len())
            }
            None => format!("{name}: every object that the providers show is recorded"),
        };
        return Ok(Success::new(text, document));
    }
    let again = session.again().same(&verb(args), &name);
    let mut text = format!("Of deployment {}, these are there and not recorded:\n", facts.lineage);
    for Proposal { resource, recorded, wanted, .. } in &proposals {
        let mark =
            if *wanted { "" } else { "  (the environment does not want it: it is kept until its data may be deleted)" };
        let _ = writeln!(text, "  + {:<36} {} `{}`{mark}", resource.as_str(), recorded.kind, recorded.cloud_id);
    }
    console.say(format!("{}{told}", text.trim_end()));
    agreed(session, console, &again).map_err(|failure| failure.document(document.clone()))?;
    let places = deployment.places();
    let locked = load().await.map_err(failed)?;
    let clock = std::sync::Arc::new(textnlp_orchestrator::clock::SystemClock);
    let mut locked = locked.lock(&road.operator, &places, clock).await.map_err(failed)?;
    // Somebody may have written since the look; then the look is over.
    if locked.heads() != state.heads() {
        locked.close().await.map_err(failed)?;
        let error = anyhow::anyhow!("another run wrote into the state meanwhile");
        return Err(Failure::refused("stale", error).hint(again));
    }
    take(&mut locked, &proposals).await.map_err(failed)?;
    locked.close().await.map_err(failed)?;
    document["imported"] = json!(proposals.len());
    let text = format!(
        "{} recorded. What differs from what is wanted: {}",
        proposals.len(),
        session.again().command("plan", &name)
    );
    Ok(Success::new(text, document))
}

/// The same import again.
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

/// Objects that a person named.
async fn by_name(session: &Session, facts: &Facts, objects: &[String]) -> Result<Vec<Proposal>, Failure> {
    let mut proposals = Vec::new();
    for object in objects {
        let Some((resource, cloud_id)) = object.split_once('=') else {
            let error = anyhow::anyhow!("`{object}` does not name a resource and an id");
            return Err(Failure::usage("invalid_name", error).hint("write RESOURCE=ID, with the provider's own id"));
        };
        let resource = resource_id(session, resource)?;
        let cloud_id = CloudId::new(cloud_id).map_err(|error| Failure::usage("invalid_name", error))?;
        let proposal = named(facts, &resource, &cloud_id, &proposals).await.map_err(|error| {
            Failure::refused("not_importable", error)
                .hint("an object of somebody else is named as `existing: ID` in the environment: read and checked, never changed")
                .resource(resource.to_string())
        })?;
        proposals.push(proposal);
    }
    Ok(proposals)
}

/// A state file of Terraform, or one report of all that is wrong with it.
fn terraform_state(path: &Utf8Path) -> Result<TerraformState, Failure> {
    let unread = |error: std::io::Error| {
        let error = anyhow::Error::new(error).context(format!("read {path}"));
        Failure::usage("no_such_file", error).hint("make it: terraform state pull > state.json")
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)).map_err(unread)?;
    if bytes.len() as u64 > LONGEST {
        let error = anyhow::anyhow!("{path} is longer than {LONGEST} bytes: no state of Terraform's is");
        return Err(Failure::usage("invalid_tfstate", error));
    }
    read_terraform(&bytes).map_err(|Problems(found)| {
        stands_in_the_way(&format!("read {path} as a state of Terraform"), "invalid_tfstate", Exit::Usage, &found)
    })
}

/// What is left where it is, and why, for people.
fn told_left(left: &[Left]) -> String {
    let mut text = String::new();
    if !left.is_empty() {
        text.push_str("\nLeft where it is:");
    }
    for Left { address, because, hint } in left {
        let hint = hint.as_deref().map(|hint| format!("\n      → {hint}")).unwrap_or_default();
        let _ = write!(text, "\n  · {address}: {because}{hint}");
    }
    text
}
