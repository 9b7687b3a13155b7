//! Batches: each append is one object, with a JSON header line, then lines, then bodies.
//!
//! A segment is a concatenation of batches, so that a long journal is read in few requests.

use serde::{Deserialize, Serialize};

use super::super::Batch;

/// The header of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// The version of the format.
    pub(super) batch: u32,
    /// Its number, counted from 1 without gaps.
    pub(super) n: u64,
    /// The fencing number of the lock under which it was written.
    pub(super) fence: u64,
    /// The position of its lines.
    pub(super) log_at: u64,
    /// The length of its lines in bytes.
    pub(super) lines: u64,
    /// The position of its bodies.
    pub(super) bodies_at: u64,
    /// The length of its bodies in bytes.
    pub(super) bodies: u64,
}

const FORMAT: u32 = 1;

/// The bytes of one batch.
pub(super) fn encode(n: u64, fence: u64, batch: &Batch) -> Vec<u8> {
    let header = Header {
        batch: FORMAT,
        n,
        fence,
        log_at: batch.log_at,
        lines: batch.lines.len() as u64,
        bodies_at: batch.bodies_at,
        bodies: batch.bodies.len() as u64,
    };
    let mut bytes = serde_json::to_vec(&header).expect("a header is plain data");
    bytes.push(b'\n');
    bytes.extend_from_slice(&batch.lines);
    bytes.extend_from_slice(&batch.bodies);
    bytes
}

/// A site's journal, assembled from its batches.
#[derive(Debug, Clone, Default)]
pub(super) struct AssembledJournal {
    /// The number of the last batch.
    pub(super) n: u64,
    /// The highest fencing number of any of them.
    pub(super) fence: u64,
    /// The number of the last batch that is in a segment.
    pub(super) segmented: u64,
    pub(super) log: Vec<u8>,
    pub(super) bodies: Vec<u8>,
    /// The later batches, as written.
    pub(super) loose: Vec<u8>,
}

impl AssembledJournal {
    /// Appends the new ones of the batches in these bytes. Fails if the bytes are invalid.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no header")?;
            let header: Header =
                serde_json::from_slice(&bytes[..end]).map_err(|error| format!("its header cannot be read: {error}"))?;
            if header.batch != FORMAT {
                return Err(format!("its format is {}, this program knows {FORMAT}", header.batch));
            }
            let rest = &bytes[end + 1..];
            let whole = header.lines.checked_add(header.bodies).and_then(|len| usize::try_from(len).ok());
            let Some(content) = whole.and_then(|len| rest.get(..len)) else {
                return Err(format!("batch {} is shorter than its header says", header.n));
            };
            let (lines, bodies) = content.split_at(header.lines as usize);
            bytes = &rest[content.len()..];
            // Segments of two runs may overlap.
            if header.n <= self.n {
                continue;
            }
            if header.n != self.n + 1 || !self.takes(header.log_at, header.bodies_at) {
                return Err(format!("batch {} does not follow batch {}", header.n, self.n));
            }
            if lines.last().is_some_and(|last| *last != b'\n') {
                return Err(format!("batch {} ends within a line", header.n));
            }
            self.log.extend_from_slice(lines);
            self.bodies.extend_from_slice(bodies);
            self.n = header.n;
            self.fence = self.fence.max(header.fence);
        }
        Ok(())
    }

    /// Whether a batch at this position is the next one.
    pub(super) fn takes(&self, log_at: u64, bodies_at: u64) -> bool {
        log_at == self.log.len() as u64 && bodies_at == self.bodies.len() as u64
    }
}
