//! Nodes that take the place of others are in every zone.

use serde_json::Value;
use textnlp_provider::cluster::POOL;
use textnlp_provider::{Ownership, Problem, Result, Wanted};

use super::quotas::NODE_GROUP;
use crate::api::Api;

const SERVICE: &str = "eks";

/// Checks the groups of nodes of a site.
pub(super) async fn nodes(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for group in wanted.iter().filter(|one| one.kind.as_str() == NODE_GROUP && one.ownership == Ownership::Ours) {
        match elsewhere(api, group).await {
            Ok(found) => problems.extend(found),
            Err(error) => problems.push(super::unknown(group.id.as_str(), &error)),
        }
    }
    problems
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
