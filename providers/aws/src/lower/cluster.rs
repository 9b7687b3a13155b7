//! The cluster of a site: its key, roles, control plane, add-ons and machines.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_provider::cluster::{GPU, GPU_POOL, POOL};
use textnlp_provider::component::{Cluster, ClusterIdentity, GpuPool};
use textnlp_provider::settings::{AccessLevel, Spot};
use textnlp_provider::{Ownership, ResourceId};
use textnlp_token::partition;

use super::{Lowering, output};
use crate::kinds::iam::PATH;
use crate::names;
use crate::tables::machines;

/// The service that takes the role of pods.
pub(super) const PODS: &str = "pods.eks.amazonaws.com";
/// The add-on that gives pods their volumes.
pub(crate) const DISKS: &str = "aws-ebs-csi-driver";
/// How long the logs of the control plane are kept, in days.
const LOG_DAYS: u32 = 90;
/// The pool of the nodes without GPU.
pub(crate) const SYSTEM: &str = "system";
/// The disk of a machine in GiB: images and models.
const DISK_GIB: u32 = 100;
/// The same with a GPU: its images and models are larger.
const GPU_DISK_GIB: u32 = 300;
/// How many days the image of nodes may be older than the newest one.
///
/// An update replaces every node, and images come out about every week: with the newest one always, most runs of `up` would do it. EKS
/// chooses the release of an update, and the newest image is the newest one of EC2, which may be another: the bound is more than
/// the time between two images, so that an updated group is never updated again by the next run.
const IMAGE_DAYS_BEHIND: u32 = 30;
/// The most instance types of a node group. On demand, EKS tries them in their order.
/// <https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html>
const MOST_TYPES: usize = 20;

/// The part of a cluster that is an add-on.
pub(crate) fn addon(name: &str) -> String {
    format!("addon-{name}")
}

/// Whether this is a minor version of Kubernetes, as EKS takes it: `1.34`.
fn is_version(version: &str) -> bool {
    version.split_once('.').is_some_and(|(major, minor)| {
        major == "1" && !minor.is_empty() && !minor.starts_with('0') && minor.bytes().all(|byte| byte.is_ascii_digit())
    })
}

impl Lowering<'_> {
    pub(super) fn cluster(&mut self, cluster: &Cluster) {
        let name = names::cluster(self.site);
        if self.component.existing.is_some() {
            // An existing cluster is read, and never changed: its operator has set up its machines and add-ons.
            if !cluster.access.is_empty() {
                let cause = "an existing cluster is never changed, and who reaches it is one of its settings";
                self.problem("access", cause, "remove `cluster.access`; `aws eks create-access-entry` lets others in");
            }
            self.main("aws.eks-cluster", &json!({ "name": name }));
            return;
        }
        let subnets = self.private_subnets(&cluster.network);
        if subnets.len() < 2 {
            let cause = "EKS needs private subnets in two zones at least";
            self.problem("network.subnets", cause, "add the id of a subnet in another zone");
        }
        if let Some(version) = cluster.version.as_deref().filter(|version| !is_version(version)) {
            let cause = format!("`{version}` is no version of EKS");
            self.problem(
                "version",
                cause,
                "write a minor version, such as `1.34`: `aws eks describe-cluster-versions`",
            );
        }
        // A reader of the API server's store still needs it. It ends with the cluster, and other data does not.
        let key = self.key("cluster", &format!("Secrets of the cluster {name}"), Ownership::Ours, &[]);
        let boundary = cluster.permission_boundary.as_deref();
        let control = self.role("role", "eks.amazonaws.com", &["AmazonEKSClusterPolicy"], boundary, json!({}));
        let machines = machines_service(&self.site.region);
        let nodes = self.role(
            "node-role",
            machines,
            &["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"],
            boundary,
            json!({}),
        );
        let network = self.role("network-role", PODS, &["AmazonEKS_CNI_Policy"], boundary, json!({}));
        let disks = self.role("disk-role", PODS, &["service-role/AmazonEBSCSIDriverPolicy"], boundary, json!({}));
        let logs = self.part(
            "logs",
            "aws.log-group",
            &json!({ "name": format!("/aws/eks/{name}/cluster"), "retention_days": LOG_DAYS, "key": null }),
        );
        let (Some(key), Some(control), Some(nodes), Some(network), Some(disks)) = (key, control, nodes, network, disks)
        else {
            return;
        };
        let main = self.main(
            "aws.eks-cluster",
            &json!({
                "name": name,
                "version": cluster.version,
                "role": output(&control, "arn"),
                "subnets": subnets,
                "security_groups": [],
                "private_access": true,
                "public_cidrs": cluster.allow_from.clone().unwrap_or_else(|| vec!["0.0.0.0/0".to_owned()]),
                "key": output(&key, "arn"),
                "logs": ["api", "audit", "authenticator", "controllerManager", "scheduler"],
                "authentication": "API",
                "support": "STANDARD",
                "deletion_protection": self.site.protect_data,
                "deployer_access": true,
            }),
        );
        // EKS would create the group itself, and keep its logs for ever.
        self.after(logs);
        self.part(
            "oidc",
            "aws.oidc-provider",
            &json!({ "url": output(&main, "oidc_issuer"), "audiences": ["sts.amazonaws.com"] }),
        );
        self.access(&main, &cluster.access);
        // Pods of add-ons start with the roles that are there.
        let network = self.pod_identity("network-identity", &main, ("kube-system", "aws-node"), &network);
        let disks = self.pod_identity("disk-identity", &main, ("kube-system", "ebs-csi-controller-sa"), &disks);
        self.autoscaler(cluster, &main);
        // What nodes need before they are ready, then what needs nodes.
        let agent = self.addon("eks-pod-identity-agent", &main, Value::Null, &[]);
        let proxy = self.addon("kube-proxy", &main, Value::Null, &[]);
        // Network policies are in the hands of this add-on.
        let mut settings = json!({ "enableNetworkPolicy": "true" });
        if !self.site.tags.is_empty() {
            // Network interfaces of pods have the tags that an account requires
            // (<https://github.com/aws/amazon-vpc-cni-k8s/issues/1276>).
            settings["env"] = json!({ "ADDITIONAL_ENI_TAGS": json!(self.site.tags).to_string() });
        }
        let cni = self.addon("vpc-cni", &main, settings, &[network]);
        let before = [agent, proxy, cni];
        let general = match machines::NODES.of_site(self.site) {
            Ok(nodes) => nodes,
            Err((field, cause, fix)) => return self.problem(field, cause, fix),
        };
        let types: Vec<&str> = general.types.iter().map(String::as_str).collect();
        let site = self.site.cluster.as_deref();
        let min = site.map_or(1, |site| site.min_nodes);
        let max = site.and_then(|site| site.max_nodes).unwrap_or(min).max(min);
        let system = self.machines(
            &Machines {
                name: &general.named(SYSTEM),
                types: &types,
                capacity: &["ON_DEMAND"],
                scaling: json!({ "min": min, "max": max, "desired": min }),
                labels: json!({ POOL: SYSTEM }),
                taints: json!([]),
                disk_gib: DISK_GIB,
                subnets: &subnets,
                role: &nodes,
                cluster: &main,
            },
            &before,
        );
        self.addon("coredns", &main, Value::Null, std::slice::from_ref(&system));
        // EKS has no default class of its own since 1.30 (<https://github.com/aws/containers-roadmap/issues/81>).
        let mut class = json!({ "defaultStorageClass": { "enabled": true } });
        if !self.site.tags.is_empty() {
            class["controller"] = json!({ "extraVolumeTags": self.site.tags });
        }
        self.addon(DISKS, &main, class, &[system, disks]);
        if let Some(pool) = &cluster.gpu {
            self.gpu_machines(pool, &main, &nodes, &subnets, &before);
        }
    }

    fn gpu_machines(
        &mut self,
        pool: &GpuPool,
        cluster: &ResourceId,
        role: &ResourceId,
        subnets: &[Value],
        before: &[Option<ResourceId>],
    ) {
        let capacity: &[&str] = match pool.spot {
            Spot::Never => &["ON_DEMAND"],
            Spot::Prefer => &["SPOT", "ON_DEMAND"],
            Spot::Only => &["SPOT"],
        };
        let mut labels = json!({ POOL: GPU_POOL });
        if pool.most() > pool.count {
            // Cluster Autoscaler waits for the GPUs of a new node with this label, and without it adds another node meanwhile
            // (<https://github.com/kubernetes/autoscaler/pull/1562>).
            labels["k8s.amazonaws.com/accelerator"] = json!("nvidia");
        }
        let known: Vec<_> = machines::gpus().map(|machine| (machine.name(), machine.gpus)).collect();
        let known = known.iter().map(|(name, gpus)| (name.as_str(), *gpus));
        for (cause, fix) in textnlp_cloud::wrong_machines(pool, MOST_TYPES, known) {
            self.problem("gpu.machines", cause, fix);
        }
        let named: Vec<&str> = pool.machines.iter().map(String::as_str).collect();
        let types: &[&str] = if named.is_empty() { machines::candidates(pool.size) } else { &named };
        let tried = types.iter().filter_map(|name| machines::machine(name));
        let tried = tried.filter(|machine| machine.family.withdrawn.is_none()).map(|machine| machine.node());
        let alike = machines::gpus().filter(|machine| machine.gpus == pool.gpus()).map(|machine| machine.node());
        let (tried, alike): (Vec<_>, Vec<_>) = (tried.collect(), alike.collect());
        if let Some((cause, fix)) = machines::NODES.small_gpus(self.site, &tried, &alike) {
            self.problem("gpu.machines", cause, fix);
        }
        let machines = Machines {
            name: "gpu",
            types,
            capacity,
            // EKS takes no group without room for a machine.
            scaling: json!({ "min": pool.count, "max": pool.most().max(1), "desired": pool.count }),
            labels,
            taints: json!([{ "key": GPU, "value": "present", "effect": "NO_SCHEDULE" }]),
            disk_gib: GPU_DISK_GIB,
            subnets,
            role,
            cluster,
        };
        self.machines(&machines, before);
    }

    /// The launch template and the node group of a pool.
    fn machines(&mut self, machines: &Machines<'_>, before: &[Option<ResourceId>]) -> Option<ResourceId> {
        // EKS refuses a group in which one type does not exist.
        let offered = |name: &&&str| machines::machine(name).is_some_and(|machine| machine.family.withdrawn.is_none());
        let types: Vec<&str> = machines.types.iter().filter(offered).copied().collect();
        let image = types.first().and_then(|name| machines::machine(name)).map(|machine| machine.ami_type());
        let name = names::of(self.site, machines.name, 63);
        let template = self.part(
            &format!("{}-template", machines.name),
            "aws.launch-template",
            &json!({
                "name": name,
                "image": "",
                "instance_type": "",
                "groups": [],
                "root_device": "/dev/xvda",
                "root_gib": machines.disk_gib,
                "key": "",
                // Pods have a role of their own, and none of the machine's.
                "metadata_hops": 1,
                "user_data": "",
                "instance_tags": self.site.tags,
                "hardened": true,
            }),
        )?;
        let group = self.part(
            &format!("{}-nodes", machines.name),
            "aws.eks-node-group",
            &json!({
                "cluster": output(machines.cluster, "name"),
                "name": name,
                // The nodes follow the control plane.
                "version": output(machines.cluster, "version"),
                "release": { "max_days_behind": IMAGE_DAYS_BEHIND },
                "role": output(machines.role, "arn"),
                "subnets": machines.subnets,
                "instance_types": types,
                "ami_type": image,
                "capacity": machines.capacity,
                "scaling": machines.scaling,
                "labels": machines.labels,
                "taints": machines.taints,
                "launch_template": { "id": output(&template, "id"), "version": output(&template, "version") },
                "max_unavailable": 1,
                "repair": true,
            }),
        );
        for one in before {
            self.after(one.clone());
        }
        group
    }

    /// The identities that reach the cluster, besides the one that deploys.
    fn access(&mut self, cluster: &ResourceId, identities: &[ClusterIdentity]) {
        let partition = partition(&self.site.region).name;
        let mut known = BTreeSet::new();
        for ClusterIdentity { identity, level } in identities {
            if !is_role_or_user(identity, partition) {
                let fix = format!("write an ARN such as `arn:{partition}:iam::123456789012:role/operators`");
                self.problem("access", format!("`{identity}` is neither a role nor a user of IAM"), fix);
                continue;
            }
            let account = identity.split(':').nth(4).unwrap_or_default();
            if !self.site.account.is_empty() && account != self.site.account {
                let cause = format!("`{identity}` is of another account than the site ({})", self.site.account);
                self.problem("access", cause, "name a role of the site's account, which the other account may assume");
                continue;
            }
            if !known.insert(identity) {
                self.problem("access", format!("`{identity}` is listed twice"), "keep one of the two");
                continue;
            }
            let policy = match level {
                AccessLevel::Admin => "AmazonEKSClusterAdminPolicy",
                AccessLevel::View => "AmazonEKSViewPolicy",
            };
            self.part(
                &format!("access-{}{}", shown(identity), names::hash(identity)),
                "aws.eks-access-entry",
                &json!({
                    "cluster": output(cluster, "name"),
                    "principal": identity,
                    "groups": [],
                    "policies": [{
                        "arn": format!("arn:{partition}:eks::aws:cluster-access-policy/{policy}"),
                        "namespaces": [],
                    }],
                }),
            );
        }
    }

    /// A role that a service takes, with policies of AWS and of its own.
    pub(super) fn role(
        &mut self,
        part: &str,
        service: &str,
        policies: &[&str],
        boundary: Option<&str>,
        inline: Value,
    ) -> Option<ResourceId> {
        let partition = partition(&self.site.region).name;
        let managed: Vec<String> =
            policies.iter().map(|policy| format!("arn:{partition}:iam::aws:policy/{policy}")).collect();
        let actions: &[&str] =
            if service == PODS { &["sts:AssumeRole", "sts:TagSession"] } else { &["sts:AssumeRole"] };
        let mut statement = json!({ "Effect": "Allow", "Principal": { "Service": [service] }, "Action": actions });
        let (account, region) = (&self.site.account, &self.site.region);
        // Machines name no cluster.
        if service != machines_service(&self.site.region) && !account.is_empty() {
            // Other clusters get no credentials of this one:
            // <https://docs.aws.amazon.com/eks/latest/userguide/cross-service-confused-deputy-prevention.html>.
            let name = names::cluster(self.site);
            let cluster = format!("arn:{partition}:eks:{region}:{account}:cluster/{name}");
            statement["Condition"] = json!({ "StringEquals": { "aws:SourceAccount": [account] }, "ArnLike": { "aws:SourceArn": [cluster] } });
        }
        let trust = json!({ "Version": "2012-10-17", "Statement": [statement] });
        self.part(
            part,
            "aws.role",
            &json!({
                "name": names::of(self.site, part, names::MOST_OF_ROLE),
                "path": PATH,
                "trust": trust,
                "boundary": boundary,
                "managed": managed,
                "inline": inline,
            }),
        )
    }

    /// The role of a service account in a namespace.
    pub(super) fn pod_identity(
        &mut self,
        part: &str,
        cluster: &ResourceId,
        (namespace, account): (&str, &str),
        role: &ResourceId,
    ) -> Option<ResourceId> {
        self.part(
            part,
            "aws.eks-pod-identity-association",
            &json!({
                "cluster": output(cluster, "name"),
                "namespace": namespace,
                "service_account": account,
                "role": output(role, "arn"),
            }),
        )
    }

    /// An add-on in the default version of the cluster's version.
    fn addon(
        &mut self,
        name: &str,
        cluster: &ResourceId,
        configuration: Value,
        after: &[Option<ResourceId>],
    ) -> Option<ResourceId> {
        let made = self.part(
            &addon(name),
            "aws.eks-addon",
            &json!({
                "cluster": output(cluster, "name"),
                "name": name,
                "version": null,
                "kubernetes": [output(cluster, "version")],
                "configuration": configuration,
            }),
        );
        for one in after {
            self.after(one.clone());
        }
        made
    }
}

/// The service that takes the role of machines. EKS in China wants that of its own partition
/// (<https://github.com/aws-quickstart/cdk-eks-blueprints/issues/558>).
fn machines_service(region: &str) -> &'static str {
    match partition(region).name {
        "aws-cn" => "ec2.amazonaws.com.cn",
        _ => "ec2.amazonaws.com",
    }
}

/// Whether a text is the ARN of a role or a user. EKS takes no other identities: those of STS end with their sessions.
fn is_role_or_user(arn: &str, partition: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-/".contains(&byte);
    let rest =
        arn.strip_prefix("arn:").and_then(|arn| arn.strip_prefix(partition)).and_then(|arn| arn.strip_prefix(":iam::"));
    let Some((account, path)) = rest.and_then(|rest| rest.split_once(':')) else { return false };
    let name = path.strip_prefix("role/").or_else(|| path.strip_prefix("user/"));
    account.len() == 12
        && account.bytes().all(|byte| byte.is_ascii_digit())
        && name.is_some_and(|name| !name.is_empty() && !name.ends_with('/') && name.bytes().all(is_plain))
}

/// The name of a role or user as a part of an id, with a hyphen after it.
fn shown(arn: &str) -> String {
    let name = arn.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(24).collect();
    name.split('-').filter(|word| !word.is_empty()).map(|word| format!("{word}-")).collect()
}

/// A pool of machines.
struct Machines<'a> {
    name: &'a str,
    /// Instance types, best first.
    types: &'a [&'a str],
    /// How they are bought, best first.
    capacity: &'a [&'a str],
    scaling: Value,
    labels: Value,
    taints: Value,
    disk_gib: u32,
    subnets: &'a [Value],
    role: &'a ResourceId,
    cluster: &'a ResourceId,
}
