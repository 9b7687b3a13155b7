//! Where the servers' pods go, and where they find their models.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use textnlp_provider::ResourceId;

use super::database::disk;
use super::template::Template;
use super::{Lowering, MODELS};

/// Which nodes the servers and their jobs go to, and how the servers' pods run there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Nodes {
    /// Labels that a node must have.
    pub selector: BTreeMap<String, String>,
    /// Taints that are borne, as a pod's template has them.
    pub tolerations: Vec<Value>,
    /// The RuntimeClass of the servers' pods.
    pub runtime_class: Option<String>,
    /// Their PriorityClass.
    pub priority_class: Option<String>,
}

/// Where pods find their models; each proves them by digest, wherever they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ModelVolume {
    /// Each pod fetches them for itself.
    #[default]
    Pod,
    /// On one volume that all pods write and read.
    Claim {
        /// Its size.
        bytes: u64,
        /// Its storage class; `None` is the cluster's default.
        class: Option<String>,
    },
    /// In an image, which nodes keep.
    Image {
        /// The image.
        reference: String,
    },
}

/// The volume of a pod with what others share, by which an errand knows that it needs none of it.
pub(crate) const SHARED_VOLUME: &str = "shared-models";
/// The claim that all pods share.
const CLAIM: &str = "textnlp-models";
/// Where it is in pods.
const SHARED: &str = "/var/lib/textnlp/shared";
/// Where an image of models is in pods.
const IMAGE: &str = "/var/lib/textnlp/image";

impl Lowering<'_> {
    /// What the list of models says of where they come from and where they are kept.
    pub(super) fn delivery(&self, models: &[Value], max_cache_bytes: u64) -> Value {
        match &self.place.models {
            ModelVolume::Pod => {
                json!({ "cache": format!("{MODELS}/.cache"), "max_cache_bytes": max_cache_bytes, "models": models })
            }
            // What one pod does not ask for any more another may still serve: nothing is evicted.
            ModelVolume::Claim { .. } => json!({ "shared": SHARED, "models": models }),
            ModelVolume::Image { .. } => json!({ "image": IMAGE, "models": models }),
        }
    }

    /// The volume that all pods share, where they share one.
    pub(super) fn shared_volume(&mut self) {
        let ModelVolume::Claim { bytes, class } = self.place.models.clone() else { return };
        let inputs = json!({
            "namespace": self.place.namespace, "name": CLAIM, "size": disk(bytes), "access": "ReadWriteMany", "class": class,
        });
        self.part_of_kind("claim", Template::VolumeClaim, &inputs, []);
    }

    /// What pods get beside a folder of their own: a volume, where it is, and whether the one that proves may write to it. `null` for none.
    pub(super) fn model_volume(&self) -> Value {
        let volume = |source: &str, spec: Value, folder: &str, written: bool| {
            let volume = json!({ "name": SHARED_VOLUME, source: spec });
            json!({ "volume": volume, "folder": folder, "written": written })
        };
        match &self.place.models {
            ModelVolume::Pod => Value::Null,
            ModelVolume::Claim { .. } => volume("persistentVolumeClaim", json!({ "claimName": CLAIM }), SHARED, true),
            ModelVolume::Image { reference } => {
                let spec = json!({ "reference": reference, "pullPolicy": "IfNotPresent" });
                volume("image", spec, IMAGE, false)
            }
        }
    }

    /// The claim that has to be there before the pods.
    pub(super) fn claim(&self, models: &str) -> Option<ResourceId> {
        matches!(self.place.models, ModelVolume::Claim { .. }).then(|| self.id(models, "claim"))?
    }
}
