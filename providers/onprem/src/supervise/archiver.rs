//! The WAL archiver of a PostgreSQL: the command that encrypts and stores segments, kept running while the backup order
//! asks for it. When it fails, the database continues and archives the backlog later.

use std::process::Stdio;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use textnlp_keys::{SiteFolder, files};
use textnlp_provider::component::Backup;
use tokio::process::Child;

use super::background::{Complaint, own_program};
use super::output::{self, Notes};
use crate::names::{BACKUP_FILE, POSTGRES_HOME};

/// Pause between two starts.
const RESTART_INTERVAL: Duration = Duration::from_secs(5);
/// A process that ran this long counts as healthy: if it ends again, that is logged again.
const SETTLED: Duration = Duration::from_secs(60);
const LOG: &str = "archive";

/// The command that archives segments.
pub(super) struct Archiver {
    folder: SiteFolder,
    /// The process, with the order that it was started with.
    running: Option<(Child, Vec<u8>)>,
    began: Option<Instant>,
    /// The last complaint, so that it is logged once.
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

    /// Checks whether it runs and whether it should.
    pub(super) fn look(&mut self, now: Instant, notes: &mut Notes) {
        let order = files::read_bounded(&self.folder.join(BACKUP_FILE), files::TEXT_MAX).unwrap_or_default();
        let home = self.folder.join(POSTGRES_HOME).canonicalize_utf8().ok();
        // The schedule logs a faulty order.
        let is_wanted =
            serde_yaml::from_slice::<Backup>(&order).is_ok_and(|order| order.point_in_time_seconds.is_some());
        let Some(home) = home.filter(|_| is_wanted) else {
            // Dropping it ends the process.
            self.running = None;
            return;
        };
        let log = self.folder.log(LOG);
        if let Some((child, running_order)) = &mut self.running {
            match child.try_wait() {
                Ok(None) if *running_order == order => {
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
        if self.began.is_some_and(|at| now.duration_since(at) < RESTART_INTERVAL) {
            return;
        }
        self.began = Some(now);
        let _ = output::keep_bounded(&log);
        match self.start(&home, &log) {
            Ok(child) => self.running = Some((child, order)),
            Err(error) => self.complaint.say(format!("it cannot be started: {error}"), notes),
        }
    }

    /// Starts this program itself. It ends with the supervisor, because its standard input closes then.
    fn start(&self, home: &Utf8Path, log: &Utf8Path) -> std::io::Result<Child> {
        own_program(&self.folder, log)?
            .args(["backup", "archive", "--folder", self.folder.state().as_str()])
            .args(["--order", self.folder.join(BACKUP_FILE).as_str()])
            .args(["--postgres", home.as_str()])
            .stdin(Stdio::piped())
            .spawn()
    }
}
