//! Rows times a packed matrix. One output per lane, inputs ascending, fused multiply-add: a row's result does not depend
//! on its neighbours, on the blocking, on the threads or on the instruction set.

// Blocks of rows and tiles are walked by number in several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::coded::coded;
use super::lanes::{LANES, Lanes};
use super::rows::{GROUP, gelu, gelu_erf, silu};
use crate::format::Code;
use std::ops::Range;

/// How the weights of a packed matrix are stored. A tile is sixteen outputs, interleaved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// For each input sixteen `f32`.
    F32,
    /// For each input sixteen `f16`.
    F16,
    /// For each input sixteen `bf16`: the numbers are those of `f32`.
    Bf16,
    /// For each group of 32 inputs eight quads: for each output four bytes, 128 added. Behind all groups, for each group
    /// sixteen `f16` scales.
    Q8,
    /// The codes and scales of the file: see [`super::coded`].
    Coded(Code),
}

impl Storage {
    /// Whether rows are quantized before they are multiplied.
    pub(crate) fn quantizes_rows(self) -> bool {
        matches!(self, Storage::Q8 | Storage::Coded(_))
    }
}

/// What becomes of the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Stored.
    Store,
    /// Added to what is there: the residual.
    Add,
    /// GELU by its tanh approximation, then stored.
    Gelu,
    /// GELU by the error function, then stored.
    GeluErf,
    /// Negative ones become zero, then stored.
    Relu,
    /// Tiles come in pairs, gate and up: `silu(gate) · up` is stored.
    Gated,
    /// The same with GELU of the gate.
    GeluGated,
}

impl Then {
    /// Whether tiles come in pairs.
    pub(crate) fn gated(self) -> bool {
        matches!(self, Then::Gated | Then::GeluGated)
    }
}

/// Rows times a matrix, as pointers: threads write disjoint tiles of the same output rows.
#[derive(Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) storage: Storage,
    pub(crate) weights: *const u8,
    pub(crate) tile_bytes: usize,
    /// The tile that `weights` begin with.
    pub(crate) first_tile: usize,
    /// Inputs; a multiple of [`GROUP`] if rows are quantized.
    pub(crate) inputs: usize,
    /// Outputs that are stored; the last tile may be partly padding.
    pub(crate) outputs: usize,
    /// One for each output of every tile, or null.
    pub(crate) bias: *const f32,
    pub(crate) rows: usize,
    /// For floats.
    pub(crate) numbers: *const f32,
    pub(crate) numbers_stride: usize,
    /// Quantized rows: of `inputs` bytes, of `inputs / GROUP` scales, of the sums of each half of a group.
    pub(crate) bytes: *const i8,
    pub(crate) scales: *const f32,
    pub(crate) totals: *const i32,
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    pub(crate) then: Then,
}

// SAFETY: the pointers are only followed by the kernels, on disjoint tiles, while the owner waits.
unsafe impl Send for Linear {}
// SAFETY: as above.
unsafe impl Sync for Linear {}

impl Linear {
    /// Where a tile begins.
    ///
    /// # Safety
    /// `weights` hold the tile.
    #[inline(always)]
    pub(crate) unsafe fn tile(&self, tile: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { self.weights.add((tile - self.first_tile) * self.tile_bytes) }
    }
}

/// Computes the tiles of a range, `R` rows and two tiles at a time at most. With a gate the range is of whole pairs.
///
/// # Safety
/// The CPU has the instruction set of `L`; the pointers are valid for what [`Linear`] says, and no other thread
/// accesses the range's outputs.
#[inline(always)]
pub(crate) unsafe fn linear<L: Lanes, const R: usize>(job: &Linear, tiles: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut tile = tiles.start;
        while tile + 2 <= tiles.end {
            row_blocks::<L, R, 2>(job, tile);
            tile += 2;
        }
        if tile < tiles.end {
            row_blocks::<L, R, 1>(job, tile);
        }
    }
}

#[inline(always)]
unsafe fn row_blocks<L: Lanes, const R: usize, const T: usize>(job: &Linear, tile: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut row = 0;
        while row + R <= job.rows {
            block::<L, R, T>(job, tile, row);
            row += R;
        }
        if R > 2 && row + 2 <= job.rows {
            block::<L, 2, T>(job, tile, row);
            row += 2;
        }
        if R > 1 && row < job.rows {
            block::<L, 1, T>(job, tile, row);
        }
    }
}

#[inline(always)]
unsafe fn block<L: Lanes, const R: usize, const T: usize>(job: &Linear, tile: usize, row: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let products = match job.storage {
            Storage::F32 => numbers::<L, Single, R, T>(job, tile, row),
            Storage::F16 => numbers::<L, Half, R, T>(job, tile, row),
            Storage::Bf16 => numbers::<L, Bf16, R, T>(job, tile, row),
            Storage::Q8 => quantized::<L, R, T>(job, tile, row),
            Storage::Coded(Code::Q4_0) => coded::<L, R, T, { Code::Q4_0 as usize }>(job, tile, row),
            Storage::Coded(Code::Q4_1) => coded::<L, R, T, { Code::Q4_1 as usize }>(job, tile, row),
            Storage::Coded(Code::Q5_0) => coded::<L, R, T, { Code::Q5_0 as usize }>(job, tile, row),
            Storage::Coded(Code::Q5_1) => coded::<L, R, T, { Code::Q5_1 as usize }>(job, tile, row),
            Storage::Coded(Code::Q2K) => coded::<L, R, T, { Code::Q2K as usize }>(job, tile, row),
            Storage::Coded(Code::Q3K) => coded::<L, R, T, { Code::Q3K as usize }>(job, tile, row),
            Storage::Coded(Code::Q4K) => coded::<L, R, T, { Code::Q4K as usize }>(job, tile, row),
            Storage::Coded(Code::Q5K) => coded::<L, R, T, { Code::Q5K as usize }>(job, tile, row),
            Storage::Coded(Code::Q6K) => coded::<L, R, T, { Code::Q6K as usize }>(job, tile, row),
            Storage::Coded(Code::Iq4Nl) => coded::<L, R, T, { Code::Iq4Nl as usize }>(job, tile, row),
            Storage::Coded(Code::Iq4Xs) => coded::<L, R, T, { Code::Iq4Xs as usize }>(job, tile, row),
        };
        for (r, of_row) in products.into_iter().enumerate() {
            finish::<L, T>(job, tile, row + r, of_row);
        }
    }
}

/// Floats of a width.
trait Floats {
    /// Bytes of one.
    const BYTES: usize;

    /// Sixteen of them.
    ///
    /// # Safety
    /// The CPU has the instruction set of `L`; the pointer is valid for sixteen.
    unsafe fn load<L: Lanes>(from: *const u8) -> L;
}

struct Single;
struct Half;
struct Bf16;

impl Floats for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(from.cast()) }
    }
}

impl Floats for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_half(from.cast()) }
    }
}

impl Floats for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16(from.cast()) }
    }
}

#[inline(always)]
unsafe fn numbers<L: Lanes, F: Floats, const R: usize, const T: usize>(
    job: &Linear,
    tile: usize,
    row: usize,
) -> [[L; T]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let weights = job.tile(tile);
        let x = job.numbers.add(row * job.numbers_stride);
        let step = LANES * F::BYTES;
        let mut sums = [[L::splat(0.0); T]; R];
        for i in 0..job.inputs {
            for t in 0..T {
                let at = weights.add(t * job.tile_bytes + i * step);
                if R == 1 {
                    L::soon(at.wrapping_add(AHEAD));
                }
                let w = F::load::<L>(at);
                for r in 0..R {
                    sums[r][t] = sums[r][t].fma(w, L::splat(*x.add(r * job.numbers_stride + i)));
                }
            }
        }
        sums
    }
}

/// How far ahead weights are asked for, in bytes: hardware prefetchers stop at page ends.
pub(super) const AHEAD: usize = 2048;

#[inline(always)]
unsafe fn quantized<L: Lanes, const R: usize, const T: usize>(job: &Linear, tile: usize, row: usize) -> [[L; T]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let groups = job.inputs / GROUP;
        let weights = job.tile(tile);
        let weight_scales = weights.add(groups * GROUP * LANES);
        let bytes = job.bytes.add(row * job.inputs);
        let scales = job.scales.add(row * groups);
        let totals = job.totals.add(row * groups * 2);
        let mut sums = [[L::splat(0.0); T]; R];
        for g in 0..groups {
            let mut whole = [[L::sums(0); T]; R];
            for (r, of_row) in whole.iter_mut().enumerate() {
                let halves = totals.add((r * groups + g) * 2);
                // Weights have 128 added: the products begin with what that adds too much.
                *of_row = [L::sums(-128 * (*halves + *halves.add(1))); T];
            }
            for quad in 0..GROUP / 4 {
                let at = weights.add(g * GROUP * LANES + quad * 4 * LANES);
                for t in 0..T {
                    let at = at.add(t * job.tile_bytes);
                    if R == 1 {
                        L::soon(at.wrapping_add(AHEAD));
                    }
                    for r in 0..R {
                        whole[r][t] = L::dot(whole[r][t], at, bytes.add(r * job.inputs + g * GROUP + quad * 4));
                    }
                }
            }
            for t in 0..T {
                let w = L::load_half(weight_scales.add(t * job.tile_bytes + g * LANES * 2).cast());
                for r in 0..R {
                    let scale = w.mul(L::splat(*scales.add(r * groups + g)));
                    sums[r][t] = sums[r][t].fma(L::finish(whole[r][t]), scale);
                }
            }
        }
        sums
    }
}

#[inline(always)]
unsafe fn finish<L: Lanes, const T: usize>(job: &Linear, tile: usize, row: usize, mut products: [L; T]) {
    // SAFETY: the caller's promise; stores are cut at `outputs`.
    unsafe {
        if !job.bias.is_null() {
            for (t, p) in products.iter_mut().enumerate() {
                *p = p.add(L::load(job.bias.add((tile + t) * LANES)));
            }
        }
        let out = job.out.add(row * job.out_stride);
        if job.then.gated() {
            for pair in 0..T / 2 {
                let first = (tile / 2 + pair) * LANES;
                let gate = products[2 * pair];
                let gate = if job.then == Then::Gated { silu(gate) } else { gelu(gate) };
                let y = gate.mul(products[2 * pair + 1]);
                y.store_part(out.add(first), job.outputs - first);
            }
            return;
        }
        for (t, p) in products.into_iter().enumerate() {
            let first = (tile + t) * LANES;
            let (to, left) = (out.add(first), job.outputs - first);
            match job.then {
                Then::Store | Then::Gated | Then::GeluGated => p.store_part(to, left),
                Then::Add => L::load_part(to, left).add(p).store_part(to, left),
                Then::Gelu => gelu(p).store_part(to, left),
                Then::GeluErf => gelu_erf(p).store_part(to, left),
                Then::Relu => p.at_least(L::splat(0.0)).store_part(to, left),
            }
        }
    }
}
