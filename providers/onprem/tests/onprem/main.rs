//! Sites of one machine: what they are lowered to, how they live on real processes, and what faults do to them.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub, missing_docs)]

mod alerts;
mod conformance;
mod drills;
mod faults;
mod machine;
mod parts;
mod postgres;
mod public;
mod recovery;
mod rotation;
mod site;
#[path = "../../../../tests/src/small.rs"]
#[allow(dead_code)]
mod small;
