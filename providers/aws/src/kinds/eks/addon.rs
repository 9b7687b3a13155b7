//! Add-ons of EKS: <https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateAddon.html>.

use std::collections::BTreeSet;

use async_trait::async_trait;
use aws_sdk_eks::types::{Addon as Answer, AddonStatus, AddonVersionInfo, ResolveConflicts};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Identity, Permission, Result};

use super::{CLUSTER, CLUSTERS, Part, SERVICE};
use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State};
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        deadline: MINUTE.saturating_mul(30),
        typical: Some(MINUTE),
        permissions: &[
            only(Permission::on(CREATE, "eks:CreateAddon"), CLUSTER),
            only(Permission::on(DELETE, "eks:DeleteAddon"), CLUSTER),
            only(Permission::read("eks:DescribeAddon"), CLUSTERS),
            Permission::read("eks:DescribeAddonVersions"),
            only(Permission::read("eks:DescribeCluster"), CLUSTERS),
            only(Permission::read("eks:DescribeUpdate"), CLUSTERS),
            only(Permission::read("eks:ListAddons"), CLUSTERS),
            Permission::read("eks:ListClusters"),
            only(Permission::on(PUT, "eks:TagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UntagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UpdateAddon"), CLUSTER),
        ],
        terraform: &[("aws_eks_addon", "id")],
        ..kind("aws.eks-addon", "a component of a cluster that AWS maintains", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Addon>::kind(),
    refused: &[],
}];

/// An add-on. Outputs: `arn`, `version`.
///
/// A change of its objects by another client is overwritten: the configuration is in the spec.
struct Addon;

/// The attributes of an add-on.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The name of its cluster.
    cluster: String,
    /// Its name: `vpc-cni`.
    name: String,
    /// Its version: `v1.20.0-eksbuild.1`. `None` is the default of the cluster's version when it is created, and is raised when the
    /// cluster gets a version with which it does not work.
    version: Option<String>,
    /// The versions of Kubernetes with which it works; one of a spec is that of its cluster.
    kubernetes: BTreeSet<String>,
    /// Its configuration, by the schema of `aws eks describe-addon-configuration`.
    configuration: Value,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Addon {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["kubernetes", "version", "configuration"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let (cluster, name) = super::parts(id);
        let call = api.eks.describe_addon().cluster_name(cluster).addon_name(name).send();
        let answer = api.find(SERVICE, id, call).await?;
        match answer.and_then(|answer| answer.addon) {
            Some(addon) => seen(api, addon).await.map(Some),
            None => Ok(None),
        }
    }

    /// One call for each of our clusters, and two for each of its add-ons.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let mut all = Vec::new();
        for cluster in super::cluster_names(api, filter).await? {
            let pages = api.eks.list_addons().cluster_name(&cluster).into_paginator().items().send();
            let found: Option<Vec<String>> = api.find(SERVICE, &cluster, pages.try_collect()).await?;
            for name in found.unwrap_or_default() {
                let seen = Self::read(api, &super::id(&cluster, &name)).await?;
                all.extend(seen.filter(|seen| filter.matches(&seen.tags)));
            }
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(super::id(&spec.cluster, &spec.name))
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .eks
            .create_addon()
            .cluster_name(&spec.cluster)
            .addon_name(&spec.name)
            .set_addon_version(spec.version.clone())
            .set_configuration_values(configured(&spec.configuration))
            .resolve_conflicts(ResolveConflicts::Overwrite)
            .client_request_token(make.token)
            .set_tags(Some(make.tags.clone().into_iter().collect()))
            .send();
        let id = super::id(&spec.cluster, &spec.name);
        api.call(SERVICE, "create", format!("add-on {id}"), call).await?;
        Ok(id)
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        Self::start(api, seen, spec, field).await.map(drop)
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<Option<String>> {
        let (cluster, name) = super::parts(&seen.id);
        let call = api.eks.update_addon().cluster_name(cluster).addon_name(name);
        let call = call.resolve_conflicts(ResolveConflicts::Overwrite);
        let call = match (field, &spec.version) {
            // An empty object removes what was configured.
            ("configuration", _) => {
                call.configuration_values(configured(&spec.configuration).unwrap_or_else(|| "{}".to_owned()))
            }
            (_, Some(version)) => call.addon_version(version),
            (_, None) => call.addon_version(default_version(api, &seen.id, name, &spec.kubernetes).await?),
        };
        Ok(super::started(api.call(SERVICE, "update", &seen.id, call.send()).await?.update))
    }

    async fn change(api: &Api, id: &str, change: &str) -> Result<State> {
        let (cluster, name) = super::parts(id);
        super::change(api, cluster, Some(Part::Addon(name)), change).await
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match (field, wanted, seen) {
            ("version", wanted, _) => wanted.is_null(),
            ("kubernetes", Value::Array(wanted), Value::Array(seen)) => {
                wanted.iter().all(|version| seen.contains(version))
            }
            _ => false,
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default();
        super::tag(api, arn, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let (cluster, name) = super::parts(&seen.id);
        let call = api.eks.delete_addon().cluster_name(cluster).addon_name(name).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

fn configured(configuration: &Value) -> Option<String> {
    (!configuration.is_null()).then(|| configuration.to_string())
}

async fn versions(api: &Api, name: &str) -> Result<Vec<AddonVersionInfo>> {
    let pages = api.eks.describe_addon_versions().addon_name(name).into_paginator().items().send();
    let found: Vec<_> = api.call(SERVICE, "list the versions of", name, pages.try_collect()).await?;
    Ok(found.into_iter().flat_map(|addon| addon.addon_versions.unwrap_or_default()).collect())
}

/// The version that EKS takes by default for the highest of these versions of Kubernetes.
async fn default_version(api: &Api, id: &str, name: &str, kubernetes: &BTreeSet<String>) -> Result<String> {
    let versions = versions(api, name).await?;
    let is_default = |version: &&AddonVersionInfo| {
        version.compatibilities().iter().any(|with| {
            with.default_version && with.cluster_version().is_some_and(|version| kubernetes.contains(version))
        })
    };
    let version = versions.iter().find(is_default).and_then(|version| version.addon_version.clone());
    version.ok_or_else(|| {
        let error = Error::new(ErrorKind::Invalid, "update", id);
        error.because(format!("EKS has no version of `{name}` for Kubernetes {kubernetes:?}"))
    })
}

fn state(addon: &Answer) -> State {
    let issues = addon
        .health
        .iter()
        .flat_map(|health| health.issues())
        .map(|issue| (issue.code().map(|code| code.as_str().to_owned()), issue.message().map(str::to_owned)));
    let (code, why) = super::issues(issues).unwrap_or_else(|| (String::new(), "AWS gives no reason".to_owned()));
    match &addon.status {
        Some(AddonStatus::Active) => State::Ready,
        Some(AddonStatus::CreateFailed) => State::Failed { code, why },
        Some(AddonStatus::Degraded | AddonStatus::UpdateFailed) => State::Degraded(why),
        Some(AddonStatus::DeleteFailed) => State::Degraded(format!("its deletion failed: {why}")),
        Some(AddonStatus::Deleting) => State::Deleting,
        status => State::Pending(status.as_ref().map_or("unknown", AddonStatus::as_str).to_owned()),
    }
}

async fn seen(api: &Api, addon: Answer) -> Result<ObservedObject<Spec>> {
    let state = state(&addon);
    let (cluster, name) = (addon.cluster_name.unwrap_or_default(), addon.addon_name.unwrap_or_default());
    let versions = versions(api, &name).await?;
    let works_with = versions.into_iter().filter(|version| version.addon_version == addon.addon_version);
    let works_with = works_with.flat_map(|version| version.compatibilities.unwrap_or_default());
    let configuration = addon.configuration_values.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let spec = Spec {
        cluster: cluster.clone(),
        name: name.clone(),
        version: addon.addon_version.clone(),
        kubernetes: works_with.filter_map(|with| with.cluster_version).collect(),
        configuration: configuration.filter(|value| *value != serde_json::json!({})).unwrap_or_default(),
        tags: Tags::new(),
    };
    let seen = ObservedObject::new(super::id(&cluster, &name), spec, super::tags(addon.tags));
    Ok(seen.output("arn", addon.addon_arn).output("version", addon.addon_version).state(state))
}
