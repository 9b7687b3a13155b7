//! Preflight checks of an install: reports all problems at once, before the first byte is written.

use anyhow::Context;
use camino::Utf8Path;
use textnlp_bundle::manifest::ItemKind;
use textnlp_bundle::{Bundle, Site, recipe};
use textnlp_models::Memory;
use textnlp_orchestrator::environment::Library;
use textnlp_provider::Problem;

use super::site;
use crate::deployment::{self, preflight_failure};
use crate::report::{Console, Exit, Failure, size};
use crate::session::Session;

/// Disk space in bytes besides the weights: programs, caches and contexts.
const PROGRAMS: u64 = 512 << 20;
/// Limit of an environment file in bytes.
const MOST_ENVIRONMENT: u64 = 4 << 20;

/// Checks the machine, the folder and running environments. Reports all problems at once.
pub async fn preflight(
    session: &Session,
    bundle: &Bundle,
    root: &Utf8Path,
    name: &str,
    console: Console,
) -> Result<(), Failure> {
    let state = site::wanted_state(session, root)?;
    let mut problems = Vec::new();
    let mut wrong = |location: &str, cause: String, fix: String| problems.push(Problem::new(location, cause, fix));
    let items = &bundle.manifest().items;

    let here = site::platform();
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
        && let Err(cause) = may_write(&state)
    {
        let fix = "choose another folder with --state-dir, or run as its owner";
        wrong("--state-dir", format!("{state} is not writable: {cause}"), fix.into());
    }
    let needs = Site::new(root).needs(bundle).and_then(|needs| needs.check(root));
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
    let weights = weights(bundle);
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
        problems.extend(of_environment(session, bundle, root, name, console).await?);
    }
    let (warnings, problems): (Vec<_>, Vec<_>) = problems.into_iter().partition(|p| p.warning);
    for warning in warnings.iter().filter(|w| !w.note) {
        console.warn(warning.to_string());
    }
    if problems.is_empty() { Ok(()) } else { Err(preflight_failure("install", "preflight", Exit::Failed, &problems)) }
}

/// The preflight problems of the environment, without those of its models, which the bundle contains.
async fn of_environment(
    session: &Session,
    bundle: &Bundle,
    root: &Utf8Path,
    name: &str,
    console: Console,
) -> Result<Vec<Problem>, Failure> {
    let bytes = bundle.read_file(&recipe::environment_path(name), MOST_ENVIRONMENT).map_err(super::failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let placed = site::placed(&text, &root.join("current"), &bundle.manifest().items)?;
    // A private folder with a random name, because installs often run as root.
    let folder = tempfile::tempdir().context("read the bundle's environment")?;
    let there = Utf8Path::from_path(folder.path()).context("the temporary folder's path is not UTF-8")?;
    let own = there.join(format!("{name}.yaml"));
    let kept = root.join("environments").join(format!("{name}.yaml"));
    // The settings of an earlier install override the bundle's, as in `up`.
    let bundled = if kept.is_file() {
        std::fs::copy(&kept, &own).with_context(|| format!("copy {kept}"))?;
        there.join(format!("bundle-{name}.yaml"))
    } else {
        own
    };
    std::fs::write(&bundled, placed).with_context(|| format!("write {bundled}"))?;
    let mut global = session.global.clone();
    (global.env, global.file) = (Some(name.to_owned()), None);
    let state = site::wanted_state(session, root)?;
    let of_root = state.starts_with(root);
    global.state_dir = Some(state);
    let probe_session = Session {
        global,
        here: session.here.clone(),
        library: Library::from_folder(there.to_owned()),
        is_alone: false,
        keeps_user: true,
    };
    // `up` prints the notes.
    let chosen = probe_session.load_to_run(Console::new(session.global.output, true))?;
    let deployment = deployment::wanted(&probe_session, chosen, console).await?;
    let mut problems = Vec::new();
    for site_run in deployment.sites.values() {
        let wanted: Vec<_> = site_run.wanted.iter().filter(|w| !w.kind.as_str().ends_with(".model")).cloned().collect();
        problems.extend(
            site_run
                .provider
                .preflight(&wanted)
                .await
                .map_err(|e| Failure::new(Exit::Failed, "preflight", anyhow::Error::new(e)))?,
        );
    }
    if of_root {
        problems.iter_mut().for_each(|problem| problem.fix = problem.fix.replace("--state-dir", "--root"));
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
