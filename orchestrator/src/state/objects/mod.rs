//! A state in an object store: S3, GCS, Azure Blob, MinIO, or any other with conditional writes.
//!
//! The prefix contains `lease.json` (see [`lease`]), `lineage.json` and other small documents. Each site has
//! `journal/SITE/batches/NNNNNNNNNN`: one immutable object for each append. Concurrent writers collide at a name, and
//! only one succeeds. `journal/SITE/segments/FIRST-LAST` have many batches in one object.
//!
//! The documents of `audit/` are written without the lock, each by a conditional write of its own.
//!
//! A run that takes over from a silent holder first fences it off. It appends an empty batch to every journal and
//! writes its fencing number into the documents. Every later conditional write of the earlier holder then fails.

mod batch;
mod lease;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use object_store::ObjectStore;
use object_store::path::Path;
use textnlp_provider::SiteName;

use super::record::BodyRef;
use super::store::{Batch, Holder, Lock, Store};
use super::{LINEAGE, LineageFile, StateError, head_name};
use crate::backup::Key;
use crate::clock::{BackgroundTask, Clock};

use batch::AssembledJournal;
use lease::HeldLease;
use wire::{Put, Wire};

/// Durations of leases and requests.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a lease lasts without a renewal.
    pub lease: Duration,
    /// The interval of renewals.
    pub renew: Duration,
    /// The poll interval of a run that waits for the lease.
    pub look: Duration,
    /// How long a call of the previous holder may still be in flight.
    pub grace: Duration,
    /// The timeout of a request about the lease.
    pub request: Duration,
    /// The timeout of any other request.
    pub transfer: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(4),
            look: Duration::from_secs(1),
            grace: Duration::from_secs(10),
            request: Duration::from_secs(5),
            transfer: Duration::from_secs(60),
        }
    }
}

/// A state in an object store.
pub struct Objects {
    wire: Arc<Wire>,
    /// What was read of the journals. Batches are immutable, so only newer ones are read again.
    kept: Mutex<BTreeMap<SiteName, AssembledJournal>>,
    held: Mutex<Option<Arc<HeldLease>>>,
    /// Set after a failed write: the content of the store is unknown. Nothing more is written until it was read again.
    broken: AtomicBool,
}

/// The count of batches that are merged into a segment.
const LOOSE: u64 = 64;

/// The most bytes of a segment.
const SEGMENT: usize = 256 << 20;

impl Objects {
    /// A state under `root`; `place` names it in messages. The first write creates it.
    pub fn new(store: Arc<dyn ObjectStore>, root: Path, place: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        let (place, timing) = (place.into(), Timing::default());
        let wire = Arc::new(Wire { store, root, place, clock, timing, seal: None, tell: None });
        Self { wire, kept: Mutex::default(), held: Mutex::default(), broken: AtomicBool::new(false) }
    }

    /// Overrides the durations.
    #[must_use]
    pub fn timed(mut self, timing: Timing) -> Self {
        self.own().timing = timing;
        self
    }

    /// Sets a callback for messages about waits.
    #[must_use]
    pub fn telling(mut self, tell: impl Fn(String) + Send + Sync + 'static) -> Self {
        self.own().tell = Some(Box::new(tell));
        self
    }

    /// Encrypts every object with this key, in the format of the tool `age`.
    #[must_use]
    pub fn sealed(mut self, key: Key) -> Self {
        self.own().seal = Some(Wire::sealed_by(key));
        self
    }

    fn own(&mut self) -> &mut Wire {
        Arc::get_mut(&mut self.wire).expect("the name is unique until it is used")
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<SiteName, AssembledJournal>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rejects a write under a lock that has ended.
    fn check(&self, lock: &Lock) -> Result<(), StateError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let newest = held.as_ref().map_or(0, |term| term.fence());
        if newest != lock.fence {
            return Err(StateError::Fenced { ours: lock.fence, newest });
        }
        if let Some(because) = held.and_then(|term| term.lost()) {
            return Err(StateError::LeaseLost { place: self.wire.place.clone(), because });
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(StateError::Broken { place: self.wire.place.clone() });
        }
        Ok(())
    }

    /// Reads the batches that were added to a site's journal since the last read.
    async fn catch_up(&self, site: &SiteName) -> Result<(), StateError> {
        let mut kept = self.kept().get(site).cloned().unwrap_or_default();
        let before = kept.n;
        let segments = self.wire.list(&segments(site), None).await?;
        let mut names = Vec::new();
        let mut covered = kept.n;
        for name in segments {
            let name = format!("{}/{name}", self::segments(site));
            let range = name.rsplit('/').next().and_then(range_of);
            let (first, last) =
                range.ok_or_else(|| self.wire.unreadable(&name, "its name is not one of this program"))?;
            if first <= covered + 1 && last > covered {
                (covered, kept.segmented) = (last, last);
                kept.loose.clear();
                names.push(name);
            }
        }
        let from_segments = names.len();
        let after = (covered > 0).then(|| number(covered));
        for name in self.wire.list(&batches(site), after.as_deref()).await? {
            names.push(format!("{}/{name}", batches(site)));
        }
        for (i, (name, bytes)) in names.iter().zip(self.wire.get_all(&names).await?).enumerate() {
            kept.extend(&bytes).map_err(|because| self.wire.unreadable(name, because))?;
            if i >= from_segments {
                kept.loose.extend_from_slice(&bytes);
            }
        }
        if kept.n != before || before == 0 {
            self.kept().insert(site.clone(), kept);
        }
        Ok(())
    }

    /// Appends an empty batch to a journal: the next write of an earlier holder collides with it.
    async fn mark(&self, site: &SiteName, fence: u64) -> Result<(), StateError> {
        const COLLISIONS: u32 = 64;
        for _ in 0..COLLISIONS {
            self.catch_up(site).await?;
            let kept = self.kept().get(site).cloned().unwrap_or_default();
            let nothing =
                Batch { log_at: kept.log.len() as u64, bodies_at: kept.bodies.len() as u64, ..Batch::default() };
            if let Put::Done(_) = self.put_batch(site, fence, &nothing).await? {
                return Ok(());
            }
        }
        Err(self.wire.unreadable(&batches(site), "another process writes to it faster than it can be read"))
    }

    async fn put_batch(&self, site: &SiteName, fence: u64, batch: &Batch) -> Result<Put, StateError> {
        let (n, fits, newest) = match self.kept().get(site) {
            Some(kept) => (kept.n + 1, kept.takes(batch.log_at, batch.bodies_at), kept.fence),
            None => (1, batch.log_at == 0 && batch.bodies_at == 0, 0),
        };
        // A newer holder fenced this journal before it was read here, so it is closed although the next name is free.
        if newest > fence {
            return Err(StateError::Fenced { ours: fence, newest });
        }
        let bytes = batch::encode(n, fence, batch);
        let name = format!("{}/{}", batches(site), number(n));
        if !fits {
            return Err(self.wire.unreadable(&name, "it would not follow what was read"));
        }
        let put = self.wire.create(&name, &bytes).await?;
        if let Put::Done(_) = put {
            let mut all = self.kept();
            let kept = all.entry(site.clone()).or_default();
            kept.extend(&bytes).map_err(|because| self.wire.unreadable(&name, because))?;
            kept.loose.extend_from_slice(&bytes);
        }
        Ok(put)
    }

    /// Fences off earlier holders: their later writes fail.
    async fn fence_off(&self, fence: u64) -> Result<(), StateError> {
        // The document with the sites comes first: no earlier holder can then add a site that is not read here.
        self.stamp(LINEAGE, fence).await?;
        let mut sites: BTreeSet<SiteName> = self.sites().await?.into_iter().collect();
        if let Some(bytes) = self.document(LINEAGE).await? {
            // The next read of the state reports unreadable entries.
            sites.extend(
                serde_json::from_slice::<LineageFile>(&bytes).into_iter().flat_map(|file| file.sites.into_keys()),
            );
        }
        for site in sites {
            self.mark(&site, fence).await?;
            self.stamp(&head_name(&site), fence).await?;
        }
        Ok(())
    }

    /// Rewrites a document with a new fencing number. A missing one is written empty, which reads as missing.
    async fn stamp(&self, name: &str, fence: u64) -> Result<(), StateError> {
        self.put_document(name, fence, None).await
    }

    /// Writes a document under this fencing number: these bytes, or those that it has at that moment.
    async fn put_document(&self, name: &str, fence: u64, bytes: Option<&[u8]>) -> Result<(), StateError> {
        const COLLISIONS: u32 = 8;
        for _ in 0..COLLISIONS {
            let put = match self.wire.get(name).await? {
                None => self.wire.create(name, &stamped(fence, bytes.unwrap_or_default())).await?,
                Some(found) => {
                    let (newest, there) = unstamped(&found.bytes).map_err(|why| self.wire.unreadable(name, why))?;
                    if newest > fence {
                        return Err(StateError::Fenced { ours: fence, newest });
                    }
                    self.wire.update(name, &stamped(fence, bytes.unwrap_or(there)), &found.tag).await?
                }
            };
            if let Put::Done(_) = put {
                return Ok(());
            }
        }
        Err(self.wire.unreadable(name, "the store reports a concurrent change for each write"))
    }

    /// Merges batches into a segment, since each takes a request to read.
    async fn gather(&self) -> Result<(), StateError> {
        let all: Vec<(SiteName, AssembledJournal)> =
            self.kept().iter().map(|(site, kept)| (site.clone(), kept.clone())).collect();
        for (site, kept) in all.into_iter().filter(|(_, kept)| kept.n - kept.segmented >= LOOSE) {
            let first = kept.segmented + 1;
            if kept.loose.len() > SEGMENT {
                continue;
            }
            let name = format!("{}/{}-{}", segments(&site), number(first), number(kept.n));
            // Another run may have merged the same batches or some of them; either result is valid.
            self.wire.create(&name, &kept.loose).await?;
            if let Some(kept) = self.kept().get_mut(&site) {
                kept.segmented = kept.n;
                kept.loose.clear();
            }
        }
        Ok(())
    }
}

struct Guard {
    /// The renewals, until the lock is dropped.
    _beside: BackgroundTask,
}

#[async_trait]
impl Store for Objects {
    fn place(&self) -> String {
        self.wire.place.clone()
    }

    async fn sites(&self) -> Result<Vec<SiteName>, StateError> {
        let folders = self.wire.folders("journal").await?;
        let mut sites: Vec<SiteName> = folders.into_iter().filter_map(|name| SiteName::new(name).ok()).collect();
        sites.sort();
        Ok(sites)
    }

    async fn log(&self, site: &SiteName) -> Result<Vec<u8>, StateError> {
        self.catch_up(site).await?;
        Ok(self.kept().get(site).map(|kept| kept.log.clone()).unwrap_or_default())
    }

    async fn body(&self, site: &SiteName, body: &BodyRef) -> Result<Vec<u8>, StateError> {
        let end = body.at.saturating_add(u64::from(body.len));
        let find = |kept: &BTreeMap<SiteName, AssembledJournal>| {
            kept.get(site).and_then(|kept| kept.bodies.get(body.at as usize..end as usize)).map(<[u8]>::to_vec)
        };
        if let Some(bytes) = find(&self.kept()) {
            return Ok(bytes);
        }
        self.catch_up(site).await?;
        find(&self.kept())
            .ok_or_else(|| self.wire.unreadable(&batches(site), format!("there is no body at byte {}", body.at)))
    }

    async fn bodies_len(&self, site: &SiteName) -> Result<u64, StateError> {
        Ok(self.kept().get(site).map_or(0, |kept| kept.bodies.len()) as u64)
    }

    async fn document(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let Some(found) = self.wire.get(name).await? else { return Ok(None) };
        let (_, bytes) = unstamped(&found.bytes).map_err(|because| self.wire.unreadable(name, because))?;
        Ok(Some(bytes.to_vec()).filter(|bytes| !bytes.is_empty()))
    }

    async fn lock(&self, holder: &Holder) -> Result<Lock, StateError> {
        let granted = lease::take(&self.wire, holder).await?;
        let fence = granted.term.fence();
        let beside = self.wire.clock.spawn(Box::pin(granted.term.clone().keep()));
        if granted.ran_out {
            self.fence_off(fence).await?;
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(granted.term.clone());
        self.broken.store(false, Ordering::SeqCst);
        let grace = if granted.ran_out { self.wire.timing.grace } else { Duration::ZERO };
        Ok(Lock { fence, guard: Box::new(Guard { _beside: beside }), lease: Some(granted.term), grace })
    }

    async fn holder(&self) -> Result<Option<Holder>, StateError> {
        lease::holder(&self.wire).await
    }

    async fn unlock(&self, lock: Lock) -> Result<(), StateError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(term) = held.filter(|term| term.fence() == lock.fence && term.lost().is_none()) else { return Ok(()) };
        // A write with an unknown result may still arrive, so the lease is not released: the next holder waits and
        // fences off the journals.
        if self.broken.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.gather().await?;
        term.release().await
    }

    async fn append(&self, lock: &Lock, site: &SiteName, batch: &Batch) -> Result<(), StateError> {
        self.check(lock)?;
        match self.put_batch(site, lock.fence, batch).await {
            Ok(Put::Done(_)) => Ok(()),
            Ok(Put::Taken(_)) => {
                self.broken.store(true, Ordering::SeqCst);
                let because = "another run writes to this journal".to_owned();
                Err(StateError::LeaseLost { place: self.wire.place.clone(), because })
            }
            Err(error) => {
                self.broken.store(true, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    async fn cut(&self, lock: &Lock, site: &SiteName, _len: u64) -> Result<(), StateError> {
        self.check(lock)?;
        Err(self.wire.unreadable(&batches(site), "its last batch is incomplete"))
    }

    async fn replace(&self, lock: &Lock, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.check(lock)?;
        self.put_document(name, lock.fence, Some(bytes)).await
    }

    async fn swap(&self, name: &str, expected: Option<&[u8]>, bytes: &[u8]) -> Result<bool, StateError> {
        let put = match self.wire.get(name).await? {
            None if expected.is_some() => return Ok(false),
            None => self.wire.create(name, &stamped(0, bytes)).await?,
            Some(found) => {
                let (fence, there) = unstamped(&found.bytes).map_err(|why| self.wire.unreadable(name, why))?;
                if Some(there).filter(|there| !there.is_empty()) != expected {
                    return Ok(false);
                }
                // A transfer of the state wrote it under a lock.
                self.wire.update(name, &stamped(fence, bytes), &found.tag).await?
            }
        };
        Ok(matches!(put, Put::Done(_)))
    }

    async fn documents(&self, folder: &str) -> Result<Vec<String>, StateError> {
        self.wire.list(folder, None).await
    }

    async fn remove(&self, name: &str) -> Result<(), StateError> {
        self.wire.remove(name).await
    }
}

/// Documents start with a line that names their fencing number. A write under another lock thus has other bytes and
/// another ETag.
fn stamped(fence: u64, bytes: &[u8]) -> Vec<u8> {
    let mut stamped = format!("fence {fence}\n").into_bytes();
    stamped.extend_from_slice(bytes);
    stamped
}

fn unstamped(bytes: &[u8]) -> Result<(u64, &[u8]), &'static str> {
    let stamp = bytes.strip_prefix(b"fence ").and_then(|rest| {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let fence = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        Some((fence, &rest[end + 1..]))
    });
    stamp.ok_or("it does not record the lock that it was written under")
}

fn batches(site: &SiteName) -> String {
    format!("journal/{site}/batches")
}

fn segments(site: &SiteName) -> String {
    format!("journal/{site}/segments")
}

fn number(n: u64) -> String {
    format!("{n:010}")
}

/// The first and last batch of a segment, from its name.
fn range_of(name: &str) -> Option<(u64, u64)> {
    let (first, last) = name.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}
