//! Commands of our own program that run beside the units: copies, the archive of a log, messages. They may fail; the programs go on.

use std::process::Stdio;

use camino::Utf8Path;
use tokio::process::Command;

use super::child::clean_environment;
use super::output::{self, Notes};
use crate::layout::SiteFolder;

/// This very program, to be given arguments: it works in the site's folder, reads nothing, writes to `log`, and ends with us.
pub(super) fn ourselves(folder: &SiteFolder, log: &Utf8Path) -> std::io::Result<Command> {
    let log = output::open(log)?;
    // Not by path: the file may have been replaced or removed since this supervisor began.
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

/// What was last said against such a command, so that it is said once.
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

    /// It is over: the same is said again when it comes again.
    pub(super) fn end(&mut self) {
        self.said = None;
    }
}
