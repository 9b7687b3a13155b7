//! The smallest machine that a service is meant for: requirements O17 to O20 as data.
//!
//! Whoever knows the phase chooses one; whoever knows the machine holds it against it.

/// How a disk keeps its bytes, the fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disk {
    /// Flash on the bus.
    Nvme,
    /// Flash behind a disk's connector.
    Solid,
    /// Turning platters.
    Rotating,
}

/// What a machine has at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minimum {
    /// Whose minimum it is, in a word.
    pub says: &'static str,
    /// CPU cores.
    pub cores: u64,
    /// Memory in bytes, as it is sold: the kernel shows a little less.
    pub memory_bytes: u64,
    /// Bytes of the filesystem that holds the state, as the disk is sold.
    pub disk_bytes: u64,
    /// The slowest kind of disk.
    pub disk: Disk,
    /// Network in megabits per second.
    pub network_mbps: u64,
    /// Whether a GPU is recommended.
    pub gpu_recommended: bool,
    /// The oldest Docker, where something uses it.
    pub docker: (u32, u32),
    /// Whether less than this stops an `up`, instead of a warning.
    pub blocks: bool,
}

impl Minimum {
    /// Requirement O18: it warns.
    pub const DEVELOPMENT: Self = Self {
        says: "development",
        cores: 4,
        memory_bytes: 8_000_000_000,
        disk_bytes: 50_000_000_000,
        disk: Disk::Solid,
        network_mbps: 1_000,
        gpu_recommended: false,
        docker: (20, 10),
        blocks: false,
    };
    /// Requirement O19: it stops.
    pub const PRODUCTION: Self = Self {
        says: "production",
        cores: 16,
        memory_bytes: 32_000_000_000,
        disk_bytes: 500_000_000_000,
        disk: Disk::Nvme,
        network_mbps: 10_000,
        gpu_recommended: true,
        docker: (24, 0),
        blocks: true,
    };
}
