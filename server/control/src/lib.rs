//! Replicated control data that survives a site failure: who may write, what is acknowledged, and who takes over.
//!
//! The protocol is PacificA (Lin, Yang, Zhang, Zhou: "PacificA: Replication in Log-Based Distributed Storage Systems", 2008) with
//! the witness as its configuration manager. The witness stores the [`Configuration`] and changes it by
//! compare-and-swap on its epoch. The primary appends to its log and sends to all members. It acknowledges a write when
//! every member has it on disk: itself and at least one other site. Only members may take over, so a new primary has
//! everything that was acknowledged.
//!
//! Everything here is pure: time comes in, [`Effect`]s go out, in the order in which they must be carried out. A store
//! precedes the message that reports it. The simulation in `tests/` runs many sites through faults in virtual time.
#![forbid(unsafe_code)]

mod configuration;
mod log;
mod member;
mod message;
mod witness;

pub use configuration::{Configuration, Incarnation, Site, weights};
pub use log::{Entry, Log, Position, Snapshot, Table, Write};
pub use member::{Member, MemberRole, Overview, PeerOverview, Refused, Settings, State};
pub use message::{Effect, Message, Outcome, Peer, Refusal};
pub use witness::{Memory, Record, Witness, WitnessSettings};

/// Milliseconds of a monotonic clock. It need not agree with other machines' clocks, but drifts by at most [`DRIFT`].
pub type Millis = u64;

/// Maximum clock drift between two machines, as one part in `DRIFT`: leases end that much earlier than the time others
/// wait.
pub const DRIFT: u64 = 20;
