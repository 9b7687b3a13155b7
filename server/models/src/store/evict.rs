//! Eviction: least recently used models first; models in use or pinned stay.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use camino::Utf8Path;

use super::{Removed, Store, Stored};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::read_manifest;

/// A download or another partial file that was not written to for this long is abandoned.
pub(crate) const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

impl Store {
    /// Bytes on disk. A content with several names counts once.
    pub fn bytes(&self) -> Result<u64> {
        let mut seen = HashSet::new();
        let mut bytes = 0;
        for folder in ["blobs", "models", "partial", "assembly"] {
            count(&self.folder(folder), 3, &mut seen, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Evicts until the store holds at most `most` bytes; returns what went. What is in use or pinned stays, so the
    /// result may be larger.
    pub fn evict(&self, most: u64) -> Result<Vec<Stored>> {
        self.shrink(most)
    }

    /// Removes a model, pinned or not. One that is in use is refused.
    pub fn remove(&self, digest: &Digest) -> Result<Removed> {
        let before = self.bytes()?;
        if !self.dir(digest).exists() {
            return Err(Error::NotFound {
                what: format!("the model {digest}"),
                why: "the store does not have it".to_owned(),
                hint: "see `textnlp-deploy model list`".to_owned(),
            });
        }
        if !self.try_remove(digest)? {
            return Err(Error::Busy { what: format!("the model {digest}") });
        }
        self.unpin(digest)?;
        Ok(Removed { freed: before.saturating_sub(self.bytes()?) })
    }

    pub(crate) fn shrink(&self, most: u64) -> Result<Vec<Stored>> {
        let mut gone = Vec::new();
        if self.bytes()? <= most {
            return Ok(gone);
        }
        self.drop_abandoned()?;
        self.drop_orphans()?;
        // The list has the one asked for last first, so the oldest is popped.
        let mut candidates = self.list()?;
        while self.bytes()? > most {
            let Some(oldest) = candidates.pop() else { break };
            if !oldest.pinned && self.try_remove(&oldest.manifest.digest)? {
                tracing::info!(model = %oldest.manifest.digest, source = %oldest.manifest.source, "evicted from the store");
                gone.push(oldest);
            }
        }
        Ok(gone)
    }

    /// Removes a model whose bytes are wrong, with its blobs, so that nothing is built from them.
    pub(crate) fn drop_damaged(&self, digest: &Digest) -> Result<()> {
        let manifest = read_manifest(&self.dir(digest)).ok().flatten();
        for file in manifest.iter().flat_map(|manifest| &manifest.files) {
            let blob = self.blob(&file.digest);
            if crate::manifest::hash_file(&blob).is_ok_and(|(found, _)| found != file.digest) {
                self.remove_blob(&file.digest)?;
            }
        }
        // One in use elsewhere keeps its open files; its folder is replaced by the install that follows.
        self.try_remove(digest).map(drop)
    }

    /// Removes an unused model. Returns false if it is in use.
    fn try_remove(&self, digest: &Digest) -> Result<bool> {
        let Some(_held) = local::try_lock(&self.model_lock(digest), false)? else { return Ok(false) };
        let dir = self.dir(digest);
        let files = read_manifest(&dir).ok().flatten().map(|manifest| manifest.files).unwrap_or_default();
        // First out of sight in one step, so that a kill in the middle leaves no half model.
        let away = self.folder("assembly").join(format!("{}-gone", textnlp_files::unique_name()));
        match fs::rename(&dir, &away) {
            Ok(()) => local::remove_dir(&away)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", &dir)(error)),
        }
        local::remove_file(&self.folder("used").join(digest.hex()))?;
        let needed: HashSet<Digest> =
            self.list()?.into_iter().flat_map(|m| m.manifest.files).map(|f| f.digest).collect();
        for file in files.iter().filter(|file| !needed.contains(&file.digest)) {
            self.remove_blob(&file.digest)?;
        }
        Ok(true)
    }

    /// Removes contents without a model or assembly: leftovers of killed fetches. A process hard-links a content before
    /// reading it, so a content with a single link is unused.
    fn drop_orphans(&self) -> Result<()> {
        let blobs = self.folder("blobs");
        for entry in fs::read_dir(&blobs).map_err(Error::io("list", &blobs))? {
            let entry = entry.map_err(Error::io("list", &blobs))?;
            let Some(folder) = entry.file_name().to_str().map(|name| blobs.join(name)) else { continue };
            for name in local::file_names(&folder)? {
                let path = folder.join(name);
                if fs::metadata(&path).is_ok_and(|found| found.nlink() == 1) {
                    local::remove_file(&path)?;
                }
            }
        }
        self.drop_lists()
    }

    fn drop_abandoned(&self) -> Result<()> {
        let folder = self.folder("partial");
        for name in local::file_names(&folder)?.iter().filter(|name| name.ends_with(".part")) {
            let path = folder.join(name);
            let lock = folder.join(name.replace(".part", ".lock"));
            if is_abandoned(&path) && local::try_lock(&lock, false)?.is_some() {
                local::remove_file(&path)?;
                local::remove_file(&folder.join(name.replace(".part", ".json")))?;
            }
        }
        Ok(())
    }
}

/// Whether a file was not written to for so long that its writer must be gone.
pub(crate) fn is_abandoned(path: &Utf8Path) -> bool {
    let age = fs::metadata(path).and_then(|found| found.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age > ABANDONED)
}

fn count(folder: &Utf8Path, depth: u32, seen: &mut HashSet<(u64, u64)>, bytes: &mut u64) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    for entry in entries {
        // Another process may remove what we count; then it does not count.
        let Ok(entry) = entry else { continue };
        let Ok(found) = entry.metadata() else { continue };
        if found.is_file() && seen.insert((found.dev(), found.ino())) {
            *bytes += found.len();
        } else if found.is_dir() && depth > 0 {
            let Ok(path) = camino::Utf8PathBuf::from_path_buf(entry.path()) else { continue };
            count(&path, depth - 1, seen, bytes)?;
        }
    }
    Ok(())
}
