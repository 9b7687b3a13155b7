//! OCI layouts: reads external ones, strictly and within bounds, and merges images into one.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io::Read as _;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::Digest;

use super::Image;
use super::content::{Blob, Content, blob_path};
use super::document::{
    Descriptor, Document, ImageConfig, Index, MOST_CONFIG, MOST_DOCUMENT, Platform, REF_NAME, media,
};
use super::error::{Error, Result};
use super::image::json;

/// Nested lists of images: real layouts have fewer levels.
const MOST_DEPTH: usize = 3;

/// A folder with images.
#[derive(Debug)]
pub struct Layout {
    root: Utf8PathBuf,
    index: Index,
}

impl Layout {
    /// Opens the folder, which must be a layout of version 1 with a valid index.
    pub fn open(root: &Utf8Path) -> Result<Layout> {
        let marker = root.join("oci-layout");
        let text = read(&marker, 4096)?;
        let marked: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| Error::malformed(marker.as_str(), format!("it cannot be read ({error})")))?;
        match marked.get("imageLayoutVersion").and_then(|v| v.as_str()) {
            Some(version) if version.starts_with("1.") => {}
            _ => return Err(Error::malformed(marker.as_str(), "it is not an OCI layout of version 1")),
        }
        let path = root.join("index.json");
        let text = read(&path, MOST_DOCUMENT)?;
        // The index of a layout may omit its media type.
        match Document::parse(path.as_str(), media::INDEX, &text)? {
            Document::Index(index) => Ok(Layout { root: root.to_owned(), index }),
            Document::Manifest(_) => Err(Error::malformed(path.as_str(), "it is not an index")),
        }
    }

    /// The annotated names of the layout, and their targets.
    pub fn entries(&self) -> impl Iterator<Item = (Option<&str>, &Descriptor)> {
        self.index.manifests.iter().map(|d| (d.annotations.get(REF_NAME).map(String::as_str), d))
    }

    /// The image of this name (or tag or `sha256:` digest; none: the only one there is) for a platform. Every blob is read and compared with its digest. `called` is its
    /// name from now on.
    pub fn image(&self, wanted: Option<&str>, platform: &Platform, called: &str) -> Result<Image> {
        let what = match wanted {
            Some(name) => format!("{name} in {}", self.root),
            None => format!("the image in {}", self.root),
        };
        let named = |d: &&Descriptor| match wanted {
            None => true,
            Some(wanted) => {
                d.annotations
                    .get(REF_NAME)
                    .is_some_and(|name| name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted))
                    || d.digest.to_string() == wanted
            }
        };
        let found: Vec<&Descriptor> = self.index.manifests.iter().filter(named).collect();
        let first = match found[..] {
            [one] => one.clone(),
            [] => {
                let names: Vec<&str> = self.entries().filter_map(|(name, _)| name).take(20).collect();
                return Err(Error::Missing { what, why: format!("the layout has {}", names.join(", ")) });
            }
            // The same name for several platforms.
            _ => Index { schema_version: 2, media_type: None, manifests: found.into_iter().cloned().collect() }
                .choose(&what, platform)?
                .clone(),
        };
        let pinned = first.digest;
        let mut at = first;
        for _ in 0..=MOST_DEPTH {
            let text = self.document(&at, MOST_DOCUMENT)?;
            match Document::parse(&format!("{what} ({})", at.digest), &at.media_type, &text)? {
                Document::Index(index) => at = index.choose(&what, platform)?.clone(),
                Document::Manifest(manifest) => {
                    let config = self.document(&manifest.config, MOST_CONFIG)?;
                    let runs = ImageConfig::platform(&what, &config, platform)?;
                    let mut blobs = BTreeMap::new();
                    for descriptor in manifest.layers.iter().chain([&manifest.config, &at]) {
                        if let Entry::Vacant(place) = blobs.entry(descriptor.digest) {
                            place.insert(self.blob(descriptor)?);
                        }
                    }
                    let manifest = Descriptor { annotations: BTreeMap::new(), platform: None, ..at };
                    let blobs = blobs.into_values().collect();
                    return Ok(Image { name: called.to_owned(), platform: runs, manifest, pinned, blobs });
                }
            }
        }
        Err(Error::malformed(what, "its image indexes are nested too deeply"))
    }

    fn document(&self, descriptor: &Descriptor, most: u64) -> Result<Vec<u8>> {
        if descriptor.size > most {
            return Err(Error::malformed(descriptor.digest.to_string(), format!("it has more than {most} bytes")));
        }
        let path = self.root.join(blob_path(descriptor.digest));
        let text = read(&path, most)?;
        agree(path.as_str(), descriptor, (Digest::of(&text), text.len() as u64))?;
        Ok(text)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Blob> {
        let path = self.root.join(blob_path(descriptor.digest));
        let file = open(&path)?;
        // The size is compared first, so that a file that is too large is not read.
        let size = file.metadata().map_err(Error::io("read", &path))?.len();
        if size == descriptor.size {
            agree(path.as_str(), descriptor, Digest::of_reader(file).map_err(Error::io("read", &path))?)?;
        } else {
            let (expected, found) = (format!("{} bytes", descriptor.size), format!("{size} bytes"));
            return Err(Error::Mismatch { what: path.into_string(), expected, found });
        }
        Ok(Blob {
            path: blob_path(descriptor.digest),
            size,
            digest: descriptor.digest,
            content: Content::file(&path, size),
        })
    }
}

/// Several images as one layout: the blobs of all, each once, the index that names them, and the marker. Images of one name for
/// several platforms become one list of that name. Sorted by path, independent of the order of the images.
pub fn merge(images: &[Image]) -> Result<Vec<Blob>> {
    let entries = images.iter().map(|image| ImageSummary {
        name: image.name.clone(),
        platform: image.platform.clone(),
        media_type: image.manifest.media_type.clone(),
        digest: image.manifest.digest,
        size: image.manifest.size,
    });
    let mut blobs: BTreeMap<String, Blob> = BTreeMap::new();
    for blob in lists(entries)?.into_iter().chain(images.iter().flat_map(|image| &image.blobs).cloned()) {
        blobs.entry(blob.path.clone()).or_insert(blob);
    }
    Ok(blobs.into_values().collect())
}

/// The properties of an image that an index contains.
pub(crate) struct ImageSummary {
    pub(crate) name: String,
    pub(crate) platform: Platform,
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// The list of these images: the index, the marker, and a list for each name with several platforms. Their order does not matter.
pub(crate) fn lists(images: impl IntoIterator<Item = ImageSummary>) -> Result<Vec<Blob>> {
    let mut by_name: BTreeMap<String, BTreeMap<Platform, Descriptor>> = BTreeMap::new();
    for ImageSummary { name, platform, media_type, digest, size } in images {
        let platforms = by_name.entry(name.clone()).or_default();
        let manifest =
            Descriptor { media_type, digest, size, platform: Some(platform.clone()), ..Descriptor::default() };
        if platforms.insert(platform.clone(), manifest).is_some_and(|other| other.digest != digest) {
            return Err(Error::Conflict { name, platform: platform.to_string() });
        }
    }
    let mut blobs = Vec::new();
    let mut entries = Vec::new();
    for (name, platforms) in by_name {
        let mut manifests: Vec<Descriptor> = platforms.into_values().collect();
        // Readers of layouts accept only OCI's media types. An image with Docker's types is referenced by an index of one image, so
        // that its digest does not change.
        let ours = |d: &Descriptor| d.media_type == media::MANIFEST;
        let mut entry = if manifests.len() == 1 && ours(&manifests[0]) {
            manifests.remove(0)
        } else {
            let index = Index { schema_version: 2, media_type: Some(media::INDEX.to_owned()), manifests };
            let blob = Blob::of(Content::bytes(json(&index)))?;
            let descriptor = blob.descriptor(media::INDEX);
            blobs.push(blob);
            descriptor
        };
        entry.annotations = BTreeMap::from([(REF_NAME.to_owned(), name)]);
        entries.push(entry);
    }
    let index = Index { schema_version: 2, media_type: Some(media::INDEX.to_owned()), manifests: entries };
    let marker = b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec();
    blobs.extend([Blob::named("index.json", json(&index)), Blob::named("oci-layout", marker)]);
    Ok(blobs)
}

/// Digest and size as promised.
pub(crate) fn agree(what: &str, promised: &Descriptor, found: (Digest, u64)) -> Result<()> {
    if (promised.digest, promised.size) == found {
        return Ok(());
    }
    let text = |(digest, size): (Digest, u64)| format!("{digest} ({size} bytes)");
    let expected = text((promised.digest, promised.size));
    Err(Error::Mismatch { what: what.to_owned(), expected, found: text(found) })
}

/// Opens a plain file. A link could lead out of the layout, and a pipe would never end.
fn open(path: &Utf8Path) -> Result<File> {
    let found = fs::symlink_metadata(path).map_err(Error::io("read", path))?;
    if !found.is_file() {
        return Err(Error::malformed(path.as_str(), "it is not a plain file"));
    }
    File::open(path).map_err(Error::io("open", path))
}

fn read(path: &Utf8Path, most: u64) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    open(path)?.take(most + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
    if text.len() as u64 > most {
        return Err(Error::malformed(path.as_str(), format!("it has more than {most} bytes")));
    }
    Ok(text)
}
