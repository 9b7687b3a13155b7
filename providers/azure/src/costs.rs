//! What objects cost for a month, by their specs. Pure. A spec may still hold references to outputs, so that fields are read one by
//! one.

use serde_json::Value;
use textnlp_provider::{CostLine, KindName, SPOT_AT_MOST, Spec};

use crate::kinds::cluster::{SPOT, SYSTEM_DISK_GB};
use crate::tables::machines;
use crate::tables::prices::{disk, priced};

/// The name of machines on bills.
const MACHINES: &str = "Virtual Machines";
/// The name of disks and files on bills.
const STORAGE: &str = "Storage";
const UNRECORDED: &str = "its price is not recorded";

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
        "azure.nat" => vec![
            priced("NAT Gateway", "nat/gateway", region, "a gateway", 1),
            CostLine::unknown("NAT Gateway", "data through the gateway", "by use"),
        ],
        "azure.address" => vec![priced("Virtual Network", "address/static", region, "a public address", 1)],
        "azure.dns-record" => vec![CostLine::unknown("Azure DNS", "DNS queries", "by use")],
        "azure.traffic-site" => vec![
            CostLine::unpriced("Traffic Manager", "health checks of a site, every ten seconds", UNRECORDED),
            CostLine::unknown("Traffic Manager", "DNS queries", "by use"),
        ],
        "azure.dns-zone" => vec![CostLine::unpriced("Azure DNS", "a zone and its queries", UNRECORDED)],
        "azure.storage" => vec![
            CostLine::unknown(STORAGE, "stored models", "by use"),
            CostLine::unknown(STORAGE, "requests", "by use"),
        ],
        "azure.registry" => vec![CostLine::unpriced("Container Registry", "a registry and its images", UNRECORDED)],
        "azure.key" => vec![CostLine::unknown("Key Vault", "operations with the key", "by use")],
        "azure.redis" => {
            let is_replicated = text("high_availability") == "Enabled";
            let replica = if is_replicated { ", with a replica" } else { "" };
            vec![CostLine::unpriced("Azure Managed Redis", format!("a Redis {}{replica}", text("sku")), UNRECORDED)]
        }
        "azure.endpoint" => vec![
            CostLine::unpriced("Virtual Network", "a private endpoint", UNRECORDED),
            CostLine::unknown("Virtual Network", "data through the private endpoint", "by use"),
        ],
        "azure.database-server" => {
            let standby = if text("standby") == "Disabled" { "" } else { ", with a standby" };
            let is_replica = spec.get("source").is_some_and(|source| !source.is_null());
            let of_replica = if is_replica { format!(", a replica in {}", text("location")) } else { String::new() };
            let (size, disk) = (text("sku"), number("disk_gb"));
            let title = "Azure Database for PostgreSQL";
            let mut lines = vec![
                CostLine::unpriced(title, format!("{size}{standby}{of_replica}"), UNRECORDED),
                CostLine::unpriced(title, format!("{disk} GiB of disk{standby}{of_replica}"), UNRECORDED),
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
    vec![CostLine::unpriced("Load Balancer", "a rule and an address of the load balancer", UNRECORDED)]
}

/// The machines of a pool at their first number, and their disks. The autoscaler changes that number.
fn pool(spec: &Spec, region: &str) -> Vec<CostLine> {
    let count = |member: &str| spec.get("scaling").and_then(|one| one[member].as_u64()).unwrap_or_default();
    let (least, most) = (count("min"), count("max"));
    let name = spec.get("machine").and_then(Value::as_str).unwrap_or_default();
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
    vec![priced(MACHINES, name, region, what, least), priced(STORAGE, disk(gib), region, disks, least)]
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
        // 2 × 0.526 USD × 730 h; no price of a disk is known there.
        assert_eq!(monthly("azure.pool", pool("on-demand"), "eastus"), (767_960_000, 1));
        assert_eq!(monthly("azure.pool", pool(SPOT), "eastus"), (767_960_000, 1));
        // 2 × 0.658 USD × 730 h, and 2 × 41.811428 USD.
        assert_eq!(monthly("azure.pool", pool("on-demand"), "westeurope"), (960_680_000 + 83_622_856, 0));
        assert_eq!(monthly("azure.pool", pool("on-demand"), "marsnorth"), (0, 2));
        let cluster = |tier: &str| json!({ "machine": "Standard_D2s_v5", "count": 1, "tier": tier });
        // 0.115 USD × 730 h, and 11.2272 USD; the tier costs 73 USD.
        assert_eq!(monthly("azure.cluster", cluster("Free"), "westeurope"), (83_950_000 + 11_227_200, 0));
        assert_eq!(monthly("azure.cluster", cluster("Standard"), "westeurope"), (168_177_200, 0));
        assert_eq!(monthly("azure.nat", json!({}), "westeurope"), (32_850_000, 1));
        assert_eq!(monthly("azure.address", json!({}), "westeurope"), (3_650_000, 0));
        let server = |source: Value| json!({ "sku": "Standard_D2ds_v5", "disk_gb": 32, "standby": "Disabled", "source": source });
        assert_eq!(monthly("azure.database-server", server(Value::Null), "westeurope"), (0, 3));
        let source = json!({ "$output": "main/database/server#id" });
        assert_eq!(monthly("azure.database-server", server(source), "westeurope"), (0, 2), "a replica has no backups");
    }
}
