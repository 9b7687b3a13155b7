//! Virtual networks: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateVpc.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{AttributeBooleanValue, ResourceType, SecurityGroup, Vpc as Answer, VpcAttributeName};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Condition, Identity, Permission, Result};

use super::inside::{self, Place};
use super::{CREATE_TAGS, QUICK, SERVICE, TAGS, UNTAGS, changes, creates, deletes, named, sweeps};
use crate::api::Api;
use crate::kinds::{OF_CLUSTER, OF_CONTROLLER, PUT};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::{self, Tags};

/// A permission on the security groups of the VPC: its default group has no tags
/// (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html>).
const fn in_vpc(permission: Permission) -> Permission {
    const GROUPS: &str = "arn:{$partition}:ec2:{$region}:{$account}:security-group/*";
    const VPC: &[Condition] =
        &[Condition { key: "ec2:Vpc", value: "arn:{$partition}:ec2:{$region}:{$account}:vpc/{$id}" }];
    Permission { resource: GROUPS, conditions: VPC, ..permission }
}

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            CREATE_TAGS,
            TAGS,
            creates("ec2:CreateVpc"),
            sweeps(OF_CLUSTER, "ec2:DeleteSecurityGroup"),
            sweeps(OF_CONTROLLER, "ec2:DeleteSecurityGroup"),
            UNTAGS,
            deletes("ec2:DeleteVpc"),
            Permission::read("ec2:DescribeNetworkInterfaces"),
            // `preflight` compares the routes and the endpoints of an existing network with what nodes need.
            Permission::read("ec2:DescribeRouteTables"),
            Permission::read("ec2:DescribeSecurityGroups"),
            Permission::read("ec2:DescribeVpcAttribute"),
            Permission::read("ec2:DescribeVpcEndpoints"),
            Permission::read("ec2:DescribeVpcs"),
            changes("ec2:ModifyVpcAttribute"),
            in_vpc(Permission::on(PUT, "ec2:RevokeSecurityGroupEgress")),
            in_vpc(Permission::on(PUT, "ec2:RevokeSecurityGroupIngress")),
            sweeps(OF_CLUSTER, "ec2:RevokeSecurityGroupEgress"),
            sweeps(OF_CONTROLLER, "ec2:RevokeSecurityGroupEgress"),
            sweeps(OF_CLUSTER, "ec2:RevokeSecurityGroupIngress"),
            sweeps(OF_CONTROLLER, "ec2:RevokeSecurityGroupIngress"),
            sweeps(OF_CLUSTER, "elasticloadbalancing:DeleteTargetGroup"),
            sweeps(OF_CONTROLLER, "elasticloadbalancing:DeleteTargetGroup"),
            Permission::read("elasticloadbalancing:DescribeTags"),
            Permission::read("elasticloadbalancing:DescribeTargetGroups"),
        ],
        typical: QUICK,
        terraform: &[("aws_vpc", "id")],
        ..kind("aws.vpc", "a virtual network", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<Vpc>::kind(),
    refused: &[(
        "cidr",
        "a VPC keeps its range: restore `network.cidr`, or deploy another environment with the new range and move to it",
    )],
}];

/// A VPC. Outputs: `id`, `cidr`.
struct Vpc;

/// The attributes of a VPC.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The IPv4 range: `10.0.0.0/16`.
    cidr: String,
    /// Whether instances have DNS names: private endpoints and EKS need them.
    dns_hostnames: bool,
    /// Whether the default security group, which nothing here uses, lets its members talk to each other and to everything else.
    default_rules: bool,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Vpc {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["dns_hostnames", "default_rules"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.ec2.describe_vpcs().vpc_ids(id).send()).await?;
        match answer.and_then(|answer| answer.vpcs.unwrap_or_default().into_iter().next()) {
            Some(vpc) => seen(api, vpc).await,
            None => Ok(None),
        }
    }

    /// Five calls for each VPC, of which a site has one.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.ec2.describe_vpcs().filters(super::filter(filter)).into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "list", "VPCs", pages.try_collect()).await?;
        let mut all = Vec::new();
        for vpc in found {
            all.extend(seen(api, vpc).await?);
        }
        Ok(all)
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::Vpc);
        let call = api.ec2.create_vpc().cidr_block(&spec.cidr).tag_specifications(tags).send();
        let answer = api.call(SERVICE, "create", "VPC", call).await?;
        super::id_in(answer.vpc.and_then(|vpc| vpc.vpc_id), "VPC")
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        if field == "dns_hostnames" {
            let value = AttributeBooleanValue::builder().value(spec.dns_hostnames).build();
            let call = api.ec2.modify_vpc_attribute().vpc_id(&seen.id).enable_dns_hostnames(value).send();
            return api.call(SERVICE, "change", &seen.id, call).await.map(drop);
        }
        let groups = groups_of(api, &seen.id).await?;
        let Some(group) = groups.into_iter().find(is_default) else { return Ok(()) };
        let (id, ingress) = (group.group_id.unwrap_or_default(), group.ip_permissions.unwrap_or_default());
        if !ingress.is_empty() {
            let call = api.ec2.revoke_security_group_ingress().group_id(&id).set_ip_permissions(Some(ingress)).send();
            return api.call(SERVICE, "remove the rules of", &id, call).await.map(drop);
        }
        let egress = group.ip_permissions_egress;
        let call = api.ec2.revoke_security_group_egress().group_id(&id).set_ip_permissions(egress).send();
        api.call(SERVICE, "remove the rules of", &id, call).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        if inside::sweep(api, &seen.foreign).await? {
            return Ok(());
        }
        let deleted = api.call(SERVICE, "delete", &seen.id, api.ec2.delete_vpc().vpc_id(&seen.id).send()).await;
        inside::explained(api, deleted.map(drop), "vpc-id", &seen.id).await
    }
}

async fn groups_of(api: &Api, vpc: &str) -> Result<Vec<SecurityGroup>> {
    let filter = named("vpc-id", [vpc]);
    let pages = api.ec2.describe_security_groups().filters(filter).into_paginator().items().send();
    api.call(SERVICE, "list", "security groups", pages.try_collect()).await
}

fn is_default(group: &SecurityGroup) -> bool {
    group.group_name.as_deref() == Some("default")
}

async fn seen(api: &Api, vpc: Answer) -> Result<Option<ObservedObject<Spec>>> {
    let Some(id) = vpc.vpc_id else { return Ok(None) };
    let call = api.ec2.describe_vpc_attribute().vpc_id(&id).attribute(VpcAttributeName::EnableDnsHostnames).send();
    let Some(attribute) = api.find(SERVICE, &id, call).await? else { return Ok(None) };
    let dns_hostnames = attribute.enable_dns_hostnames.and_then(|value| value.value).unwrap_or_default();
    let groups = groups_of(api, &id).await?;
    let has_rules = |rules: &Option<Vec<_>>| rules.as_ref().is_some_and(|rules| !rules.is_empty());
    let default = groups.iter().find(|group| is_default(group));
    let default_rules =
        default.is_some_and(|group| has_rules(&group.ip_permissions) || has_rules(&group.ip_permissions_egress));
    let cidr = vpc.cidr_block.unwrap_or_default();
    let tags = super::tags(vpc.tags);
    // An existing network is not reported on.
    let foreign = match tags::lineage(&tags) {
        Some(_) => inside::of_vpc(api, &Place::of(&id, &tags), groups).await?,
        None => Vec::new(),
    };
    let state = super::ready_in("available", vpc.state.as_ref().map(|state| state.as_str()));
    let spec = Spec { cidr: cidr.clone(), dns_hostnames, default_rules, tags: Tags::new() };
    let seen =
        ObservedObject::new(&id, spec, tags).output("id", Some(id.clone())).output("cidr", Some(cidr)).state(state);
    Ok(Some(ObservedObject { foreign, ..seen }))
}
