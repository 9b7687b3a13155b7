//! A tensor in its file, read row by row as outputs × inputs, however the file has it.

use super::{Dtype, Tensor};
use std::borrow::Cow;
use std::path::Path;

/// A matrix (or a vector, as one row) in a mapped file.
#[derive(Debug)]
pub struct Weight<'a> {
    pub(crate) file: &'a Path,
    pub(crate) name: String,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Exactly the bytes of `rows · columns` numbers.
    pub(crate) bytes: &'a [u8],
    pub(crate) layout: Layout,
}

/// How a file arranges a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Outputs × inputs.
    Plain,
    /// Inputs × outputs. Only unblocked types are stored so.
    Transposed,
    /// Outputs × inputs, the two halves of each head's outputs interleaved.
    Interleaved {
        /// Outputs of a head.
        head_dim: usize,
    },
}

impl<'a> Weight<'a> {
    /// A tensor that was checked to have `shape` (outputs × inputs, or the length of a vector), as its file arranges it.
    pub(super) fn new(tensor: Tensor<'a>, shape: &[usize], layout: Layout) -> Weight<'a> {
        let Tensor { file, name, dtype, bytes, .. } = tensor;
        let (rows, columns) = if shape.len() == 2 { (shape[0], shape[1]) } else { (1, shape[0]) };
        Weight { file, name: name.to_owned(), dtype, rows, columns, bytes, layout }
    }

    /// The first `rows` outputs and the rest, of a matrix that is stored as outputs × inputs.
    pub(crate) fn split(self, rows: usize) -> Option<(Weight<'a>, Weight<'a>)> {
        let each = self.dtype.bytes(self.columns).filter(|_| self.layout == Layout::Plain)?;
        let (first, rest) = self.bytes.split_at_checked(each.checked_mul(rows)?)?;
        let part = |rows, bytes| Weight { name: self.name.clone(), rows, bytes, ..self };
        Some((part(rows, first), part(self.rows.checked_sub(rows)?, rest)))
    }

    /// Which row of the file holds an output.
    fn stored_row(&self, row: usize) -> usize {
        match self.layout {
            Layout::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, i) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * i + half
            }
            Layout::Plain | Layout::Transposed => row,
        }
    }

    /// The stored blocks of an output's row; `None` when they do not lie together.
    pub(crate) fn row_bytes(&self, row: usize) -> Option<&[u8]> {
        if self.layout == Layout::Transposed {
            return None;
        }
        let length = self.dtype.bytes(self.columns)?;
        let from = self.stored_row(row) * length;
        self.bytes.get(from..from + length)
    }

    /// The stored bytes of all outputs in their order; `None` when they do not lie together.
    pub fn outputs(&self) -> Option<Cow<'a, [u8]>> {
        match self.layout {
            Layout::Plain => Some(self.bytes.into()),
            Layout::Interleaved { .. } => {
                let rows: Option<Vec<&[u8]>> = (0..self.rows).map(|row| self.row_bytes(row)).collect();
                Some(rows?.concat().into())
            }
            Layout::Transposed => None,
        }
    }

    /// Decodes outputs `first..` into rows of `to`, `columns` numbers each, `stride` apart.
    pub fn decode_rows(&self, first: usize, count: usize, to: &mut [f32], stride: usize) {
        if self.layout == Layout::Transposed {
            let (_, width) = self.dtype.block();
            let mut part = [0f32; 64];
            for from in (0..count).step_by(part.len()) {
                let many = (count - from).min(part.len());
                for i in 0..self.columns {
                    let at = (i * self.rows + first + from) * width;
                    self.dtype.decode(&self.bytes[at..at + many * width], &mut part[..many]);
                    for (lane, y) in part[..many].iter().enumerate() {
                        to[(from + lane) * stride + i] = *y;
                    }
                }
            }
            return;
        }
        for lane in 0..count {
            if let Some(bytes) = self.row_bytes(first + lane) {
                self.dtype.decode(bytes, &mut to[lane * stride..][..self.columns]);
            }
        }
    }

    /// All numbers of a vector.
    pub fn vector(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.columns];
        match self.layout {
            // A bias of queries or keys is arranged as their rows.
            Layout::Interleaved { .. } if self.rows == 1 => {
                let mut stored = out.clone();
                self.dtype.decode(self.bytes, &mut stored);
                for (i, y) in out.iter_mut().enumerate() {
                    *y = stored[self.stored_row(i)];
                }
            }
            _ => self.decode_rows(0, self.rows, &mut out, self.columns),
        }
        out
    }
}
