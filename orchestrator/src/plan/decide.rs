//! One resource at a time: what must happen to it.
//!
//! Resources are taken in the order of their needs, so that each knows whether the outputs it refers to are known, will be
//! known after apply, or cannot be known.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use textnlp_provider::{
    DataClass, Effect, FieldChange, Identity, Kind, Object, Observed, Outputs, Ownership, Problem, Recorded,
    ReplaceOrder, ResourceId, SiteName, Spec, Wanted,
};

use super::facts::{Place, World, degraded, needs_of};
use super::{Branch, Note};
use crate::state::{Old, within};

/// What happens to each resource that is wanted, recorded or seen.
pub(super) struct Decisions<'a> {
    /// By place.
    pub(super) all: Vec<Option<Decided<'a>>>,
    pub(super) warnings: Vec<Problem>,
}

/// What happens to one resource.
pub(super) struct Decided<'a> {
    pub(super) what: Decision<'a>,
    pub(super) wanted: Option<&'a Wanted>,
    /// As wanted, with the outputs filled in that are known now.
    pub(super) spec: Spec,
    pub(super) site: &'a SiteName,
    pub(super) changes: Vec<FieldChange>,
    pub(super) because: String,
    /// Replaced objects that are still to be removed.
    pub(super) old: &'a [Old],
    /// Objects of ours that no record mentions.
    pub(super) strays: Vec<Recorded>,
}

pub(super) enum Decision<'a> {
    Same,
    Note(Note),
    Create,
    Update {
        recorded: Cow<'a, Recorded>,
        seen: &'a Object,
        stray: bool,
    },
    Replace {
        recorded: Cow<'a, Recorded>,
        order: ReplaceOrder,
        stray: bool,
    },
    /// What was replaced is still there and is what is wanted.
    Return {
        back: Box<Recorded>,
        old: &'a Old,
        instead: &'a Recorded,
    },
    Maybe {
        recorded: Cow<'a, Recorded>,
        seen: &'a Object,
        order: ReplaceOrder,
        least: Branch,
        most: Branch,
        stray: bool,
    },
    Delete {
        recorded: &'a Recorded,
    },
    Forget {
        recorded: &'a Recorded,
    },
    Retain {
        recorded: &'a Recorded,
    },
    /// Only strays or replaced objects are left of it.
    Leftovers,
    Blocked,
    Refused {
        problem: Problem,
    },
}

/// What can be said of a resource's outputs.
enum Known<'a> {
    Now(Cow<'a, Outputs>),
    /// Known after apply. `last` are those of the record; `fresh`: a new object whose id is not that of the old one.
    After {
        last: Option<&'a Outputs>,
        fresh: bool,
    },
    Never,
}

pub(super) struct Deciding<'w, 'a> {
    pub(super) world: &'w World<'a>,
    /// By place, as all that follows.
    known: Vec<Option<Known<'a>>>,
    pub(super) all: Vec<Option<Decided<'a>>>,
    warnings: Vec<Problem>,
    /// What others are reached through, or are to be.
    hosts: Vec<bool>,
    /// Hosts through which something is reached that holds data nobody agreed to lose.
    precious_hosts: Vec<bool>,
    /// What is inside of it, or of what is reached through it, and stays.
    pub(super) guests: Vec<Option<String>>,
    /// What goes because of what its controllers made, and where that is.
    tied: BTreeMap<Place, &'a ResourceId>,
}

/// What a provider's answers about one resource come to.
pub(super) struct Sight<'a> {
    pub(super) seen: Option<&'a Object>,
    pub(super) strays: Vec<&'a Object>,
}

pub(super) fn decide<'a>(world: &World<'a>) -> Decisions<'a> {
    let size = world.rows.len();
    let (mut hosts, mut precious_hosts) = (vec![false; size], vec![false; size]);
    for row in &world.rows {
        if let Some(host) = row.wanted.and_then(|wanted| wanted.via.as_ref()) {
            world.place(&host.0).into_iter().for_each(|host| hosts[host] = true);
        }
        if let Some((site, holding)) = row.holding
            && let Some(child) = &holding.current
            && let Some(host) = &child.via
            && let Some(host) = world.place(&host.0)
        {
            // What is in it goes through it, which a new one in its place would not lead to.
            hosts[host] = true;
            precious_hosts[host] |= is_kept(world, child, site);
        }
    }
    let guests = guests(world);
    let (known, all, tied) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut deciding = Deciding { world, known, all, warnings: Vec::new(), hosts, precious_hosts, guests, tied };
    // What one decision drags along may drag along more; each round adds at least one.
    loop {
        deciding.known = (0..size).map(|_| None).collect();
        deciding.all = (0..size).map(|_| None).collect();
        deciding.warnings.clear();
        for place in &world.order {
            let Some(wanted) = world.rows[*place].wanted else { continue };
            deciding.all[*place] = Some(deciding.wanted(*place, wanted));
        }
        let before = deciding.tied.len();
        deciding.tied.extend(deciding.would_fill_again());
        if deciding.tied.len() == before {
            break;
        }
    }
    deciding.unwanted();
    Decisions { all: deciding.all, warnings: deciding.warnings }
}

impl<'a> Deciding<'_, 'a> {
    fn wanted(&mut self, place: Place, wanted: &'a Wanted) -> Decided<'a> {
        let holding = self.world.rows[place].holding.map(|(_, holding)| holding);
        let current = holding.and_then(|holding| holding.current.as_ref());
        let spec = wanted.spec.resolve_known(|id| match self.known_of(id) {
            Some(Known::Now(outputs)) => Some(outputs.as_ref()),
            _ => None,
        });
        let mut decided = Decided {
            what: Decision::Blocked,
            wanted: Some(wanted),
            spec,
            site: &wanted.site,
            changes: Vec::new(),
            because: String::new(),
            old: holding.map_or(&[], |holding| &holding.old),
            strays: Vec::new(),
        };
        match self.sight(place, current) {
            Ok(sight) => self.choose(place, wanted, current, sight, &mut decided),
            Err(because) => (decided.what, decided.because) = (Decision::Blocked, because),
        }
        self.learn(place, wanted, &decided, current.map(|recorded| &recorded.outputs));
        decided
    }

    fn known_of(&self, id: &ResourceId) -> Option<&Known<'a>> {
        self.known[self.world.place(id)?].as_ref()
    }

    /// What was decided of another resource.
    pub(super) fn decision(&self, id: &ResourceId) -> Option<&Decision<'a>> {
        Some(&self.all[self.world.place(id)?].as_ref()?.what)
    }

    /// Remembers what dependents may know of the outputs.
    fn learn(&mut self, place: Place, wanted: &'a Wanted, decided: &Decided<'a>, last: Option<&'a Outputs>) {
        let token = self.world.kind_of(wanted).is_some_and(|kind| kind.identity == Identity::Token);
        let known = match &decided.what {
            Decision::Same => Known::Now(last.map_or_else(Cow::default, Cow::Borrowed)),
            Decision::Note(Note::Adopt { recorded } | Note::Remember { recorded }) => {
                Known::Now(Cow::Owned(recorded.outputs.clone()))
            }
            Decision::Return { back, .. } => Known::Now(Cow::Owned(back.outputs.clone())),
            Decision::Create => Known::After { last, fresh: false },
            Decision::Replace { .. } => Known::After { last, fresh: token },
            Decision::Update { recorded, .. } | Decision::Maybe { recorded, .. } => {
                let last = match recorded {
                    Cow::Borrowed(recorded) => Some(&recorded.outputs),
                    // What no record mentions is recorded as it is seen.
                    Cow::Owned(_) => decided.what.seen().map(|seen| &seen.outputs),
                };
                Known::After { last, fresh: false }
            }
            _ => last.map_or(Known::Never, |last| Known::Now(Cow::Borrowed(last))),
        };
        self.known[place] = Some(known);
    }

    /// What there is behind a resource, or why nobody can say.
    pub(super) fn sight(&self, place: Place, current: Option<&Recorded>) -> Result<Sight<'a>, String> {
        let row = &self.world.rows[place];
        if let Some(op) = row.open {
            return Err(format!("operation {op} on it is still open"));
        }
        let wanted = row.wanted;
        let host = wanted.map(|wanted| wanted.via.as_ref()).unwrap_or(current.and_then(|current| current.via.as_ref()));
        if let Some(host) = host {
            match self.decision(&host.0) {
                // A host that is not there has no children; what is to move there is still where it was.
                Some(Decision::Create) if current.is_none_or(|current| current.via.as_ref() == Some(host)) => {
                    return Ok(Sight { seen: None, strays: Vec::new() });
                }
                Some(Decision::Blocked | Decision::Refused { .. }) => {
                    return Err(format!("it is reached through `{}`, which is blocked itself", host.0));
                }
                _ => {}
            }
        }
        let Some((site, answers)) = &row.observed else {
            return Err("the provider did not say whether it is there".to_owned());
        };
        let mut objects: Vec<&'a Object> = Vec::new();
        for answer in answers {
            match answer {
                Observed::Present(object) => objects.push(object),
                Observed::Absent => {}
                Observed::Unknown(why) => return Err(format!("it could not be seen: {}", why.0)),
            }
        }
        objects.sort_by(|a, b| a.cloud_id.cmp(&b.cloud_id));
        let holding = row.holding.map(|(_, holding)| holding);
        let old: BTreeSet<_> =
            holding.iter().flat_map(|holding| &holding.old).map(|old| &old.recorded.cloud_id).collect();
        objects.retain(|object| !old.contains(&object.cloud_id));
        let at = current.and_then(|current| objects.iter().position(|object| object.cloud_id == current.cloud_id));
        let seen = at.map(|at| objects.remove(at));
        if let (Some(current), None, Some(holding)) = (current, seen, holding) {
            let settles = self.world.kind(site, &current.kind).map(|kind| kind.settles).unwrap_or_default();
            // Not found right after a create is not gone.
            if objects.is_empty() && within(self.world.facts.now, holding.since, settles) {
                return Err("it was made a moment ago and is not visible yet".to_owned());
            }
        }
        Ok(Sight { seen, strays: objects })
    }

    fn choose(
        &mut self,
        place: Place,
        wanted: &'a Wanted,
        current: Option<&'a Recorded>,
        sight: Sight<'a>,
        decided: &mut Decided<'a>,
    ) {
        if let Ownership::External(_) = wanted.ownership {
            return self.external(place, wanted, current, sight, decided);
        }
        let Sight { seen, strays } = sight;
        let mut all = strays.iter().chain(&seen);
        if let Some(object) = all.find(|object| !self.is_ours(object, wanted)) {
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
        let mut strays = strays.into_iter().map(|object| (self.stray(wanted, object), object)).collect::<Vec<_>>();
        match (current, seen) {
            (Some(recorded), Some(seen)) => {
                self.compare(place, wanted, Cow::Borrowed(recorded), seen, false, decided);
                if matches!(decided.what, Decision::Replace { .. })
                    && let Some((old, seen)) = self.old_as_wanted(place, wanted, &decided.spec)
                {
                    let schema = self.world.kind_of(wanted).map_or(1, |kind| kind.schema);
                    let back = Box::new(refreshed(wanted, &decided.spec, seen, schema, false));
                    decided.because = "the object that it replaced is still there and is as wanted".to_owned();
                    decided.changes.clear();
                    decided.what = Decision::Return { back, old, instead: recorded };
                }
            }
            (gone, _) if !strays.is_empty() => {
                // An object of ours that no record mentions: a run died between the call and the record, or the record was lost.
                let (recorded, seen) = strays.remove(0);
                decided.because = if gone.is_some() {
                    "the recorded object is gone, another one of ours is there".to_owned()
                } else {
                    "it is ours and was not recorded".to_owned()
                };
                self.compare(place, wanted, Cow::Owned(recorded), seen, true, decided);
            }
            (Some(_), None) => {
                decided.because = "it is gone".to_owned();
                decided.what = Decision::Create;
            }
            (None, _) => decided.what = Decision::Create,
        }
        decided.strays = strays.into_iter().map(|(recorded, _)| recorded).collect();
        self.wait_for_needs(place, decided);
    }

    /// Whether an object may be treated as ours: it carries our lineage, or it is a part, which can carry none, of a parent of ours.
    fn is_ours(&self, object: &Object, wanted: &'a Wanted) -> bool {
        let part = self.world.kind_of(wanted).is_some_and(|kind| kind.identity == Identity::Part);
        object.lineage.map_or(part, |lineage| lineage == self.world.facts.lineage)
    }

    fn stray(&self, wanted: &'a Wanted, object: &Object) -> Recorded {
        let schema = self.world.kind_of(wanted).map_or(1, |kind| kind.schema);
        let via = object.via.clone().or(wanted.via.clone());
        record_of(&wanted.id, wanted.site.clone(), via, schema, object)
    }

    fn external(
        &self,
        place: Place,
        wanted: &'a Wanted,
        current: Option<&Recorded>,
        sight: Sight<'a>,
        decided: &mut Decided<'a>,
    ) {
        let Some(object) = sight.seen.or(sight.strays.into_iter().next()) else {
            let Ownership::External(id) = &wanted.ownership else { return };
            let cause = format!("`existing: {id}` names an object that is not there");
            decided.what = Decision::Refused {
                problem: Problem::new(wanted.id.as_str(), cause, "name one that is there, or leave `existing` out"),
            };
            return;
        };
        // What is recorded in another one would be looked for here, not be found, and be made anew, without its data.
        if let Some(current) = current.filter(|current| self.hosts[place] && current.cloud_id != object.cloud_id) {
            let cause = format!(
                "what is reached through it is recorded in `{}`, and not in `{}`",
                current.cloud_id, object.cloud_id
            );
            let fix = "name that one again, or remove with `down` what is in it before another one takes its place";
            decided.what = Decision::Refused { problem: Problem::new(wanted.id.as_str(), cause, fix) };
            return;
        }
        decided.what = self.same_or_note(place, wanted, &decided.spec, current, object, false);
    }

    /// Nothing but our own record may have to change.
    fn same_or_note(
        &self,
        place: Place,
        wanted: &'a Wanted,
        spec: &Spec,
        current: Option<&Recorded>,
        seen: &Object,
        stray: bool,
    ) -> Decision<'a> {
        let schema = self.world.kind_of(wanted).map_or(1, |kind| kind.schema);
        let fresh = Fresh { wanted, spec, seen, schema };
        let needs = || self.needs_recorded(place, wanted);
        match current.filter(|_| !stray) {
            Some(current) if fresh.is(current, needs()) => Decision::Same,
            Some(_) => {
                Decision::Note(Note::Remember { recorded: Box::new(refreshed(wanted, spec, seen, schema, false)) })
            }
            None => Decision::Note(Note::Adopt { recorded: Box::new(refreshed(wanted, spec, seen, schema, false)) }),
        }
    }

    /// The places of the needs that are recorded: its host stands for itself.
    fn needs_recorded(&self, place: Place, wanted: &Wanted) -> impl Iterator<Item = &'a ResourceId> {
        let host = wanted.via.as_ref().and_then(|host| self.world.place(&host.0));
        let needs = self.world.rows[place].needs.iter().filter(move |need| Some(**need) != host);
        needs.map(|need| self.world.ids[*need])
    }

    /// Compares an object that is there with what is wanted.
    fn compare(
        &mut self,
        place: Place,
        wanted: &'a Wanted,
        recorded: Cow<'a, Recorded>,
        seen: &'a Object,
        stray: bool,
        decided: &mut Decided<'a>,
    ) {
        if let Some(reason) = degraded(&seen.health) {
            self.warnings.push(Problem::warning(
                wanted.id.as_str(),
                format!("it does not do its work: {reason}"),
                "see `textnlp-deploy explain`",
            ));
        }
        let Some(kind) = self.world.kind_of(wanted) else { return };
        // What no record mentions has no place beside a new one in the journal: it goes first.
        let order = if stray { ReplaceOrder::DeleteFirst } else { self.order(place, kind) };
        let host = wanted.via.as_ref().and_then(|host| self.decision(&host.0));
        let host_goes = match host {
            Some(Decision::Replace { .. }) => Branch::Replace,
            Some(Decision::Maybe { most: Branch::Replace, .. }) => Branch::Update,
            _ => Branch::Nothing,
        };
        let why = if recorded.tainted {
            Some(Cow::Borrowed("its creation failed half-way"))
        } else if recorded.kind != wanted.kind {
            Some("it becomes another kind".into())
        } else if recorded.via != wanted.via {
            Some("it moves to another host".into())
        } else if host_goes == Branch::Replace {
            Some("its host is replaced".into())
        } else {
            let goes = self.tied.get(&place);
            goes.map(|goes| format!("what its controllers made is inside of `{goes}`, which has to go first").into())
        };
        let guests = self.guests[place].as_ref();
        if let (Some(why), Some(guests)) = (&why, guests) {
            decided.because = format!("{why}, and {guests}");
            return;
        }
        if let Some(why) = why {
            // A half-made object holds nothing yet.
            let free = recorded.tainted || self.may_lose(place, wanted, &recorded, kind);
            decided.what = if free {
                Decision::Replace { recorded, order: ReplaceOrder::DeleteFirst, stray }
            } else {
                refuse_loss(wanted, &why)
            };
            decided.because = why.into_owned();
            return;
        }
        let (certain, possible) = self.differences(wanted, &decided.spec, &recorded, seen);
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
        let may_lose = self.may_lose(place, wanted, &recorded, kind);
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
        if let (Branch::Replace, Some(guests)) = (least, guests) {
            decided.because = format!("it would be replaced, and {guests}");
            return;
        }
        if !may_lose || guests.is_some() {
            most = most.min(Branch::Update);
        }
        decided.changes = certain;
        decided.changes.extend(possible);
        decided.what = match (least, most) {
            (least, most) if least != most => Decision::Maybe { recorded, seen, order, least, most, stray },
            (Branch::Replace, _) => Decision::Replace { recorded, order, stray },
            (Branch::Update, _) => Decision::Update { recorded, seen, stray },
            (Branch::Nothing, _) => {
                self.same_or_note(place, wanted, &decided.spec, Some(recorded.as_ref()), seen, stray)
            }
        };
    }

    /// Resources that stay although what their controllers made is inside of an object that goes before its successor can be made: they
    /// would make it again for as long as they are there. By place, with the resource that goes.
    fn would_fill_again(&self) -> BTreeMap<Place, &'a ResourceId> {
        let mut found = BTreeMap::new();
        for (place, decided) in self.all.iter().enumerate() {
            let Some(Decision::Replace { recorded, order: ReplaceOrder::DeleteFirst, .. }) =
                decided.as_ref().map(|decided| &decided.what)
            else {
                continue;
            };
            let makers = self.world.rows[place].makers_inside(&recorded.cloud_id);
            if makers.is_empty() {
                continue;
            }
            // What a provider calls its objects it may call others at another site.
            let site = self.world.rows[place].holding.map(|(site, _)| site);
            for (maker, row) in self.world.rows.iter().enumerate() {
                let here = row.holding.filter(|(at, _)| Some(*at) == site);
                let current = here.and_then(|(_, holding)| holding.current.as_ref());
                let stays = matches!(
                    self.all[maker].as_ref().map(|decided| &decided.what),
                    Some(Decision::Same | Decision::Note(_) | Decision::Update { .. } | Decision::Maybe { .. })
                );
                if stays && current.is_some_and(|current| makers.contains(&current.cloud_id)) {
                    found.insert(maker, self.world.ids[place]);
                }
            }
        }
        found
    }

    /// An object that was replaced, is still there, does its work and is what is wanted now: the way back needs no new one.
    fn old_as_wanted(&self, place: Place, wanted: &'a Wanted, spec: &Spec) -> Option<(&'a Old, &'a Object)> {
        let row = &self.world.rows[place];
        // What others are reached through takes them along.
        let stands_still = |host: &ResourceId| matches!(self.decision(host), Some(Decision::Same | Decision::Note(_)));
        if self.hosts[place]
            || !spec.outputs_needed().is_empty()
            || wanted.via.as_ref().is_some_and(|host| !stands_still(&host.0))
        {
            return None;
        }
        let (_, holding) = row.holding?;
        holding.old.iter().find_map(|old| {
            let Old { recorded, .. } = old;
            let seen = row.present().find(|object| object.cloud_id == recorded.cloud_id)?;
            let is_whole = !recorded.tainted && degraded(&seen.health).is_none() && self.is_ours(seen, wanted);
            let is_alike = recorded.kind == wanted.kind && recorded.via == wanted.via;
            let (certain, possible) = self.differences(wanted, spec, recorded, seen);
            (is_whole && is_alike && certain.is_empty() && possible.is_empty()).then_some((old, seen))
        })
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
        let assumed = partly.resolve_known(|id| match self.known_of(id) {
            Some(Known::Now(outputs)) => Some(outputs.as_ref()),
            Some(Known::After { last: Some(outputs), .. }) => Some(outputs),
            _ => None,
        });
        let open: BTreeSet<_> = partly.outputs_needed().iter().map(|output| &output.resource).collect();
        let unassumed = !assumed.outputs_needed().is_empty();
        let mut certain = ask(assumed);
        if unassumed {
            certain.retain(|change| refers_to(change).is_empty());
        }
        if open.is_empty() {
            return (certain, Vec::new());
        }
        let fresh = |id: &ResourceId| matches!(self.known_of(id), Some(Known::After { fresh: true, .. }));
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
            let names = open.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
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
    fn order(&self, place: Place, kind: &Kind) -> ReplaceOrder {
        let after = self.world.rows[place].needs.iter().any(|need| {
            matches!(
                self.all[*need].as_ref().map(|decided| &decided.what),
                Some(
                    Decision::Replace { order: ReplaceOrder::DeleteFirst, .. }
                        | Decision::Maybe { order: ReplaceOrder::DeleteFirst, most: Branch::Replace, .. }
                )
            )
        });
        if self.hosts[place] || after { ReplaceOrder::DeleteFirst } else { kind.replace }
    }

    /// Whether an object, and what lives in it, may be lost: nothing precious is in it, or a person agreed.
    fn may_lose(&self, place: Place, wanted: &Wanted, recorded: &Recorded, kind: &Kind) -> bool {
        let facts = self.world.facts;
        if facts.delete_data {
            return true;
        }
        let precious =
            recorded.protected || (kind.data == DataClass::Precious && self.world.site(&wanted.site).protect_data);
        !precious && !wanted.protected && !self.precious_hosts[place]
    }

    /// Nothing is changed on the strength of something that could not be seen or may not change.
    fn wait_for_needs(&self, place: Place, decided: &mut Decided<'a>) {
        if matches!(decided.what, Decision::Same | Decision::Note(..) | Decision::Refused { .. } | Decision::Blocked) {
            return;
        }
        let blocked = self.world.rows[place].needs.iter().find(|need| {
            matches!(
                self.all[**need].as_ref().map(|decided| &decided.what),
                Some(Decision::Blocked | Decision::Refused { .. })
            )
        });
        if let Some(need) = blocked {
            decided.because = format!("it needs `{}`, which is blocked itself", self.world.ids[*need]);
            decided.what = Decision::Blocked;
            decided.changes.clear();
        }
    }
}

impl<'a> Decision<'a> {
    fn seen(&self) -> Option<&'a Object> {
        match self {
            Decision::Update { seen, .. } | Decision::Maybe { seen, .. } => Some(seen),
            _ => None,
        }
    }
}

/// What the record of an object would be that is as wanted.
struct Fresh<'f> {
    wanted: &'f Wanted,
    spec: &'f Spec,
    seen: &'f Object,
    schema: u32,
}

impl Fresh<'_> {
    /// Whether it is this one. The same as comparing it with [`refreshed`], without making that.
    fn is<'i>(&self, recorded: &Recorded, needs: impl Iterator<Item = &'i ResourceId>) -> bool {
        let Self { wanted, spec, seen, schema } = self;
        recorded.kind == wanted.kind
            && recorded.site == wanted.site
            && recorded.via == wanted.via
            && recorded.ownership == wanted.ownership
            && recorded.schema == *schema
            && recorded.cloud_id == seen.cloud_id
            && recorded.protected == wanted.protected
            && !recorded.tainted
            && recorded.spec == **spec
            && recorded.outputs == seen.outputs
            && recorded.needs.iter().map(|need| &need.on).eq(needs)
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
    let host = wanted.via.as_ref().map(|host| &host.0);
    let mut needs: Vec<&ResourceId> = needs_of(wanted).filter(|need| Some(*need) != host).collect();
    needs.sort_unstable();
    needs.dedup();
    needs.into_iter().cloned().map(textnlp_provider::Need::on).collect()
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

/// What is inside each object, or inside what is reached through it, and stays: nobody but whoever put it there may take it out.
fn guests(world: &World<'_>) -> Vec<Option<String>> {
    let mut all = vec![None; world.rows.len()];
    for (place, row) in world.rows.iter().enumerate() {
        let names: Vec<String> = row
            .present()
            .flat_map(|object| object.foreign.iter().filter(|foreign| !foreign.swept))
            .map(|foreign| format!("`{}` ({})", foreign.cloud_id, foreign.what))
            .collect();
        if names.is_empty() {
            continue;
        }
        let is = if names.len() == 1 { "is" } else { "are" };
        let text = format!(
            "{} {is} inside of `{}` and was not made by this deployment: move that away first",
            names.join(", "),
            world.ids[place]
        );
        // It would go with each host on the way up; a host that was met before ends a circle.
        let mut next = Some(place);
        while let Some(place) = next.filter(|place| all[*place].is_none()) {
            all[place] = Some(text.clone());
            let recorded = world.rows[place].holding.and_then(|(_, holding)| holding.current.as_ref());
            next = recorded.and_then(|recorded| world.place(&recorded.via.as_ref()?.0));
        }
    }
    all
}

fn refuse_loss<'a>(wanted: &Wanted, why: &str) -> Decision<'a> {
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
    let after = Spec::of(&serde_json::json!({ "after": after }));
    after.outputs_needed().iter().map(|output| output.resource.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::{CloudId, Health, KindName, Need, Ref};

    use super::*;

    #[test]
    fn a_record_is_fresh_exactly_when_it_is_what_would_be_written_down() {
        let id = |text: &str| ResourceId::new(text).unwrap();
        let wanted = Wanted {
            id: id("here/b"),
            kind: KindName::new("memory.vault").unwrap(),
            site: SiteName::new("here").unwrap(),
            via: Some(Ref(id("here/host"))),
            spec: Spec::of(&json!({"size": 1})),
            needs: vec![Need::on(id("here/z")), Need::on(id("here/a")), Need::on(id("here/host"))],
            ownership: Ownership::Ours,
            protected: false,
        };
        let seen = Object {
            kind: wanted.kind.clone(),
            cloud_id: CloudId::new("b-1").unwrap(),
            spec: wanted.spec.clone(),
            outputs: Outputs::from([("id".to_owned(), json!("b-1"))]),
            lineage: None,
            health: Health::Ready,
            via: None,
            foreign: Vec::new(),
        };
        let fresh = Fresh { wanted: &wanted, spec: &wanted.spec, seen: &seen, schema: 3 };
        let whole = refreshed(&wanted, &wanted.spec, &seen, 3, false);
        let check = |edit: fn(&mut Recorded), expect: bool| {
            let mut recorded = whole.clone();
            edit(&mut recorded);
            assert_eq!(recorded == whole, expect);
            assert_eq!(fresh.is(&recorded, [&id("here/a"), &id("here/z")].into_iter()), expect, "{recorded:?}");
        };
        check(|_| {}, true);
        check(|recorded| recorded.kind = KindName::new("memory.bucket").unwrap(), false);
        check(|recorded| recorded.site = SiteName::new("there").unwrap(), false);
        check(|recorded| recorded.via = None, false);
        check(|recorded| recorded.spec = Spec::of(&json!({"size": 2})), false);
        check(|recorded| drop(recorded.needs.pop()), false);
        check(|recorded| recorded.needs.clear(), false);
        check(|recorded| recorded.ownership = Ownership::External(recorded.cloud_id.clone()), false);
        check(|recorded| recorded.schema = 2, false);
        check(|recorded| recorded.cloud_id = CloudId::new("b-2").unwrap(), false);
        check(|recorded| recorded.outputs.clear(), false);
        check(|recorded| recorded.protected = true, false);
        check(|recorded| recorded.tainted = true, false);
    }
}
