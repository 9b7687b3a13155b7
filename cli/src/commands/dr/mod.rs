//! `dr …`: what an operator sees and does when a site is lost, and the rehearsal of it.

mod clone;
mod drill;
pub mod gate;
mod reports;
mod shift;
mod status;

use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_orchestrator::dr::journal::{Journal, JournalError};
use textnlp_orchestrator::dr::talk::Everybody;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::release::Lock;

use crate::again::Again;
use crate::clouds;
use crate::deployment::operator;
use crate::dr_args::Dr;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::{Chosen, Session};

/// Picks the verb.
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
            let given = clouds::take_back(args).await?;
            Ok(Success::new(format!("{given} nodes take pods again"), json!({ "nodes": given })))
        }
    }
}

/// An environment of several sites, and whom to ask. Nothing of the providers is needed: a failover must not wait for them.
struct Sites {
    chosen: Chosen,
    again: Again,
    everybody: Everybody,
    max_lag_ms: u64,
    /// Where what runs is written down.
    lock_path: Utf8PathBuf,
}

impl Sites {
    fn of(session: &Session) -> Result<Self, Failure> {
        // What is noted about an environment is of no use in the middle of a failover.
        let chosen = session.load(Console::new(session.global.output, true))?;
        let environment = &chosen.loaded.environment;
        if environment.sites.len() < 2 {
            let error = anyhow::anyhow!("environment {} has one site: there is nothing to fail over to", chosen.name);
            return Err(Failure::usage("one_site", error).hint("name one with several: --env multi-region"));
        }
        let everybody = Everybody::at(&clouds::places(&chosen.folder, environment)?);
        let max_lag_ms = environment.replication.database.max_lag.0.as_millis() as u64;
        let lock_path = Lock::path(&session.lock_folder(&chosen), &chosen.name);
        Ok(Self { again: session.again(), chosen, everybody, max_lag_ms, lock_path })
    }

    fn environment(&self) -> &Environment {
        &self.chosen.loaded.environment
    }

    /// A command about this environment, to be typed next.
    fn command(&self, verb: &str) -> String {
        self.again.command(verb, &self.chosen.name)
    }

    /// The journal, held until this process is done.
    fn journal(&self, session: &Session) -> Result<Journal, Failure> {
        let flags = self.again.flags(&self.chosen.name);
        Journal::open(&self.chosen.folder, &operator(session).by, &flags).map_err(|error| self.journal_failed(error))
    }

    /// A journal that cannot be used, for people and programs.
    fn journal_failed(&self, error: JournalError) -> Failure {
        match error {
            JournalError::Held { .. } => Failure::refused("locked", error).hint(format!(
                "it lets go when it ends, also when it is killed; meanwhile look: {}",
                self.command("dr status")
            )),
            JournalError::Io { .. } => Failure::new(Exit::Failed, "journal", error)
                .hint("the state folder must be readable and writable: mend it, then run this again"),
        }
    }
}
