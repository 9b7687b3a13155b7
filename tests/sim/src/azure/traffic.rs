//! Traffic Manager: profiles and their external endpoints.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::cloud::{Cloud, put, put_missing, text};
use super::kinds::{Call, KIND, Kind, is_name};
use super::problem::{Problem, bad};
use crate::{Behaviour, Source};

pub(crate) const PROFILES: &str = "Microsoft.Network/trafficManagerProfiles";
const ENDPOINTS: &str = "Microsoft.Network/trafficManagerProfiles/externalEndpoints";
const VERSION: &str = "2022-04-01";
/// Weights and priorities.
const NUMBERS: std::ops::RangeInclusive<i64> = 1..=1000;

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: PROFILES,
        version: VERSION,
        models: [
            "trafficmanager.models Profile",
            "trafficmanager.models Profile",
            "trafficmanager.models Profile",
            "trafficmanager.models ProfileListResult",
        ],
        has_state: false,
        is_name: |name| is_name(name, 1..=63, "-."),
        defaults: &[
            ("/properties/profileStatus", "\"Enabled\""),
            ("/properties/trafficViewEnrollmentStatus", "\"Disabled\""),
            ("/properties/monitorConfig/intervalInSeconds", "30"),
            ("/properties/monitorConfig/timeoutInSeconds", "10"),
            ("/properties/monitorConfig/toleratedNumberOfFailures", "3"),
        ],
        fixed: &["/properties/dnsConfig/relativeName"],
        accept: accept_profile,
        show: |cloud, key, body| {
            let below = format!("{key}/externalendpoints/");
            let endpoints = cloud.objects.iter().filter(|(one, _)| one.starts_with(&below));
            let endpoints: Vec<Value> = endpoints.map(|(_, one)| one.body.clone()).collect();
            let status = if endpoints.is_empty() { "Inactive" } else { "CheckingEndpoints" };
            put(body, "/properties/monitorConfig/profileMonitorStatus", status.into());
            put(body, "/properties/endpoints", endpoints.into());
        },
        ..KIND
    },
    Kind {
        kind: ENDPOINTS,
        version: VERSION,
        models: [
            "trafficmanager.models Endpoint",
            "trafficmanager.models Endpoint",
            "trafficmanager.models Endpoint",
            "",
        ],
        has_state: false,
        tags: 0,
        is_name: |name| is_name(name, 1..=260, "-_."),
        defaults: &[("/properties/endpointStatus", "\"Enabled\""), ("/properties/weight", "1")],
        accept: accept_endpoint,
        ..KIND
    },
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "an endpoint has a weight and a priority from 1 to 1000",
        Source::Documentation("https://learn.microsoft.com/rest/api/trafficmanager/endpoints/create-or-update"),
    ),
    rule(
        "no two endpoints of a profile have the same priority, also where weights decide",
        Source::Report("hashicorp/terraform-provider-azurerm#27275"),
    ),
    rule(
        "an interval of 10 seconds has a timeout from 5 to 9 seconds: 400 BadRequest",
        Source::Report("Azure/azure-cli#10491"),
    ),
    rule(
        "external endpoints of a profile have targets of one form: names, or IPv4 addresses",
        Source::Documentation("https://learn.microsoft.com/azure/traffic-manager/traffic-manager-endpoint-types"),
    ),
    rule("the name of a profile is unique in all of Azure: 400 BadRequest", Source::Report("Azure/azure-cli#708")),
    rule(
        "an alias of type A has a profile with IPv4 addresses",
        Source::Documentation("https://learn.microsoft.com/azure/dns/dns-alias"),
    ),
    rule(
        "a PUT of a profile takes the endpoints away that its body does not have",
        Source::Report("hashicorp/terraform-provider-azurerm#7470"),
    ),
    rule(
        "a parallel write of a profile is refused",
        Source::LeftOut("hashicorp/terraform-provider-azurerm#29191 tells the message of no refusal"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Network", what, source }
}

fn accept_profile(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let name = text(body, "/properties/dnsConfig/relativeName").to_lowercase();
    let is_taken = |(key, one): (&String, &super::cloud::Object)| {
        let other = text(&one.body, "/properties/dnsConfig/relativeName");
        *key != call.key && text(&one.body, "/type") == PROFILES && other.eq_ignore_ascii_case(&name)
    };
    if name.is_empty() || cloud.objects.iter().any(is_taken) {
        let message =
            format!("Domain name {name}.trafficmanager.net already exists. Please choose a different DNS prefix.");
        return Err(bad("BadRequest", message));
    }
    let number = |place: &str| body.pointer(place).and_then(Value::as_i64).unwrap_or_default();
    let (interval, timeout) =
        (number("/properties/monitorConfig/intervalInSeconds"), number("/properties/monitorConfig/timeoutInSeconds"));
    let most = if interval == 10 { 9 } else { 10 };
    if ![10, 30].contains(&interval) || !(5..=most).contains(&timeout) {
        return Err(bad("BadRequest", "Monitor timeout must be between 5 and 10 seconds."));
    }
    if !(0..=9).contains(&number("/properties/monitorConfig/toleratedNumberOfFailures")) {
        return Err(bad("BadRequest", "The tolerated number of failures has to be from 0 to 9."));
    }
    if call.method == "PUT" {
        replace_endpoints(cloud, call, body)?;
    }
    put(body, "/properties/dnsConfig/fqdn", format!("{name}.trafficmanager.net").into());
    Ok(())
}

/// Makes the endpoints of a profile those of a request, and takes them out of its document, which is computed for each read.
fn replace_endpoints(cloud: &mut Cloud, call: &Call, body: &mut Value) -> Result<(), Problem> {
    let below = format!("{}/externalendpoints/", call.key);
    cloud.objects.retain(|key, _| !key.starts_with(&below));
    let sent = body["properties"].as_object_mut().and_then(|properties| properties.shift_remove("endpoints"));
    for endpoint in sent.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let id = format!("{}/externalEndpoints/{}", call.id(), text(endpoint, "/name"));
        let Some(inner) = Call::parse("PUT", &id, &[], call.user.clone()) else { continue };
        let mut made = endpoint.clone();
        put(&mut made, "/id", id.as_str().into());
        put(&mut made, "/type", ENDPOINTS.into());
        put_missing(&mut made, "/properties/endpointStatus", "Enabled".into());
        put_missing(&mut made, "/properties/weight", 1.into());
        accept_endpoint(cloud, &inner, None, &mut made)?;
        cloud.put(&id, made);
    }
    Ok(())
}

/// The endpoints of a profile but one.
fn others<'c>(cloud: &'c Cloud, profile: &str, but: &'c str) -> impl Iterator<Item = &'c Value> {
    let below = format!("{profile}/externalendpoints/");
    cloud.objects.iter().filter(move |(key, _)| key.starts_with(&below) && *key != but).map(|(_, one)| &one.body)
}

fn is_address(endpoint: &Value) -> bool {
    text(endpoint, "/properties/target").parse::<Ipv4Addr>().is_ok()
}

fn accept_endpoint(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let profile = call.parent();
    let priority = body.pointer("/properties/priority").and_then(Value::as_i64);
    let taken: Vec<i64> =
        others(cloud, &profile, &call.key).filter_map(|one| one.pointer("/properties/priority")?.as_i64()).collect();
    let priority = priority.unwrap_or_else(|| taken.iter().max().map_or(1, |most| most + 1));
    let weight = body.pointer("/properties/weight").and_then(Value::as_i64).unwrap_or_default();
    if !NUMBERS.contains(&weight) || !NUMBERS.contains(&priority) {
        return Err(bad("BadRequest", "Weights and priorities have to be from 1 to 1000."));
    }
    if taken.contains(&priority) {
        return Err(bad("BadRequest", format!("The priority {priority} is that of another endpoint of the profile.")));
    }
    let target = text(body, "/properties/target");
    let is_mixed = others(cloud, &profile, &call.key).any(|one| is_address(one) != is_address(body));
    if target.is_empty() || is_mixed {
        return Err(bad("BadRequest", format!("The target '{target}' is not valid beside the others of the profile.")));
    }
    put(body, "/properties/priority", priority.into());
    put(body, "/properties/endpointMonitorStatus", "CheckingEndpoint".into());
    Ok(())
}

/// Refuses the target of an alias of type A that is no profile, or whose endpoints are names.
pub(crate) fn accept_alias(cloud: &Cloud, target: &str) -> Result<(), Problem> {
    let key = target.to_lowercase();
    let is_profile = cloud.objects.get(&key).is_some_and(|one| text(&one.body, "/type") == PROFILES);
    if !is_profile {
        return Err(bad(
            "BadRequest",
            format!("The target resource '{target}' does not exist, or no alias can point at it."),
        ));
    }
    if !others(cloud, &key, "").all(is_address) {
        let message = "An alias record of type A needs a profile whose endpoints have IPv4 addresses.";
        return Err(bad("BadRequest", message));
    }
    Ok(())
}
