//! A disk without room: only where the site's data has a filesystem of its own, so that nobody else runs out of it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};

use super::elsewhere;
use crate::files;
use crate::layout::SiteFolder;

/// More than any filesystem that was made for a rehearsal; a real disk is not filled.
const MOST: u64 = 64 << 30;
const PIECE: u64 = 64 << 20;

/// Where the site's data lies, each with what must not lie on the same filesystem: a database that runs as another user has a folder outside
/// the site's, and is its data as well.
fn places(folder: &SiteFolder) -> Vec<(Utf8PathBuf, Utf8PathBuf)> {
    let data = folder.join("data");
    let database = elsewhere(&data).map(|path| (path.clone(), path.parent().unwrap_or(&path).to_owned()));
    [(data, folder.root().to_owned())].into_iter().chain(database).collect()
}

/// Says why this site's disk is not filled.
pub(super) fn check(folder: &SiteFolder) -> Result<(), String> {
    for (data, beside) in places(folder) {
        if device(&data)? == device(&beside)? {
            return Err(format!(
                "{data} is on the same filesystem as everything else: filling it would fill that too. Mount one of its own there, \
                 or rehearse another fault"
            ));
        }
        let free = free_bytes(&data)?;
        if free > MOST {
            return Err(format!("{data} has {} GB free; no more than {} GB are filled", free >> 30, MOST >> 30));
        }
    }
    Ok(())
}

/// Says why this site's data cannot be put where nobody finds it: a filesystem stays where it is mounted.
pub(super) fn can_be_taken(folder: &SiteFolder) -> Result<(), String> {
    for (data, beside) in places(folder) {
        if device(&data)? != device(&beside)? {
            return Err(format!(
                "{data} is a filesystem of its own, which cannot be taken away while it is mounted: rehearse `kill` without \
                 --lose-data, or `disk_full`"
            ));
        }
    }
    Ok(())
}

/// Takes every byte that is free.
pub(super) fn fill(folder: &SiteFolder, id: &str) -> Result<(), String> {
    places(folder).iter().try_for_each(|(data, _)| fill_one(data, id))
}

fn fill_one(data: &Utf8Path, id: &str) -> Result<(), String> {
    let path = file(data, id);
    let fails = |error: std::io::Error| format!("fill {path}: {error}");
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        // Both may lie on one filesystem, which the other has filled.
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
        opened => opened.map_err(fails)?,
    };
    let (mut at, mut piece) = (0, PIECE);
    // Pieces get smaller as the room does, and their sum is bounded: others may free some meanwhile.
    while piece >= 4096 && at < 2 * MOST {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, piece) {
            Ok(()) => at += piece,
            Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => piece /= 2,
            // A filesystem that cannot reserve gets zeros.
            Err(rustix::io::Errno::OPNOTSUPP) => return zeros(&mut file, free_bytes(data)?.min(MOST)).map_err(fails),
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

/// Gives the room back.
pub(super) fn free(folder: &SiteFolder, id: &str) -> Result<(), String> {
    let mut failed = Ok(());
    for (data, _) in places(folder) {
        let path = file(&data, id);
        // One that cannot be removed keeps no other.
        failed = failed.and(files::remove_file(&path).map_err(|error| format!("remove {path}: {error}")));
    }
    failed
}

fn device(path: &Utf8Path) -> Result<u64, String> {
    std::fs::metadata(path).map(|found| found.dev()).map_err(|error| format!("look at {path}: {error}"))
}

fn free_bytes(path: &Utf8Path) -> Result<u64, String> {
    let found = rustix::fs::statvfs(path.as_std_path()).map_err(|error| format!("look at {path}: {error}"))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn file(data: &Utf8Path, id: &str) -> Utf8PathBuf {
    data.join(format!(".fault-{id}"))
}
