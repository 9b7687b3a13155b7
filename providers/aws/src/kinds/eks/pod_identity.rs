//! Pod identity associations, which give pods a role:
//! <https://docs.aws.amazon.com/eks/latest/APIReference/API_CreatePodIdentityAssociation.html>.

use async_trait::async_trait;
use aws_sdk_eks::types::PodIdentityAssociation as Answer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Identity, Permission, Result};

use super::{CLUSTER, CLUSTERS, SERVICE};
use crate::api::Api;
use crate::kinds::iam::{ROLES, TO_EKS, passes};
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            only(Permission::on(CREATE, "eks:CreatePodIdentityAssociation"), CLUSTER),
            only(Permission::on(DELETE, "eks:DeletePodIdentityAssociation"), CLUSTER),
            only(Permission::read("eks:DescribeCluster"), CLUSTERS),
            only(Permission::read("eks:DescribePodIdentityAssociation"), CLUSTERS),
            Permission::read("eks:ListClusters"),
            only(Permission::read("eks:ListPodIdentityAssociations"), CLUSTERS),
            only(Permission::on(PUT, "eks:TagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UntagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UpdatePodIdentityAssociation"), CLUSTER),
            only(Permission::on(PUT, "iam:GetRole"), ROLES),
            passes(PUT, TO_EKS),
        ],
        ..kind("aws.eks-pod-identity-association", "the role of pods", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Association>::kind(),
    refused: &[],
}];

/// A pod identity association. Outputs: `arn`, `association_id`.
///
/// Its id is `CLUSTER:NAMESPACE/SERVICE_ACCOUNT`: a cluster has at most one for a service account.
struct Association;

/// The attributes of an association.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The name of its cluster.
    cluster: String,
    /// The namespace of the pods.
    namespace: String,
    /// Their service account.
    service_account: String,
    /// The ARN of their role.
    role: String,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Association {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["role"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let (cluster, pods) = super::parts(id);
        let Some((namespace, account)) = pods.split_once('/') else { return Ok(None) };
        let call = api.eks.list_pod_identity_associations().cluster_name(cluster);
        let pages = call.namespace(namespace).service_account(account).into_paginator().items().send();
        let found: Option<Vec<_>> = api.find(SERVICE, id, pages.try_collect()).await?;
        match found.unwrap_or_default().into_iter().find_map(|summary| summary.association_id) {
            Some(association) => describe(api, cluster, &association).await,
            None => Ok(None),
        }
    }

    /// One call for each of our clusters, and one for each of its associations.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let mut all = Vec::new();
        for cluster in super::cluster_names(api, filter).await? {
            let call = api.eks.list_pod_identity_associations().cluster_name(&cluster);
            let found: Option<Vec<_>> =
                api.find(SERVICE, &cluster, call.into_paginator().items().send().try_collect()).await?;
            for association in found.unwrap_or_default().into_iter().filter_map(|summary| summary.association_id) {
                let seen = describe(api, &cluster, &association).await?;
                all.extend(seen.filter(|seen| filter.matches(&seen.tags)));
            }
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(super::id(&spec.cluster, &format!("{}/{}", spec.namespace, spec.service_account)))
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .eks
            .create_pod_identity_association()
            .cluster_name(&spec.cluster)
            .namespace(&spec.namespace)
            .service_account(&spec.service_account)
            .role_arn(&spec.role)
            .client_request_token(make.token)
            .set_tags(Some(make.tags.clone().into_iter().collect()))
            .send();
        let id = super::id(&spec.cluster, &format!("{}/{}", spec.namespace, spec.service_account));
        match api.call(SERVICE, "create", format!("pod identity {id}"), call).await {
            Ok(_) => Ok(id),
            Err(error) => Err(super::about_role(api, error, &spec.role, Some(PODS)).await),
        }
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        let (cluster, _) = super::parts(&seen.id);
        let association = seen.outputs.get("association_id").and_then(Value::as_str).unwrap_or_default();
        let call = api.eks.update_pod_identity_association().cluster_name(cluster).association_id(association);
        match api.call(SERVICE, "change", &seen.id, call.role_arn(&spec.role).send()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(super::about_role(api, error, &spec.role, Some(PODS)).await),
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default();
        super::tag(api, arn, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let (cluster, _) = super::parts(&seen.id);
        let association = seen.outputs.get("association_id").and_then(Value::as_str).unwrap_or_default();
        let call = api.eks.delete_pod_identity_association().cluster_name(cluster).association_id(association).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// The service that takes the role of pods.
const PODS: &str = "pods.eks.amazonaws.com";

async fn describe(api: &Api, cluster: &str, association: &str) -> Result<Option<ObservedObject<Spec>>> {
    let call = api.eks.describe_pod_identity_association().cluster_name(cluster).association_id(association).send();
    Ok(api.find(SERVICE, association, call).await?.and_then(|answer| answer.association).map(seen))
}

fn seen(association: Answer) -> ObservedObject<Spec> {
    let spec = Spec {
        cluster: association.cluster_name.unwrap_or_default(),
        namespace: association.namespace.unwrap_or_default(),
        service_account: association.service_account.unwrap_or_default(),
        role: association.role_arn.unwrap_or_default(),
        tags: Tags::new(),
    };
    let id = super::id(&spec.cluster, &format!("{}/{}", spec.namespace, spec.service_account));
    ObservedObject::new(id, spec, super::tags(association.tags))
        .output("arn", association.association_arn)
        .output("association_id", association.association_id)
}
