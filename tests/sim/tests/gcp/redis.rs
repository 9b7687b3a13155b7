//! Instances of Memorystore for Redis.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::sql::connect;
use crate::{Answer, Client};

const INSTANCES: &str = "v1/projects/PROJECT/locations/europe-west4/instances";

fn instance(client: &Client, more: Value) -> Value {
    let network = format!("projects/{}/global/networks/n", client.cloud.project());
    let mut body = json!({
        "tier": "BASIC", "memorySizeGb": 1, "authorizedNetwork": network, "connectMode": "PRIVATE_SERVICE_ACCESS",
        "authEnabled": true, "transitEncryptionMode": "SERVER_AUTHENTICATION",
    });
    for (member, value) in more.as_object().cloned().unwrap_or_default() {
        body[member] = value;
    }
    body
}

fn create(client: &Client, name: &str, more: Value) -> Answer {
    client.post("redis", &format!("{INSTANCES}?instanceId={name}"), instance(client, more))
}

fn patch(client: &Client, mask: &str, body: Value) -> Answer {
    client.call("PATCH", "redis", &format!("{INSTANCES}/i?updateMask={mask}"), body)
}

#[test]
fn an_instance_lives_with_its_auth_string_and_ends() {
    let client = Client::quick();
    client.network();
    let refused = create(&client, "i", json!({}));
    assert!(refused.message().contains("private service access is not enabled"), "{refused:?}");
    connect(&client, 24);
    let done = client.wait_long("redis", create(&client, "i", json!({ "labels": { "a": "b" } })));
    assert!(done.get("error").is_none(), "{done}");
    let read = client.get("redis", &format!("{INSTANCES}/i")).ok();
    assert_eq!((&read["state"], &read["port"], &read["replicaCount"]), (&json!("READY"), &json!(6378), &json!(0)));
    assert!(read["host"].as_str().unwrap().starts_with("10."));
    assert!(read["serverCaCerts"][0]["cert"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    let auth = client.get("redis", &format!("{INSTANCES}/i/authString")).ok();
    let auth = auth["authString"].as_str().unwrap();
    assert!(!auth.is_empty() && !read.to_string().contains(auth), "no instance shows it");
    client.wait_long("redis", patch(&client, "memorySizeGb", json!({ "memorySizeGb": 3 })));
    let list = client.get("redis", &INSTANCES.replace("europe-west4", "-")).ok();
    assert_eq!(list["instances"][0]["memorySizeGb"], 3);
    assert_eq!(create(&client, "i", json!({})).status, 409);
    client.wait_long("redis", client.call("DELETE", "redis", &format!("{INSTANCES}/i"), Value::Null));
    assert_eq!(client.get("redis", &format!("{INSTANCES}/i")).status, 404);
    assert_eq!(client.get("redis", &format!("{INSTANCES}/i/authString")).status, 404);
}

/// <https://cloud.google.com/memorystore/docs/redis/about-redis-auth>
#[test]
fn auth_that_is_switched_on_again_has_another_string() {
    let client = Client::quick();
    client.network();
    connect(&client, 24);
    client.wait_long("redis", create(&client, "i", json!({})));
    let auth = || client.get("redis", &format!("{INSTANCES}/i/authString")).ok()["authString"].clone();
    let before = auth();
    assert!(before.is_string(), "{before}");
    client.wait_long("redis", patch(&client, "authEnabled", json!({ "authEnabled": true })));
    assert_eq!(auth(), before, "it was on");
    client.wait_long("redis", patch(&client, "authEnabled", json!({ "authEnabled": false })));
    assert_eq!(auth(), Value::Null);
    client.wait_long("redis", patch(&client, "authEnabled", json!({ "authEnabled": true })));
    assert!(auth().is_string() && auth() != before, "{before}");
}

#[test]
fn what_memorystore_refuses_is_refused() {
    let client = Client::quick();
    client.network();
    connect(&client, 24);
    for (more, says) in [
        (json!({ "tier": "STANDARD_HA", "replicaCount": 1 }), "requires read-replicas-mode"),
        (json!({ "tier": "STANDARD_HA", "readReplicasMode": "READ_REPLICAS_ENABLED" }), "at least 5 GB"),
        (json!({ "memorySizeGb": 301 }), "between 1 and 300"),
        (json!({ "authorizedNetwork": "projects/other/global/networks/n" }), "the same project"),
    ] {
        let refused = create(&client, "i", more);
        assert!(refused.status == 400 && refused.message().contains(says), "{says}: {refused:?}");
    }
    assert_eq!(create(&client, &"i".repeat(41), json!({})).status, 400);
    client.wait_long("redis", create(&client, "i", json!({})));
    for (mask, says) in
        [("memorySizeGb,labels", "exactly 1"), ("tier", "unsupported"), ("replicaCount", "read-replicas-mode")]
    {
        let refused = patch(&client, mask, json!({ "memorySizeGb": 2, "replicaCount": 1 }));
        assert!(refused.status == 400 && refused.message().contains(says), "{mask}: {refused:?}");
    }
}

#[test]
fn an_instance_holds_the_connection_of_its_network() {
    let client = Client::with(Options::default().enabled());
    {
        let mut world = client.cloud.world();
        world.conduct.network_busy = 0..0;
        world.conduct.producer_hold = 86_400..86_401;
    }
    client.network();
    connect(&client, 24);
    client.cloud.advance(Duration::from_secs(1));
    client.wait_long("redis", create(&client, "i", json!({})));
    let network = format!("projects/{}/global/networks/n", client.cloud.project());
    let path = "v1/services/servicenetworking.googleapis.com/connections/servicenetworking-googleapis-com";
    let delete = || client.post("servicenetworking", path, json!({ "consumerNetwork": network }));
    assert_eq!(client.wait_long("servicenetworking", delete())["error"]["code"], 9);
    client.wait_long("redis", client.call("DELETE", "redis", &format!("{INSTANCES}/i"), Value::Null));
    assert_eq!(client.wait_long("servicenetworking", delete())["error"]["code"], 9);
    client.cloud.advance(Duration::from_secs(86_400));
    assert!(client.wait_long("servicenetworking", delete()).get("error").is_none());
}
