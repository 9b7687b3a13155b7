//! What objects cost for a month, by their specs. Pure. A spec may still hold references to outputs, so that fields are read one by
//! one.

use serde_json::Value;
use textnlp_cloud::machine_names;
use textnlp_provider::{CostLine, KindName, SPOT_AT_MOST, Spec};

use crate::kinds::cluster::{SPOT, SYSTEM_DISK_GB};
use crate::kinds::machine_learning::DEPLOYMENT;
use crate::tables::machines;
use crate::tables::prices::{disk, priced};

/// The name of machines on bills.
const MACHINES: &str = "Virtual Machines";
/// The name of disks and files on bills.
const STORAGE: &str = "Storage";
/// The name of Azure Machine Learning on bills.
const MACHINE_LEARNING: &str = "Azure Machine Learning";

/// The lines of an object in a region; `None` for a kind whose cost does not depend on its spec.
pub(crate) fn costs(kind: &KindName, spec: &Spec, region: &str) -> Option<Vec<CostLine>> {
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
    let number = |field: &str| spec.get(field).and_then(Value::as_u64).unwrap_or_default();
    Some(match kind.as_str() {
        "azure.cluster" => {
            let count = number("count");
            let what = format!("{count} × {}, the cluster's own pods", text("machine"));
            let gib = u64::from(SYSTEM_DISK_GB);
            let mut lines = vec![
                priced(MACHINES, text("machine"), region, what, count),
                priced(STORAGE, disk(gib), region, format!("{count} × {gib} GiB of disk"), count),
            ];
            if text("tier") == "Standard" {
                let what = "the control plane of a cluster";
                lines.push(priced("Azure Kubernetes Service", "aks/standard", region, what, 1));
            }
            lines
        }
        "azure.pool" => pool(spec, region),
        DEPLOYMENT => deployment(spec),
        "azure.nat" => vec![
            priced("NAT Gateway", "nat/gateway", region, "a gateway", 1),
            CostLine::unknown("NAT Gateway", "data through the gateway", "by use"),
        ],
        "azure.address" => vec![priced("Virtual Network", "address/static", region, "a public address", 1)],
        "azure.dns-record" => vec![CostLine::unknown("Azure DNS", "DNS queries", "by use")],
        "azure.traffic-site" => vec![
            priced("Traffic Manager", "traffic/health-check", region, "health checks of a site", 1),
            priced("Traffic Manager", "traffic/fast-interval", region, "every ten seconds instead of thirty", 1),
            CostLine::unknown("Traffic Manager", "DNS queries", "by use"),
        ],
        "azure.dns-zone" => vec![
            priced("Azure DNS", "dns/private-zone", region, "a private zone", 1),
            CostLine::unknown("Azure DNS", "DNS queries", "by use"),
        ],
        "azure.storage" => vec![
            CostLine::unknown(STORAGE, "stored models", "by use"),
            CostLine::unknown(STORAGE, "requests", "by use"),
        ],
        "azure.registry" => vec![
            priced("Container Registry", "registry/standard", region, "a registry", 1),
            CostLine::unknown("Container Registry", "images beyond those that the registry includes", "by use"),
        ],
        "azure.key" => vec![CostLine::unknown("Key Vault", "operations with the key", "by use")],
        "azure.redis" => {
            let is_replicated = text("high_availability") == "Enabled";
            let (replica, nodes) = if is_replicated { (", with a replica", 2) } else { ("", 1) };
            let sku = text("sku");
            let what = format!("a Redis {sku}{replica}");
            vec![priced("Azure Managed Redis", &format!("redis/{sku}"), region, what, nodes)]
        }
        "azure.endpoint" => vec![
            priced("Virtual Network", "endpoint/private", region, "a private endpoint", 1),
            CostLine::unknown("Virtual Network", "data through the private endpoint", "by use"),
        ],
        "azure.database-server" => {
            let (standby, copies) = if text("standby") == "Disabled" { ("", 1) } else { (", with a standby", 2) };
            let is_replica = spec.get("source").is_some_and(|source| !source.is_null());
            let (own, of_replica) = match text("location") {
                other if is_replica => (other, format!(", a replica in {other}")),
                _ => (region, String::new()),
            };
            let (size, disk) = (text("sku"), number("disk_gb"));
            let title = "Azure Database for PostgreSQL";
            let (server, storage) =
                (format!("{size}{standby}{of_replica}"), format!("{disk} GiB of disk{standby}{of_replica}"));
            let mut lines = vec![
                priced(title, &format!("postgres/{size}"), own, server, copies),
                priced(title, "postgres/storage", own, storage, disk * copies),
            ];
            if !is_replica {
                lines.push(CostLine::unknown(title, "backups", "by use"));
            }
            lines
        }
        _ => return None,
    })
}

/// The lines of an object in a cluster, for what the cluster's controllers create for it.
pub(crate) fn inside(kind: &KindName, spec: &Spec) -> Vec<CostLine> {
    let is_balanced = spec.get("spec").is_some_and(|spec| spec["type"] == "LoadBalancer");
    if kind.as_str() != "kubernetes.service" || !is_balanced {
        return Vec::new();
    }
    vec![
        priced("Load Balancer", "lb/rules", "", "a load balancer with up to five rules", 1),
        priced("Virtual Network", "address/static", "", "the public address of the load balancer", 1),
        CostLine::unknown("Load Balancer", "data through the load balancer", "by use"),
    ]
}

/// The machines of a deployment, which always run.
fn deployment(spec: &Spec) -> Vec<CostLine> {
    let bound = |member: &str| spec.get("instances").and_then(|one| one[member].as_u64()).unwrap_or_default();
    let (machine, least) = (spec.get("machine").and_then(Value::as_str).unwrap_or_default(), bound("min"));
    let what = format!("{least} × {machine}; twice during a release");
    let always = CostLine::unpriced(MACHINE_LEARNING, what, "no price of its machines is recorded");
    let more = (bound("max") > least)
        .then(|| CostLine::unknown(MACHINE_LEARNING, format!("more machines, {machine}"), "by use"));
    std::iter::once(always).chain(more).collect()
}

/// The machines of a pool at their first number, and their disks. The autoscaler changes that number.
fn pool(spec: &Spec, region: &str) -> Vec<CostLine> {
    let count = |member: &str| spec.get("scaling").and_then(|one| one[member].as_u64()).unwrap_or_default();
    let (least, most) = (count("min"), count("max"));
    let names = machine_names(spec.get("machine"));
    let name = names.first().copied().unwrap_or_default();
    let Some(machine) = machines::named(name) else {
        let what = if name.is_empty() { "machines".to_owned() } else { format!("{least} × {name}") };
        return vec![CostLine::unpriced(MACHINES, what, "no price of this machine is recorded")];
    };
    let more = if most > least { format!(", up to {most}") } else { String::new() };
    let is_spot = spec.get("markets").and_then(|markets| markets[0].as_str()) == Some(SPOT);
    let gpu = machine.gpu.map(|(gpu, _, each)| format!(", {each} × {gpu} each")).unwrap_or_default();
    let what = format!("{least} × {name}{gpu}{more}, {}", if is_spot { SPOT_AT_MOST } else { "on demand" });
    let gib = spec.get("disk_gb").and_then(Value::as_u64).unwrap_or_default();
    // AKS uses the local disk of a machine instead where it is large enough:
    // https://learn.microsoft.com/azure/aks/concepts-storage#ephemeral-os-disk
    let at_most = if machine.gpu.is_some() { ", at most this" } else { "" };
    let disks = format!("{least} × {gib} GiB of disk{at_most}");
    let mut lines = vec![priced(MACHINES, name, region, what, least), priced(STORAGE, disk(gib), region, disks, least)];
    if let [first, others @ ..] = names.as_slice()
        && !others.is_empty()
    {
        let why = format!("the price differs where Azure has no {first}: {}", others.join(", "));
        lines.push(CostLine::unknown(MACHINES, "machines of another size", why));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::Charge;

    use super::*;

    fn monthly(kind: &str, spec: Value, region: &str) -> (u64, usize) {
        let lines = costs(&kind.parse().unwrap(), &Spec::of(&spec), region).unwrap();
        let known = lines.iter().filter_map(|line| match &line.charge {
            Charge::Priced { quantity, price } => Some(price.monthly_micros(*quantity)),
            Charge::Included | Charge::Unpriced(_) | Charge::Unknown(_) => None,
        });
        (known.clone().sum(), lines.len() - known.count())
    }

    #[test]
    fn costs_follow_the_spec() {
        let pool = |market: &str| json!({ "machine": "Standard_NC4as_T4_v3", "markets": [market], "scaling": { "min": 2, "max": 2 }, "disk_gb": 256 });
        // 2 × 0.526 USD × 730 h; no price of a disk is recorded there.
        assert_eq!(monthly("azure.pool", pool("on-demand"), "eastus"), (767_960_000, 1));
        assert_eq!(monthly("azure.pool", pool(SPOT), "eastus"), (767_960_000, 1));
        // 2 × 0.658 USD × 730 h, and 2 × 41.811428 USD.
        assert_eq!(monthly("azure.pool", pool("on-demand"), "westeurope"), (960_680_000 + 83_622_856, 0));
        assert_eq!(monthly("azure.pool", pool("on-demand"), "marsnorth"), (0, 2));
        let cluster = |tier: &str| json!({ "machine": "Standard_D2s_v5", "count": 1, "tier": tier });
        // 0.115 USD × 730 h, and 11.2272 USD; the tier costs 73 USD.
        assert_eq!(monthly("azure.cluster", cluster("Free"), "westeurope"), (83_950_000 + 11_227_200, 0));
        assert_eq!(monthly("azure.cluster", cluster("Standard"), "westeurope"), (168_177_200, 0));
        let deployment = |max: u64| json!({ "machine": "Standard_DS3_v2", "instances": { "min": 1, "max": max } });
        assert_eq!(monthly(DEPLOYMENT, deployment(1), "westeurope"), (0, 1));
        assert_eq!(monthly(DEPLOYMENT, deployment(4), "westeurope"), (0, 2));
        assert_eq!(monthly("azure.nat", json!({}), "westeurope"), (32_850_000, 1));
        assert_eq!(monthly("azure.address", json!({}), "westeurope"), (3_650_000, 0));
        let server = |standby: &str, source: Value| json!({ "sku": "Standard_D2ds_v5", "disk_gb": 32, "standby": standby, "source": source, "location": "northeurope" });
        // 0.212 USD × 730 h, and 32 × 0.1369 USD.
        let alone = 154_760_000 + 32 * 136_900;
        assert_eq!(monthly("azure.database-server", server("Disabled", Value::Null), "westeurope"), (alone, 1));
        assert_eq!(monthly("azure.database-server", server("SameZone", Value::Null), "westeurope"), (2 * alone, 1));
        let source = json!({ "$output": "main/database/server#id" });
        let (replica, unknown) = monthly("azure.database-server", server("Disabled", source), "marsnorth");
        assert!(replica > 0 && unknown == 0, "a replica has the price of its own region, and no backups: {replica}");
        let redis = |replicated: &str| json!({ "sku": "Balanced_B1", "high_availability": replicated });
        // 0.032 USD × 730 h for each node.
        assert_eq!(monthly("azure.redis", redis("Disabled"), "eastus2"), (23_360_000, 0));
        assert_eq!(monthly("azure.redis", redis("Enabled"), "eastus2"), (46_720_000, 0));
        assert_eq!(monthly("azure.redis", redis("Disabled"), "marsnorth"), (0, 1));
        assert_eq!(monthly("azure.traffic-site", json!({}), "westeurope"), (2_540_000, 1));
        assert_eq!(monthly("azure.registry", json!({}), "westeurope"), (20_275_750, 1));
    }
}
