//! What a journal added up to at one of its records: only a cache, beside it as `snapshot.json`.
//!
//! A snapshot that is missing, damaged, of another format or of another journal is passed over, and the journal is read from its
//! beginning. Its first line is the checksum of the rest; the second says of which record it is.

use serde::{Deserialize, Serialize};

use super::fold::Fold;
use super::record::{Head, Log, sha256};

/// A journal's sum is written down again after this many records.
pub(super) const EVERY: u64 = 512;

/// The version of this format.
const FORMAT: u32 = 2;

/// What a journal added up to, still to be read.
pub(super) struct Snapshot<'b> {
    head: Head,
    sum: &'b [u8],
    summed: &'b [u8],
    fold: &'b [u8],
}

#[derive(Serialize, Deserialize)]
struct Top {
    format: u32,
    head: Head,
}

impl<'b> Snapshot<'b> {
    /// Its text.
    pub(super) fn write(head: &Head, fold: &Fold) -> Vec<u8> {
        let json = "a fold is plain data";
        let mut body = serde_json::to_vec(&Top { format: FORMAT, head: head.clone() }).expect(json);
        body.push(b'\n');
        serde_json::to_writer(&mut body, fold).expect(json);
        let mut bytes = sha256(&body).into_bytes();
        bytes.push(b'\n');
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Looks at its top; `None` when it is of no use.
    pub(super) fn of(bytes: &'b [u8]) -> Option<Self> {
        let (sum, rest) = bytes.split_at_checked(64)?;
        let summed = rest.strip_prefix(b"\n")?;
        let end = summed.iter().position(|byte| *byte == b'\n')?;
        let top: Top = serde_json::from_slice(&summed[..end]).ok()?;
        (top.format == FORMAT).then(|| Self { head: top.head, sum, summed, fold: &summed[end + 1..] })
    }

    /// Of how many records it is, as it says itself.
    pub(super) fn records(&self) -> u64 {
        self.head.n
    }

    /// What they added up to; `None` when it was damaged.
    pub(super) fn fold(&self) -> Option<Fold> {
        (sha256(self.summed).as_bytes() == self.sum).then(|| serde_json::from_slice(self.fold).ok())?
    }

    /// Whether it is about this journal.
    pub(super) fn is_of(&self, log: &Log) -> bool {
        log.sum(self.head.n) == Some(self.head.sum.as_str())
    }
}
