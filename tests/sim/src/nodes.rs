//! What a node has for pods, by what each cloud documents of its kubelets. Memory that firmware and kernel take is not left out: no cloud
//! documents it.

/// CPU in thousandths of a core, and memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocatable {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
}

/// The memory at which kubelets of all clouds evict pods.
const EVICTION: u64 = 100 << 20;

impl Allocatable {
    /// What is left of a machine without what its kubelet reserves.
    pub(crate) fn of(vcpus: u64, memory: u64, reserved_milli: u64, reserved: u64) -> Self {
        Self { cpu_milli: vcpus * 1000 - reserved_milli, memory: memory - reserved - EVICTION }
    }
}

/// The CPU that kubelets of EKS and of GKE reserve, core by core.
///
/// <https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes#cpu_reservations>
pub(crate) fn reserved_milli(vcpus: u64) -> u64 {
    let tenths = |core| match core {
        1 => 600,
        2 => 100,
        3 | 4 => 50,
        _ => 25,
    };
    (1..=vcpus).map(tenths).sum::<u64>().div_ceil(10)
}
