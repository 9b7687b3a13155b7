//! Access entries, which let a role or a user of IAM into a cluster:
//! <https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateAccessEntry.html>.

use std::collections::BTreeSet;

use async_trait::async_trait;
use aws_sdk_eks::types::{AccessEntry as Answer, AccessScope, AccessScopeType};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Identity, Permission, Result};

use super::{CLUSTER, CLUSTERS, SERVICE};
use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            only(Permission::on(PUT, "eks:AssociateAccessPolicy"), CLUSTER),
            only(Permission::on(CREATE, "eks:CreateAccessEntry"), CLUSTER),
            only(Permission::on(DELETE, "eks:DeleteAccessEntry"), CLUSTER),
            only(Permission::read("eks:DescribeAccessEntry"), CLUSTERS),
            only(Permission::read("eks:DescribeCluster"), CLUSTERS),
            only(Permission::on(PUT, "eks:DisassociateAccessPolicy"), CLUSTER),
            only(Permission::read("eks:ListAccessEntries"), CLUSTERS),
            only(Permission::read("eks:ListAssociatedAccessPolicies"), CLUSTERS),
            Permission::read("eks:ListClusters"),
            only(Permission::on(PUT, "eks:TagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UntagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UpdateAccessEntry"), CLUSTER),
        ],
        terraform: &[("aws_eks_access_entry", "id")],
        ..kind("aws.eks-access-entry", "access of an identity to a cluster", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Entry>::kind(),
    refused: &[],
}];

/// An access entry. Outputs: `arn`, `username`.
struct Entry;

/// The attributes of an access entry.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The name of its cluster.
    cluster: String,
    /// The ARN of the role or user.
    principal: String,
    /// Its groups in the cluster, for role bindings.
    groups: BTreeSet<String>,
    /// The access policies of EKS that it has.
    policies: BTreeSet<Policy>,
    #[serde(default)]
    tags: Tags,
}

/// An access policy, and where it holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Policy {
    /// Its ARN: `arn:aws:eks::aws:cluster-access-policy/AmazonEKSViewPolicy`.
    arn: String,
    /// The namespaces in which it holds; if empty, the whole cluster.
    namespaces: BTreeSet<String>,
}

impl Policy {
    fn scope(&self) -> AccessScope {
        if self.namespaces.is_empty() {
            return AccessScope::builder().r#type(AccessScopeType::Cluster).build();
        }
        let namespaces = self.namespaces.iter().cloned().collect();
        AccessScope::builder().r#type(AccessScopeType::Namespace).set_namespaces(Some(namespaces)).build()
    }
}

#[async_trait]
impl Resource<Api> for Entry {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["groups", "policies"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let (cluster, principal) = super::parts(id);
        let call = api.eks.describe_access_entry().cluster_name(cluster).principal_arn(principal).send();
        let answer = api.find(SERVICE, id, call).await?;
        match answer.and_then(|answer| answer.access_entry) {
            Some(entry) => seen(api, id, entry).await,
            None => Ok(None),
        }
    }

    /// One call for each of our clusters, and one for each of its entries; two for those that pass the filter.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let mut all = Vec::new();
        for cluster in super::cluster_names(api, filter).await? {
            let pages = api.eks.list_access_entries().cluster_name(&cluster).into_paginator().items().send();
            let found: Option<Vec<String>> = api.find(SERVICE, &cluster, pages.try_collect()).await?;
            for principal in found.unwrap_or_default() {
                let id = super::id(&cluster, &principal);
                let call = api.eks.describe_access_entry().cluster_name(&cluster).principal_arn(&principal).send();
                let answer = api.find(SERVICE, &id, call).await?;
                let entry = answer.and_then(|answer| answer.access_entry);
                if let Some(entry) = entry.filter(|entry| filter.matches(&super::tags(entry.tags.clone()))) {
                    all.extend(seen(api, &id, entry).await?);
                }
            }
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(super::id(&spec.cluster, &spec.principal))
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .eks
            .create_access_entry()
            .cluster_name(&spec.cluster)
            .principal_arn(&spec.principal)
            .set_kubernetes_groups(Some(spec.groups.iter().cloned().collect()))
            .client_request_token(make.token)
            .set_tags(Some(make.tags.clone().into_iter().collect()))
            .send();
        let id = super::id(&spec.cluster, &spec.principal);
        match api.call(SERVICE, "create", format!("access entry {id}"), call).await {
            Ok(_) => Ok(id),
            // Whom the role trusts is of no concern here.
            Err(error) => Err(super::about_role(api, error, &spec.principal, None).await),
        }
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let id = seen.id.as_str();
        let (cluster, principal) = super::parts(id);
        if field == "groups" {
            let groups = spec.groups.iter().cloned().collect();
            let call = api.eks.update_access_entry().cluster_name(cluster).principal_arn(principal);
            let call = call.set_kubernetes_groups(Some(groups)).send();
            return api.call(SERVICE, "change", id, call).await.map(drop);
        }
        let is_wanted = |policy: &&Policy| spec.policies.iter().any(|wanted| wanted.arn == policy.arn);
        if let Some(gone) = seen.spec.policies.iter().find(|policy| !is_wanted(policy)) {
            let call = api.eks.disassociate_access_policy().cluster_name(cluster).principal_arn(principal);
            return api.call(SERVICE, "take a policy from", id, call.policy_arn(&gone.arn).send()).await.map(drop);
        }
        // The same policy with another scope replaces the old one.
        let Some(new) = spec.policies.difference(&seen.spec.policies).next() else { return Ok(()) };
        let call = api.eks.associate_access_policy().cluster_name(cluster).principal_arn(principal);
        let call = call.policy_arn(&new.arn).access_scope(new.scope()).send();
        api.call(SERVICE, "give a policy to", id, call).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default();
        super::tag(api, arn, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let (cluster, principal) = super::parts(&seen.id);
        let call = api.eks.delete_access_entry().cluster_name(cluster).principal_arn(principal).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

async fn seen(api: &Api, id: &str, entry: Answer) -> Result<Option<ObservedObject<Spec>>> {
    let (cluster, principal) = super::parts(id);
    let call = api.eks.list_associated_access_policies().cluster_name(cluster).principal_arn(principal);
    let pages = call.into_paginator().items().send();
    let found: Option<Vec<_>> = api.find(SERVICE, id, pages.try_collect()).await?;
    let Some(policies) = found else { return Ok(None) };
    let policy = |policy: aws_sdk_eks::types::AssociatedAccessPolicy| {
        let namespaces = policy.access_scope.and_then(|scope| scope.namespaces).unwrap_or_default();
        Some(Policy { arn: policy.policy_arn?, namespaces: namespaces.into_iter().collect() })
    };
    let spec = Spec {
        cluster: cluster.to_owned(),
        principal: principal.to_owned(),
        groups: entry.kubernetes_groups.unwrap_or_default().into_iter().collect(),
        policies: policies.into_iter().filter_map(policy).collect(),
        tags: Tags::new(),
    };
    let seen = ObservedObject::new(id, spec, super::tags(entry.tags));
    Ok(Some(seen.output("arn", entry.access_entry_arn).output("username", entry.username)))
}
