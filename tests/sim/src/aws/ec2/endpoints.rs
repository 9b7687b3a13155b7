//! VPC endpoints.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::items::{self, Collection, answered, below, find, insert, mismatch, new_tags, state};
use super::{groups, interfaces, network, routes};
use crate::{Call, Fault, Quota, Stages, World, timestamp};

/// VPC endpoints.
pub const ENDPOINT: Collection = Collection {
    name: "vpc-endpoint",
    prefix: "vpce",
    id: "VpcEndpointId",
    ids: "VpcEndpointIds",
    list: "VpcEndpoints",
    filter: "Filters",
    state: "State",
    tags: "Tags",
    unknown: "InvalidVpcEndpointId.NotFound",
    filters: &[
        ("service-name", "ServiceName"),
        ("vpc-endpoint-id", "VpcEndpointId"),
        ("vpc-endpoint-state", "State"),
        ("vpc-endpoint-type", "VpcEndpointType"),
        ("vpc-id", "VpcId"),
    ],
};

pub(super) const INTERFACES: Quota = Quota {
    service: "vpc",
    code: "L-29B6F2EB",
    name: "Interface VPC endpoints per VPC",
    value: 50.0,
    adjustable: true,
};

/// Services that are reached by routes.
const GATEWAYS: [&str; 2] = ["s3", "dynamodb"];

fn texts(value: &Value, member: &str) -> Vec<String> {
    value[member].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn policy(call: &Call) -> Result<Option<&str>, Fault> {
    let Some(text) = call.str("PolicyDocument").filter(|text| !text.is_empty()) else { return Ok(None) };
    let is_policy = serde_json::from_str::<Value>(text).is_ok_and(|policy| policy["Statement"].is_array());
    if is_policy {
        Ok(Some(text))
    } else {
        Err(Fault::new("InvalidPolicyDocument", "The policy document is malformed."))
    }
}

/// The groups and subnets of an interface exist, the subnets in zones of their own.
fn check_interface(
    world: &mut World,
    call: &Call,
    vpc: &str,
    subnets: &[String],
    groups: &[String],
) -> Result<(), Fault> {
    let mut zones = BTreeSet::new();
    for id in subnets {
        let subnet = find(world, call, &network::SUBNET, id)?.value;
        if subnet["VpcId"] != vpc {
            return Err(Fault::new("InvalidParameter", format!("The subnet {id} is not in the VPC {vpc}")));
        }
        if !zones.insert(subnet["AvailabilityZone"].as_str().unwrap_or_default().to_owned()) {
            let message = format!("Found another VPC endpoint subnet in the availability zone of {id}.");
            return Err(Fault::new("DuplicateSubnetsInSameZone", message));
        }
    }
    for id in groups {
        find(world, call, &groups::GROUP, id)?;
    }
    Ok(())
}

fn check_private_dns(world: &World, call: &Call, vpc: &str, own: Option<&str>, service: &str) -> Result<(), Fault> {
    let is_on = |name: &str| network::attribute(world, call, vpc, name);
    if !is_on("enableDnsHostnames") || !is_on("enableDnsSupport") {
        let message = format!(
            "Enabling private DNS requires both enableDnsSupport and enableDnsHostnames VPC attributes set to true for {vpc}"
        );
        return Err(Fault::new("InvalidParameter", message));
    }
    let known = world.find::<items::Ec2>(&call.scope()).into_iter().flat_map(|state| state.all(&ENDPOINT));
    let mut others = known.filter(|(id, _)| Some(*id) != own).map(|(_, item)| &item.value);
    if others
        .any(|other| other["VpcId"] == vpc && other["ServiceName"] == service && other["PrivateDnsEnabled"] == true)
    {
        let message = format!(
            "private-dns-enabled cannot be set because there is already a conflicting DNS domain for {service} in the VPC {vpc}"
        );
        return Err(Fault::new("InvalidParameter", message));
    }
    Ok(())
}

fn check_routes(world: &mut World, call: &Call, tables: &[String], list: &str) -> Result<(), Fault> {
    for id in tables {
        let table = find(world, call, &routes::TABLE, id)?.value;
        let mut known = table["Routes"].as_array().into_iter().flatten();
        if known.any(|route| route["DestinationPrefixListId"] == list) {
            let message = format!("route table {id} already has a route with destination-prefix-list-id {list}");
            return Err(Fault::new("RouteAlreadyExists", message));
        }
    }
    Ok(())
}

/// The prefix list of a service in a region.
fn list_of(service: &str) -> String {
    let number = service.bytes().fold(0_u32, |number, byte| number.wrapping_mul(31).wrapping_add(byte.into()));
    format!("pl-{number:08x}")
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (vpc, service) = (call.text("VpcId"), call.text("ServiceName"));
    let kind = call.str("VpcEndpointType").unwrap_or("Gateway");
    let tags = new_tags(call, &ENDPOINT)?;
    find(world, call, &network::VPC, vpc)?;
    let short = service.strip_prefix(&format!("com.amazonaws.{}.", call.region)).unwrap_or_default();
    let is_gateway = kind == "Gateway";
    if short.is_empty() || is_gateway && !GATEWAYS.contains(&short) {
        return Err(Fault::new("InvalidServiceName", format!("The Vpc Endpoint Service '{service}' does not exist")));
    }
    let policy = policy(call)?.map_or_else(
        || r#"{"Statement":[{"Action":"*","Effect":"Allow","Principal":"*","Resource":"*"}]}"#.to_owned(),
        str::to_owned,
    );
    let lists = ["RouteTableIds", "SubnetIds", "SecurityGroupIds"].map(|member| texts(&call.input, member));
    let private_dns = !is_gateway && call.input["PrivateDnsEnabled"].as_bool().unwrap_or(true);
    let id = world.once(call, "ClientToken", mismatch(), |world| {
        let [tables, subnets, groups] = &lists;
        check_interface(world, call, vpc, subnets, groups)?;
        check_routes(world, call, tables, &list_of(service))?;
        if private_dns {
            check_private_dns(world, call, vpc, None, service)?;
        }
        let is_interface_of = |value: &Value| value["VpcId"] == vpc && value["VpcEndpointType"] == "Interface";
        let count = state(world, call).all(&ENDPOINT).filter(|(_, item)| is_interface_of(&item.value)).count();
        if !is_gateway {
            below(world, call, &INTERFACES, count, "VpcEndpointLimitExceeded")?;
        }
        let value = json!({
            "CreationTimestamp": timestamp(call.now),
            "Groups": [],
            "NetworkInterfaceIds": [],
            "OwnerId": call.account,
            "PolicyDocument": policy,
            "PrivateDnsEnabled": private_dns,
            "RequesterManaged": false,
            "RouteTableIds": [],
            "ServiceName": service,
            "SubnetIds": [],
            "VpcEndpointType": kind,
            "VpcId": vpc,
        });
        let stages = if is_gateway {
            Stages::settled("Available")
        } else {
            call.stages("Pending", &[(Duration::from_secs(60), "Available")])
        };
        let id = insert(world, call, &ENDPOINT, value, stages, tags);
        world.uses.add(&id, vpc);
        change(world, call, &id, (tables, &[]), (subnets, &[]), (groups, &[]));
        Ok(id)
    })?;
    let mut answer = json!({ "VpcEndpoint": answered(world, call, &id) });
    if let Some(token) = call.str("ClientToken") {
        answer["ClientToken"] = token.into();
    }
    Ok(answer)
}

type Change<'a> = (&'a [String], &'a [String]);

/// Adds and removes route tables, subnets and groups.
fn change(world: &mut World, call: &Call, id: &str, tables: Change<'_>, subnets: Change<'_>, groups: Change<'_>) {
    let Some(item) = state(world, call).get(id).cloned() else { return };
    let mut value = item.value;
    let changed = |known: Vec<String>, (added, removed): Change<'_>| {
        let mut all: Vec<String> = known.into_iter().filter(|one| !removed.contains(one)).collect();
        all.extend(added.iter().filter(|one| !all.contains(one)).cloned().collect::<Vec<_>>());
        all
    };
    let list = list_of(value["ServiceName"].as_str().unwrap_or_default());
    for (some, is_added) in [(tables.1, false), (tables.0, true)] {
        some.iter().for_each(|table| routes::endpoint_route(world, call, table, (id, &list), is_added));
    }
    let own: Vec<String> = value["Groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["GroupId"].as_str())
        .map(str::to_owned)
        .collect();
    let own = changed(own, groups);
    let is_any = |(added, removed): Change<'_>| !added.is_empty() || !removed.is_empty();
    let is_changed = is_any(subnets) || is_any(groups);
    value["RouteTableIds"] = changed(texts(&value, "RouteTableIds"), tables).into();
    value["SubnetIds"] = changed(texts(&value, "SubnetIds"), subnets).into();
    value["Groups"] = own.iter().map(|group| json!({ "GroupId": group, "GroupName": group })).collect();
    if is_changed {
        for interface in texts(&value, "NetworkInterfaceIds") {
            interfaces::detach(world, &call.scope(), &interface);
        }
        let new: Vec<String> = texts(&value, "SubnetIds")
            .iter()
            .map(|subnet| {
                let description = format!("VPC Endpoint Interface {id}");
                let new = interfaces::New {
                    subnet,
                    groups: &own,
                    description: &description,
                    kind: "vpc_endpoint",
                    public_address: None,
                };
                interfaces::attach(world, call, &new)
            })
            .collect();
        value["NetworkInterfaceIds"] = new.into();
    }
    if let Some(known) = state(world, call).change(id) {
        *known = value;
    }
}

pub(super) fn modify(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("VpcEndpointId");
    let endpoint = find(world, call, &ENDPOINT, id)?;
    let text = |member: &str| endpoint.value[member].as_str().unwrap_or_default().to_owned();
    if endpoint.state.at(call.now) != "Available" {
        let message = format!("The endpoint {id} is not in a state in which it can be modified");
        return Err(Fault::new("IncorrectState", message));
    }
    let policy = policy(call)?.map(str::to_owned);
    let list = |member: &str| texts(&call.input, member);
    let (tables, subnets, groups) = (list("AddRouteTableIds"), list("AddSubnetIds"), list("AddSecurityGroupIds"));
    check_interface(world, call, &text("VpcId"), &subnets, &groups)?;
    check_routes(world, call, &tables, &list_of(&text("ServiceName")))?;
    let private_dns = call.input["PrivateDnsEnabled"].as_bool();
    if private_dns == Some(true) {
        check_private_dns(world, call, &text("VpcId"), Some(id), &text("ServiceName"))?;
    }
    let gone = (list("RemoveRouteTableIds"), list("RemoveSubnetIds"), list("RemoveSecurityGroupIds"));
    change(world, call, id, (&tables, &gone.0), (&subnets, &gone.1), (&groups, &gone.2));
    if let Some(value) = state(world, call).change(id) {
        private_dns.into_iter().for_each(|is_on| value["PrivateDnsEnabled"] = is_on.into());
        policy.into_iter().for_each(|policy| value["PolicyDocument"] = policy.into());
    }
    Ok(json!({ "Return": true }))
}

/// What fails is in the answer.
pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let mut failed: Vec<Value> = Vec::new();
    for id in call.texts("VpcEndpointIds") {
        let endpoint = match find(world, call, &ENDPOINT, id) {
            Ok(endpoint) => endpoint,
            Err(Fault { code, message, .. }) => {
                failed.push(json!({ "Error": { "Code": code, "Message": message }, "ResourceId": id }));
                continue;
            }
        };
        if endpoint.state.at(call.now) == "Deleting" {
            continue;
        }
        let (tables, interfaces) =
            (texts(&endpoint.value, "RouteTableIds"), texts(&endpoint.value, "NetworkInterfaceIds"));
        change(world, call, id, (&[], &tables), (&[], &[]), (&[], &[]));
        if endpoint.value["VpcEndpointType"] == "Gateway" {
            items::remove(world, &call.scope(), id);
            continue;
        }
        state(world, call).set_state(id, Stages::settled("Deleting"));
        let (scope, id) = (call.scope(), id.to_owned());
        world.defer(call.due(Duration::from_secs(60)), move |world| {
            interfaces.iter().for_each(|one| interfaces::detach(world, &scope, one));
            items::remove(world, &scope, &id);
        });
    }
    Ok(json!({ "Unsuccessful": failed }))
}

/// What the nodes of a cluster call.
const OF_NODES: [&str; 6] = ["ec2", "ecr.api", "ecr.dkr", "eks-auth", "s3", "sts"];

/// Whether nodes in a subnet reach what they need: by a default route, or by endpoints.
pub(crate) fn nodes_reach_eks(world: &World, call: &Call, vpc: &str, subnet: &str) -> bool {
    let Some(state) = world.find::<items::Ec2>(&call.scope()) else { return false };
    let is_here = |item: &&items::Item| item.value["VpcId"] == vpc;
    let tables: Vec<&Value> =
        state.all(&routes::TABLE).map(|(_, item)| item).filter(is_here).map(|item| &item.value).collect();
    let is_of = |table: &Value, member: &str, value: &Value| {
        table["Associations"].as_array().is_some_and(|all| all.iter().any(|one| one[member] == *value))
    };
    let own = tables.iter().find(|table| is_of(table, "SubnetId", &json!(subnet)));
    let table = own.or_else(|| tables.iter().find(|table| is_of(table, "Main", &json!(true))));
    let leads_out = table
        .and_then(|table| table["Routes"].as_array())
        .is_some_and(|routes| routes.iter().any(|route| route["DestinationCidrBlock"] == "0.0.0.0/0"));
    let services: Vec<&str> = state
        .all(&ENDPOINT)
        .map(|(_, item)| item)
        .filter(is_here)
        .filter_map(|item| item.value["ServiceName"].as_str())
        .collect();
    let has = |name: &str| services.iter().any(|service| service.ends_with(&format!(".{}.{name}", call.region)));
    leads_out || OF_NODES.into_iter().all(has)
}
