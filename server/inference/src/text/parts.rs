//! Long texts, split in parts: a text takes some two hundred bytes for each of its bytes while it is split.
//!
//! A part ends where a word ends, by the tokenizer's own rules, which read a text from its beginning to its end and look
//! only a little ahead. The tokens of the parts are then those of the whole text. Space belongs to what follows it: at
//! the end of a text, some rules take more of it together.

use tokenizers::{OffsetReferential, OffsetType, PreTokenizer};

use super::{TextError, Tokenizer};

/// The length of a part in bytes.
const PART: usize = 64 << 10;
/// How far behind the end of a part the words are read: further than the rules look ahead.
const AHEAD: usize = 4 << 10;
/// How many times as long as usual a part is at most, where a word or the space before it is longer than a part.
const MAX_PARTS: usize = 4;
/// The length of a part where the time may grow with the square of it.
const SLOW_PART: usize = 8 << 10;

/// Words of several kinds. A tokenizer whose tokens change where the text is cut between them splits no text in parts: it
/// begins each text with a space, or has no words.
pub(super) const PROBE: &str =
    "One two  three\n\n  4567 (fünf), six's\tseven;\r\n東京 tower — 12.5%\n\n\n    end   of\u{a0}it é\u{301} a1B_c==d";

/// The tokens that the model wants around a text.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) first: Vec<u32>,
    pub(super) last: Vec<u32>,
}

impl Around {
    /// From the tokens of a text with and without them; none where the text has no tokens, or others.
    pub(super) fn new(bare: &[u32], with: &[u32]) -> Option<Around> {
        let at = with.windows(bare.len().max(1)).position(|ids| ids == bare)?;
        Some(Around { first: with.get(..at)?.to_vec(), last: with.get(at + bare.len()..)?.to_vec() })
    }
}

impl Tokenizer {
    /// Whether long texts are split in parts; others take some two hundred bytes for each of their bytes.
    pub fn splits_in_parts(&self) -> bool {
        self.around.is_some()
    }

    /// What a split in parts needs to know; none where the parts could have other tokens than the text.
    pub(super) fn probe(&self) -> Option<Around> {
        let whole = self.whole(PROBE, false).ok().filter(|ids| !ids.is_empty())?;
        let ends = self.word_ends(PROBE).ok()?;
        let cut = |end: &usize| {
            let (left, right) = PROBE.split_at_checked(*end)?;
            Some([self.whole(left, false).ok()?, self.whole(right, false).ok()?].concat())
        };
        let is_exact = ends.len() > 10 && ends.iter().all(|end| cut(end).as_ref() == Some(&whole));
        let around = Around::new(&whole, &self.whole(PROBE, true).ok()?)?;
        is_exact.then_some(around)
    }

    /// Splits a text that is longer than a part, and may have marks.
    pub(super) fn in_parts(
        &self,
        text: &str,
        around: Option<&Around>,
        mark: Option<char>,
    ) -> Result<Vec<u32>, TextError> {
        let tokens = |part: &str| match mark {
            Some(mark) => self.whole_marked(part, mark),
            None => self.whole(part, false),
        };
        let mut ids = around.map(|around| around.first.clone()).unwrap_or_default();
        let mut rest = text;
        while self.is_long(rest) {
            let (part, after) = rest.split_at(self.part_end(rest)?);
            ids.extend(tokens(part)?);
            rest = after;
        }
        ids.extend(tokens(rest)?);
        ids.extend(around.map(|around| around.last.as_slice()).unwrap_or_default());
        Ok(ids)
    }

    /// Whether a text is split in parts.
    pub(super) fn is_long(&self, text: &str) -> bool {
        text.len() > self.part() + AHEAD
    }

    fn part(&self) -> usize {
        if self.is_fast() { PART } else { SLOW_PART }
    }

    /// The end of the last word that is over before the end of a part. Further away if there is none.
    fn part_end(&self, text: &str) -> Result<usize, TextError> {
        let (mut size, most) = (self.part(), self.part() * MAX_PARTS);
        loop {
            let window = text.get(..text.floor_char_boundary(size + AHEAD)).unwrap_or(text);
            let ends = self.word_ends(window)?;
            if let Some(end) = ends.into_iter().filter(|end| *end <= size).max() {
                return Ok(end);
            }
            if window.len() == text.len() {
                return Ok(text.len());
            }
            if size >= most {
                return Err(TextError::Encode(format!("it has {most} bytes without the end of a word")));
            }
            size *= 2;
        }
    }

    /// Where the words of a text end, in bytes, but for those that end with space.
    fn word_ends(&self, text: &str) -> Result<Vec<usize>, TextError> {
        let mut words = self.inner.get_added_vocabulary().extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(splitter) = self.inner.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut words).map_err(|error| TextError::Encode(error.to_string()))?;
        }
        let splits = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let is_word = |end: &usize| {
            let last = text.get(..*end).and_then(|word| word.chars().next_back());
            last.is_some_and(|last| !last.is_whitespace())
        };
        Ok(splits.into_iter().map(|(_, (_, end), _)| end).filter(is_word).collect())
    }
}
