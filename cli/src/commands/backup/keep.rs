//! What a copy needs to know of the environment, written beside the state by each `up`: copies are also made by the supervisor, which
//! knows nothing of the folder and the flags that `up` was typed with.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::{Backup, DataProtection};
use textnlp_orchestrator::release::Lock;

use crate::deployment::Deployment;
use crate::report::Failure;

/// The folder within the state.
pub const FOLDER: &str = "environment";
/// The whole environment as it was put up, flags and variables included; it loads by itself.
pub const WHOLE: &str = "environment.yaml";

/// The file with the whole environment.
pub fn whole(state: &Utf8Path) -> Utf8PathBuf {
    state.join(FOLDER).join(WHOLE)
}

/// What an environment says of its data and its copies.
pub struct Settings {
    /// Whether people rely on what is stored.
    pub protected: bool,
    /// The copies.
    pub backup: Backup,
}

/// As it was put up; as it is written now where it never was. Copies are of what runs, and so are the settings: the schedule's and a
/// person's copies lie in one place.
pub fn settings(state: &Utf8Path, written: &Environment) -> Settings {
    /// The two of its keys that matter here.
    #[derive(serde::Deserialize)]
    struct PutUp {
        data: DataProtection,
        #[serde(default)]
        backup: Backup,
    }
    let put_up = std::fs::read(whole(state)).ok().and_then(|text| serde_yaml::from_slice::<PutUp>(&text).ok());
    let (data, backup) = put_up.map_or((written.data, written.backup.clone()), |up| (up.data, up.backup));
    Settings { protected: data == DataProtection::Protected, backup }
}

/// Remembers what was put up: the environment as a whole, the files that it came from, and its release lock.
pub fn remember(deployment: &Deployment<'_>) -> Result<(), Failure> {
    let chosen = &deployment.chosen;
    let folder = chosen.folder.join(FOLDER);
    let mut keep = vec![(folder.join(WHOLE), chosen.loaded.to_yaml(false).into_bytes())];
    for file in chosen.loaded.files.iter().map(Utf8Path::new).filter(|file| file.is_file()) {
        let name = file.file_name().unwrap_or_default();
        // One's own file of that very name stands under another beside it.
        let name = if name == WHOLE { format!("source-{name}") } else { name.to_owned() };
        keep.push((folder.join(name), std::fs::read(file).with_context(|| format!("read {file}"))?));
    }
    // A restored environment is put up by the file above, and its lock is looked for in the state.
    let lock = Lock::path(&chosen.folder, &chosen.name);
    if lock != deployment.lock_path && deployment.lock_path.is_file() {
        let path = &deployment.lock_path;
        keep.push((lock, std::fs::read(path).with_context(|| format!("read {path}"))?));
    }
    for (path, bytes) in keep {
        put(&path, &bytes).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// Replaces a private file as a whole; one that is the same is left alone.
pub fn put(path: &Utf8Path, bytes: &[u8]) -> std::io::Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = Utf8PathBuf::from(format!("{path}.new"));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(folder)?.sync_all()
}
