//! The installed programs, and the keeper that ends their processes with the test program.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};

/// The folder that `build` created.
#[derive(Clone)]
pub(crate) struct Programs(Utf8PathBuf);

impl Programs {
    /// Finds the programs; an error says why they are not available.
    pub(crate) fn find() -> Result<Self, String> {
        let build = concat!(env!("CARGO_MANIFEST_DIR"), "/build");
        let said = Command::new("bash").args([build, "--built"]).output().expect("start bash");
        if said.status.success() {
            return Ok(Self(String::from_utf8_lossy(&said.stdout).trim().into()));
        }
        Err(String::from_utf8_lossy(&said.stderr).trim().to_owned())
    }

    pub(crate) fn path(&self, program: &str) -> Utf8PathBuf {
        self.0.join(program)
    }
}

/// Asks `build` for a path; `None` if it does not exist.
pub(crate) fn asked(question: &str) -> Option<Utf8PathBuf> {
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/build");
    let said = Command::new("bash").args([build, question]).output().expect("start bash");
    said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().into())
}

/// A shell that knows the folder of a cluster and all of its processes. Its input closes when the test program ends,
/// also by a signal. It then kills the processes and removes the folder.
pub(crate) struct Keeper {
    folder: Utf8PathBuf,
    shell: Child,
    input: Sender,
    children: Mutex<Vec<Child>>,
}

/// Reports processes to the keeper.
#[derive(Clone)]
pub(crate) struct Sender(Arc<Mutex<Option<ChildStdin>>>);

impl Sender {
    /// Registers a process, to end with the test program.
    pub(crate) fn began(&self, pid: u32) {
        self.tell(&format!("began {pid}"));
    }

    /// Removes a process that ended.
    pub(crate) fn ended(&self, pid: u32) {
        self.tell(&format!("ended {pid}"));
    }

    fn tell(&self, line: &str) {
        if let Some(input) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let _ = writeln!(input, "{line}").and_then(|()| input.flush());
        }
    }
}

/// Each input line reports a process group that started, or a process that ended and whose id may be reused.
const SCRIPT: &str = r#"
trap '' INT TERM
declare -A pids
while read -r what pid; do
  case $what in began) pids[$pid]=1 ;; ended) unset "pids[$pid]" ;; esac
done
for pid in "${!pids[@]}"; do kill -KILL -- "-$pid"; done
rm -rf -- "$0"
"#;

impl Keeper {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("textnlp-cluster").tempdir().expect("make a folder").keep();
        let folder = Utf8PathBuf::try_from(folder).expect("temporary folders have UTF-8 names");
        let mut command = Command::new("bash");
        command.args(["-c", SCRIPT, folder.as_str()]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = in_a_group_of_its_own(&mut command).spawn().expect("start bash");
        let input = Sender(Arc::new(Mutex::new(shell.stdin.take())));
        Self { folder, shell, input, children: Mutex::default() }
    }

    pub(crate) fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    pub(crate) fn sender(&self) -> Sender {
        self.input.clone()
    }

    /// Starts a process that ends with the test program; returns its id.
    pub(crate) fn spawn(&self, command: &mut Command) -> u32 {
        let child =
            in_a_group_of_its_own(command.stdin(Stdio::null())).spawn().expect("start a program of the cluster");
        self.input.began(child.id());
        let pid = child.id();
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        pid
    }

    /// Kills a process.
    pub(crate) fn end(&self, pid: u32) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = children.iter().position(|child| child.id() == pid) {
            let mut child = children.swap_remove(place);
            // The group contains the children of the process.
            if let Some(group) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = child.kill();
            let _ = child.wait();
            self.input.ended(pid);
        }
    }

    /// Whether a process has ended unexpectedly.
    pub(crate) fn lost_one(&self) -> bool {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.iter_mut().any(|child| child.try_wait().is_ok_and(|ended| ended.is_some()))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.input.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.shell.wait();
        for child in self.children.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let _ = child.wait();
        }
    }
}

/// A terminal signal is for the test program alone; the keeper ends the rest.
fn in_a_group_of_its_own(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    command.process_group(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};

    const AS_THE_OTHER: &str = "TEXTNLP_CLUSTER_KEEPS";

    /// The test program is killed; its processes and its folder disappear.
    #[test]
    fn processes_end_when_their_test_program_is_killed() {
        if std::env::var_os(AS_THE_OTHER).is_some() {
            let keeper = Keeper::new();
            let pid = keeper.spawn(Command::new("sleep").arg("1000"));
            let gone = keeper.spawn(Command::new("sleep").arg("1000"));
            keeper.end(gone);
            let mut out = std::io::stdout();
            writeln!(out, "\nheld {pid} {}", keeper.folder()).and_then(|()| out.flush()).expect("tell the test");
            let _ = std::io::stdin().read(&mut [0]);
            return;
        }
        let mut other = Command::new(std::env::current_exe().expect("find this test"));
        other.args(["--exact", "programs::tests::processes_end_when_their_test_program_is_killed", "--nocapture"]);
        let mut other =
            other.env(AS_THE_OTHER, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start it again");
        let lines = BufReader::new(other.stdout.take().expect("its output is a pipe")).lines().map_while(Result::ok);
        let held = lines
            .into_iter()
            .find_map(|line| line.strip_prefix("held ").map(str::to_owned))
            .expect("it says what it holds");
        let (pid, folder) = held.split_once(' ').expect("a number and a folder");
        let runs = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(runs() && std::path::Path::new(folder).exists());
        other.kill().expect("kill it");
        other.wait().expect("wait for it");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while runs() || std::path::Path::new(folder).exists() {
            assert!(std::time::Instant::now() < until, "{pid} still runs, or {folder} is still there");
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
    }
}
