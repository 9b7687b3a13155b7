//! A matrix in its final layout: tiles of sixteen outputs, inputs ascending, ready to be streamed.

use super::Quant;
use super::memory::{Arena, Piece, Shared};
use crate::format::{Block, Code, Dtype, FormatError, Place, Weight};
use crate::kernels::coded::{self, Plane};
use crate::kernels::lanes::LANES;
use crate::kernels::linear::Storage;
use crate::kernels::rows::GROUP;
use crate::pool::Pool;
use half::{bf16, f16};
use quantize::{Loss, Q4_0_BYTES, to_bytes, to_q4_0};
use std::ops::Range;
use std::sync::Mutex;

pub(crate) mod quantize;

/// Why a matrix cannot be packed whose size overflows.
pub(crate) const TOO_LARGE: &str = "it is too large for this machine";

/// A packed matrix.
pub(crate) struct Matrix {
    /// Tiles in ascending order. All quantize rows, or none does.
    pub(crate) segments: Vec<Segment>,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) tiles: usize,
    data: Piece,
    /// One for each output of every tile.
    bias: Option<Vec<f32>>,
    /// What quantization at load took from the weights.
    pub(crate) loss: Loss,
}

/// Tiles of a matrix that are stored alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) storage: Storage,
    pub(crate) tiles: Range<usize>,
    pub(crate) tile_bytes: usize,
    /// Where the first tile begins.
    start: usize,
}

impl Segment {
    /// Where the bytes of a tile are.
    fn place(&self, tile: usize) -> Range<usize> {
        let start = self.start + (tile - self.tiles.start) * self.tile_bytes;
        start..start + self.tile_bytes
    }

    /// Where the last tile ends.
    fn end(&self) -> usize {
        self.start + self.tiles.len() * self.tile_bytes
    }
}

/// A matrix to be packed: tensors of the file, concatenated or in pairs.
pub(crate) struct Plan<'a> {
    pub(crate) parts: Vec<Weight<'a>>,
    pub(crate) biases: Vec<Option<Weight<'a>>>,
    /// Tiles of two parts alternate: gate and up.
    pub(crate) paired: bool,
    /// Of each part.
    storages: Vec<Storage>,
}

impl<'a> Plan<'a> {
    /// A plan for tensors with the same number of inputs. Without a requested storage, the file's is used.
    pub(crate) fn new(
        parts: Vec<Weight<'a>>,
        biases: Vec<Option<Weight<'a>>>,
        paired: bool,
        wish: Option<Quant>,
    ) -> Self {
        let all = |storage| vec![storage; parts.len()];
        // Each part its own, where no tile gets two.
        let each = |storage: fn(&Weight<'_>) -> Storage, else_all| {
            let own: Vec<Storage> = parts.iter().map(storage).collect();
            let alike = own.iter().all(|storage| Some(storage) == own.first());
            // A tile has one storage: outputs of different parts must not meet in it.
            let apart = !paired && parts.iter().rev().skip(1).all(|p| p.rows.is_multiple_of(LANES));
            if alike || apart { own } else { all(else_all) }
        };
        let stored_as = |dtype| parts.iter().all(|p| p.dtype == dtype);
        let storages = match wish {
            Some(Quant::F32) => all(Storage::F32),
            Some(Quant::F16) => all(Storage::F16),
            Some(Quant::Q8_0) => all(Storage::Q8),
            Some(Quant::Q4_0) => each(small_storage, Q4_0),
            None if parts.iter().any(|p| p.dtype.block().0 > 1) => each(own_storage, Storage::Q8),
            None if stored_as(Dtype::F16) => all(Storage::F16),
            None if stored_as(Dtype::Bf16) => all(Storage::Bf16),
            // bf16 has a range that f16 lacks: f32 holds both.
            None => all(Storage::F32),
        };
        Plan { parts, biases, paired, storages }
    }

    /// Each part and how it is stored.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&Weight<'a>, Storage)> {
        self.parts.iter().zip(self.storages.iter().copied())
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

    fn tile_bytes(&self, storage: Storage) -> Option<usize> {
        let inputs = self.inputs();
        let bytes = match storage {
            Storage::F32 => inputs.checked_mul(LANES * 4),
            Storage::F16 | Storage::Bf16 => inputs.checked_mul(LANES * 2),
            Storage::Q8 => inputs.div_ceil(GROUP).checked_mul(LANES * (GROUP + 2)),
            Storage::Coded(code) => coded::tile_bytes(code.format(), inputs),
        };
        bytes?.checked_next_multiple_of(64)
    }

    /// How the tiles lie in memory, if their sizes can be counted.
    fn segments(&self) -> Option<Vec<Segment>> {
        let mut segments: Vec<Segment> = Vec::new();
        let (mut tile, tiles) = (0, self.tiles());
        // Tiles of pairs are stored alike; else the parts follow each other.
        let whole = self.paired || self.storages.iter().all(|storage| Some(storage) == self.storages.first());
        for (part, storage) in self.stored() {
            let end = if whole { tiles } else { tile + part.rows.div_ceil(LANES) };
            let (start, tile_bytes) = (segments.last().map_or(0, Segment::end), self.tile_bytes(storage)?);
            start.checked_add((end - tile).checked_mul(tile_bytes)?)?;
            if tile < end {
                segments.push(Segment { storage, tiles: tile..end, tile_bytes, start });
            }
            tile = end;
        }
        Some(segments)
    }

    /// Bytes of all tiles.
    fn tile_total(&self) -> Option<usize> {
        Some(self.segments()?.last().map_or(0, Segment::end))
    }

    /// Bytes that the packed matrix takes, if they can be counted.
    pub(crate) fn bytes(&self) -> Option<usize> {
        Some(Arena::rounded(self.tile_total()?))
    }

    /// What [`Matrix::bytes`] of the packed matrix is, if it can be counted.
    pub(crate) fn held(&self) -> Option<u64> {
        let bias = if self.biases.iter().any(Option::is_some) { LANES * 4 } else { 0 };
        Some(self.tile_total()?.checked_add(self.tiles().checked_mul(bias)?)? as u64)
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
        let segments = self.counted()?;
        let mut data = arena.take(segments.last().map_or(0, Segment::end));
        let to = Shared::of(data.as_mut_ptr());
        let loss = self.each_tile(pool, &segments, &|segment, tile, rows, _| {
            let place = segment.place(tile);
            // SAFETY: tiles are disjoint and within the piece of memory.
            let out = unsafe { std::slice::from_raw_parts_mut(to.at(place.start), place.len()) };
            self.pack_tile(segment.storage, tile, rows, out)
        })?;
        let (outputs, inputs, tiles) = (self.outputs(), self.inputs(), self.tiles());
        Ok(Matrix { segments, outputs, inputs, tiles, data, bias: self.bias(), loss })
    }

    /// Reads and converts as [`Plan::pack`] does, and keeps nothing: the values of a file are checked without its memory.
    pub(crate) fn check(&self, pool: &mut Pool) -> Result<Loss, FormatError> {
        self.each_tile(pool, &self.counted()?, &|segment, tile, rows, out| {
            out.clear();
            out.resize(segment.tile_bytes, 0);
            self.pack_tile(segment.storage, tile, rows, out)
        })
    }

    fn counted(&self) -> Result<Vec<Segment>, FormatError> {
        self.segments().ok_or_else(|| broken(&self.parts[0], TOO_LARGE))
    }

    /// Calls `work` for each tile, with room for its rows and for its bytes; ends with the first problem.
    fn each_tile(&self, pool: &mut Pool, segments: &[Segment], work: &TileWork<'_>) -> Result<Loss, FormatError> {
        let tiles = self.tiles();
        let result = Mutex::new(Ok(Loss::default()));
        let each = tiles.div_ceil(4 * pool.threads()).max(1);
        pool.run(tiles.div_ceil(each), &|_, piece| {
            let mut rows = vec![0f32; LANES * self.inputs().next_multiple_of(GROUP)];
            let mut out = Vec::new();
            for tile in piece * each..((piece + 1) * each).min(tiles) {
                let segment = segments.iter().find(|segment| segment.tiles.contains(&tile));
                let Some(done) = segment.map(|segment| work(segment, tile, &mut rows, &mut out)) else { continue };
                let mut result = result.lock().unwrap_or_else(|e| e.into_inner());
                match (result.as_mut(), done) {
                    (Ok(so_far), Ok(loss)) => so_far.add(loss),
                    (Ok(_), Err(problem)) => *result = Err(problem),
                    (Err(_), _) => return,
                }
            }
        });
        result.into_inner().unwrap_or_else(|e| e.into_inner())
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

    /// Writes a tile; `out` is zero.
    fn pack_tile(&self, storage: Storage, tile: usize, rows: &mut [f32], out: &mut [u8]) -> Result<Loss, FormatError> {
        let mut loss = Loss::default();
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
            if storage.quantizes_rows() && storage == own_storage(weight) && weight.dtype.block().0 > 1 {
                for n in 0..run {
                    let Some(blocks) = weight.row_bytes(row + n) else { continue };
                    match storage {
                        Storage::Coded(code) => copy_codes(weight, code, blocks, groups, lane + n, out)?,
                        _ => copy_blocks(weight, blocks, groups, lane + n, out)?,
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
                    match storage {
                        Storage::Q8 => loss.add(quantize_row(weight, of_row, groups, lane + n, out)?),
                        // Numbers become no other codes: see `Plan::new`.
                        Storage::Coded(_) => {
                            let (blocks, of_row) = q4_0_row(weight, of_row)?;
                            copy_codes(weight, Code::Q4_0, &blocks, groups, lane + n, out)?;
                            loss.add(of_row);
                        }
                        Storage::F32 | Storage::F16 | Storage::Bf16 => {}
                    }
                }
            }
            lane += run;
        }
        match storage {
            // Lanes without an output have scales of zero.
            Storage::Coded(_) => {}
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
            Storage::Bf16 => {
                for (i, to) in out.chunks_exact_mut(2).enumerate().take(inputs * LANES) {
                    // Exact: the file has bf16.
                    let number = bf16::from_f32(rows[i % LANES * stride + i / LANES]);
                    to.copy_from_slice(&number.to_le_bytes());
                }
            }
        }
        Ok(loss)
    }
}

const Q4_0: Storage = Storage::Coded(Code::Q4_0);

fn broken(weight: &Weight<'_>, cause: &str) -> FormatError {
    FormatError::broken(weight.file, Place::Tensor(weight.name.clone()), cause)
}

/// How a part is stored beside parts in blocks.
fn own_storage(part: &Weight<'_>) -> Storage {
    match part.dtype {
        Dtype::Coded(code) => Storage::Coded(code),
        _ => Storage::Q8,
    }
}

/// How a part is stored where 4 bits are requested: not in more, and as in the file where that has no more.
fn small_storage(part: &Weight<'_>) -> Storage {
    match part.dtype {
        Dtype::Coded(code) if code.format().is_no_larger(Code::Q4_0.format()) => Storage::Coded(code),
        _ => Q4_0,
    }
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

/// Blocks of codes, as they are: the layout is that of [`coded`]. `out` is zero.
fn copy_codes(
    weight: &Weight<'_>,
    code: Code,
    blocks: &[u8],
    groups: usize,
    lane: usize,
    out: &mut [u8],
) -> Result<(), FormatError> {
    let format = code.format();
    let (codes, heads) = out.split_at_mut(groups * coded::group_bytes(format));
    let per_block = format.numbers / GROUP;
    let mut block = Block::EMPTY;
    for (b, bytes) in blocks.chunks_exact(format.bytes()).enumerate() {
        block.read(format, bytes);
        if !block.is_finite(format) {
            return Err(broken(weight, "it holds scales that are not finite"));
        }
        for (g, numbers) in block.codes[..format.numbers].chunks_exact(GROUP).enumerate() {
            let group = &mut codes[(b * per_block + g) * coded::group_bytes(format)..];
            for plane in Plane::both(format).into_iter().filter(|plane| plane.bits > 0) {
                for (i, code) in numbers.iter().enumerate() {
                    let (vector, bit) = plane.place(i / 4);
                    let bits = code >> plane.from_bit & ((1 << plane.bits) - 1) as u8;
                    group[vector + lane * 4 + i % 4] |= bits << bit;
                }
            }
        }
        let head = &mut heads[b * format.head() * LANES..][..format.head() * LANES];
        let (halves, words) = head.split_at_mut(format.halves() * LANES * 2);
        for (to, half) in halves.chunks_exact_mut(LANES * 2).zip(block.halves) {
            to[lane * 2..][..2].copy_from_slice(&half.to_le_bytes());
        }
        for (to, word) in words.chunks_exact_mut(LANES * 4).zip(block.words) {
            to[lane * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }
    Ok(())
}

/// Numbers of the blocks of a lane: what [`copy_codes`] wrote.
fn decode_codes(code: Code, tile: &[u8], groups: usize, lane: usize, to: &mut [f32]) {
    let format = code.format();
    let (codes, heads) = tile.split_at(groups * coded::group_bytes(format));
    let per_block = format.numbers / GROUP;
    let mut block = Block::EMPTY;
    for (b, to) in to.chunks_mut(format.numbers).enumerate() {
        for (g, numbers) in block.codes[..format.numbers].chunks_exact_mut(GROUP).enumerate() {
            let group = &codes[(b * per_block + g) * coded::group_bytes(format)..];
            numbers.fill(0);
            for plane in Plane::both(format).into_iter().filter(|plane| plane.bits > 0) {
                for (i, code) in numbers.iter_mut().enumerate() {
                    let (vector, bit) = plane.place(i / 4);
                    let bits = group[vector + lane * 4 + i % 4] >> bit & ((1 << plane.bits) - 1) as u8;
                    *code |= bits << plane.from_bit;
                }
            }
        }
        let head = &heads[b * format.head() * LANES..][..format.head() * LANES];
        let (halves, words) = head.split_at(format.halves() * LANES * 2);
        for (half, from) in block.halves.iter_mut().zip(halves.chunks_exact(LANES * 2)) {
            *half = f16::from_le_bytes([from[lane * 2], from[lane * 2 + 1]]);
        }
        for (word, from) in block.words.iter_mut().zip(words.chunks_exact(LANES * 4)) {
            let at = lane * 4;
            *word = u32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]]);
        }
        block.numbers(format, to);
    }
}

/// A row in groups of bytes with a scale.
fn quantize_row(
    weight: &Weight<'_>,
    row: &[f32],
    groups: usize,
    lane: usize,
    out: &mut [u8],
) -> Result<Loss, FormatError> {
    let mut all = Loss::default();
    for (g, numbers) in row.as_chunks().0.iter().enumerate() {
        let group = to_bytes(numbers);
        let (scale, codes, loss) =
            group.ok_or_else(|| broken(weight, "it holds numbers that are too large for q8_0"))?;
        out[scale_at(groups, g, lane)..][..2].copy_from_slice(&scale.to_le_bytes());
        for (i, code) in codes.into_iter().enumerate() {
            out[quad_at(g, i / 4, lane) + i % 4] = code as u8 ^ 0x80;
        }
        all.add(loss);
    }
    Ok(all)
}

/// A row as blocks of q4_0.
fn q4_0_row(weight: &Weight<'_>, row: &[f32]) -> Result<(Vec<u8>, Loss), FormatError> {
    let (groups, _) = row.as_chunks();
    let (mut all, mut blocks) = (Loss::default(), vec![[0; Q4_0_BYTES]; groups.len()]);
    for (numbers, block) in groups.iter().zip(&mut blocks) {
        let loss = to_q4_0(numbers, block);
        all.add(loss.ok_or_else(|| broken(weight, "it holds numbers that are too large for q4_0"))?);
    }
    Ok((blocks.into_flattened(), all))
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

/// What is done with a tile, by its number, with room for its rows and for its bytes.
type TileWork<'a> = dyn Fn(&Segment, usize, &mut [f32], &mut Vec<u8>) -> Result<Loss, FormatError> + Sync + 'a;

impl Matrix {
    /// Whether rows are quantized before they are multiplied.
    pub(crate) fn quantizes_rows(&self) -> bool {
        self.segments.first().is_some_and(|segment| segment.storage.quantizes_rows())
    }

    /// Inputs as the kernels count them.
    pub(crate) fn padded_inputs(&self) -> usize {
        if self.quantizes_rows() { self.inputs.next_multiple_of(GROUP) } else { self.inputs }
    }

    /// Where a segment begins.
    pub(crate) fn weights(&self, segment: &Segment) -> *const u8 {
        self.data.bytes()[segment.start..].as_ptr()
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
        let Some(segment) = self.segments.iter().find(|s| s.tiles.contains(&(output / LANES))) else { return };
        let tile = &self.data.bytes()[segment.place(output / LANES)];
        match segment.storage {
            Storage::Coded(code) => decode_codes(code, tile, self.inputs.div_ceil(GROUP), lane, to),
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
            Storage::Bf16 => {
                for (i, y) in to.iter_mut().enumerate() {
                    let at = (i * LANES + lane) * 2;
                    *y = bf16::from_le_bytes([tile[at], tile[at + 1]]).to_f32();
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

#[cfg(test)]
mod tests;
