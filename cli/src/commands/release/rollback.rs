//! `rollback`: the lock as it was for an earlier release, if that release can still run.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::json;
use textnlp_orchestrator::release::{Entry, History, Recorded, configuration_digest, images, runs_on, with_images};

use super::history::no_entry;
use super::{locked, recorded};
use crate::args::Rollback;
use crate::commands::running;
use crate::deployment::{artifacts, model_can_come, short};
use crate::report::{Console, Failure, Success};
use crate::session::{Chosen, Session};

/// `rollback [--to N]`.
pub async fn rollback(session: &Session, args: &Rollback, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let (path, before) = locked(session, &chosen)?;
    let history = recorded(&chosen, console)?;
    let environment = &chosen.loaded.environment;
    let said = images(environment);
    // What the next `up` would bring: an image that the environment names anew is not in the lock yet.
    let now = before.clone().map(|mut now| {
        let anew = said.iter().filter(|(site, said)| now.image(site, Some(said)).is_none());
        let anew: Vec<_> = anew.map(|(site, said)| (site.clone(), said.clone())).collect();
        now.images.extend(anew);
        now
    });
    let entry = match (args.to, &now) {
        (Some(number), _) => history.get(number).ok_or_else(|| no_entry(session, &chosen, number))?,
        (None, Some(now)) => history.before(now).ok_or_else(|| {
            let error = anyhow::anyhow!("the release history of {} has no other release", chosen.name);
            Failure::usage("no_such_release", error).hint(session.again().command("release history", &chosen.name))
        })?,
        (None, None) => {
            let error = anyhow::anyhow!("environment {} has no release lock to go back from", chosen.name);
            let hint = session.again().command("release history", &chosen.name);
            return Err(Failure::usage("no_lock", error).hint(format!("say where to with --to N: {hint}")));
        }
    };
    let blockers = blockers(session, &chosen, &history, entry, console).await?;
    if !blockers.is_empty() {
        let lines: Vec<_> = blockers.iter().map(|blocker| blocker.because.as_str()).collect();
        let fixes: Vec<_> = blockers.iter().map(|blocker| blocker.fix.as_str()).collect();
        let error = anyhow::anyhow!("{}", lines.join("\n"))
            .context(format!("release {} of {} cannot run here", entry.number, chosen.name));
        let document = json!({ "environment": chosen.name, "to": entry.number, "blockers": lines });
        return Err(Failure::refused("rollback_refused", error).hint(fixes.join("\n")).document(document));
    }

    let mut lock = entry.applied.lock.clone();
    // The images of then stay for as long as the environment says what it says today.
    lock.images.retain(|site, _| said.contains_key(site));
    lock.image_sources = said;
    let changed = now.as_ref().map(|now| now.differences(&lock)).unwrap_or_default();
    lock.write(&path)?;
    let next = session.again().same("up", &chosen.name);
    let at = entry.applied.at.strftime("%Y-%m-%d %H:%M");
    let mut text = format!("wrote {path}: release {} of {at}", entry.number);
    for difference in &changed {
        let say = |digest: &Option<String>| digest.as_deref().map_or_else(|| "none".to_owned(), short);
        let _ = write!(text, "\n  {}: {} → {}", difference.what, say(&difference.locked), say(&difference.here));
    }
    if lock.configuration != configuration_digest(&with_images(environment, &lock)) {
        text.push_str("\nThe environment says something else than it did then, and `up` follows what it says today.");
    }
    let _ = write!(text, "\nTo roll to it: {next}");
    let document = json!({
        "environment": chosen.name, "to": entry.number, "lock": path, "before": before, "release": lock, "changed": changed, "next": next,
    });
    Ok(Success::new(text, document))
}

struct Blocker {
    because: String,
    fix: String,
}

/// Everything that would make the release another one than it was, or keep it from running.
async fn blockers(
    session: &Session,
    chosen: &Chosen,
    history: &Recorded,
    entry: &Entry,
    console: Console,
) -> Result<Vec<Blocker>, Failure> {
    let mut found = Vec::new();
    let (lock, environment) = (&entry.applied.lock, &chosen.loaded.environment);
    let here = artifacts(session, environment, console)?.program;
    let there = running::program(session, &chosen.name, &chosen.folder).await?;
    let is_here = !environment.runs_here()
        || here.digest == lock.server
        || there.is_some_and(|program| program.digest == lock.server);
    if !is_here && History::at(&chosen.folder).program(&lock.server).is_none() {
        let because = format!("its server {} is not here any more", lock.server);
        found.push(Blocker { because, fix: "give the program of that digest with --server FILE".to_owned() });
    }

    let database = running::schema(session, &chosen.name, &chosen.folder).await?;
    let brings = history.schema_of(&lock.server);
    if let Some(database) = database.filter(|database| brings.is_none_or(|brings| !runs_on(brings, *database))) {
        let because = match brings {
            Some(brings) => format!(
                "the database has schema {database}, and its server works with schemas {brings} and {}",
                brings + 1
            ),
            None => format!("the database has schema {database}, and no schema is known of its server"),
        };
        let fix = format!(
            "a copy from then has the schema of then: {}",
            session.again().command("backup list", &chosen.name)
        );
        found.push(Blocker { because, fix });
    }

    let delivered: BTreeSet<String> = running::models(session, &chosen.name, &chosen.folder).await?;
    for model in &environment.models {
        let Some(digest) = lock.models.get(&model.name) else { continue };
        let name = &model.name;
        let (because, fix) = if !lock.holds(name, model.source()) {
            let then = lock.sources.get(name).map_or("another", String::as_str);
            (
                format!("model {name} came from {then}"),
                format!("write `source: {then}` again, now it is {}", model.source()),
            )
        } else if model.digest.as_ref().is_some_and(|pinned| pinned != digest) {
            (
                format!("the environment pins model {name} to another digest"),
                format!("write `digest: {digest}`, or none"),
            )
        } else if delivered.contains(digest) || model_can_come(session, environment, model.source(), digest, console)? {
            continue;
        } else {
            (
                format!("its model {name} {digest} is not here any more"),
                format!("bring back what {} held then", model.source()),
            )
        };
        found.push(Blocker { because, fix });
    }
    Ok(found)
}
