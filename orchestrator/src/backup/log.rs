//! The archived write-ahead log of a PostgreSQL: it extends a backup's base to any later point in time.
//!
//! It is stored in `log/SYSTEM/` in the backup directory. SYSTEM is PostgreSQL's system identifier. A restored database
//! gets a new one, so it never writes into the log of its origin. A segment is `NAME.age`, encrypted like backups and
//! without the zeros at its end. `NAME.json` is its metadata, readable without decryption, and `NAME.json.minisig` the
//! signature of that by the environment's key. Names include the timeline.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::str::FromStr;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use textnlp_bundle::{PublicKey, SecretKey, sign_bytes, signature_of, verify_bytes};
use textnlp_files::{Replace, sync_folder};
use textnlp_provider::{EnvironmentName, Lineage};

use super::directory::{beside, document, names, put_document, remove};
use super::manifest::{Base, shown};
use super::seal::{Decryptor, EncryptionMode, opened};
use super::{Error, StoredBackup};

/// The folder of all logs, in the backup directory.
const FOLDER: &str = "log";
const SEALED: &str = "age";
const FACTS: &str = "json";
const UNFINISHED: &str = ".unfinished-";
/// The longest segment, in bytes. Other builds of PostgreSQL allow more; the managed one uses 16 MiB.
pub const PART_MAX: u64 = 64 << 20;
/// The supervisor's mark in the log, see `server/sites/src/postgres/archive.rs`.
const MARK: &[u8] = b"textnlp-mark\0";
/// A point in time as text.
const MARK_MAX: usize = 40;

/// The name of an archived file, assigned by PostgreSQL: 24 hexadecimal digits for a segment (timeline, number),
/// `….history` of a timeline, `….backup` of a base backup, or `….partial` that a promotion leaves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SegmentName(String);

impl FromStr for SegmentName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let (stem, ending) = text.split_once('.').map_or((text, None), |(stem, ending)| (stem, Some(ending)));
        let is = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
        };
        let is_name = match ending {
            None | Some("partial") => is(stem, 24),
            Some("history") => is(stem, 8),
            Some(ending) => is(stem, 24) && ending.strip_suffix(".backup").is_some_and(|at| is(at, 8)),
        };
        if is_name {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::NoPart(format!("`{}` is not a WAL segment of PostgreSQL", shown(text))))
        }
    }
}

impl TryFrom<String> for SegmentName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<SegmentName> for String {
    fn from(name: SegmentName) -> Self {
        name.0
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SegmentName {
    /// The name of a whole segment.
    fn whole(timeline: u32, number: u64, part_bytes: u64) -> Self {
        let per_file = (1u64 << 32) / part_bytes.max(1);
        Self(format!("{timeline:08X}{:08X}{:08X}", number / per_file, number % per_file))
    }

    /// Whether it is a whole segment.
    pub fn is_whole(&self) -> bool {
        self.0.len() == 24
    }

    fn timeline(&self) -> u32 {
        u32::from_str_radix(&self.0[..8], 16).unwrap_or_default()
    }

    /// Its position in the log, in segments; `None` for a history file.
    pub fn number(&self, part_bytes: u64) -> Option<u64> {
        let is_length = part_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&part_bytes);
        let hexadecimal = |range| self.0.get(range).and_then(|text: &str| u64::from_str_radix(text, 16).ok());
        let (high, low) = (hexadecimal(8..16)?, hexadecimal(16..24)?);
        let per_file = is_length.then(|| (1u64 << 32) / part_bytes)?;
        (low < per_file).then_some(high * per_file + low)
    }
}

/// The metadata of a segment, readable without decryption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentFacts {
    /// The format version of this document.
    pub format: u32,
    /// Its length in PostgreSQL's folder, in bytes.
    pub bytes: u64,
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// When it was archived.
    pub at: Timestamp,
    /// Every transaction committed before this time is in it or in an earlier segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A decrypted segment, as it is archived: most of a quiet database's segment is zeros at its end.
pub struct Segment {
    content: Vec<u8>,
    bytes: usize,
}

impl Segment {
    /// Its size in memory, in bytes.
    pub fn held(&self) -> usize {
        self.content.len()
    }

    /// The segment as it was in PostgreSQL's folder.
    pub fn whole(mut self) -> Vec<u8> {
        self.content.resize(self.bytes, 0);
        self.content
    }

    fn sha256(&self) -> String {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut hash = Sha256::new_with_prefix(&self.content);
        let mut left = self.bytes - self.content.len();
        while left > 0 {
            let now = left.min(ZEROS.len());
            hash.update(&ZEROS[..now]);
            left -= now;
        }
        hex::encode(hash.finalize())
    }
}

/// The owner of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The format version of this document.
    pub format: u32,
    /// The environment.
    pub environment: EnvironmentName,
    /// The lineage of the deployment.
    pub lineage: Lineage,
}

/// How segments are archived.
pub struct ArchiveOptions<'a> {
    /// The owner of the log.
    pub header: &'a Header,
    /// How segments are encrypted.
    pub seal: &'a EncryptionMode,
    /// Decrypts a segment whose metadata was lost.
    pub opener: &'a Decryptor,
    /// The key that signs segments.
    pub signer: &'a SecretKey,
}

/// The result of storing a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It was stored.
    New,
    /// It was already there with the same content.
    Same,
}

/// How far a log reaches from a base backup, without decryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogReach {
    /// The consecutive segments.
    pub parts: Vec<SegmentName>,
    /// The latest point in time that can be restored; `None` if no segment has one.
    pub until: Option<Timestamp>,
    /// The segment after the last one, if it is missing while later ones exist.
    pub missing: Option<SegmentName>,
}

/// The log of one database.
#[derive(Debug, Clone)]
pub struct Log {
    folder: Utf8PathBuf,
    system: String,
    signer: Option<PublicKey>,
}

impl Log {
    /// The log of a database in this backup directory.
    pub fn of(shelf: &Utf8Path, system: u64) -> Self {
        let system = system.to_string();
        Self { folder: shelf.join(FOLDER).join(&system), system, signer: None }
    }

    /// The same log, of which only segments that this key signed are read.
    #[must_use]
    pub fn signed_by(self, signer: PublicKey) -> Self {
        Self { signer: Some(signer), ..self }
    }

    /// Every log in this backup directory.
    pub(super) fn all(shelf: &Utf8Path) -> Result<Vec<Self>, Error> {
        let mut logs: Vec<Self> = names(&shelf.join(FOLDER))?
            .into_iter()
            .filter_map(|name| name.parse::<u64>().ok().filter(|system| system.to_string() == name))
            .map(|system| Self::of(shelf, system))
            .collect();
        logs.sort_by(|a, b| a.system.cmp(&b.system));
        Ok(logs)
    }

    /// The PostgreSQL system identifier.
    pub fn system(&self) -> &str {
        &self.system
    }

    /// Its path.
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// The header; `None` if it was lost.
    pub fn header(&self) -> Option<Header> {
        document(&self.folder.join("log.json"))
    }

    fn sealed(&self, name: &SegmentName) -> Utf8PathBuf {
        self.folder.join(format!("{name}.{SEALED}"))
    }

    fn facts(&self, name: &SegmentName) -> Utf8PathBuf {
        self.folder.join(format!("{name}.{FACTS}"))
    }

    /// Stores a segment, durably. A segment with the same content is left unchanged; one with other content is an
    /// error.
    pub fn put(
        &self,
        options: &ArchiveOptions<'_>,
        name: &SegmentName,
        content: &[u8],
        now: Timestamp,
    ) -> Result<StoreOutcome, Error> {
        let ArchiveOptions { header, seal, opener, signer } = *options;
        if content.len() as u64 > PART_MAX {
            return Err(Error::NoPart(format!(
                "{name} has {} bytes, which is not the size of an archived segment",
                content.len()
            )));
        }
        let until = if name.is_whole() { self.check(name, content)? } else { None };
        let (sealed, facts) = (self.sealed(name), self.facts(name));
        let known = SegmentFacts {
            format: 1,
            bytes: content.len() as u64,
            sha256: hex::encode(Sha256::digest(content)),
            at: now,
            // A time in the future comes from a clock that was set back, and is ignored.
            until: until.filter(|until| *until <= now),
        };
        if sealed.is_file() {
            let is_same = match document::<SegmentFacts>(&facts) {
                Some(there) => (there.bytes, &there.sha256) == (known.bytes, &known.sha256),
                None => trimmed(content) == self.open(name, opener)?,
            };
            if !is_same {
                return Err(Error::Taken { path: sealed });
            }
            // Metadata that is lost, of an earlier version, or of another process. Never that of other content: it would
            // make this segment damaged, and the other one `Same` the next time.
            if self.signed_facts(name, &signer.public().map_err(unsigned)?).is_err() {
                self.put_facts(name, &known, signer)?;
            }
            return Ok(StoreOutcome::Same);
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(Error::io("make folder", self.folder.as_path()))?;
        if self.header().as_ref() != Some(header) {
            put_document(&self.folder.join("log.json"), header)?;
            // The parent folders must be durable too.
            for folder in self.folder.ancestors().skip(1).take(2) {
                sync_folder(folder)?;
            }
        }
        // Before the segment gets its name: without metadata, segments cannot be distinguished.
        self.put_facts(name, &known, signer)?;
        let new = self.folder.join(format!("{UNFINISHED}{name}"));
        let written = write(&new, trimmed(content), seal)
            .and_then(|()| std::fs::rename(&new, &sealed).map_err(Error::io("name", sealed.as_path())))
            .and_then(|()| Ok(sync_folder(&self.folder)?));
        if written.is_err() {
            // The write may have failed because the disk is full.
            remove(&new)?;
        }
        written.map(|()| StoreOutcome::New)
    }

    /// Writes the metadata of a segment, and its signature.
    fn put_facts(&self, name: &SegmentName, known: &SegmentFacts, signer: &SecretKey) -> Result<(), Error> {
        let (facts, text) = (self.facts(name), serde_json::to_vec_pretty(known).expect("metadata is plain data"));
        let signature = sign_bytes(&text, signer, &self.signed_name(name)).map_err(unsigned)?;
        Replace::private().write(&facts, &text)?;
        Ok(Replace::private().write(signature_of(&facts), signature.as_bytes())?)
    }

    /// What a segment is signed as: a signature counts for no other segment, and for no other log.
    fn signed_name(&self, name: &SegmentName) -> String {
        format!("textnlp log segment {name} of {}", self.system)
    }

    /// The metadata of a segment, with a valid signature by this key.
    fn signed_facts(&self, name: &SegmentName, signer: &PublicKey) -> Result<SegmentFacts, Error> {
        let facts = self.facts(name);
        let path = signature_of(&facts);
        let damaged = |what: String| Error::Damaged { path: path.clone(), what };
        let signature = beside(&path).and_then(|text| String::from_utf8(text).ok());
        let signature = signature.ok_or_else(|| damaged("the signature of the segment is missing".to_owned()))?;
        let text = beside(&facts).unwrap_or_default();
        match verify_bytes(&text, &signature, signer) {
            Ok(what) if what == self.signed_name(name) => {}
            Ok(what) => return Err(damaged(format!("it is the signature of `{}`", shown(&what)))),
            Err(why) => return Err(damaged(format!("the signature does not match: {why}"))),
        }
        serde_json::from_slice(&text).map_err(|error| damaged(format!("what is signed is not metadata: {error}")))
    }

    /// Checks that the content matches the segment's name. Returns the last point in time that it vouches for.
    fn check(&self, name: &SegmentName, content: &[u8]) -> Result<Option<Timestamp>, Error> {
        let no = |why: &str| Error::NoPart(format!("{name} does not match its name: {why}"));
        let number = |at: usize, bytes: usize| -> u64 {
            content[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        // The long header of a segment's first page: magic, flags, timeline, address, rest (and padding), system
        // identifier, length.
        if content.len() < 8192 || number(2, 2) & 2 == 0 {
            return Err(no("its header is not that of a WAL segment"));
        }
        if number(24, 8).to_string() != self.system {
            return Err(no("it belongs to another database"));
        }
        if number(32, 4) != content.len() as u64 {
            return Err(no("it is not as long as it says"));
        }
        let at = name.number(content.len() as u64).map(|n| n * content.len() as u64);
        if at != Some(number(8, 8)) {
            return Err(no("it is another segment"));
        }
        Ok(last_mark(content))
    }

    /// A segment as it was in PostgreSQL's folder, with its signature verified if this log has a signer; `None` if it
    /// does not exist.
    pub fn get(&self, name: &SegmentName, opener: &Decryptor) -> Result<Option<Segment>, Error> {
        let sealed = self.sealed(name);
        if !sealed.is_file() {
            return Ok(None);
        }
        let known = match &self.signer {
            Some(signer) => Some(self.signed_facts(name, signer)?),
            None => document::<SegmentFacts>(&self.facts(name)),
        };
        let Some(known) = known else {
            return Err(Error::Damaged {
                path: self.facts(name),
                what: "its list does not describe the segment".to_owned(),
            });
        };
        let content = self.open(name, opener)?;
        if known.bytes > PART_MAX || content.len() as u64 > known.bytes {
            return Err(Error::Damaged { path: sealed, what: "it is longer than the archived segment".to_owned() });
        }
        let part = Segment { content, bytes: known.bytes as usize };
        if part.sha256() != known.sha256 {
            return Err(Error::Damaged { path: sealed, what: "it is not what was archived".to_owned() });
        }
        Ok(Some(part))
    }

    fn open(&self, name: &SegmentName, opener: &Decryptor) -> Result<Vec<u8>, Error> {
        let path = self.sealed(name);
        let file = File::open(&path).map_err(Error::io("open", path.as_path()))?;
        let mut content = Vec::new();
        let read = opened(&path, file, opener)?.take(PART_MAX + 1).read_to_end(&mut content);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::Truncated { path: path.clone(), what: "its end is missing".to_owned() }
            }
            io::ErrorKind::InvalidData => {
                Error::Damaged { path: path.clone(), what: format!("it cannot be decrypted: {error}") }
            }
            _ => Error::io("read", path.as_path())(error),
        })?;
        Ok(content)
    }

    /// The names of all segments.
    pub fn names(&self) -> Result<BTreeSet<SegmentName>, Error> {
        let files = names(&self.folder)?;
        Ok(files.iter().filter_map(|file| file.strip_suffix(".age")?.parse().ok()).collect())
    }

    /// A segment's metadata, without decryption; `None` if it was lost.
    pub fn known(&self, name: &SegmentName) -> Option<SegmentFacts> {
        document(&self.facts(name))
    }

    /// The disk space of all segments, in bytes.
    pub fn bytes(&self, names: &BTreeSet<SegmentName>) -> u64 {
        // A segment that was removed meanwhile takes no space.
        names.iter().filter_map(|name| std::fs::metadata(self.sealed(name)).ok()).map(|found| found.len()).sum()
    }

    /// The last point in time that any segment vouches for, from the newest ones.
    pub fn newest(&self, names: &BTreeSet<SegmentName>) -> Option<Timestamp> {
        last_said(self, names.iter().rev())
    }

    /// Removes segments with their metadata.
    pub fn remove(&self, names: &[SegmentName]) -> Result<(), Error> {
        for name in names {
            remove(&self.sealed(name))?;
            remove(&self.facts(name))?;
            remove(&signature_of(&self.facts(name)))?;
        }
        Ok(sync_folder(&self.folder)?)
    }
}

/// The supervisor marks each segment it ends. If none of this many has one, older ones are not checked.
const MARKED_SEGMENTS: usize = 64;

fn last_said<'a>(log: &Log, newest_first: impl Iterator<Item = &'a SegmentName>) -> Option<Timestamp> {
    newest_first.take(MARKED_SEGMENTS).filter_map(|name| log.known(name)?.until).max()
}

impl LogReach {
    /// How far a log with these segments reaches from a base backup.
    pub fn of(base: &Base, log: &Log, names: &BTreeSet<SegmentName>) -> Self {
        let mut reach = Self::along(base, names);
        reach.until = last_said(log, reach.parts.iter().rev()).filter(|until| *until >= base.from);
        reach
    }

    fn along(base: &Base, names: &BTreeSet<SegmentName>) -> Self {
        let mut reach = Self { parts: Vec::new(), until: None, missing: None };
        let Some(last) = base.last.number(base.part_bytes) else { return reach };
        let mut timeline = base.last.timeline();
        let whole: BTreeSet<(u64, u32)> = names
            .iter()
            .filter(|name| name.is_whole())
            .filter_map(|name| Some((name.number(base.part_bytes)?, name.timeline())))
            .collect();
        let is_born = |timeline: u32| names.contains(&SegmentName(format!("{timeline:08X}.history")));
        for number in last.. {
            // As PostgreSQL does: a later timeline continues where its first segment is.
            let here = whole.range((number, timeline.saturating_add(1))..=(number, u32::MAX));
            if let Some((_, later)) = here.rev().find(|(_, later)| is_born(*later)) {
                timeline = *later;
            }
            if whole.contains(&(number, timeline)) {
                reach.parts.push(SegmentName::whole(timeline, number, base.part_bytes));
            } else if number > last {
                let goes_on = whole.iter().any(|(later, of)| *later > number && *of >= timeline);
                reach.missing = goes_on.then(|| SegmentName::whole(timeline, number, base.part_bytes));
                break;
            }
            // The last segment of a base backup is included in the backup.
        }
        reach
    }

    /// The segments up to a point in time, with the one after it that shows where to stop.
    pub fn up_to(&self, log: &Log, moment: Timestamp) -> &[SegmentName] {
        // Each segment's metadata is a file, so this is a binary search. Between two marks of a busy database, many
        // segments have no time. A clock that was set back makes the result longer than needed, never shorter.
        let (mut from, mut to, mut end) = (0, self.parts.len(), self.parts.len());
        while from < to {
            let middle = from + (to - from) / 2;
            let middle_mark = (middle..to).find_map(|at| Some((at, log.known(&self.parts[at])?.until?)));
            match middle_mark {
                Some((at, until)) if until < moment => from = at + 1,
                Some((at, _)) => (to, end) = (middle, at + 1),
                None => to = middle,
            }
        }
        &self.parts[..end]
    }
}

/// The segments that may be pruned, given the backups that are retained. Everything that a retained base backup needs
/// is retained. In doubt nothing may be pruned, and the error gives the reason.
pub fn unneeded(
    log: &Log,
    names: &BTreeSet<SegmentName>,
    kept: &[StoredBackup],
    keep: Duration,
    now: Timestamp,
) -> Result<Vec<SegmentName>, String> {
    if let Some(dump) = kept.iter().find(|dump| dump.facts.is_none()) {
        let name = dump.file.file_name().unwrap_or_default();
        return Err(format!(
            "backup {name} does not record its first WAL segment, so the whole log {} is retained",
            log.system
        ));
    }
    let bases = kept.iter().filter_map(|dump| dump.facts.as_ref()).flat_map(|facts| facts.bases.values());
    let bases = bases.filter(|base| base.system == log.system);
    let first = bases.filter_map(|base| Some((base.first.number(base.part_bytes)?, base.part_bytes))).min();
    let Some((first, part_bytes)) = first else {
        // Segments that were archived before the oldest retained backup continue from none.
        let newest = names.iter().next_back().and_then(|name| log.known(name)).map(|known| known.at);
        return match newest {
            None if names.is_empty() => Ok(Vec::new()),
            Some(at) if at < now && now.duration_since(at).unsigned_abs() > keep => Ok(names.iter().cloned().collect()),
            _ => Err(format!(
                "no backup here is a base of the log {}, so all of it is retained until it expires",
                log.system
            )),
        };
    };
    let is_before = |name: &&SegmentName| name.number(part_bytes).is_some_and(|number| number < first);
    Ok(names.iter().filter(is_before).cloned().collect())
}

fn unsigned(error: textnlp_bundle::Error) -> Error {
    Error::Key(format!("a log segment cannot be signed: {error}"))
}

fn write(new: &Utf8Path, content: &[u8], seal: &EncryptionMode) -> Result<(), Error> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(new)
        .map_err(Error::io("make", new))?;
    seal.write(&mut file, |to| to.write_all(content).map_err(Error::io("write", new)))?;
    file.sync_all().map_err(Error::io("write", new))
}

/// A segment that was ended early is padded with zeros.
fn trimmed(content: &[u8]) -> &[u8] {
    &content[..content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]
}

/// The last time that the supervisor wrote into a segment. Its length fields precede the text, so no row of a user's
/// table looks like it.
fn last_mark(content: &[u8]) -> Option<Timestamp> {
    let mut before = trimmed(content);
    while let Some(at) = before.windows(MARK.len()).rposition(|window| window == MARK) {
        if let Some(moment) = mark_at(content, at) {
            return Some(moment);
        }
        before = &before[..at + MARK.len() - 1];
    }
    None
}

fn mark_at(content: &[u8], at: usize) -> Option<Timestamp> {
    let length = |from: usize| {
        let bytes: [u8; 8] = content.get(from..from + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let (name, text) = (length(at.checked_sub(16)?)?, length(at.checked_sub(8)?)?);
    if name != MARK.len() || text > MARK_MAX {
        return None;
    }
    let text = content.get(at + name..at + name + text)?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    use crate::backup::{BackupFacts, EncryptionKind, Key};

    const PART: usize = 1 << 20;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-20T{text}Z").parse().unwrap()
    }

    fn name(timeline: u32, number: u64) -> SegmentName {
        SegmentName::whole(timeline, number, PART as u64)
    }

    /// A segment as PostgreSQL writes it, as far as it is read here, with the supervisor's marks.
    fn part(system: u64, number: u64, marks: &[&str]) -> Vec<u8> {
        let mut part = vec![0; PART];
        part[2] = 2;
        part[8..16].copy_from_slice(&(number * PART as u64).to_le_bytes());
        part[24..32].copy_from_slice(&system.to_le_bytes());
        part[32..36].copy_from_slice(&(PART as u32).to_le_bytes());
        for (n, mark) in marks.iter().enumerate() {
            let text = at(mark).to_string();
            let mut record = (MARK.len() as u64).to_le_bytes().to_vec();
            record.extend((text.len() as u64).to_le_bytes());
            record.extend(MARK);
            record.extend(text.as_bytes());
            let from = 10_000 + n * 1000;
            part[from..from + record.len()].copy_from_slice(&record);
        }
        part
    }

    struct Bench {
        _dir: tempfile::TempDir,
        log: Log,
        key: Key,
        signer: SecretKey,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = Utf8Path::from_path(dir.path()).unwrap();
            let log = Log::of(folder, 7);
            let file = folder.join("signer.key");
            textnlp_bundle::keygen(&file, &folder.join("signer.pub"), None).unwrap();
            let signer = SecretKey::read(&file, None).unwrap();
            Self { _dir: dir, log, key: Key::generate(), signer }
        }

        fn opener(&self) -> Decryptor {
            Decryptor::Keys(Key::parse(&self.key.secret()).unwrap())
        }

        fn put(&self, name: &SegmentName, content: &[u8]) -> Result<StoreOutcome, Error> {
            let lineage = Lineage(Uuid::nil());
            let header = Header { format: 1, environment: EnvironmentName::new("a").unwrap(), lineage };
            let seal = EncryptionMode::Keys(vec![self.key.recipient()]);
            let options = ArchiveOptions { header: &header, seal: &seal, opener: &self.opener(), signer: &self.signer };
            self.log.put(&options, name, content, at("12:00:00"))
        }
    }

    fn base(first: u64, last: u64, from: &str) -> Base {
        Base {
            member: "databases/here.base.tar".into(),
            system: "7".into(),
            version: 15,
            first: name(1, first),
            last: name(1, last),
            part_bytes: PART as u64,
            from: at(from),
            log_signed: true,
        }
    }

    #[test]
    fn segment_that_the_key_did_not_sign_is_refused() {
        let (bench, stranger) = (Bench::new(), Bench::new());
        let stranger = Bench { key: Key::parse(&bench.key.secret()).unwrap().remove(0), ..stranger };
        let signed = bench.log.clone().signed_by(bench.signer.public().unwrap());
        let read = |name: &SegmentName| signed.get(name, &bench.opener()).map(|part| part.unwrap().whole());
        let failed = |name: &SegmentName| read(name).unwrap_err().to_string();
        let (three, four) = (name(1, 3), name(1, 4));
        bench.put(&three, &part(7, 3, &["11:00:00"])).unwrap();
        assert_eq!(read(&three).unwrap(), part(7, 3, &["11:00:00"]));
        assert!(signed.get(&four, &bench.opener()).unwrap().is_none(), "what is missing is not forged");

        // Who can write to the directory knows the public key, and can encrypt.
        let copy = |from: &Log, of: &SegmentName, to: &SegmentName, ends: &[&str]| {
            for end in ends {
                std::fs::copy(from.folder.join(format!("{of}{end}")), bench.log.folder.join(format!("{to}{end}")))
                    .unwrap();
            }
        };
        let forged = part(7, 4, &["11:30:00"]);
        stranger.put(&four, &forged).unwrap();
        copy(&stranger.log, &four, &four, &[".age", ".json"]);
        assert!(failed(&four).contains("the signature of the segment is missing"), "{}", failed(&four));
        copy(&stranger.log, &four, &four, &[".json.minisig"]);
        assert!(failed(&four).contains("the signature does not match"), "{}", failed(&four));
        copy(&bench.log, &three, &four, &[".age", ".json", ".json.minisig"]);
        assert!(failed(&four).contains(&format!("segment {three}")), "{}", failed(&four));
        let facts = std::fs::read_to_string(bench.log.facts(&three)).unwrap();
        std::fs::write(bench.log.facts(&three), facts.replace("11:00:00", "11:40:00")).unwrap();
        assert!(failed(&three).contains("the signature does not match"), "{}", failed(&three));

        // PostgreSQL asks again for one that an earlier version archived without a signature.
        std::fs::remove_file(signature_of(&bench.log.facts(&three))).unwrap();
        assert!(bench.log.get(&three, &bench.opener()).is_ok(), "a log without a signer");
        assert_eq!(bench.put(&three, &part(7, 3, &["11:00:00"])).unwrap(), StoreOutcome::Same);
        assert_eq!(read(&three).unwrap(), part(7, 3, &["11:00:00"]));
        assert_eq!(bench.log.known(&three).unwrap().until, Some(at("11:00:00")), "not what another process wrote");
        bench.log.remove(std::slice::from_ref(&three)).unwrap();
        assert!(!signature_of(&bench.log.facts(&three)).exists());
    }

    #[test]
    fn wal_segment_is_stored_once_and_read_back_unchanged() {
        let bench = Bench::new();
        let (first, content) = (name(1, 3), part(7, 3, &["11:00:00", "11:00:05"]));
        assert_eq!(bench.put(&first, &content).unwrap(), StoreOutcome::New);
        assert_eq!(bench.put(&first, &content).unwrap(), StoreOutcome::Same, "PostgreSQL asks again after a crash");
        let mut other = content.clone();
        other[PART - 1] = 1;
        assert!(matches!(bench.put(&first, &other), Err(Error::Taken { .. })));
        assert_eq!(bench.log.get(&first, &bench.opener()).unwrap().unwrap().whole(), content);
        assert!(bench.log.get(&name(1, 4), &bench.opener()).unwrap().is_none());
        let sealed = bench.log.sealed(&first);
        assert!(
            std::fs::metadata(&sealed).unwrap().len() < 20_000,
            "the zeros of a part that was ended early take no room"
        );
        assert_eq!(bench.log.known(&first).unwrap().until, Some(at("11:00:05")));
        // Its metadata is lost: it is decrypted and compared.
        std::fs::remove_file(bench.log.facts(&first)).unwrap();
        assert!(bench.log.get(&first, &bench.opener()).is_err());
        // Other content is never accepted for it, at any attempt.
        for _ in 0..2 {
            assert!(matches!(bench.put(&first, &other), Err(Error::Taken { .. })));
        }
        assert_eq!(bench.put(&first, &content).unwrap(), StoreOutcome::Same);
        let there = bench.log.get(&first, &bench.opener()).unwrap().unwrap();
        assert!(there.held() < 20_000 && there.whole() == content);
        // A partial file of a killed run is overwritten.
        std::fs::write(bench.log.folder.join(format!("{UNFINISHED}{}", name(1, 4))), "half").unwrap();
        bench.put(&name(1, 4), &part(7, 4, &[])).unwrap();
        assert_eq!(bench.log.names().unwrap().len(), 2);
        // Flips one bit.
        let mut bytes = std::fs::read(&sealed).unwrap();
        let last = bytes.len() - 100;
        bytes[last] ^= 1;
        std::fs::write(&sealed, bytes).unwrap();
        let damaged = bench.log.get(&first, &bench.opener()).map(drop).unwrap_err().to_string();
        assert!(damaged.contains(first.0.as_str()) && damaged.contains("damaged"), "{damaged}");
    }

    #[test]
    fn foreign_wal_segments_and_forged_marks_are_refused() {
        let bench = Bench::new();
        for (what, content) in [
            ("another database", part(8, 3, &[])),
            ("another segment", part(7, 4, &[])),
            ("as long", part(7, 3, &[])[..PART / 2].to_vec()),
            ("its header is not", b"text".to_vec()),
        ] {
            let refused = bench.put(&name(1, 3), &content).unwrap_err().to_string();
            assert!(refused.contains(what), "{refused}");
        }
        let mut content = part(7, 3, &["11:00:00"]);
        let row = b"a row that says textnlp-mark\x002026-11-20T11:59:00Z";
        content[500_000..500_000 + row.len()].copy_from_slice(row);
        bench.put(&name(1, 3), &content).unwrap();
        assert_eq!(bench.log.known(&name(1, 3)).unwrap().until, Some(at("11:00:00")));
        bench.put(&name(1, 4), &part(7, 4, &["13:00:00"])).unwrap();
        assert_eq!(bench.log.known(&name(1, 4)).unwrap().until, None, "a mark of the future");
        bench.put(&"00000002.history".parse().unwrap(), b"1\t0/0\tno reason\n").unwrap();
        for bad in
            ["", "../x", "00000001000000000000000g", "0000000100000000000000", "x.history", "00000001.history.age"]
        {
            assert!(bad.parse::<SegmentName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn wal_gap_is_reported_and_a_later_timeline_continues() {
        let names =
            |parts: &[&str]| -> BTreeSet<SegmentName> { parts.iter().map(|text| text.parse().unwrap()).collect() };
        let whole =
            |parts: &[(u32, u64)]| -> BTreeSet<SegmentName> { parts.iter().map(|(t, n)| name(*t, *n)).collect() };
        let base = base(2, 3, "10:00:00");
        let reach = |names: &BTreeSet<SegmentName>| {
            let reach = LogReach::along(&base, names);
            let parts: Vec<String> = reach.parts.iter().map(|part| part.0[7..8].to_owned() + &part.0[22..]).collect();
            (parts.join(" "), reach.missing)
        };
        assert_eq!(reach(&whole(&[])), (String::new(), None), "the base backup alone");
        assert_eq!(reach(&whole(&[(1, 1), (1, 4), (1, 5)])), ("104 105".into(), None));
        assert_eq!(reach(&whole(&[(1, 3), (1, 4), (1, 6)])), ("103 104".into(), Some(name(1, 5))));
        assert_eq!(reach(&whole(&[(1, 5)])), (String::new(), Some(name(1, 4))));
        let mut forked = whole(&[(1, 4), (1, 5), (2, 5), (2, 6)]);
        assert_eq!(reach(&forked).0, "104 105", "a timeline that nobody can follow yet");
        forked.extend(names(&["00000002.history"]));
        assert_eq!(reach(&forked), ("104 205 206".into(), None));
    }

    #[test]
    fn point_in_time_is_located_even_with_unmarked_segments() {
        let bench = Bench::new();
        // Every third segment has a mark.
        for number in 0..60u64 {
            let mark = format!("11:{number:02}:00");
            let marks: &[&str] = if number % 3 == 0 { &[&mark] } else { &[] };
            bench.put(&name(1, number), &part(7, number, marks)).unwrap();
        }
        let reach = LogReach::of(&base(0, 0, "10:00:00"), &bench.log, &bench.log.names().unwrap());
        for minute in 0..60usize {
            let moment = at(&format!("11:{minute:02}:00"));
            let up_to = reach.up_to(&bench.log, moment).len();
            // The segment with the next mark; unknown after the last one.
            let expected = if minute > 57 { 60 } else { minute.div_ceil(3) * 3 + 1 };
            assert_eq!(up_to, expected, "{minute}");
        }
    }

    #[test]
    fn pruning_keeps_segments_of_retained_bases_and_everything_on_doubt() {
        let bench = Bench::new();
        for number in 1..=5 {
            bench.put(&name(1, number), &part(7, number, &[])).unwrap();
        }
        bench.put(&"00000002.history".parse().unwrap(), b"1").unwrap();
        let names = bench.log.names().unwrap();
        let dump = |base: Option<Base>| {
            let facts = BackupFacts {
                format: 1,
                environment: EnvironmentName::new("a").unwrap(),
                lineage: Lineage(Uuid::nil()),
                at: at("12:00:00"),
                bytes: 1,
                sha256: "x".into(),
                sealed: EncryptionKind::Keys,
                recipients: Vec::new(),
                models: false,
                scheduled: true,
                tool: "t".into(),
                bases: base.into_iter().map(|base| (textnlp_provider::SiteName::new("here").unwrap(), base)).collect(),
            };
            StoredBackup { file: "backup_20261120.dump".into(), bytes: 1, facts: Some(facts), proof: None }
        };
        let day = Duration::from_secs(86_400);
        let may_go = |kept: &[StoredBackup], now| unneeded(&bench.log, &names, kept, day, now);
        let (now, later) = (at("12:00:00"), at("12:00:00") + jiff::SignedDuration::from_hours(25));
        let kept = [dump(Some(base(3, 4, "10:00:00"))), dump(Some(base(5, 5, "11:00:00"))), dump(None)];
        assert_eq!(may_go(&kept, later).unwrap(), [name(1, 1), name(1, 2)], "the oldest base decides");
        assert!(may_go(&[dump(None)], now).unwrap_err().contains("no backup here is a base"));
        assert_eq!(may_go(&[dump(None)], later).unwrap().len(), 6, "older than any copy is kept");
        let unknown = StoredBackup { facts: None, ..dump(None) };
        assert!(
            may_go(&[kept[0].clone(), unknown], later).unwrap_err().contains("does not record its first WAL segment")
        );
        bench.log.remove(&[name(1, 1)]).unwrap();
        assert!(!bench.log.names().unwrap().contains(&name(1, 1)) && !bench.log.facts(&name(1, 1)).exists());
    }
}
