//! What else feels a plan, and how long it may take. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::Serialize;
use textnlp_provider::{CloudId, Foreign, KindName, Observed, Recorded, ResourceId, Verb};

use super::facts::{needs_of, recorded_needs};
use super::{Branch, Call, Decides, Facts, Node, Plan, Purpose, Step};

/// A resource that is in use and changes, with everything that stands on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// Which.
    pub resource: ResourceId,
    /// `update`, `replace` or `delete`; the most that may happen.
    pub does: &'static str,
    /// Whoever needs it, directly or not, in order.
    pub reaches: Vec<ResourceId>,
}

/// What each change of something that is in use reaches: the blast radius of a plan. What is only made reaches nobody.
pub fn reach(plan: &Plan, facts: &Facts) -> Vec<Reach> {
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
    let mut most: BTreeMap<&ResourceId, &'static str> = BTreeMap::new();
    for step in &plan.steps {
        let in_use = |id| facts.sites[&step.site].holdings.get(id).is_some_and(|holding| holding.current.is_some());
        let Some(does) = does(&step.node).filter(|_| in_use(&step.resource)) else { continue };
        let said = most.entry(&step.resource).or_insert(does);
        // Gone and made anew is replaced.
        if *said != does {
            *said = "replace";
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
        .map(|(resource, does)| Reach { resource: resource.clone(), does, reaches: all(resource) })
        .collect()
}

/// A resource that goes, with what the controllers of clusters made inside of it: that goes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Which.
    pub resource: ResourceId,
    /// What is inside of it as far as it was seen; whatever comes until then goes too.
    pub foreign: Vec<Foreign>,
}

/// What goes along with what this plan removes or may replace.
pub fn swept(plan: &Plan, facts: &Facts) -> Vec<Swept> {
    let mut hosts: HashMap<&CloudId, &Vec<Foreign>> = HashMap::new();
    for (_, seen) in facts.sites.values().flat_map(|site| &site.observed) {
        if let Observed::Present(object) = seen
            && !object.foreign.is_empty()
        {
            hosts.insert(&object.cloud_id, &object.foreign);
        }
    }
    let goes = plan.steps.iter().flat_map(|step| removed(&step.node));
    let with: BTreeMap<_, _> =
        goes.filter_map(|recorded| Some((&recorded.id, *hosts.get(&recorded.cloud_id)?))).collect();
    with.into_iter().map(|(resource, foreign)| Swept { resource: resource.clone(), foreign: foreign.clone() }).collect()
}

/// The records of what a step removes.
fn removed(node: &Node) -> Vec<&Recorded> {
    let mut records = Vec::new();
    for call in node.calls() {
        if let Call::Delete { recorded, .. } = call {
            records.push(recorded.as_ref());
        }
    }
    records
}

fn does(node: &Node) -> Option<&'static str> {
    match node {
        Node::Call(Call::Create { .. }) => Some("replace"),
        Node::Call(Call::Update { .. }) => Some("update"),
        Node::Call(Call::Delete { .. }) => Some("delete"),
        Node::OneOf(one) if matches!(one.decides, Decides::As(_)) => None,
        Node::OneOf(one) => match one.alternatives.iter().map(|alternative| alternative.branch).max()? {
            Branch::Nothing => None,
            Branch::Update => Some("update"),
            Branch::Replace => Some("replace"),
        },
        Node::Note(_) | Node::Gate(_) => None,
    }
}

/// How long a plan may take, by what earlier runs took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Seconds of the longest chain of steps, each at its median.
    pub seconds: f64,
    /// Kinds of which nothing is known: their time comes on top.
    pub unknown: BTreeSet<KindName>,
}

/// How long a plan may take.
pub fn estimate(plan: &Plan, facts: &Facts) -> Estimate {
    let mut medians: BTreeMap<(&KindName, Verb), Option<Duration>> = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    let mut ends: Vec<Duration> = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
        let mut took = Duration::ZERO;
        for verb in verbs(&step.node) {
            let known = medians.entry((&step.kind, verb)).or_insert_with(|| median(facts, step, verb));
            match known {
                Some(median) => took += *median,
                None => {
                    unknown.insert(step.kind.clone());
                }
            }
        }
        let before = step.after.iter().filter_map(|before| ends.get(*before as usize)).max();
        ends.push(before.copied().unwrap_or_default() + took);
    }
    Estimate { seconds: ends.into_iter().max().unwrap_or_default().as_secs_f64(), unknown }
}

/// What an operation took in the middle of cases, at any site of this deployment.
fn median(facts: &Facts, step: &Step, verb: Verb) -> Option<Duration> {
    let mut all: Vec<Duration> = facts.sites.values().flat_map(|site| site.took.of(&step.kind, verb)).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

fn verbs(node: &Node) -> Vec<Verb> {
    match node {
        Node::Call(call) => vec![call.verb()],
        // The most that may happen.
        Node::OneOf(one) => one.alternatives.last().into_iter().flat_map(|last| &last.calls).map(Call::verb).collect(),
        Node::Note(_) | Node::Gate(_) => Vec::new(),
    }
}
