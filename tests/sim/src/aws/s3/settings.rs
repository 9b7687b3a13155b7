//! Settings of buckets.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{arn, bucket, find};
use crate::{Call, Fault, World};

/// Keys and values of a list of tags.
pub(super) fn pairs(tags: &[Value]) -> Result<Vec<(String, String)>, Fault> {
    let text = |tag: &Value, member: &str| tag[member].as_str().unwrap_or_default().to_owned();
    let pairs: Vec<_> = tags.iter().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect();
    if pairs.iter().any(|(key, _)| key.starts_with("aws:")) {
        return Err(Fault::new("InvalidTag", "System tags cannot be added/updated by requester").status(400));
    }
    let distinct: BTreeSet<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
    if distinct.len() != pairs.len() {
        return Err(Fault::new("InvalidTag", "Cannot provide multiple Tags with the same key").status(400));
    }
    Ok(pairs)
}

pub(super) fn get_tagging(world: &mut World, call: &Call) -> Result<Value, Fault> {
    find(world, call)?;
    let tags = world.tags.of(&arn(call.text("Bucket")));
    if tags.is_empty() {
        return Err(Fault::new("NoSuchTagSet", "The TagSet does not exist").status(404));
    }
    let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
    Ok(json!({ "TagSet": tags }))
}

pub(super) fn put_tagging(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = pairs(call.input["Tagging"]["TagSet"].as_array().map_or(&[], Vec::as_slice))?;
    find(world, call)?;
    // All at once: what is not named goes.
    let arn = arn(call.text("Bucket"));
    let known = world.tags.of(&arn);
    let gone = known.keys().filter(|key| !tags.iter().any(|(one, _)| one == *key)).map(String::as_str);
    world.tags.remove(&arn, gone);
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({}))
}

/// A setting as reads show it, or the error of a bucket without it.
fn shown(world: &mut World, call: &Call, name: &str, missing: &str, message: &str) -> Result<Value, Fault> {
    let value = find(world, call)?.shown(name, call.now).cloned();
    value.ok_or_else(|| Fault::new(missing, message).status(404))
}

pub(super) fn get_encryption(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let missing = "ServerSideEncryptionConfigurationNotFoundError";
    let value = shown(world, call, "encryption", missing, "The server side encryption configuration was not found")?;
    Ok(json!({ "ServerSideEncryptionConfiguration": value }))
}

pub(super) fn put_encryption(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let value = call.input["ServerSideEncryptionConfiguration"].clone();
    let rule = &value["Rules"][0]["ApplyServerSideEncryptionByDefault"];
    if rule["SSEAlgorithm"] == "AES256" && rule["KMSMasterKeyID"].is_string() {
        let message = "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse";
        return Err(Fault::new("InvalidArgument", message).status(400));
    }
    find(world, call)?.set("encryption", Some(value), call);
    Ok(json!({}))
}

pub(super) fn get_ownership(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let missing = "OwnershipControlsNotFoundError";
    let value = shown(world, call, "ownership", missing, "The bucket ownership controls were not found")?;
    Ok(json!({ "OwnershipControls": value }))
}

pub(super) fn put_ownership(world: &mut World, call: &Call) -> Result<Value, Fault> {
    find(world, call)?.set("ownership", Some(call.input["OwnershipControls"].clone()), call);
    Ok(json!({}))
}

pub(super) fn get_public_access(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let missing = "NoSuchPublicAccessBlockConfiguration";
    let value = shown(world, call, "public_access", missing, "The public access block configuration was not found")?;
    Ok(json!({ "PublicAccessBlockConfiguration": value }))
}

pub(super) fn put_public_access(world: &mut World, call: &Call) -> Result<Value, Fault> {
    find(world, call)?.set("public_access", Some(call.input["PublicAccessBlockConfiguration"].clone()), call);
    Ok(json!({}))
}

pub(super) fn get_versioning(world: &mut World, call: &Call) -> Result<Value, Fault> {
    Ok(find(world, call)?.shown("versioning", call.now).cloned().unwrap_or_else(|| json!({})))
}

pub(super) fn put_versioning(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let status = call.input["VersioningConfiguration"]["Status"].clone();
    let bucket = find(world, call)?;
    if status == "Suspended" && bucket.setting("replication").is_some() {
        let message = "A replication configuration is present on this bucket, so you cannot change the versioning state. \
                       To change the versioning state, first delete the replication configuration.";
        return Err(Fault::new("InvalidBucketState", message).status(409));
    }
    bucket.set("versioning", Some(json!({ "Status": status })), call);
    Ok(json!({}))
}

pub(super) fn get_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let value = shown(world, call, "policy", "NoSuchBucketPolicy", "The bucket policy does not exist")?;
    let document: Value = serde_json::from_str(value.as_str().unwrap_or_default()).unwrap_or_default();
    Ok(json!({ "Policy": rewritten(document).to_string() }))
}

/// A policy as S3 shows it: lists of texts are in another order, and those of one text are that text.
fn rewritten(value: Value) -> Value {
    match value {
        Value::Array(mut all) if all.iter().all(Value::is_string) => {
            all.reverse();
            if all.len() == 1 { all.remove(0) } else { Value::Array(all) }
        }
        Value::Array(all) => all.into_iter().map(rewritten).collect(),
        Value::Object(members) => members.into_iter().map(|(name, member)| (name, rewritten(member))).collect(),
        other => other,
    }
}

pub(super) fn put_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let malformed = |why: &str| Fault::new("MalformedPolicy", why).status(400);
    let policy: Value = serde_json::from_str(call.text("Policy"))
        .map_err(|_| malformed("Policies must be valid JSON and the first byte must be '{'"))?;
    let statements = policy["Statement"].as_array().cloned().unwrap_or_else(|| vec![policy["Statement"].clone()]);
    let own = arn(call.text("Bucket"));
    for statement in &statements {
        let resources = match &statement["Resource"] {
            Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::String(one) => vec![one.clone()],
            _ => Vec::new(),
        };
        let is_own = |resource: &String| *resource == own || resource.starts_with(&format!("{own}/"));
        if resources.is_empty() || !resources.iter().all(is_own) {
            return Err(malformed("Policy has invalid resource"));
        }
        if !statement["Action"].is_string() && !statement["Action"].is_array() {
            return Err(malformed("Missing required field Action"));
        }
        if statement["Principal"].is_null() {
            return Err(malformed("Missing required field Principal"));
        }
    }
    let is_public = |statement: &Value| {
        let everybody = statement["Principal"] == "*" || statement["Principal"]["AWS"] == "*";
        statement["Effect"] == "Allow" && everybody && statement["Condition"].is_null()
    };
    let bucket = find(world, call)?;
    let is_blocked = bucket.setting("public_access").is_some_and(|block| block["BlockPublicPolicy"] == true);
    if is_blocked && statements.iter().any(is_public) {
        let message = "Access Denied: public policies are prevented by the BlockPublicPolicy setting";
        return Err(Fault::new("AccessDenied", message).status(403));
    }
    bucket.set("policy", Some(call.input["Policy"].clone()), call);
    Ok(json!({}))
}

pub(super) fn delete_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    find(world, call)?.set("policy", None, call);
    Ok(json!({}))
}

pub(super) fn get_lifecycle(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let missing = "NoSuchLifecycleConfiguration";
    let rules = shown(world, call, "lifecycle", missing, "The lifecycle configuration does not exist")?;
    Ok(json!({ "Rules": rules }))
}

pub(super) fn put_lifecycle(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let rules = call.input["LifecycleConfiguration"]["Rules"].clone();
    let invalid = |code: &str, message: &str| Err(Fault::new(code, message).status(400));
    let mut ids = BTreeSet::new();
    for rule in rules.as_array().into_iter().flatten() {
        if rule["ID"].as_str().is_some_and(|id| id.len() > 255 || !ids.insert(id.to_owned())) {
            return invalid("InvalidArgument", "Rule ID must be unique. Found same ID for more than one rule");
        }
        if rule["Filter"].is_null() && rule["Prefix"].is_null() {
            return invalid(
                "MalformedXML",
                "The XML you provided was not well-formed or did not validate against our published schema",
            );
        }
        let actions = [
            "AbortIncompleteMultipartUpload",
            "Expiration",
            "NoncurrentVersionExpiration",
            "NoncurrentVersionTransitions",
            "Transitions",
        ];
        if actions.iter().all(|action| rule[action].is_null()) {
            return invalid("InvalidRequest", "At least one action needs to be specified in a rule");
        }
        for transition in rule["Transitions"].as_array().into_iter().flatten() {
            let is_rare = ["STANDARD_IA", "ONEZONE_IA"].iter().any(|class| transition["StorageClass"] == *class);
            if is_rare && transition["Days"].as_i64().is_some_and(|days| days < 30) {
                let message = "'Days' in Transition action must be greater than or equal to 30 for storageClass";
                return invalid("InvalidArgument", message);
            }
        }
        let days = [&rule["Expiration"]["Days"], &rule["NoncurrentVersionExpiration"]["NoncurrentDays"]];
        if days.iter().any(|days| days.as_i64().is_some_and(|days| days < 1)) {
            return invalid("InvalidArgument", "'Days' for Expiration action must be a positive integer");
        }
    }
    find(world, call)?.set("lifecycle", Some(rules), call);
    Ok(json!({}))
}

pub(super) fn delete_lifecycle(world: &mut World, call: &Call) -> Result<Value, Fault> {
    find(world, call)?.set("lifecycle", None, call);
    Ok(json!({}))
}

pub(super) fn get_replication(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let missing = "ReplicationConfigurationNotFoundError";
    let value = shown(world, call, "replication", missing, "The replication configuration was not found")?;
    Ok(json!({ "ReplicationConfiguration": value }))
}

pub(super) fn put_replication(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let value = call.input["ReplicationConfiguration"].clone();
    let refuse = |message: &str| Err(Fault::new("InvalidRequest", message).status(400));
    if !find(world, call)?.is_versioned() {
        return refuse("Versioning must be 'Enabled' on the bucket to apply a replication configuration");
    }
    for rule in value["Rules"].as_array().into_iter().flatten() {
        let to = rule["Destination"]["Bucket"].as_str().and_then(|arn| arn.strip_prefix("arn:aws:s3:::"));
        let Some(target) = to.and_then(|name| bucket(world, name)) else {
            return refuse("Destination bucket must exist.");
        };
        if !target.is_versioned() {
            return refuse("Destination bucket must have versioning enabled.");
        }
        let selects = !rule["SourceSelectionCriteria"]["SseKmsEncryptedObjects"].is_null();
        if selects != rule["Destination"]["EncryptionConfiguration"]["ReplicaKmsKeyID"].is_string() {
            return refuse("SseKmsEncryptedObjects and ReplicaKmsKeyID must be specified together");
        }
        if !rule["Filter"].is_null() && (rule["Priority"].is_null() || rule["DeleteMarkerReplication"].is_null()) {
            return refuse("Priority and DeleteMarkerReplication must be specified with Filter");
        }
    }
    find(world, call)?.set("replication", Some(value), call);
    Ok(json!({}))
}

pub(super) fn delete_replication(world: &mut World, call: &Call) -> Result<Value, Fault> {
    find(world, call)?.set("replication", None, call);
    Ok(json!({}))
}
