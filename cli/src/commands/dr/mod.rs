//! `dr …`: disaster recovery: status, failover, failback and drills.

mod clone;
mod drill;
mod reports;
mod shift;
mod status;

use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_orchestrator::dr::control_client::ControlClients;
use textnlp_orchestrator::dr::journal::{Journal, JournalError};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::release::Lock;
use textnlp_service::Scope;

use crate::clouds;
use crate::deployment::operator;
use crate::dr_args::Dr;
use crate::report::{Console, Exit, Failure, Success};
use crate::rerun_flags::RerunFlags;
use crate::session::{ChosenEnvironment, Session};

/// Runs the subcommand.
pub async fn dr(session: &Session, verb: &Dr, console: Console) -> Result<Success, Failure> {
    match verb {
        Dr::Status => status::status(session, console).await,
        Dr::Watch => status::watch(session, console).await,
        Dr::Failover(args) => shift::failover(session, args, console).await,
        Dr::Failback(args) => shift::failback(session, args, console).await,
        Dr::Drill(args) => drill::drill(session, args, console).await,
        Dr::History => reports::history(session),
        Dr::Report(args) => reports::report(session, args),
        Dr::VerifyReport(args) => reports::verify(session, args),
        Dr::TakeBack(args) => {
            let given = clouds::end_outage_of(args).await?;
            Ok(Success::new(format!("{given} nodes are schedulable again"), json!({ "nodes": given })))
        }
    }
}

/// An environment with several sites and its control clients. No provider is used, because a failover must not depend
/// on one.
struct Sites {
    chosen: ChosenEnvironment,
    again: RerunFlags,
    control_clients: ControlClients,
    max_lag_ms: u64,
    /// The path of the release lock.
    lock_path: Utf8PathBuf,
}

impl Sites {
    fn of(session: &Session) -> Result<Self, Failure> {
        // Notes on the environment would distract during a failover.
        let chosen = session.load(Console::new(session.global.output, true))?;
        let environment = &chosen.loaded.environment;
        if environment.sites.len() < 2 {
            let error = anyhow::anyhow!("environment {} has one site: there is nothing to fail over to", chosen.name);
            return Err(Failure::usage("one_site", error).hint("choose one with several: --env multi-region"));
        }
        let control_clients = ControlClients::at(&clouds::places(&chosen.folder, environment)?);
        let max_lag_ms = environment.replication.database.max_lag.0.as_millis() as u64;
        let lock_path = Lock::path(&session.lock_folder(&chosen), &chosen.name);
        Ok(Self { again: session.again(), chosen, control_clients, max_lag_ms, lock_path })
    }

    fn scope(&self) -> Scope {
        Scope {
            platform: &clouds::Linked,
            again: self.again.clone(),
            name: self.chosen.name.clone(),
            folder: self.chosen.folder.clone(),
        }
    }

    fn environment(&self) -> &Environment {
        &self.chosen.loaded.environment
    }

    /// A suggested command about this environment.
    fn command(&self, verb: &str) -> String {
        self.again.command(verb, &self.chosen.name)
    }

    /// The journal, locked until this process exits.
    fn journal(&self, session: &Session) -> Result<Journal, Failure> {
        let flags = self.again.flags(&self.chosen.name);
        Journal::open(&self.chosen.folder, &operator(session).by, &flags).map_err(|error| self.journal_failed(error))
    }

    /// Converts an error of the journal.
    fn journal_failed(&self, error: JournalError) -> Failure {
        match error {
            JournalError::Held { .. } => Failure::refused("locked", error).hint(format!(
                "the lock is released when that process ends, also when it is killed; meanwhile see: {}",
                self.command("dr status")
            )),
            JournalError::Io { .. } => Failure::new(Exit::Failed, "journal", error)
                .hint("the state folder must be readable and writable: fix its permissions, then run this again"),
        }
    }
}
