//! Faults of local sites: stored durably, then injected, always with an end.
//!
//! A fault is a file, `STATE/sites/witness/faults/ID.json`. It is written before the injection and removed after the
//! revert. The supervisor of the location `witness` reverts every expired fault, so the process that injected one may
//! die. The orchestrator decides what a drill verifies and measures.

mod disk;
mod elsewhere;
mod processes;

use std::fmt;
use std::io::ErrorKind;
use std::str::FromStr;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use textnlp_keys::{SiteFolder, files};
use textnlp_provider::{SiteName, error_chain};

use crate::lock;
use crate::supervise::{self, PhaseName, begin_detached, exchange};
pub use elsewhere::{RevertCommand, START_TIMEOUT as TAKEN_BACK_WITHIN};
use processes::Processes;

/// The location whose supervisor reverts faults.
pub const WITNESS: &str = "witness";
/// The most fault files that are read; a drill has one.
const MOST_FAULTS: usize = 64;
/// The largest fault file; a usual one is a line.
const FAULT_MAX: u64 = 16 << 10;
/// A restarted supervisor holds its lock within this time, as `up` also expects.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of a request to the relay, which answers from memory.
const RELAY_TIMEOUT: Duration = Duration::from_secs(3);

/// Kills one program of a site, which its supervisor starts again.
pub(crate) fn kill_unit(folder: &SiteFolder, name: &str) -> Result<(), String> {
    Processes::of(folder).kill_unit(name)
}

/// The kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Kills every process at once, as a power failure does.
    Kill,
    /// Stops every process: alive, but not responding.
    Freeze,
    /// Blocks traffic between this site and the others.
    Blackhole,
    /// Fills the site's disk.
    DiskFull,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Kill => "kill",
            Kind::Freeze => "freeze",
            Kind::Blackhole => "blackhole",
            Kind::DiskFull => "disk_full",
        })
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Kind::Kill, Kind::Freeze, Kind::Blackhole, Kind::DiskFull]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| Error::Refused { why: format!("`{text}` is not a kind of fault") })
    }
}

/// One fault, as its file holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The drill's id.
    pub id: String,
    /// The affected site.
    pub site: SiteName,
    /// The kind of fault.
    pub kind: Kind,
    /// When the fault is reverted, whether or not its injector is still alive.
    pub until: Timestamp,
    /// Whether the site's data is lost too; only with [`Kind::Kill`].
    #[serde(default)]
    pub lose_data: bool,
    /// The command that reverts it, where the site's programs run on other machines; only with [`Kind::Kill`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<RevertCommand>,
}

/// Why a fault could not be injected or reverted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The fault is not allowed here.
    #[error("{why}")]
    Refused {
        /// The reason.
        why: String,
    },
    /// A file or folder cannot be used.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The affected path.
        path: Utf8PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The fault was injected in part.
    #[error("{what} of site {site}: {why}")]
    Incomplete {
        /// What was being done.
        what: &'static str,
        /// The affected site.
        site: SiteName,
        /// The part that failed.
        why: String,
    },
}

/// The outcome of a revert step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The fault is reverted.
    Done,
    /// A process was started and is not ready yet.
    Coming,
    /// A process is not ready yet, and none was started.
    Waiting,
}

/// The faults of the local sites of one environment.
#[derive(Debug, Clone)]
pub struct Faults {
    state: Utf8PathBuf,
    program: Utf8PathBuf,
}

impl Faults {
    /// The faults of a state folder. `program` supports `supervise --folder FOLDER` and restarts killed sites.
    pub fn new(state: &Utf8Path, program: &Utf8Path) -> Self {
        Self { state: crate::options::canonical(state.to_owned()), program: program.to_owned() }
    }

    /// The faults that the supervisor of the location `witness` manages; `None` for every other location.
    pub(crate) fn of_witness(site_folder: &SiteFolder) -> Option<Self> {
        let is_witness = site_folder.root().file_name() == Some(WITNESS);
        // `/proc/self/exe`, because the file may have been replaced or removed since this supervisor started.
        is_witness.then(|| Self { state: site_folder.state().to_owned(), program: "/proc/self/exe".into() })
    }

    /// Stores the fault, then injects it. The caller injects a fault of other machines afterwards. On an error the file
    /// stays where something may have happened, for [`Faults::revert`].
    pub async fn inject(&self, fault: &Fault) -> Result<(), Error> {
        self.check(fault)?;
        let folder = self.site(&fault.site);
        let path = self.file(&fault.id);
        let bytes = serde_json::to_vec(fault).map_err(|e| io("write", &path)(e.into()))?;
        files::make_folder(&self.folder()).map_err(io("make", &self.folder()))?;
        files::put(&path, &bytes, 0o600).map_err(io("write", &path))?;
        let incomplete = |what: &'static str| {
            let site = fault.site.clone();
            move |why: String| Error::Incomplete { what, site, why }
        };
        if fault.elsewhere.is_some() {
            return Ok(());
        }
        match fault.kind {
            Kind::Kill => {
                if fault.lose_data {
                    lose_data(&folder, &fault.id)?;
                }
                Processes::of(&folder).kill().await.map_err(incomplete("kill"))
            }
            Kind::Freeze => Processes::of(&folder).freeze().await.map_err(incomplete("freeze")),
            Kind::Blackhole => {
                let ttl = fault.until.duration_since(Timestamp::now()).as_millis().max(1);
                let body = format!("{{\"kind\":\"blackhole\",\"ttl_ms\":{ttl}}}");
                border(&folder, "PUT", &body).await.map_err(|e| incomplete("cut off the links")(e.to_string()))
            }
            Kind::DiskFull => disk::fill(&folder, &fault.id).map_err(incomplete("fill the disk")),
        }
    }

    /// Reverts a fault and removes its file. Reverting it again succeeds.
    pub async fn revert(&self, id: &str) -> Result<(), Error> {
        let Some(fault) = self.read(id)? else { return Ok(()) };
        let began = Instant::now();
        let mut step = self.step(&fault, true).await?;
        while step != Step::Done {
            if began.elapsed() > START_TIMEOUT {
                let why = format!("its supervisor did not start; see {}", self.site(&fault.site).log("supervisor"));
                return Err(Error::Incomplete { what: "revert", site: fault.site, why });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            step = self.step(&fault, false).await?;
        }
        self.remove(id)
    }

    /// Runs one revert step for every expired fault and returns what was done. Bounded in time: the supervisor calls it
    /// repeatedly between other work.
    pub(crate) async fn revert_overdue(&self, now: Timestamp) -> Vec<String> {
        let faults = match self.open() {
            Ok(faults) => faults,
            Err(error) => return vec![format!("faults cannot be read: {}", error_chain(&error))],
        };
        let mut says = Vec::new();
        for fault in faults.into_iter().filter(|fault| fault.until <= now) {
            let what = format!("fault {} ({} of {})", fault.id, fault.kind, fault.site);
            says.push(match self.step(&fault, true).await {
                Ok(Step::Waiting) => continue,
                Ok(Step::Coming) => format!("{what}: it has expired and is being reverted"),
                Ok(Step::Done) => match self.remove(&fault.id) {
                    Ok(()) => format!("{what}: it had expired and was reverted"),
                    Err(error) => {
                        format!("{what}: it was reverted, and its file could not be removed: {}", error_chain(&error))
                    }
                },
                Err(error) => format!("{what}: it has expired and cannot be reverted: {}", error_chain(&error)),
            });
        }
        says
    }

    /// Checks that the revert command of other machines would work with the recorded settings alone.
    pub async fn rehearse(&self, fault: &Fault) -> Result<(), Error> {
        let Some(elsewhere) = &fault.elsewhere else { return Ok(()) };
        files::make_folder(&self.folder()).map_err(io("make", &self.folder()))?;
        let could = elsewhere.rehearse(&self.program, &self.folder()).await;
        could.map_err(|why| refused(format!("no other process could revert it if this drill ends early: {why}")))
    }

    /// Whether a fault is still recorded.
    pub fn is_open(&self, id: &str) -> Result<bool, Error> {
        Ok(self.read(id)?.is_some())
    }

    /// Removes the file of a reverted fault of other machines.
    pub fn forget(&self, id: &str) -> Result<(), Error> {
        match self.read(id)? {
            Some(fault) if fault.elsewhere.is_some() => {
                // The log of the revert command.
                let _ = files::remove_file(&self.folder().join(format!("{id}.log")));
                self.remove(id)
            }
            _ => Ok(()),
        }
    }

    /// Every fault that is not reverted.
    pub fn open(&self) -> Result<Vec<Fault>, Error> {
        let folder = self.folder();
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Without a state folder, no fault was recorded.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(io("read", &folder)(error)),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut ids: Vec<String> =
            names.filter_map(|name| name.strip_suffix(".json").filter(|id| is_id(id)).map(str::to_owned)).collect();
        ids.sort();
        ids.truncate(MOST_FAULTS);
        ids.iter().filter_map(|id| self.read(id).transpose()).collect()
    }

    /// The units of a site that are ready now; none when the supervisor does not answer.
    pub async fn ready_units(&self, site: &SiteName) -> Vec<String> {
        match supervise::status(self.site(site).root()).await {
            Ok(Some(status)) => {
                status.units.into_iter().filter(|unit| unit.phase == PhaseName::Ready).map(|unit| unit.name).collect()
            }
            Ok(None) | Err(_) => Vec::new(),
        }
    }

    /// Removes the data that a lost site left, once it is known to exist elsewhere.
    pub fn discard_lost(&self, site: &SiteName, id: &str) -> Result<(), Error> {
        if !is_id(id) {
            return Err(refused(format!("`{}` is not the id of a fault", short(id))));
        }
        let lost = lost(&self.site(site), id);
        if std::fs::symlink_metadata(&lost).is_ok() {
            permit(&lost, 0o700)?;
        }
        if let Some(elsewhere) = elsewhere(&lost) {
            let aside = aside(&elsewhere, id);
            files::remove_tree(&aside).map_err(io("remove", &aside))?;
        }
        files::remove_tree(&lost).map_err(io("remove", &lost))
    }

    /// The data that a lost site left, if present.
    pub fn lost_data(&self, site: &SiteName, id: &str) -> Option<Utf8PathBuf> {
        Some(lost(&self.site(site), id)).filter(|path| is_id(id) && std::fs::symlink_metadata(path).is_ok())
    }

    async fn step(&self, fault: &Fault, first: bool) -> Result<Step, Error> {
        let folder = self.site(&fault.site);
        let incomplete = |why: String| Error::Incomplete { what: "revert", site: fault.site.clone(), why };
        if let Some(elsewhere) = &fault.elsewhere {
            let begun = elsewhere.begin(&self.program, &self.folder(), &fault.id);
            let begun = begun.map_err(|error| incomplete(format!("start the process that reverts it: {error}")))?;
            return Ok(if begun { Step::Coming } else { Step::Waiting });
        }
        match fault.kind {
            Kind::Kill => {
                let path = folder.lock("supervisor");
                if lock::holder(&path).map_err(io("ask", &path))?.is_some() {
                    return Ok(Step::Done);
                }
                let data = folder.join("data");
                if fault.lose_data && std::fs::symlink_metadata(&data).is_err() {
                    files::make_folder(&data).map_err(io("make", &data))?;
                }
                if first {
                    begin_detached(&self.program, &folder)
                        .map_err(|e| incomplete(format!("start its supervisor: {e}")))?;
                }
                Ok(Step::Coming)
            }
            Kind::Freeze => {
                Processes::of(&folder).signal(Signal::CONT).map_err(incomplete)?;
                Ok(Step::Done)
            }
            Kind::Blackhole => match border(&folder, "DELETE", "").await {
                Ok(()) => Ok(Step::Done),
                // Without a running relay, nothing blocks a connection.
                Err(error) if is_nobody(&error) => Ok(Step::Done),
                Err(error) => Err(incomplete(format!("restore its links: {error}"))),
            },
            Kind::DiskFull => disk::free(&folder, &fault.id).map(|()| Step::Done).map_err(incomplete),
        }
    }

    /// Why this fault would be refused now. Changes nothing.
    pub fn check(&self, fault: &Fault) -> Result<(), Error> {
        if !is_id(&fault.id) {
            return Err(refused(format!(
                "`{}` is not an id: use lower-case letters, digits and hyphens, at most 60",
                short(&fault.id)
            )));
        }
        if fault.site.as_str() == WITNESS {
            return Err(refused("the witness reverts faults; a drill cannot inject one there".to_owned()));
        }
        if fault.lose_data && fault.kind != Kind::Kill {
            return Err(refused(format!("data is lost only with `kill`, not with `{}`", fault.kind)));
        }
        if fault.until <= Timestamp::now() {
            return Err(refused("it would expire before it starts".to_owned()));
        }
        if !self.site(&fault.site).join("units").is_dir() {
            return Err(refused(format!("there is no site {} in {}", fault.site, self.state)));
        }
        // A longer record could not be read to revert it.
        let bytes = serde_json::to_vec(fault).map_or(u64::MAX, |bytes| bytes.len() as u64);
        if bytes > FAULT_MAX {
            return Err(refused(format!("its record would have {bytes} bytes, and at most {FAULT_MAX} are read")));
        }
        // Overlapping faults could not be reverted separately.
        if let Some(open) = self.open()?.iter().find(|open| open.site == fault.site || open.id == fault.id) {
            let (id, kind, site) = (&open.id, open.kind, &open.site);
            return Err(refused(format!("fault {id} ({kind}) of {site} has not been reverted")));
        }
        if fault.elsewhere.is_some() {
            return match fault.kind {
                Kind::Kill if !fault.lose_data => Ok(()),
                _ => Err(refused("a site on another platform supports only `kill` and cut links".to_owned())),
            };
        }
        let folder = self.site(&fault.site);
        let lock = folder.lock("supervisor");
        if fault.lose_data {
            disk::can_be_taken(&folder).map_err(refused)?;
        }
        match fault.kind {
            Kind::DiskFull => disk::check(&folder).map_err(refused),
            Kind::Kill | Kind::Freeze if lock::holder(&lock).map_err(io("ask", &lock))?.is_none() => {
                Err(refused(format!("nothing runs at site {}: its supervisor is not there", fault.site)))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, id: &str) -> Result<Option<Fault>, Error> {
        if !is_id(id) {
            return Err(refused(format!("`{}` is not the id of a fault", short(id))));
        }
        let path = self.file(id);
        let bytes = match files::read_bounded(&path, FAULT_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let fault: Fault = serde_json::from_slice(&bytes).map_err(|e| io("read", &path)(e.into()))?;
        if fault.id != id {
            return Err(io("read", &path)(std::io::Error::other(format!(
                "it belongs to fault `{}`",
                short(&fault.id)
            ))));
        }
        Ok(Some(fault))
    }

    fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.file(id);
        let removed = files::remove_file(&path).and_then(|()| files::flush_folder(&self.folder()));
        removed.map_err(io("remove", &path))
    }

    fn site(&self, site: &SiteName) -> SiteFolder {
        SiteFolder::of(&self.state, site)
    }

    fn folder(&self) -> Utf8PathBuf {
        self.state.join("sites").join(WITNESS).join("faults")
    }

    fn file(&self, id: &str) -> Utf8PathBuf {
        self.folder().join(format!("{id}.json"))
    }
}

/// The socket of a program of a site or of the witness: `watch`, `border`, `witness`. It is in a short folder where the
/// state folder's path is too long for a socket address.
pub fn socket(state: &Utf8Path, site_folder: &SiteName, name: &str) -> Utf8PathBuf {
    SiteFolder::of(&crate::options::canonical(state.to_owned()), site_folder).socket(name)
}

/// Moves the site's data to a private folder. Running programs still hold it open and are killed next.
fn lose_data(folder: &SiteFolder, id: &str) -> Result<(), Error> {
    let (data, lost) = (folder.join("data"), lost(folder, id));
    if let Some(elsewhere) = elsewhere(&data) {
        let aside = aside(&elsewhere, id);
        std::fs::rename(&elsewhere, &aside).map_err(io("take away", &elsewhere))?;
        permit(&aside, 0o000)?;
    }
    std::fs::rename(&data, &lost).map_err(io("take away", &data))?;
    permit(&lost, 0o000)?;
    files::flush_folder(folder.root()).map_err(io("flush", folder.root()))
}

/// The folder of a database that runs as another user: it is the site's data as well.
fn elsewhere(data: &Utf8Path) -> Option<Utf8PathBuf> {
    crate::verbs::postgres::elsewhere(&data.join("postgres"))
}

fn aside(elsewhere: &Utf8Path, id: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{elsewhere}.lost-{id}"))
}

fn lost(folder: &SiteFolder, id: &str) -> Utf8PathBuf {
    folder.join(&format!("data.lost-{id}"))
}

fn permit(path: &Utf8Path, mode: u32) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io("change the mode of", path))
}

/// Sends a request to the site's relay.
async fn border(folder: &SiteFolder, method: &str, body: &str) -> std::io::Result<()> {
    let request = format!(
        "{method} /v1/fault HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = tokio::time::timeout(RELAY_TIMEOUT, exchange(&folder.socket("border"), &request)).await;
    let answer =
        answer.map_err(|_| std::io::Error::new(ErrorKind::TimedOut, "the inter-site relay does not answer"))??;
    match answer.get(..12) {
        Some(head) if head.starts_with("HTTP/1.") && head[9..].starts_with('2') => Ok(()),
        _ => Err(std::io::Error::other(format!(
            "the inter-site relay answers: {}",
            short(answer.lines().next().unwrap_or_default())
        ))),
    }
}

fn is_nobody(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

fn is_id(id: &str) -> bool {
    supervise::is_unit_name(id)
}

fn refused(why: String) -> Error {
    Error::Refused { why }
}

fn io(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}
