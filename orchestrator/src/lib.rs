//! From what a person wrote to what runs: environments, plans, apply, state, gates and releases.
//!
//! Read in the order of the road: [`environment`] (the file, typed), [`release`] (which bytes run).
//! This crate knows no cloud by name, no command line and prints nothing.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod alert;
pub mod apply;
pub mod backup;
pub mod clock;
pub mod dr;
pub mod environment;
pub mod event;
pub mod export;
pub mod gate;
pub mod import;
pub mod load;
pub mod plan;
pub mod release;
pub mod report;
pub mod road;
pub mod state;
pub mod status;
