//! The journal of failovers, failbacks and drills, `dr/journal.jsonl`. Steps are recorded durably before they start, so
//! that another process can resume them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_files::Lock;

/// Ten thousand drills; a longer file was not written by this program.
const MOST_BYTES: u64 = 64 << 20;

/// The kind of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Another site becomes primary.
    Failover,
    /// The home site becomes primary again.
    Failback,
    /// A disaster-recovery drill.
    Drill,
}

/// The status of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// It is about to start.
    Begun,
    /// It succeeded.
    Ended,
    /// It failed or was done in part.
    Failed,
}

/// The step that spans an action.
pub const WHOLE: &str = "whole";

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it was written.
    pub at: Timestamp,
    /// The kind of the action.
    pub action: Action,
    /// The id of the action.
    pub id: String,
    /// The step of the action.
    pub step: String,
    /// The status of the step.
    pub is: StepStatus,
    /// The command that reverts it, for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
    /// The operator.
    pub by: String,
    /// Data that is needed to resume the action.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process holds it.
    #[error("another failover, failback or drill is running here{}", by.as_ref().map(|by| format!(" (by {by})")).unwrap_or_default())]
    Held {
        /// The operator of that process.
        by: Option<String>,
    },
    /// It cannot be read or written.
    #[error("{action} {path}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// Its path.
        path: Utf8PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// The journal, locked by this process.
#[derive(Debug)]
pub struct Journal {
    path: Utf8PathBuf,
    file: File,
    /// The kernel releases it when the process ends, however it ends.
    _lock: Lock,
    by: String,
    flags: String,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the journal in an environment's state folder for writing. A partial line of a crashed process is
    /// truncated. `flags` select this environment in the commands that the journal records for a revert.
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
        let lock = Lock::try_exclusive(&lock_path, 0o600).map_err(|e| io(e.action, &lock_path)(e.source))?;
        let Some(lock) = lock else {
            let by = read(state)?.last().map(|record| record.by.clone());
            return Err(JournalError::Held { by });
        };
        let path = folder.join("journal.jsonl");
        let mut file = open(&path)?;
        let text = bounded(&mut file).map_err(io("read", &path))?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64).map_err(io("mend", &path))?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(io("read", &path))?;
        textnlp_files::sync_folder(&folder).map_err(|e| io(e.action, &folder)(e.source))?;
        let records = parse(&text[..whole]);
        Ok(Self { path, file, _lock: lock, by: by.to_owned(), flags: flags.to_owned(), records })
    }

    /// Every record, of earlier processes too.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// A command line for this environment.
    pub fn command(&self, verb: &str) -> String {
        format!("textnlp-deploy {verb}{}", self.flags)
    }

    /// Records that a step is about to start. Durable on return.
    pub fn begin(
        &mut self,
        action: Action,
        id: &str,
        step: &str,
        undo: Option<String>,
        data: Value,
    ) -> Result<(), JournalError> {
        self.put(Record { undo, data, ..self.record(action, id, step, StepStatus::Begun) })
    }

    /// Records that a step succeeded.
    pub fn end(&mut self, action: Action, id: &str, step: &str, data: Value) -> Result<(), JournalError> {
        self.put(Record { data, ..self.record(action, id, step, StepStatus::Ended) })
    }

    /// Records that a step failed.
    pub fn fail(&mut self, action: Action, id: &str, step: &str, why: &str) -> Result<(), JournalError> {
        self.put(Record { data: Value::String(why.to_owned()), ..self.record(action, id, step, StepStatus::Failed) })
    }

    fn record(&self, action: Action, id: &str, step: &str, is: StepStatus) -> Record {
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

/// Every record, without the lock.
pub fn read(state: &Utf8Path) -> Result<Vec<Record>, JournalError> {
    let path = state.join("dr/journal.jsonl");
    let text = match File::open(&path).and_then(|mut file| bounded(&mut file)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(JournalError::Io { action: "read", path, source }),
    };
    Ok(parse(&text))
}

/// The first records of actions that have not ended, oldest first.
pub fn unfinished(records: &[Record]) -> Vec<&Record> {
    let ended = |id: &str| records.iter().any(|r| r.id == id && r.step == WHOLE && r.is != StepStatus::Begun);
    records.iter().filter(|r| r.step == WHOLE && r.is == StepStatus::Begun && !ended(&r.id)).collect()
}

/// The first record of a step, if the step was started.
pub fn begin_record<'r>(records: &'r [Record], id: &str, step: &str) -> Option<&'r Record> {
    records.iter().rfind(|r| r.id == id && r.step == step && r.is == StepStatus::Begun)
}

fn bounded(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {MOST_BYTES} bytes")));
    }
    // Bytes of a partial line; the readable lines count.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Unreadable lines are skipped: a newer version wrote them, or the disk failed.
fn parse(text: &str) -> Vec<Record> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dr_journal_is_resumed_after_a_torn_line() {
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
