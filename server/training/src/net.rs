//! GPT-2, forwards and backwards, by hand: one call takes a shard of windows and adds its gradient.
//!
//! Written out because that is several times faster on a CPU than automatic differentiation: the cross-entropy never holds the
//! logits of more than a few rows, attention keeps no matrix of weights, and every product is one `gemm`. The tests check it
//! against candle's gradients.

use crate::params::{Block, Layout};
use crate::vector;
use gemm::Parallelism;
use std::ops::Range;

/// Added to the variance of a layer norm.
pub const EPSILON: f32 = 1e-5;

/// Rows of queries that are handled at once.
const QUERY_ROWS: usize = 64;
/// Rows whose logits exist at once.
const LOGIT_ROWS: usize = 128;

/// A matrix within a slice, with any strides.
#[derive(Clone, Copy)]
struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// Whether a product replaces or is added.
#[derive(Clone, Copy, PartialEq)]
enum Into {
    Set,
    Add,
}

/// dst (rows of stride `stride`) = or += a · b.
fn product(dst: &mut [f32], stride: usize, into: Into, a: Mat<'_>, b: Mat<'_>) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(a.fits() && b.fits() && k == b.rows, "shapes of a product");
    assert!(m == 0 || n == 0 || (m - 1) * stride + n <= dst.len(), "room for a product");
    // SAFETY: the three matrices were just checked to lie within their slices, and dst is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride as isize,
            into == Into::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// y = x · w + b.
pub(crate) fn linear(y: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
    let outputs = bias.len();
    let inputs = weight.len() / outputs;
    let rows = x.len() / inputs;
    product(y, outputs, Into::Set, Mat::new(x, rows, inputs), Mat::new(weight, inputs, outputs));
    vector::add_bias(y, bias);
}

/// logits = x · wteᵀ.
pub(crate) fn head(logits: &mut [f32], x: &[f32], wte: &[f32], width: usize) {
    let (rows, vocabulary) = (x.len() / width, wte.len() / width);
    product(logits, vocabulary, Into::Set, Mat::new(x, rows, width), Mat::new(wte, vocabulary, width).t());
}

/// Windows of equal length, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    /// Tokens of one window.
    pub length: usize,
    /// The tokens that are read.
    pub inputs: Vec<u32>,
    /// Their positions.
    pub positions: Vec<u32>,
    /// The tokens to be predicted.
    pub targets: Vec<u32>,
}

/// What a block's forward pass leaves for its backward pass.
#[derive(Default)]
struct Kept {
    hat1: Vec<f32>,
    rstd1: Vec<f32>,
    qkv: Vec<f32>,
    log_sums: Vec<f32>,
    mixed: Vec<f32>,
    hat2: Vec<f32>,
    rstd2: Vec<f32>,
    fc: Vec<f32>,
    act: Vec<f32>,
}

/// The buffers of one thread; they grow to the largest shard and stay.
#[derive(Default)]
pub struct Workspace {
    x: Vec<f32>,
    norm: Vec<f32>,
    wide: Vec<f32>,
    kept: Vec<Kept>,
    hat: Vec<f32>,
    rstd: Vec<f32>,
    dx: Vec<f32>,
    dqkv: Vec<f32>,
    dmixed: Vec<f32>,
    scores: Vec<f32>,
    dscores: Vec<f32>,
    logits: Vec<f32>,
}

/// A gradient mutably, a parameter immutably: both by the same range.
fn two<'a>(grad: &'a mut [f32], pair: &(Range<usize>, Range<usize>)) -> (&'a mut [f32], &'a mut [f32]) {
    // The bias lies directly behind the weight.
    let (weight, bias) = grad[pair.0.start..pair.1.end].split_at_mut(pair.0.len());
    (weight, bias)
}

impl Workspace {
    fn size(&mut self, layout: &Layout, rows: usize, length: usize) {
        let d = layout.shape.width;
        let grow = |v: &mut Vec<f32>, n: usize| v.resize(n, 0.0);
        self.kept.resize_with(layout.shape.layers, Kept::default);
        for kept in &mut self.kept {
            for v in [&mut kept.hat1, &mut kept.mixed, &mut kept.hat2] {
                grow(v, rows * d);
            }
            grow(&mut kept.rstd1, rows);
            grow(&mut kept.rstd2, rows);
            grow(&mut kept.qkv, rows * 3 * d);
            grow(&mut kept.log_sums, rows * layout.shape.heads);
            grow(&mut kept.fc, rows * 4 * d);
            grow(&mut kept.act, rows * 4 * d);
        }
        for v in [&mut self.x, &mut self.norm, &mut self.hat, &mut self.dx, &mut self.dmixed] {
            grow(v, rows * d);
        }
        grow(&mut self.wide, rows * 4 * d);
        grow(&mut self.rstd, rows);
        grow(&mut self.dqkv, rows * 3 * d);
        grow(&mut self.scores, QUERY_ROWS * length);
        grow(&mut self.dscores, QUERY_ROWS * length);
        grow(&mut self.logits, LOGIT_ROWS * layout.shape.vocabulary);
    }

    /// The sum of the cross-entropies of a shard's targets, in nats. With `grad`, adds `weight` times its gradient.
    pub fn run(&mut self, layout: &Layout, params: &[f32], shard: &Shard, mut grad: Option<(&mut [f32], f32)>) -> f64 {
        let rows = shard.inputs.len();
        self.size(layout, rows, shard.length);
        self.forward(layout, params, shard);
        let loss = self.loss(layout, params, shard, grad.as_mut());
        if let Some((grad, _)) = grad {
            self.backward(layout, params, shard, grad);
        }
        loss
    }

    fn forward(&mut self, layout: &Layout, params: &[f32], shard: &Shard) {
        let d = layout.shape.width;
        let (wte, wpe) = (&params[layout.wte.clone()], &params[layout.wpe.clone()]);
        for ((x, &token), &position) in self.x.chunks_exact_mut(d).zip(&shard.inputs).zip(&shard.positions) {
            let (t, p) = (token as usize * d, position as usize * d);
            for ((x, a), b) in x.iter_mut().zip(&wte[t..t + d]).zip(&wpe[p..p + d]) {
                *x = a + b;
            }
        }
        for (block, kept) in layout.blocks.iter().zip(&mut self.kept) {
            let at = |r: &Range<usize>| &params[r.clone()];
            vector::layer_norm(
                &mut self.norm,
                &mut kept.hat1,
                &mut kept.rstd1,
                &self.x,
                at(&block.ln1.0),
                at(&block.ln1.1),
                EPSILON,
            );
            linear(&mut kept.qkv, &self.norm, at(&block.qkv.0), at(&block.qkv.1));
            attend(layout, shard.length, kept, &mut self.scores);
            linear(&mut self.norm, &kept.mixed, at(&block.proj.0), at(&block.proj.1));
            vector::add(&mut self.x, &self.norm);
            vector::layer_norm(
                &mut self.norm,
                &mut kept.hat2,
                &mut kept.rstd2,
                &self.x,
                at(&block.ln2.0),
                at(&block.ln2.1),
                EPSILON,
            );
            linear(&mut kept.fc, &self.norm, at(&block.fc.0), at(&block.fc.1));
            vector::gelu(&mut kept.act, &kept.fc);
            linear(&mut self.norm, &kept.act, at(&block.out.0), at(&block.out.1));
            vector::add(&mut self.x, &self.norm);
        }
        let (weight, bias) = (&params[layout.ln_f.0.clone()], &params[layout.ln_f.1.clone()]);
        vector::layer_norm(&mut self.norm, &mut self.hat, &mut self.rstd, &self.x, weight, bias, EPSILON);
    }

    /// The loss, and the gradients of the head and of the last norm, which leave theirs in `dx`.
    fn loss(&mut self, layout: &Layout, params: &[f32], shard: &Shard, grad: Option<&mut (&mut [f32], f32)>) -> f64 {
        let (d, vocabulary) = (layout.shape.width, layout.shape.vocabulary);
        let wte = &params[layout.wte.clone()];
        let mut loss = 0.0;
        let mut grad = grad;
        // `dmixed` holds the gradient of the last norm's output for a while.
        let blocks = self
            .norm
            .chunks(LOGIT_ROWS * d)
            .zip(shard.targets.chunks(LOGIT_ROWS))
            .zip(self.dmixed.chunks_mut(LOGIT_ROWS * d));
        for ((x, targets), dx) in blocks {
            let rows = targets.len();
            let logits = &mut self.logits[..rows * vocabulary];
            head(logits, x, wte, d);
            for (row, &target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
                let at = target as usize;
                let score = row[at];
                loss += f64::from(vector::softmax(row, 1.0) - score);
                row[at] -= 1.0;
            }
            if let Some((grad, weight)) = grad.as_mut() {
                vector::scale(logits, *weight);
                let logits = Mat::new(logits, rows, vocabulary);
                product(dx, d, Into::Set, logits, Mat::new(wte, vocabulary, d));
                product(&mut grad[layout.wte.clone()], d, Into::Add, logits.t(), Mat::new(x, rows, d));
            }
        }
        if let Some((grad, _)) = grad {
            self.dx.fill(0.0);
            let (dw, db) = two(grad, &layout.ln_f);
            vector::layer_norm_backward(
                &mut self.dx,
                dw,
                db,
                &self.dmixed,
                &self.hat,
                &self.rstd,
                &params[layout.ln_f.0.clone()],
            );
        }
        loss
    }

    fn backward(&mut self, layout: &Layout, params: &[f32], shard: &Shard, grad: &mut [f32]) {
        let d = layout.shape.width;
        let rows = shard.inputs.len();
        for (i, block) in layout.blocks.iter().enumerate().rev() {
            let at = |r: &Range<usize>| &params[r.clone()];
            let kept = &self.kept[i];
            // The perceptron: dx is the gradient of its output and, past the residual, of its input.
            linear_backward(Some(&mut self.wide), two(grad, &block.out), &self.dx, &kept.act, at(&block.out.0), d);
            vector::gelu_backward(&mut self.wide, &kept.fc);
            vector::rescale(&mut self.norm, &kept.hat2, at(&block.ln2.0), at(&block.ln2.1));
            linear_backward(
                Some(&mut self.dmixed),
                two(grad, &block.fc),
                &self.wide,
                &self.norm,
                at(&block.fc.0),
                4 * d,
            );
            let (dw, db) = two(grad, &block.ln2);
            vector::layer_norm_backward(&mut self.dx, dw, db, &self.dmixed, &kept.hat2, &kept.rstd2, at(&block.ln2.0));
            // The attention.
            linear_backward(
                Some(&mut self.dmixed),
                two(grad, &block.proj),
                &self.dx,
                &kept.mixed,
                at(&block.proj.0),
                d,
            );
            self.attend_backward(layout, shard.length, i);
            self.finish_attention(params, block, i, grad, d);
        }
        let tokens = self.dx.chunks_exact(d).zip(&shard.inputs).zip(&shard.positions);
        for ((dx, &token), &position) in tokens.take(rows) {
            let t = layout.wte.start + token as usize * d;
            vector::add(&mut grad[t..t + d], dx);
            let p = layout.wpe.start + position as usize * d;
            vector::add(&mut grad[p..p + d], dx);
        }
    }

    fn finish_attention(&mut self, params: &[f32], block: &Block, i: usize, grad: &mut [f32], d: usize) {
        let at = |r: &Range<usize>| &params[r.clone()];
        let kept = &self.kept[i];
        vector::rescale(&mut self.norm, &kept.hat1, at(&block.ln1.0), at(&block.ln1.1));
        linear_backward(Some(&mut self.dmixed), two(grad, &block.qkv), &self.dqkv, &self.norm, at(&block.qkv.0), 3 * d);
        let (dw, db) = two(grad, &block.ln1);
        vector::layer_norm_backward(&mut self.dx, dw, db, &self.dmixed, &kept.hat1, &kept.rstd1, at(&block.ln1.0));
    }

    /// From the gradient of the mixed values in `dmixed` to that of queries, keys and values in `dqkv`.
    fn attend_backward(&mut self, layout: &Layout, length: usize, i: usize) {
        let (d, hd) = (layout.shape.width, layout.shape.head_width());
        let (stride, factor) = (3 * d, 1.0 / (hd as f32).sqrt());
        let kept = &self.kept[i];
        self.dqkv.fill(0.0);
        let windows = kept.mixed.len() / (length * d);
        for window in 0..windows {
            let row0 = window * length;
            for h in 0..layout.shape.heads {
                let (q, k, v) = (h * hd, d + h * hd, 2 * d + h * hd);
                for start in (0..length).step_by(QUERY_ROWS) {
                    let count = QUERY_ROWS.min(length - start);
                    let seen = start + count;
                    let first = row0 + start;
                    let part = |column: usize, row: usize, rows: usize| {
                        Mat::strided(&kept.qkv[row * stride + column..], rows, hd, stride)
                    };
                    let p = &mut self.scores[..count * seen];
                    product(p, seen, Into::Set, part(q, first, count), part(k, row0, seen).t());
                    for (r, row) in p.chunks_exact_mut(seen).enumerate() {
                        let log_sum = kept.log_sums[(window * layout.shape.heads + h) * length + start + r];
                        vector::softmax_again(&mut row[..=start + r], factor, log_sum);
                        row[start + r + 1..].fill(0.0);
                    }
                    let dout = Mat::strided(&self.dmixed[first * d + h * hd..], count, hd, d);
                    let dp = &mut self.dscores[..count * seen];
                    product(dp, seen, Into::Set, dout, part(v, row0, seen).t());
                    product(&mut self.dqkv[row0 * stride + v..], stride, Into::Add, Mat::new(p, count, seen).t(), dout);
                    for (r, (dp, p)) in dp.chunks_exact_mut(seen).zip(p.chunks_exact(seen)).enumerate() {
                        let at = (first + r) * d + h * hd;
                        let delta = vector::dot(&self.dmixed[at..at + hd], &kept.mixed[at..at + hd]);
                        vector::softmax_backward(dp, p, delta, factor);
                    }
                    let ds = Mat::new(dp, count, seen);
                    product(&mut self.dqkv[first * stride + q..], stride, Into::Set, ds, part(k, row0, seen));
                    product(&mut self.dqkv[row0 * stride + k..], stride, Into::Add, ds.t(), part(q, first, count));
                }
            }
        }
    }
}

/// Causal attention of every window and head; keeps the logarithms of the sums and the mixed values.
fn attend(layout: &Layout, length: usize, kept: &mut Kept, scores: &mut [f32]) {
    let (d, hd) = (layout.shape.width, layout.shape.head_width());
    let (stride, factor) = (3 * d, 1.0 / (hd as f32).sqrt());
    let windows = kept.mixed.len() / (length * d);
    for window in 0..windows {
        let row0 = window * length;
        for h in 0..layout.shape.heads {
            for start in (0..length).step_by(QUERY_ROWS) {
                let count = QUERY_ROWS.min(length - start);
                let seen = start + count;
                let first = row0 + start;
                let part = |column: usize, row: usize, rows: usize| {
                    Mat::strided(&kept.qkv[row * stride + column..], rows, hd, stride)
                };
                let p = &mut scores[..count * seen];
                product(p, seen, Into::Set, part(h * hd, first, count), part(d + h * hd, row0, seen).t());
                for (r, row) in p.chunks_exact_mut(seen).enumerate() {
                    let log_sum = vector::softmax(&mut row[..=start + r], factor);
                    kept.log_sums[(window * layout.shape.heads + h) * length + start + r] = log_sum;
                    row[start + r + 1..].fill(0.0);
                }
                let values = part(2 * d + h * hd, row0, seen);
                product(&mut kept.mixed[first * d + h * hd..], d, Into::Set, Mat::new(p, count, seen), values);
            }
        }
    }
}

/// Gradients of y = x · w + b: `dx` is replaced, weight and bias are added to.
fn linear_backward(
    dx: Option<&mut [f32]>,
    dwb: (&mut [f32], &mut [f32]),
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    outputs: usize,
) {
    let inputs = weight.len() / outputs;
    let rows = dy.len() / outputs;
    let dy_mat = Mat::new(dy, rows, outputs);
    product(dwb.0, outputs, Into::Add, Mat::new(x, rows, inputs).t(), dy_mat);
    vector::sum_rows(dwb.1, dy);
    if let Some(dx) = dx {
        product(dx, inputs, Into::Set, dy_mat, Mat::new(weight, inputs, outputs).t());
    }
}
