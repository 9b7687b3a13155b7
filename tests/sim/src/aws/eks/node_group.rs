//! Managed node groups.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::access::Entry;
use super::{
    Change, Cluster, Eks, KUBERNETES, NODE_GROUPS, active, bad_token, cluster, eks, images, in_use, invalid, mismatch,
    new_tags, not_found, role, set_tags, start, texts, zones,
};
use crate::aws::ec2::nodes_reach_eks;
use crate::aws::iam::Iam;
use crate::{Call, Fault, Market, Quota, Scope, Stages, World, timestamp};

const MINUTE: Duration = Duration::from_secs(60);
/// After which time EKS gives up on machines that cannot be had.
const PATIENCE: Duration = Duration::from_secs(25 * 60);

/// A node group of a cluster.
#[derive(Clone, Debug)]
pub struct NodeGroup {
    /// Its ARN.
    pub arn: String,
    /// CREATING, ACTIVE, UPDATING, DELETING, CREATE_FAILED or DELETE_FAILED.
    pub state: Stages,
    /// The least, the most and the wanted number of nodes: a test may change the last one, as an autoscaler does.
    pub scaling: (i64, i64, i64),
    /// ON_DEMAND or SPOT.
    pub capacity: String,
    /// Its version.
    pub version: String,
    /// The release of the image of its nodes.
    pub release: String,
    types: Vec<String>,
    subnets: Vec<String>,
    role: String,
    ami: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Value>,
    template: Option<Value>,
    unavailable: i64,
    repair: bool,
    issue: Option<(String, String)>,
    /// The machines that it has: zone, type, market and count.
    taken: Option<(String, String, Market, u64)>,
    created: Timestamp,
}

impl NodeGroup {
    /// Whether its image has NVIDIA's driver and no device plugin, as all images of Amazon Linux.
    pub(super) fn has_driver_only(&self) -> bool {
        self.ami.starts_with("AL2023_") && self.ami.ends_with("_NVIDIA")
    }
}

fn group<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut NodeGroup, Fault> {
    let name = call.text("nodegroupName").to_owned();
    cluster(world, call, "clusterName")?
        .node_groups
        .get_mut(&name)
        .ok_or_else(|| not_found(format!("No node group found for name: {name}.")))
}

fn answer(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("nodegroupName");
    let group = group(world, call)?.clone();
    let status = group.state.at(call.now);
    let failed = ["CREATE_FAILED", "DELETE_FAILED"].contains(&status);
    let issues: Vec<Value> = group
        .issue
        .iter()
        .filter(|_| failed)
        .map(|(code, message)| json!({ "code": code, "message": message, "resourceIds": [] }))
        .collect();
    let (min, max, desired) = group.scaling;
    let mut answer = json!({
        "nodegroupName": name,
        "nodegroupArn": group.arn,
        "clusterName": call.text("clusterName"),
        "version": group.version,
        "releaseVersion": group.release,
        "createdAt": timestamp(group.created),
        "modifiedAt": timestamp(group.created),
        "status": status,
        "capacityType": group.capacity,
        "scalingConfig": { "minSize": min, "maxSize": max, "desiredSize": desired },
        "instanceTypes": group.types,
        "subnets": group.subnets,
        "amiType": group.ami,
        "nodeRole": group.role,
        "labels": group.labels,
        "taints": group.taints,
        "resources": { "autoScalingGroups": [{ "name": format!("eks-{name}-{}", group.arn.rsplit('/').next().unwrap_or_default()) }] },
        "health": { "issues": issues },
        "updateConfig": { "maxUnavailable": group.unavailable },
        "nodeRepairConfig": { "enabled": group.repair },
    });
    set_tags(world, &group.arn, &mut answer);
    if let Some(template) = group.template {
        answer["launchTemplate"] = template;
    }
    Ok(json!({ "nodegroup": answer }))
}

/// vCPUs and the quota of a type: on demand, and spot.
fn machine(name: &str) -> Option<(u64, &'static str, &'static str)> {
    const FAMILIES: &[(&[&str], &str, &str)] = &[
        (&["g4dn", "g5", "g6", "g6e"], "L-DB2E81BA", "L-3819A6DF"),
        (&["p4d", "p4de"], "L-417A185B", "L-7212CCBC"),
        (&["p5", "p5e", "p5en"], "L-417A185B", "L-C4BD4855"),
        (&["c5", "c7i", "m5", "m6i", "m7i", "t3"], "L-1216C47A", "L-34B43A08"),
    ];
    let (family, size) = name.split_once('.')?;
    let (_, on_demand, spot) = FAMILIES.iter().find(|(names, ..)| names.contains(&family))?;
    let vcpus = match size {
        "medium" | "large" => 2,
        "xlarge" => 4,
        _ => 4 * size.strip_suffix("xlarge")?.parse::<u64>().ok()?,
    };
    Some((vcpus, on_demand, spot))
}

fn scaling(setting: &Value, old: (i64, i64, i64)) -> Result<(i64, i64, i64), Fault> {
    let part = |member: &str, old: i64| setting[member].as_i64().unwrap_or(old);
    let (min, max, desired) = (part("minSize", old.0), part("maxSize", old.1), part("desiredSize", old.2));
    if min > desired {
        return Err(invalid(format!("Minimum capacity {min} can't be greater than desired size {desired}")));
    }
    if desired > max {
        return Err(invalid(format!("desired capacity {desired} can't be greater than max size {max}")));
    }
    if max < 1 {
        return Err(invalid("Maximum capacity must be at least 1"));
    }
    Ok((min, max, desired))
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    world.once(call, "clientRequestToken", mismatch(), |world| new(world, call))?;
    answer(world, call)
}

fn new(world: &mut World, call: &Call) -> Result<String, Fault> {
    let (cluster_name, name) = (call.text("clusterName").to_owned(), call.text("nodegroupName").to_owned());
    let limit = world.quotas.of(&call.scope(), &NODE_GROUPS);
    let cluster = active(world, call, "clusterName")?;
    let (kubernetes, vpc) = (cluster.version.clone(), cluster.vpc.clone());
    if cluster.node_groups.contains_key(&name) {
        let message = format!("NodeGroup already exists with name {name} and cluster name {cluster_name}");
        return Err(in_use(message).with("clusterName", cluster_name).with("nodegroupName", name));
    }
    if cluster.node_groups.len() as f64 >= limit {
        let message = format!("nodegroup limit exceeded for cluster, limit: {limit}");
        return Err(Fault::new("ResourceLimitExceededException", message));
    }
    let arn = call.text("nodeRole").to_owned();
    let short = arn.rsplit('/').next().unwrap_or_default();
    let known = world.find::<Iam>(&call.global()).and_then(|iam| iam.seen_role(&arn, call.now)).cloned();
    let Some(known) = known else {
        return Err(invalid(format!("The role with name {short} cannot be found.")));
    };
    let machines = if call.region.starts_with("cn-") { "ec2.amazonaws.com.cn" } else { "ec2.amazonaws.com" };
    if role(world, call, &arn, machines, &["sts:AssumeRole"]).is_none() {
        return Err(invalid(format!(
            "Following required service principals [{machines}] were not found in the trust relationships of nodeRole {arn}"
        )));
    }
    let subnets = texts(&call.input["subnets"]);
    let (zones, subnet_vpc) = zones(world, call, &subnets)?;
    if subnet_vpc != vpc {
        return Err(invalid("Subnets are not tied to the cluster's VPC"));
    }
    let mut types = texts(&call.input["instanceTypes"]);
    if types.is_empty() {
        types.push("t3.medium".to_owned());
    }
    let unknown: Vec<&str> = types.iter().map(String::as_str).filter(|name| machine(name).is_none()).collect();
    if !unknown.is_empty() {
        return Err(invalid(format!("The following supplied instance types do not exist: [{}]", unknown.join(", "))));
    }
    let version = call.str("version").unwrap_or(&kubernetes).to_owned();
    check_version(&version, &kubernetes)?;
    let release = release(call, &version)?;
    let scaling = scaling(&call.input["scalingConfig"], (1, 2, 2))?;
    let template = call.input.get("launchTemplate").cloned();
    if template.is_some() && call.input.get("diskSize").is_some() {
        return Err(invalid("Disk size must be specified within the launch template."));
    }
    let capacity = call.str("capacityType").unwrap_or("ON_DEMAND").to_owned();
    let market = if capacity == "SPOT" { Market::Spot } else { Market::OnDemand };
    let tags = new_tags(call)?;
    let count = u64::try_from(scaling.2).unwrap_or_default();
    let zones: Vec<String> = zones.into_iter().collect();
    let failure = eks(world, call).failures.remove(&("create", name.clone()));
    let reaches_eks =
        !eks(world, call).needs_routes || subnets.iter().all(|subnet| nodes_reach_eks(world, call, &vpc, subnet));
    let state = eks(world, call);
    let lacks_disk_grant = state.lacks_disk_grant;
    let cluster = state.clusters.get(&cluster_name);
    let has_network = cluster.is_some_and(|cluster| {
        cluster.addons.contains_key("vpc-cni") && cluster.has_interface_tags(&state.demanded_tags)
    });
    let joins = known.managed.iter().any(|policy| policy.ends_with("/AmazonEKSWorkerNodePolicy"));
    let (issue, taken) = match failure {
        Some(issue) => (Some(issue), None),
        None if count == 0 => (None, None),
        None if lacks_disk_grant => {
            let message = "Instance became unhealthy while waiting for instance to be in InService state. Termination Reason: \
                           Client.InternalError: Client error on launch";
            (Some(("AsgInstanceLaunchFailures".to_owned(), message.to_owned())), None)
        }
        None if !joins => (Some(not_joined("Instances failed to join the kubernetes cluster")), None),
        None if !has_network || !reaches_eks => (Some(not_joined("Unhealthy nodes in the kubernetes cluster")), None),
        None => match launch(world, call, &zones, &types, market, count) {
            Ok(taken) => (None, Some(taken)),
            Err(issue) => (Some(issue), None),
        },
    };
    let state = match issue {
        Some(_) => call.stages("CREATING", &[(PATIENCE, "CREATE_FAILED")]),
        None => call.stages("CREATING", &[(3 * MINUTE, "ACTIVE")]),
    };
    let group_arn = call.arn(&format!("nodegroup/{cluster_name}/{name}/{}", call.random.uuid()));
    let group = NodeGroup {
        arn: group_arn.clone(),
        state,
        scaling,
        capacity,
        version,
        release,
        types,
        subnets: subnets.clone(),
        role: arn.clone(),
        ami: call.str("amiType").unwrap_or("AL2023_x86_64_STANDARD").to_owned(),
        labels: super::tags_of(&call.input["labels"]).into_iter().collect(),
        taints: call.list("taints").to_vec(),
        template,
        unavailable: call.input["updateConfig"]["maxUnavailable"].as_i64().unwrap_or(1),
        repair: call.input["nodeRepairConfig"]["enabled"] == true,
        issue,
        taken,
        created: call.now,
    };
    let cluster = active(world, call, "clusterName")?;
    if cluster.authentication != "CONFIG_MAP" && !cluster.entries.contains_key(&arn) {
        cluster.entries.insert(arn.clone(), Entry::of_nodes(call, &cluster_name, &arn));
    }
    cluster.node_groups.insert(name.clone(), group);
    for subnet in &subnets {
        world.uses.add(&group_arn, subnet);
    }
    world.tags.set(&group_arn, tags, call.visible());
    Ok(name)
}

fn not_joined(message: &str) -> (String, String) {
    ("NodeCreationFailure".to_owned(), message.to_owned())
}

fn check_version(version: &str, kubernetes: &str) -> Result<(), Fault> {
    let place = |version: &str| KUBERNETES.iter().position(|known| *known == version);
    match (place(version), place(kubernetes)) {
        (Some(node), Some(cluster)) if node <= cluster => Ok(()),
        (Some(_), _) => {
            Err(invalid(format!("Requested Nodegroup version {version} is greater than cluster version {kubernetes}")))
        }
        (None, _) => Err(invalid(format!("unsupported Kubernetes version {version}"))),
    }
}

/// The release that an input names, or the newest one of the version.
fn release(call: &Call, version: &str) -> Result<String, Fault> {
    let known = images::releases(version, call.now);
    match call.str("releaseVersion") {
        None => Ok(known.into_iter().next().unwrap_or_default()),
        Some(named) if known.iter().any(|one| one == named) => Ok(named.to_owned()),
        Some(named) => {
            Err(invalid(format!("Requested release version {named} is not valid for kubernetes version {version}.")))
        }
    }
}

/// Takes machines of the first type and zone that have them, or tells why the autoscaling group could not launch any.
fn launch(
    world: &mut World,
    call: &Call,
    zones: &[String],
    types: &[String],
    market: Market,
    count: u64,
) -> Result<(String, String, Market, u64), (String, String)> {
    let issue =
        |words: &str| ("AsgInstanceLaunchFailures".to_owned(), format!("{words} Launching EC2 instance failed."));
    let mut over = None;
    for name in types {
        let Some((vcpus, on_demand, spot)) = machine(name) else { continue };
        let code = if market == Market::Spot { spot } else { on_demand };
        let quota = Quota { service: "ec2", code, name: "vCPUs", value: 5_000.0, adjustable: true };
        let limit = world.quotas.of(&call.scope(), &quota);
        if (used(world, &call.scope(), code) + vcpus * count) as f64 > limit {
            over = over.or(Some((limit, name)));
            continue;
        }
        for zone in zones {
            if world.capacity.take(zone, name, market, count) {
                return Ok((zone.clone(), name.clone(), market, count));
            }
        }
    }
    Err(match (market, over) {
        (Market::OnDemand, Some((limit, _))) => issue(&format!(
            "Could not launch On-Demand Instances. VcpuLimitExceeded - You have requested more vCPU capacity than your current vCPU \
             limit of {limit} allows for the instance bucket that the specified instance type belongs to. Please visit \
             http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit."
        )),
        (Market::Spot, Some(_)) => {
            issue("Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot instance count exceeded.")
        }
        (Market::OnDemand, None) => issue(&format!(
            "Could not launch On-Demand Instances. InsufficientInstanceCapacity - We currently do not have sufficient {} capacity \
             in the Availability Zone you requested ({}). Our system will be working on provisioning additional capacity.",
            types.first().map(String::as_str).unwrap_or_default(),
            zones.first().map(String::as_str).unwrap_or_default(),
        )),
        (Market::Spot, None) => issue(
            "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request configuration. \
             Please adjust your request and try again.",
        ),
    })
}

/// vCPUs of running machines that count against a quota.
fn used(world: &World, scope: &Scope, code: &str) -> u64 {
    let clusters = world.find::<Eks>(scope).into_iter().flat_map(|state| state.clusters.values());
    let taken = clusters.flat_map(|cluster| cluster.node_groups.values()).filter_map(|group| group.taken.as_ref());
    taken
        .filter_map(|(_, name, market, count)| {
            let (vcpus, on_demand, spot) = machine(name)?;
            let counted = if *market == Market::Spot { spot } else { on_demand };
            (counted == code).then_some(vcpus * count)
        })
        .sum()
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    answer(world, call)
}

pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let names = cluster(world, call, "clusterName")?.node_groups.keys().map(|name| json!(name)).collect();
    call.page("nodegroups", names, bad_token())
}

/// The node group of an input, if it can be changed.
fn changeable<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut NodeGroup, Fault> {
    let now = call.now;
    let group = group(world, call)?;
    if group.state.at(now) != "ACTIVE" {
        return Err(in_use("Nodegroup cannot be updated as it is currently not in Active State")
            .with("nodegroupName", call.text("nodegroupName")));
    }
    Ok(group)
}

fn change(
    world: &mut World,
    call: &Call,
    kind: &'static str,
    takes: Duration,
    done: impl FnOnce(&mut NodeGroup) + Send + 'static,
) -> Result<Value, Fault> {
    let (cluster_name, name) = (call.text("clusterName").to_owned(), call.text("nodegroupName").to_owned());
    changeable(world, call)?.state = call.stages("UPDATING", &[(takes, "ACTIVE")]);
    let change = Change { cluster: cluster_name, part: Some(name.clone()), kind, params: Vec::new(), takes };
    Ok(start(world, call, change, move |cluster: &mut Cluster| {
        if let Some(group) = cluster.node_groups.get_mut(&name) {
            done(group);
        }
    }))
}

pub(super) fn update_config(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let group = changeable(world, call)?;
    let scaling = scaling(&call.input["scalingConfig"], group.scaling)?;
    let mut labels = group.labels.clone();
    for gone in texts(&call.input["labels"]["removeLabels"]) {
        labels.remove(&gone);
    }
    labels.extend(super::tags_of(&call.input["labels"]["addOrUpdateLabels"]));
    let list = |member: &str| call.input["taints"][member].as_array().cloned().unwrap_or_default();
    let same = |a: &Value, b: &Value| a["key"] == b["key"] && a["effect"] == b["effect"];
    let (new, gone) = (list("addOrUpdateTaints"), list("removeTaints"));
    let is_kept = |taint: &&Value| !gone.iter().chain(&new).any(|other| same(taint, other));
    let taints: Vec<Value> = group.taints.iter().filter(is_kept).chain(&new).cloned().collect();
    let unavailable = call.input["updateConfig"]["maxUnavailable"].as_i64().unwrap_or(group.unavailable);
    let repair = call.input["nodeRepairConfig"]["enabled"].as_bool().unwrap_or(group.repair);
    change(world, call, "ConfigUpdate", Duration::from_secs(30), move |group| {
        (group.scaling, group.labels, group.taints) = (scaling, labels, taints);
        (group.unavailable, group.repair) = (unavailable, repair);
    })
}

pub(super) fn update_version(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let kubernetes = cluster(world, call, "clusterName")?.version.clone();
    let group = changeable(world, call)?;
    let version = call.str("version").unwrap_or(&kubernetes).to_owned();
    check_version(&version, &kubernetes)?;
    if version < group.version {
        return Err(invalid(format!(
            "Requested Nodegroup version {version} is lower than its version {}",
            group.version
        )));
    }
    let release = release(call, &version)?;
    if version == group.version && release < group.release {
        return Err(invalid(format!(
            "Requested Nodegroup release version {release} is lower than its release version {}",
            group.release
        )));
    }
    let template = call.input.get("launchTemplate").cloned().or_else(|| group.template.clone());
    if template.is_some() != group.template.is_some() {
        return Err(invalid("Launch template is not valid: the node group was created without one"));
    }
    change(world, call, "VersionUpdate", 10 * MINUTE, move |group| {
        (group.version, group.release, group.template) = (version, release, template);
    })
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (cluster_name, name) = (call.text("clusterName").to_owned(), call.text("nodegroupName").to_owned());
    let now = call.now;
    let state = group(world, call)?.state.at(now);
    if state == "UPDATING" {
        return Err(in_use("Nodegroup cannot be deleted while it is UPDATING").with("nodegroupName", name));
    }
    if state != "DELETING" {
        let failure = eks(world, call).failures.remove(&("delete", name.clone()));
        let group = group(world, call)?;
        if let Some(issue) = failure {
            group.issue = Some(issue);
            group.state = call.stages("DELETING", &[(5 * MINUTE, "DELETE_FAILED")]);
            return answer(world, call);
        }
        group.state = Stages::settled("DELETING");
        let scope = call.scope();
        world.defer(call.due(3 * MINUTE), move |world| {
            let clusters = &mut world.state::<Eks>(&scope).clusters;
            let gone = clusters.get_mut(&cluster_name).and_then(|cluster| cluster.node_groups.remove(&name));
            let Some(gone) = gone else { return };
            if let Some((zone, name, market, count)) = &gone.taken {
                world.capacity.give(zone, name, *market, *count);
            }
            world.uses.forget(&gone.arn);
            world.tags.forget(&gone.arn);
        });
    }
    answer(world, call)
}
