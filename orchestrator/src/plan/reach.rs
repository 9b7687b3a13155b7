//! What else feels a plan, and how long it may take. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use textnlp_provider::{KindName, OperationId, ResourceId, Verb};

use super::facts::{needs_of, recorded_needs};
use super::{Branch, Call, Decides, Facts, Node, Plan, Purpose};
use crate::state::{End, Entry, Record};

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
        Node::Note(_) => None,
    }
}

/// How long operations took at this deployment, by kind and verb.
#[derive(Debug, Clone, Default)]
pub struct Durations(BTreeMap<(KindName, &'static str), Vec<Duration>>);

/// How long a plan may take, by what earlier runs took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Seconds of the longest chain of steps, each at its median.
    pub seconds: f64,
    /// Kinds of which nothing is known: their time comes on top.
    pub unknown: BTreeSet<KindName>,
}

impl Durations {
    /// Learns from a journal, oldest record first. Operations that failed, or that a dead run left open, teach nothing.
    pub fn learn(&mut self, records: &[Record]) {
        let mut open: BTreeMap<OperationId, (&KindName, Verb, jiff::Timestamp, u64)> = BTreeMap::new();
        for record in records {
            match &record.entry {
                Entry::Begun { op, verb, kind, .. } => {
                    open.insert(*op, (kind, *verb, record.at, record.fence));
                }
                Entry::Ended { op, end: End::Made { .. } | End::Gone } => {
                    let Some((kind, verb, begun, fence)) = open.remove(op) else { continue };
                    // The wall clock may have jumped.
                    if let Ok(took) = Duration::try_from(record.at.duration_since(begun))
                        && fence == record.fence
                    {
                        self.0.entry((kind.clone(), name(verb))).or_default().push(took);
                    }
                }
                _ => {}
            }
        }
    }

    fn median(&self, kind: &KindName, verb: Verb) -> Option<Duration> {
        let mut all = self.0.get(&(kind.clone(), name(verb)))?.clone();
        all.sort_unstable();
        all.get(all.len() / 2).copied()
    }

    /// How long a plan may take.
    pub fn estimate(&self, plan: &Plan) -> Estimate {
        let mut unknown = BTreeSet::new();
        let mut ends: Vec<Duration> = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let mut took = Duration::ZERO;
            for verb in verbs(&step.node) {
                match self.median(&step.kind, verb) {
                    Some(median) => took += median,
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
}

fn verbs(node: &Node) -> Vec<Verb> {
    match node {
        Node::Call(call) => vec![call.verb()],
        // The most that may happen.
        Node::OneOf(one) => one.alternatives.last().into_iter().flat_map(|last| &last.calls).map(Call::verb).collect(),
        Node::Note(_) => Vec::new(),
    }
}

fn name(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "create",
        Verb::Update => "update",
        Verb::Delete => "delete",
    }
}
