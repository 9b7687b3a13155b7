//! A YAML document as a tree whose values have origins.
//!
//! Structure and positions come from the event parser. `serde_yaml` decides the type of each plain scalar, so both
//! readers agree. A test compares the two.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, options};

use super::problem::{Origin, Problem};
use super::units::cut;

/// The largest environment file, in bytes.
pub(crate) const MOST_BYTES: usize = 1_000_000;
/// The most values of one file after its aliases are expanded; limits alias bombs.
const MOST_VALUES: usize = 20_000;
/// The deepest nesting; the model has six levels.
const MOST_DEPTH: usize = 40;

/// A value with its origin.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) origin: Origin,
    pub(crate) kind: NodeKind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NodeKind {
    /// A null, boolean, number or string. `written` is the source text if it was not quoted.
    Scalar {
        value: Value,
        written: Option<Box<str>>,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Origin,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn scalar(value: Value, origin: Origin) -> Self {
        Self { origin, kind: NodeKind::Scalar { value, written: None } }
    }

    pub(crate) fn map(origin: Origin) -> Self {
        Self { origin, kind: NodeKind::Map(Vec::new()) }
    }

    /// A tree whose values all have one origin.
    pub(crate) fn of_value(value: &Value, origin: &Origin) -> Self {
        let kind = match value {
            Value::Array(items) => NodeKind::List(items.iter().map(|item| Self::of_value(item, origin)).collect()),
            Value::Object(fields) => NodeKind::Map(
                fields
                    .iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        at: origin.clone(),
                        node: Self::of_value(value, origin),
                    })
                    .collect(),
            ),
            scalar => NodeKind::Scalar { value: scalar.clone(), written: None },
        };
        Self { origin: origin.clone(), kind }
    }

    pub(crate) fn to_value(&self) -> Value {
        match &self.kind {
            NodeKind::Scalar { value, .. } => value.clone(),
            NodeKind::List(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            NodeKind::Map(entries) => {
                Value::Object(entries.iter().map(|e| (e.key.clone(), e.node.to_value())).collect::<Map<_, _>>())
            }
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, NodeKind::Scalar { value: Value::Null, .. })
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.kind {
            NodeKind::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn items(&self) -> &[Node] {
        match &self.kind {
            NodeKind::List(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.node)
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            NodeKind::Scalar { value: Value::String(text), .. } => Some(text),
            _ => None,
        }
    }

    /// Removes a key from a mapping.
    pub(crate) fn take(&mut self, key: &str) -> Option<Entry> {
        let NodeKind::Map(entries) = &mut self.kind else { return None };
        let at = entries.iter().position(|e| e.key == key)?;
        Some(entries.remove(at))
    }

    /// Adds a key to a mapping unless it exists; other values are unchanged.
    pub(crate) fn put(&mut self, entry: Entry) {
        if let NodeKind::Map(entries) = &mut self.kind
            && !entries.iter().any(|e| e.key == entry.key)
        {
            entries.push(entry);
        }
    }

    /// The value at `a.b[0].c`, or its nearest ancestor that exists.
    pub(crate) fn nearest(&self, path: &str) -> &Node {
        let mut node = self;
        for segment in segments(path) {
            let next = match &node.kind {
                NodeKind::Map(_) => node.get(&segment),
                NodeKind::List(items) => segment.parse::<usize>().ok().and_then(|i| items.get(i)),
                NodeKind::Scalar { .. } => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    /// The value at exactly this path.
    pub(crate) fn find(&self, path: &str) -> Option<&Node> {
        let mut node = self;
        for segment in segments(path) {
            node = match &node.kind {
                NodeKind::Map(_) => node.get(&segment)?,
                NodeKind::List(items) => items.get(segment.parse::<usize>().ok()?)?,
                NodeKind::Scalar { .. } => return None,
            };
        }
        Some(node)
    }
}

/// Splits a path; `sites[0].region` and `sites.0.region` are equal.
pub(crate) fn segments(path: &str) -> Vec<String> {
    path.replace('[', ".").replace(']', "").split('.').filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// Reads a file. Returns what could be parsed in addition to the problems, so that later checks can add theirs.
pub(crate) fn read(bytes: &[u8], file: &Arc<str>, problems: &mut Vec<Problem>) -> Option<Node> {
    let whole = || Origin::whole_file(file);
    if bytes.len() > MOST_BYTES {
        let cause = "the file is too large".to_owned();
        problems.push(Problem::error(
            whole(),
            "",
            cause,
            format!("an environment file has at most {MOST_BYTES} bytes"),
        ));
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = before.iter().filter(|b| **b == b'\n').count() + 1;
            let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
            let origin = Origin::File { file: file.clone(), line, column };
            problems.push(Problem::error(origin, "", "the file is not valid UTF-8 here", "save the file as UTF-8"));
            return None;
        }
    };
    // Some editors write a byte order mark.
    read_text(text.strip_prefix('\u{feff}').unwrap_or(text), file, problems)
}

fn read_text(text: &str, file: &Arc<str>, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut builder = Builder {
        place: Box::new(|span: &Span| Origin::File {
            file: file.clone(),
            line: span.start.line(),
            column: span.start.col() + 1,
        }),
        problems,
        anchors: HashMap::new(),
        values: 0,
    };
    builder.document(text)
}

/// Reads the value of `--set path=value` or of a variable: any YAML, usually a scalar.
pub(crate) fn read_inline(text: &str, origin: &Origin, problems: &mut Vec<Problem>) -> Option<Node> {
    if text.len() > MOST_BYTES {
        problems.push(Problem::error(origin.clone(), "", "the value is too long", "put it into the environment file"));
        return None;
    }
    let mut builder =
        Builder { place: Box::new(|_: &Span| origin.clone()), problems, anchors: HashMap::new(), values: 0 };
    builder.document(text)
}

/// The typed value of a plain scalar.
pub(crate) fn plain_scalar(text: &str) -> Value {
    // Folded lines are always strings, and overlong ones are not worth parsing.
    if text.len() > 300 || text.contains('\n') {
        return Value::String(text.to_owned());
    }
    match serde_yaml::from_str::<serde_yaml::Value>(text) {
        Ok(serde_yaml::Value::Null) => Value::Null,
        Ok(serde_yaml::Value::Bool(yes)) => Value::Bool(yes),
        Ok(serde_yaml::Value::Number(number)) => {
            let whole = number.as_u64().map(Value::from).or_else(|| number.as_i64().map(Value::from));
            // JSON has no NaN or infinity: they stay strings and fail as the wrong type.
            let value = whole.or_else(|| number.as_f64().and_then(serde_json::Number::from_f64).map(Value::Number));
            value.unwrap_or_else(|| Value::String(text.to_owned()))
        }
        _ => Value::String(text.to_owned()),
    }
}

type Events<'a> = Parser<'a, serde_saphyr::granit_parser::StrInput<'a>>;

struct Builder<'p> {
    place: Box<dyn Fn(&Span) -> Origin + 'p>,
    problems: &'p mut Vec<Problem>,
    anchors: HashMap<usize, Node>,
    values: usize,
}

/// Parsing stops here; the problem was reported.
struct Aborted;

impl Builder<'_> {
    fn document(&mut self, text: &str) -> Option<Node> {
        let options: Options = options! { emit_comments: false };
        let mut events = Parser::new_from_str_with_options(text, options);
        let mut root = None;
        loop {
            let Ok(Some((event, span))) = self.next(&mut events) else { return root };
            match event {
                Event::StreamEnd => return root,
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                first if root.is_none() => match self.value(first, span, &mut events, 0) {
                    Ok(node) => root = Some(node),
                    Err(Aborted) => return None,
                },
                _ => {
                    let fix = "keep one environment per file and remove the `---` between them";
                    self.error(&span, "a second document begins here", fix);
                    return root;
                }
            }
        }
    }

    fn next<'a>(&mut self, events: &mut Events<'a>) -> Result<Option<(Event<'a>, Span)>, Aborted> {
        match events.next_event() {
            None => Ok(None),
            Some(Ok(next)) => Ok(Some(next)),
            Some(Err(error)) => {
                self.syntax(&error);
                Err(Aborted)
            }
        }
    }

    fn syntax(&mut self, error: &ScanError) {
        let marker = *error.marker();
        let detail = cut(&error.info());
        let fix = if detail.contains("tab") { "indent with spaces, YAML allows no tabs" } else { "fix the YAML here" };
        self.error(&Span::empty(marker), &format!("this is not YAML: {detail}"), fix);
    }

    fn error(&mut self, span: &Span, cause: &str, fix: &str) {
        let origin = (self.place)(span);
        self.problems.push(Problem::error(origin, "", cause, fix));
    }

    fn value(&mut self, event: Event<'_>, span: Span, events: &mut Events<'_>, depth: usize) -> Result<Node, Aborted> {
        if depth > MOST_DEPTH {
            self.error(&span, "the values are nested too deeply", &format!("at most {MOST_DEPTH} levels are read"));
            return Err(Aborted);
        }
        self.count(1, &span)?;
        let origin = (self.place)(&span);
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(_, anchor, tag)
            | Event::MappingStart(_, anchor, tag) => (*anchor, tag.is_some()),
            _ => (0, false),
        };
        if tag {
            self.error(&span, "this value has a YAML tag", "remove the tag; put quotes around text");
        }
        let kind = match event {
            Event::Scalar(text, style, _, _) => {
                let plain = style == ScalarStyle::Plain;
                let value = if plain { plain_scalar(&text) } else { Value::String(text.clone().into_owned()) };
                NodeKind::Scalar { value, written: plain.then(|| text.into()) }
            }
            Event::SequenceStart(..) => NodeKind::List(self.list(events, depth)?),
            Event::MappingStart(..) => NodeKind::Map(self.mapping(events, depth)?),
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(node) => {
                    self.count(size(&node), &span)?;
                    return Ok(node);
                }
                None => {
                    self.error(&span, "this alias refers to itself", "write the value itself");
                    return Err(Aborted);
                }
            },
            _ => {
                self.error(&span, "a value is missing here", "fix the YAML here");
                return Err(Aborted);
            }
        };
        let node = Node { origin, kind };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn count(&mut self, more: usize, span: &Span) -> Result<(), Aborted> {
        self.values += more;
        if self.values > MOST_VALUES {
            self.error(
                span,
                &format!("the file has more than {MOST_VALUES} values (what its aliases stand for counts)"),
                "write fewer",
            );
            return Err(Aborted);
        }
        Ok(())
    }

    fn list(&mut self, events: &mut Events<'_>, depth: usize) -> Result<Vec<Node>, Aborted> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next(events)? {
            if event == Event::SequenceEnd {
                break;
            }
            items.push(self.value(event, span, events, depth + 1)?);
        }
        Ok(items)
    }

    fn mapping(&mut self, events: &mut Events<'_>, depth: usize) -> Result<Vec<Entry>, Aborted> {
        let mut entries: Vec<Entry> = Vec::new();
        // The origin of each key seen so far; a search through the entries would be quadratic for a hostile file.
        let mut seen: HashMap<String, Origin> = HashMap::new();
        while let Some((event, span)) = self.next(events)? {
            let at = (self.place)(&span);
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => Some(text.into_owned()),
                other => {
                    self.value(other, span, events, depth + 1)?;
                    self.error(&span, "a key is not a text", "write a plain word before the colon");
                    None
                }
            };
            let Some((event, value_span)) = self.next(events)? else { break };
            let node = self.value(event, value_span, events, depth + 1)?;
            match key {
                None => {}
                Some(key) if key == "<<" => {
                    self.error(&span, "merge keys (`<<`) are not supported", "use `extends`, or repeat the values");
                }
                Some(key) => match seen.get(&key) {
                    Some(first) => {
                        let cause = format!("the key `{}` is duplicated, first at {first}", cut(&key));
                        self.error(&span, &cause, "keep one of them");
                    }
                    None => {
                        seen.insert(key.clone(), at.clone());
                        entries.push(Entry { key, at, node });
                    }
                },
            }
        }
        Ok(entries)
    }
}

fn size(node: &Node) -> usize {
    1 + node.items().iter().map(size).sum::<usize>() + node.entries().iter().map(|e| size(&e.node)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> (Option<Node>, Vec<String>) {
        let mut problems = Vec::new();
        let node = read(text.as_bytes(), &Arc::from("f.yaml"), &mut problems);
        (node, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn yaml_values_agree_with_serde_yaml() {
        for text in [
            "a: 1\nb: [x, 2.5, true, ~, 'q', \"d\\n\"]\nc: {d: 0x1F, e: 0o17, f: 1e3}\n",
            "a: yes\nb: 1_000\nc: 007\nd: -5\ne: .5\nf: null\n",
            "a: |\n  block\n  text\nb: >\n  folded\n  text\nc: plain\n  continued\n",
            "x: &a {k: v}\ny: *a\nz: []\n",
            "- 1\n- {a: b}\n",
            "a: 18446744073709551615\nb: -9223372036854775808\n",
            "a: 2024-01-01\nb: 12:30\nc: 3.10\n",
        ] {
            let (node, problems) = tree(text);
            assert!(problems.is_empty(), "{problems:?}");
            let theirs: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
            assert_eq!(node.unwrap().to_value(), serde_json::to_value(theirs).unwrap(), "{text}");
        }
    }

    #[test]
    fn duplicate_keys_tags_and_merge_keys_are_reported_at_once() {
        let (_, problems) = tree("a: 1\nb: {c: 1, c: 2}\na: 2\nd: !!str 5\n<<: {x: 1}\n");
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert!(
            problems[0].starts_with("f.yaml:2:11: error: the key `c` is duplicated, first at f.yaml:2:5"),
            "{}",
            problems[0]
        );
    }

    #[test]
    fn hostile_yaml_files_are_refused_with_one_error() {
        let bomb: String = std::iter::once("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned())
            .chain((1..12).map(|i| {
                let a = format!("*a{}", i - 1);
                format!("a{i}: &a{i} [{}]\n", [a.as_str(); 10].join(", "))
            }))
            .collect();
        let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
        let large = "#".repeat(MOST_BYTES + 1);
        for (text, word) in [
            (bomb.as_str(), "aliases"),
            (deep.as_str(), "deep"),
            (large.as_str(), "bytes"),
            ("a: [1, 2", "not YAML"),
            ("a:\n\tb: 1\n", "not YAML"),
            ("a: *b\n", "not YAML"),
            ("a: 1\n---\nb: 2\n", "second document"),
            ("a: &a [*a]\n", "alias"),
        ] {
            let (_, problems) = tree(text);
            assert_eq!(problems.len(), 1, "{word}: {problems:?}");
            assert!(problems[0].contains(word), "{word}: {problems:?}");
        }
        let mut problems = Vec::new();
        assert!(read(b"a: 1\nbb: \xff", &Arc::from("f"), &mut problems).is_none());
        assert!(problems[0].to_string().starts_with("f:2:5: "), "{problems:?}");
        assert!(tree("\u{feff}a: 1\n").1.is_empty());
    }
}
