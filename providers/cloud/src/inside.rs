//! What of a component is inside of a cluster that the cloud creates.

use textnlp_provider::cluster::{ClusterGpus, GPU_POOL, POOL};
use textnlp_provider::component::{ComponentSpec, Network};
use textnlp_provider::{Component, Site};

/// The component as the provider of the objects inside of the cluster expands it: without what the cloud's own resources answer for.
/// Pure.
pub fn inside(component: &Component, site: &Site) -> Option<(Component, Site)> {
    let part = match &component.part {
        ComponentSpec::Network(network) => ComponentSpec::Network(Network { cidr: None, ..network.clone() }),
        // A database that the cloud runs has backups of its own.
        ComponentSpec::Backup(_) if site.cluster.as_ref().is_some_and(|cluster| cluster.postgres.is_none()) => {
            return None;
        }
        part => part.clone(),
    };
    let is_inside = matches!(part, ComponentSpec::Certificate(_));
    let existing = component.existing.clone().filter(|_| is_inside);
    let mut site = site.clone();
    if let Some(gpu) = created_gpus(&mut site) {
        gpu.node_selector.insert(POOL.to_owned(), GPU_POOL.to_owned());
    }
    Some((Component { name: component.name.clone(), existing, part }, site))
}

/// The GPUs of a site, where its provider creates their nodes.
pub fn created_gpus(site: &mut Site) -> Option<&mut ClusterGpus> {
    site.cluster.as_mut()?.gpu.as_mut().filter(|gpu| !gpu.existing)
}
