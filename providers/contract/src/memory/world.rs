//! The objects of the memory cloud and what calls do to them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::faults::{Drift, Fault, FaultEffect, Stage};
use super::{AGAIN_IN, kinds};
use crate::error::{Error, ErrorKind, Result};
use crate::kind::Identity;
use crate::name::{CloudId, EnvironmentName, KindName, Lineage, ResourceId, SiteName};
use crate::operation::{Handle, Operation, OperationId, Progress, Token, Verb};
use crate::provider::Scope;
use crate::resource::{Foreign, Health, Object, Observed, Origin, Outputs, ReadFailure};
use crate::spec::Spec;

/// The health of an object that a long operation has not finished yet.
const BEING_MADE: &str = "still being made";

/// One object of the memory cloud.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredObject {
    /// Its id in the cloud.
    pub cloud_id: CloudId,
    /// Its kind.
    pub kind: KindName,
    /// The tag `textnlp-resource`; `None` for a foreign object.
    pub resource: Option<ResourceId>,
    /// Its site.
    pub site: Option<SiteName>,
    /// The tag `textnlp-environment`.
    pub environment: Option<EnvironmentName>,
    /// The tag `textnlp-lineage`.
    pub lineage: Option<Lineage>,
    /// Which operation made it.
    pub operation: Option<OperationId>,
    /// The tag `textnlp-operation`: the token of that operation.
    pub token: Option<Token>,
    /// When it was created, if the cloud tells.
    pub created: Option<Timestamp>,
    /// Its attributes.
    pub spec: Spec,
    /// Its parent, with which it is removed.
    pub parent: Option<CloudId>,
    /// Polls until it is ready; zero is ready.
    pub looks_left: u32,
    /// Why it is unhealthy.
    pub broken: Option<String>,
    /// The object that contains it, when no operation created it.
    pub inside: Option<CloudId>,
    /// The cluster whose controllers created it, and the lineage in that cluster's name.
    pub owner: Option<(CloudId, Lineage)>,
    /// Its controllers create nothing more.
    draining: bool,
    /// Observations that still omit it.
    hidden_for: u32,
    /// Its state before the last change, and the observations that still show it.
    was: Option<(Spec, u32)>,
}

impl StoredObject {
    /// From now on it is shown in its current state.
    pub(super) fn settle(&mut self) {
        (self.hidden_for, self.was) = (0, None);
    }
}

/// One call, as the cloud received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `begin` or `advance`.
    pub stage: &'static str,
    /// Its verb.
    pub verb: Verb,
    /// Its resource.
    pub resource: ResourceId,
    /// Its operation.
    pub operation: OperationId,
    /// The token of that operation.
    pub token: Token,
    /// Whether it changed something.
    pub mutated: bool,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) things: BTreeMap<CloudId, StoredObject>,
    pub(super) faults: Vec<Fault>,
    pub(super) unseen: BTreeSet<ResourceId>,
    pub(super) partial: bool,
    pub(super) quota: BTreeMap<KindName, usize>,
    pub(super) calls: Vec<Call>,
    pub(super) lag: u32,
    pub(super) stale: u32,
    pub(super) blind: u32,
    pub(super) slow: u32,
    pub(super) drifts: Vec<(usize, ResourceId, Drift)>,
    pub(super) complaints: Vec<String>,
    tokens: BTreeMap<String, (CloudId, String)>,
    made: u64,
}

impl World {
    pub(super) fn of_resource<'a>(&'a self, resource: &'a ResourceId) -> impl Iterator<Item = &'a StoredObject> {
        self.things.values().filter(move |thing| thing.resource.as_ref() == Some(resource))
    }

    pub(super) fn place_foreign(&mut self, kind: &KindName, cloud_id: &CloudId, lineage: Option<Lineage>, spec: Spec) {
        let thing = StoredObject {
            cloud_id: cloud_id.clone(),
            kind: kind.clone(),
            resource: None,
            site: None,
            environment: None,
            lineage,
            operation: None,
            token: None,
            created: None,
            spec,
            parent: None,
            looks_left: 0,
            broken: None,
            inside: None,
            owner: None,
            draining: false,
            hidden_for: 0,
            was: None,
        };
        self.things.insert(cloud_id.clone(), thing);
    }

    pub(super) fn place_guest(&mut self, resource: &ResourceId, cloud_id: &CloudId) -> bool {
        let network = self.of_resource(resource).find(|thing| thing.kind.as_str() == "memory.network");
        let Some(host) = network.map(|thing| thing.cloud_id.clone()) else { return false };
        self.place_foreign(&noun("guest"), cloud_id, None, Spec::default());
        self.things.get_mut(cloud_id).into_iter().for_each(|guest| guest.inside = Some(host.clone()));
        true
    }

    /// The controllers of these clusters create an object each, in the network of the cluster or in the cluster itself.
    pub(super) fn make_children(&mut self, resource: &ResourceId) {
        let works =
            |thing: &&StoredObject| thing.kind.as_str() == "memory.cluster" && thing.looks_left == 0 && !thing.draining;
        let clusters: Vec<StoredObject> = self.of_resource(resource).filter(works).cloned().collect();
        for StoredObject { cloud_id: cluster, spec, lineage, .. } in clusters {
            let network = spec.get("network").and_then(Value::as_str).and_then(|id| CloudId::new(id).ok());
            let network = network.filter(|id| self.things.get(id).is_some_and(|thing| thing.lineage == lineage));
            self.made += 1;
            let (kind, id) = (noun("balancer"), token_id(&noun("balancer"), self.made));
            self.place_foreign(&kind, &id, None, Spec::default());
            if let Some(child) = self.things.get_mut(&id) {
                child.inside = Some(network.unwrap_or_else(|| cluster.clone()));
                child.owner = lineage.map(|lineage| (cluster, lineage));
            }
        }
    }

    /// The objects inside of `id` that no operation created, and those that its controllers created elsewhere.
    fn foreign<'a>(&'a self, id: &'a CloudId) -> impl Iterator<Item = &'a StoredObject> {
        let is_there = move |thing: &&StoredObject| {
            thing.inside.as_ref() == Some(id) || thing.owner.as_ref().is_some_and(|(owner, _)| owner == id)
        };
        self.things.values().filter(is_there)
    }

    /// The objects that contain foreign objects.
    fn foreign_places(&self) -> BTreeSet<CloudId> {
        let children = self.things.values().filter(|thing| thing.inside.is_some());
        children
            .flat_map(|thing| thing.inside.iter().chain(thing.owner.iter().map(|(owner, _)| owner)))
            .cloned()
            .collect()
    }

    /// An object as callers observe it, with the foreign objects inside of it.
    fn shown(&self, thing: &StoredObject) -> Object {
        let foreign = self.foreign(&thing.cloud_id).map(|child| Foreign {
            cloud_id: child.cloud_id.clone(),
            what: child.kind.as_str().trim_start_matches("memory.").to_owned(),
            swept: child.owner.as_ref().is_some_and(|(_, lineage)| thing.lineage == Some(*lineage)),
            outlives: false,
            maker: child.owner.as_ref().map(|(cluster, _)| cluster.clone()),
        });
        Object { foreign: foreign.collect(), ..object(thing) }
    }

    pub(super) fn change(&mut self, resource: &ResourceId, field: &str, value: Value) -> bool {
        let Some(thing) = self.things.values_mut().find(|thing| thing.resource.as_ref() == Some(resource)) else {
            return false;
        };
        let mut spec = thing.spec.as_value().clone();
        spec[field] = value;
        thing.spec = Spec::of(&spec);
        true
    }

    pub(super) fn degrade(&mut self, resource: &ResourceId, reason: &str) {
        for thing in self.things.values_mut().filter(|thing| thing.resource.as_ref() == Some(resource)) {
            thing.broken = Some(reason.to_owned());
        }
    }

    /// Removes an object with everything that lives in it.
    pub(super) fn remove(&mut self, id: &CloudId) {
        self.things.remove(id);
        let children: Vec<_> = self
            .things
            .values()
            .filter(|thing| thing.parent.as_ref() == Some(id) || thing.inside.as_ref() == Some(id))
            .map(|thing| thing.cloud_id.clone())
            .collect();
        children.iter().for_each(|child| self.remove(child));
    }

    pub(super) fn observe(&mut self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        if self.blind > 0 {
            self.blind -= 1;
            return Err(
                Error::new(ErrorKind::Unavailable, "list", scope.site.as_str()).because("the list did not come")
            );
        }
        let mut requested: BTreeSet<ResourceId> = scope.wanted.iter().map(|wanted| wanted.id.clone()).collect();
        requested.extend(scope.recorded.iter().map(|recorded| recorded.id.clone()));
        let mut answer = Vec::new();
        let mut shown = BTreeSet::new();
        let foreign: BTreeSet<CloudId> = self.foreign_places();
        for thing in self.things.values_mut() {
            let (Some(resource), Some(site)) = (&thing.resource, &thing.site) else { continue };
            if thing.lineage != Some(scope.lineage) || site != scope.site || self.unseen.contains(resource) {
                continue;
            }
            if thing.hidden_for > 0 {
                thing.hidden_for -= 1;
                continue;
            }
            shown.insert(resource.clone());
            let resource = resource.clone();
            let mut seen = object(thing);
            if let Some((was, looks)) = thing.was.take().filter(|(_, looks)| *looks > 0) {
                seen = object(&StoredObject { spec: was.clone(), ..thing.clone() });
                thing.was = Some((was, looks - 1));
            }
            answer.push((resource, Observed::Present(seen)));
        }
        for (_, seen) in answer.iter_mut().filter(|_| !foreign.is_empty()) {
            if let Observed::Present(seen) = seen
                && foreign.contains(&seen.cloud_id)
                && let Some(thing) = self.things.get(&seen.cloud_id)
            {
                seen.foreign = self.shown(thing).foreign;
            }
        }
        for resource in requested.difference(&shown) {
            let seen = if self.unseen.contains(resource) || self.partial {
                Observed::Unknown(ReadFailure("the list was cut short".to_owned()))
            } else if let Some(thing) = self.without_labels(scope, resource) {
                Observed::Present(self.shown(thing))
            } else if let Some(thing) = self.foreign_object(scope, resource) {
                Observed::Unknown(ReadFailure(format!("`{}` belongs to another owner", thing.cloud_id)))
            } else {
                Observed::Absent
            };
            answer.push((resource.clone(), seen));
        }
        Ok(answer)
    }

    /// An object with the id of the recorded one and no lineage.
    fn without_labels(&self, scope: &Scope<'_>, resource: &ResourceId) -> Option<&StoredObject> {
        let recorded = scope.recorded.iter().find(|recorded| recorded.id == *resource)?;
        self.things.get(&recorded.cloud_id).filter(|thing| thing.lineage.is_none())
    }

    /// A foreign object under the name that a wanted one would have.
    fn foreign_object(&self, scope: &Scope<'_>, resource: &ResourceId) -> Option<&StoredObject> {
        let wanted = scope.wanted.iter().find(|wanted| wanted.id == *resource)?;
        let named = kinds::find(wanted.kind.as_str()).is_some_and(|kind| kind.identity == Identity::Named);
        let thing = named.then(|| self.things.get(&named_id(scope.environment, resource)))??;
        (thing.lineage != Some(scope.lineage)).then_some(thing)
    }

    pub(super) fn read(&self, kind: &KindName, id: &CloudId) -> Observed {
        match self.things.get(id).filter(|thing| thing.kind == *kind) {
            Some(thing) => Observed::Present(self.shown(thing)),
            None => Observed::Absent,
        }
    }

    pub(super) fn begin(&mut self, op: &Operation) -> Result<Progress> {
        self.call(Stage::Begin, op, |world| match op.verb {
            Verb::Create => world.create(op),
            Verb::Update => world.update(op),
            Verb::Delete => world.delete(op),
        })
    }

    pub(super) fn advance(&mut self, op: &Operation, handle: &Handle) -> Result<Progress> {
        let id = handle.0.get("id").and_then(Value::as_str).and_then(|id| CloudId::new(id).ok());
        let Some(id) = id else {
            return Err(Error::new(ErrorKind::Invalid, "read the handle of", op.resource.as_str()));
        };
        self.call(Stage::Advance, op, |world| match op.verb {
            Verb::Delete => world.delete(op),
            _ => world.look_again(op, &id),
        })
    }

    /// Applies the matching faults, logs the call, and executes it.
    fn call(
        &mut self,
        stage: Stage,
        op: &Operation,
        act: impl FnOnce(&mut Self) -> (bool, Result<Progress>),
    ) -> Result<Progress> {
        self.drift();
        let fault = self.fault(stage, op);
        let says = if stage == Stage::Begin { "begin" } else { "advance" };
        let (mutated, answer) = match &fault {
            Some(FaultEffect::LostRequest) => (false, Err(lost(op, "the request was lost"))),
            Some(FaultEffect::Throttle(after)) => {
                let sort = ErrorKind::Throttled { after: *after };
                (false, Err(Error::new(sort, op.verb.to_string(), op.resource.as_str()).code("RequestLimitExceeded")))
            }
            Some(FaultEffect::Refuse(sort)) => {
                let error = Error::new(sort.clone(), op.verb.to_string(), op.resource.as_str()).code("Refused");
                (false, Err(Error { refused: true, ..error }))
            }
            Some(FaultEffect::Fail(sort)) => {
                let error = Error::new(sort.clone(), op.verb.to_string(), op.resource.as_str()).code("Failed");
                (false, Ok(Progress::Failed { left: None, error }))
            }
            Some(FaultEffect::FailLeaving) if op.verb == Verb::Create => self.fail_leaving(op, act),
            Some(FaultEffect::LacksCapacity(name)) => {
                let (mutated, mut answer) = act(self);
                if let Ok(Progress::Pending { handle, .. }) = &mut answer {
                    handle.0["lacked"] = json!(name);
                }
                (mutated, answer)
            }
            Some(FaultEffect::LostReply) => {
                let (mutated, answer) = act(self);
                (mutated, answer.and(Err(lost(op, "the answer was lost"))))
            }
            _ => act(self),
        };
        let (verb, resource, operation) = (op.verb, op.resource.clone(), op.id);
        self.calls.push(Call { stage: says, verb, resource, operation, token: op.token.clone(), mutated });
        answer
    }

    /// Applies the changes of another party.
    fn drift(&mut self) {
        let now = self.calls.len();
        let (due, later) = std::mem::take(&mut self.drifts).into_iter().partition(|(at, ..)| *at <= now);
        self.drifts = later;
        for (_, resource, drift) in Vec::<(usize, ResourceId, Drift)>::into_iter(due) {
            match drift {
                Drift::Child => self.make_children(&resource),
                Drift::Removed => {
                    // An object that contains foreign objects cannot be removed.
                    let free = |thing: &&StoredObject| {
                        thing.lineage.is_none_or(|lineage| self.guest(&thing.cloud_id, lineage).is_none())
                    };
                    let ids: Vec<_> =
                        self.of_resource(&resource).filter(free).map(|thing| thing.cloud_id.clone()).collect();
                    ids.iter().for_each(|id| self.remove(id));
                }
                Drift::Changed(field, value) => drop(self.change(&resource, &field, value)),
                Drift::Degraded(reason) => self.degrade(&resource, &reason),
            }
        }
    }

    fn fault(&mut self, stage: Stage, op: &Operation) -> Option<FaultEffect> {
        let fault = self.faults.iter_mut().find(|fault| {
            fault.times > 0
                && (fault.stage == stage || fault.stage == Stage::Any)
                && fault.verb.is_none_or(|verb| verb == op.verb)
                && fault.resource.as_ref().is_none_or(|resource| *resource == op.resource)
        })?;
        fault.times -= 1;
        Some(fault.go.clone())
    }

    fn fail_leaving(
        &mut self,
        op: &Operation,
        act: impl FnOnce(&mut Self) -> (bool, Result<Progress>),
    ) -> (bool, Result<Progress>) {
        let (mutated, answer) = act(self);
        let made =
            self.things.values_mut().find(|thing| thing.operation == Some(op.id) && thing.lineage == Some(op.lineage));
        match made {
            Some(thing) => {
                thing.broken = Some("half made".to_owned());
                thing.looks_left = 0;
                let error = Error::new(ErrorKind::Unavailable, "create", op.resource.as_str()).code("HalfMade");
                (mutated, Ok(Progress::Failed { left: Some(object(thing)), error }))
            }
            None => (mutated, answer),
        }
    }

    fn create(&mut self, op: &Operation) -> (bool, Result<Progress>) {
        let Some(kind) = kinds::find(op.kind.as_str()) else {
            return (false, Err(Error::new(ErrorKind::Invalid, "find the kind of", op.resource.as_str())));
        };
        let parent = match self.parent(op, kind.identity) {
            Ok(parent) => parent,
            Err(error) => return (false, Err(error)),
        };
        let id = match kind.identity {
            Identity::Token => match self.by_token(&op.token, op) {
                Ok(Some(id)) => return (false, Ok(self.progress(&id))),
                Ok(None) => token_id(&op.kind, self.made),
                Err(error) => return (false, Err(error)),
            },
            Identity::Named => named_id(&op.environment, &op.resource),
            Identity::Part => part_id(parent.as_ref(), &op.resource),
        };
        if let Some(there) = self.things.get_mut(&id) {
            if there.lineage != Some(op.lineage) {
                let error = Error::new(ErrorKind::Exists, "create", id.as_str()).hint("give the resource another name");
                return (false, Err(error));
            }
            there.spec = op.spec.clone();
            (there.operation, there.token) = (Some(op.id), Some(op.token.clone()));
            there.broken = None;
            return (true, Ok(self.progress(&id)));
        }
        let there = || self.things.values().filter(|thing| thing.kind == op.kind).count();
        if self.quota.get(&op.kind).is_some_and(|most| there() >= *most) {
            return (false, Err(Error::new(ErrorKind::Quota, "create", op.resource.as_str()).code("LimitExceeded")));
        }
        self.made += 1;
        let thing = StoredObject {
            cloud_id: id.clone(),
            kind: op.kind.clone(),
            resource: Some(op.resource.clone()),
            site: Some(op.site.clone()),
            environment: Some(op.environment.clone()),
            lineage: Some(op.lineage),
            operation: Some(op.id),
            token: Some(op.token.clone()),
            created: None,
            spec: op.spec.clone(),
            parent,
            looks_left: if kinds::is_slow(op.kind.as_str()) { self.slow } else { 0 },
            broken: None,
            inside: None,
            owner: None,
            draining: false,
            hidden_for: self.lag,
            was: None,
        };
        self.things.insert(id.clone(), thing);
        if kind.identity == Identity::Token {
            self.tokens.insert(op.token.as_str().to_owned(), (id.clone(), op.spec.digest()));
        }
        (true, Ok(self.progress(&id)))
    }

    /// The object that a repeated token created, even if it was removed since: then the token is spent.
    fn by_token(&mut self, token: &Token, op: &Operation) -> Result<Option<CloudId>> {
        let Some((id, digest)) = self.tokens.get(token.as_str()) else { return Ok(None) };
        if *digest != op.spec.digest() {
            self.complaints.push(format!("operation {} of {} came with other parameters", op.id, op.resource));
            let error = Error::new(ErrorKind::Invalid, "repeat the creation of", op.resource.as_str());
            return Err(error.code("IdempotentParameterMismatch"));
        }
        if !self.things.contains_key(id) {
            return Err(
                Error::new(ErrorKind::Invalid, "repeat the creation of", op.resource.as_str()).code("TokenSpent")
            );
        }
        Ok(Some(id.clone()))
    }

    fn parent(&self, op: &Operation, identity: Identity) -> Result<Option<CloudId>> {
        if let Some(host) = &op.via {
            let host =
                self.of_resource(&host.0).find(|thing| thing.lineage == Some(op.lineage) && thing.looks_left == 0);
            return match host {
                Some(host) => Ok(Some(host.cloud_id.clone())),
                None => Err(Error::new(ErrorKind::Unavailable, "reach the host of", op.resource.as_str())),
            };
        }
        if identity != Identity::Part {
            return Ok(None);
        }
        let parent = op.spec.get("parent").and_then(Value::as_str).and_then(|id| CloudId::new(id).ok());
        match parent.filter(|id| self.things.contains_key(id)) {
            Some(parent) => Ok(Some(parent)),
            None => Err(Error::new(ErrorKind::NotFound, "find the parent of", op.resource.as_str())),
        }
    }

    fn update(&mut self, op: &Operation) -> (bool, Result<Progress>) {
        let id = op.recorded.as_ref().map(|recorded| recorded.cloud_id.clone());
        let Some(thing) = id.and_then(|id| self.things.get_mut(&id)).filter(|thing| thing.lineage == Some(op.lineage))
        else {
            return (false, Err(Error::new(ErrorKind::NotFound, "update", op.resource.as_str())));
        };
        let was = std::mem::replace(&mut thing.spec, op.spec.clone());
        thing.was = (self.stale > 0).then_some((was, self.stale));
        thing.broken = None;
        let id = thing.cloud_id.clone();
        (true, Ok(self.progress(&id)))
    }

    fn delete(&mut self, op: &Operation) -> (bool, Result<Progress>) {
        let Some(recorded) = &op.recorded else {
            return (false, Err(Error::new(ErrorKind::Invalid, "delete", op.resource.as_str())));
        };
        let Some(thing) = self.things.get_mut(&recorded.cloud_id) else {
            let (kind, cloud_id, spec) = (recorded.kind.clone(), recorded.cloud_id.clone(), recorded.spec.clone());
            let (outputs, lineage, health) = (recorded.outputs.clone(), Some(op.lineage), Health::Ready);
            return (
                false,
                Ok(Progress::Done(Object {
                    kind,
                    cloud_id,
                    spec,
                    outputs,
                    lineage,
                    origin: Origin::Untold,
                    created: None,
                    health,
                    via: None,
                    foreign: Vec::new(),
                })),
            );
        };
        if thing.lineage != Some(op.lineage) {
            self.complaints.push(format!("`{}` belongs to another owner and would be removed", recorded.cloud_id));
            return (false, Err(Error::new(ErrorKind::Denied, "delete", recorded.cloud_id.as_str())));
        }
        thing.draining = true;
        let last = object(thing);
        if let Some(progress) = self.sweep(op, &recorded.cloud_id) {
            return progress;
        }
        self.remove(&recorded.cloud_id);
        (true, Ok(Progress::Done(last)))
    }

    /// Removes one of the objects that controllers created inside of a deleted object; refuses when it contains a
    /// foreign object.
    fn sweep(&mut self, op: &Operation, id: &CloudId) -> Option<(bool, Result<Progress>)> {
        let refuse = |why: String| {
            let error = Error::new(ErrorKind::Conflict, "delete", id.as_str()).code("DependencyViolation");
            Some((false, Err(error.because(why))))
        };
        if let Some(guest) = self.guest(id, op.lineage) {
            return refuse(format!("`{guest}` is inside of it"));
        }
        let mut children = self.foreign(id);
        let (child, owner) = children.next().map(|child| (child.cloud_id.clone(), child.owner.clone()))?;
        let left = children.count();
        if !op.bounds.sweeps.contains(&child) {
            return refuse(format!("`{child}` is inside of it and was created after the plan"));
        }
        if let Some((owner, _)) = owner
            && self.things.get(&owner).is_some_and(|owner| !owner.draining)
        {
            return refuse(format!("`{child}` is inside of it, and the controllers of `{owner}` would make it again"));
        }
        self.remove(&child);
        let says = format!("removing what its controllers made: `{child}`, {left} left");
        let handle = Handle(json!({"id": id, "swept": child}));
        Some((true, Ok(Progress::Pending { handle, says, again_in: AGAIN_IN })))
    }

    /// A foreign object inside of this one, or inside of what is reached through it.
    fn guest(&self, id: &CloudId, lineage: Lineage) -> Option<CloudId> {
        let is_external = |child: &&StoredObject| child.owner.as_ref().is_none_or(|(_, owner)| *owner != lineage);
        let here = self.foreign(id).find(is_external).map(|guest| guest.cloud_id.clone());
        here.or_else(|| {
            let mut reached = self.things.values().filter(|thing| thing.parent.as_ref() == Some(id));
            reached.find_map(|thing| self.guest(&thing.cloud_id, lineage))
        })
    }

    fn look_again(&mut self, op: &Operation, id: &CloudId) -> (bool, Result<Progress>) {
        match self.things.get_mut(id) {
            Some(thing) => {
                thing.looks_left = thing.looks_left.saturating_sub(1);
                (thing.looks_left == 0, Ok(self.progress(id)))
            }
            None => (false, Err(Error::new(ErrorKind::NotFound, "check", op.resource.as_str()))),
        }
    }

    fn progress(&self, id: &CloudId) -> Progress {
        let thing = &self.things[id];
        if thing.looks_left == 0 {
            return Progress::Done(object(thing));
        }
        let says = format!("ready after {} more polls", thing.looks_left);
        Progress::Pending { handle: Handle(json!({"id": id, "left": thing.looks_left})), says, again_in: AGAIN_IN }
    }
}

fn lost(op: &Operation, what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, op.verb.to_string(), op.resource.as_str()).because(what)
}

fn noun(noun: &str) -> KindName {
    KindName::new(format!("memory.{noun}")).expect("a noun is a name")
}

fn token_id(kind: &KindName, number: u64) -> CloudId {
    let noun = kind.as_str().split('.').nth(1).unwrap_or("thing");
    CloudId::new(format!("{noun}-{number:06}")).expect("a noun and a number are printable")
}

fn named_id(environment: &EnvironmentName, resource: &ResourceId) -> CloudId {
    CloudId::new(format!("memory://{environment}/{resource}")).expect("names are printable")
}

fn part_id(parent: Option<&CloudId>, resource: &ResourceId) -> CloudId {
    let parent = parent.map_or("", |parent| parent.as_str());
    CloudId::new(format!("{parent}#{resource}")).expect("ids are printable and short")
}

fn object(thing: &StoredObject) -> Object {
    let mut outputs = Outputs::new();
    outputs.insert("id".to_owned(), json!(thing.cloud_id));
    outputs.insert("address".to_owned(), json!(format!("mem:{}", thing.cloud_id)));
    // Changes with the spec, as a fingerprint or a revision does.
    outputs.insert("version".to_owned(), json!(thing.spec.digest()[..12]));
    let health = match (&thing.broken, thing.looks_left) {
        (Some(reason), _) => Health::Degraded(reason.clone()),
        (None, 0) => Health::Ready,
        (None, _) => Health::Degraded(BEING_MADE.to_owned()),
    };
    let (kind, cloud_id, spec) = (thing.kind.clone(), thing.cloud_id.clone(), thing.spec.clone());
    let (lineage, origin) = (thing.lineage, Origin::of_mark(thing.token.as_ref().map(Token::as_str)));
    let (created, via, foreign) = (thing.created, None, Vec::new());
    Object { kind, cloud_id, spec, outputs, lineage, origin, created, health, via, foreign }
}
