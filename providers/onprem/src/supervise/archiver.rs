//! Whoever takes the parts of a PostgreSQL's log: the command that seals them, kept running beside the programs while the order of the
//! copies asks for it. It may fail: the database goes on, and hands over what waits when it is back.

use std::process::Stdio;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use textnlp_provider::component::Backup;
use tokio::process::Child;

use super::beside::{Complaint, ourselves};
use super::output::{self, Notes};
use crate::files;
use crate::layout::SiteFolder;
use crate::lower::{BACKUP_FILE, POSTGRES_HOME};

/// Between two starts.
const AGAIN: Duration = Duration::from_secs(5);
/// What runs for so long is well: if it ends again, it is said again.
const SETTLED: Duration = Duration::from_secs(60);
const LOG: &str = "archive";

/// The command that takes parts.
pub(super) struct Archiver {
    folder: SiteFolder,
    /// It, with the order that it was begun with.
    running: Option<(Child, Vec<u8>)>,
    began: Option<Instant>,
    /// What was last said, so that it is said once.
    complaint: Complaint,
}

impl Archiver {
    pub(super) fn new(folder: &SiteFolder) -> Self {
        Self {
            folder: folder.clone(),
            running: None,
            began: None,
            complaint: Complaint::about("the archive of the log"),
        }
    }

    /// Looks whether it runs, and whether it should.
    pub(super) fn look(&mut self, now: Instant, notes: &mut Notes) {
        let order = files::read_bounded(&self.folder.join(BACKUP_FILE), files::TEXT_MAX).unwrap_or_default();
        let home = self.folder.join(POSTGRES_HOME).canonicalize_utf8().ok();
        // What is wrong with an order is said by the schedule.
        let is_wanted =
            serde_yaml::from_slice::<Backup>(&order).is_ok_and(|order| order.point_in_time_seconds.is_some());
        let Some(home) = home.filter(|_| is_wanted) else {
            // It ends with this.
            self.running = None;
            return;
        };
        let log = self.folder.log(LOG);
        if let Some((child, begun_with)) = &mut self.running {
            match child.try_wait() {
                Ok(None) if *begun_with == order => {
                    if self.began.is_some_and(|at| now.duration_since(at) > SETTLED) {
                        self.complaint.end();
                    }
                    return;
                }
                Ok(None) => {}
                Ok(Some(status)) => {
                    let why = format!("it ended ({status}): {}", output::tail(&log, 3));
                    self.complaint.say(why, notes);
                }
                Err(error) => self.complaint.say(error.to_string(), notes),
            }
            self.running = None;
        }
        if self.began.is_some_and(|at| now.duration_since(at) < AGAIN) {
            return;
        }
        self.began = Some(now);
        let _ = output::keep_bounded(&log);
        match self.start(&home, &log) {
            Ok(child) => self.running = Some((child, order)),
            Err(error) => self.complaint.say(format!("it cannot be started: {error}"), notes),
        }
    }

    /// The command is this very program, and ends with us however we end: its standard input does.
    fn start(&self, home: &Utf8Path, log: &Utf8Path) -> std::io::Result<Child> {
        ourselves(&self.folder, log)?
            .args(["backup", "archive", "--folder", self.folder.state().as_str()])
            .args(["--order", self.folder.join(BACKUP_FILE).as_str()])
            .args(["--postgres", home.as_str()])
            .stdin(Stdio::piped())
            .spawn()
    }
}
