//! The digests of programs that were read here, so that a program of 200 MB is not hashed for each plan.
//!
//! A digest belongs to a file of that size, inode and times. `up` keeps those that its process took; plans write nothing. The
//! providers take the digest of a program again from the bytes that they deliver.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use textnlp_files::Replace;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The record in the folder of an environment, whose owner is checked before anything is read from it.
const RECORD: &str = ".programs.json";
/// The most that is kept: programs of different versions, each with its image.
const MOST: usize = 16;
/// The longest record that is read.
const MOST_BYTES: u64 = 64 << 10;
/// A file that changed this recently may change once more without another time.
const SETTLED: Duration = Duration::from_secs(2);

/// What tells versions of a file apart without reading it. A file that was overwritten can be given its old time back, but not the
/// time of the change of its inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    bytes: u64,
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    /// `None` if the file is not there, or changed a moment ago.
    fn of(path: &Utf8Path) -> Option<Self> {
        let found = path.metadata().ok()?;
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(found.ctime().try_into().ok()?);
        changed.elapsed().ok().filter(|age| *age >= SETTLED)?;
        Some(Self {
            bytes: found.len(),
            device: found.dev(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// What a program has a digest of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Of {
    /// Its bytes: `sha256:…`.
    File,
    /// The image that is made of it: `VERSION-DIGITS@sha256:…`.
    Image,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    path: String,
    of: Of,
    /// The version of the program that took it, which decides how an image is made.
    version: String,
    fingerprint: Fingerprint,
    digest: String,
}

/// What this process knows.
static KNOWN: Digests = Digests::new();

/// The digest of a program: as it was taken before, or by `take`. `folder` is that of the environment.
pub(crate) fn digest<E>(
    folder: &Utf8Path,
    program: &Utf8Path,
    of: Of,
    take: impl FnOnce() -> Result<String, E>,
) -> Result<String, E> {
    KNOWN.digest(folder, program, of, take)
}

/// Keeps the digests that this process took for later ones.
pub fn keep(folder: &Utf8Path) -> io::Result<()> {
    KNOWN.keep(folder)
}

struct Digests(Mutex<Vec<Known>>);

impl Digests {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn digest<E>(
        &self,
        folder: &Utf8Path,
        program: &Utf8Path,
        of: Of,
        take: impl FnOnce() -> Result<String, E>,
    ) -> Result<String, E> {
        let Some(fingerprint) = Fingerprint::of(program) else { return take() };
        let is_same = |known: &&Known| {
            (known.path.as_str(), known.of, known.version.as_str()) == (program.as_str(), of, VERSION)
                && known.fingerprint == fingerprint
        };
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().find(is_same).cloned();
        if let Some(known) = before.or_else(|| recorded(folder).iter().find(is_same).cloned()) {
            return Ok(known.digest);
        }
        let digest = take()?;
        if Fingerprint::of(program).as_ref() == Some(&fingerprint) {
            let (path, version) = (program.to_string(), VERSION.to_owned());
            let known = Known { path, of, version, fingerprint, digest: digest.clone() };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(known);
        }
        Ok(digest)
    }

    fn keep(&self, folder: &Utf8Path) -> io::Result<()> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let before = recorded(folder);
        if all.iter().all(|known| before.contains(known)) {
            return Ok(());
        }
        let is_new = |known: &Known| !all.iter().any(|one| (&one.path, one.of) == (&known.path, known.of));
        let older: Vec<Known> = before.into_iter().filter(is_new).collect();
        all.extend(older);
        all.truncate(MOST);
        Replace::mode(0o600).write(folder.join(RECORD), &serde_json::to_vec(&all)?).map_err(io::Error::other)
    }
}

/// What earlier processes kept; nothing where it cannot be read.
fn recorded(folder: &Utf8Path) -> Vec<Known> {
    let read = || -> io::Result<Vec<Known>> {
        let mut text = Vec::new();
        std::fs::File::open(folder.join(RECORD))?.take(MOST_BYTES).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::{File, FileTimes};

    use super::*;

    /// A program whose time of change is in the past cannot be made, so a test uses one that is there: its own.
    #[test]
    fn program_is_read_again_only_when_it_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let program = camino::Utf8PathBuf::try_from(std::env::current_exe().unwrap()).unwrap();
        let taken = Cell::new(0);
        let ask = |digests: &Digests, of: Of, digest: &str| {
            let take = || {
                taken.set(taken.get() + 1);
                Ok::<_, ()>(digest.to_owned())
            };
            digests.digest(folder, &program, of, take).unwrap()
        };
        let first = Digests::new();
        assert_eq!((ask(&first, Of::File, "a"), ask(&first, Of::File, "b"), taken.get()), ("a".into(), "a".into(), 1));
        assert_eq!((ask(&first, Of::Image, "i"), taken.get()), ("i".into(), 2));
        assert_eq!(
            (ask(&Digests::new(), Of::File, "c"), taken.get()),
            ("c".into(), 3),
            "nothing is kept without `keep`"
        );
        first.keep(folder).unwrap();
        let later = Digests::new();
        assert_eq!((ask(&later, Of::File, "d"), ask(&later, Of::Image, "j"), taken.get()), ("a".into(), "i".into(), 3));
        // Of another size, inode or time, or made by another version.
        let text = std::fs::read_to_string(folder.join(RECORD)).unwrap();
        for (field, value) in
            [("bytes", "1"), ("inode", "1"), ("device", "1"), ("changed", "[1,1]"), ("version", "\"\"")]
        {
            let mut known: serde_json::Value = serde_json::from_str(&text).unwrap();
            for one in known.as_array_mut().unwrap() {
                let at = if field == "version" { "/version" } else { &format!("/fingerprint/{field}") };
                *one.pointer_mut(at).unwrap() = serde_json::from_str(value).unwrap();
            }
            std::fs::write(folder.join(RECORD), known.to_string()).unwrap();
            assert_eq!(ask(&Digests::new(), Of::File, "e"), "e", "{field}");
        }
        std::fs::write(folder.join(RECORD), "[").unwrap();
        assert_eq!(ask(&Digests::new(), Of::File, "f"), "f");
    }

    #[test]
    fn program_that_changed_a_moment_ago_is_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let program = folder.join("program");
        std::fs::write(&program, "one").unwrap();
        // Its own time says nothing: anybody can set it.
        let old = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        File::options().write(true).open(&program).unwrap().set_times(old).unwrap();
        let digests = Digests::new();
        for digest in ["a", "b"] {
            assert_eq!(
                digests.digest(folder, &program, Of::File, || Ok::<_, ()>(digest.to_owned())),
                Ok(digest.to_owned())
            );
        }
        digests.keep(folder).unwrap();
        assert!(!folder.join(RECORD).exists());
    }
}
