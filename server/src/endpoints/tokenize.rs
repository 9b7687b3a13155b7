//! `/v1/tokenize`: a text as tokens, or tokens as a text.

use axum::response::Response;
use serde::{Serialize, Serializer};
use textnlp_inference::text::Tokenizer;

use crate::allowance;
use crate::error::ApiError;
use crate::http::{AnswerMemory, Call};
use crate::work;

/// The longest text of tokens in bytes: with its JSON it fits into a key's share of the memory of answers.
const MAX_TEXT: usize = 4 << 20;

/// The memory of a token with its piece, and as JSON.
const ID_BYTES: usize = 32;

#[derive(Serialize)]
struct Tokens<'a> {
    object: &'static str,
    model: &'a str,
    count: usize,
    context: usize,
    tokens: &'a [u32],
    pieces: Pieces<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// Written one by one: a list of them all would take many times their memory.
struct Pieces<'a>(&'a Tokenizer, &'a [u32]);

impl Serialize for Pieces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.1.iter().map(|id| self.0.piece(*id).unwrap_or_default()))
    }
}

pub(super) async fn tokenize(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("tokenize").await?;
    let fields = call.fields().await?;
    let (text, prompt) = (fields.text("text"), fields.text("prompt"));
    if text.is_some() && prompt.is_some() {
        fields.wrong("prompt", "cannot be combined with `text`", Some("they are two names of one field"));
    }
    let param = if prompt.is_some() { "prompt" } else { "text" };
    let text = text.or(prompt).map(str::to_owned);
    let tokens = fields.get("tokens");
    let ids: Option<Vec<u32>> = tokens.and_then(|tokens| {
        tokens.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
    });
    let special = fields.flag("add_special_tokens").unwrap_or(true);
    let model = fields.text("model").map(str::to_owned);
    match (&text, tokens) {
        // What is not a text is reported already.
        (None, None) if fields.get("text").or(fields.get("prompt")).is_some() => {}
        (None, None) => fields.wrong("text", "is missing", Some("send `text` to tokenize, or `tokens` to decode")),
        (Some(_), Some(_)) => fields.wrong("tokens", "cannot be combined with `text`", Some("send one of them")),
        (None, Some(_)) if ids.is_none() => fields.wrong("tokens", "must be a list of token ids", None),
        _ => {}
    }
    fields.finish()?;
    let memory = fields.into_memory();
    let model = call.model_name(&caller, model);
    let model = call.model(&caller, model.as_deref()).await?;
    let (decode, param) = if ids.is_some() { (true, "tokens") } else { (false, param) };
    let ids = match ids {
        Some(ids) => {
            let (tokenizer, most) = (&model.info.tokenizer, model.max_ids());
            let wrong = if ids.len() > most {
                Some(format!("`tokens` has {} ids; model `{}` takes up to {most}", ids.len(), model.info.name))
            } else {
                let unknown = ids.iter().find(|id| **id as usize >= tokenizer.vocab());
                unknown.map(|id| format!("there is no token {id}: the vocabulary has {}", tokenizer.vocab()))
            };
            if let Some(wrong) = wrong {
                return Err(ApiError::invalid(wrong).param(param));
            }
            ids
        }
        None => {
            let text = text.unwrap_or_default();
            work::check_length(&model, param, text.len())?;
            work::encode(&call.app, &call.record, &model, text, special).await?
        }
    };
    let length = ids.len();
    // A decoded text exists three times: as bytes, as a text, and as JSON.
    let text: usize = if decode { ids.iter().map(|id| model.info.tokenizer.bytes(*id).len()).sum() } else { 0 };
    if text > MAX_TEXT {
        let message = format!("`tokens` are {text} bytes of text; {MAX_TEXT} is the limit");
        return Err(ApiError::invalid(message).param(param).hint("send fewer in one request"));
    }
    let answer_memory = AnswerMemory::hold(&call.app, &call.record, length * ID_BYTES + 3 * text).await?;
    // They are taken for good: what can be refused comes before.
    allowance::take_tokens(&call.app, &caller, length as u64, param).await?;
    // The text is tokens now.
    drop(memory);
    let write = move || {
        let (info, tokenizer) = (&model.info, &*model.info.tokenizer);
        answer_memory.json(&Tokens {
            object: "tokens",
            model: &info.name,
            count: ids.len(),
            context: info.context,
            tokens: &ids,
            pieces: Pieces(tokenizer, &ids),
            text: decode.then(|| tokenizer.decode(&ids)),
        })
    };
    work::process(&call.app, &call.record, length, write).await??.respond().await
}
