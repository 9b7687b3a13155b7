//! What happens while a plan is applied, for progress on a terminal and for `--output jsonl`.

use jiff::Timestamp;
use serde::Serialize;
use textnlp_provider::{OperationId, ResourceId, SiteName, Verb};

/// Something happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// When, by the wall clock.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// Providers are asked what is there.
    Looking {
        /// Where.
        site: SiteName,
    },
    /// An operation that a dead run left open is finished first.
    Recovering {
        /// Which.
        operation: OperationId,
        /// On what.
        resource: ResourceId,
        /// Doing what.
        verb: Verb,
    },
    /// A plan was made and approved; this many steps follow.
    Planned {
        /// How many.
        steps: usize,
    },
    /// An operation is durable in the journal and its call is about to be made.
    Started {
        /// Which.
        operation: OperationId,
        /// On what.
        resource: ResourceId,
        /// Doing what.
        verb: Verb,
    },
    /// A longer operation says what it waits for.
    Says {
        /// On what.
        resource: ResourceId,
        /// The provider's words.
        text: String,
    },
    /// A call failed in a way that may pass; it is made again.
    Retrying {
        /// On what.
        resource: ResourceId,
        /// What went wrong.
        because: String,
        /// Milliseconds until the next attempt.
        in_ms: u64,
    },
    /// What was made is measured from outside before anything of the old goes.
    GateAsked {
        /// Of which site.
        site: SiteName,
    },
    /// A gate was measured: open where nothing speaks against it.
    GateAnswered {
        /// Of which site.
        site: SiteName,
        /// Every reason why it is shut.
        shut_because: Vec<String>,
    },
    /// What the planned alternatives left open was decided.
    Chose {
        /// On what.
        resource: ResourceId,
        /// `nothing`, `update`, `replace`.
        branch: String,
    },
    /// Only our own record changed.
    Noted {
        /// On what.
        resource: ResourceId,
        /// `adopt`, `remember`, `forget`.
        what: String,
    },
    /// An operation is finished, durably.
    Done {
        /// On what.
        resource: ResourceId,
        /// Doing what.
        verb: Verb,
        /// How long it took.
        ms: u64,
    },
    /// An operation failed.
    Failed {
        /// On what.
        resource: ResourceId,
        /// Doing what.
        verb: Verb,
        /// Why, causes included.
        because: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A step was not begun because something before it failed, or because a person asked to stop.
    Skipped {
        /// On what.
        resource: ResourceId,
        /// Why.
        because: String,
    },
    /// An operation stays open; the next run finishes it.
    LeftOpen {
        /// Which.
        operation: OperationId,
        /// On what.
        resource: ResourceId,
    },
    /// Something that a person should know.
    Note {
        /// The text.
        text: String,
    },
}

/// Whoever listens. A listener must be quick: the engine waits for it.
pub trait Events: Send + Sync {
    /// Takes an event.
    fn tell(&self, event: Event);
}

/// Nobody listens.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl Events for Quiet {
    fn tell(&self, _event: Event) {}
}

/// Any closure listens.
impl<F: Fn(Event) + Send + Sync> Events for F {
    fn tell(&self, event: Event) {
        self(event);
    }
}
