//! Promotions, rollbacks and the history of releases.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::json;
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::environment;
use textnlp_orchestrator::gate::ChangedLimit;
use textnlp_orchestrator::gate::phases::PhaseDefinition;
use textnlp_orchestrator::release::{
    self, Applied, Entry, History, HistoryError, Lock, LockDifference, Recorded, Release, configuration_digest, images,
    runs_on, settings_digest, with_images,
};
use textnlp_orchestrator::state::Operator;
use textnlp_provider::component::Program;

use crate::artifacts::LocalArtifacts;
use crate::gate::{self, StoredEvidence, order};
use crate::{ChosenEnvironment, Exit, Failure, Scope, baseline, origin, running};

/// The release history of an environment, with the entries that cannot be read.
pub fn recorded(scope: &Scope) -> Result<Recorded, Failure> {
    History::at(&scope.folder).read().map_err(unreadable)
}

fn unreadable(error: HistoryError) -> Failure {
    Failure::new(Exit::Failed, "release_history", error)
        .hint("the state folder must be readable and writable: fix its permissions, then run this again")
}

/// The error for a number that the release history does not have.
pub fn no_entry(scope: &Scope, number: u64) -> Failure {
    let error = anyhow::anyhow!("the release history of {} has no entry {number}", scope.name);
    Failure::usage("no_such_release", error).hint(scope.command("release history"))
}

/// A promoted release.
pub struct Promoted {
    /// The new lock.
    pub lock: Lock,
    /// What differs from the previous lock, if there was one.
    pub changed: Option<Vec<LockDifference>>,
    /// Whether the baseline of `source` was copied to `target`, or why not.
    pub baseline: Result<bool, String>,
    /// Settings of the gate of `source` that differ from those of the environment that ships for its phase.
    pub changed_limits: Vec<ChangedLimit>,
}

/// Writes the release of `source` to the lock of `target`, and the evidence that its phase needs. Refused with all reasons
/// unless the gate of `source` is open, and if a phase would be skipped. `history` is that of `source`.
pub async fn promote(
    source: &ChosenEnvironment,
    target: &ChosenEnvironment,
    history: &Recorded,
) -> Result<Promoted, Failure> {
    order::follows(source, target)?;
    let proven = source.lock()?;
    let (evidence, (mut blockers, mut hint)) = match verified(source, history, proven.as_ref()).await? {
        Ok(evidence) => (Some(evidence), (Vec::new(), None)),
        Err(unverified) => (None, unverified),
    };
    let needs = PhaseDefinition::of(target.loaded.environment.phase).after();
    let at = evidence.as_ref().map(|evidence| evidence.at);
    if let Some(why) = needs.and(at).and_then(|at| order::too_old(&source.scope.name, at, Timestamp::now())) {
        blockers.push(why);
        hint = Some(source.scope.last("gate --again"));
    }
    let promoted = match &proven {
        None => None,
        Some(proven) => match release::promote(proven, &target.loaded.environment) {
            Ok(lock) => Some(lock),
            Err(models) => {
                blockers.extend(models);
                hint = hint.or_else(|| {
                    Some(source.scope.again.bare(&format!("env diff {} {}", source.scope.name, target.scope.name)))
                });
                None
            }
        },
    };
    let Some((lock, evidence)) = promoted.filter(|_| blockers.is_empty()).zip(evidence) else {
        let error = anyhow::anyhow!("{}", blockers.join("\n"))
            .context(format!("the release of {} is not verified for {}", source.scope.name, target.scope.name));
        let document = json!({ "from": source.scope.name, "to": target.scope.name, "blockers": blockers });
        let failure = Failure::new(Exit::GateShut, "gate_not_open", error).document(document);
        return Err(match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        });
    };
    let before = target.lock()?;
    let changed = before.map(|before| before.differences(&lock));
    // A promoted lock without its evidence would be refused by `up`.
    order::keep(source, &evidence, target, &lock)?;
    lock.write(&target.lock_path)?;
    // The evidence has made the folder.
    let baseline = match needs {
        Some(_) => baseline::carry(&source.scope.folder, &target.scope.folder),
        None => Ok(false),
    };
    Ok(Promoted { lock, changed, baseline, changed_limits: evidence.changed_limits })
}

/// The server program of a release in the environment where it ran. None of a copied state: its author chose the digest,
/// too.
pub async fn program_of(scope: &Scope, lock: &Lock) -> Result<Option<Program>, Failure> {
    if !origin::is_of_here(&scope.folder) {
        return Ok(None);
    }
    let there = running::program(scope).await?;
    let kept = || History::at(&scope.folder).program(&lock.server);
    Ok(there.filter(|program| program.digest == lock.server).or_else(kept))
}

/// All reasons against promoting a lock, and the command to run next.
pub(crate) type Unverified = (Vec<String>, Option<String>);

/// The evidence that this lock passed the gate of the environment where it runs.
pub(crate) async fn verified(
    chosen: &ChosenEnvironment,
    history: &Recorded,
    lock: Option<&Lock>,
) -> Result<Result<StoredEvidence, Unverified>, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let name = &scope.name;
    let up = Some(scope.last_up());
    let measure = Some(scope.last("gate --again"));
    let no = |why: String, next: Option<String>| Ok(Err((vec![why], next)));
    if let Some(why) = gate::unmeasured(environment) {
        let why = format!("{why}, and only a release that passed its gate is promoted");
        return no(why, Some("promote from an environment whose gate is measured, such as staging".to_owned()));
    }
    let Some(lock) = lock else {
        return no(format!("{name} has no release lock: nothing was deployed there"), up);
    };
    let newest = match history.newest() {
        Ok(newest) => newest.map(|entry| &entry.applied),
        Err(why) => return no(why, up),
    };
    let Some(applied) = newest.filter(|applied| applied.lock.runs_the_same(lock)) else {
        return no(format!("the lock of {name} names a release that is not the last one that `up` applied"), up);
    };
    if !applied.is_configured_as(environment) {
        return no(gate::not_applied(scope), up);
    }
    let kept = match gate::stored(chosen, &running::state(scope).await?) {
        Ok(Some(kept)) => kept,
        Ok(None) => return no(format!("the gate of {name} was not measured"), measure),
        Err(why) => return no(why, measure),
    };
    let at = kept.at.strftime("%Y-%m-%d %H:%M");
    if !kept.is_of(lock, environment) {
        let what = "of another release, configuration or gate than today's";
        return no(format!("the evidence of the gate of {name}, measured {at}, is {what}"), measure);
    }
    if kept.at < applied.at {
        return no(format!("the gate of {name} was measured {at}, before this release was applied"), measure);
    }
    if let Some(why) = kept.outdated() {
        return no(format!("the gate of {name} was measured {at}, and {why}"), measure);
    }
    let blockers = kept.blockers();
    Ok(if blockers.is_empty() { Ok(kept) } else { Err((blockers, measure)) })
}

/// A release that is locked again.
pub struct RolledBack {
    /// Its number in the history.
    pub number: u64,
    /// When it was applied.
    pub at: Timestamp,
    /// The previous lock.
    pub before: Option<Lock>,
    /// The new lock.
    pub lock: Lock,
    /// What differs from the release that the next `up` would have applied.
    pub changed: Vec<LockDifference>,
    /// Whether the environment has changed since that release.
    pub other_configuration: bool,
}

/// Writes an earlier release to the lock: that with the number `to`, else the one before. Refused with all reasons if
/// it cannot run here.
pub async fn rollback(
    chosen: &ChosenEnvironment,
    history: &Recorded,
    to: Option<u64>,
    local: &LocalArtifacts<'_>,
) -> Result<RolledBack, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let before = chosen.lock()?;
    let said = images(environment);
    // What the next `up` would apply: an image that the environment changed is not in the lock yet.
    let now = before.clone().map(|mut now| {
        let added = said.iter().filter(|(site, said)| now.image(site, Some(said)).is_none());
        let added: Vec<_> = added.map(|(site, said)| (site.clone(), said.clone())).collect();
        now.images.extend(added);
        now
    });
    let entry = match (to, &now) {
        (Some(number), _) => history.get(number).ok_or_else(|| no_entry(scope, number))?,
        (None, Some(now)) => history.before(now).ok_or_else(|| {
            let error = match history.entries.len() < 2 {
                true => anyhow::anyhow!("the release history of {} has no other release", scope.name),
                false => anyhow::anyhow!(
                    "the releases of {} differ only in their settings, which a rollback does not restore",
                    scope.name
                ),
            };
            Failure::usage("no_such_release", error).hint(scope.command("release history"))
        })?,
        (None, None) => {
            let error = anyhow::anyhow!("environment {} has no release lock to roll back from", scope.name);
            let hint = scope.command("release history");
            return Err(Failure::usage("no_lock", error).hint(format!("choose a release with --to N: {hint}")));
        }
    };
    let blockers = blockers(chosen, history, entry, local).await?;
    if !blockers.is_empty() {
        let lines: Vec<_> = blockers.iter().map(|blocker| blocker.because.as_str()).collect();
        let fixes: Vec<_> = blockers.iter().map(|blocker| blocker.fix.as_str()).collect();
        let error = anyhow::anyhow!("{}", lines.join("\n"))
            .context(format!("release {} of {} cannot run here", entry.number, scope.name));
        let document = json!({ "environment": scope.name, "to": entry.number, "blockers": lines });
        return Err(Failure::refused("rollback_refused", error).hint(fixes.join("\n")).document(document));
    }

    let mut lock = entry.applied.lock.clone();
    // The earlier images are used as long as the environment names the same ones as today.
    lock.images.retain(|site, _| said.contains_key(site));
    lock.image_sources = said;
    let changed = now.as_ref().map(|now| now.differences(&lock)).unwrap_or_default();
    lock.write(&chosen.lock_path)?;
    let other_configuration = lock.configuration != configuration_digest(&with_images(environment, &lock));
    Ok(RolledBack { number: entry.number, at: entry.applied.at, before, lock, changed, other_configuration })
}

struct Blocker {
    because: String,
    fix: String,
}

/// Everything that would change the release or prevent it from running.
async fn blockers(
    chosen: &ChosenEnvironment,
    history: &Recorded,
    entry: &Entry,
    local: &LocalArtifacts<'_>,
) -> Result<Vec<Blocker>, Failure> {
    let mut found = Vec::new();
    let (lock, scope, environment) = (&entry.applied.lock, &chosen.scope, &chosen.loaded.environment);
    let here = local.read()?.program;
    let there = running::program(scope).await?;
    let is_here = !environment.runs_here()
        || here.digest == lock.server
        || there.is_some_and(|program| program.digest == lock.server);
    if !is_here && History::at(&scope.folder).program(&lock.server).is_none() {
        let because = format!("its server program {} is no longer stored", lock.server);
        found.push(Blocker { because, fix: "give the program with that digest: --server FILE".to_owned() });
    }

    let database = running::schema(scope).await?;
    let brings = history.schema_of(&lock.server);
    if let Some(database) = database.filter(|database| brings.is_none_or(|brings| !runs_on(brings, *database))) {
        let because = match brings {
            Some(brings) => format!(
                "the database has schema {database}, but its server supports schemas {brings} and {}",
                brings + 1
            ),
            None => format!("the database has schema {database}, but the schemas that its server supports are unknown"),
        };
        let fix = format!("restore a backup from that time, which has its schema: {}", scope.command("backup list"));
        found.push(Blocker { because, fix });
    }

    let delivered: BTreeSet<String> = running::models(scope).await?;
    for model in &environment.models {
        let name = &model.id();
        let Some(digest) = lock.models.get(name) else { continue };
        let (because, fix) = if !lock.holds(name, model.source()) {
            let then = lock.sources.get(name).map_or("another", String::as_str);
            (
                format!("model {name} came from {then}"),
                format!("set `source: {then}` again; it is {} now", model.source()),
            )
        } else if model.digest.as_ref().is_some_and(|pinned| pinned != digest) {
            (
                format!("the environment pins model {name} to another digest"),
                format!("set `digest: {digest}`, or remove `digest`"),
            )
        } else if delivered.contains(digest) || local.has_model(model.source(), digest)? {
            continue;
        } else {
            (
                format!("its model {name} {digest} is no longer available"),
                format!("restore the earlier content of {}", model.source()),
            )
        };
        found.push(Blocker { because, fix });
    }
    Ok(found)
}

/// Keeps the replaced server program for a rollback. Returns a warning if that fails, for example for
/// lack of disk space.
pub async fn keep_replaced(scope: &Scope, wanted: Option<&Release>) -> Result<Option<String>, Failure> {
    let there = running::program(scope).await?;
    let wanted = wanted.map(|release| &release.program.digest);
    if let Some(program) = there.filter(|there| wanted.is_some_and(|wanted| *wanted != there.digest))
        && let Err(error) = History::at(&scope.folder).keep_program(&program)
    {
        let why = anyhow::Error::new(error);
        return Ok(Some(format!(
            "the running server program was not saved; a rollback to it needs --server FILE: {why:#}"
        )));
    }
    Ok(None)
}

/// Records a release that was applied to these sites. If they are all sites, it becomes an entry of the history, unless
/// the newest one is the same.
pub async fn keep_applied(
    chosen: &ChosenEnvironment,
    release: &Release,
    lock: &Lock,
    sites: &[&str],
    operator: Operator,
) -> Result<(), Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let models = environment.models.iter();
    let of = |name: &String| release.lock.models.get(name).or_else(|| lock.models.get(name)).cloned();
    let ran = Lock {
        // The lock has an older configuration. The current one ran, with the digests that the lock pins.
        configuration: release.lock.configuration.clone(),
        models: models.clone().filter_map(|m| Some((m.id(), of(&m.id())?))).collect(),
        sources: models.map(|m| (m.id(), m.source().to_owned())).collect(),
        tenants: release.lock.tenants.clone(),
        images: release.lock.images.clone(),
        image_sources: release.lock.image_sources.clone(),
        ..lock.clone()
    };
    let applied = Applied {
        at: SystemClock.now(),
        by: operator.by,
        reason: operator.reason,
        tool: operator.tool,
        schema: running::schema(scope).await?,
        phase: Some(environment.phase),
        settings: Some(settings_digest(environment)),
        lock: ran,
    };
    let history = History::at(&scope.folder);
    history.keep_sites(sites.iter().copied(), &applied).map_err(unreadable)?;
    if sites.len() < environment::places(environment).len() {
        // With `--site`, other sites still run the earlier release.
        return Ok(());
    }
    history.keep(&applied).map(drop).map_err(unreadable)
}
