//! Folds a journal's records into its recorded objects and open operations.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use textnlp_provider::{
    CloudId, Handle, KindName, Lineage, Need, Object, Operation, OperationId, Ownership, Recorded, ResourceId,
    SiteName, Token, Verb,
};

use super::durations::Durations;
use super::lineage::SiteLocation;
use super::record::{BodyRef, End, Entry, FORMAT, Record, Target};
use super::shortages::Shortages;
use crate::gate::{EnteredPhase, RecordedExemption};
use crate::import::IMPORT;
use crate::plan::Purpose;

/// Everything that finishing an operation needs, as recorded before its first call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The operation.
    pub operation: Operation,
    /// Which object of the resource.
    pub target: Target,
    /// For the record: its dependencies.
    pub needs: Vec<Need>,
    /// For the record: its ownership.
    pub ownership: Ownership,
    /// For the record: whether its removal needs a typed confirmation.
    pub protected: bool,
    /// For the record: the version of the kind's spec.
    pub schema: u32,
    /// The token of the create whose object it is about: its own, or that of an object without a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<Token>,
}

impl Intent {
    /// The record of the resulting object.
    pub fn recorded(&self, object: &Object, tainted: bool) -> Recorded {
        let op = &self.operation;
        Recorded {
            id: op.resource.clone(),
            kind: op.kind.clone(),
            site: op.site.clone(),
            via: op.via.clone(),
            spec: op.spec.applied(),
            needs: self.needs.clone(),
            ownership: self.ownership.clone(),
            schema: self.schema,
            cloud_id: object.cloud_id.clone(),
            created: object.created,
            outputs: object.outputs.clone(),
            protected: self.protected,
            tainted,
        }
    }
}

/// The recorded objects of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordedObjects {
    /// The object in use.
    pub current: Option<Recorded>,
    /// The SHA-256 of its record, by which the journal refers to it.
    pub sha256: Option<String>,
    /// Replaced objects that have yet to be removed.
    pub old: Vec<ReplacedObject>,
    /// When the object in use was last created or changed.
    pub since: Timestamp,
    /// The operation that did so.
    pub by: Option<OperationId>,
}

impl RecordedObjects {
    /// The providers' ids of the resource's objects.
    pub fn cloud_ids(&self) -> impl Iterator<Item = &CloudId> {
        self.objects().map(|recorded| &recorded.cloud_id)
    }

    /// Every recorded object: the one in use, and those that have yet to be removed.
    pub fn objects(&self) -> impl Iterator<Item = &Recorded> {
        self.current.iter().chain(self.old.iter().map(|old| &old.recorded))
    }
}

/// A replaced object that has yet to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplacedObject {
    /// The SHA-256 of its record, by which the journal refers to it.
    pub sha256: String,
    /// Its record.
    pub recorded: Recorded,
}

/// An operation that was started and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenOperation {
    /// Everything that finishing it needs.
    pub intent: Intent,
    /// The provider's last handle.
    pub handle: Option<Handle>,
    /// The provider's last message about what it waits for.
    pub says: Option<String>,
    /// When it was started.
    pub begun: Timestamp,
}

/// The fold of a journal's records; bodies by name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Fold {
    pub(super) slots: BTreeMap<ResourceId, Slots>,
    pub(super) open: BTreeMap<OperationId, OpenRef>,
    pub(super) opened: Option<(Lineage, SiteLocation)>,
    pub(super) next: u64,
    /// The highest fencing number of its records.
    pub(super) fence: u64,
    pub(super) took: Durations,
    /// The last approved run, until it is completed.
    #[serde(default)]
    pub(super) run: Option<UnfinishedRun>,
    /// The digest of the gate's evidence, until the resources may have changed.
    #[serde(default)]
    pub(super) evidence: Option<String>,
    /// When the last `down` was approved.
    #[serde(default)]
    pub(super) removal: Option<Timestamp>,
    /// The newest exemptions, oldest first.
    #[serde(default)]
    pub(super) exemptions: Vec<RecordedExemption>,
    /// The newest entries into phases, oldest first.
    #[serde(default)]
    pub(super) entered: Vec<EnteredPhase>,
    /// The site, by which the tokens of earlier versions were derived.
    #[serde(default)]
    pub(super) site: Option<SiteName>,
    /// Creates that ended without a recorded object and may have made one, oldest first.
    #[serde(default)]
    pub(super) unresolved: BTreeMap<ResourceId, Vec<UnresolvedCreate>>,
    /// What lacked capacity lately.
    #[serde(default)]
    pub(super) shortages: Shortages,
}

/// A create that ended without a recorded object and may have made one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnresolvedCreate {
    /// Its token.
    pub token: Token,
    /// When it was started, by the operator's clock.
    #[serde(rename = "begun")]
    pub started: Timestamp,
}

impl UnresolvedCreate {
    /// Whether it may have made an object: one with its token that is not older than itself.
    pub fn may_have_made(&self, object: &Object) -> bool {
        object.origin.operation() == Some(&self.token)
            && object.created.is_none_or(|created| self.started.duration_since(created) <= CLOCK_DIFFERENCE)
    }
}

/// The most by which the clocks of an operator and of a provider differ: AWS refuses signatures that are older.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html>
const CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_mins(15);

/// The most exemptions that are read without the log.
const EXEMPTIONS: usize = 256;

/// The most entries into phases that are read without the log.
const ENTERED: usize = 256;

/// The most unresolved creates of a resource. An object of an older one counts as foreign.
const UNRESOLVED: usize = 32;

/// A run that was approved and is not completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfinishedRun {
    /// Its purpose.
    pub purpose: Purpose,
    /// When its plan was approved.
    pub since: Timestamp,
    /// The operator.
    pub by: String,
    /// Its plan.
    pub plan: BodyRef,
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
    /// The fencing number of the lock under which it was started.
    pub(super) fence: u64,
    pub(super) target: Target,
    pub(super) intent: BodyRef,
    pub(super) handle: Option<BodyRef>,
    pub(super) says: Option<String>,
    pub(super) begun: Timestamp,
    #[serde(default)]
    pub(super) created_by: Option<Token>,
}

/// Why a record cannot follow the earlier ones.
#[derive(Debug)]
pub(super) enum SequenceError {
    /// A newer version of this program wrote it: its format.
    Future(u32),
    /// It contradicts the earlier records.
    Contradiction(String),
}

impl Fold {
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), SequenceError> {
        let contradiction = |text: String| Err(SequenceError::Contradiction(text));
        self.fence = self.fence.max(record.fence);
        if record.entry.may_change_resources() {
            self.evidence = None;
        }
        match &record.entry {
            Entry::Opened { format, .. } if *format > FORMAT => return Err(SequenceError::Future(*format)),
            Entry::Opened { lineage, site, place, .. } => {
                (self.opened, self.site) = (Some((*lineage, place.clone())), Some(site.clone()));
            }
            _ if self.opened.is_none() => return contradiction("the journal was not opened".to_owned()),
            Entry::Chose { .. } | Entry::Mended { .. } => {}
            Entry::Approved { purpose, plan, tracked } => {
                if *purpose == Purpose::Down {
                    self.removal = Some(record.at);
                }
                let (purpose, since, by, plan) = (*purpose, record.at, record.by.clone(), plan.clone());
                self.run = tracked.then_some(UnfinishedRun { purpose, since, by, plan });
            }
            Entry::Completed { .. } => self.run = None,
            Entry::Measured { evidence, .. } => self.evidence = Some(evidence.clone()),
            Entry::Exempted { phase, exemption } => {
                let (at, by, reason) = (record.at, record.by.clone(), record.reason.clone());
                let (phase, exemption) = (*phase, exemption.clone());
                self.exemptions.push(RecordedExemption { at, by, reason, phase, exemption });
                self.exemptions.drain(..self.exemptions.len().saturating_sub(EXEMPTIONS));
            }
            Entry::Entered { phase, release, .. } => {
                self.entered.push(EnteredPhase { phase: *phase, release: release.clone() });
                self.entered.drain(..self.entered.len().saturating_sub(ENTERED));
            }
            Entry::Begun { op, verb, resource, kind, target, intent, created_by } => {
                if op.0 <= self.next {
                    return contradiction(format!("operation {op} was started before"));
                }
                self.next = op.0;
                let (verb, resource, target, intent) = (*verb, resource.clone(), target.clone(), intent.clone());
                let (kind, fence) = (kind.clone(), record.fence);
                let (handle, says, begun) = (None, None, record.at);
                let created_by = created_by.clone().or_else(|| self.earlier_token(verb, *op));
                let open = OpenRef { verb, resource, kind, fence, target, intent, handle, says, begun, created_by };
                self.open.insert(*op, open);
            }
            Entry::Pending { op, handle, says, lacked } => {
                let Some(open) = self.open.get_mut(op) else {
                    return contradiction(format!("operation {op} waits and is not open"));
                };
                open.handle = Some(handle.clone());
                open.says = Some(says.clone());
                if let Some(name) = lacked {
                    self.shortages.learn(&open.resource, name, record.at);
                }
            }
            Entry::Ended { op, end } => {
                let Some(open) = self.open.remove(op) else {
                    return contradiction(format!("operation {op} ends and is not open"));
                };
                // Recovered and failed operations say nothing about the usual duration.
                if open.fence == record.fence && !matches!(end, End::Failed { .. }) {
                    self.took.learn(&open.kind, open.verb, record.at.duration_since(open.begun));
                }
                if let Err(text) = self.end(record.at, *op, open, end) {
                    return contradiction(text);
                }
            }
            Entry::Noted { resource, what, recorded, created_by } => {
                let slots = self.slots(resource, record.at);
                slots.current = Some(recorded.clone());
                if what == IMPORT {
                    // The operator has said which object it is.
                    self.unresolved.remove(resource);
                }
                self.resolve(resource, created_by.as_ref());
            }
            Entry::Returned { resource, old, recorded } => {
                let slots = self.slots(resource, record.at);
                slots.old.retain(|one| one.sha256 != *old);
                // The previous object in use must stay recorded.
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

    /// Checks whether records could follow, without adding them; else the number of the first that could not, and why.
    pub(super) fn foresee(&self, records: &[Record]) -> Result<(), (u64, String)> {
        // Objects do not affect the validity of records, so a copy without them is sufficient.
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
            Err(SequenceError::Future(format)) => Err((record.n, format!("format {format} is not known"))),
            Err(SequenceError::Contradiction(what)) => Err((record.n, what)),
        })
    }

    fn end(&mut self, at: Timestamp, op: OperationId, open: OpenRef, end: &End) -> Result<(), String> {
        let resource = open.resource;
        match end {
            End::Failed { left: None, refused: false, .. } if open.verb == Verb::Create => {
                let all = self.unresolved.entry(resource.clone()).or_default();
                all.extend(open.created_by.map(|token| UnresolvedCreate { token, started: open.begun }));
                all.drain(..all.len().saturating_sub(UNRESOLVED));
            }
            End::Made { .. } | End::Gone if open.target == Target::Stray => {
                self.resolve(&resource, open.created_by.as_ref());
            }
            _ => {}
        }
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
            // An update adopts a managed object without a record.
            (End::Made { recorded }, Verb::Update, Target::Stray) => {
                slots.current = Some(recorded.clone());
                (slots.since, slots.by) = (at, Some(op));
            }
            (End::Gone, Verb::Delete, Target::Current) => slots.current = None,
            (End::Gone, Verb::Delete, Target::Old(sha256)) => slots.old.retain(|old| old.sha256 != sha256),
            (End::Gone, Verb::Delete, Target::Stray) => {}
            // The object in use stays in use; the tainted one beside it has yet to be removed.
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

    /// The object of an unresolved create is recorded or gone, so no other object results from that create.
    fn resolve(&mut self, resource: &ResourceId, created_by: Option<&Token>) {
        let Some(all) = self.unresolved.get_mut(resource) else { return };
        all.retain(|one| Some(&one.token) != created_by);
        if all.is_empty() {
            self.unresolved.remove(resource);
        }
    }

    /// The token of a create that an earlier version recorded without it.
    fn earlier_token(&self, verb: Verb, op: OperationId) -> Option<Token> {
        let ((lineage, _), site) = (self.opened.as_ref()?, self.site.as_ref()?);
        (verb == Verb::Create).then(|| Token::derive(*lineage, site, op))
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

    /// The bodies that must be retained.
    pub(super) fn needed(&self) -> impl Iterator<Item = &BodyRef> {
        let slots = self.slots.values().flat_map(|slots| slots.current.iter().chain(&slots.old));
        slots.chain(self.open.values().flat_map(|open| std::iter::once(&open.intent).chain(&open.handle)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn journals_and_snapshots_of_earlier_versions_name_no_shortage() {
        let handle = json!({ "sha256": "ab", "at": 0, "len": 1 });
        let earlier = json!({ "entry": "pending", "op": 1, "handle": handle, "says": "it waits" });
        let entry: Entry = serde_json::from_value(earlier.clone()).unwrap();
        assert!(matches!(entry, Entry::Pending { lacked: None, .. }));
        assert_eq!(serde_json::to_value(&entry).unwrap(), earlier);
        let mut fold = serde_json::to_value(Fold::default()).unwrap();
        assert!(fold.as_object_mut().unwrap().remove("shortages").is_some());
        let fold: Fold = serde_json::from_value(fold).unwrap();
        assert_eq!(fold.shortages, Shortages::default());
    }
}
