//! The bucket of your own models, the role of pods on it, and the key that the data of a protected site is encrypted with.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use textnlp_provider::cluster::{BucketIdentity, MODELS_ACCOUNT};
use textnlp_provider::component::ModelStore;
use textnlp_provider::{CloudId, Component, ComponentName, Ownership, ResourceId, Site};

use super::{Lowering, MODELS, MOST_OF_RING, ROTATION_DAYS, SERVER, output, runs_containers};
use crate::kinds::bucket::TURBO;
use crate::names;

/// The longest name of a bucket.
const MOST_OF_BUCKET: usize = 63;
/// The start of the id of a bucket.
const BUCKETS: &str = "projects/_/buckets/";
/// Days until a replaced version of a model is removed: an operator can undo an upload for so long.
const OLD_VERSIONS_DAYS: u32 = 30;
/// Days until an incomplete upload is removed.
const UPLOADS_DAYS: u32 = 7;
/// Days for which deleted objects can be restored: the default of Cloud Storage, stated because an organization may have another.
const SOFT_DELETE_DAYS: u32 = 7;
/// The role that lists and reads objects.
const READER_ROLE: &str = "roles/storage.objectViewer";
/// The part that gives pods this role.
const READER: &str = "reader";
/// The scheme of buckets.
const SCHEME: &str = "gs";
/// The component of a site's cluster.
const CLUSTER: &str = "cluster";
/// The metadata server of each node, which gives pods credentials of their service account: its address in clusters, and with
/// Dataplane V2 (<https://cloud.google.com/kubernetes-engine/docs/how-to/network-policy#network-policy-and-workload-identity>).
const METADATA: [([u8; 4], u16); 2] = [([169, 254, 169, 252], 988), ([169, 254, 169, 254], 80)];
/// The service agent of Cloud Storage, which uses keys.
const AGENT: &str = "agent:storage";

/// A location of buckets in two regions.
struct Placement {
    /// The location of the bucket.
    location: &'static str,
    /// Where Cloud KMS has its key; `None` where that is not verified, so that these regions are refused.
    key: Option<&'static str>,
    /// Whether the location alone states both regions.
    is_predefined: bool,
    /// The regions, of which a bucket is in two.
    regions: &'static [&'static str],
}

/// The locations, of which the first one with both regions is that of their bucket
/// (<https://cloud.google.com/storage/docs/locations#location-dr>,
/// <https://cloud.google.com/storage/docs/encryption/customer-managed-keys>).
const PLACEMENTS: &[Placement] = &[
    Placement {
        location: "asia1",
        key: Some("asia1"),
        is_predefined: true,
        regions: &["asia-northeast1", "asia-northeast2"],
    },
    Placement { location: "eur4", key: Some("eur4"), is_predefined: true, regions: &["europe-north1", "europe-west4"] },
    Placement { location: "nam4", key: Some("nam4"), is_predefined: true, regions: &["us-central1", "us-east1"] },
    Placement { location: "de", key: None, is_predefined: false, regions: &["europe-west10", "europe-west3"] },
    Placement { location: "it", key: None, is_predefined: false, regions: &["europe-west12", "europe-west8"] },
    Placement {
        location: "asia",
        key: Some("asia"),
        is_predefined: false,
        regions: &["asia-east1", "asia-southeast1"],
    },
    Placement {
        location: "eu",
        key: Some("europe"),
        is_predefined: false,
        regions: &[
            "europe-central2",
            "europe-north1",
            "europe-southwest1",
            "europe-west1",
            "europe-west10",
            "europe-west12",
            "europe-west3",
            "europe-west4",
            "europe-west8",
            "europe-west9",
        ],
    },
    Placement {
        location: "us",
        key: Some("us"),
        is_predefined: false,
        regions: &[
            "us-central1",
            "us-east1",
            "us-east4",
            "us-east5",
            "us-south1",
            "us-west1",
            "us-west2",
            "us-west3",
            "us-west4",
        ],
    },
];

impl Lowering<'_> {
    pub(super) fn models(&mut self, store: &ModelStore) {
        self.site_key(store);
        let mut bucket = json!({
            "location": self.site.region,
            "regions": null,
            "storage_class": "STANDARD",
            "access": "private",
            "versioned": true,
            "soft_delete_days": SOFT_DELETE_DAYS,
            "rpo": null,
        });
        let (key, access) = match &store.replica {
            None => self.data_key(AGENT),
            Some(replica) => {
                let Some((placement, key_location)) = self.two_regions(store, &replica.region) else { return };
                bucket["location"] = json!(placement.location);
                bucket["rpo"] = json!(TURBO);
                if !placement.is_predefined {
                    let mut regions = [self.site.region.as_str(), replica.region.as_str()];
                    regions.sort_unstable();
                    bucket["regions"] = json!(regions);
                }
                self.key_in(key_location, "replica", MODELS, AGENT)
            }
        };
        let existing = self.component.existing.as_ref().map(CloudId::as_str);
        let name = models_bucket(self.site, existing);
        if existing.is_some() && !is_bucket(&name) {
            let cause = format!("`{name}` is not the name of a bucket");
            return self.problem("existing", cause, "write its name alone, such as `storage.existing: my-models`");
        }
        if existing.is_some() && store.archive_after_days.is_some() {
            let cause = "an existing bucket is never changed, and its lifecycle is one of its settings";
            self.problem("archive_after", cause, "remove it, and add a lifecycle rule to that bucket yourself");
        }
        let mut lifecycle = Vec::new();
        if let Some(days) = store.archive_after_days {
            lifecycle.push(json!({ "action": "SetStorageClass", "class": "ARCHIVE", "age_days": days }));
        }
        lifecycle.push(json!({ "action": "Delete", "noncurrent_days": OLD_VERSIONS_DAYS }));
        lifecycle.push(json!({ "action": "AbortIncompleteMultipartUpload", "age_days": UPLOADS_DAYS }));
        for (field, value) in [("name", json!(name)), ("lifecycle", json!(lifecycle)), ("key", key)] {
            bucket[field] = value;
        }
        let external = existing.and_then(|_| CloudId::new(format!("{BUCKETS}{name}")).ok());
        let ownership = external.map_or(Ownership::Ours, Ownership::External);
        let made = self.owned_part("bucket", "gcp.bucket", bucket, ownership);
        self.after(access);
        if let Some(made) = made {
            self.reader(store, &made, &name);
        }
    }

    /// The role of the servers on the site's bucket, if models come from there: of pods, or of containers that Google Cloud runs.
    fn reader(&mut self, store: &ModelStore, bucket: &ResourceId, own: &str) {
        let cluster = self.site.cluster.as_deref().filter(|site| !site.existing);
        let is_run = runs_containers(self.site);
        let (member, who) = match cluster {
            Some(site) => (json!(format!("pods:{}/{MODELS_ACCOUNT}", site.namespace)), "pods"),
            None if is_run => (self.output_of(SERVER, "account", "member"), "servers"),
            None => return,
        };
        let mut is_read = false;
        for model in &store.models {
            let named = match model.source.strip_prefix("gs://") {
                Some(rest) => rest.split_once('/').map_or(rest, |(bucket, _)| bucket),
                None if model.source.starts_with("bucket:") => own,
                None => continue,
            };
            is_read = true;
            if named != own {
                let cause =
                    format!("model `{}` is in the bucket {named}, on which the site gives {who} no role", model.name);
                let fix = format!(
                    "push it to the bucket of the site: `textnlp-deploy model push SOURCE gs://{own}/`; or name that bucket in `storage.existing`"
                );
                self.problem("models", cause, fix);
            }
        }
        if is_read && self.problems.is_empty() {
            // `preflight` reads an existing bucket before its outputs are known.
            let target = match &self.component.existing {
                Some(_) => json!(format!("{BUCKETS}{own}")),
                None => output(bucket, "id"),
            };
            let spec = json!({ "target": target, "role": READER_ROLE, "member": member });
            self.part(READER, "gcp.bucket-binding", spec);
            self.after(Some(bucket.clone()));
            // The first cluster creates the pool of identities.
            let cluster = CLUSTER.parse::<ComponentName>().map(|cluster| ResourceId::of(&self.site.name, &cluster));
            self.after(cluster.ok().filter(|_| !is_run));
        }
    }

    /// Where a bucket in this region and that of the site is, and the location of its key.
    fn two_regions(&mut self, store: &ModelStore, region: &str) -> Option<(&'static Placement, &'static str)> {
        if self.component.existing.is_some() {
            let cause = "an existing bucket is never changed, and stays where it is";
            let fix = "remove it, and name a bucket that is in two regions in `storage.existing`";
            self.problem("replicate_to", cause, fix);
            return None;
        }
        let own = self.site.region.as_str();
        let Some((placement, key_location)) = placement(own, region) else {
            let cause = format!("a bucket in {own} and `{region}` is not supported");
            let all = PLACEMENTS.iter().flat_map(|one| one.regions).copied();
            let partners: BTreeSet<&str> = all.filter(|other| placement(own, other).is_some()).collect();
            let fix = if partners.is_empty() {
                format!("remove it: no second region is supported for {own}")
            } else {
                let partners = partners.into_iter().collect::<Vec<_>>().join(", ");
                format!("write one of these regions: {partners}; or remove it")
            };
            self.problem("replicate_to", cause, fix);
            return None;
        };
        if store.key.is_some() {
            let cause = format!(
                "a bucket in two regions has a key of the location `{key_location}`, and an existing key is one of {own}"
            );
            self.problem("replicate_to", cause, "remove `storage.replicate_to`, or `storage.existing_key`");
            return None;
        }
        Some((placement, key_location))
    }

    /// The key of the site: an existing one, or one of its own where data is protected.
    fn site_key(&mut self, store: &ModelStore) {
        if store.key.is_some() && !self.site.protect_data {
            let fix = "set `data: protected`, or remove `storage.existing_key`";
            self.problem("existing_key", "data that is not protected is encrypted with Google's keys", fix);
        }
        if !self.site.protect_data {
            return;
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
    }
}

/// Where a bucket in two regions is, and the location of its key.
fn placement(one: &str, other: &str) -> Option<(&'static Placement, &'static str)> {
    let has_both = |row: &&Placement| row.regions.contains(&one) && row.regions.contains(&other);
    let row = PLACEMENTS.iter().find(has_both).filter(|_| one != other)?;
    Some((row, row.key?))
}

/// The name of a site's bucket: that of an existing one, which may be given by its address or its id.
pub fn models_bucket(site: &Site, existing: Option<&str>) -> String {
    let name = |bucket: &str| bucket.trim_start_matches("gs://").trim_start_matches(BUCKETS).to_owned();
    existing.map_or_else(|| names::global(site, MODELS, MOST_OF_BUCKET), name)
}

/// Whether a bucket can have a name: <https://cloud.google.com/storage/docs/buckets#naming>.
fn is_bucket(name: &str) -> bool {
    let is_right = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    (3..=222).contains(&name.len()) && name.chars().all(is_right)
}

/// How pods of a cluster that GKE runs sign in to buckets: by the metadata server of their node.
pub(crate) fn bucket_identity(component: &Component, site: &Site) -> BucketIdentity {
    // Only the model store has the existing bucket, and only its models have sources.
    let own = models_bucket(site, component.existing.as_ref().map(CloudId::as_str));
    BucketIdentity {
        scheme: SCHEME.to_owned(),
        own: format!("{SCHEME}://{own}/"),
        variables: BTreeMap::new(),
        token: None,
        services: METADATA.map(Into::into).into(),
        part: READER.to_owned(),
        skip_annotation: None,
    }
}
