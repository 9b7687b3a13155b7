//! Everything that planning reads, and its checks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use textnlp_provider::{
    CloudId, EnvironmentName, Health, Kind, KindName, Lineage, Object, Observed, OperationId, Problem, Problems,
    Provider, Recorded, ResourceId, SiteName, Wanted,
};

use super::Purpose;
use crate::state::{Holding, Open, Took};

/// What a plan is made from.
#[derive(Clone)]
pub struct Facts {
    /// Which environment.
    pub environment: EnvironmentName,
    /// What the plan is for.
    pub purpose: Purpose,
    /// Which deployment; only proposed while `is_new`.
    pub lineage: Lineage,
    /// Nothing was ever written for this environment.
    pub is_new: bool,
    /// Whether what holds data may be removed.
    pub delete_data: bool,
    /// Whether what is replaced or no longer wanted goes only through a gate.
    pub gated: bool,
    /// The wall clock when the providers were asked.
    pub now: Timestamp,
    /// The places: those of the environment, and those that only the journal still knows.
    pub sites: BTreeMap<SiteName, SiteFacts>,
}

/// What is wanted, recorded and observed at one place.
#[derive(Clone)]
pub struct SiteFacts {
    /// Only its pure parts are asked: kinds and differences.
    pub provider: Arc<dyn Provider>,
    /// Whether kinds that hold data are protected here.
    pub protect_data: bool,
    /// What should be there. Planning to remove everything leaves it aside.
    pub wanted: Vec<Wanted>,
    /// What we wrote down.
    pub holdings: BTreeMap<ResourceId, Holding>,
    /// What the provider says.
    pub observed: Vec<(ResourceId, Observed)>,
    /// Operations that are still open.
    pub open: BTreeMap<OperationId, Open>,
    /// How long operations took here: for an estimate, never for the plan.
    pub took: Took,
}

impl Facts {
    /// A digest of everything that was read of each resource.
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
            for (id, observed) in &site.observed {
                let seen = match observed {
                    Observed::Present(object) if object.foreign.is_empty() => sum("present", object),
                    // What controllers make and take away changes no plan.
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
    /// Small pieces are gathered: a hash is fastest on many bytes at once.
    struct Into(Sha256);
    impl std::io::Write for Into {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hash = std::io::BufWriter::with_capacity(1024, Into(Sha256::new_with_prefix(what)));
    serde_json::to_writer(&mut hash, value).expect("facts are plain data");
    let Into(hash) = hash.into_inner().unwrap_or_else(|_| unreachable!("hashing does not fail"));
    hash.finalize().into()
}

/// A resource within one planning: its place among all ids, in their order.
pub(super) type Place = usize;

/// The facts, indexed and checked. Everything about a resource stands at its [`Place`].
pub(super) struct World<'a> {
    pub(super) facts: &'a Facts,
    /// Every id that anybody names, in order.
    pub(super) ids: Vec<&'a ResourceId>,
    pub(super) rows: Vec<Row<'a>>,
    /// Wanted resources, each after everything it needs.
    pub(super) order: Vec<Place>,
    places: HashMap<&'a ResourceId, Place>,
    kinds: HashMap<(&'a SiteName, &'static str), &'static Kind>,
}

/// What the facts say of one resource.
#[derive(Default)]
pub(super) struct Row<'a> {
    pub(super) wanted: Option<&'a Wanted>,
    /// What it needs as wanted, in order.
    pub(super) needs: Vec<Place>,
    pub(super) holding: Option<(&'a SiteName, &'a Holding)>,
    pub(super) observed: Option<(&'a SiteName, Vec<&'a Observed>)>,
    pub(super) open: Option<OperationId>,
}

impl<'a> Row<'a> {
    /// The objects that are there.
    pub(super) fn present(&self) -> impl Iterator<Item = &'a Object> {
        self.observed.iter().flat_map(|(_, answers)| answers).filter_map(|answer| match answer {
            Observed::Present(object) => Some(object),
            _ => None,
        })
    }

    /// Whose controllers made what is inside of one of them.
    pub(super) fn makers_inside(&self, cloud_id: &CloudId) -> BTreeSet<&'a CloudId> {
        let foreign = self.present().filter(|object| object.cloud_id == *cloud_id).flat_map(|object| &object.foreign);
        foreign.filter_map(|foreign| foreign.maker.as_ref()).collect()
    }
}

impl<'a> World<'a> {
    pub(super) fn of(facts: &'a Facts) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let ids = every_id(facts);
        let places: HashMap<&ResourceId, Place> = ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let rows = ids.iter().map(|_| Row::default()).collect();
        let mut world = Self { facts, ids, rows, order: Vec::new(), places, kinds: HashMap::new() };
        for (name, site) in &facts.sites {
            world.kinds.extend(site.provider.kinds().iter().map(|kind| ((name, kind.name), kind)));
            for one in site.wanted.iter().filter(|_| facts.purpose == Purpose::Up) {
                if one.site != *name {
                    let cause = format!("it stands among the resources of `{name}` and says site `{}`", one.site);
                    problems.push(Problem::new(one.id.as_str(), cause, "this is a mistake of the provider; report it"));
                }
                let needs = world.places_of(needs_of(one));
                let row = &mut world.rows[world.places[&one.id]];
                row.needs = needs;
                if row.wanted.replace(one).is_some() {
                    problems.push(Problem::new(
                        one.id.as_str(),
                        "it is wanted twice",
                        "give one of the components another name",
                    ));
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

    pub(super) fn place(&self, id: &ResourceId) -> Option<Place> {
        self.places.get(id).copied()
    }

    /// The places of these ids, in order, each once.
    pub(super) fn places_of<'i>(&self, ids: impl Iterator<Item = &'i ResourceId>) -> Vec<Place> {
        let mut places: Vec<Place> = ids.filter_map(|id| self.place(id)).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// What a recorded object needs, in order.
    pub(super) fn recorded_needs(&self, recorded: &Recorded) -> Vec<Place> {
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
                            "it is recorded as `{}`, a kind unknown to the provider of `{site}`",
                            recorded.kind
                        );
                        problems.push(Problem::new(id.as_str(), cause, "use the program that made it, or a newer one"));
                    }
                    Some(kind) if recorded.schema > kind.schema => {
                        let (found, known) = (recorded.schema, kind.schema);
                        let cause =
                            format!("its record has version {found} of `{}`, this program knows {known}", kind.name);
                        problems.push(Problem::new(id.as_str(), cause, "use the newer program that wrote it"));
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
            let fix = near.map_or("nothing else is wanted".to_owned(), |near| format!("did you mean `{near}`?"));
            problems.push(Problem::new(place, format!("it needs `{need}`, which is not wanted"), fix));
        }
    }

    /// Kahn's algorithm over ids in order, so that equal facts give equal plans.
    fn sorted(&self) -> Result<Vec<Place>, Problem> {
        let mut waits: Vec<usize> = vec![0; self.rows.len()];
        let mut dependents: Vec<Vec<Place>> = vec![Vec::new(); self.rows.len()];
        let wanted: Vec<Place> = (0..self.rows.len()).filter(|place| self.rows[*place].wanted.is_some()).collect();
        for place in &wanted {
            for need in self.rows[*place].needs.iter().filter(|need| self.rows[**need].wanted.is_some()) {
                dependents[*need].push(*place);
                waits[*place] += 1;
            }
        }
        let mut ready: BinaryHeap<Reverse<Place>> =
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
        let left: BTreeSet<Place> = wanted.into_iter().filter(|place| waits[*place] > 0).collect();
        Err(self.cycle(&left))
    }

    /// Walks needs among resources that cannot be ordered until one comes again: that is a cycle, named in full.
    fn cycle(&self, left: &BTreeSet<Place>) -> Problem {
        let mut path: Vec<Place> = left.iter().take(1).copied().collect();
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
            format!("resources need one another in a circle: {}", names.join(" needs ")),
            "take one of these needs out",
        )
    }
}

/// Every id that is wanted, recorded, seen, worked on or needed, in order, each once.
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

/// Everything that a wanted resource needs: said, reached through, or referred to. One may come several times.
pub(super) fn needs_of(wanted: &Wanted) -> impl Iterator<Item = &ResourceId> {
    let said = wanted.needs.iter().map(|need| &need.on).chain(wanted.via.iter().map(|host| &host.0));
    said.chain(wanted.spec.outputs_needed().iter().map(|output| &output.resource))
}

/// Everything that a recorded resource needs. One may come several times.
pub(super) fn recorded_needs(recorded: &Recorded) -> impl Iterator<Item = &ResourceId> {
    recorded.needs.iter().map(|need| &need.on).chain(recorded.via.iter().map(|host| &host.0))
}

/// The reason of a degraded object, if it is one.
pub(super) fn degraded(health: &Health) -> Option<&str> {
    match health {
        Health::Ready => None,
        Health::Degraded(reason) => Some(reason),
    }
}
