//! The chunks of weights: their boundaries, their digests, and the list of them that a store keeps beside a content.
//!
//! A bundle lists files by chunks. The SHA-256 of a file is sequential; those of its chunks can be computed in
//! parallel. So the chunks' digests are recorded in the same pass as the file's. Later, equal chunks prove equal bytes,
//! and the file's digest is known without another sequential pass.

use std::fs::File;

use camino::Utf8PathBuf;

use crate::digest::Digest;
use crate::error::Result;
use crate::sha::{self, Sha256};
use crate::store::Store;
use crate::{local, weights};

/// No chunk is longer: a chunk is held in memory whole.
pub const MOST_CHUNK: u32 = 4 << 20;
/// The longest list that is read. It holds the chunks of more than 3 TiB.
const MOST_LIST: u64 = 64 << 20;
/// Smaller contents are read twice in no time.
const MIN_TWO_PASS_BYTES: u64 = 1 << 20;
const HEAD: &str = "textnlp chunks 1";

/// A chunk's length in bytes, and its SHA-256.
pub type Cut = (u32, [u8; 32]);

/// The lengths of the chunks of a file of weights: one begins at each tensor, and then every [`MOST_CHUNK`]. `None` for a file that is
/// none, or whose header does not add up.
pub fn cuts(name: &str, file: &File, size: u64) -> Option<Vec<u32>> {
    let starts = match name.rsplit('.').next() {
        Some("safetensors") => weights::safetensors(file, size),
        Some("gguf") => weights::gguf(file, size),
        _ => None,
    };
    starts.map(|starts| pieces(&starts, size))
}

/// Cuts at each start and then every [`MOST_CHUNK`].
fn pieces(starts: &[u64], size: u64) -> Vec<u32> {
    let mut pieces = Vec::new();
    let mut from = 0;
    for to in starts.iter().copied().chain([size]) {
        while from < to {
            // The smaller of the two fits into 32 bits.
            let piece = u32::try_from(to - from).unwrap_or(MOST_CHUNK).min(MOST_CHUNK);
            pieces.push(piece);
            from += u64::from(piece);
        }
    }
    pieces
}

/// Takes the digest of a file as its bytes pass, and beside it those of its chunks.
pub(crate) struct Recorder {
    whole: Sha256,
    bytes: u64,
    cuts: std::vec::IntoIter<u32>,
    /// The chunk that is open: its hash, its length, and how much of it is still to come.
    open: Option<(Sha256, u32, u32)>,
    chunks: Vec<Cut>,
}

/// What passed.
pub(crate) struct Recorded {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    /// Empty where there is nothing to keep.
    pub(crate) chunks: Vec<Cut>,
}

impl Recorder {
    /// For the content of this file, which is called so where it belongs.
    pub(crate) fn of(name: &str, file: &File) -> Recorder {
        let size = file.metadata().map_or(0, |found| found.len());
        let cuts = if size < MIN_TWO_PASS_BYTES { None } else { cuts(name, file, size) };
        Recorder {
            whole: Sha256::new(),
            bytes: 0,
            cuts: cuts.unwrap_or_default().into_iter(),
            open: None,
            chunks: Vec::new(),
        }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let next = || self.cuts.next().map(|size| (Sha256::new(), size, size));
            let Some((piece, size, left)) = self.open.take().or_else(next) else {
                self.whole.update(bytes);
                return;
            };
            let (now, rest) = bytes.split_at(bytes.len().min(left as usize));
            bytes = rest;
            let left = left - now.len() as u32;
            let mut piece = Some(piece);
            let both = [(true, std::mem::take(&mut self.whole), now), (false, piece.take().unwrap_or_default(), now)];
            sha::update(both, |whole, hash| if whole { self.whole = hash } else { piece = Some(hash) });
            let piece = piece.unwrap_or_default();
            if left > 0 {
                self.open = Some((piece, size, left));
            } else {
                self.chunks.push((size, piece.finish()));
            }
        }
    }

    pub(crate) fn finish(self) -> Recorded {
        let digest = Digest::from(self.whole.finish());
        let length: u64 = self.chunks.iter().map(|(size, _)| u64::from(*size)).sum();
        // A file that grew or shrank meanwhile was cut for another.
        let chunks = if length == self.bytes && self.open.is_none() { self.chunks } else { Vec::new() };
        Recorded { digest, bytes: self.bytes, chunks }
    }
}

impl Store {
    /// The chunks of a content, recorded with its digest. `None` where nothing was recorded, or the list is damaged: it
    /// can be computed again. It is as trustworthy as the store, which a writer may change anyway.
    pub fn chunks(&self, digest: &Digest) -> Option<Vec<Cut>> {
        let text = local::read_bounded(&self.chunk_list(digest), MOST_LIST).ok()??;
        let text = std::str::from_utf8(&text).ok()?;
        let (body, own) = text.trim_end().rsplit_once('\n')?;
        if own != Digest::of(body.as_bytes()).hex() {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != format!("{HEAD} {}", digest.hex()) {
            return None;
        }
        lines.map(parse).collect()
    }

    /// Stores the chunks of a content. The caller computed them and the digest from the same bytes.
    pub fn keep_chunks(&self, digest: &Digest, chunks: &[Cut]) -> Result<()> {
        let mut text = format!("{HEAD} {}", digest.hex());
        for (size, digest) in chunks {
            text.push_str(&format!("\n{size} {}", hex::encode(digest)));
        }
        let text = format!("{text}\n{}\n", Digest::of(text.as_bytes()).hex());
        if text.len() as u64 > MOST_LIST {
            return Ok(());
        }
        let path = self.chunk_list(digest);
        if let Some(parent) = path.parent() {
            local::make_dir(parent)?;
        }
        local::write_durably(&path, text.as_bytes())
    }

    fn chunk_list(&self, digest: &Digest) -> Utf8PathBuf {
        let hex = digest.hex();
        self.folder("chunks").join(&hex[..2]).join(hex)
    }

    /// Removes a content's blob and its chunk list.
    pub(crate) fn remove_blob(&self, digest: &Digest) -> Result<()> {
        local::remove_file(&self.blob(digest))?;
        local::remove_file(&self.chunk_list(digest))
    }
}

fn parse(line: &str) -> Option<Cut> {
    let (size, text) = line.split_once(' ')?;
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).ok()?;
    Some((size.parse().ok().filter(|size| (1..=MOST_CHUNK).contains(size))?, digest))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use camino::Utf8Path;

    use super::*;

    #[test]
    fn chunks_begin_at_tensor_boundaries() {
        assert_eq!(pieces(&[100, 200, 10 << 20], (10 << 20) + 1)[..3], [100, 100, MOST_CHUNK]);
        assert_eq!(pieces(&[], 3), [3]);
        assert_eq!(pieces(&[], 0), Vec::<u32>::new());
    }

    /// However the bytes come: the digest is the file's, and the chunks' are those of the bytes between the cuts.
    #[test]
    fn file_and_chunk_digests_are_computed_in_one_pass() {
        let tensor = (5 << 20) + 3;
        let header = format!(r#"{{"a":{{"data_offsets":[0,100]}},"b":{{"data_offsets":[100,{tensor}]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend((0..tensor as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        for step in [1 << 20, 777_777, 64, bytes.len()] {
            let mut recorder = Recorder::of("model.safetensors", &file);
            bytes.chunks(step).for_each(|part| recorder.update(part));
            let found = recorder.finish();
            assert_eq!((found.digest, found.bytes), (Digest::of(&bytes), bytes.len() as u64));
            let mut rest = &bytes[..];
            for (size, digest) in &found.chunks {
                let (chunk, after) = rest.split_at(*size as usize);
                assert_eq!(*digest, <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(chunk)));
                rest = after;
            }
            assert!(rest.is_empty());
            assert_eq!(found.chunks.len(), 4, "header, a, b in two");
        }
        let mut shorter = Recorder::of("model.safetensors", &file);
        shorter.update(&bytes[..bytes.len() - 1]);
        assert!(shorter.finish().chunks.is_empty());
        assert!(Recorder::of("notes.txt", &file).cuts.next().is_none());
    }

    #[test]
    fn changed_chunk_list_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Utf8Path::from_path(folder.path()).unwrap()).unwrap();
        let digest = Digest::of(b"content");
        assert_eq!(store.chunks(&digest), None);
        let list = vec![(3, [1; 32]), (MOST_CHUNK, [255; 32])];
        store.keep_chunks(&digest, &list).unwrap();
        assert_eq!(store.chunks(&digest), Some(list));
        let path = store.chunk_list(&digest);
        let text = fs::read(&path).unwrap();
        for at in 0..text.len() - 1 {
            let mut changed = text.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert_eq!(store.chunks(&digest), None, "byte {at}");
        }
        // Of another content, under this one's name.
        fs::write(&path, &text).unwrap();
        let other = Digest::of(b"other");
        make_there(&store, &other);
        fs::copy(&path, store.chunk_list(&other)).unwrap();
        assert_eq!(store.chunks(&other), None);
        // One is being written, one was by a run that was killed long ago.
        let (now, long_ago) = (
            path.with_file_name(format!(".{digest}.1-0.new", digest = digest.hex())),
            Utf8PathBuf::from(format!("{path}.1-1.new")),
        );
        fs::write(&now, "half").unwrap();
        let file = File::create(&long_ago).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * crate::store::ABANDONED).unwrap();
        store.drop_orphans().unwrap();
        assert!(!path.exists(), "the content is not there");
        assert!(now.exists() && !long_ago.exists());
    }

    fn make_there(store: &Store, digest: &Digest) {
        fs::create_dir_all(store.chunk_list(digest).parent().unwrap()).unwrap();
    }
}
