//! Objects on a real API server: the contract's lists for every kind, who and what may be in the way, autoscaling, and a server that goes.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub, missing_docs)]

mod autoscaling;
mod conformance;
#[path = "../cut/mod.rs"]
#[allow(dead_code)]
mod cut;
#[path = "../parts/mod.rs"]
#[allow(dead_code)]
mod parts;
mod real;
mod restart;
#[path = "../world/mod.rs"]
#[allow(dead_code)]
mod world;
