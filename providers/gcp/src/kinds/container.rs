//! Clusters and node pools of GKE: <https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters>.

use std::collections::BTreeMap;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::{get, last, set};
use textnlp_cloud::{Candidate, State, has_machine, machine_names, of_machines};
use textnlp_provider::{CloudId, Declare, Error, ErrorKind, Foreign, Identity, Kind, Outputs, Pricing, Result, Spec};

use super::{create, delete, put, read};
use crate::answer::Failure;
use crate::api::{Api, Call};
use crate::declare::{ID, NAME, Terraform, segment};
use crate::operation::Family;
use crate::row::{
    Create, Field, Labelling, Marks, Request, Rest, RestKind, States, Table, Word, fetch_all, relative, state,
};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};
use crate::token::pem;

/// The pool that a cluster is created with, because it needs one, and that is removed at once: pools are objects of their own.
const FIRST_POOL: &str = "textnlp-first";
/// The machine of that pool.
const FIRST_MACHINE: &str = "e2-medium";
/// Its disk in GiB, of the type that takes nothing of the quota of SSDs.
const FIRST_DISK_GB: u32 = 20;
/// All APIs; what a node may do is decided by the roles of its account.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// The taint of machines with a GPU: only pods that ask for one are scheduled there.
pub(crate) const GPU_TAINT: &str = textnlp_provider::cluster::GPU;
/// The place of the maintenance window of a cluster.
const RECURRING: &str = "/maintenancePolicy/window/recurringWindow";
/// Where the count of a pool's nodes is put in its document, which has none.
const NODES: &str = "/$nodes";
/// The markets of machines.
pub(crate) const SPOT: &str = "spot";
pub(crate) const ON_DEMAND: &str = "on-demand";
/// The strategies of node upgrades.
pub(crate) const SURGE: &str = "SURGE";
pub(crate) const BLUE_GREEN: &str = "BLUE_GREEN";

const STATES: &[(&str, Word)] = &[
    ("RUNNING", Word::Ready),
    ("PROVISIONING", Word::Pending),
    // GKE starts operations of its own (hashicorp/terraform-provider-google#1643).
    ("RECONCILING", Word::Pending),
    ("STOPPING", Word::Deleting),
    ("DEGRADED", Word::Degraded),
    ("RUNNING_WITH_ERROR", Word::Degraded),
    ("ERROR", Word::Failed),
];

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(90),
            typical: Some(MINUTE.saturating_mul(12)),
            pricing: Pricing::BySpec,
            permissions: &[
                create("container.clusters.create"),
                delete("container.clusters.delete"),
                read("container.clusters.get"),
                read("container.clusters.list"),
                put("container.clusters.update"),
                read("container.operations.get"),
                create("iam.serviceAccounts.actAs"),
                create("compute.networks.get"),
                create("compute.subnetworks.get"),
                create("compute.subnetworks.use"),
                read("compute.disks.list"),
            ],
            terraform: &[("google_container_cluster", "id")],
            ..kind("gcp.gke-cluster", "a Kubernetes cluster", Identity::Named)
        },
        service: "container",
        resource: &Rest::<Cluster>::kind(),
        refused: &[
            (
                "key",
                "GKE re-encrypts a cluster only by hand: `gcloud container clusters update --database-encryption-key`",
            ),
            ("network", "a cluster stays in its network: deploy another environment and move to it"),
            ("subnetwork", "a cluster stays in its network: deploy another environment and move to it"),
            ("pods", "a cluster keeps its address ranges: deploy another environment and move to it"),
            ("services", "a cluster keeps its address ranges: deploy another environment and move to it"),
            ("private_nodes", "deploy another environment and move to it"),
        ],
    },
    Row {
        kind: Kind {
            // A pool that waits for machines recovers after 35 minutes and more (NVIDIA/aicr#2065), in each of its alternatives.
            deadline: MINUTE.saturating_mul(240),
            typical: Some(MINUTE.saturating_mul(4)),
            pricing: Pricing::BySpec,
            permissions: &[
                put("container.clusters.update"),
                delete("container.clusters.update"),
                read("container.clusters.get"),
                read("container.clusters.list"),
                read("container.operations.get"),
                create("iam.serviceAccounts.actAs"),
                read("compute.acceleratorTypes.get"),
                read("compute.instanceGroupManagers.get"),
                read("compute.machineTypes.get"),
            ],
            terraform: &[("google_container_node_pool", "id")],
            ..kind("gcp.node-pool", "a pool of nodes", Identity::Named)
        },
        service: "container",
        resource: &Rest::<NodePool>::kind(),
        refused: &[(
            "disk_key",
            "disks keep the key that they were created with: deploy another environment and move to it",
        )],
    },
];

/// A cluster. Outputs: `id`, `name`, `endpoint`, `ca_pem`, `version`, `workload_pool`, `location`.
struct Cluster;

#[async_trait]
impl RestKind for Cluster {
    const TABLE: &'static Table = &Table {
        service: Service::Container,
        path: "projects/{project}/locations/{location}/clusters/{name}",
        collection: "projects/{project}/locations/{location}/clusters",
        items: "clusters",
        create: Create::Wrapped("cluster"),
        constants: &[
            ("/ipAllocationPolicy/useIpAliases", "true"),
            ("/masterAuth/clientCertificateConfig/issueClientCertificate", "false"),
            ("/legacyAbac/enabled", "false"),
            // It enforces network policies.
            ("/networkConfig/datapathProvider", "\"ADVANCED_DATAPATH\""),
        ],
        fields: &[
            Field::code("version", "/initialClusterVersion", Value::clone, |one| minor(&one["currentMasterVersion"]))
                .called(Request::Put, "", |version| update("desiredMasterVersion", version.clone())),
            Field::link("network", "/network").seen_at("/networkConfig/network"),
            Field::link("subnetwork", "/subnetwork").seen_at("/networkConfig/subnetwork"),
            Field::plain("pods", "/ipAllocationPolicy/clusterSecondaryRangeName"),
            Field::plain("services", "/ipAllocationPolicy/servicesSecondaryRangeName"),
            Field::flag("private_nodes", "/privateClusterConfig/enablePrivateNodes"),
            Field::code("allow_from", "/masterAuthorizedNetworksConfig", networks, allowed).called(
                Request::Put,
                "",
                |list| update("desiredMasterAuthorizedNetworksConfig", networks(list)),
            ),
            Field::plain("channel", "/releaseChannel/channel")
                .called(Request::Put, "", |channel| update("desiredReleaseChannel", json!({ "channel": channel }))),
            Field::flag("shielded_nodes", "/shieldedNodes/enabled")
                .called(Request::Put, "", |on| update("desiredShieldedNodes", json!({ "enabled": on }))),
            Field::code(
                "workload_identity",
                "",
                |_| Value::Null,
                |one| json!(get(one, "/workloadIdentityConfig/workloadPool").is_some()),
            ),
            Field::code("maintenance", RECURRING, Value::clone, recurring),
            Field::code("key", "/databaseEncryption", encryption, encrypted),
            // Only its first pool has it: see `prepare`.
            Field { seen: "", ..Field::plain("node_account", "") },
            Field::code(
                "first_pool_removed",
                "",
                |_| Value::Null,
                |one| json!(!one["nodePools"].as_array().into_iter().flatten().any(|pool| pool["name"] == FIRST_POOL)),
            ),
        ],
        in_place: &["allow_from", "channel", "maintenance", "shielded_nodes", "first_pool_removed", "version"],
        marks: Marks::Labels(
            "/resourceLabels",
            Labelling::Call(
                Request::Post,
                ":setResourceLabels",
                |labels, one| json!({ "resourceLabels": labels, "labelFingerprint": one["labelFingerprint"] }),
            ),
        ),
        family: Family::Container,
        states: Some(States { member: "/status", words: STATES, reason: "/statusMessage" }),
        outputs: &[("location", "/location"), ("workload_pool", "/workloadIdentityConfig/workloadPool")],
        terraform: Terraform {
            kind: "google_container_cluster",
            named: &[("project", "/project"), ("location", "/location"), ("name", "/name")],
            moved: &[
                // A creation takes it as `up` sends it; afterwards it is ignored.
                ("/initialClusterVersion", "/min_master_version"),
                ("/ipAllocationPolicy/useIpAliases", ""),
                ("/legacyAbac/enabled", "/enable_legacy_abac"),
                ("/maintenancePolicy/window/recurringWindow/window", "/maintenance_policy/recurring_window"),
                (
                    "/maintenancePolicy/window/recurringWindow/recurrence",
                    "/maintenance_policy/recurring_window/recurrence",
                ),
                ("/networkConfig/datapathProvider", "/datapath_provider"),
                ("/shieldedNodes/enabled", "/enable_shielded_nodes"),
            ],
            constants: &[
                ("/initial_node_count", "1"),
                ("/remove_default_node_pool", "true"),
                ("/deletion_protection", "true"),
            ],
            // The count of the removed first pool would replace the cluster. The release channel upgrades it.
            ignored: &["initial_node_count", "min_master_version", "node_config", "node_pool"],
            outputs: &[ID, NAME],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    fn state(document: &Value) -> State {
        explained(state(Self::TABLE, document), document)
    }

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        if let Some(host) = document["endpoint"].as_str().filter(|host| !host.is_empty()) {
            outputs.insert(textnlp_provider::connect::ENDPOINT.to_owned(), json!(format!("https://{host}")));
        }
        if let Some(ca) = get(document, "/masterAuth/clusterCaCertificate").and_then(Value::as_str).and_then(pem) {
            outputs.insert(textnlp_provider::connect::CA.to_owned(), json!(ca));
        }
        outputs.insert("version".to_owned(), minor(&document["currentMasterVersion"]));
    }

    /// Disks of volumes outlive their cluster (Smana/cloud-native-ref#1861).
    async fn foreign(api: &Api, id: &str, _document: &Value) -> Result<Vec<Foreign>> {
        let query = [("filter", format!("labels.goog-k8s-cluster-name={}", last(id)))];
        let disks =
            api.list(Service::Compute, &api.path("projects/{project}/aggregated/disks"), "items", &query).await?;
        let disk = |one: &Value| {
            let name = one["name"].as_str()?;
            // A node's own disk ends with the node.
            let is_volume = name.starts_with("pvc-") || name.contains("-pvc-");
            let cloud_id = CloudId::new(relative(one["selfLink"].as_str()?)).ok().filter(|_| is_volume)?;
            Some(Foreign { cloud_id, what: "disk".to_owned(), swept: false, outlives: true, maker: None })
        };
        Ok(disks.iter().filter_map(disk).collect())
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "node_account" => true,
            // The release channel upgrades the cluster: a version is the least one
            // (terraform-google-modules/terraform-google-kubernetes-engine#383).
            "version" => wanted.is_null() || number(seen) >= number(wanted),
            "workload_identity" | "first_pool_removed" => *wanted == false,
            // A window that was set stays.
            "maintenance" => wanted.is_null(),
            _ => false,
        }
    }

    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        let (spec, id) = (&request.object.spec, request.object.cloud_id.as_str());
        if spec.get("workload_identity").is_some_and(|on| *on == true) {
            let pool = format!("{}.svc.id.goog", segment(id, "projects"));
            set(document, "/workloadIdentityConfig/workloadPool", pool.into());
        }
        if request.is_planned {
            // Terraform creates the first pool with it, and removes that.
            let config = first_config(spec, &document["resourceLabels"]);
            document["nodeConfig"] = config;
        }
        // Networks are restricted where there is a block for them.
        let is_restricted = document["masterAuthorizedNetworksConfig"]["enabled"] == true;
        if let Some(networks) = document["masterAuthorizedNetworksConfig"].as_object_mut() {
            networks.retain(|name, _| is_restricted && name != "enabled");
        }
        Ok(())
    }

    /// The first pool has the settings of all others: an organization may refuse a cluster without them (2i2c-org/infrastructure#489).
    async fn prepare(api: &Api, spec: &Spec, document: &mut Value, _alternative: usize) -> Result<()> {
        if spec.get("workload_identity").is_some_and(|on| *on == true) {
            let pool = format!("{}.svc.id.goog", api.project());
            set(document, "/workloadIdentityConfig/workloadPool", pool.into());
        }
        let config = first_config(spec, &document["resourceLabels"]);
        document["nodePools"] = json!([{
            "name": FIRST_POOL,
            "initialNodeCount": 1,
            "config": config,
            "networkConfig": { "enablePrivateNodes": true },
        }]);
        Ok(())
    }

    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<String>> {
        if field == "maintenance" {
            return maintain(api, id, wanted).await;
        }
        if field != "first_pool_removed" {
            return Err(crate::row::invalid("change", id, &format!("`{field}` does not change in place")));
        }
        let path = format!("{id}/nodePools/{FIRST_POOL}");
        let answer = api.send(Call::new(Service::Container, Method::DELETE, path)).await?;
        Ok(Family::Container.started(api, id, &answer))
    }
}

/// Sets the maintenance window. A change replaces the whole policy: exclusions that the operator has added stay, and GKE refuses it if
/// another client has changed the policy in the meantime
/// (<https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters/setMaintenancePolicy>).
async fn maintain(api: &Api, id: &str, window: &Value) -> Result<Option<String>> {
    let mut policy = api.send(Call::get(Service::Container, id)).await?["maintenancePolicy"].take();
    if let Some(windows) = policy.pointer_mut("/window").and_then(Value::as_object_mut) {
        windows.retain(|name, _| name == "maintenanceExclusions");
    }
    set(&mut policy, "/window/recurringWindow", window.clone());
    let call =
        Call::post(Service::Container, format!("{id}:setMaintenancePolicy"), json!({ "maintenancePolicy": policy }));
    let answer = api.send(call.saying("set the maintenance window of", last(id))).await?;
    Ok(Family::Container.started(api, id, &answer))
}

fn recurring(document: &Value) -> Value {
    get(document, RECURRING).map_or(Value::Null, |one| {
        let window = json!({ "startTime": one["window"]["startTime"], "endTime": one["window"]["endTime"] });
        json!({ "window": window, "recurrence": one["recurrence"] })
    })
}

fn update(member: &str, value: Value) -> Value {
    json!({ "update": { member: value } })
}

/// The minor version in a version of GKE: `1.34` of `1.34.1-gke.1153000`.
fn minor(version: &Value) -> Value {
    let mut parts = version.as_str().unwrap_or_default().split('.');
    match (parts.next().filter(|part| !part.is_empty()), parts.next()) {
        (Some(major), Some(minor)) => format!("{major}.{minor}").into(),
        _ => Value::Null,
    }
}

fn number(version: &Value) -> Option<(u32, u32)> {
    let (major, minor) = version.as_str()?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

fn networks(allowed: &Value) -> Value {
    match allowed.as_array() {
        None => json!({ "enabled": false }),
        Some(list) => {
            let blocks: Vec<Value> = list.iter().map(|cidr| json!({ "cidrBlock": cidr })).collect();
            // Addresses of Google Cloud reach the API server otherwise, also those of other customers.
            json!({ "enabled": true, "cidrBlocks": blocks, "gcpPublicCidrsAccessEnabled": false })
        }
    }
}

fn allowed(document: &Value) -> Value {
    let config = &document["masterAuthorizedNetworksConfig"];
    if config["enabled"] != true {
        return Value::Null;
    }
    config["cidrBlocks"].as_array().into_iter().flatten().map(|block| block["cidrBlock"].clone()).collect()
}

fn encryption(key: &Value) -> Value {
    match key.as_str() {
        Some(key) => json!({ "state": "ENCRYPTED", "keyName": key }),
        None => json!({ "state": "DECRYPTED" }),
    }
}

fn encrypted(document: &Value) -> Value {
    let config = &document["databaseEncryption"];
    if config["state"] == "DECRYPTED" { Value::Null } else { config["keyName"].clone() }
}

/// A failed state with the code of its cause: in its conditions, or in its message.
fn explained(state: State, document: &Value) -> State {
    let State::Failed { why, .. } = state else { return state };
    let conditions = document["conditions"].as_array().into_iter().flatten();
    let conditions: Vec<&Value> = conditions.collect();
    let messages = conditions.iter().filter_map(|one| one["message"].as_str());
    let why = std::iter::once(why.as_str()).chain(messages).collect::<Vec<_>>().join("; ");
    let mut failure = Failure::of_status(&json!({ "message": why }));
    for condition in conditions {
        for member in ["code", "canonicalCode"] {
            failure.codes.extend(condition[member].as_str().map(str::to_owned));
        }
    }
    let (_, code, _) = failure.meaning(Service::Container);
    State::Failed { code, why: failure.message }
}

/// A pool of nodes. Outputs: `id`, `name`.
struct NodePool;

#[async_trait]
impl RestKind for NodePool {
    const TABLE: &'static Table = &Table {
        service: Service::Container,
        path: "{cluster}/nodePools/{name}",
        collection: "{cluster}/nodePools",
        items: "nodePools",
        within: Some(("projects/{project}/locations/{location}/clusters", "clusters")),
        create: Create::Wrapped("nodePool"),
        constants: &[
            ("/config/workloadMetadataConfig/mode", "\"GKE_METADATA\""),
            ("/config/shieldedInstanceConfig/enableIntegrityMonitoring", "true"),
            ("/config/oauthScopes", "[\"https://www.googleapis.com/auth/cloud-platform\"]"),
            ("/management/autoRepair", "true"),
            ("/management/autoUpgrade", "true"),
            ("/networkConfig/enablePrivateNodes", "true"),
        ],
        fields: &[
            Field::plain("machine", "/config/machineType"),
            Field::code("accelerator", "/config/accelerators", accelerators, accelerator),
            Field::plain("disk_gb", "/config/diskSizeGb"),
            Field::plain("disk_type", "/config/diskType"),
            Field::code("disk_key", "/config/bootDiskKmsKey", sent_key, disk_key),
            Field::plain("account", "/config/serviceAccount"),
            Field::flag("secure_boot", "/config/shieldedInstanceConfig/enableSecureBoot"),
            Field { absent: "{}", ..Field::plain("labels", "/config/labels") }
                .called(Request::Put, "", |labels| json!({ "labels": { "labels": labels } })),
            Field::code("scaling", "/autoscaling", autoscaling, scaling)
                .called(Request::Post, ":setAutoscaling", |scaling| json!({ "autoscaling": autoscaling(scaling) })),
            // GKE adds the taint itself, and refuses a second one (terraform-google-modules/terraform-google-kubernetes-engine#703,
            // hashicorp/terraform-provider-google#7928).
            Field::code("gpu_taint", "", |_| Value::Null, tainted).called(Request::Put, "", |_| {
                json!({ "taints": { "taints": [{ "key": GPU_TAINT, "value": "present", "effect": "NO_SCHEDULE" }] } })
            }),
            Field { seen: NODES, ..Field::plain("nodes", "") },
            Field::code("upgrade", "/upgradeSettings", upgrade_settings, upgrade)
                .called(Request::Put, "", |upgrade| json!({ "upgradeSettings": upgrade_settings(upgrade) })),
            // One of each is chosen: see `prepare`.
            Field { absent: "[]", seen: "/locations", ..Field::plain("zones", "") },
            Field::code("markets", "", |_| Value::Null, |one| {
                json!([if one["config"]["spot"] == true { SPOT } else { ON_DEMAND }])
            }),
        ],
        in_place: &["gpu_taint", "labels", "scaling", "nodes", "upgrade"],
        marks: Marks::Labels(
            "/config/resourceLabels",
            Labelling::Call(Request::Put, "", |labels, _| json!({ "resourceLabels": { "labels": labels } })),
        ),
        family: Family::Container,
        states: Some(States { member: "/status", words: STATES, reason: "/statusMessage" }),
        created: "",
        terraform: Terraform {
            kind: "google_container_node_pool",
            named: &[("name", "/name")],
            moved: &[("/config", "/node_config"), ("/autoscaling/enabled", "")],
            // The autoscaler changes the count.
            ignored: &["initial_node_count", "node_count"],
            settings: &[
                ("min_nodes", "/autoscaling/total_min_node_count"),
                ("max_nodes", "/autoscaling/total_max_node_count"),
                ("machine", "/node_config/machine_type"),
            ],
            import: |id, _| {
                let parts = ["projects", "locations", "clusters", "nodePools"].map(|after| segment(id, after));
                parts.join("/")
            },
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        let (spec, id) = (&request.object.spec, request.object.cloud_id.as_str());
        for (name, after) in [("project", "projects"), ("location", "locations"), ("cluster", "clusters")] {
            document[name] = json!(segment(id, after));
        }
        // A new pool of one of several zones is in the first one.
        let most = if request.is_planned { 1 } else { usize::MAX };
        let zones = spec.get("zones").and_then(Value::as_array).into_iter().flatten().take(most);
        document["nodeLocations"] = zones.cloned().collect();
        if request.is_planned {
            // The count is that of each zone.
            let is_in_one = document["nodeLocations"].as_array().is_some_and(|zones| !zones.is_empty());
            let nodes = spec.get("nodes").and_then(Value::as_u64).filter(|_| is_in_one);
            document["initialNodeCount"] = json!(nodes.unwrap_or(1));
        }
        if spec.get("markets").is_some_and(|markets| markets[0] == SPOT) {
            set(document, "/config/spot", json!(true));
        }
        if let Some(first) = bought(spec).first() {
            first.write(document);
        }
        let accelerator = document["config"]["accelerators"].take();
        if let Some(first) = accelerator.get(0) {
            let count = of_machines(spec.get("accelerator")).first().map(|one| one["count"].clone());
            document["config"]["guestAccelerator"] = json!([{
                "type": first["acceleratorType"],
                "count": count,
                "gpuDriverInstallationConfig": first["gpuDriverInstallationConfig"],
            }]);
        }
        Ok(())
    }

    fn state(document: &Value) -> State {
        explained(state(Self::TABLE, document), document)
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            // The places of a pool that is in all zones are the cluster's.
            "zones" => is_any(wanted) || is_within(seen, wanted),
            // A pool of an earlier version keeps its disks without a key.
            "disk_key" => seen == "",
            "markets" => is_within(seen, wanted),
            "machine" | "accelerator" | "disk_type" => has_machine(wanted, seen),
            // The autoscaler adds nodes; a group that is not shown yet says nothing.
            "nodes" => seen.is_null() || seen.as_u64() >= wanted.as_u64(),
            "gpu_taint" => *wanted == false,
            "labels" => {
                wanted.as_object().is_some_and(|all| all.iter().all(|(key, value)| seen.get(key) == Some(value)))
            }
            _ => false,
        }
    }

    fn alternatives(wanted: &Spec) -> Vec<String> {
        alternatives(wanted).iter().map(Alternative::name).collect()
    }

    fn tried(wanted: &Spec, seen: &Spec) -> Vec<usize> {
        let first = |field: &str| seen.get(field)?.as_array()?.first()?.as_str();
        let Some((market, zone)) = first("markets").zip(first("zones")) else { return Vec::new() };
        let machines = machine_names(seen.get("machine"));
        let is_seen = |one: &Alternative<'_>| {
            one.market == market && machines == [one.machine.name] && one.zone.is_none_or(|name| name == zone)
        };
        alternatives(wanted).iter().position(is_seen).into_iter().collect()
    }

    async fn choose(api: &Api, spec: &Spec, rest: &[usize]) -> Result<Vec<Candidate>> {
        let all = alternatives(spec);
        // The markets of a zone have the same machines: each of them is read once.
        let mut zones: BTreeMap<(&str, &str), bool> = BTreeMap::new();
        let mut candidates = Vec::new();
        for place in rest {
            let Some(one) = all.get(*place) else { continue };
            let name = one.machine.name;
            let is_offered = match one.zone.map(|zone| (zone, zones.get(&(zone, name)).copied())) {
                None => true,
                Some((_, Some(known))) => known,
                Some((zone, None)) => {
                    let accelerator = one.machine.accelerator["type"].as_str();
                    let is_offered = is_offered(api, zone, name, accelerator).await?;
                    zones.insert((zone, name), is_offered);
                    is_offered
                }
            };
            candidates.extend(is_offered.then(|| Candidate::of(*place)));
        }
        if candidates.is_empty() { Err(none_left(spec)) } else { Ok(candidates) }
    }

    async fn prepare(api: &Api, spec: &Spec, document: &mut Value, alternative: usize) -> Result<()> {
        let Some(chosen) = alternatives(spec).into_iter().nth(alternative) else { return Err(none_left(spec)) };
        let least = spec.get("nodes").and_then(Value::as_u64).unwrap_or(1);
        // The count is that of each zone.
        let mut each = least;
        match chosen.zone {
            Some(zone) => document["locations"] = json!([zone]),
            None => {
                // A pool starts with a node in each of its zones: fewer nodes are in as many zones.
                let zones = zones_of(api, spec).await?;
                let count = usize::try_from(least).unwrap_or(usize::MAX).max(1);
                each = each.div_ceil(u64::try_from(zones.len()).unwrap_or(1).max(1));
                if count < zones.len() {
                    document["locations"] = zones.into_iter().take(count).collect();
                }
            }
        }
        if chosen.market == SPOT {
            set(document, "/config/spot", json!(true));
        }
        chosen.machine.write(document);
        document["initialNodeCount"] = json!(each);
        Ok(())
    }

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        match api.find_enabled(Call::get(Service::Container, id)).await? {
            Some(pool) => Ok(Some(counted(api, pool).await?)),
            None => Ok(None),
        }
    }

    async fn fetch_all(api: &Api) -> Result<Vec<(String, Value)>> {
        let mut all = fetch_all(api, Self::TABLE).await?;
        for (_, pool) in &mut all {
            *pool = counted(api, std::mem::take(pool)).await?;
        }
        Ok(all)
    }

    /// The autoscaler adds no nodes when its minimum rises: the pool is resized, and no zone loses a node.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<String>> {
        if field != "nodes" {
            return Err(crate::row::invalid("change", id, &format!("`{field}` does not change in place")));
        }
        let pool = api.send(Call::get(Service::Container, id)).await?;
        let sizes = sizes(api, &pool).await?;
        let zones = u64::try_from(sizes.len()).unwrap_or(1).max(1);
        let least = wanted.as_u64().unwrap_or(1).div_ceil(zones);
        let each = sizes.into_iter().max().unwrap_or_default().max(least);
        let call = Call::post(Service::Container, format!("{id}:setSize"), json!({ "nodeCount": each }));
        let answer = api.send(call.saying("resize", last(id))).await?;
        Ok(Family::Container.started(api, id, &answer))
    }
}

/// The nodes that the groups of a pool have or will have, one number for each zone.
async fn sizes(api: &Api, pool: &Value) -> Result<Vec<u64>> {
    let groups = pool["instanceGroupUrls"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let paths: Vec<String> = groups.map(|group| relative(group).to_owned()).collect();
    let found = api.read_all(Service::Compute, paths).await?;
    Ok(found.iter().filter_map(|group| group["targetSize"].as_u64()).collect())
}

/// A pool with the sum of these.
async fn counted(api: &Api, mut pool: Value) -> Result<Value> {
    let sizes = sizes(api, &pool).await?;
    if !sizes.is_empty() {
        set(&mut pool, NODES, sizes.iter().sum::<u64>().into());
    }
    Ok(pool)
}

/// A machine that a pool may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bought<'a> {
    name: &'a str,
    accelerator: &'a Value,
    disk_type: &'a Value,
}

impl Bought<'_> {
    fn write(&self, document: &mut Value) {
        set(document, "/config/machineType", self.name.into());
        if !self.disk_type.is_null() {
            set(document, "/config/diskType", self.disk_type.clone());
        }
        let accelerators = accelerators(self.accelerator);
        if !accelerators.is_null() {
            set(document, "/config/accelerators", accelerators);
        }
    }
}

/// The machines of a pool, best first.
fn bought(spec: &Spec) -> Vec<Bought<'_>> {
    let of = |field: &str, place: usize| of_machines(spec.get(field)).get(place).unwrap_or(&Value::Null);
    let names = machine_names(spec.get("machine")).into_iter().enumerate();
    let one = |(place, name)| Bought { name, accelerator: of("accelerator", place), disk_type: of("disk_type", place) };
    names.map(one).collect()
}

/// Where and how the machines of a pool are bought.
#[derive(Debug, PartialEq, Eq)]
struct Alternative<'a> {
    market: &'a str,
    machine: Bought<'a>,
    /// `None` for all zones of the cluster.
    zone: Option<&'a str>,
}

impl Alternative<'_> {
    fn name(&self) -> String {
        match self.zone {
            Some(zone) => format!("{} {zone} {}", self.market, self.machine.name),
            None => format!("{} {}", self.market, self.machine.name),
        }
    }
}

fn none_left(spec: &Spec) -> Error {
    let error = Error::new(ErrorKind::Capacity, "create", "a node pool");
    let machines = machine_names(spec.get("machine")).join(" or ");
    error.because(format!("no zone is left that has {machines}")).hint("choose another `gpu.size` or region")
}

/// The alternatives of a pool, best first: in each market, each machine in each zone.
fn alternatives(spec: &Spec) -> Vec<Alternative<'_>> {
    let list = |field: &str| -> Vec<&str> {
        spec.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let (markets, zones, machines) = (list("markets"), list("zones"), bought(spec));
    let of_machine = |market, machine| -> Vec<Alternative<'_>> {
        match zones.is_empty() {
            true => vec![Alternative { market, machine, zone: None }],
            false => zones.iter().map(|zone| Alternative { market, machine, zone: Some(zone) }).collect(),
        }
    };
    let of_market = |market| machines.iter().flat_map(move |machine| of_machine(market, *machine));
    markets.into_iter().flat_map(of_market).collect()
}

/// The zones of the cluster of a pool.
async fn zones_of(api: &Api, spec: &Spec) -> Result<Vec<Value>> {
    let Some(cluster) = spec.get("cluster").and_then(Value::as_str) else { return Ok(Vec::new()) };
    let found = api.find(Call::get(Service::Container, cluster)).await?.unwrap_or_default();
    Ok(found["locations"].as_array().cloned().unwrap_or_default())
}

/// Whether a zone has the machine and its accelerator at all.
async fn is_offered(api: &Api, zone: &str, machine: &str, accelerator: Option<&str>) -> Result<bool> {
    let path = |kind: &str, name: &str| format!("projects/{}/zones/{zone}/{kind}/{name}", api.project());
    let mut paths = vec![path("machineTypes", machine)];
    paths.extend(accelerator.map(|name| path("acceleratorTypes", name)));
    for path in paths {
        if api.find(Call::get(Service::Compute, path)).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// GKE's default driver of a version may be older than the 580 of CUDA 13, its latest one is not (rapidsai/deployment#659). Not read
/// back: a pool keeps the driver that it was created with.
fn accelerators(accelerator: &Value) -> Value {
    let Some(name) = accelerator["type"].as_str() else { return Value::Null };
    json!([{
        "acceleratorType": name,
        "acceleratorCount": accelerator["count"].as_u64().unwrap_or(1).to_string(),
        "gpuDriverInstallationConfig": { "gpuDriverVersion": "LATEST" },
    }])
}

fn accelerator(document: &Value) -> Value {
    let Some(first) = get(document, "/config/accelerators/0") else { return Value::Null };
    let count = first["acceleratorCount"].as_str().and_then(|count| count.parse::<u64>().ok());
    json!({ "type": first["acceleratorType"], "count": count })
}

/// Not null where a pool has none: an export declares what is there, in place of a key that is recorded for new pools.
fn disk_key(document: &Value) -> Value {
    document["config"]["bootDiskKmsKey"].as_str().unwrap_or_default().into()
}

fn sent_key(key: &Value) -> Value {
    key.as_str().filter(|key| !key.is_empty()).map_or(Value::Null, Value::from)
}

/// The machine of the first pool. Its disk has the key too: an organization may refuse one without
/// (terraform-google-modules/terraform-google-kubernetes-engine#2344).
fn first_config(spec: &Spec, labels: &Value) -> Value {
    let mut config = json!({
        "machineType": FIRST_MACHINE,
        "diskSizeGb": FIRST_DISK_GB,
        "diskType": "pd-standard",
        "serviceAccount": spec.get("node_account"),
        "oauthScopes": [SCOPE],
        "resourceLabels": labels,
        "shieldedInstanceConfig": { "enableSecureBoot": true, "enableIntegrityMonitoring": true },
        "workloadMetadataConfig": { "mode": "GKE_METADATA" },
    });
    if let Some(key) = spec.get("key").filter(|key| !key.is_null()) {
        config["bootDiskKmsKey"] = key.clone();
    }
    config
}

fn autoscaling(scaling: &Value) -> Value {
    json!({
        "enabled": true,
        "totalMinNodeCount": scaling["min"],
        "totalMaxNodeCount": scaling["max"],
        "locationPolicy": "BALANCED",
    })
}

fn scaling(document: &Value) -> Value {
    let found = &document["autoscaling"];
    let count = |member: &str| found[member].as_u64().unwrap_or_default();
    json!({ "min": count("totalMinNodeCount"), "max": count("totalMaxNodeCount") })
}

fn upgrade_settings(upgrade: &Value) -> Value {
    let strategy = &upgrade["strategy"];
    if *strategy != BLUE_GREEN {
        let (surge, unavailable) = (&upgrade["max_surge"], &upgrade["max_unavailable"]);
        return json!({ "strategy": strategy, "maxSurge": surge, "maxUnavailable": unavailable });
    }
    json!({
        "strategy": strategy,
        "blueGreenSettings": {
            "standardRolloutPolicy": {
                "batchNodeCount": upgrade["batch_nodes"],
                "batchSoakDuration": upgrade["batch_soak"],
            },
            "nodePoolSoakDuration": upgrade["soak"],
        },
    })
}

/// Answers leave out zeros. A pool without a strategy has that of surges.
fn upgrade(document: &Value) -> Value {
    let found = &document["upgradeSettings"];
    if found["strategy"] != BLUE_GREEN {
        let count = |member: &str| found[member].as_u64().unwrap_or_default();
        return json!({
            "strategy": SURGE,
            // GKE's default.
            "max_surge": if found.is_null() { 1 } else { count("maxSurge") },
            "max_unavailable": count("maxUnavailable"),
        });
    }
    let settings = &found["blueGreenSettings"];
    let policy = &settings["standardRolloutPolicy"];
    let duration = |value: &Value| value.as_str().unwrap_or("0s").to_owned();
    json!({
        "strategy": BLUE_GREEN,
        "batch_nodes": policy["batchNodeCount"],
        "batch_soak": duration(&policy["batchSoakDuration"]),
        "soak": duration(&settings["nodePoolSoakDuration"]),
    })
}

fn tainted(document: &Value) -> Value {
    let taints = document["config"]["taints"].as_array().into_iter().flatten();
    json!(taints.into_iter().any(|taint| taint["key"] == GPU_TAINT))
}

fn is_any(list: &Value) -> bool {
    list.as_array().is_some_and(Vec::is_empty)
}

fn is_within(seen: &Value, wanted: &Value) -> bool {
    let (Some(seen), Some(wanted)) = (seen.as_array(), wanted.as_array()) else { return false };
    !seen.is_empty() && seen.iter().all(|one| wanted.contains(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_least_ones() {
        let seen = minor(&json!("1.34.1-gke.1153000"));
        assert_eq!(seen, json!("1.34"));
        assert!(Cluster::fits("version", &Value::Null, &seen));
        assert!(Cluster::fits("version", &json!("1.33"), &seen) && !Cluster::fits("version", &json!("1.35"), &seen));
    }

    #[test]
    fn alternatives_are_markets_in_zones() {
        let wanted = Spec::of(&json!({ "zones": ["r-a", "r-b"], "markets": [SPOT, ON_DEMAND], "machine": "n1" }));
        let seen =
            |market: &str, zone: &str| Spec::of(&json!({ "zones": [zone], "markets": [market], "machine": "n1" }));
        let tried = |market, zone| NodePool::tried(&wanted, &seen(market, zone));
        assert_eq!([tried(SPOT, "r-a"), tried(SPOT, "r-b"), tried(ON_DEMAND, "r-b")], [[0], [1], [3]]);
        assert!(tried(ON_DEMAND, "r-c").is_empty());
        let names = ["spot r-a n1", "spot r-b n1", "on-demand r-a n1", "on-demand r-b n1"];
        assert_eq!(NodePool::alternatives(&wanted), names);
        let anywhere = Spec::of(&json!({ "zones": [], "markets": [ON_DEMAND], "machine": "e2" }));
        assert_eq!(NodePool::alternatives(&anywhere), ["on-demand e2"]);
        let several = Spec::of(&json!({
            "zones": ["r-a", "r-b"], "markets": [SPOT, ON_DEMAND], "machine": ["n1", "g2"], "disk_type": ["pd-ssd", "pd-balanced"],
            "accelerator": [{ "type": "t4", "count": 1 }, { "type": "l4", "count": 1 }],
        }));
        let names =
            ["spot r-a n1", "spot r-b n1", "spot r-a g2", "spot r-b g2", "on-demand r-a n1", "on-demand r-b n1"];
        assert_eq!(NodePool::alternatives(&several)[..6], names);
        let second = Spec::of(&json!({ "zones": ["r-a"], "markets": [SPOT], "machine": "g2" }));
        assert_eq!(NodePool::tried(&several, &second), [2]);
        for (field, seen) in [("machine", json!("g2")), ("accelerator", json!({ "type": "l4", "count": 1 }))] {
            assert!(NodePool::fits(field, several.get(field).unwrap(), &seen), "{field}");
            assert!(!NodePool::fits(field, several.get(field).unwrap(), &json!("other")), "{field}");
        }
        let mut document = json!({ "config": {} });
        bought(&several)[1].write(&mut document);
        let config = &document["config"];
        assert_eq!((&config["machineType"], &config["diskType"]), (&json!("g2"), &json!("pd-balanced")));
        assert_eq!(config["accelerators"][0]["acceleratorType"], "l4");
        assert!(NodePool::fits("zones", &json!(["r-a", "r-b"]), &json!(["r-b"])));
        assert!(!NodePool::fits("zones", &json!(["r-a"]), &json!(["r-b"])));
        assert!(NodePool::fits("zones", &json!([]), &json!(["r-b"])));
        assert!(NodePool::fits("disk_key", &json!("k"), &json!("")), "a pool of an earlier version is not replaced");
        assert!(!NodePool::fits("disk_key", &Value::Null, &json!("k")), "a key in use is told of");
        assert_eq!((disk_key(&json!({ "config": {} })), sent_key(&json!(""))), (json!(""), Value::Null));
    }

    #[test]
    fn failed_states_name_their_cause() {
        let pool = json!({ "status": "ERROR", "statusMessage": "Not all instances running in IGM after 35m.",
            "conditions": [{ "code": "GCE_STOCKOUT", "message": "[ZONE_RESOURCE_POOL_EXHAUSTED]: x" }] });
        let State::Failed { code, why } = NodePool::state(&pool) else { panic!("it failed") };
        assert!(["GCE_STOCKOUT", "ZONE_RESOURCE_POOL_EXHAUSTED"].contains(&code.as_str()), "{code}");
        assert!(why.starts_with("Not all instances"), "{why}");
        assert_eq!(NodePool::state(&json!({ "status": "RUNNING" })), State::Ready);
        assert_eq!(Cluster::state(&json!({ "status": "STOPPING" })), State::Deleting);
    }

    #[test]
    fn members_are_read_as_they_are_written() {
        let list = json!(["203.0.113.0/24"]);
        assert_eq!(allowed(&json!({ "masterAuthorizedNetworksConfig": networks(&list) })), list);
        assert_eq!(allowed(&json!({ "masterAuthorizedNetworksConfig": networks(&Value::Null) })), Value::Null);
        let gpu = json!({ "type": "nvidia-tesla-t4", "count": 1 });
        let mut created = json!({ "config": { "accelerators": accelerators(&gpu) } });
        assert_eq!(accelerator(&created), gpu);
        // A pool with GKE's default driver is not another one: it is not replaced.
        let driver = &mut created["config"]["accelerators"][0]["gpuDriverInstallationConfig"]["gpuDriverVersion"];
        assert_eq!(std::mem::replace(driver, json!("DEFAULT")), "LATEST");
        assert_eq!(accelerator(&created), gpu);
        assert_eq!(accelerator(&json!({ "config": {} })), Value::Null);
        let scale = json!({ "min": 1, "max": 3 });
        assert_eq!(scaling(&json!({ "autoscaling": autoscaling(&scale) })), scale);
        for one in [
            json!({ "strategy": SURGE, "max_surge": 0, "max_unavailable": 1 }),
            json!({ "strategy": BLUE_GREEN, "batch_nodes": 1, "batch_soak": "0s", "soak": "3600s" }),
        ] {
            assert_eq!(upgrade(&json!({ "upgradeSettings": upgrade_settings(&one) })), one);
        }
        let usual = json!({ "upgradeSettings": { "maxSurge": 1 } });
        assert_eq!(upgrade(&usual), json!({ "strategy": SURGE, "max_surge": 1, "max_unavailable": 0 }));
        let key = json!("projects/p/locations/r/keyRings/k/cryptoKeys/c");
        assert_eq!(encrypted(&json!({ "databaseEncryption": encryption(&key) })), key);
        assert_eq!(encrypted(&json!({ "databaseEncryption": encryption(&Value::Null) })), Value::Null);
        assert_eq!(tainted(&json!({ "config": { "taints": [{ "key": GPU_TAINT }] } })), json!(true));
    }
}
