//! Writes environment files: copies of the built-in ones, a new file that extends another, and migrated older files.

use std::fmt::Write as _;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use textnlp_files::Replace;
use textnlp_provider::EnvironmentName;

use super::library::{BUILT_IN, Library, Source};
use super::load::LoadError;
use super::problem::{Origin, Problem, Report};
use super::show::flow;
use super::tree::Node;
use super::{Severity, upgrade};

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AuthorError {
    /// The file exists already.
    #[error("{path} already exists")]
    Exists {
        /// The file.
        path: Utf8PathBuf,
    },
    /// The file could not be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// The environment to extend cannot be loaded.
    #[error(transparent)]
    Like(#[from] LoadError),
}

/// One file of `init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: Utf8PathBuf,
    /// `false` if the file existed already: it is never overwritten.
    pub written: bool,
}

/// Writes a copy of every built-in environment, and their JSON Schema for editors, into `folder`. Existing files are not
/// overwritten.
pub fn init(folder: &Utf8Path, schema: &Value) -> Result<Vec<Written>, AuthorError> {
    std::fs::create_dir_all(folder).map_err(|source| AuthorError::Write { path: folder.to_owned(), source })?;
    let schema = serde_json::to_string_pretty(schema).expect("a schema is plain JSON") + "\n";
    let files = BUILT_IN
        .iter()
        .map(|(name, text)| (format!("{name}.yaml"), (*text).to_owned()))
        .chain([("environment.schema.json".to_owned(), schema)]);
    files
        .map(|(name, text)| {
            let path = folder.join(name);
            match create(&path, &text) {
                Ok(()) => Ok(Written { path, written: true }),
                Err(AuthorError::Exists { path }) => Ok(Written { path, written: false }),
                Err(other) => Err(other),
            }
        })
        .collect()
}

/// Writes `folder/NAME.yaml`, which only extends `from`. `from` must load.
pub fn new(
    library: &Library,
    folder: &Utf8Path,
    name: &EnvironmentName,
    from: &str,
) -> Result<Utf8PathBuf, AuthorError> {
    library.find(from)?;
    std::fs::create_dir_all(folder).map_err(|source| AuthorError::Write { path: folder.to_owned(), source })?;
    let path = folder.join(format!("{name}.yaml"));
    let text = format!(
        "# Based on `{from}`; set only what differs here. All keys: `textnlp-deploy env show --env {name} --explain`.\n\
         extends: {from}\n\
         environment: {name}\n"
    );
    create(&path, &text)?;
    Ok(path)
}

fn create(path: &Utf8Path, text: &str) -> Result<(), AuthorError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => AuthorError::Exists { path: path.to_owned() },
        _ => AuthorError::Write { path: path.to_owned(), source },
    };
    Replace::umask().only_new().write(path, text.as_bytes()).map_err(|error| failed(error.source))
}

/// A migrated file.
#[derive(Debug, Clone)]
pub struct Migrated {
    /// The new text.
    pub text: String,
    /// A warning for each changed key, and a note about omitted ones.
    pub warnings: Vec<Problem>,
}

/// Migrates a file with older keys. A file without them is returned unchanged, if it is one of an environment.
pub fn migrate(source: &Source) -> Result<Migrated, LoadError> {
    let file: Arc<str> = Arc::from(source.label.as_str());
    let mut problems = Vec::new();
    let node = upgrade::read(source, &file, &mut problems);
    let report = Report::tidy(problems);
    let Some(node) = node.filter(|_| !report.has_errors()) else { return Err(LoadError::Invalid(report)) };
    let warnings: Vec<Problem> =
        report.0.into_iter().filter(|p| matches!(p.severity, Severity::Warning | Severity::Note)).collect();
    if warnings.is_empty() {
        if ["environment", "extends"].iter().all(|key| node.get(key).is_none()) {
            let cause = "it is no environment file: it has neither `environment` nor `extends`, and no older key";
            let fix = "name a file of an environment";
            let problem = Problem::error(Origin::whole_file(&file), "", cause, fix);
            return Err(LoadError::Invalid(Report::tidy(vec![problem])));
        }
        let text = String::from_utf8_lossy(&source.bytes).into_owned();
        return Ok(Migrated { text, warnings });
    }
    Ok(Migrated { text: written(&node), warnings })
}

fn written(node: &Node) -> String {
    const ORDER: [&str; 3] = ["extends", "environment", "phase"];
    let mut out = String::new();
    let mut entries: Vec<_> = node.entries().iter().collect();
    entries.sort_by_key(|e| ORDER.iter().position(|k| *k == e.key).unwrap_or(ORDER.len()));
    for entry in entries {
        block(&entry.key, &entry.node.to_value(), 0, &mut out);
    }
    out
}

fn block(key: &str, value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    let key = flow(&Value::String(key.to_owned()));
    let line = match value {
        Value::Object(fields) if !fields.is_empty() => {
            writeln!(out, "{pad}{key}:").expect("writing to a text succeeds");
            for (name, field) in fields {
                block(name, field, indent + 2, out);
            }
            return;
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            writeln!(out, "{pad}{key}:").expect("writing to a text succeeds");
            for item in items {
                writeln!(out, "{pad}  - {}", flow(item)).expect("writing to a text succeeds");
            }
            return;
        }
        value => flow(value),
    };
    writeln!(out, "{pad}{key}: {line}").expect("writing to a text succeeds");
}
