//! Models on disk, by content. Every step leaves the folder whole if the process dies in it.
//!
//! ```text
//! blobs/ab/abcd…        contents, by SHA-256, read-only
//! chunks/ab/abcd…       where weights are cut into chunks, with the digest of each
//! models/<digest>/      one folder per model: hard links to blobs, and textnlp-model.json; appears by one rename
//! refs/<key>.json       which model a source means
//! partial/              downloads that are not finished
//! assembly/             models that are being put together
//! used/ pins/ locks/    when a model was last asked for, which are protected, who works on what
//! textnlp-model-cache   marks the folder as a store
//! ```

mod assembly;
mod evict;
mod place;

use std::fs;
use std::io::{self, Write};
use std::time::UNIX_EPOCH;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use textnlp_files::{Replace, check_folder, check_parents};

pub(crate) use assembly::Assembly;
#[cfg(test)]
pub(crate) use evict::ABANDONED;
pub use evict::AbandonedDownload;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::{Manifest, read_manifest, verify};
use crate::source::Source;

/// A folder of models, shared by any number of processes.
#[derive(Debug, Clone)]
pub struct Store {
    path: Utf8PathBuf,
}

/// A model in the store. While it lives, the model is not evicted.
#[derive(Debug)]
pub struct Model {
    /// Its folder: read-only files.
    pub dir: Utf8PathBuf,
    /// What it holds.
    pub manifest: Manifest,
    _held: textnlp_files::Lock,
}

/// A model that the store has.
#[derive(Debug, Clone, Serialize)]
pub struct Stored {
    /// What it holds.
    pub manifest: Manifest,
    /// Its folder.
    pub dir: Utf8PathBuf,
    /// Protected from eviction.
    pub pinned: bool,
    /// When it was last asked for, in seconds of Unix time.
    pub used: u64,
}

/// What removing a model brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Bytes of contents that nothing in the store needs any more.
    pub freed: u64,
}

/// Which model a source means.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) source: String,
    pub(crate) digest: Digest,
    pub(crate) fingerprint: Option<String>,
}

impl Reference {
    pub(crate) fn key(source: &Source) -> String {
        Digest::of(source.to_string().as_bytes()).hex()[..32].to_owned()
    }
}

const FOLDERS: [&str; 9] = ["blobs", "chunks", "models", "refs", "partial", "assembly", "used", "pins", "locks"];
/// Marks a folder as a store. It is created first, so that another process never finds a store without it.
const MARKER: &str = "textnlp-model-cache";
/// Backup programs skip folders with this file; everything in a store can be fetched again.
const CACHE_TAG: &str = "CACHEDIR.TAG";
const CACHE_TAG_TEXT: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n";
/// The folder that is in a new filesystem.
const LOST_AND_FOUND: &str = "lost+found";

/// What a folder is to a store.
enum Content {
    /// It is empty or missing.
    Nothing,
    /// A store with its marker.
    Store,
    /// A store of a version without markers.
    Unmarked,
    /// Files of something else.
    Other,
}

impl Content {
    fn of(path: &Utf8Path) -> Result<Content> {
        if is_marked(path)? {
            return Ok(Content::Store);
        }
        let mut names = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Nothing),
            names => names.map_err(Error::io("list", path))?,
        };
        if names.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOST_AND_FOUND)) {
            return Ok(Content::Nothing);
        }
        // Another process may have begun to create the store.
        if is_marked(path)? {
            return Ok(Content::Store);
        }
        let is_folder = |name: &&str| path.join(name).symlink_metadata().is_ok_and(|there| there.is_dir());
        let tag = local::read_bounded(&path.join(CACHE_TAG), CACHE_TAG_TEXT.len() as u64).ok().flatten();
        match FOLDERS.iter().all(is_folder) && tag.is_some_and(|text| text == CACHE_TAG_TEXT) {
            true => Ok(Content::Unmarked),
            false => Ok(Content::Other),
        }
    }
}

fn is_marked(path: &Utf8Path) -> Result<bool> {
    let marker = path.join(MARKER);
    match marker.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        there => Ok(there.map_err(Error::io("check", &marker))?.is_file()),
    }
}

fn mark(path: &Utf8Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("make folder", path))?;
    let marker = path.join(MARKER);
    let mut file = local::open_to_write(&marker, 0)?;
    let written = file.write_all(b"The files in this folder belong to textnlp-deploy, which removes old ones.\n");
    written.and_then(|()| file.sync_all()).map_err(Error::io("write", &marker))?;
    local::sync_parent(&marker)
}

fn not_a_store(path: &Utf8Path) -> Error {
    Error::Unusable {
        what: format!("the model cache {path}"),
        why: format!("the folder has other files and no `{MARKER}`, so it is no model cache"),
        hint: format!("use a folder that is empty or does not exist, such as {}", path.join("model-cache")),
    }
}

impl Store {
    /// Opens the store in this folder, and creates it if the folder is empty or missing. A folder with other files is refused: a store
    /// removes files of its own.
    pub fn open(path: impl AsRef<Utf8Path>) -> Result<Store> {
        let path = path.as_ref();
        match Content::of(path)? {
            Content::Store => {}
            Content::Nothing | Content::Unmarked => mark(path)?,
            Content::Other => return Err(not_a_store(path)),
        }
        for folder in FOLDERS {
            local::make_dir(&path.join(folder))?;
        }
        let tag = path.join(CACHE_TAG);
        if !tag.exists() {
            local::write_durably(&tag, CACHE_TAG_TEXT)?;
        }
        Ok(Store { path: path.canonicalize_utf8().map_err(Error::io("resolve", path))? })
    }

    /// Opens the store in this folder for reading, and creates nothing; `None` if the folder is empty or missing. A folder with other
    /// files is refused.
    pub fn existing(path: impl AsRef<Utf8Path>) -> Result<Option<Store>> {
        let path = path.as_ref();
        match Content::of(path)? {
            Content::Store | Content::Unmarked => {}
            Content::Nothing => return Ok(None),
            Content::Other => return Err(not_a_store(path)),
        }
        if !path.join("models").is_dir() {
            return Ok(None);
        }
        for folder in FOLDERS.map(|name| path.join(name)).iter().filter(|folder| folder.exists()) {
            local::no_link(folder)?;
        }
        Ok(Some(Store { path: path.canonicalize_utf8().map_err(Error::io("resolve", path))? }))
    }

    /// Its folder.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Every model it has, the one asked for last first.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let models = self.folder("models");
        let mut all = Vec::new();
        for entry in fs::read_dir(&models).map_err(Error::io("list", &models))? {
            let entry = entry.map_err(Error::io("list", &models))?;
            let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()) else {
                continue;
            };
            let dir = self.dir(&digest);
            match read_manifest(&dir) {
                Ok(Some(manifest)) => {
                    let used = mtime(&self.folder("used").join(digest.hex()));
                    let pinned = self.folder("pins").join(digest.hex()).exists();
                    all.push(Stored { manifest, dir, pinned, used });
                }
                Ok(None) => tracing::warn!(%dir, "a folder of the store has no manifest"),
                Err(error) => tracing::warn!(%dir, %error, "a stored model is damaged"),
            }
        }
        all.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.manifest.digest.cmp(&b.manifest.digest)));
        Ok(all)
    }

    /// Reads every byte of a model and compares.
    pub fn verify(&self, digest: &Digest) -> Result<Manifest> {
        verify(&self.dir(digest))
    }

    /// Protects a model from eviction.
    pub fn pin(&self, digest: &Digest) -> Result<()> {
        self.stamp("pins", digest)
    }

    /// Lets a model be evicted again.
    pub fn unpin(&self, digest: &Digest) -> Result<()> {
        local::remove_file(&self.folder("pins").join(digest.hex()))
    }

    /// Opens a model by its digest and keeps it from being evicted; `None` if the store does not have it.
    pub fn open_model(&self, digest: &Digest) -> Result<Option<Model>> {
        // The lock comes first: what is read after it stays.
        let Some(held) = local::try_lock(&self.model_lock(digest), true)? else { return Ok(None) };
        let manifest = self.manifest(digest)?;
        Ok(manifest.map(|manifest| Model { dir: self.dir(digest), manifest, _held: held }))
    }

    /// The folder of a model, for commands that only read; `None` if the store does not have it. Nothing keeps the model from being evicted.
    pub fn model_folder(&self, digest: &Digest) -> Result<Option<Utf8PathBuf>> {
        Ok(self.manifest(digest)?.map(|_| self.dir(digest)))
    }

    fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>> {
        let dir = self.dir(digest);
        match read_manifest(&dir)? {
            Some(manifest) if manifest.digest != *digest => {
                Err(Error::corrupt(&dir, format!("it holds {}", manifest.digest)))
            }
            found => Ok(found),
        }
    }

    /// Whether other users can change which model a source means. Then only digests that come from elsewhere are used.
    pub(crate) fn is_shared(&self) -> Result<bool> {
        let mut exposed = Vec::new();
        check_folder(&self.path, 0, &mut exposed)?;
        check_folder(self.folder("refs"), 1, &mut exposed)?;
        Ok(!exposed.is_empty() || check_parents(&self.path)?.is_some())
    }

    pub(crate) fn folder(&self, name: &str) -> Utf8PathBuf {
        self.path.join(name)
    }

    pub(crate) fn has_blob(&self, digest: Digest) -> bool {
        self.blob(&digest).exists()
    }

    /// What is recorded of a source. In a store that other users can change, nothing.
    pub(crate) fn reference(&self, source: &Source) -> Result<Option<Reference>> {
        if self.is_shared()? {
            return Ok(None);
        }
        let path = self.folder("refs").join(format!("{}.json", Reference::key(source)));
        let Some(text) = local::read_bounded(&path, 64 << 10)? else { return Ok(None) };
        // A reference can always be made again, so a broken one counts as none.
        let parsed: Option<Reference> = serde_json::from_slice(&text).ok();
        Ok(parsed.filter(|reference| reference.source == source.to_string()))
    }

    pub(crate) fn remember(&self, source: &Source, model: &Model, fingerprint: Option<String>) -> Result<()> {
        let path = self.folder("refs").join(format!("{}.json", Reference::key(source)));
        let reference = Reference { source: source.to_string(), digest: model.manifest.digest, fingerprint };
        let text = serde_json::to_vec_pretty(&reference).expect("texts alone");
        local::write_durably(&path, &text)?;
        self.touch(&model.manifest.digest)
    }

    /// Notes that the model was asked for now.
    pub(crate) fn touch(&self, digest: &Digest) -> Result<()> {
        self.stamp("used", digest)
    }

    /// Puts a new empty file in the place of what has this name, which may be a link or belong to another user.
    fn stamp(&self, folder: &str, digest: &Digest) -> Result<()> {
        Ok(Replace::umask().without_sync().write(self.folder(folder).join(digest.hex()), b"")?)
    }

    fn dir(&self, digest: &Digest) -> Utf8PathBuf {
        self.folder("models").join(digest.hex())
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Utf8PathBuf {
        let hex = digest.hex();
        self.folder("blobs").join(&hex[..2]).join(hex)
    }

    fn model_lock(&self, digest: &Digest) -> Utf8PathBuf {
        self.folder("locks").join(format!("model-{}", digest.hex()))
    }
}

fn mtime(path: &Utf8Path) -> u64 {
    let modified = fs::metadata(path).and_then(|found| found.modified()).ok();
    modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs())
}
