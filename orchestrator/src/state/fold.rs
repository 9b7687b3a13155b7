//! What a journal's records add up to: which objects there are, and which operations are open.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use textnlp_provider::{
    CloudId, Handle, KindName, Lineage, Need, Object, Operation, OperationId, Ownership, Recorded, ResourceId, Verb,
};

use super::lineage::Place;
use super::record::{BodyRef, End, Entry, FORMAT, Record, Target};
use super::took::Took;

/// Everything that finishing an operation takes, as it was written down before its first call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The operation.
    pub operation: Operation,
    /// Which of the objects behind the resource.
    pub target: Target,
    /// For the record: what it needs.
    pub needs: Vec<Need>,
    /// For the record: whose it is.
    pub ownership: Ownership,
    /// For the record: whether removing it takes a typed consent.
    pub protected: bool,
    /// For the record: the version of the kind's spec.
    pub schema: u32,
}

impl Intent {
    /// The record of the object that came of it.
    pub fn recorded(&self, object: &Object, tainted: bool) -> Recorded {
        let op = &self.operation;
        Recorded {
            id: op.resource.clone(),
            kind: op.kind.clone(),
            site: op.site.clone(),
            via: op.via.clone(),
            spec: op.spec.clone(),
            needs: self.needs.clone(),
            ownership: self.ownership.clone(),
            schema: self.schema,
            cloud_id: object.cloud_id.clone(),
            outputs: object.outputs.clone(),
            protected: self.protected,
            tainted,
        }
    }
}

/// The objects behind one resource, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// The one that others use.
    pub current: Option<Recorded>,
    /// The SHA-256 of its record, which names it in the journal.
    pub sha256: Option<String>,
    /// Replaced ones that are still to be removed.
    pub old: Vec<Old>,
    /// When the current one was last made or changed.
    pub since: Timestamp,
    /// The operation that did it.
    pub by: Option<OperationId>,
}

impl Holding {
    /// What the provider calls the objects behind the resource.
    pub fn cloud_ids(&self) -> impl Iterator<Item = &CloudId> {
        self.objects().map(|recorded| &recorded.cloud_id)
    }

    /// Every object that is recorded of it: the current one, and those that are still to be removed.
    pub fn objects(&self) -> impl Iterator<Item = &Recorded> {
        self.current.iter().chain(self.old.iter().map(|old| &old.recorded))
    }
}

/// A replaced object that is still to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Old {
    /// The SHA-256 of its record, which names it in the journal.
    pub sha256: String,
    /// Its record.
    pub recorded: Recorded,
}

/// An operation that was begun and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Open {
    /// Everything that finishing it takes.
    pub intent: Intent,
    /// Where the provider said it stands.
    pub handle: Option<Handle>,
    /// What it waited for.
    pub says: Option<String>,
    /// When it was begun.
    pub begun: Timestamp,
}

/// The sum of a journal's records, with bodies by name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Fold {
    pub(super) slots: BTreeMap<ResourceId, Slots>,
    pub(super) open: BTreeMap<OperationId, OpenRef>,
    pub(super) opened: Option<(Lineage, Place)>,
    pub(super) next: u64,
    /// The highest lock under which any of it was written.
    pub(super) fence: u64,
    pub(super) took: Took,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Slots {
    pub(super) current: Option<BodyRef>,
    pub(super) old: Vec<BodyRef>,
    pub(super) since: Timestamp,
    pub(super) by: Option<OperationId>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OpenRef {
    pub(super) verb: Verb,
    pub(super) resource: ResourceId,
    pub(super) kind: KindName,
    /// The lock under which it was begun.
    pub(super) fence: u64,
    pub(super) target: Target,
    pub(super) intent: BodyRef,
    pub(super) handle: Option<BodyRef>,
    pub(super) says: Option<String>,
    pub(super) begun: Timestamp,
}

/// Why a record cannot follow those before it.
#[derive(Debug)]
pub(super) enum Unfit {
    /// Written by a newer tool.
    Future(u32),
    /// It contradicts the records before it.
    Contradiction(String),
}

impl Fold {
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), Unfit> {
        let contradiction = |text: String| Err(Unfit::Contradiction(text));
        self.fence = self.fence.max(record.fence);
        match &record.entry {
            Entry::Opened { format, .. } if *format > FORMAT => return Err(Unfit::Future(*format)),
            Entry::Opened { lineage, place, .. } => self.opened = Some((*lineage, place.clone())),
            _ if self.opened.is_none() => return contradiction("the journal was not opened".to_owned()),
            Entry::Approved { .. } | Entry::Chose { .. } | Entry::Mended { .. } => {}
            Entry::Begun { op, verb, resource, kind, target, intent } => {
                if op.0 <= self.next {
                    return contradiction(format!("operation {op} was begun before"));
                }
                self.next = op.0;
                let (verb, resource, target, intent) = (*verb, resource.clone(), target.clone(), intent.clone());
                let (kind, fence) = (kind.clone(), record.fence);
                let (handle, says, begun) = (None, None, record.at);
                self.open.insert(*op, OpenRef { verb, resource, kind, fence, target, intent, handle, says, begun });
            }
            Entry::Pending { op, handle, says } => {
                let Some(open) = self.open.get_mut(op) else {
                    return contradiction(format!("operation {op} waits and is not open"));
                };
                open.handle = Some(handle.clone());
                open.says = Some(says.clone());
            }
            Entry::Ended { op, end } => {
                let Some(open) = self.open.remove(op) else {
                    return contradiction(format!("operation {op} ends and is not open"));
                };
                // What a dead run left open, or what failed, says nothing about how long it takes.
                if open.fence == record.fence && !matches!(end, End::Failed { .. }) {
                    self.took.learn(&open.kind, open.verb, record.at.duration_since(open.begun));
                }
                if let Err(text) = self.end(record.at, *op, open, end) {
                    return contradiction(text);
                }
            }
            Entry::Noted { resource, recorded, .. } => {
                let slots = self.slots(resource, record.at);
                slots.current = Some(recorded.clone());
            }
            Entry::Returned { resource, old, recorded } => {
                let slots = self.slots(resource, record.at);
                slots.old.retain(|one| one.sha256 != *old);
                // Whatever was in use is not lost sight of.
                slots.old.extend(slots.current.replace(recorded.clone()));
                slots.since = record.at;
            }
            Entry::Forgot { resource, .. } => {
                self.slots(resource, record.at).current = None;
                self.tidy(resource);
            }
        }
        Ok(())
    }

    /// Whether records could follow, without taking them in; else the number of the first that could not, and why.
    pub(super) fn foresee(&self, records: &[Record]) -> Result<(), (u64, String)> {
        // Which objects there are decides about no record, so a copy without them is enough.
        let mut ahead = Self { opened: self.opened.clone(), next: self.next, ..Self::default() };
        for record in records {
            if let Entry::Pending { op, .. } | Entry::Ended { op, .. } = &record.entry
                && let Some((op, open)) = self.open.get_key_value(op)
            {
                ahead.open.insert(*op, open.clone());
            }
        }
        records.iter().try_for_each(|record| match ahead.apply(record) {
            Ok(()) => Ok(()),
            Err(Unfit::Future(format)) => Err((record.n, format!("format {format} is not known"))),
            Err(Unfit::Contradiction(what)) => Err((record.n, what)),
        })
    }

    fn end(&mut self, at: Timestamp, op: OperationId, open: OpenRef, end: &End) -> Result<(), String> {
        let resource = open.resource;
        let slots = self.slots(&resource, at);
        match (end, open.verb, open.target) {
            (End::Made { recorded }, Verb::Create | Verb::Update, Target::Current) => {
                slots.current = Some(recorded.clone());
                (slots.since, slots.by) = (at, Some(op));
            }
            (End::Made { recorded }, Verb::Create, Target::Beside) => {
                slots.old.extend(slots.current.replace(recorded.clone()));
                (slots.since, slots.by) = (at, Some(op));
            }
            // An object of ours that no record mentions is adopted by being changed.
            (End::Made { recorded }, Verb::Update, Target::Stray) => {
                slots.current = Some(recorded.clone());
                (slots.since, slots.by) = (at, Some(op));
            }
            (End::Gone, Verb::Delete, Target::Current) => slots.current = None,
            (End::Gone, Verb::Delete, Target::Old(sha256)) => slots.old.retain(|old| old.sha256 != sha256),
            (End::Gone, Verb::Delete, Target::Stray) => {}
            // The object that was in use stays in use; the half-made one beside it is to be removed.
            (End::Failed { left: Some(left), .. }, Verb::Create, Target::Beside) => slots.old.push(left.clone()),
            (End::Failed { left: Some(left), .. }, Verb::Create, _) => {
                slots.current = Some(left.clone());
                (slots.since, slots.by) = (at, Some(op));
            }
            (End::Failed { .. }, _, _) => {}
            (end, verb, target) => return Err(format!("operation {op}, a {verb} of {target:?}, ends as {end:?}")),
        }
        self.tidy(&resource);
        Ok(())
    }

    fn slots(&mut self, resource: &ResourceId, at: Timestamp) -> &mut Slots {
        let empty = || Slots { current: None, old: Vec::new(), since: at, by: None };
        self.slots.entry(resource.clone()).or_insert_with(empty)
    }

    fn tidy(&mut self, resource: &ResourceId) {
        if self.slots.get(resource).is_some_and(|slots| slots.current.is_none() && slots.old.is_empty()) {
            self.slots.remove(resource);
        }
    }

    /// The bodies that are needed to go on.
    pub(super) fn needed(&self) -> impl Iterator<Item = &BodyRef> {
        let slots = self.slots.values().flat_map(|slots| slots.current.iter().chain(&slots.old));
        slots.chain(self.open.values().flat_map(|open| std::iter::once(&open.intent).chain(&open.handle)))
    }
}
