//! A source of files, either a bundle or a folder: the interface for serving and exporting.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::Digest;

use crate::manifest::Item;

/// One file of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bytes.
    pub size: u64,
    /// Of all of them.
    pub digest: Digest,
    /// Whether it may be run.
    pub executable: bool,
}

/// Files by path, as a bundle's manifest lists them. Reading is by offset and from many threads at once.
pub trait FileSource: Send + Sync {
    /// The items of the content.
    fn items(&self) -> &[Item];

    /// Every path with its entry, sorted by path or in the order of the archive.
    fn list(&self) -> Box<dyn Iterator<Item = (&str, Entry)> + '_>;

    /// The file of this path.
    fn find(&self, path: &str) -> Option<Entry>;

    /// Fills the buffer from the file's bytes at `offset`; fewer only at the file's end. A bundle returns only bytes
    /// that were verified by their chunk's digest. Damage is an error of the kind `InvalidData` that names file and
    /// chunk.
    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl<'a> dyn FileSource + 'a {
    /// A small file as a whole.
    pub fn read(&self, path: &str, most: u64) -> io::Result<Vec<u8>> {
        let entry =
            self.find(path).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{path} is not there")))?;
        if entry.size > most {
            let why = format!("{path} has {} bytes, {most} are read at most", entry.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut bytes = Vec::with_capacity(entry.size as usize);
        self.reader(path, entry).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A file from its start. Size and digest are verified at the end: the last read fails if they differ.
    pub fn reader<'s>(&'s self, path: &'s str, entry: Entry) -> impl Read + 's {
        Checked { source: self, path, entry, at: 0, hasher: Some(sha2::Sha256::default()) }
    }
}

struct Checked<'s, 'a> {
    source: &'s (dyn FileSource + 'a),
    path: &'s str,
    entry: Entry,
    at: u64,
    hasher: Option<sha2::Sha256>,
}

impl Read for Checked<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use sha2::Digest as _;
        if buffer.is_empty() {
            return Ok(0);
        }
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{} {why}", self.path));
        let left = self.entry.size - self.at;
        if left == 0 {
            if let Some(hasher) = self.hasher.take() {
                let found = hex::encode(hasher.finalize());
                if found != self.entry.digest.hex() {
                    return Err(damaged(format!("is sha256:{found}; the list says {}", self.entry.digest)));
                }
            }
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = self.source.read_at(self.path, self.at, &mut buffer[..most])?;
        if n == 0 {
            return Err(damaged(format!("ends after {} of {} bytes", self.at, self.entry.size)));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..n]);
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// A folder with the content of a bundle, for example from `tar x`. Its files are read once for their digests.
#[derive(Debug)]
pub struct Folder {
    root: Utf8PathBuf,
    items: Vec<Item>,
    files: BTreeMap<String, Entry>,
}

/// Far above the file count of any bundle.
const MOST_FILES: usize = 200_000;

impl Folder {
    /// Indexes every plain file below `root`. Links are refused: they could lead anywhere.
    pub fn open(root: &Utf8Path, items: Vec<Item>) -> io::Result<Folder> {
        let mut files = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir_utf8()? {
                let entry = entry?;
                let (path, kind) = (entry.path(), entry.file_type()?);
                let odd = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{path} {why}"));
                if kind.is_dir() {
                    folders.push(path.to_owned());
                } else if kind.is_file() {
                    let mode = entry.metadata()?.permissions().mode();
                    let (digest, size) = Digest::of_reader(File::open(path)?)?;
                    let name = path.strip_prefix(root).map_err(|_| odd("is elsewhere"))?.as_str().to_owned();
                    files.insert(name, Entry { size, digest, executable: mode & 0o100 != 0 });
                    if files.len() > MOST_FILES {
                        return Err(odd("is not in the list"));
                    }
                } else {
                    return Err(odd("is neither a file nor a folder"));
                }
            }
        }
        Ok(Folder { root: root.to_owned(), items, files })
    }
}

impl FileSource for Folder {
    fn items(&self) -> &[Item] {
        &self.items
    }

    fn list(&self) -> Box<dyn Iterator<Item = (&str, Entry)> + '_> {
        Box::new(self.files.iter().map(|(path, entry)| (path.as_str(), *entry)))
    }

    fn find(&self, path: &str) -> Option<Entry> {
        self.files.get(path).copied()
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.files.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{path} is not there")));
        }
        let path = self.root.join(path);
        if !fs::symlink_metadata(&path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is no longer a regular file")));
        }
        let file = File::open(path)?;
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}
