//! The creates of a plan that begin with another alternative, because others lacked capacity lately. Pure, and no part of the plan: it
//! changes with time, and a saved plan stays the same.

use serde::Serialize;
use textnlp_provider::{ResourceId, capacity};

use super::{Call, Facts, Plan};
use crate::state::Shortage;

/// A create that tries its alternatives in another order than the best first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reordered {
    /// The resource.
    pub resource: ResourceId,
    /// The alternative that is tried first.
    pub first: String,
    /// What lacked capacity, oldest first.
    pub lacked: Vec<Shortage>,
}

/// These creates, of a run that begins when the facts were read.
pub fn reordered(plan: &Plan, facts: &Facts) -> Vec<Reordered> {
    let of = |call: &Call| {
        let Call::Create { wanted, .. } = call else { return None };
        let site = facts.sites.get(&wanted.site)?;
        let lacking = site.shortages.lacking(&wanted.id, facts.now);
        let all = if lacking.is_empty() { Vec::new() } else { site.provider.alternatives(wanted) };
        let order = capacity::order(&all, &lacking);
        let first = all.get(*order.first()?)?.clone();
        let lacked = site.shortages.of(&wanted.id, facts.now);
        (!order.is_sorted()).then(|| Reordered { resource: wanted.id.clone(), first, lacked })
    };
    plan.steps.iter().flat_map(|step| step.node.calls()).filter_map(of).collect()
}
