//! The list of images in a content. It follows from the items, so updates that bring different images end in the same list whatever
//! their order is.

use std::collections::BTreeMap;

use crate::chunk;
use crate::contents::Contents;
use crate::error::{Error, Result};
use crate::manifest::{Chunk, File, ItemKind};
use crate::oci::catalogue::{FOLDER, path_of};
use crate::oci::{Blob, layout};

/// The list's files with their bytes, by their paths. Empty where there are no images, and where they come from a program whose bundles
/// had the list as a file of each image.
pub(crate) fn of(contents: &Contents) -> Result<BTreeMap<String, (File, Vec<u8>)>> {
    let images = || contents.items.iter().filter(|item| item.kind == ItemKind::Image);
    if images().all(|item| item.media_type.is_none()) {
        return Ok(BTreeMap::new());
    }
    let refuse = |image: &str, why: &str| Error::Manifest { problems: vec![format!("image `{image}` {why}")] };
    let entries = images().map(|item| {
        let name = item.version.as_ref().map_or_else(|| item.name.clone(), |tag| format!("{}:{tag}", item.name));
        let manifest = contents.file(&path_of(item.digest));
        let (Some(media_type), Some(manifest)) = (item.media_type.clone(), manifest) else {
            let why = "was created by an older version, or its manifest is missing: it cannot be listed with other images; give all images again";
            return Err(refuse(&name, why));
        };
        let platform = item.platform.as_deref().unwrap_or_default();
        let platform = platform.parse().map_err(|_| refuse(&name, &format!("is for `{platform}`, which is not a valid platform")))?;
        Ok(layout::ImageSummary { name, platform, media_type, digest: item.digest, size: manifest.size })
    });
    let lists = layout::lists(entries.collect::<Result<Vec<_>>>()?)
        .map_err(|error| Error::Manifest { problems: vec![error.to_string()] })?;
    let file = |blob: &Blob| {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut blob.content.reader(), &mut bytes).map_err(Error::io("read", "a list"))?;
        let path = format!("{FOLDER}/{}", blob.path);
        let file =
            File { path: path.clone(), executable: false, size: blob.size, digest: blob.digest, chunks: cut(&bytes) };
        Ok((path, (file, bytes)))
    };
    lists.iter().map(file).collect()
}

/// As it is cut when a bundle is made.
fn cut(bytes: &[u8]) -> Vec<Chunk> {
    let (mut chunks, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let size = chunk::gear(&bytes[at..], at as u64, chunks.len() as u64);
        chunks.push(Chunk::of(&bytes[at..at + size]));
        at += size;
    }
    chunks
}
