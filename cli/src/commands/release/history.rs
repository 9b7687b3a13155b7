//! `release history|diff`.

use std::fmt::Write as _;

use textnlp_orchestrator::release::{Applied, Lock};
use textnlp_service::release::no_entry;

use super::{local_release, recorded};
use crate::args::Side;
use crate::commands::prelude::*;
use crate::deployment::short;

/// `release history`.
pub fn history(chosen: &ChosenEnvironment, console: Console) -> Result<Success, Failure> {
    let recorded = recorded(&chosen.scope, console)?;
    let locked = chosen.lock()?;
    let mut lines = Vec::new();
    let mut documents = Vec::new();
    let newest = locked.and_then(|locked| {
        let same = recorded.entries.iter().filter(|entry| locked.runs_the_same(&entry.applied.lock));
        // The configuration of the lock may be older than the last one that was applied.
        let newest = same.max_by_key(|entry| (entry.applied.lock.configuration == locked.configuration, entry.number));
        newest.map(|entry| entry.number)
    });
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
        lines.push(format!("no release was applied yet: {}", chosen.scope.last_up()));
    }
    let document = json!({
        "environment": chosen.scope.name, "releases": documents, "skipped": recorded.skipped,
    });
    Ok(Success::new(lines.join("\n"), document))
}

/// `release diff`: the lock compared with the local artifacts, an entry with the lock, or two given releases.
pub fn diff(
    session: &Session,
    chosen: &ChosenEnvironment,
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
        "environment": chosen.scope.name, "left": side(left, &one), "right": side(right, &other), "differences": differences,
    });
    Ok(Success::new(text, document))
}

fn side_of(session: &Session, chosen: &ChosenEnvironment, side: Side, console: Console) -> Result<Lock, Failure> {
    match side {
        Side::Here => local_release(session, chosen, chosen.lock()?.as_ref(), console),
        Side::Lock => chosen.lock()?.ok_or_else(|| {
            Failure::usage("no_lock", anyhow::anyhow!("environment {} has no release lock yet", chosen.scope.name))
                .hint(chosen.scope.command("release set"))
        }),
        Side::Entry(number) => match recorded(&chosen.scope, console)?.get(number) {
            Some(entry) => Ok(entry.applied.lock.clone()),
            None => Err(no_entry(&chosen.scope, number)),
        },
    }
}
