//! `/v1/generate` and `/v1/stream`: the project's own interface.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use textnlp_inference::engine::{Done, Token};

use super::sampling::{self, chat_logprob};
use super::streaming::{self, Moment};
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::http::{Call, Fields};
use crate::models::Ready;
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
    let wanted = read(&call.fields().await?, &call.app, form)?;
    answer(call, caller, wanted).await
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
        logprobs,
        ignore_end: fields.flag("ignore_end").unwrap_or(false),
    };
    sampling::neutral(fields);
    fields.finish()?;
    Ok(Wanted { model, parameters, streamed })
}

/// Answers a request that was read.
pub(super) async fn answer(call: Call, caller: Caller, wanted: Wanted) -> Result<Response, ApiError> {
    let Wanted { model, parameters, streamed } = wanted;
    let logprobs = parameters.logprobs;
    let model = call.model(model.as_deref()).await?;
    let mut running = work::start(&call.app, &call.record, &caller, model, parameters).await?;
    let head = Head {
        id: format!("gen-{}", call.record.id),
        created: super::now(),
        model: running.model.info.name.clone(),
        seed: running.seed,
    };
    if streamed {
        return stream_events(running, head, logprobs.is_some()).await;
    }
    let answer = work::collect(&mut running, logprobs.is_some()).await?;
    let mut body = json!({
        "id": head.id,
        "object": "generation",
        "created": head.created,
        "model": head.model,
        "text": answer.text,
        "finish_reason": finish_reason(answer.done.finish),
        "usage": usage(&answer.done),
        "seed": head.seed,
        "timing": timing(&answer.done),
    });
    if logprobs.is_some() {
        body["logprobs"] = answer.tokens.iter().map(|token| chat_logprob(&running.model, token)).collect();
    }
    Ok(Json(body).into_response())
}

struct Head {
    id: String,
    created: u64,
    model: String,
    seed: u64,
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
        let shown = json!({ "text": token.text, "logprobs": chat_logprob(model, token) });
        return streaming::named("token", &shown);
    }
    if token.text.is_empty() { String::new() } else { streaming::named("token", &json!({ "text": token.text })) }
}

/// Token usage in OpenAI's format.
pub(super) fn usage(done: &Done) -> Value {
    json!({
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.generated_tokens,
        "total_tokens": done.prompt_tokens + done.generated_tokens,
    })
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
