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
//! ```

mod assembly;
mod evict;
mod place;

use std::fs::{self, File};
use std::time::{SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

pub(crate) use assembly::Assembly;
#[cfg(test)]
pub(crate) use evict::ABANDONED;
pub(crate) use evict::is_abandoned;

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

impl Store {
    /// Opens the store in this folder, and makes it if it is not there.
    pub fn open(path: impl AsRef<Utf8Path>) -> Result<Store> {
        let path = path.as_ref();
        for folder in FOLDERS {
            local::make_dir(&path.join(folder))?;
        }
        // Backup programs skip folders with this file; everything here can be had again.
        let tag = path.join("CACHEDIR.TAG");
        if !tag.exists() {
            local::write_durably(&tag, b"Signature: 8a477f597d28d172789f06886806bc55\n")?;
        }
        Ok(Store { path: path.canonicalize_utf8().map_err(Error::io("resolve", path))? })
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
        let path = self.folder("pins").join(digest.hex());
        File::create(&path).map(drop).map_err(Error::io("write", &path))
    }

    /// Lets a model be evicted again.
    pub fn unpin(&self, digest: &Digest) -> Result<()> {
        local::remove_file(&self.folder("pins").join(digest.hex()))
    }

    /// Opens a model by its digest and keeps it from being evicted; `None` if the store does not have it.
    pub fn open_model(&self, digest: &Digest) -> Result<Option<Model>> {
        // The lock comes first: what is read after it stays.
        let Some(held) = local::try_lock(&self.model_lock(digest), true)? else { return Ok(None) };
        let dir = self.dir(digest);
        match read_manifest(&dir)? {
            Some(manifest) if manifest.digest == *digest => Ok(Some(Model { dir, manifest, _held: held })),
            Some(manifest) => Err(Error::corrupt(&dir, format!("it holds {}", manifest.digest))),
            None => Ok(None),
        }
    }

    pub(crate) fn folder(&self, name: &str) -> Utf8PathBuf {
        self.path.join(name)
    }

    pub(crate) fn has_blob(&self, digest: Digest) -> bool {
        self.blob(&digest).exists()
    }

    pub(crate) fn reference(&self, source: &Source) -> Result<Option<Reference>> {
        let path = self.folder("refs").join(format!("{}.json", Reference::key(source)));
        let Some(text) = local::read_bounded(&path, 64 << 10)? else { return Ok(None) };
        // A reference can always be made again, so a broken one counts as none.
        let parsed: Option<Reference> = serde_json::from_slice(&text).ok();
        Ok(parsed.filter(|reference| reference.source == source.to_string()))
    }

    pub(crate) fn remember(&self, source: &Source, model: &Model, fingerprint: Option<String>) -> Result<()> {
        self.refer(source, model.manifest.digest, fingerprint)?;
        self.touch(&model.manifest.digest)
    }

    /// Notes which model a source means; the store need not have it.
    pub(crate) fn refer(&self, source: &Source, digest: Digest, fingerprint: Option<String>) -> Result<()> {
        let path = self.folder("refs").join(format!("{}.json", Reference::key(source)));
        let reference = Reference { source: source.to_string(), digest, fingerprint };
        let text = serde_json::to_vec_pretty(&reference).expect("texts alone");
        local::write_durably(&path, &text)
    }

    /// Notes that the model was asked for now.
    pub(crate) fn touch(&self, digest: &Digest) -> Result<()> {
        let path = self.folder("used").join(digest.hex());
        let touch = || -> std::io::Result<()> { File::create(&path)?.set_modified(SystemTime::now()) };
        touch().map_err(Error::io("write", &path))
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
