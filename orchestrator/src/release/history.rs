//! The releases that `up` completed, oldest first, and the server programs for a rollback.
//!
//! Entries are files in `releases/` of the state folder: the SHA-256 of the rest, then the entry. A file appears whole
//! or not at all. One that was damaged later is skipped and reported. `programs/` has the server programs that were
//! replaced last. `sites.json` has the time when what each site runs was applied to it, also with `--site`.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use textnlp_files::Replace;
use textnlp_provider::component::Program;

use super::{Lock, configuration_digest, digest, settings_digest};
use crate::environment::Environment;
use crate::environment::model::Phase;

/// The most releases in the history; the oldest are dropped.
pub const MAX_RELEASES: usize = 100;
/// The count of retained server programs.
pub const PROGRAMS: usize = 3;
/// The largest entry in bytes; a lock has its own limit, and the rest is a few lines.
const ENTRY_BYTES: u64 = 2_000_000;
const SUFFIX: &str = ".release";
/// The suffix of a partial file; a killed run leaves it behind.
const UNFINISHED: &str = ".new";

/// An applied release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// When it was applied, by the clock of that machine.
    pub at: Timestamp,
    /// The operator.
    pub by: String,
    /// The reason that the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name and version of the program.
    pub tool: String,
    /// The schema of the database at that time; `None` if it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// The phase of the environment at that time. Earlier versions recorded none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// See [`settings_digest`]. Earlier versions recorded none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// The lock, with the configuration of that time.
    pub lock: Lock,
}

impl Applied {
    /// Whether the environment has the configuration that was applied; its gates may differ.
    pub fn is_configured_as(&self, environment: &Environment) -> bool {
        match &self.settings {
            Some(settings) => *settings == settings_digest(environment),
            None => self.lock.configuration == configuration_digest(environment),
        }
    }
}

/// One entry of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number, counted from 1.
    pub number: u64,
    /// The applied release.
    #[serde(flatten)]
    pub applied: Applied,
}

/// The readable entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The entries, oldest first.
    pub entries: Vec<Entry>,
    /// A message for each unreadable file.
    pub skipped: Vec<String>,
    newest: u64,
}

/// What was last applied to a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct AppliedSite {
    at: Timestamp,
    /// The digest of the lock, with the configuration of that time.
    lock: String,
}

/// Why the history could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct HistoryError {
    action: &'static str,
    path: Utf8PathBuf,
    source: io::Error,
}

/// The history of one environment, in its state folder.
#[derive(Debug, Clone)]
pub struct History {
    releases: Utf8PathBuf,
    programs: Utf8PathBuf,
}

impl History {
    /// The history in this state folder. The first entry creates it.
    pub fn at(state: &Utf8Path) -> Self {
        Self { releases: state.join("releases"), programs: state.join("programs") }
    }

    /// Removes the history and the retained programs.
    pub fn remove(&self) -> Result<(), HistoryError> {
        for folder in [&self.releases, &self.programs] {
            match std::fs::remove_dir_all(folder) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(HistoryError { action: "remove", path: folder.clone(), source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads every entry.
    pub fn read(&self) -> Result<Recorded, HistoryError> {
        let mut recorded = Recorded::default();
        let mut numbers: Vec<_> =
            names(&self.releases)?.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok()).collect();
        numbers.sort_unstable();
        for number in numbers {
            recorded.newest = number;
            match self.entry(number) {
                Ok(applied) => recorded.entries.push(Entry { number, applied }),
                Err(why) => recorded.skipped.push(format!("{}: {why}", self.file(number))),
            }
        }
        Ok(recorded)
    }

    /// Adds a release and returns its number; durable on return. `None` if the newest entry is the same release with the
    /// same settings.
    pub fn keep(&self, applied: &Applied) -> Result<Option<u64>, HistoryError> {
        let recorded = self.read()?;
        // An entry of an earlier version has no digest of its settings: the next run adds one that has.
        let is_same = |newest: &Entry| {
            let newest = &newest.applied;
            newest.lock == applied.lock && newest.schema == applied.schema && newest.settings == applied.settings
        };
        if recorded.newest().is_ok_and(|newest| newest.is_some_and(is_same)) {
            return Ok(None);
        }
        make_folder(&self.releases)?;
        let body = serde_json::to_string_pretty(applied).expect("an entry is plain data with text keys");
        // Not `Replace`: entries are never replaced. The first run that links a number owns it.
        let fresh = unfinished(&self.releases);
        let mut number = recorded.newest + 1;
        let written = (|| {
            let mut file = create(&fresh, 0o600)?;
            file.write_all(format!("{}\n{body}\n", digest(format!("{body}\n").as_bytes())).as_bytes())?;
            file.sync_all()?;
            // Two runs may end at once: the first one that links a number owns it.
            loop {
                match std::fs::hard_link(&fresh, self.file(number)) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                    linked => break linked,
                }
            }?;
            textnlp_files::sync_folder(&self.releases).map_err(io::Error::from)
        })();
        let removed = std::fs::remove_file(&fresh);
        written.and(removed).map_err(|e| failed("write", &self.file(number), e))?;
        self.drop_oldest();
        Ok(Some(number))
    }

    /// Records that a release was applied to these sites, before [`Self::keep`]. A site that had the same release with the
    /// same settings keeps its time.
    pub fn keep_sites<'s>(
        &self,
        sites: impl IntoIterator<Item = &'s str>,
        applied: &Applied,
    ) -> Result<(), HistoryError> {
        let recorded = self.read()?;
        let everywhere = recorded.newest().ok().flatten().map(|newest| digest(&newest.applied.lock.to_bytes()));
        let new = AppliedSite { at: applied.at, lock: digest(&applied.lock.to_bytes()) };
        // An unreadable file is replaced, and then no earlier time counts.
        let known = self.sites().ok();
        let mut kept = known.clone().unwrap_or_default();
        for site in sites {
            let before = known.as_ref().and_then(|known| match known.get(site) {
                Some(there) => Some(&there.lock),
                None => everywhere.as_ref(),
            });
            if before != Some(&new.lock) {
                kept.insert(site.to_owned(), new.clone());
            }
        }
        if known.as_ref() == Some(&kept) {
            return Ok(());
        }
        make_folder(&self.releases)?;
        let bytes = serde_json::to_vec_pretty(&kept).expect("times are plain data with text keys");
        let file = self.sites_file();
        Replace::private().write(&file, &bytes).map_err(|error| failed("write", &file, error.into()))
    }

    /// When something else than before was last applied to a site. `None` if that is not recorded.
    pub fn changed_at(&self) -> Result<Option<Timestamp>, HistoryError> {
        Ok(self.sites()?.into_values().map(|site| site.at).max())
    }

    fn sites(&self) -> Result<BTreeMap<String, AppliedSite>, HistoryError> {
        let file = self.sites_file();
        let read = match std::fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            read => read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)),
        };
        read.map_err(|error| failed("read", &file, error))
    }

    fn sites_file(&self) -> Utf8PathBuf {
        self.releases.join("sites.json")
    }

    /// Retains a copy of a server program that is about to be replaced, if its content still matches its digest.
    pub fn keep_program(&self, program: &Program) -> Result<(), HistoryError> {
        let target = self.program_file(&program.digest);
        if target.is_file() {
            return Ok(());
        }
        make_folder(&self.programs)?;
        // Not `Replace`: the name includes the process id, so that a later run can remove the large partial file of a
        // killed one.
        let fresh = unfinished(&self.programs);
        let copied = (|| {
            let mut file = create(&fresh, 0o700)?;
            if copy_hashed(&program.path, &mut file)? != program.digest {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its content does not match its digest"));
            }
            file.sync_all()?;
            std::fs::rename(&fresh, &target)?;
            textnlp_files::sync_folder(&self.programs).map_err(io::Error::from)
        })();
        copied.map_err(|error| {
            // Best effort: the error above is returned.
            let _ = std::fs::remove_file(&fresh);
            failed("copy program to", &target, error)
        })?;
        self.drop_programs();
        Ok(())
    }

    /// The retained server program of a digest; `None` if there is none or its content has changed.
    pub fn program(&self, digest: &str) -> Option<Program> {
        let path = self.program_file(digest);
        let found = copy_hashed(path.as_str(), &mut io::sink()).ok()?;
        (found == digest).then(|| Program { path: path.into_string(), digest: digest.to_owned() })
    }

    fn file(&self, number: u64) -> Utf8PathBuf {
        self.releases.join(format!("{number:06}{SUFFIX}"))
    }

    fn program_file(&self, digest: &str) -> Utf8PathBuf {
        self.programs.join(digest.strip_prefix("sha256:").unwrap_or(digest))
    }

    fn entry(&self, number: u64) -> Result<Applied, String> {
        let mut text = String::new();
        let file = File::open(self.file(number)).map_err(|e| e.to_string())?;
        file.take(ENTRY_BYTES).read_to_string(&mut text).map_err(|e| e.to_string())?;
        let (sum, body) = text.split_once('\n').ok_or("it was cut")?;
        if digest(body.as_bytes()) != sum {
            return Err("it was cut or changed".to_owned());
        }
        serde_json::from_str(body).map_err(|e| e.to_string())
    }

    /// What cannot be removed now is retried by the next run.
    fn drop_oldest(&self) {
        let mut kept: Vec<_> = names(&self.releases).unwrap_or_default();
        drop_unfinished(&self.releases, &kept);
        kept.retain(|name| name.ends_with(SUFFIX));
        kept.sort();
        for name in &kept[..kept.len().saturating_sub(MAX_RELEASES)] {
            let _ = std::fs::remove_file(self.releases.join(name));
        }
    }

    fn drop_programs(&self) {
        let names = names(&self.programs).unwrap_or_default();
        drop_unfinished(&self.programs, &names);
        let mut kept: Vec<_> = names
            .iter()
            .filter(|name| !name.ends_with(UNFINISHED))
            .filter_map(|name| {
                let path = self.programs.join(name);
                Some((std::fs::metadata(&path).ok()?.modified().ok()?, path))
            })
            .collect();
        kept.sort();
        for (_, path) in &kept[..kept.len().saturating_sub(PROGRAMS)] {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Recorded {
    /// The newest entry. Why it cannot be read, if so: an older one says nothing about what runs.
    pub fn newest(&self) -> Result<Option<&Entry>, String> {
        match (self.entries.last(), self.skipped.last()) {
            (newest, Some(why)) if newest.is_none_or(|newest| newest.number < self.newest) => {
                Err(format!("the newest entry of the release history cannot be read: {why}"))
            }
            (newest, _) => Ok(newest),
        }
    }

    /// The entry with this number.
    pub fn get(&self, number: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.number == number)
    }

    /// The newest release with other artifacts than this lock: the default target of a rollback.
    pub fn before(&self, lock: &Lock) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| !entry.applied.lock.runs_the_same(lock))
    }

    /// The schema version of a server program, if known. A program also runs on the next version, so the lowest one
    /// seen is its own.
    pub fn schema_of(&self, server: &str) -> Option<u32> {
        let of_it = self.entries.iter().filter(|entry| entry.applied.lock.server == server);
        of_it.filter_map(|entry| entry.applied.schema).min()
    }
}

/// Whether a server of this schema version can use a database: its own version or the next.
pub fn runs_on(server: u32, database: u32) -> bool {
    database <= server.saturating_add(1)
}

fn failed(action: &'static str, path: &Utf8Path, source: io::Error) -> HistoryError {
    HistoryError { action, path: path.to_owned(), source }
}

fn names(folder: &Utf8Path) -> Result<Vec<String>, HistoryError> {
    let listed = folder.read_dir_utf8().and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect::<io::Result<Vec<_>>>()
    });
    match listed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|e| failed("list", folder, e)),
    }
}

fn make_folder(folder: &Utf8Path) -> Result<(), HistoryError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| failed("make", folder, e))
}

fn create(path: &Utf8Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)
}

/// A file name that no other process uses.
fn unfinished(folder: &Utf8Path) -> Utf8PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    folder.join(format!("{}-{}{UNFINISHED}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

fn drop_unfinished(folder: &Utf8Path, names: &[String]) {
    for name in names {
        let pid = name.strip_suffix(UNFINISHED).and_then(|name| name.split('-').next());
        if pid.is_some_and(|pid| !Utf8Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_file(folder.join(name));
        }
    }
}

fn copy_hashed(from: &str, to: &mut dyn Write) -> io::Result<String> {
    textnlp_files::copy_sha256(&mut File::open(from)?, to).map(|digest| format!("sha256:{}", digest.hex()))
}
