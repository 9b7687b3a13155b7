//! BLEU (Papineni et al. 2002) of one text, with the tokenizer `13a` and the smoothing methods of Chen and Cherry (2014) by the
//! names that sacrebleu gives them.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::LazyLock;

use regex::Regex;

use super::{is_space, ngrams};

/// Smoothing of n-gram orders without a match.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Smoothing {
    /// None: one order without a match makes the score 0.
    None,
    /// Counts this much instead of 0 (0.1).
    Floor(f64),
    /// Adds this to matches and totals of the orders above one (1).
    AddK(f64),
    /// Halves the credit with each order without a match: NIST's method, and sacrebleu's default.
    Exp,
}

impl Smoothing {
    /// The names that requests use.
    pub const NAMES: &'static [&'static str] = &["exp", "floor", "add-k", "none"];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Floor(_) => "floor",
            Self::AddK(_) => "add-k",
            Self::Exp => "exp",
        }
    }

    /// The same method with another value, for the two that have one.
    pub fn with(self, value: f64) -> Option<Self> {
        match self {
            Self::Floor(_) => Some(Self::Floor(value)),
            Self::AddK(_) => Some(Self::AddK(value)),
            Self::None | Self::Exp => None,
        }
    }
}

impl FromStr for Smoothing {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "none" => Ok(Self::None),
            "floor" => Ok(Self::Floor(0.1)),
            "add-k" => Ok(Self::AddK(1.0)),
            "exp" => Ok(Self::Exp),
            _ => Err(()),
        }
    }
}

/// How BLEU is computed.
#[derive(Debug, Clone, Copy)]
pub struct BleuOptions {
    /// The smoothing method.
    pub smoothing: Smoothing,
    /// Capital letters do not count.
    pub lowercase: bool,
    /// Scores a text shorter than four words only by the orders that it has.
    pub effective_order: bool,
}

impl Default for BleuOptions {
    fn default() -> Self {
        Self { smoothing: Smoothing::Exp, lowercase: false, effective_order: true }
    }
}

/// A BLEU score with its parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Bleu {
    /// From 0 to 100.
    pub score: f64,
    /// Per order, in percent.
    pub precisions: [f64; 4],
    /// Below 1 when the candidate is shorter than its reference.
    pub brevity_penalty: f64,
    /// Words of the candidate.
    pub candidate_length: usize,
    /// Words of the reference that is nearest in length.
    pub reference_length: usize,
}

const ORDERS: usize = 4;

/// Scores a candidate against one or more references.
pub fn bleu(candidate: &str, references: &[&str], options: BleuOptions) -> Bleu {
    let candidate = tokenized(candidate, options.lowercase);
    let candidate = words(&candidate);
    let references: Vec<String> = references.iter().map(|text| tokenized(text, options.lowercase)).collect();
    let references: Vec<Vec<&str>> = references.iter().map(|line| words(line)).collect();
    let (mut correct, mut total) = ([0.0; ORDERS], [0.0; ORDERS]);
    // One order after the other: the n-grams of all of them would take four times the memory.
    for n in 1..=ORDERS {
        let mut wanted: HashMap<&[&str], usize> = HashMap::new();
        for reference in &references {
            for (ngram, count) in ngrams(reference, n) {
                let most = wanted.entry(ngram).or_default();
                *most = count.max(*most);
            }
        }
        for (ngram, count) in ngrams(&candidate, n) {
            total[n - 1] += count as f64;
            correct[n - 1] += count.min(wanted.get(ngram).copied().unwrap_or(0)) as f64;
        }
    }
    let long = candidate.len();
    let nearest = references.iter().map(Vec::len).min_by_key(|len| (len.abs_diff(long), *len)).unwrap_or(0);
    let brevity_penalty = match long {
        _ if long >= nearest => 1.0,
        0 => 0.0,
        _ => (1.0 - nearest as f64 / long as f64).exp(),
    };
    let mut precisions = [0.0; ORDERS];
    let mut score = 0.0;
    if correct.iter().any(|c| *c > 0.0) {
        let mut orders = ORDERS;
        let mut halved = 1.0;
        for n in 0..ORDERS {
            if let (Smoothing::AddK(k), 1..) = (options.smoothing, n) {
                correct[n] += k;
                total[n] += k;
            }
            if total[n] == 0.0 {
                break;
            }
            if options.effective_order {
                orders = n + 1;
            }
            precisions[n] = match options.smoothing {
                _ if correct[n] > 0.0 => 100.0 * correct[n] / total[n],
                Smoothing::Exp => {
                    halved *= 2.0;
                    100.0 / (halved * total[n])
                }
                Smoothing::Floor(value) => 100.0 * value / total[n],
                _ => 0.0,
            };
        }
        // The logarithm of nothing is sacrebleu's "very small", so that one empty order makes the product 0.
        let log = |p: f64| if p == 0.0 { -9_999_999_999.0 } else { p.ln() };
        let sum: f64 = precisions[..orders].iter().map(|p| log(*p)).sum();
        score = brevity_penalty * (sum / orders as f64).exp();
    }
    Bleu { score, precisions, brevity_penalty, candidate_length: long, reference_length: nearest }
}

/// The four substitutions of mteval-v13a, in their order.
#[allow(clippy::expect_used)]
static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    let rule = |pattern| Regex::new(pattern).expect("a constant pattern");
    [
        (rule(r"([\{-~\[-` -&\(-\+:-@/])"), " ${1} "),
        (rule(r"([^0-9])([\.,])"), "${1} ${2} "),
        (rule(r"([\.,])([^0-9])"), " ${1} ${2}"),
        (rule(r"([0-9])(-)"), "${1} ${2} "),
    ]
});

/// A text with spaces between its words.
fn tokenized(text: &str, lowercase: bool) -> String {
    let lowered = if lowercase { text.to_lowercase() } else { text.to_owned() };
    let mut line = lowered.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        line = line.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    }
    line = format!(" {line} ");
    for (pattern, replacement) in RULES.iter() {
        line = pattern.replace_all(&line, *replacement).into_owned();
    }
    line
}

fn words(line: &str) -> Vec<&str> {
    line.split(is_space).filter(|word| !word.is_empty()).collect()
}
