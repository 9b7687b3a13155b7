//! Lines of logs, and their levels.

use serde_json::Value;

use crate::Failure;

/// A process, and a line of its log.
pub type LogLine = (String, String);

/// Whether a line has at least this level.
pub(super) fn is_shown(level: Option<usize>, line: &str) -> bool {
    level.is_none_or(|least| level_of(line) >= least)
}

const LEVELS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

pub(super) fn rank(level: &str) -> Result<usize, Failure> {
    let wanted = level.to_ascii_lowercase();
    let wanted = if wanted == "warning" { "warn" } else { wanted.as_str() };
    LEVELS.iter().position(|l| *l == wanted).ok_or_else(|| {
        Failure::usage("no_such_level", anyhow::anyhow!("`{level}` is not a level"))
            .hint(format!("one of {}", LEVELS.join(", ")))
    })
}

/// The level of a line: its JSON `level` field, else the first word that is a level, else info.
fn level_of(line: &str) -> usize {
    const INFO: usize = 2;
    if let Ok(Value::Object(fields)) = serde_json::from_str(line) {
        return fields.get("level").and_then(Value::as_str).and_then(|l| rank(l).ok()).unwrap_or(INFO);
    }
    line.split_whitespace()
        .take(6)
        .find_map(|w| rank(w.trim_matches(|c: char| !c.is_ascii_alphabetic())).ok())
        .unwrap_or(INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_levels_are_parsed_from_json_and_text() {
        assert!(level_of(r#"{"level":"ERROR","message":"x"}"#) > level_of(r#"{"level":"INFO"}"#));
        assert_eq!(level_of("2026-01-01 WARN disk"), 3);
        assert_eq!(level_of("plain words"), 2);
        assert!(rank("loud").is_err());
    }
}
