//! The serving executor: packed weights, keys and values in blocks, our kernels on our pool.
//!
//! One executor runs every family: what a family has or has not is data ([`Architecture`]) and tensors that are there or
//! not. Results are the same bits whatever else is in the batch, however a prompt is cut, on any number of threads and
//! with any instruction set (see [`crate::kernels`]).

mod kv;
mod matrix;
mod memory;
mod step;

use crate::executor::{Executor, Memory, RowSpan, SeqId, StepError};
use crate::family::{Activation, Architecture, Norm, Position};
use crate::format::{Checkpoint, Dtype, FormatError, Place, Weight};
use crate::kernels::linear::Storage;
use crate::kernels::{Isa, Kernels};
use crate::pool::Pool;
use kv::Kv;
use matrix::{Matrix, Plan};
use memory::Arena;
use std::collections::BTreeMap;
use std::str::FromStr;
use step::Scratch;

/// Default limit for keys and values when the number of positions is not configured, in bytes.
const USUAL_KV_BYTES: usize = 512 << 20;
/// Default limit in full contexts.
const USUAL_CONTEXTS: usize = 64;

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
}

impl FromStr for Quant {
    type Err = UnknownQuant;

    fn from_str(text: &str) -> Result<Self, UnknownQuant> {
        match text {
            "f32" => Ok(Quant::F32),
            "f16" => Ok(Quant::F16),
            "q8_0" => Ok(Quant::Q8_0),
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
        })
    }
}

/// An unknown storage format for weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not supported for weights: use `f32`, `f16` or `q8_0`")]
pub struct UnknownQuant(String);

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// How weights are held; `None` is as the file has them.
    pub quantize: Option<Quant>,
    /// The longest sequence; `None`, and more than the model's own, is the model's own.
    pub context: Option<usize>,
    /// Positions of all open sequences together. `None` is what fits in 512 MiB, at least one context, at most 64.
    pub kv_positions: Option<usize>,
    /// Compute threads; 0 is as many as this process may use.
    pub threads: usize,
    /// The instruction set; `None` is the best that is here. For tests and measurements.
    pub isa: Option<Isa>,
}

/// A loaded model.
pub struct Cpu {
    architecture: Architecture,
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
    attention_norm: NormWeights,
    /// Queries, keys and values, one behind the other.
    qkv: Matrix,
    out: Matrix,
    ffn_norm: NormWeights,
    /// The feed-forward's first matrix; with a gate, tiles of gate and up alternate.
    up: Matrix,
    down: Matrix,
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
        if let Some(context) = options.context {
            if context > architecture.context {
                notes.push(format!(
                    "a context of {context} was requested, but the model's is {}, which is used",
                    architecture.context
                ));
            }
            architecture.context = context.clamp(1, architecture.context);
        }
        let mut requantized = BTreeMap::new();
        let weights = load_weights(checkpoint, options, &mut pool, &mut requantized)?;
        for (dtype, count) in requantized {
            notes.push(match dtype {
                Dtype::Bf16 => format!("{count} tensors of type bf16 are held as f32, which is exact"),
                other => format!("{count} tensors of type {other} were requantized to q8_0"),
            });
        }
        let memory = |source| FormatError::Read { file: "memory for keys and values".into(), source };
        // Half-precision keys and values make no sense beside f32 weights, and save memory beside others.
        let half = weights.matrices().any(|m| m.storage != Storage::F32);
        let positions = options.kv_positions.unwrap_or_else(|| usual_positions(&architecture, half));
        let kv = Kv::new(&architecture, half, positions).map_err(memory)?;
        let scratch = Scratch::new(&architecture, pool.threads());
        let held = weights.bytes();
        let kernels = Kernels::of(options.isa.unwrap_or_else(Isa::best));
        Ok((Cpu { architecture, weights, kv, kernels, pool, scratch, held }, notes))
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
    fn architecture(&self) -> &Architecture {
        &self.architecture
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

    fn step(&mut self, rows: &[RowSpan<'_>]) -> Result<(), StepError> {
        self.run(rows)
    }

    fn logits(&self) -> &[f32] {
        self.scratch.logits()
    }

    fn memory(&self) -> Memory {
        Memory { weights: self.held, kv: self.kv.held() }
    }
}

fn usual_positions(a: &Architecture, half: bool) -> usize {
    let each = Kv::bytes(a, half, 32).unwrap_or(usize::MAX).max(1);
    (USUAL_KV_BYTES / each).saturating_mul(32).clamp(a.context, a.context.saturating_mul(USUAL_CONTEXTS))
}

impl Weights {
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.up, &l.down]);
        layers.chain([&self.token]).chain(&self.head)
    }

    fn bytes(&self) -> u64 {
        self.matrices().map(Matrix::bytes).sum()
    }
}

/// The matrices of a layer, before they are packed.
struct LayerPlan<'a> {
    attention_norm: NormWeights,
    qkv: Plan<'a>,
    out: Plan<'a>,
    ffn_norm: NormWeights,
    up: Plan<'a>,
    down: Plan<'a>,
}

fn load_weights(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    pool: &mut Pool,
    requantized: &mut BTreeMap<Dtype, usize>,
) -> Result<Weights, FormatError> {
    let a = checkpoint.architecture();
    let (width, inner) = (a.width, a.heads * a.head_dim);
    let plan = |parts: &[(&str, usize, usize)], paired: bool| -> Result<Plan<'_>, FormatError> {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for (name, outputs, inputs) in parts {
            weights.push(checkpoint.need(&format!("{name}.weight"), &[*outputs, *inputs])?);
            biases.push(checkpoint.weight(&format!("{name}.bias"), &[*outputs])?);
        }
        Ok(Plan::new(weights, biases, paired, options.quantize))
    };
    let norm = |name: &str| -> Result<NormWeights, FormatError> {
        let bias = match a.norm {
            Norm::Layer { .. } => finite(&checkpoint.need(&format!("{name}.bias"), &[width])?)?,
            Norm::Rms { .. } => Vec::new(),
        };
        Ok(NormWeights { weight: finite(&checkpoint.need(&format!("{name}.weight"), &[width])?)?, bias })
    };

    let token = plan(&[("token_embd", a.vocab, width)], false)?;
    let head = if a.tied { None } else { Some(plan(&[("output", a.vocab, width)], false)?) };
    let positions = match a.position {
        Position::Learned => Some(finite(&checkpoint.need("position_embd.weight", &[a.context, width])?)?),
        Position::Rotary { .. } => None,
    };
    let mut layers = Vec::new();
    for i in 0..a.layers {
        let name = |part: &str| format!("blk.{i}.{part}");
        let kv = a.kv_heads * a.head_dim;
        let qkv = if a.family == "gpt2" {
            plan(&[(&name("attn_qkv"), inner + 2 * kv, width)], false)?
        } else {
            let (q, k, v) = (name("attn_q"), name("attn_k"), name("attn_v"));
            plan(&[(&q, inner, width), (&k, kv, width), (&v, kv, width)], false)?
        };
        let up = match a.activation {
            Activation::GeluTanh => plan(&[(&name("ffn_up"), a.ffn, width)], false)?,
            Activation::SiluGated => plan(&[(&name("ffn_gate"), a.ffn, width), (&name("ffn_up"), a.ffn, width)], true)?,
        };
        layers.push(LayerPlan {
            attention_norm: norm(&name("attn_norm"))?,
            qkv,
            out: plan(&[(&name("attn_output"), width, inner)], false)?,
            ffn_norm: norm(&name("ffn_norm"))?,
            up,
            down: plan(&[(&name("ffn_down"), width, a.ffn)], false)?,
        });
    }

    // Everything is there and has its shape: only now memory is taken.
    let of_layers = layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.up, &l.down]);
    let plans: Vec<&Plan<'_>> = of_layers.chain([&token]).chain(&head).collect();
    for part in plans.iter().flat_map(|p| p.parts.iter().map(move |w| (w.dtype, p.storage))) {
        let blocks = part.0.block().0 > 1 && part.0 != Dtype::Q8_0 && part.1 == Storage::Q8;
        let wide = part.0 == Dtype::Bf16 && part.1 == Storage::F32 && options.quantize.is_none();
        if blocks || wide {
            *requantized.entry(part.0).or_default() += 1;
        }
    }
    let bytes = plans.iter().try_fold(0usize, |sum, plan| sum.checked_add(plan.bytes()?));
    let mut arena = bytes
        .ok_or_else(|| std::io::Error::other(matrix::TOO_LARGE))
        .and_then(Arena::new)
        .map_err(|source| FormatError::Read { file: "memory for weights".into(), source })?;
    let mut pack = |plan: &Plan<'_>| plan.pack(&mut arena, pool);
    let mut packed = Vec::new();
    // In the order in which a step reads them.
    for l in layers {
        packed.push(Layer {
            qkv: pack(&l.qkv)?,
            out: pack(&l.out)?,
            up: pack(&l.up)?,
            down: pack(&l.down)?,
            attention_norm: l.attention_norm,
            ffn_norm: l.ffn_norm,
        });
    }
    Ok(Weights {
        token: pack(&token)?,
        head: head.as_ref().map(pack).transpose()?,
        positions,
        layers: packed,
        norm: norm("output_norm")?,
    })
}

/// The numbers of a vector or of a table that is not packed.
fn finite(weight: &Weight<'_>) -> Result<Vec<f32>, FormatError> {
    let numbers = weight.vector();
    if numbers.iter().all(|v| v.is_finite()) {
        return Ok(numbers);
    }
    let location = Place::Tensor(weight.name.clone());
    Err(FormatError::broken(weight.file, location, "it holds numbers that are not finite"))
}
