//! The socket in a PostgreSQL folder over which its log segments are archived and fetched. The protocol is documented
//! at `admin archive-wal` and `admin restore-wal`. The process that serves it has the keys.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use textnlp_orchestrator::backup::{
    ArchiveOptions, Decryptor, EncryptionMode, Header, Log, PART_MAX, Segment, SegmentName,
};
use textnlp_orchestrator::dr::report::signing_key;
use textnlp_provider::component::Backup as Order;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::point_in_time::DecryptedSegments;
use super::{create, local, settings};
use crate::{Failure, Platform};

/// Timeout of one request: a segment of 16 MB is received locally, encrypted and flushed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of a request in bytes. A request is one line.
const LINE_MAX: u64 = 1 << 10;

/// `STATE/archive.json`: why archiving fails now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArchiveFailure {
    /// When the last attempt was made.
    pub at: Timestamp,
    /// Why the attempt failed.
    pub says: String,
}

fn trouble_file(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("archive.json")
}

/// Why archiving fails, or `None` if it works.
pub fn trouble(folder: &Utf8Path) -> Option<ArchiveFailure> {
    std::fs::read(trouble_file(folder)).ok().and_then(|text| serde_json::from_slice(&text).ok())
}

/// Accepts the log segments of the PostgreSQL in a folder until `end` completes.
pub async fn archive(
    platform: &dyn Platform,
    folder: &Utf8Path,
    order: &Order,
    postgres: &Utf8Path,
    end: impl Future,
) -> Result<(), Failure> {
    let whose = create::whose(platform, folder).await?;
    let (environment, lineage) = whose.with_context(|| format!("there is no state in {folder}"))?;
    let shelf = local(&environment, folder, order.destination.as_deref());
    let seal = EncryptionMode::Keys(create::recipients(platform, folder, order.recipients.iter()).await?);
    let opener = super::opener_of_state(platform, folder).await?;
    let header = Header { format: 1, environment, lineage };
    let served = SocketFile::open(platform, postgres)?;
    let take = async {
        loop {
            let mut stream = served.next().await;
            // Sequential, because PostgreSQL archives one segment at a time.
            let taken = tokio::time::timeout(
                REQUEST_TIMEOUT,
                taken(&mut stream, shelf.folder(), folder, &header, &seal, &opener),
            )
            .await;
            let (answer, failed) = match taken.context("it took too long").flatten() {
                Ok(()) => ("ok\n".to_owned(), None),
                Err(error) => (no(&error), Some(format!("{error:#}"))),
            };
            if let Err(error) = remember(folder, failed) {
                tracing::warn!("{error:#}");
            }
            // PostgreSQL retries a segment that was not acknowledged.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    };
    tokio::select! {
        () = take => {}
        _ = end => {}
    }
    Ok(())
}

/// Records the failure for `status`, or clears it once archiving works again.
fn remember(folder: &Utf8Path, failed: Option<String>) -> anyhow::Result<()> {
    let path = trouble_file(folder);
    match failed {
        Some(says) => {
            let text = serde_json::to_vec(&ArchiveFailure { at: Timestamp::now(), says })?;
            settings::put(&path, &text).with_context(|| format!("write {path}"))
        }
        None => match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {path}"))
            }
            _ => Ok(()),
        },
    }
}

/// Receives one log segment and stores it in the backup directory.
async fn taken(
    stream: &mut UnixStream,
    shelf: &Utf8Path,
    state: &Utf8Path,
    header: &Header,
    seal: &EncryptionMode,
    opener: &Decryptor,
) -> anyhow::Result<()> {
    let mut from = BufReader::new(stream);
    let line = line(&mut from).await?;
    let ["put", system, name, bytes] = line.split(' ').collect::<Vec<_>>()[..] else {
        bail!("`{}` is not a log file of this archive", line.escape_default())
    };
    let (system, name, bytes): (u64, SegmentName, usize) = (system.parse()?, name.parse()?, bytes.parse()?);
    ensure!(bytes as u64 <= PART_MAX, "{name} has {bytes} bytes, which is too large for a log file of this archive");
    let mut content = vec![0; bytes];
    from.read_exact(&mut content).await.with_context(|| format!("receive {name}"))?;
    let log = Log::of(shelf, system);
    let put = tokio::task::block_in_place(|| {
        // Each time, as each backup reads it: base and log must have the signature of one key.
        let signer = &signing_key(state).context("read the key that signs the log")?;
        let options = ArchiveOptions { header, seal, opener, signer };
        log.put(&options, &name, &content, Timestamp::now()).map_err(anyhow::Error::new)
    });
    put.with_context(|| format!("archive {name}"))?;
    Ok(())
}

/// Serves log segments to a recovering server until it is dropped.
pub struct SegmentServer(tokio::task::JoinHandle<()>);

impl Drop for SegmentServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// See [`SegmentServer`].
pub fn answer(
    platform: &dyn Platform,
    postgres: &Utf8Path,
    log: Log,
    opener: Arc<Decryptor>,
    mut opened: DecryptedSegments,
) -> anyhow::Result<SegmentServer> {
    let served = SocketFile::open(platform, postgres)?;
    Ok(SegmentServer(tokio::spawn(async move {
        loop {
            let mut stream = served.next().await;
            // A failed write means that the server exited.
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, answered(&mut stream, &log, &opener, &mut opened)).await;
        }
    })))
}

async fn answered(
    stream: &mut UnixStream,
    log: &Log,
    opener: &Decryptor,
    opened: &mut DecryptedSegments,
) -> anyhow::Result<()> {
    let line = line(&mut BufReader::new(&mut *stream)).await?;
    let found = (|| {
        let ["get", system, name] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("`{}` requests no log file", line.escape_default())
        };
        ensure!(system == log.system(), "this is the log of another database");
        let name: SegmentName = name.parse()?;
        // Frees the decrypted segment. A repeated request decrypts it again.
        let part = match opened.remove(&name) {
            Some(part) => Some(part),
            None => tokio::task::block_in_place(|| log.get(&name, opener))?,
        };
        Ok(part.map(Segment::whole))
    })();
    match found {
        Ok(Some(content)) => {
            stream.write_all(format!("ok {}\n", content.len()).as_bytes()).await?;
            stream.write_all(&content).await?;
        }
        Ok(None) => stream.write_all(b"absent\n").await?,
        Err(error) => stream.write_all(no(&error).as_bytes()).await?,
    }
    Ok(())
}

/// The refusal, on one line.
fn no(error: &anyhow::Error) -> String {
    let text: String = format!("{error:#}").chars().map(|c| if c.is_control() { ' ' } else { c }).take(800).collect();
    format!("no {text}\n")
}

async fn line(from: &mut (impl AsyncBufReadExt + Unpin)) -> anyhow::Result<String> {
    let mut line = String::new();
    from.take(LINE_MAX).read_line(&mut line).await?;
    let line = line.strip_suffix('\n').context("there is no request in it")?;
    Ok(line.to_owned())
}

/// A socket whose file is removed on drop.
struct SocketFile {
    listener: UnixListener,
    socket: Utf8PathBuf,
    /// Device and inode of the socket file. They are not reused while the listener is open.
    file: (u64, u64),
}

impl SocketFile {
    /// Only the server's user and this process may connect.
    fn open(platform: &dyn Platform, postgres: &Utf8Path) -> anyhow::Result<Self> {
        Self::at(platform.archive_socket(postgres), postgres)
    }

    fn at(socket: Utf8PathBuf, postgres: &Utf8Path) -> anyhow::Result<Self> {
        let fails = || format!("listen on {socket}");
        let owner = std::fs::metadata(postgres).with_context(|| format!("check {postgres}"))?;
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(fails),
            _ => {}
        }
        let listener = UnixListener::bind(&socket).with_context(fails)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).with_context(fails)?;
        chown(&socket, Some(owner.uid()), Some(owner.gid())).with_context(fails)?;
        let file = file_of(&socket).with_context(fails)?;
        Ok(Self { listener, socket, file })
    }

    async fn next(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                // Too many open files: wait until some are closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have replaced the socket meanwhile.
        if file_of(&self.socket).is_ok_and(|there| there == self.file) {
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

/// Device and inode of a path.
fn file_of(path: &Utf8Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropping_an_archive_socket_keeps_that_of_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let postgres = Utf8Path::from_path(dir.path()).unwrap().join("postgres");
        std::fs::create_dir(&postgres).unwrap();
        let open = || SocketFile::at(postgres.join("socket"), &postgres).unwrap();
        let (first, second) = (open(), open());
        drop(first);
        UnixStream::connect(&second.socket).await.unwrap();
        let socket = second.socket.clone();
        drop(second);
        assert!(!socket.exists());
    }
}
