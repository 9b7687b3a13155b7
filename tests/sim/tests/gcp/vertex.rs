//! Vertex AI.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::{Answer, Client};

const PLACE: &str = "v1/projects/PROJECT/locations/europe-west4";
const ENDPOINT: &str = "v1/projects/PROJECT/locations/europe-west4/endpoints/e";

/// Waits for the operation of an answer: as it ended.
fn wait(client: &Client, answer: Answer) -> Value {
    let path = format!("v1/{}", answer.ok()["name"].as_str().unwrap());
    for _ in 0..500 {
        let read = client.get("aiplatform", &path).ok();
        if read["done"] == true {
            return read;
        }
        client.cloud.advance(Duration::from_secs(5));
    }
    panic!("{path} does not end");
}

fn upload(client: &Client, id: &str, image: &str, parent: Option<&str>) -> Answer {
    let model = json!({ "displayName": id, "containerSpec": { "imageUri": image } });
    let mut body = json!({ "modelId": id, "model": model });
    if let Some(parent) = parent {
        let named = format!("projects/{}/locations/europe-west4/models/{parent}", client.cloud.project());
        body["parentModel"] = json!(named);
    }
    client.post("aiplatform", &format!("{PLACE}/models:upload"), body)
}

fn deploy(client: &Client, id: &str, model: &str, split: Value) -> Answer {
    let named = format!("projects/{}/locations/europe-west4/models/{model}", client.cloud.project());
    let resources =
        json!({ "machineSpec": { "machineType": "e2-standard-4" }, "minReplicaCount": 1, "maxReplicaCount": 1 });
    let deployed = json!({ "id": id, "model": named, "displayName": id, "dedicatedResources": resources });
    let body = json!({ "deployedModel": deployed, "trafficSplit": split });
    client.post("aiplatform", &format!("{ENDPOINT}:deployModel"), body)
}

fn undeploy(client: &Client, id: &str, split: Value) -> Answer {
    let mut body = json!({ "deployedModelId": id });
    if !split.is_null() {
        body["trafficSplit"] = split;
    }
    client.post("aiplatform", &format!("{ENDPOINT}:undeployModel"), body)
}

fn endpoint(client: &Client) -> Value {
    client.get("aiplatform", ENDPOINT).ok()
}

/// An endpoint `e` and a model `m`.
fn client(options: Options) -> Client {
    let client = Client::with(options.enabled());
    let body = json!({ "displayName": "e", "dedicatedEndpointEnabled": true });
    wait(&client, client.post("aiplatform", &format!("{PLACE}/endpoints?endpointId=e"), body));
    wait(&client, upload(&client, "m", "r.example/i:1", None));
    client
}

#[test]
fn a_model_with_traffic_is_undeployed_only_with_its_traffic_moved_or_as_the_last_one() {
    let client = client(Options::zero_latency());
    wait(&client, deploy(&client, "1", "m", json!({ "0": 100 })));
    assert_eq!(endpoint(&client)["trafficSplit"], json!({ "1": 100 }));
    assert_eq!(deploy(&client, "1", "m", json!({})).status, 400, "the id is taken");
    assert_eq!(deploy(&client, "12345678901", "m", json!({})).status, 400, "it is too long");
    wait(&client, deploy(&client, "2", "m", json!({})));
    assert_eq!(endpoint(&client)["trafficSplit"], json!({ "1": 100 }), "without a split it stays");
    let refused = undeploy(&client, "1", Value::Null);
    assert!(refused.status == 400 && refused.message().contains("has traffic assigned"), "{}", refused.body);
    assert!(undeploy(&client, "1", json!({ "0": 100 })).message().contains("do not exist"));
    assert_eq!(undeploy(&client, "1", json!({ "2": 60 })).status, 400, "it adds up to 60");
    wait(&client, undeploy(&client, "1", json!({ "2": 100 })));
    assert_eq!(endpoint(&client)["trafficSplit"], json!({ "2": 100 }));
    assert_eq!(undeploy(&client, "1", Value::Null).status, 404);
    let deleted = client.call("DELETE", "aiplatform", ENDPOINT, Value::Null);
    assert!(deleted.status == 400 && deleted.message().contains("deployed"), "{}", deleted.body);
    let model = format!("{PLACE}/models/m");
    assert!(client.call("DELETE", "aiplatform", &model, Value::Null).message().contains("deployed or being deployed"));
    wait(&client, undeploy(&client, "2", Value::Null));
    assert_eq!(endpoint(&client)["trafficSplit"], json!({}));
    wait(&client, client.call("DELETE", "aiplatform", &model, Value::Null));
    wait(&client, client.call("DELETE", "aiplatform", ENDPOINT, Value::Null));
    assert_eq!(client.get("aiplatform", ENDPOINT).status, 404);
}

#[test]
fn a_deployment_takes_long_shows_at_its_end_and_leaves_nothing_if_it_fails() {
    let client = client(Options::default());
    let started = deploy(&client, "1", "m", json!({ "0": 100 }));
    assert!(endpoint(&client).get("deployedModels").is_none());
    assert!(endpoint(&client).get("dedicatedEndpointDns").is_none(), "it has no name in DNS yet");
    let deleted = client.call("DELETE", "aiplatform", ENDPOINT, Value::Null);
    assert!(deleted.status == 400 && deleted.message().contains("being-deployed"), "{}", deleted.body);
    let listed = client.get("aiplatform", &format!("{ENDPOINT}/operations")).ok();
    let running = listed["operations"].as_array().unwrap().iter().filter(|one| one["done"] != true).count();
    assert_eq!(running, 1);
    wait(&client, started);
    assert_eq!(endpoint(&client)["deployedModels"][0]["modelVersionId"], "1");
    client.cloud.world().mute = true;
    let failed = wait(&client, deploy(&client, "2", "m", json!({ "0": 100 })));
    assert_eq!(failed["error"]["code"], 9, "{failed}");
    let after = endpoint(&client);
    assert_eq!((after["deployedModels"].as_array().unwrap().len(), &after["trafficSplit"]), (1, &json!({ "1": 100 })));
}

#[test]
fn an_upload_with_a_parent_is_a_version_of_it() {
    let client = client(Options::zero_latency());
    assert_eq!(upload(&client, "m", "r.example/i:2", None).status, 409);
    wait(&client, upload(&client, "ignored", "r.example/i:2", Some("m")));
    let model = client.get("aiplatform", &format!("{PLACE}/models/m")).ok();
    assert_eq!((&model["versionId"], &model["containerSpec"]["imageUri"]), (&json!("2"), &json!("r.example/i:2")));
    let number = "123456789012";
    assert_eq!(model["name"], format!("projects/{number}/locations/europe-west4/models/m"));
    let own = format!("europe-west4-docker.pkg.dev/{}/r/i@sha256:1", client.cloud.project());
    assert_eq!(wait(&client, upload(&client, "n", &own, None))["error"]["code"], 5, "there is no such image");
    assert_eq!(client.get("aiplatform", &format!("{PLACE}/models/n")).status, 404);
}

#[test]
fn replicas_and_timeouts_change_by_methods_of_their_own() {
    let client = client(Options::zero_latency());
    wait(&client, deploy(&client, "1", "m", json!({ "0": 100 })));
    let mutate = |mask: &str, resources: Value| {
        let body = json!({ "deployedModel": { "id": "1", "dedicatedResources": resources }, "updateMask": mask });
        client.post("aiplatform", &format!("{ENDPOINT}:mutateDeployedModel"), body)
    };
    wait(&client, mutate("dedicatedResources.maxReplicaCount", json!({ "maxReplicaCount": 3 })));
    assert_eq!(endpoint(&client)["deployedModels"][0]["dedicatedResources"]["maxReplicaCount"], 3);
    assert_eq!(mutate("dedicatedResources.machineSpec", json!({})).status, 400);
    let update = |body: Value| client.post("aiplatform", &format!("{ENDPOINT}:update"), json!({ "endpoint": body }));
    wait(&client, update(json!({ "clientConnectionConfig": { "inferenceTimeout": "60s" } })));
    assert_eq!(endpoint(&client)["clientConnectionConfig"]["inferenceTimeout"], "60s");
    assert_eq!(update(json!({ "displayName": "other" })).status, 400);
    let patch = format!("{ENDPOINT}?updateMask=trafficSplit");
    assert_eq!(client.call("PATCH", "aiplatform", &patch, json!({ "trafficSplit": { "9": 100 } })).status, 400);
}
