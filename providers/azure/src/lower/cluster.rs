//! The cluster of a site: a control plane with its system pool, the identity that it acts as, who may use it, and its pools.

use serde_json::{Value, json};
use textnlp_cloud::{GPU_NODES, MOST_MACHINES, by_machine};
use textnlp_provider::cluster::POOL;
use textnlp_provider::component::{Cluster, GpuPool, MaintenanceWindow};
use textnlp_provider::settings::Spot;
use textnlp_provider::{CloudId, Ownership, ResourceId};

use super::{Lowering, MODELS, NETWORK, output};
use crate::kinds::cluster::{CPU, GPU, ON_DEMAND, SPOT, WINDOWS, pool_name};
use crate::kinds::identity::{KEY_USER, NETWORK_CONTRIBUTOR};
use crate::names;
use crate::tables::machines::{MACHINES, Machine, NODES, SYSTEM, named, of_size};
use crate::tables::zones;

/// The part of a cluster that is its nodes without GPU.
pub(crate) const NODES_PART: &str = "nodes";
/// The most characters of the name of an identity that this program gives.
const MOST: usize = 63;
/// The most characters of a DNS prefix: <https://learn.microsoft.com/azure/aks/troubleshoot-aks-cluster-creation-issues>.
const MOST_OF_PREFIX: usize = 54;
/// The most characters of the name of the group that AKS creates for its nodes.
const MOST_OF_NODE_GROUP: usize = 80;
/// The disk of a node in GiB: images and models.
const DISK_GB: u32 = 128;
/// The same with a GPU: its images and models are larger.
const GPU_DISK_GB: u32 = 256;
/// The nodes of the system pool where data is protected: name resolution and metrics outlive a node
/// (<https://learn.microsoft.com/azure/aks/use-system-pools#recommendations>).
const PROTECTED_SYSTEM: u32 = 2;
/// The channel with tested versions of the minor version.
const CHANNEL: &str = "stable";

/// The ranges of pods and services in an existing network, and the DNS of the cluster: shared addresses (RFC 6598), which networks
/// seldom have. AKS accepts them (Azure/AKS#5299).
const PODS: &str = "100.64.0.0/16";
const SERVICES: &str = "100.65.0.0/16";
const DNS: &str = "100.65.0.10";

impl Lowering<'_> {
    pub(super) fn cluster(&mut self, cluster: &Cluster) {
        let name = names::cluster(self.site);
        if let Some(existing) = &self.component.existing {
            // An existing cluster is read, and never changed: its operator has set up its pools.
            let id = crate::table::cluster_id(&self.site.account, existing.as_str());
            let ownership = id.ok().or_else(|| CloudId::new(existing.as_str()).ok()).map(Ownership::External);
            self.main("azure.cluster", json!({ "name": existing }), ownership.unwrap_or_default());
            return;
        }
        if !cluster.access.is_empty() {
            let cause = "identities of a cluster are not set up on Azure yet";
            let fix = "remove `cluster.access`; assign `Azure Kubernetes Service RBAC Cluster Admin` yourself";
            self.problem("access", cause, fix);
        }
        let identity = self.of_group(json!({ "name": names::of(self.site, "cluster", MOST) }));
        let Some(identity) = self.part("identity", "azure.identity", identity) else { return };
        let network = cluster.network.as_str();
        let principal = output(&identity, "principal");
        let is_new = self.site.subnets.is_empty();
        // AKS creates load balancers in the network (hashicorp/terraform-provider-azurerm#3912); in an existing one in the subnet only.
        let scope = self.output_of(network, if is_new { "vnet" } else { "subnet" }, "id");
        let mut before = vec![self.role("network-role", &scope, NETWORK_CONTRIBUTOR, &principal)];
        let mut key = Value::Null;
        if self.site.protect_data {
            let vault = self.output_of(MODELS, "vault", "id");
            before.push(self.role("key-role", &vault, KEY_USER, &principal));
            key = self.output_of(MODELS, "key", "uri");
        }
        let site = self.site.cluster.as_deref();
        let min = site.map_or(1, |site| site.min_nodes);
        let max = site.and_then(|site| site.max_nodes).unwrap_or(min).max(min);
        if !is_new && cluster.allow_from.as_ref().is_some_and(Vec::is_empty) {
            let fix = "write the addresses of the NAT gateway of the existing subnet";
            self.problem("allow_from", "an empty list is every network on AKS, and nodes reach it by the NAT", fix);
        }
        // Nodes reach the API server through the gateway (<https://learn.microsoft.com/azure/aks/api-server-authorized-ip-ranges>).
        let allow_from = cluster.allow_from.as_ref().map(|networks| {
            let mut all: Vec<Value> = networks.iter().map(|network| json!(network)).collect();
            // `preflight` compares the list with the addresses of an existing one.
            if is_new {
                all.push(self.output_of(network, "address", "ip"));
            }
            all
        });
        let beside = |field: &str, existing: &str| match is_new {
            true => self.output_of(network, "vnet", field),
            false => json!(existing),
        };
        let spec = self.of_group(json!({
            "name": name,
            "version": cluster.version,
            "tier": if self.site.protect_data { "Standard" } else { "Free" },
            "dns_prefix": names::of_site(self.site, MOST_OF_PREFIX),
            "node_group": names::of(self.site, "nodes", MOST_OF_NODE_GROUP),
            "identity": output(&identity, "id"),
            "subnet": self.output_of(network, "subnet", "id"),
            "machine": SYSTEM,
            "count": if self.site.protect_data { PROTECTED_SYSTEM } else { 1 },
            "pods": beside("pods", PODS),
            "services": beside("services", SERVICES),
            "dns": beside("dns", DNS),
            "deployer_access": true,
            "allow_from": allow_from,
            "channel": CHANNEL,
            "key": key,
        }));
        let main = self.main("azure.cluster", spec, Ownership::Ours);
        for one in before {
            self.after(one);
        }
        // The network has one writer at a time, and AKS is one of them (Azure/AKS#4522).
        self.after(self.part_of(NETWORK, "database-subnet").filter(|_| is_new));
        if let Some(window) = self.site.maintenance {
            for (part, name) in WINDOWS {
                self.part(part, "azure.maintenance", weekly(&main, name, &window));
            }
        }
        let general = match NODES.of_site(self.site) {
            Ok(general) => general,
            Err((field, cause, fix)) => return self.problem(field, cause, fix),
        };
        let Some(machine) = general.types.first().and_then(|name| named(name)) else { return };
        let name = pool_name(&general.named(CPU));
        let pool = self.pool(&name, &[machine], &main, network, json!({ "min": min, "max": max }), &[ON_DEMAND]);
        let nodes = self.part(&general.named(NODES_PART), "azure.pool", pool);
        if let Some(gpu) = &cluster.gpu {
            self.gpu_nodes(gpu, &main, network);
            // A cluster has one change at a time (Azure/AKS#1913).
            self.after(nodes);
        }
    }

    fn gpu_nodes(&mut self, pool: &GpuPool, cluster: &ResourceId, network: &str) {
        let known = MACHINES.iter().filter_map(|machine| Some((machine.name, machine.gpu?.2)));
        for (cause, fix) in textnlp_cloud::wrong_machines(pool, MOST_MACHINES, known) {
            self.problem("gpu.machines", cause, fix);
        }
        let machines: Vec<&Machine> = match pool.machines.is_empty() {
            true => of_size(pool.size).into_iter().collect(),
            false => pool.machines.iter().filter_map(|name| named(name)).collect(),
        };
        if machines.is_empty() {
            return;
        }
        let alike = MACHINES.iter().filter(|one| one.gpu.is_some_and(|(.., count)| count == pool.gpus()));
        let alike: Vec<_> = alike.map(Machine::node).collect();
        let tried: Vec<_> = machines.iter().map(|machine| machine.node()).collect();
        if let Some((cause, fix)) = NODES.small_gpus(self.site, &tried, &alike) {
            self.problem("gpu.machines", cause, fix);
        }
        let markets: &[&str] = match pool.spot {
            Spot::Never => &[ON_DEMAND],
            Spot::Prefer => &[SPOT, ON_DEMAND],
            Spot::Only => &[SPOT],
        };
        let scaling = json!({ "min": pool.count, "max": pool.most() });
        let pool = self.pool(GPU, &machines, cluster, network, scaling, markets);
        self.part(GPU_NODES, "azure.pool", pool);
    }

    fn pool(
        &self,
        name: &str,
        machines: &[&Machine],
        cluster: &ResourceId,
        network: &str,
        scaling: Value,
        markets: &[&str],
    ) -> Value {
        let has_gpu = machines.iter().any(|machine| machine.gpu.is_some());
        json!({
            "name": name,
            "cluster": output(cluster, "id"),
            "machine": by_machine(machines.iter().map(|machine| machine.name.into())),
            "disk_gb": if has_gpu { GPU_DISK_GB } else { DISK_GB },
            "subnet": self.output_of(network, "subnet", "id"),
            "labels": { POOL: if has_gpu { GPU } else { CPU } },
            "scaling": scaling,
            "gpu_taint": has_gpu,
            // A pool of CPUs is wherever Azure has room; one with GPUs is tried zone by zone (skypilot-org/skypilot#10145).
            "zones": if has_gpu { zones::zones(&self.site.region) } else { &[] },
            "markets": markets,
        })
    }
}

/// A window of a cluster.
fn weekly(cluster: &ResourceId, name: &str, window: &MaintenanceWindow) -> Value {
    let day = window.day.as_str();
    json!({
        "name": name,
        "cluster": output(cluster, "id"),
        "day": format!("{}{}", day[..1].to_uppercase(), &day[1..]),
        "at": window.at,
        "hours": window.hours,
    })
}
