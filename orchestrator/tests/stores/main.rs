//! Where a state is kept: one list for all stores, and what an object store must bear beyond it. With alerts, which go to servers of others
//! too.
//!
//! Time is virtual except against real servers.

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod alert;
mod bucket;
mod canary;
mod conformance;
mod far;
mod faults;
mod line;
mod operators;
mod person;
#[path = "../pure/program.rs"]
mod program;
mod real;
#[path = "../../../tests/src/seeds.rs"]
mod seeds;
#[path = "../../../tests/src/servers.rs"]
#[allow(dead_code)]
mod servers;
mod takeover;
mod transfer;
#[path = "../pure/world.rs"]
#[allow(dead_code)]
mod world;
