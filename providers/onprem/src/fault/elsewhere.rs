//! Reverts faults of programs that run on other machines: starts this program with other arguments until it succeeds.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use textnlp_keys::files;

use crate::supervise::{clean_environment, output};

/// Pause between two starts. Longer than [`START_TIMEOUT`], so that one process runs at a time.
const RESTART_INTERVAL: Duration = Duration::from_secs(60);
/// Timeout of one start.
pub const START_TIMEOUT: Duration = Duration::from_secs(45);
/// Makes the command only check whether it could revert the fault.
const CHECK_ONLY_FLAG: &str = "--look";

/// How the command is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevertCommand {
    /// The arguments.
    pub arguments: Vec<String>,
    /// Variables with the location of credentials, never a credential itself.
    pub variables: BTreeMap<String, String>,
}

impl RevertCommand {
    /// Starts the command without waiting, unless it was started recently; returns whether it did. Its log is next to
    /// the fault's file. The command removes that file when the fault is reverted.
    pub(super) fn begin(&self, program: &Utf8Path, folder: &Utf8Path, id: &str) -> io::Result<bool> {
        let path = folder.join(format!("{id}.log"));
        let begun = std::fs::metadata(&path).and_then(|log| log.modified());
        if begun.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|since| since < RESTART_INTERVAL)) {
            return Ok(false);
        }
        files::make_folder(folder)?;
        output::keep_bounded(&path)?;
        let log = output::open(&path)?;
        // Updates the time also when nothing is written.
        log.set_modified(SystemTime::now())?;
        let errors = log.try_clone()?;
        let mut command = self.command(program, folder);
        command.stdout(log).stderr(errors);
        tokio::process::Command::from(command).spawn().map(|_| true)
    }

    /// Runs the check of the command with the recorded variables and no others.
    pub(super) async fn rehearse(&self, program: &Utf8Path, folder: &Utf8Path) -> Result<(), String> {
        let mut command = self.command(program, folder);
        command.arg(CHECK_ONLY_FLAG).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = tokio::process::Command::from(command).kill_on_drop(true).output();
        let result = match tokio::time::timeout(START_TIMEOUT, run).await {
            Ok(result) => result.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("it does not end within {} s", START_TIMEOUT.as_secs())),
        };
        match result.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&result.stderr).trim().to_owned()),
        }
    }

    fn command(&self, program: &Utf8Path, folder: &Utf8Path) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.args(&self.arguments).env_clear().envs(clean_environment()).envs(&self.variables);
        command.current_dir(folder).stdin(Stdio::null());
        command
    }
}
