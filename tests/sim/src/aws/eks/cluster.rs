//! Clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::access::Entry;
use super::addon::Addon;
use super::node_group::NodeGroup;
use super::pod_identity::Association;
use super::{
    CLUSTERS, Change, DEFAULT_KUBERNETES, Eks, KUBERNETES, active, bad_token, cluster, eks, in_use, invalid, mismatch,
    new_tags, role, set_tags, start, texts, zones,
};
use crate::aws::ec2::interfaces::{New, attach, detach};
use crate::aws::ec2::{GROUP, place};
use crate::aws::logs::{LogGroup, Logs};
use crate::{Call, Fault, Stages, World, timestamp};

const MINUTE: Duration = Duration::from_secs(60);
/// Minor versions by which nodes may be older than the control plane.
const NODE_SKEW: usize = 3;

/// A cluster.
pub struct Cluster {
    /// Its ARN.
    pub arn: String,
    /// Its version.
    pub version: String,
    /// CREATING, ACTIVE, UPDATING, DELETING or FAILED.
    pub state: Stages,
    /// Its node groups by name.
    pub node_groups: BTreeMap<String, NodeGroup>,
    /// Its add-ons by name.
    pub addons: BTreeMap<String, Addon>,
    /// Its access entries by the ARNs of their principals.
    pub entries: BTreeMap<String, Entry>,
    /// Its pod identity associations by id.
    pub associations: BTreeMap<String, Association>,
    /// The VPC of its subnets.
    pub vpc: String,
    /// The group that EKS gives it.
    pub security_group: String,
    /// The issuer of its tokens.
    pub issuer: String,
    pub(super) authentication: String,
    name: String,
    role: String,
    subnets: Vec<String>,
    groups: Vec<String>,
    private: bool,
    public: bool,
    cidrs: Vec<String>,
    /// The key that its secrets are encrypted with.
    pub key: Option<String>,
    logs: BTreeSet<String>,
    support: String,
    protected: bool,
    interfaces: Vec<String>,
    created: Timestamp,
    failure: Option<(String, String)>,
}

impl Cluster {
    /// Whether claims that name no class get volumes.
    #[must_use]
    pub fn has_default_class(&self) -> bool {
        let driver = self.addons.get("aws-ebs-csi-driver");
        driver.and_then(|driver| driver.setting("/defaultStorageClass/enabled")) == Some(Value::Bool(true))
    }

    /// Its node groups whose machines offer their GPUs to no pod before a device plugin runs on them.
    #[must_use]
    pub fn without_device_plugin(&self) -> Vec<&str> {
        let groups = self.node_groups.iter().filter(|(_, group)| group.has_driver_only());
        groups.map(|(name, _)| name.as_str()).collect()
    }

    /// Whether its network add-on gives its network interfaces these tags.
    pub(super) fn has_interface_tags(&self, keys: &BTreeSet<String>) -> bool {
        let tags = self.addons.get("vpc-cni").and_then(|network| network.setting("/env/ADDITIONAL_ENI_TAGS"));
        let tags = tags.and_then(|tags| serde_json::from_str::<Value>(tags.as_str()?).ok()).unwrap_or_default();
        keys.iter().all(|key| tags.get(key).is_some())
    }

    /// Whether it has a node that pods are scheduled to.
    pub(super) fn has_nodes(&self, now: Timestamp) -> bool {
        self.node_groups.values().any(|group| ["ACTIVE", "UPDATING"].contains(&group.state.at(now)))
    }
}

fn answer(world: &World, call: &Call, name: &str) -> Value {
    let Some(state) = world.find::<Eks>(&call.scope()) else { return Value::Null };
    let Some(cluster) = state.clusters.get(name) else { return Value::Null };
    let status = cluster.state.at(call.now);
    let issues: Vec<Value> = cluster
        .failure
        .iter()
        .filter(|_| status == "FAILED")
        .map(|(code, message)| json!({ "code": code, "message": message, "resourceIds": [] }))
        .collect();
    let off: Vec<&str> = LOGS.into_iter().filter(|name| !cluster.logs.contains(*name)).collect();
    let mut answer = json!({
        "name": name,
        "arn": cluster.arn,
        "createdAt": timestamp(cluster.created),
        "version": cluster.version,
        "roleArn": cluster.role,
        "resourcesVpcConfig": {
            "subnetIds": cluster.subnets,
            "securityGroupIds": cluster.groups,
            "vpcId": cluster.vpc,
            "endpointPublicAccess": cluster.public,
            "endpointPrivateAccess": cluster.private,
            "publicAccessCidrs": cluster.cidrs,
        },
        "kubernetesNetworkConfig": { "serviceIpv4Cidr": "172.20.0.0/16", "ipFamily": "ipv4" },
        "logging": { "clusterLogging": [
            { "types": cluster.logs, "enabled": true },
            { "types": off, "enabled": false },
        ] },
        "status": status,
        "platformVersion": "eks.1",
        "health": { "issues": issues },
        "accessConfig": { "authenticationMode": cluster.authentication },
        "upgradePolicy": { "supportType": cluster.support },
        "deletionProtection": cluster.protected,
    });
    set_tags(world, &cluster.arn, &mut answer);
    if let Some(key) = &cluster.key {
        answer["encryptionConfig"] = json!([{ "resources": ["secrets"], "provider": { "keyArn": key } }]);
    }
    if !["CREATING", "FAILED"].contains(&status) {
        let id = cluster.issuer.rsplit('/').next().unwrap_or_default();
        let made_up = (
            format!("https://{id}.gr7.{}.eks.amazonaws.com", call.region),
            "-----BEGIN CERTIFICATE-----\nc2ltdWxhdGVk\n-----END CERTIFICATE-----\n".to_owned(),
        );
        let (endpoint, ca) = state.endpoint.clone().unwrap_or(made_up);
        answer["endpoint"] = json!(endpoint);
        answer["certificateAuthority"] = json!({ "data": base64::engine::general_purpose::STANDARD.encode(ca) });
        answer["identity"] = json!({ "oidc": { "issuer": cluster.issuer } });
        answer["resourcesVpcConfig"]["clusterSecurityGroupId"] = json!(cluster.security_group);
    }
    answer
}

const LOGS: [&str; 5] = ["api", "audit", "authenticator", "controllerManager", "scheduler"];

/// The logs that a setting switches on and off.
fn logs(setting: &Value, logs: &mut BTreeSet<String>) {
    for setup in setting["clusterLogging"].as_array().into_iter().flatten() {
        for name in texts(&setup["types"]) {
            if setup["enabled"] == true {
                logs.insert(name);
            } else {
                logs.remove(&name);
            }
        }
    }
}

fn is_network(cidr: &str) -> bool {
    cidr.split_once('/').is_some_and(|(address, length)| {
        address.parse::<std::net::IpAddr>().is_ok() && length.parse::<u8>().is_ok_and(|length| length <= 128)
    })
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = world.once(call, "clientRequestToken", mismatch(), |world| new(world, call))?;
    Ok(json!({ "cluster": answer(world, call, &name) }))
}

fn new(world: &mut World, call: &Call) -> Result<String, Fault> {
    let name = call.text("name").to_owned();
    let limit = world.quotas.of(&call.scope(), &CLUSTERS);
    let clusters = &eks(world, call).clusters;
    if clusters.contains_key(&name) {
        return Err(in_use(format!("Cluster already exists with name: {name}")).with("clusterName", name));
    }
    if clusters.len() as f64 >= limit {
        let message = format!("Cluster limit exceeded for account, limit: {limit}");
        return Err(Fault::new("ResourceLimitExceededException", message));
    }
    let version = call.str("version").unwrap_or(DEFAULT_KUBERNETES).to_owned();
    if !KUBERNETES.contains(&version.as_str()) {
        return Err(invalid(format!("unsupported Kubernetes version {version}")));
    }
    let arn = call.text("roleArn");
    if role(world, call, arn, "eks.amazonaws.com", &["sts:AssumeRole"]).is_none() {
        return Err(invalid(format!(
            "Role with arn: {arn}, could not be assumed because it does not exist or the trusted entity is not correct"
        )));
    }
    let vpc = &call.input["resourcesVpcConfig"];
    let subnets = texts(&vpc["subnetIds"]);
    let (zones, vpc_id) = zones(world, call, &subnets)?;
    if zones.len() < 2 {
        return Err(Fault::new("InvalidParameterException", "Subnets specified must be in at least two different AZs"));
    }
    let given = |member: &str, usual: bool| vpc[member].as_bool().unwrap_or(usual);
    let (private, public) = (given("endpointPrivateAccess", false), given("endpointPublicAccess", true));
    if !private && !public {
        return Err(invalid("Private and public endpoint access cannot be false"));
    }
    let cidrs = networks(vpc)?;
    let key = call.input["encryptionConfig"][0]["provider"]["keyArn"].as_str().map(str::to_owned);
    if key.as_deref().is_some_and(|key| !key.starts_with("arn:aws:kms:")) {
        return Err(invalid("The keyArn in encryptionConfig provider is invalid"));
    }
    let tags = new_tags(call)?;
    let mut on = BTreeSet::new();
    logs(&call.input["logging"], &mut on);
    let access = &call.input["accessConfig"];
    let authentication = access["authenticationMode"].as_str().unwrap_or("CONFIG_MAP").to_owned();
    let failure = eks(world, call).failures.remove(&("create", name.clone()));
    let last = if failure.is_some() { "FAILED" } else { "ACTIVE" };
    let arn = call.arn(&format!("cluster/{name}"));
    let security_group = security_group(world, call, &name, &vpc_id);
    // Its control plane has network interfaces in two subnets.
    let mut interfaces = Vec::new();
    for subnet in subnets.iter().take(2) {
        let description = format!("Amazon EKS {name}");
        let groups = [security_group.clone()];
        let new = New { subnet, groups: &groups, description: &description, kind: "interface", public_address: None };
        interfaces.push(attach(world, call, &new));
    }
    let mut cluster = Cluster {
        arn: arn.clone(),
        version,
        state: call.stages("CREATING", &[(10 * MINUTE, last)]),
        node_groups: BTreeMap::new(),
        addons: BTreeMap::new(),
        entries: BTreeMap::new(),
        associations: BTreeMap::new(),
        vpc: vpc_id.clone(),
        security_group,
        issuer: format!("https://oidc.eks.{}.amazonaws.com/id/{}", call.region, call.random.hex(32).to_uppercase()),
        authentication,
        name: name.clone(),
        role: call.text("roleArn").to_owned(),
        subnets: subnets.clone(),
        groups: texts(&vpc["securityGroupIds"]),
        private,
        public,
        cidrs: cidrs.unwrap_or_else(|| vec!["0.0.0.0/0".to_owned()]),
        key,
        logs: on,
        support: call.input["upgradePolicy"]["supportType"].as_str().unwrap_or("EXTENDED").to_owned(),
        protected: call.is("deletionProtection"),
        interfaces,
        created: call.now,
        failure,
    };
    if access["bootstrapClusterCreatorAdminPermissions"] != false && cluster.authentication != "CONFIG_MAP" {
        cluster.entries.insert(call.identity.clone(), Entry::administrator(call, &name));
    }
    eks(world, call).clusters.insert(name.clone(), cluster);
    world.tags.set(&arn, tags, call.visible());
    Ok(name)
}

/// The group that EKS gives a cluster; its nodes are in it too.
fn security_group(world: &mut World, call: &Call, name: &str, vpc: &str) -> String {
    let id = call.id("sg");
    let value = json!({
        "Description": "EKS created security group applied to ENI that is attached to EKS Control Plane master nodes, as well as \
                        any managed workloads.",
        "GroupName": format!("eks-cluster-sg-{name}-{}", call.random.number() % 1_000_000_000),
        "IpPermissions": [],
        "IpPermissionsEgress": [],
        "OwnerId": call.account,
        "VpcId": vpc,
    });
    let tags = [(format!("kubernetes.io/cluster/{name}"), "owned"), ("aws:eks:cluster-name".to_owned(), name)];
    let tags = tags.map(|(key, value)| (key, value.to_owned())).to_vec();
    place(world, &call.scope(), (id.as_str(), &GROUP), value, Stages::settled(""), (tags, call.visible()));
    world.uses.add(&id, vpc);
    id
}

fn networks(vpc: &Value) -> Result<Option<Vec<String>>, Fault> {
    let Some(_) = vpc["publicAccessCidrs"].as_array() else { return Ok(None) };
    let cidrs = texts(&vpc["publicAccessCidrs"]);
    match cidrs.iter().find(|cidr| !is_network(cidr)) {
        Some(wrong) => Err(invalid(format!("The following CIDRs are not valid: [{wrong}]"))),
        None => Ok(Some(cidrs)),
    }
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    cluster(world, call, "name")?;
    Ok(json!({ "cluster": answer(world, call, call.text("name")) }))
}

pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let names = eks(world, call).clusters.keys().map(|name| json!(name)).collect();
    call.page("clusters", names, bad_token())
}

fn set_updating(cluster: &mut Cluster, call: &Call, takes: Duration) {
    cluster.state = call.stages("UPDATING", &[(takes, "ACTIVE")]);
}

pub(super) fn update_version(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let cluster = active(world, call, "name")?;
    let version = call.str("version").unwrap_or_default().to_owned();
    let place = |version: &str| KUBERNETES.iter().position(|known| *known == version);
    match (place(&cluster.version), place(&version)) {
        (Some(from), Some(to)) if to == from + 1 => {}
        (Some(from), Some(to)) if to == from => {
            return Err(invalid(format!("Cluster is already at Kubernetes version {version}")));
        }
        (_, Some(_)) => {
            let message = format!("Unsupported Kubernetes minor version update from {} to {version}", cluster.version);
            return Err(invalid(message));
        }
        (_, None) => return Err(invalid(format!("unsupported Kubernetes version {version}"))),
    }
    let is_too_old =
        |group: &NodeGroup| place(&group.version).zip(place(&version)).is_some_and(|(of, to)| of + NODE_SKEW < to);
    let outdated = cluster.node_groups.iter().filter(|(_, group)| is_too_old(group));
    let outdated: Vec<&str> = outdated.map(|(name, _)| name.as_str()).collect();
    if !outdated.is_empty() {
        return Err(invalid(format!(
            "Nodegroups {} must be updated to match cluster version {} before updating cluster version",
            outdated.join(", "),
            cluster.version
        )));
    }
    let takes = 20 * MINUTE;
    set_updating(cluster, call, takes);
    let params = vec![("Version", version.clone())];
    let change = Change { cluster: call.text("name").to_owned(), part: None, kind: "VersionUpdate", params, takes };
    Ok(start(world, call, change, move |cluster| cluster.version = version))
}

pub(super) fn update_config(world: &mut World, call: &Call) -> Result<Value, Fault> {
    active(world, call, "name")?;
    let vpc = call.input["resourcesVpcConfig"].clone();
    let has = |member: &str| vpc.get(member).is_some();
    let kinds: Vec<&'static str> = [
        (call.input.get("logging").is_some(), "LoggingUpdate"),
        (
            has("endpointPrivateAccess") || has("endpointPublicAccess") || has("publicAccessCidrs"),
            "EndpointAccessUpdate",
        ),
        (has("subnetIds") || has("securityGroupIds"), "VpcConfigUpdate"),
        (call.input.get("accessConfig").is_some(), "AccessConfigUpdate"),
        (call.input.get("upgradePolicy").is_some(), "UpgradePolicyUpdate"),
        (call.input.get("deletionProtection").is_some(), "DeletionProtectionUpdate"),
    ]
    .into_iter()
    .filter_map(|(is_given, kind)| is_given.then_some(kind))
    .collect();
    let kind = match kinds.as_slice() {
        [kind] => *kind,
        [] => return Err(invalid("No updates are given")),
        _ => return Err(invalid("Only one type of update can be allowed.")),
    };
    let cidrs = networks(&vpc)?;
    let subnets = has("subnetIds").then(|| texts(&vpc["subnetIds"]));
    if let Some(subnets) = &subnets {
        let (zones, vpc_id) = zones(world, call, subnets)?;
        if zones.len() < 2 {
            return Err(invalid("Subnets specified must be in at least two different AZs"));
        }
        if vpc_id != active(world, call, "name")?.vpc {
            return Err(invalid("Provided subnets belong to another VPC than that of the cluster"));
        }
    }
    let cluster = active(world, call, "name")?;
    let mut on = cluster.logs.clone();
    logs(&call.input["logging"], &mut on);
    let flag = |member: &str, old: bool| vpc[member].as_bool().unwrap_or(old);
    let (private, public) =
        (flag("endpointPrivateAccess", cluster.private), flag("endpointPublicAccess", cluster.public));
    if !private && !public {
        return Err(invalid("Private and public endpoint access cannot be false"));
    }
    let cidrs = cidrs.unwrap_or_else(|| cluster.cidrs.clone());
    let subnets = subnets.unwrap_or_else(|| cluster.subnets.clone());
    let groups = if has("securityGroupIds") { texts(&vpc["securityGroupIds"]) } else { cluster.groups.clone() };
    let text = |value: &Value, old: &str| value.as_str().unwrap_or(old).to_owned();
    let authentication = text(&call.input["accessConfig"]["authenticationMode"], &cluster.authentication);
    let support = text(&call.input["upgradePolicy"]["supportType"], &cluster.support);
    let protected = call.input["deletionProtection"].as_bool().unwrap_or(cluster.protected);
    let is_same = on == cluster.logs
        && (private, public) == (cluster.private, cluster.public)
        && cidrs == cluster.cidrs
        && subnets == cluster.subnets
        && groups == cluster.groups
        && authentication == cluster.authentication
        && support == cluster.support
        && protected == cluster.protected;
    if is_same {
        return Err(invalid("No changes needed for the config provided"));
    }
    if authentication != cluster.authentication && authentication == "CONFIG_MAP" {
        let message = format!("Unsupported authentication mode update from {} to CONFIG_MAP", cluster.authentication);
        return Err(invalid(message));
    }
    let takes = if ["UpgradePolicyUpdate", "DeletionProtectionUpdate"].contains(&kind) {
        Duration::from_secs(5)
    } else {
        3 * MINUTE
    };
    set_updating(cluster, call, takes);
    let change = Change { cluster: call.text("name").to_owned(), part: None, kind, params: Vec::new(), takes };
    Ok(start(world, call, change, move |cluster| {
        (cluster.logs, cluster.private, cluster.public, cluster.cidrs) = (on, private, public, cidrs);
        (cluster.subnets, cluster.groups, cluster.authentication) = (subnets, groups, authentication);
        (cluster.support, cluster.protected) = (support, protected);
    }))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("name").to_owned();
    let now = call.now;
    let cluster = cluster(world, call, "name")?;
    let state = cluster.state.at(now);
    if state == "DELETING" {
        return Ok(json!({ "cluster": answer(world, call, &name) }));
    }
    if state != "ACTIVE" && state != "FAILED" {
        return Err(in_use(format!("Cannot delete because cluster {name} is in {state} status")));
    }
    if !cluster.node_groups.is_empty() {
        return Err(in_use("Cluster has nodegroups attached").with("clusterName", name));
    }
    if cluster.protected {
        let message = format!("Cluster {name} cannot be deleted because deletion protection is enabled");
        return Err(Fault::new("InvalidRequestException", message));
    }
    let takes = 5 * MINUTE;
    cluster.state = Stages::settled("DELETING");
    let arn = cluster.arn.clone();
    let scope = call.scope();
    if !cluster.logs.is_empty() {
        let (scope, group) = (scope.clone(), format!("/aws/eks/{name}/cluster"));
        // Its last entries are late.
        world.defer(call.due(takes + MINUTE), move |world| {
            let created = world.now();
            world.state::<Logs>(&scope).groups.entry(group).or_insert_with(|| LogGroup::by_service(created));
        });
    }
    world.defer(call.due(takes), move |world| {
        if let Some(gone) = world.state::<Eks>(&scope).clusters.remove(&cluster_name(&arn)) {
            let addons = gone.addons.values().map(|addon| addon.arn.clone());
            let entries = gone.entries.values().map(|entry| entry.arn.clone());
            let associations = gone.associations.values().map(|association| association.arn.clone());
            for inside in addons.chain(entries).chain(associations) {
                world.tags.forget(&inside);
            }
            for id in gone.interfaces.iter().chain([&gone.security_group]) {
                detach(world, &scope, id);
            }
        }
        world.uses.forget(&arn);
        world.tags.forget(&arn);
    });
    Ok(json!({ "cluster": answer(world, call, &name) }))
}

fn cluster_name(arn: &str) -> String {
    arn.rsplit('/').next().unwrap_or_default().to_owned()
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name).field("version", &self.version).finish_non_exhaustive()
    }
}
