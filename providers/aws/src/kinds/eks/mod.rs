//! What the kinds of EKS share: ids, lists, changes in the background, and roles that IAM does not show yet.
//!
//! The id of an object in a cluster is `CLUSTER:NAME`, as Terraform has it.

pub(super) mod access_entry;
pub(super) mod addon;
pub(crate) mod cluster;
pub(super) mod node_group;
pub(super) mod pod_identity;

use std::collections::HashMap;

use aws_sdk_eks::types::{Cluster, ErrorDetail, Update, UpdateStatus};
use textnlp_provider::{Error, ErrorKind, Lineage, Result};

use crate::api::Api;
use crate::kinds::iam;
use crate::names;
use crate::resource::{Filter, State};
use crate::tags::{self, Tags};

/// The signing name.
pub(super) const SERVICE: &str = "eks";
/// The site's cluster and what is in it, as a policy names them: `nodegroup/CLUSTER/NAME/ID`. A cluster's name is in its spec only.
const CLUSTER: &str = "arn:{$partition}:eks:{$region}:{$account}:cluster/{$cluster} \
     arn:{$partition}:eks:{$region}:{$account}:*/{$cluster}/*";
/// Every cluster of the account, for reads: tags tell which are the deployment's.
const CLUSTERS: &str = "arn:{$partition}:eks:{$region}:{$account}:*";

fn tags(tags: Option<HashMap<String, String>>) -> Tags {
    tags.unwrap_or_default().into_iter().collect()
}

/// The cluster and the name in an id; the second one is empty in the id of something else.
fn parts(id: &str) -> (&str, &str) {
    id.split_once(':').unwrap_or((id, ""))
}

fn id(cluster: &str, name: &str) -> String {
    format!("{cluster}:{name}")
}

/// Changes the tags of an object with one call.
async fn tag(api: &Api, arn: &str, set: &Tags, remove: &[String]) -> Result<()> {
    if set.is_empty() {
        let call = api.eks.untag_resource().resource_arn(arn).set_tag_keys(Some(remove.to_vec())).send();
        return api.call(SERVICE, "remove tags of", arn, call).await.map(drop);
    }
    let set = set.clone().into_iter().collect();
    api.call(SERVICE, "set tags of", arn, api.eks.tag_resource().resource_arn(arn).set_tags(Some(set)).send())
        .await
        .map(drop)
}

async fn describe(api: &Api, name: &str) -> Result<Option<Cluster>> {
    let answer = api.find(SERVICE, name, api.eks.describe_cluster().name(name).send()).await?;
    Ok(answer.and_then(|answer| answer.cluster))
}

/// The clusters of a deployment: one call for all names of the region, and one for each cluster of this program. An observation makes
/// them once.
async fn clusters(api: &Api, filter: &Filter) -> Result<Vec<Cluster>> {
    let (lineage, shared) = match filter {
        Filter::Lineage(lineage, shared) => (*lineage, shared),
        Filter::Operation(lineage, _) => return described(api, *lineage).await,
    };
    let mut regions = shared.clusters.lock().await;
    if let Some(all) = regions.get(&api.region) {
        return Ok(all.clone());
    }
    let all = described(api, lineage).await?;
    regions.insert(api.region.clone(), all.clone());
    Ok(all)
}

async fn described(api: &Api, lineage: Lineage) -> Result<Vec<Cluster>> {
    let pages = api.eks.list_clusters().into_paginator().items().send();
    let found: Vec<String> = api.call(SERVICE, "list", "clusters", pages.try_collect()).await?;
    let mut all = Vec::new();
    for name in found.iter().filter(|name| name.starts_with(names::PREFIX)) {
        let Some(cluster) = describe(api, name).await? else { continue };
        if tags::lineage(&tags(cluster.tags.clone())) == Some(lineage) {
            all.push(cluster);
        }
    }
    Ok(all)
}

/// The names of [`clusters`]: objects in clusters of others are found only by their ids, and no operation creates any.
async fn cluster_names(api: &Api, filter: &Filter) -> Result<Vec<String>> {
    Ok(clusters(api, filter).await?.into_iter().filter_map(|cluster| cluster.name).collect())
}

/// What a refused create means whose cause may be the role.
///
/// IAM is eventually consistent: for some seconds EKS refuses a new role in the same words as one that is missing or that does
/// not trust `service`. The role itself, as IAM shows it, tells the two apart. The first passes, and the engine bounds its attempts.
async fn about_role(api: &Api, error: Error, role: &str, service: Option<&str>) -> Error {
    let words = error.source.as_ref().map(ToString::to_string).unwrap_or_default().to_lowercase();
    let is_about_role = error.code.as_deref() == Some("InvalidParameterException")
        && ["role", "principal", "assume"].iter().any(|word| words.contains(word));
    if !is_about_role {
        return error;
    }
    let name = role.rsplit('/').next().unwrap_or(role);
    let (kind, hint) = match api.find("iam", name, api.iam.get_role().role_name(name).send()).await {
        Ok(answer) => match answer.and_then(|answer| answer.role) {
            None => (ErrorKind::Invalid, format!("there is no role `{name}`")),
            Some(found) if found.arn != role => {
                (ErrorKind::Invalid, format!("the role `{name}` is `{}`, not `{role}`", found.arn))
            }
            Some(found) => {
                let trust = found.assume_role_policy_document.as_deref().map(iam::document).unwrap_or_default();
                match service.filter(|service| !trust.to_string().contains(&format!("\"{service}\""))) {
                    None => (ErrorKind::Conflict, format!("EKS does not see the new role `{name}` yet")),
                    Some(service) => (ErrorKind::Invalid, format!("the role `{name}` does not trust `{service}`")),
                }
            }
        },
        // Without a look at the role, AWS's words decide.
        Err(_) => return error,
    };
    Error { kind, hint: Some(hint), ..error }
}

/// The id of a change, and its state as far as the answer says.
fn started(update: Option<Update>) -> Option<String> {
    update.and_then(|update| update.id)
}

/// The change of a cluster, or of a node group or an add-on in it.
async fn change(api: &Api, name: &str, part: Option<Part<'_>>, change: &str) -> Result<State> {
    let call = api.eks.describe_update().name(name).update_id(change);
    let call = match part {
        None => call,
        Some(Part::NodeGroup(name)) => call.nodegroup_name(name),
        Some(Part::Addon(name)) => call.addon_name(name),
    };
    let answer = api.find(SERVICE, format!("change {change} of {name}"), call.send()).await?;
    // AWS forgets changes after a while; the object itself shows what became of this one.
    let Some(update) = answer.and_then(|answer| answer.update) else { return Ok(State::Ready) };
    Ok(match update.status {
        Some(UpdateStatus::InProgress) => State::Pending("in progress".to_owned()),
        Some(UpdateStatus::Failed | UpdateStatus::Cancelled) => failed(update.errors.unwrap_or_default()),
        _ => State::Ready,
    })
}

/// What in a cluster a change is of.
enum Part<'a> {
    NodeGroup(&'a str),
    Addon(&'a str),
}

fn failed(errors: Vec<ErrorDetail>) -> State {
    let code = errors.iter().find_map(|error| error.error_code.as_ref()).map(|code| code.as_str().to_owned());
    let reasons: Vec<String> = errors.into_iter().filter_map(|error| error.error_message).collect();
    let why = if reasons.is_empty() { "AWS gives no reason".to_owned() } else { reasons.join("; ") };
    State::Failed { code: code.unwrap_or_default(), why }
}

/// The code of the first issue, and the texts of all.
fn issues(issues: impl Iterator<Item = (Option<String>, Option<String>)>) -> Option<(String, String)> {
    let all: Vec<(String, String)> =
        issues.map(|(code, message)| (code.unwrap_or_default(), message.unwrap_or_default())).collect();
    let (code, _) = all.first().cloned()?;
    Some((code, all.into_iter().map(|(code, message)| format!("{code}: {message}")).collect::<Vec<_>>().join("; ")))
}
