//! The verified processes of a site: identified by the locks that they hold and their pid files.
//!
//! A program's descendants belong to the site too, in any process group and as any user: PostgreSQL runs in its own
//! group.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use textnlp_keys::SiteFolder;

use crate::lock;
use crate::supervise::{Running, names_with_locks};

/// A child needs milliseconds between its lock and its pid file.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);
/// Without a supervisor no program starts. A child that was just started shows up within this time.
const STRAGGLERS: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(10);
/// The most descendants of one program that are read; PostgreSQL has one per connection.
const MOST_BELOW: usize = 4096;

/// The supervisor of a site, and its programs.
pub(super) struct Processes<'a> {
    folder: &'a SiteFolder,
}

/// A verified process of the site, held by a pidfd so that its pid cannot be reused.
struct VerifiedProcess {
    pid: Pid,
    handle: rustix::fd::OwnedFd,
}

impl<'a> Processes<'a> {
    pub(super) fn of(folder: &'a SiteFolder) -> Self {
        Self { folder }
    }

    /// Kills the supervisor, so that it restarts nothing, then all other processes, until no lock is held.
    pub(super) async fn kill(&self) -> Result<(), String> {
        let began = Instant::now();
        self.signal_supervisor(Signal::KILL)?;
        let mut quiet_since = None;
        loop {
            let left = self.signal_units(Signal::KILL);
            let supervisor = self.supervisor()?.is_some();
            if left.is_ok() && !supervisor && self.holders()?.is_empty() {
                let since = *quiet_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STRAGGLERS {
                    return Ok(());
                }
            } else {
                quiet_since = None;
            }
            if began.elapsed() > SETTLE_TIMEOUT {
                left?;
                return Err(format!(
                    "still alive after {} s: {}",
                    SETTLE_TIMEOUT.as_secs(),
                    self.holders()?.join(", ")
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Stops the supervisor, then all other processes.
    pub(super) async fn freeze(&self) -> Result<(), String> {
        let began = Instant::now();
        self.signal_supervisor(Signal::STOP)?;
        loop {
            match self.signal_units(Signal::STOP) {
                // Repeated for a while, for a child that was between its start and its lock.
                Ok(()) if began.elapsed() >= STRAGGLERS => return Ok(()),
                Err(why) if began.elapsed() > SETTLE_TIMEOUT => return Err(why),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Signals the programs, then the supervisor: a supervisor that continues first would find its programs stopped.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), String> {
        let units = self.signal_units(signal);
        self.signal_supervisor(signal)?;
        units
    }

    /// Kills one program with its descendants. The supervisor starts it again.
    pub(super) fn kill_unit(&self, name: &str) -> Result<(), String> {
        let running = || self.holder(name).ok().flatten();
        let Some(pid) = running() else { return Err(format!("{name} does not run")) };
        let verify = || running() == Some(pid) && Running::of_holder(self.folder, name, pid).is_some();
        match VerifiedProcess::when(pid, verify) {
            Some(process) => process.signal(Signal::KILL, true),
            None => Err(format!("{name} (process {pid}) could not be verified, and was not signalled")),
        }
    }

    fn supervisor(&self) -> Result<Option<u32>, String> {
        lock::holder(&self.folder.lock("supervisor"))
            .map_err(|e| format!("find the process that holds the supervisor's lock: {e}"))
    }

    fn signal_supervisor(&self, signal: Signal) -> Result<(), String> {
        let Some(pid) = self.supervisor()? else { return Ok(()) };
        let Some(proven) = VerifiedProcess::when(pid, || {
            // Verified by its lock and the folder on its command line, so it is no other site's supervisor.
            self.supervisor().ok().flatten() == Some(pid) && names_folder(pid, self.folder)
        }) else {
            return match self.supervisor()? {
                Some(now) if now == pid => Err(format!(
                    "process {pid} holds the supervisor's lock but could not be verified as the supervisor: it was not signalled"
                )),
                _ => Ok(()),
            };
        };
        proven.signal(signal, false)
    }

    /// Signals every verified program of the site and its descendants. The error names the unverified ones, which get
    /// no signal.
    fn signal_units(&self, signal: Signal) -> Result<(), String> {
        let mut strange = Vec::new();
        for name in self.names()? {
            let Some(pid) = self.holder(&name)? else { continue };
            let verify = || {
                self.holder(&name).ok().flatten() == Some(pid) && Running::of_holder(self.folder, &name, pid).is_some()
            };
            match VerifiedProcess::when(pid, verify) {
                Some(proven) => proven.signal(signal, true)?,
                None if self.holder(&name)? == Some(pid) => strange.push(format!("{name} (process {pid})")),
                None => {}
            }
        }
        if strange.is_empty() {
            return Ok(());
        }
        Err(format!("not verified as processes of this site, and not signalled: {}", strange.join(", ")))
    }

    fn holder(&self, name: &str) -> Result<Option<u32>, String> {
        lock::holder(&self.folder.lock(name))
            .map_err(|e| format!("find the process that holds the lock of {name}: {e}"))
    }

    /// The programs that hold a lock.
    fn holders(&self) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        for name in self.names()? {
            if self.holder(&name)?.is_some() {
                found.push(name);
            }
        }
        Ok(found)
    }

    fn names(&self) -> Result<BTreeSet<String>, String> {
        let mut names = names_with_locks(self.folder).map_err(|e| format!("list the programs of the site: {e}"))?;
        names.remove("supervisor");
        Ok(names)
    }
}

impl VerifiedProcess {
    /// Opens a pidfd, then verifies the process: from then on its pid cannot be reused unnoticed.
    fn when(pid: u32, is_it: impl FnOnce() -> bool) -> Option<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        is_it().then_some(Self { pid, handle })
    }

    /// With `below`, signals its process group where it leads one, and the descendants that left the group. The group
    /// id stays valid while the group has members, and its leader was just seen alive.
    fn signal(&self, signal: Signal, below: bool) -> Result<(), String> {
        // Read before the signal: the children of a dead process are no longer known.
        let others = if below { self.below() } else { Vec::new() };
        let leads = below && rustix::process::getpgid(Some(self.pid)).is_ok_and(|of| of == self.pid);
        let sent = if leads {
            rustix::process::kill_process_group(self.pid, signal)
        } else {
            rustix::process::pidfd_send_signal(&self.handle, signal)
        };
        match sent {
            // A process that is gone already needs no signal.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(format!("signal process {}: {error}", self.pid.as_raw_nonzero())),
        }
        others.iter().try_for_each(|other| other.signal(signal, false))
    }

    /// All descendants, parents first.
    fn below(&self) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut next = 0;
        let mut parent = self.pid;
        loop {
            let room = MOST_BELOW - found.len();
            let proven = |child| Self::when(child, || parent_of(child) == Some(parent));
            found.extend(children(parent).into_iter().filter_map(proven).take(room));
            let Some(one) = found.get(next) else { return found };
            (parent, next) = (one.pid, next + 1);
        }
    }
}

/// The living children of a process.
fn children(pid: Pid) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// The parent of a process.
fn parent_of(pid: u32) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; the state and the parent follow it.
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
    Pid::from_raw(parent.parse().ok()?)
}

/// Whether a process was started for this folder, by its own command line.
fn names_folder(pid: u32, folder: &SiteFolder) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == folder.root().as_str().as_bytes())
}
