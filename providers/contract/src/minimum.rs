//! The smallest supported machine, as data.
//!
//! The caller chooses one by the phase; the provider compares the machine with it.

/// The technology of a disk, fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disk {
    /// NVMe flash.
    Nvme,
    /// SATA or SAS flash.
    Solid,
    /// A rotating disk.
    Rotating,
}

/// The minimum of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minimum {
    /// The name of the minimum.
    pub says: &'static str,
    /// CPU cores.
    pub cores: u64,
    /// Nominal memory in bytes: the kernel reports a little less.
    pub memory_bytes: u64,
    /// Nominal size of the disk with the state, in bytes.
    pub disk_bytes: u64,
    /// The slowest kind of disk.
    pub disk: Disk,
    /// Network in megabits per second.
    pub network_mbps: u64,
    /// Whether a GPU is recommended.
    pub gpu_recommended: bool,
    /// The oldest Docker, where it is used.
    pub docker: (u32, u32),
    /// Nodes of a cluster that can run pods. Fewer are a warning.
    pub nodes: u32,
    /// Whether a smaller machine makes `up` fail, instead of a warning.
    pub blocks: bool,
}

impl Minimum {
    /// A smaller machine is a warning.
    pub const DEVELOPMENT: Self = Self {
        says: "development and staging",
        cores: 4,
        memory_bytes: 8_000_000_000,
        disk_bytes: 50_000_000_000,
        disk: Disk::Solid,
        network_mbps: 1_000,
        gpu_recommended: false,
        docker: (20, 10),
        nodes: 1,
        blocks: false,
    };
    /// A smaller machine is refused.
    pub const PRODUCTION: Self = Self {
        says: "production",
        cores: 16,
        memory_bytes: 32_000_000_000,
        disk_bytes: 500_000_000_000,
        disk: Disk::Nvme,
        network_mbps: 10_000,
        gpu_recommended: true,
        docker: (24, 0),
        nodes: 3,
        blocks: true,
    };
}
