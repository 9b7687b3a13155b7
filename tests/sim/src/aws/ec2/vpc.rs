//! VPCs.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Ec2, new_tags, tag_list};
use crate::{Call, Fault, Quota, Stages, World, passes};

/// VPCs of a region.
pub(super) const VPCS: Quota =
    Quota { service: "vpc", code: "L-F678F1CE", name: "VPCs per Region", value: 5.0, adjustable: true };

/// A VPC.
pub struct Vpc {
    /// Its addresses.
    pub cidr: String,
    /// `pending`, then `available`.
    pub state: Stages,
    tenancy: String,
}

pub(super) fn not_found(id: &str) -> Fault {
    Fault::new("InvalidVpcID.NotFound", format!("The vpc ID '{id}' does not exist"))
}

/// The address and the length of a block, if it is one that VPCs may have.
fn block(cidr: &str) -> Option<(Ipv4Addr, u32)> {
    let (address, length) = cidr.split_once('/')?;
    let (address, length) = (address.parse::<Ipv4Addr>().ok()?, length.parse::<u32>().ok()?);
    let is_network = u32::from(address).trailing_zeros() >= 32_u32.checked_sub(length)?;
    (is_network && (16..=28).contains(&length)).then_some((address, length))
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let cidr = call.text("CidrBlock");
    if cidr.is_empty() {
        return Err(Fault::new("MissingParameter", "Either 'cidrBlock' or 'ipv4IpamPoolId' should be provided."));
    }
    if block(cidr).is_none() {
        return Err(Fault::new("InvalidVpc.Range", format!("The CIDR '{cidr}' is invalid.")));
    }
    let tags = new_tags(call, "vpc")?;
    let limit = world.quotas.of(&call.scope(), &VPCS);
    let vpcs = &mut world.state::<Ec2>(&call.scope()).vpcs;
    if vpcs.len() as f64 >= limit {
        return Err(Fault::new("VpcLimitExceeded", "The maximum number of VPCs has been reached."));
    }
    let id = call.id("vpc");
    let vpc = Vpc {
        cidr: cidr.to_owned(),
        state: call.stages("pending", &[(Duration::from_secs(10), "available")]),
        tenancy: call.str("InstanceTenancy").unwrap_or("default").to_owned(),
    };
    vpcs.insert(id.clone(), vpc);
    world.tags.set(&call.arn(&format!("vpc/{id}")), tags, call.visible());
    Ok(json!({ "Vpc": describe_one(world, call, &id) }))
}

fn describe_one(world: &World, call: &Call, id: &str) -> Value {
    let Some(vpc) = world.find::<Ec2>(&call.scope()).and_then(|state| state.vpcs.get(id)) else { return Value::Null };
    json!({
        "VpcId": id,
        "OwnerId": call.account,
        "CidrBlock": vpc.cidr,
        "InstanceTenancy": vpc.tenancy,
        "IsDefault": false,
        "State": vpc.state.at(call.now),
        "Tags": tag_list(&world.tags.of(&call.arn(&format!("vpc/{id}")))),
    })
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let ids = call.texts("VpcIds");
    let state = world.state::<Ec2>(&call.scope());
    if let Some(unknown) = ids.iter().find(|id| !state.vpcs.contains_key(**id)) {
        return Err(not_found(unknown));
    }
    let known: Vec<String> =
        state.vpcs.keys().filter(|id| ids.is_empty() || ids.contains(&id.as_str())).cloned().collect();
    let mut found = Vec::new();
    for id in known {
        let vpc = describe_one(world, call, &id);
        let text = |member: &str| Some(vec![vpc[member].as_str().unwrap_or_default().to_owned()]);
        let field = |name: &str| match name {
            "cidr" | "cidr-block-association.cidr-block" => text("CidrBlock"),
            "is-default" => Some(vec![vpc["IsDefault"].to_string()]),
            "owner-id" => text("OwnerId"),
            "state" => text("State"),
            "vpc-id" => text("VpcId"),
            _ => None,
        };
        if passes(call.list("Filters"), &world.tags.of(&call.arn(&format!("vpc/{id}"))), field)? {
            found.push(vpc);
        }
    }
    call.page("Vpcs", found, Fault::new("InvalidNextToken", "The specified token is not valid"))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("VpcId");
    if !world.state::<Ec2>(&call.scope()).vpcs.contains_key(id) {
        return Err(not_found(id));
    }
    if world.uses.users(id).next().is_some() {
        let message = format!("The vpc '{id}' has dependencies and cannot be deleted.");
        return Err(Fault::new("DependencyViolation", message));
    }
    world.state::<Ec2>(&call.scope()).vpcs.remove(id);
    world.uses.forget(id);
    world.tags.forget(&call.arn(&format!("vpc/{id}")));
    Ok(json!({}))
}
