//! Loads the weights of a model: finds and checks tensors, joins projections, and converts them to the device's type.

use crate::{Checkpoint, DeviceKind, LoadOptions, Source, stored_as};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Result as Computed, Tensor};
use half::f16;
use std::borrow::Cow;
use std::path::Path;
use textnlp_inference::cpu::Quant;
use textnlp_inference::decoder::{Feed, Linear as Named, Norm, Position, Qkv, Spec};
use textnlp_inference::format::{Code, Dtype, FormatError, Place, Tensor as Stored, Weight};

/// All weights of a model.
pub(crate) struct Weights {
    /// Vocabulary × width.
    pub(crate) token: Tensor,
    /// Learned positions × width, in f32.
    pub(crate) positions: Option<Tensor>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: NormWeights,
    pub(crate) head: Linear,
}

pub(crate) struct Layer {
    /// As many as the family's residual has, in its order.
    pub(crate) norms: Vec<NormWeights>,
    /// Queries, keys and values, one behind the other.
    pub(crate) qkv: Linear,
    /// RMSNorm of queries and of keys.
    pub(crate) qk_norms: Option<[NormWeights; 2]>,
    pub(crate) out: Linear,
    pub(crate) feed: FeedWeights,
}

pub(crate) enum FeedWeights {
    Dense(Expert),
    Experts { router: Linear, experts: Vec<Expert> },
}

#[cfg(feature = "cuda")]
impl Weights {
    /// Of the matrices with parts in blocks one with the most inputs, and how many these are.
    pub(crate) fn widest_blocks(&self) -> Option<(&Linear, usize)> {
        let of_layers =
            self.layers.iter().flat_map(|layer| [vec![&layer.qkv, &layer.out], layer.feed.linears()].concat());
        let all = of_layers.chain([&self.head]);
        all.filter_map(|linear| Some((linear, linear.block_inputs()?))).max_by_key(|(_, inputs)| *inputs)
    }
}

#[cfg(feature = "cuda")]
impl FeedWeights {
    fn linears(&self) -> Vec<&Linear> {
        match self {
            FeedWeights::Dense(only) => vec![&only.up, &only.down],
            FeedWeights::Experts { router, experts } => {
                experts.iter().flat_map(|expert| [&expert.up, &expert.down]).chain([router]).collect()
            }
        }
    }

    /// The type of rows that it takes without a conversion.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            FeedWeights::Dense(expert) => expert.up.dtype(),
            // Their router's shares are computed in f32.
            FeedWeights::Experts { .. } => DType::F32,
        }
    }
}

/// A feed-forward. With a gate, `up` has the gate's outputs first.
pub(crate) struct Expert {
    pub(crate) gated: bool,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

pub(crate) struct NormWeights {
    pub(crate) norm: Norm,
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

/// A matrix of outputs × inputs, and its bias in f32.
pub(crate) struct Linear {
    /// Matrices of the same inputs, whose outputs follow one another: a file may have them in several types.
    parts: Vec<Part>,
    bias: Option<Tensor>,
}

enum Part {
    Dense(Tensor),
    Blocks(QMatMul),
}

impl Part {
    fn product(&self, x: &Tensor) -> Computed<Tensor> {
        match self {
            Part::Dense(weight) => x.to_dtype(weight.dtype())?.matmul(&weight.t()?),
            Part::Blocks(weight) => weight.forward(&x.to_dtype(DType::F32)?.contiguous()?),
        }
    }
}

impl Linear {
    /// Rows to rows of f32. The product is taken in the type of the weights; blocks multiply with f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        self.product(x)?.to_dtype(DType::F32)
    }

    /// The type that the product takes without a conversion.
    #[cfg(feature = "cuda")]
    pub(crate) fn dtype(&self) -> DType {
        match &self.parts[..] {
            [Part::Dense(weight)] => weight.dtype(),
            _ => DType::F32,
        }
    }

    /// The inputs of a part in blocks, if there is one.
    #[cfg(feature = "cuda")]
    fn block_inputs(&self) -> Option<usize> {
        let inputs = |part: &Part| match part {
            Part::Blocks(QMatMul::QTensor(blocks)) => Some(blocks.shape().dims2().ok()?.1),
            Part::Blocks(_) | Part::Dense(_) => None,
        };
        self.parts.iter().find_map(inputs)
    }

    /// Rows to rows, without a bias in the type of the weights, of several parts in f32.
    pub(crate) fn product(&self, x: &Tensor) -> Computed<Tensor> {
        let y = match &self.parts[..] {
            [only] => only.product(x)?,
            several => {
                let parts = several.iter().map(|part| part.product(x)?.to_dtype(DType::F32));
                Tensor::cat(&parts.collect::<Computed<Vec<_>>>()?, D::Minus1)?
            }
        };
        match &self.bias {
            Some(bias) => y.to_dtype(DType::F32)?.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Reads the weights of one model.
pub(crate) struct Loader<'a> {
    spec: &'a Spec,
    source: &'a Source,
    base: &'static str,
    device: &'a Device,
    kind: DeviceKind,
    quantize: Option<Quant>,
    /// Bytes held.
    pub(crate) held: u64,
    /// Matrices that could not be quantized.
    pub(crate) left: usize,
    /// Matrices whose blocks became others.
    pub(crate) recoded: usize,
}

/// Rows of a matrix that are decoded at once.
const DECODED_ROWS: usize = 256;

impl<'a> Loader<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, device: &'a Device, options: &LoadOptions) -> Loader<'a> {
        let (spec, source, quantize) = (&checkpoint.spec, &checkpoint.source, options.quantize);
        Loader {
            spec,
            source,
            base: spec.base_of(|name| source.has(name)),
            device,
            kind: options.device,
            quantize,
            held: 0,
            left: 0,
            recoded: 0,
        }
    }

    /// Reads everything, and refuses a file with tensors that would be left out.
    pub(crate) fn weights(&mut self) -> Result<Weights, FormatError> {
        let spec = self.spec;
        let shape = &spec.shape;
        let token_name = format!("{}{}.weight", self.base, spec.token);
        let token = self.read(&token_name, &[shape.vocab, shape.width])?;
        self.count(&token);
        let positions = match &spec.position {
            Position::Learned { stem, offset } => {
                let name = format!("{}{stem}.weight", self.base);
                Some(self.vector(&name, &[shape.context + offset, shape.width])?)
            }
            Position::Rotary { .. } | Position::Alibi => None,
        };
        let mut layers = Vec::new();
        for number in 0..shape.layers {
            layers.push(self.layer(&format!("{}{}{number}.", self.base, spec.layer))?);
        }
        let norm = self.norm(&format!("{}{}", self.base, spec.last_norm), spec.norm, shape.width)?;
        let head_name = format!("{}.weight", spec.head.stem);
        let head = if spec.is_tied(|name| self.source.has(name)) {
            // A second copy of the table, if there is one.
            if let Source::Safetensors(tensors) = self.source {
                tensors.set_used(&head_name);
            }
            let bias = format!("{}.bias", spec.head.stem);
            let bias = if spec.head.bias { Some(self.vector(&bias, &[shape.vocab])?) } else { None };
            let table = Named { stem: spec.token, bias: false };
            let blocks = self.blocks("", table, shape.vocab, shape.width)?;
            Linear { parts: vec![blocks.map_or_else(|| Part::Dense(token.clone()), Part::Blocks)], bias }
        } else {
            self.linear("", spec.head, &[shape.vocab, shape.width])?
        };
        match self.source {
            Source::Safetensors(tensors) => tensors.refuse_unused(&shape.family, shape.layers, |_| true)?,
            Source::Gguf(gguf) => gguf.refuse_unused()?,
        }
        Ok(Weights { token, positions, layers, norm, head })
    }

    fn layer(&mut self, at: &str) -> Result<Layer, FormatError> {
        let spec = self.spec;
        let width = spec.shape.width;
        let (inner, kv) = (spec.shape.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let mut norms = Vec::new();
        for stem in spec.norms.iter().take(spec.residual.norms()) {
            norms.push(self.norm(&format!("{at}{stem}"), spec.norm, width)?);
        }
        let outputs = inner + 2 * kv;
        let qkv = match spec.qkv {
            Qkv::Separate([q, k, v]) => self.stacked(at, &[(q, inner), (k, kv), (v, kv)], width)?,
            Qkv::Blocks(all) => self.linear(at, all, &[outputs, width])?,
            Qkv::Groups(all) => {
                let weight = self.matrix(at, all, &[outputs, width])?;
                let weight = self.computed(self.ungroup(&weight))?;
                let bias = match self.bias(at, all, outputs)? {
                    Some(bias) => Some(self.computed(self.ungroup(&bias))?),
                    None => None,
                };
                Linear { parts: vec![self.hold(weight)?], bias }
            }
        };
        let qk_norms = match spec.qk_norm {
            None => None,
            Some(found) => {
                let [q, k] = if found.per_head { [spec.head_dim; 2] } else { [inner, kv] };
                let [q_stem, k_stem] = found.stems;
                Some([
                    self.norm(&format!("{at}{q_stem}"), spec.norm, q)?,
                    self.norm(&format!("{at}{k_stem}"), spec.norm, k)?,
                ])
            }
        };
        let out = self.linear(at, spec.attention_out, &[width, inner])?;
        Ok(Layer { norms, qkv, qk_norms, out, feed: self.feed(at)? })
    }

    fn feed(&mut self, at: &str) -> Result<FeedWeights, FormatError> {
        let (width, ffn) = (self.spec.shape.width, self.spec.ffn);
        let expert = match self.spec.feed {
            Feed::Plain([up, down]) => {
                let up = self.linear(at, up, &[ffn, width])?;
                Expert { gated: false, up, down: self.linear(at, down, &[width, ffn])? }
            }
            Feed::Gated([gate, up, down]) => self.expert(at, [gate, up, down])?,
            Feed::Fused([up, down]) => {
                let up = self.linear(at, up, &[2 * ffn, width])?;
                Expert { gated: true, up, down: self.linear(at, down, &[width, ffn])? }
            }
            Feed::Experts { router, at: stem, parts, count, .. } => {
                let router = self.linear(at, router, &[count, width])?;
                let mut experts = Vec::new();
                for number in 0..count {
                    experts.push(self.expert(&format!("{at}{stem}{number}."), parts)?);
                }
                return Ok(FeedWeights::Experts { router, experts });
            }
        };
        Ok(FeedWeights::Dense(expert))
    }

    fn expert(&mut self, at: &str, [gate, up, down]: [Named; 3]) -> Result<Expert, FormatError> {
        let (width, ffn) = (self.spec.shape.width, self.spec.ffn);
        let up = self.stacked(at, &[(gate, ffn), (up, ffn)], width)?;
        Ok(Expert { gated: true, up, down: self.linear(at, down, &[width, ffn])? })
    }

    /// Matrices of the same inputs as one.
    fn stacked(&mut self, at: &str, parts: &[(Named, usize)], inputs: usize) -> Result<Linear, FormatError> {
        let bias = self.biases(at, parts)?;
        let (mut found, mut dense) = (Vec::new(), Vec::new());
        for (part, outputs) in parts {
            match self.blocks(at, *part, *outputs, inputs)? {
                Some(blocks) => {
                    found.extend(self.joined(std::mem::take(&mut dense))?);
                    found.push(Part::Blocks(blocks));
                }
                None => dense.push(self.matrix(at, *part, &[*outputs, inputs])?),
            }
        }
        found.extend(self.joined(dense)?);
        Ok(Linear { parts: found, bias })
    }

    /// The biases of all parts; one that the file lacks beside others is nothing.
    fn biases(&mut self, at: &str, parts: &[(Named, usize)]) -> Result<Option<Tensor>, FormatError> {
        if !parts.iter().any(|(part, _)| part.bias) {
            return Ok(None);
        }
        let mut biases = Vec::new();
        for (part, outputs) in parts {
            biases.push(match self.bias(at, *part, *outputs)? {
                Some(bias) => bias,
                None => self.computed(Tensor::zeros(*outputs, DType::F32, self.device))?,
            });
        }
        self.computed(Tensor::cat(&biases, 0)).map(Some)
    }

    /// Matrices of the same inputs as they are held: one where they have one type.
    fn joined(&mut self, dense: Vec<Tensor>) -> Result<Vec<Part>, FormatError> {
        let Some(first) = dense.first() else { return Ok(Vec::new()) };
        if dense.iter().all(|one| one.dtype() == first.dtype()) {
            let joined = self.computed(Tensor::cat(&dense, 0))?;
            return Ok(vec![self.hold(joined)?]);
        }
        dense.into_iter().map(|one| self.hold(one)).collect()
    }

    fn linear(&mut self, at: &str, named: Named, shape: &[usize; 2]) -> Result<Linear, FormatError> {
        self.stacked(at, &[(named, shape[0])], shape[1])
    }

    /// A matrix in the blocks of its file, or in others where nothing multiplies with these; `None` if it is in none, or is to be
    /// held otherwise.
    fn blocks(&mut self, at: &str, part: Named, outputs: usize, inputs: usize) -> Result<Option<QMatMul>, FormatError> {
        let Source::Gguf(gguf) = self.source else { return Ok(None) };
        let weight = gguf.need(&format!("{at}{}.weight", part.stem), &[outputs, inputs])?;
        let Some(kind) = kept_blocks(weight.dtype, self.quantize) else { return Ok(None) };
        let tensor = match kept_type(weight.dtype).and_then(|_| weight.outputs()) {
            Some(stored) => {
                // Those of a file may begin anywhere, and candle takes them in the alignment of its blocks.
                let stored = match stored.as_ptr().addr().is_multiple_of(8) {
                    true => stored,
                    false => Cow::Owned(stored.into_owned()),
                };
                let storage = self.computed(QStorage::from_data(stored, self.device, kind))?;
                self.computed(QTensor::new(storage, (outputs, inputs)))?
            }
            None => {
                let mut numbers = vec![0.0; outputs * inputs];
                weight.decode_rows(0, outputs, &mut numbers, inputs);
                let dense = self.computed(Tensor::from_vec(numbers, (outputs, inputs), &Device::Cpu))?;
                self.recoded += 1;
                self.computed(blocks_of(&dense, kind, self.device))?
            }
        };
        self.count_blocks(&tensor, kind);
        self.computed(QMatMul::from_qtensor(tensor)).map(Some)
    }

    fn count_blocks(&mut self, blocks: &QTensor, kind: GgmlDType) {
        let (outputs, inputs) = blocks.shape().dims2().unwrap_or_default();
        self.held += blocks.storage_size_in_bytes() as u64 + packed_bytes(kind, outputs, inputs, self.kind);
    }

    /// Rows of queries, keys and values of each group, as all queries, all keys, all values.
    fn ungroup(&self, rows: &Tensor) -> Computed<Tensor> {
        let spec = self.spec;
        let group = spec.shape.heads / spec.kv_heads;
        let inputs = rows.elem_count() / rows.dim(0)?;
        let grouped = rows.reshape((spec.kv_heads, group + 2, spec.head_dim * inputs))?;
        let part =
            |from, count| grouped.narrow(1, from, count)?.reshape((spec.kv_heads * count * spec.head_dim, inputs));
        let all = Tensor::cat(&[part(0, group)?, part(group, 1)?, part(group + 1, 1)?], 0)?;
        if rows.rank() == 1 { all.flatten_all() } else { Ok(all) }
    }

    fn matrix(&mut self, at: &str, named: Named, shape: &[usize; 2]) -> Result<Tensor, FormatError> {
        let name = format!("{at}{}.weight", named.stem);
        if self.spec.transposed && !at.is_empty() {
            let stored = self.read(&name, &[shape[1], shape[0]])?;
            return self.computed(stored.t().and_then(|t| t.contiguous()));
        }
        self.read(&name, shape)
    }

    fn bias(&mut self, at: &str, named: Named, outputs: usize) -> Result<Option<Tensor>, FormatError> {
        match named.bias {
            true => Ok(Some(self.vector(&format!("{at}{}.bias", named.stem), &[outputs])?)),
            false => Ok(None),
        }
    }

    fn norm(&mut self, stem: &str, norm: Norm, width: usize) -> Result<NormWeights, FormatError> {
        let constant = |value: f32| Tensor::full(value, width, self.device);
        let weight = match norm {
            Norm::Bare { .. } => self.computed(constant(1.0))?,
            Norm::Layer { .. } | Norm::Rms { .. } => {
                let weight = self.vector(&format!("{stem}.weight"), &[width])?;
                if self.spec.norms_add_one { self.computed(weight + 1.0)? } else { weight }
            }
        };
        let bias = match norm {
            Norm::Layer { .. } => self.vector(&format!("{stem}.bias"), &[width])?,
            Norm::Bare { .. } | Norm::Rms { .. } => self.computed(Tensor::full(0.0f32, width, self.device))?,
        };
        Ok(NormWeights { norm, weight, bias })
    }

    /// A tensor that stays in f32.
    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, FormatError> {
        let tensor = match self.source {
            Source::Safetensors(_) => self.read(name, shape)?,
            Source::Gguf(gguf) => {
                let numbers = gguf.need(name, shape)?.vector();
                self.computed(Tensor::from_vec(numbers, shape, self.device))?
            }
        };
        let tensor = self.computed(tensor.to_dtype(DType::F32))?;
        self.count(&tensor);
        Ok(tensor)
    }

    /// A matrix as it is held.
    fn hold(&mut self, weight: Tensor) -> Result<Part, FormatError> {
        if let Some(kind) = block_type(self.quantize) {
            let columns = weight.dims().last().copied().unwrap_or_default();
            if columns.is_multiple_of(kind.block_size()) {
                let blocks = self.computed(blocks_of(&weight, kind, self.device))?;
                self.count_blocks(&blocks, kind);
                return Ok(Part::Blocks(self.computed(QMatMul::from_qtensor(blocks))?));
            }
            self.left += 1;
        }
        // Its rows between matrices are larger than f16 can be: huggingface/transformers#36822.
        if is_beyond_f16(self.spec) && weight.dtype() == DType::F16 {
            let cause = "Gemma 3 does not fit the range of f16: use `quantize: q8_0` or `f32`, or none";
            let place = Place::Key("quantize".to_owned());
            return Err(FormatError::unsupported(Path::new("server.yaml"), place, cause));
        }
        self.count(&weight);
        Ok(Part::Dense(weight))
    }

    fn count(&mut self, tensor: &Tensor) {
        self.held += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
    }

    /// A tensor of the file in the type that the device computes in.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor, FormatError> {
        let tensors = match self.source {
            Source::Safetensors(tensors) => tensors,
            Source::Gguf(gguf) => return self.decoded(&gguf.need(name, shape)?, shape),
        };
        let found = tensors.need(name, shape)?;
        // What is infinite in f16 would fail the first request.
        if self.quantize == Some(Quant::F16) {
            found.check_numbers(true)?;
        }
        let Stored { file, dtype, bytes, .. } = found;
        let stored = match dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => DType::BF16,
            other => {
                let cause = format!("its type is {other}; f32, f16 and bf16 are supported here");
                return Err(FormatError::unsupported(file, Place::Tensor(name.to_owned()), cause));
            }
        };
        let held = held_as(stored_as(self.spec, dtype), self.quantize, self.kind.has_bf16());
        let tensor = Tensor::from_raw_buffer(bytes, stored, shape, self.device);
        self.computed(tensor.and_then(|tensor| tensor.to_dtype(held)))
    }

    /// A tensor of a GGUF file as [`Loader::read`] answers it.
    fn decoded(&self, weight: &Weight<'_>, shape: &[usize]) -> Result<Tensor, FormatError> {
        let stored = stored_as(self.spec, weight.dtype);
        let held = held_as(stored, self.quantize, self.kind.has_bf16());
        let plain = match weight.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::Bf16 => Some(DType::BF16),
            Dtype::Q8_0 | Dtype::Coded(_) => None,
        };
        let tensor = match plain.and_then(|plain| Some((plain, weight.outputs()?))) {
            Some((plain, bytes)) => Tensor::from_raw_buffer(&bytes, plain, shape, self.device),
            None if held == DType::F32 => {
                let mut numbers = vec![0.0; weight.rows * weight.columns];
                weight.decode_rows(0, weight.rows, &mut numbers, weight.columns);
                Tensor::from_vec(numbers, shape, self.device)
            }
            None => {
                let mut all = Vec::with_capacity(weight.rows * weight.columns);
                let mut part = vec![0.0; DECODED_ROWS * weight.columns];
                for first in (0..weight.rows).step_by(DECODED_ROWS) {
                    let count = DECODED_ROWS.min(weight.rows - first);
                    weight.decode_rows(first, count, &mut part, weight.columns);
                    all.extend(part[..count * weight.columns].iter().map(|number| f16::from_f32(*number)));
                }
                Tensor::from_vec(all, shape, self.device)
            }
        };
        self.computed(tensor.and_then(|tensor| tensor.to_dtype(held)))
    }

    fn computed<T>(&self, result: Computed<T>) -> Result<T, FormatError> {
        let memory = |error: candle_core::Error| std::io::Error::other(error.to_string());
        result.map_err(|error| FormatError::Read { file: "memory for weights".into(), source: memory(error) })
    }
}

/// Whether what a model computes between its matrices is larger than f16 can be.
pub(crate) fn is_beyond_f16(spec: &Spec) -> bool {
    spec.shape.family == "gemma3_text"
}

/// A matrix in blocks on a device. They are made on the CPU: candle's own way for GPUs leaves what follows the last
/// row as it was in memory, which its kernels read, and multiply what is not a number by zero.
fn blocks_of(weight: &Tensor, kind: GgmlDType, device: &Device) -> Computed<QTensor> {
    let blocks = QTensor::quantize(&weight.to_device(&Device::Cpu)?, kind)?;
    match device {
        Device::Cpu => Ok(blocks),
        device => QTensor::new(QStorage::from_data(blocks.data()?, device, kind)?, weight.shape()),
    }
}

/// The blocks in which a matrix of a file is held that has it in blocks: those of the file, q8_0 where candle has no product with
/// them, as the own kernels have it; `None` if they are decoded, since it is to be held otherwise.
pub(crate) fn kept_blocks(stored: Dtype, quantize: Option<Quant>) -> Option<GgmlDType> {
    let is_in_blocks = matches!(stored, Dtype::Q8_0 | Dtype::Coded(_));
    let kind = kept_type(stored).unwrap_or(GgmlDType::Q8_0);
    // What has no more bits than wanted stays.
    let has_few = |most: GgmlDType| kind.type_size() * most.block_size() <= most.type_size() * kind.block_size();
    let stays = match quantize {
        None => true,
        Some(Quant::Q8_0 | Quant::Q4_0) => block_type(quantize).is_some_and(has_few),
        Some(Quant::F32 | Quant::F16) => false,
    };
    (is_in_blocks && stays).then_some(kind)
}

/// The most bytes that candle holds beside the blocks of a matrix from their first product on: on processors it rearranges some for
/// their instructions, and keeps both (candle-core 0.11, `quantized/repack.rs`, `quantized/repack_x86.rs`).
pub(crate) fn packed_bytes(kind: GgmlDType, outputs: usize, inputs: usize, device: DeviceKind) -> u64 {
    let numbers = (outputs * inputs) as u64;
    match (device, kind) {
        (DeviceKind::Cuda(_), _) => 0,
        #[cfg(target_arch = "x86_64")]
        _ if !outputs.is_multiple_of(16) || !inputs.is_multiple_of(256) => 0,
        // For 16 rows of 256: sums of 16 × 8 pairs in f32 and a nibble each; with AMX a byte each besides.
        #[cfg(target_arch = "x86_64")]
        (_, GgmlDType::Q4K) if is_x86_feature_detected!("avx512vnni") => numbers * 2,
        #[cfg(target_arch = "x86_64")]
        (_, GgmlDType::Q4K) => numbers * 3 / 4,
        // A byte each, and 16 × 16 scales in f32.
        #[cfg(target_arch = "x86_64")]
        (_, GgmlDType::Q6K) => numbers * 5 / 4,
        #[cfg(target_arch = "x86_64")]
        (_, GgmlDType::Q8_0) if is_x86_feature_detected!("avx512vnni") => numbers * 17 / 16,
        // The same blocks, interleaved.
        #[cfg(target_arch = "aarch64")]
        (_, GgmlDType::Q4_0 | GgmlDType::Q4K | GgmlDType::Q5K | GgmlDType::Q6K | GgmlDType::Q8_0) => {
            numbers / kind.block_size() as u64 * kind.type_size() as u64
        }
        _ => 0,
    }
}

/// The blocks of a file that candle multiplies with as they are.
pub(crate) fn kept_type(dtype: Dtype) -> Option<GgmlDType> {
    match dtype {
        Dtype::Q8_0 => Some(GgmlDType::Q8_0),
        Dtype::Coded(code) => match code {
            Code::Q4_0 => Some(GgmlDType::Q4_0),
            Code::Q4_1 => Some(GgmlDType::Q4_1),
            Code::Q5_0 => Some(GgmlDType::Q5_0),
            Code::Q5_1 => Some(GgmlDType::Q5_1),
            Code::Q2K => Some(GgmlDType::Q2K),
            Code::Q3K => Some(GgmlDType::Q3K),
            Code::Q4K => Some(GgmlDType::Q4K),
            Code::Q5K => Some(GgmlDType::Q5K),
            Code::Q6K => Some(GgmlDType::Q6K),
            Code::Iq4Nl | Code::Iq4Xs => None,
        },
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => None,
    }
}

/// The blocks in which matrices are held, if they are.
pub(crate) fn block_type(quantize: Option<Quant>) -> Option<GgmlDType> {
    match quantize? {
        Quant::F32 | Quant::F16 => None,
        Quant::Q8_0 => Some(GgmlDType::Q8_0),
        Quant::Q4_0 => Some(GgmlDType::Q4_0),
    }
}

/// The type in which a matrix that is not in blocks is held.
pub(crate) fn held_as(stored: DType, quantize: Option<Quant>, has_bf16: bool) -> DType {
    match (quantize, stored) {
        (Some(Quant::F32), _) => DType::F32,
        (Some(Quant::F16), _) => DType::F16,
        // Processors have no product in bf16 here, nor have older GPUs; f32 holds it exactly.
        (_, DType::BF16) if !has_bf16 => DType::F32,
        (_, stored) => stored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu;

    /// Numbers between -0.5 and 0.5 that repeat.
    fn noise(rows: usize, columns: usize) -> Vec<f32> {
        let mut state = (rows * columns) as u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..rows * columns).map(|_| random()).collect()
    }

    /// Devices multiply blocks with rows in 8 bits, so that products differ by about one percent.
    #[test]
    fn products_with_blocks_are_those_of_the_numbers_in_them() {
        let lease = gpu::Lease::open(0).ok();
        let devices = [Some(Device::Cpu), lease.as_ref().map(|lease| lease.device().clone())];
        let kinds = Dtype::all().filter_map(kept_type);
        for (kind, device) in kinds.flat_map(|kind| devices.iter().flatten().map(move |device| (kind, device))) {
            let sizes = [(61, 64), (96, 64), (64, 96), (256, 256), (640, 2048), (300, 1536)];
            for (outputs, inputs) in sizes.into_iter().filter(|(_, inputs)| inputs % kind.block_size() == 0) {
                let weight = Tensor::from_vec(noise(outputs, inputs), (outputs, inputs), device).unwrap();
                let blocks = blocks_of(&weight, kind, device).unwrap();
                let exact = blocks.dequantize(&Device::Cpu).unwrap();
                let blocks = QMatMul::from_qtensor(blocks).unwrap();
                for rows in [1, 3, 8, 9, 25, 200] {
                    let x = Tensor::from_vec(noise(rows, inputs), (rows, inputs), &Device::Cpu).unwrap();
                    let exact = x.matmul(&exact.t().unwrap()).unwrap();
                    let found = blocks.forward(&x.to_device(device).unwrap()).unwrap().to_device(&Device::Cpu).unwrap();
                    let size = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                    let error = size(&(&found - &exact).unwrap()) / size(&exact);
                    assert!(error < 0.02, "{kind:?}, {outputs} × {inputs}, {rows} rows on {device:?}: {error}");
                }
            }
        }
    }
}
