//! What takes a fault back that was done to programs on no machine of ours: this program with other arguments, which goes on until it has.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::supervise::{clean_environment, output};

/// Between two beginnings: one that fails at once is not begun in a loop.
const AGAIN: Duration = Duration::from_secs(15);

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
    /// Begins it unless that was a moment ago, and does not wait. It keeps a log beside the file of the fault, which it removes in the end.
    pub(super) fn begin(&self, program: &Utf8Path, folder: &Utf8Path, id: &str) -> io::Result<()> {
        let path = folder.join(format!("{id}.log"));
        let begun = std::fs::metadata(&path).and_then(|log| log.modified());
        if begun.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|since| since < AGAIN)) {
            return Ok(());
        }
        files::make_folder(folder)?;
        let log = output::open(&path)?;
        // Also where nothing is written to it.
        log.set_modified(SystemTime::now())?;
        let errors = log.try_clone()?;
        let mut command = std::process::Command::new(program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(clean_environment())
            .envs(&self.variables)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        tokio::process::Command::from(command).spawn().map(drop)
    }
}
