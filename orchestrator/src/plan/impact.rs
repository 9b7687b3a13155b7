//! The blast radius of a plan, and its estimated duration. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::Serialize;
use textnlp_provider::{CloudId, Foreign, KindName, Observed, Recorded, ResourceId, Verb};

use super::facts::{needs_of, recorded_needs};
use super::{Branch, Call, ChoiceBasis, Facts, Node, Plan, Purpose, Step};

/// A resource in use that changes, with its dependents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Impact {
    /// The resource.
    pub resource: ResourceId,
    /// The strongest change that may happen.
    pub does: ImpactKind,
    /// Its dependents, direct or not, in order.
    pub reaches: Vec<ResourceId>,
}

textnlp_provider::words! {
    /// A change of a resource in use.
    pub enum ImpactKind {
        /// It is changed in place.
        Update = "update",
        /// It is replaced.
        Replace = "replace",
        /// It is deleted.
        Delete = "delete",
    }
}

/// The dependents of each changed resource in use: the blast radius of a plan. A new resource affects no other.
pub fn impact(plan: &Plan, facts: &Facts) -> Vec<Impact> {
    let mut users: BTreeMap<&ResourceId, BTreeSet<&ResourceId>> = BTreeMap::new();
    for site in facts.sites.values() {
        let wanted = site.wanted.iter().filter(|_| facts.purpose == Purpose::Up);
        let wanted = wanted.flat_map(|wanted| needs_of(wanted).map(|need| (need, &wanted.id)));
        let recorded = site.holdings.values().filter_map(|holding| holding.current.as_ref());
        let recorded = recorded.flat_map(|recorded| recorded_needs(recorded).map(|need| (need, &recorded.id)));
        for (need, user) in wanted.chain(recorded) {
            users.entry(need).or_default().insert(user);
        }
    }
    let mut most: BTreeMap<&ResourceId, ImpactKind> = BTreeMap::new();
    for step in &plan.steps {
        let in_use = |id| facts.sites[&step.site].holdings.get(id).is_some_and(|holding| holding.current.is_some());
        let Some(does) = does(&step.node).filter(|_| in_use(&step.resource)) else { continue };
        let action = most.entry(&step.resource).or_insert(does);
        // A deletion and a creation are a replacement.
        if *action != does {
            *action = ImpactKind::Replace;
        }
    }
    let all = |resource: &ResourceId| {
        let mut found = BTreeSet::new();
        let mut todo: Vec<&ResourceId> = users.get(resource).into_iter().flatten().copied().collect();
        while let Some(user) = todo.pop() {
            if user != resource && found.insert(user) {
                todo.extend(users.get(user).into_iter().flatten());
            }
        }
        found.into_iter().cloned().collect()
    };
    most.into_iter()
        .map(|(resource, does)| Impact { resource: resource.clone(), does, reaches: all(resource) })
        .collect()
}

/// A resource that is deleted, with the objects that cluster controllers created inside of it; they are deleted too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deletion {
    /// The resource.
    pub resource: ResourceId,
    /// Those objects. The provider decides whether one that is created after the plan stops the deletion.
    pub foreign: Vec<Foreign>,
}

/// The foreign objects that are deleted with the resources that this plan deletes or may replace.
pub fn swept(plan: &Plan, facts: &Facts) -> Vec<Deletion> {
    let mut hosts: HashMap<&CloudId, &Vec<Foreign>> = HashMap::new();
    for (_, seen) in facts.sites.values().flat_map(|site| &site.observed) {
        if let Observed::Present(object) = seen
            && !object.foreign.is_empty()
        {
            hosts.insert(&object.cloud_id, &object.foreign);
        }
    }
    let deleted = plan.steps.iter().flat_map(|step| deleted_records(&step.node));
    let with: BTreeMap<_, _> =
        deleted.filter_map(|recorded| Some((&recorded.id, *hosts.get(&recorded.cloud_id)?))).collect();
    with.into_iter()
        .map(|(resource, foreign)| {
            let foreign = foreign.iter().filter(|foreign| foreign.swept).cloned().collect();
            Deletion { resource: resource.clone(), foreign }
        })
        .filter(|deletion: &Deletion| !deletion.foreign.is_empty())
        .collect()
}

fn deleted_records(node: &Node) -> Vec<&Recorded> {
    let mut records = Vec::new();
    for call in node.calls() {
        if let Call::Delete { recorded, .. } = call {
            records.push(recorded.as_ref());
        }
    }
    records
}

fn does(node: &Node) -> Option<ImpactKind> {
    match node {
        Node::Call(Call::Create { .. }) => Some(ImpactKind::Replace),
        Node::Call(Call::Update { .. }) => Some(ImpactKind::Update),
        Node::Call(Call::Delete { .. }) => Some(ImpactKind::Delete),
        Node::OneOf(one) if matches!(one.decides, ChoiceBasis::As(_)) => None,
        Node::OneOf(one) => match one.alternatives.iter().map(|alternative| alternative.branch).max()? {
            Branch::Nothing => None,
            Branch::Update => Some(ImpactKind::Update),
            Branch::Replace => Some(ImpactKind::Replace),
        },
        Node::Note(_) | Node::Gate(_) => None,
    }
}

/// The estimated duration of a plan, from earlier runs or typical durations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The longest chain of steps, each at its median, in seconds.
    pub seconds: f64,
    /// Kinds without earlier durations, whose typical duration is included.
    pub typical: BTreeSet<KindName>,
    /// Kinds without earlier or typical durations: their time is not included.
    pub unknown: BTreeSet<KindName>,
}

/// Estimates the duration of a plan.
pub fn estimate(plan: &Plan, facts: &Facts) -> Estimate {
    let mut medians: BTreeMap<(&KindName, Verb), Option<Duration>> = BTreeMap::new();
    let (mut typical, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    let mut ends: Vec<Duration> = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
        let mut took = Duration::ZERO;
        for verb in verbs(&step.node) {
            let known = medians.entry((&step.kind, verb)).or_insert_with(|| median(facts, step, verb));
            match (*known, typical_of(facts, step)) {
                (Some(median), _) => took += median,
                (None, Some(usual)) => {
                    took += usual;
                    typical.insert(step.kind.clone());
                }
                (None, None) => {
                    unknown.insert(step.kind.clone());
                }
            }
        }
        let before = step.after.iter().filter_map(|before| ends.get(*before as usize)).max();
        ends.push(before.copied().unwrap_or_default() + took);
    }
    Estimate { seconds: ends.into_iter().max().unwrap_or_default().as_secs_f64(), typical, unknown }
}

fn typical_of(facts: &Facts, step: &Step) -> Option<Duration> {
    let kinds = facts.sites.get(&step.site)?.provider.kinds();
    kinds.iter().find(|kind| kind.name == step.kind.as_str())?.typical
}

/// The median duration of an operation, at any site of this deployment. Of a first change in place, that of the creation.
fn median(facts: &Facts, step: &Step, verb: Verb) -> Option<Duration> {
    let of = |verb| {
        let mut all: Vec<Duration> = facts.sites.values().flat_map(|site| site.took.of(&step.kind, verb)).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied()
    };
    of(verb).or_else(|| of(Verb::Create).filter(|_| verb == Verb::Update))
}

fn verbs(node: &Node) -> Vec<Verb> {
    match node {
        Node::Call(call) => vec![call.verb()],
        // The strongest alternative.
        Node::OneOf(one) => one.alternatives.last().into_iter().flat_map(|last| &last.calls).map(Call::verb).collect(),
        Node::Note(_) | Node::Gate(_) => Vec::new(),
    }
}
