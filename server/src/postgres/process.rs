//! PostgreSQL as a child, and the shell between that keeps one promise: when we are gone, by whatever death, it is stopped.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use camino::Utf8Path;
use tokio::process::{Child, ChildStdin, Command};

use super::config::Primary;
use super::{Config, Error, archive};

/// The end of standard input is a fast shutdown of the server; the server's end is ours.
const GUARD: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
(read -r _ <&3; kill -s INT $server) 2>/dev/null &
reader=$!
wait $server
ended=$?
kill $reader 2>/dev/null
exit $ended
"#;

/// A fast shutdown writes what is in memory to disk. Shorter than what the supervisor waits for us.
const FAST: Duration = Duration::from_secs(45);

/// A server that runs, or a program that works on its folder.
pub(super) struct Process {
    guard: Child,
    /// Its end is the order to stop.
    pipe: ChildStdin,
}

impl Process {
    pub(super) fn start(config: &Config) -> Result<Self, Error> {
        let mut command = shell(config);
        command.arg(config.programs.join("postgres")).arg("-D").arg(config.data());
        for (name, value) in settings(config).into_iter().chain(archive::settings(config)?) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        Ok(Self::spawn(command)?)
    }

    fn spawn(mut command: Command) -> std::io::Result<Self> {
        let mut guard = command.stdin(Stdio::piped()).spawn()?;
        let pipe = guard.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        Ok(Self { guard, pipe })
    }

    /// Whether it has ended.
    pub(super) fn try_ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.guard.try_wait()
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.guard.wait().await
    }

    /// Stops it so that it has nothing to recover when it starts again.
    pub(super) async fn stop(self) -> std::io::Result<()> {
        let Self { mut guard, pipe } = self;
        drop(pipe);
        if tokio::time::timeout(FAST, guard.wait()).await.is_err() {
            tracing::warn!("PostgreSQL does not stop in time: it goes on stopping without us");
            guard.start_kill()?;
            guard.wait().await?;
        }
        Ok(())
    }
}

/// A shell with the server's user, which runs its arguments.
fn shell(config: &Config) -> Command {
    let mut command = Command::new("/bin/sh");
    // A group of its own: who signals ours means us.
    command.args(["-c", GUARD, "sh"]).current_dir("/").process_group(0);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    if let Some((user, group)) = config.user {
        command.uid(user).gid(group);
    }
    command
}

fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let folder = &config.folder;
    let mut settings = vec![
        ("hba_file", folder.join("access.conf").into_string()),
        ("ident_file", folder.join("users.conf").into_string()),
        ("unix_socket_directories", config.run().into_string()),
        ("listen_addresses", if config.loopback { "127.0.0.1".to_owned() } else { String::new() }),
        ("port", config.port.to_string()),
        ("max_connections", config.max_connections.to_string()),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("wal_level", "replica".to_owned()),
        ("max_wal_senders", "16".to_owned()),
        ("max_replication_slots", "16".to_owned()),
        ("hot_standby", "on".to_owned()),
        // A copy that stays away must not fill the disk of the primary: it is made anew.
        ("max_slot_wal_keep_size", "4GB".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("timezone", "UTC".to_owned()),
    ];
    if let Some(primary) = config.following() {
        settings.push(("primary_conninfo", config.follows(&primary)));
        settings.push(("primary_slot_name", primary.name));
    }
    if config.sites.is_some() {
        settings.extend(
            [
                // Sites look after one another by the second, and so do their databases.
                ("wal_sender_timeout", "5s"),
                ("wal_receiver_timeout", "5s"),
                ("wal_receiver_status_interval", "1s"),
                ("wal_retrieve_retry_interval", "500ms"),
                // A primary of before finds the point where it went its own way.
                ("wal_keep_size", "512MB"),
            ]
            .map(|(name, value)| (name, value.to_owned())),
        );
    }
    settings
}

/// The server that a keeper before us had started on this folder and that goes on stopping without it. What is done to its files meanwhile goes wrong.
pub(super) fn left(config: &Config) -> Option<u32> {
    let data = config.data();
    let file = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid: u32 = file.lines().next()?.trim().parse().ok()?;
    // The number may be somebody else's by now.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    line.split(|byte| *byte == 0).any(|word| word == data.as_str().as_bytes()).then_some(pid)
}

/// A folder that is to be made anew.
async fn remove(path: &Utf8Path) -> Result<(), Error> {
    match tokio::fs::remove_dir_all(path).await {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Folder { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Copies what the primary has into a folder beside; [`take_copy`] puts it into its place.
pub(super) async fn copy_primary(config: &Config, primary: &Primary) -> Result<(), Error> {
    config.write_files()?;
    let beside = config.folder.join("data.new");
    // What an earlier try has left is not whole.
    remove(&beside).await?;
    let mut command = shell(config);
    command.arg(config.programs.join("pg_basebackup"));
    command.arg("-D").arg(&beside).arg("-d").arg(config.follows(primary));
    command.args(["-w", "-X", "stream", "-c", "fast", "-S", &primary.name]);
    // What it has to say goes to our log.
    let ended = Process::spawn(command)?.ended().await?;
    if !ended.success() {
        return Err(Error::Copy(format!("pg_basebackup ended with {ended}")));
    }
    // A server that finds this file follows.
    config.put("data.new/standby.signal", "")
}

/// Puts what [`copy_primary`] has made into the place of what is there.
pub(super) async fn take_copy(config: &Config) -> Result<(), Error> {
    let data = config.data();
    remove(&data).await?;
    tokio::fs::rename(config.folder.join("data.new"), &data)
        .await
        .map_err(|source| Error::Folder { path: data.clone(), source })
}

/// Takes back what the server here did after it went its own way, so that it can follow the one that is primary now. What it says is logged.
pub(super) async fn rewind(config: &Config, primary: &Primary) -> Result<bool, Error> {
    let mut command = shell(config);
    command.arg(config.programs.join("pg_rewind"));
    command.arg("-D").arg(config.data());
    command.arg(format!("--source-server={} dbname=postgres connect_timeout=10", config.follows(primary)));
    let ended = Process::spawn(command)?.ended().await?;
    if !ended.success() {
        tracing::warn!(%ended, "pg_rewind could not do it");
        return Ok(false);
    }
    config.put("data/standby.signal", "").map(|()| true)
}
