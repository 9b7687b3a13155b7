//! Guesses of a sequence's next tokens from its own text, which one step verifies.
//!
//! Where the last tokens occurred before, the text may go on as it did there (Saxena 2023, "Prompt lookup decoding"). A
//! step computes the guesses as further rows. Each row's token is then chosen as ever, and the first one that is not the
//! guess ends the draft. So the text is the same; only the count of steps changes.

use super::pace::{Pace, Size};

/// The most rows with logits in a step with drafts: the footprint of a model has memory for them.
pub(super) const MOST_LOGITS: usize = 32;

/// The count of last tokens that must have occurred before. Of several places the longest match is used, then the last.
const SHORTEST_MATCH: usize = 2;
const LONGEST_MATCH: usize = 4;

/// The share of right guesses before any was verified.
pub(super) const FIRST_RATE: f64 = 0.5;

/// How much one guess changes the rate: about the last 16 count.
const WEIGHT: f64 = 1.0 / 16.0;

/// A draft of one sequence.
#[derive(Debug)]
pub(super) struct Draft {
    /// The last token of the sequence, then the guesses.
    tokens: Vec<u32>,
    /// How many guesses the step computes.
    used: usize,
    /// The position of the last token.
    start: usize,
    /// The share of right guesses so far.
    rate: f64,
}

impl Draft {
    /// At most `most` guesses after `tokens`; `None` if the text never was at this point before.
    pub(super) fn of(tokens: &[u32], most: usize, rate: f64) -> Option<Draft> {
        let (&last, before) = tokens.split_last()?;
        if most == 0 {
            return None;
        }
        let matched = |end: usize| {
            let pairs = tokens.iter().rev().zip(tokens[..=end].iter().rev());
            pairs.take(LONGEST_MATCH).take_while(|(a, b)| a == b).count()
        };
        let mut best = (SHORTEST_MATCH - 1, 0);
        for end in (0..before.len()).rev().filter(|&end| before[end] == last) {
            let length = matched(end);
            if length > best.0 {
                best = (length, end);
            }
            if length == LONGEST_MATCH {
                break;
            }
        }
        let (length, end) = best;
        if length < SHORTEST_MATCH {
            return None;
        }
        // A short cycle goes on in the guesses themselves.
        let period = before.len() - end;
        let guesses = (0..most).map(|n| tokens[end + 1 + n % period]);
        let tokens: Vec<u32> = [last].into_iter().chain(guesses).collect();
        Some(Draft { tokens, used: 0, start: before.len(), rate })
    }

    /// The rows of the step: the last token, and the guesses that are computed.
    pub(super) fn rows(&self) -> &[u32] {
        &self.tokens[..=self.used]
    }

    /// The guesses that are computed.
    pub(super) fn guesses(&self) -> &[u32] {
        &self.tokens[1..=self.used]
    }

    /// Compares guesses with the chosen tokens. One guess is compared even if none was computed, so that a rate that was
    /// low can rise again. The answer is the new rate, and the count of right guesses that were computed.
    pub(super) fn verify(&self, chosen: impl Iterator<Item = u32>) -> (f64, usize) {
        let (mut rate, mut right) = (self.rate, 0);
        for (&guess, token) in self.tokens[1..=self.used.max(1)].iter().zip(chosen) {
            let is_right = guess == token;
            rate += WEIGHT * (f64::from(u8::from(is_right)) - rate);
            right += usize::from(is_right && self.used > 0);
        }
        (rate, right)
    }

    /// How likely one more guess is right, with all before it.
    fn chance(&self) -> f64 {
        self.rate.powi(self.used as i32 + 1)
    }
}

/// Lengthens the drafts of a step in which each sequence has one row, while a guess saves more time than it takes. Beside
/// others a draft only fills the step up to the target, in seconds. The answer is the step's size.
pub(super) fn fill(drafts: &mut [Option<Draft>], mut size: Size, pace: &Pace, target: f64) -> Size {
    let sequences = drafts.len();
    // What a token takes without drafts.
    let worth = pace.predict(size) / sequences as f64;
    while size.rows < MOST_LOGITS {
        let longer = drafts.iter_mut().flatten().filter(|draft| draft.used + 1 < draft.tokens.len());
        let Some(best) = longer.max_by(|a, b| a.chance().total_cmp(&b.chance())) else { break };
        let grown = size + Size::of(best.start + best.used + 1, 1);
        let time = pace.predict(grown);
        if best.chance() * worth <= time - pace.predict(size) || (sequences > 1 && time > target) {
            break;
        }
        best.used += 1;
        size = grown;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guesses(tokens: &[u32], most: usize) -> Option<Vec<u32>> {
        Draft::of(tokens, most, 1.0).map(|draft| draft.tokens[1..].to_vec())
    }

    #[test]
    fn guess_goes_on_from_the_longest_and_then_the_last_match() {
        assert_eq!(guesses(&[1, 2, 3, 4, 9, 2, 3], 2), Some(vec![4, 9]));
        assert_eq!(guesses(&[2, 3, 4, 2, 3, 5, 2, 3], 1), Some(vec![5]), "the last");
        assert_eq!(guesses(&[1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 2), Some(vec![4, 9]), "the longest");
        assert_eq!(guesses(&[7, 8, 7, 8], 5), Some(vec![7, 8, 7, 8, 7]), "a cycle");
        assert_eq!(guesses(&[7, 7, 7], 3), Some(vec![7, 7, 7]));
        for (tokens, most) in [(&[][..], 3), (&[1], 3), (&[1, 1], 3), (&[1, 2, 9, 2], 3), (&[1, 2, 1, 2], 0)] {
            assert_eq!(guesses(tokens, most), None, "{tokens:?}");
        }
    }

    /// A model whose step takes a millisecond, and each row a tenth of one.
    fn pace() -> Pace {
        let mut pace = Pace::default();
        for step in 0..300usize {
            let rows = 1 + step % 20;
            pace.learn(Size { rows, context: rows * 10 }, 1e-3 + 1e-4 * rows as f64);
        }
        pace
    }

    fn lengths(rates: &[f64], target: f64) -> Vec<usize> {
        let draft = |&rate: &f64| Draft::of(&[7, 8, 7, 8], 8, rate);
        let mut drafts: Vec<Option<Draft>> = rates.iter().map(draft).collect();
        let size = Size { rows: rates.len(), context: 4 * rates.len() };
        let grown = fill(&mut drafts, size, &pace(), target);
        let used: Vec<usize> = drafts.iter().flatten().map(|draft| draft.used).collect();
        assert_eq!(grown.rows, rates.len() + used.iter().sum::<usize>());
        used
    }

    #[test]
    fn drafts_are_as_long_as_their_guesses_are_good_and_the_batch_has_room() {
        assert_eq!(lengths(&[1.0], 0.0), [8], "alone the target does not count");
        assert_eq!(lengths(&[0.05], 1.0), [0], "guesses that are wrong are not computed");
        assert!((1..=4).contains(&lengths(&[0.5], 1.0)[0]));
        let two = lengths(&[0.9, 0.4], 1.0);
        assert!(two[0] > two[1], "{two:?}");
        assert_eq!(lengths(&[1.0, 1.0], 1e-3), [0, 0], "the step is full");
        assert!(lengths(&[1.0; 20], 1.0).iter().sum::<usize>() <= 12, "rows of logits are bounded");
        assert_eq!(lengths(&[0.5; 20], 1.0), [0; 20], "in a large batch a row costs as much as a token");
    }

    #[test]
    fn rate_follows_the_guesses_even_of_drafts_that_are_not_computed() {
        let mut draft = Draft::of(&[7, 8, 7, 8], 3, FIRST_RATE).unwrap();
        assert!(draft.guesses().is_empty() && draft.rows() == [8]);
        let (up, right) = draft.verify([7].into_iter());
        assert!(up > FIRST_RATE && right == 0);
        assert!(draft.verify([9].into_iter()).0 < FIRST_RATE);
        draft.used = 3;
        assert_eq!((draft.guesses(), draft.rows()), (&[7, 8, 7][..], &[8, 7, 8, 7][..]));
        assert_eq!(draft.verify([7, 8, 9].into_iter()).1, 2);
        assert_eq!(draft.verify([7, 8, 7, 1].into_iter()).1, 3, "a token behind the draft is no guess");
    }
}
