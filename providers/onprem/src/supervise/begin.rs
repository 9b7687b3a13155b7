//! Starting a supervisor, so that it outlives whoever started it.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use camino::Utf8Path;

use super::child::clean_environment;
use super::output;
use crate::files;
use crate::layout::SiteFolder;

/// Starts the supervisor of a site detached: it makes a session of its own as its first act. When two are started, the lock lets one
/// stay. Returns when the process was made, not when it works. Within a tokio runtime.
pub(crate) fn begin_detached(program: &Utf8Path, folder: &SiteFolder) -> std::io::Result<()> {
    for needed in ["run", "log", "units"] {
        files::make_folder(&folder.join(needed))?;
    }
    let log = output::open(&folder.log("supervisor"))?;
    let errors = log.try_clone()?;
    let mut command = std::process::Command::new(program);
    command
        .arg0("textnlp-supervise")
        .args(["supervise", "--folder", folder.root().as_str()])
        .env_clear()
        .envs(clean_environment())
        .current_dir(folder.root())
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    // tokio reaps it when it ends while we are still here; nobody waits for it.
    tokio::process::Command::from(command).spawn().map(drop)
}
