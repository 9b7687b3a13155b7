//! Internet gateways: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateInternetGateway.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{InternetGateway as Answer, ResourceType};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Identity, Permission, Result};

use super::{CREATE_TAGS, QUICK, SERVICE, TAGS, UNTAGS, changes, creates, deletes};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            changes("ec2:AttachInternetGateway"),
            creates("ec2:CreateInternetGateway"),
            CREATE_TAGS,
            TAGS,
            deletes("ec2:DeleteInternetGateway"),
            UNTAGS,
            Permission::read("ec2:DescribeInternetGateways"),
            changes("ec2:DetachInternetGateway"),
            deletes("ec2:DetachInternetGateway"),
        ],
        typical: QUICK,
        terraform: &[("aws_internet_gateway", "id")],
        ..kind("aws.internet-gateway", "the gateway between a VPC and the internet", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<InternetGateway>::kind(),
    refused: &[],
}];

/// An internet gateway. Output: `id`.
struct InternetGateway;

/// The attributes of an internet gateway.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The VPC that it is attached to; empty while it is detached.
    vpc: String,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for InternetGateway {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["vpc"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.ec2.describe_internet_gateways().internet_gateway_ids(id).send();
        let answer = api.find(SERVICE, id, call).await?;
        Ok(answer.and_then(|answer| answer.internet_gateways.unwrap_or_default().into_iter().find_map(seen)))
    }

    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let call = api.ec2.describe_internet_gateways().filters(super::filter(filter));
        let pages = call.into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "list", "internet gateways", pages.try_collect()).await?;
        Ok(found.into_iter().filter_map(seen).collect())
    }

    async fn create(api: &Api, make: &Make<'_>, _spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::InternetGateway);
        let call = api.ec2.create_internet_gateway().tag_specifications(tags).send();
        let answer = api.call(SERVICE, "create", "internet gateway", call).await?;
        super::id_in(answer.internet_gateway.and_then(|one| one.internet_gateway_id), "internet gateway")
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        if !seen.spec.vpc.is_empty() {
            return detach(api, seen).await;
        }
        let call = api.ec2.attach_internet_gateway().internet_gateway_id(&seen.id).vpc_id(&spec.vpc).send();
        api.call(SERVICE, "attach", &seen.id, call).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        if !seen.spec.vpc.is_empty() {
            return detach(api, seen).await;
        }
        let call = api.ec2.delete_internet_gateway().internet_gateway_id(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

async fn detach(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
    let call = api.ec2.detach_internet_gateway().internet_gateway_id(&seen.id).vpc_id(&seen.spec.vpc).send();
    api.call(SERVICE, "detach", &seen.id, call).await.map(drop)
}

fn seen(one: Answer) -> Option<ObservedObject<Spec>> {
    let id = one.internet_gateway_id?;
    let attached = one.attachments.unwrap_or_default().into_iter().find_map(|attachment| attachment.vpc_id);
    let spec = Spec { vpc: attached.unwrap_or_default(), tags: Tags::new() };
    Some(ObservedObject::new(&id, spec, super::tags(one.tags)).output("id", Some(id.clone())))
}
