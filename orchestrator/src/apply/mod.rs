//! An approved plan becomes real: every call is written down before it is made, and what came of it before anything depends on it.
//!
//! Read in this order: [`apply`] and [`recover`] (the two ways in), `run` (the loop: start what is ready, wait, write down),
//! `flight` (one operation in the air), `step` (what a step begins with), `gate` (who is asked before anything of the old goes). Apply decides nothing: what the plan left open is
//! chosen by rule among the plan's alternatives, and the choice is written down.

mod flight;
mod gate;
mod run;
mod step;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use textnlp_provider::{Error, OperationId, Provider, ResourceId, SiteName, Verb};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::event::Events;
use crate::plan::Approved;
use crate::state::{Locked, StateError};

pub use gate::{Answer, Gates};

/// Everything that applying works with.
pub struct Drive<'a> {
    /// Who is called at each site.
    pub providers: &'a BTreeMap<SiteName, Arc<dyn Provider>>,
    /// The journal, which only this run writes.
    pub state: &'a mut Locked,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Who listens.
    pub events: &'a dyn Events,
    /// Who is asked at gates; where there is nobody, they stay shut.
    pub gates: Option<&'a dyn Gates>,
    /// How much at once, and how long.
    pub limits: Limits,
}

/// How much at once, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Operations in the air at once.
    pub parallel: usize,
    /// How often a call is made that fails in a way that may pass.
    pub attempts: u32,
    /// How long one call may take. Longer work comes back as pending: a lease outlives every call, and a successor waits no
    /// longer than this before it touches what a dead run left open.
    pub call: Duration,
    /// The first pause before a call is made again; it doubles each time.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long a gate may take to answer.
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

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// Operations that are finished.
    pub done: Vec<Did>,
    /// What failed.
    pub failed: Vec<Failure>,
    /// What was not begun because something before it failed, or because of a stop.
    pub skipped: Vec<Skipped>,
    /// Operations that stay open: the next run finishes them.
    pub open: Vec<LeftOpen>,
    /// Gates that were asked and are shut: what waits for them was not begun.
    pub shut: Vec<Shut>,
    /// Somebody asked to stop.
    pub stopped: bool,
    /// How long it took.
    pub seconds: f64,
}

impl Outcome {
    /// Whether everything was done that was to be done.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.skipped.is_empty() && self.open.is_empty()
    }

    /// Puts what happened before in front.
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

/// A finished operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Did {
    /// On what.
    pub resource: ResourceId,
    /// What.
    pub verb: Verb,
}

/// A failed step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    /// Which resource.
    pub resource: ResourceId,
    /// What was being done, and to what.
    pub message: String,
    /// Why, from the outside in.
    pub causes: Vec<String>,
    /// The provider's own code.
    pub code: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// A step that was not begun.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Skipped {
    /// Which resource.
    pub resource: ResourceId,
    /// Why.
    pub because: String,
}

/// A gate that is shut.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shut {
    /// Of which site.
    pub site: SiteName,
    /// Why.
    pub because: Vec<String>,
}

/// An operation that stays open.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeftOpen {
    /// Which.
    pub operation: OperationId,
    /// On what.
    pub resource: ResourceId,
    /// What it waits for, or what went wrong last.
    pub because: String,
}

/// Why a run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// What happens could not be written down, so nothing more was begun.
    #[error("write the journal of `{site}`")]
    Journal {
        /// Whose journal.
        site: SiteName,
        /// Why.
        source: StateError,
    },
    /// The journal could not be read.
    #[error("read the state")]
    State(#[source] StateError),
    /// Nobody is there to be called at a site.
    #[error("no provider for site `{site}`")]
    NoProvider {
        /// Which site.
        site: SiteName,
    },
    /// The plan was made for another deployment than the state's.
    #[error("the plan was made for another deployment than this one")]
    OtherLineage,
}

/// Applies a plan. When this returns, everything that was called is written down; what is not finished is listed as open.
///
/// Dependents of a failure are skipped, independent work goes on. After `stop` nothing new is started: calls in the air
/// come back and are written down, longer operations stay open.
pub async fn apply(drive: Drive<'_>, plan: &Approved, stop: &CancellationToken) -> Result<Outcome, ApplyError> {
    let plan = plan.plan();
    if plan.lineage.is_some_and(|lineage| lineage != drive.state.lineage()) {
        return Err(ApplyError::OtherLineage);
    }
    run::Run::new(drive, plan, stop).apply().await
}

/// Finishes the operations that a dead run left open, with the parameters they were begun with.
pub async fn recover(drive: Drive<'_>, stop: &CancellationToken) -> Result<Outcome, ApplyError> {
    run::recover(drive, stop).await
}

impl Failure {
    pub(crate) fn of(resource: &ResourceId, error: &Error) -> Self {
        let mut causes = Vec::new();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        let (message, code, hint) = (error.to_string(), error.code.clone(), error.hint.clone());
        Self { resource: resource.clone(), message, causes, code, hint }
    }

    pub(crate) fn plain(resource: &ResourceId, message: impl Into<String>, hint: &str) -> Self {
        let (message, hint) = (message.into(), Some(hint.to_owned()));
        Self { resource: resource.clone(), message, causes: Vec::new(), code: None, hint }
    }

    /// Message and causes in one line.
    pub fn line(&self) -> String {
        std::iter::once(&self.message).chain(&self.causes).map(String::as_str).collect::<Vec<_>>().join(": ")
    }
}
