//! AKS: clusters, node pools, and operations that it starts without a request.

use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use super::cloud::{Cloud, Object, guid, put, put_missing, text};
use super::compute::{CORES, SPOT, Size, limit, size, used};
use super::identity::{
    ACR_PULL, CLUSTER_ADMIN, IDENTITY_OPERATOR, NETWORK_CONTRIBUTOR, ROLES, ZONE_CONTRIBUTOR, add_principal,
};
use super::kinds::{Answer, Call, KIND, Kind, Special, Style, keep_busy, listed, parent, users};
use super::network::{network_of, subnet_ranges};
use super::policies::disallowed;
use super::problem::{Problem, bad, conflict, missing};
use super::resources::get;
use crate::clock::later;
use crate::{Behaviour, Market, Source};

/// Versions, the newest first, and whether only the long-term support plan has them.
const VERSIONS: &[(&str, bool)] =
    &[("1.34.1", false), ("1.34.0", false), ("1.33.5", false), ("1.33.4", false), ("1.32.9", false), ("1.31.13", true)];
const DEFAULT: &str = VERSIONS[2].0;
/// The taint and label of spot nodes: <https://learn.microsoft.com/azure/aks/spot-node-pool>.
const SPOT_LABEL: &str = "kubernetes.azure.com/scalesetpriority";
const SPOT_TAINT: &str = "kubernetes.azure.com/scalesetpriority=spot:NoSchedule";
/// Addresses of a subnet that Azure keeps.
const RESERVED: u64 = 5;
/// Nodes of a pool: <https://learn.microsoft.com/azure/aks/quotas-skus-regions>.
const MAX_NODES: i64 = 1_000;
/// How long a network is busy after AKS marked it.
const MARKED: std::ops::Range<u64> = 0..30;

/// Access to a cluster; users sign in with `kubelogin`:
/// <https://learn.microsoft.com/azure/aks/kubelogin-authentication>.
const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
current-context: <TITLE>
preferences: {}
clusters:
- name: <TITLE>
  cluster:
    certificate-authority-data: <CERTIFICATE>
    server: <SERVER>
contexts:
- name: <TITLE>
  context:
    cluster: <TITLE>
    user: <USER>_<TITLE>
users:
- name: <USER>_<TITLE>
  user:
    exec:
      apiVersion: client.authentication.k8s.io/v1beta1
      command: kubelogin
      args: [get-token, --server-id, <AUDIENCE>]
      provideClusterInfo: false
";

/// What is fixed in a pool: <https://learn.microsoft.com/azure/aks/manage-node-pools>.
const FIXED: &[&str] = &[
    "/properties/vmSize",
    "/properties/osType",
    "/properties/osSKU",
    "/properties/osDiskType",
    "/properties/vnetSubnetID",
    "/properties/podSubnetID",
    "/properties/availabilityZones",
    "/properties/scaleSetPriority",
    "/properties/maxPods",
    "/properties/enableNodePublicIP",
    "/properties/enableFIPS",
    "/properties/gpuProfile/driver",
];

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: "Microsoft.ContainerService/managedClusters",
        version: "2025-05-01",
        models: [
            "containerservice.v2025_05_01.models ManagedCluster",
            "containerservice.v2025_05_01.models TagsObject",
            "containerservice.v2025_05_01.models ManagedCluster",
            "containerservice.v2025_05_01.models ManagedClusterListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        seconds: [240, 60, 240],
        is_name: |name| super::kinds::is_name(name, 1..=63, "-_"),
        kept: &[
            "/identity",
            "/sku",
            "/properties/azurePortalFQDN",
            "/properties/currentKubernetesVersion",
            "/properties/dnsPrefix",
            "/properties/fqdn",
            "/properties/identityProfile",
            "/properties/kubernetesVersion",
            "/properties/networkProfile",
            "/properties/nodeResourceGroup",
            "/properties/oidcIssuerProfile/issuerURL",
            "/properties/resourceUID",
        ],
        defaults: &[
            ("/sku", r#"{"name":"Base","tier":"Free"}"#),
            ("/properties/disableLocalAccounts", "false"),
            ("/properties/enableRBAC", "true"),
            ("/properties/maxAgentPools", "100"),
            ("/properties/powerState/code", "\"Running\""),
            ("/properties/supportPlan", "\"KubernetesOfficial\""),
            ("/properties/servicePrincipalProfile/clientId", "\"msi\""),
            ("/properties/networkProfile/networkPlugin", "\"azure\""),
            ("/properties/networkProfile/loadBalancerSku", "\"standard\""),
            ("/properties/networkProfile/outboundType", "\"loadBalancer\""),
            ("/properties/networkProfile/serviceCidr", "\"10.0.0.0/16\""),
            ("/properties/networkProfile/dnsServiceIP", "\"10.0.0.10\""),
            ("/properties/networkProfile/ipFamilies", "[\"IPv4\"]"),
        ],
        fixed: &[
            "/properties/dnsPrefix",
            "/properties/nodeResourceGroup",
            "/properties/networkProfile/networkPlugin",
            "/properties/networkProfile/podCidr",
            "/properties/networkProfile/serviceCidr",
            "/properties/apiServerAccessProfile/enablePrivateCluster",
        ],
        accept: accept_cluster,
        finish: finish_cluster,
        end: end_cluster,
        show: show_cluster,
        ..KIND
    },
    Kind {
        kind: "Microsoft.ContainerService/managedClusters/agentPools",
        version: "2025-05-01",
        models: [
            "containerservice.v2025_05_01.models AgentPool",
            "",
            "containerservice.v2025_05_01.models AgentPool",
            "containerservice.v2025_05_01.models AgentPoolListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        seconds: [90, 60, 90],
        tags: 0,
        is_name: |name| {
            (1..=12).contains(&name.len())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
                && name.starts_with(|c: char| c.is_ascii_lowercase())
        },
        references: &["/properties/vnetSubnetID"],
        kept: FIXED,
        fixed: FIXED,
        holds: parent,
        accept: accept_pool,
        finish: finish_pool,
        refuse_delete: refuse_pool,
        end: end_pool,
        show: show_pool,
        ..KIND
    },
    Kind {
        kind: "Microsoft.ContainerService/managedClusters/maintenanceConfigurations",
        version: "2025-05-01",
        models: [
            "containerservice.v2025_05_01.models MaintenanceConfiguration",
            "",
            "containerservice.v2025_05_01.models MaintenanceConfiguration",
            "containerservice.v2025_05_01.models MaintenanceConfigurationListResult",
        ],
        accepted: 200,
        has_state: false,
        tags: 0,
        is_name: |name| WINDOWS.contains(&name),
        accept: accept_window,
        ..KIND
    },
];

/// The names of maintenance windows.
const WINDOWS: [&str; 3] = ["default", "aksManagedAutoUpgradeSchedule", "aksManagedNodeOSUpgradeSchedule"];

pub(crate) const SPECIALS: &[Special] = &[
    credential("Microsoft.ContainerService/managedClusters/listClusterUserCredential", user_credential),
    credential("Microsoft.ContainerService/managedClusters/listClusterAdminCredential", admin_credential),
    get(
        "Microsoft.ContainerService/locations/kubernetesVersions[]",
        "2025-05-01",
        "containerservice.v2025_05_01.models KubernetesVersionListResult",
        versions,
    ),
];

const fn credential(path: &'static str, handler: super::kinds::Handler) -> Special {
    let answer = "containerservice.v2025_05_01.models CredentialResults";
    Special { method: "POST", path, version: "2025-05-01", request: "", answer, handler }
}

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "one operation a cluster and its pools: 409 OperationNotAllowed, the code of quotas too",
        Source::Report("Azure/azure-workload-identity#417"),
    ),
    rule("AKS changes clusters without a request and refuses writes meanwhile", Source::Report("cilium/cilium#25944")),
    rule("a second write of a pool may cancel the first", Source::Report("Azure/AKS#1913")),
    rule("an upgrade of the version keeps pool changes out", Source::Report("Azure/AKS#2880")),
    rule("a write replaces all labels of a pool", Source::Report("Azure/AKS#3152")),
    rule(
        "spot pools get a taint, a label and a policy unasked",
        Source::Report("hashicorp/terraform-provider-azurerm#14024"),
    ),
    rule(
        "a surge on a spot pool is 400 InvalidParameter",
        Source::Report("hashicorp/terraform-provider-azurerm#19355"),
    ),
    rule("other pools get a surge unasked", Source::Report("Azure/terraform-azurerm-aks#522")),
    rule(
        "many members of a pool cannot change: 400 PropertyChangeNotAllowed",
        Source::Report("hashicorp/terraform-provider-azurerm#10951"),
    ),
    rule(
        "leaving out taints that the service set counts as a change",
        Source::Report("pulumi/pulumi-azure-native#959"),
    ),
    rule(
        "pools are not added through the cluster, and its list cannot be left out",
        Source::Report("pulumi/pulumi-azure-native#579"),
    ),
    rule(
        "a version that is not offered, or only with long-term support, is refused",
        Source::Report("dspace-group/simphera-reference-architecture-azure#29"),
    ),
    rule(
        "a version that is left out comes back filled",
        Source::Recording(
            "https://github.com/Azure/azure-cli/tree/dev/src/azure-cli/azure/cli/command_modules/acs/tests",
        ),
    ),
    rule(
        "a network that is not Succeeded fails the pool's operation, and a pool makes its network busy",
        Source::Report("Azure/AKS#4522"),
    ),
    rule("nodes without a way out fail late: VMExtensionProvisioningError", Source::Report("Azure/AKS#1607")),
    rule(
        "a cluster without the right on its network fails late",
        Source::Report("hashicorp/terraform-provider-azurerm#3912"),
    ),
    rule("a private zone of one's own needs rights at each write", Source::Report("Azure/AKS#3470")),
    rule(
        "an identity of nodes needs Managed Identity Operator for the cluster's identity",
        Source::Documentation("https://learn.microsoft.com/azure/aks/use-managed-identity"),
    ),
    rule(
        "a policy on tags refuses the group of nodes late, inside ReconcileResourceGroupError",
        Source::Report("MicrosoftDocs/azure-docs#99846"),
    ),
    rule(
        "too few cores are ErrCode_InsufficientVCPUQuota, surge included",
        Source::Report("1ChristianAlex/motordesk#14"),
    ),
    rule(
        "too few spot cores are OperationNotAllowed with LowPriorityCores",
        Source::Report("scylladb/scylla-cluster-tests#4994"),
    ),
    rule("a size without stock is 409 SkuNotAvailable", Source::Report("Azure-Samples/azuresandbox#70")),
    rule("the same may come in the operation", Source::Report("mddazure/azure-vwan-microhack#9")),
    rule(
        "too little stock fails the operation: ZonalAllocationFailed or AllocationFailed; the pool stays in Failed",
        Source::Report("openshift/release#5182"),
    ),
    rule(
        "zones for a size without zones are AvailabilityZoneNotSupported",
        Source::Report("MicrosoftDocs/azure-aks-docs#416"),
    ),
    rule(
        "a subnet too small for nodes and surge is InsufficientSubnetSize",
        Source::Report("Azure/terraform-azurerm-aks#428"),
    ),
    rule("a disruption budget without evictions refuses upgrades: UnsatisfiablePDB", Source::Report("Azure/AKS#4860")),
    rule(
        "a disruption budget without evictions fails the deletion of a pool: PodDrainFailure in DeleteVMSSAgentPoolFailed",
        Source::Report("hashicorp/terraform-provider-azurerm#10411"),
    ),
    rule(
        "the autoscaler changes the count of a pool between reads, and a count beyond its bounds is refused",
        Source::Report("hashicorp/terraform-provider-azurerm#33143"),
    ),
    rule(
        "a pool without zones may find no machines where one in a zone does",
        Source::Report("skypilot-org/skypilot#10145"),
    ),
    rule("nodes pull images as their own identity, not as that of the cluster", Source::Report("Azure/AKS#4275")),
    rule("a Failed cluster may repair itself", Source::Report("Azure/AKS#2227")),
    rule("evictions lower the count of a spot pool without an error", Source::Report("Azure/AKS#2030")),
    rule("the driver of GPUs is installed unless disabled", Source::Report("MicrosoftDocs/azure-docs#17730")),
    rule(
        "a group of nodes that something outside refers to fails the deletion: ResourceGroupDeletionBlocked",
        Source::Report("Azure/AKS#1016"),
    ),
    rule(
        "a route table in the group of nodes that a subnet outside uses keeps the cluster in Deleting until it is detached",
        Source::Report("Azure/AKS#847"),
    ),
    rule(
        "a change may never end: the cluster stays Updating while its pools succeed",
        Source::Report("Azure/AKS#2341"),
    ),
    rule(
        "a change that failed with an internal error leaves the cluster in Updating",
        Source::LeftOut("Azure/AKS#1447: for callers it is a change that never ends, which is a rule here"),
    ),
    rule(
        "a cluster is listed after the deletion of its group, and comes back with a new group of that name",
        Source::LeftOut("Azure/AKS#51: a defect of the preview of 2017"),
    ),
    rule(
        "a cluster of AKS Automatic may be refused for a quota of another subscription",
        Source::LeftOut("Azure/AKS#5808: no plan creates such clusters"),
    ),
    rule(
        "a write of a pool whose node image is too old is 400 BadRequest",
        Source::LeftOut(
            "Azure/AKS#4975: images have no age here, and plans have AKS replace them by the channel NodeImage",
        ),
    ),
    rule(
        "a pool with volumes of one zone cannot be replaced by one in another zone",
        Source::LeftOut(
            "hashicorp/terraform-provider-azurerm#22268, Azure/AKS#3292: volumes are objects inside of clusters, which are not simulated",
        ),
    ),
    rule(
        "an identity that was created again under its name is not known to the machines that had the first one",
        Source::LeftOut(
            "Azure/aad-pod-identity#725, Azure/aad-pod-identity#880: scale sets are not simulated, and pods get tokens by federated credentials",
        ),
    ),
    rule(
        "the only system pool cannot be deleted",
        Source::Documentation("https://learn.microsoft.com/azure/aks/use-system-pools"),
    ),
    rule(
        "without local accounts there is no administrator's credential, and Microsoft Entra integration is needed",
        Source::Documentation("https://learn.microsoft.com/azure/aks/manage-local-accounts-managed-azure-ad"),
    ),
    rule(
        "with Azure RBAC a role, and without it a group, lets a principal use a cluster",
        Source::Documentation("https://learn.microsoft.com/azure/aks/manage-azure-rbac"),
    ),
    rule(
        "a maintenance window has one of three names, one schedule, 4 to 24 hours, and begins on the day of its creation unless set",
        Source::Documentation("https://learn.microsoft.com/azure/aks/planned-maintenance"),
    ),
    rule(
        "a maintenance window that begins on a past day is refused, also in a change that sends the day of its creation",
        Source::Report("hashicorp/terraform-provider-azurerm#22762"),
    ),
    rule(
        "the group of nodes is called MC_GROUP_CLUSTER_REGION and goes with the cluster",
        Source::Documentation("https://learn.microsoft.com/azure/aks/faq"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.ContainerService", what, source }
}

fn number(body: &Value, pointer: &str) -> i64 {
    body.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn is_set(body: &Value, pointer: &str) -> bool {
    body.pointer(pointer) == Some(&json!(true))
}

/// The pools of a cluster.
fn pools<'c>(cloud: &'c Cloud, cluster: &str) -> impl Iterator<Item = (&'c String, &'c Object)> {
    let below = format!("{cluster}/agentpools/");
    cloud.objects.iter().filter(move |(key, _)| key.starts_with(&below))
}

/// The full version of a wanted one such as `1.33`.
fn version(wanted: &str, plan: &str, code: &str) -> Result<&'static str, Problem> {
    if wanted.is_empty() {
        return Ok(DEFAULT);
    }
    let fits = |row: &&(&str, bool)| row.0 == wanted || row.0.starts_with(&format!("{wanted}."));
    match VERSIONS.iter().find(fits) {
        Some((version, is_long)) if !is_long || plan == "AKSLongTermSupport" => Ok(version),
        Some((version, _)) => {
            Err(bad(code, format!("Version {version} is only available for Long-Term Support (LTS).")))
        }
        None => Err(bad(code, format!("Version {wanted} is not supported in this region."))),
    }
}

fn is_older(one: &str, other: &str) -> bool {
    let parts = |text: &str| -> Vec<u64> { text.split('.').filter_map(|part| part.parse().ok()).collect() };
    parts(one) < parts(other)
}

/// The object ids of the identities that a cluster runs as.
fn identities(body: &Value) -> Vec<String> {
    let assigned = body.pointer("/identity/userAssignedIdentities").and_then(Value::as_object);
    let assigned = assigned.into_iter().flatten().map(|(_, one)| text(one, "/principalId").to_owned());
    let own = text(body, "/identity/principalId").to_owned();
    assigned.chain([own]).filter(|id| !id.is_empty()).collect()
}

/// Whether a cluster's identity has one of these roles, or one that contains them.
fn may(cloud: &Cloud, body: &Value, scope: &str, role: &str) -> bool {
    let roles = [role, ROLES[0].1, ROLES[1].1];
    identities(body).iter().any(|principal| cloud.has_role(principal, scope, &roles))
}

fn accept_cluster(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if text(body, "/properties/dnsPrefix").is_empty() && text(body, "/properties/fqdnSubdomain").is_empty() {
        return Err(
            bad("InvalidParameter", "Required parameter dnsPrefix is missing (null or empty).").target("dnsPrefix")
        );
    }
    let plan = text(body, "/properties/supportPlan").to_owned();
    let wanted = version(text(body, "/properties/kubernetesVersion"), &plan, "K8sVersionNotSupported")?;
    if let Some(current) = before.map(|before| text(before, "/properties/currentKubernetesVersion"))
        && is_older(wanted, current)
    {
        return Err(bad(
            "OperationNotAllowed",
            format!("Downgrading version from {current} to {wanted} is not supported."),
        ));
    }
    let is_upgrade =
        before.is_some_and(|before| is_older(text(before, "/properties/currentKubernetesVersion"), wanted));
    if is_upgrade && cloud.conduct.keeps_pods {
        let message = "The upgrade is blocked: the disruption budget textnlp/one has minAvailable(1) and one pod.";
        return Err(bad("UnsatisfiablePDB", message));
    }
    put_missing(body, "/properties/kubernetesVersion", wanted.into());
    put(body, "/properties/currentKubernetesVersion", wanted.into());
    accept_identities(cloud, before, body)?;
    if is_set(body, "/properties/disableLocalAccounts") && !is_set(body, "/properties/aadProfile/managed") {
        return Err(bad(
            "BadRequest",
            "Disabling local accounts is only supported with managed Microsoft Entra integration.",
        ));
    }
    if body.pointer("/properties/aadProfile").is_some() {
        put(body, "/properties/aadProfile/tenantID", cloud.tenant.clone().into());
    }
    let location = text(body, "/location").replace(' ', "").to_lowercase();
    let seed = guid(&call.key);
    let prefix = text(body, "/properties/dnsPrefix").to_owned();
    let host = format!("{prefix}-{}.hcp.{location}.azmk8s.io", &seed[..8]);
    put_missing(body, "/properties/fqdn", host.clone().into());
    put_missing(body, "/properties/azurePortalFQDN", host.replacen('.', ".portal.", 1).into());
    put_missing(body, "/properties/resourceUID", seed.replace('-', "").into());
    put_missing(body, "/properties/nodeResourceGroup", format!("MC_{}_{}_{location}", call.group, call.name()).into());
    if is_set(body, "/properties/oidcIssuerProfile/enabled") {
        let issuer = format!("https://{location}.oic.prod-aks.azure.com/{}/{seed}/", cloud.tenant);
        put_missing(body, "/properties/oidcIssuerProfile/issuerURL", issuer.into());
    }
    let zone = text(body, "/properties/apiServerAccessProfile/privateDNSZone").to_owned();
    if zone.starts_with('/') && !may(cloud, body, &zone, ZONE_CONTRIBUTOR) {
        let message = format!("The cluster's identity has no permission on the private DNS zone {zone}.");
        return Err(bad("CustomPrivateDNSZoneMissingPermissionError", message));
    }
    if text(body, "/properties/networkProfile/networkPluginMode") == "overlay" {
        put_missing(body, "/properties/networkProfile/podCidr", "10.244.0.0/16".into());
    }
    accept_pools(cloud, call, before, body)
}

/// Fills the ids of the cluster's and the nodes' identities.
fn accept_identities(cloud: &mut Cloud, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    match text(body, "/identity/type") {
        "SystemAssigned" if before.is_none() => {
            let mut made = json!({});
            add_principal(cloud, &mut made);
            put(body, "/identity/principalId", made["properties"]["principalId"].clone());
            put(body, "/identity/tenantId", cloud.tenant.clone().into());
        }
        "UserAssigned" => {
            let sent = body
                .pointer("/identity/userAssignedIdentities")
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default();
            for id in sent.keys() {
                let known = cloud.objects.get(&id.to_lowercase()).ok_or_else(|| missing(id))?;
                let of = |member: &str| known.body["properties"][member].clone();
                body["identity"]["userAssignedIdentities"][id.as_str()] =
                    json!({ "principalId": of("principalId"), "clientId": of("clientId") });
            }
        }
        "SystemAssigned" => {}
        _ => return Err(bad("BadRequest", "The cluster needs an identity.").target("identity")),
    }
    let nodes = text(body, "/properties/identityProfile/kubeletidentity/resourceId").to_owned();
    if !nodes.is_empty() && before.is_none() {
        let known =
            cloud.objects.get(&nodes.to_lowercase()).map(|one| one.body.clone()).ok_or_else(|| missing(&nodes))?;
        if !may(cloud, body, &nodes, IDENTITY_OPERATOR) {
            let message = format!(
                "The cluster's identity has no permission \
                 Microsoft.ManagedIdentity/userAssignedIdentities/assign/action on {nodes}."
            );
            return Err(bad("CustomKubeletIdentityMissingPermissionError", message));
        }
        put(body, "/properties/identityProfile/kubeletidentity/clientId", known["properties"]["clientId"].clone());
        put(body, "/properties/identityProfile/kubeletidentity/objectId", known["properties"]["principalId"].clone());
    }
    Ok(())
}

/// Takes the list of pools out of a cluster: each is a resource of its own.
fn accept_pools(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let list = body["properties"].as_object_mut().and_then(|members| members.shift_remove("agentPoolProfiles"));
    let list = list.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    let names: Vec<&str> = list.iter().map(|one| text(one, "/name")).collect();
    // PATCH carries no list: the pools are as they were.
    if before.is_some() && call.method == "PATCH" {
        return Ok(());
    }
    if list.is_empty() {
        let message = "Required parameter agentPoolProfiles is missing (null).";
        return Err(
            bad(if before.is_some() { "BadRequest" } else { "InvalidParameter" }, message).target("agentPoolProfiles")
        );
    }
    if before.is_some() {
        let live: Vec<String> = pools(cloud, &call.key).map(|(_, one)| text(&one.body, "/name").to_owned()).collect();
        if let Some(new) = names.iter().find(|name| !live.iter().any(|one| one == *name)) {
            let message = format!(
                "A new agent pool was introduced. Adding agent pools to an existing cluster is not allowed through \
                 managed cluster operations. For agent pool specific change, please use per agent pool operations: \
                 {new}."
            );
            return Err(bad("BadRequest", message));
        }
        return Ok(());
    }
    if !list.iter().any(|one| text(one, "/mode") == "System") {
        return Err(
            bad("InvalidParameter", "The cluster needs a node pool of mode System.").target("agentPoolProfiles")
        );
    }
    let mut made = Vec::new();
    for profile in &list {
        let mut properties = profile.clone();
        let name = text(profile, "/name").to_owned();
        properties.as_object_mut().map(|members| members.shift_remove("name"));
        let mut pool = json!({ "name": name, "properties": properties });
        let key = format!("{}/agentpools/{name}", call.key);
        fill_pool(cloud, body, &key, None, &mut pool)?;
        let id = format!("{}/agentPools/{name}", call.id());
        put(&mut pool, "/id", id.as_str().into());
        put(&mut pool, "/type", KINDS[1].kind.into());
        put(&mut pool, "/properties/provisioningState", "Creating".into());
        made.push((key, id, pool));
    }
    let now = cloud.now();
    for (key, id, body) in made {
        cloud.objects.insert(key, Object { id, body, lag: (now, now), ghost_until: None });
    }
    Ok(())
}

fn finish_cluster(cloud: &mut Cloud, key: &str, is_new: bool) -> Result<(), Value> {
    let Some(object) = cloud.objects.get(key).cloned() else { return Ok(()) };
    let failed = |cloud: &mut Cloud, error: Value| {
        let keys: Vec<String> = pools(cloud, key).map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|pool| cloud.set_state(pool, "Failed"));
        if cloud.conduct.self_heals {
            let (due, key) = (cloud.due(Duration::from_secs(120)), key.to_owned());
            cloud.defer(due, move |cloud| {
                let _ = provision_all(cloud, &key);
                cloud.set_state(&key, "Succeeded");
            });
        }
        Err(error)
    };
    let body = &object.body;
    if let Some(problem) = disallowed(cloud, &node_group(cloud, body), &json!({ "tags": body["tags"] })) {
        let mut outer =
            Problem::new(403, "ReconcileResourceGroupError", "Reconcile of the node resource group failed.");
        outer.details.push((problem.code, problem.message));
        return failed(cloud, outer.error());
    }
    for subnet in
        pools(cloud, key).map(|(_, one)| text(&one.body, "/properties/vnetSubnetID").to_owned()).collect::<Vec<_>>()
    {
        if !subnet.is_empty() && !may(cloud, body, &subnet, NETWORK_CONTRIBUTOR) {
            let inner = format!(
                "The client does not have authorization to perform action \
                 'Microsoft.Network/virtualNetworks/subnets/join/action' over scope '{subnet}'."
            );
            let outer = Problem::new(403, "CreateRoleAssignmentError", "The cluster's identity lacks a right.")
                .detail("LinkedAuthorizationFailed", inner);
            return failed(cloud, outer.error());
        }
    }
    if !cloud.objects.contains_key(&node_group(cloud, body).to_lowercase()) {
        add_node_group(cloud, key, body);
    }
    if let Err(error) = provision_all(cloud, key) {
        return failed(cloud, error);
    }
    let until = cloud.lagged(&cloud.conduct.reconciliation);
    let key = key.to_owned();
    if is_new && until > cloud.now() {
        // It begins once this operation is over.
        let due = cloud.due(Duration::from_millis(1));
        cloud.defer(due, move |cloud| keep_busy(cloud, &key, until, "Updating"));
    }
    Ok(())
}

fn provision_all(cloud: &mut Cloud, cluster: &str) -> Result<(), Value> {
    let keys: Vec<String> = pools(cloud, cluster).map(|(key, _)| key.clone()).collect();
    for pool in keys {
        let state = cloud.objects.get(&pool).map(|one| text(&one.body, "/properties/provisioningState").to_owned());
        if state.as_deref() != Some("Succeeded") {
            provision(cloud, &pool)?;
            cloud.set_state(&pool, "Succeeded");
        }
    }
    Ok(())
}

fn node_group(cloud: &Cloud, cluster: &Value) -> String {
    format!("/subscriptions/{}/resourceGroups/{}", cloud.subscription, text(cluster, "/properties/nodeResourceGroup"))
}

/// The group of nodes, with the identity of nodes unless the cluster was given one.
fn add_node_group(cloud: &mut Cloud, key: &str, cluster: &Value) {
    let group = node_group(cloud, cluster);
    let location = cluster["location"].clone();
    let mut body = json!({ "id": group, "name": text(cluster, "/properties/nodeResourceGroup"), "location": location,
        "type": "Microsoft.Resources/resourceGroups", "managedBy": text(cluster, "/id"),
        "properties": { "provisioningState": "Succeeded" } });
    if cluster["tags"].is_object() {
        body["tags"] = cluster["tags"].clone();
    }
    cloud.put(&group, body);
    if text(cluster, "/properties/identityProfile/kubeletidentity/resourceId").is_empty() {
        let name = format!("{}-agentpool", text(cluster, "/name"));
        let id = format!("{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}");
        let mut identity = json!({ "id": id, "name": name, "location": location,
            "type": "Microsoft.ManagedIdentity/userAssignedIdentities" });
        add_principal(cloud, &mut identity);
        let of = |member: &str| identity["properties"][member].clone();
        let profile = json!({ "resourceId": id, "clientId": of("clientId"), "objectId": of("principalId") });
        if let Some(object) = cloud.objects.get_mut(key) {
            put(&mut object.body, "/properties/identityProfile/kubeletidentity", profile);
        }
        cloud.put(&id, identity);
    }
}

fn end_pool(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    if cloud.conduct.keeps_pods {
        let inner = json!({
            "code": "PodDrainFailure",
            "message": "Node 'aks-vmss000001' failed to be drained with error: 'Drain did not complete pods [one] within 10m0s'",
        });
        let message = format!("VMSSAgentPoolReconciler retry failed: {inner}");
        return Err(Problem::new(400, "DeleteVMSSAgentPoolFailed", message).error());
    }
    give_back(cloud, key);
    Ok(())
}

fn end_cluster(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let Some(object) = cloud.objects.get(key).cloned() else { return Ok(()) };
    let group = node_group(cloud, &object.body).to_lowercase();
    let below = format!("{group}/");
    let outside = cloud.objects.keys().filter(|one| one.starts_with(&below)).flat_map(|one| users(cloud, one));
    let outside: Vec<String> = outside.filter(|id| !id.to_lowercase().starts_with(&below)).collect();
    if cloud.blocked.contains(&group) || !outside.is_empty() {
        let message = format!("Deletion of resource group '{group}' failed as resources in it could not be deleted.");
        let inner = format!(
            "Public IP address {below}providers/Microsoft.Network/publicIPAddresses/kubernetes can not be deleted \
             since it is still allocated to {outside:?}."
        );
        return Err(Problem::new(409, "ResourceGroupDeletionBlocked", message)
            .detail("PublicIPAddressCannotBeDeleted", inner)
            .error());
    }
    let keys: Vec<String> = pools(cloud, key).map(|(key, _)| key.clone()).collect();
    keys.iter().for_each(|pool| give_back(cloud, pool));
    super::kinds::remove(cloud, &group);
    Ok(())
}

/// Whether the deletion of a cluster waits: a subnet outside of the group of its nodes uses a route table in it.
pub(crate) fn is_held(cloud: &Cloud, key: &str) -> bool {
    let cluster = cloud.objects.get(key).map(|one| &one.body).filter(|body| text(body, "/type") == KINDS[0].kind);
    let Some(cluster) = cluster else { return false };
    let below = format!("{}/", node_group(cloud, cluster).to_lowercase());
    let tables = format!("{below}providers/microsoft.network/routetables/");
    let mut used_by = cloud.objects.keys().filter(|one| one.starts_with(&tables)).flat_map(|one| users(cloud, one));
    used_by.any(|id| !id.to_lowercase().starts_with(&below))
}

fn show_cluster(cloud: &Cloud, key: &str, body: &mut Value) {
    let one = |(key, object): (&String, &Object)| {
        let mut pool = super::kinds::shown(cloud, key, object);
        let name = pool["name"].clone();
        let mut profile = pool["properties"].take();
        profile["name"] = name;
        profile
    };
    let list: Vec<Value> = pools(cloud, key).map(one).collect();
    put(body, "/properties/agentPoolProfiles", list.into());
    // Its ids come back with other letters.
    let id = text(body, "/id").replace("/resourceGroups/", "/resourcegroups/");
    put(body, "/id", id.into());
    put(body, "/type", "Microsoft.ContainerService/ManagedClusters".into());
}

fn show_pool(_: &Cloud, _: &str, body: &mut Value) {
    let id = text(body, "/id").replace("/resourceGroups/", "/resourcegroups/");
    put(body, "/id", id.into());
}

fn is_spot(pool: &Value) -> bool {
    text(pool, "/properties/scaleSetPriority") == "Spot"
}

/// The nodes that an upgrade adds.
fn surge(pool: &Value) -> i64 {
    let count = number(pool, "/properties/count");
    let wanted = text(pool, "/properties/upgradeSettings/maxSurge");
    let added = match wanted.strip_suffix('%').map(str::parse::<i64>) {
        Some(Ok(percent)) => (count * percent.clamp(0, 100) + 99) / 100,
        _ => wanted.parse().unwrap_or(0),
    };
    added.clamp(0, MAX_NODES)
}

/// Checks a pool and fills what the service sets.
fn fill_pool(
    cloud: &Cloud,
    cluster: &Value,
    key: &str,
    before: Option<&Value>,
    pool: &mut Value,
) -> Result<(), Problem> {
    let machine = text(pool, "/properties/vmSize").to_owned();
    let Some(size) = size(&machine) else {
        return Err(
            bad("VMSizeNotSupported", format!("Virtual Machine size {machine} is not supported.")).target("vmSize")
        );
    };
    let current = text(cluster, "/properties/currentKubernetesVersion");
    let wanted = match text(pool, "/properties/orchestratorVersion") {
        "" => before.map_or(current, |before| text(before, "/properties/currentOrchestratorVersion")).to_owned(),
        wanted => {
            version(wanted, text(cluster, "/properties/supportPlan"), "AgentPoolK8sVersionNotSupported")?.to_owned()
        }
    };
    if is_older(current, &wanted) {
        let message = format!("Node pool version {wanted} and control plane version {current} are incompatible.");
        return Err(bad("NodePoolMcVersionIncompatible", message));
    }
    put(pool, "/properties/orchestratorVersion", wanted.clone().into());
    put(pool, "/properties/currentOrchestratorVersion", wanted.into());
    let (least, count, most) =
        ["minCount", "count", "maxCount"].map(|name| number(pool, &format!("/properties/{name}"))).into();
    if is_set(pool, "/properties/enableAutoScaling") {
        put_missing(pool, "/properties/count", least.into());
        let count = number(pool, "/properties/count");
        if !(least..=most).contains(&count) {
            let message = format!("The count {count} of the pool is not between minCount {least} and maxCount {most}.");
            return Err(bad("InvalidParameter", message).target("count"));
        }
    } else if count == 0 && pool.pointer("/properties/count").is_none() {
        put(pool, "/properties/count", 1.into());
    }
    if !(0..=MAX_NODES).contains(&number(pool, "/properties/count")) {
        let message = format!("The count of the pool is not between 0 and {MAX_NODES}.");
        return Err(bad("InvalidParameter", message).target("count"));
    }
    if is_spot(pool) {
        if !text(pool, "/properties/upgradeSettings/maxSurge").is_empty() {
            return Err(bad("InvalidParameter", "Spot pools can't set max surge.").target("upgradeSettings.maxSurge"));
        }
        put_missing(pool, "/properties/scaleSetEvictionPolicy", "Delete".into());
        put_missing(pool, "/properties/spotMaxPrice", json!(-1.0));
        if before.is_none() {
            let mut taints =
                pool.pointer("/properties/nodeTaints").and_then(Value::as_array).cloned().unwrap_or_default();
            if !taints.iter().any(|one| one == SPOT_TAINT) {
                taints.push(SPOT_TAINT.into());
            }
            put(pool, "/properties/nodeTaints", taints.into());
            let mut labels = pool.pointer("/properties/nodeLabels").cloned().unwrap_or_else(|| json!({}));
            labels[SPOT_LABEL] = "spot".into();
            put(pool, "/properties/nodeLabels", labels);
        }
    } else {
        put_missing(pool, "/properties/upgradeSettings/maxSurge", "10%".into());
    }
    let zones = pool.pointer("/properties/availabilityZones").and_then(Value::as_array);
    if zones.is_some_and(|zones| !zones.is_empty()) && !size.5 {
        let message = format!(
            "The zone(s) for resource 'agentpool' are not supported. The size {machine} has no zones in this region."
        );
        return Err(bad("AvailabilityZoneNotSupported", message));
    }
    for (member, value) in [
        ("mode", json!("User")),
        ("osType", json!("Linux")),
        ("osSKU", json!("Ubuntu")),
        ("osDiskSizeGB", json!(128)),
        ("osDiskType", json!("Managed")),
        ("kubeletDiskType", json!("OS")),
        (
            "maxPods",
            json!(if text(cluster, "/properties/networkProfile/networkPluginMode") == "overlay" { 250 } else { 30 }),
        ),
        ("type", json!("VirtualMachineScaleSets")),
        ("scaleDownMode", json!("Delete")),
        ("enableFIPS", json!(false)),
        ("powerState", json!({ "code": "Running" })),
        ("nodeImageVersion", json!("AKSUbuntu-2204gen2containerd-202511.01.0")),
    ] {
        put_missing(pool, &format!("/properties/{member}"), value);
    }
    if size.4 > 0 {
        put_missing(pool, "/properties/gpuProfile/driver", "Install".into());
    }
    put(pool, "/properties/eTag", cloud.random.uuid().into());
    check_room(cloud, cluster, key, pool, size)
}

/// Refuses a pool without quota, stock or addresses.
fn check_room(cloud: &Cloud, cluster: &Value, key: &str, pool: &Value, size: &Size) -> Result<(), Problem> {
    let region = text(cluster, "/location").replace(' ', "").to_lowercase();
    let count = number(pool, "/properties/count");
    let needed = size.2 * (count + surge(pool));
    let left = |name: &str| limit(cloud, &region, name) - used(cloud, &region, name, key);
    if is_spot(pool) && left(SPOT) < size.2 * count {
        let message = format!(
            "Operation could not be completed as it results in exceeding approved LowPriorityCores quota. Location: \
             {region}, Current Limit: {}, Additional Required: {}.",
            limit(cloud, &region, SPOT),
            size.2 * count
        );
        return Err(conflict("OperationNotAllowed", message));
    }
    let short = [size.1, CORES].into_iter().find(|name| !is_spot(pool) && left(name) < needed);
    if let Some(name) = short {
        let message = format!(
            "Insufficient vcpu quota requested {needed}, remaining {} for family {name} for region {region}. Surge \
             nodes would also consume vcpu quota.",
            left(name)
        );
        return Err(bad("ErrCode_InsufficientVCPUQuota", message));
    }
    let is_closed = cloud.restricted.contains(&(region.clone(), size.0.to_owned()));
    let none = count > 0
        && places(&region, pool).iter().all(|zone| cloud.capacity.left(zone, size.0, market(pool)) == Some(0));
    if is_closed || none && !cloud.conduct.late_capacity {
        return Err(conflict("SkuNotAvailable", sku_message(size.0, &region)));
    }
    let subnet = cloud.objects.get(&text(pool, "/properties/vnetSubnetID").to_lowercase());
    let room = subnet.map(|one| subnet_ranges(&one.body).iter().map(|(_, bits)| 1_u64 << (32 - bits)).sum::<u64>());
    let nodes = u64::try_from(count + surge(pool)).unwrap_or(0);
    if let Some(room) = room.filter(|room| nodes + RESERVED > *room) {
        let message =
            format!("Pre-allocated IPs {nodes} exceeds IPs available {} in the subnet.", room.saturating_sub(RESERVED));
        return Err(bad("InsufficientSubnetSize", message));
    }
    Ok(())
}

fn sku_message(size: &str, region: &str) -> String {
    format!(
        "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size}' is \
         currently not available in location '{region}'. Please try another size or deploy to a different location or \
         different zone."
    )
}

fn market(pool: &Value) -> Market {
    if is_spot(pool) { Market::Spot } else { Market::OnDemand }
}

/// Where the stock of a pool is: its zones, or the region.
fn places(region: &str, pool: &Value) -> Vec<String> {
    let zones = pool.pointer("/properties/availabilityZones").and_then(Value::as_array).cloned().unwrap_or_default();
    match zones.is_empty() {
        true => vec![region.to_owned()],
        false => zones.iter().filter_map(Value::as_str).map(|zone| format!("{region}-{zone}")).collect(),
    }
}

fn accept_pool(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let cluster = cloud.objects.get(&call.parent()).map(|one| one.body.clone()).unwrap_or_default();
    let set = before.and_then(|before| before.pointer("/properties/nodeTaints")).and_then(Value::as_array);
    let is_kept = |taint: &Value| {
        let sent = body.pointer("/properties/nodeTaints").and_then(Value::as_array);
        sent.is_some_and(|sent| sent.contains(taint))
    };
    if set.is_some_and(|set| set.iter().filter(|one| *one == SPOT_TAINT).any(|one| !is_kept(one))) {
        let message = "Changing property 'properties.nodeTaints' is not allowed.";
        return Err(bad("PropertyChangeNotAllowed", message).target("nodeTaints"));
    }
    let old = before.map(|before| text(before, "/properties/mode"));
    if old == Some("System") && text(body, "/properties/mode") == "User" && is_last_system(cloud, &call.key) {
        return Err(last_system());
    }
    fill_pool(cloud, &cluster, &call.key, before, body)
}

fn accept_window(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if call.name() == WINDOWS[0] {
        return Ok(());
    }
    let schedules = body.pointer("/properties/maintenanceWindow/schedule").and_then(Value::as_object);
    if schedules.map_or(0, |all| all.values().filter(|one| !one.is_null()).count()) != 1 {
        let message = "A maintenance window needs exactly one schedule.";
        return Err(bad("InvalidParameter", message).target("maintenanceWindow.schedule"));
    }
    if !(4..=24).contains(&number(body, "/properties/maintenanceWindow/durationHours")) {
        let message = "The duration of a maintenance window must be between 4 and 24 hours.";
        return Err(bad("InvalidParameter", message).target("maintenanceWindow.durationHours"));
    }
    put_missing(body, "/properties/maintenanceWindow/utcOffset", "+00:00".into());
    let today = cloud.now().strftime("%Y-%m-%d").to_string();
    let start = text(body, "/properties/maintenanceWindow/startDate");
    if !start.is_empty() && *start < *today {
        return Err(bad("InvalidParameter", "The start date of a maintenance window must not be in the past.")
            .target("maintenanceWindow.startDate"));
    }
    put_missing(body, "/properties/maintenanceWindow/startDate", today.into());
    Ok(())
}

fn is_last_system(cloud: &Cloud, key: &str) -> bool {
    let is_system = |one: &Object| text(&one.body, "/properties/mode") == "System";
    let cluster = parent(key);
    !pools(cloud, &cluster).any(|(other, one)| other != key && is_system(one))
        && cloud.objects.get(key).is_some_and(is_system)
}

fn last_system() -> Problem {
    bad("BadRequest", "There has to be at least one node pool of mode System.")
}

fn refuse_pool(cloud: &Cloud, key: &str) -> Result<(), Problem> {
    if is_last_system(cloud, key) { Err(last_system()) } else { Ok(()) }
}

fn finish_pool(cloud: &mut Cloud, key: &str, is_new: bool) -> Result<(), Value> {
    if !is_new {
        give_back(cloud, key);
    }
    provision(cloud, key)
}

/// Gives a pool its nodes.
fn provision(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let Some(pool) = cloud.objects.get(key).map(|one| one.body.clone()) else { return Ok(()) };
    let cluster = cloud.objects.get(&parent(key)).map(|one| one.body.clone()).unwrap_or_default();
    let region = text(&cluster, "/location").replace(' ', "").to_lowercase();
    let error = |code: &str, message: String| Err(json!({ "code": code, "message": message }));
    let subnet = text(&pool, "/properties/vnetSubnetID").to_lowercase();
    if let Some(network) = cloud.objects.get(&network_of(&subnet)).filter(|_| !subnet.is_empty()) {
        let state = text(&network.body, "/properties/provisioningState");
        if state != "Succeeded" || cloud.running(&network_of(&subnet)).is_some() {
            let inner = format!("Cannot proceed because the virtual network {} is in {state} state.", network.id);
            let problem = bad("SetVNetOwnershipFailed", "Setting the ownership of the virtual network failed.");
            return Err(problem.detail("VirtualNetworkNotInSucceededState", inner).error());
        }
        let outbound = text(&cluster, "/properties/networkProfile/outboundType");
        let gateway = cloud.objects.get(&subnet).and_then(|one| one.body.pointer("/properties/natGateway/id"));
        if outbound == "userAssignedNATGateway" && gateway.is_none() {
            let message =
                "VM has reported a failure when processing extension 'vmssCSE'. Error message: exit status=50.";
            return error("VMExtensionProvisioningError", message.to_owned());
        }
    }
    let size = text(&pool, "/properties/vmSize").to_owned();
    let places = places(&region, &pool);
    let count = u64::try_from(number(&pool, "/properties/count")).unwrap_or(0);
    let zones = places.len().max(1) as u64;
    for (index, place) in places.iter().enumerate() {
        let share = count / zones + u64::from((index as u64) < count % zones);
        let left = cloud.capacity.left(place, &size, market(&pool));
        if share > 0 && left == Some(0) && cloud.conduct.late_capacity {
            return error("SkuNotAvailable", sku_message(&size, &region));
        }
        if !cloud.capacity.take(place, &size, market(&pool), share) {
            for (earlier, place) in places.iter().enumerate().take(index) {
                let share = count / zones + u64::from((earlier as u64) < count % zones);
                cloud.capacity.give(place, &size, market(&pool), share);
            }
            let code = if place.contains('-') { "ZonalAllocationFailed" } else { "AllocationFailed" };
            let message = format!(
                "Allocation failed. We do not have sufficient capacity for the requested VM size {size} in {place}. \
                 Read more about improving likelihood of allocation success at http://aka.ms/allocation-guidance"
            );
            return error(code, message);
        }
    }
    if let Some(object) = cloud.objects.get_mut(key) {
        put(&mut object.body, "/properties/powerState/code", "Running".into());
    }
    cloud.grants.insert(format!("{key}/nodes"), cloud.now());
    if !subnet.is_empty() {
        let until = cloud.lagged(&MARKED);
        let network = network_of(&subnet);
        let due = cloud.due(Duration::from_millis(1));
        if until > later(cloud.now(), Duration::from_secs(1)) {
            cloud.defer(due, move |cloud| keep_busy(cloud, &network, until, "Updating"));
        }
    }
    Ok(())
}

/// Gives the nodes of a pool back, if it has any.
fn give_back(cloud: &mut Cloud, key: &str) {
    let Some(pool) = cloud.objects.get(key).map(|one| one.body.clone()) else { return };
    if cloud.grants.remove(&format!("{key}/nodes")).is_none() {
        return;
    }
    let region =
        cloud.objects.get(&parent(key)).map(|one| text(&one.body, "/location").to_lowercase()).unwrap_or_default();
    let places = places(&region, &pool);
    let (count, zones) = (u64::try_from(number(&pool, "/properties/count")).unwrap_or(0), places.len().max(1) as u64);
    for (index, place) in places.iter().enumerate() {
        let share = count / zones + u64::from((index as u64) < count % zones);
        cloud.capacity.give(place, text(&pool, "/properties/vmSize"), market(&pool), share);
    }
}

fn versions(_: &mut Cloud, _: &Call) -> Result<Answer, Problem> {
    let mut minors: Vec<Value> = Vec::new();
    for (version, is_long) in VERSIONS {
        let minor = version.rsplit_once('.').map_or("", |(minor, _)| minor);
        if !minors.iter().any(|one| one["version"] == minor) {
            let plans: &[&str] =
                if *is_long { &["AKSLongTermSupport"] } else { &["KubernetesOfficial", "AKSLongTermSupport"] };
            minors.push(json!({ "version": minor, "capabilities": { "supportPlan": plans }, "patchVersions": {} }));
        }
        if let Some(last) = minors.last_mut() {
            last["patchVersions"][*version] = json!({ "upgrades": [] });
            if *version == DEFAULT {
                last["isDefault"] = true.into();
            }
        }
    }
    Ok(Answer::ok(json!({ "values": minors })))
}

fn user_credential(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    credentials(cloud, call, "clusterUser")
}

fn admin_credential(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let cluster = cloud.objects.get(&call.key).ok_or_else(|| missing(call.id()))?;
    if is_set(&cluster.body, "/properties/disableLocalAccounts") {
        let message = "Getting static credential is not allowed because this cluster is set to disable local accounts.";
        return Err(bad("BadRequest", message));
    }
    credentials(cloud, call, "clusterAdmin")
}

/// A kubeconfig with the cluster's address and certificate.
fn credentials(cloud: &Cloud, call: &Call, name: &str) -> Result<Answer, Problem> {
    let cluster = cloud.objects.get(&call.key).ok_or_else(|| missing(call.id()))?;
    if !listed(cloud, &call.key).iter().any(|(key, _)| **key == call.key) && cluster.lag.0 > cloud.now() {
        return Err(missing(call.id()));
    }
    if text(&cluster.body, "/properties/provisioningState") == "Creating" {
        return Err(bad("ControlPlaneNotFound", "Unable to get the credential of a cluster that is being created."));
    }
    let own = (format!("https://{}:443", text(&cluster.body, "/properties/fqdn")), String::new());
    let (server, certificate) = cloud.endpoint.clone().unwrap_or(own);
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let title = call.name();
    let values = [
        ("TITLE", title),
        ("USER", name),
        ("SERVER", &server),
        ("CERTIFICATE", &encode(&certificate)),
        ("AUDIENCE", super::tokens::CLUSTERS),
    ];
    let config =
        values.iter().fold(KUBECONFIG.to_owned(), |text, (name, value)| text.replace(&format!("<{name}>"), value));
    Ok(Answer::ok(json!({ "kubeconfigs": [{ "name": name, "value": encode(&config) }] })))
}

/// Whether a principal may use a cluster's API server as its administrator.
pub(crate) fn may_use(cloud: &Cloud, principal: &str, cluster: &str) -> bool {
    let key = cluster.to_lowercase();
    let Some(body) = cloud.objects.get(&key).map(|one| &one.body) else { return false };
    match is_set(body, "/properties/aadProfile/enableAzureRBAC") {
        true => cloud.has_role(principal, &key, &[CLUSTER_ADMIN]),
        false => {
            let groups = body.pointer("/properties/aadProfile/adminGroupObjectIDs").and_then(Value::as_array);
            groups.is_some_and(|groups| groups.iter().any(|one| one == principal))
        }
    }
}

/// Whether the identity of a cluster's nodes may pull images from a registry.
pub(crate) fn may_pull(cloud: &Cloud, cluster: &str, registry: &str) -> bool {
    let Some(body) = cloud.objects.get(&cluster.to_lowercase()).map(|one| &one.body) else { return false };
    let nodes = text(body, "/properties/identityProfile/kubeletidentity/objectId");
    !nodes.is_empty() && cloud.has_role(nodes, registry, &[ACR_PULL])
}
