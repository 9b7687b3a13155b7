//! What objects cost for a month, by their specs. Pure. A spec may still hold references to outputs, so that fields are read one by
//! one.

use textnlp_cloud::region_of;
use textnlp_provider::units::counted;
use textnlp_provider::{CostLine, KindName, SPOT_AT_MOST, Spec};

use crate::tables::prices::{by_use, cache, database, endpoint, machine, priced};
use crate::tables::{Service, machines};

/// The tag of subnets for load balancers that the internet reaches.
const PUBLIC_SUBNET: &str = "kubernetes.io/role/elb";

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
            let what = format!("{} of an endpoint for {}", counted(zones, "address"), text("service"));
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
        "aws.bucket" => {
            let mut lines = vec![
                by_use(Service::S3, "s3/STANDARD", region, "stored models"),
                by_use(Service::S3, "s3/write-requests", region, "requests that write"),
                by_use(Service::S3, "s3/read-requests", region, "requests that read"),
            ];
            if spec.get("replication").is_some_and(|replication| !replication.is_null()) {
                lines.push(by_use(
                    Service::S3,
                    "s3/replication",
                    region,
                    "data copied to another region, and its metrics",
                ));
            }
            lines
        }
        "aws.repository" => vec![by_use(Service::Ecr, "ecr/storage", region, "stored images")],
        // Each metric of an alarm costs as much as an alarm.
        "aws.alarm" => {
            let metrics = spec.get("metrics").and_then(|all| all.as_object()).map_or(1, |all| all.len().max(1));
            let count = u64::try_from(metrics).unwrap_or(1);
            vec![priced(
                Service::CloudWatch,
                "cloudwatch/alarm",
                region,
                format!("an alarm of {}", counted(count, "metric")),
                count,
            )]
        }
        "aws.dashboard" => vec![one(Service::CloudWatch, "cloudwatch/dashboard", "a dashboard")],
        "aws.budget" => vec![one(Service::Budgets, "budgets/budget", "a budget that takes no action")],
        "aws.topic" => vec![by_use(Service::Sns, "sns/messages", region, "messages to receivers")],
        "aws.flow-log" => vec![by_use(Service::Logs, "logs/vended", region, "entries of the flow log")],
        "aws.log-group" => vec![by_use(Service::Logs, "logs/ingestion", region, "log entries")],
        "aws.endpoint-config" => variants(spec, region),
        "aws.scaling-target" => {
            let what = format!(
                "{} to {} of `{}`, and two alarms for each policy",
                number("min"),
                counted(number("max"), "instance"),
                text("variant")
            );
            vec![CostLine::unknown(
                Service::SageMaker.title(),
                what,
                "by the requests; the endpoint configuration has the price of an instance",
            )]
        }
        "aws.db-instance" => {
            let (class, multi_az) = (text("class"), flag("multi_az"));
            let (copies, suffix) =
                if multi_az { ("with a standby in another zone", "/multi-az") } else { ("one server", "") };
            let storage = number("storage_gb");
            let mut lines = vec![
                one(Service::Rds, &database(class, multi_az), &format!("{class}, PostgreSQL, {copies}")),
                priced(
                    Service::Rds,
                    &format!("rds/{}{suffix}", text("storage_type")),
                    region,
                    format!("{storage} GB {}", text("storage_type")),
                    storage,
                ),
                by_use(Service::Rds, "rds/backups", region, "backups beyond the size of the database"),
            ];
            if region_of(spec).is_some() {
                lines.push(by_use(Service::Rds, "rds/replication", region, "data copied from another region"));
            }
            lines
        }
        "aws.cache" => {
            let (class, nodes) = (text("class"), number("replicas").saturating_add(1));
            let what = format!("{nodes} × {class}, {}", text("engine"));
            vec![priced(Service::ElastiCache, &cache(text("engine"), class), region, what, nodes)]
        }
        "aws.dns-record" if spec.get("alias").is_some_and(|alias| alias.is_object()) => {
            vec![one(Service::Route53, "route53/alias-queries", "queries for an alias of a load balancer")]
        }
        "aws.dns-record" => vec![by_use(Service::Route53, "route53/queries", region, "DNS queries")],
        // Each option costs more: HTTPS, and an interval of ten seconds.
        "aws.health-check" => vec![
            // Load balancers of AWS are probed by their own names.
            match text("name") {
                "" => one(Service::Route53, "route53/health-check", "a health check of an endpoint in AWS"),
                _ => one(Service::Route53, "route53/health-check/outside", "a health check of an endpoint elsewhere"),
            },
            CostLine::unpriced(
                Service::Route53.title(),
                "HTTPS and a short interval",
                "the price of options is not known",
            ),
        ],
        _ => return None,
    })
}

/// The lines of an object in a cluster, for what the cluster's controllers create in AWS for it.
pub(crate) fn inside(kind: &KindName, spec: &Spec, region: &str) -> Vec<CostLine> {
    let is_balanced = spec.get("spec").is_some_and(|spec| spec["type"] == "LoadBalancer");
    if kind.as_str() != "kubernetes.service" || !is_balanced {
        return Vec::new();
    }
    vec![
        priced(Service::Elb, "elb/network", region, "a Network Load Balancer", 1),
        CostLine::unknown(Service::Elb.title(), "its capacity units", "by connections and data"),
        CostLine::unknown(Service::Ec2.title(), "its public IPv4 addresses", "one for each zone"),
    ]
}

/// The lines of an object that other objects of its site decide: the disks of machines, which the launch template of a node group
/// has, and the addresses of a load balancer, one in each public subnet. `None` where there are none of them.
pub(crate) fn among(
    kind: &KindName,
    spec: &Spec,
    others: &[(&KindName, &Spec)],
    region: &str,
) -> Option<Vec<CostLine>> {
    let of = |kind: &'static str| others.iter().filter(move |(other, _)| other.as_str() == kind).map(|(_, spec)| *spec);
    match kind.as_str() {
        "aws.launch-template" => {
            // A node group has the name of its template.
            let groups = of("aws.eks-node-group").filter(|group| group.get("name") == spec.get("name"));
            let counts = groups.filter_map(|group| group.get("scaling")?["desired"].as_u64());
            let machines = counts.reduce(u64::saturating_add)?;
            let gib = spec.get("root_gib")?.as_u64()?.saturating_mul(machines);
            let what = format!("{gib} GiB gp3 on {}", counted(machines, "machine"));
            Some(vec![priced(Service::Ec2, "ebs/gp3", region, what, gib)])
        }
        "kubernetes.service" => {
            let is_public = |subnet: &&Spec| subnet.get("tags").is_some_and(|tags| !tags[PUBLIC_SUBNET].is_null());
            let count = u64::try_from(of("aws.subnet").filter(is_public).count()).ok().filter(|count| *count > 0)?;
            let mut lines = inside(kind, spec, region);
            // The last line is that of the addresses.
            lines.pop()?;
            let what = format!("{} of the load balancer", counted(count, "public IPv4 address"));
            lines.push(priced(Service::Ec2, "vpc/public-ipv4", region, what, count));
            Some(lines)
        }
        _ => None,
    }
}

/// The machines of a node group at their first number. The autoscaler changes that number.
fn nodes(spec: &Spec, region: &str) -> Vec<CostLine> {
    let list = |field: &str| -> Vec<&str> {
        let items = spec.get(field).and_then(|value| value.as_array()).into_iter().flatten();
        items.filter_map(|item| item.as_str()).collect()
    };
    let count = |field: &str| spec.get("scaling").and_then(|scaling| scaling[field].as_u64()).unwrap_or_default();
    let (desired, most) = (count("desired"), count("max"));
    let types = list("instance_types");
    let Some(first) = types.first() else {
        return vec![CostLine::unpriced(Service::Ec2.title(), "machines", "the plan names no instance type")];
    };
    let more = if most > desired { format!(", up to {most}") } else { String::new() };
    let gpus = machines::machine(first).map(|machine| machine.gpus).filter(|gpus| *gpus > 0);
    let gpu = gpus.map_or(String::new(), |gpus| format!(", {gpus} GPU each"));
    let is_spot = list("capacity").first() == Some(&"SPOT");
    let market = if is_spot { SPOT_AT_MOST } else { "on demand" };
    let what = format!("{desired} × {first}{more}, Linux, {market}{gpu}");
    let mut lines = vec![priced(Service::Ec2, &machine(first), region, what, desired)];
    if types.len() > 1 {
        let others = types.iter().skip(1).copied().collect::<Vec<_>>().join(", ");
        let why = format!("the price differs where AWS has no {first}: {others}");
        lines.push(CostLine::unknown(Service::Ec2.title(), "machines of another type", why));
    }
    lines
}

/// The instances of an endpoint at their first number, and their volumes.
fn variants(spec: &Spec, region: &str) -> Vec<CostLine> {
    let variants = spec.get("variants").and_then(|variants| variants.as_array()).cloned().unwrap_or_default();
    let lines = variants.iter().flat_map(|variant| {
        let text = |field: &str| variant[field].as_str().unwrap_or_default();
        let (kind, count) = (text("instance_type"), variant["count"].as_u64().unwrap_or_default());
        let has_volume = !variant["volume_gb"].is_null();
        let what = format!("{count} × {kind}, `{}`", text("name"));
        let volumes = has_volume.then(|| {
            let disks = format!("{} GB of disk on {}", variant["volume_gb"], counted(count, "instance"));
            CostLine::unpriced(Service::SageMaker.title(), disks, "the price of a volume is not recorded")
        });
        [priced(Service::SageMaker, &endpoint(kind), region, what, count)].into_iter().chain(volumes)
    });
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() {
        return vec![CostLine::unpriced(Service::SageMaker.title(), "instances", "the plan names no variant")];
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
            Charge::Included | Charge::Unpriced(_) | Charge::Unknown(_) => None,
        });
        (known.clone().sum(), lines.len() - known.count())
    }

    #[test]
    fn costs_follow_the_spec() {
        assert_eq!(monthly("aws.eks-cluster", json!({})), (73_000_000, 0));
        let group = |types: &[&str], capacity: &[&str]| json!({ "instance_types": types, "capacity": capacity, "scaling": { "min": 1, "max": 4, "desired": 2 } });
        // 2 × 0.526 USD × 730 h.
        assert_eq!(monthly("aws.eks-node-group", group(&["g4dn.xlarge"], &["ON_DEMAND"])), (767_960_000, 0));
        assert_eq!(monthly("aws.eks-node-group", group(&["g4dn.xlarge"], &["SPOT", "ON_DEMAND"])), (767_960_000, 0));
        assert_eq!(monthly("aws.eks-node-group", group(&["g4dn.xlarge", "g5.xlarge"], &["ON_DEMAND"])).1, 1);
        assert_eq!(monthly("aws.vpc-endpoint", json!({ "kind": "Gateway" })), (0, 0));
        let variant = |kind: &str| json!({ "variants": [{ "name": "main", "instance_type": kind, "count": 2, "volume_gb": 30 }] });
        // 2 × 1.515 USD × 730 h.
        assert_eq!(monthly("aws.endpoint-config", variant("ml.g5.2xlarge")), (2_211_900_000, 1));
        assert_eq!(monthly("aws.endpoint-config", variant("ml.c7i.xlarge")), (0, 2));
        let mut own_disks = variant("ml.g6e.2xlarge");
        own_disks["variants"][0]["volume_gb"] = json!(null);
        // 2 × 2.8026 USD × 730 h.
        assert_eq!(monthly("aws.endpoint-config", own_disks), (4_091_796_000, 0));
        let interface = json!({ "kind": "Interface", "service": "s", "subnets": [{ "$output": "a/b#id" }, { "$output": "a/c#id" }] });
        assert_eq!(monthly("aws.vpc-endpoint", interface), (14_600_000, 1));
        let service = |of: &str| {
            let spec = Spec::of(&json!({ "spec": { "type": of } }));
            inside(&"kubernetes.service".parse().unwrap(), &spec, "us-east-1").len()
        };
        assert_eq!((service("LoadBalancer"), service("ClusterIP")), (3, 0));
        // A budget without actions is free.
        assert_eq!(monthly("aws.budget", json!({})), (0, 0));
        let check = |name: serde_json::Value| monthly("aws.health-check", json!({ "name": name }));
        assert_eq!((check(json!(null)), check(json!("text.example.com"))), ((500_000, 1), (750_000, 1)));
        assert_eq!(monthly("aws.dns-record", json!({ "alias": { "name": { "$output": "a/b#address" } } })), (0, 0));
        assert_eq!(monthly("aws.bucket", json!({ "replication": null })), (0, 3));
        assert_eq!(monthly("aws.bucket", json!({ "replication": { "metrics": true } })), (0, 4));
        let server = json!({ "class": "db.t4g.medium", "storage_type": "gp3", "storage_gb": 20 });
        let mut remote = server.clone();
        remote["region"] = json!("us-east-1");
        assert_eq!(monthly("aws.db-instance", remote).1, monthly("aws.db-instance", server).1 + 1);
    }

    #[test]
    fn costs_that_other_objects_decide_are_counted_by_them() {
        let object = |kind: &str, spec: serde_json::Value| (kind.parse::<KindName>().unwrap(), Spec::of(&spec));
        let template = |name: &str| object("aws.launch-template", json!({ "name": name, "root_gib": 100 }));
        let group = |name: &str, desired: u64| {
            object("aws.eks-node-group", json!({ "name": name, "scaling": { "min": 1, "max": 4, "desired": desired } }))
        };
        let subnet = |tag: &str| object("aws.subnet", json!({ "tags": { tag: "1" } }));
        let service = |of: &str| object("kubernetes.service", json!({ "spec": { "type": of } }));
        let all = [
            group("a", 3),
            group("b", 1),
            subnet(PUBLIC_SUBNET),
            subnet(PUBLIC_SUBNET),
            subnet("kubernetes.io/role/internal-elb"),
        ];
        let others: Vec<(&KindName, &Spec)> = all.iter().map(|(kind, spec)| (kind, spec)).collect();
        let lines = |(kind, spec): &(KindName, Spec)| among(kind, spec, &others, "us-east-1");
        let shown = |object: &(KindName, Spec)| {
            let line = lines(object).unwrap().pop().unwrap();
            let Charge::Priced { quantity, price } = line.charge else { panic!("{line:?}") };
            (line.what, price.monthly_micros(quantity))
        };
        // 300 GiB × 0.08 USD.
        assert_eq!(shown(&template("a")), ("300 GiB gp3 on 3 machines".to_owned(), 24_000_000));
        assert_eq!(shown(&template("b")), ("100 GiB gp3 on 1 machine".to_owned(), 8_000_000));
        let addresses = "2 public IPv4 addresses of the load balancer".to_owned();
        // 2 × 0.005 USD × 730 h.
        assert_eq!(shown(&service("LoadBalancer")), (addresses, 7_300_000));
        assert_eq!(lines(&service("LoadBalancer")).unwrap().len(), 3);
        assert!(lines(&service("ClusterIP")).is_none() && lines(&template("c")).is_none());
        let (kind, spec) = service("LoadBalancer");
        assert!(among(&kind, &spec, &[], "us-east-1").is_none(), "the subnets of an existing network are not known");
    }

    #[test]
    fn no_object_of_aws_is_priced_by_a_machine_of_the_site() {
        // The price of a machine is a setting of the environment, which AWS's objects do not need.
        let alias = json!({ "alias": { "name": { "$output": "a/b#address" } } });
        let lines = costs(&"aws.dns-record".parse().unwrap(), &Spec::of(&alias), "sa-east-1").unwrap();
        assert!(lines.iter().all(|line| matches!(line.charge, Charge::Priced { .. })), "{lines:?}");
        let kinds = crate::table::rows().map(|row| &row.kind);
        let included = kinds.filter(|kind| kind.pricing == textnlp_provider::Pricing::Included);
        assert_eq!(included.map(|kind| kind.name).collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn unknown_prices_are_unknown() {
        // What is in the plan without a type must not look cheap.
        for (kind, spec) in [("aws.eks-node-group", json!({})), ("aws.endpoint-config", json!({ "variants": [] }))] {
            let lines = costs(&kind.parse().unwrap(), &Spec::of(&spec), "us-east-1").unwrap();
            assert!(matches!(&lines[..], [CostLine { charge: Charge::Unpriced(_), .. }]), "{lines:?}");
        }
        let (known, unknown) =
            monthly("aws.db-instance", json!({ "class": "db.x99.huge", "storage_type": "gp9", "storage_gb": 10 }));
        assert_eq!((known, unknown), (0, 3));
    }
}
