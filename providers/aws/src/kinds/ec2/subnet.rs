//! Subnets: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSubnet.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{AttributeBooleanValue, ResourceType, Subnet as Answer};
use serde::{Deserialize, Serialize};
use textnlp_provider::{ErrorKind, Identity, Permission, Result};

use super::inside::{self, Place};
use super::{CREATE_TAGS, QUICK, SERVICE, TAGS, UNTAGS, changes, creates, deletes, sweeps};
use crate::api::Api;
use crate::kinds::{DELETE, OF_CLUSTER, OF_CONTROLLER, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{MINUTE, Row, kind};
use crate::tags::{self, Tags};

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        // Load balancers that controllers left behind keep their interfaces for some minutes.
        deadline: MINUTE.saturating_mul(20),
        permissions: &[
            creates("ec2:CreateSubnet"),
            CREATE_TAGS,
            TAGS,
            only(
                Permission::on(DELETE, "ec2:DeleteNetworkInterface"),
                "arn:{$partition}:ec2:{$region}:{$account}:network-interface/*",
            ),
            deletes("ec2:DeleteSubnet"),
            UNTAGS,
            Permission::read("ec2:DescribeNetworkInterfaces"),
            Permission::read("ec2:DescribeSubnets"),
            changes("ec2:ModifySubnetAttribute"),
            sweeps(OF_CLUSTER, "elasticloadbalancing:DeleteLoadBalancer"),
            sweeps(OF_CONTROLLER, "elasticloadbalancing:DeleteLoadBalancer"),
            Permission::read("elasticloadbalancing:DescribeLoadBalancers"),
            Permission::read("elasticloadbalancing:DescribeTags"),
        ],
        typical: QUICK,
        terraform: &[("aws_subnet", "id")],
        ..kind("aws.subnet", "a subnet in one zone", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<Subnet>::kind(),
    refused: &[],
}];

/// A subnet. Outputs: `id`, `zone`, `zone_id`.
struct Subnet;

/// The attributes of a subnet.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    vpc: String,
    /// The IPv4 range, inside that of the VPC.
    cidr: String,
    /// The id of the zone: `euw1-az1`.
    zone: String,
    /// Whether instances get public addresses.
    public_addresses: bool,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Subnet {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["public_addresses"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.ec2.describe_subnets().subnet_ids(id).send()).await?;
        let found = answer.and_then(|answer| answer.subnets).unwrap_or_default();
        Ok(seen(api, found).await?.pop())
    }

    /// Four calls for all subnets, and one more for each 20 load balancers in them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.ec2.describe_subnets().filters(super::filter(filter)).into_paginator().items().send();
        seen(api, api.call(SERVICE, "list", "subnets", pages.try_collect()).await?).await
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::Subnet);
        let call = api.ec2.create_subnet().vpc_id(&spec.vpc).cidr_block(&spec.cidr).availability_zone_id(&spec.zone);
        let answer = api.call(SERVICE, "create", "subnet", call.tag_specifications(tags).send()).await;
        let answer = answer.map_err(|mut error| {
            // The range is taken: by this subnet, if the reply to its creation was lost.
            if error.code.as_deref() == Some("InvalidSubnet.Conflict") {
                error.kind = ErrorKind::Exists;
            }
            error
        })?;
        super::id_in(answer.subnet.and_then(|subnet| subnet.subnet_id), "subnet")
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        let value = AttributeBooleanValue::builder().value(spec.public_addresses).build();
        let call = api.ec2.modify_subnet_attribute().subnet_id(&seen.id).map_public_ip_on_launch(value).send();
        api.call(SERVICE, "change", &seen.id, call).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        if inside::sweep(api, &seen.foreign).await? {
            return Ok(());
        }
        let call = api.ec2.delete_subnet().subnet_id(&seen.id).send();
        let deleted = api.call(SERVICE, "delete", &seen.id, call).await;
        inside::explained(api, deleted.map(drop), "subnet-id", &seen.id).await
    }
}

async fn seen(api: &Api, found: Vec<Answer>) -> Result<Vec<ObservedObject<Spec>>> {
    let mut all = Vec::new();
    for subnet in found {
        let Some(id) = subnet.subnet_id else { continue };
        let (zone, zone_id) = (subnet.availability_zone, subnet.availability_zone_id);
        let spec = Spec {
            vpc: subnet.vpc_id.unwrap_or_default(),
            cidr: subnet.cidr_block.unwrap_or_default(),
            zone: zone_id.clone().unwrap_or_default(),
            public_addresses: subnet.map_public_ip_on_launch.unwrap_or_default(),
            tags: Tags::new(),
        };
        let cidr = spec.cidr.clone();
        let state = super::ready_in("available", subnet.state.as_ref().map(|state| state.as_str()));
        let seen = ObservedObject::new(&id, spec, super::tags(subnet.tags)).output("id", Some(id.clone()));
        let seen = seen.output("cidr", Some(cidr)).output("zone", zone).output("zone_id", zone_id);
        all.push(seen.state(state));
    }
    // An existing subnet is not reported on.
    let ours = all.iter().filter(|seen| tags::lineage(&seen.tags).is_some());
    let places: Vec<Place> = ours.map(|seen| Place::of(&seen.id, &seen.tags)).collect();
    let mut foreign = inside::of_subnets(api, &places).await?;
    for seen in &mut all {
        seen.foreign = foreign.remove(&seen.id).unwrap_or_default();
    }
    Ok(all)
}
