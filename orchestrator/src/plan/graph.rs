//! All decisions together: which step waits for which.
//!
//! Nothing is made before what it needs, nothing is removed before what needs it is gone or has let go. Edges that only
//! make a change gentler (replicas one after the other, letting go before removal) are left out where they would close a circle.

use std::collections::{BTreeMap, BTreeSet};

use textnlp_provider::{FieldChange, Problem, Problems, Recorded, ReplaceOrder, ResourceId, Wanted};

use super::decide::{Decided, Decision, Decisions, is_kept};
use super::facts::{World, needs_of, recorded_needs};
use super::{
    Alternative, Blocked, Branch, Call, Decides, FORMAT, Node, Note, OneOf, Plan, Retained, Step, Summary, Which,
};

/// Which of a resource's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    /// The object in use goes.
    Gone,
    /// The resource becomes ready.
    Ready,
    /// The object that was replaced goes.
    Replaced,
    /// An object that an earlier run replaced goes.
    Old(u32),
    /// An object that no record mentions goes.
    Stray(u32),
}

type Key = (ResourceId, Slot);

struct Draft {
    node: Node,
    changes: Vec<FieldChange>,
    because: String,
    after: BTreeSet<Key>,
}

struct Graph<'w, 'a> {
    world: &'w World<'a>,
    decisions: &'w Decisions,
    drafts: BTreeMap<Key, Draft>,
    refusals: Vec<Problem>,
    retained: Vec<Retained>,
    blocked: Vec<Blocked>,
    unchanged: Vec<ResourceId>,
    summary: Summary,
}

pub(super) fn assemble(world: &World<'_>, mut decisions: Decisions) -> Result<Plan, Problems> {
    // A new object beside the old one may be impossible: it needs what can only be made when the old one is gone. Then the old
    // one goes first after all.
    while let Some(id) = Graph::of(world, &decisions).impossible_beside() {
        match decisions.all.get_mut(&id).map(|decided| &mut decided.what) {
            Some(Decision::Replace { order, .. } | Decision::Maybe { order, .. }) => *order = ReplaceOrder::DeleteFirst,
            _ => break,
        }
    }
    let mut graph = Graph::of(world, &decisions);
    graph.gentle_edges();
    let steps = graph.numbered()?;
    let Graph { refusals, retained, blocked, unchanged, summary, .. } = graph;
    let facts = world.facts;
    let mut warnings = decisions.warnings.clone();
    for (id, op) in &world.open {
        let cause = format!("operation {op} was begun and has not ended");
        warnings.push(Problem::warning(id.as_str(), cause, "the next `up` or `down` finishes it first"));
    }
    Ok(Plan {
        format: FORMAT,
        environment: facts.environment.clone(),
        purpose: facts.purpose,
        lineage: (!facts.is_new).then_some(facts.lineage),
        delete_data: facts.delete_data,
        steps,
        unchanged,
        blocked,
        retained,
        refusals,
        warnings,
        summary,
        reads: facts.reads(),
    })
}

impl<'w, 'a> Graph<'w, 'a> {
    /// The steps, with the edges that must be.
    fn of(world: &'w World<'a>, decisions: &'w Decisions) -> Self {
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
        for (id, decided) in &decisions.all {
            graph.steps_of(id, decided);
        }
        graph.wait_for_needs();
        graph.go_after_dependents();
        graph
    }

    /// The first resource that is to be replaced by a new one beside it and stands in a circle.
    fn impossible_beside(&self) -> Option<ResourceId> {
        let stuck = self.stuck();
        stuck.into_iter().find(|(_, slot)| *slot == Slot::Replaced).map(|(id, _)| id.clone())
    }

    fn steps_of(&mut self, id: &ResourceId, decided: &Decided) {
        let ready = (id.clone(), Slot::Ready);
        match &decided.what {
            Decision::Same => {
                self.unchanged.push(id.clone());
                self.summary.unchanged += 1;
            }
            Decision::Note(note, _) => {
                self.unchanged.push(id.clone());
                self.summary.unchanged += 1;
                self.add(ready, Node::Note(note.clone()), decided);
            }
            Decision::Create => {
                self.summary.create += 1;
                self.add(ready, Node::Call(create(decided, false)), decided);
            }
            Decision::Update { recorded, seen, stray } => {
                self.summary.update += 1;
                let (wanted, recorded, seen) =
                    (Box::new(wanted(decided)), Box::new(recorded.clone()), Box::new(seen.clone()));
                self.add(ready, Node::Call(Call::Update { wanted, recorded, seen, stray: *stray }), decided);
            }
            Decision::Replace { recorded, order: ReplaceOrder::DeleteFirst, stray } => {
                self.summary.replace += 1;
                self.add((id.clone(), Slot::Gone), Node::Call(delete(recorded, current(*stray))), decided);
                self.add(ready.clone(), Node::Call(create(decided, false)), decided);
                self.after(&ready, (id.clone(), Slot::Gone));
            }
            Decision::Replace { recorded, order: ReplaceOrder::CreateFirst, .. } => {
                self.summary.replace += 1;
                self.add(ready.clone(), Node::Call(create(decided, true)), decided);
                self.add((id.clone(), Slot::Replaced), Node::Call(delete(recorded, Which::Old)), decided);
                self.after(&(id.clone(), Slot::Replaced), ready);
            }
            Decision::Maybe { .. } => self.maybe(id, decided),
            Decision::Delete { recorded } => {
                self.summary.delete += 1;
                self.add((id.clone(), Slot::Gone), Node::Call(delete(recorded, Which::Current)), decided);
            }
            Decision::Forget { .. } => self.add((id.clone(), Slot::Gone), Node::Note(Note::Forget), decided),
            Decision::Retain { recorded } => self.retain(id, recorded, &decided.because, true),
            Decision::Leftovers => self.summary.delete += 1,
            Decision::Blocked => {
                self.blocked.push(Blocked { resource: id.clone(), because: decided.because.clone() });
            }
            Decision::Refused { problem } => self.refusals.push(problem.clone()),
        }
        self.leftovers(id, decided);
    }

    fn retain(&mut self, id: &ResourceId, recorded: &Recorded, because: &str, whole: bool) {
        let holds = is_kept(self.world, recorded, &recorded.site);
        let because = if holds || !whole { "it holds data".to_owned() } else { because.to_owned() };
        self.retained.push(Retained { resource: id.clone(), kind: recorded.kind.clone(), because });
    }

    /// Objects that were replaced by an earlier run, or that no record mentions.
    fn leftovers(&mut self, id: &ResourceId, decided: &Decided) {
        if matches!(decided.what, Decision::Blocked | Decision::Refused { .. }) {
            return;
        }
        let old = decided.old.iter().map(|old| (&old.recorded, Which::Old));
        let strays = decided.strays.iter().map(|stray| (stray, Which::Stray));
        for (number, (recorded, which)) in (0..).zip(old.chain(strays)) {
            if is_kept(self.world, recorded, &decided.site) {
                self.retain(id, recorded, "", false);
                continue;
            }
            let (slot, because) = match which {
                Which::Old => (Slot::Old(number), "it was replaced"),
                _ => (Slot::Stray(number), "it is ours and no record mentions it"),
            };
            let (node, changes, because) = (Node::Call(delete(recorded, which)), Vec::new(), because.to_owned());
            self.drafts.insert((id.clone(), slot), Draft { node, changes, because, after: BTreeSet::new() });
            self.after(&(id.clone(), slot), (id.clone(), Slot::Ready));
        }
    }

    fn maybe(&mut self, id: &ResourceId, decided: &Decided) {
        let Decision::Maybe { recorded, seen, order, least, most, stray } = &decided.what else { return };
        match least {
            Branch::Nothing => self.summary.possible += 1,
            Branch::Update => self.summary.update += 1,
            Branch::Replace => self.summary.replace += 1,
        }
        let wanted = Box::new(wanted(decided));
        let (recorded, seen) = (Box::new(recorded.clone()), Box::new(seen.clone()));
        let calls = |branch| match branch {
            Branch::Nothing => Vec::new(),
            Branch::Update => {
                vec![Call::Update {
                    wanted: wanted.clone(),
                    recorded: recorded.clone(),
                    seen: seen.clone(),
                    stray: *stray,
                }]
            }
            Branch::Replace if *order == ReplaceOrder::CreateFirst => vec![create(decided, true)],
            Branch::Replace => vec![delete(&recorded, current(*stray)), create(decided, false)],
        };
        let branches = [Branch::Nothing, Branch::Update, Branch::Replace]
            .into_iter()
            .filter(|branch| (least..=most).contains(&branch));
        let alternatives = branches.map(|branch| Alternative { branch, calls: calls(branch) }).collect();
        let decides = Decides::Difference { wanted: wanted.clone(), recorded: recorded.clone(), seen: seen.clone() };
        let ready = (id.clone(), Slot::Ready);
        self.add(ready.clone(), Node::OneOf(OneOf { decides, alternatives }), decided);
        if *most == Branch::Replace && *order == ReplaceOrder::CreateFirst {
            let replace = Alternative { branch: Branch::Replace, calls: vec![delete(&recorded, Which::Old)] };
            let alternatives = [*least, Branch::Update]
                .into_iter()
                .filter(|branch| *branch < Branch::Replace)
                .collect::<BTreeSet<_>>();
            let mut alternatives: Vec<_> =
                alternatives.into_iter().map(|branch| Alternative { branch, calls: Vec::new() }).collect();
            alternatives.push(replace);
            // The number of the deciding step is filled in when steps are numbered.
            let node = Node::OneOf(OneOf { decides: Decides::As(u32::MAX), alternatives });
            self.add((id.clone(), Slot::Replaced), node, decided);
            self.after(&(id.clone(), Slot::Replaced), ready);
        }
    }

    fn add(&mut self, key: Key, node: Node, decided: &Decided) {
        let main = key.1 == Slot::Ready;
        let changes = if main { decided.changes.clone() } else { Vec::new() };
        self.drafts.insert(key, Draft { node, changes, because: decided.because.clone(), after: BTreeSet::new() });
    }

    /// `key` waits for `before`, if both are there.
    fn after(&mut self, key: &Key, before: Key) {
        if *key != before
            && self.drafts.contains_key(&before)
            && let Some(draft) = self.drafts.get_mut(key)
        {
            draft.after.insert(before);
        }
    }

    fn wait_for_needs(&mut self) {
        for wanted in self.world.wanted.values() {
            for need in needs_of(wanted) {
                self.after(&(wanted.id.clone(), Slot::Ready), (need, Slot::Ready));
            }
        }
    }

    /// What is removed goes after everything that was in it or used it.
    fn go_after_dependents(&mut self) {
        let mut users: BTreeMap<ResourceId, BTreeSet<ResourceId>> = BTreeMap::new();
        for (id, (_, holding)) in &self.world.holdings {
            for recorded in holding.current.iter().chain(holding.old.iter().map(|old| &old.recorded)) {
                for need in recorded_needs(recorded) {
                    users.entry(need).or_default().insert((*id).clone());
                }
            }
        }
        let going: Vec<Key> = self.drafts.keys().filter(|(_, slot)| *slot != Slot::Ready).cloned().collect();
        for key in &going {
            for user in users.get(&key.0).into_iter().flatten() {
                let olds = self.world.holdings.get(user).map_or(0, |(_, holding)| holding.old.len() as u32);
                let gone = [(user.clone(), Slot::Gone), (user.clone(), Slot::Replaced)];
                for before in gone.into_iter().chain((0..olds).map(|number| (user.clone(), Slot::Old(number)))) {
                    self.after(key, before);
                }
            }
        }
    }

    fn gentle_edges(&mut self) {
        let mut wishes: Vec<(Key, Key)> = Vec::new();
        // Whoever uses a resource and goes on using it has moved to the new object before the old one goes.
        for wanted in self.world.wanted.values().filter(|wanted| self.world.holdings.contains_key(&wanted.id)) {
            for need in needs_of(wanted) {
                let olds = self.world.holdings.get(&need).map_or(0, |(_, holding)| holding.old.len() as u32);
                for slot in std::iter::once(Slot::Replaced).chain((0..olds).map(Slot::Old)) {
                    wishes.push(((need.clone(), slot), (wanted.id.clone(), Slot::Ready)));
                }
            }
        }
        // Whoever used a resource that goes for good lets go of it first.
        for (id, decided) in &self.decisions.all {
            if let Decision::Delete { .. } = decided.what {
                for (user, (_, holding)) in &self.world.holdings {
                    let used = holding.current.as_ref().is_some_and(|recorded| recorded_needs(recorded).contains(id));
                    if used && self.drafts.contains_key(&((*user).clone(), Slot::Ready)) {
                        wishes.push(((id.clone(), Slot::Gone), ((*user).clone(), Slot::Ready)));
                    }
                }
            }
        }
        // Replicas change one after the other.
        let mut groups: BTreeMap<(String, String, String), Vec<&ResourceId>> = BTreeMap::new();
        for (id, decided) in &self.decisions.all {
            let changes =
                matches!(decided.what, Decision::Update { .. } | Decision::Replace { .. } | Decision::Maybe { .. });
            let Some(wanted) = decided.wanted.as_ref().filter(|_| changes) else { continue };
            let site = self.world.facts.sites.get_key_value(&wanted.site).map(|(site, _)| site);
            if site.and_then(|site| self.world.kind(site, &wanted.kind)).is_some_and(|kind| kind.one_by_one) {
                let group = (id.site().to_owned(), id.component().to_owned(), wanted.kind.to_string());
                groups.entry(group).or_default().push(id);
            }
        }
        for pair in groups.values().flat_map(|group| group.windows(2)) {
            let (first, next) = (pair[0].clone(), pair[1].clone());
            let gone = (next.clone(), Slot::Gone);
            let begins = if self.drafts.contains_key(&gone) { gone } else { (next, Slot::Ready) };
            wishes.push((begins, (first, Slot::Ready)));
        }
        wishes.retain(|(key, before)| self.drafts.contains_key(key) && self.drafts.contains_key(before));
        wishes.retain(|(key, before)| self.drafts.get(key).is_some_and(|draft| !draft.after.contains(before)));
        for (key, before) in &wishes {
            self.after(key, before.clone());
        }
        if self.stuck().is_empty() {
            return;
        }
        // One wish contradicts another: each is granted only as far as it fits those before it.
        for (key, before) in &wishes {
            if let Some(draft) = self.drafts.get_mut(key) {
                draft.after.remove(before);
            }
        }
        for (key, before) in wishes {
            if !self.leads_to(&before, &key) {
                self.after(&key, before);
            }
        }
    }

    /// The steps that stand in a circle or wait for one.
    fn stuck(&self) -> BTreeSet<&Key> {
        let mut waits: BTreeMap<&Key, usize> =
            self.drafts.iter().map(|(key, draft)| (key, draft.after.len())).collect();
        let mut dependents: BTreeMap<&Key, Vec<&Key>> = BTreeMap::new();
        for (key, draft) in &self.drafts {
            for before in &draft.after {
                dependents.entry(before).or_default().push(key);
            }
        }
        let mut ready: Vec<&Key> = waits.iter().filter(|(_, count)| **count == 0).map(|(key, _)| *key).collect();
        while let Some(key) = ready.pop() {
            waits.remove(key);
            for dependent in dependents.get(key).into_iter().flatten() {
                if let Some(left) = waits.get_mut(dependent) {
                    *left -= 1;
                    if *left == 0 {
                        ready.push(dependent);
                    }
                }
            }
        }
        waits.into_keys().collect()
    }

    /// Whether `from` waits, directly or not, for `to`.
    fn leads_to(&self, from: &Key, to: &Key) -> bool {
        let mut seen = BTreeSet::new();
        let mut todo = vec![from];
        while let Some(key) = todo.pop() {
            if key == to {
                return true;
            }
            if seen.insert(key) {
                todo.extend(self.drafts.get(key).into_iter().flat_map(|draft| &draft.after));
            }
        }
        false
    }

    /// Numbers the steps in an order in which they could run one by one.
    fn numbered(&mut self) -> Result<Vec<Step>, Problems> {
        let mut waits: BTreeMap<Key, usize> =
            self.drafts.iter().map(|(key, draft)| (key.clone(), draft.after.len())).collect();
        let mut dependents: BTreeMap<Key, Vec<Key>> = BTreeMap::new();
        for (key, draft) in &self.drafts {
            for before in &draft.after {
                dependents.entry(before.clone()).or_default().push(key.clone());
            }
        }
        let mut ready: BTreeSet<Key> =
            waits.iter().filter(|(_, count)| **count == 0).map(|(key, _)| key.clone()).collect();
        let mut numbers: BTreeMap<Key, u32> = BTreeMap::new();
        let mut steps = Vec::with_capacity(self.drafts.len());
        while let Some(key) = ready.pop_first() {
            for dependent in dependents.get(&key).into_iter().flatten() {
                if let Some(left) = waits.get_mut(dependent) {
                    *left -= 1;
                    if *left == 0 {
                        ready.insert(dependent.clone());
                    }
                }
            }
            let id = steps.len() as u32;
            let Some(draft) = self.drafts.remove(&key) else { continue };
            let mut after: Vec<u32> = draft.after.iter().filter_map(|before| numbers.get(before).copied()).collect();
            after.sort_unstable();
            let mut node = draft.node;
            if let Node::OneOf(OneOf { decides: Decides::As(step), .. }) = &mut node {
                *step = numbers.get(&(key.0.clone(), Slot::Ready)).copied().unwrap_or(u32::MAX);
            }
            numbers.insert(key.clone(), id);
            let decided = &self.decisions.all[&key.0];
            let kind = match &node {
                Node::Call(Call::Delete { recorded, .. }) => recorded.kind.clone(),
                _ => kind_of(decided),
            };
            let site = decided.site.clone();
            steps.push(Step {
                id,
                resource: key.0,
                kind,
                site,
                node,
                after,
                changes: draft.changes,
                because: draft.because,
            });
        }
        if self.drafts.is_empty() {
            return Ok(steps);
        }
        let names: BTreeSet<String> = self.drafts.keys().map(|(id, _)| format!("`{id}`")).collect();
        let cause =
            format!("removals wait for one another in a circle: {}", names.into_iter().collect::<Vec<_>>().join(", "));
        Err(Problems(vec![Problem::new("plan", cause, "remove one of them by itself first")]))
    }
}

fn kind_of(decided: &Decided) -> textnlp_provider::KindName {
    match (&decided.wanted, &decided.what) {
        (Some(wanted), _) => wanted.kind.clone(),
        (None, Decision::Delete { recorded } | Decision::Forget { recorded } | Decision::Retain { recorded }) => {
            recorded.kind.clone()
        }
        (None, _) => {
            let first = decided.old.iter().map(|old| &old.recorded).chain(&decided.strays).next();
            first.map(|recorded| recorded.kind.clone()).expect("a resource with steps is wanted, recorded or seen")
        }
    }
}

fn wanted(decided: &Decided) -> Wanted {
    decided.wanted.clone().expect("only wanted resources are made or changed")
}

fn create(decided: &Decided, beside: bool) -> Call {
    Call::Create { wanted: Box::new(wanted(decided)), beside }
}

fn delete(recorded: &Recorded, which: Which) -> Call {
    Call::Delete { recorded: Box::new(recorded.clone()), which }
}

fn current(stray: bool) -> Which {
    if stray { Which::Stray } else { Which::Current }
}
