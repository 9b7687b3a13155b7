//! Kubernetes Engine: clusters, node pools, and operations that it starts of its own accord.

use std::time::Duration;

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::cloud::{Cloud, Effect, Family, Object, Operation, merge, put};
use super::compute::{ACCELERATORS, MACHINES, firewalls_of, limit, zones_of};
use super::kinds::{KIND, Kind, begin, collection, page};
use super::problem::Problem;
use super::{Call, Handler, errors};
use crate::{Behaviour, Market, Source};

/// The versions that can be asked for, the newest first.
const VERSIONS: &[&str] = &["1.34.1-gke.2037000", "1.33.5-gke.1201000", "1.33.4-gke.1350000", "1.32.9-gke.1207000"];
const DEFAULT_VERSION: &str = VERSIONS[1];
/// The taint that GKE sets on nodes with GPUs.
const GPU_TAINT: &str = "nvidia.com/gpu";
/// The scopes of nodes unless set: <https://cloud.google.com/kubernetes-engine/docs/how-to/access-scopes>.
const SCOPES: &[&str] = &[
    "https://www.googleapis.com/auth/devstorage.read_only",
    "https://www.googleapis.com/auth/logging.write",
    "https://www.googleapis.com/auth/monitoring",
    "https://www.googleapis.com/auth/service.management.readonly",
    "https://www.googleapis.com/auth/servicecontrol",
    "https://www.googleapis.com/auth/trace.append",
];
/// The role with which nodes pull images, and the scopes that allow it:
/// <https://cloud.google.com/artifact-registry/docs/integrate-gke>.
const READER: &str = "roles/artifactregistry.reader";
const PULLING: &[&str] = &["https://www.googleapis.com/auth/cloud-platform", SCOPES[0]];
/// The role with which the service agent of Compute Engine encrypts disks.
const ENCRYPTER: &str = "roles/cloudkms.cryptoKeyEncrypterDecrypter";
/// The most operations of a cluster at a time.
const CONCURRENT: usize = 5;

/// Members of a cluster's update, and where of the cluster they lie.
const DESIRED: &[(&str, &str)] = &[
    ("desiredAddonsConfig", "/addonsConfig"),
    ("desiredBinaryAuthorization", "/binaryAuthorization"),
    ("desiredClusterAutoscaling", "/autoscaling"),
    ("desiredControlPlaneEndpointsConfig", "/controlPlaneEndpointsConfig"),
    ("desiredCostManagementConfig", "/costManagementConfig"),
    ("desiredDatabaseEncryption", "/databaseEncryption"),
    ("desiredDatapathProvider", "/networkConfig/datapathProvider"),
    ("desiredDnsConfig", "/networkConfig/dnsConfig"),
    ("desiredGatewayApiConfig", "/networkConfig/gatewayApiConfig"),
    ("desiredLocations", "/locations"),
    ("desiredLoggingConfig", "/loggingConfig"),
    ("desiredLoggingService", "/loggingService"),
    ("desiredMasterAuthorizedNetworksConfig", "/masterAuthorizedNetworksConfig"),
    ("desiredMasterVersion", "/currentMasterVersion"),
    ("desiredMonitoringConfig", "/monitoringConfig"),
    ("desiredMonitoringService", "/monitoringService"),
    ("desiredNotificationConfig", "/notificationConfig"),
    ("desiredPrivateClusterConfig", "/privateClusterConfig"),
    ("desiredReleaseChannel", "/releaseChannel"),
    ("desiredSecretManagerConfig", "/secretManagerConfig"),
    ("desiredSecurityPostureConfig", "/securityPostureConfig"),
    ("desiredShieldedNodes", "/shieldedNodes"),
    ("desiredVerticalPodAutoscaling", "/verticalPodAutoscaling"),
    ("desiredWorkloadIdentityConfig", "/workloadIdentityConfig"),
];

/// Members of a node pool's update, where in the request the value is, and where of the pool it lies.
const POOL: &[(&str, &str, &str)] = &[
    ("diskSizeGb", "", "/config/diskSizeGb"),
    ("diskType", "", "/config/diskType"),
    ("gcfsConfig", "", "/config/gcfsConfig"),
    ("gvnic", "", "/config/gvnic"),
    ("imageType", "", "/config/imageType"),
    ("kubeletConfig", "", "/config/kubeletConfig"),
    ("labels", "/labels", "/config/labels"),
    ("linuxNodeConfig", "", "/config/linuxNodeConfig"),
    ("locations", "", "/locations"),
    ("machineType", "", "/config/machineType"),
    ("nodeNetworkConfig", "", "/networkConfig"),
    ("nodeVersion", "", "/version"),
    ("resourceLabels", "/labels", "/config/resourceLabels"),
    ("tags", "/tags", "/config/tags"),
    ("taints", "/taints", "/config/taints"),
    ("upgradeSettings", "", "/upgradeSettings"),
    ("workloadMetadataConfig", "", "/config/workloadMetadataConfig"),
];

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        methods: "container.projects.locations.clusters",
        verbs: &[],
        collection: ("container", "clusters"),
        references: &["/networkConfig/network", "/networkConfig/subnetwork"],
        labels: "resourceLabels",
        ..KIND
    },
    Kind {
        methods: "container.projects.locations.clusters.nodePools",
        verbs: &[],
        collection: ("container", "nodePools"),
        ..KIND
    },
];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("container.projects.locations.getServerConfig", server_config),
    ("container.projects.locations.operations.get", super::kinds::operation),
    ("container.projects.locations.operations.list", super::kinds::operations),
    ("container.projects.locations.operations.cancel", cancel),
    ("container.projects.locations.clusters.create", create),
    ("container.projects.locations.clusters.get", get),
    ("container.projects.locations.clusters.list", list),
    ("container.projects.locations.clusters.delete", delete),
    ("container.projects.locations.clusters.update", update),
    ("container.projects.locations.clusters.setResourceLabels", set_labels),
    ("container.projects.locations.clusters.setMaintenancePolicy", set_maintenance),
    ("container.projects.locations.clusters.setLogging", set_logging),
    ("container.projects.locations.clusters.setMonitoring", set_monitoring),
    ("container.projects.locations.clusters.nodePools.create", create_pool),
    ("container.projects.locations.clusters.nodePools.get", get_pool),
    ("container.projects.locations.clusters.nodePools.list", list_pools),
    ("container.projects.locations.clusters.nodePools.delete", delete_pool),
    ("container.projects.locations.clusters.nodePools.update", update_pool),
    ("container.projects.locations.clusters.nodePools.setSize", set_size),
    ("container.projects.locations.clusters.nodePools.setAutoscaling", set_autoscaling),
    ("container.projects.locations.clusters.nodePools.setManagement", set_management),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "GPUs of a pool that is RUNNING are usable only once nodes have their driver and the device plugin",
        Source::LeftOut(
            "GoogleCloudPlatform/container-engine-accelerators#407, NVIDIA/gpu-operator#1623: nodes are not simulated",
        ),
    ),
    rule(
        "spot machines are refused together with some settings of maintenance and of restarts",
        Source::LeftOut(
            "AI-Hypercomputer/xpk#434, GoogleCloudPlatform/cluster-toolkit#4058: a plan sets neither for a pool",
        ),
    ),
    rule(
        "a preempted machine is stopped, its node stays for minutes, and the autoscaler avoids the pool meanwhile",
        Source::LeftOut(
            "cloudpilot-ai/karpenter-provider-gcp#143, kubernetes/autoscaler#2557: machines and nodes of pools are not simulated",
        ),
    ),
    rule(
        "one operation a cluster at a time; the refusal names it, in two texts",
        Source::Report("hashicorp/terraform-provider-google#3650"),
    ),
    rule(
        "Google resizes the control plane after the node pools grow; the cluster is RECONCILING and refuses changes",
        Source::Report("hashicorp/terraform-provider-google#1643"),
    ),
    rule("a cluster is not RUNNING at once when its operation is done", Source::Report("kubeflow/kubeflow#2392")),
    rule(
        "clusters are at their exact location only; a list of - has all",
        Source::Report("kubernetes/kubernetes#58736"),
    ),
    rule("more than 5 operations of a cluster are 429", Source::Report("hashicorp/terraform-provider-google#15579")),
    rule(
        "an update without a field is 400, and sets one field at a time",
        Source::Report("hashicorp/terraform-provider-google#20101"),
    ),
    rule(
        "a failed creation leaves a cluster in ERROR, and its name taken",
        Source::Report("GoogleCloudPlatform/magic-modules#8986"),
    ),
    rule(
        "a cluster needs a node pool; the unnamed one is default-pool",
        Source::Report("hashicorp/terraform-provider-google#773"),
    ),
    rule(
        "the taint of GPUs is set only if another pool has none when the pool is created",
        Source::Report("terraform-google-modules/terraform-google-kubernetes-engine#703"),
    ),
    rule("two taints of one key and effect are refused", Source::Report("hashicorp/terraform-provider-google#7928")),
    rule("the driver of GPUs is DEFAULT unless set", Source::Report("GoogleCloudPlatform/magic-modules#11152")),
    rule(
        "count and type of accelerators cannot be changed; an empty list changes nothing",
        Source::Report("hashicorp/terraform-provider-google#23248"),
    ),
    rule("accelerators and machine families belong together", Source::Report("skypilot-org/skypilot#212")),
    rule(
        "labels with goog- are added, and a stale label fingerprint is 412",
        Source::Report("GoogleCloudPlatform/magic-modules#11300"),
    ),
    rule(
        "a version that is not offered is refused, nodes are not newer than the control plane",
        Source::Report("terraform-google-modules/terraform-google-kubernetes-engine#383"),
    ),
    rule(
        "a pool without stock fails its operation and stays; it runs when there is stock",
        Source::Report("hashicorp/terraform-provider-google#6287"),
    ),
    rule("constraints on nodes fail the operation, not the call", Source::Report("2i2c-org/infrastructure#489")),
    rule(
        "nodes whose disks have a key start only if the service agent of Compute Engine has the role on it",
        Source::Report("hashicorp/terraform-provider-google#17260"),
    ),
    rule("GPU quotas of the region and of all regions both count", Source::Report("gcloudrig/gcloudrig#44")),
    rule("spot nodes use quotas of their own", Source::Report("skypilot-org/skypilot#4333")),
    rule(
        "where a region has no quota for processors of spot nodes, they take of that of other nodes",
        Source::Report("state-of-the-art/BlendNet#145"),
    ),
    rule("a stock-out has two codes", Source::Report("skypilot-org/skypilot#831")),
    rule(
        "the identity pool of a project appears with the first cluster that has one",
        Source::Report("terraform-google-modules/terraform-google-kubernetes-engine#916"),
    ),
    rule(
        "pods and services do not share a range; a missing range is refused",
        Source::Report("elastic/cloud-on-k8s#2473"),
    ),
    rule(
        "a cluster makes firewall rules gke-NAME-HASH-all, -master and -vms, and deletes them",
        Source::Documentation("https://cloud.google.com/kubernetes-engine/docs/concepts/firewall-rules"),
    ),
    rule(
        "disks, endpoint groups, firewall rules and load balancers of workloads stay when a cluster is deleted",
        Source::Report("Smana/cloud-native-ref#1861"),
    ),
    rule(
        "defaults of node pools: e2-medium, 100 GB, COS_CONTAINERD, repair and upgrade",
        Source::Documentation("https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/NodeConfig"),
    ),
    rule(
        "a regional cluster has nodes in three zones unless locations say otherwise",
        Source::Documentation("https://cloud.google.com/kubernetes-engine/docs/concepts/regional-clusters"),
    ),
    rule(
        "authorised networks of a cluster with private endpoint are judged in the operation",
        Source::Report("terraform-google-modules/terraform-google-kubernetes-engine#116"),
    ),
    rule(
        "a pool that grows beyond the pod range ends with IP_SPACE_EXHAUSTED",
        Source::Report("gruntwork-io/terraform-google-gke#118"),
    ),
    rule(
        "nodes pull images only with a role of their account, a scope and a way out of their network",
        Source::Report("terraform-google-modules/terraform-google-kubernetes-engine#1779"),
    ),
    rule(
        "a maintenance policy needs 48 hours in 32 days, in windows of 4 hours and more; a change replaces all of it",
        Source::Documentation(
            "https://cloud.google.com/kubernetes-engine/docs/concepts/maintenance-windows-and-exclusions",
        ),
    ),
    rule(
        "an upgrade adds a node first unless maxSurge is 0, and with BLUE_GREEN all of them; where the quota has no room for it and no node \
            may be unavailable, the upgrade fails and the nodes stay",
        Source::Documentation("https://cloud.google.com/kubernetes-engine/docs/how-to/node-upgrades-quota"),
    ),
    rule("maxSurge and maxUnavailable are not both 0", Source::Report("GoogleCloudPlatform/cluster-toolkit#3359")),
    rule("an operation can be cancelled", Source::Model),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "container", what, source }
}

fn bad(message: impl Into<String>) -> Problem {
    Problem::new("INVALID_ARGUMENT", message)
}

fn not_ready(message: impl Into<String>) -> Problem {
    Problem::new("FAILED_PRECONDITION", message)
}

fn text<'v>(body: &'v Value, pointer: &str) -> &'v str {
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The cluster of a call's path: its key.
fn cluster_key(call: &Call<'_>) -> String {
    call.key().split('/').take(7).collect::<Vec<_>>().join("/")
}

fn location(key: &str) -> &str {
    key.split('/').nth(4).unwrap_or_default()
}

fn project_of(key: &str) -> &str {
    key.split('/').nth(2).unwrap_or_default()
}

fn server_config(_: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    if zones_of(location(&call.key())).is_empty() {
        return Err(errors::not_found("container", &call.name));
    }
    let channel = |name: &str, version: &str| {
        let valid: Vec<&str> = VERSIONS.iter().copied().filter(|one| *one <= version).collect();
        json!({ "channel": name, "defaultVersion": version, "validVersions": valid })
    };
    Ok(json!({
        "defaultClusterVersion": DEFAULT_VERSION, "validMasterVersions": VERSIONS, "validNodeVersions": VERSIONS,
        "defaultImageType": "COS_CONTAINERD", "validImageTypes": ["COS_CONTAINERD", "UBUNTU_CONTAINERD"],
        "channels": [channel("RAPID", VERSIONS[0]), channel("REGULAR", VERSIONS[1]), channel("STABLE", VERSIONS[3])],
    }))
}

/// The full version of a wish such as `1.33`, `latest` or nothing.
fn version(wish: &str) -> Result<&'static str, Problem> {
    match wish {
        "" | "-" => Ok(DEFAULT_VERSION),
        "latest" => Ok(VERSIONS[0]),
        wish => {
            let fits = |one: &&&str| {
                **one == wish || one.starts_with(&format!("{wish}.")) || one.starts_with(&format!("{wish}-"))
            };
            let unsupported = || bad(format!("Master version \"{wish}\" is unsupported."));
            VERSIONS.iter().find(fits).copied().ok_or_else(unsupported)
        }
    }
}

/// Refuses a change of a cluster that is busy. `is_pool` says that it is one of a node pool.
fn admit(cloud: &Cloud, key: &str, is_pool: bool) -> Result<(), Problem> {
    let Some(cluster) = cloud.get(key) else {
        return Err(errors::not_found("container", key.split_once('/').map_or("", |(_, name)| name)));
    };
    let below = format!("{key}/");
    let running: Vec<&Operation> = cloud
        .operations
        .values()
        .filter(|one| one.end.is_none() && (one.target == key || one.target.starts_with(&below)))
        .collect();
    let are_pools = running.iter().all(|one| one.target.starts_with(&below));
    if cloud.conduct.parallel_node_pools && is_pool && are_pools {
        if running.len() >= CONCURRENT {
            let message = format!("Too many operations: cluster hits the concurrent operations quota {CONCURRENT}.");
            return Err(Problem::new("RESOURCE_EXHAUSTED", message));
        }
        return Ok(());
    }
    if let Some(operation) = running.first() {
        let id = operation.key.rsplit('/').next().unwrap_or_default();
        let name = key.rsplit('/').next().unwrap_or_default();
        let doing = match operation.kind.as_str() {
            "CREATE_CLUSTER" => "creating",
            "DELETE_CLUSTER" => "deleting",
            "REPAIR_CLUSTER" => "repairing",
            "CREATE_NODE_POOL" => "creating a node pool of",
            "DELETE_NODE_POOL" => "deleting a node pool of",
            _ => "upgrading",
        };
        let message = match cloud.random.number() % 2 {
            0 => format!(
                "Operation {id} is currently {doing} cluster {name}. Please wait and try again once it is done."
            ),
            _ => format!("Cluster is running incompatible operation {id}. (CLUSTER_ALREADY_HAS_OPERATION)"),
        };
        return Err(not_ready(message));
    }
    if !["RUNNING", "ERROR", "DEGRADED"].contains(&text(cluster, "/status")) {
        let message = "The cluster is currently being created, deleted, updated or repaired. Wait until it is running.";
        return Err(not_ready(message));
    }
    Ok(())
}

/// A node pool as it is stored, from what a request holds.
fn pool(cloud: &Cloud, cluster: &Value, key: &str, wanted: &Value, others_without_gpu: bool) -> Result<Value, Problem> {
    let mut pool = wanted.clone();
    let name = text(&pool, "/name").to_owned();
    if !errors::is_name(&name, 40) {
        return Err(bad(format!("NodePool.name {name:?} is not valid.")));
    }
    let machine = text(&pool, "/config/machineType").to_owned();
    let machine = if machine.is_empty() { "e2-medium".to_owned() } else { machine };
    check_machine(&pool, &machine)?;
    let mut seen = Vec::new();
    for taint in pool.pointer("/config/taints").and_then(Value::as_array).into_iter().flatten() {
        let one = (taint["key"].clone(), taint["effect"].clone());
        if seen.contains(&one) {
            return Err(bad(format!("More than one taint with key {} and effect {}.", taint["key"], taint["effect"])));
        }
        seen.push(one);
    }
    errors::check_labels(pool.pointer("/config/resourceLabels").unwrap_or(&Value::Null))?;
    check_upgrade(&pool["upgradeSettings"])?;
    let wish = text(&pool, "/version").to_owned();
    let master = text(cluster, "/currentMasterVersion");
    let nodes = if wish.is_empty() || wish == "-" { master } else { version(&wish)? };
    if nodes > master {
        return Err(bad(format!("Node version \"{nodes}\" must not be greater than master version \"{master}\".")));
    }
    put(&mut pool, "/version", nodes.into());
    let has_gpus = accelerators(&pool).is_some();
    let has_driver = |one: &Value| one.pointer("/gpuDriverInstallationConfig/gpuDriverVersion").is_some();
    for one in pool.pointer_mut("/config/accelerators").and_then(Value::as_array_mut).into_iter().flatten() {
        if !has_driver(one) {
            put(one, "/gpuDriverInstallationConfig/gpuDriverVersion", "DEFAULT".into());
        }
    }
    if has_gpus && others_without_gpu {
        let taint = json!({ "key": GPU_TAINT, "value": "present", "effect": "NO_SCHEDULE" });
        let taints = pool.pointer("/config/taints").and_then(Value::as_array).cloned().unwrap_or_default();
        if !taints.iter().any(|one| one["key"] == GPU_TAINT) {
            put(&mut pool, "/config/taints", [taints, vec![taint]].concat().into());
        }
    }
    let locations = cluster["locations"].clone();
    let defaults = [
        ("/config/machineType", json!(machine)),
        ("/config/diskSizeGb", json!(100)),
        ("/config/diskType", json!("pd-balanced")),
        ("/config/imageType", json!("COS_CONTAINERD")),
        ("/config/oauthScopes", json!(SCOPES)),
        ("/config/serviceAccount", json!("default")),
        ("/config/metadata", json!({ "disable-legacy-endpoints": "true" })),
        ("/config/shieldedInstanceConfig", json!({ "enableIntegrityMonitoring": true })),
        ("/initialNodeCount", json!(0)),
        ("/management", json!({ "autoUpgrade": true, "autoRepair": true })),
        ("/maxPodsConstraint", json!({ "maxPodsPerNode": "110" })),
        ("/upgradeSettings", json!({ "maxSurge": 1, "strategy": "SURGE" })),
        ("/locations", locations),
    ];
    for (pointer, value) in defaults {
        if pool.pointer(pointer).is_none() {
            put(&mut pool, pointer, value);
        }
    }
    let range = cluster.pointer("/ipAllocationPolicy/clusterSecondaryRangeName").cloned();
    if let Some(range) = range.filter(|_| pool.pointer("/networkConfig/podRange").is_none()) {
        put(&mut pool, "/networkConfig/podRange", range);
    }
    let is_private = cluster.pointer("/privateClusterConfig/enablePrivateNodes") == Some(&json!(true))
        || cluster.pointer("/networkConfig/defaultEnablePrivateNodes") == Some(&json!(true));
    if pool.pointer("/networkConfig/enablePrivateNodes").is_none() {
        put(&mut pool, "/networkConfig/enablePrivateNodes", is_private.into());
    }
    pool["podIpv4CidrSize"] = 24.into();
    pool["etag"] = cloud.random.uuid().into();
    pool["selfLink"] =
        cloud.link("container", &format!("{}/nodePools/{name}", key.split_once('/').map_or("", |(_, n)| n))).into();
    pool["status"] = "PROVISIONING".into();
    Ok(pool)
}

fn is_blue_green(settings: &Value) -> bool {
    settings["strategy"] == "BLUE_GREEN"
}

/// Refuses settings with which no node can be upgraded.
fn check_upgrade(settings: &Value) -> Result<(), Problem> {
    let is_zero = |member: &str| settings[member].as_i64().unwrap_or(0) == 0;
    match !settings.is_null() && !is_blue_green(settings) && is_zero("maxSurge") && is_zero("maxUnavailable") {
        true => Err(bad("UpgradeSettings: at least one of maxSurge and maxUnavailable must be greater than 0.")),
        false => Ok(()),
    }
}

/// Why the nodes of a pool cannot be upgraded: the quotas have no room for the nodes that are added before others are removed.
fn upgrade_beyond_quota(cloud: &Cloud, cluster: &str, pool: &Value) -> Option<String> {
    let settings = &pool["upgradeSettings"];
    let mut added = pool.clone();
    if !is_blue_green(settings) {
        // One after another is enough.
        if settings["maxUnavailable"].as_i64().unwrap_or(0) > 0 {
            return None;
        }
        added["initialNodeCount"] = 1.into();
        added["locations"] = zones(pool).into_iter().take(1).collect();
    }
    beyond_quota(cloud, cluster, &added)
}

/// The type and count of a pool's accelerators on a node.
fn accelerators(pool: &Value) -> Option<(String, i64)> {
    let one = pool.pointer("/config/accelerators/0")?;
    let count = one["acceleratorCount"].as_str().and_then(|text| text.parse().ok());
    Some((text(one, "/acceleratorType").to_owned(), count.or_else(|| one["acceleratorCount"].as_i64())?))
}

fn check_machine(pool: &Value, machine: &str) -> Result<(), Problem> {
    let Some((_, _, _, own)) = MACHINES.iter().find(|row| row.0 == machine) else {
        return Err(bad(format!("Machine type with name '{machine}' does not exist.")));
    };
    let Some((kind, count)) = accelerators(pool) else { return Ok(()) };
    if !ACCELERATORS.iter().any(|row| row.0 == kind) {
        return Err(bad(format!("Accelerator type \"{kind}\" does not exist.")));
    }
    let fits = match own {
        Some((own, most)) => *own == kind && *most == count,
        None => machine.starts_with("n1-") && ["nvidia-tesla-t4", "nvidia-tesla-v100"].contains(&kind.as_str()),
    };
    match fits {
        true => Ok(()),
        false if machine == "e2-medium" => Err(bad("Cannot use default machine type (e2-medium) with GPUs.")),
        false => Err(bad(format!("[{kind}, {machine}] features are not compatible for creating instances."))),
    }
}

fn zones(pool: &Value) -> Vec<String> {
    pool["locations"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// How many nodes a pool has.
fn nodes(pool: &Value) -> i64 {
    pool["initialNodeCount"].as_i64().unwrap_or(0) * i64::try_from(zones(pool).len()).unwrap_or(0)
}

fn is_spot(pool: &Value) -> bool {
    ["/config/spot", "/config/preemptible"].iter().any(|pointer| pool.pointer(pointer) == Some(&json!(true)))
}

/// What a pool of a region needs of quotas: metrics and numbers.
fn needs(cloud: &Cloud, region: &str, pool: &Value) -> Vec<(String, f64)> {
    let count = nodes(pool) as f64;
    let machine = text(pool, "/config/machineType");
    let row = MACHINES.iter().find(|row| row.0 == machine);
    let prefix = if is_spot(pool) { "PREEMPTIBLE_" } else { "" };
    // Without a quota of their own, processors of spot machines take of that of others.
    let own = format!("{prefix}CPUS");
    let cpus = if limit(cloud, region, &own) > 0.0 { own } else { "CPUS".to_owned() };
    let mut needs = vec![(cpus, count * row.map_or(0.0, |row| row.1 as f64))];
    let cards = accelerators(pool).or_else(|| row?.3.map(|(kind, count)| (kind.to_owned(), count)));
    if let Some((kind, each)) = cards
        && let Some((_, _, metric, _)) = ACCELERATORS.iter().find(|row| row.0 == kind)
    {
        let metric = metric.trim_start_matches("PREEMPTIBLE_");
        needs.push((format!("{prefix}{metric}"), count * each as f64));
        needs.push(("GPUS_ALL_REGIONS".to_owned(), count * each as f64));
    }
    needs
}

/// What of a quota the pools of a project use in a region; of no region, in all.
pub(crate) fn used(cloud: &Cloud, project: &str, region: &str, metric: &str) -> f64 {
    let start = format!("container/projects/{project}/locations/{region}");
    let is_one = |(key, object): &(&String, &Object)| {
        key.starts_with(&start) && key.contains("/nodePools/") && object.body["status"] == "RUNNING"
    };
    let pools = cloud.objects.iter().filter(is_one).flat_map(|(_, object)| needs(cloud, region, &object.body));
    // The quota of all regions is one of GPUs.
    pools.filter(|(one, _)| one == metric).map(|(_, count)| count).sum()
}

/// The quota that has no room for the nodes of a pool beside those that run.
fn beyond_quota(cloud: &Cloud, cluster: &str, pool: &Value) -> Option<String> {
    let (project, place) = (project_of(cluster), location(cluster));
    let region = place.rsplitn(2, '-').last().filter(|_| place.matches('-').count() == 2).unwrap_or(place);
    needs(cloud, region, pool).into_iter().find_map(|(metric, need)| {
        let region = if metric == "GPUS_ALL_REGIONS" { "" } else { region };
        let limit = limit(cloud, region, &metric);
        let place = if region.is_empty() { "globally".to_owned() } else { format!("in region {region}") };
        (used(cloud, project, region, &metric) + need > limit).then(|| {
            format!(
                "[GCE_QUOTA_EXCEEDED]: Instance creation failed: Quota '{metric}' exceeded. Limit: {limit:.1} {place}."
            )
        })
    })
}

/// Why a pool gets no machines, as a condition of the pool: code and message.
fn judge(cloud: &mut Cloud, cluster: &str, pool: &Value) -> Result<(), (&'static str, String)> {
    let project = project_of(cluster).to_owned();
    let count = nodes(pool);
    let wait = |errors: &str| {
        format!(
            "Not all instances running in IGM after 35m6.391174155s. Expected {count}, running 0, transitioning \
                {count}. Current errors: {errors}"
        )
    };
    let is_private = pool.pointer("/networkConfig/enablePrivateNodes") == Some(&json!(true));
    let is_secure = pool.pointer("/config/shieldedInstanceConfig/enableSecureBoot") == Some(&json!(true));
    let constraints = [("compute.vmExternalIpAccess", !is_private), ("compute.requireShieldedVm", !is_secure)];
    for (constraint, is_violated) in constraints {
        if count > 0 && is_violated && cloud.enforces(&project, constraint) {
            let message = format!(
                "[CONDITION_NOT_MET]: Instance creation failed: Constraint constraints/{constraint} violated for \
                    project {project}."
            );
            return Err(("UNKNOWN", wait(&message)));
        }
    }
    if let Some(message) = unusable_key(cloud, &project, pool) {
        return Err(("UNKNOWN", wait(&message)));
    }
    if let Some(message) = beyond_quota(cloud, cluster, pool) {
        return Err(("GCE_QUOTA_EXCEEDED", wait(&message)));
    }
    if let Some(message) = pods_beyond(cloud, cluster, pool) {
        return Err(("UNKNOWN", message));
    }
    let machine = text(pool, "/config/machineType").to_owned();
    let kinds = [Some(machine.clone()), accelerators(pool).map(|(kind, _)| kind)];
    let market = if is_spot(pool) { Market::Spot } else { Market::OnDemand };
    let each = u64::try_from(pool["initialNodeCount"].as_i64().unwrap_or(0)).unwrap_or(0);
    for zone in zones(pool) {
        for kind in kinds.iter().flatten() {
            if !cloud.capacity.take(&zone, kind, market, each) {
                // Two codes are known.
                let code = match cloud.random.number() % 2 {
                    0 => "ZONE_RESOURCE_POOL_EXHAUSTED",
                    _ => "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
                };
                let message = format!(
                    "[GCE_STOCKOUT]: Instance creation failed: {code}: The zone 'projects/{project}/zones/{zone}' \
                        does not have enough resources available to fulfill the request ({kind})."
                );
                return Err(("GCE_STOCKOUT", wait(&message)));
            }
        }
    }
    Ok(())
}

/// Why the disks of a pool cannot have its key. Machines are tried again for longer than a grant takes to be effective.
fn unusable_key(cloud: &Cloud, project: &str, pool: &Value) -> Option<String> {
    let key = text(pool, "/config/bootDiskKmsKey");
    let number = &cloud.project(project)?.number;
    let agent = format!("serviceAccount:service-{number}@compute-system.iam.gserviceaccount.com");
    let policy = cloud.policies.get(&format!("cloudkms/{key}"));
    let is_granted = policy.is_some_and(|policy| policy.effective.contains_key(&(ENCRYPTER.to_owned(), agent)));
    (!key.is_empty() && !is_granted).then(|| {
        format!(
            "Cloud KMS error when using key {key}: Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on \
             resource '{key}' (or it may not exist)."
        )
    })
}

/// Whether a pool has more nodes than its pod range has room for: 256 addresses a node of 110 pods.
fn pods_beyond(cloud: &Cloud, cluster: &str, pool: &Value) -> Option<String> {
    let body = cloud.get(cluster)?;
    let subnetwork = cloud.get(&format!("compute/{}", text(body, "/networkConfig/subnetwork")))?;
    let name = text(pool, "/networkConfig/podRange");
    let ranges = subnetwork["secondaryIpRanges"].as_array()?;
    let range = ranges.iter().find(|range| range["rangeName"] == name)?;
    let (_, size) = super::compute::range(text(range, "/ipCidrRange"))?;
    let most: u64 = pool.pointer("/maxPodsConstraint/maxPodsPerNode").and_then(Value::as_str)?.parse().ok()?;
    // Twice as many addresses as pods, rounded up to a power of two.
    let each = (most.saturating_mul(2)).next_power_of_two();
    let others = collection(cloud, &format!("{cluster}/nodePools"));
    let is_other = |key: &&String| !key.ends_with(&format!("/{}", text(pool, "/name")));
    let total: i64 =
        others.iter().filter(is_other).filter_map(|key| cloud.get(key)).map(nodes).sum::<i64>() + nodes(pool);
    let is_beyond = u64::try_from(total).unwrap_or(0).saturating_mul(each) > size;
    is_beyond.then(|| format!("[IP_SPACE_EXHAUSTED]: the pod range {name} has no room for {total} nodes."))
}

/// Gives a pool its machines: the error of the operation says why not. The pool stays.
fn provision(cloud: &mut Cloud, cluster: &str, pool: &str) -> Result<(), Value> {
    let Some(mut body) = cloud.get(pool).cloned() else { return Ok(()) };
    let judged = judge(cloud, cluster, &body);
    let groups = zones(&body).into_iter().map(|zone| {
        let name = format!("gke-{}-{}-grp", cluster.rsplit('/').next().unwrap_or_default(), text(&body, "/name"));
        cloud.link("compute", &format!("projects/{}/zones/{zone}/instanceGroupManagers/{name}", project_of(cluster)))
    });
    let groups: Vec<String> = groups.collect();
    for group in &groups {
        let path = group.find("projects/").map_or("", |start| &group[start..]).to_owned();
        let mut manager = json!({ "targetSize": body["initialNodeCount"], "instanceGroup": group });
        cloud.describe("compute", &path, &mut manager);
        cloud.put(&format!("compute/{path}"), manager);
    }
    body["instanceGroupUrls"] = groups.into();
    let result = match judged {
        Ok(()) => {
            body["status"] = "RUNNING".into();
            for member in ["statusMessage", "conditions"] {
                body.as_object_mut().map(|members| members.shift_remove(member));
            }
            Ok(())
        }
        Err((code, message)) => {
            body["status"] = "ERROR".into();
            body["statusMessage"] = message.clone().into();
            body["conditions"] = json!([{ "code": code, "message": message }]);
            let number = if code == "UNKNOWN" { 13 } else { 8 };
            Err(json!({ "code": number, "message": message }))
        }
    };
    if let Some(object) = cloud.objects.get_mut(pool) {
        object.body = body;
    }
    result
}

/// Gives machines to the pools that wait for them.
pub(crate) fn provide(cloud: &mut Cloud) {
    let is_waiting = |object: &Object| object.body.pointer("/conditions/0/code") == Some(&json!("GCE_STOCKOUT"));
    let waiting = cloud.objects.iter().filter(|(key, object)| key.contains("/nodePools/") && is_waiting(object));
    for key in waiting.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
        let cluster = key.split('/').take(7).collect::<Vec<_>>().join("/");
        let _ = provision(cloud, &cluster, &key);
    }
}

/// The name of a subnetwork or network that a cluster names in short.
fn network_name(call: &Call<'_>, location: &str, wanted: &str, is_subnetwork: bool) -> String {
    if let Some(start) = wanted.find("projects/") {
        return wanted[start..].to_owned();
    }
    let wanted = if wanted.is_empty() { "default" } else { wanted };
    if !is_subnetwork {
        return format!("projects/{}/global/networks/{wanted}", call.project);
    }
    let zone_of = |place: &str| place.matches('-').count() == 2;
    let region =
        if zone_of(location) { location.rsplit_once('-').map_or(location, |(region, _)| region) } else { location };
    format!("projects/{}/regions/{region}/subnetworks/{wanted}", call.project)
}

fn create(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let mut cluster = call.body["cluster"].clone();
    let name = text(&cluster, "/name").to_owned();
    if !errors::is_name(&name, 40) {
        return Err(bad(format!("Cluster.name {name:?} is not valid.")));
    }
    errors::check_labels(&cluster["resourceLabels"])?;
    let key = format!("{}/{name}", call.key());
    let path = format!("{}/{name}", call.name);
    let place = location(&key).to_owned();
    let mut locations = zones_of(&place);
    if locations.is_empty() {
        return Err(bad(format!("Location \"{place}\" does not exist.")));
    }
    locations.truncate(3);
    if cloud.objects.contains_key(&key) {
        return Err(errors::already_exists("container", &path));
    }
    let network = network_name(call, &place, text(&cluster, "/network"), false);
    let subnetwork = network_name(call, &place, text(&cluster, "/subnetwork"), true);
    for name in [&network, &subnetwork] {
        let Some(object) = cloud.objects.get(&format!("compute/{name}")) else {
            return Err(bad(format!("Network or subnetwork \"{name}\" does not exist.")));
        };
        if object.busy_until > cloud.now() {
            return Err(Problem::with_reason(400, "resourceNotReady", format!("The resource '{name}' is not ready")));
        }
    }
    check_named_ranges(cloud, &cluster, &subnetwork)?;
    check_maintenance(&cluster["maintenancePolicy"])?;
    let master = version(text(&cluster, "/initialClusterVersion"))?;
    let mut wanted: Vec<Value> = cluster["nodePools"].as_array().cloned().unwrap_or_default();
    if wanted.is_empty() {
        let count = cluster["initialNodeCount"].as_i64().unwrap_or(0);
        if count <= 0 && cluster.pointer("/autopilot/enabled") != Some(&json!(true)) {
            return Err(bad("Cluster.initial_node_count must be greater than zero."));
        }
        let mut pool = json!({ "name": "default-pool", "initialNodeCount": count });
        if let Some(config) = cluster.get("nodeConfig") {
            pool["config"] = config.clone();
        }
        wanted.push(pool);
    }
    let defaults = [
        ("/locations", json!(locations)),
        ("/releaseChannel/channel", json!("REGULAR")),
        ("/loggingService", json!("logging.googleapis.com/kubernetes")),
        ("/monitoringService", json!("monitoring.googleapis.com/kubernetes")),
        ("/loggingConfig/componentConfig/enableComponents", json!(["SYSTEM_COMPONENTS", "WORKLOADS"])),
        ("/shieldedNodes/enabled", json!(true)),
        ("/defaultMaxPodsConstraint", json!({ "maxPodsPerNode": "110" })),
        ("/databaseEncryption/state", json!("DECRYPTED")),
        ("/addonsConfig/gcePersistentDiskCsiDriverConfig/enabled", json!(true)),
        ("/networkConfig/datapathProvider", json!("LEGACY_DATAPATH")),
        ("/ipAllocationPolicy/useIpAliases", json!(true)),
        ("/ipAllocationPolicy/stackType", json!("IPV4")),
        ("/maintenancePolicy/resourceVersion", json!(cloud.random.hex(8))),
    ];
    for (pointer, value) in defaults {
        if cluster.pointer(pointer).is_none() {
            put(&mut cluster, pointer, value);
        }
    }
    put(&mut cluster, "/networkConfig/network", network.clone().into());
    put(&mut cluster, "/networkConfig/subnetwork", subnetwork.clone().into());
    for (member, full) in [("network", &network), ("subnetwork", &subnetwork)] {
        cluster[member] = full.rsplit('/').next().unwrap_or_default().into();
    }
    let mut labels = cluster["resourceLabels"].as_object().cloned().unwrap_or_default();
    labels.insert("goog-gke-cluster-id-base32".to_owned(), cloud.random.base32(26).to_lowercase().into());
    cluster["resourceLabels"] = labels.into();
    let zone = &place;
    let members = [
        ("id", json!(cloud.random.hex(40))),
        ("location", json!(zone)),
        ("zone", json!(zone)),
        ("selfLink", json!(cloud.link("container", &path))),
        ("createTime", json!(cloud.now().to_string())),
        ("initialClusterVersion", json!(master)),
        ("currentMasterVersion", json!(master)),
        ("labelFingerprint", json!(cloud.random.hex(8))),
        ("etag", json!(cloud.random.uuid())),
        ("servicesIpv4Cidr", json!("34.118.224.0/20")),
        ("status", json!("PROVISIONING")),
    ];
    for (member, value) in members {
        cluster[member] = value;
    }
    let has_plain = wanted.iter().any(|pool| accelerators(pool).is_none());
    let mut pools = Vec::new();
    for one in &wanted {
        pools.push(pool(cloud, &cluster, &key, one, has_plain)?);
    }
    for member in ["nodePools", "initialNodeCount", "nodeConfig"] {
        cluster.as_object_mut().map(|members| members.shift_remove(member));
    }
    let now = cloud.now();
    cloud.objects.insert(key.clone(), Object { body: cluster, busy_until: now, is_hidden: false, created: now });
    let mut keys = Vec::new();
    for pool in pools {
        let pool_key = format!("{key}/nodePools/{}", text(&pool, "/name"));
        cloud.objects.insert(pool_key.clone(), Object { body: pool, busy_until: now, is_hidden: false, created: now });
        keys.push(pool_key);
    }
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| created(cloud, &target, &keys, &network));
    Ok(begin(cloud, call, Family::Container, "CREATE_CLUSTER", &key, Duration::from_secs(300), Value::Null, effect))
}

fn check_named_ranges(cloud: &Cloud, cluster: &Value, subnetwork: &str) -> Result<(), Problem> {
    let name = |member: &str| text(cluster, &format!("/ipAllocationPolicy/{member}")).to_owned();
    let (pods, services) = (name("clusterSecondaryRangeName"), name("servicesSecondaryRangeName"));
    if !pods.is_empty() && pods == services {
        return Err(bad(format!("Pods and services cannot share the secondary range {pods:?}.")));
    }
    let body = cloud.get(&format!("compute/{subnetwork}"));
    let ranges = body.and_then(|body| body["secondaryIpRanges"].as_array()).cloned().unwrap_or_default();
    for wanted in [pods, services].iter().filter(|name| !name.is_empty()) {
        if !ranges.iter().any(|range| range["rangeName"] == wanted.as_str()) {
            return Err(bad(format!("Secondary range {wanted:?} does not exist in subnetwork {subnetwork:?}.")));
        }
    }
    Ok(())
}

/// The end of a cluster's creation.
fn created(cloud: &mut Cloud, key: &str, pools: &[String], network: &str) -> Result<Value, Value> {
    let project = project_of(key).to_owned();
    let mut failure = None;
    let body = cloud.get(key).cloned().unwrap_or_default();
    let is_private = body.pointer("/privateClusterConfig/enablePrivateEndpoint") == Some(&json!(true));
    let blocks = body.pointer("/masterAuthorizedNetworksConfig/cidrBlocks").and_then(Value::as_array).cloned();
    for block in blocks.into_iter().flatten().filter(|_| is_private) {
        let first = text(&block, "/cidrBlock").split('/').next().unwrap_or_default().to_owned();
        let is_internal = first.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_private());
        if !is_internal {
            let message = format!(
                "Invalid master authorized networks: network \"{}\" is not a reserved network, which is required for \
                    private endpoints.",
                text(&block, "/cidrBlock")
            );
            failure = Some(json!({ "code": 3, "message": message }));
        }
    }
    if cloud.enforces(&project, "compute.restrictVpcPeering")
        && body.pointer("/privateClusterConfig/masterIpv4CidrBlock").is_some()
    {
        let message = format!("Constraint constraints/compute.restrictVpcPeering violated for project {project}.");
        failure = Some(json!({ "code": 9, "message": message }));
    }
    for pool in pools {
        if let Err(error) = provision(cloud, key, pool) {
            failure = Some(error);
        }
    }
    let name = key.rsplit('/').next().unwrap_or_default().to_owned();
    let start = format!("gke-{name}-{}", cloud.random.hex(8));
    for suffix in ["all", "master", "vms"] {
        let path = format!("projects/{project}/global/firewalls/{start}-{suffix}");
        let mut rule = json!({ "network": cloud.link("compute", network), "direction": "INGRESS", "priority": 1000 });
        cloud.describe("compute", &path, &mut rule);
        cloud.put(&format!("compute/{path}"), rule);
    }
    if body.pointer("/workloadIdentityConfig/workloadPool").is_some()
        && let Some(project) = cloud.projects.get_mut(&project)
    {
        project.has_identity_pool = true;
    }
    let (endpoint, ca) = cloud.endpoint.clone().unwrap_or_else(|| {
        let address = format!("34.90.{}.{}", cloud.random.number() % 256, 1 + cloud.random.number() % 254);
        (address, "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned())
    });
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    if let Some(object) = cloud.objects.get_mut(key) {
        put(&mut object.body, "/masterAuth/clusterCaCertificate", ca.into());
        object.body["endpoint"] = endpoint.clone().into();
        if object.body.get("privateClusterConfig").is_some() {
            put(&mut object.body, "/privateClusterConfig/publicEndpoint", endpoint.clone().into());
        }
        put(&mut object.body, "/controlPlaneEndpointsConfig/ipEndpointsConfig/publicEndpoint", endpoint.into());
        if let Some(error) = &failure {
            object.body["status"] = "ERROR".into();
            object.body["statusMessage"] = error["message"].clone();
            object.body["conditions"] = json!([{ "canonicalCode": "INTERNAL", "message": error["message"] }]);
        }
    }
    match failure {
        Some(error) => Err(error),
        None => {
            settle(cloud, key);
            Ok(Value::Null)
        }
    }
}

/// A cluster is RUNNING some time after an operation, and then Google may resize its control plane.
fn settle(cloud: &mut Cloud, key: &str) {
    let gap = cloud.lag(&cloud.conduct.running_gap.clone());
    let set = |cloud: &mut Cloud, status: &str| {
        if let Some(object) = cloud.objects.get_mut(&*key.to_owned()) {
            object.body["status"] = status.into();
        }
    };
    if gap.is_zero() {
        set(cloud, "RUNNING");
        return resize(cloud, key);
    }
    set(cloud, "RECONCILING");
    let of_action = key.to_owned();
    cloud.defer(cloud.due(gap), move |cloud| {
        if let Some(object) = cloud.objects.get_mut(&of_action).filter(|one| one.body["status"] == "RECONCILING") {
            object.body["status"] = "RUNNING".into();
        }
        resize(cloud, &of_action);
    });
}

/// Starts the operation that resizes a control plane, if the cluster has grown.
fn resize(cloud: &mut Cloud, key: &str) {
    let Some(bound) = cloud.conduct.resize_above.filter(|_| !cloud.timing.zero_latency) else { return };
    let pools = collection(cloud, &format!("{key}/nodePools"));
    let count: i64 = pools.iter().filter_map(|pool| cloud.get(pool)).map(nodes).sum();
    let mark = format!("{key}/resized");
    if count <= bound || cloud.burnt.contains_key(&mark) {
        return;
    }
    cloud.burnt.insert(mark, cloud.now());
    repair(cloud, key, Duration::from_secs(1800));
}

/// Starts an operation that no client asked for.
pub(crate) fn repair(cloud: &mut Cloud, key: &str, takes: Duration) {
    let millis = cloud.now().as_millisecond();
    let name = format!("operation-{millis}-{}", cloud.random.uuid());
    let operation = Operation {
        family: Family::Container,
        key: format!("container/projects/{}/locations/{}/operations/{name}", project_of(key), location(key)),
        kind: "REPAIR_CLUSTER".to_owned(),
        target: key.to_owned(),
        user: String::new(),
        start: cloud.now(),
        end: None,
        result: None,
        is_hidden: false,
        metadata: Value::Null,
    };
    if let Some(object) = cloud.objects.get_mut(key) {
        object.body["status"] = "RECONCILING".into();
    }
    let target = key.to_owned();
    let effect: Effect = Box::new(move |cloud| {
        if let Some(object) = cloud.objects.get_mut(&target) {
            object.body["status"] = "RUNNING".into();
        }
        Ok(Value::Null)
    });
    cloud.start(operation, takes, effect);
}

/// A cluster as reads answer it, with its pools.
fn shown(cloud: &Cloud, key: &str) -> Option<Value> {
    let mut body = cloud.get(key)?.clone();
    let pools = collection(cloud, &format!("{key}/nodePools"));
    let pools: Vec<Value> = pools.iter().filter_map(|pool| cloud.get(pool).cloned()).collect();
    let count: i64 = pools.iter().filter(|pool| pool["status"] == "RUNNING").map(nodes).sum();
    if let Some(first) = pools.first() {
        body["currentNodeVersion"] = first["version"].clone();
    }
    body["currentNodeCount"] = count.into();
    body["nodePools"] = pools.into();
    Some(body)
}

fn get(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    shown(cloud, &call.key()).ok_or_else(|| errors::not_found("container", &call.name))
}

fn list(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let keys = collection(cloud, &call.key());
    Ok(page(call, "clusters", keys.iter().filter_map(|key| shown(cloud, key)).collect()))
}

fn set_status(cloud: &mut Cloud, key: &str, status: &str) {
    if let Some(object) = cloud.objects.get_mut(key) {
        object.body["status"] = status.into();
    }
}

fn delete(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.key();
    admit(cloud, &key, false)?;
    set_status(cloud, &key, "STOPPING");
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let name = target.rsplit('/').next().unwrap_or_default().to_owned();
        for rule in firewalls_of(cloud, project_of(&target), &format!("gke-{name}-")) {
            cloud.objects.remove(&rule);
        }
        let below = format!("{target}/");
        let pools: Vec<String> = cloud.objects.keys().filter(|one| one.starts_with(&below)).cloned().collect();
        for pool in pools {
            give_back(cloud, &pool);
        }
        cloud.objects.remove(&target);
        cloud.burnt.remove(&format!("{target}/resized"));
        Ok(Value::Null)
    });
    Ok(begin(cloud, call, Family::Container, "DELETE_CLUSTER", &key, Duration::from_secs(240), Value::Null, effect))
}

/// Removes a pool and gives its machines back.
fn give_back(cloud: &mut Cloud, pool: &str) {
    let Some(object) = cloud.objects.remove(pool) else { return };
    let groups = object.body["instanceGroupUrls"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for path in groups.filter_map(|group| Some(&group[group.find("projects/")?..])) {
        cloud.objects.remove(&format!("compute/{path}"));
    }
    if object.body["status"] == "RUNNING" {
        release(cloud, &object.body);
    }
}

/// Gives the machines of a pool back.
fn release(cloud: &mut Cloud, pool: &Value) {
    let market = if is_spot(pool) { Market::Spot } else { Market::OnDemand };
    let each = u64::try_from(pool["initialNodeCount"].as_i64().unwrap_or(0)).unwrap_or(0);
    let machine = text(pool, "/config/machineType").to_owned();
    for zone in zones(pool) {
        for kind in [Some(machine.clone()), accelerators(pool).map(|(kind, _)| kind)].iter().flatten() {
            cloud.capacity.give(&zone, kind, market, each);
        }
    }
}

/// Changes a cluster or a pool at the end of an operation.
fn change(
    cloud: &mut Cloud,
    call: &Call<'_>,
    kind: &str,
    key: &str,
    seconds: u64,
    changes: Vec<(String, Value)>,
) -> Value {
    let cluster = cluster_key(call);
    if kind == "UPGRADE_MASTER" || key != cluster {
        set_status(cloud, &cluster, "RECONCILING");
    }
    let mut held = None;
    if key != cluster {
        held = cloud.get(key).filter(|pool| pool["status"] == "RUNNING").cloned();
        set_status(cloud, key, "RECONCILING");
    }
    let (target, of_effect) = (key.to_owned(), cluster.clone());
    let effect: Effect = Box::new(move |cloud| {
        if let Some(pool) = held {
            release(cloud, &pool);
        }
        let (fingerprint, etag) = (cloud.random.hex(8), cloud.random.uuid());
        let mut result = Ok(Value::Null);
        if let Some(object) = cloud.objects.get_mut(&target) {
            for (pointer, value) in changes {
                match object.body.pointer_mut(&pointer).filter(|old| old.is_object() && value.is_object()) {
                    Some(old) if !pointer.to_lowercase().ends_with("labels") && pointer != "/maintenancePolicy" => {
                        merge(old, &value);
                    }
                    Some(_) | None => put(&mut object.body, &pointer, value),
                }
            }
            object.body["etag"] = etag.into();
            if object.body.get("labelFingerprint").is_some() {
                object.body["labelFingerprint"] = fingerprint.into();
            }
        }
        if target != of_effect {
            result = provision(cloud, &of_effect, &target).map(|()| Value::Null);
        }
        settle(cloud, &of_effect);
        result
    });
    begin(cloud, call, Family::Container, kind, key, Duration::from_secs(seconds), Value::Null, effect)
}

fn update(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.key();
    admit(cloud, &key, false)?;
    let wanted = call.body["update"].as_object().cloned().unwrap_or_default();
    let desired: Vec<(&String, &Value)> = wanted.iter().filter(|(name, _)| name.starts_with("desired")).collect();
    let changes = match desired[..] {
        [] => return Err(bad("Must specify a field to update.")),
        [(name, value)] => match DESIRED.iter().find(|row| row.0 == name) {
            Some((_, pointer)) => vec![((*pointer).to_owned(), value.clone())],
            None => return Err(Problem::new("UNIMPLEMENTED", format!("{name} is not simulated."))),
        },
        _ => {
            let names: Vec<&str> = desired.iter().map(|(name, _)| name.as_str()).collect();
            return Err(bad(format!(
                "Exactly one update can be applied to the cluster in a request, not {}.",
                names.join(", ")
            )));
        }
    };
    let changes: Vec<(String, Value)> = match wanted.get("desiredMasterVersion") {
        Some(wish) => {
            let version = version(wish.as_str().unwrap_or_default())?;
            if version < cloud.get(&key).map_or("", |body| text(body, "/currentMasterVersion")) {
                return Err(bad("Downgrade of the master is not supported."));
            }
            vec![("/currentMasterVersion".to_owned(), version.into())]
        }
        None => changes,
    };
    let is_upgrade = wanted.contains_key("desiredMasterVersion");
    let (kind, seconds) = if is_upgrade { ("UPGRADE_MASTER", 600) } else { ("UPDATE_CLUSTER", 60) };
    Ok(change(cloud, call, kind, &key, seconds, changes))
}

fn set_labels(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.key();
    admit(cloud, &key, false)?;
    errors::check_labels(&call.body["resourceLabels"])?;
    let before = cloud.get(&key).cloned().unwrap_or_default();
    if call.body["labelFingerprint"] != before["labelFingerprint"] {
        return Err(Problem::with_reason(
            412,
            "conditionNotMet",
            "Labels could not be set due to fingerprint mismatch.",
        ));
    }
    let mut labels = call.body["resourceLabels"].as_object().cloned().unwrap_or_default();
    let own = before["resourceLabels"].as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("goog-"));
    labels.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    Ok(change(cloud, call, "SET_LABELS", &key, 20, vec![("/resourceLabels".to_owned(), labels.into())]))
}

fn set_member(cloud: &mut Cloud, call: &Call<'_>, kind: &str, member: &str) -> Result<Value, Problem> {
    let key = call.key();
    admit(cloud, &key, false)?;
    Ok(change(cloud, call, kind, &key, 30, vec![(format!("/{member}"), call.body[member].clone())]))
}

fn set_maintenance(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let current = cloud.get(&call.key()).map(|body| text(body, "/maintenancePolicy/resourceVersion").to_owned());
    let sent = text(&call.body, "/maintenancePolicy/resourceVersion");
    if !sent.is_empty() && current.is_some_and(|current| current != sent) {
        return Err(Problem::new("ABORTED", "The maintenance policy has changed since it was read."));
    }
    let key = call.key();
    admit(cloud, &key, false)?;
    let mut policy = call.body["maintenancePolicy"].clone();
    check_maintenance(&policy)?;
    put(&mut policy, "/resourceVersion", cloud.random.hex(8).into());
    let changes = vec![("/maintenancePolicy".to_owned(), policy)];
    Ok(change(cloud, call, "SET_MAINTENANCE_POLICY", &key, 30, changes))
}

/// Checks that a window leaves time enough in 32 days, in which a week recurs four times.
fn check_maintenance(policy: &Value) -> Result<(), Problem> {
    let Some(recurring) = policy.pointer("/window/recurringWindow").filter(|one| !one.is_null()) else { return Ok(()) };
    let time = |member: &str| text(recurring, member).parse::<Timestamp>().ok();
    let Some((start, end)) = time("/window/startTime").zip(time("/window/endTime")).filter(|(start, end)| start < end)
    else {
        return Err(bad("The end of the maintenance window must be after its start."));
    };
    let rule = text(recurring, "/recurrence");
    let days = rule.strip_prefix("FREQ=WEEKLY;BYDAY=").map(|days| days.split(',').count());
    let times = match (rule, days) {
        ("FREQ=DAILY", _) => 32,
        (_, Some(days)) => 4 * i64::try_from(days).unwrap_or(0),
        _ => return Err(bad(format!("Invalid recurrence {rule:?}."))),
    };
    let hours = end.duration_since(start).as_hours();
    match hours >= 4 && hours * times >= 48 {
        true => Ok(()),
        false => Err(bad(
            "maintenance policy would go longer than 32d without 48h maintenance availability of ≥4h contiguous duration",
        )),
    }
}

fn set_logging(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    set_member(cloud, call, "UPDATE_CLUSTER", "loggingService")
}

fn set_monitoring(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    set_member(cloud, call, "UPDATE_CLUSTER", "monitoringService")
}

fn create_pool(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let cluster = cluster_key(call);
    let wanted = call.body["nodePool"].clone();
    let key = format!("{}/{}", call.key(), text(&wanted, "/name"));
    if cloud.objects.contains_key(&key) {
        return Err(errors::already_exists("container", &format!("{}/{}", call.name, text(&wanted, "/name"))));
    }
    admit(cloud, &cluster, true)?;
    let body = cloud.get(&cluster).cloned().unwrap_or_default();
    let others = collection(cloud, &call.key());
    let has_plain = others.iter().filter_map(|key| cloud.get(key)).any(|pool| accelerators(pool).is_none());
    let pool = pool(cloud, &body, &cluster, &wanted, has_plain)?;
    let now = cloud.now();
    cloud.objects.insert(key.clone(), Object { body: pool, busy_until: now, is_hidden: false, created: now });
    set_status(cloud, &cluster, "RECONCILING");
    let (target, of_effect) = (key.clone(), cluster.clone());
    let effect: Effect = Box::new(move |cloud| {
        let result = provision(cloud, &of_effect, &target);
        settle(cloud, &of_effect);
        result.map(|()| Value::Null)
    });
    Ok(begin(cloud, call, Family::Container, "CREATE_NODE_POOL", &key, Duration::from_secs(90), Value::Null, effect))
}

fn get_pool(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    super::kinds::read(cloud, call)
}

fn list_pools(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    if cloud.get(&cluster_key(call)).is_none() {
        return Err(errors::not_found("container", call.parent()));
    }
    let keys = collection(cloud, &call.key());
    let pools: Vec<Value> = keys.iter().filter_map(|key| cloud.get(key).cloned()).collect();
    Ok(if pools.is_empty() { json!({}) } else { json!({ "nodePools": pools }) })
}

fn existing_pool(cloud: &Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    cloud.get(&call.key()).cloned().ok_or_else(|| errors::not_found("container", &call.name))
}

fn delete_pool(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    existing_pool(cloud, call)?;
    let (key, cluster) = (call.key(), cluster_key(call));
    admit(cloud, &cluster, true)?;
    set_status(cloud, &key, "STOPPING");
    let (target, of_effect) = (key.clone(), cluster);
    let effect: Effect = Box::new(move |cloud| {
        // Its machines are given back as those of a running pool.
        set_status(cloud, &target, "RUNNING");
        give_back(cloud, &target);
        settle(cloud, &of_effect);
        Ok(Value::Null)
    });
    Ok(begin(cloud, call, Family::Container, "DELETE_NODE_POOL", &key, Duration::from_secs(120), Value::Null, effect))
}

fn update_pool(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let before = existing_pool(cloud, call)?;
    let (key, cluster) = (call.key(), cluster_key(call));
    admit(cloud, &cluster, true)?;
    let mut changes = Vec::new();
    for (member, inner, pointer) in POOL {
        if let Some(value) = call.body.get(member).map(|value| value.pointer(inner).unwrap_or(value)) {
            changes.push(((*pointer).to_owned(), value.clone()));
        }
    }
    let sent = call.body["accelerators"].as_array().cloned().unwrap_or_default();
    if !sent.is_empty() {
        let old = accelerators(&before);
        let new = accelerators(&json!({ "config": { "accelerators": sent } }));
        if old != new {
            let count = old.map_or(0, |(_, count)| count);
            return Err(bad(format!("Accelerator count: {count} should not be updated.")));
        }
        changes.push(("/config/accelerators".to_owned(), sent.into()));
    }
    if let Some((_, wish)) = changes.iter_mut().find(|(pointer, _)| pointer == "/version") {
        let wanted = version(wish.as_str().unwrap_or_default())?;
        let master = cloud.get(&cluster).map_or("", |body| text(body, "/currentMasterVersion"));
        if wanted > master {
            return Err(bad(format!(
                "Node version \"{wanted}\" must not be greater than master version \"{master}\"."
            )));
        }
        *wish = wanted.into();
        if let Some(message) = upgrade_beyond_quota(cloud, &cluster, &before) {
            let effect: Effect = Box::new(move |_| Err(json!({ "code": 8, "message": message })));
            let takes = Duration::from_secs(120);
            return Ok(begin(cloud, call, Family::Container, "UPGRADE_NODES", &key, takes, Value::Null, effect));
        }
    }
    check_upgrade(&call.body["upgradeSettings"])?;
    let is_empty = changes.is_empty() && call.body.get("accelerators").is_none();
    if is_empty {
        return Err(bad("Must specify a field to update."));
    }
    Ok(change(cloud, call, "UPGRADE_NODES", &key, 120, changes))
}

fn set_pool(cloud: &mut Cloud, call: &Call<'_>, kind: &str, pointer: &str, value: Value) -> Result<Value, Problem> {
    existing_pool(cloud, call)?;
    admit(cloud, &cluster_key(call), true)?;
    Ok(change(cloud, call, kind, &call.key(), 60, vec![(pointer.to_owned(), value)]))
}

fn set_size(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let count = call.body["nodeCount"].as_i64().unwrap_or(0);
    set_pool(cloud, call, "SET_NODE_POOL_SIZE", "/initialNodeCount", count.into())
}

fn set_autoscaling(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    set_pool(cloud, call, "UPDATE_CLUSTER", "/autoscaling", call.body["autoscaling"].clone())
}

fn set_management(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    set_pool(cloud, call, "SET_NODE_POOL_MANAGEMENT", "/management", call.body["management"].clone())
}

fn cancel(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.key();
    let now = cloud.now();
    let Some(operation) = cloud.operations.get_mut(&key) else {
        return Err(errors::not_found("container", &call.name));
    };
    if operation.end.is_none() {
        operation.end = Some(now);
        operation.result = Some(Err(json!({ "code": 1, "message": "The operation was cancelled." })));
        let target = operation.target.clone();
        let cluster = target.split('/').take(7).collect::<Vec<_>>().join("/");
        set_status(cloud, &target, "RUNNING");
        set_status(cloud, &cluster, "RUNNING");
    }
    Ok(json!({}))
}

/// Whether the nodes of a pool can pull images from a repository.
pub(crate) fn may_pull(cloud: &Cloud, pool: &str, repository: &str) -> bool {
    let cluster = pool.split('/').take(7).collect::<Vec<_>>().join("/");
    let (Some(body), Some(cluster)) = (cloud.get(pool), cloud.get(&cluster)) else { return false };
    let member = super::member(text(body, "/config/serviceAccount"));
    let of_project = format!("cloudresourcemanager/projects/{}", project_of(repository));
    let has_role = [of_project.as_str(), repository].iter().any(|at| super::iam::grants(cloud, at, READER, &member));
    let scopes = body.pointer("/config/oauthScopes").and_then(Value::as_array).into_iter().flatten();
    let has_scope = scopes.filter_map(Value::as_str).any(|scope| PULLING.contains(&scope));
    let network = text(cluster, "/networkConfig/network");
    let is_way_out = |(key, one): (&String, &Object)| {
        key.contains("/routers/")
            && text(&one.body, "/network").ends_with(network)
            && one.body.pointer("/nats/0").is_some()
    };
    let is_public = body.pointer("/networkConfig/enablePrivateNodes") != Some(&json!(true));
    let subnetwork = cloud.get(&format!("compute/{}", text(cluster, "/networkConfig/subnetwork")));
    let reaches_google = subnetwork.is_some_and(|one| one["privateIpGoogleAccess"] == true);
    has_role && has_scope && (is_public || reaches_google || cloud.objects.iter().any(is_way_out))
}
