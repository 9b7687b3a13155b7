//! Cluster Autoscaler: EKS adds no nodes to its groups itself (<https://docs.aws.amazon.com/eks/latest/userguide/autoscaling.html>).
//! Its objects are in the cluster; its role is one of AWS.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::cluster::NodeAutoscaler;
use textnlp_provider::component::{Cluster, ComponentSpec};
use textnlp_provider::{Component, ResourceId, Site};
use textnlp_token::partition;

use super::Lowering;
use super::cluster::PODS;
use crate::names;

/// The association of its service account with its role.
const IDENTITY: &str = "autoscaler-identity";
/// The images, newest first: version and digest (<https://github.com/kubernetes/k8s.io/pull/9760>).
const IMAGES: &[(&str, &str)] = &[
    ("v1.35.2", "aac369dc283927a623deb1af54696efcc722ae79255aa07788422e495bab887d"),
    ("v1.34.5", "5c3a56440ffc76eac79e7d7e840153c1fbe7b6e02d415e76a45ba2e0ef99a266"),
    ("v1.33.6", "7b44e0f075b2c8f9952e339b6c396cd4d1c3831c24c0fe092a3e708c45e6ec51"),
];
/// The minor version of Kubernetes where EKS chooses it: no newer than its default.
const DEFAULT_MINOR: u32 = 34;

/// The autoscaler of a cluster that is created, where it may add nodes. Pure.
pub(crate) fn node_autoscaler(component: &Component, site: &Site) -> Option<NodeAutoscaler> {
    let ComponentSpec::Cluster(cluster) = &component.part else { return None };
    if component.existing.is_some() || !grows(cluster, site) {
        return None;
    }
    let name = names::cluster(site);
    Some(NodeAutoscaler {
        image: image(cluster.version.as_deref()),
        provider: "aws".to_owned(),
        discovery: format!("asg:tag=k8s.io/cluster-autoscaler/enabled,k8s.io/cluster-autoscaler/{name}"),
        // Pods cannot ask the metadata service of their node for it.
        variables: BTreeMap::from([("AWS_REGION".to_owned(), site.region.clone())]),
        part: IDENTITY.to_owned(),
    })
}

/// Whether a pool of the cluster may have more nodes than it is created with.
fn grows(cluster: &Cluster, site: &Site) -> bool {
    let system = site.cluster.as_deref().and_then(|site| Some(site.max_nodes? > site.min_nodes));
    system.unwrap_or_default() || cluster.gpu.as_ref().is_some_and(|pool| pool.most() > pool.count)
}

/// The newest image that is made for this minor version of Kubernetes or an older one: newer ones may use APIs that it lacks.
fn image(kubernetes: Option<&str>) -> String {
    let minor = |version: &str| version.split('.').nth(1)?.parse::<u32>().ok();
    let most = kubernetes.and_then(minor).unwrap_or(DEFAULT_MINOR);
    let found = IMAGES.iter().find(|(version, _)| minor(version).is_some_and(|of| of <= most));
    let (version, digest) = found.unwrap_or(&IMAGES[IMAGES.len() - 1]);
    format!("registry.k8s.io/autoscaling/cluster-autoscaler:{version}@sha256:{digest}")
}

impl Lowering<'_> {
    /// The role of the autoscaler, where the cluster has one.
    pub(super) fn autoscaler(&mut self, cluster: &Cluster, main: &ResourceId) {
        let Some(site) = self.site.cluster.as_deref().filter(|_| grows(cluster, self.site)) else { return };
        let inline = json!({ "autoscaler": policy(self.site) });
        let boundary = cluster.permission_boundary.as_deref();
        let Some(role) = self.role("autoscaler-role", PODS, &[], boundary, inline) else { return };
        let account = NodeAutoscaler::name(&site.namespace);
        self.pod_identity(IDENTITY, main, (NodeAutoscaler::NAMESPACE, &account), &role);
    }
}

/// What the autoscaler may do: read, and change the groups of its own cluster, which EKS tags
/// (<https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html>). A group without nodes is known by EKS's labels and
/// taints of it (<https://github.com/kubernetes/autoscaler/pull/4491>).
fn policy(site: &Site) -> Value {
    let name = names::cluster(site);
    let partition = partition(&site.region).name;
    let account = if site.account.is_empty() { "*" } else { site.account.as_str() };
    let groups = format!("arn:{partition}:eks:{}:{account}:nodegroup/{name}/*", site.region);
    let owned = format!("aws:ResourceTag/k8s.io/cluster-autoscaler/{name}");
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": [
                    "autoscaling:DescribeAutoScalingGroups",
                    "autoscaling:DescribeAutoScalingInstances",
                    "autoscaling:DescribeLaunchConfigurations",
                    "autoscaling:DescribeScalingActivities",
                    "autoscaling:DescribeTags",
                    "ec2:DescribeImages",
                    "ec2:DescribeInstanceTypes",
                    "ec2:DescribeLaunchTemplateVersions",
                    "ec2:GetInstanceTypesFromInstanceRequirements",
                ],
                "Resource": ["*"],
            },
            { "Effect": "Allow", "Action": ["eks:DescribeNodegroup"], "Resource": [groups] },
            {
                "Effect": "Allow",
                "Action": ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"],
                "Resource": ["*"],
                "Condition": { "StringEquals": { owned: ["owned"] } },
            },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_no_newer_than_kubernetes() {
        for (kubernetes, version) in [
            (Some("1.32"), "v1.33.6"),
            (Some("1.33"), "v1.33.6"),
            (Some("1.34"), "v1.34.5"),
            (Some("1.35"), "v1.35.2"),
            (Some("1.36"), "v1.35.2"),
            (None, "v1.34.5"),
        ] {
            let image = image(kubernetes);
            assert!(image.contains(&format!(":{version}@sha256:")), "{kubernetes:?}: {image}");
        }
        assert!(IMAGES.iter().all(|(_, digest)| digest.len() == 64));
    }
}
