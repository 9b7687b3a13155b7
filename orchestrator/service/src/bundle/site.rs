//! An installed site: `ROOT/environments` has its settings, `ROOT/bin` its program, `ROOT/.textnlp` its state.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use serde_yaml::{Mapping, Value as Yaml};
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::{Installed, Site, recipe};
use textnlp_files::Replace;
use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};

use super::{failed, model_name_of, platform, user};
use crate::{Exit, Failure, Progress};

/// The state folder within a root.
pub const STATE: &str = ".textnlp";

/// The selected environment: the one of `--env`, else the only one.
pub fn environment(requested: Option<&str>, names: &[String]) -> Result<String, Failure> {
    let list = names.join(", ");
    match (requested, names) {
        (Some(name), _) if names.iter().any(|known| known == name) => Ok(name.to_owned()),
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
pub fn wanted_state(root: &Utf8Path, requested: Option<&Utf8Path>) -> Result<Utf8PathBuf, Failure> {
    let there = state_folder(root);
    let Some(requested) = requested else { return Ok(there) };
    let canonical = |path: &Utf8Path| path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned());
    if canonical(requested) == canonical(&there) {
        return Ok(there);
    }
    if root.join(STATE).symlink_metadata().is_ok() {
        let error = anyhow::anyhow!("{root} keeps its state in {there}, not in {requested}");
        return Err(Failure::usage("other_state", error)
            .hint("omit --state-dir; for a second deployment, use another root: --root DIR"));
    }
    Ok(requested.to_owned())
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

/// What an operator chose for the settings of a site.
pub struct Choices<'a> {
    /// The state folder.
    pub state: Option<&'a Utf8Path>,
    /// Values of the environment.
    pub sets: &'a [String],
    /// The user; by default that of the site.
    pub user: Option<&'a str>,
}

/// Copies the settings and the program of the current content to where `up` finds them. Keeps the operator's changes.
/// Records the user, by default that of the site.
pub fn lay_out(
    site: &Site,
    installed: &Installed,
    name: &str,
    Choices { state, sets, user }: Choices<'_>,
    (catalogue, progress): (&Catalogue, &dyn Progress),
) -> Result<(), Failure> {
    let root = site.root();
    let state = wanted_state(root, state)?;
    let of_site = if user.is_none() { user::of_site(&state)? } else { None };
    let wanted = user.or(of_site.as_deref());
    let _shared = wanted.filter(|user| *user != "root").map(|_| user::SharedFiles::begin());
    link_state(root, &state)?;
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
        let mut sets = if environment == name { sets.to_vec() } else { Vec::new() };
        if !own.exists() {
            // A user that was typed overrides the one of --set.
            sets.extend(user.filter(|_| environment == name).map(|user| format!("prerequisites.user={user}")));
            write(&own, &site_file(&environment, &sets)?)?;
        } else if !sets.is_empty() {
            progress.line(&format!("--set applies to this run only: to keep the setting, edit {own}"));
        }
        let runs_as_root = record_user((&folder, catalogue), &environment, &own, wanted)?;
        if runs_as_root && user.is_none() && environment == name && rustix::process::geteuid().is_root() {
            let guide = "docs/guide/security.md, \"Choose the user\"";
            progress.warn(&format!("{name} runs as root: to run it as another user, see {guide}"));
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
fn record_user(
    (folder, catalogue): (&Utf8Path, &Catalogue),
    environment: &str,
    own: &Utf8Path,
    wanted: Option<&str>,
) -> Result<bool, Failure> {
    let loaded = Library::from_folder(folder).load(environment, &Overrides::default(), catalogue);
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
        let (name, source) = (model_name_of(model), field("source"));
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

/// Converts the child's failure to one of this process.
pub fn passed_on(code: Option<i32>, stdout: &[u8], verb: &str) -> Failure {
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
    merge(&mut members, document);
    Failure::new(exit, code, error).document(members).hinted(error_document["hint"].as_str().map(str::to_owned))
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

/// Adds members of the `up` document to this command's document.
pub fn merge(document: &mut Value, up: Value) {
    let (Value::Object(document), Value::Object(up)) = (document, up) else { return };
    for (key, value) in up {
        if !["format", "ok", "exit", "error"].contains(&key.as_str()) {
            document.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_environment_of_a_bundle_needs_no_name() {
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(ToString::to_string).collect() };
        assert_eq!(environment(None, &names(&["a"])).unwrap(), "a");
        assert_eq!(environment(Some("b"), &names(&["a", "b"])).unwrap(), "b");
        for (requested, known, code) in [
            (None, vec![], "no_environment"),
            (None, vec!["a", "b"], "which_environment"),
            (Some("c"), vec!["a"], "no_such_environment"),
        ] {
            assert_eq!(environment(requested, &names(&known)).unwrap_err().code, code);
        }
    }

    #[test]
    fn values_of_the_operator_are_nested_settings() {
        let sets = ["server.api.port=9443", "server.api.host=::1", "tls.mode=off"].map(str::to_owned);
        let text = site_file("air-gapped", &sets).unwrap();
        let settings: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        let server = json!({ "api": { "port": 9443, "host": "::1" } });
        assert_eq!((&settings["extends"], &settings["server"]), (&json!("bundle-air-gapped"), &server));
        for wrong in ["no value", "server.api.port.x=1"] {
            let sets = ["server.api.port=1".to_owned(), wrong.to_owned()];
            assert_eq!(site_file("a", &sets).unwrap_err().code, "usage", "{wrong}");
        }
    }

    #[test]
    fn failure_of_the_installed_program_keeps_its_status_and_causes() {
        let error = json!({ "code": "locked", "message": "the state is locked", "causes": ["by b"], "hint": "wait" });
        let document = json!({ "ok": false, "exit": 4, "error": error, "sites": [] });
        let failure = passed_on(Some(4), document.to_string().as_bytes(), "up");
        assert_eq!((failure.exit, failure.code), (Exit::Refused, "locked"));
        assert_eq!(failure.causes(), ["the state is locked", "by b"]);
        assert_eq!(failure.hint.as_deref(), Some("wait"));
        assert_eq!(failure.document.keys().collect::<Vec<_>>(), ["sites"]);
        let failure = passed_on(Some(3), b"", "up");
        assert_eq!((failure.exit, failure.code), (Exit::GateShut, "gate_not_open"));
    }
}
