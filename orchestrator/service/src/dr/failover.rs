//! Failover and failback: journaled commands to the sites. A refusal includes the reason.

use std::time::Duration;

use textnlp_orchestrator::dr::failover::{self, FailoverOutcome, FailoverRefusal};

use super::Sites;
use crate::{Exit, Failure, Progress};

/// Makes the site `to` primary.
pub async fn failover(sites: &Sites, to: &str, by: &str, progress: &dyn Progress) -> Result<FailoverOutcome, Failure> {
    let mut journal = sites.journal(by)?;
    progress.line(&format!("Making {to} primary …"));
    failover::failover(&sites.control_clients, &mut journal, to).await.map_err(|r| refused(r, sites))
}

/// Makes the home site primary again. Waits until it has caught up.
pub async fn failback(
    sites: &Sites,
    wait: Duration,
    by: &str,
    progress: &dyn Progress,
) -> Result<FailoverOutcome, Failure> {
    let mut journal = sites.journal(by)?;
    progress.line(&format!("Failing back to {} …", sites.control_clients.home));
    let tell = |says: &str| progress.line(&format!("  waiting: {says}"));
    failover::failback(&sites.control_clients, &mut journal, wait, &tell).await.map_err(|r| refused(r, sites))
}

fn refused(refusal: FailoverRefusal, sites: &Sites) -> Failure {
    let command = |verb: &str| sites.scope().command(verb);
    let status = command("dr status");
    let (exit, code, hint) = match refusal {
        FailoverRefusal::Journal(error) => return sites.journal_failed(error),
        FailoverRefusal::Unknown { .. } => (Exit::Usage, "no_such_site", status),
        FailoverRefusal::NotThere { .. } => (
            Exit::Refused,
            "site_not_there",
            format!("start it ({}), or choose another site: {status}", sites.scope().last_up()),
        ),
        FailoverRefusal::NotMember { .. } | FailoverRefusal::NotFit { .. } | FailoverRefusal::Behind { .. } => (
            Exit::Refused,
            "not_caught_up",
            format!("choose a site that is in sync, or wait until this one is: {status}"),
        ),
        FailoverRefusal::Witness(_) => (
            Exit::Refused,
            "no_witness",
            format!("start the witness first: {}", sites.scope().last("up --site witness")),
        ),
        FailoverRefusal::Grace { left_ms, .. } => {
            (Exit::Refused, "grace", format!("retry in {:.1} s", left_ms as f64 / 1000.0 + 0.1))
        }
        FailoverRefusal::NotGranted(_) => (Exit::Refused, "not_granted", status),
        FailoverRefusal::NotSettled { .. } => {
            (Exit::Failed, "not_settled", format!("watch the progress: {}", command("dr watch")))
        }
    };
    Failure::new(exit, code, refusal).hint(hint)
}
