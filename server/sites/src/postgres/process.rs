//! PostgreSQL as a child process of a shell. The shell stops it when this process ends, even by SIGKILL.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use camino::Utf8Path;
use tokio::process::{Child, ChildStdin, Command};

use super::config::Primary;
use super::{Config, Error, archive};

/// At the end of standard input the shell requests a fast shutdown; when the server exits, so does the shell.
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

/// Timeout of a fast shutdown, which flushes to disk. Shorter than the supervisor's own stop timeout.
const FAST: Duration = Duration::from_secs(45);
/// Timeout of a copy of the primary: a terabyte by a slow connection between sites.
const COPY_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Timeout of a rewind, which transfers what was changed since the divergence.
const REWIND_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// A running server, or a tool such as `pg_basebackup` that works on its folder.
pub(super) struct Process {
    guard: Child,
    /// Closing it makes the shell stop the server.
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

    /// Waits for the end of a tool, and stops it after a timeout.
    async fn ended_within(mut self, tool: &str, within: Duration) -> Result<ExitStatus, Error> {
        match tokio::time::timeout(within, self.ended()).await {
            Ok(ended) => Ok(ended?),
            Err(_) => {
                self.stop().await?;
                Err(Error::Copy(format!("{tool} did not end within {} s", within.as_secs())))
            }
        }
    }

    /// Stops it cleanly, so that the next start needs no recovery.
    pub(super) async fn stop(self) -> std::io::Result<()> {
        let Self { mut guard, pipe } = self;
        drop(pipe);
        if tokio::time::timeout(FAST, guard.wait()).await.is_err() {
            tracing::warn!("PostgreSQL did not stop in time; the shutdown continues in the background");
            guard.start_kill()?;
            guard.wait().await?;
        }
        Ok(())
    }
}

/// A shell that runs its arguments as the server's user.
fn shell(config: &Config) -> Command {
    let mut command = Command::new("/bin/sh");
    // A separate process group: signals to our group must not reach the server.
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
        // An absent replica must not fill the primary's disk: it is recreated instead.
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
                // Heartbeats between sites take seconds, so replication timeouts match.
                ("wal_sender_timeout", "5s"),
                ("wal_receiver_timeout", "5s"),
                ("wal_receiver_status_interval", "1s"),
                ("wal_retrieve_retry_interval", "500ms"),
                // A former primary needs this WAL to find the point of divergence.
                ("wal_keep_size", "512MB"),
            ]
            .map(|(name, value)| (name, value.to_owned())),
        );
    }
    settings
}

/// The PID of a server that an earlier supervisor started on this directory and that is still stopping. Its files must
/// not be touched meanwhile.
pub(super) fn left(config: &Config) -> Option<u32> {
    let data = config.data();
    let file = String::from_utf8(config.read_data(&[], "postmaster.pid", 4 << 10).ok()?).ok()?;
    let pid: u32 = file.lines().next()?.trim().parse().ok()?;
    // The PID may belong to another process by now.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    line.split(|byte| *byte == 0).any(|word| word == data.as_str().as_bytes()).then_some(pid)
}

/// Removes a directory that is to be recreated.
async fn remove(path: &Utf8Path) -> Result<(), Error> {
    match tokio::fs::remove_dir_all(path).await {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Folder { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Copies the primary's data into a directory beside; [`take_copy`] moves it into place.
pub(super) async fn copy_primary(config: &Config, primary: &Primary) -> Result<(), Error> {
    config.write_files()?;
    let beside = config.folder.join("data.new");
    // A copy left by an earlier attempt is incomplete.
    remove(&beside).await?;
    let mut command = shell(config);
    command.arg(config.programs.join("pg_basebackup"));
    command.arg("-D").arg(&beside).arg("-d").arg(config.follows(primary));
    command.args(["-w", "-X", "stream", "-c", "fast", "-S", &primary.name]);
    // Its output goes to our log.
    let ended = Process::spawn(command)?.ended_within("pg_basebackup", COPY_TIMEOUT).await?;
    if !ended.success() {
        return Err(Error::Copy(format!("pg_basebackup ended with {ended}")));
    }
    config.put_standby_signal("data.new")
}

/// Replaces the data directory by the result of [`copy_primary`].
pub(super) async fn take_copy(config: &Config) -> Result<(), Error> {
    let data = config.data();
    remove(&data).await?;
    tokio::fs::rename(config.folder.join("data.new"), &data)
        .await
        .map_err(|source| Error::Folder { path: data.clone(), source })
}

/// Rewinds the diverged timeline of this server by `pg_rewind`, so that it can follow the current primary. The output
/// is logged.
pub(super) async fn rewind(config: &Config, primary: &Primary) -> Result<bool, Error> {
    let mut command = shell(config);
    command.arg(config.programs.join("pg_rewind"));
    command.arg("-D").arg(config.data());
    command.arg(format!("--source-server={} dbname=postgres connect_timeout=10", config.follows(primary)));
    let ended = Process::spawn(command)?.ended_within("pg_rewind", REWIND_TIMEOUT).await?;
    if !ended.success() {
        tracing::warn!(%ended, "pg_rewind failed");
        return Ok(false);
    }
    config.put_standby_signal("data").map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tool_that_does_not_end_is_stopped() {
        // It ends with its input, as the shell does.
        let ended = Process::spawn(Command::new("cat")).unwrap().ended_within("pg_basebackup", Duration::ZERO).await;
        assert_eq!(ended.unwrap_err().to_string(), "copy the primary: pg_basebackup did not end within 0 s");
    }
}
