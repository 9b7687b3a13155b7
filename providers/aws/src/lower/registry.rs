//! The repository of images, where the registry is that of the site's own account.

use serde_json::json;
use textnlp_provider::Ownership;
use textnlp_provider::component::Registry;

use super::Lowering;

/// Days until an image is removed that has no tag any more.
const UNTAGGED_DAYS: u32 = 14;

impl Lowering<'_> {
    /// Another registry than that of this account and region is the operator's.
    pub(super) fn registry(&mut self, registry: &Registry) {
        let address = registry.url.trim_start_matches("https://").trim_end_matches('/');
        let (host, name) = address.split_once('/').unwrap_or((address, ""));
        let parts: Vec<&str> = host.split('.').collect();
        let is_ours = match parts.as_slice() {
            [account, "dkr", "ecr", region, ..] => *account == self.site.account && *region == self.site.region,
            _ => false,
        };
        if !is_ours {
            return;
        }
        if name.is_empty() {
            let fix = format!("write `registry.url: {host}/textnlp`");
            return self.problem("url", "it names no repository", fix);
        }
        let repository = json!({
            "name": name,
            "immutable": true,
            "scan_on_push": true,
            "key": self.data_key(),
            "lifecycle": {
                "rules": [{
                    "rulePriority": 1,
                    "description": "images without a tag",
                    "selection": {
                        "tagStatus": "untagged",
                        "countType": "sinceImagePushed",
                        "countUnit": "days",
                        "countNumber": UNTAGGED_DAYS,
                    },
                    "action": { "type": "expire" },
                }],
            },
        });
        let existing = self.component.existing.clone();
        let ownership = existing.map_or(Ownership::Ours, Ownership::External);
        self.owned_part("repository", "aws.repository", &repository, ownership);
    }
}
