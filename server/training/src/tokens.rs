//! The byte-level BPE: trained on the corpus, with the chat's markers as the first tokens.

use crate::corpus::{END_OF_TEXT, MARKERS, Split, document};
use crate::error::{Error, Result};
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Texts and tokens.
pub struct Tokens {
    tokenizer: Tokenizer,
}

impl Tokens {
    /// Learns a vocabulary of `size` tokens from the first documents of the training corpus.
    pub fn train(seed: u64, size: usize, documents: u64) -> Result<Self> {
        let wrong = |e: tokenizers::Error| Error::Tokens(e.to_string());
        // One thread: the trainer's order of merges must not depend on the machine.
        tokenizers::utils::parallelism::set_parallelism(false);
        let markers = || MARKERS.iter().map(|m| AddedToken::from(*m, true));
        let trainer = BpeTrainer::builder()
            .vocab_size(size)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(markers().collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let bytes = ByteLevel::new(false, false, true);
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(bytes));
        tokenizer.with_decoder(Some(bytes));
        tokenizer.with_post_processor(Some(bytes));
        let texts = (0..documents).flat_map(|i| {
            let text = document(seed, Split::Train, i).text;
            // Markers are tokens of their own; their letters must not be counted as text.
            let plain = MARKERS.iter().fold(text, |text, marker| text.replace(marker, "\n"));
            plain.lines().map(str::to_owned).collect::<Vec<_>>()
        });
        tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts).map_err(wrong)?;
        tokenizer.add_special_tokens(markers()).map_err(wrong)?;
        Ok(Self { tokenizer })
    }

    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::from_file(path).map_err(|e| Error::broken(path, e))?;
        Ok(Self { tokenizer })
    }

    /// As `tokenizer.json` has it.
    pub fn to_json(&self) -> Result<String> {
        self.tokenizer.to_string(true).map_err(|e| Error::Tokens(e.to_string()))
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of a text; markers in it are read as markers.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| Error::Tokens(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, with markers.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, false).map_err(|e| Error::Tokens(e.to_string()))
    }

    /// The token of a marker.
    pub fn marker(&self, marker: &str) -> Result<u32> {
        self.tokenizer.token_to_id(marker).ok_or_else(|| Error::Tokens(format!("there is no token {marker}")))
    }

    /// The token that ends a document.
    pub fn end_of_text(&self) -> Result<u32> {
        self.marker(END_OF_TEXT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{ASSISTANT, USER};

    #[test]
    fn vocabulary_training_is_deterministic_and_texts_round_trip() {
        let (a, b) = (Tokens::train(1, 600, 200).unwrap(), Tokens::train(1, 600, 200).unwrap());
        assert_eq!(a.to_json().unwrap(), b.to_json().unwrap());
        assert_eq!(a.len(), 600);
        for text in ["Mira walked to the harbour.", "naïve 北京 \u{1F980}\n\ttab", "<|user|>Hi!<|end|><|assistant|>"]
        {
            assert_eq!(a.decode(&a.encode(text).unwrap()).unwrap(), text);
        }
        assert_eq!(a.encode(END_OF_TEXT).unwrap(), [0]);
        assert_eq!(a.encode(USER).unwrap(), [2]);
        assert_eq!(a.encode(ASSISTANT).unwrap(), [3]);
    }
}
