//! Reading a request's body: bounded in size, time, depth, and in the memory of its values.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde_json::Value;
use textnlp_inference::engine::Failure;

use super::fields::Fields;
use super::memory::{HeldMemory, SMALL};
use super::strict::{self, Refused};
use crate::app::App;
use crate::config::ByteSize;
use crate::error::ApiError;
use crate::pii::Findings;
use crate::record::Record;

/// The largest bodies of routes that need less than `max_request_size`.
const LIMITS: &[(&str, usize)] =
    &[("/admin/features", 4_000), ("/auth/token", 4_000), ("/v1/stream/tickets", 128_000), ("/v1/validate", 256_000)];

/// How much of a body that is too large is read and thrown away, so that a client which writes before it reads gets to see the
/// refusal instead of a broken pipe.
const DISCARD: usize = 256 << 20;

/// How long that may take.
const DISCARD_FOR: Duration = Duration::from_secs(10);

/// The longest body in bytes that is searched for personal data where it is read. Longer ones take milliseconds.
const SHORT_SEARCH: usize = 8 << 10;

/// The longest path of a field in an error.
const MAX_PATH: usize = 256;

/// The largest body of a route in bytes.
pub(crate) fn body_limit(max_request_size: usize, route: &str) -> usize {
    let own = LIMITS.iter().find(|(limited, _)| *limited == route).map(|(_, most)| *most);
    own.unwrap_or(max_request_size).min(max_request_size)
}

/// Reads a JSON object.
pub(crate) async fn read_fields(
    app: &App,
    record: &Record,
    headers: &HeaderMap,
    body: Body,
) -> Result<Fields, ApiError> {
    let plain = match headers.get(header::CONTENT_TYPE) {
        None => true,
        Some(value) => value.to_str().is_ok_and(|value| {
            let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            kind == "application/json" || kind.ends_with("+json")
        }),
    };
    if !plain {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "the body must be JSON",
        )
        .hint("Content-Type: application/json"));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "the body must not be compressed",
        ));
    }
    let (bytes, held) = read(app, record, headers, body).await?;
    let (pii, route, length) = (app.pii.clone(), record.route.clone(), bytes.len());
    let work = move || {
        let mut value = parse(&bytes)?;
        let found = match (&pii, &mut value) {
            (Some(pii), Value::Object(map)) => pii.search(&route, map),
            _ => Findings::default(),
        };
        Ok::<_, ApiError>((value, found))
    };
    let is_short = held.is_none() && (app.pii.is_none() || length <= SHORT_SEARCH);
    let (value, found) = match is_short {
        true => work()?,
        false => app.parsers.run(record, work).await??,
    };
    app.settle_pii(&found)?;
    Fields::of_body(value, held)
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        ApiError::invalid(format!("the body is not UTF-8: byte {} is invalid", error.valid_up_to()))
            .hint("send JSON in UTF-8")
    })?;
    if text.trim().is_empty() {
        return Err(ApiError::invalid("the body is empty").hint("send a JSON object"));
    }
    strict::parse(text).map_err(|refused| match refused {
        Refused::Broken(error) => broken(text, &error),
        Refused::Twice { path, line, column } => {
            ApiError::invalid(format!("`{path}` is duplicated at line {line} column {column}"))
                .param(path)
                .hint("each key of an object may appear once")
        }
        Refused::TooMany => {
            let limit = ByteSize(strict::MAX_MEMORY as u64);
            too_large(format!("the body has too many JSON values: in memory they take more than {limit}"))
        }
    })
}

/// Reads a line of a file of requests, as strictly as a body. The error continues a sentence.
pub(crate) fn parse_line(text: &str) -> Result<Value, String> {
    strict::parse(text).map_err(|refused| match refused {
        Refused::Broken(error) => format!("is not valid JSON at column {}", error.column()),
        Refused::Twice { path, column, .. } => format!("has `{path}` twice, at column {column}"),
        Refused::TooMany => "has too many JSON values".to_owned(),
    })
}

fn too_large(message: String) -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message).hint("send less, in several requests")
}

/// The body, and the permit of one that is larger than [`SMALL`].
async fn read(
    app: &App,
    record: &Record,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<(BytesMut, Option<HeldMemory>), ApiError> {
    let most = body_limit(app.config.api.max_request_size, &record.route);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let collect = async {
        if announced.is_some_and(|announced| announced > most) {
            return Ok(None);
        }
        let (mut bytes, mut held) = (BytesMut::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::invalid("the body was incomplete"))?;
            let Ok(data) = frame.into_data() else { continue };
            let size = bytes.len() + data.len();
            if size > most {
                return Ok(None);
            }
            if size > SMALL && held.is_none() {
                // One of unknown size counts as the largest.
                let whole = announced.unwrap_or(most).max(size);
                let (tenant, key) = record.owner();
                let memory = app.bodies.hold(&tenant, &key, whole).await;
                held = Some(memory.map_err(|_| Failure::Busy { retry_after_ms: 1000 })?);
                bytes.reserve(announced.map_or(0, |announced| announced.saturating_sub(bytes.len())));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Some((bytes, held)))
    };
    match tokio::time::timeout(app.config.api.body_timeout, collect).await {
        Ok(Ok(Some(read))) => Ok(read),
        Ok(Ok(None)) => {
            // Who waits for `100 Continue` sends nothing after a refusal.
            if !headers.contains_key(header::EXPECT) {
                discard(body).await;
            }
            Err(too_large(format!("the body is larger than {}, the limit of this endpoint", ByteSize(most as u64))))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body took too long to arrive"))
        }
    }
}

/// Reads on what a client still sends, within bounds, before it is refused.
pub(crate) async fn discard(mut body: Body) {
    let drain = async {
        let mut gone = 0;
        while let Some(Ok(frame)) = body.frame().await {
            gone += frame.data_ref().map_or(0, Bytes::len);
            if gone > DISCARD {
                break;
            }
        }
    };
    // The refusal is sent whether or not this finished.
    let _ = tokio::time::timeout(DISCARD_FOR, drain).await;
}

/// The error for a body that is not JSON, with the position and the field.
fn broken(text: &str, error: &serde_json::Error) -> ApiError {
    let reason = error.to_string();
    let at =
        text.lines().take(error.line().saturating_sub(1)).map(|line| line.len() + 1).sum::<usize>() + error.column();
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let mut answer = ApiError::invalid(format!("the body is not valid JSON: {reason}"));
    // A text that ends too early is no mistake of its last field.
    if let Some(field) = field_before(before).filter(|_| !error.is_eof()) {
        answer = answer.param(field);
    }
    // serde_json's words for a surrogate without the other half of its pair.
    let has_lone_surrogate = reason.contains("surrogate") || reason.contains("unexpected end of hex escape");
    let start = before.rfind([':', ',', '[']).map_or(0, |index| index + 1);
    let value = text.get(start..).unwrap_or_default().trim_start();
    let not_finite = ["NaN", "nan", "Infinity", "-Infinity", "inf", "-inf"].iter().any(|word| value.starts_with(word));
    if not_finite {
        answer.hint("JSON has no NaN and no Infinity: omit the field, or send a number")
    } else if has_lone_surrogate {
        answer.hint("a surrogate (`\\ud800` to `\\udfff`) needs the other half of its pair; UTF-8 needs no escape")
    } else if reason.contains("recursion limit") {
        answer.hint("nest objects and arrays at most 127 levels deep")
    } else if reason.contains("number out of range") {
        answer.hint("send a number below 1.8e308, the limit of a 64-bit float")
    } else {
        answer
    }
}

/// The path of the key whose value was being read at the end of a text; nothing after a whole value.
fn field_before(text: &str) -> Option<String> {
    let colon = text.rfind("\":")?;
    let mut values = serde_json::Deserializer::from_str(&text[colon + 2..]).into_iter::<Value>();
    if matches!(values.next(), Some(Ok(_))) {
        return None;
    }
    path(&text[..colon + 2])
}

/// Where a text is within the values that are open at its end.
enum Open<'a> {
    /// An object: the key that was read last.
    Key(&'a str),
    /// A list: the index of its item.
    Index(usize),
}

/// The path at the end of the beginning of a JSON text, if its names are plain.
fn path(text: &str) -> Option<String> {
    let (mut open, mut string, mut last) = (Vec::new(), None, "");
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (byte, string) {
            (b'\\', Some(_)) => {
                bytes.next();
            }
            (b'"', Some(start)) => {
                last = &text[start..at];
                string = None;
            }
            (_, Some(_)) => {}
            (b'"', None) => string = Some(at + 1),
            (b'{', None) => open.push(Open::Key("")),
            (b'[', None) => open.push(Open::Index(0)),
            (b'}' | b']', None) => {
                open.pop();
            }
            (b':', None) => {
                if let Some(Open::Key(key)) = open.last_mut() {
                    *key = last;
                }
            }
            (b',', None) => {
                if let Some(Open::Index(index)) = open.last_mut() {
                    *index += 1;
                }
            }
            _ => {}
        }
    }
    let is_plain = |name: &str| {
        !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut path = String::new();
    for part in &open {
        match part {
            Open::Index(index) => path.push_str(&format!("[{index}]")),
            Open::Key(name) if is_plain(name) => {
                path.push_str(if path.is_empty() { "" } else { "." });
                path.push_str(name);
            }
            Open::Key(_) => return None,
        }
    }
    (!path.is_empty() && path.len() <= MAX_PATH).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, param: Option<&str>, hint: Option<&str>) {
        let error = broken(text, &serde_json::from_str::<Value>(text).unwrap_err());
        assert_eq!(error.param.as_deref(), param, "{text}");
        assert_eq!(error.hint.is_some(), hint.is_some(), "{text}: {error:?}");
        if let Some(hint) = hint {
            assert!(error.hint.unwrap().contains(hint), "{text}");
        }
    }

    #[test]
    fn invalid_json_error_names_the_field() {
        check(r#"{"prompt":"a","temperature":NaN}"#, Some("temperature"), Some("NaN"));
        check(r#"{"prompt":"a","temperature": Infinity}"#, Some("temperature"), Some("NaN"));
        check(r#"{"prompt":"a","temperature": -Infinity}"#, Some("temperature"), Some("NaN"));
        check(r#"{"prompt":"a","max_tokens":1e999}"#, Some("max_tokens"), Some("1.8e308"));
        check("{\"prompt\":\"a\",\n\"max_tokens\":}", Some("max_tokens"), None);
        check(r#"{"prompt":"a","temperature":0.5x}"#, Some("temperature"), None);
        check(r#"{"logit_bias":{"5":1e400}}"#, Some("logit_bias.5"), Some("1.8e308"));
        check(r#"{"messages":[{"role":"a:,{"},{"n":1,"content":nan}]}"#, Some("messages[1].content"), Some("NaN"));
        check(r#"{"a b":{"c":nan}}"#, None, Some("NaN"));
        check(r#"{"prompt":"\ud800"}"#, Some("prompt"), Some("surrogate"));
        check(r#"{"prompt":"\udc00\ud800"}"#, Some("prompt"), Some("surrogate"));
        check("nonsense", None, None);
        check(&"[".repeat(200), None, Some("127 levels"));
    }

    #[test]
    fn invalid_json_error_names_no_field_whose_value_is_whole_or_cut_off() {
        for text in [
            r#"{"prompt":"a","max_tokens":"#,
            r#"{"prompt":"a"#,
            r#"{"prompt":"a""#,
            r#"{"prompt":"a",}"#,
            r#"{"messages":[{"role":"user"},,]}"#,
        ] {
            check(text, None, None);
        }
    }
}
