//! The folder of a log of control data. Its content belongs to the server programs.

use serde_json::Map;
use textnlp_keys::{Marker, SiteFolder, files};
use textnlp_provider::{Error, ErrorKind, Progress, Result};

use super::{Observation, ObservedObject, Work};
use crate::spec::ControlSpec;

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: ControlSpec = work.spec()?;
    let path = work.folder.inside(&spec.path)?;
    work.refuse_strangers(&path)?;
    let cloud_id = work.folder.cloud_id(&spec.path)?;
    work.claim(&cloud_id, Map::new())?;
    files::make_folder(&path).map_err(work.io(&path))?;
    let marker = work.complete(&cloud_id, Map::new())?;
    work.done(&marker).await
}

pub(super) fn remove(work: &Work<'_>) -> Result<()> {
    let spec: ControlSpec = work.applied()?;
    let path = work.folder.inside(&spec.path)?;
    files::remove_tree(&path).map_err(work.io(&path))
}

pub(super) fn observe(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    use std::os::unix::fs::PermissionsExt;
    let spec: ControlSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.inside(&spec.path)?;
    let found = match std::fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Observation::Absent),
        Err(error) => return Err(Error::io("check", path.as_str(), error)),
    };
    let mut observed = ObservedObject::default();
    observed.output("path", path.as_str());
    if !found.is_dir() {
        // An update must not repair it: it may be a replacement for lost data.
        observed.trouble = Some("another object has its path".to_owned());
    } else if found.permissions().mode() & 0o077 != 0 {
        observed.drift("mode", "other users can enter it");
    }
    Ok(Observation::There(observed))
}
