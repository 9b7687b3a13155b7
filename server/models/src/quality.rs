//! What the format of the weights changes in what a model says, measured with a text.

use camino::Utf8Path;
use serde::Serialize;
use textnlp_inference::cpu::{Cpu, LoadOptions};
use textnlp_inference::executor::{Executor, LogitRows, RowSpan, SeqId};
use textnlp_inference::files::{ModelFiles, OpenError};

use crate::error::{Error, Result};
use crate::weight_format::WeightFormat;

/// Tokens of a text that are compared; what follows is left out.
const MOST_TOKENS: usize = 8192;
/// Tokens of a text at least: fewer say nothing about a model.
const FEWEST_TOKENS: usize = 64;
/// Tokens that are predicted from what stands before them in the same window.
const WINDOW: usize = 512;
/// Rows of a window whose logits are held at once: of 262,144 tokens, 32 take 32 MiB.
const ROWS: usize = 32;

/// Why a text cannot be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmeasurable {
    /// It has this many tokens.
    #[error("the text has {0} tokens, and at least {FEWEST_TOKENS} are needed")]
    Text(usize),
    /// The context of the model has this many tokens.
    #[error("the context of the model is {0}, and at least {FEWEST_TOKENS} are needed")]
    Context(usize),
}

/// Cuts the tokens of a text into the sequences that measure it. Each begins with `first`, the token that the texts of the model
/// begin with, and predicts every token from those before it in the same sequence. What follows the first 8192 tokens is left out.
pub fn windows(tokens: &[u32], first: Option<u32>, context: usize) -> Result<Vec<Vec<u32>>, Unmeasurable> {
    if tokens.len() < FEWEST_TOKENS {
        return Err(Unmeasurable::Text(tokens.len()));
    }
    if context < FEWEST_TOKENS {
        return Err(Unmeasurable::Context(context));
    }
    let room = WINDOW.min(context) - usize::from(first.is_some());
    let parts = tokens[..tokens.len().min(MOST_TOKENS)].chunks(room);
    let windows = parts.map(|part| first.into_iter().chain(part.iter().copied()).collect::<Vec<u32>>());
    // The first token of a sequence is not predicted.
    Ok(windows.filter(|window| window.len() > 1).collect())
}

/// The predictions for a text with weights in a format, beside those with the weights as stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// Tokens that were predicted.
    pub tokens: u64,
    /// The perplexity of the text with the weights as stored.
    pub perplexity_stored: f64,
    /// The same with the weights in the format.
    pub perplexity: f64,
    /// The mean Kullback-Leibler divergence of the predictions from those of the stored weights, in nats.
    pub divergence: f64,
    /// The share of tokens for which both have the same best prediction.
    pub same_best: f64,
}

/// Loads a model that the own kernels serve twice, as stored and with its weights in a format, and compares what both predict for a
/// text. `report` is called with the share that is done.
pub fn quality(path: &Utf8Path, held: WeightFormat, text: &str, report: &dyn Fn(f64)) -> Result<Quality> {
    let files = ModelFiles::open(path.as_std_path())?;
    let tokens = files.tokenizer.encode(text, false).map_err(OpenError::from)?;
    let context = files.checkpoint.architecture().context;
    let rows = windows(&tokens, files.tokenizer.bos(), context).map_err(|why| Error::Unusable {
        what: path.to_string(),
        why: why.to_string(),
        hint: "give a text like those that the model is to continue, of some pages".to_owned(),
    })?;
    let window = WINDOW.min(context);
    let load = |format: WeightFormat| {
        let options = LoadOptions {
            quantize: format.quant(),
            context: Some(window),
            kv_positions: Some(window),
            ..LoadOptions::default()
        };
        Cpu::load(&files.checkpoint, &options).map(|(cpu, _)| cpu).map_err(OpenError::from)
    };
    let (mut stored, mut other) = (load(WeightFormat::AsIs)?, load(held)?);
    let mut sums = Sums::default();
    let (count, mut done) = (rows.iter().map(Vec::len).sum::<usize>(), 0);
    for row in rows {
        let (a, b) = (open(&mut stored, path, row.len())?, open(&mut other, path, row.len())?);
        for start in (0..row.len() - 1).step_by(ROWS) {
            // The last token of a window predicts nothing that is known.
            let end = (start + ROWS).min(row.len() - 1);
            let (rows, next) = (&row[start..end], &row[start + 1..=end]);
            let vocab = stored.shape().vocab;
            let left = compute(&mut stored, path, a, start, rows)?.chunks_exact(vocab);
            let right = compute(&mut other, path, b, start, rows)?.chunks_exact(vocab);
            for ((left, right), next) in left.zip(right).zip(next) {
                sums.add(left, right, *next as usize);
            }
        }
        stored.close(a);
        other.close(b);
        done += row.len();
        report(done as f64 / count as f64);
    }
    Ok(sums.quality())
}

fn open(cpu: &mut Cpu, path: &Utf8Path, positions: usize) -> Result<SeqId> {
    cpu.open(positions).ok_or_else(|| failed(path, "there is no memory for keys and values".to_owned()))
}

/// The logits of rows of a sequence.
fn compute<'a>(cpu: &'a mut Cpu, path: &Utf8Path, seq: SeqId, start: usize, tokens: &[u32]) -> Result<&'a [f32]> {
    let rows = [RowSpan { seq, start, tokens, logits: LogitRows::All }];
    cpu.step(&rows).map_err(|error| failed(path, error.to_string()))?;
    Ok(cpu.logits())
}

fn failed(path: &Utf8Path, why: String) -> Error {
    Error::Unusable { what: path.to_string(), why, hint: "see `textnlp-deploy model inspect`".to_owned() }
}

/// What is added up over all tokens, in nats where nothing else is said.
#[derive(Default)]
struct Sums {
    tokens: u64,
    surprise_stored: f64,
    surprise: f64,
    divergence: f64,
    /// How often both have the same best prediction.
    same_best: u64,
}

impl Sums {
    /// Adds one token, which follows the rows of these logits.
    fn add(&mut self, stored: &[f32], other: &[f32], next: usize) {
        let (a, b) = (Prediction::of(stored), Prediction::of(other));
        self.tokens += 1;
        self.surprise_stored -= a.log(stored, next);
        self.surprise -= b.log(other, next);
        let parts = (0..stored.len().min(other.len())).map(|token| {
            let log = a.log(stored, token);
            log.exp() * (log - b.log(other, token))
        });
        self.divergence += parts.sum::<f64>();
        self.same_best += u64::from(a.best == b.best);
    }

    fn quality(&self) -> Quality {
        let tokens = self.tokens.max(1) as f64;
        Quality {
            tokens: self.tokens,
            perplexity_stored: (self.surprise_stored / tokens).exp(),
            perplexity: (self.surprise / tokens).exp(),
            // Rounding can take equal predictions below zero.
            divergence: (self.divergence / tokens).max(0.0),
            same_best: self.same_best as f64 / tokens,
        }
    }
}

/// What turns logits into probabilities.
struct Prediction {
    best: usize,
    /// The logarithm of the sum of all exponentials.
    total: f64,
}

impl Prediction {
    fn of(logits: &[f32]) -> Prediction {
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or_default();
        let most = logits.get(best).copied().map_or(0.0, f64::from);
        let sum = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum::<f64>();
        Prediction { best, total: most + sum.ln() }
    }

    /// The logarithm of a token's probability; of one that the model does not have, nothing that is finite.
    fn log(&self, logits: &[f32], token: usize) -> f64 {
        logits.get(token).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit) - self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_every_token_once_and_begin_as_texts_of_the_model_do() {
        let tokens: Vec<u32> = (10..1300).collect();
        let with_first = windows(&tokens, Some(1), 4096).unwrap();
        assert!(with_first.iter().all(|window| window[0] == 1 && window.len() <= WINDOW));
        let again: Vec<u32> = with_first.iter().flat_map(|window| window[1..].iter().copied()).collect();
        assert_eq!(again, tokens);
        let short = windows(&tokens, None, 100).unwrap();
        assert_eq!((short.len(), short.concat()), (13, tokens));
    }

    #[test]
    fn token_that_nothing_stands_before_is_not_measured_alone() {
        let tokens: Vec<u32> = (0..=WINDOW as u32).collect();
        assert_eq!(windows(&tokens, None, 4096).unwrap(), [&tokens[..WINDOW]]);
        assert_eq!(windows(&tokens, Some(7), 4096).unwrap().concat().len(), WINDOW + 3);
    }

    #[test]
    fn long_texts_are_cut_and_short_ones_are_refused() {
        let long = windows(&vec![3; 3 * MOST_TOKENS], None, 4096).unwrap();
        assert_eq!(long.concat().len(), MOST_TOKENS);
        assert_eq!(windows(&[3; 63], None, 4096), Err(Unmeasurable::Text(63)));
        assert!(windows(&[3; 64], Some(1), 64).is_ok());
        assert_eq!(windows(&[3; 64], Some(1), 63), Err(Unmeasurable::Context(63)));
    }

    #[test]
    fn sums_are_those_of_probabilities() {
        let mut sums = Sums::default();
        let logits = |shares: [f32; 2]| shares.map(|share| share.ln() + 3.0);
        // Half and half, beside a quarter and three quarters; the second token follows twice.
        sums.add(&logits([0.5, 0.5]), &logits([0.25, 0.75]), 1);
        sums.add(&logits([0.4, 0.6]), &logits([0.4, 0.6]), 1);
        let found = sums.quality();
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-6, "{value} is not {wanted}");
        near(found.perplexity_stored, (0.5f64 * 0.6).powf(-0.5));
        near(found.perplexity, (0.75f64 * 0.6).powf(-0.5));
        near(found.divergence, 0.5 * (0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln()));
        assert_eq!((found.tokens, found.same_best), (2, 1.0));
    }
}
