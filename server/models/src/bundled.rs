//! The model that is compiled into the program.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{FileEntry, Manifest};
use crate::progress::Pulled;
use crate::store::Assembly;

/// Its files: name and content.
const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/bundled.rs"));

/// Unpacks it into the assembly.
pub(crate) fn unpack(assembly: &Assembly<'_>) -> Result<Pulled> {
    unpack_files(assembly, FILES)
}

fn unpack_files(assembly: &Assembly<'_>, files: &[(&str, &[u8])]) -> Result<Pulled> {
    if !files.iter().any(|(name, _)| is_weights(name)) {
        return Err(Error::NotFound {
            what: "the bundled model".to_owned(),
            why: "this build of the program contains no model".to_owned(),
            hint: "build it from a checkout that has server/models/bundled/textnlp-tiny, or use another source (`hf:…`, `file:PATH`)"
                .to_owned(),
        });
    }
    assembly.make_room("the bundled model", files.iter().map(|(_, content)| content.len() as u64).sum())?;
    let mut entries = Vec::new();
    for (name, content) in files {
        let entry = FileEntry { name: (*name).to_owned(), digest: Digest::of(content), bytes: content.len() as u64 };
        assembly.write(&entry, content)?;
        entries.push(entry);
    }
    Ok(Pulled { files: entries, revision: None, license: Some("Apache-2.0".to_owned()) })
}

/// The digest of the model that is compiled into this program, before it is unpacked; `None` for a build that carries none.
pub fn bundled_digest() -> Option<Digest> {
    if !FILES.iter().any(|(name, _)| is_weights(name)) {
        return None;
    }
    let entry = |(name, content): &(&str, &[u8])| FileEntry {
        name: (*name).to_owned(),
        digest: Digest::of(content),
        bytes: content.len() as u64,
    };
    Some(Manifest::new("bundled".to_owned(), None, None, FILES.iter().map(entry).collect()).digest)
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

/// Tells versions of the bundled model apart: a newer program brings a newer model under the same source.
pub(crate) fn fingerprint() -> String {
    let mut text = String::new();
    for (name, content) in FILES {
        text.push_str(&format!("{name} {}\n", Digest::of(content)));
    }
    Digest::of(text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn embedded_model_is_unpacked_and_a_build_without_one_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(camino::Utf8Path::from_path(folder.path()).unwrap()).unwrap();
        let assembly = store.assembly(None).unwrap();
        let pulled = unpack_files(&assembly, &[("config.json", b"{}"), ("model.safetensors", b"weights")]).unwrap();
        assert_eq!(pulled.files.len(), 2);
        assert_eq!(std::fs::read(assembly.path("model.safetensors")).unwrap(), b"weights");
        let error = unpack_files(&assembly, &[("README.md", b"soon")]).unwrap_err();
        assert!(error.to_string().contains("contains no model"), "{error}");
    }
}
