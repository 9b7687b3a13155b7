//! Manual failover and failback: the method, the preconditions, and the check that the new primary works.

use std::time::Duration;

use camino::Utf8Path;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::control_client::{
    ControlClientError, ControlClients, DatabaseRole, MemberRole, SiteAgentStatus, WitnessStatus,
};
use super::control_status::ControlStatus;
use super::journal::{Action, Journal, JournalError, WHOLE, unfinished};

/// A site that became primary accepts writes within a few polls of its agent.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The pause after the primary refused a handover.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// How the site became primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverKind {
    /// The primary handed over: no write was pending, nothing is lost.
    Handover,
    /// The primary is down; the witness granted a claim.
    Claim,
    /// The site was already primary.
    Already,
}

/// The outcome of a failover or failback.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailoverOutcome {
    /// The primary before.
    pub from: String,
    /// The primary now.
    pub to: String,
    /// The method.
    pub way: FailoverKind,
    /// The epoch of the configuration before.
    pub epoch_before: u64,
    /// The epoch of the configuration now.
    pub epoch: u64,
    /// The duration in seconds.
    pub seconds: f64,
    /// The id of an earlier, unfinished attempt that this one finished.
    pub finished: Option<String>,
    /// Whether the lost site's server of the shared database may have changes that it had not replicated; they are
    /// discarded.
    pub unsent: bool,
    /// Whether it holds: there is no automatic failback.
    pub held: bool,
}

/// Why it was refused. Nothing was changed, except for [`FailoverRefusal::NotSettled`].
#[derive(Debug, thiserror::Error)]
pub enum FailoverRefusal {
    /// The environment has no such site.
    #[error("there is no site `{site}`; the sites are {}", known.join(", "))]
    Unknown {
        /// The given name.
        site: String,
        /// The sites of the environment.
        known: Vec<String>,
    },
    /// The site that should become primary does not answer.
    #[error("{site} cannot become primary: {why}")]
    NotThere {
        /// The site.
        site: String,
        /// The error of its agent.
        why: ControlClientError,
    },
    /// The site lacks acknowledged writes, or may lack some.
    #[error("{site} is not a member of epoch {epoch}{}: as primary it would lose writes that the members acknowledged", behind.map(|n| format!(" and {n} entries behind")).unwrap_or_default())]
    NotMember {
        /// The site.
        site: String,
        /// The epoch of the configuration.
        epoch: u64,
        /// The count of entries it lacks, if known.
        behind: Option<u64>,
    },
    /// The site is a member but did not catch up in time.
    #[error("{site} is still behind by {by} entries after {waited_s} s")]
    Behind {
        /// The site.
        site: String,
        /// The count of entries it lacks.
        by: u64,
        /// The time waited, in seconds.
        waited_s: u64,
    },
    /// The site is a member but its replica of the database lacks changes.
    #[error("the database of {site} still lags behind the primary's after {waited_s} s")]
    NotFit {
        /// The site.
        site: String,
        /// The time waited, in seconds.
        waited_s: u64,
    },
    /// The witness does not answer; only it can grant a claim.
    #[error("the witness cannot be reached: {0}; without it no site can take over")]
    Witness(ControlClientError),
    /// The primary may still be alive.
    #[error(
        "{primary} sent its last heartbeat {renewed_ms} ms ago; another site can take over {grace_ms} ms after it: {left_ms} ms are left"
    )]
    Grace {
        /// The primary.
        primary: String,
        /// The time since its last renewal, in ms.
        renewed_ms: u64,
        /// Its grace period, in ms.
        grace_ms: u64,
        /// The rest of the grace period, in ms.
        left_ms: u64,
    },
    /// The request was not granted.
    #[error("{0}")]
    NotGranted(ControlClientError),
    /// The request was granted, but the new primary does not work yet.
    #[error("{to} was granted epoch {epoch} and does not accept writes yet: {why}")]
    NotSettled {
        /// The new primary.
        to: String,
        /// The epoch of its configuration.
        epoch: u64,
        /// Its error.
        why: String,
    },
    /// The journal is required.
    #[error("access the journal of failovers and drills")]
    Journal(#[from] JournalError),
}

/// Makes `to` primary: by a handover if the primary is reachable, otherwise by a claim that the witness grants. A
/// handover holds until a failback. Both ends are recorded in the journal. An attempt that another process left
/// unfinished is finished.
pub async fn failover(
    control_clients: &ControlClients,
    journal: &mut Journal,
    to: &str,
) -> Result<FailoverOutcome, FailoverRefusal> {
    shift(control_clients, journal, Action::Failover, to).await
}

/// Makes the home site primary again once it is a member and has caught up; waits at most `wait`. `tell` receives the
/// reason of the wait.
pub async fn failback(
    control_clients: &ControlClients,
    journal: &mut Journal,
    wait: Duration,
    tell: &(dyn Fn(&str) + Send + Sync),
) -> Result<FailoverOutcome, FailoverRefusal> {
    let home = control_clients.home.clone();
    let began = Instant::now();
    let mut reported = String::new();
    loop {
        let control_status = ControlStatus::take(control_clients).await;
        let witness = control_status.witness.as_ref().map_err(|error| FailoverRefusal::Witness(error.clone()))?;
        let behind = control_status.behind(&home);
        let is_member = witness.members.contains(&home) || witness.primary == home;
        let database = control_status.site(&home).and_then(|status| status.database.as_ref());
        let is_fit = database.is_none_or(|database| database.fit);
        if is_member && is_fit && behind.is_none_or(|entries| entries == 0) {
            match shift(control_clients, journal, Action::Failback, &home).await {
                // The primary knows best how far the home site has caught up. It has changed nothing, so the request is
                // retried.
                Err(FailoverRefusal::NotGranted(error)) if began.elapsed() < wait => {
                    let says = error.to_string();
                    if reported != says {
                        tell(&says);
                        reported = says;
                    }
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    continue;
                }
                done => return done,
            }
        }
        if began.elapsed() >= wait {
            return Err(match (control_status.sites.into_iter().find(|(name, _)| *name == home), behind) {
                (Some((_, Err(why))), _) => FailoverRefusal::NotThere { site: home, why },
                _ if is_member && !is_fit => FailoverRefusal::NotFit { site: home, waited_s: wait.as_secs() },
                (_, Some(by)) if is_member => FailoverRefusal::Behind { site: home, by, waited_s: wait.as_secs() },
                _ => FailoverRefusal::NotMember { site: home, epoch: witness.epoch, behind },
            });
        }
        let says = match (is_member, behind) {
            _ if is_member && !is_fit => format!("the database of {home} is being copied"),
            (false, Some(by)) => format!("{home} is not a member yet and {by} entries behind"),
            (false, None) => format!("{home} is not a member yet"),
            (true, by) => format!("{home} is {} entries behind", by.unwrap_or_default()),
        };
        // Reported when it changes, not at every poll.
        if reported != says {
            tell(&says);
            reported = says;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn shift(
    control_clients: &ControlClients,
    journal: &mut Journal,
    action: Action,
    to: &str,
) -> Result<FailoverOutcome, FailoverRefusal> {
    let began = Instant::now();
    let control_status = ControlStatus::take(control_clients).await;
    let witness = look(control_clients, &control_status, to)?;
    let open: Vec<(Action, String)> = unfinished(journal.records())
        .into_iter()
        .filter(|record| record.action != Action::Drill)
        .map(|record| (record.action, record.id.clone()))
        .collect();
    let finished = open.last().map(|(_, id)| id.clone());
    let from = witness.primary.clone();
    let mut done = FailoverOutcome {
        from: from.clone(),
        to: to.to_owned(),
        way: FailoverKind::Already,
        epoch_before: witness.epoch,
        epoch: witness.epoch,
        seconds: 0.0,
        finished,
        unsent: false,
        held: witness.held,
    };
    if from != to {
        let alive = control_status.site(&from).is_some_and(|status| status.role == MemberRole::Primary);
        done.way = if alive { FailoverKind::Handover } else { FailoverKind::Claim };
        done.unsent = match alive {
            true => control_status.site(&from).is_some_and(|status| !serves(status)),
            false => {
                control_status.sites.iter().any(|(_, site)| site.as_ref().is_ok_and(|site| site.database.is_some()))
            }
        };
        let grace = grace(witness);
        if let (FailoverKind::Claim, Some(refusal)) = (done.way, grace) {
            return Err(refusal);
        }
        let id = format!(
            "{}-{}",
            if action == Action::Failback { "failback" } else { "failover" },
            uuid::Uuid::new_v4().simple()
        );
        let undo = journal.command(&format!("dr failover --to {from}"));
        journal.begin(
            action,
            &id,
            WHOLE,
            Some(undo),
            json!({ "from": from, "to": to, "way": done.way, "epoch": witness.epoch }),
        )?;
        match take(control_clients, done.way, action, &from, to).await {
            Ok(WitnessStatus { epoch, held, .. }) => {
                (done.epoch, done.held) = (epoch, held);
                journal.end(action, &id, WHOLE, json!({ "epoch": epoch, "held": held }))?;
            }
            Err(refusal) => {
                journal.fail(action, &id, WHOLE, &textnlp_provider::error_chain(&refusal))?;
                return Err(refusal);
            }
        }
    }
    // This ends unfinished attempts too: there is one primary, and it is this site.
    for (action, id) in open {
        journal.end(action, &id, WHOLE, json!({ "finished_by": "a later attempt", "primary": to }))?;
    }
    done.seconds = began.elapsed().as_secs_f64();
    Ok(done)
}

/// Checks the preconditions before any request is sent.
fn look<'p>(
    control_clients: &ControlClients,
    control_status: &'p ControlStatus,
    to: &str,
) -> Result<&'p WitnessStatus, FailoverRefusal> {
    let known = control_clients.names();
    let Some((_, status)) = control_status.sites.iter().find(|(name, _)| name == to) else {
        return Err(FailoverRefusal::Unknown { site: to.to_owned(), known });
    };
    let witness = control_status.witness.as_ref().map_err(|error| FailoverRefusal::Witness(error.clone()))?;
    if let Err(why) = status {
        return Err(FailoverRefusal::NotThere { site: to.to_owned(), why: why.clone() });
    }
    if witness.primary != to && !witness.members.iter().any(|name| name == to) {
        return Err(FailoverRefusal::NotMember {
            site: to.to_owned(),
            epoch: witness.epoch,
            behind: control_status.behind(to),
        });
    }
    Ok(witness)
}

/// Why the primary's grace period has not ended yet; `None` once it has.
pub fn grace(witness: &WitnessStatus) -> Option<FailoverRefusal> {
    (witness.renewed_ms < witness.grace_ms).then(|| FailoverRefusal::Grace {
        primary: witness.primary.clone(),
        renewed_ms: witness.renewed_ms,
        grace_ms: witness.grace_ms,
        left_ms: witness.grace_ms - witness.renewed_ms,
    })
}

async fn take(
    control_clients: &ControlClients,
    way: FailoverKind,
    action: Action,
    from: &str,
    to: &str,
) -> Result<WitnessStatus, FailoverRefusal> {
    let watch = |site: &str| {
        let known = control_clients.names();
        control_clients.watch(site).ok_or_else(|| FailoverRefusal::Unknown { site: site.to_owned(), known })
    };
    let promoted = match way {
        FailoverKind::Handover => watch(from)?.hand_over(to, action == Action::Failover).await,
        FailoverKind::Claim | FailoverKind::Already => watch(to)?.claim().await,
    };
    // A request without an answer may have been granted: ask the witness.
    let lost = match promoted {
        Ok(()) => None,
        Err(error @ ControlClientError::Refused { .. }) => return Err(FailoverRefusal::NotGranted(error)),
        Err(error) => Some(error),
    };
    let began = Instant::now();
    let mut why = String::from("it was not polled yet");
    loop {
        // A single failed poll says nothing about the grant.
        let status = control_clients.witness.status().await;
        match &status {
            Ok(status) if status.primary == to => match watch(to)?.status().await {
                Ok(site) if site.writable && site.epoch >= status.epoch && serves(&site) => {
                    return Ok(status.clone());
                }
                Ok(site) if site.writable => {
                    let database = site.database.and_then(|database| database.why);
                    why = database
                        .map_or_else(|| format!("it is at epoch {}", site.epoch), |why| format!("its database: {why}"));
                }
                Ok(site) => why = site.why_not.unwrap_or_else(|| format!("it is at epoch {}", site.epoch)),
                Err(error) => why = error.to_string(),
            },
            Ok(_) => {}
            Err(error) => why = error.to_string(),
        }
        if began.elapsed() > SETTLE_TIMEOUT {
            let status = status.map_err(FailoverRefusal::Witness)?;
            return Err(match lost {
                Some(error) if status.primary != to => FailoverRefusal::NotGranted(error),
                _ => FailoverRefusal::NotSettled { to: to.to_owned(), epoch: status.epoch, why },
            });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Whether the primary's server of the shared database has the primary role too.
fn serves(site: &SiteAgentStatus) -> bool {
    site.database.as_ref().is_none_or(|database| database.role == DatabaseRole::Primary && database.ready)
}

/// The unfinished actions, for status output.
pub fn left_open(state: &Utf8Path) -> Result<Vec<Value>, JournalError> {
    let records = super::journal::read(state)?;
    let open = unfinished(&records).into_iter();
    Ok(open
        .map(|r| json!({ "action": r.action, "id": r.id, "at": r.at, "by": r.by, "undo": r.undo, "data": r.data }))
        .collect())
}
