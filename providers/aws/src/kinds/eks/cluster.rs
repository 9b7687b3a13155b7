//! EKS clusters: <https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateCluster.html>.

use std::collections::BTreeSet;

use async_trait::async_trait;
use aws_sdk_eks::types::{
    AccessScope, AccessScopeType, AuthenticationMode, Cluster as Answer, ClusterStatus, CreateAccessConfigRequest,
    EncryptionConfig, LogSetup, LogType, Logging, Provider, SupportType, UpdateAccessConfigRequest,
    UpgradePolicyRequest, VpcConfigRequest, VpcConfigResponse,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{CloudId, Error, ErrorKind, Foreign, Identity, Lineage, Permission, Result, error_chain};

use super::{CLUSTER, CLUSTERS, SERVICE};
use crate::api::Api;
use crate::kinds::ec2;
use crate::kinds::elb::{self, Balancing};
use crate::kinds::iam::{ROLES, TO_EKS, passes};
use crate::kinds::{CREATE, DELETE, KEYS, OF_CLUSTER, OF_CONTROLLER, OURS, PUT, only, tagged, when};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State, timestamp};
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

/// The policy of an administrator of a cluster.
const ADMIN: &str = "cluster-access-policy/AmazonEKSClusterAdminPolicy";

pub(crate) static ROWS: &[Row] = &[Row {
    // Costs for each hour, and more once the version is out of standard support.
    kind: textnlp_provider::Kind {
        deadline: MINUTE.saturating_mul(60),
        typical: Some(MINUTE.saturating_mul(10)),
        permissions: &[
            // Whether the network of a classic load balancer is one of this deployment.
            Permission::read("ec2:DescribeVpcs"),
            only(Permission::on(PUT, "eks:AssociateAccessPolicy"), CLUSTER),
            only(Permission::on(PUT, "eks:CreateAccessEntry"), CLUSTER),
            only(Permission::on(CREATE, "eks:CreateCluster"), CLUSTER),
            only(Permission::on(DELETE, "eks:DeleteCluster"), CLUSTER),
            only(Permission::read("eks:DescribeCluster"), CLUSTERS),
            only(Permission::read("eks:DescribeUpdate"), CLUSTERS),
            only(Permission::read("eks:ListAccessEntries"), CLUSTERS),
            only(Permission::read("eks:ListAssociatedAccessPolicies"), CLUSTERS),
            Permission::read("eks:ListClusters"),
            only(Permission::on(PUT, "eks:TagResource"), CLUSTER),
            only(Permission::on(PUT, "eks:UntagResource"), CLUSTER),
            only(Permission::change("eks:UpdateClusterConfig"), CLUSTER),
            only(Permission::on(PUT, "eks:UpdateClusterVersion"), CLUSTER),
            when(OF_CLUSTER, Permission::on(DELETE, "elasticloadbalancing:DeleteLoadBalancer")),
            when(OF_CONTROLLER, Permission::on(DELETE, "elasticloadbalancing:DeleteLoadBalancer")),
            when(OF_CLUSTER, Permission::on(DELETE, "elasticloadbalancing:DeleteTargetGroup")),
            when(OF_CONTROLLER, Permission::on(DELETE, "elasticloadbalancing:DeleteTargetGroup")),
            Permission::read("elasticloadbalancing:DescribeLoadBalancers"),
            Permission::read("elasticloadbalancing:DescribeTags"),
            Permission::read("elasticloadbalancing:DescribeTargetGroups"),
            only(
                Permission::on(CREATE, "iam:CreateServiceLinkedRole"),
                "arn:{$partition}:iam::{$account}:role/aws-service-role/eks.amazonaws.com/*",
            ),
            only(Permission::on(PUT, "iam:GetRole"), ROLES),
            passes(PUT, TO_EKS),
            // EKS makes a grant of the key for the cluster's secrets, as the caller. It does not support the condition
            // `kms:GrantIsForAWSResource`: https://docs.aws.amazon.com/eks/latest/userguide/enable-kms.html
            when(OURS, only(Permission::on(CREATE, "kms:CreateGrant"), KEYS)),
            only(Permission::on(CREATE, "kms:DescribeKey"), KEYS),
            Permission::read("tag:GetResources"),
        ],
        terraform: &[("aws_eks_cluster", "id")],
        pricing: textnlp_provider::Pricing::BySpec,
        ..kind("aws.eks-cluster", "a Kubernetes cluster", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Cluster>::kind(),
    refused: &[
        ("role", "EKS cannot change the role of a cluster: change the policies of the role instead"),
        ("key", "EKS encrypts a cluster with one key for its whole life: let the key rotate instead"),
    ],
}];

/// A cluster.
///
/// Outputs: `name`, `arn`, `version`, `endpoint`, `ca_pem`, `oidc_issuer`, `security_group` (the one that EKS gives to the control
/// plane and to node groups), `vpc`.
struct Cluster;

/// The attributes of a cluster.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Its name, at most 100 bytes.
    name: String,
    /// Its minor version: `1.34`. It only rises, one minor version at a time. `None` is EKS's default when it is created, and then
    /// what it is.
    version: Option<String>,
    /// The ARN of the role of its control plane.
    role: String,
    /// Subnets of its control plane, in at least two zones.
    subnets: BTreeSet<String>,
    /// Security groups of its control plane, besides the one that EKS makes.
    security_groups: BTreeSet<String>,
    /// Whether the API server has an address in the VPC.
    private_access: bool,
    /// The networks outside of the VPC that reach the API server; if empty, none does.
    public_cidrs: BTreeSet<String>,
    /// The ARN of the key that encrypts Secrets, in addition to EKS's own.
    key: Option<String>,
    /// The logs that it writes: `api`, `audit`, `authenticator`, `controllerManager`, `scheduler`.
    logs: BTreeSet<String>,
    /// Where its users are listed: `API`.
    authentication: String,
    /// What happens at the end of standard support: `STANDARD` upgrades it, `EXTENDED` costs more.
    support: String,
    /// Whether it can be deleted only after this is switched off.
    deletion_protection: bool,
    /// Whether the identity that deploys is an administrator of it, by an access entry of its own.
    deployer_access: bool,
    #[serde(default)]
    tags: Tags,
}

impl Spec {
    fn vpc(&self) -> aws_sdk_eks::types::builders::VpcConfigRequestBuilder {
        let is_public = !self.public_cidrs.is_empty();
        let cidrs = is_public.then(|| self.public_cidrs.iter().cloned().collect());
        VpcConfigRequest::builder()
            .endpoint_private_access(self.private_access)
            .endpoint_public_access(is_public)
            .set_public_access_cidrs(cidrs)
    }

    fn logging(&self) -> Logging {
        let (on, off) = LogType::values().iter().partition(|name| self.logs.contains(**name));
        let setup = |names: Vec<&&str>, enabled: bool| {
            let types = names.into_iter().map(|name| LogType::from(*name)).collect();
            LogSetup::builder().set_types(Some(types)).enabled(enabled).build()
        };
        Logging::builder().cluster_logging(setup(on, true)).cluster_logging(setup(off, false)).build()
    }
}

#[async_trait]
impl Resource<Api> for Cluster {
    type Spec = Spec;
    // The deploying identity needs access to everything after it.
    const IN_PLACE: &'static [&'static str] = &[
        "authentication",
        "deployer_access",
        "private_access",
        "public_cidrs",
        "logs",
        "subnets",
        "security_groups",
        "support",
        "version",
        "deletion_protection",
    ];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        match super::describe(api, id).await? {
            Some(cluster) => seen(api, cluster).await.map(Some),
            None => Ok(None),
        }
    }

    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let mut all = Vec::new();
        for cluster in super::clusters(api, filter).await? {
            all.push(seen(api, cluster).await?);
        }
        Ok(all.into_iter().filter(|seen| filter.matches(&seen.tags)).collect())
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let vpc = spec.vpc().set_subnet_ids(list(&spec.subnets)).set_security_group_ids(list(&spec.security_groups));
        let encryption = spec.key.as_ref().map(|key| {
            let provider = Provider::builder().key_arn(key).build();
            vec![EncryptionConfig::builder().provider(provider).build()]
        });
        // No identity is an administrator by having created it: access is by entries that can be seen and removed.
        let access = CreateAccessConfigRequest::builder()
            .authentication_mode(AuthenticationMode::from(spec.authentication.as_str()))
            .bootstrap_cluster_creator_admin_permissions(false)
            .build();
        let support = SupportType::from(spec.support.as_str());
        let call = api
            .eks
            .create_cluster()
            .name(&spec.name)
            .set_version(spec.version.clone())
            .role_arn(&spec.role)
            .resources_vpc_config(vpc.build())
            .logging(spec.logging())
            .set_encryption_config(encryption)
            .access_config(access)
            .upgrade_policy(UpgradePolicyRequest::builder().support_type(support).build())
            // Its protection is enabled once it is active: whether a protected cluster whose creation failed can be deleted is not
            // documented. The add-ons are objects of their own.
            .bootstrap_self_managed_addons(false)
            .client_request_token(make.token)
            .set_tags(Some(make.tags.clone().into_iter().collect()))
            .send();
        match api.call(SERVICE, "create", format!("cluster {}", spec.name), call).await {
            Ok(_) => Ok(spec.name.clone()),
            Err(error) => Err(super::about_role(api, error, &spec.role, Some("eks.amazonaws.com")).await),
        }
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        Self::start(api, seen, spec, field).await.map(drop)
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<Option<String>> {
        let id = seen.id.as_str();
        // A call takes one kind of change.
        let config = api.eks.update_cluster_config().name(id);
        let config = match field {
            "version" => {
                let version = next_version(&seen.spec.version, &spec.version).map_err(|why| invalid(id, why))?;
                let call = api.eks.update_cluster_version().name(id).version(version).send();
                return Ok(super::started(api.call(SERVICE, "upgrade", id, call).await?.update));
            }
            "deployer_access" => return grant_access(api, id).await.map(|()| None),
            "logs" => config.logging(spec.logging()),
            "authentication" => {
                let mode = AuthenticationMode::from(spec.authentication.as_str());
                config.access_config(UpdateAccessConfigRequest::builder().authentication_mode(mode).build())
            }
            "support" => {
                let support = SupportType::from(spec.support.as_str());
                config.upgrade_policy(UpgradePolicyRequest::builder().support_type(support).build())
            }
            "deletion_protection" => config.deletion_protection(spec.deletion_protection),
            "subnets" | "security_groups" => {
                let vpc = VpcConfigRequest::builder().set_subnet_ids(list(&spec.subnets));
                config.resources_vpc_config(vpc.set_security_group_ids(list(&spec.security_groups)).build())
            }
            _ => config.resources_vpc_config(spec.vpc().build()),
        };
        let answer = api.call(SERVICE, "change", id, config.send()).await;
        Ok(super::started(answer.map_err(not_shown_yet)?.update))
    }

    async fn change(api: &Api, id: &str, change: &str) -> Result<State> {
        super::change(api, id, None, change).await
    }

    fn refuses(field: &str, wanted: &Value, seen: &Value) -> Option<String> {
        match (field, wanted.as_str(), seen.as_str()) {
            ("version", Some(wanted), Some(seen)) => {
                next_version(&Some(seen.to_owned()), &Some(wanted.to_owned())).err()
            }
            _ => None,
        }
    }

    fn fits(field: &str, wanted: &Value, _seen: &Value) -> bool {
        match field {
            "version" => wanted.is_null(),
            "deployer_access" => *wanted == false,
            _ => false,
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default();
        super::tag(api, arn, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        Self::end(api, seen).await.map(drop)
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        // Without nodes nothing makes new ones.
        let mut swept = seen.foreign.iter().filter(|foreign| foreign.swept).map(|foreign| foreign.cloud_id.as_str());
        if let Some((balancing, arn)) = swept.find_map(|arn| Some((Balancing::of(arn)?, arn))) {
            return balancing.delete(api, arn).await.map(|()| None);
        }
        // A cluster whose creation failed takes no other call.
        if !seen.spec.logs.is_empty() && matches!(seen.state, State::Ready | State::Degraded(_)) {
            // EKS makes the log group of a cluster that writes logs again after both are deleted
            // (<https://github.com/terraform-aws-modules/terraform-aws-eks/issues/2763>).
            let types = seen.spec.logs.iter().map(|name| LogType::from(name.as_str())).collect();
            let off = LogSetup::builder().set_types(Some(types)).enabled(false).build();
            let call =
                api.eks.update_cluster_config().name(&seen.id).logging(Logging::builder().cluster_logging(off).build());
            let answer = api.call(SERVICE, "disable the logs of", &seen.id, call.send()).await;
            return Ok(super::started(answer.map_err(not_shown_yet)?.update));
        }
        if seen.spec.deletion_protection {
            let call = api.eks.update_cluster_config().name(&seen.id).deletion_protection(false).send();
            let answer = api.call(SERVICE, "disable the deletion protection of", &seen.id, call).await;
            return Ok(super::started(answer.map_err(not_shown_yet)?.update));
        }
        api.call(SERVICE, "delete", &seen.id, api.eks.delete_cluster().name(&seen.id).send()).await.map(|_| None)
    }
}

/// A setting that has its value already, which the description does not show yet: the next read decides.
fn not_shown_yet(error: Error) -> Error {
    match error.code.as_deref() {
        Some(code) if code.starts_with("InvalidParameter") && error_chain(&error).contains("No changes needed") => {
            Error { kind: ErrorKind::Conflict, ..error }
        }
        _ => error,
    }
}

fn list(of: &BTreeSet<String>) -> Option<Vec<String>> {
    Some(of.iter().cloned().collect())
}

fn invalid(id: &str, why: String) -> Error {
    Error::new(ErrorKind::Invalid, "upgrade", id).because(why)
}

/// Minor versions by which nodes may be older than the control plane.
const NODE_SKEW: u32 = 3;

/// The next minor version on the way from one version to another.
fn next_version(seen: &Option<String>, wanted: &Option<String>) -> Result<String, String> {
    let minor = |version: &Option<String>| -> Option<(u32, u32)> {
        let (major, minor) = version.as_deref()?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    match (minor(seen), minor(wanted)) {
        // Nodes follow once the control plane has its version, and may be this much older
        // (<https://kubernetes.io/releases/version-skew-policy/>).
        (Some((major, from)), Some((to_major, to))) if major == to_major && to > from + NODE_SKEW => Err(format!(
            "nodes of {major}.{from} cannot join {major}.{to}: set `cluster.version` to {major}.{} first, and run `up`",
            from + NODE_SKEW
        )),
        (Some((from_major, from)), Some((to_major, to))) if from_major == to_major && from < to => {
            Ok(format!("{from_major}.{}", from + 1))
        }
        (Some((major, minor)), Some((to_major, to))) if (major, minor) > (to_major, to) => Err(format!(
            "the cluster has version {major}.{minor}, and EKS cannot go back to {to_major}.{to}; set `cluster.version` to \
             {major}.{minor}"
        )),
        _ => Err(format!("`{}` is no version of Kubernetes such as 1.34", wanted.as_deref().unwrap_or_default())),
    }
}

/// The role or user of the identity that is signed in: its ARN, or for a session of a role its name.
pub(crate) enum Principal<'a> {
    Arn(&'a str),
    Role(&'a str),
}

impl<'a> Principal<'a> {
    pub(crate) fn of(identity: &'a str) -> Self {
        let session = identity.split_once(":assumed-role/").and_then(|(_, session)| session.split('/').next());
        session.map_or(Self::Arn(identity), Self::Role)
    }

    /// Whether it is the one of an access entry. A session does not tell the path of its role, and a role's name is unique.
    pub(crate) fn is(&self, entry: &str) -> bool {
        match self {
            Self::Arn(arn) => entry == *arn,
            Self::Role(name) => entry.contains(":role/") && entry.rsplit('/').next() == Some(name),
        }
    }
}

/// The access entry of the identity that is signed in, and whether it is an administrator.
async fn own_entry(api: &Api, cluster: &str) -> Result<Option<(String, bool)>> {
    let pages = api.eks.list_access_entries().cluster_name(cluster).into_paginator().items().send();
    let entries: Option<Vec<String>> = api.find(SERVICE, cluster, pages.try_collect()).await?;
    let principal = Principal::of(&api.identity.arn);
    let Some(entry) = entries.unwrap_or_default().into_iter().find(|entry| principal.is(entry)) else {
        return Ok(None);
    };
    let call = api.eks.list_associated_access_policies().cluster_name(cluster).principal_arn(&entry);
    let policies: Option<Vec<_>> =
        api.find(SERVICE, cluster, call.into_paginator().items().send().try_collect()).await?;
    let is_admin = |policy: &aws_sdk_eks::types::AssociatedAccessPolicy| {
        let is_whole =
            policy.access_scope.as_ref().and_then(|scope| scope.r#type.as_ref()) == Some(&AccessScopeType::Cluster);
        is_whole && policy.policy_arn.as_deref().is_some_and(|arn| arn.ends_with(ADMIN))
    };
    Ok(Some((entry, policies.unwrap_or_default().iter().any(is_admin))))
}

/// Makes the identity that is signed in an administrator: its entry first, then the policy.
async fn grant_access(api: &Api, cluster: &str) -> Result<()> {
    if let Some((entry, _)) = own_entry(api, cluster).await? {
        let partition = entry.split(':').nth(1).unwrap_or("aws");
        let scope = AccessScope::builder().r#type(AccessScopeType::Cluster).build();
        let call = api.eks.associate_access_policy().cluster_name(cluster).principal_arn(&entry);
        let call = call.policy_arn(format!("arn:{partition}:eks::aws:{ADMIN}")).access_scope(scope).send();
        return api.call(SERVICE, "give access to", cluster, call).await.map(drop);
    }
    let principal = match Principal::of(&api.identity.arn) {
        Principal::Arn(arn) => arn.to_owned(),
        Principal::Role(name) => {
            let answer = api.call("iam", "read", name, api.iam.get_role().role_name(name).send()).await?;
            answer.role.map(|role| role.arn).unwrap_or_default()
        }
    };
    let call = api.eks.create_access_entry().cluster_name(cluster).principal_arn(&principal).send();
    api.call(SERVICE, "create an access entry in", cluster, call).await.map(drop)
}

/// What controllers in the cluster made and left behind: disks, and load balancers of its VPC. Their security groups go with the
/// network: a rule of the cluster's own group, which ends with the cluster, refers to them.
///
/// A disk is data, of this deployment or of its operator, whose volume was to be retained: it outlives the cluster. So does a
/// classic load balancer in an existing network: its service is not one of this deployment.
async fn left_behind(api: &Api, name: &str, vpc: Option<&str>, lineage: Option<Lineage>) -> Result<Vec<Foreign>> {
    const TYPES: [&str; 3] = ["ec2:volume", "elasticloadbalancing:loadbalancer", "elasticloadbalancing:targetgroup"];
    let maker = CloudId::new(name).ok();
    let filters = [(format!("kubernetes.io/cluster/{name}"), "owned"), ("elbv2.k8s.aws/cluster".to_owned(), name)];
    let (mut all, mut is_our_network) = (Vec::new(), None);
    for (key, value) in filters {
        let found = tagged(api, (key.as_str(), value.to_owned()), &TYPES).await?;
        for arn in found.into_iter().filter_map(|object| object.resource_arn) {
            let Ok(cloud_id) = CloudId::new(&arn) else { continue };
            let balancing = Balancing::of(&arn);
            // The tagging API lists the whole region, and shows deleted objects for a while.
            if let Some(balancing) = balancing
                && balancing.vpc(api, &arn).await?.as_deref() != vpc
            {
                continue;
            }
            if balancing == Some(Balancing::Classic) {
                if !elb::has_tag(api, &arn, (key.as_str(), value)).await? {
                    continue;
                }
                if is_our_network.is_none() {
                    is_our_network = Some(lineage.is_some() && lineage == lineage_of(api, vpc).await?);
                }
            }
            let (what, swept) = match balancing {
                Some(Balancing::Classic) => (Balancing::Classic.word(), is_our_network == Some(true)),
                Some(balancing) => (balancing.word(), true),
                None => ("disk", false),
            };
            all.push(Foreign { cloud_id, what: what.to_owned(), swept, outlives: !swept, maker: maker.clone() });
        }
    }
    // A target group goes after the load balancer that uses it: in the order of their names.
    all.sort_by(|a, b| a.what.cmp(&b.what).then_with(|| a.cmp(b)));
    all.dedup();
    Ok(all)
}

/// The deployment whose network a VPC is.
async fn lineage_of(api: &Api, vpc: Option<&str>) -> Result<Option<Lineage>> {
    let Some(vpc) = vpc else { return Ok(None) };
    let answer = api.find("ec2", vpc, api.ec2.describe_vpcs().vpc_ids(vpc).send()).await?;
    let found = answer.and_then(|answer| answer.vpcs?.into_iter().next());
    Ok(found.and_then(|vpc| crate::tags::lineage(&ec2::tags(vpc.tags))))
}

fn state(cluster: &Answer) -> State {
    let issues = cluster
        .health
        .iter()
        .flat_map(|health| health.issues())
        .map(|issue| (issue.code().map(|code| code.as_str().to_owned()), issue.message().map(str::to_owned)));
    let issues = super::issues(issues);
    match (&cluster.status, issues) {
        (Some(ClusterStatus::Active), None) => State::Ready,
        (Some(ClusterStatus::Active), Some((_, why))) => State::Degraded(why),
        (Some(ClusterStatus::Failed), issues) => {
            let (code, why) = issues.unwrap_or_else(|| (String::new(), "its creation failed".to_owned()));
            State::Failed { code, why }
        }
        (Some(ClusterStatus::Deleting), _) => State::Deleting,
        (status, _) => State::Pending(status.as_ref().map_or("PENDING", ClusterStatus::as_str).to_owned()),
    }
}

async fn seen(api: &Api, cluster: Answer) -> Result<ObservedObject<Spec>> {
    let name = cluster.name.clone().unwrap_or_default();
    let mut state = state(&cluster);
    let is_active = matches!(state, State::Ready | State::Degraded(_));
    let access = cluster.access_config.as_ref().and_then(|access| access.authentication_mode.clone());
    let has_entries = access.as_ref().is_some_and(|mode| *mode != AuthenticationMode::ConfigMap);
    let deployer_access =
        is_active && has_entries && own_entry(api, &name).await?.is_some_and(|(_, is_admin)| is_admin);
    let tags = super::tags(cluster.tags.clone());
    // An existing cluster is not changed: its operator gives access.
    if state == State::Ready && has_entries && !deployer_access && crate::tags::lineage(&tags).is_none() {
        let who = &api.identity.arn;
        state = State::Degraded(format!("no access entry makes `{who}` an administrator of the cluster"));
    }
    let is_ours = is_active && crate::tags::lineage(&tags).is_some();
    let vpc = cluster.resources_vpc_config.unwrap_or_else(|| VpcConfigResponse::builder().build());
    let lineage = crate::tags::lineage(&tags);
    let foreign = if is_ours { left_behind(api, &name, vpc.vpc_id.as_deref(), lineage).await? } else { Vec::new() };
    let is_public = vpc.endpoint_public_access;
    let ca = cluster
        .certificate_authority
        .and_then(|ca| ca.data)
        .and_then(|data| String::from_utf8(aws_smithy_types::base64::decode(data).ok()?).ok());
    let logs = cluster.logging.into_iter().flat_map(|logging| logging.cluster_logging.unwrap_or_default());
    let logs = logs.filter(|setup| setup.enabled == Some(true)).flat_map(|setup| setup.types.unwrap_or_default());
    let keys = cluster.encryption_config.unwrap_or_default().into_iter().filter_map(|config| config.provider);
    let spec = Spec {
        name: name.clone(),
        version: cluster.version.clone(),
        role: cluster.role_arn.unwrap_or_default(),
        subnets: vpc.subnet_ids.unwrap_or_default().into_iter().collect(),
        security_groups: vpc.security_group_ids.unwrap_or_default().into_iter().collect(),
        private_access: vpc.endpoint_private_access,
        public_cidrs: vpc.public_access_cidrs.unwrap_or_default().into_iter().filter(|_| is_public).collect(),
        key: keys.filter_map(|provider| provider.key_arn).next(),
        logs: logs.map(|name| name.as_str().to_owned()).collect(),
        authentication: access.map(|mode| mode.as_str().to_owned()).unwrap_or_default(),
        support: cluster
            .upgrade_policy
            .and_then(|policy| policy.support_type)
            .map(|support| support.as_str().to_owned())
            .unwrap_or_default(),
        deletion_protection: cluster.deletion_protection.unwrap_or_default(),
        deployer_access,
        tags: Tags::new(),
    };
    let issuer = cluster.identity.and_then(|identity| identity.oidc).and_then(|oidc| oidc.issuer);
    let seen = ObservedObject::new(&name, spec, tags)
        .output("name", Some(name.clone()))
        .output("arn", cluster.arn)
        .output("version", cluster.version)
        .output("endpoint", cluster.endpoint)
        .output("ca_pem", ca)
        .output("oidc_issuer", issuer)
        .output("security_group", vpc.cluster_security_group_id)
        .output("vpc", vpc.vpc_id)
        .created(timestamp(cluster.created_at))
        .state(state);
    Ok(ObservedObject { foreign, ..seen })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_goes_by_one_minor_version() {
        let next = |from: &str, to: &str| next_version(&Some(from.to_owned()), &Some(to.to_owned()));
        assert_eq!(next("1.32", "1.34").as_deref(), Ok("1.33"));
        assert_eq!(next("1.9", "1.10").as_deref(), Ok("1.10"));
        for (from, to, says) in
            [("1.34", "1.33", "cannot go back"), ("1.33", "latest", "no version"), ("1.33", "2.0", "no version")]
        {
            assert!(next(from, to).unwrap_err().contains(says), "{from} {to}");
        }
    }

    #[test]
    fn a_session_is_its_role() {
        let session = Principal::of("arn:aws:sts::111122223333:assumed-role/deployer/me@example.com");
        assert!(session.is("arn:aws:iam::111122223333:role/some/path/deployer"));
        assert!(!session.is("arn:aws:iam::111122223333:user/deployer"));
        let user = Principal::of("arn:aws:iam::111122223333:user/me");
        assert!(user.is("arn:aws:iam::111122223333:user/me"));
        assert!(!user.is("arn:aws:iam::111122223333:role/me"));
    }
}
