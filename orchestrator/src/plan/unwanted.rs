//! What nobody wants any more: removed, forgotten, or kept because of the data in it.

use std::collections::BTreeSet;

use textnlp_provider::{Ownership, Recorded, ResourceId};

use super::decide::{Decided, Deciding, Decision, is_kept, record_of};
use super::facts::recorded_needs;

impl Deciding<'_, '_> {
    /// Everything that is recorded or seen and not wanted.
    pub(super) fn unwanted(&mut self) {
        let mut ids: BTreeSet<ResourceId> = self.world.holdings.keys().map(|id| (*id).clone()).collect();
        ids.extend(self.world.observed.keys().map(|id| (*id).clone()));
        ids.retain(|id| !self.world.wanted.contains_key(id));
        // Hosts come before what is reached through them, as far as records tell.
        let hosts: BTreeSet<ResourceId> = self
            .world
            .holdings
            .values()
            .filter_map(|(_, holding)| holding.current.as_ref()?.via.clone())
            .map(|host| host.0)
            .collect();
        let (first, then): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| hosts.contains(id));
        for id in first.into_iter().chain(then) {
            if let Some(decided) = self.unwanted_one(&id) {
                self.all.insert(id, decided);
            }
        }
        self.keep_what_is_needed();
    }

    fn unwanted_one(&self, id: &ResourceId) -> Option<Decided> {
        let holding = self.world.holdings.get(id);
        let site = holding.map(|(site, _)| *site).or(self.world.observed.get(id).map(|(site, _)| *site))?.clone();
        let current = holding.and_then(|(_, holding)| holding.current.clone());
        let mut decided = Decided {
            what: Decision::Leftovers,
            wanted: None,
            site: site.clone(),
            changes: Vec::new(),
            because: "it is not wanted any more".to_owned(),
            old: holding.map(|(_, holding)| holding.old.clone()).unwrap_or_default(),
            strays: Vec::new(),
        };
        if let Some(Recorded { ownership: Ownership::External(_), .. }) = &current {
            decided.what = Decision::Forget { recorded: current? };
            return Some(decided);
        }
        // What was reached through a host that is gone went with it.
        let host = current.as_ref().and_then(|current| current.via.as_ref()).and_then(|host| self.all.get(&host.0));
        if let (Some(Decision::Forget { .. } | Decision::Create), Some(recorded)) =
            (host.map(|host| &host.what), &current)
        {
            decided.because = "it went with its host".to_owned();
            decided.what = Decision::Forget { recorded: recorded.clone() };
            return Some(decided);
        }
        let sight = match self.sight(id, current.as_ref()) {
            Ok(sight) => sight,
            Err(because) => {
                (decided.what, decided.because) = (Decision::Blocked, because);
                return (current.is_some() || !decided.old.is_empty()).then_some(decided);
            }
        };
        for object in sight.strays {
            if object.lineage == Some(self.world.facts.lineage) {
                let schema = self
                    .world
                    .kind(self.world.facts.sites.get_key_value(&site)?.0, &object.kind)
                    .map_or(1, |kind| kind.schema);
                decided.strays.push(record_of(id, site.clone(), None, schema, &object));
            }
        }
        match (current, sight.seen) {
            (Some(recorded), Some(_)) => {
                decided.what = if is_kept(self.world, &recorded, &site) {
                    Decision::Retain { recorded }
                } else {
                    Decision::Delete { recorded }
                };
            }
            (Some(recorded), None) => {
                decided.because = "it is gone".to_owned();
                decided.what = Decision::Forget { recorded };
            }
            (None, _) if decided.strays.is_empty() && decided.old.is_empty() => return None,
            (None, _) => {}
        }
        Some(decided)
    }

    /// What a kept or unseen resource needs is kept too.
    fn keep_what_is_needed(&mut self) {
        let mut reasons: Vec<(ResourceId, ResourceId)> = Vec::new();
        let mut todo: Vec<ResourceId> = self
            .all
            .iter()
            .filter(|(_, decided)| {
                matches!(decided.what, Decision::Retain { .. } | Decision::Blocked | Decision::Refused { .. })
            })
            .map(|(id, _)| id.clone())
            .collect();
        while let Some(id) = todo.pop() {
            let Some(recorded) = self.world.holdings.get(&id).and_then(|(_, holding)| holding.current.as_ref()) else {
                continue;
            };
            for need in recorded_needs(recorded) {
                if matches!(self.all.get(&need).map(|decided| &decided.what), Some(Decision::Delete { .. }))
                    && !reasons.iter().any(|(kept, _)| *kept == need)
                {
                    reasons.push((need.clone(), id.clone()));
                    todo.push(need);
                }
            }
        }
        for (need, by) in reasons {
            let kept_for_data = matches!(self.all.get(&by).map(|by| &by.what), Some(Decision::Retain { .. }));
            if let Some(decided) = self.all.get_mut(&need)
                && let Decision::Delete { recorded } = &decided.what
            {
                decided.because = format!("`{by}` needs it");
                decided.what =
                    if kept_for_data { Decision::Retain { recorded: recorded.clone() } } else { Decision::Blocked };
            }
        }
    }
}
