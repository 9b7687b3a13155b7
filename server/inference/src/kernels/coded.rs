//! Rows times a matrix in codes of 2 to 6 bits: products of integers with the quantized rows, scaled per block. The integers
//! are the codes, or what a table has for them.
//!
//! A tile holds sixteen outputs and has exactly the bits of the file's blocks. First come the codes, for each group of 32
//! inputs: a plane of the low bits (4, or 2 for codes of 2 and 3 bits), then a plane of the rest. A plane of `b` bits is
//! `b` vectors of 64 bytes; each byte has bits of `8 / b` quads of inputs. Behind all codes come the scales, for each block
//! its fields of 16 bits and its 32-bit words of packed scales, each sixteen times.

// Blocks of rows and tiles are walked by number in several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::lanes::{LANES, Lanes};
use super::linear::{AHEAD, Linear};
use super::rows::GROUP;
use crate::format::{FORMATS, Format, Scales};

/// Bytes of a vector of a plane.
pub(crate) const VECTOR: usize = 4 * LANES;

/// A plane: the bits of a code that it holds, and where it begins within a group.
#[derive(Clone, Copy)]
pub(crate) struct Plane {
    pub(crate) bits: usize,
    /// The lowest bit of a code that is in the plane.
    pub(crate) from_bit: usize,
    start: usize,
}

impl Plane {
    /// The planes of codes; the second may be without bits.
    pub(crate) const fn both(format: &Format) -> [Plane; 2] {
        let low = if format.bits < 4 { 2 } else { 4 };
        [
            Plane { bits: low, from_bit: 0, start: 0 },
            Plane { bits: format.bits - low, from_bit: low, start: low * VECTOR },
        ]
    }

    /// Where the vector with a quad of inputs begins within a group, and the lowest bit of each byte that is the quad's.
    pub(crate) const fn place(self, quad: usize) -> (usize, usize) {
        (self.start + quad % self.bits * VECTOR, self.bits * (quad / self.bits))
    }
}

/// Bytes of the codes of a group in a tile.
pub(crate) const fn group_bytes(format: &Format) -> usize {
    format.bits * VECTOR
}

/// Bytes of a tile. Files have whole blocks; rows that are quantized at load are filled up with zeros.
pub(crate) fn tile_bytes(format: &Format, inputs: usize) -> Option<usize> {
    inputs.div_ceil(format.numbers).checked_mul(LANES * format.bytes())
}

/// The products of `R` rows and `T` tiles of the format in row `F` of the table.
///
/// # Safety
/// As for [`super::linear::linear`].
#[inline(always)]
pub(crate) unsafe fn coded<L: Lanes, const R: usize, const T: usize, const F: usize>(
    job: &Linear,
    tile: usize,
    row: usize,
) -> [[L; T]; R] {
    // SAFETY: the caller's promise; tiles have the layout above.
    unsafe {
        let format = const { &FORMATS[F] };
        // A whole group has one scale, or each half has its own.
        let parts = if format.scales.share(format.numbers) < GROUP { 2 } else { 1 };
        let groups = job.inputs / GROUP;
        let per_block = format.numbers / GROUP;
        let weights = job.tile(tile);
        let heads = weights.add(groups * group_bytes(format));
        let bytes = job.bytes.add(row * job.inputs);
        let scales = job.scales.add(row * groups);
        let totals = job.totals.add(row * groups * 2);
        let mut sums = [[L::splat(0.0); T]; R];
        for g in 0..groups {
            for t in 0..T {
                let at = weights.add(t * job.tile_bytes + g * group_bytes(format));
                let head = heads.add(t * job.tile_bytes + g / per_block * format.head() * LANES);
                let bytes = bytes.add(g * GROUP);
                let mut products = [[L::every_word(0); R]; 2];
                for r in 0..R {
                    // Offsets of codes, and what products of a table add, are taken off in advance.
                    for part in 0..parts {
                        let total = total(totals.add((r * groups + g) * 2), part, parts);
                        let added = if format.table.is_some() { L::ADDED } else { i32::from(format.offset) };
                        products[part][r] = L::every_word((-total * added) as u32);
                    }
                }
                // Quads that share vectors follow each other.
                quad::<L, R, F, 0>(at, bytes, job.inputs, &mut products);
                quad::<L, R, F, 4>(at, bytes, job.inputs, &mut products);
                quad::<L, R, F, 1>(at, bytes, job.inputs, &mut products);
                quad::<L, R, F, 5>(at, bytes, job.inputs, &mut products);
                quad::<L, R, F, 2>(at, bytes, job.inputs, &mut products);
                quad::<L, R, F, 6>(at, bytes, job.inputs, &mut products);
                quad::<L, R, F, 3>(at, bytes, job.inputs, &mut products);
                quad::<L, R, F, 7>(at, bytes, job.inputs, &mut products);
                for part in 0..parts {
                    let (scale, minimum) = scale::<L, F>(head, g % per_block * parts + part);
                    for r in 0..R {
                        let mut exact = L::numbers(products[part][r]);
                        if parts == 1 && two_chains::<R, F>() {
                            exact = exact.add(L::numbers(products[1][r]));
                        }
                        let x = *scales.add(r * groups + g);
                        sums[r][t] = sums[r][t].fma(exact, scale.mul(L::splat(x)));
                        if format.scales.has_minimum() {
                            let total = total(totals.add((r * groups + g) * 2), part, parts);
                            sums[r][t] = sums[r][t].fma(minimum, L::splat(-x * total as f32));
                        }
                    }
                }
            }
        }
        sums
    }
}

/// Whether the halves of a group are summed apart: their scales differ, or one row alone would wait for each addition.
const fn two_chains<const R: usize, const F: usize>() -> bool {
    R == 1 || FORMATS[F].scales.share(FORMATS[F].numbers) < GROUP
}

/// Adds the products of a quad of inputs: a function of constants, so that shifts and masks are constants, too.
#[inline(always)]
unsafe fn quad<L: Lanes, const R: usize, const F: usize, const QUAD: usize>(
    group: *const u8,
    bytes: *const i8,
    stride: usize,
    products: &mut [[L::Words; R]; 2],
) {
    // SAFETY: the caller's promise: the group's vectors, and its inputs in each row.
    unsafe {
        let codes = codes::<L, F, QUAD>(group, R == 1);
        let table = const { FORMATS[F].table };
        let numbers = table.map(|table| L::look_up(table, codes));
        for (r, sum) in products[if two_chains::<R, F>() { QUAD / 4 } else { 0 }].iter_mut().enumerate() {
            let inputs = bytes.add(r * stride + QUAD * 4);
            *sum = match numbers {
                Some(numbers) => L::add_signed_products(*sum, numbers, inputs),
                None => L::add_products(*sum, codes, inputs),
            };
        }
    }
}

/// The sum of the inputs of a part of a group.
#[inline(always)]
unsafe fn total(halves: *const i32, part: usize, parts: usize) -> i32 {
    // SAFETY: the caller's promise: two halves.
    unsafe { if parts == 2 { *halves.add(part) } else { *halves + *halves.add(1) } }
}

/// The codes of a quad of inputs of a group.
#[inline(always)]
unsafe fn codes<L: Lanes, const F: usize, const QUAD: usize>(group: *const u8, ahead: bool) -> L::Words {
    // SAFETY: the caller's promise: the group's vectors.
    unsafe {
        let [low, high] = const { Plane::both(&FORMATS[F]) };
        let codes = plane::<L>(low, group, QUAD, ahead);
        if high.bits == 0 { codes } else { L::or(codes, plane::<L>(high, group, QUAD, ahead)) }
    }
}

/// What a plane has of the codes of a quad.
#[inline(always)]
unsafe fn plane<L: Lanes>(plane: Plane, group: *const u8, quad: usize, ahead: bool) -> L::Words {
    // SAFETY: the caller's promise: the group's vectors.
    unsafe {
        let (vector, low) = plane.place(quad);
        let at = group.add(vector);
        if ahead && low == 0 {
            L::soon(at.wrapping_add(AHEAD));
        }
        let words = L::words(at);
        let moved = if low >= plane.from_bit {
            L::right(words, (low - plane.from_bit) as u32)
        } else {
            L::left(words, (plane.from_bit - low) as u32)
        };
        // What a shift brings in from the next byte is not within the mask.
        let mask = ((1 << plane.bits) - 1) << plane.from_bit;
        L::and(moved, L::every_word(mask * 0x0101_0101))
    }
}

/// The scales and the minima of a part of a block.
#[inline(always)]
unsafe fn scale<L: Lanes, const F: usize>(head: *const u8, part: usize) -> (L, L) {
    // SAFETY: the caller's promise: the block's fields.
    unsafe {
        let format = const { &FORMATS[F] };
        let zero = L::splat(0.0);
        let half = |i: usize| L::load_half(head.add(i * LANES * 2).cast());
        let words = head.add(format.halves() * LANES * 2);
        let word = |i: usize| L::words(words.add(i * VECTOR));
        let bits = |word: L::Words, from: usize, mask: u32| L::and(L::right(word, from as u32), L::every_word(mask));
        match format.scales {
            Scales::One => (half(0), zero),
            Scales::OneAndBase => (half(0), zero.sub(half(1))),
            Scales::SixBitPairs => {
                let from = part % 4 * 8;
                let (scale, minimum) = if part < 4 {
                    (bits(word(0), from, 63), bits(word(1), from, 63))
                } else {
                    let low = word(2);
                    (
                        L::or(bits(low, from, 15), bits(word(0), from + 2, 0x30)),
                        L::or(bits(low, from + 4, 15), bits(word(1), from + 2, 0x30)),
                    )
                };
                (half(0).mul(L::numbers(scale)), half(1).mul(L::numbers(minimum)))
            }
            Scales::FourBitPairs => {
                let (pairs, from) = (word(part / 4), part % 4 * 8);
                let (scale, minimum) = (bits(pairs, from, 15), bits(pairs, from + 4, 15));
                (half(0).mul(L::numbers(scale)), half(1).mul(L::numbers(minimum)))
            }
            Scales::SixBits => {
                let low = bits(word(part % 8 / 4), part % 4 * 8 + part / 8 * 4, 15);
                let high = L::left(bits(word(2), part % 4 * 8 + part / 4 * 2, 3), 4);
                (half(0).mul(L::numbers(L::or(low, high)).sub(L::splat(32.0))), zero)
            }
            Scales::Bytes => {
                let byte = L::high_bytes(L::left(word(part / 4), 24 - part as u32 % 4 * 8));
                (half(0).mul(byte), zero)
            }
            Scales::SixBitsApart => {
                let high = L::shorts(head.add(LANES * 2).cast());
                let high = L::left(bits(high, 2 * part, 3), 4);
                let scale = L::or(bits(word(0), 4 * part, 15), high);
                (half(0).mul(L::numbers(scale).sub(L::splat(32.0))), zero)
            }
        }
    }
}
