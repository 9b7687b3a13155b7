//! What a fetch reports while it runs, and what its source gave at the end.

use crate::digest::Digest;
use crate::manifest::FileEntry;

/// Receives the progress of a fetch. Called often and from async code: it must be fast.
pub type Progress<'a> = dyn Fn(Event) + Send + Sync + 'a;

/// A progress event of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Asks the source what there is.
    Resolving {
        /// The source.
        what: String,
    },
    /// A file comes in.
    File {
        /// Its name.
        name: String,
        /// Bytes that are here.
        done: u64,
        /// Bytes in all, if known.
        total: Option<u64>,
    },
    /// Waits: for another process, or because the other side asked for it.
    Waiting {
        /// For what.
        for_what: String,
        /// How long, if known.
        seconds: u64,
    },
    /// Tries again.
    Retrying {
        /// Which attempt this will be.
        attempt: u32,
        /// Why the last one failed.
        why: String,
    },
    /// Reads what arrived and compares.
    Verifying {
        /// The file.
        name: String,
    },
    /// The model is in the store.
    Installed {
        /// Its digest.
        digest: Digest,
        /// Its size.
        bytes: u64,
    },
}

/// What a source gave: files that are in the assembly now.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub(crate) files: Vec<FileEntry>,
    pub(crate) revision: Option<String>,
    pub(crate) license: Option<String>,
}
