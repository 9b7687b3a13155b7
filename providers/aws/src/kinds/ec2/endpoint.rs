//! VPC endpoints of AWS's services: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateVpcEndpoint.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{ResourceType, VpcEndpoint as Answer, VpcEndpointType};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Identity, Permission, Result};

use super::{CREATE_TAGS, SERVICE, TAGS, UNTAGS, changes, creates, deletes};
use crate::api::Api;
use crate::kinds::{PUT, iam};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State, timestamp};
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    // Its cost: nothing for a gateway; else an hour for each subnet, and each GB through it.
    kind: textnlp_provider::Kind {
        deadline: MINUTE.saturating_mul(20),
        permissions: &[
            CREATE_TAGS,
            TAGS,
            creates("ec2:CreateVpcEndpoint"),
            UNTAGS,
            deletes("ec2:DeleteVpcEndpoints"),
            Permission::read("ec2:DescribeVpcEndpoints"),
            changes("ec2:ModifyVpcEndpoint"),
            PRIVATE_DNS,
        ],
        // A VPC has one endpoint with the private names of a service.
        replace: textnlp_provider::ReplaceOrder::DeleteFirst,
        typical: Some(MINUTE.saturating_mul(2)),
        terraform: &[("aws_vpc_endpoint", "id")],
        pricing: textnlp_provider::Pricing::BySpec,
        ..kind("aws.vpc-endpoint", "a private way to a service of AWS", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<VpcEndpoint>::kind(),
    refused: &[],
}];

/// EC2 gives the VPC a private zone with the public names of the service, as the caller. The zone is AWS's, and its id is not known
/// (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html>, a dependent action of `CreateVpcEndpoint`).
const PRIVATE_DNS: Permission = Permission {
    resource: "arn:{$partition}:route53:::hostedzone/*",
    ..Permission::on(PUT, "route53:AssociateVPCWithHostedZone{private_dns=true}")
};

/// A VPC endpoint. Output: `id`.
struct VpcEndpoint;

/// The attributes of a VPC endpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    vpc: String,
    /// The service: `com.amazonaws.eu-west-1.s3`.
    service: String,
    /// `Gateway` or `Interface`.
    kind: String,
    /// The route tables that lead to a gateway.
    route_tables: Vec<String>,
    /// The subnets of an interface.
    subnets: Vec<String>,
    /// The security groups of an interface.
    groups: Vec<String>,
    /// Whether the service's public names lead to an interface.
    private_dns: bool,
    /// Which calls may pass, as an IAM policy.
    policy: Value,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for VpcEndpoint {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["route_tables", "subnets", "groups", "private_dns", "policy"];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.ec2.describe_vpc_endpoints().vpc_endpoint_ids(id).send()).await?;
        Ok(answer.and_then(|answer| answer.vpc_endpoints.unwrap_or_default().into_iter().find_map(seen)))
    }

    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.ec2.describe_vpc_endpoints().filters(super::filter(filter)).into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "list", "VPC endpoints", pages.try_collect()).await?;
        Ok(found.into_iter().filter_map(seen).collect())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::VpcEndpoint);
        let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        let call = api.ec2.create_vpc_endpoint().vpc_id(&spec.vpc).service_name(&spec.service);
        let call = call
            .vpc_endpoint_type(VpcEndpointType::from(spec.kind.as_str()))
            .set_route_table_ids(some(&spec.route_tables))
            .set_subnet_ids(some(&spec.subnets))
            .set_security_group_ids(some(&spec.groups))
            .set_private_dns_enabled(is_interface(spec).then_some(spec.private_dns))
            .policy_document(spec.policy.to_string())
            .client_token(make.token)
            .tag_specifications(tags);
        let answer = api.call(SERVICE, "create", format!("VPC endpoint {}", spec.service), call.send()).await?;
        super::id_in(answer.vpc_endpoint.and_then(|one| one.vpc_endpoint_id), "VPC endpoint")
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let call = api.ec2.modify_vpc_endpoint().vpc_endpoint_id(&seen.id);
        let call = match field {
            "route_tables" => {
                let (add, remove) = super::change(&seen.spec.route_tables, &spec.route_tables);
                call.set_add_route_table_ids(add).set_remove_route_table_ids(remove)
            }
            "subnets" => {
                let (add, remove) = super::change(&seen.spec.subnets, &spec.subnets);
                call.set_add_subnet_ids(add).set_remove_subnet_ids(remove)
            }
            "groups" => {
                let (add, remove) = super::change(&seen.spec.groups, &spec.groups);
                call.set_add_security_group_ids(add).set_remove_security_group_ids(remove)
            }
            "private_dns" => call.private_dns_enabled(spec.private_dns),
            _ => call.policy_document(spec.policy.to_string()),
        };
        api.call(SERVICE, "change", &seen.id, call.send()).await.map(drop)
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "policy" && iam::is_same(wanted, seen)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.ec2.delete_vpc_endpoints().vpc_endpoint_ids(&seen.id).send();
        let answer = api.call(SERVICE, "delete", &seen.id, call).await?;
        // What fails is in the answer to a call that succeeds.
        let Some(failed) = answer.unsuccessful.unwrap_or_default().into_iter().find_map(|one| one.error) else {
            return Ok(());
        };
        let (code, why) = (failed.code.unwrap_or_default(), failed.message.unwrap_or_default());
        let (kind, hint) = crate::tables::errors::classify(SERVICE, &code, None, &why);
        let mut error = textnlp_provider::Error::new(kind, "delete", &seen.id).because(why).code(code);
        error.hint = hint;
        Err(error)
    }
}

fn is_interface(spec: &Spec) -> bool {
    spec.kind == VpcEndpointType::Interface.as_str()
}

fn seen(one: Answer) -> Option<ObservedObject<Spec>> {
    let id = one.vpc_endpoint_id?;
    let groups = one.groups.unwrap_or_default().into_iter().filter_map(|group| group.group_id);
    let policy = one.policy_document.unwrap_or_default();
    let spec = Spec {
        vpc: one.vpc_id.unwrap_or_default(),
        service: one.service_name.unwrap_or_default(),
        kind: one.vpc_endpoint_type.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        route_tables: one.route_table_ids.unwrap_or_default(),
        subnets: one.subnet_ids.unwrap_or_default(),
        groups: groups.collect(),
        private_dns: one.private_dns_enabled.unwrap_or_default(),
        policy: serde_json::from_str(&policy).unwrap_or(Value::String(policy)),
        tags: Tags::new(),
    };
    let why = || {
        let error = one.last_error.as_ref().and_then(|error| error.message.clone());
        one.failure_reason.clone().or(error).unwrap_or_else(|| "AWS gives no reason".to_owned())
    };
    let code = || one.last_error.as_ref().and_then(|error| error.code.clone()).unwrap_or_default();
    // The model capitalises the states, and the API answers in lower case.
    let word = one.state.as_ref().map(|state| state.as_str().to_ascii_lowercase()).unwrap_or_default();
    let state = match word.as_str() {
        "available" => State::Ready,
        "deleting" => State::Deleting,
        "deleted" => State::Gone,
        "failed" | "rejected" | "expired" => State::Failed { code: code(), why: why() },
        "partial" => State::Degraded(why()),
        _ => State::Pending(word),
    };
    let seen = ObservedObject::new(&id, spec, super::tags(one.tags)).output("id", Some(id.clone()));
    Some(seen.created(timestamp(one.creation_timestamp)).state(state))
}
