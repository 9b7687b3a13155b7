//! The disk-full fault. It needs a filesystem of the site's own, so that no other program runs out of space.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_keys::{SiteFolder, files};

use super::elsewhere;

/// Larger than a filesystem made for a drill; a real disk is not filled.
const MAX_FILESYSTEM_BYTES: u64 = 64 << 30;
const PIECE: u64 = 64 << 20;

/// The data folders of the site, each with a folder that must be on another filesystem. A database that runs as another
/// user has its folder outside of the site's.
fn places(folder: &SiteFolder) -> Vec<(Utf8PathBuf, Utf8PathBuf)> {
    let data = folder.join("data");
    let database = elsewhere(&data).map(|path| (path.clone(), path.parent().unwrap_or(&path).to_owned()));
    [(data, folder.root().to_owned())].into_iter().chain(database).collect()
}

/// Refuses the fault where this site's disk must not be filled.
pub(super) fn check(folder: &SiteFolder) -> Result<(), String> {
    for (data, neighbour) in places(folder) {
        if device(&data)? == device(&neighbour)? {
            return Err(format!(
                "{data} is on the same filesystem as other data: filling it would fill that too. Mount a separate filesystem there, or choose another fault"
            ));
        }
        let free = free_bytes(&data)?;
        if free > MAX_FILESYSTEM_BYTES {
            return Err(format!(
                "{data} has {} GB free; a drill fills at most {} GB",
                free >> 30,
                MAX_FILESYSTEM_BYTES >> 30
            ));
        }
    }
    Ok(())
}

/// Refuses the loss of data where the data is a mount point, which cannot be renamed.
pub(super) fn can_be_taken(folder: &SiteFolder) -> Result<(), String> {
    for (data, neighbour) in places(folder) {
        if device(&data)? != device(&neighbour)? {
            return Err(format!(
                "{data} is a mount point and cannot be removed while it is mounted: use `kill` without --lose-data, or `disk_full`"
            ));
        }
    }
    Ok(())
}

/// Allocates all free space.
pub(super) fn fill(folder: &SiteFolder, id: &str) -> Result<(), String> {
    places(folder).iter().try_for_each(|(data, _)| fill_one(data, id))
}

fn fill_one(data: &Utf8Path, id: &str) -> Result<(), String> {
    let path = file(data, id);
    let fails = |error: std::io::Error| format!("fill {path}: {error}");
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        // Both folders may be on one filesystem, which is full by now.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
        opened => opened.map_err(fails)?,
    };
    let (mut at, mut piece) = (0, PIECE);
    // The allocated size shrinks with the free space, and the sum is bounded: other programs may free space meanwhile.
    while piece >= 4096 && at < 2 * MAX_FILESYSTEM_BYTES {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, piece) {
            Ok(()) => at += piece,
            Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => piece /= 2,
            // Write zeros where the filesystem does not support allocation.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                return zeros(&mut file, free_bytes(data)?.min(MAX_FILESYSTEM_BYTES)).map_err(fails);
            }
            Err(error) => return Err(fails(error.into())),
        }
    }
    Ok(())
}

fn zeros(file: &mut std::fs::File, most: u64) -> std::io::Result<()> {
    let block = vec![0; 1 << 20];
    let mut written = 0;
    while written <= most {
        match file.write(&block) {
            Ok(0) => break,
            Ok(n) => written += n as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Frees the allocated space.
pub(super) fn free(folder: &SiteFolder, id: &str) -> Result<(), String> {
    let mut failed = Ok(());
    for (data, _) in places(folder) {
        let path = file(&data, id);
        // A file that cannot be removed does not stop the removal of the others.
        failed = failed.and(files::remove_file(&path).map_err(|error| format!("remove {path}: {error}")));
    }
    failed
}

fn device(path: &Utf8Path) -> Result<u64, String> {
    std::fs::metadata(path).map(|found| found.dev()).map_err(|error| format!("inspect {path}: {error}"))
}

fn free_bytes(path: &Utf8Path) -> Result<u64, String> {
    let found = textnlp_files::filesystem(path).map_err(|error| format!("{error}: {}", error.source))?;
    Ok(found.free)
}

fn file(data: &Utf8Path, id: &str) -> Utf8PathBuf {
    data.join(format!(".fault-{id}"))
}
