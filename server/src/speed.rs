//! The speed of a model on this machine, by each executor that serves it, before it is deployed.

use std::time::Instant;

use camino::Utf8Path;
use serde::Serialize;
use textnlp_inference::executor::{Executor, LogitRows, RowSpan, SeqId};
use textnlp_inference::family::Served;
use textnlp_inference::format::family;
use textnlp_models::{Memory, WeightFormat};

use crate::config::{self, Weights};
use crate::error::chain;
use crate::executors::{Loaded, Opened, Place};
use crate::models::fitting;

/// Tokens of a prompt.
const PROMPT: usize = 128;
/// Tokens that are generated after it.
const GENERATED: usize = 32;
/// Sequences that are decoded together.
pub const STREAMS: usize = 8;
/// Measured rounds, after one that is not; the median counts.
const ROUNDS: usize = 3;
/// Positions of a block of keys and values.
const BLOCK: usize = 32;

/// The speed of one executor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// `own` or `candle`.
    pub executor: &'static str,
    /// Seconds until the weights were in memory.
    pub load_seconds: f64,
    /// Tokens of a prompt per second.
    pub prefill: f64,
    /// Tokens per second of one sequence.
    pub decode: f64,
    /// Tokens per second of [`STREAMS`] sequences together.
    pub decode_streams: f64,
    /// Bytes that the weights take in memory.
    pub weights: u64,
}

/// The executors that serve the family of a model and are part of this program, the preferred first.
pub fn executors(path: &Utf8Path) -> Result<Vec<&'static str>, String> {
    let family = family(path.as_std_path()).map_err(|error| chain(&error))?;
    let Some(served) = Served::of(&family) else { return Ok(Vec::new()) };
    let all = [("own", served.own), ("candle", served.candle && cfg!(feature = "candle"))];
    Ok(all.into_iter().filter(|(_, serves)| *serves).map(|(name, _)| name).collect())
}

/// Loads a model on the CPU and measures it. `threads` is 0 for as many as this process may use; `report` is called
/// with what begins.
pub fn measure(
    path: &Utf8Path,
    format: WeightFormat,
    executor: &'static str,
    threads: usize,
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
    };
    let opened = Opened::new(&model, Place::Cpu)?;
    let context = PROMPT + GENERATED;
    model.context = Some(context);
    let positions = context.next_multiple_of(BLOCK) * STREAMS;
    fitting(&opened.footprint(&model)?, positions, threads, &Memory::here())?;
    report(&format!("{executor}: loading the weights"));
    let started = Instant::now();
    let (loaded, _) = opened.load(&model, threads, positions)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let Loaded::Decoder(mut decoder) = loaded else {
        return Err("an encoder generates no text".to_owned());
    };
    let mut run = Run::new(decoder.as_mut());
    let (mut prefill, mut decode, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        report(&format!("{executor}: round {round} of {ROUNDS}"));
        let (of_prompt, of_one) = run.round(1)?;
        let (_, of_all) = run.round(STREAMS)?;
        if round > 0 {
            prefill.push(of_prompt);
            decode.push(of_one);
            streams.push(of_all);
        }
    }
    Ok(Speed {
        executor,
        load_seconds,
        prefill: median(prefill),
        decode: median(decode),
        decode_streams: median(streams),
        weights: decoder.memory().weights,
    })
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

/// Rounds on one executor.
struct Run<'a> {
    executor: &'a mut dyn Executor,
    prompt: Vec<u32>,
    generated: usize,
}

impl<'a> Run<'a> {
    fn new(executor: &'a mut dyn Executor) -> Run<'a> {
        let (vocab, context) = (executor.shape().vocab.max(1), executor.shape().context);
        // Short contexts are halved.
        let prompt = PROMPT.min(context / 2).max(1);
        let generated = GENERATED.min(context.saturating_sub(prompt)).max(1);
        // Any tokens take the same time.
        let prompt = (0..prompt).map(|at| u32::try_from((at * 7919 + 13) % vocab).unwrap_or_default()).collect();
        Run { executor, prompt, generated }
    }

    /// Prompts of several sequences, one after the other, then their tokens together: tokens per second of each.
    fn round(&mut self, streams: usize) -> Result<(f64, f64), String> {
        let mut open: Vec<(SeqId, u32)> = Vec::new();
        let started = Instant::now();
        for _ in 0..streams {
            let seq = self.executor.open(self.prompt.len() + self.generated);
            let seq = seq.ok_or("there is no memory for keys and values")?;
            let span = RowSpan { seq, start: 0, tokens: &self.prompt, logits: LogitRows::Last };
            self.executor.step(&[span]).map_err(|error| error.to_string())?;
            open.push((seq, best(self.executor.logits())));
        }
        let of_prompts = (streams * self.prompt.len()) as f64 / started.elapsed().as_secs_f64();
        let started = Instant::now();
        for step in 0..self.generated {
            let tokens: Vec<[u32; 1]> = open.iter().map(|(_, next)| [*next]).collect();
            let spans = open.iter().zip(&tokens).map(|((seq, _), tokens)| RowSpan {
                seq: *seq,
                start: self.prompt.len() + step,
                tokens,
                logits: LogitRows::Last,
            });
            let spans: Vec<_> = spans.collect();
            self.executor.step(&spans).map_err(|error| error.to_string())?;
            let vocab = self.executor.shape().vocab.max(1);
            for ((_, next), row) in open.iter_mut().zip(self.executor.logits().chunks(vocab)) {
                *next = best(row);
            }
        }
        let of_tokens = (streams * self.generated) as f64 / started.elapsed().as_secs_f64();
        open.into_iter().for_each(|(seq, _)| self.executor.close(seq));
        Ok((of_prompts, of_tokens))
    }
}

fn best(row: &[f32]) -> u32 {
    (0..).zip(row).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token)
}
