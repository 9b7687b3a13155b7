//! Virtual networks: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateVpc.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{AttributeBooleanValue, ResourceType, Vpc as Answer, VpcAttributeName, VpcState};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Identity, Result};

use super::SERVICE;
use crate::api::Api;
use crate::resource::{Filter, Make, Of, Resource, Seen, State};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        terraform: &[("aws_vpc", "id")],
        ..kind("aws.vpc", "a virtual network", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<Vpc>::kind(),
    refused: &[],
}];

/// A VPC. Output: `id`.
struct Vpc;

/// The attributes of a VPC.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The IPv4 range: `10.0.0.0/16`.
    cidr: String,
    /// Whether instances have DNS names: private endpoints and EKS need them.
    dns_hostnames: bool,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource for Vpc {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["dns_hostnames"];

    async fn read(api: &Api, id: &str) -> Result<Option<Seen<Spec>>> {
        let answer = api.find(SERVICE, id, api.ec2.describe_vpcs().vpc_ids(id).send()).await?;
        match answer.and_then(|answer| answer.vpcs.unwrap_or_default().into_iter().next()) {
            Some(vpc) => seen(api, vpc).await,
            None => Ok(None),
        }
    }

    async fn list(api: &Api, filter: &Filter) -> Result<Vec<Seen<Spec>>> {
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

    async fn put(api: &Api, seen: &Seen<Spec>, spec: &Spec, field: &str) -> Result<()> {
        debug_assert_eq!(field, "dns_hostnames");
        let value = AttributeBooleanValue::builder().value(spec.dns_hostnames).build();
        let call = api.ec2.modify_vpc_attribute().vpc_id(&seen.id).enable_dns_hostnames(value).send();
        api.call(SERVICE, "change", &seen.id, call).await.map(drop)
    }

    async fn tag(api: &Api, seen: &Seen<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &Seen<Spec>) -> Result<()> {
        api.call(SERVICE, "delete", &seen.id, api.ec2.delete_vpc().vpc_id(&seen.id).send()).await.map(drop)
    }
}

async fn seen(api: &Api, vpc: Answer) -> Result<Option<Seen<Spec>>> {
    let Some(id) = vpc.vpc_id else { return Ok(None) };
    let call = api.ec2.describe_vpc_attribute().vpc_id(&id).attribute(VpcAttributeName::EnableDnsHostnames).send();
    let Some(attribute) = api.find(SERVICE, &id, call).await? else { return Ok(None) };
    let dns_hostnames = attribute.enable_dns_hostnames.and_then(|value| value.value).unwrap_or_default();
    let state = match vpc.state {
        Some(VpcState::Available) => State::Ready,
        state => State::Pending(state.map_or_else(|| "unknown".to_owned(), |state| state.as_str().to_owned())),
    };
    let spec = Spec { cidr: vpc.cidr_block.unwrap_or_default(), dns_hostnames, tags: Tags::new() };
    Ok(Some(Seen::new(&id, spec, super::tags(vpc.tags)).output("id", Some(id.clone())).state(state)))
}
