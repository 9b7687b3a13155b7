//! Service usage, service networking and billing.

use std::time::Duration;

use serde_json::json;
use textnlp_sim::gcp::Options;

use crate::Client;

const BATCH: &str = "v1/projects/PROJECT/services:batchEnable";

#[test]
fn an_enabled_api_is_usable_some_time_later() {
    let client = Client::with(Options::default());
    client.cloud.world().conduct.enablement_lag = 300..301;
    let body = json!({ "serviceIds": ["container.googleapis.com"] });
    let started = client.post("serviceusage", BATCH, body.clone());
    // One enablement a project at a time.
    assert_eq!(client.post("serviceusage", BATCH, body).reason(), (400, "failedPrecondition"));
    let done = client.wait_long("serviceusage", started);
    assert_eq!(done["response"]["services"][0]["state"], "ENABLED");
    // What it needs is on as well.
    let service = client.get("serviceusage", "v1/projects/PROJECT/services/compute.googleapis.com").ok();
    assert_eq!(service["state"], "ENABLED");
    assert_eq!(service["name"], "projects/123456789012/services/compute.googleapis.com");
    let path = "v1/projects/PROJECT/locations/-/clusters";
    assert_eq!(client.get("container", path).reason(), (403, "accessNotConfigured"));
    client.cloud.advance(Duration::from_secs(301));
    client.get("container", path).ok();
    let listed = client.get("serviceusage", "v1/projects/PROJECT/services?filter=state:ENABLED&pageSize=200").ok();
    assert!(
        listed["services"].as_array().unwrap().iter().any(|one| one["config"]["name"] == "container.googleapis.com")
    );
}

#[test]
fn an_enablement_may_fail_once_and_has_a_bound() {
    let client = Client::with(Options::zero_latency());
    client.cloud.world().conduct.enablement_fails_once = true;
    let body = json!({ "serviceIds": ["sqladmin.googleapis.com"] });
    let failed = client.wait_long("serviceusage", client.post("serviceusage", BATCH, body.clone()));
    assert!(failed["error"]["message"].as_str().unwrap().contains("160009"));
    let done = client.wait_long("serviceusage", client.post("serviceusage", BATCH, body));
    assert!(done.get("error").is_none());
    let many: Vec<String> = (0..21).map(|index| format!("a{index}.googleapis.com")).collect();
    assert_eq!(client.post("serviceusage", BATCH, json!({ "serviceIds": many })).status, 400);
}

#[test]
fn an_api_that_another_needs_is_not_disabled_alone() {
    let client = Client::quick();
    let path = "v1/projects/PROJECT/services/compute.googleapis.com:disable";
    let refused = client.post("serviceusage", path, json!({}));
    assert_eq!(refused.reason(), (400, "failedPrecondition"));
    assert!(refused.message().contains("container.googleapis.com"));
    let done = client
        .wait_long("serviceusage", client.post("serviceusage", path, json!({ "disableDependentServices": true })));
    assert!(done.get("error").is_none());
    let service = client.get("serviceusage", "v1/projects/PROJECT/services/container.googleapis.com").ok();
    assert_eq!(service["state"], "DISABLED");
}

#[test]
fn without_service_usage_nothing_can_be_enabled() {
    let client = Client::quick();
    let project = client.cloud.project().to_owned();
    client.cloud.world().projects.get_mut(&project).unwrap().services.remove("serviceusage.googleapis.com");
    let refused = client.get("serviceusage", "v1/projects/PROJECT/services");
    assert_eq!(refused.reason(), (403, "accessNotConfigured"));
}

#[test]
fn a_project_has_a_billing_account() {
    let client = Client::quick();
    let info = client.get("cloudbilling", "v1/projects/PROJECT/billingInfo").ok();
    assert_eq!(info["billingEnabled"], true);
    let project = client.cloud.project().to_owned();
    client.cloud.world().projects.get_mut(&project).unwrap().billing_account = None;
    assert_eq!(client.get("cloudbilling", "v1/projects/PROJECT/billingInfo").ok()["billingEnabled"], false);
}

const CONNECTIONS: &str = "v1/services/servicenetworking.googleapis.com/connections";
const DELETE: &str = "v1/services/servicenetworking.googleapis.com/connections/servicenetworking-googleapis-com";

fn reserve(client: &Client, name: &str) {
    let body = json!({ "name": name, "addressType": "INTERNAL", "purpose": "VPC_PEERING", "prefixLength": 20,
        "network": format!("projects/{}/global/networks/n", client.cloud.project()) });
    client.wait("compute", client.post("compute", "projects/PROJECT/global/addresses", body));
}

#[test]
fn a_connection_is_made_of_reserved_ranges_and_leaves_a_record() {
    let client = Client::quick();
    client.network();
    let network = format!("projects/{}/global/networks/n", client.cloud.project());
    let body = |range: &str| json!({ "network": network, "reservedPeeringRanges": [range] });
    let failed = client.wait_long("servicenetworking", client.post("servicenetworking", CONNECTIONS, body("r")));
    assert_eq!(failed["error"]["code"], 9);
    reserve(&client, "r");
    reserve(&client, "s");
    let done = client.wait_long("servicenetworking", client.post("servicenetworking", CONNECTIONS, body("r")));
    assert_eq!(done["response"]["peering"], "servicenetworking-googleapis-com");
    let listed =
        client.get("servicenetworking", &format!("{CONNECTIONS}?network=projects/123456789012/global/networks/n")).ok();
    assert_eq!(listed["connections"][0]["network"], "projects/123456789012/global/networks/n");
    // The range and the network are in use.
    assert_eq!(client.call("DELETE", "compute", "projects/PROJECT/global/addresses/r", json!(null)).status, 400);
    assert_eq!(client.get("compute", "projects/PROJECT/global/networks/n").ok()["peerings"][0]["state"], "ACTIVE");
    // The peering goes, and the producer remembers the ranges.
    let remove = json!({ "name": "servicenetworking-googleapis-com" });
    let path = "projects/PROJECT/global/networks/n/removePeering";
    client.wait("compute", client.post("compute", path, remove));
    assert!(client.get("compute", "projects/PROJECT/global/networks/n").ok().get("peerings").is_none());
    let failed = client.wait_long("servicenetworking", client.post("servicenetworking", CONNECTIONS, body("s")));
    assert!(failed["error"]["message"].as_str().unwrap().contains("Cannot modify allocated ranges"));
    let forced = client.call("PATCH", "servicenetworking", &format!("{DELETE}?force=true"), body("s"));
    assert!(client.wait_long("servicenetworking", forced).get("error").is_none());
    let done = client.post("servicenetworking", DELETE, json!({ "consumerNetwork": network }));
    assert!(client.wait_long("servicenetworking", done).get("error").is_none());
}
