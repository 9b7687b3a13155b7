//! The messages between sites and the witness, and the effects of the protocol.

use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::configuration::{Configuration, Incarnation, Site};
use crate::log::{Entry, Position, Snapshot};

/// A sender or receiver.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// A site.
    Site(Site),
    /// The witness.
    Witness,
}

/// A message. It may be lost, duplicated, or delayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Message {
    /// The primary's entries; without any, a heartbeat.
    Append {
        /// In which it is primary.
        configuration: Configuration,
        /// The position before the entries.
        previous: Position,
        /// In order.
        entries: Vec<Entry>,
        /// Up to here everything is acknowledged.
        committed: u64,
        /// The primary's clock, echoed in the reply.
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
    /// The sender has the primary's entries on disk, up to an index.
    Stored {
        /// Of the configuration that it answers.
        epoch: u64,
        /// Whose disk.
        incarnation: Incarnation,
        /// Up to here.
        upto: u64,
        /// Of the message that it answers: from then on the sender does not ask for leadership for a grace.
        stamp: Millis,
    },
    /// The sender lacks entries before these; the primary should continue after this index.
    Behind {
        /// Of the configuration that it answers.
        epoch: u64,
        /// Whose disk.
        incarnation: Incarnation,
        /// The index to continue after.
        hint: u64,
        /// Of the message that it answers.
        stamp: Millis,
    },
    /// The receiver has an older epoch.
    Newer {
        /// The configuration in force.
        configuration: Configuration,
        /// The sender handed leadership over itself, and the database outside of the log had already been released.
        #[serde(default)]
        let_go: bool,
    },
    /// To the witness: a heartbeat, and a request for the configuration.
    Renew {
        /// The sender.
        site: Site,
        /// Whose disk.
        incarnation: Incarnation,
        /// The configuration that it knows.
        configuration: Option<Configuration>,
        /// The sender's clock, echoed in the reply.
        stamp: Millis,
    },
    /// To the witness: a change of the configuration.
    Change {
        /// The requesting site.
        by: Site,
        /// Whose disk.
        incarnation: Incarnation,
        /// The requested configuration; its epoch is one more than the current one's.
        to: Configuration,
        /// The witness's clock as last reported: a request that is too old may no longer be wanted.
        seen: Millis,
    },
    /// From the witness: the configuration in force.
    Holds {
        /// The configuration; `None` while the first one is not yet known.
        configuration: Option<Configuration>,
        /// Of the message that it answers, if that had one.
        stamp: Option<Millis>,
        /// The witness's clock.
        clock: Millis,
        /// Why a change was refused.
        refusal: Option<Refusal>,
    },
}

/// Why the witness did not change the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Refusal {
    /// Another change came first.
    #[error("the configuration has changed since the request")]
    Outdated,
    /// The primary was heard recently.
    #[error("the primary is still reporting; its role can be claimed in {in_ms} ms at the earliest")]
    PrimaryLives {
        /// Milliseconds until the request may be repeated.
        in_ms: Millis,
    },
    /// The requesting site may not make this change.
    #[error("only a member may become primary, and only the primary may change the members")]
    NotAllowed,
    /// The request was delayed for too long.
    #[error("the request arrived too late")]
    Late,
    /// The witness does not know the configuration.
    #[error("the witness does not know the current configuration yet")]
    Unknown,
}

/// The outcome of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All members have it on disk.
    Acknowledged(Position),
    /// The primary lost leadership before it knew: the write may or may not take effect.
    Unknown,
}

/// One effect. Effects are carried out in order; data to be stored is on disk before the next one starts.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Store the configuration.
    Configure(Configuration),
    /// Store entries at the end of the log.
    Append(Vec<Entry>),
    /// Remove the log entries after an index. They were never acknowledged, and are stored separately for the operator.
    Withdraw {
        /// The index of the last entry that stays.
        after: u64,
        /// The removed entries.
        entries: Vec<Entry>,
    },
    /// Replace the whole log.
    Install {
        /// By this.
        snapshot: Snapshot,
        /// Entries of the log that are not in the snapshot, as far as can be determined; stored separately for the
        /// operator.
        aside: Vec<Entry>,
    },
    /// Replace the log's beginning by a snapshot, which holds the same.
    Compact {
        /// The beginning.
        snapshot: Snapshot,
        /// The entries after it.
        rest: Vec<Entry>,
    },
    /// Send a message; nothing depends on its arrival.
    Send(Peer, Message),
    /// Entries up to this index are acknowledged: the view may show them.
    Committed(u64),
    /// Answer a write.
    Answer(u64, Outcome),
}
