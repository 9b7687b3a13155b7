//! `/v1/completions`, as OpenAI has it.

use std::cell::Cell;

use axum::response::Response;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use textnlp_inference::engine::{Done, Token};

use super::chat::FINGERPRINT;
use super::sampling::{self, finite, spelled};
use super::streaming::{self, Moment};
use super::structure::{self, other};
use crate::auth::Caller;
use crate::error::ApiError;
use crate::http::{AnswerMemory, Call, Fields};
use crate::models::{Kind, Ready};
use crate::work::{self, GenerationParameters, Prompt, finish_reason};

/// OpenAI's default.
const MAX_TOKENS: usize = 16;

/// Maximum prompts per request.
const MAX_PROMPTS: usize = sampling::MAX_ANSWERS;

pub(super) async fn completions(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let fields = call.fields().await?;
    answer(&call, &caller, fields).await
}

/// The answer to a body for an authorized caller.
pub(super) async fn answer(call: &Call, caller: &Caller, fields: Fields) -> Result<Response, ApiError> {
    let prompts = fields.needed("prompt", prompts(&fields)).unwrap_or_default();
    let model = fields.text("model").map(str::to_owned);
    let logprobs = fields.integer("logprobs", 0..=5).map(|n| n as u8);
    let streamed = fields.flag("stream").unwrap_or(false);
    let with_usage = include_usage(&fields, streamed);
    let max_tokens = sampling::max_tokens(&fields, "max_tokens", &call.app).unwrap_or(MAX_TOKENS);
    let mut ask = GenerationParameters {
        prompt: Prompt::Tokens(Vec::new()),
        max_tokens: Some(max_tokens),
        sampling: sampling::sampling(&fields, 1.0),
        stop: sampling::stops(&fields),
        guide: None,
        logprobs,
        ignore_end: fields.flag("ignore_eos").unwrap_or(false),
        again: false,
    };
    let structure = structure::structure(&fields);
    let each = sampling::answers(&fields, prompts.len());
    sampling::neutral(&fields);
    fields.only("best_of", &[json!(1), json!(each)], "every completion that is generated is in the answer");
    fields.only("echo", &[json!(false)], "the answer does not repeat the prompt");
    fields.only("suffix", &[json!("")], "these models do not support insertion");
    fields.finish()?;
    let memory = fields.into_memory();
    let several = prompts.len();
    if !streamed {
        sampling::whole_tokens(&call.app, several * each, Some(max_tokens), logprobs, "logprobs")?;
    }
    let model = call.model_name(caller, model);
    let model = call.model_of(caller, Kind::Generation, model.as_deref()).await?;
    sampling::check_biases(&ask.sampling, &model)?;
    for (place, prompt) in prompts.iter().enumerate() {
        work::check_prompt(&model, prompt).map_err(|error| placed(error, place, several))?;
    }
    ask.guide = structure::guide(call, &model, structure, several * each).await?;
    let tokens = if streamed { 0 } else { several * each * max_tokens.min(model.info.context) };
    let bytes = sampling::whole_bytes(tokens, logprobs);
    let answer_memory = AnswerMemory::hold(&call.app, &call.record, bytes).await?;
    let mut running = Vec::with_capacity(several * each);
    let mut all = Some(ask);
    for (place, prompt) in prompts.into_iter().enumerate() {
        // A guide is large: the last prompt takes it.
        let next = if place + 1 < several { all.clone() } else { all.take() };
        let Some(next) = next else { break };
        let ask = GenerationParameters { prompt, ..next };
        let started =
            work::start_several(&call.app, &call.record, caller, &model, ask, each, sampling::of_answer).await;
        running.extend(started.map_err(|error| placed(error, place, several))?);
    }
    // The prompts are tokens now.
    drop(memory);
    let count = running.len();
    let (id, created, name) = (format!("cmpl-{}", call.record.id), super::now(), model.info.name.clone());
    if !streamed {
        let answers = work::collect_all(&mut running, logprobs.is_some()).await?;
        let mut total = Usage::default();
        for (place, answer) in answers.iter().enumerate() {
            total.add(place.is_multiple_of(each), &answer.done);
        }
        let length = logprobs.map_or(0, |top| total.generated * (usize::from(top) + 1));
        let write = move || {
            let choices = answers.iter().enumerate().map(|(index, answer)| Choice {
                index,
                text: &answer.text,
                logprobs: logprobs.map(|_| Logprobs { model: &model, tokens: &answer.tokens, offset: 0 }),
                finish_reason: Some(finish_reason(answer.done.finish)),
            });
            answer_memory.json(&Completion {
                id: &id,
                object: "text_completion",
                created,
                model: &name,
                system_fingerprint: FINGERPRINT,
                choices: choices.collect(),
                usage: Some(total.shown()),
            })
        };
        return work::process(&call.app, &call.record, length, write).await??.respond().await;
    }
    let mut offsets = vec![0; count];
    let (mut total, mut ended) = (Usage::default(), 0);
    let chunk = move |choices: Vec<Choice<'_>>, usage: Option<Value>| {
        streaming::data(&json!(Completion {
            id: &id,
            object: "text_completion",
            created,
            model: &name,
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
        }))
    };
    let unused = with_usage.then_some(Value::Null);
    let render = move |place: usize, moment: Moment<'_>| match moment {
        Moment::Begin => String::new(),
        Moment::Token(model, token) => {
            if token.text.is_empty() && logprobs.is_none() {
                return String::new();
            }
            let logprobs = match (logprobs, offsets.get_mut(place)) {
                (Some(_), Some(next)) => {
                    let offset = *next;
                    *next += letters(model, token.id);
                    Some(Logprobs { model, tokens: std::slice::from_ref(token), offset })
                }
                _ => None,
            };
            chunk(vec![Choice { index: place, text: &token.text, logprobs, finish_reason: None }], unused.clone())
        }
        Moment::Done(done) => {
            total.add(place.is_multiple_of(each), done);
            ended += 1;
            let finish_reason = Some(finish_reason(done.finish));
            let last = Choice { index: place, text: &done.text, logprobs: None, finish_reason };
            let mut frames = chunk(vec![last], unused.clone());
            if ended < count {
                return frames;
            }
            if with_usage {
                frames += &chunk(Vec::new(), Some(total.shown()));
            }
            frames + streaming::END
        }
        Moment::Failed(error) => streaming::data(&placed(error, place / each, several).body()) + streaming::END,
    };
    streaming::respond_all(running, render).await
}

/// A whole answer, or a part of one that is streamed.
#[derive(Serialize)]
pub(super) struct Completion<'a, C> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) system_fingerprint: &'static str,
    pub(super) choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Value>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

/// Adds the index of the prompt to an error.
fn placed(mut error: ApiError, place: usize, several: usize) -> ApiError {
    if several > 1 && error.param.as_deref() == Some("prompt") {
        error.message = format!("prompt {place}: {}", error.message);
        error.param = Some(format!("prompt[{place}]"));
    }
    error
}

/// The total usage of all answers.
#[derive(Default)]
pub(super) struct Usage {
    prompt: usize,
    cached: usize,
    generated: usize,
}

impl Usage {
    /// Adds an answer. A prompt counts with the first of its answers.
    pub(super) fn add(&mut self, first: bool, done: &Done) {
        if first {
            self.prompt += done.prompt_tokens;
            self.cached += done.cached_tokens;
        }
        self.generated += done.generated_tokens;
    }

    pub(super) fn generated(&self) -> usize {
        self.generated
    }

    pub(super) fn shown(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// A text, tokens, or a list of either.
fn prompts(fields: &Fields) -> Option<Vec<Prompt>> {
    let text = |item: &Value| item.as_str().map(|text| Prompt::Text(text.to_owned()));
    let tokens = |item: &Value| ids(item.as_array()?).map(Prompt::Tokens);
    let prompts = match fields.get("prompt")? {
        Value::String(text) => Some(vec![Prompt::Text(text.clone())]),
        Value::Array(list) => match list.first() {
            None => None,
            Some(Value::String(_) | Value::Array(_)) if list.len() > MAX_PROMPTS => {
                fields.wrong(
                    "prompt",
                    format!("has {} prompts; one request may have {MAX_PROMPTS}", list.len()),
                    Some("send the rest in more requests"),
                );
                return None;
            }
            Some(Value::String(_)) => list.iter().map(text).collect(),
            Some(Value::Array(_)) => list.iter().map(tokens).collect(),
            Some(_) => ids(list).map(|ids| vec![Prompt::Tokens(ids)]),
        },
        _ => None,
    };
    if prompts.is_none() {
        fields.wrong("prompt", "must be a string, a list of token ids, or a list of either", None);
    }
    prompts
}

/// A list of token ids. An empty list is an error, an empty text is not.
fn ids(list: &[Value]) -> Option<Vec<u32>> {
    if list.is_empty() {
        return None;
    }
    list.iter().map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// Whether the stream ends with the tokens used.
pub(super) fn include_usage(fields: &Fields, streamed: bool) -> bool {
    let Some(options) = fields.get("stream_options") else { return false };
    let Some(options) = options.as_object() else {
        fields.wrong("stream_options", "must be an object", None);
        return false;
    };
    if !streamed {
        fields.wrong("stream_options", "requires `stream: true`", None);
    }
    if let Some(other) = other(options, &["include_usage", "include_obfuscation"]) {
        fields.wrong("stream_options", format!("has the unknown key `{other}`"), None);
    }
    if options.get("include_obfuscation").is_some_and(|value| !value.is_null() && value != &json!(false)) {
        fields.wrong("stream_options", "requests obfuscation, which is not supported", None);
    }
    options.get("include_usage").and_then(Value::as_bool).unwrap_or(false)
}

/// A token's text where it is a key. Parts of characters are written as bytes, as OpenAI does, so that they differ.
fn key(model: &Ready, id: u32) -> String {
    let bytes = model.info.tokenizer.bytes(id);
    match std::str::from_utf8(bytes) {
        Ok(_) => spelled(model, id),
        Err(_) => format!("bytes:{}", bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>()),
    }
}

/// The letters of a token, which offsets count.
fn letters(model: &Ready, id: u32) -> usize {
    spelled(model, id).chars().count()
}

/// Log-probabilities in the completions format, with each token's text offset. They are written one by one: a tree of them
/// would take many times their memory.
struct Logprobs<'a> {
    model: &'a Ready,
    tokens: &'a [Token],
    /// Of the first token.
    offset: usize,
}

impl Serialize for Logprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { model, tokens, offset } = *self;
        let next = Cell::new(offset);
        let place = |token: &Token| next.replace(next.get() + letters(model, token.id));
        let mut shown = serializer.serialize_map(Some(4))?;
        shown.serialize_entry("tokens", &each(tokens, |token| key(model, token.id)))?;
        shown.serialize_entry("token_logprobs", &each(tokens, |token| token.logprob.map(finite)))?;
        shown.serialize_entry("top_logprobs", &each(tokens, |token| Alternatives(model, token)))?;
        shown.serialize_entry("text_offset", &each(tokens, place))?;
        shown.end()
    }
}

/// A value of each token.
struct Each<'a, F>(&'a [Token], F);

fn each<'a, T: Serialize, F: Fn(&'a Token) -> T>(tokens: &'a [Token], value: F) -> Each<'a, F> {
    Each(tokens, value)
}

impl<'a, T: Serialize, F: Fn(&'a Token) -> T> Serialize for Each<'a, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(&self.1))
    }
}

/// The likeliest tokens at the place of a token, and that token.
struct Alternatives<'a>(&'a Ready, &'a Token);

impl Serialize for Alternatives<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(model, token) = *self;
        let is_listed = token.top.iter().any(|(id, _)| *id == token.id);
        let chosen = token.logprob.filter(|_| !is_listed).map(|logprob| (token.id, logprob));
        let all: Vec<(u32, f32)> = token.top.iter().copied().chain(chosen).collect();
        let mut top = serializer.serialize_map(Some(all.len()))?;
        let mut names: Vec<String> = Vec::with_capacity(all.len());
        for (id, logprob) in all {
            let mut name = key(model, id);
            // Two tokens of one text: the likelier one has it.
            if names.contains(&name) {
                name = format!("token_id:{id}");
            }
            top.serialize_entry(&name, &finite(logprob))?;
            names.push(name);
        }
        top.end()
    }
}
