//! Nodes that take the place of others are in every zone, and the key of their disks.

use std::sync::Arc;

use serde_json::Value;
use textnlp_cloud::preflight::is_new;
use textnlp_provider::cluster::POOL;
use textnlp_provider::{Ownership, Problem, Result, Wanted};

use super::quotas::NODE_GROUP;
use crate::api::Api;

const SERVICE: &str = "eks";
/// The key of EBS that AWS manages: each identity of the account may use it.
const AWS_KEY: &str = "alias/aws/ebs";

/// Checks the groups of nodes of a site.
pub(super) async fn nodes(api: &Arc<Api>, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(disk_key(api, wanted).await);
    for group in wanted.iter().filter(|one| one.kind.as_str() == NODE_GROUP && one.ownership == Ownership::Ours) {
        match elsewhere(api, group).await {
            Ok(found) => problems.extend(found),
            Err(error) => problems.push(super::unknown(group.id.as_str(), &error)),
        }
    }
    problems
}

/// Nodes of a new cluster end while they start if their disks have a key that Auto Scaling may not use
/// (hashicorp/terraform-provider-aws#39904). Whether it may is decided by grants and by the policy of the key, which this identity
/// seldom reads.
async fn disk_key(api: &Arc<Api>, wanted: &[Wanted]) -> Option<Problem> {
    let is_group = |one: &&Wanted| one.kind.as_str() == NODE_GROUP && one.ownership == Ownership::Ours;
    let group = wanted.iter().find(is_group)?;
    if !is_new(api, wanted, crate::table::CLUSTER).await {
        return None;
    }
    let call = api.ec2.get_ebs_default_kms_key_id().send();
    let key = match api.call("ec2", "read", "the default key of disks", call).await {
        Ok(answer) => answer.kms_key_id.unwrap_or_default(),
        Err(error) => return Some(super::unknown("the default key of disks", &error)),
    };
    if key.is_empty() || key.ends_with(AWS_KEY) {
        return None;
    }
    let cause = format!(
        "the account's default key of EBS in {} is {key}: nodes start only if AWSServiceRoleForAutoScaling may use it",
        api.region
    );
    let fix = format!(
        "`aws kms list-grants --region {} --key-id {key}` shows whether it may, `aws kms create-grant` lets it",
        api.region
    );
    Some(Problem::warning(group.id.as_str(), cause, fix))
}

/// A group starts its nodes in any zones of its subnets, and a volume of EBS stays in its zone: without a node there, the pods that have
/// it wait after the old nodes are gone (<https://gitlab.com/gitlab-org/gitlab-environment-toolkit/-/issues/1093>). A node autoscaler
/// adds nodes to the whole group, and so in any zone too.
async fn elsewhere(api: &Api, group: &Wanted) -> Result<Option<Problem>> {
    let field = |name: &str| group.spec.get(name);
    let text = |name: &str| field(name).and_then(Value::as_str);
    let pool = field("labels").and_then(|labels| labels[POOL].as_str());
    let (Some(cluster), Some(name), Some(pool)) = (text("cluster"), text("name"), pool) else { return Ok(None) };
    let zones = field("subnets").and_then(Value::as_array).map_or(0, Vec::len);
    let least = field("scaling").and_then(|scaling| scaling["min"].as_u64()).unwrap_or_default();
    if usize::try_from(least).unwrap_or(usize::MAX) >= zones {
        return Ok(None);
    }
    let pages = api.eks.list_nodegroups().cluster_name(cluster).into_paginator().items().send();
    let found: Option<Vec<String>> = api.find(SERVICE, cluster, pages.try_collect()).await?;
    let others = found.unwrap_or_default();
    if others.iter().any(|other| other == name) {
        return Ok(None);
    }
    for other in others {
        let call = api.eks.describe_nodegroup().cluster_name(cluster).nodegroup_name(&other).send();
        let answer = api.find(SERVICE, &other, call).await?;
        let labels = answer.and_then(|answer| answer.nodegroup).and_then(|group| group.labels).unwrap_or_default();
        if labels.get(POOL).is_some_and(|label| label == pool) {
            let cause = format!(
                "`{name}` takes the place of `{other}` with fewer nodes than the cluster has zones: a pod whose volume is in a zone \
                 without a node, such as that of a database, would wait"
            );
            let fix = format!(
                "set `cluster.min_nodes: {zones}`, or keep the nodes as they are by `cluster.node_size` or `sites[].instance_type`"
            );
            return Ok(Some(Problem::new("cluster.min_nodes", cause, fix)));
        }
    }
    Ok(None)
}
