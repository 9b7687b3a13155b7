//! The layout of the archive: a pure function of names, sizes and the epoch.

use crate::manifest::{File, Kind, Manifest};

/// The block size of a tar.
pub(crate) const BLOCK: u64 = 512;
/// Every signature block has this size, so that signing later moves no other bytes.
pub(crate) const SIGNATURE: u64 = 1024;
/// The alignment of weights, so that they can be memory-mapped.
const PAGE: u64 = 4096;
/// Eleven octal digits.
const USTAR_MOST: u64 = 0o77_777_777_777;

pub(crate) const MANIFEST_NAME: &str = "manifest.json";
pub(crate) const SIGNATURE_NAME: &str = "manifest.json.minisig";
pub(crate) const SUMS_NAME: &str = "SHA256SUMS";
pub(crate) const CHUNKS_NAME: &str = "delta/chunks";

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Manifest,
    Signature,
    Sums,
    /// Of a full bundle: the file with this index.
    File(usize),
    /// Of a delta.
    Chunks,
}

/// One member and its offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) role: Role,
    /// Where its headers begin.
    pub(crate) header_at: u64,
    pub(crate) data_at: u64,
    pub(crate) size: u64,
}

impl Member {
    /// Where the next member begins.
    pub(crate) fn end(&self) -> u64 {
        round_up(self.data_at + self.size, BLOCK)
    }
}

/// The whole archive.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) members: Vec<Member>,
    /// The archive's length.
    pub(crate) total: u64,
    epoch: u64,
}

/// The inputs of the layout, before the digests are known.
pub(crate) struct Outline<'a> {
    pub(crate) epoch: u64,
    pub(crate) files: &'a [File],
    /// Of a delta: the length of its chunks.
    pub(crate) chunks: Option<u64>,
}

impl<'a> Outline<'a> {
    pub(crate) fn of(manifest: &'a Manifest) -> Outline<'a> {
        let chunks = match (&manifest.kind, &manifest.delta) {
            (Kind::Delta, Some(delta)) => Some(delta.carries.iter().map(|chunk| u64::from(chunk.size)).sum()),
            _ => None,
        };
        Outline { epoch: manifest.epoch, files: &manifest.files, chunks }
    }
}

impl Layout {
    /// The layout of a bundle whose first member has `manifest_size` bytes.
    pub(crate) fn new(outline: &Outline<'_>, manifest_size: u64) -> Layout {
        let mut layout =
            Layout { members: Vec::with_capacity(outline.files.len() + 4), total: 0, epoch: outline.epoch };
        layout.push(Role::Manifest, MANIFEST_NAME, manifest_size);
        layout.push(Role::Signature, SIGNATURE_NAME, SIGNATURE);
        layout.push(Role::Sums, SUMS_NAME, sums_size(outline));
        match outline.chunks {
            Some(size) => layout.push(Role::Chunks, CHUNKS_NAME, size),
            None => {
                for (n, file) in outline.files.iter().enumerate() {
                    layout.push(Role::File(n), &file.path, file.size);
                }
            }
        }
        layout.total += 2 * BLOCK;
        layout
    }

    /// The header blocks of a member: everything from `header_at` to `data_at`.
    pub(crate) fn header(&self, member: &Member, files: &[File]) -> Vec<u8> {
        let (path, executable) = name(member.role, files);
        render(path, executable, member.size, self.epoch, member.header_at, aligned(path))
    }

    fn push(&mut self, role: Role, path: &str, size: u64) {
        let header_at = self.total;
        let length = header_length(path, size, header_at, aligned(path));
        let member = Member { role, header_at, data_at: header_at + length, size };
        self.total = member.end();
        self.members.push(member);
    }
}

/// The member's path and whether it is executable.
pub(crate) fn name(role: Role, files: &[File]) -> (&str, bool) {
    match role {
        Role::Manifest => (MANIFEST_NAME, false),
        Role::Signature => (SIGNATURE_NAME, false),
        Role::Sums => (SUMS_NAME, false),
        Role::Chunks => (CHUNKS_NAME, false),
        Role::File(n) => (&files[n].path, files[n].executable),
    }
}

/// `SHA256SUMS`: the manifest as stored in the archive, then every file of a full bundle. The manifest's line reveals a
/// flipped bit in an unsigned manifest.
pub(crate) fn sums(manifest: &[u8], parsed: &Manifest) -> Vec<u8> {
    let mut text = format!("{}  {MANIFEST_NAME}\n", textnlp_models::Digest::of(manifest).hex());
    if parsed.kind == Kind::Full {
        for file in &parsed.files {
            text.push_str(&file.digest.hex());
            text.push_str("  ");
            text.push_str(&file.path);
            text.push('\n');
        }
    }
    text.into_bytes()
}

fn sums_size(outline: &Outline<'_>) -> u64 {
    let line = |path: &str| 64 + 2 + path.len() as u64 + 1;
    let files = if outline.chunks.is_some() { &[] } else { outline.files };
    line(MANIFEST_NAME) + files.iter().map(|file| line(&file.path)).sum::<u64>()
}

fn aligned(path: &str) -> bool {
    path.starts_with("models/") || path == CHUNKS_NAME
}

pub(crate) fn round_up(n: u64, unit: u64) -> u64 {
    n.div_ceil(unit) * unit
}

/// The length of the headers; `render` returns the same number of bytes.
fn header_length(path: &str, size: u64, at: u64, aligned: bool) -> u64 {
    BLOCK + pax(path, size, at, aligned).map_or(0, |records| BLOCK + round_up(records.len() as u64, BLOCK))
}

/// The header blocks.
fn render(path: &str, executable: bool, size: u64, epoch: u64, at: u64, aligned: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    if let Some(records) = pax(path, size, at, aligned) {
        bytes.extend_from_slice(&ustar("PaxHeader", false, records.len() as u64, epoch, b'x'));
        bytes.extend_from_slice(&records);
        bytes.resize(round_up(bytes.len() as u64, BLOCK) as usize, 0);
    }
    bytes.extend_from_slice(&ustar(path, executable, size, epoch, b'0'));
    bytes
}

/// The extended header: what ustar cannot hold, and a comment as filling.
fn pax(path: &str, size: u64, at: u64, aligned: bool) -> Option<Vec<u8>> {
    let mut records = Vec::new();
    if split(path).is_none() || !path.is_ascii() {
        records.extend_from_slice(&record("path", path.as_bytes()));
    }
    if size > USTAR_MOST {
        records.extend_from_slice(&record("size", size.to_string().as_bytes()));
    }
    // An empty file has nothing to map.
    if !aligned || size == 0 {
        return (!records.is_empty()).then_some(records);
    }
    if records.is_empty() && (at + BLOCK).is_multiple_of(PAGE) {
        return None;
    }
    let used = records.len() as u64;
    let mut blocks = used.div_ceil(BLOCK).max(1);
    while !(at + BLOCK + blocks * BLOCK + BLOCK).is_multiple_of(PAGE) {
        blocks += 1;
    }
    let room = blocks * BLOCK - used;
    // The records leave less than a block; the rest is filled.
    if used == 0 || room >= BLOCK {
        records.extend_from_slice(&filling(room as usize));
    }
    Some(records)
}

/// `LENGTH key=value\n`, where the length includes itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = 1 + key.len() + 1 + value.len() + 1;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut bytes = format!("{length} {key}=").into_bytes();
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
    bytes
}

/// A comment record of `room` bytes, which are 512 or more.
fn filling(room: usize) -> Vec<u8> {
    let mut bytes = format!("{room} comment=").into_bytes();
    bytes.resize(room - 1, b' ');
    bytes.push(b'\n');
    bytes
}

/// The parts `prefix` and `name` of a ustar header, where the path fits.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    path.match_indices('/')
        .map(|(at, _)| (&path[..at], &path[at + 1..]))
        .find(|(prefix, name)| prefix.len() <= 155 && name.len() <= 100)
}

fn ustar(path: &str, executable: bool, size: u64, epoch: u64, kind: u8) -> [u8; BLOCK as usize] {
    let mut header = [0u8; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    let (prefix, name) = split(path).unwrap_or_else(|| {
        // Only for readers that do not know pax.
        let mut end = 100;
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        ("", &path[..end])
    });
    put(0, name.as_bytes());
    put(100, if executable { b"0000755\0" } else { b"0000644\0" });
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", if size > USTAR_MOST { 0 } else { size }).as_bytes());
    put(136, format!("{epoch:011o}\0").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(329, b"0000000\0");
    put(337, b"0000000\0");
    put(345, prefix.as_bytes());
    let sum = checksum(&header);
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// The sum of a header's bytes, with spaces in the checksum field.
pub(crate) fn checksum(header: &[u8; BLOCK as usize]) -> u32 {
    header.iter().enumerate().map(|(n, byte)| if (148..156).contains(&n) { 32 } else { u32::from(*byte) }).sum()
}

/// The size field of a plain header; `None` if it is not a header.
pub(crate) fn claimed_size(header: &[u8; BLOCK as usize]) -> Option<u64> {
    let text = std::str::from_utf8(&header[124..135]).ok()?;
    u64::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_lengths_match_the_layout() {
        for aligned in [false, true] {
            for size in [0, 1, 511, 512, USTAR_MOST, USTAR_MOST + 1, 1 << 50] {
                for length in [1, 99, 100, 101, 155, 255, 256, 300, 1000] {
                    for at in (0..16).map(|n| n * BLOCK) {
                        let path = "models/".to_owned() + &"d/".repeat(length / 3) + &"f".repeat(length.min(200));
                        let bytes = render(&path, false, size, 1, at, aligned);
                        assert_eq!(bytes.len() as u64, header_length(&path, size, at, aligned));
                        assert_eq!(bytes.len() as u64 % BLOCK, 0);
                        if aligned && size > 0 {
                            assert_eq!((at + bytes.len() as u64) % PAGE, 0, "{path} {size} {at}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn pax_record_length_includes_itself() {
        for length in 0..2000 {
            let bytes = record("comment", &vec![b'x'; length]);
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), bytes.len());
        }
        for room in 512..5000 {
            assert_eq!(filling(room).len(), room);
        }
    }
}
