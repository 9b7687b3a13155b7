//! The inputs: checked once before reading, and again after each was read.

use std::fs::{File, Metadata};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};
use textnlp_models::Digest;

use crate::chunk::Cuts;
use crate::error::{Error, Result};
use crate::manifest::{Chunk, Manifest};
use crate::oci::{self, Part};
use crate::rules::order;
use crate::volumes::in_order;

use super::Inputs;

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

/// The source of the bytes.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file on disk; a link is followed.
    File(Utf8PathBuf),
    /// Bytes in memory.
    Bytes(Vec<u8>),
    /// Pieces of both, one after another: a layer of an image needs no copy on disk.
    Parts(oci::Content),
}

/// An input with its stamp.
pub(crate) struct StampedInput<'a> {
    pub(crate) input: &'a Input,
    pub(crate) size: u64,
    pub(crate) cuts: Cuts,
    /// Its stamp and digest when it was hashed; it must be unchanged, and is not hashed again.
    pub(crate) recorded: Option<(Digest, &'a [Chunk])>,
    /// Of each file that the content comes from.
    stamps: Vec<Stamp>,
}

/// The stamp of a file: it changes when the file is written or replaced.
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

impl StampedInput<'_> {
    /// The file, if it is unchanged; `None` for bytes in memory and for pieces.
    pub(crate) fn open(&self) -> Result<Option<File>> {
        let Content::File(path) = &self.input.content else {
            self.unchanged(None)?;
            return Ok(None);
        };
        let file = File::open(path).map_err(Error::io("open", path))?;
        in_order(&file);
        self.unchanged(Some(&file))?;
        Ok(Some(file))
    }

    /// Checks the stamps again.
    pub(crate) fn unchanged(&self, file: Option<&File>) -> Result<()> {
        let now = |path: &Utf8Path| -> Result<Stamp> {
            let metadata = match file {
                Some(file) => file.metadata(),
                None => std::fs::metadata(path),
            };
            Ok(Stamp::of(&metadata.map_err(Error::io("check", path))?))
        };
        for (path, then) in self.input.content.paths().zip(&self.stamps) {
            if now(path)? != *then {
                return Err(Error::InputChanged { path: path.to_owned() });
            }
        }
        Ok(())
    }

    pub(crate) fn read(&self, file: Option<&File>, buffer: &mut [u8], offset: u64) -> Result<()> {
        match (&self.input.content, file) {
            (Content::Bytes(bytes), _) => {
                let from = offset as usize;
                buffer.copy_from_slice(&bytes[from..from + buffer.len()]);
                Ok(())
            }
            (Content::Parts(parts), _) => read_parts(parts, buffer, offset),
            (Content::File(path), Some(file)) => super::read_input(file, path, buffer, offset),
            (Content::File(path), None) => Err(Error::InputChanged { path: path.clone() }),
        }
    }
}

impl Content {
    /// The files that it comes from.
    fn paths(&self) -> impl Iterator<Item = &Utf8Path> {
        let (one, parts) = match self {
            Content::Bytes(_) => (None, &[][..]),
            Content::File(path) => (Some(path.as_path()), &[][..]),
            Content::Parts(parts) => (None, &parts.0[..]),
        };
        fn of_part(part: &Part) -> Option<&Utf8Path> {
            match part {
                Part::File { path, .. } => Some(path),
                Part::Bytes(_) => None,
            }
        }
        one.into_iter().chain(parts.iter().filter_map(of_part))
    }
}

fn read_parts(parts: &oci::Content, mut buffer: &mut [u8], offset: u64) -> Result<()> {
    let mut begin = 0;
    for part in &parts.0 {
        let (from, size) = (offset.max(begin) - begin, part.size());
        if !buffer.is_empty() && from < size && offset < begin + size {
            let take = (size - from).min(buffer.len() as u64) as usize;
            let (now, rest) = buffer.split_at_mut(take);
            match part {
                Part::Bytes(bytes) => now.copy_from_slice(&bytes[from as usize..from as usize + take]),
                Part::File { path, .. } => {
                    let file = File::open(path).map_err(Error::io("open", path))?;
                    super::read_input(&file, path, now, from)?;
                }
            }
            buffer = rest;
        }
        begin += size;
    }
    Ok(())
}

/// Checks all inputs, in the order of the archive. Reports all problems at once.
pub(crate) fn check(inputs: &Inputs) -> Result<Vec<StampedInput<'_>>> {
    let mut sorted: Vec<&Input> = inputs.files.iter().collect();
    sorted.sort_by(|a, b| order(&a.path).cmp(&order(&b.path)));
    let mut problems = Vec::new();
    let mut known = Vec::new();
    for input in sorted {
        match &input.content {
            Content::Bytes(bytes) => {
                let (size, recorded) = (bytes.len() as u64, None);
                known.push(StampedInput { input, size, cuts: Cuts::Gear, recorded, stamps: Vec::new() });
            }
            Content::Parts(parts) => {
                let mut stamps = Vec::new();
                for part in &parts.0 {
                    let Part::File { path, size } = part else { continue };
                    match at(path) {
                        Ok((_, metadata)) if metadata.is_file() && metadata.len() == *size => {
                            stamps.push(Stamp::of(&metadata));
                        }
                        Ok(_) => problems.push(format!("`{}`: {path} has changed since it was listed", input.path)),
                        Err(error) => problems.push(format!("`{}`: {path}: {error}", input.path)),
                    }
                }
                known.push(StampedInput { input, size: parts.size(), cuts: Cuts::Gear, recorded: None, stamps });
            }
            Content::File(path) => match at(path) {
                Ok((file, metadata)) if metadata.is_file() => {
                    let size = metadata.len();
                    let cuts = Cuts::plan(&input.path, &file, size);
                    let recorded = recorded(inputs, &input.path, &cuts);
                    known.push(StampedInput { input, size, cuts, recorded, stamps: vec![Stamp::of(&metadata)] });
                }
                Ok(_) => problems.push(format!("`{}`: {path} is not a file", input.path)),
                Err(error) => problems.push(format!("`{}`: {path}: {error}", input.path)),
            },
        }
    }
    if problems.is_empty() { Ok(known) } else { Err(Error::Inputs { problems }) }
}

/// The recorded chunks of a file, if they were cut by the current rules.
fn recorded<'a>(inputs: &'a Inputs, path: &str, cuts: &Cuts) -> Option<(Digest, &'a [Chunk])> {
    let (digest, chunks) = (inputs.promised.get(path)?, inputs.recorded.get(path)?);
    let Cuts::Fixed(sizes) = cuts else { return None };
    let same = sizes.iter().eq(chunks.iter().map(|chunk| &chunk.size));
    (same && !sizes.is_empty()).then_some((*digest, chunks))
}

fn at(path: &Utf8Path) -> std::io::Result<(File, Metadata)> {
    // Opening a pipe would block.
    let metadata = std::fs::metadata(path)?;
    let file = File::open(path)?;
    let opened = file.metadata()?;
    Ok((file, if metadata.is_file() { opened } else { metadata }))
}

/// The identity of this work: a partial file is resumed only when all inputs and options are unchanged.
pub(crate) fn fingerprint(
    manifest: &Manifest,
    known: &[StampedInput<'_>],
    reserve: u64,
    volume_size: Option<u64>,
) -> String {
    let mut hasher = Sha256::new();
    let mut text = Vec::new();
    // Writing into memory cannot fail.
    let _ = write!(text, "{reserve} {volume_size:?} {manifest:?}");
    hasher.update(&text);
    for known in known {
        text.clear();
        let _ = match &known.input.content {
            Content::File(path) => {
                write!(text, "{path} {:?} {:?} {:?}", known.stamps, known.cuts, known.recorded.map(|found| found.0))
            }
            Content::Parts(parts) => parts
                .0
                .iter()
                .try_for_each(|part| match part {
                    Part::Bytes(bytes) => write!(text, "{}", hex::encode(Sha256::digest(bytes))),
                    Part::File { path, size } => write!(text, "{path} {size}"),
                })
                .and_then(|()| write!(text, "{:?}", known.stamps)),
            Content::Bytes(bytes) => write!(text, "{}", hex::encode(Sha256::digest(bytes))),
        };
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(&text);
    }
    hex::encode(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_parts_are_read_from_any_offset_as_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().join("middle")).unwrap();
        std::fs::write(&path, b"defgh").unwrap();
        let parts = oci::Content(vec![
            Part::Bytes(b"abc".as_slice().into()),
            Part::File { path: path.clone(), size: 5 },
            Part::Bytes(b"".as_slice().into()),
            Part::Bytes(b"ij".as_slice().into()),
        ]);
        let expected = b"abcdefghij";
        for from in 0..=expected.len() {
            for to in from..=expected.len() {
                let mut found = vec![0; to - from];
                read_parts(&parts, &mut found, from as u64).unwrap();
                assert_eq!(found, &expected[from..to], "{from}..{to}");
            }
        }

        let input = Input { path: "images/blob".into(), executable: false, content: Content::Parts(parts) };
        let inputs = Inputs { files: vec![input], ..Inputs::default() };
        let known = check(&inputs).unwrap();
        known[0].unchanged(None).unwrap();
        std::fs::write(&path, b"defgH").unwrap();
        assert!(matches!(known[0].unchanged(None), Err(Error::InputChanged { .. })));
        std::fs::write(&path, b"longer than before").unwrap();
        assert!(matches!(check(&inputs), Err(Error::Inputs { .. })));
    }
}
