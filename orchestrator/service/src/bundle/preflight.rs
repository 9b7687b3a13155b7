//! Preflight checks of an install: all problems at once, before the first byte is written.

use camino::Utf8Path;
use textnlp_bundle::manifest::ItemKind;
use textnlp_bundle::{Bundle, Site};
use textnlp_models::Memory;
use textnlp_provider::Problem;

use super::platform;
use crate::{Failure, size};

/// Disk space in bytes besides the weights: programs, caches and contexts.
const PROGRAMS: u64 = 512 << 20;

/// Who an environment will run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserKind {
    /// The caller, or the one that is deployed.
    None,
    /// Root, which the operator chose.
    Root,
    /// Another user, which root installs it for.
    Service,
}

/// Checks the machine, the folder and running environments. Reports all problems at once.
///
/// `of_user`: those of the user. `of_environment`: those of the environment, which are asked if it does not run here yet.
pub async fn preflight(
    bundle: &Bundle,
    (root, state): (&Utf8Path, &Utf8Path),
    name: &str,
    (user, of_user): (UserKind, Vec<Problem>),
    of_environment: impl AsyncFnOnce() -> Result<Vec<Problem>, Failure>,
) -> Result<Vec<Problem>, Failure> {
    let mut problems = of_user;
    let mut wrong = |location: &str, cause: String, fix: String| problems.push(Problem::new(location, cause, fix));
    let items = &bundle.manifest().items;

    let here = platform();
    let programs: Vec<_> =
        items.iter().filter(|i| i.kind == ItemKind::Program).filter_map(|i| i.platform.clone()).collect();
    if !programs.contains(&here) {
        let cause = format!("this machine is {here}; the bundle has programs for {}", list(&programs));
        wrong("bundle", cause, format!("create it with a program for this machine: --program {here}=FILE"));
    }
    if let Err(cause) = may_write(root) {
        wrong(
            "--root",
            format!("{root} is not writable: {cause}"),
            "choose another folder with --root, or run as its owner".into(),
        );
    }
    if !state.starts_with(root)
        && let Err(cause) = may_write(state)
    {
        let fix = "choose another folder with --state-dir, or run as its owner";
        wrong("--state-dir", format!("{state} is not writable: {cause}"), fix.into());
    }
    let weights = weights(bundle);
    let needs = Site::new(root).needs(bundle).and_then(|mut needs| {
        if user == UserKind::Service && state.starts_with(root) {
            // The kernel refuses the user links to files of root (`fs.protected_hardlinks`): its model cache has copies.
            needs.bytes += weights;
        }
        needs.check(root)
    });
    if let Err(error) = needs {
        let fix = error.hint().unwrap_or_else(|| "choose another folder with --root".to_owned());
        wrong("--root", error.to_string(), fix);
    }
    let now = jiff::Timestamp::now().as_second();
    if u64::try_from(now).unwrap_or(0) < bundle.manifest().epoch {
        let cause = format!(
            "this machine's clock says {}, which is before the bundle was created",
            jiff::Timestamp::now().strftime("%Y-%m-%d")
        );
        wrong("clock", cause, "set the clock: certificates issued now would not be valid".into());
    }
    let memory = Memory::here();
    if weights + PROGRAMS > memory.total {
        let cause = format!(
            "the models need {}, this machine has {} of memory ({})",
            size(weights),
            size(memory.total),
            memory.bound_by
        );
        wrong(
            "memory",
            cause,
            "remove models from the environment, quantize them, or use a machine with more memory".into(),
        );
    }
    // An environment that runs here already uses its ports and files, and `up` checks its changes. A stream can be read
    // only once.
    if !state.join(name).join("lineage.json").exists() && bundle.path().is_some() {
        let mut found = of_environment().await?;
        // Those of the user are known already.
        found.retain(|problem| user == UserKind::None || problem.place != "prerequisites.user");
        problems.extend(found);
    }
    Ok(problems)
}

fn may_write(root: &Utf8Path) -> Result<(), String> {
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(Utf8Path::new("/"));
    if !there.is_dir() {
        return Err(format!("{there} is not a folder"));
    }
    rustix::fs::access(there.as_std_path(), rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|e| e.to_string())
}

fn weights(bundle: &Bundle) -> u64 {
    let weights =
        |path: &str| path.starts_with("models/") && (path.ends_with(".safetensors") || path.ends_with(".gguf"));
    bundle.manifest().files.iter().filter(|f| weights(&f.path)).map(|f| f.size).sum()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "no machine".to_owned() } else { names.join(", ") }
}
