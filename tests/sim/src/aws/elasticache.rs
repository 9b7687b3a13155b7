//! ElastiCache: replication groups with one shard, and their subnet groups.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{kms, rds};
use crate::{Behaviour, Call, Fault, Market, Quota, Service, Source, Stages, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "elasticache",
    model: "elasticache",
    operations: &[
        ("AddTagsToResource", add_tags),
        ("CreateCacheSubnetGroup", create_subnet_group),
        ("CreateReplicationGroup", create),
        ("DecreaseReplicaCount", change_replicas),
        ("DeleteCacheSubnetGroup", delete_subnet_group),
        ("DeleteReplicationGroup", delete),
        ("DescribeCacheClusters", describe_nodes),
        ("DescribeCacheSubnetGroups", describe_subnet_groups),
        ("DescribeReplicationGroups", describe),
        ("IncreaseReplicaCount", change_replicas),
        ("ListTagsForResource", list_tags),
        ("ModifyCacheSubnetGroup", modify_subnet_group),
        ("ModifyReplicationGroup", modify),
        ("RemoveTagsFromResource", remove_tags),
    ],
    quotas: &[NODES],
    ledger: LEDGER,
};

/// Nodes of a region.
const NODES: Quota =
    Quota { service: "elasticache", code: "L-DFE45DF3", name: "Nodes per Region", value: 300.0, adjustable: true };

const CREATE: Source = Source::Documentation(
    "https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/API_CreateReplicationGroup.html",
);

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "elasticache",
        what: "Multi-AZ needs automatic failover, and that a replica; a token needs TLS and 16 to 128 letters, digits and signs of ! & # $ ^ < > -",
        source: CREATE,
    },
    Behaviour {
        service: "elasticache",
        what: "networks and engine versions are shown by nodes only, which appear with the group",
        source: Source::Model,
    },
    Behaviour {
        service: "elasticache",
        what: "a group in another status than available refuses changes: InvalidReplicationGroupState",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/API_ModifyReplicationGroup.html",
        ),
    },
    Behaviour {
        service: "elasticache",
        what: "with ROTATE the old token stays valid until the next change, and the time of the change is shown",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/auth.html"),
    },
    Behaviour {
        service: "elasticache",
        what: "a new group shows the time of its creation as the last change of its token",
        source: Source::Assumed,
    },
    Behaviour {
        service: "elasticache",
        what: "a maintenance window is a range of a week in UTC, of an hour at least, and shown by nodes only; without one a group gets one",
        source: CREATE,
    },
    Behaviour {
        service: "elasticache",
        what: "how long each status lasts",
        source: Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
    },
    Behaviour {
        service: "elasticache",
        what: "security groups are not looked up",
        source: Source::LeftOut("a plan creates them before the cache"),
    },
    Behaviour {
        service: "elasticache",
        what: "a subnet group that a cache uses is not deleted: CacheSubnetGroupInUse",
        source: Source::Model,
    },
];

/// What ElastiCache holds in a region.
#[derive(Default)]
pub struct ElastiCache {
    /// The groups by their names.
    pub groups: BTreeMap<String, Group>,
    subnet_groups: BTreeMap<String, (String, Vec<String>)>,
}

/// A primary node and its replicas.
pub struct Group {
    /// Its status over time. A test may set another.
    pub status: Stages,
    /// The tokens that clients may use.
    pub tokens: Vec<String>,
    nodes: usize,
    shown: Value,
    version: String,
    subnet_group: String,
    security_groups: Vec<String>,
    window: String,
    ready: Timestamp,
}

const MINUTE: Duration = Duration::from_secs(60);

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("InvalidParameterValue", message)
}

fn combination(message: impl Into<String>) -> Fault {
    Fault::new("InvalidParameterCombination", message)
}

fn not_found(name: &str) -> Fault {
    Fault::new("ReplicationGroupNotFoundFault", format!("ReplicationGroup {name} not found."))
}

fn pairs(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let text = |tag: &Value, member: &str| tag[member].as_str().unwrap_or_default().to_owned();
    let pairs: Vec<_> = call.list("Tags").iter().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect();
    match pairs.iter().any(|(key, _)| key.is_empty() || key.starts_with("aws:")) {
        true => Err(invalid("Tag keys may not begin with aws:")),
        false => Ok(pairs),
    }
}

fn resource(world: &World, call: &Call) -> Result<String, Fault> {
    let arn = call.text("ResourceName");
    if world.tags.has(arn) {
        return Ok(arn.to_owned());
    }
    let name = arn.rsplit(':').next().unwrap_or_default();
    match arn.split(':').nth(5) {
        Some("subnetgroup") => Err(no_subnet_group(name)),
        _ => Err(not_found(name)),
    }
}

fn tag_list(world: &World, arn: &str) -> Value {
    let tags = world.tags.of(arn).into_iter().map(|(key, value)| json!({ "Key": key, "Value": value }));
    json!({ "TagList": tags.collect::<Vec<_>>() })
}

fn list_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = resource(world, call)?;
    Ok(tag_list(world, &arn))
}

fn add_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = pairs(call)?;
    let arn = resource(world, call)?;
    world.tags.set(&arn, tags, call.visible());
    Ok(tag_list(world, &arn))
}

fn remove_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = resource(world, call)?;
    world.tags.remove(&arn, call.texts("TagKeys"));
    Ok(tag_list(world, &arn))
}

fn no_subnet_group(name: &str) -> Fault {
    Fault::new("CacheSubnetGroupNotFoundFault", format!("Cache Subnet Group {name} does not exist."))
}

fn subnets(world: &World, call: &Call) -> Result<Vec<String>, Fault> {
    let wanted: BTreeSet<&str> = call.texts("SubnetIds").into_iter().collect();
    let arn = |id: &str| format!("arn:aws:ec2:{}:{}:subnet/{id}", call.region, call.account);
    match wanted.iter().find(|id| !world.tags.has(&arn(id))) {
        Some(unknown) => Err(Fault::new("InvalidSubnet", format!("The subnet ID '{unknown}' does not exist"))),
        None => Ok(wanted.into_iter().map(str::to_owned).collect()),
    }
}

fn subnet_group(call: &Call, name: &str, (description, subnets): &(String, Vec<String>)) -> Value {
    json!({
        "CacheSubnetGroupName": name,
        "CacheSubnetGroupDescription": description,
        "Subnets": subnets.iter().map(|id| json!({ "SubnetIdentifier": id })).collect::<Vec<_>>(),
        "ARN": call.arn(&format!("subnetgroup:{name}")),
    })
}

fn create_subnet_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("CacheSubnetGroupName").to_lowercase();
    let tags = pairs(call)?;
    let subnets = subnets(world, call)?;
    let groups = &mut world.state::<ElastiCache>(&call.scope()).subnet_groups;
    if groups.contains_key(&name) {
        return Err(Fault::new("CacheSubnetGroupAlreadyExists", format!("Cache Subnet Group {name} already exists.")));
    }
    let group = (call.text("CacheSubnetGroupDescription").to_owned(), subnets);
    let answer = json!({ "CacheSubnetGroup": subnet_group(call, &name, &group) });
    groups.insert(name.clone(), group);
    world.tags.set(&call.arn(&format!("subnetgroup:{name}")), tags, call.visible());
    Ok(answer)
}

fn describe_subnet_groups(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let asked = call.str("CacheSubnetGroupName");
    let groups = &world.state::<ElastiCache>(&call.scope()).subnet_groups;
    if let Some(unknown) = asked.filter(|asked| !groups.contains_key(*asked)) {
        return Err(no_subnet_group(unknown));
    }
    let groups = groups.iter().filter(|(name, _)| asked.is_none_or(|asked| asked == *name));
    let groups = groups.map(|(name, group)| subnet_group(call, name, group)).collect();
    call.page("CacheSubnetGroups", groups, invalid("Invalid marker"))
}

fn modify_subnet_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("CacheSubnetGroupName");
    let wanted = call.input.get("SubnetIds").map(|_| subnets(world, call)).transpose()?;
    let group =
        world.state::<ElastiCache>(&call.scope()).subnet_groups.get_mut(name).ok_or_else(|| no_subnet_group(name))?;
    if let Some(description) = call.str("CacheSubnetGroupDescription") {
        description.clone_into(&mut group.0);
    }
    if let Some(wanted) = wanted {
        group.1 = wanted;
    }
    Ok(json!({ "CacheSubnetGroup": subnet_group(call, name, group) }))
}

fn delete_subnet_group(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("CacheSubnetGroupName");
    let state = world.state::<ElastiCache>(&call.scope());
    if !state.subnet_groups.contains_key(name) {
        return Err(no_subnet_group(name));
    }
    if state.groups.values().any(|group| group.subnet_group == name) {
        return Err(Fault::new("CacheSubnetGroupInUse", format!("Cache Subnet Group {name} is in use.")));
    }
    state.subnet_groups.remove(name);
    world.tags.forget(&call.arn(&format!("subnetgroup:{name}")));
    Ok(json!({}))
}

fn check_token(token: &str) -> Result<(), Fault> {
    let is_valid = (16..=128).contains(&token.len())
        && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"!&#$^<>-".contains(&b));
    if is_valid { Ok(()) } else { Err(invalid("Invalid AuthToken provided.")) }
}

/// The maintenance window of the input.
fn window(call: &Call) -> Result<Option<String>, Fault> {
    let Some(window) = call.str("PreferredMaintenanceWindow") else { return Ok(None) };
    match rds::weekly(&window.to_lowercase()) {
        Some((_, 60..)) => Ok(Some(window.to_lowercase())),
        _ => Err(invalid(format!("Invalid maintenance window: {window}"))),
    }
}

/// The minor version that a version stands for.
fn version(engine: &str, wanted: &str) -> Result<&'static str, Fault> {
    let known = match (engine, wanted) {
        ("valkey", "7.2") => "7.2.6",
        ("valkey", "8.0") => "8.0.1",
        ("redis", "7.0") => "7.0.7",
        ("redis", "7.1") => "7.1.0",
        _ => return Err(combination(format!("Cannot find version {wanted} for {engine}"))),
    };
    Ok(known)
}

fn member(name: &str, n: usize) -> String {
    format!("{name}-{:03}", n + 1)
}

fn one(world: &World, call: &Call, name: &str) -> Value {
    let Some(group) = world.find::<ElastiCache>(&call.scope()).and_then(|state| state.groups.get(name)) else {
        return Value::Null;
    };
    let mut shown = group.shown.clone();
    shown["Status"] = group.status.at(call.now).into();
    shown["MemberClusters"] = (0..group.nodes).map(|n| Value::from(member(name, n))).collect();
    if group.ready <= call.now {
        let host = |kind: &str| format!("{kind}.{name}.{}.cache.amazonaws.com", call.region);
        shown["NodeGroups"] = json!([{
            "NodeGroupId": "0001",
            "Status": "available",
            "PrimaryEndpoint": { "Address": host("master"), "Port": 6379 },
            "ReaderEndpoint": { "Address": host("replica"), "Port": 6379 },
        }]);
    }
    shown
}

fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("ReplicationGroupId").to_lowercase();
    let is_name = (1..=40).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !name.ends_with('-')
        && !name.contains("--");
    if !is_name {
        return Err(invalid(format!("The parameter ReplicationGroupIdentifier is not a valid identifier: {name}")));
    }
    let tags = pairs(call)?;
    let class = call.str("CacheNodeType").unwrap_or_default().to_owned();
    if !class.starts_with("cache.") {
        return Err(invalid(format!("Invalid Cache Node Type: {class}")));
    }
    let engine = call.str("Engine").unwrap_or("valkey");
    let version = version(engine, call.str("EngineVersion").unwrap_or("8.0"))?;
    let nodes = usize::try_from(call.int("NumCacheClusters").unwrap_or(1)).unwrap_or_default();
    if !(1..=6).contains(&nodes) {
        return Err(invalid("Number of nodes must be between 1 and 6"));
    }
    let (failover, zones) = (call.is("AutomaticFailoverEnabled"), call.is("MultiAZEnabled"));
    if zones && !failover {
        return Err(combination("Must provide AutomaticFailoverEnabled=true for Multi-AZ"));
    }
    if failover && nodes < 2 {
        return Err(combination(
            "When using automatic failover, there must be at least 2 cache clusters in the replication group.",
        ));
    }
    let token = call.str("AuthToken");
    if let Some(token) = token {
        if !call.is("TransitEncryptionEnabled") {
            return Err(combination("Auth token can only be used with encryption in transit enabled."));
        }
        check_token(token)?;
    }
    if let Some(id) = call.str("KmsKeyId")
        && kms::key(world, &call.scope(), id).map(kms::Key::state) != Some("Enabled")
    {
        return Err(Fault::new("InvalidKMSKeyFault", format!("The key {id} cannot be used.")));
    }
    let window = window(call)?.unwrap_or_else(|| "wed:06:30-wed:07:30".to_owned());
    let subnet_group = call.str("CacheSubnetGroupName").unwrap_or("default").to_owned();
    let limit = world.quotas.of(&call.scope(), &NODES);
    let state = world.state::<ElastiCache>(&call.scope());
    if !state.subnet_groups.contains_key(&subnet_group) {
        return Err(no_subnet_group(&subnet_group));
    }
    if state.groups.contains_key(&name) {
        return Err(Fault::new("ReplicationGroupAlreadyExists", format!("Replication group {name} already exists.")));
    }
    if (state.groups.values().map(|group| group.nodes).sum::<usize>() + nodes) as f64 > limit {
        return Err(Fault::new("NodeQuotaForCustomerExceeded", "The number of nodes reached its limit."));
    }
    if !world.capacity.take(&format!("{}a", call.region), &class, Market::OnDemand, nodes as u64) {
        let message = format!("There is no capacity for {class} in the zones of the subnet group");
        return Err(Fault::new("InsufficientCacheClusterCapacity", message));
    }
    let word = |on: bool| if on { "enabled" } else { "disabled" };
    let mut shown = json!({
        "ReplicationGroupId": name,
        "Description": call.text("ReplicationGroupDescription"),
        "ARN": call.arn(&format!("replicationgroup:{name}")),
        "AutomaticFailover": word(failover),
        "MultiAZ": word(zones),
        "SnapshotRetentionLimit": call.int("SnapshotRetentionLimit").unwrap_or_default(),
        "ClusterEnabled": false,
        "CacheNodeType": class,
        "AuthTokenEnabled": token.is_some(),
        "TransitEncryptionEnabled": call.is("TransitEncryptionEnabled"),
        "AtRestEncryptionEnabled": call.is("AtRestEncryptionEnabled"),
        "ReplicationGroupCreateTime": timestamp(call.now),
        "AutoMinorVersionUpgrade": call.input.get("AutoMinorVersionUpgrade").cloned().unwrap_or(true.into()),
        "Engine": engine,
    });
    if token.is_some() {
        shown["AuthTokenLastModifiedDate"] = timestamp(call.now);
    }
    if let Some(key) = call.str("KmsKeyId") {
        shown["KmsKeyId"] = key.into();
    }
    let status = call.stages("creating", &[(10 * MINUTE, "available")]);
    let arn = call.arn(&format!("replicationgroup:{name}"));
    let group = Group {
        ready: status.last().1.unwrap_or(call.now),
        status,
        tokens: token.map(str::to_owned).into_iter().collect(),
        nodes,
        shown,
        version: version.to_owned(),
        subnet_group: subnet_group.clone(),
        security_groups: call.texts("SecurityGroupIds").into_iter().map(str::to_owned).collect(),
        window,
    };
    let subnets = state_subnets(world, call, &subnet_group);
    subnets.iter().for_each(|subnet| world.uses.add(&arn, subnet));
    group.security_groups.iter().for_each(|used| world.uses.add(&arn, used));
    world.state::<ElastiCache>(&call.scope()).groups.insert(name.clone(), group);
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({ "ReplicationGroup": one(world, call, &name) }))
}

fn state_subnets(world: &World, call: &Call, group: &str) -> Vec<String> {
    let state = world.find::<ElastiCache>(&call.scope());
    state.and_then(|state| state.subnet_groups.get(group)).map(|(_, subnets)| subnets.clone()).unwrap_or_default()
}

fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let asked = call.str("ReplicationGroupId");
    let names: Vec<String> = world.state::<ElastiCache>(&call.scope()).groups.keys().cloned().collect();
    if let Some(unknown) = asked.filter(|asked| !names.iter().any(|name| name == asked)) {
        return Err(not_found(unknown));
    }
    let names = names.iter().filter(|name| asked.is_none_or(|asked| asked == *name));
    let groups = names.map(|name| one(world, call, name)).collect();
    call.page("ReplicationGroups", groups, invalid("Invalid marker"))
}

fn describe_nodes(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let asked = call.str("CacheClusterId");
    let mut nodes = Vec::new();
    for (name, group) in &world.state::<ElastiCache>(&call.scope()).groups {
        for node in (0..group.nodes).map(|n| member(name, n)).filter(|node| asked.is_none_or(|asked| asked == node)) {
            let groups = group.security_groups.iter().map(|id| json!({ "SecurityGroupId": id, "Status": "active" }));
            nodes.push(json!({
                "CacheClusterId": node,
                "CacheNodeType": group.shown["CacheNodeType"],
                "Engine": group.shown["Engine"],
                "EngineVersion": group.version,
                "CacheClusterStatus": group.status.at(call.now),
                "NumCacheNodes": 1,
                "CacheSubnetGroupName": group.subnet_group,
                "SecurityGroups": groups.collect::<Vec<_>>(),
                "PreferredMaintenanceWindow": group.window,
                "ReplicationGroupId": name,
            }));
        }
    }
    if let (Some(asked), true) = (asked, nodes.is_empty()) {
        return Err(Fault::new("CacheClusterNotFound", format!("CacheCluster not found: {asked}")));
    }
    call.page("CacheClusters", nodes, invalid("Invalid marker"))
}

/// The group of the input, if it is available.
fn changeable<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Group, Fault> {
    let name = call.text("ReplicationGroupId");
    let group = world.state::<ElastiCache>(&call.scope()).groups.get_mut(name).ok_or_else(|| not_found(name))?;
    let status = group.status.at(call.now);
    match status {
        "available" => Ok(group),
        _ => Err(Fault::new(
            "InvalidReplicationGroupState",
            format!("Replication group {name} has the status {status}."),
        )),
    }
}

fn busy(call: &Call, after: Duration) -> Stages {
    call.stages("modifying", &[(after, "available")])
}

fn modify(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("ReplicationGroupId").to_owned();
    let window = window(call)?;
    let group = changeable(world, call)?;
    let word = |on: &Value| if *on == true { "enabled" } else { "disabled" };
    let mut members = Map::new();
    let mut takes = None;
    for (given, shown) in [("AutomaticFailoverEnabled", "AutomaticFailover"), ("MultiAZEnabled", "MultiAZ")] {
        if let Some(on) = call.input.get(given) {
            if *on == true && group.nodes < 2 {
                return Err(combination("Automatic failover and Multi-AZ need a replica."));
            }
            members.insert(shown.to_owned(), word(on).into());
            takes = Some(3 * MINUTE);
        }
    }
    for (given, shown) in [
        ("AutoMinorVersionUpgrade", "AutoMinorVersionUpgrade"),
        ("ReplicationGroupDescription", "Description"),
        ("SnapshotRetentionLimit", "SnapshotRetentionLimit"),
    ] {
        if let Some(value) = call.input.get(given) {
            members.insert(shown.to_owned(), value.clone());
        }
    }
    if let Some(class) = call.str("CacheNodeType") {
        if !class.starts_with("cache.") {
            return Err(invalid(format!("Invalid Cache Node Type: {class}")));
        }
        members.insert("CacheNodeType".to_owned(), class.into());
        takes = Some(15 * MINUTE);
    }
    let engine = group.shown["Engine"].as_str().unwrap_or_default().to_owned();
    let version = call.str("EngineVersion").map(|wanted| version(&engine, wanted)).transpose()?;
    let token = call.str("AuthToken");
    if let Some(token) = token {
        check_token(token)?;
        if group.shown["TransitEncryptionEnabled"] != true {
            return Err(combination("Auth token can only be used with encryption in transit enabled."));
        }
        members.insert("AuthTokenLastModifiedDate".to_owned(), timestamp(call.now));
        takes = Some(2 * MINUTE);
    }
    if let Some(version) = version {
        version.clone_into(&mut group.version);
        takes = Some(10 * MINUTE);
    }
    if call.input.get("SecurityGroupIds").is_some() {
        group.security_groups = call.texts("SecurityGroupIds").into_iter().map(str::to_owned).collect();
        takes = Some(MINUTE);
    }
    if let Some(window) = window {
        group.window = window;
    }
    if let Some(token) = token {
        match call.str("AuthTokenUpdateStrategy").unwrap_or("ROTATE") {
            "SET" => group.tokens.clear(),
            _ if group.tokens.len() > 1 => drop(group.tokens.remove(0)),
            _ => {}
        }
        group.tokens.push(token.to_owned());
    }
    if let Some(shown) = group.shown.as_object_mut() {
        shown.extend(members);
    }
    if let Some(after) = takes {
        group.status = busy(call, after);
    }
    Ok(json!({ "ReplicationGroup": one(world, call, &name) }))
}

fn change_replicas(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("ReplicationGroupId").to_owned();
    let wanted = usize::try_from(call.int("NewReplicaCount").unwrap_or_default()).unwrap_or(usize::MAX);
    let group = changeable(world, call)?;
    let is_increase = call.operation == "IncreaseReplicaCount";
    if wanted > 5 || is_increase != (wanted + 1 > group.nodes) || wanted + 1 == group.nodes {
        return Err(invalid(format!("NewReplicaCount {wanted} is not valid for {} nodes", group.nodes)));
    }
    if wanted == 0 && group.shown["AutomaticFailover"] == "enabled" {
        return Err(combination("Automatic failover needs a replica."));
    }
    group.nodes = wanted + 1;
    group.status = busy(call, 8 * MINUTE);
    Ok(json!({ "ReplicationGroup": one(world, call, &name) }))
}

fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("ReplicationGroupId").to_owned();
    let group = changeable(world, call)?;
    group.status = Stages::settled("deleting");
    let (nodes, class) = (group.nodes as u64, group.shown["CacheNodeType"].as_str().unwrap_or_default().to_owned());
    let (scope, arn, zone) = (call.scope(), call.arn(&format!("replicationgroup:{name}")), format!("{}a", call.region));
    let key = name.clone();
    world.defer(call.due(5 * MINUTE), move |world| {
        world.state::<ElastiCache>(&scope).groups.remove(&key);
        world.capacity.give(&zone, &class, Market::OnDemand, nodes);
        world.uses.forget(&arn);
        world.tags.forget(&arn);
    });
    Ok(json!({ "ReplicationGroup": one(world, call, &name) }))
}
