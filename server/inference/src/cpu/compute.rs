//! Runs the kernels on rows, split over threads where the work is large enough.

use super::NormWeights;
use super::kv::Kv;
use super::matrix::{Matrix, Segment};
use super::memory::Shared;
use super::step::{AttendPiece, Row, slice};
use crate::family::{Architecture, Norm};
use crate::kernels::Kernels;
use crate::kernels::attention::{Attend, Piece, padded};
use crate::kernels::linear::{Linear, Then};
use crate::kernels::rows::GROUP;
use crate::pool::{MOST_PIECES, Pool};
use std::ops::Range;

/// Work (in multiplications, roughly) below which a region is not worth sharing.
const WORTH_SHARING: usize = 16 << 10;

/// The residual stream, and the buffer for its normalised rows.
#[derive(Clone, Copy)]
pub(super) struct Stream {
    pub(super) x: Shared<f32>,
    pub(super) normed: Shared<f32>,
    pub(super) stride: usize,
}

/// Quantized rows: the inputs of the next matrix.
pub(super) struct QuantizedRows {
    bytes: Vec<i8>,
    /// Of each group.
    scales: Vec<f32>,
    /// Of each half of a group.
    totals: Vec<i32>,
}

impl QuantizedRows {
    /// For a number of rows of at most `widest` inputs, a multiple of [`GROUP`].
    pub(super) fn new(rows: usize, widest: usize) -> QuantizedRows {
        let groups = rows * widest / GROUP;
        QuantizedRows { bytes: vec![0; rows * widest], scales: vec![0.0; groups], totals: vec![0; 2 * groups] }
    }

    /// Bytes of such buffers.
    pub(super) fn size(rows: usize, widest: usize) -> usize {
        rows * widest + 12 * (rows * widest / GROUP)
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.bytes.len() + 4 * (self.scales.len() + self.totals.len())
    }
}

/// The kernels, the pool, and the quantized inputs between them.
pub(super) struct Compute<'a> {
    pub(super) kernels: Kernels,
    pub(super) pool: &'a mut Pool,
    bytes: Shared<i8>,
    scales: Shared<f32>,
    totals: Shared<i32>,
}

impl<'a> Compute<'a> {
    pub(super) fn new(kernels: Kernels, pool: &'a mut Pool, quantized: &mut QuantizedRows) -> Compute<'a> {
        let QuantizedRows { bytes, scales, totals } = quantized;
        let (bytes, scales, totals) = (Shared::new(bytes), Shared::new(scales), Shared::new(totals));
        Compute { kernels, pool, bytes, scales, totals }
    }

    /// Calls `work` for each row, shared when rows of `width` numbers are worth it.
    pub(super) fn each_row(&mut self, rows: usize, width: usize, work: &(dyn Fn(usize) + Sync)) {
        if rows * width < WORTH_SHARING {
            return (0..rows).for_each(work);
        }
        let each = rows.div_ceil(4 * self.pool.threads());
        self.pool.run(rows.div_ceil(each), &|_, piece| (piece * each..((piece + 1) * each).min(rows)).for_each(work));
    }

    /// The residual stream as input of a matrix: normalised, if the family does so.
    pub(super) fn input(
        &mut self,
        a: &Architecture,
        by: Option<&NormWeights>,
        stream: Stream,
        rows: usize,
        next: &Matrix,
    ) -> Shared<f32> {
        match by {
            Some(by) => {
                self.norm(a, by, stream.x, stream.normed, stream.stride, rows, next);
                stream.normed
            }
            None => {
                self.quantize(next, stream.x, stream.stride, rows);
                stream.x
            }
        }
    }

    /// Adds rows times a matrix to the residual stream, normalised if the family does so.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn add(
        &mut self,
        a: &Architecture,
        matrix: &Matrix,
        from: Shared<f32>,
        from_stride: usize,
        rows: usize,
        by: Option<&NormWeights>,
        stream: Stream,
    ) {
        let Stream { x, normed, stride } = stream;
        self.quantize(matrix, from, from_stride, rows);
        let Some(by) = by else {
            return self.linear(matrix, from, from_stride, rows, x, stride, Then::Add);
        };
        self.linear(matrix, from, from_stride, rows, normed, stride, Then::Store);
        let (kernels, width, eps) = (self.kernels, a.width, a.norm.eps());
        self.each_row(rows, 4 * width, &|r| {
            // SAFETY: each row is written by one thread and lies within its buffer; the kernels' CPU was checked.
            let (to, added) = unsafe {
                let row = normed.at(r * stride);
                (kernels.rms_norm)(row, by.weight.as_ptr(), width, eps, row);
                (slice(x.at(r * stride), width), slice(row, width))
            };
            to.iter_mut().zip(added).for_each(|(y, z)| *y += *z);
        });
    }

    /// Normalises rows as inputs of a matrix.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn norm(
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
    pub(super) fn quantize(&mut self, next: &Matrix, from: Shared<f32>, stride: usize, rows: usize) {
        if next.quantizes_rows() {
            let quantizer = self.quantizer(next);
            // SAFETY: each row is written by one thread and lies within its buffer.
            self.each_row(rows, 2 * next.inputs, &|r| unsafe { quantizer(r, from.at(r * stride)) });
        }
    }

    /// Quantizes a row as an input of a matrix; nothing for matrices that want numbers.
    fn quantizer(&self, next: &Matrix) -> impl Fn(usize, *const f32) + Sync + use<> {
        let (kernels, bytes, scales, totals) = (self.kernels, self.bytes, self.scales, self.totals);
        let inputs = next.padded_inputs();
        let groups = if next.quantizes_rows() { inputs / GROUP } else { 0 };
        move |r, row| {
            if groups > 0 {
                // SAFETY: each row is written by one thread and lies within the buffers, which fit the widest input.
                unsafe {
                    let (scales, totals) = (scales.at(r * groups), totals.at(2 * r * groups));
                    (kernels.quantize)(row, groups, bytes.at(r * inputs), scales, totals);
                }
            }
        }
    }

    /// Rows times a matrix. For quantized matrices the inputs were quantized before.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn linear(
        &mut self,
        matrix: &Matrix,
        from: Shared<f32>,
        stride: usize,
        rows: usize,
        to: Shared<f32>,
        to_stride: usize,
        then: Then,
    ) {
        let gated = then.gated();
        let job = |segment: &Segment| {
            // SAFETY: first elements of buffers.
            unsafe {
                Linear {
                    storage: segment.storage,
                    weights: matrix.weights(segment),
                    tile_bytes: segment.tile_bytes,
                    first_tile: segment.tiles.start,
                    inputs: matrix.padded_inputs(),
                    outputs: if gated { matrix.outputs / 2 } else { matrix.outputs },
                    bias: matrix.bias(),
                    rows,
                    numbers: from.at(0),
                    numbers_stride: stride,
                    bytes: self.bytes.at(0),
                    scales: self.scales.at(0),
                    totals: self.totals.at(0),
                    out: to.at(0),
                    out_stride: to_stride,
                    then,
                }
            }
        };
        let kernels = self.kernels;
        let run = |tiles: Range<usize>| {
            for segment in &matrix.segments {
                let part = tiles.start.max(segment.tiles.start)..tiles.end.min(segment.tiles.end);
                if !part.is_empty() {
                    // SAFETY: the buffers hold the rows; the kernels' CPU was checked; threads have disjoint tiles.
                    unsafe { (kernels.linear)(&job(segment), part) }
                }
            }
        };
        let tiles = matrix.tiles;
        if rows * tiles * matrix.padded_inputs() * 16 < 2 * WORTH_SHARING {
            return run(0..tiles);
        }
        // Few pieces keep claims cheap, many keep the ends even; pairs of tiles stay together.
        let pieces = self.pool.threads() * if tiles >= 256 { 16 } else { 4 };
        let each = tiles.div_ceil(pieces).next_multiple_of(2);
        self.pool.run(tiles.div_ceil(each), &|_, piece| run(piece * each..((piece + 1) * each).min(tiles)));
    }

    pub(super) fn attend(&mut self, job: &Attend, pieces: &[AttendPiece], kv: &Kv, rows: &[Row]) {
        let kernels = self.kernels;
        let one = |worker: usize, piece: &AttendPiece| {
            let AttendPiece { slot, row, rows, position, heads } = *piece;
            let piece = Piece { table: kv.table(slot), row, rows, position, heads: heads.0..heads.1 };
            // SAFETY: rows and heads of pieces are disjoint, each thread has its scratch, positions were reserved.
            unsafe { (kernels.attend)(job, &piece, worker) }
        };
        let work: usize = rows
            .iter()
            .map(|r| 2 * (r.position + 1).min(job.window) * job.kv_heads * job.group * padded(job.head_dim))
            .sum();
        if work < 2 * WORTH_SHARING {
            return pieces.iter().for_each(|piece| one(0, piece));
        }
        let each = pieces.len().div_ceil(MOST_PIECES);
        self.pool.run(pieces.len().div_ceil(each), &|worker, piece| {
            pieces[piece * each..((piece + 1) * each).min(pieces.len())].iter().for_each(|p| one(worker, p));
        });
    }
}
