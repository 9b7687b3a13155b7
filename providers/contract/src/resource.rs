//! The wanted, the recorded and the observed state of one resource.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::name::{CloudId, KindName, Lineage, ResourceId, SiteName};
use crate::operation::Token;
use crate::spec::Spec;

/// Values of an object that other resources may read: addresses, paths, fingerprints. Secrets are references.
pub type Outputs = BTreeMap<String, Value>;

/// One wanted resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its id in this environment.
    pub id: ResourceId,
    /// Its kind.
    pub kind: KindName,
    /// Its site.
    pub site: SiteName,
    /// The resource through which it is reached, if that is not the provider's own API: a cluster, a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Ref>,
    /// The wanted spec; may refer to outputs of resources in `needs`.
    pub spec: Spec,
    /// Dependencies: created before it, and removed after it.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// Whether it is managed or external.
    #[serde(default)]
    pub ownership: Ownership,
    /// Deleting or replacing it needs a typed confirmation.
    #[serde(default)]
    pub protected: bool,
}

/// Whether an object is managed or external.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// Managed: created by this program, carries its lineage.
    #[default]
    Ours,
    /// An `existing:` object: read and checked, never changed or deleted.
    External(CloudId),
}

/// A reference from one resource to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ref(pub ResourceId);

/// A dependency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Need {
    /// The resource that must exist.
    pub on: ResourceId,
}

impl Need {
    /// A dependency on `on`.
    pub fn on(on: ResourceId) -> Self {
        Self { on }
    }
}

/// One resource as last recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its id in this environment.
    pub id: ResourceId,
    /// Its kind.
    pub kind: KindName,
    /// Its site.
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
    /// Its id at the provider.
    pub cloud_id: CloudId,
    /// When the provider created it, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Its outputs.
    pub outputs: Outputs,
    /// Deleting or replacing it needs a typed confirmation, even when it is in no file any more.
    pub protected: bool,
    /// A create failed half-way: the next plan replaces it.
    pub tainted: bool,
}

/// The observation of one resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Observed {
    /// It exists.
    Present(Object),
    /// It certainly does not exist.
    Absent,
    /// It could not be observed; never a reason to create or delete.
    Unknown(ReadFailure),
}

/// Why a resource could not be observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFailure(pub String);

/// One real object as observed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Its kind: an unlisted object of this lineage is removed by its kind.
    pub kind: KindName,
    /// Its id at the provider.
    pub cloud_id: CloudId,
    /// Its attributes as observed, in the form of the kind's spec as far as the provider shows them.
    pub spec: Spec,
    /// Its outputs.
    pub outputs: Outputs,
    /// Its lineage; `None` for an object without one.
    pub lineage: Option<Lineage>,
    /// What the provider tells about the operation that created it.
    #[serde(default, skip_serializing_if = "Origin::is_untold")]
    pub origin: Origin,
    /// When the provider created it, where it tells. It never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Whether it is healthy.
    pub health: Health,
    /// The resource through which it was observed, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Ref>,
    /// Objects inside it that no operation created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<Foreign>,
}

/// What a provider tells about the operation that created an object.
///
/// A lineage is no proof of origin where others may label objects: it is readable on every object of the deployment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The provider does not mark objects with their operation: the lineage decides.
    #[default]
    Untold,
    /// The provider marks objects with their operation, and this one has no such mark.
    Unmarked,
    /// The token of the create that made it, by its mark.
    Operation(Token),
}

impl Origin {
    /// The origin that a mark states: anything but a token is none.
    pub fn of_mark(mark: Option<&str>) -> Self {
        mark.and_then(Token::parse).map_or(Self::Unmarked, Self::Operation)
    }

    /// The token of the operation, if one is stated.
    pub fn operation(&self) -> Option<&Token> {
        match self {
            Self::Operation(token) => Some(token),
            Self::Untold | Self::Unmarked => None,
        }
    }

    fn is_untold(&self) -> bool {
        *self == Self::Untold
    }
}

/// An object inside a managed one that no operation created: a load balancer in a network, a disk of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Foreign {
    /// Its id at the provider.
    pub cloud_id: CloudId,
    /// A description in a word.
    pub what: String,
    /// Whether it names a cluster of this deployment as its owner, so that the cluster's controllers created it. It is
    /// then deleted with its container; any other object is foreign and stays.
    pub swept: bool,
    /// Whether it outlives its container: a disk, a load balancer of an older API. It is neither deleted nor in the way,
    /// only reported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outlives: bool,
    /// The cluster whose controllers created it, where the provider tells: a running cluster recreates such objects.
    pub maker: Option<CloudId>,
}

impl Foreign {
    /// Whether it keeps its container from being deleted.
    pub fn is_in_the_way(&self) -> bool {
        !self.swept && !self.outlives
    }
}

/// The health of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It is healthy.
    Ready,
    /// It exists and is unhealthy, with the provider's reason.
    Degraded(String),
}

/// One field that differs from the wanted spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The path in the spec, dotted: `limits.memory`.
    pub field: String,
    /// The observed value; `None` when it is not there.
    pub before: Option<Value>,
    /// The wanted value; `None` when it should not be there. A reference to an unknown output is kept.
    pub after: Option<Value>,
    /// What the change takes.
    pub effect: Effect,
}

/// What a change of a field takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Updates the object.
    InPlace,
    /// Replaces the object.
    Replace,
    /// It is not possible; the reason says what to do instead.
    Refuse(String),
}
