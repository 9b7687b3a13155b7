//! A bundle in a few lines for people, and as one document for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use textnlp_models::Digest;

use crate::manifest::{Item, ItemKind, Kind};
use crate::open::Bundle;
use crate::sign::{Authenticity, Signature, TrustSet};

/// What can be said of a bundle after reading its first members.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Full or delta.
    pub kind: Kind,
    /// See [`Manifest::version`](crate::Manifest::version).
    pub version: String,
    /// RFC 3339, from the epoch.
    pub made_for: String,
    /// The archive's length.
    pub bytes: u64,
    /// Of a full bundle: names its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
    /// Of the first member: what is signed.
    pub manifest: Digest,
    /// The id of the key that signed, by the bundle's own account.
    pub signed_by: Option<String>,
    /// Whether that key is trusted here.
    #[serde(flatten)]
    pub authenticity: Authenticity,
    /// Files, or those that a delta brings.
    pub files: usize,
    /// Their bytes.
    pub content_bytes: u64,
    /// Bytes by the first part of the path.
    pub folders: BTreeMap<String, u64>,
    /// Platforms of programs and images.
    pub platforms: Vec<String>,
    /// What it is for.
    pub items: Vec<Item>,
    /// Of a delta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaSummary>,
}

/// Of a delta.
#[derive(Clone, Debug, Serialize)]
pub struct DeltaSummary {
    /// The content that it was made from.
    pub base: Option<Digest>,
    /// What it makes of exactly that.
    pub result: Option<Digest>,
    /// Paths that must be as they were.
    pub expects: usize,
    /// Paths that it takes away.
    pub removes: usize,
    /// Bytes of chunks that it carries.
    pub carries_bytes: u64,
}

impl Summary {
    /// Of an open bundle.
    pub fn of(bundle: &Bundle, trust: &TrustSet) -> Summary {
        let manifest = bundle.manifest();
        let mut folders = BTreeMap::new();
        for file in &manifest.files {
            *folders.entry(file.path.split('/').next().unwrap_or_default().to_owned()).or_default() += file.size;
        }
        let mut platforms: Vec<String> = manifest.items.iter().filter_map(|item| item.platform.clone()).collect();
        platforms.sort();
        platforms.dedup();
        let made_for =
            i64::try_from(manifest.epoch).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        Summary {
            kind: manifest.kind,
            version: manifest.version.clone(),
            made_for: made_for.map_or_else(|| format!("@{}", manifest.epoch), |time| time.to_string()),
            bytes: bundle.bytes(),
            content: (manifest.kind == Kind::Full).then(|| bundle.content_digest()),
            manifest: bundle.manifest_digest(),
            signed_by: match bundle.signature() {
                Signature::Valid { key } => Some(key.id()),
                Signature::None | Signature::Invalid { .. } => None,
            },
            authenticity: bundle.authenticity(trust),
            files: manifest.files.len(),
            content_bytes: manifest.files.iter().map(|file| file.size).sum(),
            folders,
            platforms,
            items: manifest.items.clone(),
            delta: manifest.delta.as_ref().map(|delta| DeltaSummary {
                base: delta.base,
                result: delta.result,
                expects: delta.expects.len(),
                removes: delta.removes.len(),
                carries_bytes: delta.carries.iter().map(|chunk| u64::from(chunk.size)).sum(),
            }),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Full => "bundle",
            Kind::Delta => "delta",
        };
        writeln!(f, "{kind} {}  {} bytes, {} files, made for {}", self.version, self.bytes, self.files, self.made_for)?;
        match &self.authenticity {
            Authenticity::Verified { key } => writeln!(f, "authenticity: verified, key {key}")?,
            Authenticity::Unverified { why } => writeln!(f, "authenticity: UNVERIFIED, {why}")?,
        }
        if let Some(content) = &self.content {
            writeln!(f, "content: {content}")?;
        }
        if let Some(delta) = &self.delta {
            let DeltaSummary { expects, removes, carries_bytes, .. } = delta;
            writeln!(f, "carries {carries_bytes} bytes, expects {expects} paths, removes {removes}")?;
        }
        for item in &self.items {
            write!(f, "  {} {}", kind_name(item.kind), item.name)?;
            for part in [&item.version, &item.platform, &item.license, &item.source].into_iter().flatten() {
                write!(f, "  {part}")?;
            }
            writeln!(f)?;
        }
        for (folder, bytes) in &self.folders {
            writeln!(f, "  {bytes:>16} bytes in {folder}")?;
        }
        Ok(())
    }
}

fn kind_name(kind: ItemKind) -> &'static str {
    match kind {
        ItemKind::Program => "program",
        ItemKind::Image => "image",
        ItemKind::Model => "model",
        ItemKind::Environment => "environment",
        ItemKind::Package => "package",
        ItemKind::Document => "document",
    }
}
