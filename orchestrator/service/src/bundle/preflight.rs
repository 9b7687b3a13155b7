//! Preflight checks of an install: all problems at once, before the first byte is written.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::manifest::ItemKind;
use textnlp_bundle::{Bundle, Needs, Site, recipe};
use textnlp_models::Memory;
use textnlp_provider::Problem;

use super::platform;
use crate::{Failure, size};

/// Memory in bytes besides the weights: programs, caches and contexts.
const PROGRAMS: u64 = 512 << 20;
/// Disk space in bytes of a new site besides its models and programs.
const SITE: u64 = 256 << 20;
/// The parts of a bundle that are named in reports. All others are small.
const PARTS: [(&str, &str); 4] =
    [("bin", "programs"), ("images", "images"), ("models", "models"), ("packages", "packages")];

/// What an installation writes: its name, its folder, its bytes.
type Demand<'a> = (&'static str, &'a Utf8Path, u64);

/// The file system of a folder, by its nearest existing parent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Disk {
    path: Utf8PathBuf,
    device: u64,
    free: u64,
}

impl Disk {
    /// `None` where the system does not say it: then the installation itself finds a lack of space.
    fn of(folder: &Utf8Path) -> Option<Disk> {
        let path = nearest(folder);
        let device = std::fs::metadata(path).ok()?.dev();
        let free = textnlp_files::filesystem(path).ok()?.free;
        Some(Disk { path: path.to_owned(), device, free })
    }
}

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
    let is_new = !state.join(name).join("lineage.json").exists();
    let mut few = Vec::new();
    let checked = Site::new(root).needs(bundle).and_then(|(needs, parts)| {
        let mut demands = demands_of_root(root, &needs, &parts);
        if is_new {
            demands
                .extend([("the site's program", state, program_bytes(bundle, &here)), ("data and logs", state, SITE)]);
        }
        let fix = |flag: &str| format!("free some bytes there, or choose another folder with {flag}");
        let flag = |folder: &Utf8Path| if folder == root { "--root" } else { "--state-dir" };
        let short = short_of_space(&demands, Disk::of);
        for (folder, cause) in &short {
            wrong(flag(folder), cause.clone(), fix(flag(folder)));
        }
        let device = |folder: &Utf8Path| Disk::of(folder).map(|disk| disk.device);
        // The kernel refuses the user links to files of root (`fs.protected_hardlinks`), and no link leaves a file system: then the
        // model cache has copies. The cache may be elsewhere, and may have the models already.
        if is_new && short.is_empty() && (user == UserKind::Service || device(root) != device(state)) {
            demands.push(("copies of the models", state, weights));
            for (folder, cause) in short_of_space(&demands, Disk::of) {
                few.push(Problem::warning(flag(folder), cause, fix(flag(folder))));
            }
        }
        Needs { bytes: 0, ..needs }.check(root)
    });
    if let Err(error) = checked {
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
    problems.extend(few);
    // An environment that runs here already uses its ports and files, and `up` checks its changes. A stream can be read
    // only once.
    if is_new && bundle.path().is_some() {
        let mut found = of_environment().await?;
        // Those of the user are known already.
        found.retain(|problem| user == UserKind::None || problem.place != "prerequisites.user");
        problems.extend(found);
    }
    Ok(problems)
}

fn may_write(root: &Utf8Path) -> Result<(), String> {
    let there = nearest(root);
    if !there.is_dir() {
        return Err(format!("{there} is not a folder"));
    }
    rustix::fs::access(there.as_std_path(), rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(|e| e.to_string())
}

/// The folder itself, or its nearest existing parent.
fn nearest(folder: &Utf8Path) -> &Utf8Path {
    folder.ancestors().find(|path| path.exists()).unwrap_or(Utf8Path::new("/"))
}

fn demands_of_root<'a>(root: &'a Utf8Path, needs: &Needs, parts: &BTreeMap<&'static str, u64>) -> Vec<Demand<'a>> {
    let bytes = |part: &str| parts.get(part).copied().unwrap_or(0);
    let mut demands: Vec<Demand<'a>> = PARTS.iter().map(|&(part, what)| (what, root, bytes(part))).collect();
    let named: u64 = demands.iter().map(|(.., bytes)| bytes).sum();
    demands.push(("other files", root, needs.bytes.saturating_sub(named)));
    demands
}

/// The file systems that lack space for the sum of what is written to them, by the first folder in each, with the cause.
fn short_of_space<'a>(
    demands: &[Demand<'a>],
    disk_of: impl Fn(&Utf8Path) -> Option<Disk>,
) -> Vec<(&'a Utf8Path, String)> {
    let mut disks: BTreeMap<u64, (&Utf8Path, Disk, Vec<&Demand<'a>>)> = BTreeMap::new();
    for demand in demands.iter().filter(|(.., bytes)| *bytes > 0) {
        let Some(disk) = disk_of(demand.1) else { continue };
        disks.entry(disk.device).or_insert_with(|| (demand.1, disk, Vec::new())).2.push(demand);
    }
    let short = disks.into_values().filter_map(|(folder, disk, demands)| {
        let needed = demands.iter().fold(0u64, |sum, (.., bytes)| sum.saturating_add(*bytes));
        let parts: Vec<String> = demands.iter().map(|(what, _, bytes)| format!("{what} {}", size(*bytes))).collect();
        let Disk { path, free, .. } = disk;
        let cause = format!("{path} has {free} bytes free; {needed} are needed: {}", parts.join(", "));
        (needed > free).then_some((folder, cause))
    });
    short.collect()
}

/// The bytes of the program for a platform.
fn program_bytes(bundle: &Bundle, platform: &str) -> u64 {
    let path = recipe::program_path(platform);
    bundle.manifest().files.iter().find(|file| file.path == path).map_or(0, |file| file.size)
}

fn weights(bundle: &Bundle) -> u64 {
    let weights =
        |path: &str| path.starts_with("models/") && (path.ends_with(".safetensors") || path.ends_with(".gguf"));
    bundle.manifest().files.iter().filter(|f| weights(&f.path)).map(|f| f.size).sum()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "no machine".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_on_one_file_system_are_checked_by_their_sum() {
        let (root, state) = (Utf8Path::new("/srv/site"), Utf8Path::new("/var/state"));
        let needs = Needs { bytes: 700, inodes: 1, kept: 0 };
        let mut demands =
            demands_of_root(root, &needs, &BTreeMap::from([("models", 400), ("images", 200), ("sbom", 50)]));
        demands.push(("data and logs", state, 500));
        let disk = |device, free| Some(Disk { path: "/srv".into(), device, free });
        // Each part has room, also all of the root and of the state.
        let one = short_of_space(&demands, |_| disk(1, 1199));
        let parts = "images 200 bytes, models 400 bytes, other files 100 bytes, data and logs 500 bytes";
        assert_eq!(one, [(root, format!("/srv has 1199 bytes free; 1200 are needed: {parts}"))]);
        assert!(short_of_space(&demands, |_| disk(1, 1200)).is_empty());
        let two = |folder: &Utf8Path| if folder == root { disk(1, 700) } else { disk(2, 499) };
        let found = short_of_space(&demands, two);
        assert_eq!(found, [(state, "/srv has 499 bytes free; 500 are needed: data and logs 500 bytes".to_owned())]);
        assert!(short_of_space(&demands, |_| None).is_empty(), "the installation itself finds it");
    }
}
