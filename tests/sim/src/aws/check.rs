//! Whether a value is what a model allows.

use serde_json::Value;

use super::model::{Kind, Model, Reference, Shape};

/// Adds to `problems` what of a value its shape does not allow, each with the path of the member.
///
/// Values are in the form that handlers see: times are RFC 3339 text, bytes are base64.
pub fn check(model: &Model, reference: &Reference, value: &Value, path: &str, problems: &mut Vec<String>) {
    let Some(shape) = model.shape(&reference.shape) else {
        return problems.push(format!("{path}: the model has no shape {}", reference.shape));
    };
    if shape.document {
        return;
    }
    match (shape.kind, value) {
        (Kind::Structure, Value::Object(members)) => structure(model, &shape, members, path, problems),
        (Kind::List, Value::Array(items)) => {
            length(&shape, items.len(), path, problems);
            let Some(member) = &shape.member else { return };
            for (index, item) in items.iter().enumerate() {
                check(model, member, item, &format!("{path}[{index}]"), problems);
            }
        }
        (Kind::Map, Value::Object(entries)) => {
            // Answers have empty maps of tags also where the model asks for one.
            if !entries.is_empty() || !path.starts_with("output") {
                length(&shape, entries.len(), path, problems);
            }
            let (Some(key), Some(item)) = (&shape.key, &shape.value) else { return };
            for (name, value) in entries {
                check(model, key, &Value::String(name.clone()), &format!("{path}.key({name})"), problems);
                check(model, item, value, &format!("{path}.{name}"), problems);
            }
        }
        (Kind::String | Kind::Character, Value::String(text)) => {
            if !shape.allowed.is_empty() && !shape.allowed.contains(text) {
                problems.push(format!("{path}: {text:?} is none of the model's values"));
            }
            length(&shape, text.chars().count(), path, problems);
            if shape.pattern.as_ref().is_some_and(|pattern| !model.matches(pattern, text)) {
                let pattern = shape.pattern.as_deref().unwrap_or_default();
                problems.push(format!("{path}: {text:?} does not match {pattern}"));
            }
        }
        (Kind::Blob, Value::String(text)) => {
            use base64::Engine;
            match base64::engine::general_purpose::STANDARD.decode(text) {
                Ok(bytes) => length(&shape, bytes.len(), path, problems),
                Err(_) => problems.push(format!("{path}: it is not base64")),
            }
        }
        (Kind::Timestamp, Value::String(text)) if text.parse::<jiff::Timestamp>().is_ok() => {}
        (Kind::Integer, Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
            range(&shape, number.as_f64(), path, problems);
        }
        (Kind::Long, Value::Number(number)) if number.is_i64() => range(&shape, number.as_f64(), path, problems),
        (Kind::Float | Kind::Double, Value::Number(number)) => range(&shape, number.as_f64(), path, problems),
        (Kind::Float | Kind::Double, Value::String(text))
            if ["NaN", "Infinity", "-Infinity"].contains(&text.as_str()) => {}
        (Kind::Boolean, Value::Bool(_)) => {}
        (kind, value) => problems.push(format!("{path}: {} is no {kind:?}", brief(value))),
    }
}

fn structure(
    model: &Model,
    shape: &Shape,
    members: &serde_json::Map<String, Value>,
    path: &str,
    problems: &mut Vec<String>,
) {
    for (name, value) in members {
        match shape.members.get(name) {
            Some(member) => check(model, member, value, &format!("{path}.{name}"), problems),
            None => problems.push(format!("{path}.{name}: the model has no such member")),
        }
    }
    for name in shape.required.iter().filter(|name| !members.contains_key(*name)) {
        // The body has its own place.
        if !shape.members.get(name).is_some_and(|member| member.streaming) {
            problems.push(format!("{path}.{name}: it is required"));
        }
    }
    if shape.union && members.len() != 1 {
        problems.push(format!("{path}: exactly one member has to be set, not {}", members.len()));
    }
}

fn length(shape: &Shape, length: usize, path: &str, problems: &mut Vec<String>) {
    if !is_within(shape, length as f64) {
        problems.push(format!("{path}: its length {length} is outside of {}", bounds(shape)));
    }
}

fn range(shape: &Shape, number: Option<f64>, path: &str, problems: &mut Vec<String>) {
    if let Some(number) = number.filter(|number| !is_within(shape, *number)) {
        problems.push(format!("{path}: {number} is outside of {}", bounds(shape)));
    }
}

fn is_within(shape: &Shape, number: f64) -> bool {
    shape.min.is_none_or(|min| number >= min) && shape.max.is_none_or(|max| number <= max)
}

fn bounds(shape: &Shape) -> String {
    let bound = |bound: Option<f64>| bound.map(|bound| bound.to_string()).unwrap_or_default();
    format!("{}..{}", bound(shape.min), bound(shape.max))
}

fn brief(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(40) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A copy of a value in which everything that the model calls sensitive is `***`.
#[must_use]
pub fn redacted(model: &Model, reference: &Reference, value: &Value) -> Value {
    let Some(shape) = model.shape(&reference.shape) else { return value.clone() };
    if shape.sensitive {
        return Value::String("***".to_owned());
    }
    match value {
        Value::Object(members) => {
            let one = |(name, value): (&String, &Value)| {
                let inner = match shape.kind {
                    Kind::Map => shape.value.as_ref(),
                    _ => shape.members.get(name),
                };
                (name.clone(), inner.map_or_else(|| value.clone(), |inner| redacted(model, inner, value)))
            };
            Value::Object(members.iter().map(one).collect())
        }
        Value::Array(items) => {
            let one = |item| shape.member.as_ref().map_or_else(|| Value::clone(item), |m| redacted(model, m, item));
            Value::Array(items.iter().map(one).collect())
        }
        value => value.clone(),
    }
}
