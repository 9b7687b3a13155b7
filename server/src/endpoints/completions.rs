//! `/v1/completions`, as OpenAI has it.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use textnlp_inference::engine::Token;

use super::generate::usage;
use super::sampling::{self, finite, spelled};
use super::streaming::{self, Moment};
use crate::error::ApiError;
use crate::http::{Call, Fields};
use crate::models::Ready;
use crate::work::{self, Ask, Prompt, finish_reason};

/// OpenAI's default.
const MAX_TOKENS: usize = 16;

pub(super) async fn completions(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let fields = call.fields().await?;
    let prompt = fields.needed("prompt", prompt(&fields)).unwrap_or(Prompt::Tokens(Vec::new()));
    let model = fields.text("model").map(str::to_owned);
    let logprobs = fields.integer("logprobs", 0..=5).map(|n| n as u8);
    let streamed = fields.flag("stream").unwrap_or(false);
    let with_usage = include_usage(&fields, streamed);
    let ask = Ask {
        prompt,
        max_tokens: Some(sampling::max_tokens(&fields, "max_tokens", &call.app).unwrap_or(MAX_TOKENS)),
        sampling: sampling::sampling(&fields, 1.0),
        stop: sampling::stops(&fields),
        logprobs,
        ignore_end: fields.flag("ignore_eos").unwrap_or(false),
    };
    sampling::neutral(&fields);
    fields.only("best_of", &[json!(1)], "one answer is made, and that is it");
    fields.only("echo", &[json!(false)], "the answer does not repeat the prompt");
    fields.only("suffix", &[json!("")], "these models continue a text, they do not fill one in");
    fields.finish()?;
    let model = call.model(model.as_deref()).await?;
    let mut running = work::start(&call.app, &call.record, &caller, model, ask).await?;
    let (id, created, name) = (format!("cmpl-{}", call.record.id), super::now(), running.model.info.name.clone());
    let shape = move |text: &str, logprobs: Value, finish: Option<&str>| {
        json!({
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": name,
            "system_fingerprint": concat!("textnlp-", env!("CARGO_PKG_VERSION")),
            "choices": [{ "index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish }],
        })
    };
    if !streamed {
        let answer = work::collect(&mut running, logprobs.is_some()).await?;
        let mut shown = Value::Null;
        if logprobs.is_some() {
            shown = Logprobs::default().of(&running.model, &answer.tokens);
        }
        let mut body = shape(&answer.text, shown, Some(finish_reason(answer.done.finish)));
        body["usage"] = usage(&answer.done);
        return Ok(Json(body).into_response());
    }
    let mut offsets = Logprobs::default();
    let said = move |moment: Moment<'_>| match moment {
        Moment::Begin => String::new(),
        Moment::Token(model, token) => {
            if token.text.is_empty() && logprobs.is_none() {
                return String::new();
            }
            let shown = if logprobs.is_some() { offsets.of(model, std::slice::from_ref(token)) } else { Value::Null };
            let mut chunk = shape(&token.text, shown, None);
            if with_usage {
                chunk["usage"] = Value::Null;
            }
            streaming::data(&chunk)
        }
        Moment::Done(done) => {
            let mut last = shape(&done.text, Value::Null, Some(finish_reason(done.finish)));
            let mut words = String::new();
            if with_usage {
                last["usage"] = Value::Null;
                let mut total = shape("", Value::Null, None);
                total["choices"] = json!([]);
                total["usage"] = usage(done);
                words = streaming::data(&total);
            }
            streaming::data(&last) + &words + streaming::END
        }
        Moment::Failed(error) => streaming::data(&error.body()) + streaming::END,
    };
    streaming::respond(running, said).await
}

/// A text, one text in a list, or tokens.
fn prompt(fields: &Fields) -> Option<Prompt> {
    let several = || fields.wrong("prompt", "holds several prompts", Some("send one request for each"));
    let prompt = match fields.get("prompt")? {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(list) => match list.as_slice() {
            [Value::String(text)] => Some(Prompt::Text(text.clone())),
            [Value::Array(tokens)] => ids(tokens).map(Prompt::Tokens),
            [Value::String(_) | Value::Array(_), ..] => {
                several();
                return None;
            }
            [] => None,
            tokens => ids(tokens).map(Prompt::Tokens),
        },
        _ => None,
    };
    if prompt.is_none() {
        fields.wrong("prompt", "must be a text or a list of token ids", None);
    }
    prompt
}

fn ids(list: &[Value]) -> Option<Vec<u32>> {
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
        fields.wrong("stream_options", "is only for `stream: true`", None);
    }
    if let Some(other) = options.keys().find(|key| !matches!(key.as_str(), "include_usage" | "include_obfuscation")) {
        fields.wrong(
            "stream_options",
            format!("holds `{}`, which is not known", other.chars().take(64).collect::<String>()),
            None,
        );
    }
    if options.get("include_obfuscation").is_some_and(|value| value != &json!(false)) {
        fields.wrong("stream_options", "asks for obfuscation, which is not done here", None);
    }
    options.get("include_usage").and_then(Value::as_bool).unwrap_or(false)
}

/// Log-probabilities in the shape of completions, with each token's place in the text.
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
