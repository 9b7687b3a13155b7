//! Container images without a container engine: the server's image is assembled here, others are read from an OCI layout or
//! pulled by digest from a registry, and all of them end as one OCI layout under `images/`.

pub mod image;
pub mod layout;
pub mod registry;

pub mod catalogue;

mod content;
mod document;
mod error;
pub(crate) mod layer;
mod net;
mod push;
mod reference;

pub use content::{Blob, Content, Part, Reader};
pub use document::{Descriptor, Document, ImageConfig, Index, Manifest, Platform, REF_NAME, media};
pub use error::{Error, Result};
pub use push::push;
pub use reference::Reference;

use textnlp_models::Digest;

use crate::manifest::{Item, ItemKind};

/// One image for one platform: its manifest and everything that the manifest names.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name in the layout: `textnlp:1.0.0`, `docker.io/library/postgres:15`.
    pub name: String,
    /// Its platform.
    pub platform: Platform,
    /// The manifest's media type, digest and size. The digest is the image's identity.
    pub manifest: Descriptor,
    /// The requested digest: of the index of several platforms, if any, else of the manifest.
    pub pinned: Digest,
    /// The manifest, the configuration and the layers, each once, sorted by path.
    pub blobs: Vec<Blob>,
}

impl Image {
    /// Its item in a bundle's manifest. `source`: its origin, as text.
    pub fn item(&self, source: Option<String>) -> Item {
        let (name, tag) = match self.name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (self.name.as_str(), None),
        };
        Item {
            kind: ItemKind::Image,
            name: name.to_owned(),
            version: tag,
            digest: self.manifest.digest,
            platform: Some(self.platform.to_string()),
            license: None,
            source,
            media_type: Some(self.manifest.media_type.clone()),
            paths: self.blobs.iter().map(|blob| format!("{}/{}", catalogue::FOLDER, blob.path)).collect(),
        }
    }

    /// Bytes of all blobs.
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }
}
