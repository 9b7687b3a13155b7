//! `state import`: objects of this deployment that no record mentions.

use std::fmt::Write as _;

use serde_json::json;
use textnlp_orchestrator::event::Quiet;
use textnlp_orchestrator::import::{Proposal, named, propose, take};
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::road::{self, Ask};
use textnlp_provider::{CloudId, Lineage};

use super::{agreed, resource_id};
use crate::deployment::{Deployment, road_failed, state_failed};
use crate::report::{Console, Failure, Success};
use crate::session::Session;
use crate::state_args::Import;

/// `state import [RESOURCE=ID]… [--lineage UUID]`.
pub async fn import(session: &Session, args: &Import, console: Console) -> Result<Success, Failure> {
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
            return Err(Failure::usage("not_up", error).hint(format!(
                "where a state was lost, say whose objects are meant: {} --lineage UUID (a refused `up` names it)",
                session.again().command("state import", &name)
            )));
        }
        _ => {}
    }
    let ask = Ask { purpose: Purpose::Up, delete_data: false };
    let facts = road::read(&road, &state, ask).await.map_err(|e| road_failed(e, session, &name))?;
    let mut proposals = Vec::new();
    for object in &args.objects {
        let Some((resource, cloud_id)) = object.split_once('=') else {
            let error = anyhow::anyhow!("`{object}` does not name a resource and an id");
            return Err(Failure::usage("invalid_name", error).hint("write RESOURCE=ID, with the provider's own id"));
        };
        let resource = resource_id(session, resource)?;
        let cloud_id = CloudId::new(cloud_id).map_err(|error| Failure::usage("invalid_name", error))?;
        let proposal = named(&facts, &resource, &cloud_id).await.map_err(|error| {
            Failure::refused("not_importable", error)
                .hint("an object of somebody else is named as `existing: ID` in the environment: read and checked, never changed")
                .resource(resource.to_string())
        })?;
        proposals.push(proposal);
    }
    if args.objects.is_empty() {
        proposals = propose(&facts);
    }
    let document = json!({ "environment": name, "lineage": facts.lineage, "proposals": proposals, "imported": 0 });
    if proposals.is_empty() {
        return Ok(Success::new(format!("{name}: every object that the providers show is recorded"), document));
    }
    let mut text = format!("Of deployment {}, these are there and not recorded:\n", facts.lineage);
    for Proposal { resource, recorded, wanted, .. } in &proposals {
        let mark =
            if *wanted { "" } else { "  (the environment does not want it: it is kept until its data may be deleted)" };
        let _ = writeln!(text, "  + {:<36} {} `{}`{mark}", resource.as_str(), recorded.kind, recorded.cloud_id);
    }
    console.say(text.trim_end());
    agreed(session, console, &session.again().same("state import", &name))
        .map_err(|failure| failure.document(document.clone()))?;
    let places = deployment.places();
    let locked = load().await.map_err(failed)?;
    let clock = std::sync::Arc::new(textnlp_orchestrator::clock::SystemClock);
    let mut locked = locked.lock(&road.operator, &places, clock).await.map_err(failed)?;
    // Somebody may have written since the look; then the look is over.
    if locked.heads() != state.heads() {
        locked.close().await.map_err(failed)?;
        let error = anyhow::anyhow!("another run wrote into the state meanwhile");
        return Err(Failure::refused("stale", error).hint(session.again().same("state import", &name)));
    }
    take(&mut locked, &proposals).await.map_err(failed)?;
    locked.close().await.map_err(failed)?;
    let mut document = document;
    document["imported"] = json!(proposals.len());
    let text = format!(
        "{} recorded. What differs from what is wanted: {}",
        proposals.len(),
        session.again().command("plan", &name)
    );
    Ok(Success::new(text, document))
}
