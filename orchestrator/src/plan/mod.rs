//! Plans: from facts to an explicit graph of steps. Pure: the same facts give the same bytes.
//!
//! This file has the types. Then read `decide` (the decision about one resource), `unwanted` (the same for resources
//! that are no longer wanted), `graph` (the order of the steps), [`audit`](audit()) (an independent check of the
//! finished plan) and [`approve`](fn@approve). Choices that the plan leaves open are [`Node::OneOf`]: apply selects one by what it
//! observes, and makes no call outside of the alternatives.

mod approve;
mod audit;
mod cost;
mod decide;
mod facts;
mod gated;
mod graph;
mod impact;
mod permissions;
mod saved;
mod shortages;
mod unwanted;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use textnlp_provider::{
    CloudId, EnvironmentName, FieldChange, KindName, Lineage, Object, Problem, Problems, Recorded, ResourceId,
    SiteName, Token, Verb, Wanted,
};

pub use approve::{Approved, Consent, PlanRefusal, approve};
pub use audit::{Audited, Violation, audit};
pub use cost::{Cost, ServiceCost, amount, unknown_reason};
pub(crate) use decide::{branch_of, refreshed, sorted_needs};
pub use facts::{Facts, SiteFacts};
pub use impact::{Deletion, Estimate, Impact, ImpactKind, estimate, impact, swept};
pub use permissions::{Permission, Policy, boundaries, permissions, policies};
pub use saved::{MOST_BYTES, Saved, SavedPlanError};
pub use shortages::{ResourceShortage, shortages};

/// The version of the format.
pub const FORMAT: u32 = 1;

/// Why `down` deletes a resource.
pub const TAKEN_DOWN: &str = "the environment is taken down";

/// The purpose of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Create or change what is wanted.
    Up,
    /// Remove everything that holds no data, or everything.
    Down,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Purpose::Up => "up",
            Purpose::Down => "down",
        })
    }
}

/// Which protected data may be deleted, or replaced by an empty database: the operator typed the environment's name for
/// it. The order is that of what is deleted; a plan has none that comes after that of its facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum DeleteData {
    /// None.
    #[default]
    Nothing,
    /// That of a database that is gone already, in whose place `up` creates an empty one: `--accept-data-loss`. Nothing
    /// is deleted.
    Lost,
    /// The dumps that a cluster has of a database that is kept elsewhere: `--delete-dumps`.
    Dumps,
    /// All of it: `--delete-data`.
    All,
}

/// How [`DeleteData::Lost`] is written. `Nothing` and `All` are `false` and `true`, as in plans of before.
const LOST: &str = "lost";
/// How [`DeleteData::Dumps`] is written.
const DUMPS: &str = "dumps";

impl Serialize for DeleteData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nothing => serializer.serialize_bool(false),
            Self::Lost => serializer.serialize_str(LOST),
            Self::Dumps => serializer.serialize_str(DUMPS),
            Self::All => serializer.serialize_bool(true),
        }
    }
}

impl<'de> Deserialize<'de> for DeleteData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(false) => Ok(Self::Nothing),
            Value::String(text) if text == LOST => Ok(Self::Lost),
            Value::String(text) if text == DUMPS => Ok(Self::Dumps),
            Value::Bool(true) => Ok(Self::All),
            other => {
                let text = format!("`delete_data` is false, \"{LOST}\", \"{DUMPS}\" or true, not {other}");
                Err(D::Error::custom(text))
            }
        }
    }
}

/// The steps from the actual state to the wanted one, with every call they may make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of the format.
    pub format: u32,
    /// The environment.
    pub environment: EnvironmentName,
    /// The purpose.
    pub purpose: Purpose,
    /// The lineage of the deployment; `None` if the first `up` has yet to create it.
    pub lineage: Option<Lineage>,
    /// Which protected data it may delete.
    pub delete_data: DeleteData,
    /// The steps, each after those it waits for.
    pub steps: Vec<Step>,
    /// Resources without changes.
    pub unchanged: Vec<ResourceId>,
    /// Resources that cannot be planned now, with the reason.
    pub blocked: Vec<Blocked>,
    /// Resources that are retained because they hold data, or because a resource that holds data needs them.
    pub retained: Vec<Retained>,
    /// Decisions that are missing; a plan with refusals cannot be approved.
    pub refusals: Vec<Problem>,
    /// Warnings.
    pub warnings: Vec<Problem>,
    /// Counts of resources by change.
    pub summary: Summary,
    /// A digest of the facts about each resource; the plan is stale if one differs.
    pub reads: BTreeMap<ResourceId, String>,
}

/// Counts of resources by change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Created.
    pub create: usize,
    /// Changed in place.
    pub update: usize,
    /// Replaced by a new object.
    pub replace: usize,
    /// Removed.
    pub delete: usize,
    /// Unchanged.
    pub unchanged: usize,
    /// Compared again once their dependencies have changed: unchanged, updated or replaced then.
    pub possible: usize,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its number: its index in [`Plan::steps`].
    pub id: u32,
    /// The resource.
    pub resource: ResourceId,
    /// Its kind.
    pub kind: KindName,
    /// Its site.
    pub site: SiteName,
    /// The action.
    pub node: Node,
    /// The steps it waits for.
    pub after: Vec<u32>,
    /// The fields that differ, with the effect of each change.
    pub changes: Vec<FieldChange>,
    /// The reason in a few words.
    pub because: String,
}

/// The action of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Node {
    /// One operation.
    Call(Call),
    /// One of several alternatives, chosen by what is observed then.
    OneOf(Choice),
    /// A gate: which of the later steps start depends on a measurement then.
    Gate(Gate),
    /// A change of the record only.
    Note(Note),
}

impl Node {
    /// Every call that the step may make.
    pub fn calls(&self) -> Vec<&Call> {
        match self {
            Node::Call(call) => vec![call],
            Node::OneOf(one) => one.alternatives.iter().flat_map(|alternative| &alternative.calls).collect(),
            Node::Note(_) | Node::Gate(_) => Vec::new(),
        }
    }
}

/// One call of a provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Call {
    /// Creates an object.
    Create {
        /// The wanted resource; outputs of earlier steps are references.
        wanted: Box<Wanted>,
        /// Whether it is created beside the one in use, which is deleted afterwards.
        beside: bool,
    },
    /// Changes an object in place.
    Update {
        /// The wanted resource.
        wanted: Box<Wanted>,
        /// The record.
        recorded: Box<Recorded>,
        /// The observed object.
        seen: Box<Object>,
        /// Whether it is a managed object without a record: the update adopts it.
        stray: bool,
    },
    /// Deletes an object.
    Delete {
        /// The record.
        recorded: Box<Recorded>,
        /// Which object of the resource.
        which: ObjectRole,
        /// The token of the create that made it, if it has no record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        created_by: Option<Token>,
        /// The objects of controllers inside of it that are deleted with it: no others.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        sweeps: Vec<CloudId>,
    },
}

impl Call {
    /// The verb.
    pub fn verb(&self) -> Verb {
        match self {
            Call::Create { .. } => Verb::Create,
            Call::Update { .. } => Verb::Update,
            Call::Delete { .. } => Verb::Delete,
        }
    }
}

/// The role of an object of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectRole {
    /// The object in use.
    Current,
    /// A replaced object.
    Old,
    /// A managed object without a record.
    Stray,
}

/// A step whose action is chosen during apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// What the choice depends on.
    pub decides: ChoiceBasis,
    /// The alternatives.
    pub alternatives: Vec<Alternative>,
}

/// What a choice depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceBasis {
    /// The difference that is left once the outputs of earlier steps are known.
    Difference {
        /// The wanted resource; outputs of earlier steps are references.
        wanted: Box<Wanted>,
        /// The record.
        recorded: Box<Recorded>,
        /// The observed object.
        seen: Box<Object>,
    },
    /// The choice of another step.
    As(u32),
}

/// A step that measures whether the new objects may replace the old ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// The steps that start if it is open; they wait for it.
    pub open: Vec<u32>,
    /// The steps that start if it is closed: none, as a closed gate only retains what exists.
    pub shut: Vec<u32>,
}

/// An alternative.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// The extent of the change that selects it.
    pub branch: Branch,
    /// The calls, in order.
    pub calls: Vec<Call>,
}

/// The extent of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Branch {
    /// No change.
    Nothing,
    /// An update in place.
    Update,
    /// A replacement.
    Replace,
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Branch::Nothing => "nothing",
            Branch::Update => "update",
            Branch::Replace => "replace",
        })
    }
}

/// A change of the record only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// The object is managed, or an `existing:` one, and has no record.
    Adopt {
        /// The new record.
        recorded: Box<Recorded>,
        /// The token of the create that made it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        created_by: Option<Token>,
    },
    /// The object matches, but its record differs.
    Remember {
        /// The new record.
        recorded: Box<Recorded>,
    },
    /// A replaced object still exists and matches: it is in use again.
    Return {
        /// Its new record.
        recorded: Box<Recorded>,
        /// The SHA-256 of its record as a replaced object.
        old: String,
    },
    /// The object is gone, or was never managed.
    Forget,
}

/// A resource that cannot be planned now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// The resource.
    pub resource: ResourceId,
    /// The reason.
    pub because: String,
}

/// A retained resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    /// The resource.
    pub resource: ResourceId,
    /// Its kind.
    pub kind: KindName,
    /// The reason.
    pub because: String,
}

impl Plan {
    /// Whether any step calls a provider. Record changes are not changes.
    pub fn has_changes(&self) -> bool {
        self.steps.iter().any(|step| !matches!(step.node, Node::Note(_)))
    }

    /// Whether every wanted resource will exist after apply.
    pub fn is_complete(&self) -> bool {
        self.blocked.is_empty() && self.refusals.is_empty()
    }

    /// The canonical JSON text, for a file and for the digest.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plans are plain data")
    }

    /// The SHA-256 of the canonical text, in hexadecimal.
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.to_json().as_bytes()))
    }

    /// The resources whose facts differ from those of the plan; empty while the plan is fresh.
    pub fn stale(&self, facts: &Facts) -> Vec<ResourceId> {
        let now = facts.reads();
        let mut changed: Vec<_> = self.reads.keys().chain(now.keys()).cloned().collect();
        changed.sort();
        changed.dedup();
        changed.retain(|resource| self.reads.get(resource) != now.get(resource));
        changed
    }
}

/// Plans for these facts, or returns every problem of what is wanted.
pub fn plan(facts: &Facts) -> Result<Plan, Problems> {
    /// For fewer resources, hashing is faster than starting a thread.
    const WORTH_A_THREAD: usize = 300;
    let assembled = || {
        let world = facts::World::of(facts)?;
        graph::assemble(&world, decide::decide(&world))
    };
    if facts.sites.values().map(|site| site.wanted.len().max(site.holdings.len())).sum::<usize>() < WORTH_A_THREAD {
        return Ok(Plan { reads: facts.reads(), ..assembled()? });
    }
    // The facts are hashed on a second thread: a third of the time of a large plan.
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| facts.reads());
        let plan = assembled()?;
        let reads = reads.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(Plan { reads, ..plan })
    })
}
