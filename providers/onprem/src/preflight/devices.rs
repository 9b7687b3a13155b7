//! The disk and the network of this machine, as its kernel reports them. What it does not report is unknown.

use std::path::{Path, PathBuf};

use textnlp_provider::Disk;

/// Where the kernel describes devices.
pub(super) const SYS: &str = "/sys";
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

/// Whether an NVIDIA driver shows a GPU.
pub(super) fn has_gpu(proc: &Path) -> bool {
    !entries(&proc.join("driver/nvidia/gpus")).is_empty()
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
