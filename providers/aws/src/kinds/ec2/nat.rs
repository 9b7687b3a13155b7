//! NAT gateways: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateNatGateway.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{NatGateway as Answer, NatGatewayState, ResourceType};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Identity, Permission, ReplaceOrder, Result};

use super::{CREATE_TAGS, SERVICE, TAGS, UNTAGS, creates, deletes};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State, timestamp};
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    // Its cost: an hour each, and each GB through it.
    kind: textnlp_provider::Kind {
        deadline: MINUTE.saturating_mul(15),
        permissions: &[
            creates("ec2:CreateNatGateway"),
            CREATE_TAGS,
            TAGS,
            deletes("ec2:DeleteNatGateway"),
            UNTAGS,
            Permission::read("ec2:DescribeNatGateways"),
        ],
        // The address can be used by one gateway at a time.
        replace: ReplaceOrder::DeleteFirst,
        typical: Some(MINUTE.saturating_mul(2)),
        terraform: &[("aws_nat_gateway", "id")],
        pricing: textnlp_provider::Pricing::BySpec,
        ..kind("aws.nat-gateway", "the way out for private subnets", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<NatGateway>::kind(),
    refused: &[],
}];

/// A public NAT gateway. Outputs: `id`, `address`.
struct NatGateway;

/// The attributes of a NAT gateway.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The public subnet that it is in.
    subnet: String,
    /// The allocation id of its address.
    address: String,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for NatGateway {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &[];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.ec2.describe_nat_gateways().nat_gateway_ids(id).send()).await?;
        Ok(answer.and_then(|answer| answer.nat_gateways.unwrap_or_default().into_iter().find_map(seen)))
    }

    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.ec2.describe_nat_gateways().filter(super::filter(filter)).into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "list", "NAT gateways", pages.try_collect()).await?;
        Ok(found.into_iter().filter_map(seen).collect())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::Natgateway);
        let call = api.ec2.create_nat_gateway().subnet_id(&spec.subnet).allocation_id(&spec.address);
        let call = call.client_token(make.token).tag_specifications(tags).send();
        let answer = api.call(SERVICE, "create", "NAT gateway", call).await?;
        super::id_in(answer.nat_gateway.and_then(|one| one.nat_gateway_id), "NAT gateway")
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.ec2.delete_nat_gateway().nat_gateway_id(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

fn seen(one: Answer) -> Option<ObservedObject<Spec>> {
    let id = one.nat_gateway_id?;
    let addresses = one.nat_gateway_addresses.unwrap_or_default();
    // A gateway without secondary addresses may have none that is marked as the primary one.
    let first = addresses.iter().find(|address| address.is_primary() == Some(true)).or(addresses.first());
    let spec = Spec {
        subnet: one.subnet_id.unwrap_or_default(),
        address: first.and_then(|first| first.allocation_id.clone()).unwrap_or_default(),
        tags: Tags::new(),
    };
    let state = match one.state {
        Some(NatGatewayState::Available) => State::Ready,
        Some(NatGatewayState::Failed) => State::Failed {
            code: one.failure_code.unwrap_or_default(),
            why: one.failure_message.unwrap_or_else(|| "AWS gives no reason".to_owned()),
        },
        Some(NatGatewayState::Deleting) => State::Deleting,
        Some(NatGatewayState::Deleted) => State::Gone,
        state => State::Pending(state.map_or_else(|| "in no known state".to_owned(), |one| one.as_str().to_owned())),
    };
    let seen = ObservedObject::new(&id, spec, super::tags(one.tags)).output("id", Some(id.clone())).state(state);
    Some(seen.created(timestamp(one.create_time)).output("address", first.and_then(|first| first.public_ip.clone())))
}
