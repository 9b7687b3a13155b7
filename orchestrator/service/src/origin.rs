//! Whether the files of a state were put there on this machine. The author of a state that was cloned, unpacked or copied may
//! have written anything into it: programs with their digests, addresses to which passwords go, links to what is removed.
//! He cannot choose the inode and the time of change of a file: a copy has others, and only root can set that time.

use std::io;
use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use textnlp_files::Replace;

use crate::{Deployment, Failure, Scope};

/// An empty file.
const SEED: &str = ".origin";
/// What that file had when this machine made it.
const RECORD: &str = ".origin.json";
/// The folders of an environment with what runs on the machine, or ran.
const OF_MACHINE: [&str; 2] = ["sites", "programs"];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    inode: u64,
    changed: (i64, i64),
}

fn there(folder: &Utf8Path) -> Option<Origin> {
    let found = folder.join(SEED).symlink_metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(Origin { inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) })
}

/// Whether nothing in a state folder came from elsewhere: it was recorded here, or nothing of a machine is in it.
pub fn is_of_here(folder: &Utf8Path) -> bool {
    if OF_MACHINE.iter().all(|name| folder.join(name).symlink_metadata().is_err()) {
        return true;
    }
    is_recorded(folder)
}

fn is_recorded(folder: &Utf8Path) -> bool {
    let recorded =
        std::fs::read(folder.join(RECORD)).ok().and_then(|text| serde_json::from_slice::<Origin>(&text).ok());
    recorded.is_some() && recorded == there(folder)
}

/// The operations that a run would finish before it plans, if no operator approved a run with this state on this machine:
/// the state was copied, or it is in a store and another machine began them. Each as `VERB RESOURCE`.
pub async fn unapproved(deployment: &Deployment) -> Result<Vec<String>, Failure> {
    if is_recorded(&deployment.chosen.scope.folder) {
        return Ok(Vec::new());
    }
    let (state, mut found) = (deployment.state().await?, Vec::new());
    for site in state.sites() {
        let open = state.open(site).map_err(anyhow::Error::from)?;
        found.extend(
            open.values().map(|one| format!("{} {}", one.intent.operation.verb, one.intent.operation.resource)),
        );
    }
    Ok(found)
}

/// Records that the state is of this machine: an operator approved an `up` with it, or restored it here.
pub fn record(folder: &Utf8Path) -> Result<(), Failure> {
    let is_recorded = folder.join(RECORD).is_file() && is_of_here(folder);
    if is_recorded {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        // A new file takes the place of what is there.
        Replace::mode(0o600).write(folder.join(SEED), b"").map_err(io::Error::other)?;
        let origin = there(folder).ok_or(io::ErrorKind::NotFound)?;
        Replace::mode(0o600).write(folder.join(RECORD), &serde_json::to_vec(&origin)?).map_err(io::Error::other)
    };
    Ok(write().with_context(|| format!("record the origin of the state in {folder}"))?)
}

/// Refuses to work with a state from elsewhere.
pub fn check(scope: &Scope) -> Result<(), Failure> {
    if is_of_here(&scope.folder) {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "the state in {} was copied, cloned or unpacked: its author decided what runs, what is removed and where passwords go",
        scope.folder
    );
    Err(Failure::refused("copied_state", error).hint(format!(
        "if you trust its author, take it over with {}; an `up` with approved changes does so too",
        scope.command("state adopt")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_and_foreign_states_are_not_of_here() {
        let root = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(root.path()).unwrap();
        let state = root.join("staging");
        assert!(is_of_here(&state), "there is none");
        std::fs::create_dir_all(state.join("secrets")).unwrap();
        assert!(is_of_here(&state), "nothing of a machine is in it");
        std::fs::create_dir(state.join("sites")).unwrap();
        assert!(!is_of_here(&state));
        record(&state).unwrap();
        record(&state).unwrap();
        assert!(is_of_here(&state));
        // A state that moved within its file system is the same one.
        let moved = root.join("moved");
        std::fs::rename(&state, &moved).unwrap();
        assert!(is_of_here(&moved));
        let copy = root.join("copy");
        let copied = std::process::Command::new("cp").args(["-a", moved.as_str(), copy.as_str()]).status().unwrap();
        assert!(copied.success() && !is_of_here(&copy));
        // A link to a file whose record is known.
        std::fs::remove_file(copy.join(SEED)).unwrap();
        std::os::unix::fs::symlink(moved.join(SEED), copy.join(SEED)).unwrap();
        assert!(!is_of_here(&copy));
        std::fs::write(copy.join(RECORD), "{}").unwrap();
        assert!(!is_of_here(&copy));
        record(&copy).unwrap();
        assert!(is_of_here(&copy) && is_of_here(&moved));
    }
}
