//! What lacked capacity lately for the resources that a plan creates. Pure, and no part of the plan: it changes with time, and a saved plan
//! stays the same.

use std::collections::BTreeSet;

use serde::Serialize;
use textnlp_provider::ResourceId;

use super::{Call, Facts, Plan};
use crate::state::Shortage;

/// A lack of capacity for a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceShortage {
    /// The resource.
    pub resource: ResourceId,
    /// What lacked capacity, and when.
    #[serde(flatten)]
    pub shortage: Shortage,
}

/// Those that the creates of a plan know of if it is applied when the facts were read, oldest first for each resource. Some of these
/// creates may not be made.
pub fn shortages(plan: &Plan, facts: &Facts) -> Vec<ResourceShortage> {
    let (mut resources, mut found) = (BTreeSet::new(), Vec::new());
    for call in plan.steps.iter().flat_map(|step| step.node.calls()) {
        let Call::Create { wanted, .. } = call else { continue };
        let Some(site) = facts.sites.get(&wanted.site).filter(|_| resources.insert(&wanted.id)) else { continue };
        let all = site.shortages.of(&wanted.id, facts.now).into_iter();
        found.extend(all.map(|shortage| ResourceShortage { resource: wanted.id.clone(), shortage }));
    }
    found
}
