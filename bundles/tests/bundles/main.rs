//! Bundles: what goes in, what comes out, and what damage, kills and malice do to them.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub)]

mod deltas;
mod flips;
mod hostile;
mod journals;
mod kills;
mod made;
mod recipe;
mod recorded;
mod road;
mod shelf;
mod trust;
