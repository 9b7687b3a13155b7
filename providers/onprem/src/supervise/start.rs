//! Starts a supervisor that outlives its parent.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use camino::Utf8Path;
use textnlp_keys::{SiteFolder, files};

use super::environment::clean_environment;
use super::output;

/// Starts the supervisor of a site detached: its first act is a new session. Of two supervisors, the lock lets one run.
/// Returns when the process exists, before it is ready. Needs a tokio runtime.
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
    // tokio reaps it when it ends during the life of this process; no code waits for it.
    tokio::process::Command::from(command).spawn().map(drop)
}
