//! Eviction: least recently used models first; models in use or pinned stay.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};

use super::{Removed, Store, Stored};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::read_manifest;

/// A download or another partial file that was not written to for this long is abandoned.
pub(crate) const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

/// An unfinished download to which nothing was written for some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AbandonedDownload {
    /// The file with the content so far.
    pub path: Utf8PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was last written to.
    pub written: SystemTime,
}

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
            Err(error) if error.kind() == ErrorKind::NotFound => {}
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
    pub(crate) fn drop_orphans(&self) -> Result<()> {
        self.remove_own("blobs", |_, path| fs::symlink_metadata(path).is_ok_and(|found| found.nlink() == 1))?;
        self.remove_own("chunks", |digest, _| !self.has_blob(*digest))
    }

    /// Removes the files `ab/abcd…` of a folder that are unused, and temporary files of killed processes. Files with other names are not
    /// the store's.
    fn remove_own(&self, name: &str, is_unused: impl Fn(&Digest, &Utf8Path) -> bool) -> Result<()> {
        let is_hex = |digits: &str| digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        for folder in names(&self.folder(name), fs::FileType::is_dir)? {
            let start = folder.file_name().unwrap_or_default();
            if start.len() != 2 || !is_hex(start) {
                continue;
            }
            for path in names(&folder, fs::FileType::is_file)? {
                let file = path.file_name().unwrap_or_default();
                let named = file.trim_start_matches('.');
                let Some((digits, end)) = named.split_at_checked(64) else { continue };
                let Some(digest) = digits.parse().ok().filter(|_| is_hex(digits) && digits.starts_with(start)) else {
                    continue;
                };
                let is_temporary = end.starts_with('.') && end.ends_with(".new") && is_abandoned(&path);
                if is_temporary || file == digits && is_unused(&digest, &path) {
                    local::remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Downloads to which nothing was written since then. A process may still hold one, as while it verifies the content.
    pub fn abandoned(&self, before: SystemTime) -> Result<Vec<AbandonedDownload>> {
        let folder = self.folder("partial");
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for path in local::file_names(&folder)?.iter().map(|name| folder.join(name)) {
            let is_own =
                path.file_stem().is_some_and(|key| key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit()));
            if is_own
                && path.extension() == Some("part")
                && let Some((written, bytes)) = written(&path)
                && written < before
            {
                found.push(AbandonedDownload { path, bytes, written });
            }
        }
        Ok(found)
    }

    /// Removes a download with what is recorded of it. Returns false if a process holds it or has written to it since it
    /// was found.
    pub fn remove_abandoned(&self, download: &AbandonedDownload) -> Result<bool> {
        let path = &download.path;
        let Some(_held) = local::try_lock(&path.with_extension("lock"), false)? else { return Ok(false) };
        if written(path) != Some((download.written, download.bytes)) {
            return Ok(false);
        }
        local::remove_file(path)?;
        local::remove_file(&path.with_extension("json"))?;
        Ok(true)
    }

    fn drop_abandoned(&self) -> Result<()> {
        let Some(before) = SystemTime::now().checked_sub(ABANDONED) else { return Ok(()) };
        for download in self.abandoned(before)? {
            self.remove_abandoned(&download)?;
        }
        Ok(())
    }
}

/// What is in a folder and of this type; links are not followed. Nothing if there is no folder.
fn names(folder: &Utf8Path, is_wanted: fn(&fs::FileType) -> bool) -> Result<Vec<Utf8PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", folder))?,
    };
    // Another process may remove what is listed.
    let wanted = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| is_wanted(&kind)));
    Ok(wanted.filter_map(|entry| Utf8PathBuf::from_path_buf(entry.path()).ok()).collect())
}

/// When a file was last written to, and its size; `None` for what is not a regular file.
fn written(path: &Utf8Path) -> Option<(SystemTime, u64)> {
    let about = path.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
    Some((about.modified().ok()?, about.len()))
}

/// Whether a file was not written to for so long that its writer must be gone.
fn is_abandoned(path: &Utf8Path) -> bool {
    let age = fs::metadata(path).and_then(|found| found.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age > ABANDONED)
}

fn count(folder: &Utf8Path, depth: u32, seen: &mut HashSet<(u64, u64)>, bytes: &mut u64) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
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
