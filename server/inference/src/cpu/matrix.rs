//! A matrix in its final layout: tiles of sixteen outputs, inputs ascending, ready to be streamed.

use super::Quant;
use super::memory::{Arena, Piece, Shared};
use crate::format::{Dtype, FormatError, Place, Weight};
use crate::kernels::lanes::LANES;
use crate::kernels::linear::Storage;
use crate::kernels::rows::GROUP;
use crate::pool::Pool;
use half::f16;
use std::sync::Mutex;

/// Why a matrix cannot be packed whose size overflows.
pub(crate) const TOO_LARGE: &str = "it is too large for this machine";

/// A packed matrix.
pub(crate) struct Matrix {
    pub(crate) storage: Storage,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) tiles: usize,
    pub(crate) tile_bytes: usize,
    data: Piece,
    /// One for each output of every tile.
    bias: Option<Vec<f32>>,
}

/// A matrix to be packed: tensors of the file, concatenated or in pairs.
pub(crate) struct Plan<'a> {
    pub(crate) parts: Vec<Weight<'a>>,
    pub(crate) biases: Vec<Option<Weight<'a>>>,
    /// Tiles of two parts alternate: gate and up.
    pub(crate) paired: bool,
    pub(crate) storage: Storage,
}

impl<'a> Plan<'a> {
    /// A plan for tensors with the same number of inputs. Without a requested storage, the file's is used.
    pub(crate) fn new(
        parts: Vec<Weight<'a>>,
        biases: Vec<Option<Weight<'a>>>,
        paired: bool,
        wish: Option<Quant>,
    ) -> Self {
        let storage = match wish {
            Some(Quant::F32) => Storage::F32,
            Some(Quant::F16) => Storage::F16,
            Some(Quant::Q8_0) => Storage::Q8,
            None if parts.iter().any(|p| p.dtype.block().0 > 1) => Storage::Q8,
            // bf16 has a range that f16 lacks: f32 holds both.
            None if parts.iter().any(|p| p.dtype != Dtype::F16) => Storage::F32,
            None => Storage::F16,
        };
        Plan { parts, biases, paired, storage }
    }

    fn inputs(&self) -> usize {
        self.parts.first().map_or(0, |p| p.columns)
    }

    fn outputs(&self) -> usize {
        self.parts.iter().map(|p| p.rows).sum()
    }

    fn tiles(&self) -> usize {
        match self.paired {
            true => 2 * self.outputs().div_ceil(2).div_ceil(LANES),
            false => self.outputs().div_ceil(LANES),
        }
    }

    fn tile_bytes(&self) -> Option<usize> {
        let inputs = self.inputs();
        let bytes = match self.storage {
            Storage::F32 => inputs.checked_mul(LANES * 4),
            Storage::F16 => inputs.checked_mul(LANES * 2),
            Storage::Q8 => inputs.div_ceil(GROUP).checked_mul(LANES * (GROUP + 2)),
        };
        bytes?.checked_next_multiple_of(64)
    }

    /// Bytes that the packed matrix takes, if they can be counted.
    pub(crate) fn bytes(&self) -> Option<usize> {
        Some(Arena::rounded(self.tiles().checked_mul(self.tile_bytes()?)?))
    }

    /// Which part, and which of its rows, an output of a tile comes from.
    fn source(&self, tile: usize, lane: usize) -> Option<(usize, usize)> {
        if self.paired {
            let (part, row) = (tile % 2, tile / 2 * LANES + lane);
            return (row < self.parts[part].rows).then_some((part, row));
        }
        let mut row = tile * LANES + lane;
        for (i, part) in self.parts.iter().enumerate() {
            if row < part.rows {
                return Some((i, row));
            }
            row -= part.rows;
        }
        None
    }

    /// Reads, converts and packs.
    pub(crate) fn pack(&self, arena: &mut Arena, pool: &mut Pool) -> Result<Matrix, FormatError> {
        let tiles = self.tiles();
        let sizes = self.tile_bytes().and_then(|each| Some((each, tiles.checked_mul(each)?)));
        let Some((tile_bytes, bytes)) = sizes else { return Err(broken(&self.parts[0], TOO_LARGE)) };
        let mut data = arena.take(bytes);
        let to = Shared::of(data.as_mut_ptr());
        let problem: Mutex<Option<FormatError>> = Mutex::new(None);
        let each = tiles.div_ceil(4 * pool.threads()).max(1);
        let pieces = tiles.div_ceil(each);
        pool.run(pieces, &|_, piece| {
            let mut rows = vec![0f32; LANES * self.inputs().next_multiple_of(GROUP)];
            for tile in piece * each..((piece + 1) * each).min(tiles) {
                // SAFETY: tiles are disjoint and within the piece of memory.
                let out = unsafe { std::slice::from_raw_parts_mut(to.at(tile * tile_bytes), tile_bytes) };
                if let Err(e) = self.pack_tile(tile, &mut rows, out) {
                    problem.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                    return;
                }
            }
        });
        if let Some(problem) = problem.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(problem);
        }
        Ok(Matrix {
            storage: self.storage,
            outputs: self.outputs(),
            inputs: self.inputs(),
            tiles,
            tile_bytes,
            data,
            bias: self.bias(),
        })
    }

    fn bias(&self) -> Option<Vec<f32>> {
        if self.biases.iter().all(Option::is_none) {
            return None;
        }
        let biases: Vec<Option<Vec<f32>>> = self.biases.iter().map(|b| b.as_ref().map(Weight::vector)).collect();
        let mut out = vec![0f32; self.tiles() * LANES];
        for (i, y) in out.iter_mut().enumerate() {
            if let Some((part, row)) = self.source(i / LANES, i % LANES)
                && let Some(Some(bias)) = biases.get(part)
            {
                *y = bias[row];
            }
        }
        Some(out)
    }

    fn pack_tile(&self, tile: usize, rows: &mut [f32], out: &mut [u8]) -> Result<(), FormatError> {
        let inputs = self.inputs();
        let stride = inputs.next_multiple_of(GROUP);
        let groups = stride / GROUP;
        let mut lane = 0;
        rows.fill(0.0);
        while lane < LANES {
            let Some((part, row)) = self.source(tile, lane) else { break };
            // As many rows as lie together in the file.
            let run =
                (1..LANES - lane).take_while(|n| self.source(tile, lane + n) == Some((part, row + n))).count() + 1;
            let weight = &self.parts[part];
            if self.storage == Storage::Q8 && weight.dtype == Dtype::Q8_0 {
                for n in 0..run {
                    if let Some(blocks) = weight.row_bytes(row + n) {
                        copy_blocks(weight, blocks, groups, lane + n, out)?;
                    }
                }
            } else {
                let to = &mut rows[lane * stride..];
                weight.decode_rows(row, run, to, stride);
                for n in 0..run {
                    let of_row = &to[n * stride..][..stride];
                    if !of_row.iter().all(|v| v.is_finite()) {
                        return Err(broken(weight, "it holds numbers that are not finite"));
                    }
                    if self.storage == Storage::Q8 {
                        quantize_row(weight, of_row, groups, lane + n, out)?;
                    }
                }
            }
            lane += run;
        }
        match self.storage {
            Storage::Q8 => fill_empty_lanes(lane, groups, out),
            Storage::F32 => {
                for (i, to) in out.chunks_exact_mut(4).enumerate().take(inputs * LANES) {
                    to.copy_from_slice(&rows[i % LANES * stride + i / LANES].to_le_bytes());
                }
            }
            Storage::F16 => {
                for (i, to) in out.chunks_exact_mut(2).enumerate().take(inputs * LANES) {
                    let half = f16::from_f32(rows[i % LANES * stride + i / LANES]);
                    if !half.is_finite() {
                        return Err(broken(&self.parts[0], "it holds numbers that are too large for f16"));
                    }
                    to.copy_from_slice(&half.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

fn broken(weight: &Weight<'_>, cause: &str) -> FormatError {
    FormatError::broken(weight.file, Place::Tensor(weight.name.clone()), cause)
}

/// Where the four bytes of a quad of a lane are.
fn quad_at(group: usize, quad: usize, lane: usize) -> usize {
    (group * GROUP / 4 + quad) * 4 * LANES + lane * 4
}

/// Where the scale of a lane is.
fn scale_at(groups: usize, group: usize, lane: usize) -> usize {
    groups * GROUP * LANES + (group * LANES + lane) * 2
}

/// Blocks of a q8_0 file, as they are.
fn copy_blocks(
    weight: &Weight<'_>,
    blocks: &[u8],
    groups: usize,
    lane: usize,
    out: &mut [u8],
) -> Result<(), FormatError> {
    for (g, block) in blocks.chunks_exact(2 + GROUP).enumerate() {
        if !f16::from_le_bytes([block[0], block[1]]).is_finite() {
            return Err(broken(weight, "it holds scales that are not finite"));
        }
        out[scale_at(groups, g, lane)..][..2].copy_from_slice(&block[..2]);
        for (quad, bytes) in block[2..].chunks_exact(4).enumerate() {
            for (to, byte) in out[quad_at(g, quad, lane)..][..4].iter_mut().zip(bytes) {
                *to = byte ^ 0x80;
            }
        }
    }
    Ok(())
}

/// As ggml does it: the scale is a 127th of the largest magnitude; numbers are rounded with the scale before it became f16.
fn quantize_row(
    weight: &Weight<'_>,
    row: &[f32],
    groups: usize,
    lane: usize,
    out: &mut [u8],
) -> Result<(), FormatError> {
    for (g, numbers) in row.chunks_exact(GROUP).enumerate() {
        let largest = numbers.iter().fold(0f32, |m, v| m.max(v.abs()));
        let scale = largest / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let half = f16::from_f32(scale);
        if !half.is_finite() {
            return Err(broken(weight, "it holds numbers that are too large for q8_0"));
        }
        out[scale_at(groups, g, lane)..][..2].copy_from_slice(&half.to_le_bytes());
        for (i, v) in numbers.iter().enumerate() {
            // A scale too small for a normal number has no inverse; its values round to zero in f16, too.
            let q = (v * inverse).round().clamp(-127.0, 127.0) as i8;
            out[quad_at(g, i / 4, lane) + i % 4] = q as u8 ^ 0x80;
        }
    }
    Ok(())
}

/// Outputs that only fill up the last tile: zero, whatever comes in.
fn fill_empty_lanes(first: usize, groups: usize, out: &mut [u8]) {
    for lane in first..LANES {
        for g in 0..groups {
            for quad in 0..GROUP / 4 {
                out[quad_at(g, quad, lane)..][..4].fill(0x80);
            }
            out[scale_at(groups, g, lane)..][..2].fill(0);
        }
    }
}

impl Matrix {
    /// Inputs as the kernels count them.
    pub(crate) fn padded_inputs(&self) -> usize {
        match self.storage {
            Storage::Q8 => self.inputs.next_multiple_of(GROUP),
            Storage::F32 | Storage::F16 => self.inputs,
        }
    }

    pub(crate) fn weights(&self) -> *const u8 {
        self.data.as_ptr()
    }

    pub(crate) fn bias(&self) -> *const f32 {
        self.bias.as_ref().map_or(std::ptr::null(), |b| b.as_ptr())
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        (self.data.len() + self.bias.as_ref().map_or(0, |b| b.len() * 4)) as u64
    }

    /// The weights of one output as numbers: a row of the token table.
    pub(crate) fn row(&self, output: usize, to: &mut [f32]) {
        let lane = output % LANES;
        let tile = &self.data.bytes()[output / LANES * self.tile_bytes..][..self.tile_bytes];
        match self.storage {
            Storage::F32 => {
                for (i, y) in to.iter_mut().enumerate() {
                    let at = (i * LANES + lane) * 4;
                    *y = f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]);
                }
            }
            Storage::F16 => {
                for (i, y) in to.iter_mut().enumerate() {
                    let at = (i * LANES + lane) * 2;
                    *y = f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32();
                }
            }
            Storage::Q8 => {
                let groups = self.inputs.div_ceil(GROUP);
                for (g, numbers) in to.chunks_mut(GROUP).enumerate() {
                    let at = scale_at(groups, g, lane);
                    let scale = f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32();
                    for (i, y) in numbers.iter_mut().enumerate() {
                        let byte = tile[quad_at(g, i / 4, lane) + i % 4] ^ 0x80;
                        *y = f32::from(byte as i8) * scale;
                    }
                }
            }
        }
    }
}
