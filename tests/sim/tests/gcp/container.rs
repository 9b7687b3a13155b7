//! Kubernetes Engine.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::{Answer, Client};

const CLUSTERS: &str = "v1/projects/PROJECT/locations/europe-west4/clusters";

fn cluster(more: Value) -> Value {
    let mut cluster = json!({ "name": "c", "network": "n", "subnetwork": "n",
        "ipAllocationPolicy": { "clusterSecondaryRangeName": "pods", "servicesSecondaryRangeName": "services" },
        "nodePools": [{ "name": "cpu", "initialNodeCount": 1, "config": { "machineType": "e2-standard-4" } }] });
    for (name, value) in more.as_object().unwrap() {
        cluster[name.as_str()] = value.clone();
    }
    json!({ "cluster": cluster })
}

fn create(client: &Client, more: Value) -> Answer {
    client.post("container", CLUSTERS, cluster(more))
}

fn pool(name: &str, machine: &str, accelerator: Option<&str>) -> Value {
    let mut config = json!({ "machineType": machine });
    if let Some(kind) = accelerator {
        config["accelerators"] = json!([{ "acceleratorType": kind, "acceleratorCount": "1" }]);
    }
    json!({ "nodePool": { "name": name, "initialNodeCount": 1, "config": config, "locations": ["europe-west4-a"] } })
}

fn add_pool(client: &Client, body: Value) -> Answer {
    client.post("container", &format!("{CLUSTERS}/c/nodePools"), body)
}

fn read(client: &Client) -> Value {
    client.get("container", &format!("{CLUSTERS}/c")).ok()
}

fn ready(client: &Client) {
    client.network();
    let done = client.wait("container", create(client, json!({})));
    assert!(done.get("error").is_none(), "{done}");
}

#[test]
fn a_cluster_has_its_pools_defaults_and_address() {
    let client = Client::quick();
    client.cloud.set_cluster_endpoint("https://127.0.0.1:6443/", "PEM");
    ready(&client);
    let cluster = read(&client);
    assert_eq!((&cluster["status"], &cluster["endpoint"]), (&json!("RUNNING"), &json!("127.0.0.1:6443")));
    assert_eq!(cluster["masterAuth"]["clusterCaCertificate"], "UEVN");
    assert_eq!(cluster["currentNodeCount"], 3);
    let pool = &cluster["nodePools"][0];
    assert_eq!(pool["config"]["imageType"], "COS_CONTAINERD");
    assert_eq!(pool["management"], json!({ "autoUpgrade": true, "autoRepair": true }));
    assert!(cluster["resourceLabels"].as_object().unwrap().keys().any(|key| key.starts_with("goog-")));
    let list = client.get("container", "v1/projects/PROJECT/locations/-/clusters").ok();
    assert_eq!(list["clusters"].as_array().unwrap().len(), 1);
    let zone = client.get("container", "v1/projects/PROJECT/locations/europe-west4-a/clusters/c");
    assert_eq!(zone.reason(), (404, "notFound"));
    assert_eq!(create(&client, json!({})).reason(), (409, "alreadyExists"));
    let rules = client.get("compute", "projects/PROJECT/global/firewalls").ok();
    assert_eq!(rules["items"].as_array().unwrap().len(), 3);
    let used = client.call("DELETE", "compute", "projects/PROJECT/regions/europe-west4/subnetworks/n", Value::Null);
    assert_eq!(used.reason(), (400, "resourceInUseByAnotherResource"));
    client.wait("container", client.call("DELETE", "container", &format!("{CLUSTERS}/c"), Value::Null));
    assert_eq!(client.get("container", &format!("{CLUSTERS}/c")).status, 404);
    assert!(client.get("compute", "projects/PROJECT/global/firewalls").ok().get("items").is_none());
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let client = Client::quick();
    client.network();
    let cases = [
        (json!({ "nodePools": [] }), "initial_node_count"),
        (json!({ "initialClusterVersion": "1.12" }), "unsupported"),
        (
            json!({ "ipAllocationPolicy": { "clusterSecondaryRangeName": "pods",
                "servicesSecondaryRangeName": "pods" } }),
            "share",
        ),
        (json!({ "ipAllocationPolicy": { "clusterSecondaryRangeName": "x" } }), "does not exist"),
        (json!({ "network": "x" }), "does not exist"),
        (json!({ "nodePools": [{ "name": "p", "version": "1.34.1-gke.2037000" }] }), "greater than master"),
        (
            json!({ "nodePools": [{ "name": "p", "config": { "accelerators": [{ "acceleratorType": "nvidia-tesla-t4",
                "acceleratorCount": "1" }] } }] }),
            "default machine type",
        ),
        (
            json!({ "nodePools": [{ "name": "p", "config": { "machineType": "n2-standard-8",
                "accelerators": [{ "acceleratorType": "nvidia-l4", "acceleratorCount": "1" }] } }] }),
            "not compatible",
        ),
        (
            json!({ "nodePools": [{ "name": "p", "config": { "taints": [{ "key": "a", "effect": "NO_SCHEDULE" },
                { "key": "a", "effect": "NO_SCHEDULE" }] } }] }),
            "More than one taint",
        ),
    ];
    for (more, text) in cases {
        let refused = create(&client, more);
        assert_eq!(refused.status, 400, "{text}");
        assert!(refused.message().contains(text), "{}", refused.message());
    }
}

#[test]
fn one_operation_a_cluster_and_a_gap_before_it_runs() {
    let client = Client::with(Options::default().enabled());
    client.cloud.world().conduct.running_gap = 200..201;
    client.network();
    let started = create(&client, json!({}));
    let refused = add_pool(&client, pool("p", "e2-standard-4", None));
    assert_eq!(refused.reason(), (400, "failedPrecondition"));
    assert!(refused.message().contains(started.body["name"].as_str().unwrap()), "{}", refused.message());
    client.wait("container", started);
    assert_eq!(read(&client)["status"], "RECONCILING");
    let refused = add_pool(&client, pool("p", "e2-standard-4", None));
    assert!(refused.message().contains("currently being created"), "{}", refused.message());
    client.cloud.advance(Duration::from_secs(200));
    client.wait("container", add_pool(&client, pool("p", "e2-standard-4", None)));
}

#[test]
fn google_resizes_the_control_plane_of_a_cluster_that_grew() {
    let client = Client::with(Options::default().enabled());
    client.cloud.world().conduct.running_gap = 1..2;
    client.cloud.world().conduct.resize_above = Some(3);
    ready(&client);
    client.cloud.advance(Duration::from_secs(5));
    let size = client.post("container", &format!("{CLUSTERS}/c/nodePools/cpu:setSize"), json!({ "nodeCount": 2 }));
    client.wait("container", size);
    client.cloud.advance(Duration::from_secs(5));
    let refused = client.call("DELETE", "container", &format!("{CLUSTERS}/c"), Value::Null);
    assert_eq!(refused.reason(), (400, "failedPrecondition"));
    let running = client.get("container", "v1/projects/PROJECT/locations/-/operations").ok();
    let repair =
        running["operations"].as_array().unwrap().iter().find(|one| one["operationType"] == "REPAIR_CLUSTER").unwrap();
    assert_eq!(repair["status"], "RUNNING");
    client.cloud.advance(Duration::from_secs(1800));
    client.wait("container", client.call("DELETE", "container", &format!("{CLUSTERS}/c"), Value::Null));
}

#[test]
fn pools_in_parallel_are_bounded_and_a_cancelled_operation_ends() {
    let client = Client::with(Options::default().enabled());
    client.cloud.world().conduct.running_gap = 0..0;
    client.cloud.world().conduct.parallel_node_pools = true;
    ready(&client);
    let mut last = None;
    for index in 0..5 {
        last = Some(add_pool(&client, pool(&format!("p{index}"), "e2-standard-2", None)).ok());
    }
    let refused = add_pool(&client, pool("p5", "e2-standard-2", None));
    assert_eq!((refused.status, refused.body["error"]["status"].as_str()), (429, Some("RESOURCE_EXHAUSTED")));
    let name = last.unwrap()["name"].as_str().unwrap().to_owned();
    let path = format!("v1/projects/PROJECT/locations/europe-west4/operations/{name}");
    client.post("container", &format!("{path}:cancel"), json!({})).ok();
    assert_eq!(client.get("container", &path).ok()["status"], "DONE");
}

#[test]
fn gpu_pools_get_a_driver_and_a_taint_only_beside_others() {
    let client = Client::quick();
    client.cloud.world().quotas.insert((String::new(), "GPUS_ALL_REGIONS".to_owned()), 4.0);
    ready(&client);
    client.wait("container", add_pool(&client, pool("gpu", "g2-standard-8", Some("nvidia-l4"))));
    let path = format!("{CLUSTERS}/c/nodePools/gpu");
    let read = client.get("container", &path).ok();
    assert_eq!(read["status"], "RUNNING");
    assert_eq!(read["config"]["taints"][0]["key"], "nvidia.com/gpu");
    assert_eq!(read["config"]["accelerators"][0]["gpuDriverInstallationConfig"]["gpuDriverVersion"], "DEFAULT");
    let more = json!({ "accelerators": [{ "acceleratorType": "nvidia-l4", "acceleratorCount": "2" }] });
    let refused = client.call("PUT", "container", &path, more);
    assert!(refused.message().contains("should not be updated"));
    assert_eq!(client.call("PUT", "container", &path, json!({})).status, 400);
    client.wait("container", client.call("PUT", "container", &path, json!({ "accelerators": [] })));
    let labels = json!({ "labels": { "labels": { "a": "b" } } });
    client.wait("container", client.call("PUT", "container", &path, labels));
    assert_eq!(client.get("container", &path).ok()["config"]["labels"]["a"], "b");
    // Without a pool that has none there is no taint.
    client.wait("container", client.call("DELETE", "container", &format!("{CLUSTERS}/c/nodePools/cpu"), Value::Null));
    client.wait("container", add_pool(&client, pool("gpu2", "g2-standard-8", Some("nvidia-l4"))));
    assert!(client.get("container", &format!("{CLUSTERS}/c/nodePools/gpu2")).ok()["config"].get("taints").is_none());
}

#[test]
fn an_upgrade_that_adds_nodes_needs_quota_for_them() {
    let client = Client::quick();
    client.cloud.world().quotas.insert((String::new(), "GPUS_ALL_REGIONS".to_owned()), 1.0);
    ready(&client);
    client.wait("container", add_pool(&client, pool("gpu", "g2-standard-8", Some("nvidia-l4"))));
    let path = format!("{CLUSTERS}/c/nodePools/gpu");
    let change = |body: Value| client.call("PUT", "container", &path, body);
    let upgrade = |settings: Value| {
        client.wait("container", change(json!({ "upgradeSettings": settings })));
        let version = client.get("container", &path).ok()["version"].clone();
        client.wait("container", change(json!({ "nodeVersion": version })))
    };
    for settings in
        [json!({ "strategy": "SURGE", "maxSurge": 1, "maxUnavailable": 0 }), json!({ "strategy": "BLUE_GREEN" })]
    {
        let failed = upgrade(settings);
        assert!(failed["error"]["message"].as_str().unwrap().contains("GCE_QUOTA_EXCEEDED"), "{failed}");
        assert_eq!(client.get("container", &path).ok()["status"], "RUNNING");
    }
    let done = upgrade(json!({ "strategy": "SURGE", "maxSurge": 0, "maxUnavailable": 1 }));
    assert!(done.get("error").is_none(), "{done}");
    let none = json!({ "upgradeSettings": { "strategy": "SURGE", "maxSurge": 0, "maxUnavailable": 0 } });
    assert!(change(none).message().contains("maxUnavailable"));
}

#[test]
fn quotas_and_stock_fail_the_operation_and_the_pool_stays() {
    let client = Client::quick();
    ready(&client);
    // A new project has no GPUs.
    let failed = client.wait("container", add_pool(&client, pool("gpu", "g2-standard-8", Some("nvidia-l4"))));
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("GPUS_ALL_REGIONS") && message.contains("GCE_QUOTA_EXCEEDED"), "{message}");
    client.wait("container", client.call("DELETE", "container", &format!("{CLUSTERS}/c/nodePools/gpu"), Value::Null));
    {
        let mut world = client.cloud.world();
        world.quotas.insert((String::new(), "GPUS_ALL_REGIONS".to_owned()), 4.0);
        world.stock_out("europe-west4-a", "nvidia-l4");
    }
    let failed = client.wait("container", add_pool(&client, pool("gpu", "g2-standard-8", Some("nvidia-l4"))));
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("GCE_STOCKOUT") && message.contains("ZONE_RESOURCE_POOL_EXHAUSTED"), "{message}");
    let path = format!("{CLUSTERS}/c/nodePools/gpu");
    assert_eq!(client.get("container", &path).ok()["status"], "ERROR");
    let again = add_pool(&client, pool("gpu", "g2-standard-8", Some("nvidia-l4")));
    assert_eq!(again.reason(), (409, "alreadyExists"));
    client.cloud.world().restock("europe-west4-a", "nvidia-l4", 2);
    assert_eq!(client.get("container", &path).ok()["status"], "RUNNING");
    // Spot nodes are counted apart where they have a quota of their own.
    let spot = |name: &str| {
        let mut spot = pool(name, "e2-standard-4", None);
        spot["nodePool"]["config"]["spot"] = true.into();
        add_pool(&client, spot)
    };
    let done = client.wait("container", spot("spot"));
    assert!(done.get("error").is_none(), "{done}");
    client.cloud.world().quotas.insert(("europe-west4".to_owned(), "PREEMPTIBLE_CPUS".to_owned()), 6.0);
    let failed = client.wait("container", spot("more"));
    assert!(failed["error"]["message"].as_str().unwrap().contains("PREEMPTIBLE_CPUS"));
}

#[test]
fn disks_have_a_key_only_with_a_role_of_compute_engine() {
    let client = Client::quick();
    ready(&client);
    let ring = "v1/projects/PROJECT/locations/europe-west4/keyRings";
    client.post("cloudkms", &format!("{ring}?keyRingId=r"), json!({})).ok();
    let key = json!({ "purpose": "ENCRYPT_DECRYPT" });
    let key = client.post("cloudkms", &format!("{ring}/r/cryptoKeys?cryptoKeyId=k"), key).ok()["name"].clone();
    let encrypted = |name: &str| {
        let mut pool = pool(name, "e2-standard-4", None);
        pool["nodePool"]["config"]["bootDiskKmsKey"] = key.clone();
        client.wait("container", add_pool(&client, pool))
    };
    let failed = encrypted("early");
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("cloudkms.cryptoKeyVersions.useToEncrypt"), "{message}");
    let number = client.cloud.world().project(client.cloud.project()).unwrap().number.clone();
    let agent = format!("service-{number}@compute-system.iam.gserviceaccount.com");
    client.cloud.world().service_agents.insert(agent.clone());
    let members = [format!("serviceAccount:{agent}")];
    let policy = json!({ "bindings": [{ "role": "roles/cloudkms.cryptoKeyEncrypterDecrypter", "members": members }] });
    let path = format!("v1/{}:setIamPolicy", key.as_str().unwrap());
    client.post("cloudkms", &path, json!({ "policy": policy })).ok();
    assert!(encrypted("later").get("error").is_none());
}

#[test]
fn constraints_fail_the_operation_and_leave_a_cluster_in_error() {
    let client = Client::quick();
    client.network();
    let project = client.cloud.project().to_owned();
    client.cloud.world().enforce(&project, "compute.requireShieldedVm");
    let failed = client.wait("container", create(&client, json!({})));
    assert!(failed["error"]["message"].as_str().unwrap().contains("CONDITION_NOT_MET"));
    assert_eq!(read(&client)["status"], "ERROR");
    client.wait("container", client.call("DELETE", "container", &format!("{CLUSTERS}/c"), Value::Null));
    let secure = json!({ "nodePools": [{ "name": "cpu", "initialNodeCount": 1,
        "config": { "shieldedInstanceConfig": { "enableSecureBoot": true } } }] });
    let done = client.wait("container", create(&client, secure));
    assert!(done.get("error").is_none(), "{done}");
}

#[test]
fn pools_that_outgrow_the_pod_range_fail() {
    let client = Client::quick();
    client.network();
    let project = client.cloud.project().to_owned();
    let key = format!("compute/projects/{project}/regions/europe-west4/subnetworks/n");
    client.cloud.world().change(
        &key,
        "/secondaryIpRanges",
        json!([
        { "rangeName": "pods", "ipCidrRange": "10.16.0.0/23" }, { "rangeName": "services",
            "ipCidrRange": "10.1.0.0/20" }]),
    );
    let failed = client.wait("container", create(&client, json!({})));
    assert!(failed["error"]["message"].as_str().unwrap().contains("IP_SPACE_EXHAUSTED"));
}

#[test]
fn a_cluster_is_updated_by_one_field_at_a_time() {
    let client = Client::quick();
    ready(&client);
    let path = format!("{CLUSTERS}/c");
    let put = |update: Value| client.call("PUT", "container", &path, json!({ "update": update }));
    assert!(put(json!({})).message().contains("Must specify a field to update"));
    let two = json!({ "desiredLoggingService": "none", "desiredMonitoringService": "none" });
    assert_eq!(put(two).status, 400);
    client.wait("container", put(json!({ "desiredReleaseChannel": { "channel": "STABLE" } })));
    assert_eq!(read(&client)["releaseChannel"]["channel"], "STABLE");
    client.wait("container", put(json!({ "desiredMasterVersion": "latest" })));
    assert_eq!(read(&client)["currentMasterVersion"], "1.34.1-gke.2037000");
    assert_eq!(put(json!({ "desiredMasterVersion": "1.33" })).status, 400);
    let labels = |fingerprint: Value| json!({ "resourceLabels": { "a": "b" }, "labelFingerprint": fingerprint });
    let stale = client.post("container", &format!("{path}:setResourceLabels"), labels("0".into()));
    assert_eq!(stale.reason(), (412, "conditionNotMet"));
    let before = read(&client);
    client.wait(
        "container",
        client.post("container", &format!("{path}:setResourceLabels"), labels(before["labelFingerprint"].clone())),
    );
    let after = read(&client);
    assert_eq!(after["resourceLabels"]["a"], "b");
    assert_eq!(after["resourceLabels"].as_object().unwrap().len(), 2);
    let policy = json!({ "maintenancePolicy": { "window": { "dailyMaintenanceWindow": { "startTime": "03:00" } } } });
    client.wait("container", client.post("container", &format!("{path}:setMaintenancePolicy"), policy));
    assert_eq!(read(&client)["maintenancePolicy"]["window"]["dailyMaintenanceWindow"]["startTime"], "03:00");
    let weekly = |end: &str| {
        let times = json!({ "startTime": "2024-01-07T22:30:00Z", "endTime": end });
        let recurring = json!({ "window": times, "recurrence": "FREQ=WEEKLY;BYDAY=SU" });
        let policy = json!({ "maintenancePolicy": { "window": { "recurringWindow": recurring } } });
        client.post("container", &format!("{path}:setMaintenancePolicy"), policy)
    };
    assert!(weekly("2024-01-08T09:30:00Z").message().contains("48h maintenance availability"));
    client.wait("container", weekly("2024-01-08T10:30:00Z"));
    assert!(read(&client)["maintenancePolicy"]["window"]["dailyMaintenanceWindow"].is_null());
    let config = client.get("container", "v1/projects/PROJECT/locations/europe-west4/serverConfig").ok();
    assert_eq!(config["defaultClusterVersion"], "1.33.5-gke.1201000");
}

#[test]
fn a_private_endpoint_takes_internal_networks_only() {
    let client = Client::quick();
    client.network();
    let more = json!({ "privateClusterConfig": { "enablePrivateEndpoint": true, "enablePrivateNodes": true,
        "masterIpv4CidrBlock": "172.16.0.0/28" },
        "masterAuthorizedNetworksConfig": { "enabled": true, "cidrBlocks": [{ "cidrBlock": "0.0.0.0/0" }] } });
    let failed = client.wait("container", create(&client, more));
    assert!(failed["error"]["message"].as_str().unwrap().contains("not a reserved network"));
}

/// terraform-google-modules/terraform-google-kubernetes-engine#1779.
#[test]
fn nodes_pull_with_a_role_a_scope_and_a_way_out() {
    let client = Client::quick();
    ready(&client);
    let account = json!({ "accountId": "textnlp-nodes" });
    let email = client.post("iam", "v1/projects/PROJECT/serviceAccounts", account).ok()["email"].clone();
    let mut body = pool("own", "e2-standard-4", None);
    body["nodePool"]["config"]["serviceAccount"] = email.clone();
    body["nodePool"]["config"]["oauthScopes"] = json!(["https://www.googleapis.com/auth/cloud-platform"]);
    client.wait("container", add_pool(&client, body));
    let project = client.cloud.project().to_owned();
    let key = format!("container/projects/{project}/locations/europe-west4/clusters/c/nodePools/own");
    let repository = format!("artifactregistry/projects/{project}/locations/europe-west4/repositories/textnlp");
    let pulls = || client.cloud.world().may_pull(&key, &repository);
    assert!(!pulls(), "the account has no role");
    let member = format!("serviceAccount:{}", email.as_str().unwrap());
    let policy = json!({ "bindings": [{ "role": "roles/artifactregistry.reader", "members": [member] }] });
    client.post("cloudresourcemanager", "v1/projects/PROJECT:setIamPolicy", json!({ "policy": policy })).ok();
    read(&client);
    assert!(pulls());
    let set = |key: &str, member: &str, part: &str, value: Value| {
        client.cloud.world().objects.get_mut(key).unwrap().body[member][part] = value;
    };
    set(&key, "networkConfig", "enablePrivateNodes", json!(true));
    assert!(!pulls(), "private nodes have no way out");
    let router = format!("projects/{project}/regions/europe-west4/routers/out");
    let network = format!("projects/{project}/global/networks/n");
    client.cloud.world().put(&format!("compute/{router}"), json!({ "network": network, "nats": [{ "name": "out" }] }));
    assert!(pulls());
    set(&key, "config", "oauthScopes", json!(["https://www.googleapis.com/auth/logging.write"]));
    assert!(!pulls(), "no scope allows it");
}
