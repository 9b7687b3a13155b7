//! `/v1/tokenize`: a text as tokens, or tokens as a text.

use axum::Json;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::http::Call;
use crate::work;

pub(super) async fn tokenize(mut call: Call) -> Result<Json<Value>, ApiError> {
    call.enter("tokenize").await?;
    let fields = call.fields().await?;
    let (text, prompt) = (fields.text("text"), fields.text("prompt"));
    if text.is_some() && prompt.is_some() {
        fields.wrong("prompt", "cannot be combined with `text`", Some("they are two names of one field"));
    }
    let text = text.or(prompt).map(str::to_owned);
    let tokens = fields.get("tokens").cloned();
    let special = fields.flag("add_special_tokens").unwrap_or(true);
    let model = fields.text("model").map(str::to_owned);
    let ids: Option<Vec<u32>> = tokens.as_ref().and_then(|tokens| {
        tokens.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
    });
    match (&text, &tokens) {
        (None, None) => fields.wrong("text", "is missing", Some("send `text` to tokenize, or `tokens` to decode")),
        (Some(_), Some(_)) => fields.wrong("tokens", "cannot be combined with `text`", Some("send one of them")),
        (None, Some(_)) if ids.is_none() => fields.wrong("tokens", "must be a list of token ids", None),
        _ => {}
    }
    fields.finish()?;
    let model = call.model(model.as_deref()).await?;
    let tokenizer = &model.info.tokenizer;
    let back = ids.is_some();
    let ids = match (ids, text) {
        (Some(ids), _) => ids,
        (None, text) => work::encode(&call.app, &model, text.unwrap_or_default(), special).await?,
    };
    if let Some(wrong) = ids.iter().find(|id| **id as usize >= tokenizer.vocab()) {
        return Err(ApiError::invalid(format!("there is no token {wrong}: the vocabulary has {}", tokenizer.vocab()))
            .param("tokens"));
    }
    let pieces: Vec<String> = ids.iter().map(|id| tokenizer.piece(*id).unwrap_or_default()).collect();
    let mut body = json!({
        "object": "tokens",
        "model": model.info.name,
        "count": ids.len(),
        "context": model.info.context,
        "tokens": ids,
        "pieces": pieces,
    });
    if back {
        body["text"] = json!(tokenizer.decode(&ids));
    }
    Ok(Json(body))
}
