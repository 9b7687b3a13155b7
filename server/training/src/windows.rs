//! Which texts a step reads: windows of the corpus as a pure function of the run's seed and the window's number.

use crate::corpus::{Kind, MARKERS, Split, document};
use crate::error::Result;
use crate::net::Shard;
use crate::rng::Rng;
use crate::tokens::Tokens;

/// Cuts windows of tokens out of the corpus.
pub struct Windows<'a> {
    /// The tokenizer of the run.
    pub tokens: &'a Tokens,
    /// The seed of the corpus and of the windows.
    pub seed: u64,
    /// The corpus has this many documents.
    pub documents: u64,
    /// The model's positions.
    pub context: usize,
}

impl Windows<'_> {
    /// Fills a shard with windows `first..first + count` of `length` tokens each; those with an odd number are echoes if asked for.
    pub fn shard(&self, first: u64, count: usize, length: usize, echoes: bool) -> Result<Shard> {
        let mut shard = Shard { length, ..Shard::default() };
        for window in first..first + count as u64 {
            if echoes && window % 2 == 1 {
                self.echo(window, length, &mut shard);
            } else {
                self.window(window, length, &mut shard)?;
            }
        }
        Ok(shard)
    }

    /// Random tokens, and then pieces of them again and again: what follows a token is what followed it before, and nothing else
    /// tells. Heads that copy form on these within hundreds of steps; on stories alone they take many thousands.
    fn echo(&self, number: u64, length: usize, shard: &mut Shard) {
        let mut rng = Rng::new(self.seed ^ 0xec40, number);
        let first = MARKERS.len();
        let fresh = 8 + rng.below(length / 3);
        let mut ids: Vec<u32> = (0..fresh).map(|_| (first + rng.below(self.tokens.len() - first)) as u32).collect();
        while ids.len() <= length {
            let from = rng.below(fresh - 4);
            let to = (from + 4 + rng.below(24)).min(fresh);
            ids.extend_from_within(from..to);
        }
        self.put(&ids, &mut rng, length, shard);
    }

    fn window(&self, number: u64, length: usize, shard: &mut Shard) -> Result<()> {
        let mut rng = Rng::new(self.seed ^ 0x0057_1d04, number);
        let end = self.tokens.end_of_text()?;
        let mut ids: Vec<u32> = Vec::with_capacity(length + 512);
        // A third of the windows may begin inside a story, so late parts of long ones are read as often as early parts. Half of
        // the others begin without the marker between documents, as a prompt does.
        let start = rng.below(6);
        if start >= 4 {
            ids.push(end);
        }
        while ids.len() <= length {
            let first = ids.is_empty();
            let document = document(self.seed, Split::Train, rng.below(self.documents as usize) as u64);
            let tokens = self.tokens.encode(&document.text)?;
            // Only stories are cut: half an answer at the beginning would look like a prompt.
            let cut = if first && start < 2 && document.kind == Kind::Story { rng.below(tokens.len()) } else { 0 };
            ids.extend_from_slice(&tokens[cut..]);
            ids.push(end);
        }
        self.put(&ids, &mut rng, length, shard);
        Ok(())
    }

    fn put(&self, ids: &[u32], rng: &mut Rng, length: usize, shard: &mut Shard) {
        // Prompts stand at the first positions, so half of the windows do; the others teach all positions.
        let offset = if rng.below(2) == 0 { 0 } else { rng.below(self.context - length + 1) };
        shard.inputs.extend_from_slice(&ids[..length]);
        shard.targets.extend_from_slice(&ids[1..=length]);
        shard.positions.extend((offset..offset + length).map(|p| p as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_windows_are_deterministic_and_stay_in_the_context() {
        let tokens = Tokens::train(1, 500, 100).unwrap();
        let windows = Windows { tokens: &tokens, seed: 5, documents: 1_000, context: 200 };
        let (a, b) = (windows.shard(3, 20, 64, false).unwrap(), windows.shard(3, 20, 64, false).unwrap());
        assert_eq!((&a.inputs, &a.positions), (&b.inputs, &b.positions));
        let alone = windows.shard(5, 1, 64, false).unwrap();
        assert_eq!(a.inputs[2 * 64..3 * 64], alone.inputs[..], "a window does not depend on its shard");
        assert_eq!(a.inputs[1..64], a.targets[..63]);
        assert!(a.positions.iter().all(|&p| p < 200) && a.positions.iter().any(|&p| p > 100));
        assert!(a.positions.chunks(64).filter(|p| p[0] == 0).count() >= 4);
        let echoes = windows.shard(4, 2, 64, true).unwrap();
        assert_eq!(echoes.inputs[..64], a.inputs[64..128], "an even window stays what it is");
        let echo = &echoes.inputs[64..];
        let known = |i: &usize| echo[..*i].windows(2).any(|pair| pair == &echo[i - 1..=*i]);
        assert!((40..64).filter(known).count() >= 12, "most of an echo was heard before");
        let full = windows.shard(0, 2, 200, false).unwrap();
        assert_eq!(full.positions[..200], full.positions[200..]);
    }
}
