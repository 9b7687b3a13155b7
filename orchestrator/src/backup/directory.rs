//! The backup directory of one environment: files named by date, each with its metadata beside it, in a folder or in a
//! bucket.
//!
//! `backup_YYYYMMDD.dump` is the backup, `….dump.json` its metadata (readable without decryption),
//! `….dump.verified.json` the result of its verification. Dates are UTC. A second backup of a day is
//! `backup_YYYYMMDD-2.dump`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::sync::Arc;
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
pub(super) const BESIDE_MAX: u64 = 64 << 10;

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
    /// Its path, or its address in a bucket.
    pub file: Utf8PathBuf,
    /// Its stored length, in bytes.
    pub bytes: u64,
    /// Its metadata; `None` for a file that was copied here by hand.
    pub facts: Option<BackupFacts>,
    /// The last verification, if it verified exactly this file, or failed.
    pub proof: Option<VerificationResult>,
}

impl StoredBackup {
    /// Whether the last verification of this file succeeded.
    pub fn is_proven(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.ok)
    }
}

/// Where the files of a backup directory are: what a folder and a bucket do differently.
pub(super) trait Place: fmt::Debug + Send + Sync {
    /// Its path or address.
    fn at(&self) -> &Utf8Path;

    /// The names in it; with its length, if it is a file.
    fn names(&self) -> Result<Vec<(String, Option<u64>)>, Error>;

    /// Small files, in order; `None` for one that does not exist.
    fn documents(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error>;

    /// Writes a small file, in place of an earlier one.
    fn put_document(&self, name: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Reserves the name of a backup by its metadata; `false` if another writer has it.
    fn claim(&self, record: &str, bytes: &[u8]) -> Result<bool, Error>;

    /// Gives a whole file of this machine a name that was claimed.
    fn publish(&self, whole: &Utf8Path, name: &str) -> Result<(), Error>;

    /// Removes a file. Returns why it is retained, if the place refuses to remove it.
    fn remove(&self, name: &str) -> Result<Option<String>, Error>;

    /// A backup as a file of this machine: itself, or a copy with its metadata in `folder`.
    fn fetch(&self, name: &str, folder: &Utf8Path) -> Result<Utf8PathBuf, Error>;

    /// Removes what killed runs left there.
    fn tidy(&self, now: Timestamp) -> Result<(), Error>;
}

/// A folder of this machine. Its lock is held where something changes.
#[derive(Debug)]
struct LocalFolder(Utf8PathBuf);

impl Place for LocalFolder {
    fn at(&self) -> &Utf8Path {
        &self.0
    }

    fn names(&self) -> Result<Vec<(String, Option<u64>)>, Error> {
        // Another process may remove a file meanwhile.
        let found = |name: String| Some((std::fs::symlink_metadata(self.0.join(&name)).ok()?, name));
        let length = |(found, name): (std::fs::Metadata, String)| (name, found.is_file().then_some(found.len()));
        Ok(names(&self.0)?.into_iter().filter_map(found).map(length).collect())
    }

    fn documents(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        Ok(names.iter().map(|name| beside(&self.0.join(name))).collect())
    }

    fn put_document(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        Ok(Replace::private().write(self.0.join(name), bytes)?)
    }

    /// The lock is held: metadata without a backup is what a killed run left.
    fn claim(&self, record: &str, bytes: &[u8]) -> Result<bool, Error> {
        self.put_document(record, bytes).map(|()| true)
    }

    fn publish(&self, whole: &Utf8Path, name: &str) -> Result<(), Error> {
        let file = self.0.join(name);
        std::fs::rename(whole, &file).map_err(Error::io("name", file.as_path()))?;
        Ok(sync_folder(&self.0)?)
    }

    fn remove(&self, name: &str) -> Result<Option<String>, Error> {
        remove(&self.0.join(name)).map(|()| None)
    }

    fn fetch(&self, name: &str, _folder: &Utf8Path) -> Result<Utf8PathBuf, Error> {
        Ok(self.0.join(name))
    }

    fn tidy(&self, _now: Timestamp) -> Result<(), Error> {
        Ok(())
    }
}

/// A backup directory.
#[derive(Debug, Clone)]
pub struct BackupDirectory {
    /// The folder of this machine in which a backup is written before it gets its name.
    workplace: Utf8PathBuf,
    place: Arc<dyn Place>,
    is_folder: bool,
}

impl BackupDirectory {
    /// The backup directory at this path; the first backup creates it.
    pub fn at(folder: impl Into<Utf8PathBuf>) -> Self {
        let workplace = folder.into();
        Self { place: Arc::new(LocalFolder(workplace.clone())), workplace, is_folder: true }
    }

    /// A backup directory elsewhere. Backups are written to `workplace`, a folder of this machine, before they are published.
    pub(super) fn elsewhere(place: Arc<dyn Place>, workplace: Utf8PathBuf) -> Self {
        Self { workplace, place, is_folder: false }
    }

    /// Its path, or its address in a bucket.
    pub fn folder(&self) -> &Utf8Path {
        self.place.at()
    }

    /// The archived logs in the directory. A bucket has none.
    pub fn logs(&self) -> Result<Vec<Log>, Error> {
        if self.is_folder { Log::all(&self.workplace) } else { Ok(Vec::new()) }
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
        self.place.tidy(at)?;
        let new = self.workplace.join(format!("{UNFINISHED}{}", std::process::id()));
        let written = self.write(&new, fill).and_then(|(bytes, sha256)| {
            let facts = facts(bytes, sha256);
            // The metadata is written before the backup gets its name: a backup without metadata would never be pruned.
            let name = self.claimed_name(at, &facts)?;
            self.place.publish(&new, &name)?;
            Ok(StoredBackup { file: self.place.at().join(name), bytes, facts: Some(facts), proof: None })
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

    /// The first free name of the day, reserved by the metadata.
    fn claimed_name(&self, at: Timestamp, facts: &BackupFacts) -> Result<String, Error> {
        let day = at.strftime("%Y%m%d").to_string();
        let taken: BTreeSet<String> = self.place.names()?.into_iter().map(|(name, _)| name).collect();
        let record = document_bytes(facts);
        for number in 1..=PER_DAY_MAX {
            let name = match number {
                1 => format!("backup_{day}.dump"),
                _ => format!("backup_{day}-{number}.dump"),
            };
            // In a bucket, metadata alone is an upload that did not end; in a folder, what a killed run left.
            let is_taken = taken.contains(&name) || !self.is_folder && taken.contains(&format!("{name}.{FACTS}"));
            if !is_taken && self.place.claim(&format!("{name}.{FACTS}"), &record)? {
                return Ok(name);
            }
        }
        Err(Error::io("name", self.place.at())(io::ErrorKind::AlreadyExists.into()))
    }

    /// The lock: one process of this machine at a time creates and prunes backups.
    fn held(&self) -> Result<Lock, Error> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.workplace)
            .map_err(Error::io("make folder", self.workplace.as_path()))?;
        let path = self.workplace.join(".lock");
        let held = Lock::try_exclusive(&path, 0o600)?;
        held.ok_or_else(|| Error::Busy { folder: self.place.at().to_owned() })
    }

    /// Removes what killed runs left. The lock is held, so no other process is writing.
    fn tidy(&self) -> Result<(), Error> {
        for name in names(&self.workplace)? {
            if name.starts_with(UNFINISHED) {
                remove(&self.workplace.join(name))?;
            }
        }
        Ok(())
    }

    /// Every backup, newest first.
    pub fn list(&self) -> Result<Vec<StoredBackup>, Error> {
        let names = self.place.names()?;
        let there: BTreeSet<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        let found: Vec<(String, u32, &str, u64)> = names
            .iter()
            .filter_map(|(name, bytes)| {
                let (day, number) = day_of(name)?;
                Some((day, number, name.as_str(), (*bytes)?))
            })
            .collect();
        let beside = |(_, _, name, _): &(String, u32, &str, u64)| [FACTS, PROOF].map(|end| format!("{name}.{end}"));
        let mut records: Vec<String> = found.iter().flat_map(beside).collect();
        records.retain(|record| there.contains(record.as_str()));
        let read = self.place.documents(&records)?;
        let mut documents: BTreeMap<String, Option<Vec<u8>>> = records.into_iter().zip(read).collect();
        let mut dumps: Vec<(String, u32, StoredBackup)> = Vec::new();
        for (day, number, name, bytes) in found {
            let [facts, proof] = [FACTS, PROOF].map(|end| documents.remove(&format!("{name}.{end}")).flatten());
            dumps.push((day, number, described(self.place.at().join(name), bytes, facts, proof)));
        }
        let when = |dump: &StoredBackup| dump.facts.as_ref().map(|facts| facts.at);
        dumps.sort_by(|a, b| (&b.0, when(&b.2), b.1).cmp(&(&a.0, when(&a.2), a.1)));
        Ok(dumps.into_iter().map(|(_, _, dump)| dump).collect())
    }

    /// The metadata of a backup at any path.
    pub fn known(file: &Utf8Path, bytes: u64) -> StoredBackup {
        let [facts, proof] = [FACTS, PROOF].map(|ending| beside(&sibling_file(file, ending)));
        described(file.to_owned(), bytes, facts, proof)
    }

    /// The path or address that a backup of this name has here; `None` for a name of something else, and if it is not in
    /// the folder.
    pub fn named(&self, name: &str) -> Option<Utf8PathBuf> {
        let file = self.place.at().join(name);
        match self.is_folder {
            true => file.is_file().then_some(file),
            false => day_of(name).map(|_| file),
        }
    }

    /// The name of a backup in this directory.
    fn name_of<'f>(&self, file: &'f Utf8Path) -> Option<&'f str> {
        let name = file.as_str().strip_prefix(self.place.at().as_str())?.strip_prefix('/')?;
        day_of(name).map(|_| name)
    }

    /// Whether a backup is in this directory and not on this machine.
    pub fn is_elsewhere(&self, file: &Utf8Path) -> bool {
        !self.is_folder && self.name_of(file).is_some()
    }

    /// A backup as a file of this machine: itself, or a copy with its metadata in `folder`.
    pub fn fetch(&self, file: &Utf8Path, folder: &Utf8Path) -> Result<Utf8PathBuf, Error> {
        match self.name_of(file) {
            Some(name) => self.place.fetch(name, folder),
            None => Ok(file.to_owned()),
        }
    }

    /// Writes the result of a verification beside its backup.
    pub fn prove(&self, file: &Utf8Path, proof: &VerificationResult) -> Result<(), Error> {
        let Some(name) = self.name_of(file) else {
            return put_document(&sibling_file(file, PROOF), proof);
        };
        let record = format!("{name}.{PROOF}");
        let says_the_same = || {
            let there = self.place.documents(std::slice::from_ref(&record)).ok()?.pop().flatten()?;
            let there: VerificationResult = serde_json::from_slice(&there).ok()?;
            Some(there.ok && proof.ok && there.sha256 == proof.sha256)
        };
        self.place.put_document(&record, &document_bytes(proof)).or_else(|error| {
            // A bucket may retain the earlier result: the same one has nothing to add.
            if says_the_same() == Some(true) { Ok(()) } else { Err(error) }
        })?;
        // The backup may have been removed while it was verified.
        if self.place.names()?.iter().all(|(there, _)| there != name) {
            self.place.remove(&record)?;
        }
        Ok(())
    }

    /// Removes backups of this directory with their metadata. Returns those that the place retains, with the reason.
    pub fn remove(&self, dumps: &[StoredBackup]) -> Result<BTreeMap<Utf8PathBuf, String>, Error> {
        let _held = self.held()?;
        let mut kept = BTreeMap::new();
        for dump in dumps {
            let Some(name) = dump.file.file_name() else { continue };
            // The backup first: a killed run then leaves only a small file without effect.
            if let Some(why) = self.place.remove(name)? {
                kept.insert(dump.file.clone(), why);
                continue;
            }
            // What a killed run leaves is found by its metadata, so that goes last.
            for ending in [PROOF, FACTS] {
                self.place.remove(&format!("{name}.{ending}"))?;
            }
        }
        sync_folder(&self.workplace)?;
        Ok(kept)
    }
}

pub(super) const FACTS: &str = "json";
pub(super) const PROOF: &str = "verified.json";
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

/// The name of the backup that a file with metadata describes; `None` for any other name.
pub(super) fn backup_of(record: &str) -> Option<&str> {
    record.strip_suffix(FACTS)?.strip_suffix('.').filter(|name| day_of(name).is_some())
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

/// A backup with what is recorded beside it.
fn described(file: Utf8PathBuf, bytes: u64, facts: Option<Vec<u8>>, proof: Option<Vec<u8>>) -> StoredBackup {
    let facts: Option<BackupFacts> =
        facts.and_then(|text| serde_json::from_slice(&text).ok()).filter(|facts: &BackupFacts| facts.bytes == bytes);
    let proof: Option<VerificationResult> = proof.and_then(|text| serde_json::from_slice(&text).ok());
    // One that failed may have read another content than was written: the file is damaged.
    let is_of_this = |proof: &VerificationResult| facts.as_ref().is_none_or(|facts| facts.sha256 == proof.sha256);
    let proof = proof.filter(|proof| !proof.ok || is_of_this(proof));
    StoredBackup { file, bytes, facts, proof }
}

/// The names in a folder; none if it does not exist.
pub(super) fn names(folder: &Utf8Path) -> Result<Vec<String>, Error> {
    let entries = match folder.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    entries.map(|entry| Ok(entry.map_err(Error::io("list", folder))?.file_name().to_owned())).collect()
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

fn document_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("the record of a backup is plain data")
}

pub(super) fn put_document(path: &Utf8Path, value: &impl Serialize) -> Result<(), Error> {
    Ok(Replace::private().write(path, &document_bytes(value))?)
}

pub(super) fn remove(path: &Utf8Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
