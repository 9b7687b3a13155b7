//! Everything that a copy holds, taken while the service runs: under the state's lock, so that no operation is half-way in it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_orchestrator::backup::{Base, Content, Database, FORMAT, Item, Manifest, Model};
use textnlp_orchestrator::release::Lock;
use textnlp_orchestrator::state::{Folder, Holder, Operator, StateError, Store, transfer};
use textnlp_provider::{EnvironmentName, Secret, SiteName};

use super::super::running;
use super::{keep, prove};
use crate::again::Again;
use crate::clouds::{self, SiteCopy};
use crate::deployment::state_failed;
use crate::report::Failure;
use crate::{stores, workplace};

/// What is copied as it is, from the state folder: files and whole folders.
const AS_IT_IS: [&str; 5] = [clouds::SECRETS, keep::FOLDER, "releases", "dr/drills", "dr/drill-report.pub"];
/// What is copied of the state itself.
const STATE_PARTS: [&str; 4] = ["lineage.json", "lease.json", "hold.json", "journal"];
/// The folder of all that within a copy.
pub const STATE: &str = "state";
/// No file of a state but a journal is near this size, and journals of this size are none of ours.
const FILE_MAX: u64 = 512 << 20;
/// Between two looks at a lock that another run holds.
const LOOK: Duration = Duration::from_millis(500);
/// The copy of a database of many gigabytes takes its time.
pub const DATABASE_WITHIN: Duration = Duration::from_secs(3600);

/// What goes into a copy. The work folder goes with it.
pub struct Gathered {
    /// The list, without its members.
    pub manifest: Manifest,
    /// The members.
    pub items: Vec<Item>,
    /// What there is to tell: what a copy lacks that one might expect.
    pub notes: Vec<String>,
    _work: tempfile::TempDir,
}

/// There is nothing to copy.
pub fn not_up(again: &Again, name: &EnvironmentName) -> Failure {
    Failure::usage("not_up", anyhow::anyhow!("environment {name} has no state here")).hint(again.command("up", name))
}

/// Takes everything. Waits for another run as long as `patience` says.
pub async fn gather(
    again: &Again,
    name: &EnvironmentName,
    folder: &Utf8Path,
    with_models: bool,
    operator: &Operator,
    patience: Duration,
) -> Result<Gathered, Failure> {
    let store = stores::of_folder(folder)?;
    if running::state(again, name, folder).await?.is_new() {
        return Err(not_up(again, name));
    }
    // Until everything that belongs together is taken.
    let lock = held(&*store, operator, patience).await.map_err(|error| state_failed(error, again, name))?;
    let state = running::state(again, name, folder).await?;
    // What a killed run left holds a database.
    let work = workplace::make(folder, WORK, |_| false)?;
    let mut items = Vec::new();
    let mut lies_in = folder.to_owned();
    if stores::recorded(folder)?.is_some() {
        // A state that lies elsewhere, sealed or not, comes as a folder that opens by itself: the copy has a seal of its own.
        lies_in = Utf8Path::from_path(work.path()).context("temporary folders have UTF-8 names")?.join("journals");
        let copied = transfer(&*store, &Folder::at(&lies_in), &holder(operator)).await;
        copied.map_err(|error| state_failed(error, again, name))?;
    }
    for part in STATE_PARTS {
        take(&lies_in, &lies_in.join(part), &mut items)?;
    }
    for part in AS_IT_IS {
        take(folder, &folder.join(part), &mut items)?;
    }
    take(folder, &Lock::path(folder, name), &mut items)?;

    let (mut databases, mut models, mut notes) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let within = Utf8Path::from_path(work.path()).context("temporary folders have UTF-8 names")?;
    let (mut dumps, mut missing, mut held) = (BTreeMap::new(), Vec::new(), Vec::new());
    let (mut has_outside, mut left_out) = (false, false);
    for site in state.places().keys() {
        let SiteCopy { files, database, dump: mut dumped, outside, control, base, served, models: there } =
            clouds::copied(folder, site).with_context(|| format!("look at site {site}"))?;
        // Sites that store outside store in one place, and any of them that is there knows the way.
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
                let text = prove::least_config(&folder.join(&path));
                std::fs::write(&config, text).with_context(|| format!("write {config}"))?;
                Some(dump(site, &config, path, within).await?)
            }
            (Some(path), _) => {
                missing.push((site.clone(), path));
                None
            }
            // It is asked the way that the service asks it.
            (None, Some(path)) => {
                let Some((_, config)) = served.clone().filter(|(_, config)| config.is_file()) else {
                    let error = anyhow::anyhow!(
                        "the PostgreSQL of site `{site}` is not up, and only a running one can be copied"
                    );
                    return Err(Failure::usage("not_up", error).hint(again.command("up", name)));
                };
                Some(dump(site, &config, path, within).await?)
            }
            (None, None) => None,
        };
        if let Some((mut database, file)) = taken {
            if let Some(keeper) = base {
                let (base, tar) = copied_base(site, &keeper, within).await?;
                items.push(Item { path: base.member.clone(), content: Content::File(tar) });
                database.base = Some(base);
            }
            databases.insert(site.clone(), database);
            dumps.insert(site.clone(), file);
        }
        if let Some((_, config)) = served.filter(|(_, config)| config.is_file()) {
            items.push(Item { path: prove::served(site), content: Content::Bytes(read(&config)?) });
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
        let error = anyhow::anyhow!("no site is up, and only one that is knows the way to their PostgreSQL");
        return Err(Failure::usage("not_up", error).hint(again.command("up", name)));
    }
    store.unlock(lock).await.map_err(|error| state_failed(error, again, name))?;
    // Of several sites one was ahead: the first that becomes primary after a restore must not bring back what was revoked.
    let ahead = held.iter().max().and_then(|held| dumps.iter().find(|(site, _)| site.as_str() == held.primary));
    if let Some((primary, from)) = ahead.map(|(site, file)| (site.clone(), file.clone())) {
        for (site, path) in missing {
            notes.push(format!(
                "the database of {site} is gone; in its place is an empty one with the keys of {primary}"
            ));
            let file = within.join(format!("{site}.db"));
            let schema = databases[&primary].schema;
            prepare(&file).await.with_context(|| format!("make a database for site {site}"))?;
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
        notes.push("there is no database in it: nothing was served yet".to_owned());
    }
    if !keep::whole(folder).is_file() {
        notes.push(format!(
            "the environment's file is not in it; the next `{}` writes it down",
            again.command("up", name)
        ));
    }
    let manifest = Manifest {
        kind: "textnlp-backup".to_owned(),
        format: FORMAT,
        environment: name.clone(),
        lineage: state.lineage(),
        at: Timestamp::now(),
        tool: operator.tool.clone(),
        host: operator.host.clone(),
        databases,
        models,
        members: Vec::new(),
    };
    Ok(Gathered { manifest, items, notes, _work: work })
}

async fn held(
    store: &dyn Store,
    operator: &Operator,
    patience: Duration,
) -> Result<textnlp_orchestrator::state::Lock, StateError> {
    let began = Instant::now();
    loop {
        match store.lock(&holder(operator)).await {
            Err(StateError::Held { .. }) if began.elapsed() < patience => tokio::time::sleep(LOOK).await,
            other => return other,
        }
    }
}

fn holder(operator: &Operator) -> Holder {
    let Operator { by, host, tool, pid, .. } = operator.clone();
    Holder { by, pid, host, since: Timestamp::now(), tool }
}

/// The folder of work, within the state's.
const WORK: &str = ".backup-";

/// A file, or a folder with all files in it; what is not there is left out.
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
    // Locks and files that are being written hold nothing.
    if !found.is_file() || name == ".lock" || name.ends_with(".new") {
        return Ok(());
    }
    let relative = path.strip_prefix(root).context("files of a state lie in it")?;
    let member = format!("{STATE}/{relative}");
    if items.iter().all(|item| item.path != member) {
        items.push(Item { path: member, content: Content::Bytes(read(path)?) });
    }
    Ok(())
}

fn read(path: &Utf8Path) -> Result<Secret, Failure> {
    let length = std::fs::metadata(path).with_context(|| format!("look at {path}"))?.len();
    if length > FILE_MAX {
        return Err(anyhow::anyhow!("{path} has {length} bytes, which no file of ours has").into());
    }
    Ok(Secret::new(std::fs::read(path).with_context(|| format!("read {path}"))?))
}

/// The content of a model as members; says their folder.
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

/// The database of a site as it is at this moment, copied by the server program.
async fn dump(
    site: &SiteName,
    config: &Utf8Path,
    path: String,
    work: &Utf8Path,
) -> Result<(Database, Utf8PathBuf), Failure> {
    let ending = Utf8Path::new(&path).extension().unwrap_or("db").to_owned();
    let file = work.join(format!("{site}.{ending}"));
    let program = std::env::current_exe().context("find this program")?;
    let arguments = ["serve", "--role", "backup", "--config", config.as_str(), "--out", file.as_str()];
    let said = prove::child(program.as_ref(), &arguments, None, DATABASE_WITHIN)
        .await
        .with_context(|| format!("copy the database of site {site}"))?;
    let (schema, keys, usage) = (number(&said, "schema"), number(&said, "keys"), number(&said, "usage"));
    Ok((Database { member: format!("databases/{site}.{ending}"), path, schema, keys, usage, base: None }, file))
}

/// The files of a PostgreSQL of our own, from which its archived log goes on.
async fn copied_base(site: &SiteName, keeper: &Utf8Path, work: &Utf8Path) -> Result<(Base, Utf8PathBuf), Failure> {
    let file = work.join(format!("{site}.base.tar"));
    let program = std::env::current_exe().context("find this program")?;
    let arguments = ["serve", "--role", "base", "--config", keeper.as_str(), "--out", file.as_str()];
    let said = prove::child(program.as_ref(), &arguments, None, DATABASE_WITHIN).await;
    let mut said = said.with_context(|| format!("copy the files of the PostgreSQL of site {site}"))?;
    said["member"] = json!(format!("databases/{site}.base.tar"));
    let base = serde_json::from_value(said).with_context(|| format!("read what was copied of site {site}"))?;
    Ok((base, file))
}

/// An empty database of today's schema.
async fn prepare(file: &Utf8Path) -> anyhow::Result<()> {
    chore(file, "migrate", None).await.map(drop)
}

/// Makes the keys in a copied database those of another one; says how many they are.
async fn take_keys(file: &Utf8Path, from: &Utf8Path) -> anyhow::Result<u64> {
    let said = chore(file, "keys", Some(&json!({ "do": "take", "from": from }))).await?;
    Ok(number(&said, "keys"))
}

/// Has the server program do something with a copied database.
async fn chore(file: &Utf8Path, role: &str, command: Option<&Value>) -> anyhow::Result<Value> {
    let config = Utf8PathBuf::from(format!("{file}.yaml"));
    std::fs::write(&config, prove::least_config(file))?;
    let program = std::env::current_exe()?;
    let arguments = ["serve", "--role", role, "--config", config.as_str()];
    prove::child(program.as_ref(), &arguments, command, DATABASE_WITHIN).await
}

fn number(said: &Value, field: &str) -> u64 {
    said.get(field).and_then(Value::as_u64).unwrap_or_default()
}
