//! Failover and failback by hand: which of the ways there are is taken, why one is refused, and that it came about.

use std::time::Duration;

use camino::Utf8Path;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::journal::{Action, Journal, JournalError, WHOLE, unfinished};
use super::picture::Picture;
use super::talk::{Everybody, TalkError, WatchStatus, WitnessStatus};

/// A site that was granted the primary's place takes writes within a few looks of its watch.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After the primary has refused to give its place back.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How the place was got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The primary gave it away: nothing was waiting, nothing is lost.
    Handover,
    /// The primary is gone; the witness granted it.
    Claim,
    /// It was so already.
    Already,
}

/// What a failover or failback came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shifted {
    /// Who was primary.
    pub from: String,
    /// Who is now.
    pub to: String,
    /// How.
    pub way: Way,
    /// The configuration before.
    pub epoch_before: u64,
    /// The configuration now.
    pub epoch: u64,
    /// How long it took.
    pub seconds: f64,
    /// An earlier attempt that was left unfinished, and is finished by this.
    pub finished: Option<String>,
    /// What the lost one's server of a shared database had not sent to the others is gone: its history is not gone on with.
    pub unsent: bool,
}

/// Why it was not done. Nothing was changed, but for [`Refusal::NotSettled`].
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such site.
    #[error("there is no site `{site}`; the sites are {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        site: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The site that should become primary does not answer.
    #[error("{site} cannot become primary: {why}")]
    NotThere {
        /// Which.
        site: String,
        /// What its watch says.
        why: TalkError,
    },
    /// It lacks acknowledged writes, or may.
    #[error("{site} is no member of epoch {epoch}{}: as primary it would lose what the members acknowledged", behind.map(|n| format!(" and {n} entries behind")).unwrap_or_default())]
    NotMember {
        /// Which.
        site: String,
        /// The configuration.
        epoch: u64,
        /// What it lacks, where that is known.
        behind: Option<u64>,
    },
    /// It is a member, and has not caught up within the time given.
    #[error("{site} is still behind by {by} entries after {waited_s} s")]
    Behind {
        /// Which.
        site: String,
        /// What it lacks.
        by: u64,
        /// How long was waited.
        waited_s: u64,
    },
    /// It is a member, and its copy of the database lacks something.
    #[error("the database of {site} still lacks what the primary's has after {waited_s} s")]
    NotFit {
        /// Which.
        site: String,
        /// How long was waited.
        waited_s: u64,
    },
    /// Only the witness grants, and it does not answer.
    #[error("the witness cannot be reached: {0}; without it no site may take another's place")]
    Witness(TalkError),
    /// The primary may still be alive somewhere.
    #[error(
        "{primary} was heard {renewed_ms} ms ago; its place is free when it has been silent for {grace_ms} ms: {left_ms} ms are left"
    )]
    Grace {
        /// Who holds the place.
        primary: String,
        /// When it was heard last.
        renewed_ms: u64,
        /// How long it may be silent.
        grace_ms: u64,
        /// How long still.
        left_ms: u64,
    },
    /// It was asked for, and not granted.
    #[error("{0}")]
    NotGranted(TalkError),
    /// It was granted, and cannot be seen to work.
    #[error("{to} was granted epoch {epoch} and does not take writes yet: {why}")]
    NotSettled {
        /// Who became primary.
        to: String,
        /// Under which configuration.
        epoch: u64,
        /// What it says.
        why: String,
    },
    /// Nothing is done without it.
    #[error("keep the journal")]
    Journal(#[from] JournalError),
}

/// Makes `to` primary: through the primary where that is there, else by a claim that the witness grants. Begun and ended in the
/// journal; an attempt that another process left unfinished is finished by this one.
pub async fn failover(everybody: &Everybody, journal: &mut Journal, to: &str) -> Result<Shifted, Refusal> {
    shift(everybody, journal, Action::Failover, to).await
}

/// Makes the home site primary again, once it is a member and has caught up; waits for that at most `wait`. `tell` hears why it waits.
pub async fn failback(
    everybody: &Everybody,
    journal: &mut Journal,
    wait: Duration,
    tell: &(dyn Fn(&str) + Send + Sync),
) -> Result<Shifted, Refusal> {
    let home = everybody.home.clone();
    let began = Instant::now();
    let mut told = String::new();
    loop {
        let picture = Picture::take(everybody).await;
        let witness = picture.witness.as_ref().map_err(|error| Refusal::Witness(error.clone()))?;
        let behind = picture.behind(&home);
        let is_member = witness.members.contains(&home) || witness.primary == home;
        let database = picture.site(&home).and_then(|status| status.database.as_ref());
        let is_fit = database.is_none_or(|database| database.fit);
        if is_member && is_fit && behind.is_none_or(|entries| entries == 0) {
            match shift(everybody, journal, Action::Failback, &home).await {
                // The primary knows better how far home is. It has changed nothing, and is asked again.
                Err(Refusal::NotGranted(error)) if began.elapsed() < wait => {
                    let says = error.to_string();
                    if told != says {
                        tell(&says);
                        told = says;
                    }
                    tokio::time::sleep(ASK_AGAIN).await;
                    continue;
                }
                done => return done,
            }
        }
        if began.elapsed() >= wait {
            return Err(match (picture.sites.into_iter().find(|(name, _)| *name == home), behind) {
                (Some((_, Err(why))), _) => Refusal::NotThere { site: home, why },
                _ if is_member && !is_fit => Refusal::NotFit { site: home, waited_s: wait.as_secs() },
                (_, Some(by)) if is_member => Refusal::Behind { site: home, by, waited_s: wait.as_secs() },
                _ => Refusal::NotMember { site: home, epoch: witness.epoch, behind },
            });
        }
        let says = match (is_member, behind) {
            _ if is_member && !is_fit => format!("the database of {home} is being copied"),
            (false, Some(by)) => format!("{home} is no member yet and {by} entries behind"),
            (false, None) => format!("{home} is no member yet"),
            (true, by) => format!("{home} is {} entries behind", by.unwrap_or_default()),
        };
        // What is waited for is said once, not at every look.
        if told != says {
            tell(&says);
            told = says;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn shift(everybody: &Everybody, journal: &mut Journal, action: Action, to: &str) -> Result<Shifted, Refusal> {
    let began = Instant::now();
    let picture = Picture::take(everybody).await;
    let witness = look(everybody, &picture, to)?;
    let open: Vec<(Action, String)> = unfinished(journal.records())
        .into_iter()
        .filter(|record| record.action != Action::Drill)
        .map(|record| (record.action, record.id.clone()))
        .collect();
    let finished = open.last().map(|(_, id)| id.clone());
    let from = witness.primary.clone();
    let mut done = Shifted {
        from: from.clone(),
        to: to.to_owned(),
        way: Way::Already,
        epoch_before: witness.epoch,
        epoch: witness.epoch,
        seconds: 0.0,
        finished,
        unsent: false,
    };
    if from != to {
        let alive = picture.site(&from).is_some_and(|status| status.role == "primary");
        done.way = if alive { Way::Handover } else { Way::Claim };
        done.unsent = match alive {
            true => picture.site(&from).is_some_and(|status| !serves(status)),
            false => picture.sites.iter().any(|(_, site)| site.as_ref().is_ok_and(|site| site.database.is_some())),
        };
        let grace = grace(witness);
        if let (Way::Claim, Some(refusal)) = (done.way, grace) {
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
        match take(everybody, done.way, &from, to).await {
            Ok(epoch) => {
                done.epoch = epoch;
                journal.end(action, &id, WHOLE, json!({ "epoch": epoch }))?;
            }
            Err(refusal) => {
                journal.fail(action, &id, WHOLE, &textnlp_provider::told(&refusal))?;
                return Err(refusal);
            }
        }
    }
    // What others left open is settled by the same end: there is one primary, and it is this one.
    for (action, id) in open {
        journal.end(action, &id, WHOLE, json!({ "finished_by": "a later attempt", "primary": to }))?;
    }
    done.seconds = began.elapsed().as_secs_f64();
    Ok(done)
}

/// Refuses what cannot be, before anything is asked of anybody.
fn look<'p>(everybody: &Everybody, picture: &'p Picture, to: &str) -> Result<&'p WitnessStatus, Refusal> {
    let known = everybody.names();
    let Some((_, status)) = picture.sites.iter().find(|(name, _)| name == to) else {
        return Err(Refusal::Unknown { site: to.to_owned(), known });
    };
    let witness = picture.witness.as_ref().map_err(|error| Refusal::Witness(error.clone()))?;
    if let Err(why) = status {
        return Err(Refusal::NotThere { site: to.to_owned(), why: why.clone() });
    }
    if witness.primary != to && !witness.members.iter().any(|name| name == to) {
        return Err(Refusal::NotMember { site: to.to_owned(), epoch: witness.epoch, behind: picture.behind(to) });
    }
    Ok(witness)
}

/// Why the primary's place is not free yet.
pub fn grace(witness: &WitnessStatus) -> Option<Refusal> {
    (witness.renewed_ms < witness.grace_ms).then(|| Refusal::Grace {
        primary: witness.primary.clone(),
        renewed_ms: witness.renewed_ms,
        grace_ms: witness.grace_ms,
        left_ms: witness.grace_ms - witness.renewed_ms,
    })
}

async fn take(everybody: &Everybody, way: Way, from: &str, to: &str) -> Result<u64, Refusal> {
    let watch = |site: &str| {
        let known = everybody.names();
        everybody.watch(site).ok_or_else(|| Refusal::Unknown { site: site.to_owned(), known })
    };
    let asked = match way {
        Way::Handover => watch(from)?.hand_over(to).await,
        Way::Claim | Way::Already => watch(to)?.claim().await,
    };
    // An answer that got lost may have been a yes: the witness knows.
    let lost = match asked {
        Ok(()) => None,
        Err(error @ TalkError::Refused { .. }) => return Err(Refusal::NotGranted(error)),
        Err(error) => Some(error),
    };
    let began = Instant::now();
    let mut why = String::from("it was not asked yet");
    loop {
        // One look that fails says nothing of what was granted.
        let status = everybody.witness.status().await;
        match &status {
            Ok(status) if status.primary == to => match watch(to)?.status().await {
                Ok(site) if site.writable && site.epoch >= status.epoch && serves(&site) => return Ok(status.epoch),
                Ok(site) if site.writable => {
                    let database = site.database.and_then(|database| database.why);
                    why = database
                        .map_or_else(|| format!("it knows epoch {}", site.epoch), |why| format!("its database: {why}"));
                }
                Ok(site) => why = site.why_not.unwrap_or_else(|| format!("it knows epoch {}", site.epoch)),
                Err(error) => why = error.to_string(),
            },
            Ok(_) => {}
            Err(error) => why = error.to_string(),
        }
        if began.elapsed() > SETTLED_WITHIN {
            let status = status.map_err(Refusal::Witness)?;
            return Err(match lost {
                Some(error) if status.primary != to => Refusal::NotGranted(error),
                _ => Refusal::NotSettled { to: to.to_owned(), epoch: status.epoch, why },
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a primary's server of a shared database is one too.
fn serves(site: &WatchStatus) -> bool {
    site.database.as_ref().is_none_or(|database| database.role == "primary" && database.ready)
}

/// What was begun and never ended, for those who look.
pub fn left_open(state: &Utf8Path) -> Result<Vec<Value>, JournalError> {
    let records = super::journal::read(state)?;
    let open = unfinished(&records).into_iter();
    Ok(open
        .map(|r| json!({ "action": r.action, "id": r.id, "at": r.at, "by": r.by, "undo": r.undo, "data": r.data }))
        .collect())
}
