//! The repository of images, where the registry is that of the site's own account.

use serde_json::json;
use textnlp_cloud::{PUSH_IT, tag_and_digest};
use textnlp_provider::Ownership;
use textnlp_provider::component::Registry;
use textnlp_provider::settings::Runtime;
use textnlp_token::partition;

use super::Lowering;

/// Days until an image is removed that has no tag any more.
const UNTAGGED_DAYS: u32 = 14;

/// Whether ECR takes a name (<https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html>).
fn is_repository(name: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    (2..=256).contains(&name.len()) && name.split(['/', '.', '_', '-']).all(is_word)
}

impl Lowering<'_> {
    /// Another registry than that of this account and region is the operator's.
    pub(super) fn registry(&mut self, registry: &Registry) {
        let address = registry.url.trim_start_matches("https://").trim_end_matches('/');
        let (host, name) = address.split_once('/').unwrap_or((address, ""));
        let (account, region) = (&self.site.account, &self.site.region);
        let own = format!("{account}.dkr.ecr.{region}.{}", partition(region).dns_suffix);
        if host != own {
            if registry.image.is_some() {
                let cause =
                    format!("`up` pushes images to the registry of the site's own account and region only: {own}");
                let is_endpoint = self.site.runtime == Runtime::Sagemaker;
                let fix = if is_endpoint { "write that address and `/textnlp`" } else { PUSH_IT };
                self.problem("url", cause, fix);
            }
            return;
        }
        if name.is_empty() {
            let fix = format!("write `registry.url: {host}/textnlp`");
            return self.problem("url", "it names no repository", fix);
        }
        if !is_repository(name) {
            let cause = format!("`{name}` is no name of a repository of ECR");
            let fix = format!(
                "write 2 to 256 lower-case letters and digits, with single `.`, `_`, `-` or `/` between them and without a tag: \
                 `registry.url: {host}/textnlp`"
            );
            return self.problem("url", cause, fix);
        }
        let mut images = Vec::new();
        if let Some(image) = &registry.image {
            if self.component.existing.is_some() {
                return self.problem("existing", "`up` does not push to an existing repository", PUSH_IT);
            }
            images.push(tag_and_digest(image));
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
            "images": images,
        });
        let existing = self.component.existing.clone();
        let ownership = existing.map_or(Ownership::Ours, Ownership::External);
        self.owned_part("repository", "aws.repository", &repository, ownership);
    }
}
