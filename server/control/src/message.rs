//! What sites and the witness tell one another, and what is to be done.

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::configuration::{Configuration, Incarnation, Site};
use crate::log::{Entry, Position, Snapshot};

/// Who sends, or is sent to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// A site.
    Site(Site),
    /// The witness.
    Witness,
}

/// One message. It may be lost, doubled, or come late.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Message {
    /// The primary's entries; without any, a heartbeat.
    Append {
        /// In which it is primary.
        configuration: Configuration,
        /// What stands before the entries.
        previous: Position,
        /// In order.
        entries: Vec<Entry>,
        /// Up to here everything is acknowledged.
        committed: u64,
        /// The primary's clock, given back with the answer.
        stamp: Millis,
    },
    /// The primary's table, where its log does not reach back far enough.
    Install {
        /// In which it is primary.
        configuration: Configuration,
        /// The table.
        snapshot: Snapshot,
        /// The primary's clock.
        stamp: Millis,
    },
    /// The sender has on disk what the primary has, up to an index.
    Stored {
        /// Of the configuration that it answers.
        epoch: u64,
        /// Whose disk.
        incarnation: Incarnation,
        /// Up to here.
        upto: u64,
        /// Of the message that it answers: from then on the sender keeps still for a grace.
        stamp: Millis,
    },
    /// The sender lacks what stands before the entries; the primary should begin after this index.
    Behind {
        /// Of the configuration that it answers.
        epoch: u64,
        /// Whose disk.
        incarnation: Incarnation,
        /// Where to begin.
        hint: u64,
        /// Of the message that it answers.
        stamp: Millis,
    },
    /// The receiver is of an older epoch.
    Newer {
        /// What holds.
        configuration: Configuration,
        /// The sender gave its place away itself, and whatever is led by it beside the log had let go before.
        #[serde(default)]
        let_go: bool,
    },
    /// To the witness: I live, what holds?
    Renew {
        /// Who.
        site: Site,
        /// Whose disk.
        incarnation: Incarnation,
        /// What it knows to hold.
        configuration: Option<Configuration>,
        /// The sender's clock, given back with the answer.
        stamp: Millis,
    },
    /// To the witness: a change of the configuration.
    Change {
        /// Who asks.
        by: Site,
        /// Whose disk.
        incarnation: Incarnation,
        /// What is to hold; its epoch is one more than that of what holds.
        to: Configuration,
        /// The witness's clock, as it last told it: what was asked long ago may not be wanted any more.
        seen: Millis,
    },
    /// From the witness: what holds.
    Holds {
        /// The configuration; `None` while the first one cannot be known.
        configuration: Option<Configuration>,
        /// Of the message that it answers, if that had one.
        stamp: Option<Millis>,
        /// The witness's clock.
        clock: Millis,
        /// Why a change was not made.
        refusal: Option<Refusal>,
    },
}

/// Why the witness did not change the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Refusal {
    /// Another change came first.
    #[error("the configuration has changed meanwhile")]
    Outdated,
    /// The primary was heard of a moment ago.
    #[error("the primary was heard of; its place is free in {in_ms} ms at the earliest")]
    PrimaryLives {
        /// How long until it may be asked for again.
        in_ms: Millis,
    },
    /// The one who asks may not ask for that.
    #[error("only a member may take the primary's place, and only the primary may change the members")]
    NotAllowed,
    /// It was under way for too long.
    #[error("the request came too late to be still wanted")]
    Late,
    /// The witness does not know what holds.
    #[error("the witness does not know yet what holds")]
    Unknown,
}

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All members have it on disk.
    Acknowledged(Position),
    /// The primary gave up its place before it knew: it may or may not happen.
    Unknown,
}

/// One thing to be done. They are done in order; what is to be stored is on disk before the next is done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Store what holds.
    Configure(Configuration),
    /// Store entries at the end of the log.
    Append(Vec<Entry>),
    /// Take away the end of the log after an index. The entries were never acknowledged; they are to be kept aside for a person.
    Withdraw {
        /// What stays.
        after: u64,
        /// What goes.
        entries: Vec<Entry>,
    },
    /// Replace the whole log.
    Install {
        /// By this.
        snapshot: Snapshot,
        /// What was in the log and is not in that, as far as can be told; to be kept aside for a person.
        aside: Vec<Entry>,
    },
    /// Replace the log's beginning by a snapshot, which holds the same.
    Compact {
        /// The beginning.
        snapshot: Snapshot,
        /// What stays after it.
        rest: Vec<Entry>,
    },
    /// Send a message; nothing depends on its arrival.
    Send(Peer, Message),
    /// Entries up to this index are acknowledged: the view may show them.
    Committed(u64),
    /// Answer a write.
    Answer(u64, Outcome),
}
