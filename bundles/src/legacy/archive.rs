//! Archives that other programs open: `docker load`'s tar, and a `.tar.gz` of a folder.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt as _;

use camino::Utf8Path;
use serde::Serialize;

use super::error::{Error, Result};
use crate::file_source::FileSource;
use crate::oci::catalogue::path_of;
use crate::oci::layer::{Access, header, padding};
use crate::oci::{Descriptor, Manifest};

const FILE: Access = Access { mode: 0o644, owner: 0 };

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestEntry<'a> {
    config: String,
    repo_tags: [&'a str; 1],
    layers: Vec<String>,
}

/// Writes what `docker load` (and podman, nerdctl, skopeo) read: the configuration, the layers and a list of both.
pub(crate) fn docker(
    files: &dyn FileSource,
    tag: &str,
    manifest: &Manifest,
    epoch: u64,
    target: &Utf8Path,
) -> Result<()> {
    let fail = |error| Error::io("write", target)(error);
    let mut out = BufWriter::with_capacity(1 << 20, File::create_new(target).map_err(fail)?);
    let layer_name = |layer: &Descriptor| format!("{}.tar", layer.digest.hex());
    let config = format!("{}.json", manifest.config.digest.hex());
    let list = [ManifestEntry {
        config: config.clone(),
        repo_tags: [tag],
        layers: manifest.layers.iter().map(layer_name).collect(),
    }];
    let list = serde_json::to_vec(&list).expect("texts");

    let mut written = BTreeSet::new();
    let parts = [(config, &manifest.config)].into_iter().chain(manifest.layers.iter().map(|l| (layer_name(l), l)));
    for (name, part) in parts {
        if !written.insert(name.clone()) {
            continue;
        }
        let path = path_of(part.digest);
        let entry = files.find(&path).ok_or_else(|| Error::Missing { what: path.clone() })?;
        if (entry.digest, entry.size) != (part.digest, part.size) {
            return Err(Error::malformed(path, "it does not match the image's manifest"));
        }
        let content = files.reader(&path, entry);
        append(&mut out, &name, FILE, entry.size, epoch, content).map_err(fail)?;
    }
    append(&mut out, "manifest.json", FILE, list.len() as u64, epoch, &list[..]).map_err(fail)?;
    out.write_all(&[0; 1024]).and_then(|()| out.flush()).map_err(fail)
}

/// A folder as `.tar.gz`, sorted, under another name, with one modification time. It is stored, not compressed: weights
/// do not compress, and decompression is slower than reading.
pub(crate) fn folder(root: &Utf8Path, called: &str, epoch: u64, target: &Utf8Path) -> Result<()> {
    let fail = |error| Error::io("write", target)(error);
    let mut out = Gzip::new(File::create_new(target).map_err(fail)?, epoch).map_err(fail)?;
    let mut paths = Vec::new();
    list(root, root, &mut paths)?;
    paths.sort();
    let folder = Access { mode: 0o755, owner: 0 };
    out.write_all(&header(&format!("{called}/"), folder, 0, epoch, b'5')).map_err(fail)?;
    for (path, is_folder) in paths {
        let (source, name) = (root.join(&path), format!("{called}/{path}"));
        if is_folder {
            out.write_all(&header(&format!("{name}/"), folder, 0, epoch, b'5')).map_err(fail)?;
            continue;
        }
        let file = File::open(&source).map_err(Error::io("open", &source))?;
        let found = file.metadata().map_err(Error::io("read", &source))?;
        let access = if found.permissions().mode() & 0o100 != 0 { folder } else { FILE };
        append(&mut out, &name, access, found.len(), epoch, file).map_err(fail)?;
    }
    out.write_all(&[0; 1024]).map_err(fail)?;
    out.finish().map_err(fail)
}

fn list(root: &Utf8Path, folder: &Utf8Path, paths: &mut Vec<(String, bool)>) -> Result<()> {
    for entry in folder.read_dir_utf8().map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let kind = entry.file_type().map_err(Error::io("read", entry.path()))?;
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path()).to_string();
        paths.push((path, kind.is_dir()));
        if kind.is_dir() {
            list(root, entry.path(), paths)?;
        }
    }
    Ok(())
}

fn append(
    out: &mut impl Write,
    name: &str,
    access: Access,
    size: u64,
    epoch: u64,
    content: impl Read,
) -> io::Result<()> {
    out.write_all(&header(name, access, size, epoch, b'0'))?;
    // Reads one byte more, so that a verifying reader reaches its end and reports damage.
    let copied = io::copy(&mut content.take(size + 1), out)?;
    if copied != size {
        let why = format!("{name} has {copied} bytes; its header declares {size}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    out.write_all(&[0; 512][..padding(size)])
}

/// A gzip stream of stored blocks.
struct Gzip {
    out: BufWriter<File>,
    block: Vec<u8>,
    crc: crc32fast::Hasher,
    size: u64,
}

/// The longest stored block.
const STORED: usize = 65_535;

impl Gzip {
    fn new(file: File, epoch: u64) -> io::Result<Gzip> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let time = u32::try_from(epoch).unwrap_or(0).to_le_bytes();
        // Deflate, no flags, the time, no extra flags, Unix.
        out.write_all(&[0x1f, 0x8b, 8, 0, time[0], time[1], time[2], time[3], 0, 3])?;
        Ok(Gzip { out, block: Vec::with_capacity(STORED), crc: crc32fast::Hasher::new(), size: 0 })
    }

    fn emit(&mut self, last: bool) -> io::Result<()> {
        let length = self.block.len() as u16;
        self.out.write_all(&[u8::from(last)])?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&(!length).to_le_bytes())?;
        self.out.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.emit(true)?;
        let (crc, size) = (self.crc.clone().finalize(), self.size as u32);
        self.out.write_all(&crc.to_le_bytes())?;
        self.out.write_all(&size.to_le_bytes())?;
        self.out.flush()?;
        self.out.get_ref().sync_all()
    }
}

impl Write for Gzip {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() == STORED {
            self.emit(false)?;
        }
        let n = bytes.len().min(STORED - self.block.len());
        self.block.extend_from_slice(&bytes[..n]);
        self.crc.update(&bytes[..n]);
        self.size = self.size.wrapping_add(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
