//! Copies that bring a deployment back: one file with state, keys, databases and what the environment said.
//!
//! Read in this order: [`Manifest`] (what is in a copy), `archive` (its bytes: a tar that any tar opens), `seal` (who can open it:
//! the format of the tool `age`), [`Shelf`] (the folder where copies lie, and which may go), [`Log`] (the archived log of a
//! PostgreSQL, which leads from a copy to any later moment). What of a site belongs into a copy is
//! known to its provider; the databases are read by the server program. Both come from the caller.

mod archive;
mod error;
mod log;
mod manifest;
mod seal;
mod shelf;

pub use archive::{Content, Item, listed, unpack, write};
pub use error::Error;
pub use log::{Header, Log, PART_MAX, Part, PartFacts, PartName, Put, Reach, unneeded};
pub use manifest::{Base, Database, FORMAT, Manifest, Member, Model, is_inside};
pub use seal::{Key, Opener, Recipient, Seal, opened};
pub use shelf::{Dump, Facts, Proof, Shelf, removable};
