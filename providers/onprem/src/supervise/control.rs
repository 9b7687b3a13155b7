//! Talking to a supervisor: one JSON line there, one back, over a socket that only its owner may use.

use std::time::Duration;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::layout::SiteFolder;
use crate::lock;

/// A status of hundreds of units stays below this.
const LINE_MAX: u64 = 1 << 20;
/// The supervisor answers between two of its steps, which are short.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a supervisor can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// How things are.
    Status,
    /// Read the unit files now.
    Apply,
    /// Start a unit now, without waiting for the end of its pause.
    Start {
        /// Which.
        name: String,
    },
    /// Stop a unit until it is started again or its file changes.
    Stop {
        /// Which.
        name: String,
    },
    /// Stop a unit and start it again.
    Restart {
        /// Which.
        name: String,
    },
    /// Leave. The programs go on; the next supervisor adopts them.
    Shutdown,
}

/// What a supervisor says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The programs that it keeps running.
    pub units: Vec<UnitStatus>,
    /// Unit files that it did not believe, with the reason.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
    /// Certificates that it renews.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// Why the request was refused, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How one unit is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub name: String,
    /// What it does.
    pub phase: PhaseName,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it was started again after it ended by itself, since the supervisor began.
    pub restarts: u32,
    /// How often it ended by itself since it was last ready or its unit changed.
    pub failures: u32,
    /// The digest that the running process was started with.
    pub spec_digest: Option<String>,
    /// The reload digest that it was last told of.
    pub reload_digest: Option<String>,
    /// The operation that the running process was started by.
    pub operation: Option<u64>,
    /// What there is to say: how it ended, why it is not ready.
    pub says: String,
    /// Whether the unit's file is gone while it goes on.
    pub file_gone: bool,
}

/// What a unit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    /// It was started and is not ready yet.
    Starting,
    /// It does its work.
    Ready,
    /// It was ready and does not answer now.
    Unready,
    /// It finishes what it does.
    Stopping,
    /// It ended and is started again after a pause.
    Waiting,
    /// It should not run and does not.
    Stopped,
}

/// A unit file that was not believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

/// A certificate that the supervisor watches over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The file.
    pub file: String,
    /// When it ends.
    pub not_after: Option<jiff::Timestamp>,
    /// When it is renewed.
    pub renew_at: Option<jiff::Timestamp>,
    /// Why it could not be read or renewed.
    pub error: Option<String>,
}

/// How the supervisor of a site is; `None` when none runs.
pub async fn status(folder: &Utf8Path) -> std::io::Result<Option<Status>> {
    ask(folder, &Ask::Status).await
}

/// Asks the supervisor of a site; `None` when none runs.
pub async fn ask(folder: &Utf8Path, ask: &Ask) -> std::io::Result<Option<Status>> {
    let folder = SiteFolder::at(folder);
    if lock::holder(&folder.lock("supervisor"))?.is_none() {
        return Ok(None);
    }
    let answer = tokio::time::timeout(ANSWER_WITHIN, exchange(&folder, ask)).await;
    answer.map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the supervisor does not answer"))?.map(Some)
}

async fn exchange(folder: &SiteFolder, ask: &Ask) -> std::io::Result<Status> {
    let mut stream = UnixStream::connect(folder.control()).await?;
    let mut line = serde_json::to_vec(ask)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(LINE_MAX)).read_until(b'\n', &mut answer).await?;
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    match (answer.get("pid"), answer.get("error").and_then(serde_json::Value::as_str)) {
        (None, Some(refused)) => Err(std::io::Error::other(refused.to_owned())),
        _ => serde_json::from_value(answer).map_err(std::io::Error::from),
    }
}

/// Reads one request of a client. Its sender must be us.
pub(super) async fn read_ask(stream: &mut UnixStream) -> std::io::Result<Ask> {
    if stream.peer_cred()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    let mut line = Vec::new();
    BufReader::new(stream.take(64 << 10)).read_until(b'\n', &mut line).await?;
    serde_json::from_slice(&line).map_err(std::io::Error::from)
}
