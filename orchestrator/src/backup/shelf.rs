//! The folder where copies of one environment lie: named by the day, each with what is known of it beside it.
//!
//! `backup_YYYYMMDD.dump` is the copy, `….dump.json` what may be known without opening it, `….dump.verified.json` the proof that it was
//! restored. Days are UTC. A second copy of a day is `backup_YYYYMMDD-2.dump`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::manifest::Base;
use super::{Error, Log};

/// Copies of one day: one a minute has room.
const PER_DAY_MAX: u32 = 2000;
/// What is written beside a copy is small.
const BESIDE_MAX: u64 = 64 << 10;

/// What is known of a copy without opening it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The version of this document.
    pub format: u32,
    /// Which environment.
    pub environment: EnvironmentName,
    /// Which deployment.
    pub lineage: Lineage,
    /// When it was made.
    pub at: Timestamp,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// `keys`, `passphrase` or `plain`.
    pub sealed: String,
    /// The public halves of the keys that open it.
    pub recipients: Vec<String>,
    /// Whether the models' content is in it.
    pub models: bool,
    /// Whether the schedule made it.
    pub scheduled: bool,
    /// Name and version of the program that made it.
    pub tool: String,
    /// From where its archived log goes on, by site.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bases: BTreeMap<SiteName, Base>,
}

/// That a copy was restored, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The version of this document.
    pub format: u32,
    /// When.
    pub at: Timestamp,
    /// The SHA-256 of the copy that was read.
    pub sha256: String,
    /// Whether it brought the deployment back.
    pub ok: bool,
    /// How far the proof went: `answered` (a server answered a restored key with text) or `keys` (the restored keys are the stored
    /// ones).
    pub level: String,
    /// What was seen, in a sentence.
    pub says: String,
    /// Name and version of the program that proved it.
    pub tool: String,
    /// How long it took.
    pub milliseconds: u64,
}

/// One copy on the shelf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dump {
    /// Where it lies.
    pub file: Utf8PathBuf,
    /// Its length on the disk.
    pub bytes: u64,
    /// What is known of it; `None` for a file that was brought here by hand.
    pub facts: Option<Facts>,
    /// The last proof, if it is of this very file.
    pub proof: Option<Proof>,
}

impl Dump {
    /// Whether it was proven to bring the deployment back.
    pub fn is_proven(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.ok)
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: Utf8PathBuf,
}

impl Shelf {
    /// A shelf in this folder, which is made with the first copy.
    pub fn at(folder: impl Into<Utf8PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// The archived logs that lie beside the copies.
    pub fn logs(&self) -> Result<Vec<Log>, Error> {
        Log::all(&self.folder)
    }

    /// Puts a copy there that `fill` writes. Killed anywhere, nothing half-written has a copy's name.
    pub fn put(
        &self,
        facts: impl FnOnce(u64, String) -> Facts,
        at: Timestamp,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<Dump, Error> {
        let _held = self.held()?;
        self.tidy()?;
        let new = self.folder.join(format!("{UNFINISHED}{}", std::process::id()));
        let written = self.write(&new, fill).and_then(|(bytes, sha256)| {
            let file = self.free_name(at)?;
            let facts = facts(bytes, sha256);
            // Before the copy has its name: a copy that nobody knows anything of would never be let go.
            put_document(&beside(&file, FACTS), &facts)?;
            std::fs::rename(&new, &file).map_err(Error::io("name", file.as_path()))?;
            flush(&self.folder)?;
            Ok(Dump { file, bytes, facts: Some(facts), proof: None })
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
        let mut counting = Counting { to: BufWriter::with_capacity(256 << 10, file), hash: Sha256::new(), bytes: 0 };
        fill(&mut counting)?;
        let Counting { to, hash, bytes } = counting;
        let file = to.into_inner().map_err(|error| Error::io("write", new)(error.into_error()))?;
        file.sync_all().map_err(Error::io("write", new))?;
        Ok((bytes, hex::encode(hash.finalize())))
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

    /// One run at a time makes and removes copies.
    fn held(&self) -> Result<File, Error> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(Error::io("make folder", self.folder.as_path()))?;
        let path = self.folder.join(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("open", path.as_path()))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::Busy { folder: self.folder.clone() }),
            Err(std::fs::TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
        }
    }

    /// Removes what killed runs left. The lock is held: nobody is writing one.
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

    /// Every copy, newest first.
    pub fn list(&self) -> Result<Vec<Dump>, Error> {
        let mut dumps: Vec<(String, u32, Dump)> = Vec::new();
        for name in self.names()? {
            let Some((day, number)) = day_of(&name) else { continue };
            let file = self.folder.join(&name);
            // One that was removed meanwhile is not there.
            let Ok(found) = std::fs::symlink_metadata(&file) else { continue };
            if found.is_file() {
                dumps.push((day, number, Self::known(&file, found.len())));
            }
        }
        let when = |dump: &Dump| dump.facts.as_ref().map(|facts| facts.at);
        dumps.sort_by(|a, b| (&b.0, when(&b.2), b.1).cmp(&(&a.0, when(&a.2), a.1)));
        Ok(dumps.into_iter().map(|(_, _, dump)| dump).collect())
    }

    /// What is known of a copy, wherever it lies.
    pub fn known(file: &Utf8Path, bytes: u64) -> Dump {
        let facts: Option<Facts> = document(&beside(file, FACTS)).filter(|facts: &Facts| facts.bytes == bytes);
        let proof: Option<Proof> = document(&beside(file, PROOF));
        let proof = proof.filter(|proof| facts.as_ref().is_none_or(|facts| facts.sha256 == proof.sha256));
        Dump { file: file.to_owned(), bytes, facts, proof }
    }

    /// Writes a proof beside its copy.
    pub fn prove(file: &Utf8Path, proof: &Proof) -> Result<Utf8PathBuf, Error> {
        let path = beside(file, PROOF);
        put_document(&path, proof)?;
        Ok(path)
    }

    /// Removes copies with what lies beside them.
    pub fn remove(&self, dumps: &[Dump]) -> Result<(), Error> {
        let _held = self.held()?;
        for dump in dumps {
            // The copy first: what is left after a kill is a small file that says nothing about anything.
            for path in [dump.file.clone(), beside(&dump.file, FACTS), beside(&dump.file, PROOF)] {
                remove(&path)?;
            }
        }
        flush(&self.folder)
    }
}

const FACTS: &str = "json";
const PROOF: &str = "verified.json";
const UNFINISHED: &str = ".unfinished-";

/// Which copies may go: older than `keep`, of this deployment, made by us, and neither the newest nor the newest proven one.
pub fn removable(dumps: &[Dump], lineage: Lineage, keep: Duration, now: Timestamp) -> Vec<Dump> {
    let at = |dump: &Dump| dump.facts.as_ref().filter(|facts| facts.lineage == lineage).map(|facts| facts.at);
    let newest = dumps.iter().filter(|dump| at(dump).is_some()).max_by_key(|dump| at(dump));
    let proven = dumps.iter().filter(|dump| dump.is_proven() && at(dump).is_some()).max_by_key(|dump| at(dump));
    let stays = |dump: &Dump| [newest, proven].into_iter().flatten().any(|kept| kept.file == dump.file);
    let is_old = |at: Timestamp| now.duration_since(at).unsigned_abs() > keep && at < now;
    dumps.iter().filter(|dump| at(dump).is_some_and(is_old) && !stays(dump)).cloned().collect()
}

/// The day and the number in a copy's name; `None` for any other name.
fn day_of(name: &str) -> Option<(String, u32)> {
    let stem = name.strip_prefix("backup_")?.strip_suffix(".dump")?;
    let (day, number) = match stem.split_once('-') {
        Some((day, number)) => (day, number.parse().ok().filter(|n| *n >= 2)?),
        None => (stem, 1),
    };
    (day.len() == 8 && day.bytes().all(|b| b.is_ascii_digit())).then(|| (day.to_owned(), number))
}

fn beside(file: &Utf8Path, ending: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{file}.{ending}"))
}

/// A document that is not there or cannot be read says nothing.
pub(super) fn document<T: DeserializeOwned>(path: &Utf8Path) -> Option<T> {
    let found = std::fs::symlink_metadata(path).ok().filter(|found| found.is_file() && found.len() <= BESIDE_MAX)?;
    let bytes = std::fs::read(path).ok().filter(|bytes| bytes.len() as u64 <= found.len().max(1))?;
    serde_json::from_slice(&bytes).ok()
}

pub(super) fn put_document(path: &Utf8Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(value).expect("what is known of a copy is plain data");
    let new = Utf8PathBuf::from(format!("{path}.new"));
    let fails = || Error::io("write", path);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(fails())?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(fails())?;
    std::fs::rename(&new, path).map_err(fails())?;
    path.parent().map_or(Ok(()), flush)
}

pub(super) fn flush(folder: &Utf8Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("flush", folder))
}

pub(super) fn remove(path: &Utf8Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Hashes and counts what goes by.
struct Counting<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
