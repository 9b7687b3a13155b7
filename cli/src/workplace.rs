//! Folders of one run, which go with it. Each says in its name whose it is, so that those of killed runs can be told and go too: what is in
//! them is mostly secret.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};

/// A private folder in `parent`. What killed runs left there goes first, but for what `stays`.
pub fn make(parent: &Utf8Path, prefix: &str, stays: impl Fn(&Utf8Path) -> bool) -> anyhow::Result<tempfile::TempDir> {
    for folder in left(parent, prefix).iter().filter(|folder| !stays(folder)) {
        // What cannot be removed now is tried again by the next run.
        let _ = std::fs::remove_dir_all(folder);
    }
    let made = tempfile::Builder::new().prefix(&format!("{prefix}{}-", std::process::id())).tempdir_in(parent);
    made.with_context(|| format!("make a folder in {parent}"))
}

/// The folders in `parent` whose run is no more.
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
    fn what_killed_runs_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let parent = Utf8Path::from_path(dir.path()).unwrap();
        // No process has this number.
        let [dead, kept, other] =
            [".work-4194305-a", ".work-4194305-b", ".else-4194305-a"].map(|name| parent.join(name));
        let ours = parent.join(format!(".work-{}-c", std::process::id()));
        for folder in [&dead, &kept, &other, &ours] {
            std::fs::create_dir(folder).unwrap();
        }
        let made = make(parent, ".work-", |folder| *folder == kept).unwrap();
        assert!(!dead.exists() && [&kept, &other, &ours].iter().all(|folder| folder.exists()));
        assert!(made.path().is_dir() && !left(parent, ".work-").contains(&ours));
    }
}
