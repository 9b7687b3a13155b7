//! Cloud Run.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::{Answer, Client};

const SERVICES: &str = "v2/projects/PROJECT/locations/europe-west4/services";

/// A service with an image of another registry.
fn service(image: &str, memory: &str) -> Value {
    let limits = json!({ "cpu": "1", "memory": memory });
    json!({ "template": { "containers": [{ "image": image, "resources": { "limits": limits } }] } })
}

fn create(client: &Client, name: &str, body: Value) -> Answer {
    client.post("run", &format!("{SERVICES}?serviceId={name}"), body)
}

/// Waits for the operation of an answer: as it ended.
fn wait(client: &Client, answer: Answer) -> Value {
    let path = format!("v2/{}", answer.ok()["name"].as_str().unwrap());
    for _ in 0..200 {
        let read = client.get("run", &path).ok();
        if read["done"] == true {
            return read;
        }
        client.cloud.advance(Duration::from_secs(5));
    }
    panic!("{path} does not end");
}

fn read(client: &Client, name: &str) -> Value {
    client.get("run", &format!("{SERVICES}/{name}")).ok()
}

#[test]
fn a_failed_revision_leaves_the_service_and_the_one_before_it() {
    let client = Client::quick();
    let image = format!("europe-west4-docker.pkg.dev/{}/r/i@sha256:1", client.cloud.project());
    let failed = wait(&client, create(&client, "a", service(&image, "512Mi")));
    assert_eq!(failed["error"]["code"], 13);
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("is not ready and cannot serve traffic") && message.contains("not found"), "{message}");
    let first = read(&client, "a");
    assert_eq!(first["terminalCondition"]["state"], "CONDITION_FAILED");
    assert_eq!((first.get("latestReadyRevision"), first.get("observedGeneration")), (None, None));
    assert_eq!(create(&client, "a", service(&image, "512Mi")).status, 409);

    wait(&client, create(&client, "b", service("r.example/i:1", "512Mi")));
    let ready = read(&client, "b");
    assert_eq!(ready["terminalCondition"]["state"], "CONDITION_SUCCEEDED");
    assert_eq!(ready["latestReadyRevision"], ready["latestCreatedRevision"]);
    client.cloud.world().mute = true;
    let path = format!("{SERVICES}/b?updateMask=template");
    let update = || client.call("PATCH", "run", &path, service("r.example/i:2", "512Mi"));
    assert_eq!(wait(&client, update())["error"]["code"], 13);
    let after = read(&client, "b");
    assert_eq!(after["template"]["containers"][0]["image"], "r.example/i:2", "it shows what does not answer");
    assert_eq!(after["latestReadyRevision"], ready["latestReadyRevision"]);
    assert_eq!(after["observedGeneration"], ready["generation"], "that of the revision that answers");
    client.cloud.world().mute = false;
    // The same template is no revision, unless it is forced.
    wait(&client, update());
    assert_eq!(read(&client, "b")["latestReadyRevision"], ready["latestReadyRevision"]);
    let forced = format!("{path}&forceNewRevision=true");
    wait(&client, client.call("PATCH", "run", &forced, service("r.example/i:2", "512Mi")));
    let repaired = read(&client, "b");
    assert_eq!(repaired["latestReadyRevision"], repaired["latestCreatedRevision"]);
}

#[test]
fn names_are_held_and_instances_have_bounds() {
    let client = Client::with(Options::default().enabled());
    wait(&client, create(&client, "a", service("r.example/i:1", "512Mi")));
    wait(&client, client.call("DELETE", "run", &format!("{SERVICES}/a"), Value::Null));
    assert_eq!(client.get("run", &format!("{SERVICES}/a")).status, 404);
    client.cloud.advance(Duration::from_secs(120));
    wait(&client, create(&client, "a", service("r.example/i:1", "512Mi")));
    assert_eq!(create(&client, "b", service("r.example/i:1", "8192Mi")).status, 400, "one CPU has 4 GiB at most");
    let mut with_gpus = service("r.example/i:1", "4096Mi");
    with_gpus["template"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = json!("1");
    with_gpus["template"]["scaling"] = json!({ "maxInstanceCount": 4 });
    assert!(create(&client, "b", with_gpus).message().contains("Max instances must be set to 3"));
    assert_eq!(create(&client, "B", service("r.example/i:1", "512Mi")).status, 400);
}
