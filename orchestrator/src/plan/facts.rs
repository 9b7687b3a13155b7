//! Everything that planning reads, and its checks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest, Sha256};
use textnlp_provider::{
    EnvironmentName, Health, Kind, KindName, Lineage, Observed, OperationId, Problem, Problems, Provider, Recorded,
    ResourceId, SiteName, Wanted,
};

use super::Purpose;
use crate::state::{Holding, Open};

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
}

impl Facts {
    /// A digest of everything that was read of each resource.
    pub fn reads(&self) -> BTreeMap<ResourceId, String> {
        let mut texts: BTreeMap<ResourceId, Vec<String>> = BTreeMap::new();
        let mut add = |id: &ResourceId, text: String| texts.entry(id.clone()).or_default().push(text);
        for site in self.sites.values() {
            for wanted in site.wanted.iter().filter(|_| self.purpose == Purpose::Up) {
                add(&wanted.id, json!({"wanted": wanted}).to_string());
            }
            for (id, holding) in &site.holdings {
                add(id, json!({"current": holding.current, "old": holding.old}).to_string());
            }
            for (id, observed) in &site.observed {
                let text = match observed {
                    Observed::Present(object) => json!({"present": object}),
                    Observed::Absent => json!("absent"),
                    Observed::Unknown(why) => json!({"unknown": why.0}),
                };
                add(id, text.to_string());
            }
        }
        let digest = |mut texts: Vec<String>| {
            texts.sort();
            hex::encode(Sha256::digest(texts.join("\n").as_bytes()))
        };
        texts.into_iter().map(|(id, texts)| (id, digest(texts))).collect()
    }
}

/// The facts, indexed and checked.
pub(super) struct World<'a> {
    pub(super) facts: &'a Facts,
    pub(super) wanted: BTreeMap<&'a ResourceId, &'a Wanted>,
    /// Wanted resources, each after everything it needs.
    pub(super) order: Vec<&'a ResourceId>,
    pub(super) holdings: BTreeMap<&'a ResourceId, (&'a SiteName, &'a Holding)>,
    pub(super) observed: BTreeMap<&'a ResourceId, (&'a SiteName, Vec<&'a Observed>)>,
    pub(super) open: BTreeMap<&'a ResourceId, OperationId>,
    kinds: BTreeMap<(&'a SiteName, &'static str), &'static Kind>,
}

impl<'a> World<'a> {
    pub(super) fn of(facts: &'a Facts) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let mut kinds = BTreeMap::new();
        let (mut wanted, mut holdings) = (BTreeMap::new(), BTreeMap::new());
        let mut observed: BTreeMap<&ResourceId, (&SiteName, Vec<&Observed>)> = BTreeMap::new();
        let mut open = BTreeMap::new();
        for (name, site) in &facts.sites {
            kinds.extend(site.provider.kinds().iter().map(|kind| ((name, kind.name), kind)));
            for one in site.wanted.iter().filter(|_| facts.purpose == Purpose::Up) {
                if one.site != *name {
                    let cause = format!("it stands among the resources of `{name}` and says site `{}`", one.site);
                    problems.push(Problem::new(one.id.as_str(), cause, "this is a mistake of the provider; report it"));
                }
                if wanted.insert(&one.id, one).is_some() {
                    problems.push(Problem::new(
                        one.id.as_str(),
                        "it is wanted twice",
                        "give one of the components another name",
                    ));
                }
            }
            holdings.extend(site.holdings.iter().map(|(id, holding)| (id, (name, holding))));
            for (id, seen) in &site.observed {
                observed.entry(id).or_insert_with(|| (name, Vec::new())).1.push(seen);
            }
            open.extend(site.open.iter().map(|(op, open)| (&open.intent.operation.resource, *op)));
        }
        let mut world = Self { facts, wanted, order: Vec::new(), holdings, observed, open, kinds };
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

    fn check(&self, problems: &mut Vec<Problem>) {
        for wanted in self.wanted.values() {
            let place = wanted.id.as_str();
            if self.kinds.keys().all(|(site, kind)| **site != wanted.site || *kind != wanted.kind.as_str()) {
                let cause = format!("kind `{}` is unknown to the provider of `{}`", wanted.kind, wanted.site);
                problems.push(Problem::new(place, cause, "use a provider that has it"));
            }
            for need in needs_of(wanted).iter().filter(|need| !self.wanted.contains_key(need)) {
                let near = self.wanted.keys().find(|id| id.component() == need.component() || id.site() == need.site());
                let fix = near.map_or("nothing else is wanted".to_owned(), |near| format!("did you mean `{near}`?"));
                problems.push(Problem::new(place, format!("it needs `{need}`, which is not wanted"), fix));
            }
        }
        for (id, (site, holding)) in &self.holdings {
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

    /// Kahn's algorithm over ids in order, so that equal facts give equal plans.
    fn sorted(&self) -> Result<Vec<&'a ResourceId>, Problem> {
        let mut waits: BTreeMap<&ResourceId, usize> = BTreeMap::new();
        let mut dependents: BTreeMap<&ResourceId, Vec<&'a ResourceId>> = BTreeMap::new();
        for (id, wanted) in &self.wanted {
            let needs = needs_of(wanted);
            let there = needs.iter().filter_map(|need| self.wanted.get_key_value(need).map(|(need, _)| *need));
            let mut count = 0;
            for need in there {
                dependents.entry(need).or_default().push(id);
                count += 1;
            }
            waits.insert(id, count);
        }
        let mut ready: BTreeSet<&'a ResourceId> =
            self.wanted.keys().copied().filter(|id| waits.get(id) == Some(&0)).collect();
        let mut order = Vec::with_capacity(self.wanted.len());
        while let Some(id) = ready.pop_first() {
            order.push(id);
            for dependent in dependents.get(id).into_iter().flatten() {
                let left = waits.entry(dependent).or_default();
                *left -= 1;
                if *left == 0 {
                    ready.insert(dependent);
                }
            }
        }
        if order.len() == self.wanted.len() {
            return Ok(order);
        }
        let left: BTreeSet<&ResourceId> = self.wanted.keys().copied().filter(|id| !order.contains(id)).collect();
        Err(self.cycle(&left))
    }

    /// Walks needs among resources that cannot be ordered until one comes again: that is a cycle, named in full.
    fn cycle(&self, left: &BTreeSet<&'a ResourceId>) -> Problem {
        let mut path: Vec<ResourceId> = left.iter().take(1).map(|id| (*id).clone()).collect();
        while let Some(last) = path.last() {
            let needs = self.wanted.get(last).map(|wanted| needs_of(wanted)).unwrap_or_default();
            let Some(next) = needs.into_iter().find(|need| left.contains(need)) else { break };
            if let Some(start) = path.iter().position(|id| *id == next) {
                path.drain(..start);
                path.push(next);
                break;
            }
            path.push(next);
        }
        let names: Vec<String> = path.iter().map(|id| format!("`{id}`")).collect();
        let place = path.first().map_or_else(String::new, |id| id.to_string());
        Problem::new(
            place,
            format!("resources need one another in a circle: {}", names.join(" needs ")),
            "take one of these needs out",
        )
    }
}

/// Everything that a wanted resource needs: said, reached through, or referred to.
pub(super) fn needs_of(wanted: &Wanted) -> BTreeSet<ResourceId> {
    let mut needs: BTreeSet<ResourceId> = wanted.needs.iter().map(|need| need.on.clone()).collect();
    needs.extend(wanted.via.iter().map(|host| host.0.clone()));
    needs.extend(wanted.spec.outputs_needed().into_iter().map(|output| output.resource));
    needs
}

/// Everything that a recorded resource needs.
pub(super) fn recorded_needs(recorded: &Recorded) -> BTreeSet<ResourceId> {
    let mut needs: BTreeSet<ResourceId> = recorded.needs.iter().map(|need| need.on.clone()).collect();
    needs.extend(recorded.via.iter().map(|host| host.0.clone()));
    needs
}

/// The reason of a degraded object, if it is one.
pub(super) fn degraded(health: &Health) -> Option<&str> {
    match health {
        Health::Ready => None,
        Health::Degraded(reason) => Some(reason),
    }
}
