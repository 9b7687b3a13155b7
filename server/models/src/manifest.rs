//! What a model folder holds: the file `textnlp-model.json` beside the model's own files.

use std::fs::{self, File};
use std::io::Read;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::{local, names};

/// The name of the manifest in a model folder. It is not part of the digest.
pub const MANIFEST: &str = "textnlp-model.json";

const FORMAT: u32 = 1;
/// Model folders have a handful of files; shards of the largest models about two hundred.
const MOST_FILES: usize = 4096;

/// What a model folder holds, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of this file.
    pub format: u32,
    /// The source as it was asked for.
    pub source: String,
    /// The commit, or what else tells versions of the source apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The licence, if the source says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// The digest of the whole: SHA-256 over `<name> NUL <64 hex digits> LF` of every file, sorted by name.
    pub digest: Digest,
    /// Bytes of all files.
    pub bytes: u64,
    /// The files, sorted by name.
    pub files: Vec<FileEntry>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the folder.
    pub name: String,
    /// Its SHA-256.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

impl Manifest {
    pub(crate) fn new(
        source: String,
        revision: Option<String>,
        license: Option<String>,
        mut files: Vec<FileEntry>,
    ) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let digest = digest_of_files(files.iter().map(|file| (file.name.as_str(), file.digest)));
        let bytes = files.iter().map(|f| f.bytes).sum();
        Manifest { format: FORMAT, source, revision, license, digest, bytes, files }
    }

    /// Parses, and refuses what does not hold together: a manifest may come from a copied folder, or from another machine.
    pub fn parse(path: &Utf8Path, text: &[u8]) -> Result<Manifest> {
        let read: Manifest = serde_json::from_slice(text).map_err(|error| Error::corrupt(path, error.to_string()))?;
        if read.format != FORMAT {
            return Err(Error::corrupt(
                path,
                format!("it has format {}, but this program reads {FORMAT}", read.format),
            ));
        }
        if read.files.is_empty() || read.files.len() > MOST_FILES {
            return Err(Error::corrupt(path, format!("it lists {} files", read.files.len())));
        }
        if let Some(file) = read.files.iter().find(|f| !local::safe_name(&f.name) || f.name == MANIFEST) {
            return Err(Error::corrupt(path, format!("`{}` is not a file name", file.name)));
        }
        let again = Manifest::new(read.source.clone(), read.revision.clone(), read.license.clone(), read.files.clone());
        if again.files.windows(2).any(|pair| pair[0].name == pair[1].name) || again != read {
            return Err(Error::corrupt(path, "its digest is not that of the files it lists"));
        }
        Ok(read)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest has text keys only");
        text.push(b'\n');
        text
    }
}

/// The digest of a model: of the names and digests of its files, in the order of their names.
pub fn digest_of_files<'a>(files: impl IntoIterator<Item = (&'a str, Digest)>) -> Digest {
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_by_key(|(name, _)| *name);
    let mut text = Vec::new();
    for (name, digest) in files {
        text.extend_from_slice(name.as_bytes());
        text.push(0);
        text.extend_from_slice(digest.hex().as_bytes());
        text.push(b'\n');
    }
    Digest::of(&text)
}

/// Reads the manifest of a model folder and checks that its files are there with their sizes. `None`: the folder has none.
pub fn read_manifest(dir: &Utf8Path) -> Result<Option<Manifest>> {
    let path = dir.join(MANIFEST);
    let Some(text) = local::read_bounded(&path, 4 << 20)? else { return Ok(None) };
    let manifest = Manifest::parse(&path, &text)?;
    for file in &manifest.files {
        let path = dir.join(&file.name);
        match fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() == file.bytes => {}
            Ok(found) => {
                return Err(Error::corrupt(
                    &path,
                    format!("it has {} bytes, but {} were stored", found.len(), file.bytes),
                ));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::corrupt(&path, "the file is missing"));
            }
            Err(error) => return Err(Error::io("read", &path)(error)),
        }
    }
    Ok(Some(manifest))
}

/// Reads every byte of a model folder and compares with its manifest. The error names the file that differs.
pub fn verify(dir: &Utf8Path) -> Result<Manifest> {
    let Some(manifest) = read_manifest(dir)? else {
        return Err(Error::NotFound {
            what: format!("the model folder {dir}"),
            why: format!("it has no {MANIFEST}"),
            hint: "pull the model again, or give a folder that `model pull` created".to_owned(),
        });
    };
    for file in &manifest.files {
        let path = dir.join(&file.name);
        let (digest, _) = hash_file(&path)?;
        if digest != file.digest {
            return Err(Error::corrupt(&path, format!("its content is {digest}, but {} was stored", file.digest)));
        }
    }
    Ok(manifest)
}

/// Reads every byte of the model files of any folder. The manifest's source and revision are kept if there is one; its
/// digests are not believed.
pub fn digest_of(dir: &Utf8Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let known = local::read_bounded(&path, 4 << 20)?.and_then(|text| Manifest::parse(&path, &text).ok());
    let mut files = Vec::new();
    for name in local::file_names(dir)? {
        let listed = known.as_ref().is_some_and(|k| k.files.iter().any(|f| f.name == name));
        if name != MANIFEST && (listed || names::belongs(&name)) {
            let (digest, bytes) = hash_file(&dir.join(&name))?;
            files.push(FileEntry { name, digest, bytes });
        }
    }
    if files.is_empty() {
        return Err(Error::Unusable {
            what: dir.to_string(),
            why: "the folder has no model files".to_owned(),
            hint: "a model folder has config.json, *.safetensors and tokenizer.json, or one .gguf file".to_owned(),
        });
    }
    let (source, revision, license) = match known {
        Some(known) => (known.source, known.revision, known.license),
        None => (format!("file:{dir}"), None, None),
    };
    Ok(Manifest::new(source, revision, license, files))
}

pub(crate) fn hash_file(path: &Utf8Path) -> Result<(Digest, u64)> {
    hash_file_aloud(path, &|_| ())
}

/// The same; `tell` hears how many bytes were read so far.
pub(crate) fn hash_file_aloud(path: &Utf8Path, tell: &dyn Fn(u64)) -> Result<(Digest, u64)> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    Digest::of_reader(Aloud { file, read: 0, tell }).map_err(Error::io("read", path))
}

/// A file that says how far it was read.
struct Aloud<'a> {
    file: File,
    read: u64,
    tell: &'a dyn Fn(u64),
}

impl Read for Aloud<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read += read as u64;
        (self.tell)(self.read);
        Ok(read)
    }
}
