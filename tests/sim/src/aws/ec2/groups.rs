//! Security groups.

use serde_json::{Value, json};

use super::items::{self, Collection, answered, below, find, insert, new_tags, state};
use super::network;
use crate::{Call, Fault, Quota, Stages, World};

/// Security groups.
pub const GROUP: Collection = Collection {
    name: "security-group",
    prefix: "sg",
    id: "GroupId",
    ids: "GroupIds",
    list: "SecurityGroups",
    filter: "Filters",
    state: "",
    tags: "Tags",
    unknown: "InvalidGroup.NotFound",
    filters: &[
        ("description", "Description"),
        ("egress.ip-permission.group-id", "IpPermissionsEgress.UserIdGroupPairs.GroupId"),
        ("group-id", "GroupId"),
        ("group-name", "GroupName"),
        ("ip-permission.group-id", "IpPermissions.UserIdGroupPairs.GroupId"),
        ("vpc-id", "VpcId"),
    ],
};

pub(super) const RULES: Quota = Quota {
    service: "vpc",
    code: "L-0EA8095F",
    name: "Inbound or outbound rules per security group",
    value: 60.0,
    adjustable: true,
};
pub(super) const GROUPS: Quota = Quota {
    service: "vpc",
    code: "L-E79EC296",
    name: "VPC security groups per Region",
    value: 2500.0,
    adjustable: true,
};

/// The lists of peers in a permission, and the member that names a peer.
const PEERS: [(&str, &str); 4] = [
    ("IpRanges", "CidrIp"),
    ("Ipv6Ranges", "CidrIpv6"),
    ("PrefixListIds", "PrefixListId"),
    ("UserIdGroupPairs", "GroupId"),
];

fn everything_out() -> Value {
    json!([{
        "IpProtocol": "-1",
        "IpRanges": [{ "CidrIp": "0.0.0.0/0" }],
        "Ipv6Ranges": [],
        "PrefixListIds": [],
        "UserIdGroupPairs": [],
    }])
}

/// Every VPC has one from the start: its members reach each other and everything else.
pub(super) fn default_group(world: &mut World, call: &Call, vpc: &str) {
    let value = json!({
        "Description": "default VPC security group",
        "GroupName": "default",
        "IpPermissions": [],
        "IpPermissionsEgress": everything_out(),
        "OwnerId": call.account,
        "VpcId": vpc,
    });
    let id = insert(world, call, &GROUP, value, Stages::settled(""), Vec::new());
    let itself = json!([{
        "IpProtocol": "-1",
        "IpRanges": [],
        "Ipv6Ranges": [],
        "PrefixListIds": [],
        "UserIdGroupPairs": [{ "GroupId": id, "UserId": call.account }],
    }]);
    if let Some(value) = state(world, call).change(&id) {
        value["IpPermissions"] = itself;
    }
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (vpc, name) = (call.text("VpcId"), call.text("GroupName"));
    find(world, call, &network::VPC, vpc)?;
    let tags = new_tags(call, &GROUP)?;
    let is_allowed = |text: &str| {
        text.len() <= 255 && text.chars().all(|c| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c))
    };
    if name.starts_with("sg-") || !is_allowed(name) || !is_allowed(call.text("Description")) {
        let message = format!("Value ({name}) for parameter GroupName or its description is invalid.");
        return Err(Fault::new("InvalidParameterValue", message));
    }
    let is_same = |value: &Value| value["VpcId"] == vpc && value["GroupName"] == name;
    if state(world, call).all(&GROUP).any(|(_, item)| is_same(&item.value)) {
        let message = format!("The security group '{name}' already exists for VPC '{vpc}'");
        return Err(Fault::new("InvalidGroup.Duplicate", message));
    }
    let count = state(world, call).all(&GROUP).count();
    below(world, call, &GROUPS, count, "SecurityGroupLimitExceeded")?;
    let value = json!({
        "Description": call.text("Description"),
        "GroupName": name,
        "IpPermissions": [],
        "IpPermissionsEgress": everything_out(),
        "OwnerId": call.account,
        "VpcId": vpc,
    });
    let id = insert(world, call, &GROUP, value, Stages::settled(""), tags);
    world.uses.add(&id, vpc);
    let shown = answered(world, call, &id);
    Ok(json!({ "GroupId": id, "SecurityGroupArn": call.arn(&format!("security-group/{id}")), "Tags": shown["Tags"] }))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("GroupId");
    let group = find(world, call, &GROUP, id)?;
    if group.value["GroupName"] == "default" {
        let message = format!("the specified group: \"{id}\" name: \"default\" cannot be deleted by a user");
        return Err(Fault::new("CannotDelete", message));
    }
    let refers = |value: &Value| {
        let lists = [&value["IpPermissions"], &value["IpPermissionsEgress"]];
        let mut pairs = lists.into_iter().filter_map(Value::as_array).flatten();
        pairs.any(|rule| {
            rule["UserIdGroupPairs"].as_array().is_some_and(|pairs| pairs.iter().any(|pair| pair["GroupId"] == id))
        })
    };
    let is_referred_to = state(world, call).all(&GROUP).any(|(other, item)| other != id && refers(&item.value));
    if is_referred_to || world.uses.users(id).next().is_some() {
        return Err(Fault::new("DependencyViolation", format!("resource {id} has a dependent object")));
    }
    items::remove(world, &call.scope(), id);
    Ok(json!({ "Return": true, "GroupId": id }))
}

/// One rule: protocol, ports, list, peer; and its description.
type Rule = ((String, Option<i64>, Option<i64>, &'static str, String), Option<String>);

/// The rules of permissions.
fn rules(permissions: &[Value]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for permission in permissions {
        let protocol = permission["IpProtocol"].as_str().unwrap_or_default().to_owned();
        let ports = |member: &str| permission[member].as_i64().filter(|_| protocol != "-1");
        for (list, member) in PEERS {
            for one in permission[list].as_array().into_iter().flatten() {
                let peer = one[member].as_str().unwrap_or_default().to_owned();
                let key = (protocol.clone(), ports("FromPort"), ports("ToPort"), list, peer);
                rules.push((key, one["Description"].as_str().map(str::to_owned)));
            }
        }
    }
    rules
}

/// Permissions of rules: those with the same protocol and ports are one.
fn permissions(call: &Call, rules: &[Rule]) -> Value {
    let mut all: Vec<Value> = Vec::new();
    for ((protocol, from, to, list, peer), description) in rules {
        let ports = |one: &Value| one["FromPort"].as_i64() == *from && one["ToPort"].as_i64() == *to;
        let found = all.iter().position(|one| one["IpProtocol"] == **protocol && ports(one));
        let place = found.unwrap_or_else(|| {
            let mut one = json!({ "IpProtocol": protocol });
            for (list, _) in PEERS {
                one[list] = json!([]);
            }
            if let (Some(from), Some(to)) = (from, to) {
                (one["FromPort"], one["ToPort"]) = ((*from).into(), (*to).into());
            }
            all.push(one);
            all.len() - 1
        });
        let member = PEERS.iter().find(|(name, _)| name == list).map_or("", |(_, member)| *member);
        let mut one = json!({ member: peer });
        if let Some(text) = description {
            one["Description"] = text.clone().into();
        }
        if *list == "UserIdGroupPairs" {
            one["UserId"] = call.account.clone().into();
        }
        if let Some(peers) = all[place][*list].as_array_mut() {
            peers.push(one);
        }
    }
    all.into()
}

/// The group of a call, its rules, and the member that holds them.
fn known(world: &mut World, call: &Call) -> Result<(&'static str, Vec<Rule>), Fault> {
    let group = find(world, call, &GROUP, call.text("GroupId"))?.value;
    let member = if call.operation.ends_with("Egress") { "IpPermissionsEgress" } else { "IpPermissions" };
    Ok((member, rules(group[member].as_array().map_or(&[], Vec::as_slice))))
}

fn store(world: &mut World, call: &Call, member: &str, rules: &[Rule]) {
    let permissions = permissions(call, rules);
    if let Some(value) = state(world, call).change(call.text("GroupId")) {
        value[member] = permissions;
    }
}

pub(super) fn authorize(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (member, mut known) = known(world, call)?;
    let new = rules(call.list("IpPermissions"));
    if new.is_empty() {
        return Err(Fault::new("MissingParameter", "The request must contain the parameter ipPermissions"));
    }
    for (place, (key, _)) in new.iter().enumerate() {
        let (protocol, from, to, list, peer) = key;
        let is_wrong_port = *protocol != "-1" && (from.is_none() || to.is_none() || from > to);
        if is_wrong_port {
            let message = format!("Invalid value for portRange of protocol {protocol}.");
            return Err(Fault::new("InvalidParameterValue", message));
        }
        if *list == "UserIdGroupPairs" {
            find(world, call, &GROUP, peer)?;
        }
        let is_twice = new[..place].iter().chain(&known).any(|(other, _)| other == key);
        if is_twice {
            let message = format!("the specified rule \"peer: {peer}, {protocol}\" already exists");
            return Err(Fault::new("InvalidPermission.Duplicate", message));
        }
    }
    below(world, call, &RULES, (known.len() + new.len()).saturating_sub(1), "RulesPerSecurityGroupLimitExceeded")?;
    known.extend(new);
    store(world, call, member, &known);
    Ok(json!({ "Return": true }))
}

pub(super) fn revoke(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (member, mut known) = known(world, call)?;
    let gone = rules(call.list("IpPermissions"));
    let unknown: Vec<Rule> =
        gone.iter().filter(|(key, _)| !known.iter().any(|(other, _)| other == key)).cloned().collect();
    known.retain(|(key, _)| !gone.iter().any(|(other, _)| other == key));
    store(world, call, member, &known);
    let mut answer = json!({ "Return": true });
    if !unknown.is_empty() {
        answer["UnknownIpPermissions"] = permissions(call, &unknown);
    }
    Ok(answer)
}

pub(super) fn describe_rules(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (member, mut known) = known(world, call)?;
    for (key, description) in rules(call.list("IpPermissions")) {
        let Some(rule) = known.iter_mut().find(|(other, _)| *other == key) else {
            return Err(Fault::new(
                "InvalidPermission.NotFound",
                "The specified rule does not exist in this security group.",
            ));
        };
        rule.1 = description;
    }
    store(world, call, member, &known);
    Ok(json!({ "Return": true }))
}
