//! `/v1/chat/completions` of OpenAI's API, for models with a chat template.

use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_inference::engine::{Finish, Token};

use super::calls::{Piece, Reader, Reply, ToolCall};
use super::completions::{Completion, Usage, include_usage};
use super::messages::messages;
use super::sampling::{self, ChatLogprobs};
use super::streaming::{self, Moment};
use super::{structure, tools};
use crate::app::App;
use crate::auth::Caller;
use crate::chat::{ChatTemplate, Conversation, Message};
use crate::error::ApiError;
use crate::http::{AnswerMemory, Call, Fields};
use crate::models::{Kind, Ready};
use crate::work::{self, GenerationParameters, Prompt, finish_reason};

pub(super) async fn chat(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let fields = call.fields().await?;
    answer(&call, &caller, fields).await
}

/// The answer to a body for an authorized caller.
pub(super) async fn answer(call: &Call, caller: &Caller, fields: Fields) -> Result<Response, ApiError> {
    let messages = fields.needed("messages", messages(&fields)).unwrap_or_default();
    let tools = tools::tools(&fields);
    let model = fields.text("model").map(str::to_owned);
    let logprobs = logprobs(&fields);
    let streamed = fields.flag("stream").unwrap_or(false);
    let with_usage = include_usage(&fields, streamed);
    let max_tokens = max_tokens(&fields, &call.app);
    let sampling = sampling::sampling(&fields, 1.0);
    let mut stop = sampling::stops(&fields);
    let ignore_end = fields.flag("ignore_eos").unwrap_or(false);
    let count = sampling::answers(&fields, 1);
    let structure = structure::structure(&fields);
    unsupported(&fields);
    fields.finish()?;
    let memory = fields.into_memory();
    let whole = match streamed {
        true => None,
        false => Some(sampling::whole_tokens(&call.app, count, max_tokens, logprobs, "top_logprobs")?),
    };
    let max_tokens = whole.or(max_tokens);
    let model = call.model_name(caller, model);
    let model = call.model_of(caller, Kind::Generation, model.as_deref()).await?;
    sampling::check_biases(&sampling, &model)?;
    work::check_length(&model, "messages", messages.iter().map(Message::length).sum())?;
    let template = template(&model)?;
    tools::check(&model.info.name, template, &messages, tools.as_ref())?;
    let structure = structure.or_else(|| tools.as_ref()?.structure(template));
    stop.extend(tools.as_ref().and_then(|tools| tools.stop(template)));
    let reader = tools.as_ref().map_or_else(Reader::text, |tools| tools.reader(template));
    let guide = structure::guide(call, &model, structure, count).await?;
    let conversation = Conversation { messages: &messages, tools: tools.as_ref().map(|tools| tools.list.as_slice()) };
    let prompt = Prompt::Rendered(template.render(&call.record, &conversation).await?);
    let has_tools = tools.is_some();
    drop((messages, tools));
    // A call is held until it is whole, in streams too.
    let held = whole.or_else(|| has_tools.then(|| max_tokens.unwrap_or(call.app.config.api.max_tokens)));
    let bytes = held.map_or(0, |each| sampling::whole_bytes(count * each.min(model.info.context), logprobs));
    let answer_memory = AnswerMemory::hold(&call.app, &call.record, bytes).await?;
    let parameters =
        GenerationParameters { prompt, max_tokens, sampling, stop, guide, logprobs, ignore_end, again: false };
    let started =
        work::start_several(&call.app, &call.record, caller, &model, parameters, count, sampling::of_answer).await;
    // The prompt of a chat is its messages, and the schema of an answer that must be a call is that of tools.
    let placed = move |error: ApiError| match error.param.as_deref() {
        Some("prompt") => error.param("messages"),
        Some("response_format") if has_tools => error.param("tools"),
        _ => error,
    };
    let mut running = started.map_err(placed)?;
    // The prompt is tokens now.
    drop(memory);
    let (id, created, name) = (format!("chatcmpl-{}", call.record.id), super::now(), model.info.name.clone());
    let mut total = Usage::default();
    if !streamed {
        let answers = work::collect_all(&mut running, logprobs.is_some()).await.map_err(placed)?;
        for (place, answer) in answers.iter().enumerate() {
            total.add(place == 0, &answer.done);
        }
        let length = logprobs.map_or(0, |top| total.generated() * (usize::from(top) + 1));
        let write = move || {
            let replies: Vec<Reply> = answers.iter().map(|answer| Reply::read(reader.clone(), &answer.text)).collect();
            let choices = answers.iter().zip(&replies).enumerate().map(|(index, (answer, reply))| Choice {
                index,
                message: ResponseMessage {
                    role: "assistant",
                    content: (reply.calls.is_empty() || !reply.text.is_empty()).then_some(reply.text.as_str()),
                    refusal: None,
                    tool_calls: &reply.calls,
                },
                logprobs: logprobs.map(|_| Logprobs { content: ChatLogprobs(&model, &answer.tokens), refusal: None }),
                finish_reason: reason(answer.done.finish, reply.has_calls),
            });
            answer_memory.json(&Completion {
                id: &id,
                object: "chat.completion",
                created,
                model: &name,
                system_fingerprint: FINGERPRINT,
                choices: choices.collect(),
                usage: Some(total.shown()),
            })
        };
        return work::process(&call.app, &call.record, length, write).await??.respond().await;
    }
    let chunk = move |choices: Vec<Value>, usage: Option<Value>| {
        streaming::data(&json!(Completion {
            id: &id,
            object: "chat.completion.chunk",
            created,
            model: &name,
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
        }))
    };
    let mut readers = vec![reader; count];
    let mut ended = 0;
    let write_event = move |place: usize, event: Moment<'_>| {
        let frame = |place: usize, delta: Value, logprobs: Value, finish: Option<&str>| {
            let choice = json!({ "index": place, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
            chunk(vec![choice], with_usage.then_some(Value::Null))
        };
        let written = |pieces: Vec<Piece>| -> String {
            pieces.into_iter().map(|piece| frame(place, piece.delta(), Value::Null, None)).collect()
        };
        match (event, readers.get_mut(place)) {
            (Moment::Begin, _) => {
                let begin = |place| frame(place, json!({ "role": "assistant", "content": "" }), Value::Null, None);
                (0..count).map(begin).collect()
            }
            (Moment::Token(model, token), Some(reader)) => match logprobs {
                Some(_) => frame(place, json!({ "content": token.text }), shown_logprobs(model, token), None),
                None => written(reader.push(&token.text)),
            },
            (Moment::Done(done), Some(reader)) => {
                // Held as long as what the readers hold.
                let _memory = &answer_memory;
                total.add(place == 0, done);
                ended += 1;
                let mut frames = written(reader.push(&done.text)) + &written(reader.finish());
                frames += &frame(place, json!({}), Value::Null, Some(reason(done.finish, reader.has_calls())));
                if ended < count {
                    return frames;
                }
                if with_usage {
                    frames += &chunk(Vec::new(), Some(total.shown()));
                }
                frames + streaming::END
            }
            (Moment::Failed(error), _) => streaming::data(&placed(error).body()) + streaming::END,
            (Moment::Token(..) | Moment::Done(_), None) => String::new(),
        }
    };
    streaming::respond_all(running, write_event).await
}

/// Why an answer ended, in OpenAI's terms.
fn reason(finish: Finish, has_calls: bool) -> &'static str {
    if finish == Finish::Stop && has_calls { "tool_calls" } else { finish_reason(finish) }
}

pub(super) const FINGERPRINT: &str = concat!("textnlp-", env!("CARGO_PKG_VERSION"));

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: ResponseMessage<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct ResponseMessage<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: &'a [ToolCall],
}

#[derive(Serialize)]
struct Logprobs<'a> {
    content: ChatLogprobs<'a>,
    refusal: Option<()>,
}

/// The log-probabilities of one token.
fn shown_logprobs(model: &Ready, token: &Token) -> Value {
    json!({ "content": ChatLogprobs(model, std::slice::from_ref(token)), "refusal": null })
}

fn template(model: &Ready) -> Result<&ChatTemplate, ApiError> {
    model.chat.as_ref().ok_or_else(|| {
        let why = match &model.chat_problem {
            Some(problem) => format!("model `{}` has a chat template that cannot be read: {problem}", model.info.name),
            None => format!("model `{}` has no chat template: it only completes text", model.info.name),
        };
        ApiError::invalid(why).param("model").hint("use POST /v1/completions")
    })
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
    fields.only("modalities", &[json!(["text"])], "only plain text is supported");
    fields.only("service_tier", &[json!("auto"), json!("default")], "only one service tier is supported");
    fields.only("functions", &[json!([])], "use `tools`");
    fields.only("function_call", &[json!("none"), json!("auto")], "use `tool_choice`");
    fields.refuse(&["audio", "prediction", "web_search_options"], "only plain text is supported");
    fields.refuse(&["reasoning_effort", "verbosity"], "these models do not support reasoning");
}
