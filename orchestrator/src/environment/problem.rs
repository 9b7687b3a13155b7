//! Problems of an environment: origin, cause and fix.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum Origin {
    /// A position in a file; lines and columns count from 1.
    File {
        /// The file's label.
        #[serde(serialize_with = "as_text")]
        file: Arc<str>,
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
    },
    /// A `TEXTNLP_SET__…` variable.
    Variable {
        /// The variable's name.
        name: String,
    },
    /// A `--set path=value` argument.
    Set {
        /// The path that it sets.
        path: String,
    },
    /// Another flag of the command line.
    Flag {
        /// The flag, with its dashes.
        flag: String,
    },
    /// Detected from the surroundings.
    Detected {
        /// The evidence.
        because: String,
    },
    /// A default, possibly of a phase.
    Default {
        /// The phase that sets the default.
        phase: Option<String>,
    },
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl Origin {
    /// The origin of a whole file.
    pub(crate) fn whole_file(file: &Arc<str>) -> Self {
        Origin::File { file: file.clone(), line: 1, column: 1 }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Origin::Variable { name } => write!(f, "${name}"),
            Origin::Set { path } => write!(f, "--set {path}"),
            Origin::Flag { flag } => f.write_str(flag),
            Origin::Detected { because } => write!(f, "detected ({because})"),
            Origin::Default { phase: Some(phase) } => write!(f, "default of phase {phase}"),
            Origin::Default { phase: None } => f.write_str("default"),
        }
    }
}

/// The severity of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The environment cannot be loaded.
    Error,
    /// It loads and passes `env check`; `plan` and `up` refuse it.
    Refusal,
    /// It works, but should be reviewed.
    Warning,
    /// For information.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Refusal => "not yet",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

/// A problem.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Problem {
    /// Its severity.
    pub severity: Severity,
    /// The origin of the value.
    pub origin: Origin,
    /// The path of the field, such as `sites[0].region`; empty for the whole file.
    pub path: String,
    /// The cause.
    pub cause: String,
    /// How to fix it.
    pub fix: String,
}

impl Problem {
    /// A problem that keeps the environment from loading.
    pub fn error(origin: Origin, path: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Error, origin, path: path.into(), cause: cause.into(), fix: fix.into() }
    }

    /// The same problem with another severity.
    #[must_use]
    pub fn at(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.origin, self.severity)?;
        if !self.path.is_empty() {
            write!(f, "`{}`: ", printable(&self.path))?;
        }
        write!(f, "{}; {}", printable(&self.cause), printable(&self.fix))
    }
}

/// Keys and values are untrusted input: control characters are replaced, and long texts are cut.
fn printable(text: &str) -> String {
    const MOST: usize = 2000;
    text.chars().take(MOST).map(|c| if c.is_control() { '·' } else { c }).collect()
}

/// All problems of all layers, sorted by origin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Report(pub Vec<Problem>);

/// The most problems that a report shows; the others are counted. A hostile file can have one per byte.
const SHOWN: usize = 100;

impl Report {
    /// Sorts by origin and removes duplicates.
    pub(crate) fn tidy(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| (&a.origin, &a.path, &a.cause).cmp(&(&b.origin, &b.path, &b.cause)));
        problems.dedup();
        Self(problems)
    }

    /// Whether any problem keeps the environment from loading.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|p| p.severity == Severity::Error)
    }

    /// The problems that `plan` and `up` refuse.
    pub fn refusals(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter().filter(|p| p.severity == Severity::Refusal)
    }

    /// The count of problems of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|p| p.severity == severity).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().take(SHOWN).enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        if self.0.len() > SHOWN {
            write!(f, "\n… and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// The entry of `known` that is most similar to `typed`, if it is similar enough to be meant.
pub(crate) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Typos do not make names this long, and a hostile key must not cost quadratic time.
    if typed.len() > 60 {
        return None;
    }
    let plain = |s: &str| s.to_ascii_lowercase().replace('-', "_");
    let typed = plain(typed);
    let allowed = (typed.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|candidate| (distance(&typed, &plain(candidate)), candidate))
        .filter(|(far, _)| *far <= allowed)
        .min_by_key(|(far, _)| *far)
        .map(|(_, candidate)| candidate)
}

/// The edit distance; a swap of neighbouring letters counts as one edit.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_cover_near_misses_only() {
        let known = ["region", "role", "runtime", "provider"];
        assert_eq!(nearest("regoin", known), Some("region"));
        assert_eq!(nearest("Provider", known), Some("provider"));
        assert_eq!(nearest("providr", known), Some("provider"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest(&"r".repeat(100_000), known), None);
    }
}
