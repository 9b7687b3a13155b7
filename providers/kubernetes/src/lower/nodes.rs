//! Node selection of the servers' pods, and the source of their models.

use serde_json::{Map, Value, json};
use textnlp_models::Source;
use textnlp_provider::ResourceId;
use textnlp_provider::cluster::{
    BucketIdentity, ClusterGpus, GPU, GPU_RESOURCES, ModelVolume, POOL, TaintEffect, Toleration, TolerationOperator,
};
use textnlp_provider::component::{Model, ModelStore};

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
    /// Where pods without a GPU may run, for templates.
    pub(super) fn nodes(&self) -> Value {
        let settings = self.settings();
        let mut tolerations = settings.tolerations.clone();
        // In a cluster of the operator, the selector chooses the nodes of all pods: these may have GPUs, and their taint.
        let are_with_gpus = self.cluster.gpu.as_ref().is_some_and(|gpu| gpu.node_selector.is_empty());
        if are_with_gpus && !settings.node_selector.is_empty() {
            tolerations.extend(Some(gpu_taint()).filter(|taint| !settings.tolerations.contains(taint)));
        }
        json!({
            "selector": settings.node_selector,
            "tolerations": tolerations,
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
        let mut tolerations = settings.tolerations.clone();
        tolerations.extend(
            [gpu_taint()].into_iter().chain(gpu.tolerations.clone()).filter(|one| !settings.tolerations.contains(one)),
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

    /// The identity that pods sign in to buckets with, if one of these models comes from one.
    pub(super) fn bucket_identity(&self, models: &[Model]) -> Option<&BucketIdentity> {
        let identity = self.cluster.bucket_identity.as_ref()?;
        models.iter().any(|model| self.scheme(model).as_deref() == Some(&identity.scheme)).then_some(identity)
    }

    /// The scheme of the bucket that pods fetch a model from.
    pub(super) fn scheme(&self, model: &Model) -> Option<String> {
        if matches!(self.volume(), Volume::Image(_)) {
            return None;
        }
        match model.source.parse() {
            Ok(Source::Bucket(bucket)) => Some(bucket.scheme().to_string()),
            Ok(Source::SiteBucket(_)) => {
                let own = self.cluster.bucket_identity.as_ref().map(|identity| identity.scheme.clone());
                Some(own.unwrap_or_else(|| "bucket".to_owned()))
            }
            _ => None,
        }
    }

    /// The source as pods read it: the bucket of the site has an address.
    pub(super) fn source(&self, model: &Model) -> String {
        match (&self.cluster.bucket_identity, model.source.parse()) {
            (Some(identity), Ok(Source::SiteBucket(path))) => format!("{}{path}", identity.own),
            _ => model.source.clone(),
        }
    }

    /// The claim that the pods depend on.
    pub(super) fn claim(&self, models: &str) -> Option<ResourceId> {
        matches!(self.volume(), Volume::Claim).then(|| self.id(models, "claim"))?
    }
}

/// The toleration of the taint of nodes with GPUs.
fn gpu_taint() -> Toleration {
    Toleration {
        key: Some(GPU.to_owned()),
        operator: TolerationOperator::Exists,
        value: None,
        effect: Some(TaintEffect::NoSchedule),
    }
}

/// Where the pod of a job runs that is made of a server's pod: it computes nothing, so it waits for no node of a GPU pool that the
/// site created. Nodes that the operator chose stay chosen, and in a cluster of the operator all of them may have the taint.
pub(crate) fn job_nodes(server: &Value) -> Map<String, Value> {
    let mut selector = server["nodeSelector"].as_object().cloned().unwrap_or_default();
    let mut tolerations = server["tolerations"].as_array().cloned().unwrap_or_default();
    let was_pool = selector.shift_remove(POOL).is_some();
    if was_pool && selector.is_empty() {
        tolerations.retain(|one| one["key"] != GPU);
    }
    let mut nodes = Map::new();
    nodes.extend((!selector.is_empty()).then(|| ("nodeSelector".to_owned(), Value::Object(selector))));
    nodes.extend((!tolerations.is_empty()).then(|| ("tolerations".to_owned(), Value::Array(tolerations))));
    nodes
}

/// Whether a container of a pod asks for a GPU.
pub(crate) fn has_gpu(pod: &Value) -> bool {
    gpu_resource(pod).is_some()
}

/// The resource by which a container of a pod asks for a GPU: a whole one, a slice or a share.
pub(crate) fn gpu_resource(pod: &Value) -> Option<&str> {
    pod["containers"].as_array().into_iter().flatten().find_map(gpu_resource_of)
}

/// The same of one container.
pub(crate) fn gpu_resource_of(container: &Value) -> Option<&str> {
    let mut limits = container["resources"]["limits"].as_object().into_iter().flatten();
    limits.find_map(|(name, _)| name.starts_with(GPU_RESOURCES).then_some(name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_leaves_the_gpu_pool_of_the_site_and_stays_on_nodes_of_the_operator() {
        let gpu = json!({ "key": GPU, "operator": "Exists", "effect": "NoSchedule" });
        let lost = json!({ "key": "node.kubernetes.io/unreachable", "operator": "Exists" });
        let of = |server: Value| Value::Object(job_nodes(&server));
        let of_pool =
            json!({ "nodeSelector": { POOL: "gpu" }, "tolerations": [lost, gpu], "runtimeClassName": "nvidia" });
        assert_eq!(of(of_pool), json!({ "tolerations": [lost] }));
        assert_eq!(of(json!({ "nodeSelector": { POOL: "gpu" }, "tolerations": [gpu] })), json!({}));
        let chosen = json!({ "nodeSelector": { "team": "text" }, "tolerations": [gpu] });
        assert_eq!(of(chosen.clone()), chosen);
        assert_eq!(of(json!({})), json!({}));
        // All nodes of an existing cluster may have the taint.
        let tolerant = json!({ "tolerations": [gpu] });
        assert_eq!(of(tolerant.clone()), tolerant);
    }
}
