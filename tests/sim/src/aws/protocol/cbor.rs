//! CBOR (RFC 8949) as `smithy-rpc-v2-cbor` uses it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::{Reader, text};
use crate::aws::model::{Kind, Model, Reference};

/// A data item.
#[derive(Debug)]
enum Item {
    Integer(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Text(String),
    Array(Vec<Item>),
    Map(Vec<(String, Item)>),
    Tag(u64, Box<Item>),
    Bool(bool),
    Null,
}

const MAX_DEPTH: usize = 64;

struct Decoder<'a> {
    rest: &'a [u8],
}

/// The first byte of what ends arrays and maps of unknown length.
const BREAK: u8 = 0xff;

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    /// The major type, and the argument or `None` for an unknown length.
    fn head(&mut self) -> Result<(u8, u8, Option<u64>), String> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 31);
        let argument = match info {
            0..=23 => Some(u64::from(info)),
            24..=27 => Some(self.number(1 << (info - 24))?),
            31 => None,
            _ => return Err(format!("{first:#x} is reserved")),
        };
        Ok((major, info, argument))
    }

    fn ends(&mut self) -> bool {
        let ends = self.rest.first() == Some(&BREAK);
        if ends {
            self.rest = &self.rest[1..];
        }
        ends
    }

    fn chunks(&mut self, length: Option<u64>, major: u8) -> Result<Vec<u8>, String> {
        let Some(length) = length else {
            let mut whole = Vec::new();
            while !self.ends() {
                match self.head()? {
                    (kind, _, Some(length)) if kind == major => whole.extend(self.chunks(Some(length), major)?),
                    _ => return Err("a part of a string is none".to_owned()),
                }
            }
            return Ok(whole);
        };
        Ok(self.take(usize::try_from(length).map_err(|e| e.to_string())?)?.to_vec())
    }

    fn item(&mut self, depth: usize) -> Result<Item, String> {
        if depth > MAX_DEPTH {
            return Err("it is nested too deep".to_owned());
        }
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|e| e.to_string());
        let (major, info, argument) = self.head()?;
        Ok(match (major, argument) {
            (0, Some(number)) => Item::Integer(i64::try_from(number).map_err(|e| e.to_string())?),
            (1, Some(number)) => Item::Integer(-1 - i64::try_from(number).map_err(|e| e.to_string())?),
            (2, length) => Item::Bytes(self.chunks(length, major)?),
            (3, length) => Item::Text(text(self.chunks(length, major)?)?),
            (4, length) => {
                let mut items = Vec::new();
                while length.map_or_else(|| !self.ends(), |length| (items.len() as u64) < length) {
                    items.push(self.item(depth + 1)?);
                }
                Item::Array(items)
            }
            (5, length) => {
                let mut entries = Vec::new();
                while length.map_or_else(|| !self.ends(), |length| (entries.len() as u64) < length) {
                    let Item::Text(key) = self.item(depth + 1)? else { return Err("a key is not text".to_owned()) };
                    entries.push((key, self.item(depth + 1)?));
                }
                Item::Map(entries)
            }
            (6, Some(tag)) => Item::Tag(tag, Box::new(self.item(depth + 1)?)),
            (7, Some(bits)) => match info {
                20 => Item::Bool(false),
                21 => Item::Bool(true),
                22 | 23 => Item::Null,
                25 => Item::Float(half(bits as u16)),
                26 => Item::Float(f64::from(f32::from_bits(bits as u32))),
                27 => Item::Float(f64::from_bits(bits)),
                _ => return Err(format!("the simple value {info} is unknown")),
            },
            _ => return Err(format!("the type {major} has no length")),
        })
    }
}

fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

pub(super) fn parse(reader: &mut Reader<'_>, reference: &Reference, body: &[u8]) -> Value {
    if body.is_empty() {
        return Value::Object(Map::new());
    }
    let mut decoder = Decoder { rest: body };
    match decoder.item(0) {
        Ok(item) if decoder.rest.is_empty() => read(reader, reference, item, "input"),
        Ok(_) => {
            reader.problem("body", "something follows the input");
            Value::Null
        }
        Err(error) => {
            reader.problem("body", format!("it is not CBOR: {error}"));
            Value::Null
        }
    }
}

fn read(reader: &mut Reader<'_>, reference: &Reference, item: Item, path: &str) -> Value {
    let Some(shape) = reader.shape(reference, path) else { return Value::Object(Map::new()) };
    match (shape.kind, item) {
        (Kind::Structure, Item::Map(entries)) => {
            let mut members = Map::new();
            for (name, item) in entries.into_iter().filter(|(_, item)| !matches!(item, Item::Null)) {
                match shape.members.get(&name) {
                    Some(member) => {
                        let value = read(reader, member, item, &format!("{path}.{name}"));
                        members.insert(name, value);
                    }
                    None => reader.problem(path, format!("the model has no member for {name:?}")),
                }
            }
            Value::Object(members)
        }
        (Kind::List, Item::Array(items)) => {
            let member = shape.member.clone().unwrap_or_default();
            Value::Array(items.into_iter().map(|item| read(reader, &member, item, path)).collect())
        }
        (Kind::Map, Item::Map(entries)) => {
            let member = shape.value.clone().unwrap_or_default();
            Value::Object(entries.into_iter().map(|(key, item)| (key, read(reader, &member, item, path))).collect())
        }
        (Kind::Timestamp, Item::Tag(1, item)) => {
            let seconds = match *item {
                Item::Integer(seconds) => Some(seconds as f64),
                Item::Float(seconds) => Some(seconds),
                _ => None,
            };
            seconds.and_then(text::epoch).map_or(Value::Null, crate::timestamp)
        }
        (Kind::Blob, Item::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Kind::Float | Kind::Double, Item::Integer(number)) => (number as f64).into(),
        (Kind::Float | Kind::Double, Item::Float(number)) => match Number::from_f64(number) {
            Some(number) => Value::Number(number),
            None if number.is_nan() => "NaN".into(),
            None => if number > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        },
        (_, Item::Integer(number)) => number.into(),
        (_, Item::Text(text)) => text.into(),
        (_, Item::Bool(is)) => is.into(),
        (kind, item) => {
            reader.problem(path, format!("{item:?} is no {kind:?}"));
            Value::Null
        }
    }
}

fn head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let bytes = argument.to_be_bytes();
    let first = major << 5;
    match argument {
        0..=23 => out.push(first | bytes[7]),
        24..=0xff => out.extend([first | 24, bytes[7]]),
        0x100..=0xffff => {
            out.push(first | 25);
            out.extend(&bytes[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            out.push(first | 26);
            out.extend(&bytes[4..]);
        }
        _ => {
            out.push(first | 27);
            out.extend(bytes);
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    head(out, 3, text.len() as u64);
    out.extend(text.as_bytes());
}

fn put_float(out: &mut Vec<u8>, number: f64) {
    out.push(7 << 5 | 27);
    out.extend(number.to_be_bytes());
}

pub(super) fn write(model: &Model, reference: &Reference, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    if !reference.shape.is_empty() {
        put(model, &mut out, reference, value);
    } else {
        head(&mut out, 5, 0);
    }
    out
}

/// An error: a map with the name of its shape and its members.
pub(super) fn write_fault(model: &Model, reference: &Reference, name: &str, members: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let members = members.as_object().into_iter().flatten();
    let members: Vec<(&String, &Value)> = members.collect();
    head(&mut out, 5, members.len() as u64 + 1);
    put_text(&mut out, "__type");
    put_text(&mut out, name);
    let shape = model.shape(&reference.shape);
    for (name, value) in members {
        put_text(&mut out, name);
        match shape.as_ref().and_then(|shape| shape.members.get(name)) {
            Some(member) => put(model, &mut out, member, value),
            None => put_text(&mut out, value.as_str().unwrap_or_default()),
        }
    }
    out
}

fn put(model: &Model, out: &mut Vec<u8>, reference: &Reference, value: &Value) {
    let shape = model.shape(&reference.shape);
    let Some(shape) = shape else { return out.push(0xf6) };
    match (shape.kind, value) {
        (Kind::Structure, Value::Object(members)) => {
            let known: Vec<_> = members.iter().filter_map(|(n, v)| Some((n, shape.members.get(n)?, v))).collect();
            head(out, 5, known.len() as u64);
            for (name, member, value) in known {
                put_text(out, name);
                put(model, out, member, value);
            }
        }
        (Kind::Map, Value::Object(entries)) => {
            head(out, 5, entries.len() as u64);
            for (name, value) in entries {
                put_text(out, name);
                put(model, out, &shape.value.clone().unwrap_or_default(), value);
            }
        }
        (Kind::List, Value::Array(items)) => {
            head(out, 4, items.len() as u64);
            items.iter().for_each(|item| put(model, out, &shape.member.clone().unwrap_or_default(), item));
        }
        (Kind::Timestamp, Value::String(text)) => {
            let time: Timestamp = text.parse().unwrap_or(Timestamp::UNIX_EPOCH);
            head(out, 6, 1);
            put_float(out, time.as_millisecond() as f64 / 1000.0);
        }
        (Kind::Blob, Value::String(text)) => {
            let bytes = STANDARD.decode(text).unwrap_or_default();
            head(out, 2, bytes.len() as u64);
            out.extend(bytes);
        }
        (Kind::Float | Kind::Double, value) => put_float(
            out,
            match value.as_str() {
                Some("Infinity") => f64::INFINITY,
                Some("-Infinity") => f64::NEG_INFINITY,
                Some(_) => f64::NAN,
                None => value.as_f64().unwrap_or_default(),
            },
        ),
        (_, Value::Number(number)) => match number.as_i64().unwrap_or_default() {
            number if number < 0 => head(out, 1, number.unsigned_abs() - 1),
            number => head(out, 0, number.unsigned_abs()),
        },
        (_, Value::Bool(is)) => out.push(if *is { 0xf5 } else { 0xf4 }),
        (_, Value::String(text)) => put_text(out, text),
        _ => out.push(0xf6),
    }
}
