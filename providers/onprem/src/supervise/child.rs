//! The last steps before a program's `exec`: its lock, its pid file, its folder, its environment.
//!
//! These steps run in the child itself. If either process dies meanwhile, there is no lock without a process and no
//! process without a lock.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use textnlp_keys::{SiteFolder, files};

use super::environment::clean_environment;
use super::error::Error;
use super::unit::Unit;
use super::{privileges, sockets};
use crate::lock;
use crate::verified::VerifiedProgram;

/// The pid file of a child: enough for a later supervisor to adopt it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    /// See [`lock::started`].
    pub(crate) started: u64,
    pub(crate) operation: u64,
    pub(crate) lineage: String,
    pub(crate) spec_digest: String,
    #[serde(default)]
    pub(crate) reload_digest: Option<String>,
}

impl Running {
    /// The pid file of the process that holds a unit's lock; `None` when it is missing or of another process.
    pub(crate) fn of_holder(folder: &SiteFolder, name: &str, holder: u32) -> Option<Self> {
        let bytes = files::read_bounded(&folder.pid(name), 64 << 10).ok()?;
        let running: Self = serde_json::from_slice(&bytes).ok()?;
        (running.pid == holder && lock::started(holder) == Some(running.started)).then_some(running)
    }

    pub(crate) fn write(&self, folder: &SiteFolder, name: &str) -> std::io::Result<()> {
        files::put(&folder.pid(name), &serde_json::to_vec(self).map_err(std::io::Error::other)?, 0o600)
    }
}

/// Replaces this process by the unit's program. Returns only on failure.
pub(super) fn become_child(folder: &SiteFolder, name: &str) -> Error {
    match prepare(folder, name) {
        Ok((mut command, _kept)) => Error::Exec { name: name.to_owned(), source: command.exec() },
        Err(error) => error,
    }
}

/// What must stay open until `exec`: the lock, and the program's file.
type OpenFiles = (std::os::fd::OwnedFd, Option<VerifiedProgram>);

fn prepare(folder: &SiteFolder, name: &str) -> Result<(Command, OpenFiles), Error> {
    let unit = Unit::read(folder, name).map_err(|why| Error::Unit { name: name.to_owned(), why })?;
    let fails = |source| Error::Exec { name: name.to_owned(), source };
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // A new session: terminal signals do not reach it, and its children can be signalled with it. It fails for a
    // process group leader, which needs no new one.
    let _ = rustix::process::setsid();
    let lock = lock::take(&folder.lock(name)).map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => Error::Double { name: name.to_owned() },
        _ => fails(source),
    })?;
    let pid = std::process::id();
    let running = Running {
        pid,
        started: lock::started(pid).ok_or_else(|| fails(std::io::ErrorKind::NotFound.into()))?,
        operation: unit.operation,
        lineage: unit.lineage.clone(),
        spec_digest: unit.spec_digest.clone(),
        reload_digest: unit.reload_digest.clone(),
    };
    running.write(folder, name).map_err(fails)?;
    if let Some(ready) = &unit.ready {
        // The socket of a killed predecessor: this process holds the lock, so no other process listens.
        files::remove_file(&ready.unix).map_err(fails)?;
    }
    let kept = lock::keep_over_exec(lock).map_err(fails)?;
    let handed = unit.keeps_sockets.as_ref().map(|_| {
        // Of this very process: it keeps its number over `exec`, and what its own children inherit is not for them.
        let mut handed = vec![(sockets::PROCESS, pid.to_string()), (sockets::LOCK, kept.as_raw_fd().to_string())];
        handed.extend(std::env::var(sockets::SOCKETS).ok().map(|numbers| (sockets::SOCKETS, numbers)));
        handed
    });
    // What lies in the site's folder was placed there with a recorded digest. Other programs belong to the system.
    let verified = match Utf8Path::new(&unit.argv[0]).strip_prefix(&unit.cwd) {
        Ok(relative) => Some(VerifiedProgram::of_site(folder, relative.as_str()).map_err(fails)?),
        Err(_) => None,
    };
    privileges::restrict(folder, &unit).map_err(fails)?;
    let mut command = verified.as_ref().map_or_else(|| Command::new(&unit.argv[0]), VerifiedProgram::command);
    command.arg0(&unit.argv[0]);
    command.args(&unit.argv[1..]).env_clear().envs(clean_environment()).envs(&unit.env);
    command.envs(handed.into_iter().flatten()).current_dir(&unit.cwd);
    Ok((command, (kept, verified)))
}
