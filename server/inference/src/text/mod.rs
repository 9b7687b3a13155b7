//! Texts and tokens: a tokenizer from `tokenizer.json` or from GGUF's vocabulary, and text from tokens as they come.
//!
//! The `tokenizers` crate splits texts; decoding uses our own table from ids to bytes, because a stream needs bytes.
//! Chat templates are stored as text: the server renders them.

mod directory;
mod encoder;
mod gguf;
mod marks;
mod parts;
mod pieces;
mod pre;
mod shape;
mod stream;
mod trial;

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer as _};

use crate::format::gguf::Vocabulary;
use crate::json;
pub(crate) use directory::with_tools;
pub use encoder::EncoderText;
pub use marks::MARKS;
use marks::Spellings;
use parts::Around;
use pieces::Pieces;
use shape::{Bounds, Patterns};
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
    /// A folder of weights without a tokenizer.
    #[error("{} has no tokenizer.json, which is required", folder.display())]
    Missing {
        /// Which.
        folder: PathBuf,
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
    spellings: Spellings,
    /// None if long texts are not split in parts.
    around: Option<Around>,
    /// How many times as long as the text the normalizer makes it at most.
    growth: usize,
    is_fast: bool,
    shared_id: Option<u32>,
}

/// The largest `tokenizer.json`: ten times the largest known.
const MAX_FILE: u64 = 256 << 20;

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab", &self.vocab()).field("extras", &self.extras).finish_non_exhaustive()
    }
}

/// How many times as long as the text its normalized form may be, and the bytes that it may have besides. Real
/// normalizers write three bytes for a blank; those that may write more are compared with this at each text.
const GROWTH_MAX: usize = 4;
const GROWTH_FREE: usize = 1024;
/// Bytes of a text that are compared at a time.
const SLICE: usize = 4096;
/// Bytes of a token of the vocabulary: Unigram compares each place of a text with the whole token.
const PIECE_MAX: usize = 4096;
/// Bytes of a token of known Unigram models, at most.
const FAST_PIECE_MAX: usize = 256;

impl Tokenizer {
    /// From a model's directory: `tokenizer.json`, and what `tokenizer_config.json`, `generation_config.json`,
    /// `config.json` and `chat_template.jinja` say beside it.
    pub fn from_directory(path: &Path) -> Result<Tokenizer, TextError> {
        let file = path.join("tokenizer.json");
        let bytes = match read(&file)? {
            Some(bytes) if bytes.len() as u64 > MAX_FILE => {
                return Err(TextError::Invalid(format!("tokenizer.json is longer than {MAX_FILE} bytes")));
            }
            Some(bytes) => bytes,
            None => return Err(TextError::Missing { folder: path.to_owned() }),
        };
        let mut tokenizer = Tokenizer::from_json(&bytes)?;
        tokenizer.extras = directory::extras(path, &|piece| tokenizer.id(piece))?;
        Ok(tokenizer)
    }

    /// From the bytes of a `tokenizer.json` alone: nothing is known of beginnings and ends.
    pub fn from_json(bytes: &[u8]) -> Result<Tokenizer, TextError> {
        Self::build(bytes, Patterns::Foreign)
    }

    fn build(bytes: &[u8], patterns: Patterns) -> Result<Tokenizer, TextError> {
        let file = || "tokenizer.json".to_owned();
        let read = json::check(bytes, json::MAX_VALUES_OF_TOKENIZER).and_then(|()| serde_json::from_slice(bytes));
        let json: Value = read.map_err(|source| TextError::Json { file: file(), source })?;
        let Bounds { growth, linear } = shape::check(&json, patterns)?;
        // A damaged file may end in a panic of the library.
        let mut inner = trial::caught(|| tokenizers::Tokenizer::from_bytes(bytes))?
            .map_err(|error| TextError::Invalid(error.to_string()))?;
        // What a training run left there would cut or pad prompts behind our back.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| TextError::Invalid(error.to_string()))?;
        let added = inner.get_added_tokens_decoder();
        let special = |id: &u32| added.get(id).is_some_and(|token| token.special);
        let spellings = Spellings::new(added.values().filter(|token| token.special).map(|token| token.content.clone()));
        let vocabulary = inner.get_vocab(true);
        if vocabulary.keys().any(|piece| piece.len() > PIECE_MAX) {
            return Err(TextError::Invalid(format!("a token is longer than {PIECE_MAX} bytes")));
        }
        // Unigram reads as many letters at each place as its longest token has.
        let is_unigram = !matches!(json["model"]["type"].as_str(), Some("BPE" | "WordPiece" | "WordLevel"));
        let is_long = |piece: &String| piece.len() > FAST_PIECE_MAX;
        let is_fast = linear && !(is_unigram && vocabulary.keys().any(is_long));
        let mut ids = HashSet::with_capacity(vocabulary.len());
        let shared_id = vocabulary.values().copied().filter(|id| !ids.insert(*id)).min();
        let tokens = vocabulary.into_iter().map(|(piece, id)| (id, piece, special(&id)));
        let pieces = Pieces::new(tokens, json.get("decoder").unwrap_or(&Value::Null))?;
        let mut tokenizer =
            Tokenizer { inner, pieces, extras: Extras::default(), spellings, around: None, growth, is_fast, shared_id };
        tokenizer.try_once()?;
        tokenizer.around = tokenizer.probe();
        Ok(tokenizer)
    }

    /// From the vocabulary of a GGUF file.
    pub fn from_gguf(vocabulary: &Vocabulary) -> Result<Tokenizer, TextError> {
        let json = gguf::tokenizer_json(vocabulary)?;
        let mut tokenizer = Tokenizer::build(json.to_string().as_bytes(), Patterns::Own)?;
        tokenizer.extras = gguf::extras(vocabulary);
        Ok(tokenizer)
    }

    /// Splits a text. `add_special` adds what the model wants around one, such as its first token; a rendered chat
    /// template holds that already.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.refuse_growth(text)?;
        match &self.around {
            Some(around) if self.is_long(text) => self.in_parts(text, add_special.then_some(around), None),
            _ => self.whole(text, add_special),
        }
    }

    /// Whether a short text is split within a short time. Otherwise a model's author may have chosen regular expressions or
    /// tokens for which some texts of a few kilobytes take long.
    pub fn is_fast(&self) -> bool {
        self.is_fast
    }

    fn whole(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| TextError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text take two hundred bytes for each byte of its normalized form.
    fn refuse_growth(&self, text: &str) -> Result<(), TextError> {
        let Some(normalizer) = self.inner.get_normalizer().filter(|_| self.growth > GROWTH_MAX) else { return Ok(()) };
        let mut rest = text;
        while !rest.is_empty() {
            let (slice, after) = rest.split_at(rest.floor_char_boundary(SLICE));
            let mut normalized = NormalizedString::from(slice);
            normalizer.normalize(&mut normalized).map_err(|error| TextError::Encode(error.to_string()))?;
            let (length, limit) = (normalized.get().len(), GROWTH_MAX * slice.len() + GROWTH_FREE);
            if length > limit {
                let why = format!("{} bytes of it have {length} when normalized; {limit} is the limit", slice.len());
                return Err(TextError::Encode(why));
            }
            rest = after;
        }
        Ok(())
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

    /// An id that several tokens have: only one of them can be decoded.
    pub fn shared_id(&self) -> Option<u32> {
        self.shared_id
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

/// The bytes of a file up to one more than [`MAX_FILE`]; `None` if it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    let error = |source| TextError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(problem) => return Err(error(problem)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(error)?;
    Ok(Some(bytes))
}

#[cfg(test)]
pub(crate) mod tests;
