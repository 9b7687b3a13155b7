//! Files of the store: safe names, bounded reads, locks that are waited for.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use textnlp_files::{Lock, Replace, sync_folder};

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

/// Replaces a file durably. Other processes may write the same one.
pub(crate) fn write_durably(path: &Utf8Path, bytes: &[u8]) -> Result<()> {
    Ok(Replace::umask().write(path, bytes)?)
}

pub(crate) fn sync_parent(path: &Utf8Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| Ok(sync_folder(folder)?))
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

/// Lock files of a store that users share.
const LOCK_MODE: u32 = 0o666;

/// Takes a lock of the store, shared or alone, unless another process holds it in a way that excludes that.
pub(crate) fn try_lock(path: &Utf8Path, shared: bool) -> Result<Option<Lock>> {
    Ok(if shared { Lock::try_shared(path, LOCK_MODE) } else { Lock::try_exclusive(path, LOCK_MODE) }?)
}

/// Waits for the lock; says after the first look that it waits.
pub(crate) async fn lock(path: &Utf8Path, shared: bool, most: Duration, what: &str, waits: impl Fn()) -> Result<Lock> {
    let started = Instant::now();
    loop {
        if let Some(held) = try_lock(path, shared)? {
            return Ok(held);
        }
        if started.elapsed() >= most {
            return Err(Error::Busy { what: what.to_owned() });
        }
        waits();
        // The system offers no wait for a file lock with a deadline, so we look again.
        tokio::time::sleep(Duration::from_millis(100).min(most)).await;
    }
}
