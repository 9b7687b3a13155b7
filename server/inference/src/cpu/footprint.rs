//! What a model takes in memory, before it is loaded, and whether its files can be loaded at all.

use super::encoder::{EncoderPlan, StepSize};
use super::kv::Kv;
use super::matrix::Plan;
use super::matrix::quantize::Loss;
use super::plan::ModelPlan;
use super::step::Scratch;
use super::{EncoderOptions, LoadOptions, Quant, usual_positions};
use crate::executor::USUAL_KV_BYTES;
use crate::family::Architecture;
use crate::format::{Checkpoint, EncoderCheckpoint, FormatError};
use crate::pool::Pool;

/// The memory of a model that is not loaded, in bytes: what [`crate::executor::Executor::memory`] or
/// [`super::Encoder::memory`] will say.
#[derive(Debug, Clone, PartialEq)]
pub struct Footprint {
    architecture: Architecture,
    /// For weights, in the format in which they are held.
    pub weights: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Decoder {
        /// Keys and values are held in half precision.
        half: bool,
        /// Bytes of keys and values that are usual.
        limit: usize,
    },
    /// It keeps nothing of a text: keys and values are those of a step, in one layer at a time.
    Encoder,
}

/// Sequences of a step whose logits are counted. A row of logits is small beside a sequence's keys and values.
const SEQUENCES: u64 = 32;

impl Footprint {
    /// Of a model's files, held by these options. Finds every tensor that loading needs, with its type and shape, and
    /// refuses what [`super::Cpu::load`] refuses, except values that are not finite: see [`check_values`].
    pub fn of(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Footprint, FormatError> {
        let plan = ModelPlan::new(checkpoint, options.quantize)?;
        let (architecture, kind) =
            (checkpoint.architecture().clone(), Kind::Decoder { half: plan.half(), limit: USUAL_KV_BYTES });
        Ok(Footprint { architecture, weights: plan.held(), kind }.with_context(options.context))
    }

    /// Of an encoder's files, held by these options. Refuses what [`super::Encoder::load`] refuses, except values that
    /// are not finite: see [`check_encoder_values`].
    pub fn of_encoder(checkpoint: &EncoderCheckpoint, options: &EncoderOptions) -> Result<Footprint, FormatError> {
        let plan = EncoderPlan::new(checkpoint, options.quantize)?;
        let context = StepSize::longest(checkpoint.settings().max_tokens);
        let architecture = Architecture { layers: 1, context, ..checkpoint.architecture().clone() };
        let found = Footprint { architecture, weights: plan.held(), kind: Kind::Encoder };
        let found = found.with_context(options.max_tokens);
        let a = &found.architecture;
        StepSize::checked(a, a.context, Pool::size(options.threads))?;
        Ok(found)
    }

    /// Of a model whose files are not here: a padding of two per cent is added for the layout of matrices.
    pub fn estimate(architecture: Architecture, parameters: u64, held: Quant) -> Footprint {
        let blocks = |numbers: u64, bytes: u64| numbers.div_ceil(32).saturating_mul(bytes);
        // The head may be a table of its own.
        let tables = 2u64.saturating_mul(architecture.vocab as u64).saturating_mul(architecture.width as u64);
        let bytes = match held {
            Quant::F32 => parameters.saturating_mul(4),
            Quant::F16 => parameters.saturating_mul(2),
            Quant::Q8_0 => blocks(parameters, 34),
            Quant::Q4_0 => blocks(parameters, 18).saturating_add(blocks(tables.min(parameters), 34 - 18)),
        };
        let kind = Kind::Decoder { half: held != Quant::F32, limit: USUAL_KV_BYTES };
        Footprint { architecture, weights: bytes.saturating_add(bytes / 50), kind }
    }

    /// With a shorter context than the model's own.
    pub fn with_context(mut self, context: Option<usize>) -> Footprint {
        let own = self.architecture.context;
        self.architecture.context = context.unwrap_or(own).clamp(1, own);
        self
    }

    /// With keys and values in half precision or not, usually of at most `limit` bytes.
    pub fn with_kv(mut self, half: bool, limit: usize) -> Footprint {
        self.kind = Kind::Decoder { half, limit };
        self
    }

    /// For keys and values of a number of positions; for those of a step, of whatever texts, of an encoder.
    pub fn kv(&self, positions: usize) -> u64 {
        let (half, positions) = match self.kind {
            Kind::Decoder { half, .. } => (half, positions),
            Kind::Encoder => (false, self.step(1).positions()),
        };
        Kv::bytes(&self.architecture, half, positions).map_or(u64::MAX, |bytes| bytes as u64)
    }

    /// Positions of all open sequences together, unless something else is set; of an encoder those of its longest text.
    pub fn usual_positions(&self) -> usize {
        match self.kind {
            Kind::Decoder { half, limit } => usual_positions(&self.architecture, half, limit),
            Kind::Encoder => self.architecture.context,
        }
    }

    fn step(&self, threads: usize) -> StepSize {
        StepSize::new(&self.architecture, self.architecture.context, threads)
    }

    /// For activations and scores of the longest sequence, and for logits of a full step, on a number of threads.
    pub fn workspace(&self, threads: usize) -> u64 {
        let (a, threads) = (&self.architecture, Pool::size(threads));
        if self.kind == Kind::Encoder {
            return self.step(threads).bytes();
        }
        let scores = Scratch::score_bytes(a, threads, a.context);
        Scratch::new(a, threads).bytes() + scores + (SEQUENCES - 1) * 4 * a.vocab as u64
    }

    /// Everything, with keys and values of a number of positions.
    pub fn total(&self, positions: usize, threads: usize) -> u64 {
        self.weights.saturating_add(self.kv(positions)).saturating_add(self.workspace(threads))
    }

    /// The least: one sequence of the longest context.
    pub fn least(&self, threads: usize) -> u64 {
        self.total(self.architecture.context, threads)
    }

    /// The most positions with which everything takes at most `bytes`: at least one context, at most the usual number.
    /// `None` when not even one context fits.
    pub fn positions_within(&self, bytes: u64, threads: usize) -> Option<usize> {
        let left = bytes.checked_sub(self.weights.checked_add(self.workspace(threads))?)?;
        let blocks = left / self.kv(BLOCK).max(1);
        let most = usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(BLOCK);
        (self.kv(self.architecture.context) <= left)
            .then(|| most.clamp(self.architecture.context, self.usual_positions()))
    }
}

impl Footprint {
    /// Positions of a model that leaves room for others where `bytes` are free: what fits into a quarter of what its
    /// weights and workspace leave, or into 512 MiB, at least one context, at most the usual number.
    pub fn positions_beside(&self, bytes: u64, threads: usize) -> usize {
        let base = self.weights.saturating_add(self.workspace(threads));
        let left = bytes.saturating_sub(base);
        let kv = (left / 4).max(USUAL_KV_BYTES as u64).min(left);
        self.positions_within(base.saturating_add(kv), threads).unwrap_or(self.architecture.context)
    }
}

/// Positions of a block.
const BLOCK: usize = crate::kernels::attention::BLOCK;

/// Reads every weight as loading does and keeps nothing. Refuses values that are not finite, or too large for the
/// format in which they are held. The result is what quantization costs, if weights are quantized: the relative error,
/// by root mean squares.
pub fn check_values(checkpoint: &Checkpoint, quantize: Option<Quant>) -> Result<Option<f64>, FormatError> {
    let plan = ModelPlan::new(checkpoint, quantize)?;
    let mut pool = Pool::new(0);
    // The order of loading: the first problem is the same.
    let layers = plan.layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.up, &l.down]);
    checked(layers.chain([&plan.token]).chain(&plan.head), &mut pool)
}

fn checked<'a>(mut matrices: impl Iterator<Item = &'a Plan<'a>>, pool: &mut Pool) -> Result<Option<f64>, FormatError> {
    let mut all = Loss::default();
    matrices.try_for_each(|matrix| matrix.check(pool).map(|loss| all.add(loss)))?;
    Ok(all.relative())
}

/// As [`check_values`], of an encoder.
pub fn check_encoder_values(
    checkpoint: &EncoderCheckpoint,
    quantize: Option<Quant>,
) -> Result<Option<f64>, FormatError> {
    let plan = EncoderPlan::new(checkpoint, quantize)?;
    let mut pool = Pool::new(0);
    checked(plan.matrices(), &mut pool)
}
