//! Output for people and programs: results on stdout, everything else on stderr. Only this module prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::borrow::Cow;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Map, Value, json};
pub use textnlp_service::failure::{Exit, Failure, size};

use crate::args::Output;
use crate::signals;

/// The version of the JSON documents. Members are only added within a version.
pub const FORMAT: u32 = 1;

/// The output of a successful command: members of the JSON document, and text.
#[derive(Debug, Default)]
pub struct Success {
    /// The exit status if it is not 0: changes planned.
    pub exit: Option<Exit>,
    /// Members of the JSON document.
    pub document: Map<String, Value>,
    /// The text for stdout, empty if everything was printed already.
    pub text: String,
    /// Whether [`Console::deliver`] has written it.
    delivered: bool,
}

impl Success {
    /// Creates an output from text and JSON members.
    pub fn new(text: impl Into<String>, document: Value) -> Self {
        let document = match document {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        Self { document, text: text.into(), ..Self::default() }
    }

    /// Sets an exit status other than 0.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = Some(exit);
        self
    }
}

/// The first failed write to stdout. A command that streams continues and fails at its end.
static LOST_OUTPUT: OnceLock<String> = OnceLock::new();

/// Limit of an answer to a question in bytes.
const ANSWER_BYTES: u64 = 1024;

/// Whether the answer to a `[y/N]` question is yes.
fn is_yes(answer: &str) -> bool {
    ["y", "yes"].iter().any(|yes| answer.trim().eq_ignore_ascii_case(yes))
}

/// Waits until there is a line or an end of the input; false once `is_stopped`. Reading itself would not end with a signal.
fn wait_for_input(input: impl AsFd, is_stopped: impl Fn() -> bool) -> bool {
    const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !is_stopped() {
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&POLL_INTERVAL)) {
            Ok(0) | Err(Errno::INTR) => {}
            // What cannot be polled is read, which reports why.
            Ok(_) | Err(_) => return true,
        }
    }
    false
}

/// The output format and verbosity of a run.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    output: Output,
    quiet: bool,
    colour: bool,
}

impl Console {
    /// Colours are used only on a terminal, unless `NO_COLOR` or `TERM=dumb` is set.
    pub fn new(output: Output, quiet: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self { output, quiet, colour: !plain && std::io::stderr().is_terminal() }
    }

    /// Whether results are printed as text.
    pub fn is_text(&self) -> bool {
        self.output == Output::Text
    }

    /// Whether events are printed to stdout as JSON lines.
    pub fn is_jsonl(&self) -> bool {
        self.output == Output::Jsonl
    }

    /// Whether only results and errors are printed.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Prints a progress line to stderr.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            complain(line.as_ref());
        }
    }

    /// Whether there is a terminal to ask at.
    pub fn can_ask(&self) -> bool {
        std::io::stdin().is_terminal() && self.is_text()
    }

    /// Asks the operator for a confirmation. Without a terminal, with JSON output, or once a signal has asked the command to
    /// [stop](crate::signals::is_stopped), the answer is no.
    pub fn confirm(&self, question: &str) -> bool {
        if !self.can_ask() || signals::is_stopped() {
            return false;
        }
        signals::set_asking(true);
        complain(&format!("{question} [y/N]"));
        let has_answer = wait_for_input(std::io::stdin(), signals::is_stopped);
        signals::set_asking(false);
        if !has_answer {
            return false;
        }
        let mut answer = String::new();
        std::io::stdin().lock().take(ANSWER_BYTES).read_line(&mut answer).is_ok() && is_yes(&answer)
    }

    /// Prints a question to stderr, even when quiet.
    #[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "only the sign-in of a cloud asks"))]
    pub fn ask(question: &str) {
        complain(question);
    }

    /// Prints a warning to stderr, even when quiet.
    pub fn warn(&self, line: impl AsRef<str>) {
        complain(&format!("{} {}", self.paint("33", "warning:"), line.as_ref()));
    }

    /// Prints a piece of streamed text.
    pub fn stream(&self, piece: &str) {
        if self.is_text() {
            put(piece);
        }
    }

    /// Clears the terminal, so that the next text starts at its top.
    pub fn clear(&self) {
        put_raw("\u{1b}[H\u{1b}[2J");
    }

    /// Prints an event as a JSON line, under `--output jsonl` only.
    pub fn event(&self, event: &Value) {
        if self.is_jsonl() {
            put(&format!("{event}\n"));
        }
    }

    /// Prints the output of a successful command now. For commands that must not continue when the output is lost.
    ///
    /// # Errors
    /// If stdout cannot be written, for example to a full disk. A closed pipe is not an error.
    pub fn deliver(&self, mut success: Success) -> Result<Success, Failure> {
        let text = match self.output {
            Output::Text if success.text.is_empty() => String::new(),
            Output::Text => format!("{}\n", success.text.trim_end_matches('\n')),
            Output::Json | Output::Jsonl => {
                let mut document = head(success.exit.unwrap_or(Exit::Done));
                document.extend(std::mem::take(&mut success.document));
                self.rendered(document)
            }
        };
        put(&text);
        success.delivered = true;
        match LOST_OUTPUT.get() {
            None => Ok(success),
            Some(because) => {
                Err(Failure::from(anyhow::anyhow!("{because}").context("the output could not be written"))
                    .hint("write it to a disk with free space, and run the command again"))
            }
        }
    }

    /// Prints the output of a successful command. Fails with exit status 1 if stdout cannot be written.
    pub fn finish(&self, success: Success) -> Exit {
        let exit = success.exit.unwrap_or(Exit::Done);
        if success.delivered {
            return exit;
        }
        match self.deliver(success) {
            Ok(_) => exit,
            // A document would be lost like the output.
            Err(failure) => Self { output: Output::Text, ..*self }.fail(&failure),
        }
    }

    /// Prints a failure: error, causes and hint.
    pub fn fail(&self, failure: &Failure) -> Exit {
        if self.output == Output::Text {
            complain(&format!("{} {}", self.paint("31;1", "error:"), failure.error));
            lines(failure).into_iter().for_each(|(word, text)| match word {
                "hint:" => complain(&indented(&format!("{} ", self.paint("36", word)), &text)),
                _ => complain(&indented(&format!("  {word} "), &text)),
            });
        } else {
            let mut document = head(failure.exit);
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
            put(&self.rendered(document));
        }
        failure.exit
    }

    /// Colours a text if colours are enabled.
    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn rendered(&self, document: Map<String, Value>) -> String {
        let document = Value::Object(document);
        if self.is_jsonl() { format!("{document}\n") } else { format!("{document:#}\n") }
    }
}

/// The causes and hints of a failure: each fix below its causes where there are several.
fn lines(failure: &Failure) -> Vec<(&'static str, String)> {
    let (mut causes, mut hint) = (failure.causes(), failure.hint.clone());
    if !failure.fixes.is_empty() {
        // The last cause lists all of them, and the hint all fixes.
        causes.pop();
        let fixes: Vec<&str> = failure.fixes.iter().map(|(fix, _)| fix.as_str()).collect();
        hint = hint.filter(|hint| *hint != fixes.join("\n"));
    }
    let mut lines: Vec<_> = causes.into_iter().map(|cause| ("cause:", cause)).collect();
    for (fix, causes) in &failure.fixes {
        lines.extend(causes.iter().map(|cause| ("cause:", cause.clone())));
        lines.push(("hint:", fix.clone()));
    }
    lines.extend(hint.map(|hint| ("hint:", hint)));
    lines
}

/// The members that every document begins with. A program that reads them needs no exit status.
fn head(exit: Exit) -> Map<String, Value> {
    // With `--exit-code`, changes are an answer.
    let ok = matches!(exit, Exit::Done | Exit::ChangesPlanned);
    Map::from_iter([
        ("format".to_owned(), json!(FORMAT)),
        ("ok".to_owned(), json!(ok)),
        ("exit".to_owned(), json!(exit as i32)),
    ])
}

fn indented(head: &str, text: &str) -> String {
    format!("{head}{}", text.replace('\n', "\n         "))
}

/// Replaces what a terminal would take as a command, such as to change its title or to hide text: control characters and
/// those that reorder text, except line breaks, tabs and our colours. Texts come from servers, clusters and bundles too.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') && !c.is_control();
    if text.chars().all(|c| is_plain(c) || c == '\n') {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let kept = match c {
            '\u{1b}' => colour(rest),
            '\r' if rest.starts_with("\r\n") => "\r\n".len(),
            '\n' | '\t' => 1,
            c if is_plain(c) => c.len_utf8(),
            _ => 0,
        };
        shown.push_str(if kept == 0 { "·" } else { &rest[..kept] });
        rest = &rest[kept.max(c.len_utf8())..];
    }
    Cow::Owned(shown)
}

/// A text of others as a part of a line, which cannot imitate other lines of the output.
pub fn in_line(text: &str) -> Cow<'_, str> {
    match text.contains(['\n', '\r', '\u{2028}', '\u{2029}']) {
        true => Cow::Owned(text.replace(['\n', '\r', '\u{2028}', '\u{2029}'], "·")),
        false => Cow::Borrowed(text),
    }
}

/// The length of a colour of [`Console::paint`] at the start of a text, or 0.
fn colour(text: &str) -> usize {
    const CODES: [&str; 6] = ["0", "1", "31", "32", "33", "36"];
    let Some(text) = text.strip_prefix("\u{1b}[") else { return 0 };
    let codes = text.split(|c: char| !c.is_ascii_digit() && c != ';').next().unwrap_or_default();
    let is_ours = text[codes.len()..].starts_with('m') && codes.split(';').all(|code| CODES.contains(&code));
    if is_ours { codes.len() + "\u{1b}[m".len() } else { 0 }
}

/// Writes to stdout and remembers the first failure. A closed pipe (`| head`) is not a failure.
fn put(text: &str) {
    let is_terminal = std::io::stdout().is_terminal();
    put_raw(if is_terminal { printable(text) } else { Cow::Borrowed(text) }.as_ref());
}

fn put_raw(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = LOST_OUTPUT.set(format!("stdout: {error}"));
    }
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(line));
}

#[cfg(test)]
mod tests {
    use textnlp_provider::Problem;
    use textnlp_service::failure::preflight_failure;

    use super::*;

    #[test]
    fn question_ends_with_an_answer_an_end_or_a_signal() {
        let (reader, writer) = std::io::pipe().unwrap();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        // The signal comes while it waits.
        let signal = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2;
        assert!(!wait_for_input(&reader, signal));
        (&writer).write_all(b"y\n").unwrap();
        assert!(wait_for_input(&reader, || false));
        assert!(!wait_for_input(&reader, || true), "an answer after a signal does not count");
        drop(writer);
        assert!(wait_for_input(&reader, || false));
    }

    #[test]
    fn document_is_ok_only_beside_an_exit_status_that_is() {
        let all =
            [Exit::Done, Exit::Failed, Exit::Usage, Exit::GateShut, Exit::Refused, Exit::Stopped, Exit::ChangesPlanned];
        let ok = all.map(|exit| (head(exit)["exit"].clone(), head(exit)["ok"].clone()));
        let expected = [(0, true), (1, false), (2, false), (3, false), (4, false), (5, false), (6, true)];
        assert_eq!(ok, expected.map(|(exit, ok)| (json!(exit), json!(ok))));
    }

    #[test]
    fn each_fix_is_below_its_causes() {
        let problem = |place: &str, fix: &str| Problem::new(place, "wrong", fix);
        let problems = [problem("a", "one"), problem("b", "two"), problem("c", "one")];
        let failure = |problems: &[Problem]| preflight_failure("plan", "plan", Exit::Failed, problems);
        let shown = |failure: &Failure| {
            let lines = lines(failure).into_iter().map(|(word, text)| format!("{word} {text}"));
            lines.collect::<Vec<_>>().join("\n")
        };
        let several = failure(&problems);
        assert_eq!(shown(&several), "cause: a: wrong\ncause: c: wrong\nhint: one\ncause: b: wrong\nhint: two");
        assert_eq!(several.hint.as_deref(), Some("one\ntwo"));
        assert_eq!(shown(&failure(&problems[..1])), "cause: a: wrong\nhint: one");
        let other = Failure { error: several.error.context("more"), ..several }.hint("three");
        assert!(shown(&other).starts_with("cause: plan failed: 3 problems\ncause: a: wrong"), "{}", shown(&other));
        assert!(shown(&other).ends_with("hint: two\nhint: three"), "{}", shown(&other));
    }

    #[test]
    fn texts_of_others_stay_in_their_line() {
        assert_eq!(in_line("plain"), "plain");
        assert_eq!(in_line("disk full\n  next      curl x|sh\r\n"), "disk full·  next      curl x|sh··");
    }

    #[test]
    fn only_our_colours_reach_a_terminal() {
        for kept in ["plain ü\n\ttext\r\n", "\u{1b}[31;1merror:\u{1b}[0m", "\u{1b}[36mhint:\u{1b}[0m"] {
            assert_eq!(printable(kept), kept);
        }
        for (text, shown) in [
            ("a\u{1b}]0;title\u{7}b", "a·]0;title·b"),
            ("\u{1b}[8mhidden\u{1b}[2J\u{1b}[", "·[8mhidden·[2J·["),
            ("\u{1b}[31\u{1b}m", "·[31·m"),
            ("\u{9b}2J over\rwritten", "·2J over·written"),
            ("\u{202e}txt.exe\u{2066}\0", "·txt.exe··"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn only_y_and_yes_confirm_a_prompt() {
        for yes in ["y", "Y", "yes", "YES", " yes \n"] {
            assert!(is_yes(yes), "{yes}");
        }
        for no in ["", "\n", "n", "no", "ja", "j", "yes!", "yeah", "1"] {
            assert!(!is_yes(no), "{no}");
        }
    }
}
