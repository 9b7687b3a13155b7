//! How close a text is to what was wanted: BLEU and ROUGE, with the numbers of sacrebleu and rouge-score.
//!
//! Golden cases made by those two packages are in `tests/golden/quality.json`.

mod bleu;
mod rouge;

pub use bleu::{Bleu, BleuOptions, Smoothing, bleu};
pub use rouge::{Rouge, rouge_l, rouge_n};

/// White space as Python's `str.split` knows it: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
