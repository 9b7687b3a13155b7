//! The digests of whole files, taken as their bytes come. How far that got is written down, so that after a kill little is read again.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256};
use textnlp_models::Digest;

use crate::error::{Error, Result};
use crate::flow::restore;
use crate::manifest::File;

/// Files come in their order, each from its beginning to its end.
pub(crate) struct Proof {
    path: Utf8PathBuf,
    /// The file that is proven next; those before it are what they should be.
    next: usize,
    /// How much of it is in the hash.
    offset: u64,
    hash: Sha256,
    /// Bytes since it was last written down.
    since: u64,
}

#[derive(Serialize, Deserialize)]
struct Note {
    next: usize,
    offset: u64,
    state: String,
}

impl Proof {
    /// With what still has to be read of what is there, less than eight MiB are read again: this, and a chunk.
    const OFTEN: u64 = 4 << 20;

    /// Goes on where an earlier run of the same work was.
    pub(crate) fn resume(path: Utf8PathBuf) -> Proof {
        let note = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Note>(&text).ok());
        let state = |note: Note| Some((note.next, note.offset, restore(&hex::decode(note.state).ok()?)?));
        let (next, offset, hash) = note.and_then(state).unwrap_or_default();
        Proof { path, next, offset, hash, since: 0 }
    }

    /// Whether these bytes of a file are still to be added.
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

    /// All bytes of the file were added, now or by an earlier run: whether they are what they should be.
    pub(crate) fn end(&mut self, index: usize, file: &File) -> Result<()> {
        if index < self.next {
            return Ok(());
        }
        let hash = if index == self.next { std::mem::take(&mut self.hash) } else { Sha256::new() };
        let found = Digest::from(<[u8; 32]>::from(hash.finalize()));
        if found != file.digest {
            return Err(Error::Result { expected: file.digest, found });
        }
        (self.next, self.offset) = (index + 1, 0);
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let note = Note { next: self.next, offset: self.offset, state: hex::encode(self.hash.serialize()) };
        let fresh = Utf8PathBuf::from(format!("{}.new", self.path));
        let text = serde_json::to_vec(&note).map_err(|error| Error::io("write", &fresh)(error.into()))?;
        std::fs::write(&fresh, text).map_err(Error::io("write", &fresh))?;
        std::fs::rename(&fresh, &self.path).map_err(Error::io("rename", &fresh))?;
        self.since = 0;
        Ok(())
    }
}
