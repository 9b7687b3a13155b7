//! Support for end-to-end tests: a sandbox that runs the real program as an operator would.
//!
//! A sandbox has its own folder, state, home and ports. It stops everything it started, also after a failed test.
#![forbid(unsafe_code)]

pub mod bucket;
pub mod checkov;
pub mod guide;
pub mod http;
pub mod metrics;
pub mod pebble;
pub mod phases;
pub mod ports;
pub mod seeds;
pub mod servers;
pub mod small;
pub mod stand_in;

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use tempfile::TempDir;

use ports::Ports;

/// A folder with everything that one test needs.
pub struct Sandbox {
    folder: TempDir,
    /// The service port.
    pub port: u16,
    /// The metrics port.
    pub metrics_port: u16,
    _ports: Ports,
    /// Variables for every run of the program.
    pub variables: Vec<(&'static str, String)>,
}

/// The output of a run.
#[derive(Debug)]
pub struct Said {
    /// The exit status; -1 if a signal ended the process.
    pub exit: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Standard output as a JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|e| panic!("no JSON document ({e}):\n{}\n{}", self.out, self.err))
    }

    /// Fails the test unless the exit status is this one. The message ends with what failed.
    #[track_caller]
    pub fn expect(self, exit: i32) -> Self {
        let (out, err) = (&self.out, &self.err);
        assert_eq!(self.exit, exit, "\n--- stdout\n{out}\n--- stderr\n{err}{}", self.failures());
        self
    }

    /// The error of its document, and each failed step, one a line: CI cuts long messages in the middle. A text ends with its error.
    fn failures(&self) -> String {
        let document: Value = serde_json::from_str(&self.out).unwrap_or_default();
        let steps = document["outcome"]["failed"].as_array().into_iter().flatten();
        let all = std::iter::once(&document["error"]).chain(steps).filter(|one| one.is_object());
        all.map(|one| format!("\n--- failed: {one}")).collect()
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new("sandbox")
    }
}

impl Sandbox {
    /// Creates an empty sandbox; `name` becomes part of its path.
    pub fn new(name: &str) -> Self {
        Self::at(tempfile::Builder::new().prefix(name).tempdir().expect("make a folder"))
    }

    /// Creates a sandbox in an existing folder.
    pub fn at(folder: TempDir) -> Self {
        let ports = Ports::ask(2);
        let (port, metrics_port) = (ports.numbers()[0], ports.numbers()[1]);
        Self { folder, port, metrics_port, _ports: ports, variables: Vec::new() }
    }

    /// Its folder.
    pub fn folder(&self) -> &Utf8Path {
        Utf8Path::from_path(self.folder.path()).expect("temporary folders have UTF-8 names")
    }

    /// The state folder of an environment.
    pub fn state(&self, environment: &str) -> Utf8PathBuf {
        self.folder().join("state").join(environment)
    }

    /// Prepares a run of the program, with the sandbox's ports and without the caller's environment variables.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(self.folder())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder().join("home"))
            // Not a `textnlp-server` that another build may have left in the same folder.
            .env("TEXTNLP_SERVER", program())
            .env("TEXTNLP_STATE_DIR", self.folder().join("state"))
            .env("TEXTNLP_SET__server__api__port", self.port.to_string())
            .env("TEXTNLP_SET__server__monitoring__metrics_port", self.metrics_port.to_string())
            // The recorded advisories are as old as the checkout.
            .env("TEXTNLP_SET__gates__advisories", "warn")
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        said(self.command(args).output().expect("start the program"))
    }

    /// Runs a line of a guide in a shell, which finds the program by its name, in the sandbox's folder.
    pub fn shell(&self, line: &str) -> Said {
        let bin = self.folder().join("bin");
        if !bin.is_dir() {
            std::fs::create_dir(&bin).expect("make a folder for the program");
            std::os::unix::fs::symlink(program(), bin.join("textnlp-deploy")).expect("link the program");
        }
        let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
        let program = self.command(&[]);
        let mut shell = Command::new("sh");
        shell.args(["-euc", line]).current_dir(self.folder()).stdin(Stdio::null()).env_clear();
        shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PATH", path);
        said(shell.output().expect("start a shell"))
    }

    /// Starts the program in the background.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the program")
    }

    /// Runs `up` for an environment without its gate.
    #[track_caller]
    pub fn up(&self, environment: &str) -> Said {
        self.run(&["up", "--env", environment, "--yes", "--no-gate"]).expect(0)
    }

    /// Ends what a drill did to a site before its time: the file of each fault says when that is.
    pub fn expire_faults(&self, environment: &str) {
        let folder = self.state(environment).join("sites/witness/faults");
        let entries = folder.read_dir_utf8().expect("list the faults").flatten();
        for entry in entries.filter(|entry| entry.file_name().ends_with(".json")) {
            let text = std::fs::read(entry.path()).expect("read a fault");
            let mut fault: Value = serde_json::from_slice(&text).expect("a fault is a JSON document");
            fault["until"] = Value::from("2026-01-01T00:00:00Z");
            // In one step: the supervisor may read it at any time.
            let expired = folder.join("expired");
            write_secret(&expired, &fault.to_string());
            std::fs::rename(&expired, entry.path()).expect("replace the fault");
        }
    }

    /// The folder of the only site.
    pub fn site(&self, environment: &str) -> Utf8PathBuf {
        self.state(environment).join("sites/here")
    }

    /// The first API key of an environment.
    pub fn first_key(&self, environment: &str) -> String {
        let folder = self.state(environment).join("secrets/here.api-key");
        let mut versions: Vec<_> = folder.read_dir_utf8().expect("list the key's versions").flatten().collect();
        versions.sort_by_key(|entry| entry.file_name().to_owned());
        let newest = versions.last().expect("a key is there");
        std::fs::read_to_string(newest.path()).expect("read the key").trim().to_owned()
    }

    /// The id of the only process whose command line contains this word.
    pub fn pid(&self, word: &str) -> Option<u32> {
        let started = Instant::now();
        loop {
            let found: Vec<_> = self.processes_now().into_iter().filter(|(_, line)| line.contains(word)).collect();
            if found.len() < 2 {
                return found.first().map(|(pid, _)| *pid);
            }
            // A child has the command line of its parent until its own `exec`.
            assert!(started.elapsed() < EXIT_TIMEOUT, "more than one process of {word}: {found:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills a process and waits until it is gone: until then it holds its locks and ports.
    #[track_caller]
    pub fn kill(&self, pid: u32) {
        signal(pid, rustix::process::Signal::KILL);
        let started = Instant::now();
        while is_alive(pid) {
            assert!(started.elapsed() < EXIT_TIMEOUT, "process {pid} was killed and is still there");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// All files below a folder of the sandbox: relative paths, sorted.
    pub fn files(&self, folder: &Utf8Path) -> Vec<String> {
        let (mut found, mut todo) = (Vec::new(), vec![folder.to_owned()]);
        while let Some(next) = todo.pop() {
            for entry in next.read_dir_utf8().into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    todo.push(entry.path().to_owned());
                } else {
                    found.push(entry.path().strip_prefix(folder).expect("it lies below").to_string());
                }
            }
        }
        found.sort();
        found
    }

    /// All processes whose command line contains the sandbox's path, and that are the same a moment later: a child has
    /// the command line of its parent until its own `exec`, and some helpers run only briefly.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let mut found = self.processes_now();
        if !found.is_empty() {
            std::thread::sleep(Duration::from_millis(100));
            let later = self.processes_now();
            found.retain(|process| later.contains(process));
        }
        found
    }

    /// All processes whose command line contains the sandbox's path at this moment.
    pub fn processes_now(&self) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("list processes").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&raw).replace('\0', " ");
            if line.contains(self.folder().as_str()) {
                found.push((pid, line.trim().to_owned()));
            }
        }
        found
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Supervisors first: they would restart their children.
        for only_supervisors in [true, false] {
            for (pid, line) in self.processes_now() {
                if !only_supervisors || line.contains("supervise") {
                    signal(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

/// The longest time that a killed process, or one between `fork` and `exec`, takes on a busy machine.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether any thread of a process runs. One that its parent has not waited for yet is a zombie and holds nothing; the
/// first thread may be a zombie before the others have ended.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let is_zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !is_zombie || threads > 1
}

/// Sends a signal to a process; it may have ended already.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A pseudorandom number generator with a seed (SplitMix64, <https://prng.di.unimi.it/splitmix64.c>).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// An index of a list of this length; 0 for an empty one.
    pub fn index(&mut self, length: usize) -> usize {
        if length == 0 { 0 } else { usize::try_from(self.below(length as u64)).unwrap_or(0) }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Converts a process output.
pub fn said(output: Output) -> Said {
    Said {
        exit: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The first poll interval.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The longest poll interval: most polls start a process.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(250);
/// The timeout of a poll, reached only if the condition never holds. The slowest one that does is a scheduled backup:
/// it yields to everything else, and sometimes takes a minute beside other tests on two cores.
const POLL_TIMEOUT: Duration = Duration::from_secs(300);

/// Polls after 20, 40, … 250 ms until a condition holds; fails the test after five minutes.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    poll(what, POLL_INTERVAL_MAX, look)
}

/// The same for a condition that holds only briefly, such as work that is about to be killed: polls every 20 ms.
#[track_caller]
pub fn promptly<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    poll(what, POLL_INTERVAL, look)
}

#[track_caller]
fn poll<T>(what: &str, longest: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + POLL_TIMEOUT;
    let mut pause = POLL_INTERVAL;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not come true within five minutes");
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(longest);
    }
}

/// The program under test, from the same target folder as the test.
pub fn program() -> Utf8PathBuf {
    let this = std::env::current_exe().expect("find this test");
    let release = this.parent().and_then(|deps| deps.parent()).expect("tests lie in target/…/deps");
    let program = Utf8PathBuf::try_from(release.join("textnlp-deploy")).expect("a UTF-8 path");
    assert!(program.exists(), "build the program first: cargo build --release");
    program
}

/// Asserts that the document contains every key; `a.b` is a nested one.
#[track_caller]
pub fn has(document: &Value, keys: &[&str]) {
    for key in keys {
        let pointer = format!("/{}", key.replace('.', "/"));
        assert!(document.pointer(&pointer).is_some(), "no `{key}` in {document:#}");
    }
}

/// The keys of the `up` document that are part of its contract.
pub const UP_KEYS: &[&str] = &[
    "format",
    "ok",
    "exit",
    "environment",
    "phase",
    "lineage",
    "address",
    "ca_file",
    "key_file",
    "region",
    "sites",
    "plan",
    "gate.state",
    "gate.checks",
    "retained",
    "report",
    "seconds",
];

/// Prints the measurements of a drill into the log of a test.
#[allow(clippy::print_stderr)]
pub fn print_drill(report: &Value) {
    let found = &report["figures"];
    eprintln!(
        "{} of {}: service {} ms, writes {} ms, lost {}, unaccounted {}, failed {}, {} s in all",
        report["fault"],
        report["site"],
        found["service_rto_ms"],
        found["control_rto_ms"],
        report["lost"],
        report["unaccounted"],
        report["requests_failed"],
        report["seconds"],
    );
}

/// The counts of a plan: create, update, replace, delete, unchanged.
pub fn counts(document: &Value) -> [i64; 5] {
    ["create", "update", "replace", "delete", "unchanged"].map(|word| {
        document["plan"][word].as_i64().unwrap_or_else(|| panic!("plan.{word} is no integer: {document:#}"))
    })
}

/// A folder of advisories as RustSec publishes them, with one of this day against every version of a crate.
pub fn advisories(folder: &Utf8Path, krate: &str, cvss: &str, date: &str) -> String {
    let place = folder.join("crates").join(krate);
    std::fs::create_dir_all(&place).expect("make a folder of advisories");
    let text = format!(
        "```toml\n[advisory]\nid = \"RUSTSEC-2025-9999\"\npackage = \"{krate}\"\ndate = \"{date}\"\ncvss = \"{cvss}\"\n\n\
         [versions]\npatched = []\n```\n\n# A flaw that was made up for a story\n\nNothing is wrong with it.\n"
    );
    std::fs::write(place.join("RUSTSEC-2025-9999.md"), text).expect("write an advisory");
    folder.to_string()
}

/// Writes a file that only its owner can read.
pub fn write_secret(path: &Utf8Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("write a secret");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("make it private");
}

/// Today, as advisories are dated.
pub fn today() -> String {
    in_days(0)
}

/// The date in a number of days.
pub fn in_days(days: u32) -> String {
    let day = format!("+{days} days");
    let output = Command::new("date").args(["-u", "-d", &day, "+%Y-%m-%d"]).output().expect("ask for the date");
    said(output).expect(0).out.trim().to_owned()
}

/// Copies a folder without sockets, which belong to running processes.
pub fn copy(from: &Utf8Path, to: &Utf8Path) {
    std::fs::create_dir_all(to).expect("make a folder");
    for entry in from.read_dir_utf8().expect("list a folder").flatten() {
        let to = to.join(entry.file_name());
        match entry.file_type().expect("look at a file") {
            kind if kind.is_dir() => copy(entry.path(), &to),
            kind if kind.is_file() => drop(std::fs::copy(entry.path(), to).expect("copy a file")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "\"resource\":\"main/server\"}\n--- failed: {\"message\":\"wait for main/server\"}")]
    fn unexpected_exit_ends_with_the_failed_steps() {
        let failed = r#"{"message":"wait for main/server"}"#;
        let out = format!(r#"{{"error":{{"resource":"main/server"}},"outcome":{{"done":[0],"failed":[{failed}]}}}}"#);
        drop(Said { exit: 1, out, err: "progress".to_owned() }.expect(0));
    }
}
