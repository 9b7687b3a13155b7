//! Gates: replaced or unwanted resources are removed only after a measurement that the new ones work. Pure.

use std::collections::{BTreeMap, BTreeSet};

use textnlp_provider::{KindName, Problem, ResourceId, SiteName};

use super::{Call, ChoiceBasis, Gate, Node, Step};

/// The kind of a gate's step; no provider implements it.
const KIND: &str = "plan.gate";
/// The last segment of its id.
const NAME: &str = "gate";

/// Adds a gate to the plan of each site that removes something, after all creations and changes there. Removals that
/// must precede a creation cannot wait for it and are reported. Without creations, an earlier run may have found the
/// gate closed, so the site is measured all the same.
pub(super) fn behind_gates(steps: Vec<Step>, warnings: &mut Vec<Problem>) -> Vec<Step> {
    let early = waited_for_by_makers(&steps);
    let mut makers: BTreeMap<SiteName, Vec<u32>> = BTreeMap::new();
    for step in steps.iter().filter(|step| makes(step)) {
        makers.entry(step.site.clone()).or_default().push(step.id);
    }
    let (early, late): (Vec<&Step>, Vec<&Step>) =
        steps.iter().filter(|step| removes(step)).partition(|step| early.contains(&step.id));
    for step in early {
        let cause = "it is removed before its replacement can be created, so before the gate runs";
        let fix = "it cannot be rolled back; omit --gated if the gate is not needed for it";
        warnings.push(Problem::warning(step.resource.as_str(), cause, fix));
    }
    let late: BTreeSet<u32> = late.into_iter().map(|step| step.id).collect();
    if late.is_empty() {
        return steps;
    }
    // A record change may wait for a removal; other steps behind the gate are removals.
    let mut behind = late.clone();
    for step in &steps {
        if step.after.iter().any(|before| behind.contains(before)) {
            behind.insert(step.id);
        }
    }
    let mut gates: BTreeMap<SiteName, Vec<u32>> = BTreeMap::new();
    let (held, mut order): (Vec<Step>, Vec<Step>) = steps.into_iter().partition(|step| behind.contains(&step.id));
    // Maps the old step numbers, by which steps refer to each other, to the new ones.
    let mut numbers: BTreeMap<u32, u32> =
        order.iter().enumerate().map(|(position, step)| (step.id, position as u32)).collect();
    for step in held.iter().filter(|step| removes(step)) {
        gates.entry(step.site.clone()).or_default();
    }
    let first_held = (order.len() + gates.len()) as u32;
    numbers.extend(held.iter().enumerate().map(|(position, step)| (step.id, first_held + position as u32)));
    for step in held.iter().filter(|step| removes(step)) {
        gates.entry(step.site.clone()).or_default().push(numbers[&step.id]);
    }
    let mut gate_of: BTreeMap<SiteName, u32> = BTreeMap::new();
    let mut at_gates = Vec::new();
    for (site, open) in gates {
        let number = (order.len() + at_gates.len()) as u32;
        gate_of.insert(site.clone(), number);
        let because = format!(
            "{} removal{} until the gate has measured the new resources; if it fails, no old resource is removed",
            open.len(),
            if open.len() == 1 { " waits" } else { "s wait" }
        );
        at_gates.push(Step {
            id: number,
            resource: ResourceId::new(format!("{site}/{NAME}")).expect("a site and a word are an id"),
            kind: KindName::new(KIND).expect("the constant is a kind's name"),
            after: makers.get(&site).cloned().unwrap_or_default(),
            site,
            node: Node::Gate(Gate { open, shut: Vec::new() }),
            changes: Vec::new(),
            because,
        });
    }
    order.extend(at_gates);
    order.extend(held);
    for (position, step) in order.iter_mut().enumerate() {
        step.id = position as u32;
        step.after.iter_mut().for_each(|before| *before = numbers[before]);
        if step.id >= first_held && removes(step) {
            step.after.extend(gate_of.get(&step.site));
        }
        step.after.sort_unstable();
        if let Node::OneOf(one) = &mut step.node
            && let ChoiceBasis::As(other) = &mut one.decides
        {
            *other = numbers[other];
        }
    }
    order
}

/// Whether a step creates or changes an object in use.
pub(super) fn makes(step: &Step) -> bool {
    match &step.node {
        Node::Call(call) => !matches!(call, Call::Delete { .. }),
        Node::OneOf(one) => matches!(one.decides, ChoiceBasis::Difference { .. }),
        Node::Note(_) | Node::Gate(_) => false,
    }
}

/// Whether a step only removes something.
pub(super) fn removes(step: &Step) -> bool {
    match &step.node {
        Node::Call(call) => matches!(call, Call::Delete { .. }),
        Node::OneOf(one) => matches!(one.decides, ChoiceBasis::As(_)),
        Node::Note(_) | Node::Gate(_) => false,
    }
}

/// The steps that a creating step waits for, directly or not.
pub(super) fn waited_for_by_makers(steps: &[Step]) -> BTreeSet<u32> {
    let mut waited = BTreeSet::new();
    for step in steps.iter().rev() {
        if makes(step) || waited.contains(&step.id) {
            waited.extend(&step.after);
        }
    }
    waited
}
