//! What objects cost for a month, by their specs. Pure. A spec may still hold references to outputs, so that fields are read one by
//! one.

use textnlp_provider::{CostLine, KindName, Spec};

use crate::tables::prices::{by_use, cache, database, machine, priced};
use crate::tables::{Service, machines};

/// The lines of an object in a region; `None` for a kind whose cost does not depend on its spec.
pub(crate) fn costs(kind: &KindName, spec: &Spec, region: &str) -> Option<Vec<CostLine>> {
    let text = |field: &str| spec.get(field).and_then(|value| value.as_str()).unwrap_or_default();
    let number = |field: &str| spec.get(field).and_then(serde_json::Value::as_u64).unwrap_or_default();
    let flag = |field: &str| spec.get(field).and_then(serde_json::Value::as_bool).unwrap_or_default();
    let one = |service: Service, key: &str, what: &str| priced(service, key, region, what, 1);
    Some(match kind.as_str() {
        "aws.eks-cluster" => vec![one(Service::Eks, "eks/cluster", "the control plane, in standard support")],
        "aws.eks-node-group" => nodes(spec, region),
        "aws.launch-template" => {
            let what = format!("{} GiB gp3 for each machine", number("root_gib"));
            vec![CostLine::unknown(Service::Ec2.title(), what, "by the number of machines")]
        }
        "aws.nat-gateway" => vec![
            one(Service::Ec2, "vpc/nat-gateway", "a NAT gateway"),
            by_use(Service::Ec2, "vpc/nat-gateway", region, "data through the NAT gateway"),
        ],
        "aws.elastic-ip" => vec![one(Service::Ec2, "vpc/public-ipv4", "a public IPv4 address")],
        "aws.vpc-endpoint" if text("kind") == "Interface" => {
            // An interface has an address in each subnet, and each is in another zone.
            let zones =
                spec.get("subnets").and_then(|subnets| subnets.as_array()).map_or(1, |subnets| subnets.len().max(1));
            let what = format!("{zones} addresses of an endpoint for {}", text("service"));
            vec![
                priced(Service::Ec2, "vpc/interface-endpoint", region, what, u64::try_from(zones).unwrap_or(1)),
                by_use(Service::Ec2, "vpc/interface-endpoint", region, "data through the endpoint"),
            ]
        }
        "aws.vpc-endpoint" => vec![one(Service::Ec2, "vpc/gateway-endpoint", "a gateway endpoint")],
        "aws.key" => vec![
            one(Service::Kms, "kms/key", "a key"),
            by_use(Service::Kms, "kms/requests", region, "requests with the key"),
        ],
        "aws.secret" => vec![
            one(Service::SecretsManager, "secretsmanager/secret", "a secret"),
            by_use(Service::SecretsManager, "secretsmanager/requests", region, "requests for the secret"),
        ],
        "aws.bucket" => vec![
            by_use(Service::S3, "s3/STANDARD", region, "stored models"),
            by_use(Service::S3, "s3/write-requests", region, "requests that write"),
            by_use(Service::S3, "s3/read-requests", region, "requests that read"),
        ],
        "aws.repository" => vec![by_use(Service::Ecr, "ecr/storage", region, "stored images")],
        "aws.log-group" => vec![by_use(Service::Logs, "logs/ingestion", region, "log entries")],
        "aws.db-instance" => {
            let (class, multi_az) = (text("class"), flag("multi_az"));
            let (copies, suffix) =
                if multi_az { ("with a standby in another zone", "/multi-az") } else { ("one server", "") };
            let storage = number("storage_gb");
            vec![
                one(Service::Rds, &database(class, multi_az), &format!("{class}, PostgreSQL, {copies}")),
                priced(
                    Service::Rds,
                    &format!("rds/{}{suffix}", text("storage_type")),
                    region,
                    format!("{storage} GB {}", text("storage_type")),
                    storage,
                ),
                by_use(Service::Rds, "rds/backups", region, "backups beyond the size of the database"),
            ]
        }
        "aws.cache" => {
            let (class, nodes) = (text("class"), number("replicas").saturating_add(1));
            let what = format!("{nodes} × {class}, {}", text("engine"));
            vec![priced(Service::ElastiCache, &cache(text("engine"), class), region, what, nodes)]
        }
        _ => return None,
    })
}

/// The machines of a node group at their first number, and their disks. The autoscaler changes that number.
fn nodes(spec: &Spec, region: &str) -> Vec<CostLine> {
    let list = |field: &str| -> Vec<&str> {
        let items = spec.get(field).and_then(|value| value.as_array()).into_iter().flatten();
        items.filter_map(|item| item.as_str()).collect()
    };
    let count = |field: &str| spec.get("scaling").and_then(|scaling| scaling[field].as_u64()).unwrap_or_default();
    let (desired, most) = (count("desired"), count("max"));
    let types = list("instance_types");
    let Some(first) = types.first() else {
        return vec![CostLine::unknown(Service::Ec2.title(), "machines", "the plan names no instance type")];
    };
    let more = if most > desired { format!(", up to {most}") } else { String::new() };
    let gpus = machines::machine(first).map(|machine| machine.gpus).filter(|gpus| *gpus > 0);
    let gpu = gpus.map_or(String::new(), |gpus| format!(", {gpus} GPU each"));
    let is_spot = list("capacity").first() == Some(&"SPOT");
    let market = if is_spot { "spot" } else { "on demand" };
    let what = format!("{desired} × {first}{more}, Linux, {market}{gpu}");
    let mut lines = match is_spot {
        true => vec![CostLine::unknown(Service::Ec2.title(), what, "spot prices change by the hour")],
        false => vec![priced(Service::Ec2, &machine(first), region, what, desired)],
    };
    if types.len() > 1 {
        let others = types.iter().skip(1).copied().collect::<Vec<_>>().join(", ");
        let why = format!("the price differs where AWS has no {first}: {others}");
        lines.push(CostLine::unknown(Service::Ec2.title(), "machines of another type", why));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::Charge;

    use super::*;

    fn monthly(kind: &str, spec: serde_json::Value) -> (u64, usize) {
        let lines = costs(&kind.parse().unwrap(), &Spec::of(&spec), "us-east-1").unwrap();
        let known = lines.iter().filter_map(|line| match &line.charge {
            Charge::Priced { quantity, price } => Some(price.monthly_micros(*quantity)),
            Charge::Included | Charge::Unknown(_) => None,
        });
        (known.clone().sum(), lines.len() - known.count())
    }

    #[test]
    fn costs_follow_the_spec() {
        assert_eq!(monthly("aws.eks-cluster", json!({})), (73_000_000, 0));
        let group = |types: &[&str], capacity: &[&str]| json!({ "instance_types": types, "capacity": capacity, "scaling": { "min": 1, "max": 4, "desired": 2 } });
        // 2 × 0.526 USD × 730 h.
        assert_eq!(monthly("aws.eks-node-group", group(&["g4dn.xlarge"], &["ON_DEMAND"])), (767_960_000, 0));
        assert_eq!(monthly("aws.eks-node-group", group(&["g4dn.xlarge"], &["SPOT", "ON_DEMAND"])), (0, 1));
        assert_eq!(monthly("aws.eks-node-group", group(&["g4dn.xlarge", "g5.xlarge"], &["ON_DEMAND"])).1, 1);
        assert_eq!(monthly("aws.vpc-endpoint", json!({ "kind": "Gateway" })), (0, 0));
        let interface = json!({ "kind": "Interface", "service": "s", "subnets": [{ "$output": "a/b#id" }, { "$output": "a/c#id" }] });
        assert_eq!(monthly("aws.vpc-endpoint", interface), (14_600_000, 1));
    }

    #[test]
    fn unknown_prices_are_unknown() {
        let (known, unknown) =
            monthly("aws.db-instance", json!({ "class": "db.x99.huge", "storage_type": "gp9", "storage_gb": 10 }));
        assert_eq!((known, unknown), (0, 3));
    }
}
