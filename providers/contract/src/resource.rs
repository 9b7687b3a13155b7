//! What is wanted, what is recorded and what the provider says: the three views of one resource.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::name::{CloudId, KindName, Lineage, ResourceId, SiteName};
use crate::spec::Spec;

/// What others may read of an object once it exists: addresses, paths, fingerprints. Secrets stand as references.
pub type Outputs = BTreeMap<String, Value>;

/// One resource as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its id in this environment.
    pub id: ResourceId,
    /// What it is.
    pub kind: KindName,
    /// Where it is.
    pub site: SiteName,
    /// The resource through which it is reached, when that is not the provider's own API: a cluster, a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Ref>,
    /// What it should be; may refer to outputs of resources in `needs`.
    pub spec: Spec,
    /// What must be there before it, and in use until after it.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// Ours to change, or only read and checked.
    #[serde(default)]
    pub ownership: Ownership,
    /// Deleting or replacing it takes a typed consent.
    #[serde(default)]
    pub protected: bool,
}

/// Whose object this is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// Made by us, carries our lineage.
    #[default]
    Ours,
    /// An `existing:` object: read and checked, never changed or deleted.
    External(CloudId),
}

/// A reference from one resource to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ref(pub ResourceId);

/// Something that must be there first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Need {
    /// What must be there.
    pub on: ResourceId,
}

impl Need {
    /// Needs `on`.
    pub fn on(on: ResourceId) -> Self {
        Self { on }
    }
}

/// One resource as we last wrote it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its id in this environment.
    pub id: ResourceId,
    /// What it is.
    pub kind: KindName,
    /// Where it is.
    pub site: SiteName,
    /// The resource through which it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Ref>,
    /// As applied: outputs resolved, secrets as references.
    pub spec: Spec,
    /// As applied.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// As applied.
    #[serde(default)]
    pub ownership: Ownership,
    /// The version of the kind's spec when it was applied.
    pub schema: u32,
    /// What the provider calls it.
    pub cloud_id: CloudId,
    /// What others read of it.
    pub outputs: Outputs,
    /// Deleting or replacing it takes a typed consent, even when no file mentions it any more.
    pub protected: bool,
    /// A create failed half-way: the next plan replaces it.
    pub tainted: bool,
}

/// What a provider says of one resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Observed {
    /// It is there.
    Present(Object),
    /// It is certainly not there.
    Absent,
    /// It could not be seen; never a reason to create or delete.
    Unknown(Why),
}

/// Why a resource could not be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why(pub String);

/// One real object as the provider shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// What it is: an object of our lineage that nobody mentions any more is removed by its kind.
    pub kind: KindName,
    /// What the provider calls it.
    pub cloud_id: CloudId,
    /// Its attributes as seen, in the words of the kind's spec as far as the provider shows them.
    pub spec: Spec,
    /// What others may read of it.
    pub outputs: Outputs,
    /// The lineage it carries; `None` for an object that carries none.
    pub lineage: Option<Lineage>,
    /// Whether it does its work.
    pub health: Health,
    /// The resource through which it was seen, where a provider works through others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Ref>,
    /// What is inside it that no operation of ours made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<Foreign>,
}

/// An object inside one of ours that no operation of ours made: a load balancer in our network, a disk of our cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Foreign {
    /// What the provider calls it.
    pub cloud_id: CloudId,
    /// What it is, in a word for people.
    pub what: String,
    /// The controllers of a cluster of this deployment made it, by the owner that it names: it goes with what it is inside of. What
    /// names no such owner is somebody else's and stays.
    pub swept: bool,
    /// The cluster whose controllers made it, where the provider tells: as long as that works, it makes such objects again.
    pub maker: Option<CloudId>,
}

/// Whether an object does its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It does.
    Ready,
    /// It is there and does not, with the provider's reason.
    Degraded(String),
}

/// One field that differs from what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Where in the spec, dotted: `limits.memory`.
    pub field: String,
    /// As it is; `None` when it is not there.
    pub before: Option<Value>,
    /// As it should be; `None` when it should not be there. A reference to an output that is not known yet stands as it is.
    pub after: Option<Value>,
    /// What the change takes.
    pub effect: Effect,
}

/// What a change of a field takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// An update of the object.
    InPlace,
    /// A new object in its place.
    Replace,
    /// It cannot be done; the reason says what to do instead.
    Refuse(String),
}
