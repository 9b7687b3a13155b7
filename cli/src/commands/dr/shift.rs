//! `dr failover`, `dr failback`: journaled commands to the sites. A refusal includes the reason.

use serde_json::json;
use textnlp_orchestrator::dr::failover::{self, FailoverKind, FailoverOutcome, FailoverRefusal};

use super::Sites;
use crate::dr_args::{Failback, Failover};
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// `dr failover --to SITE`.
pub async fn failover(session: &Session, args: &Failover, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    let mut journal = sites.journal(session)?;
    console.say(format!("Making {} primary …", args.to));
    let shifted =
        failover::failover(&sites.control_clients, &mut journal, &args.to).await.map_err(|r| refused(r, &sites))?;
    Ok(done(&sites, &shifted))
}

/// `dr failback`.
pub async fn failback(session: &Session, args: &Failback, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    let mut journal = sites.journal(session)?;
    console.say(format!("Failing back to {} …", sites.control_clients.home));
    let tell = |says: &str| console.say(format!("  waiting: {says}"));
    let shifted = failover::failback(&sites.control_clients, &mut journal, args.wait.0, &tell)
        .await
        .map_err(|r| refused(r, &sites))?;
    Ok(done(&sites, &shifted))
}

fn done(sites: &Sites, shifted: &FailoverOutcome) -> Success {
    let how = match shifted.way {
        FailoverKind::Already => {
            format!("{} is primary already (epoch {}); nothing was changed", shifted.to, shifted.epoch)
        }
        FailoverKind::Handover if shifted.unsent => format!(
            "{} handed over to {}: epoch {}. Its database had stopped: usage that it had not sent is lost",
            shifted.from, shifted.to, shifted.epoch
        ),
        FailoverKind::Handover => {
            format!("{} handed over to {}: epoch {}, nothing lost", shifted.from, shifted.to, shifted.epoch)
        }
        FailoverKind::Claim if sites.environment().stores_outside() => format!(
            "{} took over from {}, which is down: epoch {}. Keys and usage are in the database that all sites store in",
            shifted.to, shifted.from, shifted.epoch
        ),
        FailoverKind::Claim => format!(
            "{} took over from {}, which is down: epoch {}. Writes that two sites had acknowledged are kept; usage that {} had not {}",
            shifted.to,
            shifted.from,
            shifted.epoch,
            shifted.from,
            if shifted.unsent { "sent is lost" } else { "sent arrives when it is back" }
        ),
    };
    let undo =
        (shifted.way != FailoverKind::Already).then(|| sites.command(&format!("dr failover --to {}", shifted.from)));
    let mut text = format!("{how} ({:.1} s)", shifted.seconds);
    if let Some(id) = &shifted.finished {
        text.push_str(&format!("\nThis also finishes {id}, which an earlier process left open"));
    }
    if let Some(undo) = &undo {
        text.push_str(&format!("\nTo undo: {undo}"));
    }
    Success::new(text, json!({ "environment": sites.chosen.name, "shifted": shifted, "undo": undo }))
}

fn refused(refusal: FailoverRefusal, sites: &Sites) -> Failure {
    let look = sites.command("dr status");
    let (exit, code, hint) = match &refusal {
        FailoverRefusal::Unknown { .. } => (Exit::Usage, "no_such_site", look),
        FailoverRefusal::NotThere { .. } => (
            Exit::Refused,
            "site_not_there",
            format!("start it ({}), or choose another site: {look}", sites.command("up")),
        ),
        FailoverRefusal::NotMember { .. } | FailoverRefusal::NotFit { .. } | FailoverRefusal::Behind { .. } => (
            Exit::Refused,
            "not_caught_up",
            format!("choose a site that is in sync, or wait until this one is: {look}"),
        ),
        FailoverRefusal::Witness(_) => {
            (Exit::Refused, "no_witness", format!("start the witness first: {}", sites.command("up --site witness")))
        }
        FailoverRefusal::Grace { left_ms, .. } => {
            (Exit::Refused, "grace", format!("retry in {:.1} s", *left_ms as f64 / 1000.0 + 0.1))
        }
        FailoverRefusal::NotGranted(_) => (Exit::Refused, "not_granted", look),
        FailoverRefusal::NotSettled { .. } => {
            (Exit::Failed, "not_settled", format!("watch the progress: {}", sites.command("dr watch")))
        }
        FailoverRefusal::Journal(_) => {
            (Exit::Failed, "journal", "nothing was changed: the state folder must be writable".to_owned())
        }
    };
    match refusal {
        FailoverRefusal::Journal(error) => sites.journal_failed(error),
        refusal => Failure::new(exit, code, refusal).hint(hint),
    }
}
