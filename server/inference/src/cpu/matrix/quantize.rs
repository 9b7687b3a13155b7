//! Numbers to blocks of fewer bits, and what that takes from them.

use crate::format::Code;
use crate::kernels::rows::GROUP;
use half::f16;

/// What quantization took from weights: sums of squares of the differences and of the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Loss {
    differences: f64,
    weights: f64,
}

impl Loss {
    pub(crate) fn add(&mut self, other: Loss) {
        self.differences += other.differences;
        self.weights += other.weights;
    }

    /// The root of the mean square of the differences, in shares of that of the weights; `None` if nothing was quantized.
    pub(crate) fn relative(self) -> Option<f64> {
        (self.weights > 0.0).then(|| (self.differences / self.weights).sqrt())
    }

    fn of(numbers: &[f32; GROUP], step: f32, codes: &[f32; GROUP]) -> Loss {
        let differences = std::array::from_fn(|i| numbers[i] - step * codes[i]);
        Loss { differences: f64::from(dot(&differences, &differences)), weights: f64::from(dot(numbers, numbers)) }
    }
}

/// A group in 8 bits as ggml does it: the scale is a 127th of the largest magnitude; numbers are rounded with the scale
/// before it became f16. `None` when the scale is too large for f16.
pub(crate) fn to_bytes(numbers: &[f32; GROUP]) -> Option<(f16, [i8; GROUP], Loss)> {
    let scale = largest(numbers).abs() / 127.0;
    let half = f16::from_f32(scale);
    // A scale that is zero in f16 may have no finite inverse.
    let inverse = if half > f16::ZERO { 1.0 / scale } else { 0.0 };
    let codes: [f32; GROUP] = numbers.map(|v| (v * inverse).round().clamp(-127.0, 127.0));
    half.is_finite().then(|| (half, codes.map(|code| code as i8), Loss::of(numbers, half.to_f32(), &codes)))
}

/// Which code the number with the largest magnitude gets, in the attempts of [`to_q4_0`]. Those beyond -8 cut it, and are
/// finer for the rest; ggml takes -8 always. On weights of a normal distribution the error is 8.1 % for ggml's 8.6 %.
const EXTREMES: [f32; 5] = [-8.0, -7.0, -7.5, -8.5, -9.0];

/// A group as a block of [`Code::Q4_0`]: of several steps the one with the smallest sum of squared differences. `None`
/// when the step is too large for f16.
pub(crate) fn to_q4_0(numbers: &[f32; GROUP], block: &mut [u8; Q4_0_BYTES]) -> Option<Loss> {
    let extreme = largest(numbers);
    let mut best: Option<(Loss, f16, [f32; GROUP])> = None;
    for code in EXTREMES {
        let inverse = code / extreme;
        // Zeros, and magnitudes whose steps are zero in f16.
        let codes =
            if inverse.is_finite() { numbers.map(|v| round((v * inverse).clamp(-8.0, 7.0))) } else { [0.0; GROUP] };
        let squares = dot(&codes, &codes);
        // The best step for these codes, by least squares.
        let step = f16::from_f32(if squares > 0.0 { dot(numbers, &codes) / squares } else { 0.0 });
        let loss = Loss::of(numbers, step.to_f32(), &codes);
        if step.is_finite() && best.as_ref().is_none_or(|(least, ..)| loss.differences < least.differences) {
            best = Some((loss, step, codes));
        }
    }
    let (loss, step, codes) = best?;
    block[..2].copy_from_slice(&step.to_le_bytes());
    let nibble = |i: usize| (codes[i] + 8.0) as u8;
    for (i, byte) in block[2..].iter_mut().enumerate() {
        *byte = nibble(i) | nibble(i + GROUP / 2) << 4;
    }
    Some(loss)
}

/// Bytes of a block of [`Code::Q4_0`].
pub(crate) const Q4_0_BYTES: usize = Code::Q4_0.format().bytes();

/// The number with the largest magnitude.
fn largest(numbers: &[f32; GROUP]) -> f32 {
    numbers.iter().fold(0f32, |largest, v| if v.abs() > largest.abs() { *v } else { largest })
}

/// To the nearest whole number, ties to even, for magnitudes below 2²². Instructions for it are not in every x86-64.
fn round(v: f32) -> f32 {
    const WHOLE: f32 = 12_582_912.0;
    (v + WHOLE) - WHOLE
}

/// In eight sums, which the compiler makes a vector.
fn dot(a: &[f32; GROUP], b: &[f32; GROUP]) -> f32 {
    let mut sums = [0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Dtype;

    /// Sums of twelve uniform numbers are close to a normal distribution.
    fn normal(seed: u64) -> impl FnMut() -> f32 {
        let mut state = seed;
        move || {
            let mut uniform = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1 << 24) as f32
            };
            (0..12).map(|_| uniform()).sum::<f32>() - 6.0
        }
    }

    fn decoded(block: &[u8; Q4_0_BYTES]) -> [f32; GROUP] {
        let mut numbers = [0.0; GROUP];
        Dtype::Coded(Code::Q4_0).decode(block, &mut numbers);
        numbers
    }

    #[test]
    fn four_bits_lose_less_than_the_step_of_the_extreme_alone() {
        let mut next = normal(3);
        let (mut all, mut simple) = (Loss::default(), Loss::default());
        for _ in 0..2000 {
            let numbers: [f32; GROUP] = std::array::from_fn(|_| 0.02 * next());
            let mut block = [0; Q4_0_BYTES];
            let loss = to_q4_0(&numbers, &mut block).unwrap();
            let held = decoded(&block);
            let differences: f64 = numbers.iter().zip(held).map(|(v, held)| f64::from(v - held).powi(2)).sum();
            assert!((loss.differences - differences).abs() <= 1e-4 * differences, "{loss:?} {differences}");
            all.add(loss);
            let step = f16::from_f32(largest(&numbers) / -8.0).to_f32();
            simple.add(Loss::of(&numbers, step, &numbers.map(|v| round((v / step).clamp(-8.0, 7.0)))));
        }
        let (ours, of_ggml) = (all.relative().unwrap(), simple.relative().unwrap());
        assert!(ours < 0.96 * of_ggml, "{ours} {of_ggml}");
        assert!((0.07..0.09).contains(&ours), "{ours}");
    }

    #[test]
    fn blocks_that_can_be_exact_are() {
        let numbers: [f32; GROUP] = std::array::from_fn(|i| (i % 16) as f32 * -0.25 + 2.0);
        let mut block = [0; Q4_0_BYTES];
        assert_eq!(to_q4_0(&numbers, &mut block).unwrap().relative(), Some(0.0));
        assert_eq!(decoded(&block), numbers);
        let bytes: [f32; GROUP] = std::array::from_fn(|i| 0.5 * (i as f32 * 8.0 - 121.0).clamp(-127.0, 127.0));
        let (scale, codes, loss) = to_bytes(&bytes).unwrap();
        assert_eq!(codes.map(|code| f32::from(code) * scale.to_f32()), bytes);
        assert_eq!(loss.relative(), Some(0.0));
    }

    #[test]
    fn extremes_of_magnitude_are_held_or_refused() {
        let mut block = [0xff; Q4_0_BYTES];
        for tiny in [0.0, f32::MIN_POSITIVE, 1e-45, 1e-12] {
            to_q4_0(&[tiny; GROUP], &mut block).unwrap();
            assert_eq!(decoded(&block), [0.0; GROUP], "{tiny}");
            assert_eq!(to_bytes(&[tiny; GROUP]).unwrap().0.to_f32(), 0.0);
        }
        for huge in [1e7, -1e7, f32::MAX] {
            assert!(to_q4_0(&[huge; GROUP], &mut block).is_none() && to_bytes(&[huge; GROUP]).is_none(), "{huge}");
        }
        // A half of the largest f16 as step.
        to_q4_0(&[-2e5; GROUP], &mut block).unwrap();
        assert!(decoded(&block).iter().all(|v| (v + 2e5).abs() < 200.0));
    }
}
