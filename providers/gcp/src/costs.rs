//! What objects cost for a month, by their specs. Pure. A spec may still hold references to outputs, so that fields are read one by
//! one.

use serde_json::Value;
use textnlp_cloud::{machine_names, of_machines};
use textnlp_provider::units::counted;
use textnlp_provider::{CostLine, KindName, SPOT_AT_MOST, Spec};

use crate::kinds::container::SPOT;
use crate::kinds::redis::REDIS;
use crate::kinds::run::SERVICE;
use crate::kinds::vertex::DEPLOYMENT;
use crate::service::Service;
use crate::tables::machines;
use crate::tables::prices::{by_use, priced};

/// The service that keeps logs, as bills call it.
const LOGGING: &str = "Cloud Logging";
/// The machines of a network that Cloud NAT charges at most.
const MOST_OF_NAT: u64 = 32;

/// The lines of an object in a region; `None` for a kind whose cost does not depend on its spec.
pub(crate) fn costs(kind: &KindName, spec: &Spec, region: &str) -> Option<Vec<CostLine>> {
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
    let number = |field: &str| spec.get(field).and_then(Value::as_u64).unwrap_or_default();
    Some(match kind.as_str() {
        "gcp.gke-cluster" => {
            vec![
                priced(Service::Container, "gke/cluster", region, "the control plane of a cluster", 1),
                CostLine::unknown(LOGGING, "logs of the cluster and its pods", "by use"),
            ]
        }
        "gcp.node-pool" => pool(spec, region),
        // Pools have the price of their machines.
        "gcp.router" => vec![
            priced(
                Service::Compute,
                "nat/address",
                region,
                "an address of Cloud NAT; more machines need more of them",
                1,
            ),
            by_use(Service::Compute, "nat/data", region, "data through Cloud NAT"),
        ],
        "gcp.bucket" => {
            let is_in_two = spec.get("rpo").is_some_and(Value::is_string);
            let copied = is_in_two.then_some("data that is copied between its regions, and stored in both");
            let lines = ["stored models", "requests"].into_iter().chain(copied);
            lines.map(|what| CostLine::unknown(Service::Storage.title(), what, "by use")).collect()
        }
        SERVICE => {
            let mut lines = instances(spec);
            lines.push(CostLine::unknown(Service::Run.title(), "requests", "by use"));
            lines.push(CostLine::unknown(LOGGING, "logs of the service", "by use"));
            lines
        }
        DEPLOYMENT => {
            let mut lines = replicas(spec);
            lines.push(CostLine::unknown(LOGGING, "logs of the endpoint", "by use"));
            lines
        }
        "gcp.dns-record" => vec![CostLine::unknown(Service::Dns.title(), "DNS queries", "by use")],
        "gcp.repository" => vec![CostLine::unknown(Service::ArtifactRegistry.title(), "stored images", "by use")],
        "gcp.key" => vec![
            priced(Service::CloudKms, "kms/version", region, "an active version of a key; each rotation adds one", 1),
            CostLine::unknown(Service::CloudKms.title(), "requests with the key", "by use"),
        ],
        REDIS => {
            let (gib, nodes) = (number("memory_gb"), 1 + number("replicas"));
            let what = format!("{gib} GiB of memory on {}", counted(nodes, "node"));
            // Instances are billed by these ranges of their memory (<https://cloud.google.com/memorystore/docs/redis/pricing>).
            let range = match gib {
                0..=4 => "m1",
                5..=10 => "m2",
                11..=35 => "m3",
                36..=100 => "m4",
                _ => "m5",
            };
            vec![match nodes {
                1 => priced(Service::Redis, &format!("redis/basic-{range}"), region, what, gib),
                2 => priced(Service::Redis, &format!("redis/standard-{range}"), region, what, gib),
                _ => CostLine::unpriced(Service::Redis.title(), what, "no price of more replicas is recorded"),
            }]
        }
        "gcp.sql-instance" => {
            let copies = if text("availability") == "REGIONAL" { 2 } else { 1 };
            let (vcpus, memory) = tier(text("tier")).unwrap_or_default();
            let (title, disk) = (Service::Sql, number("disk_gb"));
            let own = Some(text("location")).filter(|location| !location.is_empty()).unwrap_or(region);
            let standby = if copies == 2 { ", with a standby in another zone" } else { "" };
            let mut lines = vec![
                priced(title, "sql/vcpu", own, format!("{vcpus} vCPUs{standby}"), vcpus * copies),
                priced(title, "sql/memory", own, format!("{memory} GiB of memory{standby}"), memory * copies),
                priced(title, "sql/ssd", own, format!("{disk} GiB of disk{standby}"), disk * copies),
                by_use(title, "sql/backups", own, "backups"),
            ];
            if own != region {
                lines.push(CostLine::unknown(title.title(), "data that is copied from another region", "by use"));
            }
            lines
        }
        _ => return None,
    })
}

/// The lines of an object in a cluster, for what the cluster's controllers create for it.
pub(crate) fn inside(kind: &KindName, spec: &Spec, region: &str) -> Vec<CostLine> {
    let is_balanced = spec.get("spec").is_some_and(|spec| spec["type"] == "LoadBalancer");
    if kind.as_str() != "kubernetes.service" || !is_balanced {
        return Vec::new();
    }
    let rules = "the forwarding rules of a network load balancer; five of a project cost as much as one";
    vec![
        priced(Service::Compute, "lb/forwarding-rules", region, rules, 1),
        by_use(Service::Compute, "lb/data", region, "data through the load balancer"),
    ]
}

/// The instances of a service of Cloud Run: those that always run, and those that requests start.
fn instances(spec: &Spec) -> Vec<CostLine> {
    let template = spec.get("template").cloned().unwrap_or_default();
    let number = |field: &str| template[field].as_u64().unwrap_or_default();
    let text = |field: &str| template[field].as_str().unwrap_or("?").to_owned();
    let (title, least) = (Service::Run.title(), number("min"));
    let gpu = template["gpu"].as_str().map(|gpu| format!(" and 1 × {gpu}")).unwrap_or_default();
    let each = format!("{} vCPUs, {} of memory{gpu} each", text("cpu"), text("memory"));
    let always = (least > 0).then(|| {
        let what = format!("{} always running, {each}", counted(least, "instance"));
        CostLine::unpriced(title, what, "no price of instances is recorded")
    });
    let more = (least == 0 || number("max") > least).then(|| {
        let which = if least > 0 { "more instances" } else { "instances" };
        CostLine::unknown(title, format!("{which}, {each}"), "by use")
    });
    always.into_iter().chain(more).collect()
}

/// The machines of a deployed model, which always run: Vertex AI charges more for them than Compute Engine
/// (<https://cloud.google.com/vertex-ai/pricing>).
fn replicas(spec: &Spec) -> Vec<CostLine> {
    let bound = |member: &str| spec.get("scaling").and_then(|one| one[member].as_u64()).unwrap_or_default();
    let (title, least) = (Service::AiPlatform.title(), bound("min"));
    let gpu = spec.get("accelerator").filter(|gpu| gpu.is_object());
    let gpu = gpu.map(|gpu| format!(" with {} × {}", gpu["count"], gpu["type"].as_str().unwrap_or_default()));
    let machine = spec.get("machine").and_then(Value::as_str).unwrap_or_default();
    let each = format!("{machine}{}", gpu.unwrap_or_default());
    let what = format!("{least} × {each}; twice during a release");
    let always = CostLine::unpriced(title, what, "no price of its machines is recorded");
    let more = (bound("max") > least).then(|| CostLine::unknown(title, format!("more replicas, {each}"), "by use"));
    std::iter::once(always).chain(more).collect()
}

/// The vCPUs and the memory, in GiB, of a tier: `db-custom-2-7680`.
fn tier(name: &str) -> Option<(u64, u64)> {
    let (vcpus, memory) = name.strip_prefix("db-custom-")?.split_once('-')?;
    Some((vcpus.parse().ok()?, memory.parse::<u64>().ok()?.div_ceil(1_024)))
}

/// The machines of a pool at their first number, their GPUs and their disks. The autoscaler changes that number.
fn pool(spec: &Spec, region: &str) -> Vec<CostLine> {
    let count = |member: &str| spec.get("scaling").and_then(|one| one[member].as_u64()).unwrap_or_default();
    let (least, most) = (count("min"), count("max"));
    let names = machine_names(spec.get("machine"));
    let name = names.first().copied().unwrap_or_default();
    let accelerator = of_machines(spec.get("accelerator")).first().and_then(|one| one["type"].as_str());
    let Some(machine) = machines::machine(name, accelerator) else {
        let what = if name.is_empty() { "machines".to_owned() } else { format!("{least} × {name}") };
        return vec![CostLine::unpriced(Service::Compute.title(), what, "no price of this machine is recorded")];
    };
    let more = if most > least { format!(", up to {most}") } else { String::new() };
    let first = spec.get("markets").and_then(|markets| markets[0].as_str());
    let market = if first == Some(SPOT) { SPOT_AT_MOST } else { "on demand" };
    let attached = machine.attached();
    let included = machine.gpu.filter(|_| attached.is_none());
    let gpu = included.map(|(gpu, each)| format!(", {each} × {} each", gpu.name)).unwrap_or_default();
    let what = format!("{least} × {name}{gpu}{more}, {market}");
    let mut lines = vec![priced(Service::Compute, &format!("compute/{name}"), region, what, least)];
    if let Some((gpu, each)) = attached {
        let (key, count) = (format!("gpu/{}", gpu.accelerator), u64::from(each) * least);
        lines.push(priced(Service::Compute, &key, region, format!("{count} × {}", gpu.name), count));
    }
    let disk = spec.get("disk_gb").and_then(Value::as_u64).unwrap_or_default() * least;
    let kind = machine_names(spec.get("disk_type")).first().copied().unwrap_or("pd-balanced");
    let what = format!("{disk} GiB {kind} on {}", counted(least, "machine"));
    lines.push(priced(Service::Compute, &format!("compute/{kind}"), region, what, disk));
    let behind = least.min(MOST_OF_NAT);
    let what = format!("Cloud NAT for {}", counted(behind, "machine"));
    lines.push(priced(Service::Compute, "nat/machine", region, what, behind));
    if let [first, others @ ..] = names.as_slice()
        && !others.is_empty()
    {
        let why = format!("the price differs where Google has no {first}: {}", others.join(", "));
        lines.push(CostLine::unknown(Service::Compute.title(), "machines of another type", why));
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
        assert_eq!(monthly("gcp.gke-cluster", json!({}), "us-central1"), (73_000_000, 1));
        let pool = |market: &str| {
            json!({
                "machine": "n1-standard-4", "accelerator": { "type": "nvidia-tesla-t4", "count": 1 }, "markets": [market],
                "scaling": { "min": 2, "max": 2 }, "disk_gb": 100, "disk_type": "pd-balanced",
            })
        };
        // 0.0014 USD × 730 h.
        let nat = 1_022_000;
        // 2 × (0.189999 + 0.35) USD × 730 h, and 200 GiB × 0.10 USD.
        let iowa = 788_398_540 + 20_000_000 + 2 * nat;
        assert_eq!(monthly("gcp.node-pool", pool("on-demand"), "us-central1"), (iowa, 0));
        assert_eq!(monthly("gcp.node-pool", pool(SPOT), "us-central1"), (iowa, 0));
        // 2 × (0.209168 + 0.3675) USD × 730 h, and 200 GiB × 0.11 USD.
        let netherlands = 841_935_280 + 22_000_000 + 2 * nat;
        assert_eq!(monthly("gcp.node-pool", pool("on-demand"), "europe-west4"), (netherlands, 0));
        assert_eq!(monthly("gcp.node-pool", pool("on-demand"), "mars-north1"), (2 * nat, 3));
        let mut many = pool("on-demand");
        many["scaling"] = json!({ "min": 40, "max": 40 });
        assert_eq!(monthly("gcp.node-pool", many, "mars-north1"), (32 * nat, 3), "Cloud NAT charges 32 machines");
        let included = json!({
            "machine": "g2-standard-8", "accelerator": { "type": "nvidia-l4", "count": 1 }, "markets": ["on-demand"],
            "scaling": { "min": 1, "max": 1 }, "disk_gb": 300, "disk_type": "pd-balanced",
        });
        // 0.897202 USD × 730 h, and 300 GiB × 0.11 USD.
        assert_eq!(monthly("gcp.node-pool", included, "europe-west4"), (654_957_460 + 33_000_000 + nat, 0));
        assert_eq!(monthly("gcp.router", json!({}), "europe-west4"), (3_650_000, 1));
        let server =
            json!({ "tier": "db-custom-1-3840", "disk_gb": 10, "availability": "ZONAL", "location": "us-central1" });
        // 0.0413 USD × 730 h, 4 GiB × 0.007 USD × 730 h, and 10 GiB × 0.17 USD.
        let price = 30_149_000 + 20_440_000 + 1_700_000;
        assert_eq!(monthly("gcp.sql-instance", server.clone(), "us-central1"), (price, 1));
        assert_eq!(
            monthly("gcp.sql-instance", server.clone(), "europe-west4"),
            (price, 2),
            "a replica in another region"
        );
        let in_region = |region: &str, availability: &str| {
            let mut server = server.clone();
            (server["location"], server["availability"]) = (json!(region), json!(availability));
            monthly("gcp.sql-instance", server, region)
        };
        assert_eq!(in_region("us-central1", "REGIONAL"), (2 * price, 1), "a standby costs as much as the server");
        // 0.0454 USD × 730 h, 4 GiB × 0.0077 USD × 730 h, and 10 GiB × 0.187 USD.
        assert_eq!(in_region("northamerica-northeast1", "ZONAL"), (33_142_000 + 22_484_000 + 1_870_000, 1));
        assert_eq!(in_region("europe-west4", "ZONAL"), (0, 4), "its prices are not recorded");
        assert_eq!(tier("db-custom-2-7680"), Some((2, 8)));
        assert_eq!(monthly("gcp.bucket", json!({ "rpo": null }), "us-central1"), (0, 2));
        assert_eq!(monthly("gcp.bucket", json!({ "rpo": "ASYNC_TURBO" }), "us-central1"), (0, 3));
    }

    #[test]
    fn instances_that_always_run_are_told_from_those_that_requests_start() {
        let shown = |min: u64, max: u64, gpu: Option<&str>| -> Vec<String> {
            let template = json!({ "min": min, "max": max, "cpu": "4", "memory": "16384Mi", "gpu": gpu });
            let lines = costs(&SERVICE.parse().unwrap(), &Spec::of(&json!({ "template": template })), "us-central1");
            let of_instances = lines.unwrap().into_iter().filter(|line| line.what.contains("instance"));
            of_instances
                .map(|line| {
                    format!(
                        "{} ({})",
                        line.what,
                        if matches!(line.charge, Charge::Unpriced(_)) { "always" } else { "by use" }
                    )
                })
                .collect()
        };
        let each = "4 vCPUs, 16384Mi of memory each";
        let always = format!("1 instance always running, {each} (always)");
        assert_eq!(shown(1, 1, None), std::slice::from_ref(&always));
        assert_eq!(shown(1, 3, None), [always, format!("more instances, {each} (by use)")]);
        assert_eq!(shown(0, 1, None), [format!("instances, {each} (by use)")]);
        let gpu = &shown(2, 2, Some("nvidia-l4"))[0];
        assert_eq!(gpu, "2 instances always running, 4 vCPUs, 16384Mi of memory and 1 × nvidia-l4 each (always)");
    }

    #[test]
    fn replicas_of_an_endpoint_have_no_price() {
        let shown = |max: u64, accelerator: Value| -> Vec<String> {
            let spec =
                json!({ "machine": "g2-standard-8", "accelerator": accelerator, "scaling": { "min": 2, "max": max } });
            let lines = costs(&DEPLOYMENT.parse().unwrap(), &Spec::of(&spec), "us-central1").unwrap();
            assert!(matches!(lines[0].charge, Charge::Unpriced(_)), "{lines:?}");
            lines.into_iter().map(|line| line.what).collect()
        };
        let l4 = json!({ "type": "NVIDIA_L4", "count": 1 });
        let always = "2 × g2-standard-8 with 1 × NVIDIA_L4; twice during a release";
        let more = "more replicas, g2-standard-8 with 1 × NVIDIA_L4";
        assert_eq!(shown(3, l4), [always, more, "logs of the endpoint"]);
        assert_eq!(shown(2, Value::Null), ["2 × g2-standard-8; twice during a release", "logs of the endpoint"]);
    }

    #[test]
    fn a_cache_is_priced_by_its_memory_with_at_most_one_replica() {
        let of = |gib: u64, replicas: u64| {
            monthly("gcp.redis-instance", json!({ "memory_gb": gib, "replicas": replicas }), "us-central1")
        };
        // 0.049, 0.027 and 0.054 USD for a GiB and hour, × 730 h.
        assert_eq!((of(4, 0), of(5, 0)), ((4 * 35_770_000, 0), (5 * 19_710_000, 0)));
        assert_eq!((of(5, 1), of(5, 2)), ((5 * 39_420_000, 0), (0, 1)));
    }

    #[test]
    fn load_balancers_of_a_cluster_have_a_price_where_it_is_recorded() {
        let service = |of: &str, region: &str| -> Vec<bool> {
            let spec = Spec::of(&json!({ "spec": { "type": of } }));
            let lines = inside(&"kubernetes.service".parse().unwrap(), &spec, region);
            lines.iter().map(|line| matches!(line.charge, Charge::Priced { .. })).collect()
        };
        assert_eq!(service("LoadBalancer", "us-central1"), [true, false]);
        assert_eq!(service("LoadBalancer", "europe-west4"), [false, false]);
        assert_eq!(service("ClusterIP", "us-central1"), Vec::<bool>::new());
    }
}
