//! The repository of images, where the registry is that of the site's own project and region.

use serde_json::json;
use textnlp_cloud::{PUSH_IT, tag_and_digest};
use textnlp_provider::component::Registry;
use textnlp_provider::{CloudId, Ownership};

use super::Lowering;

/// Days until an image is removed that has no tag any more.
const UNTAGGED_DAYS: u32 = 14;

impl Lowering<'_> {
    /// Another registry than that of this project and region is the operator's.
    pub(super) fn registry(&mut self, registry: &Registry) {
        let address = registry.url.trim_start_matches("https://").trim_end_matches('/');
        let (host, path) = address.split_once('/').unwrap_or((address, ""));
        let (project, path) = path.split_once('/').unwrap_or((path, ""));
        let (name, image) = path.split_once('/').unwrap_or((path, ""));
        let own = format!("{}-docker.pkg.dev/{}", self.site.region, self.site.account);
        if format!("{host}/{project}") != own {
            if registry.image.is_some() {
                let cause =
                    format!("`up` pushes images to the registry of the site's own project and region only: {own}");
                self.problem("url", cause, PUSH_IT);
            }
            return;
        }
        if name.is_empty() || (registry.image.is_some() && image.is_empty()) {
            let fix = format!("write `registry.url: {own}/textnlp/server`");
            return self.problem("url", "it names no image in a repository", fix);
        }
        let mut images = Vec::new();
        if let Some(pushed) = &registry.image {
            if self.component.existing.is_some() {
                return self.problem("existing", "`up` does not push to an existing repository", PUSH_IT);
            }
            images.push(format!("{image}:{}", tag_and_digest(pushed)));
        }
        let path = format!("projects/{project}/locations/{}/repositories/{name}", self.site.region);
        let existing = self.component.existing.as_ref().and_then(|_| CloudId::new(path).ok());
        let (key, access) = match existing {
            Some(_) => (serde_json::Value::Null, None),
            None => self.data_key("agent:artifactregistry"),
        };
        let repository =
            json!({ "name": name, "immutable": true, "untagged_days": UNTAGGED_DAYS, "key": key, "images": images });
        let ownership = existing.map_or(Ownership::Ours, Ownership::External);
        self.owned_part("repository", "gcp.repository", self.of_region(repository), ownership);
        self.after(access);
    }
}
