//! The first level: vectors in the memory of this server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::value::Key;

/// Bytes of an entry besides its numbers: the key and the vector's place in both tables with their free slots, the
/// counters of the vector, and what the allocator adds to each block.
const ENTRY: usize = 256;

struct Entry {
    vector: Arc<[f32]>,
    turn: u64,
}

/// Vectors within a number of bytes. The least recently used make room for others.
pub(super) struct Memory {
    most: usize,
    bytes: usize,
    /// Counts uses.
    turn: u64,
    entries: HashMap<Key, Entry>,
    /// The keys by their last use.
    uses: BTreeMap<u64, Key>,
}

impl Memory {
    /// Room for this many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { most, bytes: 0, turn: 0, entries: HashMap::new(), uses: BTreeMap::new() }
    }

    /// The bytes that its entries hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The vector of a key, which is now the most recently used one.
    pub(super) fn get(&mut self, key: &Key) -> Option<Arc<[f32]>> {
        let entry = self.entries.get_mut(key)?;
        self.uses.remove(&entry.turn);
        self.turn += 1;
        entry.turn = self.turn;
        self.uses.insert(self.turn, *key);
        Some(Arc::clone(&entry.vector))
    }

    /// Keeps a vector. Returns how many others were evicted for it. One that is larger than the whole room is not kept.
    pub(super) fn put(&mut self, key: Key, vector: Arc<[f32]>) -> u64 {
        let size = size(&vector);
        if size > self.most {
            return 0;
        }
        if let Some(old) = self.entries.remove(&key) {
            self.uses.remove(&old.turn);
            self.bytes -= self::size(&old.vector);
        }
        let mut evicted = 0;
        while self.bytes + size > self.most {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            if let Some(old) = self.entries.remove(&oldest) {
                self.bytes -= self::size(&old.vector);
                evicted += 1;
            }
        }
        self.turn += 1;
        self.uses.insert(self.turn, key);
        self.entries.insert(key, Entry { vector, turn: self.turn });
        self.bytes += size;
        evicted
    }
}

fn size(vector: &[f32]) -> usize {
    ENTRY + size_of_val(vector)
}

#[cfg(test)]
mod tests {
    use super::super::value::Fingerprint;
    use super::*;

    fn key(number: u32) -> Key {
        Key::new("production", "acme", &Fingerprint([0; 32]), &[number])
    }

    fn vector(number: u32) -> Arc<[f32]> {
        Arc::from(vec![number as f32; 16])
    }

    const ONE: usize = ENTRY + 4 * 16;

    #[test]
    fn memory_never_holds_more_than_its_room() {
        let mut memory = Memory::new(10 * ONE + ONE / 2);
        let mut evicted = 0;
        for number in 0..100 {
            evicted += memory.put(key(number), vector(number));
            assert!(memory.bytes() <= 10 * ONE && memory.len() <= 10, "{}", memory.bytes());
            assert_eq!(memory.bytes(), memory.len() * ONE);
            assert_eq!(memory.uses.len(), memory.len());
        }
        assert_eq!((memory.len(), evicted), (10, 90));
        // An entry that is larger than everything evicts nothing.
        assert_eq!(memory.put(key(1000), Arc::from(vec![0.0; 1 << 12])), 0);
        assert_eq!((memory.len(), memory.get(&key(1000))), (10, None));
        let mut none = Memory::new(0);
        assert_eq!((none.put(key(1), vector(1)), none.len()), (0, 0));
    }

    #[test]
    fn least_recently_used_vector_is_evicted_first() {
        let mut memory = Memory::new(3 * ONE);
        for number in 0..3 {
            assert_eq!(memory.put(key(number), vector(number)), 0);
        }
        assert_eq!(memory.get(&key(0)), Some(vector(0)));
        assert_eq!(memory.put(key(3), vector(3)), 1);
        assert_eq!(memory.get(&key(1)), None);
        for number in [0, 2, 3] {
            assert_eq!(memory.get(&key(number)), Some(vector(number)), "{number}");
        }
    }

    #[test]
    fn vector_that_is_kept_again_is_counted_once() {
        let mut memory = Memory::new(3 * ONE);
        for _ in 0..5 {
            assert_eq!(memory.put(key(1), vector(1)), 0);
        }
        assert_eq!((memory.len(), memory.bytes(), memory.uses.len()), (1, ONE, 1));
    }
}
