//! Strict YAML parsing. Every problem is recorded with its location and a suggestion, and parsing continues, so that
//! one run shows all of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_yaml::{Mapping, Value};

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line, counted from 1; 0 when unknown.
    pub line: u64,
    /// Column, counted from 1.
    pub column: u64,
    /// Path of keys, such as `textnlp.api.timeout`.
    pub path: String,
    /// The problem.
    pub message: String,
    /// The suggested fix.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "`{}` ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

/// A parsed file with the problems found so far.
pub(crate) struct Document {
    root: Value,
    places: HashMap<String, (u64, u64)>,
    problems: RefCell<Vec<Problem>>,
}

impl Document {
    /// Parses a text. A text that is no YAML at all (or repeats a key) is one problem.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let root: Value = serde_yaml::from_str(text).map_err(|error| {
            let (line, column) = error.location().map_or((0, 0), |at| (at.line() as u64, at.column() as u64));
            let hint = error
                .to_string()
                .contains("duplicate")
                .then(|| "the key is duplicated; remove one of the two".to_owned());
            vec![Problem { line, column, path: String::new(), message: error.to_string(), hint }]
        })?;
        let mut places = HashMap::new();
        // This second parser supplies only locations, never values: what it cannot parse is reported without a
        // location.
        if let Ok(tree) = serde_saphyr::from_str::<Spanned<Tree>>(text) {
            index(&tree, String::new(), &mut places);
        }
        Ok(Self { root, places, problems: RefCell::default() })
    }

    /// The file's outermost mapping.
    pub(crate) fn root(&self) -> Section<'_> {
        if !matches!(self.root, Value::Mapping(_)) {
            self.note("", "the file has no keys", Some("it begins with `textnlp:`".into()));
        }
        Section { document: self, path: String::new(), map: self.root.as_mapping(), known: RefCell::default() }
    }

    /// Everything that was found.
    pub(crate) fn problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|p| (p.line, p.column));
        problems
    }

    pub(crate) fn note(&self, path: &str, message: impl Into<String>, hint: Option<String>) {
        // A path without a location (a missing key) is reported at the nearest parent key.
        let mut at = path;
        let (line, column) = loop {
            if let Some(position) = self.places.get(at) {
                break *position;
            }
            match at.rfind(['.', '[']) {
                Some(end) => at = &at[..end],
                None => break (0, 0),
            }
        };
        self.problems.borrow_mut().push(Problem { line, column, path: path.to_owned(), message: message.into(), hint });
    }
}

/// One mapping of a document. Each getter marks its key as known; [`Section::finish`] reports unknown keys.
pub(crate) struct Section<'a> {
    document: &'a Document,
    path: String,
    map: Option<&'a Mapping>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// The path of one of its keys.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a problem with one of its keys.
    pub(crate) fn wrong(&self, key: &str, message: impl Into<String>, hint: impl Into<Option<String>>) {
        self.document.note(&self.path(key), message, hint.into());
    }

    /// Whether the file has the key.
    pub(crate) fn has(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    fn get(&self, key: &'static str) -> Option<&'a Value> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        self.map.and_then(|map| map.get(key)).filter(|value| !value.is_null())
    }

    /// A text; `${NAME}` is filled from the environment.
    pub(crate) fn text(&self, key: &'static str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) => match fill(text) {
                Ok(filled) => Some(filled),
                Err(name) => {
                    self.wrong(
                        key,
                        format!("needs the environment variable `{name}`"),
                        format!("set it: export {name}=…"),
                    );
                    None
                }
            },
            other => {
                self.mistyped(key, "a text", other);
                None
            }
        }
    }

    /// A text that is taken as written: `${NAME}` in it is not filled from the environment.
    pub(crate) fn literal_text(&self, key: &'static str) -> Option<&'a str> {
        let value = self.get(key)?;
        if value.as_str().is_none() {
            self.mistyped(key, "a text", value);
        }
        value.as_str()
    }

    /// A text that must be there.
    pub(crate) fn needed_text(&self, key: &'static str) -> Option<String> {
        if self.get(key).is_none() && self.map.is_some() {
            self.wrong(key, "is missing", None);
        }
        self.text(key)
    }

    /// A text (or a number) of a form of its own: a size, a rate, an address.
    pub(crate) fn parsed<T: std::str::FromStr<Err = String>>(&self, key: &'static str) -> Option<T> {
        let text = match self.get(key)? {
            Value::Number(number) => number.to_string(),
            Value::String(_) => self.text(key)?,
            other => {
                self.mistyped(key, "a text", other);
                return None;
            }
        };
        match text.trim().parse() {
            Ok(value) => Some(value),
            Err(message) => {
                self.wrong(key, message, None);
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(crate) fn integer(&self, key: &'static str, bounds: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let value = self.get(key)?;
        match value.as_u64() {
            Some(number) if bounds.contains(&number) => Some(number),
            Some(number) => {
                self.wrong(key, format!("is {number}; it must be from {} to {}", bounds.start(), bounds.end()), None);
                None
            }
            None if value.is_number() => {
                self.wrong(key, format!("must be a whole number from {} to {}", bounds.start(), bounds.end()), None);
                None
            }
            None => {
                self.mistyped(key, "a whole number", value);
                None
            }
        }
    }

    /// Yes or no.
    pub(crate) fn flag(&self, key: &'static str) -> Option<bool> {
        let value = self.get(key)?;
        if value.as_bool().is_none() {
            self.mistyped(key, "`true` or `false`", value);
        }
        value.as_bool()
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let value = self.get(key)?;
        let Some(list) = value.as_sequence() else {
            self.mistyped(key, "a list of texts", value);
            return None;
        };
        let mut texts = Vec::new();
        for (number, item) in list.iter().enumerate() {
            match item.as_str() {
                Some(text) => texts.push(text.to_owned()),
                None => self.mistyped(&format!("{key}[{number}]"), "a text", item),
            }
        }
        Some(texts)
    }

    /// A mapping within this one; one that is absent reads as empty.
    pub(crate) fn section(&self, key: &'static str) -> Section<'a> {
        let value = self.get(key);
        if let Some(value) = value.filter(|value| !value.is_mapping()) {
            self.mistyped(key, "keys with values", value);
        }
        Section {
            document: self.document,
            path: self.path(key),
            map: value.and_then(Value::as_mapping),
            known: RefCell::default(),
        }
    }

    /// A list of mappings.
    pub(crate) fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let Some(list) = value.as_sequence() else {
            self.mistyped(key, "a list", value);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (number, item) in list.iter().enumerate() {
            let path = format!("{}[{number}]", self.path(key));
            match item.as_mapping() {
                Some(map) => {
                    sections.push(Section { document: self.document, path, map: Some(map), known: RefCell::default() });
                }
                None => self.mistyped(&format!("{key}[{number}]"), "keys with values", item),
            }
        }
        sections
    }

    /// One value of an enumeration.
    pub(crate) fn word<T: Copy>(&self, key: &'static str, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text));
        if found.is_none() {
            let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let hint = match nearest(&text, &names) {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("one of: {}", names.join(", ")),
            };
            self.wrong(key, format!("cannot be `{text}`"), hint);
        }
        found.map(|(_, value)| *value)
    }

    /// Reports the keys that no getter read.
    pub(crate) fn finish(self) {
        let known = self.known.borrow();
        for key in self.map.into_iter().flat_map(Mapping::keys) {
            match key.as_str() {
                Some(name) if known.contains(&name) => {}
                Some(name) => {
                    let hint = match nearest(name, &known) {
                        Some(word) => format!("did you mean `{word}`?"),
                        None => format!("known keys: {}", known.join(", ")),
                    };
                    self.wrong(name, "is not a known key", hint);
                }
                None => self.document.note(&self.path, "has a key that is not text", None),
            }
        }
    }

    fn mistyped(&self, key: &str, wanted: &str, found: &Value) {
        let found = match found {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "keys with values",
            Value::Tagged(_) => "a tagged value",
        };
        self.wrong(key, format!("must be {wanted}, not {found}"), None);
    }
}

/// The closest match: at most a third of its letters differ. Nothing for an empty text.
pub(crate) fn nearest<'w>(typed: &str, words: &[&'w str]) -> Option<&'w str> {
    if typed.is_empty() {
        return None;
    }
    let typed = typed.to_ascii_lowercase();
    words
        .iter()
        .map(|word| (distance(&typed, &word.to_ascii_lowercase()), *word))
        .filter(|(far, word)| *far <= (word.len().max(typed.len()) / 3).max(1))
        .min_by_key(|(far, _)| *far)
        .map(|(_, word)| word)
}

/// Damerau-Levenshtein distance (adjacent letters swapped count once), over the first 64 letters.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, first) in rows[0].iter_mut().enumerate() {
        *first = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

/// Fills `${NAME}` from the environment; the error is the name that is not set.
fn fill(text: &str) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(end) = rest[start..].find('}').map(|end| start + end) else { break };
        let name = &rest[start + 2..end];
        filled.push_str(&rest[..start]);
        filled.push_str(&std::env::var(name).map_err(|_| name.to_owned())?);
        rest = &rest[end + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The structure of a document with the location of each node.
enum Tree {
    Leaf,
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

fn index(node: &Spanned<Tree>, path: String, places: &mut HashMap<String, (u64, u64)>) {
    places.entry(path.clone()).or_insert((node.referenced.line(), node.referenced.column()));
    match &node.value {
        Tree::Leaf => {}
        Tree::List(items) => {
            for (number, item) in items.iter().enumerate() {
                index(item, format!("{path}[{number}]"), places);
            }
        }
        Tree::Map(entries) => {
            for (key, value) in entries {
                let path = if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                places.insert(path.clone(), (key.referenced.line(), key.referenced.column()));
                index(value, path, places);
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Tree;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_none<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Tree, D::Error> {
                inner.deserialize_any(Shape)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tree::Map(entries))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}
