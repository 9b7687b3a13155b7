//! Opens the files of a model, for the server and for the tools that check models.

use std::path::Path;

use crate::format::{Checkpoint, FormatError};
use crate::text::{TextError, Tokenizer};

/// Weights and tokenizer of a model. No weight has been read yet.
#[derive(Debug)]
pub struct ModelFiles {
    /// The weights' headers and the model's shape.
    pub checkpoint: Checkpoint,
    /// The tokenizer, tried once.
    pub tokenizer: Tokenizer,
}

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Because of its weights or its configuration.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Because of its tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl ModelFiles {
    /// Opens a folder, or a GGUF file.
    pub fn open(path: &Path) -> Result<ModelFiles, OpenError> {
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = match checkpoint.vocabulary()? {
            Some(vocabulary) => Tokenizer::from_gguf(&vocabulary)?,
            None => Tokenizer::from_directory(path)?,
        };
        check_ends(&tokenizer, checkpoint.architecture().vocab)?;
        Ok(ModelFiles { checkpoint, tokenizer })
    }
}

/// Refuses a tokenizer that begins or ends texts with a token that the model, with this many rows in its token table, does not
/// have: it could not compute a first text, or would never end one.
pub fn check_ends(tokenizer: &Tokenizer, rows: usize) -> Result<(), TextError> {
    let ends = tokenizer.end_tokens().iter().map(|id| ("end token", *id));
    let first = tokenizer.bos().map(|id| ("first token", id));
    match ends.chain(first).find(|(_, id)| *id as usize >= rows) {
        None => Ok(()),
        Some((what, id)) => Err(TextError::Invalid(format!("its {what} is {id}, but the model has {rows} tokens"))),
    }
}

/// What an operator should know about a tokenizer beside a model with this many rows in its token table.
pub fn notes(tokenizer: &Tokenizer, rows: usize) -> Vec<String> {
    let mut notes = Vec::new();
    let more = tokenizer.vocab().saturating_sub(rows);
    if more > 0 {
        notes.push(format!("{more} tokens of the tokenizer are not in the model: texts with them are refused"));
    }
    if let Some(id) = tokenizer.shared_id() {
        notes.push(format!("several tokens of the tokenizer have the id {id}"));
    }
    notes
}
