//! A disk without room: only where the site's data has a filesystem of its own, so that nobody else runs out of it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use camino::Utf8PathBuf;

use crate::files;
use crate::layout::SiteFolder;

/// More than any filesystem that was made for a rehearsal; a real disk is not filled.
const MOST: u64 = 64 << 30;
const PIECE: u64 = 64 << 20;

/// Says why this site's disk is not filled.
pub(super) fn check(folder: &SiteFolder) -> Result<(), String> {
    let device = |path: &camino::Utf8Path| {
        std::fs::metadata(path).map(|found| found.dev()).map_err(|error| format!("look at {path}: {error}"))
    };
    let data = folder.join("data");
    if device(&data)? == device(folder.root())? {
        return Err(format!(
            "{data} is on the same filesystem as everything else: filling it would fill that too. Mount one of its own there, \
             or rehearse another fault"
        ));
    }
    let free = free_bytes(&data)?;
    if free > MOST {
        return Err(format!("{data} has {} GB free; no more than {} GB are filled", free >> 30, MOST >> 30));
    }
    Ok(())
}

/// Takes every byte that is free.
pub(super) fn fill(folder: &SiteFolder, id: &str) -> Result<(), String> {
    let (data, path) = (folder.join("data"), file(folder, id));
    let fails = |error: std::io::Error| format!("fill {path}: {error}");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(fails)?;
    let (mut at, mut piece) = (0, PIECE);
    // Pieces get smaller as the room does, and their sum is bounded: others may free some meanwhile.
    while piece >= 4096 && at < 2 * MOST {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, piece) {
            Ok(()) => at += piece,
            Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => piece /= 2,
            // A filesystem that cannot reserve gets zeros.
            Err(rustix::io::Errno::OPNOTSUPP) => return zeros(&mut file, free_bytes(&data)?.min(MOST)).map_err(fails),
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
    let path = file(folder, id);
    files::remove_file(&path).map_err(|error| format!("remove {path}: {error}"))
}

fn free_bytes(path: &camino::Utf8Path) -> Result<u64, String> {
    let found = rustix::fs::statvfs(path.as_std_path()).map_err(|error| format!("look at {path}: {error}"))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn file(folder: &SiteFolder, id: &str) -> Utf8PathBuf {
    folder.join(&format!("data/.fault-{id}"))
}
