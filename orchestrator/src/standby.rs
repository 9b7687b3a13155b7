//! Fails the managed database of a cloud over to its standby, for a rehearsal.
//!
//! [`find`] reads and changes nothing. [`fail_over`] makes one update and journals it like those of a run. One that is
//! interrupted stays open: the next `up` reads what became of it, and does not repeat it.

use std::time::Duration;

use textnlp_provider::operations::DatabaseStatus;
use textnlp_provider::{
    CloudId, Error, Health, Object, Observed, OperationId, Ownership, ReadFailure, Recorded, Spec, Verb, Wanted, Zones,
};
use tokio_util::sync::CancellationToken;

use crate::apply::{ObjectUpdate, Outcome, update};
use crate::run::{Run, RunError, drive};
use crate::state::{Locked, StateError};

/// How long a failover may take until the standby is shown as the primary: clouds show its zone minutes late.
const TIMEOUT: Duration = Duration::from_secs(900);
/// A server and its standby.
pub const INSTANCES: u32 = 2;

/// A recorded database with a standby.
#[derive(Debug, Clone)]
pub struct Standby {
    recorded: Recorded,
    seen: Object,
    zones: Zones,
}

/// Why there was no failover.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// There is no such record.
    #[error("no managed database whose provider fails it over is recorded")]
    NotRecorded,
    /// Several sites have one.
    #[error("several sites have a managed database")]
    SeveralSites,
    /// Its provider did not show it.
    #[error("read the database {id}")]
    Unread {
        /// Its id.
        id: CloudId,
        /// The error.
        source: Error,
    },
    /// It cannot be failed over now.
    #[error("the database {id} {why}")]
    NotReady {
        /// Its id.
        id: CloudId,
        /// What its provider shows.
        why: String,
    },
    /// Another operation on it is open.
    #[error("operation {operation} ({verb}) on the database {id} has not finished")]
    Busy {
        /// Its id.
        id: CloudId,
        /// The operation.
        operation: OperationId,
        /// What it does.
        verb: Verb,
    },
    /// No call was made, or the provider refused it.
    #[error("the database {id} was not failed over: {why}")]
    NotMade {
        /// Its id.
        id: CloudId,
        /// The refusal.
        why: String,
    },
    /// The failover failed, or its end was not seen.
    #[error("fail the database {id} over: {why}")]
    Incomplete {
        /// Its id.
        id: CloudId,
        /// What was not done.
        why: String,
    },
    /// The state, or the journal.
    #[error(transparent)]
    Run(RunError),
}

fn of_state(error: StateError) -> StandbyError {
    StandbyError::Run(RunError::State(error))
}

/// Finds the only recorded database that is no replica, and reads it. Changes nothing.
pub async fn find(run: &Run<'_>) -> Result<Standby, StandbyError> {
    let state = run.load().await.map_err(StandbyError::Run)?;
    let mut found = Vec::new();
    for (name, site) in run.sites {
        let holdings = state.holdings(name).map_err(of_state)?;
        for one in holdings.into_values().filter_map(|holding| holding.current) {
            let fields = site.provider.kinds().iter().find(|kind| kind.name == one.kind.as_str());
            let Some(fields) = fields.and_then(|kind| kind.replica) else { continue };
            let text = |field: &str| one.spec.get(field).and_then(|value| value.as_str());
            // One in another region was a replica until it was promoted.
            let is_elsewhere = text(fields.region).is_some_and(|region| region != site.place.region);
            if one.ownership == Ownership::Ours && text(fields.source).is_none() && !is_elsewhere {
                found.push(one);
            }
        }
    }
    let mut found = found.into_iter();
    let recorded = match (found.next(), found.next()) {
        (Some(one), None) => one,
        (Some(_), Some(_)) => return Err(StandbyError::SeveralSites),
        (None, _) => return Err(StandbyError::NotRecorded),
    };
    let id = recorded.cloud_id.clone();
    let open = state.open(&recorded.site).map_err(of_state)?;
    if let Some(open) = open.into_values().find(|open| open.intent.operation.resource == recorded.id) {
        let op = &open.intent.operation;
        return Err(StandbyError::Busy { id, operation: op.id, verb: op.verb });
    }
    let seen = read(run, &recorded).await?;
    let is_same = recorded.created.zip(seen.created).is_none_or(|(recorded, seen)| recorded == seen);
    if seen.lineage != Some(state.lineage()) || !is_same {
        let why = "is another server now, or has lost its tag with the lineage of this deployment".to_owned();
        return Err(StandbyError::NotReady { id, why });
    }
    if let Health::Degraded(why) = &seen.health {
        return Err(StandbyError::NotReady { id, why: format!("is not available: {why}") });
    }
    match seen.spec.zones().filter(|zones| zones.is_ready) {
        Some(zones) => Ok(Standby { recorded, seen, zones }),
        None => Err(StandbyError::NotReady { id, why: "has no standby that can take over".to_owned() }),
    }
}

async fn read(run: &Run<'_>, recorded: &Recorded) -> Result<Object, StandbyError> {
    let id = || recorded.cloud_id.clone();
    match run.sites[&recorded.site].provider.read_recorded(recorded).await {
        Ok(Observed::Present(seen)) => Ok(seen),
        Ok(Observed::Absent) => Err(StandbyError::NotReady { id: id(), why: "does not exist any more".to_owned() }),
        Ok(Observed::Unknown(ReadFailure(why))) => Err(StandbyError::NotReady { id: id(), why }),
        Err(source) => Err(StandbyError::Unread { id: id(), source }),
    }
}

impl Standby {
    /// Its instances when it was found.
    pub fn before(&self) -> DatabaseStatus {
        status(&self.seen)
    }

    /// Reads its instances.
    ///
    /// # Errors
    /// Its provider does not show it.
    pub async fn status(&self, run: &Run<'_>) -> Result<DatabaseStatus, StandbyError> {
        read(run, &self.recorded).await.map(|seen| status(&seen))
    }

    /// The update that fails over, and changes nothing else.
    fn update(&self) -> ObjectUpdate {
        let Self { recorded, seen, zones } = self;
        let mut spec = seen.spec.applied().as_value().clone();
        // What answers never show, such as a password, stays as recorded.
        for (field, value) in recorded.spec.applied().fields() {
            if spec[field.as_str()].is_null() {
                spec[field.as_str()] = value.clone();
            }
        }
        let wanted = Wanted {
            id: recorded.id.clone(),
            kind: recorded.kind.clone(),
            site: recorded.site.clone(),
            via: recorded.via.clone(),
            spec: Spec::of(&spec).with_zones(&zones.failed_over()),
            needs: recorded.needs.clone(),
            ownership: recorded.ownership.clone(),
            protected: recorded.protected,
        };
        ObjectUpdate { wanted, recorded: recorded.clone(), seen: seen.clone() }
    }
}

fn status(seen: &Object) -> DatabaseStatus {
    let zones = seen.spec.zones();
    let is_ready = seen.health == Health::Ready && zones.as_ref().is_some_and(|zones| zones.is_ready);
    let ready = if is_ready { INSTANCES } else { 0 };
    let primary =
        zones.map_or_else(|| seen.cloud_id.to_string(), |zones| format!("{} in {}", seen.cloud_id, zones.primary));
    DatabaseStatus { primary, wanted: INSTANCES, ready }
}

/// Whether it may be failed over now, by the state: nothing holds it, and the record is still that which was found. The caller
/// holds the lock.
///
/// # Errors
/// It may not.
pub async fn permit(standby: &Standby, locked: &mut Locked) -> Result<(), StandbyError> {
    if let Some(hold) = locked.held().await.map_err(of_state)? {
        return Err(StandbyError::Run(RunError::Frozen(Box::new(hold))));
    }
    let Standby { recorded, .. } = standby;
    if locked.current(&recorded.site, &recorded.id).as_ref() != Some(recorded) {
        let (id, why) = (recorded.cloud_id.clone(), "its record changed since it was read".to_owned());
        return Err(StandbyError::NotMade { id, why });
    }
    Ok(())
}

/// Fails over, and waits until the provider shows the standby as the primary. The caller holds the lock, under which
/// [`permit`] succeeded.
///
/// # Errors
/// It failed, or its end was not seen in time.
pub async fn fail_over(run: &Run<'_>, standby: &Standby, locked: &mut Locked) -> Result<(), StandbyError> {
    let id = || standby.recorded.cloud_id.clone();
    let (late, providers) = (CancellationToken::new(), run.providers());
    let mut updated = std::pin::pin!(update(drive(run, &providers, locked), standby.update(), &late));
    let outcome = tokio::select! {
        outcome = &mut updated => outcome,
        () = run.clock.sleep(TIMEOUT) => {
            late.cancel();
            updated.await
        }
    };
    let outcome = outcome.map_err(|error| StandbyError::Run(RunError::Apply(error)))?;
    if outcome.is_complete() {
        return Ok(());
    }
    let Outcome { failed, open, skipped, .. } = outcome;
    let is_made = !open.is_empty() || failed.iter().any(|failure| !failure.refused);
    let failed = failed.iter().map(|failure| failure.line());
    let open = open.into_iter().map(|open| format!("its end was not seen: {}", open.because));
    let skipped = skipped.into_iter().map(|skipped| skipped.because);
    let why = failed.chain(open).chain(skipped).collect::<Vec<_>>().join("; ");
    Err(if is_made { StandbyError::Incomplete { id: id(), why } } else { StandbyError::NotMade { id: id(), why } })
}
