//! Objects that are ours and not in the record are taken into it: proposed by a look at the providers, approved by a person.
//!
//! `up` adopts what an environment wants by itself. This is for a state that was lost, and for objects that a list leaves out.

use serde::Serialize;
use textnlp_provider::{CloudId, Error, Lineage, Object, Observed, Ownership, Recorded, ResourceId, SiteName, Wanted};

use crate::plan::{Facts, sorted_needs};
use crate::state::{Entry, Holding, Locked, StateError};

/// One object that could be taken into the record.
#[derive(Debug, Clone, Serialize)]
pub struct Proposal {
    /// As which resource.
    pub resource: ResourceId,
    /// Where.
    pub site: SiteName,
    /// What would be recorded.
    pub recorded: Recorded,
    /// Whether the environment wants it; what it does not want is kept until its removal is agreed to by name.
    pub wanted: bool,
}

/// Why an object cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The environment has no such resource.
    #[error("the environment wants no `{resource}`")]
    NotWanted {
        /// Which.
        resource: ResourceId,
    },
    /// It is recorded already.
    #[error("`{resource}` is recorded already, as `{cloud_id}`")]
    Recorded {
        /// Which.
        resource: ResourceId,
        /// Its object.
        cloud_id: CloudId,
    },
    /// The provider does not show it.
    #[error("the provider shows no `{cloud_id}`{}", .why.as_deref().map(|why| format!(": {why}")).unwrap_or_default())]
    Absent {
        /// What was asked for.
        cloud_id: CloudId,
        /// The provider's words.
        why: Option<String>,
    },
    /// It belongs to somebody else, or to nobody.
    #[error("`{cloud_id}` {}", whose(.lineage))]
    Foreign {
        /// Which.
        cloud_id: CloudId,
        /// Whose.
        lineage: Option<Lineage>,
    },
    /// The provider could not be asked.
    #[error("ask for it")]
    Provider(#[source] Error),
}

fn whose(lineage: &Option<Lineage>) -> String {
    match lineage {
        Some(lineage) => format!("belongs to deployment {lineage}"),
        None => "carries no lineage: it was not made by this program".to_owned(),
    }
}

/// Every object of this lineage that no record mentions, in order of sites and ids.
pub fn propose(facts: &Facts) -> Vec<Proposal> {
    let mut all = Vec::new();
    for (name, site) in &facts.sites {
        for (id, seen) in &site.observed {
            let Observed::Present(object) = seen else { continue };
            let mut known = site.holdings.get(id).into_iter().flat_map(Holding::cloud_ids);
            if object.lineage != Some(facts.lineage) || known.any(|known| *known == object.cloud_id) {
                continue;
            }
            let wanted = site.wanted.iter().find(|wanted| wanted.id == *id);
            let kinds = site.provider.kinds();
            let schema = kinds.iter().find(|kind| kind.name == object.kind.as_str()).map_or(1, |kind| kind.schema);
            let recorded = recorded(id, name, schema, object, wanted);
            all.push(Proposal { resource: id.clone(), site: name.clone(), recorded, wanted: wanted.is_some() });
        }
    }
    all
}

/// One object that a person names by the provider's own id.
pub async fn named(facts: &Facts, resource: &ResourceId, cloud_id: &CloudId) -> Result<Proposal, Refusal> {
    let found = facts.sites.iter().find_map(|(name, site)| {
        let wanted = site.wanted.iter().find(|wanted| wanted.id == *resource)?;
        Some((name, site, wanted))
    });
    let Some((name, site, wanted)) = found else { return Err(Refusal::NotWanted { resource: resource.clone() }) };
    if let Some(current) = site.holdings.get(resource).and_then(|holding| holding.current.as_ref()) {
        return Err(Refusal::Recorded { resource: resource.clone(), cloud_id: current.cloud_id.clone() });
    }
    let absent = |why: Option<String>| Refusal::Absent { cloud_id: cloud_id.clone(), why };
    let object = match site.provider.read(&wanted.kind, cloud_id).await.map_err(Refusal::Provider)? {
        Observed::Present(object) => object,
        Observed::Absent => return Err(absent(None)),
        Observed::Unknown(why) => return Err(absent(Some(why.0))),
    };
    if object.lineage != Some(facts.lineage) {
        return Err(Refusal::Foreign { cloud_id: cloud_id.clone(), lineage: object.lineage });
    }
    let kinds = site.provider.kinds();
    let schema = kinds.iter().find(|kind| kind.name == object.kind.as_str()).map_or(1, |kind| kind.schema);
    let recorded = recorded(resource, name, schema, &object, Some(wanted));
    Ok(Proposal { resource: resource.clone(), site: name.clone(), recorded, wanted: true })
}

/// Writes approved proposals down.
pub async fn take(locked: &mut Locked, proposals: &[Proposal]) -> Result<(), StateError> {
    for Proposal { resource, site, recorded, .. } in proposals {
        let write = |pen: &mut crate::state::Pen<'_>| {
            let recorded = pen.body(recorded);
            pen.entry(Entry::Noted { resource: resource.clone(), what: "import".to_owned(), recorded });
        };
        locked.commit(site, write).await?;
    }
    Ok(())
}

/// Lets go of the record of a resource. The object, if there is one, stays as it is.
pub async fn forget(
    locked: &mut Locked,
    site: &SiteName,
    resource: &ResourceId,
    because: &str,
) -> Result<(), StateError> {
    let (resource, because) = (resource.clone(), crate::state::cut(because, 400));
    locked.commit(site, |pen| pen.entry(Entry::Forgot { resource, because })).await
}

/// As it is there; the next plan finds what differs from what is wanted.
fn recorded(id: &ResourceId, site: &SiteName, schema: u32, object: &Object, wanted: Option<&Wanted>) -> Recorded {
    Recorded {
        id: id.clone(),
        kind: object.kind.clone(),
        site: site.clone(),
        via: wanted.and_then(|wanted| wanted.via.clone()),
        spec: object.spec.clone(),
        needs: wanted.map(sorted_needs).unwrap_or_default(),
        ownership: Ownership::Ours,
        schema,
        cloud_id: object.cloud_id.clone(),
        outputs: object.outputs.clone(),
        // Nobody knows what it held: removing it takes a typed consent until an `up` has looked at it.
        protected: wanted.is_none_or(|wanted| wanted.protected),
        tainted: false,
    }
}
