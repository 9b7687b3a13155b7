//! Keys and values: blocks of 32 positions, a table of blocks for each sequence.
//!
//! Sequences that begin alike can have their first blocks in common. Such a block is full, and nothing writes to it
//! while two sequences have it.

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
    /// Which sequences have each block.
    owners: Vec<Owners>,
    /// Blocks that only retained sequences have.
    reclaimable: usize,
    slots: Vec<Slot>,
    unused: Vec<u32>,
    uses: u64,
}

/// How many sequences have a block.
#[derive(Clone, Copy, Default)]
struct Owners {
    open: u32,
    retained: u32,
}

/// A sequence, or room for one.
#[derive(Default)]
struct Slot {
    id: u32,
    state: State,
    table: Vec<u32>,
    limit: usize,
    length: usize,
    /// When it was used last, in uses of all.
    used: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Unused,
    Open,
    /// It takes no more rows. Its blocks are released when others need them.
    Retained,
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
            owners: vec![Owners::default(); blocks],
            reclaimable: 0,
            slots: Vec::new(),
            unused: Vec::new(),
            uses: 0,
        })
    }

    pub(crate) fn half(&self) -> bool {
        self.half
    }

    pub(crate) fn held(&self) -> u64 {
        self.data.len() as u64
    }

    /// Positions in all.
    pub(crate) fn positions(&self) -> usize {
        self.owners.len() * BLOCK
    }

    /// Positions that could be reserved now.
    pub(crate) fn free_positions(&self) -> usize {
        (self.free.len() + self.reclaimable) * BLOCK
    }

    /// Reserves blocks for a new sequence.
    pub(crate) fn open(&mut self, positions: usize) -> Option<SeqId> {
        self.begin(Vec::new(), positions)
    }

    /// Opens a sequence that begins with the first `rows` rows of another one; `rows` are whole blocks of it.
    pub(crate) fn fork(&mut self, from: SeqId, rows: usize, positions: usize) -> Option<SeqId> {
        let source = self.sequence(from)?;
        let slot = &mut self.slots[source];
        if !rows.is_multiple_of(BLOCK) || rows > slot.length || rows > positions {
            return None;
        }
        self.uses += 1;
        slot.used = self.uses;
        let shared = slot.table[..rows / BLOCK].to_vec();
        let seq = self.begin(shared, positions)?;
        if let Some(slot) = self.slot(seq) {
            self.slots[slot].length = rows;
        }
        Some(seq)
    }

    /// Closes a sequence. Its first `rows` rows, in whole blocks, stay until another sequence needs their memory. The
    /// answer is how many rows stay.
    pub(crate) fn retain(&mut self, seq: SeqId, rows: usize) -> usize {
        let Some(index) = self.slot(seq) else { return 0 };
        let blocks = rows.min(self.slots[index].length) / BLOCK;
        if blocks == 0 {
            self.close(seq);
            return 0;
        }
        self.uses += 1;
        let slot = &mut self.slots[index];
        (slot.state, slot.used, slot.length) = (State::Retained, self.uses, blocks * BLOCK);
        let mut blocks_held = std::mem::take(&mut slot.table);
        for &block in &blocks_held[..blocks] {
            self.owners[block as usize].retained += 1;
        }
        self.release(&blocks_held, State::Open);
        blocks_held.truncate(blocks);
        self.slots[index].table = blocks_held;
        blocks * BLOCK
    }

    /// Whether a retained sequence still has its rows.
    pub(crate) fn is_retained(&self, seq: SeqId) -> bool {
        self.sequence(seq).is_some_and(|slot| self.slots[slot].state == State::Retained)
    }

    /// A new sequence with these blocks before those of its own.
    fn begin(&mut self, mut table: Vec<u32>, positions: usize) -> Option<SeqId> {
        let own = positions.div_ceil(BLOCK) - table.len();
        let idle = table.iter().filter(|&&block| self.owners[block as usize].open == 0).count();
        if own + idle > self.free.len() + self.reclaimable {
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
        // From here on the shared blocks cannot be reclaimed.
        self.reclaimable -= idle;
        table.iter().for_each(|&block| self.owners[block as usize].open += 1);
        while self.free.len() < own {
            self.reclaim();
        }
        let fresh = self.free.split_off(self.free.len() - own);
        fresh.iter().for_each(|&block| self.owners[block as usize].open = 1);
        table.extend(fresh);
        let slot = &mut self.slots[slot as usize];
        // The same slot gets another id each time, so that a stale one is noticed.
        slot.id = slot.id.wrapping_add(1 << SLOT_BITS);
        slot.state = State::Open;
        slot.table = table;
        slot.limit = positions;
        slot.length = 0;
        Some(SeqId(slot.id))
    }

    /// Closes the retained sequence that was used longest ago.
    fn reclaim(&mut self) {
        let retained = self.slots.iter().filter(|slot| slot.state == State::Retained);
        let oldest = retained.min_by_key(|slot| slot.used).map(|slot| SeqId(slot.id));
        self.close(oldest.expect("blocks that can be reclaimed are those of retained sequences"));
    }

    /// Releases the blocks; does nothing for a sequence that is neither open nor retained.
    pub(crate) fn close(&mut self, seq: SeqId) {
        if let Some(index) = self.sequence(seq) {
            let slot = &mut self.slots[index];
            let state = std::mem::take(&mut slot.state);
            let table = std::mem::take(&mut slot.table);
            self.release(&table, state);
            self.unused.push(index as u32);
        }
    }

    /// Removes a sequence from the owners of its blocks.
    fn release(&mut self, table: &[u32], state: State) {
        for &block in table {
            let owners = &mut self.owners[block as usize];
            let reclaimable = owners.open == 0;
            let count = if state == State::Retained { &mut owners.retained } else { &mut owners.open };
            *count -= 1;
            let (open, retained) = (owners.open, owners.retained);
            self.reclaimable -= usize::from(reclaimable);
            if open == 0 && retained > 0 {
                self.reclaimable += 1;
            }
            if open == 0 && retained == 0 {
                self.free.push(block);
            }
        }
    }

    /// The slot of a sequence that is open or retained.
    fn sequence(&self, seq: SeqId) -> Option<usize> {
        let index = (seq.0 & ((1 << SLOT_BITS) - 1)) as usize;
        self.slots.get(index).filter(|s| s.state != State::Unused && s.id == seq.0).map(|_| index)
    }

    /// The slot of an open sequence.
    pub(crate) fn slot(&self, seq: SeqId) -> Option<usize> {
        self.sequence(seq).filter(|&index| self.slots[index].state == State::Open)
    }

    /// Whether another sequence has the block of a position, too.
    pub(crate) fn is_shared(&self, slot: usize, position: usize) -> bool {
        let owners = self.slots[slot].table.get(position / BLOCK).map(|&block| self.owners[block as usize]);
        owners.is_some_and(|owners| owners.open + owners.retained > 1)
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
    use crate::family::{Activation, Attention, Layer, Norm, Position};

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
            position: Position::Learned,
            attention: Attention::full(9),
            activation: Activation::SiluGated,
            layer: Layer::LLAMA,
            tied: true,
            embedding_scale: 1.0,
            logit_cap: None,
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

    #[test]
    fn retained_rows_give_way_to_open_sequences_oldest_first() {
        let mut kv = Kv::new(&architecture(), true, 6 * BLOCK).unwrap();
        let retained = |kv: &mut Kv, blocks: usize| {
            let seq = kv.open(2 * BLOCK).unwrap();
            kv.set_length(kv.slot(seq).unwrap(), 2 * BLOCK);
            assert_eq!(kv.retain(seq, blocks * BLOCK + 5), blocks * BLOCK);
            seq
        };
        let (first, second, third) = (retained(&mut kv, 1), retained(&mut kv, 2), retained(&mut kv, 2));
        assert!(kv.slot(first).is_none() && kv.is_retained(first), "it takes no more rows");
        assert_eq!((kv.free_positions(), kv.free.len()), (6 * BLOCK, 1));
        // A use makes the first the youngest.
        let fork = kv.fork(first, BLOCK, 2 * BLOCK).unwrap();
        assert_eq!((kv.length(kv.slot(fork).unwrap()), kv.free_positions()), (BLOCK, 4 * BLOCK));
        assert_eq!(kv.open(5 * BLOCK), None, "more than there is");
        assert!([first, second, third].iter().all(|&seq| kv.is_retained(seq)), "what cannot help is not released");
        let open = kv.open(BLOCK).unwrap();
        assert_eq!([first, second, third].map(|seq| kv.is_retained(seq)), [true, false, true]);
        kv.close(open);
        let open = kv.open(4 * BLOCK).unwrap();
        assert_eq!([first, third].map(|seq| kv.is_retained(seq)), [true, false]);
        assert_eq!(kv.fork(third, BLOCK, BLOCK), None);
        // The block that an open sequence shares stays when the retained one goes.
        kv.close(first);
        assert_eq!((kv.is_retained(first), kv.free_positions()), (false, 0));
        kv.close(fork);
        kv.close(open);
        assert_eq!((kv.free.len(), kv.reclaimable), (6, 0));
    }

    #[test]
    fn only_whole_blocks_of_rows_that_are_there_are_shared() {
        let mut kv = Kv::new(&architecture(), true, 4 * BLOCK).unwrap();
        let seq = kv.open(2 * BLOCK).unwrap();
        let slot = kv.slot(seq).unwrap();
        kv.set_length(slot, BLOCK + 3);
        for (rows, positions) in [(BLOCK - 1, BLOCK), (2 * BLOCK, 2 * BLOCK), (BLOCK, BLOCK - 1)] {
            assert_eq!(kv.fork(seq, rows, positions), None, "{rows} rows of {positions}");
        }
        assert!(!kv.is_shared(slot, 0));
        let fork = kv.fork(seq, BLOCK, 3 * BLOCK).unwrap();
        assert!(kv.is_shared(slot, BLOCK - 1) && kv.is_shared(kv.slot(fork).unwrap(), 0));
        assert!(!kv.is_shared(slot, BLOCK) && !kv.is_shared(slot, 9 * BLOCK));
        assert_eq!(kv.table(slot)[0], kv.table(kv.slot(fork).unwrap())[0]);
        assert_eq!(kv.retain(seq, BLOCK - 1), 0, "less than a block is not retained");
        assert!(!kv.is_retained(seq) && kv.free_positions() == BLOCK);
    }
}
