//! Results of checks of an environment, each with a fix: those of `doctor`, `health check` and `security audit`.

use std::os::unix::fs::PermissionsExt;

use camino::Utf8Path;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::{Observed, ResourceId, SiteName};

use crate::backup::backup_status::{self, BackupWarning};
use crate::security::Rule;
use crate::{Failure, Scope, size};

/// Free bytes below which a check fails. A journal, a log and a database still fit.
const DISK_LOW: u64 = 256 << 20;
/// Free bytes below which a check warns.
const DISK_SOME: u64 = 2 << 30;
/// Remaining validity below which a check warns. Certificates are renewed long before.
const CERTIFICATE_LOW: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The days before the end of a waiver, a drill or a key in which that is a warning.
pub(crate) const ENDS_SOON_DAYS: i64 = 14;
/// [`ENDS_SOON_DAYS`] as a duration.
pub(crate) const ENDS_SOON: SignedDuration = SignedDuration::from_hours(ENDS_SOON_DAYS * 24);

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// It passed.
    Well,
    /// It passed, and something should be done.
    Warning,
    /// It failed.
    Problem,
    /// It could not be measured: not in `doctor` and `health check`.
    Unknown,
}

impl CheckResult {
    /// Its name in the documents of `security audit` and `deps`.
    pub fn state(self) -> &'static str {
        match self {
            CheckResult::Well => "ok",
            CheckResult::Warning => "warning",
            CheckResult::Problem => "failed",
            CheckResult::Unknown => "unknown",
        }
    }
}

/// One check.
#[derive(Debug, Serialize)]
pub struct CheckLine {
    /// `None` where it is about all sites or this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// The rule, in an audit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// What was checked.
    pub name: String,
    /// The result.
    pub mark: CheckResult,
    /// The evidence.
    pub says: String,
    /// What to do.
    pub fix: Option<String>,
}

impl CheckLine {
    /// Its document in `security audit` and `compliance report`.
    pub fn document(&self) -> Value {
        let Self { site, rule, name, mark, says, fix } = self;
        let mut row = json!({ "name": name, "rule": rule, "state": mark.state(), "evidence": says, "fix": fix });
        if let Some(site) = site {
            row["site"] = json!(site);
        }
        row
    }
}

/// Checks in their order.
#[derive(Debug, Default)]
pub struct Checks {
    /// The site of the next checks.
    pub site: Option<SiteName>,
    /// The rule of the next checks, in an audit.
    pub rule: Option<Rule>,
    /// Those that were made.
    pub lines: Vec<CheckLine>,
}

impl Checks {
    fn add(&mut self, name: impl Into<String>, mark: CheckResult, says: impl Into<String>, fix: Option<String>) {
        self.lines.push(CheckLine {
            site: self.site.clone(),
            rule: self.rule,
            name: name.into(),
            mark,
            says: says.into(),
            fix,
        });
    }

    /// Adds one that passed.
    pub fn well(&mut self, name: impl Into<String>, says: impl Into<String>) {
        self.add(name, CheckResult::Well, says, None);
    }

    /// Adds a warning.
    pub fn warning(&mut self, name: impl Into<String>, says: impl Into<String>, fix: impl Into<String>) {
        self.add(name, CheckResult::Warning, says, Some(fix.into()));
    }

    /// Adds one that failed.
    pub fn problem(&mut self, name: impl Into<String>, says: impl Into<String>, fix: impl Into<String>) {
        self.add(name, CheckResult::Problem, says, Some(fix.into()));
    }

    /// Adds one that could not be measured.
    pub fn unknown(&mut self, name: impl Into<String>, says: impl Into<String>, fix: impl Into<String>) {
        self.add(name, CheckResult::Unknown, says, Some(fix.into()));
    }

    /// Adds one that failed with an error.
    pub fn failed(&mut self, name: &str, failure: Failure) {
        self.problem(name, format!("{:#}", failure.error), failure.hint.unwrap_or_default());
    }

    /// Adds each warning about backups with its own command, else what there is.
    pub fn backups(&mut self, saved: &backup_status::Warning) {
        const NAME: &str = "backup";
        for BackupWarning { cause, fix } in &saved.lines {
            self.warning(NAME, cause, fix);
        }
        if saved.lines.is_empty() {
            // Documents have the nanoseconds, which nobody reads here.
            let newest =
                saved.newest().map(|at| at.parse::<Timestamp>().map_or(at.to_owned(), |at| format!("{at:.0}")));
            let says = match (newest, saved.is_enabled()) {
                (Some(newest), true) => format!("the newest is of {newest}"),
                (Some(newest), false) => format!("the newest is of {newest}; `backup.enabled` is off"),
                (None, true) => "none was taken yet".to_owned(),
                (None, false) => "none is taken: `backup.enabled` is off".to_owned(),
            };
            self.well(NAME, says);
        }
    }

    /// Warns if the programs of an environment run as root.
    pub fn user(&mut self, environment: &Environment) {
        if environment.runs_here() && rustix::process::geteuid().is_root() {
            let fix = "set `prerequisites.user`: docs/guide/security.md, \"Users and privileges\"";
            self.warning("user", "the programs of this environment run as root", fix);
        }
    }

    /// Warns if an environment in production has no on-call contact. Alerts of other roles name that of `devops` too.
    pub fn contacts(&mut self, environment: &Environment) {
        let people = &environment.prerequisites.people;
        match people.contains_key("devops") {
            true => {
                let contacts = people.iter().map(|(role, contact)| format!("{role}: {contact}"));
                self.well("on-call contacts", contacts.collect::<Vec<_>>().join(", "));
            }
            false if environment.phase.is_production() && environment.runs_here() => {
                let fix = "write `prerequisites: { people: { devops: … } }`";
                self.warning("on-call contacts", "none is set for devops, so most alerts have no contact", fix);
            }
            false => {}
        }
    }

    /// A clock that was never set would affect certificates and journals.
    pub fn clock(&mut self) {
        // It starts in 1970.
        const BUILT: Timestamp = Timestamp::constant(1_767_225_600, 0);
        let now = Timestamp::now();
        match now < BUILT {
            true => self.problem(
                "clock",
                format!("it shows {now:.0}, before this program was built"),
                "set it: timedatectl set-ntp true",
            ),
            false => self.well("clock", format!("{now:.0}")),
        }
    }

    /// Free space where a folder is, or would be.
    pub fn disk(&mut self, folder: &Utf8Path) {
        let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or(folder);
        let (free, free_inodes) = match textnlp_files::filesystem(there) {
            Ok(found) => (found.free, found.free_inodes),
            Err(error) => {
                return self.problem(
                    "disk",
                    format!("{error}: {}", error.source),
                    "repair the disk, or choose another folder with --state-dir DIR",
                );
            }
        };
        let says = format!("{} free in {there}", size(free));
        // With another folder, what runs would be deployed a second time.
        let fix = if folder.join("sites").is_dir() {
            "free disk space"
        } else {
            "free disk space, or choose another folder with --state-dir DIR"
        };
        if free < DISK_LOW || free_inodes.is_some_and(|left| left < 1000) {
            self.problem("disk", says, fix);
        } else if free < DISK_SOME {
            self.warning("disk", says, fix);
        } else {
            self.well("disk", says);
        }
        let writable = rustix::fs::access(there.as_std_path(), rustix::fs::Access::WRITE_OK);
        if let Err(error) = writable {
            self.problem(
                "disk",
                format!("{there} is not writable: {error}"),
                "change its owner or permissions, or choose another folder with --state-dir DIR",
            );
        }
    }

    /// Secret files that other users can read are a failure.
    pub fn secrets(&mut self, scope: &Scope) {
        let mut open = Vec::new();
        let top = scope.folder.join(scope.platform.secrets_folder());
        // Other users cannot reach files in a folder without permissions for them.
        let closed = top.metadata().is_ok_and(|about| about.permissions().mode() & 0o077 == 0);
        let mut todo = if closed { Vec::new() } else { vec![top.clone()] };
        while let Some(path) = todo.pop() {
            let Ok(about) = path.symlink_metadata() else { continue };
            if about.permissions().mode() & 0o077 != 0 && !about.is_symlink() {
                open.push(path.to_string());
            }
            if about.is_dir() {
                todo.extend(path.read_dir_utf8().into_iter().flatten().flatten().map(|entry| entry.into_path()));
            }
        }
        match open.first() {
            Some(first) => self.problem(
                "secrets",
                format!("other users can read {} of them, such as {first}", open.len()),
                format!("chmod -R go= {}", top),
            ),
            None => self.well("secrets", "only the owner can read them"),
        }
    }

    /// The certificate that expires first. Returns whether there is one.
    pub fn certificates<'o>(
        &mut self,
        observed: impl IntoIterator<Item = &'o (ResourceId, Observed)>,
        up: &str,
    ) -> bool {
        let mut soonest: Option<(Timestamp, &ResourceId)> = None;
        for (id, seen) in observed {
            let Observed::Present(object) = seen else { continue };
            let ends = object.outputs.get("not_after").and_then(|at| at.as_str()?.parse::<Timestamp>().ok());
            if let Some(ends) = ends.filter(|ends| soonest.is_none_or(|(first, _)| *ends < first)) {
                soonest = Some((ends, id));
            }
        }
        let Some((ends, id)) = soonest else { return false };
        let left = ends.duration_since(Timestamp::now());
        let says = format!("`{id}` expires at {ends:.0}");
        if left.is_negative() {
            self.problem("certificates", says, up.to_owned());
        } else if left < CERTIFICATE_LOW {
            self.warning("certificates", says, format!("the supervisor renews it while it runs; otherwise: {up}"));
        } else {
            self.well("certificates", format!("next to expire: {says}"));
        }
        true
    }
}
