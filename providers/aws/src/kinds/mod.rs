//! The kinds, by service.

mod acm;
mod autoscaling;
mod budgets;
mod cloudwatch;
pub(crate) mod ec2;
mod ecr;
pub(crate) mod eks;
mod elasticache;
mod elb;
pub(crate) mod iam;
mod kms;
mod logs;
pub(crate) mod rds;
mod route53;
mod s3;
mod sagemaker;
mod secret;
mod secretsmanager;
mod sns;

use aws_sdk_resourcegroupstagging::types::{ResourceTagMapping, TagFilter};
use futures::StreamExt;
use textnlp_provider::{Condition, Permission, Result, Verb};

pub(crate) use cloudwatch::alarm::RESULT;
pub(crate) use ec2::security_group::NOWHERE;
pub(crate) use s3::RULE as REPLICATION;

use crate::api::Api;
use crate::resource::{Filter, ObservedObject, Resource};
use crate::table::Row;

/// The rows of every service.
pub(crate) static ALL: &[&[Row]] = &[
    acm::ROWS,
    autoscaling::ROWS,
    budgets::ROWS,
    cloudwatch::alarm::ROWS,
    cloudwatch::dashboard::ROWS,
    ec2::address::ROWS,
    ec2::endpoint::ROWS,
    ec2::flow_log::ROWS,
    ec2::gateway::ROWS,
    ec2::launch_template::ROWS,
    ec2::nat::ROWS,
    ec2::route_table::ROWS,
    ec2::security_group::ROWS,
    ec2::subnet::ROWS,
    ec2::vpc::ROWS,
    ecr::ROWS,
    eks::access_entry::ROWS,
    eks::addon::ROWS,
    eks::cluster::ROWS,
    eks::node_group::ROWS,
    eks::pod_identity::ROWS,
    elasticache::ROWS,
    iam::instance_profile::ROWS,
    iam::oidc_provider::ROWS,
    iam::role::ROWS,
    kms::ROWS,
    logs::ROWS,
    rds::ROWS,
    route53::health_check::ROWS,
    route53::record::ROWS,
    s3::ROWS,
    sagemaker::ROWS,
    secretsmanager::ROWS,
    sns::ROWS,
];

/// Operations that need a permission of [`Resource::create`].
const CREATE: &[Verb] = &[Verb::Create];
/// Operations that need one of [`Resource::put`] or [`Resource::tag`].
const PUT: &[Verb] = &[Verb::Create, Verb::Update];
/// Operations that need one of [`Resource::delete`].
const DELETE: &[Verb] = &[Verb::Delete];

/// A permission on these resources only.
const fn only(permission: Permission, resource: &'static str) -> Permission {
    Permission { resource, ..permission }
}

/// A permission under these conditions only.
const fn when(conditions: &'static [Condition], permission: Permission) -> Permission {
    Permission { conditions, ..permission }
}

/// On objects of this deployment.
const OURS: &[Condition] = &[Condition { key: "aws:ResourceTag/textnlp-lineage", value: "{$lineage}" }];
/// On objects of the AWS Load Balancer Controller.
const OF_CONTROLLER: &[Condition] = &[Condition { key: "aws:ResourceTag/elbv2.k8s.aws/cluster", value: "{$cluster}" }];
/// On objects of the cluster's other controllers.
const OF_CLUSTER: &[Condition] =
    &[Condition { key: "aws:ResourceTag/kubernetes.io/cluster/{$cluster}", value: "owned" }];
/// For an AWS service that uses a key as the caller.
const FOR_SERVICE: &[Condition] = &[Condition { key: "kms:GrantIsForAWSResource", value: "true" }];
/// Every key of the account: policies of keys of others decide too, and an existing key is not tagged.
const KEYS: &str = "arn:{$partition}:kms:{$region}:{$account}:key/*";

/// Objects that are read at the same time.
const AT_ONCE: usize = 8;

/// Lists the objects of a service whose own lists show no tags: one call for each page of the tagging API, then those of
/// [`Resource::read`] for each object. `kind` is a resource type of that API, such as `ecr:repository`; `id` is the id in an ARN.
///
/// It is for named kinds: the tags show late, and a repeated create finds its object by the name.
async fn list_by_tag<R: Resource<Api>>(
    api: &Api,
    filter: &Filter,
    kind: &str,
    id: impl Fn(&str) -> Option<&str>,
) -> Result<Vec<ObservedObject<R::Spec>>> {
    let arns = arns_by_tag(api, filter, kind).await?;
    let reads: Vec<_> = arns.iter().filter_map(|arn| id(arn)).map(|id| R::read(api, id)).collect();
    let read: Vec<_> = futures::stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
    read.into_iter().filter_map(Result::transpose).collect()
}

/// The ARNs of the objects of a resource type of the tagging API; see [`shown_by_tag`].
async fn arns_by_tag(api: &Api, filter: &Filter, kind: &str) -> Result<Vec<String>> {
    let shown = shown_by_tag(api, filter, kind).await?;
    Ok(shown.into_iter().filter_map(|one| one.resource_arn).collect())
}

/// What the tagging API shows of the objects of a resource type: one call for each page. Those of a lineage are listed once for all
/// types.
async fn shown_by_tag(api: &Api, filter: &Filter, kind: &str) -> Result<Vec<ResourceTagMapping>> {
    let Filter::Lineage(_, shared) = filter else { return tagged(api, filter.tag(), &[kind]).await };
    let mut regions = shared.tagged.lock().await;
    let all = match regions.get(&api.region) {
        Some(all) => all,
        None => {
            let all = tagged(api, filter.tag(), &[]).await?;
            regions.entry(api.region.clone()).or_insert(all)
        }
    };
    let is_of_kind = |one: &&ResourceTagMapping| one.resource_arn.as_deref().is_some_and(|arn| is_of_type(arn, kind));
    Ok(all.iter().filter(is_of_kind).cloned().collect())
}

/// What the tagging API shows of the region's objects with a tag, of these resource types or of all: one call for each page.
pub(crate) async fn tagged(api: &Api, (key, value): (&str, String), types: &[&str]) -> Result<Vec<ResourceTagMapping>> {
    let wanted = TagFilter::builder().key(key).values(value).build();
    let call = api.tagging.get_resources().tag_filters(wanted);
    let call = types.iter().fold(call, |call, name| call.resource_type_filters(*name));
    let what = format!("objects with the tag {key} in {}", api.region);
    api.call("tagging", "list", what, call.into_paginator().items().send().try_collect()).await
}

/// Whether an object has a resource type of the tagging API: `ecr:repository`, or a service whose ARNs have no types.
fn is_of_type(arn: &str, kind: &str) -> bool {
    let (service, of) = kind.split_once(':').unwrap_or((kind, ""));
    let mut parts = arn.splitn(6, ':').skip(2);
    let (found, resource) = (parts.next(), parts.nth(2).unwrap_or_default());
    let rest = resource.strip_prefix(of);
    found == Some(service) && rest.is_some_and(|rest| of.is_empty() || rest.starts_with(['/', ':']))
}
