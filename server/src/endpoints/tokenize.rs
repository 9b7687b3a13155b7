//! `/v1/tokenize`: a text as tokens, or tokens as a text.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use textnlp_inference::text::Tokenizer;

use crate::allowance;
use crate::error::ApiError;
use crate::http::Call;
use crate::work;

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
        (None, None) => fields.wrong("text", "is missing", Some("send `text` to tokenize, or `tokens` to decode")),
        (Some(_), Some(_)) => fields.wrong("tokens", "cannot be combined with `text`", Some("send one of them")),
        (None, Some(_)) if ids.is_none() => fields.wrong("tokens", "must be a list of token ids", None),
        _ => {}
    }
    fields.finish()?;
    drop(fields);
    let model = call.model(model.as_deref()).await?;
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
            work::encode(&call.app, &model, text, special).await?
        }
    };
    allowance::take_tokens(&call.app, &caller, ids.len() as u64, param).await?;
    let length = ids.len();
    let write = move || {
        let (info, tokenizer) = (&model.info, &*model.info.tokenizer);
        serde_json::to_vec(&Tokens {
            object: "tokens",
            model: &info.name,
            count: ids.len(),
            context: info.context,
            tokens: &ids,
            pieces: Pieces(tokenizer, &ids),
            text: decode.then(|| tokenizer.decode(&ids)),
        })
    };
    let body = work::process(&call.app, length, write).await?.unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}
