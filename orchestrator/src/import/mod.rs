//! Objects that are ours and not in the record are taken into it: proposed by a look at the providers, approved by a person.
//!
//! `up` adopts what an environment wants by itself. This is for a state that was lost, and for objects that a list leaves out.

mod terraform;
mod tfstate;

use serde::Serialize;
use textnlp_provider::{
    CloudId, Error, KindName, Lineage, Object, Observed, Ownership, Recorded, ResourceId, SiteName, Wanted,
};

use crate::plan::{Facts, SiteFacts, sorted_needs};
use crate::state::{Entry, Locked, StateError};

pub use terraform::{Left, Matched, lineage as lineage_of, matched};
pub use tfstate::{LONGEST, TerraformObject, TerraformStanding, TerraformState, VERSION, read as read_terraform};

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
    /// The object is in the record already, as another resource or as what is still to be removed, or comes in by another proposal.
    #[error("`{cloud_id}` is `{resource}` already")]
    Taken {
        /// The object.
        cloud_id: CloudId,
        /// As which resource.
        resource: ResourceId,
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
            if object.lineage != Some(facts.lineage) || held(facts, &object.kind, &object.cloud_id).is_some() {
                continue;
            }
            let wanted = site.wanted.iter().find(|wanted| wanted.id == *id);
            let recorded = recorded(id, name, site, object, wanted);
            all.push(Proposal { resource: id.clone(), site: name.clone(), recorded, wanted: wanted.is_some() });
        }
    }
    all
}

/// As which resource an object is recorded. Kinds tell objects apart that a provider calls alike, such as a role and its profile.
fn held<'a>(facts: &'a Facts, kind: &KindName, cloud_id: &CloudId) -> Option<&'a ResourceId> {
    let all = facts.sites.values().flat_map(|site| &site.holdings);
    let is_it = |recorded: &Recorded| recorded.cloud_id == *cloud_id && recorded.kind == *kind;
    let mut holding = all.filter(|(_, holding)| holding.objects().any(is_it));
    holding.next().map(|(resource, _)| resource)
}

/// One object that a person names by the provider's own id. `beside` are the proposals that would be recorded with it.
pub async fn named(
    facts: &Facts,
    resource: &ResourceId,
    cloud_id: &CloudId,
    beside: &[Proposal],
) -> Result<Proposal, Refusal> {
    let found = facts.sites.iter().find_map(|(name, site)| {
        let wanted = site.wanted.iter().find(|wanted| wanted.id == *resource)?;
        Some((name, site, wanted))
    });
    let Some((name, site, wanted)) = found else { return Err(Refusal::NotWanted { resource: resource.clone() }) };
    if let Some(current) = site.holdings.get(resource).and_then(|holding| holding.current.as_ref()) {
        return Err(Refusal::Recorded { resource: resource.clone(), cloud_id: current.cloud_id.clone() });
    }
    if let Some(other) = beside.iter().find(|other| other.resource == *resource) {
        return Err(Refusal::Recorded { resource: resource.clone(), cloud_id: other.recorded.cloud_id.clone() });
    }
    let is_it = |other: &&Proposal| other.recorded.cloud_id == *cloud_id && other.recorded.kind == wanted.kind;
    let beside = beside.iter().find(is_it).map(|other| &other.resource);
    if let Some(resource) = held(facts, &wanted.kind, cloud_id).or(beside) {
        return Err(Refusal::Taken { cloud_id: cloud_id.clone(), resource: resource.clone() });
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
    let recorded = recorded(resource, name, site, &object, Some(wanted));
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
fn recorded(id: &ResourceId, name: &SiteName, site: &SiteFacts, object: &Object, wanted: Option<&Wanted>) -> Recorded {
    let kind = site.provider.kinds().iter().find(|kind| kind.name == object.kind.as_str());
    Recorded {
        id: id.clone(),
        kind: object.kind.clone(),
        site: name.clone(),
        // Where it was seen counts: the next plan moves what is wanted elsewhere.
        via: object.via.clone().or_else(|| wanted.and_then(|wanted| wanted.via.clone())),
        spec: object.spec.clone(),
        needs: wanted.map(sorted_needs).unwrap_or_default(),
        ownership: Ownership::Ours,
        schema: kind.map_or(1, |kind| kind.schema),
        cloud_id: object.cloud_id.clone(),
        outputs: object.outputs.clone(),
        // Nobody knows what it held: removing it takes a typed consent until an `up` has looked at it.
        protected: wanted.is_none_or(|wanted| wanted.protected),
        tainted: false,
    }
}
