//! Displays an environment: every value with its origin, as YAML, and the difference between two environments.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::check::{Schema, join};
use super::load::Loaded;
use super::problem::Origin;
use super::tree::segments;

/// A value with its origin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact {
    /// The path: `sites[0].region`.
    pub path: String,
    /// The value. It may be a reference to a secret, never a secret.
    pub value: Value,
    /// Its origin.
    pub origin: Origin,
    /// The description of the field.
    pub about: String,
}

/// One value in which two environments differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Its path.
    pub path: String,
    /// The value in the first environment.
    pub left: Option<Value>,
    /// The value in the second environment.
    pub right: Option<Value>,
}

impl Loaded {
    /// Every value with its origin, in the order of the model.
    pub fn facts(&self) -> Vec<Fact> {
        let schema = Schema::new();
        let mut found = Vec::new();
        self.collect(&self.resolved(), "", &schema, &mut found);
        found
    }

    /// The values at a path and below it.
    pub fn explain(&self, path: &str) -> Vec<Fact> {
        let wanted = segments(path);
        self.facts().into_iter().filter(|fact| segments(&fact.path).starts_with(&wanted)).collect()
    }

    /// The environment as YAML that can be loaded again. With `explain`, each line shows the origin of its value.
    pub fn to_yaml(&self, explain: bool) -> String {
        let mut lines = Vec::new();
        self.lines(&self.resolved(), "", 0, "", &mut lines);
        let width = lines.iter().map(|(text, _)| text.chars().count()).filter(|n| *n <= 60).max().unwrap_or(0);
        let mut out = String::new();
        for (text, origin) in lines {
            match origin.filter(|_| explain) {
                Some(origin) => writeln!(out, "{text:width$}  # {origin}"),
                None => writeln!(out, "{text}"),
            }
            .expect("writing to a text succeeds");
        }
        out
    }

    fn resolved(&self) -> Value {
        let mut value = serde_json::to_value(&self.environment).expect("environments are plain data with text keys");
        // The output includes the extended values, and must load on its own.
        if let Value::Object(fields) = &mut value {
            fields.shift_remove("extends");
        }
        value
    }

    fn origin(&self, path: &str) -> Origin {
        self.tree.find(path).map_or(Origin::Default { phase: None }, |node| node.origin.clone())
    }

    fn collect(&self, value: &Value, path: &str, schema: &Schema, found: &mut Vec<Fact>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, field) in fields {
                    self.collect(field, &join(path, name), schema, found);
                }
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (i, item) in items.iter().enumerate() {
                    self.collect(item, &format!("{path}[{i}]"), schema, found);
                }
            }
            Value::Null => {}
            value => {
                let about = schema.about(path);
                found.push(Fact { path: path.to_owned(), value: value.clone(), origin: self.origin(path), about });
            }
        }
    }

    fn lines(&self, value: &Value, path: &str, indent: usize, first: &str, lines: &mut Vec<(String, Option<Origin>)>) {
        let Value::Object(fields) = value else { return };
        let mut lead = first.to_owned();
        for (name, field) in fields {
            let below = join(path, name);
            let start = if lead.is_empty() { " ".repeat(indent) } else { std::mem::take(&mut lead) };
            let key = flow(&Value::String(name.clone()));
            match field {
                Value::Null => {
                    // The entry is omitted, so its list marker moves to the next line.
                    lead = if start.trim().is_empty() { String::new() } else { start };
                }
                Value::Object(inner) if inner.values().any(|v| !v.is_null()) => {
                    lines.push((format!("{start}{key}:"), None));
                    self.lines(field, &below, indent + 2, "", lines);
                }
                Value::Object(inner) if !inner.is_empty() => {
                    lead = if start.trim().is_empty() { String::new() } else { start };
                }
                Value::Array(items) if items.iter().any(Value::is_object) => {
                    lines.push((format!("{start}{key}:"), None));
                    for (i, item) in items.iter().enumerate() {
                        self.lines(
                            item,
                            &format!("{below}[{i}]"),
                            indent + 4,
                            &format!("{}- ", " ".repeat(indent + 2)),
                            lines,
                        );
                    }
                }
                scalar => lines.push((format!("{start}{key}: {}", flow(scalar)), Some(self.origin(&below)))),
            }
        }
    }
}

impl Schema {
    /// The first sentence of a field's description.
    pub(crate) fn about(&self, path: &str) -> String {
        self.at(path)
            .and_then(|s| s["description"].as_str())
            .unwrap_or_default()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    }
}

/// A value on one line.
pub(crate) fn flow(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|(k, v)| format!("{}: {}", flow(&Value::String(k.clone())), flow(v))).collect();
            if fields.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", fields.join(", ")) }
        }
        Value::String(text) => {
            let plain = !text.is_empty()
                && text.len() < 200
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._/-:+@".contains(c))
                && !text.starts_with(['-', ':', '@', '.'])
                && !text.ends_with(':')
                && matches!(super::tree::plain_scalar(text), Value::String(_));
            // JSON strings are valid YAML.
            if plain && !matches!(text.to_ascii_lowercase().as_str(), "on" | "off" | "yes" | "no" | "y" | "n") {
                text.clone()
            } else {
                value.to_string()
            }
        }
        other => other.to_string(),
    }
}

/// The values in which two environments differ.
pub fn diff(left: &Loaded, right: &Loaded) -> Vec<Change> {
    let (left, right) = (left.facts(), right.facts());
    let mut changes = Vec::new();
    for fact in &left {
        let other = right.iter().find(|f| f.path == fact.path).map(|f| f.value.clone());
        if other.as_ref() != Some(&fact.value) {
            changes.push(Change { path: fact.path.clone(), left: Some(fact.value.clone()), right: other });
        }
    }
    for fact in right.into_iter().filter(|f| !left.iter().any(|l| l.path == f.path)) {
        changes.push(Change { path: fact.path, left: None, right: Some(fact.value) });
    }
    changes
}
