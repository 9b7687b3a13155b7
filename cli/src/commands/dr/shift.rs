//! `dr failover`, `dr failback`: told to the sites, journaled, and refused with the reason.

use serde_json::json;
use textnlp_orchestrator::dr::shift::{self, Refusal, Shifted, Way};

use super::Sites;
use crate::dr_args::{Failback, Failover};
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// `dr failover --to SITE`.
pub async fn failover(session: &Session, args: &Failover, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    let mut journal = sites.journal(session)?;
    console.say(format!("Making {} primary …", args.to));
    let shifted = shift::failover(&sites.everybody, &mut journal, &args.to).await.map_err(|r| refused(r, &sites))?;
    Ok(done(&sites, &shifted))
}

/// `dr failback`.
pub async fn failback(session: &Session, args: &Failback, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    let mut journal = sites.journal(session)?;
    console.say(format!("Going back to {} …", sites.everybody.home));
    let tell = |says: &str| console.say(format!("  waiting: {says}"));
    let shifted =
        shift::failback(&sites.everybody, &mut journal, args.wait.0, &tell).await.map_err(|r| refused(r, &sites))?;
    Ok(done(&sites, &shifted))
}

fn done(sites: &Sites, shifted: &Shifted) -> Success {
    let how = match shifted.way {
        Way::Already => format!("{} is primary already (epoch {}); nothing was changed", shifted.to, shifted.epoch),
        Way::Handover if shifted.unsent => format!(
            "{} handed over to {}: epoch {}. Its database did nothing any more: usage that it had not sent is lost",
            shifted.from, shifted.to, shifted.epoch
        ),
        Way::Handover => {
            format!("{} handed over to {}: epoch {}, nothing lost", shifted.from, shifted.to, shifted.epoch)
        }
        Way::Claim if sites.environment().stores_outside() => format!(
            "{} took the place of {}, which is gone: epoch {}. Keys and usage are in the database that all sites store in",
            shifted.to, shifted.from, shifted.epoch
        ),
        Way::Claim => format!(
            "{} took the place of {}, which is gone: epoch {}. What two sites had acknowledged is there; usage that {} had not {}",
            shifted.to,
            shifted.from,
            shifted.epoch,
            shifted.from,
            if shifted.unsent { "sent is lost" } else { "shipped comes when it is back" }
        ),
    };
    let undo = (shifted.way != Way::Already).then(|| sites.command(&format!("dr failover --to {}", shifted.from)));
    let mut text = format!("{how} ({:.1} s)", shifted.seconds);
    if let Some(id) = &shifted.finished {
        text.push_str(&format!("\nThis also finishes {id}, which an earlier process left open"));
    }
    if let Some(undo) = &undo {
        text.push_str(&format!("\nTo take it back: {undo}"));
    }
    Success::new(text, json!({ "environment": sites.chosen.name, "shifted": shifted, "undo": undo }))
}

fn refused(refusal: Refusal, sites: &Sites) -> Failure {
    let look = sites.command("dr status");
    let (exit, code, hint) = match &refusal {
        Refusal::Unknown { .. } => (Exit::Usage, "no_such_site", look),
        Refusal::NotThere { .. } => (
            Exit::Refused,
            "site_not_there",
            format!("bring it back ({}), or choose another: {look}", sites.command("up")),
        ),
        Refusal::NotMember { .. } | Refusal::NotFit { .. } | Refusal::Behind { .. } => (
            Exit::Refused,
            "not_caught_up",
            format!("choose a site that is in sync, or wait until this one is: {look}"),
        ),
        Refusal::Witness(_) => (
            Exit::Refused,
            "no_witness",
            format!("bring the witness back first: {}", sites.command("up --site witness")),
        ),
        Refusal::Grace { left_ms, .. } => {
            (Exit::Refused, "grace", format!("run it again in {:.1} s", *left_ms as f64 / 1000.0 + 0.1))
        }
        Refusal::NotGranted(_) => (Exit::Refused, "not_granted", look),
        Refusal::NotSettled { .. } => (Exit::Failed, "not_settled", format!("watch it: {}", sites.command("dr watch"))),
        Refusal::Journal(_) => {
            (Exit::Failed, "journal", "nothing was changed: the state folder must be writable".to_owned())
        }
    };
    match refusal {
        Refusal::Journal(error) => sites.journal_failed(error),
        refusal => Failure::new(exit, code, refusal).hint(hint),
    }
}
