//! Azure Machine Learning: names that live on, quotas, traffic, and what a deployment fails for.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::azure::Options;
use textnlp_sim::gcp::run::Container;

use crate::{Answer, Client, send};

const ACCOUNT: &str = "G/Microsoft.Storage/storageAccounts/textnlpworkspace";
const VAULT: &str = "G/Microsoft.KeyVault/vaults/textnlp-workspace";
const IDENTITY: &str = "G/Microsoft.ManagedIdentity/userAssignedIdentities/server";
const REGISTRY: &str = "G/Microsoft.ContainerRegistry/registries/textnlpimages";
const WORKSPACE: &str = "G/Microsoft.MachineLearningServices/workspaces/w";
const READER: &str = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1";
const PULL: &str = "7f951dda-4ed3-4680-a7ca-43fe172d538d";
const DIGEST: &str = "sha256:1";

fn below(rest: &str) -> String {
    format!("{WORKSPACE}-1/{rest}").trim_end_matches('/').to_owned()
}

/// What a workspace needs, and a workspace.
fn client(options: Options) -> Client {
    let client = Client::with(options.registered());
    let account = json!({ "location": "westeurope", "sku": { "name": "Standard_LRS" }, "kind": "StorageV2" });
    client.make(ACCOUNT, account);
    let vault = json!({ "location": "westeurope", "properties": { "tenantId": "00000000-5555-4666-8777-888888888888",
        "sku": { "family": "A", "name": "standard" }, "enableRbacAuthorization": true } });
    client.make(VAULT, vault);
    // Reads may miss what is new for a while.
    client.cloud.advance(Duration::from_secs(60));
    client.make(&below(""), workspace(&client));
    client.cloud.advance(Duration::from_secs(60));
    client
}

fn workspace(client: &Client) -> Value {
    json!({ "location": "westeurope", "identity": { "type": "SystemAssigned" }, "properties": {
        "storageAccount": client.path(ACCOUNT), "keyVault": client.path(VAULT), "systemDatastoresAuthMode": "identity" } })
}

fn endpoint(client: &Client, traffic: Value) -> Value {
    json!({ "location": "westeurope", "kind": "Managed",
        "identity": { "type": "UserAssigned", "userAssignedIdentities": { (client.path(IDENTITY)): {} } },
        "properties": { "authMode": "AADToken", "traffic": traffic } })
}

fn deployment(client: &Client, machine: &str, count: u64) -> Value {
    json!({ "location": "westeurope", "sku": { "name": "Default", "capacity": count }, "properties": {
        "endpointComputeType": "Managed", "instanceType": machine, "environmentVariables": { "A": "b" },
        "environmentId": client.path(&below("environments/servers/versions/1")),
        "requestSettings": { "requestTimeout": "PT3M" } } })
}

/// The endpoint `e-1` with an identity that has both roles, and an environment with an image that was pushed.
fn with_endpoint(options: Options) -> Client {
    let client = client(options);
    let identity = client.make(IDENTITY, json!({ "location": "westeurope" }));
    client.make(REGISTRY, json!({ "location": "westeurope", "sku": { "name": "Standard" } }));
    let principal = identity["properties"]["principalId"].as_str().unwrap();
    {
        let mut world = client.cloud.world();
        world.assign(&client.path(ACCOUNT), READER, principal);
        world.assign(&client.path(REGISTRY), PULL, principal);
        let repository = world.registry.repositories.entry("textnlpimages.azurecr.io/text".to_owned()).or_default();
        repository.images.insert("1".to_owned(), DIGEST.to_owned());
    }
    let route = json!({ "path": "/invocations", "port": 8080 });
    let environment = json!({ "properties": { "image": format!("textnlpimages.azurecr.io/text@{DIGEST}"),
        "inferenceConfig": { "scoringRoute": route } } });
    client.put(&below("environments/servers/versions/1"), environment).ok();
    client.make(&below("onlineEndpoints/e-1"), endpoint(&client, json!({})));
    client
}

/// Azure/ResourceModules#3397, Azure/ResourceModules#3596.
#[test]
fn a_deleted_workspace_keeps_its_name_until_it_is_purged() {
    let client = client(Options::zero_latency());
    let path = below("");
    client.drop_one(&path);
    assert_eq!(client.failure(client.put(&path, workspace(&client))), "BadRequest");
    assert_eq!(client.get(&path).status, 404, "a failed creation leaves nothing");
    client.cloud.advance(Duration::from_secs(15 * 86_400));
    client.make(&path, workspace(&client));
    let purged = client.wait(client.delete(&format!("{path}?forceToPurge=true")));
    assert_eq!(purged["status"], "Succeeded");
    client.make(&path, workspace(&client));
}

/// Azure/mlops-project-template#29, Azure/azureml-examples#1930, Azure/azure-cli-extensions#7660.
#[test]
fn the_name_of_an_endpoint_is_unique_in_a_region_and_lives_on() {
    let client = client(Options::default());
    client.make(IDENTITY, json!({ "location": "westeurope" }));
    client.cloud.world().conduct.name_hold = 100..101;
    let path = below("onlineEndpoints/e-1");
    client.make(&path, endpoint(&client, json!({})));
    client.make(&format!("{WORKSPACE}-2"), workspace(&client));
    client.cloud.advance(Duration::from_secs(60));
    let other = format!("{WORKSPACE}-2/onlineEndpoints/e-1");
    let refused = client.put(&other, endpoint(&client, json!({})));
    assert_eq!(refused.code(), (400, "BadRequest"));
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("unique within a region"));
    client.wait(client.delete(&path));
    assert_eq!(client.put(&path, endpoint(&client, json!({}))).code(), (400, "BadRequest"));
    client.cloud.advance(Duration::from_secs(200));
    client.make(&other, endpoint(&client, json!({})));
}

#[test]
fn traffic_goes_to_deployments_that_are_there_and_adds_up() {
    let client = with_endpoint(Options::zero_latency());
    let path = below("onlineEndpoints/e-1");
    client.make(&format!("{path}/deployments/one"), deployment(&client, "Standard_DS3_v2", 1));
    for wrong in [json!({ "two": 100 }), json!({ "one": 60 })] {
        assert_eq!(client.put(&path, endpoint(&client, wrong)).code(), (400, "BadRequest"));
    }
    assert!(client.get(&path).ok()["properties"]["scoringUri"].as_str().unwrap().ends_with("/e-1/score"));
    let made = client.make(&path, endpoint(&client, json!({ "one": 100 })));
    assert!(made["properties"]["scoringUri"].as_str().unwrap().ends_with("/e-1/invocations"), "{made}");
    let unknown = json!({ "location": "westeurope", "properties": { "authMode": "Key", "trafic": {} } });
    assert_eq!(client.put(&path, unknown).code(), (400, "BadRequest"));
    client.drop_one(&path);
    assert_eq!(client.get(&format!("{path}/deployments/one")).status, 404, "it ended with its endpoint");
}

/// MicrosoftLearning/mslearn-azure-ml#30, Azure/mlops-v2#124, Azure/AML-Kubernetes#247.
#[test]
fn machines_count_with_a_fifth_more_against_a_quota_of_their_own() {
    let client = with_endpoint(Options::zero_latency());
    let usages = "providers/Microsoft.MachineLearningServices/locations/westeurope/usages";
    let family = "Standard DSv2 Family Cluster Dedicated vCPUs";
    client.cloud.world().quotas.insert(("westeurope".to_owned(), family.to_owned()), 12);
    let path = below("onlineEndpoints/e-1/deployments/one");
    let refused = client.put(&path, deployment(&client, "Standard_DS3_v2", 3));
    assert_eq!(refused.code(), (400, "InferencingClientCreateDeploymentFailed"));
    client.make(&path, deployment(&client, "Standard_DS3_v2", 1));
    let used = || {
        let all = client.get(usages).ok();
        let is_family = |one: &&Value| {
            one["name"]["value"] == family && one["type"] == "Microsoft.MachineLearningServices/vmFamily/usages"
        };
        let one = all["value"].as_array().unwrap().iter().find(is_family).cloned().unwrap();
        (one["currentValue"].as_u64().unwrap(), one["limit"].as_u64().unwrap())
    };
    assert_eq!(used(), (8, 12));
    let more = client.call("PATCH", &path, json!({ "sku": { "name": "Default", "capacity": 2 } }));
    client.wait(more);
    assert_eq!(used(), (12, 12));
    let other = client.put(&path, deployment(&client, "Standard_DS4_v2", 1));
    assert_eq!(other.code(), (400, "PropertyChangeNotAllowed"));
    let total = "Total Cluster Dedicated Regional vCPUs";
    client.cloud.world().quotas.insert(("westeurope".to_owned(), total.to_owned()), 12);
    let regional = client.put(&below("onlineEndpoints/e-1/deployments/two"), deployment(&client, "Standard_F8s_v2", 1));
    assert_eq!(regional.code(), (400, "InferencingClientCreateDeploymentFailed"), "12 cores are used");
    client.cloud.world().quotas.clear();
    let gpus =
        client.put(&below("onlineEndpoints/e-1/deployments/two"), deployment(&client, "Standard_NC4as_T4_v3", 1));
    assert_eq!(gpus.code(), (400, "InferencingClientCreateDeploymentFailed"), "a subscription has no GPUs at first");
}

/// MicrosoftLearning/mslearn-azure-ml#106.
#[test]
fn a_deployment_fails_without_namespaces_rights_and_an_image_and_stays() {
    let client = with_endpoint(Options::zero_latency());
    let path = |name: &str| below(&format!("onlineEndpoints/e-1/deployments/{name}"));
    let put = |name: &str| client.put(&path(name), deployment(&client, "Standard_DS3_v2", 1));
    let registered = client.cloud.world().namespaces.remove("microsoft.cdn").unwrap();
    assert_eq!(put("one").code(), (400, "SubscriptionNotRegistered"));
    client.cloud.world().namespaces.insert("microsoft.cdn".to_owned(), registered);
    let mut long = deployment(&client, "Standard_DS3_v2", 1);
    long["properties"]["requestSettings"]["requestTimeout"] = json!("PT5M");
    assert_eq!(client.put(&path("one"), long).code(), (400, "BadRequest"));
    client.cloud.world().mute = true;
    let said = client.wait(put("one"));
    let error = &said["error"];
    assert!(error["code"].is_null() && error["message"].as_str().unwrap().starts_with("ResourceNotReady: "), "{said}");
    client.cloud.world().mute = false;
    assert_eq!(client.get(&path("one")).ok()["properties"]["provisioningState"], "Failed");
    client.cloud.world().registry.repositories.clear();
    assert_eq!(client.failure(put("two")), "BadArgument");
    client.cloud.world().objects.retain(|key, _| !key.contains("/roleassignments/"));
    assert_eq!(client.failure(put("three")), "BadArgument");
}

#[test]
fn requests_need_a_token_with_the_right_to_score_and_reach_the_container() {
    let client = with_endpoint(Options::zero_latency());
    let path = below("onlineEndpoints/e-1");
    client.make(&format!("{path}/deployments/one"), deployment(&client, "Standard_DS3_v2", 1));
    let made = client.make(&path, endpoint(&client, json!({ "one": 100 })));
    let url = made["properties"]["scoringUri"].as_str().unwrap().to_owned();
    client.cloud.world().containers = Some(Arc::new(|container: &Container, method: &str, path: &str, body: &[u8]| {
        assert_eq!(container.environment["A"], "b");
        let said = json!({ "method": method, "path": path, "bytes": body.len() });
        (if body == b"busy" { 503 } else { 200 }, said.to_string().into_bytes())
    }));
    let ask = |token: &str, body: &str| -> Answer {
        send("POST", &url, &[("authorization", format!("Bearer {token}"))], body)
    };
    let token = client.cloud.scoring_token_of(client.cloud.operator());
    assert_eq!(ask(&token, "{}").ok(), json!({ "method": "POST", "path": "/invocations", "bytes": 2 }));
    let busy = ask(&token, "busy");
    assert_eq!((busy.status, busy.header("ms-azureml-model-error-statuscode")), (424, Some("503")));
    assert_eq!(busy.body["bytes"], 4, "the body is that of the container");
    assert_eq!(ask(&client.token, "{}").status, 401, "it is one for Resource Manager");
    assert_eq!(ask(&token, &"a".repeat(1_500_001)).status, 413);
    let right = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/score/action";
    client.cloud.world().denied.insert(right.to_owned());
    assert_eq!(ask(&token, "{}").status, 401);
    client.cloud.world().denied.clear();
    client.make(&path, endpoint(&client, json!({})));
    assert_eq!(ask(&token, "{}").status, 404, "no deployment has traffic");
}
