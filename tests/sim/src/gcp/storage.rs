//! Cloud Storage over gRPC: buckets, lists of their objects, and their policies. The objects themselves are in `objects`.

use serde_json::{Value, json};

use super::cloud::{Cloud, put};
use super::problem::Problem;
use super::wire::{Field, Type, many, one};
use super::{errors, iam};
use crate::clock::later;
use crate::objects::Object;
use crate::{Behaviour, Source};

use Type::{Bool, Bytes, Fixed32, Int, Map, Message, Seconds, Text, Time};

/// A method: its path, its permission, the messages, and what answers it.
pub(super) struct Method {
    pub(super) path: &'static str,
    pub(super) permission: &'static str,
    pub(super) request: &'static [Field],
    pub(super) response: &'static [Field],
    pub(super) handler: fn(&mut Cloud, &Value) -> Result<Value, Problem>,
}

const MASK: Type = Message(&[many(1, "paths", Text)]);
const ENFORCEMENT: Type = Message(&[one(3, "restriction_mode", Text), one(2, "effective_time", Time)]);
const DATE: Type = Message(&[one(1, "year", Int), one(2, "month", Int), one(3, "day", Int)]);
const TEAM: Type = Message(&[one(1, "project_number", Text), one(2, "team", Text)]);
const ACCESS: &[Field] = &[
    one(1, "role", Text),
    one(2, "id", Text),
    one(3, "entity", Text),
    one(4, "entity_id", Text),
    one(5, "email", Text),
    one(6, "domain", Text),
    one(7, "project_team", TEAM),
    one(8, "etag", Text),
    one(9, "entity_alt", Text),
];
const RULE: &[Field] = &[
    one(1, "action", Message(&[one(1, "type", Text), one(2, "storage_class", Text)])),
    one(
        2,
        "condition",
        Message(&[
            one(1, "age_days", Int),
            one(2, "created_before", DATE),
            one(3, "is_live", Bool),
            one(4, "num_newer_versions", Int),
            many(5, "matches_storage_class", Text),
            one(7, "days_since_custom_time", Int),
            one(8, "custom_time_before", DATE),
            one(9, "days_since_noncurrent_time", Int),
            one(10, "noncurrent_time_before", DATE),
            many(11, "matches_prefix", Text),
            many(12, "matches_suffix", Text),
        ]),
    ),
];
/// `google.storage.v2.Bucket`.
pub(super) const BUCKET: &[Field] = &[
    one(1, "name", Text),
    one(2, "bucket_id", Text),
    one(29, "etag", Text),
    one(3, "project", Text),
    one(4, "metageneration", Int),
    one(5, "location", Text),
    one(6, "location_type", Text),
    one(7, "storage_class", Text),
    one(27, "rpo", Text),
    many(8, "acl", Message(ACCESS)),
    many(9, "default_object_acl", Message(ACCESS)),
    one(10, "lifecycle", Message(&[many(1, "rule", Message(RULE))])),
    one(11, "create_time", Time),
    many(
        12,
        "cors",
        Message(&[
            many(1, "origin", Text),
            many(2, "method", Text),
            many(3, "response_header", Text),
            one(4, "max_age_seconds", Int),
        ]),
    ),
    one(13, "update_time", Time),
    one(14, "default_event_based_hold", Bool),
    one(15, "labels", Map),
    one(16, "website", Message(&[one(1, "main_page_suffix", Text), one(2, "not_found_page", Text)])),
    one(17, "versioning", Message(&[one(1, "enabled", Bool)])),
    one(18, "logging", Message(&[one(1, "log_bucket", Text), one(2, "log_object_prefix", Text)])),
    one(19, "owner", Message(&[one(1, "entity", Text), one(2, "entity_id", Text)])),
    one(
        20,
        "encryption",
        Message(&[
            one(1, "default_kms_key", Text),
            one(2, "google_managed_encryption_enforcement_config", ENFORCEMENT),
            one(3, "customer_managed_encryption_enforcement_config", ENFORCEMENT),
            one(4, "customer_supplied_encryption_enforcement_config", ENFORCEMENT),
        ]),
    ),
    one(21, "billing", Message(&[one(1, "requester_pays", Bool)])),
    one(
        22,
        "retention_policy",
        Message(&[one(1, "effective_time", Time), one(2, "is_locked", Bool), one(4, "retention_duration", Seconds)]),
    ),
    one(
        23,
        "iam_config",
        Message(&[
            one(1, "uniform_bucket_level_access", Message(&[one(1, "enabled", Bool), one(2, "lock_time", Time)])),
            one(3, "public_access_prevention", Text),
        ]),
    ),
    one(25, "satisfies_pzs", Bool),
    one(26, "custom_placement_config", Message(&[many(1, "data_locations", Text)])),
    one(
        28,
        "autoclass",
        Message(&[
            one(1, "enabled", Bool),
            one(2, "toggle_time", Time),
            one(3, "terminal_storage_class", Text),
            one(4, "terminal_storage_class_update_time", Time),
        ]),
    ),
    one(32, "hierarchical_namespace", Message(&[one(1, "enabled", Bool)])),
    one(31, "soft_delete_policy", Message(&[one(1, "retention_duration", Seconds), one(2, "effective_time", Time)])),
    one(33, "object_retention", Message(&[one(1, "enabled", Bool)])),
];
/// `google.storage.v2.Object`: the fields that the simulator fills.
pub(super) const OBJECT: &[Field] = &[
    one(1, "name", Text),
    one(2, "bucket", Text),
    one(27, "etag", Text),
    one(3, "generation", Int),
    one(4, "metageneration", Int),
    one(5, "storage_class", Text),
    one(6, "size", Int),
    one(13, "content_type", Text),
    one(14, "create_time", Time),
    one(16, "checksums", Message(&[one(1, "crc32c", Fixed32), one(2, "md5_hash", Bytes)])),
    one(17, "update_time", Time),
];
/// `google.iam.v1.Policy`.
pub(super) const POLICY: &[Field] = &[
    one(1, "version", Int),
    many(
        4,
        "bindings",
        Message(&[
            one(1, "role", Text),
            many(2, "members", Text),
            one(
                3,
                "condition",
                Message(&[
                    one(1, "expression", Text),
                    one(2, "title", Text),
                    one(3, "description", Text),
                    one(4, "location", Text),
                ]),
            ),
        ]),
    ),
    one(3, "etag", Bytes),
];
const PARAMETERS: Type = Message(&[
    one(1, "encryption_algorithm", Text),
    one(4, "encryption_key_bytes", Bytes),
    one(5, "encryption_key_sha256_bytes", Bytes),
]);

/// The messages as JSON, for the test that holds them against Google's descriptors: numbers by name, with inner messages.
pub(super) fn messages() -> Value {
    fn shown(fields: &[Field]) -> Value {
        let one = |Field(number, name, kind, _): &Field| {
            let inner = if let Message(fields) = kind { shown(fields) } else { Value::Null };
            ((*name).to_owned(), json!([number, inner]))
        };
        fields.iter().map(one).collect::<serde_json::Map<_, _>>().into()
    }
    let mut messages = json!({ "Bucket": shown(BUCKET), "Object": shown(OBJECT), "Policy": shown(POLICY) });
    for method in METHODS {
        let name = method.path.rsplit('/').next().unwrap_or_default();
        messages[format!("{name}Request")] = shown(method.request);
        if name.starts_with("List") || name.starts_with("Test") {
            messages[format!("{name}Response")] = shown(method.response);
        }
    }
    messages
}

/// The methods that are simulated.
pub(super) const METHODS: &[Method] = &[
    Method {
        path: "/google.storage.v2.Storage/CreateBucket",
        permission: "storage.buckets.create",
        request: &[
            one(1, "parent", Text),
            one(2, "bucket", Message(BUCKET)),
            one(3, "bucket_id", Text),
            one(6, "predefined_acl", Text),
            one(7, "predefined_default_object_acl", Text),
            one(9, "enable_object_retention", Bool),
        ],
        response: BUCKET,
        handler: create,
    },
    Method {
        path: "/google.storage.v2.Storage/GetBucket",
        permission: "storage.buckets.get",
        request: &[
            one(1, "name", Text),
            one(2, "if_metageneration_match", Int),
            one(3, "if_metageneration_not_match", Int),
            one(5, "read_mask", MASK),
        ],
        response: BUCKET,
        handler: get,
    },
    Method {
        path: "/google.storage.v2.Storage/ListBuckets",
        permission: "storage.buckets.list",
        request: &[
            one(1, "parent", Text),
            one(2, "page_size", Int),
            one(3, "page_token", Text),
            one(4, "prefix", Text),
            one(5, "read_mask", MASK),
            one(9, "return_partial_success", Bool),
        ],
        response: &[many(1, "buckets", Message(BUCKET)), one(2, "next_page_token", Text), many(3, "unreachable", Text)],
        handler: list,
    },
    Method {
        path: "/google.storage.v2.Storage/UpdateBucket",
        permission: "storage.buckets.update",
        request: &[
            one(1, "bucket", Message(BUCKET)),
            one(2, "if_metageneration_match", Int),
            one(3, "if_metageneration_not_match", Int),
            one(8, "predefined_acl", Text),
            one(9, "predefined_default_object_acl", Text),
            one(6, "update_mask", MASK),
        ],
        response: BUCKET,
        handler: update,
    },
    Method {
        path: "/google.storage.v2.Storage/DeleteBucket",
        permission: "storage.buckets.delete",
        request: &[
            one(1, "name", Text),
            one(2, "if_metageneration_match", Int),
            one(3, "if_metageneration_not_match", Int),
        ],
        response: &[],
        handler: delete,
    },
    Method {
        path: "/google.storage.v2.Storage/ListObjects",
        permission: "storage.objects.list",
        request: &[
            one(1, "parent", Text),
            one(2, "page_size", Int),
            one(3, "page_token", Text),
            one(4, "delimiter", Text),
            one(5, "include_trailing_delimiter", Bool),
            one(6, "prefix", Text),
            one(7, "versions", Bool),
            one(8, "read_mask", MASK),
            one(10, "lexicographic_start", Text),
            one(11, "lexicographic_end", Text),
            one(12, "soft_deleted", Bool),
            one(13, "include_folders_as_prefixes", Bool),
            one(14, "match_glob", Text),
            one(15, "filter", Text),
        ],
        response: &[many(1, "objects", Message(OBJECT)), many(2, "prefixes", Text), one(3, "next_page_token", Text)],
        handler: list_objects,
    },
    Method {
        path: "/google.storage.v2.Storage/GetObject",
        permission: "storage.objects.get",
        request: &[
            one(1, "bucket", Text),
            one(2, "object", Text),
            one(3, "generation", Int),
            one(11, "soft_deleted", Bool),
            one(4, "if_generation_match", Int),
            one(5, "if_generation_not_match", Int),
            one(6, "if_metageneration_match", Int),
            one(7, "if_metageneration_not_match", Int),
            one(8, "common_object_request_params", PARAMETERS),
            one(10, "read_mask", MASK),
            one(12, "restore_token", Text),
        ],
        response: OBJECT,
        handler: get_object,
    },
    Method {
        path: "/google.storage.v2.Storage/DeleteObject",
        permission: "storage.objects.delete",
        request: &[
            one(1, "bucket", Text),
            one(2, "object", Text),
            one(4, "generation", Int),
            one(5, "if_generation_match", Int),
            one(6, "if_generation_not_match", Int),
            one(7, "if_metageneration_match", Int),
            one(8, "if_metageneration_not_match", Int),
            one(10, "common_object_request_params", PARAMETERS),
        ],
        response: &[],
        handler: delete_object,
    },
    Method {
        path: "/google.storage.control.v2.StorageControl/GetIamPolicy",
        permission: "storage.buckets.getIamPolicy",
        request: &[one(1, "resource", Text), one(2, "options", Message(&[one(1, "requested_policy_version", Int)]))],
        response: POLICY,
        handler: get_policy,
    },
    Method {
        path: "/google.storage.control.v2.StorageControl/SetIamPolicy",
        permission: "storage.buckets.setIamPolicy",
        request: &[one(1, "resource", Text), one(2, "policy", Message(POLICY)), one(3, "update_mask", MASK)],
        response: POLICY,
        handler: set_policy,
    },
    Method {
        path: "/google.storage.control.v2.StorageControl/TestIamPermissions",
        permission: "",
        request: &[one(1, "resource", Text), many(2, "permissions", Text)],
        response: &[many(1, "permissions", Text)],
        handler: test_permissions,
    },
];

pub(super) const LEDGER: &[Behaviour] = &[
    rule(
        "names of buckets are those of all customers, and a deleted name is refused for a while",
        Source::Report("GoogleCloudPlatform/mlops-with-vertex-ai#26"),
    ),
    rule(
        "a new bucket keeps deleted objects for 7 days unless set; 0 or 7 to 90 days are allowed",
        Source::Report("hashicorp/terraform-provider-google#17127"),
    ),
    rule(
        "a bucket with objects is not deleted",
        Source::Documentation("https://cloud.google.com/storage/docs/deleting-buckets"),
    ),
    rule(
        "names have 3 to 63 lower case letters, digits, _, - and ., and do not start with goog",
        Source::Documentation("https://cloud.google.com/storage/docs/buckets#naming"),
    ),
    rule(
        "an update names its members; each change raises the metageneration",
        Source::Documentation("https://cloud.google.com/storage/docs/metadata#generation-number"),
    ),
    rule(
        "another metageneration than the wanted one is FAILED_PRECONDITION",
        Source::Documentation("https://cloud.google.com/storage/docs/request-preconditions"),
    ),
    rule(
        "a constraint on uniform access refuses a bucket without it",
        Source::Report("terraform-google-modules/terraform-google-gke-gitlab#83"),
    ),
    rule(
        "a custom placement names two regions of ASIA, EU or US, and no pair that has a location of its own",
        Source::Documentation("https://cloud.google.com/storage/docs/locations"),
    ),
    rule(
        "only a bucket in two regions has turbo replication",
        Source::Documentation("https://cloud.google.com/storage/docs/availability-durability"),
    ),
    rule(
        "an update changes neither the location nor the regions of a bucket",
        Source::Documentation("https://cloud.google.com/storage/docs/bucket-relocation/overview"),
    ),
    rule(
        "the key of a bucket is in the location of the bucket: europe for EU",
        Source::Documentation("https://cloud.google.com/storage/docs/encryption/customer-managed-keys"),
    ),
    rule(
        "the location is US and the class STANDARD unless set",
        Source::Documentation("https://cloud.google.com/storage/docs/json_api/v1/buckets"),
    ),
    rule("objects and buckets have the fields of google.storage.v2, policies those of google.iam.v1", Source::Model),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "storage", what, source }
}

pub(super) fn text<'v>(body: &'v Value, pointer: &str) -> &'v str {
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn bad(message: impl Into<String>) -> Problem {
    Problem::new("INVALID_ARGUMENT", message)
}

/// The project that a request is about: its id.
pub(super) fn project_of(cloud: &Cloud, request: &Value) -> String {
    let names = ["/bucket/project", "/parent", "/name", "/bucket", "/bucket/name", "/resource"];
    let names: Vec<&str> = names.iter().map(|pointer| text(request, pointer)).collect();
    for name in names {
        if let Some(bucket) = cloud.get(&format!("storage/{name}")) {
            return project_id(cloud, text(bucket, "/project"));
        }
        if let Some(project) = name.strip_prefix("projects/").filter(|one| !one.contains('/') && *one != "_") {
            return project_id(cloud, project);
        }
    }
    String::new()
}

pub(super) fn project_id(cloud: &Cloud, name: &str) -> String {
    let name = name.trim_start_matches("projects/");
    cloud.project(name).map_or_else(|| name.to_owned(), |project| project.id.clone())
}

fn is_name(name: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.chars().all(is_inner)
        && name.starts_with(is_end)
        && name.ends_with(is_end)
        && !name.starts_with("goog")
        && !name.contains("google")
}

fn check(cloud: &Cloud, project: &str, bucket: &Value) -> Result<(), Problem> {
    errors::check_labels(&bucket["labels"])?;
    if let Some(seconds) = bucket.pointer("/soft_delete_policy/retention_duration").and_then(Value::as_i64)
        && seconds != 0
        && !(604_800..=7_776_000).contains(&seconds)
    {
        return Err(bad("Soft delete policy retention duration must be 0 or between 7 and 90 days."));
    }
    check_location(bucket)?;
    let is_uniform = bucket.pointer("/iam_config/uniform_bucket_level_access/enabled") == Some(&json!(true));
    if !is_uniform && cloud.enforces(project, "storage.uniformBucketLevelAccess") {
        let violated = ("storage.uniformBucketLevelAccess".to_owned(), "Uniform access is required.".to_owned());
        return Err(errors::constraints_violated(project, &[violated]));
    }
    Ok(())
}

/// The regions that a custom placement may name, by location: <https://cloud.google.com/storage/docs/locations>.
const PLACEMENTS: &[(&str, &[&str])] = &[
    ("ASIA", &["ASIA-EAST1", "ASIA-SOUTHEAST1"]),
    (
        "EU",
        &[
            "EUROPE-CENTRAL2",
            "EUROPE-NORTH1",
            "EUROPE-SOUTHWEST1",
            "EUROPE-WEST1",
            "EUROPE-WEST3",
            "EUROPE-WEST4",
            "EUROPE-WEST8",
            "EUROPE-WEST9",
            "EUROPE-WEST10",
            "EUROPE-WEST12",
        ],
    ),
    (
        "US",
        &[
            "US-CENTRAL1",
            "US-EAST1",
            "US-EAST4",
            "US-EAST5",
            "US-SOUTH1",
            "US-WEST1",
            "US-WEST2",
            "US-WEST3",
            "US-WEST4",
        ],
    ),
];
/// Pairs of them that have another location: EUR4, NAM4, DE and IT.
const OTHER_PAIRS: [[&str; 2]; 4] = [
    ["EUROPE-NORTH1", "EUROPE-WEST4"],
    ["US-CENTRAL1", "US-EAST1"],
    ["EUROPE-WEST3", "EUROPE-WEST10"],
    ["EUROPE-WEST8", "EUROPE-WEST12"],
];

/// The location of a bucket, which may be new.
fn location(bucket: &Value) -> String {
    let location = text(bucket, "/location").to_uppercase();
    if location.is_empty() { "US".to_owned() } else { location }
}

fn location_type(bucket: &Value) -> &'static str {
    match location(bucket).as_str() {
        _ if bucket.get("custom_placement_config").is_some() => "dual-region",
        "US" | "EU" | "ASIA" => "multi-region",
        "NAM4" | "EUR4" | "EUR5" | "EUR7" | "EUR8" | "ASIA1" => "dual-region",
        _ => "region",
    }
}

/// Holds the regions, the replication and the key of a bucket against its location.
fn check_location(bucket: &Value) -> Result<(), Problem> {
    let (location, kind) = (location(bucket), location_type(bucket));
    if let Some(placement) = bucket.get("custom_placement_config") {
        let regions: Vec<String> = placement["data_locations"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_uppercase)
            .collect();
        let Some((_, inside)) = PLACEMENTS.iter().find(|(code, _)| *code == location) else {
            return Err(bad("The location of a bucket with a custom placement is a multi-region."));
        };
        let are_all_of = |some: &[&str]| regions.iter().all(|one| some.contains(&one.as_str()));
        let are_two = regions.len() == 2 && regions[0] != regions[1];
        if !are_two || !are_all_of(inside) || OTHER_PAIRS.iter().any(|pair| are_all_of(pair)) {
            return Err(bad("The custom placement config needs two regions of the location of the bucket."));
        }
    }
    let is_allowed = match text(bucket, "/rpo") {
        "" => true,
        "DEFAULT" => kind != "region",
        "ASYNC_TURBO" => kind == "dual-region",
        _ => false,
    };
    if !is_allowed {
        return Err(bad("The recovery point objective is not one of a bucket in this location."));
    }
    let key = text(bucket, "/encryption/default_kms_key");
    let wanted = if location == "EU" { "europe".to_owned() } else { location.to_lowercase() };
    if !key.is_empty() && !key.contains(&format!("/locations/{wanted}/")) {
        return Err(bad("The Cloud KMS key is not in the location of the bucket."));
    }
    Ok(())
}

fn create(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let id = text(request, "/bucket_id").to_owned();
    let project = project_of(cloud, request);
    if !["", "projects/_"].contains(&text(request, "/parent")) && text(request, "/bucket/project").is_empty() {
        return Err(bad("The bucket's project is missing."));
    }
    if !is_name(&id) {
        return Err(bad(format!("Invalid bucket name: '{id}'")));
    }
    let name = format!("projects/_/buckets/{id}");
    let key = format!("storage/{name}");
    let is_burnt = cloud.burnt.get(&key).is_some_and(|until| *until > cloud.now());
    if cloud.objects.contains_key(&key) || cloud.foreign_buckets.contains(&id) || is_burnt {
        let message = "The requested bucket name is not available. The bucket namespace is shared by all users of the \
            system. Please select a different name and try again.";
        return Err(Problem::new("ALREADY_EXISTS", message).reason("conflict"));
    }
    let mut bucket = request.get("bucket").cloned().unwrap_or_else(|| json!({}));
    check(cloud, &project, &bucket)?;
    let (location, kind) = (location(&bucket), location_type(&bucket));
    let number = cloud.project(&project).map(|project| project.number.clone()).unwrap_or_default();
    let now = cloud.now().to_string();
    let defaults = [
        ("/storage_class", json!("STANDARD")),
        ("/iam_config/public_access_prevention", json!("inherited")),
        ("/soft_delete_policy/retention_duration", json!(604_800)),
        ("/soft_delete_policy/effective_time", json!(now)),
    ];
    let replication = (kind != "region").then(|| ("/rpo", json!("DEFAULT")));
    for (pointer, value) in defaults.into_iter().chain(replication) {
        if bucket.pointer(pointer).is_none_or(|value| value == "") {
            put(&mut bucket, pointer, value);
        }
    }
    let members = [
        ("name", json!(name)),
        ("bucket_id", json!(id)),
        ("project", json!(format!("projects/{number}"))),
        ("location", json!(location)),
        ("location_type", json!(kind)),
        ("metageneration", json!(1)),
        ("create_time", json!(now)),
        ("update_time", json!(now)),
        ("etag", json!("CAE=")),
    ];
    for (member, value) in members {
        bucket[member] = value;
    }
    cloud.put(&key, bucket.clone());
    Ok(bucket)
}

fn missing() -> Problem {
    Problem::new("NOT_FOUND", "The specified bucket does not exist.")
}

/// A bucket of a request, if it has the wanted metageneration.
fn found(cloud: &Cloud, request: &Value, name: &str) -> Result<(String, Value), Problem> {
    let key = format!("storage/{name}");
    let id = name.rsplit('/').next().unwrap_or_default();
    if cloud.foreign_buckets.contains(id) {
        let message =
            format!("The caller does not have storage.buckets.get access to the Google Cloud Storage bucket {id}.");
        return Err(Problem::new("PERMISSION_DENIED", message));
    }
    let Some(bucket) = cloud.get(&key).cloned() else { return Err(missing()) };
    let current = bucket["metageneration"].as_i64();
    let wanted = request["if_metageneration_match"].as_i64();
    let unwanted = request["if_metageneration_not_match"].as_i64();
    if wanted.is_some_and(|wanted| Some(wanted) != current) || (unwanted.is_some() && unwanted == current) {
        let message = "At least one of the pre-conditions you specified did not hold.";
        return Err(Problem::new("FAILED_PRECONDITION", message).reason("conditionNotMet"));
    }
    Ok((key, bucket))
}

fn get(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    found(cloud, request, text(request, "/name")).map(|(_, bucket)| bucket)
}

/// A page of items: the token is the number of the next.
fn page(request: &Value, member: &str, items: Vec<Value>) -> Value {
    let size = request["page_size"].as_u64().and_then(|size| usize::try_from(size).ok());
    let size = size.filter(|size| (1..=1000).contains(size)).unwrap_or(1000);
    let start: usize = text(request, "/page_token").parse().unwrap_or(0);
    let is_more = items.len() > start.saturating_add(size);
    let rows: Vec<Value> = items.into_iter().skip(start).take(size).collect();
    let mut answer = json!({ (member): rows });
    if is_more {
        answer["next_page_token"] = (start + size).to_string().into();
    }
    answer
}

fn list(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let project = project_of(cloud, request);
    let number = cloud.project(&project).map(|project| format!("projects/{}", project.number)).unwrap_or_default();
    let prefix = text(request, "/prefix");
    let buckets = cloud.objects.iter().filter(|(key, object)| {
        key.starts_with("storage/projects/_/buckets/")
            && object.body["project"] == number.as_str()
            && text(&object.body, "/bucket_id").starts_with(prefix)
    });
    Ok(page(request, "buckets", buckets.map(|(_, object)| object.body.clone()).collect()))
}

fn update(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let (key, before) = found(cloud, request, text(request, "/bucket/name"))?;
    let paths: Vec<String> = request
        .pointer("/update_mask/paths")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if paths.is_empty() {
        return Err(bad("The update_mask is missing."));
    }
    let mut after = before.clone();
    let fixed = [
        "name",
        "bucket_id",
        "project",
        "location",
        "custom_placement_config",
        "create_time",
        "metageneration",
        "location_type",
    ];
    for path in paths {
        let first = path.split('.').next().unwrap_or_default();
        if path == "*" {
            for (member, value) in request["bucket"].as_object().into_iter().flatten() {
                if !fixed.contains(&member.as_str()) {
                    after[member.as_str()] = value.clone();
                }
            }
            continue;
        }
        if fixed.contains(&first) || !BUCKET.iter().any(|field| field.1 == first) {
            return Err(bad(format!("Invalid update mask: {path}")));
        }
        let pointer = format!("/{}", path.replace('.', "/"));
        match request["bucket"].pointer(&pointer) {
            Some(value) => put(&mut after, &pointer, value.clone()),
            None => {
                let (parent, last) = pointer.rsplit_once('/').unwrap_or(("", &pointer));
                let members = after.pointer_mut(parent).and_then(Value::as_object_mut);
                members.map(|members| members.shift_remove(last));
            }
        }
    }
    let project = project_id(cloud, text(&before, "/project"));
    check(cloud, &project, &after)?;
    let next = before["metageneration"].as_i64().unwrap_or_default() + 1;
    after["metageneration"] = next.into();
    after["update_time"] = cloud.now().to_string().into();
    after["etag"] = format!("CA{next}=").into();
    cloud.put(&key, after.clone());
    Ok(after)
}

fn delete(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let (key, bucket) = found(cloud, request, text(request, "/name"))?;
    let id = text(&bucket, "/bucket_id").to_owned();
    if cloud.blobs.of(&id).next().is_some() {
        let message = "The bucket you tried to delete is not empty.";
        return Err(Problem::new("FAILED_PRECONDITION", message).reason("conflict"));
    }
    cloud.objects.remove(&key);
    cloud.policies.remove(&key);
    let lag = cloud.lag(&cloud.conduct.bucket_hold.clone());
    cloud.burnt.insert(key, later(cloud.now(), lag));
    Ok(json!({}))
}

fn object(bucket: &str, name: &str, one: &Object) -> Value {
    json!({ "name": name, "bucket": format!("projects/_/buckets/{bucket}"), "size": one.content.len(),
        "generation": one.generation, "metageneration": 1, "storage_class": "STANDARD", "content_type": one.kind,
        "create_time": one.modified.to_string(), "etag": "CAE=" })
}

fn list_objects(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let (_, bucket) = found(cloud, &json!({}), text(request, "/parent"))?;
    let id = text(&bucket, "/bucket_id");
    let prefix = text(request, "/prefix");
    let is_wanted = |name: &str| name.starts_with(prefix) && request["soft_deleted"] != true;
    let objects = cloud.blobs.of(id).filter(|(name, _)| is_wanted(name));
    let objects = objects.map(|(name, one)| object(id, name, one)).collect();
    Ok(page(request, "objects", objects))
}

fn blob(request: &Value) -> (String, String) {
    let bucket = text(request, "/bucket").rsplit('/').next().unwrap_or_default();
    (bucket.to_owned(), text(request, "/object").to_owned())
}

fn no_object(key: &(String, String)) -> Problem {
    Problem::new("NOT_FOUND", format!("No such object: {}/{}", key.0, key.1))
}

fn get_object(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let key = blob(request);
    let found = cloud.blobs.get(&key.0, &key.1).ok_or_else(|| no_object(&key))?;
    Ok(object(&key.0, &key.1, found))
}

fn delete_object(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let key = blob(request);
    cloud.blobs.remove(&key.0, &key.1).map(|_| json!({})).ok_or_else(|| no_object(&key))
}

fn policy_key(cloud: &Cloud, request: &Value) -> Result<String, Problem> {
    found(cloud, &json!({}), text(request, "/resource")).map(|(key, _)| key)
}

fn get_policy(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let key = policy_key(cloud, request)?;
    let version = request.pointer("/options/requested_policy_version").and_then(Value::as_i64);
    iam::read(cloud, &key, version.unwrap_or(1))
}

fn set_policy(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    let key = policy_key(cloud, request)?;
    let project = project_of(cloud, request);
    iam::write(cloud, &key, &project, &request["policy"])
}

fn test_permissions(cloud: &mut Cloud, request: &Value) -> Result<Value, Problem> {
    policy_key(cloud, request)?;
    let asked = request["permissions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let is_held =
        |one: &&str| !cloud.denied.contains(*one) && cloud.allowed.as_ref().is_none_or(|all| all.contains(*one));
    let held: Vec<&str> = asked.filter(is_held).collect();
    Ok(json!({ "permissions": held }))
}
