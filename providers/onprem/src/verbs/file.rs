//! Configuration files, and secrets that programs read from files.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_keys::files::{self, Stamp};
use textnlp_keys::{KeyKind, Marker, SiteFolder};
use textnlp_provider::{Error, ErrorKind, Progress, Result, Secret, SecretRef};

use super::{Observation, ObservedObject, Work};
use crate::spec::FileSpec;

/// The fact with the file's stamp: whether it still is the file that `up` wrote, and no copy of it.
pub(crate) const STAMP: &str = "stamp";
/// The fact with the stamp of the secret's marker, of a file with a secret: that marker names the source of the secret.
pub(crate) const SECRET_STAMP: &str = "secret_stamp";

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
    facts.insert(STAMP.to_owned(), json!(Stamp::of(&path).map_err(work.io(&path))?));
    if let Some(secret) = &spec.secret {
        facts.insert(SECRET_STAMP.to_owned(), json!(stamp_of_marker(work, secret)?));
    }
    let marker = work.complete(&cloud_id, facts)?;
    work.done(&marker).await
}

/// The stamp of the marker of a secret.
fn stamp_of_marker(work: &Work<'_>, secret: &SecretRef) -> Result<Option<Stamp>> {
    let fails = || work.io(work.folder.join("objects"));
    let is_it = |marker: &Marker| {
        KeyKind::of(&marker.kind) == Some(KeyKind::Secret)
            && marker.spec.get("name").and_then(Value::as_str) == Some(&secret.name.0)
    };
    let found = Marker::all(&work.folder).map_err(fails())?.into_iter().find(is_it);
    found.map_or(Ok(None), |marker| Stamp::of(&work.folder.marker(&marker.resource)).map_err(fails()))
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
