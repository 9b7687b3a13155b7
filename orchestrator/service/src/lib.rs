//! The operations on a deployment as functions: typed arguments in, values out.
//!
//! They print nothing and ask nothing. [`Platform`] gives them the providers, [`Progress`] reports what they do, and a
//! [`Failure`] says why one failed and what to do next. The command line wires, asks and prints.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backup;
pub mod failure;
pub mod gate;
pub mod platform;
pub mod release;
pub mod rerun_flags;
pub mod running;
pub mod workplace;

pub use failure::{Exit, Failure};
pub use platform::{Platform, Progress, Scope, Subject};
pub use rerun_flags::RerunFlags;
