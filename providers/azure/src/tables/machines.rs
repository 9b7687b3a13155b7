//! The machine sizes that the provider knows: their GPUs, the quotas that they count against, and which one serves a [`GpuSize`].

use textnlp_cloud::{NodeTable, NodeType};
use textnlp_provider::cluster::Capacity;
use textnlp_provider::settings::{GpuSize, NodeSize};
use textnlp_provider::units::{Bytes, Cores};

/// The source of a row, as of 2025-10.
const T4: &str = "https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/ncast4v3-series";
const A100: &str = "https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/nca100v4-series";
const H100: &str = "https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/ncadsh100v5-series";
const NDM_A100: &str = "https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/ndma100v4-series";
const ND_H100: &str = "https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/ndh100v5-series";
const ND_H200: &str = "https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/nd-h200-v5-series";
const GENERAL: &str = "https://learn.microsoft.com/azure/virtual-machines/sizes/general-purpose/dsv5-series";

/// A machine size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Its name: `Standard_NC4as_T4_v3`.
    pub name: &'static str,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, in GiB.
    pub memory_gib: u32,
    /// Its GPUs: their name, their memory in GiB each, and how many.
    pub gpu: Option<(&'static str, u32, u32)>,
    /// The quota of a region that its vCPUs count against, as the list of usages names it.
    pub quota: &'static str,
    /// Where this row is from.
    pub source: &'static str,
}

const fn machine(
    name: &'static str,
    vcpus: u32,
    memory_gib: u32,
    gpu: Option<(&'static str, u32, u32)>,
    quota: &'static str,
    source: &'static str,
) -> Machine {
    Machine { name, vcpus, memory_gib, gpu, quota, source }
}

/// The machine of a cluster's own pods.
pub const SYSTEM: &str = "Standard_D2s_v5";

/// All sizes: those of the size classes first, then current families. `Standard_NC6s_v3` of older lists was retired on 2025-09-30.
pub static MACHINES: &[Machine] = &[
    machine("Standard_D4s_v5", 4, 16, None, "standardDSv5Family", GENERAL),
    machine("Standard_NC4as_T4_v3", 4, 28, Some(("T4", 16, 1)), "Standard NCASv3_T4 Family", T4),
    machine("Standard_NC8as_T4_v3", 8, 56, Some(("T4", 16, 1)), "Standard NCASv3_T4 Family", T4),
    machine("Standard_NC24ads_A100_v4", 24, 220, Some(("A100 80GB", 80, 1)), "StandardNCADSA100v4Family", A100),
    machine(
        "Standard_ND96amsr_A100_v4",
        96,
        1_924,
        Some(("A100 80GB", 80, 8)),
        "Standard NDAMSv4_A100Family",
        NDM_A100,
    ),
    machine(SYSTEM, 2, 8, None, "standardDSv5Family", GENERAL),
    machine("Standard_NC48ads_A100_v4", 48, 440, Some(("A100 80GB", 80, 2)), "StandardNCADSA100v4Family", A100),
    machine("Standard_NC40ads_H100_v5", 40, 320, Some(("H100 NVL", 94, 1)), "StandardNCadsH100v5Family", H100),
    machine("Standard_NC80adis_H100_v5", 80, 640, Some(("H100 NVL", 94, 2)), "StandardNCadsH100v5Family", H100),
    machine("Standard_ND96isr_H100_v5", 96, 1_900, Some(("H100", 80, 8)), "standardNDSH100v5Family", ND_H100),
    machine("Standard_ND96isr_H200_v5", 96, 1_850, Some(("H200", 141, 8)), "standardNDISRH200V5Family", ND_H200),
    machine("Standard_D8s_v5", 8, 32, None, "standardDSv5Family", GENERAL),
    machine("Standard_D16s_v5", 16, 64, None, "standardDSv5Family", GENERAL),
    machine("Standard_D32s_v5", 32, 128, None, "standardDSv5Family", GENERAL),
];

impl Machine {
    /// It as a node of a cluster.
    pub fn node(&self) -> NodeType {
        NodeType { name: self.name.to_owned(), vcpus: self.vcpus, memory_mib: u64::from(self.memory_gib) << 10 }
    }
}

/// The nodes without GPU.
pub static NODES: NodeTable = NodeTable {
    sizes: &[
        (NodeSize::Small, &["Standard_D4s_v5"]),
        (NodeSize::Medium, &["Standard_D8s_v5"]),
        (NodeSize::Large, &["Standard_D16s_v5"]),
        (NodeSize::Xlarge, &["Standard_D32s_v5"]),
    ],
    known: || MACHINES.iter().filter(|machine| machine.gpu.is_none()).map(Machine::node).collect(),
    reserved,
    least_reserved,
};

/// What AKS keeps of a node since Kubernetes 1.29: of the CPU [`reserved_cpu`]; of the memory 20 MB for each pod that it may have and
/// 50 MB, and no more than a quarter (<https://learn.microsoft.com/azure/aks/node-resource-reservations>). A node of an overlay network
/// may have 250 pods, unless its pool sets another number (<https://learn.microsoft.com/azure/aks/concepts-network-ip-address-planning>).
fn reserved(node: &NodeType) -> Capacity {
    Capacity { cpu: reserved_cpu(node.vcpus), memory: Bytes((5_050_u64 << 20).min(node.memory() / 4)) }
}

/// The least of that and of what it kept before, which a version with long-term support still does: parts of the memory, and 750 MiB at
/// which pods are evicted in place of 100 MiB.
fn least_reserved(node: &NodeType) -> Capacity {
    let mut left = node.memory();
    let mut part = |gib: u64, percent: u64| {
        let of = left.min(gib << 30);
        left -= of;
        of / 100 * percent
    };
    let before = part(4, 25) + part(4, 20) + part(8, 10) + part(112, 6) + part(1 << 20, 2) + (650 << 20);
    let now = 5_050_000_000_u64.min(node.memory() / 4);
    Capacity { cpu: reserved_cpu(node.vcpus), memory: Bytes(now.min(before)) }
}

/// AKS has a table of CPU: 140, 180, 260, 420 and 740 thousandths of a core for 4, 8, 16, 32 and 64 cores. Between them, where machines
/// with GPUs are, it says nothing, and this is a line through them.
fn reserved_cpu(vcpus: u32) -> Cores {
    Cores(match vcpus {
        0 | 1 => 60,
        2 => 100,
        more => more.saturating_mul(10).saturating_add(100),
    })
}

/// The quota of a region for all machines on demand, and that for spot machines of every family (kubernetes/autoscaler#2607):
/// <https://learn.microsoft.com/azure/virtual-machines/quotas>.
pub const ALL: &str = "cores";
/// See [`ALL`].
pub const ALL_SPOT: &str = "lowPriorityCores";

/// The size with this name.
pub fn named(name: &str) -> Option<&'static Machine> {
    MACHINES.iter().find(|one| one.name == name)
}

/// The size for a class.
pub fn of_size(size: GpuSize) -> Option<&'static Machine> {
    let place = match size {
        GpuSize::None => 0,
        GpuSize::Small => 1,
        GpuSize::Medium => 2,
        GpuSize::Large => 3,
        GpuSize::Xlarge => 4,
    };
    MACHINES.get(place)
}

/// A size for deployments of Azure Machine Learning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServingSize {
    /// Its name: `Standard_DS3_v2`.
    pub name: &'static str,
    /// vCPUs.
    pub vcpus: u32,
    /// How many GPUs it has.
    pub gpus: u32,
    /// The family whose quota its vCPUs count against.
    pub quota: &'static str,
    /// Whether a fifth of the machines is reserved for upgrades.
    pub is_reserved: bool,
}

const fn serving(name: &'static str, vcpus: u32, quota: &'static str) -> ServingSize {
    ServingSize { name, vcpus, gpus: 0, quota, is_reserved: true }
}

const fn serving_gpus(
    name: &'static str,
    (vcpus, gpus): (u32, u32),
    quota: &'static str,
    is_reserved: bool,
) -> ServingSize {
    ServingSize { name, vcpus, gpus, quota, is_reserved }
}

/// The size of a deployment where the environment states none: 4 vCPUs and 14 GiB.
pub const SERVING_SIZE: &str = "Standard_DS3_v2";

/// Sizes that Azure Machine Learning deploys to, as of 2025-05, without the smallest ones
/// (<https://learn.microsoft.com/azure/machine-learning/reference-managed-online-endpoints-vm-sku-list>).
pub static SERVING: &[ServingSize] = &[
    serving(SERVING_SIZE, 4, "standardDSv2Family"),
    serving("Standard_DS4_v2", 8, "standardDSv2Family"),
    serving("Standard_DS5_v2", 16, "standardDSv2Family"),
    serving("Standard_D4as_v4", 4, "standardDASv4Family"),
    serving("Standard_D8as_v4", 8, "standardDASv4Family"),
    serving("Standard_D16as_v4", 16, "standardDASv4Family"),
    serving("Standard_D32as_v4", 32, "standardDASv4Family"),
    serving("Standard_E4s_v3", 4, "standardESv3Family"),
    serving("Standard_E8s_v3", 8, "standardESv3Family"),
    serving("Standard_E16s_v3", 16, "standardESv3Family"),
    serving("Standard_E32s_v3", 32, "standardESv3Family"),
    serving("Standard_F4s_v2", 4, "standardFSv2Family"),
    serving("Standard_F8s_v2", 8, "standardFSv2Family"),
    serving("Standard_F16s_v2", 16, "standardFSv2Family"),
    serving("Standard_F32s_v2", 32, "standardFSv2Family"),
    serving("Standard_F72s_v2", 72, "standardFSv2Family"),
    serving_gpus("Standard_NC4as_T4_v3", (4, 1), "Standard NCASv3_T4 Family", true),
    serving_gpus("Standard_NC8as_T4_v3", (8, 1), "Standard NCASv3_T4 Family", true),
    serving_gpus("Standard_NC16as_T4_v3", (16, 1), "Standard NCASv3_T4 Family", true),
    serving_gpus("Standard_NC64as_T4_v3", (64, 4), "Standard NCASv3_T4 Family", true),
    serving_gpus("Standard_NC24ads_A100_v4", (24, 1), "StandardNCADSA100v4Family", false),
    serving_gpus("Standard_NC48ads_A100_v4", (48, 2), "StandardNCADSA100v4Family", false),
    serving_gpus("Standard_NC96ads_A100_v4", (96, 4), "StandardNCADSA100v4Family", false),
    serving_gpus("Standard_ND96amsr_A100_v4", (96, 8), "Standard NDAMSv4_A100Family", false),
    serving_gpus("Standard_NC40ads_H100_v5", (40, 1), "StandardNCadsH100v5Family", false),
    serving_gpus("Standard_NC80adis_H100_v5", (80, 2), "StandardNCadsH100v5Family", false),
    // Its family has another name than for virtual machines.
    serving_gpus("Standard_ND96isr_H100_v5", (96, 8), "standardNDv5H100Family", false),
];

/// The size of a deployment with this name.
pub fn serving_named(name: &str) -> Option<&'static ServingSize> {
    SERVING.iter().find(|one| one.name.eq_ignore_ascii_case(name))
}

impl ServingSize {
    /// The vCPUs of this many machines with those that are reserved
    /// (<https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas#virtual-machine-quota-allocation-for-deployment>;
    /// MicrosoftLearning/mslearn-azure-ml#30 has it for one machine).
    pub fn needed(&self, count: u64) -> u64 {
        let machines = if self.is_reserved { count.saturating_mul(6).div_ceil(5) } else { count };
        machines.saturating_mul(u64::from(self.vcpus))
    }
}

/// The connections of a server that Azure keeps for itself, of all sizes (see [`SERVERS`]).
pub const KEPT_CONNECTIONS: u32 = 15;

/// Sizes of PostgreSQL servers with the connections that they accept by default, with those that Azure keeps
/// (<https://learn.microsoft.com/azure/postgresql/flexible-server/concepts-limits>, as of 2025-09), and their vCPUs and memory in GiB.
pub static SERVERS: &[(&str, u32, u32, u32)] = &[
    ("Standard_B1ms", 50, 1, 2),
    ("Standard_B2s", 429, 2, 4),
    ("Standard_D2ds_v5", 859, 2, 8),
    ("Standard_D4ds_v5", 1_718, 4, 16),
    ("Standard_D8ds_v5", 3_437, 8, 32),
    ("Standard_D16ds_v5", 5_000, 16, 64),
];

/// The tier whose servers have no standby.
pub const CHEAPEST_TIER: &str = "Burstable";

/// The tier of a server's size.
pub fn server_tier(size: &str) -> &'static str {
    match size {
        size if size.starts_with("Standard_B") => CHEAPEST_TIER,
        size if size.starts_with("Standard_E") => "MemoryOptimized",
        _ => "GeneralPurpose",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_grow_with_their_size() {
        for ((size, types), vcpus) in NODES.sizes.iter().zip([4, 8, 16, 32]) {
            let found = named(types[0]).unwrap();
            assert_eq!((types.len(), found.vcpus, found.memory_gib), (1, vcpus, vcpus * 4), "{size}");
        }
        for (vcpus, cpu) in [(1, 60), (2, 100), (4, 140), (8, 180), (16, 260), (32, 420), (64, 740)] {
            assert_eq!(reserved_cpu(vcpus), Cores(cpu), "{vcpus}");
        }
        let memory = |name: &str| reserved(&named(name).unwrap().node()).memory;
        assert_eq!(memory("Standard_D4s_v5"), Bytes(4 << 30));
        assert_eq!(memory("Standard_D8s_v5"), Bytes(5050 << 20));
    }

    /// What nodes of AKS were seen to have for pods: vCPUs and GiB of the machine, CPU in thousandths of a core if it was shown, memory in
    /// KiB, and where. Both are of versions before 1.29.
    const SEEN: &[(u32, u64, Option<u32>, u64, &str)] =
        &[(4, 16, None, 12_909_408, "Azure/AKS#1216"), (2, 4, Some(1900), 2_209_260, "Azure/AKS#3525")];

    #[test]
    fn nodes_have_for_pods_what_was_seen() {
        for (vcpus, gib, cpu, kib, source) in SEEN {
            let node = NodeType { name: String::new(), vcpus: *vcpus, memory_mib: gib << 10 };
            let (room, most) = (NODES.room(&node), NODES.most(&node));
            let seen = Capacity { cpu: cpu.map_or(most.cpu, Cores), memory: Bytes(kib << 10) };
            assert!(seen.holds(&room) && most.holds(&seen), "{gib} GiB: {room} / {seen} / {most}: {source}");
        }
    }

    #[test]
    fn deployments_have_the_machines_of_the_size_classes_and_a_fifth_more() {
        for size in [GpuSize::Small, GpuSize::Medium, GpuSize::Large, GpuSize::Xlarge] {
            let machine = of_size(size).unwrap();
            let serving = serving_named(machine.name).unwrap();
            let gpus = machine.gpu.map(|(.., gpus)| gpus);
            assert_eq!((serving.vcpus, Some(serving.gpus), serving.quota), (machine.vcpus, gpus, machine.quota));
        }
        let usual = serving_named("STANDARD_DS3_V2").unwrap();
        assert_eq!([1, 5, 10].map(|count| usual.needed(count)), [8, 24, 48]);
        assert_eq!(serving_named("Standard_NC24ads_A100_v4").unwrap().needed(2), 48, "it is exempt");
    }

    #[test]
    fn classes_have_growing_machines() {
        let all = [GpuSize::None, GpuSize::Small, GpuSize::Medium, GpuSize::Large, GpuSize::Xlarge];
        let found: Vec<&Machine> = all.into_iter().filter_map(of_size).collect();
        assert_eq!(found.len(), 5);
        assert!(found.windows(2).all(|pair| pair[0].memory_gib < pair[1].memory_gib));
        assert_eq!(found[1].name, "Standard_NC4as_T4_v3");
        assert!(found[0].gpu.is_none() && found[1..].iter().all(|one| one.gpu.is_some()));
        assert!(MACHINES.iter().all(|one| one.source.starts_with("https://") && one.quota == one.quota.trim()));
        assert_eq!((server_tier("Standard_B1ms"), server_tier("Standard_D2ds_v5")), ("Burstable", "GeneralPurpose"));
    }
}
