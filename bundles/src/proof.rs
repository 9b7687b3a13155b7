//! The digests of whole files, computed as their bytes are written. The progress is stored, so that little is read
//! again after a kill.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use textnlp_files::Replace;
use textnlp_models::Digest;
use textnlp_models::sha::Sha256;

use crate::error::{Error, Result};
use crate::manifest::File;

/// Files are added in order, each from start to end.
pub(crate) struct Proof {
    path: Utf8PathBuf,
    /// The next file to verify; those before it are verified.
    next: usize,
    /// How much of it is in the hash.
    offset: u64,
    hash: Sha256,
    /// Bytes since the progress was last stored.
    since: u64,
}

#[derive(Serialize, Deserialize)]
struct ProofRecord {
    next: usize,
    offset: u64,
    /// See [`Sha256`]. Earlier versions stored another format under another name: such a file is hashed again from its start.
    #[serde(default)]
    sha256: String,
}

impl Proof {
    /// With what still has to be read of what is there, less than eight MiB are read again: this, and a chunk.
    const OFTEN: u64 = 4 << 20;

    /// Resumes an earlier run of the same work.
    pub(crate) fn resume(path: Utf8PathBuf) -> Proof {
        let note = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<ProofRecord>(&text).ok());
        let state = |note: ProofRecord| {
            let hash: Option<Sha256> = note.sha256.parse().ok().filter(|hash: &Sha256| hash.length() == note.offset);
            hash.map_or((note.next, 0, Sha256::new()), |hash| (note.next, note.offset, hash))
        };
        let (next, offset, hash) = note.map(state).unwrap_or_default();
        Proof { path, next, offset, hash, since: 0 }
    }

    /// Whether these bytes of a file must still be added.
    pub(crate) fn wants(&self, file: usize, end: u64) -> bool {
        file > self.next || (file == self.next && end > self.offset)
    }

    /// Adds a file's next bytes, which stand in it already and begin at `at`.
    pub(crate) fn add(&mut self, file: usize, at: u64, bytes: &[u8]) -> Result<()> {
        if file > self.next {
            (self.next, self.offset, self.hash) = (file, 0, Sha256::new());
        }
        let known = usize::try_from(self.offset.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        self.hash.update(&bytes[known..]);
        self.offset += (bytes.len() - known) as u64;
        self.since += (bytes.len() - known) as u64;
        if self.since >= Self::OFTEN { self.write() } else { Ok(()) }
    }

    /// Whether the file is correct, once this or an earlier run has added all of its bytes.
    pub(crate) fn end(&mut self, index: usize, file: &File) -> Result<()> {
        if index < self.next {
            return Ok(());
        }
        let hash = if index == self.next { std::mem::take(&mut self.hash) } else { Sha256::new() };
        let found = Digest::from(hash.finish());
        if found != file.digest {
            return Err(Error::Result { expected: file.digest, found });
        }
        (self.next, self.offset) = (index + 1, 0);
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let note = ProofRecord { next: self.next, offset: self.offset, sha256: self.hash.to_string() };
        let text = serde_json::to_vec(&note).map_err(|error| Error::io("write", &self.path)(error.into()))?;
        // After a reboot the work starts from zero: nothing depends on it then.
        Replace::umask().sole_writer().without_sync().write(&self.path, &text)?;
        self.since = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_progress_is_resumed_or_recomputed_from_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().join("proof")).unwrap();
        let bytes: Vec<u8> = (0..9u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (first, rest) = bytes.split_at(5 << 20);
        let file = File {
            path: "a".into(),
            executable: false,
            size: bytes.len() as u64,
            digest: Digest::of(&bytes),
            chunks: Vec::new(),
        };
        Proof::resume(path.clone()).add(1, 0, first).unwrap();
        let note = std::fs::read_to_string(&path).unwrap();

        let mut proof = Proof::resume(path.clone());
        assert!(!proof.wants(1, first.len() as u64) && proof.wants(1, bytes.len() as u64));
        proof.add(1, first.len() as u64, rest).unwrap();
        proof.end(1, &file).unwrap();

        for earlier in [note.replace("sha256", "state"), note.replace(&first.len().to_string(), "77")] {
            std::fs::write(&path, earlier).unwrap();
            let mut proof = Proof::resume(path.clone());
            assert!(!proof.wants(0, u64::MAX), "files before it are proven");
            assert!(proof.wants(1, 1));
            proof.add(1, 0, &bytes).unwrap();
            proof.end(1, &file).unwrap();
        }
    }
}
