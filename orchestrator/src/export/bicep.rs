//! Bicep: a file for each scope of the declarations.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use textnlp_provider::operations::ExportFile;
use textnlp_provider::{SUBSCRIPTION_SCOPE, Within};

use super::{Declared, Entry, Form, TextPart, value_of, written};

/// Marks a text that is an expression: no attribute of an object has such a character.
const EXPRESSION: char = '\u{e000}';

struct Symbols<'a> {
    /// The names of the entries in the same file: a file refers to its own objects only.
    here: BTreeSet<&'a str>,
}

impl Form for Symbols<'_> {
    fn literal(&self, text: &str) -> Value {
        text.replace(EXPRESSION, "").into()
    }

    fn reference(&self, to: &Entry, attribute: &str) -> Value {
        match self.here.contains(to.name.as_str()) {
            true => format!("{EXPRESSION}{}.{attribute}", to.name).into(),
            false => self.literal(value_of(to, attribute)),
        }
    }

    fn key(&self, to: &Entry, attribute: &str) -> Option<String> {
        self.reference(to, attribute).as_str().map(str::to_owned)
    }

    fn variable(&self, name: &str) -> Value {
        format!("{EXPRESSION}{name}").into()
    }

    fn joined(&self, parts: &[TextPart<'_>]) -> Value {
        let piece = |part: &TextPart<'_>| match part {
            TextPart::Reference(to, attribute) if self.here.contains(to.name.as_str()) => {
                format!("${{{}.{attribute}}}", to.name)
            }
            TextPart::Reference(to, attribute) => quoted(value_of(to, attribute)),
            TextPart::Literal(text) => quoted(&text.replace(EXPRESSION, "")),
        };
        format!("{EXPRESSION}'{}'", parts.iter().map(piece).collect::<String>()).into()
    }
}

/// The files, and the parameters without a default.
pub(super) fn files(declared: &Declared<'_>) -> (Vec<ExportFile>, BTreeSet<String>) {
    let (mut files, mut parameters) = (Vec::new(), BTreeSet::new());
    for (name, entries) in declared.by_file() {
        let (text, own) = file(declared, name, &entries);
        parameters.extend(own);
        files.push(ExportFile { path: format!("{name}.bicep"), text });
    }
    (files, parameters)
}

fn file(declared: &Declared<'_>, name: &str, entries: &[&Entry]) -> (String, BTreeSet<String>) {
    let symbols = Symbols { here: entries.iter().map(|entry| entry.name.as_str()).collect() };
    let by_id: BTreeMap<&str, &Entry> = entries.iter().map(|entry| (entry.declaration.id.as_str(), *entry)).collect();
    let (mut body, mut secrets) = (String::new(), BTreeSet::new());
    for entry in entries {
        let mut referenced = BTreeSet::new();
        let document = Value::Object(entry.declaration.body.clone());
        let mut document = written(declared, entry, &symbols, &document, (&mut referenced, &mut secrets));
        // Its own name is none of another object's.
        document["name"] = entry.declaration.body.get("name").cloned().unwrap_or_default();
        let expression = |to: &Entry| json!(format!("{EXPRESSION}{}", to.name));
        match &entry.declaration.within {
            Some(Within::Parent { id, name }) => match by_id.get(id.as_str()) {
                Some(parent) => {
                    referenced.insert(parent.name.clone());
                    document["parent"] = expression(parent);
                }
                None => {
                    let own = document["name"].as_str().unwrap_or_default();
                    document["name"] = json!(format!("{name}/{own}"));
                }
            },
            Some(Within::Scope(id)) => {
                if let Some(scope) = by_id.get(id.as_str()) {
                    referenced.insert(scope.name.clone());
                    document["scope"] = expression(scope);
                }
            }
            None => {}
        }
        let needs = declared.unreferenced(entry, &referenced).into_iter();
        let needs: Vec<Value> = needs.filter(|to| symbols.here.contains(to.name.as_str())).map(expression).collect();
        if !needs.is_empty() {
            document["dependsOn"] = needs.into();
        }
        let kind = text(&entry.declaration.kind);
        body += &format!("\nresource {} {kind} = {}\n", entry.name, value(&document, 0));
    }
    let about = format!(
        "// environment {}, lineage {}: by textnlp-deploy; README.md says how to use it\n",
        declared.environment, declared.lineage
    );
    let scope = if name == SUBSCRIPTION_SCOPE { "subscription" } else { "resourceGroup" };
    let mut head = format!("{about}targetScope = '{scope}'\n");
    for secret in &secrets {
        head += &format!("\n@secure()\nparam {secret} string\n");
    }
    (head + &body, secrets)
}

/// A value as Bicep writes it: <https://learn.microsoft.com/azure/azure-resource-manager/bicep/data-types>.
fn value(one: &Value, depth: usize) -> String {
    let inner = "  ".repeat(depth + 1);
    let end = "  ".repeat(depth);
    match one {
        Value::String(said) => text(said),
        Value::Array(items) if items.is_empty() => "[]".to_owned(),
        Value::Array(items) => {
            let lines = items.iter().map(|item| format!("{inner}{}\n", value(item, depth + 1)));
            format!("[\n{}{end}]", lines.collect::<String>())
        }
        Value::Object(members) if members.is_empty() => "{}".to_owned(),
        Value::Object(members) => {
            let lines =
                members.iter().map(|(name, member)| format!("{inner}{}: {}\n", key(name), value(member, depth + 1)));
            format!("{{\n{}{end}}}", lines.collect::<String>())
        }
        // Bicep has whole numbers only.
        Value::Number(number) if number.as_i64().is_none() => format!("json('{number}')"),
        plain => plain.to_string(),
    }
}

fn key(name: &str) -> String {
    if let Some(expression) = name.strip_prefix(EXPRESSION) {
        return format!("'${{{expression}}}'");
    }
    let is_plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_plain { name.to_owned() } else { text(name) }
}

/// A text in quotes, or the expression that it marks.
fn text(said: &str) -> String {
    if let Some(expression) = said.strip_prefix(EXPRESSION) {
        return expression.to_owned();
    }
    format!("'{}'", quoted(said))
}

/// A text as it is between quotes.
fn quoted(said: &str) -> String {
    let mut quoted = String::new();
    for c in said.chars() {
        match c {
            '\\' => quoted += "\\\\",
            '\'' => quoted += "\\'",
            '\n' => quoted += "\\n",
            '\r' => quoted += "\\r",
            '\t' => quoted += "\\t",
            c if c.is_control() => quoted += &format!("\\u{{{:x}}}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted.replace("${", "\\${")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_bicep_reads_them() {
        assert_eq!(text("it's ${x}\n\\"), "'it\\'s \\${x}\\n\\\\'");
        assert_eq!(
            value(&json!({ "a": -1.5, "b-c": [true, null], "d": 3 }), 0),
            "{\n  a: json('-1.5')\n  'b-c': [\n    true\n    null\n  ]\n  d: 3\n}"
        );
        assert_eq!(value(&json!(format!("{EXPRESSION}net.id")), 0), "net.id");
        assert_eq!(key(&format!("{EXPRESSION}net.id")), "'${net.id}'");
    }
}
