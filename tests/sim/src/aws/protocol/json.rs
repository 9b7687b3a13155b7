//! JSON: bodies of the protocols `json` and `rest-json`.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Reader;
use super::text::{self, TimeFormat, time_format};
use crate::aws::model::{Kind, Model, Reference, Shape};

pub(super) fn parse(reader: &mut Reader<'_>, reference: &Reference, body: &[u8]) -> Value {
    let value = match body.is_empty() {
        true => Value::Object(Map::new()),
        false => match serde_json::from_slice(body) {
            Ok(value) => value,
            Err(error) => {
                reader.problem("body", format!("it is not JSON: {error}"));
                Value::Object(Map::new())
            }
        },
    };
    match reader.model.shape(&reference.shape) {
        Some(_) => read(reader, reference, value, "input"),
        None => Value::Object(Map::new()),
    }
}

/// The form that handlers see. What is of a wrong type stays as it is, for the check by the model to find.
pub(super) fn read(reader: &mut Reader<'_>, reference: &Reference, value: Value, path: &str) -> Value {
    let Some(shape) = reader.shape(reference, path) else { return value };
    if shape.document {
        return value;
    }
    match (shape.kind, value) {
        (Kind::Structure, Value::Object(mut body)) => {
            let mut members = Map::new();
            for (name, member) in &shape.members {
                let wire = member.location_name.as_ref().unwrap_or(name);
                // Null says that it is not set.
                if let Some(value) = body.shift_remove(wire).filter(|value| !value.is_null()) {
                    members.insert(name.clone(), read(reader, member, value, &format!("{path}.{name}")));
                }
            }
            body.keys().for_each(|name| reader.problem(path, format!("the model has no member for {name:?}")));
            Value::Object(members)
        }
        (Kind::List, Value::Array(items)) => {
            let Some(member) = &shape.member else { return Value::Array(items) };
            Value::Array(items.into_iter().map(|item| read(reader, member, item, path)).collect())
        }
        (Kind::Map, Value::Object(entries)) => {
            let Some(item) = &shape.value else { return Value::Object(entries) };
            Value::Object(entries.into_iter().map(|(key, value)| (key, read(reader, item, value, path))).collect())
        }
        (Kind::Timestamp, Value::Number(number))
            if time_format(reference, &shape, TimeFormat::Epoch) == TimeFormat::Epoch =>
        {
            match number.as_f64().and_then(text::epoch) {
                Some(time) => crate::timestamp(time),
                None => Value::Number(number),
            }
        }
        (Kind::Timestamp, Value::String(text)) => {
            let format = time_format(reference, &shape, TimeFormat::Epoch);
            text::parse(reader, &shape, format, &text, path)
        }
        (_, value) => value,
    }
}

/// An output as it is sent; `is_rest` leaves out what lies outside of the body.
pub(super) fn write(model: &Model, shape: &Shape, value: &Value, is_rest: bool) -> Value {
    match (shape.kind, value) {
        (Kind::Structure, Value::Object(members)) if !shape.document => {
            let mut body = Map::new();
            for (name, value) in members {
                let Some(member) = shape.members.get(name) else { continue };
                if is_rest && member.location.is_some() {
                    continue;
                }
                let wire = member.location_name.as_ref().unwrap_or(name);
                body.insert(wire.clone(), write_member(model, member, value));
            }
            Value::Object(body)
        }
        (Kind::List, Value::Array(items)) => {
            let Some(member) = &shape.member else { return value.clone() };
            Value::Array(items.iter().map(|item| write_member(model, member, item)).collect())
        }
        (Kind::Map, Value::Object(entries)) => {
            let Some(item) = &shape.value else { return value.clone() };
            Value::Object(entries.iter().map(|(key, value)| (key.clone(), write_member(model, item, value))).collect())
        }
        _ => value.clone(),
    }
}

pub(super) fn write_member(model: &Model, reference: &Reference, value: &Value) -> Value {
    let Some(shape) = model.shape(&reference.shape) else { return value.clone() };
    if let (Kind::Timestamp, Some(Ok(time))) = (shape.kind, value.as_str().map(str::parse::<Timestamp>)) {
        return match time_format(reference, &shape, TimeFormat::Epoch) {
            TimeFormat::Epoch => text::seconds(time),
            format => Value::String(text::write(&shape, format, value)),
        };
    }
    write(model, &shape, value, false)
}
