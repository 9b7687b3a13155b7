//! What a site in a cluster has beside its servers, where their pods go, and where those find their models.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Bytes, Span, Spot, words};

/// A job of an operator's own image that works on what the service stored, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Analytics {
    /// The image, in a registry that the cluster reaches. Nothing of ours is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When, as a line of cron, in UTC.
    pub schedule: String,
    /// What is run in it.
    pub command: Vec<String>,
    /// When a run is given up.
    pub deadline: Span,
    /// The memory that a run gets.
    pub memory: Bytes,
    /// Whether it runs on machines that can be taken back.
    pub spot: Spot,
}

impl Default for Analytics {
    fn default() -> Self {
        Self {
            image: None,
            schedule: "0 * * * *".to_owned(),
            command: ["python", "-m", "textnlp.analytics.process"].map(str::to_owned).into(),
            deadline: Span::seconds(50 * 60),
            memory: Bytes(1 << 30),
            spot: Spot::Never,
        }
    }
}

words! {
    /// Where pods find their models.
    pub enum ModelVolume {
        /// Each pod fetches them for itself.
        Pod = "pod",
        /// On one volume that all pods share.
        Claim = "claim",
        /// In an image, which nodes keep.
        Image = "image",
        /// In a folder of each node: refused, since pods of the restricted profile see no folder of a node.
        Node = "node",
    }
}

/// Where pods find their models. Whatever it is, each pod proves them by digest before it serves them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterModels {
    /// On what.
    pub kind: ModelVolume,
    /// The size of the shared volume; left out, `storage.model_cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// The storage class of the shared volume, one whose volumes many nodes write; left out, the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// The image with the models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Default for ClusterModels {
    fn default() -> Self {
        Self { kind: ModelVolume::Pod, size: None, storage_class: None, reference: None }
    }
}

impl ClusterModels {
    pub(super) fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

words! {
    /// What of a taint is borne.
    pub enum TolerationOperator {
        /// One with this value.
        Equal = "Equal",
        /// One with any value.
        Exists = "Exists",
    }
}

words! {
    /// What a taint does to pods that do not bear it.
    pub enum TaintEffect {
        /// None comes.
        NoSchedule = "NoSchedule",
        /// None comes where there is another node.
        PreferNoSchedule = "PreferNoSchedule",
        /// None stays.
        NoExecute = "NoExecute",
    }
}

/// A taint of nodes that pods bear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Toleration {
    /// Its key; left out with `operator: Exists`, every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What of it is compared.
    pub operator: TolerationOperator,
    /// Its value, with `operator: Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it does; left out, whatever it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

impl Default for Toleration {
    fn default() -> Self {
        Self { key: None, operator: TolerationOperator::Equal, value: None, effect: None }
    }
}
