//! The kinds, by service.

pub(crate) mod ec2;
mod ecr;
mod eks;
mod elasticache;
pub(crate) mod iam;
mod kms;
mod logs;
mod rds;
mod s3;
mod secret;
mod secretsmanager;

use aws_sdk_resourcegroupstagging::types::TagFilter;
use futures::StreamExt;
use textnlp_provider::{Permission, Result, Verb};

use crate::api::Api;
use crate::resource::{Filter, ObservedObject, Resource};
use crate::table::Row;

/// The rows of every service.
pub(crate) static ALL: &[&[Row]] = &[
    ec2::address::ROWS,
    ec2::endpoint::ROWS,
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
    s3::ROWS,
    secretsmanager::ROWS,
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

/// Objects that are read at the same time.
const AT_ONCE: usize = 8;

/// Lists the objects of a service whose own lists show no tags: one call for each page of the tagging API, then those of
/// [`Resource::read`] for each object. `kind` is a resource type of that API, such as `ecr:repository`; `id` is the id in an ARN.
///
/// It is for named kinds: the tags show late, and a repeated create finds its object by the name.
async fn list_by_tag<R: Resource>(
    api: &Api,
    filter: &Filter,
    kind: &str,
    id: impl Fn(&str) -> Option<&str>,
) -> Result<Vec<ObservedObject<R::Spec>>> {
    let (key, value) = filter.tag();
    let wanted = TagFilter::builder().key(key).values(value).build();
    let pages = api.tagging.get_resources().tag_filters(wanted).resource_type_filters(kind).into_paginator();
    let found: Vec<_> = api.call("tagging", "list", kind, pages.items().send().try_collect()).await?;
    let arns: Vec<String> = found.into_iter().filter_map(|one| one.resource_arn).collect();
    let reads: Vec<_> = arns.iter().filter_map(|arn| id(arn)).map(|id| R::read(api, id)).collect();
    let read: Vec<_> = futures::stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
    read.into_iter().filter_map(Result::transpose).collect()
}
