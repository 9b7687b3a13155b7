//! Security groups with their rules: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSecurityGroup.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{
    IpPermission, IpRange, Ipv6Range, PrefixListId, ResourceType, SecurityGroup as Answer, UserIdGroupPair,
};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Identity, Permission, ReplaceOrder, Result};

use super::{CREATE_TAGS, QUICK, SERVICE, TAGS, UNTAGS, changes, creates, deletes, inside};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        // What uses it may keep its network interfaces for minutes after its own end.
        deadline: MINUTE.saturating_mul(20),
        permissions: &[
            changes("ec2:AuthorizeSecurityGroupEgress"),
            changes("ec2:AuthorizeSecurityGroupIngress"),
            creates("ec2:CreateSecurityGroup"),
            CREATE_TAGS,
            TAGS,
            deletes("ec2:DeleteSecurityGroup"),
            UNTAGS,
            Permission::read("ec2:DescribeNetworkInterfaces"),
            Permission::read("ec2:DescribeSecurityGroups"),
            changes("ec2:RevokeSecurityGroupEgress"),
            changes("ec2:RevokeSecurityGroupIngress"),
            changes("ec2:UpdateSecurityGroupRuleDescriptionsEgress"),
            changes("ec2:UpdateSecurityGroupRuleDescriptionsIngress"),
        ],
        // A VPC has one group of a name.
        replace: ReplaceOrder::DeleteFirst,
        typical: QUICK,
        terraform: &[("aws_security_group", "id")],
        ..kind("aws.security-group", "a firewall around network interfaces", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<SecurityGroup>::kind(),
    refused: &[("description", "AWS keeps the description of a security group: delete the group, and run `up` again")],
}];

/// A security group. Output: `id`.
struct SecurityGroup;

/// The attributes of a security group.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    vpc: String,
    name: String,
    description: String,
    /// What may come in.
    ingress: Vec<Rule>,
    /// What may go out: nothing, unless a rule says so.
    egress: Vec<Rule>,
    #[serde(default)]
    tags: Tags,
}

/// One rule: a protocol, its ports, and one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    /// `tcp`, `udp`, `icmp`, a number, or `-1` for all.
    protocol: String,
    /// The first port, or -1 for all protocols.
    from: i32,
    /// The last port.
    to: i32,
    /// An IPv4 or IPv6 range, the id of a security group or of a prefix list, or `self` for the group itself.
    peer: String,
    description: String,
}

/// Begin the descriptions of rules that controllers in the cluster add to a group, and remove themselves:
/// <https://github.com/kubernetes-sigs/aws-load-balancer-controller/blob/main/pkg/networking/security_group_info.go>, and the
/// cloud provider of Kubernetes.
const CONTROLLERS: [&str; 2] = ["elbv2.k8s.aws/", "kubernetes.io/rule/"];
/// The group itself, as a peer.
const SELF: &str = "self";
/// The peer of a rule that allows nothing. Exports have one where nothing may go out: it is no rule of a group.
pub(crate) const NOWHERE: &str = "255.255.255.255/32";

#[async_trait]
impl Resource<Api> for SecurityGroup {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["ingress", "egress"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.ec2.describe_security_groups().group_ids(id).send()).await?;
        Ok(answer.and_then(|answer| answer.security_groups.unwrap_or_default().into_iter().find_map(seen)))
    }

    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.ec2.describe_security_groups().filters(super::filter(filter)).into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "list", "security groups", pages.try_collect()).await?;
        Ok(found.into_iter().filter_map(seen).collect())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::SecurityGroup);
        let call = api.ec2.create_security_group().vpc_id(&spec.vpc).group_name(&spec.name);
        let call = call.description(&spec.description).tag_specifications(tags).send();
        let answer = api.call(SERVICE, "create", format!("security group {}", spec.name), call).await?;
        super::id_in(answer.group_id, "security group")
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let is_egress = field == "egress";
        let (there, wanted) = match is_egress {
            true => (&seen.spec.egress, &spec.egress),
            false => (&seen.spec.ingress, &spec.ingress),
        };
        let missing: Vec<&Rule> = wanted.iter().filter(|rule| !there.contains(rule)).collect();
        let extra: Vec<&Rule> = there.iter().filter(|rule| !wanted.contains(rule)).collect();
        // AWS refuses a rule that differs in its description only.
        let (described, new): (Vec<&Rule>, Vec<&Rule>) =
            missing.into_iter().partition(|rule| there.iter().any(|other| other.allows_same(rule)));
        // New rules before old ones go: what both allow stays allowed.
        let change = match (new.is_empty(), described.is_empty()) {
            (false, _) => Change::Add(new),
            (true, false) => Change::Describe(described),
            (true, true) => Change::Remove(extra),
        };
        change.make(api, &seen.id, is_egress).await
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.ec2.delete_security_group().group_id(&seen.id).send();
        let deleted = api.call(SERVICE, "delete", &seen.id, call).await;
        inside::explained(api, deleted.map(drop), "group-id", &seen.id).await
    }
}

/// One call that changes rules.
enum Change<'a> {
    Add(Vec<&'a Rule>),
    Describe(Vec<&'a Rule>),
    Remove(Vec<&'a Rule>),
}

impl Change<'_> {
    async fn make(self, api: &Api, group: &str, is_egress: bool) -> Result<()> {
        let permissions = |rules: Vec<&Rule>| Some(rules.into_iter().map(|rule| rule.permission(group)).collect());
        let client = &api.ec2;
        match (self, is_egress) {
            (Self::Add(rules), false) => {
                let call = client.authorize_security_group_ingress().group_id(group);
                let call = call.set_ip_permissions(permissions(rules)).send();
                api.call(SERVICE, "add rules to", group, call).await.map(drop)
            }
            (Self::Add(rules), true) => {
                let call = client.authorize_security_group_egress().group_id(group);
                let call = call.set_ip_permissions(permissions(rules)).send();
                api.call(SERVICE, "add rules to", group, call).await.map(drop)
            }
            (Self::Describe(rules), false) => {
                let call = client.update_security_group_rule_descriptions_ingress().group_id(group);
                let call = call.set_ip_permissions(permissions(rules)).send();
                api.call(SERVICE, "describe the rules of", group, call).await.map(drop)
            }
            (Self::Describe(rules), true) => {
                let call = client.update_security_group_rule_descriptions_egress().group_id(group);
                let call = call.set_ip_permissions(permissions(rules)).send();
                api.call(SERVICE, "describe the rules of", group, call).await.map(drop)
            }
            (Self::Remove(rules), false) => {
                let call = client.revoke_security_group_ingress().group_id(group);
                let call = call.set_ip_permissions(permissions(rules)).send();
                api.call(SERVICE, "remove rules from", group, call).await.map(drop)
            }
            (Self::Remove(rules), true) => {
                let call = client.revoke_security_group_egress().group_id(group);
                let call = call.set_ip_permissions(permissions(rules)).send();
                api.call(SERVICE, "remove rules from", group, call).await.map(drop)
            }
        }
    }
}

impl Rule {
    fn allows_same(&self, other: &Self) -> bool {
        let key = |rule: &Self| (rule.protocol.clone(), rule.from, rule.to, rule.peer.clone());
        key(self) == key(other)
    }

    fn permission(&self, group: &str) -> IpPermission {
        let (peer, text) = (self.peer.as_str(), self.description.as_str());
        let text = (!text.is_empty()).then(|| text.to_owned());
        let ports = |port| (self.protocol != "-1").then_some(port);
        let rule = IpPermission::builder().ip_protocol(&self.protocol);
        let rule = rule.set_from_port(ports(self.from)).set_to_port(ports(self.to));
        let rule = if peer == SELF || peer.starts_with("sg-") {
            let id = if peer == SELF { group } else { peer };
            rule.user_id_group_pairs(UserIdGroupPair::builder().group_id(id).set_description(text).build())
        } else if peer.starts_with("pl-") {
            rule.prefix_list_ids(PrefixListId::builder().prefix_list_id(peer).set_description(text).build())
        } else if peer.contains(':') {
            rule.ipv6_ranges(Ipv6Range::builder().cidr_ipv6(peer).set_description(text).build())
        } else {
            rule.ip_ranges(IpRange::builder().cidr_ip(peer).set_description(text).build())
        };
        rule.build()
    }
}

fn seen(one: Answer) -> Option<ObservedObject<Spec>> {
    let id = one.group_id?;
    let spec = Spec {
        vpc: one.vpc_id.unwrap_or_default(),
        name: one.group_name.unwrap_or_default(),
        description: one.description.unwrap_or_default(),
        ingress: rules(one.ip_permissions, &id),
        egress: rules(one.ip_permissions_egress, &id),
        tags: Tags::new(),
    };
    Some(ObservedObject::new(&id, spec, super::tags(one.tags)).output("id", Some(id.clone())))
}

/// A rule for each peer of each permission, without those of controllers and those that allow nothing.
fn rules(permissions: Option<Vec<IpPermission>>, group: &str) -> Vec<Rule> {
    let mut rules = Vec::new();
    for permission in permissions.unwrap_or_default() {
        let groups = permission.user_id_group_pairs.unwrap_or_default().into_iter();
        let groups = groups.map(|one| {
            let id = one.group_id.unwrap_or_default();
            (if id == group { SELF.to_owned() } else { id }, one.description)
        });
        let lists = permission.prefix_list_ids.unwrap_or_default().into_iter();
        let lists = lists.map(|one| (one.prefix_list_id.unwrap_or_default(), one.description));
        let v4 = permission.ip_ranges.unwrap_or_default().into_iter();
        let v4 = v4.map(|one| (one.cidr_ip.unwrap_or_default(), one.description));
        let v6 = permission.ipv6_ranges.unwrap_or_default().into_iter();
        let v6 = v6.map(|one| (one.cidr_ipv6.unwrap_or_default(), one.description));
        // The rule of an export that allows nothing.
        let is_of_nowhere = permission.ip_protocol.as_deref() == Some("icmp")
            && (permission.from_port, permission.to_port) == (Some(252), Some(86));
        for (peer, description) in groups.chain(lists).chain(v4).chain(v6) {
            let description = description.unwrap_or_default();
            let is_nowhere = is_of_nowhere && peer == NOWHERE;
            if is_nowhere || CONTROLLERS.iter().any(|controller| description.starts_with(controller)) {
                continue;
            }
            rules.push(Rule {
                protocol: permission.ip_protocol.clone().unwrap_or_default(),
                from: permission.from_port.unwrap_or(-1),
                to: permission.to_port.unwrap_or(-1),
                peer,
                description,
            });
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_allows_nothing_is_none_of_a_group() {
        let to = |protocol: &str, peer: &str| {
            let range = IpRange::builder().cidr_ip(peer).build();
            let permission = IpPermission::builder().ip_protocol(protocol).from_port(252).to_port(86).ip_ranges(range);
            rules(Some(vec![permission.build()]), "sg-1").len()
        };
        assert_eq!((to("icmp", NOWHERE), to("icmp", "203.0.113.1/32"), to("tcp", NOWHERE)), (0, 1, 1));
    }
}
