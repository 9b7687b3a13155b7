//! One resource at a time: what must happen to it.
//!
//! Resources are taken in the order of their needs, so that each knows whether the outputs it refers to are known, will be
//! known after apply, or cannot be known.

use std::collections::{BTreeMap, BTreeSet};

use textnlp_provider::{
    DataClass, Effect, FieldChange, Identity, Kind, Object, Observed, Outputs, Ownership, Problem, Recorded,
    ReplaceOrder, ResourceId, SiteName, Spec, Wanted,
};

use super::facts::{World, degraded, needs_of};
use super::{Branch, Note};
use crate::state::{Old, within};

/// What happens to each resource that is wanted, recorded or seen.
pub(super) struct Decisions {
    pub(super) all: BTreeMap<ResourceId, Decided>,
    pub(super) warnings: Vec<Problem>,
}

/// What happens to one resource.
pub(super) struct Decided {
    pub(super) what: Decision,
    /// As wanted, with the outputs filled in that are known now.
    pub(super) wanted: Option<Wanted>,
    pub(super) site: SiteName,
    pub(super) changes: Vec<FieldChange>,
    pub(super) because: String,
    /// Replaced objects that are still to be removed.
    pub(super) old: Vec<Old>,
    /// Objects of ours that no record mentions.
    pub(super) strays: Vec<Recorded>,
}

pub(super) enum Decision {
    Same,
    Note(Note, Recorded),
    Create,
    Update {
        recorded: Recorded,
        seen: Object,
        stray: bool,
    },
    Replace {
        recorded: Recorded,
        order: ReplaceOrder,
        stray: bool,
    },
    Maybe {
        recorded: Recorded,
        seen: Object,
        order: ReplaceOrder,
        least: Branch,
        most: Branch,
        stray: bool,
    },
    Delete {
        recorded: Recorded,
    },
    Forget {
        recorded: Recorded,
    },
    Retain {
        recorded: Recorded,
    },
    /// Only strays or replaced objects are left of it.
    Leftovers,
    Blocked,
    Refused {
        problem: Problem,
    },
}

/// What can be said of a resource's outputs.
enum Known {
    Now(Outputs),
    /// Known after apply. `last` are those of the record; `fresh`: a new object whose id is not that of the old one.
    After {
        last: Option<Outputs>,
        fresh: bool,
    },
    Never,
}

pub(super) struct Deciding<'w, 'a> {
    pub(super) world: &'w World<'a>,
    known: BTreeMap<ResourceId, Known>,
    pub(super) all: BTreeMap<ResourceId, Decided>,
    warnings: Vec<Problem>,
    /// What others are to be reached through.
    hosts: BTreeSet<ResourceId>,
    /// Hosts through which something is reached that holds data nobody agreed to lose.
    precious_hosts: BTreeSet<ResourceId>,
}

/// What a provider's answers about one resource come to.
pub(super) struct Sight {
    pub(super) seen: Option<Object>,
    pub(super) strays: Vec<Object>,
}

pub(super) fn decide(world: &World<'_>) -> Decisions {
    let recorded = world.holdings.values().filter_map(|(site, holding)| Some((*site, holding.current.as_ref()?)));
    let precious = recorded.filter(|(site, child)| is_kept(world, child, site));
    let precious_hosts = precious.filter_map(|(_, child)| child.via.clone()).map(|host| host.0).collect();
    let hosts = world.wanted.values().filter_map(|wanted| wanted.via.clone()).map(|host| host.0).collect();
    let (known, all, warnings) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let mut deciding = Deciding { world, known, all, warnings, hosts, precious_hosts };
    for id in &world.order {
        let decided = deciding.wanted(world.wanted[*id]);
        deciding.all.insert((*id).clone(), decided);
    }
    deciding.unwanted();
    Decisions { all: deciding.all, warnings: deciding.warnings }
}

impl Deciding<'_, '_> {
    fn wanted(&mut self, wanted: &Wanted) -> Decided {
        let site = wanted.site.clone();
        let holding = self.world.holdings.get(&wanted.id).map(|(_, holding)| *holding);
        let current = holding.and_then(|holding| holding.current.clone());
        let known = wanted.spec.resolve_known(|id| match self.known.get(id) {
            Some(Known::Now(outputs)) => Some(outputs),
            _ => None,
        });
        let partly = Wanted { spec: known, needs: sorted_needs(wanted), ..wanted.clone() };
        let mut decided = Decided {
            what: Decision::Blocked,
            wanted: Some(partly),
            site,
            changes: Vec::new(),
            because: String::new(),
            old: holding.map(|holding| holding.old.clone()).unwrap_or_default(),
            strays: Vec::new(),
        };
        let last = current.as_ref().map(|recorded| recorded.outputs.clone());
        match self.sight(&wanted.id, current.as_ref()) {
            Ok(sight) => self.choose(wanted, current, sight, &mut decided),
            Err(because) => (decided.what, decided.because) = (Decision::Blocked, because),
        }
        self.learn(wanted, &decided, last);
        decided
    }

    /// Remembers what dependents may know of the outputs.
    fn learn(&mut self, wanted: &Wanted, decided: &Decided, last: Option<Outputs>) {
        let token = self.kind(wanted).is_some_and(|kind| kind.identity == Identity::Token);
        let known = match &decided.what {
            Decision::Same => Known::Now(last.unwrap_or_default()),
            Decision::Note(_, recorded) => Known::Now(recorded.outputs.clone()),
            Decision::Create => Known::After { last, fresh: false },
            Decision::Replace { .. } => Known::After { last, fresh: token },
            Decision::Update { recorded, .. } | Decision::Maybe { recorded, .. } => {
                Known::After { last: Some(recorded.outputs.clone()), fresh: false }
            }
            _ => last.map_or(Known::Never, Known::Now),
        };
        self.known.insert(wanted.id.clone(), known);
    }

    fn kind(&self, wanted: &Wanted) -> Option<&'static Kind> {
        let (site, _) = self.world.facts.sites.get_key_value(&wanted.site)?;
        self.world.kind(site, &wanted.kind)
    }

    /// What there is behind a resource, or why nobody can say.
    pub(super) fn sight(&self, id: &ResourceId, current: Option<&Recorded>) -> Result<Sight, String> {
        if let Some(op) = self.world.open.get(id) {
            return Err(format!("operation {op} on it is still open"));
        }
        let wanted = self.world.wanted.get(id);
        let host = wanted.map(|wanted| wanted.via.as_ref()).unwrap_or(current.and_then(|current| current.via.as_ref()));
        if let Some(host) = host {
            match self.all.get(&host.0).map(|decided| &decided.what) {
                // A host that is not there has no children.
                Some(Decision::Create) => return Ok(Sight { seen: None, strays: Vec::new() }),
                Some(Decision::Blocked | Decision::Refused { .. }) => {
                    return Err(format!("it is reached through `{}`, which is blocked itself", host.0));
                }
                _ => {}
            }
        }
        let Some((site, answers)) = self.world.observed.get(id) else {
            return Err("the provider did not say whether it is there".to_owned());
        };
        let mut objects = Vec::new();
        for answer in answers {
            match answer {
                Observed::Present(object) => objects.push((*object).clone()),
                Observed::Absent => {}
                Observed::Unknown(why) => return Err(format!("it could not be seen: {}", why.0)),
            }
        }
        objects.sort_by(|a, b| a.cloud_id.cmp(&b.cloud_id));
        let holding = self.world.holdings.get(id).map(|(_, holding)| *holding);
        let old: BTreeSet<_> =
            holding.iter().flat_map(|holding| &holding.old).map(|old| &old.recorded.cloud_id).collect();
        objects.retain(|object| !old.contains(&object.cloud_id));
        let at = current.and_then(|current| objects.iter().position(|object| object.cloud_id == current.cloud_id));
        let seen = at.map(|at| objects.remove(at));
        if let (Some(current), None, Some(holding)) = (current, &seen, holding) {
            let settles = self.world.kind(site, &current.kind).map(|kind| kind.settles).unwrap_or_default();
            // Not found right after a create is not gone.
            if objects.is_empty() && within(self.world.facts.now, holding.since, settles) {
                return Err("it was made a moment ago and is not visible yet".to_owned());
            }
        }
        Ok(Sight { seen, strays: objects })
    }

    fn choose(&mut self, wanted: &Wanted, current: Option<Recorded>, sight: Sight, decided: &mut Decided) {
        if let Ownership::External(_) = wanted.ownership {
            return self.external(wanted, current, sight, decided);
        }
        let Sight { seen, strays } = sight;
        let stranger = strays.iter().find(|object| !self.is_ours(object, wanted));
        if let Some(object) = stranger.or(seen.as_ref().filter(|seen| !self.is_ours(seen, wanted))) {
            let cause = match object.lineage {
                Some(other) => format!("`{}` belongs to deployment {other}", object.cloud_id),
                None => format!("`{}` is there already and was not made by this deployment", object.cloud_id),
            };
            let problem = Problem::new(
                wanted.id.as_str(),
                cause,
                "give the component another name, or name the object as `existing:`",
            );
            decided.what = Decision::Refused { problem };
            return;
        }
        let mut strays = strays.into_iter().map(|object| self.stray(&wanted.id, wanted, object)).collect::<Vec<_>>();
        match (current, seen) {
            (Some(recorded), Some(seen)) => self.compare(wanted, recorded, seen, false, decided),
            (gone, _) if !strays.is_empty() => {
                // An object of ours that no record mentions: a run died between the call and the record, or the record was lost.
                let (recorded, seen) = strays.remove(0);
                decided.because = if gone.is_some() {
                    "the recorded object is gone, another one of ours is there".to_owned()
                } else {
                    "it is ours and was not recorded".to_owned()
                };
                self.compare(wanted, recorded, seen, true, decided);
            }
            (Some(_), None) => {
                decided.because = "it is gone".to_owned();
                decided.what = Decision::Create;
            }
            (None, _) => decided.what = Decision::Create,
        }
        decided.strays = strays.into_iter().map(|(recorded, _)| recorded).collect();
        self.wait_for_needs(wanted, decided);
    }

    /// Whether an object may be treated as ours: it carries our lineage, or it is a part, which can carry none, of a parent of ours.
    fn is_ours(&self, object: &Object, wanted: &Wanted) -> bool {
        let part = self.kind(wanted).is_some_and(|kind| kind.identity == Identity::Part);
        object.lineage.map_or(part, |lineage| lineage == self.world.facts.lineage)
    }

    fn stray(&self, id: &ResourceId, wanted: &Wanted, object: Object) -> (Recorded, Object) {
        let (site, schema) = (wanted.site.clone(), self.kind(wanted).map_or(1, |kind| kind.schema));
        let via = wanted.via.clone();
        (record_of(id, site, via, schema, &object), object)
    }

    fn external(&mut self, wanted: &Wanted, current: Option<Recorded>, sight: Sight, decided: &mut Decided) {
        let Some(object) = sight.seen.or(sight.strays.into_iter().next()) else {
            let Ownership::External(id) = &wanted.ownership else { return };
            let cause = format!("`existing: {id}` names an object that is not there");
            decided.what = Decision::Refused {
                problem: Problem::new(wanted.id.as_str(), cause, "name one that is there, or leave `existing` out"),
            };
            return;
        };
        let recorded = self.refreshed(wanted, &decided_spec(decided), &object, false);
        decided.what = match current {
            Some(current) if current == recorded => Decision::Same,
            Some(_) => Decision::Note(Note::Remember { recorded: Box::new(recorded.clone()) }, recorded),
            None => Decision::Note(Note::Adopt { recorded: Box::new(recorded.clone()) }, recorded),
        };
    }

    /// Compares an object that is there with what is wanted.
    fn compare(&mut self, wanted: &Wanted, recorded: Recorded, seen: Object, stray: bool, decided: &mut Decided) {
        if let Some(reason) = degraded(&seen.health) {
            self.warnings.push(Problem::warning(
                wanted.id.as_str(),
                format!("it does not do its work: {reason}"),
                "see `textnlp-deploy explain`",
            ));
        }
        let Some(kind) = self.kind(wanted) else { return };
        // What no record mentions has no place beside a new one in the journal: it goes first.
        let order = if stray { ReplaceOrder::DeleteFirst } else { self.order(wanted, kind) };
        let host = wanted.via.as_ref().and_then(|host| self.all.get(&host.0)).map(|decided| &decided.what);
        let host_goes = match host {
            Some(Decision::Replace { .. }) => Branch::Replace,
            Some(Decision::Maybe { most: Branch::Replace, .. }) => Branch::Update,
            _ => Branch::Nothing,
        };
        let why = if recorded.tainted {
            Some("its creation failed half-way")
        } else if recorded.kind != wanted.kind {
            Some("it becomes another kind")
        } else if recorded.via != wanted.via && !stray {
            Some("it moves to another host")
        } else if host_goes == Branch::Replace {
            Some("its host is replaced")
        } else {
            None
        };
        if let Some(why) = why {
            decided.because = why.to_owned();
            // A half-made object holds nothing yet.
            let free = recorded.tainted || self.may_lose(wanted, &recorded, kind);
            decided.what = if free {
                Decision::Replace { recorded, order: ReplaceOrder::DeleteFirst, stray }
            } else {
                refuse_loss(wanted, why)
            };
            return;
        }
        let (certain, possible) = self.differences(wanted, &decided_spec(decided), &recorded, &seen);
        if let Some(reason) = certain.iter().find_map(|change| match &change.effect {
            Effect::Refuse(reason) => Some(format!("`{}` would have to change: {reason}", change.field)),
            _ => None,
        }) {
            decided.what =
                Decision::Refused { problem: Problem::new(wanted.id.as_str(), reason, "put the old value back") };
            return;
        }
        let least = branch_of(&certain);
        let mut most = least.max(branch_of(&possible));
        if host_goes == Branch::Update {
            most = Branch::Replace;
        }
        let may_lose = self.may_lose(wanted, &recorded, kind);
        if least == Branch::Replace && !may_lose {
            let forced = certain
                .iter()
                .filter(|change| change.effect == Effect::Replace)
                .map(|change| format!("`{}`", change.field));
            decided.what = refuse_loss(
                wanted,
                &format!("{} can only change with a new object", forced.collect::<Vec<_>>().join(", ")),
            );
            return;
        }
        if !may_lose {
            most = most.min(Branch::Update);
        }
        decided.changes = certain;
        decided.changes.extend(possible);
        decided.what = match (least, most) {
            (least, most) if least != most => Decision::Maybe { recorded, seen, order, least, most, stray },
            (Branch::Replace, _) => Decision::Replace { recorded, order, stray },
            (Branch::Update, _) => Decision::Update { recorded, seen, stray },
            (Branch::Nothing, _) => {
                let fresh = self.refreshed(wanted, &decided_spec(decided), &seen, false);
                if stray {
                    Decision::Note(Note::Adopt { recorded: Box::new(fresh.clone()) }, fresh)
                } else if fresh != recorded {
                    Decision::Note(Note::Remember { recorded: Box::new(fresh.clone()) }, fresh)
                } else {
                    Decision::Same
                }
            }
        };
    }

    /// What surely differs, and what may differ once the outputs of other resources are known.
    ///
    /// Unknown outputs are taken as they were recorded for the first, and stand as references for the second.
    fn differences(
        &self,
        wanted: &Wanted,
        partly: &Spec,
        recorded: &Recorded,
        seen: &Object,
    ) -> (Vec<FieldChange>, Vec<FieldChange>) {
        let provider = &self.world.site(&wanted.site).provider;
        let ask = |spec: Spec| provider.diff(&Wanted { spec, ..wanted.clone() }, recorded, seen);
        let assumed = partly.resolve_known(|id| match self.known.get(id) {
            Some(Known::Now(outputs) | Known::After { last: Some(outputs), .. }) => Some(outputs),
            _ => None,
        });
        let open: BTreeSet<_> = partly.outputs_needed().into_iter().map(|output| output.resource).collect();
        let unassumed = !assumed.outputs_needed().is_empty();
        let mut certain = ask(assumed);
        if unassumed {
            certain.retain(|change| refers_to(change).is_empty());
        }
        if open.is_empty() {
            return (certain, Vec::new());
        }
        let fresh = |id: &ResourceId| matches!(self.known.get(id), Some(Known::After { fresh: true, .. }));
        let (mut sure, mut possible) = (Vec::new(), Vec::new());
        for change in ask(partly.clone()) {
            let refers = refers_to(&change);
            if refers.is_empty() || certain.iter().any(|known| known.field == change.field) {
                continue;
            }
            // A new object of a kind with ids of its own has another id: who is tied to the old one goes with it.
            if change.effect == Effect::Replace && refers.iter().any(fresh) {
                sure.push(change);
            } else {
                possible.push(change);
            }
        }
        if sure.is_empty() && possible.is_empty() {
            // The provider named no field; the outputs may change all the same, and then it is asked again.
            let names = open.iter().map(ResourceId::to_string).collect::<Vec<_>>().join(", ");
            possible.push(FieldChange {
                field: format!("outputs of {names}"),
                before: None,
                after: None,
                effect: Effect::InPlace,
            });
        }
        certain.extend(sure);
        (certain, possible)
    }

    /// In which order a replacement happens. A new object cannot come first when something it needs must go first.
    fn order(&self, wanted: &Wanted, kind: &Kind) -> ReplaceOrder {
        let is_host = self.hosts.contains(&wanted.id);
        let after = needs_of(wanted).iter().any(|need| {
            let replaced = self.all.get(need).map(|decided| &decided.what);
            matches!(
                replaced,
                Some(
                    Decision::Replace { order: ReplaceOrder::DeleteFirst, .. }
                        | Decision::Maybe { order: ReplaceOrder::DeleteFirst, most: Branch::Replace, .. }
                )
            )
        });
        if is_host || after { ReplaceOrder::DeleteFirst } else { kind.replace }
    }

    /// Whether an object, and what lives in it, may be lost: nothing precious is in it, or a person agreed.
    fn may_lose(&self, wanted: &Wanted, recorded: &Recorded, kind: &Kind) -> bool {
        let facts = self.world.facts;
        if facts.delete_data {
            return true;
        }
        let precious = |recorded: &Recorded, kind: &Kind, site: &SiteName| {
            recorded.protected || (kind.data == DataClass::Precious && self.world.site(site).protect_data)
        };
        !precious(recorded, kind, &wanted.site) && !wanted.protected && !self.precious_hosts.contains(&wanted.id)
    }

    /// Nothing is changed on the strength of something that could not be seen or may not change.
    fn wait_for_needs(&self, wanted: &Wanted, decided: &mut Decided) {
        if matches!(decided.what, Decision::Same | Decision::Note(..) | Decision::Refused { .. } | Decision::Blocked) {
            return;
        }
        let needs = needs_of(wanted);
        let blocked = needs.iter().find(|need| {
            matches!(
                self.all.get(*need).map(|decided| &decided.what),
                Some(Decision::Blocked | Decision::Refused { .. })
            )
        });
        if let Some(need) = blocked {
            decided.because = format!("it needs `{need}`, which is blocked itself");
            decided.what = Decision::Blocked;
            decided.changes.clear();
        }
    }

    fn refreshed(&self, wanted: &Wanted, spec: &Spec, seen: &Object, tainted: bool) -> Recorded {
        let schema = self.kind(wanted).map_or(1, |kind| kind.schema);
        refreshed(wanted, spec, seen, schema, tainted)
    }
}

pub(super) fn is_kept(world: &World<'_>, recorded: &Recorded, site: &SiteName) -> bool {
    let Some((site, facts)) = world.facts.sites.get_key_value(site) else { return true };
    let precious = world.kind(site, &recorded.kind).is_some_and(|kind| kind.data == DataClass::Precious);
    !world.facts.delete_data && !recorded.tainted && (recorded.protected || (precious && facts.protect_data))
}

/// The record of an object that is as wanted.
pub(crate) fn refreshed(wanted: &Wanted, spec: &Spec, seen: &Object, schema: u32, tainted: bool) -> Recorded {
    Recorded {
        id: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        via: wanted.via.clone(),
        spec: spec.clone(),
        needs: sorted_needs(wanted),
        ownership: wanted.ownership.clone(),
        schema,
        cloud_id: seen.cloud_id.clone(),
        outputs: seen.outputs.clone(),
        protected: wanted.protected,
        tainted,
    }
}

/// Needs as they are recorded: those that were said and those that references imply, each once.
pub(crate) fn sorted_needs(wanted: &Wanted) -> Vec<textnlp_provider::Need> {
    let mut needs = needs_of(wanted);
    if let Some(host) = &wanted.via {
        needs.remove(&host.0);
    }
    needs.into_iter().map(textnlp_provider::Need::on).collect()
}

pub(super) fn record_of(
    id: &ResourceId,
    site: SiteName,
    via: Option<textnlp_provider::Ref>,
    schema: u32,
    object: &Object,
) -> Recorded {
    Recorded {
        id: id.clone(),
        kind: object.kind.clone(),
        site,
        via,
        spec: object.spec.clone(),
        needs: Vec::new(),
        ownership: Ownership::Ours,
        schema,
        cloud_id: object.cloud_id.clone(),
        outputs: object.outputs.clone(),
        protected: false,
        tainted: false,
    }
}

fn decided_spec(decided: &Decided) -> Spec {
    decided.wanted.as_ref().map(|wanted| wanted.spec.clone()).unwrap_or_default()
}

fn refuse_loss(wanted: &Wanted, why: &str) -> Decision {
    let cause = format!("it holds data and would be replaced: {why}");
    let fix = "take the change back, or agree to lose the data with `--delete-data ENV`";
    Decision::Refused { problem: Problem::new(wanted.id.as_str(), cause, fix) }
}

/// The strongest effect among changes.
pub(crate) fn branch_of(changes: &[FieldChange]) -> Branch {
    let one = |change: &FieldChange| if change.effect == Effect::Replace { Branch::Replace } else { Branch::Update };
    changes.iter().map(one).max().unwrap_or(Branch::Nothing)
}

/// The resources to whose outputs a change refers.
fn refers_to(change: &FieldChange) -> Vec<ResourceId> {
    let Some(after) = &change.after else { return Vec::new() };
    Spec::of(&serde_json::json!({ "after": after }))
        .outputs_needed()
        .into_iter()
        .map(|output| output.resource)
        .collect()
}
