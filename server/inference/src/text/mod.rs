//! Texts and tokens: a tokenizer from `tokenizer.json` or from GGUF's vocabulary, and text from tokens as they come.
//!
//! The `tokenizers` crate splits texts; decoding uses our own table from ids to bytes, because a stream needs bytes.
//! Chat templates are stored as text: the server renders them.

mod directory;
mod gguf;
mod parts;
mod pieces;
mod stream;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::format::gguf::Vocabulary;
use parts::Around;
use pieces::Pieces;
pub use stream::Stream;

/// Why a tokenizer cannot be loaded or a text cannot be split.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not JSON.
    #[error("{file} is not valid JSON")]
    Json {
        /// Which.
        file: String,
        /// Why and where.
        source: serde_json::Error,
    },
    /// A tokenizer of a kind that this program does not have.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A tokenizer that contradicts itself.
    #[error("invalid tokenizer: {0}")]
    Invalid(String),
    /// The text cannot be split.
    #[error("cannot split the text: {0}")]
    Encode(String),
}

/// What else a model says about its tokens.
#[derive(Debug, Default)]
struct Extras {
    bos: Option<u32>,
    eos: Option<u32>,
    end: Vec<u32>,
    chat_template: Option<String>,
}

/// Splits texts into a model's tokens and puts them together again.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    extras: Extras,
    /// None if long texts are not split in parts.
    around: Option<Around>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab", &self.vocab()).field("extras", &self.extras).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From a model's directory: `tokenizer.json`, and what `tokenizer_config.json`, `generation_config.json`,
    /// `config.json` and `chat_template.jinja` say beside it.
    pub fn from_directory(path: &Path) -> Result<Tokenizer, TextError> {
        let file = path.join("tokenizer.json");
        let bytes = std::fs::read(&file).map_err(|source| TextError::Read { path: file, source })?;
        let mut tokenizer = Tokenizer::from_json(&bytes)?;
        tokenizer.extras = directory::extras(path, &|piece| tokenizer.id(piece))?;
        Ok(tokenizer)
    }

    /// From the bytes of a `tokenizer.json` alone: nothing is known of beginnings and ends.
    pub fn from_json(bytes: &[u8]) -> Result<Tokenizer, TextError> {
        let file = || "tokenizer.json".to_owned();
        let json: Value = serde_json::from_slice(bytes).map_err(|source| TextError::Json { file: file(), source })?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| TextError::Invalid(error.to_string()))?;
        // What a training run left there would cut or pad prompts behind our back.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| TextError::Invalid(error.to_string()))?;
        let added = inner.get_added_tokens_decoder();
        let special = |id: &u32| added.get(id).is_some_and(|token| token.special);
        let tokens = inner.get_vocab(true).into_iter().map(|(piece, id)| (id, piece, special(&id)));
        let pieces = Pieces::new(tokens, json.get("decoder").unwrap_or(&Value::Null))?;
        let mut tokenizer = Tokenizer { inner, pieces, extras: Extras::default(), around: None };
        tokenizer.around = tokenizer.probe();
        Ok(tokenizer)
    }

    /// From the vocabulary of a GGUF file.
    pub fn from_gguf(vocabulary: &Vocabulary) -> Result<Tokenizer, TextError> {
        let json = gguf::tokenizer_json(vocabulary)?;
        let mut tokenizer = Tokenizer::from_json(json.to_string().as_bytes())?;
        tokenizer.extras = gguf::extras(vocabulary);
        Ok(tokenizer)
    }

    /// Splits a text. `add_special` adds what the model wants around one, such as its first token; a rendered chat
    /// template holds that already.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        match &self.around {
            Some(around) if Self::is_long(text) => self.in_parts(text, add_special.then_some(around)),
            _ => self.whole(text, add_special),
        }
    }

    fn whole(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| TextError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Puts tokens together. Special tokens leave no text, broken UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.pieces.bytes(id)).copied().collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match text.strip_prefix(' ') {
            Some(rest) if self.pieces.strips_first_space => rest.to_owned(),
            _ => text,
        }
    }

    /// The bytes that a token stands for: none for special tokens and unknown ids.
    ///
    /// Joined, they are the text of a continuation: unlike [`Tokenizer::decode`] nothing is stripped at its beginning.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.bytes(id)
    }

    /// A token as the vocabulary spells it.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token by its spelling.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// One more than the largest id.
    pub fn vocab(&self) -> usize {
        self.pieces.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.extras.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.extras.eos
    }

    /// All tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        &self.extras.end
    }

    /// The chat template, as the model's makers wrote it.
    pub fn chat_template(&self) -> Option<&str> {
        self.extras.chat_template.as_deref()
    }
}

#[cfg(test)]
pub(crate) mod tests;
