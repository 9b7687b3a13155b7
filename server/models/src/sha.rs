//! SHA-256 (FIPS 180-4) of several messages, two at a time. Each instruction of a message waits for the one before; the rounds of a second
//! message between them keep the processor busy. The compression of one message, and of machines without the SHA instructions, is that of
//! `sha2`. Nothing here reads or writes the private state of another crate.

use std::fmt;
use std::str::FromStr;

use sha2::block_api::compress256;

/// The initial hash value (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
const BLOCK: usize = 64;

/// The SHA-256 of a message that comes in parts.
///
/// Written as text it is the hash value of the whole blocks so far (FIPS 180-4, 6.2.2), the length of the message so far and the bytes after
/// the last whole block: `HASH:LENGTH:BYTES`, hexadecimal but for the length. It is read again by any version of this program.
#[derive(Clone, Copy)]
pub struct Sha256 {
    hash: [u32; 8],
    /// Bytes of the message.
    length: u64,
    /// Those after the last whole block stand at its beginning.
    block: [u8; BLOCK],
}

impl Default for Sha256 {
    fn default() -> Self {
        Self { hash: INITIAL, length: 0, block: [0; BLOCK] }
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sha256").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Sha256 {
    /// Of a message of which nothing has come yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of the message so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds bytes to the message.
    pub fn update(&mut self, bytes: &[u8]) {
        let bytes = self.fill(bytes);
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.hash, blocks);
        self.keep(blocks.len(), rest);
    }

    /// The digest of the whole message.
    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.length.wrapping_mul(8);
        let mut padding = [0; BLOCK + 8];
        padding[0] = 0x80;
        // A one, zeros, and the length at the end of a block.
        let zeros = (BLOCK + 56 - self.begun()) % BLOCK;
        let zeros = if zeros == 0 { BLOCK } else { zeros };
        padding[zeros..zeros + 8].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..zeros + 8]);
        let mut digest = [0; 32];
        for (target, word) in digest.as_chunks_mut().0.iter_mut().zip(self.hash) {
            *target = word.to_be_bytes();
        }
        digest
    }

    /// How many bytes of a block are there.
    fn begun(&self) -> usize {
        (self.length % BLOCK as u64) as usize
    }

    /// Ends the block that was begun, as far as the bytes reach. Returns those after it.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let begun = self.begun();
        if begun == 0 {
            return bytes;
        }
        let (head, rest) = bytes.split_at((BLOCK - begun).min(bytes.len()));
        self.block[begun..begun + head.len()].copy_from_slice(head);
        self.length += head.len() as u64;
        if self.begun() == 0 {
            compress256(&mut self.hash, &[self.block]);
        }
        rest
    }

    /// These blocks are in the hash value, and these bytes come after them. They are less than a block; where a block is begun already,
    /// there are none of either.
    fn keep(&mut self, blocks: usize, rest: &[u8]) {
        self.length += (blocks * BLOCK + rest.len()) as u64;
        if !rest.is_empty() {
            self.block[..rest.len()].copy_from_slice(rest);
        }
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for word in self.hash {
            write!(f, "{word:08x}")?;
        }
        write!(f, ":{}:{}", self.length, hex::encode(&self.block[..self.begun()]))
    }
}

/// A text that is not a SHA-256 state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a SHA-256 state")]
pub struct NoState;

impl FromStr for Sha256 {
    type Err = NoState;

    fn from_str(text: &str) -> Result<Self, NoState> {
        let (hash, rest) = text.split_once(':').ok_or(NoState)?;
        let (length, rest) = rest.split_once(':').ok_or(NoState)?;
        let mut read = Self { length: length.parse().map_err(|_| NoState)?, ..Self::default() };
        let mut words = [0; 32];
        hex::decode_to_slice(hash, &mut words).map_err(|_| NoState)?;
        for (word, bytes) in read.hash.iter_mut().zip(words.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        let begun = read.begun();
        hex::decode_to_slice(rest, &mut read.block[..begun]).map_err(|_| NoState)?;
        Ok(read)
    }
}

/// Adds bytes to each message, and returns each under its name; which of two is done first is open.
pub fn update<'a, T>(messages: impl IntoIterator<Item = (T, Sha256, &'a [u8])>, mut done: impl FnMut(T, Sha256)) {
    let mut waiting = messages.into_iter();
    let mut lanes: [Option<Lane<'a, T>>; 2] = [None, None];
    loop {
        for lane in &mut lanes {
            while lane.is_none()
                && let Some((name, hash, bytes)) = waiting.next()
            {
                match Lane::new(name, hash, bytes) {
                    Ok(begun) => *lane = Some(begun),
                    Err((name, hash)) => done(name, hash),
                }
            }
        }
        match &mut lanes {
            [Some(one), Some(other)] => {
                let count = one.blocks.len().min(other.blocks.len());
                compress([&mut one.sha.hash, &mut other.sha.hash], [&one.blocks[..count], &other.blocks[..count]]);
                one.blocks = &one.blocks[count..];
                other.blocks = &other.blocks[count..];
            }
            [Some(last), None] | [None, Some(last)] => {
                compress256(&mut last.sha.hash, std::mem::take(&mut last.blocks))
            }
            [None, None] => return,
        }
        for lane in &mut lanes {
            if let Some(ended) = lane.take_if(|lane| lane.blocks.is_empty()) {
                let (name, hash) = ended.end();
                done(name, hash);
            }
        }
    }
}

/// A message between its first whole block and its last.
struct Lane<'a, T> {
    name: T,
    sha: Sha256,
    blocks: &'a [[u8; BLOCK]],
    /// How many blocks there were.
    count: usize,
    tail: &'a [u8],
}

impl<'a, T> Lane<'a, T> {
    /// Fills the block that was begun; hands back the hash when there is no whole block after it.
    fn new(name: T, mut sha: Sha256, bytes: &'a [u8]) -> Result<Lane<'a, T>, (T, Sha256)> {
        let (blocks, tail) = sha.fill(bytes).as_chunks();
        if blocks.is_empty() {
            sha.keep(0, tail);
            return Err((name, sha));
        }
        Ok(Lane { name, sha, blocks, count: blocks.len(), tail })
    }

    fn end(mut self) -> (T, Sha256) {
        self.sha.keep(self.count, self.tail);
        (self.name, self.sha)
    }
}

/// As many blocks of either message.
fn compress(states: [&mut [u32; 8]; 2], blocks: [&[[u8; 64]]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_there() {
        // SAFETY: the processor has the instructions that the function is compiled for.
        unsafe { x86::compress(states, blocks) };
        return;
    }
    for (state, blocks) in states.into_iter().zip(blocks) {
        compress256(state, blocks);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    pub(super) fn is_there() -> bool {
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3")
    }

    /// The state in the order in which the instructions want it.
    #[derive(Clone, Copy)]
    struct State {
        abef: __m128i,
        cdgh: __m128i,
    }

    /// Both states after the blocks; what one message has more than the other is passed over.
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn compress(states: [&mut [u32; 8]; 2], blocks: [&[[u8; 64]]; 2]) {
        let mut at = [open(states[0]), open(states[1])];
        for (one, other) in blocks[0].iter().zip(blocks[1]) {
            let before = at;
            let mut words = [load(one), load(other)];
            // Written out, and not a loop over numbers: the constants become operands.
            rounds::<0>(&mut at, &mut words);
            rounds::<1>(&mut at, &mut words);
            rounds::<2>(&mut at, &mut words);
            rounds::<3>(&mut at, &mut words);
            rounds::<4>(&mut at, &mut words);
            rounds::<5>(&mut at, &mut words);
            rounds::<6>(&mut at, &mut words);
            rounds::<7>(&mut at, &mut words);
            rounds::<8>(&mut at, &mut words);
            rounds::<9>(&mut at, &mut words);
            rounds::<10>(&mut at, &mut words);
            rounds::<11>(&mut at, &mut words);
            rounds::<12>(&mut at, &mut words);
            rounds::<13>(&mut at, &mut words);
            rounds::<14>(&mut at, &mut words);
            rounds::<15>(&mut at, &mut words);
            for (at, before) in at.iter_mut().zip(before) {
                at.abef = _mm_add_epi32(at.abef, before.abef);
                at.cdgh = _mm_add_epi32(at.cdgh, before.cdgh);
            }
        }
        for (state, at) in states.into_iter().zip(at) {
            close(state, at);
        }
    }

    /// Four rounds of either message.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn rounds<const N: usize>(at: &mut [State; 2], words: &mut [[__m128i; 4]; 2]) {
        const { assert!(N < 16) };
        for (at, w) in at.iter_mut().zip(words) {
            if N >= 4 {
                let (last, before) = (w[(N + 3) % 4], w[(N + 2) % 4]);
                let sum = _mm_sha256msg1_epu32(w[N % 4], w[(N + 1) % 4]);
                w[N % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(sum, _mm_alignr_epi8(last, before, 4)), last);
            }
            let k = |n: usize| K[4 * N + n].cast_signed();
            let first = _mm_add_epi32(w[N % 4], _mm_set_epi32(k(3), k(2), k(1), k(0)));
            at.cdgh = _mm_sha256rnds2_epu32(at.cdgh, at.abef, first);
            at.abef = _mm_sha256rnds2_epu32(at.abef, at.cdgh, _mm_shuffle_epi32(first, 0x0E));
        }
    }

    /// A block's sixteen words, which are big-endian.
    #[inline]
    #[target_feature(enable = "ssse3")]
    fn load(block: &[u8; 64]) -> [__m128i; 4] {
        let turn = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
        let (quarters, _) = block.as_chunks::<16>();
        std::array::from_fn(|n| {
            // SAFETY: sixteen bytes are read where sixteen are; they may lie anywhere.
            let words = unsafe { _mm_loadu_si128(quarters[n].as_ptr().cast()) };
            _mm_shuffle_epi8(words, turn)
        })
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn open(state: &[u32; 8]) -> State {
        let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
        State { abef: _mm_set_epi32(a, b, e, f), cdgh: _mm_set_epi32(c, d, g, h) }
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn close(state: &mut [u32; 8], at: State) {
        *state = [
            _mm_extract_epi32(at.abef, 3),
            _mm_extract_epi32(at.abef, 2),
            _mm_extract_epi32(at.cdgh, 3),
            _mm_extract_epi32(at.cdgh, 2),
            _mm_extract_epi32(at.abef, 1),
            _mm_extract_epi32(at.abef, 0),
            _mm_extract_epi32(at.cdgh, 1),
            _mm_extract_epi32(at.cdgh, 0),
        ]
        .map(i32::cast_unsigned);
    }

    /// The fractional parts of the cube roots of the first primes (FIPS 180-4, 4.2.2).
    #[rustfmt::skip]
    const K: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    /// 130 times the letter a: two blocks, and two bytes.
    const WRITTEN: &str = "eac1afff7e2fe3745215a1576aea3c451df0539e97f91d40f96170a75b4dc721:130:6161";

    fn after(bytes: &[u8]) -> Sha256 {
        let mut sha = Sha256::new();
        sha.update(bytes);
        sha
    }

    fn digests(messages: &[&[u8]]) -> Vec<String> {
        let mut found = vec![String::new(); messages.len()];
        let begun = messages.iter().enumerate().map(|(n, bytes)| (n, Sha256::new(), *bytes));
        update(begun, |n, hash| found[n] = hex::encode(hash.finish()));
        found
    }

    #[test]
    fn sha256_matches_the_nist_vectors_alone_and_interleaved() {
        let million = vec![b'a'; 1_000_000];
        // FIPS 180-2, appendix B; the empty message and the one of 56 bytes twice as long from the CAVP and example files.
        let vectors: [(&[u8], &str); 5] = [
            (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (
                b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
                "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
            ),
            (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ];
        for (one, wanted) in vectors {
            assert_eq!(digests(&[one]), [wanted]);
            for (other, also) in vectors {
                assert_eq!(digests(&[one, other]), [wanted, also]);
            }
        }
        let (all, wanted): (Vec<_>, Vec<_>) = vectors.into_iter().unzip();
        assert_eq!(digests(&all), wanted);
    }

    /// Messages of any lengths, anywhere in memory, begun anywhere: as if each had been hashed alone, and the states too.
    #[test]
    fn interleaved_messages_hash_like_separate_ones() {
        let mut noise = 88_172_645_463_325_252_u64;
        let mut next = |below: usize| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise as usize % below
        };
        let bytes: Vec<u8> = (0..8192).map(|_| next(256) as u8).collect();
        for round in 0..500 {
            let slices: Vec<_> = (0..round % 9).map(|_| (next(200), next(3000), next(3000))).collect();
            let parts = slices.iter().map(|&(from, first, second)| bytes[from..from + first + second].split_at(first));
            let begun = parts.clone().enumerate().map(|(n, (first, second))| (n, after(first), second));
            let mut found = vec![None; slices.len()];
            update(begun, |n, hash| found[n] = Some(hash));
            for (found, (first, second)) in found.into_iter().zip(parts) {
                let (found, wanted) = (found.unwrap(), after(&[first, second].concat()));
                assert_eq!(found.to_string(), wanted.to_string(), "{slices:?}");
                let digest = <[u8; 32]>::from(sha2::Sha256::new_with_prefix(first).chain_update(second).finalize());
                assert_eq!(found.finish(), digest, "{slices:?}");
                let read: Sha256 = found.to_string().parse().unwrap();
                assert_eq!((read.length(), read.finish()), ((first.len() + second.len()) as u64, digest));
            }
        }
    }

    #[test]
    fn sha256_padding_is_correct_for_every_length() {
        let bytes = [b'x'; 260];
        for length in 0..bytes.len() {
            let digest = <[u8; 32]>::from(sha2::Sha256::digest(&bytes[..length]));
            assert_eq!(after(&bytes[..length]).finish(), digest, "{length}");
        }
    }

    /// Journals on disk hold states in these words.
    #[test]
    fn serialised_sha256_state_has_a_stable_format() {
        let state = after(&[b'a'; 130]);
        assert_eq!(state.to_string(), WRITTEN);
        assert_eq!(
            after(b"").to_string(),
            format!("{}:0:", "6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19")
        );
        let broken = [
            "",
            "::",
            "6a09:0:",
            &WRITTEN[1..],
            &WRITTEN[..WRITTEN.len() - 2],
            &format!("{WRITTEN}61"),
            &WRITTEN.replace("130", "131"),
            &WRITTEN.replace("130", "-2"),
            &WRITTEN.replace(':', ";"),
        ];
        for text in broken {
            assert!(text.parse::<Sha256>().is_err(), "{text}");
        }
    }
}
