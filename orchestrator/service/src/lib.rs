//! The operations on a deployment as functions: typed arguments in, values out.
//!
//! They print nothing and ask nothing. [`Platform`] gives them the providers, [`Progress`] reports what they do, and a
//! [`Failure`] says why one failed and what to do next. The command line wires, asks and prints.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod alerts;
pub mod artifacts;
pub mod audit;
pub mod availability;
pub mod backup;
pub mod baseline;
pub mod batches;
pub mod bundle;
pub mod cache;
pub mod checklist;
pub mod checks;
pub mod cleanup;
pub mod client;
pub mod compare;
pub mod compliance;
pub mod configuration;
pub mod dependencies;
pub mod deployment;
pub mod doctor;
pub mod dr;
pub mod environments;
pub mod export;
pub mod failure;
pub mod gate;
pub mod health;
pub mod keys;
pub mod load;
pub mod logs;
pub mod metrics;
pub mod models;
pub mod monthly;
pub mod origin;
pub mod output;
pub mod platform;
pub mod program_digests;
pub mod rehearsal;
pub mod release;
pub mod replica;
pub mod report_files;
pub mod rerun_flags;
pub mod running;
pub mod security;
mod sockets;
pub mod support;
pub mod up;
pub mod updates;
mod usage_records;
pub mod workplace;

pub use deployment::Deployment;
pub use failure::{Exit, Failure, size};
pub use platform::{ChosenEnvironment, Platform, Progress, Scope};
pub use rerun_flags::{RerunFlags, quoted};
pub use running::RunningEnvironment;
