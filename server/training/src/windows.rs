//! Which texts a step reads: windows of the corpus as a pure function of the run's seed and the window's number.

use crate::corpus::{Split, document};
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
    /// Fills a shard with windows `first..first + count` of `length` tokens each.
    pub fn shard(&self, first: u64, count: usize, length: usize) -> Result<Shard> {
        let mut shard = Shard { length, ..Shard::default() };
        for window in first..first + count as u64 {
            self.window(window, length, &mut shard)?;
        }
        Ok(shard)
    }

    fn window(&self, number: u64, length: usize, shard: &mut Shard) -> Result<()> {
        let mut rng = Rng::new(self.seed ^ 0x0057_1d04, number);
        let end = self.tokens.end_of_text()?;
        let mut ids: Vec<u32> = Vec::with_capacity(length + 512);
        // A third of the windows begin inside a document, so late parts of long ones are read as often as early parts. Half of
        // the others begin without the marker between documents, as a prompt does.
        let start = rng.below(6);
        if start >= 4 {
            ids.push(end);
        }
        while ids.len() <= length {
            let first = ids.is_empty();
            let text = document(self.seed, Split::Train, rng.below(self.documents as usize) as u64).text;
            let tokens = self.tokens.encode(&text)?;
            let cut = if first && start < 2 { rng.below(tokens.len()) } else { 0 };
            ids.extend_from_slice(&tokens[cut..]);
            ids.push(end);
        }
        // Prompts stand at the first positions, so half of the windows do; the others teach all positions.
        let offset = if rng.below(2) == 0 { 0 } else { rng.below(self.context - length + 1) };
        shard.inputs.extend_from_slice(&ids[..length]);
        shard.targets.extend_from_slice(&ids[1..=length]);
        shard.positions.extend((offset..offset + length).map(|p| p as u32));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_functions_of_their_number_and_stay_in_the_context() {
        let tokens = Tokens::train(1, 500, 100).unwrap();
        let windows = Windows { tokens: &tokens, seed: 5, documents: 1_000, context: 200 };
        let (a, b) = (windows.shard(3, 20, 64).unwrap(), windows.shard(3, 20, 64).unwrap());
        assert_eq!((&a.inputs, &a.positions), (&b.inputs, &b.positions));
        let alone = windows.shard(5, 1, 64).unwrap();
        assert_eq!(a.inputs[2 * 64..3 * 64], alone.inputs[..], "a window does not depend on its shard");
        assert_eq!(a.inputs[1..64], a.targets[..63]);
        assert!(a.positions.iter().all(|&p| p < 200) && a.positions.iter().any(|&p| p > 100));
        assert!(a.positions.chunks(64).filter(|p| p[0] == 0).count() >= 4);
        let full = windows.shard(0, 2, 200).unwrap();
        assert_eq!(full.positions[..200], full.positions[200..]);
    }
}
