//! How far a run has got, so that the next one can go on after a kill. A line is written after its bytes are in the partial file; pages
//! outlive the process, not the machine, so after a restart of the machine the work begins anew.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use textnlp_models::Digest;

use super::Midstate;
use crate::error::{Error, Result};
use crate::flow::{Batch, restore};
use crate::manifest::Chunk;
use crate::volumes::partial_name;

pub(crate) struct Journal {
    path: Utf8PathBuf,
    file: File,
}

/// What is done.
#[derive(Default)]
pub(crate) struct Progress {
    /// As far as they were read, in order.
    pub(crate) files: Vec<Done>,
    /// The file to go on with.
    pub(crate) next: usize,
    /// Where in it.
    pub(crate) offset: u64,
    /// Of the whole-file digest at that place.
    pub(crate) state: Option<Midstate>,
}

#[derive(Default)]
pub(crate) struct Done {
    pub(crate) digest: Option<Digest>,
    pub(crate) chunks: Vec<Chunk>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct First {
    work: String,
    boot: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    chunks: Vec<(usize, Chunk)>,
    ends: Vec<(usize, Digest)>,
    state: Option<String>,
}

impl Progress {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().flat_map(|file| &file.chunks).map(|chunk| u64::from(chunk.size)).sum()
    }

    /// Takes a line; false when it does not follow the ones before. `known` says of which files the digest is not taken.
    fn take(&mut self, line: Line, known: &dyn Fn(usize) -> bool) -> bool {
        let state = match line.state.map(|text| BASE64.decode(text)) {
            None => None,
            Some(Ok(bytes)) => match restore(&bytes) {
                Some(state) => Some(state),
                None => return false,
            },
            Some(Err(_)) => return false,
        };
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
        let open = !ended && !known(self.files.len() - 1);
        if open != state.is_some() {
            return false;
        }
        self.state = state;
        (self.next, self.offset) = match ended {
            true => (self.files.len(), 0),
            false => (self.files.len() - 1, last.chunks.iter().map(|chunk| u64::from(chunk.size)).sum()),
        };
        true
    }
}

impl Journal {
    /// The journal of this work, and what an earlier run got done. A journal of other work, or without its partial file, begins anew.
    pub(crate) fn open(
        out: &Utf8Path,
        work: &str,
        kept: bool,
        known: &dyn Fn(usize) -> bool,
    ) -> Result<(Journal, Progress)> {
        let path = Utf8PathBuf::from(format!("{}.journal", partial_name(out)));
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let first = First { work: work.to_owned(), boot: boot() };
        let (progress, valid) = if kept { read(&file, &first, known) } else { (Progress::default(), 0) };
        file.set_len(valid).and_then(|()| file.seek(SeekFrom::End(0))).map_err(Error::io("cut", &path))?;
        let mut journal = Journal { path, file };
        if valid == 0 {
            journal.line(&first)?;
        }
        Ok((journal, progress))
    }

    /// These pieces are in the partial file.
    pub(crate) fn add(&mut self, batch: &Batch) -> Result<()> {
        let chunks = batch
            .pieces
            .iter()
            .map(|piece| (piece.file, Chunk { size: piece.size as u32, digest: piece.digest }))
            .collect();
        let ends = batch.ends.iter().map(|(file, digest)| (*file, *digest)).collect();
        self.line(&Line { chunks, ends, state: batch.state.as_ref().map(|state| BASE64.encode(state)) })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|error| Error::io("write", &self.path)(error.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(Error::io("write", &self.path))
    }

    /// The work is done.
    pub(crate) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }
}

/// The progress of all whole lines, and their length.
fn read(file: &File, first: &First, known: &dyn Fn(usize) -> bool) -> (Progress, u64) {
    let mut input = BufReader::new(file);
    let mut text = Vec::new();
    let mut valid = 0u64;
    let mut progress = Progress::default();
    loop {
        text.clear();
        match input.read_until(b'\n', &mut text) {
            Ok(read) if read > 0 && text.ends_with(b"\n") => {}
            // The end, or a line that a kill cut off.
            _ => break,
        }
        if valid == 0 {
            if !serde_json::from_slice::<First>(&text).is_ok_and(|found| found == *first) {
                break;
            }
        } else {
            // Whole lines that make no sense were not written by us: nothing here is to be trusted.
            if !serde_json::from_slice::<Line>(&text).is_ok_and(|line| progress.take(line, known)) {
                return (Progress::default(), 0);
            }
        }
        valid += text.len() as u64;
    }
    (progress, valid)
}

/// Changes when the machine starts anew.
pub(crate) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
