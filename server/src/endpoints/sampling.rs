//! The fields that all generating endpoints share.

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use textnlp_inference::engine::{Sampling, Token};

use crate::app::App;
use crate::error::ApiError;
use crate::http::Fields;
use crate::models::Ready;

/// The most stop strings, and the longest.
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 512;

/// The most tokens with a bias.
const MAX_BIASES: usize = 1024;

/// The most answers of one request, over all its prompts: more would fill the queue.
pub(crate) const MAX_ANSWERS: usize = 16;

/// The most log-probabilities of a whole answer. Streams have any number.
const MAX_LOGPROBS: usize = 65_536;

/// The memory of a log-probability with its token, as it is collected and as JSON.
const LOGPROB_BYTES: usize = 128;

/// The memory of a token of a text, likewise. Four letters each are usual.
const TEXT_BYTES: usize = 8;

/// How the next token is chosen, with the temperature of a request that names none.
pub(super) fn sampling(fields: &Fields, temperature: f64) -> Sampling {
    Sampling {
        temperature: fields.number("temperature", 0.0..=2.0).unwrap_or(temperature) as f32,
        // Other servers write -1 for all tokens.
        top_k: fields.integer("top_k", -1..=1_000_000).unwrap_or(0).max(0) as usize,
        top_p: fields.number("top_p", 0.0..=1.0).unwrap_or(1.0) as f32,
        min_p: fields.number("min_p", 0.0..=1.0).unwrap_or(0.0) as f32,
        repetition_penalty: fields.number("repetition_penalty", 0.1..=10.0).unwrap_or(1.0) as f32,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0).unwrap_or(0.0) as f32,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0).unwrap_or(0.0) as f32,
        logit_bias: logit_bias(fields),
        // JSON numbers are exact up to 2^53: a reported seed must survive the client's parser.
        seed: fields
            .integer("seed", i64::MIN..=i64::MAX)
            .map_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 11, |seed| seed as u64),
    }
}

/// Biases by token id, which JSON writes as a text.
fn logit_bias(fields: &Fields) -> Vec<(u32, f32)> {
    let Some(value) = fields.get("logit_bias") else { return Vec::new() };
    let wrong = |message: &str| {
        fields.wrong("logit_bias", message, Some("write token ids with biases: {\"50256\": -100}"));
        Vec::new()
    };
    let Some(map) = value.as_object() else { return wrong("must be an object") };
    if map.len() > MAX_BIASES {
        return wrong(&format!("has {} entries; it may have {MAX_BIASES}", map.len()));
    }
    let one = |(id, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        // One spelling, so that no id has two biases.
        let number = id.parse::<u32>().ok().filter(|number| number.to_string() == *id)?;
        Some((number, bias as f32))
    };
    map.iter()
        .map(one)
        .collect::<Option<_>>()
        .unwrap_or_else(|| wrong("must map token ids to numbers from -100 to 100"))
}

/// Refuses biases of tokens that the model does not have.
pub(super) fn check_biases(sampling: &Sampling, model: &Ready) -> Result<(), ApiError> {
    match sampling.logit_bias.iter().find(|(id, _)| *id as usize >= model.info.shape.vocab) {
        None => Ok(()),
        Some((id, _)) => {
            let message = format!("`logit_bias` names token {id}, which model `{}` does not have", model.info.name);
            Err(ApiError::invalid(message).param("logit_bias"))
        }
    }
}

/// The count of answers to each of `prompts` prompts.
pub(super) fn answers(fields: &Fields, prompts: usize) -> usize {
    let most = (MAX_ANSWERS / prompts.max(1)).max(1);
    fields.integer("n", 1..=most as i64).unwrap_or(1) as usize
}

/// The sampling of one of several answers to a prompt. The first is the same as if it were alone.
pub(super) fn of_answer(sampling: &Sampling, number: usize) -> Sampling {
    // Seeds of neighbours must not overlap: the odd constant of splitmix64 spreads them (Steele et al. 2014).
    let step = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64);
    Sampling { seed: sampling.seed.wrapping_add(step), ..sampling.clone() }
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
    fields.only("store", &[json!(false)], "answers are not stored");
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

/// The most tokens of each of `count` answers that are sent whole: those that the request names, else as many as the limits
/// allow. `field` has the alternatives of a token.
pub(super) fn whole_tokens(
    app: &App,
    count: usize,
    max_tokens: Option<usize>,
    logprobs: Option<u8>,
    field: &str,
) -> Result<usize, ApiError> {
    let most = match logprobs {
        Some(top) => MAX_LOGPROBS / (count.max(1) * (usize::from(top) + 1)),
        None => usize::MAX,
    };
    match max_tokens {
        Some(named) if named > most => {
            let message = format!(
                "`max_tokens` is {named}; with {count} answers and this `{field}` it can be {most}: the product of the \
                 answers, `max_tokens` and `{field}` + 1 is limited to {MAX_LOGPROBS}"
            );
            let hint = format!("lower `n`, `max_tokens` or `{field}`, or stream the answer");
            Err(ApiError::invalid(message).param("max_tokens").hint(hint))
        }
        Some(named) => Ok(named),
        None => Ok(most.min(app.config.api.max_tokens)),
    }
}

/// About the bytes of whole answers with this number of tokens in all.
pub(super) fn whole_bytes(tokens: usize, logprobs: Option<u8>) -> usize {
    let each = TEXT_BYTES + logprobs.map_or(0, |top| (usize::from(top) + 1) * LOGPROB_BYTES);
    tokens.saturating_mul(each)
}

/// Log-probabilities in the shape of chats, written one by one: a tree of them would take many times their memory.
pub(super) struct ChatLogprobs<'a>(pub(super) &'a Ready, pub(super) &'a [Token]);

impl Serialize for ChatLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.1.iter().map(|token| ChatLogprob(self.0, token)))
    }
}

/// A token's log-probabilities in the shape of chats.
pub(super) struct ChatLogprob<'a>(pub(super) &'a Ready, pub(super) &'a Token);

impl Serialize for ChatLogprob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(model, token) = *self;
        let mut shown = serializer.serialize_struct("ChatLogprob", 4)?;
        shown.serialize_field("token", &spelled(model, token.id))?;
        shown.serialize_field("logprob", &finite(token.logprob.unwrap_or(f32::NEG_INFINITY)))?;
        shown.serialize_field("bytes", model.info.tokenizer.bytes(token.id))?;
        shown.serialize_field("top_logprobs", &Alternatives(model, &token.top))?;
        shown.end()
    }
}

struct Alternatives<'a>(&'a Ready, &'a [(u32, f32)]);

impl Serialize for Alternatives<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Alternative<'a> {
            token: String,
            logprob: f64,
            bytes: &'a [u8],
        }
        let Self(model, top) = *self;
        serializer.collect_seq(top.iter().map(|(id, logprob)| Alternative {
            token: spelled(model, *id),
            logprob: finite(*logprob),
            bytes: model.info.tokenizer.bytes(*id),
        }))
    }
}
