//! A state in a local folder: `lineage.json`, `lock`, `lease.json`, and for each site `journal/SITE/log` with `bodies`.
//! `reserve` keeps space for a `down` on a full disk, and for records of commands that free space there. `audit` has the
//! records of commands, with a lock of its own.
//!
//! The lock is the operating system's lock on the file `lock`; the kernel releases it when the process ends. Folders
//! have mode 0700 and files 0600.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use serde::{Deserialize, Serialize};
use textnlp_files::{Replace, check_folder};
use textnlp_provider::SiteName;

use super::record::BodyRef;
use super::store::{Batch, Holder, Lock, Store};
use super::{Io, StateError};

/// The largest log in bytes: a hundred thousand records of full length. No valid log is larger.
const LOG_LIMIT: u64 = 512 << 20;

/// The file that keeps space for a `down` on a full disk.
const RESERVE: &str = "reserve";
/// Its size: a `down` writes its plan, its records and its markers, which take less.
const RESERVE_BYTES: u64 = 4 << 20;
/// What another command may take of it each time, and what stays for a `down`.
const RESERVE_PART_BYTES: u64 = 256 << 10;
const MIN_RESERVE_BYTES: u64 = 3 << 20;
/// The free space below which the reserve is not created, and is released for a `down`.
const RESERVE_NEEDED: u64 = 16 * RESERVE_BYTES;

/// A run writes its name a moment after it took the lock. Until then, the name of the last one is there.
const HOLDER_DELAY: Duration = Duration::from_millis(100);
/// How often the lock of documents is tried: ten seconds, far longer than a write.
const DOCUMENTS_LOCK_ATTEMPTS: u32 = 1000;
const DOCUMENTS_LOCK_POLL: Duration = Duration::from_millis(10);

/// A state in a folder of this machine.
///
/// Writes block the calling task: they are a few kilobytes. A write on another thread could continue after its run was
/// dropped.
#[derive(Debug)]
pub struct Folder {
    path: Utf8PathBuf,
    /// Set after a failed write: the content on disk is unknown. Nothing more is written until it was read again.
    broken: AtomicBool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Lease {
    fence: u64,
    #[serde(flatten)]
    holder: Holder,
}

impl Folder {
    /// The state at this path. The first write creates it.
    pub fn at(path: impl Into<Utf8PathBuf>) -> Self {
        Self { path: path.into(), broken: AtomicBool::new(false) }
    }

    /// The path.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Frees the reserved space if the disk is nearly full, for a run that removes resources.
    pub fn free_reserve(&self) {
        if textnlp_files::filesystem(&self.path).is_ok_and(|disk| disk.free < RESERVE_NEEDED) {
            self.remove_reserve();
        }
    }

    /// Frees a part of the reserved space, for the record of a command that frees more, or that must not wait for space.
    /// Returns whether there was one.
    pub fn release_part_of_reserve(&self) -> bool {
        let path = self.path.join(RESERVE);
        let Ok(there) = path.symlink_metadata() else { return false };
        let left = there.len().saturating_sub(RESERVE_PART_BYTES);
        let shrink = || OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(left));
        there.is_file() && left >= MIN_RESERVE_BYTES && shrink().is_ok()
    }

    /// Removes the reserve: nothing is left to remove.
    pub fn remove_reserve(&self) {
        // Without it, a later run fails as it would have without the reserve.
        let _ = std::fs::remove_file(self.path.join(RESERVE));
    }

    /// Reserves space for a later `down`. Best effort: some filesystems cannot, and a state is complete without it.
    fn keep_reserve(&self) {
        let path = self.path.join(RESERVE);
        let has_room = || textnlp_files::filesystem(&self.path).is_ok_and(|disk| disk.free >= RESERVE_NEEDED);
        let is_whole = path.symlink_metadata().is_ok_and(|there| there.len() >= RESERVE_BYTES);
        if is_whole || !has_room() {
            return;
        }
        // A part of it was lent.
        self.remove_reserve();
        let reserved = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES).map_err(io::Error::from));
        if reserved.is_err() {
            self.remove_reserve();
        }
    }

    /// Takes the operating system's lock. `None`: another process has it.
    fn take_lock(&self) -> Result<Option<textnlp_files::Lock>, StateError> {
        make_folder(&self.path)?;
        let path = self.path.join("lock");
        textnlp_files::Lock::try_exclusive(&path, 0o600)
            .map_err(|error| StateError::Io(Io::new(error.action, path.as_str(), error.source)))
    }

    /// The same, tried twice: another process may have it for a moment.
    fn take_lock_soon(&self) -> Result<textnlp_files::Lock, StateError> {
        if let Some(held) = self.take_lock()? {
            return Ok(held);
        }
        std::thread::sleep(HOLDER_DELAY);
        self.take_lock()?.ok_or_else(|| self.held())
    }

    /// Takes the lock of the documents that are written without the lock of the state. It is held for one write.
    fn lock_documents(&self, document: &Utf8Path) -> Result<textnlp_files::Lock, StateError> {
        let folder = document.parent().unwrap_or(&self.path);
        make_folder(folder)?;
        let path = folder.join(".lock");
        let fail = |action, error| StateError::Io(Io::new(action, path.as_str(), error));
        for _ in 0..DOCUMENTS_LOCK_ATTEMPTS {
            let held = textnlp_files::Lock::try_exclusive(&path, 0o600);
            if let Some(held) = held.map_err(|error| fail(error.action, error.source))? {
                return Ok(held);
            }
            std::thread::sleep(DOCUMENTS_LOCK_POLL);
        }
        Err(fail("lock", io::ErrorKind::ResourceBusy.into()))
    }

    fn put_lease(&self, fence: u64, holder: &Holder) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(&Lease { fence, holder: holder.clone() }).expect("a lease is plain data");
        self.put(&self.path.join("lease.json"), &text)
    }

    fn held(&self) -> StateError {
        StateError::Held { holder: self.lease().ok().flatten().map(|lease| lease.holder) }
    }

    fn site(&self, site: &SiteName) -> Utf8PathBuf {
        self.path.join("journal").join(site.as_str())
    }

    fn read(&self, path: &Utf8Path) -> Result<Option<Vec<u8>>, StateError> {
        match std::fs::metadata(path) {
            Ok(there) if there.len() > LOG_LIMIT => {
                return Err(StateError::Io(Io::new("read", path.as_str(), io::ErrorKind::FileTooLarge.into())));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::Io(Io::new("read", path.as_str(), error))),
        }
        match std::fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::Io(Io::new("read", path.as_str(), error))),
        }
    }

    fn lease(&self) -> Result<Option<Lease>, StateError> {
        let Some(bytes) = self.read(&self.path.join("lease.json"))? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| StateError::Unreadable {
            what: self.path.join("lease.json").into_string(),
            because: super::json_problem(&error),
        })
    }

    fn check(&self, lock: &Lock) -> Result<(), StateError> {
        let newest = self.lease()?.map_or(0, |lease| lease.fence);
        if newest != lock.fence {
            return Err(StateError::Fenced { ours: lock.fence, newest });
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(StateError::Broken { place: self.path.to_string() });
        }
        Ok(())
    }

    /// Appends at `at`, and reverts a partial write. Not `textnlp_files::append`: the caller chooses the position, so a
    /// record lands exactly where the caller read the end of the log.
    fn append_at(&self, path: &Utf8Path, at: u64, bytes: &[u8]) -> Result<(), StateError> {
        let fail = |action: &'static str, error| StateError::Io(Io::new(action, path.as_str(), error));
        let new = !path.exists();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(|e| fail("open", e))?;
        let written = file.write_all_at(bytes, at).and_then(|()| file.sync_data());
        if let Err(error) = written {
            // A full disk rejects writes but allows a truncation. If that fails too, or on any other error, the content
            // is unknown until it is read again.
            if error.kind() != io::ErrorKind::StorageFull || file.set_len(at).and_then(|()| file.sync_all()).is_err() {
                self.broken.store(true, Ordering::SeqCst);
            }
            return Err(fail("write", error));
        }
        if new && let Some(parent) = path.parent() {
            sync_folder(parent)?;
        }
        Ok(())
    }

    fn put(&self, path: &Utf8Path, bytes: &[u8]) -> Result<(), StateError> {
        // The caller holds the lock of the state, or of these documents.
        let written = Replace::private().sole_writer().write(path, bytes);
        written.map_err(|error| StateError::Io(Io::new("write", path.as_str(), error.source)))
    }
}

/// The result of a write that a full disk may prevent.
fn written_if_room(written: Result<(), StateError>) -> Result<(), StateError> {
    match written {
        Err(error) if error.is_full() => Ok(()),
        written => written,
    }
}

/// Creates a folder. One that exists must be the caller's own: links are not followed.
fn make_folder(path: &Utf8Path) -> Result<(), StateError> {
    let fail = |error| StateError::Io(Io::new("make folder", path.as_str(), error));
    if path.symlink_metadata().is_ok() {
        let mut found = Vec::new();
        check_folder(path, 0, &mut found).map_err(|error| fail(error.source))?;
        return found
            .first()
            .map_or(Ok(()), |exposed| Err(fail(io::Error::new(io::ErrorKind::PermissionDenied, exposed.to_string()))));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
    path.parent().filter(|parent| !parent.as_str().is_empty()).map_or(Ok(()), sync_folder)
}

fn sync_folder(path: &Utf8Path) -> Result<(), StateError> {
    textnlp_files::sync_folder(path).map_err(|error| StateError::Io(Io::new(error.action, path.as_str(), error.source)))
}

#[async_trait]
impl Store for Folder {
    fn place(&self) -> String {
        self.path.to_string()
    }

    async fn sites(&self) -> Result<Vec<SiteName>, StateError> {
        let journal = self.path.join("journal");
        let entries = match std::fs::read_dir(&journal) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StateError::Io(Io::new("list", journal.as_str(), error))),
        };
        let mut sites = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| StateError::Io(Io::new("list", journal.as_str(), error)))?;
            // Other files beside the journals are ignored.
            if let Some(site) = entry.file_name().to_str().and_then(|name| SiteName::new(name).ok()) {
                sites.push(site);
            }
        }
        sites.sort();
        Ok(sites)
    }

    async fn log(&self, site: &SiteName) -> Result<Vec<u8>, StateError> {
        Ok(self.read(&self.site(site).join("log"))?.unwrap_or_default())
    }

    async fn body(&self, site: &SiteName, body: &BodyRef) -> Result<Vec<u8>, StateError> {
        self.bodies(site, std::slice::from_ref(body)).await.map(|mut all| all.remove(0))
    }

    async fn bodies(&self, site: &SiteName, bodies: &[BodyRef]) -> Result<Vec<Vec<u8>>, StateError> {
        if bodies.is_empty() {
            return Ok(Vec::new());
        }
        let path = self.site(site).join("bodies");
        let fail = |error| StateError::Io(Io::new("read", path.as_str(), error));
        let file = File::open(&path).map_err(fail)?;
        let first = bodies.iter().map(|body| body.at).min().unwrap_or_default();
        let last = bodies.iter().map(|body| body.at.saturating_add(body.len.into())).max().unwrap_or_default();
        let requested_bytes: u64 = bodies.iter().map(|body| u64::from(body.len)).sum();
        // If most of a range is needed, one read of the whole range is faster.
        let stretch = (last - first <= requested_bytes.saturating_mul(4)).then(|| {
            let mut bytes = vec![0; (last - first) as usize];
            file.read_exact_at(&mut bytes, first).map(|()| bytes)
        });
        let stretch = stretch.transpose().map_err(fail)?;
        let read = |body: &BodyRef| {
            if let Some(stretch) = &stretch {
                let at = (body.at - first) as usize;
                return Ok(stretch[at..at + body.len as usize].to_vec());
            }
            let mut bytes = vec![0; body.len as usize];
            file.read_exact_at(&mut bytes, body.at).map(|()| bytes)
        };
        bodies.iter().map(read).collect::<io::Result<_>>().map_err(fail)
    }

    async fn bodies_len(&self, site: &SiteName) -> Result<u64, StateError> {
        let path = self.site(site).join("bodies");
        match std::fs::metadata(&path) {
            Ok(there) => Ok(there.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(StateError::Io(Io::new("read", path.as_str(), error))),
        }
    }

    async fn document(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.read(&self.path.join(name))
    }

    async fn lock(&self, holder: &Holder) -> Result<Lock, StateError> {
        let held = self.take_lock_soon()?;
        let fence = self.lease()?.map_or(0, |lease| lease.fence).saturating_add(1);
        self.put_lease(fence, holder)?;
        self.broken.store(false, Ordering::SeqCst);
        Ok(Lock::for_life(fence, held))
    }

    async fn lock_to_read(&self, holder: &Holder) -> Result<Lock, StateError> {
        let held = self.take_lock_soon()?;
        let fence = self.lease()?.map_or(0, |lease| lease.fence).saturating_add(1);
        // With a fence that is not on disk, every write is refused.
        written_if_room(self.put_lease(fence, holder))?;
        Ok(Lock::for_life(fence, held))
    }

    async fn lock_damage(&self) -> Result<Option<String>, StateError> {
        match self.lease() {
            Err(StateError::Unreadable { because, .. }) => Ok(Some(because)),
            lease => lease.map(|_| None),
        }
    }

    async fn reset_lock(&self, holder: &Holder, fence: u64) -> Result<(), StateError> {
        let _held = self.take_lock()?.ok_or_else(|| self.held())?;
        // Another repair may have been faster.
        if self.lock_damage().await?.is_none() { Ok(()) } else { self.put_lease(fence, holder) }
    }

    async fn holder(&self) -> Result<Option<Holder>, StateError> {
        let Ok(there) = std::fs::metadata(self.path.join("lock")) else { return Ok(None) };
        // Trying the lock would hold it briefly, and reject a run that starts then.
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let inode = format!(":{}", there.ino());
        let is_it = |line: &str| {
            let mut words = line.split_whitespace();
            words.any(|word| word == "FLOCK") && words.any(|word| word.ends_with(&inode))
        };
        if !locks.lines().any(is_it) {
            return Ok(None);
        }
        Ok(self.lease()?.map(|lease| lease.holder))
    }

    async fn append(&self, lock: &Lock, site: &SiteName, batch: &Batch) -> Result<(), StateError> {
        self.check(lock)?;
        let folder = self.site(site);
        make_folder(&folder)?;
        self.keep_reserve();
        if !batch.bodies.is_empty() {
            self.append_at(&folder.join("bodies"), batch.bodies_at, &batch.bodies)?;
        }
        self.append_at(&folder.join("log"), batch.log_at, &batch.lines)
    }

    async fn cut(&self, lock: &Lock, site: &SiteName, len: u64) -> Result<(), StateError> {
        self.check(lock)?;
        let path = self.site(site).join("log");
        let cut = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(len).and_then(|()| file.sync_all()));
        cut.map_err(|error| StateError::Io(Io::new("cut", path.as_str(), error)))
    }

    async fn replace(&self, lock: &Lock, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.check(lock)?;
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            make_folder(parent)?;
        }
        self.put(&path, bytes)
    }

    async fn swap(&self, name: &str, expected: Option<&[u8]>, bytes: &[u8]) -> Result<bool, StateError> {
        let path = self.path.join(name);
        make_folder(&self.path)?;
        let _held = self.lock_documents(&path)?;
        if self.read(&path)?.as_deref() != expected {
            return Ok(false);
        }
        self.put(&path, bytes).map(|()| true)
    }

    async fn documents(&self, folder: &str) -> Result<Vec<String>, StateError> {
        let folder = self.path.join(folder);
        let fail = |error| StateError::Io(Io::new("list", folder.as_str(), error));
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(fail)?.file_name().into_string().ok());
        }
        // Beside the documents there are the lock and unfinished files.
        names.retain(|name| !name.starts_with('.') && !name.ends_with(".new"));
        names.sort();
        Ok(names)
    }

    async fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        let _held = self.lock_documents(&path)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StateError::Io(Io::new("remove", path.as_str(), error)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_the_reserve_stays_for_a_removal() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::at(Utf8Path::from_path(dir.path()).unwrap());
        assert!(!folder.release_part_of_reserve());
        let reserve = std::fs::File::create(dir.path().join(RESERVE)).unwrap();
        reserve.set_len(RESERVE_BYTES).unwrap();
        assert_eq!((0..10).filter(|_| folder.release_part_of_reserve()).count(), 4);
        assert_eq!(reserve.metadata().unwrap().len(), MIN_RESERVE_BYTES);
    }

    #[test]
    fn only_a_full_disk_may_leave_the_holder_of_a_lock_to_read_unrecorded() {
        let failed = |kind: io::ErrorKind| Err(StateError::Io(Io::new("write", "lease.json", kind.into())));
        assert!(written_if_room(Ok(())).is_ok() && written_if_room(failed(io::ErrorKind::StorageFull)).is_ok());
        assert!(written_if_room(failed(io::ErrorKind::PermissionDenied)).is_err());
        assert!(written_if_room(Err(StateError::Held { holder: None })).is_err());
    }
}
