//! What a person or a program reads: results on stdout, everything else on stderr. Only this file prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{IsTerminal, Write};

use serde_json::{Map, Value, json};

use crate::args::Output;

/// The version of the JSON documents. Members are only ever added to a format.
pub const FORMAT: u32 = 1;

/// How a command ended; also the process's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// An invalid environment, an unknown name, a provider that is not there.
    Usage = 2,
    /// A gate is not open.
    GateShut = 3,
    /// Refused for safety; also changes wanted off a terminal without `--yes`.
    Refused = 4,
    /// Stopped by a signal; the same command goes on from here.
    Stopped = 5,
    /// `plan --exit-code` found changes.
    ChangesPlanned = 6,
}

/// A number of bytes for people: in thousands, as disks and networks are sold.
pub fn size(bytes: u64) -> String {
    let (unit, divisor, digits) = match bytes {
        b if b >= 1_000_000_000 => ("GB", 1e9, 2),
        b if b >= 1_000_000 => ("MB", 1e6, 1),
        b if b >= 1_000 => ("kB", 1e3, 1),
        b => return format!("{b} bytes"),
    };
    format!("{:.digits$} {unit}", bytes as f64 / divisor)
}

/// Why a command failed, for people and programs.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// A stable word for programs: `invalid_environment`, `port_in_use`.
    pub code: &'static str,
    /// The error with its causes.
    pub error: anyhow::Error,
    /// The exact command to run next, or what to change.
    pub hint: Option<String>,
    /// Which resource it is about.
    pub resource: Option<String>,
    /// Further members of the JSON document.
    pub document: Map<String, Value>,
}

impl Failure {
    /// A failure of a given kind.
    pub fn new(exit: Exit, code: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, code, error: error.into(), hint: None, resource: None, document: Map::new() }
    }

    /// A wrong argument, name or file.
    pub fn usage(code: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Usage, code, error)
    }

    /// Something that was refused for safety.
    pub fn refused(code: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Refused, code, error)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds which resource it is about.
    #[must_use]
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// Adds members to the JSON document.
    #[must_use]
    pub fn document(mut self, document: Value) -> Self {
        if let Value::Object(members) = document {
            self.document.extend(members);
        }
        self
    }

    /// The causes under the error, outermost first, without repeats.
    fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        for cause in self.error.chain().skip(1).map(ToString::to_string) {
            if causes.last() != Some(&cause) {
                causes.push(cause);
            }
        }
        causes
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(Exit::Failed, "failed", error)
    }
}

/// What a command that worked says: members for the JSON document and lines for people.
#[derive(Debug, Default)]
pub struct Success {
    /// How the process ends when not with 0: changes planned.
    pub exit: Option<Exit>,
    /// Members of the JSON document.
    pub document: Map<String, Value>,
    /// What people read on stdout; empty when everything was said already.
    pub text: String,
}

impl Success {
    /// Text for people and members for programs.
    pub fn new(text: impl Into<String>, document: Value) -> Self {
        let document = match document {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        Self { exit: None, document, text: text.into() }
    }

    /// Ends with another status than 0.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = Some(exit);
        self
    }
}

/// Where a run writes, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    output: Output,
    quiet: bool,
    colour: bool,
}

impl Console {
    /// Colours only on a terminal that wants them (`NO_COLOR`, `TERM=dumb`).
    pub fn new(output: Output, quiet: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self { output, quiet, colour: !plain && std::io::stderr().is_terminal() }
    }

    /// Whether results are for people.
    pub fn is_text(&self) -> bool {
        self.output == Output::Text
    }

    /// Whether events go to stdout as lines.
    pub fn is_jsonl(&self) -> bool {
        self.output == Output::Jsonl
    }

    /// Whether only results and errors are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A line about what happens, on stderr.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            complain(line.as_ref());
        }
    }

    /// Something that deserves a look, on stderr even when quiet.
    pub fn warn(&self, line: impl AsRef<str>) {
        complain(&format!("{} {}", self.paint("33", "warning:"), line.as_ref()));
    }

    /// A piece of a result for people, as it comes: streamed text.
    pub fn stream(&self, piece: &str) {
        if self.is_text() {
            put(piece);
        }
    }

    /// An event for programs; a line of its own under `--output jsonl`.
    pub fn event(&self, event: &Value) {
        if self.is_jsonl() {
            put(&format!("{event}\n"));
        }
    }

    /// Ends a command that worked.
    pub fn finish(&self, success: Success) -> Exit {
        let exit = success.exit.unwrap_or(Exit::Done);
        match self.output {
            Output::Text => {
                if !success.text.is_empty() {
                    put(success.text.trim_end_matches('\n'));
                    put("\n");
                }
            }
            Output::Json | Output::Jsonl => {
                let mut document = head(true, exit);
                document.extend(success.document);
                self.document(document);
            }
        }
        exit
    }

    /// Ends a command that failed: error, causes and hint.
    pub fn fail(&self, failure: &Failure) -> Exit {
        if self.output == Output::Text {
            complain(&format!("{} {}", self.paint("31;1", "error:"), failure.error));
            for cause in failure.causes() {
                complain(&indented("  cause: ", &cause));
            }
            if let Some(hint) = &failure.hint {
                complain(&indented(&format!("{} ", self.paint("36", "hint:")), hint));
            }
        } else {
            let mut document = head(false, failure.exit);
            document.insert(
                "error".into(),
                json!({
                    "code": failure.code,
                    "message": failure.error.to_string(),
                    "causes": failure.causes(),
                    "hint": failure.hint,
                    "resource": failure.resource,
                }),
            );
            document.extend(failure.document.clone());
            self.document(document);
        }
        failure.exit
    }

    /// Wraps a text in a colour when colours are wanted.
    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn document(&self, document: Map<String, Value>) {
        let document = Value::Object(document);
        let text = if self.is_jsonl() { document.to_string() } else { format!("{document:#}") };
        put(&text);
        put("\n");
    }
}

fn head(ok: bool, exit: Exit) -> Map<String, Value> {
    let Value::Object(head) = json!({ "format": FORMAT, "ok": ok, "exit": exit as i32 }) else { return Map::new() };
    head
}

fn indented(head: &str, text: &str) -> String {
    format!("{head}{}", text.replace('\n', "\n         "))
}

/// A reader that went away (`| head`) is no reason to fail.
fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
