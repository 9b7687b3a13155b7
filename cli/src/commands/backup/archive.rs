//! The socket beside a PostgreSQL's folder, where its steps hand over the parts of its log or ask for them: `serve --role archive` and
//! `serve --role fetch` say what is exchanged. Who serves it has the keys.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use textnlp_orchestrator::backup::{Header, Log, Opener, PART_MAX, Part, PartName, Seal};
use textnlp_provider::component::Backup as Order;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::moment::Opened;
use super::{create, keep, shelf};
use crate::backup_args::Archive;
use crate::clouds;
use crate::report::{Failure, Success};

/// A part of 16 MB comes over a socket of this machine, is sealed and flushed.
const WITHIN: Duration = Duration::from_secs(30);
/// A request is a line.
const LINE_MAX: u64 = 1 << 10;

/// `STATE/archive.json`: why the log is not archived now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trouble {
    /// When it was tried last.
    pub at: Timestamp,
    /// Why it failed.
    pub says: String,
}

fn trouble_file(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("archive.json")
}

/// Why the log is not archived; `None` when it is.
pub fn trouble(folder: &Utf8Path) -> Option<Trouble> {
    std::fs::read(trouble_file(folder)).ok().and_then(|text| serde_json::from_slice(&text).ok())
}

/// `backup archive`: takes parts until its standard input ends.
pub async fn archive(args: &Archive) -> Result<Success, Failure> {
    // The service comes first, but not by so much that its log waits.
    let _ = rustix::process::nice(5);
    let text = std::fs::read(&args.order).with_context(|| format!("read {}", args.order))?;
    let order: Order = serde_yaml::from_slice(&text).with_context(|| format!("read {}", args.order))?;
    let whose = create::whose(&args.folder).await?;
    let (environment, lineage) = whose.with_context(|| format!("there is no state in {}", args.folder))?;
    let shelf = shelf(&environment, &args.folder, order.destination.as_deref());
    let seal = Seal::Keys(create::recipients(&args.folder, order.recipients.iter()).await?);
    let opener = super::opener_of_state(&args.folder).await?;
    let header = Header { format: 1, environment, lineage };
    let served = Served::open(&args.postgres)?;
    let left = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
    let take = async {
        loop {
            let mut stream = served.next().await;
            // One after another: PostgreSQL hands over one at a time.
            let taken = tokio::time::timeout(WITHIN, taken(&mut stream, shelf.folder(), &header, &seal, &opener)).await;
            let (answer, failed) = match taken.context("it took too long").flatten() {
                Ok(()) => ("ok\n".to_owned(), None),
                Err(error) => (no(&error), Some(format!("{error:#}"))),
            };
            if let Err(error) = remember(&args.folder, failed) {
                tracing::warn!("{error:#}");
            }
            // PostgreSQL asks again when it was not told.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    };
    tokio::select! {
        () = take => {}
        _ = left => {}
    }
    Ok(Success::new(String::new(), serde_json::json!({})))
}

/// Keeps why it failed for `status`, and forgets it when it works again.
fn remember(folder: &Utf8Path, failed: Option<String>) -> anyhow::Result<()> {
    let path = trouble_file(folder);
    match failed {
        Some(says) => {
            let text = serde_json::to_vec(&Trouble { at: Timestamp::now(), says })?;
            keep::put(&path, &text).with_context(|| format!("write {path}"))
        }
        None => match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {path}"))
            }
            _ => Ok(()),
        },
    }
}

/// Takes one part and puts it on the shelf.
async fn taken(
    stream: &mut UnixStream,
    shelf: &Utf8Path,
    header: &Header,
    seal: &Seal,
    opener: &Opener,
) -> anyhow::Result<()> {
    let mut from = BufReader::new(stream);
    let line = line(&mut from).await?;
    let ["put", system, name, bytes] = line.split(' ').collect::<Vec<_>>()[..] else {
        bail!("`{}` is no part that is handed over", line.escape_default())
    };
    let (system, name, bytes): (u64, PartName, usize) = (system.parse()?, name.parse()?, bytes.parse()?);
    ensure!(bytes as u64 <= PART_MAX, "{name} has {bytes} bytes, which no part of ours has");
    let mut content = vec![0; bytes];
    from.read_exact(&mut content).await.with_context(|| format!("take {name}"))?;
    let log = Log::of(shelf, system);
    let put = tokio::task::block_in_place(|| log.put(header, &name, &content, seal, opener, Timestamp::now()));
    put.with_context(|| format!("archive {name}"))?;
    Ok(())
}

/// Answers a recovering server with the parts of a log, until it is dropped.
pub struct Answering(tokio::task::JoinHandle<()>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// See [`Answering`].
pub fn answer(postgres: &Utf8Path, log: Log, opener: Arc<Opener>, mut opened: Opened) -> anyhow::Result<Answering> {
    let served = Served::open(postgres)?;
    Ok(Answering(tokio::spawn(async move {
        loop {
            let mut stream = served.next().await;
            // Who does not read is a server that ended.
            let _ = tokio::time::timeout(WITHIN, answered(&mut stream, &log, &opener, &mut opened)).await;
        }
    })))
}

async fn answered(stream: &mut UnixStream, log: &Log, opener: &Opener, opened: &mut Opened) -> anyhow::Result<()> {
    let line = line(&mut BufReader::new(&mut *stream)).await?;
    let found = (|| {
        let ["get", system, name] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("`{}` asks for no part", line.escape_default())
        };
        ensure!(system == log.system(), "this is the log of another database");
        let name: PartName = name.parse()?;
        // A part that was opened is let go of; one that is asked for again is opened again.
        let part = match opened.remove(&name) {
            Some(part) => Some(part),
            None => tokio::task::block_in_place(|| log.get(&name, opener))?,
        };
        Ok(part.map(Part::whole))
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

/// Why not, in one line.
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

/// A socket that goes with this.
struct Served {
    listener: UnixListener,
    socket: Utf8PathBuf,
    /// Its file, which is not given to another one before the listener is closed.
    file: (u64, u64),
}

impl Served {
    /// The server's user alone, and we, may talk to it.
    fn open(postgres: &Utf8Path) -> anyhow::Result<Self> {
        let socket = clouds::archive_socket(postgres);
        let fails = || format!("listen on {socket}");
        let owner = std::fs::metadata(postgres).with_context(|| format!("look at {postgres}"))?;
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
                // Too many open files: they close again.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Whoever has taken over meanwhile has put its own there.
        if file_of(&self.socket).is_ok_and(|there| there == self.file) {
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

/// Which file a path leads to.
fn file_of(path: &Utf8Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_of_whoever_took_over_stays() {
        let dir = tempfile::tempdir().unwrap();
        let postgres = Utf8Path::from_path(dir.path()).unwrap().join("postgres");
        std::fs::create_dir(&postgres).unwrap();
        let first = Served::open(&postgres).unwrap();
        let second = Served::open(&postgres).unwrap();
        drop(first);
        UnixStream::connect(&second.socket).await.unwrap();
        let socket = second.socket.clone();
        drop(second);
        assert!(!socket.exists());
    }
}
