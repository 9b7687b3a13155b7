//! The engine against the cloud in memory: plans, applies, crashes, damage.
//!
//! Time is virtual and everything is deterministic, so a failing case fails again.

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod crash;
mod environments;
mod folder;
mod journal;
mod plans;
mod road;
mod saved;
mod simulate;
mod world;
