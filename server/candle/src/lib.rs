//! The second executor: families that the own kernels do not have, on candle, on any device that candle has.
//!
//! It computes what the table in [`textnlp_inference::decoder`] says a family's layers are. Rows of all sequences of a
//! step go through the matrices together; each sequence attends over keys and values of its own, so that batches may be
//! ragged. Answers of one request may differ in the last bits with the rows beside it, which the own kernels exclude:
//! candle takes another path for one row than for many.
//!
//! Read in this order: [`Checkpoint`], [`Candle`], `layer.rs`, `weights.rs`.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

// Only for its feature: see Cargo.toml.
use gemm as _;

mod gpu;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod kernels;
mod layer;
mod step;
mod weights;

use candle_core::{DType, Device, DeviceLocation};
pub use gpu::Gpu;
use gpu::Lease;
use std::path::Path;
use std::sync::Arc;
use step::{Answers, Sequences};
use textnlp_inference::cpu::Quant;
use textnlp_inference::decoder::{Spec, Tied};
use textnlp_inference::executor::{
    Executor, Memory, Positions, RowSpan, SeqId, Shape, StepError, USUAL_KV_BYTES, limit_context, usual_positions,
};
use textnlp_inference::format::gguf::Vocabulary;
use textnlp_inference::format::{self, Dtype, FormatError, Tensors};
use textnlp_inference::rope::Rotation;
use weights::{Loader, Weights, block_type, held_as, is_beyond_f16, kept_blocks, packed_bytes};

/// A model's files, opened and checked. Weights are mapped, not read.
#[derive(Debug)]
pub struct Checkpoint {
    spec: Spec,
    source: Source,
}

/// Where weights come from.
#[derive(Debug)]
enum Source {
    /// `*.safetensors` beside a `config.json`.
    Safetensors(Tensors),
    Gguf(Box<format::Checkpoint>),
}

impl Source {
    fn has(&self, name: &str) -> bool {
        match self {
            Source::Safetensors(tensors) => tensors.has(name),
            Source::Gguf(gguf) => gguf.stored().any(|tensor| tensor.name == name),
        }
    }
}

impl Checkpoint {
    /// Opens a folder with `config.json` and `*.safetensors`, a folder with one `*.gguf`, or a GGUF file.
    pub fn open(path: &Path) -> Result<Checkpoint, FormatError> {
        if format::is_safetensors(path)? {
            return Ok(Checkpoint { spec: Spec::open(path)?, source: Source::Safetensors(Tensors::open(path)?) });
        }
        let gguf = format::Checkpoint::open(path)?;
        Ok(Checkpoint { spec: Spec::of_gguf(&gguf), source: Source::Gguf(Box::new(gguf)) })
    }

    /// The tokenizer that a GGUF file carries; `None` for safetensors, whose tokenizer is a file of its own.
    pub fn vocabulary(&self) -> Result<Option<Vocabulary>, FormatError> {
        match &self.source {
            Source::Safetensors(_) => Ok(None),
            Source::Gguf(gguf) => gguf.vocabulary(),
        }
    }

    /// All tensors, in no order.
    fn stored(&self) -> Vec<format::Tensor<'_>> {
        match &self.source {
            Source::Safetensors(tensors) => tensors.names().filter_map(|name| tensors.get(name).ok()?).collect(),
            Source::Gguf(gguf) => gguf.stored().collect(),
        }
    }

    /// What its layers are.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How many numbers the model has.
    pub fn parameters(&self) -> u64 {
        match &self.source {
            Source::Safetensors(tensors) => tensors.parameters(|_| true),
            Source::Gguf(gguf) => gguf.parameters(),
        }
    }

    /// About how many bytes its weights take in a device's memory, when matrices are held as `quantize` says.
    pub fn weight_bytes(&self, quantize: Option<Quant>, device: DeviceKind) -> u64 {
        let bytes = |tensor: &format::Tensor<'_>| {
            let numbers = tensor.shape.iter().map(|side| *side as u64).product::<u64>();
            let stored = stored_as(&self.spec, tensor.dtype);
            let dense = numbers * held_as(stored, quantize, device.has_bf16()).size_in_bytes() as u64;
            let [outputs, inputs] = tensor.shape[..] else { return dense };
            let kept = kept_blocks(tensor.dtype, quantize);
            let in_blocks = kept.or(block_type(quantize)).map(|kind| {
                let blocks = numbers / kind.block_size() as u64 * kind.type_size() as u64;
                blocks + packed_bytes(kind, outputs, inputs, device)
            });
            let is_table = tensor.name.contains(self.spec.token);
            match in_blocks {
                // Its rows are read one by one. As the head, it is multiplied with.
                Some(blocks) if is_table && kept.is_some() && self.spec.tied == Tied::Yes => dense + blocks,
                Some(blocks) if !is_table => blocks,
                _ => dense,
            }
        };
        self.stored().iter().map(bytes).sum()
    }

    /// Whether keys and values take two bytes a number on a device, when matrices are held as `quantize` says.
    pub fn keeps_half(&self, quantize: Option<Quant>, device: DeviceKind) -> bool {
        let end = format!("{}.weight", self.spec.token);
        let table = self.stored().into_iter().find(|tensor| tensor.name.ends_with(&end));
        let stored = table.map_or(DType::F32, |table| stored_as(&self.spec, table.dtype));
        kv_type(held_as(stored, quantize, device.has_bf16()), quantize) != DType::F32
    }
}

/// The most sequences of a step on a GPU.
const MOST_SEQUENCES: usize = 256;

/// Where a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceKind {
    /// This machine's processor.
    #[default]
    Cpu,
    /// NVIDIA's GPU of this number; needs the feature `cuda`.
    Cuda(usize),
}

impl DeviceKind {
    /// Whether it has products in bf16; elsewhere f32 holds such tensors exactly.
    fn has_bf16(self) -> bool {
        self != DeviceKind::Cpu && gpu::has_bf16()
    }
}

/// How a model is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// How matrices are held; `None` is as the file has them, where the device can multiply with it.
    pub quantize: Option<Quant>,
    /// The longest sequence; `None`, and more than the model's own, is the model's own.
    pub context: Option<usize>,
    /// Positions of all open sequences together. `None` is what fits in 512 MiB, at least one context, at most 32.
    pub kv_positions: Option<usize>,
    /// Compute threads of the processor; 0 is as many as there are. Products with blocks use candle's own pool.
    pub threads: usize,
    /// Where it computes.
    pub device: DeviceKind,
}

/// A loaded model.
pub struct Candle {
    spec: Spec,
    /// Those of [`Spec::ropes`].
    rotations: Vec<Rotation>,
    weights: Weights,
    device: Device,
    /// The type of keys and values.
    kv_type: DType,
    sequences: Sequences,
    pool: Option<Arc<rayon::ThreadPool>>,
    /// Those of the last step.
    answers: Answers,
    held: u64,
    #[cfg(feature = "cuda")]
    graphs: std::cell::RefCell<graph::Graphs>,
    /// Given back after everything on the device is gone.
    _lease: Option<Lease>,
}

impl Candle {
    /// Loads a model. The notes say what an operator should know about how it is held.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<(Candle, Vec<String>), FormatError> {
        let mut spec = checkpoint.spec.clone();
        let failed =
            |what: &str, cause: String| FormatError::Read { file: what.into(), source: std::io::Error::other(cause) };
        let lease = match options.device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda(number) => {
                Some(Lease::open(number).map_err(|error| failed("the GPU", error.to_string()))?)
            }
        };
        let device = lease.as_ref().map_or(Device::Cpu, |lease| lease.device().clone());
        let mut loader = Loader::new(checkpoint, &device, options);
        let weights = loader.weights()?;
        // What fails, fails here.
        device.synchronize().map_err(|error| failed("the GPU", error.to_string()))?;
        let mut notes = vec![format!("served by the candle executor on {}", device_name(options.device))];
        if loader.left > 0 {
            notes.push(format!("{} matrices have rows that are no multiple of 32 and are not quantized", loader.left));
        }
        if !options.device.has_bf16() && checkpoint.stores_bf16() && !matches!(options.quantize, Some(Quant::F16)) {
            notes.push("tensors of type bf16 are held as f32, which is exact".to_owned());
        }
        if loader.recoded > 0 {
            notes.push(format!("{} matrices are held in q8_0: no product takes their blocks", loader.recoded));
        }
        let held = loader.held;
        spec.shape.context = limit_context(spec.shape.context, options.context, &mut notes);
        let kv_type = kv_type(weights.token.dtype(), options.quantize);
        let each = spec.kv_numbers() * kv_type.size_in_bytes();
        let positions =
            options.kv_positions.unwrap_or_else(|| usual_positions(spec.shape.context, 1, each, USUAL_KV_BYTES));
        let pool = match (options.threads, options.device) {
            (0, _) | (_, DeviceKind::Cuda(_)) => None,
            (threads, DeviceKind::Cpu) => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                Some(Arc::new(pool.map_err(|error| failed("compute threads", error.to_string()))?))
            }
        };
        let sequences = Sequences::new(positions);
        #[cfg(feature = "cuda")]
        let graphs =
            graph::Graphs::new(&spec, &device, &weights).map_err(|error| failed("the GPU", error.to_string()))?;
        let candle = Candle {
            #[cfg(feature = "cuda")]
            graphs: std::cell::RefCell::new(graphs),
            rotations: spec.ropes().into_iter().map(|rope| rope.rotation(spec.shape.context)).collect(),
            spec,
            weights,
            device,
            kv_type,
            sequences,
            pool,
            answers: Answers::default(),
            held,
            _lease: lease,
        };
        Ok((candle, notes))
    }

    /// Positions that could be reserved now.
    pub fn free_positions(&self) -> usize {
        self.sequences.free
    }
}

impl Checkpoint {
    fn stores_bf16(&self) -> bool {
        self.stored().iter().any(|tensor| tensor.dtype == Dtype::Bf16)
    }
}

/// The type of a tensor in a file, as its device would have it. What is in blocks becomes f16 where it cannot stay as it is.
fn stored_as(spec: &Spec, dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        // Its products are too large for f16.
        Dtype::F16 if is_beyond_f16(spec) => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 | Dtype::Q8_0 | Dtype::Coded(_) => DType::F16,
    }
}

/// The type of keys and values, by that of the table of tokens.
fn kv_type(held: DType, quantize: Option<Quant>) -> DType {
    match (held, quantize) {
        (DType::F32, Some(Quant::Q8_0 | Quant::Q4_0)) => DType::F16,
        (held, _) => held,
    }
}

fn device_name(device: DeviceKind) -> String {
    match device {
        DeviceKind::Cpu => "the processor".to_owned(),
        DeviceKind::Cuda(number) => format!("GPU {number}"),
    }
}

impl Executor for Candle {
    fn shape(&self) -> &Shape {
        &self.spec.shape
    }

    fn positions(&self) -> Option<Positions> {
        Some(Positions { total: self.sequences.limit, free: self.free_positions() })
    }

    /// A GPU reads its weights once for all of them.
    fn most_sequences(&self) -> Option<usize> {
        self.device.is_cuda().then_some(MOST_SEQUENCES)
    }

    fn open(&mut self, positions: usize) -> Option<SeqId> {
        if positions > self.spec.shape.context {
            return None;
        }
        self.sequences.open(&self.spec, self.kv_type, &self.device, positions)
    }

    fn close(&mut self, seq: SeqId) {
        self.sequences.close(seq);
    }

    fn step(&mut self, rows: &[RowSpan<'_>]) -> Result<(), StepError> {
        match self.pool.clone() {
            Some(pool) => pool.install(|| self.run(rows)),
            None => self.run(rows),
        }
    }

    fn logits(&self) -> &[f32] {
        self.answers.logits()
    }

    #[cfg(feature = "cuda")]
    fn draws(&self, draw: &textnlp_inference::sample::Draw<'_>) -> bool {
        self.device.is_cuda() && kernels::draws(draw, self.spec.shape.vocab)
    }

    fn drawn(&self) -> &[Option<u32>] {
        self.answers.drawn()
    }

    fn fault(&self) -> Option<String> {
        match self.device.location() {
            DeviceLocation::Cuda { gpu_id } => Gpu::fault(gpu_id),
            DeviceLocation::Cpu | DeviceLocation::Metal { .. } => None,
        }
    }

    /// Keys and values are taken when sequences are opened; their limit is reported, since it may be reached.
    fn memory(&self) -> Memory {
        let each = (self.spec.kv_numbers() * self.kv_type.size_in_bytes()) as u64;
        let workspace = self.answers.room();
        let kv = |positions: usize| each.saturating_mul(positions as u64);
        let Sequences { limit, free, .. } = self.sequences;
        Memory { weights: self.held, kv: kv(limit), kv_on_demand: kv(limit - free), workspace }
    }
}
