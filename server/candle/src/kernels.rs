//! Launches of the kernels in `kernels.cu`, for the rows of a pass on a GPU.
//!
//! All work of a device is in one stream, in the order in which it is launched here, and memory is freed in that
//! stream, too: what a kernel reads or writes is there until it has run.
#![allow(unsafe_code)]

use crate::layer::{Cache, Piece};
use crate::step::DrawnRow;
use crate::weights::NormWeights;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaGraph, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg, result,
};
use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use textnlp_inference::decoder::{Activation, Norm, Position, Spec};
use textnlp_inference::sample::{Draw, NotFinite, Penalties};

/// `server/cuda/build` compiles them.
const PTX: &str = include_str!(env!("TEXTNLP_KERNELS"));
/// What they are loaded as.
const MODULE: &str = "textnlp";
/// Numbers of a row that a thread has in `attend`.
const EACH: usize = 8;
/// Threads of a block in `attend`.
const THREADS: u32 = 256;
/// Positions from which on several blocks share a row's attention, and the most of them.
const SPLIT: usize = 1024;
const MOST_SPLITS: usize = 32;
/// The same where there are fewer blocks than keep the GPU busy.
const SPLIT_OF_FEW: usize = 64;
const BUSY_BLOCKS: usize = 256;
/// The constants of kernels.cu of the same names.
const NO_DRAW: u32 = u32::MAX;
const UNDECIDED: u32 = u32::MAX;
const NOT_FINITE: u32 = u32::MAX - 1;
const PEAK: usize = 64;
const MASS: usize = 256;
const FEW: usize = 64;
const MOST_SORTED: usize = 4096;
const PICKERS: u32 = 512;
/// 32-bit words of a draw.
const DRAW_WORDS: usize = 12;
/// The same of a changed logit, and in place of a count that is not there.
const CHANGED_WORDS: usize = 4;
const UNCOUNTED: u32 = u32::MAX;
/// The most logits that are changed in a step: a bound of the memory for them, and of what is sent.
const MOST_CHANGED: usize = 1 << 17;

/// Where the rows of a pass are, on the device.
pub(crate) struct Kernels<'a> {
    spec: &'a Spec,
    device: &'a CudaDevice,
    /// Sequence, position and capacity of each row.
    rows: Tensor,
    count: usize,
    /// Addresses of keys and values: layers × sequences × 2.
    caches: Tensor,
    sequences: usize,
    /// Rows that are the only ones of their sequence.
    singles: Option<Tensor>,
    /// Into how many parts the positions of a decode row are split.
    splits: usize,
}

/// Compiles the kernels for a device, so that no request waits for it and a driver that cannot is found at once.
pub(crate) fn load(device: &CudaDevice) -> Result<()> {
    device.get_or_load_custom_func("gate", MODULE, PTX).map(drop)
}

/// Addresses of keys and of values in the memory of the device.
pub(crate) fn addresses(keys: &Tensor, values: &Tensor) -> Result<[i64; 2]> {
    Ok([address(keys)?, address(values)?].map(u64::cast_signed))
}

/// The address of a contiguous tensor in the memory of its device.
fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("a tensor is not on the GPU") };
    if !layout.is_contiguous() {
        bail!("a tensor is not contiguous")
    }
    let stream = storage.device().cuda_stream();
    let base = match tensor.dtype() {
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        DType::F16 => storage.as_cuda_slice::<f16>()?.device_ptr(&stream).0,
        DType::BF16 => storage.as_cuda_slice::<bf16>()?.device_ptr(&stream).0,
        DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0,
        DType::I64 => storage.as_cuda_slice::<i64>()?.device_ptr(&stream).0,
        other => bail!("no kernel takes numbers of type {other:?}"),
    };
    Ok(base + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

/// The number of a type in the kernels, and its part of their names.
fn dtype_code(dtype: DType) -> Result<(u32, &'static str)> {
    match dtype {
        DType::F32 => Ok((0, "f32")),
        DType::F16 => Ok((1, "f16")),
        DType::BF16 => Ok((2, "bf16")),
        other => bail!("no kernel takes numbers of type {other:?}"),
    }
}

/// A tensor of a size, with anything in it.
fn empty(rows: usize, columns: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: the kernel that it is for writes all of it before anything reads it.
    unsafe { Tensor::empty((rows, columns), dtype, device) }
}

/// Where the rows of a pass are: what the kernels read about them.
pub(crate) struct Tables {
    /// Sequence, position and capacity of each row.
    pub(crate) rows: Vec<u32>,
    /// Rows that are the only ones of their sequence.
    pub(crate) singles: Vec<u32>,
    /// Addresses of keys and values: layers × sequences × 2.
    pub(crate) caches: Vec<i64>,
    /// Into how many parts the positions of a decode row are split, so that a long one keeps more of the GPU busy.
    pub(crate) splits: usize,
}

impl Tables {
    /// For pieces of sequences whose memory is `caches`, by piece and layer.
    pub(crate) fn new(spec: &Spec, pieces: &[Piece], caches: &[&[Cache]]) -> Result<Tables> {
        let (mut rows, mut singles) = (Vec::new(), Vec::new());
        for (sequence, (piece, caches)) in pieces.iter().zip(caches).enumerate() {
            let Some(cache) = caches.first() else { bail!("a model without layers") };
            let capacity = cache.keys.dim(1)?;
            if piece.rows == 1 {
                singles.push(piece.row as u32);
            }
            rows.extend(
                (piece.start..piece.start + piece.rows).flat_map(|at| [sequence, at, capacity].map(|n| n as u32)),
            );
        }
        let longest = pieces.iter().filter(|piece| piece.rows == 1).map(|piece| piece.start + 1).max().unwrap_or(1);
        let idle = BUSY_BLOCKS / (singles.len() * spec.shape.heads).max(1);
        let splits = longest.div_ceil(SPLIT).max(idle.min(longest / SPLIT_OF_FEW));
        let splits = splits.next_power_of_two().min(MOST_SPLITS);
        let of_layer = |layer: usize| caches.iter().flat_map(move |caches| caches[layer].addresses);
        Ok(Tables { rows, singles, caches: (0..spec.shape.layers).flat_map(of_layer).collect(), splits })
    }
}

/// Whether the kernels compute the attention of a model.
pub(crate) fn computes(spec: &Spec) -> bool {
    spec.head_dim <= 32 * EACH
}

impl<'a> Kernels<'a> {
    /// For a pass whose rows are in these tables.
    pub(crate) fn new(spec: &'a Spec, device: &'a Device, tables: Tables) -> Result<Kernels<'a>> {
        let Tables { rows, singles, caches, splits } = tables;
        let tensor = |numbers: Vec<u32>| Tensor::new(numbers, device);
        let singles = if singles.is_empty() { None } else { Some(tensor(singles)?) };
        Kernels::over(spec, device, tensor(rows)?, Tensor::new(caches, device)?, singles, splits)
    }

    /// The same for tables that are on the device.
    pub(crate) fn over(
        spec: &'a Spec,
        device: &'a Device,
        rows: Tensor,
        caches: Tensor,
        singles: Option<Tensor>,
        splits: usize,
    ) -> Result<Kernels<'a>> {
        let (count, sequences) = (rows.elem_count() / 3, caches.elem_count() / 2 / spec.shape.layers.max(1));
        Ok(Kernels { spec, device: device.as_cuda_device()?, rows, count, caches, sequences, singles, splits })
    }

    /// Addresses of a layer's keys and values.
    fn caches(&self, layer: usize) -> Result<u64> {
        Ok(address(&self.caches)? + (layer * self.sequences * 2 * size_of::<u64>()) as u64)
    }

    /// RoPE of queries and keys; keys and values go into the KV caches. `qkv` is rows × (heads + 2 · key heads) ·
    /// width; the answer is the queries, rows × heads · width.
    pub(crate) fn rope_and_store(
        &self,
        layer: usize,
        qkv: &Tensor,
        kv_type: DType,
        rotations: Option<&(Tensor, Tensor)>,
    ) -> Result<Tensor> {
        let spec = self.spec;
        let (heads, kv_heads, width) = (spec.shape.heads, spec.kv_heads, spec.head_dim);
        if qkv.dims() != [self.count, (heads + 2 * kv_heads) * width] {
            bail!("queries, keys and values are {:?}", qkv.dims())
        }
        let queries = empty(self.count, heads * width, DType::F32, qkv.device())?;
        let (rotated, interleaved) = match &spec.position {
            Position::Rotary { rope, interleaved, .. } => (rope.dims as u32, u32::from(*interleaved)),
            Position::Learned { .. } | Position::Alibi => (0, 0),
        };
        let (cosines, sines) = match rotations {
            Some((cosines, sines)) => (address(cosines)?, address(sines)?),
            None => (0, 0),
        };
        let ((qkv_type, _), (kept_type, _)) = (dtype_code(qkv.dtype())?, dtype_code(kv_type)?);
        let (qkv, to, caches, rows) = (address(qkv)?, address(&queries)?, self.caches(layer)?, address(&self.rows)?);
        let sizes = [heads, kv_heads, width].map(|n| n as u32);
        let kernel = self.device.get_or_load_custom_func("rope_and_store", MODULE, PTX)?;
        let mut launch = kernel.builder();
        launch.arg(&qkv).arg(&qkv_type).arg(&to).arg(&cosines).arg(&sines).arg(&caches).arg(&kept_type).arg(&rows);
        launch.arg(&sizes[0]).arg(&sizes[1]).arg(&sizes[2]).arg(&rotated).arg(&interleaved);
        let config = LaunchConfig {
            grid_dim: (self.count as u32, (heads + 2 * kv_heads) as u32, 1),
            block_dim: ((width as u32).next_multiple_of(32).min(256), 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of `rope_and_store` in kernels.cu. The shape of `qkv` is checked; rotations
        // have a row for each row and half of the rotated numbers; each position is below the capacity of its sequence,
        // which a step checks before its passes.
        unsafe { launch.launch(config) }.map_err(candle_core::Error::wrap)?;
        Ok(queries)
    }

    /// Room for what all rows attend to: rows × heads · width.
    pub(crate) fn mixed(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        empty(self.count, self.spec.shape.heads * self.spec.head_dim, dtype, device)
    }

    /// Attention of the rows that are the only ones of their sequence, written to their places in `mixed`. `biases` are
    /// heads × 1 × positions.
    pub(crate) fn attend(
        &self,
        layer: usize,
        queries: &Tensor,
        mixed: &Tensor,
        kv_type: DType,
        biases: Option<&Tensor>,
    ) -> Result<()> {
        let (Some(singles), spec) = (&self.singles, self.spec) else { return Ok(()) };
        let (heads, width) = (spec.shape.heads, spec.head_dim);
        let lanes = width.div_ceil(EACH).next_power_of_two().max(8);
        let (mixed_type, _) = dtype_code(mixed.dtype())?;
        let groups = THREADS as usize / lanes;
        let (biases, stride) = match biases {
            Some(biases) => (address(biases)?, biases.dim(2)? as u32),
            None => (0, 0),
        };
        let (from, to, caches, rows) = (address(queries)?, address(mixed)?, self.caches(layer)?, address(&self.rows)?);
        let (count, splits) = (singles.elem_count(), self.splits);
        let singles = address(singles)?;
        let parts = match splits {
            1 => None,
            _ => Some(empty(count * heads * splits, width + 2, DType::F32, queries.device())?),
        };
        let parts = parts.as_ref().map_or(Ok(0), address)?;
        let sizes = [heads, spec.kv_heads, width, spec.window(layer).unwrap_or(0)].map(|n| n as u32);
        let kernel =
            self.device.get_or_load_custom_func(&format!("attend_{}_{lanes}", dtype_code(kv_type)?.1), MODULE, PTX)?;
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&to).arg(&mixed_type).arg(&parts).arg(&caches).arg(&rows).arg(&singles);
        launch.arg(&biases).arg(&stride);
        let cap = spec.score_cap.unwrap_or(0.0);
        launch.arg(&sizes[0]).arg(&sizes[1]).arg(&sizes[2]).arg(&sizes[3]).arg(&spec.scale).arg(&cap);
        let config = LaunchConfig {
            grid_dim: (count as u32, heads as u32, splits as u32),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: (groups * (width + 2) * size_of::<f32>()) as u32,
        };
        // SAFETY: the arguments are those of `attend` in kernels.cu; queries and `mixed` are rows × heads · width as
        // `rope_and_store` and `mixed` made them, parts have room for each block, and biases reach to the last position
        // of the pass.
        unsafe { launch.launch(config) }.map_err(candle_core::Error::wrap)?;
        if splits == 1 {
            return Ok(());
        }
        let kernel = self.device.get_or_load_custom_func("join", MODULE, PTX)?;
        let (splits, [heads, _, width, _]) = (splits as u32, sizes);
        let mut launch = kernel.builder();
        launch.arg(&parts).arg(&to).arg(&mixed_type).arg(&singles).arg(&splits).arg(&heads).arg(&width);
        let config = LaunchConfig { grid_dim: (count as u32, heads, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `join` in kernels.cu; they are what `attend` wrote to.
        unsafe { launch.launch(config) }.map_err(candle_core::Error::wrap)?;
        Ok(())
    }

    /// The gate's outputs, activated, times those beside them: rows × 2 · `ffn` as rows × `ffn`.
    pub(crate) fn gate(&self, up: &Tensor, ffn: usize, activation: Activation) -> Result<Tensor> {
        let (rows, columns) = up.dims2()?;
        if columns != 2 * ffn {
            bail!("gate and inner numbers are {columns}")
        }
        let inner = empty(rows, ffn, up.dtype(), up.device())?;
        let activation = match activation {
            Activation::Gelu => 0u32,
            Activation::GeluTanh => 1,
            Activation::Relu => 2,
            Activation::Silu => 3,
        };
        let kernel = self.device.get_or_load_custom_func("gate", MODULE, PTX)?;
        let ((dtype, _), from, to, ffn) = (dtype_code(up.dtype())?, address(up)?, address(&inner)?, ffn as u32);
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&to).arg(&dtype).arg(&ffn).arg(&activation);
        let config =
            LaunchConfig { grid_dim: (ffn.div_ceil(256), rows as u32, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `gate` in kernels.cu, and their shapes are checked.
        unsafe { launch.launch(config) }.map_err(candle_core::Error::wrap)?;
        Ok(inner)
    }

    /// The residual stream, rows × width in f32, with what a part of a layer said added, if it did; and their norm as
    /// `dtype`.
    pub(crate) fn add_norm(
        &self,
        stream: &Tensor,
        more: Option<&Tensor>,
        norm: &NormWeights,
        dtype: DType,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, width) = stream.dims2()?;
        let normed = empty(rows, width, dtype, stream.device())?;
        let sum = self.launch_add(stream, more, Some((norm, &normed)))?;
        Ok((sum, normed))
    }

    /// The residual stream with what a part of a layer said added.
    pub(crate) fn add(&self, stream: &Tensor, more: &Tensor) -> Result<Tensor> {
        self.launch_add(stream, Some(more), None)
    }

    fn launch_add(
        &self,
        stream: &Tensor,
        more: Option<&Tensor>,
        norm: Option<(&NormWeights, &Tensor)>,
    ) -> Result<Tensor> {
        let (rows, width) = stream.dims2()?;
        if stream.dtype() != DType::F32 || more.is_some_and(|more| more.dims() != stream.dims()) {
            bail!("the residual stream is {:?}, and {:?} is added", stream.dims(), more.map(Tensor::dims))
        }
        let (more_at, (more_type, _)) = match more {
            Some(more) => (address(more)?, dtype_code(more.dtype())?),
            None => (0, (0, "")),
        };
        let sum = if more.is_some() { empty(rows, width, DType::F32, stream.device())? } else { stream.clone() };
        let (weight, bias, normed, (normed_type, _), is_rms, epsilon) = match norm {
            Some((norm, normed)) => {
                if norm.weight.elem_count() != width {
                    bail!("a norm of {} numbers for {width}", norm.weight.elem_count())
                }
                let (is_rms, epsilon) = match norm.norm {
                    Norm::Rms { eps } => (1u32, eps),
                    Norm::Layer { eps } | Norm::Bare { eps } => (0, eps),
                };
                let (weight, bias) = (address(&norm.weight)?, address(&norm.bias)?);
                (weight, bias, address(normed)?, dtype_code(normed.dtype())?, is_rms, epsilon)
            }
            None => (0, 0, 0, (0, ""), 0, 0.0),
        };
        let kernel = self.device.get_or_load_custom_func("add_norm", MODULE, PTX)?;
        let (from, to, width) = (address(stream)?, address(&sum)?, width as u32);
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&more_at).arg(&more_type).arg(&to).arg(&weight).arg(&bias);
        launch.arg(&normed).arg(&normed_type).arg(&width).arg(&is_rms).arg(&epsilon);
        let config = LaunchConfig { grid_dim: (rows as u32, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `add_norm` in kernels.cu. All tensors of rows have the shape of the
        // stream, which is checked or as they were made here; weight and bias have its width. Without `more` the kernel
        // does not write the sum.
        unsafe { launch.launch(config) }.map_err(candle_core::Error::wrap)?;
        Ok(sum)
    }

    /// Rows of the table of tokens, in f32. Tokens are below the length of the table, which a step checks before its
    /// passes.
    pub(crate) fn embed(&self, table: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        let (count, width) = (tokens.elem_count(), table.dim(1)?);
        let stream = empty(count, width, DType::F32, table.device())?;
        let kernel = self.device.get_or_load_custom_func("embed", MODULE, PTX)?;
        let ((dtype, _), width) = (dtype_code(table.dtype())?, width as u32);
        let (from, tokens, to) = (address(table)?, address(tokens)?, address(&stream)?);
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&dtype).arg(&tokens).arg(&to).arg(&width);
        let config = LaunchConfig { grid_dim: (count as u32, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `embed` in kernels.cu.
        unsafe { launch.launch(config) }.map_err(candle_core::Error::wrap)?;
        Ok(stream)
    }

    /// Copies numbers as f32 to the beginning of another tensor.
    pub(crate) fn widen(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        let count = from.elem_count();
        if to.dtype() != DType::F32 || to.elem_count() < count {
            bail!("{count} numbers have no room")
        }
        let kernel = self.device.get_or_load_custom_func("widen", MODULE, PTX)?;
        let ((dtype, _), from, to) = (dtype_code(from.dtype())?, address(from)?, address(to)?);
        let (blocks, count) = (count.div_ceil(256).min(4096) as u32, count as u64);
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&dtype).arg(&to).arg(&count);
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `widen` in kernels.cu, and the room is checked.
        unsafe { launch.launch(config) }.map_err(candle_core::Error::wrap)?;
        Ok(())
    }
}

/// Whether the kernels draw tokens so, where a filter does not keep too many.
pub(crate) fn draws(draw: &Draw<'_>, vocab: usize) -> bool {
    draws_from(vocab) && (draw.top_k <= FEW || draw.top_k >= vocab) && draw.penalties.changed.len() <= MOST_CHANGED
}

/// Whether the kernels draw tokens of a vocabulary of that size.
pub(crate) fn draws_from(vocab: usize) -> bool {
    (1..=MOST_SORTED * PEAK).contains(&vocab)
}

/// What tokens are drawn with, on the device.
pub(crate) struct Drawing {
    draws: Tensor,
    /// What changes logits first.
    changed: Tensor,
    /// The maximum of each [`PEAK`] logits.
    peaks: Tensor,
    /// The sum of the weights of each [`MASS`] logits, in f64; the type is one of the same size.
    masses: Tensor,
    tokens: Tensor,
    vocab: usize,
}

impl Drawing {
    /// For at most that many rows and changed logits, of which it takes no more than are sent in a step.
    pub(crate) fn new(rows: usize, vocab: usize, changed: usize, device: &Device) -> Result<Drawing> {
        let changed = changed.clamp(1, MOST_CHANGED);
        Ok(Drawing {
            changed: Tensor::zeros(changed * CHANGED_WORDS, DType::U32, device)?,
            draws: Tensor::full(NO_DRAW, rows * DRAW_WORDS, device)?,
            peaks: Tensor::zeros(rows * vocab.div_ceil(PEAK), DType::F32, device)?,
            masses: Tensor::zeros(rows * vocab.div_ceil(MASS), DType::I64, device)?,
            tokens: Tensor::full(UNDECIDED, rows, device)?,
            vocab,
        })
    }

    /// How the tokens of the rows are drawn, for those that are.
    pub(crate) fn set(&self, draws: &[Option<Draw<'_>>]) -> Result<()> {
        let room = self.changed.elem_count() / CHANGED_WORDS;
        let mut changed: Vec<[u32; CHANGED_WORDS]> = Vec::new();
        let mut words = |draw: &Option<Draw<'_>>| -> [u32; DRAW_WORDS] {
            let drawn =
                |draw: &Draw<'_>| self::draws(draw, self.vocab) && changed.len() + draw.penalties.changed.len() <= room;
            let Some(draw) = draw.filter(drawn) else { return [NO_DRAW; DRAW_WORDS] };
            let top_k = if draw.top_k < self.vocab { draw.top_k as u32 } else { 0 };
            let at = draw.at.to_bits();
            let [scale, top_p, floor] = [draw.scale, draw.top_p, draw.floor].map(f32::to_bits);
            let Penalties { repetition, presence, frequency, changed: own } = draw.penalties;
            let [repetition, presence, frequency] = [repetition, presence, frequency].map(f32::to_bits);
            let [first, count] = [changed.len(), own.len()].map(|n| n as u32);
            changed.extend(own.iter().map(|own| [own.token, own.bias.to_bits(), own.count.unwrap_or(UNCOUNTED), 0]));
            [scale, top_k, top_p, floor, at as u32, (at >> 32) as u32, repetition, presence, frequency, first, count, 0]
        };
        upload(&self.draws, &draws.iter().flat_map(&mut words).collect::<Vec<u32>>())?;
        match changed.is_empty() {
            true => Ok(()),
            false => upload(&self.changed, changed.as_flattened()),
        }
    }

    /// Draws the tokens of rows of logits.
    pub(crate) fn launch(&self, logits: &Tensor, rows: usize) -> Result<()> {
        let vocab = self.vocab;
        let has_room = self.tokens.elem_count() >= rows && logits.elem_count() >= rows * vocab;
        if logits.dtype() != DType::F32 || !has_room || rows == 0 || !draws_from(vocab) {
            bail!("no tokens are drawn from {rows} rows of {:?}", logits.dims())
        }
        let device = logits.device().as_cuda_device()?;
        let (from, draws, peaks) = (address(logits)?, address(&self.draws)?, address(&self.peaks)?);
        let (masses, tokens, length) = (address(&self.masses)?, address(&self.tokens)?, vocab as u32);
        let changed = address(&self.changed)?;
        let config = |blocks: usize, threads| LaunchConfig {
            grid_dim: (blocks as u32, rows as u32, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: 0,
        };
        let of_rows =
            |threads| LaunchConfig { grid_dim: (rows as u32, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let kernel = device.get_or_load_custom_func("penalise", MODULE, PTX)?;
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&draws).arg(&changed).arg(&length);
        // SAFETY: the arguments are those of `penalise` in kernels.cu; the room for rows of logits is checked, and `set`
        // made draws that name changed logits within their room.
        unsafe { launch.launch(of_rows(256)) }.map_err(candle_core::Error::wrap)?;
        let kernel = device.get_or_load_custom_func("survey", MODULE, PTX)?;
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&draws).arg(&peaks).arg(&length);
        // SAFETY: the arguments are those of `survey` in kernels.cu; the room for rows of logits and what is read from
        // them is checked. A warp has a maximum.
        unsafe { launch.launch(config(vocab.div_ceil(PEAK * 8), 256)) }.map_err(candle_core::Error::wrap)?;
        let kernel = device.get_or_load_custom_func("weigh", MODULE, PTX)?;
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&draws).arg(&peaks).arg(&masses).arg(&length);
        // SAFETY: the same for `weigh`. Eight threads have a sum.
        unsafe { launch.launch(config(vocab.div_ceil(MASS * 32), 256)) }.map_err(candle_core::Error::wrap)?;
        let kernel = device.get_or_load_custom_func("pick", MODULE, PTX)?;
        let mut launch = kernel.builder();
        launch.arg(&from).arg(&draws).arg(&changed).arg(&peaks).arg(&masses).arg(&tokens).arg(&length);
        // SAFETY: the same for `pick`, whose maxima fit into what it sorts.
        unsafe { launch.launch(of_rows(PICKERS)) }.map_err(candle_core::Error::wrap)?;
        Ok(())
    }

    /// What the last launch said about its rows.
    pub(crate) fn drawn(&self, rows: usize) -> Result<Vec<DrawnRow>> {
        let tokens = self.tokens.narrow(0, 0, rows)?.to_vec1::<u32>()?;
        let drawn = |token| match token {
            UNDECIDED => None,
            NOT_FINITE => Some(Err(NotFinite)),
            token => Some(Ok(token)),
        };
        Ok(tokens.into_iter().map(drawn).collect())
    }
}

/// Writes numbers to the beginning of a tensor of their size.
pub(crate) fn upload<T: DeviceRepr>(to: &Tensor, numbers: &[T]) -> Result<()> {
    if to.dtype().size_in_bytes() != size_of::<T>() || to.elem_count() < numbers.len() {
        bail!("{} numbers have no room", numbers.len())
    }
    let stream = to.device().as_cuda_device()?.cuda_stream();
    stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
    // SAFETY: the room is checked. From memory that is not pinned, the call returns when the numbers are copied
    // (https://docs.nvidia.com/cuda/cuda-driver-api/api-sync-behavior.html).
    unsafe { result::memcpy_htod_async(address(to)?, numbers, stream.cu_stream()) }.map_err(candle_core::Error::wrap)
}

/// Memory of the processor that a GPU copies to by itself, in a fraction of the time.
pub(crate) struct Pinned {
    at: NonNull<f32>,
    length: usize,
    context: Arc<CudaContext>,
}

// SAFETY: it is a buffer of numbers with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeros.
    pub(crate) fn new(device: &CudaDevice, length: usize) -> Result<Pinned> {
        let context = device.cuda_stream().context().clone();
        context.bind_to_thread().map_err(candle_core::Error::wrap)?;
        // SAFETY: the length is not 0, and all of it is written before it is a slice of numbers.
        let at = unsafe {
            let at = result::malloc_host(length.max(1) * size_of::<f32>(), 0).map_err(candle_core::Error::wrap)?;
            at.cast::<f32>().write_bytes(0, length.max(1));
            at.cast::<f32>()
        };
        let Some(at) = NonNull::new(at) else { bail!("no pinned memory") };
        Ok(Pinned { at, length, context })
    }
}

impl Deref for Pinned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: that many numbers were written when it was made, and it has one owner.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.length) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.length) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: it was allocated by `malloc_host`, and copies into it are waited for. An error leaves it to the end
        // of the process.
        let _ = unsafe { result::free_host(self.at.as_ptr().cast()) };
    }
}

/// A recorded step.
pub(crate) struct Recorded(pub(crate) CudaGraph);

// SAFETY: it is launched and dropped by the one owner of its model, and its stream may be used on any thread.
unsafe impl Send for Recorded {}

/// Copies the numbers of a tensor to the beginning of `to`.
pub(crate) fn copy(from: &Tensor, to: &mut [f32]) -> Result<()> {
    let (storage, layout) = from.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("a tensor is not on the GPU in one piece")
    };
    let Some(to) = to.get_mut(..end - start) else { bail!("{} numbers have no room", end - start) };
    let device = storage.device();
    let from = storage.as_cuda_slice::<f32>()?.slice(start..end);
    device.cuda_stream().memcpy_dtoh(&from, to).map_err(candle_core::Error::wrap)?;
    device.synchronize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;
    use crate::gpu::Lease;
    use textnlp_inference::sample::Changed;

    /// Numbers between -1 and 1 that repeat.
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| random()).collect()
    }

    /// What [`Kernels::attend`] computes for one head, in f64.
    fn attention(
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        from: usize,
        end: usize,
        spec: &Spec,
        slope: f32,
    ) -> Vec<f64> {
        let width = query.len();
        let row =
            |of: &[f32], at: usize| of[at * width..(at + 1) * width].iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let dot = |at: usize| row(keys, at).iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum::<f64>();
        let score = |at: usize| {
            let score = dot(at) * f64::from(spec.scale);
            let score = spec.score_cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh());
            score + f64::from(slope * at as f32)
        };
        let scores: Vec<f64> = (from..end).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let whole: f64 = shares.iter().sum();
        (0..width)
            .map(|d| (from..end).zip(&shares).map(|(at, share)| row(values, at)[d] * share).sum::<f64>() / whole)
            .collect()
    }

    /// Two sequences of other lengths and capacities, with shared key heads, over all types and the widths of all
    /// variants.
    #[test]
    fn decode_rows_attend_as_in_f64() {
        let Ok(lease) = Lease::open(0) else { return };
        let device = lease.device();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let mut spec = Checkpoint::open(golden.as_ref()).unwrap().spec().clone();
        (spec.shape.layers, spec.shape.heads, spec.kv_heads) = (1, 4, 2);
        let dtypes = [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 2e-2)];
        let cases = [
            (6, 1, 0, false),
            (8, 33, 7, false),
            (64, 1000, 0, true),
            (72, 31, 0, false),
            (80, 2500, 300, false),
            (96, 5000, 0, false),
        ];
        let more = [(128, 1030, 0, true), (136, 64, 0, false), (256, 3000, 2000, false)];
        for ((width, length, window, has_biases), (dtype, bound)) in
            cases.into_iter().chain(more).flat_map(|case| dtypes.map(|dtype| (case, dtype)))
        {
            (spec.head_dim, spec.scale, spec.windows) =
                (width, 1.0 / (width as f32).sqrt(), vec![(window > 0).then_some(window)]);
            spec.score_cap = (window > 0).then_some(0.5);
            let lengths = [length, length / 2 + 1];
            let stored: Vec<[Tensor; 2]> = lengths
                .iter()
                .map(|length| {
                    [1, 2].map(|seed| {
                        let shape = (spec.kv_heads, length + 5, width);
                        let numbers = noise(shape.0 * shape.1 * shape.2, seed + *length as u64);
                        Tensor::from_vec(numbers, shape, device).unwrap().to_dtype(dtype).unwrap()
                    })
                })
                .collect();
            let caches: Vec<[Cache; 1]> = stored
                .iter()
                .map(|[keys, values]| {
                    [Cache { addresses: addresses(keys, values).unwrap(), keys: keys.clone(), values: values.clone() }]
                })
                .collect();
            let caches: Vec<&[Cache]> = caches.iter().map(|caches| &caches[..]).collect();
            let pieces = [0, 1].map(|row| Piece { row, rows: 1, start: lengths[row] - 1 });
            let kernels = Kernels::new(&spec, device, Tables::new(&spec, &pieces, &caches).unwrap()).unwrap();
            let queries = noise(2 * spec.shape.heads * width, 3);
            let on_device = Tensor::from_vec(queries.clone(), (2, spec.shape.heads * width), device).unwrap();
            let slopes = [0.0, -0.01, -0.02, -0.03].map(|slope| if has_biases { slope } else { 0.0 });
            let biases: Vec<f32> =
                slopes.iter().flat_map(|slope| (0..length).map(move |at| slope * at as f32)).collect();
            let biases = has_biases.then(|| Tensor::from_vec(biases, (spec.shape.heads, 1, length), device).unwrap());
            let mixed = kernels.mixed(DType::F32, device).unwrap();
            kernels.attend(0, &on_device, &mixed, dtype, biases.as_ref()).unwrap();
            let found = mixed.to_vec2::<f32>().unwrap();
            for (row, [keys, values]) in stored.iter().enumerate() {
                let [keys, values] =
                    [keys, values].map(|of| of.to_dtype(DType::F32).unwrap().to_vec3::<f32>().unwrap());
                for head in 0..spec.shape.heads {
                    let query = &queries[(row * spec.shape.heads + head) * width..][..width];
                    let end = lengths[row];
                    let from = if window > 0 { end.saturating_sub(window) } else { 0 };
                    let [keys, values] = [&keys[head / 2], &values[head / 2]].map(|of| of.concat());
                    let expected = attention(query, &keys, &values, from, end, &spec, slopes[head]);
                    let pairs = expected.iter().zip(&found[row][head * width..]);
                    let most = pairs.map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
                    assert!(most <= bound, "{dtype:?}, width {width}, {end} positions, head {head}: differs by {most}");
                }
            }
        }
    }

    /// Greedy, all temperatures and filters over all sizes of a vocabulary, several rows at once, with ties.
    #[test]
    fn tokens_are_drawn_as_by_the_processor() {
        let Ok(lease) = Lease::open(0) else { return };
        let device = lease.device();
        let plain = Draw { scale: 1.0, top_k: 0, top_p: 1.0, floor: 0.0, at: 0.0, penalties: Penalties::NONE };
        let mut draws = vec![None, Some(Draw { top_k: 1, ..plain })];
        for scale in [0.01, 0.5, 1.0, 1.0 / 0.7, 1e4] {
            let ats = [0.0, 0.3, 0.77, 1.0 - f64::EPSILON / 2.0];
            draws.extend(ats.map(|at| Some(Draw { scale, at, ..plain })));
            for (top_k, top_p, floor) in [
                (2, 1.0, 0.0),
                (64, 1.0, 0.0),
                (40, 0.9, 0.0),
                (40, 0.95, 0.05),
                (0, 0.1, 0.0),
                (0, 0.9, 0.0),
                (0, 0.99, 0.3),
                (0, 1.0, 0.05),
                (0, 1.0, 1.0),
                (usize::MAX, 0.5, 0.0),
            ] {
                draws.extend(ats.map(|at| Some(Draw { scale, top_k, top_p, floor, at, ..plain })));
            }
        }
        let mut wrong = Vec::new();
        for vocab in [1, 2, 63, 65, 256, 1001, 4095, 4097, 5003, 32_000, 50_257, 128_256, 262_144] {
            for (spread, seed) in [(0.0, 1), (2.0, 2), (30.0, 3), (1e3, 4), (1e30, 5)] {
                let rows: Vec<Vec<f32>> = (0..4)
                    .map(|row| {
                        let mut numbers = noise(vocab, seed + 10 * row);
                        // Halves make ties.
                        let rounded = |x: f32| if row % 2 == 0 { (x * 64.0).round() / 64.0 } else { x };
                        numbers.iter_mut().for_each(|x| *x = rounded(*x) * spread);
                        numbers
                    })
                    .collect();
                let logits = Tensor::from_vec(rows.concat(), (4, vocab), device).unwrap();
                let drawing = Drawing::new(4, vocab, 0, device).unwrap();
                for draws in draws.chunks(4) {
                    drawing.set(draws).unwrap();
                    drawing.launch(&logits, draws.len()).unwrap();
                    let drawn = drawing.drawn(draws.len()).unwrap();
                    for (index, (draw, drawn)) in draws.iter().zip(drawn).enumerate() {
                        let Some(draw) = draw else {
                            assert_eq!(drawn, None);
                            continue;
                        };
                        let limited = (2..vocab).contains(&draw.top_k);
                        let filters = draw.top_k != 1 && (limited || draw.top_p < 1.0 || draw.floor > 0.0);
                        // With many ties, and where more than a few tokens may be kept.
                        let ties = spread == 0.0 || index % 2 == 0;
                        let may_keep_many = !limited && (spread < 1e30 || draw.scale < 0.5);
                        if drawn.is_some() || !filters || !(ties || may_keep_many) {
                            let expected = Some(draw.token(&rows[index]));
                            if drawn != expected {
                                wrong.push(format!(
                                    "{drawn:?} for {expected:?}: row {index}, {vocab} {spread} {draw:?}"
                                ));
                            }
                        }
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} wrong, such as {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
        let mut numbers = noise(1000, 9);
        for (at, broken) in [(0, f32::NAN), (999, f32::INFINITY), (500, f32::NEG_INFINITY)] {
            let kept = std::mem::replace(&mut numbers[at], broken);
            let logits = Tensor::from_vec(numbers.clone(), (1, 1000), device).unwrap();
            let drawing = Drawing::new(1, 1000, 0, device).unwrap();
            for draw in [Draw { top_k: 1, ..plain }, plain, Draw { top_k: 3, ..plain }, Draw { top_p: 0.5, ..plain }] {
                drawing.set(&[Some(draw)]).unwrap();
                drawing.launch(&logits, 1).unwrap();
                assert_eq!(drawing.drawn(1).unwrap(), [Some(Err(NotFinite))]);
            }
            numbers[at] = kept;
        }
    }

    /// Biases and penalties of some rows, over all kinds of draws; the logits are as they were where the processor draws.
    #[test]
    fn penalised_tokens_are_drawn_as_by_the_processor() {
        let Ok(lease) = Lease::open(0) else { return };
        let device = lease.device();
        let plain = Draw { scale: 1.0, top_k: 0, top_p: 1.0, floor: 0.0, at: 0.0, penalties: Penalties::NONE };
        let draws = [
            Draw { top_k: 1, ..plain },
            plain,
            Draw { scale: 2.0, top_k: 5, ..plain },
            Draw { scale: 0.5, top_p: 0.3, ..plain },
            Draw { floor: 0.2, ..plain },
        ];
        for vocab in [1, 65, 5003, 128_256] {
            let rows: Vec<Vec<f32>> =
                (0..5).map(|row| noise(vocab, 40 + row).iter().map(|x| x * 20.0).collect()).collect();
            // Those that would be likeliest, others, and one beyond the vocabulary.
            let changed: Vec<Vec<Changed>> = rows
                .iter()
                .enumerate()
                .map(|(row, logits)| {
                    let mut ids: Vec<usize> = (0..vocab).collect();
                    ids.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
                    let likely = ids.iter().take(300).chain(ids.iter().rev().take(5)).map(|id| *id as u32);
                    let mut ids: Vec<u32> = likely.chain([vocab as u32 + 7, u32::MAX]).collect();
                    ids.sort_unstable();
                    ids.dedup();
                    let numbered = ids.into_iter().enumerate();
                    let changed = numbered.map(|(n, token)| Changed {
                        token,
                        bias: [0.0, 0.0, 1.5, -100.0, f32::MAX][(n + row) % 5] * if n % 7 == 0 { -1.0 } else { 1.0 },
                        count: [None, Some(0), Some(1), Some(9)][n % 4],
                    });
                    changed.collect()
                })
                .collect();
            let logits = Tensor::from_vec(rows.concat(), (5, vocab), device).unwrap();
            let drawing = Drawing::new(5, vocab, 4 * 400, device).unwrap();
            for (repetition, presence, frequency) in
                [(1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (0.7, 0.4, -0.2), (1e30, 2.0, f32::MAX)]
            {
                for at in [0.0, 0.37, 0.93] {
                    let drawn_so: Vec<Option<Draw<'_>>> = (0..5)
                        .map(|row| {
                            let changed = if row == 3 { &[][..] } else { &changed[row] };
                            let penalties = Penalties { repetition, presence, frequency, changed };
                            Some(Draw { at, penalties, ..draws[row] })
                        })
                        .collect();
                    drawing.set(&drawn_so).unwrap();
                    drawing.launch(&logits, 5).unwrap();
                    let drawn = drawing.drawn(5).unwrap();
                    let after = logits.to_vec2::<f32>().unwrap();
                    for row in 0..5 {
                        let draw = drawn_so[row].unwrap();
                        let expected = Some(draw.token(&rows[row]));
                        let may_keep_many = row >= 3 && drawn[row].is_none();
                        assert!(
                            drawn[row] == expected || may_keep_many,
                            "row {row} of {vocab}: {:?}, not {expected:?}",
                            drawn[row]
                        );
                        assert!(drawn[row].is_some() || after[row] == rows[row]);
                    }
                    // Drawn again, they would be penalised twice.
                    drawing.launch(&Tensor::from_vec(rows.concat(), (5, vocab), device).unwrap(), 5).unwrap();
                    assert_eq!(drawing.drawn(5).unwrap(), drawn);
                    let fresh = Tensor::from_vec(rows.concat(), (5, vocab), device).unwrap();
                    logits.slice_set(&fresh, 0, 0).unwrap();
                }
            }
            // What has no room is drawn by the processor.
            let small = Drawing::new(2, vocab, changed[0].len(), device).unwrap();
            let penalties =
                |row: usize| Penalties { repetition: 1.1, presence: 0.0, frequency: 0.0, changed: &changed[row] };
            small.set(&[0, 1].map(|row| Some(Draw { top_k: 1, penalties: penalties(row), ..plain }))).unwrap();
            small.launch(&logits, 2).unwrap();
            let drawn = small.drawn(2).unwrap();
            assert!(drawn[0].is_some() && drawn[1].is_none(), "{drawn:?}");
        }
        // What is not finite stays so.
        let mut broken = noise(1000, 3);
        broken[70] = f32::INFINITY;
        let changed = [Changed { token: 70, bias: -1.0, count: Some(1) }];
        let penalties = Penalties { repetition: 2.0, presence: 0.0, frequency: 0.0, changed: &changed };
        let drawing = Drawing::new(1, 1000, 1, device).unwrap();
        drawing.set(&[Some(Draw { top_k: 1, penalties, ..plain })]).unwrap();
        drawing.launch(&Tensor::from_vec(broken, (1, 1000), device).unwrap(), 1).unwrap();
        assert_eq!(drawing.drawn(1).unwrap(), [Some(Err(NotFinite))]);
    }
}
