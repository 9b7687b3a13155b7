//! The speed of a model on this machine, by each executor that serves it, before it is deployed.

use std::time::Instant;

use camino::Utf8Path;
use serde::Serialize;
use textnlp_inference::cpu::Encoder;
use textnlp_inference::executor::{Executor, LogitRows, RowSpan, SeqId};
use textnlp_inference::family::Served;
use textnlp_inference::format::{family, is_encoder};
use textnlp_models::{Memory, WeightFormat};

use crate::config::{self, ByteSize, Weights};
use crate::error::chain;
use crate::executors::{Loaded, Opened, Place};
use crate::models::fitting;

/// Tokens of a prompt, unless others are chosen.
const PROMPT: usize = 128;
/// Tokens that are generated after a prompt.
pub const GENERATED: usize = 32;
/// Measured rounds, after one that is not; the median counts.
const ROUNDS: usize = 3;
/// Positions of a block of keys and values.
const BLOCK: usize = 32;

/// What is measured: each length of a prompt with each count of sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Tokens of a prompt, or of a text of an encoder, in ascending order. None are 128, or half of a shorter context.
    pub prompt_tokens: Vec<usize>,
    /// Sequences that are computed together, in ascending order.
    pub sequences: Vec<usize>,
}

/// The speed of one executor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// `own` or `candle`.
    pub executor: &'static str,
    /// Seconds until the weights were in memory.
    pub load_seconds: f64,
    /// Tokens of the shortest prompts per second, with the fewest sequences.
    pub prefill: f64,
    /// Tokens per second that are generated after them; `None` for an encoder.
    pub decode: Option<f64>,
    /// The same with the most sequences.
    pub decode_streams: Option<f64>,
    /// Bytes that the weights take in memory.
    pub weights: u64,
    /// Every measurement.
    pub results: Vec<SpeedResult>,
}

/// The speed with one length of a prompt and one count of sequences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpeedResult {
    /// Tokens of each prompt, or of each text of an encoder.
    pub prompt_tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Tokens that are generated after each prompt; an encoder generates none.
    pub generated_tokens: usize,
    /// Tokens of prompts per second.
    pub prefill: f64,
    /// Generated tokens per second, of all sequences together; `None` for an encoder.
    pub decode: Option<f64>,
}

impl Speed {
    /// Seconds that everything measured would take once.
    fn seconds(&self) -> f64 {
        let of = |result: &SpeedResult| {
            let generated = result.decode.map_or(0.0, |decode| result.generated_tokens as f64 / decode);
            // `prefill` and `decode` are of all sequences together.
            result.sequences as f64 * (result.prompt_tokens as f64 / result.prefill + generated)
        };
        self.results.iter().map(of).sum()
    }
}

/// The executor that took the least time for all that was measured, of at least two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fastest {
    /// `own` or `candle`.
    pub executor: &'static str,
    /// The next one.
    pub next: &'static str,
    /// How many times faster it is than the next one.
    pub times: f64,
    /// Whether servers choose it where a model names no executor.
    pub is_default: bool,
}

/// A smaller difference than this is that of two runs of one executor.
const LEAST_DIFFERENCE: f64 = 1.05;

/// The fastest of the executors of a model, which are in the order of [`executors`]; none where two take about the same time.
pub fn fastest(measured: &[Speed]) -> Option<Fastest> {
    let mut order: Vec<(usize, &Speed)> = measured.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| a.seconds().total_cmp(&b.seconds()));
    let [(place, first), (_, next), ..] = order.as_slice() else { return None };
    let times = next.seconds() / first.seconds();
    let found = Fastest { executor: first.executor, next: next.executor, times, is_default: *place == 0 };
    (times >= LEAST_DIFFERENCE).then_some(found)
}

/// The executors that serve the family of a model and are part of this program, the preferred first.
pub fn executors(path: &Utf8Path) -> Result<Vec<&'static str>, String> {
    if is_encoder(path.as_std_path()) == Some(true) {
        return Ok(vec!["own"]);
    }
    let family = family(path.as_std_path()).map_err(|error| chain(&error))?;
    let Some(served) = Served::of(&family) else { return Ok(Vec::new()) };
    let all = [("own", served.own), ("candle", served.candle && cfg!(feature = "candle"))];
    Ok(all.into_iter().filter(|(_, serves)| *serves).map(|(name, _)| name).collect())
}

/// Loads a model on the CPU and measures it. `threads` is 0 for as many as this process may use; `report` is called with
/// what begins.
pub fn measure(
    path: &Utf8Path,
    format: WeightFormat,
    executor: &'static str,
    threads: usize,
    matrix: &Matrix,
    report: &dyn Fn(&str),
) -> Result<Speed, String> {
    let mut model = config::Model {
        name: "measured".to_owned(),
        tenant: None,
        path: path.to_owned(),
        quantize: weights(format),
        context: None,
        executor: Some(if executor == "own" { config::Executor::Own } else { config::Executor::Candle }),
        matryoshka: false,
        parse_special_tokens: false,
        quality_text: None,
    };
    let opened = Opened::new(&model, Place::Cpu)?;
    let generated = if matches!(opened, Opened::Encoder(_)) { 0 } else { GENERATED };
    let longest = matrix.prompt_tokens.iter().copied().max().unwrap_or(PROMPT);
    let most = matrix.sequences.iter().copied().max().unwrap_or(1);
    let context = longest + generated;
    model.context = Some(context);
    let positions = context.next_multiple_of(BLOCK) * most;
    let (footprint, memory) = (opened.footprint(&model)?, Memory::here());
    fitting(&footprint, positions, threads, &memory)?;
    let needed = footprint.total(positions, threads);
    if memory.total > 0 && needed > memory.available {
        return Err(format!(
            "{most} sequences of {context} tokens take {}, but {} are free ({}); measure fewer sequences or shorter prompts",
            ByteSize(needed),
            ByteSize(memory.available),
            memory.bound_by
        ));
    }
    report(&format!("{executor}: loading the weights"));
    let started = Instant::now();
    let (mut loaded, _) = opened.load(&model, threads, positions)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let (context, vocab, weights) = match &loaded {
        Loaded::Decoder(decoder) => (decoder.shape().context, decoder.shape().vocab, decoder.memory().weights),
        Loaded::Encoder(encoder) => {
            (encoder.settings().max_tokens, encoder.architecture().vocab, encoder.memory().weights)
        }
    };
    let prompts = match matrix.prompt_tokens.as_slice() {
        [] if context >= PROMPT + generated => vec![PROMPT],
        [] => vec![(context / 2).max(1)],
        chosen => chosen.to_vec(),
    };
    // Any tokens take the same time.
    let tokens = (0..longest).map(|at| u32::try_from((at * 7919 + 13) % vocab.max(1)).unwrap_or_default());
    let tokens: Vec<u32> = tokens.collect();
    let mut results = Vec::new();
    for prompt_tokens in prompts {
        let generated_tokens = generated.min(context.saturating_sub(prompt_tokens));
        let prompt = tokens.get(..prompt_tokens).filter(|_| prompt_tokens + generated.min(1) <= context);
        let prompt = prompt
            .ok_or_else(|| format!("a prompt of {prompt_tokens} tokens does not fit in a context of {context}"))?;
        for &sequences in &matrix.sequences {
            let (mut prefill, mut decode) = (Vec::new(), Vec::new());
            for round in 0..=ROUNDS {
                report(&format!("{executor}: {sequences} × {prompt_tokens} tokens, round {round} of {ROUNDS}"));
                let (of_prompts, of_tokens) = match &mut loaded {
                    Loaded::Decoder(decoder) => {
                        let (of_prompts, of_tokens) = generate(decoder.as_mut(), prompt, sequences, generated_tokens)?;
                        (of_prompts, Some(of_tokens))
                    }
                    Loaded::Encoder(encoder) => (embed(encoder, prompt, sequences)?, None),
                };
                if round > 0 {
                    prefill.push(of_prompts);
                    decode.extend(of_tokens);
                }
            }
            let decode = (!decode.is_empty()).then(|| median(decode));
            results.push(SpeedResult { prompt_tokens, sequences, generated_tokens, prefill: median(prefill), decode });
        }
    }
    let first = results.first().ok_or("nothing was to be measured")?;
    let (prefill, decode) = (first.prefill, first.decode);
    let decode_streams = results.get(matrix.sequences.len() - 1).and_then(|result| result.decode);
    Ok(Speed { executor, load_seconds, prefill, decode, decode_streams, weights, results })
}

fn weights(format: WeightFormat) -> Option<Weights> {
    match format {
        WeightFormat::F32 => Some(Weights::F32),
        WeightFormat::F16 => Some(Weights::F16),
        WeightFormat::Q8_0 => Some(Weights::Q8_0),
        WeightFormat::Q4_0 => Some(Weights::Q4_0),
        WeightFormat::AsIs => None,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Prompts of several sequences, one after the other, then their tokens together: tokens per second of each.
fn generate(
    executor: &mut dyn Executor,
    prompt: &[u32],
    sequences: usize,
    generated: usize,
) -> Result<(f64, f64), String> {
    let mut open: Vec<(SeqId, u32)> = Vec::new();
    let started = Instant::now();
    for _ in 0..sequences {
        let seq = executor.open(prompt.len() + generated).ok_or("there is no memory for keys and values")?;
        let span = RowSpan { seq, start: 0, tokens: prompt, logits: LogitRows::Last };
        executor.step(&[span]).map_err(|error| error.to_string())?;
        open.push((seq, best(executor.logits())));
    }
    let of_prompts = (sequences * prompt.len()) as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    for step in 0..generated {
        let tokens: Vec<[u32; 1]> = open.iter().map(|(_, next)| [*next]).collect();
        let spans = open.iter().zip(&tokens).map(|((seq, _), tokens)| RowSpan {
            seq: *seq,
            start: prompt.len() + step,
            tokens,
            logits: LogitRows::Last,
        });
        let spans: Vec<_> = spans.collect();
        executor.step(&spans).map_err(|error| error.to_string())?;
        let vocab = executor.shape().vocab.max(1);
        for ((_, next), row) in open.iter_mut().zip(executor.logits().chunks(vocab)) {
            *next = best(row);
        }
    }
    let of_tokens = (sequences * generated) as f64 / started.elapsed().as_secs_f64();
    open.into_iter().for_each(|(seq, _)| executor.close(seq));
    Ok((of_prompts, of_tokens))
}

/// Vectors of equal texts, as many in a step as it takes: tokens per second.
fn embed(encoder: &mut Encoder, text: &[u32], texts: usize) -> Result<f64, String> {
    let (most_texts, most_tokens) = encoder.room();
    let of_step = (most_tokens / text.len().max(1)).clamp(1, most_texts);
    let all = vec![text; texts];
    let started = Instant::now();
    for step in all.chunks(of_step) {
        encoder.embed(step).map_err(|error| error.to_string())?;
    }
    Ok((texts * text.len()) as f64 / started.elapsed().as_secs_f64())
}

fn best(row: &[f32]) -> u32 {
    (0..).zip(row).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(executor: &'static str, results: &[(usize, f64, f64)]) -> Speed {
        let result = |&(sequences, prefill, decode): &(usize, f64, f64)| SpeedResult {
            prompt_tokens: 128,
            sequences,
            generated_tokens: 32,
            prefill,
            decode: Some(decode),
        };
        Speed {
            executor,
            load_seconds: 0.0,
            prefill: 0.0,
            decode: None,
            decode_streams: None,
            weights: 0,
            results: results.iter().map(result).collect(),
        }
    }

    #[test]
    fn fastest_executor_takes_the_least_time_for_all_results() {
        // 128 / 128 + 32 / 16 is 3 s. The other one is faster with one sequence, and slower with eight.
        let own = speed("own", &[(1, 128.0, 16.0), (8, 128.0, 32.0)]);
        let candle = speed("candle", &[(1, 128.0, 32.0), (8, 64.0, 32.0)]);
        let found = fastest(&[own.clone(), candle.clone()]).unwrap();
        assert_eq!((found.executor, found.next, found.is_default), ("own", "candle", true));
        assert!((found.times - 26.0 / 19.0).abs() < 1e-9, "{found:?}");
        let only = |speed: &Speed| Speed { results: speed.results[..1].to_vec(), ..speed.clone() };
        let found = fastest(&[only(&own), only(&candle)]).unwrap();
        assert_eq!((found.executor, found.is_default), ("candle", false));
        assert_eq!(fastest(std::slice::from_ref(&own)), None, "one is not compared");
        assert_eq!(fastest(&[own.clone(), Speed { executor: "candle", ..own }]), None, "they are as fast");
    }
}
