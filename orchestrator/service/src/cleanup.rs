//! Files that a deployment on this machine no longer needs: found first, removed after an approval.
//!
//! Journals, evidence, reports, secrets, data and backups are never among them, but for states that a restore replaced,
//! where they are asked for. In doubt a file stays.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use rustix::fs::{AtFlags, Mode, OFlags};
use serde::Serialize;
use textnlp_models::{AbandonedDownload, Digest, Store};
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::release::{History, Lock};
use textnlp_provider::{EnvironmentName, error_chain};

use crate::backup::{restore, settings};
use crate::{ChosenEnvironment, Exit, Failure, size};

/// What a file was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A server program that was retained for a rollback.
    Program,
    /// A model in the cache. Sites keep their own links to its content.
    Model,
    /// A download that was not finished.
    Download,
    /// A rotated log.
    Log,
    /// A support bundle in the working directory.
    SupportBundle,
    /// A state that a restore replaced, with what it holds.
    ReplacedState,
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            FileKind::Program => "program",
            FileKind::Model => "model",
            FileKind::Download => "download",
            FileKind::Log => "log",
            FileKind::SupportBundle => "support bundle",
            FileKind::ReplacedState => "replaced state",
        })
    }
}

/// A file, or the folder of a model or of a replaced state, that is not needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it was for.
    #[serde(rename = "purpose")]
    pub kind: FileKind,
    /// Its path.
    pub path: Utf8PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was last written; for a model, when it was last requested; for a state, when it was replaced.
    pub used: Timestamp,
    #[serde(skip)]
    owner: Owner,
}

/// What removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// This module, as a file.
    File,
    /// This module, as a folder with its content.
    Folder,
    /// The store of models.
    Model(Digest),
    /// The store of models, unless a process holds the download.
    Download(AbandonedDownload),
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// What is not needed, oldest first.
    pub items: Vec<Item>,
    /// What was kept although it is old, and why.
    pub notes: Vec<String>,
}

/// The shortest age of what is removed: a download that still runs is younger.
pub const MIN_AGE: Duration = Duration::from_secs(24 * 3600);

/// Where it is searched.
pub struct Search<'a> {
    /// The environment.
    pub chosen: &'a ChosenEnvironment,
    /// Limits it to the logs of this site.
    pub site: Option<&'a str>,
    /// The model cache of all environments.
    pub model_cache: &'a Utf8Path,
    /// The working directory, for support bundles.
    pub here: &'a Utf8Path,
    /// What was used since then is kept; at least [`MIN_AGE`] ago.
    pub before: Timestamp,
    /// Whether states that a restore replaced are among it. They may have the only copy of data, and of keys of backups.
    pub replaced_states: bool,
}

/// Finds what is not needed and was not used for a time. Changes nothing.
pub fn find(search: &Search<'_>) -> Result<Found, Failure> {
    let mut found = Found::default();
    logs(search, &mut found)?;
    if search.site.is_none() {
        programs(search, &mut found)?;
        models(search, &mut found)?;
        support_bundles(search, &mut found)?;
        replaced_states(search, &mut found)?;
    }
    found.items.retain(|item| item.used < search.before);
    found.items.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
    Ok(found)
}

/// Removes one item. What changed since it was found is not removed.
pub fn remove(item: &Item, model_cache: &Utf8Path) -> Result<(), String> {
    let removed = match &item.owner {
        Owner::File => return unlink(item).map_err(|error| error.to_string()),
        Owner::Folder => return std::fs::remove_dir_all(&item.path).map_err(|error| error.to_string()),
        Owner::Model(digest) => Store::open(model_cache).and_then(|store| store.remove(digest)).map(|_| true),
        Owner::Download(download) => Store::open(model_cache).and_then(|store| store.remove_abandoned(download)),
    };
    match removed {
        Ok(true) => Ok(()),
        Ok(false) => Err("a process works on it".to_owned()),
        Err(error) => Err(error_chain(&error)),
    }
}

/// The releases that must stay deployable: the newest, the one before it, and the locked one.
fn needed(history: &History, lock: Option<Lock>) -> Result<Option<Vec<Lock>>, Failure> {
    let recorded = history.read().map_err(|error| Failure::new(Exit::Failed, "release_history", error))?;
    if !recorded.skipped.is_empty() {
        return Ok(None);
    }
    let current = recorded.entries.last().map(|entry| entry.applied.lock.clone());
    let previous =
        current.as_ref().and_then(|current| recorded.before(current)).map(|entry| entry.applied.lock.clone());
    Ok(Some([current, previous, lock].into_iter().flatten().collect()))
}

fn programs(search: &Search<'_>, found: &mut Found) -> Result<(), Failure> {
    let scope = &search.chosen.scope;
    let history = History::at(&scope.folder);
    let Some(needed) = needed(&history, search.chosen.lock()?)? else {
        found.notes.push("a release cannot be read, so all retained programs are kept".to_owned());
        return Ok(());
    };
    let is_needed = |name: &str| needed.iter().any(|lock| lock.server.ends_with(name));
    let programs = files(&scope.folder.join("programs"), FileKind::Program)?;
    // A name with another form is a file that a run is writing.
    let is_program = |name: &str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    found.items.extend(
        programs
            .into_iter()
            .filter(|item| item.path.file_name().is_some_and(|name| is_program(name) && !is_needed(name))),
    );
    Ok(())
}

fn logs(search: &Search<'_>, found: &mut Found) -> Result<(), Failure> {
    let is_meant = |site: &Utf8Path| search.site.is_none_or(|name| site.file_name() == Some(name));
    for site in folders(&search.chosen.scope.folder.join("sites"))?.into_iter().filter(|site| is_meant(site)) {
        let logs = files(&site.join("log"), FileKind::Log)?;
        found.items.extend(logs.into_iter().filter(|item| item.path.file_name().is_some_and(is_rotated)));
    }
    Ok(())
}

/// `server-0.log.3`.
fn is_rotated(name: &str) -> bool {
    let number = name.rsplit_once('.').filter(|(log, _)| log.ends_with(".log"));
    number.is_some_and(|(_, number)| number.parse::<u32>().is_ok())
}

fn support_bundles(search: &Search<'_>, found: &mut Found) -> Result<(), Failure> {
    let start = format!("support-{}-", search.chosen.scope.name);
    let is_ours = |name: &str| {
        let at = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix("Z.tar"));
        at.is_some_and(|at| at.len() == 15 && at.bytes().all(|byte| byte.is_ascii_digit() || byte == b'T'))
    };
    let bundles = files(search.here, FileKind::SupportBundle)?;
    found.items.extend(bundles.into_iter().filter(|item| item.path.file_name().is_some_and(is_ours)));
    Ok(())
}

/// The states that a restore replaced. Without the option they are only named.
fn replaced_states(search: &Search<'_>, found: &mut Found) -> Result<(), Failure> {
    let scope = &search.chosen.scope;
    // The folder may be a link.
    let Ok(states) = scope.states().canonicalize_utf8() else { return Ok(()) };
    for path in folders(&states)? {
        let at = restore::replaced_at(&path, &scope.name).filter(|at| *at < search.before);
        let Some(used) = at else { continue };
        match bytes_within(&path) {
            Ok(bytes) if search.replaced_states => {
                found.items.push(Item { kind: FileKind::ReplacedState, path, bytes, used, owner: Owner::Folder });
            }
            Ok(bytes) => {
                let (size, at) = (size(bytes), used.strftime("%Y-%m-%d"));
                found.notes.push(format!(
                    "{path}, {size}, is a state that a restore replaced on {at}, with what it holds: data, secrets or records; to remove it, add `--replaced-states {}`",
                    scope.name
                ));
            }
            Err(error) => found.notes.push(format!("{path} cannot be read, so it is kept: {error}")),
        }
    }
    Ok(())
}

/// The size of what a folder alone has. Its links to models in the cache take no space, and links are not followed.
fn bytes_within(folder: &Utf8Path) -> io::Result<u64> {
    let (mut bytes, mut folders) = (0, vec![folder.as_std_path().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            match entry.metadata()? {
                about if about.is_dir() => folders.push(entry.path()),
                about if about.nlink() == 1 => bytes += about.len(),
                _ => {}
            }
        }
    }
    Ok(bytes)
}

/// Models that no environment of the state folders that share the cache needs, and unfinished downloads.
fn models(search: &Search<'_>, found: &mut Found) -> Result<(), Failure> {
    let failed = |error: textnlp_models::Error| Failure::new(Exit::Failed, "model_cache", anyhow::Error::new(error));
    let Some(store) = Store::existing(search.model_cache).map_err(failed)? else { return Ok(()) };
    if search.chosen.loaded.environment.phase == Phase::AirGapped || is_installed(search) {
        let why = "the model cache is kept: an air-gapped site, or one from a bundle, cannot download a model again";
        found.notes.push(why.to_owned());
        return Ok(());
    }
    let digests = match needed_models(search, &store) {
        Ok(digests) => digests,
        Err(why) => {
            found.notes.push(format!("{why}, so all cached models are kept"));
            return Ok(());
        }
    };
    // The time of a model that was never requested is zero.
    for stored in store.list().map_err(failed)?.into_iter().filter(|stored| !stored.pinned && stored.used > 0) {
        let digest = stored.manifest.digest;
        let is_needed = digests.iter().any(|needed| needed.ends_with(&digest.hex()));
        let used = i64::try_from(stored.used).ok().and_then(|used| Timestamp::from_second(used).ok());
        if let Some(used) = used.filter(|_| !is_needed) {
            let (path, bytes) = (stored.dir, stored.manifest.bytes);
            found.items.push(Item { kind: FileKind::Model, path, bytes, used, owner: Owner::Model(digest) });
        }
    }
    for download in store.abandoned(SystemTime::from(search.before)).map_err(failed)? {
        let (path, bytes) = (download.path.clone(), download.bytes);
        if let Ok(used) = Timestamp::try_from(download.written) {
            found.items.push(Item { kind: FileKind::Download, path, bytes, used, owner: Owner::Download(download) });
        }
    }
    Ok(())
}

/// Whether the environments were installed from a bundle, which may be the only source of their models. The state of an
/// installed site may be a link to another folder.
fn is_installed(search: &Search<'_>) -> bool {
    let chosen = search.chosen;
    let beside =
        [chosen.scope.states().parent(), chosen.lock_path.parent().and_then(Utf8Path::parent), Some(search.here)];
    beside.into_iter().flatten().any(|folder| folder.join("installed.json").exists())
}

/// The digests of the models that an environment needs by its releases or its lock, whether it was deployed or not: of this
/// state folder, of the one that the cache is in, and of the clones of drills. The error says what is in doubt.
fn needed_models(search: &Search<'_>, store: &Store) -> Result<BTreeSet<String>, String> {
    let chosen = search.chosen;
    let (library, here) = (chosen.lock_path.parent(), search.here.join("environments"));
    let mut needs = Needs { locks: vec![chosen.lock_path.clone()], ..Needs::default() };
    for folder in library.into_iter().chain([here.as_path()]).filter(|folder| *folder != chosen.scope.folder) {
        // The folder may be a link.
        let Ok(folder) = folder.canonicalize_utf8() else { continue };
        let entries = entries(&folder).map_err(|failure| format!("{:#}", failure.error))?;
        needs.locks.extend(entries.into_iter().filter(|path| path.extension() == Some("lock")));
    }
    let is_elsewhere = |state: &Utf8Path| chosen.scope.platform.is_elsewhere(state);
    for states in [Some(chosen.scope.states()), store.path().parent()].into_iter().flatten() {
        needs.add_states(states, &is_elsewhere)?;
    }
    needs.digests()
}

/// What the states of environments need.
#[derive(Default)]
struct Needs {
    /// The folders that were read.
    folders: BTreeSet<Utf8PathBuf>,
    releases: Vec<Lock>,
    /// Lock files, which need not exist.
    locks: Vec<Utf8PathBuf>,
}

impl Needs {
    /// Adds the states of a folder, and of the clones in it. The error says what is in doubt.
    fn add_states(
        &mut self,
        states: &Utf8Path,
        is_elsewhere: &dyn Fn(&Utf8Path) -> Result<bool, Failure>,
    ) -> Result<(), String> {
        let Ok(states) = states.canonicalize_utf8() else { return Ok(()) };
        if !self.folders.insert(states.clone()) {
            return Ok(());
        }
        for path in entries(&states).map_err(|failure| format!("{:#}", failure.error))? {
            // The state of an environment may be a link.
            let unread = |error: io::Error| format!("{path} cannot be read: {error}");
            if !path.metadata().map_err(unread)?.is_dir() {
                continue;
            }
            let folder = path.canonicalize_utf8().map_err(unread)?;
            if folder.join("model-cache").symlink_metadata().is_ok() {
                self.add_states(&folder, is_elsewhere)?;
            }
            if let Some(name) = path.file_name().and_then(|name| EnvironmentName::new(name).ok()) {
                self.add_state(&folder, &name, is_elsewhere)?;
            }
        }
        Ok(())
    }

    fn add_state(
        &mut self,
        folder: &Utf8Path,
        name: &EnvironmentName,
        is_elsewhere: &dyn Fn(&Utf8Path) -> Result<bool, Failure>,
    ) -> Result<(), String> {
        let told = |failure: Failure| format!("{:#}", failure.error);
        let released = needed(&History::at(folder), None).map_err(told)?;
        let released = released.ok_or_else(|| format!("a release in {folder} cannot be read"))?;
        self.locks.push(Lock::path(folder, name));
        // The environment of another project has its lock beside its file.
        let file = settings::last_flags(folder).file;
        self.locks.extend(file.and_then(|file| Some(Lock::path(Utf8Path::new(&file).parent()?, name))));
        let of_it = format!("{name}.lock");
        let is_locked = self.locks.iter().any(|lock| lock.file_name() == Some(of_it.as_str()) && lock.is_file());
        if released.is_empty() && !is_locked {
            let has_sites = !folders(&folder.join("sites")).map_err(told)?.is_empty();
            if has_sites || is_elsewhere(folder).map_err(told)? {
                return Err(format!("{folder} is a deployment without a release on this machine"));
            }
        }
        self.releases.extend(released);
        Ok(())
    }

    fn digests(self) -> Result<BTreeSet<String>, String> {
        let mut releases = self.releases;
        for path in &self.locks {
            releases.extend(Lock::read(path).map_err(|error| error_chain(&error))?);
        }
        Ok(releases.into_iter().flat_map(|lock| lock.models.into_values()).collect())
    }
}

/// The regular files of a folder; none if there is no folder. A link in its place is not followed.
fn files(folder: &Utf8Path, kind: FileKind) -> Result<Vec<Item>, Failure> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        let Ok(about) = path.symlink_metadata() else { continue };
        let used = about.modified().ok().and_then(|at| Timestamp::try_from(at).ok());
        if let Some(used) = used.filter(|_| about.is_file()) {
            found.push(Item { kind, path, bytes: about.len(), used, owner: Owner::File });
        }
    }
    Ok(found)
}

fn folders(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Failure> {
    let mut found = entries(folder)?;
    found.retain(|path| path.symlink_metadata().is_ok_and(|about| about.is_dir()));
    Ok(found)
}

fn entries(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Failure> {
    if !folder.symlink_metadata().is_ok_and(|about| about.is_dir()) {
        return Ok(Vec::new());
    }
    let listed = folder.read_dir_utf8().and_then(|entries| {
        // Other names are of no file that this program writes.
        entries
            .filter(|entry| entry.as_ref().map_or_else(|error| error.kind() != io::ErrorKind::InvalidData, |_| true))
            .map(|entry| entry.map(camino::Utf8DirEntry::into_path))
            .collect()
    });
    listed.map_err(|error| Failure::from(anyhow::Error::new(error).context(format!("list {folder}"))))
}

/// Removes a file by its folder, which is opened without following a link: users of services may replace theirs.
fn unlink(item: &Item) -> io::Result<()> {
    let (Some(folder), Some(name)) = (item.path.parent(), item.path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder.as_std_path(), flags, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let now = File::from(rustix::fs::openat(&folder, name, flags, Mode::empty())?).metadata()?;
    let used = Timestamp::try_from(now.modified()?).ok();
    if !now.is_file() || now.len() != item.bytes || used != Some(item.used) {
        return Err(io::Error::other("it was changed meanwhile"));
    }
    Ok(rustix::fs::unlinkat(&folder, name, AtFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::release::Applied;

    use super::*;

    #[test]
    fn only_rotated_logs_are_old_logs() {
        let names = ["server-0.log.1", "a.log.12", "server-0.log", "gateway.log.", "x.1", "a.log.gz", ".log.2"];
        assert_eq!(names.map(is_rotated), [true, true, false, false, false, false, true]);
    }

    #[test]
    fn file_that_changed_or_was_replaced_by_a_link_is_not_removed() {
        let kept = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(kept.path()).unwrap();
        let log = root.join("log");
        std::fs::create_dir(&log).unwrap();
        let file = log.join("a.log.1");
        std::fs::write(&file, "one").unwrap();
        let item = files(&log, FileKind::Log).unwrap().remove(0);
        assert_eq!((item.path.as_str(), item.bytes), (file.as_str(), 3));
        std::fs::write(&file, "longer").unwrap();
        assert!(unlink(&item).unwrap_err().to_string().contains("changed"));
        let item = files(&log, FileKind::Log).unwrap().remove(0);
        // The folder became a link to another one with a file of that name.
        std::fs::rename(&log, root.join("away")).unwrap();
        std::os::unix::fs::symlink(root.join("away"), &log).unwrap();
        unlink(&item).unwrap_err();
        assert!(files(&log, FileKind::Log).unwrap().is_empty(), "a link is not followed");
        std::fs::remove_file(&log).unwrap();
        std::fs::rename(root.join("away"), &log).unwrap();
        unlink(&item).unwrap();
        assert!(!file.exists());
    }

    fn lock(server: &str, model: Option<&str>) -> Lock {
        Lock {
            environment: EnvironmentName::new("staging").unwrap(),
            server: server.to_owned(),
            models: model.map(|digest| ("main".to_owned(), digest.to_owned())).into_iter().collect(),
            sources: Default::default(),
            tenants: Default::default(),
            images: Default::default(),
            image_sources: Default::default(),
            templates: None,
            configuration: String::new(),
            schema: None,
        }
    }

    fn applied(lock: Lock) -> Applied {
        let (by, tool) = ("test".to_owned(), "test".to_owned());
        Applied { at: Timestamp::UNIX_EPOCH, by, reason: None, tool, schema: None, phase: None, settings: None, lock }
    }

    #[test]
    fn cache_keeps_the_models_of_all_states_that_share_it_and_everything_in_doubt() {
        let kept = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(kept.path().canonicalize().unwrap()).unwrap();
        let states = root.join("states");
        std::fs::create_dir_all(states.join("model-cache")).unwrap();
        let release = |folder: &Utf8Path, model: &str| {
            std::fs::create_dir_all(folder).unwrap();
            History::at(folder).keep(&applied(lock("a", Some(model)))).unwrap();
        };
        release(&states.join("one"), "own");
        release(&root.join("moved"), "linked");
        std::os::unix::fs::symlink(root.join("moved"), states.join("two")).unwrap();
        let clone = states.join(".drill-clone-1");
        release(&clone.join("one"), "cloned");
        std::os::unix::fs::symlink(states.join("model-cache"), clone.join("model-cache")).unwrap();
        let needed = || {
            let mut needs = Needs::default();
            needs.add_states(&states, &|state: &Utf8Path| Ok(state.join("elsewhere").exists()))?;
            needs.digests()
        };
        let all = ["cloned", "linked", "own"].map(str::to_owned);
        assert_eq!(needed(), Ok(BTreeSet::from(all)));
        // A folder without a deployment needs nothing, and one without its releases may need any model.
        let other = states.join("three");
        for (sign, doubt) in [("notes", false), ("sites/here", true), ("elsewhere", true)] {
            std::fs::create_dir_all(other.join(sign)).unwrap();
            let why = needed().err();
            assert_eq!(why.is_some_and(|why| why.contains("three is a deployment without a release")), doubt, "{sign}");
            std::fs::remove_dir_all(&other).unwrap();
        }
        std::os::unix::fs::symlink(root.join("gone"), &other).unwrap();
        assert!(needed().unwrap_err().contains("three cannot be read"));
        std::fs::remove_file(&other).unwrap();
        std::fs::write(root.join("moved/releases/000001.release"), "").unwrap();
        assert!(needed().unwrap_err().contains("moved cannot be read"));
    }

    #[test]
    fn releases_that_stay_deployable_are_the_newest_two_and_the_locked_one() {
        let kept = tempfile::tempdir().unwrap();
        let history = History::at(Utf8Path::from_path(kept.path()).unwrap());
        let lock = |server: &str| lock(server, None);
        let servers = |lock| -> Vec<String> {
            needed(&history, lock).unwrap().unwrap().into_iter().map(|lock| lock.server).collect()
        };
        assert_eq!(servers(None), Vec::<String>::new());
        for server in ["a", "b", "c"] {
            history.keep(&applied(lock(server))).unwrap();
        }
        assert_eq!(servers(None), ["c", "b"]);
        assert_eq!(servers(Some(lock("a"))), ["c", "b", "a"]);
        // A damaged entry may be any release.
        std::fs::write(Utf8Path::from_path(kept.path()).unwrap().join("releases/000002.release"), "").unwrap();
        assert!(needed(&history, None).unwrap().is_none());
    }
}
