//! The site's folder with its subfolders.

use serde_json::{Map, Value};
use textnlp_provider::{Error, ErrorKind, Health, Object, Progress, Result};

use super::Work;
use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::spec::DirectorySpec;
use crate::work::{Observation, ObservedObject};

/// Folders with content of this program only: locks, sockets, logs, units, markers.
const OURS: [&str; 4] = ["run", "log", "units", "objects"];

pub(crate) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: DirectorySpec = work.spec()?;
    let foreign = Marker::all(&work.folder).map_err(work.io(work.folder.root()))?;
    if let Some(other) = foreign.iter().find(|marker| marker.lineage != work.op.lineage) {
        let why = format!("it has {} of lineage {}", other.resource, other.lineage);
        return Err(Error::new(ErrorKind::Exists, "create", work.folder.root().as_str()).because(why));
    }
    let cloud_id = work.folder.cloud_id("")?;
    work.claim(&cloud_id, Map::new())?;
    for folder in &spec.folders {
        let path = work.folder.inside(folder)?;
        files::make_folder(&path).map_err(work.io(&path))?;
    }
    files::make_sockets_folder(&work.folder).map_err(work.io(work.folder.sockets()))?;
    files::flush_folder(work.folder.root()).map_err(work.io(work.folder.root()))?;
    let marker = work.complete(&cloud_id, Map::new())?;
    work.done(&marker).await
}

/// Removes the folders, except files of other owners.
pub(crate) async fn remove(work: &Work<'_>, mut last: Object) -> Result<Progress> {
    let root = work.folder.root();
    let others = Marker::all(&work.folder).map_err(work.io(root))?;
    // The marker of an unfinished object is in no record, so it would never be removed otherwise.
    let is_there = |marker: &&Marker| marker.complete && !is_gone(marker, &work.folder);
    if let Some(other) = others.iter().filter(is_there).find(|marker| marker.resource != work.op.resource) {
        let why = format!("{} is still in it", other.resource);
        return Err(Error::new(ErrorKind::Conflict, "delete", root.as_str()).because(why));
    }
    files::remove_sockets_folder(&work.folder).map_err(work.io(work.folder.sockets()))?;
    let spec: DirectorySpec = work.applied()?;
    for folder in spec.folders.iter().map(String::as_str).filter(|folder| !OURS.contains(folder)) {
        let path = work.folder.inside(folder)?;
        remove_leftovers(&path).map_err(work.io(&path))?;
    }
    for folder in OURS {
        let path = work.folder.inside(folder)?;
        files::remove_tree(&path).map_err(work.io(&path))?;
    }
    match files::remove_folder(root) {
        Ok(()) => {
            // Remove it when empty; it stays with another site in it.
            if let Some(sites) = root.parent() {
                let _ = files::remove_folder(sites);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            last.health = Health::Degraded(format!("{root} stays: it contains files of another owner"));
        }
        Err(error) => return Err(work.io(root)(error)),
    }
    Ok(Progress::Done(last))
}

/// Whether the file or folder of a marker was removed by someone else, or that which its object was a part of. A run
/// only forgets such an object, so its marker is in no record either.
fn is_gone(marker: &Marker, folder: &SiteFolder) -> bool {
    // The id of a part is `FILE#PART`. One in a database that a server has is no file's.
    let is_served = marker.spec.get("served") == Some(&Value::Bool(true));
    let mut paths = ["path", "database"].into_iter().filter_map(|field| marker.spec.get(field)?.as_str());
    paths.any(|path| {
        let id = marker.cloud_id.as_str();
        let is_its_object = folder.cloud_id(path).is_ok_and(|own| id.split('#').next() == Some(own.as_str()));
        let found = std::fs::symlink_metadata(folder.join(path));
        is_its_object && !is_served && found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    })
}

/// Removes the leftovers of an interrupted write, and the folder when it is empty then.
fn remove_leftovers(folder: &camino::Utf8Path) -> std::io::Result<()> {
    let entries = match folder.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.starts_with('.') && (name.ends_with(".new") || name.ends_with(".old")) {
            if entry.file_type()?.is_dir() {
                files::remove_tree(entry.path())?;
            } else {
                files::remove_file(entry.path())?;
            }
        }
    }
    match files::remove_folder(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

pub(crate) fn observe(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    use std::os::unix::fs::PermissionsExt;
    let spec: DirectorySpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    if std::fs::symlink_metadata(folder.root()).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(Observation::Absent);
    }
    let mut observed = ObservedObject::default();
    observed.output("path", folder.root().as_str());
    for name in &spec.folders {
        let field = format!("folders.{name}");
        let says = match std::fs::symlink_metadata(folder.join(name)) {
            Ok(found) if !found.is_dir() => "another object has its path",
            Ok(found) if found.permissions().mode() & 0o077 != 0 => "other users can enter it",
            Ok(_) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "it is gone",
            Err(error) => return Err(Error::io("check", folder.join(name).as_str(), error)),
        };
        observed.drift(&field, says);
    }
    if folder.has_short_sockets() && std::fs::symlink_metadata(folder.sockets()).is_err() {
        observed.drift("sockets", format!("{} is gone", folder.sockets()));
    }
    Ok(Observation::There(observed))
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;
    use serde_json::json;
    use textnlp_provider::{CloudId, KindName, Lineage, OperationId, Spec};

    use super::*;

    #[test]
    fn only_what_has_a_file_in_the_folder_is_found_to_be_gone() {
        let state = tempfile::tempdir().unwrap();
        let folder = SiteFolder::of(Utf8Path::from_path(state.path()).unwrap(), &"here".parse().unwrap());
        std::fs::create_dir_all(folder.join("data")).unwrap();
        let marker = |id: &str, spec: Value| Marker {
            lineage: Lineage(Default::default()),
            environment: "staging".parse().unwrap(),
            site: "here".parse().unwrap(),
            resource: "here/one".parse().unwrap(),
            operation: OperationId(1),
            kind: KindName::new("onprem.file").unwrap(),
            cloud_id: CloudId::new(id).unwrap(),
            complete: true,
            spec: Spec::of(&spec),
            facts: Map::new(),
        };
        let of_file = ["sites/here/data/a.db", "sites/here/data/a.db#schema", "sites/here/data/a.db#keys/b"];
        let are_gone = || {
            let spec = |id: &str| match id.contains('#') {
                true => json!({ "database": "data/a.db" }),
                false => json!({ "path": "data/a.db" }),
            };
            of_file.map(|id| is_gone(&marker(id, spec(id)), &folder))
        };
        assert_eq!(are_gone(), [true; 3]);
        std::fs::write(folder.join("data/a.db"), "").unwrap();
        assert_eq!(are_gone(), [false; 3]);
        let served = json!({ "database": "data/other", "served": true });
        for (id, spec) in [
            ("sites/here/data/other#schema", served),
            ("sites/here/units/server", json!({ "unit": "server" })),
            ("sites/here/server", json!({ "path": "data/other" })),
        ] {
            assert!(!is_gone(&marker(id, spec), &folder), "{id}");
        }
    }
}
