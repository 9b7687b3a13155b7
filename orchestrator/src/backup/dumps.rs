//! Database dumps of a cluster: a folder with one encrypted file per dump. `pg_dump` writes a dump elsewhere, where it is
//! verified; here it gets its name. Earlier versions stored dumps without encryption, which are read too.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use textnlp_files::{Lock, sync_folder, unique_name};

use super::{Decryptor, EncryptionMode, Error, Recipient, opened};

/// The start of a dump in `pg_dump`'s custom format.
const PLAIN: &[u8] = b"PGDMP";
/// The suffixes of dumps: encrypted ones, and those of earlier versions.
const SUFFIXES: [&str; 2] = [".dump.age", ".dump"];
/// Created with the first dump, and never written to.
const LOCK: &str = ".lock";
const UNFINISHED: &str = ".new-";
/// The time of a dump in the name of its copy, such as `20261120T020013Z`.
const COPIED: &str = "%Y%m%dT%H%M%SZ";
const COPIED_LENGTH: usize = 16;
/// The deadline of a job; an older unfinished file belongs to a job that was killed.
const LONGEST_RUN: Duration = Duration::from_secs(6 * 3600);
/// The most dumps of one day.
const PER_DAY_MAX: u32 = 10_000;
const BUFFER: usize = 256 << 10;

/// The folder with the dumps.
pub struct DumpFolder(Utf8PathBuf);

/// A dump that was stored.
#[derive(Debug, PartialEq, Eq)]
pub struct StoredDump {
    /// Its file name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
}

impl DumpFolder {
    /// The folder, which must exist.
    pub fn at(folder: impl Into<Utf8PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Encrypts a dump into the folder, under the next free name of the day, and removes dumps older than `keep`.
    pub fn store(
        &self,
        dump: &Utf8Path,
        recipients: Vec<Recipient>,
        at: Timestamp,
        keep: Duration,
    ) -> Result<StoredDump, Error> {
        let new = self.0.join(format!("{UNFINISHED}{}", unique_name()));
        let stored = encrypt(dump, &new, recipients).and_then(|bytes| {
            let _held = Lock::exclusive(self.0.join(LOCK), 0o600)?;
            self.prune(keep)?;
            let name = self.free_name(at)?;
            let file = self.0.join(&name);
            std::fs::rename(&new, &file).map_err(Error::io("name", file.as_path()))?;
            sync_folder(&self.0)?;
            self.prune(keep)?;
            Ok(StoredDump { name, bytes })
        });
        if stored.is_err() {
            // The error that is reported is the first one.
            let _ = std::fs::remove_file(&new);
        }
        stored
    }

    /// Decrypts a dump, by default the newest, into a file. Returns its name.
    pub fn open(&self, name: Option<&str>, opener: &Decryptor, to: &Utf8Path) -> Result<String, Error> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let names = self.names()?;
        let name = match name {
            Some(name) => names.into_iter().find(|known| known == name),
            None => names.into_iter().next(),
        };
        let name = name.ok_or_else(|| Error::io("find the dump in", self.0.as_path())(missing()))?;
        let path = self.0.join(&name);
        let file = File::open(&path).map_err(Error::io("open", path.as_path()))?;
        let mut from = BufReader::with_capacity(BUFFER, file);
        let is_plain = from.fill_buf().map_err(Error::io("read", path.as_path()))?.starts_with(PLAIN);
        let mut from: Box<dyn Read> = if is_plain { Box::new(from) } else { opened(&path, from, opener)? };
        let mut file = create(to)?;
        io::copy(&mut from, &mut file).map_err(Error::io("decrypt", path.as_path()))?;
        file.into_inner().map_err(|error| Error::io("write", to)(error.into_error()))?;
        Ok(name)
    }

    /// The names of the dumps, the newest first.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        Ok(self.listed()?.into_iter().map(|(_, name)| name).collect())
    }

    /// The encrypted dumps with the names of their copies in a bucket, the oldest first.
    pub(super) fn copies(&self) -> Result<Vec<(Utf8PathBuf, String)>, Error> {
        let named = |(at, name): (SystemTime, String)| Some((self.0.join(&name), copy_name(&name, at)?));
        Ok(self.listed()?.into_iter().rev().filter_map(named).collect())
    }

    /// When the first dump was stored here.
    pub(super) fn since(&self) -> Result<SystemTime, Error> {
        let lock = self.0.join(LOCK);
        std::fs::metadata(&lock).and_then(|lock| lock.modified()).map_err(Error::io("check", lock.as_path()))
    }

    fn listed(&self) -> Result<Vec<(SystemTime, String)>, Error> {
        let failed = || Error::io("list", self.0.as_path());
        let mut found = Vec::new();
        for entry in self.0.read_dir_utf8().map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name().to_owned();
            if name.starts_with("backup_") && SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
                found.push((entry.metadata().and_then(|known| known.modified()).map_err(failed())?, name));
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        Ok(found)
    }

    fn free_name(&self, at: Timestamp) -> Result<String, Error> {
        let day = at.strftime("%Y%m%d").to_string();
        let is_free = |stem: &String| {
            SUFFIXES.iter().all(|suffix| {
                let path = self.0.join(format!("{stem}{suffix}"));
                std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            })
        };
        (1..=PER_DAY_MAX)
            .map(|number| match number {
                1 => format!("backup_{day}"),
                _ => format!("backup_{day}-{number}"),
            })
            .find(is_free)
            .map(|stem| stem + SUFFIXES[0])
            .ok_or_else(|| Error::io("name a dump in", self.0.as_path())(io::ErrorKind::AlreadyExists.into()))
    }

    /// Removes expired dumps, but never the newest one, and what killed runs left.
    fn prune(&self, keep: Duration) -> Result<(), Error> {
        let now = SystemTime::now();
        let age = |at: SystemTime| now.duration_since(at).unwrap_or_default();
        let expired = self.listed()?.into_iter().skip(1).filter(|(at, _)| age(*at) > keep).map(|(_, name)| name);
        let mut gone: Vec<String> = expired.collect();
        let failed = || Error::io("list", self.0.as_path());
        for entry in self.0.read_dir_utf8().map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let modified = || entry.metadata().and_then(|known| known.modified());
            if entry.file_name().starts_with(UNFINISHED) && modified().is_ok_and(|at| age(at) > LONGEST_RUN) {
                gone.push(entry.file_name().to_owned());
            }
        }
        for name in gone {
            let path = self.0.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path.as_path())(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name of a dump's copy in a bucket: with the time of the dump, because the names of a lost volume are given again.
/// A copy that was put back keeps its name. `None` for a dump that is not encrypted.
fn copy_name(name: &str, at: SystemTime) -> Option<String> {
    if is_copy(name) {
        return Some(name.to_owned());
    }
    let (stem, at) = (name.strip_suffix(SUFFIXES[0])?, Timestamp::try_from(at).ok()?);
    Some(format!("{stem}.{}{}", at.strftime(COPIED), SUFFIXES[0]))
}

/// Whether this is the name of a copy in a bucket.
pub(super) fn is_copy(name: &str) -> bool {
    let stem = name.strip_prefix("backup_").and_then(|rest| rest.strip_suffix(SUFFIXES[0]));
    let time = stem.and_then(|stem| stem.split_once('.')).map(|(_, time)| time);
    time.is_some_and(|time| time.len() == COPIED_LENGTH && time.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Creates a private file, or replaces its content.
fn create(path: &Utf8Path) -> Result<BufWriter<File>, Error> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    Ok(BufWriter::with_capacity(BUFFER, file.map_err(Error::io("make", path))?))
}

/// Encrypts a file durably; returns the size of the result.
fn encrypt(from: &Utf8Path, to: &Utf8Path, recipients: Vec<Recipient>) -> Result<u64, Error> {
    let mut dump = File::open(from).map_err(Error::io("open", from))?;
    let mut file = create(to)?;
    let copy = |sealed: &mut dyn Write| io::copy(&mut dump, sealed).map(drop).map_err(Error::io("encrypt", from));
    EncryptionMode::Keys(recipients).write(&mut file, copy)?;
    let file = file.into_inner().map_err(|error| Error::io("write", to)(error.into_error()))?;
    file.sync_all().map_err(Error::io("write", to))?;
    Ok(file.metadata().map_err(Error::io("read", to))?.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::Key;

    const DUMP: &[u8] = b"PGDMP and the digests of keys";
    const MONTH: Duration = Duration::from_secs(30 * 86_400);

    fn folder() -> (tempfile::TempDir, Utf8PathBuf, DumpFolder) {
        let kept = tempfile::tempdir().expect("a folder");
        let path = Utf8PathBuf::from_path_buf(kept.path().to_owned()).expect("a path");
        std::fs::create_dir(path.join("dumps")).expect("a folder");
        std::fs::write(path.join("dump"), DUMP).expect("a dump");
        let dumps = DumpFolder::at(path.join("dumps"));
        (kept, path, dumps)
    }

    fn at() -> Timestamp {
        "2026-11-20T02:00:00Z".parse().expect("a time")
    }

    #[test]
    fn stored_dump_is_readable_with_each_key_and_with_no_other() {
        let (_kept, path, dumps) = folder();
        let (own, other, foreign) = (Key::generate(), Key::generate(), Key::generate());
        let stored = dumps
            .store(&path.join("dump"), vec![own.recipient(), other.recipient()], at(), MONTH)
            .expect("it is stored");
        assert_eq!(stored.name, "backup_20261120.dump.age");
        let file = std::fs::read(path.join("dumps").join(&stored.name)).expect("the file");
        assert_eq!(stored.bytes, file.len() as u64);
        assert!(!file.windows(6).any(|part| part == b"digest"), "it is not in clear");
        let out = path.join("out");
        for key in [own, other] {
            assert_eq!(dumps.open(None, &Decryptor::Keys(vec![key]), &out).expect("it opens"), stored.name);
            assert_eq!(std::fs::read(&out).expect("the dump"), DUMP);
        }
        for opener in [Decryptor::Keys(vec![foreign]), Decryptor::Nothing] {
            assert!(matches!(dumps.open(None, &opener, &out), Err(Error::Sealed { .. })));
        }
        assert!(dumps.store(&path.join("dump"), Vec::new(), at(), MONTH).is_err(), "never without a key");
        assert_eq!(dumps.names().expect("the names"), [stored.name]);
    }

    #[test]
    fn dump_of_an_earlier_version_is_read_and_keeps_its_name() {
        let (_kept, path, dumps) = folder();
        std::fs::write(path.join("dumps/backup_20261120.dump"), DUMP).expect("an old dump");
        let out = path.join("out");
        let name = dumps.open(Some("backup_20261120.dump"), &Decryptor::Nothing, &out).expect("it opens");
        assert_eq!((name.as_str(), std::fs::read(&out).expect("the dump").as_slice()), ("backup_20261120.dump", DUMP));
        let stored = dumps.store(&path.join("dump"), vec![Key::generate().recipient()], at(), MONTH).expect("stored");
        assert_eq!(stored.name, "backup_20261120-2.dump.age");
        for missing in ["backup_20261121.dump", "../dump", ""] {
            assert!(dumps.open(Some(missing), &Decryptor::Nothing, &out).is_err(), "{missing}");
        }
    }

    #[test]
    fn expired_dumps_and_unfinished_files_are_removed_and_foreign_ones_kept() {
        let (_kept, path, dumps) = folder();
        let old = |name: &str, days: u64| {
            let file = File::create(path.join("dumps").join(name)).expect("a file");
            file.set_modified(SystemTime::now() - Duration::from_secs(days * 86_400)).expect("its time");
        };
        for (name, days) in [
            ("backup_20261001.dump", 40),
            ("backup_20261002.dump.age", 31),
            ("backup_20261110.dump.age", 10),
            (".new-1", 1),
            ("notes.txt", 90),
        ] {
            old(name, days);
        }
        File::create(path.join("dumps/.new-2")).expect("one of another run");
        dumps.store(&path.join("dump"), vec![Key::generate().recipient()], at(), MONTH).expect("it is stored");
        let mut left: Vec<String> = path
            .join("dumps")
            .read_dir_utf8()
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name().to_owned())
            .collect();
        left.sort();
        assert_eq!(left, [".lock", ".new-2", "backup_20261110.dump.age", "backup_20261120.dump.age", "notes.txt"]);
    }

    #[test]
    fn cut_dump_is_refused() {
        let (_kept, path, dumps) = folder();
        let key = Key::generate();
        let stored = dumps.store(&path.join("dump"), vec![key.recipient()], at(), MONTH).expect("it is stored");
        let file = path.join("dumps").join(&stored.name);
        let bytes = std::fs::read(&file).expect("the file");
        std::fs::write(&file, &bytes[..bytes.len() - 1]).expect("it is cut");
        assert!(dumps.open(None, &Decryptor::Keys(vec![key]), &path.join("out")).is_err());
    }
}
