//! The manifest of a bundle: its items, and every file with the digest of each of its chunks. The rules of a manifest
//! are in `rules.rs`.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use textnlp_models::Digest;

use crate::sign::PublicKey;

/// The only format so far. A reader refuses a newer one.
pub const FORMAT: u32 = 1;
/// Keys that one bundle introduces and revokes.
pub(crate) const MAX_CHANGED_KEYS: usize = 16;

/// The first member of a bundle. Canonical JSON: keys in this order, no spaces, files sorted by path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Whether the bundle is full or a delta.
    pub kind: Kind,
    /// The release's version: `1.0.0`.
    pub version: String,
    /// From `SOURCE_DATE_EPOCH`: seconds since 1970, the time that every member carries.
    pub epoch: u64,
    /// The items, sorted by kind, name and platform.
    pub items: Vec<Item>,
    /// Every file of the content in the order of the archive, which is: install.sh, bin, configs, scripts, packages, sbom, images, models; within
    /// them by path. In a delta: the files that are new or changed, as they are afterwards.
    pub files: Vec<File>,
    /// Keys that a site pins or revokes, if it trusts the key that signed this bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeyChange>,
    /// Only in a delta: the preconditions, and what is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
}

/// Whole or part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Installs on a bare machine.
    Full,
    /// Applies to an installed site with the files of [`Delta::expects`].
    Delta,
}

/// A unit of content: a model, an image, the program, an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// `textnlp-tiny`, `textnlp`, `air-gapped`.
    pub name: String,
    /// Version, tag or revision, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The usual digest: that of an image's manifest, of a model's list of files, of a program's file.
    pub digest: Digest,
    /// `linux/amd64`; none if independent of the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// SPDX expression, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Its source: `bundled`, `hf:org/name@rev`, `docker.io/library/postgres:15`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Of an image: the media type of its manifest. With name, version, platform and digest it makes the image's entry
    /// in the list of images, so that the list is derived from the items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The files that belong to it; a blob may belong to several images.
    pub paths: Vec<String>,
}

/// The kinds of items, in the order in which they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// The static program of one platform.
    Program,
    /// A container image, in the OCI layout under `images/`.
    Image,
    /// A model folder under `models/`.
    Model,
    /// A rendered environment under `configs/`.
    Environment,
    /// An operating-system or language package under `packages/`.
    Package,
    /// Software lists under `sbom/`, scripts, and other single files.
    Document,
}

impl fmt::Display for ItemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ItemKind::Program => "program",
            ItemKind::Image => "image",
            ItemKind::Model => "model",
            ItemKind::Environment => "environment",
            ItemKind::Package => "package",
            ItemKind::Document => "document",
        })
    }
}

/// One file of the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Relative, `/` between parts, no `.` or `..`, no empty part, printable UTF-8.
    pub path: String,
    /// Whether the mode is 0755 or 0644.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
    /// Bytes.
    pub size: u64,
    /// Of all its bytes.
    pub digest: Digest,
    /// Its chunks in order; their sizes add up to `size`. An empty file has none.
    pub chunks: Vec<Chunk>,
}

/// A piece of a file, with content-defined boundaries (or boundaries at tensors).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u32, String)", into = "(u32, String)")]
pub struct Chunk {
    /// Bytes; never zero.
    pub size: u32,
    /// SHA-256 of the bytes, written as 43 characters of unpadded base64url.
    pub digest: [u8; 32],
}

impl Chunk {
    /// These bytes as a chunk.
    pub(crate) fn of(bytes: &[u8]) -> Chunk {
        Chunk { size: bytes.len() as u32, digest: Sha256::digest(bytes).into() }
    }
}

/// The part of a manifest that only a delta has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// The content that it was created from. A delta without a base includes all chunks of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Digest>,
    /// The content that results from exactly that base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Digest>,
    /// For each path that the delta replaces, removes or copies chunks from: the file that must be there (none: no such file may be
    /// there). A path that is not named here is replaced whatever it was; all its chunks are carried.
    pub expects: BTreeMap<String, Option<Digest>>,
    /// For each item that is set or dropped: what must be there, as [`Item::identity`]. Sorted.
    pub expects_items: Vec<ExpectedItem>,
    /// Paths to be taken away. Sorted.
    pub removes: Vec<String>,
    /// Items to be taken away. Sorted.
    pub drops: Vec<ItemKey>,
    /// The chunks of the delta, in the order of its only data member, `delta/chunks`.
    pub carries: Vec<Chunk>,
}

/// The key of an item: its kind, name and platform.
pub type ItemKey = (ItemKind, String, Option<String>);

/// An item that a delta replaces or drops, as it must be before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedItem {
    /// Which one.
    pub item: ItemKey,
    /// Its [`Item::identity`]; none: it may not be there.
    pub identity: Option<Digest>,
}

/// A change of a site's pinned keys, as part of a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyChange {
    /// Trusted from now on. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub introduces: Vec<PublicKey>,
    /// Never trusted again. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revokes: Vec<PublicKey>,
}

impl KeyChange {
    /// A change in its canonical order; `None` without any key.
    pub fn new(mut introduces: Vec<PublicKey>, mut revokes: Vec<PublicKey>) -> Option<KeyChange> {
        for keys in [&mut introduces, &mut revokes] {
            keys.sort_by_key(PublicKey::to_base64);
            keys.dedup();
        }
        let change = KeyChange { introduces, revokes };
        (change != KeyChange::default()).then_some(change)
    }
}

/// A chunk's text that is none.
#[derive(Debug, thiserror::Error)]
#[error("a chunk is [size, 43 characters of base64url], not [{0}, `{1}`]")]
pub struct InvalidChunk(u32, String);

impl TryFrom<(u32, String)> for Chunk {
    type Error = InvalidChunk;

    fn try_from((size, text): (u32, String)) -> Result<Chunk, InvalidChunk> {
        let bytes = BASE64.decode(&text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        match bytes {
            Some(digest) if size > 0 => Ok(Chunk { size, digest }),
            _ => Err(InvalidChunk(size, text)),
        }
    }
}

impl From<Chunk> for (u32, String) {
    fn from(chunk: Chunk) -> (u32, String) {
        (chunk.size, BASE64.encode(chunk.digest))
    }
}
