//! The persistent state of a site: the configuration, the log, and the incarnation of the disk.
//!
//! ```text
//! FOLDER/incarnation          created with the folder
//! FOLDER/configuration.json   the last known configuration
//! FOLDER/primary-since.json   the first epoch of the current primary's uninterrupted leadership
//! FOLDER/snapshot.json        the table up to some entry
//! FOLDER/log                  one entry per line: CRC-32 in hexadecimal, a space, JSON
//! FOLDER/withdrawn            removed entries that were never acknowledged, for the operator
//! ```

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use textnlp_control::{Configuration, Entry, Incarnation, Log, Site, Snapshot, State};
use textnlp_files::Replace;

use super::Error;

/// See the module. Whatever returns is on disk.
#[derive(Debug)]
pub(super) struct Disk {
    folder: Utf8PathBuf,
    log: File,
    /// The byte offset at which each entry of the log ends.
    ends: Vec<u64>,
    /// The index of the entry before the first in the file.
    base: u64,
    pub(super) incarnation: Incarnation,
    pub(super) withdrawn: usize,
    since: Option<Since>,
}

/// Since when a site has been the primary, as far as was seen without a break.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Since {
    primary: Site,
    /// The first epoch of it.
    since: u64,
    /// The last one.
    epoch: u64,
    /// The previous primary, as far as known, and its first epoch.
    #[serde(default)]
    before: Option<(Site, u64)>,
}

impl Since {
    fn of(configuration: &Configuration) -> Self {
        let Configuration { epoch, primary, .. } = configuration.clone();
        Self { primary, since: epoch, epoch, before: None }
    }
}

impl Disk {
    /// Opens a folder and reads its state; creates it if it is new.
    pub(super) fn open(folder: &Utf8Path) -> Result<(Self, State), Error> {
        let wrong = |why: String| Error::Folder { folder: folder.to_owned(), why };
        let fails = |error: io::Error| wrong(error.to_string());
        std::fs::create_dir_all(folder).map_err(fails)?;
        std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(fails)?;
        room(folder).map_err(|error| wrong(format!("{error}; control data needs {} KiB of free space", ROOM >> 10)))?;
        let configuration: Option<Configuration> = read(&folder.join("configuration.json")).map_err(wrong)?;
        let snapshot: Snapshot = read(&folder.join("snapshot.json")).map_err(wrong)?.unwrap_or_default();
        let path = folder.join("log");
        let log = open(&path).map_err(fails)?;
        let text = std::fs::read(&path).map_err(fails)?;
        let (entries, ends) = lines(&text).map_err(|line| {
            let fix = "move the folder away: the site then starts empty and receives all data from the other sites";
            wrong(format!("line {line} of its log is damaged; {fix}"))
        })?;
        // A half-written line after a crash was never acknowledged.
        let valid_length = ends.last().copied().unwrap_or(0);
        if valid_length < text.len() as u64 {
            log.set_len(valid_length).and_then(|()| log.sync_all()).map_err(fails)?;
        }
        let base = entries.first().map_or(snapshot.at.index, |entry| entry.at.index - 1);
        let after: Vec<Entry> = entries.into_iter().filter(|entry| entry.at.index > snapshot.at.index).collect();
        let incarnation = incarnation(folder).map_err(fails)?;
        let withdrawn =
            std::fs::read(folder.join("withdrawn")).map_or(0, |text| text.split(|b| *b == b'\n').count() - 1);
        let log_read = Log::new(snapshot, after).ok_or_else(|| wrong("its log has a gap".to_owned()))?;
        let since: Option<Since> = read(&folder.join("primary-since.json")).map_err(wrong)?;
        let holds = |since: &Since, holds: &Configuration| since.primary == holds.primary && since.epoch >= holds.epoch;
        let since = match (&configuration, since) {
            (Some(configuration), Some(since)) if holds(&since, configuration) => Some(since),
            (Some(configuration), _) => Some(Since::of(configuration)),
            (None, _) => None,
        };
        let disk = Self { folder: folder.to_owned(), log, ends, base, incarnation, withdrawn, since };
        Ok((disk, State { configuration, log: log_read }))
    }

    pub(super) fn configure(&mut self, configuration: &Configuration) -> io::Result<()> {
        let next = Since::of(configuration);
        // A missed epoch may have had another primary.
        let next = match self.since.take() {
            Some(before) if before.primary == next.primary && before.epoch + 1 >= next.epoch => {
                Since { since: before.since, before: before.before, ..next }
            }
            Some(before) if before.primary == next.primary => Since { before: before.before, ..next },
            Some(before) => Since { before: Some((before.primary, before.since)), ..next },
            None => next,
        };
        // It may be one epoch ahead of the configuration, but never behind.
        put(&self.folder.join("primary-since.json"), &next)?;
        self.since = Some(next);
        put(&self.folder.join("configuration.json"), configuration)
    }

    /// The first epoch of the primary's uninterrupted leadership, as far as this site knows; 0 before the first.
    pub(super) fn since(&self) -> u64 {
        self.since.as_ref().map_or(0, |since| since.since)
    }

    /// The previous primary and its first epoch, as far as this site knows.
    pub(super) fn before(&self) -> Option<(Site, u64)> {
        self.since.as_ref().and_then(|since| since.before.clone())
    }

    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut text = Vec::new();
        let mut end = self.ends.last().copied().unwrap_or(0);
        let before = self.ends.len();
        for entry in entries {
            let at = text.len();
            write_line(&mut text, entry)?;
            end += (text.len() - at) as u64;
            self.ends.push(end);
        }
        let written = self.log.seek(SeekFrom::Start(end - text.len() as u64)).and_then(|_| self.log.write_all(&text));
        let synced = written.and_then(|()| self.log.sync_data());
        if synced.is_err() {
            self.ends.truncate(before);
        }
        synced
    }

    pub(super) fn withdraw(&mut self, after: u64, entries: &[Entry]) -> io::Result<()> {
        self.set_aside(entries)?;
        self.ends.truncate(usize::try_from(after.saturating_sub(self.base)).unwrap_or(usize::MAX));
        self.log.set_len(self.ends.last().copied().unwrap_or(0)).and_then(|()| self.log.sync_data())
    }

    fn set_aside(&mut self, entries: &[Entry]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        entries.iter().try_for_each(|entry| write_line(&mut text, entry))?;
        textnlp_files::append(self.folder.join("withdrawn"), &text, 0o600)?;
        self.withdrawn += entries.len();
        Ok(())
    }

    /// Replaces everything by another site's table. The old log is removed first, because it may contradict the table.
    pub(super) fn install(&mut self, snapshot: &Snapshot, aside: &[Entry]) -> io::Result<()> {
        self.set_aside(aside)?;
        self.ends.clear();
        self.log.set_len(0).and_then(|()| self.log.sync_data())?;
        self.base = snapshot.at.index;
        put(&self.folder.join("snapshot.json"), snapshot)
    }

    /// Compacts the start of the log into a snapshot, which is stored before the entries are removed.
    pub(super) fn compact(&mut self, snapshot: &Snapshot, rest: &[Entry]) -> io::Result<()> {
        put(&self.folder.join("snapshot.json"), snapshot)?;
        let mut text = Vec::new();
        let mut ends = Vec::new();
        for entry in rest {
            write_line(&mut text, entry)?;
            ends.push(text.len() as u64);
        }
        let path = self.folder.join("log");
        put_bytes(&path, &text)?;
        self.log = open(&path)?;
        (self.ends, self.base) = (ends, snapshot.at.index);
        Ok(())
    }
}

/// Free space that a site needs to take part, in bytes: far more than a request writes.
const ROOM: usize = 1 << 20;

/// Checks that the disk accepts writes. A site that cannot store must not send heartbeats: another site would wait for
/// it instead of taking over.
fn room(folder: &Utf8Path) -> io::Result<()> {
    let path = folder.join("room");
    let written = open(&path).and_then(|mut file| {
        file.write_all(&vec![0; ROOM])?;
        file.sync_data()
    });
    let removed = std::fs::remove_file(&path);
    // The write error is more useful than the error of the removal.
    written.and(removed)
}

/// Replaces a file by the JSON of a value, durably and atomically.
pub(super) fn put(path: &Utf8Path, value: &impl Serialize) -> io::Result<()> {
    put_bytes(path, &serde_json::to_vec(value)?)
}

/// Reads the JSON of a file; `None` if there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Utf8Path) -> Result<Option<T>, String> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("{path}: {error}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// Replaces a file durably. One process writes to the folder.
pub(super) fn put_bytes(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    Ok(Replace::private().sole_writer().write(path, bytes)?)
}

fn open(path: &Utf8Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn write_line(text: &mut Vec<u8>, entry: &Entry) -> io::Result<()> {
    let json = serde_json::to_vec(entry)?;
    text.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json)).as_bytes());
    text.extend_from_slice(&json);
    text.push(b'\n');
    Ok(())
}

/// All complete lines and their end offsets. A damaged last line is ignored; a damaged one before others is an error
/// with its line number.
fn lines(text: &[u8]) -> Result<(Vec<Entry>, Vec<u64>), usize> {
    let (mut entries, mut ends, mut at) = (Vec::new(), Vec::new(), 0);
    for (number, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        at += line.len();
        let entry = line.strip_suffix(b"\n").and_then(|line| {
            let (sum, json) = (line.get(..8)?, line.get(9..)?);
            let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
            (crc32fast::hash(json) == sum).then(|| serde_json::from_slice(json).ok())?
        });
        match entry {
            Some(entry) => {
                entries.push(entry);
                ends.push(at as u64);
            }
            None if at == text.len() => break,
            None => return Err(number + 1),
        }
    }
    Ok((entries, ends))
}

/// The incarnation of the disk. A missing file means a new one.
fn incarnation(folder: &Utf8Path) -> io::Result<Incarnation> {
    let path = folder.join("incarnation");
    match std::fs::read_to_string(&path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16).map(Incarnation).map_err(|_| {
            io::Error::other(format!("{path} does not contain a number; remove it to start as a new member"))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; 8];
            aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("random numbers are not available"))?;
            let life = u64::from_le_bytes(bytes);
            put_bytes(&path, format!("{life:016x}\n").as_bytes())?;
            Ok(Incarnation(life))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_control::{Position, Write};

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(dir.path().join("control")).unwrap();
        (dir, path)
    }

    fn entry(epoch: u64, index: u64) -> Entry {
        let write = Write { key: format!("k{index}"), value: Some("x\ny".into()) };
        Entry { at: Position { epoch, index }, writes: vec![write] }
    }

    #[test]
    fn control_log_is_read_back_and_a_torn_line_ignored() {
        let (_dir, path) = folder();
        let (mut disk, state) = Disk::open(&path).unwrap();
        assert_eq!(state, State::default());
        let life = disk.incarnation;
        disk.append(&[entry(1, 1), entry(1, 2)]).unwrap();
        disk.append(&[entry(1, 3), entry(1, 4)]).unwrap();
        disk.withdraw(3, &[entry(1, 4)]).unwrap();
        disk.append(&[entry(2, 4)]).unwrap();
        let all = std::fs::read(path.join("log")).unwrap();
        for cut in 0..40 {
            std::fs::write(path.join("log"), &all[..all.len() - cut]).unwrap();
            let (disk, state) = Disk::open(&path).unwrap();
            let expected = if cut == 0 { 4 } else { 3 };
            assert_eq!((state.log.last().index, disk.incarnation, disk.withdrawn), (expected, life, 1));
        }
        let (mut disk, _) = Disk::open(&path).unwrap();
        disk.append(&[entry(2, 4)]).unwrap();
        assert_eq!(Disk::open(&path).unwrap().1.log.entries()[3], entry(2, 4));
        let mut flipped = std::fs::read(path.join("log")).unwrap();
        flipped[20] ^= 1;
        std::fs::write(path.join("log"), flipped).unwrap();
        assert!(Disk::open(&path).unwrap_err().to_string().contains("line 1 of its log is damaged"));
    }

    #[test]
    fn start_of_an_uninterrupted_primary_term_survives_restarts() {
        let (_dir, path) = folder();
        let of = |epoch, primary: &str| Configuration {
            epoch,
            primary: Site::new(primary),
            members: Default::default(),
            held: false,
        };
        let mut disk = Disk::open(&path).unwrap().0;
        assert_eq!(disk.since(), 0);
        for (epoch, primary, since) in [(1, "a", 1), (2, "a", 1), (3, "a", 1), (5, "a", 5), (6, "b", 6), (7, "b", 6)] {
            disk.configure(&of(epoch, primary)).unwrap();
            assert_eq!(disk.since(), since, "{epoch} {primary}");
            disk = Disk::open(&path).unwrap().0;
            assert_eq!(disk.since(), since, "{epoch} {primary} after a restart");
        }
        assert_eq!(disk.before(), Some((Site::new("a"), 5)));
        // Dead between the two files: what holds is the older one.
        put(&path.join("configuration.json"), &of(5, "a")).unwrap();
        assert_eq!(Disk::open(&path).unwrap().0.since(), 5);
        // An older release wrote no such file.
        std::fs::remove_file(path.join("primary-since.json")).unwrap();
        assert_eq!(Disk::open(&path).unwrap().0.since(), 5);
    }

    #[test]
    fn snapshot_replaces_log_entries_even_if_killed_in_between() {
        let (_dir, path) = folder();
        let (mut disk, _) = Disk::open(&path).unwrap();
        disk.append(&(1..=5).map(|n| entry(1, n)).collect::<Vec<_>>()).unwrap();
        let table = [("k1".to_owned(), "x\ny".into())].into();
        let snapshot = Snapshot { at: Position { epoch: 1, index: 3 }, table };
        // Dead after the snapshot was written: the log still has everything.
        put(&path.join("snapshot.json"), &snapshot).unwrap();
        let (mut disk, state) = Disk::open(&path).unwrap();
        assert_eq!((state.log.base().at.index, state.log.entries().len()), (3, 2));
        disk.append(&[entry(1, 6)]).unwrap();
        disk.compact(&snapshot, &[entry(1, 4), entry(1, 5), entry(1, 6)]).unwrap();
        disk.withdraw(5, &[entry(1, 6)]).unwrap();
        disk.append(&[entry(2, 6), entry(2, 7)]).unwrap();
        let (mut disk, state) = Disk::open(&path).unwrap();
        assert_eq!(state.log.entries(), [entry(1, 4), entry(1, 5), entry(2, 6), entry(2, 7)]);
        let other = Snapshot { at: Position { epoch: 3, index: 9 }, ..snapshot };
        disk.install(&other, &[]).unwrap();
        disk.append(&[entry(3, 10)]).unwrap();
        let (_, state) = Disk::open(&path).unwrap();
        assert_eq!((state.log.base(), state.log.entries()), (&other, &[entry(3, 10)][..]));
    }
}
