//! What the tests of models share: the golden files, and a way to run tokens.

#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use textnlp_inference::cpu::{Cpu, LoadOptions, Quant};
use textnlp_inference::executor::{Executor, LogitRows, RowSpan};
use textnlp_inference::format::Checkpoint;

/// The golden models in safetensors.
pub const MODELS: &[&str] = &[
    "gpt2",
    "gpt2-odd",
    "llama",
    "llama-tied",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3-window",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-long",
    "olmo2",
    "starcoder2",
];

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[derive(serde::Deserialize)]
pub struct Expected {
    pub tokens: Vec<u32>,
    pub positions: Vec<usize>,
    pub logits: Vec<Vec<f32>>,
    /// The best token after all, after that one, and so on.
    pub greedy: Vec<u32>,
    /// The context that the model is loaded with, if not its own.
    #[serde(default)]
    pub context: Option<usize>,
    /// Another configuration of the model `llama`.
    #[serde(default)]
    pub config: serde_json::Value,
}

pub fn expected(name: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(golden(name).join("expected.json")).unwrap()).unwrap()
}

pub fn options(quantize: impl Into<Option<Quant>>) -> LoadOptions {
    LoadOptions { quantize: quantize.into(), kv_positions: Some(1024), threads: 2, ..LoadOptions::default() }
}

pub fn load(path: &Path, options: &LoadOptions) -> Cpu {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    Cpu::load(&checkpoint, options).unwrap_or_else(|e| panic!("{e}")).0
}

/// The most likely tokens after `tokens`, one step each.
pub fn greedy(cpu: &mut Cpu, tokens: &[u32], count: usize) -> Vec<u32> {
    let seq = cpu.open(tokens.len() + count).unwrap();
    let (mut all, mut done) = (tokens.to_vec(), 0);
    while all.len() < tokens.len() + count {
        cpu.step(&[RowSpan { seq, start: done, tokens: &all[done..], logits: LogitRows::Last }]).unwrap();
        done = all.len();
        let best = cpu.logits().iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        all.push(best as u32);
    }
    cpu.close(seq);
    all.split_off(tokens.len())
}

/// Where the tensors of a GGUF file begin, but for padding: right behind the table of tensors.
pub fn header_length(gguf: &[u8]) -> usize {
    let last = b"output.weight";
    let places = gguf.windows(last.len()).enumerate().filter(|(_, w)| w == last);
    // Two dimensions, a type and an offset follow.
    places.map(|(at, _)| at + last.len() + 4 + 16 + 4 + 8).next_back().unwrap()
}

/// Logits of all positions, one row each.
pub fn all_logits(cpu: &mut Cpu, tokens: &[u32]) -> Vec<Vec<f32>> {
    let seq = cpu.open(tokens.len()).unwrap();
    cpu.step(&[RowSpan { seq, start: 0, tokens, logits: LogitRows::All }]).unwrap();
    let vocab = cpu.shape().vocab;
    let rows = cpu.logits().chunks(vocab).map(<[f32]>::to_vec).collect();
    cpu.close(seq);
    rows
}

pub fn largest(rows: &[Vec<f32>]) -> f32 {
    rows.iter().flatten().fold(0.0, |m, v| m.max(v.abs()))
}

pub fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).fold(0.0, |m, (x, y)| m.max((x - y).abs()))
}

/// The root of the mean square of the differences, in shares of that of the numbers.
pub fn relative_error(exact: &[Vec<f32>], other: &[Vec<f32>]) -> f32 {
    assert_eq!(exact.len(), other.len());
    let squares = |f: &dyn Fn(f32, f32) -> f32| -> f32 {
        exact.iter().flatten().zip(other.iter().flatten()).map(|(a, b)| f(*a, *b) * f(*a, *b)).sum()
    };
    (squares(&|a, b| a - b) / squares(&|a, _| a)).sqrt()
}
