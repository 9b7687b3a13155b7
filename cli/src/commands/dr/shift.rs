//! `dr failover`, `dr failback`: told to the sites, journaled, and refused with the reason.

use serde_json::json;
use textnlp_orchestrator::dr::journal::Journal;
use textnlp_orchestrator::dr::shift::{self, Refusal, Shifted, Way};

use super::{Sites, journal_failed};
use crate::deployment::operator;
use crate::dr_args::{Failback, Failover};
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// `dr failover --to SITE`.
pub async fn failover(session: &Session, args: &Failover, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    let mut journal = Journal::open(&sites.chosen.folder, &operator(session).by).map_err(journal_failed)?;
    console.say(format!("Making {} primary …", args.to));
    let shifted = shift::failover(&sites.everybody, &mut journal, &args.to).await.map_err(|r| refused(r, &sites))?;
    Ok(done(&sites, &shifted))
}

/// `dr failback`.
pub async fn failback(session: &Session, args: &Failback, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    let mut journal = Journal::open(&sites.chosen.folder, &operator(session).by).map_err(journal_failed)?;
    console.say(format!("Going back to {} …", sites.everybody.home));
    let said = std::sync::Mutex::new(String::new());
    let tell = |says: &str| {
        let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *said != says {
            console.say(format!("  waiting: {says}"));
            says.clone_into(&mut said);
        }
    };
    let shifted =
        shift::failback(&sites.everybody, &mut journal, args.wait.0, &tell).await.map_err(|r| refused(r, &sites))?;
    Ok(done(&sites, &shifted))
}

fn done(sites: &Sites, shifted: &Shifted) -> Success {
    let how = match shifted.way {
        Way::Already => format!("{} is primary already (epoch {}); nothing was changed", shifted.to, shifted.epoch),
        Way::Handover => {
            format!("{} handed over to {}: epoch {}, nothing lost", shifted.from, shifted.to, shifted.epoch)
        }
        Way::Claim => format!(
            "{} took the place of {}, which is gone: epoch {}. What two sites had acknowledged is there; usage that {} had not shipped comes when it is back",
            shifted.to, shifted.from, shifted.epoch, shifted.from
        ),
    };
    let undo = (shifted.way != Way::Already)
        .then(|| format!("textnlp-deploy dr failover --to {} --env {}", shifted.from, sites.chosen.name));
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
    let name = &sites.chosen.name;
    let look = format!("textnlp-deploy dr status --env {name}");
    let (exit, code, hint) = match &refusal {
        Refusal::Unknown { .. } => (Exit::Usage, "no_such_site", look),
        Refusal::NotThere { .. } => (
            Exit::Refused,
            "site_not_there",
            format!("bring it back (textnlp-deploy up --env {name}), or choose another: {look}"),
        ),
        Refusal::NotMember { .. } | Refusal::Behind { .. } => (
            Exit::Refused,
            "not_caught_up",
            format!("choose a site that is in sync, or wait until this one is: {look}"),
        ),
        Refusal::Witness(_) => (
            Exit::Refused,
            "no_witness",
            format!("bring the witness back first: textnlp-deploy up --env {name} --site witness"),
        ),
        Refusal::Grace { left_ms, .. } => {
            (Exit::Refused, "grace", format!("run it again in {:.1} s", *left_ms as f64 / 1000.0 + 0.1))
        }
        Refusal::NotGranted(_) => (Exit::Refused, "not_granted", look),
        Refusal::NotSettled { .. } => {
            (Exit::Failed, "not_settled", format!("watch it: textnlp-deploy dr watch --env {name}"))
        }
        Refusal::Journal(_) => {
            (Exit::Failed, "journal", "nothing was changed: the state folder must be writable".to_owned())
        }
    };
    match refusal {
        Refusal::Journal(error) => journal_failed(error),
        refusal => Failure::new(exit, code, refusal).hint(hint),
    }
}
