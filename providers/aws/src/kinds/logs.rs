//! Log groups: <https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_CreateLogGroup.html>.

use async_trait::async_trait;
use aws_sdk_cloudwatchlogs::types::LogGroup as Answer;
use serde::{Deserialize, Serialize};
use textnlp_provider::{DataClass, Identity, Permission, Result};

use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

/// The signing name.
const SERVICE: &str = "logs";
/// How the names of groups start that this program creates: those of EKS, and others.
const PREFIXES: [&str; 2] = ["/aws/eks/textnlp-", "/textnlp/"];

/// A group with or without its streams.
const GROUP: &str = "arn:{$partition}:logs:{$region}:{$account}:log-group:{name}*";

pub(crate) static ROWS: &[Row] = &[Row {
    // Costs for each GB that is written, and for each that is kept.
    kind: textnlp_provider::Kind {
        data: DataClass::Derived,
        permissions: &[
            only(Permission::on(PUT, "logs:AssociateKmsKey"), GROUP),
            only(Permission::on(CREATE, "logs:CreateLogGroup"), GROUP),
            only(Permission::on(DELETE, "logs:DeleteLogGroup"), GROUP),
            only(Permission::on(PUT, "logs:DeleteRetentionPolicy"), GROUP),
            Permission::read("logs:DescribeLogGroups"),
            only(Permission::on(PUT, "logs:DisassociateKmsKey"), GROUP),
            Permission::read("logs:ListTagsForResource"),
            only(Permission::on(PUT, "logs:PutRetentionPolicy"), GROUP),
            only(Permission::on(PUT, "logs:TagResource"), GROUP),
            only(Permission::on(PUT, "logs:UntagResource"), GROUP),
        ],
        terraform: &[("aws_cloudwatch_log_group", "id")],
        pricing: textnlp_provider::Pricing::BySpec,
        ..kind("aws.log-group", "logs of one source", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<LogGroup>::kind(),
    refused: &[],
}];

/// A log group. Outputs: `name`, `arn`.
struct LogGroup;

/// The attributes of a log group.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Its name.
    name: String,
    /// Days after which an entry is deleted, one of AWS's numbers: 1, 3, 5, 7, 14, 30, 60, 90, …; `None` keeps it for ever.
    retention_days: Option<i32>,
    /// The ARN of the key that encrypts it; `None` is a key of AWS.
    key: Option<String>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for LogGroup {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["key", "retention_days"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let pages = api.logs.describe_log_groups().log_group_name_prefix(id).into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "read", id, pages.try_collect()).await?;
        match found.into_iter().find(|group| group.log_group_name.as_deref() == Some(id)) {
            Some(group) => seen(api, group).await,
            None => Ok(None),
        }
    }

    /// One call for each prefix, and one for the tags of each group that they show.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let mut all = Vec::new();
        for prefix in PREFIXES {
            let pages = api.logs.describe_log_groups().log_group_name_prefix(prefix).into_paginator().items().send();
            let found: Vec<Answer> = api.call(SERVICE, "list", "log groups", pages.try_collect()).await?;
            for group in found {
                all.extend(seen(api, group).await?.filter(|seen| filter.matches(&seen.tags)));
            }
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    /// EKS makes the log group of a deleted cluster again for entries that are late
    /// (<https://github.com/terraform-aws-modules/terraform-aws-eks/issues/2763>).
    fn is_made_by_cloud(id: &str) -> bool {
        id.starts_with(PREFIXES[0]) && id.ends_with("/cluster")
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let tags = make.tags.clone().into_iter().collect();
        let call = api.logs.create_log_group().log_group_name(&spec.name).set_kms_key_id(spec.key.clone());
        let call = call.set_tags(Some(tags)).send();
        api.call(SERVICE, "create", format!("log group {}", spec.name), call).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let (logs, id) = (&api.logs, seen.id.as_str());
        match (field, spec.retention_days, &spec.key) {
            ("retention_days", Some(days), _) => {
                let call = logs.put_retention_policy().log_group_name(id).retention_in_days(days).send();
                api.call(SERVICE, "set the retention of", id, call).await.map(drop)
            }
            ("retention_days", None, _) => {
                let call = logs.delete_retention_policy().log_group_name(id).send();
                api.call(SERVICE, "remove the retention of", id, call).await.map(drop)
            }
            (_, _, Some(key)) => {
                let call = logs.associate_kms_key().log_group_name(id).kms_key_id(key).send();
                api.call(SERVICE, "set the key of", id, call).await.map(drop)
            }
            (_, _, None) => {
                let call = logs.disassociate_kms_key().log_group_name(id).send();
                api.call(SERVICE, "remove the key of", id, call).await.map(drop)
            }
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = seen.outputs.get("arn").and_then(|arn| arn.as_str()).unwrap_or_default();
        if set.is_empty() {
            let call = api.logs.untag_resource().resource_arn(arn).set_tag_keys(Some(remove.to_vec())).send();
            return api.call(SERVICE, "remove tags of", &seen.id, call).await.map(drop);
        }
        let tags = set.clone().into_iter().collect();
        let call = api.logs.tag_resource().resource_arn(arn).set_tags(Some(tags)).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.logs.delete_log_group().log_group_name(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

async fn seen(api: &Api, group: Answer) -> Result<Option<ObservedObject<Spec>>> {
    let (Some(name), Some(arn)) = (group.log_group_name, group.log_group_arn) else { return Ok(None) };
    let call = api.logs.list_tags_for_resource().resource_arn(&arn).send();
    let Some(answer) = api.find(SERVICE, &name, call).await? else { return Ok(None) };
    let tags = answer.tags.unwrap_or_default().into_iter().collect();
    let spec =
        Spec { name: name.clone(), retention_days: group.retention_in_days, key: group.kms_key_id, tags: Tags::new() };
    Ok(Some(ObservedObject::new(&name, spec, tags).output("name", Some(name.clone())).output("arn", Some(arn))))
}
