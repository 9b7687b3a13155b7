//! The archived log of a PostgreSQL: what leads from a copy's base to any later moment.
//!
//! It lies in `log/SYSTEM/` beside the copies; SYSTEM is the number that PostgreSQL gave to the database's files when they were made, so
//! that a restored database, which is made anew, never writes into the log of the one that it came from. A part is `NAME.age`, sealed as
//! copies are, without the zeros at its end; `NAME.json` says what may be known without opening it. Timelines are in the names.

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
use textnlp_provider::{EnvironmentName, Lineage};

use super::manifest::{Base, shown};
use super::seal::{Opener, Seal, opened};
use super::shelf::{document, flush, put_document, remove};
use super::{Dump, Error};

/// The folder of all logs, beside the copies.
const FOLDER: &str = "log";
const SEALED: &str = "age";
const FACTS: &str = "json";
const UNFINISHED: &str = ".unfinished-";
/// The longest part: PostgreSQL can be built for more, ours is made with 16 MiB.
pub const PART_MAX: u64 = 64 << 20;
/// What the keeper writes into the log, see `server/src/postgres/archive.rs`.
const MARK: &[u8] = b"textnlp-mark\0";
/// A moment as text.
const MARK_MAX: usize = 40;

/// The name that PostgreSQL gave to a part of its log: 24 hexadecimal digits (timeline, number), a timeline's `….history`, a base's
/// `….backup`, or the `….partial` that a promotion leaves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PartName(String);

impl FromStr for PartName {
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
            Err(Error::NoPart(format!("`{}` is no part of a PostgreSQL's log", shown(text))))
        }
    }
}

impl TryFrom<String> for PartName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<PartName> for String {
    fn from(name: PartName) -> Self {
        name.0
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartName {
    /// The name of a whole part.
    fn whole(timeline: u32, number: u64, part_bytes: u64) -> Self {
        let per_file = (1u64 << 32) / part_bytes.max(1);
        Self(format!("{timeline:08X}{:08X}{:08X}", number / per_file, number % per_file))
    }

    /// Whether log is in it, from its beginning to its end.
    pub fn is_whole(&self) -> bool {
        self.0.len() == 24
    }

    fn timeline(&self) -> u32 {
        u32::from_str_radix(&self.0[..8], 16).unwrap_or_default()
    }

    /// Its place in the log, counted in parts; a history has none.
    pub fn number(&self, part_bytes: u64) -> Option<u64> {
        let is_length = part_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&part_bytes);
        let hexadecimal = |range| self.0.get(range).and_then(|text: &str| u64::from_str_radix(text, 16).ok());
        let (high, low) = (hexadecimal(8..16)?, hexadecimal(16..24)?);
        let per_file = is_length.then(|| (1u64 << 32) / part_bytes)?;
        (low < per_file).then_some(high * per_file + low)
    }
}

/// What is known of a part without opening it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartFacts {
    /// The version of this document.
    pub format: u32,
    /// Its length in PostgreSQL's folder.
    pub bytes: u64,
    /// The SHA-256 of what is in it, hexadecimal.
    pub sha256: String,
    /// When it was archived.
    pub at: Timestamp,
    /// Everything that was acknowledged up to this moment is in it or before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A part that was opened. It is held as it lies in the archive: most of a quiet database's part is zeros.
pub struct Part {
    content: Vec<u8>,
    bytes: usize,
}

impl Part {
    /// What it takes in memory.
    pub fn held(&self) -> usize {
        self.content.len()
    }

    /// It as it was in PostgreSQL's folder.
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

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of this document.
    pub format: u32,
    /// Which environment.
    pub environment: EnvironmentName,
    /// Which deployment.
    pub lineage: Lineage,
}

/// What came of putting a part there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    New,
    /// It was there, with this content.
    Same,
}

/// How far a log leads from a base, without opening anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The parts that lead there, one after another.
    pub parts: Vec<PartName>,
    /// The last moment that can be restored; `None` where no part says any.
    pub until: Option<Timestamp>,
    /// The part after the last one, where later ones are there: it is missing.
    pub missing: Option<PartName>,
}

/// The log of one database.
#[derive(Debug, Clone)]
pub struct Log {
    folder: Utf8PathBuf,
    system: String,
}

impl Log {
    /// The log of a database, beside the copies in `shelf`.
    pub fn of(shelf: &Utf8Path, system: u64) -> Self {
        let system = system.to_string();
        Self { folder: shelf.join(FOLDER).join(&system), system }
    }

    /// Every log beside the copies in `shelf`.
    pub(super) fn all(shelf: &Utf8Path) -> Result<Vec<Self>, Error> {
        let mut logs: Vec<Self> = names(&shelf.join(FOLDER))?
            .into_iter()
            .filter_map(|name| name.parse::<u64>().ok().filter(|system| system.to_string() == name))
            .map(|system| Self::of(shelf, system))
            .collect();
        logs.sort_by(|a, b| a.system.cmp(&b.system));
        Ok(logs)
    }

    /// Which database's.
    pub fn system(&self) -> &str {
        &self.system
    }

    /// Where it lies.
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// Whose it is; `None` where that was lost.
    pub fn header(&self) -> Option<Header> {
        document(&self.folder.join("log.json"))
    }

    fn sealed(&self, name: &PartName) -> Utf8PathBuf {
        self.folder.join(format!("{name}.{SEALED}"))
    }

    fn facts(&self, name: &PartName) -> Utf8PathBuf {
        self.folder.join(format!("{name}.{FACTS}"))
    }

    /// Puts a part there, durably. One that is there with the same content is left alone, one with another content is refused.
    ///
    /// `opener` is for a part whose facts were lost.
    pub fn put(
        &self,
        header: &Header,
        name: &PartName,
        content: &[u8],
        seal: &Seal,
        opener: &Opener,
        now: Timestamp,
    ) -> Result<Put, Error> {
        if content.len() as u64 > PART_MAX {
            return Err(Error::NoPart(format!("{name} has {} bytes, which no part of ours has", content.len())));
        }
        let until = if name.is_whole() { self.check(name, content)? } else { None };
        let (sealed, facts) = (self.sealed(name), self.facts(name));
        let known = PartFacts {
            format: 1,
            bytes: content.len() as u64,
            sha256: hex::encode(Sha256::digest(content)),
            at: now,
            // A clock that was set back says nothing.
            until: until.filter(|until| *until <= now),
        };
        if sealed.is_file() {
            let is_same = match document::<PartFacts>(&facts) {
                Some(there) => (there.bytes, &there.sha256) == (known.bytes, &known.sha256),
                None => {
                    let same = trimmed(content) == self.open(name, opener)?;
                    if same {
                        // Of another content they would make this part damaged, and the other one `Same` the next time.
                        put_document(&facts, &known)?;
                    }
                    same
                }
            };
            return if is_same { Ok(Put::Same) } else { Err(Error::Taken { path: sealed }) };
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(Error::io("make folder", self.folder.as_path()))?;
        if self.header().as_ref() != Some(header) {
            put_document(&self.folder.join("log.json"), header)?;
            // The folders themselves must last too.
            for folder in self.folder.ancestors().skip(1).take(2) {
                flush(folder)?;
            }
        }
        // Before the part has its name: one that nobody knows anything of could not be told from another.
        put_document(&facts, &known)?;
        let new = self.folder.join(format!("{UNFINISHED}{name}"));
        let written = write(&new, trimmed(content), seal)
            .and_then(|()| std::fs::rename(&new, &sealed).map_err(Error::io("name", sealed.as_path())))
            .and_then(|()| flush(&self.folder));
        if written.is_err() {
            // The disk may be full of it.
            remove(&new)?;
        }
        written.map(|()| Put::New)
    }

    /// Whether it is the part that its name says; and the last moment that it vouches for.
    fn check(&self, name: &PartName, content: &[u8]) -> Result<Option<Timestamp>, Error> {
        let no = |why: &str| Error::NoPart(format!("{name} is not what its name says: {why}"));
        let number = |at: usize, bytes: usize| -> u64 {
            content[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        // The long header of a part's first page: magic, flags, timeline, address, rest (and padding), system, length.
        if content.len() < 8192 || number(2, 2) & 2 == 0 {
            return Err(no("it does not begin as one does"));
        }
        if number(24, 8).to_string() != self.system {
            return Err(no("it is of another database"));
        }
        if number(32, 4) != content.len() as u64 {
            return Err(no("it is not as long as it says"));
        }
        let at = name.number(content.len() as u64).map(|n| n * content.len() as u64);
        if at != Some(number(8, 8)) {
            return Err(no("it is another part"));
        }
        Ok(last_mark(content))
    }

    /// A part as it was in PostgreSQL's folder; `None` where it is not there.
    pub fn get(&self, name: &PartName, opener: &Opener) -> Result<Option<Part>, Error> {
        let sealed = self.sealed(name);
        if !sealed.is_file() {
            return Ok(None);
        }
        let Some(known) = document::<PartFacts>(&self.facts(name)) else {
            return Err(Error::Damaged {
                path: self.facts(name),
                what: "it does not say what the part was".to_owned(),
            });
        };
        let content = self.open(name, opener)?;
        if known.bytes > PART_MAX || content.len() as u64 > known.bytes {
            return Err(Error::Damaged { path: sealed, what: "it is longer than it was".to_owned() });
        }
        let part = Part { content, bytes: known.bytes as usize };
        if part.sha256() != known.sha256 {
            return Err(Error::Damaged { path: sealed, what: "it is not what was archived".to_owned() });
        }
        Ok(Some(part))
    }

    fn open(&self, name: &PartName, opener: &Opener) -> Result<Vec<u8>, Error> {
        let path = self.sealed(name);
        let file = File::open(&path).map_err(Error::io("open", path.as_path()))?;
        let mut content = Vec::new();
        let read = opened(&path, file, opener)?.take(PART_MAX + 1).read_to_end(&mut content);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::Truncated { path: path.clone(), what: "its end is missing".to_owned() }
            }
            io::ErrorKind::InvalidData => {
                Error::Damaged { path: path.clone(), what: format!("it does not open: {error}") }
            }
            _ => Error::io("read", path.as_path())(error),
        })?;
        Ok(content)
    }

    /// The names of all parts.
    pub fn names(&self) -> Result<BTreeSet<PartName>, Error> {
        let files = names(&self.folder)?;
        Ok(files.iter().filter_map(|file| file.strip_suffix(".age")?.parse().ok()).collect())
    }

    /// What is known of a part without opening it; `None` where that was lost.
    pub fn known(&self, name: &PartName) -> Option<PartFacts> {
        document(&self.facts(name))
    }

    /// What all parts take on the disk.
    pub fn bytes(&self, names: &BTreeSet<PartName>) -> u64 {
        // One that was removed meanwhile takes nothing.
        names.iter().filter_map(|name| std::fs::metadata(self.sealed(name)).ok()).map(|found| found.len()).sum()
    }

    /// The last moment that any part vouches for: the newest ones say it.
    pub fn newest(&self, names: &BTreeSet<PartName>) -> Option<Timestamp> {
        last_said(self, names.iter().rev())
    }

    /// Removes parts with what is known of them.
    pub fn remove(&self, names: &[PartName]) -> Result<(), Error> {
        for name in names {
            remove(&self.sealed(name))?;
            remove(&self.facts(name))?;
        }
        flush(&self.folder)
    }
}

/// A keeper marks each part that it ends; beyond these, nobody has said anything for long.
const LOOKED_AT: usize = 64;

fn last_said<'a>(log: &Log, newest_first: impl Iterator<Item = &'a PartName>) -> Option<Timestamp> {
    newest_first.take(LOOKED_AT).filter_map(|name| log.known(name)?.until).max()
}

impl Reach {
    /// How far a log, of which there are these parts, leads from a base.
    pub fn of(base: &Base, log: &Log, names: &BTreeSet<PartName>) -> Self {
        let mut reach = Self::along(base, names);
        reach.until = last_said(log, reach.parts.iter().rev()).filter(|until| *until >= base.from);
        reach
    }

    fn along(base: &Base, names: &BTreeSet<PartName>) -> Self {
        let mut reach = Self { parts: Vec::new(), until: None, missing: None };
        let Some(last) = base.last.number(base.part_bytes) else { return reach };
        let mut timeline = base.last.timeline();
        let whole: BTreeSet<(u64, u32)> = names
            .iter()
            .filter(|name| name.is_whole())
            .filter_map(|name| Some((name.number(base.part_bytes)?, name.timeline())))
            .collect();
        let is_born = |timeline: u32| names.contains(&PartName(format!("{timeline:08X}.history")));
        for number in last.. {
            // As PostgreSQL does: a later timeline goes on where its first part is.
            let here = whole.range((number, timeline.saturating_add(1))..=(number, u32::MAX));
            if let Some((_, later)) = here.rev().find(|(_, later)| is_born(*later)) {
                timeline = *later;
            }
            if whole.contains(&(number, timeline)) {
                reach.parts.push(PartName::whole(timeline, number, base.part_bytes));
            } else if number > last {
                let goes_on = whole.iter().any(|(later, of)| *later > number && *of >= timeline);
                reach.missing = goes_on.then(|| PartName::whole(timeline, number, base.part_bytes));
                break;
            }
            // The last part of a base came along with it.
        }
        reach
    }

    /// The parts that lead to a moment, and the one after it that shows where to stop.
    pub fn up_to(&self, log: &Log, moment: Timestamp) -> &[PartName] {
        // What is known of each part is a file, so they are halved, not read through. Between two marks of a busy database many parts say
        // nothing. A clock that was set back makes it end later than it could, never earlier.
        let (mut from, mut to, mut end) = (0, self.parts.len(), self.parts.len());
        while from < to {
            let middle = from + (to - from) / 2;
            let said = (middle..to).find_map(|at| Some((at, log.known(&self.parts[at])?.until?)));
            match said {
                Some((at, until)) if until < moment => from = at + 1,
                Some((at, _)) => (to, end) = (middle, at + 1),
                None => to = middle,
            }
        }
        &self.parts[..end]
    }
}

/// Which parts of a log may go, by the copies that are kept. Everything that a kept base needs stays, and on doubt everything does:
/// the error says why.
pub fn unneeded(
    log: &Log,
    names: &BTreeSet<PartName>,
    kept: &[Dump],
    keep: Duration,
    now: Timestamp,
) -> Result<Vec<PartName>, String> {
    if let Some(dump) = kept.iter().find(|dump| dump.facts.is_none()) {
        let name = dump.file.file_name().unwrap_or_default();
        return Err(format!("nobody knows what {name} needs, so the whole log {} stays", log.system));
    }
    let bases = kept.iter().filter_map(|dump| dump.facts.as_ref()).flat_map(|facts| facts.bases.values());
    let bases = bases.filter(|base| base.system == log.system);
    let first = bases.filter_map(|base| Some((base.first.number(base.part_bytes)?, base.part_bytes))).min();
    let Some((first, part_bytes)) = first else {
        // What was archived longer ago than any copy is kept leads from none.
        let newest = names.iter().next_back().and_then(|name| log.known(name)).map(|known| known.at);
        return match newest {
            None if names.is_empty() => Ok(Vec::new()),
            Some(at) if at < now && now.duration_since(at).unsigned_abs() > keep => Ok(names.iter().cloned().collect()),
            _ => Err(format!("no backup here is a base of the log {}, so all of it stays until it is old", log.system)),
        };
    };
    let is_before = |name: &&PartName| name.number(part_bytes).is_some_and(|number| number < first);
    Ok(names.iter().filter(is_before).cloned().collect())
}

fn names(folder: &Utf8Path) -> Result<Vec<String>, Error> {
    let entries = match folder.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    entries.map(|entry| Ok(entry.map_err(Error::io("list", folder))?.file_name().to_owned())).collect()
}

fn write(new: &Utf8Path, content: &[u8], seal: &Seal) -> Result<(), Error> {
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

/// A part that was ended before it was full ends in zeros.
fn trimmed(content: &[u8]) -> &[u8] {
    &content[..content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]
}

/// The last moment that the keeper wrote into a part. Before the text stand its lengths: no row that somebody else wrote looks like it.
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

    use crate::backup::{Facts, Key};

    const PART: usize = 1 << 20;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-20T{text}Z").parse().unwrap()
    }

    fn name(timeline: u32, number: u64) -> PartName {
        PartName::whole(timeline, number, PART as u64)
    }

    /// A part as PostgreSQL writes it, as far as we look, with marks of the keeper's.
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
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let log = Log::of(Utf8Path::from_path(dir.path()).unwrap(), 7);
            Self { _dir: dir, log, key: Key::generate() }
        }

        fn opener(&self) -> Opener {
            Opener::Keys(Key::parse(&self.key.secret()).unwrap())
        }

        fn put(&self, name: &PartName, content: &[u8]) -> Result<Put, Error> {
            let lineage = Lineage(Uuid::nil());
            let header = Header { format: 1, environment: EnvironmentName::new("a").unwrap(), lineage };
            let seal = Seal::Keys(vec![self.key.recipient()]);
            self.log.put(&header, name, content, &seal, &self.opener(), at("12:00:00"))
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
        }
    }

    #[test]
    fn a_part_is_put_once_and_comes_back_as_it_was() {
        let bench = Bench::new();
        let (first, content) = (name(1, 3), part(7, 3, &["11:00:00", "11:00:05"]));
        assert_eq!(bench.put(&first, &content).unwrap(), Put::New);
        assert_eq!(bench.put(&first, &content).unwrap(), Put::Same, "PostgreSQL asks again after a crash");
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
        // Its facts are lost: it is opened and compared.
        std::fs::remove_file(bench.log.facts(&first)).unwrap();
        assert!(bench.log.get(&first, &bench.opener()).is_err());
        // Another content is never taken for it, however often it comes.
        for _ in 0..2 {
            assert!(matches!(bench.put(&first, &other), Err(Error::Taken { .. })));
        }
        assert_eq!(bench.put(&first, &content).unwrap(), Put::Same);
        let there = bench.log.get(&first, &bench.opener()).unwrap().unwrap();
        assert!(there.held() < 20_000 && there.whole() == content);
        // What a killed run left is written over.
        std::fs::write(bench.log.folder.join(format!("{UNFINISHED}{}", name(1, 4))), "half").unwrap();
        bench.put(&name(1, 4), &part(7, 4, &[])).unwrap();
        assert_eq!(bench.log.names().unwrap().len(), 2);
        // One bit.
        let mut bytes = std::fs::read(&sealed).unwrap();
        let last = bytes.len() - 100;
        bytes[last] ^= 1;
        std::fs::write(&sealed, bytes).unwrap();
        let damaged = bench.log.get(&first, &bench.opener()).map(drop).unwrap_err().to_string();
        assert!(damaged.contains(first.0.as_str()) && damaged.contains("damaged"), "{damaged}");
    }

    #[test]
    fn only_parts_of_this_log_are_taken_and_only_marks_of_the_keeper_are_believed() {
        let bench = Bench::new();
        for (what, content) in [
            ("another database", part(8, 3, &[])),
            ("another part", part(7, 4, &[])),
            ("as long", part(7, 3, &[])[..PART / 2].to_vec()),
            ("begin", b"text".to_vec()),
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
            assert!(bad.parse::<PartName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_gap_is_named_and_a_later_timeline_goes_on() {
        let names = |parts: &[&str]| -> BTreeSet<PartName> { parts.iter().map(|text| text.parse().unwrap()).collect() };
        let whole = |parts: &[(u32, u64)]| -> BTreeSet<PartName> { parts.iter().map(|(t, n)| name(*t, *n)).collect() };
        let base = base(2, 3, "10:00:00");
        let reach = |names: &BTreeSet<PartName>| {
            let reach = Reach::along(&base, names);
            let parts: Vec<String> = reach.parts.iter().map(|part| part.0[7..8].to_owned() + &part.0[22..]).collect();
            (parts.join(" "), reach.missing)
        };
        assert_eq!(reach(&whole(&[])), (String::new(), None), "the base alone");
        assert_eq!(reach(&whole(&[(1, 1), (1, 4), (1, 5)])), ("104 105".into(), None));
        assert_eq!(reach(&whole(&[(1, 3), (1, 4), (1, 6)])), ("103 104".into(), Some(name(1, 5))));
        assert_eq!(reach(&whole(&[(1, 5)])), (String::new(), Some(name(1, 4))));
        let mut forked = whole(&[(1, 4), (1, 5), (2, 5), (2, 6)]);
        assert_eq!(reach(&forked).0, "104 105", "a timeline that nobody can follow yet");
        forked.extend(names(&["00000002.history"]));
        assert_eq!(reach(&forked), ("104 205 206".into(), None));
    }

    #[test]
    fn a_moment_is_found_among_many_parts_also_where_some_say_nothing() {
        let bench = Bench::new();
        // Every third part has a mark.
        for number in 0..60u64 {
            let mark = format!("11:{number:02}:00");
            let marks: &[&str] = if number % 3 == 0 { &[&mark] } else { &[] };
            bench.put(&name(1, number), &part(7, number, marks)).unwrap();
        }
        let reach = Reach::of(&base(0, 0, "10:00:00"), &bench.log, &bench.log.names().unwrap());
        for minute in 0..60usize {
            let moment = at(&format!("11:{minute:02}:00"));
            let up_to = reach.up_to(&bench.log, moment).len();
            // The part with the next mark; after the last one nobody knows.
            let expected = if minute > 57 { 60 } else { minute.div_ceil(3) * 3 + 1 };
            assert_eq!(up_to, expected, "{minute}");
        }
    }

    #[test]
    fn what_a_kept_base_needs_stays_and_on_doubt_everything_does() {
        let bench = Bench::new();
        for number in 1..=5 {
            bench.put(&name(1, number), &part(7, number, &[])).unwrap();
        }
        bench.put(&"00000002.history".parse().unwrap(), b"1").unwrap();
        let names = bench.log.names().unwrap();
        let dump = |base: Option<Base>| {
            let facts = Facts {
                format: 1,
                environment: EnvironmentName::new("a").unwrap(),
                lineage: Lineage(Uuid::nil()),
                at: at("12:00:00"),
                bytes: 1,
                sha256: "x".into(),
                sealed: "keys".into(),
                recipients: Vec::new(),
                models: false,
                scheduled: true,
                tool: "t".into(),
                bases: base.into_iter().map(|base| (textnlp_provider::SiteName::new("here").unwrap(), base)).collect(),
            };
            Dump { file: "backup_20261120.dump".into(), bytes: 1, facts: Some(facts), proof: None }
        };
        let day = Duration::from_secs(86_400);
        let may_go = |kept: &[Dump], now| unneeded(&bench.log, &names, kept, day, now);
        let (now, later) = (at("12:00:00"), at("12:00:00") + jiff::SignedDuration::from_hours(25));
        let kept = [dump(Some(base(3, 4, "10:00:00"))), dump(Some(base(5, 5, "11:00:00"))), dump(None)];
        assert_eq!(may_go(&kept, later).unwrap(), [name(1, 1), name(1, 2)], "the oldest base decides");
        assert!(may_go(&[dump(None)], now).unwrap_err().contains("no backup here is a base"));
        assert_eq!(may_go(&[dump(None)], later).unwrap().len(), 6, "older than any copy is kept");
        let unknown = Dump { facts: None, ..dump(None) };
        assert!(may_go(&[kept[0].clone(), unknown], later).unwrap_err().contains("nobody knows"));
        bench.log.remove(&[name(1, 1)]).unwrap();
        assert!(!bench.log.names().unwrap().contains(&name(1, 1)) && !bench.log.facts(&name(1, 1)).exists());
    }
}
