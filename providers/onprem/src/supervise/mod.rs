//! The supervisor of a site: a detached process that keeps the site's programs running.
//!
//! It owns nothing that cannot be read again: units are files, children are locks. When it dies its programs go on and the
//! next one adopts them. [`run`] is what the hidden command `supervise` calls; [`ask`] is how everybody else talks to it.

mod alerts;
mod archiver;
mod begin;
mod beside;
mod child;
mod control;
pub(crate) mod output;
mod probe;
pub(crate) mod renewal;
mod roll;
mod schedule;
mod sockets;
mod turn;
mod unit;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub(crate) use begin::begin_detached;
pub(crate) use child::{Running, clean_environment};
pub use control::{Ask, CertificateStatus, PhaseName, Rejected, Status, UnitStatus, ask, status};
pub(crate) use probe::exchange;
pub use unit::{KeepsSockets, Ready, State, Unit};
pub(crate) use unit::{is_name as is_unit_name, names as unit_names};

use crate::fault::Faults;
use crate::files::{self, Stamp};
use crate::layout::SiteFolder;
use crate::lock;
use alerts::{Alerts, Seen};
use archiver::Archiver;
use output::Notes;
use renewal::Renewal;
use roll::Kept;
use schedule::Schedule;
use turn::Turns;

/// Which supervisor this is: the release, and what it understands of unit files. A supervisor of another version is replaced by the next
/// `up`, while its programs go on. 2: gateways whose sockets are kept. 3: copies on a schedule.
/// 5: alerts.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/5");

/// Between two looks at the children.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks at the unit files.
const UNITS_EVERY: Duration = Duration::from_millis(500);
/// Between two looks at the sizes of logs and at watched files.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(2);
/// Clients that talk at one time; more wait in the socket's queue.
const CLIENTS_MAX: usize = 16;
/// A client has this long to say what it wants.
const CLIENT_WITHIN: Duration = Duration::from_secs(5);

/// Why a supervisor or one of its children could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The site's folder cannot be used.
    #[error("use site folder {folder}")]
    Folder {
        /// Which.
        folder: Utf8PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another supervisor runs.
    #[error("a supervisor of {folder} runs already, with pid {pid}")]
    Held {
        /// Of which site.
        folder: Utf8PathBuf,
        /// Which process.
        pid: u32,
    },
    /// A unit file cannot be believed.
    #[error("read unit `{name}`: {why}")]
    Unit {
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
    /// The unit's program runs already.
    #[error("unit `{name}` runs already")]
    Double {
        /// Which.
        name: String,
    },
    /// The program could not be started.
    #[error("start unit `{name}`")]
    Exec {
        /// Which.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The control socket or the event loop failed.
    #[error("run supervisor")]
    Run(#[source] std::io::Error),
}

/// Runs the supervisor of a site until it is told to leave, or, with a child's name, becomes that unit's program.
///
/// Blocks; makes its own runtime on a thread of its own, so that it may be called from anywhere.
pub fn run(folder: &Utf8Path, child: Option<&str>) -> Result<(), Error> {
    let fails = |source| Error::Folder { folder: folder.to_owned(), source };
    let root = folder.canonicalize_utf8().map_err(fails)?;
    let site = SiteFolder::at(&root);
    if let Some(name) = child {
        if !unit::is_name(name) {
            return Err(Error::Unit { name: name.to_owned(), why: "that is not a name".to_owned() });
        }
        return Err(child::become_child(&site, name));
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Away from the terminal of whoever started us; it fails only where we lead a session already.
    let _ = rustix::process::setsid();
    std::env::set_current_dir(&root).map_err(fails)?;
    let held = lock::take(&site.lock("supervisor")).map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => {
            let pid = lock::holder(&site.lock("supervisor")).ok().flatten().unwrap_or_default();
            Error::Held { folder: root.clone(), pid }
        }
        _ => fails(source),
    })?;
    let looped = std::thread::Builder::new().name("supervisor".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Run)?;
        runtime.block_on(Supervisor::new(site).watch())
    });
    let ended = looped.map_err(Error::Run)?.join();
    drop(held);
    ended.unwrap_or_else(|_| Err(Error::Run(std::io::Error::other("the supervisor panicked"))))
}

/// In the state folder of an environment that was made for a while: when its programs end, whoever lives then.
pub const EXPIRES: &str = "expires";

/// Whether a file names a moment that has passed; one that says nothing ends nothing.
fn is_past(file: &Utf8Path, now: jiff::Timestamp) -> bool {
    let text = files::read_bounded(file, 64).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| text.trim().parse::<jiff::Timestamp>().ok()).is_some_and(|at| at <= now)
}

type Asked = (Ask, oneshot::Sender<Status>);

/// All that a supervisor knows; one owner, changed between two waits only.
struct Supervisor {
    folder: SiteFolder,
    units: BTreeMap<String, Kept>,
    stamps: BTreeMap<String, Stamp>,
    rejected: BTreeMap<String, String>,
    renewal: Renewal,
    schedule: Schedule,
    archiver: Archiver,
    alerts: Alerts,
    notes: Notes,
    units_read: Option<Instant>,
    housekept: Option<Instant>,
    turns: Turns,
    is_over: bool,
}

impl Supervisor {
    fn new(folder: SiteFolder) -> Self {
        let notes = Notes::open(folder.log("supervisor"));
        let renewal = Renewal::new(&folder);
        let schedule = Schedule::new(&folder);
        let archiver = Archiver::new(&folder);
        let alerts = Alerts::new(&folder);
        Self {
            folder,
            units: BTreeMap::new(),
            stamps: BTreeMap::new(),
            rejected: BTreeMap::new(),
            renewal,
            schedule,
            archiver,
            alerts,
            notes,
            units_read: None,
            housekept: None,
            turns: Turns::default(),
            is_over: false,
        }
    }

    async fn watch(mut self) -> Result<(), Error> {
        let listener = self.listen().map_err(Error::Run)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Run)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Run)?;
        let (asks, mut asked) = mpsc::channel::<Asked>(CLIENTS_MAX);
        let mut clients = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        // After a machine slept there is nothing to catch up with.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.notes.say(&format!("supervisor {} begins, pid {}", env!("CARGO_PKG_VERSION"), std::process::id()));
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.step(false).await;
                    if self.is_over && self.units.values().all(Kept::is_over) {
                        self.notes.say("the time of this environment is over, its programs have ended");
                        break;
                    }
                }
                accepted = listener.accept(), if clients.len() < CLIENTS_MAX => {
                    if let Ok((stream, _)) = accepted {
                        clients.spawn(serve(stream, asks.clone()));
                    }
                }
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
                Some((ask, answer)) = asked.recv() => {
                    let leave = ask == Ask::Shutdown;
                    let status = self.answer(ask).await;
                    // A client that left meanwhile wants no answer.
                    let _ = answer.send(status);
                    if leave {
                        break;
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        // The answer to `shutdown` is still on its way; nobody else is waited for.
        drop(asks);
        let farewell = async { while clients.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_millis(500), farewell).await;
        self.notes.say("supervisor leaves; its programs go on");
        let _ = files::remove_file(&self.folder.control());
        Ok(())
    }

    fn listen(&self) -> std::io::Result<UnixListener> {
        files::make_folder(&self.folder.join("run"))?;
        files::make_folder(&self.folder.join("log"))?;
        if self.folder.has_short_sockets() {
            files::make_private_folder(&self.folder.sockets())?;
        }
        // We hold the supervisor's lock: whatever lies there was left behind.
        files::remove_file(&self.folder.control())?;
        UnixListener::bind(self.folder.control())
    }

    async fn step(&mut self, at_once: bool) {
        let now = Instant::now();
        if at_once || self.units_read.is_none_or(|at| now.duration_since(at) >= UNITS_EVERY) {
            self.units_read = Some(now);
            self.read_units();
        }
        let names: Vec<String> = self.units.keys().cloned().collect();
        for name in &names {
            let may_roll = self.may_roll(name, now);
            if let Some(kept) = self.units.get_mut(name) {
                kept.step(&self.folder, now, may_roll, &mut self.notes).await;
            }
        }
        self.units.retain(|_, kept| !(kept.file_gone && kept.is_over()));
        let units = &self.units;
        self.turns.let_go(now, |name| units.get(name).is_none_or(|kept| kept.is_settled(now) && !kept.is_outdated()));
        if self.housekept.is_none_or(|at| now.duration_since(at) >= HOUSEKEEPING_EVERY) {
            self.housekept = Some(now);
            self.keep_house().await;
        }
    }

    /// Reads the unit files that are new or changed. One that cannot be believed changes nothing about a running program.
    fn read_units(&mut self) {
        let names = match unit::names(&self.folder) {
            Ok(names) => names,
            Err(error) => {
                self.rejected.insert("units".to_owned(), error.to_string());
                return;
            }
        };
        self.rejected.retain(|name, _| names.contains(name));
        for (name, kept) in &mut self.units {
            kept.file_gone = !names.contains(name);
        }
        self.stamps.retain(|name, _| names.contains(name));
        for name in names {
            let stamp = Stamp::of(&self.folder.unit(&name)).ok().flatten();
            if stamp.is_some() && stamp == self.stamps.get(&name).copied() {
                continue;
            }
            if let Some(stamp) = stamp {
                self.stamps.insert(name.clone(), stamp);
            }
            match Unit::read(&self.folder, &name) {
                Ok(unit) => {
                    self.rejected.remove(&name);
                    match self.units.get_mut(&name) {
                        Some(kept) => kept.change(unit),
                        None => drop(self.units.insert(name, Kept::new(unit))),
                    }
                }
                Err(why) => {
                    self.notes.say(&format!("unit {name} is not believed: {why}"));
                    self.rejected.insert(name, why);
                }
            }
        }
    }

    /// Whether a unit may be restarted for a change: while it does its work, only when all others of its group do theirs, and have
    /// done so for long enough to be sent requests.
    fn may_roll(&mut self, name: &str, now: Instant) -> bool {
        let Some(kept) = self.units.get(name) else { return false };
        if kept.unit.turns && kept.is_ready() && kept.is_outdated() {
            let may = self.turns.may(&self.folder, name, now);
            if let (false, Some(kept)) = (may, self.units.get_mut(name)) {
                kept.waits("another site restarts its own first");
            }
            return may;
        }
        let Some(group) = &kept.unit.group else { return true };
        let others = self.units.iter().filter(|(other, kept)| {
            other.as_str() != name && kept.unit.group.as_ref() == Some(group) && kept.unit.state == State::Running
        });
        !kept.is_ready() || others.into_iter().all(|(_, other)| other.is_settled(now))
    }

    async fn keep_house(&mut self) {
        for kept in self.units.values_mut() {
            kept.look_at_watched(&mut self.notes);
            if let Err(error) = output::keep_bounded(&kept.unit.log) {
                self.notes.say(&format!("log of {} cannot be cut: {error}", kept.unit.name));
            }
        }
        // A failure here has nowhere to be said but the log itself.
        let _ = output::keep_bounded(&self.folder.log("supervisor"));
        self.renewal.look(jiff::Timestamp::now(), &mut self.notes).await;
        // A drill that died leaves its fault behind; this is the place that ends it.
        if let Some(faults) = Faults::of_witness(&self.folder) {
            for says in faults.revert_overdue(jiff::Timestamp::now()).await {
                self.notes.say(&says);
            }
        }
        if !self.is_over && is_past(&self.folder.state().join(EXPIRES), jiff::Timestamp::now()) {
            self.is_over = true;
            self.notes.say("the time of this environment is over: its programs are told to end");
            self.units.values_mut().for_each(Kept::stop_for_now);
        }
        self.schedule.look(jiff::Timestamp::now(), &mut self.notes);
        self.archiver.look(Instant::now(), &mut self.notes);
        if self.alerts.is_due() {
            let now = jiff::Timestamp::now();
            let units: Vec<UnitStatus> = self.units.values().map(Kept::status).collect();
            let (rejected, certificates) = (self.rejected(), self.renewal.status());
            let backup = self.schedule.trouble(now);
            let seen = Seen { units: &units, rejected: &rejected, certificates: &certificates, backup };
            self.alerts.look(seen, now, &mut self.notes).await;
        }
    }

    fn rejected(&self) -> Vec<Rejected> {
        self.rejected.iter().map(|(name, why)| Rejected { name: name.clone(), why: why.clone() }).collect()
    }

    async fn answer(&mut self, ask: Ask) -> Status {
        let error = match &ask {
            Ask::Status | Ask::Shutdown => None,
            Ask::Apply => None,
            Ask::Start { name } => self.with_unit(name, Kept::start_now),
            Ask::Stop { name } => self.with_unit(name, Kept::stop_for_now),
            Ask::Restart { name } => self.with_unit(name, Kept::restart),
        };
        if !matches!(ask, Ask::Status | Ask::Shutdown) {
            self.step(true).await;
        }
        // Trouble may have been mended a moment ago, and whoever asks wants to know of now.
        if !self.rejected.is_empty() {
            self.read_units();
        }
        if self.renewal.is_in_trouble() {
            self.renewal.look(jiff::Timestamp::now(), &mut self.notes).await;
        }
        Status {
            pid: std::process::id(),
            version: VERSION.to_owned(),
            units: self.units.values().map(Kept::status).collect(),
            rejected: self.rejected(),
            certificates: self.renewal.status(),
            error,
        }
    }

    fn with_unit(&mut self, name: &str, act: impl FnOnce(&mut Kept)) -> Option<String> {
        match self.units.get_mut(name) {
            Some(kept) => {
                act(kept);
                None
            }
            None => Some(format!("there is no unit `{name}`")),
        }
    }
}

/// One client: its request to the loop, the answer back.
async fn serve(mut stream: UnixStream, asks: mpsc::Sender<Asked>) {
    let exchange = async {
        let refused = |error: std::io::Error| json!({ "error": error.to_string() });
        let answer = match control::read_ask(&mut stream).await {
            Err(error) => refused(error),
            Ok(ask) => {
                let (send, answer) = oneshot::channel();
                if asks.send((ask, send)).await.is_err() {
                    return;
                }
                match answer.await {
                    Ok(status) => serde_json::to_value(status).unwrap_or_else(|error| refused(error.into())),
                    Err(_) => return,
                }
            }
        };
        let mut line = answer.to_string().into_bytes();
        line.push(b'\n');
        // A client that does not read its answer has lost nothing of ours.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &line).await;
    };
    let _ = tokio::time::timeout(CLIENT_WITHIN, exchange).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trouble_is_looked_at_again_when_somebody_asks() {
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(&Utf8Path::from_path(dir.path()).unwrap().join("sites/here"));
        for name in ["certs", "log", "units"] {
            files::make_folder(&folder.join(name)).unwrap();
        }
        let key = crate::trust::new_key().unwrap();
        let pem = crate::trust::authority(&key, "a", 99, jiff::Timestamp::now()).unwrap();
        let order = json!({
            "names": ["localhost"], "days": 30, "certificate_file": "certs/cert.pem", "key_file": "certs/key.pem",
            "ca_file": "certs/ca.pem", "authority_key": { "$secret": "here/ca-key", "version": "1" },
        });
        files::put(&renewal::order_file(&folder), order.to_string().as_bytes(), 0o600).unwrap();
        let certificate = folder.join("certs/cert.pem");
        files::put(&certificate, b"no certificate", 0o644).unwrap();
        files::put(&folder.unit("server-0"), b"no unit", 0o600).unwrap();
        let mut supervisor = Supervisor::new(folder.clone());
        supervisor.read_units();
        supervisor.keep_house().await;
        let status = supervisor.answer(Ask::Status).await;
        assert!(status.certificates[0].error.is_some() && status.rejected.len() == 1, "{status:?}");

        files::put(&certificate, pem.as_bytes(), 0o644).unwrap();
        files::remove_file(&folder.unit("server-0")).unwrap();
        let status = supervisor.answer(Ask::Status).await;
        assert!(status.certificates[0].error.is_none() && status.rejected.is_empty(), "{status:?}");
    }
}
