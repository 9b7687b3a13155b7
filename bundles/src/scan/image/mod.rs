//! Container images in an OCI layout: their names and contents.

mod elf;
mod installed;
mod layers;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::contents::{Contents, whole};
use super::finding::Finding;
use super::package::Package;
pub(crate) use elf::crates as crates_of_program;
#[cfg(test)]
pub(crate) use elf::tests::program as program_with;

/// No index, manifest or configuration is longer.
const MOST_BYTES: u64 = 4 << 20;
/// Far above the image count of an index of this program.
const MOST_IMAGES: usize = 256;
/// The same of layers: container engines stop at 127.
const MOST_LAYERS: usize = 256;

/// Limits of reading an image, so that no archive exhausts memory or time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of all layers of one image.
    pub entries: u64,
    /// A layer may unpack to this many times its size…
    pub ratio: u64,
    /// …and to this many bytes in any case.
    pub spare: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { entries: 2_000_000, ratio: 100, spare: 1 << 30 }
    }
}

/// One scanned image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// `docker.io/library/postgres:15`, or the digest where it has no name.
    pub name: String,
    /// Of its manifest.
    pub digest: String,
    /// `linux/amd64`.
    pub platform: Option<String>,
    /// `Debian:12`, where it says.
    pub distribution: Option<String>,
    /// What the distribution's package manager and Python list.
    pub packages: Vec<Package>,
    /// Programs that hold a list of their crates.
    pub programs: BTreeMap<String, Vec<Package>>,
    /// The user of its process; empty: root.
    pub user: String,
    /// Setuid and setgid files, with a mode.
    pub setuid: Vec<String>,
    /// World-writable files, and folders without the sticky bit.
    pub world_writable: Vec<String>,
    /// Shells.
    pub shells: Vec<String>,
    /// Files read in its layers.
    pub files: u64,
    /// Texts among them that were scanned for secrets.
    pub texts: u64,
    /// Keys and passwords in layers and in the image's variables.
    pub secrets: Vec<Finding>,
    /// What could not be read: the path, the reason, and whether it closes a gate.
    pub unread: Vec<(String, String, bool)>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<Run>,
}

#[derive(Default, Deserialize)]
struct Run {
    #[serde(rename = "User", default)]
    user: Option<String>,
    #[serde(rename = "Env", default)]
    env: Option<Vec<String>>,
}

/// All images of the layout whose `index.json` lies in `folder` (`images/`, or the empty text), and what of it could not be read.
pub fn images(contents: &dyn Contents, folder: &str, limits: Limits) -> (Vec<Image>, Vec<(String, String)>) {
    let layout = Layout { contents, folder: folder.trim_end_matches('/').to_owned(), limits };
    let (mut images, mut unread) = (Vec::new(), Vec::new());
    let index = layout.path("index.json");
    match layout.json::<Index>(&index) {
        Ok(index) => layout.index(index, None, 0, &mut images, &mut unread),
        Err(why) => unread.push((index, why)),
    }
    (images, unread)
}

struct Layout<'a> {
    contents: &'a dyn Contents,
    folder: String,
    limits: Limits,
}

impl Layout<'_> {
    fn path(&self, name: &str) -> String {
        if self.folder.is_empty() { name.to_owned() } else { format!("{}/{name}", self.folder) }
    }

    fn blob(&self, digest: &str) -> Result<String, String> {
        let good = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
        match digest.split_once(':') {
            Some((algorithm, hex)) if good(algorithm) && good(hex) => {
                Ok(self.path(&format!("blobs/{algorithm}/{hex}")))
            }
            _ => Err(format!("`{digest}` is not a digest")),
        }
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, String> {
        let bytes = whole(self.contents, path, MOST_BYTES).map_err(|e| e.to_string())?;
        let bytes = bytes.ok_or_else(|| format!("it is longer than {MOST_BYTES} bytes"))?;
        serde_json::from_slice(&bytes).map_err(|e| e.to_string())
    }

    /// The depth limit of nested indexes.
    fn index(
        &self,
        index: Index,
        named: Option<&str>,
        depth: u8,
        images: &mut Vec<Image>,
        unread: &mut Vec<(String, String)>,
    ) {
        for descriptor in index.manifests {
            let annotation = |key: &str| descriptor.annotations.get(key).map(String::as_str);
            let name =
                annotation("io.containerd.image.name").or(annotation("org.opencontainers.image.ref.name")).or(named);
            let location = format!("image {}", name.unwrap_or(&descriptor.digest));
            if images.len() >= MOST_IMAGES || depth > 3 {
                unread.push((location, "the index names too many images".to_owned()));
                return;
            }
            // Attestations that builders add: manifests of no image.
            if annotation("vnd.docker.reference.type").is_some() {
                continue;
            }
            let path = match self.blob(&descriptor.digest) {
                Ok(path) => path,
                Err(why) => {
                    unread.push((location, why));
                    continue;
                }
            };
            if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
                match self.json::<Index>(&path) {
                    Ok(inner) => self.index(inner, name, depth + 1, images, unread),
                    Err(why) => unread.push((location, why)),
                }
                continue;
            }
            match self.image(&path, &descriptor, name) {
                Ok(image) => images.push(image),
                Err(why) => unread.push((location, why)),
            }
        }
    }

    fn image(&self, path: &str, descriptor: &Descriptor, name: Option<&str>) -> Result<Image, String> {
        let manifest: Manifest = self.json(path)?;
        let config: Config = self.json(&self.blob(&manifest.config.digest)?)?;
        let platform = match &descriptor.platform {
            Some(p) => Some(format!("{}/{}", p.os, p.architecture)),
            None if !config.os.is_empty() => Some(format!("{}/{}", config.os, config.architecture)),
            None => None,
        };
        let run = config.config.unwrap_or_default();
        let mut image = Image {
            name: name.unwrap_or(&descriptor.digest).to_owned(),
            digest: descriptor.digest.clone(),
            platform,
            user: run.user.unwrap_or_default(),
            ..Image::default()
        };
        if manifest.layers.len() > MOST_LAYERS {
            return Err(format!("it has {} layers", manifest.layers.len()));
        }
        let environment = run.env.unwrap_or_default().join("\n");
        let location = format!("{}: variables", image.name);
        let looked = super::secrets::scan_file(
            &location,
            environment.len() as u64,
            super::secrets::ScanDepth::All,
            &mut environment.as_bytes(),
            &mut image.secrets,
        );
        debug_assert!(looked.is_ok(), "a text in memory can be read");
        let mut walk = layers::Walk::new(self.limits, &mut image);
        for layer in &manifest.layers {
            if let Err(why) = self.layer(layer, &mut walk) {
                walk.unread(format!("layer {}", short(&layer.digest)), why, true);
            }
        }
        walk.finish();
        Ok(image)
    }

    fn layer(&self, layer: &Descriptor, walk: &mut layers::Walk<'_>) -> Result<(), String> {
        let path = self.blob(&layer.digest)?;
        let reader = self.contents.open(&path).map_err(|e| e.to_string())?;
        walk.layer(&short(&layer.digest), layer.size, reader)
    }
}

/// `sha256:0123456789ab`: enough to find it.
fn short(digest: &str) -> String {
    digest.chars().take(19).collect()
}
