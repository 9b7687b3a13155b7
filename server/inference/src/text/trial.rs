//! Tests a tokenizer before it serves: the library panics on some invalid files.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::parts::PROBE;
use super::{TextError, Tokenizer};

/// Runs work of the library. A panic is an invalid tokenizer.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, TextError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let cause = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        TextError::Invalid(format!("the library that reads it fails ({})", cause.unwrap_or("no reason is known")))
    })
}

impl Tokenizer {
    /// Splits a few texts, with and without what the model wants around them. An error is one of the text, not of the
    /// tokenizer: some have no token for unknown characters.
    pub(super) fn try_once(&self) -> Result<(), TextError> {
        for text in ["", "a", PROBE, "\0\u{10fffd}<unk>"] {
            for special in [false, true] {
                let _ids = caught(|| self.whole(text, special))?;
            }
            let _ids = caught(|| self.whole_marked(text, *super::MARKS.start()))?;
        }
        Ok(())
    }
}
