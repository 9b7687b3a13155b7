//! From facts to an explicit graph of steps. Pure: the same facts give the same bytes.
//!
//! Read in this order: this file (the words), `decide` (one resource: what must happen to it), `unwanted` (the same for what is not wanted any more), `graph` (all of them: in
//! which order), [`audit`](audit()) (a second opinion on the finished plan), [`approve`]. What the plan leaves open stands in it as
//! [`Node::OneOf`]: apply chooses by what it sees and makes no call outside the alternatives.

mod approve;
mod audit;
mod decide;
mod facts;
mod gated;
mod graph;
mod permissions;
mod reach;
mod saved;
mod unwanted;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use textnlp_provider::{
    EnvironmentName, FieldChange, KindName, Lineage, Object, Problem, Problems, Recorded, ResourceId, SiteName, Verb,
    Wanted,
};

pub use approve::{Approved, Consent, Refused, approve};
pub use audit::{Audited, Breach, audit};
pub(crate) use decide::{branch_of, refreshed, sorted_needs};
pub use facts::{Facts, SiteFacts};
pub use permissions::{Permission, permissions};
pub use reach::{Estimate, Reach, Swept, estimate, reach, swept};
pub use saved::{MOST_BYTES, NotSaved, Saved};

/// The version of the plan's format.
pub const FORMAT: u32 = 1;

/// What a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Make what is wanted so.
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

/// The steps that lead from what is to what should be, with everything that they may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of this format.
    pub format: u32,
    /// For which environment.
    pub environment: EnvironmentName,
    /// What for.
    pub purpose: Purpose,
    /// For which deployment; `None` when the first `up` is still to make it.
    pub lineage: Option<Lineage>,
    /// Whether it may remove what holds data.
    pub delete_data: bool,
    /// The steps, each after those that it waits for.
    pub steps: Vec<Step>,
    /// What is as it should be.
    pub unchanged: Vec<ResourceId>,
    /// What cannot be planned now, and why.
    pub blocked: Vec<Blocked>,
    /// What is kept because it holds data, or because something that holds data needs it.
    pub retained: Vec<Retained>,
    /// What would need a decision that this plan was not given: it cannot be approved as it stands.
    pub refusals: Vec<Problem>,
    /// What deserves a look.
    pub warnings: Vec<Problem>,
    /// How many of each.
    pub summary: Summary,
    /// A digest of what was read of each resource: the plan is stale when one of them has changed.
    pub reads: BTreeMap<ResourceId, String>,
}

/// How many resources a plan does what to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Made anew.
    pub create: usize,
    /// Changed in place.
    pub update: usize,
    /// Given up for a new one.
    pub replace: usize,
    /// Removed.
    pub delete: usize,
    /// Left as they are.
    pub unchanged: usize,
    /// Looked at again when what they depend on has changed: they may be left, changed or replaced.
    pub possible: usize,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its number: its place in [`Plan::steps`].
    pub id: u32,
    /// What it is about.
    pub resource: ResourceId,
    /// Of which kind.
    pub kind: KindName,
    /// Where.
    pub site: SiteName,
    /// What it does.
    pub node: Node,
    /// The steps that must be done before.
    pub after: Vec<u32>,
    /// The fields that differ, with what each change takes.
    pub changes: Vec<FieldChange>,
    /// Why, in a few words.
    pub because: String,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Node {
    /// One operation.
    Call(Call),
    /// One of these, by what is seen then.
    OneOf(OneOf),
    /// Some of what comes after it, by what is measured from outside then.
    Gate(Gate),
    /// Our own record changes, nothing else.
    Note(Note),
}

impl Node {
    /// Every operation that may come of it.
    pub fn calls(&self) -> Vec<&Call> {
        match self {
            Node::Call(call) => vec![call],
            Node::OneOf(one) => one.alternatives.iter().flat_map(|alternative| &alternative.calls).collect(),
            Node::Note(_) | Node::Gate(_) => Vec::new(),
        }
    }
}

/// One operation of a provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Call {
    /// Makes an object.
    Create {
        /// What it should be; outputs of earlier steps stand as references.
        wanted: Box<Wanted>,
        /// Beside the one in use, which goes afterwards.
        beside: bool,
    },
    /// Changes an object in place.
    Update {
        /// What it should be.
        wanted: Box<Wanted>,
        /// As recorded.
        recorded: Box<Recorded>,
        /// As seen.
        seen: Box<Object>,
        /// It is ours and no record mentions it: the change adopts it.
        stray: bool,
    },
    /// Removes an object.
    Delete {
        /// As recorded.
        recorded: Box<Recorded>,
        /// Which of the objects behind the resource.
        which: Which,
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

/// Which of the objects behind a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The one in use.
    Current,
    /// One that was replaced.
    Old,
    /// One of ours that no record mentions.
    Stray,
}

/// A step that is decided when it is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OneOf {
    /// What decides.
    pub decides: Decides,
    /// What may happen.
    pub alternatives: Vec<Alternative>,
}

/// What decides between alternatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decides {
    /// The difference that is left once the outputs of earlier steps are known.
    Difference {
        /// What it should be; outputs of earlier steps stand as references.
        wanted: Box<Wanted>,
        /// As recorded.
        recorded: Box<Recorded>,
        /// As seen.
        seen: Box<Object>,
    },
    /// What another step chose.
    As(u32),
}

/// A step at which somebody is asked whether what was made may take the place of what was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// The steps that are begun when it is open; they wait for it.
    pub open: Vec<u32>,
    /// The steps that are begun when it is shut: none, as long as shutting only keeps what is there.
    pub shut: Vec<u32>,
}

/// One of the things that may happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// When this much has to change.
    pub branch: Branch,
    /// The operations, one after the other.
    pub calls: Vec<Call>,
}

/// How much has to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Branch {
    /// Nothing.
    Nothing,
    /// A change in place.
    Update,
    /// A new object.
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

/// A change of our own record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// The object is ours, or an `existing:` one, and was not recorded.
    Adopt {
        /// The record.
        recorded: Box<Recorded>,
    },
    /// The object is as it should be; what we wrote down of it is not.
    Remember {
        /// The record.
        recorded: Box<Recorded>,
    },
    /// The object that was replaced is still there, and is what is wanted: it is in use again.
    Return {
        /// Its record from now on.
        recorded: Box<Recorded>,
        /// The SHA-256 of the record that it has as a replaced one.
        old: String,
    },
    /// The object is gone, or was never ours.
    Forget,
}

/// A resource that cannot be planned now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Which.
    pub resource: ResourceId,
    /// Why.
    pub because: String,
}

/// A resource that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    /// Which.
    pub resource: ResourceId,
    /// Of which kind.
    pub kind: KindName,
    /// Why.
    pub because: String,
}

impl Plan {
    /// Whether any provider is called. Notes in our own journal are not changes.
    pub fn has_changes(&self) -> bool {
        self.steps.iter().any(|step| !matches!(step.node, Node::Note(_)))
    }

    /// Whether everything that is wanted will be there when it has been applied.
    pub fn is_complete(&self) -> bool {
        self.blocked.is_empty() && self.refusals.is_empty()
    }

    /// The canonical text, for a file and for the digest.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plans are plain data")
    }

    /// SHA-256 of the canonical text, hex.
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.to_json().as_bytes()))
    }

    /// The resources of which something else was read than the facts say now; empty while the plan is fresh.
    pub fn stale(&self, facts: &Facts) -> Vec<ResourceId> {
        let now = facts.reads();
        let mut changed: Vec<_> = self.reads.keys().chain(now.keys()).cloned().collect();
        changed.sort();
        changed.dedup();
        changed.retain(|resource| self.reads.get(resource) != now.get(resource));
        changed
    }
}

/// Makes the plan for these facts, or names everything that is wrong with what is wanted.
pub fn plan(facts: &Facts) -> Result<Plan, Problems> {
    /// Fewer resources are summed up sooner than a thread is started.
    const WORTH_A_THREAD: usize = 300;
    let assembled = || {
        let world = facts::World::of(facts)?;
        graph::assemble(&world, decide::decide(&world))
    };
    if facts.sites.values().map(|site| site.wanted.len().max(site.holdings.len())).sum::<usize>() < WORTH_A_THREAD {
        return Ok(Plan { reads: facts.reads(), ..assembled()? });
    }
    // What was read is summed up on a second core meanwhile: a third of the time of a large plan.
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| facts.reads());
        let plan = assembled()?;
        let reads = reads.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(Plan { reads, ..plan })
    })
}
