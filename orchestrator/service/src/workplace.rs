//! Temporary folders of one run. The name contains the process id, so that the folders of killed runs are recognised
//! and removed. Most contain secrets.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};

/// Creates a private folder in `parent`. First removes the folders of killed runs, except those that `stays` selects.
pub fn make(parent: &Utf8Path, prefix: &str, stays: impl Fn(&Utf8Path) -> bool) -> anyhow::Result<tempfile::TempDir> {
    for folder in left(parent, prefix).iter().filter(|folder| !stays(folder)) {
        // The next run retries a failed removal.
        let _ = std::fs::remove_dir_all(folder);
    }
    let prefix = format!("{prefix}{}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent);
    made.with_context(|| format!("create a folder in {parent}"))
}

/// The least room in bytes that a temporary folder needs: what a state has besides databases, and the programs that still
/// write to its disk.
const LEAST_ROOM: u64 = 64 << 20;

/// Creates a private folder in `parent`, or among the temporary files where `parent` lacks room for that many bytes and those have it: a
/// backup is needed most when a disk is full. `None`: it is not known how much is needed. Never in memory, which the service needs.
pub fn with_room(parent: &Utf8Path, prefix: &str, bytes: Option<u64>) -> anyhow::Result<tempfile::TempDir> {
    let others = Utf8PathBuf::try_from(std::env::temp_dir()).ok().filter(|other| other != parent);
    let elsewhere = format!("textnlp-{}", prefix.trim_start_matches('.'));
    for folder in others.iter().flat_map(|other| left(other, &elsewhere)).filter(|folder| is_ours(folder)) {
        let _ = std::fs::remove_dir_all(folder);
    }
    let Some(bytes) = bytes else { return make(parent, prefix, |_| false) };
    let needed = bytes.saturating_add(LEAST_ROOM);
    let has_room = |folder: &Utf8Path| textnlp_files::filesystem(folder).is_ok_and(|disk| disk.free >= needed);
    match roomy(parent, others.into_iter().filter(|other| !is_in_memory(other)), has_room) {
        Some(other) => {
            for folder in left(parent, prefix) {
                let _ = std::fs::remove_dir_all(folder);
            }
            make(&other, &elsewhere, |folder| !is_ours(folder))
        }
        None => make(parent, prefix, |_| false),
    }
}

/// Whether a folder is on a tmpfs.
fn is_in_memory(folder: &Utf8Path) -> bool {
    /// <https://man7.org/linux/man-pages/man2/statfs.2.html>.
    const TMPFS: i64 = 0x0102_1994;
    rustix::fs::statfs(folder.as_std_path()).is_ok_and(|found| found.f_type == TMPFS)
}

/// The first other folder with room, where `parent` has none.
fn roomy(
    parent: &Utf8Path,
    mut others: impl Iterator<Item = Utf8PathBuf>,
    has_room: impl Fn(&Utf8Path) -> bool,
) -> Option<Utf8PathBuf> {
    if has_room(parent) { None } else { others.find(|other| has_room(other)) }
}

fn is_ours(folder: &Utf8Path) -> bool {
    folder.symlink_metadata().is_ok_and(|found| found.uid() == textnlp_files::caller())
}

/// Creates a private folder for sockets among the temporary files: their paths have a short length limit, and state
/// folders may have long paths.
pub fn for_sockets() -> anyhow::Result<tempfile::TempDir> {
    let parent = Utf8PathBuf::try_from(std::env::temp_dir()).context("the folder of temporary files is not UTF-8")?;
    make(&parent, "textnlp-verify-", |folder| !is_ours(folder))
}

/// The folders in `parent` whose process has exited.
pub fn left(parent: &Utf8Path, prefix: &str) -> Vec<Utf8PathBuf> {
    let is_left = |name: &str| {
        let pid = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        pid.is_some_and(|pid| !Utf8PathBuf::from(format!("/proc/{pid}")).exists())
    };
    let entries = parent.read_dir_utf8().into_iter().flatten().flatten();
    entries.filter(|entry| is_left(entry.file_name())).map(|entry| entry.path().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_temporary_directories_of_killed_runs_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let parent = Utf8Path::from_path(dir.path()).unwrap();
        // No process has this id.
        let [dead, kept, other] =
            [".work-4194305-a", ".work-4194305-b", ".else-4194305-a"].map(|name| parent.join(name));
        let ours = parent.join(format!(".work-{}-c", std::process::id()));
        for folder in [&dead, &kept, &other, &ours] {
            std::fs::create_dir(folder).unwrap();
        }
        let made = make(parent, ".work-", |folder| *folder == kept).unwrap();
        assert!(!dead.exists() && [&kept, &other, &ours].iter().all(|folder| folder.exists()));
        assert_eq!(made.path().metadata().unwrap().permissions().mode() & 0o777, 0o700, "whatever the umask is");
        assert!(made.path().is_dir() && !left(parent, ".work-").contains(&ours));
    }

    #[test]
    fn temporary_folder_is_elsewhere_only_where_its_disk_is_full() {
        let others = || ["/tmp", "/other"].map(Utf8PathBuf::from).into_iter();
        let chosen =
            |full: &[&str]| roomy(Utf8Path::new("/state"), others(), |folder| !full.contains(&folder.as_str()));
        assert_eq!(chosen(&["/tmp"]), None);
        assert_eq!(chosen(&["/state"]).unwrap(), "/tmp");
        assert_eq!(chosen(&["/state", "/tmp"]).unwrap(), "/other");
        assert_eq!(chosen(&["/state", "/tmp", "/other"]), None, "it fails where it did before");
        let dir = tempfile::tempdir().unwrap();
        let parent = Utf8Path::from_path(dir.path()).unwrap();
        for bytes in [Some(u64::MAX), None] {
            let made = with_room(parent, ".work-", bytes).unwrap();
            assert_eq!(made.path().parent(), Some(dir.path()), "no disk has that room");
        }
        assert!(is_in_memory(Utf8Path::new("/dev/shm")) && !is_in_memory(Utf8Path::new("/proc")));
    }

    #[test]
    fn folder_for_sockets_is_private() {
        let made = for_sockets().unwrap();
        assert_eq!(made.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
