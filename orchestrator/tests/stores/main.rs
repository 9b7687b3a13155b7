//! Where a state is kept: one list for all stores, and what an object store must bear beyond it.
//!
//! Time is virtual except against real servers.

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod bucket;
mod canary;
mod conformance;
mod far;
mod faults;
mod line;
mod operators;
mod person;
#[path = "../engine/program.rs"]
mod program;
mod real;
#[path = "../../../tests/src/servers.rs"]
#[allow(dead_code)]
mod servers;
mod takeover;
mod transfer;
#[path = "../engine/world.rs"]
#[allow(dead_code)]
mod world;
