//! What happens to single rows: normalisation, quantization of activations, and the functions of one number.

use super::lanes::{LANES, Lanes};

/// Numbers that share a scale in q8_0.
pub(crate) const GROUP: usize = 32;

/// e to the power of each lane, within 2 units in the last place; arguments are kept in -87..=88.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    // ln 2 in two parts: the first has few enough bits that its product with a whole number is exact (Cody and Waite).
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // SAFETY: the caller's promise.
    unsafe {
        let x = x.at_least(L::splat(-87.0)).at_most(L::splat(88.0));
        let whole = x.mul(L::splat(core::f32::consts::LOG2_E)).round();
        let rest = x.fma(whole, L::splat(-LN2_HIGH)).fma(whole, L::splat(-LN2_LOW));
        let mut sum = L::splat(TAYLOR[0]);
        for c in &TAYLOR[1..] {
            sum = L::splat(*c).fma(sum, rest);
        }
        sum.mul(whole.exp2_whole())
    }
}

/// `x · sigmoid(x)`.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn silu<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe { x.div(L::splat(1.0).add(exp(L::splat(0.0).sub(x)))) }
}

/// GELU by its tanh approximation. `½·(1 + tanh u)` is `1 / (1 + exp(-2u))`, so no tanh is needed.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn gelu<L: Lanes>(x: L) -> L {
    // -2·√(2/π)
    const OUTER: f32 = -1.595_769_2;
    // SAFETY: the caller's promise.
    unsafe {
        let cubic = x.fma(x.mul(x).mul(x), L::splat(0.044_715));
        x.div(L::splat(1.0).add(exp(cubic.mul(L::splat(OUTER)))))
    }
}

/// `cap · tanh(x / cap)` of each of `count` numbers, in place. `tanh u` is `1 - 2 / (1 + exp(2u))`.
///
/// # Safety
/// The CPU has the instruction set of `L`; the pointer is valid for `count` elements.
#[inline(always)]
pub(crate) unsafe fn soft_cap<L: Lanes>(numbers: *mut f32, count: usize, cap: f32) {
    // SAFETY: the caller's promise; every access is bounded by `count - i`.
    unsafe {
        for i in (0..count).step_by(LANES) {
            let left = count - i;
            let twice = L::load_part(numbers.add(i), left).mul(L::splat(2.0 / cap));
            let share = L::splat(2.0).div(L::splat(1.0).add(exp(twice)));
            // What is not finite must stay so: the product is 0 or NaN.
            let capped = L::splat(1.0).sub(share).mul(L::splat(cap)).fma(twice, L::splat(0.0));
            capped.store_part(numbers.add(i), left);
        }
    }
}

/// GELU by the error function, `x · Φ(x)`, within 2⁻²² of the larger of 1 and `x`: Abramowitz and Stegun 7.1.26.
///
/// # Safety
/// The CPU has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn gelu_erf<L: Lanes>(x: L) -> L {
    const TERMS: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6];
    // SAFETY: the caller's promise.
    unsafe {
        let zero = L::splat(0.0);
        let size = x.largest_magnitude(zero);
        let z = size.mul(L::splat(core::f32::consts::FRAC_1_SQRT_2));
        let t = L::splat(1.0).div(L::splat(1.0).fma(z, L::splat(0.327_591_1)));
        let mut sum = L::splat(TERMS[0]);
        for c in &TERMS[1..] {
            sum = L::splat(*c).fma(sum, t);
        }
        // What the error function lacks to one.
        let rest = sum.mul(t).mul(exp(zero.sub(z.mul(z))));
        x.at_least(zero).sub(size.mul(rest).mul(L::splat(0.5)))
    }
}

/// LayerNorm of one row of `width` numbers.
///
/// # Safety
/// The CPU has the instruction set of `L`; all pointers are valid for `width` elements.
#[inline(always)]
pub(crate) unsafe fn layer_norm<L: Lanes>(
    row: *const f32,
    weight: *const f32,
    bias: *const f32,
    width: usize,
    eps: f32,
    out: *mut f32,
) {
    // SAFETY: the caller's promise; every access is bounded by `width - i`.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..width).step_by(LANES) {
            sum = sum.add(L::load_part(row.add(i), width - i));
        }
        let mean = sum.total() / width as f32;
        let mut squares = L::splat(0.0);
        for i in (0..width).step_by(LANES) {
            let away = away_from::<L>(row, mean, i, width);
            squares = squares.fma(away, away);
        }
        let scale = L::splat(1.0 / (squares.total() / width as f32 + eps).sqrt());
        for i in (0..width).step_by(LANES) {
            let left = width - i;
            let away = away_from::<L>(row, mean, i, width);
            let y = L::load_part(bias.add(i), left).fma(away.mul(scale), L::load_part(weight.add(i), left));
            y.store_part(out.add(i), left);
        }
    }
}

/// `row[i..] - mean`, zero past the end.
#[inline(always)]
unsafe fn away_from<L: Lanes>(row: *const f32, mean: f32, i: usize, width: usize) -> L {
    // SAFETY: the caller's promise; the last part goes through an array of its own.
    unsafe {
        let away = L::load_part(row.add(i), width - i).sub(L::splat(mean));
        if width - i >= LANES {
            return away;
        }
        let mut part = [0f32; LANES];
        away.store(part.as_mut_ptr());
        L::load_part(part.as_ptr(), width - i)
    }
}

/// RMSNorm of one row of `width` numbers; `out` may be `row`.
///
/// # Safety
/// The CPU has the instruction set of `L`; all pointers are valid for `width` elements.
#[inline(always)]
pub(crate) unsafe fn rms_norm<L: Lanes>(row: *const f32, weight: *const f32, width: usize, eps: f32, out: *mut f32) {
    // SAFETY: the caller's promise; every access is bounded by `width - i`.
    unsafe {
        let mut squares = L::splat(0.0);
        for i in (0..width).step_by(LANES) {
            let x = L::load_part(row.add(i), width - i);
            squares = squares.fma(x, x);
        }
        let scale = L::splat(1.0 / (squares.total() / width as f32 + eps).sqrt());
        for i in (0..width).step_by(LANES) {
            let left = width - i;
            let y = L::load_part(row.add(i), left).mul(scale).mul(L::load_part(weight.add(i), left));
            y.store_part(out.add(i), left);
        }
    }
}

/// Quantizes one row to bytes with a scale for each group. Where a group holds something that is not finite its scale is
/// NaN, so that the break is seen in the logits.
///
/// # Safety
/// The CPU has the instruction set of `L`; `row` and `bytes` are valid for `groups · 32` elements, `scales` for `groups`,
/// `totals`, the sums of halves of groups, for `2 · groups`.
#[inline(always)]
pub(crate) unsafe fn quantize<L: Lanes>(
    row: *const f32,
    groups: usize,
    bytes: *mut i8,
    scales: *mut f32,
    totals: *mut i32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for g in 0..groups {
            let (low, high) = (L::load(row.add(g * GROUP)), L::load(row.add(g * GROUP + LANES)));
            let bits = high.largest_magnitude(low.largest_magnitude(L::splat(0.0))).magnitude();
            let largest = f32::from_bits(bits);
            let (scale, inverse) = if bits >= 0x7f80_0000 {
                (f32::NAN, 0.0)
            } else if largest < 1e-30 {
                (0.0, 0.0)
            } else {
                (largest / 127.0, 127.0 / largest)
            };
            let to = bytes.add(g * GROUP);
            if inverse == 0.0 {
                to.write_bytes(0, GROUP);
            } else {
                low.mul(L::splat(inverse)).store_bytes(to);
                high.mul(L::splat(inverse)).store_bytes(to.add(LANES));
            }
            *scales.add(g) = scale;
            for half in 0..2 {
                let bytes = to.add(half * LANES).cast::<[i8; LANES]>().read_unaligned();
                *totals.add(2 * g + half) = bytes.iter().map(|b| i32::from(*b)).sum();
            }
        }
    }
}
