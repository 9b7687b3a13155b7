//! Decides for each resource what must happen.
//!
//! Resources are decided in the order of their dependencies. Each one then knows whether the outputs it refers to are
//! known, known after apply, or unavailable.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use textnlp_provider::{
    DataClass, DatabasePart, Effect, FieldChange, Identity, Kind, Object, Observed, Origin, Outputs, Ownership,
    Problem, Recorded, ReplaceOrder, ResourceId, SiteName, Spec, Wanted,
};

use super::facts::{ResourceIndex, SiteFacts, World, degraded, needs_of};
use super::{Branch, DeleteData, Note, Purpose};
use crate::state::{ReplacedObject, within};

/// The decisions about all resources that are wanted, recorded or observed.
pub(super) struct Decisions<'a> {
    /// By index.
    pub(super) all: Vec<Option<Decided<'a>>>,
    pub(super) warnings: Vec<Problem>,
}

/// The decision about one resource.
pub(super) struct Decided<'a> {
    pub(super) what: Decision<'a>,
    pub(super) wanted: Option<&'a Wanted>,
    /// The wanted spec, with the known outputs filled in.
    pub(super) spec: Spec,
    pub(super) site: &'a SiteName,
    pub(super) changes: Vec<FieldChange>,
    pub(super) because: String,
    /// Replaced objects that have yet to be removed.
    pub(super) old: &'a [ReplacedObject],
    /// Objects of this lineage without a record.
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
    /// A replaced object still exists and matches what is wanted.
    Return {
        back: Box<Recorded>,
        old: &'a ReplacedObject,
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
    /// Only unrecorded or replaced objects are left.
    Leftovers,
    Blocked,
    Refused {
        problem: Problem,
    },
}

/// What is known about a resource's outputs.
enum KnownOutputs<'a> {
    Now(Cow<'a, Outputs>),
    /// Known after apply. `last`: the recorded outputs. `fresh`: a new object whose id differs from the old one's.
    After {
        last: Option<&'a Outputs>,
        fresh: bool,
    },
    Never,
}

pub(super) struct DecisionBuilder<'w, 'a> {
    pub(super) world: &'w World<'a>,
    /// By index, like all fields below.
    known: Vec<Option<KnownOutputs<'a>>>,
    pub(super) all: Vec<Option<Decided<'a>>>,
    pub(super) warnings: Vec<Problem>,
    /// Resources that others are or will be reached through.
    hosts: Vec<bool>,
    /// Hosts of resources that hold data whose loss was not approved.
    precious_hosts: Vec<bool>,
    /// What is inside of each resource, or of those reached through it, and is retained.
    pub(super) guests: Vec<Option<String>>,
    /// Resources that are removed because of objects that their controllers created, and where those are.
    tied: BTreeMap<ResourceIndex, &'a ResourceId>,
}

/// The observations of one resource.
pub(super) struct ResourceObservation<'a> {
    pub(super) seen: Option<&'a Object>,
    pub(super) strays: Vec<&'a Object>,
    /// Objects with the labels of this deployment that no operation of the journal created, as far as it shows.
    pub(super) unproven: Vec<&'a Object>,
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
            // Objects in it are removed through it; a new host in its place would not reach them.
            hosts[host] = true;
            precious_hosts[host] |= is_kept(world, child, site);
        }
    }
    let guests = guests(world);
    let (known, all, tied) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut deciding = DecisionBuilder { world, known, all, warnings: Vec::new(), hosts, precious_hosts, guests, tied };
    // A decision may affect others, which may affect more. Each round adds at least one, so the loop ends.
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

impl<'a> DecisionBuilder<'_, 'a> {
    fn wanted(&mut self, place: ResourceIndex, wanted: &'a Wanted) -> Decided<'a> {
        let holding = self.world.rows[place].holding.map(|(_, holding)| holding);
        let current = holding.and_then(|holding| holding.current.as_ref());
        let spec = wanted.spec.resolve_known(|id| match self.known_of(id) {
            Some(KnownOutputs::Now(outputs)) => Some(outputs.as_ref()),
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

    fn known_of(&self, id: &ResourceId) -> Option<&KnownOutputs<'a>> {
        self.known[self.world.place(id)?].as_ref()
    }

    /// The decision about another resource.
    pub(super) fn decision(&self, id: &ResourceId) -> Option<&Decision<'a>> {
        Some(&self.all[self.world.place(id)?].as_ref()?.what)
    }

    /// Stores what dependents can know about the outputs.
    fn learn(&mut self, place: ResourceIndex, wanted: &'a Wanted, decided: &Decided<'a>, last: Option<&'a Outputs>) {
        let token = self.world.kind_of(wanted).is_some_and(|kind| kind.identity == Identity::Token);
        let known = match &decided.what {
            Decision::Same => KnownOutputs::Now(last.map_or_else(Cow::default, Cow::Borrowed)),
            Decision::Note(Note::Adopt { recorded, .. } | Note::Remember { recorded }) => {
                KnownOutputs::Now(Cow::Owned(recorded.outputs.clone()))
            }
            Decision::Return { back, .. } => KnownOutputs::Now(Cow::Owned(back.outputs.clone())),
            Decision::Create => KnownOutputs::After { last, fresh: false },
            Decision::Replace { .. } => KnownOutputs::After { last, fresh: token },
            Decision::Update { recorded, .. } | Decision::Maybe { recorded, .. } => {
                let last = match recorded {
                    Cow::Borrowed(recorded) => Some(&recorded.outputs),
                    // An unrecorded object is recorded as observed.
                    Cow::Owned(_) => decided.what.seen().map(|seen| &seen.outputs),
                };
                KnownOutputs::After { last, fresh: false }
            }
            _ => last.map_or(KnownOutputs::Never, |last| KnownOutputs::Now(Cow::Borrowed(last))),
        };
        self.known[place] = Some(known);
    }

    /// The objects of a resource, or why they could not be read.
    pub(super) fn sight(
        &self,
        place: ResourceIndex,
        current: Option<&Recorded>,
    ) -> Result<ResourceObservation<'a>, String> {
        let row = &self.world.rows[place];
        if let Some(op) = row.open {
            return Err(format!("operation {op} on it has not finished"));
        }
        let wanted = row.wanted;
        let host = wanted.map(|wanted| wanted.via.as_ref()).unwrap_or(current.and_then(|current| current.via.as_ref()));
        if let Some(host) = host {
            match self.decision(&host.0) {
                // A missing host has no children; a resource that moves to it is still at its old host.
                Some(Decision::Create) if current.is_none_or(|current| current.via.as_ref() == Some(host)) => {
                    return Ok(ResourceObservation { seen: None, strays: Vec::new(), unproven: Vec::new() });
                }
                Some(Decision::Blocked | Decision::Refused { .. }) => {
                    return Err(format!("its host `{}` is blocked", host.0));
                }
                _ => {}
            }
        }
        let Some((site, answers)) = &row.observed else {
            return Err("the provider did not report whether it exists".to_owned());
        };
        let mut objects: Vec<&'a Object> = Vec::new();
        for answer in answers {
            match answer {
                Observed::Present(object) => objects.push(object),
                Observed::Absent => {}
                Observed::Unknown(why) => return Err(format!("it could not be observed: {}", why.0)),
            }
        }
        objects.sort_by(|a, b| a.cloud_id.cmp(&b.cloud_id));
        let holding = row.holding.map(|(_, holding)| holding);
        let old: BTreeSet<_> =
            holding.iter().flat_map(|holding| &holding.old).map(|old| &old.recorded.cloud_id).collect();
        objects.retain(|object| !old.contains(&object.cloud_id));
        let at = current.and_then(|current| objects.iter().position(|object| object.cloud_id == current.cloud_id));
        let is_external = wanted.is_some_and(|wanted| matches!(wanted.ownership, Ownership::External(_)));
        let found = at.map(|at| objects.remove(at));
        let is_recorded =
            |object: &&'a Object| is_external || current.is_none_or(|one| self.is_same(site, one, object));
        let seen = found.filter(is_recorded);
        let (mut strays, mut unproven): (Vec<&'a Object>, Vec<&'a Object>) =
            objects.into_iter().partition(|object| is_external || self.is_proven(place, object));
        if let Some(object) = found.filter(|_| seen.is_none()) {
            // Whose object it is, is known: it is another deployment's.
            let is_foreign = object.lineage.is_some_and(|lineage| lineage != self.world.facts.lineage);
            if is_foreign { strays.push(object) } else { unproven.push(object) }
        }
        if let (Some(current), None, Some(holding)) = (current, seen, holding) {
            let settles = self.world.kind(site, &current.kind).map(|kind| kind.settles).unwrap_or_default();
            // An object that cannot be found right after its creation is not necessarily gone, whatever others put beside
            // it.
            if strays.is_empty() && within(self.world.facts.now, holding.since, settles) {
                return Err("it was just created and is not visible yet".to_owned());
            }
        }
        Ok(ResourceObservation { seen, strays, unproven })
    }

    /// Whether an object with the id of a recorded one is that one. Others may create an object of the same name once
    /// it is gone; a provider that marks objects then shows it without our lineage. Marks can be copied.
    fn is_same(&self, site: &SiteName, recorded: &Recorded, object: &Object) -> bool {
        // Ids that the provider assigns are not used again.
        let is_named = || self.world.kind(site, &recorded.kind).is_some_and(|kind| kind.identity != Identity::Token);
        let is_ours = matches!(recorded.ownership, Ownership::Ours);
        let lost_labels = object.lineage.is_none() && object.origin != Origin::Untold && is_ours && is_named();
        !lost_labels && !is_other(recorded, object)
    }

    /// Whether an object without a record may be of this deployment, by more than its labels, which others may set and
    /// copy: exactly one object has the token of a create that ended without a recorded one, and is not older. Where a provider does not
    /// tell the operation, the labels decide. Another deployment's object is judged by those too.
    fn is_proven(&self, place: ResourceIndex, object: &Object) -> bool {
        let row = &self.world.rows[place];
        let created_by = match &object.origin {
            _ if object.lineage.is_some_and(|lineage| lineage != self.world.facts.lineage) => return true,
            Origin::Untold => return true,
            Origin::Unmarked => return object.lineage.is_none(),
            Origin::Operation(token) => token,
        };
        let Some((site, _)) = &row.observed else { return false };
        let unresolved = self.world.site(site).unresolved.get(self.world.ids[place]);
        let same = row.present().filter(|other| other.origin.operation() == Some(created_by)).count();
        same == 1 && unresolved.is_some_and(|all| all.iter().any(|create| create.may_have_made(object)))
    }

    /// Reports objects that only their labels make ours.
    pub(super) fn report_unproven(&mut self, place: ResourceIndex, unproven: &[&Object]) {
        for object in unproven {
            let (cause, fix) = unproven_problem(self.world.ids[place], object);
            self.warnings.push(Problem::warning(self.world.ids[place].as_str(), cause, fix));
        }
    }

    fn choose(
        &mut self,
        place: ResourceIndex,
        wanted: &'a Wanted,
        current: Option<&'a Recorded>,
        sight: ResourceObservation<'a>,
        decided: &mut Decided<'a>,
    ) {
        if let Ownership::External(_) = wanted.ownership {
            return self.external(place, wanted, current, sight, decided);
        }
        let ResourceObservation { seen, strays, unproven } = sight;
        let theirs = strays.iter().copied().find(|object| !self.is_ours(object, wanted));
        let lost_labels = |object: &Object| self.lost_labels(object, wanted, current);
        if let Some(object) = theirs.or(seen.filter(|object| !self.is_ours(object, wanted) && !lost_labels(object))) {
            let cause = match object.lineage {
                Some(other) => format!("`{}` belongs to deployment {other}", object.cloud_id),
                None => format!("`{}` already exists and was not created by this deployment", object.cloud_id),
            };
            // A state with records of its own imports no other deployment.
            let is_empty = self.world.facts.sites.values().all(|site| site.holdings.is_empty());
            let lost = object.lineage.filter(|_| is_empty).map_or_else(String::new, |other| {
                let import = format!("`textnlp-deploy state import --lineage {other}`");
                format!("if the state of this environment was lost: {import}; else ")
            });
            let fix = format!("{lost}rename the component, or set the object as `existing:`");
            decided.what = Decision::Refused { problem: Problem::new(wanted.id.as_str(), cause, fix) };
            return;
        }
        if let (None, [], [object, others @ ..]) = (seen, strays.as_slice(), unproven.as_slice()) {
            // A new object could have the same name, or be a second one of those that a lost record was about.
            let (cause, fix) = unproven_problem(&wanted.id, object);
            decided.what = Decision::Refused { problem: Problem::new(wanted.id.as_str(), cause, fix) };
            self.report_unproven(place, others);
            return;
        }
        self.report_unproven(place, &unproven);
        let mut strays = strays.into_iter().map(|object| (self.stray(wanted, object), object)).collect::<Vec<_>>();
        match (current, seen) {
            (Some(recorded), Some(seen)) => {
                self.compare(place, wanted, Cow::Borrowed(recorded), seen, false, decided);
                if matches!(decided.what, Decision::Replace { .. })
                    && let Some((old, seen)) = self.old_as_wanted(place, wanted, &decided.spec)
                {
                    let schema = self.world.kind_of(wanted).map_or(1, |kind| kind.schema);
                    let back = Box::new(refreshed(wanted, &decided.spec, seen, schema, false));
                    decided.because = "the object that it replaced still exists and matches the plan".to_owned();
                    decided.changes.clear();
                    decided.what = Decision::Return { back, old, instead: recorded };
                }
            }
            (gone, _) if !strays.is_empty() => {
                // An object of this lineage without a record: a run crashed between call and record, or the record was
                // lost.
                let (recorded, seen) = strays.remove(0);
                let id = &seen.cloud_id;
                decided.because = if gone.is_some() {
                    format!("the recorded object is gone, and `{id}` of this deployment exists")
                } else {
                    format!("`{id}` belongs to this deployment and was not recorded")
                };
                self.compare(place, wanted, Cow::Owned(recorded), seen, true, decided);
                if !decided.because.contains(seen.cloud_id.as_str()) {
                    decided.because = format!("`{id}` was not recorded: {}", decided.because);
                }
            }
            (Some(recorded), None) => {
                decided.because = "it is gone".to_owned();
                decided.what = Decision::Create;
                if is_kept(self.world, recorded, &wanted.site) {
                    self.data_is_gone(wanted, recorded, decided);
                }
            }
            (None, _) => decided.what = Decision::Create,
        }
        decided.strays = strays.into_iter().map(|(recorded, _)| recorded).collect();
        self.wait_for_needs(place, decided);
    }

    /// Names the loss of protected data before an empty object takes its place. Without the operator's consent, that of
    /// a database is refused: clients would get the empty one, and its backups would replace those of the lost one.
    fn data_is_gone(&mut self, wanted: &'a Wanted, recorded: &Recorded, decided: &mut Decided<'a>) {
        let resource = wanted.id.as_str();
        if let Some(problem) = self.copies_elsewhere(wanted, recorded) {
            self.warnings.push(problem);
            return;
        }
        let cause = "it is gone, with the data in it: what `up` creates in its place is empty";
        let by_restore =
            "check that its disk is mounted; to have lost data back, restore a backup first (`backup list`)";
        let site = self.world.site(&wanted.site);
        let is_database = match site.provider.database_part(recorded) {
            Some(DatabasePart::Data) => true,
            // A restore leaves a dump, which is loaded once the server is created.
            Some(DatabasePart::Loaded) => site.unfilled.contains(&wanted.id),
            Some(DatabasePart::Shared | DatabasePart::Dumps) | None => false,
        };
        // A managed server is restored by its cloud, beside the lost one; a promoted replica has the database already.
        let is_managed =
            self.world.kind_of(wanted).is_some_and(|kind| kind.replica.is_some() || kind.identity == Identity::Part);
        if !is_database || is_managed {
            self.warnings.push(Problem::warning(resource, cause, by_restore));
        } else if self.world.facts.delete_data == DeleteData::Lost {
            let fix = "its loss was accepted with `--accept-data-loss`";
            self.warnings.push(Problem::warning(resource, cause, fix));
        } else {
            // A dump is restored into a server that runs; its volume is no disk that is mounted by hand.
            let fix = match recorded.via {
                Some(_) => {
                    "begin with an empty one: `up --accept-data-loss ENV`, then restore a dump into it".to_owned()
                }
                None => format!("{by_restore}; to begin with an empty one: `up --accept-data-loss ENV`"),
            };
            decided.what = Decision::Refused { problem: Problem::new(resource, cause, fix) };
        }
    }

    /// What is lost of an object that is gone, and from where the rest is filled again; `None` if nothing fills it.
    fn copies_elsewhere(&self, wanted: &'a Wanted, gone: &Recorded) -> Option<Problem> {
        let facts = self.world.facts;
        let site = self.world.site(&wanted.site);
        let resource = wanted.id.as_str();
        let note = |why: &str| Problem::note(resource, format!("it is gone: {why}"), "no restore is needed");
        let warning =
            |why: &str| Problem::warning(resource, format!("it is gone: {why}"), "check that its disk is mounted");
        if site.is_copy(gone) {
            return Some(note("it is a copy, and its source has the data"));
        }
        let part = site.provider.database_part(gone)?;
        let parts = |site: &'a SiteFacts| {
            let current = site.holdings.values().filter_map(|holding| holding.current.as_ref());
            current.filter_map(move |one| Some((one, site.provider.database_part(one)?)))
        };
        let is_there = |site: &SiteFacts, one: &Recorded| {
            let is_seen =
                |seen: &Observed| matches!(seen, Observed::Present(object) if object.cloud_id == one.cloud_id);
            site.observed.iter().any(|(id, seen)| *id == one.id && is_seen(seen))
        };
        let is_member = parts(site).any(|(_, part)| part == DatabasePart::Shared);
        // The log of a witness has no data.
        let is_data = |part: DatabasePart| matches!(part, DatabasePart::Data | DatabasePart::Loaded);
        let has_data = |site: &'a SiteFacts| parts(site).any(|(one, part)| is_data(part) && is_there(site, one));
        let others_have = || facts.sites.iter().any(|(other, site)| *other != wanted.site && has_data(site));
        // A run of one site does not read the others.
        let is_alone = facts.sites.len() == 1;
        match part {
            DatabasePart::Shared => Some(note("it is filled from the databases of the sites")),
            _ if !is_member => None,
            DatabasePart::Data if is_alone => Some(warning(
                "if another site has the data, it fills in keys and feature flags; usage and the audit log of this site are lost",
            )),
            DatabasePart::Data if others_have() => Some(warning(
                "the other sites fill in keys and feature flags; usage and the audit log of this site are lost",
            )),
            DatabasePart::Loaded if is_alone => Some(warning("if another site has the data, it fills it")),
            DatabasePart::Loaded if others_have() => Some(note("the other sites have the data, and fill it")),
            DatabasePart::Data | DatabasePart::Loaded | DatabasePart::Dumps => None,
        }
    }

    /// Whether an object is managed: it carries this lineage, or it is a part that cannot carry one, of a managed
    /// parent.
    fn is_ours(&self, object: &Object, wanted: &'a Wanted) -> bool {
        let part = self.world.kind_of(wanted).is_some_and(|kind| kind.identity == Identity::Part);
        object.lineage.map_or(part, |lineage| lineage == self.world.facts.lineage)
    }

    /// Whether a recorded object of this deployment has no lineage any more and is known by an id that the provider assigned, and
    /// that it does not use again.
    fn lost_labels(&self, object: &Object, wanted: &'a Wanted, recorded: Option<&Recorded>) -> bool {
        object.lineage.is_none()
            && recorded.is_some_and(|recorded| matches!(recorded.ownership, Ownership::Ours))
            && self.world.kind(&wanted.site, &object.kind).is_some_and(|kind| kind.identity == Identity::Token)
    }

    fn stray(&self, wanted: &'a Wanted, object: &Object) -> Recorded {
        let schema = self.world.kind_of(wanted).map_or(1, |kind| kind.schema);
        let via = object.via.clone().or(wanted.via.clone());
        record_of(&wanted.id, wanted.site.clone(), via, schema, object)
    }

    fn external(
        &self,
        place: ResourceIndex,
        wanted: &'a Wanted,
        current: Option<&Recorded>,
        sight: ResourceObservation<'a>,
        decided: &mut Decided<'a>,
    ) {
        let Ownership::External(id) = &wanted.ownership else { return };
        let ResourceObservation { seen, strays, .. } = sight;
        let Some(object) = seen.or(strays.first().copied()) else {
            let cause = format!("`existing: {id}`: the object does not exist");
            decided.what = Decision::Refused {
                problem: Problem::new(
                    wanted.id.as_str(),
                    cause,
                    "give the id of an existing object, or remove `existing`",
                ),
            };
            return;
        };
        // Its record would be lost, and nothing would remove it any more.
        let is_own = |one: &&Recorded| matches!(one.ownership, Ownership::Ours) && one.cloud_id != object.cloud_id;
        if let Some(own) = current.filter(is_own) {
            let cause = format!("`{}` was created by this deployment and would be left without a record", own.cloud_id);
            let fix = format!(
                "remove `existing`, or remove that object with `down` first; `state remove {}` keeps it without a record",
                wanted.id
            );
            decided.what = Decision::Refused { problem: Problem::new(wanted.id.as_str(), cause, fix) };
            return;
        }
        // Resources that are recorded inside the old host would not be found in the new one, and would be recreated
        // without their data.
        if let Some(current) = current.filter(|current| self.hosts[place] && current.cloud_id != object.cloud_id) {
            let cause =
                format!("the objects inside it are recorded in `{}`, not in `{}`", current.cloud_id, object.cloud_id);
            let fix = "set that one again, or remove its contents with `down` before you replace it";
            decided.what = Decision::Refused { problem: Problem::new(wanted.id.as_str(), cause, fix) };
            return;
        }
        decided.what = self.same_or_note(place, wanted, &decided.spec, current, object, false);
    }

    /// No change, or a change of the record only.
    fn same_or_note(
        &self,
        place: ResourceIndex,
        wanted: &'a Wanted,
        spec: &Spec,
        current: Option<&Recorded>,
        seen: &Object,
        stray: bool,
    ) -> Decision<'a> {
        let schema = self.world.kind_of(wanted).map_or(1, |kind| kind.schema);
        let fresh = ExpectedRecord { wanted, spec, seen, schema };
        let needs = || self.needs_recorded(place, wanted);
        match current.filter(|_| !stray) {
            Some(current) if fresh.is(current, needs()) => Decision::Same,
            Some(_) => {
                Decision::Note(Note::Remember { recorded: Box::new(refreshed(wanted, spec, seen, schema, false)) })
            }
            None => Decision::Note(Note::Adopt {
                recorded: Box::new(refreshed(wanted, spec, seen, schema, false)),
                created_by: seen.origin.operation().cloned(),
            }),
        }
    }

    /// The recorded dependencies. The host is recorded separately.
    fn needs_recorded(&self, place: ResourceIndex, wanted: &Wanted) -> impl Iterator<Item = &'a ResourceId> {
        let host = wanted.via.as_ref().and_then(|host| self.world.place(&host.0));
        let needs = self.world.rows[place].needs.iter().filter(move |need| Some(**need) != host);
        needs.map(|need| self.world.ids[*need])
    }

    /// Compares an existing object with what is wanted.
    fn compare(
        &mut self,
        place: ResourceIndex,
        wanted: &'a Wanted,
        recorded: Cow<'a, Recorded>,
        seen: &'a Object,
        stray: bool,
        decided: &mut Decided<'a>,
    ) {
        if let Some(reason) = degraded(&seen.health) {
            self.warnings.push(Problem::warning(
                wanted.id.as_str(),
                format!("it is unhealthy: {reason}"),
                format!("see `textnlp-deploy explain {}`", wanted.id),
            ));
        }
        let Some(kind) = self.world.kind_of(wanted) else { return };
        // The journal cannot hold an unrecorded object beside a new one, so it is deleted first.
        let order = if stray { ReplaceOrder::DeleteFirst } else { self.order(place, kind) };
        let host = wanted.via.as_ref().and_then(|host| self.decision(&host.0));
        let host_change = match host {
            Some(Decision::Replace { .. }) => Branch::Replace,
            Some(Decision::Maybe { most: Branch::Replace, .. }) => Branch::Update,
            _ => Branch::Nothing,
        };
        let why = if recorded.tainted {
            Some(Cow::Borrowed("its creation failed before it was complete"))
        } else if recorded.kind != wanted.kind {
            Some("its kind changes".into())
        } else if recorded.via != wanted.via {
            Some("it moves to another host".into())
        } else if host_change == Branch::Replace {
            Some("its host is replaced".into())
        } else {
            let replaced_host = self.tied.get(&place);
            replaced_host.map(|replaced_host| {
                format!("objects of its controllers are inside `{replaced_host}`, which must be removed first").into()
            })
        };
        let guests = self.guests[place].as_ref();
        if let (Some(why), Some(guests)) = (&why, guests) {
            decided.because = format!("{why}, and {guests}");
            return;
        }
        if let Some(why) = why {
            // A tainted object holds no data yet.
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
            let fix = "set it as the cause says, or restore the old value";
            decided.what = Decision::Refused { problem: Problem::new(wanted.id.as_str(), reason, fix) };
            return;
        }
        let least = branch_of(&certain);
        let mut most = least.max(branch_of(&possible));
        if host_change == Branch::Update {
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

    /// Resources that stay whose controllers created objects inside of a resource that must be removed first: they
    /// would create them again. By index, with the resource that is removed.
    fn would_fill_again(&self) -> BTreeMap<ResourceIndex, &'a ResourceId> {
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
            // Object ids are unique only within a site.
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

    /// A replaced object that still exists, is healthy and matches what is wanted now: a rollback needs no new object.
    fn old_as_wanted(
        &self,
        place: ResourceIndex,
        wanted: &'a Wanted,
        spec: &Spec,
    ) -> Option<(&'a ReplacedObject, &'a Object)> {
        let row = &self.world.rows[place];
        // A change of the host takes the resources behind it along.
        let is_unchanged = |host: &ResourceId| matches!(self.decision(host), Some(Decision::Same | Decision::Note(_)));
        if self.hosts[place]
            || !spec.outputs_needed().is_empty()
            || wanted.via.as_ref().is_some_and(|host| !is_unchanged(&host.0))
        {
            return None;
        }
        let (_, holding) = row.holding?;
        holding.old.iter().find_map(|old| {
            let ReplacedObject { recorded, .. } = old;
            let seen = row.present().find(|object| object.cloud_id == recorded.cloud_id)?;
            let is_healthy = !recorded.tainted && degraded(&seen.health).is_none() && self.is_ours(seen, wanted);
            let is_alike = recorded.kind == wanted.kind && recorded.via == wanted.via;
            let (certain, possible) = self.differences(wanted, spec, recorded, seen);
            (is_healthy && is_alike && certain.is_empty() && possible.is_empty()).then_some((old, seen))
        })
    }

    /// The certain differences, and the possible ones once other outputs are known.
    ///
    /// For the first, unknown outputs have their recorded values; for the second, they stay references.
    fn differences(
        &self,
        wanted: &Wanted,
        partly: &Spec,
        recorded: &Recorded,
        seen: &Object,
    ) -> (Vec<FieldChange>, Vec<FieldChange>) {
        let provider = &self.world.site(&wanted.site).provider;
        let diff_of = |spec: Spec| provider.diff(&Wanted { spec, ..wanted.clone() }, recorded, seen);
        let assumed = partly.resolve_known(|id| match self.known_of(id) {
            Some(KnownOutputs::Now(outputs)) => Some(outputs.as_ref()),
            Some(KnownOutputs::After { last: Some(outputs), .. }) => Some(outputs),
            _ => None,
        });
        let open: BTreeSet<_> = partly.outputs_needed().iter().map(|output| &output.resource).collect();
        let unassumed = !assumed.outputs_needed().is_empty();
        let mut certain = diff_of(assumed);
        if unassumed {
            certain.retain(|change| refers_to(change).is_empty());
        }
        if open.is_empty() {
            return (certain, Vec::new());
        }
        let fresh = |id: &ResourceId| matches!(self.known_of(id), Some(KnownOutputs::After { fresh: true, .. }));
        let (mut sure, mut possible) = (Vec::new(), Vec::new());
        for change in diff_of(partly.clone()) {
            let refers = refers_to(&change);
            if refers.is_empty() || certain.iter().any(|known| known.field == change.field) {
                continue;
            }
            // A new object of a kind with generated ids has another id, so resources that refer to the old id are
            // replaced with it. What an output sets for the first time changes for certain.
            let is_sure = match change.effect {
                Effect::Replace => refers.iter().any(fresh),
                // An observation may lack a value that the object has.
                Effect::Refuse(_) => {
                    let has_none = recorded.spec.get(&change.field).is_none_or(Value::is_null);
                    (change.before.is_none() && has_none) || refers.iter().any(fresh)
                }
                Effect::InPlace => false,
            };
            if is_sure {
                sure.push(change);
            } else {
                possible.push(change);
            }
        }
        if sure.is_empty() && possible.is_empty() {
            // The provider named no field, but the outputs may still change it; the comparison is repeated then.
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

    /// The order of a replacement. The new object cannot come first if a dependency of it must be deleted first.
    fn order(&self, place: ResourceIndex, kind: &Kind) -> ReplaceOrder {
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

    /// Whether an object and everything in it may be lost: it holds no protected data, or the operator approved.
    fn may_lose(&self, place: ResourceIndex, wanted: &Wanted, recorded: &Recorded, kind: &Kind) -> bool {
        let facts = self.world.facts;
        if facts.delete_data == DeleteData::All {
            return true;
        }
        let precious =
            recorded.protected || (kind.data == DataClass::Precious && self.world.site(&wanted.site).protect_data);
        !precious && !wanted.protected && !self.precious_hosts[place]
    }

    /// Blocks a decision that depends on a resource that could not be read or must not change.
    fn wait_for_needs(&self, place: ResourceIndex, decided: &mut Decided<'a>) {
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
            decided.because = format!("it needs `{}`, which is blocked", self.world.ids[*need]);
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

/// The record that an object would have if it matched what is wanted.
struct ExpectedRecord<'f> {
    wanted: &'f Wanted,
    spec: &'f Spec,
    seen: &'f Object,
    schema: u32,
}

impl ExpectedRecord<'_> {
    /// Whether it equals this record. Equivalent to a comparison with [`refreshed`], without building it.
    fn is<'i>(&self, recorded: &Recorded, needs: impl Iterator<Item = &'i ResourceId>) -> bool {
        let Self { wanted, spec, seen, schema } = self;
        recorded.kind == wanted.kind
            && recorded.site == wanted.site
            && recorded.via == wanted.via
            && recorded.ownership == wanted.ownership
            && recorded.schema == *schema
            && recorded.cloud_id == seen.cloud_id
            && (seen.created.is_none() || recorded.created == seen.created)
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
    let is_approved = match world.facts.delete_data {
        DeleteData::Nothing | DeleteData::Lost => false,
        DeleteData::Dumps => {
            world.facts.purpose == Purpose::Down
                && facts.are_dumps(recorded)
                && only_copy(world, recorded, site).is_none()
        }
        DeleteData::All => true,
    };
    !is_approved && !recorded.tainted && (recorded.protected || (precious && facts.protect_data))
}

/// Why dumps may be the only copy of a database, so that their deletion alone is refused.
pub(super) fn only_copy(world: &World<'_>, dumps: &Recorded, site: &SiteName) -> Option<String> {
    let facts = world.facts.sites.get(site)?;
    let current = facts.holdings.values().filter_map(|holding| holding.current.as_ref());
    let data: Vec<&Recorded> = current.filter(|one| facts.is_data(one)).collect();
    if data.is_empty() {
        return Some("no database outside of the cluster is recorded: these may be the only copy".to_owned());
    }
    // Every part has to be there: a server whose database was dropped still exists.
    data.into_iter().find_map(|one| {
        if one.via == dumps.via {
            return Some(format!("the database `{}` runs in the same cluster: these are its only copy", one.id));
        }
        let is_seen = |seen: &Observed| matches!(seen, Observed::Present(object) if object.cloud_id == one.cloud_id);
        let missing = if !facts.observed.iter().any(|(id, seen)| *id == one.id && is_seen(seen)) {
            "was not found"
        } else if !is_kept(world, one, site) {
            "is not kept"
        } else {
            return None;
        };
        Some(format!("`{}` of the database outside of the cluster {missing}: these may be the only copy", one.id))
    })
}

/// Whether `down --delete-dumps` would delete these dumps, which this plan keeps.
pub(super) fn may_go_alone(world: &World<'_>, recorded: &Recorded, site: &SiteName) -> bool {
    let facts = world.facts;
    (facts.purpose, facts.delete_data) == (Purpose::Down, DeleteData::Nothing)
        && facts.sites.get(site).is_some_and(|site| site.are_dumps(recorded))
        && only_copy(world, recorded, site).is_none()
}

/// The record of an object that matches what is wanted.
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
        created: seen.created,
        outputs: seen.outputs.clone(),
        protected: wanted.protected,
        tainted,
    }
}

/// Dependencies as recorded: explicit ones and those implied by references, without duplicates.
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
        spec: object.spec.applied(),
        needs: Vec::new(),
        ownership: Ownership::Ours,
        schema,
        cloud_id: object.cloud_id.clone(),
        created: object.created,
        outputs: object.outputs.clone(),
        protected: false,
        tainted: false,
    }
}

/// What is inside each object, or inside the resources reached through it, and is retained: only its owner may remove
/// it.
fn guests(world: &World<'_>) -> Vec<Option<String>> {
    let mut all = vec![None; world.rows.len()];
    for (place, row) in world.rows.iter().enumerate() {
        let names: Vec<String> = row
            .present()
            .flat_map(|object| object.foreign.iter().filter(|foreign| foreign.is_in_the_way()))
            .map(|foreign| format!("`{}` ({})", foreign.cloud_id, foreign.what))
            .collect();
        if names.is_empty() {
            continue;
        }
        let is = if names.len() == 1 { "is" } else { "are" };
        let text = format!(
            "{} {is} inside `{}` and was not created by this deployment: move it away first",
            names.join(", "),
            world.ids[place]
        );
        // It is inside every host on the way up; a host that was visited before ends a cycle.
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
    let fix = "revert the change, or accept the loss of the data with `--delete-data ENV`";
    Decision::Refused { problem: Problem::new(wanted.id.as_str(), cause, fix) }
}

/// Whether its creation time tells an object from the recorded one.
pub(super) fn is_other(recorded: &Recorded, object: &Object) -> bool {
    recorded.created.zip(object.created).is_some_and(|(recorded, seen)| recorded != seen)
}

/// Why an object is not ours, and how to proceed.
pub(super) fn unproven_problem(resource: &ResourceId, object: &Object) -> (String, String) {
    if object.lineage.is_none() {
        let cause = format!(
            "`{}` ({}) has the name of a recorded object and no label `textnlp-lineage`: it may be another one, and it is not used, changed or deleted",
            object.cloud_id, object.kind
        );
        let fix = format!(
            "restore its labels `textnlp-lineage` and `textnlp-resource` if it is the recorded one; otherwise \
             `textnlp-deploy state remove {resource}`"
        );
        return (cause, fix);
    }
    let cause = format!(
        "`{}` ({}) has the labels of this deployment, but no operation in the state created it: it is not used, changed or deleted",
        object.cloud_id, object.kind
    );
    let fix = format!(
        "to record it: `textnlp-deploy state import {resource}={}`, after `state remove {resource}` if another is recorded; \
         otherwise remove its labels or delete it yourself",
        object.cloud_id
    );
    (cause, fix)
}

/// The strongest effect among changes.
pub(crate) fn branch_of(changes: &[FieldChange]) -> Branch {
    let one = |change: &FieldChange| if change.effect == Effect::Replace { Branch::Replace } else { Branch::Update };
    changes.iter().map(one).max().unwrap_or(Branch::Nothing)
}

/// The resources whose outputs a change refers to.
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
    fn recorded_resource_is_current_only_when_it_matches_the_plan() {
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
            origin: textnlp_provider::Origin::Untold,
            created: None,
            health: Health::Ready,
            via: None,
            foreign: Vec::new(),
        };
        let fresh = ExpectedRecord { wanted: &wanted, spec: &wanted.spec, seen: &seen, schema: 3 };
        let refreshed_record = refreshed(&wanted, &wanted.spec, &seen, 3, false);
        let check = |edit: fn(&mut Recorded), expect: bool| {
            let mut recorded = refreshed_record.clone();
            edit(&mut recorded);
            assert_eq!(recorded == refreshed_record, expect);
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
