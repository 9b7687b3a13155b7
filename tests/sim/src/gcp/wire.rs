//! Protocol buffers by tables, and the frames of gRPC.
//!
//! Messages are JSON objects with the names of the `.proto` files: times are RFC 3339 text, durations are seconds, bytes
//! are base64. <https://protobuf.dev/programming-guides/encoding/>

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The most levels of nesting.
const MAX_DEPTH: usize = 32;

/// The type of a field.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Text,
    Bytes,
    /// 32 or 64 bits with a sign.
    Int,
    Bool,
    Fixed32,
    Message(&'static [Field]),
    /// Text by text.
    Map,
    /// `google.protobuf.Timestamp`.
    Time,
    /// `google.protobuf.Duration`.
    Seconds,
}

/// A field: its number, its name, its type, and whether it is repeated.
#[derive(Clone, Copy)]
pub(super) struct Field(pub(super) u32, pub(super) &'static str, pub(super) Type, pub(super) bool);

/// A field that occurs once.
pub(super) const fn one(number: u32, name: &'static str, kind: Type) -> Field {
    Field(number, name, kind, false)
}

/// A field that is repeated.
pub(super) const fn many(number: u32, name: &'static str, kind: Type) -> Field {
    Field(number, name, kind, true)
}

/// `google.protobuf.Timestamp` and `google.protobuf.Duration`.
const TIME: &[Field] = &[one(1, "seconds", Type::Int), one(2, "nanos", Type::Int)];
const ENTRY: &[Field] = &[one(1, "key", Type::Text), one(2, "value", Type::Text)];

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in 0..10 {
            let (byte, rest) = self.0.split_first().ok_or("a number is cut off")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << (shift * 7);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long".to_owned())
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let count = usize::try_from(count).map_err(|_| "a field is too long")?;
        let (taken, rest) = self.0.split_at_checked(count).ok_or("a field is cut off")?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Reads a message.
///
/// # Errors
/// The bytes are not one, or it has a field that the table does not have.
pub(super) fn decode(fields: &[Field], bytes: &[u8]) -> Result<Value, String> {
    decode_within(fields, bytes, 0)
}

fn decode_within(fields: &[Field], bytes: &[u8], depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err("nested too deep".to_owned());
    }
    let mut reader = Reader(bytes);
    let mut message = Map::new();
    while !reader.0.is_empty() {
        let tag = reader.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| "a field's number is too large")?;
        let field = fields.iter().find(|field| field.0 == number);
        let Field(_, name, kind, is_repeated) = field.ok_or(format!("there is no field {number}"))?;
        let (number, chunk) = match tag & 7 {
            0 => (reader.varint()?, &[][..]),
            1 => return Err(format!("{name}: fields of 64 bits are not used")),
            2 => {
                let length = reader.varint()?;
                (0, reader.take(length)?)
            }
            5 => {
                let four = reader.take(4)?;
                (u64::from(u32::from_le_bytes(four.try_into().unwrap_or_default())), &[][..])
            }
            other => return Err(format!("{name}: wire type {other}")),
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| format!("{name}: it is no text"));
        let value = match kind {
            Type::Text => text(chunk)?.into(),
            Type::Bytes => STANDARD.encode(chunk).into(),
            Type::Int => json!(number.cast_signed()),
            Type::Bool => (number != 0).into(),
            Type::Fixed32 => number.into(),
            Type::Message(fields) => decode_within(fields, chunk, depth + 1)?,
            Type::Map => {
                let entry = decode_within(ENTRY, chunk, depth + 1)?;
                let key = entry["key"].as_str().unwrap_or_default().to_owned();
                let value = entry["value"].as_str().unwrap_or_default();
                message.entry(*name).or_insert_with(|| json!({}))[key] = value.into();
                continue;
            }
            Type::Time | Type::Seconds => {
                let time = decode_within(TIME, chunk, depth + 1)?;
                let seconds = time["seconds"].as_i64().unwrap_or_default();
                match kind {
                    Type::Seconds => seconds.into(),
                    _ => Timestamp::from_second(seconds)
                        .map_err(|_| format!("{name}: it is no time"))?
                        .to_string()
                        .into(),
                }
            }
        };
        match is_repeated {
            true => {
                let list = message.entry(*name).or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    list.push(value);
                }
            }
            false => drop(message.insert((*name).to_owned(), value)),
        }
    }
    Ok(message.into())
}

/// Writes a message.
///
/// # Errors
/// A member is not in the table, or of another type.
pub(super) fn encode(fields: &[Field], message: &Value) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for (name, value) in message.as_object().ok_or("it is no object")? {
        let field = fields.iter().find(|field| field.1 == name).ok_or(format!("there is no field {name}"))?;
        match (field.3, value) {
            (true, Value::Array(items)) => {
                for item in items {
                    encode_field(field, item, &mut bytes)?;
                }
            }
            (true, _) => return Err(format!("{name}: it is no list")),
            (false, value) => encode_field(field, value, &mut bytes)?,
        }
    }
    Ok(bytes)
}

fn encode_field(field: &Field, value: &Value, bytes: &mut Vec<u8>) -> Result<(), String> {
    let Field(number, name, kind, _) = field;
    let wrong = || format!("{name}: {value} is of another type");
    let mut chunk = |chunk: &[u8]| {
        put_varint(bytes, u64::from(number << 3 | 2));
        put_varint(bytes, chunk.len() as u64);
        bytes.extend_from_slice(chunk);
    };
    match kind {
        Type::Text => chunk(value.as_str().ok_or_else(wrong)?.as_bytes()),
        Type::Bytes => chunk(&STANDARD.decode(value.as_str().ok_or_else(wrong)?).map_err(|_| wrong())?),
        Type::Message(fields) => chunk(&encode(fields, value)?),
        Type::Map => {
            for (key, value) in value.as_object().ok_or_else(wrong)? {
                chunk(&encode(ENTRY, &json!({ "key": key, "value": value }))?);
            }
        }
        Type::Time => {
            let time: Timestamp = value.as_str().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            chunk(&encode(TIME, &json!({ "seconds": time.as_second() }))?);
        }
        Type::Seconds => chunk(&encode(TIME, &json!({ "seconds": value }))?),
        Type::Int | Type::Bool => {
            let number = value.as_bool().map(i64::from).or_else(|| value.as_i64()).ok_or_else(wrong)?;
            put_varint(bytes, u64::from(field.0 << 3));
            put_varint(bytes, number.cast_unsigned());
        }
        Type::Fixed32 => {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok()).ok_or_else(wrong)?;
            put_varint(bytes, u64::from(field.0 << 3 | 5));
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    Ok(())
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The message of the one frame of a unary call.
///
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
pub(super) fn unframed(body: &[u8]) -> Option<&[u8]> {
    let (head, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    (head[0] == 0 && message.len() == length as usize).then_some(message)
}

/// A message in its frame.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

/// A text as the header `grpc-message` carries it.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'%' => escaped.push_str("%25"),
            0x20..=0x7e => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const INNER: &[Field] = &[one(1, "a", Type::Int)];
    const OUTER: &[Field] = &[
        one(1, "text", Type::Text),
        one(2, "number", Type::Int),
        one(3, "flag", Type::Bool),
        many(4, "items", Type::Message(INNER)),
        one(15, "labels", Type::Map),
        one(16, "time", Type::Time),
        one(17, "duration", Type::Seconds),
        one(18, "bytes", Type::Bytes),
        one(19, "sum", Type::Fixed32),
    ];

    #[test]
    fn messages_are_read_as_they_were_written() {
        let message = json!({
            "text": "a b", "number": -1, "flag": true, "items": [{ "a": 1 }, {}], "labels": { "k": "v", "l": "" },
            "time": "2026-11-25T00:00:00Z", "duration": 604_800, "bytes": "AAE=", "sum": 7,
        });
        let bytes = encode(OUTER, &message).unwrap();
        assert_eq!(decode(OUTER, &bytes).unwrap(), message);
        assert_eq!(unframed(&framed(&bytes)), Some(&bytes[..]));
        for cut in 1..bytes.len() {
            let _ = decode(OUTER, &bytes[..cut]);
        }
        assert!(encode(OUTER, &json!({ "other": 1 })).is_err());
        assert_eq!(encode(INNER, &json!({ "a": 300 })).unwrap(), [0x08, 0xac, 0x02]);
    }
}
