//! Validates a tree against the JSON Schema of an environment and reports every violation.
//!
//! Editors use the same schema, so they underline exactly what is rejected here. Only the subset of JSON Schema that
//! the model's types generate is supported.

use serde_json::Value;

use super::model;
use super::problem::{Origin, Problem, Severity, nearest};
use super::tree::{Entry, Node, NodeKind};
use super::units::{self, cut};

/// The schema, with its definitions indexed.
pub(crate) struct Schema {
    root: Value,
}

/// Settings that earlier versions had, with the JSON of their defaults, and what replaced them; nothing had an effect where nothing is
/// named. Environments in bundles have every default written out: at these, a setting is left out with a note.
const REMOVED: [(&str, &str, Option<&str>); 9] = [
    ("cache.db", "0", Some("`url`")),
    ("cache.host", "null", Some("`url`")),
    ("cache.max_size", "\"64MiB\"", Some("`size`")),
    ("cache.port", "null", Some("`url`")),
    ("cluster.restricted", "true", None),
    ("monitoring.existing", "null", None),
    ("monitoring.retention", "\"15d\"", None),
    ("network.open_ports", "[]", None),
    ("traffic.health_path", "\"/health\"", None),
];

/// What is validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// One layer: keys may be missing, nulls remove values, and `${…}` is not expanded yet.
    Layer,
    /// All layers merged.
    Whole,
}

impl Schema {
    pub(crate) fn new() -> Self {
        Self { root: model::schema() }
    }

    /// Follows `$ref` and the wrapper that `Option` generates.
    fn resolve<'s>(&'s self, mut schema: &'s Value) -> &'s Value {
        // Reference chains of the schema have two or three links; the limit guards against a cycle.
        for _ in 0..8 {
            if let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
                schema = &self.root["$defs"][name];
            } else if let Some(inner) = schema["anyOf"].as_array().and_then(|a| a.iter().find(|s| s["type"] != "null"))
            {
                schema = inner;
            } else {
                break;
            }
        }
        schema
    }

    /// The schema of the field at a path; `None` for an unknown field.
    pub(crate) fn at(&self, path: &str) -> Option<&Value> {
        let mut schema = &self.root;
        for segment in super::tree::segments(path) {
            schema = self.resolve(schema);
            schema = if segment.bytes().all(|b| b.is_ascii_digit()) && schema.get("items").is_some() {
                &schema["items"]
            } else {
                schema["properties"]
                    .get(&segment)
                    .or_else(|| schema.get("additionalProperties").filter(|a| a.is_object()))?
            };
        }
        Some(self.resolve(schema))
    }

    /// A path as the schema and the tree spell it: names without a lower-case letter are compared without case with their keys
    /// and the names of entries of lists, where no two of these differ by case only. What is unknown stays as it is written.
    pub(crate) fn spelled(&self, path: &str, tree: &Node) -> String {
        let (mut schema, mut node) = (Some(&self.root), Some(tree));
        let mut spelled = String::new();
        for segment in super::tree::segments(path) {
            let here = schema.map(|schema| self.resolve(schema));
            let keys = here.and_then(|here| here["properties"].as_object()).into_iter().flatten();
            let entries = node.map(Node::entries).unwrap_or_default().iter();
            let items = node.map(Node::items).unwrap_or_default();
            let names = items.iter().filter_map(|item| item.get("name").and_then(Node::text));
            let known = keys.map(|(key, _)| key.as_str()).chain(entries.map(|entry| entry.key.as_str())).chain(names);
            let mut same: Vec<&str> = known.filter(|known| known.eq_ignore_ascii_case(&segment)).collect();
            same.sort_unstable();
            same.dedup();
            // A name with a lower-case letter is meant as it is written: names of tags and the like may differ by case only.
            let is_upper = !segment.bytes().any(|byte| byte.is_ascii_lowercase());
            let name = match same.as_slice() {
                [one] if is_upper => (*one).to_owned(),
                _ => segment,
            };
            schema = here.and_then(|here| {
                let of_list = here.get("items");
                of_list.or_else(|| here["properties"].get(&name)).or_else(|| here.get("additionalProperties"))
            });
            let named = |item: &&Node| item.get("name").and_then(Node::text) == Some(name.as_str());
            node = node.and_then(|node| match name.parse::<usize>() {
                Ok(at) if !items.is_empty() => items.get(at),
                _ => node.get(&name).or_else(|| items.iter().find(named)),
            });
            spelled = join(&spelled, &name);
        }
        spelled
    }

    /// Appends every violation in `node`.
    pub(crate) fn check(&self, node: &Node, reading: Reading, problems: &mut Vec<Problem>) {
        self.value(node, &self.root, "", reading, problems);
    }

    fn value(&self, node: &Node, schema: &Value, path: &str, reading: Reading, problems: &mut Vec<Problem>) {
        if reading == Reading::Layer && node.is_null() {
            return;
        }
        let schema = self.resolve(schema);
        let mut error =
            |cause: String, fix: String| problems.push(Problem::error(node.origin.clone(), path, cause, fix));
        let words = words(schema);
        let wanted = wanted(schema, &words);
        match &node.kind {
            NodeKind::Map(_) if types(schema).contains(&"object") => {
                self.mapping(node, schema, path, reading, problems)
            }
            NodeKind::List(items) if types(schema).contains(&"array") => {
                let least = schema["minItems"].as_u64().unwrap_or(0);
                if (items.len() as u64) < least {
                    error(format!("the list has {} entries", items.len()), format!("at least {least} must be there"));
                }
                for (i, item) in items.iter().enumerate() {
                    self.value(item, &schema["items"], &format!("{path}[{i}]"), reading, problems);
                }
            }
            NodeKind::Map(_) => error("found a mapping".to_owned(), fix_for(schema, &wanted)),
            NodeKind::List(_) => error("found a list".to_owned(), fix_for(schema, &wanted)),
            NodeKind::Scalar { value, written } => {
                // Unexpanded values are checked after expansion; failed expansions were reported.
                let unfilled = value.as_str().is_some_and(|text| text.contains("${"));
                let secret = schema["format"].as_str().is_some_and(units::is_secret_format);
                if unfilled && !secret {
                    return;
                }
                if let Err((cause, fix)) = scalar(value, written.as_deref(), schema, &words, &wanted) {
                    error(cause, fix);
                }
            }
        }
    }

    fn mapping(&self, node: &Node, schema: &Value, path: &str, reading: Reading, problems: &mut Vec<Problem>) {
        let none = serde_json::Map::new();
        let known = schema["properties"].as_object().unwrap_or(&none);
        for entry in node.entries() {
            let below = join(path, &entry.key);
            if let Some(field) = known.get(&entry.key) {
                self.value(&entry.node, field, &below, reading, problems);
            } else if let Some(any) = schema.get("additionalProperties").filter(|a| a.is_object()) {
                self.value(&entry.node, any, &below, reading, problems);
            } else if let Some((_, usual, instead)) = REMOVED.iter().find(|(path, ..)| *path == below) {
                let is_at = |usual: Value| entry.node.to_value() == usual;
                let is_usual = entry.node.is_null() || serde_json::from_str(usual).is_ok_and(is_at);
                let cause = match instead {
                    Some(instead) => format!("it was replaced by {instead}"),
                    None => "it had no effect, and was removed".to_owned(),
                };
                let (severity, fix) = match instead {
                    Some(instead) if !is_usual => (Severity::Error, format!("write {instead} instead")),
                    None if !is_usual => (Severity::Error, "remove it".to_owned()),
                    _ => (Severity::Note, "remove it".to_owned()),
                };
                problems.push(Problem::error(entry.at.clone(), below, cause, fix).at(severity));
            } else {
                let location = if path.is_empty() { "an environment".to_owned() } else { format!("`{path}`") };
                let cause = format!("`{}` is not a key of {location}", cut(&entry.key));
                problems.push(Problem::error(
                    entry.at.clone(),
                    cut(&below),
                    cause,
                    self.meant(&entry.key, path, known),
                ));
            }
        }
        if reading == Reading::Whole {
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if node.get(name).is_none() {
                    let about = known.get(name).and_then(|f| self.described(f)).unwrap_or_default();
                    let fix = format!("add `{name}: …`{}{}", if about.is_empty() { "" } else { " — " }, about);
                    problems.push(Problem::error(node.origin.clone(), join(path, name), "this key is missing", fix));
                }
            }
        }
    }

    /// Removes the keys that it does not know, which [`Schema::check`] reports, so that the rest can be read.
    pub(crate) fn prune(&self, node: &mut Node) {
        self.prune_value(node, &self.root);
    }

    fn prune_value(&self, node: &mut Node, schema: &Value) {
        let schema = self.resolve(schema);
        match &mut node.kind {
            NodeKind::Map(entries) => entries.retain_mut(|entry| {
                let any = schema.get("additionalProperties").filter(|any| any.is_object());
                let field = schema["properties"].get(&entry.key).or(any);
                field.map(|field| self.prune_value(&mut entry.node, field)).is_some()
            }),
            NodeKind::List(items) => items.iter_mut().for_each(|item| self.prune_value(item, &schema["items"])),
            NodeKind::Scalar { .. } => {}
        }
    }

    /// Replaces the values that it rejects, so that the rest of an invalid environment can be checked: a misspelled word by
    /// the word that is meant, other values by their defaults. Returns their paths; `None` if a value that must be there
    /// cannot be replaced.
    pub(crate) fn replace_rejected(&self, node: &mut Node) -> Option<Vec<String>> {
        let mut replaced = Vec::new();
        self.replace_below(node, &self.root, "", &mut replaced).then_some(replaced)
    }

    /// Whether the value can stay; else its parent removes it.
    fn replace_below(&self, node: &mut Node, schema: &Value, path: &str, replaced: &mut Vec<String>) -> bool {
        let schema = self.resolve(schema);
        let origin = node.origin.clone();
        match &mut node.kind {
            NodeKind::Map(entries) if types(schema).contains(&"object") => {
                entries.retain_mut(|entry| {
                    let below = join(path, &entry.key);
                    let field = schema["properties"].get(&entry.key).unwrap_or(&schema["additionalProperties"]);
                    let stays = self.replace_below(&mut entry.node, field, &below, replaced);
                    if !stays {
                        // What else is in the section may fit the word that is meant.
                        let is_word = !words(self.resolve(field)).is_empty();
                        replaced.push(if is_word && !path.is_empty() { path.to_owned() } else { below });
                    }
                    stays
                });
                for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if entries.iter().any(|entry| entry.key == name) {
                        continue;
                    }
                    // Other settings refer to the entries of a list, such as sites, by their names.
                    if name == "name" && path.ends_with(']') {
                        return false;
                    }
                    let Some(value) = self.placeholder(&schema["properties"][name]) else { return false };
                    replaced.push(join(path, name));
                    let node = Node::scalar(value, origin.clone());
                    entries.push(Entry { key: name.to_owned(), at: origin.clone(), node });
                }
                true
            }
            // Without one of its entries, the others would have other paths.
            NodeKind::List(items) if types(schema).contains(&"array") => {
                let least = schema["minItems"].as_u64().unwrap_or(0);
                items.len() as u64 >= least
                    && items
                        .iter_mut()
                        .enumerate()
                        .all(|(i, item)| self.replace_below(item, &schema["items"], &format!("{path}[{i}]"), replaced))
            }
            NodeKind::Map(_) | NodeKind::List(_) => false,
            NodeKind::Scalar { value, written } => {
                let words = words(schema);
                if scalar(value, written.as_deref(), schema, &words, "").is_ok() {
                    return true;
                }
                let Some(near) = value.as_str().and_then(|text| nearest(text, words.iter().copied())) else {
                    return false;
                };
                replaced.push(path.to_owned());
                *value = Value::from(near);
                true
            }
        }
    }

    /// A value of a required field for which none is known.
    fn placeholder(&self, schema: &Value) -> Option<Value> {
        let schema = self.resolve(schema);
        let words = words(schema);
        let value = Value::from(words.first().copied().unwrap_or("unnamed"));
        scalar(&value, None, schema, &words, "").is_ok().then_some(value)
    }

    fn described(&self, field: &Value) -> Option<String> {
        let text = field["description"].as_str().or_else(|| self.resolve(field)["description"].as_str())?;
        Some(text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned())
    }

    /// A suggestion for a mistyped key: a similar key, or the same key in another section.
    fn meant(&self, key: &str, path: &str, known: &serde_json::Map<String, Value>) -> String {
        if let Some(near) = nearest(key, known.keys().map(String::as_str)) {
            return format!("did you mean `{near}`?");
        }
        let candidates: Vec<String> = {
            let is_meant = |path: &String| path.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case(key));
            self.paths().into_iter().filter(is_meant).collect()
        };
        match candidates.as_slice() {
            [one] if one.eq_ignore_ascii_case(key) => {
                format!("did you mean the key `{one}` of the whole environment, without indentation?")
            }
            [one] => format!("did you mean `{one}`?"),
            [] | [_, _, _, ..] => {
                let names: Vec<_> = known.keys().map(|k| format!("`{k}`")).collect();
                let location = if path.is_empty() { "its keys" } else { "the keys there" };
                format!("remove it; {location} are {}", names.join(", "))
            }
            some => format!("did you mean one of `{}`?", some.join("`, `")),
        }
    }

    /// The dotted paths of every field outside of lists.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.walk(&self.root, "", 0, &mut found);
        found
    }

    fn walk(&self, schema: &Value, path: &str, depth: usize, found: &mut Vec<String>) {
        let schema = self.resolve(schema);
        if depth > 6 {
            return;
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let below = join(path, name);
            found.push(below.clone());
            self.walk(field, &below, depth + 1, found);
        }
    }
}

pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The values that an enum allows.
fn words(schema: &Value) -> Vec<&str> {
    let listed = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let documented = schema["oneOf"].as_array().into_iter().flatten();
    listed
        .chain(documented.flat_map(|one| {
            one["const"]
                .as_str()
                .into_iter()
                .chain(one["enum"].as_array().into_iter().flatten().filter_map(Value::as_str))
        }))
        .collect()
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// A description of what a field accepts.
fn wanted(schema: &Value, words: &[&str]) -> String {
    if !words.is_empty() {
        return format!("one of {}", quoted(words));
    }
    match schema["format"].as_str() {
        Some("textnlp-size") => return "a size such as `10MB`".to_owned(),
        Some("textnlp-time") => return "a length of time such as `5m`".to_owned(),
        Some("textnlp-time-of-day") => return "a time of day such as `03:00`".to_owned(),
        Some("textnlp-rate") => return "a rate such as `1000/hour`".to_owned(),
        Some("textnlp-secret") => return "a reference to a secret such as `secret:env:NAME`".to_owned(),
        Some("textnlp-address") => return "an address such as `secret:env:DATABASE_URL`".to_owned(),
        _ => {}
    }
    match types(schema).first() {
        Some(&"integer") => "a whole number",
        Some(&"number") => "a number",
        Some(&"boolean") => "`true` or `false`",
        Some(&"array") => "a list",
        Some(&"object") => "a mapping",
        _ => "a text",
    }
    .to_owned()
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ")
}

fn fix_for(schema: &Value, wanted: &str) -> String {
    match types(schema).first() {
        Some(&"array") => "begin each entry with `- `, or write `[a, b]`".to_owned(),
        Some(&"object") => "write `key: value` lines below it".to_owned(),
        _ => format!("write {wanted}"),
    }
}

fn scalar(
    value: &Value,
    written: Option<&str>,
    schema: &Value,
    words: &[&str],
    wanted: &str,
) -> Result<(), (String, String)> {
    let wrong = || Err((format!("found {}", shown(value, schema)), fix_for(schema, wanted)));
    if !words.is_empty() {
        let Some(text) = value.as_str() else { return wrong() };
        if words.contains(&text) {
            return Ok(());
        }
        let fix = nearest(text, words.iter().copied())
            .map_or_else(|| format!("write {wanted}"), |w| format!("did you mean `{w}`?"));
        return Err((format!("`{}` is not {wanted}", cut(text)), fix));
    }
    let types = types(schema);
    if let Some(format) = schema["format"].as_str().filter(|f| f.starts_with("textnlp-")) {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) if types.contains(&"number") || format == "textnlp-size" => number.to_string(),
            _ => return wrong(),
        };
        return units::check_format(format, &text).map_err(|m| (m.cause, m.fix));
    }
    let fits = match value {
        Value::String(_) => types.contains(&"string"),
        Value::Bool(_) => types.contains(&"boolean"),
        Value::Number(number) => types.contains(&"number") || (types.contains(&"integer") && !number.is_f64()),
        _ => false,
    };
    if !fits {
        // `version: 1.30` and `account: 0123` are meant as text but are YAML numbers. `enabled: yes` is text in YAML
        // 1.2.
        if let (true, Some(written)) = (types.contains(&"string") && (value.is_number() || value.is_boolean()), written)
        {
            let cause = format!("`{}` is a number or a boolean in YAML", cut(written));
            return Err((cause, format!("put quotes around it: \"{}\"", cut(written))));
        }
        if types.contains(&"boolean") && matches!(value.as_str(), Some("yes" | "no" | "on" | "off" | "True" | "False"))
        {
            return Err((
                format!("`{}` is a text in YAML 1.2", value.as_str().unwrap_or_default()),
                "write `true` or `false`".to_owned(),
            ));
        }
        return wrong();
    }
    bounds(value, schema)
}

fn bounds(value: &Value, schema: &Value) -> Result<(), (String, String)> {
    if let Some(number) = value.as_f64() {
        let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
        let range = match (least, most) {
            (Some(least), Some(most)) => format!("write a number from {least} to {most}"),
            (Some(least), None) => format!("write {least} or more"),
            (None, Some(most)) => format!("write {most} or less"),
            (None, None) => return Ok(()),
        };
        if least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most) {
            return Err((format!("{value} is out of range"), range));
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        let (least, most) = (schema["minLength"].as_u64(), schema["maxLength"].as_u64());
        if least.is_some_and(|least| length < least) || most.is_some_and(|most| length > most) {
            let fix = match (least, most) {
                (Some(least), Some(most)) if least == most => format!("write exactly {least} characters"),
                (least, Some(most)) => format!("write {} to {most} characters", least.unwrap_or(0)),
                (least, None) => format!("write at least {} characters", least.unwrap_or(0)),
            };
            return Err((format!("`{}` has {length} characters", cut(text)), fix));
        }
    }
    Ok(())
}

/// A value for a message; possible secrets are not repeated.
fn shown(value: &Value, schema: &Value) -> String {
    if schema["format"].as_str().is_some_and(units::is_secret_format) {
        return "a plain value".to_owned();
    }
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => format!("the text `{}`", cut(text)),
        Value::Bool(yes) => format!("`{yes}`"),
        other => format!("`{}`", cut(&other.to_string())),
    }
}

/// The problem if the types reject what the schema accepted; that is an internal error.
pub(crate) fn type_problem(origin: Origin, error: &serde_json::Error) -> Problem {
    Problem::error(
        origin,
        "",
        format!("the values contradict each other: {}", cut(&error.to_string())),
        "check the values named here",
    )
}
