//! Files that are whole or not there: written beside their place, flushed, renamed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};

/// The largest text (unit, marker, configuration) that is ever read.
pub(crate) const TEXT_MAX: u64 = 4 << 20;

/// Replaces `path` by `bytes`: after a crash there is the old file or the new one. Durable when it returns.
pub(crate) fn put(path: &Utf8Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put_from(path, mode, |file| file.write_all(bytes))
}

/// Like [`put`], with the content written by `fill`.
pub(crate) fn put_from(path: &Utf8Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let (folder, new) = beside(path)?;
    // A leftover of a run that was killed half-way. One writer per site: the engine holds its lock.
    remove_file(&new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    let written = fill(&mut file).and_then(|()| {
        // The umask may have taken bits away.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    });
    if let Err(error) = written {
        remove_file(&new)?;
        return Err(error);
    }
    flush_folder(folder)
}

/// The name under which the next version of `path` is prepared.
pub(crate) fn beside(path: &Utf8Path) -> io::Result<(&Utf8Path, Utf8PathBuf)> {
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok((folder, folder.join(format!(".{name}.new")))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a file needs a folder and a name")),
    }
}

/// Makes the entries of a folder durable.
pub(crate) fn flush_folder(folder: &Utf8Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Reads a file of bounded size without following a symbolic link at its end.
pub(crate) fn read_bounded(path: &Utf8Path, max: u64) -> io::Result<Vec<u8>> {
    let file = open_plain(path)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {max} bytes")));
    }
    Ok(bytes)
}

/// Opens a plain file for reading; symbolic links, pipes and devices are refused.
pub(crate) fn open_plain(path: &Utf8Path) -> io::Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file"));
    }
    Ok(file)
}

/// SHA-256 of a file, hex.
pub(crate) fn sha256(path: &Utf8Path) -> io::Result<String> {
    copy_hashed(&mut open_plain(path)?, &mut io::sink()).map(|(digest, _)| digest)
}

/// Copies everything and says the SHA-256 and the length of it.
pub(crate) fn copy_hashed(from: &mut impl Read, to: &mut impl Write) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 256 << 10];
    let mut length = 0u64;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok((hex::encode(hash.finalize()), length)),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        length += n as u64;
    }
}

/// Removes a file or link; what is gone is fine.
pub(crate) fn remove_file(path: &Utf8Path) -> io::Result<()> {
    gone_is_fine(std::fs::remove_file(path))
}

/// Removes an empty folder; what is gone is fine.
pub(crate) fn remove_folder(path: &Utf8Path) -> io::Result<()> {
    gone_is_fine(std::fs::remove_dir(path))
}

/// Removes a folder with all in it, never following a link; what is gone is fine.
pub(crate) fn remove_tree(path: &Utf8Path) -> io::Result<()> {
    gone_is_fine(std::fs::remove_dir_all(path))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a folder that only its owner may enter, with its parents. A link or file in its place is refused.
pub(crate) fn make_folder(path: &Utf8Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "something else lies in its place"));
    }
    if found.mode() & 0o777 != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Makes the folder for sockets under `/tmp`, where anybody may have been first: it must be ours alone.
pub(crate) fn make_private_folder(path: &Utf8Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(path)?;
    let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
    if ours { Ok(()) } else { Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else")) }
}

/// What tells cheaply that a file is the one seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Stamp {
    pub(crate) bytes: u64,
    pub(crate) inode: u64,
    pub(crate) modified_ns: i64,
    pub(crate) changed_ns: i64,
}

impl Stamp {
    /// The stamp of what lies at a path, links not followed; `None` when nothing does.
    pub(crate) fn of(path: &Utf8Path) -> io::Result<Option<Self>> {
        match std::fs::symlink_metadata(path) {
            Ok(found) => Ok(Some(Self::from(&found))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl From<&std::fs::Metadata> for Stamp {
    fn from(found: &std::fs::Metadata) -> Self {
        let ns = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            bytes: found.len(),
            inode: found.ino(),
            modified_ns: ns(found.mtime(), found.mtime_nsec()),
            changed_ns: ns(found.ctime(), found.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("a file")).unwrap();
        put(&path, b"old", 0o600).unwrap();
        put_from(&path, 0o600, |file| file.write_all(b"ne").and(Err(io::Error::other("cut")))).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn links_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(read_bounded(&path, 10).is_err());
    }
}
