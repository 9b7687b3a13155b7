//! Attention over keys and values in blocks of 32 positions: causal, or of every position to all.
//!
//! Keys are kept transposed within a block, so that a score is one lane and head dimensions ascend; values are kept by
//! position, so that an output is one lane and positions ascend. A row's result therefore depends on nothing but its own
//! query and the positions up to its own.

// Blocks of rows and tiles are walked by number in several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::lanes::{LANES, Lanes};
use super::rows::{exp, soft_cap};
use std::ops::Range;

/// Positions in a block.
pub(crate) const BLOCK: usize = 32;

/// The most queries that a kernel computes side by side.
const SIDE: usize = 4;

/// Attention of one layer, as pointers: threads work on disjoint heads and rows.
#[derive(Clone, Copy)]
pub(crate) struct Attend {
    /// A row sees the positions up to its own, else all of its sequence.
    pub(crate) causal: bool,
    /// Keys and values are `f16`, else `f32`.
    pub(crate) half: bool,
    /// Where the layer's keys and values begin.
    pub(crate) kv: *const u8,
    pub(crate) kv_heads: usize,
    /// Query heads for each of them.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    /// Rotated and scaled queries: head `h` of row `r` at `r · stride + h · head_dim`.
    pub(crate) queries: *const f32,
    pub(crate) queries_stride: usize,
    /// Where the mixed values go, in the same manner.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// Room of each thread, [`scratch_len`] numbers.
    pub(crate) scratch_stride: usize,
    pub(crate) scratch: *mut f32,
    /// Positions rounded up to blocks that a query's scores may need.
    pub(crate) scores_stride: usize,
    /// The most recent positions that a query sees, its own included.
    pub(crate) window: usize,
    /// Scores become `cap · tanh(score / cap)`.
    pub(crate) cap: Option<f32>,
}

// SAFETY: the pointers are only followed by the kernels, on disjoint outputs, while the owner waits.
unsafe impl Send for Attend {}
// SAFETY: as above.
unsafe impl Sync for Attend {}

/// A piece of work: consecutive rows of one sequence, some query heads of one key head.
pub(crate) struct Piece<'a> {
    /// The blocks of the sequence.
    pub(crate) table: &'a [u32],
    /// The first row.
    pub(crate) row: usize,
    /// How many rows.
    pub(crate) rows: usize,
    /// The position of the first row; the last of the sequence where attention is not causal.
    pub(crate) position: usize,
    /// Query heads, all of one key head.
    pub(crate) heads: Range<usize>,
}

/// Dimensions of a head as stored for values.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Elements of keys and values that a head has in a block.
pub(crate) fn block_elements(head_dim: usize) -> usize {
    BLOCK * (head_dim + padded(head_dim))
}

/// Numbers of scratch for `queries` queries over `positions` positions.
pub(crate) fn scratch_len(queries: usize, positions: usize, head_dim: usize) -> usize {
    queries * (positions.next_multiple_of(BLOCK) + padded(head_dim))
}

/// Computes a piece with the scratch of thread `worker`.
///
/// # Safety
/// The CPU has the instruction set of `L`; the pointers are valid for what [`Attend`] says; the table covers the piece's
/// positions, whose keys and values are there; the scratch has room for the piece's queries.
#[inline(always)]
pub(crate) unsafe fn attend<L: Lanes, const HALF: bool>(job: &Attend, piece: &Piece<'_>, worker: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let queries = piece.rows * piece.heads.len();
        let wide = padded(job.head_dim);
        let scores = job.scratch.add(worker * job.scratch_stride);
        let mixed = scores.add(queries * job.scores_stride);
        let kv_head = piece.heads.start / job.group;
        let of_block = |b: usize| {
            let block = piece.table[b] as usize;
            let element = (block * job.kv_heads + kv_head) * block_elements(job.head_dim);
            job.kv.add(element * if HALF { 2 } else { 4 })
        };
        // Queries in the order of rows: neighbours end at about the same position.
        let row_of = |q: usize| q / piece.heads.len();
        let end_of = |q: usize| piece.position + if job.causal { row_of(q) } else { 0 } + 1;
        let begin_of = |q: usize| end_of(q).saturating_sub(job.window);
        // Scores are taken from the beginning of a vector, those before the window without weight.
        let aligned = |q: usize| begin_of(q) / LANES * LANES;
        let query = |q: usize| {
            let head = piece.heads.start + q % piece.heads.len();
            job.queries.add((piece.row + row_of(q)) * job.queries_stride + head * job.head_dim)
        };

        let blocks = begin_of(0) / BLOCK..end_of(queries - 1).div_ceil(BLOCK);
        for b in blocks.clone() {
            let keys = of_block(b);
            let mut q = 0;
            while q < queries {
                let side = (queries - q).min(SIDE);
                if end_of(q + side - 1) > b * BLOCK && begin_of(q) < (b + 1) * BLOCK {
                    let to = scores.add(q * job.scores_stride + b * BLOCK);
                    let stride = job.scores_stride;
                    match side {
                        1 => score::<L, HALF, 1>([query(q)], job.head_dim, keys, to, stride),
                        2 => score::<L, HALF, 2>([query(q), query(q + 1)], job.head_dim, keys, to, stride),
                        3 => {
                            let three = [query(q), query(q + 1), query(q + 2)];
                            score::<L, HALF, 3>(three, job.head_dim, keys, to, stride);
                        }
                        _ => {
                            let four = [query(q), query(q + 1), query(q + 2), query(q + 3)];
                            score::<L, HALF, 4>(four, job.head_dim, keys, to, stride);
                        }
                    }
                }
                q += side;
            }
        }

        for b in 0..queries * wide {
            *mixed.add(b) = 0.0;
        }
        // The shares of a query stand where its scores were; what they must be divided by comes last.
        for q in 0..queries {
            let (from, begin, end) = (aligned(q), begin_of(q), end_of(q));
            let of_query = scores.add(q * job.scores_stride);
            if let Some(cap) = job.cap {
                soft_cap::<L>(of_query.add(from), end - from, cap);
            }
            for before in from..begin {
                *of_query.add(before) = f32::NEG_INFINITY;
            }
            softmax::<L>(of_query.add(from), end - from);
        }
        for b in blocks {
            let values = of_block(b).add(BLOCK * job.head_dim * if HALF { 2 } else { 4 });
            let first = b * BLOCK;
            let mut q = 0;
            while q < queries {
                let side = (queries - q).min(SIDE);
                let shares = scores.add(q * job.scores_stride + first);
                let to = mixed.add(q * wide);
                let stride = job.scores_stride;
                // Positions that all of them see are shared; the first and the last few are each one's own.
                let within = |position: usize| position.saturating_sub(first).min(BLOCK);
                let start = within(begin_of(q + side - 1));
                let common = start..within(end_of(q)).max(start);
                for one in 0..side - 1 {
                    let own = within(begin_of(q + one))..start.min(within(end_of(q + one)));
                    let shares = shares.add(one * stride);
                    mix::<L, HALF, 1>(shares, stride, values, own, to.add(one * wide), wide);
                }
                match side {
                    1 => mix::<L, HALF, 1>(shares, stride, values, common.clone(), to, wide),
                    2 => mix::<L, HALF, 2>(shares, stride, values, common.clone(), to, wide),
                    3 => mix::<L, HALF, 3>(shares, stride, values, common.clone(), to, wide),
                    _ => mix::<L, HALF, 4>(shares, stride, values, common.clone(), to, wide),
                }
                for one in 1..side {
                    let own = common.end..within(end_of(q + one));
                    let shares = shares.add(one * stride);
                    mix::<L, HALF, 1>(shares, stride, values, own, to.add(one * wide), wide);
                }
                q += side;
            }
        }
        for q in 0..queries {
            let head = piece.heads.start + q % piece.heads.len();
            let out = job.out.add((piece.row + row_of(q)) * job.out_stride + head * job.head_dim);
            let from = aligned(q);
            let shares = scores.add(q * job.scores_stride + from);
            let share = L::splat(1.0 / total::<L>(shares, end_of(q) - from));
            for i in (0..job.head_dim).step_by(LANES) {
                L::load(mixed.add(q * wide + i)).mul(share).store_part(out.add(i), job.head_dim - i);
            }
        }
    }
}

#[inline(always)]
unsafe fn element<L: Lanes, const HALF: bool>(from: *const u8, index: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe { if HALF { L::load_half(from.cast::<u16>().add(index)) } else { L::load(from.cast::<f32>().add(index)) } }
}

/// Scores of `Q` queries against a block's keys.
#[inline(always)]
unsafe fn score<L: Lanes, const HALF: bool, const Q: usize>(
    queries: [*const f32; Q],
    head_dim: usize,
    keys: *const u8,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[L::splat(0.0); BLOCK / LANES]; Q];
        for d in 0..head_dim {
            for part in 0..BLOCK / LANES {
                let k = element::<L, HALF>(keys, d * BLOCK + part * LANES);
                for q in 0..Q {
                    sums[q][part] = sums[q][part].fma(k, L::splat(*queries[q].add(d)));
                }
            }
        }
        for (q, of_query) in sums.into_iter().enumerate() {
            for (part, sum) in of_query.into_iter().enumerate() {
                sum.store(to.add(q * stride + part * LANES));
            }
        }
    }
}

/// Replaces scores by `exp(score - largest)`.
#[inline(always)]
unsafe fn softmax<L: Lanes>(scores: *mut f32, count: usize) {
    // SAFETY: the caller's promise: there is room for whole vectors.
    unsafe {
        let mut largest = L::splat(f32::NEG_INFINITY);
        let whole = count / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            largest = largest.at_least(L::load(scores.add(i)));
        }
        let mut top = largest.largest();
        for i in whole..count {
            let score = *scores.add(i);
            if score > top {
                top = score;
            }
        }
        for i in (0..count).step_by(LANES) {
            exp(L::load(scores.add(i)).sub(L::splat(top))).store(scores.add(i));
        }
    }
}

/// The sum of the first numbers: sixteen sums, then those.
#[inline(always)]
unsafe fn total<L: Lanes>(shares: *const f32, count: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..count).step_by(LANES) {
            sum = sum.add(L::load_part(shares.add(i), count - i));
        }
        sum.total()
    }
}

/// Adds a block's values by their shares for `Q` queries.
#[inline(always)]
unsafe fn mix<L: Lanes, const HALF: bool, const Q: usize>(
    shares: *const f32,
    stride: usize,
    values: *const u8,
    positions: Range<usize>,
    to: *mut f32,
    wide: usize,
) {
    if positions.is_empty() {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let mut i = 0;
        while i + 4 * LANES <= wide {
            mix_part::<L, HALF, Q, 4>(shares, stride, values, positions.clone(), to, wide, i);
            i += 4 * LANES;
        }
        while i < wide {
            mix_part::<L, HALF, Q, 1>(shares, stride, values, positions.clone(), to, wide, i);
            i += LANES;
        }
    }
}

#[inline(always)]
unsafe fn mix_part<L: Lanes, const HALF: bool, const Q: usize, const D: usize>(
    shares: *const f32,
    stride: usize,
    values: *const u8,
    positions: Range<usize>,
    to: *mut f32,
    wide: usize,
    first: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[L::splat(0.0); D]; Q];
        for (q, of_query) in sums.iter_mut().enumerate() {
            for (d, sum) in of_query.iter_mut().enumerate() {
                *sum = L::load(to.add(q * wide + first + d * LANES));
            }
        }
        for j in positions {
            for d in 0..D {
                let v = element::<L, HALF>(values, j * wide + first + d * LANES);
                for q in 0..Q {
                    sums[q][d] = sums[q][d].fma(v, L::splat(*shares.add(q * stride + j)));
                }
            }
        }
        for (q, of_query) in sums.into_iter().enumerate() {
            for (d, sum) in of_query.into_iter().enumerate() {
                sum.store(to.add(q * wide + first + d * LANES));
            }
        }
    }
}
