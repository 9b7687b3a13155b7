//! `env` and `init`: show, check and create environment files.

use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_files::Replace;
use textnlp_orchestrator::environment::{self, BASE, Listed, Loaded, Origin, Severity, Source};
use textnlp_orchestrator::gate::phases;
use textnlp_provider::{EnvironmentName, SiteName};
use textnlp_service::{compare, output};

use super::prelude::*;
use crate::args::{Env, Init};
use crate::clouds;
use crate::rerun_flags::quoted;
use crate::session::{invalid, known_models, supported_contexts};
use crate::stores::{self, OtherPlace};

/// `init [DIR]`.
pub fn init(session: &Session, args: &Init) -> Result<Success, Failure> {
    // Without the `.` of the default.
    let folder: Utf8PathBuf = session.here.join(&args.dir).join("environments").components().collect();
    let written = environment::init(&folder, &phases::schema())?;
    let mut text = String::new();
    for file in &written {
        let _ = writeln!(text, "{} {}", if file.written { "wrote" } else { "kept " }, file.path);
    }
    let _ = write!(text, "\nNext: {}", session.again().named("up", "staging"));
    let files: Vec<_> = written.iter().map(|f| json!({ "path": f.path, "written": f.written })).collect();
    Ok(Success::new(text, json!({ "folder": folder, "files": files })))
}

/// `env …`.
pub fn env(session: &Session, command: &Env, console: Console) -> Result<Success, Failure> {
    match command {
        Env::List => list(session),
        Env::Show { name, explain } => show(session, name.as_deref(), *explain, console),
        Env::Diff { left, right } => diff(session, left, right),
        Env::Check { names } => check(session, names, console),
        Env::New { name, from } => new(session, name, from),
        Env::Migrate { from, out } => migrate(session, from, out.as_deref(), console),
        Env::Schema => {
            let schema = phases::schema();
            Ok(Success::new(serde_json::to_string_pretty(&schema)?, json!({ "schema": schema })))
        }
    }
}

/// The environments that can be deployed by their name. The bundle's part of an installed environment, which has the name of the
/// file that extends it, is left out.
fn listed(session: &Session) -> Vec<Listed> {
    let mut all = session.library.list();
    let names: Vec<String> = all.iter().map(|listed| listed.name.clone()).collect();
    all.retain(|one| !one.name.strip_prefix("bundle-").is_some_and(|own| names.iter().any(|name| name == own)));
    all
}

fn list(session: &Session) -> Result<Success, Failure> {
    let (mut text, mut rows) = (String::new(), Vec::new());
    for listed in listed(session) {
        let loaded = session.load_named(&listed.name).map(|loaded| refused(session, loaded));
        let (phase, about) = match &loaded {
            Ok(loaded) => {
                (loaded.environment.phase.to_string(), loaded.environment.description.clone().unwrap_or_default())
            }
            Err(_) => ("invalid".to_owned(), format!("see `textnlp-deploy env check {}`", listed.name)),
        };
        let runs = matches!(&loaded, Ok(l) if l.report.refusals().next().is_none());
        let from = listed.file.as_ref().map_or("built-in", |f| f.as_str());
        let mark = if runs { ' ' } else { '·' };
        let _ = writeln!(text, "{mark} {:<20} {:<14} {about}", listed.name, phase);
        rows.push(
            json!({ "name": listed.name, "phase": phase, "description": about, "from": from, "runs_here": runs }),
        );
    }
    let _ = write!(text, "\n· cannot be deployed as it is: `textnlp-deploy env check NAME` says why");
    Ok(Success::new(text, json!({ "environments": rows })))
}

fn show(session: &Session, name: Option<&str>, explain: bool, console: Console) -> Result<Success, Failure> {
    let loaded = match name {
        Some(name) => session
            .library
            .load(name, &session.overrides(), &clouds::catalogue())
            .map_err(|e| invalid(e, &session.again()))?,
        None => session.loaded(console)?,
    };
    let document = if explain {
        json!({ "environment": loaded.environment.environment, "facts": loaded.facts() })
    } else {
        json!({ "environment": loaded.environment.environment, "settings": loaded.environment })
    };
    Ok(Success::new(loaded.to_yaml(explain), document))
}

fn diff(session: &Session, left: &str, right: &str) -> Result<Success, Failure> {
    let load = |name: &str| {
        session.library.load(name, &session.overrides(), &clouds::catalogue()).map_err(|e| invalid(e, &session.again()))
    };
    let changes = environment::diff(&load(left)?, &load(right)?);
    let shown = |value: &Option<serde_json::Value>| value.as_ref().map_or("—".to_owned(), ToString::to_string);
    let mut text = String::new();
    for change in &changes {
        let _ = writeln!(text, "{:<44} {} → {}", change.path, shown(&change.left), shown(&change.right));
    }
    if changes.is_empty() {
        text = format!("{left} and {right} are the same");
    }
    Ok(Success::new(text, json!({ "left": left, "right": right, "changes": changes })))
}

fn check(session: &Session, names: &[String], console: Console) -> Result<Success, Failure> {
    // A cache that cannot be used is reported by what uses it.
    let cache = session.model_cache().ok();
    let names: Vec<String> = match (names, &session.global.env, &session.global.file) {
        ([], _, Some(_)) | ([], Some(_), _) => {
            let loaded = match &session.global.file {
                Some(file) => session.library.load_file(file, &session.overrides(), &clouds::catalogue()),
                None => session.load_named(session.global.env.as_deref().unwrap_or(BASE)),
            };
            let loaded = refused(session, loaded.map_err(|e| invalid(e, &session.again()))?);
            known_models(&loaded, &session.again())?;
            supported_contexts(&loaded, cache.as_deref())?;
            let text = verdict(loaded.environment.environment.as_str(), &loaded.report.0) + &where_to_write(&loaded);
            return Ok(Success::new(text, json!({ "problems": loaded.report.0 })));
        }
        ([], None, None) => listed(session).into_iter().map(|listed| listed.name).collect(),
        (names, _, _) => names.to_vec(),
    };
    let (mut text, mut wrong, mut rows, mut bad) = (String::new(), String::new(), Vec::new(), 0);
    for name in &names {
        match session.load_named(name) {
            Ok(loaded) => {
                let loaded = refused(session, loaded);
                known_models(&loaded, &session.again())?;
                supported_contexts(&loaded, cache.as_deref())?;
                text.push_str(&verdict(name, &loaded.report.0));
                if names.len() == 1 {
                    text.push_str(&where_to_write(&loaded));
                }
                rows.push(json!({ "name": name, "ok": true, "problems": loaded.report.0 }));
            }
            Err(environment::LoadError::Invalid(report)) => {
                bad += 1;
                wrong.push_str(&verdict(name, &report.0));
                rows.push(json!({ "name": name, "ok": false, "problems": report.0 }));
            }
            Err(error) => return Err(invalid(error, &session.again())),
        }
    }
    if bad > 0 {
        // The JSON document has them too.
        if console.is_text() {
            text.lines().for_each(|line| console.say(line));
        }
        let error = anyhow::anyhow!("{}", wrong.trim_end())
            .context(format!("{bad} of {} invalid", counted(names.len(), "environment")));
        let named = if let [name] = names.as_slice() { name } else { "" };
        return Err(Failure::usage("invalid_environment", error)
            .hint(format!("fix them, then check again: {}", session.again().check(named)))
            .document(json!({ "environments": rows })));
    }
    Ok(Success::new(text, json!({ "environments": rows })))
}

/// The environment with what its providers refuse, as `plan` reports it, but without a sign-in.
fn refused(session: &Session, mut loaded: Loaded) -> Loaded {
    // Settings that a provider does not support are reported alone, as by `plan`.
    let has_refusals = loaded.report.refusals().next().is_some();
    let Ok(scope) = session.scope(loaded.environment.environment.clone()) else { return loaded };
    let mut environment = loaded.environment.clone();
    let assumed = clouds::assume_accounts(&mut environment);
    let assumed_at = |place: &str| {
        let of_site = |(site, _): &&(SiteName, &'static str)| place.starts_with(&format!("{site}/"));
        assumed.iter().find(of_site).map(|(_, account)| *account)
    };
    let found = if has_refusals { Vec::new() } else { compare::refused(&scope, &environment) };
    let file = loaded.files.first().map_or("", String::as_str);
    let origin = Origin::File { file: file.into(), line: 1, column: 1 };
    let found = found.into_iter().filter_map(|problem| {
        let mut fix = problem.fix;
        if let Some(account) = assumed_at(&problem.place) {
            // What is compared with the account is known only after a sign-in. Azure does not name it in this cause.
            if problem.cause.contains(account) || problem.place.ends_with("/network existing") {
                return None;
            }
            fix = fix.replace(account, "ACCOUNT");
        }
        let written = loaded.origin_of(&problem.place, &fix).unwrap_or_else(|| origin.clone());
        let refusal = environment::Problem::error(written, problem.place, problem.cause, fix);
        Some(refusal.at(Severity::Refusal))
    });
    let mut found: Vec<_> = found.collect();
    if let Ok(Some(OtherPlace { text, fixes })) = stores::other_place(&scope, &loaded.environment.state.store) {
        let written = loaded.origin_of("state", "`state.store`").unwrap_or(origin);
        let refusal = environment::Problem::error(written, "state.store", text, fixes.join(", "));
        found.push(refusal.at(Severity::Refusal));
    }
    loaded.report.0.extend(found);
    loaded
}

fn verdict(name: &str, problems: &[environment::Problem]) -> String {
    let word = |severity| problems.iter().any(|p| p.severity == severity);
    let sum = if word(Severity::Error) {
        "mistakes"
    } else if word(Severity::Refusal) {
        "valid; cannot be deployed as it is"
    } else {
        "valid"
    };
    let mut text = format!("{name}: {sum}\n");
    for problem in problems {
        let _ = writeln!(text, "  {problem}");
    }
    text
}

/// Where what the problems of a built-in environment name is written.
fn where_to_write(loaded: &Loaded) -> String {
    match loaded.is_built_in() && !loaded.report.0.is_empty() {
        true => format!("  settings are written into {}\n", loaded.own_file()),
        false => String::new(),
    }
}

fn new(session: &Session, name: &str, from: &str) -> Result<Success, Failure> {
    let name = EnvironmentName::new(name).map_err(|e| Failure::usage("invalid_name", e))?;
    let folder = session.library.folder().map_or_else(|| session.here.join("environments"), Utf8Path::to_owned);
    let path = environment::new(&session.library, &folder, &name, from).map_err(|error| match error {
        environment::AuthorError::Like(error) => invalid(error, &session.again()),
        exists @ environment::AuthorError::Exists { .. } => {
            Failure::refused("exists", exists).hint("choose another name, or edit that file")
        }
        other => Failure::from(other),
    })?;
    Ok(Success::new(
        format!("wrote {path}\nNext: edit it, then {}", session.again().named("plan", &name)),
        json!({ "path": path, "environment": name, "from": from }),
    ))
}

fn migrate(session: &Session, from: &Utf8Path, out: Option<&Utf8Path>, console: Console) -> Result<Success, Failure> {
    // A check is of the environment that is selected, and not of this file.
    let failed = |error| {
        let again = session.again().bare(&format!("env migrate {}", quoted(from.as_str())));
        let failure = invalid(error, &session.again());
        let first = if failure.code == "invalid_environment" { "fix it" } else { "check its path" };
        failure.hint(format!("{first}, then migrate again: {again}"))
    };
    let migrated = environment::migrate(&Source::read(from).map_err(failed)?).map_err(failed)?;
    for warning in &migrated.warnings {
        console.say(warning.to_string());
    }
    let document = json!({ "yaml": migrated.text, "warnings": migrated.warnings, "out": out });
    let Some(out) = out else { return Ok(Success::new(migrated.text, document)) };
    // A link to a file that does not exist is a file, too; a pipe or a device takes any text.
    let is_taken = |there: std::fs::Metadata| there.is_file() || there.is_dir();
    if out.symlink_metadata().is_ok() && out.metadata().map_or(true, is_taken) {
        let error = anyhow::anyhow!("{out} already exists");
        return Err(Failure::new(Exit::Refused, "exists", error).hint("choose another file, or remove it first"));
    }
    output::write(out, Replace::umask(), migrated.text.as_bytes())?;
    Ok(Success::new(format!("wrote {out}"), document))
}
