//! `release`, `promote`, `rollback`: what runs, by digest, how a newer server is let in, and the way back.

mod history;
mod promote;
mod rollback;

use std::fmt::Write as _;

use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::release::{History, HistoryError, Lock, Recorded, Release as Resolved};

pub use history::{keep_applied, keep_replaced};
pub use promote::promote;
pub use rollback::rollback;

use crate::args::Release;
use crate::deployment::{artifacts, broken_lock, short};
use crate::report::{Console, Exit, Failure, Success};
use crate::session::{Chosen, Session};

/// `release show|set|history|diff`.
pub fn release(session: &Session, command: &Release, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    match command {
        Release::Show => show(session, &chosen, console),
        Release::Set => set(session, &chosen, console),
        Release::History => history::history(session, &chosen, console),
        Release::Diff { left, right } => history::diff(session, &chosen, *left, *right, console),
    }
}

fn show(session: &Session, chosen: &Chosen, console: Console) -> Result<Success, Failure> {
    let (path, locked) = locked(session, chosen)?;
    let here = here(session, chosen, locked.as_ref(), console)?;
    let environment = &chosen.loaded.environment;
    let Some(locked) = locked else {
        let text = format!("{path} is not there: the first `up` writes it\nhere:\n{}", listed(environment, &here));
        return Ok(Success::new(text, json!({ "lock": path, "release": null, "here": here, "differences": [] })));
    };
    let differences = locked.differences(&here);
    let mut text = format!("{path}\n{}\n", listed(environment, &locked));
    if differences.is_empty() {
        let _ = write!(text, "The same is here.");
    } else {
        for difference in &differences {
            let _ = writeln!(text, "  differs: {difference}");
        }
        let _ = write!(text, "To release what is here: {}", session.again().command("release set", &chosen.name));
    }
    Ok(Success::new(text, json!({ "lock": path, "release": locked, "here": here, "differences": differences })))
}

/// The digests of a release, a line each. Where everything is in clusters, no program of this machine is part of it.
fn listed(environment: &Environment, lock: &Lock) -> String {
    let mut lines = Vec::new();
    if environment.runs_here() {
        lines.push(format!("  server         {}", short(&lock.server)));
    }
    lines.extend(lock.images.iter().map(|(site, image)| format!("  image {site:<8} {image}")));
    lines.extend(lock.models.iter().map(|(name, digest)| format!("  model {name:<8} {}", short(digest))));
    lines.push(format!("  configuration  {}", short(&lock.configuration)));
    lines.join("\n")
}

fn set(session: &Session, chosen: &Chosen, console: Console) -> Result<Success, Failure> {
    let (path, locked) = locked(session, chosen)?;
    let here = here(session, chosen, locked.as_ref(), console)?;
    let differences = locked.map(|l| l.differences(&here)).unwrap_or_default();
    here.write(&path)?;
    let mut text = format!("wrote {path}");
    for difference in &differences {
        let _ = write!(text, "\n  {difference}");
    }
    let _ = write!(text, "\nTo roll to it: {}", session.again().command("up", &chosen.name));
    Ok(Success::new(text, json!({ "lock": path, "release": here, "changed": differences })))
}

/// The lock of an environment, and its file.
fn locked(session: &Session, chosen: &Chosen) -> Result<(Utf8PathBuf, Option<Lock>), Failure> {
    let path = Lock::path(&session.lock_folder(chosen), &chosen.name);
    let lock = Lock::read(&path).map_err(|e| broken_lock(e, session, &chosen.name))?;
    Ok((path, lock))
}

/// What `release set` would lock.
fn here(session: &Session, chosen: &Chosen, locked: Option<&Lock>, console: Console) -> Result<Lock, Failure> {
    let environment = &chosen.loaded.environment;
    let mut here = Resolved::resolve(environment, &artifacts(session, environment, console)?).lock;
    if let Some(locked) = locked {
        // Pods run the program of their image, whatever is here.
        if !environment.runs_here() {
            here.server.clone_from(&locked.server);
        }
        // Of a model that is not part of this program, what was delivered stays; a new digest comes with a new source.
        for model in environment.models.iter().filter(|m| locked.holds(&m.name, m.source())) {
            if let (false, Some(digest)) = (here.models.contains_key(&model.name), locked.models.get(&model.name)) {
                here.models.insert(model.name.clone(), digest.clone());
            }
        }
    }
    Ok(here)
}

/// The history of an environment; what cannot be read of it is said and left out.
fn recorded(chosen: &Chosen, console: Console) -> Result<Recorded, Failure> {
    let recorded = History::at(&chosen.folder).read().map_err(unreadable)?;
    recorded
        .skipped
        .iter()
        .for_each(|line| console.warn(format!("an entry of the release history is skipped: {line}")));
    Ok(recorded)
}

fn unreadable(error: HistoryError) -> Failure {
    Failure::new(Exit::Failed, "release_history", error)
        .hint("the state needs a folder that can be read and written: mend it, then run this again")
}
