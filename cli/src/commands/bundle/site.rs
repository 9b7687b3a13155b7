//! An installed site as a place to work in: `ROOT/environments` for its settings, `ROOT/bin` for its program, `ROOT/.textnlp` for its state.

use std::process::Stdio;

use anyhow::Context;
use camino::Utf8Path;
use serde_json::Value;
use serde_yaml::{Mapping, Value as Yaml};
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::{Installed, Site, recipe};
use tokio::process::Command;

use super::failed;
use crate::args::Output;
use crate::report::{Console, Exit, Failure};
use crate::session::Session;
use crate::signals;

/// The platform of this machine, as bundles name it.
pub fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// The environment that is meant: the one of `--env`, else the only one.
pub fn environment(session: &Session, names: &[String]) -> Result<String, Failure> {
    let list = names.join(", ");
    match (&session.global.env, names) {
        (Some(name), _) if names.contains(name) => Ok(name.clone()),
        (Some(name), _) => {
            Err(Failure::usage("no_such_environment", anyhow::anyhow!("the bundle has no environment `{name}`"))
                .hint(format!("it has: {list}")))
        }
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(Failure::usage("no_environment", anyhow::anyhow!("the bundle holds no environment"))
            .hint("make one that does: textnlp-deploy bundle create --env NAME --out FILE")),
        (None, [first, ..]) => {
            Err(Failure::usage("which_environment", anyhow::anyhow!("the bundle has several environments: {list}"))
                .hint(format!("name one: --env {first}")))
        }
    }
}

/// The names of items of a kind.
pub fn names(items: &[Item], kind: ItemKind) -> Vec<String> {
    items.iter().filter(|item| item.kind == kind).map(|item| item.name.clone()).collect()
}

/// Puts the settings and the program of the content in use where `up` finds them. What an operator changed is kept.
pub fn lay_out(
    session: &Session,
    site: &Site,
    installed: &Installed,
    name: &str,
    console: Console,
) -> Result<(), Failure> {
    let root = site.root();
    let current = root.join("current");
    let folder = root.join("environments");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {folder}"))?;
    for environment in names(&installed.contents.items, ItemKind::Environment) {
        let sealed = current.join(recipe::environment_path(&environment));
        let text = std::fs::read_to_string(&sealed).with_context(|| format!("read {sealed}"))?;
        write(
            &folder.join(format!("bundle-{environment}.yaml")),
            &placed(&text, &current, &installed.contents.items)?,
        )?;
        let own = folder.join(format!("{environment}.yaml"));
        let sets: &[String] = if environment == name { &session.global.set } else { &[] };
        if own.exists() {
            if !sets.is_empty() {
                console.say(format!("--set counts for this run only: {own} is yours to change"));
            }
            continue;
        }
        write(&own, &site_file(&environment, sets)?)?;
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

/// The sealed environment with its models where this site has them, and as it has them: an update may have brought a model alone.
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
        "# Of the bundle that is installed; the next one replaces this file. Your own settings go into the file without `bundle-`.\n{text}"
    ))
}

/// The file that belongs to the operator, made once.
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
        "# The settings of this site over those of the bundle. This file is yours; no bundle replaces it.\nextends: bundle-{name}\nenvironment: {name}\n{more}"
    ))
}

fn write(path: &Utf8Path, text: &str) -> Result<(), Failure> {
    let fresh = path.with_extension("yaml.new");
    std::fs::write(&fresh, text).with_context(|| format!("write {fresh}"))?;
    std::fs::rename(&fresh, path).with_context(|| format!("write {path}"))?;
    Ok(())
}

/// How a site's own program is run.
pub struct Run<'a> {
    /// The site's root.
    pub root: &'a Utf8Path,
    /// Which environment.
    pub environment: &'a str,
    /// Whether the gate is left out.
    pub no_gate: bool,
}

/// Releases what is installed and rolls to it, with the program that is installed: it is the one that knows its own formats. Gives the
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
            // A terminal's Ctrl-C has reached the child already; a `kill` of this process has not.
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
    // This site is the one that is meant, whatever the operator's shell says of others.
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
        // It may have died before it was asked to tell.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(std::io::Error::other("the caller is gone"))
        }
    };
    // What is killed here is not to work on there: whoever installs again would meet it. What `up` does is safe at any moment.
    // SAFETY: two system calls between fork and exec; nothing is allocated where both succeed, and where not the child ends.
    unsafe { command.pre_exec(die_together) };
    command
}

/// The end of a child, as ours.
fn passed_on(code: Option<i32>, stdout: &[u8], verb: &str) -> Failure {
    let exit = match code {
        Some(2) => Exit::Usage,
        Some(3) => Exit::GateShut,
        Some(4) => Exit::Refused,
        Some(5) => Exit::Stopped,
        _ => Exit::Failed,
    };
    let mut document: Value = serde_json::from_slice(stdout).unwrap_or(Value::Null);
    let said = document["error"].take();
    // On a terminal the child has said itself what is wrong.
    let mut error = anyhow::anyhow!("the content is installed; `{verb}` did not end well");
    let causes = said["causes"].as_array().into_iter().flatten();
    let lines: Vec<&str> = said["message"].as_str().into_iter().chain(causes.filter_map(Value::as_str)).collect();
    if let Some((last, before)) = lines.split_last() {
        let inner =
            before.iter().rev().fold(anyhow::anyhow!("{last}"), |inner, line| inner.context((*line).to_owned()));
        error = inner.context(error.to_string());
    }
    let code = match (&exit, said["code"].as_str()) {
        (Exit::GateShut, _) => "gate_not_open",
        (Exit::Stopped, _) => "stopped",
        (_, Some("locked")) => "locked",
        _ => "up_failed",
    };
    // What the child tells of what it did stands where it stands when all went well.
    let mut members = serde_json::json!({});
    super::install::merge(&mut members, document);
    let mut failure = Failure::new(exit, code, error).document(members);
    failure.hint = said["hint"].as_str().map(str::to_owned);
    failure
}

/// The site at a root that holds something.
pub fn installed(root: &Utf8Path) -> Result<(Site, Installed), Failure> {
    let site = Site::new(root);
    let record = site.installed().map_err(failed)?.ok_or_else(|| {
        Failure::usage("nothing_installed", anyhow::anyhow!("nothing is installed in {root}"))
            .hint(format!("textnlp-deploy bundle install FILE --root {root}"))
    })?;
    Ok((site, record))
}
