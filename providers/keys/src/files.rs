//! Files of a site: durable writes, bounded reads, private folders. The engine holds the site's lock, so each path has one writer.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_files::{Replace, copy_sha256, sync_folder};

use crate::layout::SiteFolder;

/// The largest text (unit, marker, configuration) that is ever read.
pub const TEXT_MAX: u64 = 4 << 20;

/// Replaces the content of `path` durably.
pub fn put(path: &Utf8Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    Ok(Replace::mode(mode).sole_writer().write(path, bytes)?)
}

/// The folder of `path`, and the name under which a new folder for it is prepared.
pub fn folder_and_temporary(path: &Utf8Path) -> io::Result<(&Utf8Path, Utf8PathBuf)> {
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok((folder, folder.join(format!(".{name}.new")))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a file needs a folder and a name")),
    }
}

/// Makes the entries of a folder durable.
pub fn flush_folder(folder: &Utf8Path) -> io::Result<()> {
    Ok(sync_folder(folder)?)
}

/// Reads a file of bounded size without following a symbolic link at its end.
pub fn read_bounded(path: &Utf8Path, max: u64) -> io::Result<Vec<u8>> {
    let file = open_plain(path)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {max} bytes")));
    }
    Ok(bytes)
}

/// Opens a plain file for reading; symbolic links, pipes and devices are refused.
pub fn open_plain(path: &Utf8Path) -> io::Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file"));
    }
    Ok(file)
}

/// SHA-256 of a file, hex.
pub fn sha256(path: &Utf8Path) -> io::Result<String> {
    copy_sha256(&mut open_plain(path)?, &mut io::sink()).map(|digest| digest.hex())
}

/// Removes a file or link; a missing one is no error.
pub fn remove_file(path: &Utf8Path) -> io::Result<()> {
    gone_is_fine(std::fs::remove_file(path))
}

/// Removes an empty folder; a missing one is no error.
pub fn remove_folder(path: &Utf8Path) -> io::Result<()> {
    gone_is_fine(std::fs::remove_dir(path))
}

/// Removes a folder with its content without following links; a missing one is no error.
pub fn remove_tree(path: &Utf8Path) -> io::Result<()> {
    gone_is_fine(std::fs::remove_dir_all(path))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Creates a folder, with its parents, that only its owner may enter. A link or file in its place is refused.
pub fn make_folder(path: &Utf8Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "another object has its path"));
    }
    if found.mode() & 0o777 != 0o700 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Whether a path is free, or a folder that only this process's user may enter.
pub(crate) fn is_free_or_own(path: &Utf8Path) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(found) => found.is_dir() && found.uid() == textnlp_files::caller() && found.mode() & 0o077 == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Creates a site's short folder for sockets, if it has one, and records it. Another user may have created it first, so
/// owner and mode are checked.
pub fn make_sockets_folder(folder: &SiteFolder) -> io::Result<()> {
    if !folder.has_short_sockets() {
        return Ok(());
    }
    let path = folder.sockets();
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !is_free_or_own(&path) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{path} belongs to another user")));
    }
    let (_, fresh) = folder_and_temporary(&folder.sockets_record())?;
    remove_file(&fresh)?;
    std::os::unix::fs::symlink(&path, &fresh)?;
    std::fs::rename(&fresh, folder.sockets_record())
}

/// Removes a site's short folder for sockets and its record.
pub(crate) fn remove_sockets_folder(folder: &SiteFolder) -> io::Result<()> {
    if folder.has_short_sockets() {
        remove_tree(&folder.sockets())?;
    }
    remove_file(&folder.sockets_record())
}

/// A cheap check for a changed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    /// The length of the file.
    pub bytes: u64,
    /// The inode number.
    pub inode: u64,
    /// The time of the last change of its content, in nanoseconds since 1970.
    pub modified_ns: i64,
    changed_ns: i64,
}

impl Stamp {
    /// The stamp of a path, links not followed; `None` when nothing is there.
    pub fn of(path: &Utf8Path) -> io::Result<Option<Self>> {
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
    fn symlinks_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(read_bounded(&path, 10).is_err());
    }
}
