//! The SQLite file. Its schema and its rows belong to the server; see `child`.

use std::io::Read;

use serde_json::{Map, json};
use textnlp_keys::{Marker, SiteFolder, files};
use textnlp_provider::{Error, ErrorKind, Progress, Result};

use super::{Observation, ObservedObject, Work};
use crate::spec::DatabaseSpec;

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: DatabaseSpec = work.spec()?;
    let path = work.folder.inside(&spec.path)?;
    work.refuse_strangers(&path)?;
    let cloud_id = work.folder.cloud_id(&spec.path)?;
    work.claim(&cloud_id, Map::new())?;
    if std::fs::symlink_metadata(&path).is_err() {
        let folder = path.parent().unwrap_or(work.folder.root());
        files::make_folder(folder).map_err(work.io(folder))?;
        // An empty file is an empty database; created here with private permissions from the start.
        files::put(&path, b"", 0o600).map_err(work.io(&path))?;
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(work.io(&path))?;
    let marker = work.complete(&cloud_id, Map::new())?;
    work.done(&marker).await
}

pub(super) fn remove(work: &Work<'_>) -> Result<()> {
    let spec: DatabaseSpec = work.applied()?;
    // The side files last: after a crash in between, the next attempt removes a log without a database.
    for ending in ["", "-wal", "-shm", "-journal"] {
        let path = work.folder.inside(&format!("{}{ending}", spec.path))?;
        files::remove_file(&path).map_err(work.io(&path))?;
    }
    Ok(())
}

pub(super) fn observe(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    use std::os::unix::fs::PermissionsExt;
    let spec: DatabaseSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.inside(&spec.path)?;
    let mut file = match files::open_plain(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Observation::Absent),
        Err(error) => return Err(Error::io("open", path.as_str(), error)),
    };
    let fails = |error| Error::io("read", path.as_str(), error);
    let found = file.metadata().map_err(fails)?;
    let mut observed = ObservedObject::default();
    observed
        .output("path", path.as_str())
        .output("url", format!("sqlite://{path}"))
        .output("schema", json!(spec.schema));
    let mut header = Vec::new();
    file.by_ref().take(16).read_to_end(&mut header).map_err(fails)?;
    if !header.is_empty() && header != b"SQLite format 3\0" {
        // An update must not repair it: it may be the rest of user data.
        observed.trouble = Some("it is no longer an SQLite database".to_owned());
    }
    if found.permissions().mode() & 0o077 != 0 {
        observed.drift("mode", "other users can read it");
    }
    Ok(Observation::There(observed))
}
