//! What needs no server of others: the engine, environments, gates, drills and backups, most of it in virtual time.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, unreachable_pub, missing_docs)]

mod backup;
mod engine;
mod environment;
mod environment_gate;
mod environment_history;
mod environment_hostile;
mod environment_release;
mod environment_wire;
mod load;
mod monthly;
mod program;
mod recovery;
#[path = "../../../tests/src/seeds.rs"]
mod seeds;
mod sessions;
mod terraform;
mod world;
