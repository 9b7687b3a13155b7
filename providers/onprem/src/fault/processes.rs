//! The processes of a site, as far as they are proven to be: by the locks that they hold and by what they wrote of themselves.
//!
//! What a program has started is the site's too, whatever group it is in and whomever it runs as: a PostgreSQL is in one of its own.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::layout::SiteFolder;
use crate::lock;
use crate::supervise::{Running, is_unit_name, unit_names};

/// A child between its lock and its pid file needs milliseconds.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
/// Without a supervisor nothing new begins; a child that it started a moment ago shows within this.
const STRAGGLERS: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(10);
/// Processes below one program that are looked at; a PostgreSQL has one per connection.
const MOST_BELOW: usize = 4096;

/// The supervisor of a site, and its programs.
pub(super) struct Processes<'a> {
    folder: &'a SiteFolder,
}

/// A process that is the site's, and cannot become another one while this is held.
struct Proven {
    pid: Pid,
    handle: rustix::fd::OwnedFd,
}

impl<'a> Processes<'a> {
    pub(super) fn of(folder: &'a SiteFolder) -> Self {
        Self { folder }
    }

    /// Kills the supervisor, so that it starts nothing again, then everything else, until nothing holds a lock.
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
            if began.elapsed() > SETTLED_WITHIN {
                left?;
                return Err(format!(
                    "still alive after {} s: {}",
                    SETTLED_WITHIN.as_secs(),
                    self.holders()?.join(", ")
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Stops the supervisor, then everything else.
    pub(super) async fn freeze(&self) -> Result<(), String> {
        let began = Instant::now();
        self.signal_supervisor(Signal::STOP)?;
        loop {
            match self.signal_units(Signal::STOP) {
                // Twice over a moment, for a child that was between its start and its lock.
                Ok(()) if began.elapsed() >= STRAGGLERS => return Ok(()),
                Err(why) if began.elapsed() > SETTLED_WITHIN => return Err(why),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Signals the programs, then the supervisor: one that goes on first would find its programs still standing.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), String> {
        let units = self.signal_units(signal);
        self.signal_supervisor(signal)?;
        units
    }

    fn supervisor(&self) -> Result<Option<u32>, String> {
        lock::holder(&self.folder.lock("supervisor")).map_err(|e| format!("ask who holds the supervisor's lock: {e}"))
    }

    fn signal_supervisor(&self, signal: Signal) -> Result<(), String> {
        let Some(pid) = self.supervisor()? else { return Ok(()) };
        let Some(proven) = Proven::when(pid, || {
            // Its lock, and the folder on its command line: no supervisor of another site, no stranger.
            self.supervisor().ok().flatten() == Some(pid) && names_folder(pid, self.folder)
        }) else {
            return match self.supervisor()? {
                Some(now) if now == pid => Err(format!(
                    "process {pid} holds the supervisor's lock and is not proven to be it: it was not touched"
                )),
                _ => Ok(()),
            };
        };
        proven.signal(signal, false)
    }

    /// Signals every program that is proven to be the site's, with its children. The error names those that are not, which are left alone.
    fn signal_units(&self, signal: Signal) -> Result<(), String> {
        let mut strange = Vec::new();
        for name in self.names() {
            let Some(pid) = self.holder(&name)? else { continue };
            let proof = || {
                self.holder(&name).ok().flatten() == Some(pid) && Running::of_holder(self.folder, &name, pid).is_some()
            };
            match Proven::when(pid, proof) {
                Some(proven) => proven.signal(signal, true)?,
                None if self.holder(&name)? == Some(pid) => strange.push(format!("{name} (process {pid})")),
                None => {}
            }
        }
        if strange.is_empty() {
            return Ok(());
        }
        Err(format!("not proven to be of this site, and not touched: {}", strange.join(", ")))
    }

    fn holder(&self, name: &str) -> Result<Option<u32>, String> {
        lock::holder(&self.folder.lock(name)).map_err(|e| format!("ask who holds the lock of {name}: {e}"))
    }

    /// The programs that hold a lock.
    fn holders(&self) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        for name in self.names() {
            if self.holder(&name)?.is_some() {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Every name that may have a process: of a unit, or of a lock whose unit file is gone while its program goes on.
    fn names(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = unit_names(self.folder).unwrap_or_default().into_iter().collect();
        let locks = std::fs::read_dir(self.folder.join("run")).into_iter().flatten().flatten();
        names.extend(locks.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".lock").filter(|name| is_unit_name(name)).map(str::to_owned)
        }));
        names.remove("supervisor");
        names
    }
}

impl Proven {
    /// Takes hold of a process, then looks whether it is the one: afterwards its number cannot be somebody else's.
    fn when(pid: u32, is_it: impl FnOnce() -> bool) -> Option<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        is_it().then_some(Self { pid, handle })
    }

    /// With `below`, what it has started too: its group, when it leads one as programs of ours do, and whoever has left that. A group keeps
    /// its number while anybody is in it, and its leader was just seen alive.
    fn signal(&self, signal: Signal, below: bool) -> Result<(), String> {
        // Looked for before: of a dead one nobody can tell any more what it had started.
        let others = if below { self.below() } else { Vec::new() };
        let leads = below && rustix::process::getpgid(Some(self.pid)).is_ok_and(|of| of == self.pid);
        let sent = if leads {
            rustix::process::kill_process_group(self.pid, signal)
        } else {
            rustix::process::pidfd_send_signal(&self.handle, signal)
        };
        match sent {
            // Gone already is what a signal wants.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(format!("signal process {}: {error}", self.pid.as_raw_nonzero())),
        }
        others.iter().try_for_each(|other| other.signal(signal, false))
    }

    /// Everything that it has started, and what that has, parents first.
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

/// The processes that a process has started and that are alive.
fn children(pid: Pid) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// Who has started a process.
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
