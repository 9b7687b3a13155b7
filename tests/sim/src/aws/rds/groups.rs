//! Subnet groups and parameter groups.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{ParameterGroup, Rds, SubnetGroup, check_role, combination, invalid, pairs};
use crate::{Call, Fault, World};

pub(super) fn no_subnet_group(name: &str) -> Fault {
    Fault::new("DBSubnetGroupNotFoundFault", format!("DB subnet group '{name}' does not exist."))
}

pub(super) fn no_parameter_group(name: &str) -> Fault {
    Fault::new("DBParameterGroupNotFound", format!("DBParameterGroup not found: {name}"))
}

fn subnet_arn(call: &Call, id: &str) -> String {
    format!("arn:aws:ec2:{}:{}:subnet/{id}", call.region, call.account)
}

fn check_subnets(world: &World, call: &Call) -> Result<Vec<String>, Fault> {
    let wanted: BTreeSet<&str> = call.texts("SubnetIds").into_iter().collect();
    if let Some(unknown) = wanted.iter().find(|id| !world.tags.has(&subnet_arn(call, id))) {
        return Err(Fault::new("InvalidSubnet", format!("The requested subnet '{unknown}' is not valid.")));
    }
    if wanted.len() < 2 {
        let message = "The DB subnet group doesn't meet Availability Zone (AZ) coverage requirement. Add subnets to cover at \
                       least 2 AZs.";
        return Err(Fault::new("DBSubnetGroupDoesNotCoverEnoughAZs", message));
    }
    Ok(wanted.into_iter().map(str::to_owned).collect())
}

pub(super) fn subnet_group(world: &World, call: &Call, name: &str) -> Option<Value> {
    let group = world.find::<Rds>(&call.scope())?.subnet_groups.get(name)?;
    let zone = |n: usize| format!("{}{}", call.region, char::from(b'a' + u8::try_from(n % 6).unwrap_or_default()));
    let subnets = group.subnets.iter().enumerate().map(|(n, id)| {
        json!({ "SubnetIdentifier": id, "SubnetAvailabilityZone": { "Name": zone(n) }, "SubnetStatus": "Active" })
    });
    Some(json!({
        "DBSubnetGroupName": name,
        "DBSubnetGroupDescription": group.description,
        "SubnetGroupStatus": "Complete",
        "Subnets": subnets.collect::<Vec<_>>(),
        "DBSubnetGroupArn": call.arn(&format!("subgrp:{name}")),
        "SupportedNetworkTypes": ["IPV4"],
    }))
}

/// The subnets of a group.
pub(super) fn subnets(world: &World, call: &Call, name: &str) -> Option<Vec<String>> {
    Some(world.find::<Rds>(&call.scope())?.subnet_groups.get(name)?.subnets.clone())
}

/// The family of a parameter group. Each family has a group of RDS.
pub(super) fn family(world: &World, call: &Call, name: &str) -> Option<String> {
    if let Some(family) = name.strip_prefix("default.") {
        return Some(family.to_owned());
    }
    Some(world.find::<Rds>(&call.scope())?.parameter_groups.get(name)?.family.clone())
}

pub(super) fn create_subnet_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    // RDS keeps names in lower case.
    let name = call.text("DBSubnetGroupName").to_lowercase();
    let tags = pairs(call)?;
    let subnets = check_subnets(world, call)?;
    check_role(
        world,
        call,
        "Missing necessary credentials. Please check \
         http://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAM.ServiceLinkedRoles.html",
    )?;
    let groups = &mut world.state::<Rds>(&call.scope()).subnet_groups;
    if name == "default" || groups.contains_key(&name) {
        let message = format!("The DB subnet group '{name}' already exists.");
        return Err(Fault::new("DBSubnetGroupAlreadyExists", message));
    }
    let description = call.text("DBSubnetGroupDescription").to_owned();
    groups.insert(name.clone(), SubnetGroup { description, subnets });
    world.tags.set(&call.arn(&format!("subgrp:{name}")), tags, call.visible());
    Ok(json!({ "DBSubnetGroup": subnet_group(world, call, &name).unwrap_or_default() }))
}

pub(super) fn modify_subnet_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBSubnetGroupName").to_lowercase();
    let subnets = check_subnets(world, call)?;
    let group = world.state::<Rds>(&call.scope()).subnet_groups.get_mut(&name).ok_or_else(|| no_subnet_group(&name))?;
    group.subnets = subnets;
    if let Some(description) = call.str("DBSubnetGroupDescription") {
        description.clone_into(&mut group.description);
    }
    Ok(json!({ "DBSubnetGroup": subnet_group(world, call, &name).unwrap_or_default() }))
}

pub(super) fn describe_subnet_groups(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let asked = call.str("DBSubnetGroupName").map(str::to_lowercase);
    let names: Vec<String> = world.state::<Rds>(&call.scope()).subnet_groups.keys().cloned().collect();
    if let Some(asked) = asked.as_ref().filter(|asked| !names.contains(asked)) {
        return Err(no_subnet_group(asked));
    }
    let names = names.iter().filter(|name| asked.as_ref().is_none_or(|asked| asked == *name));
    let groups = names.filter_map(|name| subnet_group(world, call, name)).collect();
    call.page("DBSubnetGroups", groups, invalid("Invalid marker"))
}

pub(super) fn delete_subnet_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBSubnetGroupName").to_lowercase();
    let state = world.state::<Rds>(&call.scope());
    if !state.subnet_groups.contains_key(&name) {
        return Err(no_subnet_group(&name));
    }
    if let Some((user, _)) = state.instances.iter().find(|(_, instance)| instance.subnet_group == name) {
        let message = format!(
            "Cannot delete the subnet group '{name}' because at least one database instance: {user} is still using it."
        );
        return Err(Fault::new("InvalidDBSubnetGroupStateFault", message));
    }
    state.subnet_groups.remove(&name);
    world.tags.forget(&call.arn(&format!("subgrp:{name}")));
    Ok(json!({}))
}

fn shown(call: &Call, name: &str, group: &ParameterGroup) -> Value {
    json!({
        "DBParameterGroupName": name,
        "DBParameterGroupFamily": group.family,
        "Description": group.description,
        "DBParameterGroupArn": call.arn(&format!("pg:{name}")),
    })
}

pub(super) fn create_parameter_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBParameterGroupName").to_lowercase();
    let tags = pairs(call)?;
    let family = call.text("DBParameterGroupFamily");
    let is_known = super::instances::VERSIONS.iter().any(|(major, _)| family == format!("postgres{major}"));
    if !is_known {
        return Err(invalid(format!("ParameterGroupFamily {family} is not a valid parameter group family")));
    }
    let groups = &mut world.state::<Rds>(&call.scope()).parameter_groups;
    if groups.contains_key(&name) {
        return Err(Fault::new("DBParameterGroupAlreadyExists", format!("Parameter group {name} already exists")));
    }
    let description = call.text("Description").to_owned();
    let group = ParameterGroup { family: family.to_owned(), description, changed: BTreeMap::new() };
    let answer = json!({ "DBParameterGroup": shown(call, &name, &group) });
    groups.insert(name.clone(), group);
    world.tags.set(&call.arn(&format!("pg:{name}")), tags, call.visible());
    Ok(answer)
}

pub(super) fn describe_parameter_groups(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let asked = call.str("DBParameterGroupName").map(str::to_lowercase);
    let groups = &world.state::<Rds>(&call.scope()).parameter_groups;
    if let Some(asked) = asked.as_ref().filter(|asked| !groups.contains_key(*asked)) {
        return Err(no_parameter_group(asked));
    }
    let groups = groups.iter().filter(|(name, _)| asked.as_ref().is_none_or(|asked| asked == *name));
    let groups = groups.map(|(name, group)| shown(call, name, group)).collect();
    call.page("DBParameterGroups", groups, invalid("Invalid marker"))
}

/// Parameters, and whether they are static.
const PARAMETERS: &[(&str, bool)] = &[
    ("log_min_duration_statement", false),
    ("max_connections", true),
    (FORCE_SSL, false),
    ("shared_preload_libraries", true),
];

const FORCE_SSL: &str = "rds.force_ssl";

/// The default of a parameter in a family. TLS is required from PostgreSQL 15 on:
/// <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/PostgreSQL.Concepts.General.SSL.html>.
fn default_of(family: &str, name: &str) -> Option<&'static str> {
    let version: u32 = family.trim_start_matches("postgres").parse().unwrap_or_default();
    (name == FORCE_SSL).then_some(if version >= 15 { "1" } else { "0" })
}

fn is_static(name: &str) -> Result<bool, Fault> {
    let known = PARAMETERS.iter().find(|(known, _)| *known == name).map(|(_, is_static)| *is_static);
    known.ok_or_else(|| invalid(format!("Could not find parameter with name: {name}")))
}

pub(super) fn describe_parameters(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBParameterGroupName");
    let group = world.state::<Rds>(&call.scope()).parameter_groups.get(name).ok_or_else(|| no_parameter_group(name))?;
    let of = |name: &str, value: Option<&(String, String)>| {
        let kind = if is_static(name).unwrap_or_default() { "static" } else { "dynamic" };
        let mut one = json!({ "ParameterName": name, "ApplyType": kind, "IsModifiable": true });
        let default = default_of(&group.family, name);
        // A value that is the default does not count as set, whoever set it.
        let value = value.filter(|(value, _)| Some(value.as_str()) != default);
        one["Source"] = if value.is_some() { "user" } else { "engine-default" }.into();
        one["ApplyMethod"] = value.map_or("pending-reboot", |(_, method)| method.as_str()).into();
        if let Some(value) = value.map(|(value, _)| value.as_str()).or(default) {
            one["ParameterValue"] = value.into();
        }
        one
    };
    let names: Vec<&str> = call
        .list("Filters")
        .iter()
        .filter_map(|one| one["Values"].as_array())
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if let Some(other) = call.list("Filters").iter().find(|one| one["Name"] != "parameter-name") {
        return Err(invalid(format!("Unrecognized filter name: {}", other["Name"])));
    }
    let all = PARAMETERS.iter().filter(|(name, _)| names.is_empty() || names.contains(name));
    let all = all.map(|(name, _)| of(name, group.changed.get(*name)));
    let all = all.filter(|one| call.str("Source").is_none_or(|source| one["Source"] == source)).collect();
    call.page("Parameters", all, invalid("Invalid marker"))
}

fn change(world: &mut World, call: &Call, is_reset: bool) -> Result<Value, Fault> {
    let name = call.text("DBParameterGroupName");
    let parameters = call.list("Parameters");
    if parameters.len() > 20 || parameters.is_empty() && !call.is("ResetAllParameters") {
        return Err(invalid("A maximum of 20 parameters can be modified in a single request."));
    }
    for parameter in parameters {
        let parameter_name = parameter["ParameterName"].as_str().unwrap_or_default();
        if is_static(parameter_name)? && parameter["ApplyMethod"] == "immediate" {
            let message = format!("cannot use immediate apply method for static parameter: {parameter_name}");
            return Err(combination(message));
        }
        if !is_reset && parameter["ParameterValue"].is_null() {
            return Err(invalid(format!("The parameter {parameter_name} has no value")));
        }
    }
    let group =
        world.state::<Rds>(&call.scope()).parameter_groups.get_mut(name).ok_or_else(|| no_parameter_group(name))?;
    if call.is("ResetAllParameters") {
        group.changed.clear();
    }
    for parameter in parameters {
        let text = |member: &str| parameter[member].as_str().unwrap_or_default().to_owned();
        match is_reset {
            true => drop(group.changed.remove(&text("ParameterName"))),
            false => drop(group.changed.insert(text("ParameterName"), (text("ParameterValue"), text("ApplyMethod")))),
        }
    }
    Ok(json!({ "DBParameterGroupName": name }))
}

pub(super) fn modify_parameter_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    change(world, call, false)
}

pub(super) fn reset_parameter_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    change(world, call, true)
}

pub(super) fn delete_parameter_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBParameterGroupName");
    let state = world.state::<Rds>(&call.scope());
    if !state.parameter_groups.contains_key(name) {
        return Err(no_parameter_group(name));
    }
    let uses = |instance: &super::Instance| instance.shown["DBParameterGroups"][0]["DBParameterGroupName"] == name;
    if state.instances.values().any(uses) {
        let message =
            "One or more database instances are still members of this parameter group, so the group cannot be deleted";
        return Err(Fault::new("InvalidDBParameterGroupState", message));
    }
    state.parameter_groups.remove(name);
    world.tags.forget(&call.arn(&format!("pg:{name}")));
    Ok(json!({}))
}
