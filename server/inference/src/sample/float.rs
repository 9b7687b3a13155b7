//! Exponential and logarithm of our own: the same bits on every machine, whatever C library it has.
//!
//! Plain multiplications and additions only: a fused operation would round differently where the hardware lacks it.

/// `e` to the power of `x`, for `x` ≤ 0 as a softmax has it; within two units in the last place. 0 below −87.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    // The polynomial and the split of ln 2 are those of Cephes' `expf` (Moshier 1992).
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it leaves the nearest integer in the low bits
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    // The integer straight from the bits: a checked conversion would keep this from running in vector registers.
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let power = f32::from_bits(exponent << 23);
    let value = (p * r * r + r + 1.0) * power;
    if x < -87.0 { 0.0 } else { value }
}

/// The natural logarithm of a positive normal number; within a few units in the last place.
pub(crate) fn ln(x: f64) -> f64 {
    const LN2: f64 = std::f64::consts::LN_2;
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2·artanh(s) with |s| ≤ 0.172: eleven odd terms reach double precision.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for k in (0..11).rev() {
        sum = sum * square + 1.0 / f64::from(2 * k + 1);
    }
    2.0 * s * sum + exponent as f64 * LN2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_the_softmax_range() {
        let mut worst = 0f64;
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 2.5e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
    }

    #[test]
    fn ln_is_accurate() {
        for x in [1.0, 1.5, 2.0, 0.999, 1e-300, 1e300, 50_257.0, std::f64::consts::E, 1.414_213_7] {
            let error = (ln(x) - f64::ln(x)).abs();
            assert!(error <= 4e-16 * f64::ln(x).abs().max(1.0), "ln {x}: {error}");
        }
    }
}
