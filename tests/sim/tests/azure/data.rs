//! Storage, registries, databases and vaults.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::azure::{Closed, Options};

use crate::Client;

const ACCOUNT: &str = "G/Microsoft.Storage/storageAccounts/textnlpmodels";
const REGISTRY: &str = "G/Microsoft.ContainerRegistry/registries/textnlpimages";
const SERVER: &str = "G/Microsoft.DBforPostgreSQL/flexibleServers/textnlp-db";
const VAULT: &str = "G/Microsoft.KeyVault/vaults/textnlp-kv";
const ZONE: &str = "G/Microsoft.Network/privateDnsZones/x.private.postgres.database.azure.com";

/// A public server of the smallest size.
pub(crate) fn server() -> Value {
    json!({ "location": "westeurope", "sku": { "name": "Standard_D2ds_v5", "tier": "GeneralPurpose" }, "properties": {
        "administratorLogin": "textnlp", "administratorLoginPassword": "hunter2", "version": "16",
        "storage": { "storageSizeGB": 64 } } })
}

/// A server in the subnet `database` of the network: its path.
pub(crate) fn private_server(client: &Client) -> String {
    client.make(ZONE, json!({ "location": "global" }));
    client.cloud.advance(Duration::from_secs(60));
    let mut body = server();
    body["properties"]["network"] = json!({
        "delegatedSubnetResourceId": client.id("Microsoft.Network/virtualNetworks/n/subnets/database"),
        "privateDnsZoneArmResourceId": client.path(ZONE) });
    client.make(SERVER, body);
    SERVER.to_owned()
}

fn account() -> Value {
    json!({ "location": "westeurope", "sku": { "name": "Standard_LRS" }, "kind": "StorageV2" })
}

/// hashicorp/terraform-provider-azurerm#2940, hashicorp/terraform#11485.
#[test]
fn names_are_taken_everywhere_and_for_a_while() {
    let client = Client::with(Options::default().registered());
    client.cloud.world().conduct.name_hold = 100..101;
    client.make(ACCOUNT, account());
    client.cloud.advance(Duration::from_secs(60));
    client.put(&format!("{ACCOUNT}/blobServices/default/containers/models"), json!({ "properties": {} })).ok();
    client.delete(ACCOUNT).ok();
    assert_eq!(client.get(ACCOUNT).status, 404);
    assert_eq!(client.put(ACCOUNT, account()).code(), (409, "StorageAccountAlreadyTaken"));
    let check = |name: &str| {
        client
            .post(
                "providers/Microsoft.Storage/checkNameAvailability",
                json!({ "name": name, "type": "Microsoft.Storage/storageAccounts" }),
            )
            .ok()
    };
    assert_eq!(check("textnlpmodels")["nameAvailable"], false);
    client.cloud.advance(Duration::from_secs(120));
    assert_eq!(check("textnlpmodels")["nameAvailable"], true);
    assert_eq!(
        client.put("G/Microsoft.Storage/storageAccounts/Wrong-Name", account()).code(),
        (400, "AccountNameInvalid")
    );

    let taken = ("Microsoft.ContainerRegistry/registries".to_owned(), "textnlpimages".to_owned());
    client.cloud.world().taken.insert(taken, jiff::Timestamp::MAX);
    let registry = json!({ "location": "westeurope", "sku": { "name": "Standard" } });
    assert_eq!(client.put(REGISTRY, registry.clone()).code(), (409, "AlreadyInUse"));
    client.cloud.world().taken.clear();
    assert_eq!(client.make(REGISTRY, registry)["properties"]["loginServer"], "textnlpimages.azurecr.io");
}

/// Settings of the blob service and containers.
#[test]
fn containers_lie_in_the_blob_service() {
    let client = Client::quick();
    client.make(ACCOUNT, account());
    let service = format!("{ACCOUNT}/blobServices/default");
    let body = json!({ "properties": { "isVersioningEnabled": true, "deleteRetentionPolicy": { "enabled": true,
        "days": 7 } } });
    client.put(&service, body).ok();
    assert_eq!(client.get(&service).ok()["properties"]["isVersioningEnabled"], true);
    let container = format!("{service}/containers/models");
    assert_eq!(client.put(&container, json!({})).status, 201);
    assert_eq!(client.put(&container, json!({})).status, 200);
    assert_eq!(client.get(&format!("{service}/containers")).ok()["value"][0]["name"], "models");
    client.delete(&container).ok();
    client.delete(ACCOUNT).ok();
}

/// Azure/bicep#9710, Azure/azure-rest-api-specs#11189, MicrosoftDocs/azure-docs#123502.
#[test]
fn blobs_are_replicated_by_a_policy_of_each_account() {
    let client = Client::quick();
    let accounts = [ACCOUNT, "G/Microsoft.Storage/storageAccounts/textnlpcopies"];
    for path in accounts {
        client.make(path, account());
        client.put(&format!("{path}/blobServices/default"), json!({ "properties": {} })).ok();
        client.put(&format!("{path}/blobServices/default/containers/models"), json!({ "properties": {} })).ok();
    }
    let [source, destination] = accounts.map(|path| client.path(path));
    let policy = |rule: &Value| {
        let rule = json!({ "ruleId": rule, "sourceContainer": "models", "destinationContainer": "models" });
        json!({ "properties": { "sourceAccount": source, "destinationAccount": destination, "rules": [rule] } })
    };
    let put = |account: &str, name: &str, rule: &Value| {
        client.put(&format!("{account}/objectReplicationPolicies/{name}"), policy(rule))
    };
    let blobs = |account: &str, properties: Value| {
        client.put(&format!("{account}/blobServices/default"), json!({ "properties": properties }))
    };
    assert_eq!(put(&destination, "default", &Value::Null).code(), (400, "BadRequest"), "no versions");
    blobs(&source, json!({ "isVersioningEnabled": true, "changeFeed": { "enabled": true } })).ok();
    blobs(&destination, json!({ "isVersioningEnabled": true })).ok();
    assert_eq!(put(&source, "8173ea1f-2ff8-4970-909f-878e0953475b", &json!("r")).code(), (503, "ServiceUnavailable"));
    let made = put(&destination, "default", &Value::Null).ok();
    let (name, rule) = (made["name"].as_str().unwrap(), &made["properties"]["rules"][0]["ruleId"]);
    assert_eq!((&made["properties"]["policyId"], rule.is_string()), (&json!(name), true));
    assert_eq!(put(&source, name, rule).ok()["properties"]["policyId"], name);
    assert_eq!(blobs(&source, json!({ "isVersioningEnabled": false })).code(), (400, "BadRequest"));
    for account in [&source, &destination] {
        let policies = format!("{account}/objectReplicationPolicies");
        assert_eq!(client.get(&policies).ok()["value"][0]["name"], name);
        client.delete(&format!("{policies}/{name}")).ok();
    }
    blobs(&source, json!({ "isVersioningEnabled": false })).ok();
}

/// Azure/bicep-types-az#2494, lawrencegripper/azbrowse#98, hashicorp/terraform-provider-azurerm#18771,
/// Azure/bicep-registry-modules#6359, hashicorp/terraform-provider-azurerm#17973, and
/// <https://learn.microsoft.com/azure/storage/blobs/lifecycle-management-overview>.
#[test]
fn an_account_has_one_lifecycle_policy_that_is_written_as_a_whole() {
    let client = Client::quick();
    let policies = format!("{ACCOUNT}/managementPolicies");
    let path = format!("{policies}/default");
    let rule = |name: &str, actions: Value| {
        json!({ "name": name, "enabled": true, "type": "Lifecycle", "definition": {
            "filters": { "blobTypes": ["blockBlob"], "prefixMatch": ["models/"] }, "actions": { "baseBlob": actions } } })
    };
    let cold = json!({ "tierToCold": { "daysAfterModificationGreaterThan": 90 } });
    let archive = json!({ "tierToArchive": { "daysAfterModificationGreaterThan": 180 } });
    let put = |path: &str, rules: Value| client.put(path, json!({ "properties": { "policy": { "rules": rules } } }));
    assert_eq!(put(&path, json!([rule("one", cold.clone())])).status, 404, "there is no account");
    let mut zoned = account();
    zoned["sku"]["name"] = json!("Standard_ZRS");
    client.make(ACCOUNT, zoned);
    assert_eq!(client.get(&path).status, 404);
    let other = put(&format!("{policies}/archive"), json!([rule("one", cold.clone())]));
    assert_eq!(other.code(), (404, "HttpResourceNotFound"));
    let mut prefixes = rule("one", cold.clone());
    prefixes["definition"]["filters"]["prefixMatch"] = (0..11).map(|number| format!("models/{number}")).collect();
    let mut unfiltered = rule("one", cold.clone());
    unfiltered["definition"].as_object_mut().unwrap().retain(|member, _| member != "filters");
    assert_eq!(put(&path, json!([])).code(), (400, "BadRequest"));
    for refused in [
        json!([rule("one", cold.clone()), rule("one", cold.clone())]),
        json!([rule(&"a".repeat(257), cold.clone())]),
        json!([rule("one", json!({}))]),
        json!([rule("one", archive)]),
        json!([prefixes]),
        json!([unfiltered]),
    ] {
        assert_eq!(put(&path, refused).code(), (400, "InvalidManagementPolicyRule"));
    }
    put(&path, json!([rule("one two-three", cold.clone())])).ok();
    let made = put(&path, json!([rule("one", cold.clone()), rule("two", cold.clone())])).ok();
    let days = &made["properties"]["policy"]["rules"][0]["definition"]["actions"]["baseBlob"]["tierToCold"];
    assert_eq!(made["name"], "DefaultManagementPolicy");
    assert_eq!(days.to_string(), r#"{"daysAfterModificationGreaterThan":90.0}"#);
    put(&path, json!([rule("two", cold)])).ok();
    let read = client.get(&path).ok();
    assert_eq!(read["properties"]["policy"]["rules"].as_array().map(Vec::len), Some(1));
    assert_eq!(client.get(&policies).status, 404);
    client.delete(&path).ok();
    assert_eq!((client.get(&path).status, client.delete(&path).status), (404, 204));
    assert_eq!(client.cloud.violations(), Vec::<String>::new());
}

/// crossplane-contrib/provider-azure#300, hashicorp/terraform-provider-azurerm#24549, Azure/azure-rest-api-specs#20866,
/// hashicorp/terraform-provider-azurerm#28298, hashicorp/terraform-provider-azurerm#21306, hashicorp/terraform-provider-azurerm#5443, and
/// the password.
#[test]
fn servers_fail_late_and_are_busy() {
    let client = Client::with(Options::default().registered());
    client.network();
    let made = client.put(SERVER, server());
    assert_eq!((made.status, &made.body), (202, &json!({})));
    client.cloud.advance(Duration::from_secs(20));
    let database = format!("{SERVER}/databases/texts");
    assert_eq!(client.put(&database, json!({ "properties": {} })).code(), (409, "ServerIsNotReady"));
    client.wait(made);
    let read = client.get(SERVER).ok();
    assert_eq!(read["properties"]["state"], "Ready");
    assert!(!read.to_string().contains("hunter2"));
    let sent =
        client.cloud.requests().into_iter().find(|one| one.operation.ends_with("flexibleServers/write")).unwrap();
    assert_eq!(sent.input["properties"]["administratorLoginPassword"], "***");
    let answer = client.put(&database, json!({ "properties": {} }));
    assert_eq!(
        client.put(&format!("{SERVER}/databases/more"), json!({ "properties": {} })).code(),
        (409, "ServerBusy")
    );
    client.wait(answer);
    let mut smaller = server();
    smaller["properties"]["storage"]["storageSizeGB"] = 32.into();
    assert_eq!(client.put(SERVER, smaller).code(), (400, "InvalidParameterValue"));
    let patch = json!({ "properties": { "backup": { "backupRetentionDays": 14 } } });
    client.wait(client.call("PATCH", SERVER, patch));
    assert_eq!(client.get(SERVER).ok()["properties"]["backup"]["backupRetentionDays"], 14);
    let window = |hour: u32| {
        let window = json!({ "customWindow": "Enabled", "dayOfWeek": 0, "startHour": hour, "startMinute": 30 });
        client.call("PATCH", SERVER, json!({ "properties": { "maintenanceWindow": window } }))
    };
    assert_eq!(window(24).code(), (400, "InvalidParameterValue"));
    client.wait(window(22));
    assert_eq!(client.get(SERVER).ok()["properties"]["maintenanceWindow"]["startHour"], 22);

    // The zone is the server's name and the suffix.
    let zone = "G/Microsoft.Network/privateDnsZones/other.postgres.database.azure.com";
    client.make(zone, json!({ "location": "global" }));
    client.cloud.advance(Duration::from_secs(60));
    let mut body = server();
    body["properties"]["network"] = json!({
        "delegatedSubnetResourceId": client.id("Microsoft.Network/virtualNetworks/n/subnets/database"),
        "privateDnsZoneArmResourceId": client.path(zone) });
    let other = "G/Microsoft.DBforPostgreSQL/flexibleServers/other";
    assert_eq!(client.failure(client.put(other, body.clone())), "PrivateDnsZoneNameNotValid");
    body["properties"]["network"]["delegatedSubnetResourceId"] =
        client.id("Microsoft.Network/virtualNetworks/n/subnets/nodes").into();
    assert_eq!(client.put(other, body).code(), (400, "InvalidParameterValue"));

    let endless = client.put("G/Microsoft.DBforPostgreSQL/flexibleServers/Wrong", server());
    let address = endless.header("azure-asyncoperation").unwrap().replace("https://management.azure.com", "");
    client.cloud.advance(Duration::from_secs(86_400));
    assert_eq!(client.send("GET", &address, Value::Null, &[]).body["status"], "InProgress");

    for (how, code) in [
        (Closed::OfferRestricted, (400, "LocationIsOfferRestricted")),
        (Closed::OutOfRange, (400, "ParameterOutOfRange")),
        (Closed::Internal, (500, "InternalServerError")),
    ] {
        client.cloud.world().conduct.closed = Some(how);
        assert_eq!(client.put("G/Microsoft.DBforPostgreSQL/flexibleServers/more", server()).code(), code);
    }
    let offered = client.get("providers/Microsoft.DBforPostgreSQL/locations/westeurope/capabilities").ok();
    assert_eq!(offered["value"][0]["supportedServerVersions"].as_array().unwrap().len(), 0);
}

/// Azure/azure-cli#23979.
#[test]
fn a_stopped_server_starts_itself_after_seven_days() {
    const DAY: u64 = 86_400;
    let client = Client::quick();
    client.make(SERVER, server());
    let state = || client.get(SERVER).ok()["properties"]["state"].clone();
    let set = |what: &str| client.post(&format!("{SERVER}/{what}"), Value::Null);
    assert_eq!(set("start").code(), (409, "ServerIsNotReady"));
    client.wait(set("stop"));
    assert_eq!(state(), "Stopped");
    assert_eq!(client.call("PATCH", SERVER, json!({ "tags": { "a": "b" } })).code(), (409, "ServerIsNotReady"));
    client.cloud.advance(Duration::from_secs(6 * DAY));
    assert_eq!(state(), "Stopped");
    client.cloud.advance(Duration::from_secs(2 * DAY));
    assert_eq!(state(), "Ready");
    // The seven days are those of the last stop.
    client.wait(set("stop"));
    client.cloud.advance(Duration::from_secs(4 * DAY));
    client.wait(set("start"));
    client.wait(set("stop"));
    client.cloud.advance(Duration::from_secs(4 * DAY));
    assert_eq!(state(), "Stopped");
    client.cloud.advance(Duration::from_secs(4 * DAY));
    assert_eq!(state(), "Ready");
}

/// MicrosoftLearning/mslearn-azure-ai#200, Azure/bicep-types-az#1458, bsarkarlabs-stack/bff-demo#76, hashicorp/terraform-provider-azurerm#11778.
#[test]
fn a_redis_has_one_database_whose_key_is_replaced() {
    let client = Client::quick();
    client.network();
    let redis = "G/Microsoft.Cache/redisEnterprise/textnlp-redis";
    let body = |sku: &str| {
        json!({ "location": "westeurope", "sku": { "name": sku }, "properties": {
        "highAvailability": "Disabled", "minimumTlsVersion": "1.2", "publicNetworkAccess": "Disabled" } })
    };
    let open = json!({ "location": "westeurope", "sku": { "name": "Balanced_B0" }, "properties": {} });
    assert_eq!(client.put(redis, open).code(), (400, "BadRequest"));
    assert_eq!(client.put(redis, body("Enterprise_E10")).code(), (400, "BadRequest"));
    let two = client.put("G/Microsoft.Cache/redisEnterprise/text--nlp", body("Balanced_B0"));
    assert_eq!(two.code(), (400, "InvalidResourceName"));
    let made = client.make(redis, body("Balanced_B0"));
    assert_eq!(made["properties"]["hostName"], "textnlp-redis.westeurope.redis.azure.net");

    let database = format!("{redis}/databases/default");
    let other = client.put(&format!("{redis}/databases/texts"), json!({ "properties": {} }));
    assert_eq!(other.code(), (400, "InvalidResourceName"));
    let made = client.make(&database, json!({ "properties": { "clusteringPolicy": "EnterpriseCluster" } }));
    assert_eq!(made["properties"]["accessKeysAuthentication"], "Disabled");
    assert!(made.get("$keys").is_none(), "{made}");
    let patch = |properties: Value| client.call("PATCH", &database, json!({ "properties": properties }));
    client.wait(patch(json!({ "accessKeysAuthentication": "Enabled" })));
    assert_eq!(patch(json!({ "clusteringPolicy": "OSSCluster" })).code(), (400, "PropertyChangeNotAllowed"));
    let keys = || client.post(&format!("{database}/listKeys"), Value::Null).ok();
    let before = keys();
    client.wait(client.post(&format!("{database}/regenerateKey"), json!({ "keyType": "Primary" })));
    let after = keys();
    assert!(before["primaryKey"] != after["primaryKey"] && before["secondaryKey"] == after["secondaryKey"]);

    let endpoint = "G/Microsoft.Network/privateEndpoints/textnlp";
    let connection = json!({ "name": "redis", "properties": {
        "privateLinkServiceId": client.path(redis), "groupIds": ["redisEnterprise"] } });
    let body = |connections: Value| {
        json!({ "location": "westeurope", "properties": {
        "subnet": { "id": client.id("Microsoft.Network/virtualNetworks/n/subnets/nodes") },
        "privateLinkServiceConnections": connections } })
    };
    assert_eq!(client.put(endpoint, body(json!([]))).code(), (400, "InvalidRequestFormat"));
    let mut other = connection.clone();
    other["properties"]["groupIds"] = json!(["redisCache"]);
    assert_eq!(client.put(endpoint, body(json!([other]))).code(), (400, "BadRequest"));
    let made = client.make(endpoint, body(json!([connection])));
    let state = &made["properties"]["privateLinkServiceConnections"][0]["properties"];
    assert_eq!(state["privateLinkServiceConnectionState"]["status"], "Approved");
    let subnet = client.delete("G/Microsoft.Network/virtualNetworks/n/subnets/nodes");
    assert_eq!(subnet.code(), (400, "InUseSubnetCannotBeDeleted"));
    client.drop_one(endpoint);
    client.drop_one(&database);
    client.drop_one(redis);
    assert_eq!(client.cloud.violations(), Vec::<String>::new());
}

/// hashicorp/terraform-provider-azurerm#21485, Azure/azure-rest-api-specs#22499, and
/// <https://learn.microsoft.com/azure/postgresql/read-replica/concepts-read-replicas>.
#[test]
fn a_replica_in_another_region_is_promoted() {
    let client = Client::quick();
    client.network();
    private_server(&client);
    client.make(&format!("{SERVER}/databases/texts"), json!({ "properties": {} }));
    let there = "G/Microsoft.Network/virtualNetworks/m";
    let delegation =
        json!({ "name": "d", "properties": { "serviceName": "Microsoft.DBforPostgreSQL/flexibleServers" } });
    client.make(there, json!({ "location": "northeurope", "properties": {
        "addressSpace": { "addressPrefixes": ["10.30.0.0/16"] },
        "subnets": [{ "name": "database", "properties": { "addressPrefix": "10.30.0.0/24", "delegations": [delegation] } }] } }));
    let with = |source: &str, more: Value| {
        let mut body = json!({ "location": "northeurope", "sku": server()["sku"], "properties": {
            "createMode": "Replica", "sourceServerResourceId": client.path(source), "network": {
                "delegatedSubnetResourceId": format!("{}/subnets/database", client.path(there)),
                "privateDnsZoneArmResourceId": client.path(ZONE) } } });
        for (name, value) in more.as_object().unwrap() {
            body["properties"][name] = value.clone();
        }
        body
    };
    let replica = "G/Microsoft.DBforPostgreSQL/flexibleServers/textnlp-replica";
    let create = |more: Value| client.put(replica, with(SERVER, more));
    assert_eq!(client.failure(create(json!({}))), "InternalServerError");
    let here = "G/Microsoft.Network/virtualNetworks/n";
    for (from, to) in [(here, there), (there, here)] {
        let body = json!({ "properties": { "remoteVirtualNetwork": { "id": client.path(to) } } });
        client.make(&format!("{from}/virtualNetworkPeerings/other"), body);
    }
    let refused = (400, "InvalidParameterValue");
    for more in [
        json!({ "storage": { "storageSizeGB": 32 } }),
        json!({ "backup": { "backupRetentionDays": 7 } }),
        json!({ "administratorLoginPassword": "hunter3" }),
    ] {
        assert_eq!(create(more).code(), refused);
    }
    let small = "G/Microsoft.DBforPostgreSQL/flexibleServers/small";
    let mut body = server();
    body["sku"] = json!({ "name": "Standard_B1ms", "tier": "Burstable" });
    client.make(small, body);
    assert_eq!(client.put(replica, with(small, json!({}))).code(), refused);

    let made = client.make(replica, with(SERVER, json!({})));
    let of = |read: &Value| {
        ["replicationRole", "version", "administratorLogin"].map(|name| read["properties"][name].clone())
    };
    assert_eq!(of(&made), ["GeoAsyncReplica", "16", "textnlp"].map(Value::from));
    assert_eq!(client.delete(SERVER).code(), (409, "OperationNotAllowed"));
    let patch = |path: &str, properties: Value| client.call("PATCH", path, json!({ "properties": properties }));
    assert_eq!(patch(SERVER, json!({ "storage": { "storageSizeGB": 128 } })).code(), refused);
    assert_eq!(patch(replica, json!({ "backup": { "backupRetentionDays": 14 } })).code(), refused);
    let promote = || {
        let how = json!({ "role": "None", "promoteMode": "standalone", "promoteOption": "forced" });
        patch(replica, json!({ "replica": how }))
    };
    client.wait(promote());
    let read = client.get(replica).ok();
    assert_eq!(of(&read)[0], "Primary");
    assert_eq!(read["properties"]["sourceServerResourceId"], Value::Null);
    assert_eq!(client.get(&format!("{replica}/databases/texts")).ok()["name"], "texts");
    assert_eq!(promote().code(), refused);
    client.wait(patch(replica, json!({ "backup": { "backupRetentionDays": 14 } })));
    client.drop_one(SERVER);
}

fn vault(client: &Client, more: Value) -> Value {
    let tenant = client.cloud.variables().into_iter().find(|one| one.0 == "AZURE_TENANT_ID").unwrap().1;
    let mut body = json!({ "location": "westeurope", "properties": { "tenantId": tenant, "softDeleteRetentionInDays": 7,
        "sku": { "family": "A", "name": "standard" }, "enableRbacAuthorization": true } });
    for (name, value) in more.as_object().unwrap() {
        body["properties"][name] = value.clone();
    }
    body
}

/// hashicorp/terraform-provider-azurerm#12972, adamdost-0/linux-update-cds#21, microsoft/aspire#16102.
#[test]
fn a_deleted_vault_keeps_its_name() {
    let client = Client::quick();
    let plain = vault(&client, json!({}));
    client.make(VAULT, plain.clone());
    let key = format!("{VAULT}/keys/key");
    let made = client.put(&key, json!({ "properties": { "kty": "RSA" } })).ok();
    let again = client.put(&key, json!({ "properties": { "kty": "RSA", "keySize": 4096 } })).ok();
    assert_eq!(made["properties"]["keyUriWithVersion"], again["properties"]["keyUriWithVersion"]);
    assert_eq!(client.delete(&key).status, 405);
    client.drop_one("GROUP");
    client.put("GROUP", json!({ "location": "westeurope" })).ok();
    assert_eq!(client.put(VAULT, plain.clone()).code(), (409, "ConflictError"));
    let deleted = "providers/Microsoft.KeyVault/locations/westeurope/deletedVaults/textnlp-kv";
    assert_eq!(client.get(deleted).ok()["properties"]["vaultId"], client.path(VAULT));
    client.wait(client.post(&format!("{deleted}/purge"), Value::Null));
    assert_eq!(client.get(deleted).status, 404);
    assert_eq!(
        client.put(VAULT, vault(&client, json!({ "createMode": "recover" }))).code(),
        (404, "SoftDeletedVaultDoesNotExist")
    );
    client.make(VAULT, vault(&client, json!({ "enablePurgeProtection": true })));
    assert_eq!(client.put(VAULT, vault(&client, json!({ "enablePurgeProtection": false }))).status, 400);
    client.delete(VAULT).ok();
    assert_eq!(client.post(&format!("{deleted}/purge"), Value::Null).code(), (405, "MethodNotAllowed"));
    client.make(VAULT, vault(&client, json!({ "createMode": "recover" })));
    client.delete(VAULT).ok();
    client.cloud.advance(Duration::from_secs(8 * 86_400));
    assert_eq!(client.get(deleted).status, 404);
}
