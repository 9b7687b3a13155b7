//! The network of a site: public and private subnets in two or three zones.
//!
//! A protected site has a NAT gateway in each zone, so that a zone that fails takes no other one along, and private endpoints of the
//! services that its nodes call. A disposable one has a single NAT gateway, and reaches these services through it.

use serde_json::{Value, json};
use textnlp_cloud::Range;
use textnlp_provider::component::Network;
use textnlp_provider::{ComponentName, Ownership, ResourceId};
use textnlp_token::partition;

use super::{Lowering, output, zones};
use crate::kinds::iam::PATH;
use crate::names;
use crate::tags::{CLUSTER, Tags};

/// The range of a VPC where the environment states none.
const CIDR: &str = "10.42.0.0/16";
/// The letters of zones and existing subnets, in the names of parts.
const LETTERS: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
/// The fewest zones: EKS, RDS and load balancers need them.
const MIN_ZONES: usize = 2;
/// Services that nodes call, as the names of endpoints have them.
const SERVICES: [&str; 4] = ["ec2", "ecr.api", "ecr.dkr", "sts"];
/// How the names of log groups of this program start.
const LOGS: &str = "/textnlp/";
/// The longest name of a group without it.
const MOST_OF_GROUP: usize = 200;
/// How long the log of connections is kept, in days.
const LOG_DAYS: u32 = 90;
/// The seconds of one entry of it.
const INTERVAL_SECONDS: u32 = 600;
/// The service that writes it.
const WRITER: &str = "vpc-flow-logs.amazonaws.com";
/// The port of all of these.
const HTTPS: u16 = 443;

impl Lowering<'_> {
    pub(super) fn network(&mut self, network: &Network) {
        match &self.component.existing {
            Some(_) => self.existing_network(network),
            None => self.new_network(network),
        }
    }

    /// Read, and never changed: see `preflight` for what is checked.
    fn existing_network(&mut self, network: &Network) {
        let subnets = self.site.subnets.clone();
        if network.cidr.is_some() {
            self.problem("cidr", "an existing network has its own address range", "remove `network.cidr`");
        }
        if !(MIN_ZONES..=LETTERS.len()).contains(&subnets.len()) {
            let cause = format!(
                "an existing network needs {MIN_ZONES} to {} private subnets, and {} are set",
                LETTERS.len(),
                subnets.len()
            );
            self.problem("subnets", cause, "list them in `sites[].existing.subnets`, in two zones or more");
            return;
        }
        if let Some(vpc) = self.component.existing.clone() {
            self.external("vpc", "aws.vpc", vpc);
        }
        for (letter, subnet) in LETTERS.iter().zip(subnets) {
            self.external(&format!("subnet-private-{letter}"), "aws.subnet", subnet);
        }
    }

    fn external(&mut self, part: &str, kind: &'static str, id: textnlp_provider::CloudId) {
        if let Ok(resource) = ResourceId::part(&self.site.name, &self.component.name, part) {
            self.push(resource, kind, &json!({}), Ownership::External(id));
        }
    }

    fn new_network(&mut self, network: &Network) {
        if !self.site.subnets.is_empty() {
            let fix = "set `sites[].existing.network` to their VPC, or remove `subnets`";
            self.problem("subnets", "existing subnets need their existing network", fix);
        }
        let cidr = network.cidr.as_deref().unwrap_or(CIDR);
        let (range, zones) = match (Range::private(cidr, "a VPC with six subnets"), zones::zones(&self.site.region)) {
            (Ok(range), Some(zones)) => (range, zones),
            (range, zones) => {
                if let Err((cause, fix)) = range {
                    self.problem("cidr", cause, fix);
                }
                if zones.is_none() {
                    let cause = format!("the zones of the region `{}` are unknown", self.site.region);
                    self.problem("region", cause, "set `sites[].existing.network` and `sites[].existing.subnets`");
                }
                return;
            }
        };
        if !self.problems.is_empty() {
            return;
        }
        let tags = |more: &[(&str, &str)]| {
            let mut tags: Tags = more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            // What controllers of this cluster create inside is swept with the network.
            tags.insert(format!("{CLUSTER}{}", names::cluster(self.site)), "shared".to_owned());
            json!(tags)
        };
        let (elb, internal_elb) =
            (tags(&[("kubernetes.io/role/elb", "1")]), tags(&[("kubernetes.io/role/internal-elb", "1")]));
        let spec =
            json!({ "cidr": range.to_string(), "dns_hostnames": true, "default_rules": false, "tags": tags(&[]) });
        self.part("vpc", "aws.vpc", &spec);
        let vpc = self.id_of("vpc");
        self.part("internet-gateway", "aws.internet-gateway", &json!({ "vpc": vpc }));
        let gateway = self.resource("internet-gateway");
        for (n, (letter, zone)) in LETTERS.iter().zip(&zones).enumerate() {
            let subnet = |cidr: Range, tags: &Value| json!({ "vpc": vpc, "cidr": cidr.to_string(), "zone": zone, "public_addresses": false, "tags": tags });
            self.part(&format!("subnet-public-{letter}"), "aws.subnet", &subnet(public_part(range, n), &elb));
            self.part(
                &format!("subnet-private-{letter}"),
                "aws.subnet",
                &subnet(private_part(range, n), &internal_elb),
            );
        }
        let letters: Vec<&str> = LETTERS.iter().take(zones.len()).copied().collect();
        let public: Vec<Value> = letters.iter().map(|letter| self.id_of(&format!("subnet-public-{letter}"))).collect();
        let routes = json!([{ "to": "0.0.0.0/0", "via": self.id_of("internet-gateway") }]);
        let spec = json!({ "vpc": vpc, "routes": routes, "subnets": public });
        self.part("routes-public", "aws.route-table", &spec);
        // The route needs the gateway to be attached, which its id does not tell.
        self.after(gateway.clone());

        let nats = self.nat_gateways();
        for letter in &nats {
            self.part(&format!("address-{letter}"), "aws.elastic-ip", &json!({}));
            let (subnet, address) = (format!("subnet-public-{letter}"), format!("address-{letter}"));
            let spec = json!({ "subnet": self.id_of(&subnet), "address": self.id_of(&address) });
            self.part(&format!("nat-{letter}"), "aws.nat-gateway", &spec);
            self.after(gateway.clone());
        }
        let mut tables = vec![self.id_of("routes-public")];
        for letter in &letters {
            let nat = if nats.contains(letter) { *letter } else { nats.first().copied().unwrap_or(letter) };
            let routes = json!([{ "to": "0.0.0.0/0", "via": self.id_of(&format!("nat-{nat}")) }]);
            let subnets = [self.id_of(&format!("subnet-private-{letter}"))];
            let spec = json!({ "vpc": vpc, "routes": routes, "subnets": subnets });
            let part = format!("routes-private-{letter}");
            self.part(&part, "aws.route-table", &spec);
            tables.push(self.id_of(&part));
        }
        self.endpoints(&vpc, &range, tables);
        if self.site.protect_data {
            self.flow_log(&vpc, network);
        }
    }

    /// Who connected to what, for an investigation afterwards.
    fn flow_log(&mut self, vpc: &Value, network: &Network) {
        let group = format!("{LOGS}{}", names::of(self.site, "network", MOST_OF_GROUP));
        let spec = json!({ "name": group, "retention_days": LOG_DAYS, "key": null });
        let logs = self.part("flow-logs", "aws.log-group", &spec);
        let (partition, account) = (partition(&self.site.region).name, self.site.account.as_str());
        let mut trust =
            json!({ "Effect": "Allow", "Principal": { "Service": [WRITER] }, "Action": ["sts:AssumeRole"] });
        // Flow logs of another account do not use the role.
        if !account.is_empty() {
            trust["Condition"] = json!({ "StringEquals": { "aws:SourceAccount": account } });
        }
        let of_group = format!("arn:{partition}:logs:{}:{account}:log-group:{group}", self.site.region);
        let write = json!({
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
            "Resource": [of_group, format!("{of_group}:*")],
        });
        // It takes no narrower resource.
        let find = json!({ "Effect": "Allow", "Action": ["logs:DescribeLogGroups"], "Resource": ["*"] });
        let document = |statements: Value| json!({ "Version": "2012-10-17", "Statement": statements });
        let spec = json!({
            "name": names::of(self.site, "flow-log-role", names::MOST_OF_ROLE),
            "path": PATH,
            "trust": document(json!([trust])),
            "boundary": network.permission_boundary,
            "managed": [],
            "inline": { "write": document(json!([write, find])) },
        });
        let role = self.part("flow-log-role", "aws.role", &spec);
        let (Some(logs), Some(role)) = (logs, role) else { return };
        let spec = json!({
            "vpc": vpc, "log_group": output(&logs, "name"), "role": output(&role, "arn"), "traffic": "ALL",
            "interval_seconds": INTERVAL_SECONDS,
        });
        self.part("flow-log", "aws.flow-log", &spec);
    }

    /// The letters of the NAT gateways of a new network.
    pub(super) fn nat_gateways(&self) -> Vec<&'static str> {
        let zones = zones::zones(&self.site.region).map_or(0, |zones| zones.len());
        let count = if self.site.protect_data { zones } else { zones.min(1) };
        LETTERS.into_iter().take(count).collect()
    }

    /// Private ways to AWS's services. The one to S3 costs nothing.
    fn endpoints(&mut self, vpc: &Value, range: &Range, tables: Vec<Value>) {
        // Public buckets are read without credentials (packages, images of Kubernetes), so that no identity can be demanded.
        let spec = json!({
            "vpc": vpc, "service": self.service("s3"), "kind": "Gateway", "route_tables": tables, "subnets": [], "groups": [],
            "private_dns": false, "policy": policy("", ""),
        });
        self.part("endpoint-s3", "aws.vpc-endpoint", &spec);
        if !self.site.protect_data {
            return;
        }
        let rule = json!({
            "protocol": "tcp", "from": HTTPS, "to": HTTPS, "peer": range.to_string(), "description": "HTTPS from the VPC",
        });
        let spec = json!({
            "vpc": vpc, "name": names::of(self.site, "endpoints", 255), "description": "Private endpoints of AWS services",
            "ingress": [rule], "egress": [],
        });
        self.part("endpoints", "aws.security-group", &spec);
        let subnets = self.private_subnets(&self.component.name.clone());
        for service in SERVICES {
            let spec = json!({
                "vpc": vpc, "service": self.service(service), "kind": "Interface", "route_tables": [], "subnets": subnets,
                "groups": [self.id_of("endpoints")], "private_dns": true, "policy": policy(service, &self.site.account),
            });
            self.part(&format!("endpoint-{}", service.replace('.', "-")), "aws.vpc-endpoint", &spec);
        }
    }

    /// The name of a service for endpoints. China's partition has a prefix for all but S3.
    fn service(&self, name: &str) -> String {
        let prefix = if self.site.region.starts_with("cn-") && name != "s3" { "cn." } else { "" };
        format!("{prefix}com.amazonaws.{}.{name}", self.site.region)
    }

    fn resource(&self, part: &str) -> Option<ResourceId> {
        ResourceId::part(&self.site.name, &self.component.name, part).ok()
    }

    /// A reference to the id of a part of this component.
    fn id_of(&self, part: &str) -> Value {
        self.part_of(&self.component.name, part)
    }

    fn part_of(&self, component: &ComponentName, part: &str) -> Value {
        self.output_of_part(component, part, "id")
    }

    fn output_of_part(&self, component: &ComponentName, part: &str, field: &str) -> Value {
        let resource = ResourceId::part(&self.site.name, component, part);
        resource.map_or(Value::Null, |resource| output(&resource, field))
    }

    /// A reference to the id of a network's VPC.
    pub(super) fn vpc(&self, network: &ComponentName) -> Value {
        self.part_of(network, "vpc")
    }

    /// References to the ids of a network's private subnets, in which nodes, databases and endpoints are.
    pub(super) fn private_subnets(&self, network: &ComponentName) -> Vec<Value> {
        self.of_private_subnets(network, "id")
    }

    /// References to the address ranges of these.
    pub(super) fn private_ranges(&self, network: &ComponentName) -> Vec<Value> {
        self.of_private_subnets(network, "cidr")
    }

    fn of_private_subnets(&self, network: &ComponentName, field: &str) -> Vec<Value> {
        let count = match self.site.subnets.len() {
            0 => zones::zones(&self.site.region).map_or(0, |zones| zones.len()),
            count => count,
        };
        let parts = LETTERS.iter().take(count).map(|letter| format!("subnet-private-{letter}"));
        parts.map(|part| self.output_of_part(network, &part, field)).collect()
    }
}

/// The policy of an endpoint: calls of the account's identities, if the account is known. Images of machines and of containers also
/// come from AWS's.
fn policy(service: &str, account: &str) -> Value {
    let mut statement = json!({ "Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*" });
    if !account.is_empty() {
        statement["Condition"] = json!({ "StringEquals": { "aws:PrincipalAccount": account } });
    }
    let mut statements = vec![statement];
    if service == "sts" && !account.is_empty() {
        // Tokens of service accounts are exchanged without credentials.
        let exchange =
            json!({ "Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRoleWithWebIdentity", "Resource": "*" });
        statements.push(exchange);
    }
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// The private subnet of a zone: an eighth of the range, in its first half, which holds four. Pods have addresses of their own.
fn private_part(range: Range, zone: usize) -> Range {
    range.part(3, zone)
}

/// The public subnet of a zone: a sixteenth, in the third quarter. The last quarter stays free.
fn public_part(range: Range, zone: usize) -> Range {
    range.part(4, 8 + zone)
}
