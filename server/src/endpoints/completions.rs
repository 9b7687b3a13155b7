//! `/v1/completions`, as OpenAI has it.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use textnlp_inference::engine::{Done, Token};

use super::sampling::{self, finite, spelled};
use super::streaming::{self, Moment};
use crate::error::ApiError;
use crate::http::{Call, Fields};
use crate::models::Ready;
use crate::work::{self, GenerationParameters, Prompt, finish_reason};

/// OpenAI's default.
const MAX_TOKENS: usize = 16;

/// Maximum prompts per request: more would fill the queue.
const MAX_PROMPTS: usize = 16;

pub(super) async fn completions(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let fields = call.fields().await?;
    let prompts = fields.needed("prompt", prompts(&fields)).unwrap_or_default();
    let model = fields.text("model").map(str::to_owned);
    let logprobs = fields.integer("logprobs", 0..=5).map(|n| n as u8);
    let streamed = fields.flag("stream").unwrap_or(false);
    let with_usage = include_usage(&fields, streamed);
    let ask = GenerationParameters {
        prompt: Prompt::Tokens(Vec::new()),
        max_tokens: Some(sampling::max_tokens(&fields, "max_tokens", &call.app).unwrap_or(MAX_TOKENS)),
        sampling: sampling::sampling(&fields, 1.0),
        stop: sampling::stops(&fields),
        logprobs,
        ignore_end: fields.flag("ignore_eos").unwrap_or(false),
    };
    sampling::neutral(&fields);
    fields.only("best_of", &[json!(1)], "only one completion is generated");
    fields.only("echo", &[json!(false)], "the answer does not repeat the prompt");
    fields.only("suffix", &[json!("")], "these models do not support insertion");
    fields.finish()?;
    drop(fields);
    let model = call.model(model.as_deref()).await?;
    let several = prompts.len();
    let mut running = Vec::with_capacity(several);
    for (place, prompt) in prompts.into_iter().enumerate() {
        let ask = GenerationParameters { prompt, ..ask.clone() };
        // Dropped with an error, those that are running already are cancelled.
        let started = work::start(&call.app, &call.record, &caller, model.clone(), ask).await;
        running.push(started.map_err(|error| placed(error, place, several))?);
    }
    let (id, created, name) = (format!("cmpl-{}", call.record.id), super::now(), model.info.name.clone());
    let shape = move |choices: Value| {
        json!({
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": name,
            "system_fingerprint": concat!("textnlp-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    };
    if !streamed {
        let answers = work::collect_all(&mut running, logprobs.is_some()).await?;
        let mut total = Usage::default();
        let choices = answers.iter().enumerate().map(|(place, answer)| {
            total.add(&answer.done);
            let shown = logprobs.map_or(Value::Null, |_| Logprobs::default().of(&model, &answer.tokens));
            choice(place, &answer.text, shown, Some(finish_reason(answer.done.finish)))
        });
        let mut body = shape(choices.collect());
        body["usage"] = total.shown();
        return Ok(Json(body).into_response());
    }
    let mut offsets: Vec<Logprobs> = (0..several).map(|_| Logprobs::default()).collect();
    let (mut total, mut ended) = (Usage::default(), 0);
    let chunk = move |choice: Value| {
        let mut chunk = shape(json!([choice]));
        if with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    let render = move |place: usize, moment: Moment<'_>| match moment {
        Moment::Begin => String::new(),
        Moment::Token(model, token) => {
            if token.text.is_empty() && logprobs.is_none() {
                return String::new();
            }
            let shown = match (logprobs, offsets.get_mut(place)) {
                (Some(_), Some(offsets)) => offsets.of(model, std::slice::from_ref(token)),
                _ => Value::Null,
            };
            streaming::data(&chunk(choice(place, &token.text, shown, None)))
        }
        Moment::Done(done) => {
            total.add(done);
            ended += 1;
            let reason = Some(finish_reason(done.finish));
            let mut frames = streaming::data(&chunk(choice(place, &done.text, Value::Null, reason)));
            if ended < several {
                return frames;
            }
            if with_usage {
                let mut last = chunk(Value::Null);
                last["choices"] = json!([]);
                last["usage"] = total.shown();
                frames += &streaming::data(&last);
            }
            frames + streaming::END
        }
        Moment::Failed(error) => streaming::data(&placed(error, place, several).body()) + streaming::END,
    };
    streaming::respond_all(running, render).await
}

fn choice(place: usize, text: &str, logprobs: Value, finish: Option<&str>) -> Value {
    json!({ "index": place, "text": text, "logprobs": logprobs, "finish_reason": finish })
}

/// Adds the index of the prompt to an error.
fn placed(mut error: ApiError, place: usize, several: usize) -> ApiError {
    if several > 1 && error.param.as_deref() == Some("prompt") {
        error.message = format!("prompt {place}: {}", error.message);
        error.param = Some(format!("prompt[{place}]"));
    }
    error
}

/// The total usage of all prompts.
#[derive(Default)]
struct Usage {
    prompt: usize,
    generated: usize,
}

impl Usage {
    fn add(&mut self, done: &Done) {
        self.prompt += done.prompt_tokens;
        self.generated += done.generated_tokens;
    }

    fn shown(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
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
    if let Some(other) = options.keys().find(|key| !matches!(key.as_str(), "include_usage" | "include_obfuscation")) {
        fields.wrong(
            "stream_options",
            format!("has the unknown key `{}`", other.chars().take(64).collect::<String>()),
            None,
        );
    }
    if options.get("include_obfuscation").is_some_and(|value| value != &json!(false)) {
        fields.wrong("stream_options", "requests obfuscation, which is not supported", None);
    }
    options.get("include_usage").and_then(Value::as_bool).unwrap_or(false)
}

/// Log-probabilities in the completions format, with each token's text offset.
#[derive(Default)]
struct Logprobs {
    offset: usize,
}

impl Logprobs {
    fn of(&mut self, model: &Ready, tokens: &[Token]) -> Value {
        let (mut texts, mut logprobs, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for token in tokens {
            let text = spelled(model, token.id);
            offsets.push(self.offset);
            self.offset += text.chars().count();
            texts.push(text);
            logprobs.push(token.logprob.map(finite));
            let top = token.top.iter().map(|(id, logprob)| (spelled(model, *id), json!(finite(*logprob))));
            tops.push(Value::Object(top.collect()));
        }
        json!({ "tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets })
    }
}
