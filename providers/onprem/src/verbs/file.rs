//! Configuration files, and secrets that programs read from files.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_keys::{Marker, SiteFolder, files};
use textnlp_provider::{Error, ErrorKind, Progress, Result, Secret};

use super::{Observation, ObservedObject, Work};
use crate::spec::FileSpec;

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: FileSpec = work.spec()?;
    let path = work.folder.inside(&spec.path)?;
    work.refuse_strangers(&path)?;
    let content = match (&spec.document, &spec.secret) {
        (Some(document), None) => Secret::new(rendered(document).map_err(|error| work.invalid(error))?),
        (None, Some(secret)) => work.provider.options().secrets.get(secret).await?,
        _ => return Err(work.invalid("it has either a `document` or a `secret`")),
    };
    let cloud_id = work.folder.cloud_id(&spec.path)?;
    let mut facts = Map::new();
    facts.insert("sha256".to_owned(), json!(hex::encode(Sha256::digest(content.expose()))));
    work.claim(&cloud_id, facts.clone())?;
    let folder = path.parent().unwrap_or(work.folder.root());
    files::make_folder(folder).map_err(work.io(folder))?;
    files::put(&path, content.expose(), 0o600).map_err(work.io(&path))?;
    let marker = work.complete(&cloud_id, facts)?;
    work.done(&marker).await
}

pub(super) fn remove(work: &Work<'_>) -> Result<()> {
    let spec: FileSpec = work.applied()?;
    let path = work.folder.inside(&spec.path)?;
    files::remove_file(&path).map_err(work.io(&path))
}

pub(super) fn observe(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let spec: FileSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.inside(&spec.path)?;
    let bytes = match files::read_bounded(&path, files::TEXT_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Observation::Absent),
        Err(error) => return Err(Error::io("read", path.as_str(), error)),
    };
    let sha256 = hex::encode(Sha256::digest(&bytes));
    let applied = marker.fact("sha256").unwrap_or_default();
    let mut observed = ObservedObject::default();
    // Outputs of a changed file are the wanted ones: other resources refer to them.
    observed.output("path", path.as_str()).output("sha256", applied);
    if let Some(document) = spec.document {
        observed.output("document", document);
    }
    if sha256 != applied {
        observed.drift("content", format!("it was changed: sha256 {}", &sha256[..12]));
    }
    if private(&path)? {
        return Ok(Observation::There(observed));
    }
    observed.drift("mode", "other users can read it");
    Ok(Observation::There(observed))
}

fn private(path: &camino::Utf8Path) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let found = std::fs::symlink_metadata(path).map_err(|error| Error::io("check", path.as_str(), error))?;
    Ok(found.permissions().mode() & 0o077 == 0)
}

/// YAML with a header line for readers.
fn rendered(document: &Value) -> Result<String, serde_yaml::Error> {
    let yaml = serde_yaml::to_string(document)?;
    Ok(format!(
        "# Written by textnlp-deploy from the environment file; the next `up` reverts changes made here.\n{yaml}"
    ))
}
