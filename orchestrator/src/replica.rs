//! Promotes the replica of a database in another region, for the day on which the region of its source is lost.
//!
//! [`find`] reads and changes nothing. [`promote`] makes one update of the replica and journals it like those of a run:
//! the next promotion finishes one that was interrupted.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use textnlp_provider::{
    CloudId, Error, ErrorKind, Health, Object, Observed, OperationId, ReadFailure, Recorded, ReplicaFields, ResourceId,
    SecretRef, Spec, Verb, Verified, Wanted, error_chain,
};
use tokio_util::sync::CancellationToken;

use crate::apply::{ObjectUpdate, Outcome, resume, update};
use crate::run::{Run, RunError, RunSite, drive};
use crate::state::{Locked, OpenOperation, State, StateError};

/// How often the source is read before its provider counts as lost.
const SOURCE_READS: u32 = 3;
/// The time between two reads of the source.
const READ_INTERVAL: Duration = Duration::from_secs(2);

/// The recorded replica of a database in another region.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Its record.
    pub recorded: Recorded,
    /// What is known of the server that it replicates.
    pub source: SourceState,
    /// Whether an earlier promotion is complete, so that nothing is left to do.
    pub is_promoted: bool,
    /// The password of its user, which is that of the server that it replicates.
    pub password: Option<SecretRef>,
    fields: ReplicaFields,
    seen: Object,
    /// The record of the server that it replicates.
    source_record: Option<Recorded>,
    /// That server, and what is removed before it.
    of_source: BTreeSet<ResourceId>,
}

/// What is known of the server that a replica follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// The replica follows no server any more.
    Detached,
    /// It does not exist, or its provider does not answer: the reason.
    Lost(String),
    /// It may accept writes: what its provider shows, or why that is unknown.
    MayRun(String),
}

/// Why a replica was not promoted.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// No provider of the environment has such replicas.
    #[error("the databases of {providers} have no replica in another region that can be promoted")]
    Unsupported {
        /// The providers.
        providers: String,
    },
    /// There is no such record.
    #[error("no replica of the database in {region} is recorded{}", listed(.elsewhere))]
    NotRecorded {
        /// The region.
        region: String,
        /// The regions that have a recorded replica.
        elsewhere: BTreeSet<String>,
    },
    /// Several sites have one.
    #[error("several sites have a replica in {region}")]
    SeveralSites {
        /// The region.
        region: String,
    },
    /// Its provider did not show it.
    #[error("read the replica {id} in {region}")]
    Unread {
        /// Its id.
        id: CloudId,
        /// Its region.
        region: String,
        /// The error.
        source: Error,
    },
    /// What its provider shows is not the recorded replica.
    #[error("the recorded replica {id} {why}")]
    Unfit {
        /// Its id.
        id: CloudId,
        /// What is wrong.
        why: String,
    },
    /// It cannot be promoted now.
    #[error("the replica {id} is not available: {why}")]
    NotReady {
        /// Its id.
        id: CloudId,
        /// What its provider shows.
        why: String,
    },
    /// Another operation on it is open.
    #[error("operation {operation} ({verb}) on the replica {id} has not finished")]
    Busy {
        /// Its id.
        id: CloudId,
        /// The operation.
        operation: OperationId,
        /// What it does.
        verb: Verb,
    },
    /// Its source may accept writes, and the operator did not permit a promotion all the same.
    #[error("the source of the replica {id} may still accept writes: {why}")]
    SourceRuns {
        /// Its id.
        id: CloudId,
        /// What the provider of the source shows, or why that is unknown.
        why: String,
    },
    /// Its record changed after it was read.
    #[error("the record of the replica {id} changed since it was read")]
    Changed {
        /// Its id.
        id: CloudId,
    },
    /// The promotion failed, or it was stopped before its end.
    #[error("promote the replica {id}")]
    Incomplete {
        /// Its id.
        id: CloudId,
        /// What was done, and why not more.
        outcome: Box<Outcome>,
    },
    /// The state, or the journal.
    #[error(transparent)]
    Run(RunError),
}

fn listed(regions: &BTreeSet<String>) -> String {
    if regions.is_empty() {
        return String::new();
    }
    format!("; there is one in {}", regions.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
}

fn of_state(error: StateError) -> ReplicaError {
    ReplicaError::Run(RunError::State(error))
}

/// Finds the recorded replica in a region and reads it, then its source. Changes nothing.
pub async fn find(run: &Run<'_>, region: &str) -> Result<Replica, ReplicaError> {
    let state = run.load().await.map_err(ReplicaError::Run)?;
    let Found { recorded, fields, source_record, of_source, password } = record(run, &state, region)?;
    let (site, id) = (&run.sites[&recorded.site], recorded.cloud_id.clone());
    let seen = match site.provider.read_recorded(&recorded).await {
        Ok(Observed::Present(seen)) => seen,
        Ok(Observed::Absent) => return Err(ReplicaError::Unfit { id, why: "does not exist any more".to_owned() }),
        Ok(Observed::Unknown(ReadFailure(why))) => return Err(ReplicaError::NotReady { id, why }),
        Err(source) => return Err(ReplicaError::Unread { id, region: region.to_owned(), source }),
    };
    let is_same = recorded.created.zip(seen.created).is_none_or(|(recorded, seen)| recorded == seen);
    if seen.lineage != Some(state.lineage()) || !is_same {
        let why = "is another server now, or has lost its tag with the lineage of this deployment";
        return Err(ReplicaError::Unfit { id, why: why.to_owned() });
    }
    let follows = |spec: &Spec| spec.get(fields.source).filter(|source| !source.is_null()).cloned();
    let (before, now) = (follows(&recorded.spec), follows(&seen.spec));
    // Ids of Azure are the same in any case, and those of other clouds do not differ by case alone.
    let is_same_source = |now: &Value, before: &Value| {
        now == before || now.as_str().zip(before.as_str()).is_some_and(|(now, before)| now.eq_ignore_ascii_case(before))
    };
    if now.as_ref().is_some_and(|now| !before.as_ref().is_some_and(|before| is_same_source(now, before))) {
        let why = format!("replicates another server: {}", text(&seen.spec, fields.source).unwrap_or_default());
        return Err(ReplicaError::Unfit { id, why });
    }
    let is_begun = interrupted(&state, &recorded, &fields)?.is_some();
    let source = match &seen.health {
        _ if now.is_none() => SourceState::Detached,
        Health::Degraded(why) if !is_begun => return Err(ReplicaError::NotReady { id, why: why.clone() }),
        // The call of a promotion that was begun may not have been made: what it is busy with may be another change.
        Health::Degraded(_) | Health::Ready => source_state(run, site, source_record.as_ref(), SOURCE_READS).await,
    };
    let is_promoted = now.is_none() && before.is_none() && !is_begun;
    Ok(Replica { recorded, source, is_promoted, password, fields, seen, source_record, of_source })
}

/// What is recorded of a replica. The members are those of [`Replica`].
struct Found {
    recorded: Recorded,
    fields: ReplicaFields,
    source_record: Option<Recorded>,
    of_source: BTreeSet<ResourceId>,
    password: Option<SecretRef>,
}

impl Found {
    /// `all` are the records of its site.
    fn of(one: &Recorded, fields: ReplicaFields, all: &[Recorded]) -> Self {
        let source = one.spec.get(fields.source).filter(|source| !source.is_null());
        let is_source = |other: &&Recorded| {
            other.kind == one.kind && source.is_some() && other.outputs.get(fields.output) == source
        };
        let source_record = all.iter().find(is_source).cloned();
        let mut of_source: BTreeSet<ResourceId> = source_record.iter().map(|source| source.id.clone()).collect();
        loop {
            let is_more = |other: &&Recorded| {
                !of_source.contains(&other.id) && other.needs.iter().any(|need| of_source.contains(&need.on))
            };
            let more: Vec<ResourceId> = all.iter().filter(is_more).map(|other| other.id.clone()).collect();
            if more.is_empty() {
                break;
            }
            of_source.extend(more);
        }
        // The user of a database may be a resource of its own.
        let beside = all.iter().filter(|other| other.id.component() == one.id.component());
        let password = std::iter::once(one).chain(beside).flat_map(|one| one.spec.secrets()).next();
        Self { recorded: one.clone(), fields, source_record, of_source, password }
    }
}

/// What is recorded of the only replica in a region.
fn record(run: &Run<'_>, state: &State, region: &str) -> Result<Found, ReplicaError> {
    let (mut found, mut elsewhere, mut is_supported) = (Vec::new(), BTreeSet::new(), false);
    for (name, site) in run.sites {
        let holdings = state.holdings(name).map_err(of_state)?;
        let current: Vec<Recorded> = holdings.into_values().filter_map(|holding| holding.current).collect();
        for kind in site.provider.kinds() {
            let Some(fields) = kind.replica else { continue };
            is_supported = true;
            for one in current.iter().filter(|one| one.kind.as_str() == kind.name) {
                match text(&one.spec, fields.region).filter(|there| *there != site.place.region) {
                    Some(there) if there == region => found.push(Found::of(one, fields, &current)),
                    Some(there) => {
                        elsewhere.insert(there.to_owned());
                    }
                    None => {}
                }
            }
        }
    }
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(ReplicaError::SeveralSites { region: region.to_owned() }),
        (None, _) if is_supported => Err(ReplicaError::NotRecorded { region: region.to_owned(), elsewhere }),
        (None, _) => {
            let providers: BTreeSet<&str> = run.sites.values().map(|site| site.place.provider.as_str()).collect();
            let providers = providers.into_iter().collect::<Vec<_>>().join(", ");
            Err(ReplicaError::Unsupported { providers })
        }
    }
}

fn text<'s>(spec: &'s Spec, field: &str) -> Option<&'s str> {
    spec.get(field).and_then(Value::as_str)
}

/// The open promotion of a replica, if one was interrupted. An error if another operation on it is open.
fn interrupted(
    state: &State,
    recorded: &Recorded,
    fields: &ReplicaFields,
) -> Result<Option<OpenOperation>, ReplicaError> {
    let open = state.open(&recorded.site).map_err(of_state)?;
    let Some(open) = open.into_values().find(|open| open.intent.operation.resource == recorded.id) else {
        return Ok(None);
    };
    let op = &open.intent.operation;
    let is_of_it = op.recorded.as_ref().is_some_and(|before| before.cloud_id == recorded.cloud_id);
    if is_of_it && op.verb == Verb::Update && op.spec.get(fields.source).is_some_and(Value::is_null) {
        return Ok(Some(open));
    }
    Err(ReplicaError::Busy { id: recorded.cloud_id.clone(), operation: op.id, verb: op.verb })
}

/// What is known of the source. It is lost only if its provider answers none of these reads.
async fn source_state(run: &Run<'_>, site: &RunSite, source: Option<&Recorded>, reads: u32) -> SourceState {
    let Some(source) = source else {
        return SourceState::MayRun("its record is missing from the state".to_owned());
    };
    let mut last = String::new();
    for read in 0..reads {
        if read > 0 {
            run.clock.sleep(READ_INTERVAL).await;
        }
        match site.provider.read_recorded(source).await {
            Ok(Observed::Present(seen)) => {
                return SourceState::MayRun(match seen.health {
                    Health::Ready => format!("{} answers and is available", source.cloud_id),
                    Health::Degraded(why) => format!("{} exists: {why}", source.cloud_id),
                });
            }
            Ok(Observed::Absent) => return SourceState::Lost(format!("{} does not exist any more", source.cloud_id)),
            Ok(Observed::Unknown(ReadFailure(why))) => return SourceState::MayRun(why),
            Err(error) if error.kind == ErrorKind::Unavailable => last = error_chain(&error),
            Err(error) => return SourceState::MayRun(error_chain(&error)),
        }
    }
    SourceState::Lost(last)
}

impl Replica {
    /// How clients verify the certificate of a promoted one.
    pub fn verified(&self) -> Verified {
        self.fields.verified
    }

    /// Refuses a promotion while the source may accept writes: two servers would then accept different ones.
    ///
    /// # Errors
    /// The source may run, and the operator does not accept that.
    pub fn permit(&self, while_source_runs: bool) -> Result<(), ReplicaError> {
        permitted(&self.recorded, &self.source, while_source_runs)
    }

    /// The update that promotes it, and changes nothing else of it.
    fn update(&self) -> ObjectUpdate {
        let Self { recorded, seen, fields, source_record, of_source, .. } = self;
        let mut spec = seen.spec.applied().as_value().clone();
        if !spec[fields.source].is_null() {
            spec[fields.source] = Value::Null;
            for field in fields.inherited {
                if let Some(value) = source_record.as_ref().and_then(|source| source.spec.get(field)) {
                    spec[*field] = value.clone();
                }
            }
        }
        // From now on it has data that no other server has, also in an environment whose data is not protected.
        if let Some(field) = fields.protection {
            spec[field] = Value::Bool(true);
        }
        let mut needs = recorded.needs.clone();
        // Else a `down` that retains the promoted server would retain its source too.
        needs.retain(|need| !of_source.contains(&need.on));
        let wanted = Wanted {
            id: recorded.id.clone(),
            kind: recorded.kind.clone(),
            site: recorded.site.clone(),
            via: recorded.via.clone(),
            spec: Spec::of(&spec),
            needs,
            ownership: recorded.ownership.clone(),
            protected: true,
        };
        ObjectUpdate { wanted, recorded: recorded.clone(), seen: seen.clone() }
    }
}

fn permitted(recorded: &Recorded, source: &SourceState, while_source_runs: bool) -> Result<(), ReplicaError> {
    match source {
        SourceState::MayRun(why) if !while_source_runs => {
            Err(ReplicaError::SourceRuns { id: recorded.cloud_id.clone(), why: why.clone() })
        }
        _ => Ok(()),
    }
}

/// Promotes a replica, and waits until it is available as a server of its own. Returns its record, which protects it from
/// removal. One that is promoted already stays as it is. Unless `while_source_runs`, a source that was lost is read again before
/// the call: an approval may take long.
pub async fn promote(
    run: &Run<'_>,
    replica: &Replica,
    while_source_runs: bool,
    stop: &CancellationToken,
) -> Result<Recorded, ReplicaError> {
    if replica.is_promoted {
        return Ok(replica.recorded.clone());
    }
    let state = run.load().await.map_err(ReplicaError::Run)?;
    let locked = state.lock(&run.operator, &run.places(), run.clock.clone()).await;
    let mut locked = locked.map_err(of_state)?;
    let promoted = promote_locked(run, replica, while_source_runs, stop, &mut locked).await;
    // The caller gets the first error.
    let closed = locked.close().await.map_err(of_state);
    let promoted = promoted?;
    closed?;
    Ok(promoted)
}

async fn promote_locked(
    run: &Run<'_>,
    replica: &Replica,
    while_source_runs: bool,
    stop: &CancellationToken,
    locked: &mut Locked,
) -> Result<Recorded, ReplicaError> {
    if let Some(hold) = locked.held().await.map_err(of_state)? {
        return Err(ReplicaError::Run(RunError::Frozen(Box::new(hold))));
    }
    let Replica { recorded, source, source_record, fields, .. } = replica;
    let id = || recorded.cloud_id.clone();
    if locked.current(&recorded.site, &recorded.id).as_ref() != Some(recorded) {
        return Err(ReplicaError::Changed { id: id() });
    }
    if matches!(source, SourceState::Lost(_)) && !while_source_runs {
        let site = &run.sites[&recorded.site];
        permitted(recorded, &source_state(run, site, source_record.as_ref(), 1).await, while_source_runs)?;
    }
    if stop.is_cancelled() {
        let outcome = Outcome { stopped: true, ..Outcome::default() };
        return Err(ReplicaError::Incomplete { id: id(), outcome: Box::new(outcome) });
    }
    let (open, providers) = (interrupted(locked, recorded, fields)?, run.providers());
    let drive = drive(run, &providers, locked);
    let outcome = match open {
        Some(open) => resume(drive, open, stop).await,
        None => update(drive, replica.update(), stop).await,
    };
    let outcome = outcome.map_err(|error| ReplicaError::Run(RunError::Apply(error)))?;
    if !outcome.is_complete() {
        return Err(ReplicaError::Incomplete { id: id(), outcome: Box::new(outcome) });
    }
    locked.current(&recorded.site, &recorded.id).ok_or_else(|| ReplicaError::Changed { id: id() })
}
