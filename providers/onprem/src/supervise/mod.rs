//! The supervisor of a site: a detached process that keeps the site's programs running.
//!
//! All its state can be read again: units are files, children hold locks. When it dies its programs continue and the
//! next supervisor adopts them. The hidden command `supervise` calls [`run`]; all other code talks to the supervisor
//! with [`request`].

mod alerts;
mod archiver;
mod background;
mod child;
mod control;
mod environment;
mod error;
pub(crate) mod output;
mod privileges;
mod probe;
mod public;
pub(crate) mod renewal;
mod roll;
mod schedule;
mod service;
mod sockets;
mod start;
mod turn;
mod unit;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use serde_json::json;
use textnlp_keys::{
    SiteFolder,
    files::{self, Stamp},
};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub(crate) use child::Running;
pub use control::{
    CertificateStatus, ControlRequest, PhaseName, Rejected, Status, UnitStatus, processes, request, status,
};
pub(crate) use environment::clean_environment;
pub use error::Error;
pub(crate) use probe::exchange;
pub use public::renew_certificate;
pub(crate) use start::begin_detached;
pub use unit::{KeepsSockets, Ready, State, Unit};
pub(crate) use unit::{is_name as is_unit_name, names_with_locks};

use crate::fault::Faults;
use crate::lock;
use alerts::{AlertInputs, Alerts};
use archiver::Archiver;
use output::Notes;
use public::PublicRenewal;
use renewal::Renewal;
use roll::ManagedUnit;
use schedule::Schedule;
use turn::Turns;

/// The version of the supervisor: the release, and the revision of its unit files. The next `up` replaces a supervisor
/// of another version, while its programs continue. 2: gateways whose sockets are kept. 3: backups on a schedule. 5:
/// alerts. 6: alerts of latency, errors and readiness. 7: verified programs with few rights. 9: certificates of public
/// authorities.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/9");

/// Poll interval of the children.
const TICK: Duration = Duration::from_millis(100);
/// Poll interval of the unit files.
const UNITS_INTERVAL: Duration = Duration::from_millis(500);
/// Poll interval of log sizes and watched files.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(2);
/// Concurrent clients; more wait in the socket's queue.
const CLIENTS_MAX: usize = 16;
/// Timeout of a client's request.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the supervisor of a site until it gets a request to exit. With a child's name, becomes that unit's program.
///
/// Blocks. It creates its own runtime on its own thread, so any code may call it.
pub fn run(folder: &Utf8Path, child: Option<&str>) -> Result<(), Error> {
    let fails = |source| Error::Folder { folder: folder.to_owned(), source };
    privileges::disable_core_dumps().map_err(Error::Run)?;
    let root = folder.canonicalize_utf8().map_err(fails)?;
    let site = SiteFolder::at(&root);
    if let Some(name) = child {
        if !unit::is_name(name) {
            return Err(Error::Unit { name: name.to_owned(), why: "it is not a valid name".to_owned() });
        }
        return Err(child::become_child(&site, name));
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Detaches from the terminal of the parent. It fails only for a session leader.
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

/// A file in the state folder of a temporary environment: the time at which its programs end, even if the creator died.
pub const EXPIRES: &str = "expires";

/// Whether a file holds a time in the past; an unreadable one ends nothing.
fn is_past(file: &Utf8Path, now: jiff::Timestamp) -> bool {
    let text = files::read_bounded(file, 64).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| text.trim().parse::<jiff::Timestamp>().ok()).is_some_and(|at| at <= now)
}

type ClientRequest = (ControlRequest, oneshot::Sender<Status>);

/// The state of a supervisor; it has one owner, and changes between two waits only.
struct Supervisor {
    folder: SiteFolder,
    units: BTreeMap<String, ManagedUnit>,
    stamps: BTreeMap<String, Stamp>,
    rejected: BTreeMap<String, String>,
    renewal: Renewal,
    public: PublicRenewal,
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
        let public = PublicRenewal::new(&folder);
        let schedule = Schedule::new(&folder);
        let archiver = Archiver::new(&folder);
        let alerts = Alerts::new(&folder);
        Self {
            folder,
            units: BTreeMap::new(),
            stamps: BTreeMap::new(),
            rejected: BTreeMap::new(),
            renewal,
            public,
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
        let (asks, mut received) = mpsc::channel::<ClientRequest>(CLIENTS_MAX);
        let mut clients = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        // After a suspend, missed ticks are not caught up.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.notes.say(&format!("supervisor {} started, pid {}", env!("CARGO_PKG_VERSION"), std::process::id()));
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.step(false).await;
                    if self.is_over && self.units.values().all(ManagedUnit::is_over) {
                        self.notes.say("this environment has expired, its programs have ended");
                        break;
                    }
                }
                accepted = listener.accept(), if clients.len() < CLIENTS_MAX => {
                    if let Ok((stream, _)) = accepted {
                        clients.spawn(serve(stream, asks.clone()));
                    }
                }
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
                Some((ask, answer)) = received.recv() => {
                    let leave = ask == ControlRequest::Shutdown;
                    let status = self.answer(ask).await;
                    // A client that left needs no answer.
                    let _ = answer.send(status);
                    if leave {
                        break;
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        // The answer to `shutdown` may still be unsent; no other client is waited for.
        drop(asks);
        let farewell = async { while clients.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_millis(500), farewell).await;
        self.notes.say("supervisor stopped; its programs keep running");
        let _ = files::remove_file(&self.folder.control());
        Ok(())
    }

    fn listen(&self) -> std::io::Result<UnixListener> {
        files::make_folder(&self.folder.join("run"))?;
        files::make_folder(&self.folder.join("log"))?;
        files::make_sockets_folder(&self.folder)?;
        // This process holds the supervisor's lock, so the socket is stale.
        files::remove_file(&self.folder.control())?;
        UnixListener::bind(self.folder.control())
    }

    async fn step(&mut self, at_once: bool) {
        let now = Instant::now();
        if at_once || self.units_read.is_none_or(|at| now.duration_since(at) >= UNITS_INTERVAL) {
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
        self.turns.release(now, |name| units.get(name).is_none_or(|kept| kept.is_settled(now) && !kept.is_outdated()));
        if self.housekept.is_none_or(|at| now.duration_since(at) >= HOUSEKEEPING_INTERVAL) {
            self.housekept = Some(now);
            self.run_housekeeping().await;
        }
    }

    /// Reads new and changed unit files. An invalid one does not affect a running program.
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
                        None => drop(self.units.insert(name, ManagedUnit::new(unit))),
                    }
                }
                Err(why) => {
                    self.notes.say(&format!("unit {name} is invalid: {why}"));
                    self.rejected.insert(name, why);
                }
            }
        }
    }

    /// Whether a unit may be restarted for a change. While it is ready, all others of its group must be ready too, and
    /// for long enough to receive requests.
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

    async fn run_housekeeping(&mut self) {
        for kept in self.units.values_mut() {
            kept.check_watched(&mut self.notes);
            if let Err(error) = output::keep_bounded(&kept.unit.log) {
                self.notes.say(&format!("log of {} cannot be truncated: {error}", kept.unit.name));
            }
        }
        // A failure here could only be logged in that log.
        let _ = output::keep_bounded(&self.folder.log("supervisor"));
        self.renewal.look(jiff::Timestamp::now(), &mut self.notes).await;
        self.public.look(jiff::Timestamp::now(), &mut self.notes);
        // The fault of a drill that died is reverted here.
        if let Some(faults) = Faults::of_witness(&self.folder) {
            for says in faults.revert_overdue(jiff::Timestamp::now()).await {
                self.notes.say(&says);
            }
        }
        if !self.is_over && is_past(&self.folder.state().join(EXPIRES), jiff::Timestamp::now()) {
            self.is_over = true;
            self.notes.say("this environment has expired: its programs are being stopped");
            self.units.values_mut().for_each(ManagedUnit::stop_for_now);
        }
        self.schedule.look(jiff::Timestamp::now(), &mut self.notes);
        self.archiver.look(Instant::now(), &mut self.notes);
        if self.alerts.is_due() {
            let now = jiff::Timestamp::now();
            let units: Vec<UnitStatus> = self.units.values().map(ManagedUnit::status).collect();
            let (rejected, certificates) = (self.rejected(), self.certificates());
            let backup = self.schedule.trouble(now);
            let seen = AlertInputs { units: &units, rejected: &rejected, certificates: &certificates, backup };
            self.alerts.look(seen, now, &mut self.notes).await;
        }
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        [self.renewal.status(), self.public.status()].concat()
    }

    fn rejected(&self) -> Vec<Rejected> {
        self.rejected.iter().map(|(name, why)| Rejected { name: name.clone(), why: why.clone() }).collect()
    }

    async fn answer(&mut self, ask: ControlRequest) -> Status {
        let error = match &ask {
            ControlRequest::Status | ControlRequest::Shutdown => None,
            ControlRequest::Apply => None,
            ControlRequest::Start { name } => self.with_unit(name, ManagedUnit::start_now),
            ControlRequest::Stop { name } => self.with_unit(name, ManagedUnit::stop_for_now),
            ControlRequest::Restart { name } => self.with_unit(name, ManagedUnit::restart),
        };
        if !matches!(ask, ControlRequest::Status | ControlRequest::Shutdown) {
            self.step(true).await;
        }
        // A problem may be fixed by now, and the client wants the current status.
        if !self.rejected.is_empty() {
            self.read_units();
        }
        if self.renewal.is_in_trouble() {
            self.renewal.look(jiff::Timestamp::now(), &mut self.notes).await;
        }
        Status {
            pid: std::process::id(),
            version: VERSION.to_owned(),
            folder: Some(self.folder.root().to_owned()),
            units: self.units.values().map(ManagedUnit::status).collect(),
            rejected: self.rejected(),
            certificates: self.certificates(),
            error,
        }
    }

    fn with_unit(&mut self, name: &str, act: impl FnOnce(&mut ManagedUnit)) -> Option<String> {
        match self.units.get_mut(name) {
            Some(kept) => {
                act(kept);
                None
            }
            None => Some(format!("there is no unit `{name}`")),
        }
    }
}

/// Serves one client: its request to the loop, the answer back.
async fn serve(mut stream: UnixStream, asks: mpsc::Sender<ClientRequest>) {
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
        // A client that does not read its answer loses nothing.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &line).await;
    };
    let _ = tokio::time::timeout(CLIENT_TIMEOUT, exchange).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn status_request_rechecks_recorded_problems() {
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(&Utf8Path::from_path(dir.path()).unwrap().join("sites/here"));
        for name in ["certs", "log", "units"] {
            files::make_folder(&folder.join(name)).unwrap();
        }
        let key = textnlp_keys::trust::new_key().unwrap();
        let pem = textnlp_keys::trust::authority(&key, "a", &[], 99, jiff::Timestamp::now()).unwrap();
        let order = json!({
            "names": ["localhost"], "days": 30, "certificate_file": "certs/cert.pem", "key_file": "certs/key.pem",
            "ca_file": "certs/ca.pem", "authority_key": { "$secret": "here/ca-key", "version": "1" },
        });
        files::put(&textnlp_keys::renewal_order(&folder), order.to_string().as_bytes(), 0o600).unwrap();
        let certificate = folder.join("certs/cert.pem");
        files::put(&certificate, b"no certificate", 0o644).unwrap();
        files::put(&folder.unit("server-0"), b"no unit", 0o600).unwrap();
        let mut supervisor = Supervisor::new(folder.clone());
        supervisor.read_units();
        supervisor.run_housekeeping().await;
        let status = supervisor.answer(ControlRequest::Status).await;
        assert!(status.certificates[0].error.is_some() && status.rejected.len() == 1, "{status:?}");

        files::put(&certificate, pem.as_bytes(), 0o644).unwrap();
        files::remove_file(&folder.unit("server-0")).unwrap();
        let status = supervisor.answer(ControlRequest::Status).await;
        assert!(status.certificates[0].error.is_none() && status.rejected.is_empty(), "{status:?}");
    }
}
