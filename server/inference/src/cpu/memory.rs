//! Large zeroed memory on huge pages, allocated in pieces that are never freed individually.

use memmap2::MmapMut;
use std::io;
use std::sync::Arc;

/// Where every piece begins: a cache line.
const LINE: usize = 64;

/// Memory of a size fixed at the start.
pub(crate) struct Arena {
    mapping: Arc<Whole>,
    used: usize,
}

struct Whole {
    // Only held: pieces carry their own addresses into it.
    _map: MmapMut,
    start: *mut u8,
    length: usize,
}

// SAFETY: pieces do not overlap and each has one owner.
unsafe impl Send for Whole {}
// SAFETY: as above.
unsafe impl Sync for Whole {}

/// A piece of an [`Arena`], zero at first.
pub(crate) struct Piece {
    _mapping: Arc<Whole>,
    start: *mut u8,
    length: usize,
}

// SAFETY: a piece is memory of its own, like a boxed slice.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Arena {
    /// Bytes that a piece of `length` takes; what cannot be counted is more than there is.
    pub(crate) fn rounded(length: usize) -> usize {
        length.checked_next_multiple_of(LINE).unwrap_or(usize::MAX)
    }

    /// Reserves memory; pages come when they are first touched.
    pub(crate) fn new(length: usize) -> io::Result<Arena> {
        let mut map = MmapMut::map_anon(length.max(LINE))?;
        // Fewer TLB misses on a stream of a hundred megabytes. A kernel without huge pages is slower, not wrong.
        #[cfg(all(target_os = "linux", not(miri)))]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_mut_ptr();
        Ok(Arena { mapping: Arc::new(Whole { _map: map, start, length }), used: 0 })
    }

    /// The next piece.
    pub(crate) fn take(&mut self, length: usize) -> Piece {
        let from = self.used;
        let fits = from.checked_add(length).is_some_and(|end| end <= self.mapping.length);
        assert!(fits, "the arena was measured for all its pieces");
        self.used = from.saturating_add(Self::rounded(length));
        // SAFETY: within the map, as just checked.
        let start = unsafe { self.mapping.start.add(from) };
        Piece { _mapping: Arc::clone(&self.mapping), start, length }
    }
}

impl Piece {
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the piece is initialised (zeroed by the kernel) and ours.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

/// A buffer that threads write at disjoint places while its owner waits.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: the caller that follows the pointer promises to be alone at its place.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(of: &mut [T]) -> Shared<T> {
        Shared(of.as_mut_ptr())
    }

    pub(crate) fn of(start: *mut T) -> Shared<T> {
        Shared(start)
    }

    /// The address of an element.
    ///
    /// # Safety
    /// The buffer has that element.
    pub(crate) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zero_disjoint_and_outlive_the_arena() {
        let lengths = [1, 64, 65, 0, 200];
        let mut arena = Arena::new(lengths.map(Arena::rounded).iter().sum()).unwrap();
        let mut pieces = lengths.map(|length| arena.take(length));
        drop(arena);
        for (n, piece) in pieces.iter_mut().enumerate() {
            assert!(piece.bytes().iter().all(|byte| *byte == 0), "piece {n}");
            let (start, length) = (piece.as_mut_ptr(), piece.len());
            assert_eq!(start.addr() % LINE, 0, "piece {n}");
            // SAFETY: the piece is ours alone.
            unsafe { start.write_bytes(n as u8 + 1, length) };
        }
        for (n, piece) in pieces.iter().enumerate() {
            assert_eq!(piece.bytes(), vec![n as u8 + 1; lengths[n]], "piece {n}");
        }
    }

    #[test]
    fn threads_write_disjoint_places_of_a_shared_buffer() {
        let mut numbers = vec![0u32; 64];
        let shared = Shared::new(&mut numbers);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for index in (thread..64).step_by(4) {
                        // SAFETY: within the buffer, and no other thread has this remainder.
                        unsafe { shared.at(index).write(index as u32) };
                    }
                });
            }
        });
        assert!(numbers.iter().enumerate().all(|(index, number)| index as u32 == *number));
    }

    #[test]
    fn piece_beyond_the_arena_is_refused_whatever_its_length() {
        let mut arena = Arena::new(4 * LINE).unwrap();
        assert_eq!(arena.take(LINE + 1).len(), LINE + 1);
        for length in [2 * LINE + 1, usize::MAX - LINE, usize::MAX] {
            let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| arena.take(length).len()));
            assert!(taken.is_err(), "{length}");
        }
        assert_eq!(arena.take(2 * LINE).len(), 2 * LINE);
    }
}
