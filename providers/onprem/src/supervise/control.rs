//! The protocol of a supervisor: one JSON line as the request, one as the answer, over a socket that only its owner may
//! use.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use textnlp_keys::SiteFolder;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::unit::names_with_locks;
use crate::lock;

/// A status of hundreds of units stays below this.
const LINE_MAX: u64 = 1 << 20;
/// The supervisor answers between two of its steps, which are short.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request to a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlRequest {
    /// Return the status.
    Status,
    /// Read the unit files now.
    Apply,
    /// Start a unit now, without waiting for the end of its pause.
    Start {
        /// The unit.
        name: String,
    },
    /// Stop a unit until it is started again or its file changes.
    Stop {
        /// The unit.
        name: String,
    },
    /// Stop a unit and start it again.
    Restart {
        /// The unit.
        name: String,
    },
    /// Exit. The programs continue; the next supervisor adopts them.
    Shutdown,
}

/// The status of a supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The folder of its site when it started; `None` from supervisors that do not report it.
    #[serde(default)]
    pub folder: Option<Utf8PathBuf>,
    /// Its units.
    pub units: Vec<UnitStatus>,
    /// Unit files that were rejected, with the reason.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
    /// Certificates that it renews.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// Why the request was refused, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The status of one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub name: String,
    /// Its phase.
    pub phase: PhaseName,
    /// Its process.
    pub pid: Option<u32>,
    /// Restarts after unexpected ends, since the supervisor started.
    pub restarts: u32,
    /// Unexpected ends since it was last ready or its unit changed.
    pub failures: u32,
    /// The digest that the running process was started with.
    pub spec_digest: Option<String>,
    /// The reload digest of its last SIGHUP.
    pub reload_digest: Option<String>,
    /// The operation that started the running process.
    pub operation: Option<u64>,
    /// A message: how it ended, why it is not ready.
    pub says: String,
    /// Whether the unit's file is missing while its program runs.
    pub file_gone: bool,
}

/// The phase of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    /// It was started and is not ready yet.
    Starting,
    /// It is ready.
    Ready,
    /// It was ready and does not answer now.
    Unready,
    /// It is shutting down.
    Stopping,
    /// It ended and is started again after a pause.
    Waiting,
    /// It should not run and does not.
    Stopped,
}

/// A rejected unit file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// The reason.
    pub why: String,
}

/// A certificate that the supervisor monitors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The file.
    pub file: String,
    /// When it expires.
    pub not_after: Option<jiff::Timestamp>,
    /// When it is renewed.
    pub renew_at: Option<jiff::Timestamp>,
    /// Why it could not be read or renewed.
    pub error: Option<String>,
}

/// The status of a site's supervisor; `None` when none runs.
pub async fn status(folder: &Utf8Path) -> std::io::Result<Option<Status>> {
    request(folder, &ControlRequest::Status).await
}

/// The processes that hold a lock of a site: its supervisor and its programs, also those that a supervisor left behind.
/// One of another pid namespace is 0.
pub fn processes(folder: &Utf8Path) -> std::io::Result<Vec<u32>> {
    let folder = SiteFolder::at(folder);
    let mut found = Vec::new();
    for name in names_with_locks(&folder)? {
        found.extend(lock::holder(&folder.lock(&name))?);
    }
    Ok(found)
}

/// Sends a request to a site's supervisor; `None` when none runs.
pub async fn request(folder: &Utf8Path, request_body: &ControlRequest) -> std::io::Result<Option<Status>> {
    let folder = SiteFolder::at(folder);
    if lock::holder(&folder.lock("supervisor"))?.is_none() {
        return Ok(None);
    }
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange(&folder, request_body)).await;
    answer.map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the supervisor does not answer"))?.map(Some)
}

async fn exchange(folder: &SiteFolder, request_body: &ControlRequest) -> std::io::Result<Status> {
    let mut stream = UnixStream::connect(folder.control()).await?;
    let mut line = serde_json::to_vec(request_body)?;
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

/// Reads one request of a client. Its sender must be the same user.
pub(super) async fn read_ask(stream: &mut UnixStream) -> std::io::Result<ControlRequest> {
    if stream.peer_cred()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    let mut line = Vec::new();
    BufReader::new(stream.take(64 << 10)).read_until(b'\n', &mut line).await?;
    serde_json::from_slice(&line).map_err(std::io::Error::from)
}
