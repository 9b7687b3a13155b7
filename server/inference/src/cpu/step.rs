//! One step: rows go through all layers together; only attention looks at sequences.

use super::kv::{Kv, Writer};
use super::matrix::Matrix;
use super::memory::Shared;
use super::{Cpu, NormWeights};
use crate::executor::{LogitRows, RowSpan, StepError};
use crate::family::{Activation, Architecture, Norm, Position};
use crate::kernels::Kernels;
use crate::kernels::attention::{Attend, BLOCK, Piece, padded, scratch_len};
use crate::kernels::linear::{Linear, Storage, Then};
use crate::kernels::rows::GROUP;
use crate::pool::{MOST_PIECES, Pool};
use std::f64;

/// Maximum rows that go through the layers together; longer steps are split. Enough to amortise a pass over the
/// weights, few enough that activations stay in the L2 cache.
const MOST_ROWS: usize = 256;
/// Queries that a piece of attention works on side by side.
const QUERIES: usize = 16;
/// Work (in multiplications, roughly) below which a region is not worth sharing.
const WORTH_SHARING: usize = 16 << 10;

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
    /// Quantized inputs of the next matrix.
    bytes: Vec<i8>,
    scales: Vec<f32>,
    starts: Vec<i32>,
    /// Of each row: cosines, then sines.
    turns: Vec<f32>,
    frequencies: Vec<f32>,
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
struct Row {
    slot: usize,
    position: usize,
    token: u32,
    wanted: bool,
}

/// A piece of attention: rows of one sequence, heads of one key head.
#[derive(Clone, Copy)]
struct AttendPiece {
    slot: usize,
    row: usize,
    rows: usize,
    position: usize,
    heads: (usize, usize),
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
        let half_head = a.head_dim.div_ceil(2);
        let frequencies = match a.position {
            Position::Learned => Vec::new(),
            Position::Rotary { theta } => (0..half_head)
                .map(|i| (1.0 / f64::from(theta).powf((2 * i) as f64 / a.head_dim as f64)) as f32)
                .collect(),
        };
        Scratch {
            rows: Vec::with_capacity(MOST_ROWS),
            pieces: Vec::with_capacity(MOST_ROWS * a.heads),
            x: vec![0.0; MOST_ROWS * strides.x],
            normed: vec![0.0; MOST_ROWS * strides.x],
            qkv: vec![0.0; MOST_ROWS * strides.qkv],
            mixed: vec![0.0; MOST_ROWS * strides.mixed],
            inner: vec![0.0; MOST_ROWS * strides.inner],
            bytes: vec![0; MOST_ROWS * widest],
            scales: vec![0.0; MOST_ROWS * widest / GROUP],
            starts: vec![0; MOST_ROWS * widest / GROUP],
            turns: vec![0.0; MOST_ROWS * 2 * half_head],
            frequencies,
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
            // In large steps, so that this ends soon.
            self.positions = positions.next_multiple_of(8 * BLOCK);
            let queries = QUERIES.max(a.heads / a.kv_heads);
            self.scores_each = scratch_len(queries, self.positions, a.head_dim).next_multiple_of(16);
            self.scores = vec![0.0; self.threads * self.scores_each];
        }
    }

    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits[..self.logits_used]
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
                let wanted = match span.logits {
                    LogitRows::None => false,
                    LogitRows::Last => i + 1 == span.tokens.len(),
                    LogitRows::All => true,
                };
                self.scratch.rows.push(Row { slot, position: span.start + i, token: *token, wanted });
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
            let rows = wanted_rows(span);
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
            if !follows || span.tokens.is_empty() {
                return Err(StepError::NotThere(span.seq, span.start));
            }
            if span.start + span.tokens.len() > self.kv.limit(slot) {
                return Err(StepError::NoRoom);
            }
            if let Some(token) = span.tokens.iter().find(|t| **t as usize >= self.architecture.vocab) {
                return Err(StepError::UnknownToken(span.seq, *token));
            }
            wanted += wanted_rows(span);
        }
        Ok(wanted)
    }

    /// Takes the scratch's rows through the model and writes logits from row `done` on; returns how many.
    fn pass(&mut self, done: usize) -> usize {
        let Cpu { architecture: a, weights, kv, kernels, pool, scratch, .. } = self;
        let Scratch { rows, pieces, x, normed, qkv, mixed, inner, bytes, scales, starts, .. } = scratch;
        let strides = scratch.strides;
        let mut compute = Compute {
            kernels: *kernels,
            pool,
            bytes: Shared::new(bytes),
            scales: Shared::new(scales),
            starts: Shared::new(starts),
        };
        let (x, normed, mixed) = (Shared::new(x), Shared::new(normed), Shared::new(mixed));
        let (qkv, inner) = (Shared::new(qkv), Shared::new(inner));
        let turns = Shared::new(&mut scratch.turns);
        let writer = kv.writer();
        let mut count = rows.len();

        {
            let rows = &rows[..];
            let (token, positions, width) = (&weights.token, weights.positions.as_deref(), a.width);
            let frequencies = &scratch.frequencies[..];
            compute.each_row(count, width, &|r| {
                // SAFETY: each row is written by one thread and lies within its buffer.
                let (to, turns) = unsafe {
                    let turns = turns.at(r * 2 * frequencies.len());
                    (slice(x.at(r * strides.x), width), slice(turns, 2 * frequencies.len()))
                };
                token.row(rows[r].token as usize, to);
                if let Some(positions) = positions {
                    for (y, p) in to.iter_mut().zip(&positions[rows[r].position * width..]) {
                        *y += p;
                    }
                }
                let (cosines, sines) = turns.split_at_mut(frequencies.len());
                for (i, frequency) in frequencies.iter().enumerate() {
                    // As the reference does it: the angle is rounded to single precision.
                    let angle = f64::from(rows[r].position as f32 * frequency);
                    (cosines[i], sines[i]) = (angle.cos() as f32, angle.sin() as f32);
                }
            });
        }

        let last = weights.layers.len() - 1;
        for (index, layer) in weights.layers.iter().enumerate() {
            compute.norm(a, &layer.attention_norm, x, normed, strides.x, count, &layer.qkv);
            compute.linear(&layer.qkv, normed, strides.x, count, qkv, strides.qkv, Then::Store);
            {
                let rows = &rows[..];
                let kv = &*kv;
                compute.each_row(count, strides.qkv, &|r| {
                    // SAFETY: each row is written by one thread and lies within its buffer.
                    unsafe { turn_and_keep(a, &rows[r], kv, writer, index, qkv.at(r * strides.qkv), turns, r) }
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
            };
            compute.attend(&attend, pieces, kv, rows);
            compute.quantize(&layer.out, mixed, strides.mixed, count);
            compute.linear(&layer.out, mixed, strides.mixed, count, x, strides.x, Then::Add);
            compute.norm(a, &layer.ffn_norm, x, normed, strides.x, count, &layer.up);
            let then = match a.activation {
                Activation::GeluTanh => Then::Gelu,
                Activation::SiluGated => Then::Gated,
            };
            compute.linear(&layer.up, normed, strides.x, count, inner, strides.inner, then);
            compute.quantize(&layer.down, inner, strides.inner, count);
            compute.linear(&layer.down, inner, strides.inner, count, x, strides.x, Then::Add);
        }

        let head = weights.head.as_ref().unwrap_or(&weights.token);
        compute.norm(a, &weights.norm, x, normed, strides.x, count, head);
        let logits = Shared::new(&mut scratch.logits[done * a.vocab..]);
        compute.linear(head, normed, strides.x, count, logits, a.vocab, Then::Store);
        count
    }
}

fn wanted_rows(span: &RowSpan<'_>) -> usize {
    match span.logits {
        LogitRows::None => 0,
        LogitRows::Last => 1,
        LogitRows::All => span.tokens.len(),
    }
}

fn all_finite(numbers: &[f32]) -> bool {
    // Without an early way out this is a few instructions for each sixteen numbers.
    numbers
        .chunks(1024)
        .all(|part| part.iter().fold(0u32, |worst, v| worst.max(v.to_bits() & 0x7fff_ffff)) < 0x7f80_0000)
}

/// # Safety
/// The memory is valid, and no other thread uses it.
unsafe fn slice<'a, T>(from: *mut T, length: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(from, length) }
}

/// Rotates and scales a row's queries, rotates its keys, and keeps keys and values.
///
/// # Safety
/// `row` points to the row's queries, keys and values; no other thread uses them or the row's position.
#[allow(clippy::too_many_arguments)]
unsafe fn turn_and_keep(
    a: &Architecture,
    row: &Row,
    kv: &Kv,
    writer: Writer,
    layer: usize,
    qkv: *mut f32,
    turns: Shared<f32>,
    r: usize,
) {
    let (inner, kv_width) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    // SAFETY: the caller's promise.
    let qkv = unsafe { slice(qkv, inner + 2 * kv_width) };
    let (queries, rest) = qkv.split_at_mut(inner);
    let (keys, values) = rest.split_at_mut(kv_width);
    if matches!(a.position, Position::Rotary { .. }) {
        let half = a.head_dim / 2;
        // SAFETY: the row's own turns, written before.
        let turns = unsafe { slice(turns.at(r * 2 * half), 2 * half) };
        let (cosines, sines) = turns.split_at(half);
        for head in queries.chunks_exact_mut(a.head_dim).chain(keys.chunks_exact_mut(a.head_dim)) {
            let (low, high) = head.split_at_mut(half);
            for ((l, h), (cos, sin)) in low.iter_mut().zip(high).zip(cosines.iter().zip(sines)) {
                (*l, *h) = (*l * cos - *h * sin, *h * cos + *l * sin);
            }
        }
    }
    let scale = 1.0 / (a.head_dim as f32).sqrt();
    queries.iter_mut().for_each(|q| *q *= scale);
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
fn cut(a: &Architecture, rows: &[Row], pieces: &mut Vec<AttendPiece>, threads: usize) {
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

/// The kernels, the pool, and the quantized inputs between them.
struct Compute<'a> {
    kernels: Kernels,
    pool: &'a mut Pool,
    bytes: Shared<i8>,
    scales: Shared<f32>,
    starts: Shared<i32>,
}

impl Compute<'_> {
    /// Calls `work` for each row, shared when rows of `width` numbers are worth it.
    fn each_row(&mut self, rows: usize, width: usize, work: &(dyn Fn(usize) + Sync)) {
        if rows * width < WORTH_SHARING {
            return (0..rows).for_each(work);
        }
        let each = rows.div_ceil(4 * self.pool.threads());
        self.pool.run(rows.div_ceil(each), &|_, piece| (piece * each..((piece + 1) * each).min(rows)).for_each(work));
    }

    /// Normalises rows as inputs of a matrix.
    #[allow(clippy::too_many_arguments)]
    fn norm(
        &mut self,
        a: &Architecture,
        by: &NormWeights,
        from: Shared<f32>,
        to: Shared<f32>,
        stride: usize,
        rows: usize,
        next: &Matrix,
    ) {
        let (kernels, width, norm) = (self.kernels, a.width, a.norm);
        let quantizer = self.quantizer(next);
        self.each_row(rows, 4 * width, &|r| {
            // SAFETY: each row is written by one thread and lies within its buffer; the kernels' CPU was checked.
            unsafe {
                let (row, out) = (from.at(r * stride), to.at(r * stride));
                let weight = by.weight.as_ptr();
                match norm {
                    Norm::Layer { eps } => (kernels.layer_norm)(row, weight, by.bias.as_ptr(), width, eps, out),
                    Norm::Rms { eps } => (kernels.rms_norm)(row, weight, width, eps, out),
                }
                quantizer(r, out);
            }
        });
    }

    /// Quantizes rows as inputs of a matrix, if it wants them so.
    fn quantize(&mut self, next: &Matrix, from: Shared<f32>, stride: usize, rows: usize) {
        if next.storage == Storage::Q8 {
            let quantizer = self.quantizer(next);
            // SAFETY: each row is written by one thread and lies within its buffer.
            self.each_row(rows, 2 * next.inputs, &|r| unsafe { quantizer(r, from.at(r * stride)) });
        }
    }

    /// Quantizes a row as an input of a matrix; nothing for matrices that want numbers.
    fn quantizer(&self, next: &Matrix) -> impl Fn(usize, *const f32) + Sync + use<> {
        let (kernels, bytes, scales, starts) = (self.kernels, self.bytes, self.scales, self.starts);
        let inputs = next.padded_inputs();
        let groups = if next.storage == Storage::Q8 { inputs / GROUP } else { 0 };
        move |r, row| {
            if groups > 0 {
                // SAFETY: each row is written by one thread and lies within the buffers, which fit the widest input.
                unsafe {
                    let (scales, starts) = (scales.at(r * groups), starts.at(r * groups));
                    (kernels.quantize)(row, groups, bytes.at(r * inputs), scales, starts);
                }
            }
        }
    }

    /// Rows times a matrix. For quantized matrices the inputs were quantized before.
    #[allow(clippy::too_many_arguments)]
    fn linear(
        &mut self,
        matrix: &Matrix,
        from: Shared<f32>,
        stride: usize,
        rows: usize,
        to: Shared<f32>,
        to_stride: usize,
        then: Then,
    ) {
        let gated = then == Then::Gated;
        // SAFETY: first elements of buffers.
        let job = unsafe {
            Linear {
                storage: matrix.storage,
                weights: matrix.weights(),
                tile_bytes: matrix.tile_bytes,
                inputs: matrix.padded_inputs(),
                outputs: if gated { matrix.outputs / 2 } else { matrix.outputs },
                bias: matrix.bias(),
                rows,
                numbers: from.at(0),
                numbers_stride: stride,
                bytes: self.bytes.at(0),
                scales: self.scales.at(0),
                starts: self.starts.at(0),
                out: to.at(0),
                out_stride: to_stride,
                then,
            }
        };
        let kernels = self.kernels;
        let tiles = matrix.tiles;
        if rows * tiles * job.inputs * 16 < 2 * WORTH_SHARING {
            // SAFETY: the buffers hold the rows; the kernels' CPU was checked.
            return unsafe { (kernels.linear)(&job, 0..tiles) };
        }
        // Few pieces keep claims cheap, many keep the ends even; pairs of tiles stay together.
        let pieces = self.pool.threads() * if tiles >= 256 { 16 } else { 4 };
        let each = tiles.div_ceil(pieces).next_multiple_of(2);
        self.pool.run(tiles.div_ceil(each), &|_, piece| {
            // SAFETY: as above; tiles are disjoint.
            unsafe { (kernels.linear)(&job, piece * each..((piece + 1) * each).min(tiles)) }
        });
    }

    fn attend(&mut self, job: &Attend, pieces: &[AttendPiece], kv: &Kv, rows: &[Row]) {
        let kernels = self.kernels;
        let one = |worker: usize, piece: &AttendPiece| {
            let AttendPiece { slot, row, rows, position, heads } = *piece;
            let piece = Piece { table: kv.table(slot), row, rows, position, heads: heads.0..heads.1 };
            // SAFETY: rows and heads of pieces are disjoint, each thread has its scratch, positions were reserved.
            unsafe { (kernels.attend)(job, &piece, worker) }
        };
        let work: usize =
            rows.iter().map(|r| 2 * (r.position + 1) * job.kv_heads * job.group * padded(job.head_dim)).sum();
        if work < 2 * WORTH_SHARING {
            return pieces.iter().for_each(|piece| one(0, piece));
        }
        let each = pieces.len().div_ceil(MOST_PIECES);
        self.pool.run(pieces.len().div_ceil(each), &|worker, piece| {
            pieces[piece * each..((piece + 1) * each).min(pieces.len())].iter().for_each(|p| one(worker, p));
        });
    }
}
