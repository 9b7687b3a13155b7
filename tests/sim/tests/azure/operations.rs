//! How operations are announced, and how reads, lists and tokens behave around them.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::azure::Options;
use textnlp_sim::{Disruption, Rule};

use crate::{Client, send};

const NETWORK: &str = "G/Microsoft.Network/virtualNetworks/n";
const ACCOUNT: &str = "G/Microsoft.Storage/storageAccounts/textnlpmodels";
const VAULT: &str = "G/Microsoft.KeyVault/vaults/textnlp-kv";

fn network() -> Value {
    json!({ "location": "westeurope", "properties": { "addressSpace": { "addressPrefixes": ["10.20.0.0/16"] } } })
}

fn account() -> Value {
    json!({ "location": "westeurope", "sku": { "name": "Standard_LRS" }, "kind": "StorageV2" })
}

fn vault(client: &Client) -> Value {
    let tenant = client.cloud.variables().into_iter().find(|one| one.0 == "AZURE_TENANT_ID").unwrap().1;
    json!({ "location": "westeurope", "properties": { "tenantId": tenant, "sku": { "family": "A",
        "name": "standard" } } })
}

/// Azure/autorest#1128, kubernetes-sigs/cluster-api-provider-azure#3970: four styles, and answers that are final.
#[test]
fn each_style_has_its_headers() {
    let client = Client::with(Options::default().registered());
    let answer = client.put(NETWORK, network());
    assert_eq!((answer.status, answer.body["properties"]["provisioningState"].as_str()), (201, Some("Updating")));
    assert!(answer.header("azure-asyncoperation").is_some() && answer.header("location").is_none());
    assert_eq!(answer.header("retry-after"), Some("10"));
    client.wait(answer);
    let answer = client.put(ACCOUNT, account());
    assert_eq!((answer.status, &answer.body), (202, &json!({})));
    assert!(answer.header("azure-asyncoperation").is_none() && answer.header("location").is_some());
    client.wait(answer);
    let answer = client.put(VAULT, vault(&client));
    assert_eq!((answer.status, answer.body["properties"]["provisioningState"].as_str()), (200, Some("RegisteringDns")));
    assert!(answer.header("azure-asyncoperation").is_none() && answer.header("location").is_none());
    client.cloud.advance(Duration::from_secs(120));
    assert_eq!(client.get(VAULT).ok()["properties"]["provisioningState"], "Succeeded");
    let gone = client.delete(NETWORK);
    assert!(gone.status == 202 && gone.header("azure-asyncoperation").is_some() && gone.header("location").is_some());
    client.wait(gone);
    assert_eq!(client.delete(NETWORK).status, 204);
    let group = client.delete("GROUP");
    assert!(group.status == 202 && group.header("azure-asyncoperation").is_none());
    client.wait(group);
    assert_eq!(client.get("GROUP").code(), (404, "ResourceGroupNotFound"));
}

/// hashicorp/terraform-provider-azurerm#18268 (workaround merged in #25758), hashicorp/terraform-provider-azurerm#32331 (open PR),
/// hashicorp/go-azure-sdk#740, cloudfoundry/bosh-azure-cpi-release#765, Azure/azure-sdk-for-net#36798.
#[test]
fn reads_and_lists_lag_and_done_is_not_done() {
    let mut missed = [0, 0, 0];
    for seed in 0..6 {
        let client = Client::with(Options { seed, ..Options::default() }.registered());
        {
            let mut cloud = client.cloud.world();
            (cloud.conduct.read_lag, cloud.conduct.list_lag, cloud.conduct.state_gap) = (30..31, 60..61, 40..41);
        }
        let answer = client.put(NETWORK, network());
        missed[0] += usize::from((0..4).any(|_| client.get(NETWORK).status == 404));
        let list = client.get("G/Microsoft.Network/virtualNetworks").ok();
        missed[1] += usize::from(list["value"].as_array().unwrap().is_empty());
        client.wait(answer);
        let state = |body: &Value| body.pointer("/properties/provisioningState") == Some(&json!("Updating"));
        missed[2] += usize::from(state(&client.get(NETWORK).body));
        client.cloud.advance(Duration::from_secs(120));
        assert_eq!(client.get(NETWORK).ok()["properties"]["provisioningState"], "Succeeded");
    }
    assert!(missed.iter().all(|count| *count >= 3), "{missed:?}");
}

/// Azure/msrestazure-for-python#157, Azure/azure-rest-api-specs#23035, hashicorp/go-azure-sdk#1135,
/// hashicorp/terraform-provider-azurerm#22771, hashicorp/terraform-provider-azurerm#29047, Azure/azure-cli#15884.
#[test]
fn polls_vary() {
    let client = Client::with(Options::default().registered());
    client.cloud.world().conduct.odd_states = true;
    let answer = client.put(NETWORK, network());
    let address = answer.header("azure-asyncoperation").unwrap().replace("https://management.azure.com", "");
    assert_eq!(client.send("GET", &address, Value::Null, &[]).body["status"], "Accepted");
    client.cloud.advance(Duration::from_secs(30));
    assert_eq!(client.send("GET", &address, Value::Null, &[]).body["status"], "Success");
    client.cloud.world().conduct.bare_polls = true;
    let answer = client.put(NETWORK, network());
    let address = answer.header("azure-asyncoperation").unwrap().replace("https://management.azure.com", "");
    assert_eq!(client.send("GET", &address, Value::Null, &[]).body, json!({}));
    client.cloud.world().denied.insert("operations/read".to_owned());
    assert_eq!(client.send("GET", &address, Value::Null, &[]).code(), (403, "AuthorizationFailed"));
    client.cloud.world().denied.clear();
    client.cloud.advance(Duration::from_secs(120));
    client.cloud.world().conduct.operations_vanish = true;
    let gone = client.delete(NETWORK);
    let address = gone.header("azure-asyncoperation").unwrap().replace("https://management.azure.com", "");
    client.cloud.advance(Duration::from_secs(60));
    assert_eq!(client.send("GET", &address, Value::Null, &[]).status, 404);
    assert_eq!(client.get(NETWORK).status, 404);

    client.cloud.world().conduct.failed_in_success = true;
    let server = "G/Microsoft.DBforPostgreSQL/flexibleServers/taken-name";
    client
        .cloud
        .world()
        .taken
        .insert(("Microsoft.DBforPostgreSQL/flexibleServers".into(), "taken-name".into()), jiff_max());
    let answer = client.put(server, crate::data::server());
    let address = answer.header("location").unwrap().replace("https://management.azure.com", "");
    client.cloud.advance(Duration::from_secs(600));
    let said = client.send("GET", &address, Value::Null, &[]);
    assert_eq!((said.status, said.body["status"].as_str()), (200, Some("Failed")), "{}", said.body);
    assert_eq!(said.body["error"]["code"], "ServerNameAlreadyExists");
    assert_eq!(client.get(server).status, 404, "it is rolled back");
}

fn jiff_max() -> jiff::Timestamp {
    jiff::Timestamp::MAX
}

/// hashicorp/terraform-provider-azurerm#22395: a lost reply, and the same call again.
#[test]
fn a_call_whose_answer_is_lost_took_effect() {
    let client = Client::quick();
    let lost = Rule::nth("Microsoft.Network", "Microsoft.Network/virtualNetworks/write", 1, Disruption::LostReply);
    client.cloud.faults().add(lost);
    assert_eq!(client.put(NETWORK, network()).status, 0);
    assert_eq!(client.get(NETWORK).ok()["name"], "n");
    let list = client.cloud.requests();
    let seen: Vec<bool> =
        list.iter().filter(|one| one.operation.ends_with("virtualNetworks/write")).map(|one| one.is_lost).collect();
    assert_eq!(seen, [true]);
}

/// MicrosoftDocs/azure-docs#11849, kubernetes/autoscaler#3240, Azure/azqr#34.
#[test]
fn limits_are_per_subscription_and_tell_when() {
    let client = Client::quick();
    {
        let mut cloud = client.cloud.world();
        (cloud.conduct.requests_per_minute, cloud.conduct.retry_after) = (Some(2), 1200);
    }
    let first = client.get("GROUP");
    let second = client.get("GROUP");
    assert_eq!([first.status, second.status], [200, 200]);
    let third = client.get("GROUP");
    assert_eq!(third.code(), (429, "SubscriptionRequestsThrottled"));
    assert_eq!(third.header("retry-after"), Some("1200"));
    client.cloud.world().conduct.limits_reads_only = true;
    client.put(NETWORK, network()).ok();
    client.cloud.advance(Duration::from_secs(60));
    client.get("GROUP").ok();
}

/// hashicorp/terraform-provider-azurerm#20867, and what Microsoft Entra refuses.
#[test]
fn tokens_are_granted_and_end() {
    let client = Client::quick();
    let of = |name: &str| client.cloud.variables().into_iter().find(|one| one.0 == name).unwrap().1;
    let (tenant, application) = (of("AZURE_TENANT_ID"), of("AZURE_CLIENT_ID"));
    let url = format!("{}/{tenant}/oauth2/v2.0/token", client.cloud.url());
    let grant = |secret: &str| {
        let form = format!(
            "grant_type=client_credentials&client_id={application}&client_secret={secret}&\
             scope=https%3A%2F%2Fmanagement.azure.com%2F.default"
        );
        send("POST", &url, &[("content-type", "application/x-www-form-urlencoded".into())], &form)
    };
    let refused = grant("wrong");
    assert_eq!((refused.status, refused.body["error_codes"][0].as_u64()), (401, Some(7_000_215)));
    let token = grant(&of("AZURE_CLIENT_SECRET")).ok()["access_token"].as_str().unwrap().to_owned();
    let path = format!("{}{}?api-version=2021-04-01", client.cloud.url(), client.path("GROUP"));
    let read = |token: &str| send("GET", &path, &[("authorization", format!("Bearer {token}"))], "");
    read(&token).ok();
    assert_eq!(read("x").code(), (401, "AuthenticationFailed"));
    client.cloud.expire_tokens();
    assert_eq!(read(&token).code(), (401, "ExpiredAuthenticationToken"));

    let metadata = format!(
        "{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com",
        client.cloud.url()
    );
    assert_eq!(send("GET", &metadata, &[], "").status, 400);
    let token =
        send("GET", &metadata, &[("metadata", "true".into())], "").ok()["access_token"].as_str().unwrap().to_owned();
    read(&token).ok();
    let discovery = format!("{}/{tenant}/v2.0/.well-known/openid-configuration", client.cloud.url());
    assert!(send("GET", &discovery, &[], "").ok()["token_endpoint"].as_str().unwrap().ends_with("/oauth2/v2.0/token"));
}

/// Lists have pages and filters.
#[test]
fn lists_have_pages() {
    let client = Client::quick();
    for name in ["a", "b", "c"] {
        let mut body = network();
        body["tags"] = json!({ "name": name });
        client.make(&format!("G/Microsoft.Network/virtualNetworks/{name}"), body);
    }
    let first = client.get("G/Microsoft.Network/virtualNetworks?$top=2").ok();
    assert_eq!(first["value"].as_array().unwrap().len(), 2);
    let next = first["nextLink"].as_str().unwrap().replace("https://management.azure.com", "");
    assert_eq!(client.send("GET", &next, Value::Null, &[]).ok()["value"][0]["name"], "c");
    let all = client.get("resources?$filter=tagName eq 'name' and tagValue eq 'b'").ok();
    assert_eq!(all["value"].as_array().unwrap().len(), 1, "{all}");
    assert_eq!(all["value"][0]["type"], "Microsoft.Network/virtualNetworks");
    assert_eq!(client.get("providers/Microsoft.Network/virtualNetworks").ok()["value"].as_array().unwrap().len(), 3);
}
