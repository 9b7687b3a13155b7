//! What was begun and what was ended, in `dr/journal.jsonl`: durable before anything is done, so that another process goes on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Ten thousand drills; a longer file is not one of ours.
const MOST_BYTES: u64 = 64 << 20;

/// What is done as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Another site becomes primary.
    Failover,
    /// The home site becomes primary again.
    Failback,
    /// A rehearsal.
    Drill,
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Is {
    /// It is about to be done.
    Begun,
    /// It was done.
    Ended,
    /// It was not done, or not wholly.
    Failed,
}

/// The step that spans an action.
pub const WHOLE: &str = "whole";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Timestamp,
    /// What as a whole.
    pub action: Action,
    /// Which one of them.
    pub id: String,
    /// Which step of it.
    pub step: String,
    /// Where the step is.
    pub is: Is,
    /// What takes it back, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
    /// Who.
    pub by: String,
    /// What whoever goes on needs to know.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Somebody else is at it.
    #[error("another failover, failback or drill is at work here{}", by.as_ref().map(|by| format!(" (by {by})")).unwrap_or_default())]
    Held {
        /// Who began it.
        by: Option<String>,
    },
    /// It cannot be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: Utf8PathBuf,
        /// Why it did not work.
        source: io::Error,
    },
}

/// The journal, held by this process alone.
#[derive(Debug)]
pub struct Journal {
    path: Utf8PathBuf,
    file: File,
    /// Gone with the process, however it ends.
    _lock: File,
    by: String,
    flags: String,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the journal of an environment's state folder for writing. A line that a dying process left half-written is cut off.
    /// `flags` lead a command to this environment: what takes a step back is written down as it is typed.
    pub fn open(state: &Utf8Path, by: &str, flags: &str) -> Result<Self, JournalError> {
        let folder = state.join("dr");
        let io = |action: &'static str, path: &Utf8Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { action, path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(io("make", &folder))?;
        let open = |path: &Utf8Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(io("open", path))
        };
        let lock_path = folder.join("lock");
        let lock = open(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let by = read(state)?.last().map(|record| record.by.clone());
                return Err(JournalError::Held { by });
            }
            Err(TryLockError::Error(error)) => return Err(io("lock", &lock_path)(error)),
        }
        let path = folder.join("journal.jsonl");
        let mut file = open(&path)?;
        let text = bounded(&mut file).map_err(io("read", &path))?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64).map_err(io("mend", &path))?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(io("read", &path))?;
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io("flush", &folder))?;
        let records = parse(&text[..whole]);
        Ok(Self { path, file, _lock: lock, by: by.to_owned(), flags: flags.to_owned(), records })
    }

    /// What was written by all who came before, and by us.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// A command about this environment, to be typed.
    pub fn command(&self, verb: &str) -> String {
        format!("textnlp-deploy {verb}{}", self.flags)
    }

    /// Says that a step is about to be done. Durable when it returns.
    pub fn begin(
        &mut self,
        action: Action,
        id: &str,
        step: &str,
        undo: Option<String>,
        data: Value,
    ) -> Result<(), JournalError> {
        self.put(Record { undo, data, ..self.record(action, id, step, Is::Begun) })
    }

    /// Says that a step was done.
    pub fn end(&mut self, action: Action, id: &str, step: &str, data: Value) -> Result<(), JournalError> {
        self.put(Record { data, ..self.record(action, id, step, Is::Ended) })
    }

    /// Says that a step was not done.
    pub fn fail(&mut self, action: Action, id: &str, step: &str, why: &str) -> Result<(), JournalError> {
        self.put(Record { data: Value::String(why.to_owned()), ..self.record(action, id, step, Is::Failed) })
    }

    fn record(&self, action: Action, id: &str, step: &str, is: Is) -> Record {
        let (id, step) = (id.to_owned(), step.to_owned());
        Record { at: Timestamp::now(), action, id, step, is, undo: None, by: self.by.clone(), data: Value::Null }
    }

    fn put(&mut self, record: Record) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(&record).expect("a record is plain data");
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.map_err(|source| JournalError::Io { action: "write", path: self.path.clone(), source })?;
        self.records.push(record);
        Ok(())
    }
}

/// Everything that was written, without holding the journal.
pub fn read(state: &Utf8Path) -> Result<Vec<Record>, JournalError> {
    let path = state.join("dr/journal.jsonl");
    let text = match File::open(&path).and_then(|mut file| bounded(&mut file)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(JournalError::Io { action: "read", path, source }),
    };
    Ok(parse(&text))
}

/// The first lines of actions that nobody ended, oldest first.
pub fn unfinished(records: &[Record]) -> Vec<&Record> {
    let ended = |id: &str| records.iter().any(|r| r.id == id && r.step == WHOLE && r.is != Is::Begun);
    records.iter().filter(|r| r.step == WHOLE && r.is == Is::Begun && !ended(&r.id)).collect()
}

/// What a step of an action was begun with, if it was begun.
pub fn begun<'r>(records: &'r [Record], id: &str, step: &str) -> Option<&'r Record> {
    records.iter().rfind(|r| r.id == id && r.step == step && r.is == Is::Begun)
}

fn bounded(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MOST_BYTES} bytes")));
    }
    // Bytes of a torn line; what can be read counts.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Lines that cannot be read are passed over: they are of a later version, or of a disk that failed.
fn parse(text: &str) -> Vec<Record> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_process_goes_on_after_a_kill_in_the_middle_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(dir.path()).unwrap();
        let mut journal = Journal::open(state, "anna", " --env a").unwrap();
        let undo = Some(journal.command("dr failover --to a"));
        journal.begin(Action::Failover, "f1", WHOLE, undo, json!({"to": "b"})).unwrap();
        assert!(matches!(Journal::open(state, "bert", ""), Err(JournalError::Held { by: Some(by) }) if by == "anna"));
        drop(journal);
        let mut file = OpenOptions::new().append(true).open(state.join("dr/journal.jsonl")).unwrap();
        file.write_all(b"{\"at\":\"2026-").unwrap();
        let mut journal = Journal::open(state, "bert", "").unwrap();
        let open = unfinished(journal.records());
        assert_eq!((open.len(), open[0].data["to"].as_str()), (1, Some("b")));
        journal.end(Action::Failover, "f1", WHOLE, Value::Null).unwrap();
        drop(journal);
        let records = read(state).unwrap();
        assert_eq!((records.len(), unfinished(&records).len()), (2, 0));
        assert_eq!(records[1].by, "bert");
        assert_eq!(records[0].undo.as_deref(), Some("textnlp-deploy dr failover --to a --env a"));
    }
}
