//! ROUGE (Lin 2004): overlap of n-grams, and of the longest common subsequence. Without a stemmer, as rouge-score's default.

use super::ngrams;

/// A ROUGE score.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rouge {
    /// How much of the candidate is in the reference.
    pub precision: f64,
    /// How much of the reference is in the candidate.
    pub recall: f64,
    /// Their harmonic mean.
    pub fmeasure: f64,
}

/// ROUGE-N against the reference that fits best.
pub fn rouge_n(candidate: &str, references: &[&str], n: usize) -> Rouge {
    let candidate = candidate.to_lowercase();
    let candidate = words(&candidate);
    best(references, |reference| {
        let reference = reference.to_lowercase();
        let reference = words(&reference);
        let (wanted, found) = (ngrams(&reference, n), ngrams(&candidate, n));
        let both: usize = wanted.iter().map(|(ngram, count)| found.get(ngram).map_or(0, |f| *f.min(count))).sum();
        score(both, found.values().sum(), wanted.values().sum())
    })
}

/// ROUGE-L against the reference that fits best. Costs the product of both lengths: the caller bounds them.
pub fn rouge_l(candidate: &str, references: &[&str]) -> Rouge {
    let candidate = candidate.to_lowercase();
    let candidate = words(&candidate);
    best(references, |reference| {
        let reference = reference.to_lowercase();
        let reference = words(&reference);
        score(longest_common(&reference, &candidate), candidate.len(), reference.len())
    })
}

fn best(references: &[&str], one: impl Fn(&str) -> Rouge) -> Rouge {
    let mut best: Option<Rouge> = None;
    for reference in references {
        let score = one(reference);
        // The first of equals, as numpy's argmax has it.
        if best.is_none_or(|b| score.fmeasure > b.fmeasure) {
            best = Some(score);
        }
    }
    best.unwrap_or_default()
}

fn score(both: usize, found: usize, wanted: usize) -> Rouge {
    let precision = both as f64 / found.max(1) as f64;
    let recall = both as f64 / wanted.max(1) as f64;
    let fmeasure = if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
    Rouge { precision, recall, fmeasure }
}

fn words(lowercase: &str) -> Vec<&str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    lowercase.split(|c| !plain(c)).filter(|word| !word.is_empty()).collect()
}

/// Length of the longest common subsequence, in two rows.
fn longest_common(a: &[&str], b: &[&str]) -> usize {
    let (mut above, mut row) = (vec![0usize; b.len() + 1], vec![0usize; b.len() + 1]);
    for x in a {
        for (j, y) in b.iter().enumerate() {
            row[j + 1] = if x == y { above[j] + 1 } else { row[j].max(above[j + 1]) };
        }
        std::mem::swap(&mut above, &mut row);
    }
    above[b.len()]
}
