//! The registry of images, where its address is one of Azure.

use serde_json::json;
use textnlp_provider::component::Registry;

use super::{Lowering, output};
use crate::kinds::identity::ACR_PULL;

/// The end of the address of every registry of Azure.
const HOST: &str = ".azurecr.io";

impl Lowering<'_> {
    /// Another registry is the operator's.
    pub(super) fn registry(&mut self, registry: &Registry) {
        let address = registry.url.trim_start_matches("https://").trim_end_matches('/');
        let host = address.split('/').next().unwrap_or_default();
        if registry.image.is_some() {
            let cause = "`up` does not push images to a registry of Azure yet";
            let fix = "push the image that `textnlp-deploy bundle create` packs, and write `sites[].cluster.image: REPOSITORY:TAG@sha256:…`";
            return self.problem("url", cause, fix);
        }
        let Some(name) = host.strip_suffix(HOST) else { return };
        if self.component.existing.is_some() {
            // Its operator has granted `AcrPull` to the nodes.
            return;
        }
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if !(5..=50).contains(&name.len()) || !name.bytes().all(fits) {
            let cause = format!("`{host}` is no name for a registry of Azure");
            return self.problem("url", cause, "use 5 to 50 lower-case letters and digits before `.azurecr.io`");
        }
        let spec = self.of_group(json!({ "name": name, "sku": "Standard" }));
        let Some(registry) = self.part("registry", "azure.registry", spec) else { return };
        // The identity of the nodes pulls, not that of the cluster (Azure/AKS#4275).
        let cluster = textnlp_provider::ComponentName::new("cluster");
        let Ok(cluster) = cluster.map(|name| textnlp_provider::ResourceId::of(&self.site.name, &name)) else { return };
        self.role("pull", &output(&registry, "id"), ACR_PULL, &output(&cluster, "nodes"));
    }
}
