//! Networks: one writer a network, references, and what stays on subnets.

use std::time::Duration;

use serde_json::json;
use textnlp_sim::azure::Options;

use crate::Client;

const NETWORK: &str = "G/Microsoft.Network/virtualNetworks/n";
const NODES: &str = "G/Microsoft.Network/virtualNetworks/n/subnets/nodes";
const DATABASE: &str = "G/Microsoft.Network/virtualNetworks/n/subnets/database";

fn range(prefix: &str) -> serde_json::Value {
    json!({ "properties": { "addressPrefix": prefix } })
}

/// hashicorp/terraform-provider-azurerm#3780, Azure-Samples/azuresandbox#25.
#[test]
fn a_network_has_one_writer() {
    let client = Client::with(Options::default().registered());
    client.network();
    client.cloud.advance(Duration::from_secs(120));
    let answer = client.put(NODES, range("10.20.0.0/20"));
    let address = answer.header("azure-asyncoperation").unwrap().to_owned();
    let refused = client.put(DATABASE, range("10.20.16.0/24"));
    assert_eq!(refused.code(), (409, "AnotherOperationInProgress"));
    let id = address.rsplit('/').next().unwrap().split('?').next().unwrap();
    assert!(refused.body.to_string().contains(id), "{}", refused.body);
    client.wait(answer);
    let zone = "G/Microsoft.Network/privateDnsZones/x.private.postgres.database.azure.com";
    client.make(zone, json!({ "location": "global" }));
    client.cloud.advance(Duration::from_secs(120));
    client.cloud.world().change(
        &client.id("Microsoft.Network/virtualNetworks/n"),
        "/properties/provisioningState",
        "Updating".into(),
    );
    let link = json!({ "location": "global",
        "properties": { "virtualNetwork": { "id": client.id("Microsoft.Network/virtualNetworks/n") } } });
    let refused = client.put(&format!("{zone}/virtualNetworkLinks/n"), link);
    assert_eq!(refused.code(), (429, "RetryableError"));
    assert_eq!(refused.body["error"]["details"][0]["code"], "ReferencedResourceNotProvisioned");
}

/// pulumi/pulumi-azure-native#74.
#[test]
fn subnets_stay_unless_the_list_is_empty() {
    let client = Client::quick();
    client.network();
    let body = |subnets: serde_json::Value| {
        json!({ "location": "westeurope", "properties": { "addressSpace": { "addressPrefixes": ["10.20.0.0/16"] },
            "subnets": subnets } })
    };
    client.make(NETWORK, body(json!(null)));
    assert_eq!(client.get(NETWORK).ok()["properties"]["subnets"].as_array().unwrap().len(), 2);
    client.make(NETWORK, body(json!([])));
    assert_eq!(client.get(NETWORK).ok()["properties"]["subnets"].as_array().unwrap().len(), 0);
}

/// Ranges.
#[test]
fn subnets_lie_in_the_network_and_apart() {
    let client = Client::quick();
    client.network();
    let other = format!("{NETWORK}/subnets/other");
    assert_eq!(client.put(&other, range("10.21.0.0/24")).code(), (400, "NetcfgInvalidSubnet"));
    assert_eq!(client.put(&other, range("10.20.1.0/24")).code(), (400, "NetcfgSubnetRangesOverlap"));
    client.make(&other, range("10.20.32.0/24"));
}

/// hashicorp/terraform-provider-azurerm#6052, Azure-Samples/Copilot-Studio-with-Azure-AI-Search#62, giantswarm/azure-operator#163.
#[test]
fn what_is_used_is_not_deleted() {
    let client = Client::quick();
    client.network();
    let (address, gateway) = ("G/Microsoft.Network/publicIPAddresses/out", "G/Microsoft.Network/natGateways/out");
    let id = |path: &str| client.path(path);
    let body = json!({ "location": "westeurope", "sku": { "name": "Standard" },
        "properties": { "publicIPAllocationMethod": "Static" } });
    client.make(address, body.clone());
    let nat = json!({ "location": "westeurope", "sku": { "name": "Standard" },
        "properties": { "publicIpAddresses": [{ "id": id(address) }] } });
    client.make(gateway, nat);
    let mut subnet = range("10.20.0.0/20");
    subnet["properties"]["natGateway"] = json!({ "id": id(gateway) });
    client.make(NODES, subnet);
    assert_eq!(client.delete(address).code(), (400, "PublicIPAddressCannotBeDeleted"));
    assert_eq!(client.delete(gateway).code(), (400, "CannotDeleteNatGatewayAssociatedToSubnet"));
    assert_eq!(client.get(gateway).ok()["properties"]["subnets"][0]["id"], id(NODES));
    client.make(NODES, range("10.20.0.0/20"));
    client.drop_one(gateway);
    client.drop_one(address);
    client.cloud.world().quotas.insert(("westeurope".into(), "PublicIPAddresses".into()), 0);
    assert_eq!(client.put(address, body).code(), (400, "StaticPublicIPCountLimitReached"));
    let missing = json!({ "location": "westeurope", "sku": { "name": "Standard" },
        "properties": { "publicIpAddresses": [{ "id": id(address) }] } });
    assert_eq!(client.put(gateway, missing).code(), (400, "InvalidResourceReference"));
}

/// <https://learn.microsoft.com/azure/virtual-network/virtual-network-manage-peering>, hashicorp/terraform-provider-azurerm#14051.
#[test]
fn a_peering_needs_one_back_and_other_addresses() {
    let client = Client::quick();
    client.network();
    let network = |name: &str, range: &str| {
        let path = format!("G/Microsoft.Network/virtualNetworks/{name}");
        let body =
            json!({ "location": "northeurope", "properties": { "addressSpace": { "addressPrefixes": [range] } } });
        client.make(&path, body);
        path
    };
    let (other, same) = (network("m", "10.30.0.0/16"), network("same", "10.20.0.0/17"));
    let peer = |from: &str, to: &str| {
        let body = json!({ "properties": { "remoteVirtualNetwork": { "id": client.path(to) } } });
        (format!("{from}/virtualNetworkPeerings/peer"), body)
    };
    let (path, body) = peer(NETWORK, &same);
    assert_eq!(client.put(&path, body).code(), (400, "VnetAddressSpacesOverlap"));
    let state = |path: &str| client.get(path).ok()["properties"]["peeringState"].clone();
    let (there, body) = peer(NETWORK, &other);
    client.make(&there, body.clone());
    assert_eq!(state(&there), "Initiated");
    let (back, from_other) = peer(&other, NETWORK);
    client.make(&back, from_other.clone());
    assert_eq!((state(&there), state(&back)), (json!("Connected"), json!("Connected")));
    let shown = client.get(NETWORK).ok()["properties"]["virtualNetworkPeerings"].clone();
    assert_eq!(shown[0]["properties"]["remoteAddressSpace"]["addressPrefixes"], json!(["10.30.0.0/16"]));
    client.drop_one(&back);
    assert_eq!(state(&there), "Disconnected");
    assert_eq!(client.put(&back, from_other.clone()).code(), (400, "RemotePeeringIsDisconnected"));
    client.make(&there, body);
    assert_eq!(state(&there), "Initiated");
    client.make(&back, from_other);
    assert_eq!(state(&there), "Connected");
}

/// Azure/azure-cli#15010, Azure/azure-rest-api-specs#13600.
#[test]
fn zones_have_links_and_few_tags() {
    let client = Client::quick();
    client.network();
    let zone = "G/Microsoft.Network/privateDnsZones/a.private.postgres.database.azure.com";
    let tags = |count: usize| -> serde_json::Map<_, _> { (0..count).map(|n| (format!("t{n}"), json!("v"))).collect() };
    let answer = client.put(zone, json!({ "location": "global", "tags": tags(16) }));
    assert_eq!(answer.status, 400);
    let spaced = client.put(zone, json!({ "location": "global", "tags": { "a b": "v" } }));
    assert_eq!(spaced.status, 400);
    client.make(zone, json!({ "location": "global", "tags": tags(15) }));
    let link = format!("{zone}/virtualNetworkLinks/n");
    client.make(
        &link,
        json!({ "location": "global", "properties": { "virtualNetwork": { "id": client.path(NETWORK) } } }),
    );
    assert_eq!(client.delete(zone).code(), (409, "CannotDeleteResource"));
    client.drop_one(&link);
    client.drop_one(zone);
}

/// hashicorp/terraform-provider-azurerm#28979, hashicorp/terraform-provider-azurerm#15728, hashicorp/terraform-provider-azurerm#7687.
#[test]
fn a_delegated_subnet_is_busy_after_its_server() {
    let client = Client::with(Options::default().registered());
    client.network();
    client.cloud.world().conduct.link_lag = 300..301;
    let server = crate::data::private_server(&client);
    client.cloud.advance(Duration::from_secs(60));
    assert_eq!(client.delete(DATABASE).code(), (400, "InUseSubnetCannotBeDeleted"));
    client.wait(client.delete(&server));
    assert_eq!(client.get(&server).status, 404);
    let subnet = client.get(DATABASE).ok();
    assert_eq!(subnet["properties"]["serviceAssociationLinks"][0]["name"], "dbforpostgresql");
    assert_eq!(client.delete(DATABASE).code(), (400, "InUseSubnetCannotBeDeleted"));
    assert_eq!(client.delete(NETWORK).code(), (400, "InUseSubnetCannotBeDeleted"));
    assert_eq!(client.put(DATABASE, range("10.20.17.0/24")).code(), (400, "InUseSubnetCannotBeUpdated"));
    client.cloud.advance(Duration::from_secs(600));
    client.cloud.world().conduct.links_stay = true;
    assert_eq!(client.delete(DATABASE).code(), (400, "InUseSubnetCannotBeDeleted"));
    assert_eq!(client.failure(client.delete("GROUP")), "ResourceGroupDeletionTimeout");
    client.cloud.world().conduct.links_stay = false;
    client.wait(client.delete(DATABASE));
}
