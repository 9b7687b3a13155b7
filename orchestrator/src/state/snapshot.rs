//! The fold of a journal up to one of its records, cached beside it as `snapshot.json`.
//!
//! A snapshot that is missing, damaged, of another format or of another journal is ignored, and the journal is read
//! from its start. The first line is the checksum of the rest; the second names its record.

use serde::{Deserialize, Serialize};

use super::fold::Fold;
use super::record::{Head, Log, sha256};

/// A snapshot is written after this many records.
pub(super) const RECORDS_PER_SNAPSHOT: u64 = 512;

/// The version of the format.
const FORMAT: u32 = 4;

/// A snapshot whose body is not parsed yet.
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
    /// Its bytes.
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

    /// Parses its header; `None` if it is unusable.
    pub(super) fn of(bytes: &'b [u8]) -> Option<Self> {
        let (sum, rest) = bytes.split_at_checked(64)?;
        let summed = rest.strip_prefix(b"\n")?;
        let end = summed.iter().position(|byte| *byte == b'\n')?;
        let top: Top = serde_json::from_slice(&summed[..end]).ok()?;
        (top.format == FORMAT).then(|| Self { head: top.head, sum, summed, fold: &summed[end + 1..] })
    }

    /// The count of records it covers, by its own statement.
    pub(super) fn records(&self) -> u64 {
        self.head.n
    }

    /// Its fold; `None` if it is damaged.
    pub(super) fn fold(&self) -> Option<Fold> {
        (sha256(self.summed).as_bytes() == self.sum).then(|| serde_json::from_slice(self.fold).ok())?
    }

    /// Whether it belongs to this journal.
    pub(super) fn is_of(&self, log: &Log) -> bool {
        log.sum(self.head.n) == Some(self.head.sum.as_str())
    }
}
