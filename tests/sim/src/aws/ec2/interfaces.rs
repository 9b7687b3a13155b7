//! Network interfaces: other services create them, and keep subnets and groups from being deleted by them.

use serde_json::{Value, json};

use super::items::{self, Collection, Ec2, find, state};
use crate::{Call, Fault, Scope, Stages, World};

/// Network interfaces.
pub const INTERFACE: Collection = Collection {
    name: "network-interface",
    prefix: "eni",
    id: "NetworkInterfaceId",
    ids: "NetworkInterfaceIds",
    list: "NetworkInterfaces",
    filter: "Filters",
    state: "Status",
    tags: "TagSet",
    unknown: "InvalidNetworkInterfaceID.NotFound",
    filters: &[
        ("attachment.instance-id", "Attachment.InstanceId"),
        ("description", "Description"),
        ("group-id", "Groups.GroupId"),
        ("interface-type", "InterfaceType"),
        ("network-interface-id", "NetworkInterfaceId"),
        ("requester-managed", "RequesterManaged"),
        ("status", "Status"),
        ("subnet-id", "SubnetId"),
        ("vpc-id", "VpcId"),
    ],
};

/// An interface that a service of AWS uses.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    /// Its subnet, which exists.
    pub subnet: &'a str,
    /// Its security groups.
    pub groups: &'a [String],
    /// Its description, such as `ELB net/name/id`.
    pub description: &'a str,
    /// Its type, such as `network_load_balancer`; a caller may delete only those that are `interface` and of no load balancer.
    pub kind: &'a str,
    /// Its public address, if it has one.
    pub public_address: Option<&'a str>,
}

/// Adds an interface in use. [`detach`] removes it.
pub fn attach(world: &mut World, call: &Call, new: &New<'_>) -> String {
    let id = call.id("eni");
    place(world, &call.scope(), &id, new, "in-use", Vec::new());
    id
}

/// Removes an interface.
pub fn detach(world: &mut World, scope: &Scope, id: &str) {
    items::remove(world, scope, id);
}

/// Adds an interface in a state, with tags.
pub fn place(
    world: &mut World,
    scope: &Scope,
    id: &str,
    new: &New<'_>,
    status: &'static str,
    tags: Vec<(String, String)>,
) {
    let subnet = world.state::<Ec2>(scope).get(new.subnet).map(|item| item.value.clone()).unwrap_or_default();
    let groups: Vec<Value> = new.groups.iter().map(|group| json!({ "GroupId": group })).collect();
    // Those of classic load balancers have no type of their own.
    let is_managed = new.kind != "interface" || new.description.starts_with("ELB ");
    let mut value = json!({
        "AvailabilityZone": subnet["AvailabilityZone"],
        "Description": new.description,
        "Groups": groups,
        "InterfaceType": new.kind,
        "OwnerId": scope.account,
        "RequesterManaged": is_managed,
        "SubnetId": new.subnet,
        "VpcId": subnet["VpcId"],
    });
    if let Some(address) = new.public_address {
        value["Association"] = json!({ "PublicIp": address });
    }
    let visible = world.now();
    items::place(world, scope, (id, &INTERFACE), value, Stages::settled(status), (tags, visible));
    world.uses.add(id, new.subnet);
    new.groups.iter().for_each(|group| world.uses.add(id, group));
}

/// Whether an interface of a VPC has a public address.
pub(super) fn has_public_address(world: &mut World, call: &Call, vpc: &str) -> bool {
    let is_mapped = |value: &Value| value["VpcId"] == vpc && value["Association"].is_object();
    state(world, call).all(&INTERFACE).any(|(_, item)| is_mapped(&item.value))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("NetworkInterfaceId");
    let interface = find(world, call, &INTERFACE, id)?;
    if interface.value["RequesterManaged"] == true {
        let message = format!("You are not allowed to manage '{id}'.");
        return Err(Fault::new("OperationNotPermitted", message));
    }
    if interface.state.at(call.now) != "available" {
        let message = format!("Network interface '{id}' is currently in use.");
        return Err(Fault::new("InvalidNetworkInterface.InUse", message));
    }
    items::remove(world, &call.scope(), id);
    Ok(json!({}))
}
