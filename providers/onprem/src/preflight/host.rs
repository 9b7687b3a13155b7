//! What kind of machine this is, against what the service needs: requirements O17 to O20. The numbers are the contract's [`Minimum`].

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use camino::Utf8Path;
use textnlp_provider::{Disk, Minimum, Problem};

use super::devices;

/// The facts of the machine; an unreadable one is no problem.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) cores: Option<u64>,
    pub(super) memory_bytes: Option<u64>,
    /// Of the filesystem that holds the state.
    pub(super) disk_bytes: Option<u64>,
    pub(super) disk: Option<Disk>,
    pub(super) network_mbps: Option<u64>,
    /// Whether processes of this machine reach each other.
    pub(super) has_loopback: Option<bool>,
    pub(super) has_gpu: bool,
    pub(super) open_files: Option<u64>,
    pub(super) kernel: Option<(u32, u32)>,
    /// `ID` and `VERSION_ID` of os-release.
    pub(super) system: Option<(String, String)>,
    pub(super) cpu_flags: Option<Vec<String>>,
    pub(super) now: Option<jiff::Timestamp>,
}

/// The distributions of requirement O17, and those with the same kernels and libraries.
const SYSTEMS: [(&str, u32, &str); 6] = [
    ("ubuntu", 20, "Ubuntu 20.04"),
    ("rhel", 8, "RHEL 8"),
    ("rocky", 8, "Rocky Linux 8"),
    ("almalinux", 8, "AlmaLinux 8"),
    ("debian", 11, "Debian 11"),
    ("centos", 8, "CentOS Stream 8"),
];

/// The oldest kernel of those systems.
const KERNEL: (u32, u32) = (4, 18);
/// Below this the gateway accepts too few connections: each may have one to a replica.
const OPEN_FILES: u64 = 4096;
/// Below this the server cannot open its database.
const OPEN_FILES_FLOOR: u64 = 64;
/// Below this a model does not even load.
const MEMORY_FLOOR: u64 = 1 << 30;
/// A clock before this program was written is wrong: 2026-01-01.
const NOT_BEFORE: i64 = 1_767_225_600;

impl Facts {
    /// `folder` holds the state, or is its nearest existing parent.
    pub(super) fn read(folder: &Utf8Path) -> Self {
        let sys = Path::new(devices::SYS);
        let device = std::fs::metadata(folder).ok().map(|found| std::os::unix::fs::MetadataExt::dev(&found));
        Self {
            cores: std::thread::available_parallelism().ok().map(|cores| cores.get() as u64),
            memory_bytes: Some(textnlp_models::Memory::here().total).filter(|total| *total > 0),
            disk_bytes: textnlp_files::filesystem(folder).ok().map(|found| found.total).filter(|total| *total > 0),
            disk: device.and_then(|device| devices::disk(sys, device)),
            network_mbps: devices::network_mbps(sys),
            has_loopback: has_loopback(),
            has_gpu: devices::has_gpu(Path::new("/proc")),
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
            kernel: version(&rustix::system::uname().release().to_string_lossy()),
            system: std::fs::read_to_string("/etc/os-release").ok().and_then(|text| system(&text)),
            cpu_flags: std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| cpu_flags(&text)),
            now: Some(jiff::Timestamp::now()),
        }
    }
}

/// Adds a problem for each shortfall. One that makes the service slow is a warning, or an error when the minimum
/// blocks; one that makes it impossible is always an error. An unknown fact is a note. `connections`: those that the
/// gateway may accept, if there is one.
pub(super) fn check(facts: &Facts, minimum: &Minimum, connections: Option<u64>, problems: &mut Vec<Problem>) {
    let strict = minimum.blocks;
    // Notes are listed last: they matter least.
    let mut notes = Vec::new();
    let mut unsaid = |cause: String, fix: &str| notes.push(Problem::note("host", cause, fix));
    let mut short = |cause: String, fix: &str| {
        let or = if strict { "; to continue anyway: `--set prerequisites.minimum=warn`" } else { "" };
        let problem = Problem::warning("host", cause, format!("{fix}{or}"));
        problems.push(Problem { warning: !strict, ..problem });
    };
    if let Some(cores) = facts.cores.filter(|cores| *cores < minimum.cores) {
        let cause = format!("it has {cores} CPU cores; the minimum for {} is {}", minimum.says, minimum.cores);
        short(cause, "use a larger machine, or expect slow answers");
    }
    if let Some(memory) = facts.memory_bytes.filter(|memory| *memory < as_seen(minimum.memory_bytes)) {
        let cause = format!(
            "it has {} of memory; the minimum for {} is {}",
            gb(memory),
            minimum.says,
            gb(minimum.memory_bytes)
        );
        short(cause, "use a larger machine or smaller models; `model fit` shows what fits");
    }
    if let Some(disk) = facts.disk_bytes.filter(|disk| *disk < as_seen(minimum.disk_bytes)) {
        let cause = format!(
            "the filesystem of the state has {}; the minimum for {} is {}",
            gb(disk),
            minimum.says,
            gb(minimum.disk_bytes)
        );
        short(cause, "use a larger disk, or choose another `--state-dir`");
    }
    match facts.disk {
        Some(disk) if disk > minimum.disk => {
            let cause = format!(
                "the state is on {}; the minimum for {} is {}",
                called(disk),
                minimum.says,
                called(minimum.disk)
            );
            short(cause, "use a faster disk, or choose another `--state-dir`");
        }
        Some(_) => {}
        None => {
            let least = called(minimum.disk);
            let cause =
                format!("the kind of disk for the state is unknown; the minimum for {} is {least}", minimum.says);
            unsaid(cause, "check the machine's documentation");
        }
    }
    match facts.network_mbps {
        Some(mbps) if mbps < minimum.network_mbps => {
            let cause = format!(
                "its network runs at {mbps} Mbit/s; the minimum for {} is {}",
                minimum.says, minimum.network_mbps
            );
            short(cause, "use a faster line, or expect slow downloads of models");
        }
        Some(_) => {}
        None => {
            let cause = format!(
                "the speed of its network is unknown; the minimum for {} is {} Mbit/s",
                minimum.says, minimum.network_mbps
            );
            unsaid(cause, "check the machine's documentation");
        }
    }
    if minimum.gpu_recommended && !facts.has_gpu {
        let cause = format!("no GPU was found; an NVIDIA T4 or better is recommended for {}", minimum.says);
        unsaid(cause, "nothing to do: local processes compute on the CPU");
    }
    if let Some((id, version)) = &facts.system {
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        match SYSTEMS.iter().find(|(known, _, _)| known == id) {
            None => short(
                format!("`{id}` is not among the tested systems"),
                "it can work; the guide lists the tested systems",
            ),
            Some((_, least, says)) if major.is_some_and(|major| major < *least) => {
                short(format!("`{id}` {version} is older than {says}"), "upgrade the system");
            }
            Some(_) => {}
        }
    }
    if let Some((major, minor)) = facts.kernel.filter(|kernel| *kernel < KERNEL) {
        short(format!("kernel {major}.{minor} is older than {}.{}", KERNEL.0, KERNEL.1), "upgrade the kernel");
    }
    if let Some(flags) = &facts.cpu_flags
        && cfg!(target_arch = "x86_64")
        && !(flags.iter().any(|flag| flag == "avx2") && flags.iter().any(|flag| flag == "fma"))
    {
        short("its CPU has neither AVX2 nor FMA".to_owned(), "expect a small fraction of the usual speed");
    }
    const MORE_FILES: &str = "raise it: `ulimit -n 65536`, or `LimitNOFILE` and limits.conf";
    if let Some(limit) = facts.open_files.filter(|limit| (OPEN_FILES_FLOOR..OPEN_FILES).contains(limit)) {
        short(format!("a process can open {limit} files; the gateway needs {OPEN_FILES}"), MORE_FILES);
    }
    if let (Some(limit), Some(connections)) = (facts.open_files, connections)
        && (OPEN_FILES..2 * connections).contains(&limit)
    {
        let cause = format!(
            "a process can open {limit} files: the gateway accepts {} connections, and `server.api.max_connections` \
             ({connections}) needs {} files",
            limit / 2,
            2 * connections
        );
        unsaid(cause, MORE_FILES);
    }
    if let Some(limit) = facts.open_files.filter(|limit| *limit < OPEN_FILES_FLOOR) {
        let cause = format!("a process can open {limit} files; a server needs at least {OPEN_FILES_FLOOR}");
        problems.push(Problem::new("host", cause, MORE_FILES));
    }
    if let Some(memory) = facts.memory_bytes.filter(|memory| *memory < MEMORY_FLOOR) {
        let cause = format!("{} MB of memory are not enough for any model", memory >> 20);
        problems.push(Problem::new("host", cause, "use a machine or a container limit with at least 1 GiB"));
    }
    if let Some(now) = facts.now.filter(|now| now.as_second() < NOT_BEFORE) {
        let cause = format!("its clock is at {now}, which is before this program was built");
        problems.push(Problem::new("host", cause, "set the clock: certificates created now would be invalid"));
    }
    if facts.has_loopback == Some(false) {
        let cause = "its loopback interface is down: its processes cannot reach each other (`Network is unreachable`)";
        problems.push(Problem::new("host", cause, "bring it up: `ip link set lo up`"));
    }
    problems.extend(notes);
}

/// Sends nothing: to connect a datagram socket only selects a route.
fn has_loopback() -> Option<bool> {
    let local = Ipv4Addr::LOCALHOST;
    match UdpSocket::bind((local, 0)).and_then(|socket| socket.connect((local, 9))) {
        Ok(()) => Some(true),
        Err(error) if matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable) => {
            Some(false)
        }
        Err(_) => None,
    }
}

/// The nominal size as the machine reports it: the kernel and the filesystem take a share.
fn as_seen(sold_bytes: u64) -> u64 {
    sold_bytes / 20 * 19
}

fn gb(bytes: u64) -> String {
    format!("{:.0} GB", bytes as f64 / 1e9)
}

fn called(disk: Disk) -> &'static str {
    match disk {
        Disk::Nvme => "an NVMe SSD",
        Disk::Solid => "an SSD",
        Disk::Rotating => "a rotating disk",
    }
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn system(os_release: &str) -> Option<(String, String)> {
    let field = |name: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches(['"', '\'']).to_owned())
    };
    Some((field("ID")?, field("VERSION_ID").unwrap_or_default()))
}

fn cpu_flags(cpuinfo: &str) -> Option<Vec<String>> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    Some(line.split_once(':')?.1.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            cores: Some(16),
            memory_bytes: Some(64 << 30),
            disk_bytes: Some(1 << 40),
            disk: Some(Disk::Nvme),
            network_mbps: Some(10_000),
            has_loopback: Some(true),
            has_gpu: true,
            open_files: Some(65_536),
            kernel: Some((6, 1)),
            system: Some(("ubuntu".to_owned(), "24.04".to_owned())),
            cpu_flags: Some(vec!["avx2".to_owned(), "fma".to_owned()]),
            now: Some(jiff::Timestamp::from_second(NOT_BEFORE + 1).unwrap()),
        }
    }

    fn found(minimum: Minimum, change: impl FnOnce(&mut Facts)) -> Vec<Problem> {
        let mut facts = good();
        change(&mut facts);
        let mut problems = Vec::new();
        check(&facts, &minimum, Some(12_000), &mut problems);
        problems
    }

    #[test]
    fn adequate_machine_has_no_problem() {
        assert_eq!(found(Minimum::PRODUCTION, |_| {}), []);
    }

    #[test]
    fn machine_below_the_minimum_warns_or_blocks_when_strict() {
        let cases: [fn(&mut Facts); 9] = [
            |facts| facts.cores = Some(2),
            |facts| facts.memory_bytes = Some(4 << 30),
            |facts| facts.disk_bytes = Some(40_000_000_000),
            |facts| facts.disk = Some(Disk::Rotating),
            |facts| facts.network_mbps = Some(100),
            |facts| facts.kernel = Some((3, 10)),
            |facts| facts.system = Some(("ubuntu".to_owned(), "18.04".to_owned())),
            |facts| facts.open_files = Some(1024),
            |facts| facts.cpu_flags = Some(vec!["sse2".to_owned()]),
        ];
        for (number, case) in cases.into_iter().enumerate() {
            let borne = Minimum { blocks: false, ..Minimum::PRODUCTION };
            for minimum in [Minimum::DEVELOPMENT, Minimum::PRODUCTION, borne] {
                let problems = found(minimum, case);
                assert_eq!(problems.len(), 1, "case {number}");
                assert_eq!(problems[0].warning, !minimum.blocks, "case {number}");
                assert!(!problems[0].note, "case {number}");
            }
        }
    }

    #[test]
    fn production_requires_more_than_development() {
        let cases: [fn(&mut Facts); 5] = [
            |facts| facts.cores = Some(8),
            |facts| facts.memory_bytes = Some(16 << 30),
            |facts| facts.disk_bytes = Some(100_000_000_000),
            |facts| facts.disk = Some(Disk::Solid),
            |facts| facts.network_mbps = Some(1_000),
        ];
        for (number, case) in cases.into_iter().enumerate() {
            assert_eq!(found(Minimum::DEVELOPMENT, case), [], "case {number}");
            assert_eq!(found(Minimum::PRODUCTION, case).len(), 1, "case {number}");
        }
    }

    #[test]
    fn machine_sold_as_the_minimum_is_sufficient() {
        // 8 GB show about 7.7, a disk of 50 GB is formatted.
        let sold = |facts: &mut Facts| {
            (facts.memory_bytes, facts.disk_bytes) = (Some(7_700_000_000), Some(48_900_000_000));
        };
        assert_eq!(found(Minimum::DEVELOPMENT, sold), []);
    }

    #[test]
    fn unknown_and_merely_recommended_facts_are_notes() {
        let cases: [fn(&mut Facts); 3] =
            [|facts| facts.disk = None, |facts| facts.network_mbps = None, |facts| facts.has_gpu = false];
        for (number, case) in cases.into_iter().enumerate() {
            let problems = found(Minimum::PRODUCTION, case);
            assert!(matches!(&problems[..], [only] if only.note && only.warning), "case {number}: {problems:?}");
        }
        assert_eq!(found(Minimum::DEVELOPMENT, |facts| facts.has_gpu = false), []);
    }

    #[test]
    fn limit_of_open_files_that_lowers_the_limit_of_connections_is_a_note() {
        let problems = found(Minimum::PRODUCTION, |facts| facts.open_files = Some(20_000));
        let [only] = &problems[..] else { panic!("{problems:?}") };
        assert!(only.note && only.cause.contains("accepts 10000 connections"), "{only}");
        assert!(only.cause.contains("needs 24000 files"), "{only}");
        assert_eq!(found(Minimum::PRODUCTION, |facts| facts.open_files = Some(24_000)), []);
    }

    #[test]
    fn too_few_open_files_always_block() {
        for minimum in [Minimum::DEVELOPMENT, Minimum::PRODUCTION] {
            let problems = found(minimum, |facts| facts.open_files = Some(20));
            assert!(matches!(&problems[..], [only] if !only.warning && only.fix.contains("ulimit -n")), "{problems:?}");
        }
    }

    #[test]
    fn clock_in_the_past_always_blocks() {
        let problems = found(Minimum::DEVELOPMENT, |facts| facts.now = Some(jiff::Timestamp::UNIX_EPOCH));
        assert!(problems.iter().any(|problem| !problem.warning && problem.cause.contains("clock")), "{problems:?}");
    }

    #[test]
    fn loopback_interface_that_is_down_always_blocks() {
        for minimum in [Minimum::DEVELOPMENT, Minimum::PRODUCTION] {
            let problems = found(minimum, |facts| facts.has_loopback = Some(false));
            let [only] = &problems[..] else { panic!("{problems:?}") };
            assert!(!only.warning && only.fix.contains("`ip link set lo up`"), "{only}");
        }
        assert_eq!(found(Minimum::PRODUCTION, |facts| facts.has_loopback = None), []);
        assert_eq!(has_loopback(), Some(true), "tests need one");
    }

    #[test]
    fn system_files_are_parsed() {
        assert_eq!(version("5.14.0-362.el9.x86_64"), Some((5, 14)));
        assert_eq!(version("none"), None);
        assert_eq!(system("NAME=x\nID=\"rocky\"\nVERSION_ID='9.3'\n"), Some(("rocky".to_owned(), "9.3".to_owned())));
        assert_eq!(cpu_flags("a: b\nflags\t\t: fpu fma\n"), Some(vec!["fpu".to_owned(), "fma".to_owned()]));
    }
}
