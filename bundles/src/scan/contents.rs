//! The scanned content: files by path, in a folder or in a bundle.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};

use crate::open::Bundle;
use crate::pack::{Content, Input};

/// One file that can be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Relative, `/` between parts.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

/// Files by path: a folder or a bundle.
pub trait Contents {
    /// Every file, sorted by path.
    fn entries(&self) -> Vec<Entry>;

    /// The bytes of one, from the beginning.
    fn open(&self, path: &str) -> io::Result<Box<dyn Read + '_>>;

    /// Paths that cannot be read as a file, with the reason: links, devices, names that are not text.
    fn unreadable(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Far above the file count of a folder of this program.
const MOST_FILES: usize = 1_000_000;

/// A folder on disk. Links are not followed: their targets may be outside.
#[derive(Clone, Debug)]
pub struct Folder {
    root: Utf8PathBuf,
    entries: Vec<Entry>,
    unreadable: Vec<(String, String)>,
}

impl Folder {
    /// Lists the folder.
    pub fn open(root: &Utf8Path) -> io::Result<Folder> {
        let mut folder = Folder { root: root.to_owned(), entries: Vec::new(), unreadable: Vec::new() };
        let mut waiting = vec![Utf8PathBuf::new()];
        while let Some(under) = waiting.pop() {
            folder.list(&under, &mut waiting)?;
            if folder.entries.len() + waiting.len() > MOST_FILES {
                return Err(io::Error::other(format!("{root} has more than {MOST_FILES} files")));
            }
        }
        folder.entries.sort();
        folder.unreadable.sort();
        Ok(folder)
    }

    fn list(&mut self, under: &Utf8Path, waiting: &mut Vec<Utf8PathBuf>) -> io::Result<()> {
        let listing = match std::fs::read_dir(self.root.join(under)) {
            Ok(listing) => listing,
            // The root must exist; an unreadable folder inside it is reported, not skipped.
            Err(error) if !under.as_str().is_empty() => {
                self.unreadable.push((under.to_string(), error.to_string()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for entry in listing {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                let name = entry.file_name().to_string_lossy().into_owned();
                self.unreadable.push((under.join(name).into_string(), "its name is not UTF-8".to_owned()));
                continue;
            };
            let path = under.join(name);
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                waiting.push(path);
            } else if metadata.is_file() {
                let mode = metadata.permissions().mode() & 0o7777;
                self.entries.push(Entry { path: path.into_string(), size: metadata.len(), mode });
            } else {
                let what = if metadata.is_symlink() { "a link, not followed" } else { "not a plain file" };
                self.unreadable.push((path.into_string(), what.to_owned()));
            }
        }
        Ok(())
    }
}

impl Contents for Folder {
    fn entries(&self) -> Vec<Entry> {
        self.entries.clone()
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(File::open(self.root.join(path))?))
    }

    fn unreadable(&self) -> Vec<(String, String)> {
        self.unreadable.clone()
    }
}

/// A bundle that is not unpacked; every chunk is verified while it is read.
impl Contents for Bundle {
    fn entries(&self) -> Vec<Entry> {
        let entry = |file: &crate::manifest::File| Entry {
            path: file.path.clone(),
            size: file.size,
            mode: if file.executable { 0o755 } else { 0o644 },
        };
        let mut entries: Vec<Entry> = self.manifest().files.iter().map(entry).collect();
        entries.sort();
        entries
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.reader(path).map_err(io::Error::other)?))
    }
}

/// The inputs of a new bundle.
#[derive(Clone, Copy, Debug)]
pub struct BundleInputs<'a>(pub &'a [Input]);

impl Contents for BundleInputs<'_> {
    fn entries(&self) -> Vec<Entry> {
        let size = |input: &Input| match &input.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Parts(parts) => parts.size(),
            Content::File(path) => std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
        };
        let entry = |input: &Input| Entry {
            path: input.path.clone(),
            size: size(input),
            mode: if input.executable { 0o755 } else { 0o644 },
        };
        let mut entries: Vec<Entry> = self.0.iter().map(entry).collect();
        entries.sort();
        entries
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + '_>> {
        let input = self.0.iter().find(|input| input.path == path).ok_or(io::ErrorKind::NotFound)?;
        Ok(match &input.content {
            Content::Bytes(bytes) => Box::new(&bytes[..]),
            Content::Parts(parts) => Box::new(parts.reader()),
            Content::File(path) => Box::new(File::open(path)?),
        })
    }
}

/// Reads a small file whole; `None` when it is larger than `most`.
pub(crate) fn whole(contents: &dyn Contents, path: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    contents.open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}
