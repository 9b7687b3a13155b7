//! Flow logs of a VPC: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateFlowLogs.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{
    FlowLog as Answer, FlowLogsResourceType, LogDestinationType, ResourceType, TrafficType, UnsuccessfulItem,
};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Error, Identity, Permission, Result};

use super::{CREATE_TAGS, QUICK, SERVICE, TAGS, UNTAGS, creates, deletes};
use crate::api::Api;
use crate::kinds::CREATE;
use crate::kinds::iam::{TO_FLOW_LOGS, passes};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State};
use crate::table::{Row, kind};
use crate::tables::errors;
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            creates("ec2:CreateFlowLogs"),
            CREATE_TAGS,
            TAGS,
            deletes("ec2:DeleteFlowLogs"),
            UNTAGS,
            Permission::read("ec2:DescribeFlowLogs"),
            passes(CREATE, TO_FLOW_LOGS),
        ],
        pricing: textnlp_provider::Pricing::BySpec,
        typical: QUICK,
        terraform: &[("aws_flow_log", "id")],
        ..kind("aws.flow-log", "a log of the connections in a VPC", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<FlowLog>::kind(),
    refused: &[],
}];

/// A flow log in a log group. Outputs: `id`.
struct FlowLog;

/// The attributes of a flow log: none of them can change.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The id of the VPC.
    vpc: String,
    /// The name of the log group.
    log_group: String,
    /// The ARN of the role that writes to it.
    role: String,
    /// Which connections: `ALL`, `ACCEPT`, `REJECT`.
    traffic: String,
    /// The seconds that one entry is of: 60 or 600.
    interval_seconds: i32,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for FlowLog {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &[];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        // A description by an id that does not exist may be empty, too.
        let answer = api.find(SERVICE, id, api.ec2.describe_flow_logs().flow_log_ids(id).send()).await?;
        Ok(answer.and_then(|answer| answer.flow_logs.unwrap_or_default().into_iter().find_map(seen)))
    }

    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.ec2.describe_flow_logs().filter(super::filter(filter)).into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "list", "flow logs", pages.try_collect()).await?;
        Ok(found.into_iter().filter_map(seen).collect())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .ec2
            .create_flow_logs()
            .client_token(make.token)
            .resource_type(FlowLogsResourceType::Vpc)
            .resource_ids(&spec.vpc)
            .traffic_type(TrafficType::from(spec.traffic.as_str()))
            .log_destination_type(LogDestinationType::CloudWatchLogs)
            .log_group_name(&spec.log_group)
            .deliver_logs_permission_arn(&spec.role)
            .max_aggregation_interval(spec.interval_seconds)
            .tag_specifications(super::specification(make, ResourceType::VpcFlowLog))
            .send();
        let answer = api.call(SERVICE, "create", "flow log", call).await?;
        refused("create", answer.unsuccessful)?;
        super::id_in(answer.flow_log_ids.unwrap_or_default().into_iter().next(), "flow log")
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.ec2.delete_flow_logs().flow_log_ids(&seen.id).send();
        let answer = api.call(SERVICE, "delete", &seen.id, call).await?;
        refused("delete", answer.unsuccessful)
    }
}

/// What an answer says that was not done, as an error.
fn refused(action: &str, items: Option<Vec<UnsuccessfulItem>>) -> Result<()> {
    let Some(item) = items.unwrap_or_default().into_iter().next() else { return Ok(()) };
    let (code, message) = item.error.map(|error| (error.code, error.message)).unwrap_or_default();
    let (code, message) = (code.unwrap_or_default(), message.unwrap_or_default());
    let (kind, hint) = errors::classify(SERVICE, &code, None, &message);
    let mut error = Error::new(kind, action, item.resource_id.unwrap_or_else(|| "flow log".to_owned()));
    (error.code, error.hint) = (Some(code), hint);
    Err(error.because(message))
}

fn seen(one: Answer) -> Option<ObservedObject<Spec>> {
    let id = one.flow_log_id?;
    // The status is not there before the first entry.
    let state = match one.deliver_logs_status.as_deref() {
        Some("FAILED") => {
            let why = one.deliver_logs_error_message.unwrap_or_else(|| "AWS gives no reason".to_owned());
            State::Degraded(format!("no entries are written: {why}"))
        }
        _ => State::Ready,
    };
    let spec = Spec {
        vpc: one.resource_id.unwrap_or_default(),
        log_group: one.log_group_name.unwrap_or_default(),
        role: one.deliver_logs_permission_arn.unwrap_or_default(),
        traffic: one.traffic_type.map(|one| one.as_str().to_owned()).unwrap_or_default(),
        interval_seconds: one.max_aggregation_interval.unwrap_or_default(),
        tags: Tags::new(),
    };
    Some(ObservedObject::new(&id, spec, super::tags(one.tags)).output("id", Some(id.clone())).state(state))
}
