//! Managed node groups: <https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateNodegroup.html>.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use aws_sdk_ec2::types::Image;
use aws_sdk_eks::types::{
    AmiTypes, CapacityTypes, LaunchTemplateSpecification, NodeRepairConfig, Nodegroup as Answer,
    NodegroupScalingConfig, NodegroupStatus, NodegroupUpdateConfig, TaintEffect, UpdateLabelsPayload,
    UpdateTaintsPayload,
};
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{ErrorKind, Identity, Permission, Result};

use super::{CLUSTER, CLUSTERS, Part, SERVICE};
use crate::api::Api;
use crate::kinds::iam::{ROLES, TO_EKS, passes};
use crate::kinds::{CREATE, DELETE, PUT, ec2, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State, timestamp};
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    // Costs what its machines cost, by their type, `capacity`, and number: from `scaling.min` to `scaling.max`.
    kind: textnlp_provider::Kind {
        // AWS gives up on missing capacity after about half an hour, and an alternative may follow.
        deadline: MINUTE.saturating_mul(120),
        typical: Some(MINUTE.saturating_mul(3)),
        permissions: &[
            Permission::read("ec2:DescribeImages"),
            Permission::read("ec2:DescribeLaunchTemplateVersions"),
            // Of preflight.
            Permission::read("ec2:GetEbsDefaultKmsKeyId"),
            Permission::on(PUT, "ec2:RunInstances"),
            only(Permission::on(CREATE, "eks:CreateNodegroup"), CLUSTER),
            only(Permission::on(DELETE, "eks:DeleteNodegroup"), CLUSTER),
            only(Permission::read("eks:DescribeCluster"), CLUSTERS),
            only(Permission::read("eks:DescribeNodegroup"), CLUSTERS),
            only(Permission::read("eks:DescribeUpdate"), CLUSTERS),
            Permission::read("eks:ListClusters"),
            only(Permission::read("eks:ListNodegroups"), CLUSTERS),
            only(Permission::on(PUT, "eks:TagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UntagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UpdateNodegroupConfig"), CLUSTER),
            only(Permission::on(PUT, "eks:UpdateNodegroupVersion"), CLUSTER),
            only(
                Permission::on(CREATE, "iam:CreateServiceLinkedRole"),
                "arn:{$partition}:iam::{$account}:role/aws-service-role/eks-nodegroup.amazonaws.com/*",
            ),
            only(Permission::on(PUT, "iam:GetRole"), ROLES),
            passes(PUT, TO_EKS),
        ],
        terraform: &[("aws_eks_node_group", "id")],
        pricing: textnlp_provider::Pricing::BySpec,
        ..kind("aws.eks-node-group", "machines of a cluster", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<NodeGroup>::kind(),
    refused: &[],
}];

/// A node group. Outputs: `name`, `arn`, `autoscaling_group`.
struct NodeGroup;

/// The attributes of a node group.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The name of its cluster.
    cluster: String,
    /// Its name, at most 63 bytes.
    name: String,
    /// The minor version of Kubernetes on its nodes; `None` is the cluster's when it is created, and then what it is.
    version: Option<String>,
    /// The release of the image of its nodes.
    #[serde(default)]
    release: Release,
    /// The ARN of the role of its nodes.
    role: String,
    /// Subnets of its nodes.
    subnets: BTreeSet<String>,
    /// Instance types: on demand the first one of them that AWS has, with `SPOT` the one with the most capacity.
    instance_types: Vec<String>,
    /// The image of its nodes: `AL2023_x86_64_NVIDIA`.
    ami_type: String,
    /// How its machines are bought: `SPOT`, `ON_DEMAND`. Of several the first one with capacity when it is created.
    capacity: Vec<String>,
    /// The number of its nodes.
    scaling: Scaling,
    /// Labels of its nodes.
    labels: BTreeMap<String, String>,
    /// Taints of its nodes.
    taints: BTreeSet<Taint>,
    /// The launch template of its machines: disks, metadata service, tags.
    launch_template: Option<LaunchTemplate>,
    /// How many nodes are replaced at the same time in an update.
    max_unavailable: i32,
    /// Whether EKS replaces nodes that are not healthy.
    repair: bool,
    #[serde(default)]
    tags: Tags,
}

/// The release of an image: a wanted one has a bound, and an observed one what the bound is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Release {
    /// That of the nodes: `1.34.1-20260901`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// The day of the newest image for the nodes' version of Kubernetes: `20261127`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newest: Option<String>,
    /// How many days the image of the nodes may be older than the newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_days_behind: Option<u32>,
}

/// The number of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Scaling {
    min: i32,
    max: i32,
    /// The number at first. Afterwards it is the autoscaler's.
    desired: i32,
}

/// A taint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Taint {
    key: String,
    value: Option<String>,
    /// `NO_SCHEDULE`, `PREFER_NO_SCHEDULE` or `NO_EXECUTE`.
    effect: String,
}

impl Taint {
    fn given(&self) -> aws_sdk_eks::types::Taint {
        let effect = TaintEffect::from(self.effect.as_str());
        aws_sdk_eks::types::Taint::builder().key(&self.key).set_value(self.value.clone()).effect(effect).build()
    }
}

/// A version of a launch template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LaunchTemplate {
    id: String,
    version: String,
}

impl LaunchTemplate {
    fn given(&self) -> LaunchTemplateSpecification {
        LaunchTemplateSpecification::builder().id(&self.id).version(&self.version).build()
    }
}

#[async_trait]
impl Resource<Api> for NodeGroup {
    type Spec = Spec;
    // The release is the last one: an update of the launch template or of the version takes the newest image too.
    const IN_PLACE: &'static [&'static str] =
        &["scaling", "labels", "taints", "repair", "max_unavailable", "launch_template", "version", "release"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let (cluster, name) = super::parts(id);
        let call = api.eks.describe_nodegroup().cluster_name(cluster).nodegroup_name(name).send();
        let answer = api.find(SERVICE, id, call).await?;
        match answer.and_then(|answer| answer.nodegroup) {
            Some(group) => seen(api, group).await.map(Some),
            None => Ok(None),
        }
    }

    /// One call for each of our clusters, and two for each of its node groups.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let mut all = Vec::new();
        for cluster in super::cluster_names(api, filter).await? {
            let pages = api.eks.list_nodegroups().cluster_name(&cluster).into_paginator().items().send();
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
        let Scaling { min, max, desired } = spec.scaling;
        let scaling = NodegroupScalingConfig::builder().min_size(min).max_size(max).desired_size(desired).build();
        let capacity = spec.capacity.get(make.alternative).map(|name| CapacityTypes::from(name.as_str()));
        let call = api
            .eks
            .create_nodegroup()
            .cluster_name(&spec.cluster)
            .nodegroup_name(&spec.name)
            .set_version(spec.version.clone())
            .node_role(&spec.role)
            .set_subnets(Some(spec.subnets.iter().cloned().collect()))
            .set_instance_types(Some(spec.instance_types.clone()))
            .ami_type(AmiTypes::from(spec.ami_type.as_str()))
            .set_capacity_type(capacity)
            .scaling_config(scaling)
            .set_labels(Some(spec.labels.clone().into_iter().collect()))
            .set_taints(Some(spec.taints.iter().map(Taint::given).collect()))
            .set_launch_template(spec.launch_template.as_ref().map(LaunchTemplate::given))
            .update_config(NodegroupUpdateConfig::builder().max_unavailable(spec.max_unavailable).build())
            .node_repair_config(NodeRepairConfig::builder().enabled(spec.repair).build())
            // The token of a request with other parameters is another one.
            .client_request_token(format!("{}-{}", make.token, make.alternative))
            .set_tags(Some(make.tags.clone().into_iter().collect()))
            .send();
        let id = super::id(&spec.cluster, &spec.name);
        match api.call(SERVICE, "create", format!("node group {id}"), call).await {
            Ok(_) => Ok(id),
            Err(error) => Err(super::about_role(api, error, &spec.role, Some("ec2.amazonaws.com")).await),
        }
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        Self::start(api, seen, spec, field).await.map(drop)
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<Option<String>> {
        let id = seen.id.as_str();
        let (cluster, name) = super::parts(id);
        if matches!(field, "version" | "launch_template" | "release") {
            // Without a release EKS takes its newest one. Never by force: EKS then respects the disruption budgets of pods.
            let template = spec.launch_template.as_ref().map(LaunchTemplate::given);
            let call = api.eks.update_nodegroup_version().cluster_name(cluster).nodegroup_name(name);
            let call = call.set_version(spec.version.clone()).set_launch_template(template).send();
            return Ok(super::started(api.call(SERVICE, "update", id, call).await?.update));
        }
        let call = api.eks.update_nodegroup_config().cluster_name(cluster).nodegroup_name(name);
        let call = match field {
            "scaling" => {
                let Scaling { min, max, .. } = spec.scaling;
                let desired = seen.spec.scaling.desired.max(min).min(max);
                call.scaling_config(
                    NodegroupScalingConfig::builder().min_size(min).max_size(max).desired_size(desired).build(),
                )
            }
            "labels" => {
                let gone = seen.spec.labels.keys().filter(|key| !spec.labels.contains_key(*key)).cloned().collect();
                let new = spec.labels.iter().filter(|(key, value)| seen.spec.labels.get(*key) != Some(value));
                let new = new.map(|(key, value)| (key.clone(), value.clone())).collect();
                let labels = UpdateLabelsPayload::builder().set_add_or_update_labels(Some(new));
                call.labels(labels.set_remove_labels(Some(gone)).build())
            }
            "taints" => {
                let gone = seen.spec.taints.difference(&spec.taints).map(Taint::given).collect();
                let new = spec.taints.difference(&seen.spec.taints).map(Taint::given).collect();
                let taints = UpdateTaintsPayload::builder().set_add_or_update_taints(Some(new));
                call.taints(taints.set_remove_taints(Some(gone)).build())
            }
            "repair" => call.node_repair_config(NodeRepairConfig::builder().enabled(spec.repair).build()),
            _ => call.update_config(NodegroupUpdateConfig::builder().max_unavailable(spec.max_unavailable).build()),
        };
        Ok(super::started(api.call(SERVICE, "change", id, call.send()).await?.update))
    }

    async fn change(api: &Api, id: &str, change: &str) -> Result<State> {
        let (cluster, name) = super::parts(id);
        super::change(api, cluster, Some(Part::NodeGroup(name)), change).await
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "version" => wanted.is_null(),
            "release" => wanted["max_days_behind"].as_i64().is_none_or(|most| days_behind(seen) <= most),
            "scaling" => ["min", "max"].iter().all(|bound| wanted[bound] == seen[bound]),
            "capacity" => seen[0].is_string() && wanted.as_array().is_some_and(|all| all.contains(&seen[0])),
            _ => false,
        }
    }

    /// AWS chooses among the instance types itself: another list of them is another alternative.
    fn alternatives(wanted: &textnlp_provider::Spec) -> Vec<String> {
        let list = |field: &str| -> Vec<&str> {
            wanted.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let machines = list("instance_types").join(",");
        list("capacity").into_iter().map(|market| format!("{market} {machines}")).collect()
    }

    fn tried(wanted: &Spec, seen: &Spec) -> Vec<usize> {
        wanted.capacity.iter().position(|name| seen.capacity.first() == Some(name)).into_iter().collect()
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default();
        super::tag(api, arn, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let (cluster, name) = super::parts(&seen.id);
        let call = api.eks.delete_nodegroup().cluster_name(cluster).nodegroup_name(name).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

fn state(group: &Answer) -> State {
    let issues = group
        .health
        .iter()
        .flat_map(|health| health.issues())
        .map(|issue| (issue.code().map(|code| code.as_str().to_owned()), issue.message().map(str::to_owned)));
    let issues = super::issues(issues);
    let unknown = || (String::new(), "AWS gives no reason".to_owned());
    match (&group.status, issues) {
        (Some(NodegroupStatus::Active), None) => State::Ready,
        (Some(NodegroupStatus::CreateFailed), issues) => {
            let (code, why) = issues.unwrap_or_else(unknown);
            State::Failed { code, why }
        }
        (Some(NodegroupStatus::Active | NodegroupStatus::Degraded), issues) => {
            State::Degraded(issues.unwrap_or_else(unknown).1)
        }
        (Some(NodegroupStatus::DeleteFailed), issues) => {
            State::Degraded(format!("its deletion failed: {}", issues.unwrap_or_else(unknown).1))
        }
        (Some(NodegroupStatus::Deleting), _) => State::Deleting,
        (status, _) => State::Pending(status.as_ref().map_or("unknown", NodegroupStatus::as_str).to_owned()),
    }
}

/// How many days the image of nodes is older than the newest one; 0 if one of their days is unknown.
fn days_behind(release: &Value) -> i64 {
    let of = |member: &str| day(release[member].as_str()?.rsplit('-').next()?);
    match (of("version"), of("newest")) {
        (Some(used), Some(newest)) => newest.duration_since(used).as_hours() / 24,
        _ => 0,
    }
}

/// A day as releases of images have it: `20260901`.
fn day(text: &str) -> Option<Date> {
    Date::strptime("%Y%m%d", text).ok()
}

/// The day of EKS's newest image for nodes of a version of Kubernetes; `None` for images that EKS does not make.
///
/// EKS does not tell whether a node group can be updated. The names of its images end with the day of their release:
/// <https://github.com/awslabs/amazon-eks-ami/blob/main/CHANGELOG.md>.
async fn newest_image(api: &Api, ami_type: &str, version: &str) -> Result<Option<String>> {
    let variant = match ami_type {
        "AL2023_x86_64_STANDARD" => "x86_64-standard",
        "AL2023_x86_64_NVIDIA" => "x86_64-nvidia",
        "AL2023_ARM_64_STANDARD" => "arm64-standard",
        "AL2023_ARM_64_NVIDIA" => "arm64-nvidia",
        _ => return Ok(None),
    };
    let name = format!("amazon-eks-node-al2023-{variant}-{version}-v*");
    // Anyone can give an image this name: only those of Amazon count.
    let call = api.ec2.describe_images().owners("amazon").filters(ec2::named("name", [name.as_str()]));
    let pages = call.into_paginator().items().send();
    let images: Vec<Image> = match api.call(ec2::SERVICE, "list the images of", name, pages.try_collect()).await {
        Ok(images) => images,
        // `preflight` names the missing permission. Without it images are not renewed, and everything else works.
        Err(error) if error.kind == ErrorKind::Denied => return Ok(None),
        Err(error) => return Err(error),
    };
    let days = images.iter().filter_map(|image| Some(image.name()?.rsplit_once("-v")?.1));
    Ok(days.filter(|text| day(text).is_some()).max().map(str::to_owned))
}

async fn seen(api: &Api, group: Answer) -> Result<ObservedObject<Spec>> {
    let state = state(&group);
    // A group that is changing is read again, and compared only then.
    let newest = match (&state, &group.ami_type, &group.version) {
        (State::Ready | State::Degraded(_), Some(image), Some(version)) => {
            newest_image(api, image.as_str(), version).await?
        }
        _ => None,
    };
    let (cluster, name) = (group.cluster_name.unwrap_or_default(), group.nodegroup_name.unwrap_or_default());
    let size = |of: Option<i32>| of.unwrap_or_default();
    let scaling = group.scaling_config.map(|config| Scaling {
        min: size(config.min_size),
        max: size(config.max_size),
        desired: size(config.desired_size),
    });
    let taint = |taint: aws_sdk_eks::types::Taint| Taint {
        key: taint.key.unwrap_or_default(),
        value: taint.value.filter(|value| !value.is_empty()),
        effect: taint.effect.map(|effect| effect.as_str().to_owned()).unwrap_or_default(),
    };
    let template = |template: LaunchTemplateSpecification| LaunchTemplate {
        id: template.id.unwrap_or_default(),
        version: template.version.unwrap_or_default(),
    };
    let groups = group.resources.and_then(|resources| resources.auto_scaling_groups).unwrap_or_default();
    let spec = Spec {
        cluster: cluster.clone(),
        name: name.clone(),
        version: group.version,
        release: Release { version: group.release_version, newest, max_days_behind: None },
        role: group.node_role.unwrap_or_default(),
        subnets: group.subnets.unwrap_or_default().into_iter().collect(),
        instance_types: group.instance_types.unwrap_or_default(),
        ami_type: group.ami_type.map(|name| name.as_str().to_owned()).unwrap_or_default(),
        capacity: group.capacity_type.into_iter().map(|name| name.as_str().to_owned()).collect(),
        scaling: scaling.unwrap_or(Scaling { min: 0, max: 0, desired: 0 }),
        labels: group.labels.unwrap_or_default().into_iter().collect(),
        taints: group.taints.unwrap_or_default().into_iter().map(taint).collect(),
        launch_template: group.launch_template.map(template),
        max_unavailable: group.update_config.and_then(|config| config.max_unavailable).unwrap_or_default(),
        repair: group.node_repair_config.and_then(|config| config.enabled).unwrap_or_default(),
        tags: Tags::new(),
    };
    let seen = ObservedObject::new(super::id(&cluster, &name), spec, super::tags(group.tags))
        .output("name", Some(name))
        .output("arn", group.nodegroup_arn)
        .output("autoscaling_group", groups.into_iter().find_map(|group| group.name))
        .created(timestamp(group.created_at))
        .state(state);
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_is_replaced_once_it_is_too_old() {
        let fits = <NodeGroup as Resource<Api>>::fits;
        let wanted = json!({ "max_days_behind": 30 });
        for (version, newest, is_kept) in [
            ("1.34.1-20260901", "20260901", true),
            ("1.34.1-20260901", "20261001", true),
            ("1.34.1-20260901", "20261002", false),
            ("1.33.9-20251231", "20260201", false),
            // The newest image is not that of EKS yet, or was withdrawn.
            ("1.34.1-20261001", "20260901", true),
            // An image of the operator, and a name that EKS does not have yet.
            ("ami-0123456789abcdef0", "20261002", true),
            ("1.34.1-20260901", "2026100", true),
        ] {
            let seen = json!({ "version": version, "newest": newest });
            assert_eq!(fits("release", &wanted, &seen), is_kept, "{version} {newest}");
            assert!(fits("release", &json!({}), &seen), "a spec without a bound: {version} {newest}");
        }
        assert!(fits("release", &wanted, &json!({})));
    }
}
