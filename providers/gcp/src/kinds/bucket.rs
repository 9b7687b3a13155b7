//! Buckets of Cloud Storage: <https://cloud.google.com/storage/docs/reference/rpc/google.storage.v2#bucket>.

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_cloud::ObservedObject;
use textnlp_cloud::document::{get, last, set};
use textnlp_provider::{DataClass, Declare, Identity, Kind, Outputs, Pricing, Result, Spec};

use super::{create, delete, put, read};
use crate::api::Api;
use crate::declare::{NAME, Terraform, by_name};
use crate::names::PREFIX;
use crate::row::{Field, Labelling, Marks, New, Rest, RestKind, Table};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The seconds of a day.
const DAY: i64 = 86_400;
/// Why a bucket is not moved, and what to do.
const MOVED: &str = "a bucket stays where it was created: relocate it with `gcloud storage buckets relocate`, which needs Storage Intelligence, and with `data: protected` your own key in `--destination-kms-key-name`; or copy its objects to another one";
/// The replication of a bucket in two regions that ends within 15 minutes.
pub(crate) const TURBO: &str = "ASYNC_TURBO";

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        data: DataClass::Precious,
        // Objects are deleted one by one.
        deadline: MINUTE.saturating_mul(60),
        pricing: Pricing::BySpec,
        permissions: &[
            create("storage.buckets.create"),
            delete("storage.buckets.delete"),
            read("storage.buckets.get"),
            read("storage.buckets.list"),
            put("storage.buckets.update"),
            delete("storage.objects.list"),
            delete("storage.objects.delete"),
        ],
        terraform: &[("google_storage_bucket", "id")],
        ..kind("gcp.bucket", "a bucket of objects", Identity::Named)
    },
    service: "storage",
    resource: &Rest::<Bucket>::kind(),
    refused: &[("location", MOVED), ("regions", MOVED)],
}];

/// A bucket. Outputs: `id`, `name`, `url`.
struct Bucket;

#[async_trait]
impl RestKind for Bucket {
    const TABLE: &'static Table = &Table {
        service: Service::Storage,
        path: "projects/_/buckets/{name}",
        collection: "projects/_/buckets",
        fields: &[
            Field::code("location", "/location", upper, |one| lower(&one["location"])),
            Field::code("regions", "/customPlacementConfig", placement, placed),
            Field::plain("storage_class", "/storageClass").patched(),
            Field::code("access", "/iamConfig", access, accessible).patched(),
            Field::code(
                "versioned",
                "/versioning",
                |on| json!({ "enabled": on }),
                |one| json!(one["versioning"]["enabled"] == true),
            )
            .patched(),
            // A bucket without a policy gets one of seven days (floci-io/floci-gcp#182).
            Field::code("soft_delete_days", "/softDeletePolicy", soft_delete, soft_deleted).patched(),
            Field::code("lifecycle", "/lifecycle", rules, lifecycle).patched(),
            Field::code("key", "/encryption", encryption, |one| encrypted(&one["encryption"])).patched(),
            Field::code("rpo", "/rpo", Value::clone, replication).patched(),
        ],
        in_place: &["storage_class", "access", "versioned", "soft_delete_days", "lifecycle", "key", "rpo"],
        marks: Marks::Labels("/labels", Labelling::Patch),
        terraform: Terraform {
            kind: "google_storage_bucket",
            named: &[("name", "/name")],
            moved: &[
                ("/iamConfig/uniformBucketLevelAccess/enabled", "/uniform_bucket_level_access"),
                ("/iamConfig/publicAccessPrevention", "/public_access_prevention"),
                ("/encryption/defaultKmsKey", "/encryption/default_kms_key_name"),
                ("/lifecycle/rule", "/lifecycle_rule"),
                ("/softDeletePolicy/retentionDuration", ""),
            ],
            import: by_name,
            outputs: &[NAME, ("url", "url")],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        if let Some(days) = request.object.spec.get("soft_delete_days").and_then(Value::as_i64) {
            set(document, "/softDeletePolicy/retentionDurationSeconds", json!(days.saturating_mul(DAY)));
        }
        let rules = document["lifecycle"]["rule"].as_array_mut().into_iter().flatten();
        for condition in rules.filter_map(|rule| rule["condition"].as_object_mut()) {
            if let Some(days) = condition.shift_remove("ageDays") {
                condition.insert("age".to_owned(), days);
            }
        }
        Ok(())
    }

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let found = api.buckets().await?.get(id).await;
        api.or_nothing(Service::Storage, found).await
    }

    async fn fetch_all(api: &Api) -> Result<Vec<(String, Value)>> {
        let all = api.buckets().await?.list(PREFIX).await;
        let all = api.or_nothing(Service::Storage, all).await?;
        let named = |bucket: Value| {
            let name = bucket["bucketId"].as_str().or_else(|| bucket["name"].as_str().map(last))?.to_owned();
            Some((format!("projects/_/buckets/{name}"), bucket))
        };
        Ok(all.into_iter().filter_map(named).collect())
    }

    fn outputs(id: &str, _document: &Value, outputs: &mut Outputs) {
        outputs.insert("url".to_owned(), json!(format!("gs://{}", last(id))));
    }

    async fn send(api: &Api, new: New) -> Result<Option<String>> {
        api.buckets().await?.create(&new.name, new.document).await.map(|()| None)
    }

    /// Deletes a page of objects, and an empty bucket itself. The engine has the consent for data.
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        api.buckets().await?.end(&seen.id).await.map(|()| None)
    }
}

fn upper(name: &Value) -> Value {
    name.as_str().map_or(Value::Null, |name| name.to_ascii_uppercase().into())
}

fn lower(name: &Value) -> Value {
    name.as_str().map_or(Value::Null, |name| name.to_ascii_lowercase().into())
}

/// The two regions of a bucket.
fn placement(regions: &Value) -> Value {
    let regions: Vec<Value> = regions.as_array().into_iter().flatten().map(upper).collect();
    if regions.is_empty() { Value::Null } else { json!({ "dataLocations": regions }) }
}

/// The same as read, in the order of their names, or null.
fn placed(document: &Value) -> Value {
    let regions = get(document, "/customPlacementConfig/dataLocations").and_then(Value::as_array);
    let mut regions: Vec<String> =
        regions.into_iter().flatten().filter_map(Value::as_str).map(str::to_ascii_lowercase).collect();
    regions.sort();
    if regions.is_empty() { Value::Null } else { json!(regions) }
}

/// A bucket in one region has none, and the default of one in two is `DEFAULT`.
fn replication(document: &Value) -> Value {
    if document["rpo"] == TURBO { json!(TURBO) } else { Value::Null }
}

/// Roles alone decide about access, and no role opens it to the public.
fn access(wanted: &Value) -> Value {
    let is_private = *wanted == "private";
    json!({
        "uniformBucketLevelAccess": { "enabled": is_private },
        "publicAccessPrevention": if is_private { "enforced" } else { "inherited" },
    })
}

fn accessible(document: &Value) -> Value {
    let config = &document["iamConfig"];
    let is_private =
        config["uniformBucketLevelAccess"]["enabled"] == true && config["publicAccessPrevention"] == "enforced";
    json!(if is_private { "private" } else { "by object" })
}

fn soft_delete(days: &Value) -> Value {
    json!({ "retentionDuration": format!("{}s", days.as_i64().unwrap_or_default().saturating_mul(DAY)) })
}

fn soft_deleted(document: &Value) -> Value {
    let text = get(document, "/softDeletePolicy/retentionDuration").and_then(Value::as_str);
    let seconds = text.and_then(|text| text.trim_end_matches('s').parse::<i64>().ok()).unwrap_or_default();
    json!(seconds / DAY)
}

/// The conditions of a rule: their names in a spec and in a document.
const CONDITIONS: [(&str, &str); 2] = [("age_days", "ageDays"), ("noncurrent_days", "daysSinceNoncurrentTime")];

fn rules(wanted: &Value) -> Value {
    let rule = |rule: &Value| {
        let mut action = json!({ "type": rule["action"] });
        if rule["class"].is_string() {
            action["storageClass"] = rule["class"].clone();
        }
        let mut condition = json!({});
        for (name, member) in CONDITIONS {
            if rule[name].is_i64() {
                condition[member] = rule[name].clone();
            }
        }
        json!({ "action": action, "condition": condition })
    };
    json!({ "rule": wanted.as_array().into_iter().flatten().map(rule).collect::<Vec<_>>() })
}

fn lifecycle(document: &Value) -> Value {
    let rules = document["lifecycle"]["rule"].as_array().into_iter().flatten();
    let rule = |rule: &Value| {
        let mut read = json!({ "action": rule["action"]["type"] });
        if let Some(class) = rule["action"]["storageClass"].as_str().filter(|class| !class.is_empty()) {
            read["class"] = json!(class);
        }
        for (name, member) in CONDITIONS {
            if let Some(days) = get(&rule["condition"], &format!("/{member}")) {
                read[name] = days.clone();
            }
        }
        read
    };
    rules.map(rule).collect()
}

fn encryption(key: &Value) -> Value {
    key.as_str().map_or(Value::Null, |key| json!({ "defaultKmsKey": key }))
}

fn encrypted(config: &Value) -> Value {
    config["defaultKmsKey"].as_str().filter(|key| !key.is_empty()).map_or(Value::Null, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_they_are_written() {
        let wanted = json!([
            { "action": "SetStorageClass", "class": "ARCHIVE", "age_days": 90 },
            { "action": "Delete", "noncurrent_days": 30 },
            { "action": "AbortIncompleteMultipartUpload", "age_days": 7 },
        ]);
        assert_eq!(lifecycle(&json!({ "lifecycle": rules(&wanted) })), wanted);
        for days in [0, 7] {
            assert_eq!(soft_deleted(&json!({ "softDeletePolicy": soft_delete(&json!(days)) })), json!(days));
        }
        assert_eq!(accessible(&json!({ "iamConfig": access(&json!("private")) })), json!("private"));
        assert_eq!(accessible(&json!({})), json!("by object"));
        assert_eq!(encrypted(&encryption(&json!("projects/p/k"))), json!("projects/p/k"));
        assert_eq!(encrypted(&Value::Null), Value::Null);
        let regions = json!(["europe-west1", "europe-west4"]);
        assert_eq!(placed(&json!({ "customPlacementConfig": placement(&regions) })), regions);
        let turned = json!({ "customPlacementConfig": { "dataLocations": ["EUROPE-WEST4", "EUROPE-WEST1"] } });
        assert_eq!((placed(&turned), placement(&Value::Null)), (regions, Value::Null));
        assert_eq!([replication(&json!({ "rpo": TURBO })), replication(&json!({}))], [json!(TURBO), Value::Null]);
    }
}
