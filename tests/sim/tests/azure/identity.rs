//! Identities, federated credentials and role assignments.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::azure::Options;

use crate::{Client, send};

const IDENTITY: &str = "G/Microsoft.ManagedIdentity/userAssignedIdentities/server";
const READER: &str = "acdd72a7-3385-48ef-bd42-f606fba81ae7";
const CONTRIBUTOR: &str = "b24988ac-6180-42a0-ab88-20f7382dd24c";

fn principal(client: &Client) -> String {
    let made = client.put(IDENTITY, json!({ "location": "westeurope" })).ok();
    made["properties"]["principalId"].as_str().unwrap().to_owned()
}

/// hashicorp/terraform-provider-azurerm#11417, MicrosoftDocs/azure-docs#103085, Azure/azure-cli#8530.
#[test]
fn a_new_principal_is_unknown_for_a_while() {
    let client = Client::with(Options::default().registered());
    client.cloud.world().conduct.principal_lag = 200..201;
    let id = principal(&client);
    client.cloud.advance(Duration::from_secs(30));
    let scope = client.path("GROUP");
    assert_eq!(client.grant(&scope, READER, &id, 1).code(), (400, "PrincipalNotFound"));
    client.cloud.advance(Duration::from_secs(120));
    assert_eq!(client.grant(&scope, READER, &id, 1).status, 201);
    let wrong = client.grant(&scope, READER, "00000000-0000-4000-8000-0000000000ff", 2);
    assert_eq!(wrong.code(), (400, "PrincipalNotFound"));
}

/// hashicorp/terraform-provider-azurerm#28694, Azure/azure-cli#8599, Azure/azure-service-operator#4206, Azure/azure-service-operator#3637,
/// Azure/azure-service-operator#2586.
#[test]
fn an_assignment_is_its_scope_role_and_principal() {
    let client = Client::quick();
    let id = principal(&client);
    let scope = client.path("GROUP");
    assert_eq!(client.grant(&scope, READER, &id, 1).status, 201);
    assert_eq!(client.grant(&scope, READER, &id, 1).status, 200);
    assert_eq!(client.grant(&scope, READER, &id, 2).code(), (409, "RoleAssignmentExists"));
    assert_eq!(client.grant(&scope, CONTRIBUTOR, &id, 1).code(), (400, "RoleAssignmentUpdateNotPermitted"));
    let other = client.path("");
    assert_eq!(client.grant(&other, READER, &id, 1).code(), (400, "RoleAssignmentUpdateNotPermitted"));
    assert_eq!(client.grant(&scope, "00000000-0000-4000-8000-000000000000", &id, 3).status, 404);
    for method in ["PUT", "DELETE"] {
        let body = json!({ "properties": { "roleDefinitionId": READER, "principalId": id } });
        let body = if method == "PUT" { body } else { Value::Null };
        let named = client.call(method, &format!("{scope}/providers/Microsoft.Authorization/roleAssignments/a"), body);
        assert_eq!(named.code(), (400, "InvalidRoleAssignmentId"));
    }
    let list = client
        .get(&format!("{scope}/providers/Microsoft.Authorization/roleAssignments?$filter=principalId eq '{id}'"))
        .ok();
    assert_eq!(list["value"].as_array().unwrap().len(), 1);
}

/// Azure/azure-rest-api-specs#9467, Azure/terraform-azurerm-avm-ptn-alz#345, Azure/bellhop#38.
#[test]
fn grants_and_deletions_take_effect_late() {
    let client = Client::with(Options::default().registered());
    {
        let mut cloud = client.cloud.world();
        (cloud.conduct.principal_lag, cloud.conduct.grant_lag, cloud.conduct.assignment_ghost) =
            (0..0, 100..101, 50..51);
        cloud.conduct.read_lag = 0..0;
    }
    let id = principal(&client);
    let scope = client.path("GROUP");
    assert_eq!(client.grant(&scope, CONTRIBUTOR, &id, 1).status, 201);
    let token = client.cloud.token_of(&id);
    let read = || {
        send(
            "GET",
            &format!("{}{scope}?api-version=2021-04-01", client.cloud.url()),
            &[("authorization", format!("Bearer {token}"))],
            "",
        )
    };
    assert_eq!(read().code(), (403, "AuthorizationFailed"));
    client.cloud.advance(Duration::from_secs(120));
    read().ok();
    let path =
        format!("{scope}/providers/Microsoft.Authorization/roleAssignments/00000000-0000-4000-8000-000000000001");
    client.delete(&path).ok();
    assert_eq!(client.get(&path).status, 200, "it still shows");
    assert_eq!(client.grant(&scope, READER, &id, 1).code(), (400, "RoleAssignmentUpdateNotPermitted"));
    client.cloud.advance(Duration::from_secs(60));
    assert_eq!(client.get(&path).status, 404);
    assert_eq!(client.delete(&path).status, 204);
    assert_eq!(client.grant(&scope, CONTRIBUTOR, &id, 1).status, 201);
    client.delete(IDENTITY).ok();
    assert_eq!(client.get(&path).status, 200, "assignments of deleted identities stay");
}

/// pulumi/pulumi-azure-native#4343 (fix #4421), Azure/azure-workload-identity#273.
#[test]
fn credentials_are_written_one_by_one_and_used_after_a_while() {
    let client = Client::with(Options::default().registered());
    {
        let mut cloud = client.cloud.world();
        (cloud.conduct.federation_busy, cloud.conduct.read_lag) = (30..31, 30..31);
    }
    let identity = client.put(IDENTITY, json!({ "location": "westeurope" })).ok();
    client.cloud.advance(Duration::from_secs(60));
    let body = |subject: &str| {
        json!({ "properties": { "issuer": "https://issuer.example/", "subject": subject,
        "audiences": ["api://AzureADTokenExchange"] } })
    };
    client.put(&format!("{IDENTITY}/federatedIdentityCredentials/one"), body("one")).ok();
    let refused = client.put(&format!("{IDENTITY}/federatedIdentityCredentials/two"), body("two"));
    assert_eq!(refused.code(), (409, "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity"));

    use base64::Engine;
    let encode = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let tenant = client.cloud.variables().into_iter().find(|one| one.0 == "AZURE_TENANT_ID").unwrap().1;
    let exchange = |subject: &str, ends: i64| {
        let assertion =
            format!("e30.{}.c2ln", encode(json!({ "iss": "https://issuer.example/", "sub": subject, "exp": ends })));
        let application = identity["properties"]["clientId"].as_str().unwrap();
        let form = format!(
            "grant_type=client_credentials&client_id={application}&client_assertion={assertion}&\
             scope=https%3A%2F%2Fstorage.azure.com%2F.default"
        );
        send("POST", &format!("{}/{tenant}/oauth2/v2.0/token", client.cloud.url()), &[], &form)
    };
    let code = |answer: crate::Answer| answer.body["error_codes"][0].as_u64();
    assert_eq!(code(exchange("one", i64::MAX)), Some(70_021), "it is too new");
    client.cloud.advance(Duration::from_secs(40));
    assert_eq!(code(exchange("one", i64::MAX)), Some(70_021), "the early call made it longer");
    client.cloud.advance(Duration::from_secs(200));
    assert!(exchange("one", i64::MAX).ok()["access_token"].is_string());
    assert_eq!(code(exchange("other", i64::MAX)), Some(70_021));
    assert_eq!(code(exchange("one", 1)), Some(700_024));
}

/// What a caller may do, and what is registered.
#[test]
fn permissions_are_listed_and_refused() {
    let client = Client::quick();
    let held = client.get("providers/Microsoft.Authorization/permissions").ok();
    assert_eq!(held["value"][0]["actions"][0], "*");
    client.cloud.world().denied.insert("Microsoft.Network/virtualNetworks/write".to_owned());
    let body =
        json!({ "location": "westeurope", "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] } } });
    let refused = client.put("G/Microsoft.Network/virtualNetworks/n", body);
    assert_eq!(refused.code(), (403, "AuthorizationFailed"));
    assert!(refused.body.to_string().contains("Microsoft.Network/virtualNetworks/write"));
    let roles = client.get("providers/Microsoft.Authorization/roleDefinitions?$filter=roleName eq 'Reader'").ok();
    assert_eq!(roles["value"][0]["name"], READER);
}
