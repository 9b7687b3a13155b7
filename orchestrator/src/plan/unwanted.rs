//! Decides about resources that are no longer wanted: delete, forget, or retain because of their data.

use std::collections::BTreeMap;

use textnlp_provider::{Ownership, Problem, Recorded, SiteName, Spec};

use super::decide::{
    Decided, Decision, DecisionBuilder, is_kept, is_other, may_go_alone, only_copy, record_of, unproven_problem,
};
use super::facts::ResourceIndex;
use super::{DeleteData, Purpose, TAKEN_DOWN};

/// Why `down --delete-dumps` deletes dumps.
const DUMPS_GO: &str = "the operator confirmed the deletion of these dumps; copies in a bucket stay";

impl<'a> DecisionBuilder<'_, 'a> {
    /// Decides about everything that is recorded or observed but not wanted.
    pub(super) fn unwanted(&mut self) {
        let world = self.world;
        let left: Vec<ResourceIndex> =
            (0..world.rows.len()).filter(|place| world.rows[*place].wanted.is_none()).collect();
        // Hosts precede the resources behind them, as far as records show.
        let mut hosts = vec![false; world.rows.len()];
        for row in &world.rows {
            let host = row.holding.and_then(|(_, holding)| holding.current.as_ref()?.via.as_ref());
            host.and_then(|host| world.place(&host.0)).into_iter().for_each(|host| hosts[host] = true);
        }
        let (first, then): (Vec<_>, Vec<_>) = left.into_iter().partition(|place| hosts[*place]);
        for place in first.into_iter().chain(then) {
            self.all[place] = self.unwanted_one(place);
        }
        self.keep_what_is_needed();
    }

    fn unwanted_one(&mut self, place: ResourceIndex) -> Option<Decided<'a>> {
        let row = &self.world.rows[place];
        let site = row.holding.map(|(site, _)| site).or(row.observed.as_ref().map(|(site, _)| *site))?;
        let current = row.holding.and_then(|(_, holding)| holding.current.as_ref());
        let mut decided = Decided {
            what: Decision::Leftovers,
            wanted: None,
            spec: Spec::default(),
            site,
            changes: Vec::new(),
            because: match self.world.facts.purpose {
                Purpose::Up => "it is no longer in the environment".to_owned(),
                Purpose::Down => TAKEN_DOWN.to_owned(),
            },
            old: row.holding.map_or(&[], |(_, holding)| &holding.old),
            strays: Vec::new(),
        };
        if let Some(recorded @ Recorded { ownership: Ownership::External(_), .. }) = current {
            decided.what = Decision::Forget { recorded };
            return Some(decided);
        }
        // Resources behind a host that is gone went with it.
        let host = current.and_then(|current| current.via.as_ref()).and_then(|host| self.decision(&host.0));
        // An `existing:` object is forgotten but continues to exist.
        let is_gone = match host {
            Some(Decision::Forget { recorded }) => !matches!(recorded.ownership, Ownership::External(_)),
            Some(Decision::Create) => true,
            _ => false,
        };
        if let (true, Some(recorded)) = (is_gone, current) {
            decided.because = "it was removed with its host".to_owned();
            decided.what = Decision::Forget { recorded };
            return Some(decided);
        }
        let sight = match self.sight(place, current) {
            Ok(sight) => sight,
            Err(because) => {
                (decided.what, decided.because) = (Decision::Blocked, because);
                return (current.is_some() || !decided.old.is_empty()).then_some(decided);
            }
        };
        if let (Some(recorded), None) = (current, sight.seen)
            && let Some(at) = sight.unproven.iter().position(|object| object.cloud_id == recorded.cloud_id)
            && !is_other(recorded, sight.unproven[at])
        {
            // It may be the recorded object without its labels: without the record it would be left behind.
            let mut others = sight.unproven;
            let resource = self.world.ids[place];
            let (cause, fix) = unproven_problem(resource, others.remove(at));
            decided.what = Decision::Refused { problem: Problem::new(resource.as_str(), cause, fix) };
            self.report_unproven(place, &others);
            return Some(decided);
        }
        self.report_unproven(place, &sight.unproven);
        for object in sight.strays {
            if object.lineage == Some(self.world.facts.lineage) {
                let schema = self.world.kind(site, &object.kind).map_or(1, |kind| kind.schema);
                decided.strays.push(record_of(self.world.ids[place], site.clone(), object.via.clone(), schema, object));
            }
        }
        if let (Some(recorded), Some(_)) = (current, sight.seen)
            && let Some(problem) = self.refused_dumps(recorded, site)
        {
            decided.what = Decision::Refused { problem };
            return Some(decided);
        }
        match (current, sight.seen) {
            (Some(recorded), Some(_)) if is_kept(self.world, recorded, site) => {
                decided.what = Decision::Retain { recorded };
            }
            (Some(recorded), Some(_)) => match &self.guests[place] {
                Some(guests) => (decided.what, decided.because) = (Decision::Blocked, guests.clone()),
                None => {
                    if self.are_confirmed(recorded, site) {
                        decided.because = DUMPS_GO.to_owned();
                    }
                    decided.what = Decision::Delete { recorded };
                }
            },
            (Some(recorded), None) => {
                if is_kept(self.world, recorded, site) {
                    let cause = "it is gone, with the data in it, and its record is removed";
                    let fix = "if its disk is not mounted, mount it first: then the data is kept";
                    self.warnings.push(Problem::warning(recorded.id.as_str(), cause, fix));
                }
                decided.because = "it is gone".to_owned();
                decided.what = Decision::Forget { recorded };
            }
            (None, _) if decided.strays.is_empty() && decided.old.is_empty() => return None,
            (None, _) => {}
        }
        Some(decided)
    }

    /// Whether an object has dumps, and only their deletion was approved.
    fn are_confirmed(&self, recorded: &Recorded, site: &SiteName) -> bool {
        let facts = self.world.facts;
        facts.delete_data == DeleteData::Dumps && facts.sites.get(site).is_some_and(|site| site.are_dumps(recorded))
    }

    /// Why dumps stay although their deletion was approved.
    fn refused_dumps(&self, recorded: &Recorded, site: &SiteName) -> Option<Problem> {
        if !self.are_confirmed(recorded, site) {
            return None;
        }
        let cause = only_copy(self.world, recorded, site)?;
        let fix = "omit `--delete-dumps`; `--delete-data ENV` deletes the database and its dumps";
        Some(Problem::new(recorded.id.as_str(), cause, fix))
    }

    /// Whether a host is kept only for dumps, which `--delete-dumps` deletes: no other object in it holds data.
    fn is_only_for_dumps(&self, host: ResourceIndex, dumps: ResourceIndex) -> bool {
        let in_host = |place: ResourceIndex| {
            let (site, holding) = self.world.rows[place].holding?;
            let recorded = holding.current.as_ref()?;
            (self.world.place(&recorded.via.as_ref()?.0) == Some(host)).then_some((site, recorded))
        };
        let is_removed = |place: ResourceIndex| {
            let decision = self.all[place].as_ref().map(|decided| &decided.what);
            let is_stuck = matches!(decision, Some(Decision::Blocked | Decision::Refused { .. }));
            in_host(place).is_none_or(|(site, recorded)| {
                !is_stuck && (!is_kept(self.world, recorded, site) || may_go_alone(self.world, recorded, site))
            })
        };
        in_host(dumps).is_some_and(|(site, recorded)| may_go_alone(self.world, recorded, site))
            && (0..self.world.rows.len()).all(is_removed)
    }

    /// The existing hosts that would be forgotten although an operation inside them is open, each with its resource: nothing could
    /// finish the operation any more, and what it created would be left behind.
    fn hosts_of_open_operations(&self) -> impl Iterator<Item = (ResourceIndex, ResourceIndex)> {
        let open = self.world.facts.sites.values().flat_map(|site| site.open.values());
        open.filter_map(|open| {
            let op = &open.intent.operation;
            let (host, place) = (self.world.place(&op.via.as_ref()?.0)?, self.world.place(&op.resource)?);
            let decided = self.all[host].as_ref()?;
            matches!(decided.what, Decision::Forget { recorded } if matches!(recorded.ownership, Ownership::External(_)))
                .then_some((host, place))
        })
    }

    /// Retains the dependencies of retained and unreadable resources.
    fn keep_what_is_needed(&mut self) {
        let mut reasons: BTreeMap<ResourceIndex, ResourceIndex> = self.hosts_of_open_operations().collect();
        let is_kept = |decided: &Decided<'a>| {
            matches!(decided.what, Decision::Retain { .. } | Decision::Blocked | Decision::Refused { .. })
        };
        let mut todo: Vec<ResourceIndex> =
            (0..self.all.len()).filter(|place| self.all[*place].as_ref().is_some_and(is_kept)).collect();
        while let Some(place) = todo.pop() {
            let holding = self.world.rows[place].holding;
            let Some(recorded) = holding.and_then(|(_, holding)| holding.current.as_ref()) else { continue };
            for need in self.world.recorded_needs(recorded) {
                let is_host = recorded.via.as_ref().is_some_and(|host| self.world.place(&host.0) == Some(need));
                let is_removed = match self.all[need].as_ref().map(|decided| &decided.what) {
                    Some(Decision::Delete { .. }) => true,
                    // Without its record, what is in it could not be reached any more.
                    Some(Decision::Forget { recorded }) => {
                        is_host && matches!(recorded.ownership, Ownership::External(_))
                    }
                    _ => false,
                };
                if is_removed && !reasons.contains_key(&need) {
                    reasons.insert(need, place);
                    todo.push(need);
                }
            }
        }
        for (need, by) in &reasons {
            // A retained resource may itself be retained for another; the reason names the one that holds data or
            // cannot be read.
            let mut first = *by;
            while let Some(next) = reasons.get(&first) {
                first = *next;
            }
            let for_data = matches!(&self.all[first], Some(Decided { what: Decision::Retain { .. }, .. }));
            let mut because = format!("`{}` needs it", self.world.ids[*by]);
            // An `existing:` host is not deleted.
            let is_deleted = matches!(&self.all[*need], Some(Decided { what: Decision::Delete { .. }, .. }));
            if for_data && is_deleted && self.is_only_for_dumps(*need, first) {
                because.push_str("; `down --delete-dumps ENV` deletes both, and keeps the database");
            }
            if let Some(decided) = &mut self.all[*need]
                && let Decision::Delete { recorded } | Decision::Forget { recorded } = decided.what
            {
                decided.because = because;
                decided.what = if for_data { Decision::Retain { recorded } } else { Decision::Blocked };
            }
        }
    }
}
