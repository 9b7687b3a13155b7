//! An installed site: `ROOT/environments` has its settings, `ROOT/bin` its program, `ROOT/.textnlp` its state.

use std::process::Stdio;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use serde_yaml::{Mapping, Value as Yaml};
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::{Installed, Site, recipe};
use textnlp_files::Replace;
use textnlp_orchestrator::environment::{Library, Overrides};
use tokio::process::Command;

use super::install::absolute;
use super::{failed, user};
use crate::args::Output;
use crate::clouds;
use crate::report::{Console, Exit, Failure};
use crate::session::Session;
use crate::signals;

/// The state folder within a root.
const STATE: &str = ".textnlp";

/// The platform of this machine, as in bundles.
pub fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// The selected environment: the one of `--env`, else the only one.
pub fn environment(session: &Session, names: &[String]) -> Result<String, Failure> {
    let list = names.join(", ");
    match (&session.global.env, names) {
        (Some(name), _) if names.contains(name) => Ok(name.clone()),
        (Some(name), _) => {
            Err(Failure::usage("no_such_environment", anyhow::anyhow!("the bundle has no environment `{name}`"))
                .hint(format!("it has: {list}")))
        }
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(Failure::usage("no_environment", anyhow::anyhow!("the bundle contains no environment"))
            .hint("create a bundle with one: textnlp-deploy bundle create --env NAME --out FILE")),
        (None, [first, ..]) => {
            Err(Failure::usage("which_environment", anyhow::anyhow!("the bundle has several environments: {list}"))
                .hint(format!("choose one: --env {first}")))
        }
    }
}

/// The names of items of a kind.
pub fn names(items: &[Item], kind: ItemKind) -> Vec<String> {
    items.iter().filter(|item| item.kind == kind).map(|item| item.name.clone()).collect()
}

/// The state folder of a site: `ROOT/.textnlp`, or the folder that it links to.
pub fn state_folder(root: &Utf8Path) -> Utf8PathBuf {
    let own = root.join(STATE);
    own.read_link_utf8().map_or(own, |link_target| root.join(link_target))
}

/// The state folder of this run: that of `--state-dir`, unless the site has its state in another one.
pub fn wanted_state(session: &Session, root: &Utf8Path) -> Result<Utf8PathBuf, Failure> {
    let there = state_folder(root);
    let Some(requested) = session.again().state_dir().map(|requested| absolute(session, Utf8Path::new(requested)))
    else {
        return Ok(there);
    };
    let canonical = |path: &Utf8Path| path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned());
    if canonical(&requested) == canonical(&there) {
        return Ok(there);
    }
    if root.join(STATE).symlink_metadata().is_ok() {
        let error = anyhow::anyhow!("{root} keeps its state in {there}, not in {requested}");
        return Err(Failure::usage("other_state", error)
            .hint("omit --state-dir; for a second deployment, use another root: --root DIR"));
    }
    Ok(requested)
}

/// Links `ROOT/.textnlp` to an external state folder, where later commands find it.
fn link_state(root: &Utf8Path, state: &Utf8Path) -> Result<(), Failure> {
    let own = root.join(STATE);
    if state == own || own.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(state).with_context(|| format!("create {state}"))?;
    std::os::unix::fs::symlink(state, &own).with_context(|| format!("link {own}"))?;
    Ok(())
}

/// The settings of a site for an environment.
pub fn settings_file(root: &Utf8Path, environment: &str) -> Utf8PathBuf {
    root.join("environments").join(format!("{environment}.yaml"))
}

/// Copies the settings and the program of the current content to where `up` finds them. Keeps the operator's changes.
/// Records the user, by default that of the site.
pub fn lay_out(
    session: &Session,
    site: &Site,
    installed: &Installed,
    name: &str,
    user: Option<&str>,
    console: Console,
) -> Result<(), Failure> {
    let root = site.root();
    let of_site = if user.is_none() { user::of_site(session, root)? } else { None };
    let wanted = user.or(of_site.as_deref());
    let _shared = wanted.filter(|user| *user != "root").map(|_| user::SharedFiles::begin());
    link_state(root, &wanted_state(session, root)?)?;
    let current = root.join("current");
    let folder = root.join("environments");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {folder}"))?;
    for environment in names(&installed.contents.items, ItemKind::Environment) {
        let bundled = current.join(recipe::environment_path(&environment));
        let text = std::fs::read_to_string(&bundled).with_context(|| format!("read {bundled}"))?;
        write(
            &folder.join(format!("bundle-{environment}.yaml")),
            &placed(&text, &current, &installed.contents.items)?,
        )?;
        let own = settings_file(root, &environment);
        let mut sets = if environment == name { session.global.set.clone() } else { Vec::new() };
        if !own.exists() {
            // A user that was typed overrides the one of --set.
            sets.extend(user.filter(|_| environment == name).map(|user| format!("prerequisites.user={user}")));
            write(&own, &site_file(&environment, &sets)?)?;
        } else if !sets.is_empty() {
            console.say(format!("--set applies to this run only: to keep the setting, edit {own}"));
        }
        let runs_as_root = record_user(&folder, &environment, &own, wanted)?;
        if runs_as_root && user.is_none() && environment == name && rustix::process::geteuid().is_root() {
            let guide = "docs/guide/security.md, \"Choose the user\"";
            console.warn(format!("{name} runs as root: to run it as another user, see {guide}"));
        }
    }
    let bin = root.join("bin");
    std::fs::create_dir_all(&bin).with_context(|| format!("make {bin}"))?;
    let (link, fresh) = (bin.join("textnlp-deploy"), bin.join(".textnlp-deploy.new"));
    let _ = std::fs::remove_file(&fresh);
    let target = Utf8Path::new("../current").join(recipe::program_path(&platform()));
    std::os::unix::fs::symlink(&target, &fresh).with_context(|| format!("link {fresh}"))?;
    std::fs::rename(&fresh, &link).with_context(|| format!("link {link}"))?;
    Ok(())
}

/// Records the user in the settings of an environment that runs here, unless they name one. Returns whether the
/// environment runs as the user who calls `up`, root included.
fn record_user(folder: &Utf8Path, environment: &str, own: &Utf8Path, wanted: Option<&str>) -> Result<bool, Failure> {
    let loaded = Library::from_folder(folder).load(environment, &Overrides::default(), &clouds::catalogue());
    let found = loaded.ok().map(|loaded| loaded.environment);
    if found.as_ref().is_some_and(|found| !found.runs_here()) {
        return Ok(false);
    }
    // A user that only the bundle names is recorded too: the next bundle may not name it.
    let named = found.and_then(|found| found.prerequisites.user);
    let Some(user) = wanted.map(|wanted| named.as_deref().unwrap_or(wanted)) else {
        return Ok(named.as_deref().is_none_or(|named| named == "root"));
    };
    let text = std::fs::read_to_string(own).with_context(|| format!("read {own}"))?;
    let recorded = user::with_user(&text, user).ok_or_else(|| user::not_recordable(own, user))?;
    if recorded != text {
        write(own, &recorded)?;
    }
    Ok(user == "root")
}

/// The environment from the bundle, with its models at their installed paths and digests. An update may have replaced
/// only a model.
pub fn placed(text: &str, content: &Utf8Path, items: &[Item]) -> Result<String, Failure> {
    let mut document: Yaml = serde_yaml::from_str(text).context("read the environment of the bundle")?;
    let models = document.get_mut("models").and_then(Yaml::as_sequence_mut).into_iter().flatten();
    for model in models.filter_map(Yaml::as_mapping_mut) {
        let field = |key: &str| model.get(key).and_then(Yaml::as_str).map(str::to_owned);
        let (name, source) = (field("name"), field("source"));
        let (Some(name), Some(source)) = (name, source) else { continue };
        let Some(path) = source.strip_prefix("file:").filter(|path| !path.starts_with('/')) else { continue };
        model.insert("source".into(), format!("file:{}", content.join(path)).into());
        if let Some(item) = items.iter().find(|item| item.kind == ItemKind::Model && item.name == name) {
            model.insert("digest".into(), item.digest.to_string().into());
        }
    }
    let text = serde_yaml::to_string(&document).context("write the environment of the bundle")?;
    Ok(format!(
        "# From the installed bundle; the next bundle replaces this file. Put your own settings into the file without `bundle-`.\n{text}"
    ))
}

/// The content of the settings file for an operator's changes, which is written once.
fn site_file(name: &str, sets: &[String]) -> Result<String, Failure> {
    let mut settings = Mapping::new();
    for set in sets {
        let (path, value) = set.split_once('=').ok_or_else(|| {
            Failure::usage("usage", anyhow::anyhow!("--set {set}: a `=` is missing")).hint("--set server.api.port=9443")
        })?;
        let value: Yaml = serde_yaml::from_str(value).unwrap_or_else(|_| Yaml::String(value.to_owned()));
        let mut at = &mut settings;
        let parts: Vec<&str> = path.split('.').collect();
        for part in &parts[..parts.len() - 1] {
            let entry = at.entry(Yaml::from(*part)).or_insert_with(|| Yaml::Mapping(Mapping::new()));
            at = entry
                .as_mapping_mut()
                .ok_or_else(|| Failure::usage("usage", anyhow::anyhow!("--set {set}: `{part}` was set to a value")))?;
        }
        at.insert(Yaml::from(parts[parts.len() - 1]), value);
    }
    let more = if settings.is_empty() {
        String::new()
    } else {
        serde_yaml::to_string(&settings).context("write the settings")?
    };
    Ok(format!(
        "# Settings of this site that override the bundle's. Edit this file; no bundle replaces it.\nextends: bundle-{name}\nenvironment: {name}\n{more}"
    ))
}

fn write(path: &Utf8Path, text: &str) -> Result<(), Failure> {
    let written = Replace::umask().write(path, text.as_bytes());
    Ok(written.with_context(|| format!("write {path}"))?)
}

/// Options of a run of the site's own program.
pub struct Run<'a> {
    /// The site's root.
    pub root: &'a Utf8Path,
    /// The environment's name.
    pub environment: &'a str,
    /// Whether to skip the gate.
    pub no_gate: bool,
}

/// Locks the installed release and rolls it out, with the installed program, which knows its own formats. Returns the
/// document of `up`.
pub async fn up(session: &Session, run: &Run<'_>, console: Console) -> Result<Value, Failure> {
    let program = run.root.join("current").join(recipe::program_path(&platform()));
    let released = own(&program, session, run).args(["release", "set", "--quiet", "--output", "json"]).output().await;
    let released = released.with_context(|| format!("start {program}"))?;
    if !released.status.success() {
        return Err(passed_on(released.status.code(), &released.stdout, "release"));
    }
    let mut command = own(&program, session, run);
    command.arg("up").args(run.no_gate.then_some("--no-gate"));
    for set in &session.global.set {
        command.args(["--set", set]);
    }
    if session.global.yes {
        command.arg("--yes");
    }
    if session.global.quiet {
        command.arg("--quiet");
    }
    let text = session.global.output == Output::Text;
    command.args(["--output", if text { "text" } else { "json" }]);
    command.stdin(Stdio::inherit()).stdout(if text { Stdio::inherit() } else { Stdio::piped() });
    let child = command.spawn().with_context(|| format!("start {program}"))?;
    let pid = child.id();
    let stop = signals::stop(console);
    let ended = child.wait_with_output();
    tokio::pin!(ended);
    let output = tokio::select! {
        output = &mut ended => output,
        () = stop.cancelled() => {
            // Ctrl-C on a terminal reaches the child as well, but a `kill` of this process does not.
            if let Some(pid) = pid.and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            ended.await
        }
    };
    let output = output.with_context(|| format!("wait for {program}"))?;
    match output.status.code() {
        Some(0) => Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)),
        code => Err(passed_on(code, &output.stdout, "up")),
    }
}

fn own(program: &Utf8Path, session: &Session, run: &Run<'_>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(run.root).args(["--env", run.environment]);
    let state = state_folder(run.root);
    if state != run.root.join(STATE) {
        command.args(["--state-dir", state.as_str()]);
    }
    // Only this site counts, whatever variables the operator's shell sets.
    for name in
        ["TEXTNLP_ENV", "TEXTNLP_FILE", "TEXTNLP_STATE_DIR", "TEXTNLP_SERVER", "TEXTNLP_OUTPUT", "TEXTNLP_QUIET"]
    {
        command.env_remove(name);
    }
    if let Some(reason) = &session.global.reason {
        command.args(["--reason", reason]);
    }
    command.stdin(Stdio::null());
    let parent = rustix::process::getpid();
    let die_together = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have exited before the signal was set up.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(std::io::Error::other("the caller closed the pipe"))
        }
    };
    // If this process is killed, the child must not continue: another install would run beside it. `up` may be
    // interrupted at any time.
    // SAFETY: only two system calls between fork and exec. Nothing is allocated on success, and on failure the child
    // exits.
    unsafe { command.pre_exec(die_together) };
    command
}

/// Converts the child's failure to one of this process.
fn passed_on(code: Option<i32>, stdout: &[u8], verb: &str) -> Failure {
    let exit = match code {
        Some(2) => Exit::Usage,
        Some(3) => Exit::GateShut,
        Some(4) => Exit::Refused,
        Some(5) => Exit::Stopped,
        _ => Exit::Failed,
    };
    let mut document: Value = serde_json::from_slice(stdout).unwrap_or(Value::Null);
    let error_document = document["error"].take();
    // On a terminal the child has printed its error.
    let mut error = anyhow::anyhow!("the content is installed; `{verb}` failed");
    let causes = error_document["causes"].as_array().into_iter().flatten();
    let lines: Vec<&str> =
        error_document["message"].as_str().into_iter().chain(causes.filter_map(Value::as_str)).collect();
    if let Some((last, before)) = lines.split_last() {
        let inner =
            before.iter().rev().fold(anyhow::anyhow!("{last}"), |inner, line| inner.context((*line).to_owned()));
        error = inner.context(error.to_string());
    }
    let code = match (&exit, error_document["code"].as_str()) {
        (Exit::GateShut, _) => "gate_not_open",
        (Exit::Stopped, _) => "stopped",
        (_, Some("locked")) => "locked",
        _ => "up_failed",
    };
    // The child's results have the same position as after a success.
    let mut members = serde_json::json!({});
    super::install::merge(&mut members, document);
    let mut failure = Failure::new(exit, code, error).document(members);
    failure.hint = error_document["hint"].as_str().map(str::to_owned);
    failure
}

/// The installed site at a root.
pub fn installed(root: &Utf8Path) -> Result<(Site, Installed), Failure> {
    let site = Site::new(root);
    let record = site.installed().map_err(failed)?.ok_or_else(|| {
        Failure::usage("nothing_installed", anyhow::anyhow!("nothing is installed in {root}"))
            .hint(format!("textnlp-deploy bundle install FILE --root {root}"))
    })?;
    Ok((site, record))
}
