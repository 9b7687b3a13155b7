//! What a model folder holds: the file `textnlp-model.json` beside the model's own files.

use std::fs::{self, File};
use std::io::Read;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

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
/// Files that are hashed side by side. More would only fight for the disk.
const MOST_THREADS: usize = 8;

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
    manifest.files.iter().try_for_each(|file| compare(dir, file))?;
    Ok(manifest)
}

fn compare(dir: &Utf8Path, file: &FileEntry) -> Result<()> {
    let path = dir.join(&file.name);
    let (digest, _) = hash_file(&path)?;
    if digest == file.digest {
        return Ok(());
    }
    Err(Error::corrupt(&path, format!("its content is {digest}, but {} was stored", file.digest)))
}

/// Whether a server reads a file of this name: all but the documentation.
fn is_loaded(name: &str) -> bool {
    names::belongs(name) && !name.ends_with(".md") && name != "LICENSE"
}

/// Compares what a server loads from a model, a folder or one file, with the manifest of its folder. The files are read
/// side by side. `false`: there is no manifest, so nothing was recorded.
pub fn verify_to_load(model: &Utf8Path) -> Result<bool> {
    let dir = if model.is_dir() { model } else { model.parent().unwrap_or(model) };
    let path = dir.join(MANIFEST);
    let Some(text) = local::read_bounded(&path, 4 << 20)? else { return Ok(false) };
    let manifest = Manifest::parse(&path, &text)?;
    let mut files: Vec<&FileEntry> = manifest.files.iter().filter(|file| is_loaded(&file.name)).collect();
    if dir == model {
        // The names in a folder decide which of them are read.
        let listed = |name: &String| files.iter().any(|file| file.name == *name);
        let unlisted = local::file_names(dir)?.into_iter().find(|name| is_loaded(name) && !listed(name));
        // A store has no folders in a model.
        let unlisted = unlisted.or(local::pooling_names(dir)?.into_iter().next());
        if let Some(name) = unlisted {
            return Err(Error::corrupt(&dir.join(name), format!("{MANIFEST} does not list it")));
        }
    } else {
        files.retain(|file| model.file_name() == Some(&file.name));
    }
    // One thread hashes a file, and the largest is the last to end.
    files.sort_by_key(|file| std::cmp::Reverse(file.bytes));
    let (next, threads) = (AtomicUsize::new(0), thread::available_parallelism().map_or(1, usize::from));
    thread::scope(|scope| {
        let hash = || -> Result<()> {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                compare(dir, file)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..threads.min(files.len()).min(MOST_THREADS)).map(|_| scope.spawn(hash)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    Ok(!files.is_empty())
}

/// Reads every byte of the model files of any folder. The manifest's source and revision are kept if there is one; its
/// digests are not believed.
pub fn digest_of(dir: &Utf8Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let known = local::read_bounded(&path, 4 << 20)?.and_then(|text| Manifest::parse(&path, &text).ok());
    let mut files = Vec::new();
    for path in local::file_names(dir)?.into_iter().chain(local::pooling_names(dir)?) {
        let name = local::stored_name(&path);
        let listed = known.as_ref().is_some_and(|k| k.files.iter().any(|f| f.name == name));
        if name != MANIFEST && (listed || names::belongs(&name)) {
            let (digest, bytes) = hash_file(&dir.join(&path))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let model = camino::Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "README.md"] {
            fs::write(model.join(name), name).unwrap();
        }
        assert!(!verify_to_load(&model).unwrap(), "nothing was recorded");
        let manifest = digest_of(&model).unwrap();
        fs::write(model.join(MANIFEST), manifest.to_bytes()).unwrap();
        (dir, model)
    }

    #[test]
    fn every_file_that_is_loaded_is_compared() {
        let (_dir, model) = model();
        assert!(verify_to_load(&model).unwrap());
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::write(model.join(name), name.to_uppercase()).unwrap();
            let error = verify_to_load(&model).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("was stored"), "{error}");
            assert!(verify_to_load(&model.join(name)).is_err(), "{name} alone");
            fs::remove_file(model.join(name)).unwrap();
            assert!(verify_to_load(&model).is_err(), "{name} is missing");
            fs::write(model.join(name), name).unwrap();
        }
        fs::write(model.join("README.md"), "another text").unwrap();
        assert!(verify_to_load(&model).unwrap(), "documentation is not loaded");
    }

    #[test]
    fn added_file_that_would_be_loaded_is_refused() {
        let (_dir, model) = model();
        fs::write(model.join("chat_template.jinja"), "x").unwrap();
        let error = verify_to_load(&model).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja") && error.contains("does not list it"), "{error}");
        fs::remove_file(model.join("chat_template.jinja")).unwrap();
        assert!(verify_to_load(&model).unwrap());
        fs::create_dir(model.join("1_Pooling")).unwrap();
        fs::write(model.join("1_Pooling/config.json"), "{}").unwrap();
        let error = verify_to_load(&model).unwrap_err().to_string();
        assert!(error.contains("1_Pooling/config.json") && error.contains("does not list it"), "{error}");
        fs::write(model.join(MANIFEST), "{}").unwrap();
        assert!(verify_to_load(&model).is_err(), "a damaged manifest is not a missing one");
    }
}
