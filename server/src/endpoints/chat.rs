//! `/v1/chat/completions` of OpenAI's API, for models with a chat template.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::completions::include_usage;
use super::generate::usage;
use super::sampling::{self, chat_logprob};
use super::streaming::{self, Moment};
use crate::app::App;
use crate::chat::Message;
use crate::error::ApiError;
use crate::http::{Call, Fields};
use crate::models::Ready;
use crate::work::{self, GenerationParameters, Prompt, finish_reason};

/// The maximum number of messages of one conversation.
const MAX_MESSAGES: usize = 2048;

pub(super) async fn chat(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let fields = call.fields().await?;
    let messages = fields.needed("messages", messages(&fields)).unwrap_or_default();
    let model = fields.text("model").map(str::to_owned);
    let logprobs = logprobs(&fields);
    let streamed = fields.flag("stream").unwrap_or(false);
    let with_usage = include_usage(&fields, streamed);
    let max_tokens = max_tokens(&fields, &call.app);
    let sampling = sampling::sampling(&fields, 1.0);
    let stop = sampling::stops(&fields);
    let ignore_end = fields.flag("ignore_eos").unwrap_or(false);
    unsupported(&fields);
    fields.finish()?;
    drop(fields);
    let model = call.model(model.as_deref()).await?;
    // Templates copy texts: they are bounded before.
    work::check_length(&model, "messages", messages.iter().map(|message| message.content.len()).sum())?;
    let prompt = Prompt::Rendered(render(&model, &messages)?);
    drop(messages);
    let parameters = GenerationParameters { prompt, max_tokens, sampling, stop, logprobs, ignore_end };
    let mut running = work::start(&call.app, &call.record, &caller, model, parameters).await.map_err(|error| {
        // The prompt of a chat is its messages.
        if error.param.as_deref() == Some("prompt") { error.param("messages") } else { error }
    })?;
    let (id, created, name) = (format!("chatcmpl-{}", call.record.id), super::now(), running.model.info.name.clone());
    let shape = move |object: &str, choices: Value| {
        json!({
            "id": id,
            "object": object,
            "created": created,
            "model": name,
            "system_fingerprint": concat!("textnlp-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    };
    if !streamed {
        let answer = work::collect(&mut running, logprobs.is_some()).await?;
        let shown = match logprobs {
            Some(_) => {
                json!({ "content": answer.tokens.iter().map(|t| chat_logprob(&running.model, t)).collect::<Vec<_>>(), "refusal": null })
            }
            None => Value::Null,
        };
        let mut body = shape(
            "chat.completion",
            json!([{
                "index": 0,
                "message": { "role": "assistant", "content": answer.text, "refusal": null },
                "logprobs": shown,
                "finish_reason": finish_reason(answer.done.finish),
            }]),
        );
        body["usage"] = usage(&answer.done);
        return Ok(Json(body).into_response());
    }
    let chunk = move |delta: Value, shown: Value, finish: Option<&str>| {
        let mut chunk = shape(
            "chat.completion.chunk",
            json!([{ "index": 0, "delta": delta, "logprobs": shown, "finish_reason": finish }]),
        );
        if with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    let write_event = move |event: Moment<'_>| match event {
        Moment::Begin => streaming::data(&chunk(json!({ "role": "assistant", "content": "" }), Value::Null, None)),
        Moment::Token(_, token) if token.text.is_empty() && logprobs.is_none() => String::new(),
        Moment::Token(model, token) => {
            let shown =
                logprobs.map_or(Value::Null, |_| json!({ "content": [chat_logprob(model, token)], "refusal": null }));
            streaming::data(&chunk(json!({ "content": token.text }), shown, None))
        }
        Moment::Done(done) => {
            let mut frames = String::new();
            if !done.text.is_empty() {
                frames = streaming::data(&chunk(json!({ "content": done.text }), Value::Null, None));
            }
            frames += &streaming::data(&chunk(json!({}), Value::Null, Some(finish_reason(done.finish))));
            if with_usage {
                let mut total = chunk(json!({}), Value::Null, None);
                total["choices"] = json!([]);
                total["usage"] = usage(done);
                frames += &streaming::data(&total);
            }
            frames + streaming::END
        }
        Moment::Failed(error) => streaming::data(&error.body()) + streaming::END,
    };
    streaming::respond(running, write_event).await
}

fn render(model: &Ready, messages: &[Message]) -> Result<String, ApiError> {
    let Some(template) = &model.chat else {
        let why = match &model.chat_problem {
            Some(problem) => format!("model `{}` has a chat template that cannot be read: {problem}", model.info.name),
            None => format!("model `{}` has no chat template: it only completes text", model.info.name),
        };
        return Err(ApiError::invalid(why).param("model").hint("use POST /v1/completions"));
    };
    template.render(messages).map_err(|error| {
        let reason = error.detail().map_or_else(|| error.to_string(), str::to_owned);
        ApiError::invalid(format!("the model's chat template refuses these messages: {reason}")).param("messages")
    })
}

fn messages(fields: &Fields) -> Option<Vec<Message>> {
    let list = match fields.get("messages")? {
        Value::Array(list) if list.is_empty() => {
            fields.wrong("messages", "is empty", None);
            return None;
        }
        Value::Array(list) if list.len() > MAX_MESSAGES => {
            fields.wrong("messages", format!("has more than {MAX_MESSAGES} entries"), None);
            return None;
        }
        Value::Array(list) => list,
        _ => {
            fields.wrong("messages", "must be a list", None);
            return None;
        }
    };
    let mut messages = Vec::with_capacity(list.len());
    for (number, item) in list.iter().enumerate() {
        let at = format!("messages[{number}]");
        let Some(item) = item.as_object() else {
            fields.wrong(&at, "must be an object", None);
            continue;
        };
        if let Some(other) = item.keys().find(|key| !matches!(key.as_str(), "role" | "content" | "name" | "refusal")) {
            let shown: String = other.chars().take(64).collect();
            fields.wrong(&format!("{at}.{shown}"), "is not supported here", Some("messages have `role` and `content`"));
        }
        let role = match item.get("role").and_then(Value::as_str) {
            Some("developer") => "system",
            Some(role @ ("system" | "user" | "assistant")) => role,
            _ => {
                fields.wrong(&format!("{at}.role"), "must be `system`, `developer`, `user` or `assistant`", None);
                continue;
            }
        };
        match content(item.get("content")) {
            Some(content) => messages.push(Message { role: role.to_owned(), content }),
            None => fields.wrong(&format!("{at}.content"), "must be a string, or a list of parts of type `text`", None),
        }
    }
    Some(messages)
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

fn logprobs(fields: &Fields) -> Option<u8> {
    let wanted = fields.flag("logprobs").unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20);
    if top.is_some() && !wanted {
        fields.wrong("top_logprobs", "needs `logprobs: true`", None);
    }
    wanted.then_some(top.unwrap_or(0) as u8)
}

fn max_tokens(fields: &Fields, app: &App) -> Option<usize> {
    let old = sampling::max_tokens(fields, "max_tokens", app);
    let new = sampling::max_tokens(fields, "max_completion_tokens", app);
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        fields.wrong("max_tokens", "differs from `max_completion_tokens`", Some("send one of them"));
    }
    new.or(old)
}

fn unsupported(fields: &Fields) {
    sampling::neutral(fields);
    fields.only("response_format", &[json!({ "type": "text" })], "only plain text is supported");
    fields.only("modalities", &[json!(["text"])], "only plain text is supported");
    fields.only("service_tier", &[json!("auto"), json!("default")], "only one service tier is supported");
    fields.only("tools", &[json!([])], "these models do not support tools");
    fields.only("tool_choice", &[json!("none"), json!("auto")], "these models do not support tools");
    fields.only("parallel_tool_calls", &[json!(true), json!(false)], "these models do not support tools");
    fields.only("functions", &[json!([])], "these models do not support functions");
    fields.only("function_call", &[json!("none"), json!("auto")], "these models do not support functions");
    fields.refuse(&["audio", "prediction", "web_search_options"], "only plain text is supported");
    fields.refuse(&["reasoning_effort", "verbosity"], "these models do not support reasoning");
}
