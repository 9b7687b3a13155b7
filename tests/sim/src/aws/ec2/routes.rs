//! Route tables.

use serde_json::{Value, json};

use super::items::{self, Collection, Ec2, answered, find, insert, mismatch, new_tags, state};
use super::{nat, network};
use crate::{Call, Fault, Quota, Stages, World};

/// Route tables.
pub const TABLE: Collection = Collection {
    name: "route-table",
    prefix: "rtb",
    id: "RouteTableId",
    ids: "RouteTableIds",
    list: "RouteTables",
    filter: "Filters",
    state: "",
    tags: "Tags",
    unknown: "InvalidRouteTableID.NotFound",
    filters: &[
        ("association.main", "Associations.Main"),
        ("association.route-table-association-id", "Associations.RouteTableAssociationId"),
        ("association.subnet-id", "Associations.SubnetId"),
        ("route-table-id", "RouteTableId"),
        ("route.nat-gateway-id", "Routes.NatGatewayId"),
        ("vpc-id", "VpcId"),
    ],
};

pub(super) const ROUTES: Quota =
    Quota { service: "vpc", code: "L-93826ACB", name: "Routes per route table", value: 500.0, adjustable: true };

fn table(world: &mut World, call: &Call, vpc: &str) -> Result<Value, Fault> {
    let network = find(world, call, &network::VPC, vpc)?;
    let local = json!({
        "DestinationCidrBlock": network.value["CidrBlock"],
        "GatewayId": "local",
        "Origin": "CreateRouteTable",
        "State": "active",
    });
    Ok(json!({ "Associations": [], "OwnerId": call.account, "PropagatingVgws": [], "Routes": [local], "VpcId": vpc }))
}

fn association(call: &Call, table: &str, target: (&str, Value)) -> Value {
    let mut association = json!({
        "AssociationState": { "State": "associated" },
        "Main": false,
        "RouteTableAssociationId": call.id("rtbassoc"),
        "RouteTableId": table,
    });
    association[target.0] = target.1;
    association
}

/// Every VPC has one from the start.
pub(super) fn main_table(world: &mut World, call: &Call, vpc: &str) {
    let Ok(value) = table(world, call, vpc) else { return };
    let id = insert(world, call, &TABLE, value, Stages::settled(""), Vec::new());
    let main = association(call, &id, ("Main", true.into()));
    if let Some(value) = state(world, call).change(&id) {
        value["Associations"] = json!([main]);
    }
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = new_tags(call, &TABLE)?;
    let vpc = call.text("VpcId");
    let value = table(world, call, vpc)?;
    let id = world.once(call, "ClientToken", mismatch(), |world| {
        let id = insert(world, call, &TABLE, value, Stages::settled(""), tags);
        world.uses.add(&id, vpc);
        Ok(id)
    })?;
    let mut answer = json!({ "RouteTable": answered(world, call, &id) });
    if let Some(token) = call.str("ClientToken") {
        answer["ClientToken"] = token.into();
    }
    Ok(answer)
}

/// A route leads nowhere once its target is gone.
pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    items::described(world, call, &TABLE, |world, table| {
        let routes = table["Routes"].as_array_mut().into_iter().flatten();
        for route in routes {
            let target = route["NatGatewayId"].as_str().or(route["GatewayId"].as_str()).unwrap_or_default().to_owned();
            let item = world.find::<Ec2>(&call.scope()).and_then(|known| known.get(&target));
            let is_there = item.is_some_and(|item| item.state.at(call.now) != "deleted");
            if target != "local" && !is_there {
                route["State"] = "blackhole".into();
            }
        }
    })
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("RouteTableId");
    let table = find(world, call, &TABLE, id)?;
    if table.value["Associations"].as_array().is_some_and(|associations| !associations.is_empty()) {
        let message = format!("The routeTable '{id}' has dependencies and cannot be deleted.");
        return Err(Fault::new("DependencyViolation", message));
    }
    items::remove(world, &call.scope(), id);
    Ok(json!({}))
}

/// A route as an input states it.
fn route(world: &mut World, call: &Call, table: &Value) -> Result<Value, Fault> {
    let mut route = json!({
        "DestinationCidrBlock": call.text("DestinationCidrBlock"),
        "Origin": "CreateRoute",
        "State": "active",
    });
    match (call.str("GatewayId"), call.str("NatGatewayId")) {
        (Some(id), None) => {
            let gateway = state(world, call).get(id).cloned();
            let gateway = gateway.ok_or_else(|| {
                Fault::new("InvalidGatewayID.NotFound", format!("The gateway ID '{id}' does not exist"))
            })?;
            if gateway.value["Attachments"][0]["VpcId"] != table["VpcId"] {
                let message = format!("route table and network gateway {id} belong to different networks");
                return Err(Fault::new("InvalidParameterValue", message));
            }
            route["GatewayId"] = id.into();
        }
        (None, Some(id)) => {
            let found = state(world, call).get(id).filter(|item| item.collection.name == nat::GATEWAY.name).is_some();
            if !found {
                let message = format!("The natGateway ID '{id}' does not exist");
                return Err(Fault::new("InvalidNatGatewayID.NotFound", message));
            }
            route["NatGatewayId"] = id.into();
        }
        _ => return Err(Fault::new("InvalidParameterCombination", "exactly one target must be specified")),
    }
    Ok(route)
}

fn place_of(table: &Value, cidr: &str) -> Option<usize> {
    table["Routes"].as_array()?.iter().position(|route| route["DestinationCidrBlock"] == cidr)
}

fn no_route(cidr: &str, table: &str) -> Fault {
    let message = format!("no route with destination-cidr-block {cidr} in route table {table}");
    Fault::new("InvalidRoute.NotFound", message)
}

pub(super) fn create_route(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (id, cidr) = (call.text("RouteTableId"), call.text("DestinationCidrBlock"));
    let table = find(world, call, &TABLE, id)?.value;
    let route = route(world, call, &table)?;
    if place_of(&table, cidr).is_some() {
        let message = format!("The route identified by {cidr} already exists.");
        return Err(Fault::new("RouteAlreadyExists", message));
    }
    let count = table["Routes"].as_array().map_or(0, Vec::len);
    items::below(world, call, &ROUTES, count, "RouteLimitExceeded")?;
    let routes = state(world, call).change(id).and_then(|table| table["Routes"].as_array_mut());
    routes.into_iter().for_each(|routes| routes.push(route.clone()));
    Ok(json!({ "Return": true }))
}

pub(super) fn replace_route(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (id, cidr) = (call.text("RouteTableId"), call.text("DestinationCidrBlock"));
    let table = find(world, call, &TABLE, id)?.value;
    let route = route(world, call, &table)?;
    let place = place_of(&table, cidr).ok_or_else(|| no_route(cidr, id))?;
    if let Some(table) = state(world, call).change(id) {
        table["Routes"][place] = route;
    }
    Ok(json!({}))
}

pub(super) fn delete_route(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (id, cidr) = (call.text("RouteTableId"), call.text("DestinationCidrBlock"));
    let table = find(world, call, &TABLE, id)?.value;
    let place = place_of(&table, cidr).ok_or_else(|| no_route(cidr, id))?;
    if table["Routes"][place]["GatewayId"] == "local" {
        let message = format!("cannot remove local route {cidr} in route table {id}");
        return Err(Fault::new("InvalidParameterValue", message));
    }
    let routes = state(world, call).change(id).and_then(|table| table["Routes"].as_array_mut());
    routes.into_iter().for_each(|routes| drop(routes.remove(place)));
    Ok(json!({}))
}

/// The table of an association, and its place in it.
fn found(world: &mut World, call: &Call, wanted: impl Fn(&Value) -> bool) -> Option<(String, usize)> {
    state(world, call).all(&TABLE).find_map(|(id, item)| {
        let place = item.value["Associations"].as_array()?.iter().position(&wanted)?;
        Some((id.to_owned(), place))
    })
}

fn take(world: &mut World, call: &Call, (table, place): &(String, usize)) {
    let associations = state(world, call).change(table).and_then(|table| table["Associations"].as_array_mut());
    associations.into_iter().for_each(|associations| drop(associations.remove(*place)));
}

fn give(world: &mut World, call: &Call, table: &str, association: Value) {
    let associations = state(world, call).change(table).and_then(|table| table["Associations"].as_array_mut());
    associations.into_iter().for_each(|associations| associations.push(association.clone()));
}

/// A deleted subnet is associated with nothing.
pub(super) fn forget_subnet(world: &mut World, call: &Call, subnet: &str) {
    if let Some(place) = found(world, call, |association| association["SubnetId"] == subnet) {
        take(world, call, &place);
    }
}

pub(super) fn associate(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (id, subnet) = (call.text("RouteTableId"), call.text("SubnetId"));
    let table = find(world, call, &TABLE, id)?.value;
    let network = find(world, call, &network::SUBNET, subnet)?.value;
    if table["VpcId"] != network["VpcId"] {
        let message = format!("Route table {id} and subnet {subnet} belong to different networks");
        return Err(Fault::new("InvalidParameterValue", message));
    }
    if found(world, call, |association| association["SubnetId"] == subnet).is_some() {
        let message = format!("the specified association for route table {id} conflicts with an existing association");
        return Err(Fault::new("Resource.AlreadyAssociated", message));
    }
    let association = association(call, id, ("SubnetId", subnet.into()));
    let answer = json!({
        "AssociationId": association["RouteTableAssociationId"],
        "AssociationState": { "State": "associated" },
    });
    give(world, call, id, association);
    Ok(answer)
}

fn no_association(id: &str) -> Fault {
    Fault::new("InvalidAssociationID.NotFound", format!("The association ID '{id}' does not exist"))
}

pub(super) fn replace_association(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (id, table) = (call.text("AssociationId"), call.text("RouteTableId"));
    find(world, call, &TABLE, table)?;
    let place = found(world, call, |association| association["RouteTableAssociationId"] == id);
    let place = place.ok_or_else(|| no_association(id))?;
    let old = find(world, call, &TABLE, &place.0)?.value["Associations"][place.1].clone();
    let target = if old["Main"] == true { "Main" } else { "SubnetId" };
    let new = association(call, table, (target, old[target].clone()));
    let answer = json!({
        "NewAssociationId": new["RouteTableAssociationId"],
        "AssociationState": { "State": "associated" },
    });
    take(world, call, &place);
    give(world, call, table, new);
    Ok(answer)
}

pub(super) fn disassociate(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("AssociationId");
    let place = found(world, call, |association| association["RouteTableAssociationId"] == id);
    let place = place.ok_or_else(|| no_association(id))?;
    if find(world, call, &TABLE, &place.0)?.value["Associations"][place.1]["Main"] == true {
        let message = format!("cannot disassociate the main route table association {id}");
        return Err(Fault::new("InvalidParameterValue", message));
    }
    take(world, call, &place);
    Ok(json!({}))
}

/// Adds or removes the route of a gateway endpoint.
pub(super) fn endpoint_route(
    world: &mut World,
    call: &Call,
    table: &str,
    (endpoint, list): (&str, &str),
    is_added: bool,
) {
    let routes = state(world, call).change(table).and_then(|table| table["Routes"].as_array_mut());
    if let Some(routes) = routes {
        routes.retain(|route| route["GatewayId"] != endpoint);
        if is_added {
            routes.push(json!({
                "DestinationPrefixListId": list,
                "GatewayId": endpoint,
                "Origin": "CreateRoute",
                "State": "active",
            }));
        }
    }
}
