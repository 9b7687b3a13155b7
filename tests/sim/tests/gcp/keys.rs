//! Cloud KMS and Artifact Registry.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::Client;

const RINGS: &str = "v1/projects/PROJECT/locations/europe-west4/keyRings";

#[test]
fn keys_have_versions_that_are_destroyed_late() {
    let client = Client::with(Options::default().enabled());
    client.post("cloudkms", &format!("{RINGS}?keyRingId=Ring_1"), json!({})).ok();
    assert_eq!(
        client.post("cloudkms", &format!("{RINGS}?keyRingId=Ring_1"), json!({})).reason(),
        (409, "alreadyExists")
    );
    let keys = format!("{RINGS}/Ring_1/cryptoKeys");
    let body = json!({ "purpose": "ENCRYPT_DECRYPT", "labels": { "a": "b" } });
    let key = client.post("cloudkms", &format!("{keys}?cryptoKeyId=k"), body).ok();
    assert_eq!(key["destroyScheduledDuration"], "2592000s");
    let path = format!("{keys}/k");
    let read = client.get("cloudkms", &path).ok();
    assert_eq!(read["primary"]["state"], "ENABLED");
    let patch = json!({ "labels": { "a": "c" } });
    assert_eq!(client.call("PATCH", "cloudkms", &path, patch.clone()).status, 400);
    let patched = client.call("PATCH", "cloudkms", &format!("{path}?updateMask=labels"), patch).ok();
    assert_eq!(patched["labels"]["a"], "c");
    let versions = format!("{path}/cryptoKeyVersions");
    client.post("cloudkms", &versions, json!({})).ok();
    client.post("cloudkms", &format!("{path}:updatePrimaryVersion"), json!({ "cryptoKeyVersionId": "2" })).ok();
    assert!(client.get("cloudkms", &path).ok()["primary"]["name"].as_str().unwrap().ends_with("/2"));
    let destroy = format!("{versions}/1:destroy");
    assert_eq!(client.post("cloudkms", &destroy, json!({})).ok()["state"], "DESTROY_SCHEDULED");
    assert_eq!(client.post("cloudkms", &destroy, json!({})).reason(), (400, "failedPrecondition"));
    assert_eq!(client.post("cloudkms", &format!("{versions}/1:restore"), json!({})).ok()["state"], "DISABLED");
    client.post("cloudkms", &destroy, json!({})).ok();
    client.cloud.advance(Duration::from_secs(31 * 86_400));
    assert_eq!(client.get("cloudkms", &format!("{versions}/1")).ok()["state"], "DESTROYED");
    assert_eq!(client.get("cloudkms", &keys).ok()["totalSize"], 1);
    // Rings stay.
    assert_eq!(client.call("DELETE", "cloudkms", &format!("{RINGS}/Ring_1"), Value::Null).status, 501);
    assert_eq!(client.cloud.take_violations().len(), 1);
}

#[test]
fn a_version_of_a_hardware_key_is_generated_first() {
    let client = Client::with(Options::default().enabled());
    client.post("cloudkms", &format!("{RINGS}?keyRingId=r"), json!({})).ok();
    let body = json!({ "purpose": "ENCRYPT_DECRYPT", "versionTemplate": { "protectionLevel": "HSM" } });
    client.post("cloudkms", &format!("{RINGS}/r/cryptoKeys?cryptoKeyId=k"), body).ok();
    let version = format!("{RINGS}/r/cryptoKeys/k/cryptoKeyVersions/1");
    let refused = client.post("cloudkms", &format!("{version}:destroy"), json!({}));
    assert!(refused.message().contains("PENDING_GENERATION"));
    client.cloud.advance(Duration::from_secs(10));
    assert_eq!(client.get("cloudkms", &version).ok()["state"], "ENABLED");
}

#[test]
fn repositories_are_made_by_operations_and_changed_by_masks() {
    let client = Client::quick();
    let collection = "v1/projects/PROJECT/locations/europe-west4/repositories";
    let started =
        client.post("artifactregistry", &format!("{collection}?repositoryId=images"), json!({ "format": "DOCKER" }));
    let done = client.wait_long("artifactregistry", started);
    assert_eq!(done["response"]["format"], "DOCKER");
    let path = format!("{collection}/images");
    let read = client.get("artifactregistry", &path).ok();
    let registry = format!("europe-west4-docker.pkg.dev/{}/images", client.cloud.project());
    assert_eq!((&read["mode"], &read["registryUri"]), (&json!("STANDARD_REPOSITORY"), &json!(registry)));
    let body = json!({ "labels": { "a": "b" }, "format": "NPM" });
    assert_eq!(client.call("PATCH", "artifactregistry", &path, body.clone()).status, 400);
    assert_eq!(
        client.call("PATCH", "artifactregistry", &format!("{path}?updateMask=format"), body.clone()).status,
        400
    );
    let patched = client.call("PATCH", "artifactregistry", &format!("{path}?updateMask=labels"), body).ok();
    assert_eq!((&patched["labels"]["a"], &patched["format"]), (&json!("b"), &json!("DOCKER")));
    let policy = json!({ "policy": { "bindings": [{ "role": "roles/artifactregistry.reader",
        "members": ["user:a@example.com"] }] } });
    client.post("artifactregistry", &format!("{path}:setIamPolicy"), policy).ok();
    let read = client.get("artifactregistry", &format!("{path}:getIamPolicy?options.requestedPolicyVersion=3")).ok();
    assert_eq!(read["bindings"][0]["role"], "roles/artifactregistry.reader");
    assert_eq!(client.get("artifactregistry", collection).ok()["repositories"].as_array().unwrap().len(), 1);
    client.wait_long("artifactregistry", client.call("DELETE", "artifactregistry", &path, Value::Null));
    assert_eq!(client.get("artifactregistry", &path).status, 404);
}
