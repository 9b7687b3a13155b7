//! A test double: a store in memory that crashes at a fuse's boundary: before, after or during a write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use textnlp_provider::SiteName;
use textnlp_provider::memory::Fuse;

use super::record::BodyRef;
use super::store::{Batch, Holder, Lock, Store};
use super::{Io, StateError};

/// A state in memory. Clones share it, as processes share a disk.
#[derive(Clone, Default)]
pub struct MemoryStore {
    disk: Arc<Mutex<Disk>>,
    fuse: Fuse,
}

#[derive(Default)]
struct Disk {
    logs: BTreeMap<SiteName, Vec<u8>>,
    bodies: BTreeMap<SiteName, Vec<u8>>,
    documents: BTreeMap<String, Vec<u8>>,
    fence: u64,
    held: Option<(u64, Holder)>,
    /// Bytes that can still be written; `None` for no limit.
    room: Option<usize>,
}

impl MemoryStore {
    /// The same disk, for a run that crashes at the fuse's boundary.
    #[must_use]
    pub fn with_fuse(&self, fuse: Fuse) -> Self {
        Self { disk: self.disk.clone(), fuse }
    }

    /// Makes the disk full after this many bytes; `None` removes the limit.
    pub fn room(&self, bytes: Option<usize>) {
        self.disk().room = bytes;
    }

    /// The log of a site, as stored.
    pub fn raw_log(&self, site: &SiteName) -> Vec<u8> {
        self.disk().logs.get(site).cloned().unwrap_or_default()
    }

    /// Replaces the stored log of a site.
    pub fn set_raw_log(&self, site: &SiteName, bytes: Vec<u8>) {
        self.disk().logs.insert(site.clone(), bytes);
    }

    /// Replaces a stored document; `None` removes it.
    pub fn set_raw_document(&self, name: &str, bytes: Option<Vec<u8>>) {
        let documents = &mut self.disk().documents;
        match bytes {
            Some(bytes) => drop(documents.insert(name.to_owned(), bytes)),
            None => drop(documents.remove(name)),
        }
    }

    /// A document, as stored.
    pub fn raw_document(&self, name: &str) -> Option<Vec<u8>> {
        self.disk().documents.get(name).cloned()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn check(&mut self, lock: &Lock, bytes: usize) -> Result<(), StateError> {
        if lock.fence != self.fence {
            return Err(StateError::Fenced { ours: lock.fence, newest: self.fence });
        }
        self.take_room(bytes)
    }

    fn take_room(&mut self, bytes: usize) -> Result<(), StateError> {
        if let Some(room) = &mut self.room {
            let full = || StateError::Io(Io::new("write", "memory", std::io::ErrorKind::StorageFull.into()));
            *room = room.checked_sub(bytes).ok_or_else(full)?;
        }
        Ok(())
    }
}

struct Guard {
    disk: Arc<Mutex<Disk>>,
    fence: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if disk.held.as_ref().is_some_and(|(fence, _)| *fence == self.fence) {
            disk.held = None;
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    async fn sites(&self) -> Result<Vec<SiteName>, StateError> {
        Ok(self.disk().logs.keys().cloned().collect())
    }

    async fn log(&self, site: &SiteName) -> Result<Vec<u8>, StateError> {
        Ok(self.raw_log(site))
    }

    async fn body(&self, site: &SiteName, body: &BodyRef) -> Result<Vec<u8>, StateError> {
        let disk = self.disk();
        let end = body.at + u64::from(body.len);
        let slice = disk.bodies.get(site).and_then(|bodies| bodies.get(body.at as usize..end as usize));
        slice.map(<[u8]>::to_vec).ok_or_else(|| {
            StateError::Io(Io::new("read body", body.sha256.as_str(), std::io::ErrorKind::UnexpectedEof.into()))
        })
    }

    async fn bodies_len(&self, site: &SiteName) -> Result<u64, StateError> {
        Ok(self.disk().bodies.get(site).map_or(0, Vec::len) as u64)
    }

    async fn document(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.disk().documents.get(name).cloned())
    }

    async fn lock(&self, holder: &Holder) -> Result<Lock, StateError> {
        self.fuse.cross(|| "before lock".to_owned()).await;
        let lock = {
            let mut disk = self.disk();
            if let Some((_, holder)) = &disk.held {
                return Err(StateError::Held { holder: Some(holder.clone()) });
            }
            disk.fence += 1;
            let fence = disk.fence;
            disk.held = Some((fence, holder.clone()));
            Lock::for_life(fence, Guard { disk: self.disk.clone(), fence })
        };
        self.fuse.cross(|| "after lock".to_owned()).await;
        Ok(lock)
    }

    async fn holder(&self) -> Result<Option<Holder>, StateError> {
        Ok(self.disk().held.as_ref().map(|(_, holder)| holder.clone()))
    }

    async fn append(&self, lock: &Lock, site: &SiteName, batch: &Batch) -> Result<(), StateError> {
        self.fuse.cross(|| format!("before write {}", what(batch))).await;
        {
            let mut disk = self.disk();
            disk.check(lock, batch.bodies.len() + batch.lines.len())?;
            let bodies = disk.bodies.entry(site.clone()).or_default();
            bodies.truncate(batch.bodies_at as usize);
            bodies.extend_from_slice(&batch.bodies);
        }
        self.fuse.cross(|| format!("between bodies and lines of {}", what(batch))).await;
        let (half, rest) = batch.lines.split_at(batch.lines.len() / 2);
        {
            let mut disk = self.disk();
            let log = disk.logs.entry(site.clone()).or_default();
            log.truncate(batch.log_at as usize);
            log.extend_from_slice(half);
        }
        self.fuse.cross(|| format!("in the middle of {}", what(batch))).await;
        self.disk().logs.entry(site.clone()).or_default().extend_from_slice(rest);
        self.fuse.cross(|| format!("after write {}", what(batch))).await;
        Ok(())
    }

    async fn cut(&self, lock: &Lock, site: &SiteName, len: u64) -> Result<(), StateError> {
        self.fuse.cross(|| "before cut".to_owned()).await;
        {
            let mut disk = self.disk();
            disk.check(lock, 0)?;
            disk.logs.entry(site.clone()).or_default().truncate(len as usize);
        }
        self.fuse.cross(|| "after cut".to_owned()).await;
        Ok(())
    }

    async fn replace(&self, lock: &Lock, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.fuse.cross(|| format!("before replace {name}")).await;
        {
            let mut disk = self.disk();
            disk.check(lock, bytes.len())?;
            disk.documents.insert(name.to_owned(), bytes.to_vec());
        }
        self.fuse.cross(|| format!("after replace {name}")).await;
        Ok(())
    }

    async fn swap(&self, name: &str, expected: Option<&[u8]>, bytes: &[u8]) -> Result<bool, StateError> {
        let mut disk = self.disk();
        if disk.documents.get(name).map(Vec::as_slice) != expected {
            return Ok(false);
        }
        disk.take_room(bytes.len())?;
        disk.documents.insert(name.to_owned(), bytes.to_vec());
        Ok(true)
    }

    async fn documents(&self, folder: &str) -> Result<Vec<String>, StateError> {
        let disk = self.disk();
        let within = disk.documents.keys().filter_map(|name| name.strip_prefix(folder)?.strip_prefix('/'));
        Ok(within.map(str::to_owned).collect())
    }

    async fn remove(&self, name: &str) -> Result<(), StateError> {
        self.disk().documents.remove(name);
        Ok(())
    }
}

/// The lines without their checksums, shortened.
fn what(batch: &Batch) -> String {
    let lines = String::from_utf8_lossy(&batch.lines);
    let entries = lines.lines().filter_map(|line| {
        let at = line.find("\"entry\":")?;
        line.get(at + 8..).map(|rest| rest.chars().take(60).collect::<String>())
    });
    entries.collect::<Vec<_>>().join("; ")
}
