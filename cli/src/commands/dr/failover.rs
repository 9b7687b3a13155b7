//! `dr failover`, `dr failback`: journaled commands to the sites.

use textnlp_orchestrator::dr::failover::{FailoverKind, FailoverOutcome};
use textnlp_service::dr::{self, Sites};

use super::sites_to_change;
use crate::commands::prelude::*;
use crate::deployment::operator;
use crate::dr_args::{Failback, Failover};

/// `dr failover --to SITE`.
pub async fn failover(session: &Session, args: &Failover, console: Console) -> Result<Success, Failure> {
    let (sites, by, progress) = (sites_to_change(session).await?, operator(session).by, Progress::new(console));
    Ok(done(&sites, &dr::failover::failover(&sites, &args.to, &by, &progress).await?))
}

/// `dr failback`.
pub async fn failback(session: &Session, args: &Failback, console: Console) -> Result<Success, Failure> {
    let (sites, by, progress) = (sites_to_change(session).await?, operator(session).by, Progress::new(console));
    Ok(done(&sites, &dr::failover::failback(&sites, args.wait.0, &by, &progress).await?))
}

fn done(sites: &Sites, outcome: &FailoverOutcome) -> Success {
    let FailoverOutcome { from, to, epoch, unsent, .. } = outcome;
    let how = match outcome.way {
        FailoverKind::Already => format!("{to} is primary already (epoch {epoch}); nothing was changed"),
        FailoverKind::Handover if *unsent => format!(
            "{from} handed over to {to}: epoch {epoch}. Its database had stopped: usage that it had not sent is lost"
        ),
        FailoverKind::Handover => format!("{from} handed over to {to}: epoch {epoch}, nothing lost"),
        FailoverKind::Claim if sites.chosen.loaded.environment.stores_outside() => format!(
            "{to} took over from {from}, which is down: epoch {epoch}. Keys and usage are in the database that all sites store in"
        ),
        FailoverKind::Claim => format!(
            "{to} took over from {from}, which is down: epoch {epoch}. Writes that two sites had acknowledged are kept; usage that {from} had not {}",
            if *unsent { "sent is lost" } else { "sent arrives when it is back" }
        ),
    };
    let undo =
        (outcome.way != FailoverKind::Already).then(|| sites.chosen.scope.command(&format!("dr failover --to {from}")));
    let mut text = format!("{how} ({:.1} s)", outcome.seconds);
    if let Some(id) = &outcome.finished {
        text.push_str(&format!("\nThis also finishes {id}, which an earlier process left open"));
    }
    if outcome.held {
        let (home, failback) = (&sites.control_clients.home, sites.chosen.scope.command("dr failback"));
        text.push_str(&format!("\nIt holds: {home} becomes primary again with {failback}, or if {to} is lost"));
    }
    if outcome.way == FailoverKind::Handover && *to != sites.control_clients.home && !outcome.held {
        text.push_str(
            "\nIt does not hold: a site or the witness is of an older release. Before maintenance set `dr: { failback: manual }`",
        );
    }
    if let Some(undo) = &undo {
        text.push_str(&format!("\nTo undo: {undo}"));
    }
    Success::new(text, json!({ "environment": sites.chosen.scope.name, "shifted": outcome, "undo": undo }))
}
