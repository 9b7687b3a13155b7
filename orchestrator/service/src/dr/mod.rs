//! Disaster recovery of an environment with several sites: status, failover, failback and drills.

mod clone;
pub mod drill;
pub mod failover;
pub mod status;

use textnlp_orchestrator::dr::control_client::ControlClients;
use textnlp_orchestrator::dr::journal::{Journal, JournalError};
use textnlp_orchestrator::environment::Environment;

use crate::{ChosenEnvironment, Exit, Failure, Scope};

pub use clone::{CloneRunner, environment_file};

/// An environment with several sites and its control clients. No provider is used, because a failover must not depend
/// on one.
pub struct Sites {
    /// The environment.
    pub chosen: ChosenEnvironment,
    /// The clients of its site agents and of its witness.
    pub control_clients: ControlClients,
    /// The replication lag in ms up to which a site is in sync.
    pub max_lag_ms: u64,
}

impl Sites {
    /// The sites of an environment. Refused if it has only one.
    pub fn of(chosen: ChosenEnvironment) -> Result<Self, Failure> {
        let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
        if environment.sites.len() < 2 {
            let error = anyhow::anyhow!("environment {} has one site: there is nothing to fail over to", scope.name);
            return Err(Failure::usage("one_site", error).hint("choose one with several: --env multi-region"));
        }
        let control_clients = ControlClients::at(&scope.platform.places(&scope.folder, environment)?);
        let max_lag_ms = environment.replication.database.max_lag.0.as_millis() as u64;
        Ok(Self { chosen, control_clients, max_lag_ms })
    }

    fn scope(&self) -> &Scope {
        &self.chosen.scope
    }

    fn environment(&self) -> &Environment {
        &self.chosen.loaded.environment
    }

    /// The journal, locked until this process exits.
    fn journal(&self, by: &str) -> Result<Journal, Failure> {
        let Scope { again, name, folder, .. } = self.scope();
        let flags = again.flags(name);
        Journal::open(folder, by, &flags).map_err(|error| self.journal_failed(error))
    }

    /// Converts an error of the journal.
    fn journal_failed(&self, error: JournalError) -> Failure {
        match error {
            JournalError::Held { .. } => Failure::refused("locked", error).hint(format!(
                "the lock is released when that process ends, also when it is killed; meanwhile see: {}",
                self.scope().command("dr status")
            )),
            JournalError::Io { .. } => Failure::new(Exit::Failed, "journal", error)
                .hint("the state folder must be readable and writable: fix its permissions, then run this again"),
        }
    }
}
