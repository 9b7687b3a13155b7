//! `/v1/generate` and `/v1/stream`: the project's own interface.

use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_inference::engine::{Done, Token};

use super::completions::Usage;
use super::sampling::{self, ChatLogprob, ChatLogprobs};
use super::streaming::{self, Moment};
use super::structure::{self, Structure};
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::http::{AnswerMemory, Call, Fields, HeldMemory};
use crate::models::{Kind, Ready};
use crate::work::{self, GenerationParameters, Prompt, Running, finish_reason};

/// Tokens of an answer whose request names no number.
const MAX_TOKENS: usize = 256;

/// Sharper than the raw distribution: small models ramble at 1.
const TEMPERATURE: f64 = 0.8;

/// One answer, whole or as a stream.
pub(super) async fn generate(call: Call) -> Result<Response, ApiError> {
    posted(call, Form::Whole).await
}

/// One answer as a stream.
pub(super) async fn stream(call: Call) -> Result<Response, ApiError> {
    posted(call, Form::Stream).await
}

async fn posted(mut call: Call, form: Form) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let fields = call.fields().await?;
    let wanted = read(&fields, &call.app, form)?;
    let memory = fields.into_memory();
    answer(call, caller, wanted, memory).await
}

/// The requested response format.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// In one piece, unless `stream` is true.
    Whole,
    /// As events.
    Stream,
}

/// A parsed request.
pub(super) struct Wanted {
    model: Option<String>,
    parameters: GenerationParameters,
    structure: Option<Structure>,
    streamed: bool,
}

/// Parses and validates a request.
pub(super) fn read(fields: &Fields, app: &App, form: Form) -> Result<Wanted, ApiError> {
    let always_stream = form == Form::Stream;
    let prompt = fields.needed("prompt", fields.text("prompt").map(str::to_owned)).unwrap_or_default();
    let model = fields.text("model").map(str::to_owned);
    let logprobs = fields.integer("logprobs", 0..=20).map(|n| n as u8);
    let streamed = fields.flag("stream").unwrap_or(always_stream);
    if always_stream && !streamed {
        fields.wrong("stream", "is false", Some("POST /v1/generate does not stream; use POST /v1/stream"));
    }
    let parameters = GenerationParameters {
        prompt: Prompt::Text(prompt),
        max_tokens: Some(
            sampling::max_tokens(fields, "max_tokens", app).unwrap_or(MAX_TOKENS.min(app.config.api.max_tokens)),
        ),
        sampling: sampling::sampling(fields, TEMPERATURE),
        stop: sampling::stops(fields),
        guide: None,
        logprobs,
        ignore_end: fields.flag("ignore_end").unwrap_or(false),
        again: false,
    };
    let structure = structure::structure(fields);
    sampling::neutral(fields);
    fields.only("n", &[json!(1)], "POST /v1/completions and /v1/chat/completions give several answers");
    fields.finish()?;
    if !streamed {
        sampling::whole_tokens(app, 1, parameters.max_tokens, logprobs, "logprobs")?;
    }
    Ok(Wanted { model, parameters, structure, streamed })
}

/// Answers a request that was read, with the memory of its body.
pub(super) async fn answer(
    call: Call,
    caller: Caller,
    wanted: Wanted,
    memory: Option<HeldMemory>,
) -> Result<Response, ApiError> {
    let Wanted { model, mut parameters, structure, streamed } = wanted;
    let logprobs = parameters.logprobs;
    let model = call.model_name(&caller, model);
    let model = call.model_of(&caller, Kind::Generation, model.as_deref()).await?;
    sampling::check_biases(&parameters.sampling, &model)?;
    work::check_prompt(&model, &parameters.prompt)?;
    parameters.guide = structure::guide(&call, &model, structure, 1).await?;
    let tokens = parameters.max_tokens.unwrap_or(MAX_TOKENS).min(model.info.context);
    let bytes = if streamed { 0 } else { sampling::whole_bytes(tokens, logprobs) };
    let answer_memory = AnswerMemory::hold(&call.app, &call.record, bytes).await?;
    let mut running = work::start(&call.app, &call.record, &caller, model, parameters).await?;
    // The prompt is tokens now.
    drop(memory);
    let head = Head {
        id: format!("gen-{}", call.record.id),
        created: super::now(),
        model: running.model.info.name.clone(),
        seed: running.seed.cast_signed(),
    };
    if streamed {
        return stream_events(running, head, logprobs.is_some()).await;
    }
    let answer = work::collect(&mut running, logprobs.is_some()).await?;
    let model = running.model.clone();
    let length = logprobs.map_or(0, |top| answer.tokens.len() * (usize::from(top) + 1));
    let write = move || {
        answer_memory.json(&Generation {
            id: &head.id,
            object: "generation",
            created: head.created,
            model: &head.model,
            text: &answer.text,
            finish_reason: finish_reason(answer.done.finish),
            usage: usage(&answer.done),
            seed: head.seed,
            timing: timing(&answer.done),
            logprobs: logprobs.map(|_| ChatLogprobs(&model, &answer.tokens)),
        })
    };
    work::process(&call.app, &call.record, length, write).await??.respond().await
}

/// A whole answer.
#[derive(Serialize)]
struct Generation<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    text: &'a str,
    finish_reason: &'static str,
    usage: Value,
    seed: i64,
    timing: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<ChatLogprobs<'a>>,
}

struct Head {
    id: String,
    created: u64,
    model: String,
    seed: i64,
}

async fn stream_events(running: Running, head: Head, logprobs: bool) -> Result<Response, ApiError> {
    let render = move |event: Moment<'_>| match event {
        Moment::Begin => streaming::named(
            "start",
            &json!({ "id": head.id, "object": "generation", "created": head.created, "model": head.model, "seed": head.seed }),
        ),
        Moment::Token(model, token) => piece(model, token, logprobs),
        Moment::Done(done) => {
            let mut data = String::new();
            if !done.text.is_empty() {
                data = streaming::named("token", &json!({ "text": done.text }));
            }
            data + &streaming::named(
                "done",
                &json!({ "finish_reason": finish_reason(done.finish), "usage": usage(done), "timing": timing(done) }),
            )
        }
        Moment::Failed(error) => streaming::named("error", &error.body()),
    };
    streaming::respond(running, render).await
}

fn piece(model: &Ready, token: &Token, logprobs: bool) -> String {
    if logprobs {
        let shown = json!({ "text": token.text, "logprobs": ChatLogprob(model, token) });
        return streaming::named("token", &shown);
    }
    if token.text.is_empty() { String::new() } else { streaming::named("token", &json!({ "text": token.text })) }
}

/// Token usage in OpenAI's format.
fn usage(done: &Done) -> Value {
    let mut usage = Usage::default();
    usage.add(true, done);
    usage.shown()
}

fn timing(done: &Done) -> Value {
    let round = |ms: f64| (ms * 100.0).round() / 100.0;
    let decoding = done.total_ms - done.first_token_ms;
    let pace = if done.generated_tokens > 1 && decoding > 0.0 {
        (done.generated_tokens - 1) as f64 * 1000.0 / decoding
    } else {
        0.0
    };
    json!({
        "queued_ms": round(done.queued_ms),
        "first_token_ms": round(done.first_token_ms),
        "total_ms": round(done.total_ms),
        "tokens_per_second": round(pace),
    })
}
