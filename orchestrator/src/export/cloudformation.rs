//! AWS CloudFormation: a template for each file of the declarations, with the list of objects that a change set imports. Where some
//! objects exist and others do not, a second template has those that exist: an import creates nothing.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use textnlp_provider::operations::ExportFile;

use super::{Declared, Entry, Form, TextPart, json_text, value_of, written};

/// The attribute that stands for `Ref` instead of `Fn::GetAtt`.
const REF: &str = "Ref";
/// What becomes of an object that leaves the stack. An import requires a policy for each object
/// (<https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/resource-import.html>), and no stack deletes what an operator did not
/// name.
const POLICY: &str = "Retain";
/// The same of a new object, which ends with the stack operation that failed to create it.
const POLICY_OF_NEW: &str = "RetainExceptOnCreate";

/// The bytes of a template that a call takes, and those of one in a bucket
/// (<https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html>: 51,200 bytes and 1 MB).
pub(super) const MAX_IN_CALL: usize = 51_200;
pub(super) const MAX_IN_BUCKET: usize = 1_000_000;

/// The end of the name of a template with the objects that exist, where others do not.
pub(super) const EXISTING: &str = "existing";

struct Template<'a> {
    /// The names of the entries in the same stack: a stack refers to its own objects only.
    here: BTreeSet<&'a str>,
}

impl Form for Template<'_> {
    fn literal(&self, text: &str) -> Value {
        text.into()
    }

    fn reference(&self, to: &Entry, attribute: &str) -> Value {
        match attribute {
            _ if !self.here.contains(to.name.as_str()) => self.literal(value_of(to, attribute)),
            REF => json!({ "Ref": logical(&to.name) }),
            _ => json!({ "Fn::GetAtt": [logical(&to.name), attribute] }),
        }
    }

    fn key(&self, _to: &Entry, _attribute: &str) -> Option<String> {
        None
    }

    fn variable(&self, name: &str) -> Value {
        json!({ "Ref": parameter(name) })
    }

    fn joined(&self, parts: &[TextPart<'_>]) -> Value {
        let part = |part: &TextPart<'_>| match part {
            TextPart::Literal(text) => self.literal(text),
            TextPart::Reference(to, attribute) => self.reference(to, attribute),
        };
        json!({ "Fn::Join": ["", parts.iter().map(part).collect::<Vec<Value>>()] })
    }
}

/// The files, and the parameters without a default.
pub(super) fn files(declared: &Declared<'_>) -> (Vec<ExportFile>, BTreeSet<String>) {
    let (mut files, mut parameters) = (Vec::new(), BTreeSet::new());
    for (name, entries) in declared.by_file() {
        let (template, imports, own) = stack(declared, &entries);
        parameters.extend(own.iter().map(|name| parameter(name)));
        let mut file = |end: &str, document: &Value| {
            files.push(ExportFile { path: format!("{name}.{end}.json"), text: json_text(document) });
        };
        file("template", &template);
        let existing: Vec<&Entry> = entries.iter().copied().filter(|entry| !entry.is_planned).collect();
        if !existing.is_empty() {
            file("import", &imports);
        }
        if !existing.is_empty() && existing.len() < entries.len() {
            file(EXISTING, &stack(declared, &existing).0);
        }
    }
    (files, parameters)
}

fn stack(declared: &Declared<'_>, entries: &[&Entry]) -> (Value, Value, BTreeSet<String>) {
    let (mut resources, mut imports, mut secrets) = (Map::new(), Vec::new(), BTreeSet::new());
    let form = Template { here: entries.iter().map(|entry| entry.name.as_str()).collect() };
    for entry in entries {
        let mut referenced = BTreeSet::new();
        let body = Value::Object(entry.declaration.body.clone());
        let properties = written(declared, entry, &form, &body, (&mut referenced, &mut secrets));
        let kind = &entry.declaration.kind;
        let policy = if entry.is_planned { POLICY_OF_NEW } else { POLICY };
        let mut resource = json!({ "Type": kind, "DeletionPolicy": policy, "UpdateReplacePolicy": POLICY });
        let needs = declared
            .unreferenced(entry, &referenced)
            .into_iter()
            .filter(|other| form.here.contains(other.name.as_str()));
        let needs: Vec<String> = needs.map(|other| logical(&other.name)).collect();
        if !needs.is_empty() {
            resource["DependsOn"] = json!(needs);
        }
        resource["Properties"] = properties;
        resources.insert(logical(&entry.name), resource);
        if !entry.is_planned {
            imports.push(json!({
                "ResourceType": kind,
                "LogicalResourceId": logical(&entry.name),
                "ResourceIdentifier": entry.declaration.identifiers,
            }));
        }
    }
    let mut template = json!({
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": format!("textnlp-deploy environment {}, lineage {}", declared.environment, declared.lineage),
    });
    if !secrets.is_empty() {
        let hidden = |name: &String| (parameter(name), json!({ "Type": "String", "NoEcho": true }));
        template["Parameters"] = secrets.iter().map(hidden).collect::<Map<_, _>>().into();
    }
    template["Resources"] = resources.into();
    (template, imports.into(), secrets)
}

/// The parameter of a secret.
fn parameter(name: &str) -> String {
    format!("Secret{}", logical(name))
}

/// A name as CloudFormation takes it: letters and digits. Words begin with a capital letter, so that `a_b` and `ab` differ.
fn logical(name: &str) -> String {
    let word = |word: &str| {
        let mut chars = word.chars();
        // Between two underscores is nothing.
        let first = chars.next().map_or('0', |first| first.to_ascii_uppercase());
        std::iter::once(first).chain(chars).collect::<String>()
    };
    name.split('_').map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logical_names_have_letters_and_digits() {
        assert_eq!(logical("here_server_a_part1"), "HereServerAPart1");
        assert_ne!(logical("a__2"), logical("a_2"));
    }
}
