//! The machine sizes that the provider knows: their GPUs, the quotas that they count against, and which one serves a [`GpuSize`].

use textnlp_provider::settings::GpuSize;

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
];

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
