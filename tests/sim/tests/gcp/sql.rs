//! Cloud SQL.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::{Answer, Client};

const INSTANCES: &str = "v1/projects/PROJECT/instances";

fn instance(name: &str, more: Value) -> Value {
    let mut settings =
        json!({ "tier": "db-custom-2-7680", "edition": "ENTERPRISE", "backupConfiguration": { "enabled": true } });
    for (name, value) in more.as_object().unwrap() {
        settings[name.as_str()] = value.clone();
    }
    json!({ "name": name, "databaseVersion": "POSTGRES_17", "region": "europe-west4", "settings": settings })
}

fn insert(client: &Client, name: &str, more: Value) -> Answer {
    client.post("sql", INSTANCES, instance(name, more))
}

fn remove(client: &Client, path: &str) -> Answer {
    client.call("DELETE", "sql", path, Value::Null)
}

#[test]
fn an_instance_has_databases_and_users() {
    let client = Client::quick();
    let done = client.wait("sql", insert(&client, "i", json!({})));
    assert!(done.get("error").is_none(), "{done}");
    let path = format!("{INSTANCES}/i");
    let read = client.get("sql", &path).ok();
    assert_eq!((&read["state"], &read["settings"]["dataDiskSizeGb"]), (&json!("RUNNABLE"), &json!("10")));
    assert_eq!(read["settings"]["backupConfiguration"]["transactionLogRetentionDays"], 7);
    assert_eq!(client.get("sql", INSTANCES).ok()["items"][0]["name"], "i");
    assert_eq!(read["settings"]["maintenanceWindow"]["day"], 0);
    let window = |day: u32| {
        let settings = json!({ "maintenanceWindow": { "day": day, "hour": 3, "updateTrack": "stable" } });
        client.call("PATCH", "sql", &path, json!({ "settings": settings }))
    };
    assert!(window(0).message().contains("Day of week is unspecified"));
    client.wait("sql", window(7));
    assert_eq!(client.get("sql", &path).ok()["settings"]["maintenanceWindow"]["day"], 7);
    client.wait("sql", client.post("sql", &format!("{path}/databases"), json!({ "name": "d" })));
    client.wait("sql", client.post("sql", &format!("{path}/users"), json!({ "name": "u", "password": "secret" })));
    assert_eq!(client.get("sql", &format!("{path}/databases")).ok()["items"].as_array().unwrap().len(), 2);
    assert_eq!(client.get("sql", &format!("{path}/users/u")).ok()["name"], "u");
    let recorded = client.cloud.requests();
    assert!(recorded.iter().any(|one| one.input["password"] == "***"));
    let key = format!("sql/projects/{}/instances/i/users/u", client.cloud.project());
    client.cloud.world().owners.insert(key);
    let refused = remove(&client, &format!("{path}/users?name=u"));
    match refused.status {
        200 => assert_eq!(client.wait("sql", refused)["error"]["errors"][0]["code"], "INTERNAL_ERROR"),
        status => assert_eq!((status, refused.message().contains("depend on it")), (400, true)),
    }
    client.wait("sql", remove(&client, &format!("{path}/databases/d")));
    let operations = client.get("sql", "v1/projects/PROJECT/operations?instance=i").ok();
    assert!(operations["items"].as_array().unwrap().len() >= 4);
}

#[test]
fn a_deleted_name_is_burnt_for_a_week() {
    let client = Client::quick();
    client.wait("sql", insert(&client, "i", json!({ "deletionProtectionEnabled": true })));
    let path = format!("{INSTANCES}/i");
    assert_eq!(remove(&client, &path).status, 400);
    let patch = json!({ "settings": { "deletionProtectionEnabled": false } });
    client.wait("sql", client.call("PATCH", "sql", &path, patch));
    client.wait("sql", remove(&client, &path));
    assert_eq!(client.get("sql", &path).reason(), (404, "instanceDoesNotExist"));
    let refused = insert(&client, "i", json!({}));
    assert!([(409, "instanceAlreadyExists"), (409, "invalidState")].contains(&refused.reason()));
    client.cloud.advance(Duration::from_secs(7 * 86_400));
    client.wait("sql", insert(&client, "i", json!({})));
}

#[test]
fn one_operation_an_instance_and_a_ghost_after_it() {
    let client = Client::with(Options::default().enabled());
    client.cloud.world().conduct.sql_ghost = 50..51;
    let started = insert(&client, "i", json!({}));
    let path = format!("{INSTANCES}/i");
    let patch = || client.call("PATCH", "sql", &path, json!({ "settings": { "activationPolicy": "ALWAYS" } }));
    assert_eq!(patch().reason(), (409, "operationInProgress"));
    client.wait("sql", started);
    assert_eq!(patch().reason(), (409, "operationInProgress"));
    client.cloud.advance(Duration::from_secs(50));
    client.wait("sql", patch());
}

#[test]
fn updates_carry_the_version_and_disks_do_not_shrink() {
    let client = Client::quick();
    client.wait("sql", insert(&client, "i", json!({ "dataDiskSizeGb": "20" })));
    let path = format!("{INSTANCES}/i");
    let patch = |settings: Value| client.call("PATCH", "sql", &path, json!({ "settings": settings }));
    assert_eq!(patch(json!({ "settingsVersion": "7" })).reason(), (412, "staleData"));
    assert_eq!(patch(json!({ "dataDiskSizeGb": "10" })).reason(), (400, "invalid"));
    client.wait("sql", patch(json!({ "settingsVersion": "1", "dataDiskSizeGb": "30" })));
    let read = client.get("sql", &path).ok();
    assert_eq!(
        (&read["settings"]["settingsVersion"], &read["settings"]["dataDiskSizeGb"]),
        (&json!("2"), &json!("30"))
    );
    let key = format!("sql/projects/{}/instances/i", client.cloud.project());
    client.cloud.world().change(&key, "/settings/userLabels", json!({ "a": "b" }));
    assert_eq!(patch(json!({ "settingsVersion": "2" })).reason(), (412, "staleData"));
    let mut whole = client.get("sql", &path).ok();
    whole["settings"].as_object_mut().unwrap().shift_remove("settingsVersion");
    assert_eq!(client.call("PUT", "sql", &path, whole).reason(), (400, "invalid"));
}

#[test]
fn editions_and_tiers_belong_together() {
    let client = Client::quick();
    let mut body = instance("i", json!({}));
    body["settings"].as_object_mut().unwrap().shift_remove("edition");
    let refused = client.post("sql", INSTANCES, body);
    assert!(refused.message().contains("ENTERPRISE_PLUS"), "{}", refused.message());
    assert_eq!(insert(&client, "i", json!({ "tier": "db-n1-standard-1" })).reason(), (400, "invalid"));
    let days = json!({ "backupConfiguration": { "enabled": true, "transactionLogRetentionDays": 14 } });
    assert!(insert(&client, "i", days).message().contains("between 1 and 7"));
}

#[test]
fn replicas_come_first_in_a_deletion() {
    let client = Client::quick();
    client.wait("sql", insert(&client, "primary", copied()));
    client.wait("sql", client.post("sql", INSTANCES, replica("replica")));
    let path = format!("{INSTANCES}/primary");
    let read = client.get("sql", &path).ok();
    assert_eq!((&read["replicaNames"], &read["settings"]["settingsVersion"]), (&json!(["replica"]), &json!("2")));
    assert_eq!(remove(&client, &path).reason(), (400, "errorReplicationMasterInvalidOperation"));
    client.wait("sql", remove(&client, &format!("{INSTANCES}/replica")));
    client.wait("sql", remove(&client, &path));
}

/// The settings of a primary.
fn copied() -> Value {
    json!({ "backupConfiguration": { "enabled": true, "pointInTimeRecoveryEnabled": true } })
}

fn replica(name: &str) -> Value {
    let mut replica = instance(name, json!({ "backupConfiguration": { "enabled": false } }));
    replica["masterInstanceName"] = "primary".into();
    replica
}

#[test]
fn a_replica_in_another_region_is_promoted() {
    let client = Client::quick();
    client.wait("sql", insert(&client, "primary", json!({})));
    let create = |body: Value| client.post("sql", INSTANCES, body);
    let with = |more: Value| {
        let mut body = replica("replica");
        body["region"] = "us-central1".into();
        for (member, value) in more.as_object().unwrap() {
            body[member.as_str()] = value.clone();
        }
        body
    };
    assert!(create(with(json!({}))).message().contains("point-in-time recovery"));
    let path = format!("{INSTANCES}/primary");
    client.wait("sql", client.call("PATCH", "sql", &path, json!({ "settings": copied() })));
    let backups = json!({ "settings": instance("replica", json!({}))["settings"] });
    assert!(create(with(backups)).message().contains("Backups cannot be enabled on a replica"));
    let key = format!("sql/projects/{}/instances/primary", client.cloud.project());
    let encrypted = |region: &str| {
        let key = format!("projects/p/locations/{region}/keyRings/r/cryptoKeys/k");
        json!({ "diskEncryptionConfiguration": { "kmsKeyName": key } })
    };
    client.cloud.world().change(
        &key,
        "/diskEncryptionConfiguration",
        encrypted("europe-west4")["diskEncryptionConfiguration"].clone(),
    );
    assert!(create(with(json!({}))).message().contains("Disk encryption config is not specified"));
    assert!(create(with(encrypted("europe-west4"))).message().contains("different regions"));
    client.wait("sql", create(with(encrypted("us-central1"))));
    client.wait("sql", client.post("sql", &format!("{path}/users"), json!({ "name": "u", "password": "secret" })));
    let path = format!("{INSTANCES}/replica");
    let promote = || client.call("POST", "sql", &format!("{path}/promoteReplica"), Value::Null);
    client.wait("sql", promote());
    let read = client.get("sql", &path).ok();
    assert_eq!((&read["masterInstanceName"], &read["instanceType"]), (&Value::Null, &json!("CLOUD_SQL_INSTANCE")));
    assert_eq!(read["settings"]["backupConfiguration"]["enabled"], false);
    assert_eq!(client.get("sql", &format!("{path}/users/u")).ok()["name"], "u");
    assert!(promote().message().contains("not a read replica"));
    client.wait("sql", client.call("PATCH", "sql", &path, json!({ "settings": copied() })));
    client.wait("sql", remove(&client, &format!("{INSTANCES}/primary")));
}

pub(crate) fn connect(client: &Client, length: u8) {
    let network = format!("projects/{}/global/networks/n", client.cloud.project());
    let body = json!({ "name": "r", "addressType": "INTERNAL", "purpose": "VPC_PEERING", "prefixLength": length,
        "network": network });
    client.wait("compute", client.post("compute", "projects/PROJECT/global/addresses", body));
    let body = json!({ "network": network, "reservedPeeringRanges": ["r"] });
    let path = "v1/services/servicenetworking.googleapis.com/connections";
    let done = client.wait_long("servicenetworking", client.post("servicenetworking", path, body));
    assert!(done.get("error").is_none(), "{done}");
}

#[test]
fn a_private_address_needs_a_connection_with_room_and_holds_it() {
    let client = Client::with(Options::default().enabled());
    {
        let mut world = client.cloud.world();
        world.conduct.network_busy = 0..0;
        world.conduct.sql_ghost = 0..0;
        world.conduct.producer_hold = 86_400..86_401;
    }
    client.network();
    let network = format!("projects/{}/global/networks/n", client.cloud.project());
    let private = json!({ "ipConfiguration": { "ipv4Enabled": false, "privateNetwork": network } });
    assert!(insert(&client, "i", private.clone()).message().contains("SERVICE_NETWORKING_NOT_ENABLED"));
    connect(&client, 24);
    let done = client.wait("sql", insert(&client, "i", private.clone()));
    assert!(done.get("error").is_none(), "{done}");
    let read = client.get("sql", &format!("{INSTANCES}/i")).ok();
    assert_eq!(read["ipAddresses"][0]["type"], "PRIVATE");
    assert!(read["ipAddresses"][0]["ipAddress"].as_str().unwrap().starts_with("10."));
    // One /24 a region.
    let mut other = instance("other", private);
    other["region"] = "us-central1".into();
    let failed = client.wait("sql", client.post("sql", INSTANCES, other.clone()));
    assert!(failed["error"]["errors"][0]["message"].as_str().unwrap().contains("free blocks"));
    assert_eq!(client.post("sql", INSTANCES, other).status, 409);
    let path = "v1/services/servicenetworking.googleapis.com/connections/servicenetworking-googleapis-com";
    let delete = || client.post("servicenetworking", path, json!({ "consumerNetwork": network }));
    assert_eq!(client.wait_long("servicenetworking", delete())["error"]["code"], 9);
    client.wait("sql", remove(&client, &format!("{INSTANCES}/i")));
    assert_eq!(client.wait_long("servicenetworking", delete())["error"]["code"], 9);
    client.cloud.advance(Duration::from_secs(86_400));
    assert!(client.wait_long("servicenetworking", delete()).get("error").is_none());
}
