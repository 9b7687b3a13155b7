//! Whether a model folder has a tokenizer that can be one. What its rules do is left to the inference crate.

use camino::Utf8Path;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{Error, Result};
use crate::local;

/// The largest vocabularies known take a tenth of this.
const MAX_VOCABULARY: u64 = 256 << 20;

/// As much of `tokenizer.json` as every tokenizer has.
#[derive(Deserialize)]
struct Tokenizer {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocabulary,
}

/// Tokens by their text, or in order with their weights.
#[derive(Deserialize)]
#[serde(untagged)]
enum Vocabulary {
    Named(std::collections::HashMap<String, IgnoredAny>),
    Listed(Vec<IgnoredAny>),
}

/// Refuses a folder of weights without a tokenizer, or with one that cannot be one: texts could not be read.
pub(crate) fn check(dir: &Utf8Path) -> Result<()> {
    let path = dir.join("tokenizer.json");
    let Some(text) = local::read_bounded(&path, MAX_VOCABULARY)? else {
        return Err(Error::Unusable {
            what: dir.to_string(),
            why: "it has no tokenizer.json, which is required".to_owned(),
            hint: "put the model's tokenizer.json next to its weights".to_owned(),
        });
    };
    let tokenizer: Tokenizer = serde_json::from_slice(&text)
        .map_err(|error| Error::corrupt(&path, format!("it is not a tokenizer ({error})")))?;
    let tokens = match &tokenizer.model.vocab {
        Vocabulary::Named(tokens) => tokens.len(),
        Vocabulary::Listed(tokens) => tokens.len(),
    };
    if tokens == 0 { Err(Error::corrupt(&path, "it has no tokens")) } else { Ok(()) }
}
