//! The list of crates that `cargo auditable` leaves in a program: JSON, compressed by zlib, in a section of its own.

use std::io::{self, Read};

use serde::Deserialize;

use crate::scan::package::Package;

const SECTION: &[u8] = b".dep-v0";
/// No list of crates is longer, packed or unpacked.
const MOST_BYTES: u64 = 8 << 20;
/// No program has more sections.
const MOST_SECTIONS: u64 = 4096;

/// The crates of a program; `None` when it is none, or holds no such list. `open` is called once per part that is read.
pub(crate) fn crates<'a>(open: &dyn Fn() -> io::Result<Box<dyn Read + 'a>>) -> io::Result<Option<Vec<Package>>> {
    let part = |from: u64, size: u64| -> io::Result<Vec<u8>> {
        let mut reader = open()?;
        io::copy(&mut (&mut reader).take(from), &mut io::sink())?;
        let mut bytes = Vec::new();
        reader.take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let head = part(0, 64)?;
    // 64 bits, little-endian: every platform that the product is built for.
    if head.len() < 64 || !head.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let (table, size, count, names) =
        (number(&head, 40, 8), number(&head, 58, 2), number(&head, 60, 2), number(&head, 62, 2));
    if table == 0 || size != 64 || count > MOST_SECTIONS || names >= count {
        return Ok(None);
    }
    let sections = part(table, size * count)?;
    let section = |nth: u64| -> Option<(u64, u64, u64)> {
        let at = usize::try_from(nth * 64).ok()?;
        let bytes = sections.get(at..at + 64)?;
        Some((number(bytes, 0, 4), number(bytes, 24, 8), number(bytes, 32, 8)))
    };
    let Some((_, from, size)) = section(names) else { return Ok(None) };
    let names = part(from, size.min(1 << 20))?;
    for (name, from, size) in (0..count).filter_map(section) {
        let name = usize::try_from(name).ok().and_then(|at| names.get(at..)).unwrap_or_default();
        if name.split(|b| *b == 0).next() == Some(SECTION) && size <= MOST_BYTES {
            return Ok(Some(listed(&part(from, size)?)));
        }
    }
    Ok(None)
}

/// Little-endian; zero where there is nothing.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let bytes = bytes.get(at..at + size).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn listed(packed: &[u8]) -> Vec<Package> {
    #[derive(Deserialize)]
    struct List {
        packages: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        name: String,
        version: String,
        source: String,
        #[serde(default)]
        kind: Option<String>,
    }
    let mut text = Vec::new();
    let unpacked = flate2::read::ZlibDecoder::new(packed).take(MOST_BYTES).read_to_end(&mut text);
    let list = unpacked.ok().and_then(|_| serde_json::from_slice::<List>(&text).ok());
    // What was only needed to build it is not in it.
    let inside = |p: &One| p.source == "crates.io" && p.kind.as_deref() != Some("build");
    list.map(|l| l.packages)
        .unwrap_or_default()
        .iter()
        .filter(|p| inside(p))
        .map(|p| Package::of_crate(&p.name, &p.version))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use super::*;

    /// A program that is nothing but its headers and the list.
    pub(crate) fn program(list: &str) -> Vec<u8> {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(list.as_bytes()).unwrap();
        let packed = zlib.finish().unwrap();
        let names = b"\0.shstrtab\0.dep-v0\0";
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let list_at = bytes.len() as u64;
        bytes.extend_from_slice(&packed);
        let names_at = bytes.len() as u64;
        bytes.extend_from_slice(names);
        let table = bytes.len() as u64;
        let mut section = |name: u32, from: u64, size: u64| {
            let mut one = [0_u8; 64];
            one[..4].copy_from_slice(&name.to_le_bytes());
            one[24..32].copy_from_slice(&from.to_le_bytes());
            one[32..40].copy_from_slice(&size.to_le_bytes());
            bytes.extend_from_slice(&one);
        };
        section(0, 0, 0);
        section(11, list_at, packed.len() as u64);
        section(1, names_at, names.len() as u64);
        bytes[40..48].copy_from_slice(&table.to_le_bytes());
        bytes[58..60].copy_from_slice(&64_u16.to_le_bytes());
        bytes[60..62].copy_from_slice(&3_u16.to_le_bytes());
        bytes[62..64].copy_from_slice(&2_u16.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Vec<Package>> {
        crates(&|| Ok(Box::new(bytes) as Box<dyn Read>)).unwrap()
    }

    #[test]
    fn crate_list_embedded_in_a_program_is_read() {
        let list = r#"{"packages":[{"name":"tar","version":"0.4.20","source":"crates.io"},
            {"name":"own","version":"0.1.0","source":"local","root":true},{"name":"cc","version":"1.0.0","source":"crates.io","kind":"build"}]}"#;
        let bytes = program(list);
        assert_eq!(read(&bytes), Some(vec![Package::of_crate("tar", "0.4.20")]));
    }

    #[test]
    fn broken_elf_files_are_not_programs() {
        let bytes = program("{}");
        assert_eq!(read(&bytes), Some(Vec::new()));
        for end in 0..bytes.len() {
            let _ = read(&bytes[..end]);
        }
        for at in 0..64 {
            let mut bad = bytes.clone();
            bad[at] = 0xff;
            let _ = read(&bad);
        }
        assert_eq!(read(b"#!/bin/sh\n"), None);
    }
}
