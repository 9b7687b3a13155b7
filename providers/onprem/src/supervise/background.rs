//! Helper commands of this program beside the units: backups, WAL archiving, alerts. When they fail, the units
//! continue.

use std::process::Stdio;

use camino::Utf8Path;
use textnlp_keys::SiteFolder;
use tokio::process::Command;

use super::environment::clean_environment;
use super::output::{self, Notes};

/// This program itself, without arguments yet. It runs in the site's folder, reads nothing, writes to `log`, and ends
/// with the supervisor.
pub(super) fn own_program(folder: &SiteFolder, log: &Utf8Path) -> std::io::Result<Command> {
    let log = output::open(log)?;
    // `/proc/self/exe`, because the file may have been replaced or removed since this supervisor started.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("textnlp-deploy")
        .env_clear()
        .envs(clean_environment())
        .current_dir(folder.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

/// The last complaint about such a command, so that it is logged once.
pub(super) struct Complaint {
    about: &'static str,
    said: Option<String>,
}

impl Complaint {
    pub(super) fn about(about: &'static str) -> Self {
        Self { about, said: None }
    }

    pub(super) fn say(&mut self, why: String, notes: &mut Notes) {
        if self.said.as_ref() != Some(&why) {
            notes.say(&format!("{}: {why}", self.about));
        }
        self.said = Some(why);
    }

    /// The problem is over: it is logged again when it returns.
    pub(super) fn end(&mut self) {
        self.said = None;
    }
}
