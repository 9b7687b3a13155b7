//! The registry of images, where its address is one of Azure.

use serde_json::json;
use textnlp_cloud::{PUSH_IT, tag_and_digest};
use textnlp_provider::component::Registry;

use super::{Lowering, SERVER, SERVER_IDENTITY, is_served, output};
use crate::kinds::identity::ACR_PULL;
use crate::transport::REGISTRIES;

/// The parts that are the images, and the right to pull them.
pub(super) const REPOSITORY: &str = "repository";
pub(super) const PULL: &str = "pull";

impl Lowering<'_> {
    /// Another registry is the operator's.
    pub(super) fn registry(&mut self, registry: &Registry) {
        let address = registry.url.trim_start_matches("https://").trim_end_matches('/');
        let (host, repository) = address.split_once('/').unwrap_or((address, ""));
        let Some(name) = host.strip_suffix(REGISTRIES) else {
            if registry.image.is_some() {
                let cause = format!("`up` pushes images to registries of Azure only, and `{host}` is none");
                self.problem("url", cause, PUSH_IT);
            }
            return;
        };
        if self.component.existing.is_some() {
            // Its operator has granted `AcrPull` to the nodes.
            if registry.image.is_some() {
                self.problem("existing", "`up` does not push to an existing registry", PUSH_IT);
            }
            return;
        }
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if !(5..=50).contains(&name.len()) || !name.bytes().all(fits) {
            let cause = format!("`{host}` is no name for a registry of Azure");
            return self.problem("url", cause, "use 5 to 50 lower-case letters and digits before `.azurecr.io`");
        }
        if registry.image.is_some() && repository.is_empty() {
            let fix = format!("write `registry.url: {host}/textnlp`");
            return self.problem("url", "it names no repository for the image", fix);
        }
        if !repository.is_empty() && !is_repository(repository) {
            let cause = format!("`{repository}` is no name for a repository of images");
            return self.problem(
                "url",
                cause,
                "use lower-case letters and digits, with `.`, `_`, `-` or `/` between them",
            );
        }
        let spec = self.of_group(json!({ "name": name, "sku": "Standard" }));
        let Some(own) = self.part("registry", "azure.registry", spec) else { return };
        if let Some(image) = &registry.image {
            let spec = json!({
                "registry": output(&own, "id"), "name": repository, "images": [tag_and_digest(image)],
            });
            self.part(REPOSITORY, "azure.repository", spec);
        }
        if is_served(self.site) {
            let principal = self.output_of(SERVER, SERVER_IDENTITY, "principal");
            self.role(PULL, &output(&own, "id"), ACR_PULL, &principal);
            return;
        }
        // The identity of the nodes pulls, not that of the cluster (Azure/AKS#4275).
        let cluster = textnlp_provider::ComponentName::new("cluster");
        let Ok(cluster) = cluster.map(|name| textnlp_provider::ResourceId::of(&self.site.name, &name)) else { return };
        self.role(PULL, &output(&own, "id"), ACR_PULL, &output(&cluster, "nodes"));
    }
}

/// Whether a name of a repository is right: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests>.
fn is_repository(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 200 && name.split(['.', '_', '-', '/']).all(|part| !part.is_empty() && part.bytes().all(fits))
}
