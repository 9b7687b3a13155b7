//! The fields that all generating endpoints share.

use serde_json::{Value, json};
use textnlp_inference::engine::{Sampling, Token};

use crate::app::App;
use crate::http::Fields;
use crate::models::Ready;

/// The most stop strings, and the longest.
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 512;

/// How the next token is chosen, with the temperature of a request that names none.
pub(super) fn sampling(fields: &Fields, temperature: f64) -> Sampling {
    Sampling {
        temperature: fields.number("temperature", 0.0..=2.0).unwrap_or(temperature) as f32,
        top_k: fields.integer("top_k", 0..=1_000_000).unwrap_or(0) as usize,
        top_p: fields.number("top_p", 0.0..=1.0).unwrap_or(1.0) as f32,
        min_p: fields.number("min_p", 0.0..=1.0).unwrap_or(0.0) as f32,
        repetition_penalty: fields.number("repetition_penalty", 0.1..=10.0).unwrap_or(1.0) as f32,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0).unwrap_or(0.0) as f32,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0).unwrap_or(0.0) as f32,
        // JSON numbers are exact up to 2^53: a reported seed must survive the client's parser.
        seed: fields
            .integer("seed", i64::MIN..=i64::MAX)
            .map_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 11, |seed| seed as u64),
    }
}

/// The texts that end an answer.
pub(super) fn stops(fields: &Fields) -> Vec<String> {
    let stops = fields.texts("stop", MAX_STOPS).unwrap_or_default();
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP) {
        fields.wrong("stop", format!("has a string that is empty or longer than {MAX_STOP} bytes"), None);
    }
    stops
}

/// A token count within the server's limit.
pub(super) fn max_tokens(fields: &Fields, name: &'static str, app: &App) -> Option<usize> {
    fields.integer(name, 1..=app.config.api.max_tokens as i64).map(|most| most as usize)
}

/// Fields that all endpoints accept without effect.
pub(super) fn neutral(fields: &Fields) {
    fields.neutral(&["user", "metadata", "safety_identifier", "prompt_cache_key"]);
    fields.only("n", &[json!(1)], "only one completion per request is supported");
    fields.only("store", &[json!(false)], "answers are not stored");
    fields.only("logit_bias", &[json!({})], "logit bias is not supported");
}

/// One token as text; incomplete UTF-8 becomes replacement characters, its `bytes` are exact.
pub(super) fn spelled(model: &Ready, id: u32) -> String {
    let bytes = model.info.tokenizer.bytes(id);
    if bytes.is_empty() {
        return model.info.tokenizer.piece(id).unwrap_or_default();
    }
    String::from_utf8_lossy(bytes).into_owned()
}

/// A log-probability as JSON has it: minus infinity becomes OpenAI's -9999.
pub(super) fn finite(logprob: f32) -> f64 {
    if logprob.is_finite() { f64::from(logprob) } else { -9999.0 }
}

/// A token's log-probabilities in the shape of chats.
pub(super) fn chat_logprob(model: &Ready, token: &Token) -> Value {
    let one = |id: u32, logprob: f32| json!({ "token": spelled(model, id), "logprob": finite(logprob), "bytes": model.info.tokenizer.bytes(id) });
    let mut shown = one(token.id, token.logprob.unwrap_or(f32::NEG_INFINITY));
    shown["top_logprobs"] = token.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
    shown
}
