//! A model that is being put together, beside the store's models, until one rename makes it one of them.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_files::{Lock, Replace};

use super::{Model, Store};
use crate::chunks::{Recorded, Recorder};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::{FileEntry, MANIFEST, Manifest, hash_file};
use crate::progress::{Event, Progress};

/// Interval of progress reports of a copy.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// See the module. Dropped without [`Assembly::install`] it leaves the blobs and removes the rest.
pub(crate) struct Assembly<'a> {
    store: &'a Store,
    dir: Utf8PathBuf,
    lock: Utf8PathBuf,
    _held: Lock,
    max_bytes: Option<u64>,
}

impl Store {
    pub(crate) fn assembly(&self, max_bytes: Option<u64>) -> Result<Assembly<'_>> {
        self.clear_dead_assemblies()?;
        let stamp = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        let dir = self.folder("assembly").join(format!("{}-{stamp}", textnlp_files::unique_name()));
        let lock = Utf8PathBuf::from(format!("{dir}.lock"));
        let held = create_locked(&lock)?;
        fs::create_dir(&dir).map_err(Error::io("make folder", &dir))?;
        Ok(Assembly { store: self, dir, lock, _held: held, max_bytes })
    }

    /// Removes assemblies of killed processes: their lock is not held.
    fn clear_dead_assemblies(&self) -> Result<()> {
        let folder = self.folder("assembly");
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if name.ends_with("-gone") {
                local::remove_dir(&folder.join(&name))?;
                continue;
            }
            // The lock is made before the folder and removed after it, so it is the lock that we look for.
            let Some(stem) = name.strip_suffix(".lock") else { continue };
            if !local::safe_name(stem) {
                continue;
            }
            if let Ok(Some(_held)) = local::try_lock(&folder.join(&name), false) {
                local::remove_dir(&folder.join(stem))?;
                local::remove_file(&folder.join(&name))?;
            }
        }
        Ok(())
    }
}

/// Creates a lock file and holds it. Between the two another process may take it for one that a killed process left: it locks and removes
/// it, and the next try creates another.
fn create_locked(path: &Utf8Path) -> Result<Lock> {
    for _ in 0..100 {
        if let Some(held) = local::try_lock(path, false)? {
            return Ok(held);
        }
        // The other one may have lost its core.
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(Error::Busy { what: path.to_string() })
}

impl Assembly<'_> {
    pub(crate) fn store(&self) -> &Store {
        self.store
    }

    /// Where a file of this name is, once it is here.
    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        self.dir.join(name)
    }

    /// Takes the file from the store's blobs if the content is there and intact.
    pub(crate) async fn reuse(&self, name: &str, digest: Digest) -> Result<Option<FileEntry>> {
        let blob = self.store.blob(&digest);
        let target = self.path(name);
        // Linked first, then read: an eviction meanwhile takes the blob's name away, not our content.
        if !link_if_there(&blob, &target)? {
            return Ok(None);
        }
        let path = target.clone();
        let hashed = tokio::task::spawn_blocking(move || hash_file(&path)).await;
        let (found, bytes) = hashed.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        if found != digest {
            tracing::warn!(%blob, "a stored file is damaged and is fetched again");
            local::remove_file(&target)?;
            self.store.remove_blob(&digest)?;
            return Ok(None);
        }
        Ok(Some(FileEntry { name: name.to_owned(), digest, bytes }))
    }

    /// Takes a finished and synced file, whose digest was taken just now: it becomes a blob and a file of this model.
    pub(crate) async fn take(&self, name: &str, found: Recorded, file: File, from: &Utf8Path) -> Result<FileEntry> {
        let entry = FileEntry { name: name.to_owned(), digest: found.digest, bytes: found.bytes };
        let (store, target, from) = (self.store.clone(), self.path(name), from.to_owned());
        let taken = tokio::task::spawn_blocking(move || {
            take(&store, &target, &entry, &file, &from)?;
            if !found.chunks.is_empty() {
                // They spare a later bundle a pass over the weights; the model is whole without them.
                if let Err(error) = store.keep_chunks(&entry.digest, &found.chunks) {
                    tracing::warn!(digest = %entry.digest, error = textnlp_net::error_chain(&error), "the chunks of the weights could not be stored");
                }
            }
            Ok(entry)
        });
        taken.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Writes a file of this content.
    pub(crate) fn write(&self, entry: &FileEntry, content: &[u8]) -> Result<()> {
        let part = self.dir.join(format!(".{}.part", entry.name));
        let mut file = local::open_to_write(&part, 0)?;
        file.write_all(content).and_then(|()| file.sync_all()).map_err(Error::io("write", &part))?;
        take(self.store, &self.path(&entry.name), entry, &file, &part)
    }

    /// Copies a file of this machine. The digest is that of the copy: the original may change while it is read.
    pub(crate) async fn copy(&self, name: &str, from: &Utf8Path, progress: &Progress<'_>) -> Result<FileEntry> {
        let part = self.dir.join(format!(".{name}.part"));
        let total = fs::metadata(from).ok().map(|found| found.len());
        let done = Arc::new(AtomicU64::new(0));
        let (from, to, counter, called) = (from.to_owned(), part.clone(), done.clone(), name.to_owned());
        let mut copying = tokio::task::spawn_blocking(move || copy_and_hash(&called, &from, &to, &counter));
        let copied = loop {
            match tokio::time::timeout(REPORT_INTERVAL, &mut copying).await {
                Ok(copied) => break copied,
                Err(_) => progress(Event::File { name: name.to_owned(), done: done.load(Ordering::Relaxed), total }),
            }
        };
        let (found, file) = copied.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        self.take(name, found, file, &part).await
    }

    /// Makes sure that `more` bytes fit, under the store's bound and on the disk.
    pub(crate) fn make_room(&self, what: &str, more: u64) -> Result<()> {
        if let Some(limit) = self.max_bytes {
            self.store.shrink(limit.saturating_sub(more))?;
            let held = self.store.bytes()?;
            if held.saturating_add(more) > limit {
                return Err(Error::TooLarge { what: what.to_owned(), needed: more, limit, held });
            }
        }
        // Manifests, directories and the filesystem's own needs.
        let needed = more.saturating_add(more / 50).saturating_add(1 << 20);
        let there = textnlp_files::filesystem(&self.dir)?.free;
        if there < needed {
            return Err(Error::NoSpace { what: what.to_owned(), path: self.store.path().to_owned(), needed, there });
        }
        Ok(())
    }

    /// Makes it a model of the store, by one rename. Repeated by two processes, one of them wins and both are right.
    pub(crate) async fn install(self, manifest: Manifest) -> Result<Model> {
        for file in &manifest.files {
            // An eviction may have taken the blob's name while the rest was fetched.
            publish(self.store, &self.path(&file.name), file)?;
        }
        local::write_durably(&self.path(MANIFEST), &manifest.to_bytes())?;
        let digest = manifest.digest;
        let lock = self.store.model_lock(&digest);
        let wait = std::time::Duration::from_secs(60);
        let held = local::lock(&lock, true, wait, &format!("the model {digest}"), || ()).await?;
        let target = self.store.dir(&digest);
        if let Err(error) = fs::rename(&self.dir, &target) {
            if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) {
                return Err(Error::io("install", &target)(error));
            }
            // The same content from another source, or one that was damaged: ours is checked, so ours stays.
            super::place::swap(&self.dir, &target)?;
        }
        textnlp_files::sync_folder(self.store.folder("models"))?;
        Ok(Model { dir: target, manifest, _held: held })
    }
}

fn take(store: &Store, target: &Utf8Path, entry: &FileEntry, file: &File, from: &Utf8Path) -> Result<()> {
    // By its descriptor: other users may have put a link in the place of the path.
    file.set_permissions(Permissions::from_mode(0o444)).map_err(Error::io("make read-only", from))?;
    let blob = store.blob(&entry.digest);
    local::remove_file(target)?;
    // The same content from elsewhere is shared; one that is no longer what it was is replaced.
    if link_if_there(&blob, target)? {
        if hash_file(target)?.0 == entry.digest {
            return local::remove_file(from);
        }
        local::remove_file(target)?;
        store.remove_blob(&entry.digest)?;
    }
    fs::rename(from, target).map_err(Error::io("move", from))?;
    publish(store, target, entry)
}

/// Gives the content its name among the blobs.
fn publish(store: &Store, file: &Utf8Path, entry: &FileEntry) -> Result<()> {
    let blob = store.blob(&entry.digest);
    if blob.exists() {
        return Ok(());
    }
    if let Some(parent) = blob.parent() {
        local::make_dir(parent)?;
    }
    link_if_there(file, &blob)?;
    local::sync_parent(&blob)
}

impl Drop for Assembly<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next assembly; nothing depends on it.
        let _ = local::remove_dir(&self.dir);
        let _ = local::remove_file(&self.lock);
    }
}

/// Links, or copies where the filesystem has no hard links. A file that other users can change is copied too: they could
/// change a link after it was verified. False: there is nothing at `from`.
pub(super) fn link_if_there(from: &Utf8Path, to: &Utf8Path) -> Result<bool> {
    match fs::hard_link(from, to) {
        Ok(()) if is_own(to)? => return Ok(true),
        Ok(()) => local::remove_file(to)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        // Other filesystem, no hard links there, or too many of them.
        Err(_) => {}
    }
    match copy_synced(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("copy", to)(error)),
    }
}

/// Whether no other user can change a file.
pub(super) fn is_own(path: &Utf8Path) -> Result<bool> {
    fs::symlink_metadata(path).map(|there| textnlp_files::is_own(&there)).map_err(Error::io("check", path))
}

fn copy_synced(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
    let mut source = local::open_to_read(from)?;
    let there = source.metadata()?;
    Replace::umask().with(to, |file| {
        file.set_permissions(Permissions::from_mode(there.permissions().mode() & 0o755))?;
        io::copy(&mut source, file).map(drop)
    })
}

fn copy_and_hash(name: &str, from: &Utf8Path, to: &Utf8Path, done: &AtomicU64) -> Result<(Recorded, File)> {
    use std::io::Read;
    let mut source = File::open(from).map_err(Error::io("open", from))?;
    let mut target = local::open_to_write(to, 0)?;
    let mut recorder = Recorder::of(name, &source);
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = source.read(&mut buffer).map_err(Error::io("read", from))?;
        if n == 0 {
            break;
        }
        recorder.update(&buffer[..n]);
        target.write_all(&buffer[..n]).map_err(Error::io("write", to))?;
        done.fetch_add(n as u64, Ordering::Relaxed);
    }
    target.sync_all().map_err(Error::io("sync", to))?;
    Ok((recorder.finish(), target))
}
