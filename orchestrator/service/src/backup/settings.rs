//! What a backup needs to know of the environment. Each `up` writes it into the state, because the supervisor takes
//! backups without knowing the folder or the flags of that `up`.

use std::os::unix::fs::DirBuilderExt;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_files::Replace;
use textnlp_orchestrator::environment::model::{Backup, DataProtection, NetworkSettings};
use textnlp_orchestrator::environment::{Environment, Loaded};
use textnlp_orchestrator::release::Lock;

use crate::{Failure, RerunFlags};

/// The folder within the state.
pub const FOLDER: &str = "environment";
/// The flags of the last `up`.
const FLAGS: &str = "up-flags.json";
/// The flags that are repeated. Another site than that of `--site` may be the one to repair.
const REPEATED: [&str; 4] = ["--set", "--provider", "--server", "--take-ownership"];
/// The whole environment as provisioned, with flags and variables applied. It loads on its own.
pub const WHOLE: &str = "environment.yaml";

/// The file with the whole environment.
pub fn provisioned_file(state: &Utf8Path) -> Utf8PathBuf {
    state.join(FOLDER).join(WHOLE)
}

/// The data and backup settings of an environment.
#[derive(Default)]
pub struct Settings {
    /// Whether the data is protected.
    pub protected: bool,
    /// The backup settings.
    pub backup: Backup,
    /// The network, for a bucket.
    pub network: NetworkSettings,
}

/// The settings as provisioned, or of the current file if `up` never ran. Scheduled and manual backups thus use the
/// same settings and destination.
pub fn settings(state: &Utf8Path, written: &Environment) -> Settings {
    provisioned(state).unwrap_or_else(|| Settings {
        protected: written.data == DataProtection::Protected,
        backup: written.backup.clone(),
        network: written.network.clone(),
    })
}

/// The settings as provisioned; `None` if `up` never ran.
pub fn provisioned(state: &Utf8Path) -> Option<Settings> {
    /// The members of the environment that are read here.
    #[derive(serde::Deserialize)]
    struct ProvisionedSettings {
        data: DataProtection,
        #[serde(default)]
        backup: Backup,
        #[serde(default)]
        network: NetworkSettings,
    }
    let text = std::fs::read(provisioned_file(state)).ok()?;
    let ProvisionedSettings { data, backup, network } = serde_yaml::from_slice(&text).ok()?;
    Some(Settings { protected: data == DataProtection::Protected, backup, network })
}

/// Records what was provisioned: the whole environment, its source files and its release lock.
pub fn remember(state: &Utf8Path, loaded: &Loaded, lock_path: &Utf8Path) -> Result<(), Failure> {
    let folder = state.join(FOLDER);
    let mut keep = vec![(folder.join(WHOLE), loaded.to_yaml(false).into_bytes())];
    for file in loaded.files.iter().map(Utf8Path::new).filter(|file| file.is_file()) {
        let name = file.file_name().unwrap_or_default();
        // A source file with that name is stored under another one.
        let name = if name == WHOLE { format!("source-{name}") } else { name.to_owned() };
        keep.push((folder.join(name), std::fs::read(file).with_context(|| format!("read {file}"))?));
    }
    // After a restore, the environment is the file above and its lock is looked up in the state.
    let lock = Lock::path(state, &loaded.environment.environment);
    if lock != lock_path && lock_path.is_file() {
        keep.push((lock, std::fs::read(lock_path).with_context(|| format!("read {lock_path}"))?));
    }
    for (path, bytes) in keep {
        put(&path, &bytes).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// Records the flags of an `up` that is about to change something. A relative path is relative to `here`.
pub fn remember_flags(state: &Utf8Path, mut flags: RerunFlags, here: &Utf8Path) -> Result<(), Failure> {
    let absolute = |path: &mut String| *path = here.join(&*path).into_string();
    flags.file.iter_mut().for_each(absolute);
    flags.changes.retain(|(flag, _)| REPEATED.contains(&flag.as_str()));
    flags.changes.iter_mut().filter(|(flag, _)| flag == "--server").for_each(|(_, path)| absolute(path));
    let path = state.join(FOLDER).join(FLAGS);
    Ok(put(&path, &serde_json::to_vec(&flags)?).with_context(|| format!("write {path}"))?)
}

/// The flags of the last `up` that changed something; none if they cannot be read, because they only serve suggestions.
pub fn last_flags(state: &Utf8Path) -> RerunFlags {
    let bytes = std::fs::read(state.join(FOLDER).join(FLAGS)).unwrap_or_default();
    let mut flags: RerunFlags = serde_json::from_slice(&bytes).unwrap_or_default();
    flags.changes.retain(|(flag, _)| REPEATED.contains(&flag.as_str()));
    // A restored state may name a file of another machine.
    flags.file = flags.file.filter(|file| Utf8Path::new(file).is_file());
    flags
}

/// Replaces a private file durably. A file with the same content is not written.
pub fn put(path: &Utf8Path, bytes: &[u8]) -> std::io::Result<()> {
    // Only a file of that length is read: a pipe has no end, and some devices have none either.
    let may_be_same = |there: std::fs::Metadata| there.is_file() && there.len() == bytes.len() as u64;
    if path.metadata().is_ok_and(may_be_same) && std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    Ok(Replace::private().write(path, bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipe_in_the_place_of_a_file_is_neither_read_nor_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = Utf8Path::from_path(folder.path()).unwrap().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, pipe.as_std_path(), mode).unwrap();
        put(&pipe, b"new").unwrap_err();
        assert!(!pipe.is_file() && pipe.exists());
    }
}
