//! Whether a program is one static file, and for which machine. It must run in an image without a C library, and on
//! unknown hosts.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use camino::{Utf8Path, Utf8PathBuf};

use crate::oci::Platform;

/// Why a file is not a program that a bundle can carry.
#[derive(Debug, thiserror::Error)]
pub enum NotStatic {
    /// It cannot be read.
    #[error("read the program {path}")]
    Io {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else, or damaged.
    #[error("{path} is not a Linux program: {why}")]
    NoProgram {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It needs other files to start.
    #[error("{path} is not static: it needs {needs} on the machine where it runs")]
    Needs {
        /// The file.
        path: Utf8PathBuf,
        /// The interpreter or the libraries.
        needs: String,
    },
    /// It is for a machine that we do not know.
    #[error("{path} is for a machine that bundles do not know (ELF machine {machine})")]
    Machine {
        /// The file.
        path: Utf8PathBuf,
        /// The number in its header.
        machine: u16,
    },
}

impl NotStatic {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            NotStatic::Io { .. } => "check the path and its permissions",
            NotStatic::NoProgram { .. } => "give the path of the executable itself, not of a script that starts it",
            NotStatic::Needs { .. } => {
                "build it static (`-C target-feature=+crt-static`, as .cargo/config.toml does for this repository)"
            }
            NotStatic::Machine { .. } => "bundles carry programs for amd64, arm64 and riscv64",
        }
    }
}

/// Program headers of real programs number about a dozen.
const MOST_HEADERS: u16 = 256;
/// The dynamic section of a real program has some dozens of entries.
const MOST_DYNAMIC: u64 = 4096;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// The platform of a static program. A program that asks for an interpreter or for a library is refused by their names; one
/// that relocates itself (static-pie) is static, although it has a dynamic section.
pub fn is_static(path: &Utf8Path) -> Result<Platform, NotStatic> {
    let io = |source| NotStatic::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?;
    if !length.is_file() {
        return Err(NotStatic::NoProgram { path: path.to_owned(), why: "it is not a plain file".to_owned() });
    }
    let elf = Elf { path, file, length: length.len() };
    let head = elf.bytes(0, 64)?;
    if head[..4] != *b"\x7fELF" {
        return Err(elf.no("it does not begin as ELF files do"));
    }
    if head[4] != 2 || head[5] != 1 {
        return Err(elf.no("it is not a 64-bit little-endian ELF file"));
    }
    let (kind, machine) = (u16_at(&head, 16), u16_at(&head, 18));
    let architecture = match machine {
        62 => "amd64",
        183 => "arm64",
        243 => "riscv64",
        _ => return Err(NotStatic::Machine { path: path.to_owned(), machine }),
    };
    // 2: fixed addresses; 3: position-independent, which libraries are, too, but they begin nowhere.
    if !matches!(kind, 2 | 3) || u64_at(&head, 24) == 0 {
        return Err(elf.no("it is a library or an object file"));
    }
    let (at, each, count) = (u64_at(&head, 32), u16_at(&head, 54), u16_at(&head, 56));
    if each != 56 || count == 0 || count > MOST_HEADERS {
        return Err(elf.no("its program headers are invalid"));
    }
    let table = elf.bytes(at, u64::from(each) * u64::from(count))?;
    let headers: Vec<Header> = table.chunks_exact(56).map(Header::of).collect();
    if !headers.iter().any(|h| h.kind == PT_LOAD) {
        return Err(elf.no("nothing in it is loaded"));
    }
    if let Some(interpreter) = headers.iter().find(|h| h.kind == PT_INTERP) {
        return Err(elf.needs(elf.text(interpreter.offset)?));
    }
    if let Some(dynamic) = headers.iter().find(|h| h.kind == PT_DYNAMIC) {
        elf.without_libraries(dynamic, &headers)?;
    }
    Ok(Platform::linux(architecture))
}

struct Elf<'a> {
    path: &'a Utf8Path,
    file: File,
    length: u64,
}

struct Header {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

impl Header {
    fn of(bytes: &[u8]) -> Header {
        Header {
            kind: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            offset: u64_at(bytes, 8),
            address: u64_at(bytes, 16),
            size: u64_at(bytes, 32),
        }
    }
}

impl Elf<'_> {
    fn without_libraries(&self, dynamic: &Header, headers: &[Header]) -> Result<(), NotStatic> {
        if dynamic.size / 16 > MOST_DYNAMIC {
            return Err(self.no("its dynamic section is too large"));
        }
        let table = self.bytes(dynamic.offset, dynamic.size / 16 * 16)?;
        let entries = || table.chunks_exact(16).map(|e| (u64_at(e, 0), u64_at(e, 8))).take_while(|e| e.0 != DT_NULL);
        let needed: Vec<u64> = entries().filter(|e| e.0 == DT_NEEDED).map(|e| e.1).collect();
        if needed.is_empty() {
            return Ok(());
        }
        // The strings are named by their address in memory; the segment that is loaded there says where in the file.
        let strings = entries().find(|e| e.0 == DT_STRTAB).and_then(|(_, address)| {
            let home =
                headers.iter().find(|h| h.kind == PT_LOAD && h.address <= address && address - h.address < h.size)?;
            home.offset.checked_add(address - home.address)
        });
        let name = |offset: &u64| -> Option<String> { self.text(strings?.checked_add(*offset)?).ok() };
        let names: Vec<String> = needed.iter().take(8).filter_map(name).collect();
        Err(self.needs(if names.is_empty() { format!("{} shared libraries", needed.len()) } else { names.join(", ") }))
    }

    fn bytes(&self, offset: u64, size: u64) -> Result<Vec<u8>, NotStatic> {
        if offset.checked_add(size).is_none_or(|end| end > self.length) {
            return Err(self.no("it ends before its headers say"));
        }
        let mut bytes = vec![0; size as usize];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|source| NotStatic::Io { path: self.path.to_owned(), source })?;
        Ok(bytes)
    }

    fn text(&self, offset: u64) -> Result<String, NotStatic> {
        let size = self.length.saturating_sub(offset).min(256);
        let bytes = self.bytes(offset, size)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).chars().filter(|c| !c.is_control()).collect())
    }

    fn no(&self, why: &str) -> NotStatic {
        NotStatic::NoProgram { path: self.path.to_owned(), why: why.to_owned() }
    }

    fn needs(&self, needs: String) -> NotStatic {
        NotStatic::Needs { path: self.path.to_owned(), needs }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest file that is a static program for amd64; its one segment holds `tail`.
    pub(crate) fn smallest(machine: u16, tail: &[u8]) -> Vec<u8> {
        let mut elf = vec![0u8; 120];
        elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        elf[16..18].copy_from_slice(&2u16.to_le_bytes());
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[24..32].copy_from_slice(&0x400078u64.to_le_bytes());
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
        elf[80..88].copy_from_slice(&0x400000u64.to_le_bytes());
        elf.extend_from_slice(tail);
        let size = (elf.len() as u64).to_le_bytes();
        elf[96..104].copy_from_slice(&size);
        elf
    }

    fn check(bytes: &[u8]) -> Result<Platform, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("program")).unwrap();
        std::fs::write(&path, bytes).unwrap();
        is_static(&path).map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), ""))
    }

    #[test]
    fn static_programs_name_their_platform() {
        assert_eq!(check(&smallest(62, b"x")).unwrap().to_string(), "linux/amd64");
        assert_eq!(check(&smallest(183, b"x")).unwrap().to_string(), "linux/arm64");
        // This test is itself such a program: static-pie, with a dynamic section and no library.
        let own = Utf8PathBuf::from_path_buf(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(is_static(&own).unwrap().architecture, if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" });
    }

    #[test]
    fn programs_that_need_others_are_refused_by_the_others_names() {
        let shell = Utf8Path::new("/bin/sh");
        let error = is_static(shell).unwrap_err();
        assert!(error.to_string().contains("/ld-") && error.hint().contains("crt-static"), "{error}");
        // Without an interpreter, but with a library.
        let mut elf = smallest(62, b"");
        elf[56..58].copy_from_slice(&2u16.to_le_bytes());
        let mut dynamic = [0u8; 56];
        dynamic[..4].copy_from_slice(&PT_DYNAMIC.to_le_bytes());
        dynamic[8..16].copy_from_slice(&176u64.to_le_bytes());
        dynamic[32..40].copy_from_slice(&48u64.to_le_bytes());
        elf.extend_from_slice(&dynamic);
        for (tag, value) in [(DT_NEEDED, 1u64), (DT_STRTAB, 0x4000e0), (DT_NULL, 0)] {
            elf.extend_from_slice(&tag.to_le_bytes());
            elf.extend_from_slice(&value.to_le_bytes());
        }
        elf.extend_from_slice(b"\0libfoo.so.1\0");
        let size = (elf.len() as u64).to_le_bytes();
        elf[96..104].copy_from_slice(&size);
        assert_eq!(
            check(&elf).unwrap_err(),
            "/program is not static: it needs libfoo.so.1 on the machine where it runs"
        );
    }

    #[test]
    fn what_is_no_program_is_said() {
        for (bytes, why) in [
            (b"#!/bin/sh\n".repeat(20), "does not begin as ELF"),
            (b"\x7fELF".to_vec(), "ends before"),
            (smallest(40, b""), "ELF machine 40"),
            ([smallest(62, b"")[..4].to_vec(), vec![1; 80]].concat(), "64-bit"),
        ] {
            let error = check(&bytes).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        // Every header byte may lie: an answer comes anyway.
        let whole = smallest(62, &[7; 64]);
        for at in 0..120 {
            for lie in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = lie;
                let _ = check(&bytes);
            }
        }
    }
}
