//! Keys and values: blocks of 32 positions, a table of blocks for each sequence.

use super::memory::{Arena, Piece, Shared};
use crate::executor::SeqId;
use crate::family::Architecture;
use crate::kernels::attention::{BLOCK, block_elements, padded};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Sequences open at once, at most: an id is a slot and how often it was used before.
const SLOT_BITS: u32 = 16;

/// The keys and values of all open sequences.
pub(crate) struct Kv {
    data: Piece,
    half: bool,
    kv_heads: usize,
    head_dim: usize,
    layer_bytes: usize,
    free: Vec<u32>,
    slots: Vec<Slot>,
    unused: Vec<u32>,
}

/// An open sequence, or room for one.
#[derive(Default)]
struct Slot {
    id: u32,
    open: bool,
    table: Vec<u32>,
    limit: usize,
    length: usize,
}

impl Kv {
    /// Bytes for `positions` positions.
    pub(crate) fn bytes(a: &Architecture, half: bool, positions: usize) -> Option<usize> {
        let block = a.kv_heads.checked_mul(block_elements(a.head_dim))?.checked_mul(if half { 2 } else { 4 })?;
        positions.div_ceil(BLOCK).checked_mul(block)?.checked_mul(a.layers)
    }

    /// Room for `positions` positions.
    pub(crate) fn new(a: &Architecture, half: bool, positions: usize) -> std::io::Result<Kv> {
        let blocks = positions.div_ceil(BLOCK);
        let bytes = Self::bytes(a, half, positions)
            .filter(|_| u32::try_from(blocks).is_ok())
            .ok_or_else(|| std::io::Error::other(format!("{positions} positions are too many")))?;
        Ok(Kv {
            data: Arena::new(bytes)?.take(bytes),
            half,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            layer_bytes: bytes / a.layers,
            free: (0..blocks as u32).rev().collect(),
            slots: Vec::new(),
            unused: Vec::new(),
        })
    }

    pub(crate) fn half(&self) -> bool {
        self.half
    }

    pub(crate) fn held(&self) -> u64 {
        self.data.len() as u64
    }

    /// Positions that could be reserved now.
    pub(crate) fn free_positions(&self) -> usize {
        self.free.len() * BLOCK
    }

    /// Reserves blocks for a new sequence.
    pub(crate) fn open(&mut self, positions: usize) -> Option<SeqId> {
        let blocks = positions.div_ceil(BLOCK);
        if blocks > self.free.len() {
            return None;
        }
        let slot = match self.unused.pop() {
            Some(slot) => slot,
            None if self.slots.len() < 1 << SLOT_BITS => {
                self.slots.push(Slot { id: self.slots.len() as u32, ..Slot::default() });
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        let table = self.free.split_off(self.free.len() - blocks);
        let slot = &mut self.slots[slot as usize];
        // The same slot gets another id each time, so that a stale one is noticed.
        slot.id = slot.id.wrapping_add(1 << SLOT_BITS);
        slot.open = true;
        slot.table = table;
        slot.limit = positions;
        slot.length = 0;
        Some(SeqId(slot.id))
    }

    /// Releases the blocks; does nothing for a sequence that is not open.
    pub(crate) fn close(&mut self, seq: SeqId) {
        if let Some(index) = self.slot(seq) {
            let slot = &mut self.slots[index];
            slot.open = false;
            self.free.append(&mut slot.table);
            self.unused.push(index as u32);
        }
    }

    /// The slot of an open sequence.
    pub(crate) fn slot(&self, seq: SeqId) -> Option<usize> {
        let index = (seq.0 & ((1 << SLOT_BITS) - 1)) as usize;
        self.slots.get(index).filter(|s| s.open && s.id == seq.0).map(|_| index)
    }

    pub(crate) fn length(&self, slot: usize) -> usize {
        self.slots[slot].length
    }

    pub(crate) fn limit(&self, slot: usize) -> usize {
        self.slots[slot].limit
    }

    pub(crate) fn set_length(&mut self, slot: usize, length: usize) {
        self.slots[slot].length = length;
    }

    pub(crate) fn table(&self, slot: usize) -> &[u32] {
        &self.slots[slot].table
    }

    /// Where a layer begins.
    pub(crate) fn layer(&self, layer: usize) -> *const u8 {
        // SAFETY: layers divide the data.
        unsafe { self.data.as_ptr().add(layer * self.layer_bytes) }
    }

    /// Where layers begin, to write to them.
    pub(crate) fn writer(&mut self) -> Writer {
        Writer {
            data: Shared::of(self.data.as_mut_ptr()),
            half: self.half,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            layer_bytes: self.layer_bytes,
        }
    }
}

/// Writes keys and values, each position by one thread.
#[derive(Clone, Copy)]
pub(crate) struct Writer {
    data: Shared<u8>,
    half: bool,
    kv_heads: usize,
    head_dim: usize,
    layer_bytes: usize,
}

impl Writer {
    /// Stores the keys and values of one position: `keys` and `values` are those of all heads.
    ///
    /// # Safety
    /// The table is that of an open sequence and covers the position; no other thread accesses it.
    pub(crate) unsafe fn write(self, layer: usize, table: &[u32], position: usize, keys: &[f32], values: &[f32]) {
        let (block, within) = (table[position / BLOCK] as usize, position % BLOCK);
        let wide = padded(self.head_dim);
        let heads = keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim));
        for (head, (k, v)) in heads.enumerate() {
            let element = (block * self.kv_heads + head) * block_elements(self.head_dim);
            let (key, value) = (element + within, element + BLOCK * self.head_dim + within * wide);
            // SAFETY: the caller's promise; the offsets stay within the block.
            unsafe {
                let start = self.data.at(layer * self.layer_bytes);
                if self.half {
                    let start = start.cast::<f16>();
                    // Converted sixteen at a time, then spread.
                    let mut halves = [f16::ZERO; 16];
                    for (part, numbers) in k.chunks(16).enumerate() {
                        let halves = &mut halves[..numbers.len()];
                        halves.convert_from_f32_slice(numbers);
                        for (i, h) in halves.iter().enumerate() {
                            *start.add(key + (part * 16 + i) * BLOCK) = *h;
                        }
                    }
                    std::slice::from_raw_parts_mut(start.add(value), v.len()).convert_from_f32_slice(v);
                } else {
                    let start = start.cast::<f32>();
                    for (i, number) in k.iter().enumerate() {
                        *start.add(key + i * BLOCK) = *number;
                    }
                    std::ptr::copy_nonoverlapping(v.as_ptr(), start.add(value), v.len());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Activation, Norm, Position};

    fn architecture() -> Architecture {
        Architecture {
            family: "llama".into(),
            layers: 2,
            width: 36,
            heads: 4,
            kv_heads: 2,
            // Not a multiple of the vector width, so that rows are padded.
            head_dim: 9,
            ffn: 8,
            vocab: 8,
            context: 2 * BLOCK,
            norm: Norm::Rms { eps: 1e-5 },
            position: Position::Rotary { theta: 10_000.0 },
            activation: Activation::SiluGated,
            parallel: false,
            tied: true,
        }
    }

    #[test]
    fn positions_written_by_several_threads_keep_their_values_in_both_precisions() {
        let a = architecture();
        for half in [false, true] {
            let mut kv = Kv::new(&a, half, 3 * BLOCK).unwrap();
            let first = kv.open(BLOCK).unwrap();
            let seq = kv.open(2 * BLOCK).unwrap();
            assert_eq!(kv.open(1).map(|seq| seq.0), None, "no block is left");
            kv.close(first);
            let (slot, writer) = (kv.slot(seq).unwrap(), kv.writer());
            let table = kv.table(slot).to_vec();
            let row = |layer: usize, position: usize| -> Vec<f32> {
                (0..a.kv_heads * a.head_dim).map(|i| (layer * 1000 + position * 10 + i) as f32).collect()
            };
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (table, row) = (&table, &row);
                    scope.spawn(move || {
                        for position in (thread..2 * BLOCK).step_by(3) {
                            for layer in 0..2 {
                                let row = row(layer, position);
                                // SAFETY: the sequence is open, its table covers the position, which no other thread has.
                                unsafe { writer.write(layer, table, position, &row, &row) };
                            }
                        }
                    });
                }
            });
            let width = if half { 2 } else { 4 };
            for (layer, position) in [(0, 0), (0, BLOCK - 1), (1, BLOCK), (1, 2 * BLOCK - 1)] {
                let (block, within) = (table[position / BLOCK] as usize, position % BLOCK);
                for (i, wanted) in row(layer, position).iter().enumerate() {
                    let (head, i) = (i / a.head_dim, i % a.head_dim);
                    let element = (block * a.kv_heads + head) * block_elements(a.head_dim);
                    let value = element + BLOCK * a.head_dim + within * padded(a.head_dim) + i;
                    for at in [element + within + i * BLOCK, value] {
                        let bytes = &kv.data.bytes()[layer * kv.layer_bytes + at * width..][..width];
                        let found = match *bytes {
                            [a, b] => f16::from_le_bytes([a, b]).to_f32(),
                            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                            _ => f32::NAN,
                        };
                        // Half precision has 11 bits.
                        assert!((found - wanted).abs() <= wanted / 1000.0, "{found} {wanted}");
                    }
                }
            }
        }
    }

    #[test]
    fn closed_sequence_is_not_found_again() {
        let mut kv = Kv::new(&architecture(), true, BLOCK).unwrap();
        let stale = kv.open(1).unwrap();
        kv.close(stale);
        kv.close(stale);
        assert_eq!(kv.free_positions(), BLOCK);
        let fresh = kv.open(BLOCK).unwrap();
        assert!(kv.slot(stale).is_none() && kv.slot(fresh).is_some());
    }
}
