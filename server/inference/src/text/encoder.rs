//! Texts for encoders: the prompt before them, special tokens around them, at most as many tokens as the model takes.

use std::sync::Arc;

use super::parts::Around;
use super::{TextError, Tokenizer};
use crate::format::EncoderSettings;

/// Splits texts as an encoder wants them.
#[derive(Debug)]
pub struct EncoderText {
    tokenizer: Arc<Tokenizer>,
    around: Around,
    max_tokens: usize,
    lowercase: bool,
}

impl EncoderText {
    /// Finds out which tokens the tokenizer adds around a text.
    pub fn new(tokenizer: Arc<Tokenizer>, settings: &EncoderSettings) -> Result<EncoderText, TextError> {
        const WORD: &str = "a";
        let (bare, around) = (tokenizer.encode(WORD, false)?, tokenizer.encode(WORD, true)?);
        let around = Around::new(&bare, &around)
            .ok_or_else(|| TextError::Invalid(format!("it has no tokens for the text `{WORD}`")))?;
        if around.first.len() + around.last.len() >= settings.max_tokens {
            let why = format!("its special tokens leave no room in {} tokens", settings.max_tokens);
            return Err(TextError::Invalid(why));
        }
        Ok(EncoderText { tokenizer, around, max_tokens: settings.max_tokens, lowercase: settings.lowercase })
    }

    /// The tokens of a text, special tokens included; more than the model takes unless they are to be cut at the end.
    pub fn encode(&self, prompt: &str, text: &str, truncate: bool) -> Result<Vec<u32>, TextError> {
        let mut whole = format!("{prompt}{text}");
        if self.lowercase {
            whole = whole.to_lowercase();
        }
        let mut content = self.tokenizer.encode(&whole, false)?;
        let Around { first, last } = &self.around;
        if truncate {
            content.truncate(self.max_tokens - first.len() - last.len());
        }
        Ok([&first[..], &content, last].concat())
    }

    /// The most tokens of a text, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}
