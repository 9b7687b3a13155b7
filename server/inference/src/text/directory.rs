//! What the files beside `tokenizer.json` say: first and last tokens, the chat template.

use std::path::Path;

use serde_json::Value;

use super::{Extras, TextError, read};
use crate::json::{MAX_VALUES, check};

/// Files that are absent say nothing; files that cannot be read or are not JSON are errors.
pub(crate) fn extras(directory: &Path, id_of: &dyn Fn(&str) -> Option<u32>) -> Result<Extras, TextError> {
    let config = json(directory, "config.json")?;
    let generation = json(directory, "generation_config.json")?;
    let tokenizer = json(directory, "tokenizer_config.json")?;
    let named = |key: &str| piece(&tokenizer[key]).and_then(id_of);
    let first = |key: &str| ids(&generation[key]).chain(ids(&config[key])).next();

    // A chat model's turn ends with a token that only one of the three files may name.
    let mut end: Vec<u32> = named("eos_token")
        .into_iter()
        .chain(ids(&generation["eos_token_id"]))
        .chain(ids(&config["eos_token_id"]))
        .collect();
    let mut unique = Vec::new();
    end.retain(|id| {
        !unique.contains(id) && {
            unique.push(*id);
            true
        }
    });

    let chat_template = match read(&directory.join("chat_template.jinja"))? {
        Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        None => template(&tokenizer["chat_template"]),
    };
    Ok(Extras {
        bos: named("bos_token").or_else(|| first("bos_token_id")),
        eos: named("eos_token").or_else(|| first("eos_token_id")),
        end,
        chat_template,
    })
}

fn json(directory: &Path, file: &str) -> Result<Value, TextError> {
    let Some(bytes) = read(&directory.join(file))? else { return Ok(Value::Null) };
    let read = check(&bytes, MAX_VALUES).and_then(|()| serde_json::from_slice(&bytes));
    read.map_err(|source| TextError::Json { file: file.to_owned(), source })
}

/// One id or a list of them.
fn ids(value: &Value) -> impl Iterator<Item = u32> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok())
}

/// A token is written as its text or as an object with a `content`.
fn piece(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A template is a text or a list of named ones, of which `default` counts, and `tool_use` for conversations with tools.
fn template(value: &Value) -> Option<String> {
    let named = |name: &str| value.as_array()?.iter().find(|t| t["name"] == name)?.get("template")?.as_str();
    value.as_str().map(str::to_owned).or_else(|| Some(with_tools(named("default")?, named("tool_use"))))
}

/// One template of that for all conversations and that for those with tools.
pub(crate) fn with_tools(default: &str, tools: Option<&str>) -> String {
    match tools {
        Some(tools) => format!("{{% if tools %}}{tools}{{% else %}}{default}{{% endif %}}"),
        None => default.to_owned(),
    }
}
