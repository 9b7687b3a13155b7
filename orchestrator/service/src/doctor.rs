//! Checks of everything that an environment needs. Read-only.

use jiff::{SignedDuration, Timestamp};
use textnlp_orchestrator::environment::model::Runtime;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::plan::Facts;
use textnlp_orchestrator::run::{self, RunOptions};
use textnlp_orchestrator::state::{Holder, State, check};
use textnlp_orchestrator::status::{self, ResourceHealth};
use textnlp_provider::{ResourceId, error_chain};

use crate::backup::backup_status;
use crate::checks::Checks;
use crate::deployment::Selection;
use crate::running::lost_state;
use crate::{ChosenEnvironment, Deployment, Failure, Progress};

/// Tolerated clock difference. Machines with the same time servers differ by less.
const CLOCK: SignedDuration = SignedDuration::from_mins(1);

/// How an environment is prepared for a run.
pub type Select<'s> = &'s dyn Fn(ChosenEnvironment) -> Result<Selection, Failure>;

impl Checks {
    /// Checks an environment: its files, state, resources and backups. One that is not deployed: whether `up` could run.
    pub async fn environment(
        &mut self,
        chosen: ChosenEnvironment,
        select: Select<'_>,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let scope = chosen.scope.clone();
        let refusals: Vec<String> = chosen.loaded.report.refusals().map(ToString::to_string).collect();
        match refusals.is_empty() {
            true => self.well("environment", format!("{} is valid", scope.name)),
            false => self.problem("environment", refusals.join("\n"), scope.again.check(scope.name.as_str())),
        }
        self.disk(&scope.folder);
        self.user(&chosen.loaded.environment);
        self.contacts(&chosen.loaded.environment);
        // Otherwise the environment would not have been loaded.
        self.well("access", "the state belongs to you, and no other user can change it");
        self.secrets(&scope);
        let recorded = async { Deployment::recorded(select(chosen)?).await };
        let deployment = match recorded.await {
            Ok(deployment) => deployment,
            Err(failure) => {
                self.failed("state", failure);
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
            self.failed("state", lost);
            return Ok(());
        }
        if state.is_new() {
            let place = state.place();
            self.damage(&deployment, format!("nothing is deployed; the state would be in {place}")).await;
            return self.would_go_up(deployment, select, progress).await;
        }
        self.state(&deployment, &state).await;
        if let Err(failure) = deployment.check_providers(&state) {
            self.failed("providers", failure);
            return Ok(());
        }
        let options = RunOptions::UP;
        match run::read(&deployment.run(&DiscardEvents), &state, options).await {
            Err(error) => self.problem("providers", error.to_string(), scope.command("status")),
            Ok(facts) => self.facts(&deployment, &state, &facts).await,
        }
        let saved = backup_status::warning(&scope, state.lineage(), &deployment.chosen.loaded.environment).await;
        self.backups(&saved);
        Ok(())
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
        self.supervisors(deployment, state, &up).await;
        self.certificates(facts.sites.values().flat_map(|site| &site.observed), &up);
    }

    /// The supervisors of the sites on this machine.
    async fn supervisors(&mut self, deployment: &Deployment, state: &State, up: &str) {
        const NAME: &str = "supervisor";
        let scope = &deployment.chosen.scope;
        let here = deployment.sites.iter().filter(|(_, site)| site.place.runtime == Runtime::Process);
        for site in here.map(|(name, _)| name).filter(|site| !state.is_empty(site)) {
            match scope.platform.supervisor(&scope.folder, site).await {
                Ok(Some(keeper)) => {
                    let says = format!("`{site}`: process {}, version {}", keeper.pid, keeper.version);
                    if !keeper.trouble.is_empty() {
                        self.problem(NAME, keeper.trouble.join("\n"), scope.command("logs"));
                    } else if keeper.version.split('/').next() != Some(env!("CARGO_PKG_VERSION")) {
                        self.warning(NAME, says, format!("the next `up` replaces it: {up}"));
                    } else {
                        self.well(NAME, says);
                    }
                }
                Ok(None) => {
                    self.problem(NAME, format!("`{site}`: not running; a process that exits is not restarted"), up);
                }
                Err(error) => {
                    self.problem(NAME, format!("`{site}`: {}", error_chain(error.as_ref())), scope.command("logs"));
                }
            }
        }
    }

    /// The preflight of `up`: ports, memory and programs.
    async fn would_go_up(
        &mut self,
        deployment: Deployment,
        select: Select<'_>,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let wanted = async { Deployment::wanted(select(deployment.chosen)?, true, progress).await };
        let wanted = match wanted.await {
            Ok(wanted) => wanted,
            Err(failure) => {
                self.failed("preflight", failure);
                return Ok(());
            }
        };
        let found = wanted.preflight().await?;
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
