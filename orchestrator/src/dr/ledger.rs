//! The ledger of a drill: what an external client saw, recorded at once. No site can change this evidence.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// More than an hour of a drill.
const MOST_EVENTS: usize = 500_000;

/// The status of a request or a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestStatus {
    /// It was sent.
    Sent,
    /// It succeeded.
    Ok,
    /// It failed or got no valid answer.
    Failed,
    /// It timed out.
    Timeout,
}

/// One line of the ledger. Times are in milliseconds since it began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum LedgerEvent {
    /// A generation request through the global endpoint.
    Request {
        /// The time.
        t: f64,
        /// Its number.
        n: u64,
        /// Its status.
        is: RequestStatus,
        /// The error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// A write of control data through a site agent.
    Write {
        /// The time.
        t: f64,
        /// Its number.
        n: u64,
        /// Its status.
        is: RequestStatus,
        /// The epoch of the configuration under which it was acknowledged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<u64>,
        /// The site whose agent acknowledged it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        site: Option<String>,
        /// The error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// A milestone of the drill.
    Mark {
        /// The time.
        t: f64,
        /// The milestone.
        name: Mark,
    },
}

/// Milestones of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// The fault is about to be injected.
    Fault,
    /// The witness considers the primary silent.
    Detected,
    /// The witness granted another configuration.
    Granted,
    /// The ledger and the new primary's data were read.
    Read,
    /// The fault is about to be reverted.
    Revert,
    /// The lost site is a member again.
    Recovered,
    /// The home site is primary again.
    Home,
}

/// The id of a drill's request in the usage records.
pub fn request_id(drill: &str, n: u64) -> String {
    format!("drill-{drill}-{n}")
}

/// The key of a drill's write.
pub fn key(drill: &str, n: u64) -> String {
    format!("{}{n}", prefix(drill))
}

/// The prefix of all keys of a drill.
pub fn prefix(drill: &str) -> String {
    format!("drill/{drill}/")
}

/// A ledger that is being written.
#[derive(Debug)]
pub struct Ledger {
    path: Utf8PathBuf,
    began: Instant,
    at: Timestamp,
    // Shared by the client's tasks and by readers during the drill.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    events: Vec<LedgerEvent>,
    broken: Option<String>,
}

impl Ledger {
    /// Creates a ledger; the file must not exist.
    pub fn begin(path: &Utf8Path) -> io::Result<Self> {
        let mut file = std::fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        let at = Timestamp::now();
        writeln!(file, "{}", serde_json::json!({ "format": "textnlp-ledger/1", "began": at }))?;
        let inner = Mutex::new(Inner { file, events: Vec::new(), broken: None });
        Ok(Self { path: path.to_owned(), began: Instant::now(), at, inner })
    }

    /// When it began.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// Milliseconds since it began.
    pub fn now(&self) -> f64 {
        (self.began.elapsed().as_secs_f64() * 1e6).round() / 1e3
    }

    /// Writes an event before it returns. A failed write is reported by [`Ledger::read`].
    pub fn put(&self, event: LedgerEvent) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.broken.is_some() {
            return;
        }
        if inner.events.len() >= MOST_EVENTS {
            inner.broken = Some(format!("more than {MOST_EVENTS} events"));
            return;
        }
        let mut line = serde_json::to_vec(&event).expect("an event is plain data");
        line.push(b'\n');
        // One write per line: only the last line of a killed drill can be partial.
        if let Err(error) = inner.file.write_all(&line) {
            inner.broken = Some(error.to_string());
            return;
        }
        inner.events.push(event);
    }

    /// Records a milestone and returns its time in ms.
    pub fn mark(&self, name: Mark) -> f64 {
        let t = self.now();
        self.put(LedgerEvent::Mark { t, name });
        t
    }

    /// Every event so far, or the first error of a write.
    pub fn read(&self) -> io::Result<Vec<LedgerEvent>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match &inner.broken {
            Some(why) => Err(io::Error::other(format!("write {}: {why}", self.path))),
            None => Ok(inner.events.clone()),
        }
    }

    /// Syncs the file to disk.
    pub fn sync(&self) -> io::Result<()> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).file.sync_all()
    }
}

/// Reads a ledger from its file. The last line may be partial.
pub fn read(path: &Utf8Path) -> io::Result<Vec<LedgerEvent>> {
    let mut events = Vec::new();
    for line in BufReader::new(File::open(path)?).lines().skip(1) {
        match serde_json::from_str(&line?) {
            Ok(event) if events.len() < MOST_EVENTS => events.push(event),
            _ => break,
        }
    }
    Ok(events)
}
