//! A PostgreSQL beside everything, for a proof or for a restore: made from a dump, or from a base and the log that follows it.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_orchestrator::backup::{Base, Log, Opener, is_inside};
use textnlp_provider::SiteName;
use tokio::process::Command;
use uuid::Uuid;

use super::archive::{self, Answering};
use super::moment::Opened;
use super::prove::ready;
use crate::clouds;

/// A dump of many gigabytes takes its time.
const READ_WITHIN: Duration = Duration::from_secs(600);
/// A log of a month, too.
const RECOVERED_WITHIN: Duration = Duration::from_secs(6 * 3600);
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// What it is made from.
pub enum From<'a> {
    /// A dump; it goes as it is read.
    Dump(&'a Utf8Path),
    /// The files of a base, a tar, and the log from there on to a moment; without one, what the base alone holds.
    Base {
        /// The tar.
        tar: &'a Utf8Path,
        /// What is known of it.
        base: &'a Base,
        /// The log.
        log: Log,
        /// What opens the log.
        opener: Arc<Opener>,
        /// What of it was opened already.
        opened: Opened,
        /// The moment, inclusive.
        to: Option<Timestamp>,
    },
}

/// It goes with this.
pub struct Postgres {
    /// `database:` of a server that uses it.
    pub settings: Value,
    keeper: tokio::process::Child,
    /// Its end is the keeper's.
    _held: Option<tokio::process::ChildStdin>,
    _answering: Option<Answering>,
    _made: clouds::Beside,
    _sockets: tempfile::TempDir,
}

impl Postgres {
    /// Makes it and waits until it serves. `place` is a private folder that goes after it.
    pub async fn start(site: &SiteName, from: From<'_>, place: &Utf8Path) -> anyhow::Result<Self> {
        let kind = if matches!(from, From::Dump(_)) { "dump" } else { "base" };
        let work = place.join(format!("{site}-{kind}"));
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => std::fs::create_dir_all(&work)?,
        }
        let sockets = tempfile::Builder::new().prefix("textnlp-verify-").tempdir()?;
        let socket = Utf8Path::from_path(sockets.path()).context("temporary folders have UTF-8 names")?.join("p");
        let password = work.join("password");
        std::fs::write(&password, Uuid::new_v4().simple().to_string())?;
        let mut config = json!({
            "listen": format!("unix:{socket}"), "port": 5432, "database": "textnlp", "password_file": password,
            "max_connections": 50, "attended": true,
        });
        let (made, answering, within) = match from {
            From::Dump(dump) => {
                config["dump"] = json!(dump);
                let work = work.clone();
                let made = tokio::task::spawn_blocking(move || clouds::postgres_beside(&work)).await??;
                (made, None, READ_WITHIN)
            }
            From::Base { tar, base, log, opener, opened, to } => {
                config["recover"] = json!({ "to": to });
                let (tar, version, work) = (tar.to_owned(), base.version, work.clone());
                let unpacked = move || {
                    let made = clouds::postgres_files_beside(&work, version)?;
                    unpack(&tar, &made.folder.join("data"), made.user).with_context(|| format!("unpack {tar}"))?;
                    anyhow::Ok(made)
                };
                let made = tokio::task::spawn_blocking(unpacked).await??;
                let answering = archive::answer(&made.folder, log, opener, opened)?;
                (made, Some(answering), RECOVERED_WITHIN)
            }
        };
        config["programs"] = json!(made.programs);
        config["folder"] = json!(made.folder);
        config["user"] = json!(made.user);
        let file = work.join("keeper.yaml");
        std::fs::write(&file, json!({ "postgres": config }).to_string())?;
        let log = work.join("postgres.log");
        let out = std::fs::File::create(&log)?;
        let mut keeper = Command::new(std::env::current_exe()?)
            .args(["serve", "--role", "postgres", "--config", file.as_str()])
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()?;
        // Who waits for a child lets go of what it reads.
        let held = keeper.stdin.take();
        let began = Instant::now();
        tokio::select! {
            ready = ready(&socket, within) => ready.with_context(|| last_words(&log))?,
            ended = keeper.wait() => bail!("{} after {} s: {}", ended?, began.elapsed().as_secs(), last_words(&log)),
        }
        let folder = made.folder.join("run").as_str().replace('/', "%2F");
        let settings =
            json!({ "url": format!("postgresql://textnlp@{folder}:5432/textnlp"), "password_file": password });
        Ok(Self { settings, keeper, _held: held, _answering: answering, _made: made, _sockets: sockets })
    }

    /// Lets it end by itself, so that its folder is nobody's when it goes.
    pub async fn stop(mut self) {
        if let Some(pid) = self.keeper.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = tokio::time::timeout(ENDS_WITHIN, self.keeper.wait()).await;
    }
}

/// What PostgreSQL said before it gave up: its reasons, without what it says of every step.
fn last_words(log: &Utf8Path) -> String {
    const LINES: usize = 4;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let is_reason =
        |line: &&str| ["FATAL", "PANIC", "ERROR", "cause:", "error:"].iter().any(|word| line.contains(word));
    let mut lines: Vec<&str> = text.lines().rev().filter(is_reason).take(LINES).collect();
    if lines.is_empty() {
        lines = text.lines().rev().take(LINES).collect();
    }
    let lines: Vec<&str> = lines.into_iter().rev().map(str::trim).collect();
    format!("its last words: {}", lines.join(" | "))
}

/// Unpacks a base for whom its server runs as, and tells the server to go on by the log.
fn unpack(tar: &Utf8Path, data: &Utf8Path, user: Option<(u32, u32)>) -> anyhow::Result<()> {
    let give = |path: &Utf8Path| -> std::io::Result<()> {
        user.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
    };
    let folder = |path: &Utf8Path| -> std::io::Result<()> {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        give(path)
    };
    let file = |path: &Utf8Path, content: &mut dyn std::io::Read| -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        std::io::copy(content, &mut file)?;
        give(path)
    };
    folder(data)?;
    let mut archive = tar::Archive::new(std::fs::File::open(tar)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = Utf8PathBuf::try_from(entry.path()?.into_owned())?;
        let inside = path.as_str().trim_start_matches("./").trim_end_matches('/').to_owned();
        if inside.is_empty() || inside == "." {
            continue;
        }
        ensure!(is_inside(&inside), "`{path}` does not stay inside");
        let to = data.join(inside);
        match entry.header().entry_type() {
            tar::EntryType::Directory => folder(&to)?,
            tar::EntryType::Regular => file(&to, &mut entry)?,
            other => bail!("`{path}` is neither a file nor a folder but {other:?}"),
        }
    }
    // It is thrown away, also after a crash: nothing waits for the disk.
    let settings = data.join("postgresql.auto.conf");
    let mut settings =
        std::fs::OpenOptions::new().append(true).open(&settings).with_context(|| settings.to_string())?;
    std::io::Write::write_all(&mut settings, b"fsync = off\n")?;
    // A server that finds this file goes on by the log.
    file(&data.join("recovery.signal"), &mut std::io::empty())?;
    Ok(())
}
