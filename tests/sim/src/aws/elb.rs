//! Elastic Load Balancing: what controllers in clusters create, and how it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::ec2::{self, interfaces};
use super::protocol::Request;
use crate::{Behaviour, Call, Fault, Scope, Service, Source, Stages, World};

/// The service.
pub const SERVICE: Service = Service {
    name: "elasticloadbalancing",
    model: "elbv2",
    operations: &[
        ("DeleteLoadBalancer", delete_balancer),
        ("DeleteTargetGroup", delete_group),
        ("DescribeLoadBalancers", describe_balancers),
        ("DescribeTags", describe_tags),
        ("DescribeTargetGroups", describe_groups),
    ],
    quotas: &[],
    ledger: &[
        row(
            "deleting a load balancer that does not exist succeeds",
            Source::Documentation(
                "https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_DeleteLoadBalancer.html",
            ),
        ),
        row(
            "a target group of a load balancer is not deleted: ResourceInUse",
            Source::Documentation(
                "https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_DeleteTargetGroup.html",
            ),
        ),
        row(
            "the network interfaces of a load balancer end after it",
            Source::Documentation(
                "https://docs.aws.amazon.com/elasticloadbalancing/latest/network/load-balancer-delete.html",
            ),
        ),
        row(
            "they end three minutes after it",
            Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
        ),
        row("an ARN of a classic load balancer is refused: ValidationError", Source::Report("aws/aws-cli#3673")),
        row(
            "the tagging API shows deleted load balancers and target groups for an hour",
            Source::Report("boto/boto3#3341"),
        ),
    ],
};

/// The API of classic load balancers, with the same name in signatures, ARNs and permissions.
pub const CLASSIC: Service = Service {
    name: SERVICE.name,
    model: "elb",
    operations: &[
        ("DeleteLoadBalancer", delete_classic),
        ("DescribeLoadBalancers", describe_classics),
        ("DescribeTags", describe_classic_tags),
    ],
    quotas: &[],
    ledger: &[
        row(
            "requests for classic load balancers have the version 2012-06-01",
            Source::Documentation(
                "https://docs.aws.amazon.com/elasticloadbalancing/2012-06-01/APIReference/Welcome.html",
            ),
        ),
        row(
            "deleting a classic load balancer that does not exist succeeds",
            Source::Documentation(
                "https://docs.aws.amazon.com/elasticloadbalancing/2012-06-01/APIReference/API_DeleteLoadBalancer.html",
            ),
        ),
        row(
            "an unknown name is refused, and no other one is described: LoadBalancerNotFound",
            Source::Documentation(
                "https://docs.aws.amazon.com/elasticloadbalancing/2012-06-01/APIReference/API_DescribeLoadBalancers.html",
            ),
        ),
        row(
            "a classic load balancer of a service of type LoadBalancer has the tag kubernetes.io/cluster/NAME: owned, and \
             is left behind when the cluster is deleted",
            Source::Report("kubernetes-sigs/cluster-api-provider-aws#773"),
        ),
        row(
            "its security group has the tag too, is left behind with it, and keeps the VPC from being deleted",
            Source::Report("kubernetes-sigs/cluster-api-provider-aws#3478"),
        ),
        row(
            "it has a network interface in each of its subnets, with the description ELB NAME",
            Source::Documentation("https://aws.amazon.com/premiumsupport/knowledge-center/elb-find-load-balancer-IP/"),
        ),
        row(
            "the service manages the interfaces of load balancers: callers may not delete them",
            Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/requester-managed-eni.html"),
        ),
    ],
};

/// The version of [`CLASSIC`]'s API.
const CLASSIC_VERSION: &str = "2012-06-01";

/// Whether a request is for this API of the two that have the same name.
pub(crate) fn is_of(service: &Service, request: &Request) -> bool {
    let is_classic = || request.form().iter().any(|(name, value)| name == "Version" && value == CLASSIC_VERSION);
    service.name != CLASSIC.name || (service.model == CLASSIC.model) == is_classic()
}

const fn row(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "elasticloadbalancing", what, source }
}

/// What the service holds in a region, by ARN.
#[derive(Debug, Default)]
pub struct Elb {
    /// Load balancers as descriptions show them.
    pub balancers: BTreeMap<String, Value>,
    /// Target groups as descriptions show them.
    pub groups: BTreeMap<String, Value>,
    /// Classic load balancers as descriptions show them, by name.
    pub classics: BTreeMap<String, Value>,
    /// The names of those that have no tags, while the tagging API shows the tags of a deleted one with that name.
    pub renewed: BTreeSet<String>,
}

const UNKNOWN_BALANCER: (&str, &str) = ("LoadBalancerNotFound", "One or more load balancers not found");
const UNKNOWN_GROUP: (&str, &str) = ("TargetGroupNotFound", "One or more target groups not found");

/// This API knows no classic load balancers, whose ARNs have no type.
fn check_balancer(arn: &str) -> Result<(), Fault> {
    let name = arn.split_once(":loadbalancer/").map(|(_, name)| name);
    match name.is_some_and(|name| ["app/", "gwy/", "net/"].iter().any(|kind| name.starts_with(kind))) {
        true => Ok(()),
        false => Err(Fault::new("ValidationError", format!("'{arn}' is not a valid load balancer ARN"))),
    }
}

fn describe(
    call: &Call,
    all: &BTreeMap<String, Value>,
    ids: &str,
    list: &str,
    unknown: (&str, &str),
) -> Result<Value, Fault> {
    let ids = call.texts(ids);
    if ids.iter().any(|id| !all.contains_key(*id)) {
        return Err(Fault::new(unknown.0, unknown.1));
    }
    let is_meant = |arn: &str| ids.is_empty() || ids.contains(&arn);
    let found = all.iter().filter(|(arn, _)| is_meant(arn)).map(|(_, value)| value.clone()).collect();
    call.page(list, found, Fault::new("ValidationError", "The marker is invalid"))
}

fn describe_balancers(world: &mut World, call: &Call) -> Result<Value, Fault> {
    for arn in call.texts("LoadBalancerArns") {
        check_balancer(arn)?;
    }
    let state = world.state::<Elb>(&call.scope());
    describe(call, &state.balancers, "LoadBalancerArns", "LoadBalancers", UNKNOWN_BALANCER)
}

fn describe_groups(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let state = world.state::<Elb>(&call.scope());
    describe(call, &state.groups, "TargetGroupArns", "TargetGroups", UNKNOWN_GROUP)
}

fn describe_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let mut found = Vec::new();
    for arn in call.texts("ResourceArns") {
        let state = world.state::<Elb>(&call.scope());
        let is_group = arn.contains(":targetgroup/");
        if !is_group {
            check_balancer(arn)?;
        }
        let unknown = if is_group { UNKNOWN_GROUP } else { UNKNOWN_BALANCER };
        if !state.balancers.contains_key(arn) && !state.groups.contains_key(arn) {
            return Err(Fault::new(unknown.0, unknown.1));
        }
        let tags = world.tags.of(arn);
        let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
        found.push(json!({ "ResourceArn": arn, "Tags": tags }));
    }
    Ok(json!({ "TagDescriptions": found }))
}

fn delete_balancer(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("LoadBalancerArn").to_owned();
    check_balancer(&arn)?;
    if world.state::<Elb>(&call.scope()).balancers.remove(&arn).is_none() {
        return Ok(json!({}));
    }
    for group in world.state::<Elb>(&call.scope()).groups.values_mut() {
        group["LoadBalancerArns"].as_array_mut().into_iter().for_each(|all| all.retain(|one| *one != *arn));
    }
    end(world, call, &arn);
    Ok(json!({}))
}

/// What outlives a load balancer: its tags and its interfaces.
fn end(world: &mut World, call: &Call, arn: &str) {
    forget_late(world, call, arn);
    let (scope, description) = (call.scope(), interface_of(arn));
    world.defer(call.due(Duration::from_secs(180)), move |world| {
        let known = world.state::<ec2::Ec2>(&scope).all(&ec2::INTERFACE);
        let its: Vec<String> =
            known.filter(|(_, item)| item.value["Description"] == *description).map(|(id, _)| id.to_owned()).collect();
        its.iter().for_each(|id| interfaces::detach(world, &scope, id));
    });
}

fn classic_arn(scope: &Scope, name: &str) -> String {
    format!("arn:aws:elasticloadbalancing:{}:{}:loadbalancer/{name}", scope.region, scope.account)
}

/// The classic load balancers that a call names.
fn known_classics(world: &mut World, call: &Call) -> Result<BTreeMap<String, Value>, Fault> {
    let (all, names) = (&world.state::<Elb>(&call.scope()).classics, call.texts("LoadBalancerNames"));
    if let Some(unknown) = names.iter().find(|name| !all.contains_key(**name)) {
        let message = format!("There is no ACTIVE Load Balancer named '{unknown}'");
        return Err(Fault::new("LoadBalancerNotFound", message));
    }
    let is_meant = |name: &str| names.is_empty() || names.contains(&name);
    Ok(all.iter().filter(|(name, _)| is_meant(name)).map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn describe_classics(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let found = known_classics(world, call)?.into_values().collect();
    call.page("LoadBalancerDescriptions", found, Fault::new("ValidationError", "The marker is invalid"))
}

fn describe_classic_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let mut found = Vec::new();
    for name in known_classics(world, call)?.into_keys() {
        let is_renewed = world.state::<Elb>(&call.scope()).renewed.contains(&name);
        let tags = if is_renewed { BTreeMap::new() } else { world.tags.of(&classic_arn(&call.scope(), &name)) };
        let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
        let mut one = json!({ "LoadBalancerName": name });
        if !tags.is_empty() {
            one["Tags"] = tags.into();
        }
        found.push(one);
    }
    Ok(json!({ "TagDescriptions": found }))
}

fn delete_classic(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("LoadBalancerName");
    if world.state::<Elb>(&call.scope()).classics.remove(name).is_some() {
        end(world, call, &classic_arn(&call.scope(), name));
    }
    Ok(json!({}))
}

fn delete_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("TargetGroupArn");
    let state = world.state::<Elb>(&call.scope());
    let Some(group) = state.groups.get(arn) else { return Err(Fault::new(UNKNOWN_GROUP.0, UNKNOWN_GROUP.1)) };
    if group["LoadBalancerArns"].as_array().is_some_and(|all| !all.is_empty()) {
        let message = format!("Target group '{arn}' is currently in use by a listener or a rule");
        return Err(Fault::new("ResourceInUse", message));
    }
    state.groups.remove(arn);
    forget_late(world, call, arn);
    Ok(json!({}))
}

/// Tags outlive what they are of.
fn forget_late(world: &mut World, call: &Call, arn: &str) {
    let arn = arn.to_owned();
    world.defer(call.due(Duration::from_secs(3600)), move |world| world.tags.forget(&arn));
}

/// `ELB net/NAME/ID`, as the interfaces of a load balancer are described.
fn interface_of(arn: &str) -> String {
    format!("ELB {}", arn.split_once(":loadbalancer/").map_or(arn, |(_, name)| name))
}

/// What the controllers of a cluster created in a network and did not remove.
#[derive(Debug)]
pub struct Leftovers {
    /// A network load balancer with an interface in each subnet.
    pub balancer: String,
    /// Its target group.
    pub target_group: String,
    /// Its security group, to which a rule of the cluster's own group refers.
    pub group: String,
    /// The security group of the cluster.
    pub cluster_group: String,
    /// An interface that no pod uses.
    pub interface: String,
}

/// Creates in a VPC what the controllers of a cluster leave behind if it is deleted before its services are.
pub fn leave_behind(world: &mut World, scope: &Scope, cluster: &str, vpc: &str, subnets: &[String]) -> Leftovers {
    let (random, now) = (world.random.clone(), world.now());
    let id = |prefix: &str| format!("{prefix}-0{}", random.hex(16));
    let (group, cluster_group, interface) = (id("sg"), id("sg"), id("eni"));
    let owned = format!("kubernetes.io/cluster/{cluster}");
    let tags = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let rule = json!({
        "FromPort": 443, "ToPort": 443, "IpProtocol": "tcp", "IpRanges": [], "Ipv6Ranges": [], "PrefixListIds": [],
        "UserIdGroupPairs": [{ "Description": "elbv2.k8s.aws/targetGroupBinding=shared", "GroupId": group, "UserId": scope.account }],
    });
    let value = |name: String, ingress: Value| {
        json!({
            "Description": name, "GroupName": name, "IpPermissions": ingress, "IpPermissionsEgress": [],
            "OwnerId": scope.account, "VpcId": vpc,
        })
    };
    let settled = || Stages::settled("");
    let place = |world: &mut World, id: &str, value: Value, tags: Vec<(String, String)>| {
        ec2::place(world, scope, (id, &ec2::GROUP), value, settled(), (tags, now));
        world.uses.add(id, vpc);
    };
    let of_controller = tags(&[("elbv2.k8s.aws/cluster", cluster), ("elbv2.k8s.aws/resource", "backend-sg")]);
    place(world, &group, value(format!("k8s-traffic-{cluster}"), json!([])), of_controller);
    let of_cluster = tags(&[(owned.as_str(), "owned")]);
    place(world, &cluster_group, value(format!("eks-cluster-sg-{cluster}"), json!([rule])), of_cluster);

    let arn = |kind: &str, name: &str| {
        format!("arn:aws:elasticloadbalancing:{}:{}:{kind}/{name}/{}", scope.region, scope.account, random.hex(16))
    };
    let balancer = arn("loadbalancer/net", "k8s-textnlp");
    let target_group = arn("targetgroup", "k8s-textnlp");
    let zones: Vec<Value> = subnets
        .iter()
        .map(|subnet| {
            let zone = world
                .find::<ec2::Ec2>(scope)
                .and_then(|state| state.get(subnet))
                .map(|item| item.value["AvailabilityZone"].clone());
            json!({ "SubnetId": subnet, "ZoneName": zone })
        })
        .collect();
    let state = world.state::<Elb>(scope);
    state.balancers.insert(balancer.clone(), json!({
        "AvailabilityZones": zones, "LoadBalancerArn": balancer, "LoadBalancerName": "k8s-textnlp",
        "Scheme": "internet-facing", "SecurityGroups": [group], "State": { "Code": "active" }, "Type": "network", "VpcId": vpc,
    }));
    state.groups.insert(
        target_group.clone(),
        json!({
            "LoadBalancerArns": [balancer], "Port": 8443, "Protocol": "TCP", "TargetGroupArn": target_group,
            "TargetGroupName": "k8s-textnlp", "TargetType": "ip", "VpcId": vpc,
        }),
    );
    for arn in [&balancer, &target_group] {
        world.tags.set(arn, tags(&[("elbv2.k8s.aws/cluster", cluster)]), now);
    }
    let (groups, description) = ([group.clone()], interface_of(&balancer));
    for subnet in subnets {
        let new = interfaces::New {
            subnet,
            groups: &groups,
            description: &description,
            kind: "network_load_balancer",
            public_address: Some("203.0.113.1"),
        };
        interfaces::place(world, scope, &id("eni"), &new, "in-use", Vec::new());
    }
    if let Some(subnet) = subnets.first() {
        let groups = [cluster_group.clone()];
        let new = interfaces::New {
            subnet,
            groups: &groups,
            description: "aws-K8S-i-0",
            kind: "interface",
            public_address: None,
        };
        let of_cni =
            tags(&[("cluster.k8s.amazonaws.com/name", cluster), ("node.k8s.amazonaws.com/instance_id", "i-0")]);
        interfaces::place(world, scope, &interface, &new, "available", of_cni);
    }
    Leftovers { balancer, target_group, group, cluster_group, interface }
}

/// Puts a classic load balancer without tags into the place of one with an ARN, which was deleted less than an hour ago.
pub fn renew_classic(world: &mut World, scope: &Scope, arn: &str) {
    let name = arn.rsplit('/').next().unwrap_or_default().to_owned();
    world.state::<Elb>(scope).renewed.insert(name);
}

/// Creates in a VPC a classic load balancer with an interface in each subnet and a security group of its own, which a service of a
/// cluster left behind; returns its ARN and its group.
pub fn leave_classic_behind(
    world: &mut World,
    scope: &Scope,
    cluster: &str,
    vpc: &str,
    subnets: &[String],
) -> (String, String) {
    let (random, now) = (world.random.clone(), world.now());
    let (name, group) = (format!("a{}", random.hex(31)), format!("sg-0{}", random.hex(16)));
    let owned = vec![(format!("kubernetes.io/cluster/{cluster}"), "owned".to_owned())];
    let title = format!("k8s-elb-{name}");
    let value = json!({
        "Description": title, "GroupName": title, "IpPermissions": [], "IpPermissionsEgress": [],
        "OwnerId": scope.account, "VpcId": vpc,
    });
    ec2::place(world, scope, (group.as_str(), &ec2::GROUP), value, Stages::settled(""), (owned.clone(), now));
    world.uses.add(&group, vpc);
    let arn = classic_arn(scope, &name);
    world.state::<Elb>(scope).classics.insert(name.clone(), json!({
        "LoadBalancerName": name, "Scheme": "internet-facing", "SecurityGroups": [group], "Subnets": subnets, "VPCId": vpc,
    }));
    world.tags.set(&arn, owned, now);
    let (groups, description) = ([group.clone()], interface_of(&arn));
    for subnet in subnets {
        let new = interfaces::New {
            subnet,
            groups: &groups,
            description: &description,
            // Its interfaces have no type of their own.
            kind: "interface",
            public_address: Some("203.0.113.2"),
        };
        interfaces::place(world, scope, &format!("eni-0{}", random.hex(16)), &new, "in-use", Vec::new());
    }
    (arn, group)
}
