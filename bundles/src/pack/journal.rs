//! The progress of a run, so that the next one can resume after a kill. A line is written after its bytes are in the
//! partial file. Unsynced pages survive a kill but not a reboot, so the work restarts from zero after a reboot.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use textnlp_files::Lock;
use textnlp_models::Digest;
use textnlp_models::sha::Sha256;

use crate::error::{Error, Result};
use crate::flow::Batch;
use crate::manifest::Chunk;
use crate::volumes::{Volumes, journal_name, remove_abandoned};

pub(crate) struct Journal {
    path: Utf8PathBuf,
    file: File,
    /// Whether the partial files have something that a next run resumes.
    has_progress: bool,
    /// Against another run of this name, whatever its volume size.
    _lock: Lock,
}

/// What is done.
#[derive(Default)]
pub(crate) struct Progress {
    /// In the order of reading.
    pub(crate) files: Vec<Done>,
    /// The file to resume.
    pub(crate) next: usize,
    /// The offset in it.
    pub(crate) offset: u64,
    /// The digest state of that file up to that offset; `None` where it is not computed or not stored.
    pub(crate) state: Option<Sha256>,
}

#[derive(Default)]
pub(crate) struct Done {
    pub(crate) digest: Option<Digest>,
    pub(crate) chunks: Vec<Chunk>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct JournalHeader {
    work: String,
    boot: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    chunks: Vec<(usize, Chunk)>,
    ends: Vec<(usize, Digest)>,
    /// See [`Sha256`]. Earlier versions kept a state in another form, under another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl Progress {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().flat_map(|file| &file.chunks).map(|chunk| u64::from(chunk.size)).sum()
    }

    /// Adds a line; false when it does not follow the previous ones. `known` lists the files whose digest is not
    /// computed.
    fn take(&mut self, line: Line, known: &dyn Fn(usize) -> bool) -> bool {
        let mut ends = line.ends.into_iter().peekable();
        for (file, chunk) in line.chunks {
            // Empty files have no chunk and no line.
            if file + 1 < self.files.len() {
                return false;
            }
            self.files.resize_with(file + 1, Done::default);
            self.files[file].chunks.push(chunk);
        }
        for (file, digest) in ends.by_ref() {
            match self.files.get_mut(file) {
                Some(done) => done.digest = Some(digest),
                None => return false,
            }
        }
        let Some(last) = self.files.last() else { return false };
        let ended = last.digest.is_some();
        (self.next, self.offset) = match ended {
            true => (self.files.len(), 0),
            false => (self.files.len() - 1, last.chunks.iter().map(|chunk| u64::from(chunk.size)).sum()),
        };
        let state = line.sha256.and_then(|text| text.parse().ok());
        let is_taken = !ended && !known(self.next);
        self.state = state.filter(|state: &Sha256| is_taken && state.length() == self.offset);
        true
    }
}

/// Runs the work on the partial files of a new bundle and their journal. What is in them stays if the work is stopped or a file operation
/// fails, and the next run of this name resumes it; after any other error, and before anything is in them, they are removed. A run of
/// other work or with another volume size replaces them.
pub(crate) fn with_partial<T>(
    out: &Utf8Path,
    total: u64,
    volume_size: Option<u64>,
    work: impl FnOnce(&Volumes, &mut Journal) -> Result<T>,
) -> Result<T> {
    let mut journal = Journal::take(out)?;
    // A run that ended without its journal left nothing.
    let was_abandoned = journal.file.metadata().is_ok_and(|found| found.len() > 0);
    let held = Volumes::partial(out, total, volume_size).and_then(|volumes| volumes.lock().map(|lock| (volumes, lock)));
    let (volumes, _lock) = match held {
        Ok(held) => held,
        Err(error) => {
            // That of an earlier run belongs to partial files that stay.
            if !was_abandoned {
                let _ = journal.remove();
            }
            return Err(error);
        }
    };
    let cleaned = if was_abandoned { remove_abandoned(out, total, volume_size) } else { Ok(()) };
    match cleaned.and_then(|()| work(&volumes, &mut journal)) {
        Ok(done) => {
            // Without its partial files it says nothing.
            let _ = journal.remove();
            Ok(done)
        }
        Err(error) => {
            let is_resumable = matches!(error, Error::Stopped { .. } | Error::Io { .. } | Error::NotReplaceable { .. });
            if !(is_resumable && journal.has_progress) {
                volumes.discard();
                // The error of the work is the one to report.
                let _ = journal.remove();
            }
            Err(error)
        }
    }
}

impl Journal {
    /// Opens or creates the journal of a new bundle, and locks it.
    fn take(out: &Utf8Path) -> Result<Journal> {
        let path = journal_name(out);
        let lock = Lock::try_exclusive(&path, 0o644)?.ok_or_else(|| Error::Busy { path: path.clone() })?;
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Journal { path, file, has_progress: false, _lock: lock })
    }

    /// The progress of an earlier run of this work. It restarts from zero for other work, or without the partial file.
    pub(crate) fn resume(&mut self, work: &str, kept: bool, known: &dyn Fn(usize) -> bool) -> Result<Progress> {
        let first = JournalHeader { work: work.to_owned(), boot: boot() };
        let (progress, valid) = if kept { read(&self.file, &first, known) } else { (Progress::default(), 0) };
        let cut = self.file.set_len(valid).and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map_err(Error::io("cut", &self.path))?;
        if valid == 0 {
            self.line(&first)?;
        }
        self.has_progress = progress.bytes() > 0;
        Ok(progress)
    }

    /// These pieces are in the partial file.
    pub(crate) fn add(&mut self, batch: &Batch) -> Result<()> {
        let chunks = batch
            .pieces
            .iter()
            .map(|piece| (piece.file, Chunk { size: piece.size as u32, digest: piece.digest }))
            .collect();
        let ends = batch.ends.iter().map(|(file, digest)| (*file, *digest)).collect();
        self.line(&Line { chunks, ends, sha256: batch.state.map(|state| state.to_string()) })?;
        self.has_progress = true;
        Ok(())
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|error| Error::io("write", &self.path)(error.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(Error::io("write", &self.path))
    }

    fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }
}

/// The progress of all whole lines, and their length.
fn read(file: &File, first: &JournalHeader, known: &dyn Fn(usize) -> bool) -> (Progress, u64) {
    let mut input = BufReader::new(file);
    let mut text = Vec::new();
    let mut valid = 0u64;
    let mut progress = Progress::default();
    loop {
        text.clear();
        match input.read_until(b'\n', &mut text) {
            Ok(read) if read > 0 && text.ends_with(b"\n") => {}
            // The end, or a line that a kill truncated.
            _ => break,
        }
        if valid == 0 {
            if !serde_json::from_slice::<JournalHeader>(&text).is_ok_and(|found| found == *first) {
                break;
            }
        } else {
            // A whole line that is invalid was not written by this program: the journal is not trusted.
            if !serde_json::from_slice::<Line>(&text).is_ok_and(|line| progress.take(line, known)) {
                return (Progress::default(), 0);
            }
        }
        valid += text.len() as u64;
    }
    (progress, valid)
}

/// The boot id, which changes with a reboot.
pub(crate) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
