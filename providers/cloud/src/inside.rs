//! What of a component is inside of a cluster that the cloud creates.

use textnlp_provider::cluster::{ClusterGpus, ClusterNodes, GPU_POOL, POOL};
use textnlp_provider::component::{ComponentSpec, Network};
use textnlp_provider::{Component, Site};

/// The part of a cluster that is its nodes with GPUs.
pub const GPU_NODES: &str = "gpu-nodes";

/// The component as the provider of the objects inside of the cluster expands it: without what the cloud's own resources answer for.
/// `nodes` is the part of the cluster that is its nodes. Pure.
pub fn inside(component: &Component, site: &Site, nodes: &str) -> (Component, Site) {
    let part = match &component.part {
        ComponentSpec::Network(network) => ComponentSpec::Network(Network { cidr: None, ..network.clone() }),
        part => part.clone(),
    };
    let is_inside = matches!(part, ComponentSpec::Certificate(_));
    let existing = component.existing.clone().filter(|_| is_inside);
    let mut site = site.clone();
    let gpu = created_gpus(&mut site).map(|gpu| {
        gpu.node_selector.insert(POOL.to_owned(), GPU_POOL.to_owned());
        GPU_NODES.to_owned()
    });
    if let Some(cluster) = site.cluster.as_mut().filter(|cluster| !cluster.existing) {
        cluster.nodes = Some(ClusterNodes { general: nodes.to_owned(), gpu, disks: None });
    }
    (Component { name: component.name.clone(), existing, part }, site)
}

/// The GPUs of a site, where its provider creates their nodes.
pub fn created_gpus(site: &mut Site) -> Option<&mut ClusterGpus> {
    site.cluster.as_mut()?.gpu.as_mut().filter(|gpu| !gpu.existing)
}
