//! Files on this machine: safe names, durable writes, locks, free space.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::{Error, Result};

/// Whether a name from outside is one plain file name: nothing that leaves the folder, hides, or upsets a terminal.
pub(crate) fn safe_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && !name.chars().any(|c| c == '/' || c == '\\' || c.is_control())
}

/// The same for a path of plain names inside a repository.
pub(crate) fn safe_relative(path: &str) -> bool {
    path.len() <= 1000 && path.split('/').all(safe_name)
}

/// The plain file names of a folder, sorted. Other things in it are left out.
pub(crate) fn file_names(dir: &Utf8Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Hub caches are full of symbolic links, so links to files count.
        if safe_name(&name) && fs::metadata(entry.path()).is_ok_and(|found| found.is_file()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads a small file; `None` if it is not there. A larger one than `most` is an error: nothing here reads without a bound.
pub(crate) fn read_bounded(path: &Utf8Path, most: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let mut text = Vec::new();
    file.take(most + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
    if text.len() as u64 > most {
        return Err(Error::corrupt(path, format!("it is larger than {most} bytes")));
    }
    Ok(Some(text))
}

/// Writes a file so that after a crash either the old or the new one is there, whole.
pub(crate) fn write_durably(path: &Utf8Path, bytes: &[u8]) -> Result<()> {
    let temporary = Utf8PathBuf::from(format!("{path}.{}.new", unique()));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Error::io("write", path)(error)
    })?;
    sync_parent(path)
}

/// Makes a rename in this folder durable.
pub(crate) fn sync_dir(dir: &Utf8Path) -> Result<()> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", dir))
}

pub(crate) fn sync_parent(path: &Utf8Path) -> Result<()> {
    path.parent().map_or(Ok(()), sync_dir)
}

pub(crate) fn make_dir(dir: &Utf8Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("make folder", dir))
}

/// Removes a file that may already be gone.
pub(crate) fn remove_file(path: &Utf8Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a folder that may already be gone.
pub(crate) fn remove_dir(path: &Utf8Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A name that no other process or thread uses, on whatever machine: in containers every process is number 1.
pub(crate) fn unique() -> String {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}-{}", *PROCESS, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Bytes that this user may still write to the disk of `path`.
pub(crate) fn free_bytes(path: &Utf8Path) -> Result<u64> {
    let found = rustix::fs::statvfs(path.as_std_path())
        .map_err(|errno| Error::io("look at the disk of", path)(errno.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A lock file held by this process; the system lets go of it however the process ends.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "held for its lock")] File);

/// For reading too: a filesystem of the network takes a shared lock of nobody else.
fn open_lock(path: &Utf8Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(Error::io("open lock", path))
}

/// Takes the lock if nobody holds it in a way that excludes us.
pub(crate) fn try_lock(path: &Utf8Path, shared: bool) -> Result<Option<Held>> {
    let file = open_lock(path)?;
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Ok(()) => Ok(Some(Held(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
    }
}

/// Waits for the lock; says after the first look that it waits.
pub(crate) async fn lock(path: &Utf8Path, shared: bool, most: Duration, what: &str, waits: impl Fn()) -> Result<Held> {
    let begun = Instant::now();
    loop {
        if let Some(held) = try_lock(path, shared)? {
            return Ok(held);
        }
        if begun.elapsed() >= most {
            return Err(Error::Busy { what: what.to_owned() });
        }
        waits();
        // The system offers no wait for a file lock with a deadline, so we look again.
        tokio::time::sleep(Duration::from_millis(100).min(most)).await;
    }
}
