//! One decoder layer for all families: what differs is read from [`Spec`].

#[cfg(feature = "cuda")]
use crate::kernels::{self, Kernels, Tables};
use crate::weights::{Expert, FeedWeights, Layer, NormWeights};
use candle_core::{D, DType, Device, Result, Tensor};
use half::bf16;
use std::collections::{HashMap, HashSet};
use textnlp_inference::decoder::{Activation, Feed, Norm, Position, Residual, Spec};
use textnlp_inference::rope::Rotation;

/// Numbers of scores that are held at once: 64 MiB in f32.
const MOST_SCORES: usize = 16 << 20;

/// The keys and values of a sequence in one layer: key heads × positions × head width each.
pub(crate) struct Cache {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
    /// Where they are in the memory of the GPU.
    #[cfg(feature = "cuda")]
    pub(crate) addresses: [i64; 2],
}

impl Cache {
    pub(crate) fn new(shape: (usize, usize, usize), dtype: DType, device: &Device) -> Result<Cache> {
        let (keys, values) = (Tensor::zeros(shape, dtype, device)?, Tensor::zeros(shape, dtype, device)?);
        Ok(Cache {
            #[cfg(feature = "cuda")]
            addresses: if device.is_cuda() { kernels::addresses(&keys, &values)? } else { [0; 2] },
            keys,
            values,
        })
    }
}

/// Consecutive rows of one sequence within a pass.
pub(crate) struct Piece {
    /// The first row of the pass.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// The position of its first row.
    pub(crate) start: usize,
}

/// The residual stream between layers, rows × width in f32.
pub(crate) struct Stream {
    pub(crate) rows: Tensor,
    /// What the last feed-forward said, where the next norm adds it.
    pub(crate) more: Option<Tensor>,
}

impl From<Tensor> for Stream {
    fn from(rows: Tensor) -> Stream {
        Stream { rows, more: None }
    }
}

/// What all layers of a pass share.
pub(crate) struct Pass<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) device: &'a Device,
    pub(crate) pieces: &'a [Piece],
    /// Of each piece's sequence, by layer.
    pub(crate) caches: &'a [&'a [Cache]],
    /// Cosines and sines, rows × half of the rotated dimensions each: those of all layers, or first those of layers that
    /// see all and then those of layers with a window.
    rotations: Vec<(Tensor, Tensor)>,
    /// Linear biases, heads × 1 × positions.
    alibi: Option<Tensor>,
    /// By window; empty where no piece has a second row.
    masks: HashMap<Option<usize>, Mask>,
    /// The most rows of a piece whose scores are held at once.
    most_rows: usize,
    /// On a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) kernels: Option<Kernels<'a>>,
}

/// Which positions rows see. Only the distance to the first row counts, so this is the same for all pieces.
struct Mask {
    /// 0 where a row sees a position, else minus infinity: rows × (`before` + rows).
    values: Tensor,
    /// Positions before the first row.
    before: usize,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        spec: &'a Spec,
        device: &'a Device,
        rotations: &[Rotation],
        pieces: &'a [Piece],
        caches: &'a [&'a [Cache]],
    ) -> Result<Pass<'a>> {
        let of_rotation = |rotation: &Rotation| {
            let angles = angles(rotation, pieces);
            let rows = angles.len() / rotation.pairs().max(1);
            turns(&Tensor::from_vec(angles, (rows, rotation.pairs()), device)?, rotation.magnitude())
        };
        let rotations = rotations.iter().map(of_rotation).collect::<Result<Vec<_>>>()?;
        let end = |piece: &Piece| piece.start + piece.rows;
        let alibi = match (&spec.position, pieces.iter().map(end).max()) {
            (Position::Alibi, Some(positions)) => Some(alibi(spec, positions, device)?),
            _ => None,
        };
        // Fewer rows at a time where a long sequence would make many scores.
        let longest = pieces.iter().filter(|piece| piece.rows > 1).map(end).max().unwrap_or(1);
        let most_rows = (MOST_SCORES / (spec.shape.heads * longest)).max(1);
        let masks = Mask::by_window(spec, device, pieces, most_rows)?;
        Ok(Pass {
            spec,
            device,
            pieces,
            caches,
            rotations,
            alibi,
            masks,
            most_rows,
            #[cfg(feature = "cuda")]
            kernels: match device.is_cuda() && kernels::computes(spec) {
                true => Some(Kernels::new(spec, device, Tables::new(spec, pieces, caches)?)?),
                false => None,
            },
        })
    }

    /// For single rows that are rotated, about which everything is on the device.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_singles(
        spec: &'a Spec,
        device: &'a Device,
        pieces: &'a [Piece],
        caches: &'a [&'a [Cache]],
        kernels: Kernels<'a>,
        rotations: Vec<(Tensor, Tensor)>,
    ) -> Pass<'a> {
        let kernels = Some(kernels);
        Pass { spec, device, pieces, caches, rotations, alibi: None, masks: HashMap::new(), most_rows: 1, kernels }
    }

    /// Rows of the residual stream through one layer.
    pub(crate) fn layer(&self, number: usize, layer: &Layer, stream: Stream) -> Result<Stream> {
        let norm = |number: usize| -> Result<&NormWeights> {
            layer.norms.get(number).ok_or_else(|| candle_core::Error::Msg("a layer lacks a norm".to_owned()))
        };
        let first = norm(0)?;
        #[cfg(feature = "cuda")]
        if let (Some(kernels), Residual::Pre | Residual::Around) = (&self.kernels, self.spec.residual) {
            let (x, normed) = kernels.add_norm(&stream.rows, stream.more.as_ref(), first, layer.qkv.dtype())?;
            let output = self.attention(number, layer, &normed)?;
            let dtype = layer.feed.dtype();
            if self.spec.residual == Residual::Pre {
                let (rows, normed) = kernels.add_norm(&x, Some(&output), norm(1)?, dtype)?;
                return Ok(Stream { rows, more: Some(self.feed(&layer.feed, &normed)?) });
            }
            let after = |rows: Tensor, norm: &NormWeights| -> Result<Tensor> {
                Ok(kernels.add_norm(&rows.to_dtype(DType::F32)?, None, norm, DType::F32)?.1)
            };
            let (rows, normed) = kernels.add_norm(&x, Some(&after(output, norm(1)?)?), norm(2)?, dtype)?;
            return Ok(Stream { rows, more: Some(after(self.feed(&layer.feed, &normed)?, norm(3)?)?) });
        }
        let x = &self.sum(stream)?;
        let attention = |x: &Tensor| self.attention(number, layer, x)?.to_dtype(DType::F32);
        let feed = |x: &Tensor| self.feed(&layer.feed, x)?.to_dtype(DType::F32);
        let sum = match self.spec.residual {
            Residual::Pre => {
                let x = (x + attention(&first.forward(x)?)?)?;
                &x + feed(&norm(1)?.forward(&x)?)?
            }
            Residual::Post => {
                let x = (x + first.forward(&attention(x)?)?)?;
                &x + norm(1)?.forward(&feed(&x)?)?
            }
            Residual::Around => {
                let x = (x + norm(1)?.forward(&attention(&first.forward(x)?)?)?)?;
                &x + norm(3)?.forward(&feed(&norm(2)?.forward(&x)?)?)?
            }
            Residual::Parallel => {
                let normed = first.forward(x)?;
                x + (attention(&normed)? + feed(&normed)?)?
            }
            Residual::ParallelTwo => x + (attention(&first.forward(x)?)? + feed(&norm(1)?.forward(x)?)?)?,
        };
        sum.map(Stream::from)
    }

    /// The residual stream with everything added.
    pub(crate) fn sum(&self, stream: Stream) -> Result<Tensor> {
        let Some(more) = &stream.more else { return Ok(stream.rows) };
        #[cfg(feature = "cuda")]
        if let Some(kernels) = &self.kernels {
            return kernels.add(&stream.rows, more);
        }
        stream.rows + more.to_dtype(DType::F32)?
    }

    /// Normalised rows to what attention adds to the residual stream, in f32 or in the type of the weights.
    fn attention(&self, number: usize, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = &self.kernels {
            return self.attention_by(kernels, number, layer, x);
        }
        let spec = self.spec;
        let (inner, kv) = (spec.shape.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let mut qkv = layer.qkv.forward(x)?;
        if let Some(clip) = spec.clip {
            qkv = qkv.clamp(-clip, clip)?;
        }
        let [q_norm, k_norm] = match &layer.qk_norms {
            Some([q, k]) => [Some(q), Some(k)],
            None => [None, None],
        };
        let q = self.heads(&qkv.narrow(1, 0, inner)?, spec.shape.heads, q_norm)?;
        let k = self.heads(&qkv.narrow(1, inner, kv)?, spec.kv_heads, k_norm)?;
        let v = split(&qkv.narrow(1, inner + kv, kv)?, spec.kv_heads)?;
        let (q, k) = (self.rotated(number, q)?, self.rotated(number, k)?);
        for (piece, cache) in self.pieces_of(number) {
            let rows = |x: &Tensor| x.narrow(1, piece.row, piece.rows)?.to_dtype(cache.keys.dtype())?.contiguous();
            cache.keys.slice_set(&rows(&k)?, 1, piece.start)?;
            cache.values.slice_set(&rows(&v)?, 1, piece.start)?;
        }
        let mut mixed = Vec::new();
        for (piece, cache) in self.pieces_of(number) {
            for from in (0..piece.rows).step_by(self.most_rows) {
                let rows = (piece.rows - from).min(self.most_rows);
                let q = q.narrow(1, piece.row + from, rows)?;
                mixed.push(self.attend(&q, cache, piece.start + from, spec.window(number))?);
            }
        }
        layer.out.forward(&Tensor::cat(&mixed, 0)?)
    }

    /// The same on a GPU, where a launch costs as much as the work of a row: all single rows attend at once.
    #[cfg(feature = "cuda")]
    fn attention_by(&self, kernels: &Kernels<'_>, number: usize, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let spec = self.spec;
        let (inner, kv) = (spec.shape.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let Some((_, first)) = self.pieces_of(number).next() else { candle_core::bail!("a pass without rows") };
        let kv_type = first.keys.dtype();
        let mut qkv = layer.qkv.product(x)?;
        if let Some(clip) = spec.clip {
            qkv = qkv.clamp(-clip, clip)?;
        }
        if let Some([q_norm, k_norm]) = &layer.qk_norms {
            let all = qkv.to_dtype(DType::F32)?;
            let normed = |from, count, heads: usize, norm: &NormWeights| {
                let part = all.narrow(1, from, count)?.contiguous()?;
                match spec.qk_norm.is_some_and(|norm| norm.per_head) {
                    true => norm.forward(&part.reshape(((), spec.head_dim))?)?.reshape(((), heads * spec.head_dim)),
                    false => norm.forward(&part),
                }
            };
            let q = normed(0, inner, spec.shape.heads, q_norm)?;
            let k = normed(inner, kv, spec.kv_heads, k_norm)?;
            qkv = Tensor::cat(&[q, k, all.narrow(1, inner + kv, kv)?], 1)?.contiguous()?;
        }
        let q = kernels.rope_and_store(number, &qkv, kv_type, self.rotations_of(number))?;
        let mixed = kernels.mixed(layer.out.dtype(), x.device())?;
        kernels.attend(number, &q, &mixed, kv_type, self.alibi.as_ref())?;
        for (piece, cache) in self.pieces_of(number).filter(|(piece, _)| piece.rows > 1) {
            for from in (0..piece.rows).step_by(self.most_rows) {
                let rows = (piece.rows - from).min(self.most_rows);
                let q = q.narrow(0, piece.row + from, rows)?;
                let q = q.reshape((rows, spec.shape.heads, spec.head_dim))?.transpose(0, 1)?;
                let part = self.attend(&q, cache, piece.start + from, spec.window(number))?;
                mixed.slice_set(&part.to_dtype(mixed.dtype())?.contiguous()?, 0, piece.row + from)?;
            }
        }
        layer.out.product(&mixed)
    }

    /// The pieces, each with what a layer keeps of its sequence.
    fn pieces_of(&self, layer: usize) -> impl Iterator<Item = (&Piece, &Cache)> {
        self.pieces.iter().zip(self.caches).map(move |(piece, caches)| (piece, &caches[layer]))
    }

    /// Rows × (heads · width) as heads × rows × width, normalised.
    fn heads(&self, x: &Tensor, heads: usize, norm: Option<&NormWeights>) -> Result<Tensor> {
        match (norm, self.spec.qk_norm.is_some_and(|norm| norm.per_head)) {
            (None, _) => split(x, heads),
            (Some(norm), false) => split(&norm.forward(&x.contiguous()?)?, heads),
            (Some(norm), true) => norm.forward(&split(x, heads)?),
        }
    }

    fn rotations_of(&self, layer: usize) -> Option<&(Tensor, Tensor)> {
        self.rotations.get(1).filter(|_| self.spec.window(layer).is_some()).or(self.rotations.first())
    }

    /// Heads × rows × width with the first dimensions rotated by the rows' positions.
    fn rotated(&self, layer: usize, x: Tensor) -> Result<Tensor> {
        let (Some((cos, sin)), Position::Rotary { rope, interleaved, .. }) =
            (self.rotations_of(layer), &self.spec.position)
        else {
            return Ok(x);
        };
        let dims = rope.dims;
        let width = x.dim(2)?;
        let part = x.narrow(2, 0, dims)?.contiguous()?.unsqueeze(0)?;
        let turned = match interleaved {
            true => candle_nn::rotary_emb::rope_i(&part, cos, sin)?,
            false => candle_nn::rotary_emb::rope(&part, cos, sin)?,
        };
        let turned = turned.squeeze(0)?;
        if dims == width { Ok(turned) } else { Tensor::cat(&[turned, x.narrow(2, dims, width - dims)?], 2) }
    }

    /// Queries of consecutive rows from position `start` on, over the sequence's keys and values: rows × (heads ·
    /// width).
    fn attend(&self, q: &Tensor, cache: &Cache, start: usize, window: Option<usize>) -> Result<Tensor> {
        let (spec, heads) = (self.spec, self.spec.shape.heads);
        let (rows, width, group) = (q.dim(1)?, spec.head_dim, heads / spec.kv_heads);
        let before = seen_before(start, window);
        let (from, count) = (start - before, before + rows);
        let (keys, values) = (cache.keys.narrow(1, from, count)?, cache.values.narrow(1, from, count)?);
        // Products of whole queries are larger than f16 can be in some families: ggml-org/llama.cpp#7805.
        let q = (q.contiguous()?.to_dtype(DType::F32)? * f64::from(spec.scale))?;
        let q = q.to_dtype(keys.dtype())?.reshape((spec.kv_heads, group * rows, width))?;
        let scores = q.matmul(&keys.t()?)?.to_dtype(DType::F32)?;
        let scores = capped(scores, spec.score_cap)?;
        let mut scores = scores.reshape((heads, rows, count))?;
        if let Some(alibi) = &self.alibi {
            scores = scores.broadcast_add(&alibi.narrow(2, from, count)?.contiguous()?)?;
        }
        if rows > 1 {
            let Some(mask) = self.masks.get(&window) else { candle_core::bail!("a window without a mask") };
            scores = scores.broadcast_add(&mask.narrow(rows, before)?)?;
        }
        let shares = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(values.dtype())?;
        let mixed = shares.reshape((spec.kv_heads, group * rows, count))?.matmul(&values)?.to_dtype(DType::F32)?;
        mixed.reshape((heads, rows, width))?.transpose(0, 1)?.reshape((rows, heads * width))
    }

    /// Normalised rows to what the feed-forward adds to the residual stream, in f32 or in the type of the weights.
    fn feed(&self, feed: &FeedWeights, x: &Tensor) -> Result<Tensor> {
        let (router, experts) = match feed {
            FeedWeights::Dense(only) => return self.expert(only, x),
            FeedWeights::Experts { router, experts } => (router, experts),
        };
        let Feed::Experts { top, .. } = self.spec.feed else { candle_core::bail!("experts without a router") };
        let shares = candle_nn::ops::softmax_last_dim(&router.forward(x)?)?.to_vec2::<f32>()?;
        // Rows and their weights, by expert.
        let mut work: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); experts.len()];
        for (row, shares) in shares.iter().enumerate() {
            let mut best: Vec<usize> = (0..shares.len()).collect();
            best.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
            best.truncate(top);
            let sum: f32 = best.iter().map(|expert| shares[*expert]).sum();
            for expert in best {
                work[expert].0.push(row as u32);
                work[expert].1.push(shares[expert] / sum);
            }
        }
        let mut sum = x.zeros_like()?;
        for (expert, (rows, weights)) in experts.iter().zip(work) {
            if rows.is_empty() {
                continue;
            }
            let count = rows.len();
            let rows = Tensor::from_vec(rows, count, self.device)?;
            let weights = Tensor::from_vec(weights, (count, 1), self.device)?;
            let y = self.expert(expert, &x.index_select(&rows, 0)?)?.to_dtype(DType::F32)?.broadcast_mul(&weights)?;
            sum = sum.index_add(&rows, &y, 0)?;
        }
        Ok(sum)
    }

    fn expert(&self, expert: &Expert, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = self.kernels.as_ref().filter(|_| expert.gated) {
            let up = expert.up.product(x)?;
            return expert.down.product(&kernels.gate(&up, self.spec.ffn, self.spec.activation)?);
        }
        let up = expert.up.forward(x)?;
        let inner = if expert.gated {
            let ffn = self.spec.ffn;
            (self.activated(&up.narrow(1, 0, ffn)?)? * up.narrow(1, ffn, ffn)?)?
        } else {
            self.activated(&up)?
        };
        expert.down.forward(&inner)
    }

    fn activated(&self, x: &Tensor) -> Result<Tensor> {
        match self.spec.activation {
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
            Activation::Relu => x.relu(),
            Activation::Silu => x.silu(),
        }
    }
}

/// The angles by which rows are rotated, for half of the rotated dimensions each.
pub(crate) fn angles(rotation: &Rotation, pieces: &[Piece]) -> Vec<f32> {
    pieces.iter().flat_map(|piece| piece.start..piece.start + piece.rows).flat_map(|at| rotation.angles(at)).collect()
}

/// Cosines and sines of angles, times the magnitude of what they rotate.
pub(crate) fn turns(angles: &Tensor, magnitude: f32) -> Result<(Tensor, Tensor)> {
    Ok((scaled(angles.cos()?, magnitude)?, scaled(angles.sin()?, magnitude)?))
}

/// A tensor times a factor, which is 1 in most models.
pub(crate) fn scaled(x: Tensor, factor: f32) -> Result<Tensor> {
    if factor == 1.0 { Ok(x) } else { x * f64::from(factor) }
}

/// `cap · tanh(x / cap)`, where there is a cap.
pub(crate) fn capped(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    match cap.map(f64::from) {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}

/// Rows × (heads · width) as heads × rows × width.
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    x.reshape((rows, heads, width / heads.max(1)))?.transpose(0, 1)?.contiguous()
}

/// How many positions before its own a row sees.
fn seen_before(position: usize, window: Option<usize>) -> usize {
    window.map_or(position, |window| position.min(window.saturating_sub(1)))
}

impl Mask {
    /// Those of all layers, for pieces that are taken in parts of at most `most_rows` rows.
    fn by_window(
        spec: &Spec,
        device: &Device,
        pieces: &[Piece],
        most_rows: usize,
    ) -> Result<HashMap<Option<usize>, Mask>> {
        let rows = pieces.iter().map(|piece| piece.rows.min(most_rows)).max().unwrap_or(0);
        if rows < 2 {
            return Ok(HashMap::new());
        }
        let last_part = |piece: &Piece| piece.start + (piece.rows - 1) / most_rows * most_rows;
        let last = pieces.iter().filter(|piece| piece.rows > 1).map(last_part).max().unwrap_or(0);
        let windows: HashSet<Option<usize>> = (0..spec.shape.layers).map(|layer| spec.window(layer)).collect();
        let mask = |window| -> Result<_> { Ok((window, Mask::new(rows, seen_before(last, window), window, device)?)) };
        windows.into_iter().map(mask).collect()
    }

    fn new(rows: usize, before: usize, window: Option<usize>, device: &Device) -> Result<Mask> {
        let sees = |own: usize, at: usize| at <= own && window.is_none_or(|window| own - at < window);
        let values: Vec<f32> = (before..before + rows)
            .flat_map(|own| (0..before + rows).map(move |at| if sees(own, at) { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Ok(Mask { values: Tensor::from_vec(values, (rows, before + rows), device)?, before })
    }

    /// That of fewer rows, with fewer positions before the first. Copied, since broadcasts of parts are slow.
    fn narrow(&self, rows: usize, before: usize) -> Result<Tensor> {
        self.values.narrow(0, 0, rows)?.narrow(1, self.before - before, before + rows)?.contiguous()
    }
}

/// Linear biases of each head, rounded as the checkpoints were trained.
fn alibi(spec: &Spec, positions: usize, device: &Device) -> Result<Tensor> {
    let biases: Vec<f32> = slopes(spec.shape.heads)
        .into_iter()
        .flat_map(|slope| {
            (0..positions).map(move |at| {
                let at = bf16::from_f32(at as f32).to_f32();
                bf16::from_f32(bf16::from_f32(slope).to_f32() * at).to_f32() * spec.scale
            })
        })
        .collect();
    Tensor::from_vec(biases, (spec.shape.heads, 1, positions), device)
}

/// The slopes of linear biases: a geometric series, and every other one of the next when heads are no power of two.
fn slopes(heads: usize) -> Vec<f32> {
    let series = |count: usize| 2f32.powf(-(2f32.powf(3.0 - (count as f32).log2())));
    let power = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let first = (1..=power).map(|i| series(power).powi(i as i32));
    let more = (0..heads - power).map(|i| series(2 * power).powi(2 * i as i32 + 1));
    first.chain(more).collect()
}

impl NormWeights {
    /// Normalises the last dimension.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.norm {
            Norm::Layer { eps } | Norm::Bare { eps } => {
                // candle's takes the variance as a difference of squares, which loses rows whose mean is large.
                let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                candle_nn::ops::layer_norm(&centered, &self.weight, &self.bias, eps)
            }
            Norm::Rms { eps } => candle_nn::ops::rms_norm(&x.contiguous()?, &self.weight, eps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_mask_show_what_rows_at_any_position_see() {
        for window in [None, Some(1), Some(3), Some(9)] {
            let (most_rows, last) = (4, 6);
            let mask = Mask::new(most_rows, seen_before(last, window), window, &Device::Cpu).unwrap();
            for (start, rows) in [(0, 2), (0, 4), (2, 4), (5, 3), (6, 2), (6, 4)] {
                let from = start - seen_before(start, window);
                let expected: Vec<Vec<f32>> = (start..start + rows)
                    .map(|row| {
                        let hidden = |at: usize| at > row || window.is_some_and(|window| at + window <= row);
                        (from..start + rows).map(|at| if hidden(at) { f32::NEG_INFINITY } else { 0.0 }).collect()
                    })
                    .collect();
                let part = mask.narrow(rows, seen_before(start, window)).unwrap();
                assert_eq!(part.to_vec2::<f32>().unwrap(), expected, "{window:?} {start} {rows}");
            }
        }
    }
}
