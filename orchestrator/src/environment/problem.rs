//! What is wrong with an environment, where, and how to mend it.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum Origin {
    /// A place in a file; lines and columns count from 1.
    File {
        /// The file as an operator would name it.
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
    /// Chosen by looking at the surroundings.
    Detected {
        /// What was seen.
        because: String,
    },
    /// Nobody said it: the default, of a phase when it depends on one.
    Default {
        /// The phase that brings the default.
        phase: Option<String>,
    },
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl Origin {
    /// The place of a file as a whole.
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

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The environment cannot be loaded.
    Error,
    /// It loads and passes `env check`; `plan` and `up` refuse it.
    Refusal,
    /// It works and deserves a look.
    Warning,
    /// Good to know.
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

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// Where the value came from.
    pub origin: Origin,
    /// Which field: `sites[0].region`; empty for a file as a whole.
    pub path: String,
    /// What is wrong.
    pub cause: String,
    /// What to do about it.
    pub fix: String,
}

impl Problem {
    /// Something that must be mended before the environment loads.
    pub fn error(origin: Origin, path: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Error, origin, path: path.into(), cause: cause.into(), fix: fix.into() }
    }

    /// The same with another severity.
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

/// Keys and values are other people's texts: what would move a terminal's cursor is shown as a dot, and a path can be a megabyte long.
fn printable(text: &str) -> String {
    const MOST: usize = 2000;
    text.chars().take(MOST).map(|c| if c.is_control() { '·' } else { c }).collect()
}

/// All problems of all layers, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Report(pub Vec<Problem>);

/// A hostile file can hold one mistake per byte; a report shows this many and counts the rest.
const SHOWN: usize = 100;

impl Report {
    /// Sorts by place and drops what was found twice.
    pub(crate) fn tidy(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| (&a.origin, &a.path, &a.cause).cmp(&(&b.origin, &b.path, &b.cause)));
        problems.dedup();
        Self(problems)
    }

    /// Whether anything stops the environment from loading.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|p| p.severity == Severity::Error)
    }

    /// What `plan` and `up` refuse.
    pub fn refusals(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter().filter(|p| p.severity == Severity::Refusal)
    }

    /// How many problems of a severity there are.
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

/// The nearest of `known` to what was typed, when it is near enough to be what was meant.
pub(crate) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody mistypes 60 letters; a hostile key must not cost quadratic time.
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

/// Edit distance with neighbouring letters swapped counted as one edit.
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
    fn near_misses_are_recognised_and_far_ones_are_not() {
        let known = ["region", "role", "runtime", "provider"];
        assert_eq!(nearest("regoin", known), Some("region"));
        assert_eq!(nearest("Provider", known), Some("provider"));
        assert_eq!(nearest("providr", known), Some("provider"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest(&"r".repeat(100_000), known), None);
    }
}
