//! Events while a plan is applied, for the progress display and for `--output jsonl`.

use jiff::Timestamp;
use serde::Serialize;
use textnlp_provider::{OperationId, ResourceId, SiteName, Verb};

/// An event of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// When, by the wall clock.
    pub at: Timestamp,
    /// The event.
    #[serde(flatten)]
    pub what: EventKind,
}

/// The kind of an event.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// Providers are reading the actual objects.
    Looking {
        /// The site.
        site: SiteName,
    },
    /// An operation that a crashed run left open is finished first.
    Recovering {
        /// The operation's id.
        operation: OperationId,
        /// The resource.
        resource: ResourceId,
        /// The verb of the call.
        verb: Verb,
    },
    /// A plan was made and approved; this many steps follow.
    Planned {
        /// The count of steps.
        steps: usize,
    },
    /// An operation was written to the journal and its call is about to be made.
    Started {
        /// The operation's id.
        operation: OperationId,
        /// The resource.
        resource: ResourceId,
        /// The verb of the call.
        verb: Verb,
    },
    /// A longer operation reports what it waits for.
    Says {
        /// The resource.
        resource: ResourceId,
        /// The provider's message.
        text: String,
    },
    /// A call failed with a transient error and is retried.
    Retrying {
        /// The resource.
        resource: ResourceId,
        /// The error.
        because: String,
        /// Milliseconds until the next attempt.
        in_ms: u64,
    },
    /// A site is measured from outside before any old object is removed.
    GateAsked {
        /// The site.
        site: SiteName,
    },
    /// A gate was measured. It is open if there is no reason against it.
    GateAnswered {
        /// The site.
        site: SiteName,
        /// Every reason that keeps it closed.
        shut_because: Vec<String>,
    },
    /// A choice that the plan left open was made.
    Chose {
        /// The resource.
        resource: ResourceId,
        /// The branch: `nothing`, `update` or `replace`.
        branch: String,
    },
    /// Only the record changed; no call was made.
    Noted {
        /// The resource.
        resource: ResourceId,
        /// The change: `adopt`, `remember` or `forget`.
        what: String,
    },
    /// An operation is done and recorded durably.
    Done {
        /// The resource.
        resource: ResourceId,
        /// The verb of the call.
        verb: Verb,
        /// The duration in milliseconds.
        ms: u64,
    },
    /// An operation failed.
    Failed {
        /// The resource.
        resource: ResourceId,
        /// The verb of the call.
        verb: Verb,
        /// The error with its causes.
        because: String,
        /// How to fix it.
        hint: Option<String>,
    },
    /// A step was not started because a step before it failed, or because the operator asked to stop.
    Skipped {
        /// The resource.
        resource: ResourceId,
        /// The reason.
        because: String,
    },
    /// An operation stays open; the next run recovers it.
    LeftOpen {
        /// The operation's id.
        operation: OperationId,
        /// The resource.
        resource: ResourceId,
    },
    /// A notice for the operator.
    Note {
        /// The message.
        text: String,
    },
}

/// Receives events. It must return quickly: the engine waits for it.
pub trait Events: Send + Sync {
    /// Receives an event.
    fn tell(&self, event: Event);
}

/// Discards every event.
#[derive(Debug, Clone, Copy)]
pub struct DiscardEvents;

impl Events for DiscardEvents {
    fn tell(&self, _event: Event) {}
}

/// Any closure is a receiver.
impl<F: Fn(Event) + Send + Sync> Events for F {
    fn tell(&self, event: Event) {
        self(event);
    }
}
