//! Log files of programs and of the supervisor, both bounded in size.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_keys::files;

/// A log is rotated at this size.
const LOG_MAX: u64 = 10 << 20;
/// The count of rotated logs that are kept.
const ROTATED_LOGS: u32 = 5;

/// Opens a log for appending. Programs write to the file, not to a pipe, so they can write after the supervisor's
/// death.
pub(crate) fn open(path: &Utf8Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

/// Rotates a log that is too large: copies it and truncates it, because the program keeps its file open.
///
/// Lines written between the end of the copy and the truncation are lost: a few in ten megabytes.
pub(crate) fn rotate(path: &Utf8Path, max: u64) -> io::Result<bool> {
    if files::Stamp::of(path)?.is_none_or(|stamp| stamp.bytes <= max) {
        return Ok(false);
    }
    let piece = |number: u32| Utf8PathBuf::from(format!("{path}.{number}"));
    for number in (1..ROTATED_LOGS).rev() {
        match std::fs::rename(piece(number), piece(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let mut from = files::open_plain(path)?;
    let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(piece(1))?;
    io::copy(&mut from, &mut to)?;
    // A second copy for the lines written meanwhile, so that the gap is short.
    io::copy(&mut from, &mut to)?;
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    Ok(true)
}

/// Rotates a log at [`LOG_MAX`].
pub(crate) fn keep_bounded(path: &Utf8Path) -> io::Result<bool> {
    rotate(path, LOG_MAX)
}

/// The last lines of a log, for the reason of a failure.
pub(crate) fn tail(path: &Utf8Path, lines: usize) -> String {
    const LOOKED_AT: u64 = 8 << 10;
    let read = || -> io::Result<String> {
        let mut file = files::open_plain(path)?;
        let length = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(LOOKED_AT)))?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LOOKED_AT), &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The supervisor's own log.
#[derive(Debug)]
pub(super) struct Notes {
    path: Utf8PathBuf,
    file: Option<File>,
}

impl Notes {
    pub(super) fn open(path: Utf8PathBuf) -> Self {
        let file = open(&path).ok();
        Self { path, file }
    }

    /// Writes a line. A full disk must not stop the supervisor, so a line may be lost.
    pub(super) fn say(&mut self, line: &str) {
        let line = format!("{:.3} {}\n", jiff::Timestamp::now(), line.replace(['\n', '\r'], " "));
        let written = self.file.as_mut().is_some_and(|file| file.write_all(line.as_bytes()).is_ok());
        if !written {
            self.file = open(&self.path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_rotated_and_the_writer_continues() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("a.log")).unwrap();
        let mut writer = open(&path).unwrap();
        for round in 0..7 {
            writer.write_all(format!("round {round} {}\n", "x".repeat(100)).as_bytes()).unwrap();
            assert!(rotate(&path, 50).unwrap());
        }
        writer.write_all(b"after\n").unwrap();
        assert!(!rotate(&path, 50).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
        assert!(std::fs::read_to_string(format!("{path}.1")).unwrap().starts_with("round 6"));
        assert!(std::fs::read_to_string(format!("{path}.5")).unwrap().starts_with("round 2"));
        assert!(!Utf8PathBuf::from(format!("{path}.6")).exists(), "five pieces are kept");
    }

    #[test]
    fn log_tail_returns_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("a.log")).unwrap();
        std::fs::write(&path, format!("{}\none\n\ntwo\n", "y".repeat(20_000))).unwrap();
        assert_eq!(tail(&path, 2), "one\ntwo");
        assert_eq!(tail(&path.with_extension("none"), 2), "");
    }
}
