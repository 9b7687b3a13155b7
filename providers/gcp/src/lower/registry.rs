//! The repository of images, where the registry is that of the site's own project and region.

use serde_json::json;
use textnlp_provider::component::Registry;
use textnlp_provider::{CloudId, Ownership};

use super::Lowering;

/// Days until an image is removed that has no tag any more.
const UNTAGGED_DAYS: u32 = 14;

impl Lowering<'_> {
    /// Another registry than that of this project and region is the operator's.
    pub(super) fn registry(&mut self, registry: &Registry) {
        let address = registry.url.trim_start_matches("https://").trim_end_matches('/');
        if registry.image.is_some() {
            let cause = "`up` does not push images to a registry of Google Cloud yet";
            let fix = "push the image that `textnlp-deploy bundle create` packs, and write `sites[].cluster.image: REPOSITORY:TAG@sha256:…`";
            return self.problem("url", cause, fix);
        }
        let (host, path) = address.split_once('/').unwrap_or((address, ""));
        let (project, name) = path.split_once('/').unwrap_or((path, ""));
        let name = name.split('/').next().unwrap_or_default();
        if host != format!("{}-docker.pkg.dev", self.site.region) || project != self.site.account {
            return;
        }
        if name.is_empty() {
            let fix = format!("write `registry.url: {host}/{project}/textnlp`");
            return self.problem("url", "it names no repository", fix);
        }
        let path = format!("projects/{project}/locations/{}/repositories/{name}", self.site.region);
        let existing = self.component.existing.as_ref().and_then(|_| CloudId::new(path).ok());
        let (key, access) = match existing {
            Some(_) => (serde_json::Value::Null, None),
            None => self.data_key("agent:artifactregistry"),
        };
        let repository = json!({ "name": name, "immutable": true, "untagged_days": UNTAGGED_DAYS, "key": key });
        let ownership = existing.map_or(Ownership::Ours, Ownership::External);
        self.owned_part("repository", "gcp.repository", self.of_region(repository), ownership);
        self.after(access);
    }
}
