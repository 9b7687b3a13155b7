//! Calls of tools in the text of an answer, piece by piece.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::chat::ToolFormat;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// A call begins: its number in the answer and its function.
    Call(usize, String),
    /// More of the arguments of that call.
    Arguments(usize, String),
}

/// Cuts an answer into its text and its calls. However the answer is split, the pieces joined are the same.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    mode: Mode,
    /// Text of which it is not known yet what it is.
    held: String,
    /// The names of functions that may be called.
    names: Arc<[String]>,
    calls: usize,
    /// Whether all calls are whole.
    whole: bool,
}

#[derive(Debug, Clone)]
enum Mode {
    Text,
    /// The answer is a call; its grammar guarantees that.
    Guided(Scan),
    /// Calls are between tags. `within` has where in the held text a call begins, and from where on its end may be.
    Tagged {
        open: &'static str,
        close: &'static str,
        within: Option<(usize, usize)>,
    },
    /// The answer is a call if it is an object, which its first letter says.
    Bare {
        is_object: bool,
    },
}

/// Where in the JSON of a call its text is.
#[derive(Debug, Clone, Default)]
struct Scan {
    depth: usize,
    in_text: bool,
    escaped: bool,
    place: Place,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Before,
    Arguments,
    After,
}

/// White space that is held in bytes: with each token it is searched again.
const MOST_SPACE: usize = 4 << 10;

impl Scan {
    /// Takes a byte. Gives whether the place changed with it: the arguments begin with it, or end after it.
    fn push(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_text => self.escaped = true,
            b'"' => self.in_text = !self.in_text,
            b'{' | b'[' if !self.in_text => self.depth += 1,
            b'}' | b']' if !self.in_text => self.depth = self.depth.saturating_sub(1),
            _ => return false,
        }
        let place = match (self.place, self.depth) {
            (Place::Before, 2) => Place::Arguments,
            (Place::Arguments, 1) => Place::After,
            (place, _) => place,
        };
        std::mem::replace(&mut self.place, place) != place
    }
}

/// A call as models write it. Other fields mean nothing.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

impl Reader {
    /// Of an answer without calls.
    pub(super) fn text() -> Self {
        Self::new(Mode::Text, Vec::new())
    }

    /// Of an answer that is a call by its grammar.
    pub(super) fn guided() -> Self {
        Self::new(Mode::Guided(Scan::default()), Vec::new())
    }

    /// Of an answer that may call these functions.
    pub(super) fn of(format: &ToolFormat, names: Vec<String>) -> Self {
        let mode = match format.tags {
            Some((open, close)) => Mode::Tagged { open, close, within: None },
            None => Mode::Bare { is_object: false },
        };
        Self::new(mode, names)
    }

    fn new(mode: Mode, names: Vec<String>) -> Self {
        Self { mode, held: String::new(), names: names.into(), calls: 0, whole: true }
    }

    /// Whether the answer that ended was one with calls.
    pub(super) fn has_calls(&self) -> bool {
        self.calls > 0 && self.whole
    }

    /// Takes more of the answer.
    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match &mut self.mode {
            _ if text.is_empty() => {}
            Mode::Text => pieces.push(Piece::Text(text.to_owned())),
            Mode::Guided(_) => self.guide(text, &mut pieces),
            Mode::Tagged { .. } => {
                self.held.push_str(text);
                while self.step(&mut pieces) {}
            }
            Mode::Bare { is_object } => {
                self.held.push_str(text);
                let begin = self.held.trim_start();
                let space = self.held.len() - begin.len();
                match begin.chars().next() {
                    _ if *is_object => {}
                    None if space <= MOST_SPACE => {}
                    Some('{') if space <= MOST_SPACE => *is_object = true,
                    _ => {
                        self.mode = Mode::Text;
                        pieces.push(Piece::Text(std::mem::take(&mut self.held)));
                    }
                }
            }
        }
        pieces
    }

    /// The rest of the answer.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let held = std::mem::take(&mut self.held);
        match &self.mode {
            Mode::Text => {}
            Mode::Guided(scan) => self.whole = scan.place == Place::After,
            // A stop sequence or the model ended it before the tag.
            &Mode::Tagged { within: Some((start, _)), .. } => self.call(start..held.len(), held, &mut pieces),
            // Models end calls with a line.
            Mode::Tagged { .. } if self.calls > 0 && held.trim().is_empty() => {}
            Mode::Bare { is_object: true } => self.call(0..held.len(), held, &mut pieces),
            Mode::Tagged { .. } | Mode::Bare { .. } => {
                pieces.extend((!held.is_empty()).then_some(Piece::Text(held)));
            }
        }
        pieces
    }

    /// Takes text of an answer that is a call.
    fn guide(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        let Mode::Guided(scan) = &mut self.mode else { return };
        let mut from = 0;
        for (at, byte) in text.bytes().enumerate() {
            let before = scan.place;
            if !scan.push(byte) {
                continue;
            }
            // The places are those of braces, so of whole letters.
            if before == Place::Before {
                self.held.push_str(&text[..at]);
                let start = std::mem::take(&mut self.held) + "{}}";
                let name = serde_json::from_str::<Written<'_>>(&start).map(|call| call.name.into_owned());
                pieces.push(Piece::Call(0, name.unwrap_or_default()));
                (self.calls, from) = (1, at);
            } else {
                pieces.push(Piece::Arguments(0, text[from..=at].to_owned()));
            }
        }
        match scan.place {
            Place::Before => self.held.push_str(text),
            Place::Arguments if from < text.len() => pieces.push(Piece::Arguments(0, text[from..].to_owned())),
            Place::Arguments | Place::After => {}
        }
    }

    /// Takes the held text up to a tag. Gives whether there was one.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let Mode::Tagged { open, close, within } = &mut self.mode else { return false };
        let (open, close) = (*open, *close);
        if let Some((start, searched)) = within {
            let Some(at) = self.held[*searched..].find(close).map(|at| at + *searched) else {
                let all = self.held.len();
                *searched = self.held.floor_char_boundary(all.saturating_sub(close.len() - 1)).max(*start);
                return false;
            };
            let start = *start;
            *within = None;
            let rest = self.held.split_off(at + close.len());
            let text = std::mem::replace(&mut self.held, rest);
            self.call(start..at, text, pieces);
            return true;
        }
        let found = self.held.find(open);
        let end = found.unwrap_or_else(|| self.held.len() - begun(&self.held, open));
        // Space before a call is not text, but more of it than any model writes is.
        let written = self.held[..end].trim_end().len();
        let more = (end - written) / (MOST_SPACE + 1) * (MOST_SPACE + 1);
        let text = self.held.floor_char_boundary(written + more);
        if text > 0 {
            pieces.push(Piece::Text(self.held[..text].to_owned()));
            self.held.drain(..text);
        }
        *within = found.map(|at| at - text + open.len()).map(|start| (start, start));
        within.is_some()
    }

    /// The call that a model wrote at a place of a text. Without a call of a known function there, it is text.
    fn call(&mut self, place: Range<usize>, text: String, pieces: &mut Vec<Piece>) {
        let call = serde_json::from_str::<Written<'_>>(&text[place]).ok();
        let call = call.filter(|call| self.names.iter().any(|name| *name == call.name));
        let arguments = |call: &Written<'_>| call.arguments.map_or("{}", RawValue::get).to_owned();
        match call.map(|call| (arguments(&call), call.name.into_owned())) {
            Some((arguments, name)) if arguments.starts_with('{') => {
                pieces.extend([Piece::Call(self.calls, name), Piece::Arguments(self.calls, arguments)]);
                self.calls += 1;
            }
            _ => pieces.push(Piece::Text(text)),
        }
    }
}

/// The bytes at the end of a text that may begin a tag.
fn begun(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&length| tag.is_char_boundary(length) && text.ends_with(&tag[..length])).unwrap_or(0)
}

/// A call in the answer.
#[derive(Serialize)]
pub(super) struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    name: String,
    arguments: String,
}

fn call_id() -> String {
    format!("call_{}", uuid::Uuid::new_v4().simple())
}

/// A whole answer: its text and its calls.
#[derive(Default)]
pub(super) struct Reply {
    pub(super) text: String,
    pub(super) calls: Vec<ToolCall>,
    /// Whether the calls are whole.
    pub(super) has_calls: bool,
}

impl Reply {
    /// Reads a whole answer.
    pub(super) fn read(mut reader: Reader, text: &str) -> Self {
        let mut reply = Self::default();
        let mut pieces = reader.push(text);
        pieces.extend(reader.finish());
        for piece in pieces {
            match piece {
                Piece::Text(text) => reply.text += &text,
                Piece::Call(_, name) => {
                    let function = Function { name, arguments: String::new() };
                    reply.calls.push(ToolCall { id: call_id(), r#type: "function", function });
                }
                Piece::Arguments(_, more) => {
                    if let Some(call) = reply.calls.last_mut() {
                        call.function.arguments += &more;
                    }
                }
            }
        }
        reply.has_calls = reader.has_calls();
        reply
    }
}

impl Piece {
    /// The `delta` of a stream.
    pub(super) fn delta(self) -> Value {
        let call = |call: Value| json!({ "tool_calls": [call] });
        match self {
            Self::Text(text) => json!({ "content": text }),
            Self::Call(index, name) => call(json!({
                "index": index,
                "id": call_id(),
                "type": "function",
                "function": { "name": name, "arguments": "" },
            })),
            Self::Arguments(index, more) => call(json!({ "index": index, "function": { "arguments": more } })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ToolSupport;

    fn format(template: &str) -> &'static ToolFormat {
        let ToolSupport::Calls(format) = ToolSupport::of(template) else { panic!("{template}") };
        format
    }

    fn hermes() -> Reader {
        let template = "{{ tools }}<tool_call>{\"name\": n, \"arguments\": a}</tool_call>";
        Reader::of(format(template), vec!["f".to_owned(), "g".to_owned()])
    }

    fn llama() -> Reader {
        Reader::of(format("{{ tools }}{\"name\": function name, \"parameters\": p}"), vec!["f".to_owned()])
    }

    /// The text, the calls, and whether the answer is one with calls, for every way to split it into two or into letters.
    fn read(reader: &Reader, answer: &str) -> (String, Vec<(String, String)>, bool) {
        let all = |parts: &[&str]| {
            let (mut reader, mut text, mut calls) = (reader.clone(), String::new(), Vec::new());
            let mut pieces: Vec<Piece> = parts.iter().flat_map(|part| reader.push(part)).collect();
            pieces.extend(reader.finish());
            for piece in pieces {
                match piece {
                    Piece::Text(more) => text += &more,
                    Piece::Call(index, name) => {
                        assert_eq!(index, calls.len());
                        calls.push((name, String::new()));
                    }
                    Piece::Arguments(index, more) => calls[index].1 += &more,
                }
            }
            (text, calls, reader.has_calls())
        };
        let whole = all(&[answer]);
        for at in (1..answer.len()).filter(|at| answer.is_char_boundary(*at)) {
            assert_eq!(all(&[&answer[..at], &answer[at..]]), whole, "{answer:?} at {at}");
        }
        let letters: Vec<&str> = answer.split("").collect();
        assert_eq!(all(&letters), whole, "{answer:?}");
        let reply = Reply::read(reader.clone(), answer);
        let calls = reply.calls.into_iter().map(|call| (call.function.name, call.function.arguments)).collect();
        assert_eq!((reply.text, calls, reply.has_calls), whole, "{answer:?}");
        whole
    }

    #[test]
    fn calls_between_tags_are_found_however_the_answer_is_split() {
        let one = |arguments: &str| vec![("f".to_owned(), arguments.to_owned())];
        for (answer, text, calls) in [
            ("Grüße < <tool", "Grüße < <tool", vec![]),
            (
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"ä\": [1, \"}\"]}}\n</tool_call>\n",
                "",
                one("{\"ä\": [1, \"}\"]}"),
            ),
            ("Wait.\n\n<tool_call>{\"name\":\"f\"}</tool_call>", "Wait.", one("{}")),
            ("<tool_call>{\"name\": \"f\", \"arguments\": {}}", "", one("{}")),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"n\": 12345678901234567890.0}}</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}</tool_call> Done",
                " Done",
                vec![("f".to_owned(), "{\"n\": 12345678901234567890.0}".to_owned()), ("g".to_owned(), "{}".to_owned())],
            ),
        ] {
            assert_eq!(read(&hermes(), answer), (text.to_owned(), calls.clone(), !calls.is_empty()), "{answer}");
        }
    }

    #[test]
    fn white_space_is_held_up_to_a_bound() {
        for reader in [hermes(), llama()] {
            let mut reader = reader;
            for _ in 0..100 {
                reader.push(&" ".repeat(128));
                assert!(reader.held.len() <= MOST_SPACE);
            }
        }
        let call = "{\"name\": \"f\", \"arguments\": {}}";
        let calls = vec![("f".to_owned(), "{}".to_owned())];
        let (space, more) = (" ".repeat(MOST_SPACE), " ".repeat(MOST_SPACE + 9));
        assert_eq!(read(&hermes(), &format!("{space}<tool_call>{call}")), (String::new(), calls.clone(), true));
        let long = read(&hermes(), &format!("{more}<tool_call>{call}"));
        assert_eq!(long, (" ".repeat(MOST_SPACE + 1), calls.clone(), true));
        assert_eq!(read(&llama(), &format!("{space}{call}")), (String::new(), calls, true));
        assert_eq!(read(&llama(), &format!("{more}{call}")).1, vec![]);
    }

    #[test]
    fn what_is_not_a_call_of_a_known_function_is_text() {
        for answer in [
            "<tool_call>{\"name\": \"other\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
            "<tool_call>{\"name\": \"f\", \"arguments\": {}, \"parameters\": {}}</tool_call>",
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": </tool_call>",
            "<tool_call>{\"name\": \"f\", \"argum",
            "<tool_call></tool_call>",
            "So:\n\n<tool_call>f</tool_call>",
        ] {
            assert_eq!(read(&hermes(), answer), (answer.to_owned(), vec![], false));
        }
        for answer in ["{\"name\": \"x\", \"parameters\": {}}", "{\"a\": 1}", "{\"name\": \"f\"", "Hello {", "  ", ""] {
            assert_eq!(read(&llama(), answer), (answer.to_owned(), vec![], false));
        }
    }

    #[test]
    fn answer_that_is_an_object_is_a_call_of_llama() {
        let answer = "\n{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"a\": 1}} ";
        assert_eq!(read(&llama(), answer), (String::new(), vec![("f".to_owned(), "{\"a\": 1}".to_owned())], true));
    }

    #[test]
    fn guided_answer_gives_its_arguments_as_they_come() {
        let answer = "{ \"name\" : \"f\",\"arguments\": {\"a\": \"\\\"}{\\\\\", \"b\": [{}, \"ü\"]} \n}";
        let arguments = "{\"a\": \"\\\"}{\\\\\", \"b\": [{}, \"ü\"]}";
        assert_eq!(
            read(&Reader::guided(), answer),
            (String::new(), vec![("f".to_owned(), arguments.to_owned())], true)
        );
        let (text, calls, whole) = read(&Reader::guided(), &answer[..answer.len() - 12]);
        assert!(text.is_empty() && !whole && arguments.starts_with(&calls[0].1) && !calls[0].1.is_empty(), "{calls:?}");
        assert_eq!(read(&Reader::guided(), "{\"name\": \"f"), (String::new(), vec![], false));
        let mut reader = Reader::guided();
        let pieces = ["{\"name\":\"f\",\"arguments\":", "{\"a\"", ":1}", "}"].map(|part| reader.push(part));
        let more = |text: &str| Piece::Arguments(0, text.to_owned());
        assert_eq!(pieces, [vec![], vec![Piece::Call(0, "f".to_owned()), more("{\"a\"")], vec![more(":1}")], vec![]]);
    }
}
