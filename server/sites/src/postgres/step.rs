//! `admin archive-wal` and `admin restore-wal`: PostgreSQL's archive and restore commands for one WAL segment. They
//! exchange the segment over a socket beside the data directory. The listening process has the keys; this one, which
//! runs as the server's user, has none.
//!
//! `put SYSTEM NAME BYTES\n` and the segment is answered by `ok\n`; `get SYSTEM NAME\n` by `ok BYTES\n` and the segment,
//! or by `absent\n`. Both may be answered by `no WHY\n`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use textnlp_process::{InvalidConfig, read_config};

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveStepError {
    /// Its file cannot be used.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// No process is listening, or the exchange was interrupted.
    #[error("{action} {part}")]
    Io {
        /// The action.
        action: &'static str,
        /// The segment.
        part: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The backup process refused.
    #[error("{part}: {why}")]
    Refused {
        /// Which part.
        part: String,
        /// Why not.
        why: String,
    },
    /// The archive does not have it.
    #[error("{0} is not in the archive")]
    Absent(String),
}

impl ArchiveStepError {
    /// The exit status. For a fetch, PostgreSQL treats 1 as the end of the WAL, and aborts on one above 125.
    pub fn status(&self, fetches: bool) -> u8 {
        match self {
            Self::Absent(_) => 1,
            _ if fetches => 130,
            _ => 1,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    socket: Utf8PathBuf,
    system: String,
}

/// Connect timeout: the backup process may be starting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A part of 16 MB is sealed and flushed. A shutdown waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// An answer is a line.
const LINE_MAX: u64 = 4 << 10;
/// The longest part that a server can be built for.
const PART_MAX: u64 = 1 << 30;
/// Maximum size of unarchived WAL, in bytes: beyond that, a gap in the archive is better than a full disk.
const WAITING_MAX: u64 = 4 << 30;

impl Step {
    fn read(file: &Utf8Path) -> Result<Self, InvalidConfig> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            archive: Step,
        }
        read_config("configuration", file, 64 << 10, |document: Document| document.archive, |_| None)
    }

    fn connect(&self) -> std::io::Result<UnixStream> {
        let began = Instant::now();
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Err(_) if began.elapsed() < CONNECT_TIMEOUT => std::thread::sleep(POLL_INTERVAL),
                other => break other?,
            }
        };
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(stream)
    }
}

/// Archives a segment by its path, which is relative to the data directory, the current directory.
pub fn archive(file: &Utf8Path, segment: &Utf8Path) -> Result<(), ArchiveStepError> {
    let step = Step::read(file)?;
    let Err(error) = hand_over(&step, segment) else { return Ok(()) };
    let (waiting, free) = (waiting(), free());
    if !lets_go(waiting, free) {
        return Err(error);
    }
    // PostgreSQL writes standard error to its log, which the supervisor forwards.
    let mut says = std::io::stderr().lock();
    let _ = writeln!(
        says,
        "{segment} was NOT archived ({error}): {waiting} bytes wait for the archive and {free} are free; the database keeps running. \
         No later time can be restored until the next backup: create one now"
    );
    Ok(())
}

fn hand_over(step: &Step, segment: &Utf8Path) -> Result<(), ArchiveStepError> {
    let part = segment.file_name().unwrap_or_default().to_owned();
    let fails = |action| {
        let part = part.clone();
        move |source| ArchiveStepError::Io { action, part, source }
    };
    let mut from = std::fs::File::open(segment).map_err(fails("read"))?;
    let bytes = from.metadata().map_err(fails("read"))?.len();
    let mut stream = step.connect().map_err(fails("connect to the archiver"))?;
    let mut send = || {
        writeln!(stream, "put {} {part} {bytes}", step.system)?;
        std::io::copy(&mut (&mut from).take(bytes), &mut stream)
    };
    // A receiver that refuses stops reading and has sent its reason.
    let sent = send();
    match answer(&mut BufReader::new(&stream)) {
        Ok(line) if line == "ok" => sent.map(drop).map_err(fails("send")),
        Ok(line) => Err(refused(part, &line)),
        Err(error) => Err(fails("send")(sent.err().unwrap_or(error))),
    }
}

/// Fetches a segment and writes it to the path that PostgreSQL wants.
pub fn fetch(file: &Utf8Path, name: &Utf8Path, to: &Utf8Path) -> Result<(), ArchiveStepError> {
    let step = Step::read(file)?;
    let part = name.to_string();
    let fails = |action| {
        let part = part.clone();
        move |source| ArchiveStepError::Io { action, part, source }
    };
    let mut stream = step.connect().map_err(fails("reach the archive for"))?;
    writeln!(stream, "get {} {part}", step.system).map_err(fails("ask for"))?;
    let mut from = BufReader::new(&stream);
    let line = answer(&mut from).map_err(fails("ask for"))?;
    if line == "absent" {
        return Err(ArchiveStepError::Absent(part));
    }
    let bytes = line.strip_prefix("ok ").and_then(|bytes| bytes.parse().ok()).filter(|bytes| *bytes <= PART_MAX);
    let Some(bytes) = bytes else { return Err(refused(part, &line)) };
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
        match std::io::copy(&mut from.take(bytes), &mut file)? {
            copied if copied == bytes => Ok(()),
            _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    };
    write().map_err(fails("write"))
}

fn answer(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    from.take(LINE_MAX).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn refused(part: String, line: &str) -> ArchiveStepError {
    ArchiveStepError::Refused {
        part,
        why: line.strip_prefix("no ").unwrap_or("the archiver sent an invalid answer").to_owned(),
    }
}

/// Whether to drop a segment that cannot be archived: WAL must not take the database's disk space.
fn lets_go(waiting: u64, free: u64) -> bool {
    waiting > WAITING_MAX.min(free)
}

/// The bytes of log that wait.
fn waiting() -> u64 {
    let status = std::fs::read_dir("pg_wal/archive_status").into_iter().flatten().flatten();
    let ready = status.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready").map(str::to_owned));
    let length = |name: String| std::fs::metadata(format!("pg_wal/{name}")).map_or(0, |found| found.len());
    ready.map(length).sum()
}

fn free() -> u64 {
    textnlp_files::filesystem("pg_wal").map_or(u64::MAX, |disk| disk.free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unarchived_wal_is_dropped_before_it_fills_the_disk() {
        const GIB: u64 = 1 << 30;
        assert!(!lets_go(0, 0), "nothing to let go");
        assert!(!lets_go(4 * GIB, 100 * GIB) && lets_go(4 * GIB + 1, 100 * GIB));
        assert!(!lets_go(GIB, GIB) && lets_go(GIB, GIB - 1), "the log has as much as what is left");
        assert!(lets_go(1, 0));
    }

    #[test]
    fn only_a_missing_segment_ends_the_wal_restore() {
        let refused = ArchiveStepError::Refused { part: "a".into(), why: "damaged".into() };
        assert_eq!(
            (ArchiveStepError::Absent("a".into()).status(true), refused.status(true), refused.status(false)),
            (1, 130, 1)
        );
    }
}
