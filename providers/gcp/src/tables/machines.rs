//! The machine types that the provider knows: their GPUs, the quotas that they count against, and which one serves a [`GpuSize`].

use textnlp_cloud::{NodeTable, NodeType, reserved_cpu};
use textnlp_provider::cluster::Capacity;
use textnlp_provider::settings::{GpuSize, NodeSize};
use textnlp_provider::units::Bytes;

/// As of 2025-06.
const GPUS: &str = "https://cloud.google.com/compute/docs/gpus";
/// As of 2025-06.
const GENERAL: &str = "https://cloud.google.com/compute/docs/general-purpose-machines";

/// A GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Its type in the API: `nvidia-tesla-t4`.
    pub accelerator: &'static str,
    /// Its name on a machine: `T4`.
    pub name: &'static str,
    /// Its memory, in GiB.
    pub memory_gib: u32,
    /// The quota of a region, on demand, as `regions.get` names it.
    pub quota: &'static str,
    /// The same for spot machines (skypilot-org/skypilot#2126).
    pub spot_quota: &'static str,
}

/// A machine type, with the GPUs that a pool has on each of its machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Its name: `n1-standard-4`.
    pub name: &'static str,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, in GiB.
    pub memory_gib: u32,
    /// The GPUs of each machine, and how many.
    pub gpu: Option<(&'static Gpu, u32)>,
    /// The quota of a region that its vCPUs count against.
    pub quota: &'static str,
    /// The disk that it starts from: newer families have no persistent disks.
    pub disk_type: &'static str,
    /// Where this row is from.
    pub source: &'static str,
}

impl Machine {
    /// It as a node of a cluster.
    pub fn node(&self) -> NodeType {
        NodeType { name: self.name.to_owned(), vcpus: self.vcpus, memory_mib: u64::from(self.memory_gib) << 10 }
    }

    /// Its GPUs where they are attached to it and have a price of their own; those of other machines are a part of them.
    pub fn attached(&self) -> Option<(&'static Gpu, u32)> {
        self.gpu.filter(|(gpu, _)| **gpu == T4)
    }
}

impl Gpu {
    /// What Vertex AI calls it: `NVIDIA_TESLA_T4`.
    pub fn vertex_name(&self) -> String {
        self.accelerator.to_uppercase().replace('-', "_")
    }
}

/// Declares a GPU.
const fn gpu(
    accelerator: &'static str,
    name: &'static str,
    memory_gib: u32,
    quota: &'static str,
    spot_quota: &'static str,
) -> Gpu {
    Gpu { accelerator, name, memory_gib, quota, spot_quota }
}

/// NVIDIA T4.
pub static T4: Gpu = gpu("nvidia-tesla-t4", "T4", 16, "NVIDIA_T4_GPUS", "PREEMPTIBLE_NVIDIA_T4_GPUS");
/// NVIDIA A100 with 40 GB.
pub static A100: Gpu = gpu("nvidia-tesla-a100", "A100 40GB", 40, "NVIDIA_A100_GPUS", "PREEMPTIBLE_NVIDIA_A100_GPUS");
/// NVIDIA A100 with 80 GB.
pub static A100_80: Gpu =
    gpu("nvidia-a100-80gb", "A100 80GB", 80, "NVIDIA_A100_80GB_GPUS", "PREEMPTIBLE_NVIDIA_A100_80GB_GPUS");
/// NVIDIA L4.
pub static L4: Gpu = gpu("nvidia-l4", "L4", 24, "NVIDIA_L4_GPUS", "PREEMPTIBLE_NVIDIA_L4_GPUS");
/// NVIDIA H100.
pub static H100: Gpu = gpu("nvidia-h100-80gb", "H100", 80, "NVIDIA_H100_GPUS", "PREEMPTIBLE_NVIDIA_H100_GPUS");
/// NVIDIA H200.
pub static H200: Gpu = gpu("nvidia-h200-141gb", "H200", 141, "NVIDIA_H200_GPUS", "PREEMPTIBLE_NVIDIA_H200_GPUS");
/// NVIDIA B200.
pub static B200: Gpu = gpu("nvidia-b200", "B200", 180, "NVIDIA_B200_GPUS", "PREEMPTIBLE_NVIDIA_B200_GPUS");

/// The balanced persistent disk, and the disk of newer families.
const PD: &str = "pd-balanced";
const HYPERDISK: &str = "hyperdisk-balanced";

/// All machines: those of the size classes first, then current families. A GPU is tied to its family: T4 are attached to N1
/// machines, and the others are a part of those (skypilot-org/skypilot#212).
pub static MACHINES: &[Machine] = &[
    Machine {
        name: "e2-standard-4",
        vcpus: 4,
        memory_gib: 16,
        gpu: None,
        quota: "CPUS",
        disk_type: PD,
        source: GENERAL,
    },
    Machine {
        name: "n1-standard-4",
        vcpus: 4,
        memory_gib: 15,
        gpu: Some((&T4, 1)),
        quota: "CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "n1-standard-8",
        vcpus: 8,
        memory_gib: 30,
        gpu: Some((&T4, 1)),
        quota: "CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "g2-standard-8",
        vcpus: 8,
        memory_gib: 32,
        gpu: Some((&L4, 1)),
        quota: "CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "a2-highgpu-8g",
        vcpus: 96,
        memory_gib: 680,
        gpu: Some((&A100, 8)),
        quota: "A2_CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "a2-highgpu-1g",
        vcpus: 12,
        memory_gib: 85,
        gpu: Some((&A100, 1)),
        quota: "A2_CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "a2-ultragpu-1g",
        vcpus: 12,
        memory_gib: 170,
        gpu: Some((&A100_80, 1)),
        quota: "A2_CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "g2-standard-4",
        vcpus: 4,
        memory_gib: 16,
        gpu: Some((&L4, 1)),
        quota: "CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "g2-standard-24",
        vcpus: 24,
        memory_gib: 96,
        gpu: Some((&L4, 2)),
        quota: "CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "a3-highgpu-8g",
        vcpus: 208,
        memory_gib: 1_872,
        gpu: Some((&H100, 8)),
        quota: "A3_CPUS",
        disk_type: PD,
        source: GPUS,
    },
    Machine {
        name: "a3-ultragpu-8g",
        vcpus: 224,
        memory_gib: 2_952,
        gpu: Some((&H200, 8)),
        quota: "A3_CPUS",
        disk_type: HYPERDISK,
        source: GPUS,
    },
    Machine {
        name: "a4-highgpu-8g",
        vcpus: 224,
        memory_gib: 3_968,
        gpu: Some((&B200, 8)),
        quota: "A4_CPUS",
        disk_type: HYPERDISK,
        source: GPUS,
    },
    Machine {
        name: "e2-standard-8",
        vcpus: 8,
        memory_gib: 32,
        gpu: None,
        quota: "CPUS",
        disk_type: PD,
        source: GENERAL,
    },
    Machine {
        name: "e2-standard-16",
        vcpus: 16,
        memory_gib: 64,
        gpu: None,
        quota: "CPUS",
        disk_type: PD,
        source: GENERAL,
    },
    Machine {
        name: "e2-standard-32",
        vcpus: 32,
        memory_gib: 128,
        gpu: None,
        quota: "CPUS",
        disk_type: PD,
        source: GENERAL,
    },
];

/// The nodes without GPU.
pub static NODES: NodeTable = NodeTable {
    sizes: &[
        (NodeSize::Small, &["e2-standard-4"]),
        (NodeSize::Medium, &["e2-standard-8"]),
        (NodeSize::Large, &["e2-standard-16"]),
        (NodeSize::Xlarge, &["e2-standard-32"]),
    ],
    known: || MACHINES.iter().filter(|machine| machine.gpu.is_none()).map(Machine::node).collect(),
    reserved,
    least_reserved: reserved,
};

fn reserved(node: &NodeType) -> Capacity {
    Capacity { cpu: reserved_cpu(node.vcpus), memory: Bytes(reserved_memory(node.memory())) }
}

/// What GKE keeps of a node's memory, in bytes: <https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes#memory_reservations>.
fn reserved_memory(bytes: u64) -> u64 {
    let mut left = bytes;
    let mut part = |gib: u64, percent: u64| {
        let of = left.min(gib << 30);
        left -= of;
        of / 100 * percent
    };
    part(4, 25) + part(4, 20) + part(8, 10) + part(112, 6) + part(1 << 20, 2)
}

/// The machine type that serves a size class.
const SIZES: &[(GpuSize, usize)] =
    &[(GpuSize::None, 0), (GpuSize::Small, 1), (GpuSize::Medium, 2), (GpuSize::Large, 3), (GpuSize::Xlarge, 4)];

/// The machine of a size class.
pub fn of_size(size: GpuSize) -> Option<&'static Machine> {
    let (_, place) = SIZES.iter().find(|(known, _)| *known == size)?;
    MACHINES.get(*place)
}

/// The machine with this name and these GPUs; `None` if the table does not have it.
pub fn machine(name: &str, accelerator: Option<&str>) -> Option<&'static Machine> {
    let fits = |one: &&Machine| one.name == name && one.gpu.map(|(gpu, _)| gpu.accelerator) == accelerator;
    MACHINES.iter().find(fits)
}

#[cfg(test)]
mod tests {
    use textnlp_provider::units::Cores;

    use super::*;

    #[test]
    fn nodes_grow_with_their_size() {
        for ((size, types), vcpus) in NODES.sizes.iter().zip([4, 8, 16, 32]) {
            let found = machine(types[0], None).unwrap();
            assert_eq!((types.len(), found.vcpus, found.memory_gib), (1, vcpus, vcpus * 4), "{size}");
        }
        assert_eq!(reserved_memory(256 << 30) >> 20, 12_165);
    }

    /// What nodes of GKE were seen to have for pods: vCPUs and GiB of the machine, CPU in thousandths of a core, memory in KiB, and where.
    const SEEN: &[(u32, u64, u32, u64, &str)] = &[
        (4, 16, 3920, 13_498_416, "https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes"),
        (4, 32, 3920, 29_085_928, "2i2c-org/infrastructure#2121"),
        (16, 128, 15_890, 122_210_676, "2i2c-org/infrastructure#2121"),
        (64, 512, 63_770, 510_603_916, "2i2c-org/infrastructure#2121"),
    ];

    #[test]
    fn nodes_have_for_pods_what_was_seen() {
        for (vcpus, gib, cpu, kib, source) in SEEN {
            let node = NodeType { name: String::new(), vcpus: *vcpus, memory_mib: gib << 10 };
            let (room, most) = (NODES.room(&node), NODES.most(&node));
            let seen = Capacity { cpu: Cores(*cpu), memory: Bytes(kib << 10) };
            assert!(seen.holds(&room) && most.holds(&seen), "{gib} GiB: {room} / {seen} / {most}: {source}");
        }
    }

    #[test]
    fn sizes_have_machines() {
        for (size, name, gpus) in [
            (GpuSize::None, "e2-standard-4", None),
            (GpuSize::Small, "n1-standard-4", Some(("T4", 1))),
            (GpuSize::Medium, "n1-standard-8", Some(("T4", 1))),
            (GpuSize::Large, "g2-standard-8", Some(("L4", 1))),
            (GpuSize::Xlarge, "a2-highgpu-8g", Some(("A100 40GB", 8))),
        ] {
            let machine = of_size(size).unwrap();
            assert_eq!((machine.name, machine.gpu.map(|(gpu, count)| (gpu.name, count))), (name, gpus), "{size}");
            assert_eq!(super::machine(name, machine.gpu.map(|(gpu, _)| gpu.accelerator)), Some(machine));
        }
    }
}
