use std::path::Path;

use rustix::fs::StatVfsMountFlags;

use crate::error::{Error, Result};

/// What a filesystem says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// Its size in bytes.
    pub total: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes that this user may still write.
    pub free: u64,
    /// Files that this user may still create. `None` where the filesystem creates inodes as they are needed.
    pub free_inodes: Option<u64>,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Whether no program may be run from it.
    pub no_exec: bool,
}

/// The filesystem of a path that exists.
pub fn filesystem(path: impl AsRef<Path>) -> Result<Filesystem> {
    let path = path.as_ref();
    let found = rustix::fs::statvfs(path).map_err(|errno| Error::at("read the filesystem of", path)(errno.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Filesystem {
        total: bytes(found.f_blocks),
        used: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
        free: bytes(found.f_bavail),
        free_inodes: (found.f_files > 0).then_some(found.f_favail),
        read_only: found.f_flag.contains(StatVfsMountFlags::RDONLY),
        no_exec: found.f_flag.contains(StatVfsMountFlags::NOEXEC),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystem_used_and_free_do_not_exceed_the_total() {
        let folder = tempfile::tempdir().unwrap();
        let found = filesystem(folder.path()).unwrap();
        assert!(found.total > 0 && found.used + found.free <= found.total, "{found:?}");
        assert!(!found.read_only);
        assert_eq!(filesystem("/nothing/here").unwrap_err().source.kind(), std::io::ErrorKind::NotFound);
    }
}
