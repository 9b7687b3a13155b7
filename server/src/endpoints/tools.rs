//! `tools` and `tool_choice` of chats.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use textnlp_inference::guide::{call_schema, is_too_large};

use super::calls::Reader;
use super::structure::{Structure, WRONG_NAME, name, other};
use crate::chat::{ChatTemplate, Function, Message, Tool, ToolFormat, ToolSupport};
use crate::error::ApiError;
use crate::http::Fields;

/// OpenAI's limit.
const MAX_TOOLS: usize = 128;

/// The field of arguments where the template does not name one.
const ARGUMENTS: &str = "arguments";

/// The tools of a request that lets the model call them.
pub(super) struct Tools {
    pub(super) list: Vec<Tool>,
    choice: Choice,
    /// Whether an answer may have several calls.
    parallel: bool,
}

/// OpenAI's `tool_choice`.
enum Choice {
    None,
    /// The model decides.
    Auto,
    /// A call of any of them.
    Required,
    /// A call of this one.
    Function(String),
}

/// The tools of a request; none if it has none or forbids calls.
pub(super) fn tools(fields: &Fields) -> Option<Tools> {
    let list = list(fields);
    let choice = choice(fields, list.as_deref());
    let parallel = fields.flag("parallel_tool_calls");
    let list = list.filter(|list| !list.is_empty())?;
    let choice = match choice? {
        Choice::None => return None,
        choice => choice,
    };
    if parallel == Some(true) && !matches!(choice, Choice::Auto) {
        let hint = "an answer to this `tool_choice` is one call";
        fields.wrong("parallel_tool_calls", "must be false with this `tool_choice`", Some(hint));
    }
    if fields.get("response_format").is_some_and(|format| format["type"] != "text") {
        let hint = "send `tool_choice: \"none\"`, or describe the format as a function";
        fields.wrong("response_format", "cannot be combined with calls of tools", Some(hint));
    }
    if fields.get("logprobs") == Some(&json!(true)) {
        fields.wrong("logprobs", "is not supported with tools", Some("send `tool_choice: \"none\"`"));
    }
    Some(Tools { list, choice, parallel: parallel.unwrap_or(true) })
}

fn list(fields: &Fields) -> Option<Vec<Tool>> {
    let value = fields.get("tools")?;
    let wrong = |problem: &str| {
        fields.wrong("tools", problem, None);
        None
    };
    let Value::Array(list) = value else { return wrong("must be a list") };
    if list.len() > MAX_TOOLS {
        return wrong(&format!("has {} entries; it may have {MAX_TOOLS}", list.len()));
    }
    // The memory of the body is counted until its fields are dropped, that of the copy is not.
    if is_too_large(value) {
        return wrong("has more than 128 KiB");
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(list.len());
    for (number, item) in list.iter().enumerate() {
        let at = format!("tools[{number}]");
        let Some(function) = function(fields, &at, item) else { continue };
        if tools.iter().any(|known| known.function.name == function.name) {
            fields.wrong(&format!("{at}.function.name"), "is the name of an earlier tool", None);
        }
        tools.push(Tool { r#type: "function", function });
    }
    (tools.len() == list.len()).then_some(tools)
}

/// Notes all mistakes of a tool.
fn function(fields: &Fields, at: &str, item: &Value) -> Option<Function> {
    let hint = Some("{\"type\": \"function\", \"function\": {\"name\": …, \"parameters\": …}}");
    let wrong = |place: &str, problem: &str| fields.wrong(&format!("{at}{place}"), problem, hint);
    let Some(tool) = item.as_object() else {
        wrong("", "must be an object");
        return None;
    };
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        wrong(".type", "must be `function`");
        return None;
    }
    if let Some(key) = other(tool, &["type", "function"]) {
        wrong(&format!(".{key}"), "is not a known field");
    }
    let Some(inner) = tool.get("function").and_then(Value::as_object) else {
        wrong(".function", "must be an object");
        return None;
    };
    if let Some(key) = other(inner, &["name", "description", "parameters", "strict"]) {
        wrong(&format!(".function.{key}"), "is not a known field");
    }
    let present = |key: &str| inner.get(key).filter(|value| !value.is_null());
    if !present("strict").is_none_or(Value::is_boolean) {
        wrong(".function.strict", "must be true or false");
    }
    let description = present("description");
    if !description.is_none_or(Value::is_string) {
        wrong(".function.description", "must be a text");
    }
    let parameters = present("parameters");
    if !parameters.is_none_or(|schema| schema["type"] == "object") {
        wrong(".function.parameters", "must be a schema with `\"type\": \"object\"`");
    }
    let Some(name) = name(inner) else {
        wrong(".function.name", WRONG_NAME);
        return None;
    };
    Some(Function {
        name: name.to_owned(),
        description: description.and_then(Value::as_str).map(str::to_owned),
        parameters: parameters.cloned().unwrap_or_else(Function::no_parameters),
    })
}

/// `None` after a mistake. Without a list, tools are unknown: they are not there, or have mistakes.
fn choice(fields: &Fields, list: Option<&[Tool]>) -> Option<Choice> {
    let wrong = |place: &str, problem: &str| {
        let hint = "\"auto\", \"none\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}";
        fields.wrong(&format!("tool_choice{place}"), problem, Some(hint));
        None
    };
    let choice = match fields.get("tool_choice") {
        None => return Some(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Some(Choice::None),
            "auto" => return Some(Choice::Auto),
            "required" => Choice::Required,
            _ => return wrong("", "is not a known choice"),
        },
        Some(Value::Object(map)) => match named(map) {
            Some(name) => Choice::Function(name),
            None => return wrong("", "names no function"),
        },
        Some(_) => return wrong("", "must be a text or an object"),
    };
    match (&choice, list) {
        _ if list.is_some_and(<[_]>::is_empty) || fields.get("tools").is_none() => wrong("", "needs `tools`"),
        (Choice::Function(name), Some(list)) if !list.iter().any(|tool| tool.function.name == *name) => {
            wrong(".function.name", "is not the name of a tool")
        }
        _ => Some(choice),
    }
}

fn named(map: &Map<String, Value>) -> Option<String> {
    let function = map.get("function")?.as_object()?;
    let known = map.get("type")? == "function" && other(map, &["type", "function"]).is_none();
    (known && other(function, &["name"]).is_none()).then(|| name(function).map(str::to_owned))?
}

impl Tools {
    /// What the answer to a model with this template must be, unless the model decides.
    pub(super) fn structure(&self, template: &ChatTemplate) -> Option<Structure> {
        let chosen = |tool: &Tool| match &self.choice {
            Choice::None | Choice::Auto => false,
            Choice::Required => true,
            Choice::Function(name) => tool.function.name == *name,
        };
        let chosen: Vec<(usize, &Tool)> = self.list.iter().enumerate().filter(|&(_, tool)| chosen(tool)).collect();
        if chosen.is_empty() {
            return None;
        }
        let arguments = template.tools.format().map_or(ARGUMENTS, |format| format.arguments);
        let schemas = chosen.iter().map(|(_, tool)| (tool.function.name.as_str(), &tool.function.parameters));
        let schema = call_schema(arguments, schemas);
        let part = |(number, tool): (usize, &Tool)| {
            (format!("tools[{number}].function.parameters"), tool.function.parameters.clone())
        };
        Some(Structure { schema, param: "tools", parts: chosen.into_iter().map(part).collect() })
    }

    /// What ends an answer that may have one call only.
    pub(super) fn stop(&self, template: &ChatTemplate) -> Option<String> {
        let tags = self.format(template)?.tags?;
        (!self.parallel).then(|| tags.1.to_owned())
    }

    /// Finds the calls in an answer.
    pub(super) fn reader(&self, template: &ChatTemplate) -> Reader {
        match self.format(template) {
            None => Reader::guided(),
            Some(format) => Reader::of(format, self.list.iter().map(|tool| tool.function.name.clone()).collect()),
        }
    }

    /// The format in which the model may write calls; none where the answer is a call in any case.
    fn format(&self, template: &ChatTemplate) -> Option<&'static ToolFormat> {
        template.tools.format().filter(|_| matches!(self.choice, Choice::Auto))
    }
}

/// Refuses what a model cannot do with tools: 422.
pub(super) fn check(
    model: &str,
    template: &ChatTemplate,
    messages: &[Message],
    tools: Option<&Tools>,
) -> Result<(), ApiError> {
    let refused = |param: String, problem: &str, hint: &str| {
        let message = format!("`{param}`: the chat template of model `{model}` {problem}");
        let error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "tools_not_supported", message);
        Err(error.param(param).hint(hint))
    };
    let of_tools = |message: &Message| message.role == "tool" || !message.tool_calls.is_empty();
    if template.tools == ToolSupport::None
        && let Some(number) = messages.iter().position(of_tools)
    {
        let hint = "send the call and its result as texts, or use a model whose template has `tools`";
        return refused(format!("messages[{number}]"), "shows the model neither calls nor their results", hint);
    }
    if tools.is_some_and(|tools| matches!(tools.choice, Choice::Auto)) && template.tools.format().is_none() {
        let problem = match template.tools {
            ToolSupport::None => "does not show tools to the model",
            _ => "has calls in a format that is not known",
        };
        let hint =
            "send `tool_choice: \"required\"` or a function, or use a model with calls of Hermes, Qwen or Llama 3";
        return refused("tools".to_owned(), problem, hint);
    }
    Ok(())
}
