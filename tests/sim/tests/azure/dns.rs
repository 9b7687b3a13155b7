//! Public DNS zones: what a write of a record is refused for.

use serde_json::{Value, json};

use crate::{Answer, Client};

const ZONE: &str = "G/Microsoft.Network/dnsZones/example.com";
const RECORD: &str = "G/Microsoft.Network/dnsZones/example.com/A/text";

fn record(ttl: u64, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|one| json!({ "ipv4Address": one })).collect();
    json!({ "properties": { "TTL": ttl, "ARecords": addresses } })
}

fn conditional(client: &Client, method: &str, body: Value, header: (&str, &str)) -> Answer {
    let target = format!("{}?api-version=2018-05-01", client.path(RECORD));
    client.send(method, &target, body, &[header])
}

/// Azure/azure-xplat-cli#1769, rcl-letsencrypt-auto-ssl/Lets-Encrypt-Auto#26, Azure/azure-cli#10467.
#[test]
fn records_are_kept_from_writers_that_did_not_read_them() {
    let client = Client::quick();
    client.put(ZONE, json!({ "location": "global" })).ok();
    let made = conditional(&client, "PUT", record(60, &["192.0.2.1"]), ("If-None-Match", "*")).ok();
    assert_eq!(made["properties"]["fqdn"], "text.example.com.");
    let again = conditional(&client, "PUT", record(60, &["192.0.2.2"]), ("If-None-Match", "*"));
    assert_eq!(again.code(), (412, "PreconditionFailed"));
    let etag = made["etag"].as_str().unwrap();
    let changed = conditional(&client, "PUT", record(30, &["192.0.2.1"]), ("If-Match", etag)).ok();
    assert_ne!(changed["etag"], made["etag"]);
    for method in ["PUT", "DELETE"] {
        let body = if method == "PUT" { record(60, &["192.0.2.2"]) } else { Value::Null };
        assert_eq!(conditional(&client, method, body, ("If-Match", etag)).code(), (412, "PreconditionFailed"));
    }
    let cname = json!({ "properties": { "TTL": 60, "CNAMERecord": { "cname": "a.example.net" } } });
    assert_eq!(client.put(&RECORD.replace("/A/", "/CNAME/"), cname).code(), (409, "Conflict"));
    for wrong in [record(0, &["192.0.2.1"]), record(60, &["a.example.net"]), record(60, &["192.0.2.1", "192.0.2.1"])] {
        assert_eq!(client.put(RECORD, wrong.clone()).code(), (400, "BadRequest"), "{wrong}");
    }
    assert_eq!(client.get(ZONE).ok()["properties"]["numberOfRecordSets"], 3);
    let etag = changed["etag"].as_str().unwrap();
    conditional(&client, "DELETE", Value::Null, ("If-Match", etag)).ok();
    assert_eq!(client.get(RECORD).code(), (404, "ResourceNotFound"));
    let outside = RECORD.replace("example.com", "example.org");
    assert_eq!(client.put(&outside, record(60, &["192.0.2.1"])).code(), (404, "ParentResourceNotFound"));
}
