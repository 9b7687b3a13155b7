//! Faults of a drill on real processes under a real supervisor: what they take, what they leave alone, and that they end.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::small::Small;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use rustix::process::{Pid, Signal};
use serde_json::json;
use textnlp_onprem::fault::{self, Fault, Faults, Kind};
use textnlp_onprem::supervise::{self, PhaseName};
use textnlp_provider::SiteName;

const DEADLINE: Duration = Duration::from_secs(60);

/// Local sites whose programs are shells that do nothing, and the place `witness`.
struct Sites {
    _dir: tempfile::TempDir,
    state: Utf8PathBuf,
    faults: Faults,
}

impl Sites {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("faults").tempdir().unwrap();
        let state = Utf8PathBuf::from_path_buf(dir.path().canonicalize().unwrap()).unwrap();
        let program = Utf8PathBuf::from(env!("CARGO_BIN_EXE_onprem-stand-in"));
        let sites = Self { _dir: dir, faults: Faults::new(&state, &program), state };
        for place in ["a", "witness"] {
            for folder in ["units", "run", "log", "data"] {
                std::fs::create_dir_all(sites.folder(place).join(folder)).unwrap();
            }
        }
        sites
    }

    fn folder(&self, place: &str) -> Utf8PathBuf {
        self.state.join("sites").join(place)
    }

    /// A program with a child of its own; its command line names the folder, so that a failed test can find it.
    fn unit(&self, place: &str, name: &str) {
        self.unit_that(place, name, "while :; do sleep 600; done");
    }

    fn unit_that(&self, place: &str, name: &str, script: &str) {
        let folder = self.folder(place);
        let unit = json!({
            "name": name, "argv": ["/bin/sh", "-c", script, folder], "cwd": folder, "operation": 1,
            "lineage": "l", "spec_digest": "d", "stop_grace_ms": 1000, "log": folder.join(format!("log/{name}.log")),
        });
        let path = folder.join(format!("units/{name}.json"));
        std::fs::write(&path, unit.to_string()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn begin(&self, place: &str) {
        let folder = self.folder(place);
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_onprem-stand-in"))
            .args(["supervise", "--folder", folder.as_str()])
            .spawn()
            .unwrap();
        // Reaped when it is killed, so that it does not look alive as a zombie.
        std::thread::spawn(move || child.wait());
    }

    /// The processes of a place once all its programs are ready: the supervisor first.
    async fn pids(&self, place: &str, units: usize) -> Vec<u32> {
        let began = Instant::now();
        loop {
            if let Ok(Some(status)) = supervise::status(&self.folder(place)).await {
                let ready =
                    status.units.iter().filter(|unit| unit.phase == PhaseName::Ready).filter_map(|unit| unit.pid);
                let pids: Vec<u32> = [status.pid].into_iter().chain(ready).collect();
                if pids.len() == units + 1 {
                    return pids;
                }
            }
            assert!(began.elapsed() < DEADLINE, "{place} never came up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn fault(&self, kind: Kind, lose_data: bool) -> Fault {
        let until = Timestamp::now() + SignedDuration::from_secs(60);
        Fault { id: "d1".to_owned(), site: SiteName::new("a").unwrap(), kind, until, lose_data, elsewhere: None }
    }

    fn file(&self) -> Utf8PathBuf {
        self.folder("witness").join("faults/d1.json")
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        for _ in 0..3 {
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                if pid != std::process::id() && String::from_utf8_lossy(&line).contains(self.state.as_str()) {
                    let pid = Pid::from_raw(pid as i32).unwrap();
                    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        }
    }
}

/// The state letter of a process: `S` sleeps, `T` is stopped; `None` when it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim().chars().next().filter(|state| *state != 'Z')
}

/// Whether a process is stopped. A shell whose child was stopped between `vfork` and `exec` waits for it uninterruptibly (`D`).
fn is_stopped(pid: u32) -> bool {
    matches!(state(pid), Some('T' | 'D'))
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "{what} never came true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn kill_fault_ends_every_process_and_its_revert_restarts_the_site() {
    let sites = Sites::new();
    sites.unit("a", "one");
    sites.unit("a", "two");
    sites.begin("a");
    let before = sites.pids("a", 2).await;
    sites.faults.inject(&sites.fault(Kind::Kill, false)).await.unwrap();
    assert!(sites.file().exists(), "the fault is written down as long as it is there");
    for pid in &before {
        assert_eq!(state(*pid), None, "{pid} lives");
    }
    assert_eq!(sites.faults.open().unwrap().len(), 1);
    assert_eq!(sites.faults.ready_units(&SiteName::new("a").unwrap()).await, [] as [String; 0]);
    sites.faults.revert("d1").await.unwrap();
    let after = sites.pids("a", 2).await;
    assert!(after.iter().all(|pid| !before.contains(pid)));
    assert!(!sites.file().exists());
    sites.faults.revert("d1").await.unwrap();
}

#[tokio::test]
async fn lost_data_is_unreadable_and_the_site_restarts_empty() {
    let sites = Sites::new();
    std::fs::write(sites.folder("a").join("data/precious"), "x").unwrap();
    sites.unit("a", "one");
    sites.begin("a");
    sites.pids("a", 1).await;
    sites.faults.inject(&sites.fault(Kind::Kill, true)).await.unwrap();
    let lost = sites.folder("a").join("data.lost-d1");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&lost).unwrap());
    assert_eq!(mode & 0o777, 0);
    sites.faults.revert("d1").await.unwrap();
    sites.pids("a", 1).await;
    assert_eq!(std::fs::read_dir(sites.folder("a").join("data")).unwrap().count(), 0);
    let site = SiteName::new("a").unwrap();
    assert_eq!(sites.faults.lost_data(&site, "d1"), Some(lost.clone()));
    sites.faults.discard_lost(&site, "d1").unwrap();
    assert!(!lost.exists());
    sites.faults.discard_lost(&site, "d1").unwrap();
}

#[tokio::test]
async fn freeze_fault_stops_processes_and_its_revert_resumes_them() {
    let sites = Sites::new();
    sites.unit("a", "one");
    sites.begin("a");
    let pids = sites.pids("a", 1).await;
    sites.faults.inject(&sites.fault(Kind::Freeze, false)).await.unwrap();
    for pid in &pids {
        let pid = *pid;
        until("stopped", || is_stopped(pid)).await;
    }
    sites.faults.revert("d1").await.unwrap();
    for pid in &pids {
        let pid = *pid;
        until("goes on", || state(pid).is_some() && !is_stopped(pid)).await;
    }
    assert_eq!(sites.pids("a", 1).await, pids, "the same processes went on");
}

#[tokio::test]
async fn faults_reach_processes_in_their_own_process_group() {
    let sites = Sites::new();
    // As the keeper of a PostgreSQL starts its server, which starts processes of its own.
    let script = r#"setsid sh -c 'setsid sleep 600 & echo $! >grandchild; wait' "$0" & echo $! >child; wait"#;
    sites.unit_that("a", "one", script);
    sites.begin("a");
    sites.pids("a", 1).await;
    let written = |name: &str| std::fs::read_to_string(sites.folder("a").join(name)).ok()?.trim().parse::<u32>().ok();
    until("both are there", || written("child").is_some() && written("grandchild").is_some()).await;
    let others = [written("child").unwrap(), written("grandchild").unwrap()];
    sites.faults.inject(&sites.fault(Kind::Freeze, false)).await.unwrap();
    for pid in others {
        until("stopped", || is_stopped(pid)).await;
    }
    sites.faults.revert("d1").await.unwrap();
    for pid in others {
        until("goes on", || state(pid).is_some() && !is_stopped(pid)).await;
    }
    sites.faults.inject(&sites.fault(Kind::Kill, false)).await.unwrap();
    for pid in others {
        until("dead", || state(pid).is_none()).await;
    }
    sites.faults.revert("d1").await.unwrap();
}

#[tokio::test]
async fn process_not_verified_to_belong_to_the_site_is_left_alone() {
    let sites = Sites::new();
    sites.unit("a", "one");
    sites.begin("a");
    let ours = sites.pids("a", 1).await;
    let run = sites.folder("a").join("run");
    // A number that was merely written down, without the lock.
    let mut written = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(run.join("ghost.lock"), "").unwrap();
    std::fs::write(run.join("ghost.pid"), json!({ "pid": written.id() }).to_string()).unwrap();
    // A lock whose holder, this very test, wrote nothing of itself.
    let held =
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(run.join("strange.lock")).unwrap();
    rustix::fs::fcntl_lock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    // Looking at the lock from this process would give it up, so the fault is injected by another.
    let fault = sites.fault(Kind::Kill, false);
    let (state_folder, program) = (sites.state.clone(), env!("CARGO_BIN_EXE_onprem-stand-in"));
    let said = std::process::Command::new(program)
        .args(["inject", "--state", state_folder.as_str(), "--fault", &serde_json::to_string(&fault).unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("not signalled: strange"), "{said}");
    assert_eq!(written.try_wait().unwrap(), None, "a number in a file is no proof");
    assert_eq!(state(ours[1]), None, "what is proven is killed all the same");
    written.kill().unwrap();
    written.wait().unwrap();
    drop(held);
}

#[tokio::test]
async fn witness_reverts_a_fault_whose_drill_died() {
    let sites = Sites::new();
    sites.unit("a", "one");
    sites.begin("a");
    sites.begin("witness");
    let before = sites.pids("a", 1).await;
    sites.pids("witness", 0).await;
    let fault = Fault { until: Timestamp::now() + SignedDuration::from_secs(10), ..sites.fault(Kind::Kill, false) };
    sites.faults.inject(&fault).await.unwrap();
    until("the fault ended", || !sites.file().exists()).await;
    let after = sites.pids("a", 1).await;
    assert_ne!(before[1], after[1]);
    // The file goes first, the word about it comes after.
    let log = sites.folder("witness").join("log/supervisor.log");
    let told =
        || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("(kill of a): it had expired and was reverted"));
    until("it is told", told).await;
}

#[tokio::test]
async fn blackhole_fault_is_sent_to_the_relay_with_its_expiry() {
    let sites = Sites::new();
    let listener = std::os::unix::net::UnixListener::bind(sites.folder("a").join("run/border.sock")).unwrap();
    let border = std::thread::spawn(move || {
        [0, 1].map(|_| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
            String::from_utf8_lossy(&bytes[..n]).into_owned()
        })
    });
    sites.faults.inject(&sites.fault(Kind::Blackhole, false)).await.unwrap();
    sites.faults.revert("d1").await.unwrap();
    let [put, delete] = border.join().unwrap();
    assert!(put.starts_with("PUT /v1/fault ") && put.contains("\"kind\":\"blackhole\",\"ttl_ms\":5"), "{put}");
    assert!(delete.starts_with("DELETE /v1/fault "), "{delete}");
    // A border that is gone holds nothing up, and a drill on it cannot begin.
    let error = sites.faults.inject(&sites.fault(Kind::Blackhole, false)).await.unwrap_err();
    assert!(error.to_string().contains("cut off the links of site a"), "{error}");
    sites.faults.revert("d1").await.unwrap();
    assert!(!sites.file().exists());
}

#[tokio::test]
async fn only_a_dedicated_filesystem_is_filled() {
    let sites = Sites::new();
    let error = sites.faults.inject(&sites.fault(Kind::DiskFull, false)).await.unwrap_err();
    assert!(error.to_string().contains("is on the same filesystem as other data"), "{error}");
    assert!(!sites.file().exists(), "what was refused leaves nothing");
    let data = sites.folder("a").join("data");
    let Some(small) = Small::mount(data.as_path(), "size=3m") else { return };
    let injected = sites.faults.inject(&sites.fault(Kind::DiskFull, false)).await;
    let write = std::fs::write(data.join("more"), vec![1; 64 << 10]);
    let _ = std::fs::remove_file(data.join("more"));
    let reverted = sites.faults.revert("d1").await;
    // tmpfs counts freed blocks with a delay.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let again = loop {
        let again = std::fs::write(data.join("more"), vec![1; 64 << 10]);
        if again.is_ok() || std::time::Instant::now() > deadline {
            break again;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let left = std::fs::read_dir(&data).unwrap().count();
    drop(small);
    injected.unwrap();
    assert_eq!(write.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    reverted.unwrap();
    again.unwrap();
    assert_eq!(left, 1);
}

#[tokio::test]
async fn invalid_faults_are_refused_and_leave_nothing() {
    let sites = Sites::new();
    let check = async |change: fn(&mut Fault), says: &str| {
        let mut fault = sites.fault(Kind::Freeze, false);
        change(&mut fault);
        let error = sites.faults.inject(&fault).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!sites.folder("witness").join("faults").exists());
    };
    check(|_| {}, "nothing runs at site a").await;
    check(|fault| fault.id = "../x".to_owned(), "is not an id").await;
    check(|fault| fault.site = SiteName::new("witness").unwrap(), "a drill cannot inject one there").await;
    check(|fault| fault.site = SiteName::new("b").unwrap(), "there is no site b").await;
    check(|fault| fault.lose_data = true, "only with `kill`").await;
    check(|fault| fault.until = Timestamp::now() - SignedDuration::from_secs(1), "expire before it starts").await;
    // One fault per site: two could not be told apart when they are taken back.
    std::fs::create_dir(sites.folder("witness").join("faults")).unwrap();
    std::fs::write(sites.file(), serde_json::to_vec(&sites.fault(Kind::Kill, false)).unwrap()).unwrap();
    let other = Fault { id: "d2".to_owned(), ..sites.fault(Kind::Blackhole, false) };
    let error = sites.faults.inject(&other).await.unwrap_err().to_string();
    assert!(error.contains("fault d1 (kill) of a has not been reverted"), "{error}");
}

#[test]
fn fault_sockets_match_those_of_the_programs() {
    let site = SiteName::new("a").unwrap();
    assert_eq!(fault::socket(Utf8Path::new("/s"), &site, "watch"), "/s/sites/a/run/watch.sock");
}
