//! Collects the content of a backup while the service runs. The state lock ensures that no operation is in progress.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use textnlp_orchestrator::backup::{Base, Content, Database, FORMAT, Item, Manifest, Model};
use textnlp_orchestrator::release::Lock;
use textnlp_orchestrator::state::audit::AUDIT;
use textnlp_orchestrator::state::{
    Folder, Holder, Operator, SCHEDULE, SCHEDULE_TIMEOUT, State, StateError, Store, transfer,
};
use textnlp_provider::operations::SiteCopy;
use textnlp_provider::{Secret, SiteName};

use super::{settings, verify_backup};
use crate::failure::state_failed;
use crate::platform::RecordedDatabase;
use crate::{Exit, Failure, Platform, Scope, running, workplace};

/// Files and folders of the state folder that are copied unchanged.
const AS_IT_IS: [&str; 4] = [settings::FOLDER, "releases", "dr/drills", "dr/drill-report.pub"];
/// The parts of the state itself.
const STATE_PARTS: [&str; 5] = ["lineage.json", "lease.json", "hold.json", "journal", AUDIT];
/// The folder in a backup for these files.
pub(super) const STATE: &str = "state";
/// Limit of a file of the state in bytes. Only a damaged state has a larger one.
const FILE_MAX: u64 = 512 << 20;
/// Poll interval while another run holds the lock.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Timeout of copying a database, which may have many gigabytes.
pub(super) const DATABASE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The content of a backup. The work folder is removed on drop.
pub(crate) struct BackupContent {
    /// The manifest, without its members.
    pub manifest: Manifest,
    /// The members.
    pub items: Vec<Item>,
    /// Notes on what the backup does not contain.
    pub notes: Vec<String>,
    _work: tempfile::TempDir,
}

/// The error if there is nothing to back up.
pub fn nothing_to_back_up(scope: &Scope) -> Failure {
    Failure::usage("not_up", anyhow::anyhow!("environment {} has no state here", scope.name)).hint(scope.last_up())
}

/// Collects everything. `patience` bounds the wait for another run.
pub(crate) async fn gather(
    scope: &Scope,
    with_models: bool,
    operator: &Operator,
    patience: Duration,
) -> Result<BackupContent, Failure> {
    let Scope { platform, again, name, folder } = scope;
    let store = platform.store(folder)?;
    if running::state(scope).await?.is_new() {
        return Err(nothing_to_back_up(scope));
    }
    // Held until everything that must be consistent is copied.
    let lock = held(&*store, operator, patience).await.map_err(|error| state_failed(error, again, name))?;
    let state = running::state(scope).await?;
    // A killed run leaves a folder with a copy of the database.
    let work = workplace::with_room(folder, WORK, database_bytes(*platform, folder, &state))?;
    let mut items = Vec::new();
    let mut lies_in = folder.clone();
    if platform.is_elsewhere(folder)? {
        // A remote or encrypted state is copied as a plain local folder, because the backup has its own encryption.
        lies_in = Utf8Path::from_path(work.path()).context("temporary folders have UTF-8 names")?.join("journals");
        let copied = transfer(&*store, &Folder::at(&lies_in), &holder(operator)).await;
        copied.map_err(|error| state_failed(error, again, name))?;
    }
    for part in STATE_PARTS {
        take(&lies_in, &lies_in.join(part), &mut items)?;
    }
    for part in [platform.secrets_folder()].into_iter().chain(AS_IT_IS) {
        take(folder, &folder.join(part), &mut items)?;
    }
    take(folder, &Lock::path(folder, name), &mut items)?;

    let (mut databases, mut models, mut notes) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let within = Utf8Path::from_path(work.path()).context("temporary folders have UTF-8 names")?;
    let (mut dumps, mut missing, mut held) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut lost_servers = Vec::new();
    let (mut has_outside, mut left_out) = (false, false);
    for site in state.places().keys() {
        let SiteCopy { files, database, dump: mut dumped, outside, control, base, served, models: there } =
            platform.site_copy(folder, site).with_context(|| format!("check site {site}"))?;
        // Sites with an external database share it, so any of their servers can dump it.
        let is_there = served.as_ref().is_some_and(|(_, config)| config.is_file());
        if outside && (has_outside || !is_there) {
            left_out = left_out || !has_outside;
            dumped = None;
        }
        has_outside = has_outside || (outside && dumped.is_some());
        held.extend(control);
        for file in files {
            take(folder, &folder.join(file), &mut items)?;
        }
        let taken = match (database, dumped) {
            (Some(path), _) if folder.join(&path).is_file() => {
                let config = within.join(format!("{site}.yaml"));
                let text = verify_backup::least_config(&folder.join(&path));
                std::fs::write(&config, text).with_context(|| format!("write {config}"))?;
                Some(dump(site, &config, path, within).await?)
            }
            (Some(path), _) => {
                missing.push((site.clone(), path));
                None
            }
            // The dump connects to the database as the service does.
            (None, Some(path)) => {
                let Some((_, config)) = served.clone().filter(|(_, config)| config.is_file()) else {
                    let error = anyhow::anyhow!(
                        "the PostgreSQL server of site `{site}` is not running, and a backup needs a running server"
                    );
                    return Err(Failure::usage("not_up", error).hint(scope.last_up()));
                };
                Some(dump(site, &config, path, within).await?)
            }
            (None, None) => {
                match recorded_database(scope, &state, site)? {
                    Some(RecordedDatabase { path, is_file: true }) => missing.push((site.clone(), path)),
                    Some(RecordedDatabase { path, is_file: false }) => lost_servers.push((site.clone(), path)),
                    None => {}
                }
                None
            }
        };
        if let Some((mut database, file)) = taken {
            if let Some(data_folder) = base {
                let (base, tar) = copied_base(site, &data_folder, within).await?;
                items.push(Item { path: base.member.clone(), content: Content::File(tar) });
                database.base = Some(base);
            }
            databases.insert(site.clone(), database);
            dumps.insert(site.clone(), file);
        }
        if let Some((_, config)) = served.filter(|(_, config)| config.is_file()) {
            items.push(Item { path: verify_backup::served(site), content: Content::Bytes(read(&config)?) });
        }
        for model in there {
            let folder = match with_models && model.folder.is_dir() {
                true => Some(whole_model(&model.folder, models.len(), &mut items)?),
                false => None,
            };
            models.insert(model.name, Model { source: model.source, digest: model.digest, folder });
        }
    }
    if left_out && !has_outside {
        let error = anyhow::anyhow!("no site is running, and a backup reads PostgreSQL through a running site");
        return Err(Failure::usage("not_up", error).hint(scope.last_up()));
    }
    store.unlock(lock).await.map_err(|error| state_failed(error, again, name))?;
    // If there are several sites, use the one that was primary. Another one may still have keys that were revoked.
    let ahead = held.iter().max().and_then(|held| dumps.iter().find(|(site, _)| site.as_str() == held.primary));
    if let Some((primary, from)) = ahead.map(|(site, file)| (site.clone(), file.clone())) {
        for (site, path) in std::mem::take(&mut missing) {
            notes.push(format!(
                "the database of {site} is missing; the backup has an empty database with the keys of {primary} instead"
            ));
            let file = within.join(format!("{site}.db"));
            let schema = databases[&primary].schema;
            prepare(&file).await.with_context(|| format!("create a database for site {site}"))?;
            let member = format!("databases/{site}.db");
            databases.insert(site.clone(), Database { member, path, schema, keys: 0, usage: 0, base: None });
            dumps.insert(site, file);
        }
        for (site, file) in dumps.iter().filter(|(site, _)| **site != primary) {
            let fails = || format!("bring the keys of site {site} up to those of {primary}");
            let keys = take_keys(file, &from).await.with_context(fails)?;
            if let Some(database) = databases.get_mut(site) {
                database.keys = keys;
            }
        }
    }
    for (site, file) in dumps {
        items.push(Item { path: databases[&site].member.clone(), content: Content::File(file) });
    }
    if databases.is_empty() {
        missing.append(&mut lost_servers);
    }
    for (site, path) in missing {
        // A run that ended early may have claimed a database that it did not create.
        if recorded_database(scope, &state, &site)?.is_some() {
            return Err(database_missing(scope, &site, &path));
        }
    }
    if databases.is_empty() {
        notes.push("there is no database in it: the service never ran, or `down` removed its database".to_owned());
    }
    if !settings::provisioned_file(folder).is_file() {
        notes.push(format!("the environment file is not in it; the next `{}` records it", scope.last_up()));
    }
    let manifest = Manifest {
        kind: "textnlp-backup".to_owned(),
        format: FORMAT,
        signer: None,
        environment: name.clone(),
        lineage: state.lineage(),
        at: Timestamp::now(),
        tool: operator.tool.clone(),
        host: operator.host.clone(),
        databases,
        models,
        members: Vec::new(),
    };
    Ok(BackupContent { manifest, items, notes, _work: work })
}

/// The database on this machine that the state records of a site. `None`: no run created one, or `down` removed it.
fn recorded_database(scope: &Scope, state: &State, site: &SiteName) -> Result<Option<RecordedDatabase>, Failure> {
    let Scope { platform, again, name, .. } = scope;
    let holdings = state.holdings(site).map_err(|error| state_failed(error, again, name))?;
    let mut current = holdings.values().filter_map(|objects| objects.current.as_ref());
    Ok(current.find_map(|recorded| platform.database_of(recorded)))
}

/// A backup without a recorded database would be the newest one, and would restore none of its keys.
fn database_missing(scope: &Scope, site: &SiteName, path: &str) -> Failure {
    let Scope { again, name, folder, .. } = scope;
    let error = anyhow::anyhow!(
        "the database of site `{site}` is missing: the state records {}, and it does not exist",
        folder.join(path)
    );
    let restore = again.bare(&format!("restore FILE --replace {name}"));
    Failure::new(Exit::Failed, "database_missing", error)
        .hint(format!(
            "run it on the machine of that site, or put the database back; if a backup was just restored, `up` creates it: {} (with `data: protected` also `--accept-data-loss {name}`); or restore an earlier backup, after `down`: {restore}",
            scope.last_up()
        ))
}

/// The size of the database files of all sites; `None` with a PostgreSQL, whose dump is as large as it turns out.
fn database_bytes(platform: &dyn Platform, folder: &Utf8Path, state: &State) -> Option<u64> {
    let mut bytes = 0;
    for site in state.places().keys() {
        let file = platform.site_copy(folder, site).ok()?.database?;
        bytes += std::fs::metadata(folder.join(file)).ok()?.len();
    }
    Some(bytes)
}

/// Takes the lock. A scheduled backup ends without help, as for the other commands that wait for it.
async fn held(
    store: &dyn Store,
    operator: &Operator,
    patience: Duration,
) -> Result<textnlp_orchestrator::state::Lock, StateError> {
    let began = Instant::now();
    loop {
        match store.lock_to_read(&holder(operator)).await {
            Err(StateError::Held { holder }) => {
                let is_scheduled = holder.as_ref().is_some_and(|holder| holder.by == SCHEDULE);
                let patience = if is_scheduled { patience.max(SCHEDULE_TIMEOUT) } else { patience };
                if began.elapsed() >= patience {
                    return Err(StateError::Held { holder });
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            other => return other,
        }
    }
}

fn holder(operator: &Operator) -> Holder {
    let Operator { by, host, tool, pid, .. } = operator.clone();
    Holder { by, pid, host, since: Timestamp::now(), tool }
}

/// The prefix of the work folder, within the state folder if that has room.
const WORK: &str = ".backup-";

/// Adds a file, or all files below a folder. A missing path is skipped.
fn take(root: &Utf8Path, path: &Utf8Path, items: &mut Vec<Item>) -> Result<(), Failure> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if found.is_dir() {
        let mut inside = Vec::new();
        for entry in path.read_dir_utf8().with_context(|| format!("list {path}"))? {
            inside.push(entry.with_context(|| format!("list {path}"))?.path().to_owned());
        }
        inside.sort();
        return inside.iter().try_for_each(|path| take(root, path, items));
    }
    let name = path.file_name().unwrap_or_default();
    // Lock files and temporary files are not part of a backup.
    if !found.is_file() || name == ".lock" || name.ends_with(".new") {
        return Ok(());
    }
    let relative = path.strip_prefix(root).context("it contains state files")?;
    let member = format!("{STATE}/{relative}");
    if items.iter().all(|item| item.path != member) {
        items.push(Item { path: member, content: Content::Bytes(read(path)?) });
    }
    Ok(())
}

fn read(path: &Utf8Path) -> Result<Secret, Failure> {
    let length = std::fs::metadata(path).with_context(|| format!("check {path}"))?.len();
    if length > FILE_MAX {
        return Err(anyhow::anyhow!("{path} has {length} bytes, which is too large for a backup").into());
    }
    Ok(Secret::new(std::fs::read(path).with_context(|| format!("read {path}"))?))
}

/// Adds the files of a model. Returns their folder.
fn whole_model(folder: &Utf8Path, number: usize, items: &mut Vec<Item>) -> Result<String, Failure> {
    let within = format!("models/{number}");
    let mut names = Vec::new();
    for entry in folder.read_dir_utf8().with_context(|| format!("list {folder}"))? {
        names.push(entry.with_context(|| format!("list {folder}"))?.file_name().to_owned());
    }
    names.sort();
    for name in names {
        let file = folder.join(&name);
        if file.is_file() {
            items.push(Item { path: format!("{within}/{name}"), content: Content::File(file) });
        }
    }
    Ok(within)
}

/// Dumps the current database of a site with the server program.
async fn dump(
    site: &SiteName,
    config: &Utf8Path,
    path: String,
    work: &Utf8Path,
) -> Result<(Database, Utf8PathBuf), Failure> {
    let ending = Utf8Path::new(&path).extension().unwrap_or("db").to_owned();
    let file = work.join(format!("{site}.{ending}"));
    let program = std::env::current_exe().context("find this program")?;
    let arguments = ["admin", "backup", "--config", config.as_str(), "--out", file.as_str()];
    let said = verify_backup::child(program.as_ref(), &arguments, None, DATABASE_TIMEOUT)
        .await
        .with_context(|| format!("copy the database of site {site}"))?;
    let numbers: Counts = answered(said).with_context(|| format!("copy the database of site {site}"))?;
    let Counts { schema, keys, usage } = numbers;
    Ok((Database { member: format!("databases/{site}.{ending}"), path, schema, keys, usage, base: None }, file))
}

/// Takes a base backup of the managed PostgreSQL. Its archived log continues from there.
async fn copied_base(site: &SiteName, data_folder: &Utf8Path, work: &Utf8Path) -> Result<(Base, Utf8PathBuf), Failure> {
    let file = work.join(format!("{site}.base.tar"));
    let program = std::env::current_exe().context("find this program")?;
    let arguments = ["admin", "base-backup", "--config", data_folder.as_str(), "--out", file.as_str()];
    let said = verify_backup::child(program.as_ref(), &arguments, None, DATABASE_TIMEOUT).await;
    let mut said = said.with_context(|| format!("copy the files of the PostgreSQL of site {site}"))?;
    said["member"] = json!(format!("databases/{site}.base.tar"));
    said["log_signed"] = json!(true);
    let base = serde_json::from_value(said).with_context(|| format!("read what was copied of site {site}"))?;
    Ok((base, file))
}

/// Creates an empty database with the current schema.
async fn prepare(file: &Utf8Path) -> anyhow::Result<()> {
    chore(file, "migrate", None).await.map(drop)
}

/// Replaces the keys in a copied database by those of another one. Returns their count.
async fn take_keys(file: &Utf8Path, from: &Utf8Path) -> anyhow::Result<u64> {
    let said = chore(file, "keys", Some(&json!({ "do": "take", "from": from }))).await?;
    answered(said).map(|KeyCount { keys }| keys)
}

/// Runs a one-off job of the server program on a copied database.
async fn chore(file: &Utf8Path, command: &str, input: Option<&Value>) -> anyhow::Result<Value> {
    let config = Utf8PathBuf::from(format!("{file}.yaml"));
    std::fs::write(&config, verify_backup::least_config(file))?;
    let program = std::env::current_exe()?;
    let arguments = ["admin", command, "--config", config.as_str()];
    verify_backup::child(program.as_ref(), &arguments, input, DATABASE_TIMEOUT).await
}

/// The report of `admin backup` about the database that it copied.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Counts {
    /// The version of the schema.
    pub schema: u64,
    /// The count of API keys.
    pub keys: u64,
    /// The count of accounted requests.
    pub usage: u64,
}

/// The report of `admin keys` after it replaced the keys of a database.
#[derive(Deserialize)]
struct KeyCount {
    keys: u64,
}

/// Parses a child's report. A missing number is an error, so that a manifest never claims an empty database or schema
/// 0.
pub(super) fn answered<T: DeserializeOwned>(said: Value) -> anyhow::Result<T> {
    serde_json::from_value(said).context("the server program sent an unexpected answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_number_in_an_answer_is_an_error_and_not_zero() {
        let complete = json!({ "schema": 7, "keys": 2, "usage": 0, "bytes": 4096 });
        assert_eq!(answered::<Counts>(complete.clone()).unwrap(), Counts { schema: 7, keys: 2, usage: 0 });
        for field in ["schema", "keys", "usage"] {
            for wrong in [None, Some(json!("7")), Some(json!(-1)), Some(Value::Null)] {
                let mut said = complete.clone();
                match wrong {
                    Some(wrong) => said[field] = wrong,
                    None => drop(said.as_object_mut().unwrap().remove(field)),
                }
                assert!(answered::<Counts>(said.clone()).is_err(), "{said}");
            }
        }
        assert!(answered::<KeyCount>(json!({})).is_err());
    }
}
