//! One line of a log: its time, level, source and message, from the formats that processes of a deployment write.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value};

/// Bytes of a message that are kept. The rest of a longer one is ignored.
const LINE_MAX: usize = 16 << 10;
/// The most lines that one can represent.
const SUPPRESSED_MAX: u64 = 1 << 32;
/// Fields of a JSON line that tell one error from another. Identifiers and clients do not.
const FIELDS: [&str; 8] = ["error", "why", "reason", "cause", "status", "model", "backend", "answer"];

/// How severe a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Anything below a warning.
    Info,
    /// A warning.
    Warning,
    /// An error, and what ends a process.
    Error,
}

/// A line as far as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) at: Option<Timestamp>,
    pub(super) level: Level,
    /// The pod and container, where the line has them.
    pub(super) source: Option<String>,
    pub(super) message: String,
    /// The number of lines that it represents: rate-limited events count the lines that they replace.
    pub(super) count: u64,
}

macro_rules! pattern {
    ($name:ident, $text:expr) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($text).expect("a valid pattern"));
    };
}

// `kubectl logs --prefix`.
pattern!(POD, r"^\[pod/([^\]]+)\] ");
// `logs` of several processes: the name, in small letters unlike a level, and two spaces before JSON or a time.
pattern!(PROCESS, r"^([a-z0-9][a-z0-9._/-]*)  (?:\{|\[?\d{4}-\d\d-\d\d)");
// RFC 3339, and PostgreSQL's and Python's variants with a space, a comma and `UTC`.
pattern!(TIME, r"^\[?(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)(Z|[+-]\d\d:?\d\d)?\]? ?(?:UTC |GMT )?");
// klog: `E1123 10:00:00.000000   1 file.go:12] message`.
pattern!(KLOG, r"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \S+\] ");
// The level, after a process id or a target in brackets.
pattern!(
    LEVEL,
    r"(?i)^(?:\S*\[[^\]]*\]:? +)?\[?(trace|debug|info|log|notice|warn|warning|error|fatal|panic|critical)\b\]?:? *"
);

impl Line {
    /// Reads a line. One without a known format is information, without a time.
    pub(super) fn parse(text: &str) -> Self {
        let mut rest = text.trim_end();
        let mut line = Self { at: None, level: Level::Info, source: None, message: String::new(), count: 1 };
        if let Some(found) = POD.captures(rest) {
            line.source = found.get(1).map(|name| name.as_str().to_owned());
            rest = &rest[found[0].len()..];
        } else if let Some(found) = PROCESS.captures(rest) {
            line.source = Some(found[1].to_owned());
            rest = &rest[found[1].len() + 2..];
        }
        // `kubectl logs --timestamps` writes its own time before that of the program.
        for _ in 0..2 {
            let Some(found) = TIME.captures(rest) else { break };
            line.at = line.at.or_else(|| time(&found[1], &found[2], found.get(3).map(|zone| zone.as_str())));
            rest = &rest[found[0].len()..];
        }
        if let Ok(Value::Object(fields)) = serde_json::from_str(rest) {
            line.take_fields(&fields);
            return line;
        }
        if let Some(found) = KLOG.captures(rest) {
            line.level = match &found[1] {
                "E" | "F" => Level::Error,
                "W" => Level::Warning,
                _ => Level::Info,
            };
            rest = &rest[found[0].len()..];
        } else if let Some(found) = LEVEL.captures(rest) {
            line.level = level(&found[1]);
            rest = &rest[found[0].len()..];
        } else if rest.starts_with("thread '") && rest.contains("panicked at") {
            line.level = Level::Error;
        }
        truncated(rest).clone_into(&mut line.message);
        line
    }

    fn take_fields(&mut self, fields: &Map<String, Value>) {
        let text = |names: &[&str]| names.iter().find_map(|name| fields.get(*name)?.as_str());
        self.at = self.at.or_else(|| text(&["timestamp", "time", "ts"])?.parse().ok());
        self.level = text(&["level", "severity"]).map_or(Level::Info, level);
        self.message = truncated(text(&["message", "msg"]).unwrap_or_default()).to_owned();
        for name in FIELDS {
            match fields.get(name) {
                Some(Value::String(value)) => self.message.push_str(&format!(" {name}={}", truncated(value))),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => self.message.push_str(&format!(" {name}={value}")),
                _ => {}
            }
        }
        self.count += fields.get("suppressed").and_then(Value::as_u64).unwrap_or(0).min(SUPPRESSED_MAX);
    }
}

fn truncated(text: &str) -> &str {
    &text[..text.floor_char_boundary(LINE_MAX)]
}

fn level(word: &str) -> Level {
    match word.to_ascii_lowercase().as_str() {
        "warn" | "warning" => Level::Warning,
        "error" | "fatal" | "panic" | "critical" | "err" => Level::Error,
        _ => Level::Info,
    }
}

/// A time without a zone is read as UTC.
fn time(day: &str, clock: &str, zone: Option<&str>) -> Option<Timestamp> {
    let clock = clock.replace(',', ".");
    match zone {
        Some(zone) => format!("{day}T{clock}{zone}").parse().ok(),
        None => {
            format!("{day}T{clock}").parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp())
        }
    }
}

pattern!(UUID, r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$");
pattern!(ADDRESS, r"^(\d{1,3}(\.\d{1,3}){3}|\[?[0-9a-fA-F]*:[0-9a-fA-F:]+:[0-9a-fA-F:.]*\]?)(:\d+)?$");
pattern!(HEX, r"^(0x)?[0-9a-fA-F]{8,}$");
pattern!(DIGITS, r"\d+");

/// The message without what differs between two occurrences of the same error: numbers, addresses, identifiers, quotes.
pub(super) fn template(message: &str) -> String {
    const WORDS_MAX: usize = 40;
    let mut words = Vec::new();
    for word in message.split_whitespace().take(WORDS_MAX) {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => (Some(name), value),
            _ => (None, word),
        };
        let core = value.trim_matches(|c: char| matches!(c, ',' | '.' | ';' | ':' | '(' | ')' | '"' | '\'' | '`'));
        let masked = if UUID.is_match(core) {
            value.replace(core, "ID")
        } else if core.contains(['.', ':']) && ADDRESS.is_match(core) {
            value.replace(core, "ADDRESS")
        } else if HEX.is_match(core) && core.bytes().any(|b| b.is_ascii_digit()) {
            value.replace(core, "HEX")
        } else {
            DIGITS.replace_all(value, "N").into_owned()
        };
        words.push(match name {
            Some(name) => format!("{name}={masked}"),
            None => masked,
        });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_levels_of_all_formats_are_read() {
        let at = |text: &str| Line::parse(text).at.map(|at| at.to_string());
        let ours = r#"{"timestamp":"2026-11-23T10:00:00.5Z","level":"WARN","message":"request refused","reason":"rate","client":"10.0.0.1","suppressed":9}"#;
        let line = Line::parse(ours);
        assert_eq!((line.level, line.count), (Level::Warning, 10));
        assert_eq!(line.message, "request refused reason=rate");
        assert_eq!(Line::parse(&format!(r#"{{"level":"WARN","suppressed":{}}}"#, u64::MAX)).count, 1 + SUPPRESSED_MAX);
        assert_eq!(at(ours).as_deref(), Some("2026-11-23T10:00:00.5Z"));

        let named = Line::parse(&format!("here/server-0  {ours}"));
        assert_eq!((named.level, named.source.as_deref()), (Level::Warning, Some("here/server-0")));
        assert_eq!((named.message, named.at), (line.message.clone(), line.at));

        let pod = Line::parse(&format!("[pod/api-6f9-x/server] 2026-11-23T09:59:59.1Z {ours}"));
        assert_eq!(pod.source.as_deref(), Some("api-6f9-x/server"));
        assert_eq!(pod.at.map(|at| at.to_string()).as_deref(), Some("2026-11-23T09:59:59.1Z"));

        let postgres = Line::parse("2026-11-23 10:00:00.123 UTC [4711] ERROR:  relation \"x\" does not exist");
        assert_eq!(postgres.level, Level::Error);
        assert_eq!(postgres.message, "relation \"x\" does not exist");
        assert_eq!(postgres.at.map(|at| at.to_string()).as_deref(), Some("2026-11-23T10:00:00.123Z"));

        assert_eq!(Line::parse("E1123 10:00:00.000001       1 run.go:74] leader election lost").level, Level::Error);
        assert_eq!(Line::parse("2026-11-23 10:00:00,123 WARNING disk is slow").level, Level::Warning);
        assert_eq!(Line::parse("thread 'main' panicked at src/main.rs:3:5:").level, Level::Error);
        assert_eq!(Line::parse("an information about errors").level, Level::Info);
        assert_eq!(at("not a time"), None);
    }

    #[test]
    fn occurrences_of_one_error_have_one_template() {
        let same = |a: &str, b: &str| assert_eq!(template(a), template(b));
        same("connect to 10.0.0.7:5432: refused after 31ms", "connect to 10.0.0.12:5432: refused after 7ms");
        same(
            "request 9f3b0f6e-5a54-4b0a-9c57-0a1b2c3d4e5f failed",
            "request 00000000-5a54-4b0a-9c57-0a1b2c3d4e5f failed",
        );
        same("digest deadbeef01 differs", "digest 12345678ab differs");
        same("connect to [2001:db8::1]:443", "connect to [2001:db8::7]:443");
        assert_ne!(template("request failed status=503"), template("request failed reason=timeout"));
        assert_eq!(template("the facade fails"), "the facade fails");
    }

    #[test]
    fn no_text_breaks_the_parser() {
        let long = "ä".repeat(LINE_MAX);
        for text in [
            "",
            "[pod/",
            "{",
            "{}",
            "[]",
            "=",
            "2026-99-99T00:00:00Z x",
            "2026-11-23 24:61:61 x",
            long.as_str(),
            "\u{0}\u{1b}[2J",
        ] {
            let line = Line::parse(text);
            template(&line.message);
        }
    }
}
