//! The JSON documents of the OCI image specification, and Docker's equivalents. Unknown fields are allowed, as the
//! specification requires; used fields are validated.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use textnlp_models::Digest;

use super::error::{Error, Result};

/// Media types that we read or write.
pub mod media {
    /// OCI manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer as a plain tar.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's index.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// What a client accepts when it asks for a manifest.
    pub const ALL: [&str; 4] = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST];
}

/// The name of an image in a layout's index.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Manifests and indexes: registries accept no larger ones.
pub(crate) const MOST_DOCUMENT: u64 = 4 << 20;
/// Configurations of images with long histories.
pub(crate) const MOST_CONFIG: u64 = 8 << 20;
/// The limit of layers. Engines support at most 127.
const MOST_LAYERS: usize = 512;
const MOST_ENTRIES: usize = 4096;

/// A content by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// The SHA-256; images with other hash functions are refused.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// In an index: the platform of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// In a layout's index: the image's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// Other download locations; never used.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub urls: Vec<String>,
}

impl Default for Descriptor {
    fn default() -> Self {
        Descriptor {
            media_type: String::new(),
            digest: Digest::of(b""),
            size: 0,
            platform: None,
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }
}

/// Go programs write `null` for what is empty.
fn nullable<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// `v8` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this architecture, named as in Go.
    pub fn linux(architecture: &str) -> Platform {
        Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }

    /// Whether an image for `other` runs here. A variant that one side omits is ignored, and `arm64` is `arm64/v8`.
    pub fn runs(&self, other: &Platform) -> bool {
        let same = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
        self.os == other.os && self.architecture == other.architecture && same(&self.variant, &other.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if plain(os) && plain(architecture) => {
                Ok(Platform { architecture: architecture.to_owned(), os: os.to_owned(), variant: None })
            }
            [os, architecture, variant] if plain(os) && plain(architecture) && plain(variant) => Ok(Platform {
                architecture: architecture.to_owned(),
                os: os.to_owned(),
                variant: Some(variant.to_owned()),
            }),
            _ => Err(Error::malformed(
                format!("the platform `{}`", text.chars().take(80).collect::<String>()),
                "a platform is written `linux/amd64`",
            )),
        }
    }
}

/// An image's manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Its media type, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers from the bottom up.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of images.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Its media type, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The images, or further lists.
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
}

/// The fields of an image's configuration that are used.
#[derive(Clone, Debug, Deserialize)]
pub struct ImageConfig {
    /// `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v8`.
    #[serde(default)]
    pub variant: Option<String>,
}

/// The kinds of documents that an index may reference.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and taken apart at once")]
pub enum Document {
    /// A list.
    Index(Index),
    /// An image.
    Manifest(Manifest),
}

impl Document {
    /// Parses by media type; the text must not contradict it.
    pub fn parse(what: &str, media_type: &str, text: &[u8]) -> Result<Document> {
        let no =
            |error: serde_json::Error| Error::malformed(what, format!("it cannot be parsed as {media_type} ({error})"));
        let (own, version, document) = match media_type {
            media::INDEX | media::DOCKER_LIST => {
                let index: Index = serde_json::from_slice(text).map_err(no)?;
                if index.manifests.len() > MOST_ENTRIES {
                    return Err(Error::malformed(what, format!("it lists {} images", index.manifests.len())));
                }
                (index.media_type.clone(), index.schema_version, Document::Index(index))
            }
            media::MANIFEST | media::DOCKER_MANIFEST => {
                let manifest: Manifest = serde_json::from_slice(text).map_err(no)?;
                if manifest.layers.len() > MOST_LAYERS {
                    return Err(Error::malformed(what, format!("it has {} layers", manifest.layers.len())));
                }
                if let Some(layer) =
                    manifest.layers.iter().find(|l| !l.urls.is_empty() || l.media_type.contains("foreign"))
                {
                    let why = format!("the layer {} is a foreign layer, which may not be redistributed", layer.digest);
                    return Err(Error::malformed(what, why));
                }
                (manifest.media_type.clone(), manifest.schema_version, Document::Manifest(manifest))
            }
            other => {
                let other: String = other.chars().filter(|c| !c.is_control()).take(100).collect();
                return Err(Error::malformed(what, format!("`{other}` is neither an image nor a list of images")));
            }
        };
        if version != 2 || own.is_some_and(|own| own != media_type) {
            return Err(Error::malformed(what, format!("it does not match its media type {media_type}")));
        }
        Ok(document)
    }
}

impl Index {
    /// The entry for a platform. Entries that are no images (attestations) are for `unknown/unknown`.
    pub fn choose(&self, what: &str, wanted: &Platform) -> Result<&Descriptor> {
        let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| wanted.runs(p));
        let exact = |d: &&Descriptor| d.platform.as_ref() == Some(wanted);
        // An index of one image often has no platform; the platform is then read from the image's configuration.
        let single = || match &self.manifests[..] {
            [one] if one.platform.is_none() => Some(one),
            _ => None,
        };
        let found = self.manifests.iter().find(exact).or_else(|| self.manifests.iter().find(fits)).or_else(single);
        found.ok_or_else(|| {
            let there: Vec<String> = self
                .manifests
                .iter()
                .filter_map(|d| d.platform.as_ref())
                .filter(|p| p.os != "unknown")
                .take(20)
                .map(Platform::to_string)
                .collect();
            Error::Missing {
                what: format!("{what} for {wanted}"),
                why: format!("it is available for {}", there.join(", ")),
            }
        })
    }
}

impl ImageConfig {
    /// The platform in the configuration of an image, which must be compatible with the wanted one.
    pub fn platform(what: &str, text: &[u8], wanted: &Platform) -> Result<Platform> {
        let config: ImageConfig = serde_json::from_slice(text)
            .map_err(|error| Error::malformed(what, format!("its configuration cannot be read ({error})")))?;
        let platform = Platform {
            architecture: config.architecture,
            os: config.os,
            variant: config.variant.filter(|v| !v.is_empty()),
        };
        if !wanted.runs(&platform) {
            return Err(Error::Missing { what: format!("{what} for {wanted}"), why: format!("it is for {platform}") });
        }
        Ok(platform)
    }
}
