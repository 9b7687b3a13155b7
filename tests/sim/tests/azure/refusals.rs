//! What Azure Resource Manager refuses by itself, and the contract.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::azure::{Options, Policy};

use crate::{Client, send};

const NETWORK: &str = "G/Microsoft.Network/virtualNetworks/n";

fn network() -> Value {
    json!({ "location": "westeurope", "properties": { "addressSpace": { "addressPrefixes": ["10.20.0.0/16"] } } })
}

/// nforgeio/neonKUBE#1670, hashicorp/terraform-provider-azurerm#29887.
#[test]
fn a_namespace_has_to_be_registered() {
    let client = Client::with(Options::default());
    assert_eq!(client.put(NETWORK, network()).code(), (409, "MissingSubscriptionRegistration"));
    assert_eq!(client.get("providers/Microsoft.Network").ok()["registrationState"], "NotRegistered");
    client.cloud.world().conduct.registration = 60..61;
    let said = client.post("providers/Microsoft.Network/register", Value::Null).ok();
    assert_eq!(said["registrationState"], "Registering");
    assert_eq!(client.put(NETWORK, network()).code(), (409, "MissingSubscriptionRegistration"));
    client.cloud.advance(Duration::from_secs(60));
    assert_eq!(client.get("providers/Microsoft.Network").ok()["registrationState"], "Registered");
    client.put(NETWORK, network()).ok();
}

/// Azure/azure-cli#28499, hashicorp/terraform#11404.
#[test]
fn versions_are_checked() {
    let client = Client::quick();
    let path = client.path(NETWORK);
    let get = |query: &str| client.send("GET", &format!("{path}{query}"), Value::Null, &[]);
    assert_eq!(get("").code(), (400, "MissingApiVersionParameter"));
    assert_eq!(get("?api-version=latest").code(), (400, "InvalidApiVersionParameter"));
    let unknown = get("?api-version=2031-01-01");
    assert_eq!(unknown.code(), (400, "NoRegisteredProviderFound"));
    assert!(unknown.body.to_string().contains("2024-05-01"));
}

/// skypilot-org/skypilot#3712, hashicorp/terraform-provider-azurerm#5025, and locks.
#[test]
fn locks_and_deletions_of_groups_refuse_changes() {
    let client = Client::with(Options::default().registered());
    client.network();
    let id = client.path(NETWORK);
    client.cloud.world().lock(&id, "CanNotDelete");
    assert_eq!(client.get("providers/Microsoft.Authorization/locks").ok()["value"].as_array().unwrap().len(), 1);
    assert_eq!(client.delete(NETWORK).code(), (409, "ScopeLocked"));
    assert_eq!(client.delete("GROUP").code(), (409, "ScopeLocked"));
    client.cloud.world().conduct.lock_lag = 40..41;
    client.cloud.world().unlock(&id);
    assert_eq!(client.delete("GROUP").code(), (409, "ScopeLocked"));
    client.cloud.advance(Duration::from_secs(60));
    let answer = client.delete("GROUP");
    assert_eq!(client.put(NETWORK, network()).code(), (409, "ResourceGroupBeingDeleted"));
    client.wait(answer);
    assert_eq!(client.get(NETWORK).code(), (404, "ResourceGroupNotFound"));
}

/// Azure/azure-sdk-for-java#2022.
#[test]
fn a_group_that_is_created_again_during_its_deletion_ends_with_it() {
    let client = Client::with(Options::default().registered());
    let answer = client.delete("GROUP");
    let group = json!({ "location": "westeurope" });
    assert_eq!(client.put("GROUP", group.clone()).code(), (409, "ResourceGroupBeingDeleted"));
    client.cloud.world().conduct.recreates_groups = true;
    client.put("GROUP", group).ok();
    client.put(NETWORK, network()).ok();
    assert_eq!(client.get("GROUP").ok()["properties"]["provisioningState"], "Succeeded");
    client.wait(answer);
    for path in ["GROUP", NETWORK] {
        assert_eq!(client.get(path).code(), (404, "ResourceGroupNotFound"), "{path}");
    }
}

/// microsoft/aspire#16102, Azure/AKS#2443: what a group's deletion does and does not take.
#[test]
fn a_group_with_what_others_use_stays() {
    let client = Client::quick();
    client.put(&client.path("resourceGroups/h"), json!({ "location": "westeurope" })).ok();
    let address = "G/Microsoft.Network/publicIPAddresses/out";
    let body = json!({ "location": "westeurope", "sku": { "name": "Standard" },
        "properties": { "publicIPAllocationMethod": "Static" } });
    client.make(address, body);
    let gateway = client.path("resourceGroups/h/providers/Microsoft.Network/natGateways/out");
    let nat = json!({ "location": "westeurope", "sku": { "name": "Standard" },
        "properties": { "publicIpAddresses": [{ "id": client.path(address) }] } });
    client.make(&gateway, nat);
    assert_eq!(client.failure(client.delete("GROUP")), "ResourceGroupDeletionBlocked");
    assert_eq!(client.get("GROUP").ok()["properties"]["provisioningState"], "Succeeded");
    client.drop_one(&gateway);
    client.drop_one("GROUP");
}

/// Azure/azure-service-operator#5009.
#[test]
fn roles_on_a_group_end_with_it() {
    let client = Client::quick();
    let group = client.path("resourceGroups/h");
    client.put(&group, json!({ "location": "westeurope" })).ok();
    let identity = "G/Microsoft.ManagedIdentity/userAssignedIdentities/deployer";
    let identity = client.put(identity, json!({ "location": "westeurope" })).ok();
    let principal = identity["properties"]["principalId"].as_str().unwrap();
    client.grant(&group, "b24988ac-6180-42a0-ab88-20f7382dd24c", principal, 1).ok();
    client.get("GROUP").ok();
    let read = || {
        let token = [("authorization", format!("Bearer {}", client.cloud.token_of(principal)))];
        send("GET", &format!("{}{group}?api-version=2021-04-01", client.cloud.url()), &token, "")
    };
    read().ok();
    client.drop_one(&group);
    assert_eq!(read().code(), (403, "AuthorizationFailed"));
}

/// Conditions, locations and parents.
#[test]
fn conditions_and_places_are_checked() {
    let client = Client::quick();
    client.make(NETWORK, network());
    let target = format!("{}?api-version=2024-05-01", client.path(NETWORK));
    let with = |name: &str, value: &str| client.send("PUT", &target, network(), &[(name, value)]);
    assert_eq!(with("if-none-match", "*").code(), (412, "PreconditionFailed"));
    assert_eq!(with("if-match", "W/\"x\"").code(), (412, "PreconditionFailed"));
    let etag = client.get(NETWORK).ok()["etag"].as_str().unwrap().to_owned();
    client.wait(with("if-match", &etag));
    let mut elsewhere = network();
    elsewhere["location"] = "northeurope".into();
    assert_eq!(client.put(NETWORK, elsewhere).code(), (409, "InvalidResourceLocation"));
    let subnet = json!({ "properties": { "addressPrefix": "10.20.0.0/24" } });
    assert_eq!(
        client.put("G/Microsoft.Network/virtualNetworks/m/subnets/a", subnet).code(),
        (404, "ParentResourceNotFound")
    );
    assert_eq!(client.get("G/Microsoft.Network/virtualNetworks/m").code(), (404, "ResourceNotFound"));
    client.cloud.world().state = "Disabled".to_owned();
    assert_eq!(client.put(NETWORK, network()).code(), (409, "ReadOnlyDisabledSubscription"));
    assert_eq!(client.get("").ok()["state"], "Disabled");
    assert_eq!(client.get("/subscriptions/00000000-0000-0000-0000-000000000000").code(), (404, "SubscriptionNotFound"));
}

/// The contract in the direction of requests: each is a violation that fails a test unless it expects it.
#[test]
fn requests_beside_the_models_are_refused() {
    let client = Client::quick();
    let wrong = [
        json!({ "location": "westeurope", "propertys": {} }),
        json!({ "location": "westeurope", "properties": { "addressSpace": { "addressPrefixs": [] } } }),
        json!({ "location": "westeurope", "properties": { "enableDdosProtection": "no" } }),
        json!({ "location": "westeurope", "properties": { "subnets": [{ "name": "a",
            "properties": { "natGateway": "x" } }] } }),
    ];
    for body in wrong {
        assert_eq!(client.put(NETWORK, body.clone()).code(), (400, "InvalidRequestContent"), "{body}");
        assert_eq!(client.cloud.take_violations().len(), 1, "{body}");
    }
    let key = json!({ "tags": {} });
    assert_eq!(client.put("G/Microsoft.KeyVault/vaults/v-1/keys/k", key).code(), (400, "InvalidRequestContent"));
    assert_eq!(client.get("G/Microsoft.Nothing/things/a").code(), (404, "InvalidResourceType"));
    assert_eq!(client.cloud.take_violations().len(), 2);
    let mut read_only = network();
    read_only["properties"]["provisioningState"] = "Failed".into();
    assert_eq!(client.make(NETWORK, read_only)["properties"]["provisioningState"], "Succeeded");
}

/// Azure/azure-cli#7573, Azure/azure-policy#700, rancher/rancher#29086.
#[test]
fn policies_refuse_what_a_check_says() {
    let client = Client::quick();
    let assignment = client.path("providers/Microsoft.Authorization/policyAssignments/p");
    let group = client.path("resourceGroups/h");
    let bare = json!({ "location": "westeurope" });
    let tagged = json!({ "location": "westeurope", "tags": { "owner": "a" } });
    let global = json!({ "location": "global" });
    let owner = "owner".to_owned();
    for (policy, path, kind, accepted) in [
        (
            Policy::RequiredGroupTag(owner.clone()),
            group.as_str(),
            "Microsoft.Resources/subscriptions/resourceGroups",
            &tagged,
        ),
        (Policy::RequiredTag(owner), NETWORK, "Microsoft.Network/virtualNetworks", &tagged),
        (
            Policy::AllowedLocations(vec!["northeurope".to_owned()]),
            "G/Microsoft.Network/privateDnsZones/a.example",
            "Microsoft.Network/privateDnsZones",
            &global,
        ),
    ] {
        client.cloud.world().policies = BTreeMap::from([(assignment.clone(), policy)]);
        let check = |content: &Value| {
            let mut content = content.clone();
            content["type"] = kind.into();
            let body = json!({ "resourceDetails": { "resourceContent": content, "apiVersion": "2021-04-01" } });
            let answer = client.call("POST", "providers/Microsoft.PolicyInsights/checkPolicyRestrictions", body).ok();
            answer["contentEvaluationResult"]["policyEvaluations"].as_array().unwrap().clone()
        };
        let said = check(&bare);
        let [one] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!(one["policyInfo"]["policyAssignmentId"], assignment.as_str());
        assert!(check(accepted).is_empty());
        let answer = client.put(path, bare.clone());
        assert_eq!(answer.code(), (403, "RequestDisallowedByPolicy"), "{kind}");
        assert!(answer.body["error"]["message"].as_str().unwrap().contains(&assignment), "{answer:?}");
    }
    client.put(&group, tagged).ok();
}
