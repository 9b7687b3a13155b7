//! The bucket of your own models, and the key that the data of a protected site is encrypted with.

use serde_json::{Value, json};
use textnlp_provider::component::ModelStore;
use textnlp_provider::{CloudId, Ownership};

use super::{Lowering, MODELS, output};
use crate::names;

/// The longest name of a bucket.
const MOST_OF_BUCKET: usize = 63;
/// The longest name of a ring.
const MOST_OF_RING: usize = 63;
/// Days until a replaced version of a model is removed: an operator can undo an upload for so long.
const OLD_VERSIONS_DAYS: u32 = 30;
/// Days until an incomplete upload is removed.
const UPLOADS_DAYS: u32 = 7;
/// Days for which deleted objects can be restored: the default of Cloud Storage, stated because an organization may have another.
const SOFT_DELETE_DAYS: u32 = 7;
/// Days between two rotations of the key.
const ROTATION_DAYS: u32 = 90;

impl Lowering<'_> {
    pub(super) fn models(&mut self, store: &ModelStore) {
        if store.replica.is_some() {
            let cause = "copies of models in another region of Google Cloud are not supported yet";
            return self.problem("replicate_to", cause, "remove `storage.replicate_to`");
        }
        let (key, access) = self.site_key(store);
        let existing = self.component.existing.as_ref().map(|bucket| {
            let name = bucket.as_str().trim_start_matches("gs://").trim_start_matches("projects/_/buckets/");
            name.to_owned()
        });
        let name = existing.clone().unwrap_or_else(|| names::global(self.site, MODELS, MOST_OF_BUCKET));
        let mut lifecycle = Vec::new();
        if let Some(days) = store.archive_after_days {
            lifecycle.push(json!({ "action": "SetStorageClass", "class": "ARCHIVE", "age_days": days }));
        }
        lifecycle.push(json!({ "action": "Delete", "noncurrent_days": OLD_VERSIONS_DAYS }));
        lifecycle.push(json!({ "action": "AbortIncompleteMultipartUpload", "age_days": UPLOADS_DAYS }));
        let bucket = json!({
            "name": name,
            "location": self.site.region,
            "storage_class": "STANDARD",
            "access": "private",
            "versioned": true,
            "soft_delete_days": SOFT_DELETE_DAYS,
            "lifecycle": lifecycle,
            "key": key,
        });
        let external = existing.and_then(|name| CloudId::new(format!("projects/_/buckets/{name}")).ok());
        let ownership = external.map_or(Ownership::Ours, Ownership::External);
        self.owned_part("bucket", "gcp.bucket", bucket, ownership);
        self.after(access);
    }

    /// The key of the site: an existing one, or one of its own where data is protected.
    fn site_key(&mut self, store: &ModelStore) -> (Value, Option<textnlp_provider::ResourceId>) {
        if store.key.is_some() && !self.site.protect_data {
            let fix = "set `data: protected`, or remove `storage.existing_key`";
            self.problem("existing_key", "data that is not protected is encrypted with Google's keys", fix);
            return (Value::Null, None);
        }
        if !self.site.protect_data {
            return (Value::Null, None);
        }
        let name = names::of(self.site, "data", MOST_OF_RING);
        let mut key = json!({ "name": "data", "rotation_days": ROTATION_DAYS });
        match &store.key {
            Some(existing) => {
                self.owned_part("key", "gcp.key", key, Ownership::External(existing.clone()));
            }
            None => {
                let ring = self.part("key-ring", "gcp.key-ring", self.of_region(json!({ "name": name })));
                key["ring"] = ring.map_or(Value::Null, |ring| output(&ring, "id"));
                self.part("key", "gcp.key", key);
            }
        }
        self.data_key("agent:storage")
    }
}
