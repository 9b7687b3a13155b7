//! `release history|diff`, and what `up` writes down for them.

use std::fmt::Write as _;

use serde_json::json;
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::environment;
use textnlp_orchestrator::release::{Applied, Entry, History, Lock};

use super::{here, locked, recorded, unreadable};
use crate::args::Side;
use crate::commands::running;
use crate::deployment::{Deployment, operator, short};
use crate::report::{Console, Failure, Success};
use crate::session::{Chosen, Session};

/// `release history`.
pub fn history(session: &Session, chosen: &Chosen, console: Console) -> Result<Success, Failure> {
    let recorded = recorded(chosen, console)?;
    let (_, locked) = locked(session, chosen)?;
    let mut lines = Vec::new();
    let mut documents = Vec::new();
    let same = |entry: &&Entry| locked.as_ref().is_some_and(|locked| locked.runs_the_same(&entry.applied.lock));
    let newest = recorded.entries.iter().rev().find(same).map(|entry| entry.number);
    for entry in &recorded.entries {
        let Applied { at, by, reason, lock, .. } = &entry.applied;
        let is_locked = newest == Some(entry.number);
        let mut line = format!("{:>4}  {}  {by}", entry.number, at.strftime("%Y-%m-%d %H:%M"));
        if chosen.loaded.environment.runs_here() {
            let _ = write!(line, "  server {}", short(&lock.server));
        }
        for (site, image) in &lock.images {
            let _ = write!(line, "  {site} {image}");
        }
        for (name, digest) in &lock.models {
            let _ = write!(line, "  {name} {}", short(digest));
        }
        let _ = write!(line, "  configuration {}", short(&lock.configuration));
        if let Some(schema) = entry.applied.schema {
            let _ = write!(line, "  schema {schema}");
        }
        if is_locked {
            line.push_str("  = the lock");
        }
        if let Some(reason) = reason {
            let _ = write!(line, "\n      {reason}");
        }
        lines.push(line);
        let mut document = serde_json::to_value(entry)?;
        document["is_locked"] = json!(is_locked);
        documents.push(document);
    }
    if lines.is_empty() {
        lines.push(format!("no release was applied here yet: {}", session.again().command("up", &chosen.name)));
    }
    let document = json!({
        "environment": chosen.name, "releases": documents, "skipped": recorded.skipped,
    });
    Ok(Success::new(lines.join("\n"), document))
}

/// `release diff`: the lock and what is here; one entry and the lock; or what was said.
pub fn diff(
    session: &Session,
    chosen: &Chosen,
    left: Option<Side>,
    right: Option<Side>,
    console: Console,
) -> Result<Success, Failure> {
    let left = left.unwrap_or(Side::Lock);
    let right = right.unwrap_or(if matches!(left, Side::Entry(_)) { Side::Lock } else { Side::Here });
    let of = |side: Side| side_of(session, chosen, side, console);
    let (one, other) = (of(left)?, of(right)?);
    let mut text = format!("{left} → {right}");
    let mut differences = Vec::new();
    for difference in one.differences(&other) {
        let say = |digest: &Option<String>| digest.as_deref().map_or_else(|| "none".to_owned(), short);
        let _ = write!(text, "\n  {}: {} → {}", difference.what, say(&difference.locked), say(&difference.here));
        differences.push(json!({ "what": difference.what, "left": difference.locked, "right": difference.here }));
    }
    if differences.is_empty() {
        text.push_str("\n  no difference");
    }
    let side = |side: Side, release: &Lock| json!({ "is": side.to_string(), "release": release });
    let document = json!({
        "environment": chosen.name, "left": side(left, &one), "right": side(right, &other), "differences": differences,
    });
    Ok(Success::new(text, document))
}

fn side_of(session: &Session, chosen: &Chosen, side: Side, console: Console) -> Result<Lock, Failure> {
    let again = session.again();
    match side {
        Side::Here => here(session, chosen, locked(session, chosen)?.1.as_ref(), console),
        Side::Lock => locked(session, chosen)?.1.ok_or_else(|| {
            Failure::usage("no_lock", anyhow::anyhow!("environment {} has no release lock yet", chosen.name))
                .hint(again.command("release set", &chosen.name))
        }),
        Side::Entry(number) => match recorded(chosen, console)?.get(number) {
            Some(entry) => Ok(entry.applied.lock.clone()),
            None => Err(no_entry(session, chosen, number)),
        },
    }
}

pub fn no_entry(session: &Session, chosen: &Chosen, number: u64) -> Failure {
    let error = anyhow::anyhow!("the release history of {} has no entry {number}", chosen.name);
    Failure::usage("no_such_release", error).hint(session.again().command("release history", &chosen.name))
}

/// Keeps the server program that this run replaces, for the way back. Without room for it, what was asked for is done all the same.
pub async fn keep_replaced(deployment: &Deployment<'_>, console: Console) -> Result<(), Failure> {
    let chosen = &deployment.chosen;
    let there = running::program(deployment.session, &chosen.name, &chosen.folder).await?;
    let wanted = deployment.release.as_ref().map(|release| &release.program.digest);
    if let Some(program) = there.filter(|there| wanted.is_some_and(|wanted| *wanted != there.digest))
        && let Err(error) = History::at(&chosen.folder).keep_program(&program)
    {
        let why = anyhow::Error::new(error);
        console.warn(format!("the server that runs is not kept; going back to it will need --server FILE: {why:#}"));
    }
    Ok(())
}

/// Writes down that a release was applied everywhere, unless the newest entry says so already.
pub async fn keep_applied(deployment: &Deployment<'_>, lock: &Lock) -> Result<(), Failure> {
    let (session, chosen) = (deployment.session, &deployment.chosen);
    let Some(release) = &deployment.release else { return Ok(()) };
    let environment = &chosen.loaded.environment;
    if deployment.sites.len() < environment::places(environment).len() {
        // With `--site`, other sites still run what they ran.
        return Ok(());
    }
    let models = environment.models.iter();
    let of = |name: &String| release.lock.models.get(name).or_else(|| lock.models.get(name)).cloned();
    let ran = Lock {
        // A lock keeps what it said of the configuration; what ran is today's, with the digests that it pins.
        configuration: release.lock.configuration.clone(),
        models: models.clone().filter_map(|m| Some((m.name.clone(), of(&m.name)?))).collect(),
        sources: models.map(|m| (m.name.clone(), m.source().to_owned())).collect(),
        images: release.lock.images.clone(),
        image_sources: release.lock.image_sources.clone(),
        ..lock.clone()
    };
    let operator = operator(session);
    let applied = Applied {
        at: SystemClock.now(),
        by: operator.by,
        reason: operator.reason,
        tool: operator.tool,
        schema: running::schema(session, &chosen.name, &chosen.folder).await?,
        lock: ran,
    };
    History::at(&chosen.folder).keep(&applied).map(drop).map_err(unreadable)
}
