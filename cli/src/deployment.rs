//! Prepares the selected environment for a run.

use std::collections::{BTreeMap, BTreeSet};

pub use textnlp_orchestrator::release::short;
use textnlp_orchestrator::state::{Operator, State};
use textnlp_provider::{Lineage, Observed, Ownership};
use textnlp_service::deployment::Selection;
pub use textnlp_service::deployment::{Deployment, acting};
pub use textnlp_service::failure::{preflight_failure, state_failed};
pub use textnlp_service::up::run_failed;

use crate::clouds;
use crate::progress::Progress;
use crate::report::{Console, Failure};
use crate::session::{ChosenEnvironment, Session};
use crate::stores;

/// With all wanted resources, planned by the providers.
pub async fn wanted(session: &Session, chosen: ChosenEnvironment, console: Console) -> Result<Deployment, Failure> {
    Deployment::wanted(selection(session, chosen)?, true, &Progress::new(console)).await
}

/// Without wanted resources: for showing the state and for `down`.
pub async fn recorded(session: &Session, chosen: ChosenEnvironment) -> Result<Deployment, Failure> {
    Deployment::recorded(selection(session, chosen)?).await
}

/// How the selected environment is prepared.
pub fn selection(session: &Session, chosen: ChosenEnvironment) -> Result<Selection, Failure> {
    Ok(Selection {
        store: stores::of(session, &chosen)?,
        chosen,
        operator: operator(session),
        site: session.global.site.clone(),
        take_ownership: session.global.take_ownership.clone(),
        server: session.server(),
    })
}

/// The operator, for the journal.
pub fn operator(session: &Session) -> Operator {
    acting(&clouds::Linked, textnlp_files::operator(), session.global.reason.clone())
}

/// The refusal if the state records nothing, and clouds have objects of other deployments with the names that this environment gives
/// them: their state is elsewhere, or was lost. A place that cannot be searched is a warning.
pub async fn recorded_elsewhere(
    session: &Session,
    chosen: &ChosenEnvironment,
    state: &State,
    console: Console,
) -> Option<Failure> {
    let sites = &chosen.loaded.environment.sites;
    if state.has_records() || !sites.iter().any(|site| clouds::is_cloud(&site.provider)) {
        return None;
    }
    let name = &chosen.scope.name;
    match others(session, chosen.clone(), state, console).await {
        Ok(found) => refusal(chosen, state, &found),
        Err(failure) => {
            console.warn(format!(
                "whether another state records objects of {name} could not be searched: {:#}",
                failure.error
            ));
            None
        }
    }
}

/// The objects of other deployments that have the names of this environment's, by deployment: what they are and their ids.
type Others = BTreeMap<Lineage, Vec<String>>;

async fn others(
    session: &Session,
    chosen: ChosenEnvironment,
    state: &State,
    console: Console,
) -> Result<Others, Failure> {
    let there = wanted(session, chosen, console).await?;
    let facts = there.facts(state).await?;
    let mut found = Others::new();
    for (name, site) in &facts.sites {
        if !clouds::is_cloud(&there.sites[name].place.provider) {
            continue;
        }
        // An external object keeps the tags of its creator.
        let external = site.wanted.iter().filter(|wanted| matches!(wanted.ownership, Ownership::External(_)));
        let external: BTreeSet<_> = external.map(|wanted| &wanted.id).collect();
        for (id, seen) in site.observed.iter().filter(|(id, _)| !external.contains(id)) {
            if let Observed::Present(object) = seen
                && let Some(other) = object.lineage.filter(|other| *other != facts.lineage)
            {
                found.entry(other).or_default().push(format!("{id}: {} `{}`", object.kind, object.cloud_id));
            }
        }
    }
    Ok(found)
}

fn refusal(chosen: &ChosenEnvironment, state: &State, found: &Others) -> Option<Failure> {
    const SHOWN: usize = 5;
    let (other, objects) = found.first_key_value()?;
    let mut shown = objects.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if objects.len() > SHOWN {
        shown = format!("{shown} and {} more", objects.len() - SHOWN);
    }
    let error = anyhow::anyhow!(
        "{} records nothing, and objects of deployment {other} have the names of {}: {shown}",
        state.place(),
        chosen.scope.name,
    );
    let import = chosen.scope.same(&format!("state import --lineage {other}"));
    let hint = format!("use the state that records them (--state-dir DIR, or `state.store`); if it was lost: {import}");
    Some(Failure::refused("lost_state", error).hint(hint))
}
