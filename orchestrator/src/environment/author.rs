//! Writes environment files: copies of what the program carries, a new one like another, an older one in today's keys.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use textnlp_provider::EnvironmentName;

use super::library::{BUILT_IN, Library, Source};
use super::load::LoadError;
use super::problem::{Problem, Report};
use super::show::flow;
use super::tree::Node;
use super::{Severity, older};

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AuthorError {
    /// There is a file already.
    #[error("{path} is there already")]
    Exists {
        /// The file.
        path: Utf8PathBuf,
    },
    /// The file system said no.
    #[error("write {path}")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What it is to be like cannot be loaded.
    #[error(transparent)]
    Like(#[from] LoadError),
}

/// One file of `init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: Utf8PathBuf,
    /// `false` when a file was there already: it is never written over.
    pub written: bool,
}

/// Writes a copy of every environment that the program carries, and the schema for editors, into `folder`. Repeating it writes only what is
/// missing.
pub fn init(folder: &Utf8Path) -> Result<Vec<Written>, AuthorError> {
    std::fs::create_dir_all(folder).map_err(|source| AuthorError::Write { path: folder.to_owned(), source })?;
    let schema = serde_json::to_string_pretty(&super::schema()).expect("a schema is plain JSON") + "\n";
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

/// Writes `folder/NAME.yaml`, which says only that it is like `from`. The other environment must load.
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
        "# Like `{from}`; write down here only what differs. All keys: `textnlp-deploy env show --env {name} --explain`.\n\
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
    let mut file = std::fs::File::create_new(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// An older file in today's keys.
#[derive(Debug, Clone)]
pub struct Migrated {
    /// The new text.
    pub text: String,
    /// One warning per key that was changed, and a note on what was left out.
    pub warnings: Vec<Problem>,
}

/// Turns an older file into today's keys. A file that has only today's keys comes back as it is.
pub fn migrate(source: &Source) -> Result<Migrated, LoadError> {
    let file: Arc<str> = Arc::from(source.label.as_str());
    let mut problems = Vec::new();
    let node = older::read(source, &file, &mut problems);
    let report = Report::tidy(problems);
    let Some(node) = node.filter(|_| !report.has_errors()) else { return Err(LoadError::Invalid(report)) };
    let warnings: Vec<Problem> =
        report.0.into_iter().filter(|p| matches!(p.severity, Severity::Warning | Severity::Note)).collect();
    if warnings.is_empty() {
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
