//! Files of the store: safe names, bounded reads, locks that are waited for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::OFlags;
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

/// A file of a model folder, unless it is a link that leads out of it: the author of a model decides where its links lead, and
/// what they lead to would be served and packed. The folders of a hub's cache have links to files of models in `models--*/blobs`.
pub(crate) fn of_model(folder: &Utf8Path, file: Utf8PathBuf) -> Result<Utf8PathBuf> {
    // A missing file is reported where it is opened.
    let Ok(found) = file.canonicalize_utf8() else { return Ok(file) };
    let blobs = found.parent().filter(|folder| folder.file_name() == Some("blobs"));
    let repository = blobs.and_then(Utf8Path::parent).and_then(Utf8Path::file_name);
    if repository.is_some_and(|name| name.starts_with("models--"))
        || found.starts_with(folder.canonicalize_utf8().map_err(Error::io("check", folder))?)
    {
        return Ok(file);
    }
    Err(Error::Unusable {
        what: format!("the file {file}"),
        why: "it is a link to a file outside of the model's folder".to_owned(),
        hint: "replace the link by a copy of the file".to_owned(),
    })
}

/// The configuration of a pooling module of sentence-transformers, inside a repository: `1_Pooling/config.json`.
pub(crate) fn is_pooling(path: &str) -> bool {
    let folder = path.strip_suffix("/config.json").and_then(|folder| folder.strip_suffix("_Pooling"));
    folder.is_some_and(|number| (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit()))
}

/// The name in a model folder of a file of a repository. A model folder has no folders: `1_Pooling/config.json` is
/// `1_Pooling.config.json`.
pub(crate) fn stored_name(path: &str) -> String {
    if is_pooling(path) { path.replace('/', ".") } else { path.rsplit('/').next().unwrap_or(path).to_owned() }
}

/// The configurations of pooling modules in a folder, as `1_Pooling/config.json`, sorted.
pub(crate) fn pooling_names(dir: &Utf8Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let Ok(folder) = entry.map_err(Error::io("list", dir))?.file_name().into_string() else { continue };
        let name = format!("{folder}/config.json");
        if is_pooling(&name) && fs::metadata(dir.join(&name)).is_ok_and(|found| found.is_file()) {
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

/// Opens a file of the store for reading. A link is not followed, and a pipe is not waited for.
pub(crate) fn open_to_read(path: &Utf8Path) -> io::Result<File> {
    open_plain(OpenOptions::new().read(true), path)
}

/// Opens a file of the store for writing behind its first `kept` bytes, and creates it if it is missing. Other users may be able to change
/// the folder: a link is not followed, and a file with a second name is refused, because it may be another file of its owner.
pub(crate) fn open_to_write(path: &Utf8Path, kept: u64) -> Result<File> {
    let open = || {
        let mut file = open_plain(OpenOptions::new().read(true).write(true).create(true).truncate(false), path)?;
        if file.metadata()?.nlink() != 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has another name, too"));
        }
        file.set_len(kept)?;
        file.seek(SeekFrom::Start(kept))?;
        Ok(file)
    };
    open().map_err(Error::io("write", path))
}

fn open_plain(options: &mut OpenOptions, path: &Utf8Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file")),
    }
}

/// Replaces a file durably. Other processes may write the same one.
pub(crate) fn write_durably(path: &Utf8Path, bytes: &[u8]) -> Result<()> {
    Ok(Replace::umask().write(path, bytes)?)
}

pub(crate) fn sync_parent(path: &Utf8Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| Ok(sync_folder(folder)?))
}

pub(crate) fn make_dir(dir: &Utf8Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("make folder", dir))?;
    no_link(dir)
}

/// Refuses a link where the cache has a folder: what is removed in it would be elsewhere.
pub(crate) fn no_link(dir: &Utf8Path) -> Result<()> {
    match fs::symlink_metadata(dir).map_err(Error::io("check", dir))?.is_dir() {
        true => Ok(()),
        false => {
            Err(Error::io("use", dir)(io::Error::new(io::ErrorKind::NotADirectory, "it is not a folder of its own")))
        }
    }
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
