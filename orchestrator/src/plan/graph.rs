//! Combines all decisions into a graph of steps.
//!
//! A resource is created after its dependencies, and removed after its dependents are gone or no longer use it. Edges
//! that only make a change gentler (rolling replicas, detaching before a removal) are omitted where they would close a
//! cycle.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use textnlp_provider::{
    CloudId, FieldChange, Object, Ownership, Problem, Problems, Recorded, ReplaceOrder, SiteName, Wanted,
};

use super::decide::{Decided, Decision, Decisions, is_kept, may_go_alone, sorted_needs};
use super::facts::{ResourceIndex, World};
use super::{
    Alternative, Blocked, Branch, Call, Choice, ChoiceBasis, DeleteData, FORMAT, Facts, Node, Note, ObjectRole, Plan,
    Purpose, Retained, Step, Summary, gated,
};

/// The steps of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    /// The object in use is deleted.
    Gone,
    /// The resource becomes ready.
    Ready,
    /// The replaced object is deleted.
    Replaced,
    /// An object that an earlier run replaced is deleted.
    Old(u32),
    /// An unrecorded object is deleted.
    Stray(u32),
}

type Key = (ResourceIndex, Slot);

struct Draft {
    node: Node,
    changes: Vec<FieldChange>,
    because: String,
    after: BTreeSet<Key>,
}

struct Graph<'w, 'a> {
    world: &'w World<'a>,
    decisions: &'w Decisions<'a>,
    drafts: BTreeMap<Key, Draft>,
    refusals: Vec<Problem>,
    retained: Vec<Retained>,
    blocked: Vec<Blocked>,
    unchanged: Vec<ResourceIndex>,
    summary: Summary,
}

/// The plan, without the digests of the facts.
pub(super) fn assemble(world: &World<'_>, mut decisions: Decisions<'_>) -> Result<Plan, Problems> {
    // A new object beside the old one may be impossible: a dependency may need the old one to be deleted first. The
    // order is then reversed.
    while let Some(index) = Graph::of(world, &decisions).impossible_beside() {
        match decisions.all[index].as_mut().map(|decided| &mut decided.what) {
            Some(Decision::Replace { order, .. } | Decision::Maybe { order, .. }) => *order = ReplaceOrder::DeleteFirst,
            _ => break,
        }
    }
    let mut graph = Graph::of(world, &decisions);
    graph.gentle_edges();
    let outliving = graph.outliving();
    let mut steps = graph.numbered()?;
    let Graph { mut refusals, retained, blocked, unchanged, summary, .. } = graph;
    let facts = world.facts;
    refusals.extend(without_dumps(facts));
    let kept_hosts = hosts_kept_without_dumps(world, &decisions);
    let mut warnings = decisions.warnings;
    warnings.extend(outliving);
    warnings.extend(kept_hosts);
    if facts.gated && facts.purpose == Purpose::Up {
        steps = gated::behind_gates(steps, &mut warnings);
    }
    warnings.extend(interruptions(facts, &steps));
    for (id, row) in world.ids.iter().zip(&world.rows) {
        let Some(op) = row.open else { continue };
        let cause = format!("operation {op} was started and has not finished");
        warnings.push(Problem::warning(id.as_str(), cause, "the next `up` or `down` finishes it first"));
    }
    Ok(Plan {
        format: FORMAT,
        environment: facts.environment.clone(),
        purpose: facts.purpose,
        lineage: (!facts.is_new).then_some(facts.lineage),
        delete_data: facts.delete_data,
        steps,
        unchanged: unchanged.into_iter().map(|index| world.ids[index].clone()).collect(),
        blocked,
        retained,
        refusals,
        warnings,
        summary,
        reads: BTreeMap::new(),
    })
}

/// A consent to the deletion of dumps where there are none: it would do nothing.
fn without_dumps(facts: &Facts) -> Option<Problem> {
    let has_dumps = facts.sites.values().any(|site| {
        site.holdings.values().filter_map(|holding| holding.current.as_ref()).any(|one| site.are_dumps(one))
    });
    let is_refused = facts.delete_data == DeleteData::Dumps && !has_dumps;
    let cause = "no volume with dumps in a cluster is recorded: there is nothing that it would delete";
    is_refused.then(|| Problem::new("--delete-dumps", cause, "omit `--delete-dumps`"))
}

/// Clusters that are kept although their dumps are deleted, because other data is in them.
fn hosts_kept_without_dumps(world: &World<'_>, decisions: &Decisions<'_>) -> Vec<Problem> {
    let facts = world.facts;
    if facts.delete_data != DeleteData::Dumps {
        return Vec::new();
    }
    let hosts: BTreeSet<ResourceIndex> = world
        .rows
        .iter()
        .filter_map(|row| {
            let (site, holding) = row.holding?;
            let dumps = holding.current.as_ref().filter(|one| facts.sites[site].are_dumps(one))?;
            world.place(&dumps.via.as_ref()?.0)
        })
        .collect();
    let warning = |host: ResourceIndex| {
        let decided = decisions.all[host].as_ref()?;
        let Decision::Retain { recorded } = &decided.what else { return None };
        let cause = format!("it is kept although its dumps are deleted: {}", decided.because);
        let fix = "`--delete-data ENV` deletes all data, and with it the cluster; until then, its cost goes on";
        (recorded.ownership == Ownership::Ours).then(|| Problem::warning(world.ids[host].as_str(), cause, fix))
    };
    hosts.into_iter().filter_map(warning).collect()
}

/// Warnings about changes that interrupt the requests of clients.
fn interruptions(facts: &Facts, steps: &[Step]) -> Vec<Problem> {
    let of_step = |step: &Step| {
        let site = facts.sites.get(&step.site)?;
        step.node.calls().into_iter().find_map(|call| match call {
            Call::Update { wanted, .. } => site.provider.interruption(wanted, &step.changes, &site.wanted),
            Call::Create { .. } | Call::Delete { .. } => None,
        })
    };
    steps.iter().filter_map(of_step).collect()
}

impl<'w, 'a> Graph<'w, 'a> {
    /// The steps, with the mandatory edges.
    fn of(world: &'w World<'a>, decisions: &'w Decisions<'a>) -> Self {
        let mut graph = Self {
            world,
            decisions,
            drafts: BTreeMap::new(),
            refusals: Vec::new(),
            retained: Vec::new(),
            blocked: Vec::new(),
            unchanged: Vec::new(),
            summary: Summary::default(),
        };
        for (index, decided) in decisions.all.iter().enumerate() {
            decided.iter().for_each(|decided| graph.steps_of(index, decided));
        }
        graph.wait_for_needs();
        graph.go_after_dependents();
        graph.go_after_makers();
        graph
    }

    /// The first resource in a cycle whose replacement creates the new object before it deletes the old one.
    fn impossible_beside(&self) -> Option<ResourceIndex> {
        if !self.drafts.keys().any(|(_, slot)| *slot == Slot::Replaced) {
            return None;
        }
        self.stuck().into_iter().find(|(_, slot)| *slot == Slot::Replaced).map(|(index, _)| index)
    }

    fn steps_of(&mut self, index: ResourceIndex, decided: &Decided<'a>) {
        let ready = (index, Slot::Ready);
        match &decided.what {
            Decision::Same => {
                self.unchanged.push(index);
                self.summary.unchanged += 1;
            }
            Decision::Note(note) => {
                self.unchanged.push(index);
                self.summary.unchanged += 1;
                self.add(ready, Node::Note(note.clone()), decided);
            }
            Decision::Return { back, old, instead } => {
                self.summary.replace += 1;
                let note = Note::Return { recorded: back.clone(), old: old.sha256.clone() };
                self.add(ready, Node::Note(note), decided);
                self.add((index, Slot::Replaced), Node::Call(self.delete(index, instead, ObjectRole::Old)), decided);
                self.after((index, Slot::Replaced), ready);
            }
            Decision::Create => {
                self.summary.create += 1;
                self.add(ready, Node::Call(create(decided, false)), decided);
            }
            Decision::Update { recorded, seen, stray } => {
                self.summary.update += 1;
                self.add(ready, Node::Call(update(decided, recorded, seen, *stray)), decided);
            }
            Decision::Replace { recorded, order: ReplaceOrder::DeleteFirst, stray } => {
                self.summary.replace += 1;
                self.add((index, Slot::Gone), Node::Call(self.delete(index, recorded, current(*stray))), decided);
                self.add(ready, Node::Call(create(decided, false)), decided);
                self.after(ready, (index, Slot::Gone));
            }
            Decision::Replace { recorded, order: ReplaceOrder::CreateFirst, .. } => {
                self.summary.replace += 1;
                self.add(ready, Node::Call(create(decided, true)), decided);
                self.add((index, Slot::Replaced), Node::Call(self.delete(index, recorded, ObjectRole::Old)), decided);
                self.after((index, Slot::Replaced), ready);
            }
            Decision::Maybe { .. } => self.maybe(index, decided),
            Decision::Delete { recorded } => {
                self.summary.delete += 1;
                self.add((index, Slot::Gone), Node::Call(self.delete(index, recorded, ObjectRole::Current)), decided);
            }
            Decision::Forget { .. } => self.add((index, Slot::Gone), Node::Note(Note::Forget), decided),
            Decision::Retain { recorded } => self.retain(index, recorded, &decided.because),
            Decision::Leftovers => self.summary.delete += 1,
            Decision::Blocked => {
                let resource = self.world.ids[index].clone();
                self.blocked.push(Blocked { resource, because: decided.because.clone() });
            }
            Decision::Refused { problem } => self.refusals.push(problem.clone()),
        }
        self.leftovers(index, decided);
    }

    fn retain(&mut self, index: ResourceIndex, recorded: &Recorded, because: &str) {
        let holds = is_kept(self.world, recorded, &recorded.site);
        let because = match holds {
            true if may_go_alone(self.world, recorded, &recorded.site) => {
                "it holds dumps; `down --delete-dumps ENV` deletes them, and keeps the database"
            }
            true => "it holds data",
            false => because,
        };
        let because = because.to_owned();
        let resource = self.world.ids[index].clone();
        self.retained.push(Retained { resource, kind: recorded.kind.clone(), because });
    }

    /// Adds the removal of unrecorded objects and of those that an earlier run replaced.
    fn leftovers(&mut self, index: ResourceIndex, decided: &Decided<'a>) {
        if matches!(decided.what, Decision::Blocked | Decision::Refused { .. }) {
            return;
        }
        let old = decided.old.iter().map(|old| (&old.recorded, ObjectRole::Old));
        let strays = decided.strays.iter().map(|stray| (stray, ObjectRole::Stray));
        let returned = match &decided.what {
            Decision::Return { old, .. } => Some(&old.recorded.cloud_id),
            _ => None,
        };
        for (number, (recorded, which)) in (0..).zip(old.chain(strays)) {
            if returned == Some(&recorded.cloud_id) {
                continue;
            }
            if is_kept(self.world, recorded, decided.site) {
                let (resource, kind) = (self.world.ids[index].clone(), recorded.kind.clone());
                let because = match which {
                    ObjectRole::Stray => format!("`{}` is not in the state and holds data", recorded.cloud_id),
                    _ => "it holds data".to_owned(),
                };
                self.retained.push(Retained { resource, kind, because });
                continue;
            }
            if let Some(because) = self.guest(index, recorded) {
                let resource = self.world.ids[index].clone();
                self.retained.push(Retained { resource, kind: recorded.kind.clone(), because });
                continue;
            }
            let (slot, because) = match which {
                ObjectRole::Old => (Slot::Old(number), "it was replaced".to_owned()),
                _ => {
                    let id = &recorded.cloud_id;
                    (Slot::Stray(number), format!("`{id}` belongs to this deployment and is not in the state"))
                }
            };
            let (node, changes) = (Node::Call(self.delete(index, recorded, which)), Vec::new());
            self.drafts.insert((index, slot), Draft { node, changes, because, after: BTreeSet::new() });
        }
    }

    /// The external contents of a replaced or unrecorded object.
    fn guest(&self, index: ResourceIndex, recorded: &Recorded) -> Option<String> {
        let object = self.world.rows[index].present().find(|object| object.cloud_id == recorded.cloud_id)?;
        let guest = object.foreign.iter().find(|foreign| foreign.is_in_the_way())?;
        Some(format!("`{}` ({}) is inside it and was not created by this deployment", guest.cloud_id, guest.what))
    }

    fn maybe(&mut self, index: ResourceIndex, decided: &Decided<'a>) {
        let Decision::Maybe { recorded, seen, order, least, most, stray } = &decided.what else { return };
        match least {
            Branch::Nothing => self.summary.possible += 1,
            Branch::Update => self.summary.update += 1,
            Branch::Replace => self.summary.replace += 1,
        }
        let calls = |branch| match branch {
            Branch::Nothing => Vec::new(),
            Branch::Update => vec![update(decided, recorded, seen, *stray)],
            Branch::Replace if *order == ReplaceOrder::CreateFirst => vec![create(decided, true)],
            Branch::Replace => vec![self.delete(index, recorded, current(*stray)), create(decided, false)],
        };
        let branches = [Branch::Nothing, Branch::Update, Branch::Replace]
            .into_iter()
            .filter(|branch| (least..=most).contains(&branch));
        let alternatives = branches.map(|branch| Alternative { branch, calls: calls(branch) }).collect();
        let decides = ChoiceBasis::Difference {
            wanted: Box::new(wanted(decided)),
            recorded: Box::new(recorded.as_ref().clone()),
            seen: Box::new((*seen).clone()),
        };
        let ready = (index, Slot::Ready);
        self.add(ready, Node::OneOf(Choice { decides, alternatives }), decided);
        if *most == Branch::Replace && *order == ReplaceOrder::CreateFirst {
            let replace =
                Alternative { branch: Branch::Replace, calls: vec![self.delete(index, recorded, ObjectRole::Old)] };
            let alternatives = [*least, Branch::Update]
                .into_iter()
                .filter(|branch| *branch < Branch::Replace)
                .collect::<BTreeSet<_>>();
            let mut alternatives: Vec<_> =
                alternatives.into_iter().map(|branch| Alternative { branch, calls: Vec::new() }).collect();
            alternatives.push(replace);
            // The number of the deciding step is set when steps are numbered.
            let node = Node::OneOf(Choice { decides: ChoiceBasis::As(u32::MAX), alternatives });
            self.add((index, Slot::Replaced), node, decided);
            self.after((index, Slot::Replaced), ready);
        }
    }

    /// A delete, with the objects of controllers inside of the object that it deletes too: no others.
    fn delete(&self, index: ResourceIndex, recorded: &Recorded, which: ObjectRole) -> Call {
        let seen = self.world.rows[index].present().find(|object| object.cloud_id == recorded.cloud_id);
        let created_by = seen.and_then(|seen| seen.origin.operation()).filter(|_| which == ObjectRole::Stray).cloned();
        let foreign = seen.iter().flat_map(|seen| &seen.foreign).filter(|foreign| foreign.swept);
        let sweeps = foreign.map(|foreign| foreign.cloud_id.clone()).collect();
        Call::Delete { recorded: Box::new(recorded.clone()), which, created_by, sweeps }
    }

    /// Warnings about what outlives the objects that are deleted, with its ids.
    fn outliving(&self) -> Vec<Problem> {
        let mut warnings = Vec::new();
        for ((index, _), draft) in &self.drafts {
            for call in draft.node.calls() {
                let Call::Delete { recorded, .. } = call else { continue };
                let seen = self.world.rows[*index].present().find(|object| object.cloud_id == recorded.cloud_id);
                for foreign in seen.iter().flat_map(|seen| &seen.foreign).filter(|foreign| foreign.outlives) {
                    let cause =
                        format!("the {} `{}`, which its controllers created, is kept", foreign.what, foreign.cloud_id);
                    let fix = "it costs money until it is deleted: do so once nothing needs it";
                    warnings.push(Problem::warning(self.world.ids[*index].as_str(), cause, fix));
                }
            }
        }
        warnings
    }

    fn add(&mut self, key: Key, node: Node, decided: &Decided<'a>) {
        let main = key.1 == Slot::Ready;
        let changes = if main { decided.changes.clone() } else { Vec::new() };
        self.drafts.insert(key, Draft { node, changes, because: decided.because.clone(), after: BTreeSet::new() });
    }

    /// Adds an edge: `key` waits for `before`, if both exist.
    fn after(&mut self, key: Key, before: Key) {
        if key != before
            && self.drafts.contains_key(&before)
            && let Some(draft) = self.drafts.get_mut(&key)
        {
            draft.after.insert(before);
        }
    }

    fn wait_for_needs(&mut self) {
        let world = self.world;
        for (index, row) in world.rows.iter().enumerate().filter(|(_, row)| row.wanted.is_some()) {
            for need in &row.needs {
                self.after((index, Slot::Ready), (*need, Slot::Ready));
            }
        }
    }

    /// A removal waits for everything that was inside of it or used it.
    fn go_after_dependents(&mut self) {
        let going: Vec<Key> = self.drafts.keys().filter(|(_, slot)| *slot != Slot::Ready).copied().collect();
        if going.is_empty() {
            return;
        }
        let mut users: Vec<BTreeSet<ResourceIndex>> = vec![BTreeSet::new(); self.world.rows.len()];
        for (index, row) in self.world.rows.iter().enumerate() {
            let Some((_, holding)) = row.holding else { continue };
            for recorded in holding.current.iter().chain(holding.old.iter().map(|old| &old.recorded)) {
                for need in self.world.recorded_needs(recorded) {
                    users[need].insert(index);
                }
            }
        }
        // An unrecorded object counts where it was observed.
        let mut strays: Vec<(ResourceIndex, Key)> = Vec::new();
        for (index, decided) in self.decisions.all.iter().enumerate() {
            let Some(decided) = decided else { continue };
            for (number, stray) in (decided.old.len() as u32..).zip(&decided.strays) {
                let needs = self.world.recorded_needs(stray);
                strays.extend(needs.into_iter().map(|need| (need, (index, Slot::Stray(number)))));
            }
        }
        for key in going {
            for (_, stray) in strays.iter().filter(|(need, _)| *need == key.0) {
                self.after(key, *stray);
            }
            for user in &users[key.0] {
                let gone = [(*user, Slot::Gone), (*user, Slot::Replaced)];
                for before in gone.into_iter().chain((0..self.olds(*user)).map(|number| (*user, Slot::Old(number)))) {
                    self.after(key, before);
                }
            }
        }
    }

    /// What contains objects that another resource's controllers created is removed after that resource, or they would
    /// be created again.
    fn go_after_makers(&mut self) {
        let going = |(key, draft): (&Key, &Draft)| match &draft.node {
            Node::Call(Call::Delete { recorded, .. }) => Some((*key, recorded.cloud_id.clone(), recorded.site.clone())),
            _ => None,
        };
        let going: Vec<(Key, CloudId, SiteName)> = self.drafts.iter().filter_map(going).collect();
        for (key, cloud_id, site) in &going {
            let makers = self.world.rows[key.0].makers_inside(cloud_id);
            if makers.is_empty() {
                continue;
            }
            for (maker, ..) in going.iter().filter(|(_, maker, at)| at == site && makers.contains(maker)) {
                // A resource that is replaced beside the old object can be deleted first instead. Any other may be
                // inside of what it fills.
                if maker.1 == Slot::Replaced || !self.leads_to(*maker, *key) {
                    self.after(*key, *maker);
                }
            }
        }
    }

    /// The count of a resource's recorded replaced objects.
    fn olds(&self, index: ResourceIndex) -> u32 {
        self.world.rows[index].holding.map_or(0, |(_, holding)| holding.old.len() as u32)
    }

    fn gentle_edges(&mut self) {
        let mut optional = self.leftovers_go_last();
        optional.extend(self.moves_before_old_goes());
        optional.extend(self.lets_go_first());
        optional.extend(self.one_by_one());
        optional.retain(|(key, before)| self.drafts.contains_key(key) && self.drafts.contains_key(before));
        optional.retain(|(key, before)| self.drafts.get(key).is_some_and(|draft| !draft.after.contains(before)));
        for (key, before) in &optional {
            self.after(*key, *before);
        }
        if optional.is_empty() || self.stuck().is_empty() {
            return;
        }
        // Optional edges may conflict: each is added only if it closes no cycle with those before it.
        for (key, before) in &optional {
            if let Some(draft) = self.drafts.get_mut(key) {
                draft.after.remove(before);
            }
        }
        for (key, before) in optional {
            if !self.leads_to(before, key) {
                self.after(key, before);
            }
        }
    }

    /// Objects that an earlier run replaced, or that have no record, are deleted once the resource is ready. This order
    /// is optional: an old object may use something that must be deleted before the new one can be created.
    fn leftovers_go_last(&self) -> Vec<(Key, Key)> {
        let leftovers = self.drafts.keys().filter(|(_, slot)| matches!(slot, Slot::Old(_) | Slot::Stray(_)));
        leftovers.map(|key| (*key, (key.0, Slot::Ready))).collect()
    }

    /// Remaining dependents of a resource switch to the new object before the old one is deleted.
    fn moves_before_old_goes(&self) -> Vec<(Key, Key)> {
        let mut optional = Vec::new();
        let stays = |row: &super::facts::Row<'_>| row.wanted.is_some() && row.holding.is_some();
        for (index, row) in self.world.rows.iter().enumerate().filter(|(_, row)| stays(row)) {
            for need in &row.needs {
                let slots = std::iter::once(Slot::Replaced).chain((0..self.olds(*need)).map(Slot::Old));
                optional.extend(slots.map(|slot| ((*need, slot), (index, Slot::Ready))));
            }
        }
        optional
    }

    /// Remaining users of a deleted resource stop using it first.
    fn lets_go_first(&self) -> Vec<(Key, Key)> {
        let is_removed = |decided: &Option<Decided<'a>>| {
            decided.as_ref().is_some_and(|decided| matches!(decided.what, Decision::Delete { .. }))
        };
        if !self.decisions.all.iter().any(is_removed) {
            return Vec::new();
        }
        let mut optional = Vec::new();
        for (user, row) in self.world.rows.iter().enumerate() {
            let Some(recorded) = row.holding.and_then(|(_, holding)| holding.current.as_ref()) else { continue };
            if self.drafts.contains_key(&(user, Slot::Ready)) {
                let gone = self
                    .world
                    .recorded_needs(recorded)
                    .into_iter()
                    .filter(|need| is_removed(&self.decisions.all[*need]));
                optional.extend(gone.map(|need| ((need, Slot::Gone), (user, Slot::Ready))));
            }
        }
        optional.sort_unstable();
        optional
    }

    /// Replicas change one at a time.
    fn one_by_one(&self) -> Vec<(Key, Key)> {
        let mut groups: BTreeMap<(&str, &str, &str), Vec<ResourceIndex>> = BTreeMap::new();
        for (index, decided) in self.decisions.all.iter().enumerate() {
            let Some(Decided { what, wanted: Some(wanted), .. }) = decided else { continue };
            let changes = matches!(what, Decision::Update { .. } | Decision::Replace { .. } | Decision::Maybe { .. });
            if changes && self.world.kind_of(wanted).is_some_and(|kind| kind.one_by_one) {
                let id = self.world.ids[index];
                groups.entry((id.site(), id.component(), wanted.kind.as_str())).or_default().push(index);
            }
        }
        let begins = |index: ResourceIndex| {
            let gone = (index, Slot::Gone);
            if self.drafts.contains_key(&gone) { gone } else { (index, Slot::Ready) }
        };
        let pairs = groups.values().flat_map(|group| group.windows(2));
        pairs.map(|pair| (begins(pair[1]), (pair[0], Slot::Ready))).collect()
    }

    /// The steps that are in a cycle or wait for one.
    fn stuck(&self) -> BTreeSet<Key> {
        let mut waits: BTreeMap<Key, usize> =
            self.drafts.iter().map(|(key, draft)| (*key, draft.after.len())).collect();
        let dependents = self.dependents();
        let mut ready: Vec<Key> = waits.iter().filter(|(_, count)| **count == 0).map(|(key, _)| *key).collect();
        while let Some(key) = ready.pop() {
            waits.remove(&key);
            for dependent in dependents.get(&key).into_iter().flatten() {
                if let Some(left) = waits.get_mut(dependent) {
                    *left -= 1;
                    if *left == 0 {
                        ready.push(*dependent);
                    }
                }
            }
        }
        waits.into_keys().collect()
    }

    fn dependents(&self) -> BTreeMap<Key, Vec<Key>> {
        let mut dependents: BTreeMap<Key, Vec<Key>> = BTreeMap::new();
        for (key, draft) in &self.drafts {
            for before in &draft.after {
                dependents.entry(*before).or_default().push(*key);
            }
        }
        dependents
    }

    /// Whether `from` waits for `to`, directly or not.
    fn leads_to(&self, from: Key, to: Key) -> bool {
        let mut seen = BTreeSet::new();
        let mut todo = vec![from];
        while let Some(key) = todo.pop() {
            if key == to {
                return true;
            }
            if seen.insert(key) {
                todo.extend(self.drafts.get(&key).into_iter().flat_map(|draft| &draft.after));
            }
        }
        false
    }

    /// Numbers the steps in a topological order.
    fn numbered(&mut self) -> Result<Vec<Step>, Problems> {
        let dependents = self.dependents();
        // Drafts are moved out, so that no step is copied.
        let keys: Vec<Key> = self.drafts.keys().copied().collect();
        let at = |key: &Key| keys.binary_search(key).ok();
        let mut waits: Vec<usize> = self.drafts.values().map(|draft| draft.after.len()).collect();
        let mut drafts: Vec<Option<Draft>> = std::mem::take(&mut self.drafts).into_values().map(Some).collect();
        let mut ready: BinaryHeap<Reverse<usize>> =
            (0..keys.len()).filter(|nth| waits[*nth] == 0).map(Reverse).collect();
        let mut numbers: Vec<Option<u32>> = vec![None; keys.len()];
        let mut steps = Vec::with_capacity(keys.len());
        while let Some(Reverse(nth)) = ready.pop() {
            let key = keys[nth];
            for dependent in dependents.get(&key).into_iter().flatten().filter_map(at) {
                waits[dependent] -= 1;
                if waits[dependent] == 0 {
                    ready.push(Reverse(dependent));
                }
            }
            let id = steps.len() as u32;
            let Some(draft) = drafts[nth].take() else { continue };
            let number = |key: &Key| numbers[at(key)?];
            let mut after: Vec<u32> = draft.after.iter().filter_map(number).collect();
            after.sort_unstable();
            let mut node = draft.node;
            if let Node::OneOf(Choice { decides: ChoiceBasis::As(step), .. }) = &mut node {
                *step = number(&(key.0, Slot::Ready)).unwrap_or(u32::MAX);
            }
            numbers[nth] = Some(id);
            let decided = self.decisions.all[key.0].as_ref().expect("a step comes of a decision");
            let kind = match &node {
                Node::Call(Call::Delete { recorded, .. }) => recorded.kind.clone(),
                _ => kind_of(decided),
            };
            let (resource, site) = (self.world.ids[key.0].clone(), decided.site.clone());
            let (changes, because) = (draft.changes, draft.because);
            steps.push(Step { id, resource, kind, site, node, after, changes, because });
        }
        if steps.len() == keys.len() {
            return Ok(steps);
        }
        let left = keys.iter().zip(&drafts).filter(|(_, draft)| draft.is_some());
        let names: BTreeSet<String> = left.map(|((index, _), _)| format!("`{}`", self.world.ids[*index])).collect();
        let cause =
            format!("removals wait for each other in a cycle: {}", names.into_iter().collect::<Vec<_>>().join(", "));
        Err(Problems(vec![Problem::new("plan", cause, "remove one of them on its own first")]))
    }
}

fn kind_of(decided: &Decided<'_>) -> textnlp_provider::KindName {
    match (&decided.wanted, &decided.what) {
        (Some(wanted), _) => wanted.kind.clone(),
        (None, Decision::Delete { recorded } | Decision::Forget { recorded } | Decision::Retain { recorded }) => {
            recorded.kind.clone()
        }
        (None, _) => {
            let first = decided.old.iter().map(|old| &old.recorded).chain(&decided.strays).next();
            first.map(|recorded| recorded.kind.clone()).expect("a resource with steps is planned, recorded or observed")
        }
    }
}

/// The wanted resource, with known outputs filled in and all dependencies explicit.
fn wanted(decided: &Decided<'_>) -> Wanted {
    let wanted = decided.wanted.expect("only planned resources are created or changed");
    Wanted {
        id: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        via: wanted.via.clone(),
        spec: decided.spec.clone(),
        needs: sorted_needs(wanted),
        ownership: wanted.ownership.clone(),
        protected: wanted.protected,
    }
}

fn create(decided: &Decided<'_>, beside: bool) -> Call {
    Call::Create { wanted: Box::new(wanted(decided)), beside }
}

fn update(decided: &Decided<'_>, recorded: &Recorded, seen: &Object, stray: bool) -> Call {
    let recorded = Box::new(recorded.clone());
    Call::Update { wanted: Box::new(wanted(decided)), recorded, seen: Box::new(seen.clone()), stray }
}

fn current(stray: bool) -> ObjectRole {
    if stray { ObjectRole::Stray } else { ObjectRole::Current }
}
