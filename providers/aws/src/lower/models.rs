//! The bucket of your own models, and the key that a site's data is encrypted with.

use serde_json::{Value, json};
use textnlp_provider::component::ModelStore;
use textnlp_provider::{CloudId, Ownership, ResourceId};
use textnlp_token::partition;

use super::{Lowering, output};
use crate::names;

/// The component that the key of a site belongs to.
const MODELS: &str = "models";
/// The longest name of a bucket.
const MOST_OF_BUCKET: usize = 63;
/// The longest name of an alias, without `alias/`.
const MOST_OF_ALIAS: usize = 250;
/// Days until a replaced version of a model is removed: an operator can undo an upload for so long.
const OLD_VERSIONS_DAYS: u32 = 30;
/// Days until an incomplete upload is removed.
const UPLOADS_DAYS: u32 = 7;
/// Days between two rotations of the key: KMS's own period.
const ROTATION_DAYS: u32 = 365;

impl Lowering<'_> {
    pub(super) fn models(&mut self, store: &ModelStore) {
        if self.site.account.is_empty() {
            let cause = "the names of buckets are unique in all of AWS, and the account in them is not known";
            return self.problem("account", cause, "set `sites[].account` to its twelve digits");
        }
        let description = format!("data of {} at {}", self.site.environment, self.site.name);
        let ownership = store.key.clone().map_or(Ownership::Ours, Ownership::External);
        self.key("data", &description, ownership);
        let existing = self.component.existing.clone();
        let name = existing.as_ref().map_or_else(
            || names::global(self.site, MODELS, MOST_OF_BUCKET),
            |bucket| bucket.as_str().trim_start_matches("arn:aws:s3:::").to_owned(),
        );
        let arn = format!("arn:{}:s3:::{name}", partition(&self.site.region).name);
        // The files of a model are read when a pod starts, at times that are not known before: S3 chooses the class by use, without a fee for
        // reading. An operator who knows better says so.
        let (days, class) = match store.archive_after_days {
            Some(days) => (days, "GLACIER_IR"),
            None => (0, "INTELLIGENT_TIERING"),
        };
        let bucket = json!({
            "name": name,
            "owner_enforced": true,
            "public_access_blocked": true,
            "encryption": { "key": self.data_key(), "bucket_key": true },
            "versioned": true,
            "policy": {
                "Version": "2012-10-17",
                "Statement": [{
                    "Sid": "OnlyTls",
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "s3:*",
                    "Resource": [arn, format!("{arn}/*")],
                    "Condition": { "Bool": { "aws:SecureTransport": "false" } },
                }],
            },
            "lifecycle": [{
                "id": "models",
                "enabled": true,
                "prefix": "",
                "transitions": [{ "days": days, "class": class }],
                "expire_days": null,
                "old_versions_expire_days": OLD_VERSIONS_DAYS,
                "abort_uploads_days": UPLOADS_DAYS,
            }],
            "replication": null,
        });
        let ownership = existing.map_or(Ownership::Ours, |_| bucket_id(&name));
        self.owned_part("bucket", "aws.bucket", &bucket, ownership);
    }

    /// The key of a component: `name` is in its alias.
    pub(super) fn key(&mut self, name: &str, description: &str, ownership: Ownership) -> Option<ResourceId> {
        let alias = format!("alias/{}", names::of(self.site, name, MOST_OF_ALIAS));
        let account = format!("arn:{}:iam::{}:root", partition(&self.site.region).name, self.site.account);
        let key = json!({
            "enabled": true,
            "description": description,
            // IAM decides who of the account may use it; no other account may.
            "policy": {
                "Version": "2012-10-17",
                "Statement": [{
                    "Sid": "Account",
                    "Effect": "Allow",
                    "Principal": { "AWS": account },
                    "Action": "kms:*",
                    "Resource": "*",
                }],
            },
            "rotation_days": ROTATION_DAYS,
            "aliases": [alias],
        });
        self.owned_part("key", "aws.key", &key, ownership)
    }

    /// The ARN of the key that data of the site is encrypted with: one key, because each costs the same whatever it encrypts.
    pub(super) fn data_key(&self) -> Value {
        let id = ResourceId::new(format!("{}/{MODELS}/key", self.site.name)).expect("the parts are labels");
        output(&id, "arn")
    }

    /// Adds the resource `SITE/COMPONENT/PART`, which may be an existing object.
    pub(super) fn owned_part(
        &mut self,
        part: &str,
        kind: &'static str,
        spec: &Value,
        ownership: Ownership,
    ) -> Option<ResourceId> {
        let id = self.part(part, kind, spec)?;
        if let Some(wanted) = self.wanted.last_mut() {
            wanted.ownership = ownership;
        }
        Some(id)
    }
}

fn bucket_id(name: &str) -> Ownership {
    CloudId::new(name).map_or(Ownership::Ours, Ownership::External)
}
