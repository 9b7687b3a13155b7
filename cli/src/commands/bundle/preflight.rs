//! Preflight checks of an install: reports all problems at once, before the first byte is written.

use anyhow::Context;
use camino::Utf8Path;
use tempfile::TempDir;
use textnlp_bundle::manifest::Item;
use textnlp_bundle::{Bundle, recipe};
use textnlp_orchestrator::environment::Library;
use textnlp_provider::Problem;
use textnlp_service::bundle::preflight::{self as service, UserKind};
use textnlp_service::bundle::site;

use super::install::requested_state;
use super::user::ServiceUser;
use crate::commands::prelude::*;
use crate::deployment::{self, preflight_failure};

/// Limit of an environment file in bytes.
const MOST_ENVIRONMENT: u64 = 4 << 20;

/// Checks the machine, the folder and running environments. Reports all problems at once.
pub async fn preflight(
    session: &Session,
    bundle: &Bundle,
    root: &Utf8Path,
    name: &str,
    user: Option<&ServiceUser>,
    console: Console,
) -> Result<(), Failure> {
    let state = site::wanted_state(root, requested_state(session).as_deref())?;
    let problems = user.map(|user| user.problems(root, &state)).transpose()?.unwrap_or_default();
    let kind = match user {
        None => UserKind::None,
        Some(user) if user.is_root() => UserKind::Root,
        Some(_) => UserKind::Service,
    };
    let of_environment = async || of_environment(session, bundle, root, name, console).await;
    report(service::preflight(bundle, (root, &state), name, (kind, problems), of_environment).await?, console)
}

/// Checks the user alone, for an environment that was unknown before.
pub fn user(user: &ServiceUser, root: &Utf8Path, state: &Utf8Path, console: Console) -> Result<(), Failure> {
    report(user.problems(root, state)?, console)
}

fn report(problems: Vec<Problem>, console: Console) -> Result<(), Failure> {
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
    let text = environment_text(bundle, name)?;
    let (_folder, probe_session) = probe(session, root, name, &text, &bundle.manifest().items)?;
    let of_root = probe_session.global.state_dir.as_ref().is_some_and(|state| state.starts_with(root));
    // `up` prints the notes.
    let chosen = probe_session.load_to_run(session.quiet())?;
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
    // After it: these commands have a `--state-dir` and no `--root`.
    problems.iter_mut().for_each(|problem| problem.fix = deployment.chosen.scope.complete(&problem.fix));
    Ok(problems)
}

/// The text of an environment of the bundle. A stream can be read only once, so its is found after it is unpacked.
pub fn environment_text(bundle: &Bundle, name: &str) -> Result<String, Failure> {
    let bytes = bundle.read_file(&recipe::environment_path(name), MOST_ENVIRONMENT).map_err(super::failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A session of the environment as it will be installed, with the folder of its files.
pub fn probe(
    session: &Session,
    root: &Utf8Path,
    name: &str,
    text: &str,
    items: &[Item],
) -> Result<(TempDir, Session), Failure> {
    let placed = site::placed(text, &root.join("current"), items)?;
    // A private folder with a random name, because installs often run as root.
    let folder = tempfile::tempdir().context("read the bundle's environment")?;
    let there = Utf8Path::from_path(folder.path()).context("the temporary folder's path is not UTF-8")?;
    let own = there.join(format!("{name}.yaml"));
    let kept = site::settings_file(root, name);
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
    global.state_dir = Some(site::wanted_state(root, requested_state(session).as_deref())?);
    let library = Library::from_folder(there.to_owned());
    let (here, installation) = (session.here.clone(), session.installation.clone());
    let probe_session = Session { global, here, library, installation, is_alone: false, keeps_user: true };
    Ok((folder, probe_session))
}
