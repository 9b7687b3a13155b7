//! Launch templates.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::items::{self, Collection, answered, find, insert, mismatch, new_tags, state};
use crate::{Call, Fault, Stages, World, timestamp};

/// Launch templates.
pub const TEMPLATE: Collection = Collection {
    name: "launch-template",
    prefix: "lt",
    id: "LaunchTemplateId",
    ids: "LaunchTemplateIds",
    list: "LaunchTemplates",
    filter: "Filters",
    state: "",
    tags: "Tags",
    unknown: "InvalidLaunchTemplateId.NotFound",
    filters: &[("launch-template-name", "LaunchTemplateName")],
};

/// The data of versions, by template and number.
#[derive(Debug, Default)]
struct Versions(BTreeMap<(String, i64), Value>);

/// The id of the template that an input names.
fn named(world: &mut World, call: &Call) -> Result<String, Fault> {
    if let Some(id) = call.str("LaunchTemplateId") {
        find(world, call, &TEMPLATE, id)?;
        return Ok(id.to_owned());
    }
    let name = call.text("LaunchTemplateName");
    let mut all = state(world, call).all(&TEMPLATE);
    let found = all.find(|(_, item)| item.value["LaunchTemplateName"] == name).map(|(id, _)| id.to_owned());
    found.ok_or_else(|| {
        let message = format!("The specified launch template, with template name {name}, does not exist.");
        Fault::new("InvalidLaunchTemplateName.NotFoundException", message)
    })
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("LaunchTemplateName");
    let tags = new_tags(call, &TEMPLATE)?;
    let data = data(call)?;
    let id = world.once(call, "ClientToken", mismatch(), |world| {
        let is_same = |value: &Value| value["LaunchTemplateName"] == name;
        if state(world, call).all(&TEMPLATE).any(|(_, item)| is_same(&item.value)) {
            let message = format!("Launch template name already in use: {name}");
            return Err(Fault::new("InvalidLaunchTemplateName.AlreadyExistsException", message));
        }
        let value = json!({
            "CreatedBy": call.identity,
            "CreateTime": timestamp(call.now),
            "DefaultVersionNumber": 1,
            "LatestVersionNumber": 1,
            "LaunchTemplateName": name,
        });
        let id = insert(world, call, &TEMPLATE, value, Stages::settled(""), tags);
        world.state::<Versions>(&call.scope()).0.insert((id.clone(), 1), data);
        Ok(id)
    })?;
    Ok(json!({ "LaunchTemplate": answered(world, call, &id) }))
}

/// The data of a version as its answer shows it.
fn data(call: &Call) -> Result<Value, Fault> {
    let mut data = call.input["LaunchTemplateData"].clone();
    if data.as_object().is_none_or(serde_json::Map::is_empty) {
        return Err(Fault::new("MissingParameter", "The request must contain the parameter LaunchTemplateData"));
    }
    if data["MetadataOptions"].is_object() {
        data["MetadataOptions"]["State"] = "applied".into();
    }
    Ok(data)
}

fn version(world: &mut World, call: &Call, id: &str, number: i64) -> Option<Value> {
    let template = state(world, call).get(id)?.value.clone();
    let data = world.find::<Versions>(&call.scope())?.0.get(&(id.to_owned(), number))?;
    Some(json!({
        "CreatedBy": template["CreatedBy"],
        "CreateTime": template["CreateTime"],
        "DefaultVersion": template["DefaultVersionNumber"] == number,
        "LaunchTemplateData": data,
        "LaunchTemplateId": id,
        "LaunchTemplateName": template["LaunchTemplateName"],
        "VersionNumber": number,
    }))
}

pub(super) fn create_version(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = named(world, call)?;
    let data = data(call)?;
    let number = world.once(call, "ClientToken", mismatch(), |world| {
        let template = find(world, call, &TEMPLATE, &id)?.value;
        let number = template["LatestVersionNumber"].as_i64().unwrap_or_default() + 1;
        world.state::<Versions>(&call.scope()).0.insert((id.clone(), number), data);
        if let Some(value) = state(world, call).change(&id) {
            value["LatestVersionNumber"] = number.into();
        }
        Ok(number.to_string())
    })?;
    let number = number.parse().unwrap_or_default();
    Ok(json!({ "LaunchTemplateVersion": version(world, call, &id, number) }))
}

fn number_of(template: &Value, text: &str) -> Option<i64> {
    match text {
        "$Default" => template["DefaultVersionNumber"].as_i64(),
        "$Latest" => template["LatestVersionNumber"].as_i64(),
        text => text.parse().ok(),
    }
}

fn no_version(id: &str, text: &str) -> Fault {
    let message = format!("Could not find the specified version {text} for the launch template with ID {id}.");
    Fault::new("InvalidLaunchTemplateId.VersionNotFound", message)
}

pub(super) fn describe_versions(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = named(world, call)?;
    let template = find(world, call, &TEMPLATE, &id)?.value;
    let mut found = Vec::new();
    if call.texts("Versions").is_empty() {
        let latest = template["LatestVersionNumber"].as_i64().unwrap_or_default();
        found.extend((1..=latest).filter_map(|number| version(world, call, &id, number)));
    }
    for text in call.texts("Versions") {
        let one = number_of(&template, text).and_then(|number| version(world, call, &id, number));
        found.push(one.ok_or_else(|| no_version(&id, text))?);
    }
    call.page("LaunchTemplateVersions", found, Fault::new("InvalidNextToken", "The specified token is not valid"))
}

pub(super) fn modify(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = named(world, call)?;
    let template = find(world, call, &TEMPLATE, &id)?.value;
    let text = call.text("DefaultVersion");
    let number = number_of(&template, text).filter(|number| version(world, call, &id, *number).is_some());
    let number = number.ok_or_else(|| no_version(&id, text))?;
    if let Some(value) = state(world, call).change(&id) {
        value["DefaultVersionNumber"] = number.into();
    }
    Ok(json!({ "LaunchTemplate": answered(world, call, &id) }))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = named(world, call)?;
    let answer = answered(world, call, &id);
    world.state::<Versions>(&call.scope()).0.retain(|(template, _), _| *template != id);
    items::remove(world, &call.scope(), &id);
    Ok(json!({ "LaunchTemplate": answer }))
}
