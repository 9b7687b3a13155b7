//! Control data that survives the loss of a site: who may write, what was acknowledged, and who takes over.
//!
//! The protocol is PacificA (Lin, Yang, Zhang, Zhou: "PacificA: Replication in Log-Based Distributed Storage Systems", 2008) with
//! the witness as its configuration manager. The witness keeps the [`Configuration`] and changes it by compare-and-swap on its epoch. The
//! primary appends to its log, sends to all members, and acknowledges a write when every member has it on disk, itself and at least
//! one other site. Since only members may take over, whoever does has everything that was acknowledged.
//!
//! Everything here is pure: time comes in, [`Effect`]s go out, in the order in which they must be carried out. What must be on disk stands
//! before the message that tells of it. The simulation in `tests/` runs many sites through faults in virtual time.

mod configuration;
mod log;
mod member;
mod message;
mod witness;

pub use configuration::{Configuration, Incarnation, Site, weights};
pub use log::{Entry, Log, Position, Snapshot, Table, Write};
pub use member::{Member, Overview, PeerOverview, Refused, Settings, State};
pub use message::{Effect, Message, Outcome, Peer, Refusal};
pub use witness::{Memory, Record, Witness, WitnessSettings};

/// Milliseconds of a clock that only goes forward and need not agree with any other machine's; it may run up to [`DRIFT`] too fast or slow.
pub type Millis = u64;

/// How far two clocks may drift apart, as one part in so many: leases end that much earlier than others wait.
pub const DRIFT: u64 = 20;
