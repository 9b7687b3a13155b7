//! What a site offers to others, and reading parts of it.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use textnlp_models::{Digest, Manifest, read_manifest};

use super::super::config::AgentConfig;
use super::{CopiesConfig, File, Offer, models_of, sha256};

/// Bytes of a file in one answer.
pub(in super::super) const PIECE: u64 = 4 << 20;
/// Maximum size of a configuration file, in bytes; typical ones have a few KiB.
pub(super) const FILE_MAX: u64 = 1 << 20;
/// Sites have a dozen of each.
const MAX_OFFERED: usize = 256;

/// Everything that is here, models by digest. Reads names, sizes and lists, not contents of models.
pub(in super::super) fn offer(config: &AgentConfig, copies: &CopiesConfig) -> io::Result<Offer> {
    let models = models(config, copies)?.into_values().map(|(manifest, _)| manifest).collect();
    let mut configuration = Vec::new();
    for name in names(&copies.configuration)?.into_iter().filter(|name| name.ends_with(".yaml")).take(MAX_OFFERED) {
        let bytes = bounded(&copies.configuration.join(&name))?;
        configuration.push(File { name, bytes: bytes.len() as u64, sha256: sha256(&bytes) });
    }
    Ok(Offer { models, configuration })
}

/// Every whole model that is here, delivered or copied, with its folder.
pub(super) fn models(
    config: &AgentConfig,
    copies: &CopiesConfig,
) -> io::Result<BTreeMap<Digest, (Manifest, Utf8PathBuf)>> {
    let mut all = whole(&models_of(&config.folder))?;
    // A delivered model replaces a copy of the same one.
    all.extend(delivered(copies)?);
    Ok(all)
}

/// The models that a deployment has placed here.
pub(super) fn delivered(copies: &CopiesConfig) -> io::Result<BTreeMap<Digest, (Manifest, Utf8PathBuf)>> {
    whole(&copies.models)
}

fn whole(folder: &Utf8Path) -> io::Result<BTreeMap<Digest, (Manifest, Utf8PathBuf)>> {
    let mut all = BTreeMap::new();
    for name in names(folder)?.into_iter().filter(|name| !name.starts_with('.')).take(MAX_OFFERED) {
        let folder = folder.join(name);
        match read_manifest(&folder) {
            Ok(Some(manifest)) => drop(all.insert(manifest.digest, (manifest, folder))),
            // Not a model, or a model that is still being written.
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%folder, %error, "a local model is incomplete and is not offered to other sites")
            }
        }
    }
    Ok(all)
}

/// A chunk of a model's file; `None` where there is no such model or file.
pub(in super::super) fn piece(
    config: &AgentConfig,
    copies: &CopiesConfig,
    digest: &Digest,
    name: &str,
    from: u64,
) -> io::Result<Option<Vec<u8>>> {
    let Some((manifest, folder)) = models(config, copies)?.remove(digest) else { return Ok(None) };
    // Only files in the manifest are read, so a name cannot escape the directory.
    let Some(file) = manifest.files.iter().find(|file| file.name == name && from <= file.bytes) else {
        return Ok(None);
    };
    let mut source = std::fs::File::open(folder.join(&file.name))?;
    source.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    source.take(PIECE).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// A configuration file; `None` if there is none.
pub(in super::super) fn file(copies: &CopiesConfig, name: &str) -> io::Result<Option<Vec<u8>>> {
    match names(&copies.configuration)?.iter().any(|known| known == name && known.ends_with(".yaml")) {
        true => bounded(&copies.configuration.join(name)).map(Some),
        false => Ok(None),
    }
}

/// The same in fewer bytes.
pub(in super::super) fn deflated(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut to = DeflateEncoder::new(Vec::new(), Compression::fast());
    to.write_all(bytes)?;
    to.finish()
}

/// The sorted names in a directory; none if it does not exist.
pub(super) fn names(folder: &Utf8Path) -> io::Result<Vec<String>> {
    let entries = match folder.read_dir_utf8() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_owned()).collect();
    names.sort();
    Ok(names)
}

fn bounded(path: &Utf8Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} has more than {FILE_MAX} bytes")));
    }
    Ok(bytes)
}
