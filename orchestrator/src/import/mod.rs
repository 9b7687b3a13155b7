//! Imports managed objects without a record: proposed from the providers' lists, approved by the operator.
//!
//! `up` adopts what an environment wants. Import is for a lost state, and for objects that a provider's list omits.

mod terraform;
mod tfstate;

use serde::Serialize;
use textnlp_provider::{
    CloudId, Error, KindName, Lineage, Object, Observed, Ownership, Recorded, ResourceId, SiteName, Wanted,
};

use crate::plan::{Facts, SiteFacts, sorted_needs};
use crate::state::{Entry, Locked, StateError};

pub use terraform::{Matched, SkippedObject, lineage as lineage_of, matched};
pub use tfstate::{MAX_FILE_BYTES, TerraformObject, TerraformState, TerraformStatus, VERSION, read as read_terraform};

/// An object that can be recorded.
#[derive(Debug, Clone, Serialize)]
pub struct Proposal {
    /// The resource.
    pub resource: ResourceId,
    /// The site.
    pub site: SiteName,
    /// The record.
    pub recorded: Recorded,
    /// Whether the environment wants it. An unwanted object is retained until its removal is approved by name.
    pub wanted: bool,
}

/// Why an object cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportRefusal {
    /// The environment has no such resource.
    #[error("the environment has no `{resource}`")]
    NotWanted {
        /// The resource.
        resource: ResourceId,
    },
    /// The resource is recorded already.
    #[error("`{resource}` is recorded already, as `{cloud_id}`")]
    Recorded {
        /// The resource.
        resource: ResourceId,
        /// Its recorded object.
        cloud_id: CloudId,
    },
    /// The object is recorded already, for another resource or for removal, or it is part of another proposal.
    #[error("`{cloud_id}` is `{resource}` already")]
    Taken {
        /// The object.
        cloud_id: CloudId,
        /// The resource it is recorded as.
        resource: ResourceId,
    },
    /// The provider does not find it.
    #[error("the provider has no `{cloud_id}`{}", .why.as_deref().map(|why| format!(": {why}")).unwrap_or_default())]
    Absent {
        /// The given id.
        cloud_id: CloudId,
        /// The provider's message.
        why: Option<String>,
    },
    /// It is external: it has another lineage or none.
    #[error("`{cloud_id}` {}", whose(.lineage))]
    Foreign {
        /// The object.
        cloud_id: CloudId,
        /// Its lineage.
        lineage: Option<Lineage>,
    },
    /// The provider could not be read.
    #[error("read the object from its provider")]
    Provider(#[source] Error),
}

fn whose(lineage: &Option<Lineage>) -> String {
    match lineage {
        Some(lineage) => format!("belongs to deployment {lineage}"),
        None => "has no lineage label: it was not created by this program".to_owned(),
    }
}

/// What the journal notes for an imported object.
pub(crate) const IMPORT: &str = "import";

/// Every object of this lineage without a record, in order of sites and ids. One that has the labels of a resource with
/// another object is left: only the operator can tell which of them it is.
pub fn propose(facts: &Facts) -> Matched {
    let mut all = Matched::default();
    for (name, site) in &facts.sites {
        for (id, seen) in &site.observed {
            let Observed::Present(object) = seen else { continue };
            if object.lineage != Some(facts.lineage) || held(facts, &object.kind, &object.cloud_id).is_some() {
                continue;
            }
            let of_it = |(other, seen): &&(ResourceId, Observed)| other == id && matches!(seen, Observed::Present(_));
            let is_recorded = site.holdings.get(id).is_some_and(|holding| holding.current.is_some());
            if is_recorded || site.observed.iter().filter(of_it).count() > 1 {
                let because = format!("`{}` is one of several objects with the labels of `{id}`", object.cloud_id);
                let hint = (!is_recorded).then(|| format!("name the right one: `state import {id}=ID`"));
                all.left.push(SkippedObject { address: object.cloud_id.to_string(), because, hint });
                continue;
            }
            let wanted = site.wanted.iter().find(|wanted| wanted.id == *id);
            let recorded = recorded(id, name, site, object, wanted);
            all.proposals.push(Proposal {
                resource: id.clone(),
                site: name.clone(),
                recorded,
                wanted: wanted.is_some(),
            });
        }
    }
    all
}

/// The resource that an object is recorded as. Objects of different kinds may have the same id, such as a role and its
/// instance profile.
fn held<'a>(facts: &'a Facts, kind: &KindName, cloud_id: &CloudId) -> Option<&'a ResourceId> {
    let all = facts.sites.values().flat_map(|site| &site.holdings);
    let is_it = |recorded: &Recorded| recorded.cloud_id == *cloud_id && recorded.kind == *kind;
    let mut holding = all.filter(|(_, holding)| holding.objects().any(is_it));
    holding.next().map(|(resource, _)| resource)
}

/// An object that the operator names by the provider's id. `beside`: the proposals that would be recorded with it.
pub async fn named(
    facts: &Facts,
    resource: &ResourceId,
    cloud_id: &CloudId,
    beside: &[Proposal],
) -> Result<Proposal, ImportRefusal> {
    let found = facts.sites.iter().find_map(|(name, site)| {
        let wanted = site.wanted.iter().find(|wanted| wanted.id == *resource)?;
        Some((name, site, wanted))
    });
    let Some((name, site, wanted)) = found else { return Err(ImportRefusal::NotWanted { resource: resource.clone() }) };
    if let Some(current) = site.holdings.get(resource).and_then(|holding| holding.current.as_ref()) {
        return Err(ImportRefusal::Recorded { resource: resource.clone(), cloud_id: current.cloud_id.clone() });
    }
    if let Some(other) = beside.iter().find(|other| other.resource == *resource) {
        return Err(ImportRefusal::Recorded { resource: resource.clone(), cloud_id: other.recorded.cloud_id.clone() });
    }
    let is_it = |other: &&Proposal| other.recorded.cloud_id == *cloud_id && other.recorded.kind == wanted.kind;
    let beside = beside.iter().find(is_it).map(|other| &other.resource);
    if let Some(resource) = held(facts, &wanted.kind, cloud_id).or(beside) {
        return Err(ImportRefusal::Taken { cloud_id: cloud_id.clone(), resource: resource.clone() });
    }
    let absent = |why: Option<String>| ImportRefusal::Absent { cloud_id: cloud_id.clone(), why };
    let object = match site.provider.read(&wanted.kind, cloud_id).await.map_err(ImportRefusal::Provider)? {
        Observed::Present(object) => object,
        Observed::Absent => return Err(absent(None)),
        Observed::Unknown(why) => return Err(absent(Some(why.0))),
    };
    if object.lineage != Some(facts.lineage) {
        return Err(ImportRefusal::Foreign { cloud_id: cloud_id.clone(), lineage: object.lineage });
    }
    let recorded = recorded(resource, name, site, &object, Some(wanted));
    Ok(Proposal { resource: resource.clone(), site: name.clone(), recorded, wanted: true })
}

/// Records approved proposals.
pub async fn take(locked: &mut Locked, proposals: &[Proposal]) -> Result<(), StateError> {
    for Proposal { resource, site, recorded, .. } in proposals {
        let write = |writer: &mut crate::state::JournalWriter<'_>| {
            let recorded = writer.body(recorded);
            writer.entry(Entry::Noted {
                resource: resource.clone(),
                what: IMPORT.to_owned(),
                recorded,
                created_by: None,
            });
        };
        locked.commit(site, write).await?;
    }
    Ok(())
}

/// Removes the record of a resource. The object is unchanged.
pub async fn forget(
    locked: &mut Locked,
    site: &SiteName,
    resource: &ResourceId,
    because: &str,
) -> Result<(), StateError> {
    let (resource, because) = (resource.clone(), crate::state::cut(because, 400));
    locked.commit(site, |writer| writer.entry(Entry::Forgot { resource, because })).await
}

/// The record of an object as observed; the next plan finds the differences.
fn recorded(id: &ResourceId, name: &SiteName, site: &SiteFacts, object: &Object, wanted: Option<&Wanted>) -> Recorded {
    let kind = site.provider.kinds().iter().find(|kind| kind.name == object.kind.as_str());
    let seen = object.spec.applied();
    Recorded {
        id: id.clone(),
        kind: object.kind.clone(),
        site: name.clone(),
        // The observed host is recorded: the next plan moves the resource if another one is wanted.
        via: object.via.clone().or_else(|| wanted.and_then(|wanted| wanted.via.clone())),
        // The next `up` removes recorded tags that are not wanted, and leaves those of others.
        spec: wanted.map_or_else(|| seen.clone(), |wanted| seen.with_tags_of(&wanted.spec)),
        needs: wanted.map(sorted_needs).unwrap_or_default(),
        ownership: Ownership::Ours,
        schema: kind.map_or(1, |kind| kind.schema),
        cloud_id: object.cloud_id.clone(),
        created: object.created,
        outputs: object.outputs.clone(),
        // Its data is unknown: its removal needs a typed confirmation until an `up` has read it.
        protected: wanted.is_none_or(|wanted| wanted.protected),
        tainted: false,
    }
}
