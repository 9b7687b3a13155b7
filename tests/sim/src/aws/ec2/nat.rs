//! Elastic IP addresses and NAT gateways.

use std::time::Duration;

use serde_json::{Value, json};

use super::items::{self, Collection, Ec2, answered, below, find, insert, mismatch, new_tags, state};
use super::{interfaces, network};
use crate::{Call, Fault, Quota, Stages, World, later, timestamp};

/// Elastic IP addresses.
pub const ADDRESS: Collection = Collection {
    name: "elastic-ip",
    prefix: "eipalloc",
    id: "AllocationId",
    ids: "AllocationIds",
    list: "Addresses",
    filter: "Filters",
    state: "",
    tags: "Tags",
    unknown: "InvalidAllocationID.NotFound",
    filters: &[("allocation-id", "AllocationId"), ("association-id", "AssociationId"), ("public-ip", "PublicIp")],
};

/// NAT gateways.
pub const GATEWAY: Collection = Collection {
    name: "natgateway",
    prefix: "nat",
    id: "NatGatewayId",
    ids: "NatGatewayIds",
    list: "NatGateways",
    filter: "Filter",
    state: "State",
    tags: "Tags",
    unknown: "NatGatewayNotFound",
    filters: &[("nat-gateway-id", "NatGatewayId"), ("state", "State"), ("subnet-id", "SubnetId"), ("vpc-id", "VpcId")],
};

pub(super) const ADDRESSES: Quota =
    Quota { service: "ec2", code: "L-0263D0A3", name: "EC2-VPC Elastic IPs", value: 5.0, adjustable: true };
pub(super) const GATEWAYS: Quota = Quota {
    service: "vpc",
    code: "L-FE5A380F",
    name: "NAT gateways per Availability Zone",
    value: 5.0,
    adjustable: true,
};

/// How long a gateway is shown after its end.
const SHOWN: Duration = Duration::from_secs(3600);

pub(super) fn allocate(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = new_tags(call, &ADDRESS)?;
    let count = state(world, call).all(&ADDRESS).count();
    below(world, call, &ADDRESSES, count, "AddressLimitExceeded")?;
    // A documentation range: nothing here is ever reached.
    let address = format!("203.0.113.{}", call.random.number() % 256);
    let value =
        json!({ "Domain": "vpc", "NetworkBorderGroup": call.region, "PublicIp": address, "PublicIpv4Pool": "amazon" });
    let id = insert(world, call, &ADDRESS, value.clone(), Stages::settled(""), tags);
    let mut answer = value;
    answer["AllocationId"] = id.into();
    Ok(answer)
}

pub(super) fn release(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("AllocationId");
    let address = find(world, call, &ADDRESS, id)?;
    if address.value["AssociationId"].is_string() {
        let message = format!("Address {} is in use.", address.value["PublicIp"].as_str().unwrap_or_default());
        return Err(Fault::new("InvalidIPAddress.InUse", message));
    }
    if state(world, call).held.get(id).is_some_and(|until| *until > call.now) {
        return Err(Fault::new("AuthFailure", "You do not have permission to access the specified resource."));
    }
    items::remove(world, &call.scope(), id);
    Ok(json!({}))
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (subnet, address) = (call.text("SubnetId"), call.text("AllocationId"));
    let tags = new_tags(call, &GATEWAY)?;
    let network = find(world, call, &network::SUBNET, subnet)?.value;
    let allocation = find(world, call, &ADDRESS, address)?.value;
    let vpc = network["VpcId"].as_str().unwrap_or_default().to_owned();
    let id = world.once(call, "ClientToken", mismatch(), |world| {
        let zone = &network["AvailabilityZone"];
        let of_zone = |item: &items::Item| {
            !matches!(item.state.at(call.now), "deleted" | "failed") && item.value["zone"] == *zone
        };
        let count = state(world, call).all(&GATEWAY).filter(|(_, item)| of_zone(item)).count();
        below(world, call, &GATEWAYS, count, "NatGatewayLimitExceeded")?;
        Ok(make(world, call, (&vpc, subnet, zone), (address, &allocation), tags))
    })?;
    let mut answer = json!({ "NatGateway": clean(answered(world, call, &id)) });
    if let Some(token) = call.str("ClientToken") {
        answer["ClientToken"] = token.into();
    }
    Ok(answer)
}

/// Without the zone, which is only known here, and without the reason of a failure that is not known yet.
fn clean(mut gateway: Value) -> Value {
    let is_pending = gateway["State"] == "pending";
    if let Some(members) = gateway.as_object_mut() {
        members.remove("zone");
        if is_pending {
            members.remove("FailureCode");
            members.remove("FailureMessage");
        }
    }
    gateway
}

fn make(
    world: &mut World,
    call: &Call,
    (vpc, subnet, zone): (&str, &str, &Value),
    (address, allocation): (&str, &Value),
    tags: Vec<(String, String)>,
) -> String {
    let is_taken = allocation["AssociationId"].is_string();
    let failure = if is_taken {
        Some(("Resource.AlreadyAssociated", format!("Elastic IP address [{address}] is already associated")))
    } else if network::gateway_of(world, call, vpc).is_none() {
        Some(("Gateway.NotAttached", format!("Network {vpc} has no Internet gateway attached")))
    } else {
        None
    };
    let mut value = json!({
        "ConnectivityType": "public",
        "CreateTime": timestamp(call.now),
        "NatGatewayAddresses": [{ "AllocationId": address, "IsPrimary": true, "Status": "associating" }],
        "SubnetId": subnet,
        "VpcId": vpc,
        "zone": zone,
    });
    let stages = match &failure {
        Some(_) => call.stages("pending", &[(Duration::from_secs(15), "failed")]),
        None => call.stages("pending", &[(Duration::from_secs(90), "available")]),
    };
    if let Some((code, message)) = failure {
        (value["FailureCode"], value["FailureMessage"]) = (code.into(), message.into());
        value["NatGatewayAddresses"][0]["Status"] = "failed".into();
        let id = insert(world, call, &GATEWAY, value, stages, tags);
        let (scope, gone) = (call.scope(), id.clone());
        world.defer(call.due(SHOWN), move |world| items::remove(world, &scope, &gone));
        return id;
    }
    let id = insert(world, call, &GATEWAY, value, stages, tags);
    let interface = interfaces::attach(
        world,
        call,
        &interfaces::New {
            subnet,
            groups: &[],
            description: &format!("Interface for NAT Gateway {id}"),
            kind: "natGateway",
            public_address: allocation["PublicIp"].as_str(),
        },
    );
    let association = call.id("eipassoc");
    if let Some(value) = state(world, call).change(&id) {
        let one = &mut value["NatGatewayAddresses"][0];
        (one["AssociationId"], one["NetworkInterfaceId"]) = (association.clone().into(), interface.clone().into());
        (one["PublicIp"], one["Status"]) = (allocation["PublicIp"].clone(), "succeeded".into());
    }
    if let Some(value) = state(world, call).change(address) {
        (value["AssociationId"], value["NetworkInterfaceId"]) = (association.into(), interface.into());
        value["NetworkInterfaceOwnerId"] = call.account.clone().into();
    }
    world.uses.add(&id, vpc);
    id
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    items::described(world, call, &GATEWAY, |_, gateway| *gateway = clean(gateway.take()))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("NatGatewayId").to_owned();
    let gateway = find(world, call, &GATEWAY, &id)?;
    let answer = json!({ "NatGatewayId": id });
    if matches!(gateway.state.at(call.now), "deleting" | "deleted") {
        return Ok(answer);
    }
    let stages = call.stages("deleting", &[(Duration::from_secs(60), "deleted")]);
    state(world, call).set_state(&id, stages);
    let (scope, gone) = (call.scope(), id.clone());
    let held = call.timing.consistency;
    world.defer(call.due(Duration::from_secs(60)), move |world| {
        let until = later(world.now(), held);
        let one = gateway.value["NatGatewayAddresses"][0].clone();
        let text = |member: &str| one[member].as_str().unwrap_or_default().to_owned();
        items::remove(world, &scope, &text("NetworkInterfaceId"));
        let known = world.state::<Ec2>(&scope).change(&text("AllocationId"));
        // Another gateway may have the address of one that failed.
        let is_its_own = |value: &Value| value["AssociationId"] == one["AssociationId"];
        if let Some(value) = known.filter(|value| one["AssociationId"].is_string() && is_its_own(value)) {
            for member in ["AssociationId", "NetworkInterfaceId", "NetworkInterfaceOwnerId"] {
                value.as_object_mut().into_iter().for_each(|members| drop(members.remove(member)));
            }
            world.state::<Ec2>(&scope).held.insert(text("AllocationId"), until);
        }
        world.uses.forget(&id);
    });
    let scope = call.scope();
    world.defer(call.due(SHOWN), move |world| items::remove(world, &scope, &gone));
    Ok(answer)
}
