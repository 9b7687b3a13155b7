//! Elementwise arithmetic on f32 slices, compiled for AVX-512, AVX2 and the plain machine, with equal results on all of them:
//! sums run in sixteen fixed lanes, no multiplication is fused with an addition, and `exp` is our own.

/// Compiles a function three times and calls the widest that this machine runs.
macro_rules! wide {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { plain($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { plain($($arg),*) }
                if std::is_x86_feature_detected!("avx512f")
                    && std::is_x86_feature_detected!("avx512dq")
                    && std::is_x86_feature_detected!("avx512vl")
                    && std::is_x86_feature_detected!("avx512bw")
                {
                    // SAFETY: the machine has the instructions that the function was compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if std::is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}

const LANES: usize = 16;

/// The sum of sixteen lanes, always in the same order.
#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f32 {
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    sum
}

#[inline(always)]
fn lane_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (a, v) in acc.iter_mut().zip(chunk) {
            *a += f(*v);
        }
    }
    for (a, v) in acc.iter_mut().zip(chunks.remainder()) {
        *a += f(*v);
    }
    fold(acc)
}

#[inline(always)]
fn lane_dot(x: &[f32], y: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let (mut xs, mut ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    for (a, b) in (&mut xs).zip(&mut ys) {
        for ((s, u), v) in acc.iter_mut().zip(a).zip(b) {
            *s += u * v;
        }
    }
    for ((s, u), v) in acc.iter_mut().zip(xs.remainder()).zip(ys.remainder()) {
        *s += u * v;
    }
    fold(acc)
}

/// e^x within 2 ulp; below -87 it is 0, above 88 it is e^88.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    // Adding 1.5·2²³ rounds to the nearest whole number and leaves it in the low bits.
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { scaled }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

wide! {
    /// y += x.
    pub fn add(y: &mut [f32], x: &[f32]) {
        for (a, b) in y.iter_mut().zip(x) {
            *a += b;
        }
    }
}

wide! {
    /// Adds the bias to each row.
    pub fn add_bias(y: &mut [f32], bias: &[f32]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (a, b) in row.iter_mut().zip(bias) {
                *a += b;
            }
        }
    }
}

wide! {
    /// bias += the sum of the rows.
    pub fn sum_rows(bias: &mut [f32], y: &[f32]) {
        for row in y.chunks_exact(bias.len()) {
            for (a, b) in bias.iter_mut().zip(row) {
                *a += b;
            }
        }
    }
}

wide! {
    /// The dot product.
    pub fn dot(x: &[f32], y: &[f32]) -> f32 {
        lane_dot(x, y)
    }
}

wide! {
    /// The sum of squares.
    pub fn sum_squares(x: &[f32]) -> f32 {
        lane_sum(x, |v| v * v)
    }
}

wide! {
    /// The tanh form of GELU, as GPT-2 has it.
    pub fn gelu(out: &mut [f32], x: &[f32]) {
        for (o, &v) in out.iter_mut().zip(x) {
            let u = SQRT_2_OVER_PI * (v + 0.044_715 * v * v * v);
            let tanh = 1.0 - 2.0 / (exp(2.0 * u) + 1.0);
            *o = 0.5 * v * (1.0 + tanh);
        }
    }
}

wide! {
    /// Turns the gradient of GELU's output into that of its input.
    pub fn gelu_backward(grad: &mut [f32], x: &[f32]) {
        for (g, &v) in grad.iter_mut().zip(x) {
            let u = SQRT_2_OVER_PI * (v + 0.044_715 * v * v * v);
            let tanh = 1.0 - 2.0 / (exp(2.0 * u) + 1.0);
            let slope = SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * v * v);
            *g *= 0.5 * (1.0 + tanh) + 0.5 * v * (1.0 - tanh * tanh) * slope;
        }
    }
}

wide! {
    /// Normalizes each row: `hat` gets mean 0 and variance 1, `out` is `hat · weight + bias`, `rstd` the inverse deviations.
    pub fn layer_norm(out: &mut [f32], hat: &mut [f32], rstd: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) {
        let d = weight.len();
        let rows = out.chunks_exact_mut(d).zip(hat.chunks_exact_mut(d)).zip(x.chunks_exact(d)).zip(rstd.iter_mut());
        for (((out, hat), x), rstd) in rows {
            let mean = lane_sum(x, |v| v) / d as f32;
            let variance = lane_sum(x, |v| (v - mean) * (v - mean)) / d as f32;
            *rstd = 1.0 / (variance + epsilon).sqrt();
            let scale = *rstd;
            for ((((o, h), v), w), b) in out.iter_mut().zip(hat.iter_mut()).zip(x).zip(weight).zip(bias) {
                *h = (v - mean) * scale;
                *o = *h * w + b;
            }
        }
    }
}

wide! {
    /// out = hat · weight + bias: a normalized row made again from what was kept of it.
    pub fn rescale(out: &mut [f32], hat: &[f32], weight: &[f32], bias: &[f32]) {
        let d = weight.len();
        for (out, hat) in out.chunks_exact_mut(d).zip(hat.chunks_exact(d)) {
            for (((o, h), w), b) in out.iter_mut().zip(hat).zip(weight).zip(bias) {
                *o = h * w + b;
            }
        }
    }
}

wide! {
    /// Adds the gradient of a layer norm's input to `dx` and those of its weight and bias to theirs.
    pub fn layer_norm_backward(
        dx: &mut [f32], dweight: &mut [f32], dbias: &mut [f32], dy: &[f32], hat: &[f32], rstd: &[f32], weight: &[f32],
    ) {
        let d = weight.len();
        let rows = dx.chunks_exact_mut(d).zip(dy.chunks_exact(d)).zip(hat.chunks_exact(d)).zip(rstd);
        for (((dx, dy), hat), rstd) in rows {
            let mut sums = [0f32; LANES];
            let mut dots = [0f32; LANES];
            for (i, ((g, h), w)) in dy.iter().zip(hat).zip(weight).enumerate() {
                let scaled = g * w;
                sums[i % LANES] += scaled;
                dots[i % LANES] += scaled * h;
            }
            let (mean, mean_dot) = (fold(sums) / d as f32, fold(dots) / d as f32);
            for ((((x, g), h), w), (dw, db)) in
                dx.iter_mut().zip(dy).zip(hat).zip(weight).zip(dweight.iter_mut().zip(dbias.iter_mut()))
            {
                *x += rstd * (g * w - mean - h * mean_dot);
                *dw += g * h;
                *db += g;
            }
        }
    }
}

wide! {
    /// Softmax of one row of scores in place, after scaling; returns the logarithm of the sum.
    pub fn softmax(row: &mut [f32], scale: f32) -> f32 {
        let mut tops = [f32::NEG_INFINITY; LANES];
        let mut chunks = row.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (t, v) in tops.iter_mut().zip(chunk) {
                *v *= scale;
                *t = if *v > *t { *v } else { *t };
            }
        }
        for (t, v) in tops.iter_mut().zip(chunks.into_remainder()) {
            *v *= scale;
            *t = if *v > *t { *v } else { *t };
        }
        let top = tops.into_iter().fold(f32::NEG_INFINITY, f32::max);
        for v in row.iter_mut() {
            *v = exp(*v - top);
        }
        let sum = lane_sum(row, |v| v);
        let inverse = 1.0 / sum;
        for v in row.iter_mut() {
            *v *= inverse;
        }
        top + sum.ln()
    }
}

wide! {
    /// The softmax of a row whose logarithm of the sum is known.
    pub fn softmax_again(row: &mut [f32], scale: f32, log_sum: f32) {
        for v in row.iter_mut() {
            *v = exp(*v * scale - log_sum);
        }
    }
}

wide! {
    /// Turns the gradient of attention weights into that of the scores: `p · (dp − delta) · scale`, into `dp`.
    pub fn softmax_backward(dp: &mut [f32], p: &[f32], delta: f32, scale: f32) {
        for (g, p) in dp.iter_mut().zip(p) {
            *g = p * (*g - delta) * scale;
        }
    }
}

wide! {
    /// y *= s.
    pub fn scale(y: &mut [f32], s: f32) {
        for v in y.iter_mut() {
            *v *= s;
        }
    }
}

wide! {
    /// One step of AdamW; `rates` are (learning rate, β1, β2, ε, decay, 1 − β1^t, 1 − β2^t).
    pub fn adamw(params: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], rates: [f32; 7]) {
        let [lr, beta1, beta2, epsilon, decay, correction1, correction2] = rates;
        for (((p, m), v), g) in params.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(grad) {
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            let step = (*m / correction1) / ((*v / correction2).sqrt() + epsilon);
            *p -= lr * (step + decay * *p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_a_few_ulp() {
        for i in -8_700..8_800 {
            let x = i as f32 / 100.0;
            let (ours, theirs) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / theirs - 1.0).abs() < 4e-7, "{x} {ours} {theirs}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn softmax_sums_to_one_and_returns_its_log_sum() {
        let scores: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let mut row = scores.clone();
        let log_sum = softmax(&mut row, 0.5);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let mut again = scores;
        softmax_again(&mut again, 0.5, log_sum);
        assert!(row.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
