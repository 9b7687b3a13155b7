//! Objects and their versions.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Bucket, S3, Version, bucket, everywhere, find};
use crate::aws::kms;
use crate::{Call, Fault, World, timestamp};

fn precondition() -> Fault {
    let message = "At least one of the pre-conditions you specified did not hold";
    Fault::new("PreconditionFailed", message).status(412)
}

fn no_such_key() -> Fault {
    Fault::new("NoSuchKey", "The specified key does not exist.")
}

/// The newest version of a key, unless it was deleted.
fn current<'a>(bucket: &'a Bucket, key: &str) -> Option<&'a Version> {
    bucket.objects.get(key)?.first().filter(|version| version.content.is_some())
}

/// The key of KMS that new objects are encrypted with, if there is one.
fn encryption_key(bucket: &Bucket) -> Option<String> {
    let rule = &bucket.setting("encryption")?["Rules"][0]["ApplyServerSideEncryptionByDefault"];
    rule["KMSMasterKeyID"].as_str().map(str::to_owned)
}

fn check_key(world: &World, call: &Call, id: &str) -> Result<(), Fault> {
    let refuse = |code: &str, why: String| Err(Fault::new(code, why).status(400));
    match kms::key(world, &call.scope(), id).map(kms::Key::state) {
        Some("Enabled") => Ok(()),
        Some("Disabled") => refuse("KMS.DisabledException", format!("{id} is disabled.")),
        Some(_) => refuse("KMS.KMSInvalidStateException", format!("{id} is pending deletion.")),
        None => refuse("KMS.NotFoundException", format!("{id} is not found.")),
    }
}

fn add(bucket: &mut Bucket, key: &str, version: Version) {
    let is_versioned = bucket.is_versioned();
    let versions = bucket.objects.entry(key.to_owned()).or_default();
    if !is_versioned {
        versions.retain(|one| one.id != "null");
    }
    versions.insert(0, version);
}

pub(super) fn put(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let key = call.text("Key");
    let bucket = find(world, call)?;
    let there = current(bucket, key);
    if call.str("IfNoneMatch").is_some() && there.is_some() {
        return Err(precondition());
    }
    if let Some(etag) = call.str("IfMatch") {
        let there = there.ok_or_else(no_such_key)?;
        if there.etag.trim_matches('"') != etag.trim_matches('"') {
            return Err(precondition());
        }
    }
    let kms_key = encryption_key(bucket);
    let rules = bucket.setting("replication").map(|one| one["Rules"].clone()).unwrap_or_default();
    if let Some(id) = &kms_key {
        check_key(world, call, id)?;
    }
    let bucket = find(world, call)?;
    let id = if bucket.is_versioned() { call.random.base32(32) } else { "null".to_owned() };
    let content = call.body().clone();
    let etag = format!("\"{}\"", &hex::encode(Sha256::digest(&content))[..32]);
    let version = Version { id: id.clone(), content: Some(content), etag: etag.clone(), modified: call.now };
    add(bucket, key, version.clone());
    for rule in rules.as_array().into_iter().flatten() {
        let selects = !rule["SourceSelectionCriteria"]["SseKmsEncryptedObjects"].is_null();
        let to = rule["Destination"]["Bucket"].as_str().and_then(|arn| arn.strip_prefix("arn:aws:s3:::"));
        let (Some(to), true) = (to, selects || kms_key.is_none()) else { continue };
        let (to, key, version) = (to.to_owned(), key.to_owned(), version.clone());
        world.defer(call.due(Duration::from_secs(15)), move |world| {
            if let Some(target) = world.state::<S3>(&everywhere()).buckets.get_mut(&to) {
                add(target, &key, version);
            }
        });
    }
    let mut answer =
        json!({ "ETag": etag, "ServerSideEncryption": if kms_key.is_some() { "aws:kms" } else { "AES256" } });
    if let Some(key) = kms_key {
        answer["SSEKMSKeyId"] = key.into();
    }
    if id != "null" {
        answer["VersionId"] = id.into();
    }
    Ok(answer)
}

pub(super) fn get(world: &mut World, call: &Call) -> Result<Value, Fault> {
    if call.str("Range").is_some() {
        return Err(Fault::new("NotImplemented", "Ranges are not simulated.").status(501));
    }
    let bucket = find(world, call)?;
    let version = match call.str("VersionId") {
        Some(id) => bucket.objects.get(call.text("Key")).and_then(|all| all.iter().find(|version| version.id == id)),
        None => current(bucket, call.text("Key")),
    };
    let version = version.ok_or_else(no_such_key)?.clone();
    let content = version.content.ok_or_else(no_such_key)?;
    if let Some(id) = encryption_key(bucket) {
        check_key(world, call, &id)?;
    }
    let length = content.len();
    call.send_body(content);
    Ok(json!({ "ETag": version.etag, "ContentLength": length, "LastModified": timestamp(version.modified) }))
}

/// Deletes a version, or marks the key as deleted. What is not there is deleted already.
fn remove(bucket: &mut Bucket, call: &Call, key: &str, version: Option<&str>) -> Value {
    if let Some(id) = version {
        let versions = bucket.objects.entry(key.to_owned()).or_default();
        let was_mark = versions.iter().any(|one| one.id == id && one.content.is_none());
        versions.retain(|one| one.id != id);
        if versions.is_empty() {
            bucket.objects.remove(key);
        }
        return if was_mark { json!({ "VersionId": id, "DeleteMarker": true }) } else { json!({ "VersionId": id }) };
    }
    if bucket.setting("versioning").is_none() {
        bucket.objects.remove(key);
        return json!({});
    }
    let id = if bucket.is_versioned() { call.random.base32(32) } else { "null".to_owned() };
    add(bucket, key, Version { id: id.clone(), content: None, etag: String::new(), modified: call.now });
    json!({ "DeleteMarker": true, "VersionId": id })
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let bucket = find(world, call)?;
    if let Some(etag) = call.str("IfMatch") {
        let there = current(bucket, call.text("Key")).ok_or_else(no_such_key)?;
        if etag != "*" && there.etag.trim_matches('"') != etag.trim_matches('"') {
            return Err(precondition());
        }
    }
    Ok(remove(bucket, call, call.text("Key"), call.str("VersionId")))
}

pub(super) fn delete_many(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let objects = call.input["Delete"]["Objects"].as_array().cloned().unwrap_or_default();
    if objects.is_empty() || objects.len() > 1000 {
        let message = "The XML you provided was not well-formed or did not validate against our published schema";
        return Err(Fault::new("MalformedXML", message).status(400));
    }
    let bucket = find(world, call)?;
    let mut deleted = Vec::new();
    for object in &objects {
        let key = object["Key"].as_str().unwrap_or_default();
        let removed = remove(bucket, call, key, object["VersionId"].as_str());
        let mut answer = json!({ "Key": key });
        if let Some(id) = object["VersionId"].as_str() {
            answer["VersionId"] = id.into();
        }
        if removed["DeleteMarker"] == true {
            answer["DeleteMarker"] = true.into();
            answer["DeleteMarkerVersionId"] = removed["VersionId"].clone();
        }
        deleted.push(answer);
    }
    let is_quiet = call.input["Delete"]["Quiet"].as_bool().unwrap_or_default();
    Ok(if is_quiet { json!({}) } else { json!({ "Deleted": deleted }) })
}

pub(super) fn list_versions(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let most = usize::try_from(call.int("MaxKeys").unwrap_or(1000).clamp(0, 1000)).unwrap_or_default();
    let most = most.min(call.timing.page);
    let prefix = call.str("Prefix").unwrap_or_default();
    let bucket = find(world, call)?;
    let keys = bucket.objects.iter().filter(|(key, _)| key.starts_with(prefix));
    let all: Vec<(&String, usize, &Version)> =
        keys.flat_map(|(key, versions)| versions.iter().enumerate().map(move |(n, one)| (key, n, one))).collect();
    let marker = (call.str("KeyMarker").unwrap_or_default(), call.str("VersionIdMarker"));
    let start = all.iter().position(|(key, _, version)| match marker {
        (after, Some(id)) => key.as_str() == after && version.id == id,
        _ => false,
    });
    let start = match (start, marker) {
        (Some(at), _) => at + 1,
        (None, (after, _)) => all.iter().take_while(|(key, ..)| !after.is_empty() && key.as_str() <= after).count(),
    };
    let page: Vec<_> = all.iter().skip(start).take(most).collect();
    let (mut versions, mut marks) = (Vec::new(), Vec::new());
    for (key, n, version) in &page {
        let mut one = json!({
            "Key": key, "VersionId": version.id, "IsLatest": *n == 0, "LastModified": timestamp(version.modified),
        });
        match &version.content {
            Some(content) => {
                one["ETag"] = version.etag.clone().into();
                one["Size"] = content.len().into();
                one["StorageClass"] = "STANDARD".into();
                versions.push(one);
            }
            None => marks.push(one),
        }
    }
    let is_truncated = start + page.len() < all.len();
    let mut answer = json!({
        "Name": call.text("Bucket"), "Prefix": prefix, "MaxKeys": most, "IsTruncated": is_truncated,
        "Versions": versions, "DeleteMarkers": marks,
    });
    if let (true, Some((key, _, version))) = (is_truncated, page.last()) {
        answer["NextKeyMarker"] = key.as_str().into();
        answer["NextVersionIdMarker"] = version.id.clone().into();
    }
    Ok(answer)
}

/// Lists the objects that were not deleted. A token is the key after which a page begins.
pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    if call.str("Delimiter").is_some_and(|delimiter| !delimiter.is_empty()) {
        return Err(Fault::new("NotImplemented", "Delimiters are not simulated.").status(501));
    }
    let most = usize::try_from(call.int("MaxKeys").unwrap_or(1000).clamp(1, 1000)).unwrap_or_default();
    let most = most.min(call.timing.page);
    let prefix = call.str("Prefix").unwrap_or_default();
    let after = call.str("ContinuationToken").or(call.str("StartAfter")).unwrap_or_default();
    let bucket: &Bucket = find(world, call)?;
    let keys = bucket.objects.keys().filter(|key| key.starts_with(prefix) && key.as_str() > after);
    let all: Vec<(&String, &Version)> = keys.filter_map(|key| Some((key, current(bucket, key)?))).collect();
    let one = |(key, version): &(&String, &Version)| {
        let size = version.content.as_ref().map_or(0, bytes::Bytes::len);
        json!({ "Key": key, "LastModified": timestamp(version.modified), "ETag": version.etag, "Size": size,
            "StorageClass": "STANDARD" })
    };
    let page = &all[..most.min(all.len())];
    let contents: Vec<Value> = page.iter().map(one).collect();
    let mut answer = json!({
        "Name": call.text("Bucket"), "Prefix": prefix, "MaxKeys": most, "KeyCount": page.len(),
        "IsTruncated": page.len() < all.len(), "Contents": contents,
    });
    if let Some((key, _)) = page.last().filter(|_| page.len() < all.len()) {
        answer["NextContinuationToken"] = key.as_str().into();
    }
    Ok(answer)
}

/// The content of an object, for tests of what another bucket got.
#[must_use]
pub fn content(world: &World, name: &str, key: &str) -> Option<bytes::Bytes> {
    current(bucket(world, name)?, key)?.content.clone()
}

/// Puts an object into a bucket, as somebody else would.
pub fn insert(world: &mut World, name: &str, key: &str, content: &[u8]) {
    let now = world.now();
    let random = world.random.clone();
    let Some(bucket) = world.state::<S3>(&everywhere()).buckets.get_mut(name) else { return };
    let id = if bucket.is_versioned() { random.base32(32) } else { "null".to_owned() };
    let content = Some(bytes::Bytes::copy_from_slice(content));
    add(bucket, key, Version { id, content, etag: "\"0\"".to_owned(), modified: now });
}
