//! The site's supervisor as an object: started detached, asked over its socket, told to leave.

use rustix::process::{Pid, Signal};
use serde_json::{Map, Value};
use textnlp_provider::{Error, Handle, Health, Progress, Result, Sort};

use super::{Look, Seen, Supervisor, Work};
use crate::files;
use crate::layout::SiteFolder;
use crate::lock;
use crate::supervise::{self, Ask, begin_detached, output};

/// A supervisor that has not come up by then does not.
const UP_WITHIN_MS: u64 = 15_000;
/// Processes that ran already are asked whether they are ready; one that is not by then shows so itself.
const ADOPTED_WITHIN_MS: u64 = 5_000;
/// One that was asked to leave and does not is told by a signal.
const GONE_WITHIN_MS: u64 = 5_000;
/// The step in which a supervisor of another version leaves.
const REPLACE: &str = "replace";

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let cloud_id = work.folder.cloud_id("run/supervisor.lock")?;
    work.claim(&cloud_id, Map::new())?;
    begun(work).await
}

async fn begun(work: &Work<'_>) -> Result<Progress> {
    if holder(work)?.is_none() {
        start(work)?;
    } else if let Some(version) = other_version(work).await {
        let _ = supervise::ask(work.folder.root(), &Ask::Shutdown).await;
        let says = format!("the supervisor of version {version} leaves; its programs go on");
        return Ok(work.pending(work.onprem.waiting().begin(REPLACE), says));
    }
    Ok(work.pending(work.onprem.waiting().begin("start"), "the supervisor begins"))
}

/// The version of a supervisor that runs and is not of this program.
async fn other_version(work: &Work<'_>) -> Option<String> {
    match Supervisor::of(&work.folder).await {
        Supervisor::Runs(status) => Some(status.version).filter(|version| version != supervise::VERSION),
        Supervisor::Stopped | Supervisor::Silent(_) => None,
    }
}

/// Another version was asked to leave: ours begins when its lock is free.
async fn replacing(work: &Work<'_>, handle: &Handle, waited: Option<u64>) -> Result<Progress> {
    match (holder(work)?, waited) {
        (None, _) | (Some(_), None) => begun(work).await,
        // Somebody else started ours meanwhile.
        (Some(_), Some(_)) if matches!(Supervisor::of(&work.folder).await, Supervisor::Runs(s) if s.version == supervise::VERSION) => {
            begun(work).await
        }
        (Some(pid), Some(waited)) if waited > GONE_WITHIN_MS => {
            signal(pid, if waited > 2 * GONE_WITHIN_MS { Signal::KILL } else { Signal::TERM });
            Ok(work.pending(handle.0.clone(), "the supervisor of another version leaves"))
        }
        (Some(_), Some(_)) => Ok(work.pending(handle.0.clone(), "the supervisor of another version leaves")),
    }
}

fn start(work: &Work<'_>) -> Result<()> {
    let program = &work.onprem.options().supervisor;
    begin_detached(program, &work.folder).map_err(|error| Error::io("start supervisor", program.as_str(), error))
}

pub(super) async fn starting(work: &Work<'_>, handle: &Handle) -> Result<Progress> {
    let waited = work.onprem.waiting().waited_ms(handle);
    if handle.0.get("step").and_then(Value::as_str) == Some(REPLACE) {
        return replacing(work, handle, waited).await;
    }
    match (Supervisor::of(&work.folder).await, waited) {
        // Whoever started it may have died before it came up, and it with them: it is started where nobody holds its lock.
        (Supervisor::Stopped | Supervisor::Silent(_), None) => begun(work).await,
        (Supervisor::Runs(status), None) if looks_at_adopted(&status) => begun(work).await,
        (Supervisor::Runs(status), Some(waited)) if waited < ADOPTED_WITHIN_MS && looks_at_adopted(&status) => {
            Ok(work.pending(handle.0.clone(), "the supervisor looks at the processes that it found running"))
        }
        (Supervisor::Runs(_), _) => {
            let marker = work.complete(&work.folder.cloud_id("run/supervisor.lock")?, Map::new())?;
            work.done(&marker).await
        }
        (_, Some(waited)) if waited < UP_WITHIN_MS => Ok(work.pending(handle.0.clone(), "the supervisor begins")),
        _ => {
            let last = output::tail(&work.folder.log("supervisor"), 3);
            let why = format!("it did not come up; its last words: {last}");
            let left = work.last_seen().await.ok().filter(|object| object.health != Health::Ready);
            Ok(Progress::Failed {
                left,
                error: work.fails(why).hint(format!("look at {}", work.folder.log("supervisor"))),
            })
        }
    }
}

fn looks_at_adopted(status: &supervise::Status) -> bool {
    status.units.iter().any(|unit| unit.phase == supervise::PhaseName::Starting && unit.pid.is_some())
}

pub(super) async fn remove(work: &Work<'_>) -> Result<Progress> {
    if holder(work)?.is_some() {
        // One that does not listen gets a signal later.
        let _ = supervise::ask(work.folder.root(), &Ask::Shutdown).await;
    }
    Ok(work.pending(work.onprem.waiting().begin("stop"), "the supervisor leaves"))
}

pub(super) async fn stopping(work: &Work<'_>, handle: &Handle) -> Result<Progress> {
    if let Some(pid) = holder(work)? {
        let Some(waited) = work.onprem.waiting().waited_ms(handle) else { return remove(work).await };
        if waited > GONE_WITHIN_MS {
            signal(pid, if waited > 2 * GONE_WITHIN_MS { Signal::KILL } else { Signal::TERM });
        }
        return Ok(work.pending(handle.0.clone(), "the supervisor leaves"));
    }
    let last = work.last_seen().await?;
    for path in [work.folder.control(), work.folder.lock("supervisor")] {
        files::remove_file(&path).map_err(work.io(&path))?;
    }
    work.forget()?;
    Ok(Progress::Done(last))
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone by now, which is what is wanted.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn holder(work: &Work<'_>) -> Result<Option<u32>> {
    let path = work.folder.lock("supervisor");
    lock::holder(&path).map_err(work.io(&path))
}

pub(super) fn look(folder: &SiteFolder, supervisor: &Supervisor) -> Result<Seen> {
    let mut look = Look::default();
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
                    Error::new(Sort::Unavailable, "ask supervisor", folder.root().as_str()).because(why.clone())
                );
            }
            look.drift("state", "stopped");
        }
    }
    Ok(Seen::There(look))
}

fn unseen(folder: &SiteFolder, error: std::io::Error) -> Error {
    Error::io("look at", folder.lock("supervisor").as_str(), error)
}
