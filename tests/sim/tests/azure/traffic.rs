//! Traffic Manager: what a write is refused for.

use serde_json::{Value, json};

use crate::Client;

const PROFILE: &str = "G/Microsoft.Network/trafficManagerProfiles/text";

fn profile(name: &str, interval: u64, timeout: u64) -> Value {
    json!({ "location": "global", "properties": {
        "trafficRoutingMethod": "Weighted",
        "dnsConfig": { "relativeName": name, "ttl": 60 },
        "monitorConfig": { "protocol": "HTTPS", "port": 443, "path": "/health", "intervalInSeconds": interval,
            "timeoutInSeconds": timeout, "toleratedNumberOfFailures": 2 },
    } })
}

fn endpoint(target: &str, weight: u64, priority: u64) -> Value {
    json!({ "properties": { "target": target, "weight": weight, "priority": priority } })
}

/// Azure/azure-cli#10491, hashicorp/terraform-provider-azurerm#27275.
#[test]
fn profiles_and_their_endpoints_are_checked() {
    let client = Client::quick();
    let one = |site: &str| format!("{PROFILE}/externalEndpoints/{site}");
    assert_eq!(client.put(PROFILE, profile("text", 10, 10)).code(), (400, "BadRequest"));
    assert_eq!(client.put(&one("a"), endpoint("192.0.2.1", 1, 1)).code(), (404, "ParentResourceNotFound"));
    let made = client.put(PROFILE, profile("text", 10, 9)).ok();
    assert_eq!(made["properties"]["dnsConfig"]["fqdn"], "text.trafficmanager.net");
    let other = PROFILE.replace("/text", "/second");
    assert_eq!(client.put(&other, profile("TEXT", 30, 10)).code(), (400, "BadRequest"), "its name is taken");
    client.put(&one("a"), endpoint("192.0.2.1", 1000, 1)).ok();
    for wrong in [
        endpoint("192.0.2.2", 0, 2),
        endpoint("192.0.2.2", 1001, 2),
        endpoint("192.0.2.2", 1, 1),
        endpoint("b.example.net", 1, 2),
    ] {
        assert_eq!(client.put(&one("b"), wrong.clone()).code(), (400, "BadRequest"), "{wrong}");
    }
    client.put(&one("b"), endpoint("192.0.2.2", 1, 2)).ok();
    let shown = client.get(PROFILE).ok();
    assert_eq!(shown["properties"]["endpoints"].as_array().map(Vec::len), Some(2));
    client.delete(&one("b")).ok();
    client.delete(PROFILE).ok();
    assert_eq!(client.get(&one("a")).code().0, 404);
}

#[test]
fn an_alias_has_a_profile_of_addresses_and_no_values() {
    let client = Client::quick();
    let zone = "G/Microsoft.Network/dnsZones/example.com";
    client.put(zone, json!({ "location": "global" })).ok();
    client.put(PROFILE, profile("text", 30, 10)).ok();
    let record = |target: &str, addresses: Value| {
        let target = json!({ "id": client.path(target) });
        json!({ "properties": { "TTL": 60, "targetResource": target, "ARecords": addresses } })
    };
    let id = format!("{zone}/A/text");
    let taken = record(PROFILE, json!([{ "ipv4Address": "192.0.2.1" }]));
    for wrong in [taken, record(zone, json!([])), record(&PROFILE.replace("/text", "/none"), json!([]))] {
        assert_eq!(client.put(&id, wrong.clone()).code(), (400, "BadRequest"), "{wrong}");
    }
    let made = client.put(&id, record(PROFILE, json!([]))).ok();
    assert_eq!(made["properties"]["targetResource"]["id"], client.path(PROFILE));
    let site = format!("{PROFILE}/externalEndpoints/a");
    client.put(&site, endpoint("a.example.net", 1, 1)).ok();
    assert_eq!(client.put(&id, record(PROFILE, json!([]))).code(), (400, "BadRequest"), "its endpoint is a name");
}
