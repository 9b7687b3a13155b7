//! A layer as a deterministic plain tar: fixed order, owners, modes and times.

use std::fs;

use camino::Utf8Path;

use super::content::{Content, Part};
use super::error::{Error, Result};

const BLOCK: u64 = 512;
/// The largest size that eleven octal digits hold.
const MOST_OCTAL: u64 = 0o77_777_777_777;

/// A layer under construction. Entries keep the order of their addition; folders come before their content.
pub(crate) struct Layer {
    parts: Vec<Part>,
    /// Pending bytes, so that headers and padding between files become one part.
    pending: Vec<u8>,
    epoch: u64,
}

/// Owner and mode of an entry.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) mode: u32,
    pub(crate) owner: u32,
}

impl Layer {
    pub(crate) fn new(epoch: u64) -> Layer {
        Layer { parts: Vec::new(), pending: Vec::new(), epoch }
    }

    pub(crate) fn folder(&mut self, path: &str, access: Access) {
        self.header(&format!("{path}/"), access, 0, b'5');
    }

    pub(crate) fn bytes(&mut self, path: &str, access: Access, bytes: &[u8]) {
        self.header(path, access, bytes.len() as u64, b'0');
        self.pending.extend_from_slice(bytes);
        self.pad(bytes.len() as u64);
    }

    /// A file on disk, which is read when the layer is read.
    pub(crate) fn file(&mut self, path: &str, access: Access, source: &Utf8Path) -> Result<()> {
        let found = fs::metadata(source).map_err(Error::io("read", source))?;
        if !found.is_file() {
            return Err(Error::malformed(source.to_string(), "it is not a plain file"));
        }
        self.header(path, access, found.len(), b'0');
        self.flush();
        self.parts.push(Part::File { path: source.to_owned(), size: found.len() });
        self.pad(found.len());
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Content {
        self.pending.extend_from_slice(&[0; 2 * BLOCK as usize]);
        self.flush();
        Content(self.parts)
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.parts.push(Part::Bytes(std::mem::take(&mut self.pending).into()));
        }
    }

    fn pad(&mut self, size: u64) {
        self.pending.resize(self.pending.len() + padding(size), 0);
    }

    fn header(&mut self, path: &str, access: Access, size: u64, kind: u8) {
        self.pending.extend(header(path, access, size, self.epoch, kind));
    }
}

/// The header of an entry, with a pax record before it where a path or size does not fit into one.
pub(crate) fn header(path: &str, access: Access, size: u64, epoch: u64, kind: u8) -> Vec<u8> {
    let mut records = Vec::new();
    let (prefix, name) = split(path).unwrap_or_else(|| {
        records.extend(record("path", path));
        ("", "long-name")
    });
    if size > MOST_OCTAL {
        records.extend(record("size", &size.to_string()));
    }
    let mut header = Vec::with_capacity(BLOCK as usize);
    if !records.is_empty() {
        let pax = Access { mode: 0o644, owner: 0 };
        header.extend(block("", "pax-header", pax, records.len() as u64, epoch, b'x'));
        header.extend_from_slice(&records);
        header.resize(header.len() + padding(records.len() as u64), 0);
    }
    let size = if size > MOST_OCTAL { 0 } else { size };
    header.extend(block(prefix, name, access, size, epoch, kind));
    header
}

/// Zeros between the end of a file and the next header.
pub(crate) fn padding(size: u64) -> usize {
    ((BLOCK - size % BLOCK) % BLOCK) as usize
}

/// The two name fields of a ustar header, if the path fits.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    path.match_indices('/')
        .map(|(at, _)| (&path[..at], &path[at + 1..]))
        .find(|(prefix, name)| prefix.len() <= 155 && !name.is_empty() && name.len() <= 100)
}

/// `LENGTH KEY=VALUE\n`, where LENGTH includes itself.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}

fn block(prefix: &str, name: &str, access: Access, size: u64, epoch: u64, kind: u8) -> [u8; BLOCK as usize] {
    let mut block = [0u8; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{:07o}\0", access.mode).as_bytes());
    put(108, format!("{:07o}\0", access.owner).as_bytes());
    put(116, format!("{:07o}\0", access.owner).as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{:011o}\0", epoch.min(MOST_OCTAL)).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn long_names_and_all_modes_are_readable_by_tar() {
        let dir = tempfile::tempdir().unwrap();
        let mut layer = Layer::new(1_700_000_000);
        let deep = format!("{}/{}", "d".repeat(90), "n".repeat(60));
        let endless = "x".repeat(180);
        layer.folder("tmp", Access { mode: 0o1777, owner: 0 });
        layer.bytes(&deep, Access { mode: 0o644, owner: 7 }, b"deep");
        layer.bytes(&endless, Access { mode: 0o755, owner: 65532 }, &[1; 513]);
        let mut tar = Vec::new();
        layer.finish().reader().read_to_end(&mut tar).unwrap();
        let path = dir.path().join("layer.tar");
        fs::write(&path, &tar).unwrap();
        let out = std::process::Command::new("tar").env("TZ", "UTC").arg("tvf").arg(&path).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let line = |mode, owner, size, name| vec![mode, owner, size, "2023-11-14", "22:13", name];
        assert_eq!(lines[0], line("drwxrwxrwt", "0/0", "0", "tmp/"));
        assert_eq!(lines[1], line("-rw-r--r--", "7/7", "4", deep.as_str()));
        assert_eq!(lines[2], line("-rwxr-xr-x", "65532/65532", "513", endless.as_str()));
    }

    #[test]
    fn layer_pax_record_length_includes_itself() {
        assert_eq!(record("a", "b"), b"6 a=b\n");
        assert_eq!(record("path", &"x".repeat(88)).len(), 97);
        for n in 0..1100 {
            let text = String::from_utf8(record("path", &"x".repeat(n))).unwrap();
            assert_eq!(text.split_once(' ').unwrap().0.parse::<usize>().unwrap(), text.len());
        }
    }
}
