//! The life cycle of one unit: start, probe, signal, stop, restart.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use rustix::process::{Pid, Signal};
use textnlp_keys::{SiteFolder, files::Stamp};
use tokio::task::JoinHandle;

use super::child::Running;
use super::control::{PhaseName, UnitStatus};
use super::environment::clean_environment;
use super::output::{self, Notes};
use super::probe::probe;
use super::sockets::{self, Sockets};
use super::unit::{State, Unit};
use crate::lock;

/// The first pause before a program that ended is restarted; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After this time ready, the pause starts from [`PAUSE_FIRST`] again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// Probe interval of a program that is not ready yet.
const PROBE_STARTING: Duration = Duration::from_millis(100);
/// Probe interval of a ready program.
const PROBE_READY: Duration = Duration::from_secs(2);
/// The next replica restarts only after this time, so that gateways have seen this one ready. A gateway polls its
/// replicas twice a second; on a busy machine a poll may be late.
const SETTLED: Duration = Duration::from_secs(2);
/// A program without a pid file after this time is unverified.
const UNKNOWN_FOR: Duration = Duration::from_secs(3);
/// Limit of replaced programs of one unit that still drain. At this limit, a restart waits until the current program
/// has ended.
const ASIDE_MAX: usize = 4;
/// After this many failed starts, a program is started without the kept sockets.
const FAILED_STARTS_MAX: u32 = 3;
/// Interval of SIGKILLs, for a process that hangs in the kernel.
const KILL_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not checked yet: a program may be running.
    New,
    Waiting {
        until: Instant,
    },
    Starting,
    Ready {
        since: Instant,
    },
    Unready,
    Stopping {
        kill_at: Instant,
    },
    Stopped,
}

/// A unit and its current state.
pub(super) struct ManagedUnit {
    pub(super) unit: Unit,
    /// Its file is missing; only a unit file with the state `stopped` stops a program.
    pub(super) file_gone: bool,
    phase: Phase,
    /// Set for a child of this process; an adopted program is known by its lock alone.
    child: Option<Child>,
    pid: Option<u32>,
    running: Option<Running>,
    /// Since when a program without a pid file runs.
    unknown_since: Option<Instant>,
    pause: Duration,
    restarts: u32,
    failures: u32,
    says: String,
    asked: Option<PendingRequest>,
    probing: Option<JoinHandle<Result<(), String>>>,
    probed: Option<Instant>,
    watched: Vec<(Utf8PathBuf, Option<Stamp>)>,
    sockets: Sockets,
    /// The running program got the signal to release its lock for its successor.
    steps_aside: bool,
    aside: Vec<DrainingProgram>,
}

/// A replaced program that still finishes its requests.
struct DrainingProgram {
    child: Option<Child>,
    pid: u32,
    started: Option<u64>,
    kill_at: Instant,
}

impl DrainingProgram {
    fn lives(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(Some(_))),
            None => self.started.is_some() && lock::started(self.pid) == self.started,
        }
    }
}

/// A pending request of the operator, until it is done or the unit changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PendingRequest {
    Stop,
    Restart,
}

impl ManagedUnit {
    pub(super) fn new(unit: Unit) -> Self {
        let watched = watched(&unit);
        Self {
            unit,
            file_gone: false,
            phase: Phase::New,
            child: None,
            pid: None,
            running: None,
            unknown_since: None,
            pause: PAUSE_FIRST,
            restarts: 0,
            failures: 0,
            says: String::new(),
            asked: None,
            probing: None,
            probed: None,
            watched,
            sockets: Sockets::default(),
            steps_aside: false,
            aside: Vec::new(),
        }
    }

    /// Sets a changed unit file; the next steps apply it.
    pub(super) fn change(&mut self, unit: Unit) {
        if unit.watch != self.unit.watch {
            self.watched = watched(&unit);
        }
        self.unit = unit;
        match &self.unit.keeps_sockets {
            Some(keeps) => self.sockets.keep_only(&keeps.addresses),
            None => self.sockets.close(),
        }
        self.asked = None;
        self.failures = 0;
        self.pause = PAUSE_FIRST;
        if let Phase::Waiting { .. } = self.phase {
            self.phase = Phase::New;
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    /// Ready for long enough that its clients have noticed.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Ready { since } if now.duration_since(since) >= SETTLED)
    }

    pub(super) fn is_over(&self) -> bool {
        self.aside.is_empty() && (self.phase == Phase::Stopped || matches!(self.phase, Phase::Waiting { .. }))
    }

    pub(super) fn start_now(&mut self) {
        self.asked = None;
        self.pause = PAUSE_FIRST;
        if matches!(self.phase, Phase::Waiting { .. } | Phase::Stopped) {
            self.phase = Phase::New;
        }
    }

    pub(super) fn stop_for_now(&mut self) {
        self.asked = Some(PendingRequest::Stop);
    }

    pub(super) fn restart(&mut self) {
        self.start_now();
        self.asked = Some(PendingRequest::Restart);
        // What the current program says holds no longer.
        self.says.clear();
    }

    pub(super) fn status(&self) -> UnitStatus {
        let running = self.running.as_ref();
        UnitStatus {
            name: self.unit.name.clone(),
            phase: match self.phase {
                Phase::New | Phase::Starting => PhaseName::Starting,
                Phase::Waiting { .. } => PhaseName::Waiting,
                Phase::Ready { .. } => PhaseName::Ready,
                Phase::Unready => PhaseName::Unready,
                Phase::Stopping { .. } => PhaseName::Stopping,
                Phase::Stopped => PhaseName::Stopped,
            },
            pid: self.pid,
            restarts: self.restarts,
            failures: self.failures,
            spec_digest: running.map(|running| running.spec_digest.clone()),
            reload_digest: running.and_then(|running| running.reload_digest.clone()),
            operation: running.map(|running| running.operation),
            says: self.says.clone(),
            file_gone: self.file_gone,
        }
    }

    fn wants_to_run(&self) -> bool {
        self.unit.state == State::Running && self.asked != Some(PendingRequest::Stop)
    }

    /// Shows in the status what delays its restart.
    pub(super) fn waits(&mut self, why: &str) {
        why.clone_into(&mut self.says);
    }

    /// Whether the running program differs from the unit file.
    pub(super) fn is_outdated(&self) -> bool {
        self.running.is_some() && !self.is_current()
    }

    /// Whether the running program is the one that the unit file describes.
    fn is_current(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.spec_digest == self.unit.spec_digest)
    }

    /// One check and at most one action.
    pub(super) async fn step(&mut self, folder: &SiteFolder, now: Instant, may_roll: bool, notes: &mut Notes) {
        let name = self.unit.name.clone();
        let ended = self.reap();
        let holder = match lock::holder(&folder.lock(&name)) {
            Ok(holder) => holder,
            Err(error) => {
                self.says = format!("its lock cannot be read: {error}");
                return;
            }
        };
        self.check_draining(now, notes);
        self.keep_sockets(now, notes);
        if self.steps_aside && holder.is_none() {
            self.has_stepped_aside(now, notes);
        }
        let lives = holder.is_some() || self.child.is_some() || (!self.wants_to_run() && !self.aside.is_empty());
        match self.phase {
            Phase::New | Phase::Stopped if holder.is_some() => self.adopt(folder, holder, notes),
            Phase::New if !self.wants_to_run() && lives => self.phase = Phase::Stopping { kill_at: now },
            Phase::New if !self.wants_to_run() => self.phase = Phase::Stopped,
            Phase::New => self.start(folder, now, notes),
            Phase::Stopped if self.wants_to_run() => self.phase = Phase::New,
            Phase::Stopped => {}
            Phase::Waiting { .. } if holder.is_some() => self.adopt(folder, holder, notes),
            Phase::Waiting { .. } if !self.wants_to_run() && lives => self.phase = Phase::Stopping { kill_at: now },
            Phase::Waiting { .. } if !self.wants_to_run() => self.phase = Phase::Stopped,
            Phase::Waiting { until } if now >= until => {
                self.restarts = self.restarts.saturating_add(1);
                self.start(folder, now, notes);
            }
            Phase::Waiting { .. } => {}
            Phase::Stopping { .. } if !lives => self.is_gone(notes),
            Phase::Stopping { kill_at } if now >= kill_at && (holder.is_some() || self.child.is_some()) => {
                notes.say(&format!("{name} did not stop in time and was killed"));
                self.signal(holder, Signal::KILL, true);
                self.phase = Phase::Stopping { kill_at: now + KILL_INTERVAL };
            }
            Phase::Stopping { .. } => {}
            Phase::Starting | Phase::Ready { .. } | Phase::Unready if !lives => self.ended(ended, folder, now, notes),
            Phase::Starting | Phase::Ready { .. } | Phase::Unready => {
                self.tend(folder, holder, now, may_roll, notes).await;
            }
        }
    }

    /// Handles a living program: verify, probe, restart or stop it.
    async fn tend(
        &mut self,
        folder: &SiteFolder,
        holder: Option<u32>,
        now: Instant,
        may_roll: bool,
        notes: &mut Notes,
    ) {
        let name = self.unit.name.clone();
        if let Some(pid) = holder
            && self.pid != Some(pid)
        {
            self.pid = Some(pid);
            self.running = Running::of_holder(folder, &name, pid);
        } else if holder.is_some() && self.running.is_none() {
            self.running = holder.and_then(|pid| Running::of_holder(folder, &name, pid));
        }
        if self.running.is_some() {
            self.unknown_since = None;
        }
        // A child without a lock is not the program yet.
        let Some(pid) = holder else { return };
        let unknown =
            self.running.is_none() && now.duration_since(*self.unknown_since.get_or_insert(now)) >= UNKNOWN_FOR;
        let outdated = self.is_outdated();
        let restart = self.asked == Some(PendingRequest::Restart) || outdated || unknown;
        let keeps = self.unit.keeps_sockets.as_ref();
        self.sockets.look(&name, keeps, pid, now, notes).await;
        if restart && self.wants_to_run() && self.sockets.are_awaited(keeps, pid, now) {
            return;
        }
        if !self.wants_to_run() || (restart && may_roll) {
            if self.wants_to_run() && self.sockets.steps_aside(pid) && self.aside.len() < ASIDE_MAX {
                notes.say(&format!("{name} is stopping for its successor, pid {pid}"));
                self.steps_aside = true;
                self.signal(holder, Signal::USR1, false);
            } else {
                notes.say(&format!("{name} is stopping, pid {pid}"));
                self.signal(holder, Signal::TERM, false);
            }
            let grace = Duration::from_millis(self.unit.stop_grace_ms);
            self.phase = Phase::Stopping { kill_at: now + grace };
            self.drop_probe();
            return;
        }
        self.tell_of_reload(folder, holder, notes);
        self.poll_probe(now, notes).await;
        if let Phase::Ready { since } = self.phase
            && now.duration_since(since) >= HEALTHY_AFTER
        {
            self.pause = PAUSE_FIRST;
        }
    }

    fn tell_of_reload(&mut self, folder: &SiteFolder, holder: Option<u32>, notes: &mut Notes) {
        // An unready program may not handle signals yet: SIGHUP would end it.
        if !self.is_ready() {
            return;
        }
        let Some(running) = &mut self.running else { return };
        if running.spec_digest != self.unit.spec_digest || running.reload_digest == self.unit.reload_digest {
            return;
        }
        running.reload_digest.clone_from(&self.unit.reload_digest);
        running.operation = self.unit.operation;
        let written = running.clone().write(folder, &self.unit.name);
        if let Err(error) = written {
            notes.say(&format!("pid file of {} cannot be written: {error}", self.unit.name));
        }
        notes.say(&format!("{} is reloading its configuration", self.unit.name));
        self.signal(holder, Signal::HUP, false);
    }

    async fn poll_probe(&mut self, now: Instant, notes: &mut Notes) {
        let Some(ready) = &self.unit.ready else {
            return self.seen_ready(now, notes);
        };
        if let Some(probing) = self.probing.take_if(|probing| probing.is_finished()) {
            match probing.await {
                Ok(Ok(())) => self.seen_ready(now, notes),
                Ok(Err(why)) => {
                    if self.is_ready() {
                        notes.say(&format!("{} is no longer ready: {why}", self.unit.name));
                        self.phase = Phase::Unready;
                    }
                    self.says = why;
                }
                Err(error) => self.says = format!("its probe failed: {error}"),
            }
            return;
        }
        let every = if self.is_ready() { PROBE_READY } else { PROBE_STARTING };
        if self.probing.is_none() && self.probed.is_none_or(|at| now.duration_since(at) >= every) {
            self.probed = Some(now);
            let ready = ready.clone();
            self.probing = Some(tokio::spawn(async move { probe(&ready).await }));
        }
    }

    fn seen_ready(&mut self, now: Instant, notes: &mut Notes) {
        if !self.is_ready() {
            notes.say(&format!("{} is ready", self.unit.name));
            self.phase = Phase::Ready { since: now };
            self.failures = 0;
        }
        self.says.clear();
    }

    fn start(&mut self, folder: &SiteFolder, now: Instant, notes: &mut Notes) {
        self.running = None;
        self.unknown_since = None;
        self.pid = None;
        self.drop_probe();
        if self.asked == Some(PendingRequest::Restart) {
            self.asked = None;
        }
        match spawn(folder, &self.unit, &self.sockets) {
            Ok(child) => {
                notes.say(&format!("{} started, pid {}", self.unit.name, child.id()));
                self.child = Some(child);
                self.phase = Phase::Starting;
            }
            Err(error) => {
                self.says = format!("cannot be started: {error}");
                notes.say(&format!("{} {}", self.unit.name, self.says));
                self.pause_from(now);
            }
        }
    }

    fn adopt(&mut self, folder: &SiteFolder, holder: Option<u32>, notes: &mut Notes) {
        self.pid = holder;
        self.running = holder.and_then(|pid| Running::of_holder(folder, &self.unit.name, pid));
        notes.say(&format!(
            "{} is already running and was adopted, pid {}",
            self.unit.name,
            holder.unwrap_or_default()
        ));
        self.phase = Phase::Starting;
    }

    /// Handles an unexpected end.
    fn ended(&mut self, how: Option<ExitStatus>, folder: &SiteFolder, now: Instant, notes: &mut Notes) {
        let how = how.map_or_else(|| "it ended".to_owned(), |status| status.to_string());
        let last = output::tail(&folder.log(&self.unit.name), 1);
        self.says = if last.is_empty() { how } else { format!("{how}; end of its log: {last}") };
        self.failures = self.failures.saturating_add(1);
        notes.say(&format!("{} ended: {}", self.unit.name, self.says));
        self.running = None;
        self.pid = None;
        self.drop_probe();
        // An older program binds its ports itself, which fails while they are kept.
        if self.failures >= FAILED_STARTS_MAX {
            self.sockets.close();
        }
        self.pause_from(now);
    }

    fn pause_from(&mut self, now: Instant) {
        self.phase = Phase::Waiting { until: now + self.pause };
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// Keeps the ports for a successor, if one is expected.
    fn keep_sockets(&mut self, now: Instant, notes: &mut Notes) {
        if !self.wants_to_run() {
            self.sockets.close();
        }
        let served = matches!(self.phase, Phase::Ready { .. } | Phase::Unready | Phase::Stopping { .. });
        self.sockets.close_if_unserved(&self.unit.name, served, now, notes);
    }

    /// Handles a released lock: the program drains for its successor, or has ended.
    fn has_stepped_aside(&mut self, now: Instant, notes: &mut Notes) {
        self.steps_aside = false;
        let (child, Some(pid)) = (self.child.take(), self.pid) else { return };
        let kill_at = now + Duration::from_millis(self.unit.stop_grace_ms);
        let mut aside = DrainingProgram { child, pid, started: lock::started(pid), kill_at };
        if aside.lives() {
            notes.say(&format!("{} was replaced and finishes its open requests, pid {pid}", self.unit.name));
            self.aside.push(aside);
            self.running = None;
            self.pid = None;
            self.phase = Phase::New;
        }
    }

    /// Replaced programs drain and exit; after the grace period they are killed.
    fn check_draining(&mut self, now: Instant, notes: &mut Notes) {
        let name = &self.unit.name;
        self.aside.retain_mut(|aside| {
            if !aside.lives() {
                notes.say(&format!("replaced {name} ended, pid {}", aside.pid));
                return false;
            }
            if now >= aside.kill_at
                && let Some(pid) = i32::try_from(aside.pid).ok().and_then(Pid::from_raw)
            {
                notes.say(&format!("replaced {name} did not stop in time and was killed, pid {}", aside.pid));
                // A process that is gone already needs no signal.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                aside.kill_at = now + KILL_INTERVAL;
            }
            true
        });
    }

    /// Handles an expected end.
    fn is_gone(&mut self, notes: &mut Notes) {
        notes.say(&format!("{} ended", self.unit.name));
        self.running = None;
        self.pid = None;
        self.says.clear();
        self.phase = if self.wants_to_run() { Phase::New } else { Phase::Stopped };
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        Some(status)
    }

    /// Signals the process that holds the unit's lock now, never a recorded pid.
    fn signal(&self, holder: Option<u32>, signal: Signal, group: bool) {
        let pid = holder.or_else(|| self.child.as_ref().map(Child::id));
        let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) else { return };
        // A process that is gone already needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
        if group {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    fn drop_probe(&mut self) {
        if let Some(probing) = self.probing.take() {
            probing.abort();
        }
        self.probed = None;
    }

    /// Notifies the program of changed files by SIGHUP.
    pub(super) fn check_watched(&mut self, notes: &mut Notes) {
        let mut changed = None;
        for (path, stamp) in &mut self.watched {
            let now = Stamp::of(path).ok().flatten();
            // A file is missing while it is replaced: only the new file matters.
            if now.is_some() && now != *stamp {
                *stamp = now;
                changed = Some(path.clone());
            }
        }
        if let Some(path) = changed
            && self.is_ready()
        {
            notes.say(&format!("{} was notified that {path} changed", self.unit.name));
            self.signal(self.pid, Signal::HUP, false);
        }
    }
}

fn watched(unit: &Unit) -> Vec<(Utf8PathBuf, Option<Stamp>)> {
    unit.watch.iter().map(|path| (path.clone(), Stamp::of(path).ok().flatten())).collect()
}

/// Refuses a program that other users could have replaced.
fn refuse_exposed(folder: &SiteFolder, unit: &Unit) -> std::io::Result<()> {
    let refused = |why: String| std::io::Error::new(std::io::ErrorKind::PermissionDenied, why);
    let mut exposed = Vec::new();
    folder.check_owners(0, &mut exposed)?;
    if let Some(first) = exposed.first() {
        return Err(refused(first.to_string()));
    }
    let program = unit.argv.first().filter(|program| program.starts_with(folder.root().as_str()));
    // A missing program is reported by the child.
    match program.and_then(|program| Some((program, std::fs::symlink_metadata(program).ok()?))) {
        Some((program, there)) if !textnlp_files::is_own(&there) => {
            Err(refused(format!("other users can write to {program}, or own it")))
        }
        _ => Ok(()),
    }
}

/// Starts this program as the child that becomes the unit's program.
fn spawn(folder: &SiteFolder, unit: &Unit, sockets: &Sockets) -> std::io::Result<Child> {
    refuse_exposed(folder, unit)?;
    let log = output::open(&unit.log)?;
    // Inherited by this child alone: no other process is started before they are closed here.
    let handed = sockets.for_child()?;
    // `/proc/self/exe`, because the file may have been replaced or removed since this supervisor started.
    Command::new("/proc/self/exe")
        .args(["supervise", "--folder", folder.root().as_str(), "--child", &unit.name])
        .env_clear()
        .envs(clean_environment())
        .env(sockets::SOCKETS, sockets::numbers(&handed))
        .current_dir(folder.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}
