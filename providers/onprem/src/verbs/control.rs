//! The folder of a log of control data. What is in it belongs to the server's own programs.

use serde_json::Map;
use textnlp_provider::{Error, Progress, Result, Sort};

use super::{Look, Seen, Work};
use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
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

pub(super) fn look(folder: &SiteFolder, marker: &Marker) -> Result<Seen> {
    use std::os::unix::fs::PermissionsExt;
    let spec: ControlSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(Sort::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.inside(&spec.path)?;
    let found = match std::fs::symlink_metadata(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Seen::Absent),
        Err(error) => return Err(Error::io("look at", path.as_str(), error)),
    };
    let mut look = Look::default();
    look.output("path", path.as_str());
    if !found.is_dir() {
        // Nothing that an update could mend: it may be what somebody put in the place of what was lost.
        look.trouble = Some("something else lies in its place".to_owned());
    } else if found.permissions().mode() & 0o077 != 0 {
        look.drift("mode", "others may enter it");
    }
    Ok(Seen::There(look))
}
