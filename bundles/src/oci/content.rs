//! Content in memory, in files, or in pieces of both. A layer with gigabytes of weights is a list of pieces, so that it
//! needs neither memory nor a copy on disk.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::Digest;

use super::document::Descriptor;
use super::error::{Error, Result};

/// One file of an OCI layout, by its path below `images/`.
#[derive(Clone, Debug)]
pub struct Blob {
    /// `blobs/sha256/…`, `index.json`, `oci-layout`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of the bytes.
    pub digest: Digest,
    /// Where the bytes are.
    pub content: Content,
}

/// The source of bytes: one part after another.
#[derive(Clone, Debug, Default)]
pub struct Content(pub Vec<Part>);

/// A piece of content.
#[derive(Clone, Debug)]
pub enum Part {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// A whole file that must have exactly this size when it is read.
    File {
        /// The region.
        path: Utf8PathBuf,
        /// Its bytes.
        size: u64,
    },
}

impl Part {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File { size, .. } => *size,
        }
    }
}

impl Content {
    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Content {
        Content(vec![Part::Bytes(bytes.into())])
    }

    /// One file, unchanged.
    pub fn file(path: &Utf8Path, size: u64) -> Content {
        Content(vec![Part::File { path: path.to_owned(), size }])
    }

    /// Bytes of all parts.
    pub fn size(&self) -> u64 {
        self.0.iter().map(Part::size).sum()
    }

    /// The file, if the content is one whole file: it can be linked or copied by the kernel.
    pub fn as_file(&self) -> Option<&Utf8Path> {
        match &self.0[..] {
            [Part::File { path, .. }] => Some(path),
            _ => None,
        }
    }

    /// Reads all bytes from the start. Each file is opened when the reader reaches it.
    pub fn reader(&self) -> Reader<'_> {
        Reader { parts: self.0.iter(), bytes: &[], file: None }
    }
}

/// Reads a [`Content`]. A file that has become shorter or longer since it was listed is an error that names it.
pub struct Reader<'a> {
    parts: std::slice::Iter<'a, Part>,
    bytes: &'a [u8],
    file: Option<(&'a Utf8Path, File, u64)>,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.bytes.is_empty() {
                return self.bytes.read(buffer);
            }
            if let Some((path, file, left)) = &mut self.file {
                let changed =
                    |how| io::Error::new(io::ErrorKind::InvalidData, format!("{path} became {how} while it was read"));
                let n = file.read(buffer)?;
                if n as u64 > *left {
                    return Err(changed("longer"));
                }
                if n == 0 && *left > 0 {
                    return Err(changed("shorter"));
                }
                *left -= n as u64;
                if n > 0 {
                    return Ok(n);
                }
                self.file = None;
            }
            match self.parts.next() {
                None => return Ok(0),
                Some(Part::Bytes(bytes)) => self.bytes = bytes,
                Some(Part::File { path, size }) => {
                    let file = File::open(path)
                        .map_err(|error| io::Error::new(error.kind(), format!("open {path}: {error}")))?;
                    self.file = Some((path, file, *size));
                }
            }
        }
    }
}

impl Blob {
    /// A blob of a layout: reads the content once for its digest.
    pub(crate) fn of(content: Content) -> Result<Blob> {
        let (digest, size) = Digest::of_reader(content.reader()).map_err(|source| Error::Io {
            action: "read",
            path: content.as_file().map_or_else(|| "a layer's content".into(), Utf8Path::to_owned),
            source,
        })?;
        Ok(Blob { path: blob_path(digest), size, digest, content })
    }

    /// A file of a layout outside of `blobs/`.
    pub(crate) fn named(path: &str, bytes: Vec<u8>) -> Blob {
        let digest = Digest::of(&bytes);
        Blob { path: path.to_owned(), size: bytes.len() as u64, digest, content: Content::bytes(bytes) }
    }

    pub(crate) fn descriptor(&self, media_type: &str) -> Descriptor {
        Descriptor { media_type: media_type.to_owned(), digest: self.digest, size: self.size, ..Descriptor::default() }
    }

    /// Adds the blob to a layout folder: by a hard link if the content is one file of the same file system, else by writing
    /// it. An existing file with the right size and digest is kept.
    pub fn put(&self, layout: &Utf8Path) -> Result<()> {
        let path = layout.join(&self.path);
        let folder = path.parent().unwrap_or(layout);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        if let Ok(file) = File::open(&path)
            && Digest::of_reader(file).is_ok_and(|found| found == (self.digest, self.size))
        {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("replace", &path)(error)),
            _ => {}
        }
        if let Some(file) = self.content.as_file()
            && fs::hard_link(file, &path).is_ok()
        {
            return Ok(());
        }
        let part = Utf8PathBuf::from(format!("{path}.part"));
        let mut out = File::create(&part).map_err(Error::io("write", &part))?;
        let copied = io::copy(&mut self.content.reader(), &mut out).map_err(Error::io("write", &part))?;
        if copied != self.size {
            return Err(Error::Mismatch {
                what: self.path.clone(),
                expected: format!("{} bytes", self.size),
                found: format!("{copied} bytes"),
            });
        }
        out.flush().map_err(Error::io("write", &part))?;
        fs::rename(&part, &path).map_err(Error::io("write", &path))
    }
}

/// The path of a blob in a layout.
pub(crate) fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
