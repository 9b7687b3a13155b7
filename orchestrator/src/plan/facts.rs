//! The input of planning, and its checks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use textnlp_provider::{
    CloudId, DatabasePart, EnvironmentName, Health, Kind, KindName, Lineage, Object, Observed, OperationId, Problem,
    Problems, Provider, Recorded, ResourceId, SiteName, Wanted,
};

use super::{DeleteData, Purpose};
use crate::state::{Durations, OpenOperation, RecordedObjects, Shortages, UnresolvedCreate};

/// The input of a plan.
#[derive(Clone)]
pub struct Facts {
    /// The environment.
    pub environment: EnvironmentName,
    /// The purpose of the plan.
    pub purpose: Purpose,
    /// The lineage of the deployment; only proposed while `is_new`.
    pub lineage: Lineage,
    /// Whether the environment has no state yet.
    pub is_new: bool,
    /// Which protected data may be deleted.
    pub delete_data: DeleteData,
    /// Whether removals need a gate.
    pub gated: bool,
    /// The wall clock when the providers were read.
    pub now: Timestamp,
    /// The locations: the environment's, and those that only the journal still has.
    pub sites: BTreeMap<SiteName, SiteFacts>,
}

/// What is wanted, recorded and observed at one location.
#[derive(Clone)]
pub struct SiteFacts {
    /// Only its pure functions are used: kinds and differences.
    pub provider: Arc<dyn Provider>,
    /// Whether resources that hold data are protected here.
    pub protect_data: bool,
    /// The wanted resources; ignored if the purpose is to remove everything.
    pub wanted: Vec<Wanted>,
    /// The records.
    pub holdings: BTreeMap<ResourceId, RecordedObjects>,
    /// The observations.
    pub observed: Vec<(ResourceId, Observed)>,
    /// Recorded databases that would be created empty: nothing lies ready to be loaded into them.
    pub unfilled: BTreeSet<ResourceId>,
    /// Operations that are still open.
    pub open: BTreeMap<OperationId, OpenOperation>,
    /// The tokens of creates that ended without a recorded object.
    pub unresolved: BTreeMap<ResourceId, Vec<UnresolvedCreate>>,
    /// Past durations of operations: for estimates, never for the plan.
    pub took: Durations,
    /// What lacked capacity lately: for the order of alternatives, never for the plan.
    pub shortages: Shortages,
}

impl SiteFacts {
    /// Whether an object has only dumps of a database.
    pub(super) fn are_dumps(&self, recorded: &Recorded) -> bool {
        self.provider.database_part(recorded) == Some(DatabasePart::Dumps)
    }

    /// Whether an object is a replica of a database in another region, which has no data that its source lacks.
    pub(super) fn is_copy(&self, recorded: &Recorded) -> bool {
        let kind = self.provider.kinds().iter().find(|kind| kind.name == recorded.kind.as_str());
        let source = kind.and_then(|kind| recorded.spec.get(kind.replica.as_ref()?.source));
        source.is_some_and(|source| !source.is_null())
    }

    /// Whether an object is a part of the database itself, which has to be there where its dumps are deleted alone.
    pub(super) fn is_data(&self, recorded: &Recorded) -> bool {
        self.provider.database_part(recorded) == Some(DatabasePart::Data) && !self.is_copy(recorded)
    }
}

impl Facts {
    /// A digest of the facts about each resource.
    pub fn reads(&self) -> BTreeMap<ResourceId, String> {
        let mut sums: HashMap<&ResourceId, Vec<[u8; 32]>> = HashMap::new();
        let mut add = |id, sum| sums.entry(id).or_insert_with(|| Vec::with_capacity(3)).push(sum);
        for site in self.sites.values() {
            for wanted in site.wanted.iter().filter(|_| self.purpose == Purpose::Up) {
                add(&wanted.id, sum("wanted", wanted));
            }
            for (id, holding) in &site.holdings {
                let old: Vec<&str> = holding.old.iter().map(|old| old.sha256.as_str()).collect();
                add(id, sum("recorded", &(&holding.sha256, old)));
            }
            for (op, open) in &site.open {
                add(&open.intent.operation.resource, sum("open", op));
            }
            for (id, creates) in &site.unresolved {
                add(id, sum("unresolved", creates));
            }
            for (id, observed) in &site.observed {
                let seen = match observed {
                    Observed::Present(object) if object.foreign.is_empty() => sum("present", object),
                    // Objects that controllers create and remove do not make a plan stale: its deletes name those that
                    // they may remove.
                    Observed::Present(object) => {
                        let stays = object.foreign.iter().filter(|foreign| !foreign.swept).cloned().collect();
                        sum("present", &Object { foreign: stays, ..object.clone() })
                    }
                    Observed::Absent => sum("absent", &()),
                    Observed::Unknown(why) => sum("unknown", &why.0),
                };
                add(id, seen);
            }
        }
        let digest = |(id, mut sums): (&ResourceId, Vec<[u8; 32]>)| {
            sums.sort_unstable();
            (id.clone(), hex::encode(Sha256::digest(sums.concat())))
        };
        sums.into_iter().map(digest).collect()
    }
}

fn sum(what: &str, value: &impl Serialize) -> [u8; 32] {
    /// Buffers small writes: hashing is fastest on large blocks.
    struct BufferedHash(Sha256);
    impl std::io::Write for BufferedHash {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hash = std::io::BufWriter::with_capacity(1024, BufferedHash(Sha256::new_with_prefix(what)));
    serde_json::to_writer(&mut hash, value).expect("facts are plain data");
    let BufferedHash(hash) = hash.into_inner().unwrap_or_else(|_| unreachable!("hashing does not fail"));
    hash.finalize().into()
}

/// The index of a resource among all ids, in their order.
pub(super) type ResourceIndex = usize;

/// The facts, indexed and checked; resources are indexed by [`ResourceIndex`].
pub(super) struct World<'a> {
    pub(super) facts: &'a Facts,
    /// Every id that appears anywhere, in order.
    pub(super) ids: Vec<&'a ResourceId>,
    pub(super) rows: Vec<Row<'a>>,
    /// Wanted resources, each after its dependencies.
    pub(super) order: Vec<ResourceIndex>,
    places: HashMap<&'a ResourceId, ResourceIndex>,
    kinds: HashMap<(&'a SiteName, &'static str), &'static Kind>,
}

/// The facts about one resource.
#[derive(Default)]
pub(super) struct Row<'a> {
    pub(super) wanted: Option<&'a Wanted>,
    /// Its dependencies as wanted, in order.
    pub(super) needs: Vec<ResourceIndex>,
    pub(super) holding: Option<(&'a SiteName, &'a RecordedObjects)>,
    pub(super) observed: Option<(&'a SiteName, Vec<&'a Observed>)>,
    pub(super) open: Option<OperationId>,
}

impl<'a> Row<'a> {
    /// The existing objects.
    pub(super) fn present(&self) -> impl Iterator<Item = &'a Object> {
        self.observed.iter().flat_map(|(_, answers)| answers).filter_map(|answer| match answer {
            Observed::Present(object) => Some(object),
            _ => None,
        })
    }

    /// The ids of the objects whose controllers created what is inside of this object.
    pub(super) fn makers_inside(&self, cloud_id: &CloudId) -> BTreeSet<&'a CloudId> {
        let foreign = self.present().filter(|object| object.cloud_id == *cloud_id).flat_map(|object| &object.foreign);
        foreign.filter_map(|foreign| foreign.maker.as_ref()).collect()
    }
}

impl<'a> World<'a> {
    pub(super) fn of(facts: &'a Facts) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let ids = every_id(facts);
        let places: HashMap<&ResourceId, ResourceIndex> =
            ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let rows = ids.iter().map(|_| Row::default()).collect();
        let mut world = Self { facts, ids, rows, order: Vec::new(), places, kinds: HashMap::new() };
        for (name, site) in &facts.sites {
            world.kinds.extend(site.provider.kinds().iter().map(|kind| ((name, kind.name), kind)));
            for one in site.wanted.iter().filter(|_| facts.purpose == Purpose::Up) {
                if one.site != *name {
                    let cause = format!("it is listed under the resources of `{name}` but has site `{}`", one.site);
                    problems.push(Problem::new(one.id.as_str(), cause, "this is a bug in the provider; report it"));
                }
                let needs = world.places_of(needs_of(one));
                let row = &mut world.rows[world.places[&one.id]];
                row.needs = needs;
                if row.wanted.replace(one).is_some() {
                    problems.push(Problem::new(one.id.as_str(), "it is planned twice", "rename one of the components"));
                }
            }
            for (id, holding) in &site.holdings {
                world.rows[world.places[id]].holding = Some((name, holding));
            }
            for (id, seen) in &site.observed {
                world.rows[world.places[id]].observed.get_or_insert_with(|| (name, Vec::new())).1.push(seen);
            }
            for (op, open) in &site.open {
                world.rows[world.places[&open.intent.operation.resource]].open = Some(*op);
            }
        }
        world.check(&mut problems);
        match world.sorted() {
            Ok(order) => world.order = order,
            Err(cycle) => problems.push(cycle),
        }
        if problems.is_empty() { Ok(world) } else { Err(Problems(problems)) }
    }

    pub(super) fn site(&self, name: &SiteName) -> &'a SiteFacts {
        &self.facts.sites[name]
    }

    pub(super) fn kind(&self, site: &'a SiteName, name: &KindName) -> Option<&'static Kind> {
        self.kinds.get(&(site, name.as_str() as &str)).copied()
    }

    /// The kind of a wanted resource.
    pub(super) fn kind_of(&self, wanted: &'a Wanted) -> Option<&'static Kind> {
        self.kind(&wanted.site, &wanted.kind)
    }

    pub(super) fn place(&self, id: &ResourceId) -> Option<ResourceIndex> {
        self.places.get(id).copied()
    }

    /// The indexes of these ids, in order, without duplicates.
    pub(super) fn places_of<'i>(&self, ids: impl Iterator<Item = &'i ResourceId>) -> Vec<ResourceIndex> {
        let mut places: Vec<ResourceIndex> = ids.filter_map(|id| self.place(id)).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// The dependencies of a recorded object, in order.
    pub(super) fn recorded_needs(&self, recorded: &Recorded) -> Vec<ResourceIndex> {
        self.places_of(recorded_needs(recorded))
    }

    fn check(&self, problems: &mut Vec<Problem>) {
        for (row, id) in self.rows.iter().zip(&self.ids) {
            if let Some(wanted) = row.wanted {
                self.check_wanted(wanted, row, problems);
            }
            let Some((site, holding)) = row.holding else { continue };
            for recorded in holding.current.iter().chain(holding.old.iter().map(|old| &old.recorded)) {
                match self.kind(site, &recorded.kind) {
                    None => {
                        let cause = format!(
                            "it is recorded with kind `{}`, which the provider of `{site}` does not know",
                            recorded.kind
                        );
                        problems.push(Problem::new(
                            id.as_str(),
                            cause,
                            "use the version of this program that created it, or a newer one",
                        ));
                    }
                    Some(kind) if recorded.schema > kind.schema => {
                        let (found, known) = (recorded.schema, kind.schema);
                        let cause =
                            format!("its record has version {found} of `{}`; this program supports {known}", kind.name);
                        problems.push(Problem::new(
                            id.as_str(),
                            cause,
                            "use the newer version of this program that wrote it",
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn check_wanted(&self, wanted: &'a Wanted, row: &Row<'a>, problems: &mut Vec<Problem>) {
        let place = wanted.id.as_str();
        if self.kind_of(wanted).is_none() {
            let cause = format!("kind `{}` is unknown to the provider of `{}`", wanted.kind, wanted.site);
            problems.push(Problem::new(place, cause, "use a provider that has it"));
        }
        for need in row.needs.iter().filter(|need| self.rows[**need].wanted.is_none()) {
            let need = self.ids[*need];
            let mut there = self.rows.iter().filter_map(|row| row.wanted).map(|wanted| &wanted.id);
            let near = there.find(|id| id.component() == need.component() || id.site() == need.site());
            let fix = near.map_or("there is no other resource".to_owned(), |near| format!("did you mean `{near}`?"));
            problems.push(Problem::new(place, format!("it needs `{need}`, which is not in the environment"), fix));
        }
    }

    /// Kahn's algorithm over ids in order, so that equal facts give equal plans.
    fn sorted(&self) -> Result<Vec<ResourceIndex>, Problem> {
        let mut waits: Vec<usize> = vec![0; self.rows.len()];
        let mut dependents: Vec<Vec<ResourceIndex>> = vec![Vec::new(); self.rows.len()];
        let wanted: Vec<ResourceIndex> =
            (0..self.rows.len()).filter(|place| self.rows[*place].wanted.is_some()).collect();
        for place in &wanted {
            for need in self.rows[*place].needs.iter().filter(|need| self.rows[**need].wanted.is_some()) {
                dependents[*need].push(*place);
                waits[*place] += 1;
            }
        }
        let mut ready: BinaryHeap<Reverse<ResourceIndex>> =
            wanted.iter().filter(|place| waits[**place] == 0).map(|place| Reverse(*place)).collect();
        let mut order = Vec::with_capacity(wanted.len());
        while let Some(Reverse(place)) = ready.pop() {
            order.push(place);
            for dependent in &dependents[place] {
                waits[*dependent] -= 1;
                if waits[*dependent] == 0 {
                    ready.push(Reverse(*dependent));
                }
            }
        }
        if order.len() == wanted.len() {
            return Ok(order);
        }
        let left: BTreeSet<ResourceIndex> = wanted.into_iter().filter(|place| waits[*place] > 0).collect();
        Err(self.cycle(&left))
    }

    /// Follows dependencies among resources that cannot be ordered until one repeats, and names the whole cycle.
    fn cycle(&self, left: &BTreeSet<ResourceIndex>) -> Problem {
        let mut path: Vec<ResourceIndex> = left.iter().take(1).copied().collect();
        while let Some(last) = path.last() {
            let Some(next) = self.rows[*last].needs.iter().find(|need| left.contains(need)) else { break };
            if let Some(start) = path.iter().position(|place| place == next) {
                path.drain(..start);
                path.push(*next);
                break;
            }
            path.push(*next);
        }
        let names: Vec<String> = path.iter().map(|place| format!("`{}`", self.ids[*place])).collect();
        let place = path.first().map_or_else(String::new, |place| self.ids[*place].to_string());
        Problem::new(
            place,
            format!("resources depend on each other in a cycle: {}", names.join(" needs ")),
            "remove one of these dependencies",
        )
    }
}

/// Every id that is wanted, recorded, observed, in operation or a dependency, in order, without duplicates.
fn every_id(facts: &Facts) -> Vec<&ResourceId> {
    let mut ids: HashSet<&ResourceId> = HashSet::new();
    for site in facts.sites.values() {
        for wanted in site.wanted.iter().filter(|_| facts.purpose == Purpose::Up) {
            ids.insert(&wanted.id);
            ids.extend(needs_of(wanted));
        }
        for (id, holding) in &site.holdings {
            ids.insert(id);
            for recorded in holding.current.iter().chain(holding.old.iter().map(|old| &old.recorded)) {
                ids.extend(recorded_needs(recorded));
            }
        }
        ids.extend(site.observed.iter().map(|(id, _)| id));
        ids.extend(site.open.values().map(|open| &open.intent.operation.resource));
    }
    let mut ids: Vec<&ResourceId> = ids.into_iter().collect();
    ids.sort_unstable();
    ids
}

/// The dependencies of a wanted resource: explicit, its host, and those of references. May have duplicates.
pub(super) fn needs_of(wanted: &Wanted) -> impl Iterator<Item = &ResourceId> {
    let explicit = wanted.needs.iter().map(|need| &need.on).chain(wanted.via.iter().map(|host| &host.0));
    explicit.chain(wanted.spec.outputs_needed().iter().map(|output| &output.resource))
}

/// The dependencies of a recorded resource. May have duplicates.
pub(super) fn recorded_needs(recorded: &Recorded) -> impl Iterator<Item = &ResourceId> {
    recorded.needs.iter().map(|need| &need.on).chain(recorded.via.iter().map(|host| &host.0))
}

/// The reason why an object is degraded, if it is.
pub(super) fn degraded(health: &Health) -> Option<&str> {
    match health {
        Health::Ready => None,
        Health::Degraded(reason) => Some(reason),
    }
}
