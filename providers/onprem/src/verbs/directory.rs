//! The site's folder with its subfolders.

use serde_json::Map;
use textnlp_provider::{Error, Health, Object, Progress, Result, Sort};

use super::{Look, Seen, Work};
use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::spec::DirectorySpec;

/// Folders whose content is ours by nature: locks, sockets, logs, units, markers.
const OURS: [&str; 4] = ["run", "log", "units", "objects"];

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: DirectorySpec = work.spec()?;
    let foreign = Marker::all(&work.folder).map_err(work.io(work.folder.root()))?;
    if let Some(other) = foreign.iter().find(|marker| marker.lineage != work.op.lineage) {
        let why = format!("it holds {} of lineage {}", other.resource, other.lineage);
        return Err(Error::new(Sort::Exists, "create", work.folder.root().as_str()).because(why));
    }
    let cloud_id = work.folder.cloud_id("")?;
    work.claim(&cloud_id, Map::new())?;
    for folder in &spec.folders {
        let path = work.folder.inside(folder)?;
        files::make_folder(&path).map_err(work.io(&path))?;
    }
    if work.folder.has_short_sockets() {
        let path = work.folder.sockets();
        files::make_private_folder(&path).map_err(work.io(&path))?;
    }
    files::flush_folder(work.folder.root()).map_err(work.io(work.folder.root()))?;
    let marker = work.complete(&cloud_id, Map::new())?;
    work.done(&marker).await
}

/// Removes the folders as far as nothing of anybody else is in them.
pub(super) async fn remove(work: &Work<'_>, mut last: Object) -> Result<Progress> {
    let root = work.folder.root();
    let others = Marker::all(&work.folder).map_err(work.io(root))?;
    // What was begun and never became an object is nobody's: no record knows it, so nothing else would ever take it away.
    if let Some(other) = others.iter().find(|marker| marker.complete && marker.resource != work.op.resource) {
        let why = format!("{} is still in it", other.resource);
        return Err(Error::new(Sort::Conflict, "delete", root.as_str()).because(why));
    }
    if work.folder.has_short_sockets() {
        let path = work.folder.sockets();
        files::remove_tree(&path).map_err(work.io(&path))?;
    }
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
            // Empty, it says nothing; with another site in it, it stays.
            if let Some(sites) = root.parent() {
                let _ = files::remove_folder(sites);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            last.health = Health::Degraded(format!("{root} stays: somebody else's files are in it"));
        }
        Err(error) => return Err(work.io(root)(error)),
    }
    Ok(Progress::Done(last))
}

/// Removes what an interrupted write of ours left, and the folder when it is empty then.
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

pub(super) fn look(folder: &SiteFolder, marker: &Marker) -> Result<Seen> {
    use std::os::unix::fs::PermissionsExt;
    let spec: DirectorySpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(Sort::Invalid, "read", marker.resource.to_string()).because(error))?;
    if std::fs::symlink_metadata(folder.root()).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(Seen::Absent);
    }
    let mut look = Look::default();
    look.output("path", folder.root().as_str());
    for name in &spec.folders {
        let field = format!("folders.{name}");
        match std::fs::symlink_metadata(folder.join(name)) {
            Ok(found) if !found.is_dir() => drop(look.drift(&field, "something else lies in its place")),
            Ok(found) if found.permissions().mode() & 0o077 != 0 => drop(look.drift(&field, "others may enter it")),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => drop(look.drift(&field, "it is gone")),
            Err(error) => return Err(Error::io("look at", folder.join(name).as_str(), error)),
        }
    }
    if folder.has_short_sockets() && std::fs::symlink_metadata(folder.sockets()).is_err() {
        look.drift("sockets", format!("{} is gone", folder.sockets()));
    }
    Ok(Seen::There(look))
}
