//! `batch`: batches of requests, whose texts the database stores.

use super::document::Section;
use super::units::ByteSize;

/// Bounds of batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The most requests of a batch.
    pub max_requests: u64,
    /// The largest file of requests.
    pub max_file_size: ByteSize,
    /// The most unfinished batches of a tenant.
    pub max_pending: u64,
    /// The most bytes of all files of a tenant.
    pub max_stored: ByteSize,
    /// Requests of batches that one server runs at once.
    pub concurrency: u32,
    /// Days that files and finished batches are kept; 0 keeps them until they are deleted.
    pub retention_days: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_requests: 50_000,
            max_file_size: ByteSize(100_000_000),
            max_pending: 20,
            max_stored: ByteSize(1_000_000_000),
            concurrency: 2,
            retention_days: 30,
        }
    }
}

/// `batch`; without it, there are no batches.
pub(super) fn batch(parent: &Section<'_>) -> Option<Batch> {
    if !parent.has("batch") {
        return None;
    }
    let section = parent.section("batch");
    let usual = Batch::default();
    let batch = Batch {
        max_requests: section.integer("max_requests", 1..=1_000_000).unwrap_or(usual.max_requests),
        max_file_size: section.parsed("max_file_size").unwrap_or(usual.max_file_size),
        max_pending: section.integer("max_pending", 1..=10_000).unwrap_or(usual.max_pending),
        max_stored: section.parsed("max_stored").unwrap_or(usual.max_stored),
        concurrency: section.integer("concurrency", 1..=64).map_or(usual.concurrency, |count| count as u32),
        retention_days: section.integer("retention_days", 0..=36_500).map_or(usual.retention_days, |days| days as u32),
    };
    if !(1024..=1 << 30).contains(&batch.max_file_size.0) {
        section.wrong("max_file_size", "must be from 1KiB to 1GiB", None);
    }
    if batch.max_stored < batch.max_file_size {
        let hint = format!("at least {}", batch.max_file_size);
        section.wrong("max_stored", "is less than `max_file_size`", hint);
    }
    section.finish();
    Some(batch)
}
