//! The operations on a deployment as functions: typed arguments in, values out.
//!
//! They print nothing and ask nothing. [`Platform`] gives them the providers, [`Progress`] reports what they do, and a
//! [`Failure`] says why one failed and what to do next. The command line wires, asks and prints.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod artifacts;
pub mod backup;
pub mod deployment;
pub mod dr;
pub mod failure;
pub mod gate;
pub mod platform;
pub mod release;
pub mod rerun_flags;
pub mod running;
pub mod up;
pub mod workplace;

pub use failure::{Exit, Failure};
pub use platform::{ChosenEnvironment, Platform, Progress, Scope};
pub use rerun_flags::RerunFlags;
