//! The disk, the network and the GPUs of this machine, as its kernel reports them. What it does not report is unknown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use textnlp_provider::Disk;

/// Where the kernel describes devices.
pub(super) const SYS: &str = "/sys";
/// Where the kernel describes its drivers.
pub(super) const PROC: &str = "/proc";
/// The oldest driver of CUDA 13, with which servers are built
/// (<https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/index.html>).
const OLDEST_DRIVER: u32 = 580;
/// The least id of a PCI device that is a GPU of Turing, which has compute capability 7.5: those of NVIDIA/open-gpu-kernel-modules, which
/// are for Turing and newer, begin with it.
const TURING: u32 = 0x1e02;
/// Deepest stack of block devices, for example a mapping on an array on disks.
const DEEPEST: u32 = 4;

/// The kind of the disk that a filesystem lies on; of several disks together, the slowest.
pub(super) fn disk(sys: &Path, device: u64) -> Option<Disk> {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let found = sys.join("dev/block").join(number).canonicalize().ok()?;
    // A partition says nothing of its own; its disk is the folder above.
    let disk_path = if found.join("partition").exists() { found.parent()?.to_owned() } else { found };
    kind(&disk_path, DEEPEST)
}

fn kind(disk: &Path, deepest: u32) -> Option<Disk> {
    let below = entries(&disk.join("slaves"));
    if !below.is_empty() {
        let kinds: Vec<_> = below.iter().map(|one| kind(&one.canonicalize().ok()?, deepest.checked_sub(1)?)).collect();
        // One rotating disk decides, even beside a disk of unknown kind.
        return if kinds.contains(&Some(Disk::Rotating)) {
            Some(Disk::Rotating)
        } else {
            kinds.into_iter().collect::<Option<Vec<_>>>()?.into_iter().max()
        };
    }
    let disk_path = if disk.join("partition").exists() { disk.parent()? } else { disk };
    let name = disk_path.file_name()?.to_str()?;
    if name.starts_with("nvme") {
        return Some(Disk::Nvme);
    }
    // A virtual disk reports rotating on any hardware; disks that are files or memory have no kind.
    if ["vd", "xvd", "loop", "ram", "zram", "nbd"].iter().any(|kind| name.starts_with(kind)) {
        return None;
    }
    match std::fs::read_to_string(disk_path.join("queue/rotational")).ok()?.trim() {
        "0" => Some(Disk::Solid),
        "1" => Some(Disk::Rotating),
        _ => None,
    }
}

/// The fastest link that is up, in megabits per second. The speeds of bridges and virtual pairs are not measured, so
/// they are ignored.
pub(super) fn network_mbps(sys: &Path) -> Option<u64> {
    let lines = entries(&sys.join("class/net"));
    let real = lines.iter().filter(|line| line.join("device").exists() || line.join("bonding").exists());
    let text = |line: &Path, name: &str| std::fs::read_to_string(line.join(name)).ok();
    real.filter(|line| text(line, "operstate").is_some_and(|state| state.trim() == "up"))
        .filter_map(|line| text(line, "speed")?.trim().parse::<u64>().ok().filter(|mbps| *mbps > 0))
        .max()
}

/// The GPUs that NVIDIA's driver shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gpus {
    /// Its version: `580.65.06`.
    pub(super) driver: Option<String>,
    pub(super) found: Vec<Gpu>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gpu {
    /// Its model: `Tesla T4`.
    pub(super) model: String,
    /// The id of its PCI device.
    pub(super) device: Option<u32>,
}

impl Gpus {
    /// Models and driver: `2 × Tesla T4, driver 580.65.06`.
    pub(super) fn summary(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for gpu in &self.found {
            *counts.entry(&gpu.model).or_default() += 1;
        }
        let models = counts.into_iter().map(|(model, count)| format!("{count} × {model}"));
        let driver = format!("driver {}", self.driver.as_deref().unwrap_or("of an unknown version"));
        models.chain([driver]).collect::<Vec<_>>().join(", ")
    }

    /// Why a program with CUDA computes on none of them, and what to do. What is unknown is no reason.
    pub(super) fn unusable(&self) -> Option<(String, &'static str)> {
        let first = self.found.first()?;
        if self.found.iter().all(|gpu| gpu.device.is_some_and(|device| device < TURING)) {
            let cause = format!("its GPU {} is older than Turing (compute capability 7.5)", first.model);
            return Some((cause, "use a machine with a T4 or a newer GPU"));
        }
        let driver = self.driver.as_deref()?;
        let major: u32 = driver.split('.').next()?.parse().ok()?;
        (major < OLDEST_DRIVER).then(|| {
            let cause = format!(
                "the driver of its GPU {} is {driver}, and CUDA 13 needs {OLDEST_DRIVER} or newer",
                first.model
            );
            (cause, "update NVIDIA's driver, and restart the machine")
        })
    }
}

/// The GPUs in the files of the driver
/// (<https://download.nvidia.com/XFree86/Linux-x86_64/580.65.06/README/procinterface.html>), with the ids of their devices.
pub(super) fn gpus(proc: &Path, sys: &Path) -> Gpus {
    let driver = proc.join("driver/nvidia");
    let text = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let mut folders = entries(&driver.join("gpus"));
    folders.sort();
    let gpu = |folder: &PathBuf| {
        let information = text(folder.join("information"));
        let model = information.lines().find_map(|line| line.strip_prefix("Model:")).map(str::trim);
        let id = folder.file_name().map(|address| text(sys.join("bus/pci/devices").join(address).join("device")));
        Gpu {
            model: model.filter(|model| !model.is_empty()).unwrap_or("NVIDIA GPU").to_owned(),
            device: id.and_then(|id| u32::from_str_radix(id.trim().strip_prefix("0x")?, 16).ok()),
        }
    };
    let version = text(driver.join("version"));
    let words = version.lines().find_map(|line| line.strip_prefix("NVRM version:")).unwrap_or_default();
    let mut words = words.split_whitespace();
    let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    Gpus { driver: words.find(is_version).map(str::to_owned), found: folders.iter().map(gpu).collect() }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A `/sys` with one file for each `path=text`, and one link for each `path->target` (from the root of it).
    fn sys(lines: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for line in lines {
            if let Some((path, target)) = line.split_once("->") {
                let (path, target) = (folder.path().join(path), folder.path().join(target));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                symlink(target, path).unwrap();
            } else {
                let (path, text) = line.split_once('=').unwrap();
                let path = folder.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }
        folder
    }

    /// The lines of a GPU: its model, and the id of its device.
    fn gpu_lines(address: &str, model: &str, device: &str) -> [String; 2] {
        [
            format!("driver/nvidia/gpus/{address}/information=Model: \t\t {model}\nIRQ:   \t\t 11\n"),
            format!("bus/pci/devices/{address}/device={device}\n"),
        ]
    }

    #[test]
    fn gpus_are_named_with_their_driver_and_old_ones_are_unusable() {
        let of = |version: &str, all: &[[String; 2]]| {
            let version = format!("driver/nvidia/version=NVRM version: {version}\nGCC version:  gcc version 11.4.0\n");
            let lines: Vec<&str> =
                [version.as_str()].into_iter().chain(all.iter().flatten().map(String::as_str)).collect();
            let folder = sys(&lines);
            gpus(folder.path(), folder.path())
        };
        let new = "NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)  Sun Jul 27 07:16:52 UTC 2025";
        let old = "NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024";
        let t4 = |address| gpu_lines(address, "Tesla T4", "0x1eb8");
        let v100 = gpu_lines("0000:03:00.0", "Tesla V100-SXM2-16GB", "0x1db1");
        let two = of(new, &[t4("0000:01:00.0"), t4("0000:02:00.0")]);
        assert_eq!((two.summary().as_str(), two.unusable()), ("2 × Tesla T4, driver 580.65.06", None));
        let mixed = of(new, &[t4("0000:01:00.0"), v100.clone()]);
        assert_eq!(mixed.summary(), "1 × Tesla T4, 1 × Tesla V100-SXM2-16GB, driver 580.65.06");
        assert_eq!(mixed.unusable(), None, "one of them computes");
        let (cause, fix) = of(old, &[t4("0000:01:00.0")]).unusable().unwrap();
        assert_eq!(cause, "the driver of its GPU Tesla T4 is 535.183.01, and CUDA 13 needs 580 or newer");
        assert!(fix.contains("update"), "{fix}");
        let (cause, _) = of(new, &[v100]).unusable().unwrap();
        assert_eq!(cause, "its GPU Tesla V100-SXM2-16GB is older than Turing (compute capability 7.5)");
        // What is not known is no reason.
        let unknown = of("", &[gpu_lines("0000:01:00.0", "", "")]);
        assert_eq!(unknown.summary(), "1 × NVIDIA GPU, driver of an unknown version");
        assert_eq!(unknown.unusable(), None);
        assert_eq!((of(old, &[]).found, of(old, &[]).unusable()), (Vec::new(), None));
    }

    fn check(lines: &[&str], expect: Option<Disk>) {
        let sys = sys(lines);
        assert_eq!(disk(sys.path(), rustix::fs::makedev(8, 1)), expect, "{lines:?}");
    }

    #[test]
    fn disk_type_is_detected_by_name_and_rotational_flag() {
        let of = |name: &str, rotational: &str| {
            let (disk, part) = (format!("devices/block/{name}"), format!("devices/block/{name}/part1"));
            [
                format!("{disk}/queue/rotational={rotational}"),
                format!("{part}/partition=1"),
                format!("dev/block/8:1->{part}"),
            ]
        };
        for (name, rotational, expect) in [
            ("nvme0n1", "0\n", Some(Disk::Nvme)),
            ("sda", "0\n", Some(Disk::Solid)),
            ("sda", "1\n", Some(Disk::Rotating)),
            ("sda", "?", None),
            ("vda", "1\n", None),
            ("loop3", "0\n", None),
        ] {
            let lines = of(name, rotational);
            check(&lines.each_ref().map(String::as_str), expect);
        }
        check(&[], None);
    }

    #[test]
    fn stacked_disks_are_as_slow_as_the_slowest() {
        let on = |second: &str| {
            let mut lines = vec![
                "devices/block/nvme0n1/queue/rotational=0".to_owned(),
                "devices/block/sda/queue/rotational=1".to_owned(),
                "devices/block/vdb/queue/rotational=0".to_owned(),
                "devices/virtual/dm-0/queue/rotational=0".to_owned(),
                "dev/block/8:1->devices/virtual/dm-0".to_owned(),
            ];
            lines.extend(["nvme0n1", second].map(|n| format!("devices/virtual/dm-0/slaves/{n}->devices/block/{n}")));
            lines.dedup();
            lines
        };
        for (second, expect) in [("nvme0n1", Some(Disk::Nvme)), ("sda", Some(Disk::Rotating)), ("vdb", None)] {
            let lines = on(second);
            check(&lines.iter().map(String::as_str).collect::<Vec<_>>(), expect);
        }
    }

    #[test]
    fn network_speed_is_that_of_the_fastest_physical_interface_that_is_up() {
        let folder = sys(&[
            "class/net/eth0/speed=1000\n",
            "class/net/eth0/operstate=up\n",
            "class/net/eth0/device/x=",
            "class/net/eth1/speed=10000\n",
            "class/net/eth1/operstate=down\n",
            "class/net/eth1/device/x=",
            "class/net/veth0/speed=10000\n",
            "class/net/veth0/operstate=up\n",
        ]);
        assert_eq!(network_mbps(folder.path()), Some(1000));
        fs::write(folder.path().join("class/net/eth0/speed"), "-1\n").unwrap();
        assert_eq!(network_mbps(folder.path()), None);
    }
}
