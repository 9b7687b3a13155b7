//! `doctor`: checks everything that this program needs, and suggests a fix for each problem. Read-only.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;

use camino::Utf8Path;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::plan::Facts;
use textnlp_orchestrator::run::{self, RunOptions};
use textnlp_orchestrator::state::{Holder, State, check};
use textnlp_orchestrator::status::{self, ResourceHealth};
use textnlp_provider::{Observed, ResourceId, error_chain};
use textnlp_service::backup::backup_status;

use super::down::lost_state;
use crate::clouds;
use crate::deployment::{self, Deployment};
use crate::report::{Console, Exit, Failure, Success, size};
use crate::session::{ChosenEnvironment, Session};

/// Free bytes below which a check fails. A journal, a log and a database still fit.
const DISK_LOW: u64 = 256 << 20;
/// Free bytes below which a check warns.
const DISK_SOME: u64 = 2 << 30;
/// Remaining validity below which a check warns. Certificates are renewed long before.
const CERTIFICATE_LOW: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Tolerated clock difference. Machines with the same time servers differ by less.
const CLOCK: SignedDuration = SignedDuration::from_mins(1);

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckResult {
    Well,
    Warning,
    Problem,
}

/// One check.
#[derive(Debug, Serialize)]
struct CheckLine {
    name: &'static str,
    mark: CheckResult,
    says: String,
    fix: Option<String>,
}

struct Doctor<'a> {
    session: &'a Session,
    looked: Vec<CheckLine>,
}

impl Doctor<'_> {
    fn well(&mut self, name: &'static str, says: impl Into<String>) {
        self.looked.push(CheckLine { name, mark: CheckResult::Well, says: says.into(), fix: None });
    }

    fn warning(&mut self, name: &'static str, says: impl Into<String>, fix: impl Into<String>) {
        self.looked.push(CheckLine { name, mark: CheckResult::Warning, says: says.into(), fix: Some(fix.into()) });
    }

    fn problem(&mut self, name: &'static str, says: impl Into<String>, fix: impl Into<String>) {
        self.looked.push(CheckLine { name, mark: CheckResult::Problem, says: says.into(), fix: Some(fix.into()) });
    }
}

/// `doctor`: exits with 1 if a check fails.
pub async fn doctor(session: &Session, console: Console) -> Result<Success, Failure> {
    let mut doctor = Doctor { session, looked: Vec::new() };
    doctor.well("program", format!("textnlp-deploy {}", env!("CARGO_PKG_VERSION")));
    doctor.clock();
    let mut name = None;
    match session.load(console) {
        Err(failure) if failure.code == "no_environment" => {
            doctor.well("environment", "none is up here; to check one: --env NAME");
            if let Ok(root) = session.state_root() {
                doctor.disk(&root);
            }
        }
        Err(failure) => {
            let causes: Vec<String> = failure.error.chain().map(ToString::to_string).collect();
            doctor.problem("environment", causes.join(": "), failure.hint.unwrap_or_default());
            if let Ok(root) = session.state_root() {
                doctor.disk(&root);
            }
        }
        Ok(chosen) => {
            name = Some(chosen.scope.name.clone());
            doctor.environment(chosen).await?;
        }
    }
    let looked = doctor.looked;
    let mut text = String::new();
    for one in &looked {
        let mark = match one.mark {
            CheckResult::Well => console.paint("32", "✓"),
            CheckResult::Warning => console.paint("33", "!"),
            CheckResult::Problem => console.paint("31", "✗"),
        };
        let _ = writeln!(text, "{mark} {:<12} {}", one.name, one.says.replace('\n', "\n               "));
        for fix in one.fix.iter().flat_map(|fix| fix.lines()) {
            let _ = writeln!(text, "               → {fix}");
        }
    }
    let count = |mark: CheckResult| looked.iter().filter(|one| one.mark == mark).count();
    let (problems, warnings) = (count(CheckResult::Problem), count(CheckResult::Warning));
    let _ = match (problems, warnings) {
        (0, 0) => write!(text, "No problems found."),
        (0, n) => write!(text, "No problems; {n} {}.", if n == 1 { "warning" } else { "warnings" }),
        (n, _) => write!(text, "{n} {} to fix.", if n == 1 { "problem" } else { "problems" }),
    };
    let document = json!({ "environment": name, "checks": looked, "problems": problems, "warnings": warnings });
    let success = Success::new(text, document);
    Ok(if problems == 0 { success } else { success.exit(Exit::Failed) })
}

impl Doctor<'_> {
    async fn environment(&mut self, chosen: ChosenEnvironment) -> Result<(), Failure> {
        let scope = chosen.scope.clone();
        let refusals: Vec<String> = chosen.loaded.report.refusals().map(ToString::to_string).collect();
        match refusals.is_empty() {
            true => self.well("environment", format!("{} is valid", scope.name)),
            false => self.problem("environment", refusals.join("\n"), scope.again.check(scope.name.as_str())),
        }
        self.disk(&scope.folder);
        if chosen.loaded.environment.runs_here() && rustix::process::geteuid().is_root() {
            let fix = "set `prerequisites.user`: docs/guide/security.md, \"Users and privileges\"";
            self.warning("user", "the programs of this environment run as root", fix);
        }
        // Otherwise the environment would not have been loaded.
        self.well("access", "the state belongs to you, and no other user can change it");
        self.secrets(&scope.folder);
        let deployment = match deployment::recorded(self.session, chosen).await {
            Ok(deployment) => deployment,
            Err(failure) => {
                self.problem("state", format!("{:#}", failure.error), failure.hint.unwrap_or_default());
                return Ok(());
            }
        };
        let state = match deployment.state().await {
            Ok(state) => state,
            Err(failure) => {
                self.problem("state", format!("{:#}", failure.error), scope.command("state repair"));
                return Ok(());
            }
        };
        if let Some(lost) = lost_state(&state, &scope) {
            self.problem("state", format!("{:#}", lost.error), lost.hint.unwrap_or_default());
            return Ok(());
        }
        if state.is_new() {
            let place = state.place();
            self.damage(&deployment, format!("nothing is deployed; the state would be in {place}")).await;
            return self.would_go_up(deployment).await;
        }
        self.state(&deployment, &state).await;
        let options = RunOptions::UP;
        match run::read(&deployment.run(&DiscardEvents), &state, options).await {
            Err(error) => self.problem("providers", error.to_string(), scope.command("status")),
            Ok(facts) => self.facts(&deployment, &state, &facts).await,
        }
        let saved = backup_status::warning(&scope, state.lineage(), &deployment.chosen.loaded.environment).await;
        match saved.lines.is_empty() {
            true => self.well("backup", "up to date"),
            false => self.warning("backup", saved.lines.join("\n"), scope.command("backup create")),
        }
        Ok(())
    }

    fn clock(&mut self) {
        // A clock that was never set starts in 1970, which would affect certificates and journals.
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

    fn disk(&mut self, folder: &Utf8Path) {
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
    fn secrets(&mut self, folder: &Utf8Path) {
        let mut open = Vec::new();
        let top = folder.join(clouds::SECRETS);
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

    async fn damage(&mut self, deployment: &Deployment, intact: String) {
        let scope = &deployment.chosen.scope;
        match check(&*deployment.store, &scope.name).await {
            Ok(found) if found.is_empty() => self.well("state", intact),
            Ok(found) => {
                let says: Vec<String> = found.iter().map(|one| format!("{}: {}", one.what, one.because)).collect();
                self.problem("state", says.join("\n"), scope.command("state repair"));
            }
            Err(error) => self.problem("state", error_chain(&error), error.hint().unwrap_or_default()),
        }
    }

    async fn state(&mut self, deployment: &Deployment, state: &State) {
        let scope = &deployment.chosen.scope;
        self.damage(deployment, format!("intact, in {}", state.place())).await;
        match deployment.store.holder().await {
            Ok(None) => self.well("lock", "free"),
            Ok(Some(Holder { by, pid, host, since, .. })) => {
                let says = format!("held by {by} with process {pid} on {host} since {since:.0}");
                self.warning("lock", says, "the lock is released when that run ends, also when it is killed");
            }
            Err(error) => self.problem("lock", error_chain(&error), error.hint().unwrap_or_default()),
        }
        match state.held().await {
            Ok(None) => {}
            Ok(Some(hold)) => {
                let says = format!("frozen by {} since {:.0}: {}", hold.by, hold.since, hold.why);
                self.warning("hold", says, scope.command("hold --release"));
            }
            Err(error) => self.problem("hold", error_chain(&error), error.hint().unwrap_or_default()),
        }
        let mut newest = None;
        for site in state.sites() {
            let last = state.history(site).await.ok().and_then(|records| records.last().map(|record| record.at));
            newest = newest.max(last);
        }
        if let Some(newest) = newest.filter(|newest| newest.duration_since(Timestamp::now()) > CLOCK) {
            let says = format!("the newest record is of {newest:.0}, which is in the future: a clock was set back");
            self.warning("clock", says, "set it: timedatectl set-ntp true");
        }
    }

    async fn facts(&mut self, deployment: &Deployment, state: &State, facts: &Facts) {
        let scope = &deployment.chosen.scope;
        let (up, explain) = (scope.last_up(), |id: &ResourceId| scope.command(&format!("explain {id}")));
        match status::unfinished(state).await {
            Ok(unfinished) if unfinished.is_empty() => {}
            Ok(unfinished) => {
                let says: Vec<String> = unfinished.iter().map(ToString::to_string).collect();
                match deployment.store.holder().await {
                    Ok(Some(_)) => self.warning("run", "a run is in progress", scope.command("status")),
                    _ => self.problem("run", says.join("\n"), scope.completes(unfinished[0].purpose)),
                }
            }
            Err(error) => self.problem("run", error_chain(&error), error.hint().unwrap_or_default()),
        }
        // The runs are a check of their own.
        let now = status::status(facts, state.places(), Vec::new());
        let bad: Vec<_> = now.resources.iter().filter(|one| one.standing != ResourceHealth::Ready).collect();
        match bad.first() {
            None if now.resources.is_empty() => self.well("resources", "none is recorded: nothing is deployed"),
            None => self.well("resources", format!("{} exist and are healthy", now.resources.len())),
            Some(first) => {
                let says: Vec<String> = bad.iter().map(|one| format!("{}: {}", one.resource, one.standing)).collect();
                self.problem("resources", says.join("\n"), format!("{up}\n{}", explain(&first.resource)));
            }
        }
        if !now.open.is_empty() {
            let says: Vec<String> =
                now.open.iter().map(|one| format!("{} of {} is open", one.verb, one.resource)).collect();
            self.warning("operations", says.join("\n"), format!("the next run finishes them: {up}"));
        }
        for site in deployment.sites.keys().filter(|site| !state.is_empty(site)) {
            match clouds::supervise::status(&scope.folder.join("sites").join(site.as_str())).await {
                Ok(Some(keeper)) => {
                    let says = format!("`{site}`: process {}, version {}", keeper.pid, keeper.version);
                    let failing =
                        keeper.units.iter().filter(|unit| unit.failures > 0).map(|unit| {
                            format!("{} exited {} times since it was last ready", unit.name, unit.failures)
                        });
                    let rejected = keeper.rejected.iter().map(|unit| format!("unit file {}: {}", unit.name, unit.why));
                    let trouble: Vec<String> = rejected.chain(failing).collect();
                    if !trouble.is_empty() {
                        self.problem("supervisor", trouble.join("\n"), scope.command("logs"));
                    } else if keeper.version.split('/').next() != Some(env!("CARGO_PKG_VERSION")) {
                        self.warning("supervisor", says, format!("the next `up` replaces it: {up}"));
                    } else {
                        self.well("supervisor", says);
                    }
                }
                Ok(None) => self.problem(
                    "supervisor",
                    format!("`{site}`: not running; a process that exits is not restarted"),
                    up.clone(),
                ),
                Err(error) => {
                    self.problem("supervisor", format!("`{site}`: {}", error_chain(&error)), scope.command("logs"));
                }
            }
        }
        self.certificates(facts, &up);
    }

    fn certificates(&mut self, facts: &Facts, up: &str) {
        let mut soonest: Option<(Timestamp, &ResourceId)> = None;
        for (id, seen) in facts.sites.values().flat_map(|site| &site.observed) {
            let Observed::Present(object) = seen else { continue };
            let ends = object.outputs.get("not_after").and_then(|at| at.as_str()?.parse::<Timestamp>().ok());
            if let Some(ends) = ends.filter(|ends| soonest.is_none_or(|(first, _)| *ends < first)) {
                soonest = Some((ends, id));
            }
        }
        let Some((ends, id)) = soonest else { return };
        let left = ends.duration_since(Timestamp::now());
        let says = format!("`{id}` expires at {ends:.0}");
        if left.is_negative() {
            self.problem("certificates", says, up.to_owned());
        } else if left < CERTIFICATE_LOW {
            self.warning("certificates", says, format!("the supervisor renews it while it runs; otherwise: {up}"));
        } else {
            self.well("certificates", format!("next to expire: {says}"));
        }
    }

    /// The preflight of `up`: ports, memory and programs.
    async fn would_go_up(&mut self, deployment: Deployment) -> Result<(), Failure> {
        let quiet = Console::new(self.session.global.output, true);
        let wanted = match deployment::wanted(self.session, deployment.chosen, quiet).await {
            Ok(wanted) => wanted,
            Err(failure) => {
                self.problem("preflight", format!("{:#}", failure.error), failure.hint.unwrap_or_default());
                return Ok(());
            }
        };
        let mut found = Vec::new();
        for site in wanted.sites.values() {
            found.extend(site.provider.preflight(&site.wanted).await?);
        }
        if found.iter().all(|problem| problem.note) {
            self.well("preflight", "ports are free, and all other checks of `up` pass");
        }
        for problem in found.iter().filter(|problem| !problem.note) {
            let says = format!("{}: {}", problem.place, problem.cause);
            match problem.warning {
                true => self.warning("preflight", says, &problem.fix),
                false => self.problem("preflight", says, &problem.fix),
            }
        }
        Ok(())
    }
}
