//! What takes a fault back that was done to programs on no machine of ours: this program with other arguments, which goes on until it has.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::supervise::{clean_environment, output};

/// Between two beginnings: longer than one of them may take, so that there is one at a time.
const AGAIN: Duration = Duration::from_secs(60);
/// How long one may take.
pub const WITHIN: Duration = Duration::from_secs(45);
/// What has it only ask whether it could do its work.
const LOOK: &str = "--look";

/// How it is begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elsewhere {
    /// The arguments.
    pub arguments: Vec<String>,
    /// Variables that say where credentials are; none that is one.
    pub variables: BTreeMap<String, String>,
}

impl Elsewhere {
    /// Begins it unless that was a moment ago, and does not wait; says whether it has. It keeps a log beside the file of the fault, which it
    /// removes in the end.
    pub(super) fn begin(&self, program: &Utf8Path, folder: &Utf8Path, id: &str) -> io::Result<bool> {
        let path = folder.join(format!("{id}.log"));
        let begun = std::fs::metadata(&path).and_then(|log| log.modified());
        if begun.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|since| since < AGAIN)) {
            return Ok(false);
        }
        files::make_folder(folder)?;
        output::keep_bounded(&path)?;
        let log = output::open(&path)?;
        // Also where nothing is written to it.
        log.set_modified(SystemTime::now())?;
        let errors = log.try_clone()?;
        let mut command = self.command(program, folder);
        command.stdout(log).stderr(errors);
        tokio::process::Command::from(command).spawn().map(|_| true)
    }

    /// Has it ask, as it would be begun, whether it could do its work: with the variables that are written down, and no others.
    pub(super) async fn rehearse(&self, program: &Utf8Path, folder: &Utf8Path) -> Result<(), String> {
        let mut command = self.command(program, folder);
        command.arg(LOOK).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = tokio::process::Command::from(command).kill_on_drop(true).output();
        let said = match tokio::time::timeout(WITHIN, run).await {
            Ok(said) => said.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("it does not end within {} s", WITHIN.as_secs())),
        };
        match said.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&said.stderr).trim().to_owned()),
        }
    }

    fn command(&self, program: &Utf8Path, folder: &Utf8Path) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.args(&self.arguments).env_clear().envs(clean_environment()).envs(&self.variables);
        command.current_dir(folder).stdin(Stdio::null());
        command
    }
}
