//! The cluster of a site: a control plane in all zones of the region, the account of its nodes, and its pools.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_cloud::{GPU_NODES, MOST_MACHINES, by_machine};
use textnlp_provider::cluster::{GPU_POOL, POOL};
use textnlp_provider::component::{Cluster, GpuPool, MaintenanceWindow};
use textnlp_provider::settings::{NodeUpgrade, Spot};
use textnlp_provider::{CloudId, Ownership, ResourceId};

use super::network::{PODS, SERVICES, with_ranges};
use super::{Lowering, NETWORK, output};
use crate::kinds::container::{BLUE_GREEN, ON_DEMAND, SPOT, SURGE};
use crate::names;
use crate::tables::machines::{MACHINES, Machine, NODES, machine, of_size};
use crate::tables::zones;

/// What nodes do with their account: metrics and logs, and images. The first one is what GKE documents as the least
/// (<https://cloud.google.com/kubernetes-engine/docs/how-to/hardening-your-cluster#use_least_privilege_sa>).
const NODE_ROLES: [(&str, &str); 2] =
    [("nodes-role", "roles/container.defaultNodeServiceAccount"), ("nodes-images", "roles/artifactregistry.reader")];
/// The pool of the nodes without GPU.
pub(crate) const SYSTEM: &str = "system";
/// The disk of a machine in GiB: images and models.
const DISK_GB: u32 = 100;
/// The same with a GPU: its images and models are larger.
const GPU_DISK_GB: u32 = 300;
/// The release channel with tested versions.
const CHANNEL: &str = "REGULAR";
/// The least hours of a weekly window: GKE wants 48 hours in 32 days, in which a week recurs four times
/// (<https://cloud.google.com/kubernetes-engine/docs/concepts/maintenance-windows-and-exclusions>).
const LEAST_HOURS: u32 = 12;
/// The Monday from which on windows recur.
const FIRST_MONDAY: Timestamp = Timestamp::constant(1_704_067_200, 0);

impl Lowering<'_> {
    pub(super) fn cluster(&mut self, cluster: &Cluster) {
        let name = names::cluster(self.site);
        if let Some(existing) = &self.component.existing {
            // An existing cluster is read, and never changed: its operator has set up its pools.
            let id = crate::table::cluster_id(&self.site.account, &self.site.region, existing.as_str());
            let ownership = id.ok().or_else(|| CloudId::new(existing.as_str()).ok()).map(Ownership::External);
            let main = ResourceId::of(&self.site.name, &self.component.name);
            self.push(
                main,
                "gcp.gke-cluster",
                self.of_region(json!({ "name": existing })),
                ownership.unwrap_or_default(),
            );
            return;
        }
        if !cluster.access.is_empty() {
            let cause = "identities of a cluster are not set up on Google Cloud yet";
            self.problem(
                "access",
                cause,
                "remove `cluster.access`; grant `roles/container.admin` or `roles/container.viewer`",
            );
        }
        let account = json!({
            "name": names::of(self.site, "nodes", names::MOST_OF_ACCOUNT),
            "display_name": format!("nodes of {} at {}", self.site.environment, self.site.name),
        });
        if let Some(window) = self.site.maintenance.filter(|window| window.hours < LEAST_HOURS) {
            let cause = format!("{} hours a week are too few for GKE: it needs 48 hours in 32 days", window.hours);
            self.problem("maintenance", cause, format!("set `maintenance.hours: {LEAST_HOURS}` or more"));
        }
        let Some(nodes) = self.part("nodes", "gcp.service-account", self.of_project(account)) else { return };
        let project = format!("projects/{}", self.site.account);
        let mut before: Vec<Option<ResourceId>> = Vec::new();
        for (part, role) in NODE_ROLES {
            let binding = json!({ "target": project, "role": role, "member": output(&nodes, "member") });
            before.push(self.part(part, "gcp.project-binding", binding));
        }
        let (key, access) = self.data_key("agent:container");
        // Compute Engine encrypts the disks of nodes (hashicorp/terraform-provider-google#17260).
        let (disk_key, disk_access) = self.data_key_by("disk-key-access", "agent:compute");
        let network = cluster.network.as_str();
        let subnet = self.site.subnets.first();
        let (_, pods, services) = subnet.map_or(("", PODS, SERVICES), |subnet| with_ranges(subnet.as_str()));
        let main = self.main(
            "gcp.gke-cluster",
            self.of_region(json!({
                "name": name,
                "version": cluster.version,
                "network": self.output_of(network, "vpc", "id"),
                "subnetwork": self.output_of(network, "subnet", "id"),
                "pods": pods,
                "services": services,
                "private_nodes": true,
                "allow_from": cluster.allow_from,
                "channel": CHANNEL,
                "maintenance": self.site.maintenance.as_ref().map(weekly),
                "shielded_nodes": true,
                "workload_identity": true,
                "key": key,
                "node_account": output(&nodes, "email"),
                "first_pool_removed": true,
            })),
        );
        // Nodes pull images through the NAT. That of an existing network is its owner's.
        let router = self.part_of(NETWORK, "router").filter(|_| self.site.subnets.is_empty());
        before.extend([access, disk_access.clone(), router]);
        for one in before {
            self.after(one);
        }
        let site = self.site.cluster.as_deref();
        let min = site.map_or(1, |site| site.min_nodes);
        let max = site.and_then(|site| site.max_nodes).unwrap_or(min);
        // A pool has as many nodes in each of its zones.
        let zones = zones::zones(&self.site.region).map_or(1, |zones| u32::try_from(zones.len()).unwrap_or(1).max(1));
        let min = if min > zones { min.next_multiple_of(zones) } else { min };
        let max = max.max(min);
        let general = match NODES.of_site(self.site) {
            Ok(general) => general,
            Err((field, cause, fix)) => return self.problem(field, cause, fix),
        };
        let Some(machine) = general.types.first().and_then(|name| machine(name, None)) else { return };
        let scaling = json!({ "min": min, "max": max });
        let (name, surge) = (general.named(SYSTEM), NodeUpgrade::Surge);
        let pool = self.pool(&name, &[machine], &main, &nodes, scaling, &[], &[ON_DEMAND], surge, &disk_key);
        let system = self.part(&format!("{name}-nodes"), "gcp.node-pool", pool);
        self.after(disk_access.clone());
        if let Some(gpu) = &cluster.gpu {
            self.gpu_nodes(gpu, &main, &nodes, &disk_key);
            // GKE taints machines with GPUs only beside other ones (terraform-google-modules/terraform-google-kubernetes-engine#703).
            self.after(system);
            self.after(disk_access);
        }
    }

    fn gpu_nodes(&mut self, pool: &GpuPool, cluster: &ResourceId, nodes: &ResourceId, disk_key: &Value) {
        let known = MACHINES.iter().filter_map(|machine| Some((machine.name, machine.gpu?.1)));
        for (cause, fix) in textnlp_cloud::wrong_machines(pool, MOST_MACHINES, known) {
            self.problem("gpu.machines", cause, fix);
        }
        let named = |name: &String| MACHINES.iter().find(|machine| machine.name == name && machine.gpu.is_some());
        let machines: Vec<&Machine> = match pool.machines.is_empty() {
            true => of_size(pool.size).into_iter().collect(),
            false => pool.machines.iter().filter_map(named).collect(),
        };
        if machines.is_empty() {
            return;
        }
        let alike = MACHINES.iter().filter(|one| one.gpu.is_some_and(|(_, count)| count == pool.gpus()));
        let alike: Vec<_> = alike.map(Machine::node).collect();
        let tried: Vec<_> = machines.iter().map(|machine| machine.node()).collect();
        if let Some((cause, fix)) = NODES.small_gpus(self.site, &tried, &alike) {
            self.problem("gpu.machines", cause, fix);
        }
        let Some(zones) = zones::zones(&self.site.region) else {
            let cause = format!("the zones of the region `{}` are unknown", self.site.region);
            return self.problem("region", cause, "choose another region, such as europe-west4");
        };
        let markets: &[&str] = match pool.spot {
            Spot::Never => &[ON_DEMAND],
            Spot::Prefer => &[SPOT, ON_DEMAND],
            Spot::Only => &[SPOT],
        };
        let scaling = json!({ "min": pool.count, "max": pool.most() });
        // GKE adds a node first unless told otherwise, and where no quota is left for its GPU, the upgrade fails.
        let how = pool.upgrade.unwrap_or(NodeUpgrade::Minimal);
        let pool = self.pool(GPU_POOL, &machines, cluster, nodes, scaling, &zones, markets, how, disk_key);
        self.part(GPU_NODES, "gcp.node-pool", pool);
    }

    #[allow(clippy::too_many_arguments)]
    fn pool(
        &self,
        name: &str,
        machines: &[&Machine],
        cluster: &ResourceId,
        nodes: &ResourceId,
        scaling: Value,
        zones: &[String],
        markets: &[&str],
        how: NodeUpgrade,
        disk_key: &Value,
    ) -> Value {
        let has_gpu = machines.iter().any(|machine| machine.gpu.is_some());
        let gpu = |machine: &&Machine| match machine.gpu {
            Some((gpu, count)) => json!({ "type": gpu.accelerator, "count": count }),
            None => Value::Null,
        };
        json!({
            "name": name,
            "cluster": output(cluster, "id"),
            "machine": by_machine(machines.iter().map(|machine| machine.name.into())),
            "accelerator": by_machine(machines.iter().map(gpu)),
            "disk_gb": if has_gpu { GPU_DISK_GB } else { DISK_GB },
            "disk_type": by_machine(machines.iter().map(|machine| machine.disk_type.into())),
            "disk_key": disk_key,
            "account": output(nodes, "email"),
            // GKE's drivers of GPUs are not signed for it in every version.
            "secure_boot": !has_gpu,
            "labels": { POOL: if has_gpu { GPU_POOL } else { SYSTEM } },
            "nodes": scaling["min"],
            "scaling": scaling,
            "gpu_taint": has_gpu,
            "zones": zones,
            "markets": markets,
            "upgrade": upgrade(how),
        })
    }
}

/// How GKE upgrades the nodes of a pool
/// (<https://cloud.google.com/kubernetes-engine/docs/concepts/node-pool-upgrade-strategies>). A node of the old pool is drained at a
/// time, and all of them stay for an hour: GKE's own numbers.
fn upgrade(how: NodeUpgrade) -> Value {
    match how {
        NodeUpgrade::Minimal => json!({ "strategy": SURGE, "max_surge": 0, "max_unavailable": 1 }),
        NodeUpgrade::Surge => json!({ "strategy": SURGE, "max_surge": 1, "max_unavailable": 0 }),
        NodeUpgrade::BlueGreen => {
            json!({ "strategy": BLUE_GREEN, "batch_nodes": 1, "batch_soak": "0s", "soak": "3600s" })
        }
    }
}

/// A window as GKE repeats it.
fn weekly(window: &MaintenanceWindow) -> Value {
    let minute = window.day as u32 * MaintenanceWindow::DAY + window.at.0;
    let start = FIRST_MONDAY + SignedDuration::from_mins(minute.into());
    let end = start + SignedDuration::from_hours(window.hours.into());
    let day = window.day.as_str()[..2].to_uppercase();
    json!({
        "window": { "startTime": start.to_string(), "endTime": end.to_string() },
        "recurrence": format!("FREQ=WEEKLY;BYDAY={day}"),
    })
}

#[cfg(test)]
mod tests {
    use textnlp_provider::settings::Weekday;

    use super::*;

    #[test]
    fn a_window_recurs_every_week_also_over_the_end_of_it() {
        let window = MaintenanceWindow { day: Weekday::Sunday, at: "22:30".parse().unwrap(), hours: 12 };
        let times = json!({ "startTime": "2024-01-07T22:30:00Z", "endTime": "2024-01-08T10:30:00Z" });
        assert_eq!(weekly(&window), json!({ "window": times, "recurrence": "FREQ=WEEKLY;BYDAY=SU" }));
    }
}
