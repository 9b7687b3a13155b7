//! A model's folder outside the store.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::Model;
use super::assembly::{is_own, link_if_there};
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::{MANIFEST, read_manifest, verify};
use crate::names;

impl Model {
    /// Puts the model's folder at `target`, in one step: hard links where that is possible, copies otherwise and of files
    /// that other users can change. What is there already is replaced if it is a model folder, and left alone if it is this model, intact by names and sizes.
    pub fn place(&self, target: &Utf8Path) -> Result<()> {
        if read_manifest(target).is_ok_and(|there| there.is_some_and(|there| there == self.manifest)) {
            return Ok(());
        }
        if target.exists() {
            refuse_foreign(target)?;
        }
        if let Some(parent) = target.parent().filter(|parent| !parent.as_str().is_empty()) {
            local::make_dir(parent)?;
        }
        let name = target.file_name().ok_or_else(|| Error::Unusable {
            what: target.to_string(),
            why: "it is not the path of a folder".to_owned(),
            hint: "give the path of a folder that can be created".to_owned(),
        })?;
        let build = target.with_file_name(format!(".{name}.{}.new", textnlp_files::unique_name()));
        local::remove_dir(&build)?;
        let result = self.build(&build).and_then(|()| put(&build, target));
        let _ = local::remove_dir(&build);
        result
    }

    fn build(&self, dir: &Utf8Path) -> Result<()> {
        fs::create_dir(dir).map_err(Error::io("make folder", dir))?;
        let names = self.manifest.files.iter().map(|file| file.name.as_str()).chain([MANIFEST]);
        let mut is_own_model = true;
        for name in names {
            let from = self.dir.join(name);
            if !link_if_there(&from, &dir.join(name))? {
                return Err(Error::corrupt(&from, "the file is missing"));
            }
            is_own_model &= is_own(&from)?;
        }
        // Other users may have changed their files since the model was opened.
        if !is_own_model && verify(dir)?.digest != self.manifest.digest {
            return Err(Error::corrupt(dir, format!("it is not {}", self.manifest.digest)));
        }
        Ok(textnlp_files::sync_folder(dir)?)
    }
}

/// Refuses a directory with anything but model files: it was not created by us.
fn refuse_foreign(target: &Utf8Path) -> Result<()> {
    for entry in fs::read_dir(target).map_err(Error::io("list", target))? {
        let entry = entry.map_err(Error::io("list", target))?;
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name == MANIFEST || names::belongs(name)) {
            return Err(Error::Unusable {
                what: target.to_string(),
                why: format!("it contains `{}`, which is not part of a model", name.to_string_lossy()),
                hint: "give another folder, or move its content".to_owned(),
            });
        }
    }
    Ok(())
}

fn put(build: &Utf8Path, target: &Utf8Path) -> Result<()> {
    if target.exists() {
        swap(build, target)?;
    } else {
        fs::rename(build, target).map_err(Error::io("move to", target))?;
    }
    local::sync_parent(target)
}

/// Replaces a folder by another and removes the old one.
pub(super) fn swap(new: &Utf8Path, target: &Utf8Path) -> Result<()> {
    let exchanged = renameat_with(CWD, new.as_std_path(), CWD, target.as_std_path(), RenameFlags::EXCHANGE);
    if exchanged.is_ok() {
        return local::remove_dir(new);
    }
    // A filesystem without exchange: for a moment there is none.
    let old = Utf8PathBuf::from(format!("{new}.old"));
    fs::rename(target, &old).map_err(Error::io("move away", target))?;
    fs::rename(new, target).map_err(Error::io("move to", target))?;
    local::remove_dir(&old)
}
