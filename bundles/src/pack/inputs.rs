//! The inputs, looked at once before anything is read, and once more after each was read.

use std::fs::{File, Metadata};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use crate::chunk::Cuts;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::rules::order;

/// One file of the bundle to be.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its path in the bundle.
    pub path: String,
    /// Whether its mode is 0755.
    pub executable: bool,
    /// Its bytes.
    pub content: Content,
}

/// Where the bytes come from.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file on disk; a link is followed.
    File(Utf8PathBuf),
    /// These.
    Bytes(Vec<u8>),
}

/// An input, as it was when it was looked at.
pub(crate) struct Known<'a> {
    pub(crate) input: &'a Input,
    pub(crate) size: u64,
    pub(crate) cuts: Cuts,
    stamp: Option<Stamp>,
}

/// What changes when somebody writes to a file or replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Known<'_> {
    /// The file, when it still is the one that was looked at; none for bytes in memory.
    pub(crate) fn open(&self) -> Result<Option<File>> {
        let Content::File(path) = &self.input.content else { return Ok(None) };
        let file = File::open(path).map_err(Error::io("open", path))?;
        self.unchanged(&file)?;
        Ok(Some(file))
    }

    /// Looks again.
    pub(crate) fn unchanged(&self, file: &File) -> Result<()> {
        let Content::File(path) = &self.input.content else { return Ok(()) };
        let now = Stamp::of(&file.metadata().map_err(Error::io("look at", path))?);
        if self.stamp == Some(now) { Ok(()) } else { Err(Error::InputChanged { path: path.clone() }) }
    }

    pub(crate) fn read(&self, file: Option<&File>, buffer: &mut [u8], offset: u64) -> Result<()> {
        match (&self.input.content, file) {
            (Content::Bytes(bytes), _) => {
                let from = offset as usize;
                buffer.copy_from_slice(&bytes[from..from + buffer.len()]);
                Ok(())
            }
            (Content::File(path), Some(file)) => super::read_input(file, path, buffer, offset),
            (Content::File(path), None) => Err(Error::InputChanged { path: path.clone() }),
        }
    }
}

/// Looks at all inputs, in the order of the archive. Every problem is reported at once.
pub(crate) fn look(inputs: &[Input]) -> Result<Vec<Known<'_>>> {
    let mut sorted: Vec<&Input> = inputs.iter().collect();
    sorted.sort_by(|a, b| order(&a.path).cmp(&order(&b.path)));
    let mut problems = Vec::new();
    let mut known = Vec::new();
    for input in sorted {
        match &input.content {
            Content::Bytes(bytes) => {
                known.push(Known { input, size: bytes.len() as u64, cuts: Cuts::Gear, stamp: None });
            }
            Content::File(path) => match at(path) {
                Ok((file, metadata)) if metadata.is_file() => {
                    let size = metadata.len();
                    let cuts = Cuts::plan(&input.path, &file, size);
                    known.push(Known { input, size, cuts, stamp: Some(Stamp::of(&metadata)) });
                }
                Ok(_) => problems.push(format!("`{}`: {path} is not a file", input.path)),
                Err(error) => problems.push(format!("`{}`: {path}: {error}", input.path)),
            },
        }
    }
    if problems.is_empty() { Ok(known) } else { Err(Error::Inputs { problems }) }
}

fn at(path: &Utf8Path) -> std::io::Result<(File, Metadata)> {
    // A pipe would be waited for.
    let metadata = std::fs::metadata(path)?;
    let file = File::open(path)?;
    let opened = file.metadata()?;
    Ok((file, if metadata.is_file() { opened } else { metadata }))
}

/// Names this work: an earlier run's partial file is only gone on with when everything is as it was then.
pub(crate) fn fingerprint(manifest: &Manifest, known: &[Known<'_>], reserve: u64, volume_size: Option<u64>) -> String {
    let mut hasher = Sha256::new();
    let mut text = Vec::new();
    // Writing into memory cannot fail.
    let _ = write!(text, "{reserve} {volume_size:?} {manifest:?}");
    hasher.update(&text);
    for known in known {
        text.clear();
        let _ = match &known.input.content {
            Content::File(path) => write!(text, "{path} {:?} {:?}", known.stamp, known.cuts),
            Content::Bytes(bytes) => write!(text, "{}", hex::encode(Sha256::digest(bytes))),
        };
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(&text);
    }
    hex::encode(hasher.finalize())
}
