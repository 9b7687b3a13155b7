//! Lines of logs, their levels and their order.

use jiff::Timestamp;
use serde_json::Value;

use crate::Failure;

/// A process, and a line of its log.
pub type LogLine = (String, String);

/// A line, and when it was written, if that is known.
pub(super) type TimedLine = (Option<Timestamp>, LogLine);

/// The lines of several logs, given one log after the other, in the order of time. A line without a time stays after the
/// line before it, and so does one with an earlier time.
pub(super) fn in_order_of_time(lines: Vec<TimedLine>) -> Vec<LogLine> {
    let mut timed: Vec<(Timestamp, LogLine)> = Vec::with_capacity(lines.len());
    for (at, line) in lines {
        let before = timed.last().filter(|(_, (process, _))| *process == line.0).map(|(at, _)| *at);
        timed.push((at.max(before).unwrap_or(Timestamp::MIN), line));
    }
    timed.sort_by_key(|(at, _)| *at);
    timed.into_iter().map(|(_, line)| line).collect()
}

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
    fn lines_of_several_logs_are_merged_by_time_and_each_log_keeps_its_order() {
        let line = |at: Option<i64>, process: &str, text: &str| {
            let at = at.map(|second| Timestamp::from_second(second).unwrap());
            (at, (process.to_owned(), text.to_owned()))
        };
        let lines = vec![
            line(None, "a", "cut off"),
            line(Some(10), "a", "panicked"),
            line(None, "a", "backtrace"),
            line(Some(9), "a", "clock set back"),
            line(Some(12), "a", "ends"),
            line(Some(10), "b", "same second"),
            line(Some(11), "b", "starts"),
        ];
        let merged = in_order_of_time(lines);
        let texts: Vec<&str> = merged.iter().map(|(_, text)| text.as_str()).collect();
        let order = ["cut off", "panicked", "backtrace", "clock set back", "same second", "starts", "ends"];
        assert_eq!(texts, order);
    }

    #[test]
    fn log_levels_are_parsed_from_json_and_text() {
        assert!(level_of(r#"{"level":"ERROR","message":"x"}"#) > level_of(r#"{"level":"INFO"}"#));
        assert_eq!(level_of("2026-01-01 WARN disk"), 3);
        assert_eq!(level_of("plain words"), 2);
        assert!(rank("loud").is_err());
    }
}
