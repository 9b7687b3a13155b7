//! What a client from outside saw, written down as it happened: the only witness of what was lost that no site can change.

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

/// How a request or a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Is {
    /// It is on its way.
    Sent,
    /// It was answered as it should be.
    Ok,
    /// It was answered otherwise, or not at all.
    Failed,
    /// Nothing came within the time that a client waits.
    Timeout,
}

/// One line of the ledger. Times are milliseconds since it began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Event {
    /// A text was asked for through the front.
    Request {
        /// When.
        t: f64,
        /// Which.
        n: u64,
        /// How it is.
        is: Is,
        /// Why it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Control data was written through a watch.
    Write {
        /// When.
        t: f64,
        /// Which.
        n: u64,
        /// How it is.
        is: Is,
        /// Under which configuration it was acknowledged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<u64>,
        /// Whose watch acknowledged it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        site: Option<String>,
        /// Why it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// A moment of the drill.
    Mark {
        /// When.
        t: f64,
        /// Which.
        name: Mark,
    },
}

/// Moments of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// The fault is about to be injected.
    Fault,
    /// The witness counts the primary as silent.
    Detected,
    /// The witness has granted another configuration.
    Granted,
    /// The ledger was read and what the new primary holds was asked for.
    Read,
    /// The fault is about to be taken back.
    Revert,
    /// The site is a member again.
    Recovered,
    /// The home site is primary again.
    Home,
}

/// The id under which the service records a request of a drill.
pub fn request_id(drill: &str, n: u64) -> String {
    format!("drill-{drill}-{n}")
}

/// The key of a write of a drill.
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
    // The file and what it holds, for the client's writers and for those who look meanwhile.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    events: Vec<Event>,
    broken: Option<String>,
}

impl Ledger {
    /// Begins one in a file that is not there yet.
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

    /// Writes an event down before this returns. A ledger that cannot be written says so at [`Ledger::read`].
    pub fn put(&self, event: Event) {
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
        // One call per line: a line is whole, or is the last one of a drill that was killed.
        if let Err(error) = inner.file.write_all(&line) {
            inner.broken = Some(error.to_string());
            return;
        }
        inner.events.push(event);
    }

    /// Writes a moment down, and says when it was.
    pub fn mark(&self, name: Mark) -> f64 {
        let t = self.now();
        self.put(Event::Mark { t, name });
        t
    }

    /// Everything so far; an error when something could not be written.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match &inner.broken {
            Some(why) => Err(io::Error::other(format!("write {}: {why}", self.path))),
            None => Ok(inner.events.clone()),
        }
    }

    /// Makes it durable.
    pub fn sync(&self) -> io::Result<()> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).file.sync_all()
    }
}

/// Reads a ledger from its file. The last line may be torn.
pub fn read(path: &Utf8Path) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for line in BufReader::new(File::open(path)?).lines().skip(1) {
        match serde_json::from_str(&line?) {
            Ok(event) if events.len() < MOST_EVENTS => events.push(event),
            _ => break,
        }
    }
    Ok(events)
}
