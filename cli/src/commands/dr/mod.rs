//! `dr …`: disaster recovery: status, failover, failback and drills.

mod drill;
mod failover;
mod reports;
mod status;

use textnlp_service::dr::Sites;
use textnlp_service::up::is_store_not_frozen;

use crate::clouds;
use crate::commands::prelude::*;
use crate::dr_args::Dr;

/// Runs the subcommand.
pub async fn dr(session: &Session, verb: &Dr, console: Console) -> Result<Success, Failure> {
    match verb {
        Dr::Status => status::status(session, console).await,
        Dr::Watch => status::watch(session, console).await,
        Dr::Failover(args) => failover::failover(session, args, console).await,
        Dr::Failback(args) => failover::failback(session, args, console).await,
        Dr::Drill(args) => drill::drill(session, args, console).await,
        Dr::History => reports::history(session).await,
        Dr::Report(args) => reports::report(session, args, console),
        Dr::VerifyReport(args) => reports::verify(session, args),
        Dr::TakeBack(args) => {
            let given = clouds::end_outage_of(args).await?;
            Ok(Success::new(format!("{given} nodes are schedulable again"), json!({ "nodes": given })))
        }
    }
}

/// The sites of an environment that is not frozen, for a command that changes what they do.
async fn sites_to_change(session: &Session) -> Result<Sites, Failure> {
    let sites = sites(session)?;
    let scope = &sites.chosen.scope;
    is_store_not_frozen(scope.platform.store(&scope.folder), &scope.command("hold --release")).await?;
    Ok(sites)
}

/// The sites of the environment.
fn sites(session: &Session) -> Result<Sites, Failure> {
    // Notes on the environment would distract during a failover.
    Sites::of(session.load(session.quiet())?)
}
