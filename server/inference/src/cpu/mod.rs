//! The serving executor: packed weights, keys and values in blocks, our kernels on our pool.
//!
//! One executor runs every family: what a family has or has not is data ([`Architecture`]) and tensors that are there or
//! not. Results are the same bits whatever else is in the batch, however a prompt is cut, on any number of threads and
//! with any instruction set (see [`crate::kernels`]).

mod compute;
mod encoder;
mod footprint;
mod kv;
mod matrix;
mod memory;
mod plan;
mod step;

use crate::executor::{
    self, Executor, Memory, Positions, RowSpan, SeqId, Shape, StepError, USUAL_KV_BYTES, limit_context,
};
use crate::family::Architecture;
use crate::format::{Checkpoint, Dtype, FormatError};
use crate::kernels::attention::BLOCK;
use crate::kernels::{Isa, Kernels};
use crate::pool::Pool;
pub use footprint::{Footprint, check_encoder_values, check_values};
use kv::Kv;
use matrix::Matrix;
use matrix::quantize::Loss;
use plan::ModelPlan;
use std::str::FromStr;
use step::Scratch;

pub use encoder::{EncodeError, Encoder, EncoderOptions, normalize};

/// The version of the numbers that encoders give. It is a part of the keys of vectors that are cached: raise it when a change of
/// kernels, pooling or truncation changes vectors, so that those of an earlier program are not found. Processors differ in the last
/// bits, as sums are in another order.
pub const VECTORS: u32 = 1;

/// The number format of weights in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum Quant {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Bytes in groups of 32 with a 16-bit scale (8.5 bits a weight); activations are quantized, too.
    Q8_0,
    /// 4 bits in groups of 32 with a 16-bit scale (4.5 bits a weight); activations are quantized to 8 bits. What the file has
    /// in at most as many bits stays so. The token table and the head are held in [`Quant::Q8_0`], or in the file's blocks.
    Q4_0,
}

impl Quant {
    /// All formats.
    pub const ALL: [Quant; 4] = [Quant::F32, Quant::F16, Quant::Q8_0, Quant::Q4_0];

    /// How a token table or a head is held, which the file has in a type. Four bits cost most there.
    fn of_table(wish: Option<Quant>, stored: Dtype) -> Option<Quant> {
        match wish {
            Some(Quant::Q4_0) if stored.block().0 > 1 => None,
            Some(Quant::Q4_0) => Some(Quant::Q8_0),
            other => other,
        }
    }
}

impl FromStr for Quant {
    type Err = UnknownQuant;

    fn from_str(text: &str) -> Result<Self, UnknownQuant> {
        match text {
            "f32" => Ok(Quant::F32),
            "f16" => Ok(Quant::F16),
            "q8_0" => Ok(Quant::Q8_0),
            "q4_0" => Ok(Quant::Q4_0),
            _ => Err(UnknownQuant(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Quant::F32 => "f32",
            Quant::F16 => "f16",
            Quant::Q8_0 => "q8_0",
            Quant::Q4_0 => "q4_0",
        })
    }
}

/// An unknown storage format for weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not supported for weights: use `f32`, `f16`, `q8_0` or `q4_0`")]
pub struct UnknownQuant(String);

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// How weights are held; `None` is as the file has them.
    pub quantize: Option<Quant>,
    /// The longest sequence; `None`, and more than the model's own, is the model's own.
    pub context: Option<usize>,
    /// Positions of all open sequences together. `None` is what fits in 512 MiB, at least one context, at most 32.
    pub kv_positions: Option<usize>,
    /// Compute threads; 0 is as many as this process may use.
    pub threads: usize,
    /// The instruction set; `None` is the best that is here. For tests and measurements.
    pub isa: Option<Isa>,
}

/// A loaded model.
pub struct Cpu {
    architecture: Architecture,
    shape: Shape,
    weights: Weights,
    kv: Kv,
    kernels: Kernels,
    pool: Pool,
    scratch: Scratch,
    held: u64,
}

struct Weights {
    token: Matrix,
    positions: Option<Vec<f32>>,
    layers: Vec<Layer>,
    norm: NormWeights,
    /// The head when it is not the token table.
    head: Option<Matrix>,
}

struct Layer {
    norms: LayerNorms,
    /// Queries, keys and values, one behind the other.
    qkv: Matrix,
    out: Matrix,
    /// The feed-forward's first matrix; with a gate, tiles of gate and up alternate.
    up: Matrix,
    down: Matrix,
}

/// The norms of a layer; those that the family does not have are `None`.
struct LayerNorms {
    attention: Option<NormWeights>,
    after_attention: Option<NormWeights>,
    ffn: Option<NormWeights>,
    after_ffn: Option<NormWeights>,
    /// Weights for runs of queries and of keys: a head's width, or all heads'.
    query_key: Option<(Vec<f32>, Vec<f32>)>,
}

struct NormWeights {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Cpu {
    /// Loads a model. The notes say what an operator should know about how its weights are held.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<(Cpu, Vec<String>), FormatError> {
        let mut architecture = checkpoint.architecture().clone();
        let mut pool = Pool::new(options.threads);
        let mut notes = Vec::new();
        architecture.context = limit_context(architecture.context, options.context, &mut notes);
        let plan = ModelPlan::new(checkpoint, options.quantize)?;
        for ((dtype, held), count) in plan.conversions(options.quantize) {
            notes.push(match dtype {
                Dtype::Bf16 => format!("{count} tensors of type bf16 are held as {held}, which is exact"),
                other => format!("{count} tensors of type {other} were requantized to {held}"),
            });
        }
        let half = plan.half();
        let weights = plan.pack(&mut pool)?;
        notes.extend(loss_note(options.quantize, total_loss(weights.matrices())));
        let memory = |source| FormatError::Read { file: "memory for keys and values".into(), source };
        let positions = options.kv_positions.unwrap_or_else(|| usual_positions(&architecture, half, USUAL_KV_BYTES));
        let kv = Kv::new(&architecture, half, positions).map_err(memory)?;
        let scratch = Scratch::new(&architecture, pool.threads());
        let held = weights.held();
        let kernels = Kernels::of(options.isa.unwrap_or_else(Isa::best));
        let shape = architecture.shape();
        Ok((Cpu { architecture, shape, weights, kv, kernels, pool, scratch, held }, notes))
    }

    /// Compute threads, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa
    }

    /// Positions that could be reserved now.
    pub fn free_positions(&self) -> usize {
        self.kv.free_positions()
    }

    /// Bytes of weights that one decoded token reads: the measure for a share of memory bandwidth.
    pub fn bytes_per_token(&self) -> u64 {
        // A token table that is not the head is read in one row only.
        self.weights.bytes() - if self.weights.head.is_some() { self.weights.token.bytes() } else { 0 }
    }
}

impl Executor for Cpu {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn positions(&self) -> Option<Positions> {
        Some(Positions { total: self.kv.positions(), free: self.free_positions() })
    }

    fn open(&mut self, positions: usize) -> Option<SeqId> {
        if positions > self.architecture.context {
            return None;
        }
        let seq = self.kv.open(positions)?;
        self.scratch.reserve(&self.architecture, positions);
        Some(seq)
    }

    fn close(&mut self, seq: SeqId) {
        self.kv.close(seq);
    }

    fn share_unit(&self) -> Option<usize> {
        Some(BLOCK)
    }

    fn fork(&mut self, from: SeqId, rows: usize, positions: usize) -> Option<SeqId> {
        if positions > self.architecture.context {
            return None;
        }
        let seq = self.kv.fork(from, rows, positions)?;
        self.scratch.reserve(&self.architecture, positions);
        Some(seq)
    }

    fn retain(&mut self, seq: SeqId, rows: usize) -> usize {
        self.kv.retain(seq, rows)
    }

    fn is_retained(&self, seq: SeqId) -> bool {
        self.kv.is_retained(seq)
    }

    fn step(&mut self, rows: &[RowSpan<'_>]) -> Result<(), StepError> {
        self.run(rows)
    }

    fn logits(&self) -> &[f32] {
        self.scratch.logits()
    }

    fn memory(&self) -> Memory {
        Memory { weights: self.held, kv: self.kv.held(), kv_on_demand: 0, workspace: self.scratch.bytes() }
    }
}

fn total_loss<'a>(matrices: impl Iterator<Item = &'a Matrix>) -> Loss {
    let mut all = Loss::default();
    matrices.for_each(|matrix| all.add(matrix.loss));
    all
}

/// What quantization cost, for the operator.
fn loss_note(quantize: Option<Quant>, loss: Loss) -> Option<String> {
    let held = quantize.map_or_else(|| "q8_0".to_owned(), |quantize| quantize.to_string());
    Some(format!("weights were quantized to {held} with a relative error of {:.2} %", 100.0 * loss.relative()?))
}

fn usual_positions(a: &Architecture, half: bool, limit: usize) -> usize {
    executor::usual_positions(a.context, BLOCK, Kv::bytes(a, half, BLOCK).unwrap_or(usize::MAX), limit)
}

impl Weights {
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.up, &l.down]);
        layers.chain([&self.token]).chain(&self.head)
    }

    fn bytes(&self) -> u64 {
        self.matrices().map(Matrix::bytes).sum()
    }

    /// With the table of positions and the vectors of norms.
    fn held(&self) -> u64 {
        let norms = self.layers.iter().map(|l| l.norms.len()).sum::<usize>() + self.norm.len();
        self.bytes() + 4 * (norms + self.positions.as_ref().map_or(0, Vec::len)) as u64
    }
}

impl LayerNorms {
    fn len(&self) -> usize {
        let norms = [&self.attention, &self.after_attention, &self.ffn, &self.after_ffn];
        let of_heads = self.query_key.as_ref().map_or(0, |(query, key)| query.len() + key.len());
        norms.into_iter().flatten().map(NormWeights::len).sum::<usize>() + of_heads
    }
}

impl NormWeights {
    fn len(&self) -> usize {
        self.weight.len() + self.bias.len()
    }
}
