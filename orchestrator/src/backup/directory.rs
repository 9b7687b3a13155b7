//! The backup directory of one environment: files named by date, each with its metadata beside it.
//!
//! `backup_YYYYMMDD.dump` is the backup, `….dump.json` its metadata (readable without decryption),
//! `….dump.verified.json` the result of its verification. Dates are UTC. A second backup of a day is
//! `backup_YYYYMMDD-2.dump`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use textnlp_files::{Hashing, Lock, Replace, sync_folder};
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::manifest::Base;
use super::{EncryptionKind, Error, Log};

/// The most backups of one day: more than one a minute.
const PER_DAY_MAX: u32 = 2000;
/// The most bytes of a metadata file.
const BESIDE_MAX: u64 = 64 << 10;

/// The metadata of a backup, readable without decryption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFacts {
    /// The format version of this document.
    pub format: u32,
    /// The environment.
    pub environment: EnvironmentName,
    /// The lineage of the deployment.
    pub lineage: Lineage,
    /// When it was taken.
    pub at: Timestamp,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// How it is encrypted.
    pub sealed: EncryptionKind,
    /// The public keys it is encrypted to.
    pub recipients: Vec<String>,
    /// Whether it includes the models' content.
    pub models: bool,
    /// Whether the schedule took it.
    pub scheduled: bool,
    /// Name and version of the program that took it.
    pub tool: String,
    /// The base backup that its archived log continues from, by site.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bases: BTreeMap<SiteName, Base>,
}

/// The result of a verification: a trial restore of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationResult {
    /// The format version of this document.
    pub format: u32,
    /// When it ended.
    pub at: Timestamp,
    /// The SHA-256 of the backup that was read.
    pub sha256: String,
    /// Whether the deployment was restored.
    pub ok: bool,
    /// How deep the verification went: `answered` (a server answered a request with a restored key) or `keys` (the
    /// restored keys equal the stored ones).
    pub level: String,
    /// The result in a sentence.
    pub says: String,
    /// Name and version of the program that verified it.
    pub tool: String,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// One backup in the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredBackup {
    /// Its path.
    pub file: Utf8PathBuf,
    /// Its length on disk, in bytes.
    pub bytes: u64,
    /// Its metadata; `None` for a file that was copied here by hand.
    pub facts: Option<BackupFacts>,
    /// The last verification, if it verified exactly this file.
    pub proof: Option<VerificationResult>,
}

impl StoredBackup {
    /// Whether the last verification of this file succeeded.
    pub fn is_proven(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.ok)
    }
}

/// A backup directory.
#[derive(Debug, Clone)]
pub struct BackupDirectory {
    folder: Utf8PathBuf,
}

impl BackupDirectory {
    /// The backup directory at this path; the first backup creates it.
    pub fn at(folder: impl Into<Utf8PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Its path.
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// The archived logs in the directory.
    pub fn logs(&self) -> Result<Vec<Log>, Error> {
        Log::all(&self.folder)
    }

    /// Creates a backup that `fill` writes. A killed run leaves no partial file under a backup's name.
    pub fn put(
        &self,
        facts: impl FnOnce(u64, String) -> BackupFacts,
        at: Timestamp,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<StoredBackup, Error> {
        let _held = self.held()?;
        self.tidy()?;
        let new = self.folder.join(format!("{UNFINISHED}{}", std::process::id()));
        let written = self.write(&new, fill).and_then(|(bytes, sha256)| {
            let file = self.free_name(at)?;
            let facts = facts(bytes, sha256);
            // The metadata is written before the backup gets its name: a backup without metadata would never be pruned.
            put_document(&sibling_file(&file, FACTS), &facts)?;
            std::fs::rename(&new, &file).map_err(Error::io("name", file.as_path()))?;
            sync_folder(&self.folder)?;
            Ok(StoredBackup { file, bytes, facts: Some(facts), proof: None })
        });
        if written.is_err() {
            remove(&new)?;
        }
        written
    }

    fn write(
        &self,
        new: &Utf8Path,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<(u64, String), Error> {
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(new).map_err(Error::io("make", new))?;
        let mut hashing = Hashing::new(BufWriter::with_capacity(256 << 10, file));
        fill(&mut hashing)?;
        let (to, digest) = hashing.finish();
        let file = to.into_inner().map_err(|error| Error::io("write", new)(error.into_error()))?;
        file.sync_all().map_err(Error::io("write", new))?;
        Ok((digest.bytes, digest.hex()))
    }

    fn free_name(&self, at: Timestamp) -> Result<Utf8PathBuf, Error> {
        let day = at.strftime("%Y%m%d").to_string();
        (1..=PER_DAY_MAX)
            .map(|number| match number {
                1 => self.folder.join(format!("backup_{day}.dump")),
                _ => self.folder.join(format!("backup_{day}-{number}.dump")),
            })
            .find(|path| std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
            .ok_or_else(|| Error::io("name", self.folder.as_path())(io::ErrorKind::AlreadyExists.into()))
    }

    /// The lock: one process at a time creates and prunes backups.
    fn held(&self) -> Result<Lock, Error> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(Error::io("make folder", self.folder.as_path()))?;
        let path = self.folder.join(".lock");
        let held = Lock::try_exclusive(&path, 0o600)?;
        held.ok_or_else(|| Error::Busy { folder: self.folder.clone() })
    }

    /// Removes what killed runs left. The lock is held, so no other process is writing.
    fn tidy(&self) -> Result<(), Error> {
        for name in self.names()? {
            if name.starts_with(UNFINISHED) {
                remove(&self.folder.join(name))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = match self.folder.read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", self.folder.as_path())(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(Error::io("list", self.folder.as_path()))?.file_name().to_owned());
        }
        Ok(names)
    }

    /// Every backup, newest first.
    pub fn list(&self) -> Result<Vec<StoredBackup>, Error> {
        let mut dumps: Vec<(String, u32, StoredBackup)> = Vec::new();
        for name in self.names()? {
            let Some((day, number)) = day_of(&name) else { continue };
            let file = self.folder.join(&name);
            // Another process may have removed it meanwhile.
            let Ok(found) = std::fs::symlink_metadata(&file) else { continue };
            if found.is_file() {
                dumps.push((day, number, Self::known(&file, found.len())));
            }
        }
        let when = |dump: &StoredBackup| dump.facts.as_ref().map(|facts| facts.at);
        dumps.sort_by(|a, b| (&b.0, when(&b.2), b.1).cmp(&(&a.0, when(&a.2), a.1)));
        Ok(dumps.into_iter().map(|(_, _, dump)| dump).collect())
    }

    /// The metadata of a backup at any path.
    pub fn known(file: &Utf8Path, bytes: u64) -> StoredBackup {
        let facts: Option<BackupFacts> =
            document(&sibling_file(file, FACTS)).filter(|facts: &BackupFacts| facts.bytes == bytes);
        let proof: Option<VerificationResult> = document(&sibling_file(file, PROOF));
        let proof = proof.filter(|proof| facts.as_ref().is_none_or(|facts| facts.sha256 == proof.sha256));
        StoredBackup { file: file.to_owned(), bytes, facts, proof }
    }

    /// Writes the result of a verification beside its backup.
    pub fn prove(file: &Utf8Path, proof: &VerificationResult) -> Result<Utf8PathBuf, Error> {
        let path = sibling_file(file, PROOF);
        put_document(&path, proof)?;
        Ok(path)
    }

    /// Removes backups with their metadata.
    pub fn remove(&self, dumps: &[StoredBackup]) -> Result<(), Error> {
        let _held = self.held()?;
        for dump in dumps {
            // The backup first: a killed run then leaves only a small file without effect.
            for path in [dump.file.clone(), sibling_file(&dump.file, FACTS), sibling_file(&dump.file, PROOF)] {
                remove(&path)?;
            }
        }
        Ok(sync_folder(&self.folder)?)
    }
}

const FACTS: &str = "json";
const PROOF: &str = "verified.json";
const UNFINISHED: &str = ".unfinished-";

/// The backups that may be pruned: older than `keep`, of this lineage, taken by this program, and neither the newest
/// nor the newest verified one.
pub fn removable(dumps: &[StoredBackup], lineage: Lineage, keep: Duration, now: Timestamp) -> Vec<StoredBackup> {
    let at = |dump: &StoredBackup| dump.facts.as_ref().filter(|facts| facts.lineage == lineage).map(|facts| facts.at);
    let newest = dumps.iter().filter(|dump| at(dump).is_some()).max_by_key(|dump| at(dump));
    let proven = dumps.iter().filter(|dump| dump.is_proven() && at(dump).is_some()).max_by_key(|dump| at(dump));
    let stays = |dump: &StoredBackup| [newest, proven].into_iter().flatten().any(|kept| kept.file == dump.file);
    let is_old = |at: Timestamp| now.duration_since(at).unsigned_abs() > keep && at < now;
    dumps.iter().filter(|dump| at(dump).is_some_and(is_old) && !stays(dump)).cloned().collect()
}

/// The date and the number in a backup's name; `None` for any other name.
fn day_of(name: &str) -> Option<(String, u32)> {
    let stem = name.strip_prefix("backup_")?.strip_suffix(".dump")?;
    let (day, number) = match stem.split_once('-') {
        Some((day, number)) => (day, number.parse().ok().filter(|n| *n >= 2)?),
        None => (stem, 1),
    };
    (day.len() == 8 && day.bytes().all(|b| b.is_ascii_digit())).then(|| (day.to_owned(), number))
}

fn sibling_file(file: &Utf8Path, ending: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{file}.{ending}"))
}

/// `None` for a document that does not exist or cannot be read.
pub(super) fn document<T: DeserializeOwned>(path: &Utf8Path) -> Option<T> {
    serde_json::from_slice(&beside(path)?).ok()
}

/// A small file beside a backup; `None` if it does not exist or cannot be read.
pub(super) fn beside(path: &Utf8Path) -> Option<Vec<u8>> {
    let found = std::fs::symlink_metadata(path).ok().filter(|found| found.is_file() && found.len() <= BESIDE_MAX)?;
    std::fs::read(path).ok().filter(|bytes| bytes.len() as u64 <= found.len().max(1))
}

pub(super) fn put_document(path: &Utf8Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(value).expect("the record of a backup is plain data");
    Ok(Replace::private().write(path, &bytes)?)
}

pub(super) fn remove(path: &Utf8Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
