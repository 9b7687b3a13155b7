//! The engine against the cloud in memory: plans, applies, crashes, damage.
//!
//! Time is virtual and everything is deterministic, so a failing case fails again.

mod capacity;
mod cost;
mod crash;
mod degraded;
mod environments;
mod folder;
mod foreign;
mod gated;
mod journal;
mod origin;
mod plans;
mod road;
mod saved;
mod simulate;
