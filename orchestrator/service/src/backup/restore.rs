//! Restores a deployment's state from a backup. `up` then recreates the rest from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use textnlp_models::{FetchOptions, Source, Store};
use textnlp_orchestrator::backup::{Database, Decryptor, Manifest};
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::state::audit::{self, AUDIT};
use textnlp_orchestrator::state::{
    Folder, Holder, LineageFile, Operator, Remedy, SiteLocation, State, StateError, Store as _, check as check_state,
};
use textnlp_provider::units::{counted, quoted};
use textnlp_provider::{EnvironmentName, Lineage, SiteName, error_chain};

use super::gather::STATE;
use super::verify_backup::{KEYS_TIMEOUT, child, least_config};
use super::{LostKey, RequiredSigner, ValidAgain, point_in_time, settings, signer, verify_backup};
use crate::failure::{DAMAGED_STATE, state_failed};
use crate::{Failure, Platform, Progress, RerunFlags, Scope, origin, running, workplace};

/// What is restored, and where to.
pub struct Request<'a> {
    /// The providers and this machine.
    pub platform: &'static dyn Platform,
    /// Builds the commands that hints suggest.
    pub again: &'a RerunFlags,
    /// The folder of all states.
    pub root: &'a Utf8Path,
    /// The model cache of these states.
    pub model_cache: &'a Utf8Path,
    /// The backup, a file of this machine.
    pub file: &'a Utf8Path,
    /// The backup as the operator names it.
    pub shown: &'a Utf8Path,
    /// The point in time for its databases, instead of that of the backup.
    pub at: Option<Timestamp>,
    /// The environment that the backup must be of.
    pub environment: Option<&'a str>,
    /// The name of the environment whose state may be replaced, as typed by the operator.
    pub replace: Option<&'a str>,
    /// Whose signature is required. `None` requires the one of the deployment that is replaced, if there is one.
    pub signer: Option<RequiredSigner>,
    /// Who restores.
    pub operator: Operator,
    /// The command without the program and without `--replace`, for hints.
    pub words: String,
}

/// A restored state.
pub struct Restored {
    /// The manifest of the backup, with the databases as restored.
    pub manifest: Manifest,
    /// The state folder.
    pub state: Utf8PathBuf,
    /// The sites that were bound to another machine, with that machine.
    pub moved: Vec<(SiteName, String)>,
    /// Where the previous state is kept.
    pub replaced: Option<Utf8PathBuf>,
    /// Why the audit log ends at the backup: what was recorded later could not be taken over from the previous state.
    pub audit_ends: Option<String>,
    /// How many backup keys were taken over from the previous state, which made later backups, or why they could not be.
    pub backup_keys: Result<usize, String>,
    /// What the previous state had revoked or rotated after the backup.
    pub valid_again: ValidAgain,
    /// The API keys of the previous state that the backup does not have. `None`: they cannot be read.
    pub lost_keys: Option<Vec<LostKey>>,
    /// Whether the signature is of a key that was required.
    pub is_verified: bool,
}

/// Restores a state from a backup.
pub async fn restore(
    request: &Request<'_>,
    opener: &Arc<Decryptor>,
    progress: &dyn Progress,
) -> Result<Restored, Failure> {
    let Request { platform, root, file, shown, at, .. } = *request;
    may_be_restored(request, opener).await?;
    std::fs::create_dir_all(root).with_context(|| format!("make {root}"))?;
    progress.doing("reads the backup whole");
    let mut staged = workplace::make(root, PREFIX, is_aside)?;
    let place = &Utf8PathBuf::try_from(staged.path().to_owned()).context("temporary folders have UTF-8 names")?;
    let (_, mut manifest) = tokio::task::block_in_place(|| verify_backup::open(file, opener, place))?;
    // Again: another file may have taken its place.
    let required = required_signer(request, &manifest);
    signer::check(shown, &manifest, required.as_ref())?;
    let state = verify_backup::state_of(place, &manifest).await.context("read the restored state")?;
    if let Some(at) = at {
        progress.doing("recovers the database in a temporary folder, to the given point in time");
        point_in_time::recover(platform, file, place, &mut manifest, &state, opener, at).await?;
    }
    let target = root.join(manifest.environment.as_str());
    let machine = |place: &SiteLocation| {
        platform.is_machine(&place.provider, &place.account).then(|| platform.account(&place.provider))
    };
    let moved = rebind(&place.join(STATE), &state, machine)?;
    take_models(request.model_cache, &manifest, place).await?;
    let mut valid_again = ValidAgain::default();
    if lineage_in(&target) == Some(manifest.lineage) {
        valid_again = ValidAgain::after(&target, &place.join(STATE), &manifest, at).await;
        if !valid_again.keys.is_empty()
            && let Some(known) = restored_keys(place, &manifest).await
        {
            valid_again.keep(&known);
        }
    }
    let Previous { kept: replaced, audit_ends, backup_keys, lost_keys } =
        put_in_place(request, &manifest, &mut staged, &target).await?;
    if backup_keys.as_ref().is_ok_and(|count| *count > 0) {
        valid_again.secrets.retain(|secret| secret.id != "backup");
    }
    origin::record(&target)?;
    let is_verified = matches!(required, Some(RequiredSigner::Key(_)));
    Ok(Restored {
        manifest,
        state: target,
        moved,
        replaced,
        audit_ends,
        backup_keys,
        valid_again,
        lost_keys,
        is_verified,
    })
}

/// The API keys of the restored databases. `None`: they cannot be read, such as a dump that a PostgreSQL has to load first.
async fn restored_keys(place: &Utf8Path, manifest: &Manifest) -> Option<Vec<Value>> {
    let mut keys = Vec::new();
    for (site, database) in &manifest.databases {
        if is_of_postgres(database) {
            return None;
        }
        keys.extend(keys_in(place, site, &place.join(STATE).join(&database.path)).await?);
    }
    Some(keys)
}

/// The API keys of the state in `target`, whose lock is held and whose programs do not run: of copies in `place`, because the list of
/// keys is a record in the audit log of a database. `None`: they cannot be read.
async fn replaced_keys(target: &Utf8Path, place: &Utf8Path, manifest: &Manifest) -> Option<Vec<Value>> {
    let mut keys = Vec::new();
    for (site, database) in &manifest.databases {
        let (file, copy) = (target.join(&database.path), place.join(format!("{site}-replaced.db")));
        if is_of_postgres(database) {
            return None;
        }
        // `down --delete-data` has removed it, or the state has its database elsewhere since the backup.
        if !file.exists() {
            return None;
        }
        let endings = ["", "-wal"].into_iter().filter(|ending| Utf8Path::new(&format!("{file}{ending}")).exists());
        let copied = endings
            .clone()
            .try_for_each(|ending| std::fs::copy(format!("{file}{ending}"), format!("{copy}{ending}")).map(drop));
        let found = match copied {
            Ok(()) => keys_in(place, site, &copy).await,
            Err(_) => None,
        };
        // The restored state needs the room.
        for ending in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{copy}{ending}"));
        }
        keys.extend(found?);
    }
    Some(keys)
}

fn is_of_postgres(database: &Database) -> bool {
    database.base.is_some() || Utf8Path::new(&database.path).extension() == Some("dump")
}

/// The API keys of an SQLite file. The settings for that are written into `place`.
async fn keys_in(place: &Utf8Path, site: &SiteName, file: &Utf8Path) -> Option<Vec<Value>> {
    let config = place.join(format!("{site}-keys.yaml"));
    settings::put(&config, least_config(file).as_bytes()).ok()?;
    let (program, list) = (std::env::current_exe().ok()?, json!({ "do": "list" }));
    let arguments = ["admin", "keys", "--config", config.as_str()];
    let mut answer = child(&program, &arguments, Some(&list), KEYS_TIMEOUT).await.ok()?;
    answer.get_mut("keys").and_then(Value::as_array_mut).map(std::mem::take)
}

fn required_signer(request: &Request<'_>, manifest: &Manifest) -> Option<RequiredSigner> {
    let target = request.root.join(manifest.environment.as_str());
    request.signer.clone().or_else(|| signer::recorded(&target, manifest))
}

/// Checks whether a backup can be restored here, before anything is decrypted or changed. Reports all problems at once.
async fn may_be_restored(request: &Request<'_>, opener: &Decryptor) -> Result<(), Failure> {
    let Request { platform, again, root, file, shown, at, .. } = *request;
    let listed = tokio::task::block_in_place(|| verify_backup::list(file, opener));
    let mut obstacles = Vec::new();
    if let Some(at) = at {
        let why = |failure: &Failure| match &failure.hint {
            Some(hint) => format!("{:#}: {hint}", failure.error),
            None => format!("{:#}", failure.error),
        };
        obstacles.extend(point_in_time::preflight(platform, file, at, listed.as_ref().map_err(why)).err());
    }
    if let Ok(manifest) = &listed {
        let name = &manifest.environment;
        if let Some(requested) = request.environment.filter(|requested| *requested != name.as_str()) {
            let error = anyhow::anyhow!("{shown} is of environment `{name}`, but --env is `{requested}`");
            obstacles
                .push(Failure::refused("other_environment", error).hint(format!("omit --env, or use --env {name}")));
        }
        obstacles.extend(signer::check(shown, manifest, required_signer(request, manifest).as_ref()).err());
        let target = root.join(name.as_str());
        obstacles.extend(may_replace(request, manifest, &target).await?);
        let holder = Folder::at(&target).holder().await.map_err(|error| state_failed(error, again, name))?;
        if holder.is_some() && lineage_in(&target) == Some(manifest.lineage) {
            obstacles.push(state_failed(StateError::Held { holder }, again, name));
        }
    }
    one_report(shown, obstacles)?;
    listed.map(drop)
}

/// The refusals whose hints come first: a run has to end, then the service, before the restore is repeated.
const FIRST: [&str; 2] = ["locked", "running"];

/// Combines several refusals into one error with the code of the first.
fn one_report(file: &Utf8Path, mut failures: Vec<Failure>) -> Result<(), Failure> {
    if failures.len() < 2 {
        return failures.pop().map_or(Ok(()), Err);
    }
    let causes: Vec<String> = failures.iter().map(|failure| format!("{:#}", failure.error)).collect();
    // In the order of the commands: the restore itself comes after what it waits for.
    let turn = |failure: &&Failure| FIRST.iter().position(|code| *code == failure.code).unwrap_or(FIRST.len());
    let mut ordered: Vec<&Failure> = failures.iter().collect();
    ordered.sort_by_key(turn);
    let mut hints: Vec<String> = ordered.iter().filter_map(|failure| failure.hint.clone()).collect();
    // Several sites stop with one command.
    hints.dedup();
    let error = anyhow::anyhow!("{}", causes.join("; ")).context(format!("{file} cannot be restored here"));
    let mut all = Failure::new(failures[0].exit, failures[0].code, error).hint(hints.join("\n"));
    failures.into_iter().for_each(|failure| all.document.extend(failure.document));
    Err(all)
}

/// Prefix of the folder that a backup is unpacked into.
const PREFIX: &str = ".restore-";

/// Whether the folder holds the previous state, because a run was killed while it moved that aside. Only a state that
/// was in use has a lock.
fn is_aside(opened: &Utf8Path) -> bool {
    opened.join(STATE).join("lock").exists()
}

/// Binds sites of a lost machine to this machine.
///
/// `machine` returns this machine's account for a place that is bound to a machine, and `None` for any other.
fn rebind(
    state: &Utf8Path,
    read: &State,
    machine: impl Fn(&SiteLocation) -> Option<String>,
) -> Result<Vec<(SiteName, String)>, Failure> {
    let mut moved = Vec::new();
    let mut sites = read.places().clone();
    for (site, place) in &mut sites {
        // An account from the environment file is not a machine and stays.
        if let Some(here) = machine(place).filter(|here| *here != place.account) {
            moved.push((site.clone(), std::mem::replace(&mut place.account, here)));
        }
    }
    if moved.is_empty() {
        return Ok(moved);
    }
    let path = state.join("lineage.json");
    let text = std::fs::read(&path).with_context(|| format!("read {path}"))?;
    let file: LineageFile = serde_json::from_slice(&text).with_context(|| format!("read {path}"))?;
    let text = serde_json::to_vec_pretty(&LineageFile { sites, ..file }).context("write the lineage")?;
    settings::put(&path, &text).with_context(|| format!("write {path}"))?;
    Ok(moved)
}

/// Moves models from the backup to the folder where `up` looks first.
async fn take_models(cache: &Utf8Path, manifest: &Manifest, place: &Utf8Path) -> Result<(), Failure> {
    for (name, model) in &manifest.models {
        let Some(folder) = &model.folder else { continue };
        into_cache(cache, name, &place.join(folder), model.digest.as_deref()).await?;
    }
    Ok(())
}

/// Puts a model's folder into a cache, where `up` looks before it fetches the model. Existing models are kept.
pub async fn into_cache(cache: &Utf8Path, name: &str, folder: &Utf8Path, digest: Option<&str>) -> Result<(), Failure> {
    let store = Store::open(cache).context("open the model cache")?;
    let source: Source =
        format!("file:{folder}").parse().with_context(|| format!("name the folder of model {name}"))?;
    let mut options = FetchOptions::default();
    if let Some(digest) = digest {
        let digest = digest.parse().with_context(|| format!("read the digest of model {name}"))?;
        if store.open_model(&digest).context("read the model cache")?.is_some() {
            return Ok(());
        }
        options.expect = Some(digest);
    }
    store.fetch(&source, &options, &|_| {}).await.with_context(|| format!("put model {name} into the cache"))?;
    Ok(())
}

/// The deployment of the state in a folder, or `None` if it has no state.
pub fn lineage_in(target: &Utf8Path) -> Option<Lineage> {
    lineage_file(target).map(|file| file.lineage)
}

fn lineage_file(target: &Utf8Path) -> Option<LineageFile> {
    let text = std::fs::read(target.join("lineage.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The sites of a state, also of one whose journals cannot be read: by its lineage and by the folders of their programs.
fn sites_in(target: &Utf8Path) -> BTreeSet<SiteName> {
    let bound = lineage_file(target).into_iter().flat_map(|file| file.sites.into_keys());
    let folders = target.join("sites").read_dir_utf8().into_iter().flatten().flatten();
    bound.chain(folders.filter_map(|folder| SiteName::new(folder.file_name()).ok())).collect()
}

/// What the state in `target` records, in words. `Err` within: it is damaged, and how.
async fn content_of(
    request: &Request<'_>,
    name: &EnvironmentName,
    target: &Utf8Path,
) -> Result<Result<String, String>, Failure> {
    let Request { platform, again, .. } = *request;
    let scope = Scope { platform, again: again.clone(), name: name.clone(), folder: target.to_owned() };
    let state = running::state(&scope).await;
    match state.and_then(|state| content(&state).map_err(|error| state_failed(error, again, name))) {
        Ok(content) => Ok(Ok(content)),
        // A damaged pointer to a state elsewhere fails here: that state may be intact.
        Err(failure) if is_damage(&failure) && !platform.is_elsewhere(target)? => {
            Ok(Err(format!("{:#}", failure.error)))
        }
        Err(failure) => Err(failure),
    }
}

/// Whether a state cannot be read because of what its files contain or lack, or because the disk does not return them.
fn is_damage(failure: &Failure) -> bool {
    let io = match failure.error.downcast_ref::<StateError>() {
        Some(StateError::Io(io)) => Some(&io.source),
        _ => None,
    };
    let is_lost = |error: &std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof)
            || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
    };
    failure.code == DAMAGED_STATE || io.is_some_and(is_lost)
}

/// What a state records, in words.
fn content(state: &State) -> Result<String, StateError> {
    let (mut count, mut changed): (usize, Option<Timestamp>) = (0, None);
    for site in state.sites() {
        let resources = state.holdings(site)?;
        count += resources.len();
        changed = changed.max(resources.values().map(|objects| objects.since).max());
    }
    Ok(match changed {
        None => "no resources are recorded".to_owned(),
        Some(changed) => format!("{}, last changed at {changed:.0}", counted(count, "resource")),
    })
}

/// All problems with replacing the content of `target` by a backup. Read-only.
async fn may_replace(request: &Request<'_>, manifest: &Manifest, target: &Utf8Path) -> Result<Vec<Failure>, Failure> {
    let Request { platform, again, .. } = *request;
    let name = &manifest.environment;
    if is_bare(target)? {
        return Ok(Vec::new());
    }
    let lineage = lineage_in(target);
    if lineage != Some(manifest.lineage) {
        let other =
            lineage.map_or("files of another kind".to_owned(), |other| format!("another deployment (lineage {other})"));
        let error = anyhow::anyhow!("{target} contains {other}; the backup is of lineage {}", manifest.lineage);
        return Ok(vec![
            Failure::refused("other_deployment", error).hint("restore into another folder: --state-dir DIR"),
        ]);
    }
    let content = content_of(request, name, target).await?;
    let mut obstacles = Vec::new();
    match request.replace {
        Some(typed) if typed == name.as_str() => {}
        Some(typed) => {
            let error = anyhow::anyhow!("--replace names `{typed}`, the backup is of `{name}`");
            obstacles.push(Failure::refused("wrong_name", error).hint(format!("type its name: --replace {name}")));
        }
        None => {
            let (Ok(there) | Err(there)) = &content;
            let error = anyhow::anyhow!("{target} already contains this deployment: {there}");
            let command = again.bare(&format!("{} --replace {name}", request.words));
            obstacles.push(Failure::refused("state_is_there", error).hint(format!(
                "to overwrite its records, databases, keys and secrets with those of {:.0}: {command} (the current state is kept as {target}.replaced-TIME); to restore elsewhere: --state-dir DIR",
                manifest.at
            )));
        }
    }
    let stop = match content {
        Ok(_) => again.named("down", name),
        // Its supervisors end what runs at this time, as for a temporary environment.
        Err(_) => format!(
            "`down` cannot read this state. Remove the file below if you do not restore. To stop its programs within seconds, and keep their data: echo 2000-01-01T00:00:00Z > {}",
            quoted(target.join(platform.expiry_file()).as_str())
        ),
    };
    for site in sites_in(target) {
        let mut hint = stop.clone();
        let running = match platform.supervisor(target, &site).await {
            Ok(None) => match platform.processes(target, &site) {
                Ok(left) if left.is_empty() => continue,
                Ok(left) => {
                    // Those of another pid namespace have no number here.
                    let (here, elsewhere): (Vec<u32>, Vec<u32>) = left.into_iter().partition(|pid| *pid > 0);
                    let pids = |between: &str| here.iter().map(ToString::to_string).collect::<Vec<_>>().join(between);
                    let mut named = Vec::new();
                    if !here.is_empty() {
                        named.push(format!("processes {}", pids(", ")));
                    }
                    if !elsewhere.is_empty() {
                        named.push(format!("{} in other containers", elsewhere.len()));
                    }
                    if content.is_err() {
                        // No supervisor reads the file that ends an environment.
                        let stop = match here.is_empty() {
                            true => format!("stop the containers that use {target}"),
                            false => format!("to stop its programs: kill {}", pids(" ")),
                        };
                        hint = format!("`down` cannot read this state; {stop}");
                    }
                    format!("its programs run without their supervisor: {}", named.join(" and "))
                }
                Err(error) => format!("whether its programs run is unknown: {error}"),
            },
            Ok(Some(_)) => "it is running".to_owned(),
            Err(error) => format!("its supervisor does not answer: {error:#}"),
        };
        let error = anyhow::anyhow!("site `{site}` uses the state that would be replaced, and {running}");
        obstacles.push(Failure::refused("running", error).hint(hint));
    }
    Ok(obstacles)
}

/// What became of the state that was there before.
struct Previous {
    /// The folder where it is kept.
    kept: Option<Utf8PathBuf>,
    /// Why the restored audit log lacks records of the previous one, if so.
    audit_ends: Option<String>,
    /// See [`Restored::backup_keys`].
    backup_keys: Result<usize, String>,
    /// See [`Restored::lost_keys`].
    lost_keys: Option<Vec<LostKey>>,
}

/// Moves the restored state into its place in one step.
async fn put_in_place(
    request: &Request<'_>,
    manifest: &Manifest,
    staged: &mut tempfile::TempDir,
    target: &Utf8Path,
) -> Result<Previous, Failure> {
    let restored = Utf8PathBuf::try_from(staged.path().join(STATE)).context("temporary folders have UTF-8 names")?;
    if is_bare(target)? {
        // The rename replaces an empty folder. Records of commands that failed are kept beside it.
        let kept = match target.join(AUDIT).exists() {
            true => Some(replaced_name(target)?),
            false => None,
        };
        if let Some(kept) = &kept {
            std::fs::rename(target, kept).with_context(|| format!("keep the records in {target} as {kept}"))?;
        }
        std::fs::rename(&restored, target).with_context(|| format!("move the restored state to {target}"))?;
        flush(target)?;
        return Ok(Previous { kept, audit_ends: None, backup_keys: Ok(0), lost_keys: Some(Vec::new()) });
    }
    let name = &manifest.environment;
    // The lock prevents new runs on the previous state. Another run may have started since the first check, so it is
    // repeated.
    let Operator { by, host, tool, pid, .. } = request.operator.clone();
    let holder = Holder { by, pid, host, since: Timestamp::now(), tool };
    let previous = Folder::at(target);
    let failed = |error| state_failed(error, request.again, name);
    repair_lock(&previous, name, &holder).await.map_err(failed)?;
    let _lock = previous.lock(&holder).await.map_err(failed)?;
    one_report(target, may_replace(request, manifest, target).await?)?;
    let kept = replaced_name(target)?;
    let audit_ends = match content_of(request, name, target).await? {
        Ok(_) => continue_audit(&restored, target).await.err(),
        Err(damage) => Some(format!("the earlier state is damaged: {damage}")),
    };
    let lost_keys = lost_keys(target, staged.path(), manifest).await;
    let keys = super::key::take_over(request.platform, &restored, target).await;
    exchange(staged, target, &kept)?;
    flush(target)?;
    let backup_keys = keys.map_err(|failure| format!("{:#}", failure.error));
    Ok(Previous { kept: Some(kept), audit_ends, backup_keys, lost_keys })
}

/// The API keys that are in the state in `target`, and not in the restored one.
async fn lost_keys(target: &Utf8Path, staged: &std::path::Path, manifest: &Manifest) -> Option<Vec<LostKey>> {
    let place = Utf8Path::from_path(staged)?;
    let replaced = replaced_keys(target, place, manifest).await?;
    Some(LostKey::of(&replaced, &restored_keys(place, manifest).await?))
}

/// Writes the record of the lock again if it is damaged: no lock is granted without it, and it only counts the locks.
async fn repair_lock(previous: &Folder, name: &EnvironmentName, holder: &Holder) -> Result<(), StateError> {
    if previous.lock_damage().await?.is_none() {
        return Ok(());
    }
    for finding in check_state(previous, name).await? {
        if let Some(Remedy::WriteLease { fence }) = finding.remedy {
            previous.reset_lock(holder, fence).await?;
        }
    }
    Ok(())
}

/// Adds what the audit log of the previous state has since the backup, up to this restore itself. A log that is damaged is not taken
/// over, and neither is that of a damaged state: its records would be in an intact chain.
async fn continue_audit(restored: &Utf8Path, previous: &Utf8Path) -> Result<(), String> {
    let log = audit::read(&Folder::at(previous)).await.map_err(|error| error_chain(&error))?;
    if let Some(damage) = log.damage.first() {
        return Err(format!("it is damaged: {}", damage.because));
    }
    let taken = audit::take_over(&Folder::at(restored), &SystemClock, &log).await;
    taken.map(drop).map_err(|error| error_chain(&error))
}

/// Swaps the restored state with the one in `target`, and keeps that one as `kept`. If it cannot be kept, the swap is
/// undone.
fn exchange(staged: &mut tempfile::TempDir, target: &Utf8Path, kept: &Utf8Path) -> anyhow::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let restored = &Utf8PathBuf::try_from(staged.path().join(STATE)).context("temporary folders have UTF-8 names")?;
    // An atomic swap: a kill leaves one of the two states in `target`.
    let exchange = || {
        let done = renameat_with(CWD, restored.as_std_path(), CWD, target.as_std_path(), RenameFlags::EXCHANGE);
        done.map_err(std::io::Error::from).with_context(|| format!("move the restored state to {target}"))
    };
    exchange()?;
    // From here on the temporary folder contains the previous state, so it must not be deleted.
    staged.disable_cleanup(true);
    let kept = std::fs::rename(restored, kept).with_context(|| format!("keep the earlier state as {kept}"));
    let is_safe = match &kept {
        Ok(()) => Ok(()),
        Err(_) => exchange(),
    };
    match is_safe {
        Ok(()) => {
            staged.disable_cleanup(false);
            kept
        }
        Err(why) => kept.with_context(|| format!("the earlier state remains in {restored} ({why:#})")),
    }
}

/// What follows the name of an environment in the name of its replaced state, before the time.
const REPLACED: &str = ".replaced-";
const REPLACED_AT: &str = "%Y%m%dT%H%M%SZ";

fn replaced_name(target: &Utf8Path) -> Result<Utf8PathBuf, Failure> {
    free_name(&format!("{target}{REPLACED}{}", Timestamp::now().strftime(REPLACED_AT)))
}

/// When the state in a folder was replaced, by its name: `ENV.replaced-TIME`, and with a number if there were several.
pub(crate) fn replaced_at(folder: &Utf8Path, environment: &EnvironmentName) -> Option<Timestamp> {
    let rest = folder.file_name()?.strip_prefix(environment.as_str())?.strip_prefix(REPLACED)?;
    let (at, number) = rest.split_once('-').unwrap_or((rest, "1"));
    number.parse::<u32>().ok()?;
    let at = DateTime::strptime(REPLACED_AT, at).ok()?.to_zoned(TimeZone::UTC).ok()?;
    Some(at.timestamp())
}

/// The first unused name beside the state.
fn free_name(wanted: &str) -> Result<Utf8PathBuf, Failure> {
    /// Limit of replacements within one second.
    const MAX_PER_SECOND: u32 = 100;
    let mut names = (1..=MAX_PER_SECOND).map(|number| match number {
        1 => Utf8PathBuf::from(wanted),
        _ => Utf8PathBuf::from(format!("{wanted}-{number}")),
    });
    let is_free = |path: &Utf8PathBuf| {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    Ok(names.find(is_free).with_context(|| {
        format!("find a name for the earlier state: {wanted} and {MAX_PER_SECOND} more names are taken")
    })?)
}

/// Whether the target is missing or empty, or has only the records of commands that failed before a first `up`.
fn is_bare(target: &Utf8Path) -> Result<bool, Failure> {
    match target.read_dir_utf8() {
        Ok(mut entries) => Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == AUDIT))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(anyhow::Error::new(error).context(format!("check {target}")).into()),
    }
}

fn flush(target: &Utf8Path) -> Result<(), Failure> {
    let parent = target.parent().unwrap_or(target);
    let flushed = std::fs::File::open(parent).and_then(|folder| folder.sync_all());
    Ok(flushed.with_context(|| format!("flush {parent}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test]
    async fn site_of_a_lost_machine_is_rebound_to_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap();
        let site = |account: &str| json!({ "provider": "onprem", "account": account, "region": "local", "runtime": "process" });
        let lineage = json!({
            "format": 1, "lineage": Uuid::nil(), "environment": "staging",
            "sites": { "here": site("machine-dead0000dead"), "there": site("named-by-the-environment") },
        });
        std::fs::write(folder.join("lineage.json"), lineage.to_string()).unwrap();
        let load = async || {
            let name = EnvironmentName::new("staging").unwrap();
            State::load(Arc::new(Folder::at(folder)), &name, Lineage(Uuid::max())).await.unwrap()
        };
        let machine =
            |place: &SiteLocation| place.account.starts_with("machine-").then(|| "machine-here0000here".to_owned());
        let moved = rebind(folder, &load().await, machine).unwrap();
        assert_eq!(moved.len(), 1);
        assert_eq!((moved[0].0.as_str(), moved[0].1.as_str()), ("here", "machine-dead0000dead"));
        let accounts: Vec<_> = load().await.places().values().map(|place| place.account.clone()).collect();
        assert_eq!(accounts, ["machine-here0000here".to_owned(), "named-by-the-environment".to_owned()]);
        assert_eq!(load().await.lineage(), Lineage(Uuid::nil()));
        assert!(rebind(folder, &load().await, machine).unwrap().is_empty(), "once is enough");
    }

    #[test]
    fn hints_are_in_the_order_of_the_commands() {
        let refusal = |code: &'static str, hint: &str| Failure::refused(code, anyhow::anyhow!("{code}")).hint(hint);
        let failures = vec![
            refusal("state_is_there", "restore --replace a"),
            refusal("running", "down"),
            refusal("running", "down"),
            refusal("locked", "wait"),
        ];
        let all = one_report(Utf8Path::new("b"), failures).unwrap_err();
        assert_eq!(all.code, "state_is_there");
        assert_eq!(all.hint.as_deref(), Some("wait\ndown\nrestore --replace a"));
        let causes = "state_is_there; running; running; locked";
        assert_eq!(all.causes(), [causes], "causes stay in the order of the checks");
    }

    #[test]
    fn state_whose_files_are_damaged_or_missing_may_be_replaced_and_one_without_permission_may_not() {
        let name = EnvironmentName::new("staging").unwrap();
        let of = |error: StateError| is_damage(&state_failed(error, &RerunFlags::default(), &name));
        let io = |error: std::io::Error| {
            let source = error;
            of(StateError::Io(textnlp_orchestrator::state::Io { action: "read", path: "log".to_owned(), source }))
        };
        assert!(of(StateError::Unreadable { what: "head.json".to_owned(), because: "it is empty".to_owned() }));
        assert!(io(std::io::ErrorKind::UnexpectedEof.into()) && io(std::io::Error::from_raw_os_error(5)));
        assert!(!io(std::io::ErrorKind::PermissionDenied.into()));
        assert!(!of(StateError::Held { holder: None }));
    }

    #[test]
    fn sites_of_a_damaged_state_are_those_of_its_lineage_and_of_its_folders() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap();
        std::fs::create_dir_all(folder.join("sites/there")).unwrap();
        let names = || sites_in(folder).iter().map(|site| site.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(), ["there"]);
        let here = json!({ "provider": "onprem", "account": "machine-a", "region": "local", "runtime": "process" });
        let lineage = json!({
            "format": 1, "lineage": Uuid::nil(), "environment": "staging", "sites": { "here": here },
        });
        std::fs::write(folder.join("lineage.json"), lineage.to_string()).unwrap();
        assert_eq!(names(), ["here", "there"]);
    }

    /// Two states with one text each: one in its place, the other restored beside it.
    fn two_states() -> (tempfile::TempDir, Utf8PathBuf, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let target = Utf8Path::from_path(dir.path()).unwrap().join("staging");
        let staged = tempfile::Builder::new().prefix(PREFIX).tempdir_in(dir.path()).unwrap();
        for (folder, text) in [(target.as_std_path(), "earlier"), (&staged.path().join(STATE), "restored")] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("text"), text).unwrap();
        }
        (dir, target, staged)
    }

    #[test]
    fn replaced_state_is_kept_and_a_failed_exchange_leaves_it_in_place() {
        let read = |folder: &Utf8Path| std::fs::read_to_string(folder.join("text")).unwrap();
        let (dir, target, mut staged) = two_states();
        let kept = free_name(&format!("{target}.replaced-1")).unwrap();
        exchange(&mut staged, &target, &kept).unwrap();
        drop(staged);
        assert_eq!((read(&target), read(&kept)), ("restored".to_owned(), "earlier".to_owned()));
        assert_eq!(free_name(kept.as_str()).unwrap(), format!("{kept}-2"), "nothing is kept over another");
        drop(dir);

        // If the name is not available, the previous state must not be deleted with the temporary folder.
        let (_dir, target, mut staged) = two_states();
        let nowhere = target.join("../not-there/kept");
        let error = format!("{:#}", exchange(&mut staged, &target, &nowhere).unwrap_err());
        assert!(error.contains("keep the earlier state as"), "{error}");
        let opened = staged.path().to_owned();
        drop(staged);
        assert_eq!(read(&target), "earlier");
        assert!(!opened.exists(), "what was opened holds secrets, and goes");
    }

    #[test]
    fn restore_removes_leftovers_of_killed_runs_and_keeps_replaced_states() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        // No process has this id.
        let (opened, aside) = (root.join(".restore-4194305-a"), root.join(".restore-4194305-b"));
        let mine = root.join(format!(".restore-{}-c", std::process::id()));
        for folder in [&opened, &aside, &mine] {
            std::fs::create_dir_all(folder.join(STATE)).unwrap();
        }
        std::fs::write(aside.join(STATE).join("lock"), "").unwrap();
        let _ours = workplace::make(root, PREFIX, is_aside).unwrap();
        assert!(!opened.exists() && aside.exists() && mine.exists());
    }
}
