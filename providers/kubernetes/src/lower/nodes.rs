//! Node selection of the servers' pods, and the source of their models.

use serde_json::{Value, json};
use textnlp_provider::ResourceId;
use textnlp_provider::cluster::{ClusterGpus, GPU, ModelVolume, TaintEffect, Toleration, TolerationOperator};
use textnlp_provider::component::ModelStore;

use super::database::disk;
use super::template::Template;
use super::{Lowering, MODELS};

/// The source of the pods' models. Each pod verifies them by digest in any case.
pub(super) enum Volume<'a> {
    /// Each pod downloads them.
    Pod,
    /// A volume shared by all pods, which fill it.
    Claim,
    /// An OCI image mounted as a volume.
    Image(&'a str),
}

/// The name of the pod volume with the shared models; one-off jobs omit it.
pub(crate) const SHARED_VOLUME: &str = "shared-models";
/// The claim of the shared volume.
const CLAIM: &str = "textnlp-models";
/// The mount path of the shared volume.
const SHARED: &str = "/var/lib/textnlp/shared";
/// The mount path of a model image.
const IMAGE: &str = "/var/lib/textnlp/image";

impl Lowering<'_> {
    /// Where pods may run, for templates.
    pub(super) fn nodes(&self) -> Value {
        let settings = self.settings();
        json!({
            "selector": settings.node_selector,
            "tolerations": settings.tolerations,
            "runtime_class": settings.runtime_class,
            "priority_class": settings.priority_class,
        })
    }

    /// Where the servers' pods may run: the same, and on nodes with GPUs where they have them.
    pub(super) fn server_nodes(&self) -> Value {
        match &self.cluster.gpu {
            Some(gpu) => self.gpu_nodes(gpu),
            None => self.nodes(),
        }
    }

    /// Nodes with GPUs, whose taint keeps other pods away.
    pub(super) fn gpu_nodes(&self, gpu: &ClusterGpus) -> Value {
        let settings = self.settings();
        // Nodes of a pool that the site creates have its label, and none of the operator's.
        let selector = if gpu.node_selector.is_empty() { &settings.node_selector } else { &gpu.node_selector };
        let taint = Toleration {
            key: Some(GPU.to_owned()),
            operator: TolerationOperator::Exists,
            value: None,
            effect: Some(TaintEffect::NoSchedule),
        };
        let mut tolerations = settings.tolerations.clone();
        tolerations.extend(
            [taint].into_iter().chain(gpu.tolerations.clone()).filter(|one| !settings.tolerations.contains(one)),
        );
        let mut nodes = self.nodes();
        (nodes["selector"], nodes["tolerations"]) = (json!(selector), json!(tolerations));
        nodes
    }

    /// The source of models. Validation rejected a node folder and an image without a name.
    pub(super) fn volume(&self) -> Volume<'_> {
        let models = &self.settings().models;
        match (models.kind, &models.reference) {
            (ModelVolume::Claim, _) => Volume::Claim,
            (ModelVolume::Image, Some(reference)) => Volume::Image(reference),
            (ModelVolume::Pod | ModelVolume::Node | ModelVolume::Image, _) => Volume::Pod,
        }
    }

    /// The delivery section in the list of models: their source and their storage.
    pub(super) fn delivery(&self, models: &[Value], max_cache_bytes: u64) -> Value {
        match self.volume() {
            Volume::Pod => {
                json!({ "cache": format!("{MODELS}/.cache"), "max_cache_bytes": max_cache_bytes, "models": models })
            }
            // The volume is shared, so a model that one pod does not need may be in use by another: nothing is evicted.
            Volume::Claim => json!({ "shared": SHARED, "models": models }),
            Volume::Image(_) => json!({ "image": IMAGE, "models": models }),
        }
    }

    /// Adds the shared volume, if configured.
    pub(super) fn shared_volume(&mut self, store: &ModelStore) {
        if let Volume::Image(reference) = self.volume() {
            let reference = reference.to_owned();
            self.pinned("models.reference", &reference);
        }
        let Volume::Claim = self.volume() else { return };
        let settings = &self.settings().models;
        let bytes = settings.size.map_or(store.max_cache_bytes, |size| size.0);
        let inputs = json!({
            "namespace": self.cluster.namespace, "name": CLAIM, "size": disk(bytes), "access": "ReadWriteMany",
            "class": settings.storage_class,
        });
        self.part_of_kind("claim", Template::VolumeClaim, &inputs, []);
    }

    /// The additional model volume of the pods: the volume, its mount path, and whether the verifying container may
    /// write to it. Null for none.
    pub(super) fn model_volume(&self) -> Value {
        let volume = |source: &str, spec: Value, folder: &str, written: bool| {
            let volume = json!({ "name": SHARED_VOLUME, source: spec });
            json!({ "volume": volume, "folder": folder, "written": written })
        };
        match self.volume() {
            Volume::Pod => Value::Null,
            Volume::Claim => volume("persistentVolumeClaim", json!({ "claimName": CLAIM }), SHARED, true),
            Volume::Image(reference) => {
                let spec = json!({ "reference": reference, "pullPolicy": "IfNotPresent" });
                volume("image", spec, IMAGE, false)
            }
        }
    }

    /// The claim that the pods depend on.
    pub(super) fn claim(&self, models: &str) -> Option<ResourceId> {
        matches!(self.volume(), Volume::Claim).then(|| self.id(models, "claim"))?
    }
}
