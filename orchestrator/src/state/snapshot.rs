//! What a journal added up to at one of its records: only a cache, beside it as `snapshot.json`.
//!
//! A snapshot that is missing, damaged, of another format or of another journal is passed over, and the journal is read from its
//! beginning. Its own checksum stands in its first line.

use serde::{Deserialize, Serialize};

use super::fold::Fold;
use super::record::{FORMAT, Head, Log, sha256};

/// A journal's sum is written down again after this many records.
pub(super) const EVERY: u64 = 512;

/// What a journal added up to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Snapshot {
    format: u32,
    /// At which record.
    pub(super) head: Head,
    /// To what.
    pub(super) fold: Fold,
}

#[derive(Serialize)]
struct Written<'s> {
    format: u32,
    head: &'s Head,
    fold: &'s Fold,
}

impl Snapshot {
    /// Its text.
    pub(super) fn write(head: &Head, fold: &Fold) -> Vec<u8> {
        let body = serde_json::to_vec(&Written { format: FORMAT, head, fold }).expect("a fold is plain data");
        let mut bytes = sha256(&body).into_bytes();
        bytes.push(b'\n');
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads it; `None` when it is of no use.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (sum, body) = bytes.split_at_checked(64)?;
        let body = body.strip_prefix(b"\n")?;
        let snapshot: Self = (sha256(body).as_bytes() == sum).then(|| serde_json::from_slice(body).ok())??;
        (snapshot.format == FORMAT).then_some(snapshot)
    }

    /// Whether it is about this journal.
    pub(super) fn is_of(&self, log: &Log) -> bool {
        log.sum(self.head.n) == Some(self.head.sum.as_str())
    }
}
