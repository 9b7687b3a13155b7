//! Service networking: the peering through which a network reaches what Google runs for it.

use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, Effect, Family, Object};
use super::kinds::begin;
use super::problem::Problem;
use super::{Call, Handler};
use crate::clock::later;
use crate::{Behaviour, Source};

/// The name of the peering: <https://cloud.google.com/vpc/docs/private-services-access>.
const PEERING: &str = "servicenetworking-googleapis-com";

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("servicenetworking.services.connections.create", create),
    ("servicenetworking.services.connections.list", list),
    ("servicenetworking.services.connections.patch", patch),
    ("servicenetworking.services.connections.deleteConnection", delete),
    ("servicenetworking.operations.get", super::kinds::operation),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "the producer holds a connection after the last instance: error code 9",
        Source::Report("hashicorp/terraform-provider-google#16275"),
    ),
    rule(
        "a removed peering leaves a record: other ranges are refused in a creation, and accepted in a forced patch",
        Source::Report("hashicorp/terraform-provider-google#3294"),
    ),
    rule(
        "reserved ranges are looked up by name in the network's project: else error code 9",
        Source::Report("hashicorp/terraform-provider-google#11100"),
    ),
    rule("one peering operation a network at a time", Source::Report("kubernetes-sigs/boskos#251")),
    rule(
        "answers name the network by the project's number",
        Source::Documentation(
            "https://cloud.google.com/service-infrastructure/docs/service-networking/reference/rest/v1/services.connections",
        ),
    ),
    rule(
        "an instance with a private address keeps the connection",
        Source::Documentation(
            "https://cloud.google.com/vpc/docs/configure-private-services-access#removing-connection",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "servicenetworking", what, source }
}

/// The key of a network that is named by the project's id or number, or by an address.
pub(crate) fn network_key(cloud: &Cloud, name: &str) -> String {
    let name = name.find("projects/").map_or(name, |start| &name[start..]);
    let mut parts: Vec<String> = name.split('/').map(str::to_owned).collect();
    if let Some(part) = parts.get_mut(1)
        && let Some(project) = cloud.project(part)
    {
        part.clone_from(&project.id);
    }
    format!("compute/{}", parts.join("/"))
}

pub(crate) fn same(cloud: &Cloud, one: &str, other: &str) -> bool {
    network_key(cloud, one) == network_key(cloud, other)
}

/// The key of the connection of a network.
fn connection_key(cloud: &Cloud, network: &str) -> String {
    format!("servicenetworking/{}", network_key(cloud, network))
}

fn by_number(cloud: &Cloud, network: &str) -> String {
    let key = network_key(cloud, network);
    let id = key.split('/').nth(2).unwrap_or_default();
    let number = cloud.project(id).map_or(id, |project| project.number.as_str());
    key.replacen(&format!("compute/projects/{id}/"), &format!("projects/{number}/"), 1)
}

fn status(message: impl Into<String>) -> Value {
    Problem::new("FAILED_PRECONDITION", message).status()
}

fn busy(cloud: &Cloud, connection: &str) -> Result<(), Problem> {
    match cloud.running(connection) {
        Some(_) => {
            let message = "There is a peering operation in progress on the local or peer network. Try again later.";
            Err(Problem::new("INVALID_ARGUMENT", message))
        }
        None => Ok(()),
    }
}

fn check_ranges(cloud: &Cloud, network: &str, ranges: &Value) -> Result<(), Value> {
    let project = network.split('/').nth(2).unwrap_or_default();
    for range in ranges.as_array().into_iter().flatten().filter_map(Value::as_str) {
        let address = cloud.get(&format!("compute/projects/{project}/global/addresses/{range}"));
        let is_one = address.is_some_and(|address| {
            address["purpose"] == "VPC_PEERING" && same(cloud, address["network"].as_str().unwrap_or_default(), network)
        });
        if !is_one {
            return Err(status(format!("Allocated IP range '{range}' not found in network.")));
        }
    }
    Ok(())
}

fn respond(body: &Value) -> Value {
    let mut response = body.clone();
    response["@type"] = "type.googleapis.com/google.cloud.servicenetworking.v1.Connection".into();
    response
}

fn create(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let network = network_key(cloud, call.body["network"].as_str().unwrap_or_default());
    if cloud.get(&network).is_none() {
        return Err(Problem::new("INVALID_ARGUMENT", format!("Network {} was not found.", call.body["network"])));
    }
    let key = connection_key(cloud, &network);
    busy(cloud, &key)?;
    let ranges = call.body.get("reservedPeeringRanges").cloned().unwrap_or_else(|| json!([]));
    let body = json!({ "network": by_number(cloud, &network), "peering": PEERING,
        "service": "services/servicenetworking.googleapis.com", "reservedPeeringRanges": ranges });
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        check_ranges(cloud, &network, &ranges)?;
        if let Some(known) = cloud.objects.get(&target)
            && known.body["reservedPeeringRanges"] != ranges
        {
            return Err(status("Cannot modify allocated ranges in CreateConnection. Please use UpdateConnection."));
        }
        connect(cloud, &target, &network, body.clone());
        Ok(respond(&body))
    });
    Ok(begin(
        cloud,
        call,
        Family::LongRunning,
        "create",
        &key,
        Duration::from_secs(60),
        json!({ "@type": "type.googleapis.com/google.protobuf.Empty" }),
        effect,
    ))
}

fn connect(cloud: &mut Cloud, key: &str, network: &str, body: Value) {
    cloud.put(key, body);
    let producer = cloud.link("compute", "projects/producer-tp/global/networks/servicenetworking");
    let peering = json!({ "name": PEERING, "network": producer,
        "state": "ACTIVE", "stateDetails": "[2026-11-25T00:00:00.000-08:00]: Connected.",
            "exchangeSubnetRoutes": true, "autoCreateRoutes": true });
    if let Some(object) = cloud.objects.get_mut(network) {
        let mut peerings = object.body["peerings"].as_array().cloned().unwrap_or_default();
        peerings.retain(|one| one["name"] != PEERING);
        peerings.push(peering);
        object.body["peerings"] = peerings.into();
    }
}

/// Removes a peering from a network. A record of the connection stays with the producer.
pub(crate) fn drop_peering(cloud: &mut Cloud, network: &str, name: &str) {
    let mut is_empty = false;
    if let Some(peerings) = cloud.objects.get_mut(network).and_then(|one| one.body["peerings"].as_array_mut()) {
        peerings.retain(|one| one["name"] != name);
        is_empty = peerings.is_empty();
    }
    if let Some(object) = cloud.objects.get_mut(network).filter(|_| is_empty) {
        object.body.as_object_mut().map(|members| members.shift_remove("peerings"));
    }
    let connection = format!("servicenetworking/{network}");
    if let Some(object) = cloud.objects.get_mut(&connection).filter(|_| name == PEERING) {
        object.is_hidden = true;
    }
}

/// The producer's side of the peering of a network ends: it is inactive from now on.
pub(crate) fn end_producer(cloud: &mut Cloud, network: &str) {
    let key = connection_key(cloud, network);
    cloud.objects.remove(&key);
    let network = network_key(cloud, network);
    let peerings = cloud.objects.get_mut(&network).and_then(|one| one.body["peerings"].as_array_mut());
    for peering in peerings.into_iter().flatten() {
        peering["state"] = "INACTIVE".into();
    }
}

/// Another operator reserves a range for the connection of a network, and has an instance there that no list of this simulator shows.
pub(crate) fn share(cloud: &mut Cloud, network: &str, range: &str) {
    let key = connection_key(cloud, network);
    let network = network_key(cloud, network);
    let project = network.split('/').nth(2).unwrap_or_default().to_owned();
    let name = format!("projects/{project}/global/addresses/{range}");
    let mut body = json!({ "purpose": "VPC_PEERING", "addressType": "INTERNAL", "status": "RESERVED",
        "prefixLength": 24, "network": cloud.link("compute", network.trim_start_matches("compute/")) });
    cloud.describe("compute", &name, &mut body);
    cloud.put(&format!("compute/{name}"), body);
    let until = later(cloud.now(), Duration::from_secs(4 * 24 * 3_600));
    if let Some(object) = cloud.objects.get_mut(&key) {
        object.busy_until = until;
        if let Some(ranges) = object.body["reservedPeeringRanges"].as_array_mut() {
            ranges.push(range.into());
        }
    }
}

/// The producer keeps resources for a time after the last instance of a network.
pub(crate) fn hold(cloud: &mut Cloud, network: &str) {
    let lag = cloud.lag(&cloud.conduct.producer_hold.clone());
    let until = later(cloud.now(), lag);
    let key = connection_key(cloud, network);
    if let Some(object) = cloud.objects.get_mut(&key) {
        object.busy_until = until;
    }
}

fn list(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let wanted = call.parameter("network").unwrap_or_default();
    let is_one = |(key, object): &(&String, &Object)| {
        let body = &object.body;
        key.starts_with("servicenetworking/")
            && !object.is_hidden
            && (wanted.is_empty() || same(cloud, body["network"].as_str().unwrap_or_default(), wanted))
    };
    let found: Vec<Value> = cloud.objects.iter().filter(is_one).map(|(_, object)| object.body.clone()).collect();
    Ok(if found.is_empty() { json!({}) } else { json!({ "connections": found }) })
}

fn patch(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let network = network_key(cloud, call.body["network"].as_str().unwrap_or_default());
    let key = connection_key(cloud, &network);
    let Some(known) = cloud.objects.get(&key) else {
        return Err(super::errors::not_found("servicenetworking", &call.name));
    };
    busy(cloud, &key)?;
    let ranges = call.body["reservedPeeringRanges"].clone();
    let is_forced = call.parameter("force") == Some("true");
    let old = known.body["reservedPeeringRanges"].as_array().cloned().unwrap_or_default();
    let is_loss = old.iter().any(|one| !ranges.as_array().is_some_and(|new| new.contains(one)));
    let mut body = known.body.clone();
    body["reservedPeeringRanges"] = ranges.clone();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        check_ranges(cloud, &network, &ranges)?;
        if is_loss && !is_forced {
            return Err(status("Removing allocated ranges may affect running resources: set force."));
        }
        connect(cloud, &target, &network, body.clone());
        Ok(respond(&body))
    });
    Ok(begin(
        cloud,
        call,
        Family::LongRunning,
        "patch",
        &key,
        Duration::from_secs(60),
        json!({ "@type": "type.googleapis.com/google.protobuf.Empty" }),
        effect,
    ))
}

fn delete(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let network = network_key(cloud, call.body["consumerNetwork"].as_str().unwrap_or_default());
    let key = connection_key(cloud, &network);
    if cloud.objects.get(&key).is_none_or(|object| object.is_hidden) {
        return Err(super::errors::not_found("servicenetworking", &call.name));
    }
    busy(cloud, &key)?;
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let is_private = |object: &Object| {
            let pointer = "/settings/ipConfiguration/privateNetwork";
            let used = object.body.pointer(pointer).and_then(Value::as_str);
            used.is_some_and(|used| same(cloud, used, &network))
        };
        let is_of_redis =
            |object: &Object| object.body["authorizedNetwork"].as_str().is_some_and(|used| same(cloud, used, &network));
        let is_used = cloud.objects.iter().any(|(key, object)| {
            (key.starts_with("sql/") && is_private(object)) || (key.starts_with("redis/") && is_of_redis(object))
        });
        let is_held = cloud.objects.get(&target).is_some_and(|object| object.busy_until > cloud.now());
        if is_used || is_held {
            return Err(status(
                "Failed to delete connection; Producer services (e.g. CloudSQL, Cloud Memstore, etc.) are still using \
                    this connection.",
            ));
        }
        drop_peering(cloud, &network, PEERING);
        cloud.objects.remove(&target);
        Ok(json!({ "@type": "type.googleapis.com/google.protobuf.Empty" }))
    });
    Ok(begin(
        cloud,
        call,
        Family::LongRunning,
        "delete",
        &key,
        Duration::from_secs(60),
        json!({ "@type": "type.googleapis.com/google.protobuf.Empty" }),
        effect,
    ))
}
