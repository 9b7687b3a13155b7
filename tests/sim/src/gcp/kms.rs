//! Cloud KMS: key rings, keys and their versions.

use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, put};
use super::kinds::{Id, KIND, Kind, Update, collection, read};
use super::problem::Problem;
use super::{Call, Handler, errors};
use crate::clock::later;
use crate::{Behaviour, Source};

/// How long a version stays restorable unless the key says otherwise.
const DESTROY_AFTER: u64 = 30 * 86_400;
/// How long a version of a hardware key is generated.
const GENERATION: u64 = 10;

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        methods: "cloudkms.projects.locations.keyRings",
        verbs: &["create", "get", "list"],
        collection: ("cloudkms", "keyRings"),
        id: Id::Query("keyRingId"),
        is_id,
        items: "keyRings",
        fill: |cloud, _, name, body| {
            body["name"] = name.into();
            body["createTime"] = cloud.now().to_string().into();
        },
        ..KIND
    },
    Kind {
        methods: "cloudkms.projects.locations.keyRings.cryptoKeys",
        verbs: &["create", "patch"],
        collection: ("cloudkms", "cryptoKeys"),
        id: Id::Query("cryptoKeyId"),
        is_id,
        items: "cryptoKeys",
        defaults: &[
            ("/versionTemplate/protectionLevel", "\"SOFTWARE\""),
            ("/versionTemplate/algorithm", "\"GOOGLE_SYMMETRIC_ENCRYPTION\""),
            ("/destroyScheduledDuration", "\"2592000s\""),
        ],
        update: Update::Mask(&["labels", "rotationPeriod", "nextRotationTime", "versionTemplate"]),
        check: |cloud, call, body| {
            if cloud.get(call.key().trim_end_matches("/cryptoKeys")).is_none() {
                return Err(errors::not_found("cloudkms", call.parent()));
            }
            if body["purpose"].as_str().is_none() {
                return Err(Problem::new("INVALID_ARGUMENT", "The key's purpose is missing."));
            }
            // <https://cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings.cryptoKeys>
            if body.get("rotationPeriod").is_some() != body.get("nextRotationTime").is_some() {
                return Err(Problem::new("INVALID_ARGUMENT", "rotationPeriod and nextRotationTime are set together."));
            }
            Ok(())
        },
        fill: |cloud, call, name, body| {
            body["name"] = name.into();
            body["createTime"] = cloud.now().to_string().into();
            if call.parameter("skipInitialVersionCreation") != Some("true") {
                add_version(cloud, &format!("cloudkms/{name}"), body);
            }
        },
        ..KIND
    },
    Kind {
        methods: "cloudkms.projects.locations.keyRings.cryptoKeys.cryptoKeyVersions",
        verbs: &["get", "list"],
        collection: ("cloudkms", "cryptoKeyVersions"),
        items: "cryptoKeyVersions",
        ..KIND
    },
];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("cloudkms.projects.locations.keyRings.cryptoKeys.get", get_key),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.list", list_keys),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.updatePrimaryVersion", set_primary),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.cryptoKeyVersions.create", create_version),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.cryptoKeyVersions.patch", patch_version),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.cryptoKeyVersions.destroy", destroy),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.cryptoKeyVersions.restore", restore),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "key rings and keys are not deleted, and their names stay taken",
        Source::Report("hashicorp/terraform-provider-google#1214"),
    ),
    rule(
        "a version is destroyed after the key's duration, 30 days unless set; destroying it twice is refused",
        Source::Report("plantonhq/planton#476"),
    ),
    rule(
        "a new version of a hardware key is PENDING_GENERATION and cannot be used or destroyed",
        Source::Report("hashicorp/terraform-provider-google#27365"),
    ),
    rule("a key is created with a first version, which is the primary", Source::Model),
    rule(
        "a key's rotation has a period and a next time",
        Source::Documentation("https://cloud.google.com/kms/docs/rotating-keys"),
    ),
    rule(
        "a destroyed version can be restored, disabled, until its time",
        Source::Documentation("https://cloud.google.com/kms/docs/destroy-restore"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "cloudkms", what, source }
}

/// The ids of rings and keys: `[a-zA-Z0-9_-]{1,63}`, as the document has them.
fn is_id(id: &str) -> bool {
    (1..=63).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// Adds a version to a key: its key.
fn add_version(cloud: &mut Cloud, key: &str, body: &Value) -> String {
    let number = collection(cloud, &format!("{key}/cryptoKeyVersions")).len() + 1;
    let version = format!("{key}/cryptoKeyVersions/{number}");
    let template = &body["versionTemplate"];
    let now = cloud.now().to_string();
    let is_slow = template["protectionLevel"] == "HSM" && !cloud.timing.zero_latency;
    let name = version.split_once('/').map_or("", |(_, name)| name);
    let mut shown = json!({ "name": name, "state": if is_slow { "PENDING_GENERATION" } else { "ENABLED" },
        "protectionLevel": template["protectionLevel"], "algorithm": template["algorithm"], "createTime": now });
    if !is_slow {
        shown["generateTime"] = now.into();
    }
    cloud.put(&version, shown);
    if is_slow {
        let target = version.clone();
        let due = cloud.due(Duration::from_secs(GENERATION));
        cloud.defer(due, move |cloud| {
            let now = cloud.now().to_string();
            if let Some(object) = cloud.objects.get_mut(&target) {
                object.body["state"] = "ENABLED".into();
                object.body["generateTime"] = now.into();
            }
        });
    }
    version
}

/// A key as reads answer it, with its primary version.
fn with_primary(cloud: &Cloud, key: &str) -> Option<Value> {
    let mut body = cloud.get(key)?.clone();
    if body["purpose"] != "ENCRYPT_DECRYPT" {
        return Some(body);
    }
    let chosen =
        cloud.objects.get(&format!("{key}/primary")).and_then(|object| object.body.as_str().map(str::to_owned));
    let first = format!("{key}/cryptoKeyVersions/1");
    if let Some(version) = cloud.get(&chosen.unwrap_or(first)) {
        body["primary"] = version.clone();
    }
    Some(body)
}

fn get_key(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    with_primary(cloud, &call.key()).ok_or_else(|| errors::not_found("cloudkms", &call.name))
}

fn list_keys(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let keys = collection(cloud, &call.key());
    let mut answer =
        super::kinds::page(call, "cryptoKeys", keys.iter().filter_map(|key| with_primary(cloud, key)).collect());
    answer["totalSize"] = keys.len().into();
    Ok(answer)
}

fn set_primary(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.key();
    let version = format!("{key}/cryptoKeyVersions/{}", call.body["cryptoKeyVersionId"].as_str().unwrap_or_default());
    let Some(body) = cloud.get(&version) else { return Err(errors::not_found("cloudkms", &call.name)) };
    if body["state"] != "ENABLED" {
        let message =
            format!("The version is not enabled, current state is: {}.", body["state"].as_str().unwrap_or_default());
        return Err(Problem::new("FAILED_PRECONDITION", message));
    }
    cloud.put_hidden(&format!("{key}/primary"), version.into());
    get_key(cloud, call)
}

fn create_version(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.parent_key();
    let Some(body) = cloud.get(&key).cloned() else { return Err(errors::not_found("cloudkms", call.parent())) };
    let version = add_version(cloud, &key, &body);
    Ok(cloud.get(&version).cloned().unwrap_or_default())
}

fn state_of(cloud: &mut Cloud, call: &Call<'_>) -> Result<String, Problem> {
    read(cloud, call).map(|body| body["state"].as_str().unwrap_or_default().to_owned())
}

fn wrong_state(call: &Call<'_>, state: &str) -> Problem {
    let message = format!(
        "The request cannot be fulfilled. Resource {} has value {state} in field crypto_key_version.state.",
        call.name
    );
    Problem::new("FAILED_PRECONDITION", message)
}

fn patch_version(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let state = state_of(cloud, call)?;
    if !["ENABLED", "DISABLED"].contains(&state.as_str()) {
        return Err(wrong_state(call, &state));
    }
    if call.parameter("updateMask") != Some("state") {
        return Err(Problem::new("INVALID_ARGUMENT", "Invalid update mask."));
    }
    if let Some(object) = cloud.objects.get_mut(&call.key()) {
        put(&mut object.body, "/state", call.body["state"].clone());
    }
    read(cloud, call)
}

fn destroy(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let state = state_of(cloud, call)?;
    if !["ENABLED", "DISABLED"].contains(&state.as_str()) {
        return Err(wrong_state(call, &state));
    }
    let version = call.key();
    let key = version.rsplit_once("/cryptoKeyVersions/").map_or("", |(key, _)| key);
    let after =
        cloud.get(key).and_then(|key| key["destroyScheduledDuration"].as_str()?.strip_suffix('s')?.parse().ok());
    let time = later(cloud.now(), Duration::from_secs(after.unwrap_or(DESTROY_AFTER)));
    if let Some(object) = cloud.objects.get_mut(&version) {
        object.body["state"] = "DESTROY_SCHEDULED".into();
        object.body["destroyTime"] = time.to_string().into();
    }
    cloud.defer(time, move |cloud| {
        if let Some(object) = cloud.objects.get_mut(&version).filter(|one| one.body["destroyTime"] == time.to_string())
        {
            object.body["state"] = "DESTROYED".into();
            object.body["destroyEventTime"] = time.to_string().into();
        }
    });
    read(cloud, call)
}

fn restore(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let state = state_of(cloud, call)?;
    if state != "DESTROY_SCHEDULED" {
        return Err(wrong_state(call, &state));
    }
    if let Some(object) = cloud.objects.get_mut(&call.key()) {
        object.body["state"] = "DISABLED".into();
        object.body.as_object_mut().map(|members| members.shift_remove("destroyTime"));
    }
    read(cloud, call)
}
