//! The catalogue of images in a file source: read from `images/index.json`, to serve or export them.

use std::collections::BTreeMap;

use textnlp_models::Digest;

use super::content::blob_path;
use super::document::{Descriptor, Document, Index, MOST_DOCUMENT, Manifest, Platform, REF_NAME, media};
use super::error::{Error, Result};
use super::layout::agree;
use crate::file_source::FileSource;

/// The images of a file source.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// Sorted by name.
    pub images: Vec<IndexEntry>,
}

/// One name in the layout's index.
#[derive(Clone, Debug)]
pub struct IndexEntry {
    /// `textnlp:1.0.0`, `docker.io/library/postgres:15`.
    pub name: String,
    /// The target of the name: a manifest, or a list with one for each platform.
    pub target: Descriptor,
    /// The images behind it.
    pub platforms: Vec<(Option<Platform>, Descriptor, Manifest)>,
}

impl IndexEntry {
    /// The name without its tag, and the tag.
    pub fn repository_and_tag(&self) -> (&str, &str) {
        match self.name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (&self.name, "latest"),
        }
    }
}

/// The path of the layout in a bundle.
pub const FOLDER: &str = "images";

/// The path of a blob in a bundle.
pub fn path_of(digest: Digest) -> String {
    format!("{FOLDER}/{}", blob_path(digest))
}

impl Catalogue {
    /// Reads the index and every manifest. A source without images has an empty catalogue.
    pub fn read(source: &dyn FileSource) -> Result<Catalogue> {
        let path = format!("{FOLDER}/index.json");
        if source.find(&path).is_none() {
            return Ok(Catalogue::default());
        }
        let text = source.read(&path, MOST_DOCUMENT).map_err(Error::io("read", &path))?;
        let Document::Index(index) = Document::parse(&path, media::INDEX, &text)? else {
            return Err(Error::malformed(path, "it is not an index"));
        };
        let mut images = BTreeMap::new();
        for target in index.manifests {
            let Some(name) = target.annotations.get(REF_NAME).cloned() else { continue };
            let mut platforms = Vec::new();
            match document(source, &target)? {
                Document::Manifest(manifest) => platforms.push((target.platform.clone(), target.clone(), manifest)),
                Document::Index(Index { manifests, .. }) => {
                    for entry in manifests {
                        if let Document::Manifest(manifest) = document(source, &entry)? {
                            platforms.push((entry.platform.clone(), entry, manifest));
                        }
                    }
                }
            }
            if images.insert(name.clone(), IndexEntry { name: name.clone(), target, platforms }).is_some() {
                return Err(Error::malformed(path, format!("it names {name} twice")));
            }
        }
        Ok(Catalogue { images: images.into_values().collect() })
    }
}

fn document(source: &dyn FileSource, descriptor: &Descriptor) -> Result<Document> {
    let path = path_of(descriptor.digest);
    let text = source.read(&path, MOST_DOCUMENT).map_err(Error::io("read", &path))?;
    agree(&path, descriptor, (Digest::of(&text), text.len() as u64))?;
    Document::parse(&path, &descriptor.media_type, &text)
}
