//! Stores of a state: a local folder, an object store, and memory for tests.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use textnlp_provider::SiteName;

use super::StateError;
use super::record::BodyRef;

/// Stores journals, their bodies and small documents.
///
/// Every write of the state takes a [`Lock`] and is rejected once a later lock was granted. Only the documents of the
/// audit log are written without it, by [`swap`](Store::swap). A write is durable when it returns; if it fails, none of
/// it counts.
#[async_trait]
pub trait Store: Send + Sync {
    /// Its location, for messages.
    fn place(&self) -> String;
    /// The sites that have a journal.
    async fn sites(&self) -> Result<Vec<SiteName>, StateError>;
    /// A site's whole log; empty if there is none.
    async fn log(&self, site: &SiteName) -> Result<Vec<u8>, StateError>;
    /// One body. The caller checks its hash.
    async fn body(&self, site: &SiteName, body: &BodyRef) -> Result<Vec<u8>, StateError>;
    /// Many bodies, in the requested order. The caller checks their hashes.
    async fn bodies(&self, site: &SiteName, bodies: &[BodyRef]) -> Result<Vec<Vec<u8>>, StateError> {
        let mut all = Vec::with_capacity(bodies.len());
        for body in bodies {
            all.push(self.body(site, body).await?);
        }
        Ok(all)
    }
    /// The total length of all bodies, in bytes: the position of the next one.
    async fn bodies_len(&self, site: &SiteName) -> Result<u64, StateError>;
    /// A small document, such as `lineage.json`.
    async fn document(&self, name: &str) -> Result<Option<Vec<u8>>, StateError>;
    /// Takes the lock, or names its holder. A store that cannot detect a dead holder waits until its lease has expired.
    async fn lock(&self, holder: &Holder) -> Result<Lock, StateError>;
    /// Takes the lock to read what no run changes meanwhile. It is also granted where a full disk has no room for the name
    /// of the holder; nothing can be written with it then.
    async fn lock_to_read(&self, holder: &Holder) -> Result<Lock, StateError> {
        self.lock(holder).await
    }
    /// The holder of the lock, as far as it can be seen without taking it.
    async fn holder(&self) -> Result<Option<Holder>, StateError>;
    /// Why the record of the lock cannot be read. `None` if it can, or if the store reports it when the lock is taken.
    async fn lock_damage(&self) -> Result<Option<String>, StateError> {
        Ok(None)
    }
    /// Replaces a record of the lock that cannot be read. `fence` is at least the number of every earlier lock.
    async fn reset_lock(&self, _holder: &Holder, _fence: u64) -> Result<(), StateError> {
        Ok(())
    }
    /// Releases the lock. Dropping it releases it too; with leases, after they expire.
    async fn unlock(&self, lock: Lock) -> Result<(), StateError> {
        drop(lock);
        Ok(())
    }
    /// Appends bodies, then lines; durable in this order.
    async fn append(&self, lock: &Lock, site: &SiteName, batch: &Batch) -> Result<(), StateError>;
    /// Truncates a log that ends in a partial record. Stores with atomic appends have none.
    async fn cut(&self, lock: &Lock, site: &SiteName, len: u64) -> Result<(), StateError>;
    /// Replaces a small document atomically.
    async fn replace(&self, lock: &Lock, name: &str, bytes: &[u8]) -> Result<(), StateError>;
    /// Replaces a small document without the lock if it still has the `expected` content; `None`: if it does not exist.
    /// `false`: it has other content, and nothing was written.
    async fn swap(&self, name: &str, expected: Option<&[u8]>, bytes: &[u8]) -> Result<bool, StateError>;
    /// The names of the small documents in a folder without subfolders.
    async fn documents(&self, folder: &str) -> Result<Vec<String>, StateError>;
    /// Removes a small document that only [`swap`](Self::swap) writes.
    async fn remove(&self, name: &str) -> Result<(), StateError>;
}

/// The content of one append: many records share one sync to disk.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The position of the lines: the previous length of the log.
    pub log_at: u64,
    /// Complete lines.
    pub lines: Vec<u8>,
    /// The position of the bodies: the previous length of their file.
    pub bodies_at: u64,
    /// The bodies, concatenated.
    pub bodies: Vec<u8>,
    /// The references of the bodies.
    pub names: Vec<BodyRef>,
}

/// The holder of the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The operator.
    pub by: String,
    /// The process id.
    pub pid: u32,
    /// The machine.
    pub host: String,
    /// When it was taken, by that machine's wall clock.
    pub since: jiff::Timestamp,
    /// Name and version of the program.
    pub tool: String,
}

/// The lock, held until it is dropped or its process ends.
pub struct Lock {
    /// Its fencing number: higher than that of every earlier lock.
    pub fence: u64,
    /// Releases the lock when it is dropped.
    pub guard: Box<dyn Any + Send + Sync>,
    /// The lease, if the lock does not last for the life of the process.
    pub lease: Option<Arc<dyn Lease>>,
    /// How long operations that an earlier holder left open must not be touched: a call of that holder may still be in
    /// flight.
    pub grace: Duration,
}

impl Lock {
    /// A lock that lasts for the life of this process.
    pub fn for_life(fence: u64, guard: impl Any + Send + Sync) -> Self {
        Self { fence, guard: Box::new(guard), lease: None, grace: Duration::ZERO }
    }
}

/// The lease of a lock, in a store that cannot detect a dead holder.
#[async_trait]
pub trait Lease: Send + Sync {
    /// Whether the lease certainly lasts this much longer, by a clock that does not stop. Renews a short one first.
    async fn outlives(&self, call: Duration) -> bool;
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock").field("fence", &self.fence).finish_non_exhaustive()
    }
}
