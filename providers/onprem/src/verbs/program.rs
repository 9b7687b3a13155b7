//! A program by its digest: copied into the site, so that a new build or installation does not affect the running one.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde_json::{Map, Value, json};
use textnlp_files::{Replace, copy_sha256};
use textnlp_keys::{
    Marker, SiteFolder,
    files::{self, Stamp},
};
use textnlp_provider::{Error, ErrorKind, Progress, Result};

use super::{Observation, ObservedObject, Work};
use crate::jobs::JobStatus;
use crate::spec::ProgramSpec;
use crate::verified::{COPIED, PREVIOUS, accepted, is_own};

/// How long a program that was just written may be open for writing in a child that was forked meanwhile.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const BUSY_POLL: Duration = Duration::from_millis(5);
/// Unfinished operations that leave a digest behind.
const PREVIOUS_MAX: usize = 4;
/// Held during a copy. A copy continues after its job was dropped, and the next copy of the same program has the same temporary file.
static COPY: Mutex<()> = Mutex::new(());

/// Starts a program that was written a moment ago. Linux runs no file that a process has open for writing (`ETXTBSY` of
/// execve(2)), and a child that was forked during the write has it open until its own `exec`.
pub(crate) async fn start_written(command: &mut tokio::process::Command) -> io::Result<tokio::process::Child> {
    let began = Instant::now();
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && began.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(BUSY_POLL).await;
            }
            started => return started,
        }
    }
}

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: ProgramSpec = work.spec()?;
    let path = work.folder.inside(&spec.path)?;
    work.refuse_strangers(&path)?;
    let cloud_id = work.folder.cloud_id(&spec.path)?;
    if work.marker.as_ref().is_none_or(|marker| marker.complete || marker.operation != work.op.id) {
        // Until the new one has its path, the supervisor may restart the old one.
        let mut previous = work.marker.as_ref().map(accepted).unwrap_or_default();
        previous.truncate(PREVIOUS_MAX);
        let mut facts = Map::new();
        facts.insert(PREVIOUS.to_owned(), json!(previous));
        work.claim(&cloud_id, facts)?;
    }
    // Tens of megabytes, written durably: on a slow disk longer than a call may take.
    let says = format!("copies {}", spec.source);
    match work.provider.jobs().look(work.op, move |_| copied(spec, path)).await? {
        JobStatus::GoesOn(_) => Ok(work.pending(json!({ "step": "copy" }), says)),
        JobStatus::Ended(facts) => {
            let marker = work.complete(&cloud_id, facts)?;
            work.done(&marker).await
        }
    }
}

async fn copied(spec: ProgramSpec, path: Utf8PathBuf) -> Result<Map<String, Value>> {
    let (source, sha256, target) = (spec.source.clone(), spec.sha256.clone(), path.clone());
    let copied = tokio::task::spawn_blocking(move || copy(&source, &sha256, &target)).await;
    copied.map_err(std::io::Error::other).and_then(|copied| copied).map_err(|error| {
        let invalid = error.kind() == std::io::ErrorKind::InvalidData;
        let failed = Error::io("copy program", format!("{} to {path}", spec.source), error);
        if invalid { failed.hint("`release set` locks the program that is there now") } else { failed }
    })?;
    let stamp = Stamp::of(&path).map_err(|error| Error::io("check", path.as_str(), error))?;
    let mut facts = Map::new();
    facts.insert("sha256".to_owned(), json!(spec.sha256));
    facts.insert("stamp".to_owned(), json!(stamp));
    Ok(facts)
}

fn copy(source: &camino::Utf8Path, sha256: &str, target: &camino::Utf8Path) -> std::io::Result<()> {
    let _alone = COPY.lock().unwrap_or_else(PoisonError::into_inner);
    if files::sha256(target).is_ok_and(|there| there == sha256) && is_executable(target) {
        return Ok(());
    }
    let real = source.canonicalize_utf8()?;
    if let Some(folder) = target.parent() {
        files::make_folder(folder)?;
    }
    let mut from = files::open_plain(&real)?;
    // No other user may enter its folder; the PostgreSQL supervisor gives the program to a PostgreSQL of another
    // user, to archive its log.
    Replace::mode(0o755).sole_writer().with(target, |file| {
        let digest = copy_sha256(&mut from, file)?.hex();
        if digest == sha256 {
            return Ok(());
        }
        let why = format!("its digest is sha256:{digest}, not sha256:{sha256}");
        Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why))
    })
}

fn is_executable(path: &camino::Utf8Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.mode() & 0o100 != 0 && is_own(&found))
}

pub(super) fn remove(work: &Work<'_>) -> Result<()> {
    let spec: ProgramSpec = work.applied()?;
    let path = work.folder.inside(&spec.path)?;
    files::remove_file(&path).map_err(work.io(&path))
}

pub(super) async fn observe(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let spec: ProgramSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.inside(&spec.path)?;
    let Some(stamp) = Stamp::of(&path).map_err(|error| Error::io("check", path.as_str(), error))? else {
        return Ok(Observation::Absent);
    };
    let mut look = ObservedObject::default();
    look.output("path", path.as_str()).output("sha256", marker.fact("sha256").unwrap_or_default());
    // The file is hashed only when its stamp changed, because it has tens of megabytes.
    if marker.facts.get("stamp") != Some(&json!(stamp)) {
        let file = path.clone();
        let digest = tokio::task::spawn_blocking(move || files::sha256(&file)).await;
        match digest.map_err(std::io::Error::other).and_then(|digest| digest) {
            Ok(digest) if Some(digest.as_str()) == marker.fact("sha256") => drop(look.drift("file", COPIED)),
            Ok(digest) => drop(look.drift("content", format!("it was changed: sha256 {}", &digest[..12]))),
            Err(error) => drop(look.drift("content", format!("it cannot be read: {error}"))),
        }
    }
    if !is_executable(&path) {
        look.drift("mode", "it is not executable");
    }
    Ok(Observation::There(look))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use camino::Utf8Path;

    use super::*;

    #[tokio::test]
    async fn program_that_is_still_open_for_writing_starts_when_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let program = Utf8Path::from_path(dir.path()).unwrap().join("program");
        std::fs::copy("/bin/sh", &program).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let writer = std::fs::OpenOptions::new().append(true).open(&program).unwrap();
        let mut command = tokio::process::Command::new(&program);
        command.args(["-c", "exit 7"]);
        let busy = command.spawn().unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::ExecutableFileBusy);
        let (started, ()) = tokio::join!(start_written(&mut command), async {
            tokio::task::yield_now().await;
            drop(writer);
        });
        assert_eq!(started.unwrap().wait().await.unwrap().code(), Some(7));
    }

    #[test]
    fn copies_of_one_program_do_not_disturb_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let (source, target) = (root.join("source"), root.join("bin/program"));
        std::fs::write(&source, vec![7; 4 << 20]).unwrap();
        let sha256 = files::sha256(&source).unwrap();
        std::thread::scope(|scope| {
            let copies: Vec<_> = (0..4).map(|_| scope.spawn(|| copy(&source, &sha256, &target))).collect();
            copies.into_iter().for_each(|copied| copied.join().unwrap().unwrap());
        });
        assert_eq!(files::sha256(&target).unwrap(), sha256);
    }
}
