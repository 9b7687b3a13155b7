//! Sites in clusters: their settings in an environment (`sites[].cluster`), and what all of their components have in
//! common.
//!
//! The settings are those of a runtime: every provider whose programs run as pods reads the same ones.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::ComponentName;
use crate::settings::{NodeSize, Spot, Strategy};
use crate::units::{Bytes, Cores, Span};
use crate::words;

/// A site in a cluster, as its components share it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSite {
    /// The namespace of its objects.
    pub namespace: String,
    /// Its settings, with the image of the release.
    pub settings: ClusterAccess,
    /// The component that the image of the servers is pushed by; `None` if it is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_from: Option<ComponentName>,
    /// The account at the registry that nodes pull its images with; `None` pulls with the credentials of the nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryAccount>,
    /// How a release replaces the previous one.
    pub rollout: Strategy,
    /// The Secret with the TLS certificate and key, if it exists already; otherwise one is created.
    pub certificate: Option<String>,
    /// The PostgreSQL beside the servers, if there is one.
    pub postgres: Option<OwnPostgres>,
    /// Whether the autoscaler reads request metrics from the service's own adapter.
    pub adapter: bool,
    /// Whether the site replicates control data. Its site agent and its inter-site relay then run outside of the cluster.
    pub replicates: bool,
    /// Whether images need a digest.
    pub pinned: bool,
    /// The minimum number of nodes; fewer are a preflight warning.
    pub min_nodes: u32,
    /// The same of the phase.
    pub phase_nodes: u32,
    /// The maximum number of nodes, if set.
    pub max_nodes: Option<u32>,
    /// The load balancer that the cluster's cloud creates for the service, where its provider knows the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancer: Option<Balancer>,
    /// The GPUs of the servers; `None` computes on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<ClusterGpus>,
    /// Whether the cluster exists already, so that its provider changes nothing about it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// The nodes, where the cluster's provider creates them. Pods start after them: nodes may take longer than pods may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<ClusterNodes>,
    /// What its nodes without GPU are chosen by, where the cluster's provider creates them.
    #[serde(default, skip_serializing_if = "NodeChoice::is_usual")]
    pub node_choice: NodeChoice,
    /// How the servers' pods sign in to buckets, where the cluster's provider gives them an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket_identity: Option<BucketIdentity>,
    /// What the cloud decides about a cache that it runs.
    #[serde(default, skip_serializing_if = "CloudCache::is_usual")]
    pub cache: CloudCache,
    /// The autoscaler of nodes, where it is one of the site's objects; otherwise the cluster has one, or its nodes are fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_autoscaler: Option<NodeAutoscaler>,
}

impl ClusterSite {
    /// A site in a namespace, with nothing else set: one node at least, and rolling releases.
    pub fn of(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            settings: ClusterAccess::default(),
            image_from: None,
            registry: None,
            rollout: Strategy::Rolling,
            certificate: None,
            postgres: None,
            adapter: false,
            replicates: false,
            pinned: false,
            min_nodes: 1,
            phase_nodes: 1,
            max_nodes: None,
            balancer: None,
            gpu: None,
            existing: false,
            nodes: None,
            node_choice: NodeChoice::default(),
            bucket_identity: None,
            cache: CloudCache::default(),
            node_autoscaler: None,
        }
    }
}

/// See [`ClusterSite::cache`]. The outputs are those of its part [`CACHE_PART`](crate::component::CACHE_PART).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudCache {
    /// The port of its address; `None` is that of Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether the cloud generates its password: the output `login` is a reference to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_login: bool,
    /// Whether its certificate is of an authority of its own: the output `ca_pem`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_authority: bool,
}

impl CloudCache {
    /// Whether the cloud decides nothing.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// The password of a registry among the secrets of a site.
pub const REGISTRY_PASSWORD: &str = "registry-password";

/// An account at a registry of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAccount {
    /// The registry as images name it, or a part of it: `registry.example.com/team`.
    pub address: String,
    /// The name of the user.
    pub user: String,
    /// The component with its [`REGISTRY_PASSWORD`].
    pub secrets: ComponentName,
}

/// Whether an image is in a registry, or in a part of it. As for kubelets, an image without a host is on Docker Hub.
pub fn is_in_registry(image: &str, address: &str) -> bool {
    let image = match image.split_once('/') {
        Some(("index.docker.io", name)) => format!("docker.io/{name}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    };
    image.strip_prefix(address).is_some_and(|rest| rest.starts_with('/'))
}

/// What nodes without GPU are chosen by; with nothing set, the provider's smallest size that a pod fits on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeChoice {
    /// Their size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<NodeSize>,
    /// Their machine type by the provider's name, in place of that of a size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// What a pod of the servers requests; `None` where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Capacity>,
}

impl NodeChoice {
    /// Whether nothing is set or known.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// CPU and memory: what a pod requests, or what a node has for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// CPU cores.
    pub cpu: Cores,
    /// Memory.
    pub memory: Bytes,
}

impl Capacity {
    /// Whether a node with this capacity can run a pod with these requests.
    pub fn holds(&self, pod: &Self) -> bool {
        self.cpu >= pod.cpu && self.memory >= pod.memory
    }

    /// What is left without another one; zero where it is larger.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self {
            cpu: Cores(self.cpu.0.saturating_sub(other.cpu.0)),
            memory: Bytes(self.memory.0.saturating_sub(other.memory.0)),
        }
    }
}

/// As quantities of Kubernetes: `2100m CPU and 4160Mi memory`.
impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU and {}Mi memory", self.cpu, self.memory.0 >> 20)
    }
}

/// The parts of a cluster's component that are its nodes and their disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNodes {
    /// Those of all pods.
    pub general: String,
    /// Those with GPUs, if there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// The part that creates and deletes volumes, if it is one of its own: what has volumes is removed before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<String>,
}

/// The service account of the servers' pods where they fetch models of buckets.
pub const MODELS_ACCOUNT: &str = "textnlp-models";

/// How the container that fetches models signs in to buckets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketIdentity {
    /// The scheme of the buckets that it opens, such as `s3`.
    pub scheme: String,
    /// The address of the site's own bucket, with `/` at its end.
    pub own: String,
    /// The variables of the container: texts, or references to outputs.
    pub variables: BTreeMap<String, serde_json::Value>,
    /// The token of the pods' service account that it signs in with, where it needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<IdentityToken>,
    /// The services on each node that give credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<SocketAddr>,
    /// The part of the model store that gives the service account its rights. Pods start after it.
    pub part: String,
    /// The annotation of pods that names the containers into which the cloud puts no credentials of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_annotation: Option<String>,
}

/// Cluster Autoscaler, which adds nodes for pods that wait and removes idle ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAutoscaler {
    /// Its image.
    pub image: String,
    /// The cloud, as its flag `--cloud-provider` names it.
    pub provider: String,
    /// The groups of nodes, as its flag `--node-group-auto-discovery` finds them.
    pub discovery: String,
    /// The variables of its container.
    pub variables: BTreeMap<String, String>,
    /// The part of the cluster that gives its service account its rights in the cloud. It starts after.
    pub part: String,
}

impl NodeAutoscaler {
    /// The namespace of its objects.
    pub const NAMESPACE: &'static str = "kube-system";

    /// The name of its objects and of its service account, for the site in a namespace.
    pub fn name(namespace: &str) -> String {
        format!("{namespace}-node-autoscaler")
    }
}

/// A token of a service account, which the kubelet renews.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityToken {
    /// The audience: the service that accepts it.
    pub audience: String,
    /// Its folder in the container.
    pub folder: String,
    /// Its file there.
    pub file: String,
    /// Its lifetime.
    pub seconds: u32,
}

/// The GPUs of a cluster, of which each pod of the servers has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterGpus {
    /// How many there are at most.
    pub count: u32,
    /// Whether they are machines of an existing cluster, whose operator has set them up.
    pub existing: bool,
    /// The labels of their nodes, where the cloud's provider creates them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The taints of their nodes besides [`GPU`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Whether NVIDIA's device plugin is one of the site's objects; otherwise the cluster has it.
    pub device_plugin: bool,
}

/// The resource that NVIDIA's device plugin offers, and the taint of nodes with GPUs: only pods that ask for one run there.
pub const GPU: &str = "nvidia.com/gpu";
/// How the resources begin that NVIDIA's device plugin offers.
pub const GPU_RESOURCES: &str = "nvidia.com/";
/// The label of the nodes of a pool that a cloud's provider creates.
pub const POOL: &str = "textnlp/pool";
/// The value of [`POOL`] where the nodes have GPUs.
pub const GPU_POOL: &str = "gpu";

impl ClusterGpus {
    /// The replicas for which there are GPUs beside the new pods of a rollout, which has pods of `share` percent besides the replicas.
    pub fn replicas(&self, rollout: Strategy, share: u32) -> u32 {
        match rollout {
            // Pods are replaced one by one, each after its GPU is free.
            Strategy::Rolling => self.count,
            Strategy::Canary => {
                let fits = |replicas: &u32| {
                    let new = (u64::from(*replicas) * u64::from(share)).div_ceil(100).max(1);
                    u64::from(*replicas) + new <= u64::from(self.count)
                };
                (0..=self.count).rev().find(fits).unwrap_or(0)
            }
            Strategy::BlueGreen => self.count / 2,
        }
    }
}

/// The load balancer of a Service of type `LoadBalancer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancer {
    /// What the cloud's controllers read on the Service.
    pub annotations: BTreeMap<String, serde_json::Value>,
    /// Whether it keeps the addresses of clients: nodes then answer only with pods of their own (`externalTrafficPolicy: Local`).
    pub keeps_addresses: bool,
    /// Seconds until it stops sending new connections to a node whose last pod is being terminated.
    pub notices_after_seconds: u32,
}

/// A PostgreSQL that the cluster runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnPostgres {
    /// Its major version.
    pub version: u32,
    /// The name of its database.
    pub database: String,
    /// The disk of each instance, in bytes.
    pub disk_bytes: u64,
    /// The disk for backups, in bytes.
    pub backup_bytes: u64,
}

/// Access to the cluster of a site and its workloads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterAccess {
    /// The kubeconfig file, `~` is your home directory; if unset, `KUBECONFIG`, else `~/.kube/config`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<String>,
    /// The kubeconfig context; if unset, the current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// The server image that `bundle create` packs, in a registry that the cluster can reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The PostgreSQL image of a database in the cluster and of backups, if not the built-in one of `database.version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_image: Option<String>,
    /// The address that clients use, if it is not `traffic.domain`: an ingress, a load balancer or a port-forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether that address belongs to the cluster's load balancer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub load_balancer: bool,
    /// The address of service `textnlp-api-ready` for failover between sites, which clients must not reach; if unset, `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_address: Option<String>,
    /// Destinations of pods in addition to those that the settings imply; with `network.policies`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
    /// The addresses and networks of the API server, to which pods that use it are limited; if unset, every address; with `network.policies`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_server: Vec<String>,
    /// Whether it is an OpenShift cluster, which assigns users to pods; `ingress.kind: route` implies it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub openshift: bool,
    /// The ingress for clients of `traffic.domain`, in place of a load balancer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<ClusterIngress>,
    /// A scheduled job that works on the data of the service; if unset, the hourly one of `server.analytics`, where that is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub analytics: Option<Analytics>,
    /// A file with SAML settings in the format of python3-saml, for the sign-on proxy in front of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saml: Option<String>,
    /// How pods get their models.
    #[serde(skip_serializing_if = "ClusterModels::is_usual")]
    pub models: ClusterModels,
    /// Resource requests and limits of the server in each pod; if unset, computed from the size of the models as in `model fit`.
    #[serde(skip_serializing_if = "PodResources::is_computed")]
    pub resources: PodResources,
    /// The node selector of the servers and their jobs; if unset, every node.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The tolerations of the servers and their jobs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// The RuntimeClass of the servers' pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_class: Option<String>,
    /// The PriorityClass of the servers' pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class: Option<String>,
    /// The resource that each server pod has one of: `nvidia.com/mig-1g.10gb` for slices of MIG, `nvidia.com/gpu.shared` for shared GPUs; if unset, `nvidia.com/gpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_resource: Option<String>,
}

/// Networks with the metadata services of clouds, which give the credentials of a machine to any program on it. Most use
/// link-local addresses; the others are those of Azure, Alibaba Cloud, Oracle Cloud, AWS and Google Cloud.
pub const METADATA_SERVICES: [&str; 7] = [
    "169.254.0.0/16",
    "168.63.129.16/32",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "fe80::/10",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
];

/// A destination of pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// An address, or a network such as `10.20.0.0/16`.
    pub to: String,
    /// The port there. For a service of the cluster: that of its pods.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The transport protocol.
    #[serde(default = "EgressRule::usual")]
    pub protocol: Transport,
}

impl EgressRule {
    fn usual() -> Transport {
        Transport::Tcp
    }
}

words! {
    /// A transport protocol.
    pub enum Transport {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

/// The entry point for clients outside the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterIngress {
    /// The kind of object.
    pub kind: IngressKind,
    /// The class of an ingress-nginx controller, such as `nginx`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// The ClusterIssuer of cert-manager that signs the certificate for clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The existing Secret with that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_secret: Option<String>,
    /// The Gateway for clients, as `NAMESPACE/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The listener of the Gateway; if unset, every listener that accepts `traffic.domain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
    /// The port of that listener, if clients use another port than 443.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// The kind of object that routes clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IngressKind {
    /// An Ingress for ingress-nginx, which terminates TLS of clients and uses TLS to the pods.
    #[default]
    Ingress,
    /// A Route of OpenShift, which passes TLS through. Pods run as the user that OpenShift assigns.
    Route,
    /// An HTTPRoute of the Gateway API: the Gateway terminates TLS of clients and verifies the certificate of the pods.
    Gateway,
}

impl ClusterAccess {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The resource that each pod of servers with GPUs has one of.
    pub fn gpu_resource(&self) -> &str {
        self.gpu_resource.as_deref().unwrap_or(GPU)
    }

    /// The host of the address, if it has one.
    pub fn host(&self) -> Option<String> {
        let rest = self.address.as_deref()?.strip_prefix("https://")?;
        let authority = rest.split('/').next()?;
        let host = match authority.strip_prefix('[') {
            Some(v6) => v6.split(']').next()?,
            None => authority.split(':').next()?,
        };
        (!host.is_empty()).then(|| host.to_owned())
    }

    /// The host and port of the address of health checks.
    pub fn health(&self) -> Option<(String, u16)> {
        let access = Self { address: self.health_address.clone(), ..Self::default() };
        Some((access.host()?, access.port()?))
    }

    /// The port of the address, if there is one.
    pub fn port(&self) -> Option<u16> {
        let host = self.host()?;
        let rest = self.address.as_deref()?.strip_prefix("https://")?.trim_start_matches('[');
        match rest.strip_prefix(host.as_str())?.trim_start_matches(']').trim_end_matches('/').strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0),
            None => Some(443),
        }
    }
}

/// A scheduled job that works on the data of the service: the usage analytics of the servers, or your own image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Analytics {
    /// Your image, in a registry that the cluster can reach; if unset, the server program analyzes the usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The schedule as a cron expression, in UTC.
    pub schedule: String,
    /// The command that your image runs; if unset, that of the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The time limit of a run.
    pub deadline: Span,
    /// The memory of a run.
    pub memory: Bytes,
    /// Whether it runs on spot machines, which the provider can reclaim.
    pub spot: Spot,
}

impl Default for Analytics {
    fn default() -> Self {
        Self {
            image: None,
            schedule: "0 * * * *".to_owned(),
            command: Vec::new(),
            deadline: Span::seconds(50 * 60),
            memory: Bytes(1 << 30),
            spot: Spot::Never,
        }
    }
}

words! {
    /// How pods get their models.
    pub enum ModelVolume {
        /// Each pod downloads them.
        Pod = "pod",
        /// From one volume that all pods share.
        Claim = "claim",
        /// From an image that nodes cache.
        Image = "image",
        /// From a folder of each node: refused, because the restricted profile allows no `hostPath` volume.
        Node = "node",
    }
}

/// How pods get their models. Each pod verifies them by digest before it serves them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterModels {
    /// The kind of volume.
    pub kind: ModelVolume,
    /// The size of the shared volume; if unset, `storage.model_cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// The storage class of the shared volume, with access mode ReadWriteMany; if unset, the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// The image with the models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Default for ClusterModels {
    fn default() -> Self {
        Self { kind: ModelVolume::Pod, size: None, storage_class: None, reference: None }
    }
}

impl ClusterModels {
    /// Whether nothing is set.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Requests and limits of the server in each pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PodResources {
    /// Resource requests, which the scheduler reserves.
    #[serde(skip_serializing_if = "ResourceAmounts::is_empty")]
    pub requests: ResourceAmounts,
    /// Resource limits.
    #[serde(skip_serializing_if = "ResourceAmounts::is_empty")]
    pub limits: ResourceAmounts,
}

impl PodResources {
    /// Whether nothing is set.
    pub fn is_computed(&self) -> bool {
        *self == Self::default()
    }
}

/// Amounts of CPU and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceAmounts {
    /// CPU cores: `2`, `500m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cores>,
    /// Memory: `4GiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
}

impl ResourceAmounts {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

words! {
    /// How a toleration matches a taint.
    pub enum TolerationOperator {
        /// The value must be equal.
        Equal = "Equal",
        /// Any value matches.
        Exists = "Exists",
    }
}

words! {
    /// The effect of a taint on pods that do not tolerate it.
    pub enum TaintEffect {
        /// Pods are not scheduled.
        NoSchedule = "NoSchedule",
        /// Pods are scheduled only if no other node fits.
        PreferNoSchedule = "PreferNoSchedule",
        /// Running pods are evicted.
        NoExecute = "NoExecute",
    }
}

/// A taint of nodes that pods tolerate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Toleration {
    /// Its key; if unset with `operator: Exists`, every taint matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How the value is compared.
    pub operator: TolerationOperator,
    /// Its value, with `operator: Equal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Its effect; if unset, every effect matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

impl Default for Toleration {
    fn default() -> Self {
        Self { key: None, operator: TolerationOperator::Equal, value: None, effect: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_without_a_host_are_in_the_registry_of_docker_hub() {
        for image in ["team/textnlp:1", "docker.io/team/textnlp:1", "index.docker.io/team/textnlp:1"] {
            assert!(is_in_registry(image, "docker.io") && is_in_registry(image, "docker.io/team"), "{image}");
            assert!(!is_in_registry(image, "docker.io/te") && !is_in_registry(image, "team"), "{image}");
        }
        assert!(is_in_registry("textnlp:1@sha256:ab", "docker.io/library"));
        for host in ["r.example.com", "r:5000", "localhost"] {
            let image = format!("{host}/team/textnlp:1");
            assert!(is_in_registry(&image, host) && !is_in_registry(&image, "docker.io"), "{image}");
        }
    }
}
