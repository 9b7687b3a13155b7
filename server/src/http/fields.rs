//! Strict parsing of a request's JSON: each field is used, accepted because it is neutral, or rejected by name. All
//! errors of a request are found at once; the message names the first, the hint the others.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use axum::extract::Query;
use axum::http::Uri;
use serde_json::{Map, Value};

use super::memory::HeldMemory;
use crate::config::nearest;
use crate::error::ApiError;

/// The fields of one object.
pub(crate) struct Fields {
    map: Map<String, Value>,
    known: RefCell<Vec<&'static str>>,
    wrong: RefCell<Vec<Mistake>>,
    /// The memory of a large body, until its fields are dropped.
    held: Option<HeldMemory>,
}

/// A field, what is wrong with it, and a hint.
pub(crate) type Mistake = (String, String, Option<String>);

/// Mistakes named besides the first.
const MORE_MISTAKES: usize = 8;

impl Fields {
    pub(crate) fn new(value: Value) -> Result<Self, ApiError> {
        Self::of_body(value, None)
    }

    pub(crate) fn of_body(value: Value, held: Option<HeldMemory>) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, known: RefCell::default(), wrong: RefCell::default(), held }),
            other => Err(ApiError::invalid(format!("the body must be a JSON object, not {}", kind(&other)))),
        }
    }

    /// The pairs of a query. `prompt`, `model` and `stop` are always strings; other values may be numbers or booleans.
    /// A repeated field is a list.
    pub(crate) fn of_query(uri: &Uri) -> Result<Self, ApiError> {
        const TEXTS: [&str; 4] = ["prompt", "model", "stop", "ticket"];
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| {
            ApiError::invalid("the query cannot be read").hint("write it as name=value&name=value, percent-encoded")
        })?;
        let mut map = Map::new();
        for (name, text) in pairs.0 {
            let value = match serde_json::from_str::<Value>(&text) {
                Ok(value) if !TEXTS.contains(&name.as_str()) && (value.is_number() || value.is_boolean()) => value,
                _ => Value::String(text),
            };
            match map.get_mut(&name) {
                Some(Value::Array(several)) => several.push(value),
                Some(one) => *one = Value::Array(vec![one.take(), value]),
                None => {
                    map.insert(name, value);
                }
            }
        }
        Self::new(Value::Object(map))
    }

    /// Drops the fields. What was taken of them, such as prompts that wait for their turn, still needs the memory.
    pub(crate) fn into_memory(self) -> Option<HeldMemory> {
        self.held
    }

    /// The fields themselves, to change them before they are read.
    pub(crate) fn map_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.map
    }

    /// Whether it has none.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Them all, as JSON.
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(&self.map).unwrap_or_default()
    }

    /// Notes a mistake.
    pub(crate) fn wrong(&self, name: &str, message: impl Into<String>, hint: Option<&str>) {
        let mut wrong = self.wrong.borrow_mut();
        // A body may have any number of them, and no more are reported.
        if wrong.len() <= MORE_MISTAKES {
            wrong.push((name.to_owned(), message.into(), hint.map(str::to_owned)));
        }
    }

    /// A field's value; `null` counts as absent.
    pub(crate) fn get(&self, name: &'static str) -> Option<&Value> {
        self.known.borrow_mut().push(name);
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &'static str) -> Option<&str> {
        let value = self.get(name)?;
        if !value.is_string() {
            self.mistyped(name, "a text", value);
        }
        value.as_str()
    }

    pub(crate) fn flag(&self, name: &'static str) -> Option<bool> {
        let value = self.get(name)?;
        if !value.is_boolean() {
            self.mistyped(name, "true or false", value);
        }
        value.as_bool()
    }

    pub(crate) fn number(&self, name: &'static str, bounds: RangeInclusive<f64>) -> Option<f64> {
        let value = self.get(name)?;
        match value.as_f64() {
            Some(number) if bounds.contains(&number) => Some(number),
            Some(number) => {
                self.wrong(name, format!("is {number}; it must be from {} to {}", bounds.start(), bounds.end()), None);
                None
            }
            None => {
                self.mistyped(name, "a number", value);
                None
            }
        }
    }

    pub(crate) fn integer(&self, name: &'static str, bounds: RangeInclusive<i64>) -> Option<i64> {
        let value = self.get(name)?;
        // 5.0 is a whole number to many clients.
        let whole =
            value.as_i64().or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64));
        match whole {
            Some(number) if bounds.contains(&number) => Some(number),
            Some(number) => {
                self.wrong(name, format!("is {number}; it must be from {} to {}", bounds.start(), bounds.end()), None);
                None
            }
            None if value.is_number() => {
                self.wrong(
                    name,
                    format!("is {value}; it must be a whole number from {} to {}", bounds.start(), bounds.end()),
                    None,
                );
                None
            }
            None => {
                self.mistyped(name, "a whole number", value);
                None
            }
        }
    }

    /// A text, or a list of at most `most` texts.
    pub(crate) fn texts(&self, name: &'static str, most: usize) -> Option<Vec<String>> {
        match self.get(name)? {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) if list.len() > most => {
                self.wrong(name, format!("has {} entries; it may have {most}", list.len()), None);
                None
            }
            Value::Array(list) => {
                let texts: Vec<String> = list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect();
                if texts.len() < list.len() {
                    self.wrong(name, "must contain strings only", None);
                    return None;
                }
                Some(texts)
            }
            other => {
                self.mistyped(name, "a text or a list of texts", other);
                None
            }
        }
    }

    /// Fields that do not affect the answer: any value is accepted.
    pub(crate) fn neutral(&self, names: &[&'static str]) {
        self.known.borrow_mut().extend(names);
    }

    /// Fields that are accepted only with values that match the actual behaviour.
    pub(crate) fn only(&self, name: &'static str, values: &[Value], why: &str) {
        if let Some(value) = self.get(name)
            && !values.contains(value)
        {
            self.wrong(name, "is not supported here with this value", Some(why));
        }
    }

    /// Known fields that are not supported.
    pub(crate) fn refuse(&self, names: &[&'static str], why: &str) {
        for name in names {
            if self.get(name).is_some() {
                self.wrong(name, "is not supported here", Some(why));
            }
        }
    }

    /// A field that must be there.
    pub(crate) fn needed<T>(&self, name: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.wrong.borrow().iter().any(|(wrong, ..)| wrong == name) {
            self.wrong(name, "is missing", None);
        }
        value
    }

    /// Rejects the request if anything was wrong, including unknown names.
    pub(crate) fn finish(&self) -> Result<(), ApiError> {
        let known = self.known.borrow();
        // A body may have any number of them. Clients send fields that they do not use as null.
        let unknown = self.map.iter().filter(|(name, value)| !value.is_null() && !known.contains(&name.as_str()));
        for (name, _) in unknown.take(MORE_MISTAKES + 1) {
            let shown: String = name.chars().take(64).collect();
            let hint = nearest(&shown, &known).map(|word| format!("did you mean `{word}`?"));
            self.wrong(&shown, "is not a known field", hint.as_deref());
        }
        mistakes(&self.wrong.take()).map_or(Ok(()), Err)
    }

    fn mistyped(&self, name: &str, wanted: &str, found: &Value) {
        self.wrong(name, format!("must be {wanted}, not {}", kind(found)), None);
    }
}

/// Whether a field of an object counts as absent: it is null or empty, as clients send back what an answer had not.
pub(crate) fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// One error for all mistakes, if there is any.
pub(crate) fn mistakes(wrong: &[Mistake]) -> Option<ApiError> {
    let (name, message, hint) = wrong.first()?;
    let mut error = ApiError::invalid(format!("`{name}` {message}")).param(name.clone());
    let also: Vec<String> =
        wrong.iter().skip(1).take(MORE_MISTAKES).map(|(name, message, _)| format!("`{name}` {message}")).collect();
    let mut hints: Vec<String> = hint.iter().cloned().collect();
    if !also.is_empty() {
        hints.push(format!("also: {}", also.join("; ")));
    }
    if !hints.is_empty() {
        error = error.hint(hints.join(" · "));
    }
    Some(error)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
