//! Personal data in requests: found in the texts of their fields, and counted, masked or refused before anything else reads them.

mod detect;

use std::cmp::Reverse;
use std::ops::Range;

use serde_json::{Map, Value};

use crate::config::{Pii, PiiAction, PiiKind};

/// What the fields of a route are.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// A text, or a list of texts. Token ids cannot be searched.
    Texts,
    /// The messages of a chat: their content, and the arguments of their calls.
    Messages,
    /// Tools: their descriptions and parameters.
    Tools,
}

/// The fields of each route that are searched, in its body and in its query.
const FIELDS: &[(&str, &[(&str, Form)])] = &[
    ("/v1/chat/completions", &[("messages", Form::Messages), ("tools", Form::Tools)]),
    ("/v1/completions", &[("prompt", Form::Texts)]),
    ("/v1/embeddings", &[("input", Form::Texts)]),
    ("/v1/generate", &[("prompt", Form::Texts)]),
    ("/v1/stream", &[("prompt", Form::Texts)]),
    ("/v1/stream/tickets", &[("prompt", Form::Texts)]),
    ("/v1/tokenize", &[("text", Form::Texts), ("prompt", Form::Texts)]),
    ("/v1/validate", &[("reference", Form::Texts), ("candidate", Form::Texts)]),
    ("/invocations", &[("messages", Form::Messages), ("tools", Form::Tools), ("prompt", Form::Texts)]),
];

/// The most fields that an error names.
const MAX_NAMED: usize = 8;

/// The longest text that is read as JSON: its values take a multiple of its bytes. Longer ones are searched as they are.
const MAX_DOCUMENT: usize = 256 << 10;

/// Searches requests.
#[derive(Debug)]
pub(crate) struct Detector {
    action: PiiAction,
    /// In the order of [`PiiKind::ALL`].
    kinds: Vec<PiiKind>,
}

/// What was found in a request. It has no values.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// The values of each kind, in the order of [`PiiKind::ALL`].
    counts: [u64; PiiKind::ALL.len()],
    /// Fields with their kinds, at most [`MAX_NAMED`].
    fields: Vec<(String, Vec<&'static str>)>,
    /// A field with token ids.
    tokens: Option<String>,
}

impl Detector {
    /// That of a configuration.
    pub(crate) fn new(settings: &Pii) -> Self {
        let is_wanted = |kind: &PiiKind| settings.kinds.contains(kind);
        Self { action: settings.action, kinds: PiiKind::ALL.into_iter().filter(is_wanted).collect() }
    }

    /// What it does with what it finds.
    pub(crate) fn action(&self) -> PiiAction {
        self.action
    }

    /// Searches the fields of a route. Where the action is to mask, their texts have marks afterwards; otherwise they are unchanged.
    pub(crate) fn search(&self, route: &str, body: &mut Map<String, Value>) -> Findings {
        let mut search = Search { detector: self, found: Findings::default() };
        let fields = FIELDS.iter().find(|(known, _)| *known == route).map(|(_, fields)| *fields).unwrap_or_default();
        for (name, form) in fields {
            let Some(value) = body.get_mut(*name) else { continue };
            match form {
                Form::Texts => search.texts(name, value),
                Form::Messages => search.messages(name, value),
                Form::Tools => search.tools(name, value),
            }
        }
        search.found
    }

    /// The reason for which a request is refused, with the place of its fields before their names: `body.`.
    pub(crate) fn problem(&self, found: &Findings, place: &str) -> Option<Problem> {
        if self.action == PiiAction::Count {
            return None;
        }
        if let Some(field) = &found.tokens {
            let field = format!("{place}{field}");
            let message = format!("`{field}` has token ids, in which personal data cannot be found");
            return Some(Problem {
                code: "tokens_not_searchable",
                field,
                message,
                hint: "send texts instead of token ids",
            });
        }
        let (first, _) = found.fields.first().filter(|_| self.action == PiiAction::Refuse)?;
        let named = found.fields.iter().map(|(field, kinds)| format!("{} in `{place}{field}`", kinds.join(", ")));
        let message = format!("the request has personal data: {}", named.collect::<Vec<_>>().join("; "));
        let field = format!("{place}{first}");
        let hint = "remove it from the request, and send it again";
        Some(Problem { code: "personal_data_found", field, message, hint })
    }
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The code of the error.
    pub(crate) code: &'static str,
    /// The first field.
    pub(crate) field: String,
    /// The kinds and the fields, without values.
    pub(crate) message: String,
    /// What the client can do.
    pub(crate) hint: &'static str,
}

impl Findings {
    /// The number of values of each kind of which there are any.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (PiiKind, u64)> {
        PiiKind::ALL.into_iter().zip(self.counts).filter(|(_, count)| *count > 0)
    }

    /// Whether any value was found.
    pub(crate) fn has_values(&self) -> bool {
        self.counts.iter().any(|count| *count > 0)
    }

    /// Names a field with its kinds.
    fn add(&mut self, name: String, kinds: Vec<&'static str>) {
        let is_full = self.fields.len() >= MAX_NAMED;
        match self.fields.iter_mut().find(|(field, _)| *field == name) {
            Some((_, known)) => {
                for kind in kinds {
                    if !known.contains(&kind) {
                        known.push(kind);
                    }
                }
            }
            None if is_full => {}
            None => self.fields.push((name, kinds)),
        }
    }
}

/// The search of one request.
struct Search<'a> {
    detector: &'a Detector,
    found: Findings,
}

impl Search<'_> {
    fn texts(&mut self, name: &str, value: &mut Value) {
        match value {
            Value::String(text) => {
                self.text(&|| name.to_owned(), text);
            }
            Value::Array(items) => {
                for (number, item) in items.iter_mut().enumerate() {
                    match item {
                        Value::String(text) => {
                            self.text(&|| format!("{name}[{number}]"), text);
                        }
                        Value::Number(_) => self.tokens(name),
                        Value::Array(ids) if ids.first().is_some_and(Value::is_number) => self.tokens(name),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn tokens(&mut self, name: &str) {
        self.found.tokens.get_or_insert_with(|| name.to_owned());
    }

    fn messages(&mut self, name: &str, value: &mut Value) {
        for (number, message) in value.as_array_mut().into_iter().flatten().enumerate() {
            match message.get_mut("content") {
                Some(Value::String(text)) => self.content(&|_| format!("{name}[{number}].content"), &mut [text]),
                Some(Value::Array(parts)) => {
                    let texts = parts.iter_mut().enumerate().filter_map(|(place, part)| match part.get_mut("text") {
                        Some(Value::String(text)) => Some((place, text)),
                        _ => None,
                    });
                    let (places, mut texts): (Vec<usize>, Vec<&mut String>) = texts.unzip();
                    let place = |one: usize| format!("{name}[{number}].content[{}].text", places[one]);
                    self.content(&place, &mut texts);
                }
                _ => {}
            }
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
            for (place, call) in calls.into_iter().flatten().enumerate() {
                let arguments = call.get_mut("function").and_then(|function| function.get_mut("arguments"));
                if let Some(Value::String(text)) = arguments {
                    self.document(&|| format!("{name}[{number}].tool_calls[{place}].function.arguments"), text);
                }
            }
        }
    }

    /// The content of a message, whose parts a model gets as one text.
    fn content(&mut self, place: &dyn Fn(usize) -> String, texts: &mut [&mut String]) {
        match texts {
            // The results of tools are JSON, mostly.
            [text] if text.trim_start().starts_with(['{', '[']) => self.document(&|| place(0), text),
            _ => {
                self.joined(place, texts);
            }
        }
    }

    fn tools(&mut self, name: &str, value: &mut Value) {
        for (number, tool) in value.as_array_mut().into_iter().flatten().enumerate() {
            let Some(function) = tool.get_mut("function") else { continue };
            if let Some(Value::String(text)) = function.get_mut("description") {
                self.text(&|| format!("{name}[{number}].function.description"), text);
            }
            if let Some(schema) = function.get_mut("parameters") {
                self.values(&|| format!("{name}[{number}].function.parameters"), schema);
            }
        }
    }

    /// A text that is JSON, and stays so: a number becomes a text.
    fn document(&mut self, place: &dyn Fn() -> String, text: &mut String) {
        let short = Some(&*text).filter(|text| text.len() <= MAX_DOCUMENT);
        let Some(mut document) = short.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
            self.text(place, text);
            return;
        };
        let before: u64 = self.found.counts.iter().sum();
        let has_values = self.values(place, &mut document);
        let found = self.found.counts.iter().sum::<u64>() - before;
        let mut written = 0;
        detect::find(text, &self.detector.kinds, |_, _| written += 1);
        if written > found {
            // Of members with the same name, a parser keeps the last.
            self.text(place, text);
        } else if has_values && self.detector.action == PiiAction::Mask {
            *text = document.to_string();
        }
    }

    /// Whether a document has values in its texts and numbers. Its depth is bounded by its parser.
    fn values(&mut self, place: &dyn Fn() -> String, value: &mut Value) -> bool {
        match value {
            Value::String(text) => self.text(place, text),
            Value::Number(number) => {
                let mut text = number.to_string();
                let has_values = self.text(place, &mut text);
                if has_values && self.detector.action == PiiAction::Mask {
                    *value = Value::String(text);
                }
                has_values
            }
            Value::Array(items) => items.iter_mut().map(|item| self.values(place, item)).filter(|has| *has).count() > 0,
            Value::Object(map) => {
                let (mut has_values, members) = (false, std::mem::take(map));
                for (mut name, mut item) in members {
                    has_values |= self.text(place, &mut name);
                    has_values |= self.values(place, &mut item);
                    // Two names with one mark stay two.
                    while map.contains_key(&name) {
                        name.push('_');
                    }
                    map.insert(name, item);
                }
                has_values
            }
            Value::Null | Value::Bool(_) => false,
        }
    }

    /// Whether a text has values, which are masked if that is the action.
    fn text(&mut self, place: &dyn Fn() -> String, text: &mut String) -> bool {
        self.joined(&|_| place(), &mut [text])
    }

    /// The same of texts with nothing between them. The mark of a value is where it begins, and the texts after that lose the rest
    /// of it.
    fn joined(&mut self, place: &dyn Fn(usize) -> String, texts: &mut [&mut String]) -> bool {
        let values = ranges(texts, &self.detector.kinds);
        let has_values = !values.is_empty();
        let is_masked = has_values && self.detector.action == PiiAction::Mask;
        let mut values = values.into_iter().peekable();
        let (mut start, mut masked_to) = (0_usize, 0_usize);
        for (number, text) in texts.iter_mut().enumerate() {
            let end = start + text.len();
            let mut kinds: Vec<&'static str> = Vec::new();
            let (mut masked, mut from) = (String::new(), masked_to.clamp(start, end));
            while let Some((range, kind)) = values.next_if(|(range, _)| range.start < end) {
                for (known, count) in PiiKind::ALL.iter().zip(&mut self.found.counts) {
                    *count += u64::from(*known == kind);
                }
                if !kinds.contains(&kind.name()) {
                    kinds.push(kind.name());
                }
                if is_masked {
                    masked.push_str(&text[from - start..range.start - start]);
                    masked.push_str(kind.mark());
                    (from, masked_to) = (range.end.min(end), range.end);
                }
            }
            if is_masked {
                masked.push_str(&text[from - start..]);
                **text = masked;
            }
            if !kinds.is_empty() {
                self.found.add(place(number), kinds);
            }
            start = end;
        }
        has_values
    }
}

/// The places of values in texts with nothing between them, in their order and without overlaps. A value of one text that is none
/// with those around it, such as a number before more digits, is one too.
fn ranges(texts: &[&mut String], kinds: &[PiiKind]) -> Vec<(Range<usize>, PiiKind)> {
    let mut found = Vec::new();
    if let [text] = texts {
        detect::find(text, kinds, |range, kind| found.push((range, kind)));
        return found;
    }
    let whole: String = texts.iter().map(|text| text.as_str()).collect();
    detect::find(&whole, kinds, |range, kind| found.push((range, kind)));
    let mut start = 0;
    for text in texts {
        detect::find(text, kinds, |range, kind| found.push((start + range.start..start + range.end, kind)));
        start += text.len();
    }
    // Of values that overlap all is hidden.
    found.sort_by_key(|(range, _)| (range.start, Reverse(range.end)));
    let mut values: Vec<(Range<usize>, PiiKind)> = Vec::new();
    for (range, kind) in found {
        match values.last_mut() {
            Some((last, _)) if range.start < last.end => last.end = last.end.max(range.end),
            _ => values.push((range, kind)),
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn searched(action: PiiAction, route: &str, body: &Value) -> (Value, Option<String>, Vec<(&'static str, u64)>) {
        let detector = Detector::new(&Pii { action, kinds: PiiKind::ALL.to_vec() });
        let Value::Object(mut map) = body.clone() else { panic!("{body}") };
        let found = detector.search(route, &mut map);
        let message = detector.problem(&found, "").map(|problem| problem.message);
        (Value::Object(map), message, found.counts().map(|(kind, count)| (kind.name(), count)).collect())
    }

    #[test]
    fn fields_of_each_route_are_masked() {
        let text = "I am ada@example.com, +12025550143";
        let mask = "I am [EMAIL], [PHONE]";
        let arguments = json!({ "to": [text], "card": 4_111_111_111_111_111_u64, "n": 1 }).to_string();
        let marked = json!({ "to": [mask], "card": "[CARD]", "n": 1 }).to_string();
        let call = |arguments: &str| json!([{ "id": "c", "type": "function", "function": { "name": "f", "arguments": arguments } }]);
        for (route, body, expect) in [
            ("/v1/completions", json!({ "prompt": text, "user": text }), json!({ "prompt": mask, "user": text })),
            ("/v1/completions", json!({ "prompt": ["a", text] }), json!({ "prompt": ["a", mask] })),
            ("/v1/embeddings", json!({ "input": [text] }), json!({ "input": [mask] })),
            ("/v1/generate", json!({ "prompt": text }), json!({ "prompt": mask })),
            ("/v1/stream", json!({ "prompt": text }), json!({ "prompt": mask })),
            ("/v1/stream/tickets", json!({ "prompt": text }), json!({ "prompt": mask })),
            ("/v1/tokenize", json!({ "text": text }), json!({ "text": mask })),
            (
                "/v1/validate",
                json!({ "reference": text, "candidate": text }),
                json!({ "reference": mask, "candidate": mask }),
            ),
            (
                "/v1/chat/completions",
                json!({ "messages": [
                    { "role": "user", "content": text },
                    { "role": "user", "content": [{ "type": "text", "text": text }] },
                    { "role": "assistant", "content": null, "tool_calls": call(&arguments) },
                    { "role": "tool", "content": text },
                ], "tools": [{ "function": { "description": text } }] }),
                json!({ "messages": [
                    { "role": "user", "content": mask },
                    { "role": "user", "content": [{ "type": "text", "text": mask }] },
                    { "role": "assistant", "content": null, "tool_calls": call(&marked) },
                    { "role": "tool", "content": mask },
                ], "tools": [{ "function": { "description": mask } }] }),
            ),
            (
                "/invocations",
                json!({ "messages": [{ "content": text }] }),
                json!({ "messages": [{ "content": mask }] }),
            ),
            ("/v1/batches", json!({ "metadata": { "a": text } }), json!({ "metadata": { "a": text } })),
        ] {
            let (after, problem, _) = searched(PiiAction::Mask, route, &body);
            assert_eq!((after, problem), (expect, None), "{route}");
            let (after, ..) = searched(PiiAction::Count, route, &body);
            assert_eq!(after, body, "{route}: nothing changes");
        }
    }

    #[test]
    fn parts_of_a_message_are_searched_as_the_one_text_that_a_model_gets() {
        let body = |texts: &[&str]| {
            let parts: Vec<Value> = texts.iter().map(|text| json!({ "type": "text", "text": text })).collect();
            json!({ "messages": [{ "role": "user", "content": parts }] })
        };
        for (parts, expect, counted) in [
            // A value in several parts, and one after it.
            (&["to ada@exam", "ple", ".com, 192.0.2.7"][..], &["to [EMAIL]", "", ", [IP]"][..], 2),
            (&["é 4111 1111", " 1111 1111 é"], &["é [CARD]", " é"], 1),
            // Where the parts together have the form of one value, the model would read that one.
            (&["ada@example.co", "m.uk"], &["[EMAIL]", ""], 1),
            // Each is a value, and the digit after it does not hide it.
            (&["4111111111111111", "2 of them, 192.0.2.7"], &["[CARD]", "2 of them, [IP]"], 2),
            (&["ada@example.com", " and ", "bob@example.com"], &["[EMAIL]", " and ", "[EMAIL]"], 2),
            // It begins in a value of both together, and ends behind it.
            (&["write to ada@example.com", "bob.smith@private.org"], &["write to [EMAIL]", ""], 1),
            (&["1", "2"], &["1", "2"], 0),
            // Of one part with JSON, as of a text with JSON.
            (&[r#"{"card":4111111111111111}"#], &[r#"{"card":"[CARD]"}"#], 1),
        ] {
            let (after, _, counts) = searched(PiiAction::Mask, "/v1/chat/completions", &body(parts));
            assert_eq!(after, body(expect), "{parts:?}");
            assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), counted, "{parts:?}");
            let (after, ..) = searched(PiiAction::Count, "/v1/chat/completions", &body(parts));
            assert_eq!(after, body(parts), "{parts:?}");
        }
        let split = body(&["a", "to ada@exam", "ple.com"]);
        let (_, problem, _) = searched(PiiAction::Refuse, "/v1/chat/completions", &split);
        assert_eq!(problem.unwrap(), "the request has personal data: email in `messages[0].content[1].text`");
        // Of a part that is no text, and of other messages, nothing is joined.
        let apart =
            json!({ "messages": [{ "content": "ada@exam" }, { "content": [{ "text": "ple.com" }, { "text": 7 }] }] });
        assert_eq!(searched(PiiAction::Mask, "/v1/chat/completions", &apart).0, apart);
    }

    #[test]
    fn refusal_names_kinds_and_fields_and_no_value() {
        let body = json!({ "messages": [
            { "role": "user", "content": "ada@example.com or bob@example.com, 192.0.2.7" },
            { "role": "user", "content": "nothing" },
            { "role": "user", "content": "4111111111111111" },
        ] });
        let (after, problem, counts) = searched(PiiAction::Refuse, "/v1/chat/completions", &body);
        let expect = "the request has personal data: email, ip in `messages[0].content`; card in `messages[2].content`";
        assert_eq!((after, problem.as_deref()), (body, Some(expect)));
        assert_eq!(counts, [("email", 2), ("card", 1), ("ip", 1)]);
        let many = json!({ "prompt": vec!["ada@example.com"; 20] });
        let (_, problem, counts) = searched(PiiAction::Refuse, "/v1/completions", &many);
        assert_eq!((problem.unwrap().matches("email").count(), counts), (MAX_NAMED, vec![("email", 20)]));
    }

    #[test]
    fn token_ids_are_refused_where_texts_would_be_masked_or_refused() {
        for prompt in [json!([1, 2]), json!([[1], [2]])] {
            let body = json!({ "prompt": prompt });
            for action in [PiiAction::Mask, PiiAction::Refuse] {
                let (_, problem, _) = searched(action, "/v1/completions", &body);
                assert!(problem.is_some_and(|problem| problem.starts_with("`prompt` has token ids")), "{body}");
            }
            assert_eq!(searched(PiiAction::Count, "/v1/completions", &body).1, None);
        }
    }

    #[test]
    fn texts_that_are_json_stay_so() {
        let body = |content: &str| json!({ "messages": [{ "role": "tool", "content": content }] });
        for (content, expect) in [
            (r#"{"card":4111111111111111}"#, r#"{"card":"[CARD]"}"#),
            (r#"{"a":"x\nada@example.com"}"#, r#"{"a":"x\n[EMAIL]"}"#),
            (r#"{"ada@example.com":1,"bob@example.com":2}"#, r#"{"[EMAIL]":1,"[EMAIL]_":2}"#),
            (r#"{"a":"ada@example.com","a":"x"}"#, r#"{"a":"[EMAIL]","a":"x"}"#),
            (r#" [ "ada@example.com" ]"#, r#"["[EMAIL]"]"#),
            ("[ ada@example.com", "[ [EMAIL]"),
        ] {
            let (after, ..) = searched(PiiAction::Mask, "/v1/chat/completions", &body(content));
            assert_eq!(after, body(expect), "{content}");
            let (after, problem, _) = searched(PiiAction::Refuse, "/v1/chat/completions", &body(content));
            assert!(after == body(content) && problem.is_some(), "{content}");
        }
    }

    #[test]
    fn parameters_of_tools_are_searched_and_other_arrays_are_no_token_ids() {
        let tools = |text: &str| json!({ "tools": [{ "function": { "parameters": { "enum": [text], "maximum": 4_111_111_111_111_111_u64 } } }] });
        let (after, ..) = searched(PiiAction::Count, "/v1/chat/completions", &tools("ada@example.com"));
        assert_eq!(after, tools("ada@example.com"));
        let (after, ..) = searched(PiiAction::Mask, "/v1/chat/completions", &tools("ada@example.com"));
        assert_eq!(after["tools"][0]["function"]["parameters"]["enum"], json!(["[EMAIL]"]));
        let nested = json!({ "prompt": [["a"]] });
        assert_eq!(searched(PiiAction::Mask, "/v1/completions", &nested).1, None, "the route says what is wrong");
    }

    #[test]
    fn arguments_that_are_no_json_are_searched_as_a_text() {
        let body =
            |arguments: &str| json!({ "messages": [{ "tool_calls": [{ "function": { "arguments": arguments } }] }] });
        let (after, ..) = searched(PiiAction::Mask, "/v1/chat/completions", &body("{ada@example.com"));
        assert_eq!(after, body("{[EMAIL]"));
        let plain = r#"{ "a" :  1.0 }"#;
        let (after, ..) = searched(PiiAction::Mask, "/v1/chat/completions", &body(plain));
        assert_eq!(after, body(plain), "a text without personal data is unchanged");
    }
}
