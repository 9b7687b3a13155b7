//! The engine from an environment file to a running service: environments, plans, apply, state, gates and releases.
//!
//! Start with [`environment`] (the typed file), then [`release`] (the artifacts that run). This crate has no code that
//! is specific to a cloud or to the command line, and prints nothing.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod alert;
pub mod analysis;
pub mod apply;
pub mod availability;
pub mod backup;
pub mod clock;
pub mod dr;
pub mod environment;
pub mod event;
pub mod export;
pub mod gate;
pub mod import;
pub mod load;
pub mod metrics;
pub mod monthly;
pub mod plan;
pub mod release;
pub mod replica;
pub mod report;
pub mod rotation;
pub mod run;
pub mod standby;
pub mod state;
pub mod status;
