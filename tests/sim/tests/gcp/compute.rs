//! Compute Engine.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::Client;

const NETWORKS: &str = "projects/PROJECT/global/networks";
const SUBNETS: &str = "projects/PROJECT/regions/europe-west4/subnetworks";
const ROUTERS: &str = "projects/PROJECT/regions/europe-west4/routers";

#[test]
fn a_network_is_made_read_listed_and_deleted() {
    let client = Client::with(Options::default().enabled());
    let started = client.post("compute", NETWORKS, json!({ "name": "n", "autoCreateSubnetworks": false }));
    assert_eq!(started.body["status"], "RUNNING");
    let done = client.wait("compute", started);
    assert!(done.get("error").is_none(), "{done}");
    let network = client.get("compute", &format!("{NETWORKS}/n")).ok();
    assert_eq!((&network["mtu"], &network["routingConfig"]["routingMode"]), (&json!(1460), &json!("REGIONAL")));
    assert_eq!(client.get("compute", NETWORKS).ok()["items"][0], network);
    assert_eq!(client.post("compute", NETWORKS, json!({ "name": "n" })).reason(), (409, "alreadyExists"));
    assert_eq!(client.post("compute", NETWORKS, json!({ "name": "N_" })).reason(), (400, "invalid"));
    let path = done["selfLink"].as_str().unwrap();
    let path = &path[path.find("projects/").unwrap()..];
    assert_eq!(client.post("compute", &format!("{path}/wait"), Value::Null).ok()["status"], "DONE");
    client.wait("compute", client.call("DELETE", "compute", &format!("{NETWORKS}/n"), Value::Null));
    assert_eq!(client.get("compute", &format!("{NETWORKS}/n")).reason(), (404, "notFound"));
    // Operations are forgotten.
    client.cloud.advance(Duration::from_secs(15 * 86_400));
    assert_eq!(client.get("compute", path).reason(), (404, "notFound"));
}

#[test]
fn a_request_id_starts_one_operation() {
    let client = Client::quick();
    let path = format!("{NETWORKS}?requestId=3d2f1c1e-5c2b-4b8e-9a60-1f6a1c0f5a11");
    let first = client.post("compute", &path, json!({ "name": "n" })).ok();
    let second = client.post("compute", &path, json!({ "name": "n" })).ok();
    assert_eq!(first["name"], second["name"]);
    assert_eq!(client.post("compute", &path, json!({ "name": "m" })).reason(), (400, "invalid"));
}

#[test]
fn a_quota_fails_the_operation_and_leaves_nothing() {
    let client = Client::quick();
    client.cloud.world().quotas.insert((String::new(), "NETWORKS".to_owned()), 1.0);
    client.wait("compute", client.post("compute", NETWORKS, json!({ "name": "a" })));
    let failed = client.wait("compute", client.post("compute", NETWORKS, json!({ "name": "b" })));
    let error = &failed["error"]["errors"][0];
    assert_eq!((&error["code"], &failed["httpErrorStatusCode"]), (&json!("QUOTA_EXCEEDED"), &json!(403)));
    assert_eq!(error["errorDetails"][0]["quotaInfo"]["metricName"], "compute.googleapis.com/networks");
    assert_eq!(client.get("compute", &format!("{NETWORKS}/b")).status, 404);
    let quotas = client.get("compute", "projects/PROJECT").ok()["quotas"].clone();
    let row = quotas.as_array().unwrap().iter().find(|row| row["metric"] == "NETWORKS").unwrap();
    assert_eq!(row, &json!({ "metric": "NETWORKS", "limit": 1.0, "usage": 1.0 }));
}

#[test]
fn a_range_for_peering_counts_as_an_internal_address() {
    let client = Client::quick();
    client.network();
    client.cloud.world().quotas.insert((String::new(), "GLOBAL_INTERNAL_ADDRESSES".to_owned()), 1.0);
    let made = |body: Value| client.wait("compute", client.post("compute", "projects/PROJECT/global/addresses", body));
    let range = |name: &str| {
        json!({ "name": name, "addressType": "INTERNAL", "purpose": "VPC_PEERING", "prefixLength": 20,
            "network": "global/networks/n" })
    };
    assert!(made(range("a")).get("error").is_none());
    assert_eq!(made(range("b"))["error"]["errors"][0]["code"], "QUOTA_EXCEEDED");
    assert!(made(json!({ "name": "c" })).get("error").is_none(), "an external address counts against another quota");
}

#[test]
fn a_network_in_use_is_not_deleted_and_one_that_changes_is_not_ready() {
    let client = Client::with(Options::default().enabled());
    client.cloud.world().conduct.network_busy = 600..601;
    client.wait("compute", client.post("compute", NETWORKS, json!({ "name": "n", "autoCreateSubnetworks": false })));
    let subnet = json!({ "name": "s", "network": "global/networks/n", "ipCidrRange": "10.0.0.0/20" });
    assert_eq!(client.post("compute", SUBNETS, subnet.clone()).reason(), (400, "resourceNotReady"));
    client.cloud.advance(Duration::from_secs(600));
    client.wait("compute", client.post("compute", SUBNETS, subnet));
    let refused = client.call("DELETE", "compute", &format!("{NETWORKS}/n"), Value::Null);
    assert_eq!(refused.reason(), (400, "resourceInUseByAnotherResource"));
    assert!(refused.message().contains("subnetworks/s"));
    client.wait("compute", client.call("DELETE", "compute", &format!("{SUBNETS}/s"), Value::Null));
    // What no list shows fails the operation.
    let project = client.cloud.project().to_owned();
    let hidden = format!("compute/projects/{project}/global/firewalls/hidden");
    let network = format!("projects/{project}/global/networks/n");
    client.cloud.world().put_hidden(&hidden, json!({ "network": network }));
    let failed = client.wait("compute", client.call("DELETE", "compute", &format!("{NETWORKS}/n"), Value::Null));
    assert_eq!(failed["error"]["errors"][0]["code"], "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE");
}

#[test]
fn subnetworks_need_fingerprints_and_ranges_that_are_free() {
    let client = Client::quick();
    client.network();
    let path = format!("{SUBNETS}/n");
    let read = client.get("compute", &path).ok();
    assert_eq!(read["gatewayAddress"], "10.0.0.1");
    let patch = |body: Value| client.call("PATCH", "compute", &path, body);
    assert_eq!(patch(json!({ "privateIpGoogleAccess": true })).reason(), (400, "required"));
    let stale = json!({ "privateIpGoogleAccess": true, "fingerprint": "AAAAAAAAAAA=" });
    assert_eq!(patch(stale).reason(), (412, "conditionNotMet"));
    let fingerprint = &read["fingerprint"];
    let mixed = json!({ "fingerprint": fingerprint, "secondaryIpRanges": [{ "rangeName": "other",
        "ipCidrRange": "10.2.0.0/20" }] });
    assert_eq!(patch(mixed).reason(), (400, "invalid"));
    client.wait("compute", patch(json!({ "privateIpGoogleAccess": true, "fingerprint": fingerprint })));
    let again = client.get("compute", &path).ok();
    assert_eq!(again["privateIpGoogleAccess"], true);
    assert_ne!(again["fingerprint"], *fingerprint);
    let overlapping = json!({ "name": "o", "network": "global/networks/n", "ipCidrRange": "10.17.0.0/16" });
    assert_eq!(client.post("compute", SUBNETS, overlapping).reason(), (400, "invalid"));
    let listed = client.get("compute", "projects/PROJECT/aggregated/subnetworks").ok();
    assert_eq!(listed["items"]["regions/europe-west4"]["subnetworks"][0]["name"], "n");
}

#[test]
fn a_router_has_nats_with_defaults_and_one_for_all_ranges() {
    let client = Client::quick();
    client.network();
    let nat = |name: &str| {
        json!({ "name": name, "natIpAllocateOption": "AUTO_ONLY",
        "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES" })
    };
    let router = json!({ "name": "r", "network": "global/networks/n", "nats": [nat("a")] });
    client.wait("compute", client.post("compute", ROUTERS, router));
    let read = client.get("compute", &format!("{ROUTERS}/r")).ok();
    assert_eq!(read["nats"][0]["tcpEstablishedIdleTimeoutSec"], 1200);
    let both = json!({ "nats": [nat("a"), nat("b")] });
    let refused = client.call("PATCH", "compute", &format!("{ROUTERS}/r"), both);
    assert_eq!(refused.reason(), (400, "invalid"));
    // A patch replaces the list.
    client.wait("compute", client.call("PATCH", "compute", &format!("{ROUTERS}/r"), json!({ "nats": [] })));
    assert_eq!(client.get("compute", &format!("{ROUTERS}/r")).ok()["nats"], json!([]));
}

#[test]
fn leftovers_of_clusters_block_the_network_and_can_be_deleted() {
    let client = Client::quick();
    client.network();
    let project = client.cloud.project().to_owned();
    let keys = client.cloud.world().leave_behind(&project, "n", "n", "europe-west4-a");
    assert_eq!(keys.len(), 12);
    let group = keys.iter().find(|key| key.contains("/networkEndpointGroups/")).unwrap();
    for used in [format!("{NETWORKS}/n"), group.trim_start_matches("compute/").to_owned()] {
        let refused = client.call("DELETE", "compute", &used, Value::Null);
        assert_eq!(refused.reason(), (400, "resourceInUseByAnotherResource"), "{used}");
    }
    let listed = client.get("compute", "projects/PROJECT/aggregated/healthChecks").ok();
    assert_eq!(listed["items"].as_object().unwrap().len(), 2, "a global one, and one of the region");
    let groups = client.get("compute", "projects/PROJECT/zones/europe-west4-a/networkEndpointGroups").ok();
    assert_eq!(groups["items"].as_array().unwrap().len(), 1);
    let disks = client.get("compute", "projects/PROJECT/aggregated/disks").ok();
    assert_eq!(disks["items"]["zones/europe-west4-a"]["disks"][0]["sizeGb"], "10");
    for key in keys {
        let path = key.trim_start_matches("compute/");
        client.wait("compute", client.call("DELETE", "compute", path, Value::Null));
    }
    assert!(client.get("compute", "projects/PROJECT/global/firewalls").ok().get("items").is_none());
}

#[test]
fn the_catalogues_list_places_and_machines() {
    let client = Client::quick();
    let region = client.get("compute", "projects/PROJECT/regions/europe-west4").ok();
    assert_eq!(region["zones"].as_array().unwrap().len(), 3);
    assert!(region["quotas"].as_array().unwrap().iter().any(|row| row["metric"] == "NVIDIA_T4_GPUS"));
    assert_eq!(client.get("compute", "projects/PROJECT/regions/nowhere").status, 404);
    assert!(client.get("compute", "projects/PROJECT/regions").ok()["items"].as_array().unwrap().len() > 5);
    assert!(client.get("compute", "projects/PROJECT/zones").ok()["items"].as_array().unwrap().len() > 20);
    let cards = client.get("compute", "projects/PROJECT/aggregated/acceleratorTypes?filter=name=nvidia-l4").ok();
    assert_eq!(cards["items"]["zones/europe-west4-a"]["acceleratorTypes"][0]["maximumCardsPerInstance"], 8);
    let machine = client.get("compute", "projects/PROJECT/zones/europe-west4-a/machineTypes/g2-standard-8").ok();
    assert_eq!(machine["accelerators"][0]["guestAcceleratorType"], "nvidia-l4");
    let machines = "projects/PROJECT/zones/europe-west4-a/machineTypes?maxResults=5";
    let page = client.get("compute", machines).ok();
    let next = client.get("compute", &format!("{machines}&pageToken={}", page["nextPageToken"].as_str().unwrap())).ok();
    assert_ne!(page["items"], next["items"]);
}

#[test]
fn labels_of_an_address_need_their_fingerprint() {
    let client = Client::quick();
    let body = json!({ "name": "a", "labels": { "k": "v" } });
    client.wait("compute", client.post("compute", "projects/PROJECT/global/addresses", body));
    let bad = json!({ "name": "b", "labels": { "K": "v" } });
    assert_eq!(client.post("compute", "projects/PROJECT/global/addresses", bad).reason(), (400, "invalid"));
    let path = "projects/PROJECT/global/addresses/a";
    let read = client.get("compute", path).ok();
    assert_eq!(read["status"], "RESERVED");
    let stale = json!({ "labels": {}, "labelFingerprint": "AAAAAAAAAAA=" });
    assert_eq!(client.post("compute", &format!("{path}/setLabels"), stale).reason(), (412, "conditionNotMet"));
    let right = json!({ "labels": { "k": "w" }, "labelFingerprint": read["labelFingerprint"] });
    client.wait("compute", client.post("compute", &format!("{path}/setLabels"), right));
    assert_eq!(client.get("compute", path).ok()["labels"]["k"], "w");
}
