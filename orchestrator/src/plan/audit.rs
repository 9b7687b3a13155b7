//! An independent audit of a finished plan against the invariants of the planner.
//!
//! It uses only the plan and the facts, not the planner's code. Every plan is audited before approval.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use textnlp_provider::{
    DataClass, DatabasePart, Foreign, Object, Observed, Origin, Ownership, Recorded, ResourceId, Wanted,
};

use super::facts::{needs_of, recorded_needs};
use super::{Call, ChoiceBasis, DeleteData, Facts, Gate, Node, Note, ObjectRole, Plan, Purpose, Step, gated};
use crate::state::RecordedObjects;

/// A plan that violates no invariant.
#[derive(Debug, Clone)]
pub struct Audited(Plan);

impl Audited {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.0
    }

    pub(super) fn into_plan(self) -> Plan {
        self.0
    }
}

/// A violated invariant: a bug in the planner, or a plan that was edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {law}")]
pub struct Violation {
    /// The resource.
    pub resource: ResourceId,
    /// The invariant, as a sentence.
    pub law: String,
}

/// Audits a plan.
pub fn audit(plan: Plan, facts: &Facts) -> Result<Audited, Vec<Violation>> {
    let mut auditor = Auditor::new(&plan, facts);
    auditor.order();
    auditor.calls();
    auditor.one_change_each();
    auditor.sites_stand_alone();
    auditor.needs_first();
    auditor.dependents_first();
    auditor.ends_as_wanted();
    auditor.gates();
    let mut breaches = auditor.breaches;
    breaches.sort_by(|a, b| a.resource.cmp(&b.resource));
    if breaches.is_empty() { Ok(Audited(plan)) } else { Err(breaches) }
}

struct Auditor<'a> {
    plan: &'a Plan,
    facts: &'a Facts,
    wanted: HashMap<&'a ResourceId, &'a Wanted>,
    holdings: HashMap<&'a ResourceId, &'a RecordedObjects>,
    steps: HashMap<&'a ResourceId, Vec<&'a Step>>,
    blocked: HashSet<&'a ResourceId>,
    breaches: Vec<Violation>,
}

impl<'a> Auditor<'a> {
    fn new(plan: &'a Plan, facts: &'a Facts) -> Self {
        let (mut wanted, mut holdings) = (HashMap::new(), HashMap::new());
        for site in facts.sites.values() {
            if facts.purpose == Purpose::Up {
                wanted.extend(site.wanted.iter().map(|wanted| (&wanted.id, wanted)));
            }
            holdings.extend(site.holdings.iter());
        }
        let mut steps: HashMap<&ResourceId, Vec<&Step>> = HashMap::with_capacity(plan.steps.len());
        for step in &plan.steps {
            steps.entry(&step.resource).or_default().push(step);
        }
        let blocked = plan.blocked.iter().map(|blocked| &blocked.resource).collect();
        Self { plan, facts, wanted, holdings, steps, blocked, breaches: Vec::new() }
    }

    fn breach(&mut self, resource: &ResourceId, law: impl fmt::Display) {
        self.breaches.push(Violation { resource: resource.clone(), law: law.to_string() });
    }

    /// Steps are numbered in order and wait only for earlier steps.
    fn order(&mut self) {
        for (place, step) in self.plan.steps.iter().enumerate() {
            if step.id as usize != place {
                self.breach(&step.resource, "a step's number must be its position");
            }
            if step.after.iter().any(|before| *before >= step.id) {
                self.breach(&step.resource, "a step must wait only for earlier steps");
            }
        }
    }

    /// No call affects an object that could not be read, is external, or holds data whose loss was not approved.
    fn calls(&mut self) {
        let (mut unseen, mut foreign_objects) = (BTreeSet::new(), BTreeSet::new());
        for site in self.facts.sites.values() {
            for (_, seen) in &site.observed {
                if let Observed::Present(object) = seen
                    && object.foreign.iter().any(Foreign::is_in_the_way)
                {
                    foreign_objects.insert(&object.cloud_id);
                }
            }
            unseen.extend(
                site.observed.iter().filter(|(_, seen)| matches!(seen, Observed::Unknown(_))).map(|(id, _)| id),
            );
            unseen.extend(site.open.values().map(|open| &open.intent.operation.resource));
        }
        for step in &self.plan.steps {
            let calls = step.node.calls();
            let external = self
                .wanted
                .get(&step.resource)
                .is_some_and(|wanted| matches!(wanted.ownership, Ownership::External(_)));
            if !calls.is_empty() && external {
                self.breach(&step.resource, "an external object must not be changed");
            }
            if !calls.is_empty() && unseen.contains(&step.resource) && !self.host_is_made(&step.resource) {
                self.breach(&step.resource, "an object that could not be observed must not be changed");
            }
            for call in calls {
                if !self.is_of_this_journal(step, call) {
                    self.breach(
                        &step.resource,
                        "an object without a record must belong to an operation of the journal",
                    );
                }
                if let Call::Delete { recorded, .. } = call {
                    if matches!(recorded.ownership, Ownership::External(_)) {
                        self.breach(&step.resource, "an external object must not be removed");
                    }
                    if foreign_objects.contains(&recorded.cloud_id) {
                        self.breach(&step.resource, "an object that contains an external object must not be removed");
                    }
                    if self.holds_data(recorded) && !self.has_consent(recorded) {
                        self.breach(&step.resource, "an object with data must be removed only with consent");
                    }
                }
            }
        }
        if self.plan.delete_data > self.facts.delete_data {
            let resource = self.plan.steps.first().map(|step| step.resource.clone());
            resource
                .into_iter()
                .for_each(|resource| self.breach(&resource, "consent must come from the facts, not from the plan"));
        }
    }

    /// Whether a call about an object without a record is about one that an operation of the journal created, as far as
    /// the provider tells.
    fn is_of_this_journal(&self, step: &Step, call: &Call) -> bool {
        let cloud_id = match call {
            Call::Update { recorded, stray: true, .. } | Call::Delete { recorded, which: ObjectRole::Stray, .. } => {
                &recorded.cloud_id
            }
            _ => return true,
        };
        let Some(site) = self.facts.sites.get(&step.site) else { return false };
        let objects = || {
            site.observed.iter().filter(|(id, _)| *id == step.resource).filter_map(|(_, seen)| match seen {
                Observed::Present(object) => Some(object),
                _ => None,
            })
        };
        let is_created = |object: &Object| match &object.origin {
            Origin::Untold => true,
            Origin::Unmarked => false,
            origin @ Origin::Operation(_) => {
                let creates = site.unresolved.get(&step.resource);
                objects().filter(|other| other.origin == *origin).count() == 1
                    && creates.is_some_and(|all| all.iter().any(|create| create.may_have_made(object)))
            }
        };
        objects().any(|object| object.cloud_id == *cloud_id && is_created(object))
    }

    /// If this plan replaces the host, the resources behind it are known to be absent.
    fn host_is_made(&self, id: &ResourceId) -> bool {
        let host = self.wanted.get(id).and_then(|wanted| wanted.via.as_ref());
        host.and_then(|host| self.ready(&host.0))
            .is_some_and(|step| matches!(step.node, Node::Call(Call::Create { .. })))
    }

    /// Whether the consent of the plan covers this object. That to dumps covers none that may be the only copy: the
    /// database is outside of their cluster, all of it was observed, and the plan leaves it.
    fn has_consent(&self, recorded: &Recorded) -> bool {
        match self.plan.delete_data {
            DeleteData::Nothing | DeleteData::Lost => false,
            DeleteData::All => true,
            DeleteData::Dumps => self.facts.sites.get(&recorded.site).is_some_and(|site| {
                let part = |one: &Recorded| site.provider.database_part(one);
                let current = site.holdings.values().filter_map(|holding| holding.current.as_ref());
                let mut data = current.filter(|one| site.is_data(one)).peekable();
                let is_dumps = part(recorded) == Some(DatabasePart::Dumps);
                let stays = |one: &Recorded| {
                    let is_seen =
                        |seen: &Observed| matches!(seen, Observed::Present(object) if object.cloud_id == one.cloud_id);
                    site.observed.iter().any(|(id, seen)| *id == one.id && is_seen(seen)) && !self.leaves(&one.id)
                };
                is_dumps
                    && self.facts.purpose == Purpose::Down
                    && data.peek().is_some()
                    && data.all(|one| one.via != recorded.via && stays(one))
            }),
        }
    }

    /// Whether the plan removes or forgets a resource.
    fn leaves(&self, id: &ResourceId) -> bool {
        self.steps.get(id).is_some_and(|steps| steps.iter().any(|step| removes_current(step) || forgets(step)))
    }

    fn holds_data(&self, recorded: &Recorded) -> bool {
        let Some(site) = self.facts.sites.get(&recorded.site) else { return true };
        let precious = site
            .provider
            .kinds()
            .iter()
            .any(|kind| kind.name == recorded.kind.as_str() && kind.data == DataClass::Precious);
        !recorded.tainted && (recorded.protected || (precious && site.protect_data))
    }

    /// At most one step creates, changes or forgets a resource, and at most one removes it.
    fn one_change_each(&mut self) {
        let mut breaches = Vec::new();
        for (id, steps) in &self.steps {
            let ready = steps.iter().filter(|step| makes_ready(step)).count();
            let gone = steps.iter().filter(|step| removes_current(step)).count();
            if ready > 1 || gone > 1 {
                breaches.push((*id).clone());
            }
            let mut removed = BTreeSet::new();
            for call in steps.iter().flat_map(|step| step.node.calls()) {
                if let Call::Delete { recorded, .. } = call
                    && !removed.insert(&recorded.cloud_id)
                {
                    breaches.push((*id).clone());
                }
            }
        }
        breaches.iter().for_each(|id| self.breach(id, "a resource must change at most once"));
    }

    /// A site can be created, changed and recovered while any other is down: its steps wait for no other site. The
    /// locations of other sites follow from their names.
    fn sites_stand_alone(&mut self) {
        let mut breaches = Vec::new();
        for (id, wanted) in &self.wanted {
            for need in needs_of(wanted).filter(|need| need.site() != wanted.site.as_str()) {
                breaches
                    .push(((*id).clone(), format!("it must not depend on `{need}`, which belongs to another site")));
            }
        }
        for step in &self.plan.steps {
            for before in step.after.iter().filter_map(|before| self.plan.steps.get(*before as usize)) {
                if before.resource.site() != step.resource.site() {
                    let law = format!("it must not wait for `{}`, which belongs to another site", before.resource);
                    breaches.push((step.resource.clone(), law));
                }
            }
        }
        breaches.into_iter().for_each(|(id, law)| self.breach(&id, law));
    }

    /// The dependencies of a resource are ready before it is created or changed.
    fn needs_first(&mut self) {
        let mut breaches = Vec::new();
        for (id, wanted) in &self.wanted {
            let Some(step) = self.ready(id).filter(|step| !matches!(step.node, Node::Note(_))) else { continue };
            for need in needs_of(wanted) {
                if let Some(before) = self.ready(need)
                    && !self.waits_for(step, before.id)
                {
                    breaches.push(((*id).clone(), format!("`{need}` must be ready before it is created")));
                }
                let away = self.steps.get(need).is_some_and(|steps| steps.iter().any(|step| removes_current(step)));
                if away && self.ready(need).is_none() {
                    breaches.push(((*id).clone(), format!("`{need}` must not be removed while it is needed")));
                }
                if self.blocked.contains(need) {
                    breaches.push((
                        (*id).clone(),
                        format!("it must not change while `{need}`, which it needs, is blocked"),
                    ));
                }
            }
        }
        breaches.into_iter().for_each(|(id, law)| self.breach(&id, law));
    }

    /// A resource is removed after everything recorded that used it.
    fn dependents_first(&mut self) {
        let mut breaches = Vec::new();
        for (user, holding) in &self.holdings {
            let Some(recorded) = &holding.current else { continue };
            let leaves =
                self.steps.get(user).and_then(|steps| steps.iter().find(|step| removes_current(step) || forgets(step)));
            for need in recorded_needs(recorded) {
                let Some(gone) = self.steps.get(need).and_then(|steps| steps.iter().find(|step| removes_current(step)))
                else {
                    continue;
                };
                let becomes_other = self.ready(need).is_some();
                match leaves {
                    Some(leaves)
                        if leaves.id != gone.id
                            && !decides_late(leaves)
                            && !decides_late(gone)
                            && !self.waits_for(gone, leaves.id) =>
                    {
                        breaches.push((need.clone(), format!("it must be removed after `{user}`, which uses it")));
                    }
                    None if !becomes_other && !self.wanted.contains_key(*user) => {
                        breaches.push((need.clone(), format!("it must not be removed while `{user}` uses it")));
                    }
                    _ => {}
                }
            }
        }
        breaches.into_iter().for_each(|(id, law)| self.breach(&id, law));
    }

    /// In the end every wanted resource exists and every unwanted one is gone, or the plan gives the reason.
    fn ends_as_wanted(&mut self) {
        let unchanged: HashSet<&ResourceId> = self.plan.unchanged.iter().collect();
        let mut reported: HashSet<&str> = self.plan.blocked.iter().map(|blocked| blocked.resource.as_str()).collect();
        reported.extend(self.plan.retained.iter().map(|retained| retained.resource.as_str()));
        reported.extend(self.plan.refusals.iter().map(|problem| problem.place.as_str()));
        let mut breaches = Vec::new();
        for id in self.wanted.keys() {
            if self.ready(id).is_none() && !unchanged.contains(id) && !reported.contains(id.as_str()) {
                breaches.push(((*id).clone(), "a wanted resource must be created, kept, or listed as blocked"));
            }
        }
        for (id, holding) in self.holdings.iter().filter(|(id, _)| !self.wanted.contains_key(**id)) {
            if holding.current.is_some() && !self.leaves(id) && !reported.contains(id.as_str()) {
                breaches.push(((*id).clone(), "an unwanted resource must be removed, forgotten, or listed as kept"));
            }
        }
        breaches.into_iter().for_each(|(id, law)| self.breach(&id, law));
    }

    /// In a gated plan, a gate precedes every removal, except for removals that must precede a creation. Every creation
    /// at a site precedes its gate. Other plans have no gates.
    fn gates(&mut self) {
        let steps = &self.plan.steps;
        let mut gates: HashMap<u32, (&Step, HashSet<u32>, HashSet<u32>)> = HashMap::new();
        let mut breaches = Vec::new();
        let is_gated = self.facts.gated && self.facts.purpose == Purpose::Up;
        for step in steps {
            let Node::Gate(Gate { open, shut }) = &step.node else { continue };
            if !shut.is_empty() {
                breaches.push((step.resource.clone(), "a closed gate must not change anything"));
            }
            if !is_gated {
                breaches.push((step.resource.clone(), "a plan that is not gated must have no gate"));
            }
            gates.insert(step.id, (step, step.after.iter().copied().collect(), open.iter().copied().collect()));
        }
        let early = if is_gated { gated::waited_for_by_makers(steps) } else { BTreeSet::new() };
        for step in steps.iter().filter(|_| is_gated) {
            let own = |before: &u32| gates.get(before).is_some_and(|(gate, ..)| gate.site == step.site);
            let behind = step.after.iter().any(own);
            if gated::removes(step) && !behind && !early.contains(&step.id) {
                breaches.push((step.resource.clone(), "it must be removed only when the gate is open"));
            }
            for (id, (gate, before, open)) in &gates {
                let is_own = gate.site == step.site;
                if is_own && gated::makes(step) && !before.contains(&step.id) && !self.waits_for(gate, step.id) {
                    breaches.push((step.resource.clone(), "it must be created before the gate is measured"));
                }
                if step.after.contains(id) != open.contains(&step.id) {
                    breaches.push((step.resource.clone(), "a gate must list exactly the steps that wait for it"));
                }
            }
        }
        breaches.into_iter().for_each(|(id, law)| self.breach(&id, law));
    }

    fn ready(&self, id: &ResourceId) -> Option<&'a Step> {
        self.steps.get(id)?.iter().find(|step| makes_ready(step)).copied()
    }

    fn waits_for(&self, step: &Step, before: u32) -> bool {
        if step.after.contains(&before) {
            return true;
        }
        let mut seen = BTreeSet::new();
        let mut todo: Vec<u32> = step.after.clone();
        while let Some(id) = todo.pop() {
            if id == before {
                return true;
            }
            // Dependencies have lower numbers, so the search cannot return upward.
            if id > before && seen.insert(id) {
                todo.extend(self.plan.steps.get(id as usize).into_iter().flat_map(|step| &step.after));
            }
        }
        false
    }
}

fn makes_ready(step: &Step) -> bool {
    match &step.node {
        Node::Call(call) => !matches!(call, Call::Delete { .. }),
        Node::OneOf(one) => matches!(one.decides, ChoiceBasis::Difference { .. }),
        Node::Note(note) => !matches!(note, Note::Forget),
        Node::Gate(_) => false,
    }
}

fn removes_current(step: &Step) -> bool {
    step.node.calls().iter().any(|call| matches!(call, Call::Delete { which: ObjectRole::Current, .. }))
}

fn forgets(step: &Step) -> bool {
    matches!(step.node, Node::Note(Note::Forget))
}

/// A step that chooses by outputs of earlier steps cannot also precede those steps.
fn decides_late(step: &Step) -> bool {
    matches!(step.node, Node::OneOf(_))
}
