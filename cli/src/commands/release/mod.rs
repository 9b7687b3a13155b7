//! `release`, `promote`, `rollback`: releases by digest, updates of the release lock, and rollbacks.

mod checklist;
mod configuration;
mod history;
mod promote;
mod rollback;

use std::fmt::Write as _;

use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::release::{Lock, Recorded, Release as Resolved};
use textnlp_service::artifacts::LocalArtifacts;
use textnlp_service::{Scope, release};

pub use promote::promote;
pub use rollback::rollback;

use crate::args::Release;
use crate::commands::prelude::*;
use crate::deployment::short;

/// `release show|set|checklist|history|diff`.
pub async fn release(session: &Session, command: &Release, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    match command {
        Release::Checklist(args) => checklist::checklist(session, &chosen, args, console).await,
        Release::Show => show(session, &chosen, console),
        Release::Set => set(session, &chosen, console),
        Release::History => history::history(&chosen, console),
        Release::Diff { left, right } => history::diff(session, &chosen, *left, *right, console),
    }
}

fn show(session: &Session, chosen: &ChosenEnvironment, console: Console) -> Result<Success, Failure> {
    let (path, locked) = (&chosen.lock_path, chosen.lock()?);
    let here = local_release(session, chosen, locked.as_ref(), console)?;
    let environment = &chosen.loaded.environment;
    let Some(locked) = locked else {
        let text =
            format!("{path} does not exist: the first `up` writes it\nlocal release:\n{}", listed(environment, &here));
        return Ok(Success::new(text, json!({ "lock": path, "release": null, "here": here, "differences": [] })));
    };
    let differences = locked.differences(&here);
    let mut text = format!("{path}\n{}\n", listed(environment, &locked));
    if differences.is_empty() {
        let _ = write!(text, "The local release is the same.");
    } else {
        for difference in &differences {
            let _ = writeln!(text, "  differs: {difference}");
        }
        let _ = write!(text, "To lock the local release: {}", chosen.scope.command("release set"));
    }
    Ok(Success::new(text, json!({ "lock": path, "release": locked, "here": here, "differences": differences })))
}

/// The digests of a release, one per line. If all sites are in clusters, no local program is included.
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

fn set(session: &Session, chosen: &ChosenEnvironment, console: Console) -> Result<Success, Failure> {
    let (path, locked) = (&chosen.lock_path, chosen.lock()?);
    let here = local_release(session, chosen, locked.as_ref(), console)?;
    let differences = locked.map(|l| l.differences(&here)).unwrap_or_default();
    here.write(path)?;
    let mut text = format!("wrote {path}");
    for difference in &differences {
        let _ = write!(text, "\n  {difference}");
    }
    let _ = write!(text, "\nTo deploy it: {}", chosen.scope.last_up());
    Ok(Success::new(text, json!({ "lock": path, "release": here, "changed": differences })))
}

/// The lock that `release set` would write.
pub fn local_release(
    session: &Session,
    chosen: &ChosenEnvironment,
    locked: Option<&Lock>,
    console: Console,
) -> Result<Lock, Failure> {
    let environment = &chosen.loaded.environment;
    let local = LocalArtifacts { chosen, server: session.server(), progress: &Progress::new(console) }.read()?;
    let mut here = Resolved::resolve(environment, &local).lock;
    if let Some(locked) = locked {
        // Pods run the program in their image, so the local one does not matter.
        if !environment.runs_here() {
            here.server.clone_from(&locked.server);
        }
        // A model that is not embedded keeps its locked digest as long as its source stays the same.
        for model in environment.models.iter().filter(|m| locked.holds(&m.id(), m.source())) {
            let name = model.id();
            if let (false, Some(digest)) = (here.models.contains_key(&name), locked.models.get(&name)) {
                here.models.insert(name, digest.clone());
            }
        }
    }
    Ok(here)
}

/// The release history of an environment. Unreadable entries are reported and skipped.
fn recorded(scope: &Scope, console: Console) -> Result<Recorded, Failure> {
    let recorded = release::recorded(scope)?;
    recorded
        .skipped
        .iter()
        .for_each(|line| console.warn(format!("skipped an invalid entry of the release history: {line}")));
    Ok(recorded)
}
