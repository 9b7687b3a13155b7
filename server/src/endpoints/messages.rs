//! `messages` of chats.

use std::collections::HashMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::structure::{WRONG_NAME, name, other};
use crate::chat::{CalledFunction, Message, ToolCall};
use crate::http::{Fields, is_absent};

/// The maximum number of messages of one conversation, and of calls of one message.
const MAX_MESSAGES: usize = 2048;
const MAX_CALLS: usize = 128;
/// The longest name of a call.
const MAX_ID: usize = 128;

/// The functions of earlier calls by the names of the calls.
type Calls = HashMap<String, String>;

/// The messages of a request; those with mistakes are noted.
pub(super) fn messages(fields: &Fields) -> Option<Vec<Message>> {
    let wrong = |problem: &str| {
        fields.wrong("messages", problem, None);
        None
    };
    let Value::Array(list) = fields.get("messages")? else { return wrong("must be a list") };
    if list.is_empty() {
        return wrong("is empty");
    }
    if list.len() > MAX_MESSAGES {
        return wrong(&format!("has more than {MAX_MESSAGES} entries"));
    }
    let mut calls = Calls::new();
    let one = |(number, item)| message(fields, &format!("messages[{number}]"), item, &mut calls);
    Some(list.iter().enumerate().filter_map(one).collect())
}

fn message(fields: &Fields, at: &str, item: &Value, calls: &mut Calls) -> Option<Message> {
    let wrong = |place: &str, problem: &str| fields.wrong(&format!("{at}{place}"), problem, None);
    let Some(item) = item.as_object() else {
        wrong("", "must be an object");
        return None;
    };
    let role = match item.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Some("system"),
        Some("user") => Some("user"),
        Some("assistant") => Some("assistant"),
        Some("tool") => Some("tool"),
        _ => None,
    };
    let own = match role {
        Some("assistant") => "tool_calls",
        Some("tool") => "tool_call_id",
        _ => "content",
    };
    let known = ["role", "content", "name", "refusal", own];
    if let Some(key) =
        item.iter().find_map(|(key, value)| (!known.contains(&key.as_str()) && !is_absent(value)).then_some(key))
    {
        let shown: String = key.chars().take(64).collect();
        let hint =
            "messages have `role` and `content`, those of tools `tool_call_id`, those of assistants `tool_calls`";
        fields.wrong(&format!("{at}.{shown}"), "is not supported here", Some(hint));
    }
    let Some(role) = role else {
        wrong(".role", "must be `system`, `developer`, `user`, `assistant` or `tool`");
        return None;
    };
    let mut message = Message { role, ..Message::default() };
    if role == "assistant" {
        message.tool_calls = tool_calls(fields, at, item.get("tool_calls"), calls);
    }
    if role == "tool" {
        match item.get("tool_call_id").and_then(Value::as_str).and_then(|id| Some((id, calls.get(id)?))) {
            Some((id, function)) => {
                (message.tool_call_id, message.name) = (Some(id.to_owned()), Some(function.clone()))
            }
            None => wrong(".tool_call_id", "must be the `id` of a call in an earlier message"),
        }
    }
    let value = item.get("content").filter(|value| !value.is_null());
    match content(value) {
        Some(content) => message.content = content,
        // An assistant may call without a word.
        None if value.is_none() && item.get("tool_calls").is_some_and(Value::is_array) => {}
        None => wrong(".content", "must be a string, or a list of parts of type `text`"),
    }
    Some(message)
}

fn content(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let text = |part: &Value| match part.get("type")?.as_str()? {
                "text" => part.get("text")?.as_str().map(str::to_owned),
                _ => None,
            };
            parts.iter().map(text).collect()
        }
        _ => None,
    }
}

/// The calls of an assistant's message.
fn tool_calls(fields: &Fields, at: &str, value: Option<&Value>, calls: &mut Calls) -> Vec<ToolCall> {
    let list = match value {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(list)) if list.len() <= MAX_CALLS => list,
        Some(_) => {
            fields.wrong(&format!("{at}.tool_calls"), format!("must be a list of at most {MAX_CALLS} calls"), None);
            return Vec::new();
        }
    };
    let one = |(number, item): (usize, &Value)| {
        let call = tool_call(item);
        let known = call.map_err(|(place, problem)| {
            fields.wrong(&format!("{at}.tool_calls[{number}]{place}"), problem, None);
        });
        let call = known.ok()?;
        calls.insert(call.id.clone(), call.function.name.clone());
        Some(call)
    };
    list.iter().enumerate().filter_map(one).collect()
}

/// A call, or where in it and what is wrong.
fn tool_call(item: &Value) -> Result<ToolCall, (String, &'static str)> {
    let wrong = |place: &str, problem| (place.to_owned(), problem);
    let unknown = |place: &str, map: &Map<String, Value>, known: &[&str]| match other(map, known) {
        Some(key) => Err((format!("{place}.{key}"), "is not a known field")),
        None => Ok(()),
    };
    let call = item.as_object().ok_or_else(|| wrong("", "must be an object"))?;
    unknown("", call, &["id", "type", "function", "index"])?;
    let id = call.get("id").and_then(Value::as_str).filter(|id| !id.is_empty() && id.len() <= MAX_ID);
    let id = id.ok_or_else(|| wrong(".id", "must have 1 to 128 bytes"))?;
    if call.get("type").is_none_or(|value| value != "function") {
        return Err(wrong(".type", "must be `function`"));
    }
    let function = call.get("function").and_then(Value::as_object);
    let function = function.ok_or_else(|| wrong(".function", "must be an object"))?;
    unknown(".function", function, &["name", "arguments"])?;
    let name = name(function).ok_or_else(|| wrong(".function.name", WRONG_NAME))?;
    // Some clients send nothing for no arguments.
    let text = match function.get("arguments").and_then(Value::as_str).map(str::trim) {
        Some("") => Some("{}"),
        None if function.get("arguments").is_some_and(Value::is_null) => Some("{}"),
        text => text.filter(|text| text.starts_with('{')),
    };
    let arguments = text.and_then(|text| serde_json::from_str::<Box<RawValue>>(text).ok());
    let arguments = arguments.ok_or_else(|| wrong(".function.arguments", "must be a JSON object as a string"))?;
    let function = CalledFunction { name: name.to_owned(), arguments };
    Ok(ToolCall { id: id.to_owned(), r#type: "function", function })
}
