//! The content of a site or of a full bundle, and the digest that identifies it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use textnlp_models::Digest;

use crate::manifest::{Delta, File, Item, ItemKey, Kind, Manifest};

/// Files and items, in the order of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// See [`Manifest::items`].
    pub items: Vec<Item>,
    /// See [`Manifest::files`].
    pub files: Vec<File>,
}

impl Contents {
    /// The content of a full bundle; none of a delta.
    pub fn of(manifest: &Manifest) -> Option<Contents> {
        (manifest.kind == Kind::Full).then(|| Contents { items: manifest.items.clone(), files: manifest.files.clone() })
    }

    /// The identity of the content: the digest of its sorted (path, executable, digest) and of its items. It excludes
    /// the version and the chunk boundaries, so a site that was updated by deltas has the digest of a full
    /// installation.
    pub fn digest(&self) -> Digest {
        content_digest(&self.items, &self.files)
    }

    /// The file at a path.
    pub fn file(&self, path: &str) -> Option<&File> {
        let at =
            self.files.binary_search_by(|file| crate::rules::order(&file.path).cmp(&crate::rules::order(path))).ok()?;
        self.files.get(at)
    }

    /// The files' bytes together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Whether the delta is applied already.
    pub(crate) fn has_applied(&self, manifest: &Manifest, delta: &Delta) -> bool {
        let items = self.by_key();
        manifest.files.iter().all(|file| {
            self.file(&file.path).is_some_and(|old| old.digest == file.digest && old.executable == file.executable)
        }) && delta.removes.iter().all(|path| self.file(path).is_none())
            && manifest.items.iter().all(|item| items.get(&item.key()) == Some(&item))
            && delta.drops.iter().all(|key| !items.contains_key(key))
    }

    pub(crate) fn by_key(&self) -> BTreeMap<ItemKey, &Item> {
        self.items.iter().map(|item| (item.key(), item)).collect()
    }
}

pub(crate) fn content_digest(items: &[Item], files: &[File]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(b"textnlp content 1\n");
    let mut sorted: Vec<&File> = files.iter().collect();
    sorted.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    for file in sorted {
        // Paths have no line feeds and digests have one length, so different lists give different texts.
        hasher.update(if file.executable { "x " } else { "- " });
        hasher.update(file.digest.hex());
        hasher.update(" ");
        hasher.update(&file.path);
        hasher.update("\n");
    }
    for item in items {
        hasher.update(item.identity().hex());
        hasher.update("\n");
    }
    Digest::from(<[u8; 32]>::from(hasher.finalize()))
}
