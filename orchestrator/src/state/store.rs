//! Where a state is kept. A folder on this machine and a memory for tests are the two stores so far.

use std::any::Any;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use textnlp_provider::SiteName;

use super::StateError;
use super::record::BodyRef;

/// A home for journals, their bodies and small documents.
///
/// Everything that writes takes a [`Lock`] and is refused once a later lock has been given out. What a write was told to
/// keep is durable when it returns; when it fails, nothing of it counts.
#[async_trait]
pub trait Store: Send + Sync {
    /// Where it is, for messages.
    fn place(&self) -> String;
    /// The sites that have a journal.
    async fn sites(&self) -> Result<Vec<SiteName>, StateError>;
    /// A site's whole log; empty when there is none.
    async fn log(&self, site: &SiteName) -> Result<Vec<u8>, StateError>;
    /// One body. The caller checks its hash.
    async fn body(&self, site: &SiteName, body: &BodyRef) -> Result<Vec<u8>, StateError>;
    /// Many bodies, in the order in which they are asked for. The caller checks their hashes.
    async fn bodies(&self, site: &SiteName, bodies: &[BodyRef]) -> Result<Vec<Vec<u8>>, StateError> {
        let mut all = Vec::with_capacity(bodies.len());
        for body in bodies {
            all.push(self.body(site, body).await?);
        }
        Ok(all)
    }
    /// How many bytes of bodies there are: where the next one goes.
    async fn bodies_len(&self, site: &SiteName) -> Result<u64, StateError>;
    /// A small document, such as `lineage.json`.
    async fn document(&self, name: &str) -> Result<Option<Vec<u8>>, StateError>;
    /// Takes the lock, or says who has it.
    async fn lock(&self, holder: &Holder) -> Result<Lock, StateError>;
    /// Appends bodies, then lines, in this order of durability.
    async fn append(&self, lock: &Lock, site: &SiteName, batch: &Batch) -> Result<(), StateError>;
    /// Cuts a torn end off a log.
    async fn cut(&self, lock: &Lock, site: &SiteName, len: u64) -> Result<(), StateError>;
    /// Replaces a small document as a whole.
    async fn replace(&self, lock: &Lock, name: &str, bytes: &[u8]) -> Result<(), StateError>;
}

/// What is appended in one go: many records share one wait for the disk.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Where the lines go: the length of the log before.
    pub log_at: u64,
    /// Whole lines.
    pub lines: Vec<u8>,
    /// Where the bodies go: the length of their file before.
    pub bodies_at: u64,
    /// The bodies, one after the other.
    pub bodies: Vec<u8>,
    /// The same bodies, by name.
    pub names: Vec<BodyRef>,
}

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The operator.
    pub by: String,
    /// The process.
    pub pid: u32,
    /// The machine.
    pub host: String,
    /// Since when, by that machine's wall clock.
    pub since: jiff::Timestamp,
    /// Name and version of the tool.
    pub tool: String,
}

/// The lock, held until this is dropped or its process dies.
pub struct Lock {
    /// Its fencing number: higher than that of every lock before it.
    pub fence: u64,
    /// What gives the lock back when it goes.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock").field("fence", &self.fence).finish_non_exhaustive()
    }
}
