//! Files of requests for batches, checked before they are sent: the server reports what is wrong only after an upload.

use std::collections::HashSet;
use std::io::{self, BufRead, Read as _};

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use textnlp_provider::units::counted;

use crate::Failure;

/// Limit of a file in bytes: the largest that `server.batch.max_file_size` allows.
pub const MAX_FILE_BYTES: u64 = 1 << 30;
/// Limit of the requests of a file: the largest that `server.batch.max_requests` allows.
const MAX_REQUESTS: u64 = 1_000_000;
/// Limit of a line in bytes, the same as the server's.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Limit of a `custom_id` in bytes, the same as the server's.
const MAX_ID_BYTES: usize = 512;
/// Problems of a file that are reported; the others are counted.
const MAX_SHOWN: usize = 20;
/// The paths whose requests a batch may have.
const ENDPOINTS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/generate"];
/// The members of a line.
const MEMBERS: [&str; 4] = ["custom_id", "method", "url", "body"];

/// A file whose lines are requests of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedFile {
    /// The path of its requests: `/v1/completions`.
    pub endpoint: &'static str,
    /// Number of requests.
    pub requests: u64,
}

/// Whether a batch of this status changes no more.
pub fn is_final(status: &str) -> bool {
    matches!(status, "completed" | "cancelled" | "expired" | "failed")
}

/// Checks the lines of a file of requests. `name` is that of the file, for the report: one failure with all problems.
pub fn check(name: &str, mut input: impl BufRead) -> Result<CheckedFile, Failure> {
    let mut lines = Lines::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let most = MAX_LINE_BYTES as u64 + 1;
        let read = input.by_ref().take(most).read_until(b'\n', &mut line).with_context(|| format!("read {name}"))?;
        if read == 0 {
            break;
        }
        lines.number += 1;
        if line.last() != Some(&b'\n') && line.len() > MAX_LINE_BYTES {
            lines.requests += 1;
            lines.note(format!("is longer than {MAX_LINE_BYTES} bytes"));
            skip_line(&mut input).with_context(|| format!("read {name}"))?;
        } else if !line.iter().all(u8::is_ascii_whitespace) {
            lines.requests += 1;
            if lines.requests > MAX_REQUESTS {
                lines.note(format!("is request {}: a file may have {MAX_REQUESTS}", lines.requests));
                break;
            }
            lines.check(&line);
        }
    }
    lines.finish(name)
}

/// Reads the rest of a line without keeping it.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(buffer.len(), |at| at + 1);
        input.consume(length);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// What is known of the lines so far.
#[derive(Default)]
struct Lines {
    /// The number of the current line, from 1.
    number: u64,
    requests: u64,
    /// That of the first request, which all others must have.
    endpoint: Option<&'static str>,
    /// Digests, because the texts of all ids may be large.
    ids: HashSet<[u8; 16]>,
    /// The first problems, with their lines.
    shown: Vec<(u64, String)>,
    problems: u64,
}

impl Lines {
    fn note(&mut self, cause: impl Into<String>) {
        self.problems += 1;
        if self.shown.len() < MAX_SHOWN {
            self.shown.push((self.number, cause.into()));
        }
    }

    fn check(&mut self, line: &[u8]) {
        let value = match std::str::from_utf8(line) {
            Ok(text) => serde_json::from_str::<Value>(text),
            Err(error) => return self.note(format!("is not UTF-8: byte {} is invalid", error.valid_up_to() + 1)),
        };
        let map = match value {
            Ok(Value::Object(map)) => map,
            Ok(_) => return self.note("is not a JSON object"),
            Err(error) => return self.note(format!("is not valid JSON at column {}", error.column())),
        };
        match map.get("custom_id").and_then(Value::as_str) {
            None => self.note("`custom_id` must be a text"),
            Some(id) if !(1..=MAX_ID_BYTES).contains(&id.len()) => {
                self.note(format!("`custom_id` must have 1 to {MAX_ID_BYTES} bytes"));
            }
            Some(id) => {
                let mut short = [0; 16];
                short.copy_from_slice(&Sha256::digest(id.as_bytes())[..16]);
                if !self.ids.insert(short) {
                    self.note(format!("`custom_id` is that of an earlier line: `{}`", excerpt(id)));
                }
            }
        }
        if map.get("method").and_then(Value::as_str) != Some("POST") {
            self.note("`method` must be `POST`");
        }
        let url = map.get("url").and_then(Value::as_str);
        let endpoint = ENDPOINTS.into_iter().find(|known| url == Some(*known));
        match (endpoint, self.endpoint) {
            (None, _) => self.note(format!("`url` must be one of {}", ENDPOINTS.join(", "))),
            (Some(endpoint), None) => self.endpoint = Some(endpoint),
            (Some(endpoint), Some(first)) if endpoint != first => {
                self.note(format!("`url` must be `{first}`, as in the lines before"));
            }
            (Some(_), Some(_)) => {}
        }
        match map.get("body") {
            Some(Value::Object(body)) => {
                if body.get("stream").is_some_and(|stream| !matches!(stream, Value::Null | Value::Bool(false))) {
                    self.note("`body.stream` must be false: a batch stores whole answers");
                }
            }
            _ => self.note("`body` must be an object"),
        }
        for key in map.keys().filter(|key| !MEMBERS.contains(&key.as_str())) {
            self.note(format!("`{}` is not a known field", excerpt(key)));
        }
    }

    fn finish(mut self, name: &str) -> Result<CheckedFile, Failure> {
        if self.requests == 0 {
            self.note("there are no requests");
        }
        match (self.problems, self.endpoint) {
            (0, Some(endpoint)) => Ok(CheckedFile { endpoint, requests: self.requests }),
            _ => Err(self.failure(name)),
        }
    }

    /// One failure for all problems.
    fn failure(&self, name: &str) -> Failure {
        let mut text: Vec<String> = self.shown.iter().map(|(line, cause)| format!("line {line}: {cause}")).collect();
        let more = self.problems - self.shown.len() as u64;
        if more > 0 {
            text.push(format!("and {more} more {}", if more == 1 { "problem" } else { "problems" }));
        }
        let problems: Vec<Value> =
            self.shown.iter().map(|(line, cause)| json!({ "line": line, "cause": cause })).collect();
        let error = anyhow::anyhow!("{}", text.join("\n"))
            .context(format!("{name} is no file of requests: {}", counted(self.problems, "problem")));
        Failure::usage("invalid_file", error)
            .hint(r#"each line is {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once"}}"#)
            .document(json!({ "file": name, "problem_count": self.problems, "problems": problems }))
    }
}

/// The beginning of a text of the file, for a report.
fn excerpt(text: &str) -> String {
    text.chars().take(64).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str) -> String {
        json!({ "custom_id": id, "method": "POST", "url": "/v1/completions", "body": { "prompt": "a" } }).to_string()
    }

    fn problems(text: &[u8]) -> Vec<(u64, String)> {
        let failure = check("a.jsonl", text).unwrap_err();
        assert_eq!((failure.code, failure.exit), ("invalid_file", crate::Exit::Usage));
        let problems = failure.document["problems"].as_array().unwrap();
        let one = |problem: &Value| (problem["line"].as_u64().unwrap(), problem["cause"].as_str().unwrap().to_owned());
        problems.iter().map(one).collect()
    }

    #[test]
    fn file_of_requests_has_an_endpoint_and_a_count() {
        let text = format!("{}\r\n\n{}", line("a"), line("b"));
        let expect = CheckedFile { endpoint: "/v1/completions", requests: 2 };
        assert_eq!(check("a.jsonl", text.as_bytes()).unwrap(), expect);
    }

    #[test]
    fn each_rule_of_a_line_has_its_problem() {
        let with = |member: &str, value: Value| {
            let mut other: Value = serde_json::from_str(&line("b")).unwrap();
            other[member] = value;
            format!("{}\n{other}", line("a"))
        };
        for (text, expect) in [
            (with("custom_id", json!(1)), "`custom_id` must be a text"),
            (with("custom_id", json!("")), "`custom_id` must have 1 to 512 bytes"),
            (with("custom_id", json!("x".repeat(513))), "`custom_id` must have 1 to 512 bytes"),
            (with("custom_id", json!("a")), "`custom_id` is that of an earlier line: `a`"),
            (with("method", json!("GET")), "`method` must be `POST`"),
            (with("url", json!("/v1/models")), "`url` must be one of"),
            (with("url", json!("/v1/generate")), "`url` must be `/v1/completions`, as in the lines before"),
            (with("body", json!([])), "`body` must be an object"),
            (with("body", json!({ "stream": true })), "`body.stream` must be false"),
            (with("more\n", json!(1)), "`more\\n` is not a known field"),
            (format!("{}\n[]", line("a")), "is not a JSON object"),
            (format!("{}\n{{", line("a")), "is not valid JSON at column"),
            (format!("{}\n\"{}\"", line("a"), "x".repeat(MAX_LINE_BYTES)), "is longer than 1048576 bytes"),
        ] {
            let found = problems(text.as_bytes());
            assert!(found.len() == 1 && found[0].0 == 2 && found[0].1.starts_with(expect), "{expect}: {found:?}");
        }
        assert_eq!(problems(b"\xff\n")[0].1, "is not UTF-8: byte 1 is invalid");
        assert_eq!(problems(b"\n \n")[0].1, "there are no requests");
    }

    #[test]
    fn line_after_one_that_is_too_long_has_its_own_number() {
        let text = format!("{}\n{}\n{}", "x".repeat(3 * MAX_LINE_BYTES), line("a"), line("a"));
        let numbers: Vec<u64> = problems(text.as_bytes()).into_iter().map(|(line, _)| line).collect();
        assert_eq!(numbers, [1, 3]);
        let longest = format!("{}{}", line("a"), " ".repeat(MAX_LINE_BYTES - line("a").len()));
        assert!(check("a.jsonl", format!("{longest}\n").as_bytes()).is_ok());
    }

    #[test]
    fn all_problems_are_counted_and_the_first_are_shown() {
        let failure = check("a.jsonl", "{}\n".repeat(10).as_bytes()).unwrap_err();
        // `custom_id`, `method`, `url` and `body` of each line.
        assert_eq!(failure.document["problem_count"], 40);
        assert_eq!(failure.document["problems"].as_array().unwrap().len(), MAX_SHOWN);
        assert!(format!("{:#}", failure.error).ends_with("and 20 more problems"), "{:#}", failure.error);
    }

    #[test]
    fn only_batches_that_have_ended_are_final() {
        let wanted = ["in_progress", "cancelling", "finalizing", "completed", "cancelled", "expired", "failed"];
        assert_eq!(wanted.map(is_final), [false, false, false, true, true, true, true]);
    }
}
