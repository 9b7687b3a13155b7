//! Applies an approved plan. Every call is recorded before it is made, and its result before any dependent starts.
//!
//! Start with [`apply`] and [`recover`] (the entry points; [`update`] and [`resume`] are those of one operation). Then
//! `run` (the loop: start ready steps, wait, record), `flight` (one operation in flight), `step` (how a step starts) and
//! `gate` (the measurement before a removal). Apply makes no decisions: where the plan left alternatives, a fixed rule
//! selects one, and the choice is recorded.

mod flight;
mod gate;
mod run;
mod step;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use textnlp_provider::{Error, Object, OperationId, Provider, Recorded, ResourceId, SiteName, Verb, Wanted};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::event::Events;
use crate::plan::Approved;
use crate::state::{Locked, OpenOperation, StateError};

pub use gate::{Answer, Gates};

/// The inputs of apply.
pub struct Drive<'a> {
    /// The provider of each site.
    pub providers: &'a BTreeMap<SiteName, Arc<dyn Provider>>,
    /// The locked state; only this run writes its journals.
    pub state: &'a mut Locked,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Receives the events.
    pub events: &'a dyn Events,
    /// Measures at gates. Without it, every gate stays closed.
    pub gates: Option<&'a dyn Gates>,
    /// Limits of concurrency and time.
    pub limits: Limits,
}

/// Limits of concurrency and time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most operations in flight.
    pub parallel: usize,
    /// The most attempts of a call that fails with a transient error.
    pub attempts: u32,
    /// The timeout of one call. Longer operations return as pending. A lease outlives every call, so a successor waits
    /// at most this long before it recovers an open operation.
    pub call: Duration,
    /// The first pause before a retry; it doubles each time.
    pub pause: Duration,
    /// The longest pause before a retry.
    pub longest_pause: Duration,
    /// The timeout of a gate's measurement.
    pub gate: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallel: 16,
            attempts: 8,
            call: Duration::from_secs(10),
            pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(15),
            gate: Duration::from_secs(1800),
        }
    }
}

/// The outcome of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// Operations that are done.
    pub done: Vec<CompletedOperation>,
    /// Steps that failed.
    pub failed: Vec<StepFailure>,
    /// Steps that were not started because of an earlier failure or a stop.
    pub skipped: Vec<Skipped>,
    /// Operations that stay open: the next run recovers them.
    pub open: Vec<UnfinishedOperation>,
    /// Gates that stayed closed; the steps behind them were not started.
    pub shut: Vec<ClosedGate>,
    /// Whether the operator asked to stop.
    pub stopped: bool,
    /// The duration in seconds.
    pub seconds: f64,
}

impl Outcome {
    /// Whether every step was done.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.skipped.is_empty() && self.open.is_empty()
    }

    /// Prepends the outcome of an earlier phase.
    pub(crate) fn after(mut self, earlier: Outcome) -> Self {
        let Outcome { done, failed, skipped, open, shut, stopped, seconds } = earlier;
        self.done.splice(0..0, done);
        self.failed.splice(0..0, failed);
        self.skipped.splice(0..0, skipped);
        self.open.splice(0..0, open);
        self.shut.splice(0..0, shut);
        self.stopped |= stopped;
        self.seconds += seconds;
        self
    }
}

/// An operation that is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletedOperation {
    /// The resource.
    pub resource: ResourceId,
    /// The verb of the call.
    pub verb: Verb,
}

/// A failed step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepFailure {
    /// The resource.
    pub resource: ResourceId,
    /// The action that failed, and its object.
    pub message: String,
    /// The causes, from the outermost in.
    pub causes: Vec<String>,
    /// The provider's error code.
    pub code: Option<String>,
    /// How to fix it.
    pub hint: Option<String>,
    /// Whether its provider refused every call, so that none changed anything.
    #[serde(skip)]
    pub refused: bool,
}

/// A step that was not started.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Skipped {
    /// The resource.
    pub resource: ResourceId,
    /// The reason.
    pub because: String,
}

/// A gate that stayed closed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClosedGate {
    /// The site.
    pub site: SiteName,
    /// The reasons.
    pub because: Vec<String>,
}

/// An operation that stays open; the next run recovers it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnfinishedOperation {
    /// The operation's id.
    pub operation: OperationId,
    /// The resource.
    pub resource: ResourceId,
    /// What it waits for, or its last error.
    pub because: String,
}

/// Why a run was aborted.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A journal could not be written, so nothing more was started.
    #[error("write the journal of `{site}`")]
    Journal {
        /// The site of the journal.
        site: SiteName,
        /// The error.
        source: StateError,
    },
    /// The journal could not be read.
    #[error("read the state")]
    State(#[source] StateError),
    /// A site has no provider.
    #[error("no provider for site `{site}`")]
    NoProvider {
        /// The site.
        site: SiteName,
    },
    /// The plan has another lineage than the state.
    #[error("the plan was made for another deployment than this one")]
    OtherLineage,
}

/// Applies a plan. When this returns, every call is recorded, and unfinished operations are listed as open.
///
/// Dependents of a failed step are skipped; independent steps continue. After `stop` nothing new is started. Calls in
/// flight finish and are recorded; longer operations stay open.
pub async fn apply(drive: Drive<'_>, plan: &Approved, stop: &CancellationToken) -> Result<Outcome, ApplyError> {
    let plan = plan.plan();
    if plan.lineage.is_some_and(|lineage| lineage != drive.state.lineage()) {
        return Err(ApplyError::OtherLineage);
    }
    run::Run::new(drive, plan, stop).apply().await
}

/// Finishes the operations that a crashed run left open, with the parameters they were started with.
pub async fn recover(drive: Drive<'_>, stop: &CancellationToken) -> Result<Outcome, ApplyError> {
    run::recover(drive, stop).await
}

/// One update of an object that is in no plan.
#[derive(Debug, Clone)]
pub struct ObjectUpdate {
    /// The wanted resource; its spec refers to no outputs.
    pub wanted: Wanted,
    /// The record.
    pub recorded: Recorded,
    /// The observed object.
    pub seen: Object,
}

/// Makes one update that is in no plan. Like those of a plan it is recorded before its call, and an interrupted one stays open.
pub async fn update(drive: Drive<'_>, update: ObjectUpdate, stop: &CancellationToken) -> Result<Outcome, ApplyError> {
    run::update(drive, update, stop).await
}

/// Finishes one operation that a crashed run left open, with the parameters that it was started with. The others stay open.
pub async fn resume(drive: Drive<'_>, open: OpenOperation, stop: &CancellationToken) -> Result<Outcome, ApplyError> {
    run::resume(drive, open, stop).await
}

impl StepFailure {
    pub(crate) fn of(resource: &ResourceId, error: &Error) -> Self {
        let mut causes = Vec::new();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        let (message, code, hint) = (error.to_string(), error.code.clone(), error.hint.clone());
        Self { resource: resource.clone(), message, causes, code, hint, refused: false }
    }

    pub(crate) fn plain(resource: &ResourceId, message: impl Into<String>, hint: &str) -> Self {
        let (message, hint) = (message.into(), Some(hint.to_owned()));
        Self { resource: resource.clone(), message, causes: Vec::new(), code: None, hint, refused: false }
    }

    /// Message and causes on one line.
    pub fn line(&self) -> String {
        std::iter::once(&self.message).chain(&self.causes).map(String::as_str).collect::<Vec<_>>().join(": ")
    }
}
