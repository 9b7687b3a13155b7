//! Refuses a state that other users own or can change, before anything is read from it or written to it.
//!
//! Like sshd's StrictModes: every folder on the way to programs, records, secrets and models belongs to the caller, and
//! other users cannot write to it. Run-time folders such as `log` and `data` may belong to the users of services.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use textnlp_files::{Exposed, Exposure, caller, check_files, check_folder, check_parents, user, user_name};
use textnlp_orchestrator::state::audit::AUDIT;
use textnlp_orchestrator::state::io_hint;

use crate::{Failure, Platform, quoted};

/// The folders of an environment that are checked, beside those of its sites.
const FOLDERS: [&str; 4] = ["journal", "releases", "programs", AUDIT];
/// The checked levels within a folder: `secrets/NAME/VERSION`, `blobs/ab/FILE`.
const DEPTH: usize = 3;
/// The model cache, beside the environments.
pub const MODEL_CACHE: &str = "model-cache";

/// Resolves the folder with the states of all environments. It may be a link of the caller's own or of root.
pub fn resolve(typed: &Utf8Path) -> Result<Utf8PathBuf, Failure> {
    // Without a slash at the end, with which a link would be followed.
    let typed: Utf8PathBuf = typed.components().collect();
    let owner = typed.symlink_metadata().ok().filter(|there| there.is_symlink()).map(|there| there.uid());
    if let Some(owner) = owner.filter(|owner| ![caller(), 0].contains(owner)) {
        return Err(refused(vec![Exposed { path: typed.clone().into(), why: Exposure::Owner(owner) }], &typed, &typed));
    }
    let unreadable = |error| unreadable(&typed, &typed, error);
    let mut folder = resolved(&typed).map_err(unreadable)?;
    // The target of a link may not exist yet.
    if let (Ok(target), Some(parent)) = (folder.read_link_utf8(), folder.parent()) {
        folder = resolved(&parent.join(target)).map_err(unreadable)?;
    }
    Ok(folder)
}

/// Checks the folder with the states of all environments. It may belong to root.
fn check_states(folder: &Utf8Path) -> Result<(), Failure> {
    match check_parents(folder) {
        Ok(None) => Ok(()),
        Ok(Some(exposed)) => Err(refused(vec![exposed], folder, folder)),
        Err(error) => Err(unreadable(folder, folder, error.source)),
    }
}

/// Checks the state folder of an environment with its sites, the model cache beside it, and the folder that holds both.
pub fn check(platform: &dyn Platform, folder: &Utf8Path) -> Result<(), Failure> {
    let states = folder.parent().unwrap_or(folder);
    check_states(states)?;
    let mut found = Vec::new();
    let mut look = || -> Result<(), textnlp_files::Error> {
        check_folder(folder, 0, &mut found)?;
        if found.is_empty() {
            check_files(folder, &mut found)?;
            for name in FOLDERS.into_iter().chain([platform.secrets_folder()]) {
                check_folder(folder.join(name), DEPTH, &mut found)?;
            }
            platform.check_sites(folder, &mut found)?;
        }
        Ok(())
    };
    look().map_err(|error| unreadable(folder, states, error.source))?;
    if found.is_empty() { check_model_cache(&states.join(MODEL_CACHE)) } else { Err(refused(found, folder, states)) }
}

/// Checks the model cache and the folder that it is in. It may be a link of the caller's own: the clones of drills share
/// the cache of the states.
pub fn check_model_cache(folder: &Utf8Path) -> Result<(), Failure> {
    let states = folder.parent().unwrap_or(folder);
    check_states(states)?;
    let mut found = Vec::new();
    let mut checked = check_folder(folder, DEPTH, &mut found);
    if let [Exposed { why: Exposure::Link, .. }] = found.as_slice()
        && let Ok(target) = folder.canonicalize_utf8()
    {
        found.clear();
        checked = check_folder(&target, DEPTH, &mut found);
    }
    checked.map_err(|error| unreadable(folder, states, error.source))?;
    if found.is_empty() {
        return Ok(());
    }
    let failure = refused(found, folder, states);
    let hint = failure.hint.clone().unwrap_or_default();
    Err(failure
        .hint(format!("{hint}\nor remove it, and its models are fetched again: rm -r {}", quoted(folder.as_str()))))
}

/// The path without links and `..`, whether it exists or not: recorded paths must not depend on how it was typed.
fn resolved(path: &Utf8Path) -> Result<Utf8PathBuf, Error> {
    for existing in path.ancestors() {
        let mut real = match existing.canonicalize_utf8() {
            Ok(real) => real,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for part in path.strip_prefix(existing).into_iter().flat_map(Utf8Path::components) {
            match part {
                Utf8Component::Normal(name) => real.push(name),
                Utf8Component::ParentDir => {
                    real.pop();
                }
                _ => {}
            }
        }
        return Ok(real);
    }
    Ok(path.to_owned())
}

fn refused(found: Vec<Exposed>, folder: &Utf8Path, states: &Utf8Path) -> Failure {
    match found.as_slice() {
        [Exposed { path, why: Exposure::Owner(owner) }] if path.as_path() == folder.as_std_path() => {
            let error = anyhow::anyhow!("the state in {folder} belongs to {}", user(*owner));
            Failure::refused("other_owner", error)
                .hint(format!("run the command as that user: {}", as_user(*owner, states)))
        }
        [Exposed { path, why: Exposure::NotFolder }] => {
            let error = anyhow::anyhow!("the state needs a folder, and {} is a file", path.display());
            Failure::usage("not_a_folder", error).hint("choose a folder with --state-dir DIR")
        }
        found => {
            let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
            let fixes: Vec<String> = found.iter().map(Exposed::fix).collect();
            let error = anyhow::anyhow!("{}", lines.join("\n"))
                .context(format!("other users control files or folders of the state in {folder}"));
            Failure::refused("state_exposed", error).hint(fixes.join("\n"))
        }
    }
}

/// The failure for a path that cannot be checked.
fn unreadable(path: &Utf8Path, states: &Utf8Path, error: Error) -> Failure {
    let kind = error.kind();
    if kind == ErrorKind::NotADirectory
        && let Some(file) = path.ancestors().find(|path| path.is_file())
    {
        return refused(vec![Exposed { path: file.into(), why: Exposure::NotFolder }], path, states);
    }
    let seen = path.ancestors().find_map(|path| Some(path.symlink_metadata().ok()?.uid()));
    let hint = match seen.filter(|owner| kind == ErrorKind::PermissionDenied && *owner != caller()) {
        Some(owner) => format!("run the command as its owner: {}", as_user(owner, states)),
        None => io_hint(path.as_str(), kind),
    };
    Failure::refused("state", anyhow::Error::new(error).context(format!("check {path}"))).hint(hint)
}

/// This command, run as another user: with the state folder even if a variable or the home folder selected it.
fn as_user(uid: u32, states: &Utf8Path) -> String {
    let mut words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if !words.iter().any(|word| word.starts_with("--state-dir")) {
        words.extend(["--state-dir".to_owned(), states.to_string()]);
    }
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let user = match (uid, user_name(uid)) {
        (0, _) => String::new(),
        (_, Some(name)) => format!("-u {name} "),
        (_, None) => format!("-u '#{uid}' "),
    };
    format!("sudo {user}textnlp-deploy {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn sandbox() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().canonicalize_utf8().unwrap();
        (folder, path)
    }

    #[test]
    fn typed_paths_are_resolved_whether_they_exist_or_not() {
        let (_folder, root) = sandbox();
        std::fs::create_dir(root.join("real")).unwrap();
        symlink(root.join("real"), root.join("link")).unwrap();
        symlink("later", root.join("dangling")).unwrap();
        for (typed, real) in [
            ("new/./x/../y", "new/y"),
            ("link", "real"),
            ("link/", "real"),
            ("link/new", "real/new"),
            ("dangling", "later"),
            ("real/../real/.", "real"),
        ] {
            assert_eq!(resolve(&root.join(typed)).unwrap(), root.join(real), "{typed}");
        }
        std::fs::write(root.join("file"), "").unwrap();
        for typed in ["file", "file/below"] {
            let refused = resolve(&root.join(typed)).and_then(|folder| check_states(&folder)).unwrap_err();
            assert_eq!(refused.code, "not_a_folder");
            assert!(refused.error.to_string().ends_with("/file is a file"), "{:#}", refused.error);
        }
    }
}
