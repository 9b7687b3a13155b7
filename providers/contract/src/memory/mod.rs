//! A cloud in memory: it implements every component, recognises objects in all three ways, and injects faults on
//! request.
//!
//! It is deterministic: time advances by polls, never by a clock. It survives the run that uses it, because every
//! handle shares one [`world`]. It never changes what it knows of foreign objects, so a test can inspect them
//! afterwards.

pub mod faults;
pub mod kinds;
mod lower;
mod world;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::json;

use crate::component::{Component, Site};
use crate::cost::CostLine;
use crate::error::Result;
use crate::kind::{DatabasePart, Kind};
use crate::name::{CloudId, KindName, Lineage, ResourceId};
use crate::operation::{Handle, Operation, Progress, Token};
use crate::permission::{FilledPermission, PolicyDocument, PolicyFormat, PolicyRequest};
use crate::provider::{Problem, Problems, Provider, Scope};
use crate::resource::{Effect, FieldChange, Health, Object, Observed, Recorded, Wanted};
use crate::spec::Spec;

pub use faults::{Drift, Fault, FaultEffect, Fuse, Stage};
use world::World;
pub use world::{Call, StoredObject};

/// The poll interval that the provider returns to callers.
pub(crate) const AGAIN_IN: Duration = Duration::from_millis(200);

/// A handle to the cloud; clones share one world.
#[derive(Clone)]
pub struct MemoryCloud {
    world: Arc<Mutex<World>>,
    fuse: Fuse,
}

impl Default for MemoryCloud {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryCloud {
    /// An empty cloud without faults.
    pub fn new() -> Self {
        Self { world: Arc::default(), fuse: Fuse::default() }
    }

    /// The same cloud, used by a run that stops at the fuse's boundary.
    #[must_use]
    pub fn with_fuse(&self, fuse: Fuse) -> Self {
        Self { world: self.world.clone(), fuse }
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.world().faults.push(fault);
    }

    /// Removes every fault that has not happened yet.
    pub fn heal(&self) {
        let mut world = self.world();
        world.faults.clear();
        world.drifts.clear();
        world.unseen.clear();
        world.partial = false;
        world.blind = 0;
        (world.lag, world.stale) = (0, 0);
        world.things.values_mut().for_each(world::StoredObject::settle);
    }

    /// New objects stay invisible to this many observations.
    pub fn show_after(&self, looks: u32) {
        self.world().lag = looks;
    }

    /// Changed objects are shown in their old state to this many observations.
    pub fn stale_for(&self, looks: u32) {
        self.world().stale = looks;
    }

    /// The next observations fail as a whole.
    pub fn blind_for(&self, looks: u32) {
        self.world().blind = looks;
    }

    /// Another party changes an object after this many further calls to the cloud.
    pub fn drift_after(&self, calls: usize, resource: &ResourceId, drift: Drift) {
        let mut world = self.world();
        let at = world.calls.len() + calls;
        world.drifts.push((at, resource.clone(), drift));
    }

    /// Violations by the engine of rules that hold under any fault: each as a sentence.
    pub fn complaints(&self) -> Vec<String> {
        self.world().complaints.clone()
    }

    /// Long operations of the slow kinds take this many polls.
    pub fn slow(&self, looks: u32) {
        self.world().slow = looks;
    }

    /// Allows at most this many objects of a kind.
    pub fn quota(&self, kind: &KindName, most: usize) {
        self.world().quota.insert(kind.clone(), most);
    }

    /// Lists omit this resource, and say that they are incomplete.
    pub fn hide(&self, resource: &ResourceId) {
        self.world().unseen.insert(resource.clone());
    }

    /// Lists are incomplete: a missing object is not known to be absent.
    pub fn partial_lists(&self) {
        self.world().partial = true;
    }

    /// Adds a foreign object with a cloud id.
    pub fn place_foreign(&self, kind: &KindName, cloud_id: &CloudId, lineage: Option<Lineage>, spec: crate::Spec) {
        self.world().place_foreign(kind, cloud_id, lineage, spec);
    }

    /// Another party gives a foreign object the labels of a resource.
    pub fn label(&self, cloud_id: &CloudId, resource: &ResourceId, lineage: Lineage, token: Option<&Token>) {
        if let Some(thing) = self.world().things.get_mut(cloud_id) {
            (thing.resource, thing.site) = (Some(resource.clone()), resource.site().parse().ok());
            (thing.lineage, thing.token) = (Some(lineage), token.cloned());
        }
    }

    /// Sets when an object was created.
    pub fn date(&self, cloud_id: &CloudId, created: Timestamp) {
        if let Some(thing) = self.world().things.get_mut(cloud_id) {
            thing.created = Some(created);
        }
    }

    /// The controllers of a cluster create an object, in its network or in the cluster itself.
    pub fn make_child(&self, cluster: &ResourceId) {
        self.world().make_children(cluster);
    }

    /// Adds a foreign object inside a managed network. Returns whether that network exists.
    pub fn place_guest(&self, resource: &ResourceId, cloud_id: &CloudId) -> bool {
        self.world().place_guest(resource, cloud_id)
    }

    /// Removes a foreign object.
    pub fn remove_foreign(&self, cloud_id: &CloudId) {
        self.world().remove(cloud_id);
    }

    /// Removes an object out of band. Returns whether it existed.
    pub fn remove_behind_our_back(&self, resource: &ResourceId) -> bool {
        let mut world = self.world();
        let ids: Vec<_> = world.of_resource(resource).map(|thing| thing.cloud_id.clone()).collect();
        ids.iter().for_each(|id| world.remove(id));
        !ids.is_empty()
    }

    /// Changes a field out of band. Returns whether the object existed.
    pub fn change_behind_our_back(&self, resource: &ResourceId, field: &str, value: serde_json::Value) -> bool {
        self.world().change(resource, field, value)
    }

    /// Makes an object unhealthy.
    pub fn degrade(&self, resource: &ResourceId, reason: &str) {
        self.world().degrade(resource, reason);
    }

    /// Completes all unfinished objects at the next poll. Returns whether there were any.
    pub fn finish_slowly_made(&self) -> bool {
        let mut world = self.world();
        let slow = world.things.values_mut().filter(|thing| thing.looks_left > 1);
        slow.map(|thing| thing.looks_left = 1).count() > 0
    }

    /// All objects, in order of cloud ids.
    pub fn things(&self) -> Vec<StoredObject> {
        self.world().things.values().cloned().collect()
    }

    /// Every call so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.world().calls.clone()
    }

    /// How many calls changed something.
    pub fn mutations(&self) -> usize {
        self.world().calls.iter().filter(|call| call.mutated).count()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Provider for MemoryCloud {
    fn kinds(&self) -> &'static [Kind] {
        kinds::KINDS
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        kinds::costs(kind, spec)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let allow: Vec<FilledPermission> = request.permissions(kinds::KINDS, |_| None).into_keys().collect();
        let text = format!("{:#}\n", json!({ "allow": allow }));
        vec![PolicyDocument { title: "memory policy".to_owned(), format: PolicyFormat::Json, text, notes: Vec::new() }]
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        lower::lower(component, site)
    }

    /// A database whose spec has `dumps` stands for a volume with dumps of another one; `shared` and `loaded` are named
    /// after the part.
    fn database_part(&self, recorded: &Recorded) -> Option<DatabasePart> {
        if recorded.kind.as_str() == "memory.replica" {
            return Some(DatabasePart::Data);
        }
        let has = |field: &str| recorded.spec.get(field).is_some();
        let part = match (has("dumps"), has("shared"), has("loaded")) {
            (true, ..) => DatabasePart::Dumps,
            (_, true, _) => DatabasePart::Shared,
            (.., true) => DatabasePart::Loaded,
            _ => DatabasePart::Data,
        };
        (recorded.kind.as_str() == "memory.database").then_some(part)
    }

    /// `loaded: false` stands for a server without a dump beside it.
    fn is_refilled(&self, recorded: &Recorded) -> bool {
        recorded.spec.get("loaded") != Some(&json!(false))
    }

    fn diff(&self, wanted: &Wanted, _recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        let mut changes = Vec::new();
        for (field, after) in wanted.spec.fields() {
            let before = seen.spec.get(field);
            if before != Some(after) {
                let effect = kinds::effect(field);
                changes.push(FieldChange {
                    field: field.clone(),
                    before: before.filter(|value| !value.is_null()).cloned(),
                    after: Some(after.clone()),
                    effect,
                });
            }
        }
        for (field, before) in seen.spec.fields().filter(|(field, _)| wanted.spec.get(field).is_none()) {
            let effect = kinds::effect(field);
            changes.push(FieldChange { field: field.clone(), before: Some(before.clone()), after: None, effect });
        }
        // An update of an unfinished object waits until it is complete.
        if let Health::Degraded(reason) = &seen.health {
            let (field, before) = ("working".to_owned(), Some(json!(reason)));
            changes.push(FieldChange { field, before, after: Some(json!(true)), effect: Effect::InPlace });
        }
        changes
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        let world = self.world();
        let mut counts: BTreeMap<&KindName, usize> = BTreeMap::new();
        let mut problems = Vec::new();
        for one in wanted {
            *counts.entry(&one.kind).or_default() += 1;
        }
        for (kind, count) in counts {
            if let Some(most) = world.quota.get(kind)
                && count > *most
            {
                let cause = format!("{count} of `{kind}` are requested and {most} are allowed");
                problems.push(Problem::new(kind.as_str(), cause, "request more quota, or fewer objects"));
            }
        }
        Ok(problems)
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        self.fuse.cross(|| "before observe".to_owned()).await;
        let answer = self.world().observe(scope);
        self.fuse.cross(|| "after observe".to_owned()).await;
        answer
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        Ok(self.world().read(kind, id))
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.fuse.cross(|| format!("before begin {} {}", op.verb, op.resource)).await;
        let answer = self.world().begin(op);
        self.fuse.cross(|| format!("after begin {} {}", op.verb, op.resource)).await;
        answer
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.fuse.cross(|| format!("before advance {} {}", op.verb, op.resource)).await;
        let answer = self.world().advance(op, handle);
        self.fuse.cross(|| format!("after advance {} {}", op.verb, op.resource)).await;
        answer
    }
}
