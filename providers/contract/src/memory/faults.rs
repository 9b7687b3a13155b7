//! Fault injection, and a fuse that stops a run at a chosen boundary.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::ErrorKind;
use crate::name::ResourceId;
use crate::operation::Verb;

/// A fault that affects matching calls.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The resource; `None` matches all.
    pub resource: Option<ResourceId>,
    /// The verb; `None` matches all.
    pub verb: Option<Verb>,
    /// The call of an operation.
    pub stage: Stage,
    /// The effect.
    pub go: FaultEffect,
    /// The count of affected calls.
    pub times: u32,
}

impl Fault {
    /// Happens once, to the next `begin` of any operation.
    pub fn once(go: FaultEffect) -> Self {
        Self { resource: None, verb: None, stage: Stage::Begin, go, times: 1 }
    }

    /// Only with this resource.
    #[must_use]
    pub fn on(mut self, resource: &ResourceId) -> Self {
        self.resource = Some(resource.clone());
        self
    }

    /// Only with this verb.
    #[must_use]
    pub fn verb(mut self, verb: Verb) -> Self {
        self.verb = Some(verb);
        self
    }

    /// With this call of an operation.
    #[must_use]
    pub fn stage(mut self, stage: Stage) -> Self {
        self.stage = stage;
        self
    }

    /// This many times.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }
}

/// Which call of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `begin`.
    Begin,
    /// `advance`.
    Advance,
    /// Either.
    Any,
}

/// The effect of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultEffect {
    /// The request is lost: nothing happens, and the caller cannot know.
    LostRequest,
    /// The request succeeds, and the answer is lost.
    LostReply,
    /// Too many calls.
    Throttle(Option<Duration>),
    /// Refused with this error; nothing happens.
    Refuse(ErrorKind),
    /// A create fails half-way and leaves a broken object.
    FailLeaving,
    /// It fails permanently; nothing is left.
    Fail(ErrorKind),
    /// It waits, if its kind is slow, after this alternative was found to lack capacity.
    LacksCapacity(&'static str),
}

/// A change of an object by another party.
#[derive(Debug, Clone, PartialEq)]
pub enum Drift {
    /// It is removed.
    Removed,
    /// A field is changed.
    Changed(String, serde_json::Value),
    /// It becomes unhealthy, for this reason.
    Degraded(String),
    /// The controllers of a cluster create an object inside its network.
    Child,
}

/// Counts the boundaries that a run crosses and stops the run at one of them, as a power failure would.
///
/// The run's future never wakes again; its driver notices that and drops it.
#[derive(Clone)]
pub struct Fuse(Arc<FuseState>);

struct FuseState {
    crossed: AtomicU64,
    at: u64,
    blown: AtomicBool,
    names: Mutex<Vec<String>>,
}

impl Default for Fuse {
    fn default() -> Self {
        Self::blows_at(u64::MAX)
    }
}

impl Fuse {
    /// Blows at the boundary of this number, counted from zero.
    pub fn blows_at(boundary: u64) -> Self {
        let (crossed, blown, names) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
        Self(Arc::new(FuseState { crossed, at: boundary, blown, names }))
    }

    /// Crosses a boundary, or never returns.
    pub async fn cross(&self, name: impl FnOnce() -> String) {
        let boundary = self.0.crossed.fetch_add(1, Ordering::SeqCst);
        if self.0.at != u64::MAX || boundary < KEPT_NAMES {
            self.0.names.lock().unwrap_or_else(PoisonError::into_inner).push(name());
        }
        // A stopped run does nothing more, whichever of its calls blew the fuse.
        if boundary >= self.0.at {
            self.0.blown.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
    }

    /// How many boundaries were crossed.
    pub fn crossed(&self) -> u64 {
        self.0.crossed.load(Ordering::SeqCst)
    }

    /// Whether it has blown.
    pub fn blown(&self) -> bool {
        self.0.blown.load(Ordering::SeqCst)
    }

    /// The name of the last boundary that was reached.
    pub fn last(&self) -> Option<String> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }
}

/// A fuse that never blows belongs to a long run, whose first boundaries are enough for a diagnosis.
const KEPT_NAMES: u64 = 10_000;
