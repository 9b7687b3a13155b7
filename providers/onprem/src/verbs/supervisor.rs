//! The site's supervisor as an object: started detached; queried and stopped over its socket.

use rustix::process::{Pid, Signal};
use serde_json::{Map, Value};
use textnlp_keys::{SiteFolder, files};
use textnlp_provider::{Error, ErrorKind, Handle, Health, Progress, Result};

use super::{Observation, ObservedObject, Supervisor, Work};
use crate::lock;
use crate::supervise::{self, ControlRequest, begin_detached, output};

/// Timeout of its start, in milliseconds.
const UP_WITHIN_MS: u64 = 15_000;
/// Timeout of the readiness of adopted processes; a later failure is theirs.
const ADOPTED_WITHIN_MS: u64 = 5_000;
/// A supervisor that ignores the request to exit gets a signal after this time.
const GONE_WITHIN_MS: u64 = 5_000;
/// The step in which a supervisor of another version exits.
const REPLACE: &str = "replace";

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let cloud_id = work.folder.cloud_id("run/supervisor.lock")?;
    work.claim(&cloud_id, Map::new())?;
    started(work).await
}

async fn started(work: &Work<'_>) -> Result<Progress> {
    if holder(work)?.is_none() {
        start(work)?;
    } else if let Some(version) = other_version(work).await {
        let _ = supervise::request(work.folder.root(), &ControlRequest::Shutdown).await;
        let says = format!("stopping the supervisor of version {version}; its programs keep running");
        return Ok(work.pending(work.provider.waiting().begin(REPLACE), says));
    }
    Ok(work.pending(work.provider.waiting().begin("start"), "starting the supervisor"))
}

/// The version of a running supervisor that differs from this program's.
async fn other_version(work: &Work<'_>) -> Option<String> {
    match Supervisor::of(&work.folder).await {
        Supervisor::Runs(status) => Some(status.version).filter(|version| version != supervise::VERSION),
        Supervisor::Stopped | Supervisor::Silent(_) => None,
    }
}

/// Another version is exiting: the new one starts when the lock is free.
async fn replacing(work: &Work<'_>, handle: &Handle, waited: Option<u64>) -> Result<Progress> {
    match (holder(work)?, waited) {
        (None, _) | (Some(_), None) => started(work).await,
        // Another process started the new one meanwhile.
        (Some(_), Some(_)) if matches!(Supervisor::of(&work.folder).await, Supervisor::Runs(s) if s.version == supervise::VERSION) => {
            started(work).await
        }
        (Some(pid), Some(waited)) if waited > GONE_WITHIN_MS => {
            signal(pid, if waited > 2 * GONE_WITHIN_MS { Signal::KILL } else { Signal::TERM });
            Ok(work.pending(handle.0.clone(), "stopping the supervisor of another version"))
        }
        (Some(_), Some(_)) => Ok(work.pending(handle.0.clone(), "stopping the supervisor of another version")),
    }
}

fn start(work: &Work<'_>) -> Result<()> {
    let program = &work.provider.options().supervisor;
    begin_detached(program, &work.folder).map_err(|error| Error::io("start supervisor", program.as_str(), error))
}

pub(super) async fn starting(work: &Work<'_>, handle: &Handle) -> Result<Progress> {
    let waited = work.provider.waiting().waited_ms(handle);
    if handle.0.get("step").and_then(Value::as_str) == Some(REPLACE) {
        return replacing(work, handle, waited).await;
    }
    match (Supervisor::of(&work.folder).await, waited) {
        // The process that started it may have died before it was up. It is started again while the lock is free.
        (Supervisor::Stopped | Supervisor::Silent(_), None) => started(work).await,
        (Supervisor::Runs(status), None) if checks_adopted(&status) => started(work).await,
        (Supervisor::Runs(status), Some(waited)) if waited < ADOPTED_WITHIN_MS && checks_adopted(&status) => {
            Ok(work.pending(handle.0.clone(), "the supervisor is checking the running processes"))
        }
        (Supervisor::Runs(_), _) => {
            let marker = work.complete(&work.folder.cloud_id("run/supervisor.lock")?, Map::new())?;
            work.done(&marker).await
        }
        (_, Some(waited)) if waited < UP_WITHIN_MS => Ok(work.pending(handle.0.clone(), "starting the supervisor")),
        _ => {
            let last = output::tail(&work.folder.log("supervisor"), 3);
            let why = format!("it did not start; end of its log: {last}");
            let left = work.last_seen().await.ok().filter(|object| object.health != Health::Ready);
            Ok(Progress::Failed {
                left,
                error: work.fails(why).hint(format!("look at {}", work.folder.log("supervisor"))),
            })
        }
    }
}

fn checks_adopted(status: &supervise::Status) -> bool {
    status.units.iter().any(|unit| unit.phase == supervise::PhaseName::Starting && unit.pid.is_some())
}

pub(super) async fn remove(work: &Work<'_>) -> Result<Progress> {
    if holder(work)?.is_some() {
        // A supervisor that does not listen gets a signal later.
        let _ = supervise::request(work.folder.root(), &ControlRequest::Shutdown).await;
    }
    Ok(work.pending(work.provider.waiting().begin("stop"), "stopping the supervisor"))
}

pub(super) async fn stopping(work: &Work<'_>, handle: &Handle) -> Result<Progress> {
    if let Some(pid) = holder(work)? {
        let Some(waited) = work.provider.waiting().waited_ms(handle) else { return remove(work).await };
        if waited > GONE_WITHIN_MS {
            signal(pid, if waited > 2 * GONE_WITHIN_MS { Signal::KILL } else { Signal::TERM });
        }
        return Ok(work.pending(handle.0.clone(), "stopping the supervisor"));
    }
    let last = work.last_seen().await?;
    for path in [work.folder.control(), work.folder.lock("supervisor")] {
        files::remove_file(&path).map_err(work.io(&path))?;
    }
    work.removed(last)
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that is gone already needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn holder(work: &Work<'_>) -> Result<Option<u32>> {
    let path = work.folder.lock("supervisor");
    lock::holder(&path).map_err(work.io(&path))
}

pub(super) fn observe(folder: &SiteFolder, supervisor: &Supervisor) -> Result<Observation> {
    let mut look = ObservedObject::default();
    look.output("folder", folder.root().as_str()).output("control", folder.control().as_str());
    match supervisor {
        Supervisor::Runs(status) => {
            let troubles: Vec<String> =
                status
                    .rejected
                    .iter()
                    .map(|rejected| format!("unit {}: {}", rejected.name, rejected.why))
                    .chain(status.certificates.iter().filter_map(|file| {
                        file.error.as_ref().map(|error| format!("certificate {}: {error}", file.file))
                    }))
                    .collect();
            look.trouble = (!troubles.is_empty()).then(|| troubles.join("; "));
        }
        Supervisor::Stopped => drop(look.drift("state", "stopped")),
        Supervisor::Silent(why) => {
            if lock::holder(&folder.lock("supervisor")).map_err(|error| unseen(folder, error))?.is_some() {
                return Err(
                    Error::new(ErrorKind::Unavailable, "ask supervisor", folder.root().as_str()).because(why.clone())
                );
            }
            look.drift("state", "stopped");
        }
    }
    Ok(Observation::There(look))
}

fn unseen(folder: &SiteFolder, error: std::io::Error) -> Error {
    Error::io("check", folder.lock("supervisor").as_str(), error)
}
