//! The nodes without GPU of a cluster: their machine types by size, and what such a machine has for a pod.

use textnlp_provider::Site;
use textnlp_provider::cluster::Capacity;
use textnlp_provider::settings::NodeSize;
use textnlp_provider::units::{Bytes, Cores};

/// What is kept for the pods that run on every node: network, disks, logs and metrics of the clouds. It was not measured, so that it only
/// chooses among the sizes of new nodes: see [`NodeTable::most`].
const DAEMONS: Capacity = Capacity { cpu: Cores(500), memory: Bytes(512 << 20) };
/// What firmware and kernel are assumed to take of a machine's memory, in thousandths: Karpenter's assumption for AWS and for Azure
/// (`VM_MEMORY_OVERHEAD_PERCENT` in <https://karpenter.sh/docs/reference/settings/>), and above what is seen on each cloud: see `SEEN` in
/// the tests of their tables.
const OVERHEAD: u64 = 75;
/// The memory at which the kubelet evicts pods, which they cannot request: on each of the clouds.
const EVICTION: u64 = 100 << 20;
/// What makes a pod smaller.
const LOWER: &str = "lower `sites[].cluster.resources.requests`, or use a smaller model or fewer bits for its weights";

/// The machine types of a cloud for nodes.
pub struct NodeTable {
    /// The types of each size without GPU, best first; smallest size first, which is the usual one.
    pub sizes: &'static [(NodeSize, &'static [&'static str])],
    /// All types without GPU that nodes can have.
    pub known: fn() -> Vec<NodeType>,
    /// What the kubelet of a machine keeps from pods.
    pub reserved: fn(&NodeType) -> Capacity,
    /// The least that it keeps, in any version of the cloud.
    pub least_reserved: fn(&NodeType) -> Capacity,
}

/// A machine type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeType {
    /// Its name.
    pub name: String,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u64,
}

/// The nodes without GPU of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// Their machine types, best first.
    pub types: Vec<String>,
    /// What distinguishes them from the usual ones: other machines are another pool, which is there before the old one goes.
    suffix: Option<String>,
}

impl Nodes {
    /// A name of their pool, which is `usual` for the usual machines.
    pub fn named(&self, usual: &str) -> String {
        match &self.suffix {
            Some(suffix) => format!("{usual}-{suffix}"),
            None => usual.to_owned(),
        }
    }
}

/// Nodes that cannot be as an environment says: the setting, the cause and the fix.
pub type WrongNodes = (&'static str, String, String);

impl NodeType {
    /// Its memory, in bytes.
    pub fn memory(&self) -> u64 {
        self.memory_mib << 20
    }

    /// Its CPUs, with this memory in bytes.
    fn with_memory(&self, memory: u64) -> Capacity {
        Capacity { cpu: Cores(self.vcpus.saturating_mul(1000)), memory: Bytes(memory) }
    }
}

impl NodeTable {
    /// What is left on a new node for a pod beside the pods of every node, by assumptions that leave some of it unused.
    pub fn room(&self, machine: &NodeType) -> Capacity {
        let memory = machine.memory();
        let visible = memory - memory / 1000 * OVERHEAD;
        machine.with_memory(visible.saturating_sub(EVICTION)).without((self.reserved)(machine)).without(DAEMONS)
    }

    /// The most that a node has for pods: no pod above it ever ran on one. What is refused, and nodes that are replaced with no setting
    /// changed, are measured by it.
    pub fn most(&self, machine: &NodeType) -> Capacity {
        machine.with_memory(machine.memory().saturating_sub(EVICTION)).without((self.least_reserved)(machine))
    }

    /// The nodes that a site gets: those that its environment names, else the usual ones unless a pod of its servers cannot run there, else
    /// the smallest size that has room for it. Pods with GPUs run elsewhere. Pure.
    pub fn of_site(&self, site: &Site) -> Result<Nodes, WrongNodes> {
        let known = (self.known)();
        let machine = |name: &str| known.iter().find(|one| one.name == name);
        let cluster = site.cluster.as_deref();
        let choice = cluster.map(|cluster| cluster.node_choice.clone()).unwrap_or_default();
        let pod = choice.pod.filter(|_| cluster.is_some_and(|cluster| cluster.gpu.is_none()));
        let may_run =
            |name: &str| pod.is_none_or(|pod| machine(name).is_some_and(|machine| self.most(machine).holds(&pod)));
        let has_room =
            |name: &str| pod.is_none_or(|pod| machine(name).is_some_and(|machine| self.room(machine).holds(&pod)));
        let usual = self.sizes.first().filter(|(_, types)| types.iter().all(|name| may_run(name)));
        let roomy = self.sizes.iter().find(|(_, types)| types.iter().all(|name| has_room(name)));
        let fix = || match (roomy, pod.and_then(|pod| self.smallest(&known, &pod))) {
            (Some((size, _)), _) => format!("write `cluster.node_size: {size}`, or {LOWER}"),
            (None, Some(name)) => format!("write `sites[].instance_type: {name}`, or {LOWER}"),
            (None, None) => LOWER.to_owned(),
        };
        let too_small = |name: &str| {
            let (pod, most) = (pod?, self.most(machine(name)?));
            Some(shortage(&pod, name, &most)).filter(|_| !most.holds(&pod))
        };
        if let Some(name) = &choice.machine {
            if machine(name).is_none() {
                let names: Vec<&str> = known.iter().map(|one| one.name.as_str()).collect();
                let cause = format!("`{name}` is no known machine type without GPU of this provider");
                return Err(("instance_type", cause, format!("use one of `{}`", names.join("`, `"))));
            }
            if let Some(cause) = too_small(name) {
                return Err(("instance_type", cause, fix()));
            }
            // The machine of a size is that size, however it is written.
            let sized = self.sizes.iter().find(|(_, types)| types.len() == 1 && types[0] == name.as_str());
            return Ok(sized.map_or_else(
                || Nodes { types: vec![name.clone()], suffix: Some(slug(name)) },
                |(size, _)| self.of_size(*size),
            ));
        }
        let size = match choice.size {
            Some(size) => size,
            None => usual.or(roomy).or(self.sizes.last()).map_or(NodeSize::Small, |(size, _)| *size),
        };
        let nodes = self.of_size(size);
        let cause = nodes.types.iter().find_map(|name| too_small(name));
        match cause {
            Some(cause) => Err(("cluster.node_size", cause, fix())),
            None => Ok(nodes),
        }
    }

    /// The nodes that a site gets, also where the cluster's own expansion refuses them.
    pub fn of_any_site(&self, site: &Site) -> Nodes {
        self.of_site(site).unwrap_or_else(|_| self.of_size(NodeSize::Small))
    }

    /// The nodes of a size.
    pub fn of_size(&self, size: NodeSize) -> Nodes {
        let types = self.sizes.iter().find(|(one, _)| *one == size).map(|(_, types)| *types).unwrap_or_default();
        let is_usual = self.sizes.first().is_some_and(|(one, _)| *one == size);
        Nodes {
            types: types.iter().map(ToString::to_string).collect(),
            suffix: (!is_usual).then(|| size.as_str().to_owned()),
        }
    }

    /// What distinguishes the pools of all nodes that a site can get.
    pub fn suffixes(&self) -> Vec<String> {
        let of_sizes = self.sizes.iter().filter_map(|(size, _)| self.of_size(*size).suffix);
        of_sizes.chain((self.known)().iter().map(|machine| slug(&machine.name))).collect()
    }

    /// Machines with GPUs on none of which a pod of the servers can run: the cause and the fix. `machines` are those that are tried for the
    /// pool, `known` those that it can have instead. Pure.
    pub fn small_gpus(&self, site: &Site, machines: &[NodeType], known: &[NodeType]) -> Option<(String, String)> {
        let pod = site.cluster.as_deref()?.node_choice.pod?;
        let first = machines.first()?;
        if machines.iter().any(|machine| self.most(machine).holds(&pod)) {
            return None;
        }
        let fix = match self.smallest(known, &pod) {
            Some(name) => format!("write `gpu.machines: [{name}]`, or {LOWER}"),
            None => LOWER.to_owned(),
        };
        Some((shortage(&pod, &first.name, &self.most(first)), fix))
    }

    /// The smallest of these machines on which a pod fits.
    fn smallest<'k>(&self, known: &'k [NodeType], pod: &Capacity) -> Option<&'k str> {
        let fits = known.iter().filter(|machine| self.room(machine).holds(pod));
        fits.min_by_key(|machine| (machine.vcpus, machine.memory_mib)).map(|machine| machine.name.as_str())
    }
}

fn shortage(pod: &Capacity, machine: &str, most: &Capacity) -> String {
    format!("a pod of the servers requests {pod}, and a node with `{machine}` has at most {most} for pods")
}

/// What the kubelets of EKS and of GKE keep of the CPU, in thousandths of a core: 6 % of the first core, 1 % of the second one, 0.5 % of
/// the next two and 0.25 % of all others
/// (<https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes#cpu_reservations>,
/// <https://github.com/awslabs/amazon-eks-ami/blob/main/nodeadm/internal/kubelet/config.go>).
pub fn reserved_cpu(vcpus: u32) -> Cores {
    let second = if vcpus > 1 { 10 } else { 0 };
    let next = vcpus.saturating_sub(2).min(2) * 5;
    let others = vcpus.saturating_sub(4).saturating_mul(5).div_ceil(2);
    Cores(60 + second + next + others)
}

/// The name of a machine type as a part of the name of a pool.
fn slug(machine: &str) -> String {
    let plain: String =
        machine.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    plain.strip_prefix("standard-").unwrap_or(&plain).to_owned()
}

#[cfg(test)]
mod tests {
    use textnlp_provider::cluster::{ClusterGpus, ClusterSite, NodeChoice};
    use textnlp_provider::settings::Runtime;

    use super::*;

    fn known() -> Vec<NodeType> {
        let of = |name: &str, vcpus, gib: u64| NodeType { name: name.to_owned(), vcpus, memory_mib: gib << 10 };
        vec![of("a.4", 4, 16), of("b.4", 4, 16), of("a.8", 8, 32), of("Standard_A16", 16, 64), of("a.64", 64, 256)]
    }

    static TABLE: NodeTable = NodeTable {
        sizes: &[
            (NodeSize::Small, &["a.4", "b.4"]),
            (NodeSize::Medium, &["a.8"]),
            (NodeSize::Large, &["Standard_A16"]),
        ],
        known,
        reserved: |one| Capacity { cpu: reserved_cpu(one.vcpus), memory: Bytes(1 << 30) },
        least_reserved: |one| Capacity { cpu: reserved_cpu(one.vcpus), memory: Bytes(1 << 29) },
    };

    fn site(size: Option<NodeSize>, machine: Option<&str>, pod: (u32, u64)) -> Site {
        let pod = Some(Capacity { cpu: Cores(pod.0), memory: Bytes(pod.1 << 30) });
        let node_choice = NodeChoice { size, machine: machine.map(str::to_owned), pod };
        Site {
            environment: "pilot".parse().unwrap(),
            name: "main".parse().unwrap(),
            account: String::new(),
            region: "north".to_owned(),
            runtime: Runtime::Kubernetes,
            role: None,
            tags: Default::default(),
            protect_data: false,
            cluster: Some(Box::new(ClusterSite { node_choice, ..ClusterSite::of("textnlp") })),
            subnets: Vec::new(),
            maintenance: None,
        }
    }

    #[test]
    fn nodes_are_the_smallest_size_that_a_pod_fits_on() {
        let pool = |pod| TABLE.of_site(&site(None, None, pod)).map(|nodes| (nodes.named("system"), nodes.types));
        let of = |name: &str, types: &[&str]| {
            Ok((name.to_owned(), types.iter().map(ToString::to_string).collect::<Vec<String>>()))
        };
        assert_eq!(pool((2100, 4)), of("system", &["a.4", "b.4"]), "what fits stays as it was");
        // Sites that run a pod without room by the assumptions keep their nodes: it is not certain that it cannot run.
        assert_eq!(pool((3500, 4)), of("system", &["a.4", "b.4"]));
        assert_eq!(pool((3920, 4)), of("system", &["a.4", "b.4"]), "4000 - 80");
        assert_eq!(pool((3921, 4)), of("system-medium", &["a.8"]));
        assert_eq!(pool((2100, 15)), of("system", &["a.4", "b.4"]), "16384 - 100 - 512");
        assert_eq!(pool((2100, 16)), of("system-medium", &["a.8"]));
        // Nodes that are new anyway have room by the assumptions.
        assert_eq!(pool((7411, 16)), of("system-large", &["Standard_A16"]), "8000 - 90 - 500");
        assert_eq!(pool((2100, 40)), of("system-large", &["Standard_A16"]));
        assert_eq!(
            pool((15_800, 40)),
            of("system-large", &["Standard_A16"]),
            "nothing larger is chosen, and it may run"
        );
        let (field, cause, fix) = pool((17_000, 40)).unwrap_err();
        assert_eq!(field, "cluster.node_size");
        assert!(
            cause.contains("17 CPU and 40960Mi memory") && cause.contains("`Standard_A16` has at most 15890m"),
            "{cause}"
        );
        assert!(fix.contains("`sites[].instance_type: a.64`"), "{fix}");
        let (.., fix) = pool((80_000, 40)).unwrap_err();
        assert!(fix.starts_with("lower "), "{fix}");
    }

    #[test]
    fn named_nodes_are_refused_where_a_pod_does_not_fit() {
        let of = |size, machine, pod| TABLE.of_site(&site(size, machine, pod));
        let large = of(Some(NodeSize::Large), None, (2100, 4)).unwrap();
        assert_eq!((large.named("system-nodes").as_str(), large.types.len()), ("system-nodes-large", 1));
        let (field, cause, fix) = of(Some(NodeSize::Small), None, (5100, 9)).unwrap_err();
        assert_eq!(field, "cluster.node_size");
        assert!(
            cause.contains("5100m CPU and 9216Mi memory") && cause.contains("`a.4` has at most 3920m CPU"),
            "{cause}"
        );
        assert!(fix.starts_with("write `cluster.node_size: medium`"), "{fix}");
        // What may run is not refused.
        assert_eq!(of(Some(NodeSize::Small), None, (3500, 15)).unwrap().named("system"), "system");
        assert_eq!(of(None, Some("b.4"), (3500, 15)).unwrap().named("system"), "system-b-4");
        assert_eq!(of(None, Some("a.64"), (5100, 9)).unwrap().named("system"), "system-a-64");
        // The machine of a size is not another pool than the size.
        assert_eq!(of(None, Some("Standard_A16"), (5100, 9)), Ok(large));
        // One of the two machines of a size is: the other one is never tried.
        assert_eq!(of(None, Some("b.4"), (2100, 4)).unwrap().named("system"), "system-b-4");
        let (field, _, fix) = of(None, Some("b.4"), (5100, 9)).unwrap_err();
        assert_eq!((field, fix.starts_with("write `cluster.node_size: medium`")), ("instance_type", true), "{fix}");
        let (_, cause, fix) = of(None, Some("a.5"), (2100, 4)).unwrap_err();
        assert!(cause.contains("`a.5` is no known machine type") && fix.contains("`a.8`"), "{cause} {fix}");
        assert!(TABLE.suffixes().contains(&"a-64".to_owned()) && TABLE.suffixes().contains(&"medium".to_owned()));
    }

    #[test]
    fn pods_with_gpus_choose_no_other_nodes() {
        let mut site = site(None, None, (5100, 20));
        let gpu = ClusterGpus {
            count: 1,
            existing: false,
            node_selector: Default::default(),
            tolerations: Vec::new(),
            device_plugin: false,
        };
        site.cluster.as_mut().unwrap().gpu = Some(gpu);
        assert_eq!(TABLE.of_site(&site).unwrap().named("system"), "system");
        let all = known();
        let (cause, fix) = TABLE.small_gpus(&site, &all[..1], &all).unwrap();
        assert!(cause.contains("5100m CPU") && cause.contains("`a.4` has at most 3920m"), "{cause}");
        assert!(fix.contains("`gpu.machines: [a.8]`"), "{fix}");
        assert_eq!(TABLE.small_gpus(&site, &all[2..3], &all), None);
        // The nodes of the site may be of any type that is tried: the first one may have had no capacity.
        assert_eq!(TABLE.small_gpus(&site, &all[..3], &all), None);
        // Without room by the assumptions, and it may run.
        site.cluster.as_mut().unwrap().node_choice.pod = Some(Capacity { cpu: Cores(3500), memory: Bytes(15 << 30) });
        assert_eq!(TABLE.small_gpus(&site, &all[..1], &all), None);
    }
}
