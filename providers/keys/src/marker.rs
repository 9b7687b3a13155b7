//! Markers: JSON files that record the owner of an object, written before the object and removed after it.

use std::io;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use textnlp_provider::{CloudId, EnvironmentName, KindName, Lineage, OperationId, ResourceId, SiteName, Spec};

use crate::files;
use crate::layout::SiteFolder;

/// The owner of the object, the applied spec, and the facts of a cheap drift check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Marker {
    /// The deployment that owns the object.
    #[serde(rename = "textnlp-lineage")]
    pub lineage: Lineage,
    /// The environment.
    #[serde(rename = "textnlp-environment")]
    pub environment: EnvironmentName,
    /// The site.
    #[serde(rename = "textnlp-site")]
    pub site: SiteName,
    /// The resource.
    #[serde(rename = "textnlp-resource")]
    pub resource: ResourceId,
    /// The last operation.
    #[serde(rename = "textnlp-operation")]
    pub operation: OperationId,
    /// The kind of the resource.
    pub kind: KindName,
    /// The id of the object.
    pub cloud_id: CloudId,
    /// Whether the operation completed.
    pub complete: bool,
    /// As applied: outputs resolved, secrets as references.
    pub spec: Spec,
    /// Digests, versions and stamps of the kind.
    #[serde(default)]
    pub facts: Map<String, Value>,
}

impl Marker {
    /// Reads a marker; `None` when there is none. An invalid file counts as none: the object then is not ours.
    pub fn read(path: &Utf8Path) -> io::Result<Option<Self>> {
        match files::read_bounded(path, files::TEXT_MAX) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the marker durably.
    pub fn write(&self, folder: &SiteFolder) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        files::put(&folder.marker(&self.resource), &bytes, 0o600)
    }

    /// All markers of a site.
    pub fn all(folder: &SiteFolder) -> io::Result<Vec<Self>> {
        let entries = match std::fs::read_dir(folder.join("objects")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(".json") && !name.starts_with('.')) else {
                continue;
            };
            found.extend(Self::read(&folder.join("objects").join(name))?);
        }
        found.sort_by(|a, b| a.resource.cmp(&b.resource));
        Ok(found)
    }

    /// A text fact.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.get(name).and_then(Value::as_str)
    }
}
