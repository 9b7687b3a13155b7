//! VPCs, subnets and internet gateways.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use super::items::{self, Collection, answered, below, find, insert, new_tags, state, unused};
use super::{groups, interfaces, routes, zones};
use crate::{Call, Fault, Quota, Stages, World};

/// VPCs.
pub const VPC: Collection = Collection {
    name: "vpc",
    prefix: "vpc",
    id: "VpcId",
    ids: "VpcIds",
    list: "Vpcs",
    filter: "Filters",
    state: "State",
    tags: "Tags",
    unknown: "InvalidVpcID.NotFound",
    filters: &[
        ("cidr", "CidrBlock"),
        ("cidr-block-association.cidr-block", "CidrBlock"),
        ("is-default", "IsDefault"),
        ("owner-id", "OwnerId"),
        ("state", "State"),
        ("vpc-id", "VpcId"),
    ],
};

/// Subnets.
pub const SUBNET: Collection = Collection {
    name: "subnet",
    prefix: "subnet",
    id: "SubnetId",
    ids: "SubnetIds",
    list: "Subnets",
    filter: "Filters",
    state: "State",
    tags: "Tags",
    unknown: "InvalidSubnetID.NotFound",
    filters: &[
        ("availability-zone", "AvailabilityZone"),
        ("availability-zone-id", "AvailabilityZoneId"),
        ("cidr-block", "CidrBlock"),
        ("state", "State"),
        ("subnet-id", "SubnetId"),
        ("vpc-id", "VpcId"),
    ],
};

/// Internet gateways.
pub const GATEWAY: Collection = Collection {
    name: "internet-gateway",
    prefix: "igw",
    id: "InternetGatewayId",
    ids: "InternetGatewayIds",
    list: "InternetGateways",
    filter: "Filters",
    state: "",
    tags: "Tags",
    unknown: "InvalidInternetGatewayID.NotFound",
    filters: &[
        ("attachment.state", "Attachments.State"),
        ("attachment.vpc-id", "Attachments.VpcId"),
        ("internet-gateway-id", "InternetGatewayId"),
        ("owner-id", "OwnerId"),
    ],
};

pub(super) const VPCS: Quota =
    Quota { service: "vpc", code: "L-F678F1CE", name: "VPCs per Region", value: 5.0, adjustable: true };
pub(super) const SUBNETS: Quota =
    Quota { service: "vpc", code: "L-407747CB", name: "Subnets per VPC", value: 200.0, adjustable: true };
pub(super) const GATEWAYS: Quota =
    Quota { service: "vpc", code: "L-A4707A72", name: "Internet gateways per Region", value: 5.0, adjustable: true };

/// The addresses of a block, if it is one that VPCs and subnets may have: the first, and one after the last.
fn block(cidr: &str) -> Option<(u64, u64)> {
    let (address, length) = cidr.split_once('/')?;
    let (address, length) = (address.parse::<Ipv4Addr>().ok()?, length.parse::<u32>().ok()?);
    let size = 1_u64 << 32_u32.checked_sub(length)?;
    // AWS clears the bits of hosts.
    let first = u64::from(u32::from(address)) / size * size;
    (16..=28).contains(&length).then_some((first, first + size))
}

/// A block with its first address.
fn canonical(cidr: &str, first: u64) -> String {
    let address = Ipv4Addr::from(u32::try_from(first).unwrap_or_default());
    format!("{address}/{}", cidr.split_once('/').map_or("", |(_, length)| length))
}

pub(super) fn create_vpc(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let cidr = call.text("CidrBlock");
    if cidr.is_empty() {
        return Err(Fault::new("MissingParameter", "Either 'cidrBlock' or 'ipv4IpamPoolId' should be provided."));
    }
    let Some((first, _)) = block(cidr) else {
        return Err(Fault::new("InvalidVpc.Range", format!("The CIDR '{cidr}' is invalid.")));
    };
    let tags = new_tags(call, &VPC)?;
    let count = state(world, call).all(&VPC).count();
    below(world, call, &VPCS, count, "VpcLimitExceeded")?;
    let value = json!({
        "OwnerId": call.account,
        "CidrBlock": canonical(cidr, first),
        "InstanceTenancy": call.str("InstanceTenancy").unwrap_or("default"),
        "IsDefault": false,
    });
    let stages = call.stages("pending", &[(Duration::from_secs(10), "available")]);
    let id = insert(world, call, &VPC, value, stages, tags);
    routes::main_table(world, call, &id);
    groups::default_group(world, call, &id);
    Ok(json!({ "Vpc": answered(world, call, &id) }))
}

/// The attributes lie beside the members that descriptions show.
pub(super) fn vpc_attribute(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("VpcId");
    find(world, call, &VPC, id)?;
    let is_on = attribute(world, call, id, call.text("Attribute"));
    let member = match call.text("Attribute") {
        "enableDnsHostnames" => "EnableDnsHostnames",
        "enableDnsSupport" => "EnableDnsSupport",
        _ => "EnableNetworkAddressUsageMetrics",
    };
    let mut answer = json!({ "VpcId": id });
    answer[member] = json!({ "Value": is_on });
    Ok(answer)
}

pub(super) fn attribute(world: &World, call: &Call, vpc: &str, name: &str) -> bool {
    let known =
        world.find::<Attributes>(&call.scope()).and_then(|known| known.0.get(&(vpc.to_owned(), name.to_owned())));
    known.copied().unwrap_or(name == "enableDnsSupport")
}

/// Attributes of VPCs that differ from their defaults.
#[derive(Default)]
struct Attributes(std::collections::BTreeMap<(String, String), bool>);

pub(super) fn modify_vpc(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("VpcId");
    find(world, call, &VPC, id)?;
    let members = [("EnableDnsHostnames", "enableDnsHostnames"), ("EnableDnsSupport", "enableDnsSupport")];
    let set: Vec<_> =
        members.iter().filter_map(|(member, name)| Some((name, call.input[*member]["Value"].as_bool()?))).collect();
    let [(name, value)] = set[..] else {
        return Err(Fault::new("InvalidParameterCombination", "Fields for multiple attribute types specified"));
    };
    world.state::<Attributes>(&call.scope()).0.insert((id.to_owned(), (*name).to_owned()), value);
    Ok(json!({}))
}

pub(super) fn delete_vpc(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("VpcId");
    find(world, call, &VPC, id)?;
    unused(world, id, &format!("The vpc '{id}' has dependencies and cannot be deleted."))?;
    let of_vpc = |value: &Value| value["VpcId"] == id;
    let inside: Vec<String> = [&routes::TABLE, &groups::GROUP]
        .iter()
        .flat_map(|kind| {
            state(world, call)
                .all(kind)
                .filter(|(_, item)| of_vpc(&item.value))
                .map(|(id, _)| id.to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    // The main route table and the default group are all that is left.
    inside.iter().for_each(|one| items::remove(world, &call.scope(), one));
    items::remove(world, &call.scope(), id);
    Ok(json!({}))
}

pub(super) fn create_subnet(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (vpc, cidr) = (call.text("VpcId"), call.text("CidrBlock"));
    let network = find(world, call, &VPC, vpc)?;
    let tags = new_tags(call, &SUBNET)?;
    let zone = zones::chosen(call)?;
    let outer = block(network.value["CidrBlock"].as_str().unwrap_or_default()).unwrap_or_default();
    let Some((first, last)) = block(cidr).filter(|inner| outer.0 <= inner.0 && inner.1 <= outer.1) else {
        return Err(Fault::new("InvalidSubnet.Range", format!("The CIDR '{cidr}' is invalid.")));
    };
    let of_vpc: Vec<Value> = state(world, call)
        .all(&SUBNET)
        .filter(|(_, item)| item.value["VpcId"] == vpc)
        .map(|(_, item)| item.value.clone())
        .collect();
    let overlaps = |other: &Value| {
        block(other["CidrBlock"].as_str().unwrap_or_default()).is_some_and(|other| first < other.1 && other.0 < last)
    };
    if of_vpc.iter().any(overlaps) {
        let message = format!("The CIDR '{cidr}' conflicts with another subnet");
        return Err(Fault::new("InvalidSubnet.Conflict", message));
    }
    below(world, call, &SUBNETS, of_vpc.len(), "SubnetLimitExceeded")?;
    let value = json!({
        "AvailabilityZone": zone.name,
        "AvailabilityZoneId": zone.id,
        // AWS keeps five addresses for itself.
        "AvailableIpAddressCount": last - first - 5,
        "CidrBlock": canonical(cidr, first),
        "DefaultForAz": false,
        "MapPublicIpOnLaunch": false,
        "OwnerId": call.account,
        "VpcId": vpc,
    });
    let stages = call.stages("pending", &[(Duration::from_secs(3), "available")]);
    let id = insert(world, call, &SUBNET, value, stages, tags);
    world.uses.add(&id, vpc);
    let arn = call.arn(&format!("subnet/{id}"));
    if let Some(value) = state(world, call).change(&id) {
        value["SubnetArn"] = arn.into();
    }
    Ok(json!({ "Subnet": answered(world, call, &id) }))
}

pub(super) fn modify_subnet(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("SubnetId");
    find(world, call, &SUBNET, id)?;
    if let (Some(is_public), Some(value)) =
        (call.input["MapPublicIpOnLaunch"]["Value"].as_bool(), state(world, call).change(id))
    {
        value["MapPublicIpOnLaunch"] = is_public.into();
    }
    Ok(json!({}))
}

pub(super) fn delete_subnet(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("SubnetId");
    find(world, call, &SUBNET, id)?;
    unused(world, id, &format!("The subnet '{id}' has dependencies and cannot be deleted."))?;
    routes::forget_subnet(world, call, id);
    items::remove(world, &call.scope(), id);
    Ok(json!({}))
}

pub(super) fn create_gateway(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = new_tags(call, &GATEWAY)?;
    let count = state(world, call).all(&GATEWAY).count();
    below(world, call, &GATEWAYS, count, "InternetGatewayLimitExceeded")?;
    let value = json!({ "Attachments": [], "OwnerId": call.account });
    let id = insert(world, call, &GATEWAY, value, Stages::settled(""), tags);
    Ok(json!({ "InternetGateway": answered(world, call, &id) }))
}

/// The internet gateway of a VPC.
pub(super) fn gateway_of(world: &mut World, call: &Call, vpc: &str) -> Option<String> {
    let is_attached = |value: &Value| value["Attachments"][0]["VpcId"] == vpc;
    state(world, call).all(&GATEWAY).find(|(_, item)| is_attached(&item.value)).map(|(id, _)| id.to_owned())
}

pub(super) fn attach_gateway(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (id, vpc) = (call.text("InternetGatewayId"), call.text("VpcId"));
    let gateway = find(world, call, &GATEWAY, id)?;
    find(world, call, &VPC, vpc)?;
    if gateway.value["Attachments"][0].is_object() {
        let message =
            format!("resource {id} is already attached to network {}", gateway.value["Attachments"][0]["VpcId"]);
        return Err(Fault::new("Resource.AlreadyAssociated", message));
    }
    if gateway_of(world, call, vpc).is_some() {
        let message = format!("Network {vpc} already has an internet gateway attached");
        return Err(Fault::new("InvalidParameterValue", message));
    }
    if let Some(value) = state(world, call).change(id) {
        value["Attachments"] = json!([{ "State": "attached", "VpcId": vpc }]);
    }
    world.uses.add(id, vpc);
    Ok(json!({}))
}

pub(super) fn detach_gateway(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (id, vpc) = (call.text("InternetGatewayId"), call.text("VpcId"));
    let gateway = find(world, call, &GATEWAY, id)?;
    if gateway.value["Attachments"][0]["VpcId"] != vpc {
        return Err(Fault::new("Gateway.NotAttached", format!("resource {id} is not attached to network {vpc}")));
    }
    if interfaces::has_public_address(world, call, vpc) {
        let message = format!(
            "Network {vpc} has some mapped public address(es). Please unmap those public address(es) before detaching the gateway."
        );
        return Err(Fault::new("DependencyViolation", message));
    }
    if let Some(value) = state(world, call).change(id) {
        value["Attachments"] = json!([]);
    }
    world.uses.remove(id, vpc);
    Ok(json!({}))
}

pub(super) fn delete_gateway(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("InternetGatewayId");
    let gateway = find(world, call, &GATEWAY, id)?;
    if gateway.value["Attachments"][0].is_object() {
        let message = format!("The internetGateway '{id}' has dependencies and cannot be deleted.");
        return Err(Fault::new("DependencyViolation", message));
    }
    items::remove(world, &call.scope(), id);
    Ok(json!({}))
}
