//! Whether a program is one static file, and for which machine. It must run in an image without a C library, and on
//! unknown hosts.

use std::fs::File;

use camino::{Utf8Path, Utf8PathBuf};
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{LittleEndian, ReadCache, ReadRef as _};

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
    /// It is for an unsupported architecture.
    #[error("{path} is for an unsupported architecture (ELF machine {machine})")]
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

/// The architecture of a static Linux program, named as in Go: `amd64`. A program that asks for an interpreter or for a library is refused by their names; one
/// that relocates itself (static-pie) is static, although it has a dynamic section.
pub fn static_architecture(path: &Utf8Path) -> Result<&'static str, NotStatic> {
    let io = |source| NotStatic::Io { path: path.to_owned(), source };
    let no = |why: &str| NotStatic::NoProgram { path: path.to_owned(), why: why.to_owned() };
    let needs = |needs: String| NotStatic::Needs { path: path.to_owned(), needs };
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(no("it is not a plain file"));
    }
    let file = &ReadCache::new(file);
    let short = |()| no("it ends before its headers say");
    let head: &FileHeader64<LittleEndian> = file.read_at(0).map_err(short)?;
    if head.e_ident.magic != elf::ELFMAG {
        return Err(no("it does not begin as ELF files do"));
    }
    if (head.e_ident.class, head.e_ident.data) != (elf::ELFCLASS64, elf::ELFDATA2LSB) {
        return Err(no("it is not a 64-bit little-endian ELF file"));
    }
    let architecture = match head.e_machine(LittleEndian) {
        elf::EM_X86_64 => "amd64",
        elf::EM_AARCH64 => "arm64",
        elf::EM_RISCV => "riscv64",
        machine => return Err(NotStatic::Machine { path: path.to_owned(), machine }),
    };
    // Libraries are position-independent, too, but they begin nowhere.
    if !matches!(head.e_type(LittleEndian), elf::ET_EXEC | elf::ET_DYN) || head.e_entry(LittleEndian) == 0 {
        return Err(no("it is a library or an object file"));
    }
    if !(1..=MOST_HEADERS).contains(&head.e_phnum(LittleEndian)) {
        return Err(no("its program headers are invalid"));
    }
    let headers = head.program_headers(LittleEndian, file).map_err(|_| no("its program headers are invalid"))?;
    let with = |kind| headers.iter().filter(move |header| header.p_type(LittleEndian) == kind);
    if with(elf::PT_LOAD).next().is_none() {
        return Err(no("nothing in it is loaded"));
    }
    let text = |at: u64| {
        let bytes = file.read_bytes_at_until(at..at.checked_add(256)?.min(file.len().ok()?), 0).ok()?;
        Some(String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect::<String>())
    };
    if let Some(interpreter) = with(elf::PT_INTERP).next() {
        return Err(needs(text(interpreter.p_offset(LittleEndian)).ok_or_else(|| short(()))?));
    }
    let Some(dynamic) = with(elf::PT_DYNAMIC).next() else { return Ok(architecture) };
    if dynamic.p_filesz(LittleEndian) / 16 > MOST_DYNAMIC {
        return Err(no("its dynamic section is too large"));
    }
    let entries = dynamic.dynamic(LittleEndian, file).ok().flatten().ok_or_else(|| short(()))?;
    let entries =
        || entries.iter().map(|e| (e.tag(LittleEndian), e.val(LittleEndian))).take_while(|e| e.0 != elf::DT_NULL);
    let needed: Vec<u64> = entries().filter(|e| e.0 == elf::DT_NEEDED).map(|e| e.1).collect();
    if needed.is_empty() {
        return Ok(architecture);
    }
    // The strings are named by their address in memory; the segment that is loaded there says where in the file.
    let strings = entries().find(|e| e.0 == elf::DT_STRTAB).and_then(|(_, address)| {
        with(elf::PT_LOAD).find_map(|segment| {
            let inside = address.checked_sub(segment.p_vaddr(LittleEndian))?;
            let (offset, size) = segment.file_range(LittleEndian);
            offset.checked_add(inside).filter(|_| inside < size)
        })
    });
    let names: Vec<String> = needed.iter().take(8).filter_map(|at| text(strings?.checked_add(*at)?)).collect();
    Err(needs(if names.is_empty() { format!("{} shared libraries", needed.len()) } else { names.join(", ") }))
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
        elf[64..68].copy_from_slice(&elf::PT_LOAD.to_le_bytes());
        elf[80..88].copy_from_slice(&0x400000u64.to_le_bytes());
        elf.extend_from_slice(tail);
        let size = (elf.len() as u64).to_le_bytes();
        elf[96..104].copy_from_slice(&size);
        elf
    }

    fn check(bytes: &[u8]) -> Result<&'static str, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("program")).unwrap();
        std::fs::write(&path, bytes).unwrap();
        static_architecture(&path).map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), ""))
    }

    #[test]
    fn static_elf_programs_report_their_architecture() {
        assert_eq!(check(&smallest(62, b"x")).unwrap(), "amd64");
        assert_eq!(check(&smallest(183, b"x")).unwrap(), "arm64");
        // This test is itself such a program: static-pie, with a dynamic section and no library.
        let own = Utf8PathBuf::from_path_buf(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(static_architecture(&own).unwrap(), if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" });
    }

    #[test]
    fn dynamic_elf_programs_are_refused_naming_their_libraries() {
        let shell = Utf8Path::new("/bin/sh");
        let error = static_architecture(shell).unwrap_err();
        assert!(error.to_string().contains("/ld-") && error.hint().contains("crt-static"), "{error}");
        // Without an interpreter, but with a library.
        let mut elf = smallest(62, b"");
        elf[56..58].copy_from_slice(&2u16.to_le_bytes());
        let mut dynamic = [0u8; 56];
        dynamic[..4].copy_from_slice(&elf::PT_DYNAMIC.to_le_bytes());
        dynamic[8..16].copy_from_slice(&176u64.to_le_bytes());
        dynamic[32..40].copy_from_slice(&48u64.to_le_bytes());
        elf.extend_from_slice(&dynamic);
        for (tag, value) in [(elf::DT_NEEDED, 1u64), (elf::DT_STRTAB, 0x4000e0), (elf::DT_NULL, 0)] {
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
    fn non_elf_files_are_refused_with_the_reason() {
        for (bytes, why) in [
            (b"#!/bin/sh\n".repeat(20), "does not begin as ELF"),
            (b"\x7fELF".to_vec(), "ends before"),
            (smallest(40, b""), "ELF machine 40"),
            ([smallest(62, b"")[..4].to_vec(), vec![1; 80]].concat(), "64-bit"),
        ] {
            let error = check(&bytes).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        // Any header byte may be wrong; the check must still return.
        let smallest_program = smallest(62, &[7; 64]);
        for at in 0..120 {
            for lie in [0, 1, 0x7f, 0xff] {
                let mut bytes = smallest_program.clone();
                bytes[at] = lie;
                let _ = check(&bytes);
            }
        }
    }
}
