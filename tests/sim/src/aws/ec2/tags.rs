//! Tags of EC2's resources.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Call, Fault, World, passes};

/// Keys and values of a list of tags.
pub(super) fn pairs(tags: &[Value]) -> Result<Vec<(String, String)>, Fault> {
    let mut pairs = Vec::new();
    for tag in tags {
        let text = |member: &str| tag[member].as_str().unwrap_or_default().to_owned();
        let (key, value) = (text("Key"), text("Value"));
        if key.is_empty() || key.starts_with("aws:") {
            let message =
                format!("Tag keys starting with 'aws:' are reserved for internal use, and a key is not empty: '{key}'");
            return Err(Fault::new("InvalidParameterValue", message));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// The resources that are none of this module's collections: the prefix of ids, the type, and the error where there is none.
const TYPES: &[(&str, &str, &str)] = &[];

/// The ARN of a resource by its id, if there is one.
fn arn(world: &World, call: &Call, id: &str) -> Result<String, Fault> {
    let invalid = || Fault::new("InvalidID", format!("The ID '{id}' is not valid"));
    let (prefix, _) = id.rsplit_once('-').ok_or_else(invalid)?;
    let own = super::COLLECTIONS.iter().map(|one| (one.prefix, one.name, one.unknown));
    let mut types = own.chain(TYPES.iter().copied());
    let (_, kind, not_found) = types.find(|(known, ..)| *known == prefix).ok_or_else(invalid)?;
    let arn = call.arn(&format!("{kind}/{id}"));
    match world.tags.has(&arn) {
        true => Ok(arn),
        false => Err(Fault::new(not_found, format!("The {kind} ID '{id}' does not exist"))),
    }
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = pairs(call.list("Tags"))?;
    // All resources or none.
    let arns: Vec<String> =
        call.texts("Resources").into_iter().map(|id| arn(world, call, id)).collect::<Result<_, _>>()?;
    arns.iter().for_each(|arn| world.tags.set(arn, tags.clone(), call.visible()));
    Ok(json!({}))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arns: Vec<String> =
        call.texts("Resources").into_iter().map(|id| arn(world, call, id)).collect::<Result<_, _>>()?;
    for arn in arns {
        let tags = world.tags.of(&arn);
        let is_meant = |key: &str, value: &str| {
            // Without a list all tags are meant, and without a value any.
            call.list("Tags").is_empty()
                || call
                    .list("Tags")
                    .iter()
                    .any(|tag| tag["Key"] == key && (tag.get("Value").is_none() || tag["Value"] == value))
        };
        world.tags.remove(&arn, tags.iter().filter(|(key, value)| is_meant(key, value)).map(|(key, _)| key.as_str()));
    }
    Ok(json!({}))
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let prefix = call.arn("");
    let mut found = Vec::new();
    for (arn, tags) in world.tags.listed(&prefix, call.now) {
        let Some((kind, id)) = arn[prefix.len()..].split_once('/') else { continue };
        for (key, value) in &tags {
            let field = |name: &str| match name {
                "key" => Some(vec![key.clone()]),
                "resource-id" => Some(vec![id.to_owned()]),
                "resource-type" => Some(vec![kind.to_owned()]),
                "value" => Some(vec![value.clone()]),
                _ => None,
            };
            if passes(call.list("Filters"), &BTreeMap::from([(key.clone(), value.clone())]), field)? {
                found.push(json!({ "Key": key, "Value": value, "ResourceId": id, "ResourceType": kind }));
            }
        }
    }
    call.page("Tags", found, Fault::new("InvalidNextToken", "The specified token is not valid"))
}
