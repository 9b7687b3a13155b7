//! One step: rows go through all layers together; only attention looks at sequences.

use super::compute::{Compute, QuantizedRows, Stream};
use super::kv::{Kv, Writer};
use super::memory::Shared;
use super::{Cpu, Layer};
use crate::executor::{RowSpan, StepError};
use crate::family::{Activation, Architecture, Position};
use crate::kernels::Kernels;
use crate::kernels::attention::{Attend, BLOCK, scratch_len};
use crate::kernels::linear::Then;
use crate::kernels::rows::GROUP;
use crate::rope::Rotation;

/// Maximum rows that go through the layers together; longer steps are split. Enough to amortise a pass over the
/// weights, few enough that activations stay in the L2 cache.
pub(super) const MOST_ROWS: usize = 256;
/// Queries that a piece of attention works on side by side.
pub(super) const QUERIES: usize = 16;

/// Everything a step writes to but keys and values; allocated once.
pub(crate) struct Scratch {
    rows: Vec<Row>,
    pieces: Vec<AttendPiece>,
    /// The residual stream.
    x: Vec<f32>,
    /// Normalised rows.
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
    quantized: QuantizedRows,
    /// Of each row and rotation: cosines, then sines.
    turns: Vec<f32>,
    /// That of all layers, and that of layers with a window if they have their own.
    rotations: Vec<Rotation>,
    scores: Vec<f32>,
    scores_each: usize,
    /// What `scores` has room for.
    positions: usize,
    threads: usize,
    logits: Vec<f32>,
    logits_used: usize,
    strides: Strides,
}

#[derive(Clone, Copy)]
struct Strides {
    x: usize,
    qkv: usize,
    mixed: usize,
    inner: usize,
}

/// A row of the step.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) slot: usize,
    pub(super) position: usize,
    pub(super) token: u32,
    pub(super) wanted: bool,
}

/// A piece of attention: rows of one sequence, heads of one key head.
#[derive(Clone, Copy)]
pub(super) struct AttendPiece {
    pub(super) slot: usize,
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) position: usize,
    pub(super) heads: (usize, usize),
}

impl Scratch {
    pub(crate) fn new(a: &Architecture, threads: usize) -> Scratch {
        let inner = a.heads * a.head_dim;
        // Rows are padded with zeros to whole groups, which quantization and the last vector read.
        let strides = Strides {
            x: a.width.next_multiple_of(GROUP),
            qkv: (inner + 2 * a.kv_heads * a.head_dim).next_multiple_of(GROUP),
            mixed: inner.next_multiple_of(GROUP),
            inner: a.ffn.next_multiple_of(GROUP),
        };
        let widest = strides.x.max(strides.mixed).max(strides.inner);
        let rotations: Vec<Rotation> = match &a.position {
            Position::Learned => Vec::new(),
            Position::Rotary { rope, windowed } => {
                [rope].into_iter().chain(windowed).map(|rope| rope.rotation(a.context)).collect()
            }
        };
        Scratch {
            rows: Vec::with_capacity(MOST_ROWS),
            pieces: Vec::with_capacity(MOST_ROWS * a.heads),
            x: vec![0.0; MOST_ROWS * strides.x],
            normed: vec![0.0; MOST_ROWS * strides.x],
            qkv: vec![0.0; MOST_ROWS * strides.qkv],
            mixed: vec![0.0; MOST_ROWS * strides.mixed],
            inner: vec![0.0; MOST_ROWS * strides.inner],
            quantized: QuantizedRows::new(MOST_ROWS, widest),
            turns: vec![0.0; MOST_ROWS * turns_of_row(&rotations)],
            rotations,
            scores: Vec::new(),
            scores_each: 0,
            positions: 0,
            threads,
            logits: vec![0.0; a.vocab],
            logits_used: 0,
            strides,
        }
    }

    /// Allocates the scores of sequences of `positions` positions. The model's context may be far longer.
    pub(crate) fn reserve(&mut self, a: &Architecture, positions: usize) {
        if positions > self.positions {
            self.positions = positions.next_multiple_of(8 * BLOCK);
            self.scores_each = Self::scores_each(a, positions);
            self.scores = vec![0.0; self.threads * self.scores_each];
        }
    }

    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits[..self.logits_used]
    }

    /// Bytes of all buffers.
    pub(crate) fn bytes(&self) -> u64 {
        let numbers = [&self.x, &self.normed, &self.qkv, &self.mixed, &self.inner, &self.turns];
        let numbers = numbers.into_iter().chain([&self.scores, &self.logits]);
        let numbers = numbers.map(Vec::capacity).sum::<usize>();
        let rows = self.rows.capacity() * size_of::<Row>() + self.pieces.capacity() * size_of::<AttendPiece>();
        (4 * numbers + self.quantized.held() + rows) as u64
    }

    /// Bytes of the scores of sequences of `positions` positions, which [`Scratch::reserve`] allocates.
    pub(crate) fn score_bytes(a: &Architecture, threads: usize, positions: usize) -> u64 {
        (threads * Self::scores_each(a, positions) * 4) as u64
    }

    fn scores_each(a: &Architecture, positions: usize) -> usize {
        let queries = QUERIES.max(a.heads / a.kv_heads);
        // In large steps, so that growing ends soon.
        scratch_len(queries, positions.next_multiple_of(8 * BLOCK), a.head_dim).next_multiple_of(16)
    }
}

impl Cpu {
    /// Computes one step; see [`crate::executor::Executor::step`].
    pub(crate) fn run(&mut self, spans: &[RowSpan<'_>]) -> Result<(), StepError> {
        self.scratch.logits_used = 0;
        let wanted = self.check(spans)?;
        let vocab = self.architecture.vocab;
        if self.scratch.logits.len() < wanted * vocab {
            self.scratch.logits.resize(wanted * vocab, 0.0);
        }

        let mut done = 0;
        self.scratch.rows.clear();
        for span in spans {
            let slot = self.kv.slot(span.seq).ok_or(StepError::NotThere(span.seq, span.start))?;
            for (i, token) in span.tokens.iter().enumerate() {
                let (position, wanted) = (span.start + i, span.wants(i));
                self.scratch.rows.push(Row { slot, position, token: *token, wanted });
                if self.scratch.rows.len() == MOST_ROWS {
                    done += self.pass(done);
                    self.scratch.rows.clear();
                }
            }
        }
        if !self.scratch.rows.is_empty() {
            done += self.pass(done);
        }
        debug_assert_eq!(done, wanted);

        let mut at = 0;
        for span in spans {
            let rows = span.count_wanted();
            let logits = &self.scratch.logits[at * vocab..(at + rows) * vocab];
            if !all_finite(logits) {
                return Err(StepError::NotFinite(span.seq));
            }
            at += rows;
        }
        for span in spans {
            if let Some(slot) = self.kv.slot(span.seq) {
                self.kv.set_length(slot, span.start + span.tokens.len());
            }
        }
        self.scratch.logits_used = wanted * vocab;
        Ok(())
    }

    /// Checks a step before anything is written, and counts the rows whose logits are wanted.
    fn check(&self, spans: &[RowSpan<'_>]) -> Result<usize, StepError> {
        let mut wanted = 0;
        for (i, span) in spans.iter().enumerate() {
            let slot = self.kv.slot(span.seq).ok_or(StepError::NotThere(span.seq, span.start))?;
            // A sequence may stand in several spans only if they follow one another.
            let before = spans[..i].iter().rev().find(|s| s.seq == span.seq);
            let follows = match before {
                Some(before) => span.start == before.start + before.tokens.len(),
                None => span.start <= self.kv.length(slot),
            };
            if !follows || span.tokens.is_empty() || self.kv.is_shared(slot, span.start) {
                return Err(StepError::NotThere(span.seq, span.start));
            }
            if span.start + span.tokens.len() > self.kv.limit(slot) {
                return Err(StepError::NoRoom);
            }
            if let Some(token) = span.tokens.iter().find(|t| **t as usize >= self.architecture.vocab) {
                return Err(StepError::UnknownToken(span.seq, *token));
            }
            wanted += span.count_wanted();
        }
        Ok(wanted)
    }

    /// Takes the scratch's rows through the model and writes logits from row `done` on; returns how many.
    fn pass(&mut self, done: usize) -> usize {
        let Cpu { architecture: a, weights, kv, kernels, pool, scratch, .. } = self;
        let Scratch { rows, pieces, x, normed, qkv, mixed, inner, quantized, .. } = scratch;
        let strides = scratch.strides;
        let mut compute = Compute::new(*kernels, pool, quantized);
        let (x, normed, mixed) = (Shared::new(x), Shared::new(normed), Shared::new(mixed));
        let (qkv, inner) = (Shared::new(qkv), Shared::new(inner));
        let (turns, rotations) = (Shared::new(&mut scratch.turns), &scratch.rotations[..]);
        let turns_stride = turns_of_row(rotations);
        let writer = kv.writer();
        let mut count = rows.len();

        {
            let rows = &rows[..];
            let (token, positions, width) = (&weights.token, weights.positions.as_deref(), a.width);
            let scale = a.embedding_scale;
            compute.each_row(count, width, &|r| {
                // SAFETY: each row is written by one thread and lies within its buffer.
                let (to, mut turns) = unsafe {
                    let turns = turns.at(r * turns_stride);
                    (slice(x.at(r * strides.x), width), slice(turns, turns_stride))
                };
                token.row(rows[r].token as usize, to);
                if scale != 1.0 {
                    to.iter_mut().for_each(|y| *y *= scale);
                }
                if let Some(positions) = positions {
                    for (y, p) in to.iter_mut().zip(&positions[rows[r].position * width..]) {
                        *y += p;
                    }
                }
                for rotation in rotations {
                    let (cosines, rest) = turns.split_at_mut(rotation.pairs());
                    let (sines, rest) = rest.split_at_mut(rotation.pairs());
                    rotation.turn(rows[r].position, cosines, sines);
                    turns = rest;
                }
            });
        }

        let last = weights.layers.len() - 1;
        for (index, layer) in weights.layers.iter().enumerate() {
            let window = a.attention.window(index);
            let stream = Stream { x, normed, stride: strides.x };
            let input = compute.input(a, layer.norms.attention.as_ref(), stream, count, &layer.qkv);
            compute.linear(&layer.qkv, input, strides.x, count, qkv, strides.qkv, Then::Store);
            {
                let rows = &rows[..];
                let (kv, kernels) = (&*kv, compute.kernels);
                let which = if window.is_some() { rotations.len().saturating_sub(1) } else { 0 };
                let (before, pairs) =
                    (turns_of_row(&rotations[..which]), rotations.get(which).map_or(0, Rotation::pairs));
                compute.each_row(count, strides.qkv, &|r| {
                    // SAFETY: each row is written by one thread and lies within its buffer; its turns were written before.
                    unsafe {
                        let turns = slice(turns.at(r * turns_stride + before), 2 * pairs);
                        let qkv = qkv.at(r * strides.qkv);
                        normalize_heads(a, layer, kernels, qkv);
                        turn_and_keep(a, &rows[r], kv, writer, index, qkv, turns);
                    }
                });
            }
            if index == last {
                count = keep_wanted(rows, x, qkv, strides);
                if count == 0 {
                    return 0;
                }
            }
            cut(a, rows, pieces, compute.pool.threads());
            let attend = Attend {
                causal: true,
                half: kv.half(),
                kv: kv.layer(index),
                kv_heads: a.kv_heads,
                group: a.heads / a.kv_heads,
                head_dim: a.head_dim,
                // SAFETY: the first element of a buffer.
                queries: unsafe { qkv.at(0) },
                queries_stride: strides.qkv,
                // SAFETY: as above.
                out: unsafe { mixed.at(0) },
                out_stride: strides.mixed,
                scratch_stride: scratch.scores_each,
                scratch: scratch.scores.as_mut_ptr(),
                scores_stride: scratch.positions,
                window: window.unwrap_or(usize::MAX),
                cap: a.attention.cap,
            };
            compute.attend(&attend, pieces, kv, rows);
            let after = layer.norms.after_attention.as_ref();
            compute.add(a, &layer.out, mixed, strides.mixed, count, after, stream);
            let input = compute.input(a, layer.norms.ffn.as_ref(), stream, count, &layer.up);
            compute.linear(&layer.up, input, strides.x, count, inner, strides.inner, then(a.activation));
            let after = layer.norms.after_ffn.as_ref();
            compute.add(a, &layer.down, inner, strides.inner, count, after, stream);
        }

        let head = weights.head.as_ref().unwrap_or(&weights.token);
        compute.norm(a, &weights.norm, x, normed, strides.x, count, head);
        let logits = Shared::new(&mut scratch.logits[done * a.vocab..]);
        compute.linear(head, normed, strides.x, count, logits, a.vocab, Then::Store);
        if let Some(cap) = a.logit_cap {
            let kernels = compute.kernels;
            // SAFETY: each row is written by one thread and lies within the buffer; the kernels' CPU was checked.
            compute
                .each_row(count, 8 * a.vocab, &|r| unsafe { (kernels.soft_cap)(logits.at(r * a.vocab), a.vocab, cap) });
        }
        count
    }
}

/// Numbers of a row's cosines and sines.
fn turns_of_row(rotations: &[Rotation]) -> usize {
    rotations.iter().map(|rotation| 2 * rotation.pairs()).sum()
}

/// What becomes of the feed-forward's first products.
pub(super) fn then(activation: Activation) -> Then {
    match activation {
        Activation::GeluTanh => Then::Gelu,
        Activation::GeluErf => Then::GeluErf,
        Activation::Relu => Then::Relu,
        Activation::GeluTanhGated => Then::GeluGated,
        Activation::SiluGated => Then::Gated,
    }
}

pub(super) fn all_finite(numbers: &[f32]) -> bool {
    // Without an early way out this is a few instructions for each sixteen numbers.
    numbers
        .chunks(1024)
        .all(|part| part.iter().fold(0u32, |worst, v| worst.max(v.to_bits() & 0x7fff_ffff)) < 0x7f80_0000)
}

/// # Safety
/// The memory is valid, and no other thread uses it.
pub(super) unsafe fn slice<'a, T>(from: *mut T, length: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(from, length) }
}

/// Normalises a row's queries and keys, if the family does.
///
/// # Safety
/// `qkv` points to the row's queries, keys and values, which no other thread uses; the kernels' CPU was checked.
unsafe fn normalize_heads(a: &Architecture, layer: &Layer, kernels: Kernels, qkv: *mut f32) {
    let Some((query, key)) = &layer.norms.query_key else { return };
    let (inner, kv_width, eps) = (a.heads * a.head_dim, a.kv_heads * a.head_dim, a.norm.eps());
    for (weight, from, to) in [(query, 0, inner), (key, inner, inner + kv_width)] {
        for at in (from..to).step_by(weight.len()) {
            // SAFETY: the caller's promise; the weights cover a head or all heads, so runs end where the heads end.
            unsafe {
                let run = qkv.add(at);
                (kernels.rms_norm)(run, weight.as_ptr(), weight.len(), eps, run);
            }
        }
    }
}

/// Rotates and scales a row's queries, rotates its keys, and keeps keys and values.
///
/// # Safety
/// `qkv` points to the row's queries, keys and values; no other thread uses them or the row's position.
pub(super) unsafe fn turn_and_keep(
    a: &Architecture,
    row: &Row,
    kv: &Kv,
    writer: Writer,
    layer: usize,
    qkv: *mut f32,
    turns: &[f32],
) {
    let (inner, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    // SAFETY: the caller's promise.
    let qkv = unsafe { slice(qkv, inner + 2 * kv_width) };
    let (queries, rest) = qkv.split_at_mut(inner);
    let (keys, values) = rest.split_at_mut(kv_width);
    if !turns.is_empty() {
        let half = turns.len() / 2;
        let (cosines, sines) = turns.split_at(half);
        for head in queries.chunks_exact_mut(a.head_dim).chain(keys.chunks_exact_mut(a.head_dim)) {
            let (low, high) = head[..2 * half].split_at_mut(half);
            for ((l, h), (cos, sin)) in low.iter_mut().zip(high).zip(cosines.iter().zip(sines)) {
                (*l, *h) = (*l * cos - *h * sin, *h * cos + *l * sin);
            }
        }
    }
    queries.iter_mut().for_each(|q| *q *= a.attention.scale);
    // SAFETY: the caller's promise; the table covers the position, which was checked.
    unsafe { writer.write(layer, kv.table(row.slot), row.position, keys, values) }
}

/// After the last layer's keys and values only rows whose logits are needed continue: moves them to the front.
fn keep_wanted(rows: &mut Vec<Row>, x: Shared<f32>, qkv: Shared<f32>, strides: Strides) -> usize {
    let mut kept = 0;
    for r in 0..rows.len() {
        if rows[r].wanted {
            if r != kept {
                rows[kept] = rows[r];
                // SAFETY: two different rows of each buffer.
                unsafe {
                    x.at(r * strides.x).copy_to_nonoverlapping(x.at(kept * strides.x), strides.x);
                    qkv.at(r * strides.qkv).copy_to_nonoverlapping(qkv.at(kept * strides.qkv), strides.qkv);
                }
            }
            kept += 1;
        }
    }
    rows.truncate(kept);
    kept
}

/// Cuts attention into pieces: runs of rows of one sequence, heads that share keys together.
pub(super) fn cut(a: &Architecture, rows: &[Row], pieces: &mut Vec<AttendPiece>, threads: usize) {
    let group = a.heads / a.kv_heads;
    let most = (QUERIES / group).max(1);
    pieces.clear();
    let mut row = 0;
    while row < rows.len() {
        let first = rows[row];
        let run = rows[row..]
            .iter()
            .take(most)
            .enumerate()
            .take_while(|(i, r)| r.slot == first.slot && r.position == first.position + i)
            .count();
        for head in 0..a.kv_heads {
            let heads = (head * group, (head + 1) * group);
            pieces.push(AttendPiece { slot: first.slot, row, rows: run, position: first.position, heads });
        }
        row += run;
    }
    // Too few to share: head by head.
    if group > 1 && pieces.len() < 3 * threads {
        let whole = pieces.len();
        for i in 0..whole {
            let piece = pieces[i];
            pieces[i].heads.1 = piece.heads.0 + 1;
            for head in piece.heads.0 + 1..piece.heads.1 {
                pieces.push(AttendPiece { heads: (head, head + 1), ..piece });
            }
        }
    }
}
