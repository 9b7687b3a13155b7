//! Clusters and node pools of AKS: <https://learn.microsoft.com/rest/api/aks/>.
//!
//! A cluster has one change at a time (Azure/AKS#1913, Azure/azure-workload-identity#417), and its document has its pools, which every
//! change repeats (pulumi/pulumi-azure-native#579).

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use base64::Engine;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::{get, set};
use textnlp_cloud::tags::LINEAGE;
use textnlp_cloud::{Candidate, State, has_machine, machine_names};
use textnlp_provider::{Declare, Error, ErrorKind, Foreign, Identity, Kind, Outputs, Pricing, Recorded, Result, Spec};

use super::identity::{CLUSTER_ADMIN, grant, is_granted};
use super::{create, delete, external, put, read};
use crate::api::{Api, Call};
use crate::compute::Offer;
use crate::operation::Pending;
use crate::row::{Field, LOCATION, Marks, Rest, RestKind, Table, invalid, rewrite, state};
use crate::table::{MINUTE, Row, kind};

const VERSION: &str = "2025-05-01";
/// The windows of upgrades of a cluster's version, and of the images of its nodes.
pub(crate) const WINDOWS: [(&str, &str); 2] =
    [("upgrades", "aksManagedAutoUpgradeSchedule"), ("node-upgrades", "aksManagedNodeOSUpgradeSchedule")];
/// The kind of pools.
const POOL: &str = "azure.pool";
/// The pool that a cluster is created with, for its own pods: it needs one as long as it exists.
const SYSTEM: &str = "system";
/// The pools of the servers.
pub(crate) const CPU: &str = "cpu";
pub(crate) const GPU: &str = textnlp_provider::cluster::GPU_POOL;
/// The taint of the nodes of that pool, and that of nodes with GPUs.
const SYSTEM_TAINT: &str = "CriticalAddonsOnly=true:NoSchedule";
const GPU_TAINT: &str = "nvidia.com/gpu=present:NoSchedule";
/// The disk of a node of that pool in GiB.
pub(crate) const SYSTEM_DISK_GB: u32 = 64;
/// The markets of machines.
pub(crate) const SPOT: &str = "spot";
pub(crate) const ON_DEMAND: &str = "on-demand";
const MOVE: &str = "deploy another environment and move to it";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(90),
            typical: Some(MINUTE.saturating_mul(8)),
            pricing: Pricing::BySpec,
            permissions: &[
                read("Microsoft.ContainerService/managedClusters/read"),
                put("Microsoft.ContainerService/managedClusters/write"),
                delete("Microsoft.ContainerService/managedClusters/delete"),
                read("Microsoft.ContainerService/managedClusters/listClusterUserCredential/action"),
                read("Microsoft.ContainerService/locations/operations/read"),
                // Each change sends the whole cluster, and what it refers to is checked again.
                put("Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"),
                put("Microsoft.Network/virtualNetworks/subnets/join/action"),
                put("Microsoft.KeyVault/vaults/read"),
                read("Microsoft.Authorization/roleAssignments/read"),
                put("Microsoft.Authorization/roleAssignments/write"),
            ],
            terraform: &[("azurerm_kubernetes_cluster", "id")],
            ..kind("azure.cluster", "a Kubernetes cluster", Identity::Named)
        },
        service: "Microsoft.ContainerService",
        resource: &Rest::<Cluster>::kind(),
        refused: &[
            ("subnet", MOVE),
            ("pods", MOVE),
            ("services", MOVE),
            ("identity", MOVE),
            ("key", "change the key of the cluster with `az aks update --azure-keyvault-kms-key-id`"),
        ],
    },
    Row {
        kind: Kind {
            // Each alternative of a pool may wait for machines.
            deadline: MINUTE.saturating_mul(120),
            typical: Some(MINUTE.saturating_mul(4)),
            pricing: Pricing::BySpec,
            // Two changes at once cancel each other (Azure/AKS#1913).
            one_by_one: true,
            permissions: &[
                read("Microsoft.ContainerService/managedClusters/agentPools/read"),
                put("Microsoft.ContainerService/managedClusters/agentPools/write"),
                delete("Microsoft.ContainerService/managedClusters/agentPools/delete"),
                // One that Azure has no machines for makes way for the next alternative.
                create("Microsoft.ContainerService/managedClusters/agentPools/delete"),
                put("Microsoft.Network/virtualNetworks/subnets/join/action"),
                read("Microsoft.Compute/skus/read"),
            ],
            terraform: &[("azurerm_kubernetes_cluster_node_pool", "id")],
            ..kind(POOL, "a pool of nodes", Identity::Named)
        },
        service: "Microsoft.ContainerService",
        resource: &Rest::<Pool>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.ContainerService/managedClusters/maintenanceConfigurations/read"),
                put("Microsoft.ContainerService/managedClusters/maintenanceConfigurations/write"),
                delete("Microsoft.ContainerService/managedClusters/maintenanceConfigurations/delete"),
            ],
            ..kind("azure.maintenance", "a maintenance window of a cluster", Identity::Part)
        },
        service: "Microsoft.ContainerService",
        resource: &Rest::<Maintenance>::kind(),
        refused: &[],
    },
];

/// What the identity that deploys does inside of clusters.
pub(crate) const INSIDE: &str = "Microsoft.ContainerService/managedClusters/*";

/// A cluster. Outputs: `id`, `name`, `endpoint`, `ca_pem`, `version`, `nodes`: the object id of the identity of its nodes, `issuer`.
struct Cluster;

#[async_trait]
impl RestKind for Cluster {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.ContainerService/managedClusters",
        version: VERSION,
        path: "{group}/providers/Microsoft.ContainerService/managedClusters/{name}",
        constants: &[
            ("/sku/name", "\"Base\""),
            ("/properties/enableRBAC", "true"),
            ("/properties/disableLocalAccounts", "true"),
            ("/properties/aadProfile", "{\"managed\":true,\"enableAzureRBAC\":true}"),
            ("/properties/oidcIssuerProfile/enabled", "true"),
            ("/properties/securityProfile/workloadIdentity/enabled", "true"),
            ("/properties/networkProfile/networkPlugin", "\"azure\""),
            ("/properties/networkProfile/networkPluginMode", "\"overlay\""),
            // It enforces network policies.
            ("/properties/networkProfile/networkDataplane", "\"cilium\""),
            ("/properties/networkProfile/networkPolicy", "\"cilium\""),
            ("/properties/networkProfile/loadBalancerSku", "\"standard\""),
            // The gateway is on the subnet before the cluster is created (hashicorp/terraform-provider-azurerm#7201).
            ("/properties/networkProfile/outboundType", "\"userAssignedNATGateway\""),
            ("/properties/autoUpgradeProfile/nodeOSUpgradeChannel", "\"NodeImage\""),
        ],
        fields: &[
            LOCATION,
            Field::code("version", "/properties/kubernetesVersion", Value::clone, |one| {
                let current = get(one, "/properties/currentKubernetesVersion");
                minor(current.unwrap_or(&one["properties"]["kubernetesVersion"]))
            })
            .changed(),
            Field::plain("tier", "/sku/tier").changed(),
            Field::plain("dns_prefix", "/properties/dnsPrefix"),
            Field::plain("node_group", "/properties/nodeResourceGroup"),
            Field::code("identity", "/identity", identity, identified),
            // Only its pools have it: see `prepare`.
            Field::seen("subnet", |one| system(one)["vnetSubnetID"].clone()),
            Field::seen("machine", |one| system(one)["vmSize"].clone()),
            Field::seen("count", |one| system(one)["count"].clone()),
            Field::plain("pods", "/properties/networkProfile/podCidr"),
            Field::plain("services", "/properties/networkProfile/serviceCidr"),
            Field::plain("dns", "/properties/networkProfile/dnsServiceIP"),
            Field::code("allow_from", "/properties/apiServerAccessProfile/authorizedIPRanges", ranges, allowed)
                .changed(),
            Field::seen("deployer_access", |one| json!(one["$deployer"] == true)),
            Field::plain("channel", "/properties/autoUpgradeProfile/upgradeChannel").changed(),
            Field::code("key", "/properties/securityProfile/azureKeyVaultKms", encryption, |one| {
                let kms = &one["properties"]["securityProfile"]["azureKeyVaultKms"];
                if kms["enabled"] == true { kms["keyId"].clone() } else { Value::Null }
            }),
        ],
        in_place: &["deployer_access", "allow_from", "channel", "tier", "version"],
        without: "the access of the identity that deploys, which `az role assignment create` gives with the role Azure Kubernetes Service \
                  RBAC Cluster Admin, as `up` does",
        ignored: &["body.properties.agentPoolProfiles"],
        outputs: &[
            ("nodes", "/properties/identityProfile/kubeletidentity/objectId"),
            ("issuer", "/properties/oidcIssuerProfile/issuerURL"),
        ],
        ..Table::USUAL
    };

    /// Its address and its authority are in the kubeconfig that it hands out; the token is that of Microsoft Entra.
    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let Some(mut document) = api.find(Call::get(id, VERSION)).await? else { return Ok(None) };
        if Self::state(&document) != State::Ready {
            return Ok(Some(document));
        }
        // Of an existing cluster its operator's roles may not be readable.
        let granted = match is_granted(api, id, CLUSTER_ADMIN).await {
            Err(error) if error.kind != ErrorKind::Denied => return Err(error),
            granted => granted.unwrap_or(false),
        };
        document["$deployer"] = granted.into();
        let call = Call::new(Method::POST, format!("{id}/listClusterUserCredential"), VERSION);
        match api.send(call.query("format", "exec").saying("read the address of", "the cluster")).await {
            Ok(reply) => {
                if let Some((server, ca)) = address(&reply.body) {
                    document["$server"] = server.into();
                    document["$ca"] = ca.into();
                }
                Ok(Some(document))
            }
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) => Ok(Some(document)),
            Err(error) => Err(error),
        }
    }

    fn state(document: &Value) -> State {
        let found = state(Self::TABLE, document);
        explained(found, &document["properties"]["status"]["provisioningError"])
    }

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        if let Some(server) = document["$server"].as_str() {
            outputs.insert(textnlp_provider::connect::ENDPOINT.to_owned(), json!(server));
        }
        if let Some(ca) = document["$ca"].as_str() {
            outputs.insert(textnlp_provider::connect::CA.to_owned(), json!(ca));
        }
        outputs.insert("version".to_owned(), minor(&document["properties"]["currentKubernetesVersion"]));
    }

    /// Pools that others added: they would end with it.
    async fn foreign(_api: &Api, id: &str, document: &Value) -> Result<Vec<Foreign>> {
        let pools = document["properties"]["agentPoolProfiles"].as_array().into_iter().flatten();
        // Those of other machines than the usual ones are known by their tags.
        let is_tagged = |pool: &Value| {
            let lineage = &document["tags"][LINEAGE];
            lineage.is_string() && pool["tags"][LINEAGE] == *lineage
        };
        let others = pools.filter(|pool| !is_tagged(pool)).filter_map(|pool| pool["name"].as_str());
        let names = others.filter(|name| ![SYSTEM, CPU, GPU].contains(name));
        Ok(names.filter_map(|name| external(&format!("{id}/agentPools/{name}"), "node pool")).collect())
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            // The upgrade channel upgrades the cluster: a version is the least one.
            "version" => wanted.is_null() || number(seen) >= number(wanted),
            // Its operator may resize the system pool.
            "machine" | "count" => true,
            "deployer_access" => *wanted == false,
            // AKS shows a single address as a network (Azure/AKS#4085).
            "allow_from" => networks(wanted).is_some_and(|list| networks(seen) == Some(list)),
            _ => false,
        }
    }

    /// Each identity that deploys gets the role, and keeps it until the cluster ends.
    async fn put(api: &Api, id: &str, _wanted: &Value, field: &str) -> Result<Option<Pending>> {
        match field {
            "deployer_access" => grant(api, id, CLUSTER_ADMIN).await.map(|()| None),
            _ => Err(invalid("change", id, &format!("`{field}` does not change in place"))),
        }
    }

    fn complete(spec: &Spec, document: &mut Value) {
        document["properties"]["agentPoolProfiles"] = json!([{
            "name": SYSTEM,
            "mode": "System",
            "type": "VirtualMachineScaleSets",
            "osType": "Linux",
            "count": spec.get("count"),
            "vmSize": spec.get("machine"),
            "osDiskSizeGB": SYSTEM_DISK_GB,
            "vnetSubnetID": spec.get("subnet"),
            "nodeTaints": [SYSTEM_TAINT],
            "tags": document["tags"],
        }]);
    }

    /// A change of a cluster repeats all of its pools, also those of other resources.
    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        // A new cluster gets its other pools from their own declarations.
        if request.is_planned {
            return Ok(());
        }
        let id = request.object.cloud_id.as_str();
        let is_own =
            |one: &&Recorded| one.kind.as_str() == POOL && one.spec.get("cluster").and_then(Value::as_str) == Some(id);
        for pool in request.beside.iter().filter(is_own) {
            let request = Declare { object: pool, ..*request };
            let mut profile = Rest::<Pool>::body(&pool.spec, &crate::declare::tags(&request));
            Pool::declared(None, &request, &mut profile)?;
            let mut profile = profile["properties"].take();
            profile["name"] = pool.spec.get("name").cloned().unwrap_or_default();
            if let Some(all) = document["properties"]["agentPoolProfiles"].as_array_mut() {
                all.push(profile);
            }
        }
        Ok(())
    }
}

/// A name as that of a pool: at most 12 lower-case letters and digits (<https://learn.microsoft.com/azure/aks/create-node-pools>).
pub(crate) fn pool_name(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).take(12).collect()
}

fn system(document: &Value) -> &Value {
    let mut pools = document["properties"]["agentPoolProfiles"].as_array().into_iter().flatten();
    pools.find(|pool| pool["name"] == SYSTEM).unwrap_or(&Value::Null)
}

/// The server and its authority in the first kubeconfig of an answer.
fn address(answer: &Value) -> Option<(String, String)> {
    let decode = |text: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim()).ok()?;
        String::from_utf8(bytes).ok()
    };
    let config = decode(answer["kubeconfigs"][0]["value"].as_str()?)?;
    let config: Value = serde_yaml::from_str(&config).ok()?;
    let cluster = &config["clusters"][0]["cluster"];
    let server = cluster["server"].as_str().filter(|server| server.starts_with("https://"))?;
    let ca = decode(cluster["certificate-authority-data"].as_str()?)?;
    ca.contains("BEGIN CERTIFICATE").then(|| (server.trim_end_matches('/').to_owned(), ca))
}

/// The minor version in a version of Kubernetes: `1.34` of `1.34.1`.
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

pub(super) fn identity(id: &Value) -> Value {
    match id.as_str() {
        Some(id) => json!({ "type": "UserAssigned", "userAssignedIdentities": { id: {} } }),
        None => Value::Null,
    }
}

pub(super) fn identified(document: &Value) -> Value {
    let all = document["identity"]["userAssignedIdentities"].as_object();
    all.and_then(|all| all.keys().next()).map_or(Value::Null, |id| id.as_str().into())
}

/// An empty list is every network.
fn ranges(allowed: &Value) -> Value {
    if allowed.is_null() { json!([]) } else { allowed.clone() }
}

/// The networks of a list, each with its prefix.
fn networks(list: &Value) -> Option<BTreeSet<String>> {
    let whole = |text: &str| if text.contains('/') { text.to_owned() } else { format!("{text}/32") };
    Some(list.as_array()?.iter().filter_map(Value::as_str).map(whole).collect())
}

fn allowed(document: &Value) -> Value {
    let found = get(document, "/properties/apiServerAccessProfile/authorizedIPRanges").and_then(Value::as_array);
    found.filter(|list| !list.is_empty()).map_or(Value::Null, |list| json!(list))
}

fn encryption(key: &Value) -> Value {
    match key {
        Value::Null => Value::Null,
        key => json!({ "enabled": true, "keyId": key, "keyVaultNetworkAccess": "Public" }),
    }
}

/// A failed state with the code of its cause, where the document has it.
fn explained(state: State, error: &Value) -> State {
    let State::Failed { code, why } = state else { return state };
    if !error.is_object() {
        return State::Failed { code, why };
    }
    let failure = crate::answer::Failure::of_error(error);
    let (_, code, _) = failure.meaning();
    State::Failed { code, why: failure.message }
}

/// A pool of nodes. Outputs: `id`, `name`.
struct Pool;

#[async_trait]
impl RestKind for Pool {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.ContainerService/managedClusters/agentPools",
        version: VERSION,
        path: "{cluster}/agentPools/{name}",
        constants: &[
            ("/properties/mode", "\"User\""),
            ("/properties/type", "\"VirtualMachineScaleSets\""),
            ("/properties/osType", "\"Linux\""),
        ],
        fields: &[
            Field::plain("machine", "/properties/vmSize"),
            Field::plain("disk_gb", "/properties/osDiskSizeGB"),
            Field::plain("subnet", "/properties/vnetSubnetID"),
            Field { absent: "{}", ..Field::plain("labels", "/properties/nodeLabels") },
            Field::seen("scaling", |one| {
                let count = |name: &str| one["properties"][name].as_u64().unwrap_or_default();
                json!({ "min": count("minCount"), "max": count("maxCount") })
            }),
            Field::code("gpu_taint", "/properties/nodeTaints", taints, |one| {
                let all = one["properties"]["nodeTaints"].as_array().into_iter().flatten();
                json!(all.into_iter().any(|taint| taint == GPU_TAINT))
            }),
            // One of each is chosen: see `prepare`.
            Field::seen("zones", |one| match &one["properties"]["availabilityZones"] {
                Value::Null => json!([]),
                zones => zones.clone(),
            }),
            Field::seen("markets", |one| {
                json!([if one["properties"]["scaleSetPriority"] == "Spot" { SPOT } else { ON_DEMAND }])
            }),
        ],
        in_place: &["labels", "scaling"],
        ignored: &["body.properties.count"],
        settings: &[("min_nodes", "/body/properties/minCount"), ("max_nodes", "/body/properties/maxCount")],
        marks: Marks::Member("/properties/tags"),
        ..Table::USUAL
    };

    fn state(document: &Value) -> State {
        explained(state(Self::TABLE, document), &document["properties"]["status"]["provisioningError"])
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            // A size without zones in the region has none.
            "zones" => seen.as_array().is_some_and(Vec::is_empty) || is_within(seen, wanted),
            "markets" => is_within(seen, wanted),
            "machine" => has_machine(wanted, seen),
            "labels" => {
                wanted.as_object().is_some_and(|all| all.iter().all(|(key, value)| seen.get(key) == Some(value)))
            }
            _ => false,
        }
    }

    fn alternatives(wanted: &Spec) -> Vec<String> {
        alternatives(wanted).iter().map(Alternative::name).collect()
    }

    /// Of a pool without a zone, those of all zones.
    fn tried(wanted: &Spec, seen: &Spec) -> Vec<usize> {
        let first = |field: &str| seen.get(field)?.as_array()?.first()?.as_str();
        let (market, zone) = (first("markets"), first("zones"));
        let machines = machine_names(seen.get("machine"));
        let is_seen = |one: &Alternative<'_>| {
            let is_machine = machines.iter().any(|name| name.eq_ignore_ascii_case(one.machine));
            let is_bought = Some(one.market) == market && is_machine;
            is_bought && (zone.is_none() || one.zone.is_none() || one.zone == zone)
        };
        let all = alternatives(wanted).into_iter().enumerate();
        all.filter(|(_, one)| is_seen(one)).map(|(place, _)| place).collect()
    }

    async fn choose(api: &Api, spec: &Spec, rest: &[usize]) -> Result<Vec<Candidate>> {
        let machines = machine_names(spec.get("machine"));
        let offers = offers(api, &machines).await?;
        let candidates = candidates(&alternatives(spec), rest, &offers);
        if !candidates.is_empty() {
            return Ok(candidates);
        }
        let region = textnlp_cloud::Cloud::region(api);
        let why = |(name, offer): (&String, &Offer)| {
            let why = offer.refused.as_ref()?;
            Some(format!("{region} does not offer {name} to this subscription: {why}"))
        };
        let refused: Vec<String> = offers.iter().filter_map(why).collect();
        let why = match refused.is_empty() {
            true => format!("no zone is left that has {}", machines.join(" or ")),
            false => refused.join("; "),
        };
        Err(without_capacity(why).hint("choose another `gpu.size` or region"))
    }

    async fn prepare(_api: &Api, spec: &Spec, document: &mut Value, chosen: &Candidate) -> Result<()> {
        let Some(one) = alternatives(spec).into_iter().nth(chosen.first()) else {
            return Err(without_capacity("no market of machines is left".to_owned()));
        };
        buy(document, &Alternative { zone: one.zone.filter(|_| !chosen.without_zone), ..one });
        Ok(())
    }

    fn complete(spec: &Spec, document: &mut Value) {
        scale(document, spec.get("scaling").unwrap_or(&Value::Null));
    }

    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        let mut all = alternatives(&request.object.spec).into_iter();
        match (all.next(), all.len()) {
            (Some(only), 0) => buy(document, &only),
            // Only an offer tells whether the size is tied to zones, and in which it is.
            (Some(first), _) if request.is_planned => buy(document, &Alternative { zone: None, ..first }),
            _ => return Err("Azure did not show in which zone it is".to_owned()),
        }
        Ok(())
    }

    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<Pending>> {
        match field {
            "scaling" => rewrite::<Self>(api, id, |document| scale(document, wanted)).await,
            // The labels of the system stay (Azure/AKS#3152).
            "labels" => {
                rewrite::<Self>(api, id, |document| {
                    for (key, value) in wanted.as_object().into_iter().flatten() {
                        let at = get(document, "/properties/nodeLabels").cloned();
                        let mut labels = at.unwrap_or_else(|| json!({}));
                        labels[key] = value.clone();
                        set(document, "/properties/nodeLabels", labels);
                    }
                })
                .await
            }
            _ => Err(invalid("change", id, &format!("`{field}` does not change in place"))),
        }
    }
}

/// When a cluster is upgraded, by the name of the window: its version, or the images of its nodes
/// (<https://learn.microsoft.com/azure/aks/planned-maintenance>).
struct Maintenance;

#[async_trait]
impl RestKind for Maintenance {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.ContainerService/managedClusters/maintenanceConfigurations",
        version: VERSION,
        path: "{cluster}/maintenanceConfigurations/{name}",
        constants: &[
            ("/properties/maintenanceWindow/schedule/weekly/intervalWeeks", "1"),
            ("/properties/maintenanceWindow/utcOffset", "\"+00:00\""),
        ],
        fields: &[
            Field::code("day", "/properties/maintenanceWindow/schedule/weekly/dayOfWeek", Value::clone, day),
            Field::plain("at", "/properties/maintenanceWindow/startTime"),
            Field::plain("hours", "/properties/maintenanceWindow/durationHours"),
        ],
        in_place: &["day", "at", "hours"],
        marks: Marks::Part,
        ..Table::USUAL
    };

    /// Without the day of its start, which AKS sets, and refuses in a change once it is past
    /// (hashicorp/terraform-provider-azurerm#22762), and with one schedule, whatever others have set.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<Pending>> {
        let Some(row) = Self::TABLE.field(field) else {
            return Err(invalid("change", id, &format!("`{field}` does not change in place")));
        };
        rewrite::<Self>(api, id, |document| {
            let window = &mut document["properties"]["maintenanceWindow"];
            if let Some(members) = window.as_object_mut() {
                members.shift_remove("startDate");
            }
            let day = window["schedule"]["weekly"]["dayOfWeek"].clone();
            window["schedule"] = json!({ "weekly": { "dayOfWeek": day, "intervalWeeks": 1 } });
            window["utcOffset"] = json!("+00:00");
            set(document, row.member, wanted.clone());
        })
        .await
    }
}

/// The day of a window of every week in UTC.
fn day(document: &Value) -> Value {
    let window = &document["properties"]["maintenanceWindow"];
    let weekly = &window["schedule"]["weekly"];
    let is_usual = weekly["intervalWeeks"] == 1 && matches!(window["utcOffset"].as_str(), None | Some("+00:00"));
    if is_usual { weekly["dayOfWeek"].clone() } else { Value::Null }
}

/// The count between both bounds: the autoscaler owns it otherwise, and a stale one would be a change
/// (hashicorp/terraform-provider-azurerm#33143, kubernetes/autoscaler#3240).
fn scale(document: &mut Value, scaling: &Value) {
    let bound = |name: &str| scaling[name].as_u64().unwrap_or_default();
    let (least, most) = (bound("min"), bound("max"));
    let properties = &mut document["properties"];
    let count = properties["count"].as_u64().unwrap_or(least).clamp(least, most.max(least));
    properties["enableAutoScaling"] = json!(true);
    properties["minCount"] = json!(least);
    properties["maxCount"] = json!(most);
    properties["count"] = json!(count);
}

/// The machines, their zone, and how they are paid.
fn buy(document: &mut Value, chosen: &Alternative<'_>) {
    let properties = &mut document["properties"];
    properties["vmSize"] = json!(chosen.machine);
    if let Some(zone) = chosen.zone {
        properties["availabilityZones"] = json!([zone]);
    }
    if chosen.market == SPOT {
        properties["scaleSetPriority"] = json!("Spot");
        properties["scaleSetEvictionPolicy"] = json!("Delete");
        properties["spotMaxPrice"] = json!(-1.0);
    }
}

fn taints(is_on: &Value) -> Value {
    if *is_on == true { json!([GPU_TAINT]) } else { Value::Null }
}

/// Where and how the machines of a pool are bought.
#[derive(Debug, PartialEq, Eq)]
struct Alternative<'a> {
    market: &'a str,
    machine: &'a str,
    /// `None` for any zone.
    zone: Option<&'a str>,
}

impl Alternative<'_> {
    fn name(&self) -> String {
        let Self { market, machine, zone } = self;
        match zone {
            Some(zone) => format!("{market} {zone} {machine}"),
            None => format!("{market} {machine}"),
        }
    }
}

fn without_capacity(why: String) -> Error {
    Error::new(ErrorKind::Capacity, "create", "a node pool").because(why)
}

/// What the region offers of machines, by their names: nothing is known of one that the list does not have, or if no list comes.
async fn offers(api: &Api, machines: &[&str]) -> Result<BTreeMap<String, Offer>> {
    match api.session.compute.offers(textnlp_cloud::Cloud::region(api), machines).await {
        Err(error) if !error.kind.may_pass() => Ok(BTreeMap::new()),
        answer => answer,
    }
}

/// Those of these alternatives that are offered.
fn candidates(all: &[Alternative<'_>], rest: &[usize], offers: &BTreeMap<String, Offer>) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for (place, one) in rest.iter().filter_map(|place| Some((*place, all.get(*place)?))) {
        let offer = offers.get(one.machine);
        if offer.is_some_and(|offer| offer.refused.is_some()) {
            continue;
        }
        let is_same = |other: &Candidate| {
            let other = &all[other.first()];
            other.market == one.market && other.machine == one.machine
        };
        match offer.map(|offer| offer.zones.as_slice()) {
            // A size that is not tied to zones fails with them (Azure/AKS#1444): those of a market are the same.
            Some([]) => match found.iter_mut().find(|other| is_same(other)) {
                Some(same) => same.places.push(place),
                None => found.push(Candidate { without_zone: true, ..Candidate::of(place) }),
            },
            Some(zones) => {
                if one.zone.is_none_or(|zone| zones.iter().any(|name| name == zone)) {
                    found.push(Candidate::of(place));
                }
            }
            // Nothing is known of the size: AKS decides where it is (skypilot-org/skypilot#10119).
            None => found.push(Candidate { without_zone: true, ..Candidate::of(place) }),
        }
    }
    found
}

/// The alternatives of a pool, best first: in each market, each machine in each zone.
fn alternatives(spec: &Spec) -> Vec<Alternative<'_>> {
    let list = |field: &str| -> Vec<&str> {
        spec.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let (markets, zones, machines) = (list("markets"), list("zones"), machine_names(spec.get("machine")));
    let of_machine = |market, machine| -> Vec<Alternative<'_>> {
        match zones.is_empty() {
            true => vec![Alternative { market, machine, zone: None }],
            false => zones.iter().map(|zone| Alternative { market, machine, zone: Some(zone) }).collect(),
        }
    };
    let of_market = |market| machines.iter().flat_map(move |machine| of_machine(market, *machine));
    markets.into_iter().flat_map(of_market).collect()
}

fn is_within(seen: &Value, wanted: &Value) -> bool {
    let (Some(seen), Some(wanted)) = (seen.as_array(), wanted.as_array()) else { return false };
    !seen.is_empty() && seen.iter().all(|one| wanted.contains(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::machines::NODES;

    #[test]
    fn versions_are_least_ones() {
        let seen = minor(&json!("1.34.1"));
        assert_eq!(seen, json!("1.34"));
        assert!(Cluster::fits("version", &Value::Null, &seen));
        assert!(Cluster::fits("version", &json!("1.33"), &seen) && !Cluster::fits("version", &json!("1.35"), &seen));
    }

    #[test]
    fn pools_of_all_sizes_have_names_of_their_own() {
        assert_eq!((pool_name("cpu"), pool_name("cpu-medium")), ("cpu".to_owned(), "cpumedium".to_owned()));
        let suffixes = NODES.suffixes();
        let names: BTreeSet<String> = suffixes.iter().map(|suffix| pool_name(&format!("{CPU}-{suffix}"))).collect();
        assert_eq!(names.len(), suffixes.len(), "{names:?}");
        assert!(names.contains("cpud16sv5") && !names.contains(CPU), "{names:?}");
    }

    #[test]
    fn alternatives_are_markets_in_zones() {
        let wanted = Spec::of(&json!({ "zones": ["1", "2"], "markets": [SPOT, ON_DEMAND], "machine": "NC4" }));
        let seen =
            |market: &str, zones: Value| Spec::of(&json!({ "zones": zones, "markets": [market], "machine": "NC4" }));
        let tried = |market, zones| Pool::tried(&wanted, &seen(market, zones));
        assert_eq!(tried(SPOT, json!(["1"])), [0]);
        assert_eq!(tried(SPOT, json!(["2"])), [1]);
        assert_eq!(tried(ON_DEMAND, json!([])), [2, 3]);
        assert!(tried(ON_DEMAND, json!(["3"])).is_empty());
        assert_eq!(Pool::alternatives(&wanted), ["spot 1 NC4", "spot 2 NC4", "on-demand 1 NC4", "on-demand 2 NC4"]);
        assert!(
            Pool::fits("zones", &json!(["1", "2"]), &json!(["2"])) && Pool::fits("zones", &json!(["1"]), &json!([]))
        );
        assert!(!Pool::fits("zones", &json!(["1"]), &json!(["2"])));
    }

    fn offer(zones: &[&str]) -> Offer {
        Offer { zones: zones.iter().map(|zone| (*zone).to_owned()).collect(), ..Offer::default() }
    }

    #[test]
    fn only_zones_that_azure_lists_are_tried() {
        let wanted = Spec::of(&json!({ "zones": ["1", "2", "3"], "markets": [SPOT, ON_DEMAND], "machine": "NC4" }));
        let all = alternatives(&wanted);
        let chosen = |rest: &[usize], zones: Option<&[&str]>| -> Vec<(Vec<usize>, bool)> {
            let offers = zones.map(|zones| ("NC4".to_owned(), offer(zones))).into_iter().collect();
            let found = candidates(&all, rest, &offers);
            found.into_iter().map(|one| (one.places, one.without_zone)).collect()
        };
        assert_eq!(chosen(&[5, 2, 0, 1], Some(&["2", "3"])), [(vec![5], false), (vec![2], false), (vec![1], false)]);
        assert!(chosen(&[0], Some(&["2"])).is_empty());
        // Not tied to zones: one for each market.
        assert_eq!(chosen(&[4, 3, 5, 0, 1, 2], Some(&[])), [(vec![4, 3, 5], true), (vec![0, 1, 2], true)]);
        // Unknown: none is left out, and none is the same as another.
        assert_eq!(chosen(&[1, 0], None), [(vec![1], true), (vec![0], true)]);
        let anywhere = Spec::of(&json!({ "zones": [], "markets": [ON_DEMAND], "machine": "D4" }));
        let offers = BTreeMap::from([("D4".to_owned(), offer(&["1"]))]);
        assert_eq!(candidates(&alternatives(&anywhere), &[0], &offers), [Candidate::of(0)]);
        assert_eq!(Pool::alternatives(&anywhere), ["on-demand D4"]);
    }

    #[test]
    fn several_machines_are_tried_in_each_market_where_they_are_offered() {
        let wanted = Spec::of(&json!({ "zones": ["1", "2"], "markets": [SPOT, ON_DEMAND], "machine": ["NC4", "NC8"] }));
        let all = alternatives(&wanted);
        let names = ["spot 1 NC4", "spot 2 NC4", "spot 1 NC8", "spot 2 NC8", "on-demand 1 NC4", "on-demand 2 NC4"];
        assert_eq!(Pool::alternatives(&wanted)[..6], names);
        let second = Spec::of(&json!({ "zones": ["2"], "markets": [SPOT], "machine": "NC8" }));
        assert_eq!(Pool::tried(&wanted, &second), [3]);
        assert!(Pool::fits("machine", &json!(["NC4", "NC8"]), &json!("NC8")));
        assert!(!Pool::fits("machine", &json!(["NC4", "NC8"]), &json!("NC16")));
        // The first is refused to the subscription, and the second is not tied to zones.
        let refused = Offer { refused: Some("not for this subscription".to_owned()), ..Offer::default() };
        let offers = BTreeMap::from([("NC4".to_owned(), refused), ("NC8".to_owned(), offer(&[]))]);
        let found = candidates(&all, &[0, 1, 2, 3, 4, 5, 6, 7], &offers);
        let places: Vec<Vec<usize>> = found.into_iter().map(|one| one.places).collect();
        assert_eq!(places, [[2, 3], [6, 7]]);
        let mut document = json!({ "properties": { "vmSize": ["NC4", "NC8"] } });
        buy(&mut document, &all[2]);
        assert_eq!(document["properties"]["vmSize"], "NC8");
    }

    #[test]
    fn the_count_stays_within_its_bounds() {
        let mut document = json!({ "properties": { "count": 7 } });
        scale(&mut document, &json!({ "min": 1, "max": 3 }));
        assert_eq!(document["properties"]["count"], 3);
        let mut new = json!({ "properties": {} });
        scale(&mut new, &json!({ "min": 2, "max": 5 }));
        assert_eq!(new["properties"], json!({ "count": 2, "enableAutoScaling": true, "minCount": 2, "maxCount": 5 }));
    }

    #[test]
    fn members_are_read_as_they_are_written() {
        let list = json!(["203.0.113.0/24"]);
        let profile =
            |ranges: Value| json!({ "properties": { "apiServerAccessProfile": { "authorizedIPRanges": ranges } } });
        assert_eq!(allowed(&profile(ranges(&list))), list);
        assert_eq!(allowed(&profile(ranges(&Value::Null))), Value::Null);
        let id = json!("/subscriptions/s/resourceGroups/g/x");
        assert_eq!(identified(&json!({ "identity": identity(&id) })), id);
    }

    #[test]
    fn the_address_is_that_of_the_kubeconfig() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let ca = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n";
        let config = format!(
            "clusters:\n- name: c\n  cluster:\n    server: https://c.example:443\n    certificate-authority-data: {}\n",
            encode(ca)
        );
        let answer = json!({ "kubeconfigs": [{ "name": "clusterUser", "value": encode(&config) }] });
        assert_eq!(address(&answer), Some(("https://c.example:443".to_owned(), ca.to_owned())));
        assert_eq!(address(&json!({ "kubeconfigs": [] })), None);
    }

    #[test]
    fn failed_states_name_their_cause() {
        let pool = json!({ "properties": { "provisioningState": "Failed",
            "status": { "provisioningError": { "code": "ReconcileFailed", "details": [{ "code": "ZonalAllocationFailed", "message": "m" }] } } } });
        assert_eq!(Pool::state(&pool), State::Failed { code: "ZonalAllocationFailed".to_owned(), why: "m".to_owned() });
    }
}
