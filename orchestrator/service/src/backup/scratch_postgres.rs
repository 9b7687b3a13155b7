//! A temporary PostgreSQL for a verification or a restore, from a dump or from a base backup and its log.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, lchown};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_orchestrator::backup::{Base, Decryptor, Log, is_inside};
use textnlp_provider::SiteName;
use tokio::process::Command;
use uuid::Uuid;

use super::archive::{self, SegmentServer};
use super::point_in_time::DecryptedSegments;
use super::verify_backup::ready;
use crate::platform::ScratchPostgres;
use crate::{Platform, workplace};

/// Timeout of restoring a dump, which may have many gigabytes.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(600);
/// Timeout of recovering a base backup, whose log may cover a month.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// The source of the database.
pub(super) enum DatabaseSource<'a> {
    /// A dump. It is removed once it is restored.
    Dump(&'a Utf8Path),
    /// A base backup as a tar, and its log up to a point in time. Without one, only the base backup is restored.
    Base {
        /// The tar.
        tar: &'a Utf8Path,
        /// The manifest's facts about the base backup.
        base: &'a Base,
        /// The log.
        log: Log,
        /// Decrypts the log.
        opener: Arc<Decryptor>,
        /// Log segments that are already decrypted.
        opened: DecryptedSegments,
        /// The point in time, inclusive.
        to: Option<Timestamp>,
    },
}

/// A running temporary PostgreSQL. It ends when this is dropped.
pub(super) struct Postgres {
    /// The `database:` settings of a server that uses it.
    pub settings: Value,
    keeper: tokio::process::Child,
    /// The supervising process exits when this pipe closes.
    _held: Option<tokio::process::ChildStdin>,
    _answering: Option<SegmentServer>,
    _made: ScratchPostgres,
    _sockets: tempfile::TempDir,
}

impl Postgres {
    /// Starts it and waits until it is ready. `place` is a private temporary folder.
    pub(super) async fn start(
        platform: &'static dyn Platform,
        site: &SiteName,
        from: DatabaseSource<'_>,
        place: &Utf8Path,
    ) -> anyhow::Result<Self> {
        let kind = if matches!(from, DatabaseSource::Dump(_)) { "dump" } else { "base" };
        let work = place.join(format!("{site}-{kind}"));
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => std::fs::create_dir_all(&work)?,
        }
        let sockets = workplace::for_sockets()?;
        let socket = Utf8Path::from_path(sockets.path()).context("temporary folders have UTF-8 names")?.join("p");
        let password = work.join("password");
        std::fs::write(&password, Uuid::new_v4().simple().to_string())?;
        let mut config = json!({
            "listen": format!("unix:{socket}"), "port": 5432, "database": "textnlp", "password_file": password,
            "max_connections": 50, "attended": true,
        });
        let (made, answering, within) = match from {
            DatabaseSource::Dump(dump) => {
                config["dump"] = json!(dump);
                let work = work.clone();
                let made = tokio::task::spawn_blocking(move || platform.scratch_postgres(&work, None)).await??;
                (made, None, RESTORE_TIMEOUT)
            }
            DatabaseSource::Base { tar, base, log, opener, opened, to } => {
                config["recover"] = json!({ "to": to });
                let (tar, version, work) = (tar.to_owned(), base.version, work.clone());
                let unpacked = move || {
                    let made = platform.scratch_postgres(&work, Some(version))?;
                    unpack(&tar, &made.folder, made.user).with_context(|| format!("unpack {tar}"))?;
                    anyhow::Ok(made)
                };
                let made = tokio::task::spawn_blocking(unpacked).await??;
                let answering = archive::answer(platform, &made.folder, log, opener, opened)?;
                (made, Some(answering), RECOVERY_TIMEOUT)
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
            .args(["postgres", "--config", file.as_str()])
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()?;
        // `wait` closes the child's standard input, so it is taken first.
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

    /// Stops it gracefully, so that no process uses its folder when that is removed.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = self.keeper.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.keeper.wait()).await;
    }
}

/// The errors of PostgreSQL's log, without its progress messages.
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
    format!("its last output: {}", lines.join(" | "))
}

/// Unpacks a base backup into `data` of a folder for the server's user, and configures recovery from the log.
///
/// Beside the folder, which is the user's: in it the user could replace by a link what root writes or gives away.
fn unpack(tar: &Utf8Path, folder: &Utf8Path, user: Option<(u32, u32)>) -> anyhow::Result<()> {
    let beside = Utf8PathBuf::from(format!("{folder}.data"));
    std::fs::DirBuilder::new().mode(0o700).create(&beside).with_context(|| format!("create {beside}"))?;
    let placed = fill(tar, &beside, user).and_then(|()| {
        // The last step: from here on the user can change what is in it.
        user.map_or(Ok(()), |(user, group)| lchown(&beside, Some(user), Some(group)))?;
        Ok(std::fs::rename(&beside, folder.join("data"))?)
    });
    if placed.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(&beside);
    }
    placed
}

/// Unpacks it into a folder that only this process can enter.
fn fill(tar: &Utf8Path, data: &Utf8Path, user: Option<(u32, u32)>) -> anyhow::Result<()> {
    let give = |path: &Utf8Path| -> std::io::Result<()> {
        user.map_or(Ok(()), |(user, group)| lchown(path, Some(user), Some(group)))
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
    let mut archive = tar::Archive::new(std::fs::File::open(tar)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = Utf8PathBuf::try_from(entry.path()?.into_owned())?;
        let inside = path.as_str().trim_start_matches("./").trim_end_matches('/').to_owned();
        if inside.is_empty() || inside == "." {
            continue;
        }
        ensure!(is_inside(&inside), "`{path}` leads out of the folder");
        let to = data.join(inside);
        match entry.header().entry_type() {
            tar::EntryType::Directory => folder(&to)?,
            tar::EntryType::Regular => file(&to, &mut entry)?,
            other => bail!("`{path}` is neither a file nor a folder but {other:?}"),
        }
    }
    // The database is temporary, so durable writes are unnecessary.
    let settings = data.join("postgresql.auto.conf");
    let mut settings =
        std::fs::OpenOptions::new().append(true).open(&settings).with_context(|| settings.to_string())?;
    std::io::Write::write_all(&mut settings, b"fsync = off\n")?;
    // PostgreSQL starts archive recovery if this file exists.
    file(&data.join("recovery.signal"), &mut std::io::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_the_folder_of_the_database_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let (folder, outside, tar) = (root.join("postgres"), root.join("outside"), root.join("base.tar"));
        let mut archive = tar::Builder::new(std::fs::File::create(&tar).unwrap());
        for (path, kind) in [
            ("postgresql.auto.conf", tar::EntryType::Regular),
            ("pg_wal/", tar::EntryType::Directory),
            ("pg_wal/1", tar::EntryType::Regular),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            archive.append_data(&mut header, path, std::io::empty()).unwrap();
        }
        archive.finish().unwrap();
        std::fs::create_dir(&outside).unwrap();
        // The user of the database was faster.
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("data/pg_wal")).unwrap();
        assert!(unpack(&tar, &folder, None).is_err());
        assert_eq!(outside.read_dir_utf8().unwrap().count(), 0);

        std::fs::remove_dir_all(folder.join("data")).unwrap();
        unpack(&tar, &folder, None).unwrap();
        assert!(folder.join("data/pg_wal/1").is_file() && folder.join("data/recovery.signal").is_file());
        assert_eq!(root.read_dir_utf8().unwrap().count(), 3, "nothing stays beside it");
    }
}
