//! Elastic Kubernetes Service.

mod access;
mod addon;
mod cluster;
mod images;
mod node_group;
mod pod_identity;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use addon::{Addon, VERSIONS as ADDON_VERSIONS};
pub use cluster::Cluster;
pub(crate) use images::image_names;
pub use node_group::NodeGroup;

use crate::aws::ec2::Ec2;
use crate::aws::iam::{Iam, Role, trusts};
use crate::{Behaviour, Call, Fault, Quota, Service, Source, Stages, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "eks",
    model: "eks",
    operations: &[
        ("AssociateAccessPolicy", access::associate),
        ("CreateAccessEntry", access::create),
        ("CreateAddon", addon::create),
        ("CreateCluster", cluster::create),
        ("CreateNodegroup", node_group::create),
        ("CreatePodIdentityAssociation", pod_identity::create),
        ("DeleteAccessEntry", access::delete),
        ("DeleteAddon", addon::delete),
        ("DeleteCluster", cluster::delete),
        ("DeleteNodegroup", node_group::delete),
        ("DeletePodIdentityAssociation", pod_identity::delete),
        ("DescribeAccessEntry", access::describe),
        ("DescribeAddon", addon::describe),
        ("DescribeAddonVersions", addon::versions),
        ("DescribeCluster", cluster::describe),
        ("DescribeNodegroup", node_group::describe),
        ("DescribePodIdentityAssociation", pod_identity::describe),
        ("DescribeUpdate", describe_update),
        ("DisassociateAccessPolicy", access::disassociate),
        ("ListAccessEntries", access::list),
        ("ListAddons", addon::list),
        ("ListAssociatedAccessPolicies", access::policies),
        ("ListClusters", cluster::list),
        ("ListNodegroups", node_group::list),
        ("ListPodIdentityAssociations", pod_identity::list),
        ("TagResource", tag),
        ("UntagResource", untag),
        ("UpdateAccessEntry", access::update),
        ("UpdateAddon", addon::update),
        ("UpdateClusterConfig", cluster::update_config),
        ("UpdateClusterVersion", cluster::update_version),
        ("UpdateNodegroupConfig", node_group::update_config),
        ("UpdateNodegroupVersion", node_group::update_version),
        ("UpdatePodIdentityAssociation", pod_identity::update),
    ],
    quotas: &[CLUSTERS, NODE_GROUPS],
    ledger: LEDGER,
};

const fn quota(code: &'static str, name: &'static str, value: f64) -> Quota {
    Quota { service: "eks", code, name, value, adjustable: true }
}

const CLUSTERS: Quota = quota("L-1194D53C", "Clusters", 100.0);
const NODE_GROUPS: Quota = quota("L-6D54EA21", "Managed node groups per cluster", 30.0);

const fn documented(what: &'static str, address: &'static str) -> Behaviour {
    Behaviour { service: "eks", what, source: Source::Documentation(address) }
}

const fn left_out(what: &'static str, why: &'static str) -> Behaviour {
    Behaviour { service: "eks", what, source: Source::LeftOut(why) }
}

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "eks",
        what: "the log group of a cluster that wrote logs until its end is there again a minute later, without tags",
        source: Source::Report("terraform-aws-modules/terraform-aws-eks#2763"),
    },
    documented(
        "a cluster is CREATING for about ten minutes and has no endpoint meanwhile",
        "https://docs.aws.amazon.com/eks/latest/userguide/create-cluster.html",
    ),
    documented(
        "a cluster needs subnets in two zones at least",
        "https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html",
    ),
    documented(
        "an upgrade goes by one minor version, and never back",
        "https://docs.aws.amazon.com/eks/latest/userguide/update-cluster.html",
    ),
    Behaviour {
        service: "eks",
        what: "an upgrade is refused if nodes would be more than three minor versions older than the control plane",
        source: Source::Report("aws/aws-eks-best-practices#476"),
    },
    Behaviour {
        service: "eks",
        what: "it is refused with InvalidParameterException, in these words",
        source: Source::Report("hashicorp/terraform-provider-aws#19478"),
    },
    documented(
        "a call changes one kind of setting, and ResourceInUseException refuses it while the cluster is UPDATING",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_UpdateClusterConfig.html",
    ),
    documented(
        "a cluster with node groups is not deleted: ResourceInUseException; nor one with deletion protection: \
         InvalidRequestException",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_DeleteCluster.html",
    ),
    documented(
        "a repeated client request token gives the first object",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateCluster.html",
    ),
    documented(
        "who creates a cluster is its administrator unless the request says otherwise",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateAccessConfigRequest.html",
    ),
    documented(
        "access entries need an authentication mode with the API; a managed node group makes the entry of its role",
        "https://docs.aws.amazon.com/eks/latest/userguide/creating-access-entries.html",
    ),
    Behaviour {
        service: "eks",
        what: "the first tokens of a new access entry are refused: it takes effect late",
        source: Source::Report("gravitational/teleport#37958"),
    },
    left_out(
        "the name of a new cluster's endpoint does not resolve at first (terraform-aws-modules/terraform-aws-eks#1064)",
        "the endpoint of a test is an address; the tests of `Through` in providers/contract have names that are not found",
    ),
    Behaviour {
        service: "eks",
        what: "nodes with NVIDIA's image of Amazon Linux offer no GPU without a device plugin",
        source: Source::Report("eksctl-io/eksctl#8199"),
    },
    Behaviour {
        service: "eks",
        what: "nodes without a default route need endpoints, that of eks-auth too: else NodeCreationFailure",
        source: Source::Documentation("https://docs.aws.amazon.com/eks/latest/userguide/private-clusters.html"),
    },
    left_out(
        "nodes join without any route, unless a test sets `needs_routes`",
        "most tests of clusters have no network that works; a plan creates one that does, or checks an existing one",
    ),
    left_out(
        "pods stay Pending until a node has joined",
        "the Kubernetes of a test has a node from the start; a test compares the order of the plan",
    ),
    left_out(
        "with a hop limit of 1 the disk driver counts attached volumes by Kubernetes (kubernetes-sigs/aws-ebs-csi-driver#2262)",
        "the simulator attaches no disks, and the guide says what the limit means for them",
    ),
    documented(
        "the codes of a node group's issues, AsgInstanceLaunchFailures and NodeCreationFailure among them",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_Issue.html",
    ),
    documented(
        "nodes without a network add-on, or whose role lacks AmazonEKSWorkerNodePolicy, do not join",
        "https://docs.aws.amazon.com/eks/latest/userguide/troubleshooting.html",
    ),
    documented(
        "a node group is not newer than its cluster, and its numbers satisfy min <= desired <= max",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_NodegroupScalingConfig.html",
    ),
    documented(
        "an update of a node group without a release takes the newest one of the version, and none takes an older one: \
         InvalidParameterException",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_UpdateNodegroupVersion.html",
    ),
    Behaviour {
        service: "eks",
        what: "a release of another version of Kubernetes is refused, in these words",
        source: Source::Report("eksctl-io/eksctl#7976"),
    },
    Behaviour {
        service: "eks",
        what: "an update whose pods are not evicted is Failed with PodEvictionFailure",
        source: Source::Report("aws/containers-roadmap#1282"),
    },
    Behaviour {
        service: "eks",
        what: "a cluster has a default StorageClass only if the configuration of its EBS driver says so",
        source: Source::Report("aws/containers-roadmap#81"),
    },
    Behaviour {
        service: "eks",
        what: "in China the role of nodes trusts ec2.amazonaws.com.cn, and only that counts",
        source: Source::Report("awslabs/cdk-eks-blueprints#558"),
    },
    Behaviour {
        service: "eks",
        what: "where an account demands tags, nodes are not ready unless the network add-on gives them to its interfaces",
        source: Source::Report("aws/amazon-vpc-cni-k8s#1276"),
    },
    Behaviour {
        service: "eks",
        what: "nodes end while they start if the account's default key of EBS has no grant for Auto Scaling",
        source: Source::Report("hashicorp/terraform-provider-aws#39904"),
    },
    documented(
        "CoreDNS and the EBS driver are DEGRADED without nodes: InsufficientNumberOfReplicas",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_AddonIssue.html",
    ),
    documented(
        "a service account has one pod identity association, whose role trusts pods.eks.amazonaws.com",
        "https://docs.aws.amazon.com/eks/latest/userguide/pod-id-association.html",
    ),
    left_out(
        "the words of refusals, except for those that tools are known to look for",
        "callers read the code of a refusal, not its words",
    ),
    left_out("how long changes and deletions take", "a wait of the simulator: callers poll until the state is there"),
    left_out(
        "an image of each version of Kubernetes comes out every 14 days, and EKS has it at once",
        "the days are the test's: it compares ages of images",
    ),
    Behaviour {
        service: "eks",
        what: "a node group whose update failed is ACTIVE, with its old release",
        source: Source::Report("crossplane-contrib/provider-aws#1475"),
    },
    documented(
        "a node group without capacity fails with AsgInstanceLaunchFailures",
        "https://docs.aws.amazon.com/eks/latest/APIReference/API_Issue.html",
    ),
    left_out("it does so after 25 minutes", "a wait of the simulator: callers poll until the state is there"),
    Behaviour {
        service: "eks",
        what: "a client request token with other parameters is refused with InvalidParameterException",
        source: Source::Assumed,
    },
    left_out("which versions of Kubernetes and of add-ons there are", "a plan names a version, or takes the default"),
];

/// The versions of Kubernetes, the default one last but one.
pub const KUBERNETES: [&str; 5] = ["1.31", "1.32", "1.33", "1.34", "1.35"];
const DEFAULT_KUBERNETES: &str = "1.34";

/// What EKS has in a region.
#[derive(Default)]
pub struct Eks {
    /// The clusters by their names.
    pub clusters: BTreeMap<String, Cluster>,
    /// The endpoint and the certificate authority, as PEM, that clusters answer with, if they are not made up: those of a test's
    /// own Kubernetes.
    pub endpoint: Option<(String, String)>,
    /// What fails, once, and with which code and message: `("create", "gpu")`, `("update", …)`, `("delete", …)` of a node group, an
    /// add-on or a cluster by its name.
    pub failures: BTreeMap<(&'static str, String), (String, String)>,
    /// Keys of tags that a policy of the account demands of each network interface.
    pub demanded_tags: BTreeSet<String>,
    /// Whether nodes join only where they reach AWS: by a default route, or by endpoints.
    pub needs_routes: bool,
    /// Whether Auto Scaling has no grant for the account's default key of EBS.
    pub lacks_disk_grant: bool,
    updates: BTreeMap<String, Update>,
}

/// A change in the background.
struct Update {
    cluster: String,
    part: Option<String>,
    kind: &'static str,
    params: Vec<(&'static str, String)>,
    status: Stages,
    error: Option<(String, String)>,
    created: Timestamp,
}

impl Update {
    fn answer(&self, id: &str, now: Timestamp) -> Value {
        let status = self.status.at(now);
        let errors: Vec<Value> = self
            .error
            .iter()
            .filter(|_| status == "Failed")
            .map(|(code, message)| json!({ "errorCode": code, "errorMessage": message, "resourceIds": [] }))
            .collect();
        let params: Vec<Value> =
            self.params.iter().map(|(name, value)| json!({ "type": name, "value": value })).collect();
        json!({
            "id": id,
            "status": status,
            "type": self.kind,
            "params": params,
            "createdAt": timestamp(self.created),
            "errors": errors,
        })
    }
}

fn eks<'a>(world: &'a mut World, call: &Call) -> &'a mut Eks {
    world.state::<Eks>(&call.scope())
}

/// The cluster that an input names.
fn cluster<'a>(world: &'a mut World, call: &Call, member: &str) -> Result<&'a mut Cluster, Fault> {
    let name = call.text(member);
    eks(world, call).clusters.get_mut(name).ok_or_else(|| {
        Fault::new("ResourceNotFoundException", format!("No cluster found for name: {name}.")).with("clusterName", name)
    })
}

/// The same, if it is ACTIVE.
fn active<'a>(world: &'a mut World, call: &Call, member: &str) -> Result<&'a mut Cluster, Fault> {
    let name = call.text(member).to_owned();
    let now = call.now;
    let cluster = cluster(world, call, member)?;
    match cluster.state.at(now) {
        "ACTIVE" => Ok(cluster),
        "UPDATING" => Err(in_use(format!("Cannot update because cluster {name} currently has update in progress"))),
        state => Err(Fault::new("InvalidRequestException", format!("Cluster '{name}' is in {state} status"))),
    }
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("InvalidParameterException", message)
}

fn in_use(message: impl Into<String>) -> Fault {
    Fault::new("ResourceInUseException", message)
}

fn not_found(message: impl Into<String>) -> Fault {
    Fault::new("ResourceNotFoundException", message)
}

fn mismatch() -> Fault {
    invalid("The clientRequestToken was used before with other parameters")
}

fn bad_token() -> Fault {
    invalid("The nextToken is not valid")
}

/// The role of an input, if EKS can see it and `service` may take it by all of the actions.
fn role<'a>(world: &'a World, call: &Call, arn: &str, service: &str, actions: &[&str]) -> Option<&'a Role> {
    let role = world.find::<Iam>(&call.global())?.seen_role(arn, call.now)?;
    let is_trusted = |action: &&str| trusts(&role.trust, action, "Service", |name| name == service).is_some();
    actions.iter().all(is_trusted).then_some(role)
}

fn subnet(world: &World, call: &Call, id: &str) -> Option<(String, String)> {
    let subnet = &world.find::<Ec2>(&call.scope())?.get(id)?.value;
    Some((subnet["VpcId"].as_str()?.to_owned(), subnet["AvailabilityZone"].as_str()?.to_owned()))
}

/// The zones of subnets, and their VPC.
fn zones(world: &World, call: &Call, ids: &[String]) -> Result<(BTreeSet<String>, String), Fault> {
    let (mut zones, mut vpcs) = (BTreeSet::new(), BTreeSet::new());
    for id in ids {
        let Some((vpc, zone)) = subnet(world, call, id) else {
            return Err(invalid(format!("The subnet ID '{id}' does not exist")));
        };
        zones.insert(zone);
        vpcs.insert(vpc);
    }
    match vpcs.pop_first() {
        Some(vpc) if vpcs.is_empty() => Ok((zones, vpc)),
        _ => Err(invalid("Subnets specified must belong to the same VPC")),
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The tags of an input or of an answer, as a map.
fn tags_of(value: &Value) -> Vec<(String, String)> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// Sets the tags of an answer: none are left out.
fn set_tags(world: &World, arn: &str, answer: &mut Value) {
    let tags: Map<String, Value> = world.tags.of(arn).into_iter().map(|(key, value)| (key, json!(value))).collect();
    if !tags.is_empty() {
        answer["tags"] = Value::Object(tags);
    }
}

fn new_tags(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let tags = tags_of(&call.input["tags"]);
    if tags.iter().any(|(key, _)| key.to_lowercase().starts_with("aws:")) {
        return Err(invalid("Tag keys that start with aws: are reserved"));
    }
    Ok(tags)
}

fn tag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("resourceArn");
    if !world.tags.has(arn) {
        return Err(Fault::new("NotFoundException", format!("No resource found with ARN {arn}")));
    }
    world.tags.set(arn, new_tags(call)?, call.visible());
    Ok(json!({}))
}

fn untag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("resourceArn");
    if !world.tags.has(arn) {
        return Err(Fault::new("NotFoundException", format!("No resource found with ARN {arn}")));
    }
    world.tags.remove(arn, call.texts("tagKeys"));
    Ok(json!({}))
}

/// What a change is of, and how long it takes.
struct Change {
    cluster: String,
    /// The node group or add-on; none for the cluster.
    part: Option<String>,
    kind: &'static str,
    params: Vec<(&'static str, String)>,
    takes: Duration,
}

/// Starts a change: `done` is called at its end unless it fails. Gives the answer.
fn start(world: &mut World, call: &Call, change: Change, done: impl FnOnce(&mut Cluster) + Send + 'static) -> Value {
    let Change { cluster, part, kind, params, takes } = change;
    let subject = part.clone().unwrap_or_else(|| cluster.clone());
    let state = eks(world, call);
    let error = state.failures.remove(&("update", subject));
    let last = if error.is_some() { "Failed" } else { "Successful" };
    let update = Update {
        cluster: cluster.clone(),
        part,
        kind,
        params,
        status: call.stages("InProgress", &[(takes, last)]),
        error,
        created: call.now,
    };
    let id = call.random.uuid();
    let answer = json!({ "update": update.answer(&id, call.now) });
    let is_done = update.error.is_none();
    state.updates.insert(id, update);
    let scope = call.scope();
    world.defer(call.due(takes), move |world| {
        if let Some(cluster) = world.state::<Eks>(&scope).clusters.get_mut(&cluster).filter(|_| is_done) {
            done(cluster);
        }
    });
    answer
}

fn describe_update(world: &mut World, call: &Call) -> Result<Value, Fault> {
    cluster(world, call, "name")?;
    let id = call.text("updateId");
    let part = call.str("nodegroupName").or_else(|| call.str("addonName"));
    let found = eks(world, call).updates.get(id);
    let found = found.filter(|update| update.cluster == call.text("name") && update.part.as_deref() == part);
    let update = found.ok_or_else(|| not_found(format!("No update found for ID: {id}")))?;
    Ok(json!({ "update": update.answer(id, call.now) }))
}
