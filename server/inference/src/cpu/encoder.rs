//! Encoders: texts in, one vector each. The same packed weights and kernels as decoders have, attention of every row to
//! all rows of its text, normalisation behind each residual.
//!
//! Texts go through the layers together as rows, without padding. A text's vector is the same bits alone and in any
//! batch, on any number of threads and with any instruction set.

use super::compute::{Compute, QuantizedRows};
use super::kv::Kv;
use super::matrix::{Matrix, Plan};
use super::memory::{Arena, Shared};
use super::plan::finite;
use super::step::{AttendPiece, MOST_ROWS, QUERIES, Row, all_finite, cut, slice, then, turn_and_keep};
use super::{NormWeights, Quant, loss_note, total_loss};
use crate::executor::{Memory, SeqId, limit_context};
use crate::family::{Architecture, Norm};
use crate::format::{EncoderCheckpoint, EncoderSettings, FormatError, Part, Pooling};
use crate::kernels::attention::{Attend, BLOCK, scratch_len};
use crate::kernels::linear::Then;
use crate::kernels::rows::GROUP;
use crate::kernels::{Isa, Kernels};
use crate::pool::Pool;

/// The most texts of one step.
const MOST_TEXTS: usize = 64;
/// The longest text in tokens, and the most bytes for the rows of a step: shapes come from a file.
const MAX_TOKENS: usize = 1 << 14;
const MAX_BUFFERS: u64 = 1 << 30;

/// How an encoder is loaded.
#[derive(Debug, Clone, Default)]
pub struct EncoderOptions {
    /// How weights are held; `None` is as the file has them.
    pub quantize: Option<Quant>,
    /// The most tokens of a text; `None`, and more than the folder's own, is the folder's own.
    pub max_tokens: Option<usize>,
    /// Compute threads; 0 is as many as this process may use.
    pub threads: usize,
    /// The instruction set; `None` is the best that is here. For tests and measurements.
    pub isa: Option<Isa>,
}

/// A loaded encoder.
pub struct Encoder {
    architecture: Architecture,
    settings: EncoderSettings,
    padding: Option<u32>,
    weights: Weights,
    kv: Kv,
    /// The texts of the current step.
    opened: Vec<SeqId>,
    kernels: Kernels,
    pool: Pool,
    buffers: Buffers,
    held: u64,
}

struct Weights {
    token: Matrix,
    positions: Vec<f32>,
    /// Added to every row: a text alone is of the first type.
    token_type: Vec<f32>,
    norm: NormWeights,
    layers: Vec<Layer>,
}

struct Layer {
    /// Queries, keys and values, one behind the other.
    qkv: Matrix,
    out: Matrix,
    attention_norm: NormWeights,
    up: Matrix,
    down: Matrix,
    ffn_norm: NormWeights,
}

/// What a step writes to but keys and values, for the most rows of one.
struct Buffers {
    rows: Vec<Row>,
    pieces: Vec<AttendPiece>,
    x: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
    quantized: QuantizedRows,
    scores: Vec<f32>,
    size: StepSize,
}

/// How large the buffers of a step are, and its keys and values: those of one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepSize {
    rows: usize,
    x_stride: usize,
    qkv_stride: usize,
    inner_stride: usize,
    scores_stride: usize,
    /// Numbers of each thread.
    scores_each: usize,
    threads: usize,
}

/// Texts that no step takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More texts or tokens than [`Encoder::room`] says.
    #[error("the texts do not fit in one step")]
    TooMuch,
    /// A text without tokens, too long, or with a token that the vocabulary does not have.
    #[error("text {0} is empty, too long, or has unknown tokens")]
    Invalid(usize),
}

impl Encoder {
    /// Loads an encoder. The notes say when the longest text is not as requested, and what quantization costs. Refuses files whose tensors are missing,
    /// have another shape, are left over or hold numbers that are not finite, and steps of more than 1 GiB.
    pub fn load(
        checkpoint: &EncoderCheckpoint,
        options: &EncoderOptions,
    ) -> Result<(Encoder, Vec<String>), FormatError> {
        let architecture = checkpoint.architecture().clone();
        let mut settings = checkpoint.settings().clone();
        let mut notes = Vec::new();
        let max_tokens = limit_context(settings.max_tokens, options.max_tokens, &mut notes);
        settings.max_tokens = StepSize::longest(max_tokens);
        let mut pool = Pool::new(options.threads);
        let plan = EncoderPlan::new(checkpoint, options.quantize)?;
        let size = StepSize::checked(&architecture, settings.max_tokens, pool.threads())?;
        let weights = plan.pack(&mut pool)?;
        notes.extend(loss_note(options.quantize, total_loss(weights.matrices())));
        let memory = |source| FormatError::Read { file: "memory for keys and values".into(), source };
        let one_layer = Architecture { layers: 1, ..architecture.clone() };
        let kv = Kv::new(&one_layer, false, size.positions()).map_err(memory)?;
        let buffers = Buffers::new(size);
        let held = weights.held();
        let kernels = Kernels::of(options.isa.unwrap_or_else(Isa::best));
        let (padding, opened) = (checkpoint.padding(), Vec::new());
        Ok((Encoder { architecture, settings, padding, weights, kv, opened, kernels, pool, buffers, held }, notes))
    }

    /// The model's shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// How it makes vectors.
    pub fn settings(&self) -> &EncoderSettings {
        &self.settings
    }

    /// The most texts and the most tokens of one step.
    pub fn room(&self) -> (usize, usize) {
        (MOST_TEXTS, self.buffers.size.rows)
    }

    /// Bytes held for weights, and for the rows, keys and values of a step.
    pub fn memory(&self) -> Memory {
        Memory { weights: self.held, kv: self.kv.held(), kv_on_demand: 0, workspace: self.buffers.bytes_held() }
    }

    /// The vectors of texts, each as its tokens with the special ones around them. `None` where numbers of a text broke.
    pub fn embed(&mut self, texts: &[&[u32]]) -> Result<Vec<Option<Vec<f32>>>, EncodeError> {
        let (most_texts, most_rows) = self.room();
        if texts.len() > most_texts || texts.iter().map(|text| text.len()).sum::<usize>() > most_rows {
            return Err(EncodeError::TooMuch);
        }
        let vocab = self.architecture.vocab;
        let fits = |text: &[u32]| {
            (1..=self.settings.max_tokens).contains(&text.len()) && text.iter().all(|id| (*id as usize) < vocab)
        };
        if let Some(place) = texts.iter().position(|text| !fits(text)) {
            return Err(EncodeError::Invalid(place));
        }
        // Those of a step that was aborted by a panic are still open.
        self.opened.drain(..).for_each(|seq| self.kv.close(seq));
        for text in texts {
            self.opened.push(self.kv.open(text.len()).ok_or(EncodeError::TooMuch)?);
        }
        self.fill_rows(texts);
        self.pass();
        let mut first = 0;
        let vectors = texts.iter().map(|text| {
            let rows = first..first + text.len();
            first = rows.end;
            let vector = self.pooled(rows);
            all_finite(&vector).then_some(vector)
        });
        Ok(vectors.collect())
    }

    fn fill_rows(&mut self, texts: &[&[u32]]) {
        let rows = &mut self.buffers.rows;
        rows.clear();
        for (text, seq) in texts.iter().zip(&self.opened) {
            let slot = self.kv.slot(*seq).unwrap_or_default();
            let with_place = text.iter().enumerate();
            rows.extend(with_place.map(|(position, token)| Row { slot, position, token: *token, wanted: true }));
            self.kv.set_length(slot, text.len());
        }
    }

    /// Takes the rows through the model; their results are in `x`.
    fn pass(&mut self) {
        let Encoder { architecture: a, weights, kv, kernels, pool, buffers, padding, .. } = self;
        let Buffers { rows, pieces, x, qkv, mixed, inner, quantized, .. } = buffers;
        let StepSize { x_stride, qkv_stride, inner_stride, scores_stride, scores_each, .. } = buffers.size;
        let mut compute = Compute::new(*kernels, pool, quantized);
        let (x, qkv) = (Shared::new(x), Shared::new(qkv));
        let (mixed, inner) = (Shared::new(mixed), Shared::new(inner));
        let writer = kv.writer();
        let (rows, count) = (&rows[..], rows.len());
        let Some(first) = weights.layers.first() else { return };
        let places = places(rows, *padding);
        compute.each_row(count, a.width, &|r| {
            // SAFETY: each row is written by one thread and lies within its buffer.
            let to = unsafe { slice(x.at(r * x_stride), a.width) };
            weights.token.row(rows[r].token as usize, to);
            let position = &weights.positions[places[r] * a.width..][..a.width];
            for ((y, p), t) in to.iter_mut().zip(position).zip(&weights.token_type) {
                *y += p + t;
            }
        });
        compute.norm(a, &weights.norm, x, x, x_stride, count, &first.qkv);
        cut(a, rows, pieces, compute.pool.threads());
        for piece in pieces.iter_mut() {
            // Every row sees the whole text.
            piece.position = kv.length(piece.slot) - 1;
        }
        for layer in &weights.layers {
            compute.linear(&layer.qkv, x, x_stride, count, qkv, qkv_stride, Then::Store);
            let keys = &*kv;
            compute.each_row(count, qkv_stride, &|r| {
                // SAFETY: each row is written by one thread and lies within its buffer; nothing is rotated.
                unsafe { turn_and_keep(a, &rows[r], keys, writer, 0, qkv.at(r * qkv_stride), &[]) }
            });
            let attend = Attend {
                causal: false,
                half: false,
                kv: kv.layer(0),
                kv_heads: a.kv_heads,
                group: 1,
                head_dim: a.head_dim,
                // SAFETY: the first element of a buffer.
                queries: unsafe { qkv.at(0) },
                queries_stride: qkv_stride,
                // SAFETY: as above.
                out: unsafe { mixed.at(0) },
                out_stride: x_stride,
                scratch_stride: scores_each,
                scratch: buffers.scores.as_mut_ptr(),
                scores_stride,
                window: usize::MAX,
                cap: None,
            };
            compute.attend(&attend, pieces, kv, rows);
            compute.quantize(&layer.out, mixed, x_stride, count);
            compute.linear(&layer.out, mixed, x_stride, count, x, x_stride, Then::Add);
            compute.norm(a, &layer.attention_norm, x, x, x_stride, count, &layer.up);
            compute.linear(&layer.up, x, x_stride, count, inner, inner_stride, then(a.activation));
            compute.quantize(&layer.down, inner, inner_stride, count);
            compute.linear(&layer.down, inner, inner_stride, count, x, x_stride, Then::Add);
            // Quantized for the next layer; all have the same shape.
            compute.norm(a, &layer.ffn_norm, x, x, x_stride, count, &layer.qkv);
        }
    }

    /// One vector of a text's rows.
    fn pooled(&self, rows: std::ops::Range<usize>) -> Vec<f32> {
        let (width, stride) = (self.architecture.width, self.buffers.size.x_stride);
        let row = |r: usize| &self.buffers.x[r * stride..][..width];
        let mut vector = row(rows.start).to_vec();
        let others = || rows.clone().skip(1).map(row);
        match self.settings.pooling {
            Pooling::Cls => {}
            Pooling::Mean => {
                others().for_each(|other| vector.iter_mut().zip(other).for_each(|(y, x)| *y += x));
                let count = rows.len() as f32;
                vector.iter_mut().for_each(|y| *y /= count);
            }
            // A number that is not one is not passed over.
            Pooling::Max => others().for_each(|other| {
                vector.iter_mut().zip(other).for_each(|(y, x)| *y = if *x > *y || x.is_nan() { *x } else { *y });
            }),
        }
        if self.settings.normalize {
            normalize(&mut vector);
        }
        vector
    }
}

/// Scales a vector to the length 1; one without a length stays as it is.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
}

/// The row of the table of positions for each row: where a family begins behind the padding token's id, padding has that
/// row and does not count.
fn places(rows: &[Row], padding: Option<u32>) -> Vec<usize> {
    let Some(padding) = padding else { return rows.iter().map(|row| row.position).collect() };
    let mut counted = 0;
    let place = |row: &Row| {
        if row.position == 0 {
            counted = 0;
        }
        if row.token == padding {
            return padding as usize;
        }
        counted += 1;
        padding as usize + counted
    };
    rows.iter().map(place).collect()
}

impl StepSize {
    /// The longest text that is taken, where an encoder takes texts of `max_tokens`.
    pub(super) fn longest(max_tokens: usize) -> usize {
        max_tokens.clamp(1, MAX_TOKENS)
    }

    pub(super) fn new(a: &Architecture, longest: usize, threads: usize) -> StepSize {
        let scores_stride = longest.next_multiple_of(BLOCK);
        StepSize {
            rows: MOST_ROWS.max(longest),
            // Rows are padded with zeros to whole groups, which quantization and the last vector read.
            x_stride: a.width.next_multiple_of(GROUP),
            qkv_stride: (3 * a.width).next_multiple_of(GROUP),
            inner_stride: a.ffn.next_multiple_of(GROUP),
            scores_stride,
            scores_each: scratch_len(QUERIES, scores_stride, a.head_dim).next_multiple_of(16),
            threads,
        }
    }

    /// Refuses a step that takes too much memory.
    pub(super) fn checked(a: &Architecture, longest: usize, threads: usize) -> Result<StepSize, FormatError> {
        let size = StepSize::new(a, longest, threads);
        let (rows, bytes) = (size.rows, size.bytes());
        if bytes <= MAX_BUFFERS {
            return Ok(size);
        }
        let cause = format!("a step of {rows} rows needs {bytes} bytes; {MAX_BUFFERS} is the limit");
        Err(FormatError::Read { file: "memory for a step".into(), source: std::io::Error::other(cause) })
    }

    /// The widest input of a matrix.
    fn widest(&self) -> usize {
        self.x_stride.max(self.inner_stride)
    }

    /// Bytes of [`Buffers`].
    pub(super) fn bytes(&self) -> u64 {
        let row = 2 * self.x_stride + self.qkv_stride + self.inner_stride;
        let quantized = QuantizedRows::size(self.rows, self.widest());
        (4 * (self.rows * row + self.threads * self.scores_each) + quantized) as u64
    }

    /// Positions for keys and values: blocks of each text are its own.
    pub(super) fn positions(&self) -> usize {
        self.rows.next_multiple_of(BLOCK) + MOST_TEXTS * BLOCK
    }
}

impl Buffers {
    fn new(size: StepSize) -> Buffers {
        let rows = size.rows;
        Buffers {
            rows: Vec::with_capacity(rows),
            pieces: Vec::new(),
            x: vec![0.0; rows * size.x_stride],
            qkv: vec![0.0; rows * size.qkv_stride],
            mixed: vec![0.0; rows * size.x_stride],
            inner: vec![0.0; rows * size.inner_stride],
            quantized: QuantizedRows::new(rows, size.widest()),
            scores: vec![0.0; size.threads * size.scores_each],
            size,
        }
    }

    fn bytes_held(&self) -> u64 {
        let numbers = [&self.x, &self.qkv, &self.mixed, &self.inner, &self.scores];
        let numbers: usize = numbers.iter().map(|part| part.len()).sum();
        (self.quantized.held() + 4 * numbers) as u64
    }
}

impl Weights {
    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.up, &l.down]).chain([&self.token])
    }

    /// Bytes of all matrices, and of the table of positions.
    fn held(&self) -> u64 {
        self.matrices().map(Matrix::bytes).sum::<u64>() + 4 * self.positions.len() as u64
    }
}

/// All weights of an encoder, found in its files and checked to have their shapes. Nothing is packed yet.
pub(super) struct EncoderPlan<'a> {
    token: Plan<'a>,
    positions: Vec<f32>,
    token_type: Vec<f32>,
    norm: NormWeights,
    layers: Vec<LayerPlan<'a>>,
}

/// The matrices of a layer before they are packed, in the order in which a step reads them, and its normalisations.
struct LayerPlan<'a> {
    matrices: [Plan<'a>; 4],
    attention_norm: NormWeights,
    ffn_norm: NormWeights,
}

impl<'a> EncoderPlan<'a> {
    pub(super) fn new(checkpoint: &'a EncoderCheckpoint, quantize: Option<Quant>) -> Result<Self, FormatError> {
        let a = checkpoint.architecture();
        let (width, ffn) = (a.width, a.ffn);
        let plan = |layer: usize, parts: &[Part], outputs: usize, inputs: usize| -> Result<Plan<'a>, FormatError> {
            let weights: Result<_, _> =
                parts.iter().map(|part| checkpoint.weight(*part, layer, &[outputs, inputs])).collect();
            let mut biases = Vec::new();
            for part in parts {
                let bias = checkpoint.bias(*part, layer, outputs)?;
                finite(&bias)?;
                biases.push(Some(bias));
            }
            Ok(Plan::new(weights?, biases, false, quantize))
        };
        let norm = |layer: usize, part: Part| -> Result<NormWeights, FormatError> {
            let weight = finite(&checkpoint.weight(part, layer, &[width])?)?;
            Ok(NormWeights { weight, bias: finite(&checkpoint.bias(part, layer, width)?)? })
        };
        debug_assert!(matches!(a.norm, Norm::Layer { .. }));
        let table = checkpoint.weight(Part::Tokens, 0, &[a.vocab, width])?;
        let of_table = Quant::of_table(quantize, table.dtype);
        let token = Plan::new(vec![table], vec![None], false, of_table);
        let rows = a.context + checkpoint.padding().map_or(0, |id| id as usize + 1);
        let positions = finite(&checkpoint.weight(Part::Positions, 0, &[rows, width])?)?;
        let mut token_type = vec![0.0; width];
        if checkpoint.token_types() > 0 {
            let table = finite(&checkpoint.weight(Part::TokenTypes, 0, &[checkpoint.token_types(), width])?)?;
            token_type.copy_from_slice(&table[..width]);
        }
        let embedding_norm = norm(0, Part::Norm)?;
        let mut layers = Vec::new();
        for i in 0..a.layers {
            layers.push(LayerPlan {
                matrices: [
                    plan(i, &[Part::Query, Part::Key, Part::Value], width, width)?,
                    plan(i, &[Part::Out], width, width)?,
                    plan(i, &[Part::Up], ffn, width)?,
                    plan(i, &[Part::Down], width, ffn)?,
                ],
                attention_norm: norm(i, Part::AttentionNorm)?,
                ffn_norm: norm(i, Part::FfnNorm)?,
            });
        }
        checkpoint.refuse_unused()?;
        Ok(EncoderPlan { token, positions, token_type, norm: embedding_norm, layers })
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Plan<'a>> {
        self.layers.iter().flat_map(|layer| &layer.matrices).chain([&self.token])
    }

    /// What [`Weights::held`] will be; more than there is when it cannot be counted.
    pub(super) fn held(&self) -> u64 {
        let matrices = self.matrices().map(|plan| plan.held().unwrap_or(u64::MAX));
        matrices.fold(4 * self.positions.len() as u64, u64::saturating_add)
    }

    /// Takes the memory, and reads and converts every weight.
    fn pack(self, pool: &mut Pool) -> Result<Weights, FormatError> {
        let bytes = self.matrices().try_fold(0usize, |sum, plan| sum.checked_add(plan.bytes()?));
        let mut arena = bytes
            .ok_or_else(|| std::io::Error::other(super::matrix::TOO_LARGE))
            .and_then(Arena::new)
            .map_err(|source| FormatError::Read { file: "memory for weights".into(), source })?;
        let mut pack = |plan: &Plan<'_>| plan.pack(&mut arena, pool);
        let mut layers = Vec::new();
        for LayerPlan { matrices: [qkv, out, up, down], attention_norm, ffn_norm } in self.layers {
            layers.push(Layer {
                qkv: pack(&qkv)?,
                out: pack(&out)?,
                attention_norm,
                up: pack(&up)?,
                down: pack(&down)?,
                ffn_norm,
            });
        }
        let (positions, token_type, norm) = (self.positions, self.token_type, self.norm);
        Ok(Weights { token: pack(&self.token)?, positions, token_type, norm, layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_large_encoders_are_taken_and_those_beyond_the_bound_refused() {
        let size = |width: usize, ffn: usize, max_tokens: usize| {
            let a = Architecture { width, ffn, heads: 16, kv_heads: 16, head_dim: width / 16, ..Architecture::plain() };
            StepSize::checked(&a, StepSize::longest(max_tokens), 16)
        };
        // BGE-M3's.
        let size_of_bge = size(1024, 4096, 8192).unwrap();
        assert_eq!((size_of_bge.rows, size_of_bge.positions()), (8192, 8192 + 64 * 32));
        assert_eq!(size(1024, 4096, usize::MAX).unwrap().rows, MAX_TOKENS);
        let error = size(1 << 16, 1 << 18, 512).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("a step of 512 rows needs"), "{source}");
    }
}
