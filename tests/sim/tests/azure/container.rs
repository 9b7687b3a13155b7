//! AKS: clusters, pools, stock and quotas.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::Market;
use textnlp_sim::azure::{Options, Policy};

use crate::Client;

const CLUSTER: &str = "G/Microsoft.ContainerService/managedClusters/c";
const T4: &str = "Standard NCASv3_T4 Family";

fn cluster() -> Value {
    json!({ "location": "westeurope", "identity": { "type": "SystemAssigned" }, "tags": { "a": "b" }, "properties": {
        "dnsPrefix": "textnlp", "oidcIssuerProfile": { "enabled": true }, "disableLocalAccounts": true,
        "aadProfile": { "managed": true, "enableAzureRBAC": true }, "kubernetesVersion": "1.33",
        "agentPoolProfiles": [{ "name": "system", "mode": "System", "count": 1, "vmSize": "Standard_D2s_v5" }] } })
}

fn pool(size: &str, count: i64, more: Value) -> Value {
    let mut body = json!({ "properties": { "mode": "User", "count": count, "vmSize": size } });
    for (name, value) in more.as_object().unwrap() {
        body["properties"][name] = value.clone();
    }
    body
}

fn at(name: &str) -> String {
    format!("{CLUSTER}/agentPools/{name}")
}

/// A cluster without delays.
fn quick() -> Client {
    let client = Client::quick();
    client.make(CLUSTER, cluster());
    client
}

#[test]
fn a_cluster_has_its_group_and_its_access() {
    let client = quick();
    client.cloud.set_cluster_endpoint("https://127.0.0.1:6443", "CERTIFICATE");
    let body = client.get(CLUSTER).ok();
    assert!(body["id"].as_str().unwrap().contains("/resourcegroups/"), "ids are in other letters: {}", body["id"]);
    let properties = &body["properties"];
    assert_eq!(properties["kubernetesVersion"], "1.33");
    assert_eq!(properties["currentKubernetesVersion"], "1.33.5");
    assert_eq!(properties["nodeResourceGroup"], "MC_g_c_westeurope");
    assert_eq!(properties["agentPoolProfiles"][0]["upgradeSettings"]["maxSurge"], "10%");
    let nodes = client.path("resourceGroups/MC_g_c_westeurope");
    assert_eq!(client.get(&nodes).ok()["tags"]["a"], "b");
    let said = client.post(&format!("{CLUSTER}/listClusterUserCredential?format=exec"), Value::Null).ok();
    use base64::Engine;
    let config = said["kubeconfigs"][0]["value"].as_str().unwrap();
    let config = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(config).unwrap()).unwrap();
    assert!(config.contains("server: https://127.0.0.1:6443"), "{config}");
    assert_eq!(client.post(&format!("{CLUSTER}/listClusterAdminCredential"), Value::Null).code(), (400, "BadRequest"));

    // The owner of a subscription is no administrator of its clusters.
    let operator = client.cloud.variables().into_iter().find(|one| one.0 == "AZURE_CLIENT_ID").unwrap().1;
    let tenant = client.cloud.variables().into_iter().find(|one| one.0 == "AZURE_TENANT_ID").unwrap().1;
    let secret = client.cloud.variables().into_iter().find(|one| one.0 == "AZURE_CLIENT_SECRET").unwrap().1;
    let form = format!(
        "grant_type=client_credentials&client_id={operator}&client_secret={secret}&\
         scope=6dae42f8-4368-4678-94ff-3960e28e3630%2F.default"
    );
    let said = crate::send("POST", &format!("{}/{tenant}/oauth2/v2.0/token", client.cloud.url()), &[], &form).ok();
    let token = said["access_token"].as_str().unwrap();
    let id = client.path(CLUSTER);
    assert_eq!(client.cloud.cluster_user(token, &id), None);
    client.grant(&id, "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b", &operator, 7).ok();
    client.get("GROUP").ok();
    assert_eq!(client.cloud.cluster_user(token, &id), Some(operator));
    client.drop_one(CLUSTER);
    assert_eq!(client.get(&nodes).status, 404);
}

/// Azure/AKS#1913, Azure/azure-workload-identity#417, Azure/AKS#2880.
#[test]
fn one_operation_at_a_time() {
    let client = Client::with(Options::default().registered());
    client.cloud.world().conduct.reconciliation = 100..101;
    let answer = client.put(CLUSTER, cluster());
    assert_eq!(answer.status, 201);
    assert!(answer.header("azure-asyncoperation").unwrap().len() > 2000, "its address is signed");
    let refused = client.put(&at("cpu"), pool("Standard_D2s_v5", 1, json!({})));
    assert_eq!(refused.code(), (409, "OperationNotAllowed"));
    client.wait(answer);
    client.cloud.advance(Duration::from_secs(50));
    let refused = client.put(&at("cpu"), pool("Standard_D2s_v5", 1, json!({})));
    assert_eq!(refused.code(), (409, "OperationNotAllowed"), "AKS works on it without a request");
    client.cloud.advance(Duration::from_secs(200));
    let answer = client.put(&at("cpu"), pool("Standard_D2s_v5", 1, json!({})));
    client.cloud.world().conduct.preempts = true;
    let second = client.put(&at("cpu"), pool("Standard_D2s_v5", 2, json!({})));
    let said = client.wait(answer);
    assert_eq!(
        (said["status"].as_str(), said["error"]["code"].as_str()),
        (Some("Canceled"), Some("OperationPreempted"))
    );
    assert_eq!(client.wait(second)["status"], "Succeeded");
}

/// Azure/AKS#3152, hashicorp/terraform-provider-azurerm#14024, hashicorp/terraform-provider-azurerm#19355,
/// hashicorp/terraform-provider-azurerm#10951, pulumi/pulumi-azure-native#959.
#[test]
fn pools_have_fixed_members_and_defaults() {
    let client = quick();
    client.make(&at("cpu"), pool("Standard_D2s_v5", 1, json!({ "nodeLabels": { "a": "b" } })));
    let refused = client.put(&at("cpu"), pool("Standard_D4s_v5", 1, json!({})));
    assert_eq!(
        (refused.code(), refused.body["error"]["target"].as_str()),
        ((400, "PropertyChangeNotAllowed"), Some("vmSize"))
    );
    let surge = json!({ "scaleSetPriority": "Spot", "upgradeSettings": { "maxSurge": "33%" } });
    assert_eq!(client.put(&at("spot"), pool("Standard_D2s_v5", 1, surge)).code(), (400, "InvalidParameter"));
    let spot = client.make(&at("spot"), pool("Standard_D2s_v5", 1, json!({ "scaleSetPriority": "Spot" })));
    assert_eq!(spot["properties"]["nodeTaints"][0], "kubernetes.azure.com/scalesetpriority=spot:NoSchedule");
    assert_eq!(spot["properties"]["scaleSetEvictionPolicy"], "Delete");
    let refused = client.put(&at("spot"), pool("Standard_D2s_v5", 2, json!({ "scaleSetPriority": "Spot" })));
    assert_eq!(refused.body["error"]["target"], "nodeTaints", "{}", refused.body);
    let mut whole = spot.clone();
    whole["properties"]["count"] = 2.into();
    whole["properties"]["nodeLabels"] = json!({ "c": "d" });
    let changed = client.make(&at("spot"), whole);
    assert_eq!(changed["properties"]["nodeLabels"], json!({ "c": "d" }), "the labels are replaced");
    client.cloud.world().evict(&client.path(&at("spot")));
    let evicted = client.get(&at("spot")).ok();
    assert_eq!(
        (evicted["properties"]["count"].as_i64(), evicted["properties"]["provisioningState"].as_str()),
        (Some(0), Some("Succeeded"))
    );
    let scaled = json!({ "enableAutoScaling": true, "minCount": 1, "maxCount": 3 });
    assert_eq!(client.put(&at("more"), pool("Standard_D2s_v5", 5, scaled)).code(), (400, "InvalidParameter"));
    assert_eq!(client.put(&at("Wrong"), pool("Standard_D2s_v5", 1, json!({}))).code(), (400, "InvalidResourceName"));
    assert_eq!(client.delete(&at("system")).code(), (400, "BadRequest"));
    client.drop_one(&at("cpu"));
}

/// dspace-group/simphera-reference-architecture-azure#29, pulumi/pulumi-azure-native#579.
#[test]
fn a_cluster_is_written_as_a_whole() {
    let client = quick();
    let mut body = client.get(CLUSTER).ok();
    body["tags"] = json!({ "a": "c" });
    client.make(CLUSTER, body.clone());
    assert_eq!(client.get(CLUSTER).ok()["tags"]["a"], "c");
    let mut more = body.clone();
    let new = json!({ "name": "more", "mode": "User", "count": 1, "vmSize": "Standard_D2s_v5" });
    more["properties"]["agentPoolProfiles"].as_array_mut().unwrap().push(new);
    assert_eq!(client.put(CLUSTER, more).code(), (400, "BadRequest"));
    let mut none = body.clone();
    none["properties"].as_object_mut().unwrap().shift_remove("agentPoolProfiles");
    assert_eq!(client.put(CLUSTER, none).code(), (400, "BadRequest"));
    // Azure/AKS#4860.
    client.cloud.world().conduct.keeps_pods = true;
    let mut newest = body.clone();
    newest["properties"]["kubernetesVersion"] = "1.34".into();
    assert_eq!(client.put(CLUSTER, newest).code(), (400, "UnsatisfiablePDB"));
    let mut old = body.clone();
    old["properties"]["kubernetesVersion"] = "1.31".into();
    assert_eq!(client.put(CLUSTER, old).code(), (400, "K8sVersionNotSupported"));
    let unknown = pool("Standard_D2s_v5", 1, json!({ "orchestratorVersion": "1.20" }));
    assert_eq!(client.put(&at("cpu"), unknown).code(), (400, "AgentPoolK8sVersionNotSupported"));
    let newer = pool("Standard_D2s_v5", 1, json!({ "orchestratorVersion": "1.34" }));
    assert_eq!(client.put(&at("cpu"), newer).code(), (400, "NodePoolMcVersionIncompatible"));
    client.wait(client.call("PATCH", CLUSTER, json!({ "tags": { "d": "e" } })));
    assert_eq!(client.get(CLUSTER).ok()["tags"], json!({ "d": "e" }));
}

/// hashicorp/terraform-provider-azurerm#10411.
#[test]
fn a_disruption_budget_fails_the_deletion_of_a_pool() {
    let client = quick();
    client.make(&at("cpu"), pool("Standard_D2s_v5", 1, json!({})));
    client.cloud.world().conduct.keeps_pods = true;
    assert_eq!(client.failure(client.delete(&at("cpu"))), "DeleteVMSSAgentPoolFailed");
    assert_eq!(client.get(&at("cpu")).ok()["properties"]["provisioningState"], "Failed");
    client.cloud.world().conduct.keeps_pods = false;
    client.drop_one(&at("cpu"));
}

/// MicrosoftDocs/azure-docs#62378, kubernetes/autoscaler#2607, Azure-Samples/azuresandbox#70, jenkins-infra/azure#1416, Azure/AKS#5746,
/// mddazure/azure-vwan-microhack#9, Azure/terraform-azurerm-aks#428, Azure/AKS#1444.
#[test]
fn quotas_and_stock_end_pools_in_many_ways() {
    let client = quick();
    let gpu = |name: &str, more: Value| client.put(&at(name), pool("Standard_NC4as_T4_v3", 2, more));
    assert_eq!(gpu("gpu", json!({})).code(), (400, "ErrCode_InsufficientVCPUQuota"), "there is no quota at first");
    // Two nodes and one of the surge.
    client.cloud.world().quotas.insert(("westeurope".into(), T4.into()), 8);
    assert_eq!(gpu("gpu", json!({})).code(), (400, "ErrCode_InsufficientVCPUQuota"));
    client.cloud.world().quotas.insert(("westeurope".into(), T4.into()), 12);
    client.cloud.world().quotas.insert(("westeurope".into(), "lowPriorityCores".into()), 4);
    assert_eq!(gpu("spot", json!({ "scaleSetPriority": "Spot" })).code(), (409, "OperationNotAllowed"));
    client.cloud.world().stock_out("westeurope", "Standard_NC4as_T4_v3");
    assert_eq!(gpu("gpu", json!({})).code(), (409, "SkuNotAvailable"));
    // skypilot-org/skypilot#10145: its zone has them.
    client.make(&at("zonal"), pool("Standard_NC4as_T4_v3", 2, json!({ "availabilityZones": ["1"] })));
    client.drop_one(&at("zonal"));
    client.cloud.world().conduct.late_capacity = true;
    assert_eq!(client.failure(gpu("gpu", json!({}))), "SkuNotAvailable");
    assert_eq!(client.get(&at("gpu")).ok()["properties"]["provisioningState"], "Failed");
    client.cloud.world().restock("westeurope", "Standard_NC4as_T4_v3", 1);
    assert_eq!(client.failure(gpu("gpu", json!({}))), "AllocationFailed");
    client.cloud.world().restock("westeurope", "Standard_NC4as_T4_v3", 2);
    let made = client.make(&at("gpu"), pool("Standard_NC4as_T4_v3", 2, json!({})));
    assert_eq!(made["properties"]["gpuProfile"]["driver"], "Install");
    assert_eq!(client.cloud.world().capacity.left("westeurope", "Standard_NC4as_T4_v3", Market::OnDemand), Some(0));
    let usages = client.get("providers/Microsoft.Compute/locations/westeurope/usages").ok();
    let rows = usages["value"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"]["value"] == T4).unwrap();
    assert_eq!((row["currentValue"].as_i64(), row["limit"].as_i64()), (Some(8), Some(12)));
    assert!(rows.iter().any(|row| row["name"]["value"].as_str().unwrap().ends_with(' ')), "a name has a space");
    client.drop_one(&at("gpu"));
    assert_eq!(client.cloud.world().capacity.left("westeurope", "Standard_NC4as_T4_v3", Market::OnDemand), Some(2));

    client.cloud.world().capacity.set("westeurope-2", "Standard_D2s_v5", Market::OnDemand, 0);
    client.cloud.world().conduct.late_capacity = false;
    let zonal = pool("Standard_D2s_v5", 2, json!({ "availabilityZones": ["1", "2"] }));
    assert_eq!(client.failure(client.put(&at("zonal"), zonal)), "ZonalAllocationFailed");
    client.cloud.world().quotas.insert(("westeurope".into(), "Standard NDAMSv4_A100Family".into()), 960);
    let zones = pool("Standard_ND96amsr_A100_v4", 1, json!({ "availabilityZones": ["1"] }));
    assert_eq!(client.put(&at("big"), zones).code(), (400, "AvailabilityZoneNotSupported"));
    client.cloud.world().restricted.insert(("westeurope".into(), "Standard_D8s_v5".into()));
    assert_eq!(client.put(&at("closed"), pool("Standard_D8s_v5", 1, json!({}))).code(), (409, "SkuNotAvailable"));
    let skus = client.get("providers/Microsoft.Compute/skus?$filter=location eq 'westeurope'").ok();
    let closed = skus["value"].as_array().unwrap().iter().find(|one| one["name"] == "Standard_D8s_v5").unwrap();
    assert_eq!(closed["restrictions"][0]["reasonCode"], "NotAvailableForSubscription");
}

/// hashicorp/terraform-provider-azurerm#3912, Azure/AKS#4522, Azure/AKS#1607, Azure/terraform-azurerm-aks#428.
#[test]
fn nodes_need_rights_a_way_out_and_room() {
    let client = Client::quick();
    client.network();
    let nodes = client.id("Microsoft.Network/virtualNetworks/n/subnets/nodes");
    let identity = "G/Microsoft.ManagedIdentity/userAssignedIdentities/cluster";
    let principal = client.put(identity, json!({ "location": "westeurope" })).ok()["properties"]["principalId"].clone();
    let mut body = cluster();
    body["identity"] = json!({ "type": "UserAssigned", "userAssignedIdentities": { client.path(identity): {} } });
    body["properties"]["networkProfile"] =
        json!({ "networkPlugin": "azure", "networkPluginMode": "overlay", "outboundType": "userAssignedNATGateway" });
    body["properties"]["agentPoolProfiles"][0]["vnetSubnetID"] = nodes.clone().into();
    assert_eq!(client.failure(client.put(CLUSTER, body.clone())), "CreateRoleAssignmentError");
    assert_eq!(client.get(CLUSTER).ok()["properties"]["provisioningState"], "Failed");
    let network = client.id("Microsoft.Network/virtualNetworks/n");
    client.grant(&network, "4d97b98b-1d4f-4787-a291-c67834d212e7", principal.as_str().unwrap(), 1).ok();
    assert_eq!(client.failure(client.put(CLUSTER, body.clone())), "VMExtensionProvisioningError");
    let address = "G/Microsoft.Network/publicIPAddresses/out";
    let standard = json!({ "location": "westeurope", "sku": { "name": "Standard" },
        "properties": { "publicIPAllocationMethod": "Static" } });
    client.make(address, standard);
    let gateway = "G/Microsoft.Network/natGateways/out";
    let nat = json!({ "location": "westeurope", "sku": { "name": "Standard" },
        "properties": { "publicIpAddresses": [{ "id": client.path(address) }] } });
    client.make(gateway, nat);
    let subnet =
        json!({ "properties": { "addressPrefix": "10.20.0.0/20", "natGateway": { "id": client.path(gateway) } } });
    client.make("G/Microsoft.Network/virtualNetworks/n/subnets/nodes", subnet);
    client.make(CLUSTER, body);
    let small = "G/Microsoft.Network/virtualNetworks/n/subnets/small";
    client.make(small, json!({ "properties": { "addressPrefix": "10.20.32.0/29" } }));
    let second = pool("Standard_D2s_v5", 5, json!({ "vnetSubnetID": client.path(small) }));
    assert_eq!(client.put(&at("cpu"), second).code(), (400, "InsufficientSubnetSize"));
    client.cloud.world().change(&network, "/properties/provisioningState", "Updating".into());
    let failed = client.put(&at("cpu"), pool("Standard_D2s_v5", 1, json!({ "vnetSubnetID": nodes })));
    assert_eq!(client.failure(failed), "SetVNetOwnershipFailed");
    assert_eq!(
        client.delete("G/Microsoft.Network/virtualNetworks/n/subnets/nodes").code(),
        (400, "InUseSubnetCannotBeDeleted")
    );
}

/// Azure/AKS#2227, Azure/AKS#2443, Azure/azure-cli#7573.
#[test]
fn clusters_fail_heal_and_stay() {
    let client = Client::quick();
    let assignment = client.path("providers/Microsoft.Authorization/policyAssignments/owners");
    client.cloud.world().policies.insert(assignment, Policy::RequiredGroupTag("owner".to_owned()));
    let said = client.wait(client.put(CLUSTER, cluster()));
    assert_eq!(said["error"]["code"], "ReconcileResourceGroupError");
    assert_eq!(said["error"]["details"][0]["code"], "RequestDisallowedByPolicy");
    client.cloud.world().policies.clear();
    client.drop_one(CLUSTER);
    client.cloud.world().conduct.self_heals = true;
    client.cloud.world().conduct.late_capacity = true;
    client.cloud.world().stock_out("westeurope", "Standard_D2s_v5");
    let answer = client.put(CLUSTER, cluster());
    assert_eq!(client.failure(answer), "SkuNotAvailable");
    client.cloud.world().restock("westeurope", "Standard_D2s_v5", 9);
    client.get(CLUSTER).ok();
    client.cloud.advance(Duration::from_secs(600));
    assert_eq!(client.get(CLUSTER).ok()["properties"]["provisioningState"], "Succeeded");
    let group = client.path("resourceGroups/MC_g_c_westeurope").to_lowercase();
    client.cloud.world().blocked.insert(group);
    assert_eq!(client.failure(client.delete(CLUSTER)), "ResourceGroupDeletionBlocked");
    client.cloud.world().blocked.clear();
    client.drop_one(CLUSTER);
}

/// Azure/AKS#847.
#[test]
fn a_subnet_with_a_route_table_of_the_nodes_delays_the_deletion() {
    let client = quick();
    client.network();
    let table = client.path("resourceGroups/MC_g_c_westeurope/providers/Microsoft.Network/routeTables/aks-agentpool");
    client.make(&table, json!({ "location": "westeurope", "properties": {} }));
    let nodes = "G/Microsoft.Network/virtualNetworks/n/subnets/nodes";
    let plain = json!({ "properties": { "addressPrefix": "10.20.0.0/20" } });
    let mut routed = plain.clone();
    routed["properties"]["routeTable"] = json!({ "id": table });
    client.make(nodes, routed);
    let answer = client.delete(CLUSTER);
    client.cloud.advance(Duration::from_secs(86_400));
    assert_eq!(client.get(CLUSTER).ok()["properties"]["provisioningState"], "Deleting");
    client.make(nodes, plain);
    client.cloud.advance(Duration::from_secs(120));
    let said = client.wait(answer);
    assert!(said.get("error").is_none(), "{said}");
    assert_eq!((client.get(CLUSTER).status, client.get(&table).status), (404, 404));
}

/// Azure/AKS#2341.
#[test]
fn a_change_of_a_cluster_may_never_end() {
    let client = quick();
    client.cloud.world().conduct.updates_stay = true;
    let answer = client.call("PATCH", CLUSTER, json!({ "tags": { "a": "c" } }));
    let address = answer.header("azure-asyncoperation").unwrap().replace("https://management.azure.com", "");
    client.cloud.advance(Duration::from_secs(86_400));
    assert_eq!(client.send("GET", &address, Value::Null, &[]).body["status"], "InProgress");
    let properties = client.get(CLUSTER).ok()["properties"].clone();
    assert_eq!(properties["provisioningState"], "Updating");
    assert_eq!(properties["agentPoolProfiles"][0]["provisioningState"], "Succeeded");
    let refused = client.put(&at("cpu"), pool("Standard_D2s_v5", 1, json!({})));
    assert_eq!(refused.code(), (409, "OperationNotAllowed"));
}

/// Azure/AKS#4275.
#[test]
fn nodes_pull_as_their_own_identity() {
    const ACR_PULL: &str = "7f951dda-4ed3-4680-a7ca-43fe172d538d";
    let client = quick();
    let registry = "G/Microsoft.ContainerRegistry/registries/textnlpimages";
    client.make(registry, json!({ "location": "westeurope", "sku": { "name": "Standard" } }));
    let (cluster, registry) = (client.path(CLUSTER), client.path(registry));
    let body = client.get(CLUSTER).ok();
    for (number, member, pulls) in
        [(1, "/identity/principalId", false), (2, "/properties/identityProfile/kubeletidentity/objectId", true)]
    {
        client.grant(&registry, ACR_PULL, body.pointer(member).and_then(Value::as_str).unwrap(), number).ok();
        client.get("GROUP").ok();
        assert_eq!(client.cloud.world().may_pull(&cluster, &registry), pulls, "{member}");
    }
}
