//! Where files are cut: weights where their tensors begin, everything else where the content says so.

use std::fs::File;

/// No boundary before this many bytes.
const MIN_CHUNK_BYTES: usize = 16 << 10;
const AVERAGE: usize = 128 << 10;
/// A boundary after this many bytes at the latest.
pub(crate) const MAX_CHUNK_BYTES: usize = 512 << 10;
/// A file never has more chunks than one for each of these, which bounds the manifest before anything is read: boundaries that come too
/// often are passed over.
const SPARSE: u64 = 64 << 10;

/// How one file will be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cuts {
    /// At boundaries that depend on the content around them.
    Gear,
    /// Into pieces of these sizes.
    Fixed(Vec<u32>),
}

impl Cuts {
    /// Looks at the name, and for weights at the header. A header that lies gives [`Cuts::Gear`].
    pub(crate) fn plan(path: &str, file: &File, size: u64) -> Cuts {
        textnlp_models::cuts(path, file, size).map_or(Cuts::Gear, Cuts::Fixed)
    }

    /// The maximum count of chunks.
    pub(crate) fn bound(&self, size: u64) -> u64 {
        match self {
            Cuts::Fixed(sizes) => sizes.len() as u64,
            Cuts::Gear if size == 0 => 0,
            Cuts::Gear => size / SPARSE + 2,
        }
    }
}

/// The length of the next chunk: `window` holds the next [`MAX_CHUNK_BYTES`] bytes of the file, or all that is left; it begins at `offset`, and
/// `index` chunks lie before it.
pub(crate) fn gear(window: &[u8], offset: u64, index: u64) -> usize {
    /// More ones before the average, fewer after it: lengths come closer to the average.
    const STRICT: u64 = 0xffff_e000_0000_0000;
    const LOOSE: u64 = 0xfffe_0000_0000_0000;
    let end = window.len().min(MAX_CHUNK_BYTES);
    if end <= MIN_CHUNK_BYTES {
        return end;
    }
    let earliest = (index * SPARSE).saturating_sub(offset);
    // Bytes further back than 64 have left the hash.
    let mut hash = 0u64;
    for (n, byte) in window[..end].iter().enumerate().skip(MIN_CHUNK_BYTES - 64) {
        hash = (hash << 1).wrapping_add(GEAR[*byte as usize]);
        let mask = if n < AVERAGE { STRICT } else { LOOSE };
        if hash & mask == 0 && n >= MIN_CHUNK_BYTES && (n + 1) as u64 >= earliest {
            return n + 1;
        }
    }
    end
}

/// A fixed table of random numbers (splitmix64 from zero): it is part of the format of deltas that stay small, not of bundles.
static GEAR: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state = 0u64;
    let mut n = 0;
    while n < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[n] = z ^ (z >> 31);
        n += 1;
    }
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes that no compressor shortens, the same each time.
    pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    fn cut(bytes: &[u8]) -> Vec<usize> {
        let (mut sizes, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let size = gear(&bytes[at..], at as u64, sizes.len() as u64);
            sizes.push(size);
            at += size;
        }
        sizes
    }

    #[test]
    fn chunks_have_the_average_size_and_stay_within_the_bounds() {
        let sizes = cut(&noise(1, 32 << 20));
        assert!(sizes.iter().rev().skip(1).all(|size| (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(size)));
        let average = (32 << 20) / sizes.len();
        assert!((90 << 10..200 << 10).contains(&average), "{average}");
    }

    #[test]
    fn insertion_moves_chunk_boundaries_only_nearby() {
        let before = noise(2, 8 << 20);
        let mut after = before.clone();
        after.splice(3_000_000..3_000_000, *b"a few more bytes");
        let digests = |bytes: &[u8]| {
            let mut at = 0;
            let digest = |size: usize| {
                at += size;
                textnlp_models::Digest::of(&bytes[at - size..at])
            };
            cut(bytes).into_iter().map(digest).collect::<std::collections::BTreeSet<_>>()
        };
        let changed = digests(&after).difference(&digests(&before)).count();
        assert!(changed <= 3, "{changed} chunks differ");
    }

    #[test]
    fn adversarial_content_keeps_the_chunk_count_bound() {
        // A pattern whose hash hits the mask as early as allowed, over and over.
        let mut hit = None;
        for seed in 0..40 {
            let bytes = noise(seed, 1 << 20);
            let size = gear(&bytes, 0, 0);
            if size < 40 << 10 {
                hit = Some(bytes[..size].to_vec());
            }
        }
        let piece = hit.unwrap();
        let bytes = piece.repeat(300);
        let sizes = cut(&bytes);
        assert!(
            sizes.len() as u64 <= Cuts::Gear.bound(bytes.len() as u64),
            "{} chunks of {}",
            sizes.len(),
            bytes.len()
        );
        assert_eq!(sizes.iter().sum::<usize>(), bytes.len());
    }
}
