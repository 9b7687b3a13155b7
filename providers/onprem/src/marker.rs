//! Markers: the JSON beside the objects that says whose they are, written before an object and removed after it.

use std::io;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use textnlp_provider::{CloudId, EnvironmentName, KindName, Lineage, OperationId, ResourceId, SiteName, Spec};

use crate::files;
use crate::layout::SiteFolder;

/// Whose object this is, what was applied, and what is needed to see cheaply whether it is still that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Marker {
    #[serde(rename = "textnlp-lineage")]
    pub(crate) lineage: Lineage,
    #[serde(rename = "textnlp-environment")]
    pub(crate) environment: EnvironmentName,
    #[serde(rename = "textnlp-site")]
    pub(crate) site: SiteName,
    #[serde(rename = "textnlp-resource")]
    pub(crate) resource: ResourceId,
    #[serde(rename = "textnlp-operation")]
    pub(crate) operation: OperationId,
    pub(crate) kind: KindName,
    pub(crate) cloud_id: CloudId,
    /// Whether the operation got to its end.
    pub(crate) complete: bool,
    /// As applied: outputs resolved, secrets as references.
    pub(crate) spec: Spec,
    /// Digests, versions and stamps that the kind wants to remember.
    #[serde(default)]
    pub(crate) facts: Map<String, Value>,
}

impl Marker {
    /// Reads a marker; `None` when there is none. A file that is not a marker counts as none: the object then is not ours.
    pub(crate) fn read(path: &Utf8Path) -> io::Result<Option<Self>> {
        match files::read_bounded(path, files::TEXT_MAX) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it durably.
    pub(crate) fn write(&self, folder: &SiteFolder) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        files::put(&folder.marker(&self.resource), &bytes, 0o600)
    }

    /// All markers of a site.
    pub(crate) fn all(folder: &SiteFolder) -> io::Result<Vec<Self>> {
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

    /// A remembered text.
    pub(crate) fn fact(&self, name: &str) -> Option<&str> {
        self.facts.get(name).and_then(Value::as_str)
    }
}
